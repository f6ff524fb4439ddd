//! `agent doctor`: what works here and on a process, what does not, why, and what to do about it.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use agent_ebpf::spec::Part;
use serde::Serialize;

use super::subject;
use crate::{
    cli::{DoctorArgs, exit},
    probe::{
        attach::{Probes, Settings, TracepointSkip},
        btf::KernelTypes,
        tracefs,
        way::Way,
    },
    target::host::{Capability, Host},
    units::Pid,
};

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// It works, but poorer.
    Poorer,
    /// It does not work.
    Off,
}

/// One line of the examination.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    state: State,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Serialize)]
struct Examination {
    agent_version: &'static str,
    kernel_release: String,
    host: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    checks: Vec<Check>,
    /// One line a probe: where it goes, or why it does not.
    probes: Vec<String>,
}

/// Runs the command and returns the exit code: 0 if a trace is possible, though perhaps poorer.
#[must_use]
pub fn run(args: &DoctorArgs) -> u8 {
    // Before there is a second thread: mount namespaces belong to threads.
    let tracefs = tracefs::ensure();
    let host = Host::read();
    let mut checks = vec![kernel_check(&host)];
    let (object_checks, are_kept_back) = object_checks(&host);
    // Of what it buys, nothing is left to buy.
    let without_admin = Way::of_kernel() == Way::Multi && tracefs.is_ok() && !are_kept_back;
    checks.extend(host.capabilities.iter().map(|capability| capability_check(*capability, without_admin)));
    checks.extend(host_checks(&host));
    checks.push(tracefs_check(tracefs));
    checks.extend(object_checks);
    let mut code = if checks.iter().any(|check| check.state == State::Off) { exit::NOT_ALLOWED } else { exit::OK };
    let mut process = None;
    if let Some(pid) = args.pid {
        let (checks, probes) = match subject::diagnose(Pid(pid)) {
            Ok(diagnosis) => (diagnosis.findings.into_iter().map(Check::from).collect(), diagnosis.probes),
            Err(error) => {
                code = exit::NO_TARGET;
                let finding = error.to_string();
                (vec![Check { name: "process".into(), state: State::Off, finding, remedy: error.remedy() }], Vec::new())
            }
        };
        process = Some(Process { pid, checks, probes });
    }
    let examination = Examination {
        agent_version: env!("CARGO_PKG_VERSION"),
        kernel_release: host.kernel_release,
        host: checks,
        process,
    };
    if print(&examination, args.json).is_err() {
        return exit::FAILED;
    }
    code
}

impl From<subject::Finding> for Check {
    fn from(finding: subject::Finding) -> Self {
        let subject::Finding { name, grade, text, remedy } = finding;
        let state = match grade {
            subject::Grade::On => State::Ok,
            subject::Grade::Poorer => State::Poorer,
            subject::Grade::Off => State::Off,
        };
        Self { name, state, finding: text, remedy }
    }
}

fn check(name: &str, state: State, finding: String, remedy: Option<&str>) -> Check {
    Check { name: name.into(), state, finding, remedy: remedy.map(Into::into) }
}

/// What a capability buys, and what it means that it is missing.
fn capability_check(capability: Capability, without_admin: bool) -> Check {
    let Capability { name, held, buys } = capability;
    // These three are what everything hangs on; root has all.
    let missing = if matches!(name, "CAP_BPF" | "CAP_PERFMON" | "CAP_SYS_PTRACE") { State::Off } else { State::Poorer };
    match name {
        _ if held => check(name, State::Ok, format!("held: {buys}"), None),
        "CAP_SYS_ADMIN" if without_admin => {
            check(name, State::Ok, "missing, and not needed: uprobe_multi links do without it".into(), None)
        }
        _ => {
            let remedy = "run as root, or add the capability";
            check(name, missing, format!("missing: cannot {buys}"), Some(remedy))
        }
    }
}

fn host_checks(host: &Host) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(match host.lockdown.as_deref() {
        Some("confidentiality") => check(
            "lockdown",
            State::Off,
            "confidentiality: the kernel refuses programs that read its memory".into(),
            Some("boot with lockdown=integrity or without"),
        ),
        Some(mode) => check("lockdown", State::Ok, mode.to_owned(), None),
        None => check("lockdown", State::Ok, "not stated by the kernel".into(), None),
    });
    if host.memlock_fixed {
        let old = host.kernel_version().is_some_and(|version| version < (5, 11));
        let state = if old { State::Poorer } else { State::Ok };
        let finding = "RLIMIT_MEMLOCK cannot be raised; from 5.11 on it need not be".to_owned();
        checks.push(check("memlock", state, finding, old.then_some("ulimit -l unlimited, or CAP_SYS_RESOURCE")));
    }
    checks.push(match host.kptr_restrict {
        Some(2) => check(
            "kernel symbols",
            State::Poorer,
            "kernel.kptr_restrict is 2: kernel frames have no names".into(),
            Some("sysctl kernel.kptr_restrict=1"),
        ),
        _ => check("kernel symbols", State::Ok, "readable".into(), None),
    });
    checks
}

fn kernel_check(host: &Host) -> Check {
    let release = &host.kernel_release;
    match host.kernel_version() {
        Some(version) if version >= (6, 6) => check("kernel", State::Ok, release.clone(), None),
        Some(version) if version >= (5, 15) => check(
            "kernel",
            State::Poorer,
            format!("{release}: no uprobe_multi links before 6.6, so attaching takes longer and needs CAP_SYS_ADMIN"),
            None,
        ),
        _ => check("kernel", State::Off, format!("{release}: too old"), Some("Linux 5.15 or newer is needed")),
    }
}

fn tracefs_check(tracefs: Result<std::path::PathBuf, tracefs::TracefsError>) -> Check {
    match tracefs {
        Ok(place) => check("tracefs", State::Ok, place.display().to_string(), None),
        Err(error) => {
            check("tracefs", State::Off, error.to_string(), Some("mount -t tracefs none /sys/kernel/tracing"))
        }
    }
}

/// Loads and attaches for real, for a moment: the only answer that counts. Says, too, whether perf events are kept from us.
fn object_checks(host: &Host) -> (Vec<Check>, bool) {
    let mut checks = Vec::new();
    let mut are_kept_back = false;
    let types = match KernelTypes::read() {
        Ok(types) => {
            checks.push(check("BTF", State::Ok, "the kernel's own types are readable".into(), None));
            Some(types)
        }
        Err(error) => {
            let remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y";
            checks.push(check("BTF", State::Poorer, format!("{error}; exits are seen late"), Some(remedy)));
            None
        }
    };
    let way = Way::of_kernel();
    let state = if way == Way::Multi { State::Ok } else { State::Poorer };
    checks.push(check("uprobes", state, format!("attached by {}", way.name()), None));
    let settings = Settings {
        loop_off_cpu_min: Duration::from_micros(100),
        other_off_cpu_min: Duration::from_millis(1),
        ring_bytes: None,
        parts: &[Part::Ledger, Part::Polls, Part::Life, Part::IoUring, Part::Samples, Part::Waits],
        sample_hz: 1,
        bounded_loops: false,
        lock_probes: false,
        announce_execs: false,
    };
    let uring = tracefs::find().map(|place| tracefs::UringFields::read(&place)).unwrap_or_default();
    match Probes::load(&settings, types.as_ref(), &uring) {
        Ok(mut probes) => {
            checks.push(check("BPF object", State::Ok, "the kernel takes it".into(), None));
            let skips = probes.attach_tracepoints();
            let is_refused = |skip: &TracepointSkip| skip.reason.contains("Permission denied");
            are_kept_back = host.may_keep_perf_events_back() && skips.iter().any(is_refused);
            if are_kept_back {
                checks.push(check(
                    "perf events",
                    State::Off,
                    "kernel.perf_event_paranoid is above 2, for which CAP_PERFMON is too little here".into(),
                    Some("add CAP_SYS_ADMIN, or sysctl kernel.perf_event_paranoid=2"),
                ));
            }
            if skips.is_empty() {
                checks.push(check("tracepoints", State::Ok, "all attach".into(), None));
            }
            for skip in skips {
                let state = if skip.tracepoint.required { State::Off } else { State::Poorer };
                let finding = skip.reason.lines().next().unwrap_or_default().to_owned();
                checks.push(check(
                    &format!("{}:{}", skip.tracepoint.category, skip.tracepoint.event),
                    state,
                    finding,
                    None,
                ));
            }
        }
        Err(error) => checks.push(check("BPF object", State::Off, super::session::one_line(&error.to_string()), None)),
    }
    (checks, are_kept_back)
}

fn print(examination: &Examination, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, examination)?;
        return writeln!(out);
    }
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    writeln!(out, "agent {} on Linux {}", examination.agent_version, examination.kernel_release)?;
    print_checks(&mut out, &examination.host, colour)?;
    if let Some(process) = &examination.process {
        writeln!(out, "\nprocess {}", process.pid)?;
        print_checks(&mut out, &process.checks, colour)?;
        if !process.probes.is_empty() {
            writeln!(out, "\n  probes")?;
        }
        for line in &process.probes {
            writeln!(out, "    {line}")?;
        }
    }
    out.flush()
}

fn print_checks(out: &mut impl Write, checks: &[Check], colour: bool) -> std::io::Result<()> {
    for Check { name, state, finding, remedy } in checks {
        let (mark, paint) = match state {
            State::Ok => ("ok    ", "\x1b[32m"),
            State::Poorer => ("poorer", "\x1b[33m"),
            State::Off => ("OFF   ", "\x1b[31m"),
        };
        let (paint, plain) = if colour { (paint, "\x1b[0m") } else { ("", "") };
        writeln!(out, "  {paint}{mark}{plain} {name:<22} {finding}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "                                -> {remedy}")?;
        }
    }
    Ok(())
}
