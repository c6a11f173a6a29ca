//! Tests with receivers that refuse everything, some records, and at random, on a clock that the test moves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::*;
use crate::clock::{Clock, TestClock};
use crate::host::{BatchBuilder, Unfit};
use crate::model::{ContentType, Timestamp};
use crate::severity::Severity;

/// A receiver's answer to a request: its number, the time since the start, the records' numbers.
type Policy = Box<dyn FnMut(usize, Duration, &[u32]) -> Written + Send>;

struct Receiver {
    policy: Policy,
    /// When each request came.
    requests: Vec<Duration>,
    taken: Vec<u32>,
    under_way: usize,
}

#[derive(Clone)]
struct Lane {
    receiver: Arc<Mutex<Receiver>>,
    clock: Arc<TestClock>,
    bounds: GroupBounds,
    lanes: usize,
}

fn records_of(batches: &[Batch]) -> Vec<u32> {
    let text = |batch: &Batch| String::from_utf8(batch.ndjson().to_vec()).unwrap();
    batches
        .iter()
        .flat_map(|batch| text(batch).lines().map(|line| line.parse().unwrap()).collect::<Vec<u32>>())
        .collect()
}

#[async_trait]
impl Sink for Lane {
    fn bounds(&self) -> GroupBounds {
        self.bounds
    }

    fn beside(&self) -> Vec<Box<dyn Sink>> {
        (1..self.lanes).map(|_| Box::new(self.clone()) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        self.receiver.lock().under_way += 1;
        // The round trip.
        self.clock.sleep(Duration::from_millis(5)).await;
        let mut receiver = self.receiver.lock();
        receiver.under_way -= 1;
        let records = records_of(batches);
        let (number, now) = (receiver.requests.len(), self.clock.monotonic());
        receiver.requests.push(now);
        let written = (receiver.policy)(number, now, &records);
        if written == Written::Delivered {
            receiver.taken.extend(records);
        }
        vec![written; batches.len()]
    }
}

#[derive(Default)]
struct Noted {
    troubles: Vec<Option<String>>,
    held: Vec<bool>,
    oldest: Duration,
    confirmed: u64,
}

/// Does not panic after a test has failed: values dropped then still report.
struct Notes(Arc<Mutex<Noted>>);

impl Observer for Notes {
    fn trouble(&self, _: &str, why: Option<&str>) {
        self.0.lock().troubles.push(why.map(str::to_owned));
    }

    fn confirmed(&self, _: &str, records: u64) {
        self.0.lock().confirmed += records;
    }

    fn held_back(&self, _: &str, is_held: bool) {
        self.0.lock().held.push(is_held);
    }

    fn oldest_request(&self, _: &str, age: Duration) {
        let mut noted = self.0.lock();
        noted.oldest = noted.oldest.max(age);
    }
}

/// Batches of the records from 0 on, of these sizes.
fn batches(sizes: &[u32]) -> Vec<Batch> {
    let mut next = 0;
    let batch = |size: &u32| {
        let mut builder = BatchBuilder::default();
        for _ in 0..*size {
            builder.push_with(|out| {
                out.extend_from_slice(next.to_string().as_bytes());
                Some((Timestamp::UNIX_EPOCH, Severity::Info))
            });
            next += 1;
        }
        builder.finish("s".into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
    };
    sizes.iter().map(batch).collect()
}

struct World {
    clock: Arc<TestClock>,
    receiver: Arc<Mutex<Receiver>>,
    noted: Arc<Mutex<Noted>>,
    worker: Arc<Worker>,
    /// The first record of each batch, and its outcome.
    settled: Arc<Mutex<Vec<(u32, BatchSettled)>>>,
    tasks: tokio::task::JoinSet<()>,
}

impl World {
    fn new(
        lanes: usize,
        records: usize,
        policy: impl FnMut(usize, Duration, &[u32]) -> Written + Send + 'static,
    ) -> Self {
        Self::with_clock(lanes, records, policy, |clock| clock)
    }

    /// The same, whose worker reads another clock.
    fn with_clock(
        lanes: usize,
        records: usize,
        policy: impl FnMut(usize, Duration, &[u32]) -> Written + Send + 'static,
        clock_of_worker: impl FnOnce(Arc<TestClock>) -> Arc<dyn Clock>,
    ) -> Self {
        let clock = Arc::new(TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let receiver = Receiver { policy: Box::new(policy), requests: Vec::new(), taken: Vec::new(), under_way: 0 };
        let receiver = Arc::new(Mutex::new(receiver));
        let bounds = GroupBounds { records, ..GroupBounds::default() };
        let sink = Box::new(Lane { receiver: receiver.clone(), clock: clock.clone(), bounds, lanes });
        let noted = Arc::new(Mutex::new(Noted::default()));
        let observer = Arc::new(Notes(noted.clone()));
        let worker = Arc::new(Worker::start("out", sink, clock_of_worker(clock.clone()), observer));
        let tasks = tokio::task::JoinSet::new();
        Self { clock, receiver, noted, worker, settled: Arc::default(), tasks }
    }

    fn send(&mut self, batches: Vec<Batch>) {
        let (worker, settled) = (self.worker.clone(), self.settled.clone());
        self.tasks.spawn(async move {
            for batch in batches {
                let first = records_of(std::slice::from_ref(&batch)).first().copied().unwrap_or_default();
                let settled = settled.clone();
                let confirm = Confirm::new(move |what| settled.lock().push((first, what)));
                worker.enqueue(batch, confirm).await;
            }
        });
    }

    async fn rest() {
        for _ in 0..25 {
            tokio::task::yield_now().await;
        }
    }

    /// Advances time until this many batches are settled, at most this long; returns how long it took.
    async fn until_settled(&self, count: usize, at_most: Duration) -> Duration {
        let begun = self.clock.monotonic();
        loop {
            Self::rest().await;
            let passed = self.clock.monotonic() - begun;
            if self.settled.lock().len() >= count || passed >= at_most {
                return passed;
            }
            if self.clock.advance_to_next_sleeper().is_none() {
                return at_most;
            }
        }
    }

    /// The records that were set aside.
    fn aside(&self) -> BTreeSet<u32> {
        let settled = self.settled.lock();
        let of = |(first, settled): &(u32, BatchSettled)| match settled {
            BatchSettled::Delivered => Vec::new(),
            BatchSettled::Except(unfit) => unfit.iter().map(|Unfit { record, .. }| first + *record as u32).collect(),
            other => panic!("{other:?}"),
        };
        settled.iter().flat_map(of).collect()
    }

    fn requests(&self) -> usize {
        self.receiver.lock().requests.len()
    }

    #[track_caller]
    fn assert_taken_once(&self, all: u32, but: &BTreeSet<u32>, case: &str) {
        let mut taken = self.receiver.lock().taken.clone();
        taken.sort_unstable();
        let expected: Vec<u32> = (0..all).filter(|n| !but.contains(n)).collect();
        assert!(taken == expected, "{case}: taken {} times, expected {}", taken.len(), expected.len());
    }
}

fn rejected() -> Written {
    Written::Rejected("no".into())
}

/// Time passes between two looks at it, as on a busy machine.
#[derive(Debug)]
struct TickingClock(Arc<TestClock>, Duration);

impl Clock for TickingClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.advance(self.1);
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> futures_util::future::BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

#[tokio::test]
async fn a_refused_request_that_becomes_due_between_two_looks_at_the_clock_is_sent() {
    for step in [1, 10, 100, 1_000, 5_000].map(Duration::from_millis) {
        for fault in faults() {
            let answer = fault.clone();
            let policy = move |_: usize, _: Duration, records: &[u32]| match records.contains(&3) {
                true => answer.clone(),
                false => Written::Delivered,
            };
            let ticking = |clock| -> Arc<dyn Clock> { Arc::new(TickingClock(clock, step)) };
            let mut world = World::with_clock(1, 100, policy, ticking);
            world.send(batches(&[10]));
            world.until_settled(1, Duration::from_secs(24 * 3600)).await;
            assert_eq!(world.settled.lock().len(), 1, "{step:?} {fault:?}: nobody looks at it again");
            world.assert_taken_once(10, &world.aside(), &format!("{step:?} {fault:?}"));
        }
    }
}

/// Every answer that a record may cause.
fn faults() -> [Written; 4] {
    [rejected(), Written::TooLarge("large".into()), Written::Misconfigured("who?".into()), Written::Unclear("?".into())]
}

/// Of `all` records about `poison`, chosen by `seed`.
fn poisoned(seed: u64, all: u32, poison: u32) -> BTreeSet<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut chosen = BTreeSet::new();
    while chosen.len() < poison as usize {
        chosen.insert(rng.u32(..all));
    }
    chosen
}

#[tokio::test]
async fn everything_but_the_poison_is_taken_once_and_the_poison_is_set_aside() {
    for (lanes, sizes, poison) in [
        (1, vec![50; 40], 1),
        (4, vec![50; 40], 6),
        (4, vec![1000; 4], 6),
        (2, vec![7; 150], 60),
        (4, vec![200; 20], 200),
        (4, vec![100; 10], 500),
        (1, vec![100, 1, 100, 2, 100], 30),
    ] {
        for fault in faults() {
            let all: u32 = sizes.iter().sum();
            let bad = poisoned(7, all, poison);
            let (known, answer) = (bad.clone(), fault.clone());
            let mut world =
                World::new(lanes, 1000, move |_, _, records| match records.iter().any(|n| known.contains(n)) {
                    true => answer.clone(),
                    false => Written::Delivered,
                });
            world.send(batches(&sizes));
            let case = format!("{fault:?}, {lanes} lanes, {poison} of {all}");
            let took = world.until_settled(sizes.len(), Duration::from_secs(7200)).await;
            assert_eq!(world.settled.lock().len(), sizes.len(), "{case}: {} requests", world.requests());
            assert_eq!(world.aside(), bad, "{case}");
            world.assert_taken_once(all, &bad, &case);
            // Splits down to each record, some retries of it by itself, and the other records.
            let bound = bad.len() * (2 * 11 + 12) + sizes.len() * 4;
            assert!(world.requests() <= bound, "{case}: {} requests, at most {bound}", world.requests());
            // Simulated time: if every other record is poison, evidence against each grows slowly.
            let longest = Duration::from_secs(1800.max(14 * bad.len() as u64));
            assert!(took < longest, "{case}: {took:?}");
            assert_eq!(world.noted.lock().confirmed as usize, all as usize - bad.len(), "{case}");
        }
    }
}

#[tokio::test]
async fn a_receiver_that_refuses_everything_holds_back_with_few_requests_until_it_takes() {
    let busy = Written::Refused { why: "busy".into(), retry_after: None };
    for fault in faults().into_iter().chain([busy]) {
        let until = Duration::from_secs(3600);
        let answer = fault.clone();
        let policy = move |_, now, _: &[u32]| if now < until { answer.clone() } else { Written::Delivered };
        let mut world = World::new(4, 1000, policy);
        world.send(batches(&[500; 30]));
        world.until_settled(1, until).await;
        assert_eq!(world.settled.lock().len(), 0, "{fault:?}");
        let requests = world.requests();
        assert!((20..200).contains(&requests), "{fault:?}: {requests} requests in an hour");
        let first_minute = world.receiver.lock().requests.iter().filter(|at| at.as_secs() < 60).count();
        assert!(first_minute <= 32, "{fault:?}: {first_minute} requests in the first minute");
        {
            let noted = world.noted.lock();
            let [Some(why)] = &noted.troubles[..] else { panic!("{fault:?}: {:?}", noted.troubles) };
            assert!(why.contains(fault.why().unwrap()), "{why}");
            let is_lasting = !matches!(fault, Written::Refused { .. });
            assert_eq!(noted.held.last(), Some(&is_lasting), "{fault:?}");
        }
        let took = world.until_settled(30, Duration::from_secs(600)).await;
        assert_eq!(world.aside(), BTreeSet::new(), "{fault:?}");
        world.assert_taken_once(15_000, &BTreeSet::new(), &format!("{fault:?}"));
        assert!(took < Duration::from_secs(120), "{fault:?}: {took:?}");
        let noted = world.noted.lock();
        assert_eq!((noted.troubles.len(), noted.troubles.last().unwrap()), (2, &None), "{fault:?}");
        assert_eq!(noted.held.last(), Some(&false));
    }
}

#[tokio::test]
async fn a_worker_that_ends_while_it_holds_back_says_so_no_more() {
    let mut world = World::new(4, 1000, |_, _, _: &[u32]| Written::Misconfigured("no such index".into()));
    world.send(batches(&[500; 3]));
    world.until_settled(1, Duration::from_secs(600)).await;
    assert_eq!(world.noted.lock().held.last(), Some(&true));
    world.worker.stop(Duration::ZERO, &*world.clock).await;
    assert_eq!(world.noted.lock().held.last(), Some(&false));
}

#[tokio::test]
async fn a_receiver_that_refuses_at_random_gets_everything_and_nothing_is_set_aside() {
    for seed in 0..5 {
        for percent in [10, 30, 45] {
            let faults = faults();
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut world = World::new(4, 100, move |_, _, _| match rng.u32(..100) < percent {
                true => faults[rng.usize(..4)].clone(),
                false => Written::Delivered,
            });
            world.send(batches(&[100; 60]));
            world.until_settled(60, Duration::from_secs(7200)).await;
            let case = format!("seed {seed}, {percent} %");
            assert_eq!(world.settled.lock().len(), 60, "{case}");
            assert_eq!(world.aside(), BTreeSet::new(), "{case}");
            world.assert_taken_once(6_000, &BTreeSet::new(), &case);
        }
    }
}

/// A setting is changed while poison is being isolated, and corrected later.
#[tokio::test]
async fn what_is_rejected_while_a_setting_is_wrong_is_not_set_aside() {
    for seed in 0..4_u64 {
        for fault in faults() {
            let bad = poisoned(seed, 2_000, 20);
            let (known, answer) = (bad.clone(), fault.clone());
            let wrong = Duration::from_millis(20 + seed * 37)..Duration::from_secs(900);
            let mut world = World::new(4, 200, move |_, now, records| {
                match wrong.contains(&now) || records.iter().any(|n| known.contains(n)) {
                    true => answer.clone(),
                    false => Written::Delivered,
                }
            });
            world.send(batches(&[100; 20]));
            world.until_settled(20, Duration::from_secs(7200)).await;
            let case = format!("seed {seed}, {fault:?}");
            assert_eq!(world.aside(), bad, "{case}");
            world.assert_taken_once(2_000, &bad, &case);
        }
    }
}

#[tokio::test]
async fn what_is_refused_for_the_moment_waits_by_itself_and_is_never_set_aside() {
    let bad = BTreeSet::from([3, 150, 480]);
    let known = bad.clone();
    let mut world = World::new(2, 100, move |_, _, records| match records.iter().any(|n| known.contains(n)) {
        true => Written::refused("later"),
        false => Written::Delivered,
    });
    world.send(batches(&[50; 20]));
    world.until_settled(20, Duration::from_secs(3600)).await;
    // Three requests of two batches each wait, the others are through.
    assert_eq!(world.settled.lock().len(), 14);
    assert_eq!(world.aside(), BTreeSet::new());
    assert!(world.requests() < 10 + 3 * 200, "{} requests", world.requests());
    assert_eq!(world.noted.lock().troubles.last(), Some(&Some("later".to_owned())));
}

#[tokio::test]
async fn a_single_record_that_nothing_can_be_compared_with_waits_for_the_next() {
    let mut world =
        World::new(4, 100, |_, _, records| if records.contains(&0) { rejected() } else { Written::Delivered });
    let mut all = batches(&[1, 10]);
    let other = all.pop().unwrap();
    world.send(all);
    world.until_settled(1, Duration::from_secs(3600)).await;
    assert_eq!(world.settled.lock().len(), 0);
    assert!(world.noted.lock().troubles.last().is_some_and(|trouble| trouble.is_some()));
    world.send(vec![other]);
    let took = world.until_settled(2, Duration::from_secs(3600)).await;
    assert_eq!(world.aside(), BTreeSet::from([0]));
    assert!(took < Duration::from_secs(120), "{took:?}");
    world.rest_is_well().await;
}

impl World {
    async fn rest_is_well(&self) {
        Self::rest().await;
        assert_eq!(self.noted.lock().troubles.last(), Some(&None));
    }
}

#[tokio::test]
async fn a_wait_the_receiver_asks_for_is_kept_by_all() {
    let mut world = World::new(4, 10, |number, _, _| match number {
        0 => Written::Refused { why: "busy".into(), retry_after: Some(Duration::from_secs(90)) },
        _ => Written::Delivered,
    });
    world.send(batches(&[10; 20]));
    world.until_settled(20, Duration::from_secs(600)).await;
    let receiver = world.receiver.lock();
    let during = receiver.requests.iter().filter(|at| (1..90).contains(&at.as_secs())).count();
    assert_eq!(during, 0, "{:?}", receiver.requests);
    assert_eq!(receiver.taken.len(), 200);
}

/// The receiver accepts part of each request and does not state which.
#[tokio::test]
async fn of_a_partial_success_only_what_was_rejected_is_set_aside() {
    let bad = poisoned(3, 600, 20);
    let known = bad.clone();
    let mut world =
        World::new(2, 100, move |_, _, records| match records.iter().filter(|n| known.contains(n)).count() {
            0 => Written::Delivered,
            n if n == records.len() => rejected(),
            _ => Written::RejectedSome("some".into()),
        });
    world.send(batches(&[60; 10]));
    world.until_settled(10, Duration::from_secs(3600)).await;
    assert_eq!(world.aside(), bad);
    world.assert_taken_once(600, &bad, "partial");
}

#[tokio::test]
async fn a_trial_is_answered_at_once_even_while_everything_waits() {
    let mut world = World::new(2, 100, |_, _, records| if records == [7] { Written::Delivered } else { rejected() });
    world.send(batches(&[100; 300]));
    world.until_settled(1, Duration::from_secs(60)).await;
    let trial = |record: usize| batches(&[10]).remove(0).part(record..record + 1).as_trial();
    let before = world.settled.lock().len();
    world.send(vec![trial(7), trial(8)]);
    world.until_settled(before + 2, Duration::from_secs(5)).await;
    let settled = world.settled.lock();
    assert_eq!(settled[before..], [(7, BatchSettled::Delivered), (8, BatchSettled::Rejected("no".into()))]);
}

#[tokio::test]
async fn the_age_of_what_waits_for_an_answer_is_reported_and_is_trouble_after_half_a_minute() {
    struct Silent(Arc<TestClock>);
    #[async_trait]
    impl Sink for Silent {
        async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
            self.0.sleep(Duration::from_secs(100)).await;
            vec![Written::Delivered; batches.len()]
        }
    }
    let clock = Arc::new(TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
    let noted = Arc::new(Mutex::new(Noted::default()));
    let worker = Worker::start("out", Box::new(Silent(clock.clone())), clock.clone(), Arc::new(Notes(noted.clone())));
    worker.enqueue(batches(&[1]).remove(0), Confirm::new(|_| ())).await;
    for _ in 0..5 {
        World::rest().await;
        clock.advance(Duration::from_secs(5));
    }
    World::rest().await;
    assert!(noted.lock().troubles.is_empty());
    assert_eq!(noted.lock().oldest.as_secs(), 25);
    for _ in 0..3 {
        clock.advance(Duration::from_secs(5));
        World::rest().await;
    }
    let why = noted.lock().troubles.last().cloned().flatten().unwrap();
    assert!(why.starts_with("sink-slow: a request has been waiting 40 s for its answer (hint: "), "{why}");
    clock.advance(Duration::from_secs(60));
    World::rest().await;
    assert_eq!(noted.lock().troubles.last(), Some(&None));
}

#[tokio::test]
async fn a_worker_that_is_stopped_refuses_what_waits() {
    let mut world = World::new(2, 100, |_, _, _| rejected());
    world.send(batches(&[100; 3]));
    world.until_settled(1, Duration::from_secs(60)).await;
    let (worker, clock) = (world.worker.clone(), world.clock.clone());
    let stopping = tokio::spawn(async move { worker.stop(Duration::from_secs(8), &*clock).await });
    World::rest().await;
    while !stopping.is_finished() {
        world.clock.advance(Duration::from_secs(1));
        World::rest().await;
    }
    let settled = world.settled.lock();
    assert_eq!(settled.len(), 3);
    assert!(settled.iter().all(|(_, settled)| matches!(settled, BatchSettled::Refused(_))), "{settled:?}");
}
