//! The pods of a node, as an API server tells of them: by TLS, with a token, through its restarts and its forgetfulness.
//!
//! The server is a double, as no real one is to be had: it answers as recorded ones do.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use agent::{
    kubernetes::{Kubernetes, KubernetesConfig, Surroundings},
    target::container::Container,
};
use serde_json::{Value, json};

const NODE: &str = "22.23.3";
const PODS: &str = include_str!("workloads/kubernetes/pods.json");
/// Longer than the pauses of three tries.
const LIMIT: Duration = Duration::from_secs(20);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The double, with a certificate of its own.
struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    /// What it was asked.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Option<Self> {
        let node = repository().join(format!(".cache/node/{NODE}/bin/node"));
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

    fn tell(&mut self, what: &Value) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    fn config(&self) -> KubernetesConfig {
        KubernetesConfig {
            enabled: true,
            api: Some(format!("https://127.0.0.1:{}", self.port)),
            node: Some("node-1".into()),
            token_file: self.dir.path().join("token"),
            ca_file: self.dir.path().join("ca.pem"),
            ..KubernetesConfig::default()
        }
    }

    fn asked(&self, what: &str) -> usize {
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
fn certificate(key: &Path, certificate: &Path) {
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

/// A container by the digit that its id is made of.
fn container(id: char) -> Container {
    Container { id: id.to_string().repeat(64), runtime: None, pod_uid: None }
}

fn told(kubernetes: &Kubernetes, id: char, key: &str) -> Option<String> {
    kubernetes.attributes(&container(id))?.get(key).cloned()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LIMIT, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pod with one container.
fn pod(name: &str, version: u32, id: char) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version.to_string()},
        "spec": {"nodeName": "node-1"},
        "status": {"containerStatuses": [{
            "name": "main", "image": "x:1", "containerID": format!("containerd://{}", id.to_string().repeat(64)),
        }]},
    })
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn pods_are_listed_and_then_followed() {
    let Some(mut server) = Server::start() else { return };
    run(async {
        let kubernetes = Kubernetes::start(&server.config(), &Surroundings::default()).unwrap();
        assert!(kubernetes.synced(LIMIT).await);
        assert_eq!(told(&kubernetes, 'b', "k8s.container.name").as_deref(), Some("proxy"));
        until("the Deployment", || told(&kubernetes, 'a', "k8s.deployment.name").as_deref() == Some("cart")).await;
        assert_eq!(told(&kubernetes, 'a', "service.name").as_deref(), Some("cart"));
        until("the watch", || server.asked("watch=1 from=50010") == 1).await;

        let before = kubernetes.generation();
        // Lets the head of the watch's answer arrive.
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.tell(&json!({"emit": {"type": "ADDED", "object": pod("new", 50011, 'd')}}));
        until("the new pod", || told(&kubernetes, 'd', "k8s.pod.name").as_deref() == Some("new")).await;
        assert!(kubernetes.generation() > before);
        server.tell(&json!({"emit": {"type": "DELETED", "object": pod("new", 50012, 'd')}}));
        until("its end", || told(&kubernetes, 'd', "k8s.pod.name").is_none()).await;
        let bookmark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "50400"}});
        server.tell(&json!({"emit": {"type": "BOOKMARK", "object": bookmark}}));

        // A connection that breaks: from where it was, without a new list.
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.tell(&json!({"cut": true}));
        until("the next watch", || server.asked("watch=1 from=50400") >= 1).await;
        assert_eq!((kubernetes.counts().lists, kubernetes.counts().failures), (1, 0));
    });
}

#[test]
fn a_server_that_forgot_is_asked_for_a_new_list() {
    let Some(mut server) = Server::start() else { return };
    run(async {
        let kubernetes = Kubernetes::start(&server.config(), &Surroundings::default()).unwrap();
        assert!(kubernetes.synced(LIMIT).await);
        until("the watch", || server.asked("watch=1") == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let list =
            json!({"kind": "PodList", "metadata": {"resourceVersion": "60000"}, "items": [pod("other", 59999, 'e')]});
        server.tell(&json!({"pods": list}));
        // Within a watch, and then as the answer to the next one.
        let status =
            json!({"kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410});
        server.tell(&json!({"gone": true, "emit": {"type": "ERROR", "object": status}}));
        until("the new list", || told(&kubernetes, 'e', "k8s.pod.name").as_deref() == Some("other")).await;
        until("the second list", || kubernetes.counts().expired == 2).await;
        assert!(told(&kubernetes, 'a', "k8s.pod.name").is_none());
        // What the server has at hand may be older than what it forgot.
        until("the lists", || server.asked("watch=null from=null") >= 2).await;
        assert_eq!(server.asked("watch=null from=0"), 1);
    });
}

#[test]
fn what_is_known_stays_while_the_server_is_away_and_the_token_is_read_anew() {
    let Some(mut server) = Server::start() else { return };
    run(async {
        let kubernetes = Kubernetes::start(&server.config(), &Surroundings::default()).unwrap();
        assert!(kubernetes.synced(LIMIT).await);
        until("the watch", || server.asked("watch=1") == 1).await;
        server.tell(&json!({"down": true, "cut": true, "token": "second"}));
        until("a failure", || kubernetes.counts().failures >= 1).await;
        assert_eq!(told(&kubernetes, 'a', "k8s.pod.name").as_deref(), Some("cart-6d8f7b9c5d-x2x7k"));
        server.tell(&json!({"down": false}));
        // Not yet with the new token.
        until("a refusal", || kubernetes.counts().failures >= 2).await;
        assert_eq!(told(&kubernetes, 'a', "k8s.pod.name").as_deref(), Some("cart-6d8f7b9c5d-x2x7k"));
        fs::write(server.dir.path().join("token"), "second").unwrap();
        let asked = server.asked("watch=1");
        until("the watch", || server.asked("watch=1") > asked).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.tell(&json!({"emit": {"type": "ADDED", "object": pod("later", 50020, 'f')}}));
        until("a new pod", || told(&kubernetes, 'f', "k8s.pod.name").as_deref() == Some("later")).await;
        assert_eq!(kubernetes.counts().lists, 1);
    });
}

#[test]
fn a_server_of_another_authority_is_told_nothing() {
    let Some(server) = Server::start() else { return };
    run(async {
        let other = server.dir.path().join("other.pem");
        certificate(&server.dir.path().join("other-key.pem"), &other);
        let config = KubernetesConfig { ca_file: other, ..server.config() };
        let kubernetes = Kubernetes::start(&config, &Surroundings::default()).unwrap();
        until("a failure", || kubernetes.counts().failures >= 1).await;
        assert_eq!(server.asked("REQUEST"), 0);
        assert!(!kubernetes.synced(Duration::ZERO).await);
    });
}

#[test]
fn the_recorded_list_holds_what_must_not_be_kept() {
    // Else the next assertion would say nothing.
    assert!(PODS.contains("hunter2"));
    let list: agent::kubernetes::PodList = serde_json::from_str(PODS).unwrap();
    assert!(!format!("{list:?}").contains("hunter2"));
}
