//! Which events are delivered for good, and which are in flight: the two levels behind "never twice".
//!
//! A key becomes permanent when the commit that holds it is durable. Until then it is *claimed* by the batch that
//! carries its event: a second copy of the event is not sent, but its blob settles only when the claiming batch is
//! committed. A batch that is given up (its task ended) releases its claims; a fetch that waited for it fetches its
//! blob again and claims the event itself.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::key::Key;
use super::key_set::{ChangeToken, KeySet, PageId, Probe};
use crate::host::{StateError, StateStore};

/// The delivered events of one tenant and the claims of its batches in flight. Cheap to clone.
///
/// Code that takes both locks takes `keys` first. A key leaves the claims only after it is in the set, so reading both
/// under the first lock cannot miss it.
#[derive(Clone)]
pub struct EventIndex {
    keys: Arc<Mutex<KeySet>>,
    claims: Arc<Mutex<ClaimTable>>,
    /// Notified whenever a staged change took effect or was given up.
    settled: Arc<Notify>,
}

/// The keys claimed, each with the number of its batch: by number, because a claim is made and released for every
/// event.
#[derive(Default)]
struct ClaimTable {
    /// Keys are hashes of an event's content, so a hostile event cannot choose a place in this table. A claim held by a
    /// batch not in `batches` counts as free.
    keys: HashMap<Key, u64, foldhash::fast::RandomState>,
    batches: HashMap<u64, watch::Receiver<bool>, foldhash::fast::RandomState>,
    next: u64,
    /// The maximum number of `keys` that are free.
    freed: usize,
}

impl ClaimTable {
    /// Releases all `keys` of a batch. They stay in the table until half of its entries are free, and are then removed
    /// in one pass: looking up each would cost ten times as much.
    fn free(&mut self, number: u64, keys: usize) {
        self.batches.remove(&number);
        self.freed += keys;
        if self.batches.is_empty() {
            self.keys.clear();
            self.freed = 0;
        } else if self.freed > self.keys.len() / 2 {
            let batches = &self.batches;
            self.keys.retain(|_, number| batches.contains_key(number));
            self.freed = 0;
        }
    }
}

/// The state of an event at the moment of a claim.
pub enum ClaimState {
    /// Never seen: now claimed by the batch that asked.
    Claimed,
    /// Delivered for good.
    Delivered,
    /// In flight in the batch that asked.
    InThisBatch,
    /// In flight in another batch; settle only when that one is committed.
    InFlight(Dependency),
}

/// Resolves when another batch is committed, or given up.
#[derive(Clone, Debug)]
pub struct Dependency(watch::Receiver<bool>);

impl Dependency {
    /// Depends on the batch that sends on `done`.
    pub(super) fn on(done: watch::Receiver<bool>) -> Self {
        Self(done)
    }

    /// Whether both are the same batch.
    pub fn is_same(&self, other: &Dependency) -> bool {
        self.0.same_channel(&other.0)
    }

    /// True once the batch is committed, false when it was given up.
    pub async fn committed(mut self) -> bool {
        self.0.wait_for(|done| *done).await.is_ok()
    }
}

/// The state of a key as far as memory shows.
pub(super) enum ClaimLookup {
    /// It was free: the caller has claimed it, or may.
    Claimed,
    /// It is taken.
    Taken(ClaimState),
    /// This page must be read to find out.
    OnPage(PageId),
}

/// The keys that a batch in flight has claimed. Dropping it before [`OpenBatch::committed`] frees them.
pub struct OpenBatch {
    index: EventIndex,
    done: watch::Sender<bool>,
    /// Its number among the claims; `None` until it claims something.
    number: Option<u64>,
    keys: Vec<Key>,
}

impl EventIndex {
    /// An index over the keys on disk.
    pub fn new(keys: KeySet) -> Self {
        Self { keys: Arc::new(Mutex::new(keys)), claims: Arc::default(), settled: Arc::default() }
    }

    /// Begins a batch that claims nothing yet.
    pub fn open_batch(&self) -> OpenBatch {
        OpenBatch { index: self.clone(), done: watch::Sender::new(false), number: None, keys: Vec::new() }
    }

    /// Whether `key` is permanent.
    ///
    /// # Errors
    /// When a page of keys had to be read from the store and could not be.
    pub async fn contains(&self, key: Key, store: &dyn StateStore) -> Result<bool, StateError> {
        loop {
            match self.with_keys(|keys| keys.probe(key)) {
                Probe::Present => return Ok(true),
                Probe::Absent => return Ok(false),
                Probe::Maybe(page) => self.load(page, store).await?,
            }
        }
    }

    /// Loads a page of keys into memory.
    pub(super) async fn load(&self, page: PageId, store: &dyn StateStore) -> Result<(), StateError> {
        let name = self.with_keys(|keys| keys.page_key(page));
        // Created before the store is read, so that a change which takes effect meanwhile is not missed.
        let mut settled = std::pin::pin!(self.settled.notified());
        settled.as_mut().enable();
        if let Some((bytes, _)) = store.load(&name).await? {
            return self.with_keys(|keys| keys.page_loaded(page, bytes));
        }
        if self.with_keys(|keys| keys.must_be_stored(page)) {
            return Err(StateError::Corrupt { key: name, why: "the page is missing".into() });
        }
        // A commit has removed the page from the store and is about to remove it from memory: its keys are in another
        // page, which the caller finds at its next lookup.
        if self.with_keys(|keys| keys.has_page(page)) {
            settled.await;
        }
        Ok(())
    }

    /// Records that a staged change of the key set is durable.
    pub fn change_committed(&self, token: ChangeToken) {
        self.with_keys(|keys| keys.committed(token));
        self.settled.notify_waiters();
    }

    /// Records that a staged change of the key set failed and changed nothing.
    pub fn change_aborted(&self, token: ChangeToken) {
        self.with_keys(|keys| keys.aborted(token));
        self.settled.notify_waiters();
    }

    /// Works on the key set, for the ledger's commits.
    pub fn with_keys<T>(&self, work: impl FnOnce(&mut KeySet) -> T) -> T {
        work(&mut self.lock_keys())
    }

    /// The key set, for work that reads the store in between.
    pub fn keys(&self) -> &Mutex<KeySet> {
        &self.keys
    }

    /// The state of a key, as far as memory shows; claims nothing.
    pub(super) fn look(&self, key: Key) -> ClaimLookup {
        let set = self.lock_keys();
        let claims = self.lock_claims();
        match set.probe(key) {
            Probe::Present => ClaimLookup::Taken(ClaimState::Delivered),
            Probe::Maybe(page) => ClaimLookup::OnPage(page),
            Probe::Absent => match claims.keys.get(&key).and_then(|number| claims.batches.get(number)) {
                Some(batch) => ClaimLookup::Taken(ClaimState::InFlight(Dependency(batch.clone()))),
                None => ClaimLookup::Claimed,
            },
        }
    }

    fn lock_keys(&self) -> MutexGuard<'_, KeySet> {
        self.keys.lock()
    }

    fn lock_claims(&self) -> MutexGuard<'_, ClaimTable> {
        self.claims.lock()
    }
}

enum Glance {
    Known(ClaimState),
    OnPage(PageId),
}

impl OpenBatch {
    /// Claims `key` for this batch unless it is delivered or claimed already.
    ///
    /// # Errors
    /// When a page of keys had to be read from the store and could not be; nothing is claimed then.
    pub async fn claim(&mut self, key: Key, store: &dyn StateStore) -> Result<ClaimState, StateError> {
        let mut standing = ClaimState::Claimed;
        match self.claim_all(&[key], store, |_, known| standing = known).await {
            Ok(()) => Ok(standing),
            Err((_, error)) => Err(error),
        }
    }

    /// Claims each of `keys` as [`OpenBatch::claim`] does, in their order and with one access to the data that all
    /// batches share; calls `taken` with the index and state of each key that this does not claim.
    ///
    /// # Errors
    /// As [`OpenBatch::claim`], with the index of the first key whose state is unknown; nothing is claimed from there
    /// on.
    pub async fn claim_all(
        &mut self,
        keys: &[Key],
        store: &dyn StateStore,
        mut taken: impl FnMut(usize, ClaimState),
    ) -> Result<(), (usize, StateError)> {
        let mut next = 0;
        self.keys.reserve(keys.len());
        while let Some(page) = self.glance_all(keys, &mut next, &mut taken) {
            self.index.load(page, store).await.map_err(|error| (next, error))?;
        }
        Ok(())
    }

    /// Continues from `next` as far as memory shows: to the end, or to a key that may be on the page returned.
    fn glance_all(
        &mut self,
        keys: &[Key],
        next: &mut usize,
        taken: &mut impl FnMut(usize, ClaimState),
    ) -> Option<PageId> {
        let index = self.index.clone();
        let set = index.lock_keys();
        let mut claims = index.lock_claims();
        while let Some(key) = keys.get(*next) {
            match self.glance(*key, &set, &mut claims) {
                Glance::Known(ClaimState::Claimed) => {}
                Glance::Known(standing) => taken(*next, standing),
                Glance::OnPage(page) => return Some(page),
            }
            *next += 1;
        }
        None
    }

    fn glance(&mut self, key: Key, keys: &KeySet, claims: &mut ClaimTable) -> Glance {
        match keys.probe(key) {
            Probe::Present => return Glance::Known(ClaimState::Delivered),
            Probe::Maybe(page) => return Glance::OnPage(page),
            Probe::Absent => {}
        }
        let holder = claims.keys.get(&key).copied();
        let standing = match holder.and_then(|number| Some((number, claims.batches.get(&number)?))) {
            Some((number, _)) if Some(number) == self.number => ClaimState::InThisBatch,
            Some((_, batch)) => ClaimState::InFlight(Dependency(batch.clone())),
            None => {
                let number = *self.number.get_or_insert_with(|| {
                    claims.next += 1;
                    claims.batches.insert(claims.next, self.done.subscribe());
                    claims.next
                });
                claims.keys.insert(key, number);
                self.keys.push(key);
                ClaimState::Claimed
            }
        };
        Glance::Known(standing)
    }

    /// Claims a key, as far as memory shows.
    pub(super) fn claim_at_once(&mut self, key: Key) -> ClaimLookup {
        let index = self.index.clone();
        let set = index.lock_keys();
        let mut claims = index.lock_claims();
        match self.glance(key, &set, &mut claims) {
            Glance::Known(ClaimState::Claimed) => ClaimLookup::Claimed,
            Glance::Known(standing) => ClaimLookup::Taken(standing),
            Glance::OnPage(page) => ClaimLookup::OnPage(page),
        }
    }

    /// Releases these claims, for events that are not delivered after all.
    pub fn release_claims(&mut self, keys: &[Key]) {
        if keys.is_empty() {
            return;
        }
        self.keys.retain(|key| !keys.contains(key));
        let mut claims = self.index.lock_claims();
        for key in keys {
            claims.keys.remove(key);
        }
    }

    /// Releases the newest claim, for an event that is not delivered after all.
    pub fn release_last(&mut self) {
        if let Some(key) = self.keys.pop() {
            self.index.lock_claims().keys.remove(&key);
        }
    }

    /// The keys claimed so far, which the commit that follows the delivery makes permanent.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Marks the keys as durable: tasks that wait for this batch may continue.
    pub fn committed(mut self) {
        self.release();
        self.done.send_replace(true);
    }

    fn release(&mut self) {
        let keys = std::mem::take(&mut self.keys).len();
        if let Some(number) = self.number.take() {
            self.index.lock_claims().free(number, keys);
        }
    }
}

impl Drop for OpenBatch {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::key_set::KeyKind;
    use crate::hosts::embedded::memory::MemoryStore;
    use crate::model::Timestamp;
    use futures_util::FutureExt;

    async fn index(store: &MemoryStore) -> EventIndex {
        EventIndex::new(KeySet::load(store, "t/events", KeyKind::Events).await.unwrap())
    }

    fn key(n: u32) -> Key {
        Key::of_anonymous("blob", &n.to_be_bytes(), 0)
    }

    #[tokio::test]
    async fn the_second_copy_waits_for_the_first_and_takes_its_place_when_that_is_given_up() {
        let store = MemoryStore::new();
        let index = index(&store).await;
        let (mut first, mut second) = (index.open_batch(), index.open_batch());
        assert!(matches!(first.claim(key(1), &store).await, Ok(ClaimState::Claimed)));
        assert!(matches!(first.claim(key(1), &store).await, Ok(ClaimState::InThisBatch)));
        let Ok(ClaimState::InFlight(dependency)) = second.claim(key(1), &store).await else { panic!("not in flight") };
        drop(first);
        assert!(!dependency.committed().await);
        assert!(matches!(second.claim(key(1), &store).await, Ok(ClaimState::Claimed)));
    }

    #[tokio::test]
    async fn keys_of_batches_that_ended_can_be_claimed_and_do_not_pile_up() {
        let store = MemoryStore::new();
        let index = index(&store).await;
        let mut stays = index.open_batch();
        assert!(matches!(stays.claim(key(0), &store).await, Ok(ClaimState::Claimed)));
        for round in 0..1000 {
            let mut batch = index.open_batch();
            let keys: Vec<Key> = (1..=10).map(|n| key(round / 2 * 10 + n)).collect();
            let all = batch.claim_all(&keys, &store, |at, _| panic!("{at} of round {round} is still claimed")).await;
            assert!(all.is_ok());
            assert!(matches!(batch.claim(key(0), &store).await, Ok(ClaimState::InFlight(_))));
            drop(batch);
            let kept = index.lock_claims().keys.len();
            assert!(kept <= 1 + 2 * 11, "{kept} in round {round}");
        }
        drop(stays);
        assert_eq!(index.lock_claims().keys.len(), 0);
    }

    #[tokio::test]
    async fn keys_claimed_together_stand_as_if_each_had_been_claimed_by_itself() {
        let store = MemoryStore::new();
        let index = index(&store).await;
        let (mut first, mut second) = (index.open_batch(), index.open_batch());
        assert!(matches!(first.claim(key(1), &store).await, Ok(ClaimState::Claimed)));
        let keys = [key(2), key(1), key(3), key(2)];
        let mut taken = Vec::new();
        assert!(second.claim_all(&keys, &store, |at, standing| taken.push((at, standing))).await.is_ok());
        assert!(matches!(taken[..], [(1, ClaimState::InFlight(_)), (3, ClaimState::InThisBatch)]));
        assert_eq!(second.keys(), [key(2), key(3)]);
    }

    #[tokio::test]
    async fn of_keys_claimed_together_those_before_a_page_that_cannot_be_read_are_claimed() {
        let store = MemoryStore::new();
        let full = index(&store).await;
        let keys: Vec<Key> = (0..20_000).map(key).collect();
        let staged = full.with_keys(|set| set.stage(&keys, Timestamp::UNIX_EPOCH));
        store.commit(staged.ops).await.unwrap();
        full.change_committed(staged.token);
        let reloaded = index(&store).await;
        for key in store.entries().keys() {
            store.overwrite(key, None);
        }
        let mut open = reloaded.open_batch();
        let wanted = [key(20_001), keys[7], key(20_002)];
        let mut taken = 0;
        let result = open.claim_all(&wanted, &store, |_, _| taken += 1).await;
        assert!(matches!(result, Err((1, StateError::Corrupt { .. }))));
        assert_eq!((open.keys(), taken), (&wanted[..1], 0));
    }

    #[tokio::test]
    async fn a_committed_key_is_delivered_and_its_claim_gone() {
        let store = MemoryStore::new();
        let index = index(&store).await;
        let (mut first, mut second) = (index.open_batch(), index.open_batch());
        assert!(matches!(first.claim(key(1), &store).await, Ok(ClaimState::Claimed)));
        let Ok(ClaimState::InFlight(dependency)) = second.claim(key(1), &store).await else { panic!("not in flight") };
        let staged = index.with_keys(|keys| keys.stage(first.keys(), Timestamp::UNIX_EPOCH));
        store.commit(staged.ops).await.unwrap();
        index.change_committed(staged.token);
        first.committed();
        assert!(dependency.committed().await);
        assert!(matches!(second.claim(key(1), &store).await, Ok(ClaimState::Delivered)));
    }

    #[tokio::test]
    async fn a_page_that_a_commit_has_just_removed_is_not_taken_for_damage() {
        let store = MemoryStore::new();
        let index = index(&store).await;
        let keys: Vec<Key> = (0..20_000).map(key).collect();
        let staged = index.with_keys(|set| set.stage(&keys, Timestamp::UNIX_EPOCH));
        store.commit(staged.ops).await.unwrap();
        index.change_committed(staged.token);
        assert!(matches!(index.contains(keys[0], &store).await, Ok(true)));

        // Removes every page: the store already has the change, memory not yet.
        let reloaded = EventIndex::new(KeySet::load(&store, "t/events", KeyKind::Events).await.unwrap());
        let staged = reloaded.with_keys(|set| set.clear()).unwrap();
        store.commit(staged.ops).await.unwrap();
        let mut asked = std::pin::pin!(reloaded.contains(keys[0], &store));
        assert!((&mut asked).now_or_never().is_none(), "it waits for the commit to take effect");
        reloaded.change_committed(staged.token);
        assert!(matches!(asked.await, Ok(false)));
    }
}
