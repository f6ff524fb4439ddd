//! The npm package that a process runs: the nearest `package.json` at or above its script.
//!
//! The file is looked up as the process sees it, from its own root directory, which no link and no `..` leads out of. It is opened
//! only if it is a file, so that nothing happens to a pipe or a device of that name. A process may have mounted a file system that
//! never answers: whoever asks waits for a moment only, and after the first such time nobody asks again.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use log::warn;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io,
};
use serde::Deserialize;

use super::procfs;
use crate::{
    limits::{PACKAGE_BYTES_MAX, PACKAGE_LEVELS_MAX},
    units::Pid,
};

/// A disk answers within some tens of milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// A look-up did not come back.
static STALLED: AtomicBool = AtomicBool::new(false);

/// What a `package.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Package {
    pub name: String,
    #[serde(default)]
    pub version: Option<String>,
}

/// The package of a process's script, given as on its command line; `None` where there is none, or it cannot be read.
#[must_use]
pub fn of_script(pid: Pid, script: &str) -> Option<Package> {
    if STALLED.load(Ordering::Relaxed) {
        return None;
    }
    let script = PathBuf::from(script);
    let (answer, answers) = mpsc::sync_channel(1);
    let look = move || {
        // Nobody waits any more where this fails.
        let _ = answer.send(look(pid, &script));
    };
    thread::Builder::new().name("package".into()).spawn(look).ok()?;
    let found = answers.recv_timeout(PATIENCE);
    if let Err(mpsc::RecvTimeoutError::Timeout) = found {
        STALLED.store(true, Ordering::Relaxed);
        warn!("pid={pid} its file system does not answer: names of packages are not looked up from here on");
    }
    found.ok().flatten()
}

fn look(pid: Pid, script: &Path) -> Option<Package> {
    let script = procfs::working_directory(pid)?.join(script);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(procfs::root(pid), flags, Mode::empty()).ok()?;
    above(&root, &script)
}

/// The script's name may be a directory's: so it is looked into first.
fn above(root: &OwnedFd, script: &Path) -> Option<Package> {
    let place = own_place(&plain(script));
    place.ancestors().take(PACKAGE_LEVELS_MAX).find_map(|directory| {
        let bytes = read_within(root, &directory.join("package.json")).ok()??;
        parse(&bytes)
    })
}

/// Without `.` and `..`, as a shell would follow them.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    plain
}

/// A program out of `node_modules` is run for the package that these belong to.
fn own_place(path: &Path) -> PathBuf {
    path.components().take_while(|component| component.as_os_str() != "node_modules").collect()
}

/// `None` for what is no file, or too long.
fn read_within(root: &impl AsFd, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let about = rustix::fs::fstat(&place)?;
    let is_short = u64::try_from(about.st_size).is_ok_and(|size| size <= PACKAGE_BYTES_MAX);
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile || !is_short {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty())?;
    let mut bytes = Vec::new();
    let read = File::from(file).take(PACKAGE_BYTES_MAX).read_to_end(&mut bytes);
    Ok(read.is_ok().then_some(bytes))
}

/// `None` of one without a name: such ones only say how to read the scripts below.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Package> {
    let mut package: Package = serde_json::from_slice(bytes).ok()?;
    let is_made_of = |text: &str, more: &[u8], most: usize| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
        !text.is_empty() && text.len() <= most && text.bytes().all(is_part)
    };
    // npm allows 214 characters, none of which needs to be quoted in a URL.
    if !is_made_of(&package.name, b"-._~@/", 214) {
        return None;
    }
    package.version = package.version.filter(|version| is_made_of(version, b".-+", 64));
    Some(package)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().expect("a directory");
        let open = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        (directory, open.expect("the directory"))
    }

    fn write(root: &tempfile::TempDir, path: &str, text: &str) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("a file");
    }

    fn name(root: &OwnedFd, script: &str) -> Option<String> {
        above(root, Path::new(script)).map(|package| package.name)
    }

    #[test]
    fn the_nearest_package_with_a_name_counts() {
        let (directory, root) = root();
        write(&directory, "srv/app/package.json", r#"{"name": "@acme/shop", "version": "1.2.3-rc.1"}"#);
        write(&directory, "srv/app/dist/package.json", r#"{"type": "module"}"#);
        write(&directory, "srv/app/node_modules/next/package.json", r#"{"name": "next"}"#);
        let shop = Some("@acme/shop".to_owned());
        assert_eq!(name(&root, "/srv/app/server.js"), shop);
        assert_eq!(name(&root, "/srv/app"), shop);
        assert_eq!(name(&root, "/srv/app/dist/./server.js"), shop);
        assert_eq!(name(&root, "/srv/app/dist/../../app/x/server.js"), shop);
        assert_eq!(name(&root, "/srv/app/node_modules/next/dist/bin/next"), shop);
        assert_eq!(name(&root, "/srv/other.js"), None);
        let package = above(&root, Path::new("/srv/app/server.js")).expect("the package");
        assert_eq!(package.version.as_deref(), Some("1.2.3-rc.1"));
    }

    #[test]
    fn no_link_leads_out_of_the_process_s_root() {
        let (outside, _) = root();
        write(&outside, "package.json", r#"{"name": "secret-of-the-host"}"#);
        let (directory, root) = root();
        let own = directory.path();
        for (at, to) in [
            ("app", outside.path().to_owned()),
            ("climb", PathBuf::from("../../../../../../../..").join(outside.path().strip_prefix("/").expect("whole"))),
            ("magic", PathBuf::from("/proc/1/root")),
        ] {
            symlink(to, own.join(at)).expect("a link");
        }
        fs::create_dir(own.join("file")).expect("a directory");
        symlink(outside.path().join("package.json"), own.join("file/package.json")).expect("a link");
        for script in ["/app/x.js", "/climb/x.js", "/magic/x.js", "/file/x.js", "/../../app/x.js"] {
            assert_eq!(name(&root, script), None, "{script}");
        }
        // The same links lead to what lies within.
        write(&directory, &format!("{}/package.json", outside.path().display())[1..], r#"{"name": "own"}"#);
        assert_eq!(name(&root, "/app/x.js").as_deref(), Some("own"));
        assert_eq!(name(&root, "/file/x.js").as_deref(), Some("own"));
    }

    #[test]
    fn what_is_no_short_file_is_left_alone() {
        let (directory, root) = root();
        let own = directory.path();
        fs::create_dir_all(own.join("pipe")).expect("a directory");
        let pipe = own.join("pipe/package.json");
        let status = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(status.success());
        // Would not come back if it were opened.
        assert_eq!(name(&root, "/pipe/x.js"), None);
        fs::create_dir_all(own.join("directory/package.json")).expect("a directory");
        assert_eq!(name(&root, "/directory/x.js"), None);
        write(&directory, "long/package.json", &format!(r#"{{"name": "x", "y": "{}"}}"#, "z".repeat(1 << 18)));
        assert_eq!(name(&root, "/long/x.js"), None);
        symlink("b", own.join("a")).expect("a link");
        symlink("a", own.join("b")).expect("a link");
        assert_eq!(name(&root, "/a/x.js"), None);
    }

    #[test]
    fn names_are_npm_s() {
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"name": 1}"#,
            r#"{"name": ""}"#,
            "{\"name\": \"a\\u001b[2J\"}",
            r#"{"name": "a b"}"#,
            &format!(r#"{{"name": "{}"}}"#, "x".repeat(215)),
            &"[".repeat(100_000),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        let odd = parse(br#"{"name": "a", "version": "1\n2"}"#).expect("a package");
        assert_eq!(odd.version, None);
    }
}
