//! Batches to a collector over HTTP, one `POST` each, on a connection that is kept.

use std::{io::Write as _, path::Path, sync::Arc, time::Duration};

use flate2::{Compression as Level, write::GzEncoder};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use log::debug;
use tokio_rustls::rustls::ClientConfig;

use super::{
    Refusal,
    config::{Compression, StreamConfig, StreamError, Url},
    connect::Connection,
};

/// Of an answer, what is read: the rest of a page of HTML tells nobody anything.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The longest that a collector may ask us to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(10);

/// One address, and the connection to it while it lasts.
#[derive(Debug)]
pub struct Client {
    url: Url,
    trust: Option<Arc<ClientConfig>>,
    headers: Vec<(HeaderName, HeaderValue)>,
    compression: Compression,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    #[must_use]
    pub fn new(
        url: Url,
        trust: Option<Arc<ClientConfig>>,
        headers: Vec<(HeaderName, HeaderValue)>,
        compression: Compression,
    ) -> Self {
        Self { url, trust, headers, compression, connection: None }
    }

    /// Has one more header with each request.
    pub fn say(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.push((name, value));
    }

    /// Sends a body, and returns the answer's.
    pub async fn post(&mut self, content_type: &'static str, body: Vec<u8>) -> Result<Bytes, Refusal> {
        let body = match self.compression {
            Compression::None => body,
            Compression::Gzip => gzip(&body).map_err(Refusal::unreachable)?,
        };
        let request = self.request(content_type, body).map_err(Refusal::unreachable)?;
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        connection.ready().await.map_err(Refusal::unreachable)?;
        let answer = connection.send_request(request).await.map_err(Refusal::unreachable)?;
        let status = answer.status();
        let wait = answer.headers().get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        let answer = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        if let Ok(answer) = answer {
            // A body that was read to its end leaves the connection to be used again.
            self.connection = Some(connection);
            if status.is_success() {
                return Ok(answer.to_bytes());
            }
            debug!("status={status} answer={:?}", String::from_utf8_lossy(&answer.to_bytes()));
        } else if status.is_success() {
            // It was accepted, and then the connection broke: whether all of it was is not known.
            return Err(Refusal::unreachable("the answer was cut short"));
        }
        Err(refusal(status, wait))
    }

    fn request(&self, content_type: &'static str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let Url { is_tls, host, port, path } = &self.url;
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let is_default = *port == if *is_tls { 443 } else { 80 };
        let authority = if is_default { bracketed } else { format!("{bracketed}:{port}") };
        let mut request = Request::post(path.as_str())
            .header(HOST, authority)
            .header(USER_AGENT, concat!("agent/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, content_type);
        if self.compression == Compression::Gzip {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(body.into()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Refusal> {
        let Url { host, port, .. } = &self.url;
        let connection = match &self.trust {
            Some(trust) => Connection::tls(host, *port, trust).await,
            None => Connection::tcp(host, *port).await,
        };
        let stream = TokioIo::new(connection.map_err(Refusal::unreachable)?);
        let (sender, connection) = http1::handshake(stream).await.map_err(Refusal::unreachable)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("connection: {error}");
            }
        });
        Ok(sender)
    }
}

/// Statuses after which the same request may be accepted, as the specification of OTLP has them, and a timeout.
fn refusal(status: StatusCode, wait: Option<Duration>) -> Refusal {
    match status.as_u16() {
        408 | 429 | 502..=504 => Refusal::Later { why: format!("status {status}"), wait },
        404 | 405 | 501 => Refusal::Unknown { why: format!("status {status}") },
        _ => Refusal::Never { why: format!("status {status}") },
    }
}

/// Seconds; the other form, a date, is as good as none, as it says how the clocks differ.
fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// Headers of a stream: from its file and from the environment.
pub fn headers_of(config: &StreamConfig) -> Result<Vec<(HeaderName, HeaderValue)>, StreamError> {
    let mut all = config.headers_file.as_deref().map(headers).transpose()?.unwrap_or_default();
    for (name, value) in &config.headers.0 {
        all.push(header(name, value).ok_or_else(|| StreamError::BadHeader { name: name.clone() })?);
    }
    Ok(all)
}

/// Reads `Name: value` lines; values are marked as secret.
fn headers(path: &Path) -> Result<Vec<(HeaderName, HeaderValue)>, StreamError> {
    let text = std::fs::read_to_string(path).map_err(|error| StreamError::Read { path: path.to_owned(), error })?;
    let mut headers = Vec::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let header = text.split_once(':').and_then(|(name, value)| header(name, value));
        headers.push(header.ok_or_else(|| StreamError::Header { path: path.to_owned(), line })?);
    }
    Ok(headers)
}

/// One header; `None` if it cannot be one.
#[must_use]
fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
}
