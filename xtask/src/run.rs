//! Runs other programs, and names what went wrong so that a person can act on it.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[derive(Debug)]
pub enum Error {
    NotStarted { command: String, error: io::Error },
    Failed { command: String, code: Option<i32> },
    Io { path: PathBuf, error: io::Error },
    Missing { what: String, so: String },
}

impl Error {
    /// An error at a file, or at whatever else was read or written.
    pub fn io(at: &str, error: io::Error) -> Self {
        Self::Io { path: PathBuf::from(at), error }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted { command, error } => write!(f, "cannot run `{command}`: {error}"),
            Self::Failed { command, code: Some(code) } => write!(f, "`{command}` ended with {code}"),
            Self::Failed { command, code: None } => write!(f, "`{command}` was killed by a signal"),
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Missing { what, so } => write!(f, "{what} is missing: {so}"),
        }
    }
}

/// The top of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Tools, Node.js binaries and whatever else setup fetched; not in version control, and safe to delete.
pub fn cache() -> PathBuf {
    root().join(".cache")
}

/// Where `cargo install --root` puts our tools.
pub fn tools() -> PathBuf {
    cache().join("tools")
}

/// The cargo that runs this program, at the top of the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // Set by `cargo run` for this package; builds of other packages are not to see it.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_")
            || name == "CARGO_MANIFEST_DIR"
            || name == "CARGO_MANIFEST_PATH"
        {
            command.env_remove(name);
        }
    }
    command
}

/// The command as a person would type it.
pub fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs to the end; its output goes where ours goes.
pub fn run(command: &mut Command) -> Result<(), Error> {
    let status = command.status().map_err(|error| Error::NotStarted { command: line_of(command), error })?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: line_of(command), code: status.code() }) }
}

/// What it says on standard output; `None` where it cannot be run or fails.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first of `PATH` that holds an executable of this name.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Progress: one line a step.
pub fn say(step: &str) {
    eprintln!("==> {step}");
}
