//! The `kafka` sink into a real broker: Apache Kafka, one node in KRaft mode. `KAFKA_LIB` names the folder of its jars;
//! `.ci/destinations kafka DIR` fetches them. What is in the topic is counted with `kcat`, a client that is not ours.
//! Without one of them, or without `java`, the tests say so and pass. Real time: they know no other. `KAFKA_AWAY_SECS` is
//! how long the broker stays away each time that it is killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::host::{Batch, Delivery, Host};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::sink::Written;
use m365_audit::hosts::embedded::{EmbeddedHost, SinkSpec};
use m365_audit::sim::{Comparison, GenerateSpec, Sim};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rustix::process::{Pid, Signal, kill_process};
use test_support::{free_port, program};

use crate::kafka::TOPIC;
use crate::tls::Authority;
use crate::truth::{assert_nothing_lost, batch, compare, sink, source_table, tenant};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// The user of each mechanism and the password there.
const USER: &str = "m365";
const PASSWORDS: [(&str, &str); 3] =
    [("plain", "plain-s3cret"), ("scram_sha_256", "scram256-s3cret"), ("scram_sha_512", "scram512-s3cret")];

/// A broker in a directory of its own, ended with the test.
pub struct Broker {
    lib: PathBuf,
    kcat: PathBuf,
    java: PathBuf,
    dir: tempfile::TempDir,
    authority: Authority,
    pub plain: u16,
    sasl: u16,
    mutual: u16,
    child: Child,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Broker {
    /// `None`: something is missing, which has been reported.
    pub async fn start() -> Option<Self> {
        let (lib, java, kcat) = (program("kafka")?, program("java")?, program("kcat")?);
        let dir = tempfile::tempdir().unwrap();
        let (plain, sasl, mutual, controller) = (free_port(), free_port(), free_port(), free_port());
        let authority = Authority::new();
        let server = authority.pair(|_| {});
        fs::write(dir.path().join("server.pem"), server.key + &server.certificate).unwrap();
        fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
        let here = dir.path().display();
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAIN://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},MUTUAL://127.0.0.1:{mutual},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAIN://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},MUTUAL://127.0.0.1:{mutual}\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAIN\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL\n\
             log.dirs={here}/data\nauto.create.topics.enable=false\noffsets.topic.replication.factor=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             ssl.keystore.type=PEM\nssl.keystore.location={here}/server.pem\n\
             ssl.truststore.type=PEM\nssl.truststore.location={here}/ca.pem\n\
             listener.name.mutual.ssl.client.auth=required\n\
             listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{}\";\n\
             listener.name.sasl.scram-sha-256.sasl.jaas.config={scram}\n\
             listener.name.sasl.scram-sha-512.sasl.jaas.config={scram}\n",
            PASSWORDS[0].1
        );
        fs::write(dir.path().join("server.properties"), properties).unwrap();
        let format = Self::java(&lib, &java, dir.path(), "kafka.tools.StorageTool")
            .args(["format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", "server.properties"])
            .args(["--add-scram", &format!("SCRAM-SHA-256=[name={USER},password={}]", PASSWORDS[1].1)])
            .args(["--add-scram", &format!("SCRAM-SHA-512=[name={USER},password={}]", PASSWORDS[2].1)])
            .output()
            .unwrap();
        assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr));
        let child = Self::spawn(&lib, &java, dir.path());
        let broker = Self { lib, kcat, java, dir, authority, plain, sasl, mutual, child };
        broker.answers().await;
        Some(broker)
    }

    fn java(lib: &Path, java: &Path, dir: &Path, class: &str) -> Command {
        let mut command = Command::new(java);
        command.args(["-Xmx512m", "-cp"]).arg(lib.join("*")).arg(class).current_dir(dir);
        command
    }

    fn spawn(lib: &Path, java: &Path, dir: &Path) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = Self::java(lib, java, dir, "kafka.Kafka");
        command.arg("server.properties").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    async fn answers(&self) {
        let begun = Instant::now();
        while !self.kcat(&["-L", "-m", "2"]).status.success() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "it does not answer: {}", log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.child = Self::spawn(&self.lib, &self.java, self.dir.path());
        self.answers().await;
    }

    fn kcat(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(&self.kcat);
        command.arg("-b").arg(format!("127.0.0.1:{}", self.plain)).args(arguments).output().unwrap()
    }

    pub async fn create_topic(&self, more: &[(&str, &str)]) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{}", self.plain));
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        // Records of these tests are months old: a broker deletes by their time.
        let topic = NewTopic::new(TOPIC, 3, TopicReplication::Fixed(1)).set("retention.ms", "-1");
        let topic = more.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let created = admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }

    /// Of each message of the topic what `format` says, as kcat has it.
    pub fn messages(&self, format: &str) -> String {
        let output = self.kcat(&["-t", TOPIC, "-C", "-e", "-q", "-f", &format!("{format}\\n")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// How often each key, which is the event's id, is in the topic.
    pub fn counted(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for key in self.messages("%k").lines() {
            *counted.entry(key.to_owned()).or_insert(0) += 1;
        }
        counted
    }

    fn table(&self, more: &str) -> String {
        format!("type = \"kafka\"\nbrokers = [\"127.0.0.1:{}\"]\ntopic = \"{TOPIC}\"\n{more}\n", self.plain)
    }

    /// A host with the sink alone.
    pub fn host(&self, table: &str) -> EmbeddedHost {
        let clock: Arc<dyn Clock> = SystemClock::new();
        let spec = SinkSpec {
            name: "out".into(),
            inputs: vec!["s".into()],
            selection: Selection::default(),
            sink: sink(table, &clock),
        };
        EmbeddedHost::new(vec![spec], Arc::new(MemoryStore::new()), clock)
    }
}

pub fn line(id: &str, bytes: usize) -> String {
    // Not to be compressed away.
    let mut random = fastrand::Rng::with_seed(id.len() as u64 + bytes as u64);
    let text: String = (0..bytes).map(|_| random.alphanumeric()).collect();
    format!(r#"{{"event_id":"{id}","text":"{text}"}}"#)
}

pub fn batch_of(lines: &[String]) -> Batch {
    batch(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The program, killed and started with the same state.
struct Program {
    config: PathBuf,
    child: Child,
}

impl Program {
    fn start(config: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(config.with_extension("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(["run", "-c"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self { config: config.to_owned(), child: command.spawn().unwrap() }
    }

    fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        *self = Self::start(&self.config.clone());
    }

    fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn more_events(sim: &Sim, tenant: &m365_audit::model::TenantId, blobs: usize) {
    let now = sim.now();
    let minutes = |n: i64| now - jiff::SignedDuration::from_mins(n);
    sim.generate(tenant, GenerateSpec { late_rate: 0.0, ..GenerateSpec::new(blobs, 100, minutes(60), minutes(2)) });
}

/// What is in the topic, compared with what was published, as soon as all of that is there.
async fn until_all_is_there(broker: &Broker, sim: &Sim, log: &Path) -> Comparison {
    let begun = Instant::now();
    loop {
        let records = broker.messages("%s");
        let outcome = compare(sim, records.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
        if outcome.lost.is_empty() {
            assert_nothing_lost(&outcome);
            return outcome;
        }
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(begun.elapsed() < PATIENCE, "{outcome}\n{}", log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn twice(counted: &BTreeMap<String, usize>) -> usize {
    counted.values().filter(|times| **times > 1).count()
}

fn configure(dir: &Path, source: &str, table: &str) -> PathBuf {
    let config = dir.join("m365-audit.toml");
    let text = format!(
        "data_dir = {:?}\n[sources.s]\n{source}poll_interval_secs = 1\nmax_requests_per_minute = 0\n\
         [sinks.out]\ninputs = [\"s\"]\n{table}\n",
        dir.join("state")
    );
    fs::write(&config, text).unwrap();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_mid_flight_and_away_for_a_while_has_every_event_and_none_twice() {
    let Some(mut broker) = Broker::start().await else { return };
    broker.create_topic(&[("max.message.bytes", "20000000")]).await;
    let (sim, tenant) = tenant(SystemClock::new(), 40, 50).await;
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), &source_table(&sim, &tenant), &broker.table("compression = \"zstd\""));
    let program = Program::start(&config);
    let log = config.with_extension("log");
    let away = std::env::var("KAFKA_AWAY_SECS").ok().and_then(|secs| secs.parse().ok()).unwrap_or(8);
    let away = Duration::from_secs(away);
    for _ in 0..3 {
        until_all_is_there(&broker, &sim, &log).await;
        // Frozen, it leaves what is sent without an answer; thawed for some milliseconds, it writes some of that and may
        // not come to answer.
        broker.signal(Signal::STOP);
        more_events(&sim, &tenant, 20);
        tokio::time::sleep(Duration::from_secs(3)).await;
        broker.signal(Signal::CONT);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..60))).await;
        broker.kill();
        more_events(&sim, &tenant, 20);
        tokio::time::sleep(away).await;
        broker.start_again().await;
        more_events(&sim, &tenant, 20);
    }
    let back = Instant::now();
    let outcome = until_all_is_there(&broker, &sim, &log).await;
    println!(
        "broker killed 3 times, away {away:?} each: {} events, 0 missing, {} twice; all there {} s after it was back; at most {} MiB resident",
        outcome.expected,
        outcome.duplicated.len(),
        back.elapsed().as_secs(),
        program.memory_kib() / 1024
    );
    assert!(outcome.duplicated.is_empty(), "{outcome}\n{}", fs::read_to_string(&log).unwrap_or_default());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_killed_again_and_again_has_every_event_at_the_broker() {
    let Some(broker) = Broker::start().await else { return };
    broker.create_topic(&[("max.message.bytes", "20000000")]).await;
    let (sim, tenant) = tenant(SystemClock::new(), 40, 50).await;
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), &source_table(&sim, &tenant), &broker.table(""));
    let mut program = Program::start(&config);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..1_500))).await;
        more_events(&sim, &tenant, 20);
        program.kill_and_start_again();
    }
    let outcome = until_all_is_there(&broker, &sim, &config.with_extension("log")).await;
    let twice = outcome.duplicated.len();
    println!("program killed 6 times: {} events, 0 missing, {twice} twice", outcome.expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_the_topic_is_set_aside_alone_and_its_neighbours_arrive_once() {
    let Some(broker) = Broker::start().await else { return };
    broker.create_topic(&[("max.message.bytes", "20000")]).await;
    let host = broker.host(&broker.table(""));
    // Batches of messages are larger than the topic takes, too: they come again smaller.
    let lines: Vec<String> =
        (0..600).map(|n| line(&n.to_string(), if n % 250 == 100 { 30_000 } else { 700 })).collect();
    let ticket = host.deliver(batch_of(&lines)).await;
    let delivery = tokio::time::timeout(PATIENCE, ticket).await.unwrap();
    let Delivery::DeliveredExcept(unfit) = &delivery else { panic!("{delivery:?}") };
    assert_eq!(unfit.iter().map(|unfit| unfit.record).collect::<Vec<_>>(), [100, 350]);
    assert!(unfit[0].why.contains("max.message.bytes"), "{}", unfit[0].why);
    host.shutdown(Duration::from_secs(5)).await;
    let counted = broker.counted();
    assert_eq!((counted.len(), twice(&counted)), (598, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_holds_everything_back_until_it_is_made() {
    let Some(broker) = Broker::start().await else { return };
    let host = broker.host(&broker.table(""));
    let lines: Vec<String> = (0..50).map(|n| line(&n.to_string(), 500)).collect();
    let mut ticket = host.deliver(batch_of(&lines)).await;
    let begun = Instant::now();
    loop {
        let said = format!("{:?}", *host.report().borrow());
        if said.contains("does not exist at these brokers") {
            assert!(said.contains("sink-rejects-everything"), "{said}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut ticket).await.is_err());
    broker.create_topic(&[]).await;
    let begun = Instant::now();
    assert_eq!(tokio::time::timeout(PATIENCE, ticket).await.unwrap(), Delivery::Delivered);
    println!("delivered {} s after the topic was made", begun.elapsed().as_secs());
    host.shutdown(Duration::from_secs(5)).await;
    let counted = broker.counted();
    assert_eq!((counted.len(), twice(&counted)), (50, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_signs_in_by_every_mechanism_and_by_certificate_and_says_why_it_may_not() {
    let Some(broker) = Broker::start().await else { return };
    broker.create_topic(&[]).await;
    let clock: Arc<dyn Clock> = SystemClock::new();
    let file = |name: &str| broker.dir.path().join(name).display().to_string();
    let table = |port: u16, more: &str| {
        format!(
            "type = \"kafka\"\nbrokers = [\"127.0.0.1:{port}\"]\ntopic = \"{TOPIC}\"\ntls = true\nca_file = \"{}\"\n{more}\n",
            file("ca.pem")
        )
    };
    let mut number = 0;
    let mut one = || {
        number += 1;
        batch_of(&[line(&number.to_string(), 100)])
    };
    for (mechanism, password) in PASSWORDS {
        let login = |password: &str| {
            format!("sasl_mechanism = \"{mechanism}\"\nusername = \"{USER}\"\npassword = \"{password}\"")
        };
        let mut right = sink(&table(broker.sasl, &login(password)), &clock);
        assert_eq!(right.write(&[one()]).await, [Written::Delivered], "{mechanism}");
        right.close().await;
        let mut wrong = sink(&table(broker.sasl, &login("wr0ng-s3cret")), &clock);
        let written = wrong.write(&[batch_of(&[line("wrong", 100)])]).await;
        let [Written::Misconfigured(why)] = &written[..] else { panic!("{mechanism}: {written:?}") };
        assert!(why.contains("do not let us in") && !why.contains("wr0ng"), "{why}");
    }
    // A password that is corrected in its file is used without a restart.
    fs::write(file("password"), "old-s3cret").unwrap();
    let login = format!("sasl_mechanism = \"plain\"\nusername = \"{USER}\"\npassword_file = \"{}\"", file("password"));
    let mut rotated = sink(&table(broker.sasl, &login), &clock);
    let batch = one();
    assert!(matches!(&rotated.write(std::slice::from_ref(&batch)).await[..], [Written::Misconfigured(_)]));
    fs::write(file("password"), PASSWORDS[0].1).unwrap();
    assert_eq!(rotated.write(&[batch]).await, [Written::Delivered]);
    // Mutual TLS.
    let client = broker.authority.pair(|_| {});
    fs::write(file("client.pem"), client.certificate).unwrap();
    fs::write(file("client.key"), client.key).unwrap();
    let shown =
        format!("client_certificate_file = \"{}\"\nclient_key_file = \"{}\"", file("client.pem"), file("client.key"));
    let mut right = sink(&table(broker.mutual, &shown), &clock);
    assert_eq!(right.write(&[one()]).await, [Written::Delivered]);
    let mut nobody = sink(&table(broker.mutual, ""), &clock);
    let written = nobody.write(&[batch_of(&[line("nobody", 100)])]).await;
    assert!(!matches!(&written[..], [Written::Delivered]), "{written:?}");
    println!("without a certificate: {written:?}");
    // An authority that is not ours.
    let other = Authority::new();
    fs::write(file("other.pem"), &other.pem).unwrap();
    let text = table(broker.mutual, &shown).replace(&file("ca.pem"), &file("other.pem"));
    let written = sink(&text, &clock).write(&[batch_of(&[line("other", 100)])]).await;
    let [Written::Misconfigured(why)] = &written[..] else { panic!("{written:?}") };
    assert!(why.contains("ca_file"), "{why}");
    assert_eq!(broker.counted().into_keys().collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
}
