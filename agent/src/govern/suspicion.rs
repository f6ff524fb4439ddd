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

/// Windows that a growth is looked at before makers are.
const GROWTH_WINDOWS: usize = 6;
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
        Self { growth_windows: GROWTH_WINDOWS, making_windows, counts: Vec::new(), stage: Stage::Idle }
    }

    /// Two counts are enough: of something that is counted only now and then.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { growth_windows: 2, ..self }
    }

    /// A window has ended, with so many of it where they were counted.
    pub fn step(&mut self, count: Option<u64>) -> Watch {
        if let Some(count) = count {
            if self.counts.len() == self.growth_windows {
                self.counts.remove(0);
            }
            self.counts.push(count);
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

    /// One fall is let pass, but none back to what there was in the first half: what only comes and goes rises four times of five often.
    fn grows(&self) -> bool {
        let (Some(first), Some(last)) = (self.counts.first(), self.counts.last()) else { return false };
        let (head, tail) = self.counts.split_at(self.counts.len() / 2);
        let rises = self.counts.iter().zip(self.counts.iter().skip(1)).filter(|(before, after)| after > before).count();
        self.counts.len() == self.growth_windows
            && *last >= first.saturating_add(GROWTH_MIN)
            && rises + 2 >= self.growth_windows
            && tail.iter().min() > head.iter().max()
    }
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
    fn two_counts_are_enough_where_they_are_rare() {
        let mut heap = Suspicion::lasting(5).at_once();
        assert_eq!([Some(100), None, None, Some(120), None].map(|count| heap.step(count)), [Watch::Nothing; 5]);
        assert_eq!(heap.step(Some(160)), Watch::Makers);
    }
}
