//! Probes that come and go: as the budget has it, on suspicion, and as the loops poll.

use agent_ebpf::{
    spec::{Group, Part},
    state::{ThreadState, flag},
};
use log::{debug, info, warn};
use zerocopy::FromBytes;

use super::Session;
use crate::{
    commands::{
        cost,
        governor::{Counts, There},
    },
    govern::{Action, Passed, Prices},
    probe::maps::monotonic_ns,
    units::{MonoNs, nanoseconds},
};

/// A thread's state takes two system calls to read, some 2 µs: of hundreds of processes that all sleep, a thousandth of the time is spent
/// on the question how their loops poll.
const POLLS_REST_NS: u64 = 2_000_000;

/// Groups that come on suspicion, but for those with a limit of their own.
const SUSPICIONS: [Group; 4] = [Group::Makers, Group::Takers, Group::Scopes, Group::Allocators];

/// Programs by which time is accounted for; the kernel has some of them.
const SWITCHES: [&str; 5] =
    ["sched_switch", "sched_wakeup", "sched_wakeup_new", "sched_switch_record", "sched_wakeup_record"];

/// Programs on the two calls by which loops poll.
const BY_WAIT: [&str; 2] = ["enter_epoll_wait", "exit_epoll_wait"];
const BY_PWAIT: [&str; 2] = ["enter_epoll_pwait", "exit_epoll_pwait"];
const BY_EITHER: [&str; 4] = [BY_WAIT[0], BY_WAIT[1], BY_PWAIT[0], BY_PWAIT[1]];

/// The program on faults.
const FAULTS: [&str; 1] = ["page_fault"];

/// Which of those are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Polls {
    /// Both: no loop has polled yet.
    #[default]
    Unknown,
    /// Both, as both are needed.
    All,
    ByWait,
    ByPwait,
}

impl Polls {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Unknown | Self::All => &BY_EITHER,
            Self::ByWait => &BY_WAIT,
            Self::ByPwait => &BY_PWAIT,
        }
    }
}

impl Session {
    /// Attaches or detaches probes as their budget has it. Until they have polled once, loops are looked at, too: others that poll a
    /// hundred thousand times a second shall not pass tracepoints that no target does.
    pub fn govern(&mut self) {
        if self.polls == Polls::Unknown && monotonic_ns() >= self.polls_due {
            let threads = self.maps.threads();
            self.shed_polls(&threads);
            let count = threads.len() / size_of::<ThreadState>();
            let rest_ns = POLLS_REST_NS.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
            self.polls_due = MonoNs(monotonic_ns().0.saturating_add(rest_ns));
        }
        let Ok(tally) = self.maps.tally() else { return };
        let counts = Counts {
            passed: Passed::new(tally.hits.to_vec(), &tally.families, &tally.counters),
            own: cost::governed_cpu_time(),
            looks: cost::looks_cpu_time(),
            targets: self.users.len(),
            there: self.there(),
        };
        let (stacks_rarer, samples_rarer) = (self.governor.stacks_rarer(), self.governor.samples_rarer());
        let actions = self.governor.decide(monotonic_ns(), &counts);
        if actions.contains(&(Group::Requests, Action::Detach)) {
            self.count_requests(false);
        }
        if self.governor.stacks_rarer() != stacks_rarer {
            debug!("stacks are {} times rarer than usual", self.governor.stacks_rarer());
            if let Err(error) = self.maps.make_stacks_dearer(self.governor.stacks_rarer()) {
                warn!("{error}");
            }
        }
        if self.governor.samples_rarer() != samples_rarer {
            debug!("samples are {} times rarer than usual", self.governor.samples_rarer());
            if let Err(error) = self.maps.make_samples_rarer(self.governor.samples_rarer()) {
                warn!("{error}");
            }
        }
        for (group, action) in actions {
            self.apply(group, action);
            if action == Action::Attach {
                if group == Group::Requests {
                    self.count_requests(true);
                }
                self.governor.is_back(group, monotonic_ns());
            }
        }
        self.drop_suspicions();
    }

    pub(super) fn there(&self) -> There {
        There { files: !self.files.is_empty(), clusters: !self.waiting.is_empty() }
    }

    /// So many times rarer than usual heaps shall be looked at. What was attached on suspicion of one is not to stay for longer.
    #[must_use]
    pub fn looks_rarer(&self) -> u32 {
        if self.demanded.is_empty() { self.governor.looks_rarer() } else { 1 }
    }

    /// Requests count while their probe is there as a whole: what is counted is scaled up by that time.
    pub(super) fn count_requests(&mut self, counts: bool) {
        if let Err(error) = self.maps.count_requests(counts) {
            warn!("requests are not counted: {error}");
        }
    }

    /// Detaches what is attached on suspicion and takes too much.
    pub(super) fn drop_suspicions(&mut self) {
        let demanded = self.demanded.iter().copied().filter(|group| SUSPICIONS.contains(group)).collect::<Vec<_>>();
        let dear = self.governor.too_dear(monotonic_ns(), &demanded);
        for group in &dear {
            self.demanded.retain(|kept| kept != group);
            self.apply(*group, Action::Detach);
            info!("{group:?} probes are hit too often here: they are left out for a while");
        }
        if dear.iter().any(|group| matches!(group, Group::Makers | Group::Takers)) {
            // What was seen to be made may be gone by now, unseen.
            self.maps.forget_handles();
        }
    }

    /// Attaches probes that are on suspicion only, or detaches them.
    pub fn demand(&mut self, wanted: &[(Group, bool)]) {
        for &(group, is_wanted) in wanted {
            let is_wanted = is_wanted
                && self.allocations.allow(group)
                && self.governor.allows(group, monotonic_ns())
                && self.has(group);
            let is_attached = self.demanded.contains(&group);
            if is_wanted && !is_attached {
                self.demanded.push(group);
                self.apply(group, Action::Attach);
            } else if is_attached && !is_wanted {
                self.demanded.retain(|kept| *kept != group);
                self.apply(group, Action::Detach);
            }
        }
    }

    pub(super) fn apply(&mut self, group: Group, action: Action) {
        match group {
            Group::Polls => return self.apply_polls(action),
            Group::Switches => return self.apply_switches(action),
            Group::Faults => return self.apply_faults(action),
            Group::Waits => return self.apply_waits(action),
            _ => {}
        }
        let Some(probes) = &mut self.probes else { return };
        if action == Action::Attach
            && let Err(error) = probes.load_uprobe(group)
        {
            warn!("{group:?} probes: {error}");
            return;
        }
        // Time counts while all of them are there.
        if group == Group::Allocations && action == Action::Detach {
            self.allocations.mark(monotonic_ns(), action);
        }
        if group == Group::Pool && action == Action::Attach {
            self.maps.forget_works();
        }
        let result = match action {
            Action::Keep => Ok(()),
            Action::Detach => {
                probes.detach(group);
                Ok(())
            }
            Action::Attach => self.files.iter().try_for_each(|file| file.attach(group, probes)),
        };
        if group == Group::Allocations && action == Action::Attach {
            self.allocations.mark(monotonic_ns(), action);
        }
        if group == Group::Pool && action == Action::Detach {
            // What is in flight now would stay so for ever.
            self.maps.forget_works();
        }
        if let Err(error) = result {
            warn!("{group:?} probes: {error}");
        }
        debug!("{group:?} probes: {action:?}");
    }

    /// Measures what a hit costs, once: after the first window, as the first record shall not wait for it.
    pub fn calibrate(&mut self) {
        // Where it cannot be measured, it is not tried again.
        if std::mem::replace(&mut self.calibrated, true) {
            return;
        }
        let measured = self.probes.as_mut().and_then(cost::calibrate);
        if let Some(trap) = measured {
            info!("a uprobe hit costs {} ns here", trap.as_nanos());
            self.governor.set_prices(Prices::measured(trap));
        }
        self.hit_cost_ns = measured.map(nanoseconds);
    }

    /// A program that is new here may poll either way. Those that a process starts, if they are followed, are seen too late for that.
    pub(super) fn watch_all_polls(&mut self, follow: bool) {
        let are_there = self.probes.as_ref().is_some_and(|probes| probes.has_part(Part::Polls));
        self.polls = if follow || !are_there { Polls::All } else { Polls::Unknown };
        if self.governor.is_attached(Group::Polls) {
            self.attach_polls();
        }
    }

    pub(super) fn attach_polls(&mut self) {
        let Some(probes) = &mut self.probes else { return };
        if let Err(error) = probes.attach_again(self.polls.programs()) {
            warn!("polls are not seen: {error}");
        }
    }

    /// Turns come off as a whole where there are more of them than anybody can be told of.
    pub(super) fn apply_polls(&mut self, action: Action) {
        // First of all the kernel half learns of it: what a loop waits for in between is the next event.
        if let Err(error) = self.maps.change_polls() {
            warn!("{error}");
            return;
        }
        if action == Action::Attach {
            self.attach_polls();
        } else if let Some(probes) = &mut self.probes {
            probes.detach_tracepoints(Polls::All.programs());
        }
        debug!("polls: {action:?}");
    }

    /// Switches come off as a whole: whoever makes more of them than can be paid for, traced or not, is then left alone.
    pub(super) fn apply_switches(&mut self, action: Action) {
        let Some(probes) = &mut self.probes else { return };
        if action == Action::Attach
            && let Err(error) = probes.attach_again(&SWITCHES)
        {
            warn!("switches are not seen: {error}");
            return;
        }
        if let Err(error) = self.maps.change_switches() {
            warn!("{error}");
            return;
        }
        if action == Action::Detach {
            probes.detach_tracepoints(&SWITCHES);
        }
        debug!("switches: {action:?}");
    }

    /// Those of every process pass the tracepoint, so it is there for as long as one is looked at.
    pub(super) fn apply_faults(&mut self, action: Action) {
        let Some(probes) = &mut self.probes else { return };
        if action == Action::Attach {
            if let Err(error) = probes.attach_again(&FAULTS) {
                warn!("pages that are touched first are not seen: {error}");
            }
        } else {
            probes.detach_tracepoints(&FAULTS);
        }
        debug!("faults: {action:?}");
    }

    /// Tracepoints of the call by which no loop polls come off: every poll of every other process would pass them.
    pub(super) fn shed_polls(&mut self, threads: &[u8]) {
        if self.polls != Polls::Unknown {
            return;
        }
        let states =
            threads.chunks_exact(size_of::<ThreadState>()).filter_map(|state| ThreadState::read_from_bytes(state).ok());
        let seen = states.fold(0, |seen, state| seen | state.flags);
        let (kept, idle): (Polls, &[&str]) = match (seen & flag::POLLS_BY_WAIT != 0, seen & flag::POLLS_BY_PWAIT != 0) {
            (true, false) => (Polls::ByWait, &BY_PWAIT),
            (false, true) => (Polls::ByPwait, &BY_WAIT),
            (false, false) => return,
            (true, true) => (Polls::All, &[]),
        };
        self.polls = kept;
        if let Some(probes) = &mut self.probes {
            probes.detach_tracepoints(idle);
            debug!("tracepoints detached, as no loop polls by them: {idle:?}");
        }
    }
}
