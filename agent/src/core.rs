//! The pure middle: `Core::step` turns one input into outputs, and knows the order of the stages.

mod input;

pub use input::{HitCost, Input, SelfCost, TargetFacts, Tick};

use crate::{
    report::{Record, model::{Space, StackId}},
    units::{Pid, UserAddr},
};

/// What the core wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A line for the exporters.
    Record(Box<Record>),
    /// Names for these addresses, innermost first; answered by [`Input::Symbolized`].
    NeedSymbols { stack: StackId, pid: Pid, space: Space, frames: Vec<u64> },
    /// The class whose vtable this is; answered by [`Input::WorkClass`].
    NeedWorkClass { pid: Pid, vtable: UserAddr },
}

/// The state of a trace.
#[derive(Debug, Default)]
pub struct Core {}

impl Core {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one input in.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        let _ = input;
        Vec::new()
    }
}
