//! Collectors that listen on this host, and give trouble when told.
#![allow(dead_code, reason = "each test uses a part")]

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, pki_types::PrivateKeyDer};

/// Takes lines over TCP.
pub struct Lines {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    pub fn listen(at: &str) -> Self {
        Self::serve(at, |stream| Box::new(stream))
    }

    pub fn listen_tls(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        Self::serve("127.0.0.1:0", move |stream| {
            Box::new(StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream))
        })
    }

    fn serve(at: &str, open: impl Fn(TcpStream) -> Box<dyn Read> + Send + 'static) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopping, lines) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                        read_lines(open(stream), &lines, &stopping);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { address, seen, stop, thread: Some(thread) }
    }

    /// Closes all connections and stops listening.
    pub fn kill(mut self) -> SocketAddr {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.address
    }
}

fn read_lines(stream: Box<dyn Read>, seen: &Mutex<Vec<String>>, stop: &AtomicBool) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) if line.last() == Some(&b'\n') => {
                seen.lock().unwrap().push(String::from_utf8(std::mem::take(&mut line)).unwrap());
            }
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            _ => {}
        }
    }
}

/// What an HTTP collector does with one request.
#[derive(Clone, Debug)]
pub enum Answer {
    Ok,
    Status(u16),
    /// A status, and `Retry-After` in seconds.
    After(u16, u32),
    /// Closes the connection after so many bytes of the body.
    CutAfter(usize),
    /// Never answers.
    Silence,
}

/// One request that was read to its end.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: std::time::Instant,
    pub accepted: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Answers `POST`s as a script says, and with 200 when that is at its end.
pub struct Http {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Http {
    pub fn listen(script: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(script.iter().rev().cloned().collect::<Vec<_>>()));
        let seen = Arc::clone(&requests);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                std::thread::spawn(move || serve(stream.unwrap(), &seen, &script));
            }
        });
        Self { address, requests }
    }

    /// Bodies that were accepted, one after the other.
    pub fn accepted(&self) -> Vec<u8> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|request| request.accepted)
            .flat_map(|request| request.body.clone())
            .collect()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Request>>, script: &Mutex<Vec<Answer>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let len =
            headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
        let answer = script.lock().unwrap().pop().unwrap_or(Answer::Ok);
        let taken = if let Answer::CutAfter(bytes) = answer { bytes.min(len) } else { len };
        let mut body = vec![0; taken];
        reader.read_exact(&mut body).unwrap();
        let (status, more) = match answer {
            Answer::CutAfter(_) => return,
            Answer::Silence => {
                std::thread::sleep(Duration::from_mins(1));
                return;
            }
            Answer::Ok => (200, String::new()),
            Answer::Status(status) => (status, String::new()),
            Answer::After(status, seconds) => (status, format!("Retry-After: {seconds}\r\n")),
        };
        seen.lock().unwrap().push(Request {
            path,
            headers,
            body,
            at: std::time::Instant::now(),
            accepted: status == 200,
        });
        let answer = format!("HTTP/1.1 {status} X\r\n{more}Content-Length: 0\r\n\r\n");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
