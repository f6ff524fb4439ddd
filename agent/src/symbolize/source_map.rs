//! From the lines of a script that was translated or bundled to the lines that somebody wrote.
//!
//! A map is looked for in the directory that the user named, then where the script says: as V8 has read it, else as it stands in the
//! file. That is in the script itself (`data:`), or beside it, as the process sees it. Maps are foreign bytes: they have bounds, files that are none are not opened, and the reader's panics end with the map.
//!
//! A name is only taken from a map where the map speaks of the function itself: at a call it speaks of what is called.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Read,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use log::debug;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use sourcemap::{DecodedMap, SourceMapRef, decode_data_url, decode_slice, locate_sourcemap_reference_slice};

use crate::{
    limits::{
        SOURCE_MAP_BYTES_MAX, SOURCE_MAP_DEPTH_MAX, SOURCE_MAP_FILES_MAX, SOURCE_MAPPED_SCRIPTS_MAX,
        SOURCE_MAPS_BYTES_MAX,
    },
    report::model::{Frame, FrameKind},
    target::procfs::{self, Process},
    units::{Pid, WallNs},
};

/// Ticks of a process's start, and of a file's time, are no finer than that.
const START_TOLERANCE_NS: u64 = 1_000_000_000;

/// Maps by script.
#[derive(Default)]
pub struct SourceMaps {
    /// Maps of the user's directory, by the name of the script that they are for.
    given: BTreeMap<String, Vec<PathBuf>>,
    scripts: HashMap<(Pid, String), Option<Arc<Map>>>,
    started: HashMap<Pid, Option<WallNs>>,
    bytes: u64,
}

struct Map {
    decoded: DecodedMap,
    /// Where relative names of sources begin.
    base: PathBuf,
    /// As it was read.
    bytes: u64,
}

impl SourceMaps {
    /// Finds the maps in a directory, if there is one.
    #[must_use]
    pub fn new(directory: Option<&Path>) -> Self {
        let mut maps = Self::default();
        if let Some(directory) = directory {
            maps.search(directory);
            debug!("source maps for {} names of scripts in {}", maps.given.len(), directory.display());
        }
        maps
    }

    fn search(&mut self, directory: &Path) {
        let mut left = vec![(directory.to_owned(), 0)];
        let mut files = 0;
        while let Some((directory, depth)) = left.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let (path, kind) = (entry.path(), entry.file_type());
                if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
                    if depth < SOURCE_MAP_DEPTH_MAX {
                        left.push((path, depth + 1));
                    }
                    continue;
                }
                let Some(script) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".map")) else {
                    continue;
                };
                if files == SOURCE_MAP_FILES_MAX {
                    return;
                }
                files += 1;
                self.given.entry(script.to_owned()).or_default().push(path);
            }
        }
    }

    /// A process is no more: the next one of its number may run other scripts of the same names.
    pub fn forget(&mut self, pid: Pid) {
        self.started.remove(&pid);
        let gone = self.scripts.extract_if(|(whose, _), _| *whose == pid);
        let bytes: u64 = gone.filter_map(|(_, map)| Some(map?.bytes)).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// What a script of this name said to V8 of its map: a program that translates as it loads has no file that says so.
    pub fn refer(&mut self, pid: Pid, file: &str, url: &str) {
        self.find_and_keep((pid, file.to_owned()), Some(url));
    }

    /// The same frame in the source that somebody wrote; `None` if there is no map, or none of its mappings is about this place.
    pub fn apply(&mut self, pid: Pid, frame: &Frame) -> Option<Frame> {
        if frame.kind != FrameKind::Js {
            return None;
        }
        let (file, line) = (frame.file.as_deref()?, frame.line?);
        if file.starts_with("node:") {
            return None;
        }
        self.map(pid, file)?.apply(frame, line)
    }

    fn map(&mut self, pid: Pid, file: &str) -> Option<Arc<Map>> {
        let key = (pid, file.to_owned());
        if let Some(known) = self.scripts.get(&key) {
            return known.clone();
        }
        self.find_and_keep(key, None)
    }

    fn find_and_keep(&mut self, key: (Pid, String), url: Option<&str>) -> Option<Arc<Map>> {
        if self.scripts.len() >= SOURCE_MAPPED_SCRIPTS_MAX || self.bytes >= SOURCE_MAPS_BYTES_MAX {
            self.scripts.clear();
            self.started.clear();
            self.bytes = 0;
        }
        let map = self.find(key.0, &key.1, url).map(Arc::new);
        self.bytes = self.bytes.saturating_add(map.as_ref().map_or(0, |map| map.bytes));
        self.scripts.insert(key, map.clone());
        map
    }

    fn find(&mut self, pid: Pid, file: &str, url: Option<&str>) -> Option<Map> {
        let script = script_path(file);
        let base = script.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        if let Some(script) = &script
            && let Some(given) = self.given.get(script.file_name()?.to_str()?)
            && let Some(path) = best(given, script)
        {
            let file = openat(CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()?;
            return Map::of(&read(file)?, base);
        }
        // A file that is newer than the process may not be what the process runs.
        let started =
            *self.started.entry(pid).or_insert_with(|| Process::read(pid).ok().and_then(|process| process.started()));
        let url = if let Some(url) = url {
            url.to_owned()
        } else {
            let text = read_of_process(pid, script.as_deref()?, started)?;
            let (SourceMapRef::Ref(url) | SourceMapRef::LegacyRef(url)) =
                locate_sourcemap_reference_slice(&text).ok()??;
            url
        };
        if url.starts_with("data:") {
            let decoded = guarded(|| decode_data_url(&url).ok()).map(without_contents)?;
            return Some(Map { decoded, base, bytes: url.len() as u64 });
        }
        let path = match url.strip_prefix("file://") {
            Some(path) => PathBuf::from(unescaped(path)),
            None if url.contains("://") => return None,
            None => base.join(unescaped(url.split(['?', '#']).next()?)),
        };
        let path = normal(&path);
        let bytes = read_of_process(pid, &path, started)?;
        let base = path.parent().unwrap_or(Path::new("/")).to_owned();
        Map::of(&bytes, base)
    }
}

/// A place in a source, from 1.
struct Place {
    source: String,
    line: u32,
    column: u32,
    name: Option<String>,
}

impl Map {
    fn of(bytes: &[u8], base: PathBuf) -> Option<Self> {
        let decoded = guarded(|| decode_slice(bytes).ok()).map(without_contents)?;
        Some(Self { decoded, base, bytes: bytes.len() as u64 })
    }

    fn apply(&self, frame: &Frame, line: u32) -> Option<Frame> {
        let place = self.place(line, frame.column)?;
        let begin = frame.function_line.and_then(|line| self.function(line, frame.function_column?, &frame.name));
        let (function_line, function_column, name) = match (begin, frame.start_line) {
            (Some(begin), _) => (Some(begin.line), Some(begin.column), begin.name),
            (None, true) => (None, None, self.function(line, frame.column?, &frame.name).and_then(|begin| begin.name)),
            (None, false) => (None, None, None),
        };
        Some(Frame {
            name: name.unwrap_or_else(|| frame.name.clone()),
            file: Some(self.source(&place.source)),
            line: Some(place.line),
            column: Some(place.column),
            function_line,
            function_column,
            ..frame.clone()
        })
    }

    /// Without a column, only if the line has one source.
    fn place(&self, line: u32, column: Option<u32>) -> Option<Place> {
        let (line, column) = (line.checked_sub(1)?, column.unwrap_or(1).saturating_sub(1));
        guarded(|| {
            let token = self.decoded.lookup_token(line, column).filter(|token| token.get_dst_line() == line)?;
            let source = token.get_source()?.to_owned();
            Some(Place {
                source,
                line: token.get_src_line().checked_add(1)?,
                column: token.get_src_col().checked_add(1)?,
                name: None,
            })
        })
    }

    /// A function whose parameters begin here. Its name is what the map has for the word right before them, if that is the name that the
    /// script has: of functions that have none, something else stands there.
    fn function(&self, line: u32, column: u32, name: &str) -> Option<Place> {
        let mut place = self.place(line, Some(column))?;
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '#');
        if name.is_empty() || !name.chars().all(is_word) {
            return Some(place);
        }
        let (line, column) = (line.checked_sub(1)?, column.checked_sub(1)?);
        let length = u32::try_from(name.encode_utf16().count()).ok()?;
        let at = column.checked_sub(length)?;
        place.name = guarded(|| {
            let token = self.decoded.lookup_token(line, at)?;
            let is_there = token.get_dst_line() == line && token.get_dst_col() == at;
            token.get_name().filter(|_| is_there).map(str::to_owned)
        });
        Some(place)
    }

    /// The source's path, where it has one.
    fn source(&self, source: &str) -> String {
        if source.contains("://") || source.starts_with('/') {
            return source.to_owned();
        }
        normal(&self.base.join(source)).to_string_lossy().into_owned()
    }
}

/// The same frame in the source, by a map that somebody holds.
#[must_use]
pub fn apply_bytes(map: &[u8], frame: &Frame) -> Option<Frame> {
    let decoded = guarded(|| decode_slice(map).ok()).map(without_contents)?;
    Map { decoded, base: PathBuf::new(), bytes: 0 }.apply(frame, frame.line?)
}

/// Runs foreign code over foreign bytes.
fn guarded<T>(read: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(read)).ok().flatten()
}

/// Texts of sources are most of a map, and not looked at.
fn without_contents(mut map: DecodedMap) -> DecodedMap {
    if let DecodedMap::Regular(regular) = &mut map {
        for source in 0..regular.get_source_count() {
            regular.set_source_contents(source, None);
        }
    }
    map
}

/// The path of a script that is a file.
fn script_path(file: &str) -> Option<PathBuf> {
    let path = file.strip_prefix("file://").unwrap_or(file);
    let path = if file.len() == path.len() { path.to_owned() } else { unescaped(path) };
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// `%20` is a space in a URL.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<2>().filter(|_| *first == b'%').and_then(|digits| str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Without `.` and `..`, by the words alone.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => normal.push(component),
        }
    }
    normal
}

/// Of maps for scripts of this name, the one whose directories are most like the script's; none where two are as good.
fn best<'a>(given: &'a [PathBuf], script: &Path) -> Option<&'a PathBuf> {
    let likeness = |path: &PathBuf| {
        let pairs = path.components().rev().zip(script.components().rev()).skip(1);
        pairs.take_while(|(a, b)| a == b).count()
    };
    let most = given.iter().map(likeness).max()?;
    let mut alike = given.iter().filter(|path| likeness(path) == most);
    alike.next().filter(|_| alike.next().is_none())
}

/// A file as the process sees it, whatever links it has laid; `None` if it changed since the process began.
fn read_of_process(pid: Pid, path: &Path, started: Option<WallNs>) -> Option<Vec<u8>> {
    let root = File::open(procfs::root(pid)).ok()?;
    let inner = path.strip_prefix("/").ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, inner, flags, Mode::empty(), resolve).ok()?;
    let status = fstat(&file).ok()?;
    let changed = i128::from(status.st_mtime) * 1_000_000_000 + i128::from(status.st_mtime_nsec);
    if changed > i128::from(started?.0.saturating_add(START_TOLERANCE_NS)) {
        debug!("pid={pid}: {} changed since the process began: its source map is not used", path.display());
        return None;
    }
    read(file)
}

/// A regular file of a sane size.
fn read(file: OwnedFd) -> Option<Vec<u8>> {
    let status = fstat(&file).ok()?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    let read = File::from(file).take(SOURCE_MAP_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (read as u64 <= SOURCE_MAP_BYTES_MAX).then_some(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// `function a(){return 1}` of `export function hashPassword() {\n  return 1;\n}` in `auth.ts`, as esbuild translates it.
    fn map() -> String {
        let mut builder = sourcemap::SourceMapBuilder::new(Some("app.js"));
        let source = builder.add_source("../src/auth.ts");
        builder.set_source_contents(source, Some("export function hashPassword() {\n  return 1;\n}"));
        let name = builder.add_name("hashPassword");
        let mut token = |at: (u32, u32), from: (u32, u32), name| {
            builder.add_raw(at.0, at.1, from.0, from.1, Some(source), name, false);
        };
        token((0, 0), (0, 0), None);
        token((0, 9), (0, 16), Some(name));
        token((0, 10), (0, 28), None);
        token((0, 13), (1, 2), None);
        let mut bytes = Vec::new();
        builder.into_sourcemap().to_writer(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn frame(file: &Path) -> Frame {
        Frame {
            name: "a".into(),
            kind: FrameKind::Js,
            file: Some(file.to_str().unwrap().to_owned()),
            line: Some(1),
            column: Some(14),
            function_line: Some(1),
            function_column: Some(11),
            ..Frame::default()
        }
    }

    fn me() -> Pid {
        Pid(std::process::id())
    }

    fn check(mapped: Option<Frame>, file: &str) {
        let mapped = mapped.unwrap();
        assert_eq!((mapped.name.as_str(), mapped.file.as_deref()), ("hashPassword", Some(file)));
        assert_eq!((mapped.line, mapped.column, mapped.function_line), (Some(2), Some(3), Some(1)));
    }

    #[test]
    fn a_function_without_a_name_is_not_called_what_stands_before_it() {
        let mut builder = sourcemap::SourceMapBuilder::new(Some("app.js"));
        let source = builder.add_source("app.ts");
        let name = builder.add_name("app");
        builder.add_raw(0, 0, 0, 0, Some(source), Some(name), false);
        builder.add_raw(0, 11, 0, 13, Some(source), None, false);
        let map = Map { decoded: DecodedMap::Regular(builder.into_sourcemap()), base: PathBuf::new(), bytes: 0 };
        // `hr.get("/",(e,r)=>` of `app.get('/', (req, res) =>`.
        assert_eq!(map.function(1, 12, "(anonymous)").unwrap().name, None);
    }

    /// A directory with files that are older than this process.
    fn old(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
        }
        dir
    }

    #[test]
    fn a_map_of_the_users_directory_is_found_by_name_and_place() {
        let dir = old(&[("dist/app.js.map", &map()), ("other/app.js.map", "{}")]);
        let mut maps = SourceMaps::new(Some(dir.path()));
        check(maps.apply(Pid(1), &frame(Path::new("/srv/dist/app.js"))), "/srv/src/auth.ts");
        assert_eq!(maps.apply(Pid(1), &frame(Path::new("/srv/elsewhere/app.js"))), None, "two are as good");
        assert_eq!(maps.apply(Pid(1), &frame(Path::new("node:fs"))), None);
    }

    #[test]
    fn a_map_beside_the_script_is_found() {
        let dir =
            old(&[("dist/app.js", "function a(){}\n//# sourceMappingURL=app.js.map\n"), ("dist/app.js.map", &map())]);
        let script = dir.path().join("dist/app.js");
        let mut maps = SourceMaps::new(None);
        let source = dir.path().join("src/auth.ts");
        check(maps.apply(me(), &frame(&script)), source.to_str().unwrap());
        let url = PathBuf::from(format!("file://{}", script.display()));
        check(maps.apply(me(), &frame(&url)), source.to_str().unwrap());
    }

    #[test]
    fn a_map_in_the_script_is_read() {
        const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut encoded = String::new();
        for three in map().as_bytes().chunks(3) {
            let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            for at in 0..4 {
                let digit = BASE64.get((bits >> (18 - 6 * at)) as usize & 63).copied().unwrap();
                encoded.push(if at <= three.len() { char::from(digit) } else { '=' });
            }
        }
        let text = format!("function a(){{}}\n//# sourceMappingURL=data:application/json;base64,{encoded}");
        let dir = old(&[("dist/app.js", &text)]);
        let mapped = SourceMaps::new(None).apply(me(), &frame(&dir.path().join("dist/app.js")));
        check(mapped, dir.path().join("src/auth.ts").to_str().unwrap());
    }

    #[test]
    fn what_is_known_of_scripts_goes_with_their_process() {
        let dir = old(&[("dist/app.js", ""), ("dist/app.js.map", &map())]);
        let script = dir.path().join("dist/app.js");
        let mut maps = SourceMaps::new(None);
        let parent = Pid(std::os::unix::process::parent_id());
        for pid in [me(), parent] {
            maps.refer(pid, script.to_str().unwrap(), "app.js.map");
        }
        let bytes = map().len() as u64;
        assert_eq!((maps.scripts.len(), maps.bytes), (2, 2 * bytes));
        maps.forget(me());
        assert_eq!((maps.scripts.len(), maps.bytes), (1, bytes));
        assert_eq!(maps.apply(me(), &frame(&script)), None, "the next process of this number says nothing of a map");
    }

    #[test]
    fn a_script_that_changed_since_is_not_believed() {
        let dir = old(&[("app.js", "//# sourceMappingURL=app.js.map\n"), ("app.js.map", &map())]);
        let script = dir.path().join("app.js");
        let file = File::options().write(true).open(&script).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_mins(1)).unwrap();
        assert_eq!(SourceMaps::new(None).apply(me(), &frame(&script)), None);
    }

    #[test]
    fn a_name_is_not_taken_from_a_call() {
        let dir = old(&[("app.js.map", &map())]);
        let mut maps = SourceMaps::new(Some(dir.path()));
        let at_the_call =
            Frame { column: Some(10), function_line: None, function_column: None, ..frame(Path::new("/app.js")) };
        assert_eq!(maps.apply(Pid(1), &at_the_call).unwrap().name, "a");
        let other = Frame { name: "bb".into(), ..frame(Path::new("/app.js")) };
        assert_eq!(maps.apply(Pid(1), &other).unwrap().name, "bb");
        let beyond = Frame { line: Some(7), ..frame(Path::new("/app.js")) };
        assert_eq!(maps.apply(Pid(1), &beyond), None, "a line without mappings");
    }

    #[test]
    fn what_is_no_map_is_none() {
        let dir = old(&[
            ("a.js.map", "{\"version\":3,\"sources\":[\"x\"],\"names\":[],\"mappings\":\"!!!!,;;;\"}"),
            ("b.js.map", ""),
            ("c.js", "//# sourceMappingURL=/dev/zero\n"),
            ("d.js", "//# sourceMappingURL=https://example.com/x.map\n"),
            ("e.js", "//# sourceMappingURL=data:application/json;base64,////\n"),
        ]);
        let mut maps = SourceMaps::new(Some(dir.path()));
        for name in ["a.js", "b.js"] {
            assert_eq!(maps.apply(Pid(1), &frame(&Path::new("/x").join(name))), None, "{name}");
        }
        for name in ["c.js", "d.js", "e.js", "not-there.js"] {
            assert_eq!(maps.apply(me(), &frame(&dir.path().join(name))), None, "{name}");
        }
    }
}
