//! The loop of a tenant: listers find blobs, the loop has them fetched and settled, and settled blobs move the
//! position.
//!
//! It waits for the next event (`Loop::select`), passes it to `Decisions`, and begins the resulting actions as tasks of
//! their own. Listers, fetches and the ledger's writer report to it; it waits for none of them, so that a slow host,
//! store or listing holds up only itself.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::aside::AsideRecords;
use super::backfill;
use super::checkpoints;
use super::context::FetchContext;
use super::decisions::{ActionResult, DecisionInputs, Decisions, LoopAction, LoopEvent, SavedStreams};
use super::error::SourceError;
use super::heal::AtWork;
use super::health::{Component, HealthReporter, Level};
use super::listing::{LastListed, Lister, ListerReport, ListerSettings};
use super::opening::open_ledger;
use super::parts::TenantParts;
use super::pauses::{self, ONCE_ATTEMPTS_MAX};
use super::reading::TenantTurn;
use super::release;
use super::report::Report;
use super::subscription::Subscriptions;
use super::tasks::Tasks;
use crate::api::Action as Advice;
use crate::checkpoint::ledger::{Change, LedgerHandle, OpenedLedger};
use crate::checkpoint::server_clock::ServerClock;
use crate::host::StateError;
use crate::model::{Actionable, BlobRef, ContentType};

/// A stop waits this long for what is in flight.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// Runs one tenant until `stop`, or with `once` until everything listed is settled.
///
/// # Errors
/// When the state cannot be opened or written, or (with `once`) signing in or listing subscriptions fails.
pub async fn run(mut parts: Box<TenantParts>, stop: CancellationToken) -> Result<Report, SourceError> {
    let reporter =
        HealthReporter::new(parts.source.clone(), parts.tenant.clone(), parts.host.clone(), parts.clock.clone());
    // Futures that run once and values that are passed on are boxed. A tenant's task lives for months, a process may
    // have a thousand, and a future keeps room for a value in each place that the value passed through.
    let opened = Box::pin(open_ledger(&parts, &reporter, &stop)).await?;
    let Some(opened) = opened else { return Ok(Report::default()) };
    reporter.publish();
    let (
        OpenedLedger { ledger, handle, tenant, positions, tracked, aside, to_send, events, healed, blobs, there },
        hold,
    ) = *opened;
    // All readers are done with it, and it may be some mebibytes.
    drop(there);
    parts.server.reset(ServerClock::not_before(tenant.server_time));
    let mut writer = tokio::spawn(tracing::Instrument::in_current_span(ledger.run()));
    let result = async {
        let context = FetchContext::new(&parts, &reporter, handle.clone(), (events, healed), hold, &stop);
        let of = (parts.source.clone(), parts.tenant.clone(), parts.content_types.clone());
        let set_aside = AsideRecords::new(
            of,
            context.deliverer.clone(),
            handle.clone(),
            context.store.clone(),
            context.stop.clone(),
        );
        let asked = parts.retries.take();
        // Begins before Microsoft has answered, since the records set aside do not depend on it.
        let retries = Box::pin(set_aside.serve(asked));
        let checkpoints = Box::pin(checkpoints::send(context.clone(), to_send));
        let to_offer = (aside > 0).then(|| Box::new(set_aside.clone()));
        let run = std::pin::pin!(async {
            let enabled = Box::pin(subscriptions_on(&parts, &reporter, &stop)).await?;
            let Some(enabled) = enabled else { return Ok(Report::default()) };
            let subscriptions = Subscriptions::new(
                parts.api.clone(),
                parts.server.clone(),
                parts.clock.clone(),
                handle.clone(),
                tenant,
            );
            let reader = Box::new(backfill::BackfillReader::new(&parts, &context, subscriptions.clone()));
            let healing = Box::pin(AtWork::begin(&mut parts, &context, &reporter, &stop)).await;
            let healing = healing.map_err(|source| SourceError::State { tenant: parts.tenant.clone(), source })?;
            let backfills = std::pin::pin!(backfill::serve(parts.backfill_queue.take(), reader));
            let remembered = SavedStreams { positions, settled: blobs };
            let tenant_loop = Box::new(Loop::new(parts, reporter, context, subscriptions, handle, remembered, stop));
            let mut report = tokio::select! {
                report = tenant_loop.run(&mut writer, enabled, tracked, to_offer) => report,
                () = backfills => Err(SourceError::Internal("the desk for back-fills closed".into())),
            };
            let left = healing.ended(report.is_ok()).await;
            if let Ok(report) = &mut report {
                report.left.extend(left);
            }
            report
        });
        tokio::select! {
            report = run => report,
            () = retries => Err(SourceError::Internal("nobody offers what was set aside".into())),
            () = checkpoints => Err(SourceError::Internal("nobody sends checkpoints".into())),
        }
    }
    .await;
    end_writer(writer).await;
    result
}

/// Every handle is gone by now: the writer ends when it has written what it was given.
async fn end_writer<T>(mut writer: JoinHandle<T>) {
    if !writer.is_finished() {
        let _ = tokio::time::timeout(STOP_GRACE, &mut writer).await;
        writer.abort();
    }
}

/// Asks which subscriptions are on, until Microsoft answers (`None`: stopped).
async fn subscriptions_on(
    parts: &TenantParts,
    reporter: &HealthReporter,
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
                reporter.clear(Component::Tenant);
                // Microsoft's own sample has an entry without a status: a listing will show whether it is on.
                let on = list.into_iter().filter(|s| s.is_enabled() != Some(false));
                return Ok(Some(on.filter_map(|s| s.content_type).collect()));
            }
            Err(error) => error,
        };
        failures += 1;
        let slow = matches!(error.action(), Advice::SlowRetryTenant | Advice::ParkType);
        if slow {
            reporter.report(Component::Tenant, Level::Failed, format!("{}: {error}", error.slug()), &error.hint());
        } else if failures >= 3 {
            reporter.report(Component::Tenant, Level::Degraded, format!("{}: {error}", error.slug()), &error.hint());
        }
        if parts.once && (slow || failures >= ONCE_ATTEMPTS_MAX) {
            return Err(SourceError::Api { source: Box::new(error) });
        }
        let pause = if slow {
            parts.poll_interval.max(Duration::from_secs(60))
        } else {
            if parts.once { pauses::SUBSCRIPTIONS_ONCE } else { pauses::SUBSCRIPTIONS }.after(failures)
        };
        tokio::select! {
            () = parts.clock.sleep(pause) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// How the loop ended, when nothing failed.
struct LoopStopped;

struct Loop {
    parts: Box<TenantParts>,
    reporter: HealthReporter,
    context: FetchContext,
    subscriptions: Subscriptions,
    last_listed: LastListed,
    ledger: LedgerHandle,
    decisions: Decisions,
    tasks: Tasks<ActionResult>,
    listers: Tasks<()>,
    /// Boxed, since a channel has room for 32 from the start.
    found: mpsc::Receiver<Box<ListerReport>>,
    finder: mpsc::Sender<Box<ListerReport>>,
    /// The records that an earlier run set aside, until they are offered.
    to_offer: Option<Box<AsideRecords>>,
    stop: CancellationToken,
}

impl Loop {
    fn new(
        parts: Box<TenantParts>,
        reporter: HealthReporter,
        context: FetchContext,
        subscriptions: Subscriptions,
        ledger: LedgerHandle,
        remembered: SavedStreams,
        stop: CancellationToken,
    ) -> Self {
        let terms = DecisionInputs {
            tenant: parts.tenant.clone(),
            once: parts.once,
            poll_interval: parts.poll_interval,
            dropping: parts.hold.dropping,
            hold_for: parts.hold.hold,
            clock: parts.clock.clone(),
            server: parts.server.clone(),
            reporter: reporter.clone(),
            hold: context.hold.clone(),
            budget: context.budget.clone(),
            reading: TenantTurn::new(parts.turns.seat()),
        };
        let decisions = Decisions::new(terms, &parts.content_types, parts.backfill, remembered);
        let (finder, found) = mpsc::channel(64);
        Self {
            parts,
            reporter,
            context,
            subscriptions,
            last_listed: LastListed::default(),
            ledger,
            decisions,
            tasks: Tasks::new(),
            listers: Tasks::new(),
            found,
            finder,
            to_offer: None,
            stop,
        }
    }

    async fn run(
        mut self: Box<Self>,
        writer: &mut JoinHandle<Result<(), StateError>>,
        enabled: Vec<ContentType>,
        tracked: Vec<BlobRef>,
        to_offer: Option<Box<AsideRecords>>,
    ) -> Result<Report, SourceError> {
        self.decisions.begin(&enabled, tracked, to_offer.is_some());
        self.to_offer = to_offer;
        let ended = loop {
            self.start_actions();
            if self.decisions.is_finished() {
                break Ok(());
            }
            match self.select(writer).await {
                Ok(Ok(event)) => {
                    if let Err(error) = self.decisions.apply(event) {
                        break Err(error);
                    }
                }
                Ok(Err(LoopStopped)) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        Box::pin(self.wind_up(ended.is_ok())).await;
        ended.map(|()| self.decisions.report())
    }

    /// Waits for the next event.
    async fn select(
        &mut self,
        writer: &mut JoinHandle<Result<(), StateError>>,
    ) -> Result<Result<LoopEvent, LoopStopped>, SourceError> {
        let wait = self.decisions.next_due().saturating_sub(self.parts.clock.monotonic());
        tokio::select! {
            Some(found) = self.found.recv() => Ok(Ok(LoopEvent::Found(*found))),
            Some(done) = self.tasks.join_next() => match done {
                Ok(done) => Ok(Ok(LoopEvent::Done(done))),
                // A task that panicked is a bug; its blob is unsettled and will be listed again after a restart.
                Err(error) => Err(SourceError::Internal(error.to_string())),
            },
            () = self.decisions.downloads().ended() => Ok(Ok(LoopEvent::Woken)),
            () = self.context.hold.woken() => Ok(Ok(LoopEvent::Woken)),
            () = self.decisions.turn_came() => Ok(Ok(LoopEvent::Woken)),
            () = self.parts.clock.sleep(wait) => Ok(Ok(LoopEvent::Due(self.parts.api.granted_per_minute()))),
            ended = &mut *writer => Err(match ended {
                Ok(Err(source)) => SourceError::State { tenant: self.parts.tenant.clone(), source },
                Ok(Ok(())) => SourceError::Internal("the ledger ended early".into()),
                Err(error) => SourceError::Internal(error.to_string()),
            }),
            () = self.stop.cancelled() => Ok(Err(LoopStopped)),
        }
    }

    /// Begins the actions decided on.
    fn start_actions(&mut self) {
        while let Some(action) = self.decisions.next_action() {
            self.start(action);
        }
    }

    fn start(&mut self, action: LoopAction) {
        match action {
            LoopAction::List(content_type, subscribed) => self.start_lister(content_type, subscribed),
            LoopAction::OfferAside => {
                let (set_aside, once) = (self.to_offer.take(), self.parts.once);
                self.tasks.spawn(async move { ActionResult::Aside(offer(set_aside, once).await) });
            }
            LoopAction::Fetch(job, download) => {
                let context = self.context.clone();
                self.tasks.spawn(async move {
                    let outcome = context.settle((*job).clone(), Box::new(move |reading| download.end(reading))).await;
                    ActionResult::Blob(job, outcome)
                });
            }
            LoopAction::ReportLost(job, gap) => {
                let context = self.context.clone();
                self.tasks.spawn(async move {
                    let result = gap.deliver(&context, Some(&job.blob.id)).await;
                    ActionResult::Lost(gap.content_type, job.key, result)
                });
            }
            LoopAction::Declare(gap) => {
                let context = self.context.clone();
                self.tasks.spawn(async move {
                    let result = gap.deliver(&context, None).await;
                    ActionResult::Gap(gap, result)
                });
            }
            LoopAction::Write(positions, lost) => {
                let ledger = self.ledger.clone();
                let change = Change { positions, settled: lost.clone(), untracked: lost, ..Change::default() };
                self.tasks.spawn(async move { ActionResult::Written(ledger.commit(change).await) });
            }
            LoopAction::Expire => {
                let (subscriptions, server) = (self.subscriptions.clone(), self.parts.server.clone());
                let ledger = self.ledger.clone();
                self.tasks.spawn(async move {
                    let tenant = Some(subscriptions.tenant_state().await);
                    let change = Change { tenant, expire_at: server.trusted(), ..Change::default() };
                    ActionResult::Aside(ledger.commit(change).await)
                });
            }
            LoopAction::TendHold(now) => {
                let context = self.context.clone();
                self.tasks.spawn(async move { ActionResult::Held(release::turn(&context, now).await) });
            }
        }
    }

    fn start_lister(&mut self, content_type: ContentType, subscribed: bool) {
        let Some(stream) = self.decisions.stream(content_type) else { return };
        let lister = Box::new(Lister {
            tenant: self.parts.tenant.clone(),
            content_type,
            api: self.parts.api.clone(),
            clock: self.parts.clock.clone(),
            server: self.parts.server.clone(),
            reporter: self.reporter.clone(),
            subscriptions: self.subscriptions.clone(),
            settled: stream.settled.clone(),
            last_listed: self.last_listed.clone(),
            refused_since: None,
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

    /// Ends listers and downloads, waits a while for what is in flight, writes the last positions.
    async fn wind_up(&mut self, state_is_good: bool) {
        self.context.stop.cancel();
        self.listers.shutdown().await;
        if state_is_good {
            let grace = tokio::time::sleep(STOP_GRACE);
            tokio::pin!(grace);
            loop {
                self.start_actions();
                tokio::select! {
                    done = self.tasks.join_next() => match done {
                        Some(Ok(done)) => if self.decisions.wind_up(done).is_err() { break },
                        Some(Err(_)) => {}
                        None => if !self.decisions.write_last_positions() { break },
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
}

/// Offers the records set aside. If the store cannot be read now, the next start offers them.
async fn offer(set_aside: Option<Box<AsideRecords>>, once: bool) -> Result<(), StateError> {
    let Some(set_aside) = set_aside else { return Ok(()) };
    match set_aside.offer_at_start(once).await {
        Err(StateError::Unavailable(why)) => {
            tracing::warn!("state-not-read: what is set aside is not offered at this start: {why}");
            Ok(())
        }
        result => result,
    }
}
