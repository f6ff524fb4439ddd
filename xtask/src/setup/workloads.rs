//! What the workloads of the stories need: packages of pinned versions, and an addon that is built against one of them.

use std::{fs, path::PathBuf, process::Command};

use super::quietly;
use crate::run::{Error, cache, root, run, say};

/// The list of packages and its lock file, which has their checksums.
const LISTS: [&str; 2] = ["package.json", "package-lock.json"];

fn directory() -> PathBuf {
    cache().join("workloads")
}

fn sources() -> PathBuf {
    root().join("scripts/workloads")
}

/// Installs the packages, unless these very ones are there: `.cache/workloads/node_modules`.
pub fn packages() -> Result<(), Error> {
    let io = |path: &PathBuf| {
        let path = path.clone();
        move |error| Error::Io { path, error }
    };
    let directory = directory();
    fs::create_dir_all(&directory).map_err(io(&directory))?;
    let mut is_same = directory.join("node_modules/.package-lock.json").is_file();
    for list in LISTS {
        let (from, to) = (sources().join("modules").join(list), directory.join(list));
        let wanted = fs::read(&from).map_err(io(&from))?;
        if fs::read(&to).ok().as_ref() != Some(&wanted) {
            is_same = false;
            fs::write(&to, wanted).map_err(io(&to))?;
        }
    }
    if is_same {
        return Ok(());
    }
    say("packages of the workloads");
    let flags = ["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
    quietly(Command::new("npm").args(flags).current_dir(&directory))
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
