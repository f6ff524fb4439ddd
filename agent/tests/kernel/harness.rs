//! Starting and ending what a test needs: workloads, the agent, peers. Nothing outlives the test that started it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::records::Records;

/// The official binaries that the agent supports.
pub const VERSIONS: [&str; 5] = ["18.20.8", "20.20.2", "22.23.3", "24.21.0", "26.10.0"];
/// Those of them that are tested: all, or the one that `AGENT_TEST_NODE` names.
pub fn versions() -> Vec<&'static str> {
    let only = std::env::var("AGENT_TEST_NODE").ok();
    VERSIONS.into_iter().filter(|version| only.as_deref().is_none_or(|only| only == *version)).collect()
}

/// Where one version is enough.
pub const VERSION: &str = "22.23.3";

/// Node.js starts within a second; a busy CI machine may take ten times as long.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From the end of a trace to the end of the agent.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How many times as slow this machine is as others are: `AGENT_TEST_PATIENCE`, of an emulated one.
pub fn slowness() -> u32 {
    std::env::var("AGENT_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap())
}

/// A limit, longer where the machine is slow.
pub fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

/// `--max-overhead` for whom the budget is not what is tested: the default's worth of probes, where each takes longer, too.
pub fn overhead() -> String {
    format!("{}%", slowness())
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The right to measure, and a directory for what is measured.
pub struct Bench {
    _turn: MutexGuard<'static, ()>,
    pub dir: TempDir,
}

/// `None`, said aloud, where these tests cannot run; on CI that is a failure.
pub fn bench() -> Option<Bench> {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let missing = if rustix::process::geteuid().is_root() {
        let absent = VERSIONS.iter().find(|version| !node(version).exists());
        absent.map(|version| format!("node {version} in .cache/node (cargo xtask setup)"))
    } else {
        Some("root".to_owned())
    };
    if let Some(missing) = missing {
        skip(&missing);
        return None;
    }
    Some(Bench { _turn: turn, dir: TempDir::new().unwrap() })
}

/// Says that a test did not run, for want of something; on CI that is a failure.
pub fn skip(missing: &str) {
    let test = thread::current().name().unwrap_or_default().to_owned();
    say(&format!("SKIPPED {test}: needs {missing}"));
    assert!(std::env::var_os("CI").is_none(), "nothing is skipped on CI: {missing}");
}

/// Past the test runner's capture: measurements belong in the log of a run that passes, too.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Asserts that `agent` is within `allowed` of `truth`, and prints by how much it was off.
#[track_caller]
pub fn close(claim: &str, truth: f64, agent: f64, allowed: f64) {
    let off = agent - truth;
    say(&format!("measured {claim}: truth {truth:.4}, agent {agent:.4}, off by {off:+.4} (allowed {allowed:.4})"));
    assert!(off.abs() <= allowed, "{claim}: truth {truth}, agent {agent}, off by {off} > {allowed}");
}

/// A share of the truth, but at least `floor`.
pub fn within(truth: f64, share: f64, floor: f64) -> f64 {
    (truth.abs() * share).max(floor)
}

pub fn node(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../.cache/node/{version}/bin/node"))
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workloads").join(name)
}

/// A child process that dies with its guard, and whose output is read all the time.
pub struct Process {
    pub child: Child,
    stdin: Option<ChildStdin>,
    stdout: mpsc::Receiver<String>,
    stderr: mpsc::Receiver<String>,
    /// Lines seen so far.
    pub out: Vec<String>,
    pub err: Vec<String>,
}

fn lines(source: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n') {
            let Ok(line) = line else { return };
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receive
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        // Its own group: a Ctrl-C on the test run is the test's to handle.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Self::of(command)
    }

    /// With streams as they are in `command`, as far as they are no pipes.
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let none = || mpsc::channel().1;
        let stdout = child.stdout.take().map_or_else(none, lines);
        let stderr = child.stderr.take().map_or_else(none, lines);
        Self { stdin: child.stdin.take(), stdout, stderr, out: Vec::new(), err: Vec::new(), child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Reads standard output until a line begins with `prefix`, and gives the rest of that line.
    #[track_caller]
    pub fn wait_out(&mut self, prefix: &str) -> String {
        self.wait_out_within(prefix, START_LIMIT)
    }

    /// The same of something that may take long.
    #[track_caller]
    pub fn wait_out_within(&mut self, prefix: &str, limit: Duration) -> String {
        wait_line(&self.stdout, &mut self.out, prefix, limit).unwrap_or_else(|| self.give_up(prefix))
    }

    /// The same on standard error.
    #[track_caller]
    pub fn wait_err(&mut self, prefix: &str) -> String {
        wait_line(&self.stderr, &mut self.err, prefix, START_LIMIT).unwrap_or_else(|| self.give_up(prefix))
    }

    #[track_caller]
    fn give_up(&mut self, prefix: &str) -> ! {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.drain();
        panic!("no line `{prefix}`; stdout: {:#?}, stderr: {:#?}", self.out, self.err);
    }

    fn drain(&mut self) {
        // Not until the pipes close: a grandchild may hold them.
        let pause = Duration::from_millis(300);
        self.out.extend(std::iter::from_fn(|| self.stdout.recv_timeout(pause).ok()));
        self.err.extend(std::iter::from_fn(|| self.stderr.recv_timeout(pause).ok()));
    }

    /// Waits for its end, at most so long.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience(limit);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.drain();
                return status;
            }
            if Instant::now() > deadline {
                self.give_up("(its end)");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn err_text(&self) -> String {
        self.err.join("\n")
    }
}

fn wait_line(source: &mpsc::Receiver<String>, seen: &mut Vec<String>, prefix: &str, limit: Duration) -> Option<String> {
    let deadline = Instant::now() + patience(limit);
    loop {
        let line = source.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        let rest = line.strip_prefix(prefix).map(|rest| rest.trim().to_owned());
        seen.push(line);
        if rest.is_some() {
            return rest;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of `workloads/*.js`, running.
pub struct Workload(pub Process);

impl Workload {
    #[track_caller]
    pub fn start(version: &str, name: &str, args: &[&str]) -> Self {
        Self::with(Command::new(node(version)).arg(script(name)).args(args))
    }

    #[track_caller]
    pub fn with(command: &mut Command) -> Self {
        let mut process = Process::spawn(command);
        process.wait_out("READY");
        Self(process)
    }

    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Lets a workload begin that waits for it.
    pub fn go(&mut self) {
        self.0.write("go\n");
    }

    /// Ends it and returns its truths.
    #[track_caller]
    pub fn truths(mut self) -> Value {
        self.0.close_stdin();
        let status = self.0.wait(START_LIMIT);
        assert!(status.success(), "workload: {status}, {}", self.0.err_text());
        serde_json::from_str(self.0.out.last().unwrap()).unwrap()
    }
}

pub fn agent_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(args).env_remove("RUST_LOG");
    command
}

/// `agent trace` on a process, with its records going to a file.
pub struct Trace {
    pub process: Process,
    pub ndjson: PathBuf,
}

impl Trace {
    /// Returns once it has attached.
    #[track_caller]
    pub fn start(bench: &Bench, pid: u32, args: &[&str]) -> Self {
        Self::of(agent_command(&["trace"]), "--ndjson", "tracing", bench, pid, args)
    }

    /// `agent profile` instead, ahead of all others for a CPU: names are read from a heap that does not wait, and how many are still to
    /// be had is not to depend on who else runs.
    #[track_caller]
    pub fn profile(bench: &Bench, pid: u32, args: &[&str]) -> Self {
        let mut command = Command::new("nice");
        command.args(["--adjustment=-15", env!("CARGO_BIN_EXE_agent"), "profile"]).env_remove("RUST_LOG");
        Self::of(command, "-o", "profiling", bench, pid, args)
    }

    #[track_caller]
    fn of(mut command: Command, output: &str, doing: &str, bench: &Bench, pid: u32, args: &[&str]) -> Self {
        let ndjson = bench.dir.path().join(format!("{pid}-{}.ndjson", fresh()));
        command.args(["--pid", &pid.to_string(), output]).arg(&ndjson).args(args);
        let mut process = Process::spawn(&mut command);
        process.wait_err(&format!("agent: {doing} pid {pid}"));
        Self { process, ndjson }
    }

    /// Ends it as Ctrl-C does.
    #[track_caller]
    pub fn interrupt(mut self) -> Records {
        self.stop()
    }

    /// The same; what it wrote stays.
    #[track_caller]
    pub fn stop(&mut self) -> Records {
        self.process.signal(Signal::INT);
        self.process.wait(END_LIMIT);
        self.records()
    }

    /// Waits for the end of its duration.
    #[track_caller]
    pub fn finish(&mut self, duration: Duration) -> Records {
        let status = self.process.wait(duration + END_LIMIT);
        assert!(status.success(), "agent: {status}\n{}", self.process.err_text());
        self.records()
    }

    pub fn records(&self) -> Records {
        Records::read(&self.ndjson)
    }
}

/// Traces a running workload for so many seconds, letting it go once attached.
#[track_caller]
pub fn trace(bench: &Bench, workload: &mut Workload, seconds: f64, args: &[&str]) -> Records {
    let duration = format!("{seconds}s");
    let mut all = vec!["--duration", &duration];
    all.extend_from_slice(args);
    let mut trace = Trace::start(bench, workload.pid(), &all);
    workload.go();
    trace.finish(Duration::from_secs_f64(seconds))
}

/// A number that was not given before.
pub fn fresh() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One request to a server on this host.
pub fn request(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut answer = String::new();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.ends_with("ok")
}

/// Text of a file, "" if it is not there.
pub fn read(path: impl AsRef<Path>) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_string(&mut text);
    }
    text
}
