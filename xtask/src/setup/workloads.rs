//! What the workloads of the stories need: packages of pinned versions, and an addon that is built against one of them.

use std::{fs, path::PathBuf, process::Command};

use super::npm;
use crate::run::{Error, cache, root, run, say};

fn directory() -> PathBuf {
    cache().join("workloads")
}

fn sources() -> PathBuf {
    root().join("scripts/workloads")
}

/// Installs the packages, unless these very ones are there: `.cache/workloads/node_modules`.
pub fn packages() -> Result<(), Error> {
    npm::install("packages of the workloads", &sources().join("modules"), &directory())
}

/// Builds the addon of the first story: `.cache/workloads/story-handles.node`. With frame pointers, as node-gyp builds them.
pub fn addon() -> Result<(), Error> {
    let source = sources().join("story-handles.c");
    let addon = directory().join("story-handles.node");
    let date = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if date(&addon).is_some_and(|built| date(&source).is_some_and(|written| written < built)) {
        return Ok(());
    }
    say("the addon of the first story");
    let include = directory().join("node_modules/node-api-headers/include");
    run(Command::new("gcc")
        .args(["-O3", "-fno-omit-frame-pointer", "-shared", "-fPIC", "-Wall", "-Wextra", "-I"])
        .arg(include)
        .arg("-o")
        .arg(addon)
        .arg(source))
}
