//! The measured server and the load on it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::Measured;
use crate::run::{Error, cache, root};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Fifty connections, saturated
    Http50,
    /// One connection: one request a turn, the worst case
    Http1,
    /// Two thread-pool items a request
    Pool,
    /// Two thousand objects a request
    Alloc,
}

impl Case {
    pub const ALL: [Self; 4] = [Self::Http50, Self::Http1, Self::Pool, Self::Alloc];

    pub fn name(self) -> &'static str {
        match self {
            Self::Http50 => "fifty connections",
            Self::Http1 => "one connection",
            Self::Pool => "thread pool",
            Self::Alloc => "allocation",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Self::Http50 | Self::Http1 => "http",
            Self::Pool => "pool",
            Self::Alloc => "alloc",
        }
    }

    fn connections(self) -> &'static str {
        match self {
            Self::Http1 => "1",
            Self::Http50 | Self::Pool | Self::Alloc => "50",
        }
    }
}

/// A Node.js server under load; both end when it is dropped.
pub struct Server {
    // Fields are dropped in this order: the load ends first.
    _load: Running,
    node: Running,
    count: TcpStream,
}

/// Longest bench of one case.
const LOAD_SECONDS: &str = "3600";

impl Server {
    pub fn start(case: Case, version: &str) -> Result<Self, Error> {
        let node = cache().join("node").join(version).join("bin/node");
        let node = Command::new(node)
            .arg(root().join("scripts/workloads/bench-server.js"))
            .args(["0", case.mode()])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::io("node", source))?;
        let mut node = Running(node);
        let mut line = String::new();
        if let Some(stdout) = node.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|source| Error::io("node", source))?;
        }
        // Its own word, and a port of its own: another server that answers is not the one whose CPU time is read.
        let port = line
            .strip_prefix("READY ")
            .map(str::trim)
            .ok_or_else(|| Error::io("the server", std::io::Error::other("it ended before it was ready")))?;
        let address = format!("127.0.0.1:{port}");
        let count = TcpStream::connect(&address).map_err(|source| Error::io("the server", source))?;
        let load = Command::new("wrk")
            .args(["-t1", "-c", case.connections(), "-d", LOAD_SECONDS, &format!("http://{address}/")])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| Error::io("wrk", source))?;
        Ok(Self { _load: Running(load), node, count })
    }

    /// Requests finished so far, by the server's own count.
    fn finished(&mut self) -> Result<u64, Error> {
        let fail = |source| Error::io("the server's count", source);
        self.count.write_all(b"GET /count HTTP/1.1\r\nHost: localhost\r\n\r\n").map_err(fail)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 1024];
        loop {
            let bytes = self.count.read(&mut chunk).map_err(fail)?;
            answer.extend(chunk.get(..bytes).unwrap_or_default());
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.trim().parse().ok());
                if body.len() >= length.unwrap_or(1) {
                    return Ok(body.trim().parse().unwrap_or(0));
                }
            }
            if bytes == 0 {
                return Err(fail(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// CPU time of all its threads in nanoseconds, from the scheduler's own books.
    fn cpu_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.node.0.id())).into_iter().flatten().flatten();
        let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        times.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }
}

impl Measured for Server {
    fn pid(&self) -> u32 {
        self.node.0.id()
    }

    fn measure(&mut self, span: Duration) -> Result<Half, Error> {
        let (begin, finished, cpu) = (Instant::now(), self.finished()?, self.cpu_ns());
        std::thread::sleep(span);
        let (requests, cpu) = (self.finished()? - finished, self.cpu_ns().saturating_sub(cpu));
        Ok(Half::of(requests, cpu, begin.elapsed()))
    }
}

/// A child that ends with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What one half of a pair showed.
#[derive(Clone, Copy, Debug)]
pub struct Half {
    pub per_second: f64,
    pub cpu_per_request: f64,
}

impl Half {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn of(requests: u64, cpu_ns: u64, span: Duration) -> Self {
        let (requests, cpu) = (requests as f64, cpu_ns as f64);
        Self { per_second: requests / span.as_secs_f64(), cpu_per_request: cpu / requests.max(1.0) }
    }
}
