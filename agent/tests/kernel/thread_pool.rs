//! Thread-pool items against time stamps taken in the target.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

use crate::{
    harness::{Bench, VERSION, VERSIONS, Workload, bench, close, node, script, trace, within},
    records::{Histogram, Records, get, list, number, text},
};

struct Item {
    batch: u64,
    submitted: f64,
    called_back: f64,
}

/// What the target did, by kind of request.
fn items(truths: &Value) -> BTreeMap<String, Vec<Item>> {
    let mut by_kind: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    for item in list(truths, "items") {
        by_kind.entry(item[0].as_str().unwrap().to_owned()).or_default().push(Item {
            batch: item[1].as_u64().unwrap(),
            submitted: item[2].as_f64().unwrap(),
            called_back: item[3].as_f64().unwrap(),
        });
    }
    by_kind
}

/// Total waiting and running time of batches of equal items in a pool of so many threads, first come first served.
fn model(items: &[Item], threads: usize) -> (f64, f64) {
    let (mut waited, mut ran) = (0.0, 0.0);
    for batch in items.chunk_by(|a, b| a.batch == b.batch) {
        let mut ends: Vec<f64> = batch.iter().map(|item| item.called_back).collect();
        ends.sort_by(f64::total_cmp);
        for (k, (item, end)) in batch.iter().zip(&ends).enumerate() {
            let start = k.checked_sub(threads).map_or(item.submitted, |freed| ends[freed]);
            waited += start - item.submitted;
            ran += end - start;
        }
    }
    (waited, ran)
}

struct Work {
    count: f64,
    queue_wait: Histogram,
    run: Histogram,
    completion: Histogram,
    total: Histogram,
}

fn work(records: &Records, kind: &str) -> Work {
    let entries: Vec<_> = records
        .of_type("window")
        .filter_map(|window| window.get("thread_pool"))
        .flat_map(|pool| list(pool, "work"))
        .filter(|work| text(work, "kind") == kind)
        .collect();
    let merged = |key| Histogram::merged(entries.iter().map(|entry| get(entry, key)));
    Work {
        count: entries.iter().map(|entry| number(entry, "count")).sum(),
        queue_wait: merged("queue_wait"),
        run: merged("run"),
        completion: merged("completion_delay"),
        total: merged("total"),
    }
}

/// What is special about a run of `pool.js`.
pub struct Pool {
    pub threads: usize,
    /// Items of an `fs.readFile`: it opens, sizes, reads and closes, until Node.js 26 made it one job.
    pub read_file_items: f64,
    /// What zlib's items count as: their class has no external linkage, so a stripped file does not name it.
    pub zlib: &'static str,
}

/// Traces a run of `pool.js` and holds the two accounts of it side by side.
pub fn check(bench: &Bench, name: &str, mut workload: Workload, pool: &Pool) {
    // What is not seen of a pool that is too dear is another test's.
    let records = trace(bench, &mut workload, 3.0, &["--max-overhead", "100%"]);
    let truths = workload.truths();
    let span = records.span();
    let items = items(&truths);
    let last = items.values().flatten().map(|item| item.called_back).fold(0.0, f64::max);
    assert!(last < span.end, "the workload outlasted the trace");

    let name = format!("{name}, pool of {}", pool.threads);
    let count = |kind: &str| items[kind].len() as f64;
    // deflate writes and flushes.
    let requests = [
        ("crypto", count("pbkdf2")),
        ("fs", count("stat") + pool.read_file_items * count("readFile")),
        ("dns", count("lookup")),
        (pool.zlib, 2.0 * count("deflate")),
    ];
    for kind in ["crypto", "fs", "dns", "zlib", "other"] {
        let truth = requests.iter().find(|(of_kind, _)| *of_kind == kind).map_or(0.0, |(_, count)| *count);
        close(&format!("{name}: {kind} items"), truth, work(&records, kind).count, 0.0);
    }

    let crypto = work(&records, "crypto");
    let (waited, ran) = model(&items["pbkdf2"], pool.threads);
    let per_item = |sum: f64| sum / count("pbkdf2") / 1e6;
    let check = |claim: &str, truth: f64, agent: f64, share: f64| {
        close(&format!("{name}: pbkdf2 {claim} (ms, mean)"), truth, agent, within(truth, share, 20.0 * share));
    };
    // A thread that has to wait for a CPU between two items takes up the next one later than the model has it.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let share = if pool.threads < cpus { 0.05 } else { 0.15 };
    // The target sees an item's end only when its loop takes it back, for which that may wait for a CPU; until then a
    // pool thread may have gone on with the next item: the truth is known up to the way back.
    let waited_ms = per_item(crypto.queue_wait.sum);
    let way_back = per_item(crypto.completion.sum);
    check("queue wait", waited_ms.clamp(per_item(waited) - way_back, per_item(waited)), waited_ms, share);
    let rest_ms = per_item(crypto.run.sum + crypto.completion.sum);
    check("run and way back", rest_ms.clamp(per_item(ran), per_item(ran) + way_back), rest_ms, share);
    check("total", per_item(waited + ran), per_item(crypto.total.sum), 0.05);
    let parts = crypto.queue_wait.sum + crypto.run.sum + crypto.completion.sum;
    assert!((parts - crypto.total.sum).abs() < 1e-3 * crypto.total.sum, "{parts} is not {}", crypto.total.sum);

    for (kind, request) in [("dns", "lookup"), (pool.zlib, "deflate")] {
        let requests = &items[request];
        let truth: f64 = requests.iter().map(|item| item.called_back - item.submitted).sum();
        let agent = work(&records, kind);
        let per_request = |sum: f64| sum / requests.len() as f64 / 1e6;
        close(
            &format!("{name}: {request} total (ms, mean)"),
            per_request(truth),
            per_request(agent.total.sum),
            within(per_request(truth), 0.05, 1.0),
        );
    }
}

fn check_version(bench: &Bench, version: &str, threads: usize) {
    let mut command = Command::new(node(version));
    let workload = Workload::with(command.arg(script("pool.js")).env("UV_THREADPOOL_SIZE", threads.to_string()));
    let read_file_items = if version.starts_with("26.") { 1.0 } else { 4.0 };
    check(bench, version, workload, &Pool { threads, read_file_items, zlib: "zlib" });
}

#[test]
fn items_wait_and_run_as_long_as_the_target_says_on_every_version() {
    let Some(bench) = bench() else { return };
    for version in VERSIONS {
        check_version(&bench, version, 4);
    }
}

#[test]
fn in_a_pool_of_one_each_item_waits_for_all_before_it() {
    let Some(bench) = bench() else { return };
    check_version(&bench, VERSION, 1);
}
