//! In which pods the processes are: asked when one is met, and again whenever more is known or something has changed.

use std::{collections::BTreeMap, time::Duration};

use super::subject::Subject;
use crate::{
    kubernetes::{ApiError, Kubernetes, KubernetesConfig, Surroundings},
    limits::CONTAINED_MAX,
    target::identity::{Attributes, Identity},
    units::Pid,
};

/// How long a start waits for the API server: without it processes are met all the same.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Pods {
    kubernetes: Kubernetes,
    /// Processes in containers, whether they are traced or not: labels come late, and change.
    contained: BTreeMap<Pid, Contained>,
    /// What was known when they were last asked for.
    generation: u64,
}

#[derive(Debug)]
struct Contained {
    identity: Identity,
    resource: Attributes,
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
        Ok(Some(Self { kubernetes, contained: BTreeMap::new(), generation: 0 }))
    }

    /// Adds what is known now, and keeps the process in mind.
    pub fn identify(&mut self, subject: &mut Subject) {
        let Some(container) = &subject.identity.container else { return };
        let attributes = self.kubernetes.attributes(container).unwrap_or_default();
        subject.facts.resource = subject.identity.resource(&attributes);
        if self.contained.len() < CONTAINED_MAX || self.contained.contains_key(&subject.pid) {
            let (identity, resource) = (subject.identity.clone(), subject.facts.resource.clone());
            self.contained.insert(subject.pid, Contained { identity, resource });
        }
    }

    pub fn forget(&mut self, pid: Pid) {
        self.contained.remove(&pid);
    }

    /// Those of whom something else is known than before, with what is known now.
    pub fn news(&mut self) -> Vec<(Pid, Attributes)> {
        let generation = self.kubernetes.generation();
        if generation == std::mem::replace(&mut self.generation, generation) {
            return Vec::new();
        }
        let mut news = Vec::new();
        for (pid, Contained { identity, resource }) in &mut self.contained {
            // A pod that is deleted while its processes still run is no reason to know less of them.
            let container = identity.container.as_ref();
            let Some(attributes) = container.and_then(|container| self.kubernetes.attributes(container)) else {
                continue;
            };
            let now = identity.resource(&attributes);
            if now != *resource {
                resource.clone_from(&now);
                news.push((*pid, now));
            }
        }
        news
    }
}
