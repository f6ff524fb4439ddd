//! temporary
use crate::cli::{DoctorArgs, exit};
pub fn run(_: &DoctorArgs) -> u8 { exit::OK }
