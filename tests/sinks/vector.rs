//! A real Vector, named by `VECTOR` or found in `PATH`: the stock sources our sinks feed, and the native source where
//! this Vector has it. Without one each test says so and passes. Real time: Vector knows no other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use m365_audit::clock::SystemClock;
use m365_audit::config::source_schema;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{GenerateSpec, NewBlob, Sim, SimConfig};
use serde_json::Value;
use test_support::{free_port, program, skip};
use tokio::net::TcpListener;

use crate::agents::example;
use crate::truth::{Received, assert_nothing_lost, compare, source_table, tenant};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(240);
const KILLS: usize = 5;

/// How long Vector's sink refuses everything. More than some seconds (`REFUSE_SECS`) only in a trial by hand.
fn refusal() -> Duration {
    let named = std::env::var("REFUSE_SECS").ok().and_then(|secs| secs.parse().ok());
    Duration::from_secs(named.unwrap_or(6))
}

/// A program in a directory of its own, started again after each of its ends.
struct Process {
    command: Box<dyn Fn() -> Command + Send>,
    log: PathBuf,
    child: Child,
}

impl Process {
    fn start(log: &Path, command: impl Fn() -> Command + Send + 'static) -> Self {
        let child = Self::spawn(&command, log);
        Self { command: Box::new(command), log: log.to_owned(), child }
    }

    fn spawn(command: &dyn Fn() -> Command, log: &Path) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command().stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = Self::spawn(&self.command, &self.log);
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vector() -> Option<PathBuf> {
    program("vector")
}

/// A Vector that was built with `examples/vector-native/m365_audit.rs`.
fn vector_with_the_source() -> Option<PathBuf> {
    let vector = vector()?;
    let list = Command::new(&vector).arg("list").output().unwrap();
    let has = String::from_utf8_lossy(&list.stdout).lines().any(|line| line.trim_start_matches("- ") == "m365_audit");
    if !has {
        skip("vector-source", format_args!("{} was built without it", vector.display()));
    }
    has.then_some(vector)
}

/// What stands behind Vector's `http` sink.
#[derive(Clone, Default)]
struct Downstream {
    received: Received,
    /// Refuses everything.
    closed: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    /// Rejects requests with a record whose id begins so.
    rejects: Option<char>,
}

impl Downstream {
    async fn listen(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/", post(take)).layer(axum::extract::DefaultBodyLimit::disable());
        let router = router.with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        port
    }
}

async fn take(State(downstream): State<Downstream>, body: String) -> StatusCode {
    let records: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_rejected = |r: &Value| r["event_id"].as_str().is_some_and(|id| downstream.rejects == id.chars().next());
    if downstream.rejects.is_some() && records.iter().any(is_rejected) {
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    if downstream.closed.load(Ordering::SeqCst) || (downstream.rejects.is_none() && fastrand::f32() < 0.1) {
        downstream.refused.fetch_add(1, Ordering::SeqCst);
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    downstream.received.extend(records);
    StatusCode::OK
}

struct Setting {
    dir: tempfile::TempDir,
    sim: Sim,
    tenant: TenantId,
}

impl Setting {
    async fn new() -> Self {
        let (sim, tenant) = tenant(SystemClock::new(), 30, 30).await;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vector")).unwrap();
        Self { dir, sim, tenant }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// More events, made available just now.
    fn publish(&self) {
        let ago = |secs| self.sim.now() - jiff::SignedDuration::from_secs(secs);
        let spec = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(6, 30, ago(120), ago(1)) };
        self.sim.generate(&self.tenant, spec);
    }

    fn start_ours(&self, sink: &str) -> Process {
        let source = source_table(&self.sim, &self.tenant);
        let text = format!(
            "data_dir = {:?}\n[sources.s]\n{source}poll_interval_secs = 1\nmax_requests_per_minute = 0\n\
             [sinks.out]\ninputs = [\"s\"]\n{sink}\n",
            self.path("ours")
        );
        let config = self.path("m365-audit.toml");
        fs::write(&config, text).unwrap();
        Process::start(&self.path("ours.log"), move || ours(&config))
    }

    fn start_vector(&self, vector: &Path, configs: &[(&str, String)]) -> Process {
        let files: Vec<PathBuf> = configs.iter().map(|(name, text)| self.write(name, text)).collect();
        let vector = vector.to_owned();
        Process::start(&self.path("vector.log"), move || {
            let mut command = Command::new(&vector);
            for file in &files {
                command.arg("--config").arg(file);
            }
            command.env("VECTOR_LOG", "info").env("VECTOR_GRACEFUL_SHUTDOWN_LIMIT_SECS", "20");
            command
        })
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.path(name);
        fs::write(&file, text).unwrap();
        file
    }

    async fn wait_for_all(&self, received: impl Fn() -> Vec<Value>, processes: &mut [&mut Process]) {
        let begun = Instant::now();
        let (mut known, mut outcome) = (usize::MAX, None);
        loop {
            let records = received();
            if records.len() != known {
                known = records.len();
                outcome = Some(compare(&self.sim, records));
            }
            let outcome = outcome.as_ref().unwrap();
            if outcome.lost.is_empty() {
                return assert_nothing_lost(outcome);
            }
            let ended = processes.iter_mut().any(|process| process.child.try_wait().unwrap().is_some());
            if ended || begun.elapsed() > PATIENCE {
                let logs: Vec<String> = processes.iter().map(|process| process.log()).collect();
                panic!("{outcome}, ended: {ended}\n{}", logs.join("\n---\n"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn ours(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command.args(["run", "-c"]).arg(config);
    command
}

/// A remap that adds what Vector thinks of the types, and an `http` sink that soon gives up, so that its failures
/// reach the source.
fn behind(input: &str, body: &str, downstream_port: u16, acknowledge: bool) -> String {
    format!(
        "[transforms.witness]\ntype = \"remap\"\ninputs = [\"{input}\"]\nsource = '''\n{body}\n\
         .types = [is_timestamp(.timestamp), is_null(.record_type) || is_integer(.record_type), \
         is_null(.actor) || is_object(.actor)]\n'''\n\
         [sinks.down]\ntype = \"http\"\ninputs = [\"witness\"]\nuri = \"http://127.0.0.1:{downstream_port}/\"\n\
         encoding.codec = \"json\"\nframing.method = \"newline_delimited\"\nbatch.timeout_secs = 0.2\n\
         request.retry_attempts = 1\nrequest.retry_initial_backoff_secs = 1\nrequest.retry_max_duration_secs = 1\n\
         healthcheck.enabled = false\nacknowledgements.enabled = {acknowledge}\n"
    )
}

fn assert_typed(records: &[Value]) {
    let untyped = records.iter().find(|r| r["types"] != serde_json::json!([true, true, true]));
    assert_eq!(untyped, None, "of {}", records.len());
}

/// Vector killed at random while events flow, its sink closed for a while, and we killed right after a refusal.
async fn through_trouble(setting: &Setting, vector: &mut Process, ours: Option<&mut Process>, down: &Downstream) {
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(500..4000))).await;
        vector.kill();
        setting.publish();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..500))).await;
        vector.start_again();
    }
    setting.wait_for_all(|| down.received.all(), &mut [vector]).await;
    down.closed.store(true, Ordering::SeqCst);
    setting.publish();
    let before = (down.received.count(), down.refused.load(Ordering::SeqCst));
    let begun = Instant::now();
    while down.refused.load(Ordering::SeqCst) == before.1 {
        assert!(begun.elapsed() < PATIENCE, "nothing came: {}", vector.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Whoever holds the checkpoint dies right after a refusal, and its next start must send what was refused.
    let holder = ours.unwrap_or(vector);
    for _ in 0..3 {
        tokio::time::sleep(refusal() / 3).await;
        holder.kill();
        holder.start_again();
    }
    assert_eq!(down.received.count(), before.0, "accepted while it was closed");
    down.closed.store(false, Ordering::SeqCst);
    setting.wait_for_all(|| down.received.all(), &mut [holder]).await;
}

async fn stock_route(source: &str, output: &str, body: &str, sink: &str) {
    let Some(vector) = vector() else { return };
    let setting = Setting::new().await;
    let (down, port) = (Downstream::default(), free_port());
    let down_port = down.listen().await;
    let source = source.replace("PORT2", &free_port().to_string()).replace("PORT", &port.to_string());
    let config =
        format!("data_dir = {:?}\n{source}\n{}", setting.path("vector"), behind(output, body, down_port, true));
    let mut vector = setting.start_vector(&vector, &[("vector.toml", config)]);
    let mut ours = setting.start_ours(&sink.replace("PORT", &port.to_string()));
    through_trouble(&setting, &mut vector, Some(&mut ours), &down).await;
    assert_typed(&down.received.all());
}

#[tokio::test]
async fn http_into_vector_loses_nothing_when_either_is_killed_and_its_sink_refuses() {
    stock_route(
        "[sources.m365]\ntype = \"http_server\"\naddress = \"127.0.0.1:PORT\"\ndecoding.codec = \"json\"",
        "m365",
        ".timestamp = parse_timestamp!(.timestamp, \"%+\")",
        "type = \"http\"\nuri = \"http://127.0.0.1:PORT/\"\ncompression = \"zstd\"",
    )
    .await;
}

#[tokio::test]
async fn forward_into_vector_loses_nothing_when_either_is_killed_and_its_sink_refuses() {
    stock_route(
        "[sources.m365]\ntype = \"fluent\"\naddress = \"127.0.0.1:PORT\"",
        "m365",
        "",
        "type = \"fluent_forward\"\nservers = [\"127.0.0.1:PORT\"]\nkeep_timestamp = false\ncompression = \"gzip\"",
    )
    .await;
}

#[tokio::test]
async fn otlp_into_vector_loses_nothing_when_either_is_killed_and_its_sink_refuses() {
    for (protocol, grpc, http) in [("grpc", "PORT", "PORT2"), ("http", "PORT2", "PORT")] {
        stock_route(
            &format!(
                "[sources.m365]\ntype = \"opentelemetry\"\ngrpc.address = \"127.0.0.1:{grpc}\"\n\
                 http.address = \"127.0.0.1:{http}\""
            ),
            "m365.logs",
            // The body is the record; the time of the log record is a time, the one inside the body a text.
            "at = .timestamp\n. = object!(.message)\n.timestamp = at",
            &format!("type = \"otlp\"\nendpoint = \"http://127.0.0.1:PORT\"\nprotocol = \"{protocol}\""),
        )
        .await;
    }
}

/// Types of what passes a component of an example, in a file of its own.
fn witness(input: &str, file: &str) -> String {
    let types = "is_timestamp(.timestamp), is_integer(.record_type), is_object(.actor)";
    format!(
        "[transforms.witness]\ntype = \"remap\"\ninputs = [\"{input}\"]\nsource = '. = {{ \"types\": [{types}] }}'\n\
         [sinks.types]\ntype = \"file\"\ninputs = [\"witness\"]\npath = \"{file}\"\nencoding.codec = \"json\"\n"
    )
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // The last line may be half written.
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The two files of an example, with this setting's tenant, paths and port. The values differ; every key is the
/// example's.
fn example_files(setting: &Setting, name: &str, port: &str) -> (String, String) {
    let secrets = setting.path("secrets");
    fs::create_dir(&secrets).unwrap();
    fs::write(secrets.join("m365_client_secret"), format!("{}\n", SimConfig::default().client_secret)).unwrap();
    let url = setting.sim.url();
    let values = |text: &str| {
        text.replace("7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55", setting.tenant.as_str())
            .replace("c0ffee00-1111-4222-8333-444455556666", &SimConfig::default().client_id)
            .replace("/var/log/vector/m365.ndjson", &setting.shown("out.ndjson"))
            .replace("/etc/vector/secrets", &secrets.display().to_string())
            .replace("/var/lib/m365-audit", &setting.shown("ours"))
            .replace("/etc/m365-audit/m365-audit.toml", &setting.shown("m365-audit.toml"))
            .replace("\"m365-audit\", \"run\"", &format!("\"{}\", \"run\"", env!("CARGO_BIN_EXE_m365-audit")))
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:24224", &format!("127.0.0.1:{port}"))
    };
    // What a test needs beside them: the simulated tenant's address, and the text the truth is compared with.
    let more = [("api_url", &*url), ("authority_url", &url), ("raw", "string")];
    let switches = ["drop_routine", "mask_detected_values"];
    let toml = more.map(|(key, value)| format!("{key} = \"{value}\"\n")).concat()
        + &switches.map(|key| format!("{key} = false\n")).concat();
    let yaml = more.map(|(key, value)| format!("    {key}: \"{value}\"\n")).concat()
        + &switches.map(|key| format!("    {key}: false\n")).concat();
    let yaml = values(&example(&format!("{name}/vector.yaml")))
        .replace("    type: m365_audit\n", &format!("    type: m365_audit\n{yaml}"));
    let ours =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{name}/m365-audit.toml")));
    let ours =
        values(&ours.unwrap_or_default()).replace("type = \"m365_audit\"\n", &format!("type = \"m365_audit\"\n{toml}"));
    (yaml, ours)
}

/// An example as it is shipped: everything arrives, and its types are those of the record.
async fn example_works(name: &str, output: &str, vector: PathBuf) {
    let setting = Setting::new().await;
    let (yaml, ours_toml) = example_files(&setting, name, &free_port().to_string());
    let witness = witness(output, &setting.shown("witness.ndjson"));
    let config = setting.write("m365-audit.toml", &ours_toml);
    let data_dir = format!("data_dir = {:?}\n{witness}", setting.path("vector"));
    let mut vector = setting.start_vector(&vector, &[("vector.yaml", yaml), ("witness.toml", data_dir)]);
    let is_fed = !ours_toml.is_empty() && name != "vector-exec";
    let mut program = is_fed.then(|| {
        Process::start(&setting.path("ours.log"), move || {
            let mut command = ours(&config);
            command.env("M365_CLIENT_SECRET", SimConfig::default().client_secret);
            command
        })
    });
    let mut processes: Vec<&mut Process> = [Some(&mut vector), program.as_mut()].into_iter().flatten().collect();
    let out = setting.path("out.ndjson");
    setting.wait_for_all(|| lines(&out), &mut processes).await;
    let begun = Instant::now();
    while lines(&setting.path("witness.ndjson")).len() < lines(&out).len() {
        assert!(begun.elapsed() < PATIENCE, "{}", vector.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let types = lines(&setting.path("witness.ndjson"));
    let untyped = types.iter().filter(|r| r["types"] != serde_json::json!([true, true, true])).count();
    assert_eq!(untyped, 0, "of {}", types.len());
}

#[tokio::test]
async fn the_http_example_carries_everything_with_its_types() {
    let Some(vector) = vector() else { return };
    example_works("vector-http", "m365_typed", vector).await;
}

#[tokio::test]
async fn the_forward_example_carries_everything_with_its_types() {
    let Some(vector) = vector() else { return };
    example_works("vector-forward", "m365", vector).await;
}

#[tokio::test]
async fn the_exec_example_carries_everything_with_its_types() {
    let Some(vector) = vector() else { return };
    example_works("vector-exec", "m365_typed", vector).await;
}

#[tokio::test]
async fn the_native_example_carries_everything_with_its_types() {
    let Some(vector) = vector_with_the_source() else { return };
    example_works("vector-native", "m365", vector).await;
}

/// The native source's configuration, and what is behind it.
fn native(setting: &Setting, poll_secs: u32, down_port: u16, acknowledge: bool) -> String {
    format!(
        "data_dir = {:?}\n[sources.m365]\n{}poll_interval_secs = {poll_secs}\nmax_requests_per_minute = 0\n{}",
        setting.path("vector"),
        source_table(&setting.sim, &setting.tenant),
        behind("m365", "", down_port, acknowledge)
    )
}

#[tokio::test]
async fn the_native_source_loses_nothing_when_vector_is_killed_reloaded_and_its_sink_refuses() {
    let Some(vector) = vector_with_the_source() else { return };
    let setting = Setting::new().await;
    let down = Downstream::default();
    let down_port = down.listen().await;
    let metrics_port = free_port();
    let metrics = format!(
        "[sources.own]\ntype = \"internal_metrics\"\nscrape_interval_secs = 1\n[sinks.prometheus]\n\
         type = \"prometheus_exporter\"\ninputs = [\"own\"]\naddress = \"127.0.0.1:{metrics_port}\"\n"
    );
    let config = |poll_secs| native(&setting, poll_secs, down_port, true) + &metrics;
    let mut vector = setting.start_vector(&vector, &[("vector.toml", config(1))]);
    through_trouble(&setting, &mut vector, None, &down).await;
    // A changed source is stopped and built again while events flow.
    for poll_secs in [2, 1, 2] {
        setting.publish();
        setting.write("vector.toml", &config(poll_secs));
        vector.signal("HUP");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    setting.publish();
    setting.wait_for_all(|| down.received.all(), &mut [&mut vector]).await;
    assert_typed(&down.received.all());
    let log = vector.log();
    assert!(log.contains("Vector has reloaded"), "{log}");
    assert!(!log.contains("No sink behind this source acknowledges"), "{log}");

    let metrics = metrics_of(metrics_port).await;
    let value = |name: &str| -> f64 {
        let own = |line: &&str| line.starts_with(name) && line.contains("component_id=\"m365\"");
        let found = metrics.lines().find(own).unwrap_or_else(|| panic!("no {name} in {metrics}"));
        found.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    for name in ["events_total", "event_bytes_total", "bytes_total"] {
        assert!(value(&format!("vector_component_received_{name}")) > 0.0, "{name}");
    }
    assert!(value("vector_component_sent_events_total") > 0.0);
    assert!(value("vector_m365_audit_events_total") > 0.0);
    vector.signal("TERM");
    assert!(vector.child.wait().unwrap().success());
}

async fn metrics_of(port: u16) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut connection = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn what_vectors_sink_rejects_is_set_aside_and_its_neighbours_arrive() {
    let Some(vector) = vector_with_the_source() else { return };
    let setting = Setting::new().await;
    let down = Downstream { rejects: Some('a'), ..Downstream::default() };
    let config = native(&setting, 1, down.listen().await, true);
    let mut vector = setting.start_vector(&vector, &[("vector.toml", config)]);
    let begun = Instant::now();
    // The tool reads the state that Vector kept.
    let config = format!(
        "data_dir = {:?}\n[sources.s]\n{}[sinks.out]\ntype = \"stdout\"\ninputs = [\"s\"]\n",
        setting.path("vector/m365"),
        source_table(&setting.sim, &setting.tenant)
    );
    let config = setting.write("ours.toml", &config);
    for round in 0.. {
        // What is refused alone is set aside once others are taken meanwhile: they must go on coming.
        for n in 0..20 {
            let id = format!("neighbour-{round}-{n}");
            let event = serde_json::json!({
                "Id": id, "RecordType": 1, "CreationTime": "2026-05-01T00:00:00", "Operation": "Set-Mailbox",
                "Workload": "Exchange", "UserId": "alex@contoso.example",
            });
            let blob = NewBlob::at(setting.sim.now()).with_events([event.to_string()]);
            setting.sim.add_blob(&setting.tenant, ContentType::Exchange, blob);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        loop {
            let outcome = compare(&setting.sim, down.received.all());
            if outcome.lost.iter().all(|id| id.starts_with('a')) {
                assert!(!outcome.lost.is_empty());
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{outcome}\n{}", vector.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        vector.signal("TERM");
        vector.child.wait().unwrap();
        let mut export = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        let export = export.args(["state", "export", "-c"]).arg(&config).output().unwrap();
        let export = String::from_utf8(export.stdout).unwrap();
        let aside: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let outcome = compare(&setting.sim, down.received.all().into_iter().chain(aside).collect());
        if outcome.lost.is_empty() {
            assert!(!export.is_empty());
            return assert_nothing_lost(&outcome);
        }
        // What was not set aside when it was stopped is fetched and offered again.
        assert!(begun.elapsed() < PATIENCE, "{outcome}\n{}", vector.log());
        vector.start_again();
    }
}

#[tokio::test]
async fn without_acknowledgements_the_native_source_says_that_nothing_is_confirmed() {
    let Some(vector) = vector_with_the_source() else { return };
    let setting = Setting::new().await;
    let down = Downstream::default();
    let config = native(&setting, 1, down.listen().await, false);
    let vector = setting.start_vector(&vector, &[("vector.toml", config)]);
    let begun = Instant::now();
    while !vector.log().contains("No sink behind this source acknowledges") {
        assert!(begun.elapsed() < PATIENCE, "{}", vector.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_native_source_tells_every_problem_of_its_configuration_at_once() {
    let Some(vector) = vector_with_the_source() else { return };
    let setting = Setting::new().await;
    let config = native(&setting, 1, 9, true).replace("poll_interval_secs", "poll_intervall_secs");
    let file = setting.write("vector.toml", &config.replace("raw = \"string\"", "raw = \"text\""));
    let checked = Command::new(vector).arg("validate").arg(file).output().unwrap();
    let told = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(!checked.status.success());
    assert!(
        told.contains("nearest") && told.contains("poll_interval_secs") && told.contains("sources.m365.raw"),
        "{told}"
    );
    assert!(!told.contains(&SimConfig::default().client_secret), "{told}");
}

/// Every place of a JSON text where an object has the member `name`.
fn find<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    if let Some(members) = value.as_object() {
        found.extend(members.get(name));
    }
    let below: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(elements) => Box::new(elements.iter()),
        Value::Object(members) => Box::new(members.values()),
        _ => return,
    };
    below.for_each(|value| find(value, name, found));
}

#[test]
fn the_schema_that_vector_generates_has_every_key_of_the_native_source() {
    let Some(vector) = vector_with_the_source() else { return };
    let generated = Command::new(vector).arg("generate-schema").output().unwrap();
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    let schema: Value = serde_json::from_slice(&generated.stdout).unwrap();
    let mut closed = Vec::new();
    find(&schema, "properties", &mut closed);
    let ours = closed.into_iter().find(|properties| properties.get("max_requests_per_minute").is_some());
    let ours = ours.expect("the source is in the schema");
    let keys = source_schema();
    for (key, meant) in keys["properties"].as_object().unwrap() {
        assert_eq!(ours[key]["description"], meant["description"], "{key}");
    }
}
