//! Profiles over OTLP, of real processes: as OpenTelemetry's own definitions read them, they hold what the same run's records hold.

use std::{collections::BTreeSet, path::Path, time::Duration};

use agent::report::{Record, flame::Measure, flame::note};
use rustix::process::Signal;

use crate::{
    collector::Http,
    harness::{Trace, VERSION, Workload, bench, close, say, skip, slowness},
    otlp_profiles::{self, Profile, Sums},
    resident::{Daemon, LIMIT},
};

/// What a collector was sent, and the records of the same run.
fn sent(collector: &Http, ndjson: &Path) -> (Vec<Profile>, Vec<Record>) {
    let requests = collector.requests.lock().unwrap().clone();
    let bodies = requests.iter().filter(|request| request.path == "/v1development/profiles").map(|request| {
        let is_json = request.header("content-type") == Some("application/json");
        let body = Some(request.body.as_slice());
        otlp_profiles::line(body.filter(|_| !is_json), body.filter(|_| is_json))
    });
    let profiles = otlp_profiles::read(&bodies.collect::<Vec<_>>().concat());
    let text = std::fs::read_to_string(ndjson).unwrap();
    (profiles, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Stays without a stack, whatever the reason: the whole of a run knows one reason for all of a place, a window its own.
fn one_note(sums: Sums) -> Sums {
    let mut merged = Sums::new();
    for (names, value) in sums {
        let names = if names == [note::ASLEEP] { vec![note::NO_STACK.to_owned()] } else { names };
        *merged.entry(names).or_default() += value;
    }
    merged
}

/// The same time, or as many samples, in the same stacks; but for those whose frames came later than a profile waits for them.
#[track_caller]
fn assert_same(of: &str, profiles: &[Profile], records: &[Record], measure: Measure) {
    let sent = otlp_profiles::sums(profiles, of);
    let (mut sent, kept) = (one_note(sent), one_note(otlp_profiles::sums_of_records(records, measure)));
    let total = |sums: &Sums| sums.values().sum::<u64>() as f64;
    assert!(total(&kept) > 0.0, "nothing was measured");
    // On a slow machine a window may be sent before it is known that a thread waited for more than work.
    let allowed = if slowness() > 1 { 0.01 * total(&kept) } else { 0.0 };
    close(&format!("{of} over OTLP, in all"), total(&kept), total(&sent), allowed);
    let unnamed: Sums = sent.extract_if(.., |names, _| names.iter().any(|name| name == note::NOT_NAMED)).collect();
    let known = |names: &Vec<String>| kept.get(names).copied().unwrap_or(0);
    let is_other = |names: &Vec<String>, value: u64| known(names) < value || known(names) > value && unnamed.is_empty();
    let others: Vec<_> = sent.iter().filter(|(names, value)| is_other(names, **value)).collect();
    let not_sent: Vec<_> = kept.iter().filter(|(names, _)| !sent.contains_key(*names)).collect();
    assert!(others.is_empty(), "sent otherwise than recorded: {others:#?}; recorded, and not sent: {not_sent:#?}");
    say(&format!("measured {of} over OTLP: {} stacks, {} not named in time", sent.len(), unnamed.len()));
}

#[test]
fn profiles_over_otlp_hold_what_the_records_hold() {
    let Some(bench) = bench() else { return };
    if !otlp_profiles::python().exists() {
        return skip(".cache/python (cargo xtask setup)");
    }
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let collector = Http::listen(&[]);
    let to = format!("otlp+http://{}", collector.address);
    let args = ["--duration", "3s", "--to", &to, "--signals", "metrics,profiles"];
    let mut trace = Trace::start(&bench, workload.pid(), &args);
    let seen = trace.finish(Duration::from_secs(3));
    let (profiles, records) = sent(&collector, &trace.ndjson);
    assert_same("samples", &profiles, &records, Measure::OnCpu);
    assert_same("off_cpu", &profiles, &records, Measure::OffCpu);

    let windows: Vec<&Record> = records.iter().filter(|record| record.pid == workload.pid()).collect();
    assert!(!windows.is_empty() && seen.of_type("window").count() >= 3);
    for profile in &profiles {
        assert_eq!(profile.resource["process.pid"], workload.pid());
        assert_eq!(profile.resource["process.runtime.name"], "nodejs");
    }
    let samples = || profiles.iter().filter(|profile| profile.of[0] == "samples");
    assert!(samples().all(|profile| profile.period > 0 && profile.duration > 0));
    let main = u64::from(workload.pid());
    let busy = samples().flat_map(|profile| &profile.samples).filter(|sample| sample.attributes["thread.id"] == main);
    let busy =
        busy.flat_map(|sample| &sample.frames).find(|frame| frame.name == "busy").expect("the function that burns");
    assert_eq!(busy.kind.as_deref(), Some("v8js"));
    assert!(busy.file.ends_with("/truth.js") && busy.line > 0, "{busy:?}");
    let metrics = collector.requests.lock().unwrap().iter().filter(|request| request.path == "/v1/metrics").count();
    assert!(metrics > 0 && !collector.requests.lock().unwrap().iter().any(|request| request.path == "/v1/logs"));
}

#[test]
fn a_profile_goes_to_a_collector_as_json_too() {
    let Some(bench) = bench() else { return };
    if !otlp_profiles::python().exists() {
        return skip(".cache/python (cargo xtask setup)");
    }
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let collector = Http::listen(&[]);
    let to = format!("otlp-json+http://{}", collector.address);
    let mut trace = Trace::profile(&bench, workload.pid(), &["--duration", "2s", "--wall", "--to", &to]);
    trace.finish(Duration::from_secs(2));
    let (profiles, records) = sent(&collector, &trace.ndjson);
    assert!(collector.requests.lock().unwrap().iter().all(|request| request.path == "/v1development/profiles"));
    assert_same("samples", &profiles, &records, Measure::OnCpu);
    let named = profiles
        .iter()
        .flat_map(|profile| &profile.samples)
        .filter(|sample| sample.attributes.contains_key("thread.name"));
    assert!(named.count() > 0, "threads have names");
}

#[test]
fn a_daemon_sends_profiles_beside_metrics_and_logs() {
    let Some(bench) = bench() else { return };
    if !otlp_profiles::python().exists() {
        return skip(".cache/python (cargo xtask setup)");
    }
    let collector = Http::listen(&[]);
    let stream = format!(
        "[[stream]]\ntype = \"otlp\"\nto = \"http://{}\"\nsignals = [\"metrics\", \"logs\", \"profiles\"]\n",
        collector.address
    );
    let mut daemon = Daemon::configured(&bench, "profiles", &stream, &[]);
    let workloads = [VERSION, "20.20.2"].map(|version| Workload::start(version, "mixed.js", &[]));
    let pids = workloads.iter().map(|workload| u64::from(workload.pid())).collect();
    daemon.await_all("profile", &pids);
    std::thread::sleep(Duration::from_secs(2));
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success(), "{}", daemon.process.err_text());
    let (profiles, records) = sent(&collector, &daemon.ndjson);
    assert_same("samples", &profiles, &records, Measure::OnCpu);
    assert_same("off_cpu", &profiles, &records, Measure::OffCpu);
    let whose: BTreeSet<u64> = profiles.iter().filter_map(|profile| profile.resource["process.pid"].as_u64()).collect();
    assert_eq!(whose, pids);
    let paths: BTreeSet<String> =
        collector.requests.lock().unwrap().iter().map(|request| request.path.clone()).collect();
    assert!(paths.contains("/v1/metrics"), "{paths:?}");
}
