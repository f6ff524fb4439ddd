//! Flame graphs as SVG, drawn by inferno: to be opened in a browser, where a click zooms and Ctrl-F searches.
//!
//! inferno colours a box by its name. Here a box's colour is what it is, so each name carries a mark on its way through inferno, by
//! which it finds the colour, and loses it again before anybody reads it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    io::{self, Write},
};

use inferno::flamegraph::{
    Options, TextTruncateDirection,
    color::{BackgroundColor, Color, PaletteMap},
    from_lines,
};

use crate::report::flame::{
    Flame, Kind, Measure, Subject,
    diff::{Diff, Pair},
};

/// First of the characters by which boxes are marked: Unicode leaves them to private use.
const MARKS: u32 = 0xe000;
/// Steps of colour from white to full red, and to full blue.
const STEPS: u32 = 24;
const MARKS_END: u32 = MARKS + 2 * STEPS + 1;

const FONT_SIZE: usize = 12;
/// Where the legend goes: its text is replaced.
const LEGEND: &str = "LEGEND";

/// A box narrower than this part of the graph (in percent) is not drawn: nobody could see it.
const MIN_WIDTH: f64 = 0.02;

const fn colour(kind: Kind) -> Color {
    let (r, g, b) = match kind {
        Kind::Process => (198, 200, 206),
        Kind::Thread => (211, 213, 219),
        Kind::State => (224, 226, 231),
        Kind::Kernel => (244, 150, 78),
        Kind::Native => (246, 214, 102),
        Kind::Builtin => (203, 172, 232),
        Kind::Js => (168, 208, 160),
        Kind::Interpreted => (205, 232, 170),
        Kind::Baseline => (146, 212, 132),
        Kind::Optimized => (76, 184, 108),
        Kind::Inlined => (110, 205, 196),
        Kind::Wasm => (128, 170, 240),
        Kind::Async => (176, 196, 222),
        Kind::Unknown => (216, 203, 186),
        Kind::Note => (248, 176, 186),
    };
    Color { r, g, b }
}

/// Writes a profile's graph.
pub fn write(out: &mut impl Write, flame: &Flame) -> io::Result<()> {
    let total = flame.weight_ns();
    if total == 0 {
        return nothing(out, flame.measure);
    }
    let mut palette = Palette::default();
    let mut lines = BTreeMap::<String, u64>::new();
    let mut kinds = BTreeSet::new();
    for stack in &flame.stacks {
        let mut line = String::new();
        for (function, label) in flame.labels(stack) {
            kinds.insert(function.kind);
            palette.add(&mut line, &label, function.kind as u32, colour(function.kind));
        }
        let sum = lines.entry(line).or_default();
        *sum = sum.saturating_add(stack.weight_ns);
    }
    let legend: Vec<(&str, Color)> =
        Kind::ALL.into_iter().filter(|kind| kinds.contains(kind)).map(|kind| (kind.name(), colour(kind))).collect();
    let unit = Unit::of_ns(total);
    draw(out, &title(flame), &legend, &unit, palette.0, lines)
}

/// Writes the graph of a difference: a box is as wide as the mean of both, red where it grew, blue where it shrank.
pub fn write_diff(out: &mut impl Write, diff: &Diff) -> io::Result<()> {
    /// A scaled value of one: shares are percent, so a millionth of them is not seen.
    const ONE: f64 = 1e6;
    if diff.total.mean() <= 0.0 {
        return nothing(out, diff.measure);
    }
    let tree = Tree::of(diff);
    let mut palette = Palette::default();
    let mut lines = BTreeMap::<String, u64>::new();
    for (stack, path) in diff.stacks.iter().zip(&tree.paths) {
        let mut line = String::new();
        for (function, node) in stack.path.iter().zip(path) {
            let total = tree.nodes.get(*node).copied().unwrap_or_default();
            let step = steps(total.direction());
            let mut label = function.label();
            if total.is_significant() {
                let _ = write!(label, " {:+.1}", total.change());
            }
            palette.add(&mut line, &label, STEPS.saturating_add_signed(step), difference_colour(step));
        }
        let sum = lines.entry(line).or_default();
        *sum = sum.saturating_add(rounded(stack.own.mean() * ONE));
    }
    let full = STEPS.cast_signed();
    let legend = [
        ("grew", difference_colour(full)),
        ("as before, or by chance", difference_colour(0)),
        ("shrank", difference_colour(-full)),
    ];
    let name = diff.scale.unit(diff.measure);
    let title = format!("{}: after against before, in {name}", measure_name(diff.measure));
    draw(out, &title, &legend, &Unit { name, factor: 1.0 / ONE }, palette.0, lines)
}

fn measure_name(measure: Measure) -> &'static str {
    match measure {
        Measure::OnCpu => "On CPU",
        Measure::OffCpu => "Off CPU",
        Measure::Wall => "Wall time",
    }
}

fn title(flame: &Flame) -> String {
    let whom = match flame.subjects.as_slice() {
        [Subject { pid, command, .. }] => format!("{command} ({pid})"),
        many => format!("{} processes", many.len()),
    };
    let what = match flame.measure {
        Measure::OnCpu if flame.period_ns != 0 => {
            format!("{} samples at {} Hz", flame.count(), rounded(1e9 / float(flame.period_ns)))
        }
        Measure::OnCpu => format!("{} samples", flame.count()),
        Measure::OffCpu => format!("{} stays", flame.count()),
        Measure::Wall => "samples, and stays off CPU".to_owned(),
    };
    let seconds = float(flame.duration_ns) / 1e9;
    format!("{}: {whom}, {seconds:.1} s, {what}", measure_name(flame.measure))
}

/// What boxes are measured in.
struct Unit {
    name: &'static str,
    factor: f64,
}

impl Unit {
    fn of_ns(total: u64) -> Self {
        if total >= 1_000_000_000 { Self { name: "ms", factor: 1e-6 } } else { Self { name: "µs", factor: 1e-3 } }
    }
}

/// Marks names, and keeps their colours.
#[derive(Default)]
struct Palette(PaletteMap);

impl Palette {
    fn add(&mut self, line: &mut String, label: &str, mark: u32, colour: Color) {
        if !line.is_empty() {
            line.push(';');
        }
        let begin = line.len();
        line.extend(label.chars().map(|c| match c {
            ';' => ':',
            c if is_mark(c) => '\u{fffd}',
            c => c,
        }));
        line.extend(char::from_u32(MARKS + mark));
        self.0.insert(line.get(begin..).unwrap_or_default(), colour);
    }
}

fn is_mark(c: char) -> bool {
    (MARKS..MARKS_END).contains(&u32::from(c))
}

fn draw(
    out: &mut impl Write,
    title: &str,
    legend: &[(&str, Color)],
    unit: &Unit,
    mut palette: PaletteMap,
    lines: BTreeMap<String, u64>,
) -> io::Result<()> {
    // The one box that inferno puts below all others.
    palette.insert("", Color { r: 186, g: 188, b: 195 });
    let mut options = Options::default();
    title.clone_into(&mut options.title);
    options.subtitle = Some(LEGEND.to_owned());
    unit.name.clone_into(&mut options.count_name);
    options.factor = unit.factor;
    options.palette_map = Some(&mut palette);
    options.bgcolors = Some(BackgroundColor::Flat(Color { r: 252, g: 252, b: 252 }));
    "sans-serif".clone_into(&mut options.font_type);
    options.font_size = FONT_SIZE;
    options.font_width = 0.55;
    options.text_truncate_direction = TextTruncateDirection::Right;
    options.min_width = MIN_WIDTH;
    concat!("agent ", env!("CARGO_PKG_VERSION")).clone_into(&mut options.notes);
    let lines: Vec<String> = lines.into_iter().map(|(line, weight)| format!("{line} {weight}")).collect();
    let mut svg = Vec::new();
    from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
    let svg = String::from_utf8(svg).map_err(io::Error::other)?;
    let svg: String = svg.chars().filter(|c| !is_mark(*c)).collect();
    out.write_all(with_legend(&svg, legend).as_bytes())
}

/// Puts the legend where inferno has put the word for it.
fn with_legend(svg: &str, legend: &[(&str, Color)]) -> String {
    let begin = svg.find("<text id=\"subtitle\"");
    let end = begin.and_then(|begin| Some(begin + svg.get(begin..)?.find("</text>")? + "</text>".len()));
    let parts = begin.zip(end).and_then(|(begin, end)| Some((svg.get(..begin)?, svg.get(end..)?)));
    let Some((before, after)) = parts else { return svg.to_owned() };
    let mut drawn = String::from("<g id=\"legend\">");
    let (mut x, y) = (10, FONT_SIZE * 4);
    for (name, Color { r, g, b }) in legend {
        let _ = write!(
            drawn,
            "<rect x=\"{x}\" y=\"{}\" width=\"{FONT_SIZE}\" height=\"{FONT_SIZE}\" fill=\"rgb({r},{g},{b})\" stroke=\"rgb(150,150,150)\" stroke-width=\"0.5\"/><text x=\"{}\" y=\"{y}\">{name}</text>",
            y - FONT_SIZE + 2,
            x + FONT_SIZE + 5,
        );
        x += FONT_SIZE + 5 + name.chars().count() * FONT_SIZE * 11 / 20 + 16;
    }
    format!("{before}{drawn}</g>{after}")
}

/// A graph without boxes says why it has none.
fn nothing(out: &mut impl Write, measure: Measure) -> io::Result<()> {
    let why = match measure {
        Measure::OnCpu => "Nothing ran on a CPU while this was taken: try --off-cpu or --wall, or a longer --duration.",
        Measure::OffCpu => "Nothing was kept off its CPU for long while this was taken.",
        Measure::Wall => "Nothing was measured.",
    };
    writeln!(
        out,
        "<?xml version=\"1.0\" standalone=\"no\"?>\n<svg version=\"1.1\" width=\"1200\" height=\"60\" xmlns=\"http://www.w3.org/2000/svg\">\
         <text x=\"10\" y=\"35\" font-family=\"sans-serif\" font-size=\"14\">{why}</text></svg>"
    )
}

/// Sums of a difference at each node of its tree.
struct Tree {
    nodes: Vec<Pair>,
    /// Of each stack, the nodes from the root.
    paths: Vec<Vec<usize>>,
}

impl Tree {
    fn of(diff: &Diff) -> Self {
        let mut nodes: Vec<Pair> = Vec::new();
        let mut known = HashMap::new();
        let mut paths = Vec::with_capacity(diff.stacks.len());
        for stack in &diff.stacks {
            let mut parent = None;
            let mut path = Vec::with_capacity(stack.path.len());
            for function in &stack.path {
                let node = *known.entry((parent, function)).or_insert_with(|| {
                    nodes.push(Pair::default());
                    nodes.len() - 1
                });
                if let Some(sum) = nodes.get_mut(node) {
                    sum.add(stack.own);
                }
                path.push(node);
                parent = Some(node);
            }
            paths.push(path);
        }
        Self { nodes, paths }
    }
}

/// The step of colour for a direction from -1 to 1.
#[expect(clippy::cast_possible_truncation, reason = "at most STEPS")]
fn steps(direction: f64) -> i32 {
    // By the root: half as much again must be seen.
    let strength = direction.abs().sqrt().min(1.0) * f64::from(STEPS);
    (strength.copysign(direction)).round() as i32
}

fn difference_colour(step: i32) -> Color {
    let pale = 255 - step.unsigned_abs().min(STEPS) * 140 / STEPS;
    let pale = u8::try_from(pale).unwrap_or(u8::MAX);
    match step {
        0 => Color { r: 240, g: 240, b: 240 },
        1.. => Color { r: 255, g: pale, b: pale },
        ..0 => Color { r: pale, g: pale, b: 255 },
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below 2^63")]
fn rounded(value: f64) -> u64 {
    value.round() as u64
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn float(n: u64) -> f64 {
    n as f64
}
