//! The source `m365_audit` for Vector 0.58: the library's `Host` on Vector's acknowledgements and `data_dir`.
//!
//! Owns what is Vector's: the frame of the configuration, events, acknowledgements, metrics, the shutdown signal. All
//! else is the library's. A batch is confirmed when every sink behind this source has taken each of its events:
//! `Delivered` moves the position, `Errored` sends the same records again, `Rejected` splits the batch until the event
//! stands alone and sets that aside in the state (`m365-audit state show`). README.md beside this file says how to add
//! it to a Vector.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, SubsecRound as _, Utc};
use futures::stream::{FuturesUnordered, StreamExt as _};
use m365_audit::values::{Actionable as _, Problem, Timestamp};
use m365_audit::{
    Batch, Delivery, DeliveryTicket, Health, Host, M365Audit, Source as _, SourceConfig as Settings, SourceError,
    SqliteStore, StateError, StateStore, SystemClock, TicketAnswer,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use vector::SourceSender;
use vector::config::{SourceConfig, SourceContext};
use vector::serde::bool_or_struct;
use vector_lib::EstimatedJsonEncodedSizeOf as _;
use vector_lib::config::{DataType, LegacyKey, LogNamespace, SourceAcknowledgementsConfig, SourceOutput, log_schema};
use vector_lib::configurable::component::GenerateConfig;
use vector_lib::configurable::schema::{SchemaGenerator, SchemaObject};
use vector_lib::configurable::{Configurable, GenerateError, Metadata, configurable_component};
use vector_lib::event::{BatchNotifier, BatchStatus, BatchStatusReceiver, Event, LogEvent, ObjectMap, Value};
use vector_lib::internal_event::{
    ByteSize, BytesReceived, CountByteSize, EventsReceived, InternalEventHandle as _, Protocol, Registered,
};
use vector_lib::lookup::{owned_value_path, path};
use vector_lib::register;
use vector_lib::schema::Definition;
use vector_lib::shutdown::ShutdownSignal;
use vector_lib::source::Source;
use vector_lib::vrl::value::Kind;

/// Top-level fields that become timestamps: of `format = "native"`, and ECS's.
const TIME_FIELDS: &[&str] = &["timestamp", "content_created", "@timestamp"];
/// Pauses between two tries to open the state or to start the source again.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// Configuration for the `m365_audit` source.
#[configurable_component(source("m365_audit", "Collect the unified audit log of a Microsoft 365 tenant."))]
#[derive(Clone, Debug, Default)]
pub struct M365AuditConfig {
    #[configurable(derived)]
    #[serde(flatten)]
    keys: Keys,

    /// The directory under which this source's state is kept. By default, the global `data_dir` option is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[configurable(metadata(docs::examples = "/var/lib/vector"))]
    data_dir: Option<PathBuf>,

    #[configurable(derived)]
    #[serde(default, deserialize_with = "bool_or_struct", skip_serializing_if = "vector::serde::is_default")]
    acknowledgements: SourceAcknowledgementsConfig,

    /// The namespace to use for logs. This overrides the global setting.
    #[configurable(metadata(docs::hidden))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_namespace: Option<bool>,
}

/// The library's keys, as they are written. Their schema is the library's own, so that none can be forgotten here.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Keys(Map<String, Json>);

impl fmt::Debug for Keys {
    /// Names only: a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Configurable for Keys {
    fn metadata() -> Metadata {
        Metadata::with_description("What to collect, from which tenant and as whom.")
    }

    fn generate_schema(_: &RefCell<SchemaGenerator>) -> Result<SchemaObject, GenerateError> {
        let mut schema = Settings::json_schema();
        // Flattened into this component's schema, which closes the whole to unknown keys by itself.
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("additionalProperties");
        }
        serde_json::from_value(schema).map_err(|_| GenerateError::InvalidType)
    }
}

impl GenerateConfig for M365AuditConfig {
    fn generate_config() -> Json {
        let schema = Settings::json_schema();
        let keys = ["tenant_id", "client_id", "client_secret_file"];
        keys.map(|key| (key.to_owned(), schema["properties"][key]["examples"][0].clone())).into_iter().collect()
    }
}

#[async_trait]
#[typetag::serde(name = "m365_audit")]
impl SourceConfig for M365AuditConfig {
    async fn build(&self, cx: SourceContext) -> vector::Result<Source> {
        let name: Arc<str> = cx.key.id().into();
        let mut settings = Settings::parse_json(&name, self.keys.0.clone()).map_err(|problems| {
            let hint = |p: &Problem| p.hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
            let all: Vec<String> = problems.iter().map(|p| format!("{p}{}", hint(p))).collect();
            all.join("\n")
        })?;
        for warning in settings.warnings(&name) {
            warn!(message = "The configuration looks like a mistake.", problem = %warning);
        }
        // Without `proxy_url` the library reads the environment itself, `NO_PROXY` included.
        if settings.proxy_url.is_none()
            && let Some(proxy) = cx.proxy.https.as_ref().filter(|_| cx.proxy.enabled)
            && std::env::var("HTTPS_PROXY").or(std::env::var("https_proxy")).ok().as_ref() != Some(proxy)
        {
            settings.proxy_url = Some(proxy.parse()?);
        }
        let acknowledged = cx.do_acknowledgements(self.acknowledgements);
        let state_dir = cx.globals.resolve_and_make_data_subdir(self.data_dir.as_ref(), cx.key.id())?;
        let runner =
            Runner { name, settings, acknowledged, state_dir, namespace: cx.log_namespace(self.log_namespace) };
        Ok(Box::pin(runner.run(cx.out, cx.shutdown)))
    }

    fn outputs(&self, global: LogNamespace) -> Vec<SourceOutput> {
        let namespace = global.merge(self.log_namespace);
        let definition = Definition::default_for_namespace(&[namespace].into())
            .with_source_metadata(
                Self::NAME,
                log_schema().timestamp_key().cloned().map(LegacyKey::InsertIfEmpty),
                &owned_value_path!("timestamp"),
                Kind::timestamp(),
                Some("timestamp"),
            )
            .with_standard_vector_source_metadata();
        vec![SourceOutput::new_maybe_logs(DataType::Log, definition)]
    }

    fn can_acknowledge(&self) -> bool {
        true
    }
}

/// A source from its start to its end.
struct Runner {
    name: Arc<str>,
    settings: Settings,
    acknowledged: bool,
    state_dir: PathBuf,
    namespace: LogNamespace,
}

impl Runner {
    async fn run(self, out: SourceSender, shutdown: ShutdownSignal) -> Result<(), ()> {
        if !self.acknowledged {
            warn!(
                message = "No sink behind this source acknowledges: its position moves when Vector has events in memory, and what a crash takes from there is lost. Set `acknowledgements.enabled` on the sinks or globally.",
                internal_log_rate_limit = false
            );
        }
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (settle, mut waiting) = mpsc::unbounded_channel::<Outstanding>();
        let work = self.work(out, settle, stop);
        let mut outstanding = FuturesUnordered::new();
        // Held until the end: Vector takes its drop for the end of this source.
        let mut _token = None;
        tokio::pin!(shutdown, work);
        // One task: the library's work, Vector's answers and its wish to end.
        loop {
            tokio::select! {
                // Dropping the rest refuses it: the library waited for the answers as long as a stop may take.
                () = &mut work => return Ok(()),
                Some(batch) = waiting.recv() => outstanding.push(batch.settled()),
                Some(()) = outstanding.next() => {}
                token = &mut shutdown, if !stopped.is_cancelled() => {
                    _token = Some(token);
                    stopped.cancel();
                }
            }
        }
    }

    async fn work(self, out: SourceSender, settle: mpsc::UnboundedSender<Outstanding>, stop: CancellationToken) {
        let Some(store) = self.open_store(&stop).await else { return };
        info!(message = "Reading the audit log.", tenant = %self.settings.tenant_id, state = %self.state_dir.display());
        let host: Arc<dyn Host> = Arc::new(VectorHost {
            out,
            acknowledged: self.acknowledged,
            namespace: self.namespace,
            state: Arc::new(store),
            settle,
            turns: Arc::default(),
            bytes: register!(BytesReceived::from(Protocol::HTTPS)),
            events: register!(EventsReceived),
        });
        let mut delay = RETRY_DELAY_MIN;
        while !stop.is_cancelled() {
            let source = Box::new(M365Audit::new(self.name.clone(), self.settings.clone(), SystemClock::new()));
            let Err(error) = source.run(host.clone(), stop.clone()).await else { continue };
            let why = format!("{}: {error} (hint: {})", error.slug(), error.hint());
            error!(message = "The source ended.", %why);
            host.health(&self.name, Health::Failed { why });
            if matches!(error, SourceError::State { source: StateError::Conflict { .. }, .. }) {
                // Another writer owns the tenant. Ending would end all of Vector, so the others go on without us.
                stop.cancelled().await;
            }
            pause(&mut delay, &stop).await;
        }
        // Closing the state waits for its last commit.
        let _ = tokio::task::spawn_blocking(move || drop(host)).await;
    }

    /// Opens the state as soon as it can be: not in `build`, since `vector validate` runs that beside a running Vector,
    /// and a disk that is full may be emptied.
    async fn open_store(&self, stop: &CancellationToken) -> Option<SqliteStore> {
        let (mut delay, mut told) = (RETRY_DELAY_MIN, String::new());
        while !stop.is_cancelled() {
            let dir = self.state_dir.clone();
            let why = match tokio::task::spawn_blocking(move || SqliteStore::open(dir)).await {
                Ok(Ok(store)) => return Some(store),
                Ok(Err(error)) => format!("{}: {error} (hint: {})", error.slug(), error.hint()),
                Err(error) => format!("internal: opening the state ended by a panic: {error}"),
            };
            if why != told {
                error!(message = "The state cannot be opened; nothing is read before it can, which is tried again.", %why);
                told = why;
            }
            pause(&mut delay, stop).await;
        }
        None
    }
}

async fn pause(delay: &mut Duration, stop: &CancellationToken) {
    let _ = tokio::time::timeout(*delay, stop.cancelled()).await;
    *delay = (*delay * 2).min(RETRY_DELAY_MAX);
}

/// The mark of a batch, or of a part of one, that was rejected.
const REJECTED: u32 = 0;

/// Vector's sinks join what they get into requests of their own, and reject all of one for one event in it. What was
/// rejected goes alone, so that in the end it is the event to blame that stands alone.
enum Turn {
    Together { _turn: OwnedRwLockReadGuard<()> },
    Alone { _turn: OwnedRwLockWriteGuard<()> },
}

/// A batch Vector has, and who waits for its word on it.
struct Outstanding {
    batch: Batch,
    status: BatchStatusReceiver,
    answer: TicketAnswer,
    _turn: Turn,
}

impl Outstanding {
    async fn settled(self) {
        self.answer.answer(match self.status.await {
            BatchStatus::Delivered => Delivery::Delivered,
            BatchStatus::Errored => Delivery::Refused("a sink of Vector could not deliver (its log says why)".into()),
            // Perhaps for a neighbour's sake: once more, alone.
            BatchStatus::Rejected if self.batch.len() == 1 && !self.batch.receipts.has(REJECTED) => {
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

/// Vector as the library sees it.
struct VectorHost {
    out: SourceSender,
    acknowledged: bool,
    namespace: LogNamespace,
    state: Arc<dyn StateStore>,
    settle: mpsc::UnboundedSender<Outstanding>,
    turns: Arc<RwLock<()>>,
    bytes: Registered<BytesReceived>,
    events: Registered<EventsReceived>,
}

#[async_trait]
impl Host for VectorHost {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        // Records, not what the feed sent for them: that is `m365_audit_received_bytes_total`.
        self.bytes.emit(ByteSize(batch.ndjson().len()));
        let mut events = Vec::with_capacity(batch.len());
        for record in batch.records() {
            match serde_json::from_slice::<Map<String, Json>>(record.json) {
                Ok(record_json) => events.push(self.event(record_json, record.time)),
                // The library splits the batch until it is this record alone.
                Err(error) => return DeliveryTicket::resolved(Delivery::Rejected(format!("not an event: {error}"))),
            }
        }
        self.events.emit(CountByteSize(events.len(), events.estimated_json_encoded_size_of()));
        let turn = match batch.receipts.has(REJECTED) {
            false => Turn::Together { _turn: self.turns.clone().read_owned().await },
            true => Turn::Alone { _turn: self.turns.clone().write_owned().await },
        };
        let status = BatchNotifier::maybe_apply_to(self.acknowledged, &mut events);
        // The room in Vector's channel is the back-pressure.
        if self.out.clone().send_batch(events).await.is_err() {
            return DeliveryTicket::resolved(Delivery::Refused("Vector is stopping".into()));
        }
        let Some(status) = status else { return DeliveryTicket::resolved(Delivery::Delivered) };
        let (answer, ticket) = DeliveryTicket::new();
        // Bounded by `in_flight_bytes_max`. After the end of the runner the answer is dropped, which is a refusal.
        let _ = self.settle.send(Outstanding { batch, status, answer, _turn: turn });
        ticket
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, source: &str, health: Health) {
        let code = match &health {
            Health::Healthy => return debug!(message = "The source is healthy.", source),
            Health::Degraded { .. } => "degraded",
            Health::Failed { .. } => "failed",
        };
        warn!(message = "The source is not well.", source, %health);
        metrics::counter!(
            "component_errors_total",
            "error_code" => code, "error_type" => "request_failed", "stage" => "receiving"
        )
        .increment(1);
    }
}

impl VectorHost {
    fn event(&self, record: Map<String, Json>, time: Timestamp) -> Event {
        let mut fields = object(record);
        for name in TIME_FIELDS {
            if let Some(field) = fields.get_mut(*name)
                && let Some(at) = field.as_str().and_then(|text| DateTime::parse_from_rfc3339(&text).ok())
            {
                *field = at.with_timezone(&Utc).into();
            }
        }
        let mut log = LogEvent::from(fields);
        if let Some(at) = DateTime::from_timestamp_micros(time.as_microsecond()) {
            let legacy = log_schema().timestamp_key().map(LegacyKey::InsertIfEmpty);
            self.namespace.insert_source_metadata(M365AuditConfig::NAME, &mut log, legacy, path!("timestamp"), at);
        }
        let now = Utc::now().trunc_subsecs(6);
        self.namespace.insert_standard_vector_source_metadata(&mut log, M365AuditConfig::NAME, now);
        log.into()
    }
}

fn object(map: Map<String, Json>) -> ObjectMap {
    map.into_iter().map(|(key, value)| (key.into(), typed(value))).collect()
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
