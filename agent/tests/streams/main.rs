//! Streams to collectors that are there, slow, away, or give trouble: in the end all books balance, and what should arrive does.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod collector;

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use agent::{
    export::{
        otlp::profiles::proto::ProfilesRequest,
        stream::{
            Compression, OtlpSignal, SpoolConfig, StreamConfig, Streams,
            config::{QueueConfig, RetryConfig, RotateConfig},
        },
    },
    report::{
        Body, Record,
        model::{Profile, ProfileStack, SCHEMA_VERSION, StreamAccount, Warning},
    },
};
use collector::{Answer, Http, Lines};
use prost::Message as _;

fn record(n: usize) -> Record {
    let message = format!("record number {n}");
    Record {
        schema_version: SCHEMA_VERSION,
        time: "2026-01-02T03:04:05.000000006Z".into(),
        pid: 4121,
        body: Body::Warning(Warning { code: "test".into(), message }),
    }
}

/// The numbers of records in lines.
#[track_caller]
fn numbers(lines: &str) -> Vec<usize> {
    let number = |line: &str| {
        let record: Record = serde_json::from_str(line).unwrap();
        let Body::Warning(warning) = record.body else { panic!("{line}") };
        warning.message.rsplit(' ').next().unwrap().parse().unwrap()
    };
    lines.lines().map(number).collect()
}

#[track_caller]
fn assert_all(seen: &[usize], wanted: std::ops::Range<usize>) {
    let seen: BTreeSet<usize> = seen.iter().copied().collect();
    let missing: Vec<usize> = wanted.clone().filter(|n| !seen.contains(n)).collect();
    assert!(missing.is_empty() && seen.len() == wanted.len(), "of {wanted:?} missing {missing:?}");
}

fn config(to: &str) -> StreamConfig {
    StreamConfig {
        retry: RetryConfig { initial_ms: 20, max_ms: 100 },
        timeout_ms: 1000,
        ..StreamConfig::parse(to).unwrap()
    }
}

/// A stream whose books are looked at all the time.
struct Watched {
    streams: Streams,
    stop: Arc<AtomicBool>,
    watcher: std::thread::JoinHandle<u64>,
}

impl Watched {
    #[track_caller]
    fn open(config: StreamConfig) -> Self {
        let streams = Streams::open(&[config]).unwrap();
        let (books, stop) = (streams.books(), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || {
            let mut looks = 0;
            loop {
                // A busy machine may not run this thread before all is over: then that is what it sees.
                let is_last = stopping.load(Ordering::Relaxed);
                for account in books.accounts() {
                    assert!(account.is_balanced(), "{account:?}");
                    looks += 1;
                }
                if is_last {
                    return looks;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { streams, stop, watcher }
    }

    fn send(&mut self, numbers: std::ops::Range<usize>) {
        for n in numbers {
            self.streams.record(&record(n));
        }
    }

    fn account(&self) -> StreamAccount {
        self.streams.counts().remove(0)
    }

    /// Waits until the books say something.
    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn(&StreamAccount) -> bool) {
        let patience = Instant::now() + Duration::from_secs(10);
        while !is_so(&self.account()) {
            assert!(Instant::now() < patience, "never {what}: {:?}", self.account());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn finish(self, patience: Duration) -> StreamAccount {
        let account = self.streams.finish(patience).remove(0);
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.watcher.join().unwrap() > 0);
        assert!(account.is_balanced(), "{account:?}");
        assert_eq!(account.queued, 0, "{account:?}");
        account
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

fn spool(directory: &Path, max_bytes: u64) -> SpoolConfig {
    SpoolConfig { directory: directory.to_owned(), max_bytes }
}

#[test]
fn lines_arrive_over_tcp_also_when_the_collector_comes_late_and_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let address = Lines::listen("127.0.0.1:0").kill();
    let small = QueueConfig { max_records: 50, max_bytes: 1 << 20 };
    let to = format!("tcp://{address}");
    let mut stream =
        Watched::open(StreamConfig { queue: small, spool: Some(spool(directory.path(), 1 << 20)), ..config(&to) });
    // Nobody listens: memory fills, and then the disk takes over.
    for from in (0..200).step_by(20) {
        stream.send(from..from + 20);
        stream.until("room", |account| account.queued <= 25);
    }
    stream.until("spooled", |account| account.spooled > 100 && account.retries > 0);
    let first = Lines::listen(&address.to_string());
    stream.until("delivered", |account| account.delivered == 200);
    let seen = Arc::clone(&first.seen);
    let patience = Instant::now() + PATIENCE;
    while seen.lock().unwrap().len() < 200 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    first.kill();
    // It is noticed before anything is written to a connection that nobody reads.
    let second = Lines::listen(&address.to_string());
    for from in (200..300).step_by(20) {
        stream.send(from..from + 20);
        stream.until("room", |account| account.queued <= 25);
    }
    let account = stream.finish(PATIENCE);
    assert_eq!((account.emitted, account.delivered, account.dropped()), (300, 300, 0), "{account:?}");
    let patience = Instant::now() + PATIENCE;
    while second.seen.lock().unwrap().len() < 100 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut lines: String = seen.lock().unwrap().concat();
    lines.push_str(&second.seen.lock().unwrap().concat());
    assert_all(&numbers(&lines), 0..300);
    second.kill();
}

#[test]
fn a_collector_that_reads_nothing_holds_up_nobody_and_what_is_lost_is_counted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let small = QueueConfig { max_records: 1000, max_bytes: 1 << 20 };
    let to = format!("tcp://{}", listener.local_addr().unwrap());
    let mut stream = Watched::open(StreamConfig { queue: small, ..config(&to) });
    let begin = Instant::now();
    stream.send(0..200_000);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let account = stream.finish(Duration::from_millis(200));
    assert!(account.dropped["queue_full"] > 10_000 && account.dropped["shutdown"] > 0, "{account:?}");
    eprintln!("measured: 200000 records in {took:?} to a collector that does not read");
}

/// A window of one sample, and what ends it.
fn window(n: u64) -> [Record; 2] {
    let stacks = vec![ProfileStack { tid: 4121, samples: n, ..ProfileStack::default() }];
    let profile = Profile { period_ns: 10_101_010, stacks, ..Profile::default() };
    [Body::Profile(profile), Body::Agent(Box::default())].map(|body| Record { body, ..record(0) })
}

#[test]
fn profiles_go_one_a_request_and_no_more_where_there_is_no_place_for_them() {
    let collector = Http::listen(&[Answer::Status(503), Answer::Ok, Answer::Ok, Answer::Ok, Answer::Status(404)]);
    let signals = Some(vec![OtlpSignal::Profiles]);
    let config = config(&format!("otlp+http://{}/base", collector.address));
    let mut stream = Watched::open(StreamConfig { signals, ..config });
    for record in (1..=3).flat_map(window) {
        stream.streams.record(&record);
    }
    stream.until("delivered", |account| account.delivered == 3);
    for n in 4..10 {
        for record in window(n) {
            stream.streams.record(&record);
        }
        stream.until("dropped", |account| account.dropped() == n - 3);
    }
    let account = stream.finish(PATIENCE);
    assert_eq!((account.emitted, account.dropped["unsupported"], account.retries), (9, 6, 1), "{account:?}");
    let requests = collector.requests.lock().unwrap();
    assert_eq!(requests.len(), 5, "nobody is asked again for what it has no place for");
    for request in requests.iter() {
        assert_eq!(request.path, "/base/v1development/profiles");
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(request.header("otlp-profiles-development-version"), Some("1"));
    }
    let sent = |at: usize| {
        let request = ProfilesRequest::decode(requests[at].body.as_slice()).unwrap();
        let [resource] = request.resource_profiles.as_slice() else { panic!("{request:?}") };
        resource.scope_profiles[0].profiles[0].samples[0].values[0]
    };
    assert_eq!([1, 2, 3, 4].map(sent), [1, 2, 3, 4]);
}

#[test]
fn what_is_left_at_the_end_is_sent_by_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    let address = Lines::listen("127.0.0.1:0").kill();
    let config = StreamConfig { spool: Some(spool(directory.path(), 1 << 20)), ..config(&format!("tcp://{address}")) };
    let mut stream = Watched::open(config.clone());
    stream.send(0..100);
    let account = stream.finish(Duration::from_millis(50));
    assert_eq!((account.spooled, account.dropped()), (100, 0), "{account:?}");
    let collector = Lines::listen(&address.to_string());
    let mut stream = Watched::open(config);
    stream.send(100..110);
    let account = stream.finish(PATIENCE);
    assert_eq!((account.recovered, account.emitted, account.delivered), (100, 10, 110), "{account:?}");
    let patience = Instant::now() + PATIENCE;
    while collector.seen.lock().unwrap().len() < 110 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    let lines = collector.seen.lock().unwrap().concat();
    assert_eq!(numbers(&lines), (0..110).collect::<Vec<_>>(), "the oldest come first");
    collector.kill();
}

#[test]
fn http_collectors_that_are_busy_are_asked_again_and_not_before_they_said() {
    let collector = Http::listen(&[Answer::After(429, 1), Answer::Status(503), Answer::CutAfter(100)]);
    let to = format!("http://{}/in?stream=agent", collector.address);
    let mut stream = Watched::open(StreamConfig { compression: Compression::Gzip, ..config(&to) });
    stream.send(0..500);
    stream.until("delivered", |account| account.delivered == 500);
    let account = stream.finish(PATIENCE);
    assert_eq!((account.retries, account.dropped()), (3, 0), "{account:?}");
    let requests = collector.requests.lock().unwrap().clone();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1), "Retry-After is a promise");
    assert_eq!(requests[0].path, "/in?stream=agent");
    assert_eq!(requests[0].header("content-type"), Some("application/x-ndjson"));
    let mut lines = String::new();
    flate2::bufread::MultiGzDecoder::new(collector.accepted().as_slice()).read_to_string(&mut lines).unwrap();
    assert_eq!(numbers(&lines), (0..500).collect::<Vec<_>>());
}

#[test]
fn what_a_collector_will_not_have_is_dropped_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let headers = directory.path().join("headers");
    fs::write(&headers, "Authorization: Bearer secret\n").unwrap();
    let collector = Http::listen(&[Answer::Status(400)]);
    let to = format!("http://{}/", collector.address);
    let mut stream = Watched::open(StreamConfig { headers_file: Some(headers), ..config(&to) });
    stream.send(0..10);
    stream.until("refused", |account| account.dropped() == 10);
    stream.send(10..20);
    let account = stream.finish(PATIENCE);
    assert_eq!((account.dropped["refused"], account.delivered), (10, 10), "{account:?}");
    assert_eq!(collector.requests.lock().unwrap()[1].header("authorization"), Some("Bearer secret"));
    assert_all(&numbers(&String::from_utf8(collector.accepted()).unwrap()), 10..20);
}

#[test]
fn a_collector_that_never_answers_is_given_up_in_time() {
    let collector = Http::listen(&[Answer::Silence]);
    let to = format!("http://{}/", collector.address);
    let mut stream = Watched::open(StreamConfig { timeout_ms: 100, ..config(&to) });
    stream.send(0..10);
    let account = stream.finish(PATIENCE);
    assert_eq!((account.delivered, account.retries), (10, 1), "{account:?}");
}

#[test]
fn a_disk_that_is_full_loses_nothing_that_memory_has_room_for() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(directory.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no tmpfs can be mounted here");
        return;
    }
    let address = Lines::listen("127.0.0.1:0").kill();
    let small = QueueConfig { max_records: 100, max_bytes: 1 << 20 };
    let to = format!("tcp://{address}");
    let mut stream =
        Watched::open(StreamConfig { queue: small, spool: Some(spool(directory.path(), 1 << 30)), ..config(&to) });
    for from in (0..2000).step_by(20) {
        stream.send(from..from + 20);
        std::thread::sleep(Duration::from_millis(1));
    }
    stream.until("full", |account| account.dropped.contains_key("queue_full") && account.queued == 100);
    let before = stream.account();
    assert!(before.spooled > 100, "{before:?}");
    let collector = Lines::listen(&address.to_string());
    let account = stream.finish(PATIENCE);
    assert_eq!(account.delivered, before.spooled + before.queued, "{account:?}");
    let patience = Instant::now() + PATIENCE;
    while (collector.seen.lock().unwrap().len() as u64) < account.delivered && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    let lines = collector.seen.lock().unwrap().concat();
    assert_eq!(numbers(&lines).len() as u64, account.delivered, "each line is whole");
    collector.kill();
    assert!(Command::new("umount").arg(directory.path()).status().unwrap().success());
}

/// rsyslog, as it keeps lines in a file.
struct Rsyslog {
    child: std::process::Child,
    file: PathBuf,
}

impl Rsyslog {
    /// `None`, said aloud, where it is not installed; on CI that is a failure.
    fn start(directory: &Path, address: SocketAddr) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/rsyslog/usr");
        if !root.is_dir() {
            eprintln!("SKIPPED: needs .cache/rsyslog (cargo xtask setup)");
            assert!(std::env::var_os("CI").is_none(), "nothing is skipped on CI");
            return None;
        }
        let (libraries, config, file) =
            (root.join("lib/x86_64-linux-gnu"), directory.join("rsyslog.conf"), directory.join("kept"));
        let text = format!(
            "global(maxMessageSize=\"1m\" workDirectory=\"{}\")\nmodule(load=\"imptcp\")\n\
             template(name=\"line\" type=\"string\" string=\"%rawmsg%\\n\")\n\
             input(type=\"imptcp\" address=\"{}\" port=\"{}\" SupportOctetCountedFraming=\"off\" ruleset=\"keep\")\n\
             ruleset(name=\"keep\") {{ action(type=\"omfile\" file=\"{}\" template=\"line\") }}\n",
            directory.display(),
            address.ip(),
            address.port(),
            file.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(root.join("sbin/rsyslogd"));
        command.arg("-n").arg("-f").arg(&config).arg("-M").arg(libraries.join("rsyslog"));
        command.arg("-i").arg(directory.join("pid")).env("LD_LIBRARY_PATH", &libraries);
        Some(Self { child: command.spawn().unwrap(), file })
    }

    fn lines(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn rsyslog_keeps_each_line_as_it_was_sent() {
    let directory = tempfile::tempdir().unwrap();
    let address = Lines::listen("127.0.0.1:0").kill();
    let mut stream = Watched::open(config(&format!("tcp://{address}")));
    // One that is longer than lines of syslog are, with what syslog gives a meaning to.
    let long = Warning { code: "<34>".into(), message: "\u{fc}\t\"\n<165>1 #011 ".repeat(3_000) };
    let long = Record { body: Body::Warning(long), ..record(0) };
    // It is not there yet.
    stream.streams.record(&long);
    stream.send(0..200);
    let Some(rsyslog) = Rsyslog::start(directory.path(), address) else { return };
    stream.send(200..400);
    let patience = Instant::now() + Duration::from_secs(10);
    while rsyslog.lines().lines().count() < 401 {
        assert!(Instant::now() < patience, "{} lines of 401", rsyslog.lines().lines().count());
        std::thread::sleep(Duration::from_millis(10));
    }
    let account = stream.finish(PATIENCE);
    assert_eq!((account.emitted, account.delivered, account.dropped()), (401, 401, 0), "{account:?}");
    let kept = rsyslog.lines();
    let (first, rest) = kept.split_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Record>(first).unwrap(), long);
    assert_eq!(numbers(rest), (0..400).collect::<Vec<_>>());
}

#[test]
fn files_are_rotated_and_unix_sockets_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.ndjson");
    let rotate = RotateConfig { max_bytes: 8_000, keep: 2 };
    let mut stream =
        Watched::open(StreamConfig { rotate: Some(rotate), ..config(&format!("file:{}", file.display())) });
    for from in (0..300).step_by(10) {
        stream.send(from..from + 10);
        stream.until("written", |account| account.delivered == from as u64 + 10);
    }
    assert_eq!(stream.finish(PATIENCE).delivered, 300);
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    let last: Vec<usize> =
        ["agent.ndjson.2", "agent.ndjson.1", "agent.ndjson"].iter().flat_map(|name| numbers(&read(name))).collect();
    assert_eq!(last, (300 - last.len()..300).collect::<Vec<_>>());
    assert!(read("agent.ndjson.1").len() <= 8_000 && !directory.path().join("agent.ndjson.3").exists());

    let socket = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut stream = Watched::open(config(&format!("unix:{}", socket.display())));
    stream.send(0..10);
    let (mut connection, _) = listener.accept().unwrap();
    assert_eq!(stream.finish(PATIENCE).delivered, 10);
    let mut lines = String::new();
    connection.read_to_string(&mut lines).unwrap();
    assert_all(&numbers(&lines), 0..10);
}

#[test]
fn tls_is_spoken_and_only_with_whom_is_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&ca_file, made.cert.pem()).unwrap();
    let collector = Lines::listen_tls(&made);
    let to = format!("tls://localhost:{}", collector.address.port());

    let mut stream = Watched::open(StreamConfig { ca_file: Some(ca_file.clone()), ..config(&to) });
    stream.send(0..50);
    let account = stream.finish(PATIENCE);
    assert_eq!((account.delivered, account.dropped()), (50, 0), "{account:?}");
    let patience = Instant::now() + PATIENCE;
    while collector.seen.lock().unwrap().len() < 50 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_all(&numbers(&collector.seen.lock().unwrap().concat()), 0..50);

    // Somebody else's certificate.
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&ca_file, other.cert.pem()).unwrap();
    let mut stream = Watched::open(StreamConfig { ca_file: Some(ca_file), ..config(&to) });
    stream.send(50..60);
    stream.until("refused by us", |account| account.retries > 0);
    assert_eq!(stream.finish(Duration::from_millis(50)).dropped["shutdown"], 10);
    collector.kill();
}
