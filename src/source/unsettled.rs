//! The blobs of one stream that were found and are not settled, which hold its position back.
//!
//! There may be ten thousand, and the loop asks how far the position may move whenever one is settled. So the oldest of
//! each kind and the counts are maintained as blobs come and go.

use std::collections::BTreeSet;
use std::collections::hash_map::{Entry, HashMap};

use crate::checkpoint::key::Key;
use crate::model::Timestamp;

/// A blob that is not settled, from the view of the loop.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnsettledBlob {
    pub created: Timestamp,
    pub expires: Timestamp,
    /// Written to the state on its own: it does not hold `listed_until`.
    pub persisted: bool,
    /// Found above `complete_until`: holds it until settled.
    pub holds: bool,
    pub failures: u32,
    /// With `--once`: failed too often, left for the next run.
    pub given_up: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    blobs: HashMap<Key, UnsettledBlob>,
    /// Those that hold the position, and of these the ones not written to the state.
    holding: BTreeSet<(Timestamp, Key)>,
    untracked: BTreeSet<(Timestamp, Key)>,
    given_up: usize,
}

impl Unsettled {
    pub(super) fn contains(&self, key: Key) -> bool {
        self.blobs.contains_key(&key)
    }

    /// Adds a blob that is not in it.
    pub(super) fn insert(&mut self, key: Key, blob: UnsettledBlob) {
        if let Entry::Vacant(place) = self.blobs.entry(key) {
            place.insert(blob);
            self.note(key, blob, true);
        }
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(blob) = self.blobs.remove(&key) {
            self.note(key, blob, false);
        }
    }

    /// Changes a blob's entry; false when it has none.
    pub(super) fn update(&mut self, key: Key, change: impl FnOnce(&mut UnsettledBlob)) -> bool {
        let Some(known) = self.blobs.get_mut(&key) else { return false };
        let before = *known;
        change(known);
        let after = *known;
        self.note(key, before, false);
        self.note(key, after, true);
        true
    }

    /// Blobs created before `end` hold the position no longer.
    pub(super) fn release_before(&mut self, end: Timestamp) {
        while let Some((_, key)) = self.holding.first().copied().filter(|(created, _)| *created < end) {
            self.update(key, |blob| blob.holds = false);
        }
    }

    fn note(&mut self, key: Key, blob: UnsettledBlob, there: bool) {
        let entry = (blob.created, key);
        let set = |set: &mut BTreeSet<_>| if there { set.insert(entry) } else { set.remove(&entry) };
        if blob.holds {
            set(&mut self.holding);
            if !blob.persisted {
                set(&mut self.untracked);
            }
        }
        if blob.given_up {
            self.given_up = if there { self.given_up + 1 } else { self.given_up.saturating_sub(1) };
        }
    }

    /// Creation of the oldest blob that holds the position.
    pub(super) fn oldest_holding(&self) -> Option<Timestamp> {
        self.holding.first().map(|(created, _)| *created)
    }

    /// The same of those not written to the state.
    pub(super) fn oldest_untracked(&self) -> Option<Timestamp> {
        self.untracked.first().map(|(created, _)| *created)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &UnsettledBlob> + Clone {
        self.blobs.values()
    }

    pub(super) fn len(&self) -> usize {
        self.blobs.len()
    }

    pub(super) fn given_up(&self) -> usize {
        self.given_up
    }

    /// How many will be tried again in this run.
    pub(super) fn wanted(&self) -> usize {
        self.blobs.len() - self.given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, UnsettledBlob),
        Remove(u8),
        Update(u8, UnsettledBlob),
        Release(i64),
    }

    fn blob() -> impl Strategy<Value = UnsettledBlob> {
        (0_i64..20, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(created, persisted, holds, given_up)| {
            UnsettledBlob { created: at(created), expires: at(created + 100), persisted, holds, failures: 0, given_up }
        })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn key(n: u8) -> Key {
        Key::of_blob(&n.to_string(), Timestamp::UNIX_EPOCH)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..8, blob()).prop_map(|(n, blob)| Step::Insert(n, blob)),
            (0_u8..8).prop_map(Step::Remove),
            (0_u8..8, blob()).prop_map(|(n, blob)| Step::Update(n, blob)),
            (0_i64..20).prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_a_look_at_every_blob_finds(steps in prop::collection::vec(step(), 0..60)) {
            let mut unsettled = Unsettled::default();
            for step in steps {
                match step {
                    Step::Insert(n, blob) => unsettled.insert(key(n), blob),
                    Step::Remove(n) => unsettled.remove(key(n)),
                    Step::Update(n, new) => {
                        let known = unsettled.contains(key(n));
                        prop_assert_eq!(unsettled.update(key(n), |blob| *blob = new), known);
                    }
                    Step::Release(end) => {
                        unsettled.release_before(at(end));
                        prop_assert!(unsettled.values().all(|blob| !blob.holds || blob.created >= at(end)));
                    }
                }
                let oldest = |of: fn(&UnsettledBlob) -> bool| unsettled.values().filter(|b| of(b)).map(|b| b.created).min();
                prop_assert_eq!(unsettled.oldest_holding(), oldest(|b| b.holds));
                prop_assert_eq!(unsettled.oldest_untracked(), oldest(|b| b.holds && !b.persisted));
                prop_assert_eq!(unsettled.given_up(), unsettled.values().filter(|b| b.given_up).count());
                prop_assert_eq!(unsettled.wanted(), unsettled.values().filter(|b| !b.given_up).count());
            }
        }
    }
}
