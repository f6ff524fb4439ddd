//! Who a process is, for a collector: attributes of OpenTelemetry's resources, from what can be read on this host.
//!
//! What is measured goes before what a process declares of itself, and that before what is only guessed. Whoever knows more of the
//! container, Kubernetes for one, adds it.

use std::collections::BTreeMap;

use super::{
    container::{self, Container},
    declared::{self, SERVICE_NAME},
    package::{self, Package},
    procfs::Process,
};
use crate::{limits::ATTRIBUTE_CHARS_MAX, printable::printable};

/// Attributes by their names in OpenTelemetry's conventions.
pub type Attributes = BTreeMap<String, String>;

/// What runs a process's code, if that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Engine {
    /// As `process.runtime.name` has it.
    pub name: &'static str,
    pub description: &'static str,
    pub version: Option<String>,
}

impl Engine {
    #[must_use]
    pub fn node(version: Option<String>) -> Self {
        Self { name: "nodejs", description: "Node.js", version }
    }
}

/// What is known of a process without asking anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub container: Option<Container>,
    measured: Attributes,
    declared: Attributes,
    package: Option<Package>,
    executable: String,
}

impl Identity {
    /// What cannot be read is left out. The script is as on the command line.
    #[must_use]
    pub fn read(process: &Process, engine: Option<&Engine>, script: Option<&str>) -> Self {
        let pid = process.pid;
        let container = container::of_process(pid).ok().flatten();
        let mut measured = Attributes::new();
        let mut put = |key: &str, value: Option<String>| measured.extend(value.map(|value| (key.to_owned(), value)));
        let executable = process.exe.file_name().map(|name| clean(&name.to_string_lossy())).unwrap_or_default();
        put("process.pid", Some(pid.to_string()));
        put("process.creation.time", process.started().map(|at| at.to_string()));
        put("process.executable.name", Some(executable.clone()));
        put("process.executable.path", Some(clean(&process.exe.display().to_string())));
        if let Some(Engine { name, description, version }) = engine {
            put("process.runtime.name", Some((*name).to_owned()));
            put("process.runtime.description", Some((*description).to_owned()));
            put("process.runtime.version", version.clone());
        }
        if let Some(Container { id, runtime, pod_uid }) = &container {
            put("container.id", Some(id.clone()));
            put("container.runtime.name", runtime.map(|runtime| runtime.name().to_owned()));
            put("k8s.pod.uid", pod_uid.clone());
        }
        let declared = declared::of_process(pid).unwrap_or_default();
        // Only where nobody has said it: it takes a look at the process's files.
        let is_named = declared.contains_key(SERVICE_NAME);
        let package = script.filter(|_| !is_named).and_then(|script| package::of_script(pid, script));
        Self { container, measured, declared, package, executable }
    }

    /// All attributes, together with those that Kubernetes has of the container.
    #[must_use]
    pub fn resource(&self, cluster: &Attributes) -> Attributes {
        let mut all = Attributes::new();
        if let Some(Package { name, version }) = &self.package {
            all.insert(SERVICE_NAME.to_owned(), name.clone());
            // Of another thing than a name from elsewhere it would not be the version.
            if !cluster.contains_key(SERVICE_NAME) {
                all.extend(version.iter().map(|version| ("service.version".to_owned(), version.clone())));
            }
        }
        let of_cluster = |(key, _): &(&String, &String)| key.starts_with("k8s.") || key.starts_with("container.");
        let copy = |(key, value): (&String, &String)| (key.clone(), value.clone());
        all.extend(cluster.iter().map(copy));
        all.extend(self.declared.iter().map(copy));
        // The cluster knows better than a process in what pod it is.
        all.extend(cluster.iter().filter(of_cluster).map(copy));
        all.extend(self.measured.iter().map(copy));
        all.entry(SERVICE_NAME.to_owned()).or_insert_with(|| format!("unknown_service:{}", self.executable));
        all
    }
}

/// A name that someone else chose, fit to be shown.
fn clean(text: &str) -> String {
    printable(text).chars().take(ATTRIBUTE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn identity(declared: &[(&str, &str)], package: Option<&str>) -> Identity {
        Identity {
            measured: attributes(&[("process.pid", "7"), ("container.id", "abc")]),
            declared: attributes(declared),
            package: package.map(|name| Package { name: name.into(), version: Some("1.0.0".into()) }),
            executable: "node".into(),
            container: None,
        }
    }

    fn service(identity: &Identity, cluster: &[(&str, &str)]) -> (String, Option<String>) {
        let mut all = identity.resource(&attributes(cluster));
        (all.remove(SERVICE_NAME).unwrap_or_default(), all.remove("service.version"))
    }

    #[test]
    fn a_service_is_named_by_whoever_knows_best() {
        let own = [("service.name", "own")];
        let cluster = [("service.name", "deployment")];
        let said = |name: &str, version: Option<&str>| (name.to_owned(), version.map(str::to_owned));
        assert_eq!(service(&identity(&own, None), &cluster), said("own", None));
        assert_eq!(service(&identity(&[], Some("package")), &cluster), said("deployment", None));
        assert_eq!(service(&identity(&[], Some("package")), &[]), said("package", Some("1.0.0")));
        assert_eq!(service(&identity(&[], None), &[]), said("unknown_service:node", None));
    }

    #[test]
    fn a_process_declares_nothing_away_that_is_measured() {
        let lies = [("container.id", "x"), ("process.pid", "1"), ("k8s.pod.name", "other"), ("team", "a")];
        let all = identity(&lies, None).resource(&attributes(&[("k8s.pod.name", "real"), ("team", "b")]));
        let expected = [
            ("container.id", "abc"),
            ("k8s.pod.name", "real"),
            ("process.pid", "7"),
            ("service.name", "unknown_service:node"),
            ("team", "a"),
        ];
        assert_eq!(all, attributes(&expected));
        // Where no cluster is asked, the pod's own word is all there is.
        assert_eq!(
            identity(&lies, None).resource(&Attributes::new()).get("k8s.pod.name").map(String::as_str),
            Some("other")
        );
    }

    #[test]
    fn names_of_files_are_fit_to_be_shown() {
        assert_eq!(clean("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(clean(&"x".repeat(9999)).len(), ATTRIBUTE_CHARS_MAX);
    }
}
