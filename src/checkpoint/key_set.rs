//! A set of 128-bit keys kept in the host's state store: settled blob ids and delivered events.
//!
//! Owns their stored format, and the rules for removing them. Does not know the meaning of a key to the ledger, nor any
//! clock: callers pass the time, and do not call [`KeySet::expire`] while it is untrusted.
//!
//! # How it is kept
//!
//! A commit adds its keys as one small *delta*, `<prefix>/d/<number>`. When there are many deltas they are *folded*
//! into sorted *pages*, `<prefix>/p/<number>`. Memory holds the exact keys of the deltas, and for each page a fence
//! (least and greatest key) and a filter: about 1.5 bytes a key. A key in no delta, outside all fences or excluded by
//! the filters is absent. The filters pass 0.4 % of absent keys; then the page itself is read.
//!
//! Keys begin with a time, so pages are ranges of time, and a lookup of a current key does not touch last week's pages.
//! Folds overlap, though: [`maintain`] merges pages, few at a time, so that no more than a handful cover any one moment
//! and pages stay full. A merge never joins pages whose keys expire at different times: for events, pages written on
//! different days.
//!
//! # What a commit may rely on
//!
//! Every change is *staged*: [`StagedKeys::ops`] go into the owner's commit, and only [`KeySet::committed`] makes the
//! change visible; [`KeySet::aborted`] discards it. Numbers are never used twice. Deletes follow puts, so a store that
//! stopped halfway has some keys twice, which is harmless. After a failed commit on a store that is not atomic, load
//! the set again, since pages that this set still relies on may be gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use xorf::{BinaryFuse8, Filter};

pub use super::key::Key;
use super::key::secs_of;
use crate::host::{Entries, Expected, Op, StateError, StateStore};
use crate::model::Timestamp;

const DAY_SECS: u64 = 86_400;

/// Pages kept in memory after they were read: 1 MiB.
const CACHED_PAGES_MAX: usize = 16;

/// How often [`contains_all`] starts over because pages were merged while it read.
const LOOKUP_ROUNDS_MAX: usize = 8;

/// Limits on the parts of a set; smaller in tests.
#[derive(Debug, Clone, Copy)]
struct SetLimits {
    /// Keys in one page: 64 KiB, a value any store takes.
    page_keys: usize,
    /// Keys in deltas before they are folded: what a hash table of 16,384 slots holds before it grows.
    fold_keys: usize,
    /// Deltas before they are folded, each being one read at the next start.
    fold_deltas: usize,
    /// Pages merged in one step: 2 MiB read and written.
    merge_pages: usize,
    /// Pages that may cover one moment among those still written to, and among those of days past.
    depth: usize,
    depth_past: usize,
    /// Pages less than half full before they are merged.
    small_pages: usize,
}

const BOUNDS: SetLimits = SetLimits {
    page_keys: 4096,
    fold_keys: 14_336,
    fold_deltas: 256,
    merge_pages: 32,
    depth: 8,
    depth_past: 2,
    small_pages: 4,
};

fn day_of(time: Timestamp) -> u32 {
    secs_of(time) / DAY_SECS as u32
}

/// The kind of keys, which decides how they age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Delivered events: they age from their delivery, since an event may be delivered long after it happened.
    Events,
    /// Settled blobs: they age from `contentCreated`, the time in their key.
    Blobs,
}

/// How long and how many keys are kept. Keys are removed by the page, so some stay longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The minimum age at which keys are removed.
    pub age: Duration,
    /// The maximum number of keys, give or take a page; above it the oldest written are removed.
    pub keys_max: u64,
}

impl Retention {
    /// Events: 7 days, as long as Microsoft serves content; 10 million.
    pub const EVENTS: Retention = Retention { age: Duration::from_secs(7 * DAY_SECS), keys_max: 10_000_000 };
    /// Blobs: 8 days, a day beyond `contentExpiration`; 10 million.
    pub const BLOBS: Retention = Retention { age: Duration::from_secs(8 * DAY_SECS), keys_max: 10_000_000 };
}

/// Whether a key is in the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// It is not.
    Absent,
    /// It is.
    Present,
    /// This page must be read to find out: [`KeySet::page_key`], [`KeySet::page_loaded`], then probe again.
    Maybe(PageId),
}

/// Names a page of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(u64);

/// Identifies a staged change until its commit has succeeded or failed.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a staged change takes effect, or frees what it holds, only through `committed` or `aborted`"]
pub struct ChangeToken(u64);

/// A change that takes effect when its operations are committed.
#[derive(Debug)]
#[must_use = "commit the operations, then call `committed` or `aborted`"]
pub struct StagedKeys {
    /// For the owner's commit, in this order; may be empty.
    pub ops: Vec<Op>,
    /// For [`KeySet::committed`] or [`KeySet::aborted`].
    pub token: ChangeToken,
}

/// The set; see the module's documentation.
pub struct KeySet {
    prefix: String,
    kind: KeyKind,
    bounds: SetLimits,
    /// The keys in deltas, with the number of their delta.
    recent: HashMap<[u64; 2], u64, foldhash::fast::RandomState>,
    deltas: BTreeSet<u64>,
    pages: PageIndex,
    cache: Vec<(u64, Bytes)>,
    next_number: u64,
    pending: BTreeMap<u64, KeySetChange>,
    next_token: u64,
    /// Deltas and pages that a pending change removes; no other may.
    leaving: BTreeSet<u64>,
    /// The number of changes that took effect.
    generation: u64,
    /// Whether pages changed since [`maintain`] found nothing to do.
    untidy: bool,
}

/// The change that a token identifies.
#[derive(Default)]
struct KeySetChange {
    delta: Option<(u64, Vec<Key>)>,
    pages: Vec<KeyPage>,
    drops: Vec<u64>,
}

/// The part of a page that is in memory.
struct KeyPage {
    min: u128,
    max: u128,
    number: u64,
    count: u32,
    /// Day (since 1970) of the latest write of its keys.
    day: u32,
    /// `None` when none could be built: then the fence alone decides.
    filter: Option<BinaryFuse8>,
}

impl KeyPage {
    fn may_contain(&self, key: Key) -> bool {
        self.min <= key.0 && key.0 <= self.max && self.filter.as_ref().is_none_or(|f| f.contains(&key.hash64()))
    }

    /// Describes sorted, distinct keys; `None` for no keys.
    fn of(number: u64, day: u32, keys: &[[u8; 16]]) -> Option<KeyPage> {
        let (first, last) = (keys.first()?, keys.last()?);
        let mut hashes: Vec<u64> = keys.iter().map(|k| Key(u128::from_be_bytes(*k)).hash64()).collect();
        // The filter cannot be built over equal hashes.
        hashes.sort_unstable();
        hashes.dedup();
        Some(KeyPage {
            min: u128::from_be_bytes(*first),
            max: u128::from_be_bytes(*last),
            number,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            day,
            filter: BinaryFuse8::try_from(&hashes).ok(),
        })
    }
}

/// Pages by their least key, with the greatest key of every [`PageIndex::BLOCK`], so that a lookup touches only pages that
/// can hold the key, however wide some are.
#[derive(Default)]
struct PageIndex {
    list: Vec<KeyPage>,
    block_max: Vec<u128>,
    keys: u64,
}

impl PageIndex {
    const BLOCK: usize = 32;

    fn change(&mut self, removed: &BTreeSet<u64>, added: Vec<KeyPage>) {
        if !removed.is_empty() {
            self.list.retain(|p| !removed.contains(&p.number));
        }
        // Growth by doubling would waste memory for as many pages again.
        self.list.reserve_exact(added.len());
        self.list.extend(added);
        self.list.sort_unstable_by_key(|p| (p.min, p.number));
        self.block_max = self.list.chunks(Self::BLOCK).map(|b| b.iter().map(|p| p.max).max().unwrap_or(0)).collect();
        self.keys = self.list.iter().map(|p| u64::from(p.count)).sum();
    }

    fn candidates(&self, key: Key) -> impl Iterator<Item = &KeyPage> {
        let begun = self.list.partition_point(|p| p.min <= key.0);
        let begun = self.list.get(..begun).unwrap_or_default();
        // By number: to zip with `chunks` divides by their size for each key that is asked for.
        let blocks = self.block_max.iter().enumerate().take(begun.len().div_ceil(Self::BLOCK));
        blocks
            .filter(move |(_, max)| key.0 <= **max)
            .flat_map(move |(block, _)| begun.iter().skip(block * Self::BLOCK).take(Self::BLOCK))
            .filter(move |p| p.may_contain(key))
    }

    fn get(&self, number: u64) -> Option<&KeyPage> {
        self.list.iter().find(|p| p.number == number)
    }
}

impl KeySet {
    /// Reads the set stored under `prefix` (without a slash at its end); an empty one when there is none. Holds
    /// a mebibyte of it at a time beside the result.
    ///
    /// Errors: the store's; [`StateError::Corrupt`] names an entry that is damaged or that a newer build wrote.
    pub async fn load(store: &dyn StateStore, prefix: &str, kind: KeyKind) -> Result<KeySet, StateError> {
        Self::load_with(store, prefix, kind, BOUNDS).await
    }

    async fn load_with(
        store: &dyn StateStore,
        prefix: &str,
        kind: KeyKind,
        bounds: SetLimits,
    ) -> Result<KeySet, StateError> {
        let mut set = KeySet {
            prefix: prefix.to_owned(),
            kind,
            bounds,
            recent: HashMap::default(),
            deltas: BTreeSet::new(),
            pages: PageIndex::default(),
            cache: Vec::new(),
            next_number: 1,
            pending: BTreeMap::new(),
            next_token: 1,
            leaving: BTreeSet::new(),
            generation: 0,
            untidy: true,
        };
        let mut pages = Vec::new();
        let mut entries = Entries::below(store, &format!("{prefix}/"));
        while let Some((name, value)) = entries.next().await? {
            let Some((entry, number)) = set.parse_name(&name) else {
                return Err(corrupt(&name, "no entry this build knows".into()));
            };
            let (day, keys) = decode(entry, &name, &value)?;
            set.next_number = set.next_number.max(number.saturating_add(1));
            match entry {
                EntryKind::Delta => {
                    set.recent.extend(keys.iter().map(|k| (slot(Key(u128::from_be_bytes(*k))), number)));
                    set.deltas.insert(number);
                }
                EntryKind::Page => pages.extend(KeyPage::of(number, day, keys)),
            }
        }
        pages.shrink_to_fit();
        set.pages.change(&BTreeSet::new(), pages);
        Ok(set)
    }

    /// How many keys the set holds; a key stored twice counts twice.
    pub fn len(&self) -> u64 {
        self.pages.keys + self.recent.len() as u64
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The end of the day on which the keys to be removed next were written; `None` while all are in deltas.
    pub fn oldest_day_end(&self) -> Option<Timestamp> {
        let day = self.pages.list.iter().map(|page| page.day).min()?;
        Timestamp::from_second(i64::try_from((u64::from(day) + 1) * DAY_SECS).ok()?).ok()
    }

    /// Estimated heap and own memory in bytes, without the pages cached (at most 1 MiB, see [`KeySet::cached_bytes`]).
    pub fn memory_bytes(&self) -> usize {
        let fingerprints = |p: &KeyPage| p.filter.as_ref().map_or(0, |f| f.fingerprints.len());
        // Hash tables are filled to 7/8 and hold one control byte per slot.
        let slots = (self.recent.capacity() * 8).div_ceil(7);
        let pending = |c: &KeySetChange| {
            c.delta.as_ref().map_or(0, |(_, keys)| keys.capacity() * size_of::<Key>())
                + c.pages.iter().map(|p| size_of::<KeyPage>() + fingerprints(p)).sum::<usize>()
                + c.drops.capacity() * size_of::<u64>()
        };
        size_of::<Self>()
            + slots * (size_of::<([u64; 2], u64)>() + 1)
            + self.deltas.len() * 2 * size_of::<u64>()
            + self.pages.list.capacity() * size_of::<KeyPage>()
            + self.pages.list.iter().map(fingerprints).sum::<usize>()
            + self.pages.block_max.capacity() * size_of::<u128>()
            + self.pending.values().map(pending).sum::<usize>()
            + self.leaving.len() * 2 * size_of::<u64>()
    }

    /// Bytes of the pages cached.
    pub fn cached_bytes(&self) -> usize {
        self.cache.iter().map(|(_, value)| value.len()).sum()
    }

    /// Whether `key` is in the set, as far as memory shows. Staged keys are not, until committed.
    pub fn probe(&self, key: Key) -> Probe {
        if self.recent.contains_key(&slot(key)) {
            return Probe::Present;
        }
        for page in self.pages.candidates(key) {
            match self.cached(page.number) {
                None => return Probe::Maybe(PageId(page.number)),
                Some(value) if value_contains(value, key) => return Probe::Present,
                Some(_) => {}
            }
        }
        Probe::Absent
    }

    /// Whether a page is part of the set and no staged change removes it: then the store must have it. While a change
    /// that removes it is being committed, the store may be ahead of memory.
    pub fn must_be_stored(&self, page: PageId) -> bool {
        self.pages.get(page.0).is_some() && !self.leaving.contains(&page.0)
    }

    /// Whether a page is part of the set.
    pub fn has_page(&self, page: PageId) -> bool {
        self.pages.get(page.0).is_some()
    }

    /// The state key of a page.
    pub fn page_key(&self, page: PageId) -> String {
        self.name(EntryKind::Page, page.0)
    }

    /// Takes a page that was read, so that the next probe can look into it. A page that is no longer part of the set is
    /// ignored: probe again.
    ///
    /// Errors: [`StateError::Corrupt`] when the value is not a page.
    pub fn page_loaded(&mut self, page: PageId, value: Bytes) -> Result<(), StateError> {
        if self.pages.get(page.0).is_none() {
            return Ok(());
        }
        decode(EntryKind::Page, &self.page_key(page), &value)?;
        self.cache.retain(|(number, _)| *number != page.0);
        if self.cache.len() >= CACHED_PAGES_MAX {
            self.cache.remove(0);
        }
        self.cache.push((page.0, value));
        Ok(())
    }

    /// Stages `keys`, in any order. A few become a delta; when that is one too many, all deltas become pages.
    pub fn stage(&mut self, keys: &[Key], now: Timestamp) -> StagedKeys {
        let mut keys: Vec<Key> = keys.iter().filter(|k| !self.recent.contains_key(&slot(**k))).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return self.pend(KeySetChange::default(), Vec::new());
        }
        let free: Vec<u64> = self.deltas.difference(&self.leaving).copied().collect();
        let free_keys = if free.is_empty() { 0 } else { self.recent.len() };
        if free_keys + keys.len() >= self.bounds.fold_keys || free.len() + 1 >= self.bounds.fold_deltas {
            let folded = self.recent.iter().filter(|(_, delta)| free.binary_search(delta).is_ok());
            keys.extend(folded.map(|(slot, _)| key_of(*slot)));
            keys.sort_unstable();
            let pages = build_pages(&keys, day_of(now), self.bounds.page_keys);
            self.pend_pages(pages, None, free)
        } else {
            self.pend_pages(Vec::new(), Some(keys), Vec::new())
        }
    }

    /// Makes a staged change effective: its operations were committed.
    pub fn committed(&mut self, token: ChangeToken) {
        let Some(change) = self.pending.remove(&token.0) else { return };
        self.generation += 1;
        let drops: BTreeSet<u64> = change.drops.into_iter().collect();
        self.leaving.retain(|number| !drops.contains(number));
        if !self.deltas.is_disjoint(&drops) {
            self.deltas.retain(|number| !drops.contains(number));
            self.recent.retain(|_, delta| !drops.contains(delta));
        }
        if let Some((number, keys)) = change.delta {
            self.recent.extend(keys.into_iter().map(|k| (slot(k), number)));
            self.deltas.insert(number);
        }
        if !change.pages.is_empty() || self.pages.list.iter().any(|p| drops.contains(&p.number)) {
            self.cache.retain(|(number, _)| !drops.contains(number));
            self.pages.change(&drops, change.pages);
            self.untidy = true;
        }
    }

    /// Discards a staged change: its commit failed and changed nothing.
    pub fn aborted(&mut self, token: ChangeToken) {
        if let Some(change) = self.pending.remove(&token.0) {
            for number in change.drops {
                self.leaving.remove(&number);
            }
        }
    }

    /// Stages the removal of pages past their age or number; `None` when there is none. Call it only while the time is
    /// trusted.
    pub fn expire(&mut self, now: Timestamp, retention: Retention) -> Option<StagedKeys> {
        let now = u64::from(secs_of(now));
        let age = retention.age.as_secs();
        let past = |page: &KeyPage| match self.kind {
            // Its last key was written before the day's end.
            KeyKind::Events => ((u64::from(page.day) + 1) * DAY_SECS).saturating_add(age) <= now,
            KeyKind::Blobs => u64::from(Key(page.max).secs()).saturating_add(age) < now,
        };
        let mut excess = self.len().saturating_sub(retention.keys_max);
        let mut by_write: Vec<&KeyPage> = self.pages.list.iter().collect();
        by_write.sort_by_key(|p| (p.day, p.min));
        let mut drops = Vec::new();
        for page in by_write {
            let leaving = self.leaving.contains(&page.number);
            let excessive = excess >= u64::from(page.count.max(1));
            if !(past(page) || excessive || leaving) {
                continue;
            }
            excess = excess.saturating_sub(u64::from(page.count));
            if !leaving {
                drops.push(page.number);
            }
        }
        let change = KeySetChange { drops, ..KeySetChange::default() };
        if change.drops.is_empty() { None } else { Some(self.pend(change, Vec::new())) }
    }

    /// Stages the removal of every key.
    ///
    /// Errors: [`StateError::Unavailable`] while another change is staged.
    pub fn clear(&mut self) -> Result<StagedKeys, StateError> {
        self.settled()?;
        let drops = self.deltas.iter().copied().chain(self.pages.list.iter().map(|p| p.number)).collect();
        Ok(self.pend(KeySetChange { drops, ..KeySetChange::default() }, Vec::new()))
    }

    fn settled(&self) -> Result<(), StateError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        Err(StateError::Unavailable(format!("keys under `{}` are being committed", self.prefix)))
    }

    fn pend_pages(&mut self, new: Vec<(KeyPage, Bytes)>, delta: Option<Vec<Key>>, drops: Vec<u64>) -> StagedKeys {
        let mut ops = Vec::with_capacity(new.len() + drops.len() + 1);
        let mut pages = Vec::with_capacity(new.len());
        for (mut page, value) in new {
            page.number = self.number();
            ops.push(Op::Put { key: self.name(EntryKind::Page, page.number), value, expected: Expected::Absent });
            pages.push(page);
        }
        let delta = delta.map(|keys| {
            let number = self.number();
            let value = encode(EntryKind::Delta, 0, &keys);
            ops.push(Op::Put { key: self.name(EntryKind::Delta, number), value, expected: Expected::Absent });
            (number, keys)
        });
        self.pend(KeySetChange { delta, pages, drops }, ops)
    }

    /// Registers a change whose puts are `ops` and adds its deletes.
    fn pend(&mut self, change: KeySetChange, mut ops: Vec<Op>) -> StagedKeys {
        for number in &change.drops {
            let entry = if self.deltas.contains(number) { EntryKind::Delta } else { EntryKind::Page };
            // The owner's commit checks that there is no other writer; the entry itself may be gone.
            ops.push(Op::Delete { key: self.name(entry, *number), expected: Expected::Any });
            self.leaving.insert(*number);
        }
        let token = self.next_token;
        self.next_token += 1;
        self.pending.insert(token, change);
        StagedKeys { ops, token: ChangeToken(token) }
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn name(&self, entry: EntryKind, number: u64) -> String {
        format!("{}/{}/{number:016x}", self.prefix, entry.folder())
    }

    fn parse_name(&self, name: &str) -> Option<(EntryKind, u64)> {
        let (folder, number) = name.strip_prefix(&self.prefix)?.strip_prefix('/')?.split_once('/')?;
        let entry = [EntryKind::Delta, EntryKind::Page].into_iter().find(|e| e.folder() == folder)?;
        let number = u64::from_str_radix(number, 16).ok()?;
        (self.name(entry, number) == name).then_some((entry, number))
    }

    fn cached(&self, number: u64) -> Option<&Bytes> {
        self.cache.iter().find(|(cached, _)| *cached == number).map(|(_, value)| value)
    }

    /// Which pages to merge next, and the day to store for the result.
    fn merge_plan(&self) -> Option<(Vec<PageId>, u32)> {
        let latest = self.pages.list.iter().map(|p| p.day).max()?;
        let mut groups: BTreeMap<u32, Vec<&KeyPage>> = BTreeMap::new();
        for page in self.pages.list.iter().filter(|p| !self.leaving.contains(&p.number)) {
            let group = if self.kind == KeyKind::Events { page.day } else { latest };
            groups.entry(group).or_default().push(page);
        }
        for (group, pages) in groups {
            let depth = if group == latest { self.bounds.depth } else { self.bounds.depth_past };
            let chosen = self.small(&pages).or_else(|| self.deep(&pages, depth));
            if let Some(chosen) = chosen {
                let day = chosen.iter().map(|p| p.day).max().unwrap_or(group);
                return Some((chosen.iter().map(|p| PageId(p.number)).collect(), day));
            }
        }
        None
    }

    /// Pages less than half full, neighbours in time, when there are enough of them.
    fn small<'p>(&self, pages: &[&'p KeyPage]) -> Option<Vec<&'p KeyPage>> {
        let small: Vec<&KeyPage> =
            pages.iter().filter(|p| (p.count as usize) < self.bounds.page_keys / 2).copied().collect();
        (small.len() >= self.bounds.small_pages.max(2))
            .then(|| small.into_iter().take(self.bounds.merge_pages.max(2)).collect())
    }

    /// The widest pages over the moment that most cover, when those are more than `depth`. All of them cover that
    /// moment, so the merged pages cover every moment at most as deeply as before, and this one once. So merging
    /// terminates.
    fn deep<'p>(&self, pages: &[&'p KeyPage], depth: usize) -> Option<Vec<&'p KeyPage>> {
        let mut edges: Vec<(u128, bool)> = pages.iter().flat_map(|p| [(p.min, false), (p.max, true)]).collect();
        edges.sort_unstable();
        let (mut open, mut deepest, mut at) = (0usize, 0usize, 0u128);
        for (edge, closes) in edges {
            if closes {
                open = open.saturating_sub(1);
            } else {
                open += 1;
                if open > deepest {
                    (deepest, at) = (open, edge);
                }
            }
        }
        if deepest <= depth.max(1) {
            return None;
        }
        let mut over: Vec<&KeyPage> = pages.iter().filter(|p| p.min <= at && at <= p.max).copied().collect();
        over.sort_by_key(|p| std::cmp::Reverse(p.max - p.min));
        over.truncate(self.bounds.merge_pages.max(2));
        Some(over)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("prefix", &self.prefix)
            .field("recent", &self.recent.len())
            .field("pages", &self.pages.list.len())
            .field("keys", &self.len())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

/// For each of `keys`, whether it is in the set, reading pages where memory does not suffice. The lock is not held
/// while reading.
///
/// Errors: the store's; [`StateError::Corrupt`] for a page that is damaged or gone.
pub async fn contains_all(set: &Mutex<KeySet>, store: &dyn StateStore, keys: &[Key]) -> Result<Vec<bool>, StateError> {
    let mut found = vec![false; keys.len()];
    let mut open: Vec<usize> = (0..keys.len()).collect();
    for _ in 0..LOOKUP_ROUNDS_MAX {
        // By page, so that each is read once however many keys point to it.
        let mut wanted: BTreeMap<PageId, Vec<usize>> = BTreeMap::new();
        {
            let set = set.lock();
            for at in open.drain(..) {
                let (Some(key), Some(found)) = (keys.get(at), found.get_mut(at)) else { continue };
                if set.recent.contains_key(&slot(*key)) {
                    *found = true;
                    continue;
                }
                for page in set.pages.candidates(*key) {
                    wanted.entry(PageId(page.number)).or_default().push(at);
                }
            }
        }
        for (page, asking) in wanted {
            let Some(value) = page_value(set, store, page).await? else {
                // Merged meanwhile: its keys are in a page not yet read.
                open.extend(asking);
                continue;
            };
            for at in asking {
                if let (Some(key), Some(found)) = (keys.get(at), found.get_mut(at)) {
                    *found |= value_contains(&value, *key);
                }
            }
        }
        open.retain(|at| found.get(*at) == Some(&false));
        open.sort_unstable();
        open.dedup();
        if open.is_empty() {
            return Ok(found);
        }
    }
    Err(StateError::Unavailable(format!("pages under `{}` change faster than they can be read", set.lock().prefix)))
}

/// Stages one merge of a few pages if it makes lookups or memory cheaper; `None` when there is nothing to do. The owner
/// calls it between commits, again and again until `None` when it has the time.
///
/// Errors: the store's; [`StateError::Corrupt`] for a page that is damaged or gone.
pub async fn maintain(set: &Mutex<KeySet>, store: &dyn StateStore) -> Result<Option<StagedKeys>, StateError> {
    let (pages, day, page_keys) = {
        let mut set = set.lock();
        if !set.untidy {
            return Ok(None);
        }
        match set.merge_plan() {
            Some((pages, day)) => (pages, day, set.bounds.page_keys),
            None => {
                // Pages of a pending change were not considered.
                set.untidy = !set.pending.is_empty();
                return Ok(None);
            }
        }
    };
    let Some(keys) = read_keys(set, store, &pages).await? else { return Ok(None) };
    let merged = build_pages(&keys, day, page_keys);
    let mut set = set.lock();
    let drops: Vec<u64> = pages.iter().map(|p| p.0).collect();
    if drops.iter().any(|number| set.leaving.contains(number) || set.pages.get(*number).is_none()) {
        return Ok(None);
    }
    Ok(Some(set.pend_pages(merged, None, drops)))
}

/// Stages the removal of all keys of a time at or after `from`, as when the position is set back. Keys whose time is
/// unknown stay, unless `from` is 1970.
///
/// Errors: the store's; [`StateError::Corrupt`] for a page that is damaged or gone; [`StateError::Unavailable`] while
/// another change is staged or when one takes effect meanwhile.
pub async fn forget_from(
    set: &Mutex<KeySet>,
    store: &dyn StateStore,
    from: Timestamp,
) -> Result<StagedKeys, StateError> {
    let least = u128::from(secs_of(from)) << 96;
    let (generation, mut drops, cut, page_keys) = {
        let set = set.lock();
        set.settled()?;
        let hit = || set.pages.list.iter().filter(|p| p.max >= least);
        let drops: Vec<u64> = hit().map(|p| p.number).collect();
        let cut: Vec<(PageId, u32)> = hit().filter(|p| p.min < least).map(|p| (PageId(p.number), p.day)).collect();
        (set.generation, drops, cut, set.bounds.page_keys)
    };
    let mut kept = Vec::new();
    for (page, day) in cut {
        let Some(mut keys) = read_keys(set, store, &[page]).await? else { continue };
        keys.retain(|k| k.0 < least);
        kept.extend(build_pages(&keys, day, page_keys));
    }
    let mut set = set.lock();
    set.settled()?;
    if set.generation != generation {
        return Err(StateError::Unavailable(format!("keys under `{}` changed meanwhile", set.prefix)));
    }
    let mut recent: Vec<Key> = set.recent.keys().map(|s| key_of(*s)).collect();
    let mut delta = None;
    if recent.iter().any(|k| k.0 >= least) {
        drops.extend(&set.deltas);
        recent.retain(|k| k.0 < least);
        recent.sort_unstable();
        delta = (!recent.is_empty()).then_some(recent);
    }
    Ok(set.pend_pages(kept, delta, drops))
}

/// All keys of `pages`, sorted and distinct; `None` when a page left the set meanwhile.
async fn read_keys(
    set: &Mutex<KeySet>,
    store: &dyn StateStore,
    pages: &[PageId],
) -> Result<Option<Vec<Key>>, StateError> {
    let mut keys = Vec::new();
    for page in pages {
        let Some(value) = read_page(set, store, *page).await? else { return Ok(None) };
        keys.extend(keys_in(&value).iter().map(|k| Key(u128::from_be_bytes(*k))));
    }
    keys.sort_unstable();
    keys.dedup();
    Ok(Some(keys))
}

/// A page, from the cache or read into it; `None` when it left the set meanwhile.
async fn page_value(set: &Mutex<KeySet>, store: &dyn StateStore, page: PageId) -> Result<Option<Bytes>, StateError> {
    if let Some(value) = set.lock().cached(page.0).cloned() {
        return Ok(Some(value));
    }
    let value = read_page(set, store, page).await?;
    if let Some(value) = &value {
        set.lock().page_loaded(page, value.clone())?;
    }
    Ok(value)
}

/// A page as stored, checked; `None` when it left the set meanwhile.
async fn read_page(set: &Mutex<KeySet>, store: &dyn StateStore, page: PageId) -> Result<Option<Bytes>, StateError> {
    let name = set.lock().page_key(page);
    let loaded = store.load(&name).await?;
    if set.lock().pages.get(page.0).is_none() {
        return Ok(None);
    }
    let Some((value, _)) = loaded else {
        return Err(corrupt(&name, "the page is gone; load the set again after a commit that failed halfway".into()));
    };
    decode(EntryKind::Page, &name, &value)?;
    Ok(Some(value))
}

/// A key with the alignment of `u64`, which makes the hash table a quarter smaller.
fn slot(key: Key) -> [u64; 2] {
    [(key.0 >> 64) as u64, key.0 as u64]
}

fn key_of(slot: [u64; 2]) -> Key {
    Key(u128::from(slot[0]) << 64 | u128::from(slot[1]))
}

/// Sorted, distinct keys as pages of equal size, not numbered yet.
fn build_pages(keys: &[Key], day: u32, page_keys: usize) -> Vec<(KeyPage, Bytes)> {
    let pages = keys.len().div_ceil(page_keys.max(1));
    if pages == 0 {
        return Vec::new();
    }
    keys.chunks(keys.len().div_ceil(pages))
        .filter_map(|keys| {
            let value = encode(EntryKind::Page, day, keys);
            let page = KeyPage::of(0, day, keys_in(&value))?;
            Some((page, value))
        })
        .collect()
}

// The stored format, version 1, all numbers big-endian:
//
//   0  `KD` (delta) or `KP` (page)
//   2  version, 1
//   3  0
//   4  number of keys, u32
//   8  page: day of the latest write, days since 1970, u32; delta: 0, its keys age from when they are folded
//  12  first 8 bytes of the BLAKE3 hash of everything else
//  20  the keys, 16 bytes each, ascending, no two equal

const VERSION: u8 = 1;
const CHECK_AT: usize = 12;
const KEYS_AT: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    Delta,
    Page,
}

impl EntryKind {
    const fn folder(self) -> &'static str {
        match self {
            Self::Delta => "d",
            Self::Page => "p",
        }
    }

    const fn magic(self) -> [u8; 2] {
        match self {
            Self::Delta => *b"KD",
            Self::Page => *b"KP",
        }
    }
}

fn encode(entry: EntryKind, day: u32, keys: &[Key]) -> Bytes {
    let mut body = BytesMut::with_capacity(keys.len() * 16);
    for key in keys {
        body.put_u128(key.0);
    }
    let mut value = BytesMut::with_capacity(KEYS_AT + body.len());
    value.put_slice(&entry.magic());
    value.put_u8(VERSION);
    value.put_u8(0);
    value.put_u32(u32::try_from(keys.len()).unwrap_or(u32::MAX));
    value.put_u32(day);
    let check = check(&value, &body);
    value.put_slice(&check);
    value.put_slice(&body);
    value.freeze()
}

fn check(head: &[u8], keys: &[u8]) -> [u8; KEYS_AT - CHECK_AT] {
    let mut check = [0; KEYS_AT - CHECK_AT];
    blake3::Hasher::new().update(head).update(keys).finalize_xof().fill(&mut check);
    check
}

/// Checks a stored value; its day and keys.
fn decode<'v>(entry: EntryKind, name: &str, value: &'v [u8]) -> Result<(u32, &'v [[u8; 16]]), StateError> {
    let bad = |why: String| Err(corrupt(name, why));
    let Some((head, body)) = value.split_at_checked(KEYS_AT) else {
        return bad(format!("{} bytes are too few", value.len()));
    };
    let [m0, m1, version, _, c0, c1, c2, c3, d0, d1, d2, d3, stored @ ..] = head else {
        return bad("no header".into());
    };
    if [*m0, *m1] != entry.magic() {
        return bad("not a list of keys".into());
    }
    if *version != VERSION {
        return bad(format!("its format is {version}, this build reads {VERSION}"));
    }
    let (keys, rest) = body.as_chunks::<16>();
    if !rest.is_empty() || keys.len() != u32::from_be_bytes([*c0, *c1, *c2, *c3]) as usize {
        return bad(format!("{} bytes do not fit the number of keys", value.len()));
    }
    if *stored != check(head.get(..CHECK_AT).unwrap_or_default(), body) {
        return bad("its checksum does not match".into());
    }
    if keys.is_empty() || !keys.is_sorted_by(|a, b| a < b) {
        return bad("its keys are not in order".into());
    }
    Ok((u32::from_be_bytes([*d0, *d1, *d2, *d3]), keys))
}

/// The keys of a value that was checked.
fn keys_in(value: &[u8]) -> &[[u8; 16]] {
    value.get(KEYS_AT..).unwrap_or_default().as_chunks::<16>().0
}

fn value_contains(value: &[u8], key: Key) -> bool {
    // Big-endian bytes sort as the numbers do.
    keys_in(value).binary_search(&key.0.to_be_bytes()).is_ok()
}

fn corrupt(name: &str, why: String) -> StateError {
    StateError::Corrupt { key: name.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::embedded::memory::MemoryStore;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    const SMALL: SetLimits = SetLimits {
        page_keys: 8,
        fold_keys: 20,
        fold_deltas: 5,
        merge_pages: 4,
        depth: 3,
        depth_past: 2,
        small_pages: 3,
    };

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    fn key(secs: u32, n: u32) -> Key {
        Key::of_blob(&format!("test {n}"), at(secs.into()))
    }

    async fn commit(set: &Mutex<KeySet>, store: &MemoryStore, staged: StagedKeys) {
        // Every delete removes an existing entry: a set with a wrong count would leave entries behind.
        let entries = store.entries();
        let is_there = |op: &Op| !matches!(op, Op::Delete { key, .. } if !entries.contains_key(key));
        assert!(staged.ops.iter().all(is_there), "deleted twice");
        store.commit(staged.ops).await.unwrap();
        set.lock().committed(staged.token);
    }

    async fn add(set: &Mutex<KeySet>, store: &MemoryStore, keys: &[Key], now: Timestamp) {
        let staged = set.lock().stage(keys, now);
        commit(set, store, staged).await;
    }

    async fn tidy(set: &Mutex<KeySet>, store: &MemoryStore) -> usize {
        let mut steps = 0;
        while let Some(staged) = maintain(set, store).await.unwrap() {
            commit(set, store, staged).await;
            steps += 1;
        }
        steps
    }

    async fn empty(store: &MemoryStore, kind: KeyKind, bounds: SetLimits) -> Mutex<KeySet> {
        Mutex::new(KeySet::load_with(store, "t/keys", kind, bounds).await.unwrap())
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
    }

    #[test]
    fn format_1_of_deltas_and_pages_stays_readable() {
        let check = |entry, day, golden: Expect| {
            let keys = [Key(1), Key(0x69f4_7d80_0000_0000_0000_0000_0000_0002)];
            let value = encode(entry, day, &keys);
            golden.assert_eq(&hex(&value));
            assert_eq!(decode(entry, "k", &value).unwrap(), (day, &keys.map(|k| k.0.to_be_bytes())[..]));
        };
        check(
            EntryKind::Delta,
            0,
            expect![[r#"
            4b4401000000000200000000011fb164
            8a982d2b000000000000000000000000
            0000000169f47d800000000000000000
            00000002
        "#]],
        );
        check(
            EntryKind::Page,
            20_574,
            expect![[r#"
            4b500100000000020000505eb3695e55
            37c1c06b000000000000000000000000
            0000000169f47d800000000000000000
            00000002
        "#]],
        );
    }

    #[tokio::test]
    async fn a_damaged_or_newer_entry_is_named_and_left_alone() {
        let good = encode(EntryKind::Page, 1, &[Key(1), Key(2)]);
        let with = |at: usize, byte: u8| {
            let mut value = good.to_vec();
            value[at] = byte;
            Bytes::from(value)
        };
        let name = "t/keys/p/0000000000000001";
        let cases = [
            (name, with(2, 2), "its format is 2, this build reads 1"),
            (name, with(40, 9), "its checksum does not match"),
            (name, with(9, 9), "its checksum does not match"),
            (name, with(7, 3), "52 bytes do not fit the number of keys"),
            (name, with(1, b'D'), "not a list of keys"),
            (name, good.slice(..51), "51 bytes do not fit the number of keys"),
            (name, good.slice(..5), "5 bytes are too few"),
            (name, encode(EntryKind::Page, 1, &[Key(2), Key(1)]), "its keys are not in order"),
            (name, encode(EntryKind::Page, 1, &[]), "its keys are not in order"),
            ("t/keys/q/0000000000000001", good.clone(), "no entry this build knows"),
            ("t/keys/p/1", good.clone(), "no entry this build knows"),
        ];
        for (name, value, why) in cases {
            let store = MemoryStore::new();
            store.overwrite(name, Some(value.clone()));
            let error = KeySet::load(&store, "t/keys", KeyKind::Events).await.unwrap_err();
            assert_eq!(error, StateError::Corrupt { key: name.into(), why: why.into() });
            assert_eq!(store.entries().get(name), Some(&value));
        }
    }

    #[tokio::test]
    async fn staged_keys_show_only_when_committed_and_an_abort_leaves_nothing() {
        let store = MemoryStore::new();
        let set = empty(&store, KeyKind::Events, SMALL).await;
        let few = [key(5, 1), key(5, 2)];
        let many: Vec<Key> = (0..50).map(|n| key(n, n)).collect();
        for keys in [&few[..], &many] {
            let staged = set.lock().stage(keys, at(10));
            assert_eq!(set.lock().probe(keys[0]), Probe::Absent);
            set.lock().aborted(staged.token);
            assert!(set.lock().is_empty());
            add(&set, &store, keys, at(10)).await;
            assert_eq!(contains_all(&set, &store, keys).await.unwrap(), vec![true; keys.len()]);
            assert!(set.lock().pending.is_empty() && set.lock().leaving.is_empty());
            let staged = set.lock().clear().unwrap();
            commit(&set, &store, staged).await;
            assert!(store.entries().is_empty());
        }
    }

    #[tokio::test]
    async fn a_probe_names_the_page_to_read_and_then_knows() {
        let store = MemoryStore::new();
        let set = empty(&store, KeyKind::Events, SMALL).await;
        let keys: Vec<Key> = (0..50).map(|n| key(n, n)).collect();
        add(&set, &store, &keys, at(10)).await;
        let Probe::Maybe(page) = set.lock().probe(keys[7]) else { panic!() };
        let name = set.lock().page_key(page);
        let (value, _) = store.load(&name).await.unwrap().unwrap();
        assert!(set.lock().page_loaded(page, value.slice(1..)).is_err());
        set.lock().page_loaded(page, value).unwrap();
        assert_eq!(set.lock().probe(keys[7]), Probe::Present);
        set.lock().page_loaded(PageId(999), Bytes::new()).unwrap();
        store.overwrite(&name, None);
        set.lock().cache.clear();
        let error = contains_all(&set, &store, &keys[7..8]).await.unwrap_err();
        assert!(matches!(error, StateError::Corrupt { key, .. } if key == name));
    }

    #[tokio::test]
    async fn commits_under_way_side_by_side_do_not_disturb_each_other() {
        let store = MemoryStore::new();
        let set = empty(&store, KeyKind::Events, SMALL).await;
        add(&set, &store, &[key(1, 1)], at(10)).await;
        let late = set.lock().stage(&[key(1, 2)], at(10));
        let many: Vec<Key> = (0..40).map(|n| key(9, n)).collect();
        let fold = set.lock().stage(&many, at(10));
        let other = set.lock().stage(&many[..3], at(10));
        commit(&set, &store, other).await;
        commit(&set, &store, fold).await;
        commit(&set, &store, late).await;
        let all: Vec<Key> = many.into_iter().chain([key(1, 1), key(1, 2)]).collect();
        assert_eq!(contains_all(&set, &store, &all).await.unwrap(), vec![true; 42]);
        let again = empty(&store, KeyKind::Events, SMALL).await;
        assert_eq!(contains_all(&again, &store, &all).await.unwrap(), vec![true; 42]);
        let held = set.lock().stage(&[key(1, 3)], at(10));
        assert!(matches!(set.lock().clear(), Err(StateError::Unavailable(_))));
        assert!(matches!(forget_from(&set, &store, at(0)).await, Err(StateError::Unavailable(_))));
        set.lock().aborted(held.token);
    }

    #[tokio::test]
    async fn events_age_from_their_delivery_and_blobs_from_their_creation() {
        let day = |n: i64| at(n * DAY_SECS as i64);
        let old = DAY_SECS as u32;
        let keys: Vec<Key> = (0..20).map(|n| key(old, n)).collect();
        for (kind, last_kept, gone) in [(KeyKind::Events, 107, 108), (KeyKind::Blobs, 8, 10)] {
            let store = MemoryStore::new();
            let set = empty(&store, kind, SMALL).await;
            add(&set, &store, &keys, day(100)).await;
            let retention = if kind == KeyKind::Events { Retention::EVENTS } else { Retention::BLOBS };
            assert!(set.lock().expire(day(last_kept), retention).is_none());
            let staged = set.lock().expire(day(gone), retention).unwrap();
            // Already staged.
            assert!(set.lock().expire(day(gone), retention).is_none());
            commit(&set, &store, staged).await;
            assert!(set.lock().is_empty() && store.entries().is_empty());
        }
    }

    #[tokio::test]
    async fn over_the_bound_the_keys_written_first_leave() {
        let store = MemoryStore::new();
        let set = empty(&store, KeyKind::Events, SMALL).await;
        let keys = |day: u32| -> Vec<Key> { (0..40).map(|n| key(1000 - day, n)).collect() };
        for day in 0..5 {
            add(&set, &store, &keys(day), at(i64::from(day) * DAY_SECS as i64)).await;
        }
        let staged = set.lock().expire(at(0), Retention { keys_max: 125, ..Retention::EVENTS }).unwrap();
        commit(&set, &store, staged).await;
        assert_eq!(set.lock().len(), 128);
        assert_eq!(contains_all(&set, &store, &keys(0)).await.unwrap(), vec![false; 40]);
        assert_eq!(contains_all(&set, &store, &keys(4)).await.unwrap(), vec![true; 40]);
    }

    #[tokio::test]
    async fn folds_that_overlap_are_merged_until_few_pages_cover_a_moment() {
        let store = MemoryStore::new();
        let set = empty(&store, KeyKind::Events, BOUNDS).await;
        // Each fold spreads over the same day; the quiet ones after it are a page of 300 keys each.
        for fold in 0..30 {
            let keys: Vec<Key> = (0..8192).map(|n| key(n * 10 + fold, fold)).collect();
            add(&set, &store, &keys, at(0)).await;
            add(&set, &store, &[], at(0)).await;
            let staged = {
                let mut set = set.lock();
                let few: Vec<Key> = (0..300).map(|n| key(n * 250, 1000 + fold)).collect();
                let pages = build_pages(&few, 0, BOUNDS.page_keys);
                set.pend_pages(pages, None, Vec::new())
            };
            commit(&set, &store, staged).await;
        }
        let before: Vec<Key> = (0..30).map(|fold| key(fold * 40 + fold, fold)).collect();
        assert!(tidy(&set, &store).await > 0);
        {
            let set = set.lock();
            let pages: Vec<&KeyPage> = set.pages.list.iter().collect();
            assert!(set.deep(&pages, BOUNDS.depth).is_none());
            assert!(pages.len() as u64 <= set.pages.keys / 2048 + 4, "{} pages", pages.len());
        }
        assert_eq!(contains_all(&set, &store, &before).await.unwrap(), vec![true; 30]);
        assert_eq!(tidy(&set, &store).await, 0);
    }

    #[tokio::test]
    async fn a_million_keys_take_at_most_two_and_a_half_bytes_each() {
        let store = MemoryStore::new();
        let set = empty(&store, KeyKind::Events, BOUNDS).await;
        let mut n = 0;
        while n < 1_000_000 {
            let keys: Vec<Key> = (n..n + 5_000).map(|n| key(n / 10 + n % 3600, n)).collect();
            add(&set, &store, &keys, at(0)).await;
            n += 5_000;
        }
        tidy(&set, &store).await;
        let keys = set.lock().len();
        let bytes = set.lock().memory_bytes();
        assert_eq!(keys, 1_000_000);
        assert!(bytes as f64 / keys as f64 <= 2.5, "{bytes} bytes for {keys} keys");
        let loaded = empty(&store, KeyKind::Events, BOUNDS).await;
        let bytes = loaded.lock().memory_bytes();
        assert!(bytes as f64 / keys as f64 <= 2.5, "{bytes} bytes for {keys} keys after loading");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Stage { keys: Vec<(u32, u32)>, commits: bool },
        Maintain { commits: bool },
        Expire { commits: bool },
        Forget { from: u32, commits: bool },
        Clear,
        Reload,
        Wait { hours: u32 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Keys of twenty days, in six-hour steps.
        let keys = prop::collection::vec((0u32..80, 0u32..5), 0..30)
            .prop_map(|keys| keys.into_iter().map(|(quarter, n)| (quarter * 21_600, n)).collect());
        let commits = || prop::bool::weighted(0.8);
        let step = prop_oneof![
            8 => (keys, commits()).prop_map(|(keys, commits)| Step::Stage { keys, commits }),
            4 => commits().prop_map(|commits| Step::Maintain { commits }),
            2 => commits().prop_map(|commits| Step::Expire { commits }),
            1 => (0u32..80, commits()).prop_map(|(q, commits)| Step::Forget { from: q * 21_600, commits }),
            1 => Just(Step::Reload),
            3 => (0u32..40).prop_map(|hours| Step::Wait { hours }),
        ];
        (prop::collection::vec(step, 0..60), any::<bool>()).prop_map(|(mut steps, clear)| {
            if clear && steps.len() > 10 {
                steps.insert(10, Step::Clear);
            }
            steps
        })
    }

    proptest! {
        #[test]
        fn the_set_agrees_with_a_map(steps in steps(), events in any::<bool>()) {
            let kind = if events { KeyKind::Events } else { KeyKind::Blobs };
            let retention = if events { Retention::EVENTS } else { Retention::BLOBS };
            let store = MemoryStore::new();
            let mut set = run(empty(&store, kind, SMALL));
            // Keys that may be in the set, with the time of their last write; those old enough may have left.
            let mut model: BTreeMap<Key, i64> = BTreeMap::new();
            let mut expired = false;
            let mut now = 5 * DAY_SECS as i64;
            for step in steps {
                let resolve = |staged: StagedKeys, commits: bool| {
                    if commits { run(commit(&set, &store, staged)) } else { set.lock().aborted(staged.token) }
                    commits
                };
                match step {
                    Step::Stage { keys, commits } => {
                        let keys: Vec<Key> = keys.into_iter().map(|(secs, n)| key(secs, n)).collect();
                        let staged = set.lock().stage(&keys, at(now));
                        if resolve(staged, commits) {
                            model.extend(keys.into_iter().map(|k| (k, now)));
                        }
                    }
                    Step::Maintain { commits } => {
                        if let Some(staged) = run(maintain(&set, &store)).unwrap() {
                            resolve(staged, commits);
                        }
                    }
                    Step::Expire { commits } => {
                        let staged = set.lock().expire(at(now), retention);
                        if let Some(staged) = staged {
                            expired |= resolve(staged, commits);
                            if commits {
                                let age = retention.age.as_secs() as i64;
                                // The set chooses which old keys it removes, but none may come back.
                                let present = run(contains_all(&set, &store, &model.keys().copied().collect::<Vec<_>>())).unwrap();
                                let mut present = present.into_iter();
                                model.retain(|key, written| {
                                    let born = if events { *written } else { i64::from(key.secs()) };
                                    let present = present.next().unwrap();
                                    assert!(present || born + age < now, "{key:?} left too early");
                                    present
                                });
                            }
                        }
                    }
                    Step::Forget { from, commits } => {
                        let staged = run(forget_from(&set, &store, at(i64::from(from)))).unwrap();
                        if resolve(staged, commits) {
                            model.retain(|key, _| key.secs() < from);
                        }
                    }
                    Step::Clear => {
                        let staged = set.lock().clear().unwrap();
                        resolve(staged, true);
                        model.clear();
                    }
                    Step::Reload => set = run(empty(&store, kind, SMALL)),
                    Step::Wait { hours } => now += i64::from(hours) * 3600,
                }
                let asked: Vec<Key> = (0..80).flat_map(|q| (0..5).map(move |n| key(q * 21_600, n))).collect();
                let found = run(contains_all(&set, &store, &asked)).unwrap();
                for (key, found) in asked.iter().zip(found) {
                    prop_assert_eq!(found, model.contains_key(key), "{:?}, expired: {}", key, expired);
                }
                prop_assert!(set.lock().pending.is_empty() && set.lock().leaving.is_empty());
                let entries = {
                    let set = set.lock();
                    set.deltas.len() + set.pages.list.len()
                };
                prop_assert_eq!(store.entries().len(), entries);
                prop_assert!(set.lock().deltas.len() < SMALL.fold_deltas);
            }
            let mut rounds = 0;
            while let Some(staged) = run(maintain(&set, &store)).unwrap() {
                run(commit(&set, &store, staged));
                rounds += 1;
                prop_assert!(rounds < 1000, "maintenance does not end");
            }
        }
    }
}
