//! Writes what the core puts out, on a thread of its own: a slow disk or pipe holds up nobody else.
//!
//! A sink that fails is closed, said so once, and the others go on: a full disk costs the file, not the report.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufWriter, Write},
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use log::{error, info, warn};

use crate::{
    core::Input,
    export::{
        bunyan, ndjson, recording,
        serve::{Server, Shown},
        stream::{Books, StreamConfig, StreamFormat, Streams},
    },
    report::{Record, model::StreamAccount},
};

/// Bundles that may wait for a slow disk.
const QUEUE_LEN: usize = 64;
/// Messages in a bundle; a record is about a kilobyte. Each bundle wakes the writer, which costs more than what it writes.
const BUNDLE_LEN: usize = 64;

/// How long records wait for others at most: to wake the writer costs more than what it writes.
const PACE: Duration = Duration::from_millis(50);

/// How long streams may take for what is left at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// What the writer is told.
enum Message {
    Record(Box<Record>),
    Input(Box<Input>),
}

/// Where records and inputs go.
#[derive(Default)]
pub struct Destinations {
    /// Newline-delimited JSON; `-` is standard output.
    pub ndjson: Vec<PathBuf>,
    /// Those files are a daemon's: it goes on where its last run ended, and nobody else writes to them meanwhile.
    pub goes_on: bool,
    /// Records for `bunyan`.
    pub bunyan: Option<PathBuf>,
    /// Where what Prometheus scrapes is served.
    pub listen: Option<SocketAddr>,
    /// To collectors.
    pub streams: Vec<StreamConfig>,
    pub recording: Option<PathBuf>,
    /// The report for a person, which is written at the end and not by the writer thread.
    pub text: Option<PathBuf>,
}

/// What became of the sinks.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Standard output was closed by its reader.
    pub stdout_closed: bool,
    /// Sinks that failed, and streams that lost something.
    pub failures: Vec<String>,
}

/// The writer thread.
pub struct Sinks {
    bundles: SyncSender<Vec<Message>>,
    /// Not sent yet.
    bundle: Vec<Message>,
    /// From when on it may be.
    due: Instant,
    thread: JoinHandle<Outcome>,
    books: Books,
    has_recording: bool,
    has_records: bool,
}

type Output = BufWriter<Box<dyn Write + Send>>;

struct Sink<W> {
    name: String,
    writer: W,
    is_stdout: bool,
    format: StreamFormat,
}

impl Sinks {
    /// Opens every file now, so that a bad path is an error before anything is attached.
    pub fn open(to: &Destinations) -> Result<Self, String> {
        let mut lines = Vec::new();
        let formats = to.ndjson.iter().map(|path| (path, StreamFormat::Ndjson));
        for (path, format) in formats.chain(to.bunyan.iter().map(|path| (path, StreamFormat::Bunyan))) {
            let file = if to.goes_on && !is_stdout(path) { go_on(path) } else { open(path) };
            let writer: Output = BufWriter::new(file?);
            lines.push(Sink { name: display(path), writer, is_stdout: is_stdout(path), format });
        }
        let mut streams = Streams::open(&to.streams).map_err(|error| error.to_string())?;
        let books = streams.books();
        let recording = match &to.recording {
            None => None,
            Some(path) => {
                let writer = recording::Writer::new(BufWriter::new(open(path)?))
                    .map_err(|error| format!("cannot write {}: {error}", display(path)))?;
                Some(Sink { name: display(path), writer, is_stdout: is_stdout(path), format: StreamFormat::Ndjson })
            }
        };
        let shown = to.listen.map(serve).transpose()?;
        let (bundles, inbox) = sync_channel(QUEUE_LEN);
        let (has_recording, has_records) =
            (recording.is_some(), !lines.is_empty() || !streams.is_empty() || shown.is_some());
        let thread = std::thread::Builder::new()
            .name("agent-export".into())
            .spawn(move || {
                let mut outcome = write_all(&inbox, lines, recording, &mut streams, shown.as_deref());
                for account in streams.finish(DRAIN) {
                    outcome.streamed(&account);
                }
                outcome
            })
            .map_err(|error| format!("cannot start the writer thread: {error}"))?;
        Ok(Self { bundles, bundle: Vec::new(), due: Instant::now(), thread, books, has_recording, has_records })
    }

    pub fn record(&mut self, record: &Record) {
        if self.has_records {
            self.put(Message::Record(Box::new(record.clone())));
        }
    }

    pub fn input(&mut self, input: &Input) {
        if self.has_recording {
            self.put(Message::Input(Box::new(input.clone())));
        }
    }

    fn put(&mut self, message: Message) {
        self.bundle.push(message);
        if self.bundle.len() >= BUNDLE_LEN {
            self.flush();
        }
    }

    /// When what was put is to be sent, if there is anything.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (!self.bundle.is_empty()).then_some(self.due)
    }

    /// Sends what was put, if that is due: to be called whenever nothing more comes at once.
    pub fn flush_due(&mut self) {
        if self.due <= Instant::now() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.bundle.is_empty() {
            self.due = Instant::now() + PACE;
            // A writer that is gone is found by `is_finished`.
            let _ = self.bundles.send(std::mem::take(&mut self.bundle));
        }
    }

    /// The books of the streams, as they are now.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamAccount> {
        self.books.accounts()
    }

    /// Whether the writer has given up, which it does when standard output is closed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until everything is written.
    #[must_use]
    pub fn finish(mut self) -> Outcome {
        self.flush();
        drop(self.bundles);
        self.thread.join().unwrap_or_else(|_| Outcome {
            stdout_closed: false,
            failures: vec!["the writer thread panicked; its files may be cut short".into()],
        })
    }
}

fn write_all(
    inbox: &Receiver<Vec<Message>>,
    mut lines: Vec<Sink<Output>>,
    mut recording: Option<Sink<recording::Writer<Output>>>,
    streams: &mut Streams,
    shown: Option<&Shown>,
) -> Outcome {
    let mut outcome = Outcome::default();
    while let Ok(bundle) = inbox.try_recv().or_else(|empty| match empty {
        // Nothing more for now: what is written shall be seen.
        TryRecvError::Empty => {
            keep(&mut lines, &mut outcome, |sink| sink.writer.flush());
            inbox.recv().map_err(|_| TryRecvError::Disconnected)
        }
        TryRecvError::Disconnected => Err(TryRecvError::Disconnected),
    }) {
        for message in bundle {
            match message {
                Message::Record(record) => {
                    streams.record(&record);
                    if let Some(shown) = shown {
                        shown.record(&record);
                    }
                    keep(&mut lines, &mut outcome, |sink| match sink.format {
                        StreamFormat::Bunyan => bunyan::write_record(&mut sink.writer, &record),
                        StreamFormat::Ndjson | StreamFormat::Otlp => ndjson::write_record(&mut sink.writer, &record),
                    });
                }
                Message::Input(input) => {
                    if let Some(sink) = &mut recording
                        && let Err(error) = sink.writer.write(&input)
                    {
                        outcome.fail(&sink.name, sink.is_stdout, &error);
                        recording = None;
                    }
                }
            }
        }
        if outcome.stdout_closed {
            return outcome;
        }
    }
    keep(&mut lines, &mut outcome, |sink| sink.writer.flush());
    if let Some(sink) = &mut recording
        && let Err(error) = sink.writer.flush()
    {
        outcome.fail(&sink.name, sink.is_stdout, &error);
    }
    outcome
}

fn serve(listen: SocketAddr) -> Result<Arc<Shown>, String> {
    let server = Server::start(listen).map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    info!("/metrics, /healthz and /readyz on http://{}", server.address);
    Ok(server.shown)
}

/// Does something to each sink and drops those that fail.
fn keep<W>(sinks: &mut Vec<Sink<W>>, outcome: &mut Outcome, mut act: impl FnMut(&mut Sink<W>) -> io::Result<()>) {
    sinks.retain_mut(|sink| match act(sink) {
        Ok(()) => true,
        Err(error) => {
            outcome.fail(&sink.name, sink.is_stdout, &error);
            false
        }
    });
}

impl Outcome {
    /// The last books of a stream.
    fn streamed(&mut self, account: &StreamAccount) {
        let StreamAccount { stream, emitted, recovered, delivered, spooled, queued, dropped: _, retries } = account;
        let lost = account.dropped() + queued;
        info!(
            "stream={stream} emitted={emitted} recovered={recovered} delivered={delivered} spooled={spooled} lost={lost} \
             retries={retries}"
        );
        if lost > 0 {
            let reasons: Vec<String> = account.dropped.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
            let message = format!("{lost} of {emitted} records did not get to {stream}: {}", reasons.join(", "));
            error!("{message}");
            self.failures.push(message);
        }
    }

    fn fail(&mut self, name: &str, is_stdout: bool, error: &io::Error) {
        if is_stdout && error.kind() == io::ErrorKind::BrokenPipe {
            self.stdout_closed = true;
            return;
        }
        let advice =
            if error.kind() == io::ErrorKind::StorageFull { "; what was written before is intact" } else { "" };
        let message = format!("cannot write {name}: {error}{advice}");
        error!("{message}");
        self.failures.push(message);
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn display(path: &Path) -> String {
    if is_stdout(path) { "standard output".into() } else { path.display().to_string() }
}

fn open(path: &Path) -> Result<Box<dyn Write + Send>, String> {
    if is_stdout(path) {
        return Ok(Box::new(io::stdout()));
    }
    match File::create(path) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) => Err(format!("cannot write {}: {error}", path.display())),
    }
}

/// Appends to a file, whole lines to whole lines, for as long as nobody else does.
fn go_on(path: &Path) -> Result<Box<dyn Write + Send>, String> {
    let fail = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return open(path);
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(format!("{} is written by another agent: give each a file of its own", path.display()));
        }
        // Some file systems have no locks.
        Err(TryLockError::Error(error)) => warn!("{}: {error}; another agent may write to it, too", path.display()),
    }
    // A run that was killed may have left half a line.
    let mut last = [b'\n'];
    if let Some(at) = metadata.len().checked_sub(1) {
        file.read_exact_at(&mut last, at).map_err(fail)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n").map_err(fail)?;
    }
    Ok(Box::new(file))
}
