//! Offsets in the running kernel's own structures, from its BTF.
//!
//! The kernel half reads a handful of fields of `task_struct`; where they lie differs from one build to the next, and the kernel
//! says it in `/sys/kernel/btf/vmlinux`. Format: `Documentation/bpf/btf.rst` of the kernel. The parser walks the type
//! section once, without recursion but for anonymous members, and never reads past the slice.

use std::path::Path;

use thiserror::Error;

/// Where the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Anonymous structures inside one another that are looked into.
const NESTING_MAX: u32 = 8;

#[derive(Debug, Error)]
pub enum BtfError {
    #[error("cannot read {path}: {source} (kernel built without CONFIG_DEBUG_INFO_BTF?)")]
    Read { path: String, source: std::io::Error },
    #[error("the kernel's BTF is malformed at byte {at}: {what}")]
    Malformed { at: usize, what: &'static str },
    #[error("the kernel's BTF has no {what}")]
    Missing { what: &'static str },
}

/// What the kernel half needs to know about `task_struct` and its neighbours; offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelTypes {
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_real_parent: u32,
    pub task_state: u32,
    pub task_exit_code: u32,
    pub task_signal: u32,
    pub signal_live: u32,
    /// A task's time on CPU, and what that was when it last got the CPU, as the fair scheduler keeps them.
    pub task_ran: Option<(u32, u32)>,
    /// `sched_switch` passes the previous task's state as its fourth argument.
    pub switch_has_state: bool,
    /// Tracepoints whose programs are passed types, and the ids of theirs.
    pub tracepoints: [(&'static str, u32); 3],
}

/// Names of the types of tracepoints that are needed, and of the tracepoints.
const TRACEPOINT_TYPES: [(&str, &str); 3] = [
    ("btf_trace_sched_switch", "sched_switch"),
    ("btf_trace_sched_wakeup", "sched_wakeup"),
    ("btf_trace_sched_wakeup_new", "sched_wakeup_new"),
];

/// More types than any kernel has.
const TYPES_MAX: u32 = 1 << 20;

impl KernelTypes {
    /// Of the running kernel.
    pub fn read() -> Result<Self, BtfError> {
        Self::read_from(Path::new(VMLINUX))
    }

    pub fn read_from(path: &Path) -> Result<Self, BtfError> {
        let bytes =
            std::fs::read(path).map_err(|source| BtfError::Read { path: path.display().to_string(), source })?;
        Self::parse(&bytes)
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let btf = Btf::index(bytes)?;
        let task = btf.task.ok_or(BtfError::Missing { what: "struct task_struct" })?;
        let signal = btf.signal.ok_or(BtfError::Missing { what: "struct signal_struct" })?;
        let field = |structure, name, what| btf.member(structure, name, 0).ok_or(BtfError::Missing { what });
        Ok(Self {
            task_pid: field(task, "pid", "task_struct.pid")?,
            task_tgid: field(task, "tgid", "task_struct.tgid")?,
            task_real_parent: field(task, "real_parent", "task_struct.real_parent")?,
            // Renamed in 5.14.
            task_state: field(task, "__state", "task_struct.__state")
                .or_else(|_| field(task, "state", "task_struct.state"))?,
            task_exit_code: field(task, "exit_code", "task_struct.exit_code")?,
            task_signal: field(task, "signal", "task_struct.signal")?,
            signal_live: field(signal, "live", "signal_struct.live")?,
            task_ran: btf.entity.and_then(|entity| {
                let at = btf.member(task, "se", 0)?;
                let ran = btf.member(entity, "sum_exec_runtime", 0)?;
                let before = btf.member(entity, "prev_sum_exec_runtime", 0)?;
                Some((at.checked_add(ran)?, at.checked_add(before)?))
            }),
            switch_has_state: btf.switch_parameters().is_some_and(|count| count >= SWITCH_PARAMETERS_WITH_STATE),
            tracepoints: btf.tracepoints,
        })
    }

    /// BTF that says nothing but which ids the types of tracepoints have: all that loading their programs takes, while to take in
    /// the kernel's own takes longer than all else at the start.
    #[must_use]
    pub fn stub(&self) -> Vec<u8> {
        const HEADER_BYTES: u32 = 24;
        const ENTRY_BYTES: u32 = 12;
        let last = self.tracepoints.iter().map(|(_, id)| *id).max().unwrap_or(0).min(TYPES_MAX);
        let mut strings = vec![0];
        let mut types = Vec::new();
        for id in 1..=last {
            let known = self.tracepoints.iter().position(|(_, known)| *known == id);
            let name = known.and_then(|at| TRACEPOINT_TYPES.get(at)).map_or(0, |(name, _)| {
                let at = strings.len();
                strings.extend_from_slice(name.as_bytes());
                strings.push(0);
                u32::try_from(at).unwrap_or(0)
            });
            let of_kind = if known.is_some() { kind::TYPEDEF } else { kind::FWD };
            types.extend([name, of_kind << 24, 0]);
        }
        let types_len = last * ENTRY_BYTES;
        let strings_len = u32::try_from(strings.len()).unwrap_or(0);
        let head = [u32::from(MAGIC) | 1 << 16, HEADER_BYTES, 0, types_len, types_len, strings_len];
        let words = head.into_iter().chain(types).flat_map(u32::to_le_bytes);
        words.chain(strings).collect()
    }
}

/// The tracepoint's prototype as BTF has it: a private pointer, preempt, prev, next, and from 5.18 on the state.
const SWITCH_PARAMETERS_WITH_STATE: u32 = 5;

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
}

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;

/// Byte position of a type in the file.
#[derive(Clone, Copy, Debug)]
struct TypeAt(usize);

struct Btf<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// By type id; id 0 is `void`.
    types: Vec<TypeAt>,
    task: Option<TypeAt>,
    signal: Option<TypeAt>,
    entity: Option<TypeAt>,
    switch: Option<TypeAt>,
    tracepoints: [(&'static str, u32); 3],
}

impl<'a> Btf<'a> {
    fn index(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at: usize| read_u32(bytes, at).ok_or(BtfError::Malformed { at, what: "header cut short" });
        if (word(0)? & 0xffff) != u32::from(MAGIC) {
            return Err(BtfError::Malformed { at: 0, what: "no BTF magic (foreign byte order?)" });
        }
        let header = word(4)? as usize;
        let section = |offset_at: usize, what| -> Result<(usize, usize), BtfError> {
            let begin = header.checked_add(word(offset_at)? as usize);
            let end = begin.and_then(|begin| begin.checked_add(word(offset_at + 4).ok()? as usize));
            match (begin, end) {
                (Some(begin), Some(end)) if end <= bytes.len() => Ok((begin, end)),
                _ => Err(BtfError::Malformed { at: offset_at, what }),
            }
        };
        let (type_begin, type_end) = section(8, "type section out of bounds")?;
        let (string_begin, string_end) = section(16, "string section out of bounds")?;
        let mut btf = Self {
            bytes,
            strings: bytes.get(string_begin..string_end).unwrap_or_default(),
            types: vec![TypeAt(usize::MAX)],
            task: None,
            signal: None,
            entity: None,
            switch: None,
            tracepoints: TRACEPOINT_TYPES.map(|(_, tracepoint)| (tracepoint, 0)),
        };
        let mut at = type_begin;
        while at < type_end {
            at = btf.add(TypeAt(at))?;
        }
        Ok(btf)
    }

    /// Notes the type and returns where the next one begins.
    fn add(&mut self, ty: TypeAt) -> Result<usize, BtfError> {
        let info = self.word(ty, 4).ok_or(BtfError::Malformed { at: ty.0, what: "type cut short" })?;
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        let tail = match kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
            kind::ENUM | kind::FUNC_PROTO => count * 8,
            _ => 0,
        };
        self.types.push(ty);
        // There are a hundred thousand types, and a trace waits for this: their names are compared, not read.
        match kind {
            kind::STRUCT if self.is_named(ty, b"task_struct") => self.task = self.task.or(Some(ty)),
            kind::STRUCT if self.is_named(ty, b"signal_struct") => self.signal = self.signal.or(Some(ty)),
            kind::STRUCT if self.is_named(ty, b"sched_entity") => self.entity = self.entity.or(Some(ty)),
            kind::TYPEDEF => self.note_tracepoint(ty),
            _ => {}
        }
        ty.0.checked_add(TYPE_BYTES + tail).ok_or(BtfError::Malformed { at: ty.0, what: "type too long" })
    }

    fn note_tracepoint(&mut self, ty: TypeAt) {
        let Some(at) = TRACEPOINT_TYPES.iter().position(|(name, _)| self.is_named(ty, name.as_bytes())) else { return };
        // It was pushed just now, and ids begin at 1.
        let id = u32::try_from(self.types.len() - 1).unwrap_or(0);
        if let Some(tracepoint) = self.tracepoints.get_mut(at) {
            tracepoint.1 = id;
        }
        if at == 0 {
            self.switch = Some(ty);
        }
    }

    fn word(&self, ty: TypeAt, offset: usize) -> Option<u32> {
        read_u32(self.bytes, ty.0.checked_add(offset)?)
    }

    fn name(&self, ty: TypeAt, offset: usize) -> &'a [u8] {
        let from = self.word(ty, offset).and_then(|at| self.strings.get(at as usize..)).unwrap_or_default();
        from.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn is_named(&self, ty: TypeAt, name: &[u8]) -> bool {
        let from = self.word(ty, 0).and_then(|at| self.strings.get(at as usize..)).unwrap_or_default();
        from.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn by_id(&self, id: u32) -> Option<TypeAt> {
        self.types.get(id as usize).copied().filter(|_| id != 0)
    }

    /// Byte offset of a member, also of an anonymous structure or union inside.
    fn member(&self, structure: TypeAt, name: &str, nesting: u32) -> Option<u32> {
        if nesting > NESTING_MAX {
            return None;
        }
        let info = self.word(structure, 4)?;
        let bitfields = info >> 31 != 0;
        for index in 0..(info as usize & 0xffff) {
            let at = TYPE_BYTES + index * 12;
            let raw = self.word(structure, at + 8)?;
            let bits = if bitfields { raw & 0x00ff_ffff } else { raw };
            let member_name = self.name(structure, at);
            if member_name == name.as_bytes() {
                return Some(bits / 8);
            }
            if member_name.is_empty()
                && let Some(inner) = self.by_id(self.word(structure, at + 4)?)
                && matches!(self.word(inner, 4)? >> 24 & 0x1f, kind::STRUCT | kind::UNION)
                && let Some(offset) = self.member(inner, name, nesting + 1)
            {
                return offset.checked_add(bits / 8);
            }
        }
        None
    }

    /// Parameters of the `sched_switch` tracepoint.
    fn switch_parameters(&self) -> Option<u32> {
        let pointer = self.by_id(self.word(self.switch?, 8)?)?;
        if self.word(pointer, 4)? >> 24 & 0x1f != kind::PTR {
            return None;
        }
        let proto = self.by_id(self.word(pointer, 8)?)?;
        let info = self.word(proto, 4)?;
        (info >> 24 & 0x1f == kind::FUNC_PROTO).then_some(info & 0xffff)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_is_understood() {
        let types = KernelTypes::read().expect("BTF of the running kernel");
        assert!(types.task_pid > 0);
        assert_eq!(types.task_tgid, types.task_pid + 4, "the two are neighbours in every kernel so far");
        assert!(types.switch_has_state);
    }

    #[test]
    fn cut_and_garbled_types_are_refused_not_followed() {
        let bytes = std::fs::read(VMLINUX).expect("BTF of the running kernel");
        for len in [0, 3, 23, 24, 1000, bytes.len() / 2, bytes.len() - 1] {
            let _ = KernelTypes::parse(bytes.get(..len).unwrap_or_default());
        }
        let mut garbled = bytes.get(..200_000).unwrap_or_default().to_vec();
        for (at, byte) in garbled.iter_mut().enumerate().skip(24) {
            *byte ^= at.to_le_bytes()[0].wrapping_mul(31);
        }
        assert!(KernelTypes::parse(&garbled).is_err());
    }
}
