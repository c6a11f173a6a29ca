//! Routine reads that wait for data loss prevention, and the items it has flagged.
//!
//! A read of a file or a message that a rule would drop is worth having when data loss prevention matched the same item,
//! and the match may come hours after the read. So a read is *held*: its body goes to disk in the commit that makes its
//! key and its blob's mark permanent. When a match of its item is committed, the read is delivered and then removed. When
//! everything that could hold a match is complete past the read's `contentCreated` and `hold_secs`, it is dropped. Wall
//! time decides nothing while a content type that may bring matches lags behind.
//!
//! What is in memory: of each page of held reads where it is, how old, and 32 bits of each link; of each flagged item its
//! link and the page that says more. A read that was put on hold while its match was being committed is found because
//! each side looks for the other when it becomes visible, under one lock. The tenant's loop calls [`Hold::turn`], of which
//! one runs at a time, whenever [`Hold::has_work`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::SignedDuration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::deliver::Stopped;
use super::fetch::{BAD_PIECE_BYTES, BATCH_BYTES, FetchContext};
use crate::checkpoint::format::Keys;
use crate::checkpoint::held::{FlagEntry, FlagPage, HeldHead, HeldPage, HeldRecord};
use crate::checkpoint::ledger::Change;
use crate::host::{BatchBuilder, Expected, Op, StateError, StateStore};
use crate::metrics;
use crate::model::{BlobRef, ContentType, TenantId, Timestamp};
use crate::normalise::dlp_link::{DlpNote, Flag, Link, Match, links_of_read};
use crate::normalise::scraps::{Fate, Scraps};
use crate::normalise::{BadBody, BadBytes, BlobContext, Event, Normaliser, Withheld};
use crate::severity::Severity;

/// What a page costs beside its value: a row in the store and an entry in memory. Counted against the bound, so that
/// many small pages cannot outgrow it.
const PAGE_COST_BYTES: u64 = 2048;
/// Pages read for one batch of released reads.
const PAGES_PER_RELEASE: usize = 64;
/// Pages dropped in one commit.
const PAGES_PER_DROP: usize = 512;
/// Once the bound is passed, reads are shipped until this share of it is left, in tenths.
const SHED_TO_TENTHS: u64 = 9;
/// Flags on one page at most.
const FLAGS_PER_PAGE: usize = 4096;
/// A page with fewer is small.
const FLAGS_SMALL: usize = 1024;
/// So many small pages are folded into one.
const FOLD_PAGES: usize = 64;
/// Pages of flags kept in memory after they were read.
const CACHED_PAGES_MAX: usize = 8;
/// A flag that says nothing new is written again when it is older than this, so that it lives on.
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

/// What is known that may bring a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Horizon {
    /// No content type is read that brings matches: nothing is held.
    Blind,
    /// Every match made available between these is known, the end excluded.
    Known {
        /// Nothing older was ever listed.
        from: Timestamp,
        /// Newer ones may be to come.
        until: Timestamp,
    },
}

/// A content type that brings matches.
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    /// Its `origin`.
    pub from: Timestamp,
    /// Its `complete_until`.
    pub until: Option<Timestamp>,
    /// Cannot be listed for want of a permission: it is not waited for, `hold_secs` are.
    pub parked: bool,
}

/// A single pass does not wait for a content type that is refused and was not listed for this long: passes may be a day apart.
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

/// What becomes of a read that a rule would drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// A match of it is known: it is shipped.
    Flagged,
    /// All matches that could concern it are known, and none does.
    Drop,
    /// It waits.
    Hold,
}

/// Reads on hold and flagged items of one tenant. Cheap to clone.
#[derive(Clone)]
pub struct Hold(Arc<Inner>);

struct Inner {
    settings: HoldSettings,
    keys: Keys,
    store: Arc<dyn StateStore>,
    state: Mutex<State>,
    /// Pages of flags read lately.
    cache: Mutex<FlagCache>,
    /// There is work for the tenant's loop to start.
    woken: Notify,
    /// There is room again.
    room: Notify,
}

/// A page of flags, by link.
type FlagsByLink = Arc<BTreeMap<Link, FlagEntry>>;
type FlagCache = VecDeque<(u64, FlagsByLink)>;

/// Oldest first.
type PageId = (Timestamp, u64);

struct State {
    horizon: Horizon,
    pages: BTreeMap<PageId, Held>,
    records: u64,
    bytes: u64,
    next_page: u64,
    /// Pages that may hold a read of an item flagged since.
    suspects: BTreeSet<PageId>,
    /// Prefixes of links flagged since the pages were last looked through.
    fresh: BTreeSet<u32>,
    /// Over the bound, and not far enough below it again.
    shedding: bool,
    /// By link, the page that says more.
    flags: BTreeMap<Link, u64>,
    flag_pages: BTreeMap<u64, FlagMeta>,
    next_flag_page: u64,
    said_full: bool,
    /// Whether reads shipped for want of room were spoken of, since there was room last.
    said_shed: bool,
    /// A loop gives it turns; a back-fill in a process of its own does not.
    tended: bool,
    /// Pages of flags may have to be tidied.
    untidy: bool,
}

struct Held {
    head: HeldHead,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct FlagMeta {
    /// Links for which this is the page that says more.
    live: usize,
    newest: Timestamp,
}

/// Something to be remembered, ready for a commit.
#[derive(Default)]
#[must_use = "commit the steps, then call `committed`"]
pub struct Staged {
    /// For [`Change::held`].
    pub ops: Vec<Op>,
    page: Option<(PageId, Held)>,
    flags: Option<(u64, Timestamp, Vec<Link>)>,
}

impl Staged {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

enum Work {
    Nothing,
    /// Pages that may hold flagged reads: those are shipped, the others stay.
    Look(Vec<PageId>),
    /// Pages whose reads are all shipped.
    Ship(Vec<PageId>),
    /// Pages that may go.
    Drop(Vec<PageId>),
    /// Pages of flags that may go.
    Forget(Vec<u64>),
    /// Pages of flags to be made one.
    Fold(Vec<u64>),
}

impl Hold {
    /// Reads what an earlier run left.
    ///
    /// # Errors
    /// When the store cannot be read, or holds something that is no page.
    pub async fn load(store: Arc<dyn StateStore>, settings: HoldSettings) -> Result<Hold, StateError> {
        let keys = Keys::of(&settings.tenant);
        let mut state = State {
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
        for (key, _) in store.list(&keys.flags()).await? {
            let Some((bytes, _)) = store.load(&key).await? else { continue };
            let number = number_of(&key)?;
            let page = FlagPage::decode(&key, &bytes)?;
            let newest = page.newest();
            state.add_flags(number, newest, page.flags.iter().map(|entry| entry.link));
            state.next_flag_page = number + 1;
        }
        state.fresh.clear();
        for (key, _) in store.list(&keys.held()).await? {
            let Some((bytes, _)) = store.load(&key).await? else { continue };
            let number = number_of(&key)?;
            let head = HeldHead::decode(&key, &bytes)?;
            // A match may have been committed and the reads it concerns not yet delivered when the last run ended.
            state.add_page((head.created, number), Held { head, bytes: bytes.len() as u64 + PAGE_COST_BYTES });
            state.next_page = number + 1;
        }
        Ok(Hold(Arc::new(Inner {
            settings,
            keys,
            store,
            state: Mutex::new(state),
            cache: Mutex::default(),
            woken: Notify::new(),
            room: Notify::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether routine events are dropped.
    pub fn is_dropping(&self) -> bool {
        self.0.settings.dropping
    }

    /// Takes note of how far matches are known. Whatever was committed before this call was made counts as known.
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

    /// What becomes of a read made available at `created` that names these.
    pub fn judge(&self, links: &[Link], created: Timestamp) -> Judgement {
        let state = self.lock();
        // A read that names nothing can never be joined to a match.
        if links.iter().any(|link| state.flags.contains_key(link)) {
            Judgement::Flagged
        } else if links.is_empty() || state.horizon == Horizon::Blind || state.is_past(created, self.0.settings.hold) {
            Judgement::Drop
        } else {
            Judgement::Hold
        }
    }

    /// What is known of these, all matches taken together; `None` when none of them is flagged.
    ///
    /// # Errors
    /// When a page had to be read from the store and could not be.
    pub async fn flag_of(&self, links: &[Link]) -> Result<Option<Flag>, StateError> {
        let mut known: Option<Flag> = None;
        for link in links {
            let Some(number) = self.lock().flags.get(link).copied() else { continue };
            // A page that has just gone leaves an item that was flagged a moment ago.
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
    /// When what is known of an item had to be read from the store and could not be; nothing is taken then.
    pub async fn stage(
        &self,
        blob: &BlobRef,
        records: &mut Vec<HeldRecord>,
        matches: &mut Vec<Match>,
    ) -> Result<Staged, StateError> {
        let mut staged = Staged::default();
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
            let held = Held { head: page.head(), bytes: value.len() as u64 + PAGE_COST_BYTES };
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

    /// What was staged is durable.
    pub fn committed(&self, staged: Staged) {
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
        let some = !state.fresh.is_empty() || !matches!(self.next(&state, now), Work::Nothing);
        state.untidy &= some;
        some
    }

    /// Releases, drops and tidies until there is nothing more to do.
    ///
    /// # Errors
    /// When state cannot be read or written; what was not done yet is found again by the next turn.
    pub async fn turn(&self, context: &FetchContext, now: Option<Timestamp>) -> Result<(), StateError> {
        while !context.stop.is_cancelled() {
            let work = {
                let mut state = self.lock();
                state.look_for_fresh();
                state.shedding = state.bytes > self.0.settings.bytes_max
                    || (state.shedding && state.bytes > self.0.settings.bytes_max / 10 * SHED_TO_TENTHS);
                state.said_shed &= state.shedding;
                self.next(&state, now)
            };
            match work {
                Work::Nothing => return Ok(()),
                Work::Look(pages) => self.release(context, pages, false).await?,
                Work::Ship(pages) => self.release(context, pages, true).await?,
                Work::Drop(pages) => self.drop_pages(context, pages).await?,
                Work::Forget(pages) => self.forget_flags(context, pages).await?,
                Work::Fold(pages) => self.fold_flags(context, &pages).await?,
            }
        }
        Ok(())
    }

    fn next(&self, state: &State, now: Option<Timestamp>) -> Work {
        let settings = &self.0.settings;
        let oldest = |n: usize| state.pages.keys().take(n).copied().collect::<Vec<_>>();
        if !state.suspects.is_empty() {
            return Work::Look(state.suspects.iter().take(PAGES_PER_RELEASE).copied().collect());
        }
        let Some(((created, _), _)) = state.pages.first_key_value() else { return self.next_of_flags(state, now) };
        // Nothing is dropped any more, or nothing tells any more what may be: what waited is not lost for it.
        if !settings.dropping || state.horizon == Horizon::Blind {
            return Work::Ship(oldest(PAGES_PER_RELEASE));
        }
        if state.is_before(*created) {
            let before = oldest(PAGES_PER_RELEASE).into_iter().take_while(|(created, _)| state.is_before(*created));
            return Work::Ship(before.collect());
        }
        if state.is_past(*created, settings.hold) {
            let past =
                oldest(PAGES_PER_DROP).into_iter().take_while(|(created, _)| state.is_past(*created, settings.hold));
            return Work::Drop(past.collect());
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
            return Work::Ship(pages);
        }
        self.next_of_flags(state, now)
    }

    fn next_of_flags(&self, state: &State, now: Option<Timestamp>) -> Work {
        if !state.untidy {
            return Work::Nothing;
        }
        let settings = &self.0.settings;
        let aged = |meta: &FlagMeta| now.is_some_and(|now| now.duration_since(meta.newest) > settings.flag_age);
        let mut forget: Vec<u64> =
            state.flag_pages.iter().filter(|(_, meta)| meta.live == 0 || aged(meta)).map(|(n, _)| *n).collect();
        if forget.is_empty() && state.flags.len() as u64 > settings.flags_max {
            forget.extend(state.flag_pages.keys().next());
        }
        if !forget.is_empty() {
            return Work::Forget(forget);
        }
        let small = state.flag_pages.iter().filter(|(_, meta)| meta.live < FLAGS_SMALL).map(|(n, _)| *n);
        let small: Vec<u64> = small.take(FOLD_PAGES).collect();
        if small.len() == FOLD_PAGES { Work::Fold(small) } else { Work::Nothing }
    }

    /// Ships the flagged reads of these pages, or all of them, and then takes what was shipped off the pages.
    async fn release(&self, context: &FetchContext, pages: Vec<PageId>, all: bool) -> Result<(), StateError> {
        let mut by_type: BTreeMap<ContentType, Vec<PageId>> = BTreeMap::new();
        {
            let mut state = self.lock();
            for id in pages {
                match state.pages.get(&id) {
                    Some(held) => by_type.entry(held.head.content_type).or_default().push(id),
                    None => drop(state.suspects.remove(&id)),
                }
            }
        }
        for (content_type, pages) in by_type {
            let mut release = Release::default();
            for id in pages {
                self.take_from(context, id, all, &mut release).await?;
                if release.builder.bytes() >= BATCH_BYTES {
                    self.deliver(context, content_type, std::mem::take(&mut release)).await?;
                }
                if context.stop.is_cancelled() {
                    break;
                }
            }
            self.deliver(context, content_type, release).await?;
        }
        Ok(())
    }

    /// Renders what is to be shipped of one page.
    async fn take_from(
        &self,
        context: &FetchContext,
        id: PageId,
        all: bool,
        release: &mut Release,
    ) -> Result<(), StateError> {
        let key = self.0.keys.held_page(id.1);
        let Some((bytes, _)) = self.0.store.load(&key).await? else {
            return Err(StateError::Corrupt { key, why: "the page is missing".into() });
        };
        let page = HeldPage::decode(&key, &bytes)?;
        let mut kept = Vec::new();
        let blob = BlobContext {
            tenant: &self.0.settings.tenant,
            content_type: page.content_type,
            content_id: &page.content_id,
            content_created: page.created,
        };
        for record in page.records {
            let Ok(event) = Event::parse(&record.raw) else {
                // It was one when it was put on hold. It is not kept, or each look at its page would end here again.
                release.push_bad(&record.raw, &blob, context.clock.now(), &context.normaliser);
                continue;
            };
            let flag = self.flag_of(&links_of_read(&event)).await?;
            let note = match &flag {
                Some(flag) => DlpNote::Flagged(flag),
                None if all => DlpNote::Undetermined,
                None => {
                    kept.push(record);
                    continue;
                }
            };
            match note {
                DlpNote::Flagged(_) => release.flagged += 1,
                DlpNote::Undetermined => release.undetermined += 1,
            }
            release.builder.push_with(|out| Some(context.normaliser.render_noted(&event, &blob, note, out)));
        }
        release.pages.push((id, HeldPage { records: kept, ..page }));
        Ok(())
    }

    async fn deliver(
        &self,
        context: &FetchContext,
        content_type: ContentType,
        mut release: Release,
    ) -> Result<(), StateError> {
        let tenant = &self.0.settings.tenant;
        let mut change = Change::default();
        let mut after = Vec::new();
        let _permit = context.budget.take(release.builder.bytes()).await;
        if !release.builder.is_empty() {
            let batch = release.builder.finish(context.source.clone(), tenant.clone(), content_type);
            match context.courier.deliver(batch, &context.stop).await {
                Ok(aside) => change.aside = aside,
                // The reads stay on hold, and the next start finds them there.
                Err(Stopped) => return Ok(()),
            }
        }
        for (id, page) in release.pages {
            let key = self.0.keys.held_page(id.1);
            let before = self.lock().pages.get(&id).map_or(0, |held| held.head.records());
            if page.records.is_empty() {
                change.unheld.push(Op::Delete { key, expected: Expected::Any });
                after.push((id, None));
            } else if (page.records.len() as u64) < before {
                let value = page.encode();
                let held = Held { head: page.head(), bytes: value.len() as u64 + PAGE_COST_BYTES };
                change.unheld.push(put(key, value));
                after.push((id, Some(held)));
            } else {
                // None of its reads is of a flagged item: 32 bits happened to be the same.
                self.lock().suspects.remove(&id);
            }
        }
        if !change.unheld.is_empty() {
            context.ledger.commit(change).await?;
        }
        let mut state = self.lock();
        for (id, held) in after {
            state.remove_page(id);
            if let Some(held) = held {
                state.add_page(id, held);
            }
            state.suspects.remove(&id);
        }
        let say = release.undetermined > 0 && !std::mem::replace(&mut state.said_shed, release.undetermined > 0);
        drop(state);
        self.0.room.notify_waiters();
        for (reason, n) in [("flagged", release.flagged), ("undetermined", release.undetermined)] {
            if n > 0 {
                ::metrics::counter!(metrics::RELEASED_EVENTS_TOTAL, "tenant" => tenant.to_string(), "content_type" => content_type.as_str(), "reason" => reason).increment(n);
            }
        }
        if release.bad > 0 {
            ::metrics::counter!(metrics::BAD_RECORDS_TOTAL, "tenant" => tenant.to_string(), "content_type" => content_type.as_str()).increment(release.bad);
            tracing::warn!(
                %tenant, %content_type,
                "bad-blob: a routine read on hold can be read as an event no more; it was shipped as m365_audit.bad_blob records"
            );
        }
        if say {
            tracing::warn!(
                %tenant, hold_bytes_max = self.0.settings.bytes_max,
                "hold-full: routine reads are shipped as `dlp.undetermined` before it can be known whether they are flagged"
            );
        }
        Ok(())
    }

    async fn drop_pages(&self, context: &FetchContext, pages: Vec<PageId>) -> Result<(), StateError> {
        let key = |id: &PageId| self.0.keys.held_page(id.1);
        let unheld = pages.iter().map(|id| Op::Delete { key: key(id), expected: Expected::Any }).collect();
        context.ledger.commit(Change { unheld, ..Change::default() }).await?;
        let mut counts: BTreeMap<(ContentType, Arc<str>), u64> = BTreeMap::new();
        let mut state = self.lock();
        for id in pages {
            let Some(held) = state.remove_page(id) else { continue };
            for (rule, n) in held.head.rules {
                *counts.entry((held.head.content_type, rule)).or_default() += u64::from(n);
            }
        }
        drop(state);
        self.0.room.notify_waiters();
        for ((content_type, rule), n) in counts {
            ::metrics::counter!(metrics::DROPPED_EVENTS_TOTAL, "tenant" => self.0.settings.tenant.to_string(), "content_type" => content_type.as_str(), "reason" => rule.to_string()).increment(n);
        }
        Ok(())
    }

    // ---- flags ----

    /// The flags that matches add to what is known.
    async fn new_flags(&self, matches: &[Match], at: Timestamp) -> Result<Vec<FlagEntry>, StateError> {
        let mut found: BTreeMap<Link, Flag> = BTreeMap::new();
        for Match { links, flag } in matches {
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
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forget_flags(&self, context: &FetchContext, pages: Vec<u64>) -> Result<(), StateError> {
        let key = |number: &u64| self.0.keys.flag_page(*number);
        let unheld = pages.iter().map(|number| Op::Delete { key: key(number), expected: Expected::Any }).collect();
        context.ledger.commit(Change { unheld, ..Change::default() }).await?;
        let mut state = self.lock();
        let full = state.flags.len() as u64 > self.0.settings.flags_max && !state.said_full;
        state.said_full |= full;
        for number in &pages {
            state.flag_pages.remove(number);
        }
        state.flags.retain(|_, number| !pages.contains(number));
        drop(state);
        if full {
            tracing::warn!(
                tenant = %self.0.settings.tenant, flags_max = self.0.settings.flags_max,
                "dlp-flags-full: more items are flagged by data loss prevention than `dlp_flags_max`; those flagged longest ago are forgotten, reads of them count as routine"
            );
        }
        Ok(())
    }

    /// Makes one page of many small ones.
    async fn fold_flags(&self, context: &FetchContext, pages: &[u64]) -> Result<(), StateError> {
        let mut live: BTreeMap<Link, FlagEntry> = BTreeMap::new();
        for number in pages {
            let Some(page) = self.flag_page(*number).await? else { continue };
            let state = self.lock();
            let current = page.values().filter(|entry| state.flags.get(&entry.link) == Some(number));
            live.extend(current.map(|entry| (entry.link, entry.clone())));
        }
        let mut change = Change::default();
        let mut folded = Vec::new();
        let entries: Vec<FlagEntry> = live.into_values().collect();
        for flags in entries.chunks(FLAGS_PER_PAGE) {
            let page = FlagPage { flags: flags.to_vec() };
            let number = self.lock().take_flag_page_number();
            change.held.push(put(self.0.keys.flag_page(number), page.encode()));
            folded.push((number, page));
        }
        let key = |number: &u64| self.0.keys.flag_page(*number);
        change.unheld.extend(pages.iter().map(|number| Op::Delete { key: key(number), expected: Expected::Any }));
        context.ledger.commit(change).await?;
        let mut state = self.lock();
        for (number, page) in folded {
            // One flagged again meanwhile stays with the page that says so.
            let links = page.flags.iter().map(|entry| entry.link);
            let moved: Vec<Link> =
                links.filter(|link| state.flags.get(link).is_some_and(|known| pages.contains(known))).collect();
            let fresh = std::mem::take(&mut state.fresh);
            state.add_flags(number, page.newest(), moved.into_iter());
            state.fresh = fresh;
        }
        for number in pages {
            state.flag_pages.remove(number);
        }
        state.flags.retain(|_, number| !pages.contains(number));
        Ok(())
    }
}

#[derive(Default)]
struct Release {
    builder: BatchBuilder,
    /// What stays of each page.
    pages: Vec<(PageId, HeldPage)>,
    flagged: u64,
    undetermined: u64,
    /// Records of bytes that are no event.
    bad: u64,
}

impl Release {
    /// Takes bytes that are no event.
    fn push_bad(&mut self, bytes: &[u8], blob: &BlobContext<'_>, now: Timestamp, normaliser: &Normaliser) {
        let mut scraps = Scraps::new(normaliser.censor(), usize::MAX, usize::MAX);
        let mut offset = 0;
        for piece in bytes.chunks(BAD_PIECE_BYTES) {
            self.bad += 1;
            let reason = "a routine read that was on hold can be read as an event no more";
            let mut bad =
                BadBytes { total: Some(bytes.len() as u64), ..BadBytes::of(blob, now, offset, piece, reason) };
            let fate = scraps.judge(piece, offset);
            if let Fate::Withheld(sha256) = &fate {
                let bytes = piece.len() as u64;
                bad.body = BadBody::Withheld { bytes, sha256, why: Withheld::Masked, stretches: None };
            }
            self.builder.push_with(|out| Some(normaliser.render_bad(&bad, out)));
            offset += piece.len() as u64;
        }
    }
}

impl State {
    /// Whether all matches that could concern a read made available then are known.
    fn is_past(&self, created: Timestamp, hold: SignedDuration) -> bool {
        match self.horizon {
            Horizon::Blind => false,
            Horizon::Known { from, until } => {
                from <= created && created.saturating_add(hold).is_ok_and(|end| end <= until)
            }
        }
    }

    /// Whether a read is older than all that is listed of matches, as one of a back-fill may be: it never will be known
    /// whether it is flagged.
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

    /// Makes a page visible; what is flagged already is looked for in it.
    fn add_page(&mut self, id: PageId, held: Held) {
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

    fn remove_page(&mut self, id: PageId) -> Option<Held> {
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

    /// Finds the pages that may hold a read of what was flagged lately.
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

#[cfg(test)]
mod tests {
    //! Random blobs of reads and matches, settled in any order, while turns run, stand still in the middle of a delivery,
    //! and die there or in a commit. What may become of a read is known from the blobs alone.

    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{LazyLock, Mutex};
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use proptest::prelude::*;
    use tokio::task::JoinHandle;

    use super::super::budget::{Budget, Pool};
    use super::super::deliver::Courier;
    use super::super::health::Board;
    use super::*;
    use crate::api::{ApiClient, ApiSettings};
    use crate::auth::{Credential, TokenEndpoint};
    use crate::checkpoint::ledger::{Ledger, LedgerSettings, OnDurable};
    use crate::clock::{Clock, TestClock};
    use crate::host::{Batch, Delivery, DeliveryTicket, Health, Host, Revision, TicketAnswer};
    use crate::hosts::embedded::memory::MemoryStore;
    use crate::normalise::{Normaliser, Settings};

    const HOLD_HOURS: u8 = 6;
    /// Ids of items that only fill pages of flags begin here.
    const FILLERS: u32 = 1000;
    const DEAD: &str = "the process died";

    fn tenant() -> TenantId {
        "00000000-0000-4000-8000-000000000000".parse().unwrap()
    }

    fn hour(hours: u8) -> Timestamp {
        Timestamp::from_second(1_777_600_000 + i64::from(hours) * 3600).unwrap()
    }

    // ---- what happens ----

    /// Item, and by what it is named: 1 by its id, 2 by its address, 3 by both.
    type Named = (u32, u8);

    #[derive(Debug, Clone)]
    struct Read {
        named: Option<Named>,
        /// An item whose link begins with the same 32 bits.
        alike: Option<u32>,
    }

    #[derive(Debug, Clone)]
    struct Blob {
        created: u8,
        reads: Vec<Read>,
        matches: Vec<Named>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Death {
        /// In the commit of this number from now; whether it was made.
        InCommit(usize, bool),
        /// While the host has a batch and has not said so; whether it got as far as keeping it.
        InDelivery(bool),
    }

    #[derive(Debug, Clone)]
    enum Step {
        Fetch(Blob),
        /// Of the blobs fetched and not staged, one; likewise below.
        Stage(usize),
        Commit(usize, Option<bool>),
        Horizon(u8),
        Turn(Option<Death>),
        /// A turn until its first delivery, or so far; it goes on beside what follows, and ends with the next `Turn`.
        HalfATurn(Option<u8>),
        /// Matches of so many other items, each of a blob of its own.
        Fillers(u8),
        Death,
    }

    fn named() -> impl Strategy<Value = Named> {
        (0..6u32, 1..=3u8)
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let read = || {
            let alike = prop::option::weighted(0.2, 0..6u32);
            (prop::option::weighted(0.9, named()), alike).prop_map(|(named, alike)| Read { named, alike })
        };
        let reads = (0..40u8, prop::collection::vec(read(), 1..4)).prop_map(|(created, reads)| Blob {
            created,
            reads,
            matches: vec![],
        });
        let matches = (0..40u8, prop::collection::vec(read(), 0..2), prop::collection::vec(named(), 1..3))
            .prop_map(|(created, reads, matches)| Blob { created, reads, matches });
        let death = prop_oneof![
            (0..3usize, any::<bool>()).prop_map(|(n, made)| Death::InCommit(n, made)),
            any::<bool>().prop_map(Death::InDelivery),
        ];
        let step = prop_oneof![
            6 => reads.prop_map(Step::Fetch),
            3 => matches.prop_map(Step::Fetch),
            9 => (0..8usize).prop_map(Step::Stage),
            9 => (0..8usize, prop::option::weighted(0.1, any::<bool>())).prop_map(|(n, death)| Step::Commit(n, death)),
            4 => (0..60u8).prop_map(Step::Horizon),
            6 => prop::option::weighted(0.2, death).prop_map(Step::Turn),
            3 => prop::option::of(0..6u8).prop_map(Step::HalfATurn),
            1 => (1..80u8).prop_map(Step::Fillers),
            1 => Just(Step::Death),
        ];
        prop::collection::vec(step, 1..60)
    }

    // ---- the world around the hold ----

    /// A store that can be told to die in a commit.
    #[derive(Default)]
    struct Store {
        inner: MemoryStore,
        commits: AtomicUsize,
        death: Mutex<Option<(usize, bool)>>,
    }

    #[async_trait]
    impl StateStore for Store {
        async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
            self.inner.load(key).await
        }

        async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
            self.inner.list(prefix).await
        }

        async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
            let number = self.commits.fetch_add(1, Ordering::Relaxed);
            let death = *self.death.lock().unwrap();
            let Some((_, made)) = death.filter(|(at, _)| *at <= number) else { return self.inner.commit(ops).await };
            if made {
                self.inner.commit(ops).await?;
            }
            Err(StateError::Conflict { key: DEAD.into() })
        }
    }

    /// Notes what it is given; answers at once, or when it is told to.
    struct Agent {
        store: Arc<Store>,
        given: Mutex<Vec<String>>,
        waits: AtomicBool,
        keeps: AtomicBool,
        waiting: Mutex<Vec<TicketAnswer>>,
    }

    #[async_trait]
    impl Host for Agent {
        async fn deliver(&self, batch: Batch) -> DeliveryTicket {
            let lines = batch.records().map(|record| String::from_utf8(record.json.to_vec()).unwrap());
            if self.keeps.load(Ordering::Relaxed) {
                self.given.lock().unwrap().extend(lines);
            }
            if !self.waits.load(Ordering::Relaxed) {
                return DeliveryTicket::resolved(Delivery::Delivered);
            }
            let (answer, ticket) = DeliveryTicket::new();
            self.waiting.lock().unwrap().push(answer);
            ticket
        }

        fn state(&self) -> Arc<dyn StateStore> {
            self.store.clone()
        }

        fn health(&self, _source: &str, _health: Health) {}
    }

    /// Never asked for anything.
    static API: LazyLock<ApiClient> = LazyLock::new(|| {
        let nowhere: url::Url = "http://127.0.0.1:9/".parse().unwrap();
        let settings = ApiSettings {
            tenant: tenant(),
            api_url: nowhere.clone(),
            cloud: crate::config::Cloud::Enterprise,
            authority_url: nowhere,
            audience: String::new(),
            token_endpoint: TokenEndpoint::V2,
            client_id: String::new(),
            credential: Credential::SecretFile("/dev/null".into()),
            assertion_audience: None,
            secret_expires: None,
            publisher_identifier: String::new(),
            max_requests_per_minute: 0,
            connect_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_secs(1),
            ca_pem: None,
            proxy_url: None,
            no_proxy: None,
            proxy_client_pem: None,
        };
        ApiClient::new(settings, Arc::new(TestClock::at(hour(0)))).unwrap()
    });

    fn raw(id: usize, named: Option<Named>) -> String {
        let mut raw = format!(
            "{{\"Id\":\"r{id}\",\"RecordType\":6,\"CreationTime\":\"2026-05-01T00:00:00\",\"Operation\":\"FileAccessed\",\"Workload\":\"SharePoint\""
        );
        if let Some((item, by)) = named {
            if by & 1 != 0 {
                raw.push_str(&format!(",\"ListItemUniqueId\":\"{:08x}-1111-4111-8111-111111111111\"", item + 1));
            }
            if by & 2 != 0 {
                raw.push_str(&format!(",\"ObjectId\":\"https://contoso.example/{item}\""));
            }
        }
        raw.push('}');
        raw
    }

    fn links(named: Option<Named>) -> Vec<Link> {
        links_of_read(&Event::parse(raw(0, named).as_bytes()).unwrap())
    }

    // ---- the model ----

    /// A blob on its way, with what was made of its reads.
    struct Under {
        blob: Blob,
        first_id: usize,
        held: Vec<HeldRecord>,
        held_ids: Vec<usize>,
        dropped: Vec<usize>,
        flagged: Vec<usize>,
        staged: Option<Staged>,
    }

    struct World {
        store: Arc<Store>,
        agent: Arc<Agent>,
        settings: HoldSettings,
        from: u8,
        until: u8,
        context: FetchContext,
        writer: JoinHandle<Result<(), StateError>>,
        turn: Option<JoinHandle<Result<(), StateError>>>,
        under: Vec<Under>,
        /// Every read there is, by id: when it was made available and what it names.
        reads: Vec<(u8, Option<Named>)>,
        /// Matches that are durable, with the hour of each.
        matches: Vec<(u8, Named)>,
        /// Reads whose hold is durable.
        held: BTreeSet<usize>,
        /// Reads that were dropped, by whatever.
        dropped: BTreeSet<usize>,
        /// Reads that the host was given, and whether as flagged.
        given: BTreeMap<usize, bool>,
        /// Those of them that it was given shortly before a death, and may be given again.
        again: BTreeSet<usize>,
        /// Those that it was given before the last turn, and the matches known then.
        before: BTreeSet<usize>,
        known_before: usize,
        seen: usize,
        fillers: u32,
    }

    impl World {
        async fn new(from: u8, bytes_max: u64) -> Self {
            let store = Arc::new(Store::default());
            let agent = Arc::new(Agent {
                store: store.clone(),
                given: Mutex::default(),
                waits: AtomicBool::new(false),
                keeps: AtomicBool::new(true),
                waiting: Mutex::default(),
            });
            let settings = HoldSettings {
                tenant: tenant(),
                dropping: true,
                hold: SignedDuration::from_hours(HOLD_HOURS.into()),
                bytes_max,
                flags_max: 1_000_000,
                flag_age: SignedDuration::from_hours(24 * 30),
            };
            let (context, writer) = open(&agent, &settings).await;
            let mut world = Self {
                store,
                agent,
                settings,
                from,
                until: from,
                context,
                writer,
                turn: None,
                under: vec![],
                reads: vec![],
                matches: vec![],
                held: BTreeSet::new(),
                dropped: BTreeSet::new(),
                given: BTreeMap::new(),
                again: BTreeSet::new(),
                before: BTreeSet::new(),
                known_before: 0,
                seen: 0,
                fillers: 0,
            };
            world.move_horizon(0);
            world
        }

        fn hold(&self) -> &Hold {
            &self.context.hold
        }

        /// Whether a match of the read is among `matches` and came before the read may be dropped.
        fn is_flagged(&self, id: usize, matches: &[(u8, Named)]) -> bool {
            let (created, named) = self.reads[id];
            matches.iter().any(|(at, (item, by))| {
                *at < created + HOLD_HOURS && named.is_some_and(|(read, read_by)| read == *item && read_by & by != 0)
            })
        }

        /// What can bring matches is complete to there: at most to the first that is not durable.
        fn move_horizon(&mut self, until: u8) {
            let open = self.under.iter().filter(|under| !under.blob.matches.is_empty()).map(|under| under.blob.created);
            self.until = open.min().unwrap_or(u8::MAX).min(until).max(self.until);
            self.hold().set_horizon(Horizon::Known { from: hour(self.from), until: hour(self.until) });
        }

        fn fetch(&mut self, mut blob: Blob) {
            if !blob.matches.is_empty() {
                blob.created = blob.created.max(self.until);
            }
            let first_id = self.reads.len();
            self.reads.extend(blob.reads.iter().map(|read| (blob.created, read.named)));
            self.judge(blob, first_id);
        }

        /// As a fetch does it.
        fn judge(&mut self, blob: Blob, first_id: usize) {
            let (held, held_ids, dropped, flagged) = (vec![], vec![], vec![], vec![]);
            let mut under = Under { blob, first_id, held, held_ids, dropped, flagged, staged: None };
            for (n, read) in under.blob.reads.iter().enumerate() {
                let id = first_id + n;
                let links = links(read.named);
                match self.hold().judge(&links, hour(under.blob.created)) {
                    Judgement::Flagged => under.flagged.push(id),
                    Judgement::Drop => under.dropped.push(id),
                    Judgement::Hold => {
                        let mut prefixes: Vec<u32> = links.iter().map(|link| link.prefix()).collect();
                        let alike = read.alike.map(|item| self::links(Some((item, 3)))).unwrap_or_default();
                        prefixes.extend(alike.iter().map(|link| link.prefix()));
                        let raw = raw(id, read.named).into_bytes().into();
                        under.held.push(HeldRecord { rule: "EX-45".into(), raw, links: prefixes });
                        under.held_ids.push(id);
                    }
                }
            }
            self.under.push(under);
        }

        async fn stage(&mut self, which: usize) {
            let waiting: Vec<usize> = (0..self.under.len()).filter(|n| self.under[*n].staged.is_none()).collect();
            let Some(&at) = waiting.get(which % waiting.len().max(1)) else { return };
            let hold = self.hold().clone();
            let under = &mut self.under[at];
            let blob = BlobRef {
                content_type: if under.first_id.is_multiple_of(2) {
                    ContentType::SharePoint
                } else {
                    ContentType::General
                },
                id: format!("b{}", under.first_id).into(),
                uri: "x".into(),
                created: hour(under.blob.created),
                expires: hour(200),
            };
            let flag = |n: usize| Flag {
                policies: vec!["p".into()],
                incidents: vec![format!("{}-{n}", under.first_id)],
                severity: Severity::High,
            };
            let of = |(n, named): (usize, &Named)| Match { links: links(Some(*named)), flag: flag(n) };
            let mut matches = under.blob.matches.iter().enumerate().map(of).collect();
            under.staged = Some(hold.stage(&blob, &mut under.held, &mut matches).await.unwrap());
        }

        /// Commits what was staged of a blob; with a death, in that commit, which was made or not.
        async fn commit(&mut self, which: usize, death: Option<bool>) {
            let ready: Vec<usize> = (0..self.under.len()).filter(|n| self.under[*n].staged.is_some()).collect();
            let Some(&at) = ready.get(which % ready.len().max(1)) else { return };
            if self.turn.is_some() && death.is_some() {
                self.finish_turn().await;
            }
            let mut under = self.under.remove(at);
            for id in std::mem::take(&mut under.flagged) {
                // What a fetch delivers itself.
                assert!(self.is_named_by(id, &self.matches), "r{id} is not flagged");
                self.note(id, true);
                if death.is_some() {
                    self.again.insert(id);
                }
            }
            let staged = under.staged.take().unwrap_or_default();
            let (held, hold) = (staged.ops.clone(), self.hold().clone());
            let on_durable = OnDurable::new(move || hold.committed(staged));
            if let Some(made) = death {
                *self.store.death.lock().unwrap() = Some((0, made));
            }
            let done = self.context.ledger.commit(Change { held, on_durable, ..Change::default() }).await;
            assert_eq!(done.is_err(), death.is_some(), "{done:?}");
            if death.is_none_or(|made| made) {
                self.matches.extend(under.blob.matches.iter().map(|named| (under.blob.created, *named)));
                self.held.extend(&under.held_ids);
                self.drop_reads(&under.dropped);
            } else {
                self.under.push(under);
            }
            if death.is_some() {
                self.die().await;
            }
        }

        /// Whether one of the matches is of what the read is of, whenever it came.
        fn is_named_by(&self, id: usize, matches: &[(u8, Named)]) -> bool {
            let (_, named) = self.reads[id];
            let joins = |by: u8, item: u32| named.is_some_and(|(read, read_by)| read == item && read_by & by != 0);
            matches.iter().any(|(_, (item, by))| joins(*by, *item))
        }

        fn note(&mut self, id: usize, flagged: bool) {
            let before = self.given.insert(id, flagged);
            assert!(before.is_none() || self.again.contains(&id), "r{id} was delivered twice and nothing died");
            assert!(!self.dropped.contains(&id), "r{id} was delivered though dropped");
        }

        fn drop_reads(&mut self, ids: &[usize]) {
            for id in ids {
                let (created, named) = self.reads[*id];
                let of_none = named.is_none();
                assert!(of_none || created >= self.from, "r{id} was dropped though older than all that is listed");
                assert!(
                    of_none || created + HOLD_HOURS <= self.until,
                    "r{id} was dropped before all matches were known"
                );
                assert!(!self.is_flagged(*id, &self.matches), "r{id} was dropped though flagged");
                self.dropped.insert(*id);
            }
        }

        /// Takes note of what the host was given since.
        fn look_at_host(&mut self) {
            let given: Vec<String> = self.agent.given.lock().unwrap()[self.seen..].to_vec();
            self.seen += given.len();
            for line in given {
                let record: serde_json::Value = serde_json::from_str(&line).unwrap();
                let id = record["event_id"].as_str().unwrap()[1..].parse().unwrap();
                let flagged = record["dlp"]["flagged"] == true;
                assert!(flagged || record["dlp"]["undetermined"] == true, "{line}");
                assert!(self.held.contains(&id), "r{id} was delivered and not on hold");
                assert!(!flagged || self.is_named_by(id, &self.matches), "r{id} is not flagged: {line}");
                assert!(
                    flagged || !self.is_named_by(id, &self.matches[..self.known_before]),
                    "r{id} is flagged: {line}"
                );
                let may_be_undetermined = self.settings.bytes_max < 1 << 20 || self.reads[id].0 < self.from;
                assert!(flagged || may_be_undetermined, "r{id} was shipped as undetermined: {line}");
                self.note(id, flagged);
            }
        }

        /// Ids of the reads whose bodies are in the store, and how many bodies there are.
        async fn stored(&self) -> (BTreeSet<usize>, usize) {
            let keys = Keys::of(&tenant());
            let (mut ids, mut count) = (BTreeSet::new(), 0);
            for (key, _) in self.store.list(&keys.held()).await.unwrap() {
                let (bytes, _) = self.store.load(&key).await.unwrap().unwrap();
                for record in HeldPage::decode(&key, &bytes).unwrap().records {
                    let text: serde_json::Value = serde_json::from_slice(&record.raw).unwrap();
                    ids.insert(text["Id"].as_str().unwrap()[1..].parse().unwrap());
                    count += 1;
                }
            }
            (ids, count)
        }

        /// Every read that was put on hold is on disk, or the host has it, or it may be dropped.
        async fn check(&mut self, turned: bool) {
            self.look_at_host();
            let (stored, bodies) = self.stored().await;
            assert_eq!(bodies, stored.len(), "a read is on hold twice");
            let gone: Vec<usize> =
                self.held.iter().copied().filter(|id| !stored.contains(id) && !self.given.contains_key(id)).collect();
            let newly: Vec<usize> = gone.iter().copied().filter(|id| !self.dropped.contains(id)).collect();
            self.drop_reads(&newly);
            for id in &stored {
                assert!(self.held.contains(id) && !self.dropped.contains(id), "r{id} is on disk and dropped");
                if self.turn.is_none() {
                    assert!(!self.given.contains_key(id) || self.again.contains(id), "r{id} is on disk and delivered");
                }
                assert!(
                    !turned || !self.is_named_by(*id, &self.matches),
                    "r{id} is flagged and a turn left it on hold"
                );
            }
            if self.turn.is_none() {
                assert_eq!(self.hold().held().0, stored.len() as u64, "memory and disk disagree");
            }
        }

        /// Goes on until the turn has ended, or the host has a batch and does not answer.
        async fn go_on(&mut self) -> Option<Result<(), StateError>> {
            loop {
                let turn = self.turn.as_mut()?;
                if turn.is_finished() {
                    let done = turn.await.unwrap();
                    self.turn = None;
                    return Some(done);
                }
                if !self.agent.waiting.lock().unwrap().is_empty() {
                    return None;
                }
                tokio::task::yield_now().await;
            }
        }

        fn start_turn(&mut self) {
            let context = self.context.clone();
            self.before = self.given.keys().copied().collect();
            self.known_before = self.matches.len();
            self.turn = Some(tokio::spawn(async move { context.hold.turn(&context, Some(hour(60))).await }));
        }

        async fn finish_turn(&mut self) {
            self.agent.waits.store(false, Ordering::Relaxed);
            for answer in std::mem::take(&mut *self.agent.waiting.lock().unwrap()) {
                answer.answer(Delivery::Delivered);
            }
            if let Some(done) = self.go_on().await {
                done.unwrap();
            }
            self.look_at_host();
        }

        async fn turn(&mut self, death: Option<Death>) {
            self.finish_turn().await;
            match death {
                None => {}
                Some(Death::InCommit(n, made)) => {
                    let next = self.store.commits.load(Ordering::Relaxed);
                    *self.store.death.lock().unwrap() = Some((next + n, made));
                }
                Some(Death::InDelivery(keeps)) => {
                    self.agent.waits.store(true, Ordering::Relaxed);
                    self.agent.keeps.store(keeps, Ordering::Relaxed);
                }
            }
            self.start_turn();
            let done = self.go_on().await;
            self.look_at_host();
            match done {
                Some(Ok(())) => self.check(true).await,
                Some(Err(error)) => assert!(error.to_string().contains(DEAD), "{error}"),
                None => {}
            }
            if death.is_some() {
                self.note_again();
                self.die().await;
            }
        }

        fn note_again(&mut self) {
            self.again.extend(self.given.keys().filter(|id| !self.before.contains(id)));
        }

        /// The process ends here and starts again.
        async fn die(&mut self) {
            if let Some(turn) = self.turn.take() {
                turn.abort();
                let _ = turn.await;
                self.look_at_host();
                self.note_again();
            }
            self.agent.waits.store(false, Ordering::Relaxed);
            self.agent.keeps.store(true, Ordering::Relaxed);
            self.agent.waiting.lock().unwrap().clear();
            self.writer.abort();
            *self.store.death.lock().unwrap() = None;
            let (context, writer) = open(&self.agent, &self.settings).await;
            (self.context, self.writer) = (context, writer);
            self.move_horizon(0);
            for under in std::mem::take(&mut self.under) {
                self.judge(under.blob, under.first_id);
            }
            self.check(false).await;
        }

        async fn settle_all(&mut self) {
            while !self.under.is_empty() {
                self.stage(0).await;
                self.commit(0, None).await;
            }
        }

        async fn step(&mut self, step: Step) {
            match step {
                Step::Fetch(blob) => self.fetch(blob),
                Step::Stage(which) => self.stage(which).await,
                Step::Commit(which, death) => self.commit(which, death).await,
                Step::Horizon(until) => self.move_horizon(until),
                Step::Turn(death) => self.turn(death).await,
                Step::HalfATurn(so_far) => {
                    self.finish_turn().await;
                    self.agent.waits.store(true, Ordering::Relaxed);
                    self.start_turn();
                    match so_far {
                        Some(times) => {
                            for _ in 0..times {
                                tokio::task::yield_now().await;
                            }
                        }
                        None => {
                            if let Some(done) = self.go_on().await {
                                done.unwrap();
                            }
                        }
                    }
                }
                Step::Fillers(count) => {
                    for _ in 0..count {
                        self.fillers += 1;
                        let of = (FILLERS + self.fillers, 1);
                        self.fetch(Blob { created: 0, reads: vec![], matches: vec![of] });
                        let last = self.under.iter().filter(|under| under.staged.is_none()).count() - 1;
                        self.stage(last).await;
                        let last = self.under.iter().filter(|under| under.staged.is_some()).count() - 1;
                        self.commit(last, None).await;
                    }
                }
                Step::Death => self.die().await,
            }
            self.check(false).await;
        }
    }

    async fn open(agent: &Arc<Agent>, settings: &HoldSettings) -> (FetchContext, JoinHandle<Result<(), StateError>>) {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::at(hour(60)));
        let host: Arc<dyn Host> = agent.clone();
        let ledger = LedgerSettings {
            tenant: tenant(),
            content_types: vec![ContentType::SharePoint, ContentType::General],
            event_keys_max: 1000,
        };
        let opened = Ledger::open(host.state(), clock.clone(), &ledger, Box::new(|_| {})).await.unwrap();
        let board = Board::new("s".into(), tenant(), host.clone(), clock.clone());
        let context = FetchContext {
            source: "s".into(),
            tenant: tenant(),
            api: API.clone(),
            normaliser: Arc::new(Normaliser::new(Settings::default())),
            events: opened.events,
            ledger: opened.handle,
            store: host.state(),
            courier: Courier::new(host.clone(), clock.clone(), board),
            budget: Budget::new(1 << 20, &Pool::default()),
            buffers: crate::host::Buffers::default(),
            hold: Hold::load(host.state(), settings.clone()).await.unwrap(),
            clock,
            stop: CancellationToken::new(),
            backfill: None,
        };
        (context, tokio::spawn(opened.ledger.run()))
    }

    proptest! {
        #[test]
        fn a_flagged_read_is_never_dropped_and_no_other_before_all_matches_are_known(
            steps in steps(), from in 0..10u8, little_room in prop::bool::weighted(0.2), blind in any::<bool>()
        ) {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let mut world = World::new(from, if little_room { 3 * PAGE_COST_BYTES } else { 64 << 20 }).await;
                for step in steps {
                    world.step(step).await;
                }
                world.finish_turn().await;
                world.settle_all().await;
                if blind {
                    // Nothing brings matches any more: whatever still waits is shipped.
                    world.settings.bytes_max = 0;
                    let (waiting, _) = world.stored().await;
                    world.hold().set_horizon(Horizon::Blind);
                    world.turn(None).await;
                    prop_assert!(waiting.iter().all(|id| world.given.contains_key(id)));
                } else {
                    world.move_horizon(100);
                    world.turn(None).await;
                }
                prop_assert_eq!(world.hold().held(), (0, 0));
                prop_assert!(!world.hold().has_work(Some(hour(60))));
                let all: BTreeSet<usize> = (0..world.reads.len()).collect();
                let ended = world.given.keys().chain(&world.dropped).copied().collect();
                prop_assert_eq!(&all, &ended, "reads are nowhere");
                for id in all {
                    prop_assert!(!world.is_flagged(id, &world.matches) || world.given.contains_key(&id));
                }
                Ok::<(), TestCaseError>(())
            })?;
        }
    }
}
