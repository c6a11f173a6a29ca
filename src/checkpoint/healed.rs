//! Prevents that an event is delivered both by healing through Microsoft Graph and by the feed at the same time.
//!
//! The texts of one event differ between the two, so the keys of [`super::claims`] are not enough. While a healer works
//! for a tenant, or has worked recently, each batch of either side also registers the canonical keys of its events.
//! Both sides do so under one lock, the *gate*: the second leaves the event to the first and waits for its commit. The
//! receipts show the events that the feed delivered before; the healer is notified of those that it delivers while a
//! search is compared with the receipts (see [`Healed::watch_for`]). Keys of healed events stay in a set of their own
//! until the feed can no longer bring them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::sync::watch;

use super::claims::{ClaimLookup, ClaimState, Dependency, EventIndex, OpenBatch};
use super::key::Key;
use super::key_set::Retention;
use crate::host::{StateError, StateStore};

/// How long the key of a healed event is kept. The feed lists content for seven days, and content has come three days late; so
/// the feed can bring an event that was healed until ten days later, and a process may have been away meanwhile.
pub const HEALED: Retention =
    Retention { age: std::time::Duration::from_secs(15 * 86_400), keys_max: Retention::EVENTS.keys_max };

type KeyMap<T> = HashMap<Key, T, foldhash::fast::RandomState>;
type WatchedKeys = HashSet<Key, foldhash::fast::RandomState>;

/// The healed events of one tenant and the gate. Cheap to clone.
#[derive(Clone)]
pub struct Healed(Arc<HealedInner>);

struct HealedInner {
    index: EventIndex,
    gate: Mutex<HealGate>,
    on: AtomicBool,
    /// Counts fetches of the feed that began before the gate was on.
    unwatched: watch::Sender<usize>,
}

#[derive(Default)]
struct HealGate {
    /// The keys in the feed's batches. The feed may carry one event in two texts, which it treats as two events.
    flying: KeyMap<SmallVec<[u64; 1]>>,
    batches: HashMap<u64, watch::Receiver<bool>>,
    next: u64,
    /// The keys that the healer watches, and those of them that the feed has delivered since.
    wanted: WatchedKeys,
    landed: WatchedKeys,
}

impl Healed {
    /// Made over the keys on disk. The gate is on if there are any.
    pub fn new(index: EventIndex) -> Self {
        let on = index.with_keys(|keys| !keys.is_empty());
        Self(Arc::new(HealedInner {
            index,
            gate: Mutex::default(),
            on: AtomicBool::new(on),
            unwatched: watch::Sender::new(0),
        }))
    }

    /// The set of their keys, for the ledger's commits.
    pub fn index(&self) -> &EventIndex {
        &self.0.index
    }

    fn gate(&self) -> MutexGuard<'_, HealGate> {
        self.0.gate.lock()
    }

    /// Turns the gate on: from now on the feed registers its events, too.
    pub fn turn_on(&self) {
        self.0.on.store(true, Ordering::SeqCst);
    }

    /// The same, and resolves when all fetches of the feed that do not have ended.
    pub async fn turned_on(&self) {
        self.turn_on();
        // The sender is alive, so this cannot fail.
        let _ = self.0.unwatched.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Begins a fetch of the feed.
    pub fn begin(&self) -> FeedsWork {
        self.0.unwatched.send_modify(|count| *count += 1);
        let unwatched = Unwatched(self.clone());
        if self.0.on.load(Ordering::SeqCst) { FeedsWork::Watched } else { FeedsWork::Unwatched(unwatched) }
    }

    /// A batch of the feed that carries nothing yet.
    pub fn flight(&self) -> Flight {
        Flight { healed: self.clone(), number: None, done: watch::Sender::new(false), keys: Vec::new() }
    }

    /// Records which of these keys the feed delivers, until the next call.
    pub fn watch_for(&self, keys: impl IntoIterator<Item = Key>) {
        let mut gate = self.gate();
        gate.landed = WatchedKeys::default();
        gate.wanted = keys.into_iter().collect();
    }

    /// Claims `keys` for a batch of healed events; calls `taken` with the index and state of each that is not claimed.
    ///
    /// # Errors
    /// As [`OpenBatch::claim_all`].
    pub async fn claim(
        &self,
        batch: &mut OpenBatch,
        keys: &[Key],
        store: &dyn StateStore,
        mut taken: impl FnMut(usize, ClaimState),
    ) -> Result<(), (usize, StateError)> {
        let mut next = 0;
        while let Some(key) = keys.get(next).copied() {
            let page = {
                let gate = self.gate();
                match gate.standing(key) {
                    Some(standing) => {
                        taken(next, standing);
                        None
                    }
                    None => match batch.claim_at_once(key) {
                        ClaimLookup::Claimed => None,
                        ClaimLookup::Taken(standing) => {
                            taken(next, standing);
                            None
                        }
                        ClaimLookup::OnPage(page) => Some(page),
                    },
                }
            };
            match page {
                None => next += 1,
                Some(page) => self.0.index.load(page, store).await.map_err(|error| (next, error))?,
            }
        }
        Ok(())
    }
}

impl HealGate {
    /// The state of an event in the feed.
    fn standing(&self, key: Key) -> Option<ClaimState> {
        if self.landed.contains(&key) {
            return Some(ClaimState::Delivered);
        }
        let number = self.flying.get(&key)?.last()?;
        self.batches.get(number).map(|batch| ClaimState::InFlight(Dependency::on(batch.clone())))
    }
}

/// How a fetch of the feed began.
pub enum FeedsWork {
    /// It registers its events at the gate.
    Watched,
    /// It does not; while it lasts, a healer waits.
    Unwatched(Unwatched),
}

/// A fetch of the feed that does not register its events.
pub struct Unwatched(Healed);

impl Drop for Unwatched {
    fn drop(&mut self) {
        self.0.0.unwatched.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// The keys in a batch of the feed. Dropping it before [`Flight::committed`] releases them.
pub struct Flight {
    healed: Healed,
    number: Option<u64>,
    done: watch::Sender<bool>,
    keys: Vec<Key>,
}

impl Flight {
    /// Registers `keys` for this batch; calls `taken` with the index and state of each that a healer has delivered or
    /// is delivering.
    ///
    /// # Errors
    /// As [`OpenBatch::claim_all`].
    pub async fn claim(
        &mut self,
        keys: &[Key],
        store: &dyn StateStore,
        mut taken: impl FnMut(usize, ClaimState),
    ) -> Result<(), (usize, StateError)> {
        let healed = self.healed.clone();
        let mut next = 0;
        while let Some(key) = keys.get(next).copied() {
            let page = {
                let mut gate = healed.gate();
                match healed.0.index.look(key) {
                    ClaimLookup::OnPage(page) => Some(page),
                    ClaimLookup::Taken(standing) => {
                        taken(next, standing);
                        None
                    }
                    ClaimLookup::Claimed => {
                        self.carry(&mut gate, key);
                        None
                    }
                }
            };
            match page {
                None => next += 1,
                Some(page) => healed.0.index.load(page, store).await.map_err(|error| (next, error))?,
            }
        }
        Ok(())
    }

    fn carry(&mut self, gate: &mut HealGate, key: Key) {
        let number = *self.number.get_or_insert_with(|| {
            gate.next += 1;
            gate.batches.insert(gate.next, self.done.subscribe());
            gate.next
        });
        gate.flying.entry(key).or_default().push(number);
        self.keys.push(key);
    }

    /// Releases the newest key: its event is not delivered after all.
    pub fn release_last(&mut self) {
        if let (Some(key), Some(number)) = (self.keys.pop(), self.number) {
            self.healed.gate().free(key, number);
        }
    }

    /// Marks its events as durable.
    pub fn committed(mut self) {
        self.land(true);
        self.done.send_replace(true);
    }

    fn land(&mut self, for_good: bool) {
        let Some(number) = self.number.take() else { return };
        let mut gate = self.healed.gate();
        gate.batches.remove(&number);
        for key in std::mem::take(&mut self.keys) {
            if for_good && gate.wanted.contains(&key) {
                gate.landed.insert(key);
            }
            gate.free(key, number);
        }
    }
}

impl HealGate {
    fn free(&mut self, key: Key, number: u64) {
        if let Some(numbers) = self.flying.get_mut(&key) {
            if let Some(at) = numbers.iter().rposition(|known| *known == number) {
                numbers.remove(at);
            }
            if numbers.is_empty() {
                self.flying.remove(&key);
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land(false);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::checkpoint::key_set::{KeyKind, KeySet};
    use crate::hosts::embedded::memory::MemoryStore;

    async fn healed(store: &MemoryStore) -> Healed {
        Healed::new(EventIndex::new(KeySet::load(store, "t/healed", KeyKind::Events).await.unwrap()))
    }

    fn key(n: u32) -> Key {
        Key::of_anonymous("blob", &n.to_be_bytes(), 0)
    }

    async fn heal(healed: &Healed, batch: &mut OpenBatch, n: u32, store: &MemoryStore) -> Option<ClaimState> {
        let mut standing = None;
        assert!(healed.claim(batch, &[key(n)], store, |_, known| standing = Some(known)).await.is_ok());
        standing
    }

    async fn fly(flight: &mut Flight, n: u32, store: &MemoryStore) -> Option<ClaimState> {
        let mut standing = None;
        assert!(flight.claim(&[key(n)], store, |_, known| standing = Some(known)).await.is_ok());
        standing
    }

    #[tokio::test]
    async fn whoever_comes_second_leaves_the_event_to_the_first_and_takes_it_when_that_gives_up() {
        let store = MemoryStore::new();
        let healed = healed(&store).await;
        let (mut flight, mut batch) = (healed.flight(), healed.index().open_batch());
        assert!(fly(&mut flight, 1, &store).await.is_none());
        let Some(ClaimState::InFlight(feed)) = heal(&healed, &mut batch, 1, &store).await else {
            panic!("not in flight")
        };
        assert!(heal(&healed, &mut batch, 2, &store).await.is_none());
        let Some(ClaimState::InFlight(graph)) = fly(&mut flight, 2, &store).await else { panic!("not in flight") };
        drop(flight);
        assert!(!feed.committed().await);
        assert!(heal(&healed, &mut batch, 1, &store).await.is_none());
        drop(batch);
        assert!(!graph.committed().await);
        assert!(fly(&mut healed.flight(), 2, &store).await.is_none());
        assert!(healed.gate().flying.is_empty() && healed.gate().batches.is_empty());
    }

    #[tokio::test]
    async fn what_the_feed_brings_while_it_is_watched_for_is_known_and_two_texts_of_one_event_are_two_to_the_feed() {
        let store = MemoryStore::new();
        let healed = healed(&store).await;
        healed.watch_for([key(1)]);
        let (mut one, mut other) = (healed.flight(), healed.flight());
        assert!(fly(&mut one, 1, &store).await.is_none());
        assert!(fly(&mut other, 1, &store).await.is_none());
        assert!(fly(&mut other, 2, &store).await.is_none());
        one.committed();
        other.committed();
        let mut batch = healed.index().open_batch();
        assert!(matches!(heal(&healed, &mut batch, 1, &store).await, Some(ClaimState::Delivered)));
        assert!(heal(&healed, &mut batch, 2, &store).await.is_none(), "nobody watched for it");
    }

    #[tokio::test]
    async fn a_healer_waits_for_work_of_the_feed_that_began_before_the_gate_was_on() {
        let store = MemoryStore::new();
        let healed = healed(&store).await;
        let FeedsWork::Unwatched(work) = healed.begin() else { panic!("the gate is on") };
        let mut on = std::pin::pin!(healed.turned_on());
        assert!((&mut on).now_or_never().is_none());
        assert!(matches!(healed.begin(), FeedsWork::Watched));
        assert!((&mut on).now_or_never().is_none());
        drop(work);
        assert!(on.now_or_never().is_some());
    }
}
