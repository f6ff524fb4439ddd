//! Bad input and bad luck: each ends with its exit code and a message that says what to do, costs nothing else, and
//! harms no target.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    event_loop::check_utilization,
    harness::{
        Bench, Process, Trace, VERSION, Workload, agent_command, bench, close, node, patience, read, request, say,
        script, trace, within,
    },
    records::{Records, assert_closed, get, list, number, sum, text},
};

/// `node` that can be replaced by another program.
const EXEC_VERSION: &str = "24.21.0";
/// What a failing start may take: nothing is attached yet.
const FAIL_LIMIT: Duration = Duration::from_secs(20);
const DETACH_LIMIT: Duration = Duration::from_secs(1);

mod code {
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const NO_TARGET: i32 = 3;
    pub const NOT_ALLOWED: i32 = 4;
    pub const INTERRUPTED: i32 = 130;
    pub const TERMINATED: i32 = 143;
}

/// Runs a command to its end and asserts its exit code and that standard error says all of `words`.
#[track_caller]
fn fails(command: &mut Command, code: i32, words: &[&str]) {
    let mut process = Process::spawn(command);
    let status = process.wait(FAIL_LIMIT);
    let message = process.err_text();
    say(&format!("measured exit {status}: {message}"));
    assert_eq!(status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

fn trace_command(pid: u32, args: &[&str]) -> Command {
    let pid = pid.to_string();
    let mut all = vec!["trace", "--pid", &pid];
    all.extend_from_slice(args);
    agent_command(&all)
}

/// A command of the shell, in a mount namespace of its own, that begins with `setup` and becomes the agent.
fn in_namespace(setup: &str, pid: u32, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]).arg(format!("{setup} && exec \"$@\"")).arg("sh");
    command.arg(env!("CARGO_BIN_EXE_agent")).args(["trace", "--pid", &pid.to_string()]).args(args);
    command
}

/// A pid that was in use and is no more.
fn reaped_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
fn a_pid_of_no_process_is_refused() {
    let Some(_bench) = bench() else { return };
    let pid = reaped_pid();
    fails(&mut trace_command(pid, &[]), code::NO_TARGET, &[&pid.to_string(), "no process"]);
}

#[test]
fn a_thread_id_is_refused_with_the_pid_that_was_meant() {
    let Some(_bench) = bench() else { return };
    let workload = Workload::start(VERSION, "server.js", &[]);
    let tid = other_threads(workload.pid())[0];
    fails(&mut trace_command(tid, &[]), code::NO_TARGET, &[&tid.to_string(), &workload.pid().to_string()]);
}

fn other_threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).filter(|tid| *tid != pid).collect()
}

#[test]
fn a_process_that_is_not_node_is_refused() {
    let Some(_bench) = bench() else { return };
    let sleep = Process::spawn(Command::new("sleep").arg("60"));
    fails(&mut trace_command(sleep.pid(), &[]), code::NO_TARGET, &["sleep", "Node.js"]);
}

#[test]
fn a_command_line_that_means_nothing_is_refused() {
    let Some(_bench) = bench() else { return };
    fails(&mut agent_command(&["trace"]), code::USAGE, &["--pid"]);
    fails(&mut agent_command(&["trace", "--pid", "1", "--duration", "soon"]), code::USAGE, &["30s"]);
    fails(&mut agent_command(&["trace", "--", "/nonexistent/node"]), code::FAILED, &["/nonexistent/node"]);
}

#[test]
fn a_stripped_node_is_traced_as_far_as_its_symbols_go() {
    let Some(bench) = bench() else { return };
    // Without .symtab nothing is left of libuv's and V8's insides in Node.js 24.
    let stripped = bench.dir.path().join("node");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(node(EXEC_VERSION)).status();
    if !status.is_ok_and(|status| status.success()) {
        return crate::harness::skip("strip (binutils)");
    }
    let mut workload = Workload::with(Command::new(&stripped).arg(script("utilization.js")).arg("half"));
    let records = trace(&bench, &mut workload, 2.0, &[]);
    let degraded = list(records.target(), "degraded");
    let reasons = degraded.iter().map(|row| format!("{}: {}", text(row, "feature"), text(row, "reason")));
    let reasons = reasons.collect::<Vec<_>>().join("\n");
    say(&format!("measured degraded features of a stripped node:\n{reasons}"));
    assert!(reasons.contains("symbol"), "{reasons}");

    let mut doctor = agent_command(&["doctor", "--pid", &workload.pid().to_string()]);
    let said = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    assert!(said.contains("symbol"), "doctor does not say what is missing:\n{said}");
    thread::sleep(Duration::from_millis(100));
    // The ledger needs no symbols.
    check_utilization("stripped", &records, &workload.truths());
}

/// The agent where anybody may run it: the build directory may lie below a private one.
fn public_agent(bench: &Bench) -> std::path::PathBuf {
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = bench.dir.path().join("agent");
    fs::copy(env!("CARGO_BIN_EXE_agent"), &path).unwrap();
    path
}

#[test]
fn without_privilege_it_says_which_and_goes() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "server.js", &[]);
    let agent = public_agent(&bench);
    let pid = workload.pid().to_string();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let no_capabilities = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];
    for restriction in [nobody, no_capabilities] {
        let mut command = Command::new("setpriv");
        command.args(restriction).arg(&agent).args(["trace", "--pid", &pid]);
        fails(&mut command, code::NOT_ALLOWED, &["root", "CAP_"]);
    }
}

#[test]
fn without_btf_it_says_what_is_lost_and_goes_on() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "utilization.js", &["half"]);
    let ndjson = bench.dir.path().join("no-btf.ndjson");
    let args = ["--duration", "2s", "--ndjson", ndjson.to_str().unwrap()];
    let mut agent = Process::spawn(&mut in_namespace("mount -t tmpfs none /sys/kernel/btf", workload.pid(), &args));
    agent.wait_err("agent: tracing pid");
    workload.go();
    assert!(agent.wait(FAIL_LIMIT).success(), "{}", agent.err_text());
    assert!(agent.err_text().contains("/sys/kernel/btf/vmlinux"), "{}", agent.err_text());
    check_utilization("no BTF", &Records::read(&ndjson), &workload.truths());
}

#[test]
fn a_memlock_limit_that_cannot_be_raised_is_no_obstacle() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "utilization.js", &["half"]);
    let ndjson = bench.dir.path().join("memlock.ndjson");
    let pid = workload.pid().to_string();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_resource", "sh", "-c", "ulimit -l 0 && exec \"$@\"", "sh"]);
    command
        .arg(env!("CARGO_BIN_EXE_agent"))
        .args(["trace", "--duration", "2s", "--pid", &pid, "--ndjson"])
        .arg(&ndjson);
    let mut agent = Process::spawn(&mut command);
    agent.wait_err("agent: tracing pid");
    workload.go();
    assert!(agent.wait(FAIL_LIMIT).success(), "{}", agent.err_text());
    thread::sleep(Duration::from_millis(100));
    check_utilization("memlock 0", &Records::read(&ndjson), &workload.truths());
}

/// What the last words of a target were.
#[track_caller]
fn exit_of(records: &Records) -> &Value {
    records.of_type("process").find(|record| text(record, "event") == "exit").expect("an exit record")
}

#[test]
fn the_end_of_the_target_ends_the_trace_with_its_exit_code_or_signal() {
    let Some(bench) = bench() else { return };
    for (args, key, value) in [(vec!["exit", "7"], "code", 7), (vec!["kill"], "signal", 9)] {
        let mut workload = Workload::start(VERSION, "life.js", &args);
        let mut trace = Trace::start(&bench, workload.pid(), &["--duration", "30s"]);
        workload.go();
        let begun = Instant::now();
        let records = trace.finish(Duration::from_secs(5));
        assert!(begun.elapsed() < Duration::from_secs(10), "the trace outlived its target");
        let exit = exit_of(&records);
        assert_eq!(get(exit, key).as_u64(), Some(value), "{exit}");
        assert_eq!(text(records.one("end"), "reason"), "targets_gone");
        // What was seen until then is reported.
        let turns = sum(&records.loop_windows("main"), "turns");
        assert!(turns > 40.0, "{turns} turns in a second of timers every 10 ms");
        assert!(!trace.process.out.is_empty(), "no report");
    }
}

#[test]
fn a_target_that_becomes_another_program_is_let_go() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(EXEC_VERSION, "life.js", &["exec", "/bin/sleep", "60"]);
    let mut trace = Trace::start(&bench, workload.pid(), &["--duration", "30s"]);
    workload.go();
    let records = trace.finish(Duration::from_secs(5));
    let exec = records.of_type("process").find(|record| text(record, "event") == "exec").expect("an exec record");
    assert_eq!(text(exec, "name"), "sleep");
    assert!(trace.process.err_text().contains("another program"), "{}", trace.process.err_text());
    assert!(workload.0.is_running(), "the target did not survive");
}

#[test]
fn a_target_that_becomes_node_again_is_traced_on() {
    let Some(bench) = bench() else { return };
    let next = script("life.js");
    let binary = node(EXEC_VERSION);
    let args = ["exec", binary.to_str().unwrap(), next.to_str().unwrap(), "exit", "0"];
    let mut workload = Workload::start(EXEC_VERSION, "life.js", &args);
    let mut trace = Trace::start(&bench, workload.pid(), &["--duration", "4s"]);
    workload.go();
    workload.0.wait_out("READY");
    let records = trace.finish(Duration::from_secs(4));
    let exec = records.of_type("process").position(|record| text(record, "event") == "exec");
    assert!(exec.is_some(), "no exec record");
    let last = records.of_type("window").last().unwrap();
    let turns: f64 = list(last, "loops").iter().map(|entry| number(entry, "turns")).sum();
    assert!(turns > 10.0, "the new program's loop is not seen: {last}");
}

#[test]
fn a_stopped_target_is_shown_as_stopped_and_never_touched() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "utilization.js", &["half"]);
    let mut trace = Trace::start(&bench, workload.pid(), &["--duration", "3s"]);
    workload.go();
    thread::sleep(Duration::from_millis(500));
    workload.0.signal(Signal::STOP);
    let stopped = Instant::now();
    thread::sleep(Duration::from_millis(1_200));
    let truth = stopped.elapsed().as_secs_f64() * 1e3;
    workload.0.signal(Signal::CONT);
    let records = trace.finish(Duration::from_secs(3));
    for role in ["main", "worker"] {
        let windows = records.loop_windows(role);
        close(&format!("{role} stopped (ms)"), truth, sum(&windows, "stopped_ns") / 1e6, within(truth, 0.05, 0.0));
        assert_closed(&format!("stopped, {role}"), &windows);
    }
}

/// Stopped before its first poll, a thread shows nobody that it has a loop.
fn wait_until_it_polls(pid: u32) {
    let polls = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].map(|number| format!("{number} "));
    let deadline = Instant::now() + patience(FAIL_LIMIT);
    while !polls.iter().any(|poll| read(format!("/proc/{pid}/syscall")).starts_with(poll)) {
        assert!(Instant::now() < deadline, "process {pid} never polls");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_target_that_is_stopped_all_along_does_not_hold_the_agent_up() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "server.js", &[]);
    wait_until_it_polls(workload.pid());
    workload.0.signal(Signal::STOP);
    let mut trace = Trace::start(&bench, workload.pid(), &["--duration", "1s"]);
    let records = trace.finish(Duration::from_secs(1));
    let main = records.loop_windows("main");
    close("stopped all along (%)", 100.0, sum(&main, "stopped_ns") / sum(&main, "wall_ns") * 100.0, 1.0);
    assert!(read(format!("/proc/{}/stat", workload.pid())).contains(") T "), "the agent made it go on");
    workload.0.signal(Signal::CONT);
}

#[test]
fn three_hundred_workers_each_have_a_ledger() {
    const WORKERS: usize = 300;
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "workers.js", &[&WORKERS.to_string()]);
    let records = trace(&bench, &mut workload, 3.0, &[]);
    let loops: BTreeSet<u32> = records
        .of_type("window")
        .flat_map(|window| list(window, "loops"))
        .map(|entry| number(entry, "tid") as u32)
        .collect();
    let threads = records.threads();
    close("loops of 300 workers and the main thread", WORKERS as f64 + 1.0, loops.len() as f64, 0.0);
    let all: Vec<&Value> = loops.iter().flat_map(|tid| threads[tid].iter().copied()).collect();
    assert_closed("300 workers", &all);
    let rss = records.of_type("agent").map(|cost| number(cost, "rss_bytes")).fold(0.0, f64::max);
    say(&format!("measured memory of the agent with 301 loops: {:.0} MB", rss / 1e6));
}

#[test]
fn two_agents_on_one_target_see_the_same() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "mixed.js", &[]);
    let mut first = Trace::start(&bench, workload.pid(), &["--duration", "4s"]);
    let mut second = Trace::start(&bench, workload.pid(), &["--duration", "2s"]);
    workload.go();
    let second = second.finish(Duration::from_secs(2));
    let first = first.finish(Duration::from_secs(4));
    thread::sleep(Duration::from_millis(100));
    let truths = workload.truths();
    check_utilization("first of two", &first, &truths);
    check_utilization("second of two", &second, &truths);
}

#[test]
fn a_full_disk_costs_the_file_and_not_the_report() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let disk = bench.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let file = disk.join("trace.ndjson");
    let keep = bench.dir.path().join("kept.ndjson");
    // The disk exists in the agent's mount namespace only: what it holds is copied out at the end.
    let script = format!(
        "mount -t tmpfs -o size=64k none {disk} && \"$@\"; code=$?; cp {file} {keep}; exit $code",
        disk = disk.display(),
        file = file.display(),
        keep = keep.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_agent")]);
    command.args(["trace", "--duration", "2s", "--slow-turn", "1ms", "--pid", &workload.pid().to_string(), "--ndjson"]);
    let mut agent = Process::spawn(command.arg(&file));
    let status = agent.wait(FAIL_LIMIT);
    assert_eq!(status.code(), Some(code::FAILED), "{}", agent.err_text());
    assert!(agent.err_text().contains("No space left"), "{}", agent.err_text());
    assert!(agent.out.len() > 10, "the report is lost with the file");
    let kept = fs::read_to_string(&keep).unwrap();
    // The last line may be cut.
    let whole = kept.rsplit_once('\n').map_or("", |(whole, _)| whole);
    assert!(whole.len() > 16_000, "{} bytes", whole.len());
    for line in whole.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    }
}

#[test]
fn an_output_that_takes_nothing_is_a_failure_with_a_message() {
    let Some(_bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let args = ["--duration", "1s", "--output", "/dev/full"];
    fails(&mut trace_command(workload.pid(), &args), code::FAILED, &["No space left"]);
    let args = ["--duration", "1s", "--format", "ndjson", "--output", "/dev/full"];
    fails(&mut trace_command(workload.pid(), &args), code::FAILED, &["No space left"]);
    let args = ["--duration", "1s", "--ndjson", "/nonexistent/trace.ndjson"];
    fails(&mut trace_command(workload.pid(), &args), code::FAILED, &["/nonexistent/trace.ndjson"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_trace() {
    let Some(_bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let mut command = trace_command(workload.pid(), &["--format", "ndjson", "--duration", "30s"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut agent = Process::of(&mut Command::new("true"));
    std::mem::swap(&mut agent.child, &mut child);
    child.wait().unwrap();
    stdout.read_exact(&mut [0; 64]).unwrap();
    drop(stdout);
    let begun = Instant::now();
    let status = agent.wait(FAIL_LIMIT);
    assert_eq!(status.code(), Some(code::FAILED));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
}

/// Programs and links that a process holds, by kernel id.
fn held(pid: u32) -> BTreeSet<(bool, u32)> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        for line in read(entry.path()).lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next().and_then(|id| id.parse().ok())) {
                (Some("prog_id:"), Some(id)) => ids.insert((true, id)),
                (Some("link_id:"), Some(id)) => ids.insert((false, id)),
                _ => false,
            };
        }
    }
    ids
}

/// Those of them that are still in the kernel.
fn left(held: &BTreeSet<(bool, u32)>) -> Vec<(bool, u32)> {
    let programs = aya::programs::loaded_programs().filter_map(Result::ok).map(|program| (true, program.id()));
    let links = aya::programs::loaded_links().filter_map(Result::ok).map(|link| (false, link.id()));
    programs.chain(links).filter(|id| held.contains(id)).collect()
}

#[test]
fn an_agent_that_is_killed_leaves_nothing_attached_and_the_target_serving() {
    let Some(bench) = bench() else { return };
    let mut server = Process::spawn(Command::new(node(VERSION)).arg(script("server.js")));
    let port = server.wait_out("READY").parse().unwrap();
    let mut trace = Trace::start(&bench, server.pid(), &[]);
    assert!((0..50).all(|_| request(port)));
    thread::sleep(Duration::from_millis(1_500));
    let held = held(trace.process.pid());
    assert!(held.len() > 10, "programs and links: {held:?}");
    assert_eq!(left(&held).len(), held.len());

    trace.process.signal(Signal::KILL);
    let killed = Instant::now();
    assert_eq!(trace.process.wait(FAIL_LIMIT).signal(), Some(9));
    while !left(&held).is_empty() {
        assert!(killed.elapsed() < Duration::from_secs(5), "still in the kernel: {:?}", left(&held));
        thread::sleep(Duration::from_millis(10));
    }
    say(&format!("measured {} programs and links gone {:?} after SIGKILL", held.len(), killed.elapsed()));
    assert!((0..50).all(|_| request(port)), "the target does not serve any more");
    // What was recorded until then is there: whole lines, up to the last window.
    let kept = read(&trace.ndjson);
    let whole = kept.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let windows =
        whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|r| text(r, "type") == "window");
    assert!(windows.count() >= 1, "nothing is left of a second and a half");
    assert!(server.is_running());
}

#[test]
fn a_signal_ends_the_trace_with_the_report_and_it_detaches_within_a_second() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    // At the very moment that one is told of Ctrl-C, too.
    for (signal, code, after_ms) in [
        (Signal::INT, code::INTERRUPTED, 0),
        (Signal::INT, code::INTERRUPTED, 1_500),
        (Signal::TERM, code::TERMINATED, 1_500),
    ] {
        let mut trace = Trace::start(&bench, workload.pid(), &[]);
        thread::sleep(Duration::from_millis(after_ms));
        let held = held(trace.process.pid());
        trace.process.signal(signal);
        let begun = Instant::now();
        while left(&held).iter().any(|(is_program, _)| !is_program) {
            assert!(begun.elapsed() < Duration::from_secs(10), "still attached: {:?}", left(&held));
            thread::sleep(Duration::from_millis(5));
        }
        let detached = begun.elapsed();
        say(&format!("measured detach after {signal:?}: {detached:?}"));
        let status = trace.process.wait(FAIL_LIMIT);
        say(&format!("measured end after {signal:?}: {:?}", begun.elapsed()));
        assert_eq!(status.code(), Some(code), "{}", trace.process.err_text());
        assert!(detached < patience(DETACH_LIMIT), "{detached:?} to detach");
        assert_eq!(text(trace.records().one("end"), "reason"), "interrupted");
        assert!(trace.process.out.len() > 10, "no report");
    }
}

#[test]
fn a_command_is_traced_from_its_first_instruction() {
    let Some(bench) = bench() else { return };
    let ndjson = bench.dir.path().join("command.ndjson");
    let mut command = agent_command(&["trace", "--ndjson", ndjson.to_str().unwrap(), "--"]);
    let mut agent = Process::spawn(command.arg(node(VERSION)).arg(script("utilization.js")).arg("half"));
    // The command has the agent's own streams.
    agent.wait_out("READY");
    thread::sleep(Duration::from_millis(1_500));
    agent.close_stdin();
    let status = agent.wait(FAIL_LIMIT);
    assert!(status.success(), "{status}: {}", agent.err_text());
    let truths = agent.out.iter().find(|line| line.starts_with("{\"main\"")).expect("truths");
    let truths: Value = serde_json::from_str(truths).unwrap();
    let records = Records::read(&ndjson);
    let exit = exit_of(&records);
    assert_eq!(get(exit, "code").as_u64(), Some(0), "{exit}");
    let first = records.monotonic(records.target(), "trace_start_time");
    let ready = list(&truths, "main")[0][0].as_f64().unwrap();
    say(&format!("measured {:.0} ms traced before the script's first sample", (ready - first) / 1e6));
    assert!(first < ready);
    assert_closed("from the first instruction", &records.loop_windows("main"));
}

#[test]
fn a_shared_and_stripped_libuv_is_traced_like_any_other() {
    let Some(bench) = bench() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/debian-node");
    if !root.exists() {
        return crate::harness::skip("Debian's node in .cache/debian-node (cargo xtask setup)");
    }
    let root = root.canonicalize().unwrap();
    // Debian's Node.js reads parts of itself from /usr/share/nodejs.
    let setup = format!(
        "mount -t tmpfs none /usr/share && mkdir /usr/share/nodejs && \
         mount --bind {root}/usr/share/nodejs /usr/share/nodejs && exec {root}/usr/bin/node \"$@\"",
        root = root.display()
    );
    let start = |name: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &setup, "sh"]).arg(script(name)).arg("half");
        Workload::with(command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu")))
    };
    let mut workload = start("utilization.js");
    let records = trace(&bench, &mut workload, 2.0, &["--phases", "always"]);
    let doctor = agent_command(&["doctor", "--pid", &workload.pid().to_string()]).output().unwrap();
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(said.contains("libuv") && said.contains("stripped"), "doctor does not say what the files lack:\n{said}");
    thread::sleep(Duration::from_millis(100));
    check_utilization("shared libuv", &records, &workload.truths());
    // libuv's insides are found by their callers there: they must be the right ones.
    let split: f64 = ["timers", "poll", "check"].iter().map(|phase| phase_ms(&records, phase)).sum();
    let on_cpu = sum(&records.loop_windows("main"), "on_cpu_ns") / 1e6;
    close("shared libuv: time on CPU by phase (ms)", on_cpu, split, within(on_cpu, 0.05, 1.0));
    assert!(phase_ms(&records, "timers") > 0.9 * on_cpu, "the busy work is a timer's");
    crate::gc::check(&bench, "shared libuv", start("gc.js"));
    let pool = crate::thread_pool::Pool { threads: 4, read_file_items: 4.0, zlib: "other" };
    crate::thread_pool::check(&bench, "shared libuv", start("pool.js"), &pool);
}

/// A phase's time on CPU on the main thread.
fn phase_ms(records: &Records, phase: &str) -> f64 {
    let windows = records.loop_windows("main");
    windows.iter().map(|window| number(get(window, "on_cpu_by_phase_ns"), phase)).sum::<f64>() / 1e6
}
