//! What a stream is told: where to, in which format, and what it may hold back.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::Deserialize;

/// One stream of records, as a `[[stream]]` of the configuration file or a `--to` of the command line says it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    #[serde(rename = "type", default)]
    pub format: StreamFormat,
    /// `-`, `file:PATH`, `unix:PATH`, `tcp://HOST:PORT`, `tls://HOST:PORT`, `http://…` or `https://…`. Of OTLP: the endpoint, to
    /// which `/v1/metrics`, `/v1/logs` and `/v1development/profiles` are added.
    pub to: String,
    /// Of OTLP: what is sent; metrics and logs where it is left open. Profiles are still in development: a collector without a
    /// pipeline for them has no such address, and its version has to be that of ours.
    #[serde(default)]
    pub signals: Option<Vec<OtlpSignal>>,
    /// Of OTLP: how requests are written.
    #[serde(default)]
    pub protocol: Protocol,
    /// Of OTLP: endpoints of one signal, as they are.
    #[serde(default)]
    pub metrics_to: Option<String>,
    #[serde(default)]
    pub logs_to: Option<String>,
    #[serde(default)]
    pub profiles_to: Option<String>,
    /// Of OTLP: attributes of every resource.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// Headers of HTTP that came from the environment.
    #[serde(skip)]
    pub headers: Headers,
    #[serde(default)]
    pub compression: Compression,
    /// Of HTTP: a file of `Name: value` lines, which may hold secrets. It is read once, and never printed.
    #[serde(default)]
    pub headers_file: Option<PathBuf>,
    /// Certificates (PEM) of the authorities to trust, instead of those that the host trusts.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Longest that a connection, a write or a request may take.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default)]
    pub queue: QueueConfig,
    #[serde(default)]
    pub retry: RetryConfig,
    #[serde(default)]
    pub spool: Option<SpoolConfig>,
    /// Of files: when a new one is begun.
    #[serde(default)]
    pub rotate: Option<RotateConfig>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum StreamFormat {
    /// The records as they are, one JSON object a line.
    #[default]
    #[serde(rename = "ndjson")]
    Ndjson,
    /// Records that `bunyan` reads, one a line.
    #[serde(rename = "bunyan")]
    Bunyan,
    /// Metrics, logs and profiles of OpenTelemetry, over HTTP.
    #[serde(rename = "otlp")]
    Otlp,
}

/// What may be sent over OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtlpSignal {
    Metrics,
    Logs,
    Profiles,
}

/// How requests of OTLP are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    #[default]
    #[serde(rename = "http/protobuf")]
    Protobuf,
    #[serde(rename = "http/json")]
    Json,
}

/// Names and values; values are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl StreamFormat {
    /// As it is written before a URL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Bunyan => "bunyan",
            Self::Otlp => "otlp",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    None,
    /// Of HTTP only.
    Gzip,
}

/// What may wait in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    pub max_records: usize,
    pub max_bytes: usize,
}

impl Default for QueueConfig {
    /// A process makes about five records of a kilobyte a second: a minute of a hundred of them.
    fn default() -> Self {
        Self { max_records: 32_768, max_bytes: 32 << 20 }
    }
}

/// How long to wait after a failure: from the first pause, doubling, up to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    pub initial_ms: u64,
    pub max_ms: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { initial_ms: 500, max_ms: 30_000 }
    }
}

/// What may wait on disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolConfig {
    /// Each stream has a directory of its own in it.
    pub directory: PathBuf,
    #[serde(default = "spool_bytes")]
    pub max_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotateConfig {
    /// A file that would grow beyond this is renamed to `PATH.1`, and a new one begun.
    pub max_bytes: u64,
    /// Files that are kept beside the one that is written.
    pub keep: u32,
}

impl Default for RotateConfig {
    fn default() -> Self {
        Self { max_bytes: 100 << 20, keep: 5 }
    }
}

/// OpenTelemetry's default.
const OTLP_ENDPOINT: &str = "http://localhost:4318";

/// OpenTelemetry's default.
const fn timeout_ms() -> u64 {
    10_000
}

/// An hour of a hundred processes, five records of a kilobyte a second each, is 1.8 GB: set it for more than thirty.
const fn spool_bytes() -> u64 {
    512 << 20
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(
        "{to}: {reason}: it is [FORMAT+]URL, as tcp://host:port, tls://host:port, unix:/path, file:/path, https://host/path, otlp+http://host:4318 or -"
    )]
    Address { to: String, reason: &'static str },
    #[error("{to}: {reason}")]
    Unfit { to: String, reason: &'static str },
    #[error("the header {name} is none")]
    BadHeader { name: String },
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: std::io::Error },
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: line {line} is no `Name: value`", path.display())]
    Header { path: PathBuf, line: usize },
    #[error("no certificate in {}", path.display())]
    NoCertificate { path: PathBuf },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("spool {}: {error}", path.display())]
    Spool { path: PathBuf, error: std::io::Error },
    #[error("spool {} is used by another agent: give each a directory of its own", path.display())]
    SpoolTaken { path: PathBuf },
    #[error("cannot start the thread of a stream: {0}")]
    Thread(std::io::Error),
}

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Stdout,
    File(PathBuf),
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16 },
    Http(Url),
}

/// What is needed of a URL of HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub is_tls: bool,
    pub host: String,
    pub port: u16,
    /// With the query, and with its slash.
    pub path: String,
}

impl StreamConfig {
    /// A stream of default settings.
    #[must_use]
    pub fn new(format: StreamFormat, to: impl Into<String>) -> Self {
        Self {
            format,
            to: to.into(),
            protocol: Protocol::default(),
            metrics_to: None,
            logs_to: None,
            profiles_to: None,
            signals: None,
            resource: BTreeMap::new(),
            headers: Headers::default(),
            compression: Compression::default(),
            headers_file: None,
            ca_file: None,
            timeout_ms: timeout_ms(),
            queue: QueueConfig::default(),
            retry: RetryConfig::default(),
            spool: None,
            rotate: None,
        }
    }

    /// Reads `[FORMAT+]URL`.
    pub fn parse(text: &str) -> Result<Self, StreamError> {
        let (format, protocol, to) = match text.split_once('+') {
            Some(("ndjson", to)) => (StreamFormat::Ndjson, Protocol::default(), to),
            Some(("bunyan", to)) => (StreamFormat::Bunyan, Protocol::default(), to),
            Some(("otlp", to)) => (StreamFormat::Otlp, Protocol::Protobuf, to),
            Some(("otlp-json", to)) => (StreamFormat::Otlp, Protocol::Json, to),
            _ if text == "otlp" => (StreamFormat::Otlp, Protocol::default(), OTLP_ENDPOINT),
            _ => (StreamFormat::Ndjson, Protocol::default(), text),
        };
        let config = Self { protocol, ..Self::new(format, to) };
        config.address()?;
        Ok(config)
    }

    /// Of OTLP: what is sent.
    #[must_use]
    pub fn signals(&self) -> &[OtlpSignal] {
        self.signals.as_deref().unwrap_or(&[OtlpSignal::Metrics, OtlpSignal::Logs])
    }

    /// Where it goes, with what does not go together refused.
    pub fn address(&self) -> Result<Address, StreamError> {
        let wrong = |reason| StreamError::Address { to: without_secrets(&self.to), reason };
        let unfit = |reason| StreamError::Unfit { to: without_secrets(&self.to), reason };
        let address = Address::parse(&self.to).map_err(wrong)?;
        if !address.is_http() && (self.compression != Compression::None || self.headers_file.is_some()) {
            return Err(unfit("compression and headers are of HTTP"));
        }
        if !address.is_tls() && self.ca_file.is_some() {
            return Err(unfit("a file of authorities is of TLS"));
        }
        if self.rotate.is_some() && !matches!(address, Address::File(_)) {
            return Err(unfit("only files are rotated"));
        }
        let endpoints = [&self.metrics_to, &self.logs_to, &self.profiles_to];
        let of_otlp = self.protocol == Protocol::Json
            || self.signals.is_some()
            || endpoints.iter().any(|endpoint| endpoint.is_some());
        if self.signals().is_empty() {
            return Err(unfit("no signals, so nothing would be sent"));
        }
        if self.format == StreamFormat::Otlp && !address.is_http() {
            return Err(unfit("OTLP goes over http:// or https://"));
        }
        if self.format != StreamFormat::Otlp && (of_otlp || !self.resource.is_empty()) {
            return Err(unfit("protocol, signals, metrics_to, logs_to, profiles_to and resource are of OTLP"));
        }
        if self.queue.max_records == 0 || self.queue.max_bytes == 0 || self.timeout_ms == 0 {
            return Err(unfit("a queue holds something, and a timeout lasts"));
        }
        Ok(address)
    }
}

impl Address {
    #[must_use]
    pub const fn is_http(&self) -> bool {
        matches!(self, Self::Http(_))
    }

    #[must_use]
    pub const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Http(Url { is_tls: true, .. }))
    }

    /// A file, or standard output: it is not away, and has no use for a spool.
    #[must_use]
    pub const fn is_here(&self) -> bool {
        matches!(self, Self::Stdout | Self::File(_))
    }

    fn parse(to: &str) -> Result<Self, &'static str> {
        if to == "-" {
            return Ok(Self::Stdout);
        }
        let (scheme, rest) = to.split_once(':').ok_or("no scheme")?;
        let path = || {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() { Err("no path") } else { Ok(PathBuf::from(path)) }
        };
        let authority = || rest.strip_prefix("//").ok_or("no // after the scheme");
        match scheme {
            "file" => Ok(Self::File(path()?)),
            "unix" => Ok(Self::Unix(path()?)),
            "tcp" | "tls" => {
                let (host, port) = host_and_port(authority()?.trim_end_matches('/'), None)?;
                Ok(if scheme == "tcp" { Self::Tcp { host, port } } else { Self::Tls { host, port } })
            }
            "http" | "https" => Url::parse(scheme == "https", authority()?).map(Self::Http),
            _ => Err("no such scheme"),
        }
    }
}

impl Url {
    /// Reads `http://…` or `https://…`.
    pub fn of(to: &str) -> Result<Self, StreamError> {
        match Address::parse(to) {
            Ok(Address::Http(url)) => Ok(url),
            Ok(_) => Err(StreamError::Address { to: without_secrets(to), reason: "not of HTTP" }),
            Err(reason) => Err(StreamError::Address { to: without_secrets(to), reason }),
        }
    }

    /// The same with more path.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Self { path: format!("{}{path}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    fn parse(is_tls: bool, rest: &str) -> Result<Self, &'static str> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("a name and password belong into the file of headers");
        }
        let (host, port) = host_and_port(authority, Some(if is_tls { 443 } else { 80 }))?;
        let path = path.split('#').next().unwrap_or_default();
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a character that does not belong into a URL");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { is_tls, host, port, path })
    }
}

/// `host:port`, `[::1]:port`.
fn host_and_port(text: &str, default: Option<u16>) -> Result<(String, u16), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("a bracket that is not closed")?;
            (host, rest.strip_prefix(':'))
        }
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("no host");
    }
    let port = match port {
        None => default.ok_or("no port")?,
        Some(port) => port.parse().map_err(|_| "not a port")?,
    };
    Ok((host.to_owned(), port))
}

/// A destination as it may be shown: queries and passwords stay where they are.
#[must_use]
pub fn without_secrets(to: &str) -> String {
    let shown = to.split(['?', '#']).next().unwrap_or_default();
    match (shown.split_once("://"), shown.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => shown.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read() {
        let check = |text, wanted| assert_eq!(StreamConfig::parse(text).unwrap().address().unwrap(), wanted, "{text}");
        check("-", Address::Stdout);
        check("file:/var/log/agent.ndjson", Address::File("/var/log/agent.ndjson".into()));
        check("file:///a", Address::File("/a".into()));
        check("ndjson+unix:/run/x.sock", Address::Unix("/run/x.sock".into()));
        check("tcp://[::1]:514", Address::Tcp { host: "::1".into(), port: 514 });
        check("tls://logs.example:6514/", Address::Tls { host: "logs.example".into(), port: 6514 });
        let url = |is_tls, host: &str, port, path: &str| {
            Address::Http(Url { is_tls, host: host.into(), port, path: path.into() })
        };
        check("https://c.example/in?x=1#f", url(true, "c.example", 443, "/in?x=1"));
        check("http://c.example:9428", url(false, "c.example", 9428, "/"));
        assert_eq!(StreamConfig::parse("bunyan+-").unwrap().format, StreamFormat::Bunyan);
        check("otlp", url(false, "localhost", 4318, "/"));
        assert_eq!(StreamConfig::parse("otlp-json+https://c/x").unwrap().protocol, Protocol::Json);
        assert!(StreamConfig::parse("otlp+tcp://h:1").is_err());
    }

    #[test]
    fn what_is_wrong_with_a_destination_is_said_without_its_secrets() {
        for text in
            ["", "nothing", "tcp://host", "tcp:host:1", "tcp://:1", "tcp://h:99999", "ftp://h/", "file:", "http://"]
        {
            assert!(StreamConfig::parse(text).is_err(), "{text}");
        }
        let said = StreamConfig::parse("http://me:secret@host/?token=secret").unwrap_err().to_string();
        assert!(said.contains("http://host/") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        let config = |text: &str| serde_json::from_str::<StreamConfig>(text).map(|config| config.address());
        assert!(config(r#"{"type":"ndjson","to":"tcp://h:1"}"#).unwrap().is_ok());
        assert!(config(r#"{"type":"ndjson","to":"tcp://h:1","compression":"gzip"}"#).unwrap().is_err());
        assert!(config(r#"{"type":"ndjson","to":"http://h","ca_file":"/x"}"#).unwrap().is_err());
        assert!(config(r#"{"to":"-","rotate":{"keep":1}}"#).unwrap().is_err());
        assert!(config(r#"{"to":"-","tpye":"ndjson"}"#).is_err());
        assert!(config(r#"{"type":"otlp","to":"http://h","signals":["profiles"]}"#).unwrap().is_ok());
        assert!(config(r#"{"type":"otlp","to":"http://h","signals":[]}"#).unwrap().is_err());
        assert!(config(r#"{"type":"otlp","to":"http://h","signals":["traces"]}"#).is_err());
        assert!(config(r#"{"to":"http://h","signals":["logs"]}"#).unwrap().is_err());
    }
}
