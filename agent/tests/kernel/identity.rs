//! Who a process is: its control groups as the kernel tells them, its variables, its package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    api_server::{Server, pod},
    harness::{Bench, Process, Trace, VERSION, Workload, agent_command, bench, node, patience, read, skip},
    records::{Records, get, text},
};

const ID: &str = "5ad4c1f0b7a2938e6d5c4b3a29180f7e6d5c4b3a291807f6e5d4c3b2a1908f7e";
const POD: &str = "0b7a2d5e-5c1f-4a3b-9d8e-6f7a8b9c0d1e";

/// A control group as a runtime would make it; gone with its guard.
struct Group(Vec<PathBuf>);

impl Group {
    /// `None` where none can be made.
    fn make(path: &str) -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = root.into_iter().find(|root| root.join("cgroup.procs").is_file())?;
        let mut made = Self(Vec::new());
        let mut at = root.to_owned();
        for part in path.split('/') {
            at.push(part);
            if !at.is_dir() {
                fs::create_dir(&at).ok()?;
                made.0.push(at.clone());
            }
        }
        Some(made)
    }

    fn enter(&self, pid: u32) {
        fs::write(self.0.last().unwrap().join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// A server below a directory with a package.
fn service(bench: &Bench) -> Workload {
    let app = bench.dir.path().join("app");
    fs::create_dir_all(app.join("dist")).unwrap();
    fs::write(app.join("package.json"), r#"{"name": "@acme/shop", "version": "3.2.1"}"#).unwrap();
    fs::write(app.join("dist/server.js"), "console.log('READY'); setInterval(() => {}, 10);").unwrap();
    let mut command = Command::new(node(VERSION));
    command.arg("server.js").current_dir(app.join("dist")).env("SECRET_TOKEN", "hunter2");
    command.env_remove("OTEL_SERVICE_NAME").env_remove("OTEL_RESOURCE_ATTRIBUTES");
    Workload::with(&mut command)
}

fn resource(bench: &Bench, pid: u32) -> Value {
    let mut trace = Trace::start(bench, pid, &["--duration", "100ms"]);
    let records = trace.finish(Duration::from_millis(100));
    let whole = fs::read_to_string(&trace.ndjson).unwrap();
    assert!(!whole.contains("hunter2"), "a variable that nobody asked for is in the records");
    get(records.target(), "resource").clone()
}

#[test]
fn a_process_in_a_pod_is_told_by_its_control_group_and_its_package() {
    let Some(bench) = bench() else { return };
    let slice = POD.replace('-', "_");
    let path = format!("kubepods.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope");
    let Some(group) = Group::make(&path) else {
        skip("control groups that may be made");
        return;
    };
    let workload = service(&bench);
    group.enter(workload.pid());
    let found = resource(&bench, workload.pid());
    assert_eq!(text(&found, "container.id"), ID);
    assert_eq!(text(&found, "container.runtime.name"), "containerd");
    assert_eq!(text(&found, "k8s.pod.uid"), POD);
    assert_eq!(text(&found, "service.name"), "@acme/shop");
    assert_eq!(text(&found, "service.version"), "3.2.1");
    assert_eq!(text(&found, "process.pid"), workload.pid().to_string());
    assert_eq!(text(&found, "process.runtime.name"), "nodejs");
    assert_eq!(text(&found, "process.runtime.version"), VERSION);
    assert_eq!(text(&found, "process.executable.name"), "node");
}

#[test]
fn a_daemon_knows_pods_by_name_and_traces_those_it_is_told_to() {
    let Some(bench) = bench() else { return };
    let Some(mut server) = Server::start() else { return };
    let Some(group) = Group::make(&format!("kubepods/burstable/poduid-shop/{ID}")) else {
        skip("control groups that may be made");
        return;
    };
    let mut shop = pod("shop-1", 7, ID);
    shop["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "name": "shop", "controller": true}]);
    server.tell(&json!({"pods": {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [shop]}}));
    let (inside, outside) = (service(&bench), service(&bench));
    group.enter(inside.pid());

    let ndjson = bench.dir.path().join("pods.ndjson");
    let mut daemon = daemon(&bench, &server, &ndjson, "");
    until("a window", || read(&ndjson).contains(r#""type":"window""#));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(Duration::from_secs(20)).success());
    assert_eq!(server.asked("/api/v1/pods watch=null"), 1, "one list, then what changes");
    let records = Records::read(&ndjson);
    let traced: Vec<_> = records.of_type("target").collect();
    assert!(!traced.is_empty() && traced.iter().all(|target| target["pid"] == inside.pid()), "{traced:?}");
    assert!(inside.pid() != outside.pid());
    let found = get(traced.last().unwrap(), "resource");
    for (key, value) in [
        ("container.id", ID),
        ("container.runtime.name", "containerd"),
        ("k8s.container.name", "main"),
        ("k8s.namespace.name", "shop"),
        ("k8s.node.name", "node-1"),
        ("k8s.pod.name", "shop-1"),
        ("k8s.statefulset.name", "shop"),
        ("service.name", "shop"),
        ("service.instance.id", "shop.shop-1.main"),
    ] {
        assert_eq!(text(found, key), value, "{key}");
    }
}

/// A daemon that asks this server, and traces what the rules say and else what is in a namespace `sh*`.
fn daemon(bench: &Bench, server: &Server, ndjson: &Path, rules: &str) -> Process {
    let at = |name: &str| server.dir.path().join(name);
    let path = bench.dir.path().join("agent.toml");
    let config = format!(
        "[trace]\nwindow = \"1s\"\npostgres = false\n[output]\nndjson = [\"{}\"]\n[kubernetes]\nenabled = true\nnode = \"node-1\"\n\
         labels = [\"trace\"]\napi = \"https://127.0.0.1:{}\"\ntoken_file = \"{}\"\nca_file = \"{}\"\n{rules}\n\
         [[process]]\nresource = {{ \"k8s.namespace.name\" = \"sh*\" }}\n[[process]]\ntrace = false\n",
        ndjson.display(),
        server.port,
        at("token").display(),
        at("ca.pem").display()
    );
    fs::write(&path, config).unwrap();
    let mut daemon = Process::spawn(&mut agent_command(&["daemon", "--config", path.to_str().unwrap()]));
    daemon.wait_err("agent: ready");
    daemon
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience(Duration::from_secs(15));
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn rules_are_asked_again_when_labels_come_and_change() {
    let Some(bench) = bench() else { return };
    let Some(mut server) = Server::start() else { return };
    let Some(group) = Group::make(&format!("kubepods/burstable/poduid-late/{ID}")) else {
        skip("control groups that may be made");
        return;
    };
    server.tell(&json!({"pods": {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": []}}));
    let (inside, outside) = (service(&bench), service(&bench));
    group.enter(inside.pid());
    let ndjson = bench.dir.path().join("late.ndjson");
    let rules = "[[process]]\nresource = { \"k8s.pod.label.trace\" = \"no\" }\ntrace = false\n\
                 [[process]]\nresource = { \"k8s.pod.label.trace\" = \"closely\" }\nslow_turn = \"7ms\"\n";
    let mut daemon = daemon(&bench, &server, &ndjson, rules);
    // As many lines of a type as there are by now of the one, with these words.
    let pid = inside.pid();
    let count = |kind: &str, words: &str| {
        let lines = read(&ndjson);
        let values = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.filter(|line| line["type"] == kind && line["pid"] == pid && line.to_string().contains(words)).count()
    };
    until("the watch", || server.asked("watch=1") == 1);
    // Lets the head of the watch's answer arrive, and a process be met that nothing is known of.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(count("target", ""), 0, "nobody wants it yet");
    let tell = |server: &mut Server, version: u32, kind: &str, label: &str| {
        let mut late = pod("late-1", version, ID);
        late["metadata"]["labels"] = json!({"trace": label});
        server.tell(&json!({"emit": {"type": kind, "object": late}}));
    };
    tell(&mut server, 8, "ADDED", "yes");
    until("the one in the pod", || count("window", "") >= 1);
    tell(&mut server, 9, "MODIFIED", "no");
    until("its end", || count("process", "") >= 1);
    std::thread::sleep(Duration::from_millis(1500));
    let windows = count("window", "");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(count("window", ""), windows, "it is traced still");
    tell(&mut server, 10, "MODIFIED", "maybe");
    until("it again", || count("target", r#""k8s.pod.label.trace":"maybe""#) >= 1);
    tell(&mut server, 11, "MODIFIED", "closely");
    until("other settings", || count("target", r#""slow_turn_ns":7000000"#) >= 1);
    until("a window of it", || count("window", "") > windows);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(Duration::from_secs(20)).success());
    let records = Records::read(&ndjson);
    assert!(records.of_type("target").all(|target| target["pid"] == pid), "{} is traced, too", outside.pid());
}
