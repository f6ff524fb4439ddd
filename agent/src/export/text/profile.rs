//! A profile for a tired person: what runs hot (or what it waits for), and how far that can be trusted.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    Style,
    format::{Page, clock, count, cut, duration, parts_bar, percent, plural, ratio, safe},
    stack::is_glue,
};
use crate::report::{
    flame::{
        Flame, FlameStack, Kind, Lane, Measure, Naming, State, Sum, Sums, blamed,
        diff::{Change, Diff, Pair},
        function,
    },
    model::{FrameKind, OnCpuStack, StackId, Truncated},
    names::is_kernel_noise,
    summary::Summary,
};

/// Rows of a table: what is further down is not why somebody was called.
const FUNCTIONS_SHOWN: usize = 12;
const STACKS_SHOWN: usize = 5;
/// Frames of one stack.
const FRAMES_SHOWN: usize = 10;
const PROCESSES_SHOWN: usize = 20;

/// What a profile is about, in words.
#[must_use]
pub fn measured(measure: Measure) -> &'static str {
    match measure {
        Measure::OnCpu => "samples of what ran",
        Measure::OffCpu => "stays off CPU",
        Measure::Wall => "wall time",
    }
}

/// One line while it lasts.
#[must_use]
pub fn progress(time: &str, summary: &Summary, style: Style) -> Option<String> {
    let targets = || summary.targets.values();
    let samples = targets().flat_map(|target| target.samples.values()).map(|totals| totals.samples).sum::<u64>();
    let stays = targets().flat_map(|target| target.off_cpu.values()).map(|totals| totals.count).sum::<u64>();
    let mut parts = Vec::new();
    if samples != 0 {
        parts.push(plural(samples, "sample", "samples"));
    }
    if stays != 0 {
        parts.push(plural(stays, "stay off CPU", "stays off CPU"));
    }
    if parts.is_empty() {
        parts.push("nothing yet".to_owned());
    }
    let line =
        format!("{}  {}, {}", clock(time), parts.join(", "), plural(summary.stacks.len() as u64, "stack", "stacks"));
    Some(cut(&line, style.width))
}

/// The whole report.
#[must_use]
pub fn render(flame: &Flame, summary: &Summary, style: Style) -> String {
    let mut page = Page::new(style);
    let sums = Sums::of(flame);
    headline(&mut page, flame, &sums);
    if flame.weight_ns() != 0 {
        processes(&mut page, flame);
        lanes(&mut page, flame);
        tables(&mut page, flame, &sums);
        stacks(&mut page, flame);
        trust(&mut page, flame, &sums);
    }
    let targets = summary.targets.values().filter_map(|target| target.target.as_ref());
    // The same for all processes, as a rule.
    let degraded: BTreeSet<_> =
        targets.flat_map(|target| &target.degraded).map(|one| (&one.feature, &one.reason)).collect();
    for (feature, reason) in degraded {
        page.aside(&format!("  not seen: {}: {}", safe(feature), safe(reason)));
    }
    super::agent::render(&mut page, summary);
    page.into_text()
}

fn headline(page: &mut Page, flame: &Flame, sums: &Sums) {
    let (total, of) = (flame.weight_ns(), flame.duration_ns);
    let state = |state| sums.states.get(&state).copied().unwrap_or(0);
    let whom = match flame.subjects.as_slice() {
        [one] => {
            let version = one.node_version.as_ref().map_or_else(String::new, |version| format!(", Node.js {version}"));
            format!("{} ({}{version})", safe(&one.command), one.pid)
        }
        many => plural(many.len() as u64, "process", "processes"),
    };
    match flame.measure {
        Measure::OnCpu => {
            if total == 0 {
                page.strong(&format!("{whom}: not one sample on a CPU in {}", duration(of)));
                page.line("  It was idle all the time, or waits for something: try --off-cpu or --wall, or a longer --duration.");
                return;
            }
            let hz = 1_000_000_000_u64.checked_div(flame.period_ns).unwrap_or(0);
            page.strong(&format!(
                "{whom}: {} on CPU in {}, {} of one CPU",
                duration(total),
                duration(of),
                percent(total, of),
            ));
            page.aside(&format!(
                "  {} at {hz} Hz, each {}",
                plural(flame.count(), "sample", "samples"),
                duration(flame.period_ns)
            ));
            kinds(page, sums, total);
        }
        Measure::OffCpu => {
            page.strong(&format!(
                "{whom}: off CPU for {} in {}: blocked {}, waiting for a CPU {}{}",
                duration(total),
                duration(of),
                duration(state(State::Blocked)),
                duration(state(State::Runnable)),
                if state(State::Stopped) == 0 {
                    String::new()
                } else {
                    format!(", stopped {}", duration(state(State::Stopped)))
                },
            ));
            page.aside(&format!(
                "  {}; beside that, {} of waiting for work are left out: --wall shows them",
                plural(flame.count(), "stay", "stays"),
                duration(flame.idle_left_out_ns)
            ));
        }
        Measure::Wall => {
            let parts = [State::OnCpu, State::Blocked, State::Runnable, State::Stopped, State::Idle]
                .into_iter()
                .filter(|part| state(*part) != 0)
                .map(|part| format!("{} {}", part.name(), percent(state(part), total)));
            page.strong(&format!(
                "{whom}: {} of its threads in {}: {}",
                duration(total),
                duration(of),
                parts.collect::<Vec<_>>().join(", ")
            ));
            let bar = parts_bar(
                &[
                    ('█', state(State::OnCpu)),
                    ('▒', state(State::Blocked)),
                    ('░', state(State::Runnable)),
                    ('x', state(State::Stopped)),
                    ('·', state(State::Idle)),
                ],
                page.style.width.saturating_sub(2).min(78),
            );
            page.line(&format!("  {bar}"));
            page.aside("  █ on CPU  ▒ blocked  ░ waiting for a CPU  · idle");
            page.aside(&format!(
                "  left out: {} in which threads that turn no event loop waited for work",
                duration(flame.idle_left_out_ns)
            ));
        }
    }
}

/// What ran, by the innermost frame.
fn kinds(page: &mut Page, sums: &Sums, total: u64) {
    let kind = |kinds: &[Kind]| kinds.iter().filter_map(|kind| sums.kinds.get(kind)).sum::<u64>();
    let javascript = kind(&[Kind::Js, Kind::Interpreted, Kind::Baseline, Kind::Optimized, Kind::Inlined]);
    let (builtin, wasm) = (kind(&[Kind::Builtin]), kind(&[Kind::Wasm]));
    let (native, kernel) = (kind(&[Kind::Native]), kind(&[Kind::Kernel]));
    let rest = total.saturating_sub(javascript + builtin + wasm + native + kernel);
    let bar = parts_bar(
        &[('█', javascript + wasm), ('▓', builtin), ('▒', native), ('░', kernel), ('·', rest)],
        page.style.width.saturating_sub(2).min(78),
    );
    page.line(&format!("  {bar}"));
    let tiers = [Kind::Optimized, Kind::Inlined, Kind::Baseline, Kind::Interpreted];
    let tiers: Vec<String> = tiers
        .into_iter()
        .filter(|tier| kind(&[*tier]) != 0)
        .map(|tier| format!("{} {}", tier.name(), percent(kind(&[tier]), total)))
        .collect();
    let mut line = format!("  █ JavaScript {}", percent(javascript, total));
    if !tiers.is_empty() {
        let _ = write!(line, " ({})", tiers.join(", "));
    }
    if wasm != 0 {
        let _ = write!(line, ", WebAssembly {}", percent(wasm, total));
    }
    for (mark, name, ns) in
        [('▓', "V8 builtins", builtin), ('▒', "native", native), ('░', "kernel", kernel), ('·', "not named", rest)]
    {
        if ns != 0 {
            let _ = write!(line, "  {mark} {name} {}", percent(ns, total));
        }
    }
    page.line(&line);
    if sums.gc_ns != 0 {
        page.line(&format!("  of which {} within garbage collection pauses", percent(sums.gc_ns, total)));
    }
}

fn processes(page: &mut Page, flame: &Flame) {
    if flame.subjects.len() < 2 {
        return;
    }
    page.heading("Processes");
    let total = flame.weight_ns();
    let mut weights = BTreeMap::<u32, u64>::new();
    for stack in &flame.stacks {
        *weights.entry(stack.pid).or_default() += stack.weight_ns;
    }
    let mut rows: Vec<_> =
        flame.subjects.iter().map(|subject| (weights.get(&subject.pid).copied().unwrap_or(0), subject)).collect();
    rows.sort_by_key(|(ns, subject)| (Reverse(*ns), subject.pid));
    for (ns, subject) in rows.iter().take(PROCESSES_SHOWN) {
        page.line(&format!(
            "  {:>7}  {:>9}  {:>8}  {}",
            percent(*ns, total),
            duration(*ns),
            subject.pid,
            safe(&subject.command)
        ));
    }
    if rows.len() > PROCESSES_SHOWN {
        page.aside(&format!("  and {} more", rows.len() - PROCESSES_SHOWN));
    }
}

fn lanes(page: &mut Page, flame: &Flame) {
    let total = flame.weight_ns();
    let mut lanes = BTreeMap::<Lane, u64>::new();
    for stack in &flame.stacks {
        *lanes.entry(stack.lane).or_default() += stack.weight_ns;
    }
    if lanes.len() > 1 {
        let parts: Vec<String> =
            lanes.iter().map(|(lane, ns)| format!("{} {}", lane.name(), percent(*ns, total))).collect();
        page.line(&format!("  by thread: {}", parts.join(", ")));
    }
}

fn tables(page: &mut Page, flame: &Flame, sums: &Sums) {
    let busy = flame.weight_ns().saturating_sub(sums.states.get(&State::Idle).copied().unwrap_or(0));
    if sums.blamed.iter().any(|sum| sum.self_ns != 0) {
        page.heading(match flame.measure {
            Measure::OnCpu => "Functions of yours, with what runs for them in Node.js, native code and the kernel",
            Measure::OffCpu => "Functions of yours that wait",
            Measure::Wall => "Functions of yours that run or wait",
        });
        table(page, &sums.blamed, busy);
    }
    page.heading("Functions by their own time");
    table(page, &sums.functions, busy);
}

fn table(page: &mut Page, sums: &[Sum], total: u64) {
    page.aside("     own    total");
    let width = page.style.width.saturating_sub(22);
    for sum in sums.iter().filter(|sum| sum.self_ns != 0).take(FUNCTIONS_SHOWN) {
        let mark = match sum.kind {
            Kind::Kernel => "  kernel",
            Kind::Builtin => "  V8",
            Kind::Wasm => "  wasm",
            _ => "",
        };
        page.line(&format!(
            "  {:>7}  {:>7}  {}{mark}",
            percent(sum.self_ns, total),
            percent(sum.total_ns, total),
            cut(&safe(&sum.label), width)
        ));
    }
}

fn stacks(page: &mut Page, flame: &Flame) {
    let total = flame.weight_ns();
    let mut weights = BTreeMap::<String, u64>::new();
    for stack in flame.stacks.iter().filter(|stack| stack.state != State::Idle) {
        *weights.entry(line_of(flame, stack)).or_default() += stack.weight_ns;
    }
    let mut rows: Vec<_> = weights.into_iter().collect();
    rows.sort_by(|(a, x), (b, y)| (Reverse(x), a).cmp(&(Reverse(y), b)));
    page.heading("Stacks, innermost frame first");
    for (line, ns) in rows.iter().take(STACKS_SHOWN) {
        page.line(&format!("  {:>7}  {line}", percent(*ns, total)));
    }
}

/// A stack on one line, without what is the same in every stack.
fn line_of(flame: &Flame, stack: &FlameStack) -> String {
    let mut shown: Vec<String> = Vec::new();
    for step in stack.steps.iter().rev() {
        let Some(function) = flame.function(step) else { continue };
        let is_noise = match function.kind {
            Kind::Process | Kind::Thread | Kind::State => true,
            Kind::Builtin => !shown.is_empty(),
            Kind::Native => is_glue(&function.name),
            Kind::Kernel => is_kernel_noise(&function.name),
            _ => false,
        };
        let label = safe(&function.label()) + &step.times.label();
        if is_noise || shown.last() == Some(&label) {
            continue;
        }
        if shown.len() == FRAMES_SHOWN {
            shown.push("…".to_owned());
            break;
        }
        shown.push(label);
    }
    if shown.is_empty() { stack.state.name().to_owned() } else { shown.join(" ← ") }
}

/// How far the rest can be believed.
fn trust(page: &mut Page, flame: &Flame, sums: &Sums) {
    page.heading("How sure this is");
    let Naming { line, start_line, builtin, perf_map, raw } = flame.naming;
    let all = line + start_line + builtin + perf_map + raw;
    if all != 0 {
        let share = |part: u128| percent(narrow(part, all), narrow(all, all));
        page.line(&format!(
            "  frames of V8's code: named to the line {}, to the function's first line {}, builtins {}, by a perf map {}, not named {}",
            share(line),
            share(start_line),
            share(builtin),
            share(perf_map),
            share(raw)
        ));
    }
    if sums.stacked_ns != 0 {
        let mut text = format!(
            "  {} of stacks reach down to where their thread began",
            percent(sums.complete_ns, sums.stacked_ns)
        );
        for (why, ns) in &sums.cut {
            let why = match why {
                Truncated::TooDeep => "are deeper than is looked at",
                Truncated::NoFramePointer => "are cut short, as some of their code keeps no frame pointer",
            };
            let _ = write!(text, "; {} {why}", percent(*ns, sums.stacked_ns));
        }
        page.line(&text);
    }
    if flame.measure != Measure::OffCpu && flame.count() < 200 {
        page.line("  Few samples: a share may be some percent off. A longer --duration or a higher --frequency makes it surer.");
    }
}

/// The same share in numbers that fit.
fn narrow(part: u128, all: u128) -> u64 {
    let shift = 128u32.saturating_sub(all.leading_zeros()).saturating_sub(60);
    u64::try_from(part >> shift).unwrap_or(u64::MAX)
}

/// The difference of two profiles.
#[must_use]
pub fn render_diff(diff: &Diff, style: Style) -> String {
    let mut page = Page::new(style);
    let unit = diff.scale.unit(diff.measure);
    let (before_ns, after_ns) = diff.durations_ns;
    page.strong(&format!("{} before and {} after, in {unit}", duration(before_ns), duration(after_ns)));
    let Pair { before, after, counts } = diff.total;
    page.line(&format!(
        "  all: {} → {}; made of {} and {}",
        value(before),
        value(after),
        count(counts.0),
        count(counts.1)
    ));
    let significant = || diff.functions.iter().filter(|change| change.own.is_significant());
    let grew: Vec<&Change> = significant().filter(|change| change.own.change() > 0.0).collect();
    let shrank: Vec<&Change> = significant().rev().filter(|change| change.own.change() < 0.0).collect();
    changes(&mut page, "Functions that grew most, by their own time", &grew);
    changes(&mut page, "Functions that shrank most, by their own time", &shrank);
    let hidden = diff.functions.len() - grew.len() - shrank.len();
    if hidden != 0 {
        page.heading(&format!(
            "{}, or differ by no more than chance may do",
            plural(hidden as u64, "function is as before", "functions are as before")
        ));
    }
    page.into_text()
}

fn changes(page: &mut Page, title: &str, changes: &[&Change]) {
    page.heading(title);
    if changes.is_empty() {
        page.line("  none");
        return;
    }
    page.aside("   change    before     after   with callees");
    let width = page.style.width.saturating_sub(52);
    for change in changes.iter().take(FUNCTIONS_SHOWN) {
        let Change { function, own, total } = change;
        page.line(&format!(
            "  {:>7}  {:>8}  {:>8}   {:>6} → {:<6}  {}",
            format!("{}{}", if own.change() < 0.0 { "−" } else { "+" }, value(own.change().abs())),
            value(own.before),
            value(own.after),
            value(total.before),
            value(total.after),
            cut(&safe(&function.label()), width)
        ));
    }
}

fn value(value: f64) -> String {
    if value < 9.95 { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// So much of a turn that it says what to look at.
const WORTH_NAMING: f64 = 0.05;
/// Functions of one turn that are named.
const NAMED_MAX: usize = 4;

/// Functions in which samples of a turn were taken: `in: hash (auth.js:41) 82 %, parse (body.js:7) 9 %`; none where it has none.
#[must_use]
pub fn functions_of(summary: &Summary, samples: &[OnCpuStack]) -> Option<String> {
    let total = samples.iter().map(|sample| sample.samples).sum::<u64>();
    let mut sums = BTreeMap::<String, u64>::new();
    for sample in samples {
        if let Some(label) = blame(summary, sample) {
            *sums.entry(label).or_default() += sample.samples;
        }
    }
    let mut sums: Vec<_> = sums.into_iter().filter(|(_, n)| ratio(*n, total) >= WORTH_NAMING).collect();
    sums.sort_by(|(a, x), (b, y)| (Reverse(x), a).cmp(&(Reverse(y), b)));
    let parts: Vec<String> =
        sums.iter().take(NAMED_MAX).map(|(label, n)| format!("{} {}", safe(label), percent(*n, total))).collect();
    (!parts.is_empty()).then(|| format!("in: {} ({})", parts.join(", "), plural(total, "sample", "samples")))
}

/// Whom to blame for one sample.
fn blame(summary: &Summary, sample: &OnCpuStack) -> Option<String> {
    let frames = |id: Option<StackId>| {
        id.and_then(|id| summary.stacks.get(&id)).map_or(&[][..], |stack| stack.frames.as_slice()).iter()
    };
    // Those that only wait for what runs come below a marker: they are not to blame.
    let ran =
        || frames(sample.user_stack).take_while(|frame| frame.kind != FrameKind::Async).map(|frame| function(frame).0);
    let inner = || frames(sample.kernel_stack).map(|frame| function(frame).0).chain(ran());
    blamed(inner).map(|function| function.label())
}
