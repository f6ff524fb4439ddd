//! The manifests that are shipped: what kustomize makes of them Kubernetes takes, and it is no more privileged than is said.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod manifests;

use std::{fs, io::Write};

use manifests::{OVERLAYS, one, render, repository, run_python};
use serde_json::{Value, json};

/// The oldest Kubernetes that knows all fields, and the newest with published schemas.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

const VALIDATE: &str = "
import json, sys, kubernetes_validate
for document in json.load(sys.stdin):
    for version in sys.argv[1:]:
        kubernetes_validate.validate(document, version, strict=True)
";

fn is_ready() -> bool {
    let Some(missing) = manifests::missing() else { return true };
    // Past the test runner's capture.
    let _ = writeln!(std::io::stderr(), "SKIPPED manifests: needs {missing}");
    assert!(std::env::var_os("CI").is_none(), "nothing is skipped on CI: {missing}");
    false
}

/// What is wrong with them, if anything.
fn complaint(manifests: &[Value]) -> Option<String> {
    let output = run_python(VALIDATE, &KUBERNETES, &serde_json::to_vec(manifests).unwrap());
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn container(manifests: &[Value]) -> &Value {
    let pod = &one(manifests, "DaemonSet")["spec"]["template"]["spec"];
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    &containers[0]
}

#[test]
fn kubernetes_takes_every_manifest() {
    if !is_ready() {
        return;
    }
    let mut all = Vec::new();
    for overlay in OVERLAYS {
        let manifests = render(overlay);
        let mut kinds: Vec<_> = manifests.iter().map(|manifest| manifest["kind"].as_str().unwrap()).collect();
        kinds.sort_unstable();
        assert_eq!(
            kinds,
            ["ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Namespace", "ServiceAccount"]
        );
        all.extend(manifests);
    }
    assert_eq!(complaint(&all), None);
    assert_eq!(render(""), render("least-privilege"), "what `kubectl apply -k scripts/deploy` applies");
}

#[test]
fn a_misspelt_field_would_be_noticed() {
    if !is_ready() {
        return;
    }
    let manifests = render("least-privilege");
    for (at, key, value) in [
        ("/spec/template/spec", "hostPid", json!(true)),
        ("/spec/template/spec/containers/0/securityContext", "readOnlyRootFileSystem", json!(true)),
        ("/spec/template/spec/containers/0/resources/limits", "memory", json!(["512Mi"])),
    ] {
        let mut bad = vec![one(&manifests, "DaemonSet").clone()];
        bad[0].pointer_mut(at).unwrap()[key] = value;
        assert!(complaint(&bad).is_some(), "{at}/{key} was not noticed");
    }
}

#[test]
fn privileges_are_what_each_overlay_says() {
    if !is_ready() {
        return;
    }
    let least = render("least-privilege");
    let context = &container(&least)["securityContext"];
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    let added = json!(["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH", "SYSLOG"]);
    assert_eq!(context["capabilities"]["add"], added);

    let admin = render("sys-admin");
    let mut also = container(&least).clone();
    also["securityContext"]["capabilities"]["add"].as_array_mut().unwrap().push(json!("SYS_ADMIN"));
    also["securityContext"]["allowPrivilegeEscalation"] = json!(true);
    assert_eq!(container(&admin), &also);

    let privileged = render("privileged");
    let context = &container(&privileged)["securityContext"];
    assert_eq!((&context["privileged"], &context["readOnlyRootFilesystem"]), (&json!(true), &json!(true)));

    for manifests in [&least, &admin, &privileged] {
        let pod = &one(manifests, "DaemonSet")["spec"]["template"]["spec"];
        assert_eq!(pod["hostPID"], true);
        for not_needed in ["hostNetwork", "hostIPC"] {
            assert_eq!(pod[not_needed], Value::Null, "{not_needed}");
        }
        let host_paths: Vec<_> = pod["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|volume| volume["hostPath"]["path"].as_str())
            .collect();
        assert_eq!(host_paths, ["/sys/kernel/tracing"]);
        let rules = &one(manifests, "ClusterRole")["rules"];
        for rule in rules.as_array().unwrap() {
            for verb in rule["verbs"].as_array().unwrap() {
                assert!(["get", "list", "watch"].contains(&verb.as_str().unwrap()), "{rule}");
            }
            assert_eq!(rule["resources"].as_array().unwrap().len(), 1);
            assert!(["pods", "replicasets", "jobs"].contains(&rule["resources"][0].as_str().unwrap()), "{rule}");
        }
    }
}

#[test]
fn the_configuration_is_in_a_map_whose_name_changes_with_it() {
    if !is_ready() {
        return;
    }
    let manifests = render("least-privilege");
    let map = one(&manifests, "ConfigMap");
    let shipped = fs::read_to_string(repository().join("scripts/deploy/base/agent.toml")).unwrap();
    assert_eq!(map["data"]["agent.toml"], shipped);
    let path = repository().join("scripts/deploy/base/agent.toml");
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_agent"));
    let output = check.args(["daemon", "--check-config", "--config"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let name = map["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("agent-"), "{name}");
    let volumes = one(&manifests, "DaemonSet")["spec"]["template"]["spec"]["volumes"].as_array().unwrap().clone();
    assert!(volumes.iter().any(|volume| volume["configMap"]["name"] == name));
}
