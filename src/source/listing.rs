//! Lists one stream: chooses the windows, reads page after page, and handles refusals.
//!
//! The lister requests pages and reports them; it moves no position. A window counts as read only when its last page
//! was. Fresh windows (what came since the last poll) go before backlog ones, so that a long back-fill does not delay
//! today's events. A page that fails is requested again by its own link; its window keeps its place.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::error::{FaultKind, fault_kind};
use super::health::{Component, HealthReporter, Level};
use super::pauses::{self, LISTING_MAX, ONCE_ATTEMPTS_MAX};
use super::report::{Left, LeftKind};
use super::server_time::ServerTime;
use super::subscription::{Restart, Subscriptions};
use crate::api::{Action, ApiClient, ApiError, ErrorKind, PageLink};
use crate::checkpoint::claims::EventIndex;
use crate::checkpoint::key::Key;
use crate::clock::Clock;
use crate::host::StateStore;
use crate::metrics;
use crate::model::{Actionable, BlobRef, ContentType, StreamId, TenantId, Timestamp, Window};
use crate::plan::{self, Bounds, Reach};

/// Pages followed in one window before it is listed again in halves.
const PAGES_MAX: u32 = 1000;
/// Pages followed in a window that is too narrow for halves. A listing that has more is taken for one without an end.
pub(super) const PAGES_OF_NARROW_MAX: u32 = 100_000;
/// How far a poll reaches back into a window that cannot be read.
const OVERLAP_WHILE_STUCK: SignedDuration = plan::COMPLETE_MARGIN;
/// The week is listed again this often.
const WEEK_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// The day is.
const DAY_EVERY: SignedDuration = SignedDuration::from_hours(1);
/// After this many `null` answers, a page counts as empty. Later polls (over the next hours, the day and the week) list
/// each window again, so blobs it may have hidden are still found.
pub const NULL_LISTINGS_MAX: u32 = 5;
/// Failures of one window in a row before health reports them.
const FAILURES_BEFORE_TROUBLE: u32 = 3;
/// A type that lacks its permission is tried again this often.
const PARKED_DELAY: Duration = Duration::from_secs(15 * 60);

/// A report of a lister to the tenant's loop.
#[derive(Debug)]
pub enum ListerReport {
    /// A page was read.
    Page {
        /// The stream.
        content_type: ContentType,
        /// Its blobs.
        blobs: Vec<BlobRef>,
        /// The window, if this was its last page.
        read: Option<Window>,
    },
    /// Every window of a wider pass was read.
    PassDone {
        /// The stream.
        content_type: ContentType,
        /// How far the pass reached.
        reach: Reach,
        /// Microsoft's time when it was planned.
        at: Timestamp,
    },
    /// A listing succeeded.
    Listed {
        /// The stream.
        content_type: ContentType,
        /// Microsoft's time.
        at: Timestamp,
    },
    /// The subscription that once worked was found to be off.
    Disabled {
        /// The stream.
        content_type: ContentType,
    },
    /// It was on all the time.
    NotDisabled {
        /// The stream.
        content_type: ContentType,
    },
    /// Its subscription was started.
    Subscribed {
        /// The stream.
        content_type: ContentType,
    },
    /// A permission is missing: the stream is listed again at long intervals, and nothing waits for it.
    Parked {
        /// The stream.
        content_type: ContentType,
    },
    /// With `--once`: this stream has nothing more to list, or gave up for the reason given.
    Ended {
        /// The stream.
        content_type: ContentType,
        /// The work that was left and why, if any.
        left: Option<Left>,
    },
}

/// The loop's instructions to a lister.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// The stream's position.
    pub bounds: Bounds,
    /// When the day was listed again last.
    pub day_listed: Option<Timestamp>,
    /// When the week was.
    pub week_listed: Option<Timestamp>,
    /// Whether there is room for more backlog blobs.
    pub room: bool,
    /// Whether there is room for what came since the last poll.
    pub fresh_room: bool,
}

/// Settings of a lister.
#[derive(Debug, Clone)]
pub struct ListerSettings {
    /// Time between polls.
    pub poll_interval: Duration,
    /// How far before `complete_until` a poll begins.
    pub overlap: SignedDuration,
    /// One pass from `origin`, then end.
    pub once: bool,
}

/// When each content type of a tenant was last listed, by the monotonic clock. Its listers share it.
#[derive(Debug, Clone, Default)]
pub struct LastListed(Arc<Mutex<HashMap<ContentType, Duration>>>);

impl LastListed {
    fn listed(&self, content_type: ContentType, at: Duration) {
        self.0.lock().insert(content_type, at);
    }

    /// Whether a type other than this one was listed at `since` or later.
    fn is_another_listed(&self, content_type: ContentType, since: Duration) -> bool {
        self.0.lock().iter().any(|(other, at)| *other != content_type && *at >= since)
    }
}

/// Lists one stream.
pub struct Lister {
    pub(super) tenant: TenantId,
    pub(super) content_type: ContentType,
    pub(super) api: ApiClient,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) server: ServerTime,
    pub(super) reporter: HealthReporter,
    pub(super) subscriptions: Subscriptions,
    pub(super) settled: EventIndex,
    pub(super) last_listed: LastListed,
    /// Since when it is refused without a code that says whom that concerns.
    pub(super) refused_since: Option<Duration>,
    pub(super) store: Arc<dyn StateStore>,
    pub(super) settings: ListerSettings,
    pub(super) found: mpsc::Sender<Box<ListerReport>>,
    pub(super) guidance: watch::Receiver<Guidance>,
    pub(super) stop: CancellationToken,
}

/// A window being read.
struct Cursor {
    window: Window,
    page: Option<PageLink>,
    pages: u32,
    /// Hashes of the links followed.
    visited: HashSet<u64>,
    /// It failed several times for a reason of its own, which later content need not have.
    stuck: bool,
    /// Failures since the last page that was new.
    failures: u32,
    /// Answers `null` to the page it is at.
    nulls: u32,
    /// Pages read in the best attempt.
    furthest: u32,
    not_before: Duration,
    pass: u64,
}

impl Cursor {
    fn new(window: Window, pass: u64) -> Self {
        Self {
            window,
            page: None,
            pages: 0,
            visited: HashSet::new(),
            stuck: false,
            failures: 0,
            nulls: 0,
            furthest: 0,
            not_before: Duration::ZERO,
            pass,
        }
    }

    /// Whether the link was not followed before.
    fn visit(&mut self, link: &PageLink) -> bool {
        let mut hasher = DefaultHasher::new();
        link.hash(&mut hasher);
        self.visited.insert(hasher.finish())
    }

    fn restart(&mut self) {
        self.page = None;
        self.pages = 0;
        self.visited.clear();
    }
}

#[derive(Default)]
struct Queues {
    fresh: VecDeque<Cursor>,
    backlog: VecDeque<Cursor>,
    /// Passes under way: how far they reach, when they were planned, windows still unread.
    passes: HashMap<u64, (Reach, Timestamp, usize)>,
    next_pass: u64,
}

impl Queues {
    /// Has fresh windows that cannot be read wait among the older ones, so that what came since is listed all the same.
    /// Two that follow each other become one: in an outage each poll leaves one behind.
    fn put_stuck_aside(&mut self) {
        let (stuck, fresh) = std::mem::take(&mut self.fresh).into_iter().partition(|cursor| cursor.stuck);
        self.fresh = fresh;
        let stuck: VecDeque<Cursor> = stuck;
        for cursor in stuck {
            let Window { start, end } = cursor.window;
            let follows = |other: &&mut Cursor| {
                other.stuck
                    && other.pass == cursor.pass
                    && (other.window.start..=other.window.end).contains(&start)
                    && end.duration_since(other.window.start) <= plan::WINDOW_SPAN_MAX
            };
            match self.backlog.iter_mut().find(follows) {
                Some(other) => {
                    other.window.end = other.window.end.max(end);
                    other.restart();
                }
                None => self.backlog.push_back(cursor),
            }
        }
    }

    /// Whether a window of such a pass cannot be read.
    fn is_held_up(&self, reach: Reach) -> bool {
        let of_reach = |pass: &u64| self.passes.get(pass).is_some_and(|(other, ..)| *other == reach);
        self.backlog.iter().any(|cursor| cursor.stuck && of_reach(&cursor.pass))
    }

    /// Ends passes that a window holds up for longer than their period: the next one lists the same range, and more.
    fn give_up_old_passes(&mut self, now: Timestamp) {
        let Self { passes, backlog, .. } = self;
        passes.retain(|pass, (reach, at, _)| {
            let period = if *reach == Reach::Week { WEEK_EVERY } else { DAY_EVERY };
            let is_held_up =
                now.duration_since(*at) >= period && backlog.iter().any(|cursor| cursor.pass == *pass && cursor.stuck);
            if is_held_up {
                backlog.retain(|cursor| cursor.pass != *pass);
            }
            !is_held_up
        });
    }

    /// Frees the memory of windows that were read: most of the time the queues are empty.
    fn shrink(&mut self) {
        for queue in [&mut self.fresh, &mut self.backlog] {
            if queue.is_empty() {
                *queue = VecDeque::new();
            }
        }
        if self.passes.is_empty() {
            self.passes = HashMap::new();
        }
    }
}

/// The loop is gone or the source is stopping: the lister ends.
struct ListerEnd;

type Continues = Result<(), ListerEnd>;

impl Lister {
    /// Lists until stopped; with `once`, until every window was read or given up. Boxed, since a task would hold what it
    /// is given twice.
    pub async fn run(mut self: Box<Self>, subscribed: bool) {
        let _ = self.try_run(subscribed).await;
    }

    async fn try_run(&mut self, subscribed: bool) -> Continues {
        if !subscribed {
            self.report_found(ListerReport::Disabled { content_type: self.content_type }).await?;
            if !Box::pin(self.subscribe()).await? {
                return Ok(());
            }
        }
        // Code that seldom runs is boxed, here and below, so that a stream that waits for its next poll is small.
        if self.settings.once { Box::pin(self.run_once()).await } else { self.run_on().await }
    }

    fn stream(&self) -> StreamId {
        StreamId { tenant: self.tenant.clone(), content_type: self.content_type }
    }

    fn place(&self) -> Component {
        Component::Stream(self.content_type)
    }

    async fn report_found(&self, found: ListerReport) -> Continues {
        tokio::select! {
            sent = self.found.send(Box::new(found)) => sent.map_err(|_| ListerEnd),
            () = self.stop.cancelled() => Err(ListerEnd),
        }
    }

    async fn sleep(&self, duration: Duration) -> Continues {
        tokio::select! {
            () = self.clock.sleep(duration) => Ok(()),
            () = self.stop.cancelled() => Err(ListerEnd),
        }
    }

    async fn run_once(&mut self) -> Continues {
        let now = self.server.for_requests();
        let bounds = self.guidance.borrow().bounds;
        let mut queues = Queues::default();
        for window in plan::tile(bounds.origin, now) {
            queues.backlog.push_back(Cursor::new(window, 0));
        }
        while let Some(cursor) = queues.backlog.pop_front() {
            while !self.guidance.borrow_and_update().room {
                tokio::select! {
                    changed = self.guidance.changed() => changed.map_err(|_| ListerEnd)?,
                    () = self.stop.cancelled() => return Err(ListerEnd),
                }
            }
            if let Some(left) = self.page(cursor, &mut queues, true).await? {
                return self
                    .report_found(ListerReport::Ended { content_type: self.content_type, left: Some(left) })
                    .await;
            }
            let due = queues.backlog.iter().map(|c| c.not_before).min().unwrap_or_default();
            let now = self.clock.monotonic();
            if due > now {
                self.sleep(due - now).await?;
            } else if let Some(ready) = queues.backlog.iter().position(|c| c.not_before <= now) {
                queues.backlog.rotate_left(ready);
            }
        }
        let left = self.server.is_doubted().then(|| Left {
            why: format!(
                "cannot tell whether all of {} was listed: Microsoft's answers carry a date more than 10 minutes off what is expected",
                self.stream()
            ),
            kind: LeftKind::Passing,
        });
        self.report_found(ListerReport::Ended { content_type: self.content_type, left }).await
    }

    async fn run_on(&mut self) -> Continues {
        let mut queues = Queues::default();
        let mut next_poll = self.clock.monotonic();
        let mut first = true;
        let mut fresh_from: Option<Timestamp> = None;
        loop {
            let now = self.clock.monotonic();
            if now >= next_poll {
                self.plan_poll(&mut queues, &mut fresh_from);
                if queues.fresh.is_empty() && queues.backlog.is_empty() {
                    // Microsoft's clock is before the range to be listed. If that date was wrong, only another answer
                    // can correct it.
                    tokio::select! {
                        _ = Box::pin(self.api.list_subscriptions()) => {}
                        () = self.stop.cancelled() => return Err(ListerEnd),
                    }
                }
                // The second poll comes at any time up to an interval after the first, so that tenants and types that
                // began together do not poll together; then a twentieth of jitter either way keeps them apart.
                let jitter = if first { fastrand::f64() } else { 0.95 + 0.1 * fastrand::f64() };
                next_poll = now + self.settings.poll_interval.mul_f64(jitter);
                first = false;
            }
            let Guidance { room, fresh_room, .. } = *self.guidance.borrow_and_update();
            if let Some(cursor) = if fresh_room { take_ready(&mut queues.fresh, now) } else { None } {
                Box::pin(self.page(cursor, &mut queues, true)).await?;
            } else if let Some(cursor) = if room { take_ready(&mut queues.backlog, now) } else { None } {
                Box::pin(self.page(cursor, &mut queues, false)).await?;
            } else {
                queues.shrink();
                let may = |room: bool| move |_: &&Cursor| room;
                let fresh = queues.fresh.iter().filter(may(fresh_room));
                let retries = fresh.chain(queues.backlog.iter().filter(may(room))).map(|c| c.not_before);
                let due = retries.chain([next_poll]).min().unwrap_or(next_poll);
                tokio::select! {
                    () = self.clock.sleep(due.saturating_sub(now)) => {}
                    changed = self.guidance.changed() => changed.map_err(|_| ListerEnd)?,
                    () = self.stop.cancelled() => return Err(ListerEnd),
                }
            }
        }
    }

    /// Queues the windows of the poll that is due.
    fn plan_poll(&self, queues: &mut Queues, fresh_from: &mut Option<Timestamp>) {
        let now = self.server.for_requests();
        let guidance = *self.guidance.borrow();
        let overlap = self.settings.overlap;
        queues.put_stuck_aside();
        if queues.fresh.is_empty() {
            let behind = !queues.backlog.is_empty();
            let stuck_until = queues.backlog.iter().filter(|cursor| cursor.stuck).map(|cursor| cursor.window.end).max();
            let windows = match *fresh_from {
                // Older windows are already queued, so only the time since then is added. What one of them is stuck at
                // is left out: late content of its range is found when it is read at last, from its first page.
                Some(from) if behind => {
                    let until = stuck_until.map_or(Timestamp::MIN, |end| end - OVERLAP_WHILE_STUCK);
                    plan::tile((from - overlap).max(until.min(from)).max(guidance.bounds.origin), now)
                }
                _ => plan::windows(guidance.bounds, now, overlap, Reach::Overlap),
            };
            let mut windows = windows.into_iter();
            queues.fresh.extend(windows.next().map(|w| Cursor::new(w, 0)));
            queues.backlog.extend(windows.map(|w| Cursor::new(w, 0)));
            *fresh_from = Some(now);
        }
        if guidance.bounds.complete_until.is_none() {
            // The first pass reaches back to `origin` by itself.
            return;
        }
        let due = |last: Option<Timestamp>, every: SignedDuration| {
            last.is_none_or(|last| now.duration_since(last) >= every || now < last)
        };
        queues.give_up_old_passes(now);
        let is_under_way = |reach| queues.passes.values().any(|(other, ..)| *other == reach);
        // The week contains the day, but not while a window of it cannot be read.
        let week_waits = queues.is_held_up(Reach::Week);
        let reach = if due(guidance.week_listed, WEEK_EVERY) && !is_under_way(Reach::Week) {
            Some(Reach::Week)
        } else if due(guidance.day_listed, DAY_EVERY)
            && !is_under_way(Reach::Day)
            && (week_waits || !is_under_way(Reach::Week))
        {
            Some(Reach::Day)
        } else {
            None
        };
        if let Some(reach) = reach {
            let windows = plan::windows(guidance.bounds, now, overlap, reach);
            if !windows.is_empty() {
                queues.next_pass += 1;
                let pass = queues.next_pass;
                queues.passes.insert(pass, (reach, now, windows.len()));
                queues.backlog.extend(windows.into_iter().map(|w| Cursor::new(w, pass)));
            }
        }
    }

    /// Reads one page of `cursor` and puts the cursor back unless its window is read. `Some` only with `once`: the
    /// stream cannot be read to its end.
    async fn page(&mut self, mut cursor: Cursor, queues: &mut Queues, fresh: bool) -> Result<Option<Left>, ListerEnd> {
        debug_assert!(cursor.window.end.duration_since(cursor.window.start) <= plan::WINDOW_SPAN_MAX, "CK-4: too wide");
        debug_assert!(cursor.window.start < cursor.window.end, "CK-4: empty");
        let listed = tokio::select! {
            listed = self.api.list_content(self.content_type, cursor.window, cursor.page.as_ref()) => listed,
            () = self.stop.cancelled() => return Err(ListerEnd),
        };
        let page = match listed {
            Ok(page) => page,
            Err(error) => return self.page_failed(cursor, queues, fresh, error).await,
        };
        if page.null {
            ::metrics::counter!(
                metrics::EMPTY_ANSWERS_TOTAL, "tenant" => self.tenant.to_string(),
                "content_type" => self.content_type.as_str(), "endpoint" => "list_content"
            )
            .increment(1);
            if cursor.nulls < NULL_LISTINGS_MAX {
                cursor.nulls += 1;
                return self.again(cursor, queues, fresh, "the listing is `null` in place of an array".into());
            }
            tracing::warn!(
                tenant = %self.tenant, content_type = %self.content_type, from = %cursor.window.start, to = %cursor.window.end,
                "listing-null: a listing stayed `null` in place of an array; it counts as empty until the next poll"
            );
        }
        cursor.nulls = 0;
        // The first page alone does not count as progress: a window that fails at its second page would be requested
        // without a pause.
        if cursor.pages >= cursor.furthest {
            cursor.furthest = cursor.pages + 1;
            cursor.failures = 0;
            cursor.stuck = false;
        }
        let is_well = |cursor: &Cursor| cursor.failures < FAILURES_BEFORE_TROUBLE;
        if is_well(&cursor) && queues.fresh.iter().chain(&queues.backlog).all(is_well) {
            self.reporter.clear(self.place());
        }
        self.reporter.clear(Component::Tenant);
        self.refused_since = None;
        self.last_listed.listed(self.content_type, self.clock.monotonic());
        if let Some(at) = self.server.trusted() {
            self.report_found(ListerReport::Listed { content_type: self.content_type, at }).await?;
        }
        for item in &page.skipped {
            // An unreadable item may be a blob, so its window does not count as read and is listed again.
            tracing::warn!(tenant = %self.tenant, content_type = %self.content_type, "listing-item-unreadable: {item:?}");
        }
        let complete = page.next.is_none() && page.skipped.is_empty();
        let read = complete.then_some(cursor.window);
        let blobs = self.unsettled(page.blobs).await;
        self.report_found(ListerReport::Page { content_type: self.content_type, blobs, read }).await?;
        if complete {
            self.window_read(&cursor, queues).await?;
            return Ok(None);
        }
        self.next_page(cursor, page.next, queues, fresh)
    }

    /// Puts back the cursor of an unfinished window, at its next page if it has one.
    fn next_page(
        &mut self,
        mut cursor: Cursor,
        next: Option<PageLink>,
        queues: &mut Queues,
        fresh: bool,
    ) -> Result<Option<Left>, ListerEnd> {
        cursor.pages += 1;
        let Some(next) = next else {
            cursor.restart();
            return self.again(cursor, queues, fresh, "the listing holds an item that cannot be read".into());
        };
        if !cursor.visit(&next) {
            cursor.restart();
            return self.again(cursor, queues, fresh, "the listing's next page is one it has shown already".into());
        }
        let halves = if cursor.pages < PAGES_MAX { None } else { plan::halves(cursor.window) };
        if let Some(halves) = halves {
            if let Some((_, _, windows)) = queues.passes.get_mut(&cursor.pass) {
                *windows += 1;
            }
            for window in halves.into_iter().rev() {
                self.put_back(Cursor::new(window, cursor.pass), queues, fresh, true);
            }
            return Ok(None);
        }
        if cursor.pages >= PAGES_OF_NARROW_MAX {
            cursor.restart();
            return self.again(cursor, queues, fresh, "the listing has more than 100,000 pages".into());
        }
        cursor.page = Some(next);
        self.put_back(cursor, queues, fresh, true);
        Ok(None)
    }

    /// Leaves out blobs whose mark is on disk. A blob whose mark cannot be read now stays: its events have keys of
    /// their own.
    async fn unsettled(&self, mut blobs: Vec<BlobRef>) -> Vec<BlobRef> {
        let mut kept = Vec::with_capacity(blobs.len());
        let mut settled = 0;
        for blob in blobs.drain(..) {
            let key = Key::of_blob(&blob.id, blob.created);
            match self.settled.contains(key, &*self.store).await {
                Ok(true) => settled += 1,
                Ok(false) => kept.push(blob),
                Err(error) => {
                    tracing::warn!(tenant = %self.tenant, content_type = %self.content_type, "cannot look up a settled blob: {error}");
                    kept.push(blob);
                }
            }
        }
        if settled > 0 {
            ::metrics::counter!(
                metrics::DUPLICATES_TOTAL, "tenant" => self.tenant.to_string(),
                "content_type" => self.content_type.as_str(), "level" => "blob"
            )
            .increment(settled);
        }
        kept
    }

    async fn window_read(&mut self, cursor: &Cursor, queues: &mut Queues) -> Continues {
        let Some((reach, at, windows)) = queues.passes.get_mut(&cursor.pass) else { return Ok(()) };
        *windows -= 1;
        if *windows == 0 {
            let (reach, at) = (*reach, *at);
            queues.passes.remove(&cursor.pass);
            self.report_found(ListerReport::PassDone { content_type: self.content_type, reach, at }).await?;
        }
        Ok(())
    }

    fn put_back(&self, cursor: Cursor, queues: &mut Queues, fresh: bool, first: bool) {
        let queue = if fresh && !self.settings.once { &mut queues.fresh } else { &mut queues.backlog };
        if first { queue.push_front(cursor) } else { queue.push_back(cursor) }
    }

    /// Puts a cursor that failed back with a pause; with `once`, gives up after [`ONCE_ATTEMPTS_MAX`].
    fn again(
        &self,
        mut cursor: Cursor,
        queues: &mut Queues,
        fresh: bool,
        why: String,
    ) -> Result<Option<Left>, ListerEnd> {
        cursor.failures += 1;
        let why = format!("cannot list {}: {why}", self.stream());
        if self.settings.once && cursor.failures >= ONCE_ATTEMPTS_MAX {
            return Ok(Some(Left { why, kind: LeftKind::Passing }));
        }
        if cursor.failures >= FAILURES_BEFORE_TROUBLE {
            cursor.stuck = true;
            self.reporter.report(self.place(), Level::Degraded, why, "it will be retried; no data is skipped");
        }
        cursor.not_before = cursor.not_before.max(self.clock.monotonic() + self.delay(cursor.failures));
        self.put_back(cursor, queues, fresh, false);
        Ok(None)
    }

    fn delay(&self, failures: u32) -> Duration {
        if self.settings.once { pauses::LISTING_ONCE } else { pauses::LISTING }.after(failures)
    }

    async fn page_failed(
        &mut self,
        mut cursor: Cursor,
        queues: &mut Queues,
        fresh: bool,
        error: ApiError,
    ) -> Result<Option<Left>, ListerEnd> {
        let once = self.settings.once;
        match error.action() {
            // Requests the same page again, after a pause of its own: Microsoft may grant other requests meanwhile.
            Action::Throttled { retry_after } => {
                cursor.failures += 1;
                if once && cursor.failures >= 10 * ONCE_ATTEMPTS_MAX {
                    return Ok(Some(Left { why: self.message_of(&error), kind: LeftKind::Passing }));
                }
                let pause = self.delay(cursor.failures).max(retry_after.unwrap_or_default());
                cursor.not_before = self.clock.monotonic() + pause;
                self.put_back(cursor, queues, fresh, true);
                Ok(None)
            }
            Action::RestartWindow => {
                cursor.restart();
                self.again(cursor, queues, fresh, error.to_string())
            }
            Action::RecomputeWindow => {
                let now = self.server.for_requests();
                let start = cursor.window.start.max(plan::floor_to_second(plan::earliest_listable(now)));
                let end = cursor.window.end.min(plan::floor_to_second(now));
                if start >= end {
                    // Nothing of it can be listed any more; the tenant's loop declares what that loses.
                    self.window_read(&cursor, queues).await?;
                    return Ok(None);
                }
                cursor.window = Window { start, end };
                cursor.restart();
                self.again(cursor, queues, fresh, error.to_string())
            }
            Action::StartSubscription => self.found_off(cursor, queues, fresh, error).await,
            Action::ParkType | Action::SlowRetryTenant => self.unlistable(cursor, queues, fresh, error).await,
            Action::AlreadyEnabled | Action::Retry { .. } | Action::RetryBlobSlowly => {
                if once && cursor.failures + 1 >= ONCE_ATTEMPTS_MAX {
                    let kind = left_kind(&error);
                    return Ok(Some(Left { why: self.message_of(&error), kind }));
                }
                cursor.not_before = self.clock.monotonic() + error.not_before().unwrap_or_default();
                self.again(cursor, queues, fresh, error.to_string())
            }
        }
    }

    /// The subscription is off: it is started, and the window begins anew.
    async fn found_off(
        &mut self,
        mut cursor: Cursor,
        queues: &mut Queues,
        fresh: bool,
        error: ApiError,
    ) -> Result<Option<Left>, ListerEnd> {
        let once = self.settings.once;
        self.report_found(ListerReport::Disabled { content_type: self.content_type }).await?;
        let restart = self.subscriptions.start(self.content_type).await;
        cursor.restart();
        let pause = match restart {
            Restart::Started { was_off } => {
                if !was_off {
                    self.report_found(ListerReport::NotDisabled { content_type: self.content_type }).await?;
                }
                cursor.failures += 1;
                if once && cursor.failures >= ONCE_ATTEMPTS_MAX {
                    return Ok(Some(Left { why: self.message_of(&error), kind: LeftKind::Passing }));
                }
                let next_cycle = if once { self.delay(cursor.failures) } else { self.settings.poll_interval };
                next_cycle.min(PARKED_DELAY)
            }
            Restart::NotYet { wait } => {
                let why = format!("the subscription to {} is off: {error}", self.stream());
                if once {
                    let why = format!("{why}; Microsoft allows the next start in {} s", wait.as_secs());
                    return Ok(Some(Left { why, kind: LeftKind::Passing }));
                }
                let hint = "Microsoft allows a start every 15 minutes; it is started again then";
                self.reporter.report(self.place(), Level::Degraded, why, hint);
                wait
            }
            Restart::Failed(error) if matches!(error.action(), Action::Retry { .. } | Action::Throttled { .. }) => {
                cursor.not_before = self.clock.monotonic() + error.not_before().unwrap_or_default();
                return self.again(cursor, queues, fresh, error.to_string());
            }
            Restart::Failed(start_error) => return self.unlistable(cursor, queues, fresh, start_error).await,
        };
        cursor.not_before = self.clock.monotonic() + pause;
        self.put_back(cursor, queues, fresh, true);
        Ok(None)
    }

    /// A fault that an operator has to fix: reported once, retried slowly.
    async fn unlistable(
        &mut self,
        mut cursor: Cursor,
        queues: &mut Queues,
        fresh: bool,
        error: ApiError,
    ) -> Result<Option<Left>, ListerEnd> {
        let now = self.clock.monotonic();
        let mut is_parked = matches!(error.action(), Action::ParkType);
        if !is_parked && error.may_concern_one_type() {
            is_parked = match self.settings.once {
                // In a single pass it is read before the others. If they are refused, too, they say so.
                true if self.content_type == ContentType::Dlp => true,
                true => self.last_listed.is_another_listed(self.content_type, Duration::ZERO),
                false => {
                    let since = *self.refused_since.get_or_insert(now);
                    self.last_listed.is_another_listed(self.content_type, since)
                }
            };
        }
        if is_parked {
            self.report_found(ListerReport::Parked { content_type: self.content_type }).await?;
        }
        if let Some(left) = self.complain(&error, is_parked) {
            return Ok(Some(left));
        }
        let pause = if is_parked { PARKED_DELAY } else { self.settings.poll_interval };
        cursor.restart();
        cursor.not_before = self.clock.monotonic() + pause.max(LISTING_MAX);
        // The whole stream is parked: its other windows would get the same refusal.
        for other in queues.fresh.iter_mut().chain(&mut queues.backlog) {
            other.not_before = other.not_before.max(cursor.not_before);
        }
        self.put_back(cursor, queues, fresh, true);
        Ok(None)
    }

    /// Reports an error that an operator has to fix; with `once` it ends the stream.
    fn complain(&self, error: &ApiError, is_parked: bool) -> Option<Left> {
        let kind = match left_kind(error) {
            _ if is_parked && self.content_type == ContentType::Dlp => LeftKind::Optional,
            LeftKind::Authentication if is_parked => LeftKind::Permission,
            kind => kind,
        };
        match is_parked {
            true => {
                let hint = match error.action() {
                    Action::ParkType => error.hint(),
                    _ => format!(
                        "the tenant's other content types are read: look at what this one needs, its permission or a proxy's rule \
                         for its address; else {}",
                        error.hint()
                    ),
                };
                self.reporter.report(self.place(), Level::Degraded, format!("{}: {error}", error.slug()), &hint);
            }
            false => self.reporter.report(
                Component::Tenant,
                Level::Failed,
                format!("{}: {error}", error.slug()),
                &error.hint(),
            ),
        }
        self.settings.once.then(|| Left { why: self.message_of(error), kind })
    }

    fn message_of(&self, error: &ApiError) -> String {
        format!("{}: {error} (hint: {})", error.slug(), error.hint())
    }

    /// Starts the stream's subscription before its first listing. False: given up (`once`).
    async fn subscribe(&mut self) -> Result<bool, ListerEnd> {
        let mut failures = 0;
        loop {
            let restart = tokio::select! {
                restart = self.subscriptions.start(self.content_type) => restart,
                () = self.stop.cancelled() => return Err(ListerEnd),
            };
            let left = match restart {
                Restart::Started { was_off } => {
                    if !was_off {
                        self.report_found(ListerReport::NotDisabled { content_type: self.content_type }).await?;
                    }
                    self.report_found(ListerReport::Subscribed { content_type: self.content_type }).await?;
                    tracing::debug!(tenant = %self.tenant, content_type = %self.content_type, "subscription started");
                    self.reporter.clear(self.place());
                    return Ok(true);
                }
                Restart::NotYet { wait } => {
                    let why = format!(
                        "the subscription to {} is off and was asked to start less than 15 minutes ago",
                        self.stream()
                    );
                    if self.settings.once {
                        // The next listing shows whether it is on by now.
                        return Ok(true);
                    }
                    self.reporter.report(
                        self.place(),
                        Level::Degraded,
                        why,
                        "it is started again when Microsoft allows it",
                    );
                    self.sleep(wait).await?;
                    continue;
                }
                Restart::Failed(error) if matches!(error.action(), Action::ParkType | Action::SlowRetryTenant) => {
                    let is_parked = matches!(error.action(), Action::ParkType);
                    if is_parked {
                        self.report_found(ListerReport::Parked { content_type: self.content_type }).await?;
                    }
                    let left = self.complain(&error, is_parked);
                    if left.is_none() {
                        let pause = if is_parked { PARKED_DELAY } else { self.settings.poll_interval.max(LISTING_MAX) };
                        self.sleep(pause).await?;
                        continue;
                    }
                    left
                }
                Restart::Failed(error) => {
                    failures += 1;
                    self.start_failed(&error, failures)
                }
            };
            if left.is_some() {
                self.report_found(ListerReport::Ended { content_type: self.content_type, left }).await?;
                return Ok(false);
            }
            self.sleep(self.delay(failures.max(1))).await?;
        }
    }

    /// Reports a passing fault that lasts. `Some`: given up (`once`).
    fn start_failed(&self, error: &ApiError, failures: u32) -> Option<Left> {
        if matches!(error.action(), Action::Throttled { .. }) {
            return None;
        }
        if failures >= 3 {
            self.reporter.report(self.place(), Level::Degraded, format!("{}: {error}", error.slug()), &error.hint());
        }
        let is_last = self.settings.once && failures >= ONCE_ATTEMPTS_MAX;
        is_last.then(|| Left { why: self.message_of(error), kind: left_kind(error) })
    }
}

fn left_kind(error: &ApiError) -> LeftKind {
    match fault_kind(error) {
        FaultKind::Authentication => LeftKind::Authentication,
        FaultKind::Permission => LeftKind::Permission,
        FaultKind::Network if error.kind() == ErrorKind::Unreachable => LeftKind::Network,
        _ => LeftKind::Passing,
    }
}

fn take_ready(queue: &mut VecDeque<Cursor>, now: Duration) -> Option<Cursor> {
    let ready = queue.iter().position(|cursor| cursor.not_before <= now)?;
    queue.remove(ready)
}
