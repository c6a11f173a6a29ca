//! Many tenants that catch up in one process: so many read at once, the others wait their turn, and nothing is lost.
//!
//! The host keeps what it is given until the test answers, so that who reads, and holds memory for it, is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use m365_audit::clock::TestClock;
use m365_audit::config::SourceConfig;
use m365_audit::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateStore, TicketAnswer};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::sim::{CallKind, NewBlob, Sim, SimConfig, SubscriptionState};
use m365_audit::source::fleet::Fleet;
use m365_audit::source::{M365Audit, Source};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// So many turns of the runtime without a stir are rest.
const TURNS_OF_REST: u32 = 48;
/// A run that takes longer hangs.
const REAL_TIME_MAX: Duration = Duration::from_secs(900);

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

fn number(of: &TenantId) -> usize {
    of.as_str().rsplit('-').next().unwrap().parse().unwrap()
}

fn start_of_day() -> Timestamp {
    "2026-05-10T12:00:00Z".parse().unwrap()
}

/// Takes records and answers when it is told to.
struct Patient {
    store: Arc<MemoryStore>,
    delivered: Mutex<Vec<Vec<u8>>>,
    waiting: Mutex<Vec<(Batch, TicketAnswer)>>,
    health: Mutex<BTreeMap<String, Health>>,
}

#[async_trait]
impl Host for Patient {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        let (answer, ticket) = DeliveryTicket::new();
        self.waiting.lock().unwrap().push((batch, answer));
        ticket
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.store.clone()
    }

    fn health(&self, source: &str, health: Health) {
        self.health.lock().unwrap().insert(source.to_owned(), health);
    }
}

impl Patient {
    fn new(store: Arc<MemoryStore>) -> Arc<Self> {
        let (delivered, waiting, health) = Default::default();
        Arc::new(Self { store, delivered, waiting, health })
    }

    /// The tenants of which it has records that it has not answered for.
    fn holds(&self) -> BTreeSet<TenantId> {
        self.waiting.lock().unwrap().iter().map(|(batch, _)| batch.tenant.clone()).collect()
    }

    /// Takes the oldest batch it holds.
    fn take_one(&self) {
        let oldest = self.waiting.lock().unwrap().iter().map(|(batch, _)| batch.id).min();
        self.take_if(|batch| Some(batch.id) == oldest);
    }

    fn is_waiting(&self) -> usize {
        self.waiting.lock().unwrap().len()
    }

    /// Takes what it holds of these tenants.
    fn take(&self, of: impl Fn(&TenantId) -> bool) {
        self.take_if(|batch| of(&batch.tenant));
    }

    fn take_if(&self, of: impl Fn(&Batch) -> bool) {
        let (taken, kept) = std::mem::take(&mut *self.waiting.lock().unwrap())
            .into_iter()
            .partition::<Vec<_>, _>(|(batch, _)| of(batch));
        *self.waiting.lock().unwrap() = kept;
        for (batch, answer) in taken {
            self.delivered.lock().unwrap().extend(batch.records().map(|record| record.json.to_vec()));
            answer.answer(Delivery::Delivered);
        }
    }

    fn told(&self, number: usize, what: &str) -> bool {
        let health = self.health.lock().unwrap();
        matches!(health.get(&format!("t{number}")), Some(Health::Degraded { why, .. }) if why.contains(what))
    }
}

struct World {
    sim: Sim,
    clock: TestClock,
    host: Arc<Patient>,
    sources: JoinSet<()>,
    stop: CancellationToken,
    begun: Instant,
    events: u64,
}

impl World {
    async fn new(tenants: usize) -> Self {
        let clock = TestClock::at(start_of_day());
        let config = SimConfig { tenants: (0..tenants).map(tenant).collect(), ..SimConfig::default() };
        let sim = Sim::start(config, Arc::new(clock.clone())).await.unwrap();
        for number in 0..tenants {
            sim.set_subscription(&tenant(number), ContentType::Exchange, SubscriptionState::Enabled);
        }
        let (host, stop) = (Patient::new(Arc::default()), CancellationToken::new());
        Self { sim, clock, host, sources: JoinSet::new(), stop, begun: Instant::now(), events: 0 }
    }

    /// Blobs of two events each, from so long ago on, a minute apart.
    fn publish(&mut self, number: usize, blobs: usize, ago: Duration) {
        let first = start_of_day() - ago;
        for blob in 0..blobs {
            let created = first + Duration::from_secs(60 * blob as u64);
            let events: Vec<String> = (0..2).map(|_| self.event(number, created)).collect();
            self.sim.add_blob(&tenant(number), ContentType::Exchange, NewBlob::at(created).with_events(events));
        }
    }

    fn event(&mut self, number: usize, time: Timestamp) -> String {
        self.events += 1;
        json!({
            "Id": format!("00000000-0000-4000-8000-{:012}", self.events),
            "RecordType": 1,
            "CreationTime": time.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
            "Operation": "Set-Mailbox",
            "OrganizationId": tenant(number).as_str(),
            "UserType": 2,
            "Workload": "Exchange",
            "UserId": "someone@example.com",
        })
        .to_string()
    }

    fn start(&mut self, numbers: std::ops::Range<usize>, fleet: &Fleet) {
        for number in numbers {
            let config: SourceConfig = serde_json::from_value(json!({
                "tenant_id": tenant(number).as_str(),
                "client_id": SimConfig::default().client_id,
                "client_secret": SimConfig::default().client_secret,
                "content_types": [ContentType::Exchange.as_str()],
                "backfill_secs": 7 * 86_400,
                "api_url": self.sim.url(),
                "authority_url": self.sim.url(),
                "audience": self.sim.url(),
                "format": "raw",
                "max_requests_per_minute": 0,
            }))
            .unwrap();
            let source = M365Audit::new(format!("t{number}"), config, Arc::new(self.clock.clone())).in_fleet(fleet);
            let run = Box::new(source).run(self.host.clone(), self.stop.clone());
            self.sources.spawn(async move {
                run.await.unwrap();
            });
        }
    }

    /// Waits until nothing moves any more unless time does, or the host.
    async fn rest(&self) {
        let (mut last, mut turns) = ((0, 0, 0), 0);
        while turns < TURNS_OF_REST {
            tokio::task::yield_now().await;
            if turns == TURNS_OF_REST / 2 {
                // On a busy machine a packet may be on its way.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let now = (self.sim.activity(), self.sim.in_flight(), self.host.is_waiting());
            turns = if now == last && now.1 == 0 { turns + 1 } else { 0 };
            last = now;
            assert!(self.begun.elapsed() < REAL_TIME_MAX, "it hangs at {}", self.sim.now());
        }
    }

    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            self.rest().await;
        }
    }

    /// Whose blobs were asked for, in the order of the first request of each.
    fn read(&self) -> Vec<usize> {
        let mut order = Vec::new();
        for request in self.sim.requests().into_iter().filter(|request| request.kind == CallKind::Blob) {
            let number = number(&request.tenant.parse().unwrap());
            if !order.contains(&number) {
                order.push(number);
            }
        }
        order
    }

    fn all_came_once(&self) {
        let delivered = self.host.delivered.lock().unwrap();
        let compared = self.sim.truth().compare(delivered.iter().cloned());
        assert!(compared.is_clean() && compared.expected == self.events, "{compared}");
    }

    fn came(&self) -> u64 {
        self.host.delivered.lock().unwrap().len() as u64
    }

    async fn end(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.sources.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn no_more_tenants_read_at_once_than_may_and_all_events_come_once() {
    let mut world = World::new(12).await;
    for number in 0..12 {
        world.publish(number, 25, Duration::from_secs(86_400));
    }
    let fleet = Fleet::new().reading_at_most(3);
    world.start(0..12, &fleet);
    world.pass(2).await;
    assert_eq!(world.read().len(), 3);
    let mut most = 0;
    for step in 0.. {
        assert!(step < 4000, "{} of {} events came", world.came(), world.events);
        most = most.max(world.host.holds().len());
        assert!(world.host.holds().len() <= 3, "{:?}", world.host.holds());
        // Every other second the receiver takes what it has of some.
        world.host.take(|of| (number(of) + step).is_multiple_of(2));
        world.pass(1).await;
        if world.came() == world.events {
            break;
        }
    }
    assert_eq!((most, world.read().len()), (3, 12));
    world.all_came_once();
    world.end().await;
}

#[tokio::test]
async fn a_turn_ends_after_a_minute_while_others_wait() {
    let mut world = World::new(2).await;
    world.publish(0, 600, Duration::from_secs(86_400));
    world.publish(1, 20, Duration::from_secs(86_400));
    let fleet = Fleet::new().reading_at_most(1);
    world.start(0..1, &fleet);
    world.pass(1).await;
    world.start(1..2, &fleet);
    for second in 0.. {
        world.pass(1).await;
        // One batch a second: all it has would take ten minutes.
        world.host.take_one();
        if world.read().len() == 2 {
            assert!(second >= 58, "a minute is its own: {second}");
            break;
        }
        assert!(second < 180, "its turn was not ended");
    }
    assert!(world.came() < 1200, "it had more to read");
    while world.came() < world.events {
        world.host.take(|_| true);
        world.pass(1).await;
    }
    world.all_came_once();
    world.end().await;
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_of_some_does_not_keep_the_others_from_reading() {
    let mut world = World::new(7).await;
    for number in 0..7 {
        world.publish(number, 20, Duration::from_secs(86_400));
    }
    let fleet = Fleet::new().reading_at_most(2);
    world.start(0..7, &fleet);
    world.pass(100).await;
    let mut stuck = world.read();
    assert_eq!(stuck.len(), 2, "a minute for itself, another to end");
    stuck.extend((0..7).find(|number| !stuck.contains(number)));
    let mut held = Vec::new();
    for _ in 0..10 {
        world.pass(60).await;
        held.push(world.host.holds().len());
        world.host.take(|of| !stuck.contains(&number(of)));
    }
    world.pass(1).await;
    // One more a minute at the most, however many wait.
    assert!(held.windows(2).all(|two| two[1] <= two[0] + 1) && held[0] <= 3, "{held:?}");
    assert_eq!(world.read().len(), 7, "{held:?}");
    assert_eq!(world.came(), 4 * 40, "all of the others");
    world.host.take(|_| true);
    while world.came() < world.events {
        world.pass(1).await;
        world.host.take(|_| true);
    }
    world.all_came_once();
    world.end().await;
}

#[tokio::test]
async fn who_waits_lists_a_little_and_the_rest_when_it_reads() {
    let mut world = World::new(2).await;
    world.publish(0, 20, Duration::from_secs(86_400));
    // All of it new, in the window that is listed first.
    world.publish(1, 700, Duration::from_secs(12 * 3600));
    let fleet = Fleet::new().reading_at_most(1);
    world.start(0..1, &fleet);
    world.pass(2).await;
    world.start(1..2, &fleet);
    world.pass(30).await;
    assert_eq!(world.read(), [0]);
    let listed = |world: &World| {
        let of_it = |request: &m365_audit::sim::RequestLog| request.tenant == tenant(1).as_str();
        let pages = |request: &m365_audit::sim::RequestLog| {
            matches!(request.kind, CallKind::Content | CallKind::NextPage) && of_it(request)
        };
        world.sim.requests().iter().filter(|request| pages(request)).count()
    };
    let page = SimConfig::default().page_size;
    assert!((2..=250 / page).contains(&listed(&world)), "{} pages of {page} blobs", listed(&world));
    for step in 0.. {
        world.host.take(|_| true);
        world.pass(1).await;
        if world.came() == world.events {
            break;
        }
        assert!(step < 2000, "{} of {} events came", world.came(), world.events);
    }
    assert!(listed(&world) >= 700 / page);
    world.all_came_once();
    world.end().await;
}

#[tokio::test]
async fn what_expires_goes_before_those_that_came_first() {
    let mut world = World::new(4).await;
    for number in 0..3 {
        world.publish(number, 20, Duration::from_secs(86_400));
    }
    // Gone in a day.
    world.publish(3, 20, Duration::from_secs(6 * 86_400 + 3600));
    let fleet = Fleet::new().reading_at_most(1);
    world.start(0..1, &fleet);
    world.pass(2).await;
    world.start(1..4, &fleet);
    // Until every tenant has looked at what it has.
    world.pass(20).await;
    assert_eq!(world.read(), [0]);
    assert!(world.host.told(3, "turn-awaited"), "{:?}", world.host.health);
    assert!(!world.host.told(2, "turn-awaited"), "{:?}", world.host.health);
    for _ in 0..600 {
        world.host.take(|_| true);
        world.pass(1).await;
    }
    assert_eq!((world.read().len(), &world.read()[..2]), (4, &[0, 3][..]));
    assert!(!world.host.told(3, "turn-awaited"));
    world.all_came_once();
    world.end().await;
}

#[tokio::test]
async fn who_waits_long_is_told_and_a_few_new_blobs_do_not_wait_for_all_others() {
    const TENANTS: usize = 24;
    let mut world = World::new(TENANTS).await;
    for number in 0..TENANTS - 1 {
        world.publish(number, 12, Duration::from_secs(86_400));
    }
    world.publish(TENANTS - 1, 3, Duration::from_secs(7200));
    let fleet = Fleet::new().reading_at_most(1);
    world.start(0..TENANTS - 1, &fleet);
    world.pass(3).await;
    world.start(TENANTS - 1..TENANTS, &fleet);
    world.pass(2).await;
    assert_eq!(world.read().len(), 1);
    for _ in 0..200 {
        world.host.take(|_| true);
        world.pass(1).await;
        if world.read().len() > 1 {
            break;
        }
    }
    assert_eq!(world.read()[1], TENANTS - 1, "the few before the many");
    // From now on nothing is taken, and one turn a minute is passed on.
    world.pass(17 * 60).await;
    let told = (0..TENANTS).filter(|number| world.host.told(*number, "turn-awaited")).count();
    assert!(told > 0 && told < TENANTS, "{told}: {:?}", world.host.health);
    while world.came() < world.events {
        world.host.take(|_| true);
        world.pass(1).await;
    }
    world.pass(16).await;
    assert!((0..TENANTS).all(|number| !world.host.told(number, "turn-awaited")), "{:?}", world.host.health);
    world.all_came_once();
    world.end().await;
}

#[tokio::test]
async fn a_restart_while_tenants_wait_loses_and_repeats_nothing() {
    let mut world = World::new(6).await;
    for number in 0..6 {
        world.publish(number, 30, Duration::from_secs(86_400));
    }
    for restart in 0..4 {
        let fleet = Fleet::new().reading_at_most(1 + restart % 2);
        world.start(0..6, &fleet);
        for _ in 0..20 {
            world.pass(1).await;
            world.host.take(|of| number(of).is_multiple_of(2));
        }
        world.pass(3).await;
        // What the host holds it will never have taken.
        world.host.waiting.lock().unwrap().clear();
        world.end().await;
        world.stop = CancellationToken::new();
    }
    assert!(world.came() < world.events, "tenants waited");
    let fleet = Fleet::new().reading_at_most(2);
    world.start(0..6, &fleet);
    for step in 0.. {
        world.pass(1).await;
        world.host.take(|_| true);
        if world.came() >= world.events {
            break;
        }
        assert!(step < 2000, "{} of {} events came", world.came(), world.events);
    }
    world.all_came_once();
    world.end().await;
}
