//! Where batches go: standard output, files that are rotated, sockets, HTTP.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::header::{HeaderName, HeaderValue};
use log::warn;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::rustls::ClientConfig;

use super::{
    Refusal,
    account::{Item, Signal},
    config::{Address, Protocol, RotateConfig, StreamConfig, StreamError, StreamFormat, Url},
    connect::{self, Connection},
    http::{self, Client},
};
use crate::export::otlp;

/// A destination, opened as far as that needs nobody else.
pub enum Sink {
    Stdout,
    File(RotatedFile),
    Socket(Socket),
    Http(Box<Client>),
    Otlp(Box<Otlp>),
}

impl Sink {
    pub fn open(config: &StreamConfig) -> Result<Self, StreamError> {
        if config.format == StreamFormat::Otlp {
            config.address()?;
            return Otlp::open(config).map(|otlp| Self::Otlp(Box::new(otlp)));
        }
        let trust = || connect::trust(config.ca_file.as_deref());
        Ok(match config.address()? {
            Address::Stdout => Self::Stdout,
            Address::File(path) => {
                let rotate = config.rotate.unwrap_or_default();
                let file = RotatedFile::open(&path, rotate).map_err(|error| StreamError::Write { path, error })?;
                Self::File(file)
            }
            address @ (Address::Tcp { .. } | Address::Unix(_)) => {
                Self::Socket(Socket { address, trust: None, connection: None })
            }
            address @ Address::Tls { .. } => Self::Socket(Socket { address, trust: Some(trust()?), connection: None }),
            Address::Http(url) => Self::Http(Box::new(client(config, url)?)),
        })
    }

    /// How long records wait for others that would go with them.
    #[must_use]
    pub const fn linger(&self) -> Duration {
        match self {
            Self::Stdout | Self::File(_) | Self::Socket(_) => Duration::ZERO,
            Self::Http(_) | Self::Otlp(_) => Duration::from_millis(100),
        }
    }

    /// Brings a batch there. All of it has arrived, or it is as if nothing had: what is tried again may then arrive twice.
    pub async fn deliver(&mut self, items: &[Item]) -> Result<(), Refusal> {
        let body: Vec<u8> = items.iter().flat_map(|item| item.bytes.iter().copied()).collect();
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&body).and_then(|()| out.flush()).map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => Refusal::Never { why: "its reader is gone".into() },
                    _ => Refusal::unreachable(error),
                })
            }
            Self::File(file) => file.write(&body).map_err(Refusal::unreachable),
            Self::Socket(socket) => socket.write(&body).await.map_err(Refusal::unreachable),
            Self::Http(client) => client.post("application/x-ndjson", body).await.map(|_| ()),
            Self::Otlp(otlp) => otlp.post(items.first().map_or(Signal::Line, |item| item.signal), body).await,
        }
    }
}

fn client(config: &StreamConfig, url: Url) -> Result<Client, StreamError> {
    let trust = url.is_tls.then(|| connect::trust(config.ca_file.as_deref())).transpose()?;
    Ok(Client::new(url, trust, http::headers_of(config)?, config.compression))
}

/// A collector of OpenTelemetry's.
pub struct Otlp {
    metrics: Client,
    logs: Client,
    profiles: Client,
    protocol: Protocol,
    partial: u64,
}

impl Otlp {
    fn open(config: &StreamConfig) -> Result<Self, StreamError> {
        let url = |own: Option<&String>, path| match own {
            Some(own) => Url::of(own),
            None => Url::of(&config.to).map(|url| url.below(path)),
        };
        let mut profiles = client(config, url(config.profiles_to.as_ref(), "/v1development/profiles")?)?;
        let version = otlp::profiles::proto::DEVELOPMENT_VERSION;
        profiles.say(HeaderName::from_static("otlp-profiles-development-version"), HeaderValue::from_static(version));
        Ok(Self {
            metrics: client(config, url(config.metrics_to.as_ref(), "/v1/metrics")?)?,
            logs: client(config, url(config.logs_to.as_ref(), "/v1/logs")?)?,
            profiles,
            protocol: config.protocol,
            partial: 0,
        })
    }

    async fn post(&mut self, signal: Signal, body: Vec<u8>) -> Result<(), Refusal> {
        let (content_type, body) = match self.protocol {
            Protocol::Protobuf => ("application/x-protobuf", body),
            Protocol::Json => ("application/json", otlp::json(signal, &body).map_err(|why| Refusal::Never { why })?),
        };
        let client = match signal {
            Signal::Metrics => &mut self.metrics,
            Signal::Profiles => &mut self.profiles,
            Signal::Logs | Signal::Line => &mut self.logs,
        };
        let answer = client.post(content_type, body).await?;
        if let Some(complaint) = otlp::complaint(self.protocol == Protocol::Json, &answer) {
            self.partial += 1;
            // 1, 2, 4, 8 …: said, but not each time.
            if self.partial.is_power_of_two() {
                warn!("the collector did not take all of a request, {} times by now: {complaint}", self.partial);
            }
        }
        Ok(())
    }
}

/// A file that is renamed when it has grown: `PATH` to `PATH.1`, that to `PATH.2`.
pub struct RotatedFile {
    path: PathBuf,
    rotate: RotateConfig,
    file: File,
    bytes: u64,
}

impl RotatedFile {
    fn open(path: &Path, rotate: RotateConfig) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { path: path.to_owned(), rotate, file, bytes })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if self.bytes > 0 && self.bytes + len > self.rotate.max_bytes {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(bytes) {
            // Half a line would spoil the next one, too.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes += len;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.rotate.keep).rev() {
            match fs::rename(numbered(n), numbered(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.rotate.keep > 0 {
            fs::rename(&self.path, numbered(1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        *self = Self::open(&self.path, self.rotate)?;
        Ok(())
    }
}

/// A connection that takes lines, and answers nothing.
pub struct Socket {
    address: Address,
    trust: Option<Arc<ClientConfig>>,
    connection: Option<Connection>,
}

impl Socket {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Taken, so that one that fails, or is given up in the middle, is used no more.
        let mut connection = match self.kept().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection.write_all(bytes).await?;
        connection.flush().await?;
        self.connection = Some(connection);
        Ok(())
    }

    async fn kept(&mut self) -> Option<Connection> {
        let mut connection = self.connection.take()?;
        is_open(&mut connection).await.then_some(connection)
    }

    async fn connect(&self) -> io::Result<Connection> {
        match (&self.address, &self.trust) {
            (Address::Unix(path), _) => Connection::unix(path).await,
            (Address::Tls { host, port }, Some(trust)) => Connection::tls(host, *port, trust).await,
            (Address::Tcp { host, port }, _) => Connection::tcp(host, *port).await,
            (Address::Stdout | Address::File(_) | Address::Http(_) | Address::Tls { .. }, _) => {
                Err(io::Error::other("no socket"))
            }
        }
    }
}

/// Whether the other side has not closed it: bytes written to one that has would be lost without an error. What it says is
/// nothing to us.
async fn is_open(connection: &mut Connection) -> bool {
    let mut said = [0; 512];
    loop {
        match timeout(Duration::ZERO, connection.read(&mut said)).await {
            Err(_nothing_to_read) => return true,
            Ok(Ok(0) | Err(_)) => return false,
            Ok(Ok(_)) => {}
        }
    }
}
