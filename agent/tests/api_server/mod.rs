//! A double of an API server: a program beside this file's tests, over TLS, that is told what to answer.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

const NODE: &str = "22.23.3";

/// The double, with a certificate of its own.
pub struct Server {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
    /// What it was asked.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start() -> Option<Self> {
        let node = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../.cache/node/{NODE}/bin/node"));
        if !node.exists() {
            let _ = writeln!(std::io::stderr(), "SKIPPED kubernetes: needs node {NODE} (cargo xtask setup)");
            assert!(std::env::var_os("CI").is_none(), "nothing is skipped on CI");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        certificate(&at("key.pem"), &at("ca.pem"));
        fs::write(at("token"), "first\n").unwrap();
        let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workloads/kubernetes");
        let mut child = Command::new(node)
            .arg(workloads.join("api.js"))
            .args([at("key.pem"), at("ca.pem"), workloads.join("pods.json")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.next().unwrap().unwrap();
        let port = ready.strip_prefix("READY ").unwrap().parse().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Some(Self { child, port, dir, asked })
    }

    pub fn tell(&mut self, what: &Value) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    pub fn asked(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As a cluster's own authority would make one for 127.0.0.1.
pub fn certificate(key: &Path, certificate: &Path) {
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let name = [
        "-subj",
        "/CN=test",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    let mut command = Command::new("openssl");
    command.args(request).args(name).arg("-keyout").arg(key).arg("-out").arg(certificate);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A pod with one container.
pub fn pod(name: &str, version: u32, id: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version.to_string()},
        "spec": {"nodeName": "node-1"},
        "status": {"containerStatuses": [{
            "name": "main", "image": "x:1", "containerID": format!("containerd://{id}"),
        }]},
    })
}
