//! The tests against the kernel on kernels other than this machine's: Debian's, booted in qemu.
//!
//! The guest sees the host's files, read-only, and runs by `scripts/kernel-guest` the very program of tests that was built here. All
//! of it is emulated, and its time is that of its instructions: a test sees a machine with one CPU of 10⁹ instructions a second, however
//! long that takes and whoever else wants this machine's CPUs.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use clap::ValueEnum;

use crate::{
    run::{Error, cache, root, run, say, which},
    setup::apt,
};

/// A line of kernels that Debian 12 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Series {
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

    /// What the guest needs to see the host's files, in the order in which it is loaded; and what other machines load when they are
    /// asked about sockets.
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
                "unix_diag",
                "overlay",
            ],
            Self::V6_12 => &["netfs", "9pnet", "9pnet_virtio", "9p", "unix_diag", "overlay"],
        }
    }
}

/// Runs a program of tests in a guest with the newest kernel of a line; `args` are the program's. What is skipped here is skipped there.
pub fn test(series: Series, program: &Path, args: &[OsString], limit: Duration) -> Result<(), Error> {
    let image = image(series)?;
    let mut words = vec!["/usr/bin/env".to_owned()];
    let passed_on = |name: &str| name == "CI" || name.starts_with("AGENT_TEST_") || name.starts_with("RUST_");
    let variables = env::vars().filter(|(name, _)| passed_on(name)).map(|(name, value)| format!("{name}={value}"));
    words.extend(variables);
    words.extend([root().join("scripts/kernel-guest").display().to_string(), program.display().to_string()]);
    words.extend(args.iter().map(|arg| arg.to_string_lossy().into_owned()));
    pack(series, &image, &(mounts(series, READ_ONLY) + &format!("exec $B switch_root /host{}\n", quoted(&words))))?;
    boot(series, &image, limit)
}

/// Runs the systemd unit in a guest whose first process is systemd; `agent` is the program.
pub fn unit(series: Series, agent: &Path, limit: Duration) -> Result<(), Error> {
    if which("systemctl").is_none() {
        apt::install(&["systemd"])?;
    }
    let image = image(series)?;
    let begins = format!(
        "$B cat >/host/etc/systemd/system/check.service <<'END'
[Unit]
Description=what the guest is for
[Service]
Type=oneshot
ExecStart={script} {agent}
TTYPath=/dev/ttyS0
StandardOutput=tty
StandardError=tty
END
exec $B switch_root /host /lib/systemd/systemd --unit=check.service
",
        script = root().join("scripts/unit-guest").display(),
        agent = agent.display(),
    );
    pack(series, &image, &(mounts(series, WRITABLE) + &begins))?;
    boot(series, &image, limit)
}

/// What a guest needs, and the kernel: nothing that is there is touched.
pub fn setup(series: Series) -> Result<(), Error> {
    image(series).map(drop)
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

/// A kernel, and where what it boots into is made.
struct Image {
    place: PathBuf,
    kernel: PathBuf,
}

/// Gets the newest kernel of a line, and keeps of it what a guest needs.
fn image(series: Series) -> Result<Image, Error> {
    install()?;
    let place = cache().join("kernels").join(series.name());
    let image = Image { kernel: place.join("vmlinuz"), place: place.clone() };
    let modules = place.join("modules");
    if image.kernel.is_file() && series.modules().iter().all(|module| modules.join(format!("{module}.ko")).is_file()) {
        return Ok(image);
    }
    let io = |error| Error::Io { path: place.clone(), error };
    let package = newest(series)?;
    say(&format!("kernel {package}"));
    let unpacked = place.join("unpacked");
    fs::create_dir_all(&unpacked).map_err(io)?;
    apt::unpack(&[&package], &unpacked)?;
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
    let kernel = find(&unpacked.join("boot"), "vmlinuz-").ok_or_else(|| missing(&format!("vmlinuz of {package}")))?;
    fs::copy(kernel, &image.kernel).map_err(io)?;
    fs::remove_dir_all(&unpacked).map_err(io)?;
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

/// Makes the guest's first root, in which this script is the first process.
fn pack(series: Series, image: &Image, init: &str) -> Result<(), Error> {
    let Image { place, .. } = image;
    let io = |error| Error::Io { path: place.clone(), error };
    let tree = place.join("root");
    for directory in ["bin", "modules", "host", "files", "over", "repository", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(directory)).map_err(io)?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox")).map_err(io)?;
    for module in series.modules() {
        let file = format!("{module}.ko");
        fs::copy(place.join("modules").join(&file), tree.join("modules").join(&file)).map_err(io)?;
    }
    let first = tree.join("init");
    fs::write(&first, init).map_err(io)?;
    run(Command::new("chmod").arg("755").arg(&first))?;
    let pack = format!("find . | cpio --create --format=newc --quiet | gzip >'{}'", image.initrd().display());
    run(Command::new("sh").args(["-c", &pack]).current_dir(&tree))
}

/// The host's files as they are.
const READ_ONLY: &str = "$B mount --bind /files /host";

/// What is written lies in memory, over the host's files.
const WRITABLE: &str = "$B mount -t tmpfs over /over
$B mkdir /over/upper /over/work
$B mount -t overlay overlay -o lowerdir=/files,upperdir=/over/upper,workdir=/over/work /host";

/// The beginning of a script that loads the modules and has the host's files in `/host`, with a `/tmp` and a `/run` of its own.
fn mounts(series: Series, host: &str) -> String {
    let modules = series.modules().join(" ");
    // A repository below /tmp is to be seen there, whatever else is not.
    format!(
        "#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in {modules}; do $B insmod /modules/$module.ko; done
for try in 1 2 3 4 5; do
    $B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /files && break
    $B sleep 1
done
{host}
$B mount --bind '/host{root}' /repository
$B mount -t tmpfs tmp /host/tmp
$B mount -t tmpfs run /host/run
$B mkdir -p '/host{root}'
$B mount --move /repository '/host{root}'
for place in proc sys dev; do $B mount --move /$place /host/$place; done
",
        root = root().display()
    )
}

/// Words of a shell, each with a space before it.
fn quoted(words: &[String]) -> String {
    let mut quoted = String::new();
    for word in words {
        // Writing to a string does not fail.
        let _ = write!(quoted, " '{}'", word.replace('\'', "'\\''"));
    }
    quoted
}

impl Image {
    fn initrd(&self) -> PathBuf {
        self.place.join("initrd.gz")
    }
}

/// Lines that are shown of what the kernel said before, where the command did not come to its end.
const EARLY_SHOWN: usize = 30;

/// Between these lines the guest's console has what its command says; the last one ends with its exit code.
const BEGIN: &str = "guest begins";
const END: &str = "guest ended with ";

/// Runs the guest to its end, and ends as its command did.
fn boot(series: Series, image: &Image, limit: Duration) -> Result<(), Error> {
    say(&format!("booting Linux {} in qemu", series.name()));
    // A guest that hangs ends with its time.
    let mut guest = Command::new("timeout");
    guest.arg(limit.as_secs().to_string()).arg("qemu-system-x86_64");
    // Emulated even where the processor could help: inside of a virtual machine that help may be there, and hang.
    // A nanosecond an instruction, and the host's time where there is none to execute. With the host's time alone all seems thirty times
    // as slow, and a test that wants a load finds none. One CPU: of two, one would wait for the other until its share of time is over.
    guest.args(["-accel", "tcg,thread=single", "-icount", "shift=0", "-cpu", "max", "-m", "4096", "-smp", "1"]);
    guest.args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "mon:stdio"]);
    guest.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(image.initrd());
    guest.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    guest.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    guest.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    let not_started = |error| Error::NotStarted { command: "qemu-system-x86_64".into(), error };
    let mut child = guest.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(not_started)?;
    let mut has_begun = false;
    let mut code = None;
    let mut early = Vec::new();
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(|out| out.split(b'\n')).flatten() {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if let Some((_, said)) = line.split_once(END) {
            code = said.parse().ok();
            has_begun = false;
        } else if has_begun {
            eprintln!("{line}");
        } else {
            // Whatever the firmware printed before it stands on the same line.
            has_begun = line.ends_with(BEGIN);
            early.push(line.to_owned());
        }
    }
    if code.is_none() {
        early.iter().rev().take(EARLY_SHOWN).rev().for_each(|line| eprintln!("{line}"));
    }
    child.wait().map_err(not_started)?;
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(Error::Failed { command: format!("the tests on Linux {}", series.name()), code: Some(code) }),
        None => Err(Error::Missing {
            what: format!("the end of the tests on Linux {}", series.name()),
            so: format!("the guest died, or took longer than {} s", limit.as_secs()),
        }),
    }
}
