//! Names for stacks, looked up on a thread of its own: reading a large binary's symbols must not hold up the rings.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
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
const QUESTIONS_MAX: u64 = 8192;

/// Lots of named stacks that may wait to be put back into their sources.
const UNMAPPED_MAX: usize = 1024;

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
    /// What goes there next: all at once, as each time wakes the thread.
    unsent: Vec<Question>,
    questions: Sender<Vec<Question>>,
    pending: u64,
    /// Of which: about classes of work.
    pending_classes: u64,
    grown: Receiver<Pid>,
    threads: [JoinHandle<()>; 2],
}

impl Symbols {
    /// Answers go to `answers` as inputs for the core. Source maps are in the directory, if there is one, or with their scripts.
    pub fn start(
        answers: UnboundedSender<Vec<Input>>,
        collections: Collections,
        source_maps: Option<PathBuf>,
    ) -> std::io::Result<Self> {
        // What waits there is bounded by what is pending.
        let (questions, inbox) = channel();
        let (to_map, unmapped) = sync_channel(UNMAPPED_MAX);
        let (to_cover, grown) = channel();
        let mapped = answers.clone();
        let start = |name: &str| std::thread::Builder::new().name(name.into());
        // Apart: reading a large map takes a while, and stacks must be named before the collector has moved what they point at.
        let given = source_maps.is_some();
        let maps = start("agent-maps").spawn(move || map_all(&unmapped, &mapped, source_maps.as_deref()))?;
        let to = Recipients { answers, to_map, to_cover };
        let symbols = start("agent-symbols").spawn(move || answer_all(inbox, &to, given, collections))?;
        Ok(Self { unsent: Vec::new(), questions, pending: 0, pending_classes: 0, grown, threads: [symbols, maps] })
    }

    /// Asks, with the next [`Self::send`]; a question too many is answered with nothing at once.
    pub fn ask(&mut self, question: Output) -> Option<Input> {
        if self.pending >= QUESTIONS_MAX {
            return unanswered(&question);
        }
        self.pending += 1;
        self.pending_classes += u64::from(matches!(question, Output::NeedWorkClass { .. }));
        self.unsent.push(Question::Ask(question));
        None
    }

    /// Hands over what was asked. If nobody is there to answer, that is the answer.
    pub fn send(&mut self) -> Vec<Input> {
        if self.unsent.is_empty() {
            return Vec::new();
        }
        let Err(refused) = self.questions.send(std::mem::take(&mut self.unsent)) else { return Vec::new() };
        let asked = refused.0.iter().filter_map(|question| match question {
            Question::Ask(question) => unanswered(question),
            Question::Forget(_) | Question::Kernel(_) => None,
        });
        let answers: Vec<Input> = asked.collect();
        for answer in &answers {
            self.answered(answer);
        }
        answers
    }

    /// A process has gone, and all that there was to ask about it has been asked.
    pub fn forget(&mut self, pid: Pid) {
        self.unsent.push(Question::Forget(pid));
    }

    /// The kernel's symbols are being read: the first stack need not wait for all of that.
    pub fn expect_kernel(&mut self, ahead: KernelAhead) {
        self.unsent.push(Question::Kernel(ahead));
    }

    /// An answer has arrived.
    pub fn answered(&mut self, answer: &Input) {
        self.pending = self.pending.saturating_sub(1);
        if matches!(answer, Input::WorkClass { .. }) {
            self.pending_classes = self.pending_classes.saturating_sub(1);
        }
    }

    /// Processes that have mapped files since the last call: what was loaded later has to be unwound, too.
    pub fn grown(&self) -> impl Iterator<Item = Pid> {
        self.grown.try_iter()
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
fn map_all(inbox: &Receiver<ToMap>, answers: &UnboundedSender<Vec<Input>>, directory: Option<&Path>) {
    let mut maps = SourceMaps::new(directory);
    for told in inbox {
        let mut stacks = match told {
            ToMap::Stacks(stacks) => stacks,
            ToMap::Forget(pid) => {
                maps.forget(pid);
                continue;
            }
        };
        for stack in &mut stacks {
            let pid = stack.pid;
            for Reference { file, url } in std::mem::take(&mut stack.references) {
                maps.refer(pid, &file, &url);
            }
            for frame in &mut stack.named.frames {
                if let Some(mapped) = maps.apply(pid, frame) {
                    *frame = Arc::new(mapped);
                }
            }
        }
        if answers.send(stacks.into_iter().map(NamedStack::answer).collect()).is_err() {
            return;
        }
    }
}

/// To whom the thread that names stacks speaks.
struct Recipients {
    answers: UnboundedSender<Vec<Input>>,
    to_map: SyncSender<ToMap>,
    to_cover: Sender<Pid>,
}

/// Stacks are handed on to be put back into their sources, `are_mapped`, or once a script has said where its map is.
fn answer_all(inbox: Receiver<Vec<Question>>, to: &Recipients, mut are_mapped: bool, collections: Collections) {
    let Recipients { answers, to_map, to_cover } = to;
    // Made here, as it keeps what it reads to its own thread.
    let mut symbolizer = Symbolizer::new(Box::new(collections));
    let mut references = References::default();
    let mut inbox = Inbox { questions: inbox, urgent: VecDeque::new(), later: VecDeque::new() };
    let (mut ids, mut asked, mut together) = (Vec::new(), Vec::new(), Vec::new());
    // Ends when the last question is answered and nobody is there to ask another.
    while let Some(question) = inbox.next() {
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
                if inbox.is_stack_next() && asked.len() < TOGETHER_MAX {
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
        // Before the answers, as who hears these looks here.
        let mut is_heard = symbolizer.take_grown().into_iter().all(|pid| to_cover.send(pid).is_ok());
        let is_time = together.len() >= TOGETHER_MAX || (inbox.later.is_empty() && !together.is_empty());
        is_heard &= answer.is_none_or(|answer| answers.send(vec![answer]).is_ok());
        if is_time && are_mapped {
            is_heard &= to_map.send(ToMap::Stacks(std::mem::take(&mut together))).is_ok();
        } else if is_time {
            is_heard &= answers.send(together.drain(..).map(NamedStack::answer).collect()).is_ok();
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

/// What the thread has been asked.
struct Inbox {
    questions: Receiver<Vec<Question>>,
    /// Classes of work come before stacks, as windows wait for them.
    urgent: VecDeque<Question>,
    later: VecDeque<Question>,
}

impl Inbox {
    /// The question to answer next; none if nobody is there any more to ask one.
    fn next(&mut self) -> Option<Question> {
        if self.urgent.is_empty() && self.later.is_empty() {
            let questions = self.questions.recv().ok()?;
            self.sort(questions);
        }
        while let Ok(questions) = self.questions.try_recv() {
            self.sort(questions);
        }
        self.urgent.pop_front().or_else(|| self.later.pop_front())
    }

    fn sort(&mut self, questions: Vec<Question>) {
        for question in questions {
            let is_urgent = matches!(question, Question::Ask(Output::NeedWorkClass { .. }));
            if is_urgent { &mut self.urgent } else { &mut self.later }.push_back(question);
        }
    }

    fn is_stack_next(&self) -> bool {
        matches!(self.later.front(), Some(Question::Ask(Output::NeedSymbols { .. })))
    }
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
