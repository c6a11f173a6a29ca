//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// Pauses that double from failure to failure, each drawn at random from its upper half, so that those who failed
/// together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// The first pause is at most `min` and at least half of it; none is longer than `max`.
    pub const fn between(min: Duration, max: Duration) -> Self {
        Self { min, max }
    }

    /// The pause after the `failures`-th failure in a row; none at all counts as one.
    pub fn after(self, failures: u32) -> Duration {
        let doubled = self.min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.max);
        doubled.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_the_least_to_the_greatest_and_are_drawn_from_their_upper_half() {
        let backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));
        for (failures, whole) in [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (40, 60), (u32::MAX, 60)] {
            for _ in 0..100 {
                let pause = backoff.after(failures).as_secs_f64();
                assert!((f64::from(whole) * 0.5..=f64::from(whole)).contains(&pause), "{failures}: {pause}");
            }
        }
    }
}
