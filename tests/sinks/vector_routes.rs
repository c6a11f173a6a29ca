//! A real Vector between our `http` sink and a real destination: Vector answers when its sink has confirmed. Its sinks are
//! the blocks of `docs/hosts/vector.md`. `VECTOR` or `PATH` names a Vector; what stands behind it is named as for
//! `kafka_broker.rs`, `opensearch.rs`, `nats.rs` and `s3.rs`. Real time: they know no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use m365_audit::model::TenantId;
use m365_audit::sim::{Comparison, GenerateSpec, Sim};
use reqwest::Method;
use serde_json::{Value, json};
use test_support::program;

use crate::agents::example;
use crate::destinations::Server;
use crate::recipes::blocks_of;
use crate::truth::{FastClock, assert_nothing_lost, pass_in, pass_of, tenant};
use crate::{nats, opensearch, s3};

/// Vector with the source of the `http` example and the sink of the page's section, with the replacements for where its
/// destination is here.
async fn vector(program: &Path, section: &str, replacements: &[(&str, String)]) -> Server {
    let has = |feature: &str| {
        let list = Command::new(program).arg("list").output().unwrap();
        String::from_utf8_lossy(&list.stdout).lines().any(|line| line.trim_start_matches("- ") == feature)
    };
    assert!(has("http_server"), "{} has no source `http_server`", program.display());
    let source = example("vector-http/vector.yaml");
    let source = source.split_once("\ntransforms:").expect("the example's sources come first").0;
    let sinks = blocks_of("vector.md", "yaml").into_iter().find(|(heading, _)| heading == section);
    let mut config = format!("{source}\n{}", sinks.unwrap_or_else(|| panic!("no block for {section}")).1);
    for (from, to) in replacements {
        assert!(config.contains(from), "{from} is not in {config}");
        config = config.replace(from, to);
    }
    let program = program.to_owned();
    Server::start(move |dir, port| {
        let config = config.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
        let file = dir.join("vector.yaml");
        fs::write(&file, format!("data_dir: {}\n{config}", dir.display())).unwrap();
        let mut command = Command::new(&program);
        // What its sink `aws_s3` signs with; whoever plays S3 here takes any.
        command.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x");
        command.arg("--config").arg(file).env("VECTOR_LOG", "info");
        command
    })
    .await
}

/// The sink of ours that feeds it.
fn table(vector: &Server) -> String {
    format!("type = \"http\"\nuri = \"{}/\"\ncompression = \"zstd\"\n", vector.url)
}

async fn kill_now_and_then(vector: &mut Server, pauses: &[u64]) {
    for pause in pauses {
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        vector.kill_and_start_again().await;
    }
}

fn more_events(sim: &Sim, tenant: &TenantId) {
    let hours = |n: i64| sim.now() - jiff::SignedDuration::from_hours(n);
    let spec = GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(12, 60, hours(6), hours(1)) };
    sim.generate(tenant, spec);
}

#[cfg(feature = "kafka")]
mod kafka {
    use m365_audit::host::{Delivery, Host as _};

    use super::*;
    use crate::destinations::PATIENCE;
    use crate::kafka::TOPIC;
    use crate::kafka_broker::{Broker, batch_of, line};
    use crate::truth::compare;

    async fn vector_before(broker: &Broker, program: &Path) -> Server {
        vector_with(broker, program, "").await
    }

    async fn vector_with(broker: &Broker, program: &Path, more: &str) -> Server {
        let broker = format!("127.0.0.1:{}", broker.plain);
        let topic = format!("topic: {TOPIC}{more}");
        vector(program, "Kafka", &[("kafka.example:9092", broker), ("topic: m365-audit", topic)]).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broker_has_every_event_through_vector_and_kills_of_either() {
        let Some(program) = program("vector") else { return };
        let Some(mut broker) = Broker::start().await else { return };
        broker.create_topic(&[("max.message.bytes", "20000000")]).await;
        let mut vector = vector_before(&broker, &program).await;
        let clock = FastClock::start();
        let (sim, tenant) = tenant(clock.clone(), 60, 60).await;
        let table = table(&vector);
        let killer = async {
            kill_now_and_then(&mut vector, &[400, 900, 1_300]).await;
            broker.kill();
            tokio::time::sleep(Duration::from_secs(20)).await;
            broker.start_again().await;
        };
        tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
        // The broker goes after a pass, too, and takes Vector's next one only when it is back.
        broker.kill();
        more_events(&sim, &tenant);
        let killer = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            vector.kill_and_start_again().await;
            broker.start_again().await;
        };
        tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
        let records = broker.messages("%s");
        let outcome = compare(&sim, records.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
        assert_told("Vector killed 4 times, Kafka twice", &outcome);
        sim.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_too_large_for_the_topic_behind_vector_is_set_aside_alone() {
        let Some(program) = program("vector") else { return };
        let Some(broker) = Broker::start().await else { return };
        broker.create_topic(&[("max.message.bytes", "20000")]).await;
        let vector = vector_before(&broker, &program).await;
        let host = broker.host(&table(&vector));
        let lines: Vec<String> =
            (0..600).map(|n| line(&n.to_string(), if n % 250 == 100 { 30_000 } else { 700 })).collect();
        let ticket = host.deliver(batch_of(&lines)).await;
        let delivery = tokio::time::timeout(PATIENCE, ticket).await.unwrap();
        let Delivery::DeliveredExcept(unfit) = &delivery else { panic!("{delivery:?}") };
        assert_eq!(unfit.iter().map(|unfit| unfit.record).collect::<Vec<_>>(), [100, 350]);
        host.shutdown(Duration::from_secs(5)).await;
        let counted = broker.counted();
        let twice = counted.values().filter(|times| **times > 1).count();
        println!("2 of 600 records are too large: {} arrived, {twice} of them more than once", counted.len());
        assert_eq!(counted.len(), 598);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broker_away_for_longer_than_vector_waits_for_it_has_everything_afterwards() {
        let Some(program) = program("vector") else { return };
        let Some(mut broker) = Broker::start().await else { return };
        broker.create_topic(&[]).await;
        let vector = vector_with(&broker, &program, "\n    message_timeout_ms: 3000").await;
        let host = broker.host(&table(&vector));
        let lines: Vec<String> = (0..200).map(|n| line(&n.to_string(), 500)).collect();
        broker.kill();
        let mut ticket = host.deliver(batch_of(&lines)).await;
        assert!(tokio::time::timeout(Duration::from_secs(30), &mut ticket).await.is_err());
        broker.start_again().await;
        assert_eq!(tokio::time::timeout(PATIENCE, ticket).await.unwrap(), Delivery::Delivered);
        host.shutdown(Duration::from_secs(5)).await;
        assert_eq!(broker.counted().len(), 200);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_topic_that_is_missing_behind_vector_holds_everything_back_until_it_is_made() {
        let Some(program) = program("vector") else { return };
        let Some(broker) = Broker::start().await else { return };
        let vector = vector_before(&broker, &program).await;
        let host = broker.host(&table(&vector));
        let lines: Vec<String> = (0..50).map(|n| line(&n.to_string(), 500)).collect();
        let mut ticket = host.deliver(batch_of(&lines)).await;
        assert!(tokio::time::timeout(Duration::from_secs(15), &mut ticket).await.is_err());
        broker.create_topic(&[]).await;
        assert_eq!(tokio::time::timeout(PATIENCE, ticket).await.unwrap(), Delivery::Delivered);
        host.shutdown(Duration::from_secs(5)).await;
        assert_eq!(broker.counted().len(), 50);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opensearch_has_every_event_once_through_vector_kills_and_a_minute_without_writes() {
    let (Some(program), Some(home)) = (program("vector"), program("opensearch")) else { return };
    let mut server = opensearch::node(&home).await;
    opensearch::load(&server, "vector.md").await;
    let mut vector = vector(&program, "OpenSearch", &[("127.0.0.1:9200", format!("127.0.0.1:{}", server.port))]).await;
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 30, 60).await;
    let table = table(&vector);
    let killer = async {
        kill_now_and_then(&mut vector, &[700, 700]).await;
        server.kill_and_start_again().await;
        kill_now_and_then(&mut vector, &[700, 700]).await;
    };
    tokio::join!(killer, pass_of("format = \"ecs\"", &table, &sim, &tenant, clock.clone()));
    assert_all_once(&server, &sim).await;
    for (block, status) in [("index.blocks.write", 403), ("index.blocks.read_only_allow_delete", 429)] {
        let set = |value: Value| {
            let settings = json!({ block: value }).to_string();
            server.ask(Method::PUT, "/m365-audit-*/_settings", opensearch::JSON, settings)
        };
        set(true.into()).await;
        more_events(&sim, &tenant);
        let unblock = async {
            tokio::time::sleep(opensearch::AWAY).await;
            let (stored, expected) = (ids_in(&server).await, ids_of(&sim));
            assert!(stored.len() < expected.len(), "{block} lets documents in");
            set(Value::Null).await;
        };
        tokio::join!(unblock, pass_of("format = \"ecs\"", &table, &sim, &tenant, clock.clone()));
        println!("{block} for {} s, which answers {status}", opensearch::AWAY.as_secs());
        assert_all_once(&server, &sim).await;
    }
    sim.stop().await;
}

fn ids_of(sim: &Sim) -> BTreeSet<String> {
    sim.truth().events.iter().filter_map(|event| event.id.as_deref().map(str::to_owned)).collect()
}

/// The event of each document.
async fn ids_in(server: &Server) -> Vec<String> {
    server.ask(Method::POST, "/m365-audit-*/_refresh", opensearch::JSON, "").await;
    let path = "/m365-audit-*/_search?size=10000&_source=event.id";
    let answer = server.ask(Method::GET, path, opensearch::JSON, "").await;
    let hits = answer["hits"]["hits"].as_array().unwrap();
    hits.iter().filter_map(|hit| hit["_source"]["event"]["id"].as_str().map(str::to_owned)).collect()
}

/// Our sink has its answer for each by now.
async fn assert_all_once(server: &Server, sim: &Sim) {
    let (expected, ids) = (ids_of(sim), ids_in(server).await);
    let stored: BTreeSet<String> = ids.iter().cloned().collect();
    println!("{} events, {} lost, {} twice", expected.len(), expected.len() - stored.len(), ids.len() - stored.len());
    assert_eq!(stored, expected);
    assert_eq!(ids.len(), stored.len(), "an event is there twice");
}

/// Says what a route cost, and asserts that it lost nothing.
fn assert_told(what: &str, outcome: &Comparison) {
    println!("{what}: {} events, {} lost, {} twice", outcome.expected, outcome.lost.len(), outcome.duplicated.len());
    assert_nothing_lost(outcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_has_every_event_through_vector_and_kills_of_either() {
    let (Some(program), Some(nats_server)) = (program("vector"), program("nats-server")) else { return };
    let mut server = nats::nats(&nats_server).await;
    let mut vector = vector(&program, "NATS", &[("nats.example:4222", format!("127.0.0.1:{}", server.port))]).await;
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 60, 60).await;
    let table = table(&vector);
    let killer = async {
        kill_now_and_then(&mut vector, &[400, 900]).await;
        server.kill();
        tokio::time::sleep(Duration::from_secs(10)).await;
        server.start_again().await;
        kill_now_and_then(&mut vector, &[900, 900]).await;
    };
    tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
    server.kill();
    more_events(&sim, &tenant);
    let killer = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        server.start_again().await;
    };
    tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
    let outcome = tokio::task::block_in_place(|| crate::truth::compare(&sim, nats::messages(&server)));
    assert_told("Vector killed 4 times, NATS twice, away 10 s each", &outcome);
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_store_has_every_event_through_vector_and_kills_of_either() {
    let (Some(program), Some(moto)) = (program("vector"), program("moto")) else { return };
    let mut server = s3::moto(&moto).await;
    let (store, port) = s3::Store::listen(&server).await;
    let endpoint = format!("endpoint: http://127.0.0.1:{port}\n    region: eu-central-1");
    let replacements = [("region: eu-central-1", endpoint), ("timeout_secs: 20", "timeout_secs: 2".to_owned())];
    let mut vector = vector(&program, "S3", &replacements).await;
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 60, 60).await;
    let table = table(&vector);
    let killer = async {
        kill_now_and_then(&mut vector, &[900, 2_300, 3_100]).await;
        server.kill();
        tokio::time::sleep(Duration::from_secs(10)).await;
        server.start_again().await;
        s3::make_bucket(&server).await;
    };
    tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
    let outcome = crate::truth::compare(&sim, store.records());
    assert_told("Vector killed 3 times, the store once, away 10 s", &outcome);
    sim.stop().await;
}
