//! tracefs: where the ids and the record layouts of tracepoints are.

use std::path::{Path, PathBuf};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::UnshareFlags,
};
use thiserror::Error;

const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

#[derive(Debug, Error)]
pub enum TracefsError {
    #[error(
        "tracefs is not mounted, and mounting it privately failed: {step}: {source} (try: mount -t tracefs none /sys/kernel/tracing)"
    )]
    Mount { step: &'static str, source: rustix::io::Errno },
}

/// Where tracefs is mounted, if it is.
#[must_use]
pub fn find() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|place| place.join("events").is_dir())
}

/// Makes sure that tracefs can be read: where it is not mounted, mounts it for this process alone. Must run
/// before the process has a second thread, as mount namespaces belong to threads.
pub fn ensure() -> Result<PathBuf, TracefsError> {
    if let Some(place) = find() {
        return Ok(place);
    }
    let fail = |step| move |source| TracefsError::Mount { step, source };
    // SAFETY: the process has one thread, and it keeps its own file system view; no descriptor is affected.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(fail("unshare"))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(fail("make / private"))?;
    let [place, _] = PLACES;
    mount("tracefs", place, "tracefs", MountFlags::empty(), None).map_err(fail("mount"))?;
    Ok(PathBuf::from(place))
}

/// Events, and how they were called before: the first one until Linux 6.3, with the same fields.
const RENAMED: [(&str, &str); 1] = [("io_uring_submit_req", "io_uring_submit_sqe")];

/// What this kernel calls an event.
#[must_use]
pub fn name_here(tracefs: &Path, category: &str, event: &'static str) -> &'static str {
    let is_there = |event: &str| tracefs.join("events").join(category).join(event).is_dir();
    let before = RENAMED.into_iter().find(|(now, _)| *now == event).map(|(_, before)| before);
    before.filter(|before| !is_there(event) && is_there(before)).unwrap_or(event)
}

/// Offsets in the records of the `io_uring` tracepoints; 0 where the kernel has no such field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UringFields {
    pub submit_data: u32,
    pub submit_opcode: u32,
    pub complete_data: u32,
    pub complete_result: u32,
}

impl UringFields {
    #[must_use]
    pub fn read(tracefs: &Path) -> Self {
        let format = |event: &'static str| {
            let event = name_here(tracefs, "io_uring", event);
            std::fs::read_to_string(tracefs.join("events/io_uring").join(event).join("format")).unwrap_or_default()
        };
        let (submit, complete) = (format("io_uring_submit_req"), format("io_uring_complete"));
        Self {
            submit_data: field_offset(&submit, "user_data"),
            submit_opcode: field_offset(&submit, "opcode"),
            complete_data: field_offset(&complete, "user_data"),
            complete_result: field_offset(&complete, "res"),
        }
    }
}

/// The offset of a field in a tracepoint's `format` file, or 0.
fn field_offset(format: &str, field: &str) -> u32 {
    for line in format.lines() {
        let mut parts = line.trim().split(';').map(str::trim);
        let declares = parts
            .next()
            .and_then(|declaration| declaration.strip_prefix("field:"))
            .is_some_and(|declaration| declaration.split_whitespace().next_back() == Some(field));
        if declares && let Some(offset) = parts.find_map(|part| part.strip_prefix("offset:")) {
            return offset.parse().unwrap_or(0);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_by_its_former_name() {
        let tracefs = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let here = || name_here(tracefs.path(), "io_uring", "io_uring_submit_req");
        assert_eq!(here(), "io_uring_submit_req");
        for (made, name) in
            [("io_uring_submit_sqe", "io_uring_submit_sqe"), ("io_uring_submit_req", "io_uring_submit_req")]
        {
            let made = std::fs::create_dir_all(tracefs.path().join("events/io_uring").join(made));
            made.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(here(), name);
        }
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let format = "\tfield:u64 user_data;\toffset:24;\tsize:8;\tsigned:0;\n\tfield:int res;\toffset:32;\tsize:4;\n";
        assert_eq!(field_offset(format, "user_data"), 24);
        assert_eq!(field_offset(format, "res"), 32);
        assert_eq!(field_offset(format, "data"), 0);
    }
}
