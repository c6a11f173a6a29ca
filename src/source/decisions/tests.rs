//! Tests the decisions, event by event, without a runtime: no task runs, and the tests set the time.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::api::ServerDate;
use crate::checkpoint::key_set::{KeyKind, KeySet};
use crate::clock::TestClock;
use crate::host::{Batch, DeliveryTicket, Health, Host, StateStore};
use crate::hosts::embedded::memory::MemoryStore;
use crate::plan::Reach;
use crate::source::budget::Pool;
use crate::source::hold::HoldSettings;
use crate::source::turns::Turns;

const GENERAL: ContentType = ContentType::General;

/// A host that only takes health reports.
struct Silent(Arc<MemoryStore>);

#[async_trait]
impl Host for Silent {
    async fn deliver(&self, _batch: Batch) -> DeliveryTicket {
        DeliveryTicket::new().1
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.0.clone()
    }

    fn health(&self, _source: &str, _health: Health) {}
}

fn start_of_day() -> Timestamp {
    "2026-05-10T12:00:00Z".parse().unwrap()
}

struct World {
    clock: Arc<TestClock>,
    server: ServerTime,
    decisions: Decisions,
    begun: Vec<LoopAction>,
}

impl World {
    fn new(types: &[ContentType], once: bool) -> Self {
        Self::from(types, once, BTreeMap::new(), Vec::new())
    }

    fn from(
        types: &[ContentType],
        once: bool,
        positions: BTreeMap<ContentType, Position>,
        tracked: Vec<BlobRef>,
    ) -> Self {
        let clock = Arc::new(TestClock::at(start_of_day()));
        let store = Arc::new(MemoryStore::new());
        let host: Arc<dyn Host> = Arc::new(Silent(store.clone()));
        let tenant: TenantId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
        let hold = HoldSettings {
            tenant: tenant.clone(),
            dropping: true,
            hold: SignedDuration::from_hours(6),
            bytes_max: 1 << 20,
            flags_max: 1000,
            flag_age: SignedDuration::from_hours(24),
        };
        let server = ServerTime::new(clock.clone());
        let terms = DecisionInputs {
            tenant: tenant.clone(),
            once,
            poll_interval: Duration::from_secs(60),
            dropping: true,
            hold_for: hold.hold,
            clock: clock.clone(),
            server: server.clone(),
            reading: TenantTurn::new(Turns::default().seat()),
            reporter: HealthReporter::new("s".into(), tenant, host, clock.clone()),
            hold: Hold::load(&*store.clone(), store.clone(), hold).now_or_never().unwrap().unwrap(),
            budget: Budget::new(64 << 20, &Pool::default()),
        };
        let settled = types.iter().map(|content_type| {
            let keys = KeySet::load(&*store, &format!("b/{content_type}"), KeyKind::Blobs).now_or_never();
            (*content_type, EventIndex::new(keys.unwrap().unwrap()))
        });
        let remembered = SavedStreams { positions, settled: settled.collect() };
        let mut decisions = Decisions::new(terms, types, SignedDuration::from_hours(24), remembered);
        decisions.begin(types, tracked, false);
        let mut world = Self { clock, server, decisions, begun: Vec::new() };
        world.hear();
        world.take();
        world
    }

    /// An answer from Microsoft, whose clock is right.
    fn hear(&self) {
        self.server.observe(ServerDate { date: self.clock.now(), at: self.clock.monotonic() });
    }

    fn take(&mut self) {
        while let Some(action) = self.decisions.next_action() {
            self.begun.push(action);
        }
    }

    fn apply(&mut self, event: LoopEvent) {
        self.decisions.apply(event).unwrap();
        self.take();
    }

    /// Advances time to the next due action.
    fn wait(&mut self) {
        let due = self.decisions.next_due().saturating_sub(self.clock.monotonic());
        self.clock.advance(due);
        self.hear();
        self.apply(LoopEvent::Due(None));
    }

    fn found(&mut self, content_type: ContentType, blobs: Vec<BlobRef>, read: Option<Window>) {
        self.apply(LoopEvent::Found(ListerReport::Page { content_type, blobs, read }));
    }

    /// Ends the fetch that began first.
    fn end_fetch(&mut self, outcome: FetchOutcome) -> Job {
        let at =
            self.begun.iter().position(|action| matches!(action, LoopAction::Fetch(..))).expect("nothing is fetched");
        let LoopAction::Fetch(job, download) = self.begun.remove(at) else { unreachable!() };
        drop(download);
        let copy = (*job).clone();
        self.apply(LoopEvent::Done(ActionResult::Blob(job, outcome)));
        copy
    }

    fn fetched(&self) -> Vec<String> {
        let fetched = self.begun.iter().filter_map(|action| match action {
            LoopAction::Fetch(job, _) => Some(job.blob.id.to_string()),
            _ => None,
        });
        fetched.collect()
    }

    fn complete_until(&self, content_type: ContentType) -> Option<Timestamp> {
        self.decisions.stream(content_type).unwrap().position.complete_until
    }

    fn gaps(&self, content_type: ContentType) -> Vec<(Timestamp, Timestamp, String)> {
        let gaps = &self.decisions.stream(content_type).unwrap().position.gaps;
        gaps.iter().map(|gap| (gap.from, gap.to, gap.reason.clone())).collect()
    }
}

fn before(minutes: i64) -> Timestamp {
    start_of_day() - SignedDuration::from_mins(minutes)
}

fn blob(id: &str, minutes_ago: i64) -> BlobRef {
    let created = before(minutes_ago);
    let expires = created + SignedDuration::from_hours(24 * 7);
    BlobRef { content_type: GENERAL, id: id.into(), uri: "x".into(), created, expires }
}

fn unread(why: &str) -> FetchOutcome {
    FetchOutcome::Failed { why: why.into(), error: None, damaged: None }
}

/// The windows of a first pass over the day before: to an hour ago, and the last hour.
fn day() -> Window {
    Window { start: before(24 * 60), end: before(60) }
}

fn hour() -> Window {
    Window { start: before(60), end: start_of_day() }
}

#[test]
fn the_newest_blob_is_fetched_first_and_no_more_than_may_be() {
    let mut world = World::new(&[GENERAL], false);
    let blobs = (1..=9).map(|n| blob(&format!("b{n}"), n)).collect();
    world.found(GENERAL, blobs, None);
    assert_eq!(world.fetched(), ["b1", "b2", "b3", "b4"], "four downloads at once before their times are known");
    world.end_fetch(FetchOutcome::Settled);
    assert_eq!(world.fetched(), ["b2", "b3", "b4", "b5"], "one has ended, the next begins");
}

#[test]
fn a_blob_that_is_listed_twice_is_fetched_once() {
    let mut world = World::new(&[GENERAL], false);
    world.found(GENERAL, vec![blob("b1", 1)], None);
    world.found(GENERAL, vec![blob("b1", 1)], None);
    assert_eq!(world.fetched(), ["b1"]);
}

#[test]
fn the_position_waits_for_the_blob_and_then_for_nothing_and_is_written() {
    let mut world = World::new(&[GENERAL], false);
    world.found(GENERAL, vec![], Some(day()));
    world.found(GENERAL, vec![blob("b1", 60)], Some(hour()));
    assert_eq!(world.complete_until(GENERAL), Some(before(60)), "up to the blob that is not settled");
    world.end_fetch(unread("cut"));
    assert_eq!(world.complete_until(GENERAL), Some(before(60)));
    while world.fetched().is_empty() {
        world.wait();
    }
    world.end_fetch(FetchOutcome::Settled);
    assert!(world.complete_until(GENERAL) > Some(before(60)));
    world.begun.clear();
    world.apply(LoopEvent::Done(ActionResult::Written(Ok(()))));
    let written = |world: &World| {
        world.begun.iter().find_map(|action| match action {
            LoopAction::Write(positions, _) => positions[&GENERAL].complete_until,
            _ => None,
        })
    };
    // At once, if the blob came long after the last write.
    if written(&world).is_none() {
        world.wait();
    }
    assert_eq!(written(&world), world.complete_until(GENERAL), "what a settled blob moved is written");
}

#[test]
fn one_write_of_positions_is_under_way_at_a_time() {
    let mut world = World::new(&[GENERAL], false);
    let writes = |world: &World| world.begun.iter().filter(|action| matches!(action, LoopAction::Write(..))).count();
    assert_eq!(writes(&world), 0, "a write waits for its second");
    world.clock.advance(Duration::from_secs(2));
    world.apply(LoopEvent::Woken);
    assert_eq!(writes(&world), 1, "a stream that never ran is written");
    for n in 1..4 {
        world.clock.advance(Duration::from_secs(60));
        world.hear();
        world.apply(LoopEvent::Found(ListerReport::PassDone {
            content_type: GENERAL,
            reach: Reach::Day,
            at: before(n),
        }));
        assert_eq!(writes(&world), 1, "the first is under way");
    }
    world.apply(LoopEvent::Done(ActionResult::Written(Ok(()))));
    assert_eq!(writes(&world), 2, "what changed meanwhile is written at once");
}

#[test]
fn a_write_that_fails_for_good_ends_the_loop() {
    let mut world = World::new(&[GENERAL], false);
    let conflict = StateError::Conflict { key: "k".into() };
    let ended = world.decisions.apply(LoopEvent::Done(ActionResult::Written(Err(conflict))));
    assert_eq!(ended.unwrap_err().slug(), "state-conflict");
}

#[test]
fn a_blob_that_cannot_be_read_before_it_expires_is_reported_as_a_gap_and_settled() {
    let mut world = World::new(&[GENERAL], false);
    let old = BlobRef { expires: start_of_day() + SignedDuration::from_secs(1), ..blob("b1", 60) };
    world.found(GENERAL, vec![], Some(day()));
    world.found(GENERAL, vec![old], Some(hour()));
    world.clock.advance(Duration::from_secs(2));
    world.hear();
    let gap = |world: &World| {
        world.begun.iter().find_map(|action| match action {
            LoopAction::ReportLost(_, gap) => Some(gap.clone()),
            _ => None,
        })
    };
    let mut job = world.end_fetch(unread("cut"));
    assert!(!job.last_chance);
    for _ in 1..10 {
        assert!(gap(&world).is_none(), "the service may just be away");
        while world.fetched().is_empty() {
            world.wait();
        }
        job = world.end_fetch(unread("cut"));
        assert!(job.last_chance, "a damaged body would be delivered");
        if world.begun.extract_if(.., |action| matches!(action, LoopAction::Write(..))).next().is_some() {
            world.apply(LoopEvent::Done(ActionResult::Written(Ok(()))));
        }
    }
    let gap = gap(&world).expect("the loss is reported");
    assert_eq!((gap.reason, gap.window.start), (GapReason::BlobExpired, before(60)));
    assert_eq!(world.complete_until(GENERAL), Some(before(60)), "not before the host has the record");
    assert_eq!(world.gaps(GENERAL), [(gap.window.start, gap.window.end, "blob_expired".to_owned())]);
    world.begun.clear();
    world.apply(LoopEvent::Done(ActionResult::Written(Ok(()))));
    world.apply(LoopEvent::Done(ActionResult::Lost(GENERAL, job.key, Ok(()))));
    world.clock.advance(Duration::from_secs(2));
    world.apply(LoopEvent::Due(None));
    let written = world.begun.iter().find_map(|action| match action {
        LoopAction::Write(positions, lost) => Some((positions[&GENERAL].gaps.len(), lost.clone())),
        _ => None,
    });
    assert_eq!(written, Some((1, vec![(GENERAL, job.key)])), "one commit has the mark and the gap");
    assert_eq!(world.complete_until(GENERAL), Some(before(60)), "not before it is durable");
    world.apply(LoopEvent::Done(ActionResult::Written(Ok(()))));
    assert!(world.complete_until(GENERAL) > Some(before(60)));
}

#[test]
fn what_was_not_listed_for_more_than_a_week_is_declared_once_it_is_known_where_listings_begin() {
    let stopped = before(10 * 24 * 60);
    let position = Position {
        complete_until: Some(stopped),
        listed_until: Some(stopped),
        last_listing: Some(stopped),
        ..Position::first(before(20 * 24 * 60))
    };
    let mut world = World::from(&[GENERAL], false, BTreeMap::from([(GENERAL, position)]), Vec::new());
    let gaps = |world: &World| {
        let gaps = world.begun.iter().filter_map(|action| match action {
            LoopAction::Declare(gap) => Some(gap.clone()),
            _ => None,
        });
        gaps.collect::<Vec<_>>()
    };
    world.wait();
    assert!(gaps(&world).is_empty(), "it is not known yet where the gap ends");
    let begins = start_of_day() - SignedDuration::from_hours(24 * 7) + SignedDuration::from_mins(5);
    let window = Window { start: begins, end: begins + SignedDuration::from_hours(24) };
    world.found(GENERAL, vec![], Some(window));
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(60));
        world.hear();
        world.apply(LoopEvent::Due(None));
    }
    let declared = gaps(&world);
    assert_eq!(declared.len(), 1, "declared once");
    assert_eq!((declared[0].window, declared[0].reason), (Window { start: stopped, end: begins }, GapReason::Outage));
    assert_eq!(world.complete_until(GENERAL), Some(stopped), "not passed before the host has the record");
    assert_eq!(world.gaps(GENERAL), []);
    world.apply(LoopEvent::Done(ActionResult::Gap(declared[0].clone(), Ok(()))));
    assert_eq!(world.complete_until(GENERAL), Some(window.end), "what was read behind the gap counts at once");
    assert_eq!(world.gaps(GENERAL), [(stopped, begins, "outage".to_owned())], "the position remembers it");
}

#[test]
fn a_single_pass_lists_matches_first_and_ends_when_everything_is_settled_and_written() {
    let mut world = World::new(&[ContentType::Dlp, GENERAL, ContentType::Exchange], true);
    let listed = |world: &mut World| {
        let listed = world.begun.extract_if(.., |action| matches!(action, LoopAction::List(..)));
        listed
            .map(|action| if let LoopAction::List(content_type, _) = action { content_type } else { unreachable!() })
            .collect()
    };
    for content_type in [ContentType::Dlp, GENERAL, ContentType::Exchange] {
        let begun: Vec<ContentType> = listed(&mut world);
        assert_eq!(begun, [content_type]);
        world.found(content_type, vec![], Some(day()));
        assert!(!world.decisions.is_finished());
        world.apply(LoopEvent::Found(ListerReport::Ended { content_type, left: None }));
    }
    while !world.decisions.is_finished() {
        let at = world
            .begun
            .iter()
            .position(|action| matches!(action, LoopAction::Write(..)))
            .expect("nothing is under way");
        world.begun.remove(at);
        world.apply(LoopEvent::Done(ActionResult::Written(Ok(()))));
    }
    assert!(world.decisions.report().left.is_empty());
}

#[test]
fn a_single_pass_gives_a_blob_up_and_reports_it() {
    let mut world = World::new(&[GENERAL], true);
    world.found(GENERAL, vec![], Some(day()));
    world.found(GENERAL, vec![blob("b1", 60)], Some(hour()));
    world.apply(LoopEvent::Found(ListerReport::Ended { content_type: GENERAL, left: None }));
    for _ in 0..ONCE_ATTEMPTS_MAX {
        while world.fetched().is_empty() {
            world.wait();
        }
        world.end_fetch(unread("cut"));
    }
    let left = world.decisions.report().left;
    assert_eq!(left.len(), 1);
    assert!(left[0].why.starts_with("1 blob of `Audit.General`"), "{}", left[0].why);
    assert_eq!(world.complete_until(GENERAL), Some(before(60)), "the next run finds it");
}

#[test]
fn a_date_in_doubt_moves_no_position() {
    let mut world = World::new(&[GENERAL], false);
    let far = world.clock.now() + SignedDuration::from_hours(24);
    world.server.observe(ServerDate { date: far, at: world.clock.monotonic() });
    world.found(GENERAL, vec![], Some(day()));
    assert_eq!(world.complete_until(GENERAL), None);
}

/// What may happen to a tenant, in any order.
#[derive(Debug, Clone)]
enum Step {
    /// Blobs so many minutes old are listed, and perhaps the last page of a window that ends so many minutes ago.
    Page(Vec<u8>, Option<u8>),
    /// One running action ends; a fetch may end in failure.
    End(usize, bool),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (prop::collection::vec(0..200u8, 0..6), prop::option::of(0..200u8)).prop_map(|(b, w)| Step::Page(b, w)),
        6 => (any::<usize>(), prop::bool::weighted(0.7)).prop_map(|(n, well)| Step::End(n, well)),
        2 => (1..600u16).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn whatever_happens_the_position_passes_no_blob_that_is_not_settled(steps in steps()) {
        let mut world = World::new(&[GENERAL], false);
        let mut settled: Vec<Timestamp> = Vec::new();
        let mut open: BTreeMap<String, Timestamp> = BTreeMap::new();
        let mut passed = None;
        world.found(GENERAL, vec![], Some(Window { start: before(24 * 60), end: before(150) }));
        prop_assert_eq!(world.complete_until(GENERAL), Some(before(150)));
        for step in steps {
            match step {
                Step::Page(minutes, read) => {
                    let blobs: Vec<BlobRef> = minutes.iter().map(|m| blob(&format!("b{m}"), i64::from(*m))).collect();
                    for blob in &blobs {
                        // A late blob, below the position, holds nothing back.
                        let late = world.complete_until(GENERAL).is_some_and(|complete| blob.created < complete);
                        if !late && !settled.contains(&blob.created) {
                            open.insert(blob.id.to_string(), blob.created);
                        }
                    }
                    // An earlier blob is listed again until it is settled; then the lister leaves it out.
                    let blobs = blobs.into_iter().filter(|blob| !settled.contains(&blob.created)).collect();
                    let window = read.map(|m| {
                        let start = if m < 100 { before(100) } else { before(24 * 60) };
                        Window { start, end: before(i64::from(m)) }
                    });
                    world.found(GENERAL, blobs, window);
                }
                Step::End(which, well) => {
                    if world.begun.is_empty() {
                        continue;
                    }
                    let at = which % world.begun.len();
                    let done = match world.begun.remove(at) {
                        LoopAction::Fetch(job, _) if well => {
                            settled.push(job.blob.created);
                            open.remove(&job.blob.id.to_string());
                            ActionResult::Blob(job, FetchOutcome::Settled)
                        }
                        LoopAction::Fetch(job, _) => ActionResult::Blob(job, unread("cut")),
                        LoopAction::Write(..) => ActionResult::Written(Ok(())),
                        LoopAction::TendHold(_) => ActionResult::Held(Ok(())),
                        LoopAction::Expire | LoopAction::OfferAside => ActionResult::Aside(Ok(())),
                        LoopAction::Declare(gap) => ActionResult::Gap(gap, Ok(())),
                        LoopAction::ReportLost(job, gap) => ActionResult::Lost(gap.content_type, job.key, Ok(())),
                        LoopAction::List(..) => continue,
                    };
                    world.apply(LoopEvent::Done(done));
                }
                Step::Wait(seconds) => {
                    world.clock.advance(Duration::from_secs(seconds.into()));
                    world.hear();
                    world.apply(LoopEvent::Due(None));
                }
            }
            let complete = world.complete_until(GENERAL);
            prop_assert!(complete >= passed, "it went back");
            passed = complete;
            let oldest = open.values().min().copied();
            prop_assert!(oldest.is_none_or(|oldest| complete.is_none_or(|complete| complete <= oldest)));
            let fetching = world.fetched().len();
            prop_assert!(fetching <= 32 && (fetching > 0 || world.decisions.ready.is_empty()), "a blob waits for nothing");
            prop_assert!(world.begun.iter().filter(|action| matches!(action, LoopAction::Write(..))).count() <= 1);
        }
    }
}
