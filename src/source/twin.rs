//! The canonical keys of the events of one fetch, while a healer works for the tenant: see `checkpoint::healed`.

use crate::checkpoint::claims::{ClaimState, OpenBatch};
use crate::checkpoint::healed::{FeedsWork, Flight, Healed, Unwatched};
use crate::checkpoint::key::{Key, creation_secs};
use crate::host::{StateError, StateStore};
use crate::normalise::{CanonicalKey, Event, canonical_key, event_secs};

/// The canonical key of an event in the form that the gate uses; `None` for one without an identity.
pub(super) fn twin_of(event: &Event<'_>) -> Option<Key> {
    let canonical = canonical_key(event)?;
    Some(twin_from(canonical, event))
}

/// The same where the canonical key is known.
pub(super) fn twin_from(canonical: CanonicalKey, event: &Event<'_>) -> Key {
    // All forms of an event have the same second, so its key is stored among those of its time.
    let secs = event.identity().map_or(0, |identity| {
        event_secs(identity.creation_time).unwrap_or_else(|| creation_secs(identity.creation_time))
    });
    Key::of_canonical(canonical.as_bytes(), secs)
}

/// The canonical keys of a batch: unused, the feed's, or a healer's.
pub(super) enum Twins {
    Unnamed,
    Feed(Flight),
    Graph(Healed, OpenBatch),
}

impl Twins {
    /// The keys of the first batch of a fetch, and a guard that the fetch keeps.
    pub(super) fn begin(healed: &Healed, heals: bool) -> (Self, Option<Unwatched>) {
        if heals {
            return (Self::Graph(healed.clone(), healed.index().open_batch()), None);
        }
        match healed.begin() {
            FeedsWork::Watched => (Self::Feed(healed.flight()), None),
            FeedsWork::Unwatched(unwatched) => (Self::Unnamed, Some(unwatched)),
        }
    }

    /// Takes the keys of the batch that ends here.
    pub(super) fn take(&mut self, healed: &Healed) -> Self {
        let next = match self {
            Self::Unnamed => Self::Unnamed,
            Self::Feed(_) => Self::Feed(healed.flight()),
            Self::Graph(..) => Self::Graph(healed.clone(), healed.index().open_batch()),
        };
        std::mem::replace(self, next)
    }

    /// Whether events have canonical keys at all.
    pub(super) fn are_named(&self) -> bool {
        !matches!(self, Self::Unnamed)
    }

    /// The keys to be committed.
    pub(super) fn to_keep(&self) -> &[Key] {
        match self {
            Self::Graph(_, batch) => batch.keys(),
            Self::Unnamed | Self::Feed(_) => &[],
        }
    }

    /// Claims one key.
    pub(super) async fn claim(&mut self, key: Key, store: &dyn StateStore) -> Result<ClaimState, StateError> {
        let mut claim = ClaimState::Claimed;
        let claimed = self.claim_keys(&[key], store, |_, known| claim = known).await;
        claimed.map(|()| claim).map_err(|(_, error)| error)
    }

    /// Claims the canonical keys of the events whose other keys are claimed in `open`; releases those of events that
    /// the other side has claimed, and adds them to `taken`.
    pub(super) async fn claim_all(
        &mut self,
        open: &mut OpenBatch,
        pairs: &[(Key, Option<Key>)],
        store: &dyn StateStore,
        taken: &mut Vec<(usize, ClaimState)>,
    ) -> Result<(), (usize, StateError)> {
        if !self.are_named() {
            return Ok(());
        }
        let mut gone = vec![false; pairs.len()];
        for (at, _) in taken.iter() {
            gone.get_mut(*at).into_iter().for_each(|gone| *gone = true);
        }
        let left: Vec<(usize, Key, Key)> = pairs
            .iter()
            .enumerate()
            .filter(|(at, _)| gone.get(*at) == Some(&false))
            .filter_map(|(at, (key, twin))| Some((at, *key, (*twin)?)))
            .collect();
        let keys: Vec<Key> = left.iter().map(|(_, _, twin)| *twin).collect();
        let mut freed = Vec::new();
        let claimed = self
            .claim_keys(&keys, store, |nth, claim| {
                if let Some((at, key, _)) = left.get(nth) {
                    freed.push(*key);
                    taken.push((*at, claim));
                }
            })
            .await;
        // An event whose state is unknown is not claimed either, since its key must not be committed.
        let first_unknown = claimed.as_ref().err().and_then(|(nth, _)| left.get(*nth)).map(|(at, ..)| *at);
        freed.extend(
            left.iter().filter(|(at, ..)| first_unknown.is_some_and(|first| *at >= first)).map(|(_, key, _)| *key),
        );
        open.release_claims(&freed);
        taken.sort_unstable_by_key(|(at, _)| *at);
        claimed.map_err(|(_, error)| (first_unknown.unwrap_or(0), error))
    }

    async fn claim_keys(
        &mut self,
        keys: &[Key],
        store: &dyn StateStore,
        taken: impl FnMut(usize, ClaimState),
    ) -> Result<(), (usize, StateError)> {
        match self {
            Self::Unnamed => Ok(()),
            Self::Feed(flight) => flight.claim(keys, store, taken).await,
            Self::Graph(healed, batch) => healed.claim(batch, keys, store, taken).await,
        }
    }

    /// Releases the newest claim.
    pub(super) fn release_last(&mut self) {
        match self {
            Self::Unnamed => {}
            Self::Feed(flight) => flight.release_last(),
            Self::Graph(_, batch) => batch.release_last(),
        }
    }

    /// Marks the events of these keys as durable.
    pub(super) fn committed(self) {
        match self {
            Self::Unnamed => {}
            Self::Feed(flight) => flight.committed(),
            Self::Graph(_, batch) => batch.committed(),
        }
    }
}
