//! The pauses before a failed operation is retried: the one rule by which they grow, for calls of the API, sign-ins,
//! sinks and the state.

use std::time::Duration;

/// Pauses that double from failure to failure, each drawn at random from its upper half, so that operations that failed
/// together are not retried together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    is_random: bool,
}

impl Backoff {
    /// The first pause is at most `min` and at least half of it; none is longer than `max`.
    pub const fn between(min: Duration, max: Duration) -> Self {
        Self { min, max, is_random: true }
    }

    /// The same without randomness, for an operation that has no others beside it.
    #[must_use]
    pub const fn exactly(self) -> Self {
        Self { is_random: false, ..self }
    }

    /// The pause after the `failures`-th failure in a row; 0 counts as 1.
    pub fn after(self, failures: u32) -> Duration {
        let doubled = self.min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.max);
        if self.is_random { doubled.mul_f64(0.5 + 0.5 * fastrand::f64()) } else { doubled }
    }

    /// No failure yet.
    pub const fn failures(self) -> Failures {
        Failures { backoff: self, count: 0 }
    }
}

/// Failures in a row of one operation.
#[derive(Debug, Clone)]
pub struct Failures {
    backoff: Backoff,
    count: u32,
}

impl Failures {
    /// Counts one more; returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        self.count = self.count.saturating_add(1);
        self.backoff.after(self.count)
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
                assert!((whole as f64 * 0.5..=whole as f64).contains(&pause), "{failures}: {pause}");
            }
            assert_eq!(backoff.exactly().after(failures).as_secs(), whole);
        }
    }

    #[test]
    fn failures_in_a_row_are_counted() {
        let mut failures = Backoff::between(Duration::from_secs(1), Duration::from_secs(5)).exactly().failures();
        let pauses: Vec<u64> = (0..5).map(|_| failures.pause().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
    }
}
