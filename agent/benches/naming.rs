//! How fast frames get their names: those of a real process's stacks, by one that knows nothing yet, and again by one that does.
//!
//! `cargo bench --bench naming -- 24.21.0` prints a row of a table for each version; it needs root. Part of `cargo xtask bench profile`.
#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::BufReader,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use agent::{
    core::Input,
    decode::{Body, Decoder, Frames},
    export::recording,
    symbolize::{Symbolizer, Unnamed},
    units::Pid,
};

/// Recursions of several depths through functions of several kinds, by way of the library, and native code under them.
const PROGRAM: &str = "\
class Tree { walk(n, f) { return n > 0 ? [n].map((m) => this.walk(m - 1, f))[0] + 1 : f(); } }
const tree = new Tree();
const leaves = [() => JSON.stringify({ a: [1, 2, { b: 'c' }] }).length, () => require('crypto').randomBytes(64).length,
  () => [5, 3, 8, 1].sort((a, b) => a - b)[0], () => 'a-b-c'.replace(/-/g, (m) => m + m).length];
function turn(depth) { const end = Date.now() + 4; while (Date.now() < end) for (const leaf of leaves) tree.walk(depth, leaf); }
setInterval(() => { for (const depth of [2, 10, 40, 120]) turn(depth); }, 17);
";

/// Passes over the same stacks, once they are known.
const PASSES: u32 = 20;

/// Stacks that are named at once: as many as the agent does where there are many, and fewer.
const TOGETHER: [usize; 3] = [64, 8, 1];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for version in env::args().skip(1).filter(|argument| !argument.starts_with('-')) {
        let node = root.join(".cache/node").join(&version).join("bin/node");
        let mut child = Command::new(node).args(["-e", PROGRAM]).stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_secs(2));
        let pid = Pid(child.id());
        let stacks = stacks(pid);
        let mut symbolizer = Symbolizer::default();
        let rate = |frames: u64, elapsed: Duration| frames as f64 / elapsed.as_secs_f64();
        let [most, ..] = TOGETHER;
        let (cold, frames) = pass(&mut symbolizer, &stacks, most);
        print!("| {version} | {} | {frames} | {:.0} |", stacks.len(), rate(frames, cold));
        for together in TOGETHER {
            let warm: Vec<_> = (0..PASSES).map(|_| pass(&mut symbolizer, &stacks, together)).collect();
            let elapsed: Duration = warm.iter().map(|(elapsed, _)| *elapsed).sum();
            let named: u64 = warm.iter().map(|(_, frames)| *frames).sum();
            print!(" {:.0} |", rate(named, elapsed));
        }
        println!();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Names all of them, so many at a time: how long it took, and how many frames that was.
fn pass(symbolizer: &mut Symbolizer, stacks: &[Unnamed], together: usize) -> (Duration, u64) {
    let begin = Instant::now();
    let frames_of =
        |some: &[Unnamed]| -> usize { symbolizer.symbolize(some).iter().map(|named| named.frames.len()).sum() };
    let frames: usize = stacks.chunks(together).map(frames_of).sum();
    (begin.elapsed(), frames as u64)
}

/// User stacks of a process, as they come from the kernel.
fn stacks(pid: Pid) -> Vec<Unnamed> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("stacks.rec");
    let status = Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(["trace", "--duration", "5s", "--format", "ndjson", "-o", "/dev/null", "--pid", &pid.0.to_string()])
        .arg("--recording")
        .arg(&file)
        .status()
        .unwrap();
    assert!(status.success());
    let mut reader = recording::Reader::new(BufReader::new(File::open(file).unwrap())).unwrap();
    let mut stacks = BTreeMap::new();
    while let Some(input) = reader.next_input().unwrap() {
        let Input::Records { family, bytes } = input else { continue };
        for event in Decoder::new(family, &bytes).flatten() {
            if let Body::Stack(stack) = event.body
                && matches!(stack.frames, Frames::User(_))
            {
                stacks.insert(stack.id, stack.frames);
            }
        }
    }
    stacks.into_values().map(|frames| Unnamed { pid, frames }).collect()
}
