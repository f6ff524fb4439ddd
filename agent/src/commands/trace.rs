//! `agent trace`: from a pid to a report.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    pin::pin,
    time::Duration,
};

use agent_ebpf::{
    abi::{
        family, kind,
        process::{Exec, Exit, exit_flag},
    },
    spec::{Group, Part},
};
use log::{info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use zerocopy::FromBytes;

use super::{
    asleep, diagnose,
    launch::Launched,
    lookout::Lookout,
    session::{PhasesWanted, Session, SessionError},
    sinks::{Destinations, Sinks},
    subject::{self, Subject, SubjectError},
    symbols::Symbols,
};
use crate::{
    cli::{Format, Phases, TraceArgs, exit},
    core::{Core, Input, Output, Tick},
    diagnose::{Diagnosis, Thresholds},
    export::text::{self, Style},
    intake::Batch,
    probe::{attach::Settings, maps::monotonic_ns, tracefs},
    report::{
        Record,
        model::{Body, EndReason, TraceConfig},
        summary::Summary,
    },
    units::Pid,
};

/// How long the end of a trace waits for names that are still being looked up, and a window for classes of work.
const NAMES_PATIENCE: Duration = Duration::from_secs(3);

/// When the rate of turns is first looked at: two looks of the intake, and enough turns to count.
const EARLY: Duration = Duration::from_millis(120);

/// How often heaps are looked at: what is the least in a window is near what the last collection left.
const GLANCE: Duration = Duration::from_millis(250);

/// A ring with so much in it wakes its reader, who else comes by at his own pace.
const WAKEUP_BYTES: u64 = 64 << 10;

/// Longer than any trace, and short enough for the clock.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// Default thresholds of stays off CPU: event-loop threads, and all others.
const LOOP_OFF_CPU_MIN: Duration = Duration::from_micros(100);
const OTHER_OFF_CPU_MIN: Duration = Duration::from_millis(1);

#[derive(Debug, thiserror::Error)]
enum TraceError {
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("{0}")]
    Output(String),
    #[error("cannot start {command}: {source}")]
    Launch { command: String, source: std::io::Error },
    #[error("the runtime could not start: {0}")]
    Runtime(#[source] std::io::Error),
}

impl TraceError {
    fn code(&self) -> u8 {
        match self {
            Self::Subject(error) if error.is_denied() => exit::NOT_ALLOWED,
            Self::Subject(_) => exit::NO_TARGET,
            Self::Session(_) => exit::NOT_ALLOWED,
            Self::Output(_) | Self::Launch { .. } | Self::Runtime(_) => exit::FAILED,
        }
    }
}

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &TraceArgs) -> u8 {
    run_for(args, &Purpose::default())
}

/// What a trace is made for.
#[derive(Clone, Debug, Default)]
pub struct Purpose {
    /// Only what is wrong is wanted, of these processes.
    pub diagnose: Option<Vec<Pid>>,
    pub thresholds: Thresholds,
}

/// Runs a trace and returns the exit code.
#[must_use]
pub fn run_for(args: &TraceArgs, purpose: &Purpose) -> u8 {
    // Before there is a second thread: mount namespaces belong to threads.
    if let Err(error) = tracefs::ensure() {
        warn!("{error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TraceError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(trace(args, purpose))) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("agent: {error}"));
            error.code()
        }
    }
}

async fn trace(args: &TraceArgs, purpose: &Purpose) -> Result<u8, TraceError> {
    let launched = match args.run.split_first() {
        None => None,
        Some((program, _)) => Some(
            Launched::prepare(&args.run).map_err(|source| TraceError::Launch { command: program.clone(), source })?,
        ),
    };
    let subjects = match (&launched, args.pid, &purpose.diagnose) {
        (Some(launched), _, _) => vec![launched.subject()?],
        (None, Some(pid), _) => vec![subject::examine(Pid(pid))?],
        (None, None, Some(pids)) => pids.iter().map(|pid| subject::examine(*pid)).collect::<Result<_, _>>()?,
        (None, None, None) => return Err(TraceError::Output("nothing to trace: give --pid or a command".into())),
    };
    let destinations = destinations(args, purpose);
    let sinks = Sinks::open(&destinations).map_err(TraceError::Output)?;
    let session = Session::start(&settings(args, purpose), &[Group::Gc, Group::Pool], phases(args.phases))?;
    let mut driver = Driver::new(args, session, sinks)?;
    driver.diagnosis = Diagnosis::new(purpose.thresholds);
    driver.diagnoses = purpose.diagnose.is_some();
    for subject in subjects {
        driver.add(subject)?;
    }
    if let Some(launched) = launched {
        launched.go();
    }
    let end = driver.run(args.duration).await?;
    Ok(driver.finish(end, &destinations).await)
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
    lookout: Lookout,
    diagnosis: Diagnosis,
    /// Only what is wrong is wanted.
    diagnoses: bool,
    targets: Vec<Pid>,
    /// Turns that have ended, over all threads: the governor's measure.
    turns: u64,
    window: Duration,
    config: TraceConfig,
    follow: bool,
    live: bool,
    quiet: bool,
}

impl Driver {
    fn new(args: &TraceArgs, session: Session, sinks: Sinks) -> Result<Self, TraceError> {
        let (to_core, answers) = mpsc::unbounded_channel();
        let symbols = Symbols::start(to_core)
            .map_err(|error| TraceError::Output(format!("cannot start the symbol thread: {error}")))?;
        let settings = settings(args, &Purpose::default());
        Ok(Self {
            core: Core::new(),
            session,
            sinks,
            symbols,
            answers,
            summary: Summary::default(),
            lookout: Lookout::default(),
            diagnosis: Diagnosis::default(),
            diagnoses: false,
            targets: Vec::new(),
            turns: 0,
            window: args.window,
            config: TraceConfig {
                window_ns: nanoseconds(args.window),
                slow_turn_ns: nanoseconds(args.slow_turn),
                loop_off_cpu_min_ns: nanoseconds(settings.loop_off_cpu_min),
                other_off_cpu_min_ns: nanoseconds(settings.other_off_cpu_min),
                sample_hz: settings.sample_hz,
                ..TraceConfig::default()
            },
            follow: args.follow,
            live: !args.quiet && std::io::stderr().is_terminal(),
            quiet: args.quiet,
        })
    }

    /// Begins to trace a process.
    fn add(&mut self, subject: Subject) -> Result<(), TraceError> {
        let pid = subject.pid;
        for file in subject.files {
            self.session.add_file(file)?;
        }
        self.session.add_target(pid, subject.functions, subject.handle_space, self.follow)?;
        self.lookout.add(pid, subject.heaps);
        let mut facts = subject.facts;
        facts.since = monotonic_ns();
        self.session.add_threads(&asleep::states(pid, facts.since));
        facts.clock = subject::clock();
        facts.config = self.config;
        facts.degraded.extend(self.session.degraded.iter().cloned());
        self.targets.push(pid);
        if !self.quiet {
            say(&format!("agent: tracing pid {pid} ({}); Ctrl-C ends it with a report", facts.command.join(" ")));
        }
        info!("pid={pid} attached by {}", self.session.way.name());
        self.feed(Input::Target(Box::new(facts)));
        self.session.cover(pid, subject.v8);
        Ok(())
    }

    /// Until the time is up, a signal comes, or nothing is left to trace.
    async fn run(&mut self, duration: Option<Duration>) -> Result<Ending, TraceError> {
        let begin = Instant::now();
        let deadline = duration.map(|duration| begin + duration);
        let mut windows = interval_at(begin + self.window, self.window);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut glances = interval_at(begin + GLANCE, GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(TraceError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(TraceError::Runtime)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(TraceError::Runtime)?;
        let mut early = pin!(sleep_until(begin + EARLY));
        let mut is_early = true;
        let mut out = pin!(sleep_until(deadline.unwrap_or_else(|| begin + FOREVER)));
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: exit::INTERRUPTED }),
                _ = terminate.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: exit::TERMINATED }),
                _ = hangup.recv() => return Ok(Ending { reason: EndReason::Interrupted, code: exit::TERMINATED }),
                () = &mut out => return Ok(Ending { reason: EndReason::Duration, code: exit::OK }),
                () = &mut early, if is_early => {
                    is_early = false;
                    self.session.govern_early(self.turns, EARLY);
                }
                _ = windows.tick() => self.tick().await?,
                _ = glances.tick() => self.lookout.glance(&self.session),
                Some(answer) = self.answers.recv() => self.answer(answer),
                Some(batch) = self.session.batches.recv() => self.take(batch),
            }
            if self.targets.is_empty() {
                return Ok(Ending { reason: EndReason::TargetsGone, code: exit::OK });
            }
            if self.sinks.is_finished() {
                return Ok(Ending { reason: EndReason::OutputClosed, code: exit::FAILED });
            }
        }
    }

    /// Ends a window: reads the maps, empties the rings, tells the core.
    async fn tick(&mut self) -> Result<(), TraceError> {
        for pid in self.targets.clone() {
            if !subject::exists(pid) {
                self.gone(pid);
            }
        }
        let tick = self.session.snapshot(monotonic_ns())?;
        self.close_window(tick).await;
        self.session.govern(self.turns, self.window);
        Ok(())
    }

    async fn close_window(&mut self, mut tick: Tick) {
        self.drain().await;
        self.session.settle(&mut tick);
        self.await_classes().await;
        self.look(&tick);
        tick.thread_names = subject::thread_names(&self.targets);
        self.feed(Input::Tick(Box::new(tick)));
    }

    /// What each process holds as the window ends.
    fn look(&mut self, tick: &Tick) {
        let memories = self.lookout.look(&mut self.session, &tick.threads);
        let (handles, scopes) = self.lookout.suspect(&memories);
        self.session.watch(handles);
        self.session.watch_scopes(scopes);
        for (pid, memory) in memories {
            self.feed(Input::Memory { pid, now: tick.now, memory: Box::new(memory) });
        }
    }

    /// Waits for the classes of the window's work, each of which is asked for once: nothing else is taken in meanwhile.
    async fn await_classes(&mut self) {
        let patience = Instant::now() + NAMES_PATIENCE;
        while self.symbols.pending_classes() > 0 {
            tokio::select! {
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.answer(answer),
                    None => return,
                },
                () = sleep_until(patience) => return,
            }
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
        }
        while let Ok(batch) = self.session.batches.try_recv() {
            self.take(batch);
        }
    }

    fn take(&mut self, batch: Batch) {
        self.session.count(&batch);
        if batch.family == family::EVENT_LOOP {
            self.turns += batch.count;
        }
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
        }
    }

    /// A process runs another program now: look at it again.
    fn executed(&mut self, pid: Pid) {
        match subject::examine(pid) {
            Ok(subject) => {
                self.targets.retain(|known| *known != pid);
                if let Err(error) = self.add(subject) {
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
        self.lookout.remove(pid);
        self.feed(Input::TargetGone { pid, now: monotonic_ns() });
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
        for finding in self.diagnosis.before(record) {
            self.summary.add(&finding);
            self.sinks.record(&finding);
        }
        self.summary.add(record);
        self.sinks.record(record);
        if self.live
            && !self.diagnoses
            && matches!(record.body, Body::Window(_))
            && let Some(line) = text::live_line(record, style(false))
        {
            say(&line);
        }
    }

    /// Detaches, takes in what is left, and writes the report.
    async fn finish(mut self, end: Ending, destinations: &Destinations) -> u8 {
        // Before the targets are quiet: from then on the kernel half follows their threads no more.
        let now = monotonic_ns();
        for pid in &self.targets {
            self.session.quiet_target(*pid);
        }
        let tick = self.session.snapshot(now);
        let detaching = std::time::Instant::now();
        self.session.detach();
        info!("detached in {:?}", detaching.elapsed());
        match tick {
            Ok(tick) => self.close_window(tick).await,
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
        let Self { sinks, summary, symbols, diagnoses, .. } = self;
        symbols.finish();
        let outcome = sinks.finish();
        let mut code = end.code;
        if outcome.stdout_closed {
            say("agent: standard output was closed by its reader; the trace ended there");
            code = exit::FAILED;
        } else if !outcome.failures.is_empty() {
            code = exit::FAILED;
        }
        if diagnoses && code == exit::OK {
            code = diagnose::code(&summary);
        }
        let written = match &destinations.text {
            Some(path) if diagnoses => diagnose::write(path, destinations.findings, &summary),
            Some(path) => write_text(path, &summary),
            None => Ok(()),
        };
        if let Err(error) = written {
            say(&format!("agent: {error}"));
            code = exit::FAILED;
        }
        code
    }
}

/// What the driver itself must react to.
#[derive(Clone, Copy, Debug)]
enum Life {
    Exited(Pid),
    Executed(Pid),
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
            events.push(Life::Executed(Pid(exec.header.tgid)));
        }
    }
    events
}

fn settings(args: &TraceArgs, purpose: &Purpose) -> Settings {
    Settings {
        loop_off_cpu_min: args.off_cpu_threshold.unwrap_or(LOOP_OFF_CPU_MIN),
        other_off_cpu_min: args.off_cpu_threshold.unwrap_or(OTHER_OFF_CPU_MIN),
        ring_bytes: args.ring_size,
        parts: if purpose.diagnose.is_some() {
            &[Part::Ledger, Part::Life, Part::IoUring, Part::Samples, Part::Faults]
        } else {
            &[Part::Ledger, Part::Life, Part::IoUring, Part::Samples]
        },
        sample_hz: args.sample_hz,
        bounded_loops: args.bounded_loops,
        wakeup_bytes: WAKEUP_BYTES,
    }
}

fn phases(phases: Phases) -> PhasesWanted {
    match phases {
        Phases::Auto => PhasesWanted::Auto,
        Phases::Always => PhasesWanted::Always,
        Phases::Never => PhasesWanted::Never,
    }
}

/// Where what goes: the format is what was asked for, else what the file's name says, else text.
fn destinations(args: &TraceArgs, purpose: &Purpose) -> Destinations {
    let by_name =
        args.output.extension().is_some_and(|ending| ending == "ndjson" || ending == "jsonl" || ending == "json");
    let format = args.format.unwrap_or(if by_name { Format::Ndjson } else { Format::Text });
    let mut destinations = Destinations {
        ndjson: args.ndjson.clone().into_iter().collect(),
        recording: args.recording.clone(),
        text: None,
        findings: Format::Text,
    };
    destinations.findings = format;
    match format {
        _ if purpose.diagnose.is_some() => destinations.text = Some(args.output.clone()),
        Format::Text => destinations.text = Some(args.output.clone()),
        Format::Ndjson => destinations.ndjson.push(args.output.clone()),
    }
    destinations
}

/// How to print: as wide as the terminal, with colours where somebody sees them.
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

/// Writes the report where it was asked for.
pub fn write_text(path: &Path, summary: &Summary) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot write the report: {error}");
    if path == Path::new("-") {
        let text = text::render(summary, style(true));
        let mut out = std::io::stdout().lock();
        return out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(fail);
    }
    std::fs::write(path, text::render(summary, Style::default())).map_err(fail)
}

/// Talk goes to standard error; where even that is closed, nobody is there to talk to.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
