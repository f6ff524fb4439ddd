//! A process that is to be traced: what it is, and where its probes go.

use std::{fs::File, io::ErrorKind, path::Path, sync::Arc};

use agent_ebpf::spec::{Component, Group, id};

use super::session::FileProbes;
use crate::{
    core::TargetFacts,
    probe::{
        maps::monotonic_ns,
        plan::{self, FEATURES, FeatureState, FileId, Holder, Plan, feature_name},
    },
    report::model::Degraded,
    target::{
        disasm,
        elf::{ElfError, FileAddr},
        heap::HeapReader,
        host,
        identity::{Attributes, Engine, Identity},
        node::{NodeError, NodeFiles, NodeTarget, PoolSize},
        procfs::{self, FileIdentity, ProcError, Process, Seccomp},
        v8::FunctionLayout,
    },
    units::{Clock, Pid, Tid},
};

/// Uprobes that go into a process; those for calibration never do.
const GROUPS: [Group; 9] = [
    Group::Gc,
    Group::GcKinds,
    Group::Pool,
    Group::Phases,
    Group::Requests,
    Group::Makers,
    Group::Takers,
    Group::Scopes,
    Group::Allocators,
];

/// A process and everything that has to be done to trace it.
#[derive(Debug)]
pub struct Subject {
    pub pid: Pid,
    /// How its V8 lays out functions; all zeroes where there is no V8 that we know.
    pub functions: FunctionLayout,
    /// The file that holds V8, whose code keeps frame pointers.
    pub v8: Option<FileIdentity>,
    /// Where its V8 keeps global handles; 0 is not known.
    pub handle_space: u32,
    pub facts: TargetFacts,
    /// Who it is; `facts` have what it says without Kubernetes.
    pub identity: Identity,
    pub files: Vec<FileProbes>,
    /// The way to its heaps' figures.
    pub heaps: Option<HeapReader>,
}

#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Elf(#[from] ElfError),
}

impl SubjectError {
    /// The process may be fine; it is the privileges that are not.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Node(NodeError::Process(error)) => matches!(error, ProcError::Denied { .. }),
            Self::Node(NodeError::Elf(error)) | Self::Elf(error) => {
                matches!(error, ElfError::Read { source, .. } if source.kind() == ErrorKind::PermissionDenied)
            }
            Self::Node(NodeError::NotNode { .. } | NodeError::FileNotNode { .. }) => false,
        }
    }

    /// What an operator can do about it, where the message does not say so itself.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Node(NodeError::NotNode { .. }) => {
                Some("pgrep -a node shows candidates; wrappers run node as a child".into())
            }
            Self::Node(_) | Self::Elf(_) => None,
        }
    }
}

/// Looks at a running process.
pub fn examine(pid: Pid) -> Result<Subject, SubjectError> {
    let target = NodeTarget::inspect(pid)?;
    let plan = plan_of(&target.node)?;
    let command = command(&target.process.command);
    let engine = Engine::node(target.node.node_version().map(|version| version.to_string()));
    let identity = Identity::read(&target.process, Some(&engine), command.get(1).map(String::as_str));
    let facts = TargetFacts {
        pid,
        start_time: target.started,
        exe: target.process.exe.display().to_string(),
        command,
        thread_pool_size: Some(target.pool.threads()),
        resource: identity.resource(&Attributes::new()),
        ..facts(&target.node, &plan)
    };
    let functions = functions(&target.node);
    let handle_space = handle_space(&target.node, &plan);
    let heaps = HeapReader::new(pid, &target.node);
    Ok(Subject {
        pid,
        functions,
        handle_space,
        v8: v8(&target.node),
        files: file_probes(&target.node, &plan)?,
        facts,
        identity,
        heaps,
    })
}

/// Looks at a running process of whatever kind: one that is no Node.js has stacks, too.
pub fn examine_any(pid: Pid) -> Result<Subject, SubjectError> {
    match examine(pid) {
        Err(SubjectError::Node(NodeError::NotNode { .. })) => {}
        examined => return examined,
    }
    let process = Process::read(pid).map_err(NodeError::from)?;
    let identity = Identity::read(&process, None, None);
    let facts = TargetFacts {
        pid,
        start_time: process.started(),
        resource: identity.resource(&Attributes::new()),
        exe: process.exe.display().to_string(),
        // What its arguments mean is not known: any of them may be a secret.
        command: process.command.into_iter().take(1).collect(),
        kernel_release: host::kernel_release(),
        cpus: cpus(),
        ..TargetFacts::default()
    };
    Ok(Subject {
        pid,
        functions: FunctionLayout::default(),
        v8: None,
        handle_space: 0,
        files: Vec::new(),
        facts,
        identity,
        heaps: None,
    })
}

/// Looks at a program that `pid` is about to become. One that is no Node.js itself, a script say, may become one: then its probes
/// are found when it does.
pub fn expect(pid: Pid, exe: &Path, arguments: &[String]) -> Result<Subject, SubjectError> {
    let own = TargetFacts {
        pid,
        exe: exe.display().to_string(),
        command: command(arguments),
        kernel_release: host::kernel_release(),
        cpus: cpus(),
        ..TargetFacts::default()
    };
    let Ok(node) = NodeFiles::of_executable(exe) else {
        return Ok(Subject {
            pid,
            functions: FunctionLayout::default(),
            v8: None,
            handle_space: 0,
            files: Vec::new(),
            facts: own,
            identity: Identity::default(),
            heaps: None,
        });
    };
    let plan = plan_of(&node)?;
    let TargetFacts { node_version, degraded, .. } = facts(&node, &plan);
    Ok(Subject {
        pid,
        functions: functions(&node),
        v8: v8(&node),
        handle_space: handle_space(&node, &plan),
        heaps: None,
        identity: Identity::default(),
        files: file_probes(&node, &plan)?,
        facts: TargetFacts { node_version, degraded, ..own },
    })
}

fn functions(node: &NodeFiles) -> FunctionLayout {
    let version = node.v8_version().unwrap_or_default();
    node.holder(Component::V8).and_then(|file| FunctionLayout::read(&file.elf, version)).unwrap_or_default()
}

fn v8(node: &NodeFiles) -> Option<FileIdentity> {
    node.holder(Component::V8).map(|file| file.identity)
}

/// Where the placed probe on `GlobalHandles::Create` finds the slot that it will return.
fn handle_space(node: &NodeFiles, plan: &Plan) -> u32 {
    let create = plan.placements_of(id::HANDLE_CREATE).next();
    let offset = create.and_then(|placement| {
        let file = node.files.get(placement.file.0)?;
        let FileAddr(begin) = placement.addr;
        disasm::handle_space(&file.elf.bytes_at(FileAddr(begin.checked_sub(placement.within)?), 128))
    });
    offset.unwrap_or(0)
}

fn plan_of(node: &NodeFiles) -> Result<Plan, ElfError> {
    let holders: Vec<Holder<'_>> =
        node.files.iter().map(|file| Holder { components: &file.components, elf: &file.elf }).collect();
    plan::plan(&holders)
}

fn facts(node: &NodeFiles, plan: &Plan) -> TargetFacts {
    TargetFacts {
        node_version: node.node_version().map(|version| format!("v{version}")),
        degraded: degraded(plan),
        kernel_release: host::kernel_release(),
        cpus: cpus(),
        ..TargetFacts::default()
    }
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

fn degraded(plan: &Plan) -> Vec<Degraded> {
    let mut rows = Vec::new();
    for feature in FEATURES {
        let (how, missing) = match plan.feature(feature) {
            FeatureState::On => continue,
            FeatureState::Poorer { missing } => ("poorer", missing),
            FeatureState::Off { missing } => ("off", missing),
        };
        let why: Vec<String> = plan
            .skips
            .iter()
            .filter(|skip| missing.contains(&skip.probe.name))
            .map(|skip| format!("{}: {}", skip.probe.name, skip.reason))
            .collect();
        rows.push(Degraded { feature: feature_name(feature).into(), reason: format!("{how}: {}", why.join("; ")) });
    }
    rows
}

fn file_probes(node: &NodeFiles, plan: &Plan) -> Result<Vec<FileProbes>, ElfError> {
    let points = |file: FileId, group: Group| -> Vec<(u64, u64)> {
        let placements = plan.placements.iter().filter(|placement| placement.file == file);
        let grouped = placements.filter(|placement| placement.probe.group == group);
        grouped.map(|placement| (placement.offset.0, placement.probe.id)).collect()
    };
    let mut files = Vec::with_capacity(node.files.len());
    for (index, file) in node.files.iter().enumerate() {
        let open = File::open(&file.path).map_err(|source| ElfError::Read { path: file.path.clone(), source })?;
        files.push(FileProbes {
            file: Arc::new(open),
            identity: (file.identity.device, file.identity.inode),
            points: GROUPS.iter().map(|group| (*group, points(FileId(index), *group))).collect(),
            only: None,
        });
    }
    Ok(files)
}

/// `argv[0]` and the script: the rest may hold secrets, and so may the value of an option.
fn command(arguments: &[String]) -> Vec<String> {
    const TAKE_A_VALUE: [&str; 12] = [
        "-e",
        "--eval",
        "-p",
        "--print",
        "-pe",
        "-r",
        "--require",
        "--import",
        "--loader",
        "-C",
        "--conditions",
        "--env-file",
    ];
    let mut shown: Vec<String> = arguments.first().cloned().into_iter().collect();
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        if TAKE_A_VALUE.contains(&argument.as_str()) {
            rest.next();
        } else if !argument.starts_with('-') {
            shown.push(argument.clone());
            break;
        }
    }
    shown
}

/// Whether the process is there and not a zombie.
#[must_use]
pub fn exists(pid: Pid) -> bool {
    procfs::is_alive(pid)
}

/// The offset between the clocks, read between two looks at the monotonic one.
#[must_use]
pub fn clock() -> Clock {
    let before = monotonic_ns().0;
    let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let after = monotonic_ns().0;
    let middle = i64::try_from(before + (after - before) / 2).unwrap_or(i64::MAX);
    Clock { offset_ns: wall.tv_sec.saturating_mul(1_000_000_000).saturating_add(wall.tv_nsec).saturating_sub(middle) }
}

/// Names of all threads; of a process that has gone, none.
#[must_use]
pub fn thread_names(pids: &[Pid]) -> Vec<(Tid, String)> {
    let threads = pids.iter().filter_map(|pid| procfs::threads(*pid).ok()).flatten();
    threads.map(|thread| (thread.tid, thread.comm)).collect()
}

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    On,
    Poorer,
    Off,
}

/// One thing that `agent doctor` says about a process.
#[derive(Clone, Debug)]
pub struct Finding {
    pub name: String,
    pub grade: Grade,
    pub text: String,
    pub remedy: Option<String>,
}

/// What can be traced in a process.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    pub findings: Vec<Finding>,
    /// One line a probe.
    pub probes: Vec<String>,
}

/// Looks at a running process without touching it.
pub fn diagnose(pid: Pid) -> Result<Diagnosis, SubjectError> {
    let target = NodeTarget::inspect(pid)?;
    let plan = plan_of(&target.node)?;
    let mut findings = identity(&target);
    for feature in FEATURES {
        let (grade, text) = match plan.feature(feature) {
            FeatureState::On => (Grade::On, "all probes have a place".to_owned()),
            FeatureState::Poorer { missing } => (Grade::Poorer, format!("without {}", missing.join(", "))),
            FeatureState::Off { missing } => (Grade::Off, format!("cannot do without {}", missing.join(", "))),
        };
        findings.push(Finding { name: feature_name(feature).into(), grade, text, remedy: None });
    }
    findings.extend(super::javascript::findings(&target));
    let probes = plan.to_string().lines().map(str::to_owned).collect();
    Ok(Diagnosis { findings, probes })
}

fn identity(target: &NodeTarget) -> Vec<Finding> {
    let on = |name: &str, text: String| Finding { name: name.into(), grade: Grade::On, text, remedy: None };
    let known = |version: Option<String>| version.unwrap_or_else(|| "unknown".into());
    let node = &target.node;
    let v8 = node.v8_version().map(|[major, minor, build, patch]| format!("{major}.{minor}.{build}.{patch}"));
    let mut findings = vec![
        on("Node.js", known(node.node_version().map(|version| format!("v{version}")))),
        on("V8", known(v8)),
        on("libuv", known(node.libuv_version().map(|version| version.to_string()))),
    ];
    for (index, file) in node.files.iter().enumerate() {
        let parts: Vec<&str> = [Component::Libuv, Component::V8, Component::Node]
            .into_iter()
            .filter(|component| file.components.contains(component))
            .map(plan::component_name)
            .collect();
        let build = file.elf.build_id_hex().unwrap_or_else(|| "none".into());
        let symbols = if file.elf.has_symtab() { ".symtab" } else { "stripped: only .dynsym" };
        findings.push(on(&format!("file {index}"), format!("{}, build id {build}, {symbols}", parts.join(" + "))));
    }
    let pool = match target.pool {
        PoolSize::Running(threads) => format!("{threads} threads, running"),
        PoolSize::Environment(threads) => format!("{threads} threads, by UV_THREADPOOL_SIZE"),
        PoolSize::Default => "4 threads, libuv's default".to_owned(),
    };
    findings.push(on("thread pool", pool));
    if target.process.status.seccomp != Seccomp::Off {
        findings.push(on("seccomp", "on; only entry probes are used, which it does not see".into()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(arguments: &[&str]) -> Vec<String> {
        command(&arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_that_may_hold_secrets_are_not_shown() {
        assert_eq!(shown(&["node", "server.js", "--token", "hunter2"]), ["node", "server.js"]);
        assert_eq!(shown(&["node", "-e", "secret()"]), ["node"]);
        assert_eq!(shown(&["node", "--inspect", "-r", "dotenv", "app.js"]), ["node", "app.js"]);
        assert!(shown(&[]).is_empty());
    }
}
