//! What PostgreSQL's backends wait for, against `pg_stat_activity`; and whose connections they serve over Unix sockets.

use std::{collections::BTreeMap, path::Path, process::Command, thread, time::Duration};

use serde_json::Value;

use crate::{
    govern::hits_a_second,
    harness::{Process, Trace, VERSION, bench, close, node, say, skip},
    postgres::{Cluster, as_postgres, lines, waited},
};

/// `pgbench` on a cluster; it ends with its guard.
fn pgbench(cluster: &Cluster, args: &[&str]) -> Process {
    let mut command = as_postgres("pgbench");
    command.args(["-h", "127.0.0.1", "-p", &cluster.port.to_string(), "-U", "postgres", "-n"]).args(args);
    Process::spawn(&mut command)
}

/// What backends of `pgbench` waited for in so many looks at `pg_stat_activity`, and how often.
fn sampled(cluster: &Cluster, looks: u32) -> BTreeMap<(String, String), u32> {
    let sql = format!(
        "do $$ begin create temp table s(class text, event text); for i in 1..{looks} loop \
           perform pg_sleep(0.005 + 0.01 * random()); perform pg_stat_clear_snapshot(); \
           insert into s select wait_event_type, wait_event from pg_stat_activity \
             where application_name = 'pgbench' and wait_event is not null; \
         end loop; end $$; select class, event, count(*) from s group by 1, 2"
    );
    let row = |row: &String| {
        let mut fields = row.split('|').map(str::to_owned);
        let mut next = || fields.next().unwrap();
        ((next(), next()), next().parse().unwrap())
    };
    cluster.ask(&sql).iter().map(row).collect()
}

#[test]
fn waits_by_event_are_as_pg_stat_activity_has_them() {
    const LOOKS: u32 = 300;
    let Some(bench) = bench() else { return };
    let Some(cluster) = Cluster::start("autovacuum=off\nfsync=on") else { return };
    let mut fill = pgbench(&cluster, &["-i", "-q", "-s", "1", "postgres"]);
    assert!(fill.wait(Duration::from_secs(30)).success(), "{}", fill.err_text());
    let load = pgbench(&cluster, &["-c", "12", "-T", "60", "postgres"]);
    thread::sleep(Duration::from_millis(500));
    // All of them: a part of the time would be a sample, too.
    let trace = Trace::start(&bench, cluster.pid, &["--duration", "30s", "--max-overhead", "100%"]);
    let truth = sampled(&cluster, LOOKS);
    let records = trace.interrupt();
    drop(load);
    let (events, duration) = waited(&records);
    let mut compared = 0;
    for (name, samples) in &truth {
        if ["Client", "Activity", "Timeout"].contains(&name.0.as_str()) {
            assert!(!events.contains_key(name), "{name:?} is idling");
            continue;
        }
        // Of what is rare, chance would be compared.
        if *samples < LOOKS / 10 {
            continue;
        }
        let average = f64::from(*samples) / f64::from(LOOKS);
        let seen = events.get(name).unwrap_or_else(|| panic!("no {name:?} in {events:?}")) / duration;
        say(&format!("measured {}:{}: {seen:.2} backends on average, {average:.2} sampled", name.0, name.1));
        close(&format!("backends that wait for {}:{}", name.0, name.1), average, seen, 0.1 * average + 0.25);
        compared += 1;
    }
    assert!(compared >= 2, "{truth:?}");
    assert!(events.keys().all(|(_, event)| !event.starts_with('#')), "the server names all of them: {events:?}");
}

/// Switches a second that are looked at, at most: the budget allows a twentieth of that, and a look or two more or less are much in so
/// short a time.
const SWITCHES_MAX: f64 = 30_000.0;

#[test]
fn waits_of_a_cluster_that_never_rests_are_watched_now_and_then_and_long_ones_found_all_the_same() {
    let Some(bench) = bench() else { return };
    let Some(cluster) = Cluster::start("autovacuum=off\nfsync=off") else { return };
    let mut fill = pgbench(&cluster, &["-i", "-q", "-s", "1", "postgres"]);
    assert!(fill.wait(Duration::from_secs(30)).success(), "{}", fill.err_text());
    let load = pgbench(&cluster, &["-c", "8", "-T", "60", "postgres"]);
    let mut keeper = cluster.session();
    keeper.run("create table kept(a int); begin; lock table kept");
    let mut trace = Trace::start(&bench, cluster.pid, &["--duration", "15s", "--max-overhead", "0.1%"]);
    thread::sleep(Duration::from_secs(4));
    let mut waiter = cluster.session();
    waiter.send("select count(*) from kept");
    let records = trace.finish(Duration::from_secs(15));
    let lasts = cluster.ask(
        "select extract(epoch from clock_timestamp() - query_start) from pg_stat_activity where query like '%from kept;'",
    );
    drop(load);
    let windows = lines(&records, "pg_window");
    let sum = |key: &str| windows.iter().filter_map(|window| window[key].as_f64()).sum::<f64>();
    let share = sum("waits_seen_ns") / sum("duration_ns");
    let hits = hits_a_second(&records, &["postgres_switch"]);
    say(&format!("measured a hot cluster: {hits:.0} switches looked at a second, {share:.3} of the time seen"));
    assert!((0.001..0.5).contains(&share), "{share} of the time seen");
    assert!(hits < SWITCHES_MAX, "{hits} switches a second");
    // The one long wait is told as it is, and no row that is waited for again and again is taken for one.
    let oldest =
        |kind: &str| windows.iter().filter_map(|window| window["oldest_wait_ns"][kind].as_f64()).fold(0.0, f64::max);
    let last = windows.last().unwrap()["oldest_wait_ns"]["relation"].as_f64().unwrap_or(0.0) / 1e9;
    let truth: f64 = lasts[0].parse().unwrap();
    close("a long wait in a hot cluster (s)", truth, last, 1.0);
    assert!(oldest("transactionid").max(oldest("tuple")) < 2e9, "{windows:#?}");
}

/// Opens three connections over a Unix socket that all want the same advisory lock.
const CLIENT: &str = "
const { createRequire } = require('module');
const { Client } = createRequire(process.argv[1] + '/')('pg');
const connect = async () => {
  const client = new Client({ host: process.argv[2], port: process.argv[3], user: 'postgres', database: 'postgres',
                              application_name: 'over_unix' });
  await client.connect();
  return client;
};
Promise.all([connect(), connect(), connect()]).then((clients) => {
  for (const client of clients) client.query('select pg_advisory_lock(7)').catch(() => {});
  console.log('READY');
});
setInterval(() => {}, 1000);
";

#[test]
fn connections_over_a_unix_socket_are_joined_to_their_backends() {
    let Some(bench) = bench() else { return };
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/workloads");
    if !modules.join("node_modules/pg").exists() {
        skip("the packages of the stories (cargo xtask setup)");
        return;
    }
    let Some(cluster) = Cluster::start("autovacuum=off") else { return };
    let mut keeper = cluster.session();
    keeper.run("select pg_advisory_lock(7)");
    let mut command = Command::new(node(VERSION));
    command.args(["-e", CLIENT]).arg(&modules).arg(cluster.dir.path()).arg(cluster.port.to_string());
    let mut client = Process::spawn(&mut command);
    client.wait_out("READY");
    let pid = client.pid();
    let postmaster = cluster.pid.to_string();
    let mut trace = Trace::start(&bench, pid, &["--duration", "3s", "--postgres", &postmaster]);
    let waiting = "select count(*) from pg_stat_activity where application_name = 'over_unix' \
                   and client_port = -1 and wait_event_type = 'Lock'";
    thread::sleep(Duration::from_secs(1));
    let truth: u64 = cluster.ask(waiting)[0].parse().unwrap();
    let records = trace.finish(Duration::from_secs(3));
    let of_client = lines(&records, "pg_client").into_iter().find(|line| line["waiting"].as_u64() > Some(0));
    let of_client = of_client.unwrap_or_else(|| panic!("{:#?}", lines(&records, "pg_client")));
    say(&format!(
        "measured connections over a Unix socket: {}, of which wait {}",
        of_client["connections"], of_client["waiting"]
    ));
    assert_eq!(truth, 3);
    assert_eq!((&of_client["connections"], &of_client["waiting"]), (&Value::from(truth), &Value::from(truth)));
    assert_eq!(of_client["pid"], pid);
}
