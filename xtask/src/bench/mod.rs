//! What the agent costs, as ratios within one run.
//!
//! Throughput of this kind of server varies by a third from one start to the next, so nothing is compared across starts: one server
//! runs under steady load while a tool is attached and detached in turn. Each time with it is compared with the times
//! before and after it, and the times without it with each other: that null control says what the noise alone shows.

mod awake;
mod daemon;
mod postgres;
mod profile;
mod ring;
mod server;
mod stats;
mod structure;
mod tool;

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    run::{Error, root, say},
    setup,
};
use awake::Awake;
pub use server::Case;
use server::{Half, Server};
use stats::{Estimate, estimate, median};
use tool::Tool;

/// A case of `agent trace`, or all of the profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Fifty connections, saturated
    Http50,
    /// One connection: one request a turn, the worst case
    Http1,
    /// Two thread-pool items a request
    Pool,
    /// Two thousand objects a request
    Alloc,
    /// `agent profile`, beside perf and V8's own profiler
    Profile,
    /// `agent diagnose`
    Diagnose,
    /// Locks of PostgreSQL, under `pgbench`
    Postgres,
    /// `agent daemon` on 1 to 200 processes
    Daemon,
    /// Events a second through a ring buffer
    Ring,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// What is measured [default: the cases of `agent trace`]
    #[arg(value_enum)]
    what: Option<What>,
    /// Times that the agent is attached in each case
    #[arg(long, default_value_t = 100)]
    pairs: u32,
    /// Times that each peer is attached in each case
    #[arg(long, default_value_t = 10)]
    peer_pairs: u32,
    /// Times of each once more where idle CPUs halt, at fifty connections
    #[arg(long, default_value_t = 20)]
    halting_pairs: u32,
    /// Length of a half of a pair in milliseconds
    #[arg(long, default_value_t = 1000)]
    half: u64,
    /// Version of Node.js
    #[arg(long, default_value = "24.21.0")]
    node: String,
}

/// Settling time after attaching or detaching: the agent looks at the rate of turns in the first tenths of a second.
const SETTLE: Duration = Duration::from_millis(400);

/// How long a first record is waited for once the agent is in place.
const FIRST_RECORD_PATIENCE: Duration = Duration::from_millis(500);

/// Runs the cases and writes the table.
pub fn bench(args: &BenchArgs) -> Result<(), Error> {
    setup::setup(setup::Purpose::Test)?;
    crate::build::build(crate::build::Profile::Release)?;
    let awake = Awake::hold();
    let cases = match args.what {
        None => Case::ALL.to_vec(),
        Some(What::Http50) => vec![Case::Http50],
        Some(What::Http1) => vec![Case::Http1],
        Some(What::Pool) => vec![Case::Pool],
        Some(What::Alloc) => vec![Case::Alloc],
        Some(What::Diagnose) => return diagnose(args, &awake),
        Some(What::Profile) => return profile::bench(args, &awake),
        Some(What::Postgres) => return postgres::bench(args, &awake),
        Some(What::Daemon) => return daemon::bench(args, &awake),
        Some(What::Ring) => {
            // A reader that is never asleep is woken for each record by those that wake it then.
            drop(awake);
            return ring::bench(args);
        }
    };
    let mut results = Results { table: HEAD.into(), structure: structure::HEAD.into(), ..Results::default() };
    for &case in &cases {
        say(&format!("{}: {} pairs of {} ms", case.name(), args.pairs, args.half));
        let mut server = Server::start(case, &args.node)?;
        std::thread::sleep(WARM_UP);
        let agent = run(&mut server, Tool::Agent, args.pairs, args)?;
        row(&mut results.table, case.name(), Tool::Agent, &agent);
        results.structure.push_str(&structure::row(case, server.pid())?);
        for peer in Tool::PEERS {
            if args.peer_pairs > 0 {
                let figures = run(&mut server, peer, args.peer_pairs, args)?;
                row(&mut results.table, case.name(), peer, &figures);
            }
        }
        results.loads.push(load_average());
        // After each case: what was measured stays if a later one is interrupted.
        results.write(args, awake.word())?;
    }
    let word = awake.word();
    drop(awake);
    if args.halting_pairs > 0 {
        results.halting = format!("{HALTING}{HEAD}");
        for &case in cases.iter().filter(|case| **case == Case::Http50) {
            halting(case, args, &mut results.halting)?;
        }
        results.write(args, word)?;
    }
    Ok(())
}

/// The agent, and what does nothing as often, where idle CPUs halt.
fn halting(case: Case, args: &BenchArgs, table: &mut String) -> Result<(), Error> {
    let mut server = Server::start(case, &args.node)?;
    std::thread::sleep(WARM_UP);
    for tool in [Tool::Agent, Tool::EmptySampler, Tool::Sleeper] {
        say(&format!("{}, idle CPUs halt, {}: {} pairs", case.name(), tool.name(), args.halting_pairs));
        let figures = run(&mut server, tool, args.halting_pairs, args)?;
        row(table, case.name(), tool, &figures);
    }
    Ok(())
}

const DIAGNOSE: &str = "\
# What a diagnosis costs

Written by `cargo xtask bench diagnose`, in the way of [RESULTS.md](RESULTS.md): ratios of neighbouring halves, with `agent diagnose`
attached and without, in one server process under steady load; *null* compares neighbours without it. Nothing is wrong with the
server, so that nothing comes on suspicion.
";

/// The HTTP server with `agent diagnose`.
fn diagnose(args: &BenchArgs, awake: &Awake) -> Result<(), Error> {
    let mut table = String::from(HEAD);
    let mut loads = Vec::new();
    for case in [Case::Http50, Case::Http1, Case::Alloc] {
        say(&format!("{}: {} pairs of {} ms", case.name(), args.pairs, args.half));
        let mut server = Server::start(case, &args.node)?;
        std::thread::sleep(WARM_UP);
        let figures = run(&mut server, Tool::Diagnose, args.pairs, args)?;
        row(&mut table, case.name(), Tool::Diagnose, &figures);
        loads.push(load_average());
        eprintln!("{table}");
    }
    let text = format!(
        "{DIAGNOSE}\nNode.js {}, halves of {} ms. {}. Load average of the machine after each case: {}.\n\n{table}",
        args.node,
        args.half,
        awake.word(),
        loads.join(", "),
    );
    let path = root().join("agent/benches/DIAGNOSE.md");
    fs::write(&path, text).map_err(|source| Error::io("agent/benches/DIAGNOSE.md", source))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

/// What is written, as it grows.
#[derive(Default)]
struct Results {
    table: String,
    structure: String,
    halting: String,
    loads: Vec<String>,
}

impl Results {
    fn write(&self, args: &BenchArgs, awake: &str) -> Result<(), Error> {
        let Self { table, structure, halting, loads } = self;
        eprintln!("{table}\n{structure}\n{halting}");
        let text = format!(
            "{INTRODUCTION}\nNode.js {}, halves of {} ms. {awake}. Load average of the machine after each case: {}.\n\n{table}\n{structure}{halting}",
            args.node,
            args.half,
            loads.join(", "),
        );
        let path = root().join("agent/benches/RESULTS.md");
        fs::create_dir_all(root().join("agent/benches")).map_err(|source| Error::io("agent/benches", source))?;
        fs::write(&path, text).map_err(|source| Error::io("agent/benches/RESULTS.md", source))?;
        say(&format!("wrote {}", path.display()));
        Ok(())
    }
}

/// Runnable tasks over the last minute. The bench itself keeps two or three busy; more is others' work, and noise here.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// V8 compiles what is hot in the first seconds.
const WARM_UP: Duration = Duration::from_secs(4);

const INTRODUCTION: &str = "\
# What it costs

Written by `cargo xtask bench`. Ratios of halves next to each other, with a tool attached and without, in one server process under
steady load; median and 95 % confidence interval of the median, which fewer than six pairs do not give. A half with a tool is compared
with the mean of the two around it; *null* compares neighbours without any tool, one with one: what it shows is noise, and an interval
that holds 1 shows no cost, nor its absence beyond its own width. Attaching and detaching happens between the halves and is not part
of them. By then the agent's governor has looked at what its probes cost and those that were too dear rest, as they do for most of a
longer trace. The bpftrace script sees epoll and the scheduler only, less than the agent does. *First record*: from
the start of the agent until its file holds a record of something in the kernel. Idle CPUs are kept from halting (`/dev/cpu_dma_latency`): in a
virtual machine to wake one takes tens of microseconds of whoever does, and how often there is one to wake is not the tool's doing alone.
";

const HALTING: &str = "
The same where idle CPUs halt, beside what does nothing at all: a program that is empty, 99 times a second on each CPU, and a process that
sleeps for a 99th of a second again and again. The client's CPU halts more often with each of them, and the server pays for waking it.

";

const HEAD: &str = "\
| case | tool | pairs | requests/s, ratio | null | CPU a request, ratio | null | tool's CPU while it starts | tool's memory | attach | first record | detach |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// What is under load.
pub trait Measured {
    fn pid(&self) -> u32;

    /// How long it takes after a tool has come until it costs what it will.
    fn settle(&self) -> Duration {
        SETTLE
    }

    /// Requests a second and CPU nanoseconds a request, over the next `span`.
    fn measure(&mut self, span: Duration) -> Result<Half, Error>;
}

/// What a run of pairs showed.
struct Figures {
    throughput: Vec<f64>,
    throughput_null: Vec<f64>,
    cpu: Vec<f64>,
    cpu_null: Vec<f64>,
    tool_cpu: Vec<f64>,
    tool_mb: f64,
    attach_ms: Vec<f64>,
    first_record_ms: Vec<f64>,
    detach_ms: Vec<f64>,
}

/// Off, on, off; off, on, off: each on is compared with its two neighbours, and each last off with the next first one.
fn run(server: &mut impl Measured, tool: Tool, pairs: u32, args: &BenchArgs) -> Result<Figures, Error> {
    let span = Duration::from_millis(args.half);
    let mut figures = Figures {
        throughput: Vec::new(),
        throughput_null: Vec::new(),
        cpu: Vec::new(),
        cpu_null: Vec::new(),
        tool_cpu: Vec::new(),
        tool_mb: 0.0,
        attach_ms: Vec::new(),
        first_record_ms: Vec::new(),
        detach_ms: Vec::new(),
    };
    let mut last: Option<Half> = None;
    for _ in 0..pairs {
        let before = server.measure(span)?;
        if let Some(last) = last {
            figures.throughput_null.push(before.per_second / last.per_second);
            figures.cpu_null.push(before.cpu_per_request / last.cpu_per_request);
        }
        let attached = tool.attach(server.pid())?;
        figures.attach_ms.push(attached.attach.as_secs_f64() * 1e3);
        let settled = Instant::now() + server.settle();
        if tool == Tool::Agent
            && let Some(first) = attached.first_record(FIRST_RECORD_PATIENCE)
        {
            figures.first_record_ms.push(first.as_secs_f64() * 1e3);
        }
        std::thread::sleep(settled.saturating_duration_since(Instant::now()));
        let (begin, cpu) = (Instant::now(), attached.cpu_seconds());
        let during = server.measure(span)?;
        figures.tool_cpu.push((attached.cpu_seconds() - cpu) / begin.elapsed().as_secs_f64());
        figures.tool_mb = figures.tool_mb.max(attached.peak_mb());
        figures.detach_ms.push(attached.detach().as_secs_f64() * 1e3);
        std::thread::sleep(SETTLE);
        let after = server.measure(span)?;
        figures.throughput.push(during.per_second / f64::midpoint(before.per_second, after.per_second));
        figures.cpu.push(during.cpu_per_request / f64::midpoint(before.cpu_per_request, after.cpu_per_request));
        last = Some(after);
    }
    Ok(figures)
}

fn row(table: &mut String, case: &str, tool: Tool, figures: &Figures) {
    let ratio = |samples: &[f64]| match (estimate(samples), median(samples)) {
        (Some(Estimate { median, low, high }), _) => format!("{median:.3} ({low:.3} to {high:.3})"),
        (None, Some(median)) => format!("{median:.3}"),
        (None, None) => "-".to_owned(),
    };
    let milliseconds = |samples: &[f64]| median(samples).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let count = figures.tool_cpu.len().max(1) as f64;
    let tool_cpu = figures.tool_cpu.iter().sum::<f64>() / count * 100.0;
    // Writing to a string cannot fail.
    let _ = writeln!(
        table,
        "| {} | {} | {} | {} | {} | {} | {} | {tool_cpu:.1} % | {:.0} MB | {} | {} | {} |",
        case,
        tool.name(),
        figures.throughput.len(),
        ratio(&figures.throughput),
        ratio(&figures.throughput_null),
        ratio(&figures.cpu),
        ratio(&figures.cpu_null),
        figures.tool_mb,
        milliseconds(&figures.attach_ms),
        milliseconds(&figures.first_record_ms),
        milliseconds(&figures.detach_ms),
    );
}
