//! From the sums of a trace to weighted stacks.

use std::collections::BTreeMap;

use super::{
    Flame, FlameStack, Function, Functions, Kind, Lane, Measure, Naming, Spaces, State, Step, Subject, Times, View,
    fold,
    frames::{as_called, frames, function, plain},
    lane::waits_for_work,
    short_file,
    threads::{Lanes, Thread},
    unite::unite,
};
use crate::report::{
    model::{Frame, FrameKind, LedgerPart, OffCpuTotals, OffReason, StackId, Target, Truncated},
    names,
    summary::{OffCpuKey, Summary, TargetSummary},
};

/// Why there are no frames, or not all of them.
pub mod note {
    pub const NO_STACK: &str = "[no stack]";
    pub const NOT_NAMED: &str = "[stack was not named in time]";
    pub const BEYOND_LIMIT: &str = "[stacks beyond the limit]";
    pub const ASLEEP: &str = "[asleep since before this began]";
    pub const TOO_SHORT: &str = "[stays too short for a stack]";
    pub const CUT_TOO_DEEP: &str = "[deeper than the walk goes]";
    pub const CUT_NO_FRAME_POINTER: &str = "[cut short: no frame pointer]";
}

impl Flame {
    /// What of a trace the view shows.
    #[must_use]
    pub fn of(summary: &Summary, view: View) -> Self {
        let targets = || summary.targets.values();
        let profiled = targets().find_map(|target| target.target.as_ref()?.config.profile);
        let measure = view.measure.or(profiled).unwrap_or_default();
        let mut builder = Builder {
            summary,
            view,
            measure,
            functions: Functions::default(),
            stacks: BTreeMap::new(),
            naming: Naming::default(),
            idle_left_out_ns: 0,
        };
        for (pid, target) in &summary.targets {
            builder.process(*pid, target);
        }
        let Builder { functions, stacks, naming, idle_left_out_ns, .. } = builder;
        let mut stacks: Vec<FlameStack> = stacks.into_values().collect();
        if view.fold_recursion {
            stacks = unite(stacks);
        }
        let subjects: Vec<Subject> = summary.targets.iter().map(|(pid, target)| subject(*pid, target)).collect();
        let longest = subjects.iter().map(|subject| subject.duration_ns).max().unwrap_or(0);
        Self {
            measure,
            functions: functions.list,
            stacks,
            period_ns: targets().map(|target| target.sample_period_ns).max().unwrap_or(0),
            started: targets()
                .filter_map(|target| Some(target.target.as_ref()?.trace_start_time.clone()))
                .min()
                .unwrap_or_default(),
            // A trace that was cut short has no end.
            duration_ns: if longest == 0 { summary.end.as_ref().map_or(0, |end| end.duration_ns) } else { longest },
            subjects,
            naming,
            idle_left_out_ns,
        }
    }
}

fn subject(pid: u32, target: &TargetSummary) -> Subject {
    let facts = target.target.as_ref();
    Subject {
        pid,
        command: facts.map(command).unwrap_or_default(),
        node_version: facts.and_then(|facts| facts.node_version.clone()),
        duration_ns: target.duration_ns.max(target.profiled_ns),
    }
}

/// Program and script, without their directories.
pub fn command(target: &Target) -> String {
    let whole = if target.command.is_empty() { std::slice::from_ref(&target.exe) } else { target.command.as_slice() };
    whole.iter().map(|part| short_file(part)).collect::<Vec<_>>().join(" ")
}

/// What stacks are told apart by.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    pid: u32,
    tid: Option<u32>,
    lane: Lane,
    state: State,
    steps: Vec<Step>,
}

/// One measured stack.
#[derive(Clone, Copy)]
struct Place {
    user: Option<StackId>,
    kernel: Option<StackId>,
    /// Nobody saw it begin.
    asleep: bool,
}

#[derive(Clone, Copy, Default)]
struct Weight {
    count: u64,
    ns: u64,
    gc_ns: u64,
}

struct Builder<'a> {
    summary: &'a Summary,
    view: View,
    measure: Measure,
    functions: Functions,
    stacks: BTreeMap<Key, FlameStack>,
    naming: Naming,
    idle_left_out_ns: u64,
}

impl Builder<'_> {
    fn process(&mut self, pid: u32, target: &TargetSummary) {
        let lanes = Lanes::of(self.summary, self.view, pid, target);
        if self.measure != Measure::OffCpu {
            self.samples(&lanes, target);
        }
        if self.measure != Measure::OnCpu {
            self.stays(&lanes, target);
        }
    }

    fn samples(&mut self, lanes: &Lanes, target: &TargetSummary) {
        let period = target.sample_period_ns;
        for (key, totals) in &target.samples {
            let weight = Weight {
                count: totals.samples,
                ns: totals.samples.saturating_mul(period),
                gc_ns: totals.gc_samples.saturating_mul(period),
            };
            let place = Place { user: key.user_stack, kernel: key.kernel_stack, asleep: false };
            self.add(lanes, lanes.thread(Some(key.tid)), State::OnCpu, place, weight);
        }
        let other = target.samples_other;
        let weight = Weight { count: other, ns: other.saturating_mul(period), gc_ns: 0 };
        self.note(lanes, lanes.thread(None), State::OnCpu, note::BEYOND_LIMIT, weight);
    }

    fn stays(&mut self, lanes: &Lanes, target: &TargetSummary) {
        // Of each thread, what stays that have a line of their own explain: the rest was too short for one.
        let mut explained = BTreeMap::<u32, LedgerPart>::new();
        for (key, totals) in &target.off_cpu {
            let runnable_ns = totals.runnable_ns.min(totals.total_ns);
            let waited_ns = totals.total_ns - runnable_ns;
            let thread = lanes.thread_of_stay(key);
            let state = self.state(thread.lane, key, totals);
            if let Some(tid) = key.tid {
                let sums = explained.entry(tid).or_default();
                sums.runnable_ns = sums.runnable_ns.saturating_add(runnable_ns);
                let part = if key.reason == OffReason::Stopped { &mut sums.stopped_ns } else { &mut sums.blocked_ns };
                *part = part.saturating_add(waited_ns);
            }
            let asleep = is_asleep(key, totals);
            let place = Place { user: key.user_stack, kernel: key.kernel_stack, asleep };
            let counted = if waited_ns == 0 { 0 } else { totals.count };
            self.wait(lanes, thread, state, place, Weight { count: counted, ns: waited_ns, gc_ns: 0 });
            let counted = if waited_ns == 0 { totals.count } else { 0 };
            self.wait(lanes, thread, State::Runnable, place, Weight { count: counted, ns: runnable_ns, gc_ns: 0 });
        }
        let other = &target.off_cpu_other;
        let weight = Weight { count: other.count, ns: other.total_ns, gc_ns: 0 };
        self.note(lanes, lanes.thread(None), State::Blocked, note::BEYOND_LIMIT, weight);
        for (tid, thread) in &target.profiled {
            let Some(ledger) = &thread.ledger else { continue };
            let explained = explained.remove(tid).unwrap_or_default();
            self.ledger(lanes, lanes.thread(Some(*tid)), ledger, &explained);
        }
    }

    /// What a thread's books hold and no stay explains.
    fn ledger(&mut self, lanes: &Lanes, thread: Thread, ledger: &LedgerPart, explained: &LedgerPart) {
        let rest = |ns: u64, explained: u64| Weight { count: 0, ns: ns.saturating_sub(explained), gc_ns: 0 };
        self.note(lanes, thread, State::Blocked, note::TOO_SHORT, rest(ledger.blocked_ns, explained.blocked_ns));
        self.note(lanes, thread, State::Runnable, note::TOO_SHORT, rest(ledger.runnable_ns, explained.runnable_ns));
        self.note(lanes, thread, State::Stopped, note::TOO_SHORT, rest(ledger.stopped_ns, explained.stopped_ns));
        self.idle(lanes, thread, Weight { count: 0, ns: ledger.idle_ns, gc_ns: 0 });
    }

    fn state(&self, lane: Lane, key: &OffCpuKey, totals: &OffCpuTotals) -> State {
        let user = frames(self.summary, key.user_stack).map(AsRef::as_ref);
        state_of_stay(lane, key.reason, is_asleep(key, totals), user)
    }

    fn wait(&mut self, lanes: &Lanes, thread: Thread, state: State, place: Place, weight: Weight) {
        if state == State::Idle {
            self.idle(lanes, thread, weight);
        } else {
            self.add(lanes, thread, state, place, weight);
        }
    }

    /// Idle time is apart: it has no stack worth a look, and is no part of what a thread was kept from. That of threads which serve
    /// the loops says nothing at all.
    fn idle(&mut self, lanes: &Lanes, thread: Thread, weight: Weight) {
        if self.measure == Measure::Wall && matches!(thread.lane, Lane::Main | Lane::Worker) {
            let steps = self.roots(lanes, thread, State::Idle);
            self.put(thread, State::Idle, steps, None, weight);
        } else {
            self.idle_left_out_ns = self.idle_left_out_ns.saturating_add(weight.ns);
        }
    }

    fn note(&mut self, lanes: &Lanes, thread: Thread, state: State, text: &str, weight: Weight) {
        let mut steps = self.roots(lanes, thread, state);
        steps.push(self.step(plain(Kind::Note, text)));
        self.put(thread, state, steps, None, weight);
    }

    fn add(&mut self, lanes: &Lanes, thread: Thread, state: State, place: Place, weight: Weight) {
        let mut steps = self.roots(lanes, thread, state);
        let (begin, mut truncated) = (steps.len(), None);
        // There is one, but nobody named it in time.
        let is_lost = |id: Option<StackId>| id.is_some_and(|id| !self.summary.stacks.contains_key(&id));
        let user_is_lost = self.view.spaces != Spaces::Kernel && is_lost(place.user);
        let kernel_is_lost = self.view.spaces != Spaces::User && is_lost(place.kernel);
        if user_is_lost {
            steps.push(self.step(plain(Kind::Note, note::NOT_NAMED)));
        } else if self.view.spaces != Spaces::Kernel {
            truncated = self.user(place.user, weight.ns, &mut steps);
        }
        if kernel_is_lost && !user_is_lost {
            steps.push(self.step(plain(Kind::Note, note::NOT_NAMED)));
        } else if self.view.spaces != Spaces::User {
            self.kernel(place.kernel, state, &mut steps);
        }
        if steps.len() == begin {
            let why = if place.asleep { note::ASLEEP } else { note::NO_STACK };
            steps.push(self.step(plain(Kind::Note, why)));
        }
        if self.view.fold_recursion {
            steps = self.folded(&steps);
        }
        self.put(thread, state, steps, truncated, weight);
    }

    fn folded(&self, steps: &[Step]) -> Vec<Step> {
        let functions: Vec<u32> = steps.iter().map(|step| self.functions.alike(step.function)).collect();
        let mut all = steps.iter();
        let mut shown = Vec::new();
        for part in fold(&functions) {
            // Of frames that are one, the outermost says which line ran.
            let times = Times { least: part.times, most: part.times };
            shown.extend(all.by_ref().take(part.items.len()).map(|step| Step { times, ..*step }));
            let more = part.items.len() * (part.times as usize).saturating_sub(1);
            all.by_ref().take(more).for_each(drop);
        }
        shown
    }

    fn put(&mut self, thread: Thread, state: State, steps: Vec<Step>, truncated: Option<Truncated>, weight: Weight) {
        if weight.ns == 0 && weight.count == 0 {
            return;
        }
        let Thread { pid, tid, lane } = thread;
        let tid = tid.filter(|_| self.view.by_thread);
        let stack = self.stacks.entry(Key { pid, tid, lane, state, steps: steps.clone() }).or_insert_with(|| {
            FlameStack { pid, tid, lane, state, steps, count: 0, weight_ns: 0, gc_ns: 0, truncated }
        });
        stack.add(weight.count, weight.ns, weight.gc_ns);
    }

    fn step(&mut self, function: Function) -> Step {
        Step { function: self.functions.number(function), at: None, times: Times::ONCE }
    }

    /// Process, thread, and the state where there is more than one.
    fn roots(&mut self, lanes: &Lanes, thread: Thread, state: State) -> Vec<Step> {
        let mut roots = vec![
            self.step(plain(Kind::Process, &lanes.process)),
            self.step(plain(Kind::Thread, &lanes.label(thread, self.view.by_thread))),
        ];
        if self.measure != Measure::OnCpu {
            roots.push(self.step(plain(Kind::State, state.name())));
        }
        roots
    }

    /// The user's half, outermost first; why it is cut short, if it is.
    fn user(&mut self, id: Option<StackId>, weight_ns: u64, steps: &mut Vec<Step>) -> Option<Truncated> {
        let stack = self.summary.stacks.get(&id?)?;
        match stack.truncated {
            None => {}
            Some(Truncated::TooDeep) => steps.push(self.step(plain(Kind::Note, note::CUT_TOO_DEEP))),
            Some(Truncated::NoFramePointer) => steps.push(self.step(plain(Kind::Note, note::CUT_NO_FRAME_POINTER))),
        }
        for frame in as_called(&stack.frames) {
            self.naming.add(frame, weight_ns);
            let (function, at) = function(frame);
            steps.push(Step { function: self.functions.number(function), at, times: Times::ONCE });
        }
        stack.truncated
    }

    fn kernel(&mut self, id: Option<StackId>, state: State, steps: &mut Vec<Step>) {
        let all = || frames(self.summary, id);
        // What every thread that leaves its CPU goes through says nothing about it.
        let noise = if state == State::OnCpu {
            0
        } else {
            all().take_while(|frame| names::is_kernel_noise(&frame.name)).count()
        };
        let shown: Vec<_> = all().skip(noise).collect();
        for frame in shown.into_iter().rev() {
            let (function, at) = function(frame);
            steps.push(Step { function: self.functions.number(function), at, times: Times::ONCE });
        }
    }
}

/// A stay is blocked, unless its stack says that the thread has nothing to do.
#[must_use]
pub fn state_of_stay<'a>(
    lane: Lane,
    reason: OffReason,
    is_asleep: bool,
    user_frames: impl Iterator<Item = &'a Frame>,
) -> State {
    let serves = matches!(lane, Lane::ThreadPool | Lane::V8 | Lane::Other);
    match reason {
        OffReason::Blocked if serves && is_asleep => State::Idle,
        OffReason::Preempted => State::Runnable,
        OffReason::Stopped => State::Stopped,
        OffReason::Blocked | OffReason::Unknown => {
            if waits_for_work(lane, user_frames) {
                State::Idle
            } else {
                State::Blocked
            }
        }
    }
}

/// A stay that began before the trace did, of which there is no stack.
fn is_asleep(key: &OffCpuKey, totals: &OffCpuTotals) -> bool {
    key.user_stack.is_none() && key.kernel_stack.is_none() && totals.over_budget == 0
}

impl Naming {
    fn add(&mut self, frame: &Frame, weight_ns: u64) {
        let weight = u128::from(weight_ns);
        let part = match frame.kind {
            FrameKind::Builtin => &mut self.builtin,
            FrameKind::Js if frame.name.is_empty() || frame.name == names::UNNAMED_JS => &mut self.raw,
            FrameKind::Js if frame.start_line => &mut self.start_line,
            FrameKind::Js if frame.tier.is_none() && !frame.inlined => &mut self.perf_map,
            FrameKind::Js if frame.line.is_none() => &mut self.start_line,
            FrameKind::Js => &mut self.line,
            FrameKind::Kernel | FrameKind::Native | FrameKind::Wasm | FrameKind::Async | FrameKind::Unknown => return,
        };
        *part = part.saturating_add(weight);
    }
}
