//! In which pods the traced processes are: asked when one is met, and again once more is known of those whose pod was not.

use std::{collections::BTreeMap, time::Duration};

use super::subject::Subject;
use crate::{
    core::TargetFacts,
    kubernetes::{ApiError, Kubernetes, KubernetesConfig, Surroundings},
    target::identity::{Attributes, Identity},
    units::Pid,
};

/// How long a start waits for the API server: without it processes are met all the same.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Pods {
    kubernetes: Kubernetes,
    /// Processes in containers of which not all is known.
    waiting: BTreeMap<Pid, (Identity, TargetFacts)>,
    /// What was known when they were last asked for.
    generation: u64,
}

impl Pods {
    /// `None` where nobody wants to know. Must be called in a runtime.
    pub async fn start(config: &KubernetesConfig) -> Result<Option<Self>, ApiError> {
        if !config.enabled {
            return Ok(None);
        }
        let surroundings = Surroundings::read(|name| std::env::var(name).ok());
        let kubernetes = Kubernetes::start(config, &surroundings)?;
        kubernetes.synced(PATIENCE).await;
        Ok(Some(Self { kubernetes, waiting: BTreeMap::new(), generation: 0 }))
    }

    fn attributes(&self, identity: &Identity) -> Attributes {
        identity.container.as_ref().and_then(|container| self.kubernetes.attributes(container)).unwrap_or_default()
    }

    /// Adds what is known now.
    pub fn identify(&self, subject: &mut Subject) {
        subject.facts.resource = subject.identity.resource(&self.attributes(&subject.identity));
    }

    /// A process is traced from here on.
    pub fn traced(&mut self, identity: Identity, facts: &TargetFacts) {
        if identity.container.is_some() && !is_whole(&facts.resource) {
            self.waiting.insert(facts.pid, (identity, facts.clone()));
        }
    }

    pub fn forget(&mut self, pid: Pid) {
        self.waiting.remove(&pid);
    }

    /// Facts of those of whom more is known than before.
    pub fn news(&mut self) -> Vec<TargetFacts> {
        let generation = self.kubernetes.generation();
        if generation == std::mem::replace(&mut self.generation, generation) {
            return Vec::new();
        }
        let mut news = Vec::new();
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|_, (identity, facts)| {
            let resource = identity.resource(&self.attributes(identity));
            if resource != facts.resource {
                facts.resource = resource;
                news.push(facts.clone());
            }
            !is_whole(&facts.resource)
        });
        self.waiting = waiting;
        news
    }
}

/// The kubelet tells of a container last; an owner's owner is asked for after that.
fn is_whole(resource: &Attributes) -> bool {
    let has = |key| resource.contains_key(key);
    has("k8s.container.name") && (!has("k8s.replicaset.name") || has("k8s.deployment.name"))
}
