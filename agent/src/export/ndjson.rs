//! One record a line, out and back in.

use std::io::{self, BufRead, Read as _, Write};

use serde::Deserialize;

use crate::{
    limits::LINE_BYTES_MAX,
    report::{Record, model::SCHEMA_VERSION},
};

/// Writes one line.
pub fn write_record(out: &mut impl Write, record: &Record) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}

/// What a file held besides records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub lines: u64,
    pub records: u64,
    /// Lines of a type that this version does not know.
    pub unknown_types: u64,
    /// Lines of a newer or older schema.
    pub other_schemas: u64,
    /// Lines that are no JSON, or lack what their type needs.
    pub bad_lines: u64,
    /// The first few of them: number, from 1, and what is wrong.
    pub bad: Vec<(u64, String)>,
}

impl Tally {
    /// What a person should know about the lines that were not understood, if there were any.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if self.unknown_types + self.other_schemas + self.bad_lines == 0 {
            return None;
        }
        let named: Vec<String> = self.bad.iter().map(|(line, what)| format!("line {line}: {what}")).collect();
        Some(format!(
            "of {} lines, {} were malformed, {} of another schema version, {} of unknown types{}{}",
            self.lines,
            self.bad_lines,
            self.other_schemas,
            self.unknown_types,
            if named.is_empty() { "" } else { "; " },
            named.join("; ")
        ))
    }
}

/// Bad lines that are named.
const BAD_NAMED_MAX: usize = 5;

/// Reads records, and steps over what it does not understand.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    line: Vec<u8>,
    tally: Tally,
}

/// The least that any line has.
#[derive(Deserialize)]
struct Head {
    schema_version: u32,
    #[serde(rename = "type")]
    kind: String,
}

/// Types of lines, as [`crate::report::Body`] names them.
const TYPES: &[&str] = &[
    "target",
    "window",
    "slow_turn",
    "gc_pause",
    "heap_limit",
    "stack",
    "off_cpu",
    "pg_cluster",
    "pg_window",
    "pg_lock",
    "pg_client",
    "pg_deadlock",
    "profile",
    "process",
    "warning",
    "agent",
    "end",
    "memory",
    "finding",
];

impl<R: BufRead> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, line: Vec::new(), tally: Tally::default() }
    }

    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The next record, or `None` at the end of the file.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            self.line.clear();
            let limit = LINE_BYTES_MAX as u64;
            let n = self.from.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
            if n == 0 {
                return Ok(None);
            }
            self.tally.lines += 1;
            if self.line.last() != Some(&b'\n') && n as u64 == limit {
                self.skip_line()?;
                self.bad("longer than any line of this format");
                continue;
            }
            if self.line.trim_ascii().is_empty() {
                continue;
            }
            if let Some(record) = self.parse() {
                self.tally.records += 1;
                return Ok(Some(record));
            }
        }
    }

    fn parse(&mut self) -> Option<Record> {
        let head: Head = match serde_json::from_slice(&self.line) {
            Ok(head) => head,
            Err(error) => {
                self.bad(&error.to_string());
                return None;
            }
        };
        if head.schema_version != SCHEMA_VERSION {
            self.tally.other_schemas += 1;
            return None;
        }
        if !TYPES.contains(&head.kind.as_str()) {
            self.tally.unknown_types += 1;
            return None;
        }
        serde_json::from_slice(&self.line).map_err(|error| self.bad(&error.to_string())).ok()
    }

    fn bad(&mut self, why: &str) {
        self.tally.bad_lines += 1;
        if self.tally.bad.len() < BAD_NAMED_MAX {
            self.tally.bad.push((self.tally.lines, why.to_owned()));
        }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.from.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(buffer.len(), |at| at + 1);
            self.from.consume(used);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}
