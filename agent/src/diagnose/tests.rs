//! Rules over histories that are made up: what is a finding, and what only looks like one.

use super::{
    History, cost,
    history::{Point, Process},
    js_heap, native,
    thresholds::Thresholds,
};
use crate::report::{
    Body, Record,
    heap::Constructor,
    model::{
        Finding, Frame, FrameKind, Heap, HeapCount, Memory, Profile, ProfileStack, SCHEMA_VERSION, Stack, StackId,
        Window,
    },
};

const MB: u64 = 1_000_000;

/// A minute of windows.
fn minute(point: impl Fn(u32) -> Point) -> Process {
    let mut process = Process::default();
    for second in 0..60 {
        process.windows.push_back(Point { at_s: f64::from(second), length_s: 1.0, ..point(second) });
    }
    process
}

fn cost_of(requests: impl Fn(f64) -> f64, on_cpu_ms: impl Fn(f64) -> f64) -> Option<Finding> {
    let process = minute(|second| Point {
        requests: Some(requests(f64::from(second))),
        on_cpu_ns: on_cpu_ms(f64::from(second)) * 1e6,
        ..Point::default()
    });
    cost::rule(&process, &Thresholds::default())
}

#[test]
fn requests_that_cost_more_and_more_are_a_finding() {
    let found = cost_of(|_| 100.0, |t| 100.0 + 5.0 * t);
    assert_eq!(found.map(|finding| finding.code).as_deref(), Some("requests.cost"));
    // A loop that can do no more, under clients that wait: fewer and fewer get through.
    assert!(cost_of(|t| 900.0 / (1.0 + t / 20.0), |_| 900.0).is_some());
}

#[test]
fn a_load_that_changes_is_no_cost() {
    assert!(cost_of(|_| 100.0, |_| 100.0).is_none());
    // More of them, at the same price.
    assert!(cost_of(|t| 50.0 + 10.0 * t, |t| 50.0 + 10.0 * t).is_none());
    // Fewer and fewer, beside work of the server's own.
    assert!(cost_of(|t| 200.0 / (1.0 + t / 10.0), |t| 300.0 + 200.0 / (1.0 + t / 10.0)).is_none());
    // Cold at first.
    assert!(cost_of(|_| 100.0, |t| 100.0 + 400.0 * (-t / 5.0).exp()).is_none());
    // Dearer for a while, and no more since.
    assert!(cost_of(|_| 100.0, |t| if t < 20.0 { 100.0 } else { 300.0 }).is_none());
}

/// A minute of 100 requests a second which cost nearly twice as much at last; `walk` is the share of the samples that a function of its own
/// has by then.
fn cost_with_walk(walk: impl Fn(u32) -> u64) -> Option<Finding> {
    let js = |name: &str| Frame { name: name.to_owned(), kind: FrameKind::Js, ..Frame::default() };
    let stack = |name: &str| Stack {
        frames: vec![Frame { file: Some("/srv/app.js".to_owned()), ..js(name) }.into(), js("onRequest").into()],
        ..Stack::default()
    };
    let mut process = minute(|second| {
        let samples = u64::from(20 + second / 3);
        let of = |id, samples| ProfileStack { user_stack: Some(id), samples, ..ProfileStack::default() };
        let walking = samples * walk(second) / 100;
        let stacks = vec![
            of(StackId(1), walking),
            of(StackId(2), (samples - walking) / 2),
            of(StackId(3), (samples - walking) / 2),
        ];
        Point {
            requests: Some(100.0),
            on_cpu_ns: f64::from(20 + second / 3) * 1e7,
            profile: Profile { period_ns: 10_000_000, stacks, ..Profile::default() },
            ..Point::default()
        }
    });
    process.stacks = [(StackId(1), stack("walk")), (StackId(2), stack("parse")), (StackId(3), stack("answer"))].into();
    cost::rule(&process, &Thresholds::default())
}

#[test]
fn what_makes_everything_slower_is_no_list() {
    assert!(cost_with_walk(|_| 20).is_none());
    let found = cost_with_walk(|second| u64::from(10 + second)).unwrap_or_default();
    assert!(found.evidence.iter().any(|line| line.text.starts_with("walk ")), "{found:?}");
    // It was nearly all from the first.
    assert!(cost_with_walk(|_| 90).is_some());
}

#[test]
fn a_cost_that_nobody_feels_is_no_finding() {
    let by = |ms: f64| cost_of(|_| 10.0, move |t| 2.0 + t * ms);
    assert!(by(0.05).is_none());
    assert!(by(2.0).is_some());
}

/// A heap of which each tenth second's collection leaves so much, over which the rest piles up until the next.
fn heap(left: impl Fn(u32) -> u64, until: u32) -> Option<Finding> {
    let process = minute(|second| {
        let collected = second % 10 == 5 && second < until;
        let used = left(second) + u64::from((second + 5) % 10) * 3 * MB;
        let heap = Heap {
            used_bytes: Some(used),
            used_bytes_after_major: collected.then(|| left(second)),
            limit_bytes: Some(4000 * MB),
            ..Heap::default()
        };
        Point { memory: Some(Memory { heaps: vec![heap], ..Memory::default() }), ..Point::default() }
    });
    js_heap::rule(&process, &Thresholds::default())
}

#[test]
fn objects_that_survive_each_collection_are_a_finding() {
    let found = heap(|second| (30 + u64::from(second)) * MB, 60);
    assert_eq!(found.map(|finding| finding.code).as_deref(), Some("memory.js_heap"));
}

#[test]
fn a_heap_that_fills_up_or_waits_to_be_collected_is_none() {
    assert!(heap(|_| 30 * MB, 60).is_none());
    // A cache that is full after half the time.
    assert!(heap(|second| (30 + u64::from(second.min(30))) * MB, 60).is_none());
    // The same, and as it makes no garbage then, nothing is collected any more.
    assert!(heap(|second| (30 + u64::from(second.min(20))) * MB, 26).is_none());
}

/// A heap that is never collected as a whole, and counted each tenth second: so many sessions, of a hundred bytes each, beside the rest.
fn counted(sessions: impl Fn(u32) -> u64) -> Option<Finding> {
    counted_among_collections(sessions, |_| false, |_| None)
}

/// The same. Of some censuses, a quarter of the sessions was moved out of sight; what a full collection left, if there was one.
fn counted_among_collections(
    sessions: impl Fn(u32) -> u64,
    disturbed: impl Fn(u32) -> bool,
    left: impl Fn(u32) -> Option<u64>,
) -> Option<Finding> {
    let process = minute(|second| {
        let disturbed = disturbed(second);
        let seen = sessions(second) - if disturbed { sessions(second) / 4 } else { 0 };
        let sessions = sessions(second);
        let of = |name: &str, place: Option<&str>, objects, bytes| Constructor {
            name: name.to_owned(),
            place: place.map(str::to_owned),
            objects,
            bytes,
        };
        let census = HeapCount {
            object_bytes: 30 * MB + sessions * 1000,
            complete: true,
            disturbed,
            constructors: vec![
                of("(array)", None, 1000 + sessions, 20 * MB + sessions * 900),
                of("Object", None, 5000, 10 * MB),
                of("Session", Some("app.js:3"), seen, seen * 100),
            ],
            ..HeapCount::default()
        };
        let heap = Heap {
            used_bytes: Some(90 * MB),
            used_bytes_after_major: left(second),
            limit_bytes: Some(4000 * MB),
            ..Heap::default()
        };
        let census = (second % 10 == 5).then(|| Box::new(census));
        let memory = Memory { heaps: vec![heap], census, ..Memory::default() };
        Point { requests: Some(200.0), memory: Some(memory), ..Point::default() }
    });
    js_heap::rule(&process, &Thresholds::default())
}

#[test]
fn objects_that_are_more_at_each_census_are_a_finding_where_nothing_is_collected() {
    let found = counted(|second| 200 * u64::from(second));
    assert_eq!(found.as_ref().map(|finding| finding.code.as_str()), Some("memory.js_heap"));
    let lines = found.iter().flat_map(|finding| &finding.evidence).map(|line| line.text.as_str());
    assert_eq!(
        lines.take(3).collect::<Vec<_>>(),
        [
            "live objects, counted 6 times from outside, were 31 MB at first and 41 MB at last",
            "Session (app.js:3): 1000 objects at first and 11000 at last, 1.00 a request, 1.00 MB more",
            "(array): 2000 objects at first and 12000 at last, 1.00 a request, 9.00 MB more",
        ]
    );
}

#[test]
fn objects_a_request_are_told_by_censuses_during_which_nothing_was_moved() {
    let evidence = |disturbed: fn(u32) -> bool| {
        let found = counted_among_collections(|second| 200 * u64::from(second), disturbed, |_| None);
        let lines = found.iter().flat_map(|finding| &finding.evidence).map(|line| line.text.clone());
        lines.filter(|line| line.starts_with("Session")).collect::<Vec<_>>()
    };
    let told = |at_last: u32, each: &str, more: &str| {
        let of = "Session (app.js:3): 1000 objects at first and";
        vec![format!("{of} {at_last} at last, {each} a request, {more} more")]
    };
    assert_eq!(evidence(|second| second > 50), told(9000, "1.00", "800 kB"), "the last one does not count");
    assert_eq!(evidence(|second| second > 20), told(8250, "0.72", "725 kB"), "the others are too few");
}

#[test]
fn objects_that_are_no_more_in_the_end_are_none() {
    assert!(counted(|_| 9000).is_none());
    assert!(counted(|second| 300 * u64::from(second.min(30))).is_none());
    assert!(counted(|second| if (10..40).contains(&second) { 20_000 } else { 2000 }).is_none());
}

#[test]
fn censuses_that_happen_to_lie_on_a_line_say_nothing_among_collections_that_do_not() {
    let found = |left: fn(u32) -> Option<u64>| {
        counted_among_collections(|second| 200 * u64::from(second), |_| false, left).is_some()
    };
    let batches = |second: u32| second.is_multiple_of(4).then(|| u64::from(30 + second * 7 % 23) * MB);
    assert!(!found(batches));
    assert!(found(|second| second.is_multiple_of(4).then(|| u64::from(30 + second / 5) * MB)));
    assert!(
        found(|second| [20, 21].contains(&second).then(|| u64::from(90 - second) * MB)),
        "two at once are no trend"
    );
}

fn resident(bytes: impl Fn(u32) -> u64) -> Option<Finding> {
    resident_with(bytes, |_| (20 * MB, 10 * MB))
}

/// Resident bytes of all, and of the heap, and what that keeps.
fn resident_with(bytes: impl Fn(u32) -> u64, of_heap: impl Fn(u32) -> (u64, u64)) -> Option<Finding> {
    let process = minute(|second| {
        let (pages, kept) = of_heap(second);
        let heap = Heap { resident_bytes: Some(pages), used_bytes_min: Some(kept), ..Heap::default() };
        let mut memory = Memory { heaps: vec![heap], ..Memory::default() };
        memory.resident.anonymous_bytes = bytes(second);
        Point { memory: Some(memory), ..Point::default() }
    });
    native::rule(&process, &Thresholds::default())
}

#[test]
fn native_memory_that_grows_to_the_end_is_a_finding_and_a_burst_is_none() {
    assert!(resident(|second| (50 + u64::from(second)) * MB).is_some());
    assert!(resident(|_| 50 * MB).is_none());
    assert!(resident(|second| (50 + u64::from(second.min(25))) * MB).is_none());
    assert!(resident(|second| if (10..30).contains(&second) { 200 * MB } else { 50 * MB }).is_none());
}

#[test]
fn a_heap_that_is_given_more_room_takes_some_beside_it() {
    let all = |second: u32| (50 + 2 * u64::from(second)) * MB;
    let heap = |second: u32| (20 + u64::from(second)) * MB;
    assert!(resident_with(all, |second| (heap(second), 10 * MB)).is_none());
    assert!(
        resident_with(all, |second| (heap(second), heap(second) - 10 * MB)).is_some(),
        "a heap that keeps more, and a native leak"
    );
    assert!(resident_with(all, |second| (20 * MB + heap(second) / 10, 10 * MB)).is_some());
}

#[test]
fn what_is_counted_as_a_trace_ends_is_not_lost_with_a_window_that_is_too_short() {
    let mut history = History::default();
    let mut add = |body| history.add(&Record { schema_version: SCHEMA_VERSION, time: String::new(), pid: 7, body });
    for (duration_ns, objects) in [(1_000_000_000, 1), (40_000_000, 2)] {
        let census = HeapCount { objects, ..HeapCount::default() };
        add(Body::Memory(Box::new(Memory { census: Some(Box::new(census)), ..Memory::default() })));
        add(Body::Window(Box::new(Window { duration_ns, ..Window::default() })));
    }
    let windows = history.processes().flat_map(|(_, process)| &process.windows);
    let counts = windows.filter_map(|point| Some(point.memory.as_ref()?.census.as_ref()?.objects));
    assert_eq!(counts.collect::<Vec<_>>(), [2]);
}
