//! What files of `/proc` say. Whatever the bytes are, there is an answer or none.

use std::path::PathBuf;

use super::{Anonymous, Mapping, Seccomp, Stat, Status, SystemCall};
use crate::units::UserAddr;

/// Strings that NUL ends.
pub(super) fn strings(bytes: &[u8]) -> impl Iterator<Item = String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes
        .split(|byte| *byte == 0)
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// `/proc/PID/status` (proc(5)).
#[must_use]
pub fn parse_status(bytes: &[u8]) -> Option<Status> {
    let mut status = Status::default();
    let mut has_tgid = false;
    for line in String::from_utf8_lossy(bytes).lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let mut numbers = value.split_ascii_whitespace().map_while(|number| number.parse::<u32>().ok());
        match key {
            "Tgid" => (status.tgid, has_tgid) = (numbers.next()?, true),
            "Uid" => status.uid = numbers.next()?,
            "NSpid" => status.pids = numbers.collect(),
            "Seccomp" => {
                status.seccomp = match numbers.next()? {
                    0 => Seccomp::Off,
                    1 => Seccomp::Strict,
                    _ => Seccomp::Filter,
                }
            }
            _ => {}
        }
    }
    has_tgid.then_some(status)
}

/// `/proc/PID/stat` (proc(5)): the name may hold spaces and parentheses, so it ends at the last one.
#[must_use]
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(bytes);
    let (head, tail) = text.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the line; the state is field 3.
    let start_ticks = fields.nth(22 - 4)?.parse().ok()?;
    let start_stack = fields.nth(28 - 23).and_then(|field| field.parse().ok()).unwrap_or(0);
    Some(Stat { comm: comm.to_owned(), state, start_ticks, start_stack })
}

/// `/proc/PID/syscall` (proc(5)): number, six arguments, stack pointer and program counter; a thread that runs has a word there, and
/// one that sleeps outside of system calls the number -1 and no arguments.
#[must_use]
pub fn parse_system_call(bytes: &[u8]) -> Option<SystemCall> {
    let text = String::from_utf8_lossy(bytes);
    let mut fields = text.split_ascii_whitespace();
    let number = fields.next()?.parse().ok().filter(|number| *number >= 0)?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(SystemCall { number, arguments })
}

/// The executable ones of `/proc/PID/maps` (proc(5)); lines in no known form are left out.
#[must_use]
pub fn parse_maps(bytes: &[u8]) -> Vec<Mapping> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| parse_mapping(&String::from_utf8_lossy(line))).collect()
}

/// A line of memory that has no name, but for the one that V8 gives.
pub(super) fn parse_anonymous(line: &str) -> Option<Anonymous> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?.as_bytes();
    let path = fields.nth(3)?.trim_start();
    let hex = |text| u64::from_str_radix(text, 16).ok().map(UserAddr);
    (rights.first() == Some(&b'r') && (path.is_empty() || path.starts_with("[anon:"))).then_some(Anonymous {
        start: hex(start)?,
        end: hex(end)?,
        is_code: rights.get(2) == Some(&b'x'),
    })
}

pub(super) fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = hex(major)? << 32 | hex(minor)?;
    let inode = fields.next()?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_start();
    let gone = path.strip_suffix(" (deleted)");
    (start < end).then(|| Mapping {
        start: UserAddr(start),
        end: UserAddr(end),
        offset,
        device,
        inode,
        path: PathBuf::from(gone.unwrap_or(path)),
        deleted: gone.is_some(),
    })
}

/// The `btime` line of `/proc/stat`.
pub(super) fn boot_seconds(bytes: &[u8]) -> Option<u64> {
    String::from_utf8_lossy(bytes).lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sleeping_thread_shows_its_system_call() {
        let poll = b"281 0xd 0x7ffd0a1f3b40 0x400 0xffffffff 0x0 0x8 0x7ffd0a1f3b00 0x7f2c8e91e1a6\n";
        let call = parse_system_call(poll).expect("a system call");
        assert_eq!((call.number, call.arguments), (281, [13, 0x7ffd_0a1f_3b40, 1024, 0xffff_ffff, 0, 8]));
        for other in ["running\n", "-1 0x7ffd0a1f3b00 0x7f2c8e91e1a6\n", "281 0xd\n", "", "281 d 1 2 3 4 5\n"] {
            assert_eq!(parse_system_call(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let line = "42 (a) R 1) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 11 0 987654 0 0 1 2 3 140725\n";
        let stat = parse_stat(line.as_bytes()).expect("a line of proc(5)");
        let start_stack = 140_725;
        assert_eq!(stat, Stat { comm: "a) R 1".to_owned(), state: 'S', start_ticks: 987_654, start_stack });
    }

    #[test]
    fn status_tells_namespaces_and_seccomp() {
        let status =
            parse_status(b"Name:\tnode\nTgid:\t70\nPid:\t71\nUid:\t1000\t0\t0\t0\nNSpid:\t70\t1\nSeccomp:\t2\n");
        let expected = Status { tgid: 70, uid: 1000, pids: vec![70, 1], seccomp: Seccomp::Filter };
        assert_eq!(status, Some(expected));
    }

    #[test]
    fn only_executable_mappings_are_kept() {
        let maps = "00400000-00800000 r--p 00000000 fe:00 77 /usr/bin/node\n\
            00800000-02000000 r-xp 00400000 fe:00 77                         /opt/my app/node (deleted)\n\
            7f0000000000-7f0000040000 rwxp 00000000 00:00 0 \n\
            garbage\n\
            7ffd0000-7ffd2000 r-xp 00000000 00:00 0                          [vdso]";
        let maps = parse_maps(maps.as_bytes());
        let seen: Vec<_> = maps.iter().map(|map| (map.offset, map.inode, map.path.to_str(), map.deleted)).collect();
        assert_eq!(
            seen,
            [(0x40_0000, 77, Some("/opt/my app/node"), true), (0, 0, Some(""), false), (0, 0, Some("[vdso]"), false)]
        );
    }

    #[test]
    fn anonymous_memory_has_neither_file_nor_name() {
        let of = |line| parse_anonymous(line).map(|one| (one.start.0, one.end.0, one.is_code));
        assert_eq!(of("3a00000-3b00000 rw-p 00000000 00:00 0 "), Some((0x3a0_0000, 0x3b0_0000, false)));
        assert_eq!(of("3a00000-3b00000 r-xp 00000000 00:00 0 [anon:v8]"), Some((0x3a0_0000, 0x3b0_0000, true)));
        assert_eq!(of("3a00000-3b00000 ---p 00000000 00:00 0 "), None);
        assert_eq!(of("3a00000-3b00000 rw-p 00000000 00:00 0 [heap]"), None);
        assert_eq!(of("3a00000-3b00000 rw-p 00000000 fe:00 7 /usr/bin/node"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = (parse_status(&bytes), parse_stat(&bytes), parse_maps(&bytes), boot_seconds(&bytes));
        }
    }
}
