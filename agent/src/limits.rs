//! Every bound of the pure middle, with its arithmetic.

/// Targets (processes) at a time: a cluster of one worker a CPU on a large host, and its children.
pub const TARGETS_MAX: usize = 1024;

/// Threads of a process whose ledgers are kept: a `ThreadBook` is about a third of a KiB, so 3 MiB.
pub const THREADS_MAX: usize = 8192;

/// Loop threads that get histograms of their own: three of at most 33 KiB each, so 25 MiB at the very worst and, as buckets
/// are allocated by octave, a tenth of that in practice.
pub const LOOPS_MAX: usize = 256;

/// Stacks that wait until a line speaks of them. The kernel half sends each only once, so they stay: 60 frames x 8 B x 16 384 =
/// 8 MiB as a rule, 64 MiB where all have 512 frames.
pub const STACKS_MAX: usize = 16_384;

/// Frames that stacks share: 200 B x 65 536 = 13 MiB; a large service has some ten thousand.
pub const FRAMES_DISTINCT_MAX: usize = 65_536;

/// Stacks of samples that a window tells apart: 48 B x 16 384 = 768 KiB. What comes later is counted together.
pub const SAMPLE_STACKS_MAX: usize = 16_384;

/// Ticks of a CPU's clock that one sample may stand for: see `govern::Level`.
pub const SAMPLE_WEIGHT_MAX: u32 = 1024;

/// Stacks of one process and window that OTLP tells apart, most samples first: 4096 x 256 frames x 3 B = 3 MiB. The rest is summed.
pub const OTLP_PROFILE_STACKS_MAX: usize = 4096;

/// A request of OTLP with so many samples takes no further process: at most twice as much as above, and the names, well below the 20 MiB
/// that a collector takes.
pub const OTLP_REQUEST_SAMPLES_MAX: usize = 4096;

/// Stacks in which one slow turn was on CPU that are listed, most samples first.
pub const SLOW_TURN_STACKS_MAX: usize = 8;

/// Stacks that were symbolised already: 8 B each.
pub const STACKS_SHOWN_MAX: usize = 65_536;

/// Groups (class, reason, two stacks) of stays off CPU in a window: 64 B x 4096 = 256 KiB. What comes later is summed as `(other)`.
pub const OFF_CPU_GROUPS_MAX: usize = 4096;

/// Groups that a window reports one by one, longest first; the rest is summed.
pub const OFF_CPU_REPORTED_MAX: usize = 64;

/// Items of the thread pool in one window's sweep: 24 B x 65 536 = 1.5 MiB, and 20 ms to sort.
pub const SWEEP_ITEMS_MAX: usize = 65_536;

/// Classes of `node::ThreadPoolWork` that are told apart: V8 and Node.js have about twenty.
pub const WORK_CLASSES_MAX: usize = 256;

/// Groups of work (kind and operation) in a window: a histogram set each, so 64 x 4 x 33 KiB = 8 MiB at the very worst.
pub const WORK_GROUPS_MAX: usize = 64;

/// Stays off CPU and pauses that are remembered for each loop thread, to be put beside its slow turns: 64 B x 512 = 32 KiB.
pub const RECENT_MAX: usize = 512;

/// Slow turns that a window reports one by one, longest first.
pub const SLOW_TURNS_WINDOW_MAX: usize = 16;

/// Slow turns that a run reports one by one, and so many more for each second since the first of them: 10 000 lines of about 1 KiB are
/// 10 MiB of output, at first and in each hour from then on.
pub const SLOW_TURNS_AT_FIRST_MAX: u64 = 10_000;
pub const SLOW_TURNS_A_SECOND: u64 = 3;

/// Stays off CPU, and pauses, that one slow turn lists, longest first.
pub const SLOW_TURN_PARTS_MAX: usize = 8;

/// Pauses that a window reports one by one; histograms count all.
pub const GC_PAUSES_WINDOW_MAX: usize = 256;

/// Lines about processes and threads in a window: a fork bomb must not fill the disk.
pub const LIFE_WINDOW_MAX: usize = 256;

/// Distinct buckets of the kernel's run-queue histogram that are remembered: 8 B key + 8 B, 65 536 = 1 MiB.
pub const RUN_QUEUE_BUCKETS_MAX: usize = 65_536;

/// Bytes of one line of NDJSON that is read back: a window of 1024 threads with full histograms is about 4 MiB.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Bytes of one input in a recording: a batch of the largest ring (8 MiB), doubled.
pub const RECORDING_FRAME_BYTES_MAX: usize = 16 << 20;

/// Bytes of one symbol or string table that is read: Node.js 26 has 19 MB of names.
pub const SYMBOL_TABLE_BYTES_MAX: u64 = 256 << 20;

/// Section and program headers of one ELF file: Node.js has about 45 of them, builds by function section some thousands.
pub const ELF_HEADERS_MAX: u64 = 16_384;

/// Notes of one file that are searched for the build id: it is 36 B long and among the first.
pub const ELF_NOTE_BYTES_MAX: u64 = 64 << 10;

/// Machine code of one function that is decoded: `uv_run` has 1541 B at most, and only callers are read whole.
pub const FUNCTION_BYTES_MAX: u64 = 64 << 10;

/// Bytes from a function's entry within which a probe may be placed: the prologues seen need at most 18.
pub const PROLOGUE_BYTES_MAX: u64 = 64;

/// Bytes of one small file in `/proc` (`status`, `stat`, `comm`, `cmdline`, `environ`): the kernel allows 128 KiB for one
/// argument, and 2 MiB of arguments and environment by default.
pub const PROC_FILE_BYTES_MAX: u64 = 2 << 20;

/// Bytes of `/proc/PID/maps`: 65 530 mappings (`vm.max_map_count`) x 128 B = 8 MiB.
pub const PROC_MAPS_BYTES_MAX: u64 = 8 << 20;

/// Threads of one process that are listed.
pub const PROC_THREADS_MAX: usize = 8192;

/// Mapped files of one process that are searched for the symbols of Node.js: a large one maps some fifty libraries.
pub const PROC_FILES_MAX: usize = 256;

/// Functions, or variables, in one symbol table: Node.js 26 has 190 000, Chromium a million; 16 B each.
pub const ELF_FUNCTIONS_MAX: usize = 1 << 21;

/// Bytes of one symbol's name that are read; V8's longest template instances have 4000.
pub const SYMBOL_NAME_BYTES_MAX: u64 = 4096;

/// Functions of one file whose names are kept as they are shown: some thousand are ever on a stack, 200 B each.
pub const FUNCTION_NAMES_MAX: usize = 8192;

/// Files whose functions are kept: an open file each, and what was named in it. Fifty containers have a dozen each.
pub const SYMBOL_FILES_MAX: usize = 768;

/// Bytes that their symbols take, beyond which those make room that were not needed for long: 5 MiB for a Node.js binary, once for all
/// files that hold the same, far less for others.
pub const SYMBOL_BYTES_MAX: usize = 64 << 20;

/// Files whose symbols' hashes are kept while nobody has them open: 4 MiB for a Node.js binary, some KiB for others.
pub const SYMBOL_INDEXES_KEPT_MAX: usize = 8;

/// Processes whose mappings are kept for their stacks: 64 mappings x 150 B, and 5 MiB more for each that writes a perf map.
pub const SYMBOL_SPACES_MAX: usize = 256;

/// `.debug_info` that is read for inlined functions: what is read of it stays mapped, and Node.js with all of it has 1 GiB.
pub const DEBUG_INFO_BYTES_MAX: u64 = 32 << 20;

/// Ranges of addresses that one file's line information is about: Node.js 26 has 2000; 16 B each.
pub const DEBUG_RANGES_MAX: usize = 1 << 18;

/// Bytes of a perf map that are read at one go, once a second: a quarter of a million lines; the rest is for the next time.
pub const PERF_MAP_READ_BYTES_MAX: u64 = 16 << 20;

/// Code that one perf map may name: Node.js begins with 3000 lines, and a large service compiles 30 000 functions.
pub const PERF_MAP_ENTRIES_MAX: usize = 65_536;

/// Names of one perf map: 65 536 x 64 B = 4 MiB.
pub const PERF_MAP_NAMES_BYTES_MAX: usize = 4 << 20;

/// Bytes of one line of a perf map that are looked at.
pub const PERF_MAP_NAME_BYTES_MAX: usize = 512;

/// Kernel symbols: a distribution's kernel with all its modules has 250 000.
pub const KERNEL_SYMBOLS_MAX: usize = 1 << 20;

/// Bytes of one file's `.eh_frame`: the `postgres` server has 800 KiB, Chromium 20 MiB.
pub const FRAME_TABLE_BYTES_MAX: u64 = 32 << 20;

/// Rows of one file's unwind table: as many as the kernel half searches.
pub const UNWIND_FILE_ROWS_MAX: usize = agent_ebpf::state::UNWIND_FILE_ROWS_MAX as usize;

/// Files whose unwind table is known by which file it is: 24 B each.
pub const UNWIND_FILES_KNOWN_MAX: usize = 4096;

/// Reads of a V8 heap that one frame is worth: a function that is met for the first time takes about forty, with its script's source
/// in chunks and a dozen inlined functions some hundreds.
pub const V8_READS_MAX: u32 = 4096;

/// Maps of a V8 heap whose type is remembered: V8 has three hundred of its own; 32 B each.
pub const V8_MAPS_MAX: usize = 1024;

/// Pieces that one string may be made of: what `+=` builds in a loop of ten thousand turns, and no endless ring.
pub const V8_STRING_NODES_MAX: usize = 65_536;

/// Units of a string that are read at once: 64 KiB where they have two bytes.
pub const V8_STRING_UNITS_CHUNK: usize = 32_768;

/// UTF-16 units of a name of a function or script; a data: URL is longer, and no name.
pub const V8_NAME_UNITS_MAX: u32 = 4096;

/// UTF-16 units of a source whose lines are counted: the largest bundles have some ten million.
pub const V8_SOURCE_UNITS_MAX: u32 = 64 << 20;

/// Lines of one script: 4 B each, 16 MiB.
pub const V8_LINES_MAX: usize = 4 << 20;

/// Lines of all scripts of a process that are kept: 16 MiB.
pub const V8_LINES_KEPT_MAX: usize = 4 << 20;

/// Scripts of one process that are kept: a large service loads some thousands.
pub const V8_SCRIPTS_MAX: usize = 8192;

/// Code that evaluates code that evaluates code.
pub const V8_EVAL_DEPTH_MAX: usize = 4;

/// Functions of one process that are kept: about 150 B x 65 536 = 10 MiB.
pub const V8_FUNCTIONS_MAX: usize = 65_536;

/// Bytes of one table of positions: about three a bytecode.
pub const V8_TABLE_BYTES_MAX: usize = 4 << 20;

/// Bytes of one function's bytecode: a module that is all one function.
pub const V8_BYTECODES_MAX: usize = 4 << 20;

/// Bytes of one function's machine code, and so how far before an address its begin is looked for.
pub const V8_CODE_BYTES_MAX: u64 = 4 << 20;

/// Words in machine code that look like the begin of an object with code, and are looked at more closely, for one address.
pub const V8_CODE_CANDIDATES_MAX: usize = 4096;

/// Pieces of machine code of one process that are kept: 150 B each.
pub const V8_CODES_MAX: usize = 65_536;

/// Functions that are inlined into each other at one address: V8 stops at a budget of bytecodes, long before that.
pub const V8_INLINING_DEPTH_MAX: usize = 64;

/// Builds of V8 whose layout is kept: 2 KiB each.
pub const V8_LAYOUTS_MAX: usize = 16;

/// Memory that is searched for objects to try a layout on: those of the youngest server are in the first 16 MiB, and three passes
/// take a tenth of a second.
pub const V8_TRIAL_BYTES_MAX: u64 = 128 << 20;

/// Objects of a kind that a layout is tried on.
pub const V8_TRIAL_OBJECTS: usize = 500;

/// Bytes of a process's memory that are searched for suspended calls: 4 GiB take a second, on a thread of their own.
pub const SUSPENDED_BYTES_MAX: u64 = 4 << 30;

/// Suspended calls that are followed: some reads of half a microsecond each.
pub const SUSPENDED_CALLS_MAX: usize = 65_536;

/// Maps of one instance type: one a context.
pub const SUSPENDED_MAPS_MAX: usize = 1024;

/// Calls that await one another, and promises between two of them.
pub const SUSPENDED_CHAIN_MAX: usize = 16;

/// Places at which calls are suspended that are told, those of most calls first.
pub const SUSPENDED_TOLD_MAX: usize = 8;

/// Windows from one search for suspended calls to the next.
pub const SUSPENDED_PACE_WINDOWS: u32 = 5;

/// Server processes of one PostgreSQL cluster: `max_connections` of a large one, and its workers.
pub const PG_PROCESSES_MAX: usize = 16_384;

/// Clusters at a time.
pub const PG_CLUSTERS_MAX: usize = 64;

/// Nanoseconds. Locks of PostgreSQL whose waits are all shorter are summed by kind only: a busy server has thousands of them a second.
pub const PG_LOCK_WAIT_MIN_NS: u64 = 100_000_000;

/// Locks that are waited for at one time: no more than there are waiters.
pub const PG_LOCKS_MAX: usize = 4096;

/// Holders of one lock, and its waiters, that are followed: 12 B and 32 B each.
pub const PG_PARTIES_MAX: usize = 16_384;

/// Relations of one cluster whose names are kept: 100 B each.
pub const PG_RELATIONS_MAX: usize = 16_384;

/// Wait events of one cluster that are told apart, of those that it came to wait for: version 15 has some 250, and a busy server waits for a
/// dozen. A histogram each, of which the metrics have 19 lines: 64 x 19 = 1216.
pub const PG_WAIT_EVENTS_MAX: usize = 64;

/// Bytes of a wait event's name: the longest of version 15 has 30, a lock of an extension is called what its author liked.
pub const PG_WAIT_EVENT_NAME_BYTES_MAX: u32 = 64;

/// Locks that a window reports one by one, those with the most waiters first; the rest is summed.
pub const PG_LOCKS_REPORTED_MAX: usize = 32;

/// Bytes of a program's constants that are searched for its version: 2.5 MB in PostgreSQL 15.
pub const CONSTANTS_BYTES_MAX: u64 = 64 << 20;

/// Bytes of one table of TCP connections: 150 B x 65 536 = 10 MiB.
pub const NET_TABLE_BYTES_MAX: u64 = 16 << 20;

/// TCP connections of one network namespace: as many as a host has ports.
pub const SOCKETS_MAX: usize = 65_536;

/// Descriptors of one process that are looked at.
pub const PROC_FDS_MAX: usize = 65_536;
/// Sites (stacks that make handles or touch pages) that a window reports of a process, most kept first.
pub const SITES_MAX: usize = 256;

/// Handles of which it is looked at how they are held: half a microsecond each.
pub const ALIVE_READ_MAX: usize = 2048;

/// Handles of one loop that are counted: each is a read of its own of half a microsecond, so 30 ms at the very worst.
pub const LOOP_HANDLES_MAX: usize = 65_536;

/// Windows of a process that rules look back on: an hour of seconds; with its memory and samples about 4 KiB each.
pub const HISTORY_WINDOWS_MAX: usize = 3600;

/// Constructors that are kept of each census that is taken while a heap grows.
pub const CENSUS_KEPT_MAX: usize = 100;

/// Stacks of a process that rules may name: 16 384 x 40 frames x 8 B = 5 MiB, as frames are shared.
pub const HISTORY_STACKS_MAX: usize = 16_384;

/// Stacks of samples of a window that rules look at, most samples first.
pub const PROFILE_KEPT_MAX: usize = 256;

/// Frames of one process whose names are kept: about 300 B x 32 768 = 10 MiB; a large service has some ten thousand.
pub const FRAMES_KEPT_MAX: usize = 32_768;

/// Names of one process's functions that are properties of these, 24 characters each and looked for one after the other.
pub const OWN_NAMES_MAX: usize = 1024;

/// Bytes from a function's entry in which its frame is set up: what optimised code checks first takes forty, the interpreter's
/// entry two hundred.
pub const PROLOGUE_LOOKED_AT_BYTES: usize = 256;

/// Loops of one process whose heaps and handles are looked at once a window: each takes some milliseconds.
pub const LOOPS_WATCHED_MAX: usize = 16;

/// Isolates of one process whose maps are told apart: the main one and its workers.
pub const V8_ISOLATES_MAX: usize = 64;

/// UTF-16 units of a source mapping's URL: one with the map in it is a third longer than the map, and a bundle's has ten million.
pub const V8_SOURCE_MAP_UNITS_MAX: u32 = 32 << 20;

/// Bytes of one source map: those of large bundles have 20 MiB, and a mapping of two bytes becomes one of 24 in memory.
pub const SOURCE_MAP_BYTES_MAX: u64 = 32 << 20;

/// Bytes of all source maps that are kept at a time, as they are in their files.
pub const SOURCE_MAPS_BYTES_MAX: u64 = 96 << 20;

/// Scripts of which it is remembered whether they have a map: 200 B x 16 384 = 3 MiB.
pub const SOURCE_MAPPED_SCRIPTS_MAX: usize = 16_384;

/// Files in a directory of source maps, and how deep it is searched.
pub const SOURCE_MAP_FILES_MAX: usize = 65_536;
pub const SOURCE_MAP_DEPTH_MAX: usize = 16;

/// V8's pages that a census looks at: 8 GiB of heap, and 256 MiB for two bits a word of it.
pub const CENSUS_PAGES_MAX: usize = 32_768;

/// Maps, and words that were taken for one, that a census remembers: 120 B x 262 144 = 30 MiB; a large service has ten thousand.
pub const CENSUS_MAPS_MAX: usize = 262_144;

/// Functions whose initial maps a census looks at: 16 B each; a large service has fifty thousand.
pub const CENSUS_FUNCTIONS_MAX: usize = 262_144;

/// Weak collections of which only those values count whose keys do.
pub const CENSUS_WEAK_TABLES_MAX: usize = 65_536;

/// Times that weak collections are gone through: each is for a value that is itself a key.
pub const CENSUS_ROUNDS_MAX: usize = 64;

/// Roots of a heap that a census remembers, to tell what looked like one from what was moved: 16 B each.
pub const CENSUS_ROOTS_MAX: usize = 1 << 20;

/// Chunks of one heap of the C library that are walked over: half a microsecond each.
pub const MALLOC_CHUNKS_MAX: usize = 2 << 20;

/// Free ones of these that are remembered: 16 B each.
pub const MALLOC_FREE_MAX: usize = 1 << 20;

/// Programs that are known to be no Node.js, or no server: a host has some hundreds.
pub const PROGRAMS_KNOWN_MAX: usize = 8192;

/// Programs that were begun and not looked at yet: ten thousand a second for half a second.
pub const ANNOUNCED_MAX: usize = 5000;

/// Files that no process runs any more, and whose probes stay for the next: restarts of one program find them attached.
pub const FILES_IDLE_MAX: usize = 8;

/// Bytes of `/proc/PID/cgroup`: a dozen hierarchies with paths of at most 4 KiB each.
pub const CGROUP_FILE_BYTES_MAX: u64 = 64 << 10;

/// Lines of it, and parts of one path, that are looked at.
pub const CGROUP_LINES_MAX: usize = 64;
pub const CGROUP_SEGMENTS_MAX: usize = 64;

/// Attributes that a process may declare of itself, and characters of one: what SDKs of OpenTelemetry allow.
pub const DECLARED_ATTRIBUTES_MAX: usize = 64;
pub const ATTRIBUTE_CHARS_MAX: usize = 255;

/// Bytes of a `package.json` that is read, and directories above a script in which one is looked for.
pub const PACKAGE_BYTES_MAX: u64 = 256 << 10;
pub const PACKAGE_LEVELS_MAX: usize = 32;

/// Pods of one node that are known: the kubelet runs 110 as a rule, and five hundred at most; some KiB each.
pub const KUBERNETES_PODS_MAX: usize = 4096;

/// Processes in containers that are kept in mind, traced or not, as what is known of their pods may change: 2 KiB each.
pub const CONTAINED_MAX: usize = 4096;

/// Owners of pods of which it is known who owns them: 300 B each.
pub const KUBERNETES_OWNERS_MAX: usize = 8192;

/// Bytes of a list of pods: five hundred of 30 KiB each, doubled; and of one line of a watch, which is one pod of at most 1.5 MiB.
pub const KUBERNETES_LIST_BYTES_MAX: usize = 32 << 20;
pub const KUBERNETES_LINE_BYTES_MAX: usize = 4 << 20;

/// Bytes of a token or a certificate: some KiB.
pub const CREDENTIAL_BYTES_MAX: u64 = 256 << 10;
