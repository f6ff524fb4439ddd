//! What the program is made of: a bill of materials in the form of `CycloneDX` 1.5, from cargo's own resolution.
//!
//! Only what is linked into the program is in it: neither what builds it nor what tests it. The same sources give the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use clap::Args;
use serde_json::{Value, json};

use crate::run::{Error, ask, cargo, root};

#[derive(Args, Debug)]
pub struct SbomArgs {
    /// Where to write it [default: target/agent.cdx.json]
    #[arg(short, long)]
    output: Option<PathBuf>,
}

pub fn sbom(args: &SbomArgs) -> Result<(), Error> {
    let path = args.output.clone().unwrap_or_else(|| root().join("target/agent.cdx.json"));
    fs::write(&path, document()?).map_err(|error| Error::Io { path, error })
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The whole document.
pub fn document() -> Result<Vec<u8>, Error> {
    let missing = |what: &str| Error::Missing { what: what.into(), so: "cargo metadata did not say it".into() };
    let metadata = metadata().ok_or_else(|| missing("the packages"))?;
    let lock = fs::read_to_string(root().join("Cargo.lock")).map_err(|error| Error::io("Cargo.lock", error))?;
    let document = bill(&metadata, &checksums(&lock)).ok_or_else(|| missing("the package agent"))?;
    let mut bytes = serde_json::to_vec_pretty(&document).map_err(|error| Error::io("sbom", error.into()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn metadata() -> Option<Value> {
    let mut command: Command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TRIPLE]);
    serde_json::from_str(&ask(&mut command)?).ok()
}

/// SHA-256 of what a registry delivered, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]");
    let of = |block| Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?));
    blocks.filter_map(of).collect()
}

/// Packages that are linked with a package, by their ids.
fn graph(metadata: &Value) -> BTreeMap<&str, Vec<&str>> {
    metadata.pointer("/resolve/nodes").and_then(Value::as_array).into_iter().flatten().filter_map(linked).collect()
}

fn linked(node: &Value) -> Option<(&str, Vec<&str>)> {
    let is_linked = |dependency: &&Value| {
        let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
        kinds.any(|kind| kind["kind"].is_null())
    };
    let dependencies = node["deps"].as_array()?.iter().filter(is_linked);
    Some((node["id"].as_str()?, dependencies.filter_map(|dependency| dependency["pkg"].as_str()).collect()))
}

fn bill(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Option<Value> {
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let graph = graph(metadata);
    let own = packages.iter().find(|(_, package)| package["name"] == "agent").map(|(id, _)| *id)?;
    let (mut reached, mut left) = (BTreeSet::from([own]), vec![own]);
    while let Some(id) = left.pop() {
        for next in graph.get(id).into_iter().flatten() {
            if reached.insert(next) {
                left.push(next);
            }
        }
    }
    let purl = |id: &str| {
        packages.get(id).map(|package| format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version")))
    };
    let component = |id: &&str| {
        let package = packages.get(id)?;
        // Cargo's older way to say "or" is a slash.
        let licence = package["license"].as_str().map(|licence| {
            let alternatives: Vec<&str> = licence.split('/').map(str::trim).collect();
            json!([{ "expression": alternatives.join(" OR ") }])
        });
        let checksum = checksums.get(&(text(package, "name"), text(package, "version")));
        Some(json!({
            "type": if *id == own { "application" } else { "library" },
            "bom-ref": purl(id)?,
            "name": text(package, "name"),
            "version": text(package, "version"),
            "purl": purl(id)?,
            "licenses": licence.unwrap_or_else(|| json!([])),
            "hashes": checksum.map_or_else(|| json!([]), |of| json!([{ "alg": "SHA-256", "content": of }])),
        }))
    };
    let dependencies = reached.iter().filter_map(|id| {
        let on: BTreeSet<_> = graph.get(id)?.iter().filter_map(|id| purl(id)).collect();
        Some(json!({ "ref": purl(id)?, "dependsOn": on }))
    });
    Some(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": component(&own)? },
        "components": reached.iter().filter(|id| **id != own).filter_map(component).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_linked_is_listed_with_its_licence_and_its_checksum() {
        let document: Value = serde_json::from_slice(&document().unwrap()).unwrap();
        let components = document["components"].as_array().unwrap();
        let refs: BTreeSet<&str> = components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(refs.len(), components.len());
        for name in ["aya", "tokio", "serde_json"] {
            assert!(components.iter().any(|component| component["name"] == name), "{name}");
        }
        // What only tests or builds need is not in the program.
        for name in ["proptest", "insta", "jsonschema"] {
            assert!(!components.iter().any(|component| component["name"] == name), "{name}");
        }
        for component in components {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            assert!(component["name"] == "agent-ebpf" || component["hashes"][0]["content"].is_string(), "{component}");
        }
        for dependency in document["dependencies"].as_array().unwrap() {
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(on.as_str().unwrap()), "{dependency}");
            }
        }
    }
}
