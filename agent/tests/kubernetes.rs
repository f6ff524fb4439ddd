//! The pods of a node, as an API server tells of them: by TLS, with a token, through its restarts and its forgetfulness.
//!
//! The server is a double, as no real one is to be had: it answers as recorded ones do.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod api_server;

use std::{
    fs,
    time::{Duration, Instant},
};

use agent::{
    kubernetes::{Kubernetes, KubernetesConfig, Surroundings},
    target::container::Container,
};
use api_server::{Server, certificate, pod};
use serde_json::json;

const PODS: &str = include_str!("workloads/kubernetes/pods.json");
/// Longer than the pauses of three tries.
const LIMIT: Duration = Duration::from_secs(20);

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

fn config(server: &Server) -> KubernetesConfig {
    KubernetesConfig {
        enabled: true,
        api: Some(format!("https://127.0.0.1:{}", server.port)),
        node: Some("node-1".into()),
        token_file: server.dir.path().join("token"),
        ca_file: server.dir.path().join("ca.pem"),
        ..KubernetesConfig::default()
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn pods_are_listed_and_then_followed() {
    let Some(mut server) = Server::start() else { return };
    run(async {
        let kubernetes = Kubernetes::start(&config(&server), &Surroundings::default()).unwrap();
        assert!(kubernetes.synced(LIMIT).await);
        assert_eq!(told(&kubernetes, 'b', "k8s.container.name").as_deref(), Some("proxy"));
        until("the Deployment", || told(&kubernetes, 'a', "k8s.deployment.name").as_deref() == Some("cart")).await;
        assert_eq!(told(&kubernetes, 'a', "service.name").as_deref(), Some("cart"));
        until("the watch", || server.asked("watch=1 from=50010") == 1).await;

        let before = kubernetes.generation();
        // Lets the head of the watch's answer arrive.
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.tell(&json!({"emit": {"type": "ADDED", "object": pod("new", 50011, &"d".repeat(64))}}));
        until("the new pod", || told(&kubernetes, 'd', "k8s.pod.name").as_deref() == Some("new")).await;
        assert!(kubernetes.generation() > before);
        server.tell(&json!({"emit": {"type": "DELETED", "object": pod("new", 50012, &"d".repeat(64))}}));
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
        let kubernetes = Kubernetes::start(&config(&server), &Surroundings::default()).unwrap();
        assert!(kubernetes.synced(LIMIT).await);
        until("the watch", || server.asked("watch=1") == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let list = json!({"kind": "PodList", "metadata": {"resourceVersion": "60000"}, "items": [pod("other", 59999, &"e".repeat(64))]});
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
        let kubernetes = Kubernetes::start(&config(&server), &Surroundings::default()).unwrap();
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
        server.tell(&json!({"emit": {"type": "ADDED", "object": pod("later", 50020, &"f".repeat(64))}}));
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
        let config = KubernetesConfig { ca_file: other, ..config(&server) };
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
