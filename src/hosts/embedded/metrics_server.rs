//! The listener of `[metrics] listen`: `/metrics` in Prometheus text, `/health` with reasons, `/live`.
//!
//! Owns the HTTP side only; what is measured is in [`crate::metrics`], how things fare comes from the host's
//! [`HealthReport`]. `/health` answers 503 only when a source has failed: a degraded one still delivers, and a probe
//! that restarts it would help nobody. `/live` says that the process runs.
//!
//! Whoever connects can hold little: connections are bounded, each has one request, which must come within seconds and
//! be taken within half a minute. Where there are too many, the oldest that has not asked anything yet goes first, so
//! that a probe, which asks at once, is answered whatever else is open.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::{HealthReport, Standing};
use crate::clock::Clock;
use crate::host::Health;
use crate::model::Actionable;

/// How often the recorder tidies its histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long open requests may take to end at a stop.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// When to try again after the system gave no connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What whoever connects may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Answers to `/metrics` on their way at once: with many tenants one is megabytes.
    pub pages: usize,
    /// Time until the request has come.
    pub request: Duration,
    /// Time from there until the answer was taken.
    pub answer: Duration,
}

impl Default for Bounds {
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
    bounds: Bounds,
}

impl MetricsServer {
    /// Binds `listen`, `address:port`.
    pub async fn bind(listen: &str) -> Result<Self, MetricsError> {
        match TcpListener::bind(listen).await {
            Ok(listener) => Ok(Self { listener, bounds: Bounds::default() }),
            Err(source) => Err(MetricsError::Listen { listen: listen.to_owned(), source }),
        }
    }

    /// The same with other bounds.
    pub fn with_bounds(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// The address bound, with the port chosen when `listen` said 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves.
    pub async fn serve(
        self,
        recorder: PrometheusHandle,
        report: watch::Receiver<HealthReport>,
        clock: Arc<dyn Clock>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let pages =
            Pages { router: router(recorder.clone(), report), large: Arc::new(Semaphore::new(self.bounds.pages)) };
        let mut open = Open::default();
        let mut shutdown = std::pin::pin!(shutdown);
        let mut upkeep = clock.sleep(UPKEEP_EVERY);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        open.make_room(self.bounds.connections);
                        open.add(|asked| answer_one(stream, pages.clone(), self.bounds, clock.clone(), asked));
                    }
                    // Out of descriptors, or the peer has gone already.
                    Err(_) => clock.sleep(ACCEPT_RETRY).await,
                },
                Some(_) = open.tasks.join_next() => {}
                () = &mut upkeep => {
                    recorder.run_upkeep();
                    upkeep = clock.sleep(UPKEEP_EVERY);
                }
                () = &mut shutdown => break,
            }
        }
        drop(self.listener);
        tokio::select! {
            () = async { while open.tasks.join_next().await.is_some() {} } => {}
            // Whoever keeps a request open does not keep the process.
            () = clock.sleep(STOP_GRACE) => open.tasks.shutdown().await,
        }
    }
}

/// Connections now, oldest first, each with whether its request has come.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    connections: Vec<(Arc<AtomicBool>, AbortHandle)>,
}

impl Open {
    /// Ends the oldest that has asked nothing; if all have, the oldest, which has had the most time.
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

/// What is served.
#[derive(Clone)]
struct Pages {
    router: Router,
    /// Leave to hold a large answer.
    large: Arc<Semaphore>,
}

/// Answers the one request of a connection, or gives it up in time.
async fn answer_one(stream: TcpStream, pages: Pages, bounds: Bounds, clock: Arc<dyn Clock>, asked: Arc<AtomicBool>) {
    // Held until the connection is over: until then the page is in memory.
    let held = Mutex::new(None);
    let router = TowerToHyperService::new(pages.router);
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let may = request.uri().path() != "/metrics" || {
            let permit = pages.large.clone().try_acquire_owned().ok();
            let got = permit.is_some();
            *held.lock() = permit;
            got
        };
        let answer = may.then(|| router.call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
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

fn router(recorder: PrometheusHandle, report: watch::Receiver<HealthReport>) -> Router {
    Router::new()
        .route("/metrics", get(move || std::future::ready(metrics_page(&recorder))))
        .route("/health", get(move || std::future::ready(health_page(&report.borrow()))))
        .route("/live", get(|| std::future::ready("live\n")))
}

fn metrics_page(recorder: &PrometheusHandle) -> Response {
    let page = without_absent(&recorder.render());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// The page without the series that have no value ([`crate::metrics::ABSENT`]).
fn without_absent(page: &str) -> String {
    let absent = |line: &&str| !line.starts_with('#') && line.ends_with(" NaN");
    let mut kept = String::with_capacity(page.len());
    for line in page.split_inclusive('\n').filter(|line| !absent(&line.trim_end_matches('\n'))) {
        kept.push_str(line);
    }
    kept
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
    sources: BTreeMap<&'a str, Entry<'a>>,
    sinks: BTreeMap<&'a str, Entry<'a>>,
    /// The files of the state, when something is wrong with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Entry<'a>>,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    since: String,
}

impl<'a> HealthPage<'a> {
    fn of(report: &'a HealthReport) -> Self {
        let entries = |side: &'a BTreeMap<String, Standing>| -> BTreeMap<_, _> {
            side.iter().map(|(name, standing)| (name.as_str(), Entry::of(standing))).collect()
        };
        let (sources, sinks) = (entries(&report.sources), entries(&report.sinks));
        let store = report.store.as_ref().map(Entry::of);
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

impl<'a> Entry<'a> {
    fn of(standing: &'a Standing) -> Self {
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
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::clock::SystemClock;
    use crate::model::Timestamp;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    fn standing(health: Health) -> Standing {
        Standing { health, since: "2026-05-01T00:00:00Z".parse().unwrap() }
    }

    fn degraded(why: &str) -> Standing {
        standing(Health::Degraded { why: why.into(), since: Timestamp::UNIX_EPOCH })
    }

    fn report(source: Standing, sink: Standing) -> HealthReport {
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
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_three_pages_are_served_until_told_to_stop() {
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let taken = MetricsServer::bind(&address.to_string()).await.unwrap_err();
        assert_eq!(taken.slug(), "metrics-listen-failed");
        assert!(taken.hint().contains("another process"), "{}", taken.hint());

        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("m365_audit_test_total").increment(3);
            for (tenant, value) in [("gone", crate::metrics::ABSENT), ("here", 4.5)] {
                metrics::gauge!("m365_audit_test_seconds", "tenant" => tenant).set(value);
            }
        });
        let failed = standing(Health::Failed { why: "no permission".into() });
        let (_report, watched) = watch::channel(report(failed, standing(Health::Healthy)));
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(server.serve(handle, watched, SystemClock::new(), shutdown));
        let page = fetch(address, "/metrics").await;
        assert!(page.contains("m365_audit_test_total 3"), "{page}");
        assert!(page.contains("m365_audit_test_seconds{tenant=\"here\"} 4.5\n"), "{page}");
        assert!(!page.contains("gone") && !page.contains("NaN"), "{page}");
        let health = fetch(address, "/health").await;
        assert!(health.starts_with("HTTP/1.1 503") && health.contains("no permission"), "{health}");
        assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200"));
        stop.send(()).unwrap();
        serving.await.unwrap();
    }

    use crate::clock::TestClock;
    use tokio::net::TcpStream;

    /// A server on a test clock with so many bytes of metrics, and its address.
    async fn served(bounds: Bounds, padding: usize) -> (SocketAddr, TestClock, tokio::task::JoinHandle<()>) {
        let server = MetricsServer::bind("127.0.0.1:0").await.unwrap().with_bounds(bounds);
        let address = server.local_addr().unwrap();
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_counter!("m365_audit_test_total", "x".repeat(padding));
            metrics::counter!("m365_audit_test_total").increment(1);
        });
        let clock = TestClock::at("2026-05-01T00:00:00Z".parse().unwrap());
        let (report, watched) = watch::channel(HealthReport::default());
        let handle = recorder.handle();
        let serving = server.serve(handle, watched, Arc::new(clock.clone()), std::future::pending());
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
        let bounds = Bounds { connections: 8, ..Bounds::default() };
        let (address, _clock, serving) = served(bounds, 0).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(half_open(address).await);
            if silent.len() % 10 == 0 {
                assert!(fetch(address, "/live").await.starts_with("HTTP/1.1 200"));
            }
        }
        assert!(fetch(address, "/health").await.starts_with("HTTP/1.1 200"));
        // The first of them were let go.
        assert_eq!(silent[0].read(&mut [0; 16]).await.unwrap_or(0), 0);
        serving.abort();
    }

    #[tokio::test]
    async fn a_request_that_does_not_come_is_given_up_in_time() {
        let (address, clock, serving) = served(Bounds::default(), 0).await;
        let mut silent = half_open(address).await;
        // Its connection sleeps towards its end beside the upkeep.
        while clock.sleepers() < 2 {
            tokio::task::yield_now().await;
        }
        clock.advance(Bounds::default().request);
        assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0, "it is closed");
        serving.abort();
    }

    #[tokio::test]
    async fn readers_that_do_not_read_hold_a_few_pages_and_no_probe() {
        let bounds = Bounds { pages: 2, ..Bounds::default() };
        // More than two sockets hold.
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
