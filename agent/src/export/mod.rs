//! One file an exporter; each sees only the report model.

pub mod flamegraph;
pub mod folded;
pub mod ndjson;
pub mod pprof;
pub mod recording;
pub mod speedscope;
pub mod text;
