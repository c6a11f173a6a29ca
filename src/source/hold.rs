//! Routine reads that wait for data loss prevention, and the items it has flagged.
//!
//! A rule may drop a read of a file or a message that is needed because data loss prevention matched the same item, and
//! the match may come hours after the read. So a read is *held*: its body goes to disk in the commit that makes its key
//! and its blob's mark permanent. When a match of its item is committed, the read is delivered and then removed. When
//! everything that could hold a match is complete past the read's `contentCreated` and `hold_secs`, it is dropped.
//! Wall-clock time alone never drops a read while a content type that may bring matches lags behind.
//!
//! Memory holds, for each page of held reads, its place, its age and 32 bits of each link; for each flagged item, its
//! link and the page with the details. A read that was put on hold while its match was being committed is found because
//! each side looks for the other when it becomes visible, under one lock.
//!
//! This is the index: it judges, remembers, and returns the next work (`Hold::next_work`). It delivers and commits
//! nothing; `release` does, and reports to the index what became durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use jiff::SignedDuration;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::format::Keys;
use crate::checkpoint::held::{FlagEntry, FlagPage, HeldHead, HeldPage, HeldRecord};
use crate::host::{Entries, Expected, Op, StateError, StateStore};
use crate::metrics;
use crate::model::{BlobRef, ContentType, TenantId, Timestamp};
use crate::normalise::CanonicalKey;
use crate::normalise::dlp_link::{DlpMatch, Flag, Link};
use crate::severity::Severity;

/// The cost of a page beside its value: a row in the store and an entry in memory. Counted against the bound, so that
/// many small pages cannot outgrow it.
pub(super) const PAGE_COST_BYTES: u64 = 2048;
/// Pages read for one batch of released reads.
const PAGES_PER_RELEASE: usize = 64;
/// Pages dropped in one commit.
const PAGES_PER_DROP: usize = 512;
/// Once the bound is exceeded, reads are delivered until the rest is this share of it, in tenths.
const SHED_TO_TENTHS: u64 = 9;
/// Flags on one page at most.
const FLAGS_PER_PAGE: usize = 4096;
/// A page with fewer is small.
const FLAGS_SMALL: usize = 1024;
/// This many small pages are folded into one.
const FOLD_PAGES: usize = 64;
/// Pages of flags kept in memory after they were read.
const CACHED_PAGES_MAX: usize = 8;
/// A flag without news is written again when it is older than this, so that it does not expire.
const FLAG_RENEWED_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// Settings of a tenant's hold.
#[derive(Debug, Clone)]
pub struct HoldSettings {
    /// The tenant.
    pub tenant: TenantId,
    /// Whether routine events are dropped at all.
    pub dropping: bool,
    /// How far past a read's `contentCreated` all matches must be known before it is dropped.
    pub hold: SignedDuration,
    /// Bytes held at most.
    pub bytes_max: u64,
    /// Flagged items remembered at most.
    pub flags_max: u64,
    /// How long an item stays flagged after its last match.
    pub flag_age: SignedDuration,
}

/// The interval in which all matches are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Horizon {
    /// No content type is read that brings matches: nothing is held.
    Blind,
    /// Every match made available between these is known, the end excluded.
    Known {
        /// Nothing older was ever listed.
        from: Timestamp,
        /// Newer ones may still come.
        until: Timestamp,
    },
}

/// The content types whose events bring matches.
pub const BRINGS_MATCHES: [ContentType; 2] = [ContentType::Dlp, ContentType::General];

/// The content type that held reads wait for: of those that are read and bring matches, the least complete one, with
/// its `complete_until`. The argument `complete_until` gives that of every type that is read.
pub fn waited_for(
    complete_until: impl IntoIterator<Item = (ContentType, Option<Timestamp>)>,
) -> Option<(ContentType, Option<Timestamp>)> {
    complete_until
        .into_iter()
        .filter(|(content_type, _)| BRINGS_MATCHES.contains(content_type))
        .min_by_key(|(_, complete)| *complete)
}

/// A content type that brings matches.
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    /// Its `origin`.
    pub from: Timestamp,
    /// Its `complete_until`.
    pub until: Option<Timestamp>,
    /// A permission is missing, so it cannot be listed: reads do not wait for it, but for `hold_secs`.
    pub parked: bool,
}

/// A single pass does not wait for a content type that is refused and was not listed for this long, since passes may be
/// a day apart.
pub const UNLISTED_TO_PASS: SignedDuration = SignedDuration::from_hours(72);

/// The horizon of the content types that bring matches.
pub fn horizon(waited: &[Waited], now: Option<Timestamp>) -> Horizon {
    let until = |waited: &Waited| if waited.parked { now } else { waited.until };
    let from = waited.iter().filter(|waited| !waited.parked).map(|waited| waited.from).max();
    match waited.iter().map(until).map(|until| until.unwrap_or(Timestamp::MIN)).min() {
        Some(until) => Horizon::Known { from: from.unwrap_or(Timestamp::MIN), until },
        None => Horizon::Blind,
    }
}

/// The decision on a read that a rule would drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldDecision {
    /// A match of it is known: it is delivered.
    Flagged,
    /// All matches that could concern it are known, and none does.
    Drop,
    /// It waits.
    Hold,
}

/// Reads on hold and flagged items of one tenant. Cheap to clone.
#[derive(Clone)]
pub struct Hold(Arc<HoldInner>);

struct HoldInner {
    settings: HoldSettings,
    keys: Keys,
    store: Arc<dyn StateStore>,
    state: Mutex<HoldState>,
    /// Pages of flags read lately.
    cache: Mutex<FlagCache>,
    /// Signals that there is work for the tenant's loop to start.
    woken: Notify,
    /// Signals that there is room again.
    room: Notify,
}

/// A page of flags, by link.
type FlagsByLink = Arc<BTreeMap<Link, FlagEntry>>;
type FlagCache = VecDeque<(u64, FlagsByLink)>;

/// Oldest first.
pub(super) type HeldPageId = (Timestamp, u64);

struct HoldState {
    horizon: Horizon,
    pages: BTreeMap<HeldPageId, HeldEntry>,
    records: u64,
    bytes: u64,
    next_page: u64,
    /// Pages that may hold a read of an item flagged since.
    suspects: BTreeSet<HeldPageId>,
    /// Prefixes of links flagged since the pages were last looked through.
    fresh: BTreeSet<u32>,
    /// Over the bound, and not far enough below it again.
    shedding: bool,
    /// By link, the page with the details.
    flags: BTreeMap<Link, u64>,
    flag_pages: BTreeMap<u64, FlagMeta>,
    next_flag_page: u64,
    said_full: bool,
    /// Whether the log has mentioned reads delivered for lack of room, since there was room last.
    said_shed: bool,
    /// A loop gives it turns; a back-fill in a process of its own does not.
    tended: bool,
    /// Pages of flags may have to be tidied.
    untidy: bool,
}

pub(super) struct HeldEntry {
    head: HeldHead,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct FlagMeta {
    /// Links for which this page has the details.
    live: usize,
    newest: Timestamp,
}

/// Reads and flags ready for a commit.
#[derive(Default)]
#[must_use = "commit the steps, then call `committed`"]
pub struct StagedHold {
    /// For `Change::held`.
    pub ops: Vec<Op>,
    page: Option<(HeldPageId, HeldEntry)>,
    flags: Option<(u64, Timestamp, Vec<Link>)>,
}

impl StagedHold {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// The next work of a turn.
pub(super) enum HoldWork {
    Nothing,
    /// Pages that may hold flagged reads: those are delivered, the others stay.
    Look(Vec<HeldPageId>),
    /// Pages whose reads are all to be delivered.
    Ship(Vec<HeldPageId>),
    /// Pages to be deleted.
    Drop(Vec<HeldPageId>),
    /// Pages of flags to be deleted.
    Forget(Vec<u64>),
    /// Pages of flags to be made one.
    Fold(Vec<u64>),
}

impl Hold {
    /// Reads what an earlier run left: from `there`, which is `store` or what was read of it ahead.
    ///
    /// # Errors
    /// When the store cannot be read, or holds a value that is not a page.
    pub async fn load(
        there: &dyn StateStore,
        store: Arc<dyn StateStore>,
        settings: HoldSettings,
    ) -> Result<Hold, StateError> {
        let keys = Keys::of(&settings.tenant);
        let mut state = HoldState {
            horizon: Horizon::Known { from: Timestamp::MIN, until: Timestamp::MIN },
            pages: BTreeMap::new(),
            records: 0,
            bytes: 0,
            next_page: 0,
            suspects: BTreeSet::new(),
            fresh: BTreeSet::new(),
            shedding: false,
            flags: BTreeMap::new(),
            flag_pages: BTreeMap::new(),
            next_flag_page: 0,
            said_full: false,
            said_shed: false,
            tended: false,
            untidy: true,
        };
        let mut flags = Entries::below(there, &keys.flags());
        while let Some((key, bytes)) = flags.next().await? {
            let number = number_of(&key)?;
            let page = FlagPage::decode(&key, &bytes)?;
            let newest = page.newest();
            state.add_flags(number, newest, page.flags.iter().map(|entry| entry.link));
            state.next_flag_page = number + 1;
        }
        state.fresh.clear();
        let mut held = Entries::below(there, &keys.held());
        while let Some((key, bytes)) = held.next().await? {
            let number = number_of(&key)?;
            let head = HeldHead::decode(&key, &bytes)?;
            // A match may have been committed and the reads it concerns not yet delivered when the last run ended.
            state.add_page((head.created, number), HeldEntry { head, bytes: bytes.len() as u64 + PAGE_COST_BYTES });
            state.next_page = number + 1;
        }
        Ok(Hold(Arc::new(HoldInner {
            settings,
            keys,
            store,
            state: Mutex::new(state),
            cache: Mutex::default(),
            woken: Notify::new(),
            room: Notify::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, HoldState> {
        self.0.state.lock()
    }

    /// Whether routine events are dropped.
    pub fn is_dropping(&self) -> bool {
        self.0.settings.dropping
    }

    /// Sets how far matches are known. Every match committed before this call counts as known.
    pub fn set_horizon(&self, horizon: Horizon) {
        let mut state = self.lock();
        state.horizon = horizon;
        state.tended = true;
    }

    /// Reads and bytes on hold.
    pub fn held(&self) -> (u64, u64) {
        let state = self.lock();
        (state.records, state.bytes)
    }

    /// Periodic upkeep: updates the gauges and expires old flags.
    pub fn tick(&self) {
        let mut state = self.lock();
        state.untidy = true;
        let tenant = metrics::tenant_label(&self.0.settings.tenant);
        ::metrics::gauge!(metrics::HELD_EVENTS, "tenant" => tenant.clone()).set(state.records as f64);
        ::metrics::gauge!(metrics::HELD_BYTES, "tenant" => tenant.clone()).set(state.bytes as f64);
        ::metrics::gauge!(metrics::DLP_FLAGS, "tenant" => tenant).set(state.flags.len() as f64);
    }

    // ---- reads ----

    /// Decides on a read made available at `created` that names these links.
    pub fn judge(&self, links: &[Link], created: Timestamp) -> HoldDecision {
        let state = self.lock();
        // A read without a link can never be joined to a match.
        if links.iter().any(|link| state.flags.contains_key(link)) {
            HoldDecision::Flagged
        } else if links.is_empty() || state.horizon == Horizon::Blind || state.is_past(created, self.0.settings.hold) {
            HoldDecision::Drop
        } else {
            HoldDecision::Hold
        }
    }

    /// The flag of these links, all matches taken together; `None` when none of them is flagged.
    ///
    /// # Errors
    /// When a page had to be read from the store and could not be.
    pub async fn flag_of(&self, links: &[Link]) -> Result<Option<Flag>, StateError> {
        let mut known: Option<Flag> = None;
        for link in links {
            let Some(number) = self.lock().flags.get(link).copied() else { continue };
            // The page may have just been deleted although the item was still flagged a moment ago.
            let found = self.flag_page(number).await?.and_then(|page| page.get(link).map(|entry| entry.flag.clone()));
            let flag = found.unwrap_or(Flag { policies: vec![], incidents: vec![], severity: Severity::Medium });
            match &mut known {
                Some(known) => drop(known.merge(&flag)),
                None => known = Some(flag),
            }
        }
        Ok(known)
    }

    /// Resolves when there is room for more; false when stopped.
    pub async fn room(&self, stop: &CancellationToken) -> bool {
        loop {
            let mut made = std::pin::pin!(self.0.room.notified());
            made.as_mut().enable();
            {
                let state = self.lock();
                if state.bytes <= self.0.settings.bytes_max || !state.tended {
                    return true;
                }
            }
            self.0.woken.notify_one();
            tokio::select! {
                () = made => {}
                () = stop.cancelled() => return false,
            }
        }
    }

    /// Makes reads of a blob and matches in it ready to be committed, and takes them.
    ///
    /// # Errors
    /// When the flag of an item had to be read from the store and could not be; then nothing is staged.
    pub async fn stage(
        &self,
        blob: &BlobRef,
        records: &mut Vec<HeldRecord>,
        matches: &mut Vec<DlpMatch>,
    ) -> Result<StagedHold, StateError> {
        let mut staged = StagedHold::default();
        let flags = self.new_flags(matches, blob.created).await?;
        matches.clear();
        if !records.is_empty() {
            let page = HeldPage {
                content_type: blob.content_type,
                content_id: blob.id.clone(),
                created: blob.created,
                records: std::mem::take(records),
            };
            let value = page.encode();
            let number = self.lock().take_page_number();
            let held = HeldEntry { head: page.head(), bytes: value.len() as u64 + PAGE_COST_BYTES };
            staged.ops.push(put(self.0.keys.held_page(number), value));
            staged.page = Some(((blob.created, number), held));
        }
        if !flags.is_empty() {
            let links = flags.iter().map(|entry| entry.link).collect();
            let page = FlagPage { flags };
            let number = self.lock().take_flag_page_number();
            staged.ops.push(put(self.0.keys.flag_page(number), page.encode()));
            staged.flags = Some((number, page.newest(), links));
        }
        Ok(staged)
    }

    /// Records that the staged changes are durable.
    pub fn committed(&self, staged: StagedHold) {
        let mut state = self.lock();
        let mut wake = false;
        if let Some((number, newest, links)) = staged.flags {
            state.add_flags(number, newest, links.into_iter());
            wake = true;
        }
        if let Some((id, held)) = staged.page {
            state.add_page(id, held);
            wake |= state.bytes > self.0.settings.bytes_max || !state.fresh.is_empty();
        }
        drop(state);
        if wake {
            self.0.woken.notify_one();
        }
    }

    // ---- work ----

    /// Resolves when there may be work.
    pub async fn woken(&self) {
        self.0.woken.notified().await;
    }

    /// Whether a turn would do something.
    pub fn has_work(&self, now: Option<Timestamp>) -> bool {
        let mut state = self.lock();
        let some = !state.fresh.is_empty() || !matches!(self.next(&state, now), HoldWork::Nothing);
        state.untidy &= some;
        some
    }

    /// Returns the next work. Recently flagged items are searched for among held reads first.
    pub(super) fn next_work(&self, now: Option<Timestamp>) -> HoldWork {
        let bytes_max = self.0.settings.bytes_max;
        let mut state = self.lock();
        state.look_for_fresh();
        state.shedding = state.bytes > bytes_max || (state.shedding && state.bytes > bytes_max / 10 * SHED_TO_TENTHS);
        state.said_shed &= state.shedding;
        self.next(&state, now)
    }

    fn next(&self, state: &HoldState, now: Option<Timestamp>) -> HoldWork {
        let settings = &self.0.settings;
        let oldest = |n: usize| state.pages.keys().take(n).copied().collect::<Vec<_>>();
        if !state.suspects.is_empty() {
            return HoldWork::Look(state.suspects.iter().take(PAGES_PER_RELEASE).copied().collect());
        }
        let Some(((created, _), _)) = state.pages.first_key_value() else { return self.next_of_flags(state, now) };
        // Dropping is off, or no content type shows any more what may be dropped: held reads must not be lost because
        // of that.
        if !settings.dropping || state.horizon == Horizon::Blind {
            return HoldWork::Ship(oldest(PAGES_PER_RELEASE));
        }
        if state.is_before(*created) {
            let before = oldest(PAGES_PER_RELEASE).into_iter().take_while(|(created, _)| state.is_before(*created));
            return HoldWork::Ship(before.collect());
        }
        if state.is_past(*created, settings.hold) {
            let past =
                oldest(PAGES_PER_DROP).into_iter().take_while(|(created, _)| state.is_past(*created, settings.hold));
            return HoldWork::Drop(past.collect());
        }
        if state.shedding || state.bytes > settings.bytes_max {
            let mut left = state.bytes;
            let goal = settings.bytes_max / 10 * SHED_TO_TENTHS;
            let mut pages = Vec::new();
            for (id, held) in state.pages.iter().take(PAGES_PER_RELEASE) {
                if left <= goal {
                    break;
                }
                left = left.saturating_sub(held.bytes);
                pages.push(*id);
            }
            return HoldWork::Ship(pages);
        }
        self.next_of_flags(state, now)
    }

    fn next_of_flags(&self, state: &HoldState, now: Option<Timestamp>) -> HoldWork {
        if !state.untidy {
            return HoldWork::Nothing;
        }
        let settings = &self.0.settings;
        let aged = |meta: &FlagMeta| now.is_some_and(|now| now.duration_since(meta.newest) > settings.flag_age);
        let mut forget: Vec<u64> =
            state.flag_pages.iter().filter(|(_, meta)| meta.live == 0 || aged(meta)).map(|(n, _)| *n).collect();
        if forget.is_empty() && state.flags.len() as u64 > settings.flags_max {
            forget.extend(state.flag_pages.keys().next());
        }
        if !forget.is_empty() {
            return HoldWork::Forget(forget);
        }
        let small = state.flag_pages.iter().filter(|(_, meta)| meta.live < FLAGS_SMALL).map(|(n, _)| *n);
        let small: Vec<u64> = small.take(FOLD_PAGES).collect();
        if small.len() == FOLD_PAGES { HoldWork::Fold(small) } else { HoldWork::Nothing }
    }

    // ---- what a turn does to pages ----

    /// These pages by content type, without those that are there no longer.
    pub(super) fn by_type(&self, pages: Vec<HeldPageId>) -> BTreeMap<ContentType, Vec<HeldPageId>> {
        let mut by_type: BTreeMap<ContentType, Vec<HeldPageId>> = BTreeMap::new();
        let mut state = self.lock();
        for id in pages {
            match state.pages.get(&id) {
                Some(held) => by_type.entry(held.head.content_type).or_default().push(id),
                None => drop(state.suspects.remove(&id)),
            }
        }
        by_type
    }

    /// Reads a page.
    ///
    /// # Errors
    /// When the store cannot be read, or has no such page.
    pub(super) async fn page(&self, id: HeldPageId) -> Result<HeldPage, StateError> {
        let key = self.0.keys.held_page(id.1);
        let Some((bytes, _)) = self.0.store.load(&key).await? else {
            return Err(StateError::Corrupt { key, why: "the page is missing".into() });
        };
        HeldPage::decode(&key, &bytes)
    }

    /// The rule and the canonical key of each read on a page; empty if the page is gone.
    ///
    /// # Errors
    /// When the store cannot be read, or the value is not a page.
    pub(super) async fn keyed_rules(
        &self,
        id: HeldPageId,
    ) -> Result<Vec<(Arc<str>, Option<CanonicalKey>)>, StateError> {
        let key = self.0.keys.held_page(id.1);
        match self.0.store.load(&key).await? {
            Some((bytes, _)) => HeldPage::keyed_rules(&key, &bytes),
            None => Ok(Vec::new()),
        }
    }

    /// Prepares for a commit the reads that stay on a page; `None` when all stay, because only 32 bits of a link
    /// coincided.
    pub(super) fn keep(&self, id: HeldPageId, page: &HeldPage) -> Option<(Op, PartlyReleased)> {
        if page.records.is_empty() {
            return Some((self.delete(id), PartlyReleased { id, rest: None }));
        }
        let key = self.0.keys.held_page(id.1);
        let mut state = self.lock();
        let before = state.pages.get(&id).map_or(0, |held| held.head.records());
        if page.records.len() as u64 >= before {
            state.suspects.remove(&id);
            return None;
        }
        drop(state);
        let value = page.encode();
        let rest = HeldEntry { head: page.head(), bytes: value.len() as u64 + PAGE_COST_BYTES };
        Some((put(key, value), PartlyReleased { id, rest: Some(rest) }))
    }

    /// Records that the rest of these pages is durable. Returns whether to log that reads were delivered for lack of
    /// room (`shed`).
    pub(super) fn kept(&self, pages: Vec<PartlyReleased>, shed: bool) -> bool {
        let mut state = self.lock();
        for PartlyReleased { id, rest } in pages {
            state.remove_page(id);
            if let Some(held) = rest {
                state.add_page(id, held);
            }
            state.suspects.remove(&id);
        }
        let say = shed && !std::mem::replace(&mut state.said_shed, shed);
        drop(state);
        self.0.room.notify_waiters();
        say
    }

    /// The operation that deletes a page from the disk.
    pub(super) fn delete(&self, id: HeldPageId) -> Op {
        Op::Delete { key: self.0.keys.held_page(id.1), expected: Expected::Any }
    }

    /// Removes these pages; returns how many reads of each content type each rule dropped.
    pub(super) fn dropped(&self, pages: &[HeldPageId]) -> BTreeMap<(ContentType, Arc<str>), u64> {
        let mut counts: BTreeMap<(ContentType, Arc<str>), u64> = BTreeMap::new();
        let mut state = self.lock();
        for id in pages {
            let Some(held) = state.remove_page(*id) else { continue };
            for (rule, n) in held.head.rules {
                *counts.entry((held.head.content_type, rule)).or_default() += u64::from(n);
            }
        }
        drop(state);
        self.0.room.notify_waiters();
        counts
    }

    /// The settings of the hold.
    pub(super) fn settings(&self) -> &HoldSettings {
        &self.0.settings
    }

    // ---- flags ----

    /// The flags that matches add to the known ones.
    async fn new_flags(&self, matches: &[DlpMatch], at: Timestamp) -> Result<Vec<FlagEntry>, StateError> {
        let mut found: BTreeMap<Link, Flag> = BTreeMap::new();
        for DlpMatch { links, flag } in matches {
            for link in links {
                match found.get_mut(link) {
                    Some(known) => drop(known.merge(flag)),
                    None => drop(found.insert(*link, flag.clone())),
                }
            }
        }
        let mut flags = Vec::with_capacity(found.len());
        for (link, mut flag) in found {
            let known = self.lock().flags.get(&link).copied();
            let page = match known {
                Some(number) => self.flag_page(number).await?,
                None => None,
            };
            let mut at = at;
            if let Some(entry) = page.as_ref().and_then(|page| page.get(&link)) {
                let mut all = entry.flag.clone();
                if !all.merge(&flag) && at.duration_since(entry.at) < FLAG_RENEWED_AFTER {
                    continue;
                }
                at = at.max(entry.at);
                flag = all;
            }
            flags.push(FlagEntry { link, at, flag });
        }
        Ok(flags)
    }

    /// A page of flags, by link; `None` when it is there no longer.
    async fn flag_page(&self, number: u64) -> Result<Option<FlagsByLink>, StateError> {
        let cached = |cache: &FlagCache| cache.iter().find(|(known, _)| *known == number).map(|(_, page)| page.clone());
        if let Some(page) = cached(&self.lock_cache()) {
            return Ok(Some(page));
        }
        let key = self.0.keys.flag_page(number);
        let Some((bytes, _)) = self.0.store.load(&key).await? else { return Ok(None) };
        let page = FlagPage::decode(&key, &bytes)?;
        let page: FlagsByLink = Arc::new(page.flags.into_iter().map(|entry| (entry.link, entry)).collect());
        let mut cache = self.lock_cache();
        cache.push_front((number, page.clone()));
        cache.truncate(CACHED_PAGES_MAX);
        Ok(Some(page))
    }

    fn lock_cache(&self) -> MutexGuard<'_, FlagCache> {
        self.0.cache.lock()
    }

    /// The operations that delete pages of flags from the disk.
    pub(super) fn delete_flags(&self, pages: &[u64]) -> impl Iterator<Item = Op> {
        pages.iter().map(|number| Op::Delete { key: self.0.keys.flag_page(*number), expected: Expected::Any })
    }

    /// Removes these pages of flags; returns whether to log that they were removed for lack of room.
    pub(super) fn forgotten(&self, pages: &[u64]) -> bool {
        let mut state = self.lock();
        let say = state.flags.len() as u64 > self.0.settings.flags_max && !state.said_full;
        state.said_full |= say;
        state.remove_flag_pages(pages);
        say
    }

    /// Merges the flags that are still valid into new pages: their numbers and contents.
    ///
    /// # Errors
    /// When a page had to be read from the store and could not be.
    pub(super) async fn fold(&self, pages: &[u64]) -> Result<(Vec<Op>, Vec<(u64, FlagPage)>), StateError> {
        let mut live: BTreeMap<Link, FlagEntry> = BTreeMap::new();
        for number in pages {
            let Some(page) = self.flag_page(*number).await? else { continue };
            let state = self.lock();
            let current = page.values().filter(|entry| state.flags.get(&entry.link) == Some(number));
            live.extend(current.map(|entry| (entry.link, entry.clone())));
        }
        let (mut ops, mut folded) = (Vec::new(), Vec::new());
        let entries: Vec<FlagEntry> = live.into_values().collect();
        for flags in entries.chunks(FLAGS_PER_PAGE) {
            let page = FlagPage { flags: flags.to_vec() };
            let number = self.lock().take_flag_page_number();
            ops.push(put(self.0.keys.flag_page(number), page.encode()));
            folded.push((number, page));
        }
        Ok((ops, folded))
    }

    /// Replaces `pages` by new pages, which are durable.
    pub(super) fn folded(&self, folded: Vec<(u64, FlagPage)>, pages: &[u64]) {
        let mut state = self.lock();
        for (number, page) in folded {
            // An item flagged again meanwhile stays with its newer page.
            let links = page.flags.iter().map(|entry| entry.link);
            let moved: Vec<Link> =
                links.filter(|link| state.flags.get(link).is_some_and(|known| pages.contains(known))).collect();
            let fresh = std::mem::take(&mut state.fresh);
            state.add_flags(number, page.newest(), moved.into_iter());
            state.fresh = fresh;
        }
        state.remove_flag_pages(pages);
    }
}

/// A page of which reads were delivered, with the rest of it.
pub(super) struct PartlyReleased {
    id: HeldPageId,
    rest: Option<HeldEntry>,
}

impl HoldState {
    /// Whether all matches that could concern a read made available then are known.
    fn is_past(&self, created: Timestamp, hold: SignedDuration) -> bool {
        match self.horizon {
            Horizon::Blind => false,
            Horizon::Known { from, until } => {
                from <= created && created.saturating_add(hold).is_ok_and(|end| end <= until)
            }
        }
    }

    /// Whether a read is older than all listed matches, as in a back-fill: whether it is flagged can never be known.
    fn is_before(&self, created: Timestamp) -> bool {
        matches!(self.horizon, Horizon::Known { from, .. } if created < from)
    }

    fn take_page_number(&mut self) -> u64 {
        self.next_page += 1;
        self.next_page - 1
    }

    fn take_flag_page_number(&mut self) -> u64 {
        self.next_flag_page += 1;
        self.next_flag_page - 1
    }

    /// Makes a page visible, and looks in it for items that are already flagged.
    fn add_page(&mut self, id: HeldPageId, held: HeldEntry) {
        self.records += held.head.records();
        self.bytes += held.bytes;
        if !self.flags.is_empty() {
            let flagged = |prefix: u32| self.flags.range(Link::of_prefix(prefix)).next().is_some();
            if held.head.links.iter().any(|prefix| flagged(*prefix)) {
                self.suspects.insert(id);
            }
        }
        self.pages.insert(id, held);
    }

    fn remove_page(&mut self, id: HeldPageId) -> Option<HeldEntry> {
        let held = self.pages.remove(&id)?;
        self.records -= held.head.records();
        self.bytes -= held.bytes;
        self.suspects.remove(&id);
        Some(held)
    }

    /// Makes flags visible; they are looked for among the held by the next turn.
    fn add_flags(&mut self, number: u64, newest: Timestamp, links: impl Iterator<Item = Link>) {
        let mut live = 0;
        for link in links {
            live += 1;
            self.fresh.insert(link.prefix());
            if let Some(old) = self.flags.insert(link, number)
                && let Some(meta) = self.flag_pages.get_mut(&old)
            {
                meta.live -= 1;
            }
        }
        self.flag_pages.insert(number, FlagMeta { live, newest });
        self.untidy = true;
    }

    fn remove_flag_pages(&mut self, pages: &[u64]) {
        for number in pages {
            self.flag_pages.remove(number);
        }
        self.flags.retain(|_, number| !pages.contains(number));
    }

    /// Finds the pages that may hold a read of a recently flagged item.
    fn look_for_fresh(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh: Vec<u32> = std::mem::take(&mut self.fresh).into_iter().collect();
        for (id, held) in &self.pages {
            let links = &held.head.links;
            let (few, many) =
                if fresh.len() < links.len() { (&fresh[..], &links[..]) } else { (&links[..], &fresh[..]) };
            if few.iter().any(|prefix| many.binary_search(prefix).is_ok()) {
                self.suspects.insert(*id);
            }
        }
    }
}

fn put(key: String, value: bytes::Bytes) -> Op {
    Op::Put { key, value, expected: Expected::Any }
}

fn number_of(key: &str) -> Result<u64, StateError> {
    let number = key.rsplit('/').next().and_then(|text| u64::from_str_radix(text, 16).ok());
    number.ok_or_else(|| StateError::Corrupt { key: key.to_owned(), why: "its name is not a number".into() })
}
