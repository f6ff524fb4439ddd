//! Machine code that V8 made at run time: from an address in it to the `Code` that describes it.
//!
//! Functions do not lead there: since V8 13 they hold a handle, what runs may be older than what a function would call next, and
//! code that was entered in the middle of a loop belongs to no function's entry. But all machine code lies in an object,
//! behind the word that is the map of all such objects, so the nearest such word before an address is its object's begin.
//!
//! What was found is kept by its range, and checked each time before it is used: the collector moves and frees code.

use std::collections::BTreeMap;

use super::{
    heap::{Heap, Object, Refusal, Tagged},
    layout::fixed,
};
use crate::{
    limits::{V8_CODE_BYTES_MAX, V8_CODE_CANDIDATES_MAX, V8_CODES_MAX, V8_ISOLATES_MAX},
    report::model::Tier,
    target::memory::Memory,
    units::UserAddr,
};

/// Words of a `Code` that are read, which say which one it is.
const WORDS: usize = 8;

const PAGE_BYTES: u64 = 4096;

/// What a `Code` is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Baseline,
    Optimised(Tier),
    /// A regular expression, a wrapper of WebAssembly.
    Other,
}

/// One piece of machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub object: Object,
    /// Where the instructions begin and end.
    pub start: u64,
    pub end: u64,
    pub kind: Kind,
    /// `Code` up to its flags; of older versions, up to the instructions.
    pub words: [u64; WORDS],
    /// The object that holds the instructions, and its first two words.
    pub stream: Object,
    pub stream_words: [u64; 2],
}

/// Codes by their range.
#[derive(Debug, Default)]
pub struct Codes {
    by_start: BTreeMap<u64, Code>,
    /// The maps of objects that hold instructions: one an isolate, or one for all that share their constant objects.
    stream_maps: Vec<u64>,
}

impl Codes {
    fn find(&self, pc: u64) -> Option<Code> {
        let (_, code) = self.by_start.range(..=pc).next_back()?;
        (pc < code.end).then_some(*code)
    }

    fn learn(&mut self, map: u64) {
        if self.stream_maps.len() >= V8_ISOLATES_MAX {
            self.stream_maps.clear();
        }
        self.stream_maps.push(map);
    }

    fn keep(&mut self, code: Code) {
        if self.by_start.len() >= V8_CODES_MAX {
            self.by_start.clear();
        }
        // What lay there before is gone.
        let stale: Vec<u64> = self
            .by_start
            .range(..code.end)
            .rev()
            .take_while(|(_, old)| old.end > code.start)
            .map(|(at, _)| *at)
            .collect();
        for at in stale {
            self.by_start.remove(&at);
        }
        self.by_start.insert(code.start, code);
    }
}

impl<M: Memory> Heap<M> {
    /// The code that holds an address, in a mapping that begins at `mapped`.
    pub fn code_at(&self, pc: u64, mapped: UserAddr, codes: &mut Codes) -> Result<Code, Refusal> {
        if let Some(known) = codes.find(pc) {
            match self.code_of_stream(known.stream, known.stream_words.first().copied().unwrap_or(0)) {
                Ok(now) if now == known => return Ok(known),
                _ => {
                    codes.by_start.remove(&known.start);
                }
            }
        }
        // Most isolates have no map of their own: look for any other only where those that are known lead to nothing.
        let known = !codes.stream_maps.is_empty();
        let code = match self.scan(pc, mapped, codes, known) {
            Err(_) if known => self.scan(pc, mapped, codes, false)?,
            scanned => scanned?,
        };
        codes.keep(code);
        Ok(code)
    }

    /// Goes back from an address until an object with instructions begins.
    fn scan(&self, pc: u64, mapped: UserAddr, codes: &mut Codes, only_known: bool) -> Result<Code, Refusal> {
        let lowest = mapped.0.max(pc.saturating_sub(V8_CODE_BYTES_MAX));
        let mut end = (pc & !7).checked_add(8).ok_or(Refusal::OutOfRange)?;
        let mut chunk_bytes = PAGE_BYTES;
        let mut candidates = 0;
        while end > lowest {
            let start = lowest.max(end.saturating_sub(chunk_bytes)) & !7;
            let bytes = usize::try_from(end - start).map_err(|_| Refusal::OutOfRange)?;
            let chunk = match self.bytes(UserAddr(start), bytes, bytes) {
                Ok(chunk) => chunk,
                // It may reach below what is mapped.
                Err(Refusal::Unreadable) if chunk_bytes > PAGE_BYTES => {
                    chunk_bytes = PAGE_BYTES;
                    continue;
                }
                Err(because) => return Err(because),
            };
            let words = chunk.as_chunks::<8>().0;
            for (index, word) in words.iter().enumerate().rev() {
                let word = u64::from_le_bytes(*word);
                let is_known = codes.stream_maps.contains(&word);
                if word & 3 != 1 || word >> 47 != 0 || only_known && !is_known {
                    continue;
                }
                candidates += 1;
                if candidates > V8_CODE_CANDIDATES_MAX {
                    return Err(Refusal::TooLarge);
                }
                let at = Object(UserAddr(start + index as u64 * 8));
                let Ok(code) = self.code_of_stream(at, word) else { continue };
                if !is_known {
                    codes.learn(word);
                }
                if (code.start..code.end).contains(&pc) {
                    return Ok(code);
                }
                if code.end <= pc && code.end > at.0.0 {
                    // The address is in what lies behind: freed code, or none.
                    return Err(Refusal::Absent);
                }
            }
            end = start;
            chunk_bytes = (chunk_bytes * 4).min(64 << 10);
        }
        Err(Refusal::Absent)
    }

    /// The code whose instructions are in an object that has this map.
    fn code_of_stream(&self, stream: Object, map: u64) -> Result<Code, Refusal> {
        let types = &self.layout.types;
        let layout = self.layout.code;
        if self.type_of_map(map)? != types.instruction_stream.unwrap_or(types.code) {
            return Err(Refusal::OtherType);
        }
        let stream_words = self.words::<2>(stream)?;
        let [stream_map, link] = stream_words;
        if stream_map != map {
            return Err(Refusal::Changed);
        }
        let object = if types.instruction_stream.is_some() { Tagged(link).object()? } else { stream };
        let words = self.first_words::<WORDS>(object.0)?;
        let [map, ..] = words;
        if self.type_of_map(map)? != types.code {
            return Err(Refusal::OtherType);
        }
        let start = match types.instruction_stream {
            Some(_) => words.get(layout.start as usize / 8).copied().ok_or(Refusal::OutOfRange)?,
            None => object.field(layout.start)?.0,
        };
        let half = |offset: u32| {
            let word = words.get(offset as usize / 8).copied().unwrap_or(0);
            u32::try_from(if offset & 4 == 0 { word & 0xffff_ffff } else { word >> 32 }).unwrap_or(0)
        };
        let size = half(layout.size);
        let end = start.checked_add(u64::from(size)).ok_or(Refusal::OutOfRange)?;
        if start <= stream.0.0 || u64::from(size) > V8_CODE_BYTES_MAX {
            return Err(Refusal::OutOfRange);
        }
        let kind = self.kind_of(half(layout.flags) & fixed::CODE_KIND_MASK);
        // Flags above the kind change as code is thrown away.
        let mut words = words;
        if let Some(word) = words.get_mut(layout.flags as usize / 8) {
            *word &= if layout.flags & 4 == 0 { !0xffff_fff0 } else { 0xf_ffff_ffff };
        }
        Ok(Code { object, start, end, kind, words, stream, stream_words })
    }

    fn kind_of(&self, kind: u32) -> Kind {
        let layout = self.layout.code;
        if kind == layout.baseline {
            Kind::Baseline
        } else if Some(kind) == layout.maglev {
            Kind::Optimised(Tier::Maglev)
        } else if kind == layout.turbofan || kind > layout.baseline {
            Kind::Optimised(Tier::Turbofan)
        } else {
            Kind::Other
        }
    }
}
