//! Frames of a stack against V8's call sites of the same moment (`workloads/js/spot.js`).
//!
//! What differs without being wrong: V8's call sites know builtins by name but not by line, so those are left out on both
//! sides; a property's function may be named by the path that it was assigned to (`exports.run`), by the property (`run`), or
//! with what kind it is (`get run`), of which the last word is compared; and one that has no name at all has at most one that is
//! read from the source, for which the property that holds it is the truth. A script without a name (`eval`) has none to compare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value;

use super::frames::{Frame, Stack};
use crate::records::{list, text};

/// A call site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    pub function: Option<String>,
    method: Option<String>,
    pub script: Option<String>,
    pub line: Option<u64>,
    kind: String,
}

impl Site {
    fn read(site: &Value) -> Self {
        let word = |index: usize| site[index].as_str().map(str::to_owned);
        Self {
            function: word(0),
            method: word(1),
            script: word(2),
            line: site[3].as_u64(),
            kind: text_of(&site[4]).to_owned(),
        }
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = self.function.as_deref().unwrap_or("(anonymous)");
        write!(f, "{function} {}:{}", self.script.as_deref().unwrap_or("?"), self.line.unwrap_or(0))
    }
}

/// A spot where the target blocked, by one of the ways that led there.
pub struct Truth {
    pub spot: String,
    pub sites: Vec<Site>,
}

impl Truth {
    /// The list `spots` of a workload's truths.
    pub fn read_all(truths: &Value) -> Vec<Self> {
        let spots = list(truths, "spots").iter();
        spots
            .map(|spot| Self {
                spot: text(spot, "spot").to_owned(),
                sites: list(spot, "frames").iter().map(Site::read).collect(),
            })
            .collect()
    }

    fn on_stack(&self) -> Vec<&Site> {
        self.sites.iter().filter(|site| matches!(site.kind.as_str(), "js" | "eval" | "wasm")).collect()
    }

    fn awaiting(&self) -> Vec<&Site> {
        self.sites.iter().filter(|site| site.kind == "async" && site.line.is_some()).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Equal,
    /// Script and line are right, and the function is said to have no name.
    Unnamed,
    /// Nothing is claimed.
    Unknown,
    /// The function is right, and its line is said not to be known.
    StartLine,
    WrongLine,
    /// Another function, another script, or no frame where there was one.
    Wrong,
}

impl Verdict {
    /// How much it speaks for a frame being the one it is compared with.
    fn likeness(self) -> usize {
        match self {
            Self::Equal => 4,
            Self::Unnamed | Self::StartLine => 3,
            Self::WrongLine => 2,
            Self::Unknown => 1,
            Self::Wrong => 0,
        }
    }
}

/// Names of no function.
const ANONYMOUS: [&str; 3] = ["(anonymous)", "<anonymous>", "anonymous"];

/// The last word of a name, without what tells how it was found.
pub fn bare(name: &str) -> &str {
    let name = name.strip_prefix('~').unwrap_or(name);
    // A symbol's name holds dots: `[Symbol.iterator]`.
    let name = name.find('[').map_or_else(|| name.rsplit('.').next().unwrap_or(name), |at| &name[at..]);
    name.strip_prefix("get ").or_else(|| name.strip_prefix("set ")).unwrap_or(name)
}

pub fn is_anonymous(frame: &Frame) -> bool {
    ANONYMOUS.contains(&frame.name.as_str())
}

fn same_name(frame: &Frame, site: &Site) -> bool {
    let found = bare(&frame.name);
    match (&site.function, &site.method) {
        (Some(function), _) => bare(function) == found,
        (None, Some(method)) => is_anonymous(frame) || bare(method) == found,
        // Read from the source: it holds no more than the text before the function, which nothing else knows.
        (None, None) => is_anonymous(frame) || frame.name.starts_with('~'),
    }
}

fn judge(frame: &Frame, site: &Site) -> Verdict {
    if frame.is_unknown() {
        return Verdict::Unknown;
    }
    if site.kind == "wasm" || frame.kind == "wasm" {
        // That it is some is all that is claimed.
        return if site.kind == frame.kind { Verdict::Equal } else { Verdict::Wrong };
    }
    let same_script = site.script.is_none() || frame.file == site.script;
    let named = same_name(frame, site);
    if !same_script || !named && !is_anonymous(frame) {
        return Verdict::Wrong;
    }
    if frame.line == site.line {
        if named { Verdict::Equal } else { Verdict::Unnamed }
    } else if frame.start_line || frame.line.is_none() {
        Verdict::StartLine
    } else {
        Verdict::WrongLine
    }
}

/// Wrappers around WebAssembly are frames of their own, which V8's call sites do not have, and may be unknown as any may: with as
/// many unknown frames kept on the inner and the outer side of each run of WebAssembly.
fn without_wrappers(stack: &Stack, inner: usize, outer: usize) -> Vec<&Frame> {
    let frames: Vec<&Frame> = stack.js().collect();
    let is_wasm = |frame: &&&Frame| frame.kind == "wasm" || frame.is_unknown();
    let mut kept: Vec<&Frame> = Vec::new();
    let mut rest = frames.as_slice();
    while let [first, others @ ..] = rest {
        let (run, after) = rest.split_at(rest.iter().take_while(is_wasm).count());
        let (Some(begin), Some(last)) =
            (run.iter().position(|frame| frame.kind == "wasm"), run.iter().rposition(|frame| frame.kind == "wasm"))
        else {
            kept.push(first);
            rest = others;
            continue;
        };
        kept.extend(run.iter().take(begin.min(inner)));
        kept.push(run[begin]);
        kept.extend(run[last + 1..].iter().rev().take(outer).rev());
        rest = after;
    }
    kept
}

type Judged<'a> = (Verdict, Option<&'a Site>, Option<Frame>);

/// Verdicts on a stack's frames, outermost first; those missing or too many are wrong, but for what was inlined into code that is
/// said not to be known. A function that calls itself is judged once, by its worst frame: four hundred frames of one
/// recursion are not worth more than a call.
fn judge_all<'a>(frames: &[&Frame], sites: &[&'a Site]) -> Vec<Judged<'a>> {
    let mut verdicts: Vec<Judged> = Vec::new();
    let mut sites = sites.iter().rev().copied().peekable();
    let mut frames = frames.iter().rev().copied().peekable();
    let mut is_code_known = true;
    while frames.peek().is_some() || sites.peek().is_some() {
        let (frame, site) = (frames.peek().copied(), sites.next());
        let verdict = match (frame, site) {
            (Some(frame), Some(site)) => judge(frame, site),
            // Of which stack it is is not known either.
            (Some(frame), None) if frame.is_unknown() => Verdict::Unknown,
            (Some(_), None) | (None, _) => Verdict::Wrong,
        };
        let judged = if verdict == Verdict::Wrong && !is_code_known && site.is_some() {
            (Verdict::Unknown, site, None)
        } else {
            is_code_known = frame.is_none_or(|frame| frame.tier.is_some() || frame.kind == "wasm");
            frames.next();
            (verdict, site, frame.cloned())
        };
        match verdicts.last_mut() {
            Some(last) if last.1 == site && site.is_some() => {
                if judged.0 > last.0 {
                    *last = judged;
                }
            }
            _ => verdicts.push(judged),
        }
    }
    verdicts
}

fn likeness_of(frames: &[&Frame], sites: &[&Site]) -> usize {
    frames.iter().zip(sites).map(|(frame, site)| judge(frame, site).likeness()).sum()
}

/// Frames that await. V8's own, which are left out, cannot be told from others where nothing is known of them: as many of those
/// that are unknown are left out as there are too many, where that makes the rest like the sites.
fn aligned<'a>(stack: &'a Stack, sites: &[&Site]) -> Vec<&'a Frame> {
    let mut frames: Vec<&Frame> = stack.awaiting().collect();
    while frames.len() > sites.len() {
        let without = |at: usize| {
            let mut rest = frames.clone();
            rest.remove(at);
            rest
        };
        let unknown = (0..frames.len()).filter(|&at| frames[at].is_unknown()).map(without);
        let Some(best) = unknown.max_by_key(|rest| likeness_of(rest, sites)) else { break };
        frames = best;
    }
    frames
}

/// What a comparison added up to.
#[derive(Default)]
pub struct Tally {
    verdicts: BTreeMap<Verdict, usize>,
    async_verdicts: BTreeMap<Verdict, usize>,
    /// Async frames of the truth that the stack does not have.
    async_missing: usize,
    pub tiers: BTreeMap<String, usize>,
    pub inlined: usize,
    pub stacks: usize,
    pub spots: BTreeSet<String>,
    /// Told apart, worst first.
    complaints: BTreeSet<(std::cmp::Reverse<Verdict>, String)>,
    /// Stacks with a frame that is wrong, whole.
    wrong: BTreeSet<String>,
}

impl Tally {
    /// Adds a stack that was taken at one of the spots. Which one is for the frames to say: the one of which most are equal.
    pub fn add(&mut self, stack: &Stack, truths: &[Truth]) {
        let equal = |(truth, frames): &(&Truth, Vec<&Frame>)| {
            let sites = truth.on_stack();
            let judged = judge_all(frames, &sites);
            let likeness: usize =
                judged.iter().filter(|judged| judged.2.is_some()).map(|judged| judged.0.likeness()).sum();
            // Of two that are as like, the one with fewer others; of those, the one with as many async frames that agree, and as
            // few that are missing.
            let awaiting = truth.awaiting();
            let aligned = aligned(stack, &awaiting);
            let missing = awaiting.len().abs_diff(aligned.len());
            let others = sites.len().abs_diff(frames.len());
            (likeness, std::cmp::Reverse(others), likeness_of(&aligned, &awaiting), std::cmp::Reverse(missing))
        };
        let ways: Vec<Vec<&Frame>> =
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(inner, outer)| without_wrappers(stack, inner, outer)).into();
        let pairs = truths.iter().flat_map(|truth| ways.iter().map(move |frames| (truth, frames.clone())));
        let (truth, frames) = pairs.max_by_key(equal).unwrap();
        self.stacks += 1;
        self.spots.insert(truth.spot.clone());
        for (verdict, site, frame) in judge_all(&frames, &truth.on_stack()) {
            *self.verdicts.entry(verdict).or_default() += 1;
            self.complain(&truth.spot, verdict, site, frame.as_ref());
            if verdict == Verdict::Wrong {
                self.wrong.insert(stack.to_string());
            }
        }
        for frame in &frames {
            if let Some(tier) = &frame.tier {
                *self.tiers.entry(tier.clone()).or_default() += 1;
            }
            self.inlined += usize::from(frame.inlined);
        }
        let sites = truth.awaiting();
        let frames = aligned(stack, &sites);
        self.async_missing += sites.len().saturating_sub(frames.len());
        for (frame, site) in frames.iter().zip(&sites) {
            let verdict = judge(frame, site);
            *self.async_verdicts.entry(verdict).or_default() += 1;
            self.complain(&truth.spot, verdict, Some(site), Some(frame));
        }
        for site in sites.iter().skip(frames.len()) {
            self.complain(&truth.spot, Verdict::Unknown, Some(site), None);
        }
        for frame in frames.iter().skip(sites.len()) {
            *self.async_verdicts.entry(Verdict::Wrong).or_default() += 1;
            self.complain(&truth.spot, Verdict::Wrong, None, Some(frame));
        }
    }

    fn complain(&mut self, spot: &str, verdict: Verdict, site: Option<&Site>, frame: Option<&Frame>) {
        if verdict == Verdict::Equal {
            return;
        }
        let site = site.map_or_else(|| "no frame".to_owned(), ToString::to_string);
        let frame = frame.map_or_else(|| "no frame".to_owned(), ToString::to_string);
        self.complaints.insert((std::cmp::Reverse(verdict), format!("{verdict:?} at `{spot}`: {site} -> {frame}")));
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        self.verdicts.get(&verdict).copied().unwrap_or_default()
    }

    pub fn count_async(&self, verdict: Verdict) -> usize {
        self.async_verdicts.get(&verdict).copied().unwrap_or_default()
    }

    pub fn frames(&self) -> usize {
        self.verdicts.values().sum()
    }

    fn awaiting(&self) -> usize {
        self.async_verdicts.values().sum::<usize>() + self.async_missing
    }

    /// Percent of the frames that await, in V8's account, that are the same in the agent's, of those that are not unknown there.
    pub fn async_share(&self) -> f64 {
        let known = self.awaiting() - self.count_async(Verdict::Unknown);
        self.count_async(Verdict::Equal) as f64 / (known as f64).max(1.0) * 100.0
    }

    /// Percent of the frames that await that are not unknown.
    pub fn async_known_share(&self) -> f64 {
        let unknown = self.count_async(Verdict::Unknown);
        100.0 - unknown as f64 / (self.awaiting() as f64).max(1.0) * 100.0
    }

    /// Percent of those that have a name in V8's description of their code: a name that is computed is a property of the
    /// function's object alone.
    pub fn equal_share(&self) -> f64 {
        self.count(Verdict::Equal) as f64 / ((self.frames() - self.count(Verdict::Unnamed)) as f64).max(1.0) * 100.0
    }

    /// The first differences, one a line, and the stacks of those that are wrong.
    pub fn complaints(&self) -> String {
        const SHOWN: usize = 40;
        let stacks = self.wrong.iter().take(SHOWN).map(|stack| format!("in {stack}"));
        let lines = self.complaints.iter().take(SHOWN).map(|(_, line)| line.clone()).chain(stacks);
        lines.fold(String::new(), |text, line| text + "\n  " + &line)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stacks, {} frames: {:.2} % equal, ", self.stacks, self.frames(), self.equal_share())?;
        for verdict in [Verdict::Unnamed, Verdict::Unknown, Verdict::StartLine, Verdict::WrongLine, Verdict::Wrong] {
            write!(f, "{} {verdict:?}, ", self.count(verdict))?;
        }
        write!(f, "{} inlined, tiers {:?}; async: {:?}, ", self.inlined, self.tiers, self.async_verdicts)?;
        write!(f, "{} missing", self.async_missing)
    }
}
