//! What a backend says of itself: `PgBackendStatus` in shared memory, and the process's title.

use super::locks::{time, u32_at, u64_at};
use crate::{
    postgres::{Backend, BackendKind, BackendState, PgPid, fingerprint},
    target::procfs::{self, Memory},
    units::{Clock, Pid, UserAddr},
};

/// Whether statements are shown as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementText {
    None,
    /// Without literals.
    Fingerprint,
    /// As the client sent it: it may hold anything.
    Whole,
}

/// Bytes of a `PgBackendStatus` that are searched for its pointers; version 15 has 424 in all.
const STATUS_SEARCHED_BYTES: usize = 512;

/// Bytes between the status entries of two neighbours: above and below what any version has.
const STATUS_BYTES: std::ops::Range<u64> = 256..1024;

/// `st_procpid`, `st_xact_start_timestamp`, `st_activity_start_timestamp` and, counted from `st_activity_raw`, `st_state`: the same
/// from version 10 on (`utils/backend_status.h`).
const PROCPID: u64 = 4;
const XACT_START: usize = 24;
const ACTIVITY_START: usize = 32;
const STATE_BACK: usize = 16;

/// Bytes of a statement that are read.
const STATEMENT_BYTES_MAX: u32 = 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusLayout {
    /// `PgBackendStatus::st_activity_raw`.
    pub activity: Option<u32>,
    bytes: u32,
}

impl StatusLayout {
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.activity.is_some()
    }

    /// Entries lie in one array, and so do their statements, of `bytes` each: the field is the pointer that advances by `bytes`
    /// where entries advance by their own, constant size.
    pub fn calibrate(&mut self, memory: &Memory, entries: &[(PgPid, UserAddr)], bytes: u32) {
        let read = |(pid, at): &(PgPid, UserAddr)| {
            let status: [u8; STATUS_SEARCHED_BYTES] = memory.array(*at)?;
            (memory.u32(at.plus(PROCPID))? == pid.0).then_some((*at, status))
        };
        let mut statuses: Vec<_> = entries.iter().filter_map(read).collect();
        statuses.sort_by_key(|(at, _)| *at);
        self.bytes = bytes;
        self.activity = (40u32..).step_by(8).take(STATUS_SEARCHED_BYTES / 8 - 5).find(|at| {
            let strides: Option<Vec<u64>> =
                statuses.windows(2).map(|pair| stride(pair.first()?, pair.get(1)?, *at as usize, bytes)).collect();
            strides.is_some_and(|strides| match strides.as_slice() {
                [first, rest @ ..] => STATUS_BYTES.contains(first) && rest.iter().all(|stride| stride == first),
                [] => false,
            })
        });
    }

    /// What is known of one backend.
    pub fn backend(
        &self,
        memory: &Memory,
        host_pid: Pid,
        pid: PgPid,
        status: UserAddr,
        clock: Clock,
        text: StatementText,
    ) -> Backend {
        let title = procfs::title(host_pid).unwrap_or_default();
        let mut backend = Backend { pid, host_pid, kind: kind_of_title(&title), ..Backend::default() };
        let Some(activity_at) = self.activity.map(|at| at as usize) else { return backend };
        let entry: Option<[u8; STATUS_SEARCHED_BYTES]> = memory.array(status).filter(|_| status.0 != 0);
        let Some(entry) = entry.filter(|entry| u32_at(entry, 4) == Some(pid.0)) else { return backend };
        let word = |at: usize| u64_at(&entry, at).unwrap_or(0);
        backend.transaction_since = time(word(XACT_START), clock);
        backend.statement_since = time(word(ACTIVITY_START), clock);
        backend.state = match activity_at.checked_sub(STATE_BACK).and_then(|at| u32_at(&entry, at)) {
            Some(1) => BackendState::Idle,
            Some(2) => BackendState::Active,
            Some(3 | 5) => BackendState::IdleInTransaction,
            _ => BackendState::Unknown,
        };
        let raw = memory.text(UserAddr(word(activity_at)), self.bytes.min(STATEMENT_BYTES_MAX));
        if let Some(raw) = raw.filter(|raw| !raw.is_empty()) {
            if raw.starts_with("autovacuum: ") {
                let wraparound = raw.ends_with("(to prevent wraparound)");
                backend.kind = if wraparound { BackendKind::WraparoundVacuum } else { BackendKind::AutovacuumWorker };
                backend.statement = Some(raw);
            } else {
                backend.statement = match text {
                    StatementText::None => None,
                    StatementText::Fingerprint => Some(fingerprint(&raw)),
                    StatementText::Whole => Some(raw),
                };
            }
        }
        backend
    }
}

fn stride(
    (one, status): &(UserAddr, [u8; STATUS_SEARCHED_BYTES]),
    (other, next): &(UserAddr, [u8; STATUS_SEARCHED_BYTES]),
    at: usize,
    bytes: u32,
) -> Option<u64> {
    let apart = u64_at(next, at)?.checked_sub(u64_at(status, at)?)?;
    let entries = apart.checked_div(u64::from(bytes)).filter(|n| *n > 0 && apart % u64::from(bytes) == 0)?;
    let distance = other.0.checked_sub(one.0)?;
    (distance % entries == 0).then_some(distance / entries)
}

/// From the title that a server process gives itself: `postgres: 15/main: user db 127.0.0.1(53210) SELECT waiting`.
fn kind_of_title(title: &str) -> BackendKind {
    const BACKGROUND: [&str; 12] = [
        "autovacuum launcher",
        "checkpointer",
        "background writer",
        "walwriter",
        "startup",
        "archiver",
        "walreceiver",
        "walsender",
        "stats collector",
        "logical replication",
        "slotsync worker",
        "io worker",
    ];
    let Some(title) = title.strip_prefix("postgres: ") else { return BackendKind::Unknown };
    // A cluster's name comes first, where it has one.
    let says =
        |what: &str| title.starts_with(what) || title.split_once(": ").is_some_and(|(_, rest)| rest.starts_with(what));
    if says("autovacuum worker") {
        BackendKind::AutovacuumWorker
    } else if says("parallel worker") {
        BackendKind::ParallelWorker
    } else if BACKGROUND.iter().any(|what| says(what)) {
        BackendKind::Background
    } else {
        BackendKind::Client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_tell_what_a_process_is_for() {
        let check = |title: &str, kind| assert_eq!(kind_of_title(title), kind, "{title}");
        check("postgres: autovacuum worker postgres", BackendKind::AutovacuumWorker);
        check("postgres: 15/main: autovacuum worker shop", BackendKind::AutovacuumWorker);
        check("postgres: 15/main: walwriter ", BackendKind::Background);
        check("postgres: shop shop 127.0.0.1(53210) SELECT waiting", BackendKind::Client);
        check("postgres: parallel worker for PID 77", BackendKind::ParallelWorker);
        check("/usr/lib/postgresql/15/bin/postgres -D /data", BackendKind::Unknown);
    }
}
