//! The embedded host from outside: several sinks on one source, stopping, replacing, real pipes, real processes,
//! a real full disk.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use m365_audit::clock::{Clock, SystemClock, TestClock};
use m365_audit::host::{
    Batch, BatchBuilder, Delivery, DeliveryTicket, Expected, Health, Host, Op, StateError, StateStore, Unfit,
};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::sink::{GroupBounds, QUEUE_BYTES_MAX, Sink, Written};
use m365_audit::hosts::embedded::store::{LOCK_FILE, STATE_FILE, SqliteStore};
use m365_audit::hosts::embedded::{EmbeddedHost, SinkSpec};
use m365_audit::hosts::file::{FILE_MODE, FileSink};
use m365_audit::hosts::stdout::StdoutSink;
use m365_audit::model::{Actionable, ContentType, Timestamp};
use m365_audit::severity::Severity;
use test_support::Mounted;
use tokio::sync::{Semaphore, mpsc, oneshot};

const GRACE: Duration = Duration::from_secs(5);

fn batch_for(source: &str, lines: &[&str]) -> Batch {
    let mut builder = BatchBuilder::default();
    for line in lines {
        builder.push_with(|out| {
            out.extend_from_slice(line.as_bytes());
            Some((Timestamp::UNIX_EPOCH, Severity::Info))
        });
    }
    builder.finish(source.into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
}

fn batch(lines: &[&str]) -> Batch {
    batch_for("contoso", lines)
}

fn spec(name: &str, sink: impl Sink) -> SinkSpec {
    let (inputs, selection) = (vec!["contoso".into()], Selection::default());
    SinkSpec { name: name.into(), inputs, selection, sink: Box::new(sink) }
}

fn file_sink(path: &Path) -> SinkSpec {
    spec("file", FileSink::open(path, FILE_MODE).unwrap().into_sink())
}

fn test_clock() -> Arc<TestClock> {
    Arc::new(TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()))
}

fn host(sinks: Vec<SinkSpec>, clock: Arc<impl Clock>) -> EmbeddedHost {
    EmbeddedHost::new(sinks, Arc::new(MemoryStore::new()), clock)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A sink that notes what it is given and answers from a script, then with `Delivered`.
#[derive(Clone, Default)]
struct Recorder {
    got: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<VecDeque<Written>>>,
    /// When set, each write takes one permit first.
    gate: Option<Arc<Semaphore>>,
}

impl Recorder {
    fn answering(script: impl IntoIterator<Item = Written>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), ..Self::default() }
    }

    fn gated() -> Self {
        Self { gate: Some(Arc::new(Semaphore::new(0))), ..Self::default() }
    }

    fn open(&self) {
        self.gate.as_ref().unwrap().add_permits(1 << 20);
    }

    fn got(&self) -> Vec<String> {
        self.got.lock().unwrap().clone()
    }
}

#[async_trait]
impl Sink for Recorder {
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let answer = |batch: &Batch| {
            let answer = self.script.lock().unwrap().pop_front().unwrap_or(Written::Delivered);
            if answer == Written::Delivered {
                self.got.lock().unwrap().push(String::from_utf8(batch.ndjson().to_vec()).unwrap());
            }
            answer
        };
        batches.iter().map(answer).collect()
    }
}

/// Lets every ready task run; nothing here depends on time.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Half of what standard output refused may be in the pipe: the rest has to come before anything else.
#[tokio::test]
async fn a_line_that_was_half_written_is_finished_before_another_begins() {
    struct Full {
        room: Arc<Mutex<usize>>,
        out: Arc<Mutex<Vec<u8>>>,
    }
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let n = bytes.len().min(*room);
            if n == 0 {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            *room -= n;
            self.out.lock().unwrap().extend_from_slice(&bytes[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (room, out) = (Arc::new(Mutex::new(3)), Arc::new(Mutex::new(Vec::new())));
    let sink = StdoutSink::new(Full { room: room.clone(), out: out.clone() }).into_sink();
    let host = host(vec![spec("out", sink)], SystemClock::new());
    let first = host.deliver(batch(&["aaaaaa"])).await;
    let mut others = Vec::new();
    for n in 0..20 {
        others.push(host.deliver(batch(&[&format!("b{n}")])).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        *room.lock().unwrap() += 2;
    }
    *room.lock().unwrap() += 1000;
    assert_eq!(first.await, Delivery::Delivered);
    for ticket in others {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
    let text = String::from_utf8(out.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().next(), Some("aaaaaa"), "{text}");
    assert_eq!(text.lines().count(), 21, "{text}");
    assert!(text.lines().skip(1).all(|line| line.starts_with('b')), "{text}");
}

#[tokio::test]
async fn a_ticket_resolves_when_all_sinks_of_its_source_have_confirmed() {
    let (fast, slow, other) = (Recorder::default(), Recorder::gated(), Recorder::default());
    let elsewhere = SinkSpec { inputs: vec!["fabrikam".into()], ..spec("other", other.clone()) };
    let host = host(vec![spec("fast", fast.clone()), spec("slow", slow.clone()), elsewhere], test_clock());
    let mut ticket = host.deliver(batch(&["1"])).await;
    settle().await;
    assert_eq!(fast.got(), ["1\n"]);
    assert!((&mut ticket).now_or_never().is_none());
    slow.open();
    assert_eq!(ticket.await, Delivery::Delivered);
    assert_eq!((slow.got().len(), other.got().len()), (1, 0));
}

#[tokio::test]
async fn a_batch_of_a_source_without_a_sink_is_never_delivered() {
    let host = host(vec![spec("out", Recorder::default())], test_clock());
    assert!(matches!(host.deliver(batch_for("stranger", &["1"])).await.await, Delivery::Refused(_)));
}

#[tokio::test]
async fn passing_trouble_is_tried_again_until_it_passes() {
    let clock = test_clock();
    let sink = Recorder::answering((0..50).map(|_| Written::refused("disk full")));
    let host = host(vec![spec("out", sink.clone())], clock.clone());
    let ticket = host.deliver(batch(&["1"])).await;
    settle().await;
    let report = host.report();
    assert!(matches!(&report.borrow().sinks["out"].health, Health::Degraded { why, .. } if why == "disk full"));
    for _ in 0..50 {
        assert!(sink.got().is_empty());
        assert!(clock.advance_to_next_sleeper().is_some_and(|pause| pause <= Duration::from_secs(60)));
        settle().await;
    }
    assert_eq!(ticket.await, Delivery::Delivered);
    assert_eq!(sink.got(), ["1\n"]);
    assert_eq!(report.borrow().sinks["out"].health, Health::Healthy);
}

/// Rejects whatever holds one of its records, and notes what it took.
#[derive(Clone)]
struct Picky {
    but: &'static [&'static str],
    got: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Sink for Picky {
    fn bounds(&self) -> GroupBounds {
        GroupBounds { batches: 1, ..GroupBounds::default() }
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let text = String::from_utf8(batches[0].ndjson().to_vec()).unwrap();
        if text.lines().any(|line| self.but.contains(&line)) {
            return vec![Written::Rejected("no".into())];
        }
        self.got.lock().unwrap().push(text);
        vec![Written::Delivered]
    }
}

/// Lets time pass until the ticket is answered.
async fn answer(ticket: DeliveryTicket, clock: &TestClock) -> Delivery {
    let mut ticket = ticket;
    for _ in 0..200 {
        settle().await;
        if let Some(delivery) = (&mut ticket).now_or_never() {
            return delivery;
        }
        clock.advance_to_next_sleeper();
    }
    panic!("no answer");
}

#[tokio::test]
async fn of_a_batch_that_a_sink_rejects_only_the_record_to_blame_is_named_and_the_others_come_once() {
    let clock = test_clock();
    let good = Recorder::default();
    let picky = Picky { but: &["2"], got: Arc::default() };
    let other = Picky { but: &["2", "4"], got: Arc::default() };
    let sinks = vec![spec("good", good.clone()), spec("picky", picky.clone()), spec("other", other.clone())];
    let host = host(sinks, clock.clone());
    let ticket = host.deliver(batch(&["1", "2", "3", "4", "5"])).await;
    let unfit = |record, why: &str| Unfit { record, why: why.into() };
    let both = "sink `picky`: no; sink `other`: no";
    let Delivery::DeliveredExcept(mut named) = answer(ticket, &clock).await else { panic!("all of it") };
    named[0].why = both.into();
    assert_eq!(named, [unfit(1, both), unfit(3, "sink `other`: no")]);
    assert_eq!(good.got(), ["1\n2\n3\n4\n5\n"]);
    let sorted = |sink: &Picky| {
        let mut got: Vec<String> = sink.got.lock().unwrap().concat().lines().map(str::to_owned).collect();
        got.sort();
        got
    };
    assert_eq!(sorted(&picky), ["1", "3", "4", "5"]);
    assert_eq!(sorted(&other), ["1", "3", "5"]);
}

/// A batch that comes again for a sink that was away is not forgotten to have a record that another will never take.
#[tokio::test]
async fn what_one_sink_will_never_take_is_remembered_while_another_is_away() {
    let clock = test_clock();
    let picky = Picky { but: &["2"], got: Arc::default() };
    let host = host(vec![spec("picky", picky.clone()), spec("away", Recorder::gated())], clock.clone());
    let whole = batch(&["1", "2", "3"]);
    let ticket = host.deliver(whole.clone()).await;
    for _ in 0..50 {
        settle().await;
        clock.advance_to_next_sleeper();
    }
    let stopping = host.stop_sink("away", Duration::ZERO);
    stopping.await;
    assert!(matches!(answer(ticket, &clock).await, Delivery::Refused(_)));
    host.put_sink(spec("away", Recorder::default()), GRACE).await;
    let again = host.deliver(whole).await;
    let Delivery::DeliveredExcept(unfit) = answer(again, &clock).await else { panic!("it is forgotten") };
    assert_eq!(unfit, [Unfit { record: 1, why: "sink `picky`: no".into() }]);
    assert_eq!(picky.got.lock().unwrap().concat().lines().count(), 2, "and nothing is sent twice");
}

#[tokio::test]
async fn a_slow_sink_sets_the_pace() {
    let (fast, slow) = (Recorder::default(), Recorder::gated());
    let host = Arc::new(host(vec![spec("fast", fast.clone()), spec("slow", slow.clone())], test_clock()));
    let line = "x".repeat(1 << 20);
    let offered = 3 * QUEUE_BYTES_MAX / line.len();
    let accepted = Arc::new(Mutex::new(Vec::<DeliveryTicket>::new()));
    let source = tokio::spawn({
        let (host, accepted) = (host.clone(), accepted.clone());
        async move {
            for _ in 0..offered {
                let ticket = host.deliver(batch(&[&line])).await;
                accepted.lock().unwrap().push(ticket);
            }
        }
    });
    settle().await;
    let queued = accepted.lock().unwrap().len();
    assert!((8..=16).contains(&queued), "a sink that takes nothing accepted {queued} batches of 1 MiB");
    slow.open();
    source.await.unwrap();
    let tickets = std::mem::take(&mut *accepted.lock().unwrap());
    for ticket in tickets {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
    assert_eq!((fast.got().len(), slow.got().len()), (offered, offered));
}

/// A sink that writes several groups at once; the test answers each.
#[derive(Clone)]
struct Several {
    at_once: usize,
    bounds: GroupBounds,
    writes: mpsc::UnboundedSender<(String, oneshot::Sender<Written>)>,
}

#[async_trait]
impl Sink for Several {
    fn bounds(&self) -> GroupBounds {
        self.bounds
    }

    fn beside(&self) -> Vec<Box<dyn Sink>> {
        (1..self.at_once).map(|_| Box::new(self.clone()) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let (answer, answered) = oneshot::channel();
        let lines: Vec<String> = batches.iter().map(|b| String::from_utf8(b.ndjson().to_vec()).unwrap()).collect();
        self.writes.send((lines.concat().replace('\n', " ").trim_end().into(), answer)).unwrap();
        vec![answered.await.unwrap(); batches.len()]
    }
}

/// The writes begun since it was asked last.
async fn begun(
    writes: &mut mpsc::UnboundedReceiver<(String, oneshot::Sender<Written>)>,
) -> Vec<(String, oneshot::Sender<Written>)> {
    settle().await;
    std::iter::from_fn(|| writes.try_recv().ok()).collect()
}

#[tokio::test]
async fn groups_are_written_side_by_side_and_filled_but_not_over_the_bound() {
    let (sender, mut writes) = mpsc::unbounded_channel();
    let age = Duration::from_secs(1);
    let sink = Several {
        at_once: 2,
        bounds: GroupBounds { bytes: 8, records: 3, age, ..GroupBounds::default() },
        writes: sender,
    };
    let clock = test_clock();
    let host = host(vec![spec("out", sink)], clock.clone());
    let mut tickets = Vec::new();
    for lines in [&["1", "2"][..], &["3"], &["4"], &["55555", "6"], &["7"], &["8"]] {
        tickets.push(host.deliver(batch(lines)).await);
    }
    // By records; by bytes, with a batch that would not fit left for the next; no third beside two.
    let first = begun(&mut writes).await;
    assert_eq!(first.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["1 2 3", "4"]);
    for (_, answer) in first {
        answer.send(Written::Delivered).unwrap();
    }
    // The one that is not full waits for others, until none comes for a while.
    let second = begun(&mut writes).await;
    assert_eq!(second.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["55555 6"]);
    clock.advance(age / 10 - Duration::from_millis(1));
    assert!(begun(&mut writes).await.is_empty());
    clock.advance(Duration::from_millis(1));
    let third = begun(&mut writes).await;
    assert_eq!(third.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["7 8"]);
    for (_, answer) in second.into_iter().chain(third) {
        answer.send(Written::Delivered).unwrap();
    }
    for ticket in tickets {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
}

#[tokio::test]
async fn a_group_to_which_batches_keep_coming_waits_no_longer_than_its_age() {
    let (sender, mut writes) = mpsc::unbounded_channel();
    let age = Duration::from_secs(1);
    let bounds = GroupBounds { age, ..GroupBounds::default() };
    let clock = test_clock();
    let host = host(vec![spec("out", Several { at_once: 1, bounds, writes: sender })], clock.clone());
    let mut tickets = Vec::new();
    for _ in 0..20 {
        tickets.push(host.deliver(batch(&["1"])).await);
        assert!(begun(&mut writes).await.is_empty());
        clock.advance(age / 20);
    }
    let [(text, answer)] = begun(&mut writes).await.try_into().unwrap();
    assert_eq!(text.split(' ').count(), 20);
    answer.send(Written::Delivered).unwrap();
    for ticket in tickets {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
}

#[tokio::test]
async fn a_refusal_holds_up_every_write_for_as_long_as_the_destination_asks() {
    let (sender, mut writes) = mpsc::unbounded_channel();
    let bounds = GroupBounds { records: 1, ..GroupBounds::default() };
    let clock = test_clock();
    let host = host(vec![spec("out", Several { at_once: 2, bounds, writes: sender })], clock.clone());
    let mut tickets = Vec::new();
    for line in ["1", "2", "3"] {
        tickets.push(host.deliver(batch(&[line])).await);
    }
    let [(_, one), (_, two)] = begun(&mut writes).await.try_into().unwrap();
    let busy = Written::Refused { why: "busy".into(), retry_after: Some(Duration::from_secs(90)) };
    one.send(busy.clone()).unwrap();
    settle().await;
    two.send(Written::refused("no answer")).unwrap();
    for _ in 0..3 {
        clock.advance(Duration::from_millis(29_999));
        assert!(begun(&mut writes).await.is_empty());
    }
    clock.advance(Duration::from_millis(3));
    // One at first, whether it is taken.
    let [(text, one)] = begun(&mut writes).await.try_into().unwrap();
    let report = host.report();
    let is_healthy = || report.borrow().sinks["out"].health == Health::Healthy;
    assert!(!is_healthy());
    one.send(Written::Delivered).unwrap();
    let mut texts = vec![text];
    let others = begun(&mut writes).await;
    assert_eq!(others.len(), 2, "then as many as there may be");
    for (text, answer) in others {
        // It takes records again, so that those refused while it took none count as never sent.
        texts.push(text);
        answer.send(Written::Delivered).unwrap();
        settle().await;
    }
    texts.sort();
    assert_eq!(texts, ["1", "2", "3"]);
    assert!(is_healthy());
    for ticket in tickets {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
}

#[tokio::test]
async fn stopping_writes_what_is_queued_and_refuses_what_cannot_be_written_in_time() {
    let clock = test_clock();
    let (fast, stuck) = (Recorder::default(), Recorder::gated());
    let host = host(vec![spec("fast", fast.clone()), spec("stuck", stuck.clone())], clock.clone());
    let tickets = [host.deliver(batch(&["1"])).await, host.deliver(batch(&["2"])).await];
    let mut stop = Box::pin(host.shutdown(GRACE));
    assert!((&mut stop).now_or_never().is_none());
    settle().await;
    clock.advance(GRACE);
    stop.await;
    for ticket in tickets {
        assert!(matches!(ticket.await, Delivery::Refused(_)));
    }
    assert_eq!(fast.got(), ["1\n", "2\n"]);
    assert!(matches!(host.deliver(batch(&["3"])).await.await, Delivery::Refused(_)));
}

#[tokio::test]
async fn a_sink_that_is_replaced_refuses_meanwhile_and_the_others_go_on() {
    let (kept, old, new) = (Recorder::default(), Recorder::default(), Recorder::default());
    let host = host(vec![spec("kept", kept.clone()), spec("changed", old.clone())], test_clock());
    assert_eq!(host.deliver(batch(&["1"])).await.await, Delivery::Delivered);
    host.stop_sink("changed", GRACE).await;
    let again = batch(&["2"]);
    assert!(matches!(host.deliver(again.clone()).await.await, Delivery::Refused(_)));
    host.put_sink(spec("changed", new.clone()), GRACE).await;
    assert_eq!(host.deliver(again).await.await, Delivery::Delivered);
    assert_eq!(kept.got(), ["1\n", "2\n"]);
    assert_eq!(old.got(), ["1\n"]);
    assert_eq!(new.got(), ["2\n"]);
    host.remove_sink("kept", GRACE).await;
    host.set_inputs("changed", vec!["fabrikam".into()]);
    assert_eq!(host.deliver(batch_for("fabrikam", &["3"])).await.await, Delivery::Delivered);
    assert!(matches!(host.deliver(batch(&["4"])).await.await, Delivery::Refused(_)));
}

struct Panicking;

#[async_trait]
impl Sink for Panicking {
    async fn write(&mut self, _: &[Batch]) -> Vec<Written> {
        panic!("a bug in a sink")
    }
}

#[tokio::test]
async fn a_sink_that_panics_confirms_nothing_and_stops_the_host() {
    let host = host(vec![spec("bad", Panicking)], test_clock());
    assert!(matches!(host.deliver(batch(&["1"])).await.await, Delivery::Refused(_)));
    assert_eq!(host.closed().await.name, "bad");
    assert!(matches!(host.deliver(batch(&["2"])).await.await, Delivery::Refused(_)));
}

#[tokio::test]
async fn a_closed_pipe_refuses_the_batch_and_asks_the_host_to_stop() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let host = host(vec![spec("out", StdoutSink::new(writer).into_sink())], SystemClock::new());
    assert_eq!(host.deliver(batch(&["1"])).await.await, Delivery::Delivered);
    let mut line = [0; 2];
    reader.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"1\n");
    assert!(host.closed().now_or_never().is_none());
    drop(reader);
    assert!(matches!(host.deliver(batch(&["2"])).await.await, Delivery::Refused(_)));
    assert_eq!(host.closed().await.name, "out");
    host.shutdown(GRACE).await;
}

#[tokio::test]
async fn a_pipe_nobody_reads_is_back_pressure_and_does_not_keep_the_host_from_stopping() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let clock = test_clock();
    let host = host(vec![spec("out", StdoutSink::new(writer).into_sink())], clock.clone());
    let long = "x".repeat(1 << 20);
    let mut ticket = host.deliver(batch(&[&long])).await;
    settle().await;
    assert!((&mut ticket).now_or_never().is_none());
    let mut stop = Box::pin(host.shutdown(GRACE));
    assert!((&mut stop).now_or_never().is_none());
    clock.advance(GRACE);
    stop.await;
    assert!(matches!(ticket.await, Delivery::Refused(_)));
    // The thread ends with its write, and the pipe closes behind it.
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), long.len() + 1);
}

#[tokio::test]
async fn a_file_sink_that_is_stopped_lets_go_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.ndjson");
    let host = host(vec![file_sink(&path)], SystemClock::new());
    let mut tickets = Vec::new();
    for n in 0..100 {
        tickets.push(host.deliver(batch(&[&n.to_string()])).await);
    }
    for ticket in tickets {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
    host.stop_sink("file", GRACE).await;
    host.put_sink(file_sink(&path), GRACE).await;
    assert_eq!(host.deliver(batch(&["100"])).await.await, Delivery::Delivered);
    let expected: String = (0..=100).map(|n| format!("{n}\n")).collect();
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
}

#[tokio::test]
async fn health_is_told_with_its_reason_and_since_when() {
    let clock = test_clock();
    let host = host(vec![], clock.clone());
    host.health("contoso", Health::Healthy);
    clock.advance(Duration::from_secs(60));
    host.health("contoso", Health::Failed { why: "no permission".into() });
    clock.advance(Duration::from_secs(60));
    host.health("contoso", Health::Failed { why: "still no permission".into() });
    let report = host.report().borrow().clone();
    assert_eq!(report.sources["contoso"].health, Health::Failed { why: "still no permission".into() });
    assert_eq!(report.sources["contoso"].since.to_string(), "2026-05-01T00:01:00Z");
    host.forget_source("contoso");
    assert!(host.report().borrow().sources.is_empty());
}

#[tokio::test]
async fn a_sink_that_hangs_is_told_with_the_age_until_its_write_ends() {
    let (slow, fast) = (Recorder::gated(), Recorder::default());
    let clock = test_clock();
    let host = host(vec![spec("slow", slow.clone()), spec("fast", fast)], clock.clone());
    let report = host.report();
    let reason = || match &report.borrow().sinks["slow"].health {
        Health::Healthy => None,
        Health::Degraded { why, .. } => Some(why.clone()),
        other => panic!("{other:?}"),
    };
    let first = host.deliver(batch(&["1"])).await;
    settle().await;
    let mut rest = Vec::new();
    for line in ["2", "3"] {
        rest.push(host.deliver(batch(&[line])).await);
    }
    settle().await;
    clock.advance(Duration::from_secs(29));
    settle().await;
    assert_eq!(reason(), None);
    for (step, age) in [(6, "35 s"), (10, "45 s"), (10, "55 s")] {
        clock.advance(Duration::from_secs(step));
        settle().await;
        let why = reason().unwrap();
        assert!(why.starts_with("sink-slow: a request has been waiting") && why.contains(age), "{why}");
        assert!(why.contains("(hint: "), "{why}");
    }
    assert_eq!(report.borrow().sinks["fast"].health, Health::Healthy);
    slow.open();
    assert_eq!(first.await, Delivery::Delivered);
    for ticket in rest {
        assert_eq!(ticket.await, Delivery::Delivered);
    }
    settle().await;
    assert_eq!(reason(), None);
}

#[tokio::test]
async fn a_blocking_sink_that_hangs_in_the_file_system_is_told_and_refused_at_a_stop() {
    // A pipe that nobody reads stands for a disk that does not answer: the write does not come back.
    let (reader, writer) = std::io::pipe().unwrap();
    let clock = test_clock();
    let host = host(vec![spec("pipe", StdoutSink::new(writer).into_sink())], clock.clone());
    let ticket = host.deliver(batch(&[&"x".repeat(2 << 20)])).await;
    settle().await;
    clock.advance(Duration::from_secs(10));
    let mut report = host.report();
    let is_told = |why: &str| why.starts_with("sink-slow: ");
    report.wait_for(|r| matches!(&r.sinks["pipe"].health, Health::Degraded { why, .. } if is_told(why))).await.unwrap();
    let stopped = async {
        loop {
            tokio::task::yield_now().await;
            clock.advance(Duration::from_secs(1));
        }
    };
    tokio::select! {
        () = host.shutdown(GRACE) => {}
        () = stopped => unreachable!(),
    }
    assert!(matches!(ticket.await, Delivery::Refused(_)));
    drop(reader);
}

// ------------------------------------------------------------------------------- other processes, other disks

/// One of the `child_*` tests below, to be run in a process of its own.
fn child(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    // As the runner names it: without the name of its program.
    let (_, module) = module_path!().split_once("::").unwrap();
    command.args(["--exact", &format!("{module}::{name}"), "--ignored", "--nocapture"]);
    command.env("M365_TEST_DIR", dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// `None` when a child test is run by hand: there is nothing for it to do.
fn test_dir() -> Option<PathBuf> {
    std::env::var_os("M365_TEST_DIR").map(PathBuf::from)
}

/// The lines the child prints from here on.
fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok)
}

fn put(key: &str, value: impl Into<Bytes>) -> Op {
    Op::Put { key: key.into(), value: value.into(), expected: Expected::Any }
}

#[test]
fn a_second_process_is_told_the_id_of_the_first_and_a_killed_one_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = child("child_holds_the_state", dir.path()).spawn().unwrap();
    let mut printed = lines(&mut first);
    assert!(printed.any(|line| line == "committed"));
    let error = SqliteStore::open(dir.path()).unwrap_err();
    assert_eq!(error.slug(), "state-locked");
    assert!(error.to_string().contains(&format!("process `{}`", first.id())), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(&block_on(store.load("key")).unwrap().unwrap().0[..], b"value");
}

#[test]
#[ignore = "run by another test"]
fn child_holds_the_state() {
    let Some(dir) = test_dir() else { return };
    let store = SqliteStore::open(dir).unwrap();
    block_on(store.commit(vec![put("key", "value")])).unwrap();
    println!("\ncommitted");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn what_a_file_sink_confirmed_is_there_after_a_kill_and_the_file_ends_in_a_whole_line() {
    for round in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.ndjson");
        let mut writer = child("child_writes_until_killed", dir.path()).spawn().unwrap();
        let mut printed = lines(&mut writer).filter_map(|l| l.strip_prefix("confirmed ")?.parse::<usize>().ok());
        let mut confirmed = printed.nth(3 + 7 * round).unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();
        if let Some(last) = printed.last() {
            confirmed = last;
        }
        // A kill tears no write of this size; a crash of the machine does.
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"torn\":").unwrap();
        drop(FileSink::open(&path, FILE_MODE).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with('\n') && !text.contains("torn"));
        for n in 0..=confirmed {
            assert!(text.lines().any(|l| l == format!("{{\"n\":{n}}}")), "record {n} was confirmed and is gone");
        }
    }
}

#[test]
#[ignore = "run by another test"]
fn child_writes_until_killed() {
    let Some(dir) = test_dir() else { return };
    block_on(async {
        let host = host(vec![file_sink(&dir.join("audit.ndjson"))], SystemClock::new());
        println!();
        for n in 0.. {
            assert_eq!(host.deliver(batch(&[&format!("{{\"n\":{n}}}")])).await.await, Delivery::Delivered);
            println!("confirmed {n}");
        }
    });
}

#[test]
fn state_that_may_not_be_written_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("d");
    drop(SqliteStore::open(&data_dir).unwrap());
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chmod(dir.path(), 0o755);
    // Root may write anything: the child runs as nobody then (65534 on Linux).
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    for data_dir_mode in [0o555, 0o777] {
        let mut command = child("child_may_not_write", dir.path());
        if is_root {
            command.uid(65534);
        }
        fs::remove_file(data_dir.join(LOCK_FILE)).unwrap();
        chmod(&data_dir.join(STATE_FILE), 0o444);
        chmod(&data_dir, data_dir_mode);
        let output = command.output();
        chmod(&data_dir, 0o700);
        drop(fs::File::create(data_dir.join(LOCK_FILE)).unwrap());
        match output {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => test_support::skip("nobody", format_args!("it cannot run this test's program: {error}")),
        }
    }
}

#[test]
#[ignore = "run by another test"]
fn child_may_not_write() {
    let Some(dir) = test_dir() else { return };
    let data_dir = dir.join("d");
    let error = SqliteStore::open(&data_dir).unwrap_err();
    assert_eq!(error.slug(), "state-not-writable", "{error}");
    println!("{error}");
}

/// A file system of 1 MiB, unmounted when dropped.
struct SmallDisk {
    mounted: Mounted,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        Some(Self { mounted: Mounted::at(dir.path(), "size=1m")?, _dir: dir })
    }

    fn path(&self) -> &Path {
        self.mounted.path()
    }
}

#[tokio::test]
async fn a_full_disk_fails_commits_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let store = SqliteStore::open(disk.path()).unwrap();
    store.commit(vec![put("small", "1")]).await.unwrap();
    fs::write(disk.path().join("ballast"), vec![0; 600 << 10]).unwrap();
    let large = Bytes::from(vec![7; 400 << 10]);
    let full = store.commit(vec![put("small", "2"), put("large", large.clone())]).await;
    assert!(matches!(full, Err(StateError::Unavailable(_))), "{full:?}");
    assert_eq!(&store.load("small").await.unwrap().unwrap().0[..], b"1");
    assert_eq!(store.load("large").await.unwrap(), None);
    fs::remove_file(disk.path().join("ballast")).unwrap();
    store.commit(vec![put("small", "2"), put("large", large)]).await.unwrap();
    drop(store);
    let store = SqliteStore::open(disk.path()).unwrap();
    assert_eq!(&store.load("small").await.unwrap().unwrap().0[..], b"2");
}

#[test]
fn a_first_start_on_a_full_disk_says_so() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut ballast = fs::File::create(disk.path().join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    drop(ballast);
    let error = SqliteStore::open(disk.path()).unwrap_err();
    assert_eq!(error.slug(), "state-full", "{error}");
    fs::remove_file(disk.path().join("ballast")).unwrap();
    SqliteStore::open(disk.path()).unwrap();
}

#[tokio::test]
async fn a_full_disk_holds_the_file_sink_up_and_loses_and_repeats_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let clock = test_clock();
    let path = disk.path().join("audit.ndjson");
    let host = host(vec![file_sink(&path)], clock.clone());
    fs::write(disk.path().join("ballast"), vec![0; 700 << 10]).unwrap();
    let lines: Vec<String> = (0..8).map(|n| n.to_string().repeat(60 << 10)).collect();
    let mut tickets = Vec::new();
    for line in &lines {
        tickets.push(host.deliver(batch(&[line])).await);
    }
    let mut report = host.report();
    report.wait_for(|r| matches!(r.sinks["file"].health, Health::Degraded { .. })).await.unwrap();
    fs::remove_file(disk.path().join("ballast")).unwrap();
    let mut all = futures_util::future::join_all(tickets);
    let outcomes = loop {
        tokio::select! {
            biased;
            outcomes = &mut all => break outcomes,
            () = tokio::task::yield_now() => { clock.advance_to_next_sleeper(); }
        }
    };
    assert!(outcomes.iter().all(|o| *o == Delivery::Delivered), "{outcomes:?}");
    assert!(fs::read_to_string(&path).unwrap().lines().eq(&lines));
}
