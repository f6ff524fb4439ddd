//! Lock waits of a private PostgreSQL cluster, against what the server itself says: `pg_blocking_pids()` while they last, and its
//! log (`log_lock_waits`) for how long they lasted.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{Bench, Process, Trace, agent_command, bench, close, patience, read, say, skip},
    records::Records,
};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Allowed between a wait as the server logs it and as the agent saw it.
const OFF_MS: f64 = 5.0;

/// A server in a directory of its own; it ends with its guard.
pub struct Cluster {
    pub dir: TempDir,
    pub port: u16,
    pub pid: u32,
}

/// As the user that Debian's package made: the server refuses to run as root.
pub fn as_postgres(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--reset-env"]);
    command.arg(format!("{BIN}/{program}")).current_dir("/");
    command
}

fn postgres_ids() -> Option<(u32, u32)> {
    let line = read("/etc/passwd").lines().find(|line| line.starts_with("postgres:"))?.to_owned();
    let mut fields = line.split(':').skip(2).map(|id| id.parse().ok());
    Some((fields.next()??, fields.next()??))
}

impl Cluster {
    pub fn start(more: &str) -> Option<Self> {
        let ids = postgres_ids().filter(|_| Path::new(BIN).join("postgres").exists());
        let Some((uid, gid)) = ids else {
            skip("PostgreSQL 15 (cargo xtask setup)");
            return None;
        };
        let dir = TempDir::new().unwrap();
        chown(dir.path(), Some(uid), Some(gid)).unwrap();
        let data = dir.path().join("data");
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(as_postgres("initdb").args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{}'\nfsync=off\nlog_lock_waits=on\n\
             deadlock_timeout=1s\nlog_line_prefix='[%p] '\n{more}\n",
            dir.path().display()
        );
        std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        run(as_postgres("pg_ctl").arg("-D").arg(&data).arg("-l").arg(dir.path().join("log")).args(["-w", "start"]));
        let pid = read(data.join("postmaster.pid")).lines().next().unwrap().parse().unwrap();
        Some(Self { dir, port, pid })
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn psql(&self) -> Command {
        let mut command = as_postgres("psql");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-XqAt"]);
        command
    }

    /// Rows of a query, fields set apart by `|`.
    #[track_caller]
    pub fn ask(&self, sql: &str) -> Vec<String> {
        let output = self.psql().args(["-c", sql]).output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    pub fn session(&self) -> Session {
        let mut process = Process::spawn(&mut self.psql());
        process.write("select 'PID '||pg_backend_pid();\n");
        let pid = process.wait_out("PID ").parse().unwrap();
        Session { process, pid }
    }

    /// Until so many backends wait for a lock.
    #[track_caller]
    fn await_waiters(&self, count: usize) {
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        while self.blocking().len() != count {
            assert!(Instant::now() < deadline, "{count} waiters: {:?}", self.blocking());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The truth: whom each waiter waits for.
    fn blocking(&self) -> BTreeMap<u32, BTreeSet<u32>> {
        let sql = "select pid, array_to_string(pg_blocking_pids(pid), ',') from pg_stat_activity \
                   where wait_event_type = 'Lock'";
        let rows = self.ask(sql);
        let row = |row: &String| {
            let (pid, blockers) = row.split_once('|').unwrap();
            let blockers = blockers.split(',').filter(|pid| !pid.is_empty()).map(|pid| pid.parse().unwrap());
            (pid.parse().unwrap(), blockers.collect())
        };
        rows.iter().map(row).collect()
    }

    /// Milliseconds after which waiters had their locks, by pid, as the server logged it.
    fn acquired(&self) -> BTreeMap<u32, f64> {
        let line = |line: &str| {
            let (head, tail) = line.split_once(" acquired ")?;
            let pid = head.rsplit_once("process ")?.1.parse().ok()?;
            // Where the statement names the relation may follow.
            Some((pid, tail.rsplit_once("after ")?.1.split(" ms").next()?.parse().ok()?))
        };
        read(self.log()).lines().filter_map(line).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = as_postgres("pg_ctl")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-m", "immediate", "stop"])
            .output();
    }
}

/// A client with a transaction of its own.
pub struct Session {
    process: Process,
    pid: u32,
}

impl Session {
    /// Does not wait for the answer.
    pub fn send(&mut self, sql: &str) {
        self.process.write(&format!("{sql};\n"));
    }

    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        self.process.write(&format!("{sql};\n\\echo DONE\n"));
        self.process.wait_out("DONE");
    }
}

pub fn start(bench: &Bench, pid: u32, seconds: u32) -> Trace {
    Trace::start(bench, pid, &["--duration", &format!("{seconds}s")])
}

pub fn lines<'a>(records: &'a Records, kind: &str) -> Vec<&'a Value> {
    records.lines.iter().filter(|record| record["type"] == kind).collect()
}

fn numbers(value: &Value) -> BTreeSet<u32> {
    value.as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

/// Whom each waiter waited for, by the lines of a window in which all of them waited.
#[track_caller]
fn blocking(records: &Records, waiters: usize) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut windows = BTreeMap::<String, BTreeMap<u32, BTreeSet<u32>>>::new();
    for lock in lines(records, "pg_lock").iter().filter(|lock| lock["is_over"] == false) {
        let window = windows.entry(lock["time"].as_str().unwrap().to_owned()).or_default();
        for waiter in lock["waits_for"].as_array().unwrap() {
            window.insert(u32::try_from(waiter["pid"].as_u64().unwrap()).unwrap(), numbers(&waiter["blocked_by"]));
        }
    }
    let found = windows.values().find(|window| window.len() == waiters).cloned();
    found.unwrap_or_else(|| panic!("no window with {waiters} waiters: {windows:?}"))
}

/// Count, shortest, longest and sum of the waits of a kind that were granted, in milliseconds.
fn ended(records: &Records, kind: &str) -> (u64, f64, f64, f64) {
    let (mut count, mut min, mut max, mut sum) = (0, f64::MAX, 0.0_f64, 0.0);
    for window in lines(records, "pg_window") {
        let wait = &window["waits"][kind]["wait"];
        if wait["count"].as_u64().unwrap_or(0) > 0 {
            let ms = |key: &str| wait[key].as_f64().unwrap() / 1e6;
            count += wait["count"].as_u64().unwrap();
            (min, max, sum) = (min.min(ms("min_ns")), max.max(ms("max_ns")), sum + ms("sum_ns"));
        }
    }
    (count, min, max, sum)
}

/// Nanoseconds that backends waited for each event, by class and name, and of all windows; the other figure is how long it was watched.
pub fn waited(records: &Records) -> (BTreeMap<(String, String), f64>, f64) {
    let (mut events, mut duration) = (BTreeMap::new(), 0.0);
    for window in lines(records, "pg_window") {
        duration += window["waits_seen_ns"].as_f64().unwrap_or_else(|| window["duration_ns"].as_f64().unwrap());
        for event in window["wait_events"].as_array().unwrap() {
            let name = |key: &str| event[key].as_str().unwrap().to_owned();
            *events.entry((name("class"), name("event"))).or_default() += event["time_ns"].as_f64().unwrap();
        }
    }
    (events, duration)
}

pub fn named(class: &str, event: &str) -> (String, String) {
    (class.to_owned(), event.to_owned())
}

/// Every wait of the kind as long as the server logged it; all of them were granted, after a second or more.
#[track_caller]
fn as_logged(cluster: &Cluster, records: &Records, kind: &str, waiters: &[u32]) {
    let log = cluster.acquired();
    let of = |pid: &u32| *log.get(pid).unwrap_or_else(|| panic!("{pid} is not in {log:?}: {}", read(cluster.log())));
    let logged: Vec<f64> = waiters.iter().map(of).collect();
    let (count, min, max, sum) = ended(records, kind);
    assert_eq!(count, waiters.len() as u64, "{kind} waits");
    let (log_min, log_max) = logged.iter().fold((f64::MAX, 0.0_f64), |(min, max), &ms| (min.min(ms), max.max(ms)));
    close(&format!("shortest {kind} wait, ms"), log_min, min, OFF_MS);
    close(&format!("longest {kind} wait, ms"), log_max, max, OFF_MS);
    close(&format!("all {kind} waits, ms"), logged.iter().sum(), sum, OFF_MS * logged.len() as f64);
}

const VACUUM: &str = "select pid||' '||query from pg_stat_activity \
                      where backend_type = 'autovacuum worker' and query like '%manta%'";

/// A vacuum to prevent wraparound of the table `manta`, at work.
fn wraparound_vacuum(cluster: &Cluster) -> u32 {
    let mut session = cluster.session();
    session.run(
        "create table manta(_key text primary key, pad text) with \
         (autovacuum_vacuum_cost_delay=100, autovacuum_vacuum_cost_limit=1);\n\
         insert into manta select 'k'||i, repeat('x', 500) from generate_series(1, 40000) i;\n\
         do $$ begin for i in 1..120000 loop perform pg_current_xact_id(); commit; end loop; end $$",
    );
    let deadline = Instant::now() + patience(Duration::from_mins(1));
    loop {
        assert!(Instant::now() < deadline, "no vacuum to prevent wraparound: {:?}", cluster.ask(VACUUM));
        let row = cluster.ask(VACUUM).first().cloned().unwrap_or_default();
        let pid = row.split(' ').next().and_then(|pid| pid.parse().ok());
        match pid {
            Some(pid) if row.ends_with("(to prevent wraparound)") => return pid,
            Some(pid) => drop(cluster.ask(&format!("select pg_terminate_backend({pid})"))),
            None => {}
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_pile_up_behind_a_vacuum_is_one_entry_with_its_root() {
    let Some(bench) = bench() else { return };
    let settings = "autovacuum_naptime=1s\nautovacuum_freeze_max_age=100000\nautovacuum_vacuum_cost_limit=50";
    let Some(cluster) = Cluster::start(settings) else { return };
    let vacuum = wraparound_vacuum(&cluster);
    let mut change = cluster.session();
    change.send("alter table manta add column n int");
    cluster.await_waiters(1);
    // The head waits already.
    let mut trace = start(&bench, cluster.pid, 60);
    let mut readers: Vec<Session> = (0..3).map(|_| cluster.session()).collect();
    for reader in &mut readers {
        reader.send("select pad from manta where _key = 'secret1'");
    }
    cluster.await_waiters(4);
    thread::sleep(Duration::from_secs(3));
    let truth = cluster.blocking();
    cluster.ask(&format!("select pg_cancel_backend({vacuum})"));
    cluster.await_waiters(0);
    let records = trace.stop();
    assert_eq!(blocking(&records, 4), truth);
    say("measured whom 4 waiters of a pile-up wait for: as pg_blocking_pids() has it");
    let locks = lines(&records, "pg_lock");
    let lock = locks.iter().find(|lock| lock["waiting"] == 4).unwrap();
    assert_eq!(lock["lock"]["name"], "public.manta");
    assert_eq!((&lock["head"]["pid"], &lock["root"]["pid"]), (&Value::from(change.pid), &Value::from(change.pid)));
    assert_eq!((&lock["root"]["advice"], &lock["root"]["frees"]), (&Value::from("cancel_head"), &Value::from(3)));
    let holder = lock["holders"].as_array().unwrap().iter().find(|holder| holder["blocks_head"] == true).unwrap();
    assert_eq!((&holder["pid"], &holder["kind"]), (&Value::from(vacuum), &Value::from("wraparound_vacuum")));
    assert!(!read(&trace.ndjson).contains("secret1"), "literals are not in the records");
    let mut waiters = vec![change.pid];
    waiters.extend(readers.iter().map(|reader| reader.pid));
    as_logged(&cluster, &records, "relation", &waiters);
    let found = findings(&trace);
    assert_eq!(found.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), ["postgres.lock_pileup"]);
    assert!(found[0].next[0].contains(&format!("pg_cancel_backend({})", change.pid)), "{found:?}");
}

#[test]
fn rows_and_advisory_locks_and_a_deadlock() {
    let Some(bench) = bench() else { return };
    let Some(cluster) = Cluster::start("autovacuum=off") else { return };
    cluster.ask("create table t(id int primary key, n int); insert into t values (1, 0), (2, 0); create table u()");
    let mut sessions: Vec<Session> = (0..8).map(|_| cluster.session()).collect();
    let [idle, one, two, three, keeper, waiter, left, right] = sessions.as_mut_slice() else { unreachable!() };
    let url = bench.dir.path().join("url");
    std::fs::write(&url, format!("postgres://postgres@127.0.0.1:{}/postgres\n", cluster.port)).unwrap();
    let args = ["--duration", "60s", "--pg-connection", url.to_str().unwrap()];
    // By what the scheduler tells, and as on a kernel whose scheduler tells nothing.
    let traces = [&args[..], &[&args[..], &["--lock-waits", "probes"]].concat()]
        .map(|args| Trace::start(&bench, cluster.pid, args));
    idle.run("begin; update t set n = n + 1 where id = 1");
    for (n, session) in [&mut *one, &mut *two, &mut *three].into_iter().enumerate() {
        session.send("update t set n = n + 1 where id = 1");
        cluster.await_waiters(n + 1);
    }
    keeper.run("select pg_advisory_lock(42)");
    waiter.send("select pg_advisory_lock(42)");
    cluster.await_waiters(4);
    thread::sleep(Duration::from_millis(2500));
    let truth = cluster.blocking();
    keeper.run("select pg_advisory_unlock(42)");
    idle.run("commit");
    cluster.await_waiters(0);
    // Over within a window, most often.
    keeper.run("select pg_advisory_lock(43)");
    waiter.send("select pg_advisory_lock(43)");
    cluster.await_waiters(1);
    thread::sleep(Duration::from_millis(300));
    keeper.run("select pg_advisory_unlock(43)");
    cluster.await_waiters(0);
    // A deadlock that the server sees at once: who holds a lock and wants more of it finds somebody in line who does, too.
    for session in [&mut *one, &mut *two] {
        session.run("begin; lock table u in share mode");
    }
    one.send("lock table u in exclusive mode");
    cluster.await_waiters(1);
    two.send("lock table u in exclusive mode");
    cluster.await_waiters(0);
    // A deadlock: broken a second after the second of them waits.
    left.run("begin; update t set n = n + 1 where id = 1");
    right.run("begin; update t set n = n + 1 where id = 2");
    left.send("update t set n = n + 1 where id = 2");
    cluster.await_waiters(1);
    right.send("update t set n = n + 1 where id = 1");
    cluster.await_waiters(0);
    let pids = Pids {
        idle: idle.pid,
        keeper: keeper.pid,
        waiter: waiter.pid,
        pairs: [[left.pid, right.pid], [one.pid, two.pid]],
    };
    for mut trace in traces {
        let records = trace.stop();
        assert_eq!(blocking(&records, 4), truth);
        told_of(&cluster, &trace, &records, &pids);
    }
}

/// Who is who there.
struct Pids {
    idle: u32,
    keeper: u32,
    waiter: u32,
    /// Each of them in a deadlock: the one that takes a second to be seen, and the one that is seen at once.
    pairs: [[u32; 2]; 2],
}

#[track_caller]
fn told_of(cluster: &Cluster, trace: &Trace, records: &Records, pids: &Pids) {
    say("measured whom 4 waiters for rows and an advisory lock wait for: as pg_blocking_pids() has it");
    let of_kind = |kind: &str| {
        let locks = lines(records, "pg_lock").into_iter();
        locks
            .filter(|lock| lock["lock"]["locktype"] == kind && !is_of_43(lock))
            .max_by_key(|lock| lock["waiting"].as_u64())
            .unwrap()
            .clone()
    };
    let tuple = of_kind("tuple");
    assert_eq!(
        (&tuple["root"]["pid"], &tuple["root"]["advice"]),
        (&Value::from(pids.idle), &Value::from("end_transaction"))
    );
    assert_eq!(tuple["waiting"], 2);
    assert_eq!(tuple["lock"]["name"], "public.t", "as the catalog has it");
    assert_eq!(of_kind("advisory")["holders"][0]["pid"], pids.keeper);
    // The long one is in the server's log, the short one is not: it waited for 300 ms at least.
    let (count, min, max, sum) = ended(records, "advisory");
    let logged = cluster.acquired()[&pids.waiter];
    assert_eq!(count, 2, "waits for advisory locks");
    close("an advisory lock's wait, ms", logged, max, OFF_MS);
    assert!((300.0..900.0).contains(&min), "{min} ms");
    let short = lines(records, "pg_lock").into_iter().find(|lock| is_of_43(lock)).expect("a wait within a window");
    assert_eq!(
        (&short["holders"][0]["pid"], &short["head"]["pid"]),
        (&Value::from(pids.keeper), &Value::from(pids.waiter))
    );
    // The same waits by the backend's own word, and in the windows that they lay in.
    let (events, _) = waited(records);
    let advisory = events[&named("Lock", "advisory")] / 1e6;
    close("wait event Lock:advisory, ms", sum, advisory, 2.0 * OFF_MS);

    let deadlocks = lines(records, "pg_deadlock");
    assert_eq!(deadlocks.len(), 2);
    let log = read(cluster.log());
    let victims = log
        .lines()
        .filter_map(|line| line.split_once("] ERROR:  deadlock detected")?.0.strip_prefix('['))
        .collect::<Vec<_>>();
    for pair in &pids.pairs {
        let of_pair = |deadlock: &&&Value| pair.iter().any(|pid| deadlock["victim"]["pid"] == *pid);
        let deadlock = deadlocks.iter().find(of_pair).unwrap();
        let cycle: BTreeSet<u64> =
            deadlock["cycle"].as_array().unwrap().iter().map(|link| link["pid"].as_u64().unwrap()).collect();
        assert_eq!(cycle, pair.iter().copied().map(u64::from).collect());
        assert!(victims.contains(&deadlock["victim"]["pid"].to_string().as_str()), "{victims:?}");
    }
    let waits: Vec<f64> = deadlocks.iter().map(|deadlock| deadlock["wait_ns"].as_f64().unwrap() / 1e6).collect();
    close("a deadlock's wait, ms", 1000.0, waits.iter().copied().fold(0.0, f64::max), 60.0);
    assert!(waits.iter().copied().fold(f64::MAX, f64::min) < 100.0, "one is seen at once: {waits:?}");
    assert!(findings(trace).iter().any(|finding| finding.code == "postgres.deadlock"));
}

/// The advisory lock that is waited for within a window.
fn is_of_43(lock: &Value) -> bool {
    lock["lock"]["locktype"] == "advisory" && lock["lock"]["text"].as_str().unwrap().contains(",43,")
}

/// What `agent diagnose` would say.
fn findings(trace: &Trace) -> Vec<agent::report::model::Finding> {
    let file = std::fs::File::open(&trace.ndjson).unwrap();
    let mut reader = agent::export::ndjson::Reader::new(std::io::BufReader::new(file));
    let records: Vec<_> = std::iter::from_fn(|| reader.next_record().unwrap()).collect();
    let summary = agent::report::summary::Summary::from_records(&records);
    let of = |cluster| agent::diagnose::postgres::lock_findings(cluster, &agent::diagnose::Thresholds::default());
    summary.clusters.values().flat_map(of).collect()
}

#[test]
fn a_busy_server_without_a_fault_is_no_finding() {
    let Some(bench) = bench() else { return };
    let Some(cluster) = Cluster::start("autovacuum_naptime=1s") else { return };
    let pgbench = || {
        let mut command = as_postgres("pgbench");
        command.args(["-h", "127.0.0.1", "-p", &cluster.port.to_string(), "-U", "postgres"]);
        command
    };
    // One branch: every transaction wants the same row.
    assert!(pgbench().args(["-i", "-q", "-s", "1", "postgres"]).output().unwrap().status.success());
    let mut trace = start(&bench, cluster.pid, 5);
    let load = pgbench().args(["-c", "4", "-T", "4", "postgres"]).output().unwrap();
    assert!(load.status.success());
    let records = trace.finish(Duration::from_secs(5));
    let (count, ..) = ended(&records, "transactionid");
    say(&format!("measured a healthy server: {count} waits for rows, no finding"));
    assert!(count > 100, "{count} waits");
    assert_eq!(findings(&trace), []);
    let end = lines(&records, "end")[0];
    assert_eq!(end["balanced"], true);
}

/// The third story as it is under `scripts`, with its Node.js server.
struct Story {
    process: Process,
    server: u32,
    postmaster: u32,
    port: u32,
}

impl Story {
    fn start(mode: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        if !Path::new(BIN).join("postgres").exists() || !root.join(".cache/workloads/node_modules/pg").exists() {
            skip("PostgreSQL 15 and the packages of the stories (cargo xtask setup)");
            return None;
        }
        let mut command = Command::new(root.join("scripts/workloads/story-postgres"));
        let mut process = Process::spawn(command.args([mode, "120"]));
        let ready = process.wait_out_within("READY ", Duration::from_mins(2));
        let pids: Vec<u32> = ready.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        let [server, postmaster, port] = pids[..] else { panic!("{ready}") };
        Some(Self { process, server, postmaster, port })
    }

    #[track_caller]
    fn ask(&self, sql: &str) -> Vec<String> {
        let mut command = as_postgres("psql");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-XqAt", "-c", sql]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// It takes its cluster away as it ends.
    fn end(mut self) {
        self.process.close_stdin();
        self.process.wait(Duration::from_secs(30));
    }
}

/// What `agent diagnose` said.
struct Said {
    code: Option<i32>,
    findings: Vec<Value>,
}

#[track_caller]
fn diagnose(whom: &[&str], seconds: u32) -> Said {
    let duration = format!("{seconds}s");
    let mut command = vec!["diagnose", "--duration", &duration, "--format", "ndjson"];
    command.extend_from_slice(whom);
    let mut process = Process::spawn(&mut agent_command(&command));
    let status = process.wait(Duration::from_secs(u64::from(seconds) + 60));
    let lines = process.out.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    Said { code: status.code(), findings: lines.filter(|line| line["type"] == "finding").collect() }
}

#[track_caller]
fn of<'a>(said: &'a Said, pid: u32, code: &str) -> &'a Value {
    let is_it = |finding: &&Value| finding["pid"] == pid && finding["code"] == code;
    said.findings.iter().find(is_it).unwrap_or_else(|| panic!("no {code} of {pid}: {:#?}", said.findings))
}

#[test]
fn the_pile_up_is_found_from_the_side_of_its_victim_and_the_advice_ends_it() {
    if bench().is_none() {
        return;
    }
    let Some(mut story) = Story::start("fault") else { return };
    let said = diagnose(&["--pid", &story.server.to_string()], 8);
    let of_host = diagnose(&["--all"], 5);
    story.process.write("truth\n");
    let truth: Value = serde_json::from_str(&story.process.wait_out("TRUTH ")).unwrap();
    let only = |sql: &str| story.ask(sql).first().cloned().unwrap_or_default();
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    let vacuum = only("select pid from pg_stat_activity where query like '%manta (to prevent wraparound)'");
    let head = only(&format!("select pid from pg_stat_activity where pg_blocking_pids(pid) = '{{{vacuum}}}'"));
    let waiters: u64 = only(waiting).parse().unwrap();
    assert!(waiters >= 11, "{waiters}");

    let victim = of(&said, story.server, "postgres.awaited_lock");
    let title = victim["title"].as_str().unwrap();
    assert!(title.contains(": all of the 10 connections to PostgreSQL wait for a lock on public.manta"), "{title}");
    assert!(title.ends_with(&format!("behind {head}, which waits for {vacuum} (autovacuum to prevent wraparound)")));
    let evidence: Vec<&Value> = victim["evidence"].as_array().unwrap().iter().collect();
    assert!(evidence[0]["value"].as_f64().unwrap() > 95.0, "the loop is idle: {evidence:#?}");
    assert_eq!(victim["severity"], "critical");
    // Who awaits: as many calls as the server has not answered, in the line that holds the query.
    let source = include_str!("../../../scripts/workloads/story-postgres.js");
    let line = 1 + source.lines().position(|line| line.contains("await pool.query('select value")).unwrap();
    let awaiting = truth["awaiting"].as_f64().unwrap();
    let awaits = evidence.iter().find(|line| line["unit"] == "calls").unwrap_or_else(|| panic!("{evidence:#?}"));
    let text = awaits["text"].as_str().unwrap();
    assert!(text.contains(&format!("awaits in getOrder (story-postgres.js:{line}) go on")), "{text}");
    close("calls that await PostgreSQL", awaiting, awaits["value"].as_f64().unwrap(), 0.0);

    for said in [&said, &of_host] {
        let pileup = of(said, story.postmaster, "postgres.lock_pileup");
        let title = pileup["title"].as_str().unwrap();
        assert!(
            title.starts_with(&format!("{waiters} PostgreSQL backends wait for a lock on public.manta")),
            "{title}"
        );
        let text = pileup.to_string();
        assert!(text.contains(&format!("{head} is first in line, wants AccessExclusiveLock")), "{text}");
        assert!(text.contains(&format!("{vacuum} (autovacuum to prevent wraparound) holds ShareUpdateExclusiveLock")));
        assert!(text.contains(&format!("behind it {} want AccessShareLock", waiters - 1)), "{text}");
        let next = pileup["next"][0].as_str().unwrap();
        assert!(next.starts_with(&format!("select pg_cancel_backend({head}):")), "{next}");
        assert!(next.contains(&format!("{} waiters go on at once", waiters - 1)), "{next}");
    }

    // The truth of the advice: one is cancelled, and nobody waits.
    story.ask(&format!("select pg_cancel_backend({head})"));
    let deadline = Instant::now() + patience(Duration::from_secs(5));
    while only(waiting) != "0" {
        assert!(Instant::now() < deadline, "{} still wait", only(waiting));
        thread::sleep(Duration::from_millis(50));
    }
    story.end();
}

#[test]
fn the_healthy_twin_of_the_pile_up_is_no_finding() {
    if bench().is_none() {
        return;
    }
    let Some(story) = Story::start("healthy") else { return };
    let said = diagnose(&["--pid", &story.server.to_string()], 20);
    let waits: i64 = story.ask("select n from visits")[0].parse().unwrap();
    say(&format!("measured the healthy twin: {waits} requests wanted the same row, vacuums went on, no finding"));
    assert!(waits > 100, "{waits}");
    assert_eq!((said.code, said.findings), (Some(0), Vec::new()), "the healthy twin");
    story.end();
}
