//! Packages of the npm registry, of the versions that a lock file says.

use std::{fs, path::Path, process::Command};

use super::quietly;
use crate::run::{Error, say};

/// The list of packages and its lock file, which has their checksums.
const LISTS: [&str; 2] = ["package.json", "package-lock.json"];

/// Installs into a directory what the lists in another say, unless these very packages are there.
pub fn install(what: &str, lists: &Path, into: &Path) -> Result<(), Error> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Error::Io { path, error }
    };
    fs::create_dir_all(into).map_err(io(into))?;
    // npm writes this last.
    let mut is_same = into.join("node_modules/.package-lock.json").is_file();
    for list in LISTS {
        let (from, to) = (lists.join(list), into.join(list));
        let wanted = fs::read(&from).map_err(io(&from))?;
        if fs::read(&to).ok().as_ref() != Some(&wanted) {
            is_same = false;
            fs::write(&to, wanted).map_err(io(&to))?;
        }
    }
    if is_same {
        return Ok(());
    }
    say(what);
    // No package runs a program of its own here.
    let flags = ["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
    quietly(Command::new("npm").args(flags).current_dir(into))
}

/// Whether packages are in a directory, of whatever version.
pub fn is_there(directory: &Path) -> bool {
    directory.join("node_modules/.package-lock.json").is_file()
}
