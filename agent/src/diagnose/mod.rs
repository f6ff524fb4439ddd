//! Pure rules over what the records of a trace add up to: what is wrong, with the evidence.

pub mod postgres;
