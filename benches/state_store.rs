//! The embedded host's store: a commit as for a settled blob, synced when it returns, and the reads of a start.
//!
//! The file is below `M365_BENCH_DIR`, else in the system's directory for temporary files; a commit costs as much as a
//! sync there.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use m365_audit::host::{Expected, Op, StateStore};
use m365_audit::hosts::embedded::store::SqliteStore;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Bytes of an event's key.
const KEY_BYTES: usize = 16;

fn main() {
    divan::main();
}

fn opened() -> (TempDir, SqliteStore, Runtime) {
    let dir = match std::env::var_os("M365_BENCH_DIR") {
        Some(root) => TempDir::new_in(root),
        None => TempDir::new(),
    }
    .expect("a directory");
    let store = SqliteStore::open(dir.path()).expect("a store");
    (dir, store, tokio::runtime::Builder::new_current_thread().build().expect("a runtime"))
}

fn put(key: String, value: Vec<u8>, expected: Expected) -> Op {
    Op::Put { key, value: Bytes::from(value), expected }
}

/// Keys of this many events, the marks of their blobs, and the owner's entry, which every commit rewrites against its
/// last revision. The ledger makes one commit of all blobs that settle while the one before is synced.
#[divan::bench(args = [200, 2_000, 14_000], sample_count = 50, sample_size = 1)]
fn commit(bencher: Bencher<'_, '_>, events: usize) {
    let (_dir, store, runtime) = opened();
    let (mut owner, mut number) = (Expected::Absent, 0u64);
    bencher.counter(ItemsCount::new(events)).bench_local(|| {
        number += 1;
        let ops = vec![
            put(
                format!("m365_audit/v1/t/events/d/{number:016x}"),
                vec![number as u8; events * KEY_BYTES],
                Expected::Any,
            ),
            put(
                format!("m365_audit/v1/t/blobs/d/{number:016x}"),
                vec![number as u8; events / 200 * KEY_BYTES],
                Expected::Any,
            ),
            put("m365_audit/v1/t/owner".into(), vec![b'o'; 120], owner),
        ];
        owner = Expected::At(runtime.block_on(store.commit(ops)).expect("room"));
    });
}

/// As [`commit`], by several sources at once: the store's one writer takes them in turn.
#[divan::bench(args = [1, 8], sample_count = 20, sample_size = 1)]
fn commit_by_tenants(bencher: Bencher<'_, '_>, tenants: usize) {
    let (_dir, store, runtime) = opened();
    let mut number = 0u64;
    bencher.counter(ItemsCount::new(tenants)).bench_local(|| {
        number += 1;
        let commits = (0..tenants).map(|tenant| {
            let key = format!("m365_audit/v1/{tenant}/events/d/{number:016x}");
            store.commit(vec![put(key, vec![number as u8; 200 * KEY_BYTES], Expected::Any)])
        });
        for done in runtime.block_on(futures_util::future::join_all(commits)) {
            done.expect("room");
        }
    });
}

/// All of 250 entries of 200 keys, as [`KeySet::load`](m365_audit::checkpoint::key_set::KeySet::load) asks for them.
#[divan::bench(sample_count = 20)]
fn list_and_load(bencher: Bencher<'_, '_>) {
    const ENTRIES: usize = 250;
    let (_dir, store, runtime) = opened();
    let name = |n: usize| format!("m365_audit/v1/t/events/d/{n:016x}");
    let ops = (0..ENTRIES).map(|n| put(name(n), vec![n as u8; 200 * KEY_BYTES], Expected::Any)).collect();
    runtime.block_on(store.commit(ops)).expect("room");
    bencher.counter(ItemsCount::new(ENTRIES)).bench_local(|| {
        runtime.block_on(async {
            let mut bytes = 0;
            for (key, _) in store.list("m365_audit/v1/t/").await.expect("a store") {
                bytes += store.load(&key).await.expect("a store").map_or(0, |(value, _)| value.len());
            }
            bytes
        })
    });
}
