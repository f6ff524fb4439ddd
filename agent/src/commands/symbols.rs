//! Names for stacks, looked up on a thread of its own: reading a large binary's symbols must not hold up the rings.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    core::{Await, Input, Output},
    probe::maps::{Collections, monotonic_ns},
    report::model::StackId,
    symbolize::{
        GcClock, KernelAhead, Named, Symbolizer, Unnamed,
        scripts::{Reference, References},
        source_map::SourceMaps,
        v8::suspended::Place,
    },
    units::{MonoNs, Pid},
};

/// Questions that may wait: more stacks than that are new only in the first moments of a trace.
const QUESTIONS_MAX: usize = 8192;

/// Stacks that are named and handed on together: what they rest on is read once for all of them, and each time wakes two threads, which
/// takes longer than naming a stack.
const TOGETHER_MAX: usize = 64;

/// What the thread is told.
enum Question {
    Ask(Output),
    /// A process has gone: what is known of it, some megabytes, is for nothing.
    Forget(Pid),
    /// The kernel's symbols are being read, for the first stack that wants them.
    Kernel(KernelAhead),
}

/// The thread, and the way to it.
pub struct Symbols {
    questions: SyncSender<Question>,
    pending: u64,
    /// Of which: about classes of work.
    pending_classes: u64,
    threads: [JoinHandle<()>; 2],
}

impl Symbols {
    /// Answers go to `answers` as inputs for the core. Source maps are in the directory, if there is one, or with their scripts.
    pub fn start(
        answers: UnboundedSender<Input>,
        collections: Collections,
        source_maps: Option<PathBuf>,
    ) -> std::io::Result<Self> {
        let (questions, inbox) = sync_channel(QUESTIONS_MAX);
        let (to_map, unmapped) = sync_channel(QUESTIONS_MAX);
        let mapped = answers.clone();
        let start = |name: &str| std::thread::Builder::new().name(name.into());
        // Apart: reading a large map takes a while, and stacks must be named before the collector has moved what they point at.
        let given = source_maps.is_some();
        let maps = start("agent-maps").spawn(move || map_all(&unmapped, &mapped, source_maps.as_deref()))?;
        let symbols =
            start("agent-symbols").spawn(move || answer_all(&inbox, &answers, &to_map, given, collections))?;
        Ok(Self { questions, pending: 0, pending_classes: 0, threads: [symbols, maps] })
    }

    /// Asks; a question that finds the queue full is answered with nothing at once.
    pub fn ask(&mut self, question: Output) -> Option<Input> {
        let classes = u64::from(matches!(question, Output::NeedWorkClass { .. }));
        match self.questions.try_send(Question::Ask(question)) {
            Ok(()) => {
                self.pending += 1;
                self.pending_classes += classes;
                None
            }
            Err(TrySendError::Full(Question::Ask(question)) | TrySendError::Disconnected(Question::Ask(question))) => {
                unanswered(&question)
            }
            Err(_) => None,
        }
    }

    /// A process has gone, and all that there was to ask about it has been asked. Where the queue is full, what is known of it goes later,
    /// to make room for others.
    pub fn forget(&self, pid: Pid) {
        let _ = self.questions.try_send(Question::Forget(pid));
    }

    /// The kernel's symbols are being read: the first stack need not wait for all of that.
    pub fn expect_kernel(&self, ahead: KernelAhead) {
        let _ = self.questions.try_send(Question::Kernel(ahead));
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
        for thread in self.threads {
            // A panic there was reported by its own hook; the names are missing, nothing else.
            let _ = thread.join();
        }
    }
}

impl GcClock for Collections {
    fn of(&self, pid: Pid) -> Option<(u32, u32)> {
        self.of(pid.0)
    }
}

/// A stack whose frames are as V8 has them.
struct NamedStack {
    pid: Pid,
    stack: StackId,
    named: Named,
    at: MonoNs,
    /// Of scripts that no stack before this one had.
    references: Vec<Reference>,
}

impl NamedStack {
    fn answer(self) -> Input {
        let Self { stack, named: Named { frames, truncated }, at, .. } = self;
        Input::Symbolized { stack, frames, truncated, at: Some(at) }
    }
}

/// What the thread that knows source maps is told.
enum ToMap {
    Stacks(Vec<NamedStack>),
    Forget(Pid),
}

/// Puts frames back into the sources that their scripts were made of.
fn map_all(inbox: &Receiver<ToMap>, answers: &UnboundedSender<Input>, directory: Option<&Path>) {
    let mut maps = SourceMaps::new(directory);
    for told in inbox {
        let stacks = match told {
            ToMap::Stacks(stacks) => stacks,
            ToMap::Forget(pid) => {
                maps.forget(pid);
                continue;
            }
        };
        for mut stack in stacks {
            let pid = stack.pid;
            for Reference { file, url } in std::mem::take(&mut stack.references) {
                maps.refer(pid, &file, &url);
            }
            for frame in &mut stack.named.frames {
                if let Some(mapped) = maps.apply(pid, frame) {
                    *frame = Arc::new(mapped);
                }
            }
            if answers.send(stack.answer()).is_err() {
                return;
            }
        }
    }
}

/// Stacks are handed on to be put back into their sources, `are_mapped`, or once a script has said where its map is.
fn answer_all(
    inbox: &Receiver<Question>,
    answers: &UnboundedSender<Input>,
    to_map: &SyncSender<ToMap>,
    mut are_mapped: bool,
    collections: Collections,
) {
    // Made here, as it keeps what it reads to its own thread.
    let mut symbolizer = Symbolizer::new(Box::new(collections));
    let mut references = References::default();
    let mut later = VecDeque::new();
    let (mut ids, mut asked, mut together) = (Vec::new(), Vec::new(), Vec::new());
    // Ends when the last question is answered and nobody is there to ask another.
    while let Some(question) = next(inbox, &mut later) {
        let question = match question {
            Question::Ask(question) => question,
            Question::Forget(pid) => {
                symbolizer.forget(pid);
                references.forget(pid);
                if are_mapped && to_map.send(ToMap::Forget(pid)).is_err() {
                    return;
                }
                continue;
            }
            Question::Kernel(ahead) => {
                symbolizer.expect_kernel(ahead);
                continue;
            }
        };
        let answer = match question {
            Output::Record(_) => None,
            Output::NeedSymbols { stack, pid, frames } => {
                ids.push(stack);
                asked.push(Unnamed { pid, frames });
                let is_next = matches!(later.front(), Some(Question::Ask(Output::NeedSymbols { .. })));
                if is_next && asked.len() < TOGETHER_MAX {
                    continue;
                }
                let (all, at) = (symbolizer.symbolize(&asked), monotonic_ns());
                for ((stack, Unnamed { pid, .. }), named) in ids.drain(..).zip(asked.drain(..)).zip(all) {
                    let references = references.of_new(&mut symbolizer, pid, &named.frames);
                    are_mapped |= !references.is_empty();
                    together.push(NamedStack { pid, stack, named, at, references });
                }
                None
            }
            Output::NeedAwaits { pid } => Some(awaits(&mut symbolizer, pid)),
            Output::NeedWorkClass { pid, vtable } => {
                Some(Input::WorkClass { pid, vtable, class: symbolizer.work_class(pid, vtable) })
            }
        };
        let is_time = together.len() >= TOGETHER_MAX || (later.is_empty() && !together.is_empty());
        let mut is_heard = answer.is_none_or(|answer| answers.send(answer).is_ok());
        if is_time && are_mapped {
            is_heard &= to_map.send(ToMap::Stacks(std::mem::take(&mut together))).is_ok();
        } else if is_time {
            is_heard &= together.drain(..).all(|named| answers.send(named.answer()).is_ok());
        }
        if !is_heard {
            return;
        }
    }
}

/// Looks for suspended calls in a process's heap.
fn awaits(symbolizer: &mut Symbolizer, pid: Pid) -> Input {
    let found = symbolizer.suspended_calls(pid);
    let of = |(places, count): (Vec<Place>, u64)| {
        let mut hasher = DefaultHasher::new();
        places.hash(&mut hasher);
        let frames = places.iter().map(|place| (place.shared, place.offset)).collect();
        let (major_gcs, gcs) = found.collections;
        Await { stack: hasher.finish(), count, frames, major_gcs, gcs }
    };
    Input::Awaits { pid, at: monotonic_ns(), awaits: found.suspended.calls.into_iter().map(of).collect() }
}

/// The question to answer next: classes of work before stacks, as windows wait for them.
fn next(inbox: &Receiver<Question>, later: &mut VecDeque<Question>) -> Option<Question> {
    if later.is_empty() {
        later.push_back(inbox.recv().ok()?);
    }
    while later.len() < QUESTIONS_MAX {
        match inbox.try_recv() {
            Ok(question @ Question::Ask(Output::NeedWorkClass { .. })) => return Some(question),
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
            Some(Input::Symbolized { stack: *stack, frames: Vec::new(), truncated: None, at: None })
        }
        Output::NeedAwaits { pid } => Some(Input::Awaits { pid: *pid, at: monotonic_ns(), awaits: Vec::new() }),
        Output::NeedWorkClass { pid, vtable } => Some(Input::WorkClass { pid: *pid, vtable: *vtable, class: None }),
    }
}
