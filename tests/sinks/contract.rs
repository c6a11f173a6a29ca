//! What every `Sink` promises, and each of ours keeps: one suite for all. A new sink adds a line to [`subjects`].

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::host::Batch;
use m365_audit::hosts::embedded::sink::{Sink, Written};
use m365_audit::hosts::file::{FILE_MODE, FileSink};
use m365_audit::hosts::stdout::StdoutSink;
use tokio::net::{TcpListener, TcpStream};

use crate::tls::KINDS;
use crate::truth::{Received, batch, sink};

/// Patience, not a claim.
const TIME_MAX: Duration = Duration::from_secs(60);

/// A sink and the destination it writes to.
struct Subject {
    name: String,
    sink: Box<dyn Sink>,
    /// The ids of the records that have arrived.
    arrived: Box<dyn Fn() -> Vec<u64>>,
    /// Sends the destination away, where it takes nothing, and back; `None` where a test cannot have that.
    away: Option<Box<dyn Fn(bool)>>,
    _dir: Option<tempfile::TempDir>,
}

/// What reads it takes nothing while it is set.
fn switch(away: Arc<AtomicBool>) -> Option<Box<dyn Fn(bool)>> {
    Some(Box::new(move |is_away| away.store(is_away, Ordering::SeqCst)))
}

fn ids(records: impl IntoIterator<Item = serde_json::Value>) -> Vec<u64> {
    records.into_iter().map(|record| record["event_id"].as_str().unwrap().parse().unwrap()).collect()
}

fn ids_of_lines(text: &[u8]) -> Vec<u64> {
    assert!(text.is_empty() || text.ends_with(b"\n"), "it ends in half a line");
    ids(text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap()))
}

/// In front of a receiver: while it is away, it closes every connection and takes no other.
async fn gate(backend: u16, away: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if away.load(Ordering::SeqCst) {
                continue;
            }
            tokio::spawn(async move {
                let mut behind = TcpStream::connect(("127.0.0.1", backend)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    port
}

/// Standard output that is full while it is away.
#[derive(Clone, Default)]
struct Pipe {
    written: Arc<Mutex<Vec<u8>>>,
    away: Arc<AtomicBool>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.away.load(Ordering::SeqCst) {
            return Err(ErrorKind::WouldBlock.into());
        }
        // In parts, as a pipe takes them.
        let part = bytes.len().div_ceil(2);
        self.written.lock().unwrap().extend_from_slice(&bytes[..part]);
        Ok(part)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Every sink there is, with a destination that takes everything.
async fn subjects() -> Vec<Subject> {
    let clock: Arc<dyn Clock> = SystemClock::new();
    let mut subjects = Vec::new();
    for kind in KINDS {
        let (backend, received): (u16, Received) = kind.receiver().await;
        let away = Arc::new(AtomicBool::new(false));
        let port = gate(backend, away.clone()).await;
        subjects.push(Subject {
            name: format!("{kind:?}"),
            sink: sink(&kind.table("http", &format!("127.0.0.1:{port}"), ""), &clock),
            arrived: Box::new(move || ids(received.all())),
            away: switch(away),
            _dir: None,
        });
    }
    #[cfg(feature = "kafka")]
    {
        let cluster = crate::kafka::Cluster::start();
        let (table, taken) = (cluster.table("timeout_secs = 5"), cluster.clone());
        subjects.push(Subject {
            name: "kafka".into(),
            sink: sink(&table, &clock),
            // Nobody can look while it is away.
            arrived: Box::new(move || match taken.is_away() {
                true => Vec::new(),
                false => ids(taken.read().into_iter().map(|message| message.record)),
            }),
            away: Some(Box::new(move |is_away| cluster.set_away(is_away))),
            _dir: None,
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.ndjson");
    subjects.push(Subject {
        name: "file".into(),
        sink: Box::new(FileSink::open(&path, FILE_MODE).unwrap().into_sink()),
        arrived: Box::new(move || ids_of_lines(&std::fs::read(&path).unwrap())),
        away: None,
        _dir: Some(dir),
    });
    let pipe = Pipe::default();
    let (written, away) = (pipe.written.clone(), pipe.away.clone());
    subjects.push(Subject {
        name: "stdout".into(),
        sink: Box::new(StdoutSink::new(pipe).into_sink()),
        arrived: Box::new(move || ids_of_lines(&written.lock().unwrap())),
        away: switch(away),
        _dir: None,
    });
    subjects
}

/// Batches of one to three records, each record with an id of its own.
fn group(first: u64, batches: u64) -> Vec<Batch> {
    let mut id = first;
    let batch = |n: u64| {
        let lines: Vec<String> = (0..=n % 3)
            .map(|_| {
                id += 1;
                format!("{{\"event_id\":\"{id}\"}}")
            })
            .collect();
        batch(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    };
    (0..batches).map(batch).collect()
}

fn ids_of(group: &[Batch]) -> Vec<u64> {
    group.iter().flat_map(|batch| ids_of_lines(&batch.ndjson())).collect()
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn each_batch_of_a_group_has_its_answer_and_what_is_delivered_has_arrived_once() {
    for mut subject in subjects().await {
        let name = &subject.name;
        let bounds = subject.sink.bounds();
        assert!(bounds.bytes > 0 && bounds.records > 0 && bounds.batches > 0, "{name}: {bounds:?}");
        let mut sent = Vec::new();
        for (first, batches) in [(0, 1), (100, 2), (200, 7)] {
            let group = group(first, batches);
            let written = subject.sink.write(&group).await;
            assert_eq!(written, vec![Written::Delivered; group.len()], "{name}");
            sent.extend(ids_of(&group));
            assert_eq!(sorted((subject.arrived)()), sent, "{name}");
        }
        subject.sink.look().await;
        subject.sink.close().await;
        assert_eq!(sorted((subject.arrived)()), sent, "{name}: after its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_destination_that_is_away_did_not_take_is_refused_and_arrives_once_when_it_comes_again() {
    for mut subject in subjects().await {
        let Some(set_away) = &subject.away else { continue };
        let name = &subject.name;
        set_away(true);
        let group = group(0, 3);
        for _ in 0..2 {
            let written = subject.sink.write(&group).await;
            assert_eq!(written.len(), group.len(), "{name}");
            for written in written {
                // Never the records' fault, never for good: the worker offers them again.
                let passes = matches!(&written, Written::Refused { .. } | Written::Unclear(_));
                assert!(passes && written.why().is_some_and(|why| !why.is_empty()), "{name}: {written:?}");
            }
            assert_eq!((subject.arrived)(), [0; 0], "{name}");
        }
        set_away(false);
        // A client may wait a moment before it connects again; what was not taken is offered until then.
        let (mut left, begun) = (group.clone(), Instant::now());
        while !left.is_empty() {
            assert!(begun.elapsed() < TIME_MAX, "{name}");
            let written = subject.sink.write(&left).await;
            let mut delivered = written.iter().map(|written| *written == Written::Delivered);
            left.retain(|_| !delivered.next().unwrap());
        }
        assert_eq!(sorted((subject.arrived)()), ids_of(&group), "{name}");
        subject.sink.close().await;
    }
}

/// Sinks that send side by side are given groups of their own; together they are one sink.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_side_by_side_arrives_once() {
    for subject in subjects().await {
        let mut lanes = subject.sink.beside();
        lanes.insert(0, subject.sink);
        let mut sending = Vec::new();
        let mut sent = BTreeMap::new();
        for (number, mut lane) in lanes.into_iter().enumerate() {
            let group = group(100 * number as u64, 4);
            sent.extend(ids_of(&group).into_iter().map(|id| (id, 1)));
            sending.push(tokio::spawn(async move {
                let written = lane.write(&group).await;
                lane.close().await;
                written
            }));
        }
        for lane in sending {
            assert_eq!(lane.await.unwrap(), vec![Written::Delivered; 4], "{}", subject.name);
        }
        let mut arrived = BTreeMap::new();
        for id in (subject.arrived)() {
            *arrived.entry(id).or_insert(0) += 1;
        }
        assert_eq!(arrived, sent, "{}", subject.name);
    }
}
