//! A tenant, a clock, a host and a configuration, and the means to run the source among them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use m365_audit::checkpoint::journal::Keeping;
use m365_audit::clock::{Clock, TestClock};
use m365_audit::config::SourceConfig;
use m365_audit::host::{Health, StateError};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::{EmbeddedHost, SinkSpec};
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::receipts::note::Signer;
use m365_audit::sim::{CallKind, Comparison, GenerateSpec, NewBlob, RequestLog, Sim, SimConfig, SubscriptionState};
use m365_audit::source::{M365Audit, Report, Source, SourceError, aside, backfill, heal};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::host::{Recorder, RecordingHost, RecordingSink};
use crate::watch::{Watch, WatchedStore};

/// The stream of scenarios that need only one.
pub const EXCHANGE: ContentType = ContentType::Exchange;
/// When every scenario begins.
pub const BEGIN: &str = "2026-05-10T12:00:00Z";
/// So many turns of the runtime without a stir are rest: more than the ledger lets pass before it commits.
const TURNS_OF_REST: u32 = 48;
/// While an answer is on its way, this long without a stir is rest too: it waits for the clock or for the host.
const REST_MIN: Duration = Duration::from_millis(4);
/// A scenario that takes longer hangs.
const REAL_TIME_MAX: Duration = Duration::from_secs(900);

pub const fn mins(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

pub const fn hours(n: u64) -> Duration {
    mins(60 * n)
}

pub const fn days(n: u64) -> Duration {
    hours(24 * n)
}

/// The source's name.
pub const SOURCE: &str = "test";

/// How all scenarios keep receipts, with one key.
pub fn keeping() -> Keeping {
    static SIGNER: LazyLock<Arc<Signer>> =
        LazyLock::new(|| Arc::new(Signer::from_pkcs8(&Signer::generate_pkcs8().unwrap()).unwrap()));
    Keeping { signer: SIGNER.clone(), days: 30, sends: false }
}

/// An audit event, the `n`th of its kind, that happened at `time`.
pub fn event(n: u64, time: Timestamp) -> String {
    json!({
        "Id": format!("00000000-0000-4000-8000-{n:012}"),
        "RecordType": 1,
        "CreationTime": time.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        "Operation": "Set-Mailbox",
        "OrganizationId": "11111111-2222-3333-4444-555555555555",
        "UserType": 2,
        "Workload": "Exchange",
        "UserId": "someone@example.com",
        "ResultStatus": "True",
    })
    .to_string()
}

pub struct World {
    pub sim: Sim,
    pub clock: TestClock,
    pub tenant: TenantId,
    pub host: Arc<Recorder>,
    pub store: Arc<MemoryStore>,
    pub watch: Arc<Watch>,
    /// The source's configuration, as JSON; the next start reads it.
    pub config: Value,
    /// The server's clock jumps: what is its future cannot be known before its answer.
    pub clock_jumps: bool,
    dropping: Option<u32>,
    /// How receipts are kept.
    pub receipts: Option<Keeping>,
    /// Answers of Microsoft Graph with more pages are not believed.
    pub heal_pages_max: Option<u32>,
    pub commits: Arc<AtomicU64>,
    begun: Instant,
    numbers: u64,
}

impl World {
    /// One stream, [`EXCHANGE`], subscribed; polls every five minutes, no limit on requests, back-fill of a week.
    pub async fn new() -> Self {
        Self::with(SimConfig::default()).await
    }

    /// The same with another tenant.
    pub async fn with(config: SimConfig) -> Self {
        let clock = TestClock::at(BEGIN.parse().unwrap());
        let tenant = config.tenants[0].clone();
        let source = json!({
            "tenant_id": tenant.as_str(),
            "client_id": config.client_id,
            "client_secret": config.client_secret,
            "content_types": [EXCHANGE.as_str()],
            "backfill_secs": 7 * 86_400,
            "max_requests_per_minute": 0,
            "drop_routine": false,
        });
        let sim = Sim::start(config, Arc::new(clock.clone())).await.unwrap();
        for content_type in ContentType::ALL {
            sim.set_subscription(&tenant, content_type, SubscriptionState::Enabled);
        }
        let watch = Arc::new(Watch::new(sim.clone(), clock.clone(), tenant.clone()));
        let mut world = Self {
            host: Arc::new(Recorder::new(watch.clone())),
            store: Arc::new(MemoryStore::new()),
            commits: Arc::default(),
            begun: Instant::now(),
            numbers: 0,
            config: source,
            clock_jumps: false,
            dropping: None,
            receipts: Some(keeping()),
            heal_pages_max: None,
            sim,
            clock,
            tenant,
            watch,
        };
        let url = world.sim.url();
        world.set("api_url", url.as_str());
        world.set("authority_url", url.as_str());
        world.set("graph_url", url.as_str());
        // What came out is compared with what was published, byte for byte.
        world.set("mask_detected_values", false);
        // The simulator's tokens are for its own URL.
        world.set("audience", url.as_str());
        world
    }

    /// Sets a key of the source's configuration.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.config[key] = value.into();
        self
    }

    pub fn all_types(&mut self) -> &mut Self {
        self.set("content_types", ContentType::ALL.map(ContentType::as_str).to_vec())
    }

    pub fn now(&self) -> Timestamp {
        self.sim.now()
    }

    pub fn ago(&self, span: Duration) -> Timestamp {
        self.now() - span
    }

    // ---- publishing ----

    /// Publishes a blob of the one stream.
    pub fn add(&mut self, blob: NewBlob) -> String {
        self.add_to(EXCHANGE, blob)
    }

    pub fn add_to(&mut self, content_type: ContentType, blob: NewBlob) -> String {
        let created = Timestamp::from_millisecond(blob.created.as_millisecond()).unwrap();
        let listable_from = blob.listable_from.unwrap_or(created);
        let id = self.sim.add_blob(&self.tenant, content_type, blob);
        self.watch.published(&id, content_type, created, listable_from);
        self.watch.learn(&self.sim.truth());
        id
    }

    /// `n` fresh events of `time`.
    pub fn events(&mut self, n: u64, time: Timestamp) -> Vec<String> {
        self.numbers += n;
        (self.numbers - n..self.numbers).map(|number| event(number, time)).collect()
    }

    /// A blob with `n` fresh events, made available `age` ago.
    pub fn blob(&mut self, n: u64, age: Duration) -> NewBlob {
        let created = self.ago(age);
        NewBlob::at(created).with_events(self.events(n, created - mins(20)))
    }

    /// Publishes a blob with `n` fresh events, made available `age` ago.
    pub fn add_aged(&mut self, n: u64, age: Duration) -> String {
        let blob = self.blob(n, age);
        self.add(blob)
    }

    /// Publishes a blob of now, listable from now.
    pub fn add_now(&mut self, n: u64) -> String {
        self.add_aged(n, Duration::ZERO)
    }

    pub fn generate(&mut self, spec: GenerateSpec) -> Vec<String> {
        let ids = self.sim.generate(&self.tenant, spec);
        self.watch.learn(&self.sim.truth());
        ids
    }

    // ---- running ----

    fn source(&self) -> M365Audit {
        let config: SourceConfig = serde_json::from_value(self.config.clone()).expect("a configuration");
        let source = M365Audit::new(SOURCE, config, Arc::new(self.clock.clone()));
        let source = match self.heal_pages_max {
            Some(pages) => source.with_heal_pages_max(pages),
            None => source,
        };
        match self.receipts.clone() {
            Some(keeping) => source.with_receipts(keeping),
            None => source,
        }
    }

    fn spawn(&self, source: M365Audit) -> Running {
        self.spawn_with(source, Vec::new())
    }

    fn spawn_with(&self, source: M365Audit, sinks: Vec<SinkSpec>) -> Running {
        let store = Arc::new(WatchedStore::new(self.store.clone(), self.watch.clone(), self.commits.clone()));
        let clock = Arc::new(self.clock.clone());
        let embedded = (!sinks.is_empty()).then(|| EmbeddedHost::new(sinks, store.clone(), clock));
        let host = Arc::new(RecordingHost { recorder: self.host.clone(), embedded, store: store.clone() });
        let stop = CancellationToken::new();
        let task = tokio::spawn(Box::new(source).run(host, stop.clone()));
        Running { task, stop, store }
    }

    /// Starts the source to run on.
    pub fn start(&self) -> Running {
        self.spawn(self.source())
    }

    /// Starts the source to run on, with the counter at which back-fills are asked for.
    pub fn start_with_desk(&self) -> (Running, backfill::BackfillSender) {
        let (counter, desk) = backfill::request_queue();
        (self.spawn(self.source().with_backfill_queue(desk)), counter)
    }

    /// Starts the source to run on, with the counter at which ranges are asked to be filled through Microsoft Graph.
    pub fn start_with_heal_queue(&self) -> (Running, heal::requests::HealSender) {
        let (counter, desk) = heal::requests::request_queue();
        (self.spawn(self.source().with_heal_queue(desk)), counter)
    }

    /// Starts the source to run on in the embedded host, whose one sink gives up a request after `timeout`; with the way
    /// to ask for what is set aside once more, as `state retry` does.
    pub fn start_with_sink(&self, timeout: Duration) -> (Running, mpsc::Sender<aside::RetryRequest>) {
        let (retries, asked) = aside::asking();
        let sink = RecordingSink { recorder: self.host.clone(), clock: self.clock.clone(), timeout };
        let sink = SinkSpec {
            name: "siem".to_owned(),
            inputs: vec!["test".to_owned()],
            selection: Selection::default(),
            sink: Box::new(sink),
        };
        (self.spawn_with(self.source().with_retries(asked), vec![sink]), retries)
    }

    /// Starts the source in the embedded host with these sinks, to run on or (`once`) for a single pass; with the way to
    /// ask for what is set aside once more.
    pub fn start_into(&self, sinks: Vec<SinkSpec>, once: bool) -> (Running, mpsc::Sender<aside::RetryRequest>) {
        let (retries, asked) = aside::asking();
        let source = self.source().with_retries(asked);
        (self.spawn_with(if once { source.once() } else { source }, sinks), retries)
    }

    /// Starts the source for a single pass.
    pub fn start_once(&self) -> Running {
        self.spawn(self.source().once())
    }

    /// A single pass, to its end.
    pub async fn once(&self) -> Report {
        let running = self.start_once();
        self.ended(running).await.expect("a single pass")
    }

    /// Runs the source on for `span` and stops it.
    pub async fn run_for(&self, span: Duration) {
        let running = self.start();
        self.pass(span).await;
        self.stop(running).await;
    }

    /// Waits until nothing moves any more unless time does.
    pub async fn rest(&self) {
        self.watch.tick();
        let stir =
            || (self.sim.activity(), self.sim.in_flight(), self.host.activity(), self.commits.load(Ordering::SeqCst));
        let mut last = stir();
        let mut since = Instant::now();
        let mut turns = 0;
        loop {
            tokio::task::yield_now().await;
            let now = stir();
            if now != last {
                (last, turns, since) = (now, 0, Instant::now());
                continue;
            }
            turns += 1;
            if turns >= TURNS_OF_REST && (now.1 == 0 || since.elapsed() >= REST_MIN) {
                return;
            }
            assert!(self.begun.elapsed() < REAL_TIME_MAX, "the scenario hangs at {}", self.now());
        }
    }

    /// Lets time pass until `done`, at most `limit` of it; whether it was done.
    pub async fn until_within(&self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let end = self.clock.monotonic() + limit;
        loop {
            self.rest().await;
            if done() {
                return true;
            }
            assert!(self.begun.elapsed() < REAL_TIME_MAX, "the scenario hangs at {}", self.now());
            if self.clock.monotonic() >= end {
                return false;
            }
            if self.clock.advance_to_next_sleeper().is_none() {
                // Nobody sleeps: an answer is still on its way.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Lets time pass until `done`, which must come within a day.
    pub async fn until(&self, what: &str, done: impl FnMut() -> bool) {
        assert!(self.until_within(days(1), done).await, "within a day: {what}; health {}", self.host.health());
    }

    /// Lets `span` pass, every sleeper woken at its time.
    pub async fn pass(&self, span: Duration) {
        self.until_within(span, || false).await;
    }

    /// Lets `span` pass in steps, sleepers woken late: for the days in which nothing is to happen.
    pub async fn leap(&self, span: Duration, step: Duration) {
        let end = self.clock.monotonic() + span;
        while self.clock.monotonic() < end {
            self.rest().await;
            self.clock.advance(step.min(end - self.clock.monotonic()));
        }
        self.rest().await;
    }

    /// The source's end, time passing as needed.
    pub async fn ended(&self, mut running: Running) -> Result<Report, SourceError> {
        let finished = self.until_within(days(2), || running.task.is_finished()).await;
        assert!(finished, "the source does not end; health {}", self.host.health());
        (&mut running.task).await.expect("the source does not panic")
    }

    /// Stops the source as SIGTERM does.
    pub async fn stop(&self, running: Running) -> Report {
        running.stop.cancel();
        self.ended(running).await.expect("a clean stop")
    }

    /// Ends the source as kill -9 does: nothing it had not written gets written, nothing unanswered gets answered.
    pub async fn kill(&self, running: Running) {
        running.store.kill();
        running.task.abort();
        let _ = running.task.await;
        self.host.forget_held();
        self.rest().await;
    }

    /// Waits until everything that can be listed was delivered.
    pub async fn until_all_delivered(&self) {
        let expected = || self.compare().lost.is_empty();
        let mut seen = usize::MAX;
        let mut done = false;
        self.until("everything is delivered", || {
            let count = self.host.event_count();
            if count != seen {
                seen = count;
                done = expected();
            }
            done
        })
        .await;
    }

    // ---- judging ----

    pub fn compare(&self) -> Comparison {
        let truth = self.sim.truth();
        let truth = match self.dropping {
            Some(hold_secs) => truth.dropping(hold_secs),
            None => truth,
        };
        truth.compare(self.host.delivered())
    }

    /// Has the source leave routine reads out that are not matched within `hold_secs`.
    pub fn drop_routine(&mut self, hold_secs: u32) -> &mut Self {
        self.dropping = Some(hold_secs);
        self.watch.dropping(hold_secs);
        self.set("hold_secs", hold_secs);
        self.set("drop_routine", true)
    }

    /// Requests of a kind, in order.
    pub fn requests(&self, kind: CallKind) -> Vec<RequestLog> {
        self.sim.requests().into_iter().filter(|request| request.kind == kind).collect()
    }

    /// How often the blob was asked for.
    pub fn fetches(&self, id: &str) -> usize {
        self.requests(CallKind::Blob).iter().filter(|request| request.blob_id.as_deref() == Some(id)).count()
    }

    pub fn complete_until(&self, content_type: ContentType) -> Option<Timestamp> {
        self.watch.positions().get(&content_type).and_then(|position| position.complete_until)
    }

    /// The gap records, as (type, from, to, reason).
    pub fn gaps(&self) -> Vec<(String, String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let gaps = self.host.notices("m365_audit.gap");
        gaps.iter()
            .map(|g| (text(&g["content_type"]), text(&g["gap_from"]), text(&g["gap_to"]), text(&g["reason"])))
            .collect()
    }

    /// The bytes that `m365_audit.bad_blob` records show, in order of offset.
    pub fn bad_bytes(&self) -> Vec<u8> {
        use base64::Engine as _;
        let mut pieces = self.host.notices("m365_audit.bad_blob");
        pieces.sort_by_key(|piece| piece["offset"].as_u64());
        let decode = |body: &str| base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        pieces.iter().filter_map(|piece| piece["body_base64"].as_str()).flat_map(decode).collect()
    }

    /// Nothing lost, altered, misdated or made up; duplicates as the caller says; and what was watched all along.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        let compared = self.compare();
        assert!(compared.lost.is_empty() && compared.expired_unread.is_empty(), "{compared}");
        assert!(
            compared.altered.is_empty() && compared.misdated.is_empty() && compared.unexpected.is_empty(),
            "{compared}"
        );
        self.assert_manners();
    }

    /// Every event delivered exactly once.
    #[track_caller]
    pub fn assert_clean(&self) {
        let compared = self.compare();
        assert!(compared.is_clean(), "{compared}");
        self.assert_manners();
    }

    /// What was watched: CK-1 to CK-3 at every commit, CK-4 and what Microsoft asks for over all requests.
    #[track_caller]
    pub fn assert_manners(&self) {
        let violations = self.watch.violations();
        assert!(violations.is_empty(), "{}", violations.join("\n"));
        let counters = self.sim.counters();
        assert!(counters.without_publisher.is_empty(), "calls without a publisher: {:?}", counters.without_publisher);
        assert_eq!(counters.requests.get(&CallKind::Stop), None, "a subscription was stopped");
        for request in self.requests(CallKind::Content) {
            let time = |text: &Option<String>| {
                let text = text.as_deref().expect("both times are given");
                format!("{}Z", text.trim_end_matches('Z')).parse::<Timestamp>().expect("a time")
            };
            let (start, end) = (time(&request.start), time(&request.end));
            assert!(start < end, "CK-4: {request:?}");
            assert!(end.duration_since(start) < SignedDuration::from_hours(24), "CK-4: over 24 h: {request:?}");
            if request.status == 200 {
                assert!(request.at.duration_since(start) <= SignedDuration::from_hours(168), "CK-4: {request:?}");
                let known = self.clock_jumps || end <= request.at + SignedDuration::from_secs(2);
                assert!(known, "CK-4: in the future: {request:?}");
            }
        }
    }

    #[track_caller]
    pub fn assert_healthy(&self) {
        assert_eq!(self.host.health(), Health::Healthy);
    }
}

/// The source, running.
pub struct Running {
    pub task: JoinHandle<Result<Report, SourceError>>,
    pub stop: CancellationToken,
    pub store: Arc<WatchedStore>,
}

/// The state error behind a source's end.
pub fn state_error(result: Result<Report, SourceError>) -> StateError {
    match result {
        Err(SourceError::State { source, .. }) => source,
        other => panic!("not a state error: {other:?}"),
    }
}
