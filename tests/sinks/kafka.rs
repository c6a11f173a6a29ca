//! The `kafka` sink into librdkafka's mock cluster: what a message is, and what becomes of it when brokers are away, slow
//! or refuse. A real broker is in `kafka_broker`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::host::Batch;
use m365_audit::hosts::embedded::sink::{Sink, Written};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use rdkafka::{Offset, TopicPartitionList};

use crate::truth::{FastClock, Received, assert_nothing_lost, batch, compare, pass_in, sink, tenant};

pub const TOPIC: &str = "m365-audit";
const PARTITIONS: i32 = 3;

/// A message as a consumer gets it.
#[derive(Debug)]
pub struct Message {
    pub key: String,
    pub headers: BTreeMap<String, String>,
    pub millis: Option<i64>,
    pub partition: i32,
    pub record: serde_json::Value,
}

/// All messages of the topic, read from its beginning to its end.
pub fn read(config: &mut ClientConfig) -> Vec<Message> {
    let consumer: BaseConsumer = config
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let patience = Duration::from_secs(30);
    let metadata = consumer.fetch_metadata(Some(TOPIC), patience).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(TOPIC, partition as i32, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut messages, mut ended, begun) = (Vec::new(), 0, Instant::now());
    while ended < partitions {
        assert!(begun.elapsed() < patience, "the topic has no end");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{error}"),
            Some(Ok(message)) => {
                let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                messages.push(Message {
                    key: text(message.key()),
                    headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
                    millis: message.timestamp().to_millis(),
                    partition: message.partition(),
                    record: serde_json::from_slice(message.payload().unwrap()).unwrap(),
                });
            }
        }
    }
    messages
}

/// A mock cluster of one broker with the topic.
#[derive(Clone)]
pub struct Cluster(Rc<MockCluster<'static, DefaultProducerContext>>, Rc<Cell<bool>>);

impl Cluster {
    pub fn start() -> Self {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic(TOPIC, PARTITIONS, 1).unwrap();
        Self(Rc::new(mock), Rc::default())
    }

    /// The sink's table.
    pub fn table(&self, more: &str) -> String {
        format!("type = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"{TOPIC}\"\n{more}\n", self.0.bootstrap_servers())
    }

    pub fn is_away(&self) -> bool {
        self.1.get()
    }

    /// Away: each connection ends at its first request. The mock's own "down" binds its port a second time, which
    /// fails (and aborts the process) while a program that another test just started still has the first listener,
    /// between its `fork` and its `exec`.
    pub fn set_away(&self, is_away: bool) {
        self.1.set(is_away);
        for api in [Api::ApiVersion, Api::Metadata, Api::InitProducerId, Api::Produce] {
            match is_away {
                true => self.0.request_errors(api, &[Answer::RD_KAFKA_RESP_ERR__TRANSPORT; 100_000]),
                false => self.0.clear_request_errors(api),
            }
        }
    }

    pub fn read(&self) -> Vec<Message> {
        read(ClientConfig::new().set("bootstrap.servers", self.0.bootstrap_servers()))
    }

    /// How often each id is in the topic.
    fn ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for message in self.read() {
            *ids.entry(message.key).or_insert(0) += 1;
        }
        ids
    }

    fn sink(&self, more: &str) -> Box<dyn Sink> {
        let clock: Arc<dyn Clock> = SystemClock::new();
        sink(&self.table(more), &clock)
    }
}

fn three() -> Batch {
    batch(&[r#"{"event_id":"a"}"#, r#"{"event_id":"b"}"#, r#"{"event_id":"c"}"#])
}

fn once(ids: &[&str]) -> BTreeMap<String, usize> {
    ids.iter().map(|id| ((*id).to_owned(), 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_the_record_with_its_key_its_time_and_three_headers() {
    for (key, expected) in [("event_id", "a"), ("tenant", "11111111-2222-3333-4444-555555555555")] {
        for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
            let cluster = Cluster::start();
            let mut sink = cluster.sink(&format!("key = \"{key}\"\ncompression = \"{compression}\""));
            let record = format!(r#"{{"event_id":"a","text":"{}"}}"#, "word ".repeat(400));
            assert_eq!(sink.write(&[batch(&[&record])]).await, [Written::Delivered], "{compression}");
            let [message] = &cluster.read()[..] else { panic!("one message") };
            assert_eq!(message.key, expected);
            assert_eq!(message.record, serde_json::from_str::<serde_json::Value>(&record).unwrap());
            let headers = [
                ("content_type", "Audit.General"),
                ("severity", "high"),
                ("tenant", "11111111-2222-3333-4444-555555555555"),
            ];
            assert_eq!(message.headers, headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
            // 2026-05-01T10:00:00Z
            assert_eq!(message.millis, Some(1_777_629_600_000));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_tenant_is_in_one_partition_when_the_key_says_so_and_else_spread() {
    for (key, is_one) in [("tenant", true), ("event_id", false)] {
        let cluster = Cluster::start();
        let mut sink = cluster.sink(&format!("key = \"{key}\""));
        let lines: Vec<String> = (0..100).map(|n| format!(r#"{{"event_id":"{n}"}}"#)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(sink.write(&[batch(&lines)]).await, [Written::Delivered]);
        let partitions: std::collections::BTreeSet<i32> = cluster.read().iter().map(|m| m.partition).collect();
        assert_eq!(partitions.len() == 1, is_one, "{key}: {partitions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_broker_is_waited_for_and_nothing_is_sent_twice_whatever_comes_again() {
    let cluster = Cluster::start();
    let mut sink = cluster.sink("timeout_secs = 1");
    // Connected, so that what is slow is the answer; that itself may take longer than the time-out.
    let (first, begun) = (batch(&[r#"{"event_id":"first"}"#]), Instant::now());
    while sink.write(std::slice::from_ref(&first)).await != [Written::Delivered] {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    cluster.0.broker_round_trip_time(-1, Duration::from_millis(1_500)).unwrap();
    let (whole, other) = (three(), batch(&[r#"{"event_id":"d"}"#]));
    let written = sink.write(&[whole.clone(), other.clone()]).await;
    for written in written {
        let Written::Refused { why, .. } = &written else { panic!("{written:?}") };
        assert!(why.contains("no acknowledgement within 1 s"), "{why}");
    }
    // As the worker may send them again: together, alone, in parts, by another lane.
    let mut lane = sink.beside().remove(0);
    let begun = Instant::now();
    while lane.write(&[whole.part(1..3)]).await != [Written::Delivered] {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(sink.write(&[whole.part(0..1), other]).await, vec![Written::Delivered; 2]);
    cluster.0.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    assert_eq!(cluster.ids(), once(&["a", "b", "c", "d", "first"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_together_is_sent_in_parts_and_what_was_taken_is_not_sent_again() {
    let cluster = Cluster::start();
    let mut sink = cluster.sink("key = \"tenant\"");
    cluster.0.request_errors(Api::Produce, &[Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let whole = three();
    let written = sink.write(std::slice::from_ref(&whole)).await;
    let [Written::TooLarge(why)] = &written[..] else { panic!("{written:?}") };
    assert!(why.contains("`max.message.bytes` of the topic `m365-audit`"), "{why}");
    sink.forget(std::slice::from_ref(&whole));
    assert_eq!(sink.write(&[whole.part(0..1), whole.part(1..3)]).await, vec![Written::Delivered; 2]);
    assert_eq!(cluster.read().len(), 3);

    // Of several partitions one refuses: the others' records are there, and are not sent again with the whole.
    let cluster = Cluster::start();
    let mut sink = cluster.sink("");
    cluster.0.request_errors(Api::Produce, &[Answer::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    let lines: Vec<String> = (0..30).map(|n| format!(r#"{{"event_id":"{n}"}}"#)).collect();
    let whole = batch(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let written = sink.write(std::slice::from_ref(&whole)).await;
    assert!(matches!(&written[..], [Written::RejectedSome(_)]), "{written:?}");
    let taken = cluster.ids().len();
    assert!(0 < taken && taken < 30, "{taken}");
    assert_eq!(sink.write(&[whole]).await, [Written::Delivered]);
    assert_eq!(cluster.ids().into_values().collect::<Vec<_>>(), [1; 30]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_does_not_exist_is_a_setting_and_taken_when_it_is_made() {
    let cluster = Cluster::start();
    cluster.0.topic_error(TOPIC, Answer::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let mut sink = cluster.sink("");
    let batch = three();
    let written = sink.write(std::slice::from_ref(&batch)).await;
    let [Written::Misconfigured(why)] = &written[..] else { panic!("{written:?}") };
    assert!(why.contains("create it") && why.contains(TOPIC), "{why}");
    cluster.0.topic_error(TOPIC, Answer::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    let begun = Instant::now();
    while sink.write(std::slice::from_ref(&batch)).await != [Written::Delivered] {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(cluster.ids(), once(&["a", "b", "c"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_failed_for_good_is_replaced() {
    let cluster = Cluster::start();
    cluster.0.request_errors(Api::InitProducerId, &[Answer::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED]);
    let mut sink = cluster.sink("");
    let batch = three();
    let written = sink.write(std::slice::from_ref(&batch)).await;
    assert!(!matches!(&written[..], [Written::Delivered]), "{written:?}");
    assert_eq!(sink.write(&[batch]).await, [Written::Delivered]);
    assert_eq!(cluster.ids(), once(&["a", "b", "c"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_brokers_that_came_back_without_enough_replicas_it_says_so_and_not_that_they_are_away() {
    let cluster = Cluster::start();
    let mut sink = cluster.sink("timeout_secs = 1");
    let batch = three();
    let mut until = async |words: &str| {
        let begun = Instant::now();
        loop {
            let written = sink.write(std::slice::from_ref(&batch)).await.remove(0);
            let Written::Refused { why, .. } = written else { panic!("{written:?}") };
            match why.contains(words) {
                true => return why,
                false => assert!(begun.elapsed() < Duration::from_secs(60), "{why}"),
            }
        }
    };
    cluster.set_away(true);
    until("no broker can be reached").await;
    // For longer than the statistics need that say when one is back.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        let why = until("").await;
        assert!(why.contains("no broker can be reached"), "{why}");
    }
    cluster.set_away(false);
    cluster.0.request_errors(Api::Produce, &[Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 100_000]);
    let why = until("no acknowledgement within 1 s;").await;
    assert!(why.contains("`min.insync.replicas`") && why.contains("--under-min-isr-partitions"), "{why}");
    cluster.0.clear_request_errors(Api::Produce);
    let begun = Instant::now();
    while sink.write(std::slice::from_ref(&batch)).await != [Written::Delivered] {
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    assert_eq!(cluster.ids(), once(&["a", "b", "c"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_ends_gives_up_at_once_what_is_on_its_way() {
    let cluster = Cluster::start();
    let mut sink = cluster.sink("timeout_secs = 1");
    cluster.set_away(true);
    let written = sink.write(&[three()]).await;
    assert!(matches!(&written[..], [Written::Refused { .. }]), "{written:?}");
    let begun = Instant::now();
    drop(sink);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    cluster.set_away(false);
    assert_eq!(cluster.ids(), BTreeMap::new(), "what nobody waits for is not sent later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_into_the_cluster_loses_nothing_and_repeats_nothing() {
    let cluster = Cluster::start();
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 40, 30).await;
    // Disconnected in mid-flight, asked to wait, refused for a while.
    cluster.0.request_errors(
        Api::Produce,
        &[
            Answer::RD_KAFKA_RESP_ERR__TRANSPORT,
            Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            Answer::RD_KAFKA_RESP_ERR__TRANSPORT,
            Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        ],
    );
    pass_in(&cluster.table(""), &sim, &tenant, clock).await;
    let received = Received::default();
    received.extend(cluster.read().into_iter().map(|message| message.record));
    let outcome = compare(&sim, received.all());
    assert_nothing_lost(&outcome);
    assert!(outcome.duplicated.is_empty(), "{outcome}");
}
