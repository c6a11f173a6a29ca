//! Wraps the host's state store and measures how long it takes. A disk or server that hangs returns nothing, not even
//! an error, and a source that waits for it would look healthy.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;

use super::health::{Component, HealthReporter, Level};
use crate::clock::Clock;
use crate::host::{Loaded, Op, Revision, StateError, StateStore};

/// A request that takes longer than this is reported as a fault.
const SLOW_AFTER: Duration = Duration::from_secs(10);

/// The remedy for a store that does not answer.
pub const SLOW_HINT: &str = "look at the file system of the state (`fsfreeze`, NFS, a disk that fails); nothing is lost, \
                             what is not written stays owed";

/// A store that reports when it does not answer.
pub struct SlowStore {
    store: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    reporter: HealthReporter,
}

impl SlowStore {
    /// Wraps `store`, and reports to `reporter` when it does not answer.
    pub fn watching(
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        reporter: &HealthReporter,
    ) -> Arc<dyn StateStore> {
        Arc::new(Self { store, clock, reporter: reporter.clone() })
    }

    async fn watched<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        // Most stores answer a read at once; then the clock is not read.
        if let Some(done) = (&mut work).now_or_never() {
            return done;
        }
        let began = self.clock.monotonic();
        let mut slow: Option<SlowRequest<'_>> = None;
        let mut next = SLOW_AFTER;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.clock.sleep(SLOW_AFTER) => {
                    let age = self.clock.monotonic().saturating_sub(began);
                    let slow = slow.get_or_insert_with(|| SlowRequest::new(&self.reporter));
                    slow.reporter.set_store_waiting(age);
                    // Each of these is a line of the log.
                    if age >= next {
                        next = age * 2;
                        let why = format!("state-slow: {what} the state has been under way for {} s", age.as_secs());
                        slow.reporter.report(Component::Store, Level::Degraded, why, SLOW_HINT);
                    }
                }
            }
        }
    }
}

/// A request that takes long. The last one to end clears the fault.
struct SlowRequest<'a> {
    reporter: &'a HealthReporter,
}

impl<'a> SlowRequest<'a> {
    fn new(reporter: &'a HealthReporter) -> Self {
        reporter.note_slow(1);
        Self { reporter }
    }
}

impl Drop for SlowRequest<'_> {
    fn drop(&mut self) {
        if self.reporter.note_slow(-1) == 0 {
            self.reporter.set_store_waiting(Duration::ZERO);
            self.reporter.clear(Component::Store);
        }
    }
}

#[async_trait]
impl StateStore for SlowStore {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        self.watched("a read of", self.store.load(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.watched("a read of", self.store.list(prefix)).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        self.watched("a commit to", self.store.commit(ops)).await
    }

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        self.watched("a read of", self.store.load_all(after, before)).await
    }

    fn read_ahead_bytes(&self) -> usize {
        self.store.read_ahead_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;
    use crate::host::{Batch, Delivery, DeliveryTicket, Health, Host};
    use parking_lot::Mutex;
    use tokio::sync::Semaphore;

    /// Answers as often as the test permits.
    struct Hanging(Semaphore);

    impl Hanging {
        async fn turn(&self) {
            self.0.acquire().await.unwrap().forget();
        }
    }

    #[async_trait]
    impl StateStore for Hanging {
        async fn load(&self, _: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
            self.turn().await;
            Ok(None)
        }

        async fn list(&self, _: &str) -> Result<Vec<(String, Revision)>, StateError> {
            self.turn().await;
            Ok(Vec::new())
        }

        async fn commit(&self, _: Vec<Op>) -> Result<Revision, StateError> {
            self.turn().await;
            Ok(Revision(1))
        }
    }

    struct Ear(Mutex<Vec<Health>>);

    #[async_trait]
    impl Host for Ear {
        async fn deliver(&self, _: Batch) -> DeliveryTicket {
            DeliveryTicket::resolved(Delivery::Delivered)
        }
        fn state(&self) -> Arc<dyn StateStore> {
            unreachable!()
        }
        fn health(&self, _: &str, health: Health) {
            self.0.lock().push(health);
        }
    }

    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_store_that_hangs_is_told_with_the_age_until_its_last_answer() {
        let clock = Arc::new(TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let ear = Arc::new(Ear(Mutex::default()));
        let tenant = "00000000-0000-0000-0000-000000000000".parse().unwrap();
        let reporter = HealthReporter::new("s".into(), tenant, ear.clone(), clock.clone());
        let hanging = Arc::new(Hanging(Semaphore::new(1)));
        let store = SlowStore::watching(hanging.clone(), clock.clone(), &reporter);
        store.commit(Vec::new()).await.unwrap();
        assert_eq!(clock.sleepers(), 0, "a store that answers at once asks no clock");
        let commit = tokio::spawn({
            let store = store.clone();
            async move { store.commit(Vec::new()).await }
        });
        let load = tokio::spawn({
            let store = store.clone();
            async move { store.load("key").await }
        });
        settle().await;
        clock.advance(Duration::from_secs(9));
        settle().await;
        assert_eq!(reporter.health(), Health::Healthy);
        clock.advance(Duration::from_secs(1));
        settle().await;
        let Health::Degraded { why, .. } = reporter.health() else { panic!("{:?}", reporter.health()) };
        assert!(why.contains("under way for 10 s") && why.contains("hint: look at"), "{why}");
        for _ in 0..29 {
            clock.advance(Duration::from_secs(10));
            settle().await;
        }
        // 10, 20, 40, 80, 160: not a line every ten seconds, for the commit and the read each.
        assert!(ear.0.lock().len() <= 12, "{:?}", ear.0.lock());
        hanging.0.add_permits(1);
        settle().await;
        assert!(matches!(reporter.health(), Health::Degraded { .. }), "one still hangs");
        hanging.0.add_permits(1);
        commit.await.unwrap().unwrap();
        load.await.unwrap().unwrap();
        assert_eq!(reporter.health(), Health::Healthy);
    }
}
