//! Real stores behind the routes of `docs/hosts/`: OpenSearch and VictoriaLogs. `OPENSEARCH` and `VICTORIALOGS` name
//! them; `.ci/destinations` fetches them. Without one its tests say so and pass. Real time: they know no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_support::{free_port, program};

use crate::agents::example;
use crate::logstash::records;
use crate::truth::{FastClock, compare, pass_in, pass_of, tenant};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// VictoriaLogs writes what is in its memory to disk every 5 s (`-inmemoryDataFlushInterval`).
const FLUSH: Duration = Duration::from_secs(7);

/// A server in a directory of its own, ended with the test.
struct Server {
    command: Box<dyn Fn() -> Command + Send>,
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    async fn start(make: impl Fn(&Path, u16) -> Command + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let home = dir.path().to_owned();
        let command = Box::new(move || {
            let mut command = make(&home, port);
            let log = fs::OpenOptions::new().create(true).append(true).open(home.join("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            command
        });
        let child = command().spawn().unwrap();
        let server = Self { command, child, url: format!("http://127.0.0.1:{port}"), _dir: dir };
        server.answers().await;
        server
    }

    async fn answers(&self) {
        let begun = Instant::now();
        while client().get(&self.url).send().await.is_err() {
            let log = || fs::read_to_string(self._dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "it does not listen: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ask(&self, method: reqwest::Method, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> Value {
        let request = client().request(method, format!("{}{path}", self.url));
        let answer = request.header("content-type", kind).body(body).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text:.1000}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    async fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = (self.command)().spawn().unwrap();
        self.answers().await;
    }
}

fn client() -> reqwest::Client {
    // The library leaves the choice to the program; a second time is no error here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn opensearch(home: &Path) -> Server {
    let home = home.to_owned();
    Server::start(move |dir, port| {
        fs::create_dir_all(dir.join("config")).unwrap();
        let classes = format!("{0}/classes:{0}/lib/*", home.display());
        let mut command = Command::new("java");
        command.args(["-Xms256m", "-Xmx768m", "-cp", &classes, "Server"]).arg(dir).arg(port.to_string());
        command
    })
    .await
}

/// What `_bulk` answered for each document.
async fn bulk(server: &Server, stream: &str, records: &[Value]) -> BTreeMap<u64, Vec<Value>> {
    let mut answers: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for part in records.chunks(2_000) {
        let mut body = String::new();
        for record in part {
            // What has no id (a gap, bytes that are no event) gets one of the index.
            let action = match record["event"]["id"].as_str() {
                Some(id) => json!({"create": {"_id": id}}),
                None => json!({"create": {}}),
            };
            body.push_str(&format!("{action}\n{record}\n"));
        }
        let path = format!("/{stream}/_bulk?refresh=true");
        let answer = server.ask(reqwest::Method::POST, &path, "application/x-ndjson", body).await;
        for item in answer["items"].as_array().unwrap() {
            answers.entry(item["create"]["status"].as_u64().unwrap()).or_default().push(item.clone());
        }
    }
    answers
}

fn fields(properties: &Value) -> usize {
    let each = properties.as_object().into_iter().flatten();
    each.map(|(_, field)| 1 + fields(&field["properties"]) + fields(&field["fields"])).sum()
}

/// The ECS record of every event that is committed here, once; `n` more, made of them.
fn documents(n: usize) -> Vec<Value> {
    let mut ids = BTreeSet::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records");
    let mut texts = Vec::new();
    for entry in fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().is_some_and(|path| path.ends_with(".ecs.ndjson")) {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    let fixtures = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap());
    let mut all: Vec<Value> = records("ecs")
        .into_iter()
        .chain(fixtures)
        .filter(|record| record["@timestamp"].is_string())
        .filter(|record| record["event"]["id"].as_str().is_none_or(|id| ids.insert(id.to_owned())))
        .collect();
    let known = all.len();
    for at in 0..n {
        let mut record = all[at % known].clone();
        record["event"]["id"] = format!("made-{at}").into();
        all.push(record);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn opensearch_refuses_no_ecs_record_and_a_repeat_is_no_second_document() {
    let Some(home) = program("opensearch") else { return };
    let server = opensearch(&home).await;
    let put = |path, body: String| server.ask(reqwest::Method::PUT, path, "application/json", body);
    put("/_index_template/m365-audit", example("elastic/index-template.json")).await;
    let stream = "logs-m365.audit-default";
    let documents = documents(10_000);
    let first = bulk(&server, stream, &documents).await;
    assert_eq!(first.keys().copied().collect::<Vec<_>>(), [201], "{:?}", first.iter().next_back());
    let named: Vec<Value> = documents.iter().filter(|record| record["event"]["id"].is_string()).cloned().collect();
    let again = bulk(&server, stream, &named).await;
    assert_eq!(again.keys().copied().collect::<Vec<_>>(), [409], "{:?}", again.iter().next());
    let get = |path: String| server.ask(reqwest::Method::GET, Box::leak(path.into_boxed_str()), "application/json", "");
    let count = get(format!("/{stream}/_count")).await;
    assert_eq!(count["count"], documents.len());
    let mappings = get(format!("/{stream}/_mapping")).await;
    let index = mappings.as_object().unwrap().values().next().unwrap();
    let fields = fields(&index["mappings"]["properties"]);
    assert!(fields < 400, "{fields} fields");
    println!("{} documents, {fields} fields", documents.len());
}

/// Fluent Bit with the example's configuration, in a directory of its own.
struct FluentBit {
    program: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Drop for FluentBit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl FluentBit {
    fn start(program: PathBuf, opensearch: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let to = opensearch.rsplit(':').next().unwrap();
        let chunks = dir.path().join("chunks");
        let config = example("opensearch/fluent-bit.yaml")
            .replace("port: 24224", &format!("port: {port}"))
            .replace("port: 9200", &format!("port: {to}"))
            .replace("/var/lib/fluent-bit/chunks", chunks.to_str().unwrap());
        fs::write(dir.path().join("f.yaml"), config).unwrap();
        let child = Self::spawn(&program, dir.path());
        Self { program, dir, port, child }
    }

    fn spawn(program: &Path, dir: &Path) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(dir.join("f.yaml")).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.program, self.dir.path());
    }
}

/// The route of `docs/hosts/elastic.md`: Fluent Bit and OpenSearch are killed while records flow.
#[tokio::test(flavor = "multi_thread")]
async fn opensearch_has_every_event_once_through_fluent_bit_and_kills_of_either() {
    let Some(home) = program("opensearch") else { return };
    let Some(program) = program("fluent-bit") else { return };
    let mut server = opensearch(&home).await;
    let template = example("elastic/index-template.json");
    server.ask(reqwest::Method::PUT, "/_index_template/m365-audit", "application/json", template).await;
    let mut fluent_bit = FluentBit::start(program, &server.url);
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 30, 60).await;
    let table = format!(
        "type = \"fluent_forward\"\nservers = [\"127.0.0.1:{}\"]\ntag = \"m365.contoso\"\nack_timeout_secs = 600\n",
        fluent_bit.port
    );
    let killer = async {
        for round in 0..4 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            fluent_bit.kill_and_start_again();
            if round == 1 {
                server.kill_and_start_again().await;
            }
        }
    };
    tokio::join!(killer, pass_of("format = \"ecs\"", &table, &sim, &tenant, clock.clone()));
    let expected: BTreeSet<String> =
        sim.truth().events.iter().filter_map(|event| event.id.as_deref().map(str::to_owned)).collect();
    let begun = Instant::now();
    let path = "/logs-m365.audit-default/_search?size=10000&_source=event.id&ignore_unavailable=true";
    loop {
        server
            .ask(
                reqwest::Method::POST,
                "/logs-m365.audit-default/_refresh?ignore_unavailable=true",
                "application/json",
                "",
            )
            .await;
        let answer = server.ask(reqwest::Method::GET, path, "application/json", "").await;
        let hits = answer["hits"]["hits"].as_array().unwrap();
        let ids: Vec<&str> = hits.iter().filter_map(|hit| hit["_source"]["event"]["id"].as_str()).collect();
        let stored: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        assert_eq!(ids.len(), stored.len(), "an event is there twice");
        assert!(stored.is_subset(&expected), "{:?}", stored.difference(&expected).next());
        if stored.len() == expected.len() {
            println!("{} events once, {} documents", ids.len(), hits.len());
            break;
        }
        let log = || fs::read_to_string(fluent_bit.dir.path().join("log")).unwrap_or_default();
        let missing = expected.len() - stored.len();
        assert!(begun.elapsed() < PATIENCE, "{missing} of {} are missing: {}", expected.len(), log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn victorialogs(program: &Path) -> Server {
    let program = program.to_owned();
    Server::start(move |dir, port| {
        let mut command = Command::new(&program);
        command.arg(format!("-httpListenAddr=127.0.0.1:{port}")).arg(format!("-storageDataPath={}", dir.display()));
        // What `docs/hosts/victorialogs.md` says.
        command.args(["-retentionPeriod=100y", "-insert.maxLineSizeBytes=2MB"]);
        command
    })
    .await
}

/// Each line it has, in any order. It takes objects apart: of interest here is the original's text.
async fn stored(server: &Server) -> Vec<Value> {
    let path = "/select/logsql/query?query=*&limit=1000000";
    let answer = server.ask(reqwest::Method::GET, path, "text/plain", "").await;
    let text = match answer {
        Value::String(text) => text,
        one => one.to_string(),
    };
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            let raw = line.as_object().unwrap().iter().find(|(name, _)| *name == "raw" || name.ends_with(".raw"));
            json!({"raw": raw.unwrap_or_else(|| panic!("no raw in {line}")).1})
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn victorialogs_has_every_record_of_the_http_and_the_otlp_sink() {
    let Some(program) = program("victorialogs") else { return };
    for table in [
        "type = \"http\"\nuri = \"URL/insert/jsonline?_time_field=timestamp&_msg_field=title&_stream_fields=tenant_id,content_type\"\n",
        "type = \"otlp\"\nprotocol = \"http\"\nendpoint = \"URL/insert/opentelemetry/v1/logs\"\n",
    ] {
        let mut server = victorialogs(&program).await;
        let clock = FastClock::start();
        let (sim, tenant) = tenant(clock.clone(), 20, 200).await;
        pass_in(&table.replace("URL", &server.url), &sim, &tenant, clock).await;
        // What it has answered for is there to be asked for a moment later, and on disk within seconds.
        let begun = Instant::now();
        let mut killed = false;
        loop {
            let comparison = compare(&sim, stored(&server).await);
            if comparison.is_clean() && killed {
                println!("{} of {}: {table}", comparison.expected, comparison.expected);
                break;
            }
            if comparison.is_clean() {
                tokio::time::sleep(FLUSH).await;
                server.kill_and_start_again().await;
                killed = true;
            }
            assert!(begun.elapsed() < PATIENCE, "killed: {killed}: {comparison}: {table}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        sim.stop().await;
    }
}
