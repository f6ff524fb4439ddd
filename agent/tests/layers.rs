//! The layers: which module may know which, and who may touch the world.

#![expect(clippy::expect_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each module, and what it may use of this crate besides itself.
const EDGES: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("limits", &[]),
    ("printable", &[]),
    ("postgres", &["units"]),
    ("govern", &["units"]),
    ("cli", &[]),
    ("config", &["cli", "export", "kubernetes", "govern"]),
    ("counters", &["limits"]),
    ("target", &["limits", "postgres", "printable", "units"]),
    ("probe", &["limits", "target", "units"]),
    ("intake", &["probe"]),
    ("decode", &["counters", "postgres", "units"]),
    ("aggregate", &["counters", "decode", "limits", "postgres", "units"]),
    ("report", &["aggregate", "decode", "limits", "postgres", "printable", "units"]),
    ("symbolize", &["decode", "limits", "printable", "report", "target", "units"]),
    ("kubernetes", &["limits", "printable", "target"]),
    ("census", &["limits", "symbolize", "target", "units"]),
    ("diagnose", &["limits", "report"]),
    ("core", &["aggregate", "counters", "decode", "govern", "limits", "postgres", "report", "units"]),
    ("export", &["aggregate", "core", "limits", "postgres", "printable", "report", "units"]),
    (
        "commands",
        &[
            "census",
            "cli",
            "config",
            "core",
            "diagnose",
            "export",
            "govern",
            "intake",
            "kubernetes",
            "limits",
            "postgres",
            "printable",
            "printable",
            "probe",
            "report",
            "symbolize",
            "target",
            "units",
        ],
    ),
];

/// Words that only these modules may hold.
const FENCED: &[(&str, &[&str])] = &[
    ("aya::", &["probe", "intake"]),
    ("std::env::", &["commands", "main"]),
    ("CLOCK_REALTIME", &["units", "commands"]),
    ("SystemTime", &[]),
];

/// Modules that are pure: no files, no processes, no clocks.
const PURE: &[&str] = &["aggregate", "core", "decode", "diagnose", "govern", "postgres", "report", "units", "counters"];
const IMPURE: &[&str] = &["std::fs", "std::net", "std::process", "Instant", "File::open", "std::thread"];

/// Source files by module, without their comments and tests.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::<String, String>::new();
    let mut left = vec![root.clone()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let module = module_of(&path, &root);
            let text = fs::read_to_string(&path).expect("a source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code: String =
                code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            modules.entry(module).or_default().push_str(&code);
        }
    }
    modules
}

fn module_of(path: &Path, root: &Path) -> String {
    let inner: PathBuf = path.strip_prefix(root).expect("below the root").to_owned();
    let first = inner.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Modules of this crate that a text names: after `crate::`, alone or in braces.
fn named(code: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let list = after.strip_prefix('{').map_or(after, |list| list.split("};").next().unwrap_or(list));
        let depth_one = top_level(list);
        let heads = if after.starts_with('{') { depth_one } else { vec![after] };
        for head in heads {
            let end = head.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(head.len());
            names.extend(head.get(..end));
        }
    }
    names
}

/// Parts between the commas that are in no inner braces.
fn top_level(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.extend(list.get(begin..at).map(str::trim));
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.extend(list.get(begin..).map(str::trim));
    parts
}

#[test]
fn no_module_uses_one_that_it_must_not_know() {
    let sources = sources();
    let modules: BTreeSet<&str> = EDGES.iter().map(|(module, _)| *module).collect();
    for (module, code) in sources.iter().filter(|(module, _)| !["lib", "main"].contains(&module.as_str())) {
        let allowed = EDGES.iter().find(|(name, _)| name == module).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{module} has no row: say what it may know"));
        for used in named(code).into_iter().filter(|used| modules.contains(used) && used != module) {
            assert!(allowed.contains(&used), "{module} must not know {used}");
        }
    }
}

#[test]
fn who_touches_the_world_is_known() {
    let sources = sources();
    for (module, code) in &sources {
        for (word, owners) in FENCED {
            assert!(owners.contains(&module.as_str()) || !code.contains(word), "{word} has no business in {module}");
        }
        for word in IMPURE {
            assert!(!PURE.contains(&module.as_str()) || !code.contains(word), "{module} is pure, but has {word}");
        }
    }
}
