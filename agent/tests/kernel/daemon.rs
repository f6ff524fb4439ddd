//! `agent daemon`: who comes and goes, a configuration that changes, and an end that leaves nothing.

use std::{
    fs, io,
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    event_loop::check_utilization,
    harness::{Bench, Process, VERSION, Workload, agent_command, bench, node, patience, read, say, script},
    records::Records,
    resident::{Daemon, LIMIT, config},
};

/// `node` that can be replaced by another program.
const EXEC_VERSION: &str = "24.21.0";

#[test]
fn a_daemon_meets_who_comes_and_ends_cleanly() {
    let Some(bench) = bench() else { return };
    let before = Workload::start(VERSION, "mixed.js", &[]);
    let mut daemon = Daemon::start(&bench, "meets");
    let mut other = Daemon::start(&bench, "beside");
    daemon.await_line(before.pid(), "target", 1);
    let begin = Instant::now();
    let after = Workload::start(VERSION, "mixed.js", &[]);
    daemon.await_line(after.pid(), "target", 1);
    say(&format!("measured daemon: met a new process {:?} after its start", begin.elapsed()));
    daemon.await_line(after.pid(), "window", 2);
    other.await_line(after.pid(), "window", 1);
    // One that dies badly leaves nothing, and the other one does not notice.
    other.process.signal(Signal::KILL);
    other.process.wait(LIMIT);
    let pid = after.pid();
    drop(after);
    daemon.await_end(pid);
    // Nobody is there, then somebody is again.
    let first = before.pid();
    drop(before);
    daemon.await_end(first);
    let again = Workload::start(VERSION, "mixed.js", &[]);
    daemon.await_line(again.pid(), "window", 1);
    let begin = Instant::now();
    daemon.process.signal(Signal::TERM);
    let status = daemon.process.wait(LIMIT);
    say(&format!("measured daemon: ended {:?} after SIGTERM", begin.elapsed()));
    assert!(status.success(), "{status}: {}", daemon.process.err_text());
    assert!(begin.elapsed() < Duration::from_secs(5), "it says five seconds");
    crate::stream::assert_balanced(&Records::read(&daemon.ndjson));
}

/// To a collector that takes all, with a place for what it does not.
fn spooled(bench: &Bench, collector: &TcpListener, spool: &str) -> String {
    let (to, spool) = (collector.local_addr().unwrap(), bench.dir.path().join(spool));
    format!(
        "[[stream]]\ntype = \"ndjson\"\nto = \"tcp://{to}\"\nspool = {{ directory = \"{}\", max_bytes = 16777216 }}\n",
        spool.display()
    )
}

/// Takes what comes, from whoever.
fn swallow(collector: TcpListener) {
    thread::spawn(move || {
        for mut stream in collector.incoming().flatten() {
            thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
        }
    });
}

#[test]
fn an_update_disturbs_neither_the_old_daemon_nor_the_new_one() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "utilization.js", &["half"]);
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let (of_both, of_new) = (spooled(&bench, &collector, "spool"), spooled(&bench, &collector, "spool-new"));
    swallow(collector);
    let mut old = Daemon::configured(&bench, "old", &of_both, &[]);
    old.await_line(workload.pid(), "window", 1);
    workload.go();
    // As much as the old one has: its file, its spool.
    let refused = |config: &str, name: &str, words: &str| {
        let path = bench.dir.path().join(format!("{name}.toml"));
        fs::write(&path, config).unwrap();
        let mut agent = Process::spawn(&mut agent_command(&["daemon", "--config", path.to_str().unwrap()]));
        assert_eq!(agent.wait(LIMIT).code(), Some(1), "{}", agent.err_text());
        assert!(agent.err_text().contains(words), "{}", agent.err_text());
    };
    refused(&read(&old.config), "same-file", "is written by another agent: give each a file of its own");
    let elsewhere = bench.dir.path().join("elsewhere.ndjson");
    refused(&config(&elsewhere, &of_both), "same-spool", "is used by another agent: give each a directory of its own");
    // Another program file, as a new version is, with places of its own; each attaches its own probes to the same file.
    let program = bench.dir.path().join("agent-new");
    fs::copy(env!("CARGO_BIN_EXE_agent"), &program).unwrap();
    let path = bench.dir.path().join("new.toml");
    let ndjson = bench.dir.path().join("new.ndjson");
    fs::write(&path, config(&ndjson, &of_new)).unwrap();
    let mut process = Process::spawn(Command::new(&program).args(["daemon", "--config"]).arg(&path));
    process.wait_err("agent: ready");
    let mut new = Daemon { process, config: path, ndjson };
    new.await_line(workload.pid(), "window", 2);
    old.process.signal(Signal::TERM);
    assert!(old.process.wait(LIMIT).success(), "{}", old.process.err_text());
    let windows = new.count(workload.pid(), "window");
    new.await_line(workload.pid(), "window", windows + 2);
    new.process.signal(Signal::TERM);
    assert!(new.process.wait(LIMIT).success(), "{}", new.process.err_text());
    let truths = workload.truths();
    for (name, daemon) in [("old", &old), ("new", &new)] {
        let records = Records::read(&daemon.ndjson);
        crate::stream::assert_balanced(&records);
        check_utilization(&format!("{name} daemon of two"), &records, &truths);
    }
}

#[test]
fn a_bad_configuration_is_refused_and_a_good_one_is_in_force() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let mut daemon = Daemon::start(&bench, "reload");
    daemon.await_line(workload.pid(), "window", 1);
    let good = fs::read_to_string(&daemon.config).unwrap();
    fs::write(&daemon.config, good.replacen("window", "windou", 1)).unwrap();
    daemon.process.signal(Signal::HUP);
    let told = daemon.process.wait_err("agent: refused");
    assert!(told.contains(":2: unknown field `windou`"), "{told}");
    let windows = daemon.count(workload.pid(), "window");
    daemon.await_line(workload.pid(), "window", windows + 2);
    // Without a signal: the file is looked at.
    let rule = "[[process]]\ncommand = \"*mixed.js*\"\ntrace = false";
    fs::write(&daemon.config, config(&daemon.ndjson, rule)).unwrap();
    daemon.process.wait_err(&format!("agent: {} is in force", daemon.config.display()));
    daemon.await_end(workload.pid());
    thread::sleep(Duration::from_millis(1500));
    let windows = daemon.count(workload.pid(), "window");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(daemon.count(workload.pid(), "window"), windows, "it is traced still");
    fs::write(&daemon.config, &good).unwrap();
    daemon.process.signal(Signal::HUP);
    daemon.await_line(workload.pid(), "target", 2);
    daemon.await_line(workload.pid(), "window", windows + 1);
}

#[test]
fn a_daemon_that_nobody_has_come_to_tells_of_itself_at_the_right_time() {
    let Some(bench) = bench() else { return };
    let hour =
        || String::from_utf8(Command::new("date").args(["-u", "+%Y-%m-%dT%H:"]).output().unwrap().stdout).unwrap();
    let before = hour();
    let daemon = Daemon::start(&bench, "alone");
    daemon.await_line(0, "agent", 1);
    let told = daemon.lines().into_iter().find(|line| line["type"] == "agent").unwrap();
    let time = told["time"].as_str().unwrap();
    assert!([before, hour()].iter().any(|hour| time.starts_with(hour.trim())), "{time}");
    let duration_s = told["duration_ns"].as_f64().unwrap() / 1e9;
    assert!(duration_s < patience(LIMIT).as_secs_f64(), "{duration_s} s");
}

#[test]
fn who_came_while_announcements_were_lost_is_found_at_once() {
    let Some(bench) = bench() else { return };
    // A page of a ring: room for some seventy announcements.
    let mut daemon = Daemon::with(&bench, "lost", &["--ring-size", "4096"]);
    daemon.process.signal(Signal::STOP);
    for _ in 0..200 {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    daemon.process.signal(Signal::CONT);
    let begin = Instant::now();
    // The next look through all of /proc that is due anyway is a minute away.
    daemon.await_line(workload.pid(), "target", 1);
    say(&format!("measured daemon: found a process whose announcement was lost {:?} later", begin.elapsed()));
    daemon.await_line(workload.pid(), "window", 1);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success());
    let records = Records::read(&daemon.ndjson);
    let last = records.of_type("agent").last().unwrap();
    let families = last["families"].as_array().unwrap();
    let process = families.iter().find(|family| family["family"] == "process").unwrap();
    assert!(process["dropped"].as_u64().unwrap() > 50, "{process}");
}

#[test]
fn a_process_that_becomes_another_program_is_asked_about_again() {
    let Some(bench) = bench() else { return };
    let daemon = Daemon::start(&bench, "becomes");
    let binary = node(EXEC_VERSION);
    // From here on no rule wants it.
    let elsewhere = bench.dir.path().join("other.js");
    fs::copy(script("life.js"), &elsewhere).unwrap();
    fs::copy(script("truth.js"), bench.dir.path().join("truth.js")).unwrap();
    let next = [binary.to_str().unwrap(), elsewhere.to_str().unwrap(), "exit", "0"];
    let mut workload = Workload::start(EXEC_VERSION, "life.js", &[&["exec"], &next[..]].concat());
    daemon.await_line(workload.pid(), "window", 1);
    workload.go();
    workload.0.wait_out("READY");
    thread::sleep(Duration::from_secs(2));
    let windows = daemon.count(workload.pid(), "window");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.count(workload.pid(), "window"), windows, "it is traced still");
    assert_eq!(daemon.count(workload.pid(), "target"), 1);
}
