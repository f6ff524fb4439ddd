//! What `--help` says beyond the flags: examples, exit codes. Lines of examples are at most 100 columns long; what is prose is one
//! line, which is wrapped to the terminal.

pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    something failed; the message says what
  2    the command line is wrong
  3    no such process, or not one that can be traced
  4    the kernel or the privileges do not allow it: see `agent doctor`
  5    diagnose: done, and something is wrong (a warning or worse); 0 if nothing is
  130  ended by Ctrl-C, after the report was written
  143  ended by SIGTERM, after the report was written";

pub const TRACE_EXAMPLES: &str = "\
Examples:
  agent trace --pid 4121                                   until Ctrl-C, then the report
  agent trace --pid 4121 --duration 30s                    half a minute, then the report
  agent trace --pid 4121 --duration 30s --format ndjson -o trace.ndjson
  agent trace --pid 4121 --ndjson trace.ndjson             both: the report here, the records there
  agent trace --pid 4121 --to tls://logs.example:6514      the records to a collector, as they come
  agent trace --pid 4121 --slow-turn 50ms                  each turn longer than 50 ms one by one
  agent trace --pid 4121 --off-cpu-threshold 0             every stay off CPU, however short
  agent trace --follow -- node server.js                   from the first instruction, children too
  agent trace --pid 812                                    a PostgreSQL server: who waits for whom

The process is not stopped, signalled or changed: no flag, no restart, no inspector.";

pub const DAEMON_EXAMPLES: &str = "\
Examples:
  agent daemon                                             everything; records to standard output
  agent daemon --config /etc/agent/agent.toml              as this file says
  agent daemon --config agent.toml --check-config          is the file right, and where is it not
  kill -HUP $(pidof agent)                                 read the file again

It traces processes that run and those that are started later, and waits where there is none. A file with a mistake is refused, and the \
one before stays. SIGTERM and Ctrl-C end it within five seconds, after what was measured is written; however it ends, nothing stays \
attached.";

pub const DIAGNOSE_EXAMPLES: &str = "\
Examples:
  agent diagnose --pid 4121                                a minute, then what is wrong, worst first
  agent diagnose --all --duration 5m                       every Node.js and PostgreSQL process
  agent diagnose --pid 4121 --format ndjson                one JSON object a finding
  agent diagnose --pid 4121 --threshold handles=50         take a smaller growth for one

Leaks and creeping costs are trends: the longer it looks, the smaller a growth it can tell from noise.";

pub const PROFILE_EXAMPLES: &str = "\
Examples:
  agent profile --pid 4121 --duration 30s                  half a minute, then the hottest functions
  agent profile --pid 4121 --duration 30s -o flame.svg     a flame graph, as the ending says
  agent profile --pid 4121 --off-cpu -o offcpu.svg         where it waits, and what for
  agent profile --pid 4121 --wall -o wall.svg              both, and idle apart
  agent profile --all --duration 30s -o node.pb.gz         every Node.js process, for pprof
  agent profile -o start.speedscope.json -- node app.js    a program from its first instruction
  agent profile --pid 4121 --to otlp+http://host:4318      to a collector that takes profiles
  agent profile diff before.ndjson after.ndjson -o diff.svg

Endings of files: .svg, .folded or .txt, .pb.gz or .pprof, .speedscope.json, .ndjson.
No flag, no restart, no inspector: the process is not stopped, signalled or changed. A process that is no Node.js is profiled as \
well, with its native stacks. Keep the records (.ndjson) to draw them in other ways later, with `agent report`, and to compare.";

pub const DIFF_EXAMPLES: &str = "\
Examples:
  agent profile diff before.ndjson after.ndjson            which functions grew, and which shrank
  agent profile diff before.ndjson after.ndjson -o diff.svg
  agent profile diff before.ndjson after.ndjson --by time  CPU time a second, not shares
  agent profile diff before.ndjson after.ndjson --requests 12000,13500

Boxes of the graph are as wide as the mean of both, red where they grew, blue where they shrank, and white where the difference may be \
chance. Both files are records of `agent profile` (or of `agent trace`).";

pub const HEAP_EXAMPLES: &str = "\
Examples:
  agent heap --pid 4121                                    live objects by constructor
  agent heap --pid 4121 --top 100
  agent heap --pid 4121 -o before.ndjson                   keep it, to compare with a later one
  agent heap diff before.ndjson after.ndjson               what grew, most bytes first

The process is not stopped, signalled or changed, and no garbage is collected: its memory is read while it runs, as far as live \
objects lead. Counts are within 10 % of a heap snapshot's where the collector is not at work all the time, on Node.js 18 to 26. Each \
report says how much of what it looked at was moved meanwhile. Bytes are those of \
the objects themselves, not of what they hold.";

pub const HEAP_DIFF_EXAMPLES: &str = "\
Examples:
  agent heap diff before.ndjson after.ndjson               which constructors grew, and which shrank
  agent heap diff before.ndjson after.ndjson --top 100

Both files are written by `agent heap --pid PID -o FILE.ndjson`.";

pub const REPORT_EXAMPLES: &str = "\
Examples:
  agent report trace.ndjson                                the report again
  agent report trace.rec --format ndjson                   the records of a recording
  agent report trace.ndjson -o flame.svg                   what ran on the CPUs, as a flame graph
  agent report profile.ndjson --off-cpu -o waits.svg";

pub const LONG_ABOUT: &str = "\
Where does a running Node.js process spend its time?

agent attaches eBPF programs to an unmodified, running Node.js process and says where its event loops' time goes: callbacks \
by phase, garbage collection, blocking calls, waiting for a CPU, the thread pool. It needs root (or CAP_BPF, CAP_PERFMON and \
CAP_SYS_PTRACE) and Linux 5.15 or newer; `agent doctor` says what works here.";
