//! Builds the BPF object, then the program that carries it.

use std::{fs, path::PathBuf};

use crate::{
    run::{Error, root, run, say},
    toolchain::{BPF_TARGET, BpfCompiler, bpf_linker, host_cargo},
};

#[derive(Clone, Copy, Debug)]
pub enum Profile {
    Dev,
    Release,
}

pub fn build(profile: Profile) -> Result<(), Error> {
    object()?;
    say("agent");
    let mut cargo = host_cargo(&["build", "--package", "agent"]);
    match profile {
        Profile::Dev => {}
        Profile::Release => {
            cargo.arg("--release");
        }
    }
    run(&mut cargo)
}

/// Builds the BPF object, and puts it where the program's build script looks for it.
pub fn object() -> Result<PathBuf, Error> {
    let setup = || "run `scripts/setup`".to_owned();
    let compiler =
        BpfCompiler::find().ok_or_else(|| Error::Missing { what: "a compiler for BPF".into(), so: setup() })?;
    if bpf_linker().is_none() {
        return Err(Error::Missing { what: "bpf-linker".into(), so: setup() });
    }
    say("BPF object");
    let directory = root().join("target/bpf");
    let mut cargo = compiler.cargo()?;
    cargo.args(["--profile", "bpf", "--package", "agent-ebpf", "--features", "kernel", "--bin", "agent-ebpf"]);
    cargo.arg("--target-dir").arg(&directory);
    run(&mut cargo)?;

    let built = directory.join(BPF_TARGET).join("bpf/agent-ebpf");
    let object = directory.join("agent-ebpf.o");
    let read = |path: &PathBuf| fs::read(path).map_err(|error| Error::Io { path: path.clone(), error });
    let bytes = read(&built)?;
    // An object that did not change keeps its date: else the program would be built again each time.
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(object);
    }
    fs::write(&object, bytes).map_err(|error| Error::Io { path: object.clone(), error })?;
    Ok(object)
}
