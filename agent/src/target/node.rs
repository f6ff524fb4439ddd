//! Is a process a Node.js, of what version, and which of its files holds what? Told by symbols, never by names: binaries are
//! renamed, bundled into Electron, or split into `libnode` and `libuv` by distributions.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use agent_ebpf::spec::Component;
use thiserror::Error;

use super::{
    disasm,
    elf::{ElfError, ElfFile, FileAddr, Lookup},
    procfs::{self, FileIdentity, Mapping, ProcError, Process},
};
use crate::{
    limits::PROC_FILES_MAX,
    units::{Pid, UserAddr, WallNs},
};

#[derive(Debug, Error)]
pub enum NodeError {
    #[error(transparent)]
    Process(#[from] ProcError),
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error("process {pid} ({exe}) is not Node.js: none of its {files} files exports {missing}")]
    NotNode { pid: Pid, exe: PathBuf, files: usize, missing: &'static str },
    #[error("{path} is not Node.js: it does not export {missing}")]
    FileNotNode { path: PathBuf, missing: &'static str },
}

/// What a file exports if it holds the component, in every version from 16 on.
const MARKS: [(Component, &str); 3] = [
    (Component::Libuv, "uv_run"),
    (Component::V8, "_ZN2v82V810GetVersionEv"),
    (Component::Node, "napi_get_node_version"),
];

/// A file that holds at least one component.
#[derive(Debug)]
pub struct NodeFile {
    /// Leads to the file from this process's root.
    pub path: PathBuf,
    pub identity: FileIdentity,
    pub components: Vec<Component>,
    pub elf: ElfFile,
    /// What the loader added to the file's addresses; 0 where nothing is mapped yet.
    pub bias: u64,
}

/// A release number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Threads in libuv's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// The pool has started: what libuv's own variable says.
    Running(u32),
    /// What `UV_THREADPOOL_SIZE` asked for when the process started.
    Environment(u32),
    Default,
}

impl PoolSize {
    const DEFAULT: u32 = 4;
    /// `MAX_THREADPOOL_SIZE` in libuv since 1.30.
    const MAX: u32 = 1024;

    #[must_use]
    pub fn threads(self) -> u32 {
        match self {
            Self::Running(threads) | Self::Environment(threads) => threads,
            Self::Default => Self::DEFAULT,
        }
    }

    /// As libuv reads it: leading digits, at least one thread.
    fn from_environment(value: &str) -> Self {
        let digits: String = value.trim_start().chars().take_while(char::is_ascii_digit).collect();
        let threads = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(Self::MAX) };
        Self::Environment(threads.clamp(1, Self::MAX))
    }
}

/// Where the components are.
#[derive(Debug)]
pub struct NodeFiles {
    pub files: Vec<NodeFile>,
}

/// Static facts about a Node.js process.
#[derive(Debug)]
pub struct NodeTarget {
    pub process: Process,
    pub started: Option<WallNs>,
    pub node: NodeFiles,
    pub pool: PoolSize,
}

impl NodeTarget {
    /// Reads everything once; nothing of it changes while the process lives, but for the pool's start.
    pub fn inspect(pid: Pid) -> Result<Self, NodeError> {
        let process = Process::read(pid)?;
        let node = NodeFiles::of_process(&process)?;
        let pool = pool_size(pid, &node);
        Ok(Self { started: process.started(), process, node, pool })
    }
}

impl NodeFiles {
    /// The one file of an executable that holds all components; for a process that does not run yet.
    pub fn of_executable(path: &Path) -> Result<Self, NodeError> {
        let file = File::open(path).map_err(|source| ElfError::Read { path: path.to_owned(), source })?;
        let file = NodeFile::read(file, path)?;
        for (component, missing) in MARKS {
            if !file.components.contains(&component) {
                return Err(NodeError::FileNotNode { path: path.to_owned(), missing });
            }
        }
        Ok(Self { files: vec![file] })
    }

    /// Searches the executable, then the libraries in order of their addresses, until each component is found.
    fn of_process(process: &Process) -> Result<Self, NodeError> {
        let pid = process.pid;
        let mut mappings = procfs::executable_mappings(pid)?;
        mappings.retain(Mapping::is_file);
        mappings.sort_by_key(|mapping| (mapping.inode != process.exe_identity.inode, mapping.start));
        let mut files: Vec<NodeFile> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut denied = None;
        for mapping in &mappings {
            if seen.len() == PROC_FILES_MAX || MARKS.iter().all(|(component, _)| holds(&files, *component)) {
                break;
            }
            if !seen.insert((mapping.inode, &mapping.path)) {
                continue;
            }
            let (opened, path) = match procfs::open_mapped(pid, mapping) {
                Ok(opened) => opened,
                Err(error) => {
                    denied.get_or_insert(error);
                    continue;
                }
            };
            // Not ELF, or damaged: then it holds no component either.
            let Ok(mut file) = NodeFile::read(opened, &path) else { continue };
            file.components.retain(|component| !holds(&files, *component));
            file.bias = file.elf.bias(mapping.start.0, mapping.offset).unwrap_or(0);
            if !file.components.is_empty() {
                files.push(file);
            }
        }
        match (MARKS.iter().find(|(component, _)| !holds(&files, *component)), denied) {
            (None, _) => Ok(Self { files }),
            (Some(_), Some(error)) => Err(error.into()),
            (Some((_, missing)), None) => {
                Err(NodeError::NotNode { pid, exe: process.exe.clone(), files: seen.len(), missing })
            }
        }
    }

    #[must_use]
    pub fn holder(&self, component: Component) -> Option<&NodeFile> {
        self.files.iter().find(|file| file.components.contains(&component))
    }

    /// From the structure that `napi_get_node_version` hands out: three numbers and a name.
    #[must_use]
    pub fn node_version(&self) -> Option<Version> {
        const CODE_BYTES: u64 = 96;
        let elf = &self.holder(Component::Node)?.elf;
        let (at, code) = code_of(elf, "napi_get_node_version", CODE_BYTES)?;
        let version = |addr: FileAddr| {
            let part = |index: u64| elf.u32_at(addr.checked_add(index * 4)?);
            let version = Version(part(0)?, part(1)?, part(2)?);
            let plausible = (4..1000).contains(&version.0) && version.1 < 1000 && version.2 < 1000;
            plausible.then_some(version)
        };
        version(disasm::first_data_address(&code, at, |addr| version(addr).is_some())?)
    }

    /// From the variables of `v8::internal::Version`: major, minor, build, patch.
    #[must_use]
    pub fn v8_version(&self) -> Option<[u32; 4]> {
        const PARTS: [&str; 4] = [
            "_ZN2v88internal7Version6major_E",
            "_ZN2v88internal7Version6minor_E",
            "_ZN2v88internal7Version6build_E",
            "_ZN2v88internal7Version6patch_E",
        ];
        let elf = &self.holder(Component::V8)?.elf;
        let found = elf.lookup(PARTS).ok()?;
        let part = |name| elf.u32_at(found.get(name)?.symbol()?.addr);
        Some([part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?, part(PARTS[3])?])
    }

    /// From the constant that `uv_version` returns.
    #[must_use]
    pub fn libuv_version(&self) -> Option<Version> {
        const CODE_BYTES: u64 = 32;
        let (at, code) = code_of(&self.holder(Component::Libuv)?.elf, "uv_version", CODE_BYTES)?;
        let version = disasm::returned_constant(&code, at)?;
        Some(Version(version >> 16, version >> 8 & 0xff, version & 0xff))
    }

    /// The class (mangled) of an object in a mapped process, by what its first word points to.
    #[must_use]
    pub fn class_of_vptr(&self, vptr: UserAddr) -> Option<String> {
        self.files.iter().find_map(|file| file.elf.class_of_vptr(FileAddr(vptr.0.wrapping_sub(file.bias))))
    }
}

impl NodeFile {
    fn read(file: File, path: &Path) -> Result<Self, ElfError> {
        let metadata = file.metadata().map_err(|source| ElfError::Read { path: path.to_owned(), source })?;
        let elf = ElfFile::from_file(file, path)?;
        let exported = elf.lookup_exported(MARKS.map(|(_, mark)| mark))?;
        let holds = |mark| exported.get(mark).is_some_and(|lookup| matches!(lookup, Lookup::Found(_)));
        let components = MARKS.iter().filter(|(_, mark)| holds(*mark)).map(|(component, _)| *component).collect();
        let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { path: path.to_owned(), identity, components, elf, bias: 0 })
    }
}

fn holds(files: &[NodeFile], component: Component) -> bool {
    files.iter().any(|file| file.components.contains(&component))
}

fn code_of(elf: &ElfFile, name: &str, bytes: u64) -> Option<(FileAddr, Vec<u8>)> {
    let symbol = elf.lookup_exported([name]).ok()?.get(name)?.symbol()?;
    let bytes = if symbol.size == 0 { bytes } else { bytes.min(symbol.size) };
    Some((symbol.addr, elf.bytes_at(symbol.addr, bytes)))
}

fn pool_size(pid: Pid, node: &NodeFiles) -> PoolSize {
    const VARIABLE: &str = "nthreads";
    let running = node.holder(Component::Libuv).and_then(|file| {
        let symbol = file.elf.lookup([VARIABLE]).ok()?.get(VARIABLE)?.symbol()?;
        procfs::memory_u32(pid, UserAddr(symbol.addr.0.wrapping_add(file.bias)))
    });
    if let Some(threads) = running.filter(|threads| (1..=PoolSize::MAX).contains(threads)) {
        return PoolSize::Running(threads);
    }
    let asked = procfs::environment(pid, "UV_THREADPOOL_SIZE").ok().flatten();
    asked.map_or(PoolSize::Default, |value| PoolSize::from_environment(&value))
}
