//! Facts about processes and the files that they run. Everything read here belongs to someone else and may be hostile:
//! reads are bounded, arithmetic is checked, and what is refused says why.

pub mod address_map;
pub mod container;
pub mod content;
pub mod declared;
pub mod disasm;
pub mod elf;
pub mod emulate;
pub mod handles;
pub mod heap;
pub mod host;
pub mod identity;
pub mod libuv;
mod main_stack;
pub mod malloc;
pub mod memory;
pub mod node;
pub mod package;
pub mod postgres;
pub mod procfs;
pub mod regions;
pub mod sockets;
mod symbol_index;
pub mod unwind;
pub mod v8;
