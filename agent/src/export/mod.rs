//! One file an exporter; each sees only the report model.

pub mod bunyan;
pub mod flamegraph;
pub mod folded;
mod message;
pub mod ndjson;
pub mod otlp;
pub mod pprof;
pub mod prometheus;
pub mod recording;
pub mod serve;
pub mod speedscope;
pub mod stream;
pub mod text;
