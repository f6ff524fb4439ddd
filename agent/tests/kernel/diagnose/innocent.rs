//! What every other test runs is well: it blocks, burns, allocates, waits and hands out work, and nothing of it grows without an end.

use std::{process::Command, time::Duration};

use super::{NEW, OLD, diagnose_pids, workload};
use crate::harness::{Bench, Workload, bench, node, script};

/// Seconds that they are looked at: longer than `span_s`.
const SECONDS: u32 = 20;

/// Script, arguments, and the version that runs it.
const INNOCENT: [(&str, &[&str], &str); 9] = [
    ("js/stacks.js", &[], NEW),
    ("life.js", &["exit", "0"], OLD),
    ("mixed.js", &[], NEW),
    ("pool.js", &[], OLD),
    ("workers.js", &["8"], NEW),
    ("gc.js", &[], OLD),
    ("delay.js", &[], NEW),
    ("utilization.js", &["half"], OLD),
    ("js/hot.js", &[], NEW),
];

fn start(bench: &Bench) -> Vec<(String, Workload)> {
    let directory = bench.dir.path().to_str().unwrap();
    let mut running = vec![("js/blocks.js".to_owned(), Workload::start(NEW, "js/blocks.js", &[directory]))];
    for (name, args, version) in INNOCENT {
        let mut command = Command::new(node(version));
        command.arg(script(name)).args(args).env("UV_THREADPOOL_SIZE", "2");
        running.push((name.to_owned(), Workload::with(&mut command)));
    }
    let mut command = Command::new(node(NEW));
    let server = crate::harness::Process::spawn(command.arg(workload("demo-server.js")));
    running.push(("demo-server.js".to_owned(), Workload(server)));
    running
}

#[test]
fn what_other_tests_run_is_no_finding() {
    let Some(bench) = bench() else { return };
    let mut running = start(&bench);
    // Told to end, it would; all others do their work once, or for as long as they live.
    for (_, workload) in running.iter_mut().filter(|(name, _)| name != "life.js" && name != "demo-server.js") {
        workload.go();
    }
    std::thread::sleep(Duration::from_secs(2));
    let pids: Vec<u32> = running.iter().map(|(_, workload)| workload.pid()).collect();
    let diagnosis = diagnose_pids(&bench, &pids, SECONDS, &[]);
    for (name, workload) in &running {
        diagnosis.silence(workload.pid(), name);
    }
    assert_eq!(diagnosis.code, Some(0));
    // Silence means something only of those that were looked at throughout.
    for (name, workload) in &running {
        let windows = diagnosis
            .records
            .iter()
            .filter(|record| super::text(record, "type") == "memory" && super::is_of(record, workload.pid()));
        assert!(windows.count() as u32 > SECONDS / 2, "{name} was not looked at");
    }
}
