//! A profile as weighted stacks: what every exporter of profiles sees, and all that it sees.
//!
//! Built from the sums of a trace, so a live profile and its file give the same. Weights are nanoseconds and add up: nothing that
//! was measured is left out without being counted.

mod build;
pub mod diff;
mod fold;
mod frames;
mod lane;
mod sums;
mod threads;
mod unite;

use std::{borrow::Borrow, collections::HashMap, fmt::Write as _};

pub use build::{note, state_of_stay};
pub use fold::{Fold, fold};
pub use frames::{as_called, function};
pub use lane::Lane;
pub use sums::{Sum, Sums};

pub use super::model::Measure;
use super::model::Truncated;
use crate::printable::printable;

/// What of a profile is looked at, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What was measured, where it is not this, decides.
    pub measure: Option<Measure>,
    /// Threads apart from each other, and not only what they are for.
    pub by_thread: bool,
    /// Runs of the same frames, or of the same few in turn, as one.
    pub fold_recursion: bool,
    pub spaces: Spaces,
    /// Processes that run the same program as one: pids differ from one run to the next.
    pub without_pids: bool,
}

/// Which halves of stacks are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spaces {
    #[default]
    Both,
    User,
    Kernel,
}

/// What a frame is; exporters colour by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Process,
    Thread,
    State,
    Kernel,
    Native,
    Builtin,
    /// JavaScript, and it is not known what ran it.
    Js,
    Interpreted,
    Baseline,
    /// By Maglev or Turbofan.
    Optimized,
    /// JavaScript within an optimised function.
    Inlined,
    Wasm,
    /// No frame: what follows was awaited by what came before.
    Async,
    Unknown,
    /// No frame: something that the graph's reader has to know.
    Note,
}

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::Process,
        Self::Thread,
        Self::State,
        Self::Kernel,
        Self::Native,
        Self::Builtin,
        Self::Js,
        Self::Interpreted,
        Self::Baseline,
        Self::Optimized,
        Self::Inlined,
        Self::Wasm,
        Self::Async,
        Self::Unknown,
        Self::Note,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Thread => "thread",
            Self::State => "state",
            Self::Kernel => "kernel",
            Self::Native => "native",
            Self::Builtin => "V8 builtin",
            Self::Js => "JavaScript",
            Self::Interpreted => "interpreted",
            Self::Baseline => "baseline",
            Self::Optimized => "optimised",
            Self::Inlined => "inlined",
            Self::Wasm => "WebAssembly",
            Self::Async => "async",
            Self::Unknown => "not named",
            Self::Note => "note",
        }
    }

    #[must_use]
    pub const fn is_javascript(self) -> bool {
        matches!(self, Self::Js | Self::Interpreted | Self::Baseline | Self::Optimized | Self::Inlined)
    }

    /// It is code, and not one of the frames that only group or explain.
    #[must_use]
    pub const fn is_code(self) -> bool {
        !matches!(self, Self::Process | Self::Thread | Self::State | Self::Async | Self::Note)
    }
}

/// What frames have in common that are one box of a graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    pub kind: Kind,
    pub name: String,
    /// Of JavaScript: the script, as V8 has it.
    pub file: Option<String>,
    /// Of JavaScript: where the function begins, or the line that ran, where that is all that is known.
    pub line: Option<u32>,
    /// Likewise: bundles have all of their functions on one line.
    pub column: Option<u32>,
    /// Of native code.
    pub module: Option<String>,
}

impl Function {
    /// Name and place, as short as a reader of a graph wants them.
    #[must_use]
    pub fn label(&self) -> String {
        let mut label = printable(if self.name.is_empty() { "?" } else { &self.name });
        if let Some(file) = &self.file {
            let short = short_file(file);
            let _ = match self.line {
                Some(line) if self.column.is_some_and(|column| column >= COLUMN_OF_MACHINES) => {
                    write!(label, " ({}:{line}:{})", printable(short), self.column.unwrap_or(1))
                }
                Some(line) => write!(label, " ({}:{line})", printable(short)),
                None => write!(label, " ({})", printable(short)),
            };
        }
        label
    }
}

/// No function that somebody wrote begins as far to the right.
const COLUMN_OF_MACHINES: u32 = 300;

/// The last part of a path, and all of a name that is none.
#[must_use]
pub fn short_file(file: &str) -> &str {
    if file.starts_with("node:") { file } else { file.rsplit('/').find(|part| !part.is_empty()).unwrap_or(file) }
}

/// How often a frame comes in a row; stacks that share it may differ there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Times {
    pub least: u32,
    pub most: u32,
}

impl Times {
    pub const ONCE: Self = Self { least: 1, most: 1 };

    /// ` × 97`, ` × 3 to 97`, or nothing.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self { least: 1, most: 1 } => String::new(),
            Self { least, most } if least == most => format!(" × {most}"),
            Self { least, most } => format!(" × {least} to {most}"),
        }
    }
}

/// One frame of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// Index into [`Flame::functions`].
    pub function: u32,
    /// The line that ran, where it is known.
    pub at: Option<u32>,
    pub times: Times,
}

/// What the thread did all the while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    OnCpu,
    Blocked,
    /// Ready to run, waiting for a CPU.
    Runnable,
    Stopped,
    /// Waiting for work, as it should.
    Idle,
}

impl State {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnCpu => "on CPU",
            Self::Blocked => "blocked",
            Self::Runnable => "waiting for a CPU",
            Self::Stopped => "stopped",
            Self::Idle => "idle",
        }
    }
}

/// Where time went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlameStack {
    pub pid: u32,
    /// Where threads are told apart.
    pub tid: Option<u32>,
    pub lane: Lane,
    pub state: State,
    /// Outermost first: process, thread, state where there is more than one, then the frames.
    pub steps: Vec<Step>,
    /// Samples, or stays off CPU.
    pub count: u64,
    pub weight_ns: u64,
    /// Of which: in garbage collection pauses.
    pub gc_ns: u64,
    pub truncated: Option<Truncated>,
}

impl FlameStack {
    fn add(&mut self, count: u64, weight_ns: u64, gc_ns: u64) {
        self.count = self.count.saturating_add(count);
        self.weight_ns = self.weight_ns.saturating_add(weight_ns);
        self.gc_ns = self.gc_ns.saturating_add(gc_ns);
    }
}

/// How well frames of JavaScript are named: nanoseconds times frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Function and the line that ran.
    pub line: u128,
    /// Function and the line where it begins.
    pub start_line: u128,
    pub builtin: u128,
    /// By the process's own perf map.
    pub perf_map: u128,
    /// Not named at all.
    pub raw: u128,
}

/// A process in a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub pid: u32,
    /// Program and script, without their directories.
    pub command: String,
    pub node_version: Option<String>,
    pub duration_ns: u64,
}

/// A profile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flame {
    pub measure: Measure,
    pub functions: Vec<Function>,
    pub stacks: Vec<FlameStack>,
    pub subjects: Vec<Subject>,
    /// Time on CPU that a sample stands for; 0 where there were none.
    pub period_ns: u64,
    /// When it began, RFC 3339.
    pub started: String,
    /// Of the whole trace.
    pub duration_ns: u64,
    pub naming: Naming,
    /// Time off CPU that only waits for work, and is in no stack: all of it in a graph of time off CPU, and in one of wall time that
    /// of threads which turn no loop.
    pub idle_left_out_ns: u64,
}

impl Flame {
    #[must_use]
    pub fn weight_ns(&self) -> u64 {
        self.stacks.iter().fold(0, |sum, stack| sum.saturating_add(stack.weight_ns))
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.stacks.iter().fold(0, |sum, stack| sum.saturating_add(stack.count))
    }

    #[must_use]
    pub fn function(&self, step: &Step) -> Option<&Function> {
        self.functions.get(step.function as usize)
    }

    /// The stack's frames as a reader wants them, outermost first.
    pub fn labels<'a>(&'a self, stack: &'a FlameStack) -> impl Iterator<Item = (&'a Function, String)> {
        stack.steps.iter().filter_map(|step| {
            let function = self.function(step)?;
            Some((function, function.label() + &step.times.label()))
        })
    }

    /// Whom to blame for a stack.
    #[must_use]
    pub fn blame(&self, stack: &FlameStack) -> Option<&Function> {
        blamed(|| stack.steps.iter().rev().filter_map(|step| self.function(step)))
    }
}

/// Whom to blame, of functions from the innermost out: the first JavaScript that is not Node.js's own, else the first JavaScript, else
/// the first of all.
pub fn blamed<F: Borrow<Function>, I: Iterator<Item = F>>(inner: impl Fn() -> I) -> Option<F> {
    let javascript = |function: &F| function.borrow().kind.is_javascript() || function.borrow().kind == Kind::Wasm;
    let is_own = |function: &F| function.borrow().file.as_deref().is_some_and(|file| file.starts_with("node:"));
    inner()
        .find(|function| javascript(function) && !is_own(function))
        .or_else(|| inner().find(javascript))
        .or_else(|| inner().next())
}

/// Functions by number.
#[derive(Clone, Debug, Default)]
struct Functions {
    list: Vec<Function>,
    known: HashMap<Function, u32>,
    /// Of each: the first that is the same but for what ran it. Recursion goes through all tiers.
    alike: Vec<u32>,
    known_alike: HashMap<Function, u32>,
}

impl Functions {
    fn number(&mut self, function: Function) -> u32 {
        if let Some(known) = self.known.get(&function) {
            return *known;
        }
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(function.clone());
        self.known.insert(function.clone(), number);
        let kind = if function.kind.is_javascript() { Kind::Js } else { function.kind };
        let alike = *self.known_alike.entry(Function { kind, ..function }).or_insert(number);
        self.alike.push(alike);
        number
    }

    fn alike(&self, number: u32) -> u32 {
        self.alike.get(number as usize).copied().unwrap_or(number)
    }
}
