//! The `fluent_forward` sink against a strict receiver written from the Forward protocol's specification, version 1,
//! and against a real Fluent Bit where there is one.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use m365_audit::host::{Delivery, Host};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::sink::Written;
use m365_audit::hosts::embedded::{EmbeddedHost, SinkSpec};
use ring::digest::{SHA512, digest};
use rmpv::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::kill::{Verdicts, kill_after_refusals};
use crate::truth::{FastClock, Received, assert_nothing_lost, batch, listener, pass, pass_at, pass_from, retry, sink};

/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const KEY: &str = "a shared key";
const NONCE: &[u8] = b"\x00\xffnonce of sixteen";
const AUTH: &[u8] = b"auth salt";

/// What the receiver does with a frame, by its number.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Ack,
    /// The id of another frame.
    WrongId,
    /// Vector's word for sinks that failed.
    EmptyMap,
    Close,
    Silent,
    /// Takes it, and the acknowledgement is lost.
    TakeAndClose,
}

/// A frame's bytes and how many records it held.
type Frame = (Vec<u8>, usize);

#[derive(Clone)]
struct Receiver {
    mood: Arc<dyn Fn(usize) -> Mood + Send + Sync>,
    received: Received,
    frames: Arc<Mutex<Vec<Frame>>>,
    count: Arc<AtomicUsize>,
    /// What is done with a frame that holds a record whose id ends so.
    poison: Option<(char, Mood)>,
    user: Option<(&'static str, &'static str)>,
    keyed: bool,
    /// Acknowledge only when this many frames wait.
    hold: Arc<tokio::sync::Barrier>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Receiver {
    fn new(mood: impl Fn(usize) -> Mood + Send + Sync + 'static) -> Self {
        Self {
            mood: Arc::new(mood),
            received: Received::default(),
            frames: Arc::default(),
            count: Arc::default(),
            poison: None,
            user: None,
            keyed: false,
            hold: Arc::new(tokio::sync::Barrier::new(1)),
            tls: None,
        }
    }

    async fn listen(&self, port: u16) -> (u16, JoinHandle<()>) {
        let listener = listener(port);
        let port = listener.local_addr().unwrap().port();
        let receiver = self.clone();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let receiver = receiver.clone();
                connections.spawn(async move {
                    match receiver.tls.clone() {
                        None => receiver.serve(tcp).await,
                        Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(tcp).await {
                            Ok(stream) => receiver.serve(stream).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        (port, serving)
    }

    /// `None` when the connection is to be closed.
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        let mut buffer = Vec::new();
        if self.keyed {
            self.shake_hands(&mut stream, &mut buffer).await?;
        }
        loop {
            let (frame, bytes) = next(&mut stream, &mut buffer).await?;
            let number = self.count.fetch_add(1, Ordering::SeqCst);
            let (records, chunk) = self.read(&frame);
            self.frames.lock().unwrap().push((bytes, records.len()));
            let is_poisoned = |end| {
                let id = |r: &serde_json::Value| r["event_id"].as_str().is_some_and(|id| id.ends_with(end));
                records.iter().any(id)
            };
            let mood = match self.poison {
                Some((end, mood)) if is_poisoned(end) => mood,
                _ => (self.mood)(number),
            };
            if matches!(mood, Mood::Ack | Mood::TakeAndClose) {
                self.received.extend(records);
            }
            let chunk = match mood {
                Mood::Ack => chunk?,
                Mood::WrongId => "bm90IHlvdXJzIG5vdCB5bw==".into(),
                Mood::EmptyMap => {
                    stream.write_all(&[0x80]).await.ok()?;
                    return None;
                }
                Mood::Close | Mood::TakeAndClose => return None,
                Mood::Silent => continue,
            };
            self.hold.wait().await;
            let mut out = Vec::new();
            let ack = Value::Map(vec![("ack".into(), chunk.into())]);
            rmpv::encode::write_value(&mut out, &ack).unwrap();
            stream.write_all(&out).await.ok()?;
        }
    }

    /// A frame's records and its chunk; panics on whatever the specification does not allow.
    fn read(&self, frame: &Value) -> (Vec<serde_json::Value>, Option<String>) {
        let parts = frame.as_array().expect("an array");
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0].as_str(), Some("m365.audit"));
        let Value::Binary(entries) = &parts[1] else { panic!("entries are no byte string") };
        let option = |name: &str| {
            parts[2].as_map().expect("options").iter().find(|(k, _)| k.as_str() == Some(name)).map(|(_, v)| v.clone())
        };
        let mut plain = Vec::new();
        match option("compressed") {
            Some(word) => {
                assert_eq!(word.as_str(), Some("gzip"));
                flate2::read::GzDecoder::new(&entries[..]).read_to_end(&mut plain).unwrap();
            }
            None => plain.clone_from(entries),
        }
        let mut rest = &plain[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let entry = rmpv::decode::read_value(&mut rest).unwrap();
            let entry = entry.as_array().expect("an entry");
            assert_eq!(entry.len(), 2);
            let Value::Ext(0, time) = &entry[0] else { panic!("no EventTime: {}", entry[0]) };
            assert_eq!(time.len(), 8);
            records.push(to_json(&entry[1]));
        }
        assert_eq!(option("size").and_then(|v| v.as_u64()), Some(records.len() as u64));
        (records, option("chunk").map(|chunk| chunk.as_str().expect("a text").to_owned()))
    }

    async fn shake_hands(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        buffer: &mut Vec<u8>,
    ) -> Option<()> {
        let auth = if self.user.is_some() { AUTH } else { b"" };
        let options: Vec<(Value, Value)> = vec![
            ("nonce".into(), Value::Binary(NONCE.to_vec())),
            ("auth".into(), Value::Binary(auth.to_vec())),
            ("keepalive".into(), true.into()),
        ];
        send(stream, Value::Array(vec!["HELO".into(), Value::Map(options)])).await?;
        let (ping, _) = next(stream, buffer).await?;
        let ping = ping.as_array().expect("PING").clone();
        assert_eq!((ping.len(), ping[0].as_str()), (6, Some("PING")));
        let host = ping[1].as_str().unwrap();
        let Value::Binary(salt) = &ping[2] else { panic!("salt") };
        let good_key = ping[3].as_str() == Some(&hex(&[salt, host.as_bytes(), NONCE, KEY.as_bytes()]));
        let good_user = match self.user {
            None => ping[4].as_str() == Some("") && ping[5].as_str() == Some(""),
            Some((user, password)) => {
                ping[4].as_str() == Some(user)
                    && ping[5].as_str() == Some(&hex(&[AUTH, user.as_bytes(), password.as_bytes()]))
            }
        };
        let reason = if good_key && good_user { "" } else { "shared_key mismatch" };
        let digest = hex(&[salt, b"receiver", NONCE, KEY.as_bytes()]);
        let good = good_key && good_user;
        send(stream, Value::Array(vec!["PONG".into(), good.into(), reason.into(), "receiver".into(), digest.into()]))
            .await?;
        good.then_some(())
    }
}

fn hex(parts: &[&[u8]]) -> String {
    digest(&SHA512, &parts.concat()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), value: Value) -> Option<()> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, &value).unwrap();
    stream.write_all(&out).await.ok()
}

/// The next value and its bytes; `None` at the end of the connection.
async fn next(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<(Value, Vec<u8>)> {
    loop {
        let mut rest = &buffer[..];
        if !rest.is_empty()
            && let Ok(value) = rmpv::decode::read_value(&mut rest)
        {
            let used = buffer.len() - rest.len();
            return Some((value, buffer.drain(..used).collect()));
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            assert!(buffer.is_empty() || buffer.len() > 1, "a torn frame");
            return None;
        }
    }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil => serde_json::Value::Null,
        Value::Boolean(b) => (*b).into(),
        Value::Integer(n) => n.as_i64().map_or_else(|| n.as_u64().into(), Into::into),
        Value::F64(n) => (*n).into(),
        Value::String(s) => s.as_str().unwrap().into(),
        Value::Array(items) => items.iter().map(to_json).collect(),
        Value::Map(members) => members.iter().map(|(k, v)| (k.as_str().unwrap().to_owned(), to_json(v))).collect(),
        other => panic!("{other:?}"),
    }
}

fn table(servers: &[u16], more: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    format!("type = \"fluent_forward\"\nservers = [{}]\nframe_bytes_max = 65536\n{more}\n", servers.join(", "))
}

/// A receiver that takes everything, and what it got.
pub async fn taking() -> (u16, Received) {
    let receiver = Receiver::new(|_| Mood::Ack);
    (receiver.listen(0).await.0, receiver.received)
}

#[tokio::test]
async fn both_forms_of_a_frame_carry_the_truth() {
    for compression in ["none", "gzip"] {
        let receiver = Receiver::new(|_| Mood::Ack);
        let (port, serving) = receiver.listen(0).await;
        let comparison =
            pass(&table(&[port], &format!("compression = \"{compression}\"")), 12, 40, &receiver.received).await;
        assert!(comparison.is_clean(), "{compression}: {comparison}");
        assert!(receiver.frames.lock().unwrap().iter().all(|(bytes, _)| bytes.len() <= 65_536));
        serving.abort();
    }
}

#[tokio::test]
async fn a_receiver_that_answers_wrongly_at_random_and_is_restarted_loses_nothing() {
    let receiver = Receiver::new(|number| {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let moods = [Mood::WrongId, Mood::EmptyMap, Mood::Close, Mood::TakeAndClose];
        if rng.f32() < 0.3 { moods[rng.usize(..4)] } else { Mood::Ack }
    });
    let (port, mut serving) = receiver.listen(0).await;
    let again = receiver.clone();
    let killer = tokio::spawn(async move {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            serving.abort();
            let _ = (&mut serving).await;
            tokio::time::sleep(Duration::from_millis(40)).await;
            serving = again.listen(port).await.1;
        }
        serving.abort_handle()
    });
    let comparison = pass(&table(&[port], ""), 40, 60, &receiver.received).await;
    assert_nothing_lost(&comparison);
    killer.await.unwrap().abort();
}

#[tokio::test]
async fn a_receiver_that_refuses_for_minutes_gets_everything_afterwards() {
    let clock = FastClock::start();
    let (time, until) = (clock.clone(), clock.monotonic() + Duration::from_secs(180));
    let receiver = Receiver::new(move |_| if time.monotonic() < until { Mood::EmptyMap } else { Mood::Ack });
    let (port, serving) = receiver.listen(0).await;
    let comparison = pass_at(&table(&[port], ""), 12, 40, &receiver.received, clock).await;
    assert!(comparison.is_clean(), "{comparison}");
    serving.abort();
}

#[tokio::test]
async fn the_checkpoint_is_never_ahead_of_the_acknowledgement() {
    let verdicts = Verdicts::default();
    let judge = verdicts.clone();
    let receiver = Receiver::new(move |_| if judge.refuse() { Mood::EmptyMap } else { Mood::Ack });
    let (port, serving) = receiver.listen(0).await;
    kill_after_refusals(&table(&[port], ""), &verdicts, &receiver.received).await;
    serving.abort();
}

/// Every answer that is not the exact id refuses, and the same frame comes again.
#[tokio::test]
async fn whatever_is_not_the_frames_own_id_is_a_refusal() {
    for (mood, why) in [
        (Mood::WrongId, "acknowledged something that was not sent"),
        (Mood::EmptyMap, "could not deliver"),
        (Mood::Close, "closed the connection"),
        (Mood::Silent, "no acknowledgement within 600 s"),
    ] {
        let receiver = Receiver::new(move |number| if number == 0 { mood } else { Mood::Ack });
        let (port, serving) = receiver.listen(0).await;
        let mut sink = sink(&table(&[port], "ack_timeout_secs = 600"), &FastClock::start());
        let group = [batch(&["{\"a\":1}", "{\"b\":[1.5,null,true,{\"c\":\"d\"}]}"])];
        let refused = sink.write(&group).await;
        assert!(matches!(&refused[..], [Written::Unclear(told)] if told.contains(why)), "{refused:?}");
        assert_eq!(sink.write(&group).await, [Written::Delivered]);
        let frames = receiver.frames.lock().unwrap().clone();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0], frames[1], "the same bytes");
        assert_eq!(receiver.received.all()[1], serde_json::json!({ "b": [1.5, null, true, { "c": "d" }] }));
        serving.abort();
    }
}

#[tokio::test]
async fn several_frames_are_under_way_each_on_a_connection_of_its_own() {
    let receiver = Receiver { hold: Arc::new(tokio::sync::Barrier::new(3)), ..Receiver::new(|_| Mood::Ack) };
    let (port, serving) = receiver.listen(0).await;
    let first = sink(&table(&[port], "frames_in_flight_max = 3"), &FastClock::start());
    let mut all = first.beside();
    all.push(first);
    assert_eq!(all.len(), 3);
    for round in 0..2 {
        // None is acknowledged before all are there.
        let groups: Vec<_> = (0..3).map(|n| [batch(&[&format!("{{\"round\":{round},\"n\":{n}}}")])]).collect();
        let writing = all.iter_mut().zip(&groups).map(|(sink, group)| sink.write(group));
        assert_eq!(futures_util::future::join_all(writing).await.concat(), vec![Written::Delivered; 3]);
    }
    assert_eq!(receiver.received.all().len(), 6);
    serving.abort();
}

#[tokio::test]
async fn the_next_server_takes_over() {
    let (down, up) = (Receiver::new(|_| Mood::EmptyMap), Receiver::new(|_| Mood::Ack));
    let (first, serving_first) = down.listen(0).await;
    let (second, serving_second) = up.listen(0).await;
    let unused = test_support::free_port();
    let comparison = pass(&table(&[unused, first, second], ""), 12, 40, &up.received).await;
    assert!(comparison.is_clean(), "{comparison}");
    assert!(down.count.load(Ordering::SeqCst) > 0);
    serving_first.abort();
    serving_second.abort();
}

#[tokio::test]
async fn both_sides_prove_that_they_know_the_key() {
    let (good_key, bad_key) = (format!("shared_key = \"{KEY}\""), "shared_key = \"another\"");
    let user = "username = \"u\"\npassword = \"p\"";
    for (keyed, asks_user, more, why) in [
        (true, false, good_key.clone(), None),
        (true, true, format!("{good_key}\n{user}"), None),
        // A receiver without users takes a client that has one.
        (true, false, format!("{good_key}\n{user}"), None),
        (true, true, good_key.clone(), Some("asks for a user name")),
        (true, false, bad_key.to_owned(), Some("refuses us: shared_key mismatch")),
        (true, false, String::new(), Some("asks for a `shared_key`")),
    ] {
        let user = asks_user.then_some(("u", "p"));
        let receiver = Receiver { keyed, user, ..Receiver::new(|_| Mood::Ack) };
        let (port, serving) = receiver.listen(0).await;
        let mut sink = sink(&table(&[port], &more), &FastClock::start());
        let written = sink.write(&[batch(&["{}"])]).await;
        match why {
            None => assert_eq!(written, [Written::Delivered], "{more}"),
            Some(why) => {
                assert!(
                    matches!(&written[..], [Written::Refused { why: told, .. } | Written::Unclear(told)] if told.contains(why)),
                    "{written:?}"
                );
            }
        }
        serving.abort();
    }
}

#[tokio::test]
async fn tls_is_spoken_with_the_authority_in_the_file_and_no_other() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let receiver = Receiver { tls: Some(Arc::new(tls)), ..Receiver::new(|_| Mood::Ack) };
    let (port, serving) = receiver.listen(0).await;
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
    std::fs::write(&ca, certified.cert.pem()).unwrap();
    std::fs::write(&other, rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap().cert.pem()).unwrap();
    for (file, delivered) in [(&ca, true), (&other, false)] {
        let table = table(&[port], &format!("tls = true\nca_file = \"{}\"", file.display()));
        let mut sink = sink(&table.replace("127.0.0.1", "localhost"), &FastClock::start());
        let written = sink.write(&[batch(&["{}"])]).await;
        assert_eq!(written == [Written::Delivered], delivered, "{written:?}");
    }
    serving.abort();
}

#[tokio::test]
async fn a_record_no_frame_can_hold_is_rejected_and_its_neighbours_are_not() {
    let receiver = Receiver::new(|_| Mood::Ack);
    let (port, serving) = receiver.listen(0).await;
    let mut sink = sink(&table(&[port], ""), &FastClock::start());
    let huge = format!("{{\"x\":\"{}\"}}", "y".repeat(70_000));
    // Doubles take nine bytes where JSON has four: such frames are made smaller, not refused.
    let doubles = format!("{{\"d\":[{}1.5]}}", "1.5,".repeat(4_000));
    let written = sink.write(&[batch(&["{}"]), batch(&[&huge])]).await;
    assert!(
        written.iter().all(|w| matches!(w, Written::TooLarge(why) if why.contains("frame_bytes_max"))),
        "{written:?}"
    );
    assert!(matches!(&sink.write(&[batch(&[doubles.as_str(); 3])]).await[..], [Written::TooLarge(_)]));
    assert_eq!(receiver.received.count(), 0, "nothing is sent for that");
    let clock = FastClock::start();
    let spec = SinkSpec { name: "out".into(), inputs: vec!["s".into()], selection: Selection::default(), sink };
    let host = EmbeddedHost::new(vec![spec], Arc::new(MemoryStore::new()), clock);
    let doubles = doubles.as_str();
    let whole = batch(&["{}", &huge, doubles, doubles, doubles, "{}"]);
    let Delivery::DeliveredExcept(unfit) = host.deliver(whole).await.await else { panic!("all of it") };
    assert_eq!(unfit.iter().map(|unfit| unfit.record).collect::<Vec<_>>(), [1]);
    assert_eq!(receiver.received.count(), 5);
    serving.abort();
}

/// The protocol has no word for a record that is never taken: one that is left unacknowledged while others are not.
#[tokio::test]
async fn a_record_a_receiver_never_acknowledges_is_set_aside_and_its_neighbours_arrive() {
    for mood in [Mood::EmptyMap, Mood::Close] {
        let receiver = Receiver { poison: Some(('c', mood)), ..Receiver::new(|_| Mood::Ack) };
        let (port, serving) = receiver.listen(0).await;
        let comparison = pass(&table(&[port], ""), 6, 20, &receiver.received).await;
        assert!(!comparison.lost.is_empty(), "{comparison}");
        assert!(comparison.lost.iter().all(|id| id.ends_with('c')), "{comparison}");
        assert!(comparison.duplicated.is_empty() && comparison.unexpected.is_empty(), "{comparison}");
        serving.abort();
    }
}

/// Nor does a start or `state retry` wait for it.
#[tokio::test]
async fn a_record_a_receiver_never_acknowledges_is_offered_again_and_holds_nothing_up() {
    let receiver = Receiver { poison: Some(('c', Mood::EmptyMap)), ..Receiver::new(|_| Mood::Ack) };
    let (port, serving) = receiver.listen(0).await;
    let taking = Receiver { poison: None, ..receiver.clone() };
    let (other_port, other_serving) = taking.listen(0).await;
    let clock = FastClock::start();
    let (sim, tenant) = crate::truth::tenant(clock.clone(), 6, 20).await;
    let store = Arc::new(MemoryStore::new());
    let (refusing, taking) = (table(&[port], ""), table(&[other_port], ""));
    let pass = |table| pass_from(store.clone(), "", table, &sim, &tenant, clock.clone());
    pass(&refusing).await;
    let lost = crate::truth::compare(&sim, receiver.received.all()).lost.len();
    assert!(lost > 0);
    tokio::time::timeout(PATIENCE, pass(&refusing)).await.expect("the pass ends");
    let retried = retry(&store, &refusing, &tenant, clock.clone()).await;
    assert_eq!((retried.delivered, retried.left.len()), (0, lost), "{retried:?}");
    assert!(retried.left.iter().all(|left| !left.why.starts_with("not taken now")), "{retried:?}");
    tokio::time::timeout(PATIENCE, pass(&taking)).await.expect("the pass ends");
    let comparison = crate::truth::compare(&sim, receiver.received.all());
    assert!(comparison.is_clean(), "{comparison}");
    serving.abort();
    other_serving.abort();
}

#[tokio::test]
async fn a_real_fluent_bit_receives_the_truth_through_kills() {
    let Some(program) = test_support::program("fluent-bit") else { return };
    let dir = tempfile::tempdir().unwrap();
    let port = test_support::free_port();
    let start = || {
        tokio::process::Command::new(&program)
            .args(["-q", "-c", &dir.path().join("f.conf").display().to_string()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let config = format!(
        "[SERVICE]\n  flush 1\n  grace 2\n  storage.path {d}/chunks\n  storage.sync full\n\
         [INPUT]\n  name forward\n  listen 127.0.0.1\n  port {port}\n  storage.type filesystem\n\
         [OUTPUT]\n  name file\n  match *\n  path {d}\n  file out\n  format plain\n",
        d = dir.path().display(),
    );
    std::fs::write(dir.path().join("f.conf"), config).unwrap();
    let mut child = start();
    let clock = FastClock::start();
    let (sim, tenant) = crate::truth::tenant(clock.clone(), 30, 60).await;
    let table = table(&[port], "ack_timeout_secs = 600");
    let killer = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            child.kill().await.unwrap();
            child = start();
        }
    };
    let passing = crate::truth::pass_in(&table, &sim, &tenant, clock.clone());
    tokio::join!(killer, passing);
    // Its output runs once a second.
    let mut comparison = None;
    for _ in 0..100 {
        let text = std::fs::read_to_string(dir.path().join("out")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let found = crate::truth::compare(&sim, lines.collect());
        let complete = found.lost.is_empty();
        comparison = Some(found);
        if complete {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_nothing_lost(&comparison.unwrap());
    child.kill().await.unwrap();
}
