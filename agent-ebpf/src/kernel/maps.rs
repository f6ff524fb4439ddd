//! Every map of the object. Sizes are what the loader does not override; `limits.rs` of the user half has the arithmetic.

use agent_ebpf::{
    abi::stack::{KERNEL_FRAMES_MAX, KernelStack},
    state::{
        AliveKey, Cluster, LockWaitState, MainLoop, PgBackend, PgWaitKey, PgWaitSum, PgWaitWindow,
        RUN_QUEUE_OCTAVES_MAX, Regions, RunQueueOctave, RunQueueOctaveKey, Scrutiny, SiteKey, SiteState, Switches,
        TARGET_WORDS, Tally, Target, ThreadState, UNWIND_ROWS_MAX, UnwindRow, WorkKey, WorkState,
    },
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};

use super::{stack::BUFFERS, unwind::UserBuffer};

/// A kernel stack on its way to its ring: too large for the BPF stack.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelBuffer {
    pub head: KernelStack,
    pub frames: [u64; KERNEL_FRAMES_MAX],
    /// The walk may write one frame more than a record holds.
    pub spare: u64,
}

#[map]
pub static EVENT_LOOP: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
#[map]
pub static THREAD_POOL: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
pub static V8: RingBuf = RingBuf::with_byte_size(256 << 10, 0);
#[map]
pub static SCHED: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
pub static STACK: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
#[map]
pub static PROCESS: RingBuf = RingBuf::with_byte_size(256 << 10, 0);
#[map]
pub static SAMPLE: RingBuf = RingBuf::with_byte_size(256 << 10, 0);
#[map]
pub static POSTGRES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
pub static TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);

/// Even while polls are watched and odd while they are not; each change adds one. Only user space writes it.
#[map]
pub static POLLS: Array<u32> = Array::with_max_entries(1, 0);

/// Only user space writes these three.
#[map]
pub static COUNT_REQUESTS: Array<u32> = Array::with_max_entries(1, 0);
#[map]
pub static MAYBE_TARGETS: Array<u64> = Array::with_max_entries(TARGET_WORDS, 0);
#[map]
pub static SWITCHES: Array<Switches> = Array::with_max_entries(1, 0);

#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(4096, 0);
#[map]
pub static SCRUTINY: HashMap<u32, Scrutiny> = HashMap::with_max_entries(4096, 0);
#[map]
pub static THREADS: HashMap<u32, ThreadState> = HashMap::with_max_entries(8192, 0);
#[map]
pub static WORKS: HashMap<WorkKey, WorkState> = HashMap::with_max_entries(32768, 0);
#[map]
pub static CLUSTERS: HashMap<u32, Cluster> = HashMap::with_max_entries(256, 0);
#[map]
pub static LOCK_WAITS: LruHashMap<u32, LockWaitState> = LruHashMap::with_max_entries(16384, 0);
#[map]
pub static PG_BACKENDS: HashMap<u32, PgBackend> = HashMap::with_max_entries(16384, 0);
/// Waits that ended, of this window and of the last one until user space has taken them.
#[map]
pub static PG_WAITS: HashMap<PgWaitKey, PgWaitSum> = HashMap::with_max_entries(32768, 0);
#[map]
pub static PG_WAIT_WINDOW: Array<PgWaitWindow> = Array::with_max_entries(1, 0);
#[map]
pub static RUN_QUEUE: HashMap<RunQueueOctaveKey, RunQueueOctave> = HashMap::with_max_entries(RUN_QUEUE_OCTAVES_MAX, 0);
/// An octave as it is first inserted.
#[map]
pub static BLANK_OCTAVE: Array<RunQueueOctave> = Array::with_max_entries(1, 0);
#[map]
pub static SEEN: LruHashMap<u64, u8> = LruHashMap::with_max_entries(16384, 0);
#[map]
pub static KERNEL_SCRATCH: PerCpuArray<KernelBuffer> = PerCpuArray::with_max_entries(BUFFERS, 0);
#[map]
pub static USER_SCRATCH: PerCpuArray<UserBuffer> = PerCpuArray::with_max_entries(BUFFERS, 0);
/// When this CPU last woke the reader.
#[map]
pub static READER_WOKEN_NS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The probe that is taking a stack on this CPU.
#[map]
pub static PROBE_BUSY: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// What was made while it was watched, with the stack of its maker.
#[map]
pub static ALIVE: HashMap<AliveKey, u64> = HashMap::with_max_entries(32768, 0);
#[map]
pub static SITES: HashMap<SiteKey, SiteState> = HashMap::with_max_entries(8192, 0);
/// A thread's state as it is first inserted: the BPF stack is too small for it.
#[map]
pub static BLANK: Array<ThreadState> = Array::with_max_entries(1, 0);
/// Only user space adds to these two.
#[map]
pub static MAIN_LOOPS: HashMap<u32, MainLoop> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
pub static REGIONS: HashMap<u32, Regions> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
/// For processes that have none.
#[map]
pub static NO_REGIONS: Array<Regions> = Array::with_max_entries(1, 0);
#[map]
pub static UNWIND_ROWS: Array<UnwindRow> = Array::with_max_entries(UNWIND_ROWS_MAX, BPF_F_MMAPABLE);
