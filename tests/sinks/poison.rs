//! The program killed with -9 while a receiver refuses one record of a request and takes its neighbours: after the restart
//! nothing is lost, the poison is set aside once, and what comes twice was under way when the program was killed. Real time,
//! a real state store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use m365_audit::clock::SystemClock;
use m365_audit::sim::Sim;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::otlp::bodies_of;
use crate::truth::{compare, source_table, tenant};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(240);
const KILLS: usize = 4;

/// What a receiver says of a request that holds a record it will never take.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    Http,
    Otlp,
    /// The others of the request are taken, and the answer says how many are not.
    OtlpPartly,
}

/// A receiver that refuses some ids, and keeps what it has taken in each life of the program.
#[derive(Clone)]
struct Receiver {
    word: Word,
    taken: Arc<Mutex<Vec<Vec<Value>>>>,
    refused: Arc<Notify>,
    /// A poison was refused alone: its next refusals are about to be counted, or were.
    alone: Arc<AtomicBool>,
}

fn id(record: &Value) -> &str {
    record["event_id"].as_str().unwrap_or_default()
}

/// Two hexadecimal digits of an id say so: three in 256 records.
fn is_poison(record: &Value) -> bool {
    ["7a", "b3", "c9"].iter().any(|end| id(record).ends_with(end))
}

impl Receiver {
    fn take(&self, records: Vec<Value>) -> usize {
        let (poison, fine): (Vec<Value>, Vec<Value>) = records.into_iter().partition(is_poison);
        if !poison.is_empty() {
            self.alone.fetch_or(poison.len() == 1 && fine.is_empty(), Ordering::SeqCst);
            self.refused.notify_one();
        }
        if poison.is_empty() || self.word == Word::OtlpPartly {
            self.taken.lock().unwrap().last_mut().unwrap().extend(fine);
        }
        poison.len()
    }

    fn http(&self, body: &Bytes) -> StatusCode {
        let records = body.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        match self.take(records.map(|line| serde_json::from_slice(line).unwrap()).collect()) {
            0 => StatusCode::OK,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    fn otlp(&self, body: Bytes) -> (StatusCode, [(&'static str, &'static str); 1], Vec<u8>) {
        let request = ExportLogsServiceRequest::decode(body).unwrap();
        let refused = self.take(bodies_of(&request));
        let kind = [("content-type", "application/x-protobuf")];
        match (refused, self.word) {
            (0, _) => (StatusCode::OK, kind, ExportLogsServiceResponse::default().encode_to_vec()),
            (n, Word::OtlpPartly) => {
                let partial =
                    ExportLogsPartialSuccess { rejected_log_records: n as i64, error_message: "poison".into() };
                (StatusCode::OK, kind, ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec())
            }
            _ => (StatusCode::BAD_REQUEST, kind, Vec::new()),
        }
    }

    async fn listen(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (http, otlp) = (self.clone(), self.clone());
        let router = Router::new()
            .route("/in", post(move |body: Bytes| async move { http.http(&body) }))
            .route("/v1/logs", post(move |body: Bytes| async move { otlp.otlp(body) }))
            .layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        port
    }

    fn table(&self, port: u16) -> String {
        match self.word {
            Word::Http => format!("type = \"http\"\nuri = \"http://127.0.0.1:{port}/in\"\nbatch_bytes_max = 65536\n"),
            _ => format!(
                "type = \"otlp\"\nprotocol = \"http\"\nendpoint = \"http://127.0.0.1:{port}\"\nbatch_bytes_max = 65536\ncompression = \"none\"\n"
            ),
        }
    }

    fn all(&self) -> Vec<Value> {
        self.taken.lock().unwrap().concat()
    }
}

struct Program {
    config: PathBuf,
    child: Child,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(config: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(config.with_extension("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(["run", "-c"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

impl Program {
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The ids that are set aside, each as often as it is.
    async fn set_aside(&self) -> Vec<String> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        let output = command.args(["state", "export", "-c"]).arg(&self.config).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| id(&serde_json::from_str(line).unwrap()).to_owned()).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default()
    }
}

/// What the source has under way at most, in bytes of records.
const IN_FLIGHT: usize = 1 << 20;
/// The largest request.
const REQUEST: usize = 65_536;

fn configure(dir: &Path, source: &str, sink: &str) -> PathBuf {
    let config = dir.join("m365-audit.toml");
    let text = format!(
        "data_dir = {:?}\n[sources.s]\n{source}poll_interval_secs = 1\nmax_requests_per_minute = 0\n\
         in_flight_bytes_max = {IN_FLIGHT}\n[sinks.out]\ninputs = [\"s\"]\n{sink}\n",
        dir.join("state")
    );
    std::fs::write(&config, text).unwrap();
    config
}

/// Waits until all that is not poison was taken and all that is, is set aside.
async fn until_settled(receiver: &Receiver, program: &mut Program, sim: &Sim) -> Vec<String> {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let comparison = compare(sim, receiver.all());
        let poison: BTreeSet<&str> = comparison
            .lost
            .iter()
            .map(String::as_str)
            .filter(|id| is_poison(&serde_json::json!({"event_id": id})))
            .collect();
        let aside = program.set_aside().await;
        if comparison.lost.len() == poison.len() && aside.len() >= poison.len() {
            assert!(comparison.altered.is_empty() && comparison.unexpected.is_empty(), "{comparison}");
            return aside;
        }
        assert!(begun.elapsed() < PATIENCE, "{} set aside, {comparison}\n{}", aside.len(), program.log());
    }
}

/// How often each event was taken in each life of the program, and its bytes. By its text: some ids are of many events.
fn lives(receiver: &Receiver) -> Vec<BTreeMap<String, (usize, usize)>> {
    let taken = receiver.taken.lock().unwrap();
    let life = |records: &Vec<Value>| {
        let mut counted: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for record in records {
            let entry = counted.entry(record["raw"].to_string()).or_insert((0, record.to_string().len()));
            entry.0 += 1;
        }
        counted
    };
    taken.iter().map(life).collect()
}

async fn killed_beside_poison(word: Word) {
    let receiver = Receiver {
        word,
        taken: Arc::new(Mutex::new(vec![Vec::new()])),
        refused: Arc::default(),
        alone: Arc::default(),
    };
    let port = receiver.listen().await;
    let (sim, tenant) = tenant(SystemClock::new(), 40, 50).await;
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), &source_table(&sim, &tenant), &receiver.table(port));
    let mut program = Program { child: start(&config), config };
    for round in 0..KILLS {
        let begun = Instant::now();
        loop {
            let refused = tokio::time::timeout(PATIENCE, receiver.refused.notified()).await;
            refused.unwrap_or_else(|_| panic!("no refusal: {}", program.log()));
            // Every other kill comes when a poison stands alone, and so waits for the word that sets it aside.
            if round % 2 == 0 || receiver.alone.swap(false, Ordering::SeqCst) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "none was refused alone: {}", program.log());
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..30))).await;
        program.kill();
        receiver.taken.lock().unwrap().push(Vec::new());
        program.child = start(&program.config);
    }
    let mut aside = until_settled(&receiver, &mut program, &sim).await;
    program.kill();
    aside.sort();
    let once: BTreeSet<&String> = aside.iter().collect();
    assert_eq!(once.len(), aside.len(), "{word:?}: set aside twice: {aside:?}");
    assert!(once.len() > KILLS && once.iter().all(|id| is_poison(&serde_json::json!({"event_id": id}))), "{aside:?}");
    let lives = lives(&receiver);
    let mut twice = 0;
    for (at, life) in lives.iter().enumerate() {
        let within: Vec<&String> = life.iter().filter(|(_, (times, _))| *times > 1).map(|(raw, _)| raw).collect();
        assert!(word == Word::OtlpPartly || within.is_empty(), "{word:?}: twice in life {at}: {within:?}");
        let again = life.iter().filter(|(raw, _)| lives[at + 1..].iter().any(|later| later.contains_key(*raw)));
        let (records, bytes) = again.fold((0, 0), |(n, sum), (_, (_, bytes))| (n + 1, sum + bytes));
        assert!(bytes <= IN_FLIGHT + REQUEST, "{word:?}: {bytes} bytes of life {at} came again");
        twice += records;
    }
    println!(
        "{word:?}: killed {KILLS} times, {} events, 0 lost, {} set aside once, {twice} came again after a kill",
        sim.truth().events.len(),
        aside.len()
    );
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_beside_a_poison_the_http_sink_loses_nothing_and_sets_it_aside_once() {
    killed_beside_poison(Word::Http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_beside_a_poison_the_otlp_sink_loses_nothing_and_sets_it_aside_once() {
    killed_beside_poison(Word::Otlp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_beside_a_poison_that_otlp_takes_the_others_of_nothing_is_lost() {
    killed_beside_poison(Word::OtlpPartly).await;
}
