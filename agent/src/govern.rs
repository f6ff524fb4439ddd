//! Keeps the cost of probes under a budget.
//!
//! A probe is affordable as long as its hits are few. A turn passes two tracepoints and seven probes of phases, an item of the thread
//! pool four, a request one: at fifty busy connections that would cost a tenth of a core, a pool that does nothing else a quarter, and
//! a loop that only turns would do it half as often. So these groups are attached all the time where they are cheap, and for a part
//! of it where they are not, and the report says which part was seen. Pure: it is told what happened and answers with what to do.

mod budget;
mod duty;
mod level;
mod price;
mod suspicion;
mod toll;

pub use budget::{Budget, SHARE, STACKS_ASSURED, assured};
pub use duty::{Action, Duty};
pub use level::Level;
use price::hits_of;
pub use price::{Passed, Prices};
pub use suspicion::{Suspicion, Watch};
pub use toll::Tolls;
