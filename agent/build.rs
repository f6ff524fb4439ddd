//! Finds the BPF object that `cargo xtask build` has made, so that the binary can carry it.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=AGENT_BPF_OBJECT");
    let object = env::var_os("AGENT_BPF_OBJECT").map_or_else(
        || {
            let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
            manifest.join("../target/bpf/agent-ebpf.o")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=AGENT_BPF_OBJECT={}", object.display()),
        Err(error) => println!(
            "cargo::error=the BPF object {} is not there ({error}): run `cargo xtask build`, or name one in AGENT_BPF_OBJECT",
            object.display()
        ),
    }
}
