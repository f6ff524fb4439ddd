//! CPUs that do not halt while they are idle.
//!
//! In a virtual machine an idle CPU that halts is given back to the host, and to wake it again takes tens of microseconds of whoever
//! wakes it. How often the CPU of a client halts hangs on when it is interrupted, by whatever: a process that does nothing but sleep
//! can cost a server on another CPU more than any tracer does. That is not what is measured here.

use std::{
    fs::{File, OpenOptions},
    io::Write,
};

/// As the kernel's documentation of power management has it: a latency holds for as long as the file is open.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Idle CPUs poll while this lives.
pub struct Awake(Option<File>);

impl Awake {
    pub fn hold() -> Self {
        let held = OpenOptions::new().write(true).open(LATENCY).and_then(|mut file| {
            // Microseconds until an idle CPU is awake, at most.
            file.write_all(&0i32.to_ne_bytes())?;
            Ok(file)
        });
        Self(held.inspect_err(|error| eprintln!("idle CPUs will halt: {LATENCY}: {error}")).ok())
    }

    /// What the results say of it.
    pub fn word(&self) -> &'static str {
        if self.0.is_some() { "Idle CPUs poll" } else { "Idle CPUs halt" }
    }
}
