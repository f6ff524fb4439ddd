//! What a thread is for, and whether it waits for work.
//!
//! Told from what the trace knows, else from the thread's name, else from the functions at the outer end of its stacks. Names of
//! threads are newer than Node.js 20; names of functions are as old as what they name.

use crate::report::model::{Class, Frame, Role};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Main,
    Worker,
    ThreadPool,
    /// V8's own: garbage collection and compilation.
    V8,
    #[default]
    Other,
}

impl Lane {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main thread",
            Self::Worker => "worker threads",
            Self::ThreadPool => "thread pool",
            Self::V8 => "V8's own threads",
            Self::Other => "other threads",
        }
    }

    /// All that the kernel half knows.
    #[must_use]
    pub const fn of_class(class: Class) -> Self {
        match class {
            Class::EventLoop => Self::Main,
            Class::ThreadPool => Self::ThreadPool,
            Class::Other => Self::Other,
        }
    }

    /// What is known without a stack.
    #[must_use]
    pub fn of_thread(pid: u32, tid: u32, role: Role, name: &str) -> Self {
        if tid == pid {
            return Self::Main;
        }
        match role {
            Role::Main => Self::Main,
            Role::Worker => Self::Worker,
            Role::ThreadPool => Self::ThreadPool,
            Role::Other if name.starts_with("libuv-worker") => Self::ThreadPool,
            Role::Other if name.starts_with("V8Worker") || name.starts_with("DelayedTask") => Self::V8,
            Role::Other if name.starts_with("WorkerThread") || name.starts_with("[worker") => Self::Worker,
            Role::Other => Self::Other,
        }
    }

    /// What a thread's frames say, innermost first.
    #[must_use]
    pub fn of_frames<'a>(frames: impl DoubleEndedIterator<Item = &'a Frame>) -> Option<Self> {
        frames.rev().take(OUTER_FRAMES).find_map(|frame| {
            let name = frame.name.as_str();
            let marks: [(&[&str], Self); 3] =
                [(V8_LOOPS, Self::V8), (&["node::worker::Worker::"], Self::Worker), (POOL_LOOPS, Self::ThreadPool)];
            marks.into_iter().find(|(marks, _)| marks.iter().any(|mark| is_named(name, mark))).map(|(_, lane)| lane)
        })
    }
}

/// From the thread's start to the function that says what it is for.
const OUTER_FRAMES: usize = 6;

const V8_LOOPS: &[&str] =
    &["node::PlatformWorkerThread", "node::WorkerThreadsTaskRunner::", "v8::platform::DefaultWorkerThreads"];

/// The loop of a thread of libuv's pool.
const POOL_LOOPS: &[&str] = &["worker"];

/// Functions that wait on behalf of others.
const WAITS: &[&str] = &[
    "__futex_abstimed_wait",
    "__lll_lock_wait",
    "__pthread_cond_",
    "pthread_cond_",
    "__new_sem_wait",
    "sem_wait",
    "sem_timedwait",
    "do_futex_wait",
    "futex_wait",
    "__clock_nanosleep",
    "syscall",
    "uv_cond_",
    "uv_sem_wait",
    "uv__custom_sem_wait",
    "v8::base::ConditionVariable::",
    "v8::base::Semaphore::",
    "absl::",
    "Abs",
];

/// Functions in which a thread that waits has nothing to do.
const QUEUES: &[&str] = &[
    "worker",
    "node::TaskQueue",
    "node::PlatformWorkerThread",
    "node::WorkerThreadsTaskRunner::",
    "node::WorkerThreadData",
    "node::inspector::",
    "node::(anonymous namespace)::PlatformWorkerThread",
    "node::(anonymous namespace)::WorkerThread",
    "v8::platform::DelayedTaskQueue::",
    "v8::platform::DefaultWorkerThreads",
    "v8::platform::DefaultJobWorker",
];

/// A demangled name begins with the mark, whatever it returns and whichever anonymous namespaces it lies in.
fn is_named(name: &str, mark: &str) -> bool {
    let name = name.replace("(anonymous namespace)::", "");
    if !mark.contains(':') {
        return name == mark || (mark.ends_with('_') || mark.len() > "worker".len()) && name.starts_with(mark);
    }
    name.starts_with(mark) || name.split_once(' ').is_some_and(|(_, name)| name.starts_with(mark))
}

/// Whether a thread that is blocked here waits for work: the first function below those that only wait is the head of a queue. A
/// C library without frame pointers hides that; then threads that serve others are taken to wait for them.
#[must_use]
pub fn waits_for_work<'a>(lane: Lane, mut user_frames: impl Iterator<Item = &'a Frame>) -> bool {
    match user_frames.find(|frame| !is_wait(frame)) {
        Some(frame) => QUEUES.iter().any(|mark| is_named(&frame.name, mark)),
        None => match lane {
            Lane::V8 | Lane::Other => true,
            // What these wait for is known to the kernel half.
            Lane::Main | Lane::Worker | Lane::ThreadPool => false,
        },
    }
}

fn is_wait(frame: &Frame) -> bool {
    // A stripped libc has places without names.
    frame.name.starts_with("libc.so")
        || frame.name.starts_with("libpthread")
        || WAITS.iter().any(|mark| is_named(&frame.name, mark))
}
