//! Getting programs into the kernel and figures out of its maps. With [`crate::intake`], the only user of aya.

pub mod allotment;
pub mod attach;
pub mod btf;
pub mod maps;
pub mod plan;
pub mod tables;
pub mod tracefs;
pub mod way;
