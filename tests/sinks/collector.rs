//! The `otlp` sink through a real OpenTelemetry Collector, whose backend answers as the test says. `OTELCOL` names the
//! program, or `PATH` does (`otelcol`); `.ci/destinations otelcol DIR` builds one.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use test_support::{free_port, program};
use tokio::net::{TcpListener, TcpStream};

use crate::otlp::bodies_of;
use crate::truth::{Received, pass};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the backend answers to its n-th request with these records; `None`: it takes them.
type Mood = Arc<dyn Fn(usize, &[serde_json::Value]) -> Option<u16> + Send + Sync>;

struct Collector {
    child: Child,
    grpc: u16,
    http: u16,
    received: Received,
    asked: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    /// A Collector without a queue: what it answers is what its backend answered.
    async fn start(program: &PathBuf, mood: Mood) -> Self {
        let (received, asked) = (Received::default(), Arc::new(AtomicUsize::new(0)));
        let backend = backend(mood, received.clone(), asked.clone()).await;
        let (grpc, http) = (free_port(), free_port());
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("collector.yaml");
        let text = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc: {{ endpoint: '127.0.0.1:{grpc}' }}\n      \
             http: {{ endpoint: '127.0.0.1:{http}' }}\n\
             exporters:\n  otlp_http:\n    endpoint: http://127.0.0.1:{backend}\n    compression: none\n    \
             sending_queue: {{ enabled: false }}\n    retry_on_failure: {{ enabled: false }}\n\
             service:\n  telemetry: {{ metrics: {{ level: none }} }}\n  \
             pipelines:\n    logs: {{ receivers: [otlp], exporters: [otlp_http] }}\n"
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap();
        let collector = Self { child, grpc, http, received, asked, dir };
        collector.wait_until_it_listens().await;
        collector
    }

    async fn wait_until_it_listens(&self) {
        let begun = Instant::now();
        for port in [self.grpc, self.http] {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                assert!(begun.elapsed() < PATIENCE, "it does not listen: {}", log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn table(&self, protocol: &str) -> String {
        let port = if protocol == "grpc" { self.grpc } else { self.http };
        format!(
            "type = \"otlp\"\nendpoint = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\n\
             batch_bytes_max = 65536\ntimeout_secs = 3600\n"
        )
    }
}

/// What the Collector exports to.
async fn backend(mood: Mood, received: Received, asked: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // One at a time: what is answered to a request does not depend on what comes beside it.
    let turn = Arc::new(Mutex::new(()));
    let take = move |body: Bytes| async move {
        let bodies = bodies_of(&ExportLogsServiceRequest::decode(body).unwrap());
        let _turn = turn.lock().unwrap();
        match mood(asked.fetch_add(1, Ordering::SeqCst), &bodies) {
            Some(status) => StatusCode::from_u16(status).unwrap(),
            None => {
                received.extend(bodies);
                StatusCode::OK
            }
        }
    };
    let router = Router::new().route("/v1/logs", post(take)).layer(axum::extract::DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_hands_on_the_truth() {
    let Some(program) = program("otelcol") else { return };
    for protocol in ["grpc", "http"] {
        let collector = Collector::start(&program, Arc::new(|_, _| None)).await;
        let comparison = pass(&collector.table(protocol), 12, 40, &collector.received).await;
        assert!(comparison.is_clean(), "{protocol}: {comparison}");
    }
}

/// Behind a Collector every status for a record arrives in other words; only the records to blame are set aside, and
/// nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_collectors_backend_refuses_alone_is_set_aside_whatever_the_status() {
    let Some(program) = program("otelcol") else { return };
    for (protocol, status) in [
        ("grpc", 400),
        ("grpc", 413),
        ("grpc", 422),
        ("grpc", 500),
        ("grpc", 501),
        ("http", 409),
        ("http", 415),
        ("http", 422),
    ] {
        let is_bad = |r: &serde_json::Value| r["event_id"].as_str().is_some_and(|id| id.ends_with('7'));
        let mood: Mood = Arc::new(move |_, records| records.iter().any(is_bad).then_some(status));
        let collector = Collector::start(&program, mood).await;
        let comparison = pass(&collector.table(protocol), 6, 20, &collector.received).await;
        let case = format!("{protocol} {status}: {comparison}");
        assert!(!comparison.lost.is_empty(), "{case}");
        assert!(comparison.lost.iter().all(|id| id.ends_with('7')), "{case}");
        assert!(comparison.duplicated.is_empty() && comparison.unexpected.is_empty(), "{case}");
        let (asked, bad) = (collector.asked.load(Ordering::SeqCst), comparison.lost.len());
        assert!(asked <= bad * 30 + 200, "{case}: {asked} requests for {bad} records");
    }
}

/// A rate limit, an outage, and a wrong setting behind the Collector: all of it waits, none of it is set aside.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_collectors_backend_refuses_for_a_while_arrives_all_the_same() {
    let Some(program) = program("otelcol") else { return };
    for (protocol, status) in [
        ("grpc", 429),
        ("http", 429),
        ("grpc", 503),
        ("grpc", 400),
        ("grpc", 401),
        ("grpc", 404),
        ("grpc", 500),
        ("http", 400),
    ] {
        // From the fourth request on, until it was asked often enough.
        let mood: Mood = Arc::new(move |number, _| (3..28).contains(&number).then_some(status));
        let collector = Collector::start(&program, mood).await;
        let comparison = pass(&collector.table(protocol), 12, 40, &collector.received).await;
        assert!(comparison.is_clean(), "{protocol} {status}: {comparison}");
    }
}
