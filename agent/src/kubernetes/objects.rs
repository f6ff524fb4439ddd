//! Objects of the API, as far as they matter here: everything else that the API server sends is dropped as it is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// Go writes an empty list as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub owner_references: Vec<Owner>,
    /// Of a list of which there is more.
    #[serde(rename = "continue")]
    pub more: Option<String>,
}

impl Metadata {
    /// What made it and looks after it.
    #[must_use]
    pub fn controller(&self) -> Option<&Owner> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub kind: String,
    pub name: String,
    pub controller: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub node_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    #[serde(rename = "containerStatuses", deserialize_with = "nullable")]
    pub ordinary: Vec<ContainerStatus>,
    #[serde(rename = "initContainerStatuses", deserialize_with = "nullable")]
    pub initial: Vec<ContainerStatus>,
    #[serde(rename = "ephemeralContainerStatuses", deserialize_with = "nullable")]
    pub ephemeral: Vec<ContainerStatus>,
}

impl Status {
    pub fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        let Self { ordinary, initial, ephemeral } = self;
        ordinary.iter().chain(initial).chain(ephemeral)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub image: String,
    /// `containerd://<id>`; empty before it runs.
    #[serde(rename = "containerID", deserialize_with = "nullable")]
    pub container_id: String,
    pub restart_count: u32,
}

impl ContainerStatus {
    /// The runtime's name and the container's id.
    #[must_use]
    pub fn runtime_and_id(&self) -> Option<(&str, &str)> {
        self.container_id.split_once("://").filter(|(_, id)| !id.is_empty())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodList {
    pub metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub items: Vec<Pod>,
}

/// Of any object only this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Partial {
    pub metadata: Metadata,
}

/// How the API server says no.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Refusal {
    pub code: u16,
    pub message: String,
}

/// A line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Added or modified.
    Put(Box<Pod>),
    Deleted(Metadata),
    /// Nothing changed up to this version.
    Bookmark(String),
    Refused(Refusal),
}

impl Change {
    /// `None` for a line that is not in the form that the API documents.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(rename = "type")]
            kind: String,
            object: Value,
        }
        fn object<T: DeserializeOwned>(value: Value) -> Option<T> {
            serde_json::from_value(value).ok()
        }
        let Line { kind, object: value } = serde_json::from_slice(line).ok()?;
        match kind.as_str() {
            "ADDED" | "MODIFIED" => object(value).map(|pod| Self::Put(Box::new(pod))),
            "DELETED" => object(value).map(|Partial { metadata }| Self::Deleted(metadata)),
            "BOOKMARK" => object(value).map(|Partial { metadata }| Self::Bookmark(metadata.resource_version)),
            "ERROR" => object(value).map(Self::Refused),
            _ => None,
        }
    }
}
