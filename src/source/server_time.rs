//! Microsoft's time for the loop of a tenant: used for requests at once, and for positions once it is trusted.

use std::sync::Arc;

use jiff::SignedDuration;
use parking_lot::Mutex;

use crate::api::ServerDate;
use crate::checkpoint::server_clock::ServerClock;
use crate::clock::Clock;
use crate::model::Timestamp;

/// Microsoft's time, shared between the client that observes it and the loop that uses it. Cheap to clone.
#[derive(Clone)]
pub struct ServerTime {
    clock: Arc<dyn Clock>,
    inner: Arc<Mutex<ServerClock>>,
}

impl ServerTime {
    /// Nothing seen yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, inner: Arc::default() }
    }

    /// Records an answer's date.
    pub fn observe(&self, seen: ServerDate) {
        self.lock().observe(seen.date, seen.at);
    }

    /// Restarts from the clock that an earlier run stored.
    pub fn reset(&self, clock: ServerClock) {
        *self.lock() = clock;
    }

    /// The time by which Microsoft judges the next request; this machine's before the first answer.
    pub fn for_requests(&self) -> Timestamp {
        let at = self.clock.monotonic();
        self.lock().latest_answer(at).unwrap_or_else(|| self.clock.now())
    }

    /// Microsoft's time, if it is trusted.
    pub fn trusted(&self) -> Option<Timestamp> {
        let at = self.clock.monotonic();
        let clock = self.lock();
        if clock.is_trusted() { clock.now(at) } else { None }
    }

    /// Whether the latest answers contradict the current estimate.
    pub fn is_doubted(&self) -> bool {
        let at = self.clock.monotonic();
        let clock = self.lock();
        clock.now(at).is_some() && !clock.is_trusted()
    }

    /// Microsoft's time minus this machine's.
    pub fn skew(&self) -> Option<SignedDuration> {
        self.trusted().map(|server| server.duration_since(self.clock.now()))
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, ServerClock> {
        self.inner.lock()
    }
}
