//! The one loop of a tenant: what listers find is fetched, what is fetched is settled, what is settled moves the
//! position.
//!
//! This task alone decides what is fetched next and where `complete_until` stands; listers, fetches and the ledger's
//! writer are tasks of their own that report to it. It waits for nobody: whatever takes time is a task, so that a
//! slow host, store or listing holds up only itself.

use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::aside::SetAside;
use super::backfill;
use super::context::{FetchContext, NotNoticed, deliver_notice};
use super::error::SourceError;
use super::fetch::Reading;
use super::health::{Board, Level, Place};
use super::hold;
use super::job::{Job, Outcome, Patience};
use super::listing::{Found, Guidance, Lister, ListerSettings};
use super::opening::open_ledger;
use super::parts::TenantParts;
use super::release;
use super::report::{Left, LeftKind, ONCE_ATTEMPTS_MAX, Report};
use super::subscription::Subscriptions;
use super::tasks::Tasks;
use super::unsettled::{Blob, Unsettled};
use crate::api::Action;
use crate::backoff::Backoff;
use crate::checkpoint::claims::EventIndex;
use crate::checkpoint::format::Position;
use crate::checkpoint::key_set::{Key, Probe};
use crate::checkpoint::ledger::{Change, LedgerHandle, Opened};
use crate::checkpoint::server_clock::{JUMP, ServerClock};
use crate::host::StateError;
use crate::metrics;
use crate::model::{Actionable, BlobRef, ContentType, Timestamp, Window, counted};
use crate::normalise::GapNotice;
use crate::plan::{self, Bounds, Reach};

/// Bodies downloaded at once: at least.
const DOWNLOADS_MIN: usize = 4;
/// Bodies downloaded at once: at most.
const DOWNLOADS_MAX: usize = 32;
/// What a download may hold beside its batch: what it works on, and what has arrived meanwhile.
const DOWNLOAD_BYTES: u64 = 384 * 1024;
/// Blobs downloaded and not settled yet, with their batches under way.
const SETTLING_MAX: usize = 512;
/// Blobs known and not settled; beyond it listers read no more backlog.
const UNSETTLED_MAX: usize = 10_000;
/// How often gauges, alarms and gaps are looked at.
const TICK: Duration = Duration::from_secs(15);
/// Gauges are set this soon after a blob was found or settled.
const GAUGES_EVERY: Duration = Duration::from_secs(1);
/// Positions are written at most this often while blobs settle.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// Between two requests for what subscriptions there are.
const ASK_AGAIN: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));
/// The same for a single pass, which somebody waits for; likewise below.
const ASK_AGAIN_ONCE: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(10));
/// Before a blob that could not be read is asked for again.
const BLOB_AGAIN: Backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(300));
const BLOB_AGAIN_ONCE: Backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(10));
/// "Content does not exist", "expired" and 404 are asked again no sooner than this.
const SLOW_DELAY_MIN: Duration = Duration::from_secs(60);
/// Whatever a blob holds is shipped when it has no longer than this to live.
const LAST_CHANCE: SignedDuration = SignedDuration::from_hours(1);
/// An unsettled blob this near its expiry is an alarm.
const EXPIRY_ALARM: SignedDuration = SignedDuration::from_hours(24);
/// With `--once`: so many throttled fetches in a row without one that worked, and the rest is left.
const ONCE_THROTTLED_MAX: u32 = 500;
/// With `--once`: a blob that was throttled this often is left.
const ONCE_BLOB_THROTTLED_MAX: u32 = 20;
/// A stop waits this long for what is in flight.
const STOP_GRACE: Duration = Duration::from_secs(8);
/// Keys past their time are forgotten this often.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// Further apart than this, the two clocks do not agree well enough to evict at once.
const SKEW_TO_EXPIRE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Failed fetches are a metric, and one line in this time.
const FAILURE_LINE_EVERY: Duration = Duration::from_secs(10);
/// Windows remembered as read, per stream, before they are merged.
const READ_WINDOWS_MAX: usize = 512;

struct Stream {
    position: Position,
    /// `position` differs from what was handed to the ledger.
    dirty: bool,
    /// It differs by time and empty listings alone.
    drifted: bool,
    settled: EventIndex,
    read: Vec<Window>,
    unsettled: Unsettled,
    guidance: watch::Sender<Guidance>,
    declaring: bool,
    /// The gauge of the next expiry has a value.
    expiry_shown: bool,
    new_content_at: Duration,
    newest: Option<Timestamp>,
    ended: Option<Option<Left>>,
    /// Since when it cannot be listed for want of a permission.
    parked: Option<Duration>,
}

struct Ready(Job);

impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Ready {}
impl PartialOrd for Ready {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Ready {
    /// Newest first: today's events are not starved by a back-fill.
    fn cmp(&self, other: &Self) -> Order {
        (self.0.blob.created, self.0.key).cmp(&(other.0.blob.created, other.0.key))
    }
}

enum Done {
    Blob { job: Box<Job>, outcome: Outcome },
    Lost { content_type: ContentType, key: Key, result: Result<(), NotNoticed> },
    Gap { content_type: ContentType, window: Window, reason: GapReason, result: Result<(), NotNoticed> },
    Positions(Result<(), StateError>),
    Aside(Result<(), StateError>),
    Held(Result<(), StateError>),
}

/// Why an interval can never be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// We did not run while Microsoft kept it.
    Outage,
    /// The subscription was off.
    SubscriptionDisabled,
    /// One blob expired before it could be read.
    BlobExpired,
    /// An operator moved the position forward.
    PositionMoved,
}

impl GapReason {
    /// The word in records and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::SubscriptionDisabled => "subscription_disabled",
            Self::BlobExpired => "blob_expired",
            Self::PositionMoved => "position_moved",
        }
    }
}

/// Downloads under way.
#[derive(Default)]
struct Downloads {
    active: AtomicUsize,
    times: Mutex<Times>,
    ended: Notify,
}

/// Where the time of downloads goes, in seconds.
#[derive(Debug, Default)]
struct Times {
    /// A moving average.
    worked: f64,
    /// The shortest wait among the last downloads, and among as many before them.
    shortest: f64,
    shortest_before: f64,
    /// How many the former knows.
    count: u32,
}

impl Times {
    /// How many downloads the shortest wait is taken of.
    const WINDOW: u32 = 16;

    fn note(&mut self, reading: Reading) {
        let (waited, worked) = (reading.waited.as_secs_f64(), reading.worked.as_secs_f64());
        self.worked = if self.count == 0 { worked } else { self.worked * 0.875 + worked * 0.125 };
        if self.count.is_multiple_of(Self::WINDOW) {
            self.shortest_before = if self.count == 0 { waited } else { self.shortest };
            self.shortest = waited;
        }
        self.shortest = self.shortest.min(waited);
        self.count = self.count.saturating_add(1);
    }

    /// How many downloads may run: no more than keep the processors busy while others wait for bytes. The shortest wait
    /// counts for that: where processors are short, most of the average is waiting for one of them. The request quota
    /// has a limiter of its own, and lets many go at once after a quiet minute.
    fn allowed(&self, processors: usize) -> usize {
        let shortest = self.shortest.min(self.shortest_before);
        let busy = processors as f64 * (1.0 + shortest / self.worked.max(1e-6)) + 2.0;
        // The first downloads also open the connections: they do not tell how long others will wait.
        let known = DOWNLOADS_MIN + self.count as usize / 4;
        (busy.ceil() as usize).min(known).clamp(DOWNLOADS_MIN, DOWNLOADS_MAX)
    }
}

impl Downloads {
    fn end(&self, reading: Reading) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        self.times.lock().unwrap_or_else(PoisonError::into_inner).note(reading);
        self.ended.notify_one();
    }

    fn allowed(&self, processors: usize) -> usize {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).allowed(processors)
    }
}

/// Runs one tenant until `stop`, or with `once` until everything listed is settled.
///
/// # Errors
/// When the state cannot be opened or written, or (with `once`) signing in or listing subscriptions fails.
pub async fn run(mut parts: Box<TenantParts>, stop: CancellationToken) -> Result<Report, SourceError> {
    let board = Board::new(parts.source.clone(), parts.tenant.clone(), parts.host.clone(), parts.clock.clone());
    // What runs once and what is handed on is boxed: a tenant's task lives for months, a process may have a thousand, and
    // a future keeps room for what it is given in each place where it was.
    let opened = Box::pin(open_ledger(&parts, &board, &stop)).await?;
    let Some(opened) = opened else { return Ok(Report::default()) };
    board.publish();
    let (Opened { ledger, handle, tenant, positions, tracked, aside, events, blobs }, hold) = *opened;
    parts.server.reset(ServerClock::not_before(tenant.server_time));
    let mut writer = tokio::spawn(tracing::Instrument::in_current_span(ledger.run()));
    let result = async {
        let context = FetchContext::new(&parts, &board, handle.clone(), events, hold, &stop);
        let of = (parts.source.clone(), parts.tenant.clone(), parts.content_types.clone());
        let set_aside =
            SetAside::new(of, context.courier.clone(), handle.clone(), context.store.clone(), context.stop.clone());
        let asked = parts.retries.take();
        // Before anything of Microsoft's is known: what is set aside needs none of it.
        let retries = Box::pin(set_aside.serve(asked));
        let to_offer = (aside > 0).then(|| Box::new(set_aside.clone()));
        let run = std::pin::pin!(async {
            let enabled = Box::pin(subscriptions_on(&parts, &board, &stop)).await?;
            let Some(enabled) = enabled else { return Ok(Report::default()) };
            let subscriptions = Subscriptions::new(
                parts.api.clone(),
                parts.server.clone(),
                parts.clock.clone(),
                handle.clone(),
                tenant,
            );
            let reader = Box::new(backfill::Reader::new(&parts, &context, subscriptions.clone()));
            let backfills = std::pin::pin!(backfill::serve(parts.desk.take(), reader));
            let tenant_loop = Box::new(Loop::new(parts, board, context, subscriptions, handle, positions, blobs, stop));
            tokio::select! {
                report = tenant_loop.run(&mut writer, enabled, tracked, to_offer) => report,
                () = backfills => Err(SourceError::Internal("the desk for back-fills closed".into())),
            }
        });
        tokio::select! {
            report = run => report,
            () = retries => Err(SourceError::Internal("nobody offers what was set aside".into())),
        }
    }
    .await;
    // Every handle is gone by now: the writer ends when it has written what it was given.
    if !writer.is_finished() {
        let _ = tokio::time::timeout(STOP_GRACE, &mut writer).await;
        writer.abort();
    }
    result
}

/// Asks which subscriptions are on, until Microsoft answers (`None`: stopped).
async fn subscriptions_on(
    parts: &TenantParts,
    board: &Board,
    stop: &CancellationToken,
) -> Result<Option<Vec<ContentType>>, SourceError> {
    let mut failures = 0;
    loop {
        let listed = tokio::select! {
            listed = parts.api.list_subscriptions() => listed,
            () = stop.cancelled() => return Ok(None),
        };
        let error = match listed {
            Ok(list) => {
                board.clear(Place::Tenant);
                // Microsoft's own sample has an entry without a status: a listing will tell.
                let on = list.into_iter().filter(|s| s.is_enabled() != Some(false));
                return Ok(Some(on.filter_map(|s| s.content_type).collect()));
            }
            Err(error) => error,
        };
        failures += 1;
        let slow = matches!(error.action(), Action::SlowRetryTenant | Action::ParkType);
        if slow {
            board.report(Place::Tenant, Level::Failed, format!("{}: {error}", error.slug()), &error.hint());
        } else if failures >= 3 {
            board.report(Place::Tenant, Level::Degraded, format!("{}: {error}", error.slug()), &error.hint());
        }
        if parts.once && (slow || failures >= ONCE_ATTEMPTS_MAX) {
            return Err(SourceError::Api { source: Box::new(error) });
        }
        let pause = if slow {
            parts.poll_interval.max(Duration::from_secs(60))
        } else {
            if parts.once { ASK_AGAIN_ONCE } else { ASK_AGAIN }.after(failures)
        };
        tokio::select! {
            () = parts.clock.sleep(pause) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

struct Loop {
    parts: Box<TenantParts>,
    board: Board,
    context: FetchContext,
    subscriptions: Subscriptions,
    ledger: LedgerHandle,
    /// Boxed, since a map has room for eleven from the start.
    streams: BTreeMap<ContentType, Box<Stream>>,
    ready: BinaryHeap<Ready>,
    retry: BTreeMap<(Duration, u64), Job>,
    retries: u64,
    tasks: Tasks<Done>,
    listers: Tasks<()>,
    downloads: Arc<Downloads>,
    processors: usize,
    /// Boxed, since a channel has room for 32 from the start.
    found: mpsc::Receiver<Box<Found>>,
    finder: mpsc::Sender<Box<Found>>,
    waiting: Vec<(ContentType, bool)>,
    writing_positions: bool,
    /// A turn of the hold is under way; after one that failed, the next waits until then.
    tending: bool,
    tend_at: Duration,
    positions_at: Duration,
    tick_at: Duration,
    /// When the gauges may be set again, and whether something has changed that they show.
    gauges_at: Duration,
    gauges_stale: bool,
    expire_at: Duration,
    started_at: Duration,
    throttled: u32,
    failures_unsaid: u32,
    failure_line_at: Duration,
    stop: CancellationToken,
}

impl Loop {
    #[allow(clippy::too_many_arguments)]
    fn new(
        parts: Box<TenantParts>,
        board: Board,
        context: FetchContext,
        subscriptions: Subscriptions,
        ledger: LedgerHandle,
        mut positions: BTreeMap<ContentType, Position>,
        mut blobs: BTreeMap<ContentType, EventIndex>,
        stop: CancellationToken,
    ) -> Self {
        let now = parts.clock.monotonic();
        let server_now = parts.server.for_requests();
        // A very first date cannot be checked against an earlier one. Where it contradicts this machine's, the earlier
        // of the two is taken: an origin too late would lose events, one too early costs some listings.
        let machine_now = parts.clock.now();
        let contradicts = server_now.duration_since(machine_now).abs() > JUMP;
        let first_now = if contradicts { server_now.min(machine_now) } else { server_now };
        let mut streams = BTreeMap::new();
        for &content_type in &parts.content_types {
            let first = plan::first_origin(first_now, parts.backfill);
            let stored = positions.remove(&content_type);
            let dirty = stored.is_none();
            let mut position = stored.unwrap_or_else(|| Position::first(first));
            if position.last_listing.is_none() && position.origin < plan::earliest_listable(server_now) {
                // Never listed before: a first run, not a gap.
                position.origin = first;
            }
            let Some(settled) = blobs.remove(&content_type) else { continue };
            let guidance = watch::Sender::new(guidance_of(&position, true));
            let stream = Stream {
                position,
                dirty,
                drifted: false,
                settled,
                read: Vec::new(),
                unsettled: Unsettled::default(),
                guidance,
                declaring: false,
                expiry_shown: false,
                new_content_at: now,
                newest: None,
                ended: None,
                parked: None,
            };
            streams.insert(content_type, Box::new(stream));
        }
        let (finder, found) = mpsc::channel(64);
        Self {
            parts,
            board,
            context,
            subscriptions,
            ledger,
            streams,
            ready: BinaryHeap::new(),
            retry: BTreeMap::new(),
            retries: 0,
            tasks: Tasks::new(),
            listers: Tasks::new(),
            downloads: Arc::default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            found,
            finder,
            waiting: Vec::new(),
            writing_positions: false,
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
            stop,
        }
    }

    async fn run(
        mut self: Box<Self>,
        writer: &mut tokio::task::JoinHandle<Result<(), StateError>>,
        enabled: Vec<ContentType>,
        tracked: Vec<BlobRef>,
        to_offer: Option<Box<SetAside>>,
    ) -> Result<Report, SourceError> {
        if let Some(set_aside) = to_offer {
            self.tasks.spawn(async move {
                Done::Aside(match set_aside.offer_at_start().await {
                    Err(StateError::Unavailable(why)) => {
                        tracing::warn!("state-not-read: what is set aside is not offered at this start: {why}");
                        Ok(())
                    }
                    result => result,
                })
            });
        }
        for blob in tracked {
            self.adopt(blob);
        }
        self.check_gaps();
        if self.parts.hold.dropping && !self.streams.contains_key(&ContentType::Dlp) {
            self.say_blind("it is not in `content_types`", "");
        }
        let mut types: Vec<ContentType> = self.streams.keys().copied().collect();
        types.sort_by_key(|t| self.rank(*t));
        for content_type in types {
            self.waiting.push((content_type, enabled.contains(&content_type)));
        }
        if !self.parts.once {
            for (content_type, on) in std::mem::take(&mut self.waiting) {
                self.start_lister(content_type, on);
            }
        }
        let ended = loop {
            if self.parts.once {
                self.start_next_lister();
                if self.is_finished() {
                    break Ok(());
                }
            }
            self.start_fetches();
            self.write_positions(false);
            self.tend_hold();
            let due = self.next_due();
            let now = self.parts.clock.monotonic();
            tokio::select! {
                found = self.found.recv() => if let Some(found) = found { self.on_found(*found) },
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => if let Err(error) = self.on_done(done) { break Err(error) },
                    // A task that panicked is a bug; its blob is unsettled and will be listed again after a restart.
                    Err(error) => break Err(SourceError::Internal(error.to_string())),
                },
                () = self.downloads.ended.notified() => {}
                () = self.context.hold.woken() => {}
                () = self.parts.clock.sleep(due.saturating_sub(now)) => self.on_time().await,
                ended = &mut *writer => break Err(match ended {
                    Ok(Err(source)) => SourceError::State { tenant: self.parts.tenant.clone(), source },
                    Ok(Ok(())) => SourceError::Internal("the ledger ended early".into()),
                    Err(error) => SourceError::Internal(error.to_string()),
                }),
                () = self.stop.cancelled() => break Ok(()),
            }
        };
        Box::pin(self.wind_up(ended.is_ok())).await;
        ended.map(|()| self.report())
    }

    /// Ends listers and downloads, waits a while for what is in flight, writes the last positions.
    async fn wind_up(&mut self, state_is_good: bool) {
        self.context.stop.cancel();
        self.listers.shutdown().await;
        if state_is_good {
            let grace = tokio::time::sleep(STOP_GRACE);
            tokio::pin!(grace);
            loop {
                tokio::select! {
                    done = self.tasks.join_next() => match done {
                        Some(Ok(done)) => if self.on_done(done).is_err() { break },
                        Some(Err(_)) => {}
                        None => {
                            if self.streams.values().any(|s| s.dirty || s.drifted) {
                                self.write_positions(true);
                                continue;
                            }
                            break;
                        }
                    },
                    () = &mut grace => {
                        tracing::warn!(tenant = %self.parts.tenant, batches = self.tasks.len(), "stopped with records unconfirmed by the host: they are fetched again at the next start");
                        break;
                    }
                }
            }
            let tenant = self.subscriptions.tenant_state().await;
            let change = Change { tenant: Some(tenant), ..Change::default() };
            let _ = tokio::time::timeout(Duration::from_secs(1), self.ledger.commit(change)).await;
        }
        self.tasks.shutdown().await;
    }

    fn report(&self) -> Report {
        let mut left: Vec<Left> = Vec::new();
        for (content_type, stream) in &self.streams {
            left.extend(stream.ended.iter().flatten().cloned());
            let given_up = stream.unsettled.given_up();
            if given_up > 0 {
                left.push(Left {
                    why: format!(
                        "{} of `{content_type}` of tenant `{}` could not be read after {ONCE_ATTEMPTS_MAX} attempts each; the next run tries again",
                        counted(given_up as u64, "blob"),
                        self.parts.tenant
                    ),
                    kind: LeftKind::Passing,
                });
            }
        }
        let (records, _) = self.context.hold.held();
        if records > 0 && self.parts.once {
            left.push(Left {
                why: format!(
                    "{records} routine reads of tenant `{}` are on hold: the next run ships those that data loss prevention flags and drops the others, once `DLP.All` and `Audit.General` are complete {} past them",
                    self.parts.tenant, self.parts.hold.hold
                ),
                kind: LeftKind::Held,
            });
        }
        Report { left }
    }

    fn start_lister(&mut self, content_type: ContentType, subscribed: bool) {
        let Some(stream) = self.streams.get(&content_type) else { return };
        let lister = Box::new(Lister {
            tenant: self.parts.tenant.clone(),
            content_type,
            api: self.parts.api.clone(),
            clock: self.parts.clock.clone(),
            server: self.parts.server.clone(),
            board: self.board.clone(),
            subscriptions: self.subscriptions.clone(),
            settled: stream.settled.clone(),
            store: self.context.store.clone(),
            settings: ListerSettings {
                poll_interval: self.parts.poll_interval,
                overlap: self.parts.overlap,
                once: self.parts.once,
            },
            found: self.finder.clone(),
            guidance: stream.guidance.subscribe(),
            stop: self.context.stop.clone(),
        });
        self.listers.spawn(lister.run(subscribed));
    }

    /// With `once`: DLP alone until it is done, so that a match is known before the reads it flags; where routine reads
    /// are dropped then what else they wait for, so that few are put on hold; then all others.
    fn start_next_lister(&mut self) {
        let Some(rank) = self.waiting.first().map(|(t, _)| self.rank(*t)) else { return };
        let before_done = self.streams.iter().all(|(t, stream)| self.rank(*t) >= rank || stream.is_finished());
        if before_done {
            for (content_type, on) in std::mem::take(&mut self.waiting) {
                if self.rank(content_type) == rank {
                    self.start_lister(content_type, on);
                } else {
                    self.waiting.push((content_type, on));
                }
            }
        }
    }

    fn rank(&self, content_type: ContentType) -> u8 {
        match content_type {
            ContentType::Dlp => 0,
            ContentType::General if self.parts.hold.dropping => 1,
            _ => 2,
        }
    }

    /// Tells the hold how far matches are known, and starts a turn of it when it has something to do.
    fn tend_hold(&mut self) {
        let now = self.parts.server.trusted();
        let at = self.parts.clock.monotonic();
        let hold = self.parts.hold.hold.unsigned_abs();
        let waited: Vec<_> = [ContentType::Dlp, ContentType::General]
            .iter()
            .filter_map(|content_type| self.streams.get(content_type))
            .map(|stream| hold::Waited {
                from: stream.position.origin,
                until: stream.position.complete_until,
                // A type that was read before may be refused for a moment: what waits for it is not dropped for that.
                parked: stream.parked.is_some_and(|since| match stream.position.complete_until {
                    None => true,
                    // A pass is over before a refusal could last; how long ago the type was listed must say it.
                    Some(until) if self.parts.once => {
                        let listed = stream.position.last_listing.map_or(until, |listed| listed.max(until));
                        now.is_some_and(|now| now.duration_since(listed) > hold::UNLISTED_TO_PASS)
                    }
                    Some(_) => since + hold <= at,
                }),
            })
            .collect();
        self.context.hold.set_horizon(hold::horizon(&waited, now));
        if self.tending || self.parts.clock.monotonic() < self.tend_at || !self.context.hold.has_work(now) {
            return;
        }
        self.tending = true;
        let context = self.context.clone();
        self.tasks.spawn(async move { Done::Held(release::turn(&context, now).await) });
    }

    fn say_blind(&self, why: &str, when: &str) {
        tracing::warn!(
            tenant = %self.parts.tenant,
            "dlp-blind: `DLP.All` is not read ({why}): {when}routine reads are dropped without knowing whether data loss prevention flagged them (hint: grant `ActivityFeed.ReadDlp` and list `DLP.All`, or set `drop_routine = false`)"
        );
    }

    fn is_finished(&self) -> bool {
        self.waiting.is_empty()
            && self.tasks.is_empty()
            && self.streams.values().all(|s| s.is_finished() && !s.dirty)
            && !self.context.hold.has_work(self.parts.server.trusted())
    }

    fn next_due(&self) -> Duration {
        let retry = self.retry.keys().next().map(|(due, _)| *due);
        let positions = self.positions_due().filter(|_| !self.writing_positions);
        let gauges = self.gauges_stale.then_some(self.gauges_at);
        [Some(self.tick_at), retry, positions, gauges].into_iter().flatten().min().unwrap_or(self.tick_at)
    }

    async fn on_time(&mut self) {
        let now = self.parts.clock.monotonic();
        while let Some(entry) = self.retry.first_entry().filter(|e| e.key().0 <= now) {
            self.ready.push(Ready(entry.remove()));
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            self.check_gaps();
            self.check_clock();
            self.check_blobs();
            for content_type in self.types() {
                self.advance(content_type);
            }
            self.context.hold.tick();
            self.gauges(now);
        } else if self.gauges_stale && now >= self.gauges_at {
            self.gauges(now);
        }
        // At the first look, too: a collector that is started every few minutes with `--once` must not keep keys for
        // ever. A first date that contradicts this machine's by a day has to stand for an hour before it may evict.
        let agrees = self.parts.server.skew().is_some_and(|skew| skew.abs() < SKEW_TO_EXPIRE_MAX);
        let may_expire = agrees || now >= self.started_at + EXPIRE_EVERY;
        if now >= self.expire_at && may_expire && self.parts.server.trusted().is_some() {
            self.expire_at = now + EXPIRE_EVERY;
            let change = Change {
                tenant: Some(self.subscriptions.tenant_state().await),
                expire_at: self.parts.server.trusted(),
                ..Change::default()
            };
            let ledger = self.ledger.clone();
            self.tasks.spawn(async move { Done::Aside(ledger.commit(change).await) });
        }
    }

    fn types(&self) -> Vec<ContentType> {
        self.streams.keys().copied().collect()
    }

    // ---- finding ----

    fn on_found(&mut self, found: Found) {
        match found {
            Found::Page { content_type, blobs, read } => {
                for blob in blobs {
                    self.on_blob(blob);
                }
                // What was read while the clock is in doubt, or to an end that lies ahead, vouches for nothing there.
                let read = read.zip(self.parts.server.trusted());
                let read = read.map(|(window, now)| Window { end: window.end.min(now), ..window });
                let read = read.filter(|window| window.start < window.end);
                if let Some(stream) = self.streams.get_mut(&content_type) {
                    stream.parked = None;
                }
                if let (Some(window), Some(stream)) = (read, self.streams.get_mut(&content_type)) {
                    stream.note_read(window);
                    self.advance(content_type);
                }
                self.guide(content_type);
            }
            Found::PassDone { content_type, reach, at } => {
                // Planned by a clock in doubt, it may have looked at other days than it was to.
                let trusted = self.parts.server.trusted().is_some();
                if let Some(stream) = self.streams.get_mut(&content_type).filter(|_| trusted) {
                    stream.position.day_listed = Some(at);
                    if reach == Reach::Week {
                        stream.position.week_listed = Some(at);
                    }
                    stream.dirty = true;
                }
                self.guide(content_type);
            }
            Found::Listed { content_type, at } => {
                let Some(stream) = self.streams.get_mut(&content_type) else { return };
                if let Some(from) = stream.position.disabled_since.filter(|_| !stream.declaring) {
                    let window = Window { start: from, end: at };
                    self.declare(content_type, window, GapReason::SubscriptionDisabled);
                    return;
                }
                // Written with the next position; a listing alone is no reason to write.
                stream.position.last_listing = stream.position.last_listing.max(Some(at));
            }
            Found::Disabled { content_type } => {
                if let Some(stream) = self.streams.get_mut(&content_type)
                    && stream.position.disabled_since.is_none()
                    && stream.position.last_listing.is_some()
                {
                    stream.position.disabled_since = stream.position.last_listing;
                    stream.dirty = true;
                }
            }
            Found::NotDisabled { content_type } => {
                if let Some(stream) = self.streams.get_mut(&content_type)
                    && !stream.declaring
                    && stream.position.disabled_since.take().is_some()
                {
                    stream.dirty = true;
                }
            }
            Found::Parked { content_type } => {
                let Some(stream) = self.streams.get_mut(&content_type) else { return };
                let was = stream.parked.is_some();
                stream.parked.get_or_insert_with(|| self.parts.clock.monotonic());
                if !was && content_type == ContentType::Dlp && self.parts.hold.dropping {
                    let was_read = stream.position.complete_until.is_some();
                    self.say_blind("its permission is missing", if was_read { "if that lasts " } else { "" });
                }
            }
            Found::Ended { content_type, left } => {
                if let Some(left) = &left {
                    tracing::error!(tenant = %self.parts.tenant, %content_type, "{}", left.why);
                }
                if let Some(stream) = self.streams.get_mut(&content_type) {
                    stream.ended = Some(left);
                }
            }
        }
    }

    fn on_blob(&mut self, blob: BlobRef) {
        let Some(stream) = self.streams.get_mut(&blob.content_type) else { return };
        let key = Key::of_blob(&blob.id, blob.created);
        if stream.unsettled.contains(key) {
            return;
        }
        // The lister has asked the disk. Only a blob settled since then is left to find, and its key is still in memory;
        // were it not, the blob would be fetched again and its events found to be delivered.
        if matches!(stream.settled.with_keys(|set| set.probe(key)), Probe::Present) {
            self.count(metrics::DUPLICATES_TOTAL, blob.content_type, "level", "blob");
            return;
        }
        stream.new_content_at = self.parts.clock.monotonic();
        let late = stream.position.complete_until.is_some_and(|complete| blob.created < complete);
        stream.unsettled.insert(
            key,
            Blob {
                created: blob.created,
                expires: blob.expires,
                persisted: false,
                holds: !late,
                failures: 0,
                given_up: false,
            },
        );
        self.gauges_stale = true;
        self.count(metrics::BLOBS_TOTAL, blob.content_type, "state", "listed");
        let patience = self.patience();
        self.ready.push(Ready(Job::new(blob, key, late, patience)));
    }

    /// Takes over a blob an earlier run tracked.
    fn adopt(&mut self, blob: BlobRef) {
        let Some(stream) = self.streams.get_mut(&blob.content_type) else { return };
        let key = Key::of_blob(&blob.id, blob.created);
        let late = stream.position.complete_until.is_some_and(|complete| blob.created < complete);
        stream.unsettled.insert(
            key,
            Blob {
                created: blob.created,
                expires: blob.expires,
                persisted: true,
                holds: !late,
                failures: 0,
                given_up: false,
            },
        );
        let mut job = Job::new(blob, key, false, self.patience());
        job.tracked = true;
        self.ready.push(Ready(job));
    }

    fn guide(&self, content_type: ContentType) {
        let unsettled: usize = self.streams.values().map(|s| s.unsettled.wanted()).sum();
        let room = unsettled < UNSETTLED_MAX;
        for (other, stream) in &self.streams {
            if *other == content_type || stream.guidance.borrow().room != room {
                let guidance = guidance_of(&stream.position, room);
                stream.guidance.send_if_modified(|known| {
                    let changed = *known != guidance;
                    *known = guidance;
                    changed
                });
            }
        }
    }

    // ---- fetching ----

    fn start_fetches(&mut self) {
        let allowed = self.downloads.allowed(self.processors);
        let allowed = allowed.min(self.room_for_downloads());
        while self.downloads.active.load(Ordering::Relaxed) < allowed && self.tasks.len() < SETTLING_MAX {
            let Some(Ready(job)) = self.ready.pop() else { return };
            debug_assert!(self.downloads.active.load(Ordering::Relaxed) < DOWNLOADS_MAX, "CK-5: too many downloads");
            debug_assert!(!self.is_settled(&job), "CK-2: a settled blob is fetched again");
            self.downloads.active.fetch_add(1, Ordering::Relaxed);
            let guard = DownloadGuard(Some(self.downloads.clone()));
            let context = self.context.clone();
            self.tasks.spawn(async move {
                let outcome = context.settle(job.clone(), Box::new(move |reading| guard.end(reading))).await;
                Done::Blob { job: Box::new(job), outcome }
            });
        }
    }

    /// How many downloads fit beside the batches under way. When the host is slower than the network, more of them would
    /// only hold more; half the budget keeps a host busy until the next batches come, and what is in flight leaves the
    /// fewer downloads the nearer it comes to that.
    fn room_for_downloads(&self) -> usize {
        let budget = &self.context.budget;
        let (used, total, free) = (budget.used(), budget.total(), budget.free());
        let taken_by_others = free < total - used && free < DOWNLOADS_MIN as u64 * DOWNLOAD_BYTES;
        if used > total / 2 || taken_by_others {
            // What is in flight ends by itself; one goes on in case all of it is somebody else's.
            return 1;
        }
        let room = free.min(total / 2 - used) / DOWNLOAD_BYTES;
        usize::try_from(room).unwrap_or(DOWNLOADS_MAX).max(DOWNLOADS_MIN)
    }

    fn is_settled(&self, job: &Job) -> bool {
        self.streams
            .get(&job.blob.content_type)
            .is_some_and(|stream| stream.settled.with_keys(|set| set.probe(job.key)) == Probe::Present)
    }

    fn on_done(&mut self, done: Done) -> Result<(), SourceError> {
        let state = |source| SourceError::State { tenant: self.parts.tenant.clone(), source };
        match done {
            Done::Blob { job, outcome } => match outcome {
                Outcome::Settled => {
                    self.throttled = 0;
                    self.count(metrics::BLOBS_TOTAL, job.blob.content_type, "state", "settled");
                    self.settled(job.blob.content_type, job.key, Some(job.blob.created));
                }
                Outcome::Failed { why, error, damaged } => self.on_failed(*job, &why, error, damaged),
                Outcome::Empty { why } => self.on_empty(*job, &why),
                Outcome::Superseded => self.ready.push(Ready(*job)),
                Outcome::Stopped => {}
                Outcome::State(error) => return Err(state(error)),
            },
            Done::Lost { result: Err(NotNoticed::Stopped), .. }
            | Done::Gap { result: Err(NotNoticed::Stopped), .. } => {}
            Done::Lost { result: Err(NotNoticed::State(error)), .. }
            | Done::Gap { result: Err(NotNoticed::State(error)), .. } => return Err(state(error)),
            Done::Lost { content_type, key, result: Ok(()) } => self.settled(content_type, key, None),
            Done::Gap { content_type, window, reason, result: Ok(()) } => self.declared(content_type, window, reason),
            Done::Positions(result) => {
                self.writing_positions = false;
                result.map_err(state)?;
            }
            Done::Aside(result) => result.map_err(state)?,
            Done::Held(result) => {
                self.tending = false;
                match result {
                    Err(error @ StateError::Unavailable(_)) => {
                        tracing::warn!(tenant = %self.parts.tenant, "state-not-read: what is on hold stays there for now: {error}");
                        self.tend_at = self.parts.clock.monotonic() + TICK;
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
        if let Some(stream) = self.streams.get_mut(&content_type) {
            // What a settled blob moves is written soon.
            stream.dirty |= stream.drifted;
        }
        self.guide(content_type);
    }

    fn on_failed(
        &mut self,
        mut job: Job,
        why: &str,
        error: Option<crate::api::ApiError>,
        damaged: Option<blake3::Hash>,
    ) {
        let content_type = job.blob.content_type;
        let action = error.as_ref().map(|e| e.action());
        let now = self.parts.clock.monotonic();
        let once = self.parts.once;
        if let (Some(Action::Throttled { .. }), Some(error)) = (action, &error) {
            self.throttled += 1;
            let pause = job.note_throttled(error);
            if !(once && (self.throttled > ONCE_THROTTLED_MAX || job.throttled > ONCE_BLOB_THROTTLED_MAX)) {
                self.requeue(job, now + pause);
                return;
            }
        }
        job.note_failure(damaged);
        self.count(metrics::BLOBS_TOTAL, content_type, "state", "failed");
        let kind = error.as_ref().map_or("blob-unreadable", |e| e.slug());
        ::metrics::counter!(metrics::ERRORS_TOTAL, "tenant" => self.parts.tenant.to_string(), "kind" => kind)
            .increment(1);
        self.failures_unsaid += 1;
        if now >= self.failure_line_at {
            tracing::warn!(
                tenant = %self.parts.tenant, %content_type, content_id = %job.blob.id, attempts = job.failures,
                failures = self.failures_unsaid, "{kind}: a blob could not be read, it is tried again: {why}"
            );
            self.failures_unsaid = 0;
            self.failure_line_at = now + FAILURE_LINE_EVERY;
        }
        if let (Some(error), Some(Action::SlowRetryTenant)) = (&error, &action) {
            self.board.report(Place::Tenant, Level::Failed, format!("{}: {error}", error.slug()), &error.hint());
        }
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        let known = stream.unsettled.update(job.key, |blob| {
            blob.failures = job.failures;
            blob.persisted = job.tracked;
        });
        if !known {
            return;
        }
        if let Some(server_now) = self.parts.server.trusted() {
            if server_now >= job.blob.expires {
                self.lost(job, why);
                return;
            }
            job.last_chance = job.blob.expires.duration_since(server_now) <= LAST_CHANCE;
        }
        let throttled = self.throttled > ONCE_THROTTLED_MAX || job.throttled > ONCE_BLOB_THROTTLED_MAX;
        if once && (job.failures >= ONCE_ATTEMPTS_MAX || throttled) {
            stream.unsettled.update(job.key, |blob| blob.given_up = true);
            self.guide(content_type);
            return;
        }
        // The next attempt first writes the blob to the state, so that it outlives the listing it was found in.
        job.track_first = !job.tracked;
        job.tracked = true;
        let delay = if once { BLOB_AGAIN_ONCE } else { BLOB_AGAIN }.after(job.failures);
        let slow =
            !once && matches!(action, Some(Action::RetryBlobSlowly | Action::SlowRetryTenant | Action::ParkType));
        let named = error.as_ref().and_then(|error| error.not_before()).unwrap_or_default();
        self.requeue(job, now + if slow { delay.max(SLOW_DELAY_MIN) } else { delay }.max(named));
    }

    /// How long an answer without events is doubted: a single pass is waited for.
    const fn patience(&self) -> Patience {
        if self.parts.once { Patience::Short } else { Patience::Long }
    }

    /// A blob that was listed was answered with no event: asked for again after a while, and believed when the answer
    /// stays the same.
    fn on_empty(&mut self, mut job: Job, why: &str) {
        let content_type = job.blob.content_type;
        let now = self.parts.clock.monotonic();
        self.context.count_empty(content_type, "fetch_blob");
        let pause = job.note_empty();
        tracing::debug!(
            tenant = %self.parts.tenant, %content_type, content_id = %job.blob.id, answers = job.empties,
            "blob-empty: {why}; it is asked for again in {} s", pause.as_secs()
        );
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        if !stream.unsettled.update(job.key, |blob| blob.persisted = job.tracked) {
            return;
        }
        if let Some(server_now) = self.parts.server.trusted() {
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

    /// The blob is gone at Microsoft: says so, then settles it as lost.
    fn lost(&mut self, job: Job, why: &str) {
        let blob = job.blob.clone();
        self.count(metrics::BLOBS_TOTAL, blob.content_type, "state", "lost");
        self.count(metrics::GAPS_TOTAL, blob.content_type, "reason", GapReason::BlobExpired.as_str());
        tracing::error!(
            tenant = %self.parts.tenant, content_type = %blob.content_type, content_id = %blob.id, created = %blob.created,
            expired = %blob.expires, "blob-expired: a blob could not be read before Microsoft removed it, its events are lost: {why}"
        );
        let context = self.context.clone();
        let detail = format!("blob `{}` expired at {} unread: {why}", blob.id, blob.expires);
        let now = self.parts.server.for_requests();
        self.tasks.spawn(async move {
            let end = blob.created + SignedDuration::from_millis(1);
            let window = Window { start: blob.created, end };
            let result = async {
                deliver_gap(&context, blob.content_type, window, GapReason::BlobExpired, &detail, Some(&blob.id), now)
                    .await?;
                let change = Change {
                    settled: vec![(blob.content_type, job.key)],
                    untracked: vec![(blob.content_type, job.key)],
                    ..Change::default()
                };
                context.ledger.commit(change).await.map_err(NotNoticed::State)
            }
            .await;
            Done::Lost { content_type: blob.content_type, key: job.key, result }
        });
    }

    // ---- position ----

    /// Moves `complete_until` and `listed_until` as far as what was read and settled allows.
    fn advance(&mut self, content_type: ContentType) {
        let Some(now) = self.parts.server.trusted() else { return };
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        let position = &mut stream.position;
        let first = position.complete_until.is_none();
        let bounds = Bounds { origin: position.origin, complete_until: position.complete_until };
        let oldest = stream.unsettled.oldest_holding();
        let mut moved = false;
        if let Some(complete) = plan::advance(bounds, &stream.read, oldest, now) {
            debug_assert!(position.complete_until.is_none_or(|before| before < complete), "CK-1: never moves back");
            debug_assert!(oldest.is_none_or(|blob| blob >= complete), "CK-1: an unanswered blob was passed");
            position.complete_until = Some(complete);
            moved = true;
        }
        let listed_from = position.listed_until.max(position.complete_until).unwrap_or(position.origin);
        let oldest_untracked = stream.unsettled.oldest_untracked();
        let listed = Bounds { origin: position.origin, complete_until: Some(listed_from) };
        let listed_until = plan::advance(listed, &stream.read, oldest_untracked, now).unwrap_or(listed_from);
        if position.listed_until != Some(listed_until) && listed_until > position.origin {
            position.listed_until = Some(listed_until);
            moved = true;
        }
        if moved {
            let complete = position.complete_until.unwrap_or(position.origin);
            stream.read.retain(|w| w.end > complete);
            stream.drifted = true;
            stream.dirty |= first || self.parts.once;
        }
    }

    /// When changed positions are to be written; `None` when none has changed. Those that moved by time and empty listings
    /// alone are written once in an interval, or with the next write: a restart lists so much more, which the overlap
    /// dwarfs, and a thousand idle tenants do not sync the disk sixty times a second.
    fn positions_due(&self) -> Option<Duration> {
        if self.streams.values().any(|s| s.dirty) {
            Some(self.positions_at + POSITION_EVERY)
        } else if self.streams.values().any(|s| s.drifted) {
            Some(self.positions_at + self.parts.poll_interval.max(POSITION_EVERY))
        } else {
            None
        }
    }

    /// Hands changed positions to the ledger, one write at a time.
    fn write_positions(&mut self, at_once: bool) {
        let Some(due) = self.positions_due().filter(|_| !self.writing_positions) else { return };
        let now = self.parts.clock.monotonic();
        if !at_once && !self.parts.once && now < due {
            return;
        }
        let mut positions = BTreeMap::new();
        for (content_type, stream) in &mut self.streams {
            if stream.dirty || stream.drifted {
                (stream.dirty, stream.drifted) = (false, false);
                positions.insert(*content_type, stream.position.clone());
            }
        }
        if positions.is_empty() {
            return;
        }
        self.writing_positions = true;
        self.positions_at = now;
        let ledger = self.ledger.clone();
        let change = Change { positions, ..Change::default() };
        self.tasks.spawn(async move { Done::Positions(ledger.commit(change).await) });
        for content_type in self.types() {
            self.guide(content_type);
        }
    }

    // ---- gaps ----

    /// Declares what was never listed and no longer can be, once it is known where what is listed begins: before that
    /// the gap would grow by the minute and be declared in pieces.
    fn check_gaps(&mut self) {
        let Some(now) = self.parts.server.trusted() else { return };
        for content_type in self.types() {
            let Some(stream) = self.streams.get(&content_type) else { continue };
            if let Some((start, end)) = stream.position.passed_over.filter(|_| !stream.declaring) {
                self.declare(content_type, Window { start, end }, GapReason::PositionMoved);
                continue;
            }
            let Some(stream) = self.streams.get_mut(&content_type) else { continue };
            let position = &mut stream.position;
            if position.last_listing.is_none() || stream.declaring {
                continue;
            }
            let until = position.complete_until.max(position.listed_until).unwrap_or(position.origin);
            let Some(window) = plan::unlistable(until, now) else { continue };
            let begins = stream.read.iter().filter(|read| read.end > until).map(|read| read.start).min();
            let Some(begins) = begins.filter(|begins| until < *begins && *begins <= window.end) else { continue };
            if position.complete_until.max(position.listed_until).is_none() {
                // The first pass took so long that its oldest minutes ran out: nothing was promised of them.
                tracing::warn!(
                    tenant = %self.parts.tenant, %content_type, from = %until, to = %begins,
                    "the first pass begins later than asked for: Microsoft does not list older content any more"
                );
                position.origin = begins;
                stream.dirty = true;
                self.advance(content_type);
                self.guide(content_type);
                continue;
            }
            let window = Window { end: begins, ..window };
            // A blob of the interval that is listed and neither settled nor tracked yet will be one of the two soon.
            if stream.unsettled.oldest_untracked().is_some_and(|created| created < window.end) {
                continue;
            }
            self.declare(content_type, window, GapReason::Outage);
        }
    }

    fn declare(&mut self, content_type: ContentType, window: Window, reason: GapReason) {
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        stream.declaring = true;
        self.count(metrics::GAPS_TOTAL, content_type, "reason", reason.as_str());
        let seconds = window.end.duration_since(window.start).as_secs().unsigned_abs();
        ::metrics::counter!(metrics::GAP_SECONDS_TOTAL, "tenant" => self.parts.tenant.to_string(), "content_type" => content_type.as_str()).increment(seconds);
        let detail = match reason {
            GapReason::Outage => format!(
                "`{content_type}` was read until {}; what was made available before {} is no longer listed by Microsoft",
                window.start, window.end
            ),
            GapReason::SubscriptionDisabled => format!(
                "the subscription to `{content_type}` was off at some time between {} and {}; what became available meanwhile can never be fetched",
                window.start, window.end
            ),
            GapReason::PositionMoved => format!(
                "the position of `{content_type}` was moved by hand from {} to {}; what was made available between, and what is listed late of the time before, is not read",
                window.start, window.end
            ),
            GapReason::BlobExpired => String::new(),
        };
        tracing::error!(tenant = %self.parts.tenant, %content_type, from = %window.start, to = %window.end, "stream-gap: {detail}");
        let context = self.context.clone();
        let now = self.parts.server.for_requests();
        self.tasks.spawn(async move {
            let result = deliver_gap(&context, content_type, window, reason, &detail, None, now).await;
            Done::Gap { content_type, window, reason, result }
        });
    }

    /// The host has the gap's record: the position may pass it.
    fn declared(&mut self, content_type: ContentType, window: Window, reason: GapReason) {
        let Some(stream) = self.streams.get_mut(&content_type) else { return };
        stream.declaring = false;
        stream.dirty = true;
        match reason {
            GapReason::Outage => {
                // Blobs of the gap that were listed before are tracked on their own and hold nothing any more.
                let position = &mut stream.position;
                stream.unsettled.release_before(window.end);
                position.complete_until = position.complete_until.max(Some(window.end));
                position.listed_until = position.listed_until.max(Some(window.end));
            }
            GapReason::SubscriptionDisabled => {
                stream.position.disabled_since = None;
                stream.position.last_listing = stream.position.last_listing.max(Some(window.end));
            }
            GapReason::PositionMoved => stream.position.passed_over = None,
            GapReason::BlobExpired => {}
        }
        self.guide(content_type);
    }

    // ---- looking after itself ----

    fn check_clock(&self) {
        if self.parts.server.is_doubted() {
            self.board.report(
                Place::Clock,
                Level::Degraded,
                "clock-jumped: Microsoft's answers carry a date more than 10 minutes off what is expected",
                "events are still read; no position moves and nothing is declared until three answers over 5 minutes agree",
            );
        } else {
            self.board.clear(Place::Clock);
        }
    }

    fn check_blobs(&self) {
        let Some(now) = self.parts.server.trusted() else { return };
        for (content_type, stream) in &self.streams {
            let failing = stream.unsettled.values().filter(|b| b.failures >= 3);
            let Some(expires) = failing.clone().map(|b| b.expires).min() else {
                self.board.clear(Place::Blobs(*content_type));
                continue;
            };
            let near = expires.duration_since(now) < EXPIRY_ALARM;
            let count = failing.count();
            let what = if near { "blob-expiry-near" } else { "blobs-failing" };
            self.board.report(
                Place::Blobs(*content_type),
                Level::Degraded,
                format!(
                    "{what}: {} of `{content_type}` cannot be read; the first is gone at {expires}",
                    counted(count as u64, "blob")
                ),
                "the source retries until then; look for a proxy or filter that cuts large answers",
            );
        }
    }

    fn gauges(&mut self, now: Duration) {
        self.gauges_stale = false;
        self.gauges_at = now + GAUGES_EVERY;
        let tenant = metrics::tenant_label(&self.parts.tenant);
        let server_now = self.parts.server.trusted();
        for (content_type, stream) in &mut self.streams {
            let set = |name, value: f64| {
                ::metrics::gauge!(name, "tenant" => tenant.clone(), "content_type" => content_type.as_str()).set(value);
            };
            set(metrics::BLOBS_PENDING, stream.unsettled.len() as f64);
            set(metrics::SECONDS_SINCE_CONTENT, now.saturating_sub(stream.new_content_at).as_secs_f64());
            if let Some(complete) = stream.position.complete_until {
                set(metrics::CHECKPOINT_TIMESTAMP_SECONDS, complete.as_second() as f64);
            }
            if stream.unsettled.len() == 0 {
                // Whatever the clock says: an alert on a blob that is settled must end.
                set(metrics::OLDEST_BLOB_AGE_SECONDS, 0.0);
                // A series that never had a value need not be made to say that it has none.
                if std::mem::take(&mut stream.expiry_shown) {
                    set(metrics::OLDEST_BLOB_EXPIRY_SECONDS, metrics::ABSENT);
                }
            }
            let Some(server_now) = server_now else { continue };
            if let Some(oldest) = stream.unsettled.values().map(|b| b.created).min() {
                set(metrics::OLDEST_BLOB_AGE_SECONDS, server_now.duration_since(oldest).as_secs_f64());
            }
            if let Some(expires) = stream.unsettled.values().map(|b| b.expires).min() {
                stream.expiry_shown = true;
                set(metrics::OLDEST_BLOB_EXPIRY_SECONDS, expires.duration_since(server_now).as_secs_f64());
            }
            if let Some(newest) = stream.newest {
                set(metrics::LAG_SECONDS, server_now.duration_since(newest).as_secs_f64());
            }
        }
        if let Some(granted) = self.parts.api.granted_per_minute() {
            ::metrics::gauge!(metrics::GRANTED_REQUESTS_PER_MINUTE, "tenant" => tenant.clone()).set(granted);
        }
        ::metrics::gauge!(metrics::IN_FLIGHT_BYTES, "tenant" => tenant.clone()).set(self.context.budget.used() as f64);
        if let Some(skew) = self.parts.server.skew() {
            ::metrics::gauge!(metrics::CLOCK_SKEW_SECONDS, "tenant" => tenant).set(skew.as_secs_f64());
        }
    }

    fn count(&self, name: &'static str, content_type: ContentType, label: &'static str, value: &'static str) {
        ::metrics::counter!(name, "tenant" => self.parts.tenant.to_string(), "content_type" => content_type.as_str(), label => value).increment(1);
    }
}

impl Stream {
    fn note_read(&mut self, window: Window) {
        self.read.retain(|known| !(known.start >= window.start && known.end <= window.end));
        self.read.push(window);
        if self.read.len() > READ_WINDOWS_MAX {
            // Many windows stay when a blob holds the position for days. Merged they are held as one, which moves the
            // position later, never further.
            self.read.sort_by_key(|w| w.start);
            let mut merged: Vec<Window> = Vec::new();
            for window in self.read.drain(..) {
                match merged.last_mut() {
                    Some(last) if window.start <= last.end => last.end = last.end.max(window.end),
                    _ => merged.push(window),
                }
            }
            self.read = merged;
        }
    }

    /// With `once`: listed to the end and everything settled or given up.
    fn is_finished(&self) -> bool {
        self.ended.is_some() && !self.declaring && self.unsettled.wanted() == 0
    }
}

/// Ends a download once, also when its task is dropped.
struct DownloadGuard(Option<Arc<Downloads>>);

impl DownloadGuard {
    fn end(mut self, reading: Reading) {
        if let Some(downloads) = self.0.take() {
            downloads.end(reading);
        }
    }
}

impl Drop for DownloadGuard {
    fn drop(&mut self) {
        if let Some(downloads) = self.0.take() {
            downloads.active.fetch_sub(1, Ordering::Relaxed);
            downloads.ended.notify_one();
        }
    }
}

fn guidance_of(position: &Position, room: bool) -> Guidance {
    Guidance {
        bounds: Bounds { origin: position.origin, complete_until: position.complete_until },
        day_listed: position.day_listed,
        week_listed: position.week_listed,
        room,
    }
}

async fn deliver_gap(
    context: &FetchContext,
    content_type: ContentType,
    window: Window,
    reason: GapReason,
    detail: &str,
    content_id: Option<&str>,
    now: Timestamp,
) -> Result<(), NotNoticed> {
    let tenant = context.tenant.clone();
    let notice = GapNotice {
        tenant: &tenant,
        content_type,
        from: window.start,
        to: window.end,
        reason: reason.as_str(),
        detail,
        content_id,
        now,
    };
    deliver_notice(context, content_type, now, |out| {
        context.normaliser.render_gap(&notice, out);
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_as_many_as_keep_the_processors_busy() {
        let millis = Duration::from_millis;
        for (what, readings, expected) in [
            ("nothing is known", vec![], 4),
            ("little is known", vec![(400, 3); 8], 6),
            ("Microsoft is far", vec![(400, 3); 120], 32),
            ("the feed is next door", vec![(1, 2); 40], 5),
            (
                "processors are short: most waits are long, some are not",
                [vec![(40, 2); 15], vec![(1, 2)]].concat().repeat(3),
                5,
            ),
            ("the host is slow", vec![(20, 900); 40], 5),
        ] {
            let mut times = Times::default();
            for (waited, worked) in readings {
                times.note(Reading { waited: millis(waited), worked: millis(worked) });
            }
            assert_eq!(times.allowed(2), expected, "{what}");
        }
    }
}
