//! Run-queue latency: differences of the kernel half's own histogram.

use std::collections::BTreeMap;

use agent_ebpf::state::RunQueueKey;

use super::histogram::Histogram;
use crate::{
    counters::{Counters, Reason},
    decode::Class,
    limits::RUN_QUEUE_BUCKETS_MAX,
    units::Pid,
};

/// Latencies of a window by process and class.
pub type Latencies = BTreeMap<(Pid, Class), Histogram>;

/// Counts up to the last window, as the map in the kernel never forgets.
#[derive(Clone, Debug, Default)]
pub struct RunQueueBook {
    seen: BTreeMap<(u32, u16, u16), u64>,
}

impl RunQueueBook {
    /// What was added since the last call.
    pub fn close(&mut self, counts: &[(RunQueueKey, u64)], counters: &mut Counters) -> Latencies {
        let mut latencies = Latencies::new();
        for &(RunQueueKey { tgid, class, bucket }, count) in counts {
            let key = (tgid, class, bucket);
            if self.seen.len() >= RUN_QUEUE_BUCKETS_MAX && !self.seen.contains_key(&key) {
                counters.add(Reason::RunQueueFull);
                continue;
            }
            let before = self.seen.insert(key, count).unwrap_or(0);
            let class = Class::of_code(u32::from(class)).unwrap_or_else(|| {
                counters.add(Reason::CodeUnknown);
                Class::Other
            });
            let added = count.saturating_sub(before);
            if added != 0 {
                latencies.entry((Pid(tgid), class)).or_default().record_bucket(u32::from(bucket), added);
            }
        }
        latencies
    }

    /// Forgets a process.
    pub fn forget(&mut self, pid: Pid) {
        let of_pid: Vec<_> =
            self.seen.range((pid.0, 0, 0)..=(pid.0, u16::MAX, u16::MAX)).map(|(&key, _)| key).collect();
        for key in of_pid {
            self.seen.remove(&key);
        }
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_what_was_added() {
        let mut book = RunQueueBook::default();
        let mut counters = Counters::default();
        let key = RunQueueKey { tgid: 7, class: 1, bucket: 640 };
        assert_eq!(book.close(&[(key, 5)], &mut counters)[&(Pid(7), Class::EventLoop)].count(), 5);
        assert_eq!(book.close(&[(key, 12)], &mut counters)[&(Pid(7), Class::EventLoop)].count(), 7);
        assert!(book.close(&[(key, 12)], &mut counters).is_empty());
        book.forget(Pid(7));
        assert_eq!(book.close(&[(key, 2)], &mut counters)[&(Pid(7), Class::EventLoop)].count(), 2);
    }
}
