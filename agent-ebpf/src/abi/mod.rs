//! One file a family of records. A family has its own ring buffer, so that a flood of one cannot starve another,
//! and its own pair of counters: `emitted = received + dropped` holds for each at every quiet moment.

pub mod event_loop;
pub mod postgres;
pub mod process;
pub mod sample;
pub mod sched;
pub mod stack;
pub mod thread_pool;
pub mod v8;

/// Derives what a record needs in user space; in the kernel a record is plain old data.
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident [$size:literal] { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        #[cfg_attr(
            feature = "user",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout, PartialEq, Eq)
        )]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}
pub(crate) use record;

/// Families, in the order of their rings and counters.
pub mod family {
    pub const EVENT_LOOP: u32 = 0;
    pub const THREAD_POOL: u32 = 1;
    pub const V8: u32 = 2;
    pub const SCHED: u32 = 3;
    pub const STACK: u32 = 4;
    pub const PROCESS: u32 = 5;
    pub const SAMPLE: u32 = 6;
    pub const POSTGRES: u32 = 7;
    pub const COUNT: usize = 8;
    pub const NAMES: [&str; COUNT] =
        ["event_loop", "thread_pool", "v8", "sched", "stack", "process", "sample", "postgres"];
}

/// The kind of a record: the first word of every record. The high byte is the family.
pub mod kind {
    pub const TURN: u32 = 0x0001;
    pub const WORK: u32 = 0x0101;
    pub const GC_PAUSE: u32 = 0x0201;
    pub const GC_STEP: u32 = 0x0202;
    pub const HEAP_LIMIT: u32 = 0x0203;
    pub const OFF_CPU: u32 = 0x0301;
    pub const KERNEL_STACK: u32 = 0x0401;
    pub const USER_STACK: u32 = 0x0402;
    pub const PROCESS_FORK: u32 = 0x0501;
    pub const PROCESS_EXEC: u32 = 0x0502;
    pub const PROCESS_EXIT: u32 = 0x0503;
    pub const SAMPLE: u32 = 0x0601;
    pub const LOCK_WAIT: u32 = 0x0701;
    pub const LOCK_END: u32 = 0x0702;
}

record! {
    /// The head of every record.
    pub struct Header[24] {
        /// One of [`kind`].
        pub kind: u32,
        /// Process (thread group) id in the initial pid namespace.
        pub tgid: u32,
        /// Thread id in the initial pid namespace.
        pub tid: u32,
        /// Flags of the record's kind; zero where the kind names none.
        pub flags: u32,
        /// `CLOCK_MONOTONIC` nanoseconds at which the recorded thing ended.
        pub time_ns: u64,
    }
}
