//! Plans for real binaries, against goldens that were checked by hand with objdump, and what is recovered against the symbol tables.
//!
//! `cargo xtask setup` puts the binaries into `.cache`: `node/VERSION/bin/node` for official builds, and the unpacked packages
//! `libnode108` and `libuv1` of Debian 12 into `debian-node`.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    env,
    fmt::Write,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use agent::{
    probe::plan::{FEATURES, FeatureState, Holder, Placement, Plan, plan},
    target::{
        elf::ElfFile,
        libuv,
        node::{NodeError, NodeFiles, NodeTarget, PoolSize, Version},
    },
    units::Pid,
};
use agent_ebpf::spec::{Component, PROBES};

const OFFICIAL: [(&str, Version, [u32; 4], Version); 6] = [
    ("16.20.2", Version(16, 20, 2), [9, 4, 146, 26], Version(1, 43, 0)),
    ("18.20.8", Version(18, 20, 8), [10, 2, 154, 26], Version(1, 44, 2)),
    ("20.20.2", Version(20, 20, 2), [11, 3, 244, 8], Version(1, 46, 0)),
    ("22.23.3", Version(22, 23, 3), [12, 4, 254, 21], Version(1, 51, 0)),
    ("24.21.0", Version(24, 21, 0), [13, 6, 233, 17], Version(1, 52, 1)),
    ("26.10.0", Version(26, 10, 0), [14, 6, 202, 34], Version(1, 52, 1)),
];

/// A file of the cache; without it the test is skipped aloud, and on CI fails.
fn cached(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache").join(path);
    if !path.exists() {
        assert!(env::var_os("CI").is_none(), "{} is missing: run `cargo xtask setup`", path.display());
        eprintln!("SKIPPED: {} is missing: run `cargo xtask setup`", path.display());
        return None;
    }
    Some(path)
}

fn official(version: &str) -> Option<NodeFiles> {
    let path = cached(&format!("node/{version}/bin/node"))?;
    Some(NodeFiles::of_executable(&path).unwrap())
}

/// One line a placement, with the bytes that the probe replaces.
fn table(plan: &Plan, elfs: &[&ElfFile]) -> String {
    let mut table = String::new();
    for Placement { probe, file, offset, addr, cost, symbol, within, via } in &plan.placements {
        let mut code = String::new();
        for byte in elfs[file.0].bytes_at(*addr, 6) {
            write!(code, "{byte:02x}").unwrap();
        }
        let (name, offset, cost, via) = (probe.name, offset.0, cost.name(), via.name());
        writeln!(table, "{name:<19} {offset:#09x} {code} {cost} {via} {symbol}+{within:#x}").unwrap();
    }
    for skip in &plan.skips {
        writeln!(table, "{:<19} skipped: {}", skip.probe.name, skip.reason).unwrap();
    }
    table
}

fn assert_complete(plan: &Plan) {
    for feature in FEATURES {
        assert_eq!(plan.feature(feature), FeatureState::On, "{plan}");
    }
    for probe in PROBES {
        assert!(plan.placements_of(probe.id).count() > 0, "{}", probe.name);
    }
}

#[test]
fn official_binaries_take_every_probe() {
    for (version, ..) in OFFICIAL {
        let Some(node) = official(version) else { continue };
        let holders: Vec<Holder<'_>> = node.files.iter().map(Holder::from).collect();
        let plan = plan(&holders).unwrap();
        assert_complete(&plan);
        insta::assert_snapshot!(format!("official-{version}"), table(&plan, &[holders[0].elf]));
    }
}

#[test]
fn debian_splits_node_and_hides_libuv_but_all_is_found() {
    let Some(libnode) = cached("debian-node/usr/lib/x86_64-linux-gnu/libnode.so.108") else { return };
    let Some(libuv) = cached("debian-node/usr/lib/x86_64-linux-gnu/libuv.so.1") else { return };
    let (libnode, libuv) = (ElfFile::open(&libnode).unwrap(), ElfFile::open(&libuv).unwrap());
    let holders = [
        Holder { components: &[Component::V8, Component::Node], elf: &libnode },
        Holder { components: &[Component::Libuv], elf: &libuv },
    ];
    let plan = plan(&holders).unwrap();
    assert_complete(&plan);
    insta::assert_snapshot!("debian-12", table(&plan, &[&libnode, &libuv]));
}

#[test]
fn what_is_recovered_is_what_the_symbol_table_says() {
    for (version, ..) in OFFICIAL {
        let Some(node) = official(version) else { continue };
        let elf = &node.files[0].elf;
        let recovered = libuv::recover(elf).unwrap();
        let truth = elf.lookup(recovered.keys().copied()).unwrap();
        for (name, symbol) in recovered {
            let symbol = symbol.unwrap_or_else(|why| panic!("{version}: {name}: {why}"));
            let truth = truth[name].symbol().expect("not stripped");
            assert_eq!(symbol.addr, truth.addr, "{version}: {name}");
        }
    }
}

#[test]
fn versions_are_read_from_the_binary() {
    for (version, node_version, v8, libuv) in OFFICIAL {
        let Some(node) = official(version) else { continue };
        assert_eq!(node.node_version(), Some(node_version));
        assert_eq!(node.v8_version(), Some(v8), "{version}");
        assert_eq!(node.libuv_version(), Some(libuv), "{version}");
    }
}

#[test]
fn a_shell_is_not_node() {
    let error = NodeFiles::of_executable(Path::new("/bin/sh")).unwrap_err();
    assert_eq!(error.to_string(), "/bin/sh is not Node.js: it does not export uv_run");
}

/// Killed when the test ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that has printed its first line and now waits.
fn run(node: &Path, script: &str) -> (Running, String) {
    let mut command = Command::new(node);
    command.args(["-e", script]).env("UV_THREADPOOL_SIZE", "7").stdout(Stdio::piped());
    let mut child = Running(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

#[test]
fn a_process_is_what_it_says_it_is() {
    for (version, node_version, ..) in OFFICIAL {
        let Some(path) = cached(&format!("node/{version}/bin/node")) else { continue };
        let (child, said) = run(&path, "console.log(process.version); setInterval(() => {}, 1e6)");
        let target = NodeTarget::inspect(Pid(child.0.id())).unwrap();
        assert_eq!(said.trim(), format!("v{node_version}"));
        assert_eq!(target.node.node_version(), Some(node_version));
        assert_eq!(target.process.exe, path.canonicalize().unwrap());
        assert_eq!(target.pool.threads(), 7);
    }
}

#[test]
fn a_pool_that_runs_says_how_many_threads_it_has() {
    let Some(path) = cached("node/24.21.0/bin/node") else { return };
    let script = "require('fs').stat('.', () => console.log('ready')); setInterval(() => {}, 1e6)";
    let (child, _) = run(&path, script);
    let target = NodeTarget::inspect(Pid(child.0.id())).unwrap();
    assert_eq!(target.pool, PoolSize::Running(7));
}

#[test]
fn a_process_that_is_not_node_says_why() {
    let child = Running(Command::new("sleep").arg("1000").spawn().unwrap());
    // Until it has replaced itself, it is this test.
    let error = loop {
        match NodeTarget::inspect(Pid(child.0.id())) {
            Err(error @ NodeError::NotNode { .. }) if error.to_string().contains("sleep") => break error,
            Err(NodeError::NotNode { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(error.to_string().ends_with("files exports uv_run"), "{error}");
}

#[test]
fn classes_of_thread_pool_work_have_names() {
    for (version, ..) in OFFICIAL {
        let Some(node) = official(version) else { continue };
        let elf = &node.files[0].elf;
        let name = "_ZTVN4node14ThreadPoolWorkE";
        let symbol = elf.lookup([name]).unwrap()[name].symbol().unwrap();
        let vptr = symbol.addr.checked_add(16).unwrap();
        assert_eq!(elf.class_of_vptr(vptr).as_deref(), Some("N4node14ThreadPoolWorkE"), "{version}");
    }
}
