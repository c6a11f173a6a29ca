//! A host that remembers what it was given and answers as it is told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use m365_audit::clock::{Clock, TestClock};
use m365_audit::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateStore, TicketAnswer};
use m365_audit::hosts::embedded::EmbeddedHost;
use m365_audit::hosts::embedded::sink::{Sink, Written};
use m365_audit::sim::Delivered;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::watch::Watch;
use crate::world::SOURCE;

/// How the host answers a batch.
#[derive(Clone, Copy)]
pub enum Manner {
    /// Takes it at once.
    Take,
    /// Keeps it unanswered until [`Recorder::release`].
    Hold,
    /// Refuses it.
    Refuse,
    /// Forgets it: the ticket is dropped.
    Forget,
    /// Rejects every batch, whatever it holds.
    RejectAll,
    /// Rejects every batch that holds a record this is true of.
    RejectIf(fn(&Value) -> bool),
}

/// What was delivered, over all restarts.
pub struct Recorder {
    watch: Arc<Watch>,
    inner: Mutex<Inner>,
    activity: AtomicU64,
    received: AtomicU64,
}

struct Inner {
    manner: Manner,
    /// Goes before `manner`, one batch each.
    next: VecDeque<Manner>,
    records: Vec<Vec<u8>>,
    held: Vec<(Batch, TicketAnswer)>,
    health: Vec<Health>,
    refused: u64,
    held_bytes_max: usize,
}

impl Recorder {
    pub fn new(watch: Arc<Watch>) -> Self {
        let inner = Inner {
            manner: Manner::Take,
            next: VecDeque::new(),
            records: Vec::new(),
            held: Vec::new(),
            health: Vec::new(),
            refused: 0,
            held_bytes_max: 0,
        };
        Self { watch, inner: Mutex::new(inner), activity: AtomicU64::new(0), received: AtomicU64::new(0) }
    }

    pub fn activity(&self) -> u64 {
        self.activity.load(Ordering::SeqCst)
    }

    /// Bytes of content, as [`Host::received`] was told.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }

    pub fn answer(&self, manner: Manner) {
        self.inner.lock().unwrap().manner = manner;
    }

    pub fn answer_next(&self, n: usize, manner: Manner) {
        self.inner.lock().unwrap().next.extend(std::iter::repeat_n(manner, n));
    }

    /// Takes what was held and everything from now on.
    pub fn release(&self) {
        let held = {
            let mut inner = self.inner.lock().unwrap();
            inner.manner = Manner::Take;
            std::mem::take(&mut inner.held)
        };
        for (batch, answer) in held {
            self.take(&batch);
            answer.answer(Delivery::Delivered);
        }
    }

    /// Answers what is held in this way.
    pub fn answer_held(&self, answer_with: Delivery) {
        let held = std::mem::take(&mut self.inner.lock().unwrap().held);
        for (batch, answer) in held {
            if answer_with == Delivery::Delivered {
                self.take(&batch);
            }
            answer.answer(answer_with.clone());
        }
    }

    /// Refuses what is held but the last `taken` batches, which it takes, and refuses everything from now on.
    pub fn answer_held_apart(&self, taken: usize) {
        let held = {
            let mut inner = self.inner.lock().unwrap();
            inner.manner = Manner::Refuse;
            std::mem::take(&mut inner.held)
        };
        let refused = held.len() - taken;
        for (at, (batch, answer)) in held.into_iter().enumerate() {
            if at >= refused {
                self.take(&batch);
                answer.answer(Delivery::Delivered);
            } else {
                answer.answer(Delivery::Refused("the agent ends".into()));
            }
        }
    }

    /// Takes or refuses the batch at this place among those held, and refuses everything new from now on; the others stay
    /// held.
    pub fn answer_one_held(&self, place: usize, takes: bool) {
        let (batch, answer) = {
            let mut inner = self.inner.lock().unwrap();
            inner.manner = Manner::Refuse;
            inner.held.remove(place)
        };
        if takes {
            self.take(&batch);
            answer.answer(Delivery::Delivered);
        } else {
            answer.answer(Delivery::Refused("the agent ends".into()));
        }
    }

    pub fn held(&self) -> usize {
        self.inner.lock().unwrap().held.len()
    }

    /// Events in the batches that are held.
    pub fn held_events(&self) -> usize {
        self.inner.lock().unwrap().held.iter().map(|(batch, _)| batch.len()).sum()
    }

    pub fn held_bytes_max(&self) -> usize {
        self.inner.lock().unwrap().held_bytes_max
    }

    pub fn refused(&self) -> u64 {
        self.inner.lock().unwrap().refused
    }

    /// Forgets what a killed process left unanswered.
    pub fn forget_held(&self) {
        self.inner.lock().unwrap().held.clear();
    }

    pub fn health(&self) -> Health {
        self.inner.lock().unwrap().health.last().cloned().unwrap_or(Health::Healthy)
    }

    pub fn healths(&self) -> Vec<Health> {
        self.inner.lock().unwrap().health.clone()
    }

    /// How many audit events were taken.
    pub fn event_count(&self) -> usize {
        self.delivered().len()
    }

    /// The audit events taken, to be compared with the truth.
    pub fn delivered(&self) -> Vec<Delivered> {
        #[derive(Deserialize)]
        struct Native<'a> {
            event_id: Option<String>,
            timestamp: String,
            tenant_id: String,
            #[serde(borrow)]
            raw: Option<&'a RawValue>,
        }
        let inner = self.inner.lock().unwrap();
        let mut out = Vec::new();
        for record in &inner.records {
            let native: Native = serde_json::from_slice(record).expect("a record is a JSON object");
            let Some(raw) = native.raw else { continue };
            out.push(Delivered {
                raw: raw.get().as_bytes().to_vec(),
                id: native.event_id,
                tenant: Some(native.tenant_id.parse().expect("a tenant id")),
                timestamp: Some(native.timestamp.parse().expect("a timestamp")),
            });
        }
        out
    }

    /// Every record taken.
    pub fn records(&self) -> Vec<Value> {
        self.inner.lock().unwrap().records.iter().map(|record| serde_json::from_slice(record).unwrap()).collect()
    }

    /// Records of our own of this `event_type`.
    pub fn notices(&self, event_type: &str) -> Vec<Value> {
        let inner = self.inner.lock().unwrap();
        let parsed = inner.records.iter().map(|record| serde_json::from_slice::<Value>(record).unwrap());
        parsed.filter(|record| record["event_type"] == event_type).collect()
    }

    fn take(&self, batch: &Batch) {
        let mut inner = self.inner.lock().unwrap();
        for record in batch.records() {
            self.watch.confirm(&serde_json::from_slice(record.json).expect("a record is a JSON object"));
            inner.records.push(record.json.to_vec());
        }
    }

    fn deliver(&self, batch: Batch) -> DeliveryTicket {
        self.activity.fetch_add(1, Ordering::SeqCst);
        let manner = {
            let mut inner = self.inner.lock().unwrap();
            inner.next.pop_front().unwrap_or(inner.manner)
        };
        match manner {
            Manner::Take => {
                self.take(&batch);
                DeliveryTicket::resolved(Delivery::Delivered)
            }
            Manner::Hold => {
                let (answer, ticket) = DeliveryTicket::new();
                let mut inner = self.inner.lock().unwrap();
                inner.held.push((batch, answer));
                let bytes = inner.held.iter().map(|(batch, _)| batch.ndjson().len()).sum();
                inner.held_bytes_max = inner.held_bytes_max.max(bytes);
                ticket
            }
            Manner::Refuse => {
                self.inner.lock().unwrap().refused += 1;
                DeliveryTicket::resolved(Delivery::Refused("the test says so".into()))
            }
            Manner::Forget => DeliveryTicket::new().1,
            Manner::RejectAll => DeliveryTicket::resolved(Delivery::Rejected("the test says so".into())),
            Manner::RejectIf(bad) => {
                let records: Vec<Value> =
                    batch.records().map(|record| serde_json::from_slice(record.json).unwrap()).collect();
                if records.iter().any(bad) {
                    if let [only] = records.as_slice() {
                        // It is the source's now, to be set aside.
                        self.watch.confirm(only);
                    }
                    return DeliveryTicket::resolved(Delivery::Rejected("the test says so".into()));
                }
                self.take(&batch);
                DeliveryTicket::resolved(Delivery::Delivered)
            }
        }
    }
}

/// A sink of the embedded host. Its receiver answers as the recorder is told, and a request that has no answer after
/// `timeout` is given up, as those of `http` and `otlp` are.
pub struct RecordingSink {
    pub recorder: Arc<Recorder>,
    pub clock: TestClock,
    pub timeout: Duration,
}

#[async_trait]
impl Sink for RecordingSink {
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let answers = join_all(batches.iter().map(|batch| self.recorder.deliver(batch.clone())));
        let answers = tokio::select! {
            answers = answers => answers,
            () = self.clock.sleep(self.timeout) => {
                self.recorder.forget_held();
                let why = format!("no answer within {} s", self.timeout.as_secs());
                return vec![Written::Unclear(why); batches.len()];
            }
        };
        let written = |answer| match answer {
            Delivery::Delivered => Written::Delivered,
            Delivery::Refused(why) => Written::refused(why),
            Delivery::Rejected(why) => Written::Rejected(why),
            Delivery::DeliveredExcept(unfit) => panic!("no manner answers so: {unfit:?}"),
        };
        answers.into_iter().map(written).collect()
    }
}

/// The host of one run of the process.
pub struct RecordingHost {
    pub recorder: Arc<Recorder>,
    /// What takes the records, if it is not the recorder itself: its sink is a [`RecordingSink`].
    pub embedded: Option<EmbeddedHost>,
    pub store: Arc<dyn StateStore>,
}

#[async_trait]
impl Host for RecordingHost {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        match &self.embedded {
            Some(embedded) => embedded.deliver(batch).await,
            None => self.recorder.deliver(batch),
        }
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.store.clone()
    }

    fn health(&self, _source: &str, health: Health) {
        self.recorder.inner.lock().unwrap().health.push(health);
    }

    fn received(&self, source: &str, bytes: usize) {
        assert_eq!(source, SOURCE);
        self.recorder.received.fetch_add(bytes as u64, Ordering::SeqCst);
    }
}
