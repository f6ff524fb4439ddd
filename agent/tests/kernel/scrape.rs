//! `/metrics` of a daemon, as a real Prometheus scrapes and stores them.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    harness::{Process, VERSION, Workload, bench, close, patience, skip},
    records::{Records, list, number},
    resident::{Daemon, LIMIT},
};

fn prometheus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/prometheus/usr/bin/prometheus")
}

/// A port that nobody listens on.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The body of the answer to a `GET`, if it is a good one.
pub fn get(from: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(from).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split(' ').nth(1).is_some_and(|status| status == "200").then(|| body.to_owned())
}

/// The one value of an expression in `PromQL`.
fn value(server: SocketAddr, expression: &str) -> Option<f64> {
    let encoded = expression.bytes().fold(String::new(), |encoded, byte| encoded + &format!("%{byte:02x}"));
    let answer: Value = serde_json::from_str(&get(server, &format!("/api/v1/query?query={encoded}"))?).unwrap();
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

#[test]
fn prometheus_scrapes_what_the_records_say() {
    let Some(bench) = bench() else { return };
    if !prometheus().exists() {
        return skip(".cache/prometheus (cargo xtask setup)");
    }
    let (metrics, server) = (free_address(), free_address());
    let mut daemon = Daemon::configured(&bench, "scraped", &format!("[metrics]\nlisten = \"{metrics}\"\n"), &[]);
    let config = bench.dir.path().join("prometheus.yml");
    let jobs = format!("scrape_configs:\n- job_name: agent\n  static_configs:\n  - targets: ['{metrics}']\n");
    fs::write(&config, format!("global: {{ scrape_interval: 500ms, scrape_timeout: 500ms }}\n{jobs}")).unwrap();
    let _prometheus = Process::spawn(
        Command::new(prometheus())
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", bench.dir.path().join("tsdb").display()))
            .arg(format!("--web.listen-address={server}")),
    );
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    daemon.await_line(workload.pid(), "window", 3);
    // Nothing turns any more, so that what is counted comes to rest.
    workload.0.signal(Signal::STOP);
    let windows = daemon.count(workload.pid(), "window");
    daemon.await_line(workload.pid(), "window", windows + 2);
    let records = Records::read(&daemon.ndjson);
    let windows = || records.of_type("window");
    let turns: f64 = windows().flat_map(|window| list(window, "loops")).map(|turned| number(turned, "turns")).sum();
    let pauses: f64 = windows()
        .flat_map(|window| list(window, "gc"))
        .filter(|gc| gc["v8js.gc.type"] == "minor")
        .map(|gc| number(&gc["v8js.gc.duration"], "count"))
        .sum();
    let deadline = Instant::now() + patience(LIMIT);
    while value(server, "sum(nodejs_eventloop_turns_total)") != Some(turns) {
        assert!(Instant::now() < deadline, "{:?} of {turns} turns", value(server, "sum(nodejs_eventloop_turns_total)"));
        thread::sleep(Duration::from_millis(100));
    }
    let read = |expression: &str| value(server, expression).unwrap_or_else(|| panic!("no {expression}"));
    close("Prometheus: turns", turns, read("sum(nodejs_eventloop_turns_total)"), 0.0);
    let minor = "sum(v8js_gc_duration_seconds_count{v8js_gc_type=\"minor\"})";
    close("Prometheus: minor collections", pauses, read(minor), 0.0);
    close("Prometheus: agents that are up", 1.0, read("sum(up)"), 0.0);
    close("Prometheus: processes", 1.0, read("agent_targets"), 0.0);
    // Its own quantiles of our buckets are within the data.
    let median = read("histogram_quantile(0.5, sum by (le) (nodejs_eventloop_turn_seconds_bucket))");
    assert!((1e-6..1.0).contains(&median), "{median} s");
    assert!(get(metrics, "/readyz").is_some() && get(metrics, "/healthz").is_some());
    workload.0.signal(Signal::CONT);
    drop(workload);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success(), "{}", daemon.process.err_text());
}
