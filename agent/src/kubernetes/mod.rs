//! What Kubernetes knows of the containers on this node: pod, namespace, owner, labels.
//!
//! `client` speaks HTTP, `watch` keeps up with the API server, `store` holds what is known and makes attributes of it. While the API
//! server is away, what is known stays. Of a pod nothing is kept but names, labels, owners and ids: no variables, no commands.

mod client;
mod objects;
mod store;
mod watch;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::task::JoinHandle;

pub use client::ApiError;
pub use objects::{Metadata, Owner, Pod, PodList};
pub use store::{Naming, Store};
pub use watch::Counts;

use crate::target::{container::Container, identity::Attributes};

/// The section `[kubernetes]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    pub enabled: bool,
    /// The API server, as `https://host:port` [default: where the cluster says that it is]
    pub api: Option<String>,
    /// This node's name [default: the variable `NODE_NAME`]
    pub node: Option<String>,
    /// With the token of the service account; it is read anew for each request, as it changes.
    pub token_file: PathBuf,
    pub ca_file: PathBuf,
    /// As `k8s.cluster.name`, which the API server does not know.
    pub cluster: Option<String>,
    /// Labels of pods that become attributes, `k8s.pod.label.NAME`.
    pub labels: Vec<String>,
    /// Services are named by `app.kubernetes.io/instance` and `/name` where a pod has these labels.
    pub well_known_labels: bool,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        let account = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        Self {
            enabled: false,
            api: None,
            node: None,
            token_file: account.join("token"),
            ca_file: account.join("ca.crt"),
            cluster: None,
            labels: Vec::new(),
            well_known_labels: false,
        }
    }
}

/// What a pod finds in its environment.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub api: Option<(String, String)>,
    /// `NODE_NAME`, as the manifest has it.
    pub node: Option<String>,
}

impl Surroundings {
    #[must_use]
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let api = variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT"));
        Self { api, node: variable("NODE_NAME") }
    }
}

/// Follows the pods of this node for as long as it lives.
#[derive(Debug)]
pub struct Kubernetes {
    store: Arc<Mutex<Store>>,
    naming: Naming,
    task: JoinHandle<()>,
}

impl Kubernetes {
    /// Must be called in a runtime. What cannot be reached is tried again and again.
    pub fn start(config: &KubernetesConfig, surroundings: &Surroundings) -> Result<Self, ApiError> {
        let api = client::Api::new(config, surroundings)?;
        let node = config.node.as_ref().or(surroundings.node.as_ref()).ok_or(ApiError::NoNode)?;
        let store = Arc::new(Mutex::new(Store::default()));
        let task = tokio::spawn(watch::run(api, node.clone(), Arc::clone(&store)));
        let naming = Naming {
            cluster: config.cluster.clone(),
            labels: config.labels.clone(),
            well_known_labels: config.well_known_labels,
        };
        Ok(Self { store, naming, task })
    }

    /// `None` of a container that is in no pod that is known.
    #[must_use]
    pub fn attributes(&self, container: &Container) -> Option<Attributes> {
        lock(&self.store).attributes(container, &self.naming)
    }

    /// The pod that a container is in, with all its labels.
    #[must_use]
    pub fn pod(&self, container: &Container) -> Option<Arc<Pod>> {
        lock(&self.store).find(container).map(|(pod, _)| pod)
    }

    /// Rises when something became known: time to ask again for whom nothing was.
    #[must_use]
    pub fn generation(&self) -> u64 {
        lock(&self.store).generation
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.store).counts
    }

    /// Waits for the first list of pods, but no longer than this; whether it came.
    pub async fn synced(&self, patience: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(20);
        let until = tokio::time::Instant::now() + patience;
        while lock(&self.store).counts.lists == 0 {
            if tokio::time::Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whoever panicked with it in hand left it whole: each change is one call.
fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
