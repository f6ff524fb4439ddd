//! Numbers that the loader fills in before the verifier sees the programs: names as in [`agent_ebpf::state::global`].

use aya_ebpf::Global;

macro_rules! globals {
    ($($name:ident: $ty:ty = $default:expr;)*) => {
        $(#[unsafe(no_mangle)] pub static $name: Global<$ty> = Global::new($default);)*
    };
}

globals! {
    TASK_PID: u32 = 0;
    TASK_TGID: u32 = 0;
    TASK_REAL_PARENT: u32 = 0;
    TASK_STATE: u32 = 0;
    TASK_EXIT_CODE: u32 = 0;
    TASK_RAN: u32 = 0;
    TASK_RAN_BEFORE: u32 = 0;
    TASK_SIGNAL: u32 = 0;
    SIGNAL_LIVE: u32 = 0;
    SWITCH_HAS_STATE: u32 = 0;
    LOOP_OFF_CPU_MIN_NS: u64 = 100_000;
    OTHER_OFF_CPU_MIN_NS: u64 = 1_000_000;
    URING_SUBMIT_DATA: u32 = 0;
    URING_SUBMIT_OPCODE: u32 = 0;
    URING_COMPLETE_DATA: u32 = 0;
    URING_COMPLETE_RESULT: u32 = 0;
    HAS_TASK_REGS: u32 = 1;
    HAS_BPF_LOOP: u32 = 1;
    SAMPLE_PERIOD_NS: u64 = 0;
    POLLS_AT_SWITCHES: u32 = 0;
    ANNOUNCE_EXECS: u32 = 0;
}
