//! Gaps beyond the feed's seven days, filled through the audit search of Microsoft Graph.
//!
//! A healer works sequentially: it submits searches, polls the running ones, reads those that have succeeded, and
//! waits. It stores each step before it relies on it, so that a kill costs at most one reading. It shares with the feed
//! the keys of delivered events, the gate of [`crate::checkpoint::healed`], the hold, the courier and the ledger. It
//! has its own client, and does not touch positions.
//!
//! `plan` computes the windows to search, `read` reads one search, `record` turns its records into events, `judge`
//! decides whether its answer is complete, `known` finds the events delivered before, and `work` runs the steps.

mod judge;
mod known;
mod once;
mod plan;
mod read;
mod record;
pub mod requests;
mod work;

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::requests::{HealAsk, HealError, HealProgress, HealQueue, HealRequest, HealResult, HealSettings};
use super::context::FetchContext;
use super::error::SourceError;
use super::health::{Component, HealthReporter, Level};
use super::opening::open_ledger;
use super::parts::TenantParts;
use super::report::{Left, LeftKind};
use super::server_time::ServerTime;
use crate::api::{GraphClient, GraphVersion};
use crate::backoff::Backoff;
use crate::checkpoint::format::{self, Keys};
use crate::checkpoint::heal::{NotKnown, StoredHeal, WantedInterval};
use crate::checkpoint::ledger::{Change, OpenedLedger};
use crate::checkpoint::server_clock::ServerClock;
use crate::host::StateError;
use crate::metrics;
use crate::model::{Actionable, ContentType, Timestamp, Window, counted};
use work::{HealStop, JobKind, StepResult, Working};

/// The intervals at which it looks for gaps, at first and later.
const LOOK_FOR_GAPS: Backoff = Backoff::between(Duration::from_secs(5), Duration::from_secs(60)).exactly();
/// A window that could not be filled is tried again after this.
const AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(6);
/// Pages of one reading at most.
pub(super) const PAGES_MAX: u32 = 20_000;
/// A stop waits this long for what is being delivered.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(8);

/// The parts from which a healer is made, for a tenant that may never need one.
pub(super) struct Seed {
    context: FetchContext,
    reporter: HealthReporter,
    content_types: Vec<ContentType>,
    server: ServerTime,
    settings: HealSettings,
}

impl Seed {
    fn of(parts: &TenantParts, context: &FetchContext, reporter: &HealthReporter) -> Self {
        Self {
            context: FetchContext { stop: context.stop.child_token(), ..context.clone() },
            reporter: reporter.clone(),
            content_types: parts.content_types.clone(),
            server: parts.server.clone(),
            settings: parts.heal.clone(),
        }
    }

    /// The healer of a tenant whose state is open.
    async fn healer(&self) -> Result<Box<Healer>, StateError> {
        let Self { context, reporter, content_types, server, settings } = self;
        let mut healer = Box::new(Healer {
            graph: context.api.graph(),
            context: context.clone(),
            reporter: reporter.clone(),
            content_types: content_types.clone(),
            server: server.clone(),
            settings: settings.clone(),
            stored: StoredHeal::default(),
            working: Working::default(),
        });
        healer.load().await?;
        Ok(healer)
    }

    /// Answers requests, with a healer made for each.
    async fn wait(self: Box<Self>, request_queue: HealQueue) {
        let mut asks = request_queue.into_asked();
        loop {
            let asked = tokio::select! {
                asked = asks.recv() => asked,
                () = self.context.stop.cancelled() => return,
            };
            let Some(asked) = asked else { return };
            match self.healer().await {
                Ok(mut healer) => Box::pin(healer.answer(*asked, &mut asks)).await,
                Err(source) => {
                    let error = SourceError::State { tenant: self.context.tenant.clone(), source };
                    let _ = asked.answer.send(Err(error.into()));
                }
            }
        }
    }
}

/// Fills gaps of one tenant.
struct Healer {
    context: FetchContext,
    reporter: HealthReporter,
    graph: GraphClient,
    content_types: Vec<ContentType>,
    server: ServerTime,
    settings: HealSettings,
    stored: StoredHeal,
    working: Working,
}

impl Healer {
    /// Reads what an earlier run left.
    async fn load(&mut self) -> Result<(), StateError> {
        let key = self.keys().heal();
        if let Some((bytes, _)) = self.context.store.load(&key).await? {
            self.stored = format::decode(&key, &bytes)?;
        }
        self.graph.set_version(if self.stored.beta { GraphVersion::Beta } else { GraphVersion::V1 });
        Ok(())
    }

    fn keys(&self) -> Keys {
        Keys::of(&self.context.tenant)
    }

    async fn save(&mut self) -> Result<(), StateError> {
        self.stored.beta = self.graph.version() == GraphVersion::Beta;
        let change = Change { heal: Some(Box::new(self.stored.clone())), ..Change::default() };
        self.context.ledger.commit(change).await
    }

    /// Answers requests and fills gaps until the source stops.
    async fn serve(mut self: Box<Self>, request_queue: Option<HealQueue>) {
        if self.settings.gaps {
            self.context.healed.turn_on();
            if let Some(cloud) = &self.settings.without_search {
                let error = HealError::Cloud(cloud.clone());
                tracing::warn!(source = %self.context.source, tenant = %self.context.tenant, "{}: {error} (hint: {})", error.slug(), error.hint());
            }
        }
        let fills = self.settings.gaps && self.settings.without_search.is_none();
        if fills {
            self.report_left();
        }
        let mut asks = match request_queue.map(HealQueue::into_asked) {
            Some(asks) => asks,
            None if fills => mpsc::channel(1).1,
            None => return,
        };
        let mut closed = false;
        let mut looks = 0;
        let stop = self.context.stop.clone();
        while !stop.is_cancelled() {
            let pause = if fills { Box::pin(self.turn(&mut looks)).await } else { Ok(None) };
            let pause = match pause {
                Ok(pause) => pause,
                Err(HealStop::Asked) => return,
                Err(HealStop::State(error)) => return self.ends(&error),
            };
            let clock = self.context.clock.clone();
            tokio::select! {
                asked = asks.recv(), if !closed => match asked {
                    Some(asked) => Box::pin(self.answer(*asked, &mut asks)).await,
                    None => closed = true,
                },
                () = async { match pause {
                    Some(pause) => clock.sleep(pause).await,
                    None => std::future::pending().await,
                } } => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn ends(&self, error: &StateError) {
        // The feed's own commit reports the fault of the state, and ends the source.
        tracing::error!(source = %self.context.source, tenant = %self.context.tenant, "healing ends: {error}");
    }

    /// One step at the gaps; how long to wait for the next.
    async fn turn(&mut self, looks: &mut u32) -> Result<Option<Duration>, HealStop> {
        let stop = self.context.stop.clone();
        if self.stored.gaps.is_none() && !self.plan_gaps().await? {
            *looks += 1;
            return Ok(Some(LOOK_FOR_GAPS.after(*looks)));
        }
        *looks = 0;
        Ok(Some(match self.step(JobKind::Gaps, &stop).await? {
            StepResult::Again => Duration::ZERO,
            StepResult::Pause(pause) => pause,
            StepResult::DayIsOver(until) => wait_until(until, self.server.for_requests()),
            StepResult::Denied(error) => {
                self.working.is_denied = true;
                self.trouble(&error.to_string(), error.slug(), &error.hint());
                work::DENIED_PAUSE
            }
            StepResult::Finished => {
                self.finish_gaps().await?;
                Duration::ZERO
            }
        }))
    }

    /// Reports why gaps stay open, as long as they do.
    fn trouble(&self, what: &str, slug: &str, hint: &str) {
        self.count(slug);
        self.reporter.report(Component::Gaps, Level::Degraded, format!("{slug}: {what}"), hint);
    }

    /// Clears the report once Graph allows searches again.
    fn clear_denied(&mut self) {
        if std::mem::take(&mut self.working.is_denied) {
            self.reporter.clear(Component::Gaps);
            self.report_left();
        }
    }

    /// Reports the gaps that the last attempt could not fill.
    fn report_left(&self) {
        let (Some(first), Some(again)) = (self.stored.left.first(), self.stored.again_at) else { return };
        let what = match self.stored.left.len() {
            1 => format!("a search could not be believed or did not end, what it is of stays a gap: {first}"),
            n => format!(
                "{n} searches could not be believed or did not end, what they are of stays a gap: {first}; and {} more",
                n - 1
            ),
        };
        let hint = format!("none needed: it is tried again at {again}; `m365-audit heal` tries it now");
        self.reporter.report(Component::Gaps, Level::Degraded, format!("heal-incomplete: {what}"), &hint);
    }

    fn count(&self, slug: &str) {
        let tenant = self.context.tenant.to_string();
        ::metrics::counter!(metrics::ERRORS_TOTAL, "tenant" => tenant, "kind" => slug.to_owned()).increment(1);
    }

    fn warn(&self, what: &str, slug: &str, hint: &str) {
        self.count(slug);
        tracing::warn!(source = %self.context.source, tenant = %self.context.tenant, "{slug}: {what} (hint: {hint})");
    }

    /// Whether there are gaps to fill; they are in the state then.
    async fn plan_gaps(&mut self) -> Result<bool, HealStop> {
        let Some(now) = self.server.trusted() else { return Ok(false) };
        if self.stored.again_at.is_some_and(|again| now < again) {
            return Ok(false);
        }
        let streams = match known::streams(&*self.context.store, &self.keys(), &self.content_types).await {
            Ok(streams) => streams,
            // The next look comes soon.
            Err(StateError::Unavailable(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Some(job) = plan::for_gaps(&streams, &self.stored, now, salt()) else { return Ok(false) };
        tracing::info!(
            source = %self.context.source, tenant = %self.context.tenant, from = %job.from, to = %job.to,
            searches = job.windows.len(), "gaps are filled through Microsoft Graph"
        );
        self.stored.gaps = Some(job);
        self.save().await?;
        Ok(true)
    }

    /// Reports the filled gaps, and records the windows that were left.
    async fn finish_gaps(&mut self) -> Result<(), HealStop> {
        let Some(job) = self.stored.gaps.clone() else { return Ok(()) };
        let now = self.server.for_requests();
        let left: Vec<Window> = job.left.iter().map(|left| Window { start: left.from, end: left.to }).collect();
        for (name, all) in &job.types {
            let Ok(content_type) = name.parse::<ContentType>() else { continue };
            let left_out = job.left_out.iter().filter(|events| events.content_type == *name).map(plan::span_of);
            let left_out: Vec<Window> = left_out.collect();
            for wanted in all {
                for part in plan::filled(wanted, left.iter().chain(&left_out).copied()) {
                    self.declare_healed(content_type, part, &wanted.reason, &job, now).await?;
                }
                for (part, events) in plan::not_known(name, wanted, &left, &job.left_out) {
                    self.declare_not_known(content_type, part, events, wanted, now);
                }
            }
        }
        self.stored.left = job.left.iter().map(|left| format!("{} to {}: {}", left.from, left.to, left.why)).collect();
        self.stored.again_at = None;
        if !job.left.is_empty() {
            self.stored.again_at = now.saturating_add(AGAIN_AFTER).ok();
            self.count("heal-incomplete");
            self.report_left();
        } else {
            self.reporter.clear(Component::Gaps);
        }
        self.stored.gaps = None;
        self.save().await?;
        Ok(())
    }

    /// Reports and stores that a part of a gap stays open because of earlier events.
    fn declare_not_known(
        &mut self,
        content_type: ContentType,
        part: Window,
        events: u64,
        wanted: &WantedInterval,
        now: Timestamp,
    ) {
        let Window { start: from, end: to } = part;
        self.warn(
            &format!(
                "{} of `{content_type}` that happened before the gap at {} may belong to it or not: no receipt reaches back \
                 so far, so nobody knows whether they were delivered. They are left out, and {from} to {to} stays a gap",
                counted(events, "event"),
                wanted.from
            ),
            "heal-not-known",
            &format!(
                "`m365-audit heal --content-type {content_type} --from {} --to {to} --again` fills it, and delivers what was \
                 delivered of that time before once more",
                wanted.lead
            ),
        );
        self.stored.note_not_known(content_type, NotKnown { from, to, at: now, events });
    }

    /// Answers a request; refuses others meanwhile.
    async fn answer(&mut self, asked: HealRequest, asks: &mut mpsc::Receiver<Box<HealRequest>>) {
        let HealRequest { ask, begun, stop, answer } = asked;
        let mut work = Box::pin(self.fill(&ask, begun, &stop));
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                Some(other) = asks.recv() => {
                    let _ = other.answer.send(Err(HealError::Busy));
                }
            }
        };
        drop(work);
        let _ = answer.send(result);
    }

    /// Fills the requested range.
    async fn fill(
        &mut self,
        ask: &HealAsk,
        begun: oneshot::Sender<Arc<HealProgress>>,
        stop: &CancellationToken,
    ) -> Result<HealResult, HealError> {
        if let Some(cloud) = &self.settings.without_search {
            return Err(HealError::Cloud(cloud.clone()));
        }
        let tenant = self.context.tenant.clone();
        let state = |source| HealError::from(SourceError::State { tenant: tenant.clone(), source });
        let now = self.server.for_requests();
        let (keys, store) = (self.keys(), self.context.store.clone());
        let streams = known::streams(&*store, &keys, &self.content_types).await.map_err(state)?;
        let mut reach = None;
        if self.context.keeps_receipts && !ask.again {
            reach = known::by_receipts(&store, &keys, &Default::default(), now).await.map_err(state)?.1;
        }
        let job = plan::for_range(&streams, ask, reach, &self.stored, now, salt())?;
        if ask.dry_run {
            let notes =
                self.unfinished(ask).map(|_| "a part of it was filled already; only the rest is searched".into());
            let windows = self.unfinished(ask).map_or(job.windows.len(), |known| known.windows.len());
            let left = (work::SUBMISSIONS_MAX.saturating_sub(self.submitted(now).len())) as u64;
            let would_take = Some((windows as u64, left));
            return Ok(HealResult { would_take, notes: notes.into_iter().collect(), ..HealResult::default() });
        }
        if self.unfinished(ask).is_none() {
            self.stored.asked = Some(job);
            self.save().await.map_err(state)?;
        }
        self.working.begin(self.stored.asked.as_ref());
        let _ = begun.send(self.working.progress.clone());
        let stop_both = self.context.stop.child_token();
        let _stops = stop_with(stop, &stop_both);
        self.context.healed.turned_on().await;
        let ended = self.fill_to_the_end(&stop_both).await;
        self.working.progress = Arc::default();
        ended
    }

    /// The stored range, if it is the requested one and unfinished.
    fn unfinished(&self, ask: &HealAsk) -> Option<&crate::checkpoint::heal::StoredJob> {
        self.stored.asked.as_ref().filter(|known| {
            let same_types =
                ask.content_types.is_empty() || ask.content_types.iter().all(|t| known.types.contains_key(t));
            // Ages (`25d`) count from the first request: the same command, given later, means the same range.
            let later = self.server.for_requests().duration_since(known.started) + SignedDuration::from_mins(1);
            let is_same = |then: Timestamp, now: Timestamp| {
                let apart = crate::plan::floor_to_second(now).duration_since(then);
                apart >= SignedDuration::ZERO && apart <= later
            };
            let same_end = ask.to.is_none_or(|to| is_same(known.to, to));
            is_same(known.from, ask.from) && same_end && same_types && known.again == ask.again
        })
    }

    async fn fill_to_the_end(&mut self, stop: &CancellationToken) -> Result<HealResult, HealError> {
        let tenant = self.context.tenant.clone();
        let mut ended = HealResult::default();
        loop {
            let step = match self.step(JobKind::Asked, stop).await {
                Ok(step) => step,
                Err(HealStop::Asked) => {
                    ended.interrupted = true;
                    break;
                }
                Err(HealStop::State(source)) => return Err(SourceError::State { tenant, source }.into()),
            };
            let pause = match step {
                StepResult::Again => continue,
                StepResult::Pause(pause) => pause,
                StepResult::Denied(error) => return Err(error.into()),
                StepResult::Finished => break,
                StepResult::DayIsOver(until) => {
                    ended.notes.push(format!(
                        "the {} searches that a tenant may submit in 24 hours are used up; the same command goes on from {until}",
                        work::SUBMISSIONS_MAX
                    ));
                    ended.interrupted = true;
                    break;
                }
            };
            tokio::select! {
                () = self.context.clock.sleep(pause) => {}
                () = stop.cancelled() => {
                    ended.interrupted = true;
                    break;
                }
            }
        }
        ended.progress = self.working.progress.snapshot();
        if !ended.interrupted {
            let finished = self.finish_range().await;
            ended.left = finished.map_err(|stop| match stop {
                HealStop::State(source) => HealError::from(SourceError::State { tenant, source }),
                HealStop::Asked => HealError::SourceEnded,
            })?;
        }
        Ok(ended)
    }

    /// Reports which gaps the range has filled; returns in words what was left, which stays open for the next request.
    async fn finish_range(&mut self) -> Result<Vec<String>, HealStop> {
        let Some(mut job) = self.stored.asked.clone() else { return Ok(Vec::new()) };
        let now = self.server.for_requests();
        let streams = known::streams(&*self.context.store, &self.keys(), &self.content_types).await?;
        let left: Vec<Window> = job.left.iter().map(|left| Window { start: left.from, end: left.to }).collect();
        for stream in streams.iter().filter(|stream| job.types.contains_key(stream.content_type.as_str())) {
            let ranges =
                crate::checkpoint::heal::without(vec![Window { start: job.from, end: job.to }], left.iter().copied());
            let filled: Vec<Window> =
                ranges.into_iter().filter_map(|range| plan::filled_by_range(stream, range)).collect();
            let gaps = stream.position.iter().flat_map(|position| position.gaps.clone());
            for gap in gaps {
                for part in filled.iter().filter_map(|filled| overlap(*filled, gap.from, gap.to)) {
                    for part in self.stored.open_parts(stream.content_type, part) {
                        self.declare_healed(stream.content_type, part, &gap.reason, &job, now).await?;
                    }
                }
            }
        }
        let words = job.left.iter().map(|left| format!("{} to {}: {}", left.from, left.to, left.why)).collect();
        job.windows = left.into_iter().map(crate::checkpoint::heal::StoredWindow::new).collect();
        job.left.clear();
        self.stored.asked = Some(job).filter(|job| !job.windows.is_empty());
        let is_open = streams.iter().any(|stream| {
            let gaps = stream.position.iter().flat_map(|position| &position.gaps);
            let windows = gaps.map(|gap| Window { start: gap.from, end: gap.to });
            windows.into_iter().any(|gap| !self.stored.fillable_parts(stream.content_type, gap).is_empty())
        });
        if !is_open {
            // Every window left of gaps is filled by now.
            self.stored.left.clear();
            self.stored.again_at = None;
            self.reporter.clear(Component::Gaps);
        }
        self.save().await?;
        Ok(words)
    }
}

fn overlap(window: Window, from: Timestamp, to: Timestamp) -> Option<Window> {
    let part = Window { start: window.start.max(from), end: window.end.min(to) };
    (part.start < part.end).then_some(part)
}

fn salt() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn wait_until(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default().max(Duration::from_secs(1))
}

/// Cancels `both` when `one` is, as long as what is returned lives.
fn stop_with(one: &CancellationToken, both: &CancellationToken) -> tokio_util::task::AbortOnDropHandle<()> {
    let (one, both) = (one.clone(), both.clone());
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        one.cancelled().await;
        both.cancel();
    }))
}

/// A healer at work beside the loop, or one that comes after a single pass. Dropping it ends it at once.
pub(super) enum AtWork {
    Nothing,
    Beside(tokio_util::task::AbortOnDropHandle<()>),
    After(Box<Seed>),
}

impl AtWork {
    /// Begins, if there are gaps to fill or requests to answer. `stop` stops the healing after a pass.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) async fn begin(
        parts: &mut TenantParts,
        context: &FetchContext,
        reporter: &HealthReporter,
        stop: &CancellationToken,
    ) -> Result<Self, StateError> {
        let request_queue = parts.heal_queue.take();
        if parts.once && parts.heal.gaps {
            // Events of the pass must be recorded under both keys.
            context.healed.turn_on();
            let mut seed = Box::new(Seed::of(parts, context, reporter));
            seed.context.stop = stop.child_token();
            return Ok(Self::After(seed));
        }
        if parts.once || request_queue.is_none() && !parts.heal.gaps {
            return Ok(Self::Nothing);
        }
        let seed = Box::new(Seed::of(parts, context, reporter));
        // A running healer takes some kilobytes, which a tenant without gaps should not hold.
        let work: futures_util::future::BoxFuture<'static, ()> = match request_queue {
            Some(request_queue) if !parts.heal.gaps => Box::pin(seed.wait(request_queue)),
            request_queue => Box::pin(seed.healer().await?.serve(request_queue)),
        };
        let work = tracing::Instrument::in_current_span(work);
        Ok(Self::Beside(tokio_util::task::AbortOnDropHandle::new(tokio::spawn(work))))
    }

    /// Called when the loop has ended: waits a limited time for deliveries, or fills the gaps that a single pass has
    /// `passed`, and returns those that stay.
    pub(super) async fn ended(self, passed: bool) -> Vec<Left> {
        match self {
            Self::Beside(task) => {
                let _ = tokio::time::timeout(STOP_GRACE, task).await;
            }
            Self::After(seed) if passed => match seed.healer().await {
                Ok(healer) => return Box::pin(healer.fill_once()).await,
                Err(error) => {
                    let why = format!("gaps of tenant `{}` could not be filled: {error}", seed.context.tenant);
                    return vec![Left { why, kind: LeftKind::Passing }];
                }
            },
            Self::After(_) | Self::Nothing => {}
        }
        Vec::new()
    }
}

/// One range without the loop, in a process of its own.
///
/// # Errors
/// As for a running source, and when the state cannot be opened or Microsoft cannot be reached.
pub async fn alone(parts: TenantParts, asked: HealRequest) -> Result<HealResult, HealError> {
    let reporter =
        HealthReporter::new(parts.source.clone(), parts.tenant.clone(), parts.host.clone(), parts.clock.clone());
    // As in a single pass, an error is reported at once instead of retried for ever.
    let parts = TenantParts { once: true, ..parts };
    let Some(opened) = open_ledger(&parts, &reporter, &asked.stop).await? else {
        return Err(HealError::SourceEnded);
    };
    let (OpenedLedger { ledger, handle, tenant, events, healed, .. }, hold) = *opened;
    parts.server.reset(ServerClock::not_before(tenant.server_time));
    let writer = tokio::spawn(ledger.run());
    let result = {
        let context = FetchContext::new(&parts, &reporter, handle, (events, healed), hold, &CancellationToken::new());
        let HealRequest { ask, begun, stop, .. } = asked;
        let seed = Seed::of(&parts, &context, &reporter);
        match seed.healer().await {
            Ok(mut healer) => {
                drop((context, seed));
                // Yields Microsoft's time, by which hours of receipts end.
                if parts.api.list_subscriptions().await.is_err() {
                    tracing::debug!("the feed does not tell the time");
                }
                healer.fill(&ask, begun, &stop).await
            }
            Err(source) => Err(SourceError::State { tenant: parts.tenant.clone(), source }.into()),
        }
    };
    // Every handle is gone: the writer ends when it has written what it was given.
    match writer.await {
        Ok(Err(source)) => return Err(SourceError::State { tenant: parts.tenant, source }.into()),
        Ok(Ok(())) => {}
        Err(error) => return Err(SourceError::Internal(error.to_string()).into()),
    }
    result
}
