//! The versioned output: the only place that knows the JSON shape.

pub mod build;
mod histogram_json;
pub mod model;
pub mod summary;

pub use model::{Body, Record};
