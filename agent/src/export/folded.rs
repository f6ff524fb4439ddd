//! Collapsed stacks: one a line, frames from the outermost, a semicolon between them, and the weight at the end.
//!
//! What flame graph tools have read since there were any. Names end as those tools know it: `_[k]` is the kernel, `_[j]` compiled at
//! run time, `_[i]` inlined. The weight is samples; of time off CPU, and of wall time, microseconds.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use crate::report::flame::{Flame, Function, Kind, Measure, Times};

/// Writes all stacks, in the order of their lines.
pub fn write(out: &mut impl Write, flame: &Flame) -> io::Result<()> {
    let mut lines = BTreeMap::<String, u64>::new();
    for stack in &flame.stacks {
        let frames: Vec<String> =
            stack.steps.iter().filter_map(|step| Some(frame(flame.function(step)?, step.times))).collect();
        let weight = if flame.measure == Measure::OnCpu { stack.count } else { stack.weight_ns };
        let sum = lines.entry(frames.join(";")).or_default();
        *sum = sum.saturating_add(weight);
    }
    // What one line loses by rounding goes to the next, so that the whole stays right.
    let (unit, mut left) = (if flame.measure == Measure::OnCpu { 1 } else { 1_000 }, 0);
    for (line, weight) in lines {
        let weight = weight.saturating_add(left);
        left = weight % unit;
        if weight >= unit {
            writeln!(out, "{line} {}", weight / unit)?;
        }
    }
    Ok(())
}

fn frame(function: &Function, times: Times) -> String {
    let mark = match function.kind {
        Kind::Kernel => "_[k]",
        Kind::Inlined => "_[i]",
        Kind::Js | Kind::Interpreted | Kind::Baseline | Kind::Optimized | Kind::Wasm => "_[j]",
        Kind::Process
        | Kind::Thread
        | Kind::State
        | Kind::Native
        | Kind::Builtin
        | Kind::Async
        | Kind::Unknown
        | Kind::Note => "",
    };
    format!("{}{}{mark}", function.label(), times.label()).replace(';', ":")
}
