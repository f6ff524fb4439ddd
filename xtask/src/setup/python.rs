//! Packages of the Python package index, of the versions that a list says, in an environment of their own: `.cache/python`.

use std::{fs, path::Path, process::Command};

use super::quietly;
use crate::run::{Error, cache, say};

/// Installs what the list names, each with its version, unless these very packages are there.
pub fn install(what: &str, list: &Path) -> Result<(), Error> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Error::Io { path, error }
    };
    let environment = cache().join("python");
    let installed = environment.join("requirements.txt");
    let wanted = fs::read(list).map_err(io(list))?;
    if fs::read(&installed).ok().as_ref() == Some(&wanted) {
        return Ok(());
    }
    say(what);
    quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let flags = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
    quietly(Command::new(environment.join("bin/python")).args(flags).arg("--requirement").arg(list))?;
    // Last: what an interrupted run left is made anew.
    fs::write(&installed, wanted).map_err(io(&installed))
}
