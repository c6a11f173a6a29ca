//! What every test here needs: a simulated tenant, one pass of the source into a sink, and the comparison.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use m365_audit::checkpoint::ledger::{LedgerSettings, ServerTimeSource};
use m365_audit::clock::Clock;
use m365_audit::config::{Config, SourceConfig, config_schema};
use m365_audit::host::{Batch, BatchBuilder};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::notebook::Notebook;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::sink::Sink;
use m365_audit::hosts::embedded::{EmbeddedHost, SinkSpec};
use m365_audit::hosts::file::Memory;
use m365_audit::hosts::open_sink;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::severity::Severity;
use m365_audit::sim::{Comparison, Delivered, GenerateSpec, Sim, SimConfig, SubscriptionState};
use m365_audit::source::{M365Audit, Source, aside};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

/// How much faster than the wall the tests' time runs: minutes of refusals pass in seconds.
const SPEED: u32 = 100;

/// Time that hurries. Sockets need real time to pass, so it is not moved by hand.
pub struct FastClock {
    epoch: Timestamp,
    start: Instant,
}

impl FastClock {
    pub fn start() -> Arc<dyn Clock> {
        Arc::new(Self { epoch: Timestamp::now(), start: Instant::now() })
    }
}

impl fmt::Debug for FastClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FastClock")
    }
}

impl Clock for FastClock {
    fn now(&self) -> Timestamp {
        self.epoch + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed() * SPEED
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration / SPEED))
    }
}

/// What a receiver has confirmed, one JSON record each.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<Vec<serde_json::Value>>>);

impl Received {
    pub fn extend(&self, records: impl IntoIterator<Item = serde_json::Value>) {
        self.0.lock().unwrap().extend(records);
    }

    pub fn all(&self) -> Vec<serde_json::Value> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A tenant with some thousand events of all types, all listable.
pub async fn tenant(clock: Arc<dyn Clock>, blobs: usize, events: usize) -> (Sim, TenantId) {
    let config = SimConfig::default();
    let tenant = config.tenants[0].clone();
    let sim = Sim::start(config, clock).await.unwrap();
    for content_type in ContentType::ALL {
        sim.set_subscription(&tenant, content_type, SubscriptionState::Enabled);
    }
    let now = sim.now();
    let hours = |n: i64| now - jiff::SignedDuration::from_hours(n);
    let spec = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(blobs, events, hours(6), hours(1)) };
    sim.generate(&tenant, spec);
    (sim, tenant)
}

/// The source's table for a simulated tenant. Records carry the original text, so that nothing of it can be lost on
/// the way through another format unnoticed.
pub fn source_table(sim: &Sim, tenant: &TenantId) -> String {
    let config = SimConfig::default();
    format!(
        "type = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{}\"\nclient_secret = '{}'\n\
         api_url = \"{url}\"\nauthority_url = \"{url}\"\ndrop_routine = false\nraw = \"string\"\n\
         mask_detected_values = false\n",
        config.client_id,
        config.client_secret,
        url = sim.url(),
    )
}

/// A listener on the loopback interface: on a port of its own for 0, or on one that a listener had before. The port stays
/// ours between the two, for a socket is bound to it that never listens: else whoever asks for any port may get it.
pub fn listener(port: u16) -> TcpListener {
    static HELD: Mutex<Vec<TcpSocket>> = Mutex::new(Vec::new());
    let bound = |port: u16| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(([127, 0, 0, 1], port).into()).unwrap();
        socket
    };
    let mut held = HELD.lock().unwrap();
    let port = if port > 0 {
        port
    } else {
        held.push(bound(0));
        held.last().unwrap().local_addr().unwrap().port()
    };
    bound(port).listen(1024).unwrap()
}

/// The sink waits for an answer for as long as it may, unless the table says for how long: at this speed its default is
/// less than a second, in which a busy machine may not come to answer, and what is sent again comes twice. Which key that
/// is, the schema says.
fn patient(table: &str) -> String {
    let kind = table.split('"').nth(1).unwrap();
    let schema = config_schema();
    let sinks = schema["properties"]["sinks"]["additionalProperties"]["oneOf"].as_array().unwrap();
    let sink = sinks.iter().find(|sink| sink["properties"]["type"]["const"] == kind).unwrap();
    let key = ["timeout_secs", "ack_timeout_secs"].into_iter().find(|key| sink["properties"][key].is_object());
    match key {
        Some(key) if !table.contains(key) => table.replacen('\n', &format!("\n{key} = 3600\n"), 1),
        _ => table.to_owned(),
    }
}

/// The sink a configuration's table describes.
pub fn sink(table: &str, clock: &Arc<dyn Clock>) -> Box<dyn Sink> {
    let table = patient(table);
    let text = format!(
        "[sources.s]\ntype = \"m365_audit\"\ntenant_id = \"11111111-2222-3333-4444-555555555555\"\nclient_id = \"x\"\n\
         client_secret = \"x\"\n[sinks.out]\ninputs = [\"s\"]\n{table}"
    );
    let config = Config::parse(&text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
    let memory =
        Memory { sink: "out".into(), page: Notebook::default().page("out"), clock: clock.clone(), state_is_new: false };
    open_sink(&config.sinks["out"].sink, memory).unwrap()
}

/// One full pass of the source into `sink`, and how what arrived compares with what was published.
pub async fn pass(table: &str, blobs: usize, events: usize, received: &Received) -> Comparison {
    let clock = FastClock::start();
    pass_at(table, blobs, events, received, clock).await
}

pub async fn pass_at(
    table: &str,
    blobs: usize,
    events: usize,
    received: &Received,
    clock: Arc<dyn Clock>,
) -> Comparison {
    let (sim, tenant) = tenant(clock.clone(), blobs, events).await;
    pass_in(table, &sim, &tenant, clock).await;
    let comparison = compare(&sim, received.all());
    sim.stop().await;
    comparison
}

/// One full pass over a simulated tenant that is there already.
pub async fn pass_in(table: &str, sim: &Sim, tenant: &TenantId, clock: Arc<dyn Clock>) {
    pass_of("", table, sim, tenant, clock).await;
}

/// The same, with more keys of the source.
pub async fn pass_of(keys: &str, table: &str, sim: &Sim, tenant: &TenantId, clock: Arc<dyn Clock>) {
    pass_from(Arc::new(MemoryStore::new()), keys, table, sim, tenant, clock).await;
}

/// The same, with the state that earlier passes left.
pub async fn pass_from(
    store: Arc<MemoryStore>,
    keys: &str,
    table: &str,
    sim: &Sim,
    tenant: &TenantId,
    clock: Arc<dyn Clock>,
) {
    let mut source = source_table(sim, tenant).parse::<toml::Table>().unwrap();
    source.extend(keys.parse::<toml::Table>().unwrap());
    let source = SourceConfig::parse_table("s", source, &|_| None).unwrap();
    let host = Arc::new(EmbeddedHost::new(vec![spec(table, &clock)], store, clock.clone()));
    let source: Box<dyn Source> = Box::new(M365Audit::new("s", source, clock.clone()).once());
    let report = source.run(host.clone(), CancellationToken::new()).await.unwrap();
    assert_eq!(report.left.len(), 0, "{:?}", report.left);
    host.shutdown(Duration::from_secs(100)).await;
}

/// `state retry` while no process runs the source.
pub async fn retry(store: &Arc<MemoryStore>, table: &str, tenant: &TenantId, clock: Arc<dyn Clock>) -> aside::Retried {
    let host = Arc::new(EmbeddedHost::new(vec![spec(table, &clock)], store.clone(), clock.clone()));
    let settings = LedgerSettings {
        tenant: tenant.clone(),
        content_types: ContentType::ALL.to_vec(),
        event_keys_max: 1_000_000,
        fills_gaps: false,
        receipts: None,
        server_time: ServerTimeSource::default(),
    };
    let retried = aside::retry_alone("s".into(), &settings, host.clone(), clock).await.unwrap();
    host.shutdown(Duration::from_secs(100)).await;
    retried
}

fn spec(table: &str, clock: &Arc<dyn Clock>) -> SinkSpec {
    SinkSpec { name: "out".into(), inputs: vec!["s".into()], selection: Selection::default(), sink: sink(table, clock) }
}

/// Holds native records with `raw = "string"` against the truth.
pub fn compare(sim: &Sim, records: Vec<serde_json::Value>) -> Comparison {
    sim.truth().compare(records.into_iter().map(|record| Delivered {
        raw: record["raw"].as_str().unwrap_or_else(|| panic!("no raw in {record}")).as_bytes().to_vec(),
        ..Delivered::default()
    }))
}

/// Everything arrived, nothing was changed; what was in flight at trouble may have come twice.
#[track_caller]
pub fn assert_nothing_lost(comparison: &Comparison) {
    let Comparison { lost, expired_unread, altered, misdated, unexpected, .. } = comparison;
    assert!(comparison.expected > 0);
    for list in [lost, expired_unread, altered, misdated, unexpected] {
        assert!(list.is_empty(), "{comparison}");
    }
}

pub fn batch(lines: &[&str]) -> Batch {
    let mut builder = BatchBuilder::default();
    for line in lines {
        builder.push_with(|out| {
            out.extend_from_slice(line.as_bytes());
            Some(("2026-05-01T10:00:00.000000001Z".parse().unwrap(), Severity::High))
        });
    }
    builder.finish("s".into(), "11111111-2222-3333-4444-555555555555".parse().unwrap(), ContentType::General)
}
