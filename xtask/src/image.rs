//! The container image: the program without shared libraries, and nothing else but the list of what it is made of.

use std::{fs, path::Path, process::Command};

use clap::Args;

use crate::{
    build,
    run::{Error, ask, line_of, root, run, say, which},
    sbom,
    toolchain::host_cargo,
};

#[derive(Args, Debug)]
pub struct ImageArgs {
    /// The image's name [default: localhost/agent with the version]
    #[arg(long)]
    tag: Option<String>,
    /// Write it to this file, too, as an OCI archive
    #[arg(long)]
    archive: Option<std::path::PathBuf>,
}

/// What can build an image from the file.
const BUILDERS: [&str; 2] = ["podman", "docker"];

pub fn image(args: &ImageArgs) -> Result<(), Error> {
    let context = root().join("target/image");
    let program = stage(&context)?;
    let Some(builder) = BUILDERS.into_iter().find(|builder| which(builder).is_some()) else {
        return Err(Error::Missing {
            what: "podman or docker".into(),
            so: format!("what belongs into the image is in {}", context.display()),
        });
    };
    let tag = args.tag.clone().unwrap_or_else(|| format!("localhost/agent:{}", env!("CARGO_PKG_VERSION")));
    say(&format!("image {tag}"));
    let mut command = Command::new(builder);
    command.arg("build");
    if builder == "podman" {
        // Nothing is run in it, so that it needs no rights.
        command.args(["--isolation", "chroot"]);
    }
    command.args(["--tag", &tag, "--file"]).arg(root().join("scripts/image/Containerfile")).arg(&context);
    run(&mut command)?;
    if let Some(archive) = &args.archive {
        let format: &[&str] = if builder == "podman" { &["--format", "oci-archive"] } else { &[] };
        run(Command::new(builder).arg("save").args(format).arg("--output").arg(archive).arg(&tag))?;
    }
    let bytes = fs::metadata(&program).map_or(0, |metadata| metadata.len());
    say(&format!("{tag}: {} MiB", bytes >> 20));
    Ok(())
}

/// Builds the program, and lays out the image's files below a directory.
fn stage(context: &Path) -> Result<std::path::PathBuf, Error> {
    build::object()?;
    say("agent, without shared libraries");
    // Only linked in another way: its parts are those of any release build.
    let mut cargo = host_cargo(&["rustc", "--release", "--package", "agent", "--bin", "agent", "--"]);
    run(cargo.args(["-C", "target-feature=+crt-static", "-C", "strip=debuginfo"]))?;
    let built = root().join("target/release/agent");
    no_libraries(&built)?;
    let rootfs = context.join("rootfs");
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Error::Io { path, error }
    };
    if rootfs.exists() {
        fs::remove_dir_all(&rootfs).map_err(io(&rootfs))?;
    }
    let program = rootfs.join("usr/bin/agent");
    let list = rootfs.join("usr/share/agent/sbom.cdx.json");
    for file in [&program, &list] {
        let directory = file.parent().unwrap_or(&rootfs);
        fs::create_dir_all(directory).map_err(io(directory))?;
    }
    fs::copy(&built, &program).map_err(io(&program))?;
    fs::write(&list, sbom::document()?).map_err(io(&list))?;
    // Mount points, as the root directory is read-only.
    for directory in ["etc/agent", "var/lib/agent", "proc", "sys", "dev", "tmp"] {
        let directory = rootfs.join(directory);
        fs::create_dir_all(&directory).map_err(io(&directory))?;
    }
    Ok(program)
}

/// In an empty image there is no loader.
fn no_libraries(program: &Path) -> Result<(), Error> {
    let mut command = Command::new("readelf");
    command.arg("--dynamic").arg("--wide").arg(program);
    match ask(&mut command) {
        Some(dynamic) if dynamic.contains("(NEEDED)") => Err(Error::Missing {
            what: "a program without shared libraries".into(),
            so: format!("{} says that {} needs some", line_of(&command), program.display()),
        }),
        _ => Ok(()),
    }
}
