//! What every `StateStore` promises, and each of ours keeps: one suite for all. A new store adds a line to [`stores`].

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use m365_audit::host::{Expected, Op, Revision, StateError, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::store::SqliteStore;
use proptest::prelude::*;

use crate::examples::custom_host;

/// A store, empty, and what must live as long as it does.
struct Subject {
    name: &'static str,
    store: Arc<dyn StateStore>,
    _dir: Option<tempfile::TempDir>,
}

fn stores() -> Vec<Subject> {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(dir.path()).unwrap();
    let in_memory = |name, store| Subject { name, store, _dir: None };
    vec![
        in_memory("memory", Arc::new(MemoryStore::new()) as Arc<dyn StateStore>),
        in_memory("the example's", Arc::new(custom_host::State::default())),
        Subject { name: "SQLite", store: Arc::new(sqlite), _dir: Some(dir) },
    ]
}

fn put(key: &str, value: impl Into<Bytes>, expected: Expected) -> Op {
    Op::Put { key: key.into(), value: value.into(), expected }
}

fn delete(key: &str, expected: Expected) -> Op {
    Op::Delete { key: key.into(), expected }
}

async fn value(store: &dyn StateStore, key: &str) -> Option<Bytes> {
    store.load(key).await.unwrap().map(|(value, _)| value)
}

async fn keys(store: &dyn StateStore, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().into_iter().map(|(key, _)| key).collect()
}

#[tokio::test]
async fn what_was_committed_is_there_byte_for_byte_and_what_was_deleted_is_gone() {
    for Subject { name, store, .. } in stores() {
        assert_eq!(store.load("a").await.unwrap(), None, "{name}");
        let large = Bytes::from(vec![0xff_u8; 1 << 20]);
        let values = [("a", Bytes::new()), ("b", Bytes::from_static(b"\0\xff'\"")), ("c", large)];
        let ops = values.iter().map(|(key, value)| put(key, value.clone(), Expected::Absent)).collect();
        let revision = store.commit(ops).await.unwrap();
        for (key, value) in &values {
            assert_eq!(store.load(key).await.unwrap(), Some((value.clone(), revision)), "{name} {key}");
        }
        store.commit(vec![delete("b", Expected::At(revision)), delete("nothing", Expected::Any)]).await.unwrap();
        assert_eq!(keys(&*store, "").await, ["a", "c"], "{name}");
        assert_eq!(store.load("b").await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn a_list_is_of_the_keys_that_begin_so_in_order_and_of_no_others() {
    for Subject { name, store, .. } in stores() {
        let all = ["", "A/1", "a", "a%", "a/", "a/10", "a/2", "a/ä", "a/\u{10ffff}", "a0", "a_", "b/a/1"];
        let ops = all.iter().rev().map(|key| put(key, "x", Expected::Absent)).collect();
        store.commit(ops).await.unwrap();
        for prefix in ["", "a", "a/", "a%", "a_", "a/1", "A", "a/\u{10ffff}", "c", "a/10/"] {
            let expected: Vec<&str> = all.into_iter().filter(|key| key.starts_with(prefix)).collect();
            assert_eq!(keys(&*store, prefix).await, expected, "{name} {prefix:?}");
        }
    }
}

#[tokio::test]
async fn a_commit_that_meets_another_writer_names_the_key_and_changes_nothing() {
    for Subject { name, store, .. } in stores() {
        let first = store.commit(vec![put("a", "1", Expected::Absent)]).await.unwrap();
        let second = store.commit(vec![put("a", "2", Expected::At(first))]).await.unwrap();
        assert!(second.0 > first.0, "{name}: revisions grow");
        let refused = [
            put("a", "3", Expected::At(first)),
            put("a", "3", Expected::Absent),
            put("a", "3", Expected::At(Revision(second.0 + 1))),
            delete("a", Expected::At(first)),
            delete("a", Expected::Absent),
        ];
        for op in refused {
            let ops = vec![put("b", "new", Expected::Any), op.clone(), delete("a", Expected::Any)];
            let error = store.commit(ops).await.unwrap_err();
            assert_eq!(error, StateError::Conflict { key: "a".into() }, "{name} {op:?}");
        }
        for op in [put("none", "3", Expected::At(second)), delete("none", Expected::At(second))] {
            let error = store.commit(vec![put("b", "new", Expected::Any), op.clone()]).await.unwrap_err();
            assert_eq!(error, StateError::Conflict { key: "none".into() }, "{name} {op:?}");
        }
        assert_eq!(store.list("").await.unwrap(), [("a".to_owned(), second)], "{name}");
        assert_eq!(value(&*store, "a").await, Some("2".into()), "{name}");
    }
}

#[tokio::test]
async fn a_step_sees_those_before_it_in_its_commit() {
    for Subject { name, store, .. } in stores() {
        let again = vec![put("a", "1", Expected::Absent), put("a", "2", Expected::Absent)];
        assert_eq!(store.commit(again).await, Err(StateError::Conflict { key: "a".into() }), "{name}");
        let replaced =
            vec![put("a", "1", Expected::Absent), delete("a", Expected::Any), put("a", "2", Expected::Absent)];
        let revision = store.commit(replaced).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some(("2".into(), revision)), "{name}");
        store.commit(Vec::new()).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some(("2".into(), revision)), "{name}: a commit of nothing");
    }
}

/// Compare-and-swap is what keeps two processes apart that own the same tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_writers_beside_each_other_none_overwrites_what_it_has_not_seen() {
    const EACH: usize = 20;
    for Subject { name, store, .. } in stores() {
        let count = |store: Arc<dyn StateStore>, writer: usize| async move {
            for _ in 0..EACH {
                loop {
                    let found = store.load("counter").await.unwrap();
                    let (text, expected) = match &found {
                        None => (String::new(), Expected::Absent),
                        Some((value, revision)) => {
                            (String::from_utf8(value.to_vec()).unwrap(), Expected::At(*revision))
                        }
                    };
                    match store.commit(vec![put("counter", format!("{text}{writer}"), expected)]).await {
                        Ok(_) => break,
                        Err(StateError::Conflict { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        };
        let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(count(store.clone(), writer))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let text = value(&*store, "counter").await.unwrap();
        assert_eq!(text.len(), 4 * EACH, "{name}");
        assert_eq!(text.iter().collect::<BTreeSet<_>>().len(), 4, "{name}");
    }
}

fn commits() -> impl Strategy<Value = Vec<Vec<Op>>> {
    let expected =
        prop_oneof![Just(Expected::Any), Just(Expected::Absent), (1..8u64).prop_map(|r| Expected::At(Revision(r)))];
    let op = ("[ab/]{0,2}", "[xy]{0,3}", expected, any::<bool>()).prop_map(|(key, value, expected, is_delete)| {
        match is_delete {
            true => delete(&key, expected),
            false => put(&key, value, expected),
        }
    });
    prop::collection::vec(prop::collection::vec(op, 0..4), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn all_stores_answer_the_same(commits in commits()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let stores = stores();
        let (first, others) = stores.split_first().unwrap();
        runtime.block_on(async {
            for ops in commits {
                let answer = first.store.commit(ops.clone()).await;
                for other in others {
                    prop_assert_eq!(&other.store.commit(ops.clone()).await, &answer, "{}", other.name);
                }
            }
            for other in others {
                for prefix in ["", "a"] {
                    let listed = first.store.list(prefix).await.unwrap();
                    prop_assert_eq!(&other.store.list(prefix).await.unwrap(), &listed, "{}", other.name);
                    for (key, _) in listed {
                        prop_assert_eq!(other.store.load(&key).await, first.store.load(&key).await, "{}", other.name);
                    }
                }
            }
            Ok(())
        })?;
    }
}
