//! Names for stacks, looked up on a thread of its own: reading a large binary's symbols must not hold up the rings.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    core::{Input, Output},
    probe::maps::Collections,
    symbolize::{GcClock, Named, Symbolizer},
    units::Pid,
};

/// Questions that may wait: more stacks than that are new only in the first moments of a trace.
const QUESTIONS_MAX: usize = 8192;

/// The thread, and the way to it.
pub struct Symbols {
    questions: SyncSender<Output>,
    pending: u64,
    /// Of which: about classes of work.
    pending_classes: u64,
    thread: JoinHandle<()>,
}

impl Symbols {
    /// Answers go to `answers` as inputs for the core.
    pub fn start(answers: UnboundedSender<Input>, collections: Collections) -> std::io::Result<Self> {
        let (questions, inbox) = sync_channel(QUESTIONS_MAX);
        let thread = std::thread::Builder::new()
            .name("agent-symbols".into())
            .spawn(move || answer_all(&inbox, &answers, collections))?;
        Ok(Self { questions, pending: 0, pending_classes: 0, thread })
    }

    /// Asks; a question that finds the queue full is answered with nothing at once.
    pub fn ask(&mut self, question: Output) -> Option<Input> {
        let classes = u64::from(matches!(question, Output::NeedWorkClass { .. }));
        match self.questions.try_send(question) {
            Ok(()) => {
                self.pending += 1;
                self.pending_classes += classes;
                None
            }
            Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) => unanswered(&question),
        }
    }

    /// An answer has arrived.
    pub fn answered(&mut self, answer: &Input) {
        self.pending = self.pending.saturating_sub(1);
        if matches!(answer, Input::WorkClass { .. }) {
            self.pending_classes = self.pending_classes.saturating_sub(1);
        }
    }

    #[must_use]
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Questions about classes of work: a window cannot say what its items were before it has the answers.
    #[must_use]
    pub fn pending_classes(&self) -> u64 {
        self.pending_classes
    }

    pub fn finish(self) {
        drop(self.questions);
        // A panic there was reported by its own hook; the names are missing, nothing else.
        let _ = self.thread.join();
    }
}

impl GcClock for Collections {
    fn of(&self, pid: Pid) -> Option<(u32, u32)> {
        self.of(pid.0)
    }
}

fn answer_all(inbox: &Receiver<Output>, answers: &UnboundedSender<Input>, collections: Collections) {
    // Made here, as it keeps what it reads to its own thread.
    let mut symbolizer = Symbolizer::new(Box::new(collections));
    let mut later = VecDeque::new();
    // Ends when the last question is answered and nobody is there to ask another.
    while let Some(question) = next(inbox, &mut later) {
        let answer = match question {
            Output::Record(_) => continue,
            Output::NeedSymbols { stack, pid, frames } => {
                let Named { frames, truncated } = symbolizer.symbolize(pid, &frames);
                Input::Symbolized { stack, frames, truncated }
            }
            Output::NeedWorkClass { pid, vtable } => {
                Input::WorkClass { pid, vtable, class: symbolizer.work_class(pid, vtable) }
            }
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// The question to answer next: classes of work before stacks, as windows wait for them.
fn next(inbox: &Receiver<Output>, later: &mut VecDeque<Output>) -> Option<Output> {
    if later.is_empty() {
        later.push_back(inbox.recv().ok()?);
    }
    while later.len() < QUESTIONS_MAX {
        match inbox.try_recv() {
            Ok(question @ Output::NeedWorkClass { .. }) => return Some(question),
            Ok(question) => later.push_back(question),
            Err(_) => break,
        }
    }
    later.pop_front()
}

fn unanswered(question: &Output) -> Option<Input> {
    match question {
        Output::Record(_) => None,
        Output::NeedSymbols { stack, .. } => {
            Some(Input::Symbolized { stack: *stack, frames: Vec::new(), truncated: None })
        }
        Output::NeedWorkClass { pid, vtable } => Some(Input::WorkClass { pid: *pid, vtable: *vtable, class: None }),
    }
}
