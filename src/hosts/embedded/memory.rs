//! A state store in memory, for tests and for library users who keep state elsewhere.
//!
//! Keeps the contract of [`StateStore`] to the letter (all or nothing, compare-and-swap, monotonic revisions) and adds
//! the failures a test needs: the next commits fail, fail although they were applied, or meet another writer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::host::{Expected, Op, Revision, StateError, StateStore};

/// A [`StateStore`] that lives as long as the value does.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    values: BTreeMap<String, (Bytes, Revision)>,
    revision: u64,
    failures: VecDeque<Failure>,
}

#[derive(Debug)]
struct Failure {
    error: StateError,
    applied: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `n` commits fail with `error` and change nothing.
    pub fn fail_next(&self, n: usize, error: StateError) {
        self.fail(n, error, false);
    }

    /// The next `n` commits are applied and yet answer `error`, as when a store is lost between its write and its
    /// answer.
    pub fn fail_next_applied(&self, n: usize, error: StateError) {
        self.fail(n, error, true);
    }

    /// Another writer touches `key`: its value stays, its revision moves on, so that whoever expects the old one
    /// meets a conflict.
    pub fn touch(&self, key: &str) {
        let mut inner = self.lock();
        inner.revision += 1;
        let revision = Revision(inner.revision);
        inner.values.entry(key.to_owned()).or_insert((Bytes::new(), revision)).1 = revision;
    }

    /// A copy of all keys and values, in order.
    pub fn entries(&self) -> BTreeMap<String, Bytes> {
        self.lock().values.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    }

    fn fail(&self, n: usize, error: StateError, applied: bool) {
        self.lock().failures.extend((0..n).map(|_| Failure { error: error.clone(), applied }));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn commit(&mut self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let revision = Revision(self.revision + 1);
        // Steps see those before them in the same commit, so they are tried on a copy of the keys they touch.
        let mut changed: BTreeMap<String, Option<(Bytes, Revision)>> = BTreeMap::new();
        for op in ops {
            let found = match changed.get(op.key()) {
                Some(change) => change.as_ref(),
                None => self.values.get(op.key()),
            };
            let as_expected = match op.expected() {
                Expected::Any => true,
                Expected::Absent => found.is_none(),
                Expected::At(expected) => found.is_some_and(|(_, revision)| *revision == expected),
            };
            if !as_expected {
                return Err(StateError::Conflict { key: op.key().to_owned() });
            }
            match op {
                Op::Put { key, value, .. } => changed.insert(key, Some((value, revision))),
                Op::Delete { key, .. } => changed.insert(key, None),
            };
        }
        for (key, change) in changed {
            match change {
                Some(entry) => self.values.insert(key, entry),
                None => self.values.remove(&key),
            };
        }
        self.revision = revision.0;
        Ok(revision)
    }
}

#[async_trait]
impl StateStore for MemoryStore {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        Ok(self.lock().values.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        let inner = self.lock();
        let from = inner.values.range(prefix.to_owned()..);
        Ok(from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, (_, at))| (key.clone(), *at)).collect())
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let mut inner = self.lock();
        match inner.failures.pop_front() {
            None => inner.commit(ops),
            Some(Failure { error, applied: false }) => Err(error),
            Some(Failure { error, applied: true }) => inner.commit(ops).and(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::embedded::store::SqliteStore;
    use proptest::prelude::*;

    fn put(key: &str, expected: Expected) -> Op {
        Op::Put { key: key.into(), value: Bytes::from_static(b"v"), expected }
    }

    #[tokio::test]
    async fn injected_failures_come_in_order_and_end() {
        let store = MemoryStore::new();
        let gone = StateError::Unavailable("gone".into());
        store.fail_next(1, gone.clone());
        store.fail_next_applied(1, gone.clone());
        assert_eq!(store.commit(vec![put("a", Expected::Absent)]).await, Err(gone.clone()));
        assert!(store.entries().is_empty());
        assert_eq!(store.commit(vec![put("a", Expected::Absent)]).await, Err(gone));
        let (_, at) = store.load("a").await.unwrap().unwrap();
        store.touch("a");
        assert_eq!(store.commit(vec![put("a", Expected::At(at))]).await, Err(StateError::Conflict { key: "a".into() }));
    }

    fn ops() -> impl Strategy<Value = Vec<Vec<Op>>> {
        let expected =
            prop_oneof![Just(Expected::Any), Just(Expected::Absent), (1..8u64).prop_map(|r| Expected::At(Revision(r)))];
        let op =
            ("[ab/]{0,2}", "[xy]{0,3}", expected, any::<bool>()).prop_map(
                |(key, value, expected, delete)| match delete {
                    true => Op::Delete { key, expected },
                    false => Op::Put { key, value: value.into_bytes().into(), expected },
                },
            );
        prop::collection::vec(prop::collection::vec(op, 0..4), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_store_in_memory_and_the_store_on_disk_agree(commits in ops()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let disk = SqliteStore::open(dir.path()).unwrap();
            let memory = MemoryStore::new();
            runtime.block_on(async {
                for ops in commits {
                    prop_assert_eq!(disk.commit(ops.clone()).await, memory.commit(ops).await);
                }
                prop_assert_eq!(disk.list("a").await, memory.list("a").await);
                for (key, value) in memory.entries() {
                    prop_assert_eq!(disk.load(&key).await.unwrap().map(|(v, _)| v), Some(value));
                }
                prop_assert_eq!(disk.list("").await, memory.list("").await);
                Ok(())
            })?;
        }
    }
}
