//! The load of a fleet on its PostgreSQL: commits of 200 events, their latency, the bytes they write, and the reads of
//! a takeover. Starts a server of its own; if there is none, prints that and ends.
//!
//! `cargo bench --bench postgres`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use m365_audit::checkpoint::format::Position;
use m365_audit::checkpoint::key::Key;
use m365_audit::checkpoint::ledger::{Change, Ledger, LedgerSettings, OpenedLedger, ServerTimeSource};
use m365_audit::clock::{Clock, SystemClock};
use m365_audit::host::StateStore;
use m365_audit::hosts::postgres::{Endpoint, PostgresStore};
use m365_audit::model::{ContentType, TenantId};
use test_support::postgres::Postgres;

const TENANTS: usize = 64;
const COMMITS_EACH: usize = 60;
const EVENTS: usize = 200;
/// Commits in flight at once: as many as the connections of two processes.
const AT_ONCE: usize = 16;

fn tenant(number: usize) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

async fn opened(store: Arc<dyn StateStore>, number: usize) -> OpenedLedger {
    let settings = LedgerSettings {
        tenant: tenant(number),
        content_types: ContentType::ALL.to_vec(),
        event_keys_max: 10_000_000,
        receipts: None,
        fills_gaps: false,
        server_time: ServerTimeSource::default(),
    };
    Ledger::open(store, SystemClock::new(), &settings, Box::new(|_| {})).await.unwrap()
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

#[tokio::main]
async fn main() {
    let Some(server) = Postgres::start("synchronous_commit=on") else { return };
    let url = server.database();
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let store = || PostgresStore::new(&Endpoint::of(&url, None).unwrap(), "bench", SystemClock::new()).unwrap();
    store().make_tables(1).await.unwrap();
    let stores = [Arc::new(store()), Arc::new(store())];
    for full_pages in ["on", "off"] {
        server.sql("postgres", &format!("alter system set full_page_writes = {full_pages}"));
        server.sql("postgres", "select pg_reload_conf()");
        server.sql(&name, "checkpoint");
        let log = || server.sql(&name, "select pg_current_wal_lsn() - '0/0'").parse::<f64>().unwrap();
        let (before, began) = (log(), Instant::now());
        let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..TENANTS {
            let (store, room) = (stores[number % 2].clone(), room.clone());
            tasks.spawn(async move {
                let OpenedLedger { ledger, handle, .. } = opened(store, number).await;
                let running = tokio::spawn(ledger.run());
                let mut took = Vec::new();
                for commit in 0..COMMITS_EACH {
                    let _room = room.acquire().await.unwrap();
                    let key = |event: usize| {
                        Key::of_anonymous(
                            "blob",
                            format!("{number} {commit} {event} {:?}", Instant::now()).as_bytes(),
                            0,
                        )
                    };
                    let delivered = (0..EVENTS).map(key).collect();
                    let positions = BTreeMap::from([(ContentType::General, Position::first(SystemClock::new().now()))]);
                    let begun = Instant::now();
                    handle.commit(Change { delivered, positions, ..Change::default() }).await.unwrap();
                    took.push(begun.elapsed());
                }
                drop(handle);
                running.await.unwrap().unwrap();
                took
            });
        }
        let mut took: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        let (secs, commits) = (began.elapsed().as_secs_f64(), took.len());
        took.sort();
        println!(
            "full_page_writes {full_pages:3}: {commits} commits of {EVENTS} events, {AT_ONCE} at once: {:.0}/s, median {:.1} ms, p99 {:.1} ms; log {:.0} bytes a commit",
            commits as f64 / secs,
            percentile(&took, 0.5).as_secs_f64() * 1e3,
            percentile(&took, 0.99).as_secs_f64() * 1e3,
            (log() - before) / commits as f64
        );
    }
    let events = (2 * TENANTS * COMMITS_EACH * EVENTS) as f64;
    server.sql(&name, "vacuum kv");
    let bytes: f64 = server.sql(&name, "select pg_total_relation_size('kv')").parse().unwrap();
    println!("disk: {:.1} bytes an event", bytes / events);

    let began = Instant::now();
    let done = AtomicUsize::new(0);
    for number in 0..TENANTS {
        drop(opened(stores[0].clone(), number).await);
        done.fetch_add(1, Ordering::Relaxed);
    }
    let each = began.elapsed().as_secs_f64() / done.load(Ordering::Relaxed) as f64;
    println!("takeover of a tenant with {} events: {:.1} ms, one after another", 2 * COMMITS_EACH * EVENTS, each * 1e3);
}
