//! Made-up records of a profile: every kind of frame, two processes, recursion, a chain of awaits, stacks that are cut or missing.

use std::sync::Arc;

use agent::report::{
    Body, Record,
    model::{
        Class, Degraded, End, EndReason, Frame, FrameKind, LedgerPart, Measure, OffCpu, OffCpuStack, OffCpuTotals,
        OffReason, Profile, ProfileStack, ProfileThread, Role, SCHEMA_VERSION, Space, Stack, StackId, Target, Tier,
        TraceConfig, Truncated,
    },
};

const MS: u64 = 1_000_000;
/// 99 samples a second.
pub const PERIOD_NS: u64 = 10_101_010;
pub const PID: u32 = 4121;
const POOL: u32 = 4125;
const SECOND_PID: u32 = 5200;

fn record(pid: u32, body: Body) -> Record {
    Record { schema_version: SCHEMA_VERSION, time: "2026-11-24T20:16:31.000000000Z".into(), pid, body }
}

pub fn js(name: &str, file: &str, line: u32, tier: Tier) -> Frame {
    Frame {
        name: name.into(),
        kind: FrameKind::Js,
        file: Some(file.into()),
        line: Some(line),
        column: Some(7),
        function_line: Some(line - 1),
        function_column: Some(15),
        tier: Some(tier),
        ..Frame::default()
    }
}

pub fn frame(name: &str, kind: FrameKind) -> Frame {
    Frame { name: name.into(), kind, ..Frame::default() }
}

fn native(name: &str) -> Frame {
    Frame { module: Some("node".into()), ..frame(name, FrameKind::Native) }
}

/// Innermost first, from JavaScript's entry down to the thread's start.
fn bottom() -> Vec<Frame> {
    vec![
        frame("JSEntry", FrameKind::Builtin),
        native(
            "v8::internal::Invoke(v8::internal::Isolate*, v8::internal::(anonymous namespace)::InvokeParams const&)",
        ),
        native("uv__run_timers"),
        native("uv_run"),
        native("node::Start(int, char**)"),
        frame("libc.so.6+0x27249", FrameKind::Unknown),
    ]
}

fn stack(id: u64, space: Space, frames: Vec<Frame>, truncated: Option<Truncated>) -> Record {
    let frames = frames.into_iter().map(Arc::new).collect();
    record(PID, Body::Stack(Stack { id: StackId(id), space, frames, truncated }))
}

/// Express: each middleware is three frames.
fn recursion(deep: usize, handler: Frame) -> Vec<Frame> {
    let cycle = [
        js("handle", "/srv/node_modules/router/layer.js", 152, Tier::Turbofan),
        js("layer", "/srv/node_modules/router/index.js", 435, Tier::Turbofan),
        js("next", "/srv/node_modules/router/index.js", 295, Tier::Turbofan),
    ];
    let mut frames = vec![handler];
    frames.extend(cycle.iter().cycle().take(3 * deep).cloned());
    frames.extend(bottom());
    frames
}

fn stacks() -> Vec<Record> {
    let user = |id, frames, truncated| stack(id, Space::User, frames, truncated);
    let hash = || {
        let mut frames = vec![
            native("sha256_block_data_order_avx2"),
            native("node::crypto::PBKDF2Traits::DeriveBits(node::Environment*, node::crypto::PBKDF2Config const&)"),
            js("pbkdf2Sync", "node:internal/crypto/pbkdf2", 61, Tier::Interpreted),
            js("hashPassword", "/srv/auth.js", 41, Tier::Baseline),
        ];
        frames.extend(bottom());
        frames
    };
    let mut inlined = vec![
        Frame { inlined: true, ..js("scale", "file:///srv/math.mjs", 12, Tier::Turbofan) },
        js("render", "file:///srv/view.mjs", 80, Tier::Turbofan),
    ];
    inlined.extend(bottom());
    let mut awaited = vec![
        js("parse", "/srv/body.js", 7, Tier::Maglev),
        frame("AsyncFunctionAwaitResolveClosure", FrameKind::Builtin),
        native("node::InternalCallbackScope::Close()"),
        frame("", FrameKind::Async),
        js("readBody", "/srv/body.js", 30, Tier::Interpreted),
        js("route; <svg>\n&\"", "/srv/app.js", 9, Tier::Interpreted),
    ];
    awaited.last_mut().unwrap().start_line = true;
    let mut old = vec![
        frame("[js]", FrameKind::Js),
        Frame { tier: None, column: None, ..js("mapped", "/srv/old.js", 3, Tier::Baseline) },
    ];
    old.extend(bottom());
    vec![
        user(1, hash(), None),
        user(2, recursion(97, js("list", "/srv/app.js", 20, Tier::Turbofan)), None),
        user(
            3,
            recursion(12, Frame { function_line: Some(19), ..js("list", "/srv/app.js", 22, Tier::Turbofan) }),
            None,
        ),
        user(4, inlined, None),
        user(5, awaited, None),
        user(6, old, None),
        user(
            7,
            vec![frame("fib", FrameKind::Wasm), frame("libc.so.6+0x1", FrameKind::Unknown)],
            Some(Truncated::NoFramePointer),
        ),
        user(8, vec![native("worker"), frame("libc.so.6+0x891f4", FrameKind::Unknown)], None),
        user(9, vec![js("readConfig", "/srv/config.js", 5, Tier::Interpreted); 3], Some(Truncated::TooDeep)),
        stack(
            100,
            Space::Kernel,
            vec![frame("copy_user_generic", FrameKind::Kernel), frame("do_syscall_64", FrameKind::Kernel)],
            None,
        ),
        stack(
            101,
            Space::Kernel,
            vec![
                frame("__schedule", FrameKind::Kernel),
                frame("io_schedule", FrameKind::Kernel),
                frame("filemap_read", FrameKind::Kernel),
            ],
            None,
        ),
    ]
}

fn target(pid: u32, script: &str, measure: Measure) -> Record {
    record(
        pid,
        Body::Target(Box::new(Target {
            agent_version: "0.1.0".into(),
            process_start_time: None,
            trace_start_time: "2026-11-24T20:16:29.000000000Z".into(),
            exe: "/usr/bin/node".into(),
            command: vec!["/usr/bin/node".into(), format!("/srv/{script}")],
            node_version: Some("v22.23.3".into()),
            thread_pool_size: Some(4),
            config: TraceConfig { sample_hz: 99, profile: Some(measure), ..TraceConfig::default() },
            degraded: vec![Degraded { feature: "life".into(), reason: "no BTF (test data)".into() }],
            kernel_release: "6.18.44".into(),
            cpus: 2,
            resource: std::collections::BTreeMap::new(),
        })),
    )
}

fn sampled(tid: u32, user: u64, kernel: u64, samples: u64, gc_samples: u64) -> ProfileStack {
    let id = |id| (id != 0).then_some(StackId(id));
    ProfileStack { tid, class: Class::Other, user_stack: id(user), kernel_stack: id(kernel), samples, gc_samples }
}

fn threads(measure: Measure) -> Vec<ProfileThread> {
    let ledger = |on_cpu_ns, idle_ns, blocked_ns| {
        (measure != Measure::OnCpu).then(|| LedgerPart {
            wall_ns: 1_000 * MS,
            idle_ns,
            on_cpu_ns,
            blocked_ns,
            runnable_ns: 30 * MS,
            switches: 200,
            ..LedgerPart::default()
        })
    };
    vec![
        ProfileThread { tid: PID, name: "node".into(), role: Role::Main, ledger: ledger(700 * MS, 200 * MS, 70 * MS) },
        ProfileThread {
            tid: POOL,
            name: "libuv-worker".into(),
            role: Role::Other,
            ledger: ledger(300 * MS, 600 * MS, 70 * MS),
        },
    ]
}

fn stay(tid: u32, reason: OffReason, user: u64, kernel: u64, total_ns: u64, runnable_ns: u64) -> OffCpuStack {
    OffCpuStack {
        tid: Some(tid),
        class: if tid == PID { Class::EventLoop } else { Class::Other },
        reason,
        user_stack: (user != 0).then_some(StackId(user)),
        kernel_stack: (kernel != 0).then_some(StackId(kernel)),
        totals: OffCpuTotals {
            count: 3,
            total_ns,
            runnable_ns,
            max_ns: total_ns / 2,
            over_budget: u64::from(user == 0),
        },
    }
}

/// Two seconds of two processes.
pub fn records(measure: Measure) -> Vec<Record> {
    let mut records = vec![target(PID, "server.js", measure), target(SECOND_PID, "worker.js", measure)];
    records.extend(stacks());
    for _ in 0..2 {
        let samples = vec![
            sampled(PID, 1, 0, 41, 0),
            sampled(PID, 2, 0, 9, 2),
            sampled(PID, 3, 0, 4, 0),
            sampled(PID, 4, 0, 6, 1),
            sampled(PID, 5, 0, 5, 0),
            sampled(PID, 6, 100, 2, 0),
            sampled(POOL, 8, 0, 20, 0),
            // Its line never came.
            sampled(PID, 77, 0, 1, 0),
            sampled(PID, 0, 0, 1, 0),
        ];
        let has_samples = measure != Measure::OffCpu;
        let profile = Profile {
            duration_ns: 1_000 * MS,
            period_ns: if has_samples { PERIOD_NS } else { 0 },
            stacks: if has_samples { samples } else { Vec::new() },
            other_samples: if has_samples { 3 } else { 0 },
            threads: threads(measure),
        };
        records.push(record(PID, Body::Profile(profile.clone())));
        let stacks = profile.stacks.iter().take(1).map(|stack| ProfileStack { tid: SECOND_PID, ..stack.clone() });
        let second = Profile { stacks: stacks.collect(), other_samples: 0, threads: Vec::new(), ..profile.clone() };
        records.push(record(SECOND_PID, Body::Profile(second)));
        if measure != Measure::OnCpu {
            let stacks = vec![
                stay(PID, OffReason::Blocked, 9, 101, 60 * MS, 5 * MS),
                stay(PID, OffReason::Preempted, 1, 0, 12 * MS, 12 * MS),
                stay(PID, OffReason::Stopped, 0, 0, 2 * MS, 0),
                stay(POOL, OffReason::Blocked, 8, 0, 65 * MS, MS),
            ];
            let other = Some(OffCpuTotals { count: 7, total_ns: 9 * MS + 7, ..OffCpuTotals::default() });
            records.push(record(PID, Body::OffCpu(OffCpu { stacks, other })));
        }
    }
    records.push(record(
        0,
        Body::End(End { reason: EndReason::Duration, duration_ns: 2_000 * MS, families: Vec::new(), balanced: true }),
    ));
    records
}
