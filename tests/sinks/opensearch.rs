//! OpenSearch, the real one: the templates and the data stream that are shipped take every ECS record, and the route
//! through Fluent Bit loses none and doubles none, whatever is killed, full or read-only. `OPENSEARCH` names it;
//! `.ci/destinations opensearch DIR` fetches it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::config::Format;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::normalise::{BadBytes, BlobContext, Event, GapNotice, Normaliser, NormaliserSettings, Rendered};
use m365_audit::sim::{GenerateSpec, Sim};
use reqwest::Method;
use serde_json::{Value, json};
use test_support::program;

use crate::agents::example;
use crate::destinations::{FluentBit, PATIENCE, Server};
use crate::truth::{FastClock, pass_of, tenant};

const STREAM: &str = "logs-m365.audit-default";
pub const JSON: &str = "application/json";

/// How long an index takes nothing.
pub const AWAY: Duration = Duration::from_secs(60);

/// A node with the templates and the data stream, made by the lines of `docs/hosts/elastic.md`.
async fn opensearch(home: &Path) -> Server {
    let server = node(home).await;
    assert_eq!(load(&server, "elastic.md").await, 4, "two component templates, the index template, the data stream");
    server
}

pub async fn node(home: &Path) -> Server {
    let home = home.to_owned();
    let server = Server::start(move |dir, port| {
        fs::create_dir_all(dir.join("config")).unwrap();
        let classes = format!("{0}/classes:{0}/lib/*", home.display());
        let mut command = Command::new("java");
        command.args(["-Xms256m", "-Xmx768m", "-cp", &classes, "Server"]).arg(dir).arg(port.to_string());
        command
    })
    .await;
    let patient = json!({"persistent": {"indices.mapping.dynamic_timeout": "10m"}}).to_string();
    server.ask(Method::PUT, "/_cluster/settings", JSON, patient).await;
    server
}

/// Loads what the lines of a page of `docs/hosts/` load; how many there are.
pub async fn load(server: &Server, page: &str) -> usize {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hosts").join(page);
    let page = fs::read_to_string(page).unwrap();
    let mut puts = 0;
    for line in page.lines().filter_map(|line| line.strip_prefix("curl -fX PUT ")) {
        let url = line.rsplit(' ').next().unwrap();
        let path = url.strip_prefix("http://127.0.0.1:9200").unwrap_or_else(|| panic!("{line}"));
        let file = line.split_once("-d @").map(|(_, rest)| rest.split_once(' ').unwrap().0);
        let body = file.map(|file| example(&format!("elastic/{file}"))).unwrap_or_default();
        let answer = server.ask(Method::PUT, path, JSON, body).await;
        assert_eq!(answer["acknowledged"], true, "{line}: {answer}");
        puts += 1;
    }
    puts
}

/// What `_bulk` answered for each document, by status.
async fn bulk(server: &Server, records: &[Value]) -> BTreeMap<u64, Vec<Value>> {
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
        // In its default of a minute a machine under load has not made a field that nobody had before, and answers 500.
        let path = format!("/{STREAM}/_bulk?refresh=true&timeout=10m");
        let answer = server.ask(Method::POST, &path, "application/x-ndjson", body).await;
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

/// The events of the corpus, where it is there, and those that are committed here.
fn known_events() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lines = |path: &Path| -> Vec<String> { fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect() };
    let mut all = Vec::new();
    for folder in ["src/sim/events", "tests/fixtures/records"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            // `catalogue.ndjson` holds events, `catalogue.ecs.ndjson` what is made of them.
            if path.file_name().unwrap().to_str().unwrap().split('.').collect::<Vec<_>>()[1..] == ["ndjson"] {
                all.extend(lines(&path));
            }
        }
    }
    for file in ["cases", "rules"] {
        let of_rules = lines(&root.join(format!("tests/fixtures/severity/{file}.ndjson")));
        all.extend(of_rules.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].to_string()));
    }
    let corpus = root.join("../shared/corpus");
    match fs::read_dir(&corpus) {
        Ok(files) => {
            let files = files.map(|entry| entry.unwrap().path());
            all.extend(
                files.filter(|path| path.extension().is_some_and(|e| e == "ndjson")).flat_map(|path| lines(&path)),
            );
        }
        Err(error) => test_support::skip("corpus", format_args!("{}: {error}", corpus.display())),
    }
    all
}

/// At least `n` events that a simulated tenant published, some of them in two blobs.
async fn generated(n: usize) -> Vec<String> {
    let (sim, _tenant) = tenant(FastClock::start(), n / 90, 100).await;
    let events = sim.truth().events;
    sim.stop().await;
    assert!(events.len() >= n, "{}", events.len());
    events.iter().map(|event| String::from_utf8_lossy(&event.raw).into_owned()).collect()
}

/// The ECS record of each event, as a source makes it of a blob, and one of each kind that is ours.
fn ecs(events: &[String]) -> Vec<Value> {
    let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().unwrap();
    let now: Timestamp = "2026-05-10T00:00:00Z".parse().unwrap();
    let blob = BlobContext {
        tenant: &tenant,
        content_type: ContentType::General,
        content_id: "20260501100000000000001$20260501100500000000001$audit_shared$shared",
        content_created: "2026-05-01T10:05:00.123Z".parse().unwrap(),
    };
    let normaliser = Normaliser::new(NormaliserSettings {
        format: Format::Ecs,
        drop_routine: false,
        ..NormaliserSettings::default()
    });
    let mut records = Vec::new();
    let mut add = |line: Vec<u8>| records.push(serde_json::from_slice(&line).unwrap());
    for event in events {
        let mut line = Vec::new();
        match Event::parse(event.as_bytes()) {
            Ok(event) => {
                let rendered = normaliser.render(&event, &blob, &mut line);
                assert!(matches!(rendered, Rendered::Record { .. }), "{rendered:?}");
            }
            Err(error) => {
                let error = error.to_string();
                normaliser.render_bad(&BadBytes::of(&blob, now, 0, event.as_bytes(), &error), &mut line);
            }
        }
        add(line);
    }
    let gap = GapNotice {
        tenant: &tenant,
        content_type: ContentType::General,
        from: "2026-05-01T10:00:00Z".parse().unwrap(),
        to: "2026-05-03T09:00:00Z".parse().unwrap(),
        reason: "outage",
        detail: "nothing was listed for 9 days",
        now,
        content_id: None,
    };
    let mut line = Vec::new();
    normaliser.render_gap(&gap, &mut line);
    add(line);
    records
}

/// Documents that match.
async fn count(server: &Server, query: Value) -> usize {
    let path = format!("/{STREAM}/_count");
    let answer = server.ask(Method::POST, &path, JSON, json!({ "query": query }).to_string()).await;
    answer["count"].as_u64().unwrap() as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn opensearch_refuses_no_ecs_record_and_a_repeat_is_no_second_document() {
    let Some(home) = program("opensearch") else { return };
    let server = opensearch(&home).await;
    let (known, generated) = (known_events(), generated(10_000).await);
    let (of_known, of_generated) = (ecs(&known), ecs(&generated));
    let mut ids = BTreeSet::new();
    // An event that two files have is one document.
    let mut all: Vec<Value> = of_known.iter().chain(&of_generated).cloned().collect();
    all.retain(|record| record["event"]["id"].as_str().is_none_or(|id| ids.insert(id.to_owned())));
    let first = bulk(&server, &all).await;
    assert_eq!(first.keys().copied().collect::<Vec<_>>(), [201], "{:?}", first.iter().next_back().map(|f| &f.1[0]));
    let named: Vec<Value> = all.iter().filter(|record| record["event"]["id"].is_string()).cloned().collect();
    let again = bulk(&server, &named).await;
    assert_eq!(again.keys().copied().collect::<Vec<_>>(), [409], "{:?}", again.iter().next());
    assert_eq!(count(&server, json!({"match_all": {}})).await, all.len());
    let mappings = server.ask(Method::GET, &format!("/{STREAM}/_mapping"), JSON, "").await;
    let index = mappings.as_object().unwrap().values().next().unwrap();
    let properties = &index["mappings"]["properties"];
    let fields = fields(properties);
    println!(
        "{} documents of {} events that are known and {} generated, {fields} fields",
        all.len(),
        known.len(),
        generated.len()
    );
    assert!(fields < 400, "{fields} fields");
    // What the component templates say is what the index has.
    assert_eq!(properties["source"]["properties"]["ip"]["type"], "ip");
    assert_eq!(index["mappings"]["date_detection"], false);
    for member in ["target", "application_id", "error", "resources", "privileges"] {
        assert!(named_in(properties, member), "no document has {member}");
    }
    // `ignore_malformed` would take a document whose value does not fit its field: none needs that. A text over 1,024
    // characters is in the document and not in the index, which is meant.
    let mut typed = Vec::new();
    not_texts(properties, "", &mut typed);
    assert!(typed.len() > 8, "{typed:?}");
    let malformed = count(&server, json!({"terms": {"_ignored": typed}})).await;
    assert_eq!(malformed, 0, "documents with a value that does not fit its field");
}

/// The paths of fields that are no texts.
fn not_texts(properties: &Value, path: &str, found: &mut Vec<String>) {
    for (name, field) in properties.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        not_texts(&field["properties"], &path, found);
        if field["type"].as_str().is_some_and(|kind| !["keyword", "text"].contains(&kind)) {
            found.push(path);
        }
    }
}

fn named_in(properties: &Value, name: &str) -> bool {
    let each = properties.as_object().into_iter().flatten();
    each.into_iter().any(|(member, field)| member == name || named_in(&field["properties"], name))
}

/// Fluent Bit with the example's configuration.
fn fluent_bit(program: std::path::PathBuf, server: &Server) -> FluentBit {
    let config = example("opensearch/fluent-bit.yaml");
    FluentBit::start(program, &config.replace("port: 9200", &format!("port: {}", server.port)))
}

/// Waits until every event is a document, and asserts that each is one only; the documents in all.
async fn until_every_event_is_there_once(
    server: &Server,
    sim: &Sim,
    fluent_bit: &FluentBit,
    patience: Duration,
) -> usize {
    let expected: BTreeSet<String> =
        sim.truth().events.iter().filter_map(|event| event.id.as_deref().map(str::to_owned)).collect();
    let begun = Instant::now();
    loop {
        server.ask(Method::POST, &format!("/{STREAM}/_refresh"), JSON, "").await;
        let path = format!("/{STREAM}/_search?size=10000&_source=event.id");
        let answer = server.ask(Method::GET, &path, JSON, "").await;
        let hits = answer["hits"]["hits"].as_array().unwrap();
        let ids: Vec<&str> = hits.iter().filter_map(|hit| hit["_source"]["event"]["id"].as_str()).collect();
        let stored: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        assert_eq!(ids.len(), stored.len(), "an event is there twice");
        assert!(stored.is_subset(&expected), "{:?}", stored.difference(&expected).next());
        if stored.len() == expected.len() {
            println!("{} events once, {} documents, {} s", ids.len(), hits.len(), begun.elapsed().as_secs());
            return hits.len();
        }
        let missing = expected.len() - stored.len();
        let log = fluent_bit.log();
        let end = &log[log.len().saturating_sub(20_000)..];
        assert!(begun.elapsed() < patience, "{missing} of {} are missing: {end}", expected.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The route of `docs/hosts/elastic.md`: Fluent Bit and OpenSearch are killed while records flow.
#[tokio::test(flavor = "multi_thread")]
async fn opensearch_has_every_event_once_through_fluent_bit_and_kills_of_either() {
    let Some(home) = program("opensearch") else { return };
    let Some(program) = program("fluent-bit") else { return };
    let mut server = opensearch(&home).await;
    let mut fluent_bit = fluent_bit(program, &server);
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 30, 60).await;
    let table = fluent_bit.table();
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
    until_every_event_is_there_once(&server, &sim, &fluent_bit, PATIENCE).await;
    sim.stop().await;
}

/// Both states that an operator meets: an index without writes, and one that was made read-only because the disk is full.
#[tokio::test(flavor = "multi_thread")]
async fn opensearch_has_every_event_once_after_its_index_was_read_only_and_full_for_a_minute() {
    let Some(home) = program("opensearch") else { return };
    let Some(program) = program("fluent-bit") else { return };
    let server = opensearch(&home).await;
    let mut fluent_bit = fluent_bit(program, &server);
    let clock = SystemClock::new();
    let (sim, tenant) = tenant(clock.clone(), 12, 60).await;
    let table = fluent_bit.table();
    pass_of("format = \"ecs\"", &table, &sim, &tenant, clock.clone()).await;
    let mut before = until_every_event_is_there_once(&server, &sim, &fluent_bit, PATIENCE).await;
    // What the answer for a document has then.
    for (block, status) in [("index.blocks.write", "403"), ("index.blocks.read_only_allow_delete", "429")] {
        let set = |value: Value| {
            let settings = json!({ block: value }).to_string();
            server.ask(Method::PUT, "/logs-m365.audit-default/_settings", JSON, settings)
        };
        set(true.into()).await;
        let log = fluent_bit.log().len();
        more_events(&sim, &tenant);
        let away = Instant::now();
        pass_of("format = \"ecs\"", &table, &sim, &tenant, clock.clone()).await;
        tokio::time::sleep(Duration::from_secs(15)).await;
        fluent_bit.kill_and_start_again();
        tokio::time::sleep(AWAY.saturating_sub(away.elapsed())).await;
        server.ask(Method::POST, &format!("/{STREAM}/_refresh"), JSON, "").await;
        assert_eq!(count(&server, json!({"match_all": {}})).await, before, "{block} lets documents in");
        let said = fluent_bit.log()[log..].matches(&format!("\"status\":{status}")).count();
        assert!(said > 0, "no answer with {status}: {}", &fluent_bit.log()[log..]);
        set(Value::Null).await;
        // It tries again after `scheduler.cap` at the latest.
        before = until_every_event_is_there_once(&server, &sim, &fluent_bit, PATIENCE).await;
        println!("{block} for {} s, {status} for {said} documents", AWAY.as_secs());
    }
    sim.stop().await;
}

fn more_events(sim: &Sim, tenant: &TenantId) {
    let hours = |n: i64| sim.now() - jiff::SignedDuration::from_hours(n);
    let spec = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(12, 60, hours(6), hours(1)) };
    sim.generate(tenant, spec);
}
