//! Containers of one image: the kernel gives each a device of its own, and so a file of its own, with the bytes that all of them have.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    harness::{Bench, Process, VERSION, agent_command, bench, close, node, patience, say, script, slowness, within},
    records::{Records, list, number, text},
    resident::{Daemon, LIMIT},
};

fn image(bench: &Bench) {
    fs::create_dir(bench.dir.path().join("image")).unwrap();
    fs::copy(node(VERSION), bench.dir.path().join("image/node")).unwrap();
}

/// Runs a workload by the image's Node.js.
fn contained(bench: &Bench, name: &str, workload: &str) -> Process {
    let dir = bench.dir.path();
    for part in ["upper", "work", "root"] {
        fs::create_dir_all(dir.join(name).join(part)).unwrap();
    }
    let mount =
        format!("mount -t overlay overlay -o lowerdir=image,upperdir={name}/upper,workdir={name}/work {name}/root");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]).arg(format!("{mount} && exec {name}/root/node \"$0\"")).arg(script(workload));
    let mut process = Process::spawn(command.current_dir(dir));
    process.wait_out("READY");
    process
}

#[test]
fn a_file_that_containers_share_is_probed_once() {
    let Some(bench) = bench() else { return };
    image(&bench);
    let containers = [contained(&bench, "one", "burst.js"), contained(&bench, "other", "burst.js")];
    let ndjson = bench.dir.path().join("trace.ndjson");
    let pids = containers.each_ref().map(|container| container.pid().to_string());
    let [one, other] = &pids;
    let args = ["diagnose", "--pid", one, "--pid", other, "--duration", "4s", "--ndjson", ndjson.to_str().unwrap()];
    let mut agent = Process::spawn(&mut agent_command(&args));
    assert_eq!(agent.wait(Duration::from_secs(20)).code(), Some(0), "{}", agent.err_text());
    let records = Records::read(&ndjson);
    let windows = records.of_type("window").filter_map(|window| window.get("thread_pool"));
    let items: f64 = windows.flat_map(|pool| list(pool, "work")).map(|work| number(work, "count")).sum();
    let probes = records.of_type("agent").flat_map(|agent| list(agent, "probes"));
    let hits: f64 = probes.filter(|probe| text(probe, "probe") == "fs_done").map(|probe| number(probe, "hits")).sum();
    assert!(items > 50.0, "{items}");
    close("hits of the probe at an item's end", items, hits, within(items, 0.2, 0.0));
}

/// What is known of the program, its symbols, its line information and how it is unwound, is known of all that have it.
#[test]
fn one_container_more_of_an_image_costs_little() {
    const FEW: usize = 2;
    /// One that shared nothing would take 5700.
    const KB_A_CONTAINER_MAX: u64 = 1_500;
    let many = FEW + 24 / slowness() as usize;
    let Some(bench) = bench() else { return };
    image(&bench);
    let mut daemon = Daemon::with(&bench, "overlays", &["-v"]);
    let mut containers = Vec::new();
    let mut memory = [0; 2];
    for (count, memory) in [FEW, many].into_iter().zip(&mut memory) {
        containers.extend((containers.len()..count).map(|index| contained(&bench, &format!("c{index}"), "soak.js")));
        let pids: BTreeSet<u64> = containers.iter().map(|container| u64::from(container.pid())).collect();
        let deadline = Instant::now() + patience(LIMIT * 2);
        // A stack of each is named.
        while daemon.told("profile", &pids) < pids.len() {
            assert!(Instant::now() < deadline, "stacks of {} of {count}", daemon.told("profile", &pids));
            std::thread::sleep(Duration::from_millis(500));
        }
        *memory = daemon.status("VmRSS");
    }
    let [few, all] = memory;
    let each = all.saturating_sub(few) / (many - FEW) as u64;
    say(&format!("measured overlays: {few} kB for {FEW} containers, {all} kB for {many}: {each} kB more for each"));
    assert!(each < KB_A_CONTAINER_MAX, "{each} kB a container");
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success(), "{}", daemon.process.err_text());
    let said = daemon.process.err_text();
    assert!(!said.contains("do not fit"), "unwind tables: {said}");
}
