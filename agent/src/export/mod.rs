//! One file an exporter; each sees only the report model.

pub mod ndjson;
pub mod recording;
pub mod text;
