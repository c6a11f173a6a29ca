//! The listener of `[metrics] listen`: `/metrics` in Prometheus text, `/health` with reasons, `/live`.
//!
//! Owns the HTTP side only; what is measured is in [`crate::metrics`], how things fare comes from the host's
//! [`HealthReport`]. `/health` answers 503 only when a source has failed: a degraded one still delivers, and a probe
//! that restarts it would help nobody. `/live` says that the process runs.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{HealthReport, Standing};
use crate::clock::Clock;
use crate::host::Health;
use crate::model::Actionable;

/// How often the recorder tidies its histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How long open requests may take to end at a stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

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
}

impl MetricsServer {
    /// Binds `listen`, `address:port`.
    pub async fn bind(listen: &str) -> Result<Self, MetricsError> {
        match TcpListener::bind(listen).await {
            Ok(listener) => Ok(Self { listener }),
            Err(source) => Err(MetricsError::Listen { listen: listen.to_owned(), source }),
        }
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
        let (stop, stopped) = watch::channel(false);
        let serve = axum::serve(self.listener, router(recorder.clone(), report)).with_graceful_shutdown({
            let mut stopped = stopped;
            async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            }
        });
        let mut serve = std::pin::pin!(serve.into_future());
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                // Never before the stop: accepting is retried inside.
                _ = &mut serve => return,
                () = &mut shutdown => break,
                () = clock.sleep(UPKEEP_EVERY) => recorder.run_upkeep(),
            }
        }
        let _ = stop.send(true);
        tokio::select! {
            _ = &mut serve => {}
            // Whoever keeps a request open does not keep the process.
            () = clock.sleep(STOP_GRACE) => {}
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
}
