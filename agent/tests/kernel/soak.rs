//! Many processes, and many that come and go: all are met, and nothing of them stays.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    collector::Http,
    harness::{Process, VERSION, VERSIONS, Workload, bench, node, patience, read, say, script, slowness},
    records::{Records, text},
    resident::{Daemon, LIMIT},
    scrape::{free_address, get},
};

/// Begins and ends so many programs a second, for as long as it lives.
struct Storm {
    stop: AtomicBool,
    begun: AtomicU32,
}

impl Storm {
    const A_SECOND: u32 = 500;

    fn rage(&self) {
        const STEP: Duration = Duration::from_millis(20);
        let begin = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let due = (begin.elapsed().as_secs_f64() * f64::from(Self::A_SECOND)) as u32;
            while self.begun.load(Ordering::Relaxed) < due {
                assert!(Command::new("/bin/true").stdin(Stdio::null()).status().unwrap().success());
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(STEP);
        }
    }
}

#[test]
fn a_burst_of_processes_is_met_whole_and_leaves_nothing() {
    let Some(bench) = bench() else { return };
    let (many, lasting) = std::env::var("AGENT_TEST_BURST")
        .map_or((30, Duration::ZERO), |many| (many.parse().unwrap(), Duration::from_mins(1)));
    let mut daemon = Daemon::start(&bench, "burst");
    let empty = daemon.entries();
    let storm = Storm { stop: AtomicBool::new(false), begun: AtomicU32::new(0) };
    let mut left = Vec::new();
    let mut memory = 0;
    let since = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| storm.rage());
        for _generation in 0..2 {
            let command = || Process::spawn(Command::new(node(VERSION)).arg(script("burst.js")));
            let all: Vec<Process> = (0..many).map(|_| command()).collect();
            let pids: BTreeSet<u64> = all.iter().map(|process| u64::from(process.pid())).collect();
            daemon.await_all("target", &pids);
            daemon.await_all("window", &pids);
            memory = memory.max(daemon.status("VmRSS"));
            drop(all);
            daemon.await_all("process", &pids);
            // The last window of all is closed.
            thread::sleep(Duration::from_millis(1500));
            left.push((daemon.descriptors(), daemon.entries()));
        }
        thread::sleep(lasting.saturating_sub(since.elapsed()));
        storm.stop.store(true, Ordering::Relaxed);
    });
    let begun = storm.begun.load(Ordering::Relaxed);
    say(&format!(
        "measured daemon: twice {many} processes and {begun} short ones in {:.1?}; {memory} kB at most, {} and {} descriptors left",
        since.elapsed(),
        left[0].0,
        left[1].0
    ));
    for (_, entries) in &left {
        assert_eq!(*entries, empty, "entries of maps that are left");
    }
    // A library stays open in which a stack was seen; that may be for the first time.
    assert!(left[1].0 <= left[0].0 + 6, "descriptors: {} after the first, {} after the second", left[0].0, left[1].0);
    assert!(memory < 150_000, "{memory} kB");
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success());
    crate::stream::assert_balanced(&Records::read(&daemon.ndjson));
}

#[test]
fn thousands_of_short_lived_processes_cost_nothing_lasting() {
    let Some(bench) = bench() else { return };
    let daemon = Daemon::start(&bench, "storm");
    let storm = |seconds: u64| {
        let (start, mut begun) = (Instant::now(), 0u32);
        while start.elapsed() < Duration::from_secs(seconds) {
            assert!(Command::new("/bin/true").status().unwrap().success());
            begun += 1;
        }
        begun
    };
    // Among them, Node.js: those that live on are met, however many are around them.
    let meet = || {
        let workload = Workload::with(Command::new(node(VERSION)).arg(script("mixed.js")));
        storm(1);
        let pid = workload.pid();
        daemon.await_line(pid, "window", 1);
        drop(workload);
        daemon.await_end(pid);
        // The last window is closed.
        thread::sleep(Duration::from_millis(1200));
        (daemon.status("VmRSS"), daemon.descriptors())
    };
    // Once before it counts: what is known of the program, and the probes in its file, stay for the next one that runs it.
    let (memory, descriptors) = meet();
    let begun = storm(7);
    let (memory_after, descriptors_after) = meet();
    say(&format!(
        "measured daemon: {begun} programs in 7 s; {memory} kB before, {memory_after} kB after; {descriptors} descriptors, then {descriptors_after}"
    ));
    assert!(memory_after < memory + 20_000, "{memory} kB grew to {memory_after} kB");
    // A library stays open in which a stack was seen; that may be for the first time.
    assert!(descriptors_after <= descriptors + 6, "{descriptors} grew to {descriptors_after}");
    let mut daemon = daemon;
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success());
    let records = Records::read(&daemon.ndjson);
    crate::stream::assert_balanced(&records);
}

/// What a daemon holds at a moment.
const HELD: [&str; 7] = ["kB of memory", "descriptors", "BPF maps", "BPF programs", "BPF links", "threads", "series"];

/// What each may grow by from the middle to the end, where nothing leaks: what differs from one look to the next. Memory is the
/// allocator's, and has caches that fill; two processes more are three hundred series.
const GROWTH_MAX: [f64; HELD.len()] = [3_000.0, 4.0, 0.0, 1.0, 4.0, 2.0, 300.0];
/// Beside that, in a short run, each process may leave so many kB: ten minutes of it would show it.
const MEMORY_A_PROCESS_MAX: f64 = 20.0;

fn held(daemon: &Daemon, metrics: SocketAddr) -> [f64; HELD.len()] {
    let (mut maps, mut programs, mut links) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", daemon.process.pid())).unwrap().flatten() {
        let info = read(entry.path());
        let id = |key: &str| info.lines().find_map(|line| line.strip_prefix(key)).map(|id| id.trim().to_owned());
        if let Some(link) = id("link_id:") {
            links.insert(link);
        } else if let Some(map) = id("map_id:") {
            maps.insert(map);
        } else if let Some(program) = id("prog_id:") {
            programs.insert(program);
        }
    }
    let counts = [daemon.descriptors(), maps.len(), programs.len(), links.len()].map(|count| count as f64);
    let [descriptors, maps, programs, links] = counts;
    let (memory, threads) = (daemon.status("VmRSS") as f64, daemon.status("Threads") as f64);
    [memory, descriptors, maps, programs, links, threads, series(metrics) as f64]
}

/// How many series Prometheus would read.
fn series(metrics: SocketAddr) -> usize {
    let text = get(metrics, "/metrics").expect("metrics");
    text.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase())).count()
}

/// Figures that come and go: with what is affordable and suspected, links, their descriptors, and for a moment threads that take them off.
/// Each probe has a link of its own on kernels before 6.6.
const SWINGS: [usize; 3] = [1, 4, 5];

/// When it was, in seconds, and what was held then.
type Look = (f64, [f64; HELD.len()]);

/// How much a figure grows over all looks, by a straight line through them.
fn growth(looks: &[Look], figure: usize) -> f64 {
    let n = looks.len() as f64;
    let mean = |of: &dyn Fn(&Look) -> f64| looks.iter().map(of).sum::<f64>() / n;
    let (at, value) = (mean(&|look| look.0), mean(&|look| look.1[figure]));
    let square = mean(&|look| (look.0 - at).powi(2));
    let slope = mean(&|look| (look.0 - at) * (look.1[figure] - value)) / square;
    slope * (looks[looks.len() - 1].0 - looks[0].0)
}

/// Node.js processes that live for two seconds each, three a second, or longer and fewer where the machine is slow: half are killed, half end, some have a worker, and they run
/// different programs. `AGENT_TEST_SOAK` says for how many seconds.
#[test]
fn a_host_where_processes_come_and_go_leaves_nothing_in_the_daemon() {
    const ALIVE: usize = 6;
    let Some(bench) = bench() else { return };
    let every = patience(Duration::from_millis(333));
    let seconds =
        std::env::var("AGENT_TEST_SOAK").map_or(20, |seconds| seconds.parse().unwrap()) * u64::from(slowness());
    let collector = Http::listen(&[]);
    let metrics = free_address();
    let rules = format!(
        "[metrics]\nlisten = \"{metrics}\"\n[[stream]]\ntype = \"otlp\"\nto = \"http://{}\"\n\
         signals = [\"metrics\", \"logs\", \"profiles\"]\n",
        collector.address
    );
    let mut daemon = Daemon::configured(&bench, "soak", &rules, &[]);
    let empty = daemon.entries();
    let (begin, span) = (Instant::now(), Duration::from_secs(seconds));
    let (mut alive, mut pids, mut looks) = (VecDeque::new(), BTreeSet::new(), Vec::new());
    // Every program some times before it counts: its symbols stay, and it may take until its second stack for them to be read.
    let look_every = (span / 60).max(Duration::from_millis(500));
    let mut look_due = span / 2;
    for turn in 0_u32.. {
        let age = begin.elapsed();
        if age >= span {
            break;
        }
        let mut command = Command::new(node(VERSIONS[turn as usize % VERSIONS.len()]));
        command.arg(script("soak.js")).args((turn % 4 == 0).then_some("worker"));
        let process = Process::spawn(&mut command);
        pids.insert(u64::from(process.pid()));
        alive.push_back(process);
        if alive.len() > ALIVE
            && let Some(mut oldest) = alive.pop_front()
            && turn % 2 == 0
        {
            oldest.close_stdin();
            assert!(oldest.wait(LIMIT).success(), "{}", oldest.err_text());
        }
        if age >= look_due {
            looks.push((age.as_secs_f64(), held(&daemon, metrics)));
            look_due += look_every;
        }
        // The collector's memory is ours.
        collector.requests.lock().unwrap().clear();
        thread::sleep((begin + every * (turn + 1)).saturating_duration_since(Instant::now()));
    }
    daemon.await_all("window", &alive.iter().map(|process| u64::from(process.pid())).collect());
    drop(alive);
    // The last window of all is closed.
    thread::sleep(Duration::from_millis(2500));
    let left = daemon.entries();
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success(), "{}", daemon.process.err_text());
    let mut grown: Vec<f64> = (0..HELD.len()).map(|figure| growth(&looks, figure)).collect();
    // Memory grows by a step where the symbols of one more program are read, late on a busy machine. What leaks does so in either half.
    let (early, late) = looks.split_at(looks.len() / 2);
    grown[0] = 2.0 * growth(early, 0).min(growth(late, 0));
    let floor = |looks: &[Look], figure: usize| looks.iter().map(|look| look.1[figure]).fold(f64::INFINITY, f64::min);
    for figure in SWINGS {
        grown[figure] = floor(late, figure) - floor(early, figure);
    }
    say(&format!("measured soak: {} processes in {seconds} s, {} looks from the middle on", pids.len(), looks.len()));
    let mut too_much = Vec::new();
    for (figure, name) in HELD.into_iter().enumerate() {
        let (first, last) = (looks[0].1[figure], looks[looks.len() - 1].1[figure]);
        let most = looks.iter().map(|look| look.1[figure]).fold(0.0, f64::max);
        let mut allowed = GROWTH_MAX[figure];
        if figure == 0 && seconds < 120 {
            allowed += MEMORY_A_PROCESS_MAX * pids.len() as f64;
        }
        let line = format!(
            "{name}: {first} at first, {last} at last, {most} at most, grown by {:.1} (allowed {allowed})",
            grown[figure]
        );
        say(&format!("measured soak: {line}"));
        if grown[figure] > allowed {
            too_much.push(line);
        }
    }
    assert!(too_much.is_empty(), "{too_much:#?}");
    let differs = |(name, entries): (&String, &usize)| empty.get(name).is_none_or(|before| before < entries);
    let kept: BTreeMap<&String, &usize> = left.iter().filter(|entry| differs(*entry)).collect();
    assert!(kept.is_empty(), "entries of maps that are left: {kept:?}, of {empty:?}");
    let records = Records::read(&daemon.ndjson);
    crate::stream::assert_balanced(&records);
    let met: BTreeSet<u64> = records.of_type("target").filter_map(|target| target["pid"].as_u64()).collect();
    let missed: Vec<&u64> = pids.difference(&met).collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
    let ends = records.of_type("process").filter(|record| ["exit", "gone"].contains(&text(record, "event"))).count();
    assert!(ends >= pids.len(), "{ends} ends of {}", pids.len());
}
