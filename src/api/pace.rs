//! The request rate of a tenant: a limiter over every call, which learns what Microsoft grants.
//!
//! The quota is per tenant and publisher, 2,000 requests a minute as a start (Microsoft's "Office 365 Management
//! Activity API reference", API throttling), and Microsoft may grant more or less than the configured number. Microsoft
//! documents neither how it counts (a fixed minute, the last 60 seconds, a bucket that refills) nor whether a refusal
//! means that the quota is used up. So [`machine`] decides by the grants it observes:
//!
//! - Any 60 seconds hold at most 98 % of `max_requests_per_minute`. After a quiet minute all of these may be sent at
//!   once; once they are used up, calls are spaced evenly.
//! - A wait that Microsoft names (`Retry-After`, or in the message) delays every call of the tenant.
//! - After any other refusal, one call is sent alone. If it, or one sent since, is granted, the refusal was a stray and
//!   the rate stays. If it is also refused, calls pause: 1 s (4 s after eight refusals without a grant), doubling to
//!   60 s, with jitter; one call ends each pause.
//! - Four refusals without a grant between them mean that the quota is used up, and so do five within 5 s if fewer
//!   calls were granted: the rate becomes 97 % of the grants of the minute before. If less than a minute was
//!   observed, the rate is a guess: the grants up to then are taken for those of a minute. The next grants correct
//!   it, and it doubles every 30 s without a refusal.
//! - Below 300 grants a minute a pause costs nothing, and what was granted before a refusal may be what a bucket
//!   saved up. There the grants after the refusal alone correct a guess, and no quota is taken to be above the rate
//!   that used it up. At any lowered rate the call after the one that ends a pause waits its turn.
//! - Refusals scattered among grants, over 8 % of a minute, lead to a trial with a lower rate: if as many calls are
//!   granted as before, the old rate was too high; if fewer, the refusals are strays, and the old rate returns. A
//!   lowered rate leads to a trial with a higher one after 4 to 8 minutes: if more is granted, the next trial comes
//!   after a minute and takes a larger step. The trial ends once over a tenth of its calls was refused; below 300
//!   calls a minute two refusals suffice (three, if the minute before had any). If two were refused there, 97 % of
//!   the old rate returns: a bucket's savings may have passed the trials before.
//! - In a cluster a tenant goes from one process to another, and nobody knows what the former one asked for last: the new
//!   one takes it that all was used, and has a twentieth of it in its first minute.
//! - A content type that is refused while others are granted waits by itself, and so does a blob.
//!
//! So, once a minute has passed since a refusal, the rate is not below the grants of that minute. Measured by
//! `machine`'s tests (`model.rs`) against simulated services: see `benches/README.md`, "Pace".
//!
//! The limiter is part of this crate, since no existing one does this: `governor` and `leaky-bucket` have one fixed
//! rate and do not keep a bound on every 60 seconds.

mod machine;
#[cfg(test)]
mod model;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};

use crate::clock::Clock;
use crate::net::RETRY_AFTER_MAX;

pub(super) use machine::{CallPermit, CallSubject, LANES};
use machine::{Machine, Wait};

/// One tenant's pace.
#[derive(Debug)]
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    /// Callers queue, so that none waits for ever.
    turnstile: Semaphore,
    machine: Mutex<Machine>,
    /// An answer may end the wait of the first of them.
    answered: Notify,
}

/// Calls of this content type are refused while others are granted: the call was not sent, and may be after this long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held(pub Duration);

/// A permit to send one request, dropped when the request is over. Dropped without an answer, it counts as a request
/// without one.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    pace: &'a Pace,
    slot: CallPermit,
}

impl Pace {
    /// With `max_requests_per_minute` 0 there is no limit.
    pub fn new(max_requests_per_minute: u32, clock: Arc<dyn Clock>) -> Self {
        let machine = Mutex::new(Machine::new(max_requests_per_minute));
        Self { turnstile: Semaphore::new(1), machine, answered: Notify::new(), clock }
    }

    /// The same, of one who takes over from another process that may just have used all there is.
    pub fn of_heir(max_requests_per_minute: u32, clock: Arc<dyn Clock>) -> Self {
        let pace = Self::new(max_requests_per_minute, clock);
        pace.lock().succeed(pace.clock.monotonic());
        pace
    }

    /// Waits until a request may be sent.
    pub async fn ready(&self, about: CallSubject) -> Result<Leave<'_>, Held> {
        // Never closed; if it were, only the order would be lost.
        let _turn = self.turnstile.acquire().await;
        loop {
            let wait = match self.lock().admit(self.clock.monotonic(), about) {
                Ok(slot) => return Ok(Leave { pace: self, slot }),
                Err(Wait::Lane(wait)) => return Err(Held(wait)),
                Err(Wait::Answer) => None,
                Err(Wait::For(wait)) => Some(wait),
            };
            let answered = self.answered.notified();
            match wait {
                None => answered.await,
                Some(wait) => tokio::select! {
                    () = answered => {}
                    () = self.clock.sleep(wait) => {}
                },
            }
        }
    }

    /// The estimate of requests a minute that are granted; `None` without a limit.
    pub fn granted_per_minute(&self) -> Option<f64> {
        Some(self.lock().limit()).filter(|limit| *limit > 0.0)
    }

    /// Limits itself to half of the grant that `other` estimates.
    pub fn follow_half_of(&self, other: &Pace) {
        if let Some(granted) = other.granted_per_minute() {
            self.lock().follow(granted / 2.0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock()
    }
}

impl Leave<'_> {
    /// The request was answered, and not refused by the quota.
    pub fn granted(&self) {
        self.pace.lock().granted(self.pace.clock.monotonic(), self.slot);
        self.pace.answered.notify_one();
    }

    /// The request was refused by the quota. Returns how long such requests wait from now.
    pub fn refused(&self, named: Option<Duration>) -> Duration {
        let named = named.filter(|wait| !wait.is_zero()).map(|wait| wait.min(RETRY_AFTER_MAX));
        let wait = self.pace.lock().refused(self.pace.clock.monotonic(), self.slot, named, fastrand::f64());
        self.pace.answered.notify_one();
        wait
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.pace.lock().ended(self.slot);
        self.pace.answered.notify_one();
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

    fn pace(max: u32) -> (Pace, TestClock) {
        let clock = clock();
        (Pace::new(max, Arc::new(clock.clone())), clock)
    }

    fn try_ready(pace: &Pace) -> Option<Leave<'_>> {
        pace.ready(CallSubject::default()).now_or_never().map(Result::unwrap)
    }

    #[test]
    fn no_limit_lets_everything_through_at_once() {
        let (pace, _) = pace(0);
        assert!((0..5000).all(|_| try_ready(&pace).is_some()));
        assert_eq!(pace.granted_per_minute(), None);
    }

    #[test]
    fn a_burst_of_refusals_is_one_pause_that_one_call_ends() {
        let (pace, clock) = pace(0);
        let leaves: Vec<Leave<'_>> = (0..8).map(|_| try_ready(&pace).unwrap()).collect();
        for leave in &leaves {
            let wait = leave.refused(None).as_secs_f64();
            assert!((1.0..=2.0).contains(&wait), "{wait}");
        }
        assert!(try_ready(&pace).is_none(), "every call waits");
        clock.advance(Duration::from_secs(2));
        let probe = try_ready(&pace).unwrap();
        let mut next = Box::pin(pace.ready(CallSubject::default()));
        assert!((&mut next).now_or_never().is_none(), "the others wait for the answer of one");
        probe.granted();
        assert!(next.now_or_never().is_some());
    }

    #[test]
    fn a_probe_that_never_comes_back_is_followed_by_another() {
        let (pace, clock) = pace(0);
        try_ready(&pace).unwrap().refused(None);
        clock.advance(Duration::from_secs(2));
        let probe = try_ready(&pace).unwrap();
        let mut next = Box::pin(pace.ready(CallSubject::default()));
        assert!((&mut next).now_or_never().is_none());
        drop(probe);
        assert!(next.now_or_never().is_some());
    }

    #[test]
    fn pauses_double_to_a_minute_and_begin_short_after_grants() {
        let (pace, clock) = pace(0);
        let pause = || {
            let wait = try_ready(&pace).unwrap().refused(None);
            clock.advance(wait);
            wait.as_secs_f64()
        };
        for least in [1.0, 2.0, 4.0, 8.0, 16.0] {
            let wait = pause();
            assert!(wait >= least && wait <= 2.0 * least, "{wait} after {least}");
        }
        // One of these may be short: the machine checks a minute after the first refusal in any case.
        for _ in 0..3 {
            assert!(pause() <= 60.0);
        }
        assert!((45.0..=60.0).contains(&pause()));
        for _ in 0..16 {
            try_ready(&pace).unwrap().granted();
        }
        assert!(pause() <= 2.0);
    }

    #[test]
    fn a_wait_that_is_named_is_obeyed_within_an_hour_by_every_call() {
        for (named, got) in [(7, 7), (3600, 3600), (31_536_000, 3600)] {
            let (pace, clock) = pace(0);
            let others: Vec<Leave<'_>> = (0..3).map(|_| try_ready(&pace).unwrap()).collect();
            let wait = others[0].refused(Some(Duration::from_secs(named)));
            assert_eq!(wait, Duration::from_secs(got));
            others[2].granted();
            clock.advance(wait - Duration::from_millis(1));
            assert!(try_ready(&pace).is_none(), "a grant does not end a wait that was named");
            clock.advance(Duration::from_millis(1));
            assert!(try_ready(&pace).is_some());
        }
    }

    /// All calls that can go, for so long, looked for every quarter of a second; when each went.
    fn calls_of(pace: &Pace, clock: &TestClock, lasts: Duration) -> Vec<Duration> {
        let (mut went, until) = (Vec::new(), clock.monotonic() + lasts);
        while clock.monotonic() < until {
            while let Some(leave) = try_ready(pace) {
                leave.granted();
                went.push(clock.monotonic());
            }
            clock.advance(Duration::from_millis(250));
        }
        went
    }

    fn most_in_a_minute(went: &[Duration]) -> usize {
        let most = |first: &Duration| went.iter().filter(|at| *at >= first && **at < *first + machine::MINUTE).count();
        went.iter().map(most).max().unwrap_or(0)
    }

    #[test]
    fn two_owners_one_after_the_other_stay_within_the_quota_and_a_tenth_in_any_minute() {
        for max in [2000, 100, 10] {
            for first_lasts in [1, 20, 90] {
                let (first, clock) = pace(max);
                let mut went = calls_of(&first, &clock, Duration::from_secs(first_lasts));
                for lasts in [20, 240] {
                    let heir = Pace::of_heir(max, Arc::new(clock.clone()));
                    let its = calls_of(&heir, &clock, Duration::from_secs(lasts));
                    assert!(!its.is_empty(), "it can begin");
                    went.extend(its);
                }
                let most = most_in_a_minute(&went);
                let allowed = (max + max / 10).max(max + 1) as usize;
                assert!(most <= allowed, "{most} of {max} after {first_lasts} s");
                let last = clock.monotonic() - machine::MINUTE;
                let at_the_end = went.iter().filter(|at| **at >= last).count();
                assert!(at_the_end as u32 >= max * 9 / 10, "{at_the_end} of {max}: it has all of it later");
            }
        }
    }

    #[test]
    fn a_share_keeps_to_half_of_what_is_granted() {
        let (pace, _) = pace(2000);
        let (share, _) = pace_of_share();
        share.follow_half_of(&pace);
        assert_eq!(share.granted_per_minute(), Some(980.0));
        let (unlimited, _) = self::pace(0);
        share.follow_half_of(&unlimited);
        assert_eq!(share.granted_per_minute(), Some(980.0));
    }

    fn pace_of_share() -> (Pace, TestClock) {
        pace(1000)
    }
}
