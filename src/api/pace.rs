//! How fast a tenant is asked: a limiter over every call, and a pause shared by all calls while Microsoft throttles.
//!
//! The quota is per tenant and publisher, 2,000 requests a minute as a start (Microsoft's "Office 365 Management
//! Activity API reference", API throttling). It knows nothing of calls and answers: it is told.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
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

/// Our clock, as the limiter wants it.
#[derive(Debug, Clone)]
struct LimiterClock(Arc<dyn Clock>);

impl governor::clock::Clock for LimiterClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, LimiterClock, NoOpMiddleware<Duration>>;

/// One tenant's pace.
#[derive(Debug)]
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    limiter: Option<Limiter>,
    /// Callers wait for the limiter one behind the other, so that none is overtaken for ever.
    turnstile: Semaphore,
    pause: Mutex<Pause>,
}

#[derive(Debug)]
struct Pause {
    /// Counts pauses, so that the answers of one burst lengthen the pause once and not once each.
    epoch: u64,
    until: Duration,
    delays: ExponentialBackoff,
}

/// Leave to send one request; says during which pause epoch it was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    epoch: u64,
}

impl Pace {
    /// `max_requests_per_minute` 0 is no limit.
    pub fn new(max_requests_per_minute: u32, clock: Arc<dyn Clock>) -> Self {
        Self {
            limiter: quota(max_requests_per_minute)
                .map(|quota| RateLimiter::direct_with_clock(quota, LimiterClock(clock.clone()))),
            turnstile: Semaphore::new(1),
            pause: Mutex::new(Pause { epoch: 0, until: Duration::ZERO, delays: pause_delays() }),
            clock,
        }
    }

    /// Waits until a request may go.
    pub async fn ready(&self) -> Slot {
        let Some(limiter) = &self.limiter else {
            return self.after_pause().await;
        };
        // The semaphore is never closed; were it, order is lost and nothing else.
        let _turn = self.turnstile.acquire().await;
        loop {
            self.after_pause().await;
            match limiter.check() {
                Ok(()) => return Slot { epoch: self.lock().epoch },
                Err(not_until) => {
                    self.clock.sleep(not_until.wait_time_from(self.clock.monotonic())).await;
                }
            }
        }
    }

    async fn after_pause(&self) -> Slot {
        loop {
            let (until, epoch) = {
                let pause = self.lock();
                (pause.until, pause.epoch)
            };
            let now = self.clock.monotonic();
            if now >= until {
                return Slot { epoch };
            }
            self.clock.sleep(until - now).await;
        }
    }

    /// A throttled answer came to the request of `slot`; all calls wait. Returns how long from now.
    pub fn throttled(&self, slot: Slot, asked: Option<Duration>) -> Duration {
        let now = self.clock.monotonic();
        let asked = asked.filter(|wait| !wait.is_zero()).map(|wait| wait.min(RETRY_AFTER_MAX));
        let mut pause = self.lock();
        if slot.epoch == pause.epoch {
            let delay = pause.delays.next().unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
            pause.epoch += 1;
            pause.until = now + asked.unwrap_or(delay);
        } else if let Some(asked) = asked {
            pause.until = pause.until.max(now + asked);
        }
        pause.until.saturating_sub(now)
    }

    /// The request of `slot` was answered well: the next pause begins short again.
    pub fn succeeded(&self, slot: Slot) {
        let mut pause = self.lock();
        if slot.epoch == pause.epoch && pause.epoch > 0 {
            pause.delays = pause_delays();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A quota of which any 60 seconds hold at most [`SHARE_PERCENT`] of the allowance: what may burst, plus what is
/// replenished in 60 seconds. An allowance of 1 cannot be shared and is used whole.
fn quota(max_requests_per_minute: u32) -> Option<Quota> {
    if max_requests_per_minute == 0 {
        return None;
    }
    let share = (u64::from(max_requests_per_minute) * SHARE_PERCENT / 100).max(1);
    let burst = (share / 20).clamp(1, BURST_MAX);
    let per_minute = (share - burst).max(1);
    // Rounded up, so that rounding never lets one more through.
    let period = Duration::from_nanos(60_000_000_000_u64.div_ceil(per_minute));
    let burst = u32::try_from(burst).ok().and_then(NonZeroU32::new)?;
    Some(Quota::with_period(period)?.allow_burst(burst))
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
}
