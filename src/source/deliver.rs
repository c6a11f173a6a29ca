//! Delivers a batch to the host and retries until the host has accepted all of it.
//!
//! A refusal keeps the bytes and sends them again, with back-off, until the source stops. A host that shuts down
//! refuses everything; records it did not accept are fetched again. A rejection is judged by `delivery`: the batch is
//! offered in smaller parts, until `delivery` has found the records that the host rejects alone while it accepts
//! others. The caller sets those aside in the state store. A host that knows its own receivers (the embedded one)
//! judges by itself and names such records in its answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::health::{Component, HealthReporter, Level};
use crate::backoff::Backoff;
use crate::checkpoint::format::{AsideKind, AsideRecord, FORMAT};
use crate::clock::Clock;
use crate::delivery::{BatchSettled, Confirm, GroupBounds, Observer, Sink, Worker, Written};
use crate::host::{Batch, Delivery, Host, Unfit};
use crate::metrics;
use crate::model::ContentType;

/// Between two tries of a host that refuses a batch.
const RETRY: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));
/// Refusals in a row before health reports them: a sink that restarts is not a fault.
const REFUSALS_BEFORE_TROUBLE: u32 = 3;
/// Batches offered at once while rejections are judged.
const JUDGED_AT_ONCE: usize = 8;

/// A record the host rejected, ready to be stored.
#[derive(Debug)]
pub struct RejectedRecord {
    /// Its place in the batch.
    pub place: usize,
    /// Its content type.
    pub content_type: ContentType,
    /// The hash of its bytes.
    pub hash: u128,
    /// The form in which it is stored.
    pub record: AsideRecord,
}

impl RejectedRecord {
    /// In the form that a state change takes.
    pub fn stored(self) -> (ContentType, u128, AsideRecord) {
        (self.content_type, self.hash, self.record)
    }
}

/// The source stopped before the host accepted the records; they are fetched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// The outcome of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trial {
    /// The host accepted it.
    Delivered,
    /// The host rejects it.
    Rejected(String),
    /// The host refuses it, and does not say whether the record is the cause. The number grows as its receivers that
    /// refuse it accept others.
    Doubtful(String, u64),
    /// The host takes nothing now, or is away, by its own words.
    Away(String),
}

/// Delivers batches to one host.
#[derive(Clone)]
pub struct Deliverer {
    host: Arc<dyn Host>,
    clock: Arc<dyn Clock>,
    reporter: HealthReporter,
    /// Made at the first rejection, since most hosts never reject.
    judge: Arc<OnceLock<Judge>>,
}

/// Where rejected batches are judged.
struct Judge {
    worker: Worker,
    in_trouble: Arc<AtomicBool>,
}

impl Deliverer {
    /// Delivers to this host, and reports to `reporter` when the host keeps refusing.
    pub fn new(host: Arc<dyn Host>, clock: Arc<dyn Clock>, reporter: HealthReporter) -> Self {
        Self { host, clock, reporter, judge: Arc::default() }
    }

    /// Resolves when every record of `batch` is delivered or was rejected on its own; the latter are returned. Records
    /// that the host refuses after `stop` are not offered again.
    ///
    /// # Errors
    /// Stopped before the host took the records.
    pub async fn deliver(&self, batch: Batch, stop: &CancellationToken) -> Result<Vec<RejectedRecord>, Stopped> {
        let mut failures = RETRY.failures();
        let mut refusals = 0;
        loop {
            // While the host rejects everything, new batches wait with the others.
            let is_held = self.judge.get().is_some_and(|judge| judge.in_trouble.load(Ordering::Relaxed));
            let delivery = if is_held { None } else { Some(self.host.deliver(batch.clone()).await.await) };
            let delivery = match delivery {
                None | Some(Delivery::Rejected(_)) => self.judged(&batch).await,
                Some(delivery) => delivery,
            };
            let unfit = match delivery {
                Delivery::Delivered => Vec::new(),
                Delivery::DeliveredExcept(unfit) => unfit,
                Delivery::Refused(why) | Delivery::Rejected(why) => {
                    refusals += 1;
                    self.refused(&batch, &why, refusals);
                    self.pause(failures.pause(), stop).await?;
                    continue;
                }
            };
            let events = (batch.len() - unfit.len().min(batch.len())) as u64;
            ::metrics::counter!(metrics::EVENTS_TOTAL, "tenant" => batch.tenant.to_string(), "content_type" => batch.content_type.as_str()).increment(events);
            if refusals >= REFUSALS_BEFORE_TROUBLE {
                self.reporter.clear(Component::Delivery);
            }
            return Ok(self.set_aside(&batch, &unfit));
        }
    }

    /// Offers one record as a trial, once, and returns the outcome.
    pub(super) async fn try_once(&self, record: Batch) -> Trial {
        let batch = record.as_trial();
        match self.host.deliver(batch.clone()).await.await {
            Delivery::Delivered => Trial::Delivered,
            Delivery::DeliveredExcept(unfit) => {
                Trial::Rejected(unfit.into_iter().map(|unfit| unfit.why).next().unwrap_or_default())
            }
            Delivery::Rejected(why) => Trial::Rejected(why),
            Delivery::Refused(why) => match batch.doubt() {
                Some(taken) => Trial::Doubtful(why, taken),
                None => Trial::Away(why),
            },
        }
    }

    /// The monotonic clock.
    pub(super) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Waits before a batch is offered again.
    ///
    /// # Errors
    /// Stopped meanwhile, or before.
    pub async fn pause(&self, delay: Duration, stop: &CancellationToken) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Stopped),
            () = self.clock.sleep(delay) => Ok(()),
        }
    }

    async fn judged(&self, batch: &Batch) -> Delivery {
        let judge = self.judge.get_or_init(|| {
            let in_trouble = Arc::new(AtomicBool::new(false));
            let observer = HealthObserver { reporter: self.reporter.clone(), in_trouble: in_trouble.clone() };
            let sink = Box::new(HostSink(self.host.clone()));
            let worker = Worker::start(&batch.source, sink, self.clock.clone(), Arc::new(observer));
            Judge { worker, in_trouble }
        });
        let (settled, answer) = oneshot::channel();
        let confirm = Confirm::new(move |what| drop(settled.send(what)));
        judge.worker.enqueue(batch.clone(), confirm).await;
        match answer.await {
            Ok(BatchSettled::Delivered) => Delivery::Delivered,
            Ok(BatchSettled::Except(unfit)) => Delivery::DeliveredExcept(unfit),
            Ok(BatchSettled::Refused(why) | BatchSettled::Rejected(why)) => Delivery::Refused(why),
            Err(_) => Delivery::Refused("the host's answers are not judged any more".into()),
        }
    }

    fn refused(&self, batch: &Batch, why: &str, refusals: u32) {
        ::metrics::counter!(metrics::REFUSED_BATCHES_TOTAL, "tenant" => batch.tenant.to_string()).increment(1);
        tracing::debug!(source = %batch.source, batch = batch.id, why, "the host refused a batch, it is sent again");
        if refusals >= REFUSALS_BEFORE_TROUBLE {
            self.reporter.report(
                Component::Delivery,
                Level::Degraded,
                format!("the host refuses records: {why}"),
                "nothing is lost, they are sent again until it takes them",
            );
        }
    }

    fn set_aside(&self, batch: &Batch, unfit: &[Unfit]) -> Vec<RejectedRecord> {
        let Some(first) = unfit.first() else { return Vec::new() };
        tracing::error!(
            source = %batch.source, tenant = %batch.tenant, content_type = %batch.content_type, records = unfit.len(), why = first.why,
            "record-rejected: the host does not take records: each was rejected alone while it took others, or is larger than a sink's `record_bytes_max`; they are set aside in the state store (see `m365-audit state show`, `m365-audit state retry`)"
        );
        let records: Vec<_> = batch.records().collect();
        let aside = |unfit: &Unfit| {
            let record = records.get(unfit.record)?;
            let hash = blake3::hash(record.json);
            let mut first = [0; 16];
            first.copy_from_slice(&hash.as_bytes()[..16]);
            let aside = AsideRecord {
                format: FORMAT,
                why: unfit.why.clone(),
                since: self.clock.now(),
                time: record.time,
                severity: record.severity().as_str().to_owned(),
                kind: record.kind().as_ref().map(AsideKind::of),
                event: None,
                record: String::from_utf8_lossy(record.json).into_owned(),
            };
            let hash = u128::from_be_bytes(first);
            Some(RejectedRecord { place: unfit.record, content_type: batch.content_type, hash, record: aside })
        };
        unfit.iter().filter_map(aside).collect()
    }
}

/// A host as a receiver, batch by batch.
#[derive(Clone)]
struct HostSink(Arc<dyn Host>);

#[async_trait]
impl Sink for HostSink {
    fn bounds(&self) -> GroupBounds {
        GroupBounds { batches: 1, ..GroupBounds::default() }
    }

    fn beside(&self) -> Vec<Box<dyn Sink>> {
        (1..JUDGED_AT_ONCE).map(|_| Box::new(self.clone()) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let mut written = Vec::with_capacity(batches.len());
        for batch in batches {
            written.push(match self.0.deliver(batch.clone()).await.await {
                Delivery::Delivered => Written::Delivered,
                Delivery::Refused(why) => Written::refused(why),
                Delivery::Rejected(why) => Written::Rejected(why),
                // The host has the others; they arrive twice at a host that does not remember them.
                Delivery::DeliveredExcept(unfit) => {
                    Written::RejectedSome(unfit.into_iter().next().map_or_else(String::new, |unfit| unfit.why))
                }
            });
        }
        written
    }
}

/// Reports a host's faults to the source's board.
struct HealthObserver {
    reporter: HealthReporter,
    in_trouble: Arc<AtomicBool>,
}

impl Observer for HealthObserver {
    fn trouble(&self, _: &str, why: Option<&str>) {
        self.in_trouble.store(why.is_some(), Ordering::Relaxed);
        match why {
            Some(why) => self.reporter.report(
                Component::Delivery,
                Level::Degraded,
                format!("the host does not take records: {why}"),
                "nothing is lost, they are sent again until it takes them",
            ),
            None => self.reporter.clear(Component::Delivery),
        }
    }
}
