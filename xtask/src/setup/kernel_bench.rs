//! The kernel's own benchmark of ring buffers, built from its sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{apt, quietly};
use crate::run::{Error, cache, run, say, which};

/// The newest sources that Debian 12 has.
const SOURCES: &str = "linux-source-6.12";

/// The oldest clang that builds all of them.
const CLANG: &str = "19";

/// What of the sources is needed.
const PARTS: [&str; 5] = ["tools/*", "scripts/*", "include/uapi/*", "kernel/bpf/*", "Makefile"];

/// It hangs its producer on a system call by `fentry`, which kernels that are locked down refuse: a tracepoint does as well, as it is hit
/// once for some hundred records.
const REFUSED: &str = r#"SEC("fentry/" SYS_PREFIX "sys_getpgid")"#;
const TAKEN: &str = r#"SEC("tracepoint/syscalls/sys_enter_getpgid")"#;

/// Builds it unless it is there; the program.
pub fn build() -> Result<PathBuf, Error> {
    let place = cache().join("kernel-bench");
    let program = place.join("bench");
    if program.is_file() {
        return Ok(program);
    }
    let (clang, llvm) = (format!("clang-{CLANG}"), format!("llvm-{CLANG}"));
    let wanted =
        [(clang.as_str(), clang.as_str()), (&format!("llc-{CLANG}"), &llvm), ("xz", "xz-utils"), ("make", "make")];
    let mut packages: Vec<&str> =
        wanted.into_iter().filter(|(command, _)| which(command).is_none()).map(|(_, package)| package).collect();
    let headers = [("libelf.h", "libelf-dev"), ("zlib.h", "zlib1g-dev")];
    let is_missing = |header: &str| !Path::new("/usr/include").join(header).is_file();
    packages.extend(headers.into_iter().filter(|(header, _)| is_missing(header)).map(|(_, package)| package));
    apt::install(&packages)?;
    say("the kernel's benchmark of ring buffers");
    let io = |error| Error::Io { path: place.clone(), error };
    fs::create_dir_all(&place).map_err(io)?;
    apt::unpack(&[SOURCES], &place)?;
    let archive = place.join(format!("usr/src/{SOURCES}.tar.xz"));
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&place);
    unpack.args(["--strip-components=1", "--wildcards"]).args(PARTS.map(|part| format!("{SOURCES}/{part}")));
    run(&mut unpack)?;
    let selftests = place.join("tools/testing/selftests/bpf");
    let producer = selftests.join("progs/ringbuf_bench.c");
    let text = fs::read_to_string(&producer).map_err(io)?;
    fs::write(&producer, text.replace(REFUSED, TAKEN)).map_err(io)?;
    let output = place.join("output");
    fs::create_dir_all(&output).map_err(io)?;
    let mut make = Command::new("make");
    make.arg("--directory").arg(&selftests).arg(format!("OUTPUT={}", output.display()));
    // Newer kernels' types have prototypes that this one's sources have, too.
    make.arg(format!("CLANG={clang} -DBPF_NO_KFUNC_PROTOTYPES")).arg("VMLINUX_BTF=/sys/kernel/btf/vmlinux");
    for tool in ["llc", "llvm-strip", "llvm-objcopy"] {
        make.arg(format!("{}={tool}-{CLANG}", tool.to_uppercase().replace('-', "_")));
    }
    quietly(make.arg(output.join("bench")))?;
    fs::rename(output.join("bench"), &program).map_err(io)?;
    for rest in ["usr", "tools", "scripts", "include", "kernel", "output"] {
        fs::remove_dir_all(place.join(rest)).map_err(io)?;
    }
    Ok(program)
}
