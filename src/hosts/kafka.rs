//! The `kafka` sink: each record one message of a topic, for good when all in-sync replicas have it.
//!
//! librdkafka does the work: one idempotent producer for all lanes of the sink, which repeats by itself whatever did not
//! arrive and for as long as it takes, so that what it repeats is in the topic once. What it took from us and has not
//! answered is remembered by record: a request that comes again, whole or in parts, waits for the same messages and sends
//! none of them twice. Only a new producer does: after an error that librdkafka calls fatal, and when the files of
//! secrets changed while no broker could be reached.
//!
//! What a code of the broker means is `meaning_of`'s; what follows from it is `delivery`'s.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use url::Url;

use super::answers::Meaning;
use super::kafka_key::key_of;
use super::net::{CONNECT_TIMEOUT, NetSinkError, StoredSecret, tls_config};
use crate::api::tls::trusted_pem;
use crate::clock::Clock;
use crate::config::Secret;
use crate::config::sinks::{KafkaCompression, KafkaConfig, KafkaKey, SaslMechanism};
use crate::delivery::{Sink, Written};
use crate::host::{Batch, Record};
use crate::net::{excerpt, redact};

/// Groups of batches on their way at once. What is in one batch of messages, and how many of those are under way, is
/// librdkafka's.
const LANES: usize = 8;
/// Largest request that is sent. Brokers close the connection at one over `socket.request.max.bytes`, 100 MiB.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// How long brokers may be asked for a topic that they do not know before it counts as one that is not there.
const TOPIC_AWAITED: Duration = Duration::from_secs(5);
/// How often librdkafka says which brokers are connected.
const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// The sink.
pub struct KafkaSink(Arc<Shared>);

impl KafkaSink {
    /// A sink as configured. Nothing is connected yet.
    ///
    /// # Errors
    /// A file of its TLS cannot be used.
    pub fn new(config: &KafkaConfig, clock: Arc<dyn Clock>) -> Result<Self, NetSinkError> {
        if config.tls
            && let Some(to) = config.brokers.first().and_then(|to| Url::parse(&format!("https://{to}")).ok())
        {
            // The TLS that is spoken is OpenSSL's: this finds what is wrong with the files, as for every sink.
            tls_config(&config.tls_files, &to, &clock)?;
        }
        let password = StoredSecret::of(config.password.as_ref(), config.password_file.as_deref());
        Ok(Self(Arc::new(Shared {
            topic: config.topic.clone(),
            key: config.key,
            timeout: Duration::from_secs(config.timeout_secs),
            config: config.clone(),
            password,
            clock,
            producer: Mutex::default(),
            under_way: Mutex::default(),
            next_word: Mutex::default(),
        })))
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn beside(&self) -> Vec<Box<dyn Sink>> {
        (1..LANES).map(|_| Box::new(Self(self.0.clone())) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let waiting = Arc::new(Waiting::default());
        let (shared, group, counted) = (self.0.clone(), batches.to_vec(), waiting.clone());
        let begun = tokio::task::spawn_blocking(move || shared.begin(&group, &counted)).await;
        let begun = match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(written)) => return vec![written; batches.len()],
            Err(_) => return vec![Written::refused("the messages could not be made"); batches.len()],
        };
        let is_trial = batches.iter().any(Batch::is_trial);
        self.0.wait(&waiting, &begun, is_trial).await;
        let judged = begun.sent.into_iter().zip(batches);
        judged.map(|(sent, batch)| self.0.judge(&sent, &begun.link, batch.is_trial())).collect()
    }

    fn forget(&mut self, batches: &[Batch]) {
        // Of several records the parts come again; a single one is set aside.
        if let [batch] = batches
            && let 1 = batch.len()
        {
            let mut under_way = self.0.under_way.lock();
            for record in batch.records() {
                under_way.remove(&address(&record));
            }
        }
    }

    async fn close(&mut self) {
        let producer = self.0.producer.lock().take();
        let _ = tokio::task::spawn_blocking(move || drop(producer)).await;
    }
}

/// Where a record lies. It stays there, and nothing else can lie there, while [`Known`] holds its bytes.
fn address(record: &Record<'_>) -> usize {
    record.json.as_ptr() as usize
}

/// A message that librdkafka was given, and what keeps its record where it is.
struct Known {
    message: Arc<Message>,
    _bytes: Bytes,
}

/// What one write waits for, by batch.
struct Begun {
    sent: Vec<Vec<Sent>>,
    link: Arc<Link>,
    /// How often the link had fallen before.
    falls: u64,
}

/// A record of a write.
struct Sent {
    address: usize,
    message: Arc<Message>,
    /// An earlier write was told so.
    was_taken: bool,
}

/// What all lanes share.
struct Shared {
    topic: String,
    key: KafkaKey,
    timeout: Duration,
    config: KafkaConfig,
    password: StoredSecret,
    clock: Arc<dyn Clock>,
    producer: Mutex<Option<Arc<Live>>>,
    /// Messages without an answer, and those that were taken while others of their batch were not; by the place of the
    /// record.
    under_way: Mutex<HashMap<usize, Known>>,
    /// When a write may say next that it has no answer, by the monotonic clock.
    next_word: Mutex<Duration>,
}

/// A producer.
struct Live {
    producer: ThreadedProducer<Context>,
    link: Arc<Link>,
    /// Of the files it was made with.
    files: Option<blake3::Hash>,
}

impl Shared {
    /// Gives all records to the producer that it does not have yet. May take its time.
    fn begin(&self, batches: &[Batch], waiting: &Arc<Waiting>) -> Result<Begun, Written> {
        let live = self.live()?;
        let falls = live.link.falls();
        let sent = batches.iter().map(|batch| self.begin_batch(&live, batch, waiting)).collect();
        waiting.one_less();
        Ok(Begun { sent, link: live.link.clone(), falls })
    }

    fn begin_batch(&self, live: &Live, batch: &Batch, waiting: &Arc<Waiting>) -> Vec<Sent> {
        let bytes = batch.ndjson();
        let begin = |record: Record<'_>| {
            let address = address(&record);
            let known = self.under_way.lock().get(&address).map(|known| known.message.clone());
            // What was refused since it was asked for last is sent anew.
            if let Some(message) = known.filter(|message| !matches!(message.outcome(), Outcome::Refused(_))) {
                let was_taken = matches!(message.await_by(waiting), Outcome::Taken);
                return Sent { address, message, was_taken };
            }
            let message = Arc::new(Message::default());
            message.await_by(waiting);
            let known = Known { message: message.clone(), _bytes: bytes.clone() };
            self.under_way.lock().insert(address, known);
            self.send(live, batch, &record, &message);
            Sent { address, message, was_taken: false }
        };
        batch.records().map(begin).collect()
    }

    /// Until all messages of a write are answered, or it is its turn to say that they are not. One write at a time says so:
    /// the others of its lanes lose nothing by waiting on, and go on when a broker does, whereas the worker pauses the
    /// longer the more of them come back.
    async fn wait(&self, waiting: &Waiting, begun: &Begun, is_trial: bool) {
        let (mut falls, mut until) = (begun.falls, self.clock.monotonic() + self.timeout);
        loop {
            let now = self.clock.monotonic();
            tokio::select! {
                biased;
                () = waiting.all() => return,
                known = begun.link.falls_after(falls) => falls = known,
                () = self.clock.sleep(until.saturating_sub(now)) => {}
            }
            let now = self.clock.monotonic();
            let mut next_word = self.next_word.lock();
            if is_trial || now >= *next_word {
                *next_word = now + self.timeout;
                return;
            }
            until = *next_word;
        }
    }

    fn send(&self, live: &Live, batch: &Batch, record: &Record<'_>, message: &Arc<Message>) {
        let key = match self.key {
            KafkaKey::EventId => key_of(record.json),
            KafkaKey::Tenant => batch.tenant.as_str().to_owned(),
        };
        let headers = OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: "tenant", value: Some(batch.tenant.as_str()) })
            .insert(Header { key: "content_type", value: Some(batch.content_type.as_str()) })
            .insert(Header { key: "severity", value: Some(record.severity().as_str()) });
        let sent = BaseRecord::with_opaque_to(&self.topic, message.clone())
            .key(&key)
            .payload(record.json)
            .timestamp(record.time.as_millisecond())
            .headers(headers);
        if let Err((error, _)) = live.producer.send(sent) {
            message.settle(Outcome::Refused(error.rdkafka_error_code().unwrap_or(Code::Fail)));
        }
    }

    /// What is to be said of a batch now. What was taken of it is kept in mind until all is.
    fn judge(&self, sent: &[Sent], link: &Link, is_trial: bool) -> Written {
        let mut newly_taken = 0;
        let mut worst: Option<(Meaning, Option<Code>)> = None;
        let mut settled = Vec::new();
        for one in sent {
            let (meaning, code) = match one.message.outcome() {
                Outcome::Taken => {
                    newly_taken += usize::from(!one.was_taken);
                    continue;
                }
                Outcome::Pending => (Meaning::Later, None),
                Outcome::Refused(code) => {
                    settled.push(one.address);
                    (meaning_of(code), Some(code))
                }
            };
            if worst.is_none_or(|(known, _)| rank(meaning) > rank(known)) {
                worst = Some((meaning, code));
            }
        }
        let mut under_way = self.under_way.lock();
        let Some((meaning, code)) = worst else {
            sent.iter().for_each(|one| drop(under_way.remove(&one.address)));
            return Written::Delivered;
        };
        match is_trial {
            true => sent.iter().for_each(|one| drop(under_way.remove(&one.address))),
            false => settled.iter().for_each(|address| drop(under_way.remove(address))),
        }
        drop(under_way);
        let why = match code {
            Some(code) => self.why(code),
            None => return link.unanswered(self.timeout),
        };
        match meaning {
            Meaning::TooLarge | Meaning::Rejected if newly_taken > 0 => Written::RejectedSome(why),
            Meaning::Setting => Written::Misconfigured(why),
            meaning => meaning.written(why, None),
        }
    }

    /// A code in words, with what to do.
    fn why(&self, code: Code) -> String {
        let topic = &self.topic;
        let hint = match code {
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => format!(
                "the topic `{topic}` does not exist at these brokers: create it (`kafka-topics.sh --create --topic \
                 {topic}`), or correct `topic` and `brokers`"
            ),
            Code::InvalidTopic => format!("the brokers take `{topic}` for no topic's name: correct `topic`"),
            Code::TopicAuthorizationFailed => format!(
                "this user may not write to the topic `{topic}`: allow it WRITE and DESCRIBE there (`kafka-acls.sh --add \
                 --producer --topic {topic}`), or sign in as another"
            ),
            Code::ClusterAuthorizationFailed => {
                "brokers before 2.8 ask of an idempotent producer IDEMPOTENT_WRITE on the cluster: allow it this user \
                 (`kafka-acls.sh --add --idempotent-write`)"
                    .to_owned()
            }
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
                format!("larger than `max.message.bytes` of the topic `{topic}`: raise it there")
            }
            Code::InvalidTimestamp => {
                "the topic's `message.timestamp.before.max.ms` or `message.timestamp.after.max.ms` does not allow the \
                 record's time"
                    .to_owned()
            }
            Code::UnsupportedCompressionType => "the topic does not take this `compression`".to_owned(),
            Code::PurgeQueue | Code::PurgeInflight | Code::Fatal => {
                return "taken back from a producer that has ended; it is sent again".to_owned();
            }
            _ => return code.to_string(),
        };
        format!("{code} (hint: {hint})")
    }

    /// The producer, made anew where there is none or the one there is can do no more.
    fn live(&self) -> Result<Arc<Live>, Written> {
        let mut current = self.producer.lock();
        if let Some(live) = current.as_ref() {
            match self.why_replaced(live) {
                None => return Ok(live.clone()),
                Some(why) => tracing::warn!(
                    "a new Kafka producer takes the place of one that {why}; what was under way is sent again and may come twice"
                ),
            }
        }
        // The old one gives back what it had before it goes.
        drop(current.take());
        let live = Arc::new(self.make()?);
        *current = Some(live.clone());
        Ok(live)
    }

    fn why_replaced(&self, live: &Live) -> Option<String> {
        if let Some((code, why)) = live.producer.client().fatal_error() {
            return Some(format!("has failed for good ({code}: {})", excerpt(&why)));
        }
        let is_changed = live.link.is_down() && self.files().is_some_and(|files| Some(files) != live.files);
        is_changed.then(|| "was made with files that have changed since".to_owned())
    }

    fn make(&self) -> Result<Live, Written> {
        let files = self.files();
        let password = self.password.read().map_err(Written::refused)?;
        let config = self.client_config(password.as_ref()).map_err(Written::refused)?;
        let link = Arc::new(Link::new(password));
        let producer = config.create_with_context(Context { link: link.clone() });
        let producer = producer.map_err(|error| {
            Written::Misconfigured(format!("the Kafka client cannot be set up: {}", link.shown(&error.to_string())))
        })?;
        Ok(Live { producer, link, files })
    }

    /// A digest of the files that secrets and certificates are read from; `None` where one cannot be read.
    fn files(&self) -> Option<blake3::Hash> {
        let config = &self.config;
        let files = [
            &config.password_file,
            &config.tls_files.ca_file,
            &config.tls_files.client_certificate_file,
            &config.tls_files.client_key_file,
        ];
        let mut hasher = blake3::Hasher::new();
        for file in files.into_iter().flatten() {
            hasher.update(blake3::hash(&std::fs::read(file).ok()?).as_bytes());
        }
        Some(hasher.finalize())
    }

    fn client_config(&self, password: Option<&Secret>) -> Result<ClientConfig, String> {
        let config = &self.config;
        let mut client = ClientConfig::new();
        let mut set = |key: &str, value: &str| {
            client.set(key, value);
        };
        set("client.id", "m365-audit");
        set("bootstrap.servers", &config.brokers.join(","));
        set("acks", "all");
        set("enable.idempotence", "true");
        // Whoever waits is the worker: a message that ran out of time here would be sent twice.
        set("message.timeout.ms", "0");
        set("topic.metadata.propagation.max.ms", &TOPIC_AWAITED.as_millis().to_string());
        set("statistics.interval.ms", &STATISTICS_EVERY.as_millis().to_string());
        // Bounded by the worker's queue.
        set("queue.buffering.max.messages", "0");
        set("queue.buffering.max.kbytes", &i32::MAX.to_string());
        set("message.max.bytes", &REQUEST_BYTES_MAX.to_string());
        set("batch.size", &config.batch_bytes_max.to_string());
        set("socket.keepalive.enable", "true");
        set("socket.connection.setup.timeout.ms", &CONNECT_TIMEOUT.as_millis().to_string());
        // Nothing leaves this machine but records.
        set("enable.metrics.push", "false");
        set(
            "compression.codec",
            match config.compression {
                KafkaCompression::None => "none",
                KafkaCompression::Gzip => "gzip",
                KafkaCompression::Snappy => "snappy",
                KafkaCompression::Lz4 => "lz4",
                KafkaCompression::Zstd => "zstd",
            },
        );
        set(
            "security.protocol",
            match (config.sasl_mechanism, config.tls) {
                (None, false) => "plaintext",
                (None, true) => "ssl",
                (Some(_), false) => "sasl_plaintext",
                (Some(_), true) => "sasl_ssl",
            },
        );
        if let Some(mechanism) = config.sasl_mechanism {
            set(
                "sasl.mechanism",
                match mechanism {
                    SaslMechanism::Plain => "PLAIN",
                    SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                    SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
                },
            );
            set("sasl.username", config.username.as_deref().unwrap_or_default());
            set("sasl.password", password.map_or("", Secret::expose));
        }
        if config.tls {
            let read = |path: &PathBuf| {
                std::fs::read(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))
            };
            let ca = config.tls_files.ca_file.as_ref().map(read).transpose()?;
            set("ssl.ca.pem", &trusted_pem(ca.as_deref())?);
            if let Some(certificate) = &config.tls_files.client_certificate_file {
                let key = config.tls_files.client_key_file.as_ref().unwrap_or(certificate);
                set("ssl.certificate.location", &certificate.to_string_lossy());
                set("ssl.key.location", &key.to_string_lossy());
            }
        }
        client.set_log_level(RDKafkaLogLevel::Info);
        Ok(client)
    }
}

/// What counts where records of one batch were answered differently: what says least of the records.
fn rank(meaning: Meaning) -> u8 {
    match meaning {
        Meaning::Taken => 0,
        Meaning::Rejected | Meaning::TooLarge => 1,
        Meaning::Unclear => 2,
        Meaning::Setting => 3,
        Meaning::Later => 4,
    }
}

/// What a code with which librdkafka gave a message back means. It repeats by itself whatever may pass; most of what is
/// named here as such it gives back only when it ends.
fn meaning_of(code: Code) -> Meaning {
    match code {
        Code::NoError => Meaning::Taken,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Meaning::TooLarge,
        Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation | Code::InvalidMessageSize => {
            Meaning::Rejected
        }
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::Authentication
        | Code::SSL
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks
        | Code::SecurityDisabled => Meaning::Setting,
        Code::PurgeQueue
        | Code::PurgeInflight
        | Code::Fatal
        | Code::QueueFull
        | Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NetworkException
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::KafkaStorageError
        | Code::ThrottlingQuotaExceeded
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::UnknownProducerId
        | Code::ProducerFenced => Meaning::Later,
        _ => Meaning::Unclear,
    }
}

// ------------------------------------------------------------------------------------ messages and who waits

/// What became of a message.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Pending,
    Taken,
    Refused(Code),
}

/// A message on its way.
struct Message(Mutex<(Outcome, Option<Arc<Waiting>>)>);

impl Default for Message {
    fn default() -> Self {
        Self(Mutex::new((Outcome::Pending, None)))
    }
}

impl Message {
    fn outcome(&self) -> Outcome {
        self.0.lock().0
    }

    /// From now on it is `waiting` that is told, unless there is nothing to wait for: what is known of it.
    fn await_by(&self, waiting: &Arc<Waiting>) -> Outcome {
        let mut state = self.0.lock();
        if let Outcome::Pending = state.0 {
            waiting.left.fetch_add(1, Ordering::Relaxed);
            state.1 = Some(waiting.clone());
        }
        state.0
    }

    fn settle(&self, outcome: Outcome) {
        let waiting = {
            let mut state = self.0.lock();
            state.0 = outcome;
            state.1.take()
        };
        if let Some(waiting) = waiting {
            waiting.one_less();
        }
    }
}

/// One write that waits for messages.
struct Waiting {
    /// How many, and one while they are being sent.
    left: AtomicUsize,
    done: Notify,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { left: AtomicUsize::new(1), done: Notify::new() }
    }
}

impl Waiting {
    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    async fn all(&self) {
        self.done.notified().await;
    }
}

// ------------------------------------------------------------------------------------ the connection to brokers

/// What is known of the connections to the brokers.
struct Link {
    state: Mutex<LinkState>,
    /// How often all brokers were found away.
    falls: watch::Sender<u64>,
    password: Option<Secret>,
}

#[derive(Default)]
struct LinkState {
    /// No broker could be reached when one was last tried; no message was taken, and none was seen connected since.
    is_down: bool,
    /// Whether the last statistics since then had one connected.
    was_up: bool,
    /// Why one could not be reached; the last, since the above ended.
    last: Option<(Code, String)>,
}

impl Link {
    fn new(password: Option<Secret>) -> Self {
        Self { state: Mutex::default(), falls: watch::Sender::new(0), password }
    }

    fn is_down(&self) -> bool {
        self.state.lock().is_down
    }

    fn falls(&self) -> u64 {
        *self.falls.borrow()
    }

    async fn falls_after(&self, known: u64) -> u64 {
        let fallen = self.falls.subscribe().wait_for(|falls| *falls > known).await.map(|falls| *falls);
        match fallen {
            Ok(falls) => falls,
            Err(_) => std::future::pending().await,
        }
    }

    fn took(&self) {
        *self.state.lock() = LinkState::default();
    }

    /// What statistics say. One alone proves nothing: it may have been made before the last broker went away.
    fn seen(&self, is_up: bool) {
        let mut state = self.state.lock();
        match state.is_down && is_up {
            true if state.was_up => *state = LinkState::default(),
            was_up => state.was_up = was_up,
        }
    }

    fn failed(&self, code: Code, why: &str) {
        let mut state = self.state.lock();
        if code == Code::AllBrokersDown {
            if !state.is_down {
                state.is_down = true;
                self.falls.send_modify(|falls| *falls += 1);
            }
        } else {
            state.last = Some((code, self.shown(why)));
        }
    }

    /// Why a connection ended, which is no error to librdkafka where the broker ended it.
    fn ended(&self, why: &str) {
        let mut state = self.state.lock();
        if state.last.as_ref().is_none_or(|(code, _)| *code == Code::BrokerTransportFailure) {
            // After the name of a thread.
            let why = why.split_once("]: ").map_or(why, |(_, why)| why);
            state.last = Some((Code::BrokerTransportFailure, why.to_owned()));
        }
    }

    /// What is to be said of messages that nobody answered.
    fn unanswered(&self, waited: Duration) -> Written {
        let state = self.state.lock();
        let because = state.last.as_ref().map(|(_, why)| format!(": {why}")).unwrap_or_default();
        match (&state.last, state.is_down) {
            (Some((Code::Authentication | Code::SaslAuthenticationFailed, _)), true) => {
                Written::Misconfigured(format!(
                    "the brokers do not let us in{because} (hint: `sasl_mechanism`, `username` and the password must be as the brokers have them)"
                ))
            }
            (Some((Code::SSL, _)), true) => Written::Misconfigured(format!(
                "no TLS with the brokers{because} (hint: `ca_file` must hold the authority of the brokers' certificates, and `brokers` name them as those do; brokers that ask for a certificate need `client_certificate_file`)"
            )),
            (_, true) => Written::refused(format!("no broker can be reached{because}")),
            (_, false) => Written::refused(format!(
                "no acknowledgement within {} s{because}; what is on its way stays so and is not sent twice (hint: fewer \
                 replicas may be in sync than `min.insync.replicas` asks for; `kafka-topics.sh --describe \
                 --under-min-isr-partitions` names such partitions: bring their brokers back)",
                waited.as_secs()
            )),
        }
    }

    /// A text of the library's or the broker's as it may be shown.
    fn shown(&self, text: &str) -> String {
        excerpt(&redact(text, self.password.as_slice().iter().collect::<Vec<_>>().as_slice()))
    }
}

/// Of librdkafka's statistics, what is used here.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, BrokerStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    source: String,
    state: String,
}

impl BrokerStatistics {
    /// Whether it is a connected broker: librdkafka has an internal one besides, which is always up.
    fn is_up(&self) -> bool {
        matches!(&*self.source, "configured" | "learned") && matches!(&*self.state, "UP" | "REAUTH")
    }
}

/// What librdkafka calls.
struct Context {
    link: Arc<Link>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        let text = self.link.shown(text);
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(fac, "librdkafka: {text}");
            }
            // Why a broker cannot be reached is said by the sink, once.
            _ if matches!(fac, "FAIL" | "ERROR") => {
                if fac == "FAIL" {
                    self.link.ended(&text);
                }
                tracing::debug!(fac, "librdkafka: {text}");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::warn!(fac, "librdkafka: {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(fac, "librdkafka: {text}");
            }
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) {
            self.link.seen(statistics.brokers.values().any(BrokerStatistics::is_up));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.link.failed(code, reason);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Message>;

    fn delivery(&self, delivery: &DeliveryResult<'_>, message: Arc<Message>) {
        message.settle(match delivery {
            Ok(_) => {
                self.link.took();
                Outcome::Taken
            }
            Err((error, _)) => Outcome::Refused(error.rdkafka_error_code().unwrap_or(Code::Fail)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_speaks_of_the_record_of_a_setting_or_of_the_moment() {
        for (meaning, codes) in [
            (Meaning::Taken, &[Code::NoError][..]),
            (Meaning::TooLarge, &[Code::MessageSizeTooLarge, Code::MessageBatchTooLarge]),
            (Meaning::Rejected, &[Code::InvalidRecord, Code::InvalidTimestamp, Code::PolicyViolation]),
            (
                Meaning::Setting,
                &[
                    Code::UnknownTopic,
                    Code::UnknownTopicOrPartition,
                    Code::TopicAuthorizationFailed,
                    Code::Authentication,
                ],
            ),
            (
                Meaning::Later,
                &[
                    Code::PurgeInflight,
                    Code::Fatal,
                    Code::NotEnoughReplicas,
                    Code::BrokerTransportFailure,
                    Code::QueueFull,
                ],
            ),
            (Meaning::Unclear, &[Code::Unknown, Code::Fail]),
        ] {
            for code in codes {
                assert_eq!(meaning_of(*code), meaning, "{code:?}");
            }
        }
    }

    #[test]
    fn of_statistics_only_the_connection_of_a_real_broker_counts() {
        let is_up = |source: &str, state: &str| {
            let brokers =
                format!(r#"{{"brokers":{{"a":{{"nodeid":-1,"source":"{source}","state":"{state}"}}}},"topics":{{}}}}"#);
            serde_json::from_str::<Statistics>(&brokers).unwrap().brokers.values().any(BrokerStatistics::is_up)
        };
        assert!(is_up("configured", "UP") && is_up("learned", "REAUTH"));
        assert!(!is_up("internal", "UP") && !is_up("configured", "AUTH_HANDSHAKE") && !is_up("learned", "DOWN"));
    }

    #[test]
    fn what_brokers_say_is_shown_without_the_password_and_their_refusal_is_a_setting() {
        let link = Link::new(Some(Secret::new("hunter2-s3cret")));
        link.failed(Code::Authentication, "SASL PLAIN: no user with hunter2-s3cret");
        let Written::Refused { why, .. } = link.unanswered(Duration::from_secs(7)) else { panic!("a broker is left") };
        assert!(why.contains("within 7 s: SASL PLAIN: no user with ***"), "{why}");
        link.ended("[thrd:a/1]: a:9092/1: Disconnected");
        link.failed(Code::AllBrokersDown, "1/1 brokers are down");
        let Written::Misconfigured(why) = link.unanswered(Duration::ZERO) else { panic!("nobody lets us in") };
        assert!(why.contains("no user with ***") && why.contains("sasl_mechanism"), "{why}");
        assert_eq!((link.falls(), link.is_down()), (1, true));
        // Made before the fall, and of no broker; then of one that is back.
        [true, false, true].iter().for_each(|is_up| link.seen(*is_up));
        assert!(link.is_down());
        link.seen(true);
        assert!(!link.is_down());
        link.failed(Code::AllBrokersDown, "1/1 brokers are down");
        assert_eq!((link.falls(), link.is_down()), (2, true));
        link.took();
        assert!(!link.is_down());
        link.ended("[thrd:a/1]: a:9092/1: Disconnected");
        link.failed(Code::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(
            link.unanswered(Duration::ZERO),
            Written::refused("no broker can be reached: a:9092/1: Disconnected")
        );
    }
}
