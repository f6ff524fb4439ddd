//! What `agent doctor` says about a process's JavaScript frames: how its V8 is laid out, and what of that holds on its live heap.

use agent_ebpf::{spec::Component, state::AwaitLayout};

use super::subject::{Finding, Grade};
use crate::{
    symbolize::v8::{
        layout::Layout,
        trial::{self, Score},
    },
    target::{
        memory::LiveMemory,
        node::{NodeFile, NodeTarget},
        procfs,
        v8::FunctionLayout,
    },
    units::UserAddr,
};

/// One row a feature of JavaScript frames.
pub fn findings(target: &NodeTarget) -> Vec<Finding> {
    let (Some(file), Some(version)) = (target.node.holder(Component::V8), target.node.v8_version()) else {
        return vec![off("JavaScript frames", "which V8 this is is not known: functions are [js]")];
    };
    let [major, minor, build, _] = version;
    let layout = match Layout::of_file([major, minor, build], &file.elf) {
        Ok(layout) => layout,
        Err(error) => return vec![off("JavaScript frames", &format!("{error}: functions are [js]"))],
    };
    let mut findings = vec![laid_out(&layout, file), walked(file, version)];
    match procfs::anonymous_mappings(target.process.pid) {
        Ok(all) => {
            // Until 10.x code is described where it lies; later nothing is there but code, in half a gigabyte.
            let regions = all.iter().filter(|one| !one.is_code || layout.types.instruction_stream.is_none());
            let regions: Vec<_> = regions.map(|one| (one.start, one.end)).collect();
            findings.extend(tried(target, &layout, &regions));
        }
        Err(error) => findings.push(off("JavaScript names", &error.to_string())),
    }
    findings.push(if layout.bytecode_sizes.is_empty() {
        poorer(
            "lines, baseline code",
            "the file does not say how long bytecodes are: functions have the line they begin on",
        )
    } else {
        on("lines, baseline code", "bytecodes are as long as the file says")
    });
    findings.push(if file.elf.has_symtab() {
        on("names of builtins", "in the file's symbols")
    } else {
        poorer("names of builtins", "the file is stripped: V8's own functions are addresses")
    });
    findings
}

fn finding(name: &str, grade: Grade, text: &str) -> Finding {
    Finding { name: name.into(), grade, text: text.into(), remedy: None }
}

fn on(name: &str, text: &str) -> Finding {
    finding(name, Grade::On, text)
}

fn poorer(name: &str, text: &str) -> Finding {
    finding(name, Grade::Poorer, text)
}

fn off(name: &str, text: &str) -> Finding {
    finding(name, Grade::Off, text)
}

fn laid_out(layout: &Layout, file: &NodeFile) -> Finding {
    let (stated, all) = layout.stated(&file.elf);
    let [major, minor, _] = Layout::row_of(layout.version).unwrap_or_default();
    let text =
        format!("as in V8 {major}.{minor}, the nearest known; {stated} of {all} numbers are the file's own (v8dbg_*)");
    // It would be luck if none had changed.
    finding("V8's heap", if stated == 0 { Grade::Poorer } else { Grade::On }, &text)
}

/// What the kernel half needs.
fn walked(file: &NodeFile, version: [u32; 4]) -> Finding {
    const NAME: &str = "JavaScript frames";
    match FunctionLayout::read(&file.elf, version) {
        None => {
            off(NAME, "the file does not say where functions lead to (v8dbg_class_JSFunction__shared): they are [js]")
        }
        Some(functions) if functions.awaits == AwaitLayout::default() => {
            poorer(NAME, "the file does not say how promises are laid out: who awaits whom is not shown")
        }
        Some(_) => on(NAME, "followed, and who awaits whom"),
    }
}

/// What the layout finds in the heap as it is now.
fn tried(target: &NodeTarget, layout: &Layout, regions: &[(UserAddr, UserAddr)]) -> Vec<Finding> {
    let trial = trial::run(LiveMemory::of(target.process.pid), layout.clone(), regions);
    let row = |name: &str, score: Score, what: &str, without: &str| {
        let Score { read, of } = score;
        if score.is_open() {
            return poorer(name, &format!("no {what} found in {} MiB of its memory", trial.searched >> 20));
        }
        let text = format!("{read} of {of} {what} looked at can be read");
        if score.is_good() { on(name, &text) } else { off(name, &format!("{text}: {without}")) }
    };
    vec![
        row("JavaScript names", trial.functions, "functions", "most will be [js]"),
        row("lines", trial.lines, "functions' lines", "functions have the line they begin on"),
        row("inlined functions", trial.optimised, "pieces of optimised code", "their functions are [js] or missing"),
    ]
}
