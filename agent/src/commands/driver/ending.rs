//! The end of a trace: a last count, the last window, and names that are still being looked up.

use log::{info, warn};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use super::{Driver, Ending, Finished, GOVERN, Lookout, NAMES_PATIENCE, say};
use crate::commands::counting::LAST_PATIENCE;
use crate::{cli::exit, core::Input, probe::maps::monotonic_ns, report::model::EndReason};

/// Signals that end a trace, or have a daemon read its configuration again. From the first moment that they are listened to none of them
/// ends the process as it stands.
pub(super) struct Signals {
    pub(super) interrupt: Signal,
    pub(super) terminate: Signal,
    pub(super) hangup: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Driver {
    /// Has live objects counted for the last time. The trace goes on meanwhile: without the probes on collections nobody would know of one
    /// that moved objects while they were counted, and the last count is what a growth is measured by. A second Ctrl-C ends it, and so
    /// does [`LAST_PATIENCE`].
    pub(super) async fn count_objects_at_last(&mut self, end: &Ending, signals: &mut Signals) {
        let is_asked_to = matches!(end.reason, EndReason::Duration | EndReason::Interrupted) && self.resident.is_none();
        let (Some(lookout), true) = (&mut self.lookout, is_asked_to) else { return };
        lookout.count_objects_at_last(&self.session);
        let patience = Instant::now() + LAST_PATIENCE;
        while self.lookout.as_ref().is_some_and(Lookout::is_counting) {
            self.govern();
            tokio::select! {
                biased;
                _ = signals.interrupt.recv() => return,
                () = sleep_until(patience) => {
                    warn!("live objects were not counted in time: the CPUs are busy");
                    return;
                }
                () = sleep(GOVERN) => {}
                Some(answers) = self.answers.recv() => self.answer_all(answers),
                Some(batch) = self.session.batches.recv() => self.take(batch),
            }
            self.sinks.flush_due();
        }
    }

    /// Detaches, takes in what is left, and adds it up.
    pub(super) async fn finish(mut self, end: Ending) -> Finished {
        // Before the targets are quiet: from then on the kernel half follows their threads no more.
        let now = monotonic_ns();
        self.session.quiet();
        let tick = self.session.snapshot(now);
        let detaching = std::time::Instant::now();
        self.session.detach();
        info!("detached in {:?}", detaching.elapsed());
        match tick {
            Ok(mut tick) => {
                tick.self_cost.streams = self.sinks.streams();
                if let Some(lookout) = &mut self.lookout {
                    lookout.end();
                }
                self.close_window(tick).await;
            }
            Err(error) => warn!("the last window is incomplete: {error}"),
        }
        let patience = Instant::now() + NAMES_PATIENCE;
        while self.symbols.pending() > 0 {
            tokio::select! {
                answers = self.answers.recv() => match answers {
                    Some(answers) => self.answer(answers),
                    None => break,
                },
                () = sleep_until(patience) => {
                    warn!("{} stacks were not named in time", self.symbols.pending());
                    break;
                }
            }
        }
        self.feed(Input::Stop { now: monotonic_ns(), reason: end.reason });
        let Self { sinks, summary, symbols, mission, .. } = self;
        symbols.finish();
        let outcome = sinks.finish();
        let mut code = end.code;
        if outcome.stdout_closed {
            say("agent: standard output was closed by its reader; the trace ended there");
            code = exit::FAILED;
        } else if !outcome.failures.is_empty() {
            code = exit::FAILED;
        }
        Finished { code, summary, diagnosis: mission.diagnosis }
    }
}
