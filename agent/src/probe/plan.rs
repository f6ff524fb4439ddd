//! What to attach where, what to skip and why: a pure function of the files that hold a Node.js, or a PostgreSQL.
//!
//! The plan refuses rather than guesses: no probe on a clone of a function, none where its arguments are lost, none that the kernel would
//! single-step on a path that is taken often. What is refused turns one row off, never the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use agent_ebpf::spec::{Component, Feature, LIBC_PROBES, POSTGRES_PROBES, PROBES, Place, Probe};

use crate::{
    limits::FUNCTION_BYTES_MAX,
    target::{
        disasm::{Cost, Function, Refusal, is_emulated},
        elf::{ElfError, ElfFile, FileAddr, Lookup, Symbol, Via},
        libuv::{self, NotRecovered},
        node::NodeFile,
    },
    units::FileOffset,
};

/// Index in the list of files that the plan was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub usize);

/// A file, and the parts of Node.js that it holds.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    pub components: &'a [Component],
    pub elf: &'a ElfFile,
}

impl<'a> From<&'a NodeFile> for Holder<'a> {
    fn from(file: &'a NodeFile) -> Self {
        Self { components: &file.components, elf: &file.elf }
    }
}

/// One address for one probe; a probe may have several.
#[derive(Clone, Debug)]
pub struct Placement {
    pub probe: &'static Probe,
    pub file: FileId,
    pub offset: FileOffset,
    pub addr: FileAddr,
    pub cost: Cost,
    /// The function that holds the address.
    pub symbol: &'static str,
    /// Bytes from the function's start to the address.
    pub within: u64,
    pub via: Via,
}

#[derive(Clone, Debug)]
pub struct Skip {
    pub probe: &'static Probe,
    pub reason: SkipReason,
}

/// Why a probe is not placed; of several symbols, the reason for the best that is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    #[error("no mapped file holds {}", component_name(*.component))]
    NoFile { component: Component },
    #[error("no symbol {symbol} in the file{}", if *.stripped { " (stripped)" } else { " (another version?)" })]
    NoSymbol { symbol: &'static str, stripped: bool },
    #[error("only {clone}, a clone that takes other arguments")]
    CloneOnly { clone: String },
    #[error("{count} functions are named {symbol}")]
    Ambiguous { symbol: &'static str, count: usize },
    #[error("no symbol {symbol} in the file, and not recovered: {why}")]
    NotRecovered { symbol: &'static str, why: NotRecovered },
    #[error("{symbol}: {refusal}")]
    Refused { symbol: &'static str, refusal: Refusal },
    #[error("{symbol} at {addr:#x} is not in the file's code")]
    NoOffset { symbol: &'static str, addr: FileAddr },
}

impl SkipReason {
    /// How far the search got; the furthest is what an operator wants to read.
    fn rank(&self) -> u8 {
        match self {
            Self::NoFile { .. } => 0,
            Self::NoSymbol { .. } => 1,
            Self::NotRecovered { .. } => 2,
            Self::CloneOnly { .. } | Self::Ambiguous { .. } => 3,
            Self::NoOffset { .. } => 4,
            Self::Refused { .. } => 5,
        }
    }
}

/// What a feature of the agent can do on this target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeatureState {
    On,
    /// It works, but lacks what these probes would tell.
    Poorer {
        missing: Vec<&'static str>,
    },
    /// These probes are indispensable.
    Off {
        missing: Vec<&'static str>,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In order of [`PROBES`].
    pub placements: Vec<Placement>,
    pub skips: Vec<Skip>,
}

/// Features of a Node.js, in the order of reports.
pub const FEATURES: [Feature; 6] =
    [Feature::Phases, Feature::ThreadPool, Feature::Gc, Feature::HeapLimit, Feature::Requests, Feature::Handles];

#[must_use]
pub fn feature_name(feature: Feature) -> &'static str {
    match feature {
        Feature::Phases => "phases",
        Feature::ThreadPool => "thread_pool",
        Feature::Gc => "gc",
        Feature::HeapLimit => "heap_limit",
        Feature::PostgresLocks => "postgres_locks",
        Feature::Requests => "requests",
        Feature::Handles => "handles",
        Feature::NativeLeaks => "native_leaks",
    }
}

#[must_use]
pub fn component_name(component: Component) -> &'static str {
    match component {
        Component::Libuv => "libuv",
        Component::V8 => "V8",
        Component::Node => "Node.js",
        Component::Postgres => "PostgreSQL",
        Component::Libc => "the C library",
    }
}

/// A heap comes near its limit, or runs out, once in a process's life, and who waits for a lock sleeps anyway: there, some
/// microseconds are nothing. Everything else must be emulated.
fn may_single_step(probe: &Probe) -> bool {
    match probe.feature {
        // Asked for, for seconds, and within a budget: the C library has no other place.
        Feature::HeapLimit | Feature::PostgresLocks | Feature::NativeLeaks => true,
        Feature::Phases | Feature::ThreadPool | Feature::Gc | Feature::Requests | Feature::Handles => false,
    }
}

/// Plans every row of [`PROBES`]. An error means that a file could not be read; what it does not hold is a skip.
pub fn plan(files: &[Holder<'_>]) -> Result<Plan, ElfError> {
    plan_of(PROBES, files)
}

/// Plans every row of [`POSTGRES_PROBES`], for the program of a PostgreSQL server.
pub fn plan_postgres(elf: &ElfFile) -> Result<Plan, ElfError> {
    plan_of(POSTGRES_PROBES, &[Holder { components: &[Component::Postgres], elf }])
}

/// Plans every row of [`LIBC_PROBES`], for the file that has a process's `malloc`.
pub fn plan_libc(elf: &ElfFile) -> Result<Plan, ElfError> {
    plan_of(LIBC_PROBES, &[Holder { components: &[Component::Libc], elf }])
}

fn plan_of(probes: &'static [Probe], files: &[Holder<'_>]) -> Result<Plan, ElfError> {
    let mut plan = Plan::default();
    let sources: Vec<Source<'_>> = files
        .iter()
        .enumerate()
        .map(|(index, holder)| Source::read(probes, FileId(index), *holder))
        .collect::<Result<_, _>>()?;
    for probe in probes {
        let source = sources.iter().find(|source| source.components.contains(&probe.component));
        let placed =
            source.ok_or(SkipReason::NoFile { component: probe.component }).and_then(|source| source.place(probe));
        match placed {
            Ok(placements) => plan.placements.extend(placements),
            Err(reason) => plan.skips.push(Skip { probe, reason }),
        }
    }
    Ok(plan)
}

impl Plan {
    #[must_use]
    pub fn feature(&self, feature: Feature) -> FeatureState {
        let missing = |required: bool| -> Vec<&'static str> {
            let skipped = self.skips.iter().map(|skip| skip.probe);
            skipped
                .filter(|probe| probe.feature == feature && probe.required == required)
                .map(|probe| probe.name)
                .collect()
        };
        let (required, optional) = (missing(true), missing(false));
        if !required.is_empty() {
            FeatureState::Off { missing: required }
        } else if !optional.is_empty() {
            FeatureState::Poorer { missing: optional }
        } else {
            FeatureState::On
        }
    }

    fn has(&self, feature: Feature) -> bool {
        let placed = self.placements.iter().map(|placement| placement.probe);
        placed.chain(self.skips.iter().map(|skip| skip.probe)).any(|probe| probe.feature == feature)
    }

    pub fn placements_of(&self, id: u64) -> impl Iterator<Item = &Placement> {
        self.placements.iter().filter(move |placement| placement.probe.id == id)
    }
}

/// One line a placement, then one a skip, then one a feature.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Placement { probe, file: FileId(file), offset, addr: _, cost, symbol, within, via } in &self.placements {
            let (name, offset, cost, via) = (probe.name, offset.0, cost.name(), via.name());
            writeln!(f, "{name:<20} file {file} {offset:#09x} {cost:<14} {via:<9} {symbol}+{within:#x}")?;
        }
        for Skip { probe, reason } in &self.skips {
            writeln!(f, "{:<20} skipped: {reason}", probe.name)?;
        }
        for feature in FEATURES.into_iter().chain([Feature::PostgresLocks]).filter(|feature| self.has(*feature)) {
            write!(f, "{:<20} ", feature_name(feature))?;
            match self.feature(feature) {
                FeatureState::On => writeln!(f, "on")?,
                FeatureState::Poorer { missing } => writeln!(f, "poorer: no {}", missing.join(", "))?,
                FeatureState::Off { missing } => writeln!(f, "off: no {}", missing.join(", "))?,
            }
        }
        Ok(())
    }
}

/// A file with the symbols that its probes may need.
struct Source<'a> {
    probes: &'static [Probe],
    id: FileId,
    components: &'a [Component],
    elf: &'a ElfFile,
    symbols: BTreeMap<&'static str, Lookup>,
    not_recovered: BTreeMap<&'static str, NotRecovered>,
}

impl<'a> Source<'a> {
    fn read(probes: &'static [Probe], id: FileId, holder: Holder<'a>) -> Result<Self, ElfError> {
        let Holder { components, elf } = holder;
        let wanted = probes.iter().filter(|probe| components.contains(&probe.component)).flat_map(|probe| {
            let around: &[&'static str] = match &probe.place {
                Place::Entry | Place::Return => &[],
                Place::AfterCall { caller, callee } => &[*caller, *callee],
            };
            around.iter().chain(probe.symbols).copied().collect::<Vec<_>>()
        });
        let mut symbols = elf.lookup(wanted)?;
        let mut not_recovered = BTreeMap::new();
        if components.contains(&Component::Libuv) && !elf.has_symtab() {
            for (name, recovered) in libuv::recover(elf)? {
                match (symbols.get_mut(name), recovered) {
                    (Some(lookup @ Lookup::Absent), Ok(symbol)) => *lookup = Lookup::Found(symbol),
                    (Some(Lookup::Absent), Err(why)) => {
                        not_recovered.insert(name, why);
                    }
                    (Some(Lookup::Found(_) | Lookup::CloneOnly { .. } | Lookup::Ambiguous { .. }) | None, _) => {}
                }
            }
        }
        Ok(Self { probes, id, components, elf, symbols, not_recovered })
    }

    fn symbol(&self, name: &'static str) -> Result<Symbol, SkipReason> {
        match self.symbols.get(name).unwrap_or(&Lookup::Absent) {
            Lookup::Found(symbol) => Ok(*symbol),
            Lookup::CloneOnly { clone } => Err(SkipReason::CloneOnly { clone: clone.clone() }),
            Lookup::Ambiguous { count } => Err(SkipReason::Ambiguous { symbol: name, count: *count }),
            Lookup::Absent => Err(self.not_recovered.get(name).map_or_else(
                || SkipReason::NoSymbol { symbol: name, stripped: !self.elf.has_symtab() },
                |why| SkipReason::NotRecovered { symbol: name, why: why.clone() },
            )),
        }
    }

    fn place(&self, probe: &'static Probe) -> Result<Vec<Placement>, SkipReason> {
        match probe.place {
            Place::Entry | Place::Return => self.place_entry(probe).map(|placement| vec![placement]),
            Place::AfterCall { caller, callee } => self.place_after(probe, caller, callee),
        }
    }

    /// The first symbol that can be placed, else the reason of the one that got furthest.
    fn place_entry(&self, probe: &'static Probe) -> Result<Placement, SkipReason> {
        let mut best = None::<SkipReason>;
        for name in probe.symbols {
            match self.symbol(name).and_then(|symbol| self.entry_of(probe, name, symbol)) {
                Ok(placement) => return Ok(placement),
                Err(reason) if best.as_ref().is_none_or(|best| reason.rank() > best.rank()) => best = Some(reason),
                Err(_) => {}
            }
        }
        Err(best.unwrap_or(SkipReason::NoSymbol { symbol: probe.name, stripped: !self.elf.has_symtab() }))
    }

    fn entry_of(&self, probe: &'static Probe, name: &'static str, symbol: Symbol) -> Result<Placement, SkipReason> {
        let code = self.code(symbol);
        let begins_emulated = || (1..=6).any(|bytes| code.get(..bytes).is_some_and(is_emulated));
        if probe.place == Place::Return {
            // Only there is the return address where the kernel looks for it.
            let cost = if begins_emulated() { Cost::Emulated } else { Cost::SingleStepped };
            return self.placement(probe, name, symbol, symbol.addr, cost);
        }
        // Nearly all: no need to decode the rest. No emulated instruction is longer than 6 bytes.
        if begins_emulated() {
            return self.placement(probe, name, symbol, symbol.addr, Cost::Emulated);
        }
        let refused = |refusal| SkipReason::Refused { symbol: name, refusal };
        let function = Function::decode(symbol.addr, &code).map_err(refused)?;
        match function.entry(probe.args) {
            Ok(addr) => self.placement(probe, name, symbol, addr, Cost::Emulated),
            Err(Refusal::SingleStepped { .. }) if may_single_step(probe) => {
                self.placement(probe, name, symbol, symbol.addr, Cost::SingleStepped)
            }
            Err(refusal) => Err(refused(refusal)),
        }
    }

    fn place_after(
        &self,
        probe: &'static Probe,
        outer_name: &'static str,
        inner_name: &'static str,
    ) -> Result<Vec<Placement>, SkipReason> {
        let (outer, inner) = (self.symbol(outer_name)?, self.symbol(inner_name)?);
        let code = self.code(outer);
        let refused = |refusal| SkipReason::Refused { symbol: outer_name, refusal };
        let function = Function::decode(outer.addr, &code).map_err(refused)?;
        let marks = self.marks(probe, inner_name);
        let data = |addr, bytes| self.elf.bytes_at(addr, bytes);
        let places = function.after_calls(inner.addr, &marks, &data).map_err(refused)?;
        places.into_iter().map(|addr| self.placement(probe, outer_name, outer, addr, Cost::Emulated)).collect()
    }

    /// Entries of the other functions whose probes delimit the same phases.
    fn marks(&self, probe: &Probe, callee: &str) -> BTreeSet<FileAddr> {
        let others =
            self.probes.iter().filter(|other| other.group == probe.group && other.component == probe.component);
        let names = others.flat_map(|other| other.symbols).filter(|name| **name != callee);
        names.filter_map(|name| self.symbols.get(name)?.symbol()).map(|symbol| symbol.addr).collect()
    }

    /// All of the function's code, or one byte more than may be decoded.
    fn code(&self, symbol: Symbol) -> Vec<u8> {
        let bytes = if symbol.size > 0 { symbol.size } else { self.elf.function_bytes(symbol.addr).unwrap_or(0) };
        self.elf.bytes_at(symbol.addr, bytes.min(FUNCTION_BYTES_MAX + 1))
    }

    fn placement(
        &self,
        probe: &'static Probe,
        name: &'static str,
        symbol: Symbol,
        addr: FileAddr,
        cost: Cost,
    ) -> Result<Placement, SkipReason> {
        let offset = self.elf.file_offset(addr).filter(|_| self.elf.is_code(addr));
        let offset = offset.ok_or(SkipReason::NoOffset { symbol: name, addr })?;
        let within = addr.0.saturating_sub(symbol.addr.0);
        Ok(Placement { probe, file: self.id, offset, addr, cost, symbol: name, within, via: symbol.via })
    }
}
