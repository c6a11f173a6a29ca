//! The evidence on events and its sources: receipts, the hold, set-aside records, duplicate keys.
//!
//! All of it is read beside a running process, without taking over the state. Positions are read first: progress made
//! while the rest is read can then only add evidence, never make a row missing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;
use parking_lot::Mutex;

use super::class::{ComparedStream, found};
use super::rows::RowSet;
use crate::checkpoint::format::{self, AsideKind, AsideRecord, Keys, Position};
use crate::checkpoint::heal::StoredHeal;
use crate::checkpoint::held::HeldPage;
use crate::checkpoint::key::Key;
use crate::checkpoint::key_set::{self, KeyKind, KeySet, Retention};
use crate::checkpoint::lateness;
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, Timestamp};
use crate::normalise::{CanonicalKey, Event, canonical_key};
use crate::receipts;

/// How often a set of keys is reloaded because the running process merged its pages meanwhile.
const LOADS_MAX: usize = 8;
const LOAD_AGAIN: Duration = Duration::from_millis(50);

/// How far back the evidence goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EvidenceReach {
    /// Since the first event.
    Whole,
    /// Since deliveries at this time.
    From(Timestamp),
}

impl EvidenceReach {
    /// Since when; `None` for since the first event.
    pub fn since(self) -> Option<Timestamp> {
        match self {
            EvidenceReach::Whole => None,
            EvidenceReach::From(from) => Some(from),
        }
    }
}

/// A source of receipts.
#[async_trait]
pub trait Known: Send + Sync {
    /// Passes on every receipt, part by part, and returns how far back they go; `None` if there are none.
    async fn visit(&self, take: &mut (dyn ReceiptVisitor + Send)) -> Result<Option<EvidenceReach>, StateError>;
}

/// Takes receipts.
pub trait ReceiptVisitor {
    /// One receipt.
    fn entry(&mut self, key: CanonicalKey, class: &receipts::Class);
    /// Ends a part: the receipts since the last call are those of one hour or a part of it.
    fn part_ended(&mut self);
}

/// Takes receipts and does nothing with them: only how far they reach is asked.
pub struct NoMarks;

impl ReceiptVisitor for NoMarks {
    fn entry(&mut self, _: CanonicalKey, _: &receipts::Class) {}

    fn part_ended(&mut self) {}
}

/// The positions of a source's content types, with the gaps that are not filled.
///
/// # Errors
/// The state cannot be read.
pub async fn streams(
    store: &dyn StateStore,
    keys: &Keys,
    content_types: &[ContentType],
) -> Result<Vec<ComparedStream>, StateError> {
    let healed = StoredHeal::load(store, keys).await?;
    let mut streams = Vec::with_capacity(content_types.len());
    for &content_type in content_types {
        let key = keys.position(content_type);
        let stored = store.load(&key).await?;
        let position = stored.map(|(bytes, _)| format::decode::<Position>(&key, &bytes)).transpose()?;
        let position = position.map(|position| healed.open(content_type, position));
        let late = lateness::bound(store, keys, content_type).await?;
        streams.push(ComparedStream { content_type, position, late });
    }
    Ok(streams)
}

/// Marks the rows whose events are on hold.
///
/// # Errors
/// The state cannot be read.
pub async fn mark_held(store: &dyn StateStore, keys: &Keys, rows: &RowSet) -> Result<(), StateError> {
    for (key, _) in store.list(&keys.held()).await? {
        // A running process may remove a page between the list and the load.
        let Some((bytes, _)) = store.load(&key).await? else { continue };
        for record in HeldPage::decode(&key, &bytes)?.records {
            let canonical = Event::parse(&record.raw).ok().and_then(|event| canonical_key(&event));
            if let Some(row) = canonical.and_then(|key| rows.get(*key.as_bytes())) {
                row.note(found::HELD);
            }
        }
    }
    Ok(())
}

/// The records that are set aside, a few in memory at a time.
pub struct SetAsideKeys(std::vec::IntoIter<String>);

impl SetAsideKeys {
    /// Those of these content types.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn of(
        store: &dyn StateStore,
        keys: &Keys,
        content_types: &[ContentType],
    ) -> Result<SetAsideKeys, StateError> {
        let mut all = Vec::new();
        for &content_type in content_types {
            all.extend(store.list(&keys.aside(content_type)).await?.into_iter().map(|(key, _)| key));
        }
        Ok(SetAsideKeys(all.into_iter()))
    }

    /// Marks the rows of records that identify their event, until the other records have this many bytes. Returns those
    /// as they were offered to the host, one a line. Empty at the end.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn next(&mut self, store: &dyn StateStore, rows: &RowSet, bytes: usize) -> Result<String, StateError> {
        let mut text = String::new();
        while text.len() < bytes {
            let Some(key) = self.0.next() else { break };
            let Some((value, _)) = store.load(&key).await? else { continue };
            let record: AsideRecord = format::decode(&key, &value)?;
            match record.event {
                _ if record.kind == Some(AsideKind::Notice) => {}
                Some(event) => {
                    rows.get(*event.as_bytes()).inspect(|row| row.note(found::ASIDE));
                }
                None => {
                    text.push_str(&record.record);
                    text.push('\n');
                }
            }
        }
        Ok(text)
    }
}

/// The duplicate keys of a tenant's events.
pub struct DuplicateKeys {
    store: Arc<dyn StateStore>,
    prefix: String,
    set: Mutex<KeySet>,
}

impl DuplicateKeys {
    /// Reads them, again if a running process changes them meanwhile.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn load(store: Arc<dyn StateStore>, keys: &Keys) -> Result<Self, StateError> {
        let prefix = keys.events();
        let set = Mutex::new(load_set(&*store, &prefix).await?);
        Ok(Self { store, prefix, set })
    }

    /// Returns for each key whether it is in the set.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn contain(&self, keys: &[Key]) -> Result<Vec<bool>, StateError> {
        let mut loads = 0;
        loop {
            match key_set::contains_all(&self.set, &*self.store, keys).await {
                // The running process merged a page away since the set was read.
                Err(StateError::Corrupt { .. } | StateError::Conflict { .. }) if loads < LOADS_MAX => {
                    loads += 1;
                    let anew = load_set(&*self.store, &self.prefix).await?;
                    *self.set.lock() = anew;
                }
                result => return result,
            }
        }
    }

    /// How far back they go, for a source that began at `born`.
    pub fn reach(&self, born: Option<Timestamp>, now: Timestamp, keys_max: u64) -> EvidenceReach {
        let set = self.set.lock();
        let kept = now.saturating_sub(SignedDuration::try_from(Retention::EVENTS.age).unwrap_or_default());
        let kept = kept.unwrap_or(Timestamp::MIN);
        let by_age = match born {
            Some(born) if born > kept => EvidenceReach::Whole,
            _ => EvidenceReach::From(kept),
        };
        // Beyond the bound the oldest keys are removed, a page at a time.
        match set.oldest_day_end().filter(|_| set.len() / 95 >= keys_max / 100) {
            Some(end) => by_age.max(EvidenceReach::From(end)),
            None => by_age,
        }
    }
}

async fn load_set(store: &dyn StateStore, prefix: &str) -> Result<KeySet, StateError> {
    let mut loads = 0;
    loop {
        match KeySet::load(store, prefix, KeyKind::Events).await {
            Err(StateError::Conflict { .. }) if loads < LOADS_MAX => {
                loads += 1;
                tokio::time::sleep(LOAD_AGAIN).await;
            }
            result => return result,
        }
    }
}

/// The time when a source's state began; if the state does not contain it, the earliest possible time: the start of the
/// first interval read.
pub fn born(streams: &[ComparedStream]) -> Option<Timestamp> {
    let positions = streams.iter().filter_map(|stream| stream.position.as_ref());
    positions.map(|position| position.began.unwrap_or(position.origin)).min()
}
