//! Records that were set aside, whose receiver refuses them without a word about the record: it answers 500, 403, or
//! nothing that says more.

use std::sync::Arc;

use async_trait::async_trait;
use m365_audit::host::Batch;
use m365_audit::hosts::embedded::SinkSpec;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::sink::{Sink, Written};
use m365_audit::source::aside::{Retried, RetryRequest};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::watch::Watch;
use crate::world::{SOURCE, World, hours, mins};

/// What a receiver has against the record with this id.
type Answer = fn(&str) -> Option<Written>;

/// A receiver that takes a request or refuses all of it.
#[derive(Clone)]
struct Receiver {
    watch: Arc<Watch>,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    answer: Answer,
    taken: Vec<String>,
    asked: usize,
}

fn id_of(record: &Value) -> String {
    record["event_id"].as_str().unwrap_or_default().to_owned()
}

impl Receiver {
    fn new(world: &World, answer: Answer) -> Self {
        let inner = Inner { answer, taken: Vec::new(), asked: 0 };
        Self { watch: world.watch.clone(), inner: Arc::new(Mutex::new(inner)) }
    }

    fn answer(&self, answer: Answer) {
        self.inner.lock().answer = answer;
    }

    fn spec(&self, name: &str) -> SinkSpec {
        let (inputs, selection) = (vec![SOURCE.to_owned()], Selection::default());
        SinkSpec { name: name.to_owned(), inputs, selection, sink: Box::new(self.clone()) }
    }

    /// How many records it has, repeats counted.
    fn count(&self) -> usize {
        self.inner.lock().taken.len()
    }

    fn count_of(&self, is: impl Fn(&str) -> bool) -> usize {
        self.inner.lock().taken.iter().filter(|id| is(id)).count()
    }

    fn asked(&self) -> usize {
        self.inner.lock().asked
    }
}

#[async_trait]
impl Sink for Receiver {
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let mut inner = self.inner.lock();
        let mut written = Vec::new();
        for batch in batches {
            inner.asked += 1;
            let records: Vec<Value> = batch.records().map(|r| serde_json::from_slice(r.json).unwrap()).collect();
            // What is refused is the source's, to be sent again or set aside.
            records.iter().for_each(|record| self.watch.confirm(record));
            match records.iter().find_map(|record| (inner.answer)(&id_of(record))) {
                Some(refusal) => written.push(refusal),
                None => {
                    inner.taken.extend(records.iter().map(id_of));
                    written.push(Written::Delivered);
                }
            }
        }
        written
    }
}

fn takes_all(_: &str) -> Option<Written> {
    None
}

fn is_bad(id: &str) -> bool {
    id.ends_with('3') || id.ends_with('7')
}

fn with_500(id: &str) -> Option<Written> {
    is_bad(id).then(|| Written::Unclear("answered 500".into()))
}

fn with_403(id: &str) -> Option<Written> {
    is_bad(id).then(|| Written::Misconfigured("answered 403".into()))
}

fn threes_with_500(id: &str) -> Option<Written> {
    with_500(id).filter(|_| id.ends_with('3'))
}

fn threes_with_403(id: &str) -> Option<Written> {
    with_403(id).filter(|_| id.ends_with('3'))
}

fn all_with_500(_: &str) -> Option<Written> {
    Some(Written::Unclear("answered 500".into()))
}

fn is_away(_: &str) -> Option<Written> {
    Some(Written::refused("connection refused"))
}

/// Events in the one blob, and how many of them are bad.
const EVENTS: u64 = 40;
const BAD: usize = 8;

fn aside(world: &World) -> usize {
    world.store.entries().keys().filter(|key| key.contains("/aside/")).count()
}

/// A world in which all but the bad events were delivered and those are set aside.
async fn with_records_set_aside(answer: Answer) -> (World, Receiver) {
    let mut world = World::new().await;
    world.add_aged(EVENTS, mins(30));
    let receiver = Receiver::new(&world, answer);
    let (running, _retries) = world.start_into(vec![receiver.spec("siem")], false);
    world.until("the bad ones are set aside", || aside(&world) == BAD).await;
    world.stop(running).await;
    assert_eq!(receiver.count(), EVENTS as usize - BAD);
    (world, receiver)
}

/// `m365-audit state retry`, while time passes.
async fn retry(world: &World, retries: &mpsc::Sender<RetryRequest>) -> Retried {
    let (ask, mut answer) = oneshot::channel();
    retries.send(ask).await.unwrap();
    let mut retried = None;
    let done = || {
        retried = answer.try_recv().ok();
        retried.is_some()
    };
    assert!(world.until_within(hours(1), done).await, "`state retry` is not answered");
    retried.unwrap().unwrap()
}

#[tokio::test]
async fn records_behind_a_refused_one_are_offered_at_a_start_and_delivered() {
    for (all, threes) in [(with_500 as Answer, threes_with_500 as Answer), (with_403, threes_with_403)] {
        let (mut world, receiver) = with_records_set_aside(all).await;
        receiver.answer(threes);
        let (running, _retries) = world.start_into(vec![receiver.spec("siem")], false);
        world.until("those that are taken now", || aside(&world) == BAD / 2).await;
        // Others were taken, so it is known whose fault it is, and nobody asks any more.
        world.pass(hours(1)).await;
        let asked = receiver.asked();
        world.pass(hours(4)).await;
        assert_eq!((receiver.asked(), aside(&world)), (asked, BAD / 2));
        // The source goes on.
        world.add_now(5);
        world.until("new events", || receiver.count() >= EVENTS as usize - BAD / 2 + 4).await;
        world.stop(running).await;
        world.assert_manners();
    }
}

#[tokio::test]
async fn state_retry_answers_while_a_record_is_refused_at_the_start() {
    for (all, threes) in [(with_500 as Answer, threes_with_500 as Answer), (with_403, threes_with_403)] {
        let (world, receiver) = with_records_set_aside(all).await;
        let (running, retries) = world.start_into(vec![receiver.spec("siem")], false);
        world.until("the start has offered one", || receiver.asked() > 0).await;
        let retried = retry(&world, &retries).await;
        assert_eq!((retried.delivered, retried.left.len(), aside(&world)), (0, BAD, BAD));
        assert!(retried.left.iter().all(|left| left.why.starts_with("sink `siem`: answered ")), "{retried:?}");
        receiver.answer(threes);
        let retried = retry(&world, &retries).await;
        assert_eq!((retried.left.len(), aside(&world)), (BAD / 2, BAD / 2), "{retried:?}");
        receiver.answer(takes_all);
        let retried = retry(&world, &retries).await;
        assert_eq!((retried.left.len(), aside(&world)), (0, 0), "{retried:?}");
        world.stop(running).await;
        assert_eq!(receiver.count(), EVENTS as usize);
    }
}

#[tokio::test]
async fn a_single_pass_ends_although_records_are_refused() {
    for all in [with_500 as Answer, with_403] {
        let (mut world, receiver) = with_records_set_aside(all).await;
        // Nothing is new, so that there is nothing to compare them with.
        let (running, _retries) = world.start_into(vec![receiver.spec("siem")], true);
        world.ended(running).await.unwrap();
        assert_eq!(aside(&world), BAD);
        world.add_now(3);
        world.clock.advance(mins(1));
        let before = receiver.count();
        let (running, _retries) = world.start_into(vec![receiver.spec("siem")], true);
        world.ended(running).await.unwrap();
        assert!(receiver.count() > before, "new events arrive");
        receiver.answer(takes_all);
        let (running, _retries) = world.start_into(vec![receiver.spec("siem")], true);
        world.ended(running).await.unwrap();
        assert_eq!((aside(&world), receiver.count()), (0, EVENTS as usize + 3));
    }
}

#[tokio::test]
async fn another_sink_gets_a_refused_record_once() {
    let mut world = World::new().await;
    world.add_aged(EVENTS, mins(30));
    let (siem, other) = (Receiver::new(&world, with_500), Receiver::new(&world, takes_all));
    let specs = || vec![siem.spec("siem"), other.spec("other")];
    let (running, _retries) = world.start_into(specs(), false);
    world.until("the bad ones are set aside", || aside(&world) == BAD).await;
    world.stop(running).await;
    assert_eq!(other.count(), EVENTS as usize);
    let (running, retries) = world.start_into(specs(), false);
    world.pass(hours(6)).await;
    assert_eq!(other.count_of(is_bad), 2 * BAD, "once by this process");
    retry(&world, &retries).await;
    retry(&world, &retries).await;
    assert_eq!((other.count_of(is_bad), aside(&world)), (2 * BAD, BAD), "not when asked to either");
    siem.answer(takes_all);
    assert_eq!(retry(&world, &retries).await, Retried { delivered: BAD as u64, left: Vec::new() });
    assert_eq!((siem.count_of(is_bad), other.count_of(is_bad), aside(&world)), (BAD, 2 * BAD, 0));
    world.stop(running).await;
    world.assert_manners();
}

/// Whatever it answers meanwhile: nothing was taken that says it is there.
#[tokio::test]
async fn a_sink_that_is_away_at_the_start_is_waited_for_and_nothing_is_asked_for_in_vain() {
    for away in [is_away as Answer, all_with_500] {
        let (world, receiver) = with_records_set_aside(with_500).await;
        receiver.answer(away);
        let before = receiver.asked();
        let (running, retries) = world.start_into(vec![receiver.spec("siem")], false);
        world.pass(hours(3)).await;
        let asked = receiver.asked() - before;
        assert!((1..=400 * BAD).contains(&asked), "{asked} requests in three hours");
        let retried = retry(&world, &retries).await;
        assert_eq!((retried.delivered, retried.left.len(), aside(&world)), (0, BAD, BAD));
        receiver.answer(takes_all);
        world.until("all of them", || aside(&world) == 0).await;
        world.stop(running).await;
        assert_eq!(receiver.count(), EVENTS as usize);
    }
}

#[tokio::test]
async fn a_single_pass_waits_for_a_sink_that_says_it_is_away() {
    let (world, receiver) = with_records_set_aside(with_500).await;
    receiver.answer(is_away);
    let (running, _retries) = world.start_into(vec![receiver.spec("siem")], true);
    world.pass(hours(3)).await;
    assert!(!running.task.is_finished());
    receiver.answer(takes_all);
    world.ended(running).await.unwrap();
    assert_eq!((aside(&world), receiver.count()), (0, EVENTS as usize));
}
