//! Records that the `bunyan` command reads: one a line, with what it wants first, and the whole record under `record`.

use std::{
    io::{self, Write},
    sync::OnceLock,
};

use serde::Serialize;

use super::message::{Level, level, message};
use crate::{printable::printable, report::Record};

#[derive(Serialize)]
struct Bunyan<'a> {
    v: u32,
    level: u32,
    name: &'static str,
    hostname: &'a str,
    pid: u32,
    time: &'a str,
    msg: String,
    record: &'a Record,
}

/// Writes one line.
pub fn write_record(out: &mut impl Write, record: &Record) -> io::Result<()> {
    let line = Bunyan {
        v: 0,
        level: number(level(&record.body)),
        name: "agent",
        hostname: host_name(),
        pid: record.pid,
        time: &record.time,
        msg: printable(&message(&record.body)),
        record,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// As bunyan's documentation has them.
const fn number(level: Level) -> u32 {
    match level {
        Level::Debug => 20,
        Level::Info => 30,
        Level::Warn => 40,
        Level::Error => 50,
        Level::Fatal => 60,
    }
}

/// The name of this host, as of when it was first asked for.
pub fn host_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
