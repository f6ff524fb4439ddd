//! The manifests under `scripts/deploy`, as the real kustomize makes them.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// The ways to deploy.
pub const OVERLAYS: [&str; 3] = ["least-privilege", "sys-admin", "privileged"];

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// With YAML and the schemas of Kubernetes.
pub fn python() -> PathBuf {
    repository().join(".cache/python/bin/python")
}

/// What these tests need and is not there.
pub fn missing() -> Option<&'static str> {
    let has_kustomize = Command::new("kubectl").arg("help").output().is_ok_and(|output| output.status.success());
    match (has_kustomize, python().exists()) {
        (false, _) => Some("kubectl, for its kustomize"),
        (_, false) => Some(".cache/python (cargo xtask setup)"),
        (true, true) => None,
    }
}

/// What would be applied, of the directory below `scripts/deploy`.
pub fn render(directory: &str) -> Vec<Value> {
    let path = repository().join("scripts/deploy").join(directory);
    let yaml = Command::new("kubectl").arg("kustomize").arg(&path).output().unwrap();
    assert!(yaml.status.success(), "{directory}: {}", String::from_utf8_lossy(&yaml.stderr));
    let json = run_python(
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)",
        &[],
        &yaml.stdout,
    );
    serde_json::from_slice(&json.stdout).unwrap()
}

/// The one of a kind.
pub fn one<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let mut found = manifests.iter().filter(|manifest| manifest["kind"] == kind);
    let manifest = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    manifest
}

pub fn run_python(script: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(python())
        .args(["-c", script])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}
