//! The listener of `[metrics] listen`: `/metrics` in Prometheus text, `/health` with reasons, `/live`, `/ready`, the status
//! as `/status` (JSON) and `/status.html`, and `/`, which lists them.
//!
//! Owns the HTTP side only: the metrics are in [`crate::metrics`], and the status comes from the host's
//! [`HealthReport`] and the [`Monitor`]. The pages for browsers name tenants and faults, so they answer only to host
//! names under which a foreign web page cannot reach them. `/health` answers 503 only when a source has failed: a
//! degraded one still delivers, and a restart by a probe would not help. `/live` reports that the process runs, `/ready`
//! that it takes part in its cluster.
//!
//! A client can hold few resources: connections are bounded, and each has one request, which must arrive within
//! seconds; the client must read the answer within half a minute. When there are too many, the oldest connection
//! without a request is closed first, so that a probe, which sends its request at once, is always answered.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::completeness::CompletenessReader;
use super::host_name::answers_to;
use super::registry::Registry;
use super::series::{write_head, write_series};
use super::status::Monitor;
use super::status_html::{self, StatusView};
use super::{HealthReport, ReportedHealth};
use crate::clock::Clock;
use crate::config::MetricsDetail;
use crate::host::Health;
use crate::metrics;
use crate::model::{Actionable, slug_of};

/// How often the recorder tidies its histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long open requests may take to end at a stop.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// The pause after the system failed to accept a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Limits for clients.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections at once.
    pub connections: usize,
    /// Large answers in flight at once: with many tenants, one is megabytes.
    pub pages: usize,
    /// Time until the request has come.
    pub request: Duration,
    /// Time from there until the client has read the answer.
    pub answer: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { connections: 64, pages: 4, request: Duration::from_secs(5), answer: Duration::from_secs(30) }
    }
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be listened on.
    #[error("cannot listen on `{listen}` for metrics: {source}")]
    Listen {
        /// `[metrics] listen`.
        listen: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl Actionable for MetricsError {
    fn slug(&self) -> &'static str {
        "metrics-listen-failed"
    }

    fn hint(&self) -> String {
        let Self::Listen { source, .. } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => "another process has the port: choose another in `[metrics] listen`".into(),
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose a higher one".into(),
            io::ErrorKind::AddrNotAvailable => "the address must be one of this machine's".into(),
            _ => "`[metrics] listen` is an address and a port, as in `127.0.0.1:9598`".into(),
        }
    }
}

/// A bound listener, not serving yet: so that a port in use stops the start, not the run.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    bounds: ServerLimits,
}

impl MetricsServer {
    /// Binds `listen`, `address:port`.
    pub async fn bind(listen: &str) -> Result<Self, MetricsError> {
        match TcpListener::bind(listen).await {
            Ok(listener) => Ok(Self { listener, bounds: ServerLimits::default() }),
            Err(source) => Err(MetricsError::Listen { listen: listen.to_owned(), source }),
        }
    }

    /// The same with other bounds.
    pub fn with_bounds(self, bounds: ServerLimits) -> Self {
        Self { bounds, ..self }
    }

    /// The address bound, with the port chosen when `listen` said 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves.
    pub async fn serve(self, served: Served, clock: Arc<dyn Clock>, shutdown: impl Future<Output = ()> + Send) {
        let served = Arc::new(served);
        let pages = BrowserPages {
            router: router(served.clone()),
            hosts: served.hosts.clone().into(),
            large: Arc::new(Semaphore::new(self.bounds.pages)),
        };
        let mut open = OpenConnections::default();
        let mut shutdown = std::pin::pin!(shutdown);
        let mut upkeep = clock.sleep(UPKEEP_EVERY);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        open.make_room(self.bounds.connections);
                        open.add(|asked| answer_one(stream, pages.clone(), self.bounds, clock.clone(), asked));
                    }
                    // Out of descriptors, or the peer has already disconnected.
                    Err(_) => clock.sleep(ACCEPT_RETRY).await,
                },
                Some(_) = open.tasks.join_next() => {}
                () = &mut upkeep => {
                    served.monitor.recorded().prometheus.run_upkeep();
                    upkeep = clock.sleep(UPKEEP_EVERY);
                }
                () = &mut shutdown => break,
            }
        }
        drop(self.listener);
        tokio::select! {
            () = async { while open.tasks.join_next().await.is_some() {} } => {}
            // A client that keeps a request open does not delay the end of the process.
            () = clock.sleep(STOP_GRACE) => open.tasks.shutdown().await,
        }
    }
}

/// Connections now, oldest first, each with whether its request has come.
#[derive(Default)]
struct OpenConnections {
    tasks: JoinSet<()>,
    connections: Vec<(Arc<AtomicBool>, AbortHandle)>,
}

impl OpenConnections {
    /// Closes the oldest connection without a request; if all have one, the oldest, which has had the most time.
    fn make_room(&mut self, most: usize) {
        self.connections.retain(|(_, task)| !task.is_finished());
        while self.connections.len() >= most.max(1) {
            let silent = self.connections.iter().position(|(asked, _)| !asked.load(Ordering::Relaxed));
            self.connections.remove(silent.unwrap_or(0)).1.abort();
        }
    }

    fn add<F: Future<Output = ()> + Send + 'static>(&mut self, connection: impl FnOnce(Arc<AtomicBool>) -> F) {
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(connection(asked.clone()));
        self.connections.push((asked, task));
    }
}

/// Whether this process takes its part, as an orchestrator asks before it goes on to the next one. Alone it always does; in
/// a cluster while it is a member whose heartbeats are answered.
#[derive(Clone, Default)]
pub struct Readiness {
    is_in_cluster: bool,
    is_member: Arc<OnceLock<IsMember>>,
}

type IsMember = Arc<dyn Fn() -> bool + Send + Sync>;

impl Readiness {
    /// Of a process that has joined nothing yet.
    pub fn new(is_in_cluster: bool) -> Self {
        Self { is_in_cluster, is_member: Arc::default() }
    }

    /// From now on the cluster is asked.
    pub fn joins(&self, is_member: IsMember) {
        let _ = self.is_member.set(is_member);
    }

    fn is_ready(&self) -> bool {
        !self.is_in_cluster || self.is_member.get().is_some_and(|is_member| is_member())
    }
}

/// What is served.
pub struct Served {
    /// The recorded metrics and the status.
    pub monitor: Arc<Monitor>,
    /// The sources.
    pub registry: Registry,
    /// How completely tenants were read.
    pub completeness: CompletenessReader,
    /// `[metrics] detail`.
    pub detail: MetricsDetail,
    /// `[metrics] hosts`.
    pub hosts: Vec<String>,
    /// `[metrics] docs_url`.
    pub docs_url: String,
    /// What `/ready` says.
    pub readiness: Readiness,
}

/// The pages for browsers, and the host names they answer to.
#[derive(Clone)]
struct BrowserPages {
    router: Router,
    hosts: Arc<[String]>,
    /// Permits for large answers.
    large: Arc<Semaphore>,
}

/// Answers the one request of a connection, or closes it at a time limit.
async fn answer_one(
    stream: TcpStream,
    pages: BrowserPages,
    bounds: ServerLimits,
    clock: Arc<dyn Clock>,
    asked: Arc<AtomicBool>,
) {
    // Held until the connection ends, since the page is in memory until then.
    let held = Mutex::new(None);
    let router = TowerToHyperService::new(pages.router);
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let path = request.uri().path();
        let is_foreign = !FOR_ANY_HOST.contains(&path) && !answers_to(&pages.hosts, &request);
        let may = is_foreign || SMALL.contains(&path) || {
            let permit = pages.large.clone().try_acquire_owned().ok();
            let got = permit.is_some();
            *held.lock() = permit;
            got
        };
        let answer = (may && !is_foreign).then(|| router.call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                None if is_foreign => Ok((StatusCode::MISDIRECTED_REQUEST, FOREIGN_HOST).into_response()),
                None => Ok((StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "too many readers\n")
                    .into_response()),
            }
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = clock.sleep(bounds.request) => {}
    }
    if asked.load(Ordering::Relaxed) {
        tokio::select! {
            _ = &mut connection => {}
            () = clock.sleep(bounds.answer) => {}
        }
    }
}

/// Paths that answer to any host name: scrapers and probes use all kinds, and these pages need no protection from
/// browsers.
const FOR_ANY_HOST: [&str; 4] = ["/metrics", "/health", "/live", "/ready"];
/// Paths whose answers are small.
const SMALL: [&str; 4] = ["/", "/health", "/live", "/ready"];
/// The answer to a foreign host name.
const FOREIGN_HOST: &str = "this page answers only to an IP address, `localhost`, or a name in `[metrics] hosts`\n";

fn router(served: Arc<Served>) -> Router {
    Router::new()
        .route("/", get(|| async { browser_page(status_html::index(env!("CARGO_PKG_VERSION"))) }))
        .route("/metrics", get(metrics_page))
        .route("/health", get(|served: State<Arc<Served>>| async move { health_page(&served.monitor.report()) }))
        .route("/live", get(|| std::future::ready("live\n")))
        .route("/ready", get(|served: State<Arc<Served>>| async move { ready_page(&served.readiness) }))
        .route("/status", get(status_json))
        .route("/status.html", get(status_page))
        .fallback(|| std::future::ready((StatusCode::NOT_FOUND, "there is no such page; `/` lists those there are\n")))
        .with_state(served)
}

async fn metrics_page(served: State<Arc<Served>>) -> Response {
    let mut page = served.monitor.recorded().page(served.detail);
    write_causes(&mut page, &served);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// Writes why sources are not healthy. Only this host knows these causes, and they disappear with the fault.
fn write_causes(page: &mut String, served: &Served) {
    let report = served.monitor.report();
    let entries = served.registry.entries();
    let cause = |name: &String| match &report.sources.get(name)?.health {
        Health::Healthy => None,
        Health::Degraded { why, .. } | Health::Failed { why } => slug_of(why).map(str::to_owned),
    };
    let causes: Vec<_> = entries.iter().filter_map(|(name, entry)| Some((name, entry, cause(name)?))).collect();
    if let Some(metric) = metrics::ALL.iter().find(|metric| metric.name == metrics::HEALTH_CAUSE && !causes.is_empty())
    {
        write_head(page, metric);
    }
    for (name, entry, cause) in causes {
        let labels = [("tenant", entry.tenant.as_str()), ("source", name), ("cause", &cause)];
        write_series(page, metrics::HEALTH_CAUSE, labels.into_iter(), 1.0);
    }
}

async fn status_json(served: State<Arc<Served>>) -> Response {
    match serde_json::to_string_pretty(&served.monitor.status(&served.registry)) {
        Ok(json) => guarded(([(header::CONTENT_TYPE, "application/json")], json + "\n").into_response()),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// The query parameters of a page.
#[derive(Deserialize)]
struct PageQuery {
    every: Option<u32>,
}

async fn status_page(served: State<Arc<Served>>, asked: Result<Query<PageQuery>, QueryRejection>) -> Response {
    // An unreadable query counts as empty.
    let every = asked.ok().and_then(|asked| asked.every).filter(|every| (5..=3600).contains(every));
    let bars = served.completeness.bars(&served.registry).await;
    let status = served.monitor.status(&served.registry);
    browser_page(status_html::page(&StatusView { status: &status, bars: &bars, docs_url: &served.docs_url, every }))
}

fn browser_page(page: String) -> Response {
    guarded(Html(page).into_response())
}

/// Adds the headers that restrict a browser to showing the page.
fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&status_html::policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

fn ready_page(readiness: &Readiness) -> Response {
    if readiness.is_ready() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the database of the cluster has answered no heartbeat of this process of late\n")
        .into_response()
}

fn health_page(report: &HealthReport) -> Response {
    let page = HealthPage::of(report);
    let status = if page.failed() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    match serde_json::to_string_pretty(&page) {
        Ok(json) => (status, [(header::CONTENT_TYPE, "application/json")], json + "\n").into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// The body of `/health`.
#[derive(Debug, Serialize)]
struct HealthPage<'a> {
    /// The worst of the sources; `degraded` also when a sink or the state is in trouble.
    state: &'static str,
    sources: BTreeMap<&'a str, HealthEntry<'a>>,
    sinks: BTreeMap<&'a str, HealthEntry<'a>>,
    /// The files of the state, when something is wrong with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<HealthEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct HealthEntry<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    since: String,
}

impl<'a> HealthPage<'a> {
    fn of(report: &'a HealthReport) -> Self {
        let entries = |side: &'a BTreeMap<String, ReportedHealth>| -> BTreeMap<_, _> {
            side.iter().map(|(name, standing)| (name.as_str(), HealthEntry::of(standing))).collect()
        };
        let (sources, sinks) = (entries(&report.sources), entries(&report.sinks));
        let store = report.store.as_ref().map(HealthEntry::of);
        let state = if sources.values().any(|e| e.state == "failed") {
            "failed"
        } else if sources.values().chain(sinks.values()).chain(&store).any(|e| e.state != "healthy") {
            "degraded"
        } else {
            "healthy"
        };
        Self { state, sources, sinks, store }
    }

    fn failed(&self) -> bool {
        self.state == "failed"
    }
}

impl<'a> HealthEntry<'a> {
    fn of(standing: &'a ReportedHealth) -> Self {
        let (state, reason) = match &standing.health {
            Health::Healthy => ("healthy", None),
            Health::Degraded { why, .. } => ("degraded", Some(why.as_str())),
            Health::Failed { why } => ("failed", Some(why.as_str())),
        };
        Self { state, reason, since: standing.since.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use ::metrics::{counter, describe_counter, gauge, with_local_recorder};
    use std::sync::OnceLock;

    use super::super::recorder::Recorder;
    use super::super::registry::RunningSource;
    use super::super::status::Recent;
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::{ContentType, TenantId, Timestamp};
    use crate::source::{aside, backfill, heal};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::sync::watch;

    fn standing(health: Health) -> ReportedHealth {
        ReportedHealth { health, since: "2026-05-01T00:00:00Z".parse().unwrap() }
    }

    fn degraded(why: &str) -> ReportedHealth {
        standing(Health::Degraded { why: why.into(), since: Timestamp::UNIX_EPOCH })
    }

    fn report(source: ReportedHealth, sink: ReportedHealth) -> HealthReport {
        HealthReport {
            sources: BTreeMap::from([("contoso".into(), source)]),
            sinks: BTreeMap::from([("out".into(), sink)]),
            store: None,
        }
    }

    #[test]
    fn only_a_failed_source_is_unavailable() {
        let healthy = || standing(Health::Healthy);
        let failed = || standing(Health::Failed { why: "no permission".into() });
        for (report, state, status) in [
            (HealthReport::default(), "healthy", 200),
            (report(healthy(), healthy()), "healthy", 200),
            (report(degraded("throttled"), healthy()), "degraded", 200),
            (report(healthy(), degraded("disk full")), "degraded", 200),
            (report(healthy(), failed()), "degraded", 200),
            (report(failed(), healthy()), "failed", 503),
            (HealthReport { store: Some(degraded("gone")), ..report(healthy(), healthy()) }, "degraded", 200),
        ] {
            assert_eq!(HealthPage::of(&report).state, state);
            assert_eq!(health_page(&report).status().as_u16(), status);
        }
    }

    #[test]
    fn health_names_the_reason_and_since_when() {
        let report = report(degraded("throttled"), standing(Health::Healthy));
        expect_test::expect![[r#"
            {
              "state": "degraded",
              "sources": {
                "contoso": {
                  "state": "degraded",
                  "reason": "throttled",
                  "since": "2026-05-01T00:00:00Z"
                }
              },
              "sinks": {
                "out": {
                  "state": "healthy",
                  "since": "2026-05-01T00:00:00Z"
                }
              }
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&HealthPage::of(&report)).unwrap());
    }

    async fn fetch(address: SocketAddr, path: &str) -> String {
        fetch_from("x", address, path).await
    }

    async fn fetch_from(host: &str, address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    const TENANT: &str = "11111111-2222-3333-4444-555555555555";

    /// Serves one source whose name is markup, with the metrics that `record` records.
    fn pages(report: watch::Receiver<HealthReport>, clock: Arc<dyn Clock>, record: impl FnOnce()) -> Served {
        let (recorder, recorded) = Recorder::new();
        with_local_recorder(&recorder, record);
        let registry = Registry::default();
        let entry = RunningSource {
            tenant: TENANT.parse::<TenantId>().unwrap(),
            content_types: vec![ContentType::Exchange],
            max_requests_per_minute: 2000,
            counter: backfill::request_queue().0,
            heal: heal::requests::request_queue().0,
            backfill: None,
            retries: aside::asking().0,
        };
        registry.put("contoso", entry.clone());
        registry.put(HOSTILE, entry);
        Served {
            monitor: Arc::new(Monitor::new(recorded, report, Recent::default(), clock.clone())),
            registry,
            completeness: CompletenessReader::new(Arc::new(OnceLock::new()), clock),
            detail: MetricsDetail::Tenant,
            hosts: vec!["m365.example.net".to_owned()],
            docs_url: "https://wiki.example.net/m365".to_owned(),
            readiness: Readiness::default(),
        }
    }

    const HOSTILE: &str = "<script>alert('name')</script>\"onload=x";

    #[tokio::test]
    async fn pages_for_browsers_answer_to_our_names_alone_and_nothing_in_them_is_markup_of_others() {
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let why = "auth-secret-wrong: <img src=x onerror=alert(1)>\u{202e} (hint: make <b>another</b>)";
        let failed = standing(Health::Failed { why: why.into() });
        let mut health = report(failed.clone(), standing(Health::Healthy));
        health.sources.insert(HOSTILE.into(), failed);
        health.sinks.insert("<svg onload=alert(2)>".into(), degraded("javascript:alert(3): x"));
        let (_report, watched) = watch::channel(health);
        let served = pages(watched, SystemClock::new(), || {});
        let serving = tokio::spawn(server.serve(served, SystemClock::new(), std::future::pending()));
        for path in ["/", "/status", "/status.html"] {
            for ours in ["127.0.0.1", "localhost:9598", "[::1]:1", "M365.example.net"] {
                let page = fetch_from(ours, address, path).await;
                assert!(page.starts_with("HTTP/1.1 200"), "{path} by {ours}: {page}");
                assert!(page.contains("content-security-policy: default-src 'none'; style-src 'sha256-"), "{page}");
                assert!(page.contains("frame-ancestors 'none'") && page.contains("cache-control: no-store"), "{page}");
            }
            for foreign in ["evil.example", "evil.example:9598", "127.0.0.1.evil.example"] {
                let page = fetch_from(foreign, address, path).await;
                assert!(page.starts_with("HTTP/1.1 421") && !page.contains(TENANT), "{path} by {foreign}: {page}");
            }
        }
        for path in FOR_ANY_HOST {
            let page = fetch_from("evil.example", address, path).await;
            assert!(!page.starts_with("HTTP/1.1 421"), "{path}: {page}");
        }
        assert!(fetch_from("localhost", address, "/nowhere").await.starts_with("HTTP/1.1 404"));
        let page = fetch_from("localhost", address, "/status.html").await;
        let body = page.split_once("\r\n\r\n").unwrap().1;
        for markup in ["<script", "<img", "<b>another", "onload=\"", "<svg onload", "href=\"javascript"] {
            assert!(!body.contains(markup), "{markup}: {body}");
        }
        assert!(body.contains("&lt;script&gt;alert(&#39;name&#39;)&lt;/script&gt;"), "{body}");
        assert!(body.contains("href=\"https://wiki.example.net/m365/errors/auth-secret-wrong.html\""), "{body}");
        assert!(body.contains("2 tenants: 2 failed") && !body.contains("http-equiv=\"refresh\""), "{body}");
        let again = fetch_from("localhost", address, "/status.html?every=30").await;
        assert!(again.contains("<meta http-equiv=\"refresh\" content=\"30\">"), "{again}");
        for odd in ["/status.html?every=1", "/status.html?every=%22%3E%3Cscript%3E", "/status.html?x"] {
            let page = fetch_from("localhost", address, odd).await;
            assert!(page.starts_with("HTTP/1.1 200") && !page.contains("http-equiv=\"refresh\""), "{odd}: {page}");
        }
        let metrics = fetch(address, "/metrics").await;
        assert!(
            metrics.contains(&format!("{{tenant=\"{TENANT}\",source=\"contoso\",cause=\"auth-secret-wrong\"}} 1\n")),
            "{metrics}"
        );
        serving.abort();
    }

    #[tokio::test]
    async fn who_is_in_a_cluster_is_ready_while_its_heartbeats_are_answered() {
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let (_report, watched) = watch::channel(HealthReport::default());
        let readiness = Readiness::new(true);
        let served = Served { readiness: readiness.clone(), ..pages(watched, SystemClock::new(), || {}) };
        let serving = tokio::spawn(server.serve(served, SystemClock::new(), std::future::pending()));
        let is_ready = async || fetch(address, "/ready").await.starts_with("HTTP/1.1 200");
        assert!(!is_ready().await, "it has not joined");
        let answered = Arc::new(AtomicBool::new(true));
        let asked = answered.clone();
        readiness.joins(Arc::new(move || asked.load(Ordering::Relaxed)));
        assert!(is_ready().await);
        answered.store(false, Ordering::Relaxed);
        let page = fetch(address, "/ready").await;
        assert!(page.starts_with("HTTP/1.1 503") && page.contains("heartbeat"), "{page}");
        assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200"), "that is no reason to restart it");
        serving.abort();
    }

    #[tokio::test]
    async fn the_three_pages_are_served_until_told_to_stop() {
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let taken = MetricsServer::bind(&address.to_string()).await.unwrap_err();
        assert_eq!(taken.slug(), "metrics-listen-failed");
        assert!(taken.hint().contains("another process"), "{}", taken.hint());

        let failed = standing(Health::Failed { why: "no permission".into() });
        let (_report, watched) = watch::channel(report(failed, standing(Health::Healthy)));
        let served = pages(watched, SystemClock::new(), || {
            counter!("m365_audit_test_total").increment(3);
            for (tenant, value) in [("gone", metrics::ABSENT), ("here", 4.5)] {
                gauge!("m365_audit_test_seconds", "tenant" => tenant).set(value);
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(server.serve(served, SystemClock::new(), shutdown));
        let page = fetch(address, "/metrics").await;
        assert!(page.contains("m365_audit_test_total 3"), "{page}");
        assert!(page.contains("m365_audit_test_seconds{tenant=\"here\"} 4.5\n"), "{page}");
        assert!(!page.contains("gone") && !page.contains("NaN"), "{page}");
        let health = fetch(address, "/health").await;
        assert!(health.starts_with("HTTP/1.1 503") && health.contains("no permission"), "{health}");
        assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/ready").await.starts_with("HTTP/1.1 200"), "alone it always is");
        stop.send(()).unwrap();
        serving.await.unwrap();
    }

    use crate::clock::TestClock;
    use tokio::net::TcpStream;

    /// A server on a test clock with this many bytes of metrics, and its address.
    async fn served(bounds: ServerLimits, padding: usize) -> (SocketAddr, TestClock, tokio::task::JoinHandle<()>) {
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap().with_bounds(bounds);
        let address = server.local_addr().unwrap();
        let clock = TestClock::at("2026-05-01T00:00:00Z".parse().unwrap());
        let (report, watched) = watch::channel(HealthReport::default());
        let served = pages(watched, Arc::new(clock.clone()), || {
            describe_counter!("others_total", "x".repeat(padding));
            counter!("others_total").increment(1);
        });
        let serving = server.serve(served, Arc::new(clock.clone()), std::future::pending());
        let serving = tokio::spawn(async move {
            let _report = report;
            serving.await;
        });
        (address, clock, serving)
    }

    async fn half_open(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTT").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn whoever_asks_is_answered_whatever_else_is_half_open() {
        let bounds = ServerLimits { connections: 8, ..ServerLimits::default() };
        let (address, _clock, serving) = served(bounds, 0).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(half_open(address).await);
            if silent.len() % 10 == 0 {
                assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200"));
            }
        }
        assert!(fetch(address, "/health").await.starts_with("HTTP/1.1 200"));
        // The first of them were closed.
        assert_eq!(silent[0].read(&mut [0; 16]).await.unwrap_or(0), 0);
        serving.abort();
    }

    #[tokio::test]
    async fn a_request_that_does_not_come_is_given_up_in_time() {
        let (address, clock, serving) = served(ServerLimits::default(), 0).await;
        let mut silent = half_open(address).await;
        // Its connection waits for its time limit beside the upkeep.
        while clock.sleepers() < 2 {
            tokio::task::yield_now().await;
        }
        clock.advance(ServerLimits::default().request);
        assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0, "it is closed");
        serving.abort();
    }

    #[tokio::test]
    async fn readers_that_do_not_read_hold_a_few_pages_and_no_probe() {
        let bounds = ServerLimits { pages: 2, ..ServerLimits::default() };
        // More bytes than two sockets buffer.
        let (address, _clock, serving) = served(bounds, 32 << 20).await;
        let mut slow = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut first = [0; 64];
            stream.read_exact(&mut first).await.unwrap();
            assert!(first.starts_with(b"HTTP/1.1 200"));
            slow.push(stream);
        }
        let refused = fetch(address, "/metrics").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
        assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200"));
        drop(slow);
        serving.abort();
    }
}
