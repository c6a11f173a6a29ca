//! What an idle tenant holds: bytes allocated by the threads of the sources, counted by the allocator.
//!
//! The simulated tenants live on a thread of their own, which is not counted; both talk over sockets alone. Resident
//! memory is some tenths more: the allocator's own, and pages that are not full.
#![cfg(all(feature = "sim", feature = "embedded"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, TestClock};
use m365_audit::config::SourceConfig;
use m365_audit::host::StateStore as _;
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::{EmbeddedHost, recorder};
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{CallKind, Sim, SimConfig, SubscriptionState};
use m365_audit::source::fleet::{BEGIN_EVERY, Fleet};
use m365_audit::source::{M365Audit, Source, backfill};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The limit of resident memory is 60 KiB; what is not counted here takes its share. 50 KiB were measured.
const BYTES_MAX: i64 = 52 * 1024;
/// Measured between these two numbers of tenants. The first begin together, so that as many connections are open then as
/// are ever kept: those of a busy machine, on which more calls are under way at a time, would count for the others.
const FEW: usize = 60;
const MANY: usize = 300;
/// For a slow machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(900);

struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize, sign: i64) {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        LIVE.fetch_add(sign * bytes as i64, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator is unsafe by nature; this one counts and hands on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

/// The simulated tenants, on a thread that is not counted.
fn simulate(clock: &TestClock) -> Sim {
    let (started, start) = std::sync::mpsc::channel();
    let clock = clock.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = SimConfig { tenants: (0..MANY).map(tenant).collect(), ..SimConfig::default() };
            let sim = Sim::start(config, Arc::new(clock)).await.unwrap();
            for number in 0..MANY {
                for content_type in ContentType::ALL {
                    sim.set_subscription(&tenant(number), content_type, SubscriptionState::Enabled);
                }
            }
            started.send(sim).unwrap();
            std::future::pending::<()>().await;
        });
    });
    start.recv().unwrap()
}

/// Until nothing is asked for some milliseconds.
async fn rest(sim: &Sim) {
    let (mut last, mut same) = (0, 0);
    while same < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let now = sim.activity();
        same = if now == last && sim.in_flight() == 0 { same + 1 } else { 0 };
        last = now;
    }
}

#[test]
fn an_idle_tenant_stays_within_its_share_of_memory() {
    let clock = TestClock::at("2026-05-10T12:00:00Z".parse().unwrap());
    let sim = simulate(&clock);
    COUNTED.set(true);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(|| COUNTED.set(true))
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _recorded = recorder::install().unwrap();
        let store = Arc::new(MemoryStore::new());
        let host = Arc::new(EmbeddedHost::new(Vec::new(), store.clone(), Arc::new(clock.clone())));
        let (fleet, stop) = (Fleet::new(), CancellationToken::new());
        let mut sources = JoinSet::new();
        let mut counters = Vec::new();
        let mut live = Vec::new();
        for tenants in [FEW, MANY] {
            for number in sources.len()..tenants {
                let config: SourceConfig = serde_json::from_value(json!({
                    "tenant_id": tenant(number).as_str(),
                    "client_id": SimConfig::default().client_id,
                    "client_secret": SimConfig::default().client_secret,
                    "api_url": sim.url(),
                    "authority_url": sim.url(),
                    "audience": sim.url(),
                    // What is let through at once by the limit is small, and more would wait for the clock.
                    "max_requests_per_minute": 0,
                }))
                .unwrap();
                let (counter, desk) = backfill::request_queue();
                counters.push(counter);
                let source = M365Audit::new(format!("t{number}"), config, Arc::new(clock.clone()));
                sources
                    .spawn(Box::new(source.with_backfill_queue(desk).in_fleet(&fleet)).run(host.clone(), stop.clone()));
            }
            // Everyone has listed a day in two windows of each type and stored where that leads.
            let listings = tenants * 2 * ContentType::ALL.len();
            let begun = Instant::now();
            if tenants == FEW {
                clock.advance(BEGIN_EVERY * FEW as u32);
            }
            loop {
                clock.advance(BEGIN_EVERY);
                rest(&sim).await;
                let listed = sim.requests().iter().filter(|request| request.kind == CallKind::Content).count();
                let stored = store.list("m365_audit/v1/").await.unwrap();
                let positions = stored.iter().filter(|(key, _)| key.ends_with("/position")).count();
                if listed >= listings && positions >= tenants * ContentType::ALL.len() {
                    break;
                }
                assert!(
                    begun.elapsed() < PATIENCE,
                    "{listed} of {listings} listings, {positions} positions: {stored:?}"
                );
            }
            // The gauges are set, and what was under way has ended.
            clock.advance(Duration::from_secs(15));
            let mut last = (sim.activity(), LIVE.load(Ordering::Relaxed));
            let mut same = 0;
            while same < 20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                // The test's clock keeps those who woke for another reason until it is asked.
                clock.sleepers();
                let now = (sim.activity(), LIVE.load(Ordering::Relaxed));
                same = if now == last { same + 1 } else { 0 };
                last = now;
                assert!(begun.elapsed() < PATIENCE, "it does not come to rest");
            }
            live.push(last.1);
        }
        let each = (live[1] - live[0]) / (MANY - FEW) as i64;
        println!("{each} bytes for each idle tenant ({} in all at {:?})", live[1], clock.monotonic());
        assert!(each <= BYTES_MAX, "{each} bytes for each idle tenant, at most {BYTES_MAX} are allowed");
        // A limit that is far off finds nothing.
        assert!(each >= BYTES_MAX / 2, "{each} bytes for each idle tenant: lower the limit");
        stop.cancel();
        while let Some(ended) = sources.join_next().await {
            ended.unwrap().unwrap();
        }
    });
}
