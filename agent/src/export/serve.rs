//! What a Prometheus scrapes, and what a kubelet asks: `/metrics`, `/healthz`, `/readyz`, on a thread of its own.
//!
//! Nothing listens unless it was asked for. Whoever connects gets text to read, a few at a time, and nothing that they send is read
//! but the line with the path.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, error};
use tokio::{net::TcpListener, sync::Semaphore};

use super::prometheus::Registry;
use crate::report::{Body, Record};

/// Served at one time; others wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 16;

/// A request that takes longer to come is none, and a connection does not stay longer than this.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
const CONNECTION_PATIENCE: Duration = Duration::from_mins(2);

/// What is shown.
#[derive(Default)]
pub struct Shown {
    registry: Mutex<Registry>,
    is_ready: AtomicBool,
}

impl Shown {
    pub fn record(&self, record: &Record) {
        // Both come only once probes are attached.
        if matches!(record.body, Body::Target(_) | Body::PgCluster(_) | Body::Agent(_)) {
            self.is_ready.store(true, Ordering::Relaxed);
        }
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).record(record);
    }

    fn text(&self) -> String {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).text()
    }
}

/// The server; it ends with the program.
pub struct Server {
    pub address: SocketAddr,
    pub shown: Arc<Shown>,
}

impl Server {
    /// Binds now; answers on a thread of its own, so that who starts it may be in a runtime of theirs.
    pub fn start(listen: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (address, shown) = (listener.local_addr()?, Arc::new(Shown::default()));
        let showing = Arc::clone(&shown);
        std::thread::Builder::new().name("agent-serve".into()).spawn(move || {
            runtime.block_on(async {
                match TcpListener::from_std(listener) {
                    Ok(listener) => accept(listener, showing).await,
                    Err(error) => error!("{address} is not served: {error}"),
                }
            });
        })?;
        Ok(Self { address, shown })
    }
}

async fn accept(listener: TcpListener, shown: Arc<Shown>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, as a rule: somebody has to end first.
                debug!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shown = Arc::clone(&shown);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &shown);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_PATIENCE)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_PATIENCE, connection).await {
                debug!("connection: {error}");
            }
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, shown: &Shown) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n");
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", shown.text()),
        "/healthz" => text(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" if shown.is_ready.load(Ordering::Relaxed) => text(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "no probe is attached yet\n"),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "/metrics, /healthz, /readyz\n"),
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("somebody listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn it_is_well_at_once_and_ready_later_also_where_a_runtime_runs_already() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let server = runtime.block_on(async { Server::start(([127, 0, 0, 1], 0).into()) }).expect("a server");
        assert!(ask(server.address, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(ask(server.address, "/readyz").starts_with("HTTP/1.1 503"));
        assert!(ask(server.address, "/metrics").contains("text/plain; version=0.0.4"));
        assert!(ask(server.address, "/else").starts_with("HTTP/1.1 404"));
    }
}
