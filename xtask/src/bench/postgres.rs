//! What following PostgreSQL's locks costs: `pgbench` on a private server, the agent attached to it in every other half.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    Awake, BenchArgs, HEAD, Measured, WARM_UP, load_average, row, run,
    server::{Half, Running},
    tool::Tool,
};
use crate::run::{Error, root, say};

const BIN: &str = "/usr/lib/postgresql/15/bin";

const INTRODUCTION: &str = "\
# What following PostgreSQL's locks and waits costs

Written by `cargo xtask bench postgres`, in the way of [RESULTS.md](RESULTS.md): ratios of neighbouring halves, with `agent diagnose
--pid POSTMASTER` attached and without, in one server under `pgbench`'s TPC-B-like load of eight clients; *null* compares neighbours
without it. `agent trace` attaches the same. Transactions are counted by the ids that the server has given away, CPU is that of all of its processes. With ten branches few
transactions wait for one another; with one branch each of them waits for a row, several times, some thousand times a second: the worst
case. Measured two seconds after it is attached, as from then on the agent follows waits for that part of the time which
`--max-overhead` (1 %) allows.
";

/// By then the agent has seen what following so many switches costs, and does it for a part of the time.
const KEEPS_TO_BUDGET: Duration = Duration::from_secs(2);

/// Scale of `pgbench`: the number of branches, and what that is called.
const CASES: [(&str, &str); 2] = [("10", "pgbench, ten branches"), ("1", "pgbench, one branch")];

/// Runs the cases and writes the table.
pub fn bench(args: &BenchArgs, awake: &Awake) -> Result<(), Error> {
    let mut table = String::from(HEAD);
    let mut loads = Vec::new();
    for (scale, name) in CASES {
        let mut cluster = Cluster::start(scale)?;
        std::thread::sleep(WARM_UP);
        say(&format!("{name}: {} pairs of {} ms", args.pairs, args.half));
        let figures = run(&mut cluster, Tool::Diagnose, args.pairs, args)?;
        row(&mut table, name, Tool::Diagnose, &figures);
        loads.push(load_average());
        eprintln!("{table}");
    }
    let text = format!(
        "{INTRODUCTION}\nPostgreSQL 15, halves of {} ms. {}. Load average of the machine after each case: {}.\n\n{table}",
        args.half,
        awake.word(),
        loads.join(", "),
    );
    let path = root().join("agent/benches/POSTGRES.md");
    fs::write(&path, text).map_err(|source| Error::io("agent/benches/POSTGRES.md", source))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

/// A server in a directory of its own, under load; all of it ends when this is dropped.
struct Cluster {
    dir: PathBuf,
    pid: u32,
    // Dropped in this order: the load ends first.
    load: Option<Running>,
    _psql: Running,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    server: Running,
}

/// As the user that Debian's package made: the server refuses to run as root.
fn as_postgres(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--reset-env", "--pdeathsig=QUIT"]);
    command.arg(Path::new(BIN).join(program)).current_dir("/").stdin(Stdio::null());
    command
}

fn done(mut command: Command, what: &'static str) -> Result<(), Error> {
    let output = command.output().map_err(|source| Error::io(what, source))?;
    let said = || std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned());
    if output.status.success() { Ok(()) } else { Err(Error::io(what, said())) }
}

impl Cluster {
    fn start(scale: &str) -> Result<Self, Error> {
        let fail = |source| Error::io("PostgreSQL", source);
        let dir = std::env::temp_dir().join(format!("agent-bench-postgres-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).map_err(fail)?;
        let mut chown = Command::new("chown");
        chown.arg("postgres:postgres").arg(&dir);
        done(chown, "chown")?;
        let data = dir.join("data");
        let mut initdb = as_postgres("initdb");
        initdb.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data);
        done(initdb, "initdb")?;
        let mut server = as_postgres("postgres");
        let socket = format!("-cunix_socket_directories={}", dir.display());
        server.arg("-D").arg(&data).args([&socket, "-clisten_addresses=", "-cfsync=off"]);
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(fail)?;
        let (pid, server) = (server.id(), Running(server));
        let ready = Instant::now() + Duration::from_secs(20);
        while Instant::now() < ready && !dir.join(".s.PGSQL.5432").exists() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let client = |program: &str| {
            let mut command = as_postgres(program);
            command.arg("-h").arg(&dir).args(["-U", "postgres"]);
            command
        };
        let mut fill = client("pgbench");
        fill.args(["-i", "-q", "-s", scale, "postgres"]);
        done(fill, "pgbench -i")?;
        let mut psql: Child =
            client("psql").arg("-XqAt").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(fail)?;
        let (Some(ask), Some(answers)) = (psql.stdin.take(), psql.stdout.take()) else {
            return Err(fail(std::io::ErrorKind::BrokenPipe.into()));
        };
        let load = client("pgbench")
            .args(["-n", "-c", "8", "-j", "1", "-T", "3600", "postgres"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(fail)?;
        let load = Some(Running(load));
        Ok(Self { dir, pid, load, _psql: Running(psql), ask, answers: BufReader::new(answers), server })
    }

    /// Transactions that wrote, so far: asking takes none.
    fn finished(&mut self) -> Result<u64, Error> {
        let fail = |source| Error::io("psql", source);
        self.ask.write_all(b"select pg_snapshot_xmax(pg_current_snapshot());\n").map_err(fail)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(fail)?;
        line.trim().parse().map_err(|_| fail(std::io::Error::other(line)))
    }

    /// CPU time of the postmaster's children in nanoseconds, from the scheduler's own books.
    fn cpu_ns(&self) -> u64 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        let times =
            children.split_whitespace().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/schedstat")).ok());
        times.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }
}

impl Measured for Cluster {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn settle(&self) -> Duration {
        KEEPS_TO_BUDGET
    }

    fn measure(&mut self, span: Duration) -> Result<Half, Error> {
        let (begin, finished, cpu) = (Instant::now(), self.finished()?, self.cpu_ns());
        std::thread::sleep(span);
        let (count, cpu) = (self.finished()? - finished, self.cpu_ns().saturating_sub(cpu));
        Ok(Half::of(count, cpu, begin.elapsed()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.load = None;
        // An immediate shutdown: its children end with it.
        let _ = Command::new("kill").args(["-QUIT", &self.pid.to_string()]).status();
        let _ = self.server.0.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
