//! An estimate of Microsoft's clock, and whether it can be trusted.
//!
//! Windows, expiries and gaps are judged by the `Date` of the API's answers, never by this machine's wall clock. A
//! wrong answer (a proxy's cached page, a back end with a broken clock) must not make the program believe that a week
//! has passed: an answer that differs by more than [`JUMP`] from the last one plus the monotonic time since is set
//! aside until [`AGREEING_ANSWERS`] of them over [`AGREEING_SPAN`] agree. Until then [`ServerClock::is_trusted`] is
//! false, and callers must move no position, remove no key and declare no gap.

use std::time::Duration;

use jiff::SignedDuration;

use crate::model::Timestamp;

/// A larger difference is a jump, not drift.
pub const JUMP: SignedDuration = SignedDuration::from_mins(10);
/// This many answers must agree on a jump before it is believed.
pub const AGREEING_ANSWERS: u32 = 3;
/// The agreeing answers must span at least this long.
pub const AGREEING_SPAN: Duration = Duration::from_secs(5 * 60);

/// Follows the `Date` headers of one tenant's API answers.
#[derive(Debug, Clone)]
pub struct ServerClock {
    not_before: Option<Timestamp>,
    believed: Option<ClockReading>,
    doubted: Option<Doubt>,
}

#[derive(Debug, Clone, Copy)]
struct ClockReading {
    date: Timestamp,
    at: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Doubt {
    last: ClockReading,
    first_at: Duration,
    answers: u32,
}

impl ClockReading {
    fn at(self, monotonic: Duration) -> Timestamp {
        self.date + monotonic.saturating_sub(self.at)
    }
}

impl ServerClock {
    /// A clock without answers, which believes the first one it gets.
    pub fn new() -> Self {
        Self { not_before: None, believed: None, doubted: None }
    }

    /// A clock that starts from the last estimate of an earlier run. The time between the runs is unknown (the
    /// monotonic count does not survive a restart), so a later time is believed; an earlier one is a jump backward.
    pub fn not_before(earlier: Option<Timestamp>) -> Self {
        Self { not_before: earlier, ..Self::new() }
    }

    /// Records an answer's `Date`, received at `at` (monotonic).
    pub fn observe(&mut self, date: Timestamp, at: Duration) {
        let reading = ClockReading { date, at };
        let believed = match (self.believed, self.not_before) {
            (Some(believed), _) => believed,
            (None, Some(earlier)) if date + JUMP < earlier => *self.believed.insert(ClockReading { date: earlier, at }),
            (None, _) => {
                self.believed = Some(reading);
                return;
            }
        };
        if is_near(believed.at(at), date) {
            // Answers overtake each other: a difference of a second backward is ignored.
            self.believed = Some(reading);
            self.doubted = None;
            return;
        }
        let doubt = match self.doubted {
            Some(doubt) if is_near(doubt.last.at(at), date) => {
                Doubt { last: reading, answers: doubt.answers + 1, ..doubt }
            }
            _ => Doubt { last: reading, first_at: at, answers: 1 },
        };
        if doubt.answers >= AGREEING_ANSWERS && at.saturating_sub(doubt.first_at) >= AGREEING_SPAN {
            tracing::warn!(
                before = %believed.at(at), now = %date,
                "Microsoft's clock jumped and has stayed there for 5 minutes: the new time is taken"
            );
            self.believed = Some(reading);
            self.doubted = None;
        } else {
            if doubt.answers == 1 {
                tracing::warn!(
                    expected = %believed.at(at), answered = %date,
                    "Microsoft's clock jumped by more than 10 minutes: nothing is moved or declared until it settles"
                );
            }
            self.doubted = Some(doubt);
        }
    }

    /// The estimate of Microsoft's time at `monotonic`; `None` before the first answer.
    pub fn now(&self, monotonic: Duration) -> Option<Timestamp> {
        self.believed.map(|b| b.at(monotonic))
    }

    /// The time of the latest answer, believed or not: the time by which the server judges the next request.
    pub fn latest_answer(&self, monotonic: Duration) -> Option<Timestamp> {
        self.doubted.map(|d| d.last.at(monotonic)).or_else(|| self.now(monotonic))
    }

    /// Whether the latest answer agreed with the estimate. While false, no position may move by this clock.
    pub fn is_trusted(&self) -> bool {
        self.believed.is_some() && self.doubted.is_none()
    }
}

impl Default for ServerClock {
    fn default() -> Self {
        Self::new()
    }
}

fn is_near(a: Timestamp, b: Timestamp) -> bool {
    a.duration_since(b).abs() <= JUMP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_first_answer_is_believed_and_runs_on() {
        let mut clock = ServerClock::new();
        assert_eq!(clock.now(secs(0)), None);
        assert!(!clock.is_trusted());
        clock.observe(t("2026-05-01T00:00:00Z"), secs(10));
        assert_eq!(clock.now(secs(70)), Some(t("2026-05-01T00:01:00Z")));
        assert!(clock.is_trusted());
    }

    #[test]
    fn a_jump_is_believed_only_after_three_answers_over_five_minutes() {
        let mut clock = ServerClock::new();
        clock.observe(t("2026-05-01T00:00:00Z"), secs(0));
        let jumped = t("2026-05-09T00:00:00Z");
        for at in [1, 2, 3, 4] {
            clock.observe(jumped + secs(at), secs(at));
            assert!(!clock.is_trusted());
            assert_eq!(clock.now(secs(at)), Some(t("2026-05-01T00:00:00Z") + secs(at)));
        }
        assert_eq!(clock.latest_answer(secs(4)), Some(jumped + secs(4)));
        clock.observe(jumped + secs(301), secs(301));
        assert!(clock.is_trusted());
        assert_eq!(clock.now(secs(301)), Some(jumped + secs(301)));
    }

    #[test]
    fn one_wrong_answer_among_right_ones_changes_nothing() {
        let mut clock = ServerClock::new();
        clock.observe(t("2026-05-01T00:00:00Z"), secs(0));
        clock.observe(t("2027-05-01T00:00:00Z"), secs(1));
        assert!(!clock.is_trusted());
        clock.observe(t("2026-05-01T00:00:02Z"), secs(2));
        assert!(clock.is_trusted());
        assert_eq!(clock.now(secs(2)), Some(t("2026-05-01T00:00:02Z")));
    }

    #[test]
    fn answers_that_disagree_with_each_other_are_never_believed() {
        let mut clock = ServerClock::new();
        clock.observe(t("2026-05-01T00:00:00Z"), secs(0));
        for n in 1..50 {
            let date = if n % 2 == 0 { t("2026-07-01T00:00:00Z") } else { t("2026-06-01T00:00:00Z") };
            clock.observe(date, secs(n * 60));
            assert!(!clock.is_trusted());
        }
    }

    #[test]
    fn a_restart_doubts_an_answer_before_what_was_seen_earlier() {
        let mut clock = ServerClock::not_before(Some(t("2026-05-01T00:00:00Z")));
        clock.observe(t("2026-04-01T00:00:00Z"), secs(1));
        assert!(!clock.is_trusted());
        assert_eq!(clock.latest_answer(secs(1)), Some(t("2026-04-01T00:00:00Z")));
        for later in ["2026-04-30T23:55:00Z", "2026-05-09T00:00:00Z"] {
            let mut clock = ServerClock::not_before(Some(t("2026-05-01T00:00:00Z")));
            clock.observe(t(later), secs(1));
            assert!(clock.is_trusted(), "{later}");
        }
    }
}
