//! Two profiles side by side: what grew, what shrank.
//!
//! They ran for different times under different loads, so both are put on one scale first. A difference that chance alone may have
//! made is told apart from one that it will not have.

use std::{cmp::Ordering, collections::BTreeMap};

use super::{Flame, FlameStack, Function, Kind, Measure};

/// What both profiles are related to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// All of its own profile: says what takes a larger part, whatever the load.
    #[default]
    Share,
    /// The time that the profile took: says what takes more of the machine.
    Time,
    /// Requests that were served while each was taken: says what a request costs.
    Requests { before: f64, after: f64 },
}

impl Scale {
    /// The unit of scaled values.
    #[must_use]
    pub const fn unit(self, measure: Measure) -> &'static str {
        match (self, measure) {
            (Self::Share, Measure::OnCpu) => "% of its CPU time",
            (Self::Share, Measure::OffCpu) => "% of its time off CPU",
            (Self::Share, Measure::Wall) => "% of its wall time",
            (Self::Time, _) => "ms a second",
            (Self::Requests { .. }, _) => "ms a thousand requests",
        }
    }

    /// By what the nanoseconds of each are multiplied.
    fn factors(self, before: &Flame, after: &Flame) -> (f64, f64) {
        let per = |unit: f64, of: f64| if of > 0.0 { unit / of } else { 0.0 };
        match self {
            Self::Share => (per(100.0, float(before.weight_ns())), per(100.0, float(after.weight_ns()))),
            // ns / ns -> ms / s
            Self::Time => (per(1e3, float(before.duration_ns)), per(1e3, float(after.duration_ns))),
            // ns -> ms / 1000 requests
            Self::Requests { before, after } => (per(1e-3, before), per(1e-3, after)),
        }
    }
}

/// A value before and after, on one scale, and how many samples each is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair {
    pub before: f64,
    pub after: f64,
    pub counts: (u64, u64),
}

impl Pair {
    pub fn add(&mut self, other: Self) {
        self.before += other.before;
        self.after += other.after;
        self.counts.0 = self.counts.0.saturating_add(other.counts.0);
        self.counts.1 = self.counts.1.saturating_add(other.counts.1);
    }

    #[must_use]
    pub fn change(self) -> f64 {
        self.after - self.before
    }

    #[must_use]
    pub fn mean(self) -> f64 {
        f64::midpoint(self.before, self.after)
    }

    /// From -1, it is gone, to 1, it is new; 0 where chance may have made it.
    #[must_use]
    pub fn direction(self) -> f64 {
        let sum = self.before + self.after;
        if sum <= 0.0 || !self.is_significant() { 0.0 } else { self.change() / sum }
    }

    /// More than twice the standard deviation of the difference of two counts.
    #[must_use]
    pub fn is_significant(self) -> bool {
        let (before, after) = (float(self.counts.0), float(self.counts.1));
        // What one sample is worth, on each side; of none, as much as on the other.
        let worth = |value: f64, count: f64| if count > 0.0 { Some(value / count) } else { None };
        let (b, a) = (worth(self.before, before), worth(self.after, after));
        let (Some(b), Some(a)) = (b.or(a), a.or(b)) else { return false };
        let deviation = (before * b * b + after * a * a).sqrt();
        self.change().abs() > 2.0 * deviation
    }
}

/// A path of functions from the root.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffStack {
    pub path: Vec<Function>,
    /// Of stacks that end here.
    pub own: Pair,
}

/// A function in both profiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub function: Function,
    pub own: Pair,
    pub total: Pair,
}

/// The difference of two profiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    pub scale: Scale,
    pub measure: Measure,
    /// In order of their paths.
    pub stacks: Vec<DiffStack>,
    /// By how much their own time changed, the largest rise first.
    pub functions: Vec<Change>,
    pub total: Pair,
    pub durations_ns: (u64, u64),
}

impl Diff {
    #[must_use]
    pub fn of(before: &Flame, after: &Flame, scale: Scale) -> Self {
        let (before_factor, after_factor) = scale.factors(before, after);
        // Whoever compares one process with one means these two, whatever they are called.
        let process = match (before.subjects.as_slice(), after.subjects.as_slice()) {
            ([_], [after]) => Some(after.command.clone()),
            _ => None,
        };
        let mut sums = Sums { process, ..Sums::default() };
        for stack in &before.stacks {
            let value = float(stack.weight_ns) * before_factor;
            sums.add(before, stack, Pair { before: value, after: 0.0, counts: (stack.count, 0) });
        }
        for stack in &after.stacks {
            let value = float(stack.weight_ns) * after_factor;
            sums.add(after, stack, Pair { before: 0.0, after: value, counts: (0, stack.count) });
        }
        let Sums { stacks, functions, total, process: _ } = sums;
        let stacks = stacks.into_iter().map(|(path, own)| DiffStack { path, own }).collect();
        let mut functions: Vec<Change> =
            functions.into_iter().map(|(function, (own, total))| Change { function, own, total }).collect();
        functions.sort_by(|a, b| b.own.change().partial_cmp(&a.own.change()).unwrap_or(Ordering::Equal));
        Self {
            scale,
            measure: after.measure,
            stacks,
            functions,
            total,
            durations_ns: (before.duration_ns, after.duration_ns),
        }
    }
}

#[derive(Default)]
struct Sums {
    stacks: BTreeMap<Vec<Function>, Pair>,
    functions: BTreeMap<Function, (Pair, Pair)>,
    total: Pair,
    /// What the one process of either profile is called.
    process: Option<String>,
}

impl Sums {
    /// Between two versions of a program lines move, and names stay.
    fn comparable(&self, function: &Function) -> Function {
        if let (Kind::Process, Some(process)) = (function.kind, &self.process) {
            return Function { name: process.clone(), ..function.clone() };
        }
        let is_named = !function.name.is_empty() && !function.name.contains("anonymous");
        let Function { kind, name, file, line, column, module } = function.clone();
        let (line, column) = if is_named { (None, None) } else { (line, column) };
        Function { kind: tier_kind(kind), name, file, line, column, module }
    }

    fn add(&mut self, flame: &Flame, stack: &FlameStack, value: Pair) {
        let path: Vec<Function> = stack
            .steps
            .iter()
            .filter_map(|step| flame.function(step))
            .map(|function| self.comparable(function))
            .collect();
        self.total.add(value);
        if let Some(leaf) = path.last() {
            self.functions.entry(leaf.clone()).or_default().0.add(value);
        }
        let mut seen: Vec<Function> = path.iter().filter(|function| function.kind.is_code()).cloned().collect();
        seen.sort();
        seen.dedup();
        for function in seen {
            self.functions.entry(function).or_default().1.add(value);
        }
        self.stacks.entry(path).or_default().add(value);
    }
}

/// A function that V8 has optimised since is the same.
fn tier_kind(kind: Kind) -> Kind {
    if kind.is_javascript() { Kind::Js } else { kind }
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn float(n: u64) -> f64 {
    n as f64
}
