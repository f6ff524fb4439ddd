//! The agent on kernels other than this machine's: Debian's, booted in qemu.
//!
//! The guest sees the host's files, read-only, and runs `scripts/kernel-guest`, which traces a Node.js of the cache. Without hardware
//! to help, all of it is emulated: what works can be told there, how long it takes cannot.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::{Args, ValueEnum};

use crate::{
    build::{self, Profile},
    run::{Error, cache, root, run, say, which},
    setup::apt,
};

#[derive(Args, Debug)]
pub struct KernelArgs {
    /// Which kernels [default: all]
    #[arg(value_enum)]
    series: Vec<Series>,
}

/// A line of kernels that Debian 12 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Series {
    /// What Debian 12 runs
    #[value(name = "6.1")]
    V6_1,
    /// What it offers as an update
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// The package that depends on the newest kernel of the line.
    fn meta_package(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-amd64",
            Self::V6_12 => "linux-image-6.12-amd64",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// What the guest needs to see the host's files, in the order in which it is loaded.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &[
                "virtio_ring",
                "virtio",
                "virtio_pci_legacy_dev",
                "virtio_pci_modern_dev",
                "virtio_pci",
                "netfs",
                "fscache",
                "9pnet",
                "9pnet_virtio",
                "9p",
            ],
            Self::V6_12 => &["netfs", "9pnet", "9pnet_virtio", "9p"],
        }
    }
}

pub fn kernel(args: &KernelArgs) -> Result<(), Error> {
    build::build(Profile::Release)?;
    install()?;
    let all = [Series::V6_1, Series::V6_12];
    let series = if args.series.is_empty() { all.as_slice() } else { &args.series };
    let mut tally = Tally::default();
    for series in series {
        let image = fetch(*series)?;
        tally.add(boot(*series, &image)?);
    }
    eprintln!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || tally.passed == 0 {
        return Err(Error::Failed { command: "scripts/kernel-guest".into(), code: Some(1) });
    }
    Ok(())
}

fn install() -> Result<(), Error> {
    let wanted = [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio")];
    let mut packages: Vec<&str> =
        wanted.into_iter().filter(|(command, _)| which(command).is_none()).map(|(_, package)| package).collect();
    if !Path::new(BUSYBOX).is_file() || which("busybox").is_none() {
        packages.push("busybox-static");
    }
    apt::install(&packages)
}

const BUSYBOX: &str = "/bin/busybox";

/// A kernel, and what it boots into.
struct Image {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Gets the newest kernel of a line, and keeps of it what a guest needs.
fn fetch(series: Series) -> Result<Image, Error> {
    let place = cache().join("kernels").join(series.name());
    let image = Image { kernel: place.join("vmlinuz"), initrd: place.join("initrd.gz") };
    let io = |error| Error::Io { path: place.clone(), error };
    if !image.kernel.is_file() {
        let package = newest(series)?;
        say(&format!("kernel {package}"));
        let unpacked = place.join("unpacked");
        fs::create_dir_all(&unpacked).map_err(io)?;
        apt::unpack(&[&package], &unpacked)?;
        let modules = place.join("modules");
        fs::create_dir_all(&modules).map_err(io)?;
        for module in series.modules() {
            let found = find(&unpacked.join("lib/modules"), &format!("{module}.ko"));
            let found = found.ok_or_else(|| missing(&format!("module {module} of {package}")))?;
            let name = found.file_name().map(PathBuf::from).unwrap_or_default();
            fs::copy(&found, modules.join(&name)).map_err(io)?;
            if name.extension().is_some_and(|ending| ending == "xz") {
                run(Command::new("xz").arg("--decompress").arg("--force").arg(modules.join(&name)))?;
            }
        }
        let kernel =
            find(&unpacked.join("boot"), "vmlinuz-").ok_or_else(|| missing(&format!("vmlinuz of {package}")))?;
        fs::copy(kernel, &image.kernel).map_err(io)?;
        fs::remove_dir_all(&unpacked).map_err(io)?;
    }
    pack(series, &place, &image.initrd)?;
    Ok(image)
}

fn missing(what: &str) -> Error {
    Error::Missing { what: what.to_owned(), so: "the package is not what it used to be".into() }
}

fn newest(series: Series) -> Result<String, Error> {
    let meta = series.meta_package();
    apt::update()?;
    let output = Command::new("apt-cache").args(["depends", "--important", meta]).output();
    let output = output.map_err(|error| Error::NotStarted { command: "apt-cache".into(), error })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    package.map(str::to_owned).ok_or_else(|| missing(&format!("the newest {meta}")))
}

/// The first file below a directory whose name begins like this.
fn find(below: &Path, head: &str) -> Option<PathBuf> {
    let mut left = vec![below.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if entry.file_name().to_string_lossy().starts_with(head) {
                return Some(path);
            }
        }
    }
    None
}

/// Makes the guest's first root: it loads the modules and changes over to the host's files.
fn pack(series: Series, place: &Path, initrd: &Path) -> Result<(), Error> {
    let io = |error| Error::Io { path: place.to_path_buf(), error };
    let tree = place.join("root");
    for directory in ["bin", "modules", "host", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(directory)).map_err(io)?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox")).map_err(io)?;
    for module in series.modules() {
        let file = format!("{module}.ko");
        fs::copy(place.join("modules").join(&file), tree.join("modules").join(&file)).map_err(io)?;
    }
    let init = tree.join("init");
    fs::write(&init, init_script(series)).map_err(io)?;
    run(Command::new("chmod").arg("755").arg(&init))?;
    let command = format!("find . | cpio --create --format=newc --quiet | gzip >'{}'", initrd.display());
    run(Command::new("sh").args(["-c", &command]).current_dir(&tree))
}

fn init_script(series: Series) -> String {
    let modules = series.modules().join(" ");
    format!(
        "#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in {modules}; do $B insmod /modules/$module.ko; done
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
$B mount -t tmpfs tmp /host/tmp
for place in proc sys dev; do $B mount --move /$place /host/$place; done
exec $B switch_root /host /bin/bash '{}'
",
        root().join("scripts/kernel-guest").display()
    )
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the guest to its end, and counts what it says.
fn boot(series: Series, image: &Image) -> Result<Tally, Error> {
    say(&format!("booting Linux {} in qemu", series.name()));
    // A guest that hangs ends with its time.
    let mut guest = Command::new("timeout");
    guest.args(["300", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", "2"]);
    guest.args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "mon:stdio"]);
    guest.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    guest.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    guest.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    guest.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    let not_started = |error| Error::NotStarted { command: "qemu-system-x86_64".into(), error };
    let mut child = guest.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(not_started)?;
    let mut tally = Tally::default();
    let mut done = false;
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(|out| out.split(b'\n')).flatten() {
        let line = String::from_utf8_lossy(&line);
        // Whatever the firmware printed before it stands on the same line.
        let Some(at) = ["PASS ", "FAIL ", "SAY ", "DONE"].into_iter().find_map(|word| line.find(word)) else {
            continue;
        };
        let line = line.get(at..).unwrap_or_default().trim_end();
        tally.passed += u32::from(line.starts_with("PASS "));
        tally.failed += u32::from(line.starts_with("FAIL "));
        done |= line == "DONE";
        eprintln!("    {} {line}", series.name());
    }
    child.wait().map_err(not_started)?;
    if !done {
        eprintln!("    {} FAIL the guest did not come to its end", series.name());
        tally.failed += 1;
    }
    Ok(tally)
}
