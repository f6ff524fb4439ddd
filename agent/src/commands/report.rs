//! `agent report`: the summary of an earlier trace, from its records or its recording.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::Path,
};

use log::warn;

use super::{profile, trace::write_text};
use crate::{
    cli::{ProfileFormat, ReportArgs, exit},
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
    let format = args.format.or_else(|| ProfileFormat::of_name(&args.output)).unwrap_or(ProfileFormat::Text);
    if format == ProfileFormat::Ndjson {
        let mut out = create(&args.output)?;
        read(&args.file, &mut |record| {
            ndjson::write_record(&mut out, record).map_err(|error| format!("cannot write: {error}"))
        })?;
        return out.flush().map_err(|error| format!("cannot write: {error}"));
    }
    let summary = read_summary(&args.file)?;
    let is_profile = summary
        .targets
        .values()
        .filter_map(|target| target.target.as_ref())
        .any(|target| target.config.profile.is_some());
    let view = profile::view(args.view);
    let is_plain = args.output.extension().is_some_and(|ending| ending == "txt") && args.format.is_none();
    let format = if is_plain && !is_profile { ProfileFormat::Text } else { format };
    if format == ProfileFormat::Text && !is_profile && view.measure.is_none() {
        return write_text(&args.output, &summary);
    }
    profile::write(&args.output, format, &summary, view)
}

/// What the records of a file add up to.
pub fn read_summary(path: &Path) -> Result<Summary, String> {
    let mut summary = Summary::default();
    read(path, &mut |record| {
        summary.add(record);
        Ok(())
    })?;
    Ok(summary)
}

/// All records of a file, whichever kind it is of.
fn read(path: &Path, take: &mut impl FnMut(&Record) -> Result<(), String>) -> Result<(), String> {
    let mut diagnosis = Diagnosis::default();
    let take = &mut |record: &Record| {
        diagnosis.before(record).iter().try_for_each(&mut *take)?;
        take(record)
    };
    let name = path.display();
    let mut from = open(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let head = from.fill_buf().map_err(|error| format!("cannot read {name}: {error}"))?;
    if recording::is_recording(head) {
        replay(from, take).map_err(|error| format!("{name}: {error}"))
    } else {
        read_lines(from, take).map_err(|error| format!("{name}: {error}"))
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
    if any { Ok(()) } else { Err("no records of `agent trace` or `agent profile` in it".into()) }
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
