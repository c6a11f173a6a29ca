//! Records that were set aside, as an operator meets them: `state show`, `state retry` beside the running program and
//! without it, and the gauge.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use m365_audit::clock::SystemClock;
use m365_audit::hosts::embedded::memory::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::truth::{FastClock, Received, compare, pass_from, retry, source_table, tenant};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A receiver that does not take records whose id ends in `5`, or anything at all, until it is set right.
#[derive(Clone, Default)]
struct Receiver {
    received: Received,
    takes_all: Arc<AtomicBool>,
    takes_nothing: Arc<AtomicBool>,
    /// Nor those whose id ends in `7`.
    no_sevens: Arc<AtomicBool>,
    /// Its answer to those, in place of 400.
    refusal: Option<StatusCode>,
    asked: Arc<AtomicUsize>,
}

fn ends_in(record: &serde_json::Value, end: char) -> bool {
    record["event_id"].as_str().is_some_and(|id| id.ends_with(end))
}

impl Receiver {
    async fn listen(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let receiver = self.clone();
        let router = Router::new().route("/in", post(move |body: String| async move { receiver.take(&body) }));
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        port
    }

    fn take(&self, body: &str) -> (StatusCode, &'static str) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let records: Vec<serde_json::Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if self.takes_nothing.load(Ordering::SeqCst) {
            return (StatusCode::BAD_REQUEST, "Data channel is missing");
        }
        let no_sevens = self.no_sevens.load(Ordering::SeqCst);
        let is_bad = |record| ends_in(record, '5') || no_sevens && ends_in(record, '7');
        if !self.takes_all.load(Ordering::SeqCst) && records.iter().any(is_bad) {
            return (self.refusal.unwrap_or(StatusCode::BAD_REQUEST), "no fives");
        }
        self.received.extend(records);
        (StatusCode::OK, "")
    }
}

struct Program {
    config: PathBuf,
    metrics: u16,
    child: Child,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(config: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(["run", "-c"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Program {
    async fn start(dir: &Path, source: &str, port: u16) -> Self {
        let metrics = test_support::free_port();
        let config = dir.join("m365-audit.toml");
        let text = format!(
            "data_dir = {:?}\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n[sources.s]\n{source}poll_interval_secs = 1\n\
             max_requests_per_minute = 0\n[sinks.out]\ninputs = [\"s\"]\ntype = \"http\"\n\
             uri = \"http://127.0.0.1:{port}/in\"\n",
            dir.join("state")
        );
        std::fs::write(&config, text).unwrap();
        Self { child: start(&config), config, metrics }
    }

    async fn run(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(args).arg("-c").arg(&self.config).output().await.unwrap()
    }

    async fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The page of metrics; empty while there is none.
    async fn page(&self) -> String {
        self.get("/metrics").await.unwrap_or_default()
    }

    async fn gauge(&self, name: &str) -> Option<f64> {
        let page = self.page().await;
        let line = page.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with('{'))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    async fn wait_for(&self, what: &str, name: &str, wanted: impl Fn(f64) -> bool) {
        let begun = Instant::now();
        loop {
            let now = self.gauge(name).await;
            if now.is_some_and(&wanted) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {name} is {now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

const SET_ASIDE: &str = "m365_audit_set_aside_records";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_is_retried_beside_the_program_and_without_it_and_counted_at_every_moment() {
    let receiver = Receiver::default();
    let port = receiver.listen().await;
    let (sim, tenant) = tenant(SystemClock::new(), 8, 25).await;
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(dir.path(), &source_table(&sim, &tenant), port).await;
    // All but the bad ones arrive, and those are set aside.
    let begun = Instant::now();
    let bad = loop {
        let comparison = compare(&sim, receiver.received.all());
        let aside = program.gauge(SET_ASIDE).await.unwrap_or(0.0) as usize;
        if aside > 0 && aside == comparison.lost.len() {
            assert!(comparison.lost.iter().all(|id| id.ends_with('5')), "{comparison}");
            break aside;
        }
        assert!(begun.elapsed() < PATIENCE, "{aside} set aside, {comparison}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // Still rejected: said, and nothing changes.
    let output = program.run(&["state", "retry"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(75), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with(&format!("s: 0 delivered, {bad} still set aside\n")), "{text}");
    assert_eq!(text.matches("no fives").count(), bad, "{text}");
    assert_eq!(program.gauge(SET_ASIDE).await, Some(bad as f64));
    // A restart counts them, too.
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    program.child = start(&program.config);
    program.wait_for("after a restart", SET_ASIDE, |now| now == bad as f64).await;
    // Set right.
    receiver.takes_all.store(true, Ordering::SeqCst);
    let output = program.run(&["state", "retry", "--source", "s"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // The program tries them at its start, too, and may have been first.
    assert!(text.starts_with("s: ") && text.ends_with(" delivered, 0 still set aside\n"), "{text}");
    program.wait_for("delivered", SET_ASIDE, |now| now == 0.0).await;
    let comparison = compare(&sim, receiver.received.all());
    assert!(comparison.lost.is_empty(), "{comparison}");
    let output = program.run(&["state", "retry", "--source", "nobody"]).await;
    assert_eq!(output.status.code(), Some(64));
    // Without a process.
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let output = program.run(&["state", "retry"]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "s: 0 delivered, 0 still set aside\n");
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_channel_sets_nothing_aside_and_is_said_in_status_and_health_until_it_is_right() {
    let receiver = Receiver::default();
    receiver.takes_nothing.store(true, Ordering::SeqCst);
    receiver.takes_all.store(true, Ordering::SeqCst);
    let port = receiver.listen().await;
    let (sim, tenant) = tenant(SystemClock::new(), 20, 40).await;
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path(), &source_table(&sim, &tenant), port).await;
    program.wait_for("held back", "m365_audit_sink_held_back", |now| now == 1.0).await;
    assert_eq!(program.gauge(SET_ASIDE).await.unwrap_or(0.0), 0.0);
    assert!(receiver.asked.load(Ordering::SeqCst) < 60, "{:?} requests", receiver.asked);
    let status = program.run(&["status", "--once"]).await;
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("sink-rejects-everything") && text.contains("Data channel is missing"), "{text}");
    let health = program.get("/health").await.unwrap();
    assert!(health.contains("degraded") && health.contains("Data channel is missing"), "{health}");
    receiver.takes_nothing.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    loop {
        let comparison = compare(&sim, receiver.received.all());
        if comparison.lost.is_empty() {
            assert!(comparison.is_clean(), "{comparison}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{comparison}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    program.wait_for("taken", "m365_audit_sink_held_back", |now| now == 0.0).await;
    assert_eq!(program.gauge(SET_ASIDE).await.unwrap_or(0.0), 0.0);
    sim.stop().await;
}

/// Answers that do not say whether the record is the cause: 500, and the 403 of a firewall that reads the records.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_with_500_or_403_keeps_no_other_record_from_being_retried_and_no_pass_from_its_end() {
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::FORBIDDEN] {
        let receiver = Receiver { refusal: Some(status), ..Receiver::default() };
        receiver.no_sevens.store(true, Ordering::SeqCst);
        let port = receiver.listen().await;
        let table = format!("type = \"http\"\nuri = \"http://127.0.0.1:{port}/in\"\nbatch_bytes_max = 65536\n");
        let clock = FastClock::start();
        let (sim, tenant) = tenant(clock.clone(), 8, 25).await;
        let store = Arc::new(MemoryStore::new());
        let pass = || pass_from(store.clone(), "", &table, &sim, &tenant, clock.clone());
        pass().await;
        let lost = compare(&sim, receiver.received.all()).lost;
        let of = |end: char| lost.iter().filter(|id| id.ends_with(end)).count();
        let (fives, sevens) = (of('5'), of('7'));
        assert!(fives > 0 && sevens > 0 && fives + sevens == lost.len(), "{lost:?}");
        tokio::time::timeout(PATIENCE, pass()).await.expect("the pass ends");
        let retried = retry(&store, &table, &tenant, clock.clone()).await;
        assert_eq!((retried.delivered, retried.left.len()), (0, fives + sevens), "{retried:?}");
        let reason =
            |why: &str| why.contains(status.as_str()) && why.contains("no fives") && !why.contains("not taken");
        assert!(retried.left.iter().all(|left| reason(&left.why)), "{retried:?}");
        receiver.no_sevens.store(false, Ordering::SeqCst);
        let retried = retry(&store, &table, &tenant, clock.clone()).await;
        assert_eq!((retried.delivered, retried.left.len()), (sevens as u64, fives), "{retried:?}");
        receiver.takes_all.store(true, Ordering::SeqCst);
        tokio::time::timeout(PATIENCE, pass()).await.expect("the pass ends");
        let comparison = compare(&sim, receiver.received.all());
        assert!(comparison.is_clean(), "{comparison}");
        sim.stop().await;
    }
}
