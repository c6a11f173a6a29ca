//! Reads a time range again, beside the loop or in a process of its own: all content that became available between two
//! times, with or without duplicate removal.
//!
//! A back-fill moves no position and marks no blob: the checkpoint belongs to the loop. It starts a subscription only
//! where Microsoft reports that there is none, and not before the 15 minutes are over, which it and the loop count
//! together. It shares the loop's keys of delivered events and its claims, so neither delivers an event that the other
//! is delivering. Its calls wait for a share of the quota before they wait for their turn. Its own position is the list
//! of intervals still to be read, written when all blobs of one interval are settled, so a back-fill that is killed
//! resumes where it stopped.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backfill_requests::Backfilling;
pub use super::backfill_requests::{
    BackfillAsk, BackfillError, BackfillNumbers, BackfillProgress, BackfillQueue, BackfillRequest, BackfillResult,
    BackfillSender, request_queue,
};
use super::context::FetchContext;
use super::error::SourceError;
use super::health::HealthReporter;
use super::job::{FetchOutcome, Job, Patience};
use super::listing::{NULL_LISTINGS_MAX, PAGES_OF_NARROW_MAX};
use super::opening::open_ledger;
use super::parts::TenantParts;
use super::pauses::{BACKFILL, BACKFILL_ATTEMPTS_MAX};
use super::server_time::ServerTime;
use super::subscription::{Restart, Subscriptions};
use crate::api::{Action, ApiError, ContentPage, PageLink};
use crate::checkpoint::format::{self, FORMAT, Keys, StoredBackfill};
use crate::checkpoint::key::Key;
use crate::checkpoint::ledger::{Change, OpenedLedger};
use crate::checkpoint::server_clock::ServerClock;
use crate::host::StateError;
use crate::model::{Actionable, BlobRef, ContentType, Timestamp, Window};
use crate::plan;

/// Blobs fetched at once: enough to use half the quota at a second's latency.
const BLOBS_AT_ONCE: usize = 16;
/// A back-fill starts a subscription at most this often; one that is then off again is left.
const STARTS_MAX: u32 = 3;
/// Pages followed in one window before it is listed in halves.
const PAGES_MAX: u32 = 1000;
/// A range is cut into about so many windows for each content type: each is a step of its position.
const STEPS: i32 = 24;
const STEP_MIN: SignedDuration = SignedDuration::from_mins(15);
const STEP_MAX: SignedDuration = SignedDuration::from_hours(4);
/// A range that begins at most this long before the listable span is cut to it: this is the intent of `--from` a week
/// ago.
const EARLY_MAX: SignedDuration = SignedDuration::from_mins(10);
/// A request this close to the age limit would be past it on arrival.
const CLOSE_MARGIN: SignedDuration = SignedDuration::from_secs(30);
/// The position is written at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// A stop waits this long for what is in flight.
const STOP_GRACE: Duration = Duration::from_secs(8);
/// How many reasons are kept for work that was left.
const REASONS_MAX: usize = 20;
impl From<StateError> for BackfillStop {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// The parts of one tenant that a back-fill reads with.
#[derive(Clone)]
pub struct BackfillReader {
    context: FetchContext,
    content_types: Vec<ContentType>,
    server: ServerTime,
    subscriptions: Subscriptions,
    max_requests_per_minute: u32,
}

impl BackfillReader {
    /// A reader on at most half the quota.
    pub fn new(parts: &TenantParts, context: &FetchContext, subscriptions: Subscriptions) -> Self {
        let max = parts.max_requests_per_minute;
        // Half of one is rounded up to one: the back-fill then shares the whole quota, which still holds. 0 means
        // unlimited.
        let half = if max == 0 { 0 } else { (max / 2).max(1) };
        Self {
            context: FetchContext { api: context.api.with_share(half), ..context.clone() },
            content_types: parts.content_types.clone(),
            server: parts.server.clone(),
            subscriptions,
            max_requests_per_minute: half,
        }
    }

    async fn unfinished(&self) -> Result<Option<StoredBackfill>, BackfillError> {
        let key = Keys::of(&self.context.tenant).backfill(&self.context.source);
        let state = |source| SourceError::State { tenant: self.context.tenant.clone(), source };
        let stored = self.context.store.load(&key).await.map_err(state)?;
        Ok(stored.map(|(bytes, _)| format::decode(&key, &bytes)).transpose().map_err(state)?)
    }

    async fn save(&self, backfill: Option<StoredBackfill>) -> Result<(), StateError> {
        let change = Change { backfill: Some((self.context.source.clone(), backfill)), ..Change::default() };
        self.context.ledger.commit(change).await
    }

    /// Stores the range that is to be read.
    async fn begin(&self, ask: BackfillAsk) -> Result<StoredBackfill, BackfillError> {
        let unfinished = self.unfinished().await?;
        let BackfillAsk::Range { from, to, content_types, again } = ask else {
            return unfinished.ok_or(BackfillError::Nothing);
        };
        let types = self.chosen(&content_types)?;
        if let Some(known) = unfinished {
            let same_types = known.remaining.keys().all(|t| types.iter().any(|c| c.as_str() == t));
            let same_end = to.is_none_or(|to| to == known.to);
            if known.from == from && same_end && known.again == again && same_types {
                return Ok(known);
            }
            return Err(BackfillError::Unfinished { from: known.from, to: known.to });
        }
        let now = self.server.for_requests();
        let (begins, ends) = range(from, to, now)?;
        let remaining = types.iter().map(|t| (t.as_str().to_owned(), vec![(begins, ends)])).collect();
        let salt = format!("{:016x}", fastrand::u64(..));
        let started = self.context.clock.now();
        // Stores the range that was requested, not the part listable now, so that the same command is recognised later.
        let stored = StoredBackfill { format: FORMAT, from, to: to.unwrap_or(ends), again, salt, started, remaining };
        let state = |source| SourceError::State { tenant: self.context.tenant.clone(), source };
        self.save(Some(stored.clone())).await.map_err(state)?;
        Ok(stored)
    }

    fn chosen(&self, names: &[String]) -> Result<Vec<ContentType>, BackfillError> {
        if names.is_empty() {
            return Ok(self.content_types.clone());
        }
        let known = |name: &String| self.content_types.iter().copied().find(|t| t.as_str() == name);
        names.iter().map(|name| known(name).ok_or_else(|| BackfillError::TypeNotRead(name.clone()))).collect()
    }

    async fn run(&self, asked: BackfillRequest) {
        self.run_with(asked, Vec::new()).await;
    }

    /// As [`BackfillReader::run`], when the caller already knows that the subscriptions to `off` are off.
    async fn run_with(&self, asked: BackfillRequest, off: Vec<ContentType>) {
        let BackfillRequest { ask, begun, stop, answer } = asked;
        let result = async {
            if ask == BackfillAsk::Discard {
                self.unfinished().await?.ok_or(BackfillError::Nothing)?;
                let state = |source| SourceError::State { tenant: self.context.tenant.clone(), source };
                self.save(None).await.map_err(state)?;
                return Ok(BackfillResult::default());
            }
            let stored = self.begin(ask).await?;
            let progress = Arc::new(BackfillProgress::default());
            let _ = begun.send(progress.clone());
            BackfillWork::new(self, stored, progress).run(off, &stop).await
        }
        .await;
        if let Ok(ended) = &result {
            tracing::info!(
                source = %self.context.source, tenant = %self.context.tenant, blobs = ended.progress.blobs, events = ended.progress.events,
                left = ended.left.len(), interrupted = ended.interrupted, "back-fill ended"
            );
        }
        let _ = answer.send(result);
    }
}

/// The range to read at `now`.
fn range(from: Timestamp, to: Option<Timestamp>, now: Timestamp) -> Result<(Timestamp, Timestamp), BackfillError> {
    let end = plan::floor_to_second(to.map_or(now, |to| to.min(now)));
    let start = plan::floor_to_second(from);
    let oldest = plan::floor_to_second(plan::earliest_listable(now)) + SignedDuration::from_secs(1);
    if start >= end {
        return Err(BackfillError::Range { from, to: to.unwrap_or(now) });
    }
    if start < oldest && oldest.duration_since(start) > EARLY_MAX {
        return Err(BackfillError::TooOld { from, oldest });
    }
    let start = start.max(oldest);
    if start >= end {
        return Err(BackfillError::TooOld { from, oldest });
    }
    Ok((start, end))
}

/// Answers requests one after another for as long as it is polled; never ends.
pub async fn serve(request_queue: Option<BackfillQueue>, reader: Box<BackfillReader>) {
    let Some(mut asks) = request_queue.map(BackfillQueue::into_asked) else { return std::future::pending().await };
    while let Some(asked) = asks.recv().await {
        // Boxed: every tenant has a queue, and hardly ever a request.
        let mut work = Box::pin(reader.run(*asked));
        loop {
            tokio::select! {
                () = &mut work => break,
                Some(other) = asks.recv() => {
                    let _ = other.answer.send(Err(BackfillError::Busy));
                }
            }
        }
    }
    std::future::pending().await
}

/// One back-fill without the loop, in a process of its own.
///
/// # Errors
/// As for a running source, and when the state cannot be opened or Microsoft cannot be reached.
pub async fn alone(parts: TenantParts, asked: BackfillRequest) -> Result<BackfillResult, BackfillError> {
    let reporter =
        HealthReporter::new(parts.source.clone(), parts.tenant.clone(), parts.host.clone(), parts.clock.clone());
    // As in a single pass, an error is reported at once instead of retried for ever.
    let parts = TenantParts { once: true, ..parts };
    let Some(opened) = open_ledger(&parts, &reporter, &asked.stop).await? else {
        return Err(BackfillError::SourceEnded);
    };
    let (OpenedLedger { ledger, handle, tenant, events, healed, .. }, hold) = *opened;
    parts.server.reset(ServerClock::not_before(tenant.server_time));
    let writer = tokio::spawn(ledger.run());
    let (answer, mut answered) = oneshot::channel();
    {
        let mut off = Vec::new();
        if asked.ask != BackfillAsk::Discard {
            // This call signs in, yields Microsoft's time, and shows which subscriptions were never started.
            let listed = parts.api.list_subscriptions().await;
            let listed = listed.map_err(|error| SourceError::Api { source: Box::new(error) })?;
            let is_on = |wanted: ContentType| {
                listed.iter().any(|known| known.content_type == Some(wanted) && known.is_enabled() != Some(false))
            };
            off = parts.content_types.iter().copied().filter(|wanted| !is_on(*wanted)).collect();
        }
        let (api, server, clock) = (parts.api.clone(), parts.server.clone(), parts.clock.clone());
        let subscriptions = Subscriptions::new(api, server, clock, handle.clone(), tenant);
        let context = FetchContext::new(&parts, &reporter, handle, (events, healed), hold, &CancellationToken::new());
        let reader = BackfillReader::new(&parts, &context, subscriptions);
        drop(context);
        reader.run_with(BackfillRequest { answer, ..asked }, off).await;
    }
    // Every handle is gone: the writer ends when it has written what it was given.
    match writer.await {
        Ok(Err(source)) => return Err(SourceError::State { tenant: parts.tenant, source }.into()),
        Ok(Ok(())) => {}
        Err(error) => return Err(SourceError::Internal(error.to_string()).into()),
    }
    answered.try_recv().unwrap_or(Err(BackfillError::SourceEnded))
}

/// Why the work stops early.
enum BackfillStop {
    Asked,
    State(StateError),
}

/// A window that is being read.
struct WindowStep {
    content_type: ContentType,
    window: Window,
    /// Its blobs that are not settled.
    open: usize,
    /// Its last page was read.
    listed: bool,
    /// Whether part of it was left.
    failed: bool,
}

struct Settled {
    step: u64,
    result: Result<(), SettleFailure>,
}

/// Why a blob is not settled.
pub(super) enum SettleFailure {
    Stopped,
    State(StateError),
    Left(String),
}

struct BackfillWork<'a> {
    reader: &'a BackfillReader,
    context: FetchContext,
    stop: CancellationToken,
    stored: StoredBackfill,
    progress: Arc<BackfillProgress>,
    queue: VecDeque<(ContentType, Window)>,
    steps: HashMap<u64, WindowStep>,
    next_step: u64,
    /// Windows still to be read, by content type.
    remaining: BTreeMap<ContentType, Vec<Window>>,
    tasks: JoinSet<Settled>,
    dirty: bool,
    saved_at: Duration,
    left: Vec<String>,
    gone: Vec<String>,
    /// Content types that cannot be listed now.
    closed: HashSet<ContentType>,
    /// Starts requested, by content type, and whether one of them turned the subscription on.
    starts: HashMap<ContentType, (u32, bool)>,
    /// Content types that listed at least one blob.
    listed_some: HashSet<ContentType>,
}

impl<'a> BackfillWork<'a> {
    fn new(reader: &'a BackfillReader, stored: StoredBackfill, progress: Arc<BackfillProgress>) -> Self {
        let again: Option<Arc<str>> = stored.again.then(|| stored.salt.as_str().into());
        // Stopped with the source, or by the requester.
        let token = reader.context.stop.child_token();
        let context = FetchContext {
            stop: token.clone(),
            backfill: Some(Backfilling { progress: progress.clone(), again, healed: None }),
            ..reader.context.clone()
        };
        let step = stored.to.duration_since(stored.from) / STEPS;
        let step = SignedDuration::from_secs(step.as_secs()).clamp(STEP_MIN, STEP_MAX);
        let mut queue = Vec::new();
        let mut remaining: BTreeMap<ContentType, Vec<Window>> = BTreeMap::new();
        let mut span = 0;
        for (name, intervals) in &stored.remaining {
            // A type that is no longer configured stays in the state and is reported at the end.
            let Ok(content_type) = name.parse::<ContentType>() else { continue };
            for (start, end) in intervals {
                let mut upper = *end;
                while upper > *start {
                    let lower = upper.checked_sub(step).unwrap_or(*start).max(*start);
                    let window = Window { start: lower, end: upper };
                    span += seconds(window);
                    queue.push((content_type, window));
                    remaining.entry(content_type).or_default().push(window);
                    upper = lower;
                }
            }
        }
        // Oldest first, since Microsoft removes the oldest next. DLP before the others at each step, as in a first
        // pass.
        queue.sort_by_key(|(content_type, window)| (window.start, *content_type != ContentType::Dlp));
        progress.span_secs.store(span, Ordering::Relaxed);
        progress.quota.store(u64::from(reader.max_requests_per_minute), Ordering::Relaxed);
        Self {
            reader,
            stop: token,
            context,
            stored,
            progress,
            queue: queue.into(),
            steps: HashMap::new(),
            next_step: 0,
            remaining,
            tasks: JoinSet::new(),
            dirty: false,
            saved_at: Duration::ZERO,
            left: Vec::new(),
            gone: Vec::new(),
            closed: HashSet::new(),
            starts: HashMap::new(),
            listed_some: HashSet::new(),
        }
    }

    async fn run(mut self, off: Vec<ContentType>, asked: &CancellationToken) -> Result<BackfillResult, BackfillError> {
        let worked = tokio::select! {
            worked = self.work(off) => worked,
            () = asked.cancelled() => Err(BackfillStop::Asked),
        };
        self.stop.cancel();
        let interrupted = match worked {
            Ok(()) => false,
            Err(BackfillStop::Asked) => true,
            Err(BackfillStop::State(error)) => return Err(self.state(error)),
        };
        // Fetches in progress end by themselves, settled or stopped, unless the host does not answer.
        let grace = self.context.clock.sleep(STOP_GRACE);
        tokio::pin!(grace);
        loop {
            tokio::select! {
                done = self.tasks.join_next() => match done {
                    None => break,
                    Some(Ok(done)) => if let Err(BackfillStop::State(error)) = self.on_settled(done) {
                        return Err(self.state(error));
                    },
                    Some(Err(_)) => {}
                },
                () = &mut grace => break,
            }
        }
        let done = self.remaining.values().all(Vec::is_empty);
        let position = (!done).then(|| self.position());
        self.reader.save(position).await.map_err(|error| self.state(error))?;
        self.note_requests();
        let started = self.note_started();
        Ok(BackfillResult {
            progress: self.progress.snapshot(),
            interrupted: interrupted && !done,
            left: self.left,
            gone: self.gone,
            started,
        })
    }

    /// The content types that were started, and what that means for the range.
    fn note_started(&mut self) -> Vec<String> {
        let mut types: Vec<ContentType> =
            self.starts.iter().filter(|(_, (_, on))| *on).map(|(content_type, _)| *content_type).collect();
        types.sort_unstable();
        for content_type in &types {
            if !self.listed_some.contains(content_type) && !self.closed.contains(content_type) {
                let (from, to) = (self.stored.from, self.stored.to);
                self.gone.push(format!(
                    "{content_type} from {from} to {to}: nothing is listed, since its subscription was off until now; what \
                     became available while it was off is never listed, and first content takes up to 12 hours"
                ));
            }
        }
        types.into_iter().map(|content_type| content_type.as_str().to_owned()).collect()
    }

    fn state(&self, source: StateError) -> BackfillError {
        SourceError::State { tenant: self.context.tenant.clone(), source }.into()
    }

    async fn work(&mut self, off: Vec<ContentType>) -> Result<(), BackfillStop> {
        for content_type in off {
            if self.remaining.contains_key(&content_type)
                && let Err(why) = self.start(content_type).await
            {
                self.note_left(why);
                self.closed.insert(content_type);
            }
        }
        while let Some((content_type, window)) = self.queue.pop_front() {
            if self.closed.contains(&content_type) {
                continue;
            }
            self.list(content_type, window).await?;
            self.save_if_due().await?;
        }
        while !self.tasks.is_empty() {
            self.one_settled().await?;
            self.save_if_due().await?;
        }
        Ok(())
    }

    async fn list(&mut self, content_type: ContentType, whole: Window) -> Result<(), BackfillStop> {
        let id = self.next_step;
        self.next_step += 1;
        self.steps.insert(id, WindowStep { content_type, window: whole, open: 0, listed: false, failed: false });
        let mut reading = ListingCursor::of(id, content_type, whole);
        // Within the margin the server decides; past it a request is pointless.
        let oldest = self.reader.server.for_requests() - (plan::LISTABLE_SPAN - CLOSE_MARGIN);
        if self.clip(content_type, &mut reading.window, oldest) {
            self.listed(id);
            return Ok(());
        }
        loop {
            self.room().await?;
            let listed = tokio::select! {
                listed = self.context.api.list_content(content_type, reading.window, reading.page.as_ref()) => listed,
                () = self.stop.cancelled() => return Err(BackfillStop::Asked),
            };
            self.note_requests();
            let read = match listed {
                Ok(page) => self.page_read(&mut reading, page).await?,
                Err(error) => self.page_refused(&mut reading, &error).await?,
            };
            let why = match read {
                ListingStep::Further => continue,
                ListingStep::Whole => {
                    self.listed(id);
                    return Ok(());
                }
                ListingStep::Ended => return Ok(()),
                ListingStep::Failed(why) => why,
            };
            reading.failures += 1;
            if reading.failures >= BACKFILL_ATTEMPTS_MAX {
                let Window { start, end } = reading.window;
                self.give_up(id, format!("cannot list `{content_type}` from {start} to {end}: {why}"));
                return Ok(());
            }
            (reading.page, reading.pages) = (None, 0);
            reading.visited.clear();
            self.pause(BACKFILL.after(reading.failures)).await?;
        }
    }

    async fn page_read(
        &mut self,
        reading: &mut ListingCursor,
        listed: ContentPage,
    ) -> Result<ListingStep, BackfillStop> {
        let content_type = reading.content_type;
        if listed.null && reading.nulls < NULL_LISTINGS_MAX {
            reading.nulls += 1;
            self.context.count_empty(content_type, "list_content");
            self.pause(BACKFILL.after(reading.nulls)).await?;
            return Ok(ListingStep::Further);
        }
        if !listed.blobs.is_empty() {
            self.listed_some.insert(content_type);
        }
        for blob in listed.blobs {
            self.fetch(reading.id, blob).await?;
        }
        reading.pages += 1;
        Ok(match listed.next {
            None if listed.skipped.is_empty() => ListingStep::Whole,
            None => ListingStep::Failed("the listing holds an item that cannot be read".to_owned()),
            Some(_) if reading.pages >= PAGES_MAX && plan::halves(reading.window).is_some() => {
                // Too many pages for one listing: in halves, as windows of their own.
                let whole = reading.whole;
                let remaining = self.remaining.entry(content_type).or_default();
                for half in plan::halves(whole).into_iter().flatten() {
                    self.queue.push_front((content_type, half));
                    remaining.push(half);
                }
                remaining.retain(|known| *known != whole);
                self.steps.remove(&reading.id);
                ListingStep::Ended
            }
            Some(_) if reading.pages >= PAGES_OF_NARROW_MAX => {
                ListingStep::Failed("the listing has more than 100,000 pages".to_owned())
            }
            // One too narrow for halves is read to its end.
            Some(next) if reading.visited.insert(next.as_str().to_owned()) => {
                reading.page = Some(next);
                reading.failures = 0;
                ListingStep::Further
            }
            Some(_) => ListingStep::Failed("the listing's next page is one it has shown already".to_owned()),
        })
    }

    async fn page_refused(
        &mut self,
        reading: &mut ListingCursor,
        error: &ApiError,
    ) -> Result<ListingStep, BackfillStop> {
        let content_type = reading.content_type;
        let why_closed = if matches!(error.action(), Action::StartSubscription) {
            match self.start(content_type).await {
                Ok(()) => return Ok(ListingStep::Failed(error.to_string())),
                Err(why) => why,
            }
        } else {
            match self.refused(content_type, &mut reading.window, error) {
                Refused::Again => return Ok(ListingStep::Failed(error.to_string())),
                Refused::Wait => {
                    reading.throttled += 1;
                    let pause = BACKFILL.after(reading.throttled);
                    self.pause(pause.max(error.not_before().unwrap_or_default())).await?;
                    return Ok(ListingStep::Further);
                }
                Refused::Gone => return Ok(ListingStep::Whole),
                Refused::Closed => format!("{}: {error} (hint: {})", error.slug(), error.hint()),
            }
        };
        self.give_up(reading.id, why_closed);
        self.closed.insert(content_type);
        Ok(ListingStep::Ended)
    }

    /// Starts a subscription that is off. `Ok`: it may be on now; the next listing shows whether it is.
    async fn start(&mut self, content_type: ContentType) -> Result<(), String> {
        let (count, on) = self.starts.get(&content_type).copied().unwrap_or_default();
        let restart = self.reader.subscriptions.start(content_type).await;
        let started = matches!(restart, Restart::Started { was_off: true });
        self.starts.insert(content_type, (count + 1, on || started));
        let off = format!("cannot list `{content_type}`: its subscription is off");
        match restart {
            Restart::Started { .. } | Restart::NotYet { .. } if count < STARTS_MAX => Ok(()),
            Restart::Started { .. } => Err(format!(
                "{off} again after it was started {STARTS_MAX} times (hint: ask the tenant's administrators who disables it)"
            )),
            Restart::NotYet { wait } => Err(format!(
                "{off}, and Microsoft allows a start every 15 minutes (hint: run the same command again in {} s)",
                wait.as_secs()
            )),
            Restart::Failed(error) => Err(format!("{}: {error} (hint: {})", error.slug(), error.hint())),
        }
    }

    fn listed(&mut self, id: u64) {
        if let Some(step) = self.steps.get_mut(&id) {
            step.listed = true;
        }
        self.complete(id);
    }

    /// Cuts off the part that Microsoft no longer lists and reports it; returns whether nothing is left.
    fn clip(&mut self, content_type: ContentType, window: &mut Window, oldest: Timestamp) -> bool {
        let oldest = plan::floor_to_second(oldest);
        if window.start < oldest {
            let end = oldest.min(window.end);
            self.gone.push(format!("{content_type} from {} to {end}", window.start));
            window.start = end;
        }
        window.start >= window.end
    }

    /// What an error of a listing means for its window.
    fn refused(&mut self, content_type: ContentType, window: &mut Window, error: &ApiError) -> Refused {
        match error.action() {
            Action::Throttled { .. } => Refused::Wait,
            Action::RecomputeWindow => {
                let oldest = plan::earliest_listable(self.reader.server.for_requests());
                if self.clip(content_type, window, oldest) { Refused::Gone } else { Refused::Again }
            }
            Action::ParkType | Action::SlowRetryTenant => Refused::Closed,
            _ => Refused::Again,
        }
    }

    async fn fetch(&mut self, step: u64, blob: BlobRef) -> Result<(), BackfillStop> {
        self.room().await?;
        self.progress.found.fetch_add(1, Ordering::Relaxed);
        if let Some(step) = self.steps.get_mut(&step) {
            step.open += 1;
        }
        let context = self.context.clone();
        self.tasks.spawn(async move { Settled { step, result: settle(context, blob).await } });
        Ok(())
    }

    /// Waits until another blob may be fetched.
    async fn room(&mut self) -> Result<(), BackfillStop> {
        while self.tasks.len() >= BLOBS_AT_ONCE {
            self.one_settled().await?;
        }
        if self.stop.is_cancelled() { Err(BackfillStop::Asked) } else { Ok(()) }
    }

    async fn one_settled(&mut self) -> Result<(), BackfillStop> {
        let done = tokio::select! {
            done = self.tasks.join_next() => done,
            () = self.stop.cancelled() => return Err(BackfillStop::Asked),
        };
        match done {
            Some(Ok(done)) => self.on_settled(done),
            // A task that panicked is a bug: its window stays on the list.
            Some(Err(error)) => {
                self.note_left(format!("internal: {error}"));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn on_settled(&mut self, done: Settled) -> Result<(), BackfillStop> {
        self.note_requests();
        let failed = match done.result {
            Ok(()) => {
                self.progress.blobs.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(SettleFailure::State(error)) => return Err(BackfillStop::State(error)),
            Err(SettleFailure::Stopped) => Some(None),
            Err(SettleFailure::Left(why)) => Some(Some(why)),
        };
        if let Some(step) = self.steps.get_mut(&done.step) {
            step.open = step.open.saturating_sub(1);
            step.failed |= failed.is_some();
        }
        if let Some(Some(why)) = failed {
            self.note_left(why);
        }
        self.complete(done.step);
        Ok(())
    }

    /// Takes a window out of what remains once all of it is read and settled.
    fn complete(&mut self, id: u64) {
        let Some(step) = self.steps.get(&id).filter(|step| step.listed && step.open == 0) else { return };
        if !step.failed {
            self.progress.read_secs.fetch_add(seconds(step.window), Ordering::Relaxed);
            if let Some(windows) = self.remaining.get_mut(&step.content_type) {
                windows.retain(|known| *known != step.window);
            }
            self.dirty = true;
        }
        self.steps.remove(&id);
    }

    fn give_up(&mut self, id: u64, why: String) {
        if let Some(step) = self.steps.get_mut(&id) {
            step.failed = true;
            step.listed = true;
        }
        self.note_left(why);
        self.complete(id);
    }

    fn note_left(&mut self, why: String) {
        tracing::warn!(source = %self.context.source, tenant = %self.context.tenant, "left by the back-fill: {why}");
        match self.left.len() {
            n if n < REASONS_MAX => self.left.push(why),
            REASONS_MAX => self.left.push("and more of the same".into()),
            _ => {}
        }
    }

    fn note_requests(&self) {
        self.progress.requests.store(self.context.api.sent_within_share(), Ordering::Relaxed);
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), BackfillStop> {
        tokio::select! {
            () = self.context.clock.sleep(pause) => Ok(()),
            () = self.stop.cancelled() => Err(BackfillStop::Asked),
        }
    }

    async fn save_if_due(&mut self) -> Result<(), BackfillStop> {
        let now = self.context.clock.monotonic();
        if self.dirty && now >= self.saved_at + SAVE_EVERY {
            self.dirty = false;
            self.saved_at = now;
            self.reader.save(Some(self.position())).await?;
        }
        Ok(())
    }

    /// What is stored: the intervals that remain, neighbours joined.
    fn position(&self) -> StoredBackfill {
        let mut stored = self.stored.clone();
        for (content_type, windows) in &self.remaining {
            stored.remaining.insert(content_type.as_str().to_owned(), joined(windows));
        }
        stored.remaining.retain(|_, intervals| !intervals.is_empty());
        stored
    }
}

/// How far the listing of a step has come.
struct ListingCursor {
    id: u64,
    content_type: ContentType,
    /// The window as it is in the queue.
    whole: Window,
    /// The part of it that can be listed.
    window: Window,
    /// `None`: the first page.
    page: Option<PageLink>,
    pages: u32,
    visited: HashSet<String>,
    /// Failures in a row.
    failures: u32,
    throttled: u32,
    nulls: u32,
}

impl ListingCursor {
    fn of(id: u64, content_type: ContentType, whole: Window) -> Self {
        Self {
            id,
            content_type,
            whole,
            window: whole,
            page: None,
            pages: 0,
            visited: HashSet::new(),
            failures: 0,
            throttled: 0,
            nulls: 0,
        }
    }
}

/// The next state of a listing after an answer.
enum ListingStep {
    /// It continues, with its next page or the same one.
    Further,
    /// Every page was read, or the rest has expired.
    Whole,
    /// It stops: given up, or replaced by its halves.
    Ended,
    /// It begins again after a pause, up to a number of attempts.
    Failed(String),
}

enum Refused {
    Again,
    Wait,
    Gone,
    Closed,
}

fn seconds(window: Window) -> u64 {
    window.end.duration_since(window.start).as_secs().unsigned_abs()
}

fn joined(windows: &[Window]) -> Vec<(Timestamp, Timestamp)> {
    let mut windows = windows.to_vec();
    windows.sort_by_key(|w| w.start);
    let mut out: Vec<(Timestamp, Timestamp)> = Vec::new();
    for window in windows {
        match out.last_mut() {
            Some(last) if last.1 >= window.start => last.1 = last.1.max(window.end),
            _ => out.push((window.start, window.end)),
        }
    }
    out
}

/// One blob, tried until it is settled or left.
pub(super) async fn settle(context: FetchContext, blob: BlobRef) -> Result<(), SettleFailure> {
    let key = Key::of_blob(&blob.id, blob.created);
    let mut job = Job::new(blob, key, false, Patience::Short);
    loop {
        let pause = match context.settle(job.clone(), Box::new(|_| ())).await {
            FetchOutcome::Settled => return Ok(()),
            FetchOutcome::Stopped => return Err(SettleFailure::Stopped),
            FetchOutcome::State(error) => return Err(SettleFailure::State(error)),
            FetchOutcome::Superseded => Duration::from_millis(10),
            FetchOutcome::Empty { .. } => {
                context.count_empty(job.blob.content_type, "fetch_blob");
                job.note_empty()
            }
            FetchOutcome::Failed { error: Some(error), .. } if matches!(error.action(), Action::Throttled { .. }) => {
                job.note_throttled(&error)
            }
            FetchOutcome::Failed { why, damaged, .. } => {
                job.note_failure(damaged);
                if job.failures >= BACKFILL_ATTEMPTS_MAX {
                    return Err(SettleFailure::Left(format!(
                        "blob `{}` of `{}`: {why}",
                        job.blob.id, job.blob.content_type
                    )));
                }
                BACKFILL.after(job.failures)
            }
        };
        tokio::select! {
            () = context.clock.sleep(pause) => {}
            () = context.stop.cancelled() => return Err(SettleFailure::Stopped),
        }
    }
}

/// A tenant's unfinished back-fill in words, for the commands that show the state.
pub fn describe(stored: &StoredBackfill) -> String {
    let span: i64 = stored.remaining.values().flatten().map(|(start, end)| end.duration_since(*start).as_secs()).sum();
    format!(
        "from {} to {}{}, {} h of content types' time left",
        stored.from,
        stored.to,
        if stored.again { ", again" } else { "" },
        span / 3600
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_must_have_a_length_and_lie_in_what_is_listed() {
        let now = t("2026-05-10T12:00:00Z");
        let begins = |from: &str, to: Option<&str>| range(t(from), to.map(t), now).map_err(|e| e.slug());
        assert_eq!(begins("2026-05-09T00:00:00Z", None), Ok((t("2026-05-09T00:00:00Z"), now)));
        assert_eq!(begins("2026-05-09T00:00:00Z", Some("2026-06-01T00:00:00Z")), Ok((t("2026-05-09T00:00:00Z"), now)));
        assert_eq!(begins("2026-05-09T00:00:00Z", Some("2026-05-08T00:00:00Z")), Err("backfill-range"));
        assert_eq!(begins("2026-05-11T00:00:00Z", None), Err("backfill-range"));
        assert_eq!(begins("2026-05-01T00:00:00Z", None), Err("backfill-too-old"));
        // A week ago, to the minute: begins where Microsoft's listing does.
        assert_eq!(begins("2026-05-03T12:00:00Z", None), Ok((t("2026-05-03T12:05:01Z"), now)));
        assert_eq!(begins("2026-05-03T12:00:00Z", Some("2026-05-03T12:01:00Z")), Err("backfill-too-old"));
        let error = range(t("2026-05-01T00:00:00Z"), None, now).unwrap_err();
        assert!(error.to_string().contains("2026-05-03T12:05:01Z"), "{error}");
    }

    #[test]
    fn neighbouring_intervals_are_stored_as_one() {
        let w = |a: &str, b: &str| Window { start: t(a), end: t(b) };
        let windows = [
            w("2026-05-02T00:00:00Z", "2026-05-02T04:00:00Z"),
            w("2026-05-01T20:00:00Z", "2026-05-02T00:00:00Z"),
            w("2026-05-01T00:00:00Z", "2026-05-01T04:00:00Z"),
        ];
        assert_eq!(
            joined(&windows),
            [
                (t("2026-05-01T00:00:00Z"), t("2026-05-01T04:00:00Z")),
                (t("2026-05-01T20:00:00Z"), t("2026-05-02T04:00:00Z"))
            ]
        );
    }
}
