//! Windows cut anywhere into a thread's life close to the wall time and add up to its totals.

mod synthetic;

use agent::{
    aggregate::ledger::{ThreadBook, accounted_ns, read, read_until, saturating_add},
    units::{MonoNs, Tid},
};
use agent_ebpf::abi::{event_loop::Ledger, sched::reason};
use proptest::prelude::*;
use synthetic::Thread;

/// A step in a thread's life; every span is cut by windows wherever they fall.
#[derive(Clone, Debug)]
enum Step {
    Run { phase: u32, ns: u64 },
    Off { reason: u32, waited: u64, runnable: u64, woken: bool },
    Poll { idle: u64, runnable: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let reasons = prop::sample::select(vec![reason::BLOCKED, reason::PREEMPTED, reason::STOPPED]);
    prop_oneof![
        (0u32..7, 0u64..5000).prop_map(|(phase, ns)| Step::Run { phase, ns }),
        (reasons, 0u64..5000, 0u64..5000, any::<bool>()).prop_map(|(reason, waited, runnable, woken)| Step::Off {
            reason,
            waited,
            runnable,
            woken
        }),
        (0u64..5000, 0u64..5000).prop_map(|(idle, runnable)| Step::Poll { idle, runnable }),
    ]
}

/// Lets time pass in pieces, and closes a window wherever one ends.
struct Windows {
    book: ThreadBook,
    every: u64,
    next: u64,
    sum: Ledger,
    wall: u64,
}

impl Windows {
    fn pass(&mut self, thread: &mut Thread, mut ns: u64) {
        while self.next <= thread.now + ns {
            let piece = self.next - thread.now;
            thread.pass(piece);
            ns -= piece;
            self.next += self.every;
            self.close(thread);
        }
        thread.pass(ns);
    }

    fn close(&mut self, thread: &Thread) {
        let reading = read(&thread.state, MonoNs(thread.now));
        let figures = self.book.close(Tid(thread.state.tid), thread.state.flags, &reading);
        assert_eq!(figures.unaccounted_ns(), 0, "{figures:?}");
        assert!(figures.ledger.poll_ns <= figures.wall_ns, "{figures:?}");
        self.sum = saturating_add(&self.sum, &figures.ledger);
        self.wall += figures.wall_ns;
    }

    fn off(&mut self, thread: &mut Thread, reason: u32, waited: u64, runnable: u64, woken: bool) {
        thread.switch_out(reason);
        self.pass(thread, waited);
        if woken {
            thread.wake();
        }
        self.pass(thread, runnable);
        thread.switch_in();
    }
}

proptest! {
    #[test]
    fn any_window_of_any_life_closes(steps in proptest::collection::vec(step(), 1..60), every in 100u64..20_000) {
        let first = 1_000_000;
        let mut thread = Thread::new(synthetic::PID, first);
        let book = ThreadBook::new(MonoNs(first));
        let mut windows = Windows { book, every, next: first + every, sum: Ledger::ZERO, wall: 0 };
        for step in steps {
            match step {
                Step::Run { phase, ns } => {
                    thread.enter_phase(phase);
                    windows.pass(&mut thread, ns);
                    thread.charge();
                }
                Step::Off { reason, waited, runnable, woken } => windows.off(&mut thread, reason, waited, runnable, woken),
                Step::Poll { idle, runnable } => {
                    thread.enter_poll();
                    windows.off(&mut thread, reason::BLOCKED, idle, runnable, true);
                    thread.leave_poll(1);
                }
            }
        }
        windows.close(&thread);
        prop_assert_eq!(windows.sum, read(&thread.state, MonoNs(thread.now)).ledger);
        prop_assert_eq!(windows.wall, thread.now - first);
        prop_assert_eq!(accounted_ns(&windows.sum), windows.wall);
    }

    #[test]
    fn what_is_not_watched_is_unaccounted(run in 0u64..10_000, off in 0u64..10_000, unseen in 0u64..10_000, woken in any::<bool>()) {
        let mut thread = Thread::new(synthetic::PID, 1000);
        let mut book = ThreadBook::new(MonoNs(1000));
        thread.run(4, run);
        thread.switch_out(reason::BLOCKED);
        thread.pass(off);
        let until = Some(MonoNs(thread.now));
        for _ in 0..2 {
            thread.pass(unseen);
            if woken {
                thread.wake();
            }
            let figures = book.close(Tid(1), 0, &read_until(&thread.state, MonoNs(thread.now), until));
            prop_assert_eq!(u64::try_from(figures.unaccounted_ns()), Ok(unseen));
        }
        prop_assert_eq!(accounted_ns(&read_until(&thread.state, MonoNs(thread.now), until).ledger), run + off);
    }

    #[test]
    fn a_torn_reading_costs_nothing_in_the_end(jump in 0u64..10_000) {
        let mut thread = Thread::new(synthetic::PID, 1000);
        let mut book = ThreadBook::new(MonoNs(1000));
        thread.run(4, 50_000);
        let whole = read(&thread.state, MonoNs(thread.now));
        // The copy saw the mark move, but not yet the time that was charged for it.
        let mut torn = thread.state;
        torn.ledger.on_cpu_ns[4] -= jump;
        let first = book.close(Tid(1), 0, &read(&torn, MonoNs(thread.now)));
        let second = book.close(Tid(1), 0, &whole);
        prop_assert_eq!(saturating_add(&first.ledger, &second.ledger), whole.ledger);
    }
}
