//! What a profile adds up to, function by function.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{Flame, FlameStack, Kind, State};
use crate::report::model::Truncated;

/// A function's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub label: String,
    pub kind: Kind,
    /// It was the innermost frame.
    pub self_ns: u64,
    /// It was on the stack.
    pub total_ns: u64,
}

/// Sums over all stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// By own time, most first.
    pub functions: Vec<Sum>,
    /// The functions to blame ([`Flame::blame`]): `self_ns` is what they did themselves or by native code and the kernel.
    pub blamed: Vec<Sum>,
    /// By the kind of the innermost frame.
    pub kinds: BTreeMap<Kind, u64>,
    pub states: BTreeMap<State, u64>,
    pub gc_ns: u64,
    /// Time in stacks that have frames, and of those the ones that reach down to the thread's start.
    pub stacked_ns: u64,
    pub complete_ns: u64,
    pub cut: BTreeMap<Truncated, u64>,
}

impl Sums {
    #[must_use]
    pub fn of(flame: &Flame) -> Self {
        let mut sums = Self::default();
        let (mut functions, mut blamed) = (Table::default(), Table::default());
        let labels: Vec<String> = flame.functions.iter().map(super::Function::label).collect();
        for stack in &flame.stacks {
            let weight = stack.weight_ns;
            *sums.states.entry(stack.state).or_default() += weight;
            sums.gc_ns += stack.gc_ns;
            if stack.state == State::Idle {
                continue;
            }
            sums.depth(flame, stack);
            if let Some(leaf) = stack.steps.last().and_then(|step| flame.function(step)) {
                *sums.kinds.entry(leaf.kind).or_default() += weight;
                functions.own(leaf.label(), leaf.kind, weight);
            }
            let mut seen = BTreeSet::new();
            for step in &stack.steps {
                let Some(function) = flame.function(step).filter(|function| function.kind.is_code()) else { continue };
                let Some(label) = labels.get(step.function as usize) else { continue };
                if seen.insert(label) {
                    functions.total(label.clone(), function.kind, weight);
                    if function.kind.is_javascript() || function.kind == Kind::Wasm {
                        blamed.total(label.clone(), function.kind, weight);
                    }
                }
            }
            if let Some(function) =
                flame.blame(stack).filter(|function| function.kind.is_javascript() || function.kind == Kind::Wasm)
            {
                blamed.own(function.label(), function.kind, weight);
            }
        }
        sums.functions = functions.sorted();
        sums.blamed = blamed.sorted();
        sums
    }

    fn depth(&mut self, flame: &Flame, stack: &FlameStack) {
        let has_frames =
            stack.steps.iter().filter_map(|step| flame.function(step)).any(|function| function.kind.is_code());
        if !has_frames {
            return;
        }
        self.stacked_ns += stack.weight_ns;
        match stack.truncated {
            None => self.complete_ns += stack.weight_ns,
            Some(why) => *self.cut.entry(why).or_default() += stack.weight_ns,
        }
    }
}

/// Functions by what they are called: tiers of one function are one.
#[derive(Default)]
struct Table(BTreeMap<String, Sum>);

impl Table {
    fn entry(&mut self, label: String, kind: Kind) -> &mut Sum {
        self.0.entry(label).or_insert_with_key(|label| Sum { label: label.clone(), kind, self_ns: 0, total_ns: 0 })
    }

    fn own(&mut self, label: String, kind: Kind, ns: u64) {
        let sum = self.entry(label, kind);
        sum.self_ns = sum.self_ns.saturating_add(ns);
    }

    fn total(&mut self, label: String, kind: Kind, ns: u64) {
        let sum = self.entry(label, kind);
        sum.total_ns = sum.total_ns.saturating_add(ns);
    }

    fn sorted(self) -> Vec<Sum> {
        let mut sums: Vec<Sum> = self.0.into_values().collect();
        // What only explains was on no stack.
        for sum in &mut sums {
            sum.total_ns = sum.total_ns.max(sum.self_ns);
        }
        sums.sort_by(|a, b| {
            (Reverse((a.self_ns, a.total_ns)), &a.label).cmp(&(Reverse((b.self_ns, b.total_ns)), &b.label))
        });
        sums
    }
}
