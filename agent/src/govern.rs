//! Keeps the cost of probes under a budget.
//!
//! What takes a trap at each hit is affordable as long as hits are few. A turn passes seven probes of phases, an item of the thread pool
//! four, a request one: at fifty busy connections that would cost a tenth of a core, and a pool that does nothing else a quarter. So
//! these groups are attached all the time where they are cheap, and for a part of it where they are not, and the report says which
//! part was seen. Pure: it is told what happened and answers with what to do.

mod budget;
mod duty;
mod suspicion;

pub use budget::{Budget, SHARE};
pub use duty::{Action, Duty};
pub use suspicion::{Suspicion, Watch};
