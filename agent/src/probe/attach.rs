//! Loads the BPF object, attaches its programs and detaches them again.
//!
//! Everything is held by file descriptors of this process, so the kernel detaches all of it when the process ends, however it
//! ends. Uprobes go over one `uprobe_multi` link a file and group where the kernel has them (6.6), else one perf
//! event a probe.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_ebpf::{
    abi::family,
    spec::{Form, Group, Part, TRACEPOINTS, Tracepoint},
    state::global,
};
use aya::{
    Btf, Ebpf, EbpfLoader, Endianness, include_bytes_aligned,
    programs::{
        PerfEvent, Program, ProgramError, ProgramType, UProbe,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
    sys::{BpfHelper, is_helper_supported},
    util::online_cpus,
};
use aya_log::EbpfLogger;
use thiserror::Error;

use super::{
    btf::KernelTypes,
    tracefs::{self, UringFields},
    way::Way,
};
use crate::units::{Pid, nanoseconds};

/// The kernel half.
static OBJECT: &[u8] = include_bytes_aligned!(env!("AGENT_BPF_OBJECT"));

/// Names of the ring buffer maps, in the order of the families.
pub const RING_MAPS: [&str; family::COUNT] =
    ["EVENT_LOOP", "THREAD_POOL", "V8", "SCHED", "STACK", "PROCESS", "SAMPLE", "POSTGRES"];

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("the kernel refused the BPF object: {source}{advice}")]
    Object { source: Box<aya::EbpfError>, advice: &'static str },
    #[error("the kernel refused the program {program}: {source}{advice}")]
    Program { program: &'static str, source: Box<ProgramError>, advice: &'static str },
    #[error("the BPF object has no program {program}")]
    NoProgram { program: &'static str },
}

#[derive(Debug, Error)]
pub enum AttachError {
    #[error("{count} probes on {path}: {reason}{advice}")]
    Uprobes { count: usize, path: PathBuf, reason: String, advice: &'static str },
    #[error("the BPF object has no program {0}")]
    NoProgram(&'static str),
}

/// What can be set when the object is loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Stays off CPU at least this long are sent: of event-loop threads, and of all others.
    pub loop_off_cpu_min: Duration,
    pub other_off_cpu_min: Duration,
    /// Size of every ring in bytes (a power of two of pages), for tests of overflow.
    pub ring_bytes: Option<u32>,
    /// What is attached at all.
    pub parts: &'static [Part],
    /// Samples a second and CPU.
    pub sample_hz: u32,
    /// Do without `bpf_loop`, even where there is one, for tests.
    pub bounded_loops: bool,
    /// Learn of waits for PostgreSQL's locks from uprobes alone, for tests.
    pub lock_probes: bool,
    /// Programs that processes begin which are no targets are announced.
    pub announce_execs: bool,
}

/// A tracepoint that could not be attached, and why.
#[derive(Debug)]
pub struct TracepointSkip {
    pub tracepoint: &'static Tracepoint,
    pub reason: String,
}

/// The loaded object.
pub struct Probes {
    pub(super) ebpf: Ebpf,
    way: Way,
    parts: Vec<Part>,
    sample_hz: u32,
    tracepoints: Vec<(&'static str, Link)>,
    /// What programs on tracepoints with types are loaded by.
    types: Option<Btf>,
    /// With the file that they are on.
    uprobes: BTreeMap<Group, Vec<(FileKey, Link)>>,
}

/// Something that is attached; dropping it detaches it, and waits for the kernel to be sure.
type Link = Box<dyn Send>;

/// A file, by device and inode.
type FileKey = (u64, u64);

impl Drop for Probes {
    /// Each link waits tens of milliseconds for a grace period of its own; together they share one.
    fn drop(&mut self) {
        let tracepoints = self.tracepoints.drain(..).map(|(_, link)| link);
        detach_all(
            tracepoints
                .chain(std::mem::take(&mut self.uprobes).into_values().flatten().map(|(_, link)| link))
                .collect(),
        );
    }
}

/// So many links wait side by side, where each probe has one of its own.
const DETACHING_MAX: usize = 32;

/// Where no thread is to be had, they wait one after another: what is not given to one is dropped here.
fn detach_all(mut links: Vec<Link>) {
    let share = links.len().div_ceil(DETACHING_MAX);
    std::thread::scope(|scope| {
        while links.len() > share {
            let some = links.split_off(links.len() - share);
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(some));
        }
        drop(links);
    });
}

/// Nobody waits for it, unless no thread is to be had.
fn detach_aside(links: Vec<Link>) {
    let _ = std::thread::Builder::new().spawn(move || detach_all(links));
}

impl Probes {
    /// Loads the object and verifies its uprobe program; attaches nothing.
    pub fn load(settings: &Settings, types: Option<&KernelTypes>, uring: &UringFields) -> Result<Self, LoadError> {
        let way = Way::of_kernel();
        let mut loader = EbpfLoader::new();
        let min_loop = nanoseconds(settings.loop_off_cpu_min);
        let min_other = nanoseconds(settings.other_off_cpu_min);
        loader.override_global(global::LOOP_OFF_CPU_MIN_NS, &min_loop, true);
        loader.override_global(global::OTHER_OFF_CPU_MIN_NS, &min_other, true);
        loader.override_global(global::URING_SUBMIT_DATA, &uring.submit_data, true);
        loader.override_global(global::URING_SUBMIT_OPCODE, &uring.submit_opcode, true);
        loader.override_global(global::URING_COMPLETE_DATA, &uring.complete_data, true);
        loader.override_global(global::URING_COMPLETE_RESULT, &uring.complete_result, true);
        let has_state = u32::from(types.is_some_and(|types| types.switch_has_state));
        let has_task_regs = u32::from(types.is_some());
        let has_loop = u32::from(!settings.bounded_loops && has_bpf_loop());
        let period_ns = 1_000_000_000_u64.checked_div(u64::from(settings.sample_hz)).unwrap_or(0);
        loader.override_global(global::HAS_TASK_REGS, &has_task_regs, true);
        loader.override_global(global::HAS_BPF_LOOP, &has_loop, true);
        loader.override_global(global::SAMPLE_PERIOD_NS, &period_ns, true);
        let mut parts = settings.parts.to_vec();
        let at_switches = parts.contains(&Part::Ledger) && !parts.contains(&Part::Polls);
        // What a thread is in can be told where the kernel's types are known.
        if at_switches && types.is_none() {
            parts.push(Part::Polls);
        }
        let polls_at_switches = u32::from(at_switches && types.is_some());
        loader.override_global(global::POLLS_AT_SWITCHES, &polls_at_switches, true);
        let announce_execs = u32::from(settings.announce_execs);
        loader.override_global(global::ANNOUNCE_EXECS, &announce_execs, true);
        if let Some(types) = types {
            loader.override_global(global::TASK_PID, &types.task_pid, true);
            loader.override_global(global::TASK_TGID, &types.task_tgid, true);
            loader.override_global(global::TASK_REAL_PARENT, &types.task_real_parent, true);
            loader.override_global(global::TASK_STATE, &types.task_state, true);
            loader.override_global(global::TASK_EXIT_CODE, &types.task_exit_code, true);
            if let Some((ran, before)) = &types.task_ran {
                loader.override_global(global::TASK_RAN, ran, true);
                loader.override_global(global::TASK_RAN_BEFORE, before, true);
            }
            loader.override_global(global::TASK_SIGNAL, &types.task_signal, true);
            loader.override_global(global::SIGNAL_LIVE, &types.signal_live, true);
        }
        loader.override_global(global::SWITCH_HAS_STATE, &has_state, true);
        if let Some(bytes) = settings.ring_bytes {
            for ring in RING_MAPS {
                loader.map_max_entries(ring, bytes);
            }
        }
        let ebpf = loader
            .load(OBJECT)
            .map_err(|source| LoadError::Object { advice: advice(&source.to_string()), source: Box::new(source) })?;
        let mut probes = Self {
            ebpf,
            way,
            parts,
            sample_hz: settings.sample_hz,
            tracepoints: Vec::new(),
            types: types.and_then(|types| Btf::parse(&types.stub(), Endianness::default()).ok()),
            uprobes: BTreeMap::new(),
        };
        probes.verify_ahead();
        probes.load_uprobe(Group::Gc)?;
        Ok(probes)
    }

    /// Has the kernel verify what is going to be attached, all at a time: on busy CPUs each thread has a share of its own. Who attaches a
    /// program tells why it was refused.
    fn verify_ahead(&mut self) {
        let wanted = |row: &&Tracepoint| self.parts.contains(&row.part) && self.is_wanted(row);
        let rows: BTreeMap<&str, &Tracepoint> =
            TRACEPOINTS.iter().filter(wanted).map(|row| (row.program, row)).collect();
        let (types, uprobe) = (self.types.as_ref(), self.way.program(Group::Gc));
        std::thread::scope(|scope| {
            for (name, program) in self.ebpf.programs_mut() {
                match (rows.get(name), program) {
                    (Some(row), program) => {
                        scope.spawn(move || verify(program, row, types));
                    }
                    (None, Program::UProbe(program)) if name == uprobe => {
                        scope.spawn(move || program.load().map_err(|error| error.to_string()));
                    }
                    _ => {}
                }
            }
        });
    }

    /// Has the kernel verify the program that a group's probes run.
    pub fn load_uprobe(&mut self, group: Group) -> Result<(), LoadError> {
        let program = self.way.program(group);
        let uprobe: &mut UProbe = self
            .ebpf
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or(LoadError::NoProgram { program })?;
        if uprobe.fd().is_ok() {
            return Ok(());
        }
        uprobe.load().map_err(|source| LoadError::Program {
            program,
            advice: advice(&chain(&source)),
            source: Box::new(source),
        })
    }

    /// Takes a ring's map out of the object; once each.
    pub fn take_ring(&mut self, name: &str) -> Option<aya::maps::Map> {
        self.ebpf.take_map(name)
    }

    /// Takes the kernel half's messages, which go to this process's logger from then on.
    pub fn take_log(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        EbpfLogger::init(&mut self.ebpf)
    }

    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Attaches every tracepoint that is wanted from the beginning and that the kernel has; the rest is returned with the reason. Without the
    /// kernel's types, raw ones are left to their substitutes.
    pub fn attach_tracepoints(&mut self) -> Vec<TracepointSkip> {
        let at_once = self.parts.iter().copied().filter(|part| *part != Part::Faults);
        at_once.collect::<Vec<_>>().into_iter().flat_map(|part| self.attach_part(part)).collect()
    }

    /// Whether this is attached at all, where the kernel has it.
    #[must_use]
    pub fn has_part(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn is_wanted(&self, tracepoint: &Tracepoint) -> bool {
        match tracepoint.form {
            Form::Raw => self.types.is_some(),
            Form::Record => true,
            Form::Clock => self.sample_hz > 0,
            Form::Substitute => self.types.is_none(),
        }
    }

    /// The same of one part.
    pub fn attach_part(&mut self, part: Part) -> Vec<TracepointSkip> {
        let mut skips = Vec::new();
        for tracepoint in TRACEPOINTS.iter().filter(|tracepoint| tracepoint.part == part) {
            if self.is_wanted(tracepoint) {
                if let Err(reason) = self.attach_tracepoint(tracepoint) {
                    skips.push(TracepointSkip { tracepoint, reason });
                }
            } else if tracepoint.form == Form::Raw && !tracepoint.required {
                skips.push(TracepointSkip { tracepoint, reason: "needs the kernel's BTF".into() });
            }
        }
        skips
    }

    /// Attaches those of the wanted tracepoints with these programs that are not.
    pub fn attach_again(&mut self, programs: &[&str]) -> Result<(), String> {
        let attached = |program: &str| self.tracepoints.iter().any(|(name, _)| *name == program);
        let wanted = TRACEPOINTS.iter().filter(|row| self.parts.contains(&row.part));
        let wanted: Vec<_> = wanted.filter(|row| programs.contains(&row.program) && !attached(row.program)).collect();
        wanted.into_iter().try_for_each(|tracepoint| self.attach_tracepoint(tracepoint))
    }

    /// Detaches the tracepoints with these programs. Nobody waits for it: the kernel takes its time over it.
    pub fn detach_tracepoints(&mut self, programs: &[&str]) {
        let off = self.tracepoints.extract_if(.., |(name, _)| programs.contains(name));
        detach_aside(off.map(|(_, link)| link).collect());
    }

    fn attach_tracepoint(&mut self, tracepoint: &'static Tracepoint) -> Result<(), String> {
        let program =
            self.ebpf.program_mut(tracepoint.program).ok_or_else(|| format!("no program {}", tracepoint.program))?;
        let (types, hz) = (self.types.as_ref(), self.sample_hz);
        let links = verify(program, tracepoint, types).and_then(|()| hang(program, tracepoint, hz));
        self.tracepoints.extend(links?.into_iter().map(|link| (tracepoint.program, link)));
        Ok(())
    }

    /// Attaches probes to a file: pairs of file offset and probe id. They join the group's links. Others that run the file do not hit those
    /// of one process only.
    pub fn attach(
        &mut self,
        group: Group,
        key: FileKey,
        file: &Path,
        points: &[(u64, u64)],
        only: Option<Pid>,
    ) -> Result<(), AttachError> {
        if points.is_empty() {
            return Ok(());
        }
        let program = self.way.program(group);
        let uprobe: &mut UProbe = self
            .ebpf
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NoProgram(program))?;
        let links = self.uprobes.entry(group).or_default();
        let point = |&(offset, id): &(u64, u64)| UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(id),
        };
        let fail = |source: ProgramError| {
            let reason = chain(&source);
            // It may be named by a descriptor of ours.
            let path = std::fs::read_link(file).unwrap_or_else(|_| file.to_owned());
            AttachError::Uprobes { count: points.len(), path, advice: advice(&reason), reason }
        };
        let one = only.and_then(|pid| NonZeroU32::new(pid.0));
        let scope = one.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        let mut add = |points: &mut dyn Iterator<Item = UProbeAttachPoint<'static>>| {
            let id = uprobe.attach(points, file, scope)?;
            links.push((key, Box::new(uprobe.take_link(id)?)));
            Ok(())
        };
        match self.way {
            Way::Multi => add(&mut points.iter().map(point)).map_err(fail),
            Way::Single => points.iter().try_for_each(|one| add(&mut std::iter::once(point(one)))).map_err(fail),
        }
    }

    /// Detaches a group's probes. They are hit no more in a moment, and nobody waits for the grace period after that: rings fill meanwhile.
    pub fn detach(&mut self, group: Group) {
        let links = self.uprobes.remove(&group).unwrap_or_default();
        detach_aside(links.into_iter().map(|(_, link)| link).collect());
    }

    /// Detaches all probes of a file. Nobody waits for it.
    pub fn detach_file(&mut self, key: FileKey) {
        let mut off = Vec::new();
        for links in self.uprobes.values_mut() {
            off.extend(links.extract_if(.., |(on, _)| *on == key).map(|(_, link)| link));
        }
        detach_aside(off);
    }
}

/// Has the kernel verify the program of a tracepoint, once.
fn verify(program: &mut Program, tracepoint: &Tracepoint, types: Option<&Btf>) -> Result<(), String> {
    let is_loaded = program.fd().is_ok();
    let loaded = match program {
        _ if is_loaded => Ok(()),
        Program::BtfTracePoint(program) => program.load(tracepoint.event, types.ok_or("needs the kernel's BTF")?),
        Program::RawTracePoint(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::PerfEvent(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|error| chain(&error))
}

/// Attaches the program of a tracepoint. One program may hang on several.
fn hang(program: &mut Program, tracepoint: &Tracepoint, sample_hz: u32) -> Result<Vec<Link>, String> {
    let links = match program {
        Program::BtfTracePoint(program) => {
            program.attach().and_then(|id| program.take_link(id)).map(|link| vec![Box::new(link) as Link])
        }
        Program::RawTracePoint(program) => program
            .attach(tracepoint.event)
            .and_then(|id| program.take_link(id))
            .map(|link| vec![Box::new(link) as Link]),
        Program::TracePoint(program) => {
            let event = tracefs::find()
                .map_or(tracepoint.event, |place| tracefs::name_here(&place, tracepoint.category, tracepoint.event));
            program
                .attach(tracepoint.category, event)
                .and_then(|id| program.take_link(id))
                .map(|link| vec![Box::new(link) as Link])
        }
        Program::PerfEvent(program) => {
            let cpus = online_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
            cpus.into_iter().map(|cpu| sample(program, cpu, sample_hz)).collect()
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    links.map_err(|error| chain(&error))
}

/// Samples one CPU on the kernel's own clock: there is one on every machine, and a sample is the same time on each.
fn sample(program: &mut PerfEvent, cpu: u32, hz: u32) -> Result<Link, ProgramError> {
    let clock = PerfEventConfig::Software(SoftwareEvent::CpuClock);
    let scope = PerfEventScope::AllProcessesOneCpu { cpu };
    let id = program.attach(clock, scope, SamplePolicy::Frequency(u64::from(hz)), false)?;
    Ok(Box::new(program.take_link(id)?))
}

/// Whether loops may be left to the kernel (5.17 and newer). Where it cannot be told, the verifier unrolls them.
fn has_bpf_loop() -> bool {
    is_helper_supported(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_loop).unwrap_or(false)
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What to do about an error of the kernel's.
#[must_use]
pub fn advice(error: &str) -> &'static str {
    if error.contains("Operation not permitted") || error.contains("Permission denied") {
        " (run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE, and with CAP_SYS_ADMIN before Linux 6.6 or where \
         kernel.perf_event_paranoid is above 2; see `agent doctor`)"
    } else if error.contains("Invalid argument") {
        " (kernel too old for this object? see `agent doctor`)"
    } else {
        ""
    }
}
