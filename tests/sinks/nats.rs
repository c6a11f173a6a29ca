//! Fluent Bit's output `nats` into a real NATS server with JetStream: what arrives, and what a kill of either costs.
//! `NATS_SERVER` names it; `.ci/destinations nats DIR` builds it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use m365_audit::sim::{Comparison, Sim};
use serde_json::{Value, json};
use test_support::program;

use crate::agents::example;
use crate::destinations::{FluentBit, PATIENCE, Server};
use crate::recipes::blocks;
use crate::truth::{FastClock, assert_nothing_lost, compare, pass_in, tenant};

pub async fn nats(program: &Path) -> Server {
    let program = program.to_owned();
    let server = Server::start(move |dir, port| {
        // What the recipe says: a message is a chunk of Fluent Bit's.
        let config = format!(
            "host: 127.0.0.1\nport: {port}\nmax_payload: 16MB\njetstream {{ store_dir: \"{}\" }}\n",
            dir.join("store").display()
        );
        fs::write(dir.join("n.conf"), config).unwrap();
        let mut command = Command::new(&program);
        command.arg("-c").arg(dir.join("n.conf"));
        command
    })
    .await;
    let stream = json!({
        "name": "M365", "subjects": ["m365.>"], "storage": "file", "retention": "limits", "allow_direct": true,
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "num_replicas": 1,
    });
    let made = Client::connect(&server).ask("$JS.API.STREAM.CREATE.M365", &stream);
    let made: Value = serde_json::from_slice(&made).unwrap();
    assert!(made["error"].is_null(), "{made}");
    server
}

/// As much of the protocol as a question needs.
struct Client {
    reader: BufReader<TcpStream>,
    asked: usize,
}

impl Client {
    fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self { reader: BufReader::new(stream), asked: 0 };
        let info = client.line();
        assert!(info.starts_with("INFO "), "{info}");
        client.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB answers.* 1\r\n");
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line
    }

    fn ask(&mut self, subject: &str, question: &Value) -> Vec<u8> {
        self.asked += 1;
        let (question, reply) = (question.to_string(), format!("answers.{}", self.asked));
        self.send(format!("PUB {subject} {reply} {}\r\n{question}\r\n", question.len()).as_bytes());
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["PING"] => self.send(b"PONG\r\n"),
                ["MSG", _, _, len] => return self.payload(0, len.parse().unwrap()),
                ["HMSG", _, _, head, len] => return self.payload(head.parse().unwrap(), len.parse().unwrap()),
                _ => panic!("{line}"),
            }
        }
    }

    /// What follows the `head` bytes of headers of a message of `len` bytes.
    fn payload(&mut self, head: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes.split_off(head)
    }
}

/// Every message of the stream.
pub fn messages(server: &Server) -> Vec<Value> {
    let mut client = Client::connect(server);
    let info: Value = serde_json::from_slice(&client.ask("$JS.API.STREAM.INFO.M365", &json!({}))).unwrap();
    let mut message = |seq| client.ask("$JS.API.DIRECT.GET.M365", &json!({ "seq": seq }));
    let last = info["state"]["last_seq"].as_u64().unwrap();
    (1..=last).map(|seq| serde_json::from_slice(&message(seq)).unwrap()).collect()
}

/// The records of every message: Fluent Bit makes an array of a chunk, each record with its time before it.
fn stored(server: &Server) -> Vec<Value> {
    let chunks = messages(server).into_iter().map(|chunk| serde_json::from_value::<Vec<(f64, Value)>>(chunk).unwrap());
    chunks.flatten().map(|(_, record)| record).collect()
}

fn fluent_bit(program: PathBuf, server: &Server) -> FluentBit {
    let base = example("opensearch/fluent-bit.yaml");
    let base = &base[..base.find("  outputs:\n").unwrap()];
    let (_, recipe) = blocks("yaml").into_iter().find(|(heading, _)| heading == "NATS").expect("a recipe for NATS");
    let recipe: String = recipe.lines().map(|line| format!("    {line}\n")).collect();
    let recipe = recipe.replace("nats.example", "127.0.0.1").replace("4222", &server.port.to_string());
    FluentBit::start(program, &format!("{base}  outputs:\n{recipe}"))
}

/// What is in the stream when nothing is missing, or nothing more has come for `patience`.
async fn settled(server: &Server, sim: &Sim, patience: Duration) -> Comparison {
    let (mut begun, mut last) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let records = tokio::task::block_in_place(|| stored(server));
        if records.len() > last {
            (begun, last) = (Instant::now(), records.len());
        }
        let outcome = compare(sim, records);
        if outcome.lost.is_empty() || begun.elapsed() > patience {
            return outcome;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_has_every_event_through_kills_of_fluent_bit() {
    let (Some(nats_server), Some(program)) = (program("nats-server"), program("fluent-bit")) else { return };
    let server = nats(&nats_server).await;
    let mut fluent_bit = fluent_bit(program, &server);
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 60, 60).await;
    let table = fluent_bit.table();
    let killer = async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(900)).await;
            fluent_bit.kill_and_start_again();
        }
    };
    tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
    let outcome = settled(&server, &sim, PATIENCE).await;
    let twice = outcome.duplicated.len();
    println!("Fluent Bit killed 4 times: {} events, {} lost, {twice} twice", outcome.expected, outcome.lost.len());
    assert_nothing_lost(&outcome);
    sim.stop().await;
}

/// The table of routes says so: this output drops a chunk when it has no connection, whatever `retry_limit` says. A release
/// of Fluent Bit that does not fails here, and the table then has a better word for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_fluent_bit_has_for_nats_while_that_is_away_is_lost() {
    let (Some(nats_server), Some(program)) = (program("nats-server"), program("fluent-bit")) else { return };
    let mut server = nats(&nats_server).await;
    let fluent_bit = fluent_bit(program, &server);
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 30, 60).await;
    pass_in(&fluent_bit.table(), &sim, &tenant, clock.clone()).await;
    assert_nothing_lost(&settled(&server, &sim, PATIENCE).await);
    let before = sim.truth().events.len();
    server.kill();
    let hours = |n: i64| sim.now() - jiff::SignedDuration::from_hours(n);
    sim.generate(
        &tenant,
        m365_audit::sim::GenerateSpec {
            late_rate: 0.0,
            ..m365_audit::sim::GenerateSpec::new(30, 60, hours(6), hours(1))
        },
    );
    // Both passes go through the same Fluent Bit; the second has the first's events, too.
    pass_in(&fluent_bit.table(), &sim, &tenant, clock.clone()).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    server.start_again().await;
    let outcome = settled(&server, &sim, Duration::from_secs(30)).await;
    let (new, lost) = (sim.truth().events.len() - before, outcome.lost.len());
    println!("NATS away for 10 s: {lost} of {new} events lost\n{}", fluent_bit.log());
    assert!(lost > 0, "Fluent Bit's output `nats` waits now: say so in docs/hosts/README.md");
    sim.stop().await;
}
