//! The evidence on events and its sources: receipts, the hold, set-aside records, duplicate keys.
//!
//! All of it is read beside a running process, without taking over the state. Positions are read first: progress made
//! while the rest is read can then only add evidence, never make a row missing.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;
use parking_lot::Mutex;

use super::class::{ComparedStream, found};
use super::rows::RowSet;
use super::table::{Key as RowKey, LookupTable};
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

/// Numbers for the rules that receipts name.
#[derive(Debug, Default)]
pub struct DropRules(Vec<Arc<str>>);

impl DropRules {
    /// The number of a rule, from 1 on.
    pub fn number(&mut self, rule: &Arc<str>) -> u16 {
        let at = self.0.iter().position(|known| known == rule).unwrap_or_else(|| {
            self.0.push(rule.clone());
            self.0.len() - 1
        });
        u16::try_from(at + 1).unwrap_or(u16::MAX)
    }

    /// The rule with a number.
    pub fn name(&self, number: u16) -> &str {
        usize::from(number).checked_sub(1).and_then(|at| self.0.get(at)).map_or("not named", |rule| rule)
    }
}

/// Marks the rows that have receipts, and counts the receipts whose events are not in the export.
pub struct Marks<'a> {
    rows: &'a RowSet,
    rules: &'a mut DropRules,
    /// For the current part: the number of final receipts, and how many of their events the export has.
    part: (u64, u64),
    /// The events that the export lacks, while they are fewer than the rows: if there are more, the export has less
    /// than half.
    alone: SpooledKeys,
    only_ours: LookupTable<()>,
    failed: Option<io::Error>,
}

/// Keys in an unnamed file: an export of another time lacks as many events as there are receipts.
#[derive(Default)]
struct SpooledKeys {
    file: Option<BufWriter<File>>,
    count: u64,
}

impl SpooledKeys {
    fn push(&mut self, key: CanonicalKey) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(tempfile::tempfile()?)),
        };
        self.count += 1;
        file.write_all(key.as_bytes())
    }

    /// Passes all keys to `take` if they are `wanted`, and has none then.
    fn drain(&mut self, wanted: bool, mut take: impl FnMut(RowKey)) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        let Some(file) = &mut self.file else { return Ok(()) };
        file.rewind()?;
        if wanted {
            let mut keys = BufReader::new(file.get_ref());
            for _ in 0..count {
                let mut key = RowKey::default();
                keys.read_exact(&mut key)?;
                take(key);
            }
            file.rewind()?;
        }
        Ok(())
    }
}

impl<'a> Marks<'a> {
    /// Marks these rows.
    pub fn new(rows: &'a RowSet, rules: &'a mut DropRules) -> Self {
        Marks {
            rows,
            rules,
            part: (0, 0),
            alone: SpooledKeys::default(),
            only_ours: LookupTable::default(),
            failed: None,
        }
    }

    /// How many events have a receipt and are not in the export.
    ///
    /// A receipt does not say when its event happened. So only parts count of which the export has at least half of the
    /// events: the others are from another time than the export.
    ///
    /// # Errors
    /// A temporary file could not be used.
    pub fn only_ours(self) -> io::Result<u64> {
        self.failed.map_or(Ok(self.only_ours.len()), Err)
    }
}

impl ReceiptVisitor for Marks<'_> {
    fn entry(&mut self, key: CanonicalKey, class: &receipts::Class) {
        let row = self.rows.get(*key.as_bytes());
        // A waiting event gets another receipt when it is decided, or is in the state.
        if matches!(class, receipts::Class::Delivered | receipts::Class::Dropped(_)) {
            self.part.0 += 1;
            self.part.1 += u64::from(row.is_some());
            if row.is_none()
                && self.alone.count <= self.rows.count()
                && let Err(error) = self.alone.push(key)
            {
                self.failed = Some(error);
            }
        }
        let Some(row) = row else { return };
        match class {
            receipts::Class::Delivered => row.note(found::DELIVERED),
            receipts::Class::Dropped(rule) => row.note_rule(self.rules.number(rule), found::DROPPED),
            // The receipt is about the past; the state says whether it still holds.
            receipts::Class::Held | receipts::Class::SetAside => {}
        }
    }

    fn part_ended(&mut self) {
        let (all, in_export) = std::mem::take(&mut self.part);
        let only_ours = &mut self.only_ours;
        let drained = self.alone.drain(in_export * 2 >= all, |key| {
            only_ours.insert(key, ());
        });
        if let Err(error) = drained {
            self.failed = Some(error);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::super::class::Row;
    use super::*;

    fn key(number: u8) -> CanonicalKey {
        CanonicalKey::from_bytes([number; 16])
    }

    #[test]
    fn receipts_that_say_how_it_ended_mark_their_rows() {
        let mut rows = RowSet::default();
        for number in 1..=6 {
            rows.insert(*key(number).as_bytes(), None, Row::new(None, None));
        }
        let mut rules = DropRules::default();
        let mut marks = Marks::new(&rows, &mut rules);
        let dropped = |rule: &str| receipts::Class::Dropped(rule.into());
        for (number, class) in [
            (1, receipts::Class::Delivered),
            (2, receipts::Class::Held),
            (2, dropped("EX-45")),
            (3, receipts::Class::SetAside),
            (4, dropped("SP-12")),
            (5, receipts::Class::Held),
            (9, receipts::Class::Delivered),
        ] {
            marks.entry(key(number), &class);
        }
        marks.part_ended();
        assert_eq!(marks.only_ours().unwrap(), 1);
        let of = |number: u8| rows.get(*key(number).as_bytes()).unwrap();
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|number| of(number).found()),
            [found::DELIVERED, found::DROPPED, 0, found::DROPPED, 0, 0],
            "that an event was on hold or set aside does not say that it is"
        );
        assert_eq!((rules.name(of(2).rule()), rules.name(of(4).rule())), ("EX-45", "SP-12"), "the rule's class");
    }

    #[test]
    fn receipts_of_a_time_that_the_export_does_not_cover_are_not_ours_alone() {
        let mut rows = RowSet::default();
        rows.insert(*key(1).as_bytes(), None, Row::new(None, None));
        let mut rules = DropRules::default();
        let mut marks = Marks::new(&rows, &mut rules);
        // An event that is in two parts, or twice in one, counts once.
        for numbers in [&[1, 2][..], &[3, 4, 5], &[2, 1, 1, 2]] {
            numbers.iter().for_each(|number| marks.entry(key(*number), &receipts::Class::Delivered));
            marks.part_ended();
        }
        assert_eq!(marks.only_ours().unwrap(), 1);
    }
}
