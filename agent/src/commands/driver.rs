//! The live driver: attaches, feeds the core with what comes, and carries out what the core asks for.
//!
//! What is attached and measured is the mission's affair; the way from probes to sums is the same for all.

mod clusters;
mod ending;
mod mission;
mod targets;

use std::{
    io::{IsTerminal, Write},
    num::NonZero,
    path::Path,
    pin::pin,
    time::Duration,
};

use agent_ebpf::abi::family;
use log::{info, warn};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};

use ending::Signals;
pub use mission::{DriverError, Finished, Mission, Whom};
use targets::lives;

use super::{
    clusters::Search,
    cost,
    discover::Discovery,
    lookout::Lookout,
    pods::Pods,
    postgres::Watch,
    relations::Names,
    resident::{Findings, Resident},
    session::{Session, TypesAhead},
    sinks::{Destinations, Sinks},
    subject::{self, Subject, SubjectError},
    symbols::Symbols,
    wall_clock::WallClock,
};
use crate::{
    cli::exit,
    core::{Core, Input, Output, Tick},
    export::text::Style,
    govern::Budget,
    intake::Batch,
    probe::{maps::monotonic_ns, tracefs},
    report::{Body, Record, model::EndReason, summary::Summary},
    symbolize::KernelAhead,
    units::Pid,
};

/// How long the end of a trace waits for names that are still being looked up, and a window for classes of work.
const NAMES_PATIENCE: Duration = Duration::from_secs(3);

/// When it is first looked at what the probes cost: enough hits to count.
const EARLY: Duration = Duration::from_millis(120);

/// And how often from then on, and at most.
const GOVERN: Duration = Duration::from_millis(250);
const GOVERN_LEAST: Duration = Duration::from_millis(100);

/// How often it is looked whether a wait for one of PostgreSQL's locks is worth a reading: one of [`PG_LOCK_WAIT_MIN_NS`] is told with who
/// held the lock, be it over by the end of the window.
const LOCK_GLANCE: Duration = Duration::from_millis(50);

/// How often heaps are looked at: what is the least in a window is near what the last collection left.
const GLANCE: Duration = Duration::from_millis(250);

/// Lots of answers that are taken before anything else is looked at.
const ANSWERS_AT_ONCE: usize = 8;

/// Longer than any trace, and short enough for the clock.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// Carries a mission out. The kernel's types are read while the processes are looked at.
pub fn drive(
    mission: Mission,
    whom: Whom,
    types: TypesAhead,
    destinations: &Destinations,
) -> Result<Finished, DriverError> {
    // Before there is a second thread: mount namespaces belong to threads.
    if let Err(error) = tracefs::ensure() {
        warn!("{error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DriverError::Runtime)?;
    runtime.block_on(async {
        let sinks = Sinks::open(destinations).map_err(DriverError::Output)?;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let budget = Budget::new(mission.max_overhead, cpus);
        let wanted = (mission.phases, mission.switches);
        let session = Session::start(&mission.settings, mission.groups, wanted, budget, types)?;
        // Before anybody is told how to end it.
        let mut signals = Signals::listen().map_err(DriverError::Runtime)?;
        let duration = mission.duration;
        let Whom { subjects, launched, follow, examine, discovery, clusters, mut search, resident } = whom;
        let mut driver = Driver::new(mission, session, sinks, examine)?;
        driver.follow = follow;
        driver.discovery = discovery;
        let only = subjects.len() == 1;
        for subject in subjects {
            let pid = subject.pid;
            match driver.add(subject) {
                Ok(()) => {}
                Err(error) if only => return Err(error),
                Err(error) => warn!("pid={pid} is left out: {error}"),
            }
        }
        for watch in clusters {
            driver.add_cluster(watch)?;
        }
        for watch in search.as_mut().map(Search::newcomers).unwrap_or_default() {
            driver.add_found_cluster(watch);
        }
        driver.search = search;
        driver.resident = resident;
        if let Some(resident) = &mut driver.resident {
            let pods = Pods::start(&resident.config().kubernetes).await;
            resident.pods = pods.map_err(|error| DriverError::Output(error.to_string()))?;
        }
        if driver.resident.is_some() {
            // There may be nobody to trace for a long time, and what it costs to wait is told all the same.
            driver.feed(Input::Begin { since: monotonic_ns(), clock: driver.clock.told() });
        }
        driver.meet();
        if driver.resident.is_some() {
            say("agent: ready; SIGTERM ends it, SIGHUP has the configuration read again");
        } else if driver.targets.is_empty() {
            return Err(DriverError::NobodyThere);
        }
        if let Some(launched) = launched {
            launched.go();
        }
        // Only now: where all CPUs are busy it would hold up the first record.
        driver.symbols.expect_kernel(KernelAhead::read());
        let end = driver.run(duration, &mut signals).await?;
        driver.count_objects_at_last(&end, &mut signals).await;
        Ok(Box::pin(driver.finish(end)).await)
    })
}

/// The connection that a file tells.
fn names(path: &Path) -> Result<Names, DriverError> {
    let fail = |error: &dyn std::fmt::Display| DriverError::Output(format!("--pg-connection: {error}"));
    let url = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    Names::start(url.trim()).map_err(|error| fail(&error))
}

/// Why the trace ended, and with which exit code.
#[derive(Clone, Copy, Debug)]
struct Ending {
    reason: EndReason,
    code: u8,
}

/// Feeds the core and carries out what it asks for.
struct Driver {
    core: Core,
    session: Session,
    sinks: Sinks,
    symbols: Symbols,
    answers: mpsc::UnboundedReceiver<Vec<Input>>,
    summary: Summary,
    clock: WallClock,
    targets: Vec<Pid>,
    clusters: Vec<Watch>,
    /// When it was last looked at what the probes cost.
    governed: Instant,
    window: Duration,
    mission: Mission,
    lookout: Option<Lookout>,
    examine: fn(Pid) -> Result<Subject, SubjectError>,
    discovery: Option<Discovery>,
    search: Option<Search>,
    resident: Option<Resident>,
    /// Left by a daemon in this window, which is their last one: it is closed before they may come again, if they live on.
    left: Vec<Pid>,
    findings: Findings,
    names: Option<Names>,
    follow: bool,
    live: bool,
}

impl Driver {
    fn new(
        mission: Mission,
        session: Session,
        sinks: Sinks,
        examine: fn(Pid) -> Result<Subject, SubjectError>,
    ) -> Result<Self, DriverError> {
        let (to_core, answers) = mpsc::unbounded_channel();
        let names = mission.pg_connection.as_deref().map(names).transpose()?;
        let symbols = Symbols::start(to_core, session.collections()?, mission.source_maps.clone())
            .map_err(|error| DriverError::Output(format!("cannot start the symbol thread: {error}")))?;
        Ok(Self {
            core: Core::new(),
            session,
            sinks,
            symbols,
            answers,
            summary: Summary::default(),
            clock: WallClock::default(),
            targets: Vec::new(),
            clusters: Vec::new(),
            governed: Instant::now(),
            window: mission.window,
            live: !mission.quiet && std::io::stderr().is_terminal(),
            lookout: mission.diagnosis.is_some().then(|| Lookout::new(mission.counts_objects)),
            mission,
            examine,
            discovery: None,
            search: None,
            resident: None,
            left: Vec::new(),
            findings: Findings::default(),
            names,
            follow: false,
        })
    }

    /// Until the time is up, a signal comes, or nothing is left to trace.
    async fn run(&mut self, duration: Option<Duration>, signals: &mut Signals) -> Result<Ending, DriverError> {
        let begin = Instant::now();
        let deadline = duration.map(|duration| begin + duration);
        let mut windows = interval_at(begin + self.window, self.window);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut glances = interval_at(begin + GLANCE, GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval_at(begin + EARLY, GOVERN);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lock_glances = interval_at(begin + LOCK_GLANCE, LOCK_GLANCE);
        lock_glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = pin!(sleep_until(deadline.unwrap_or_else(|| begin + FOREVER)));
        loop {
            let due = self.sinks.due();
            tokio::select! {
                biased;
                _ = signals.interrupt.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: exit::INTERRUPTED }),
                _ = signals.terminate.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: self.code_of_end() }),
                _ = signals.hangup.recv() => {
                    if self.resident.is_none() {
                        return Ok(Ending { reason: EndReason::Interrupted, code: exit::TERMINATED });
                    }
                    self.reload();
                }
                () = &mut out => return Ok(Ending { reason: EndReason::Duration, code: exit::OK }),
                _ = looks.tick() => self.govern(),
                _ = windows.tick() => self.tick().await?,
                _ = glances.tick(), if self.lookout.is_some() => {
                    self.glance();
                    self.meet();
                }
                _ = lock_glances.tick(), if !self.clusters.is_empty() => self.glance_at_locks(),
                Some(answers) = self.answers.recv() => self.answer_all(answers),
                Some(batch) = self.session.batches.recv() => self.take(batch),
                () = sleep_until(due.map_or_else(Instant::now, Into::into)), if due.is_some() => {}
            }
            self.sinks.flush_due();
            if self.targets.is_empty() && self.resident.is_none() {
                return Ok(Ending { reason: EndReason::TargetsGone, code: exit::OK });
            }
            if self.sinks.is_finished() {
                return Ok(Ending { reason: EndReason::OutputClosed, code: exit::FAILED });
            }
        }
    }

    /// A daemon that is told to end has done what it was for.
    fn code_of_end(&self) -> u8 {
        if self.resident.is_some() { exit::OK } else { exit::TERMINATED }
    }

    /// Ends a window: reads the maps, empties the rings, tells the core.
    async fn tick(&mut self) -> Result<(), DriverError> {
        self.look_at_clock();
        for pid in self.targets.clone() {
            if !subject::exists(pid) {
                self.gone(pid);
            }
        }
        for subject in self.discovery.as_mut().map(Discovery::newcomers).unwrap_or_default() {
            let pid = subject.pid;
            if let Err(error) = self.add(subject) {
                warn!("pid={pid} is left out: {error}");
            }
        }
        for watch in self.search.as_mut().map(Search::newcomers).unwrap_or_default() {
            self.add_found_cluster(watch);
        }
        for pid in self.clusters.iter().map(Watch::pid).filter(|pid| !subject::exists(*pid)).collect::<Vec<_>>() {
            self.cluster_gone(pid);
        }
        let mut tick = self.session.snapshot(monotonic_ns())?;
        tick.self_cost.streams = self.sinks.streams();
        self.close_window(tick).await;
        self.session.calibrate();
        Ok(())
    }

    fn look_at_clock(&mut self) {
        let Some(clock) = self.clock.set_since() else { return };
        info!("the wall clock was set");
        for cluster in &mut self.clusters {
            cluster.set_clock(clock);
        }
        self.feed(Input::ClockSet(clock));
    }

    async fn close_window(&mut self, mut tick: Tick) {
        self.drain().await;
        self.session.settle(&mut tick);
        self.await_classes().await;
        self.look(&tick);
        self.read_clusters();
        self.tell_waits(&mut tick);
        tick.thread_names = subject::thread_names(&self.targets);
        self.feed(Input::Tick(Box::new(tick)));
        for pid in std::mem::take(&mut self.left) {
            self.symbols.forget(pid);
            if let Some(resident) = &mut self.resident
                && subject::exists(pid)
            {
                resident.look_again(pid);
            }
        }
    }

    fn glance(&mut self) {
        if let Some(lookout) = &mut self.lookout {
            cost::of_look(|| lookout.glance(&self.session));
        }
    }

    /// What each process holds as the window ends.
    fn look(&mut self, tick: &Tick) {
        let Some(lookout) = &mut self.lookout else { return };
        if !lookout.is_due(&self.session) {
            return;
        }
        let memories = cost::of_look(|| lookout.look(&self.session, &tick.threads));
        lookout.suspect(&mut self.session, &memories);
        for (pid, memory) in memories {
            self.feed(Input::Memory { pid, now: tick.now, memory: Box::new(memory) });
        }
    }

    /// Waits for the classes of the window's work, each of which is asked for once: nothing else is taken in meanwhile.
    async fn await_classes(&mut self) {
        let patience = Instant::now() + NAMES_PATIENCE;
        while self.symbols.pending_classes() > 0 {
            self.govern();
            tokio::select! {
                () = sleep(GOVERN) => {}
                answers = self.answers.recv() => match answers {
                    Some(answers) => self.answer(answers),
                    None => return,
                },
                () = sleep_until(patience) => return,
            }
        }
    }

    /// Looks at what the probes cost, if that is due: also while something else takes its time.
    fn govern(&mut self) {
        if self.governed.elapsed() >= GOVERN_LEAST {
            self.governed = Instant::now();
            self.session.govern();
            self.follow_waits_again();
        }
    }

    /// Takes in all that lies in the rings now.
    async fn drain(&mut self) {
        let mut done: oneshot::Receiver<()> = self.session.request_flush().await;
        loop {
            tokio::select! {
                biased;
                Some(batch) = self.session.batches.recv() => self.take(batch),
                _ = &mut done => break,
            }
            self.govern();
        }
        while let Ok(batch) = self.session.batches.try_recv() {
            self.take(batch);
        }
    }

    fn take(&mut self, batch: Batch) {
        self.session.count(&batch);
        let events = if batch.family == family::PROCESS { lives(&batch) } else { Vec::new() };
        self.feed(Input::Records { family: batch.family, bytes: batch.bytes });
        for event in events {
            self.live_event(event);
        }
    }

    /// Takes these answers, and those that came meanwhile.
    fn answer_all(&mut self, first: Vec<Input>) {
        self.answer(first);
        for _ in 0..ANSWERS_AT_ONCE {
            let Ok(answers) = self.answers.try_recv() else { return };
            self.answer(answers);
        }
    }

    fn answer(&mut self, answers: Vec<Input>) {
        for answer in answers {
            self.symbols.answered(&answer);
            self.feed(answer);
        }
        for pid in self.symbols.grown() {
            self.session.cover_again(pid);
        }
    }

    /// One input, and everything that follows from it at once.
    fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.sinks.input(&input);
            for output in self.core.step(input) {
                match output {
                    Output::Record(record) => self.put(&record),
                    question => inputs.extend(self.symbols.ask(question)),
                }
            }
            if inputs.is_empty() {
                inputs = self.symbols.send();
            }
        }
    }

    fn put(&mut self, record: &Record) {
        for finding in self.mission.diagnosis.as_mut().map(|diagnosis| diagnosis.before(record)).unwrap_or_default() {
            self.summary.add(&finding);
            self.sinks.record(&finding);
        }
        // A daemon has no report at its end, and its trace has no end that a sum could wait for.
        if self.resident.is_none() {
            self.summary.add(record);
        }
        self.sinks.record(record);
        if let Body::Agent(_) = record.body {
            self.say_findings(&record.time);
        }
        if self.live
            && let Some(line) = (self.mission.live)(record, &self.summary, style(false))
        {
            say(&line);
        }
    }

    /// What a daemon has found by now and not told lately.
    fn say_findings(&mut self, now: &str) {
        if self.resident.is_none() {
            return;
        }
        let Some(diagnosis) = &self.mission.diagnosis else { return };
        for finding in self.findings.news(diagnosis, now) {
            self.sinks.record(&finding);
        }
    }
}

/// How to print: as wide as the terminal, with colours where somebody sees them.
#[must_use]
pub fn style(stdout: bool) -> Style {
    let terminal = if stdout { std::io::stdout().is_terminal() } else { std::io::stderr().is_terminal() };
    let columns = if stdout {
        rustix::termios::tcgetwinsize(std::io::stdout()).map(|size| size.ws_col)
    } else {
        rustix::termios::tcgetwinsize(std::io::stderr()).map(|size| size.ws_col)
    };
    let width = columns.ok().filter(|columns| *columns >= 40).map_or(Style::default().width, usize::from);
    Style { width, colour: terminal && std::env::var_os("NO_COLOR").is_none() }
}

/// Talk goes to standard error; where even that is closed, nobody is there to talk to.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
