//! What a rule takes for a growth. Every one can be set: `agent diagnose --threshold NAME=VALUE`.

/// No threshold has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no threshold {name}; there are {}", Thresholds::NAMES.join(", "))]
pub struct UnknownThreshold {
    pub name: String,
}

macro_rules! thresholds {
    ($($(#[$meta:meta])* $name:ident = $default:expr;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct Thresholds { $($(#[$meta])* pub $name: f64,)* }

        impl Default for Thresholds {
            fn default() -> Self { Self { $($name: $default,)* } }
        }

        impl Thresholds {
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Sets one by its name.
            pub fn set(&mut self, name: &str, value: f64) -> Result<(), UnknownThreshold> {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => return Err(UnknownThreshold { name: name.to_owned() }),
                }
                Ok(())
            }
        }
    };
}

thresholds! {
    /// Seconds that a growth must have been watched for.
    span_s = 15.0;
    /// Windows that it must have been watched for.
    windows = 8.0;
    /// Share of the variation that a straight line must explain.
    r2 = 0.9;
    /// Slope of the last third, as a share of the slope of all: a cache that is full, or a server that is warm, has less.
    still_growing = 0.5;
    /// Handles (global ones, in scopes) that must have been gained.
    handles = 300.0;
    /// Handles of libuv of one type that must have been gained.
    loop_handles = 100.0;
    /// Bytes of the JavaScript heap after full collections that must have been gained, and the same as a share of the first.
    heap_bytes = 4e6;
    heap_share = 0.1;
    /// Full collections that must have been seen, and the share of what came before the last one that it left.
    full_collections = 2.0;
    survival = 0.1;
    /// Bytes of native memory that must have been gained, and the same as a share of the first.
    native_bytes = 8e6;
    native_share = 0.15;
    /// Bytes that a handle may hold: memory that grows by less for each is a consequence.
    bytes_held_by_a_handle = 131_072.0;
    /// How many times dearer a request must have become, and by how much: nanoseconds on CPU, items of the thread pool.
    cost_ratio = 1.5;
    cost_ns = 100_000.0;
    cost_items = 2.0;
    /// What a request has gained is felt when it is so many nanoseconds, or such a share of a CPU for all of a second.
    cost_felt_ns = 5e6;
    cost_load = 0.04;
    /// Share of the variation of a cost that a line must explain, of medians of some windows each: costs are noisy.
    cost_r2 = 0.6;
    /// Requests in a window that make its cost a figure.
    requests = 5.0;
    /// A limit that is reached within so many seconds makes a finding critical.
    critical_s = 3_600.0;
    /// So many waiters for one lock of PostgreSQL, one of which waits for so many seconds, are a pile-up; so many, a critical one.
    pileup_waiters = 3.0;
    pileup_s = 2.0;
    pileup_critical = 10.0;
    /// A single wait for a lock is worth a word after so many seconds, and an alarm after ten times that.
    lock_wait_s = 5.0;
}
