//! Pure figures over decoded events: no I/O, no clock; time comes in as data.

pub mod histogram;
