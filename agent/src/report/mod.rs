//! The versioned output: the only place that knows the JSON shape.

pub mod build;
pub mod flame;
pub mod heap;
mod histogram_json;
mod merge;
pub mod model;
pub mod names;
mod pg_summary;
pub mod postgres;
pub mod summary;

pub use merge::{dropped, merge_totals, merge_work};
pub use model::{Body, Record};
pub use pg_summary::{ClusterSummary, LockSummary};
