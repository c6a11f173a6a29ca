//! Resources that the sources of one process share: connections, memory, turns to begin and turns to read.
//!
//! A thousand tenants that begin together ask for some ten thousand listings in their first seconds, and again together
//! whenever the process starts. So each takes a turn: the first begins at once, every other one [`BEGIN_EVERY`] after
//! the one before it. A turn passes with time alone: a source that is started later, alone, does not wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::budget::Pool;
use super::turns::Turns;
use crate::api::{Connections, MayAsk};

/// Between the beginnings of two sources: 20 a second, so that a thousand begin within a minute, with some 200 requests
/// a second between them.
pub const BEGIN_EVERY: Duration = Duration::from_millis(50);

/// Resources that the sources of one process share. Cheap to clone. Its connections belong to the runtime the sources
/// run on.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    connections: Connections,
    pool: Pool,
    turns: Turns,
    /// When the next one may begin, by [`Clock::monotonic`](crate::clock::Clock::monotonic).
    next: Arc<Mutex<Duration>>,
}

impl Fleet {
    /// A fleet without sources.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with at most so many connections to Microsoft.
    pub fn bounded(connections: usize) -> Self {
        Self { connections: Connections::at_most(connections), ..Self::default() }
    }

    /// The same, without requests for a tenant while `may_ask` denies them.
    #[must_use]
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for clusters, which are left out"))]
    pub(crate) fn while_allowed(mut self, may_ask: MayAsk) -> Self {
        self.connections = self.connections.while_allowed(may_ask);
        self
    }

    /// The same, with at most so many tenants that read blobs at once (`catch_up_tenants_max`).
    #[must_use]
    pub fn reading_at_most(self, tenants: u32) -> Self {
        self.set_reading_max(tenants);
        self
    }

    /// From now on at most so many tenants read blobs at once.
    pub fn set_reading_max(&self, tenants: u32) {
        self.turns.set_max(tenants);
    }

    /// The connections they share.
    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// The room they share.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whose turn it is to read blobs.
    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Takes the next turn to begin; how long to wait for it, at the monotonic time `now`.
    pub(super) fn turn(&self, now: Duration) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(now);
        *next = turn + BEGIN_EVERY;
        turn - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_begins_at_once_the_others_one_after_the_other_and_a_late_one_at_once() {
        let fleet = Fleet::new();
        let start = Duration::from_secs(7);
        let waits: Vec<Duration> = (0..1000).map(|_| fleet.turn(start)).collect();
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits.windows(2).all(|two| two[1] - two[0] == BEGIN_EVERY));
        assert!(waits[999] < Duration::from_secs(60), "a thousand begin within a minute");
        assert_eq!(fleet.turn(Duration::from_secs(3600)), Duration::ZERO);
    }
}
