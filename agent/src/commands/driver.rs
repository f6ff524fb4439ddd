//! The live driver: attaches, feeds the core with what comes, and carries out what the core asks for.
//!
//! What is attached and measured is the mission's affair; the way from probes to sums is the same for all.

use std::{
    io::{IsTerminal, Write},
    num::NonZero,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use agent_ebpf::{
    abi::{
        family, kind,
        process::{Exec, Exit, exec_flag, exit_flag},
    },
    spec::Group,
};
use log::{info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};
use zerocopy::FromBytes;

use super::{
    asleep,
    clusters::Search,
    discover::Discovery,
    launch::Launched,
    lookout::Lookout,
    pods::Pods,
    postgres::Watch,
    relations::Names,
    resident::{Findings, Resident, Verdict},
    session::{FileProbes, PhasesWanted, Session, SessionError, SwitchesWanted, TypesAhead},
    sinks::{Destinations, Sinks},
    subject::{self, Subject, SubjectError},
    symbols::Symbols,
};
use crate::{
    cli::exit,
    config::ProcessSettings,
    core::{Core, Input, Output, Tick},
    diagnose::Diagnosis,
    export::text::Style,
    govern::Budget,
    intake::Batch,
    limits::TARGETS_MAX,
    postgres::{OpenWait, WaitEvent},
    printable::printable,
    probe::{attach::Settings, maps::monotonic_ns, tracefs},
    report::{
        Body, Record,
        model::{EndReason, TraceConfig},
        summary::Summary,
    },
    symbolize::KernelAhead,
    target::heap::HeapReader,
    target::{postgres::PostgresError, sockets::Peers},
    units::Pid,
};

/// How long the end of a trace waits for names that are still being looked up, and a window for classes of work.
const NAMES_PATIENCE: Duration = Duration::from_secs(3);

/// When it is first looked at what the probes cost: enough hits to count.
const EARLY: Duration = Duration::from_millis(120);

/// And how often from then on, and at most.
const GOVERN: Duration = Duration::from_millis(250);
const GOVERN_LEAST: Duration = Duration::from_millis(100);

/// How often heaps are looked at: what is the least in a window is near what the last collection left.
const GLANCE: Duration = Duration::from_millis(250);

/// Answers that are taken before anything else is looked at.
const ANSWERS_AT_ONCE: usize = 64;

/// Waits of PostgreSQL's backends that seem to go on for longer than this are looked at in the backend's memory.
const WAIT_DOUBTED_NS: u64 = 1_000_000_000;

/// Longer than any trace, and short enough for the clock.
const FOREVER: Duration = Duration::from_hours(24 * 365);

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error("{0}")]
    Output(String),
    #[error("cannot start {command}: {source}")]
    Launch { command: String, source: std::io::Error },
    #[error(
        "no Node.js process runs here (or none that may be looked at): name one with --pid, or start it after `--`"
    )]
    NobodyThere,
    #[error("the runtime could not start: {0}")]
    Runtime(#[source] std::io::Error),
}

impl DriverError {
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Subject(error) if error.is_denied() => exit::NOT_ALLOWED,
            Self::Subject(_) | Self::Postgres(_) | Self::NobodyThere => exit::NO_TARGET,
            Self::Session(_) => exit::NOT_ALLOWED,
            Self::Output(_) | Self::Launch { .. } | Self::Runtime(_) => exit::FAILED,
        }
    }
}

/// What is to be measured, and how.
pub struct Mission {
    pub settings: Settings,
    /// Uprobes that every file gets.
    pub groups: &'static [Group],
    pub phases: PhasesWanted,
    pub switches: SwitchesWanted,
    /// Share of the host's CPUs that probes may take which can come off.
    pub max_overhead: f64,
    pub window: Duration,
    pub config: TraceConfig,
    pub duration: Option<Duration>,
    pub quiet: bool,
    /// Where the user keeps maps of translated scripts.
    pub source_maps: Option<PathBuf>,
    /// The file that says how to ask for the names of PostgreSQL's relations.
    pub pg_connection: Option<PathBuf>,
    /// What is wrong is said as it ends; then it is looked at what processes hold, too.
    pub diagnosis: Option<Diagnosis>,
    /// Live objects are counted where a heap grows, which costs seconds of CPU for a large one.
    pub counts_objects: bool,
    /// What is done to a process, in a word for people.
    pub doing: &'static str,
    /// One line about a record, where somebody watches.
    pub live: fn(&Record, &Summary, Style) -> Option<String>,
}

/// Who is looked at.
pub struct Whom {
    pub subjects: Vec<Subject>,
    /// A program that has not begun yet.
    pub launched: Option<Launched>,
    /// Children that are of the kind, too.
    pub follow: bool,
    /// How a process is looked at that has become another program.
    pub examine: fn(Pid) -> Result<Subject, SubjectError>,
    /// Looks for more while it lasts.
    pub discovery: Option<Discovery>,
    /// PostgreSQL servers, whose locks are watched.
    pub clusters: Vec<Watch>,
    /// Looks for more of these while it lasts.
    pub search: Option<Search>,
    /// Of a daemon, which stays when nobody is there.
    pub resident: Option<Resident>,
}

/// How it went.
pub struct Finished {
    pub code: u8,
    pub summary: Summary,
    pub diagnosis: Option<Diagnosis>,
}

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
    let kernel = KernelAhead::read();
    runtime.block_on(async {
        let sinks = Sinks::open(destinations).map_err(DriverError::Output)?;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let budget = Budget::new(mission.max_overhead, cpus);
        let wanted = (mission.phases, mission.switches);
        let session = Session::start(&mission.settings, mission.groups, wanted, budget, types)?;
        let duration = mission.duration;
        let Whom { subjects, launched, follow, examine, discovery, clusters, mut search, resident } = whom;
        let mut driver = Driver::new(mission, session, sinks, examine, kernel)?;
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
        driver.meet();
        if driver.resident.is_some() {
            say("agent: ready; SIGTERM ends it, SIGHUP has the configuration read again");
        } else if driver.targets.is_empty() {
            return Err(DriverError::NobodyThere);
        }
        if let Some(launched) = launched {
            launched.go();
        }
        let end = driver.run(duration).await?;
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
    answers: mpsc::UnboundedReceiver<Input>,
    summary: Summary,
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
        kernel: KernelAhead,
    ) -> Result<Self, DriverError> {
        let (to_core, answers) = mpsc::unbounded_channel();
        let names = mission.pg_connection.as_deref().map(names).transpose()?;
        let symbols = Symbols::start(to_core, session.collections()?, mission.source_maps.clone(), kernel)
            .map_err(|error| DriverError::Output(format!("cannot start the symbol thread: {error}")))?;
        Ok(Self {
            core: Core::new(),
            session,
            sinks,
            symbols,
            answers,
            summary: Summary::default(),
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

    /// Begins to trace a process.
    fn add(&mut self, subject: Subject) -> Result<(), DriverError> {
        self.add_as(subject, self.usual())
    }

    /// How a process is traced of which no rule says anything.
    fn usual(&self) -> ProcessSettings {
        ProcessSettings { slow_turn: Duration::from_nanos(self.mission.config.slow_turn_ns), memory: true }
    }

    fn add_as(&mut self, mut subject: Subject, how: ProcessSettings) -> Result<(), DriverError> {
        let pid = subject.pid;
        let counts_gcs = subject.files.iter().any(FileProbes::counts_gcs);
        self.session.add_files(pid, subject.files)?;
        let main = subject.heaps.as_mut().and_then(HeapReader::default_loop).and_then(|at| asleep::main_loop(pid, at));
        if let Some(main) = main {
            self.session.set_main_loop(pid, main)?;
        }
        self.session.add_target(pid, subject.functions, subject.handle_space, counts_gcs, self.follow)?;
        if let Some(lookout) = &mut self.lookout
            && how.memory
        {
            lookout.add(pid, subject.heaps);
        }
        let mut facts = subject.facts;
        facts.since = monotonic_ns();
        self.session.add_threads(&asleep::states(pid, facts.since, main));
        facts.clock = subject::clock();
        facts.config = TraceConfig { slow_turn_ns: nanoseconds(how.slow_turn), ..self.mission.config };
        facts.degraded.extend(self.session.degraded.iter().cloned());
        self.targets.push(pid);
        if !self.mission.quiet {
            let doing = self.mission.doing;
            let command = printable(&facts.command.join(" "));
            say(&format!("agent: {doing} pid {pid} ({command}); Ctrl-C ends it with a report"));
        }
        info!("pid={pid} attached by {}", self.session.way.name());
        if let Some(resident) = &mut self.resident {
            resident.traced(&facts);
        }
        self.feed(Input::Target(Box::new(facts)));
        self.session.cover(pid, subject.v8);
        Ok(())
    }

    /// Begins to trace a PostgreSQL cluster: its backends cost nothing until one of them waits for a lock.
    fn add_cluster(&mut self, mut watch: Watch) -> Result<(), DriverError> {
        let (file, mut facts) = watch.prepare().map_err(PostgresError::from)?;
        let pid = watch.pid();
        let poorer = self.session.add_cluster(pid, file, watch.layout())?;
        facts.since = monotonic_ns();
        watch.look_again();
        self.session.follow_backends(pid, facts.since, &watch.processes());
        facts.degraded.extend(poorer);
        facts.degraded.extend(self.session.degraded.iter().cloned());
        if !self.mission.quiet {
            let (doing, version) = (self.mission.doing, watch.version().unwrap_or("of an unknown version"));
            say(&format!("agent: {doing} pid {pid} (PostgreSQL {version}); Ctrl-C ends it with a report"));
        }
        info!("pid={pid} attached by {}", self.session.way.name());
        self.feed(Input::Cluster(Box::new(facts)));
        // Who waits already began before any probe.
        let reading = watch.read();
        self.feed(Input::PgReading(Box::new(reading)));
        // Beside a process that is traced, it is watched for as long as that lives.
        if self.targets.is_empty() {
            self.targets.push(pid);
        }
        self.clusters.push(watch);
        Ok(())
    }

    /// One that was not asked for by name.
    fn add_found_cluster(&mut self, watch: Watch) {
        let pid = watch.pid();
        if self.clusters.iter().any(|known| known.pid() == pid) {
            return;
        }
        if let Err(error) = self.add_cluster(watch) {
            warn!("pid={pid} is left out: {error}");
        }
    }

    fn cluster_gone(&mut self, pid: Pid) {
        if self.clusters.iter().any(|watch| watch.pid() == pid) {
            self.clusters.retain(|watch| watch.pid() != pid);
            self.session.remove_cluster(pid);
            self.feed(Input::TargetGone { pid, now: monotonic_ns() });
        }
    }

    /// Reads the lock tables, after the records that came before.
    fn read_clusters(&mut self) {
        let mut inputs = Vec::new();
        for watch in &mut self.clusters {
            let reading = watch.read();
            if let Some(names) = &mut self.names {
                names.ask(&reading);
            }
            inputs.push(Input::PgReading(Box::new(reading)));
            self.session.follow_backends(watch.pid(), monotonic_ns(), &watch.pids());
            if let Some(layout) = watch.layout_found()
                && let Err(error) = self.session.set_cluster(watch.pid(), layout)
            {
                warn!("{error}");
            }
        }
        let is_beside = |client: &Pid| self.clusters.iter().any(|watch| watch.pid() != *client);
        let unix = if self.targets.iter().any(is_beside) { Peers::read() } else { Peers::default() };
        for watch in &self.clusters {
            let cluster = watch.pid();
            for client in self.targets.iter().copied().filter(|client| *client != cluster) {
                inputs.push(Input::PgClient { client, cluster, backends: watch.serving(client, &unix) });
            }
        }
        if let Some(names) = &mut self.names {
            let clusters = &self.clusters;
            let of = |backend| clusters.iter().find(|watch| watch.has(backend)).map(Watch::pid);
            inputs.extend(names.inputs(of));
        }
        for input in inputs {
            self.feed(input);
        }
    }

    /// Until the time is up, a signal comes, or nothing is left to trace.
    async fn run(&mut self, duration: Option<Duration>) -> Result<Ending, DriverError> {
        let begin = Instant::now();
        let deadline = duration.map(|duration| begin + duration);
        let mut windows = interval_at(begin + self.window, self.window);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut glances = interval_at(begin + GLANCE, GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(DriverError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(DriverError::Runtime)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(DriverError::Runtime)?;
        let mut looks = interval_at(begin + EARLY, GOVERN);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = pin!(sleep_until(deadline.unwrap_or_else(|| begin + FOREVER)));
        loop {
            let due = self.sinks.due();
            tokio::select! {
                biased;
                _ = interrupt.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: exit::INTERRUPTED }),
                _ = terminate.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: self.code_of_end() }),
                _ = hangup.recv() => {
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
                Some(answer) = self.answers.recv() => self.answer_all(answer),
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

    /// Begins to trace whoever has come; of a daemon.
    fn meet(&mut self) {
        if self.resident.as_mut().is_some_and(Resident::is_file_changed) {
            self.reload();
        }
        let Some(resident) = &mut self.resident else { return };
        resident.count_lost(self.session.dropped(family::PROCESS));
        for pid in resident.replaced() {
            self.gone(pid);
        }
        let Some(resident) = &mut self.resident else { return };
        let (targets, left) = (&self.targets, &self.left);
        for (subject, how) in resident.newcomers(|pid| targets.contains(&pid) || left.contains(&pid)) {
            let pid = subject.pid;
            if self.targets.len() >= TARGETS_MAX {
                warn!("pid={pid} is left out: {TARGETS_MAX} processes are traced already");
            } else if let Err(error) = self.add_as(subject, how) {
                warn!("pid={pid} is left out: {error}");
            }
        }
        let verdicts = self.resident.as_mut().map(Resident::rematch).unwrap_or_default();
        self.carry_out(verdicts);
    }

    fn carry_out(&mut self, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            match verdict {
                Verdict::Leave(pid) => self.gone(pid),
                Verdict::Change { facts, memory, had_memory } => {
                    let pid = facts.pid;
                    if let Some(lookout) = &mut self.lookout
                        && memory != had_memory
                    {
                        lookout.remove(pid);
                        if memory && let Ok(subject) = (self.examine)(pid) {
                            lookout.add(pid, subject.heaps);
                        }
                    }
                    self.feed(Input::Target(facts));
                }
            }
        }
    }

    /// Reads the configuration again, and traces no more whom it leaves out. Whoever it takes in is met next.
    fn reload(&mut self) {
        let Some(resident) = &mut self.resident else { return };
        if !resident.reload() {
            return;
        }
        self.mission.config.slow_turn_ns = nanoseconds(resident.config().trace.slow_turn);
        let verdicts = resident.review();
        self.carry_out(verdicts);
    }

    /// Ends a window: reads the maps, empties the rings, tells the core.
    async fn tick(&mut self) -> Result<(), DriverError> {
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

    /// Sets right what the kernel half could not see of PostgreSQL's waits, and asks for the names of new ones.
    fn tell_waits(&mut self, tick: &mut Tick) {
        let Self { clusters, session, .. } = self;
        // Not every switch is told of: who waits for something else by now, and was not seen to come back, did.
        let is_over = |wait: &OpenWait| {
            let watch = clusters.iter().find(|watch| watch.pid() == wait.cluster);
            tick.now.since(wait.since).0 >= WAIT_DOUBTED_NS
                && watch.and_then(|watch| watch.waits_for(wait.pid)).is_some_and(|event| event != wait.event)
                && session.is_open(wait)
        };
        tick.pg_open_waits.retain(|wait| !is_over(wait));
        let mut inputs = Vec::new();
        for watch in clusters {
            let cluster = watch.pid();
            let ended = tick.pg_waits.iter().filter(|(key, _)| key.cluster == cluster.0);
            let open = tick.pg_open_waits.iter().filter(|wait| wait.cluster == cluster).map(|wait| wait.event);
            let names = watch.wait_event_names(ended.map(|(key, _)| WaitEvent(key.event)).chain(open));
            if !names.is_empty() {
                inputs.push(Input::PgWaitEvents { cluster, names });
            }
        }
        for input in inputs {
            self.feed(input);
        }
    }

    fn glance(&mut self) {
        if let Some(lookout) = &mut self.lookout {
            lookout.glance(&self.session);
        }
    }

    /// What each process holds as the window ends.
    fn look(&mut self, tick: &Tick) {
        let Some(lookout) = &mut self.lookout else { return };
        if !lookout.is_due(&self.session) {
            return;
        }
        let memories = lookout.look(&self.session, &tick.threads);
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
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.answer(answer),
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

    /// Reacts to the life of a target.
    fn live_event(&mut self, event: Life) {
        match event {
            Life::Exited(pid) => self.gone(pid),
            Life::Executed(pid) => self.executed(pid),
            Life::Began(pid) => {
                if let Some(resident) = &mut self.resident {
                    resident.announce(pid);
                }
            }
        }
    }

    /// A process runs another program now: look at it again.
    fn executed(&mut self, pid: Pid) {
        match (self.examine)(pid) {
            Ok(mut subject) => {
                // To a daemon's rules it is another one.
                let how = match &mut self.resident {
                    Some(resident) => resident.judge(&mut subject),
                    None => Some(self.usual()),
                };
                let Some(how) = how else { return self.gone(pid) };
                self.targets.retain(|known| *known != pid);
                if let Err(error) = self.add_as(subject, how) {
                    warn!("pid={pid} cannot be traced after its exec: {error}");
                    self.gone(pid);
                }
            }
            Err(error) => {
                if self.targets.contains(&pid) {
                    say(&format!("agent: pid {pid} now runs another program: {error}"));
                }
                self.session.remove_target(pid);
                self.gone(pid);
            }
        }
    }

    fn gone(&mut self, pid: Pid) {
        if !self.targets.contains(&pid) {
            return;
        }
        self.targets.retain(|known| *known != pid);
        self.clusters.retain(|watch| watch.pid() != pid);
        if let Some(lookout) = &mut self.lookout {
            lookout.remove(pid);
        }
        self.session.ended(pid);
        if let Some(resident) = &mut self.resident {
            resident.forget(pid);
            // Its threads' last states are in the records of their ends; what stays of it would fill the maps in time.
            self.session.remove_target(pid);
            if let Some(diagnosis) = &mut self.mission.diagnosis {
                diagnosis.forget(pid.0);
            }
            self.findings.forget(pid.0);
            self.left.push(pid);
        }
        self.feed(Input::TargetGone { pid, now: monotonic_ns() });
    }

    /// Takes this answer, and those that came with it.
    fn answer_all(&mut self, first: Input) {
        self.answer(first);
        for _ in 0..ANSWERS_AT_ONCE {
            let Ok(answer) = self.answers.try_recv() else { return };
            self.answer(answer);
        }
    }

    fn answer(&mut self, answer: Input) {
        self.symbols.answered(&answer);
        self.feed(answer);
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

    /// Detaches, takes in what is left, and adds it up.
    async fn finish(mut self, end: Ending) -> Finished {
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
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.answer(answer),
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

/// What the driver itself must react to.
#[derive(Clone, Copy, Debug)]
enum Life {
    Exited(Pid),
    Executed(Pid),
    /// One that is not traced.
    Began(Pid),
}

/// The ends and the new beginnings of processes in a batch.
fn lives(batch: &Batch) -> Vec<Life> {
    let mut events = Vec::new();
    let mut rest: &[u8] = &batch.bytes;
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let Some((record, tail)) = tail.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        rest = tail;
        let record_kind = record.first_chunk::<4>().map_or(0, |kind| u32::from_le_bytes(*kind));
        if record_kind == kind::PROCESS_EXIT
            && let Ok((exit, _)) = Exit::read_from_prefix(record)
            && exit.header.flags & exit_flag::PROCESS != 0
        {
            events.push(Life::Exited(Pid(exit.header.tgid)));
        } else if record_kind == kind::PROCESS_EXEC
            && let Ok((exec, _)) = Exec::read_from_prefix(record)
        {
            let pid = Pid(exec.header.tgid);
            let is_stranger = exec.header.flags & exec_flag::STRANGER != 0;
            events.push(if is_stranger { Life::Began(pid) } else { Life::Executed(pid) });
        }
    }
    events
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

#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
