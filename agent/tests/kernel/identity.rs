//! Who a process is: its control groups as the kernel tells them, its variables, its package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    harness::{Bench, Trace, VERSION, Workload, bench, node, skip},
    records::{get, text},
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
    let records = trace.finish(std::time::Duration::from_millis(100));
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
