//! The one place that reads the time: wall time, a monotonic count, and sleeping.
//!
//! All other code gets a [`Clock`], so that a test can move time. Microsoft's clock (the `Date` header) is not here: it
//! is derived from this one by `checkpoint::server_clock`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::model::Timestamp;

/// Wall time, monotonic time and sleeping.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The wall time of this machine, which may be wrong and may jump.
    fn now(&self) -> Timestamp;
    /// Time since some fixed start; never goes backward.
    fn monotonic(&self) -> Duration;
    /// As [`Clock::monotonic`], but it continues while the machine is suspended, if the system supports that.
    fn since_boot(&self) -> Duration {
        self.monotonic()
    }
    /// Resolves after `duration` of this clock's time.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's own clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic count starts at zero now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[cfg(all(feature = "embedded", target_os = "linux"))]
    fn since_boot(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let part = |number: i64| number.unsigned_abs();
        Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that moves only when a test moves it.
///
/// [`TestClock::advance`] moves it by hand; [`TestClock::advance_to_next_sleeper`] jumps to the earliest deadline of a
/// sleeper, so that a scenario runs through hours of back-off at once.
#[derive(Clone)]
pub struct TestClock {
    inner: Arc<Mutex<TestTime>>,
}

struct TestTime {
    epoch: Timestamp,
    elapsed: Duration,
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    next_id: u64,
}

impl TestClock {
    /// A clock that is stopped at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self {
            inner: Arc::new(Mutex::new(TestTime {
                epoch: now,
                elapsed: Duration::ZERO,
                sleepers: BTreeMap::new(),
                next_id: 0,
            })),
        }
    }

    /// Moves time forward and wakes the sleepers whose deadline has come.
    pub fn advance(&self, by: Duration) {
        let mut time = self.lock();
        time.elapsed += by;
        time.wake();
    }

    /// Jumps to the earliest deadline of a sleeper; `None` when there is none.
    pub fn advance_to_next_sleeper(&self) -> Option<Duration> {
        let mut time = self.lock();
        // A sleeper that was dropped (its future was cancelled) must not pull time forward.
        time.sleepers.retain(|_, wake| !wake.is_closed());
        let deadline = time.sleepers.keys().next()?.0;
        let step = deadline.saturating_sub(time.elapsed);
        time.elapsed = time.elapsed.max(deadline);
        time.wake();
        Some(step)
    }

    /// How many futures sleep on this clock now.
    pub fn sleepers(&self) -> usize {
        let mut time = self.lock();
        time.sleepers.retain(|_, wake| !wake.is_closed());
        time.sleepers.len()
    }

    /// Moves the wall time alone, as an administrator who sets the machine's clock does.
    pub fn set_wall(&self, now: Timestamp) {
        let mut time = self.lock();
        time.epoch = now
            .saturating_sub(jiff::SignedDuration::try_from(time.elapsed).unwrap_or(jiff::SignedDuration::MAX))
            .unwrap_or(now);
    }

    fn lock(&self) -> MutexGuard<'_, TestTime> {
        self.inner.lock()
    }
}

impl TestTime {
    fn wake(&mut self) {
        let later = self.sleepers.split_off(&(self.elapsed + Duration::from_nanos(1), 0));
        for (_, wake) in std::mem::replace(&mut self.sleepers, later) {
            let _ = wake.send(());
        }
    }
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestClock({})", self.now())
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let time = self.lock();
        time.epoch + time.elapsed
    }

    fn monotonic(&self) -> Duration {
        self.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (wake, woken) = oneshot::channel();
        {
            let mut time = self.lock();
            let id = time.next_id;
            time.next_id += 1;
            let deadline = time.elapsed + duration;
            if duration.is_zero() {
                let _ = wake.send(());
            } else {
                time.sleepers.insert((deadline, id), wake);
            }
        }
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_test_clock_wakes_sleepers_in_order_and_only_when_moved() {
        let clock = TestClock::at("2026-05-01T00:00:00Z".parse().unwrap());
        let mut short = clock.sleep(Duration::from_secs(5));
        let mut long = clock.sleep(Duration::from_secs(60));
        assert!((&mut short).now_or_never().is_none());
        assert_eq!(clock.advance_to_next_sleeper(), Some(Duration::from_secs(5)));
        assert!((&mut short).now_or_never().is_some());
        assert!((&mut long).now_or_never().is_none());
        clock.advance(Duration::from_secs(55));
        assert!(long.now_or_never().is_some());
        assert_eq!(clock.now(), "2026-05-01T00:01:00Z".parse::<Timestamp>().unwrap());
        assert_eq!(clock.advance_to_next_sleeper(), None);
    }
}
