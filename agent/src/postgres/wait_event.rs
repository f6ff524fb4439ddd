//! What a backend waits for, as `pg_stat_activity` has it: a class and an event.

use serde::{Deserialize, Serialize};

use crate::units::{MonoNs, Pid};

/// `wait_event_info`: the class in the high byte, which is the same in all versions, and the event's number in the class, which is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WaitEvent(pub u32);

impl WaitEvent {
    /// `pg_stat_activity.wait_event_type`.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self.0 >> 24 {
            0x01 => "LWLock",
            0x03 => "Lock",
            0x04 => "BufferPin",
            0x05 => "Activity",
            0x06 => "Client",
            0x07 => "Extension",
            0x08 => "IPC",
            0x09 => "Timeout",
            0x0a => "IO",
            0x0b => "InjectionPoint",
            _ => "Other",
        }
    }

    /// `#59`: what it is called where the server does not say.
    #[must_use]
    pub fn number(self) -> String {
        format!("#{}", self.0 & 0x00ff_ffff)
    }
}

/// A backend that waits, as a window ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenWait {
    /// In the initial pid namespace, as the postmaster's.
    pub pid: Pid,
    /// The postmaster.
    pub cluster: Pid,
    pub event: WaitEvent,
    /// Or earlier, if it began before the trace did.
    pub since: MonoNs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_by_the_high_byte() {
        assert_eq!((WaitEvent(0x0100_003b).class(), WaitEvent(0x0100_003b).number()), ("LWLock", "#59".to_owned()));
        assert_eq!(WaitEvent(0x0a00_0046).class(), "IO");
        assert_eq!(WaitEvent(0xff00_0000).class(), "Other");
    }
}
