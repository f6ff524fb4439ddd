//! What is attached in every other half: the agent, or one of its peers.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::run::{Error, root};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Agent,
    /// A script that measures a part of what the agent does: the loop's waits and the scheduler.
    Bpftrace,
    OffCpuTime,
    RunQLat,
    /// `agent diagnose`
    Diagnose,
    /// `agent profile`
    Profile,
    /// `agent profile --off-cpu`
    OffCpu,
    Perf,
    /// V8's own profiler, which the server switches on and off at a signal.
    Inspector,
    /// `agent daemon` on all processes of the bench of its own.
    Daemon,
    /// A program on `sched_switch` that does nothing: what the kernel's counting itself takes.
    Empty,
    /// A program that does nothing, as often as a profile takes samples: what it takes to interrupt.
    EmptySampler,
    /// A process that does nothing as often: what it takes to wake.
    Sleeper,
}

impl Tool {
    pub const PEERS: [Self; 3] = [Self::Bpftrace, Self::OffCpuTime, Self::RunQLat];

    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent trace",
            Self::Bpftrace => "bpftrace script",
            Self::OffCpuTime => "offcputime",
            Self::RunQLat => "runqlat",
            Self::Diagnose => "agent diagnose",
            Self::Profile => "agent profile",
            Self::OffCpu => "agent profile --off-cpu",
            Self::Perf => "perf record -F 99 -g",
            Self::Inspector => "V8's profiler",
            Self::Daemon => "agent daemon",
            Self::Empty => "an empty program",
            Self::EmptySampler => "an empty program at 99 Hz",
            Self::Sleeper => "a process that wakes at 99 Hz",
        }
    }

    /// Whether it is the agent, by whichever command.
    fn is_agent(self) -> bool {
        matches!(self, Self::Agent | Self::Diagnose | Self::Profile | Self::OffCpu | Self::Daemon)
    }

    /// Starts it on a process and waits until it is in place.
    pub fn attach(self, pid: u32) -> Result<Attached, Error> {
        self.attach_all(&[pid])
    }

    /// The same on several, for those that can.
    pub fn attach_all(self, pids: &[u32]) -> Result<Attached, Error> {
        let begin = Instant::now();
        let pid = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = match self {
            Self::Agent => {
                let mut agent = Command::new(agent());
                agent.args(["-v", "trace", "--pid", &pid, "--ndjson"]).arg(ndjson());
                // What an earlier one left is not this one's first record.
                let _ = fs::remove_file(ndjson());
                agent
            }
            Self::Diagnose => {
                let mut agent = Command::new(agent());
                agent.args(["-v", "diagnose", "--pid", &pid, "--duration", "1h"]);
                agent
            }
            Self::Daemon => {
                let config = root().join("target/bench-daemon.toml");
                fs::write(&config, super::daemon::config())
                    .map_err(|source| Error::io("target/bench-daemon.toml", source))?;
                let _ = fs::remove_file(ndjson());
                let mut agent = Command::new(agent());
                agent.args(["daemon", "--config"]).arg(config);
                agent
            }
            Self::Bpftrace => {
                let mut bpftrace = Command::new("bpftrace");
                bpftrace.args(["-B", "line"]).arg(root().join("scripts/workloads/peer.bt")).arg(&pid);
                bpftrace
            }
            Self::Empty | Self::EmptySampler => {
                let place = if self == Self::Empty { "tracepoint:sched:sched_switch" } else { "profile:hz:99" };
                let mut bpftrace = Command::new("bpftrace");
                bpftrace.args(["-B", "line", "-e", &format!("{place} {{ }}")]);
                bpftrace
            }
            Self::OffCpuTime => peer("offcputime", &["-p", &pid, "3600"]),
            Self::RunQLat => peer("runqlat", &["-p", &pid, "3600", "1"]),
            Self::Profile | Self::OffCpu => {
                let mut agent = Command::new(agent());
                agent.arg("profile").args(pids.iter().map(|pid| format!("--pid={pid}"))).arg("-o").arg(ndjson());
                if self == Self::OffCpu {
                    agent.arg("--off-cpu");
                }
                agent
            }
            Self::Perf => {
                let mut perf = Command::new("perf");
                perf.args(["record", "-F", "99", "-g", "-e", "cpu-clock", "-p", &pid, "-o"]);
                perf.arg(root().join("target/bench.perf"));
                perf
            }
            Self::Sleeper => {
                let mut perl = Command::new("perl");
                perl.args(["-e", "select undef, undef, undef, 1 / 99 while 1"]);
                perl
            }
            Self::Inspector => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "kill -USR2 $0; trap 'kill -USR2 $0; exit' TERM; while sleep 0.1; do :; done", &pid]);
                shell
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if self.is_agent() {
            command.stderr(Stdio::piped());
        } else if matches!(self, Self::Bpftrace | Self::Empty | Self::EmptySampler) {
            command.stdout(Stdio::piped());
        }
        let child = command.spawn().map_err(|source| Error::io(self.name(), source))?;
        // What was started in the background ignores SIGINT, and so do its children: a shell cannot even trap it then.
        let ends_at = if matches!(self, Self::Inspector | Self::Sleeper) { "-TERM" } else { "-INT" };
        let mut attached = Attached { child, begin, attach: Duration::ZERO, hit_ns: Arc::default(), ends_at };
        match self {
            Self::Agent => attached.hit_ns = self.wait_for(attached.child.stderr.take(), "tracing pid")?,
            Self::Bpftrace | Self::Empty | Self::EmptySampler => {
                // It attaches within that time; what it says of it is lost now and then.
                hear(attached.child.stdout.take());
                std::thread::sleep(Duration::from_secs(2));
            }
            // Said once its probes are there.
            Self::Diagnose => {
                self.wait_for(attached.child.stderr.take(), "attached by")?;
            }
            Self::Daemon => {
                self.wait_for(attached.child.stderr.take(), "ready")?;
            }
            // They say nothing on being ready; loading and attaching takes them about half a second.
            Self::Profile | Self::OffCpu => {
                self.wait_for(attached.child.stderr.take(), "profiling")?;
            }
            Self::OffCpuTime | Self::RunQLat | Self::Perf | Self::Inspector | Self::Sleeper => {
                std::thread::sleep(Duration::from_millis(1_200));
            }
        }
        // A tool that is gone costs nothing, which is not what it costs.
        if let Ok(Some(_)) = attached.child.try_wait() {
            return Err(self.ended());
        }
        attached.attach = begin.elapsed();
        Ok(attached)
    }

    fn ended(self) -> Error {
        Error::io(self.name(), std::io::Error::other("it ended before it was attached"))
    }

    /// Reads lines until one holds the word. The rest is read by a thread, so that the writer never waits; what it says of
    /// the cost of a hit ends up in the answer.
    fn wait_for(
        self,
        from: Option<impl std::io::Read + Send + 'static>,
        word: &'static str,
    ) -> Result<Arc<AtomicU64>, Error> {
        let hit_ns = Arc::new(AtomicU64::new(0));
        let mut lines =
            from.map(|from| BufReader::new(from).lines().map_while(Result::ok)).ok_or_else(|| self.ended())?;
        if !lines.any(|line| line.contains(word)) {
            return Err(self.ended());
        }
        let told = Arc::clone(&hit_ns);
        std::thread::spawn(move || {
            for line in lines {
                let cost = line.split_once("hit costs ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
                if let Some(ns) = cost {
                    told.store(ns, Ordering::Relaxed);
                }
            }
        });
        Ok(hit_ns)
    }
}

/// Reads what a tool says, so that it never waits.
fn hear(from: Option<impl std::io::Read + Send + 'static>) {
    std::thread::spawn(move || from.map(|mut from| std::io::copy(&mut from, &mut std::io::sink())));
}

fn peer(name: &str, args: &[&str]) -> Command {
    // Debian's libbpf-tools install them beside the administrator's programs.
    let path = ["/usr/sbin", "/usr/bin"].iter().map(|dir| PathBuf::from(dir).join(name)).find(|path| path.exists());
    let mut command = Command::new(path.unwrap_or_else(|| PathBuf::from(name)));
    command.args(args);
    command
}

/// Where the agent writes its records.
pub fn ndjson() -> PathBuf {
    root().join("target/bench.ndjson")
}

fn agent() -> PathBuf {
    root().join("target/release/agent")
}

/// A tool at work.
pub struct Attached {
    child: Child,
    begin: Instant,
    /// From its start until it was in place.
    pub attach: Duration,
    /// What a uprobe hit costs, in nanoseconds, once the tool has said it; else 0.
    hit_ns: Arc<AtomicU64>,
    /// The signal.
    ends_at: &'static str,
}

impl Attached {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From the agent's start until a record of something in the kernel is in its file; `None` if none is by `patience` from now.
    pub fn first_record(&self, patience: Duration) -> Option<Duration> {
        let give_up = Instant::now() + patience;
        while Instant::now() < give_up {
            let text = fs::read_to_string(ndjson()).unwrap_or_default();
            // The first line describes the target.
            if text.lines().skip(1).any(|line| !line.contains(r#""type":"target""#)) {
                return Some(self.begin.elapsed());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Since its start.
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// What a uprobe hit costs, in nanoseconds, if the tool has said it by now.
    pub fn hit_ns(&self) -> f64 {
        let ns = self.hit_ns.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "microseconds at most")]
        if ns == 0 { f64::NAN } else { ns as f64 }
    }

    /// CPU time so far, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let ticks = ticks as f64;
        ticks / 100.0
    }

    /// Peak resident memory in MB.
    pub fn peak_mb(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
        kilobytes.unwrap_or(0.0) * 1024.0 / 1e6
    }

    /// Ends it as Ctrl-C would; returns how long that took.
    pub fn detach(mut self) -> Duration {
        let begin = Instant::now();
        let _ = Command::new("kill").args([self.ends_at, &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        begin.elapsed()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It may have ended by itself, as it has after `detach`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
