//! How fast a tenant is asked: a limiter over every call, and a pause shared by all calls while Microsoft throttles.
//!
//! The quota is per tenant and publisher, 2,000 requests a minute as a start (Microsoft's "Office 365 Management
//! Activity API reference", API throttling), and what is really granted may be less than what is configured. So calls
//! go out one by one after a pause, never all that waited, and a second pause soon after the first halves the pace,
//! which comes back by a quarter a minute. It knows nothing of calls and answers: it is told.
//!
//! The limiter is our own, as one whose rate changes while it runs could not be found: a generic cell rate algorithm,
//! which is one time and one comparison.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::Semaphore;

use crate::auth::RETRY_AFTER_MAX;
use crate::clock::Clock;

/// The share of the allowance that is used at most, in percent; the rest covers calls bunched on their way.
const SHARE_PERCENT: u64 = 98;
/// Calls that may go at once after a quiet time. Small, so that the share holds in any 60 seconds, not just on average.
const BURST_MAX: u64 = 10;
/// First pause after a throttled answer.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause we choose ourselves.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Throttled again within this long after a pause: the quota is less than we think. Microsoft counts by the minute.
const SOON: Duration = Duration::from_secs(60);
/// The slowest pace we choose ourselves: a call in two seconds.
const PERIOD_MAX: Duration = Duration::from_secs(2);

/// One tenant's pace.
#[derive(Debug)]
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    quota: Option<Quota>,
    /// Callers wait for the limiter one behind the other, so that none is overtaken for ever.
    turnstile: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Counts pauses, so that the answers of one burst lengthen the pause once and not once each.
    epoch: u64,
    until: Duration,
    delays: ExponentialBackoff,
    /// When the next call is due at an even pace.
    due: Duration,
    /// The time between two calls: the quota's, or longer while Microsoft grants less.
    period: Duration,
    /// When the pace was changed last.
    changed_at: Duration,
}

/// Leave to send one request; says during which pause epoch it was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    epoch: u64,
}

impl Pace {
    /// `max_requests_per_minute` 0 is no limit.
    pub fn new(max_requests_per_minute: u32, clock: Arc<dyn Clock>) -> Self {
        let quota = Quota::of(max_requests_per_minute);
        let state = State {
            epoch: 0,
            until: Duration::ZERO,
            delays: pause_delays(),
            due: Duration::ZERO,
            period: quota.map_or(Duration::ZERO, |quota| quota.period),
            changed_at: Duration::ZERO,
        };
        Self { quota, turnstile: Semaphore::new(1), state: Mutex::new(state), clock }
    }

    /// Waits until a request may go.
    pub async fn ready(&self) -> Slot {
        // Without a limit nobody waits but for a pause. The semaphore is never closed; were it, order is lost and
        // nothing else.
        let _turn = match self.quota {
            Some(_) => Some(self.turnstile.acquire().await),
            None => None,
        };
        loop {
            let wait = match self.lock().admit(self.clock.monotonic(), self.quota) {
                Ok(slot) => return slot,
                Err(wait) => wait,
            };
            self.clock.sleep(wait).await;
        }
    }

    /// A throttled answer came to the request of `slot`; all calls wait. Returns how long from now.
    pub fn throttled(&self, slot: Slot, asked: Option<Duration>) -> Duration {
        let now = self.clock.monotonic();
        let asked = asked.filter(|wait| !wait.is_zero()).map(|wait| wait.min(RETRY_AFTER_MAX));
        let mut state = self.lock();
        if slot.epoch == state.epoch {
            let delay = state.delays.next().unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
            if self.quota.is_some() && state.epoch > 0 && now < state.until.saturating_add(SOON) {
                state.period = (state.period * 2).min(PERIOD_MAX.max(state.period));
            }
            state.epoch += 1;
            state.until = now + asked.unwrap_or(delay);
            state.changed_at = state.until;
        } else if let Some(asked) = asked {
            state.until = state.until.max(now + asked);
            state.changed_at = state.until;
        }
        state.until.saturating_sub(now)
    }

    /// The request of `slot` was answered well: the next pause begins short again.
    pub fn succeeded(&self, slot: Slot) {
        let mut state = self.lock();
        if slot.epoch == state.epoch && state.epoch > 0 {
            state.delays = pause_delays();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets one call through, or says how long to wait.
    fn admit(&mut self, now: Duration, quota: Option<Quota>) -> Result<Slot, Duration> {
        if now < self.until {
            return Err(self.until - now);
        }
        if let Some(quota) = quota {
            self.recover(now, quota);
            // After a pause nothing may burst: those who waited go one by one.
            let burst = if now < self.until.saturating_add(SOON) && self.epoch > 0 { 0 } else { quota.burst - 1 };
            let earliest = self.due.saturating_sub(self.period * burst);
            if now < earliest {
                return Err(earliest - now);
            }
            self.due = self.due.max(now) + self.period;
        }
        Ok(Slot { epoch: self.epoch })
    }

    /// A minute without a throttled answer: a quarter faster, up to the quota.
    fn recover(&mut self, now: Duration, quota: Quota) {
        while self.period > quota.period && now >= self.changed_at.saturating_add(SOON) {
            self.period = (self.period * 4 / 5).max(quota.period);
            self.changed_at += SOON;
        }
    }
}

/// Doubling with up to as much again in jitter, cut at [`PAUSE_MAX`].
fn pause_delays() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX.mul_f32(0.75))
        .without_max_times()
        .with_jitter()
        .build()
}

/// What any 60 seconds may hold: at most [`SHARE_PERCENT`] of the allowance, as what may burst plus what is replenished
/// in 60 seconds.
#[derive(Debug, Clone, Copy)]
struct Quota {
    /// Between two calls.
    period: Duration,
    /// Calls at once after a quiet time, at least 1.
    burst: u32,
}

impl Quota {
    /// `None` for no limit. An allowance of 1 cannot be shared and is used whole.
    fn of(max_requests_per_minute: u32) -> Option<Quota> {
        if max_requests_per_minute == 0 {
            return None;
        }
        let share = (u64::from(max_requests_per_minute) * SHARE_PERCENT / 100).max(1);
        let burst = (share / 20).clamp(1, BURST_MAX);
        let per_minute = (share - burst).max(1);
        // Rounded up, so that rounding never lets one more through.
        let period = Duration::from_nanos(60_000_000_000_u64.div_ceil(per_minute));
        Some(Quota { period, burst: u32::try_from(burst).unwrap_or(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;
    use futures_util::FutureExt;

    fn clock() -> TestClock {
        TestClock::at("2026-05-01T00:00:00Z".parse().unwrap())
    }

    /// The times at which `n` requests are let through, in seconds.
    fn times(max: u32, n: usize) -> Vec<f64> {
        let clock = clock();
        let pace = Pace::new(max, Arc::new(clock.clone()));
        let mut out = Vec::new();
        for _ in 0..n {
            let mut ready = Box::pin(pace.ready());
            while (&mut ready).now_or_never().is_none() {
                clock.advance_to_next_sleeper();
            }
            out.push(clock.monotonic().as_secs_f64());
        }
        out
    }

    #[test]
    fn no_60_seconds_hold_more_than_98_percent_of_the_allowance() {
        for max in [2, 3, 7, 60, 100, 2000] {
            let times = times(max, 3 * max as usize);
            let most = times
                .iter()
                .map(|start| times.iter().filter(|t| **t >= *start && **t < start + 59.999).count())
                .max()
                .unwrap();
            let allowed = (max as usize * 98 / 100).max(1);
            assert!(most <= allowed, "{most} of {max}");
            assert!(max < 60 || most * 10 >= allowed * 9, "{most} of {max} wastes the allowance");
        }
    }

    #[test]
    fn no_limit_lets_everything_through_at_once() {
        assert_eq!(times(0, 5000).last(), Some(&0.0));
    }

    #[test]
    fn a_burst_of_throttled_answers_is_one_pause() {
        let clock = clock();
        let pace = Pace::new(0, Arc::new(clock.clone()));
        let slots: Vec<Slot> = (0..8).map(|_| pace.ready().now_or_never().unwrap()).collect();
        for slot in &slots {
            let wait = pace.throttled(*slot, None);
            assert!(wait >= PAUSE_MIN && wait <= PAUSE_MIN * 2, "{wait:?}");
        }
        assert!(pace.ready().now_or_never().is_none(), "every call waits");
        clock.advance(PAUSE_MIN * 2);
        assert!(pace.ready().now_or_never().is_some());
    }

    #[test]
    fn pauses_double_to_a_minute_and_begin_short_after_a_success() {
        let clock = clock();
        let pace = Pace::new(0, Arc::new(clock.clone()));
        let pause = || {
            let slot = pace.ready().now_or_never().unwrap();
            let wait = pace.throttled(slot, None);
            clock.advance(wait);
            wait.as_secs_f64()
        };
        for least in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 45.0, 45.0] {
            let wait = pause();
            assert!(wait >= least && wait <= (2.0 * least).min(60.0), "{wait} after {least}");
        }
        pace.succeeded(pace.ready().now_or_never().unwrap());
        assert!(pause() <= 2.0);
    }

    #[test]
    fn a_wait_asked_for_is_obeyed_within_an_hour() {
        for (asked, got) in [(7, 7), (3600, 3600), (31_536_000, 3600)] {
            let pace = Pace::new(0, Arc::new(clock()));
            let slot = pace.ready().now_or_never().unwrap();
            assert_eq!(pace.throttled(slot, Some(Duration::from_secs(asked))), Duration::from_secs(got));
        }
    }

    /// `callers` callers who each wait 300 ms for an answer, against a service that really grants `granted` requests in
    /// any 60 seconds. Answers and refusals, per minute.
    fn against_a_quota_of(granted: usize, max: u32, callers: usize, minutes: u64) -> Vec<(usize, usize)> {
        use std::cell::RefCell;
        use std::collections::VecDeque;

        let clock = clock();
        let pace = Pace::new(max, Arc::new(clock.clone()));
        let recent = RefCell::new(VecDeque::new());
        let counts = RefCell::new(vec![(0, 0); minutes as usize + 1]);
        let call = async || loop {
            let slot = pace.ready().await;
            let now = clock.monotonic();
            let free = {
                let mut recent = recent.borrow_mut();
                while recent.front().is_some_and(|at| now - *at >= Duration::from_secs(60)) {
                    recent.pop_front();
                }
                let free = recent.len() < granted;
                if free {
                    recent.push_back(now);
                }
                free
            };
            let minute = (now.as_secs() / 60).min(minutes) as usize;
            let (answered, refused) = if free { (1, 0) } else { (0, 1) };
            counts.borrow_mut()[minute].0 += answered;
            counts.borrow_mut()[minute].1 += refused;
            clock.sleep(Duration::from_millis(300)).await;
            match free {
                true => pace.succeeded(slot),
                false => _ = pace.throttled(slot, None),
            }
        };
        let mut calls: futures_util::stream::FuturesUnordered<_> = (0..callers).map(|_| call()).collect();
        while clock.monotonic() < Duration::from_secs(minutes * 60) {
            assert!(futures_util::StreamExt::next(&mut calls).now_or_never().is_none());
            clock.advance_to_next_sleeper();
        }
        drop(calls);
        counts.into_inner()
    }

    #[test]
    fn a_quota_a_fiftieth_of_the_configured_one_is_found_with_few_refusals() {
        let counts = against_a_quota_of(40, 2000, 32, 60);
        let (answered, refused) = counts[..10].iter().fold((0, 0), |sum, (a, r)| (sum.0 + a, sum.1 + r));
        assert!(answered >= 200 && refused <= 100, "{answered} answered, {refused} refused while finding the pace");
        let (answered, refused) = counts[10..60].iter().fold((0, 0), |sum, (a, r)| (sum.0 + a, sum.1 + r));
        assert!(answered >= 50 * 40 * 7 / 10, "{answered} answered in 50 minutes");
        assert!(refused * 20 <= answered, "{refused} refused, {answered} answered");
    }

    #[test]
    fn with_the_quota_as_configured_97_percent_of_it_are_used_and_nothing_is_refused() {
        let counts = against_a_quota_of(2000, 2000, 32, 30);
        for (minute, (answered, refused)) in counts[..30].iter().enumerate() {
            assert!(*answered >= 1940 && *refused == 0, "minute {minute}: {answered} answered, {refused} refused");
        }
    }

    #[test]
    fn one_throttled_answer_pauses_and_leaves_the_pace() {
        let clock = clock();
        let pace = Pace::new(2000, Arc::new(clock.clone()));
        let quick = pace.lock().period;
        let throttle = || {
            let slot = loop {
                match pace.ready().now_or_never() {
                    Some(slot) => break slot,
                    None => clock.advance(Duration::from_millis(10)),
                }
            };
            clock.advance(pace.throttled(slot, None));
            pace.lock().period
        };
        assert_eq!(throttle(), quick);
        assert_eq!(throttle(), quick * 2, "again at once");
        clock.advance(Duration::from_secs(600));
        assert!(pace.ready().now_or_never().is_some());
        assert_eq!(pace.lock().period, quick, "it came back");
        assert_eq!(throttle(), quick, "long after");
    }
}
