//! Many tenants in one process, without the process: when they ask, by a clock that the test moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, TestClock};
use m365_audit::config::SourceConfig;
use m365_audit::hosts::embedded::EmbeddedHost;
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{CallKind, Sim, SimConfig, SubscriptionState};
use m365_audit::source::fleet::{BEGIN_EVERY, Fleet};
use m365_audit::source::{M365Audit, Source};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const TENANTS: usize = 150;
const POLL_SECS: u64 = 300;
/// So many turns of the runtime without a stir are rest.
const TURNS_OF_REST: u32 = 32;
/// A run that takes longer hangs.
const REAL_TIME_MAX: Duration = Duration::from_secs(900);

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

struct World {
    sim: Sim,
    clock: TestClock,
    host: Arc<EmbeddedHost>,
    sources: JoinSet<()>,
    stop: CancellationToken,
    begun: Instant,
}

impl World {
    async fn new(tenants: usize) -> Self {
        let clock = TestClock::at("2026-05-10T12:00:00Z".parse().unwrap());
        let config = SimConfig { tenants: (0..tenants).map(tenant).collect(), ..SimConfig::default() };
        let sim = Sim::start(config, Arc::new(clock.clone())).await.unwrap();
        for number in 0..tenants {
            for content_type in ContentType::ALL {
                sim.set_subscription(&tenant(number), content_type, SubscriptionState::Enabled);
            }
        }
        let host = EmbeddedHost::new(Vec::new(), Arc::new(MemoryStore::new()), Arc::new(clock.clone()));
        let (host, stop) = (Arc::new(host), CancellationToken::new());
        Self { sim, clock, host, sources: JoinSet::new(), stop, begun: Instant::now() }
    }

    fn source(&self, number: usize) -> M365Audit {
        let config = SimConfig::default();
        let config: SourceConfig = serde_json::from_value(json!({
            "tenant_id": tenant(number).as_str(),
            "client_id": config.client_id,
            "client_secret": config.client_secret,
            "api_url": self.sim.url(),
            "authority_url": self.sim.url(),
            "audience": self.sim.url(),
            "poll_interval_secs": POLL_SECS,
            // What is let through at once by the limit is small, and more would wait for the clock.
            "max_requests_per_minute": 0,
        }))
        .unwrap();
        M365Audit::new(format!("t{number}"), config, Arc::new(self.clock.clone()))
    }

    fn start(&mut self, source: M365Audit) {
        let run = Box::new(source).run(self.host.clone(), self.stop.clone());
        self.sources.spawn(async move {
            run.await.unwrap();
        });
    }

    /// Waits until nothing moves any more unless time does.
    async fn rest(&self) {
        let (mut last, mut turns) = ((0, 0), 0);
        while turns < TURNS_OF_REST {
            tokio::task::yield_now().await;
            if turns == TURNS_OF_REST / 2 {
                // On a busy machine a packet may be on its way.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let now = (self.sim.activity(), self.sim.in_flight());
            turns = if now == last && now.1 == 0 { turns + 1 } else { 0 };
            last = now;
            assert!(self.begun.elapsed() < REAL_TIME_MAX, "it hangs at {}", self.sim.now());
        }
    }

    /// Lets time pass second by second.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            self.rest().await;
        }
    }

    /// Requests by the second of the test's clock.
    fn by_second(&self) -> BTreeMap<u64, usize> {
        let mut seconds = BTreeMap::new();
        for request in self.sim.requests() {
            *seconds.entry(request.monotonic.as_secs()).or_default() += 1;
        }
        seconds
    }

    /// How many tenants were asked about.
    fn asked(&self) -> usize {
        self.sim.requests().into_iter().map(|request| request.tenant).collect::<BTreeSet<_>>().len()
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.sources.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn many_idle_tenants_never_ask_together_neither_at_the_start_nor_later() {
    let mut world = World::new(TENANTS).await;
    let fleet = Fleet::new();
    for number in 0..TENANTS {
        let source = world.source(number).in_fleet(&fleet);
        world.start(source);
    }
    world.rest().await;
    let first: Vec<_> = world.sim.requests().into_iter().map(|request| request.tenant).collect();
    assert!(!first.is_empty() && first.iter().all(|known| known == tenant(0).as_str()), "the first begins at once");

    let begun = TENANTS as u64 * BEGIN_EVERY.as_millis() as u64 / 1000 + 3;
    world.pass(begun).await;
    let requests = world.sim.requests();
    for number in 0..TENANTS {
        let known = |request: &&m365_audit::sim::RequestLog| request.tenant == tenant(number).as_str();
        let listed = requests.iter().filter(known).filter(|request| request.kind == CallKind::Content);
        // A day in windows of at most 23 hours, of each type.
        assert!(listed.count() >= 2 * ContentType::ALL.len(), "tenant {number} has not begun");
    }
    // A token, the list of subscriptions and two windows of each type.
    let per_tenant = 2 + 2 * ContentType::ALL.len();
    let begin_at_once = (1000 / BEGIN_EVERY.as_millis()) as usize + 1;
    let most = world.by_second().into_values().max().unwrap();
    // Twice, since on a busy machine some of a second's requests may come in the next one; all together are 1,800.
    assert!(
        most <= 2 * begin_at_once * per_tenant,
        "{most} requests in one second of the start: {:?}",
        world.by_second()
    );

    world.pass(2 * POLL_SECS).await;
    let idle = world.by_second().split_off(&(begun + 1));
    let (sum, most) = (idle.values().sum::<usize>(), idle.values().max().copied().unwrap_or_default());
    let polls = TENANTS * ContentType::ALL.len();
    assert!(sum >= polls, "{sum} requests in two intervals");
    // Together they would be at least one for each stream.
    assert!(most <= polls / 10, "{most} requests in one second of idling: {idle:?}");
    world.end().await;
}

#[tokio::test]
async fn a_single_pass_waits_for_no_turn() {
    let mut world = World::new(20).await;
    let fleet = Fleet::new();
    for number in 0..20 {
        let source = world.source(number).in_fleet(&fleet).once();
        world.start(source);
    }
    while !world.sources.is_empty() {
        world.rest().await;
        assert_eq!(world.clock.monotonic(), Duration::ZERO, "no time passes");
        while world.sources.try_join_next().is_some() {}
    }
    assert_eq!(world.asked(), 20);
}

#[tokio::test]
async fn tenants_that_begin_one_after_the_other_share_a_handful_of_connections() {
    let mut world = World::new(60).await;
    let fleet = Fleet::new();
    for number in 0..60 {
        let source = world.source(number).in_fleet(&fleet);
        world.start(source);
    }
    for _ in 0..=60 {
        world.rest().await;
        world.clock.advance(BEGIN_EVERY);
    }
    world.rest().await;
    assert_eq!(world.asked(), 60);
    // One tenant makes twelve calls: a token, its subscriptions, two windows of five types. A connection is opened only
    // when all others are busy or still being opened, so the number stays below one for each call beside those; on a fast
    // machine there are five.
    let accepted = world.sim.counters().connections;
    assert!(accepted <= 24, "{accepted} connections");
    world.end().await;
}

#[tokio::test]
async fn a_source_that_waits_for_its_turn_stops_at_once() {
    let mut world = World::new(3).await;
    let fleet = Fleet::new();
    for number in 0..3 {
        let source = world.source(number).in_fleet(&fleet);
        world.start(source);
    }
    world.rest().await;
    assert_eq!(world.asked(), 1);
    world.end().await;
}
