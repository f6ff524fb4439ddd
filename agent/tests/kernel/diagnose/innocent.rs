//! What every other test runs is well: it blocks, burns, allocates, waits and hands out work, and nothing of it grows without an end.

use std::{process::Command, time::Duration};

use super::{NEW, OLD, diagnose_pids, in_turn, is_of, text, workload};
use crate::harness::{Bench, Process, Workload, bench, node, script};

/// Seconds that they are looked at: longer than `span_s`.
const SECONDS: u32 = 20;

/// Nobody tells it to begin, and it prints where it listens.
const SERVER: &str = "demo-server.js";

/// Told to end, it would; all others do their work once, or for as long as they live.
const LIFE: &str = "life.js";

/// Script, arguments, and the version that runs it.
const INNOCENT: [(&str, &[&str], &str); 11] = [
    ("js/blocks.js", &["."], NEW),
    ("js/stacks.js", &[], NEW),
    (LIFE, &["exit", "0"], OLD),
    ("mixed.js", &[], NEW),
    ("pool.js", &[], OLD),
    ("workers.js", &["8"], NEW),
    ("gc.js", &[], OLD),
    ("delay.js", &[], NEW),
    ("utilization.js", &["half"], OLD),
    ("js/hot.js", &[], NEW),
    (SERVER, &[], NEW),
];

fn start(bench: &Bench, (name, args, version): (&str, &[&str], &str)) -> (String, Workload) {
    let mut command = Command::new(node(version));
    if name == SERVER {
        return (name.to_owned(), Workload(Process::spawn(command.arg(workload(name)))));
    }
    command.arg(script(name)).args(args).env("UV_THREADPOOL_SIZE", "2").current_dir(bench.dir.path());
    (name.to_owned(), Workload::with(&mut command))
}

#[test]
fn what_other_tests_run_is_no_finding() {
    let Some(bench) = bench() else { return };
    for innocent in in_turn(&INNOCENT) {
        let mut running: Vec<_> = innocent.iter().map(|innocent| start(&bench, *innocent)).collect();
        for (_, workload) in running.iter_mut().filter(|(name, _)| name != LIFE && name != SERVER) {
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
            let looks = diagnosis.records.iter();
            let looks = looks.filter(|record| text(record, "type") == "memory" && is_of(record, workload.pid()));
            assert!(looks.count() as u32 > SECONDS / 2, "{name} was not looked at");
        }
    }
}
