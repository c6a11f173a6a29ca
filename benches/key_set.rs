//! The cost of lookups in a set of a million keys, and of staging.

use parking_lot::Mutex;

use m365_audit::checkpoint::key_set::{Key, KeyKind, KeySet, Probe, contains_all, maintain};
use m365_audit::host::StateStore;
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::model::Timestamp;

fn main() {
    divan::main();
}

/// Keys of events that happened up to an hour before the ten a second that are delivered.
fn keys(from: u32, count: u32) -> Vec<Key> {
    let key = |n: u32| Key::of_blob(&n.to_string(), time(i64::from(n / 10 + n % 3600)));
    (from..from + count).map(key).collect()
}

fn time(secs: i64) -> Timestamp {
    Timestamp::from_second(secs).unwrap_or_default()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn filled(count: u32) -> (MemoryStore, Mutex<KeySet>) {
    let store = MemoryStore::new();
    let set = Mutex::new(block_on(KeySet::load(&store, "bench", KeyKind::Events)).unwrap());
    for from in (0..count).step_by(5_000) {
        let staged = set.lock().stage(&keys(from, 5_000), time(0));
        block_on(store.commit(staged.ops)).unwrap();
        set.lock().committed(staged.token);
        while let Some(staged) = block_on(maintain(&set, &store)).unwrap() {
            block_on(store.commit(staged.ops)).unwrap();
            set.lock().committed(staged.token);
        }
    }
    (store, set)
}

#[divan::bench(sample_count = 20)]
fn probe_1000_absent_in_a_million(bencher: divan::Bencher) {
    let (_store, set) = filled(1_000_000);
    let absent: Vec<Key> = keys(2_000_000_000, 1000);
    let near: Vec<Key> =
        (0..1000u32).map(|n| Key::of_blob(&format!("x{n}"), time(i64::from(n * 100)))).chain(absent).collect();
    let set = set.into_inner();
    let maybe = near.iter().take(1000).filter(|k| matches!(set.probe(**k), Probe::Maybe(_))).count();
    eprintln!(
        "{maybe} of 1000 absent keys need a page; {:.2} bytes a key",
        set.memory_bytes() as f64 / set.len() as f64
    );
    bencher.bench_local(|| near.iter().take(1000).filter(|k| set.probe(**k) == Probe::Absent).count());
}

#[divan::bench(sample_count = 20)]
fn contains_1000_of_a_million(bencher: divan::Bencher) {
    let (store, set) = filled(1_000_000);
    let present = keys(500_000, 1000);
    bencher.bench_local(|| block_on(contains_all(&set, &store, &present)).unwrap());
}

#[divan::bench(args = [3, 1000, 100_000], sample_count = 20)]
fn stage(bencher: divan::Bencher, count: u32) {
    let (_store, set) = filled(10_000);
    let mut set = set.into_inner();
    let new = keys(1_000_000, count);
    bencher.bench_local(|| {
        let staged = set.stage(&new, time(0));
        set.aborted(staged.token);
        staged.ops
    });
}

#[divan::bench(sample_count = 5)]
fn load_a_million(bencher: divan::Bencher) {
    let (store, _) = filled(1_000_000);
    bencher.bench_local(|| block_on(KeySet::load(&store, "bench", KeyKind::Events)).unwrap());
}
