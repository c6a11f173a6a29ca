//! Decides which tenants of a process may read blobs.
//!
//! A tenant that reads holds a share of memory of its own ([`SHARE_BYTES`](super::budget::SHARE_BYTES) of records, and
//! what its first downloads receive into), whatever the others do. After an outage all of them would read at once. So a
//! tenant with blobs to fetch needs a turn, and the number of turns is limited, which bounds the memory. A tenant
//! without a turn lists only a little and waits in line.
//!
//! Tenants whose content expires soon come first, then those with few blobs, as in every ordinary poll, then the
//! others; within a class, in order of arrival. A turn ends when nothing is left to fetch. While others wait it also
//! ends after [`TURN`]: the tenant begins no new fetch, and when its fetches are settled, the next in line gets the
//! turn. If they are not settled within another minute, because a receiver accepts little or nothing or Microsoft sends
//! nothing, the turn is passed on anyway, but only one turn in each [`PASS_ON_EVERY`]. Tenants with another receiver
//! can then continue, and the memory that tenants hold without a turn grows slowly.
//!
//! Pure except for the lock: callers pass the time in, and a tenant that gets a turn is woken by its [`Notify`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::CATCH_UP_TENANTS_MAX;
use crate::metrics;

/// A turn, while others wait: up to some two thousand blobs at the usual quota.
pub const TURN: Duration = Duration::from_secs(60);
/// A turn that is not released is passed on after this long, and at most one turn in this time.
const PASS_ON_EVERY: Duration = Duration::from_secs(60);
/// Up to this many blobs to fetch count as few.
pub(super) const FEW: usize = 8;
/// Blobs known and not settled, of one tenant that reads: above this, listers read no more backlog. Some 700 bytes
/// each.
pub(super) const UNSETTLED_MAX: usize = 10_000;
/// The same for all reading tenants together.
const UNSETTLED_TOGETHER: usize = 200_000;
const UNSETTLED_MIN: usize = 1_000;
/// The same for a tenant that waits. A page is taken whole, so the number may exceed this by a page of each content
/// type.
const UNSETTLED_WAITING: usize = 200;

/// The priority of a turn; the first variant is the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// Content expires soon.
    Expiring,
    /// Few blobs.
    Few,
    /// Many.
    Many,
}

/// The work of a tenant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Whether blobs could be fetched now.
    pub ready: bool,
    /// Whether blobs are being fetched.
    pub fetching: bool,
    /// Its priority.
    pub class: Priority,
    /// How many fetches have ended so far.
    pub ended: u64,
}

/// The state of a tenant in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnState {
    /// Has nothing to fetch.
    Idle,
    /// Has a turn.
    Reading,
    /// Has a turn that is over: its fetches are to be settled, and it begins no new ones.
    Ending,
    /// Waits since then.
    Waiting(Duration),
}

struct HeldTurn {
    since: Duration,
    /// When it was called back.
    called_back: Option<Duration>,
    class: Priority,
    ended: u64,
    /// When a fetch ended last.
    moved: Duration,
}

struct Waiter {
    id: u64,
    since: Duration,
    ended: u64,
    wake: Arc<Notify>,
}

/// The queue. Cheap to clone; one for all tenants of a fleet.
#[derive(Clone)]
pub(super) struct Turns(Arc<Mutex<TurnQueue>>);

struct TurnQueue {
    max: usize,
    next: u64,
    turns: HashMap<u64, HeldTurn>,
    waiting: BTreeMap<(Priority, u64), Waiter>,
    places: HashMap<u64, (Priority, u64)>,
    passed_on: Option<Duration>,
    /// The latest time that a caller passed.
    now: Duration,
    /// The values of the gauges.
    shown: Option<(usize, usize)>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = self.lock();
        write!(f, "Turns({} of {}, {} wait)", line.turns.len(), line.max, line.waiting.len())
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(CATCH_UP_TENANTS_MAX)
    }
}

impl Turns {
    /// A queue with `max` turns, at least one.
    pub(super) fn new(max: u32) -> Self {
        Self(Arc::new(Mutex::new(TurnQueue {
            max: at_least_one(max),
            next: 0,
            turns: HashMap::new(),
            waiting: BTreeMap::new(),
            places: HashMap::new(),
            passed_on: None,
            now: Duration::ZERO,
            shown: None,
        })))
    }

    /// Sets the number of turns. If more are taken, the number falls as turns end.
    pub(super) fn set_max(&self, max: u32) {
        self.lock().max = at_least_one(max);
    }

    /// A seat for one more tenant.
    pub(super) fn seat(&self) -> TurnSeat {
        let mut line = self.lock();
        line.next += 1;
        TurnSeat { turns: self.clone(), id: line.next, wake: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, TurnQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at_least_one(max: u32) -> usize {
    usize::try_from(max).unwrap_or(usize::MAX).max(1)
}

/// A tenant's place among the others, which ends when it is dropped.
pub(super) struct TurnSeat {
    turns: Turns,
    id: u64,
    wake: Arc<Notify>,
}

impl TurnSeat {
    /// Submits the tenant's work at the monotonic time `now`; returns its state in the queue.
    pub(super) fn ask(&self, now: Duration, need: Need) -> TurnState {
        let mut line = self.turns.lock();
        let standing = line.ask(self.id, &self.wake, now, need);
        line.show();
        standing
    }

    /// Resolves when a turn has come.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// How many unsettled blobs a tenant in this state may have.
    pub(super) fn unsettled_max(&self, standing: TurnState) -> usize {
        match standing {
            TurnState::Waiting(_) | TurnState::Ending => UNSETTLED_WAITING,
            TurnState::Idle | TurnState::Reading => {
                let reading = self.turns.lock().turns.len().max(1);
                (UNSETTLED_TOGETHER / reading).clamp(UNSETTLED_MIN, UNSETTLED_MAX)
            }
        }
    }

    /// How many wait before it, and how many turns there are.
    pub(super) fn place(&self) -> (usize, usize) {
        let line = self.turns.lock();
        let before = line.places.get(&self.id).map_or(0, |place| line.waiting.range(..place).count());
        (before, line.max)
    }
}

impl Drop for TurnSeat {
    fn drop(&mut self) {
        let mut line = self.turns.lock();
        line.leave(self.id);
        if line.turns.remove(&self.id).is_some() {
            let now = line.now;
            line.give(now);
        }
        line.show();
    }
}

impl TurnQueue {
    fn ask(&mut self, id: u64, wake: &Arc<Notify>, now: Duration, need: Need) -> TurnState {
        self.now = self.now.max(now);
        if let Some(standing) = self.look_at_turn(id, now, need) {
            return standing;
        }
        if !need.ready {
            self.leave(id);
            return TurnState::Idle;
        }
        let (ticket, waiter) = self.leave(id).unwrap_or_else(|| {
            self.next += 1;
            (self.next, Waiter { id, since: now, ended: need.ended, wake: wake.clone() })
        });
        let since = waiter.since;
        self.places.insert(id, (need.class, ticket));
        self.waiting.insert((need.class, ticket), waiter);
        self.give(now);
        if self.turns.contains_key(&id) { TurnState::Reading } else { TurnState::Waiting(since) }
    }

    /// The state of a tenant with a turn; `None` when it has none, or has lost it.
    fn look_at_turn(&mut self, id: u64, now: Duration, need: Need) -> Option<TurnState> {
        let first = self.waiting.keys().next().map(|(class, _)| *class);
        // Fewer turns than are taken: some were taken back.
        let too_many = self.turns.len() > self.max;
        let turn = self.turns.get_mut(&id)?;
        turn.class = need.class;
        if turn.ended != need.ended {
            (turn.ended, turn.moved) = (need.ended, now);
        }
        let stands_still = now >= turn.moved + TURN;
        let called = match first {
            // A tenant whose content expires yields only to another such tenant, as long as it makes progress.
            Some(first) => turn.class != Priority::Expiring || first == Priority::Expiring || stands_still,
            None => too_many,
        };
        match turn.called_back {
            None if called && now >= turn.since + TURN => turn.called_back = Some(now),
            // The queue is empty again.
            Some(_) if !called => (turn.called_back, turn.since) = (None, now),
            _ => {}
        }
        let Some(called_back) = turn.called_back else {
            if need.ready || need.fetching {
                return Some(TurnState::Reading);
            }
            self.end(id, now);
            return None;
        };
        let is_late = now >= called_back + PASS_ON_EVERY;
        let may_pass_on = self.passed_on.is_none_or(|last| now >= last + PASS_ON_EVERY);
        if need.fetching && !(is_late && may_pass_on) {
            return Some(TurnState::Ending);
        }
        if need.fetching {
            self.passed_on = Some(now);
        }
        self.end(id, now);
        None
    }

    fn end(&mut self, id: u64, now: Duration) {
        self.turns.remove(&id);
        self.give(now);
    }

    fn leave(&mut self, id: u64) -> Option<(u64, Waiter)> {
        let place = self.places.remove(&id)?;
        Some((place.1, self.waiting.remove(&place)?))
    }

    /// Gives free turns to waiting tenants.
    fn give(&mut self, now: Duration) {
        while self.turns.len() < self.max {
            let Some(((class, _), waiter)) = self.waiting.pop_first() else { return };
            self.places.remove(&waiter.id);
            let Waiter { id, ended, wake, .. } = waiter;
            self.turns.insert(id, HeldTurn { since: now, called_back: None, class, ended, moved: now });
            wake.notify_one();
        }
    }

    fn show(&mut self) {
        let now = (self.turns.len(), self.waiting.len());
        if self.shown != Some(now) {
            self.shown = Some(now);
            ::metrics::gauge!(metrics::READING_TENANTS).set(now.0 as f64);
            ::metrics::gauge!(metrics::WAITING_TENANTS).set(now.1 as f64);
        }
    }
}

#[cfg(test)]
mod tests;
