//! What is known of the node's pods, and the attributes that are made of it. Pure: it asks nobody.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    objects::{ContainerStatus, Owner, Pod},
    watch::Counts,
};
use crate::{
    limits::{ATTRIBUTE_CHARS_MAX, KUBERNETES_OWNERS_MAX, KUBERNETES_PODS_MAX},
    printable::is_printable,
    target::{container::Container, declared::SERVICE_NAME, identity::Attributes},
};

/// Annotations by which a pod says attributes of its own.
const ANNOTATION: &str = "resource.opentelemetry.io/";

/// On a pod from a file the kubelet's own id for it, which its control groups have.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// How pods are told to collectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    pub cluster: Option<String>,
    pub labels: Vec<String>,
    pub well_known_labels: bool,
}

/// An object by namespace, kind and name.
pub type ObjectKey = (String, String, String);

#[derive(Debug, Default)]
pub struct Store {
    /// By id.
    pods: BTreeMap<String, Arc<Pod>>,
    /// Ids of pods by those of their containers.
    containers: BTreeMap<String, String>,
    /// Ids of pods by what the kubelet calls them.
    hashes: BTreeMap<String, String>,
    /// Who owns an owner; `None` where that is nobody, or cannot be told.
    owners: BTreeMap<ObjectKey, Option<Owner>>,
    pub generation: u64,
    pub counts: Counts,
}

impl Store {
    /// All pods of the node, as of now.
    pub fn replace(&mut self, pods: Vec<Pod>) {
        self.pods.clear();
        self.containers.clear();
        self.hashes.clear();
        for pod in pods {
            self.put(pod);
        }
        self.generation += 1;
    }

    pub fn put(&mut self, mut pod: Pod) {
        let uid = pod.metadata.uid.clone();
        self.remove(&uid);
        if uid.is_empty() || self.pods.len() >= KUBERNETES_PODS_MAX {
            self.counts.left_out += 1;
            return;
        }
        let hash = pod.metadata.annotations.remove(CONFIG_HASH);
        self.hashes.extend(hash.map(|hash| (hash, uid.clone())));
        // The rest may hold whole manifests.
        pod.metadata.annotations.retain(|name, _| name.starts_with(ANNOTATION));
        let ids = pod.status.containers().filter_map(ContainerStatus::runtime_and_id);
        self.containers.extend(ids.map(|(_, id)| (id.to_owned(), uid.clone())));
        self.pods.insert(uid, Arc::new(pod));
        self.generation += 1;
    }

    pub fn remove(&mut self, uid: &str) {
        if self.pods.remove(uid).is_some() {
            self.containers.retain(|_, of| of != uid);
            self.hashes.retain(|_, of| of != uid);
        }
    }

    /// Owners of pods of which it is not known who owns them.
    #[must_use]
    pub fn strangers(&self) -> Vec<ObjectKey> {
        let keys = self.pods.values().filter_map(|pod| owner_key(pod));
        let mut strangers: Vec<_> = keys.filter(|key| !self.owners.contains_key(key)).collect();
        strangers.sort_unstable();
        strangers.dedup();
        strangers
    }

    pub fn own(&mut self, key: ObjectKey, owner: Option<Owner>) {
        if self.owners.len() >= KUBERNETES_OWNERS_MAX {
            // Those that are still needed are asked for again.
            self.owners.clear();
        }
        self.owners.insert(key, owner);
        self.generation += 1;
    }

    /// The pod of a container, and its status once the kubelet has told it. Where control groups name both, both have to fit: the
    /// names are not always the runtime's.
    #[must_use]
    pub fn find(&self, container: &Container) -> Option<(Arc<Pod>, Option<ContainerStatus>)> {
        let named = container.pod_uid.as_ref().map(|uid| self.hashes.get(uid).unwrap_or(uid));
        let holder = self.containers.get(&container.id);
        let uid = match (named, holder) {
            (Some(named), Some(holder)) if named != holder => return None,
            (_, Some(uid)) | (Some(uid), None) => uid,
            (None, None) => return None,
        };
        let pod = self.pods.get(uid)?;
        let status =
            pod.status.containers().find(|status| status.runtime_and_id().is_some_and(|(_, id)| id == container.id));
        Some((Arc::clone(pod), status.cloned()))
    }

    /// By OpenTelemetry's conventions for Kubernetes.
    #[must_use]
    pub fn attributes(&self, container: &Container, naming: &Naming) -> Option<Attributes> {
        let (pod, status) = self.find(container)?;
        let metadata = &pod.metadata;
        let mut all = Attributes::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                all.insert(key.to_owned(), fit(value));
            }
        };
        put("k8s.cluster.name", naming.cluster.as_deref().unwrap_or_default());
        put("k8s.node.name", &pod.spec.node_name);
        put("k8s.namespace.name", &metadata.namespace);
        put("k8s.pod.name", &metadata.name);
        put("k8s.pod.uid", &metadata.uid);
        for label in &naming.labels {
            put(&format!("k8s.pod.label.{label}"), metadata.labels.get(label).map_or("", String::as_str));
        }
        let owners = self.owners_of(&pod);
        for Owner { kind, name, controller: _ } in &owners {
            put(&format!("k8s.{}.name", kind.to_lowercase()), name);
        }
        let container_name = status.as_ref().map_or("", |status| status.name.as_str());
        if let Some(status) = &status {
            put("k8s.container.name", &status.name);
            put("k8s.container.restart_count", &status.restart_count.to_string());
            put("container.image.name", image_name(&status.image));
            put("container.runtime.name", status.runtime_and_id().map_or("", |(runtime, _)| runtime));
        }
        let label = |name: &str| metadata.labels.get(name).filter(|_| naming.well_known_labels);
        let service = label("app.kubernetes.io/instance")
            .or_else(|| label("app.kubernetes.io/name"))
            // The last one owns the others.
            .or_else(|| owners.last().map(|owner| &owner.name))
            .unwrap_or(&metadata.name);
        put(SERVICE_NAME, service);
        put("service.namespace", &metadata.namespace);
        put("service.version", label("app.kubernetes.io/version").map_or("", String::as_str));
        if !container_name.is_empty() {
            put("service.instance.id", &format!("{}.{}.{container_name}", metadata.namespace, metadata.name));
        }
        for (name, value) in &metadata.annotations {
            // What the pod says of itself; what is known of it is not its to say.
            let is_known = |key: &&str| key.starts_with("k8s.") || key.starts_with("container.") || key.is_empty();
            if let Some(key) = name.strip_prefix(ANNOTATION).filter(|key| !is_known(key)) {
                put(key, value);
            }
        }
        Some(all)
    }

    /// What controls a pod, and what controls that.
    fn owners_of(&self, pod: &Pod) -> Vec<Owner> {
        let Some(first) = pod.metadata.controller() else { return Vec::new() };
        let above = owner_key(pod).and_then(|key| self.owners.get(&key)?.clone());
        [Some(first.clone()), above].into_iter().flatten().filter(|owner| is_known(&owner.kind)).collect()
    }
}

/// Kinds that have an attribute for their name.
fn is_known(kind: &str) -> bool {
    matches!(kind, "ReplicaSet" | "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "CronJob")
}

/// Its controller, where that may have one itself.
fn owner_key(pod: &Pod) -> Option<ObjectKey> {
    let owner = pod.metadata.controller().filter(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "Job"))?;
    Some((pod.metadata.namespace.clone(), owner.kind.clone(), owner.name.clone()))
}

/// Without tag and digest.
fn image_name(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let tag = name.rfind(':').filter(|at| name.rfind('/').is_none_or(|slash| slash < *at));
    tag.and_then(|at| name.get(..at)).unwrap_or(name)
}

fn fit(value: &str) -> String {
    value.chars().filter(|c| is_printable(*c)).take(ATTRIBUTE_CHARS_MAX).collect()
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::kubernetes::objects::{Change, PodList};

    const LIST: &str = include_str!("../../tests/workloads/kubernetes/pods.json");

    fn store() -> Store {
        let mut store = Store::default();
        let list: PodList = serde_json::from_str(LIST).expect("the recorded list");
        store.replace(list.items);
        store
    }

    fn container(id: char, pod_uid: Option<&str>) -> Container {
        Container { id: id.to_string().repeat(64), runtime: None, pod_uid: pod_uid.map(str::to_owned) }
    }

    fn told(store: &Store, container: &Container, naming: &Naming) -> Vec<(String, String)> {
        store.attributes(container, naming).into_iter().flatten().collect()
    }

    fn check(found: &[(String, String)], expected: &[(&str, &str)]) {
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    const SHOP: &str = "7c4f2a1e-90b3-4d5c-8e6f-1a2b3c4d5e6f";

    #[test]
    fn a_container_has_its_pod_s_attributes() {
        let mut store = store();
        assert_eq!(store.strangers(), [("shop".into(), "ReplicaSet".into(), "cart-6d8f7b9c5d".into())]);
        let owner = Owner { kind: "Deployment".into(), name: "cart".into(), controller: true };
        store.own(("shop".into(), "ReplicaSet".into(), "cart-6d8f7b9c5d".into()), Some(owner));
        assert!(store.strangers().is_empty());
        let naming = Naming {
            cluster: Some("east".into()),
            labels: vec!["team".into(), "none".into()],
            well_known_labels: false,
        };
        check(
            &told(&store, &container('a', Some(SHOP)), &naming),
            &[
                ("container.image.name", "registry.example:5000/shop/cart"),
                ("container.runtime.name", "containerd"),
                ("k8s.cluster.name", "east"),
                ("k8s.container.name", "cart"),
                ("k8s.container.restart_count", "2"),
                ("k8s.deployment.name", "cart"),
                ("k8s.namespace.name", "shop"),
                ("k8s.node.name", "node-1"),
                ("k8s.pod.label.team", "checkout"),
                ("k8s.pod.name", "cart-6d8f7b9c5d-x2x7k"),
                ("k8s.pod.uid", SHOP),
                ("k8s.replicaset.name", "cart-6d8f7b9c5d"),
                ("service.instance.id", "shop.cart-6d8f7b9c5d-x2x7k.cart"),
                ("service.name", "cart"),
                ("service.namespace", "shop"),
                ("service.version", "2.1.0"),
            ],
        );
        // Labels name services only where that is wished.
        let naming = Naming { well_known_labels: true, ..Naming::default() };
        let named = store.attributes(&container('a', Some(SHOP)), &naming).expect("attributes");
        assert_eq!(named.get("service.name").map(String::as_str), Some("cart-blue"));
    }

    #[test]
    fn a_pod_is_known_before_its_container_is() {
        let found = store().attributes(&container('9', Some(SHOP)), &Naming::default()).expect("attributes");
        assert_eq!(found.get("k8s.pod.name").map(String::as_str), Some("cart-6d8f7b9c5d-x2x7k"));
        assert_eq!(found.get("k8s.container.name"), None);
    }

    #[test]
    fn a_pod_from_a_file_is_found_by_the_kubelet_s_name_for_it() {
        let found = store().attributes(&container('c', Some("5f3b0a1c2d4e6f708192a3b4c5d6e7f8")), &Naming::default());
        let found = found.expect("attributes");
        assert_eq!(found.get("k8s.pod.name").map(String::as_str), Some("etcd-node-1"));
        assert_eq!(found.get("service.name").map(String::as_str), Some("etcd-node-1"));
    }

    #[test]
    fn a_container_that_names_another_s_pod_is_not_believed() {
        let other = "00000000-0000-4000-8000-000000000002";
        assert!(store().attributes(&container('a', Some(other)), &Naming::default()).is_none());
        assert!(store().attributes(&container('9', None), &Naming::default()).is_none());
    }

    #[test]
    fn changes_are_followed() {
        let mut store = store();
        let before = store.generation;
        let Some(Change::Deleted(metadata)) = Change::parse(
            format!(r#"{{"type":"DELETED","object":{{"metadata":{{"uid":"{SHOP}","resourceVersion":"9"}}}}}}"#)
                .as_bytes(),
        ) else {
            panic!("a deletion")
        };
        store.remove(&metadata.uid);
        assert!(store.find(&container('a', Some(SHOP))).is_none());
        let line = r#"{"type":"ADDED","object":{"metadata":{"uid":"u","name":"p","labels":null},"status":{"containerStatuses":
            [{"name":"c","containerID":"cri-o://77"}]}}}"#;
        let Some(Change::Put(pod)) = Change::parse(line.as_bytes()) else { panic!("an addition") };
        store.put(*pod);
        assert!(store.generation > before);
        let seven = Container { id: "77".into(), runtime: None, pod_uid: None };
        assert_eq!(store.find(&seven).map(|(pod, _)| pod.metadata.name.clone()).as_deref(), Some("p"));
        for bad in
            ["", "{}", "[]", r#"{"type":"ADDED"}"#, r#"{"type":"NEW","object":{}}"#, r#"{"type":"ADDED","object":7}"#]
        {
            assert_eq!(Change::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut store = Store::default();
        for n in 0..=KUBERNETES_PODS_MAX {
            let mut pod = Pod::default();
            pod.metadata.uid = n.to_string();
            pod.metadata.annotations = [("kubectl.kubernetes.io/last-applied-configuration".into(), "x".into())].into();
            store.put(pod);
        }
        assert_eq!((store.pods.len(), store.counts.left_out), (KUBERNETES_PODS_MAX, 1));
        assert!(store.pods.values().all(|pod| pod.metadata.annotations.is_empty()));
    }

    #[test]
    fn images_are_named_without_tag_and_digest() {
        for (image, name) in [
            ("nginx", "nginx"),
            ("nginx:1.25", "nginx"),
            ("host:5000/a/b", "host:5000/a/b"),
            ("host:5000/a/b:1@sha256:00", "host:5000/a/b"),
            ("", ""),
        ] {
            assert_eq!(image_name(image), name);
        }
    }
}
