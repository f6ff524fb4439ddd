//! `agent report`: the summary of an earlier trace, from its records or its recording.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::Path,
};

use log::warn;

use super::trace::write_text;
use crate::{
    cli::{Format, ReportArgs, exit},
    core::{Core, Output},
    diagnose::Diagnosis,
    export::{ndjson, recording},
    report::{Record, summary::Summary},
};

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &ReportArgs) -> u8 {
    match report(args) {
        Ok(()) => exit::OK,
        Err(error) => {
            let _ = writeln!(io::stderr(), "agent: {error}");
            exit::FAILED
        }
    }
}

fn report(args: &ReportArgs) -> Result<(), String> {
    let name = args.file.display();
    let mut from = open(&args.file).map_err(|error| format!("cannot read {name}: {error}"))?;
    let head = from.fill_buf().map_err(|error| format!("cannot read {name}: {error}"))?;
    let is_recording = recording::is_recording(head);
    let mut summary = Summary::default();
    let mut lines = match args.format {
        Format::Text => None,
        Format::Ndjson => Some(create(&args.output)?),
    };
    let mut diagnosis = Diagnosis::default();
    let mut put = |record: &Record| match &mut lines {
        None => {
            summary.add(record);
            Ok(())
        }
        Some(out) => ndjson::write_record(out, record).map_err(|error| format!("cannot write: {error}")),
    };
    let mut take = |record: &Record| {
        diagnosis.before(record).iter().try_for_each(&mut put)?;
        put(record)
    };
    if is_recording {
        replay(from, &mut take).map_err(|error| format!("{name}: {error}"))?;
    } else {
        read_lines(from, &mut take).map_err(|error| format!("{name}: {error}"))?;
    }
    match lines {
        None => write_text(&args.output, &summary),
        Some(mut out) => out.flush().map_err(|error| format!("cannot write: {error}")),
    }
}

fn replay(from: impl Read, take: &mut impl FnMut(&Record) -> Result<(), String>) -> Result<(), String> {
    let mut reader = recording::Reader::new(from).map_err(|error| error.to_string())?;
    let mut core = Core::new();
    loop {
        match reader.next_input() {
            Ok(None) => return Ok(()),
            Ok(Some(input)) => {
                for output in core.step(input) {
                    // Questions were answered when the recording was made.
                    if let Output::Record(record) = output {
                        take(&record)?;
                    }
                }
            }
            Err(error) => {
                warn!("the recording ends early: {error}");
                return Ok(());
            }
        }
    }
}

fn read_lines(from: impl BufRead, take: &mut impl FnMut(&Record) -> Result<(), String>) -> Result<(), String> {
    let mut reader = ndjson::Reader::new(from);
    let mut any = false;
    while let Some(record) = reader.next_record().map_err(|error| error.to_string())? {
        any = true;
        take(&record)?;
    }
    if let Some(complaint) = reader.tally().complaint() {
        warn!("{complaint}");
    }
    if any { Ok(()) } else { Err("no records of `agent trace --format ndjson` in it".into()) }
}

fn open(path: &Path) -> io::Result<BufReader<Box<dyn Read>>> {
    let from: Box<dyn Read> = if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    Ok(BufReader::new(from))
}

fn create(path: &Path) -> Result<BufWriter<Box<dyn Write>>, String> {
    let to: Box<dyn Write> = if path == Path::new("-") {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?)
    };
    Ok(BufWriter::new(to))
}
