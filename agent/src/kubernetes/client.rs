//! Requests to the API server: HTTP/1.1, over TLS with the cluster's own certificate authority.
//!
//! The token is read for each request, as the kubelet exchanges it each hour; it goes into one header that is marked as secret, and into
//! no message. Without TLS nothing is sent anywhere but to this host.

use std::{fs::File, io::Read, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Collected, Empty, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use log::debug;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::{KubernetesConfig, Surroundings, objects::Refusal};
use crate::{
    limits::{CREDENTIAL_BYTES_MAX, KUBERNETES_LIST_BYTES_MAX},
    printable::is_printable,
};

/// From the first packet to the head of the answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Characters of what the API server says that are passed on.
const MESSAGE_CHARS_MAX: usize = 300;

#[derive(Debug, Error)]
pub enum ApiError {
    #[error("not in a cluster (KUBERNETES_SERVICE_HOST is not set), and [kubernetes] has no `api`")]
    NoServer,
    #[error("this node's name is not known: set `node` in [kubernetes], or the variable NODE_NAME")]
    NoNode,
    #[error("{0:?} is no address of an API server: https://HOST:PORT is one, or http:// on this host")]
    Address(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("{path} holds no token")]
    NoToken { path: PathBuf },
    #[error("cannot reach {server}: {source}")]
    Connect { server: String, source: std::io::Error },
    #[error("{server} did not answer within {} s", PATIENCE.as_secs())]
    Silent { server: String },
    #[error("{server}: {source}")]
    Http { server: String, source: hyper::Error },
    #[error("{server} answers {code}: {message}")]
    Refused { server: String, code: u16, message: String },
    #[error("{server} answers with something else than was asked for")]
    Malformed { server: String },
}

/// The way to an API server.
#[derive(Debug)]
pub struct Api {
    host: String,
    port: u16,
    has_tls: bool,
    token_file: PathBuf,
    ca_file: PathBuf,
}

/// What a connection is made of.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Api {
    pub fn new(config: &KubernetesConfig, surroundings: &Surroundings) -> Result<Self, ApiError> {
        let KubernetesConfig { api, token_file, ca_file, .. } = config;
        let (host, port, has_tls) = match (api, &surroundings.api) {
            (Some(api), _) => address(api).ok_or_else(|| ApiError::Address(api.clone()))?,
            (None, Some((host, port))) => {
                let port = port.parse().map_err(|_| ApiError::Address(format!("{host}:{port}")))?;
                (host.clone(), port, true)
            }
            (None, None) => return Err(ApiError::NoServer),
        };
        Ok(Self { host, port, has_tls, token_file: token_file.clone(), ca_file: ca_file.clone() })
    }

    fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// One object, or one list.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, accept: &str) -> Result<T, ApiError> {
        let response = self.open(path, accept).await?;
        let bytes = timeout(PATIENCE, Limited::new(response.into_body(), KUBERNETES_LIST_BYTES_MAX).collect());
        let bytes = bytes.await.map_err(|_| ApiError::Silent { server: self.server() })?;
        let malformed = || ApiError::Malformed { server: self.server() };
        serde_json::from_slice(&bytes.map_err(|_| malformed())?.to_bytes()).map_err(|_| malformed())
    }

    /// An answer whose head says that it is one. The connection lasts as long as its body.
    pub async fn open(&self, path: &str, accept: &str) -> Result<Response<Incoming>, ApiError> {
        let answer = timeout(PATIENCE, self.ask(path, accept));
        let response = answer.await.map_err(|_| ApiError::Silent { server: self.server() })??;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = timeout(PATIENCE, Limited::new(response.into_body(), 64 << 10).collect()).await;
        let bytes = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
        let Refusal { code: _, message } = serde_json::from_slice(&bytes).unwrap_or_default();
        let message = message.chars().filter(|c| is_printable(*c)).take(MESSAGE_CHARS_MAX).collect();
        Err(ApiError::Refused { server: self.server(), code: status.as_u16(), message })
    }

    async fn ask(&self, path: &str, accept: &str) -> Result<Response<Incoming>, ApiError> {
        let failed = |source| ApiError::Http { server: self.server(), source };
        let request = self.request(path, accept)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(failed)?;
        tokio::spawn(async move {
            // The reader of the body learns of it as well.
            if let Err(error) = connection.await {
                debug!("connection to the API server: {error}");
            }
        });
        sender.send_request(request).await.map_err(failed)
    }

    fn request(&self, path: &str, accept: &str) -> Result<Request<Empty<Bytes>>, ApiError> {
        let path_of_token = || self.token_file.clone();
        let token = read(&self.token_file).map_err(|source| ApiError::File { path: path_of_token(), source })?;
        let token = token.trim_ascii();
        let value = [b"Bearer ", token].concat();
        let value = HeaderValue::from_bytes(&value).ok().filter(|_| !token.is_empty());
        let mut secret = value.ok_or_else(|| ApiError::NoToken { path: path_of_token() })?;
        secret.set_sensitive(true);
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        Request::get(path)
            .header(HOST, format!("{host}:{}", self.port))
            .header(USER_AGENT, concat!("agent/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, accept)
            .header(AUTHORIZATION, secret)
            .body(Empty::new())
            .map_err(|_| ApiError::Address(path.to_owned()))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ApiError> {
        let unreachable = |source| ApiError::Connect { server: self.server(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        if !self.has_tls {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ApiError::Address(self.host.clone()))?;
        let tls = TlsConnector::from(Arc::new(self.tls()?)).connect(name, tcp).await.map_err(unreachable)?;
        Ok(Box::new(tls))
    }

    /// Trusts nobody but the cluster's own authority.
    fn tls(&self) -> Result<ClientConfig, ApiError> {
        let file = |source| ApiError::File { path: self.ca_file.clone(), source };
        let pem = read(&self.ca_file).map_err(file)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
        if roots.is_empty() {
            return Err(ApiError::NoCertificate { path: self.ca_file.clone() });
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| file(std::io::Error::other(error)))?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// Host, port, and whether by TLS.
fn address(api: &str) -> Option<(String, u16, bool)> {
    let uri: hyper::Uri = api.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    let is_bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    let has_no_user = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let has_tls = match uri.scheme_str()? {
        "https" => true,
        // The token must not be read on the way.
        "http" if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => false,
        _ => return None,
    };
    (is_bare && has_no_user).then(|| (host, uri.port_u16().unwrap_or(if has_tls { 443 } else { 80 }), has_tls))
}

fn read(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(CREDENTIAL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_tls_are_of_this_host_alone() {
        let found = |api| address(api).map(|(host, port, has_tls)| format!("{host} {port} {has_tls}"));
        assert_eq!(found("https://10.96.0.1:443").as_deref(), Some("10.96.0.1 443 true"));
        assert_eq!(found("https://api.example").as_deref(), Some("api.example 443 true"));
        assert_eq!(found("https://[fd00::1]:6443/").as_deref(), Some("fd00::1 6443 true"));
        assert_eq!(found("http://127.0.0.1:8001").as_deref(), Some("127.0.0.1 8001 false"));
        for bad in ["http://10.96.0.1", "http://api.example", "ftp://x", "x", "", "https://a/b", "https://a:b@c"] {
            assert_eq!(found(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_message_has_the_token() {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let token_file = directory.path().join("token");
        let config = KubernetesConfig {
            api: Some("http://127.0.0.1:1".into()),
            token_file: token_file.clone(),
            ..KubernetesConfig::default()
        };
        let api = Api::new(&config, &Surroundings::default()).unwrap_or_else(|error| panic!("{error}"));
        assert!(matches!(api.request("/", "x"), Err(ApiError::File { .. })));
        for bad in ["", " \n", "a\nb", "a\u{7f}"] {
            std::fs::write(&token_file, bad).unwrap_or_else(|error| panic!("{error}"));
            let error = api.request("/", "x").map(|_| ()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.ends_with("holds no token"), "{error}");
        }
        std::fs::write(&token_file, "hunter2\n").unwrap_or_else(|error| panic!("{error}"));
        let request = api.request("/", "x").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes), Some(&b"Bearer hunter2"[..]));
        assert!(!format!("{request:?} {api:?}").contains("hunter2"));
    }
}
