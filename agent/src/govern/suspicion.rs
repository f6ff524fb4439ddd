//! When it is looked at who makes something that may be kept for ever.

/// What shall be watched of something that may be kept for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    #[default]
    Nothing,
    /// What goes away of that which was seen to be made.
    Takers,
    /// Who makes it, and what goes away.
    Makers,
}

/// Decides when it is looked at who makes something: when it grows steadily, for seconds, and then not for a while.
#[derive(Clone, Debug)]
pub struct Suspicion {
    growth_windows: usize,
    making_windows: u32,
    /// The last counts, oldest first.
    counts: Vec<u64>,
    /// Of so many counts each, the least: by these it is seen what grows slowly.
    leasts: Vec<u64>,
    /// How many of the next one are there, and the least of them.
    gathered: (usize, u64),
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Making(u32),
    Taking(u32),
    Resting(u32),
}

/// Windows that a growth is looked at before makers are, and how many times as many where it is slow.
const GROWTH_WINDOWS: usize = 6;
const SLOWLY: usize = 5;
/// Growth over these that is no more than noise.
const GROWTH_MIN: u64 = 32;
/// Windows in which makers are watched, in which what they made is watched on, and in which nothing is.
const MAKING_WINDOWS: u32 = 3;
const TAKING_WINDOWS: u32 = 4;
const RESTING_WINDOWS: u32 = 20;

impl Default for Suspicion {
    fn default() -> Self {
        Self::lasting(MAKING_WINDOWS)
    }
}

impl Suspicion {
    /// Makers are watched for so many windows.
    #[must_use]
    pub fn lasting(making_windows: u32) -> Self {
        Self {
            growth_windows: GROWTH_WINDOWS,
            making_windows,
            counts: Vec::new(),
            leasts: Vec::new(),
            gathered: (0, u64::MAX),
            stage: Stage::Idle,
        }
    }

    /// Two counts are enough: of something that is counted only now and then.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { growth_windows: 2, ..self }
    }

    /// A window has ended, with so many of it where they were counted.
    pub fn step(&mut self, count: Option<u64>) -> Watch {
        if let Some(count) = count {
            self.take(count);
        }
        self.stage = match self.stage {
            Stage::Idle if self.grows() => Stage::Making(self.making_windows),
            Stage::Idle | Stage::Resting(1) => Stage::Idle,
            Stage::Making(1) => Stage::Taking(TAKING_WINDOWS),
            Stage::Making(left) => Stage::Making(left - 1),
            Stage::Taking(1) => Stage::Resting(RESTING_WINDOWS),
            Stage::Taking(left) => Stage::Taking(left - 1),
            Stage::Resting(left) => Stage::Resting(left - 1),
        };
        match self.stage {
            Stage::Idle | Stage::Resting(_) => Watch::Nothing,
            Stage::Making(_) => Watch::Makers,
            Stage::Taking(_) => Watch::Takers,
        }
    }

    fn take(&mut self, count: u64) {
        push(&mut self.counts, count, self.growth_windows);
        let (gathered, least) = self.gathered;
        self.gathered = (gathered + 1, least.min(count));
        if gathered + 1 == SLOWLY {
            push(&mut self.leasts, least.min(count), self.growth_windows);
            self.gathered = (0, u64::MAX);
        }
    }

    fn grows(&self) -> bool {
        [&self.counts, &self.leasts].into_iter().any(|counts| counts.len() == self.growth_windows && grow(counts))
    }
}

fn push(counts: &mut Vec<u64>, count: u64, most: usize) {
    if counts.len() == most {
        counts.remove(0);
    }
    counts.push(count);
}

/// One fall is let pass, but none back to what there was in the first half: what only comes and goes rises four times of five often.
fn grow(counts: &[u64]) -> bool {
    let (Some(first), Some(last)) = (counts.first(), counts.last()) else { return false };
    let (head, tail) = counts.split_at(counts.len() / 2);
    let rises = counts.iter().zip(counts.iter().skip(1)).filter(|(before, after)| after > before).count();
    *last >= first.saturating_add(GROWTH_MIN) && rises + 2 >= counts.len() && tail.iter().min() > head.iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_watched_while_something_grows() {
        let mut steady = Suspicion::default();
        assert!((0..100).all(|n| steady.step(Some(1000 + n % 3)) == Watch::Nothing));
        let mut saw = Suspicion::default();
        let mut teeth = [100, 180, 260, 150, 240, 320].into_iter().cycle().take(100);
        assert!(teeth.all(|count| saw.step(Some(count)) == Watch::Nothing));
        let mut leak = Suspicion::default();
        let mut steps: Vec<_> = (0..20).map(|n| leak.step(Some(n * 400))).collect();
        steps.dedup();
        assert_eq!(steps, [Watch::Nothing, Watch::Makers, Watch::Takers, Watch::Nothing]);
        assert_eq!(leak.step(None), Watch::Nothing);
    }

    #[test]
    fn what_grows_slowly_is_seen_after_a_while() {
        let slow = |each: u64| {
            let mut leak = Suspicion::default();
            (0..60_u64).position(|window| leak.step(Some(1000 + window * each + window % 2 * 8)) == Watch::Makers)
        };
        assert_eq!([0, 1, 3, 40].map(slow), [None, None, Some(29), Some(5)]);
    }

    #[test]
    fn two_counts_are_enough_where_they_are_rare() {
        let mut heap = Suspicion::lasting(5).at_once();
        assert_eq!([Some(100), None, None, Some(120), None].map(|count| heap.step(count)), [Watch::Nothing; 5]);
        assert_eq!(heap.step(Some(160)), Watch::Makers);
    }
}
