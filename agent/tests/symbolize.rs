//! Names of real addresses in live processes, against the symbol tables as another reader has them.
//!
//! `cargo xtask setup` puts the binaries into `.cache`.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Instant,
};

use agent::{
    decode::{UserFrame, UserFrames},
    report::model::{Frame, FrameKind},
    symbolize::Symbolizer,
    target::procfs::{self, Mapping},
    units::{Pid, UserAddr},
};
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

const OFFICIAL: [&str; 6] = ["16.20.2", "18.20.8", "20.20.2", "22.23.3", "24.21.0", "26.10.0"];

/// Compiles a function at the highest tier, says so, and waits.
const SCRIPT: &str = "function hot(n) { return n < 2 ? n : hot(n - 1) + hot(n - 2); }
for (let i = 0; i < 200; i++) hot(18);
setInterval(() => hot(18), 50);
console.log('ready');";

struct Node {
    child: Child,
    pid: Pid,
}

impl Node {
    /// An official build; without it the test is skipped aloud, and on CI fails.
    fn start(version: &str, flags: &[&str]) -> Option<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../.cache/node/{version}/bin/node"));
        if !path.exists() {
            assert!(env::var_os("CI").is_none(), "{} is missing: run `cargo xtask setup`", path.display());
            eprintln!("SKIPPED: {} is missing: run `cargo xtask setup`", path.display());
            return None;
        }
        // `--perf-basic-prof` leaves a log in the working directory, too.
        let mut command = Command::new(path.canonicalize().unwrap());
        command.current_dir(env::temp_dir());
        let mut child = command.args(flags).args(["-e", SCRIPT]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let pid = Pid(child.id());
        Some(Self { child, pid })
    }

    fn mappings(&self) -> Vec<Mapping> {
        procfs::executable_mappings(self.pid).unwrap()
    }

    fn code(&self) -> Vec<Mapping> {
        self.mappings().into_iter().filter(|mapping| mapping.path.ends_with("node")).collect()
    }

    fn perf_map(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/perf-{}.map", self.pid))
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(self.perf_map());
    }
}

/// A binary's symbols as `object` reads them.
struct Truth {
    /// By address: size, and all names.
    functions: BTreeMap<u64, (u64, Vec<String>)>,
    vtables: Vec<(String, u64, u64)>,
    /// File offset, size and address of each segment.
    segments: Vec<(u64, u64, u64)>,
}

impl Truth {
    fn of(node: &Node) -> Self {
        let bytes = fs::read(format!("/proc/{}/exe", node.pid)).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let mut functions: BTreeMap<u64, (u64, Vec<String>)> = BTreeMap::new();
        let mut vtables = Vec::new();
        for symbol in file.symbols().filter(|symbol| !symbol.is_undefined() && symbol.address() != 0) {
            let name = symbol.name().unwrap().to_owned();
            if name.starts_with("_ZTV") {
                vtables.push((name, symbol.address(), symbol.size()));
            } else if symbol.kind() == SymbolKind::Text {
                let entry = functions.entry(symbol.address()).or_default();
                entry.0 = entry.0.max(symbol.size());
                entry.1.push(name);
            }
        }
        let segments = file.segments().map(|segment| {
            let (offset, bytes) = segment.file_range();
            (offset, bytes, segment.address())
        });
        Self { functions, vtables, segments: segments.collect() }
    }

    /// Where a mapping has the code of an address, if it has.
    fn in_mapping(&self, addr: u64, mapping: &Mapping) -> Option<u64> {
        let (offset, _, start) =
            self.segments.iter().find(|(_, bytes, start)| (*start..start + bytes).contains(&addr))?;
        let at = (addr - start + offset).checked_sub(mapping.offset)? + mapping.start.0;
        (at < mapping.end.0).then_some(at)
    }

    /// The runtime address of a function, if it is in this mapping.
    fn function(&self, wanted: &str, mapping: &Mapping) -> Option<u64> {
        let found = self.functions.iter().find(|(_, (_, names))| names.iter().any(|name| name == wanted));
        self.in_mapping(*found?.0, mapping)
    }
}

/// The last part of the name, in either notation; a few of the standard library's contortions no demangler here can read.
fn is_readable(frame: &Frame, mangled: &str) -> bool {
    let last = frame.name.split('<').next().and_then(|plain| plain.rsplit("::").next()).unwrap_or_default();
    let last = last.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    frame.name == mangled || frame.name.contains("operator") || mangled.contains(last)
}

/// Names of C and of V8's builtins stay as they are.
fn agrees(frame: &Frame, names: &[String]) -> bool {
    names.iter().any(|name| match name.strip_prefix("Builtins_") {
        Some(builtin) => frame.kind == FrameKind::Builtin && frame.name == builtin,
        None if name.starts_with("_Z") => frame.kind == FrameKind::Native && is_readable(frame, name),
        // Line information does not know of the compiler's clones (`.isra.5`).
        None => frame.kind == FrameKind::Native && name.split('.').next() == frame.name.split('.').next(),
    })
}

/// Names these return addresses as a stack taken in a system call.
fn user(symbolizer: &mut Symbolizer, pid: Pid, addrs: &[u64]) -> Vec<Frame> {
    let frames = addrs.iter().map(|&pc| UserFrame { pc, object: 0, bytecode_offset: 0 }).collect();
    let stack = UserFrames { frames, ..UserFrames::default() };
    symbolizer.symbolize_user(pid, &[&stack]).remove(0).frames.into_iter().map(Arc::unwrap_or_clone).collect()
}

/// The function that holds an address, after those that are inlined there: official builds have line information of libuv.
fn named(symbolizer: &mut Symbolizer, node: &Node, addr: u64) -> Frame {
    let mut frames = user(symbolizer, node.pid, &[addr]);
    let holder = frames.pop().unwrap();
    assert!(!holder.inlined && frames.iter().all(|frame| frame.inlined), "{frames:?} {holder:?}");
    holder
}

#[test]
fn functions_of_every_version_have_their_names() {
    for version in OFFICIAL {
        let Some(node) = Node::start(version, &[]) else { continue };
        let truth = Truth::of(&node);
        let mut symbolizer = Symbolizer::default();
        let (mut wrong, mut mangled) = (Vec::new(), 0);
        let (mut asked, mut mappings) = (0u32, 0);
        for mapping in node.code() {
            mappings += 1;
            for (addr, (size, names)) in truth.functions.iter().filter(|(_, (size, _))| *size > 8).step_by(37) {
                // In its middle: where code is shared by symbols of several sizes, only there is no doubt.
                let Some(at) = truth.in_mapping(addr + size / 2, &mapping) else { continue };
                if truth.functions.range(addr + 1..=addr + size / 2).next().is_some() {
                    continue;
                }
                asked += 1;
                let frame = named(&mut symbolizer, &node, at);
                assert_eq!(frame.module.as_deref(), Some("node"), "{names:?} {frame:?}");
                mangled += u32::from(frame.name.starts_with("_Z"));
                if !agrees(&frame, names) {
                    wrong.push((names.clone(), frame));
                }
            }
        }
        eprintln!(
            "measured node {version}: {asked} addresses in {mappings} mappings, {} wrong, {mangled} mangled",
            wrong.len()
        );
        assert!(asked > 1000 && mangled * 200 < asked && wrong.is_empty(), "{:?}", &wrong[..wrong.len().min(5)]);
    }
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    let Some(node) = Node::start("22.23.3", &[]) else { return };
    let (truth, code) = (Truth::of(&node), node.code());
    let (uv_run, (size, _)) =
        truth.functions.iter().find(|(_, (_, names))| names.contains(&"uv_run".to_owned())).unwrap();
    let begin = code.iter().find_map(|mapping| truth.in_mapping(*uv_run, mapping)).unwrap();
    // A call to what does not return may be a function's last instruction.
    let frames = user(&mut Symbolizer::default(), node.pid, &[begin, begin + size]);
    let names: Vec<_> = frames.iter().filter(|frame| !frame.inlined).map(|frame| frame.name.as_str()).collect();
    assert_eq!(names, ["uv_run", "uv_run"]);
}

#[test]
fn builtins_are_known_in_their_second_mapping() {
    // V8 10 and 11 jump to the first one here, as the code range is near enough.
    let mut seen = 0;
    for version in OFFICIAL {
        let Some(node) = Node::start(version, &[]) else { continue };
        let (truth, mut symbolizer) = (Truth::of(&node), Symbolizer::default());
        for mapping in node.code() {
            let Some(at) = truth.function("Builtins_ArrayMap", &mapping) else { continue };
            let frame = named(&mut symbolizer, &node, at);
            assert!(frame.kind == FrameKind::Builtin && frame.name == "ArrayMap", "{version}: {frame:?}");
            seen += 1;
        }
    }
    eprintln!("measured {seen} mappings of builtins in {} versions", OFFICIAL.len());
}

#[test]
fn the_classes_of_work_are_known_by_their_vtables() {
    for version in OFFICIAL {
        let Some(node) = Node::start(version, &[]) else { continue };
        let (truth, mut symbolizer) = (Truth::of(&node), Symbolizer::default());
        let bias = {
            let code = &node.code()[0];
            let (offset, _, start) = *truth
                .segments
                .iter()
                .find(|(offset, bytes, _)| (*offset & !0xfff..offset + bytes).contains(&code.offset))
                .unwrap();
            code.start.0.wrapping_sub(start - offset + code.offset)
        };
        for (part, class) in [
            ("DeriveBitsJobINS0_12PBKDF2Traits", "node::crypto::DeriveBitsJob<node::crypto::PBKDF2Traits>"),
            ("110ZlibStreamE", "ZlibStream"),
            ("6uvimpl4WorkE", "uvimpl::Work"),
        ] {
            let (_, addr, size) = truth.vtables.iter().find(|(name, ..)| name.contains(part)).unwrap();
            // An object points at any base's part of the table, the last word of it included.
            for at in [addr + 16, addr + size - 8] {
                let found = symbolizer.work_class(node.pid, UserAddr(at.wrapping_add(bias)));
                assert!(found.as_ref().is_some_and(|found| found.contains(class)), "{version} {class}: {found:?}");
            }
        }
        assert_eq!(symbolizer.work_class(node.pid, node.code()[0].start), None);
        assert_eq!(symbolizer.work_class(node.pid, UserAddr(0)), None);
    }
}

/// An address in code that V8 compiled.
fn compiled(node: &Node) -> u64 {
    let mappings = node.mappings();
    mappings.iter().find(|mapping| mapping.path.as_os_str().is_empty()).unwrap().start.0
}

#[test]
fn compiled_functions_have_the_names_of_the_perf_map() {
    for version in OFFICIAL {
        let Some(node) = Node::start(version, &["--perf-basic-prof"]) else { continue };
        let text = fs::read_to_string(node.perf_map()).unwrap();
        // The optimised code: it stays until the process ends.
        let line = text.lines().rfind(|line| line.contains("*hot ") || line.contains("*'hot ")).expect("optimised");
        let addr = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
        let mut symbolizer = Symbolizer::default();
        let frame = named(&mut symbolizer, &node, addr + 1);
        assert_eq!((frame.name.as_str(), frame.kind), ("hot", FrameKind::Js), "{version} {line}");
    }
}

#[test]
fn without_a_perf_map_compiled_code_is_just_javascript() {
    let Some(node) = Node::start("24.21.0", &[]) else { return };
    let frame = named(&mut Symbolizer::default(), &node, compiled(&node));
    assert_eq!((frame.name.as_str(), frame.kind), ("[js]", FrameKind::Js));
}

#[test]
fn a_hostile_perf_map_names_nothing_and_holds_nothing_up() {
    let Some(node) = Node::start("24.21.0", &[]) else { return };
    let (path, addr) = (node.perf_map(), compiled(&node));
    let check = |what: &str, name: &str| {
        let begin = Instant::now();
        let frame = named(&mut Symbolizer::default(), &node, addr);
        assert_eq!(frame.name, name, "{what}");
        eprintln!("measured {what}: {:?}", begin.elapsed());
        assert!(begin.elapsed().as_secs() < 20, "{what}");
        fs::remove_file(&path).unwrap();
    };
    let secret = env::temp_dir().join(format!("perf-map-elsewhere-{}", node.pid));
    fs::write(&secret, format!("{addr:x} 1000 elsewhere\n")).unwrap();
    symlink(&secret, &path).unwrap();
    check("a link", "[js]");
    fs::remove_file(&secret).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    check("a pipe that nobody writes to", "[js]");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    check("a terabyte of nothing", "[js]");
    fs::write(&path, format!("{addr:x} ffffffffffffffff huge\n{addr:x} 10 a\u{7}b\u{1b}[2J{}\n", "x".repeat(9000)))
        .unwrap();
    let frame = named(&mut Symbolizer::default(), &node, addr);
    assert!(frame.name.starts_with("ab[2Jx") && frame.name.len() < 512, "{}", frame.name);
    if rustix::process::geteuid().is_root() {
        fs::write(&path, format!("{addr:x} 1000 of nobody\n")).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        check("a file of somebody else", "[js]");
    } else {
        eprintln!("SKIPPED: a file of somebody else needs root");
    }
}

#[test]
fn of_a_process_that_has_gone_what_was_read_is_still_known() {
    let Some(mut node) = Node::start("20.20.2", &[]) else { return };
    let (truth, code, maps) = (Truth::of(&node), node.code(), node.mappings());
    let uv_run = code.iter().find_map(|mapping| truth.function("uv_run", mapping)).unwrap();
    let libc = maps.iter().find(|mapping| mapping.path.to_string_lossy().contains("libc.so")).unwrap();
    let mut symbolizer = Symbolizer::default();
    let before = named(&mut symbolizer, &node, uv_run);
    node.stop();
    assert_eq!(named(&mut symbolizer, &node, uv_run), before);
    // Its file was not opened in time, but the mapping is known.
    let frame = named(&mut symbolizer, &node, libc.start.0 + 0x10);
    assert_eq!((frame.name, frame.kind), (format!("libc.so.6+{:#x}", libc.offset + 0x10), FrameKind::Unknown));
    let frame = named(&mut Symbolizer::default(), &node, uv_run);
    assert_eq!((frame.name, frame.kind), (format!("{uv_run:#x}"), FrameKind::Unknown));
}

#[test]
fn a_file_that_one_process_took_with_it_is_read_of_the_next() {
    let (Some(mut node), Some(other)) = (Node::start("20.20.2", &[]), Node::start("20.20.2", &[])) else { return };
    let uv_run = |node: &Node| {
        let truth = Truth::of(node);
        node.code().iter().find_map(|mapping| truth.function("uv_run", mapping)).unwrap()
    };
    let (of_node, of_other) = (uv_run(&node), uv_run(&other));
    let vdso = node.mappings().into_iter().find(|mapping| mapping.path.ends_with("[vdso]")).unwrap().start.0;
    let mut symbolizer = Symbolizer::default();
    assert_eq!(named(&mut symbolizer, &node, vdso).name, "[vdso]");
    node.stop();
    assert_eq!(named(&mut symbolizer, &node, of_node).kind, FrameKind::Unknown);
    assert_eq!(named(&mut symbolizer, &other, of_other).name, "uv_run");
}

#[test]
fn after_an_exec_the_old_programs_mappings_are_forgotten() {
    let Some(node) = Node::start("24.21.0", &[]) else { return };
    let target = fs::read_link(format!("/proc/{}/exe", node.pid)).unwrap();
    let mut shell = Command::new("sh");
    let run = format!("echo up; read go; exec {} -e 'console.log(1); setInterval(() => {{}}, 1e6)'", target.display());
    let mut child = shell.args(["-c", &run]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let pid = Pid(child.id());
    let mut said = BufReader::new(child.stdout.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    let mut symbolizer = Symbolizer::default();
    let shells = procfs::executable_mappings(pid).unwrap();
    let vdso = shells.iter().find(|mapping| mapping.path.ends_with("[vdso]")).unwrap().start.0;
    assert_eq!(user(&mut symbolizer, pid, &[vdso])[0].name, "[vdso]");
    // The pace at which a process is looked at again.
    std::thread::sleep(std::time::Duration::from_millis(600));
    drop(child.stdin.take());
    said.read_line(&mut String::new()).unwrap();
    let stale = user(&mut symbolizer, pid, &[vdso]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(stale[0].name, "[vdso]", "the old program's mapping");
}

#[test]
fn kernel_functions_have_the_names_of_kallsyms() {
    let text = fs::read_to_string("/proc/kallsyms").unwrap();
    let mut functions: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (addr, kind, name) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        // BPF programs come and go, and their places with them.
        if matches!(kind, "t" | "T" | "w" | "W") && fields.next() != Some("[bpf]") {
            functions.entry(u64::from_str_radix(addr, 16).unwrap()).or_default().push(name);
        }
    }
    if functions.len() < 2 {
        return eprintln!("SKIPPED: the kernel hides its addresses");
    }
    let mut symbolizer = Symbolizer::default();
    for (addr, names) in functions.iter().filter(|(addr, _)| **addr != 0).step_by(97) {
        let frames = symbolizer.symbolize_kernel(&[addr + 1]);
        assert_eq!(frames[0].kind, FrameKind::Kernel);
        assert!(names.contains(&frames[0].name.as_str()), "{addr:x} {names:?} {frames:?}");
    }
}

#[expect(clippy::inline_always, reason = "it is what the test is about")]
#[inline(always)]
fn inner(values: &[u64]) -> u64 {
    values.iter().fold(7, |sum, value| sum.rotate_left(5) ^ value)
}

#[inline(never)]
fn outer(values: &[u64]) -> u64 {
    std::hint::black_box(inner(values))
}

#[test]
fn inlined_functions_are_told() {
    assert_ne!(outer(&[1, 2, 3]), 0);
    let begin = outer as fn(&[u64]) -> u64 as usize as u64;
    let mut symbolizer = Symbolizer::default();
    let stacks = (0..96).map(|at| user(&mut symbolizer, Pid(std::process::id()), &[begin + at]));
    let inlined = stacks.filter(|frames| frames.len() > 1).find(|frames| {
        let names: Vec<_> = frames.iter().map(|frame| (frame.name.as_str(), frame.inlined)).collect();
        names.iter().any(|(name, inlined)| name.ends_with("inner") && *inlined)
            && names.last().is_some_and(|(name, _)| name.ends_with("outer"))
    });
    let inlined = inlined.expect("an address of the inlined function");
    assert!(inlined.iter().all(|frame| frame.line.is_some()), "{inlined:?}");
}

/// `cargo test --release --test symbolize -- --ignored --nocapture`, alone.
#[test]
#[ignore = "a measurement"]
fn memory_and_time_of_a_thousand_stacks() {
    let rss_kib = |key: &str| -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    for version in ["18.20.8", "26.10.0"] {
        let Some(node) = Node::start(version, &[]) else { continue };
        let mapping = node.code().into_iter().max_by_key(|mapping| mapping.end.0 - mapping.start.0).unwrap();
        let span = mapping.end.0 - mapping.start.0;
        let stacks: Vec<Vec<u64>> = (0..1000u64)
            .map(|stack| (0..30).map(|depth| mapping.start.0 + (stack * 7919 + depth * 104_729) * 64 % span).collect())
            .collect();
        let before = rss_kib("VmRSS:");
        let mut symbolizer = Symbolizer::default();
        let begin = Instant::now();
        let first = user(&mut symbolizer, node.pid, &stacks[0]);
        let first_took = begin.elapsed();
        let frames: usize = stacks.iter().map(|stack| user(&mut symbolizer, node.pid, stack).len()).sum();
        let all_took = begin.elapsed();
        let _ = symbolizer.work_class(node.pid, UserAddr(mapping.end.0 + (8 << 20)));
        let _ = symbolizer.symbolize_kernel(&[0xffff_ffff_8100_0000]);
        eprintln!(
            "measured node {version}: {} frames of the first stack in {first_took:?}, {frames} frames in {all_took:?}, \
             resident {before} -> {} KiB (peak {}), file pages {} KiB",
            first.len(),
            rss_kib("VmRSS:"),
            rss_kib("VmHWM:"),
            rss_kib("RssFile:"),
        );
    }
}
