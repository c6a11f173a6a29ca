//! What the loop of a tenant decides: which blob is fetched next, where the position is, when a gap is declared, what
//! the hold does, when a single pass is over.
//!
//! Synchronous: it awaits nothing, spawns nothing and needs no runtime. [`Decisions::apply`] takes what happened and
//! ends by restoring what must always hold: as many downloads run as are allowed, changed positions are written when
//! due, the hold knows how far matches are known and gets its turn when it has work, and in a single pass the next
//! content type begins when those before it are done. It returns the work for that as an [`LoopAction`]; the caller reports
//! its outcome as a [`ActionResult`].

mod ready;

use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

use self::ready::Ready;
use super::budget::Budget;
use super::context::NotNoticed;
use super::downloads::{Download, Downloads};
use super::error::SourceError;
use super::gap::{Gap, GapReason, remembered};
use super::health::{Component, HealthReporter, Level};
use super::hold::{self, Hold};
use super::job::{FetchOutcome, Job, Patience};
use super::listing::ListerReport;
use super::pauses::{self, ONCE_ATTEMPTS_MAX};
use super::reading::TenantTurn;
use super::report::{Left, LeftKind, Report};
use super::server_time::ServerTime;
use super::stream::{Stream, Unlistable, Unwritten};
use super::welcome::Welcome;
use crate::api::{Action as Advice, ApiError};
use crate::checkpoint::claims::EventIndex;
use crate::checkpoint::format::Position;
use crate::checkpoint::key::Key;
use crate::checkpoint::key_set::Probe;
use crate::checkpoint::server_clock::JUMP;
use crate::clock::Clock;
use crate::host::StateError;
use crate::metrics;
use crate::model::{Actionable, BlobRef, ContentType, TenantId, Timestamp, Window, counted};
use crate::plan;

/// Blobs downloaded and not settled yet, with their batches under way.
const SETTLING_MAX: usize = 512;
/// How often gauges, alarms and gaps are updated.
const TICK: Duration = Duration::from_secs(15);
/// Gauges are updated at most this long after a blob was found or settled.
const GAUGES_EVERY: Duration = Duration::from_secs(1);
/// Positions are written at most this often while blobs settle.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// After "Content does not exist", "expired" or 404, and past its expiry, a blob is requested again no sooner than this.
const SLOW_DELAY_MIN: Duration = Duration::from_secs(60);
/// When a blob expires within this time, its body is delivered even if it is damaged.
const LAST_CHANCE: SignedDuration = SignedDuration::from_hours(1);
/// An unsettled blob this close to its expiry raises an alarm.
const EXPIRY_ALARM: SignedDuration = SignedDuration::from_hours(24);
/// With `--once`: after this many throttled fetches in a row, the rest is left.
const ONCE_THROTTLED_MAX: u32 = 500;
/// With `--once`: a blob throttled this often is left.
const ONCE_BLOB_THROTTLED_MAX: u32 = 20;
/// Expired keys are removed this often.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// Further apart than this, the two clocks do not agree well enough to evict at once.
const SKEW_TO_EXPIRE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Failed fetches are counted in a metric, and logged at most once in this time.
const FAILURE_LINE_EVERY: Duration = Duration::from_secs(10);

/// The inputs of a tenant's decisions, beside the events.
pub(super) struct DecisionInputs {
    /// The tenant.
    pub tenant: TenantId,
    /// One pass, then end.
    pub once: bool,
    /// Time between polls.
    pub poll_interval: Duration,
    /// Whether routine reads are dropped.
    pub dropping: bool,
    /// How long past a read all matches must be known.
    pub hold_for: SignedDuration,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Microsoft's time.
    pub server: ServerTime,
    /// Receives health reports.
    pub reporter: HealthReporter,
    /// The index of reads on hold.
    pub hold: Hold,
    /// Bytes in flight.
    pub budget: Budget,
    /// Whether it may read.
    pub reading: TenantTurn,
}

/// The state that an earlier run left for the streams.
pub(super) struct SavedStreams {
    /// Positions, of the streams that ever ran.
    pub positions: BTreeMap<ContentType, Position>,
    /// Settled blobs, per stream.
    pub settled: BTreeMap<ContentType, EventIndex>,
}

/// An input of the decisions.
pub(super) enum LoopEvent {
    /// A lister found something.
    Found(ListerReport),
    /// An action has ended.
    Done(ActionResult),
    /// A download has ended, or the hold may have work.
    Woken,
    /// The time that [`Decisions::next_due`] returned has come. Carries the requests a minute that Microsoft grants,
    /// where known.
    Due(Option<f64>),
}

/// Work that the caller is to begin. All but the first end in one [`ActionResult`].
pub(super) enum LoopAction {
    /// List a stream; the flag is whether its subscription is known to be on.
    List(ContentType, bool),
    /// Offer again what was set aside.
    OfferAside,
    /// Fetch and settle a blob.
    Fetch(Box<Job>, Download),
    /// Report that a blob is gone.
    ReportLost(Box<Job>, Gap),
    /// Report a gap.
    Declare(Gap),
    /// Write positions, and with them the marks of blobs whose loss was reported to the host.
    Write(BTreeMap<ContentType, Position>, Vec<(ContentType, Key)>),
    /// Remove expired keys.
    Expire,
    /// A turn of the hold, at Microsoft's time.
    TendHold(Option<Timestamp>),
}

/// The outcome of an action.
pub(super) enum ActionResult {
    /// [`LoopAction::Fetch`].
    Blob(Box<Job>, FetchOutcome),
    /// [`LoopAction::ReportLost`].
    Lost(ContentType, Key, Result<(), NotNoticed>),
    /// [`LoopAction::Declare`].
    Gap(Gap, Result<(), NotNoticed>),
    /// [`LoopAction::Write`].
    Written(Result<(), StateError>),
    /// [`LoopAction::Expire`], [`LoopAction::OfferAside`].
    Aside(Result<(), StateError>),
    /// [`LoopAction::TendHold`].
    Held(Result<(), StateError>),
}

/// See the module's documentation.
pub(super) struct Decisions {
    terms: DecisionInputs,
    /// Boxed, since a map allocates room for eleven at once.
    streams: BTreeMap<ContentType, Box<Stream>>,
    ready: BinaryHeap<Ready>,
    retry: BTreeMap<(Duration, u64), Job>,
    retries: u64,
    downloads: Downloads,
    /// Actions to begin, in order.
    actions: VecDeque<LoopAction>,
    /// Actions that have not ended, begun or not, without listings.
    under_way: usize,
    /// Content types that are not listed yet, and whether their subscription is on.
    waiting: Vec<(ContentType, bool)>,
    writing_positions: bool,
    /// Lost blobs whose record the host has: their marks go with the next position, which remembers the gap.
    lost: Vec<(ContentType, Key)>,
    /// Lost blobs whose marks are being written.
    marking: Vec<(ContentType, Key)>,
    /// Whether a turn of the hold is running; after a failed turn, when the next may begin.
    tending: bool,
    tend_at: Duration,
    positions_at: Duration,
    tick_at: Duration,
    /// When the gauges may be updated again, and whether a value has changed.
    gauges_at: Duration,
    gauges_stale: bool,
    expire_at: Duration,
    started_at: Duration,
    throttled: u32,
    failures_unsaid: u32,
    failure_line_at: Duration,
    welcome: Welcome,
}

impl Decisions {
    /// Makes the decisions for these content types, from the position an earlier run left or else from `backfill` ago.
    pub(super) fn new(
        terms: DecisionInputs,
        content_types: &[ContentType],
        backfill: SignedDuration,
        mut remembered: SavedStreams,
    ) -> Self {
        let now = terms.clock.monotonic();
        let server_now = terms.server.for_requests();
        // A very first date cannot be checked against an earlier one. Where it contradicts this machine's, the earlier
        // of the two is taken: an origin too late would lose events, one too early costs some listings.
        let machine_now = terms.clock.now();
        let contradicts = server_now.duration_since(machine_now).abs() > JUMP;
        let first_now = if contradicts { server_now.min(machine_now) } else { server_now };
        let first = plan::first_origin(first_now, backfill);
        let listable_from = plan::earliest_listable(server_now);
        let mut streams = BTreeMap::new();
        for &content_type in content_types {
            let stored = remembered.positions.remove(&content_type);
            let Some(settled) = remembered.settled.remove(&content_type) else { continue };
            streams
                .insert(content_type, Box::new(Stream::new(stored, (first, first_now), listable_from, settled, now)));
        }
        Self {
            terms,
            streams,
            ready: BinaryHeap::new(),
            retry: BTreeMap::new(),
            retries: 0,
            downloads: Downloads::new(),
            actions: VecDeque::new(),
            under_way: 0,
            waiting: Vec::new(),
            writing_positions: false,
            lost: Vec::new(),
            marking: Vec::new(),
            tending: false,
            tend_at: now,
            positions_at: now,
            tick_at: now,
            gauges_at: now,
            gauges_stale: false,
            expire_at: now,
            started_at: now,
            throttled: 0,
            failures_unsaid: 0,
            failure_line_at: now,
            welcome: Welcome::new(now),
        }
    }

    /// Begins with the subscriptions that are on, the blobs an earlier run tracked, and whether it set something aside.
    pub(super) fn begin(&mut self, enabled: &[ContentType], tracked: Vec<BlobRef>, has_aside: bool) {
        if has_aside {
            self.start(LoopAction::OfferAside);
        }
        for blob in tracked {
            self.adopt(blob);
        }
        self.check_gaps();
        if self.terms.dropping && !self.streams.contains_key(&ContentType::Dlp) {
            self.warn_blind("it is not in `content_types`", "");
        }
        let mut types = self.types();
        types.sort_by_key(|t| self.rank(*t));
        for content_type in types {
            self.waiting.push((content_type, enabled.contains(&content_type)));
        }
        if !self.terms.once {
            for (content_type, on) in std::mem::take(&mut self.waiting) {
                self.actions.push_back(LoopAction::List(content_type, on));
            }
        }
        self.restore();
    }

    /// Takes one input and restores the invariants.
    ///
    /// # Errors
    /// When the state is no longer usable: no decision follows then.
    pub(super) fn apply(&mut self, event: LoopEvent) -> Result<(), SourceError> {
        match event {
            LoopEvent::Found(found) => self.on_found(found),
            LoopEvent::Done(done) => self.on_done(done)?,
            LoopEvent::Due(granted) => self.on_time(granted),
            LoopEvent::Woken => {}
        }
        self.restore();
        Ok(())
    }

    fn restore(&mut self) {
        if self.terms.once {
            self.start_next_listers();
            // A pass may end before the next tick.
            self.check_gaps();
            if self.is_finished() {
                return;
            }
        }
        self.start_fetches();
        self.write_positions(false);
        self.tend_hold();
    }

    /// As [`Decisions::apply`] while the source stops: begins only the actions that this call itself needs.
    ///
    /// # Errors
    /// As there.
    pub(super) fn wind_up(&mut self, done: ActionResult) -> Result<(), SourceError> {
        self.on_done(done)
    }

    /// Queues a write of the changed positions; false when none changed.
    pub(super) fn write_last_positions(&mut self) -> bool {
        let some = self.streams.values().any(|s| s.unwritten != Unwritten::Nothing);
        if some {
            self.write_positions(true);
        }
        some
    }

    /// The next action to begin.
    pub(super) fn next_action(&mut self) -> Option<LoopAction> {
        self.actions.pop_front()
    }

    fn start(&mut self, action: LoopAction) {
        self.under_way += 1;
        self.actions.push_back(action);
    }

    /// A stream, for its lister.
    pub(super) fn stream(&self, content_type: ContentType) -> Option<&Stream> {
        self.streams.get(&content_type).map(|stream| &**stream)
    }

    /// The running downloads. Cheap to clone.
    pub(super) fn downloads(&self) -> &Downloads {
        &self.downloads
    }

    /// Resolves when its turn to read has come.
    pub(super) async fn turn_came(&self) {
        self.terms.reading.woken().await;
    }

    /// When [`LoopEvent::Due`] is due, by the monotonic clock.
    pub(super) fn next_due(&self) -> Duration {
        let retry = self.retry.keys().next().map(|(due, _)| *due);
        let positions = self.positions_due().filter(|_| !self.writing_positions);
        let gauges = self.gauges_stale.then_some(self.gauges_at);
        [Some(self.tick_at), retry, positions, gauges].into_iter().flatten().min().unwrap_or(self.tick_at)
    }

    /// With `once`: everything was listed and settled, or given up.
    pub(super) fn is_finished(&self) -> bool {
        self.terms.once
            && self.waiting.is_empty()
            && self.under_way == 0
            && self.streams.values().all(|s| s.is_finished() && s.unwritten != Unwritten::Change)
            && !self.terms.hold.has_work(self.terms.server.trusted())
    }

    /// The work that was left.
    pub(super) fn report(&self) -> Report {
        let mut left: Vec<Left> = Vec::new();
        for (content_type, stream) in &self.streams {
            left.extend(stream.ended.iter().flatten().cloned());
            let given_up = stream.unsettled.given_up();
            if given_up > 0 {
                left.push(Left {
                    why: format!(
                        "{} of `{content_type}` of tenant `{}` could not be read after {ONCE_ATTEMPTS_MAX} attempts each; the next run tries again",
                        counted(given_up as u64, "blob"),
                        self.terms.tenant
                    ),
                    kind: LeftKind::Passing,
                });
            }
        }
        let (records, _) = self.terms.hold.held();
        if records > 0 && self.terms.once {
            left.push(Left {
                why: format!(
                    "{records} routine reads of tenant `{}` are on hold: the next run ships those that data loss prevention flags and drops the others, once `DLP.All` and `Audit.General` are complete {} past them",
                    self.terms.tenant, self.terms.hold_for
                ),
                kind: LeftKind::Held,
            });
        }
        Report { left }
    }

    fn types(&self) -> Vec<ContentType> {
        self.streams.keys().copied().collect()
    }

    /// With `once`: DLP alone until it is done, so that a match is known before the reads it flags. If routine reads
    /// are dropped, the types they wait for follow, so that few reads are put on hold; then all others.
    fn start_next_listers(&mut self) {
        let Some(rank) = self.waiting.first().map(|(t, _)| self.rank(*t)) else { return };
        let before_done = self.streams.iter().all(|(t, stream)| self.rank(*t) >= rank || stream.is_finished());
        if before_done {
            for (content_type, on) in std::mem::take(&mut self.waiting) {
                if self.rank(content_type) == rank {
                    self.actions.push_back(LoopAction::List(content_type, on));
                } else {
                    self.waiting.push((content_type, on));
                }
            }
        }
    }

    fn rank(&self, content_type: ContentType) -> u8 {
        match content_type {
            ContentType::Dlp => 0,
            ContentType::General if self.terms.dropping => 1,
            _ => 2,
        }
    }

    // ---- the hold ----

    /// Passes to the hold how far matches are known, and starts a turn when it has work.
    fn tend_hold(&mut self) {
        let now = self.terms.server.trusted();
        let at = self.terms.clock.monotonic();
        let hold_for = self.terms.hold_for.unsigned_abs();
        let waited: Vec<_> = hold::BRINGS_MATCHES
            .iter()
            .filter_map(|content_type| self.streams.get(content_type))
            .map(|stream| stream.waited(now, at, hold_for, self.terms.once))
            .collect();
        self.terms.hold.set_horizon(hold::horizon(&waited, now));
        if !self.tending && at >= self.tend_at && self.terms.hold.has_work(now) {
            self.tending = true;
            self.start(LoopAction::TendHold(now));
        }
    }

    fn warn_blind(&self, why: &str, when: &str) {
        tracing::warn!(
            tenant = %self.terms.tenant,
            "dlp-blind: `DLP.All` is not read ({why}): {when}routine reads are dropped without knowing whether data loss prevention flagged them (hint: grant `ActivityFeed.ReadDlp` and list `DLP.All`, or set `drop_routine = false`)"
        );
    }

    // ---- finding ----

    fn on_found(&mut self, found: ListerReport) {
        match found {
            ListerReport::Page { content_type, blobs, read } => self.on_page(content_type, blobs, read),
            ListerReport::PassDone { content_type, reach, at } => {
                // Planned with an untrusted clock, the listing may have covered other days than intended.
                let trusted = self.terms.server.trusted().is_some();
                if let Some(stream) = self.streams.get_mut(&content_type).filter(|_| trusted) {
                    stream.note_pass(reach, at);
                }
                self.guide(content_type);
            }
            ListerReport::Listed { content_type, at } => {
                let Some(stream) = self.streams.get_mut(&content_type) else { return };
                if let Some(from) = stream.position.disabled_since.filter(|_| !stream.declaring) {
                    let window = Window { start: from, end: at };
                    self.declare(content_type, window, GapReason::SubscriptionDisabled);
                    return;
                }
                // Written with the next position; a listing alone is no reason to write.
                stream.position.last_listing = stream.position.last_listing.max(Some(at));
            }
            ListerReport::Disabled { content_type } => {
                if let Some(stream) = self.streams.get_mut(&content_type)
                    && stream.position.disabled_since.is_none()
                    && stream.position.last_listing.is_some()
                {
                    stream.position.disabled_since = stream.position.last_listing;
                    stream.unwritten = Unwritten::Change;
                }
            }
            ListerReport::NotDisabled { content_type } => {
                if let Some(stream) = self.streams.get_mut(&content_type)
                    && !stream.declaring
                    && stream.position.disabled_since.take().is_some()
                {
                    stream.unwritten = Unwritten::Change;
                }
            }
            ListerReport::Subscribed { .. } => self.welcome.subscribed(),
            ListerReport::Parked { content_type } => self.on_parked(content_type),
            ListerReport::Ended { content_type, left } => {
                if let Some(left) = &left {
                    tracing::error!(tenant = %self.terms.tenant, %content_type, "{}", left.why);
                }
                if let Some(stream) = self.streams.get_mut(&content_type) {
                    stream.ended = Some(left);
                }
            }
        }
    }

    fn on_page(&mut self, content_type: ContentType, blobs: Vec<BlobRef>, read: Option<Window>) {
        for blob in blobs {
            self.on_blob(blob);
        }
        // A read made with an untrusted clock, or up to a future end, proves nothing about that range.
        let read = read.zip(self.terms.server.trusted());
        let read = read.map(|(window, now)| Window { end: window.end.min(now), ..window });
        let read = read.filter(|window| window.start < window.end);
        if let Some(stream) = self.streams.get_mut(&content_type) {
            stream.parked = None;
            if let Some(window) = read {
                stream.note_read(window);
                self.advance(content_type);
            }
        }
        self.guide(content_type);
    }

    fn on_parked(&mut self, content_type: ContentType) {
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        let was = stream.parked.is_some();
        stream.parked.get_or_insert_with(|| self.terms.clock.monotonic());
        if !was && content_type == ContentType::Dlp && self.terms.dropping {
            let was_read = stream.position.complete_until.is_some();
            self.warn_blind("its permission is missing", if was_read { "if that lasts " } else { "" });
        }
    }

    fn on_blob(&mut self, blob: BlobRef) {
        let Some(stream) = self.streams.get_mut(&blob.content_type) else { return };
        let key = Key::of_blob(&blob.id, blob.created);
        if stream.unsettled.contains(key) {
            return;
        }
        // The lister has already queried the disk. Only a blob settled since then can be missing there, and its key is
        // still in memory. If it were not, the blob would be fetched again and its events recognised as delivered.
        if matches!(stream.settled.with_keys(|set| set.probe(key)), Probe::Present) {
            self.count(metrics::DUPLICATES_TOTAL, blob.content_type, "level", "blob");
            return;
        }
        stream.new_content_at = self.terms.clock.monotonic();
        let late = stream.add(key, &blob, false);
        self.gauges_stale = true;
        self.count(metrics::BLOBS_TOTAL, blob.content_type, "state", "listed");
        let patience = self.patience();
        self.ready.push(Ready(Job::new(blob, key, late, patience)));
    }

    /// Takes over a blob an earlier run tracked.
    fn adopt(&mut self, blob: BlobRef) {
        let Some(stream) = self.streams.get_mut(&blob.content_type) else { return };
        let key = Key::of_blob(&blob.id, blob.created);
        stream.add(key, &blob, true);
        let mut job = Job::new(blob, key, false, self.patience());
        job.tracked = true;
        self.ready.push(Ready(job));
    }

    /// Passes its position to a stream's lister, and signals all listers when the queue has room again or is full.
    fn guide(&self, content_type: ContentType) {
        let rooms = self.terms.reading.rooms(self.streams.values().map(|s| s.unsettled.wanted()).sum());
        for (other, stream) in &self.streams {
            let known = *stream.guidance.borrow();
            if *other == content_type || (known.room, known.fresh_room) != (rooms.backlog, rooms.fresh) {
                stream.guide(rooms);
            }
        }
    }

    // ---- fetching ----

    fn start_fetches(&mut self) {
        if self.terms.reading.ask(self.ready.len(), self.terms.clock.monotonic()) {
            self.gauges_stale = true;
            for content_type in self.types() {
                self.guide(content_type);
            }
        }
        if !self.terms.reading.may_begin() {
            return;
        }
        let allowed = self.downloads.allowed(&self.terms.budget);
        while self.downloads.active() < allowed && self.under_way < SETTLING_MAX {
            let Some(Ready(job)) = self.ready.pop() else { return };
            debug_assert!(!self.is_settled(&job), "CK-2: a settled blob is fetched again");
            let download = self.downloads.begin();
            self.terms.reading.begin();
            self.start(LoopAction::Fetch(Box::new(job), download));
        }
    }

    fn is_settled(&self, job: &Job) -> bool {
        self.streams.get(&job.blob.content_type).is_some_and(|stream| stream.is_settled(job.key))
    }

    fn on_done(&mut self, done: ActionResult) -> Result<(), SourceError> {
        self.under_way = self.under_way.saturating_sub(1);
        if matches!(done, ActionResult::Blob(..)) {
            self.terms.reading.end();
        }
        let state = |source| SourceError::State { tenant: self.terms.tenant.clone(), source };
        match done {
            ActionResult::Blob(job, outcome) => match outcome {
                FetchOutcome::Settled => {
                    self.throttled = 0;
                    self.welcome.settled();
                    self.count(metrics::BLOBS_TOTAL, job.blob.content_type, "state", "settled");
                    self.settled(job.blob.content_type, job.key, Some(job.blob.created));
                }
                FetchOutcome::Failed { why, error, damaged } => self.on_failed(*job, &why, error, damaged),
                FetchOutcome::Empty { why } => self.on_empty(*job, &why),
                FetchOutcome::Superseded => self.ready.push(Ready(*job)),
                FetchOutcome::Stopped => {}
                FetchOutcome::State(error) => return Err(state(error)),
            },
            ActionResult::Lost(_, _, Err(NotNoticed::Stopped)) | ActionResult::Gap(_, Err(NotNoticed::Stopped)) => {}
            ActionResult::Lost(_, _, Err(NotNoticed::State(error)))
            | ActionResult::Gap(_, Err(NotNoticed::State(error))) => {
                return Err(state(error));
            }
            ActionResult::Lost(content_type, key, Ok(())) => {
                self.lost.push((content_type, key));
                if let Some(stream) = self.streams.get_mut(&content_type) {
                    stream.unwritten = Unwritten::Change;
                }
            }
            ActionResult::Gap(gap, Ok(())) => {
                if let Some(stream) = self.streams.get_mut(&gap.content_type) {
                    stream.declared(gap.window, gap.reason);
                    self.advance(gap.content_type);
                    self.guide(gap.content_type);
                }
            }
            ActionResult::Written(result) => {
                self.writing_positions = false;
                result.map_err(state)?;
                for (content_type, key) in std::mem::take(&mut self.marking) {
                    self.settled(content_type, key, None);
                }
            }
            ActionResult::Aside(result) => result.map_err(state)?,
            ActionResult::Held(result) => {
                self.tending = false;
                match result {
                    Err(error @ StateError::Unavailable(_)) => {
                        tracing::warn!(tenant = %self.terms.tenant, "state-not-read: what is on hold stays there for now: {error}");
                        self.tend_at = self.terms.clock.monotonic() + TICK;
                    }
                    result => result.map_err(state)?,
                }
            }
        }
        Ok(())
    }

    fn settled(&mut self, content_type: ContentType, key: Key, created: Option<Timestamp>) {
        self.gauges_stale = true;
        if let Some(stream) = self.streams.get_mut(&content_type) {
            stream.unsettled.remove(key);
            stream.newest = stream.newest.max(created);
        }
        self.advance(content_type);
        if let Some(stream) = self.streams.get_mut(&content_type)
            && stream.unwritten == Unwritten::Drift
        {
            // A position moved by a settled blob is written soon.
            stream.unwritten = Unwritten::Change;
        }
        self.guide(content_type);
    }

    fn on_failed(&mut self, mut job: Job, why: &str, error: Option<ApiError>, damaged: Option<blake3::Hash>) {
        let content_type = job.blob.content_type;
        let advice = error.as_ref().map(|e| e.action());
        let now = self.terms.clock.monotonic();
        let once = self.terms.once;
        if let (Some(Advice::Throttled { .. }), Some(error)) = (advice, &error) {
            self.throttled += 1;
            let pause = job.note_throttled(error);
            if !self.is_throttled_out(&job) {
                self.requeue(job, now + pause);
                return;
            }
        }
        job.note_failure(damaged);
        self.note_failed(&job, why, error.as_ref());
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        let known = stream.unsettled.update(job.key, |blob| {
            blob.failures = job.failures;
            blob.persisted = job.tracked;
        });
        if !known {
            return;
        }
        if let Some(server_now) = self.terms.server.trusted() {
            job.last_chance = job.blob.expires.duration_since(server_now) <= LAST_CHANCE;
            if server_now >= job.blob.expires && job.is_lost_expired(error.as_ref()) {
                return self.lost(job, why);
            }
        }
        if once && (job.failures >= ONCE_ATTEMPTS_MAX || self.is_throttled_out(&job)) {
            if let Some(stream) = self.streams.get_mut(&content_type) {
                stream.unsettled.update(job.key, |blob| blob.given_up = true);
            }
            self.guide(content_type);
            return;
        }
        // The next attempt first writes the blob to the state, so that it outlives the listing it was found in.
        job.track_first = !job.tracked;
        job.tracked = true;
        let delay = if once { pauses::BLOB_ONCE } else { pauses::BLOB }.after(job.failures);
        let slowly = matches!(advice, Some(Advice::RetryBlobSlowly | Advice::SlowRetryTenant | Advice::ParkType));
        let slow = !once && (slowly || job.failures_expired > 0);
        let named = error.as_ref().and_then(|error| error.not_before()).unwrap_or_default();
        self.requeue(job, now + if slow { delay.max(SLOW_DELAY_MIN) } else { delay }.max(named));
    }

    /// With `once`: whether this blob, or all blobs together, were throttled so often that the rest is left.
    fn is_throttled_out(&self, job: &Job) -> bool {
        self.terms.once && (self.throttled > ONCE_THROTTLED_MAX || job.throttled > ONCE_BLOB_THROTTLED_MAX)
    }

    /// Counts a failed fetch, and logs it at a limited rate.
    fn note_failed(&mut self, job: &Job, why: &str, error: Option<&ApiError>) {
        let content_type = job.blob.content_type;
        let now = self.terms.clock.monotonic();
        self.count(metrics::BLOBS_TOTAL, content_type, "state", "failed");
        let kind = error.map_or("blob-unreadable", |e| e.slug());
        ::metrics::counter!(metrics::ERRORS_TOTAL, "tenant" => self.terms.tenant.to_string(), "kind" => kind)
            .increment(1);
        self.failures_unsaid += 1;
        if now >= self.failure_line_at {
            tracing::warn!(
                tenant = %self.terms.tenant, %content_type, content_id = %job.blob.id, attempts = job.failures,
                failures = self.failures_unsaid, "{kind}: a blob could not be read, it is tried again: {why}"
            );
            self.failures_unsaid = 0;
            self.failure_line_at = now + FAILURE_LINE_EVERY;
        }
        if let Some(error) = error.filter(|error| matches!(error.action(), Advice::SlowRetryTenant)) {
            self.terms.reporter.report(
                Component::Tenant,
                Level::Failed,
                format!("{}: {error}", error.slug()),
                &error.hint(),
            );
        }
    }

    /// How long an answer without events is doubted. It is shorter in a single pass, whose end somebody waits for.
    const fn patience(&self) -> Patience {
        if self.terms.once { Patience::Short } else { Patience::Long }
    }

    /// Handles a listed blob whose body has no event: requests it again after a pause, and believes the answer when it
    /// stays the same.
    fn on_empty(&mut self, mut job: Job, why: &str) {
        let content_type = job.blob.content_type;
        let now = self.terms.clock.monotonic();
        self.count(metrics::EMPTY_ANSWERS_TOTAL, content_type, "endpoint", "fetch_blob");
        let pause = job.note_empty();
        tracing::debug!(
            tenant = %self.terms.tenant, %content_type, content_id = %job.blob.id, answers = job.empties,
            "blob-empty: {why}; it is asked for again in {} s", pause.as_secs()
        );
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        if !stream.unsettled.update(job.key, |blob| blob.persisted = job.tracked) {
            return;
        }
        if let Some(server_now) = self.terms.server.trusted() {
            job.last_chance = job.blob.expires.duration_since(server_now) <= LAST_CHANCE;
        }
        job.track_first = !job.tracked;
        job.tracked = true;
        self.requeue(job, now + pause);
    }

    fn requeue(&mut self, job: Job, due: Duration) {
        self.retries += 1;
        self.retry.insert((due, self.retries), job);
    }

    /// Reports a blob that Microsoft no longer has, then settles it as lost together with the position that records the
    /// gap.
    fn lost(&mut self, job: Job, why: &str) {
        let BlobRef { content_type, created, expires, ref id, .. } = job.blob;
        self.count(metrics::BLOBS_TOTAL, content_type, "state", "lost");
        self.count(metrics::GAPS_TOTAL, content_type, "reason", GapReason::BlobExpired.as_str());
        tracing::error!(
            tenant = %self.terms.tenant, %content_type, content_id = %id, %created, expired = %expires,
            "blob-expired: a blob could not be read before Microsoft removed it, its events are lost: {why}"
        );
        let gap = Gap {
            content_type,
            window: Window { start: created, end: created + SignedDuration::from_millis(1) },
            reason: GapReason::BlobExpired,
            detail: format!("blob `{id}` expired at {expires} unread: {why}"),
            noticed: self.terms.server.for_requests(),
        };
        // Nothing else in the state records the loss, so the mark that settles it goes with this position.
        if let Some(stream) = self.streams.get_mut(&content_type) {
            stream.position.note_gap(remembered(gap.window, gap.reason));
            stream.unwritten = Unwritten::Change;
        }
        self.start(LoopAction::ReportLost(Box::new(job), gap));
    }

    // ---- position ----

    fn advance(&mut self, content_type: ContentType) {
        let Some(now) = self.terms.server.trusted() else { return };
        if let Some(stream) = self.streams.get_mut(&content_type) {
            stream.advance(now, self.terms.once);
        }
    }

    /// When changed positions are to be written; `None` when none has changed. Positions that only time and empty
    /// listings have moved are written once in an interval, or with the next write. A restart then lists that much
    /// more, which is little beside the overlap, and a thousand idle tenants do not sync the disk sixty times a second.
    fn positions_due(&self) -> Option<Duration> {
        match self.streams.values().map(|s| s.unwritten).max()? {
            Unwritten::Nothing => None,
            Unwritten::Drift => Some(self.positions_at + self.terms.poll_interval.max(POSITION_EVERY)),
            Unwritten::Change => Some(self.positions_at + POSITION_EVERY),
        }
    }

    /// Hands changed positions to the ledger, one write at a time.
    fn write_positions(&mut self, at_once: bool) {
        let Some(due) = self.positions_due().filter(|_| !self.writing_positions) else { return };
        let now = self.terms.clock.monotonic();
        if !at_once && !self.terms.once && now < due {
            return;
        }
        let changed = self.streams.iter_mut().filter_map(|(t, stream)| Some((*t, stream.take_unwritten()?)));
        let positions: BTreeMap<ContentType, Position> = changed.collect();
        self.writing_positions = true;
        self.positions_at = now;
        self.marking = std::mem::take(&mut self.lost);
        self.start(LoopAction::Write(positions, self.marking.clone()));
        for content_type in self.types() {
            self.guide(content_type);
        }
    }

    // ---- gaps ----

    /// Declares what was never listed and no longer can be.
    fn check_gaps(&mut self) {
        let Some(now) = self.terms.server.trusted() else { return };
        for content_type in self.types() {
            let Some(stream) = self.streams.get_mut(&content_type) else { continue };
            match stream.unlistable(now) {
                None => {}
                Some(Unlistable::BeforeTheFirst { from, begins }) => {
                    tracing::warn!(
                        tenant = %self.terms.tenant, %content_type, %from, to = %begins,
                        "the first pass begins later than asked for: Microsoft does not list older content any more"
                    );
                    stream.position.origin = begins;
                    stream.unwritten = Unwritten::Change;
                    self.advance(content_type);
                    self.guide(content_type);
                }
                Some(Unlistable::Gap(window, reason)) => self.declare(content_type, window, reason),
            }
        }
    }

    fn declare(&mut self, content_type: ContentType, window: Window, reason: GapReason) {
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        stream.declaring = true;
        self.count(metrics::GAPS_TOTAL, content_type, "reason", reason.as_str());
        let seconds = window.end.duration_since(window.start).as_secs().unsigned_abs();
        ::metrics::counter!(metrics::GAP_SECONDS_TOTAL, "tenant" => self.terms.tenant.to_string(), "content_type" => content_type.as_str()).increment(seconds);
        let Window { start, end } = window;
        let detail = match reason {
            GapReason::Outage => format!(
                "`{content_type}` was read until {}; what was made available before {} is no longer listed by Microsoft",
                start, end
            ),
            GapReason::SubscriptionDisabled => format!(
                "the subscription to `{content_type}` was off at some time between {} and {}; what became available meanwhile can never be fetched",
                start, end
            ),
            GapReason::PositionMoved => format!(
                "the position of `{content_type}` was moved by hand from {} to {}; what was made available between, and what is listed late of the time before, is not read",
                start, end
            ),
            GapReason::BlobExpired => String::new(),
        };
        tracing::error!(tenant = %self.terms.tenant, %content_type, from = %start, to = %end, "stream-gap: {detail}");
        let noticed = self.terms.server.for_requests();
        self.start(LoopAction::Declare(Gap { content_type, window, reason, detail, noticed }));
    }

    // ---- upkeep ----

    fn on_time(&mut self, granted_per_minute: Option<f64>) {
        let now = self.terms.clock.monotonic();
        while let Some(entry) = self.retry.first_entry().filter(|e| e.key().0 <= now) {
            self.ready.push(Ready(entry.remove()));
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            self.check_gaps();
            self.check_clock();
            self.check_blobs();
            self.check_turn(now);
            for content_type in self.types() {
                self.advance(content_type);
            }
            self.terms.hold.tick();
            self.set_gauges(now, granted_per_minute);
        } else if self.gauges_stale && now >= self.gauges_at {
            self.set_gauges(now, granted_per_minute);
        }
        // Also at the first tick: a collector that is started every few minutes with `--once` must not keep keys for
        // ever. A first date that differs from this machine's by a day must hold for an hour before keys are removed by
        // it.
        let agrees = self.terms.server.skew().is_some_and(|skew| skew.abs() < SKEW_TO_EXPIRE_MAX);
        let may_expire = agrees || now >= self.started_at + EXPIRE_EVERY;
        if now >= self.expire_at && may_expire && self.terms.server.trusted().is_some() {
            self.expire_at = now + EXPIRE_EVERY;
            self.start(LoopAction::Expire);
        }
    }

    fn check_clock(&self) {
        if self.terms.server.is_doubted() {
            self.terms.reporter.report(
                Component::Clock,
                Level::Degraded,
                "clock-jumped: Microsoft's answers carry a date more than 10 minutes off what is expected",
                "events are still read; no position moves and nothing is declared until three answers over 5 minutes agree",
            );
        } else {
            self.terms.reporter.clear(Component::Clock);
        }
    }

    fn check_blobs(&self) {
        let Some(now) = self.terms.server.trusted() else { return };
        for (content_type, stream) in &self.streams {
            let failing = stream.unsettled.values().filter(|b| b.failures >= 3);
            let Some(expires) = failing.clone().map(|b| b.expires).min() else {
                self.terms.reporter.clear(Component::Blobs(*content_type));
                continue;
            };
            let near = expires.duration_since(now) < EXPIRY_ALARM;
            let count = failing.count();
            let what = if near { "blob-expiry-near" } else { "blobs-failing" };
            self.terms.reporter.report(
                Component::Blobs(*content_type),
                Level::Degraded,
                format!(
                    "{what}: {} of `{content_type}` cannot be read; the first is gone at {expires}",
                    counted(count as u64, "blob")
                ),
                "the source retries until then; look for a proxy or filter that cuts large answers",
            );
        }
    }

    fn check_turn(&mut self, now: Duration) {
        let soon = |server_now| self.streams.values().any(|stream| stream.expires_within(EXPIRY_ALARM, server_now));
        let expiring = self.terms.server.trusted().is_some_and(soon);
        self.terms.reading.check(expiring, now, &self.terms.reporter);
    }

    /// Logs once that the source began well.
    fn log_welcome(&mut self, now: Duration) {
        let Some(server_now) = self.terms.server.trusted() else { return };
        let streams = self.streams.values().map(|stream| stream.known());
        if let Some(words) = self.welcome.words(streams, now, server_now) {
            tracing::info!(source = %self.terms.reporter.source(), tenant = %self.terms.tenant, "{words}");
        }
    }

    fn set_gauges(&mut self, now: Duration, granted_per_minute: Option<f64>) {
        self.log_welcome(now);
        self.gauges_stale = false;
        self.gauges_at = now + GAUGES_EVERY;
        let tenant = metrics::tenant_label(&self.terms.tenant);
        let server_now = self.terms.server.trusted();
        for (content_type, stream) in &mut self.streams {
            stream.set_gauges(&tenant, *content_type, now, server_now);
        }
        if let Some(granted) = granted_per_minute {
            ::metrics::gauge!(metrics::GRANTED_REQUESTS_PER_MINUTE, "tenant" => tenant.clone()).set(granted);
        }
        self.terms.reading.set_gauge(&tenant, now);
        ::metrics::gauge!(metrics::IN_FLIGHT_BYTES, "tenant" => tenant.clone()).set(self.terms.budget.used() as f64);
        if let Some(skew) = self.terms.server.skew() {
            ::metrics::gauge!(metrics::CLOCK_SKEW_SECONDS, "tenant" => tenant).set(skew.as_secs_f64());
        }
    }

    fn count(&self, name: &'static str, content_type: ContentType, label: &'static str, value: &'static str) {
        ::metrics::counter!(name, "tenant" => self.terms.tenant.to_string(), "content_type" => content_type.as_str(), label => value).increment(1);
    }
}

#[cfg(test)]
mod tests;
