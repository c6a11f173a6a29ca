//! A state store in memory, for tests and for a first host.
//!
//! Fulfils the contract of [`StateStore`] exactly (all or nothing, compare-and-swap, unique revisions) and adds the
//! failures that a test needs: the next commits fail, fail although they were applied, or meet another writer; the
//! store dies at a commit; bytes are damaged beneath it.

use std::collections::{BTreeMap, VecDeque};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::{Expected, Op, Revision, StateError, StateStore};

/// A [`StateStore`] that lives as long as the value does: for tests, and for a host's first steps. After a restart of
/// the process the source begins again, so up to `backfill_secs` of events are repeated.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    values: BTreeMap<String, (Bytes, Revision)>,
    failures: VecDeque<PlannedFailure>,
    death: Option<PlannedDeath>,
}

/// The commit from which on nothing is written.
#[derive(Debug)]
struct PlannedDeath {
    /// Commits until then.
    after: usize,
    /// Whether the first of them is written, and only its answer is lost.
    applied: bool,
    error: StateError,
}

#[derive(Debug)]
struct PlannedFailure {
    error: StateError,
    applied: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `n` commits fail with `error` and change nothing.
    #[doc(hidden)]
    pub fn fail_next(&self, n: usize, error: StateError) {
        self.fail(n, error, false);
    }

    /// The next `n` commits are applied but return `error`, as when a store is lost between its write and its answer.
    #[doc(hidden)]
    pub fn fail_next_applied(&self, n: usize, error: StateError) {
        self.fail(n, error, true);
    }

    /// After `after` commits, nothing is written and every commit returns `error`; with `applied`, the first of them is
    /// still written, as when a process is killed between its write and its answer.
    #[doc(hidden)]
    pub fn die(&self, after: usize, applied: bool, error: StateError) {
        self.lock().death = Some(PlannedDeath { after, applied, error });
    }

    /// Ends what [`MemoryStore::die`] began.
    #[doc(hidden)]
    pub fn revive(&self) {
        self.lock().death = None;
    }

    /// Replaces the bytes of `key`, or removes it, without any check, as damage does.
    #[doc(hidden)]
    pub fn overwrite(&self, key: &str, value: Option<Bytes>) {
        let mut inner = self.lock();
        let revision = inner.values.get(key).map_or_else(Revision::draw, |(_, revision)| *revision);
        match value {
            Some(value) => inner.values.insert(key.to_owned(), (value, revision)),
            None => inner.values.remove(key),
        };
    }

    /// Another writer touches `key`: its value stays, its revision moves on, so that a writer that expects the old one
    /// gets a conflict.
    #[doc(hidden)]
    pub fn touch(&self, key: &str) {
        let mut inner = self.lock();
        let revision = Revision::draw();
        inner.values.entry(key.to_owned()).or_insert((Bytes::new(), revision)).1 = revision;
    }

    /// A copy of all keys and values, in order.
    #[doc(hidden)]
    pub fn entries(&self) -> BTreeMap<String, Bytes> {
        self.lock().values.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    }

    fn fail(&self, n: usize, error: StateError, applied: bool) {
        self.lock().failures.extend((0..n).map(|_| PlannedFailure { error: error.clone(), applied }));
    }

    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        self.inner.lock()
    }
}

impl MemoryState {
    fn commit(&mut self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let revision = Revision::draw();
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
        if let Some(death) = &mut inner.death {
            if death.after == 0 {
                let (applied, error) = (std::mem::take(&mut death.applied), death.error.clone());
                return if applied { inner.commit(ops).and(Err(error)) } else { Err(error) };
            }
            death.after -= 1;
        }
        match inner.failures.pop_front() {
            None => inner.commit(ops),
            Some(PlannedFailure { error, applied: false }) => Err(error),
            Some(PlannedFailure { error, applied: true }) => inner.commit(ops).and(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test]
    async fn nothing_is_written_from_the_death_on_but_what_was_written_as_it_died() {
        let gone = StateError::Unavailable("gone".into());
        for applied in [false, true] {
            let store = MemoryStore::new();
            store.die(1, applied, gone.clone());
            assert!(store.commit(vec![put("a", Expected::Any)]).await.is_ok());
            assert_eq!(store.commit(vec![put("b", Expected::Any)]).await, Err(gone.clone()));
            assert_eq!(store.commit(vec![put("c", Expected::Any)]).await, Err(gone.clone()));
            let keys: Vec<String> = store.entries().into_keys().collect();
            assert_eq!(keys, if applied { vec!["a", "b"] } else { vec!["a"] });
            store.revive();
            assert!(store.commit(vec![put("c", Expected::Any)]).await.is_ok());
        }
    }
}
