//! Vector as the library sees it: events, acknowledgements, telemetry.
//!
//! A batch is confirmed when every sink behind this source has taken each of its events: `Delivered` moves the position,
//! `Errored` sends the same records again, `Rejected` splits the batch until the event stands alone and sets that aside
//! in the state.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound as _, Utc};
use m365_audit::{
    Batch, Delivery, DeliveryTicket, Health, Host, SqliteStore, StateStore, TicketAnswer,
    values::Timestamp,
};
use serde_json::{Map, Value as Json};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};
use vector_lib::{
    EstimatedJsonEncodedSizeOf as _,
    config::{LegacyKey, LogNamespace},
    event::{BatchNotifier, BatchStatus, BatchStatusReceiver, Event, LogEvent, ObjectMap, Value},
    internal_event::{CountByteSize, EventsReceived, InternalEventHandle as _, Registered},
    lookup::path,
};

use super::{M365AuditConfig, Runner, problems};
use crate::{
    SourceSender,
    config::log_schema,
    internal_events::{EndpointBytesReceived, M365AuditParseError, StreamClosedError},
};

/// Top-level fields that become timestamps: of `format = "native"`, and ECS's.
const TIME_FIELDS: &[&str] = &["timestamp", "content_created", "@timestamp"];

/// The mark of a batch, or of a part of one, that was rejected.
const REJECTED: u32 = 0;
/// That of one whose events are counted: what comes again is not received again.
const COUNTED: u32 = 1;

/// Vector's sinks join what they get into requests of their own, and reject all of one for one event in it. What was
/// rejected goes alone, so that in the end it is the event to blame that stands alone.
enum Turn {
    Together { _turn: OwnedRwLockReadGuard<()> },
    Alone { _turn: OwnedRwLockWriteGuard<()> },
}

/// A batch Vector has, and who waits for its word on it.
pub(super) struct Outstanding {
    batch: Batch,
    status: BatchStatusReceiver,
    answer: TicketAnswer,
    _turn: Turn,
}

impl Outstanding {
    pub(super) async fn settled(self) {
        self.answer.answer(match self.status.await {
            BatchStatus::Delivered => Delivery::Delivered,
            BatchStatus::Errored => {
                Delivery::Refused("a sink of Vector could not deliver (its log says why)".into())
            }
            // Perhaps for a neighbour's sake: once more, alone.
            BatchStatus::Rejected
                if self.batch.len() == 1 && !self.batch.receipts.has(REJECTED) =>
            {
                self.batch.receipts.add(REJECTED);
                Delivery::Refused("a sink of Vector rejected it, it is tried alone".into())
            }
            BatchStatus::Rejected => {
                self.batch.receipts.add(REJECTED);
                Delivery::Rejected("a sink of Vector rejected it (its log says why)".into())
            }
        });
    }
}

pub(super) struct VectorHost {
    out: SourceSender,
    /// Cancelled when nothing takes events any more.
    closed: CancellationToken,
    stop: CancellationToken,
    acknowledged: bool,
    namespace: LogNamespace,
    state: Arc<dyn StateStore>,
    settle: mpsc::UnboundedSender<Outstanding>,
    turns: Arc<RwLock<()>>,
    endpoint: String,
    events: Registered<EventsReceived>,
    /// The component's: the library calls from tasks of its own.
    span: Span,
}

impl VectorHost {
    pub(super) fn new(
        runner: &Runner,
        out: SourceSender,
        state: Arc<SqliteStore>,
        settle: mpsc::UnboundedSender<Outstanding>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            out,
            closed: CancellationToken::new(),
            stop,
            acknowledged: runner.acknowledged,
            namespace: runner.namespace,
            state,
            settle,
            turns: Arc::default(),
            endpoint: runner.endpoint.clone(),
            events: register!(EventsReceived),
            span: Span::current(),
        }
    }

    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    async fn send(&self, batch: Batch) -> DeliveryTicket {
        let mut events = Vec::with_capacity(batch.len());
        for record in batch.records() {
            match serde_json::from_slice::<Map<String, Json>>(record.json) {
                Ok(members) => events.push(self.event(members, record.time)),
                Err(error) => {
                    let why = format!("not an event: {error}");
                    emit!(M365AuditParseError {
                        code: "record_not_an_event",
                        error: &why,
                    });
                    // The library splits the batch until it is this record alone.
                    return DeliveryTicket::resolved(Delivery::Rejected(why));
                }
            }
        }
        if !batch.receipts.has(COUNTED) {
            batch.receipts.add(COUNTED);
            let byte_size = events.estimated_json_encoded_size_of();
            self.events.emit(CountByteSize(events.len(), byte_size));
        }
        let turn = if batch.receipts.has(REJECTED) {
            Turn::Alone {
                _turn: Arc::clone(&self.turns).write_owned().await,
            }
        } else {
            Turn::Together {
                _turn: Arc::clone(&self.turns).read_owned().await,
            }
        };
        let status = BatchNotifier::maybe_apply_to(self.acknowledged, &mut events);
        let count = events.len();
        // The room in Vector's channel is the back-pressure.
        if self.out.clone().send_batch(events).await.is_err() {
            if !self.closed.is_cancelled() {
                emit!(StreamClosedError { count });
            }
            self.closed.cancel();
            self.stop.cancel();
            return DeliveryTicket::resolved(Delivery::Refused("Vector is stopping".into()));
        }
        let Some(status) = status else {
            return DeliveryTicket::resolved(Delivery::Delivered);
        };
        let (answer, ticket) = DeliveryTicket::new();
        let outstanding = Outstanding {
            batch,
            status,
            answer,
            _turn: turn,
        };
        // Bounded by `in_flight_bytes_max`.
        if self.settle.send(outstanding).is_err() {
            debug!("The source has ended: the answer is dropped, which refuses the batch.");
        }
        ticket
    }

    fn event(&self, members: Map<String, Json>, time: Timestamp) -> Event {
        let mut fields = object(members);
        for name in TIME_FIELDS {
            if let Some(field) = fields.get_mut(*name)
                && let Some(text) = field.as_str()
                && let Ok(at) = DateTime::parse_from_rfc3339(&text)
            {
                *field = at.with_timezone(&Utc).into();
            }
        }
        let mut log = LogEvent::from(fields);
        if let Some(at) = DateTime::from_timestamp_micros(time.as_microsecond()) {
            self.namespace.insert_source_metadata(
                M365AuditConfig::NAME,
                &mut log,
                log_schema().timestamp_key().map(LegacyKey::InsertIfEmpty),
                path!("timestamp"),
                at,
            );
        }
        let now = Utc::now().trunc_subsecs(6);
        self.namespace
            .insert_standard_vector_source_metadata(&mut log, M365AuditConfig::NAME, now);
        log.into()
    }
}

#[async_trait::async_trait]
impl Host for VectorHost {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        self.send(batch).instrument(self.span.clone()).await
    }

    fn state(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.state)
    }

    fn health(&self, _: &str, health: Health) {
        let _entered = self.span.enter();
        match &health {
            Health::Healthy => debug!(message = "The source is healthy."),
            Health::Degraded { why, .. } => problems::tell(why, "degraded"),
            Health::Failed { why } => problems::tell(why, "failed"),
        }
    }

    fn received(&self, _: &str, bytes: usize) {
        let _entered = self.span.enter();
        let protocol = match self.endpoint.split_once(':') {
            Some((scheme, _)) => scheme,
            None => "https",
        };
        emit!(EndpointBytesReceived {
            byte_size: bytes,
            protocol,
            endpoint: &self.endpoint,
        });
    }
}

fn object(map: Map<String, Json>) -> ObjectMap {
    map.into_iter()
        .map(|(key, value)| (key.into(), typed(value)))
        .collect()
}

/// As Vector's own conversion, but for integers beyond 64 bits with a sign: their digits, not the nearest float.
fn typed(value: Json) -> Value {
    match value {
        Json::Number(n) if n.is_u64() && !n.is_i64() => n.to_string().into(),
        Json::Array(items) => Value::Array(items.into_iter().map(typed).collect()),
        Json::Object(map) => Value::Object(object(map)),
        other => other.into(),
    }
}
