//! What the agent costs, as ratios within one run.
//!
//! Throughput of this kind of server varies by a third from one start to the next, so nothing is compared across starts: one server
//! runs under steady load while a tool is attached and detached in turn. Each time with it is compared with the times
//! before and after it, and the times without it with each other: that null control says what the noise alone shows.

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
pub use server::Case;
use server::{Half, Server};
use stats::{Estimate, estimate, median};
use tool::Tool;

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// What is measured [default: all of it]
    #[arg(value_enum)]
    case: Option<Case>,
    /// Times that the agent is attached in each case
    #[arg(long, default_value_t = 100)]
    pairs: u32,
    /// Times that each peer is attached in each case
    #[arg(long, default_value_t = 10)]
    peer_pairs: u32,
    /// Length of a half of a pair in milliseconds
    #[arg(long, default_value_t = 1000)]
    half: u64,
    /// Version of Node.js
    #[arg(long, default_value = "24.21.0")]
    node: String,
}

/// Settling time after attaching or detaching.
const SETTLE: Duration = Duration::from_millis(150);

/// Runs the cases and writes the table.
pub fn bench(args: &BenchArgs) -> Result<(), Error> {
    setup::setup(setup::Purpose::Test)?;
    crate::build::build(crate::build::Profile::Release)?;
    let cases = args.case.map_or_else(|| Case::ALL.to_vec(), |case| vec![case]);
    let mut table = String::from(HEAD);
    let mut structure = String::from(structure::HEAD);
    for case in cases {
        say(&format!("{}: {} pairs of {} ms", case.name(), args.pairs, args.half));
        let mut server = Server::start(case, &args.node)?;
        std::thread::sleep(WARM_UP);
        let agent = run(&mut server, Tool::Agent, args.pairs, args)?;
        row(&mut table, case, Tool::Agent, &agent);
        structure.push_str(&structure::row(case, server.pid())?);
        for peer in Tool::PEERS {
            if args.peer_pairs > 0 {
                let figures = run(&mut server, peer, args.peer_pairs, args)?;
                row(&mut table, case, peer, &figures);
            }
        }
        eprintln!("{table}\n{structure}");
    }
    let text = format!("{INTRODUCTION}\nNode.js {}, {} pairs.\n\n{table}\n{structure}", args.node, args.pairs);
    let path = root().join("agent/benches/RESULTS.md");
    fs::create_dir_all(root().join("agent/benches")).map_err(|source| Error::io("agent/benches", source))?;
    fs::write(&path, text).map_err(|source| Error::io("agent/benches/RESULTS.md", source))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

/// V8 compiles what is hot in the first seconds.
const WARM_UP: Duration = Duration::from_secs(4);

const INTRODUCTION: &str = "\
# What it costs

Written by `cargo xtask bench`. Ratios of halves next to each other, with a tool attached and without, in one server process under
steady load; median and 95 % confidence interval of the median. *Null* compares halves without any tool in the same way: what it
shows is noise. Attaching and detaching happens between the halves and is not part of them.
";

const HEAD: &str = "\
| case | tool | requests/s, ratio | null | CPU a request, ratio | null | tool's CPU while it starts | tool's memory | attach | detach |
|---|---|---|---|---|---|---|---|---|---|
";

/// What a run of pairs showed.
struct Figures {
    throughput: Vec<f64>,
    throughput_null: Vec<f64>,
    cpu: Vec<f64>,
    cpu_null: Vec<f64>,
    tool_cpu: Vec<f64>,
    tool_mb: f64,
    attach_ms: Vec<f64>,
    detach_ms: Vec<f64>,
}

/// Off, on, off; off, on, off: each on is compared with its two neighbours, and each last off with the next first one.
fn run(server: &mut Server, tool: Tool, pairs: u32, args: &BenchArgs) -> Result<Figures, Error> {
    let span = Duration::from_millis(args.half);
    let mut figures = Figures {
        throughput: Vec::new(),
        throughput_null: Vec::new(),
        cpu: Vec::new(),
        cpu_null: Vec::new(),
        tool_cpu: Vec::new(),
        tool_mb: 0.0,
        attach_ms: Vec::new(),
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
        std::thread::sleep(SETTLE);
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

fn row(table: &mut String, case: Case, tool: Tool, figures: &Figures) {
    let ratio = |samples: &[f64]| {
        estimate(samples).map_or_else(
            || "-".to_owned(),
            |Estimate { median, low, high }| format!("{median:.3} ({low:.3} to {high:.3})"),
        )
    };
    let milliseconds = |samples: &[f64]| format!("{:.0} ms", median(samples).unwrap_or(f64::NAN));
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let count = figures.tool_cpu.len().max(1) as f64;
    let tool_cpu = figures.tool_cpu.iter().sum::<f64>() / count * 100.0;
    // Writing to a string cannot fail.
    let _ = writeln!(
        table,
        "| {} | {} | {} | {} | {} | {} | {tool_cpu:.1} % | {:.0} MB | {} | {} |",
        case.name(),
        tool.name(),
        ratio(&figures.throughput),
        ratio(&figures.throughput_null),
        ratio(&figures.cpu),
        ratio(&figures.cpu_null),
        figures.tool_mb,
        milliseconds(&figures.attach_ms),
        milliseconds(&figures.detach_ms),
    );
}
