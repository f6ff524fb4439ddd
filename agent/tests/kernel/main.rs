//! The agent against the real kernel and real Node.js processes, as root.
//!
//! What is claimed is compared with a truth that was measured inside the target (`workloads/*.js`) or by a peer tool on
//! the same run, over the same instants; every comparison is printed on standard error as a line that begins with
//! `measured`. Where the suite cannot run (no root, no Node.js binaries, no bpftrace) it says so and, on CI, fails.
//!
//! Tests run one at a time whatever the number of test threads: they measure, and the machine may be small.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    reason = "tests: a surprise ends them, and nanoseconds of seconds fit a double"
)]

#[path = "../api_server/mod.rs"]
mod api_server;
mod apps;
#[path = "../streams/collector.rs"]
mod collector;
mod container;
mod daemon;
mod diagnose;
mod event_loop;
mod gc;
mod govern;
mod harness;
mod identity;
mod js;
mod luck;
#[path = "../manifests/mod.rs"]
mod manifests;
mod otlp;
#[path = "../otlp_profiles/mod.rs"]
mod otlp_profiles;
mod overlay;
mod peer;
mod postgres;
mod postgres_waits;
mod profile;
mod records;
mod resident;
mod sched;
mod scrape;
mod soak;
mod stacks;
mod stream;
mod thread_pool;
