//! The embedded default host: records to the sinks that name their source, state in one file, health for a probe.
//!
//! Owns which sink takes which source and when a batch counts as delivered: when every sink of its source has confirmed
//! it. A batch that comes again goes only to the sinks that have not. Does not know how a sink writes (`delivery`,
//! [`sink`] and the files beside this folder), how state is stored ([`store`]), nor how any of it is configured.
//!
//! # Reloading
//! The host lives as long as the process; a reload changes its sinks one by one ([`EmbeddedHost::put_sink`],
//! [`EmbeddedHost::remove_sink`], [`EmbeddedHost::set_inputs`]) and leaves the others, their queues and the sources
//! that feed them alone. A sink that is being replaced keeps its place meanwhile and refuses batches, so that no batch
//! is confirmed without it.

pub mod completeness;
pub mod control;
pub mod descriptors;
mod host_name;
pub mod metrics_server;
pub mod notebook;
pub mod place;
pub mod receipts_key;
pub mod recorder;
pub mod registry;
pub mod selection;
pub mod series;
pub mod sink;
pub mod status;
pub mod status_html;
pub mod store;
pub mod writable;

pub use crate::host::memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::delivery::{BatchSettled, Confirm, Observer, Sink, Worker};
use crate::host::{Batch, Delivery, DeliveryTicket, Health, Host, Receipts, StateStore, TicketAnswer, Unfit};
use crate::metrics;
use crate::model::Timestamp;

use self::selection::{BatchShare, Selection};

/// A sink and the sources it takes.
pub struct SinkSpec {
    /// The sink's name in the configuration (`out` of `[sinks.out]`), unique among the sinks.
    pub name: String,
    /// Names of the sources it takes.
    pub inputs: Vec<String>,
    /// Which of their records it gets.
    pub selection: Selection,
    /// The sink.
    pub sink: Box<dyn Sink>,
}

/// The embedded host.
pub struct EmbeddedHost {
    routes: RwLock<Vec<SinkRoute>>,
    state: Arc<dyn StateStore>,
    clock: Arc<dyn Clock>,
    signals: Arc<HostSignals>,
}

#[derive(Clone)]
struct SinkRoute {
    worker: Arc<Worker>,
    inputs: Vec<String>,
    selection: Arc<Selection>,
}

/// The health of everything in the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// By source name.
    pub sources: BTreeMap<String, ReportedHealth>,
    /// By sink name; a sink that cannot write is degraded, since it retries for ever.
    pub sinks: BTreeMap<String, ReportedHealth>,
    /// The fault of the state's files; `None` when there is none.
    pub store: Option<ReportedHealth>,
}

impl HealthReport {
    /// What is wrong with the files of the state as of `now`; `None` when nothing is.
    #[doc(hidden)]
    pub fn set_store(&mut self, why: Option<String>, now: Timestamp) {
        let since = self.store.as_ref().map_or(now, |standing| standing.since);
        self.store = why.map(|why| ReportedHealth { health: Health::Degraded { why, since }, since });
    }
}

/// One health and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedHealth {
    /// The health last reported.
    pub health: Health,
    /// The time since which it holds.
    pub since: Timestamp,
}

/// A sink whose destination is gone for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkClosed {
    /// The sink's name.
    pub name: String,
    /// What happened.
    pub why: String,
}

/// The signals from the workers to the host.
struct HostSignals {
    report: watch::Sender<HealthReport>,
    closed: watch::Sender<Option<SinkClosed>>,
    clock: Arc<dyn Clock>,
}

impl EmbeddedHost {
    /// A host with these sinks, each on a task of the current tokio runtime.
    pub fn new(sinks: Vec<SinkSpec>, state: Arc<dyn StateStore>, clock: Arc<dyn Clock>) -> Self {
        let signals = Arc::new(HostSignals {
            report: watch::Sender::default(),
            closed: watch::Sender::default(),
            clock: clock.clone(),
        });
        let host = Self { routes: RwLock::default(), state, clock, signals };
        for spec in sinks {
            let route = host.start(spec);
            host.change(|routes| routes.push(route));
        }
        host
    }

    /// Adds a sink, or puts another in the place of the one with this name, which gets `grace` to write what it has.
    /// Open a file that the old sink holds only after [`EmbeddedHost::stop_sink`].
    pub async fn put_sink(&self, spec: SinkSpec, grace: Duration) {
        self.stop_sink(&spec.name, grace).await;
        let route = self.start(spec);
        self.change(|routes| match routes.iter_mut().find(|r| r.worker.name == route.worker.name) {
            Some(place) => *place = route,
            None => routes.push(route),
        });
    }

    /// Stops a sink, which gets `grace` to write what it has, and keeps its place: its sources are refused until
    /// [`EmbeddedHost::put_sink`] fills it or [`EmbeddedHost::remove_sink`] gives it up.
    pub async fn stop_sink(&self, name: &str, grace: Duration) {
        if let Some(route) = self.route(name) {
            route.worker.stop(grace, &*self.clock).await;
        }
    }

    /// Removes a sink, which gets `grace` to write what it has. From now on batches count as delivered without it.
    pub async fn remove_sink(&self, name: &str, grace: Duration) {
        let route = self.route(name);
        self.change(|routes| routes.retain(|r| &*r.worker.name != name));
        if let Some(route) = route {
            route.worker.stop(grace, &*self.clock).await;
        }
        self.signals.report.send_modify(|report| {
            report.sinks.remove(name);
        });
    }

    /// Changes which sources a running sink takes.
    pub fn set_inputs(&self, name: &str, inputs: Vec<String>) {
        self.change(|routes| {
            if let Some(route) = routes.iter_mut().find(|r| &*r.worker.name == name) {
                route.inputs = inputs;
            }
        });
    }

    /// Changes which of its sources' records a running sink gets.
    pub fn set_selection(&self, name: &str, selection: Selection) {
        self.change(|routes| {
            if let Some(route) = routes.iter_mut().find(|r| &*r.worker.name == name) {
                route.selection = Arc::new(selection);
            }
        });
    }

    /// Sets the fault of the state's files, or (`None`) clears it.
    pub fn store_trouble(&self, why: Option<String>) {
        let now = self.clock.now();
        self.signals.report.send_modify(|report| report.set_store(why, now));
    }

    /// Forgets the health of a source that is no longer run.
    pub fn forget_source(&self, name: &str) {
        self.signals.report.send_modify(|report| {
            report.sources.remove(name);
        });
    }

    /// The health of everything, now and on every change.
    pub fn report(&self) -> watch::Receiver<HealthReport> {
        self.signals.report.subscribe()
    }

    /// Resolves when a sink's destination is gone for good and the process should stop in an orderly way. The batches
    /// that sink had not written were refused.
    pub async fn closed(&self) -> SinkClosed {
        let mut closed = self.signals.closed.subscribe();
        match closed.wait_for(Option::is_some).await.map(|closed| closed.clone()) {
            Ok(Some(closed)) => closed,
            // This host owns the sender, so it outlives this borrow.
            _ => std::future::pending().await,
        }
    }

    /// Stops taking batches, gives the sinks `grace` to write those they have, and refuses the rest. Returns when every
    /// sink has ended.
    pub async fn shutdown(&self, grace: Duration) {
        let routes = self.routes.read().clone();
        join_all(routes.iter().map(|route| route.worker.stop(grace, &*self.clock))).await;
    }

    fn start(&self, spec: SinkSpec) -> SinkRoute {
        self.signals.trouble(&spec.name, None);
        let worker = Worker::start(&spec.name, spec.sink, self.clock.clone(), self.signals.clone());
        SinkRoute { worker: Arc::new(worker), inputs: spec.inputs, selection: Arc::new(spec.selection) }
    }

    fn route(&self, name: &str) -> Option<SinkRoute> {
        let routes = self.routes.read();
        routes.iter().find(|r| &*r.worker.name == name).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<SinkRoute>)) {
        change(&mut self.routes.write());
    }

    fn routes_of(&self, source: &str) -> Vec<SinkRoute> {
        let routes = self.routes.read();
        routes.iter().filter(|r| r.inputs.iter().any(|i| i == source)).cloned().collect()
    }
}

#[async_trait]
impl Host for EmbeddedHost {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        if batch.is_empty() {
            return DeliveryTicket::resolved(Delivery::Delivered);
        }
        let routes = self.routes_of(&batch.source);
        if routes.is_empty() {
            let why = format!("no sink has `{}` among its inputs", batch.source);
            return DeliveryTicket::resolved(Delivery::Refused(why));
        }
        let (answer, ticket) = DeliveryTicket::new();
        let verdict = Arc::new(PendingAnswer::new(answer));
        let mut handovers = Vec::new();
        for SinkRoute { worker, selection, .. } in routes {
            if batch.receipts.has(worker.id) {
                verdict.except(&worker.name, batch.receipts.unfit_for(worker.id));
                continue;
            }
            let share = selection.share(&batch);
            if share.is_empty() {
                verdict.settle(&worker.name, worker.id, &batch.receipts, &share, Vec::new());
                continue;
            }
            let (given, confirm) = (share.of(&batch), verdict.confirm(&worker, batch.receipts.clone(), share));
            handovers.push(async move { worker.enqueue(given, confirm).await });
        }
        drop(verdict);
        // Together, so that one full queue does not keep the batch from the other sinks.
        join_all(handovers).await;
        ticket
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, source: &str, health: Health) {
        self.signals.note(|report| &mut report.sources, source, health);
    }
}

impl HostSignals {
    fn note(
        &self,
        side: impl FnOnce(&mut HealthReport) -> &mut BTreeMap<String, ReportedHealth>,
        name: &str,
        health: Health,
    ) {
        let now = self.clock.now();
        self.report.send_if_modified(|report| {
            let side = side(report);
            match side.get_mut(name) {
                Some(standing) if standing.health == health => return false,
                Some(standing) => {
                    // The same state for another reason is not a new state.
                    if std::mem::discriminant(&standing.health) != std::mem::discriminant(&health) {
                        standing.since = now;
                    }
                    if let Health::Degraded { since, .. } = &health {
                        standing.since = *since;
                    }
                    standing.health = health;
                }
                None => {
                    let since = if let Health::Degraded { since, .. } = &health { *since } else { now };
                    side.insert(name.to_owned(), ReportedHealth { health, since });
                }
            }
            true
        });
    }
}

impl Observer for HostSignals {
    fn confirmed(&self, sink: &str, records: u64) {
        ::metrics::counter!(metrics::SINK_RECORDS_TOTAL, "sink" => sink.to_owned()).increment(records);
    }

    fn refused(&self, sink: &str) {
        ::metrics::counter!(metrics::SINK_RETRIES_TOTAL, "sink" => sink.to_owned()).increment(1);
    }

    fn held_back(&self, sink: &str, is_held: bool) {
        ::metrics::gauge!(metrics::SINK_HELD_BACK, "sink" => sink.to_owned()).set(f64::from(u8::from(is_held)));
    }

    fn oldest_request(&self, sink: &str, age: Duration) {
        ::metrics::gauge!(metrics::SINK_OLDEST_REQUEST_SECONDS, "sink" => sink.to_owned()).set(age.as_secs_f64());
    }

    fn trouble(&self, sink: &str, why: Option<&str>) {
        let health = match why {
            None => Health::Healthy,
            Some(why) => {
                let since = match self.report.borrow().sinks.get(sink) {
                    Some(ReportedHealth { health: Health::Degraded { since, .. }, .. }) => *since,
                    _ => self.clock.now(),
                };
                Health::Degraded { why: why.to_owned(), since }
            }
        };
        self.note(|report| &mut report.sinks, sink, health);
    }

    fn closed(&self, sink: &str, why: &str) {
        self.note(|report| &mut report.sinks, sink, Health::Failed { why: why.to_owned() });
        let first = SinkClosed { name: sink.to_owned(), why: why.to_owned() };
        self.closed.send_if_modified(|closed| {
            let is_first = closed.is_none();
            closed.get_or_insert(first);
            is_first
        });
    }
}

/// The answers of the sinks to one delivery so far. The last sink to settle drops it, which answers the ticket.
struct PendingAnswer {
    worst: Mutex<Delivery>,
    answer: Option<TicketAnswer>,
}

impl PendingAnswer {
    fn new(answer: TicketAnswer) -> Self {
        Self { worst: Mutex::new(Delivery::Delivered), answer: Some(answer) }
    }

    /// For a sink that is given this share of the batch.
    fn confirm(self: &Arc<Self>, worker: &Worker, receipts: Receipts, share: BatchShare) -> Confirm {
        let (verdict, id, name) = (self.clone(), worker.id, worker.name.clone());
        Confirm::new(move |settled| match settled {
            BatchSettled::Delivered => verdict.settle(&name, id, &receipts, &share, Vec::new()),
            BatchSettled::Except(unfit) => verdict.settle(&name, id, &receipts, &share, unfit),
            BatchSettled::Refused(why) => verdict.note(Delivery::Refused(format!("sink `{name}`: {why}"))),
            BatchSettled::Rejected(why) => verdict.note(Delivery::Rejected(format!("sink `{name}`: {why}"))),
        })
    }

    /// Records that the sink accepted its share except for these records.
    fn settle(&self, sink: &str, id: u32, receipts: &Receipts, share: &BatchShare, refused: Vec<Unfit>) {
        let count = |name, records: u64| {
            if records > 0 {
                ::metrics::counter!(name, "sink" => sink.to_owned()).increment(records);
            }
        };
        count(metrics::SINK_FILTERED_TOTAL, share.filtered);
        count(metrics::SINK_OVERSIZED_TOTAL, share.too_large.len() as u64);
        let unfit = share.unfit(refused);
        receipts.add_except(id, unfit.clone());
        self.except(sink, unfit);
    }

    /// Records that the sink accepted all records except these.
    fn except(&self, sink: &str, unfit: Vec<Unfit>) {
        if !unfit.is_empty() {
            let named = |unfit: Unfit| Unfit { why: format!("sink `{sink}`: {}", unfit.why), ..unfit };
            self.note(Delivery::DeliveredExcept(unfit.into_iter().map(named).collect()));
        }
    }

    /// A refusal outweighs all other answers: the source must keep the whole batch for the sink that refused it.
    fn note(&self, delivery: Delivery) {
        let rank = |delivery: &Delivery| match delivery {
            Delivery::Delivered => 0,
            Delivery::DeliveredExcept(_) => 1,
            Delivery::Rejected(_) => 2,
            Delivery::Refused(_) => 3,
        };
        let mut worst = self.worst.lock();
        match (&mut *worst, delivery) {
            (Delivery::DeliveredExcept(known), Delivery::DeliveredExcept(more)) => {
                for unfit in more {
                    match known.iter_mut().find(|known| known.record == unfit.record) {
                        Some(known) => known.why = format!("{}; {}", known.why, unfit.why),
                        None => known.push(unfit),
                    }
                }
                known.sort_by_key(|unfit| unfit.record);
            }
            (worst, delivery) if rank(&delivery) >= rank(worst) => *worst = delivery,
            _ => {}
        }
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        let worst = self.worst.get_mut().clone();
        if let Some(answer) = self.answer.take() {
            answer.answer(worst);
        }
    }
}
