//! Runs the steps one after another: submit a search, poll one, read one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::plan;
use super::read::{ReadResult, ReadTrouble, SearchReader, SearchReading};
use super::requests::HealProgress;
use super::{Healer, judge};
use crate::api::{GraphError, GraphFault, GraphQuery, QueryStatus};
use crate::backoff::Backoff;
use crate::checkpoint::heal::{DoneWindow, HealedInterval, LeftWindow, StoredJob, StoredWindow};
use crate::host::StateError;
use crate::metrics;
use crate::model::{Actionable, ContentType, Timestamp, Window};
use crate::normalise::HealedNotice;
use crate::severity::Severity;

use super::super::context::{NotNoticed, deliver_notice};
use super::super::pauses::GRAPH;

/// Searches that a tenant may submit in 24 hours: the lowest limit reported for Microsoft.
pub(super) const SUBMISSIONS_MAX: usize = 200;
/// The span over which they count: a day, and a minute by which clocks may differ.
const SUBMISSIONS_OVER: SignedDuration = SignedDuration::from_secs(24 * 3600 + 60);
/// Searches under way at once; Microsoft reportedly allows 50 for all programs together.
const UNDER_WAY_MAX: usize = 8;
/// The pause between two polls of a search.
const LOOK: Backoff = Backoff::between(Duration::from_secs(2), Duration::from_secs(30)).exactly();
/// The pause before a window whose search failed is searched again.
const AGAIN: Backoff = Backoff::between(Duration::from_secs(5), Duration::from_secs(600));
/// The same after a refusal that only an operator can fix.
pub(super) const DENIED_PAUSE: Duration = Duration::from_secs(15 * 60);
/// Searches for one window at most.
const SEARCHES_MAX: u32 = 5;
/// Faults in a row after which a window that a requester waits for is left.
const TROUBLES_MAX: u32 = 12;
/// Faults after which Graph counts as unreachable, if it has never answered.
const UNHEARD_MAX: u32 = 5;
/// Microsoft keeps events for 180 days in most licences: an older window may be empty because its events have expired.
const KEPT: SignedDuration = SignedDuration::from_hours(180 * 24);
/// Shorter windows may well have no event.
const EMPTY_MIN: SignedDuration = SignedDuration::from_hours(6);

/// Which work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobKind {
    /// The gaps that were declared.
    Gaps,
    /// The range that was asked for.
    Asked,
}

/// The result of a step.
pub(super) enum StepResult {
    /// There may be more to do at once.
    Again,
    /// There is nothing to do for this long.
    Pause(Duration),
    /// No more searches may be submitted until then.
    DayIsOver(Timestamp),
    /// Graph denies searches.
    Denied(GraphError),
    /// All windows are done or left.
    Finished,
}

/// Why the work stops early.
pub(super) enum HealStop {
    Asked,
    State(StateError),
}

impl From<StateError> for HealStop {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// The part of the state that is kept only in memory.
#[derive(Default)]
pub(super) struct Working {
    pub progress: Arc<HealProgress>,
    /// When to poll a search next, and how often it was polled.
    looks: HashMap<String, (Duration, u32)>,
    /// When a window may be searched again.
    not_before: HashMap<(Timestamp, Timestamp), Duration>,
    /// No request is sent to Graph before this time.
    hold_until: Duration,
    troubles: u32,
    /// Graph denied the last request to search.
    pub is_denied: bool,
    /// Whether a caller waits for the gaps to be filled, as for a requested range.
    pub is_waited_for: bool,
}

impl Working {
    /// Whether Graph has taken no search since this began, however often it was asked.
    fn is_unheard(&self) -> bool {
        self.progress.searches.load(Ordering::Relaxed) == 0 && self.troubles >= UNHEARD_MAX
    }

    /// Begins to count.
    pub(super) fn begin(&mut self, job: Option<&StoredJob>) {
        self.progress = Arc::default();
        self.troubles = 0;
        self.hold_until = Duration::ZERO;
        let Some(job) = job else { return };
        let secs = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs().unsigned_abs();
        let open: u64 = job.windows.iter().map(|window| secs(window.from, window.to)).sum();
        let done: u64 = job.done.iter().map(|window| secs(window.from, window.to)).sum();
        self.progress.span_secs.store(open + done, Ordering::Relaxed);
        self.progress.done_secs.store(done, Ordering::Relaxed);
    }
}

impl Healer {
    fn job(&self, slot: JobKind) -> Option<&StoredJob> {
        match slot {
            JobKind::Gaps => self.stored.gaps.as_ref(),
            JobKind::Asked => self.stored.asked.as_ref(),
        }
    }

    fn job_mut(&mut self, slot: JobKind) -> Option<&mut StoredJob> {
        match slot {
            JobKind::Gaps => self.stored.gaps.as_mut(),
            JobKind::Asked => self.stored.asked.as_mut(),
        }
    }

    /// Submissions that count today.
    pub(super) fn submitted(&self, now: Timestamp) -> Vec<Timestamp> {
        let since = now.saturating_sub(SUBMISSIONS_OVER).unwrap_or(Timestamp::MIN);
        self.stored.submitted.iter().copied().filter(|at| *at > since).collect()
    }

    /// Does what can be done now.
    pub(super) async fn step(&mut self, slot: JobKind, stop: &CancellationToken) -> Result<StepResult, HealStop> {
        let now = self.context.clock.monotonic();
        let Some(job) = self.job(slot) else { return Ok(StepResult::Finished) };
        if job.windows.is_empty() {
            return Ok(StepResult::Finished);
        }
        if now < self.working.hold_until {
            return Ok(StepResult::Pause(self.working.hold_until - now));
        }
        let under_way = job.windows.iter().filter(|window| window.query.is_some()).count();
        self.working.progress.under_way.store(under_way as u64, Ordering::Relaxed);
        let look_at = |window: &StoredWindow| {
            let id = window.query.as_ref()?;
            Some(self.working.looks.get(id).map_or(Duration::ZERO, |(at, _)| *at))
        };
        if let Some(at) = job.windows.iter().position(|window| look_at(window).is_some_and(|at| at <= now)) {
            return self.look(slot, at, stop).await;
        }
        let may_at = |window: &StoredWindow| {
            let at = self.working.not_before.get(&(window.from, window.to)).copied();
            window.query.is_none().then(|| at.unwrap_or_default())
        };
        let due = job.windows.iter().position(|window| may_at(window).is_some_and(|at| at <= now));
        if let Some(at) = due.filter(|_| under_way < UNDER_WAY_MAX) {
            let today = self.server.for_requests();
            let submitted = self.submitted(today);
            match submitted.get(submitted.len().saturating_sub(SUBMISSIONS_MAX)) {
                Some(oldest) if submitted.len() >= SUBMISSIONS_MAX && under_way == 0 => {
                    return Ok(StepResult::DayIsOver(oldest.saturating_add(SUBMISSIONS_OVER).unwrap_or(*oldest)));
                }
                _ if submitted.len() >= SUBMISSIONS_MAX => {}
                _ => return self.submit(slot, at, stop).await,
            }
        }
        let next =
            job.windows.iter().filter_map(|window| look_at(window).or_else(|| may_at(window)).filter(|at| *at > now));
        let pause = next.min().map_or(Duration::from_secs(30), |at| at - now);
        Ok(StepResult::Pause(pause.max(Duration::from_millis(100))))
    }

    /// Submits a search for a window.
    async fn submit(&mut self, slot: JobKind, at: usize, stop: &CancellationToken) -> Result<StepResult, HealStop> {
        let now = self.server.for_requests();
        let Some(window) = self.job(slot).and_then(|job| job.windows.get(at)).cloned() else {
            return Ok(StepResult::Again);
        };
        // Counted before it is sent: even if the answer is lost, Microsoft may have counted it.
        self.stored.submitted = self.submitted(now);
        self.stored.submitted.push(now);
        self.save().await?;
        let name = format!("m365-audit heal {} {}", window.from, window.to);
        let submitted = tokio::select! {
            submitted = self.graph.submit(window.window(), &name) => submitted,
            () = stop.cancelled() => return Err(HealStop::Asked),
        };
        match submitted {
            Ok(query) => {
                self.working.troubles = 0;
                self.clear_denied();
                let tenant = metrics::tenant_label(&self.context.tenant);
                ::metrics::counter!(metrics::HEAL_SEARCHES_TOTAL, "tenant" => tenant).increment(1);
                self.working.progress.searches.fetch_add(1, Ordering::Relaxed);
                let due = self.context.clock.monotonic() + LOOK.after(1);
                self.working.looks.insert(query.id.clone(), (due, 1));
                if let Some(window) = self.job_mut(slot).and_then(|job| job.windows.get_mut(at)) {
                    window.queries.push(query.id.clone());
                    window.query = Some(query.id);
                    window.submitted = Some(now);
                }
                self.save().await?;
                Ok(StepResult::Again)
            }
            Err(error) => {
                if error.fault() != GraphFault::Passing {
                    // It was refused, so it does not count.
                    self.stored.submitted.pop();
                    self.save().await?;
                }
                self.troubled(slot, at, error).await
            }
        }
    }

    /// Handles an error of Graph.
    async fn troubled(&mut self, slot: JobKind, at: usize, error: GraphError) -> Result<StepResult, HealStop> {
        self.working.troubles += 1;
        let tenant = self.context.tenant.to_string();
        ::metrics::counter!(metrics::ERRORS_TOTAL, "tenant" => tenant, "kind" => error.slug()).increment(1);
        tracing::debug!(tenant = %self.context.tenant, "{}: {error}", error.slug());
        let now = self.context.clock.monotonic();
        let is_waited_for = slot == JobKind::Asked || self.working.is_waited_for;
        let pause = GRAPH.after(self.working.troubles).max(error.not_before().unwrap_or_default());
        match error.fault() {
            GraphFault::Denied => {
                self.working.hold_until = now + if slot == JobKind::Gaps { DENIED_PAUSE } else { Duration::ZERO };
                return Ok(StepResult::Denied(error));
            }
            GraphFault::Refused | GraphFault::Absent => return self.came_to_nothing(slot, at, error.to_string()).await,
            // A requester waits: if Graph has not answered since the command began, that is reported.
            GraphFault::Passing if is_waited_for && self.working.is_unheard() => {
                return Ok(StepResult::Denied(error));
            }
            GraphFault::Passing if is_waited_for && self.working.troubles >= TROUBLES_MAX => {
                self.working.troubles = 0;
                self.leave(slot, at, error.to_string());
                self.save().await?;
                return Ok(StepResult::Again);
            }
            GraphFault::Passing | GraphFault::Throttled => self.working.hold_until = now + pause,
        }
        Ok(StepResult::Pause(pause))
    }

    /// Polls a search, and reads it when it has succeeded.
    async fn look(&mut self, slot: JobKind, at: usize, stop: &CancellationToken) -> Result<StepResult, HealStop> {
        let Some(window) = self.job(slot).and_then(|job| job.windows.get(at)).cloned() else {
            return Ok(StepResult::Again);
        };
        let Some(id) = window.query.clone() else { return Ok(StepResult::Again) };
        let looked = tokio::select! {
            looked = self.graph.look(&id) => looked,
            () = stop.cancelled() => return Err(HealStop::Asked),
        };
        let query = match looked {
            Ok(query) => query,
            Err(error) => return self.troubled(slot, at, error).await,
        };
        self.working.troubles = 0;
        self.clear_denied();
        match query.status {
            QueryStatus::Failed => self.came_to_nothing(slot, at, format!("search `{id}` failed at Microsoft")).await,
            QueryStatus::Running => {
                let age = self.server.for_requests().duration_since(window.submitted.unwrap_or(Timestamp::MIN));
                let wait = self.settings.query_wait;
                if age > SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX) {
                    let why = format!("search `{id}` did not end within {} s (`query_wait_secs`)", wait.as_secs());
                    return self.came_to_nothing(slot, at, why).await;
                }
                let now = self.context.clock.monotonic();
                let looks = self.working.looks.entry(id).or_insert((now, 0));
                looks.1 += 1;
                looks.0 = now + LOOK.after(looks.1);
                Ok(StepResult::Again)
            }
            QueryStatus::Succeeded => self.read(slot, at, &window, &query, stop).await,
        }
    }

    /// Reads a search that has succeeded.
    async fn read(
        &mut self,
        slot: JobKind,
        at: usize,
        window: &StoredWindow,
        query: &GraphQuery,
        stop: &CancellationToken,
    ) -> Result<StepResult, HealStop> {
        let Some(job) = self.job(slot) else { return Ok(StepResult::Again) };
        let span = window.to.duration_since(window.from);
        if query.is_cut && span > judge::CUT_MIN {
            return self.halve(slot, at, "Microsoft Graph says that records are missing", None).await;
        }
        self.context.healed.turned_on().await;
        let others: Vec<u64> = job.done.iter().map(|done| done.records).collect();
        let of = SearchReader {
            context: &self.context,
            graph: &self.graph,
            job,
            content_types: &self.content_types,
            progress: &self.working.progress,
            stop,
            pages_max: self.settings.pages_max,
            now: self.server.for_requests(),
        };
        let read = SearchReading::new(of, window.window()).run(query, &others, window.expected).await;
        self.context.healed.watch_for([]);
        match read {
            Ok(read) => self.was_read(slot, at, window, read).await,
            Err(ReadTrouble::Stopped) => Err(HealStop::Asked),
            Err(ReadTrouble::State(error)) => Err(error.into()),
            Err(ReadTrouble::Graph(error)) => self.troubled(slot, at, error).await,
            Err(ReadTrouble::Other(why)) => self.came_to_nothing(slot, at, why).await,
        }
    }

    async fn was_read(
        &mut self,
        slot: JobKind,
        at: usize,
        window: &StoredWindow,
        read: ReadResult,
    ) -> Result<StepResult, HealStop> {
        self.working.troubles = 0;
        let tenant = metrics::tenant_label(&self.context.tenant);
        let new: u64 = read.events.values().sum();
        for (content_type, events) in &read.events {
            ::metrics::counter!(
                metrics::HEALED_EVENTS_TOTAL, "tenant" => tenant.clone(), "content_type" => content_type.as_str()
            )
            .increment(*events);
        }
        if let Some((why, halves)) = read.halve {
            return self.halve(slot, at, &why, halves).await;
        }
        if let Some(stored) = self.job_mut(slot).and_then(|job| job.windows.get_mut(at)) {
            stored.events += new;
        }
        if let Some(why) = read.is_cut {
            self.leave(slot, at, format!("it cannot be cut into shorter windows: {why}"));
            self.save().await?;
            return Ok(StepResult::Again);
        }
        if !read.agreed {
            let why = format!("{} readings of a search that has succeeded gave different records", read.readings);
            return self.came_to_nothing(slot, at, why).await;
        }
        let span = window.to.duration_since(window.from);
        let age = self.server.for_requests().duration_since(window.to);
        if read.found.count == 0 && window.was_empty && age > KEPT {
            self.leave(
                slot,
                at,
                "it is empty and over 180 days old: Microsoft may not keep its events any more".into(),
            );
            self.save().await?;
            return Ok(StepResult::Again);
        }
        let Some(job) = self.job_mut(slot) else { return Ok(StepResult::Again) };
        if read.found.count == 0 && !window.was_empty && span >= EMPTY_MIN {
            // An empty answer is believed only when a second search confirms it.
            if let Some(stored) = job.windows.get_mut(at) {
                stored.was_empty = true;
                stored.query = None;
            }
        } else {
            job.left_out.extend(read.left_out.into_values());
            let stored = job.windows.remove(at);
            job.done.push(DoneWindow {
                from: stored.from,
                to: stored.to,
                queries: stored.queries,
                records: read.found.count,
                events: stored.events,
                readings: read.readings,
            });
            let secs = span.as_secs().unsigned_abs();
            self.working.progress.done_secs.fetch_add(secs, Ordering::Relaxed);
        }
        self.save().await?;
        Ok(StepResult::Again)
    }

    /// Searches a window again, in two halves.
    async fn halve(
        &mut self,
        slot: JobKind,
        at: usize,
        why: &str,
        expected: Option<(u64, u64)>,
    ) -> Result<StepResult, HealStop> {
        let Some(job) = self.job_mut(slot) else { return Ok(StepResult::Again) };
        let window = job.windows.remove(at);
        let Some((first, second)) = plan::halves(window.window()) else {
            job.windows.insert(at, window);
            self.leave(slot, at, why.to_owned());
            self.save().await?;
            return Ok(StepResult::Again);
        };
        // If all records lie in one half, a search of that half may be truncated at the same number, so it proves
        // nothing.
        let proves = |own: u64, other: u64| (other > 0 || own == 0).then_some(own);
        let of_second = expected.and_then(|(first, second)| proves(second, first));
        let of_first = expected.and_then(|(first, second)| proves(first, second));
        for (half, expected) in [(second, of_second), (first, of_first)] {
            let queries = window.queries.clone();
            job.windows.insert(at, StoredWindow { expected, queries, ..StoredWindow::new(half) });
        }
        tracing::info!(
            tenant = %self.context.tenant, from = %window.from, to = %window.to,
            "a search of Microsoft Graph is made again in halves: {why}"
        );
        self.save().await?;
        Ok(StepResult::Again)
    }

    /// Handles a search that failed: another is made later, or the window is left.
    async fn came_to_nothing(&mut self, slot: JobKind, at: usize, why: String) -> Result<StepResult, HealStop> {
        let now = self.context.clock.monotonic();
        let Some(window) = self.job_mut(slot).and_then(|job| job.windows.get_mut(at)) else {
            return Ok(StepResult::Again);
        };
        window.query = None;
        window.submitted = None;
        window.failures += 1;
        let (failures, place) = (window.failures, (window.from, window.to));
        tracing::warn!(
            tenant = %self.context.tenant, from = %place.0, to = %place.1, failures,
            "heal-search-failed: a search of Microsoft Graph came to nothing: {why}"
        );
        if failures >= SEARCHES_MAX {
            self.leave(slot, at, why);
        } else {
            self.working.not_before.insert(place, now + AGAIN.after(failures));
        }
        self.save().await?;
        Ok(StepResult::Again)
    }

    fn leave(&mut self, slot: JobKind, at: usize, why: String) {
        if let Some(job) = self.job_mut(slot)
            && at < job.windows.len()
        {
            let window = job.windows.remove(at);
            job.left.push(LeftWindow { from: window.from, to: window.to, why });
        }
    }

    /// Delivers the record of a gap that is filled, and remembers it.
    pub(super) async fn declare_healed(
        &mut self,
        content_type: ContentType,
        part: Window,
        reason: &str,
        job: &StoredJob,
        now: Timestamp,
    ) -> Result<(), HealStop> {
        let late = job.types.get(content_type.as_str()).and_then(|all| all.first());
        let late = late.map_or(SignedDuration::ZERO, |wanted| wanted.from.duration_since(wanted.lead));
        let since = part.start.saturating_sub(late).unwrap_or(part.start);
        let of: Vec<&DoneWindow> = job.done.iter().filter(|done| done.from < part.end && since < done.to).collect();
        let mut queries: Vec<&str> = of.iter().flat_map(|done| done.queries.iter().map(String::as_str)).collect();
        queries.sort_unstable();
        queries.dedup();
        let events = of.iter().map(|done| done.events).sum();
        let notice = HealedNotice {
            tenant: &self.context.tenant,
            content_type,
            from: part.start,
            to: part.end,
            reason,
            queries: &queries,
            records: of.iter().map(|done| done.records).sum(),
            events,
            readings: of.iter().map(|done| u64::from(done.readings)).sum(),
            now,
        };
        let normaliser = self.context.normaliser.clone();
        let delivered = deliver_notice(&self.context, content_type, (now, Severity::Low), |out| {
            normaliser.render_healed(&notice, out);
        })
        .await;
        match delivered {
            Ok(()) => {}
            Err(NotNoticed::Stopped) => return Err(HealStop::Asked),
            Err(NotNoticed::State(error)) => return Err(error.into()),
        }
        let seconds = part.end.duration_since(part.start).as_secs().unsigned_abs();
        let tenant = metrics::tenant_label(&self.context.tenant);
        ::metrics::counter!(
            metrics::HEALED_GAP_SECONDS_TOTAL, "tenant" => tenant, "content_type" => content_type.as_str()
        )
        .increment(seconds);
        tracing::info!(
            tenant = %self.context.tenant, %content_type, from = %part.start, to = %part.end, events,
            "a gap is filled through Microsoft Graph"
        );
        self.stored.note_healed(content_type, HealedInterval { from: part.start, to: part.end, at: now, events });
        self.save().await?;
        Ok(())
    }
}
