//! A tenant's stored state, read ahead in few statements. Opening a tenant reads some hundred keys; if each were a
//! round trip over a network, a takeover would take seconds.
//!
//! Owns the range of the tenant's keys that was read, and the entries found there. Keys outside it, and those that did
//! not fit into [`StateStore::read_ahead_bytes`], are read from the store when needed. A snapshot may be stale: the
//! opener of a tenant commits against the revision of the owner that was read *before* the snapshot, so that a writer
//! in between is detected.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::format::Keys;
use crate::host::{Loaded, Op, Revision, StateError, StateStore};

/// A store of which a part was read ahead. Writes go to the store and are not seen here.
pub struct Snapshot {
    store: Arc<dyn StateStore>,
    entries: BTreeMap<String, (Bytes, Revision)>,
    /// Every key between the two was read, both excluded; none if they are equal.
    after: String,
    before: String,
    /// Read beside it.
    tenant: Option<(String, Option<(Bytes, Revision)>)>,
}

impl Snapshot {
    /// Reads ahead a tenant's entries except its sealed receipts, which a start does not need; reads nothing from a
    /// store that does not benefit.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn read(store: Arc<dyn StateStore>, keys: &Keys) -> Result<Self, StateError> {
        let mut room = store.read_ahead_bytes();
        let mut snapshot =
            Self { store, entries: BTreeMap::new(), after: String::new(), before: String::new(), tenant: None };
        if room == 0 {
            return Ok(snapshot);
        }
        let (after, before) = keys.needed_at_start();
        (snapshot.after, snapshot.before) = (after.clone(), after);
        while room > 0 {
            let Loaded { entries, more } = snapshot.store.load_all(&snapshot.before, &before).await?;
            let last = entries.last().map(|(last, ..)| last.clone());
            for (key, value, revision) in entries {
                room = room.saturating_sub(value.len());
                snapshot.entries.insert(key, (value, revision));
            }
            match last {
                Some(last) if more => snapshot.before = last,
                _ => {
                    snapshot.before = before;
                    break;
                }
            }
        }
        let key = keys.tenant();
        let tenant = snapshot.store.load(&key).await?;
        snapshot.tenant = Some((key, tenant));
        Ok(snapshot)
    }

    fn has(&self, after: &str, before: &str) -> bool {
        self.after.as_str() <= after && before <= self.before.as_str()
    }

    fn between<'a>(
        &'a self,
        after: &'a str,
        before: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a (Bytes, Revision))> {
        let from = self.entries.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        from.take_while(move |(key, _)| key.as_str() < before)
    }
}

#[async_trait]
impl StateStore for Snapshot {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        match &self.tenant {
            Some((tenant, value)) if tenant == key => return Ok(value.clone()),
            _ => {}
        }
        if self.after.as_str() < key && key < self.before.as_str() {
            return Ok(self.entries.get(key).cloned());
        }
        self.store.load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        // Keys with this prefix sort before the prefix with its last letter raised by one.
        match prefix.strip_suffix('/').map(|start| format!("{start}0")) {
            Some(before) if self.has(prefix, &before) => {
                Ok(self.between(prefix, &before).map(|(key, (_, at))| (key.clone(), *at)).collect())
            }
            _ => self.store.list(prefix).await,
        }
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        self.store.commit(ops).await
    }

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        if !self.has(after, before) {
            return self.store.load_all(after, before).await;
        }
        let entries = self.between(after, before);
        Ok(Loaded {
            entries: entries.map(|(key, (value, at))| (key.clone(), value.clone(), *at)).collect(),
            more: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Expected;
    use crate::hosts::embedded::memory::MemoryStore;

    /// A memory store at the other end of a network.
    struct Remote {
        store: MemoryStore,
        read_ahead: usize,
        calls: std::sync::atomic::AtomicUsize,
    }

    impl Remote {
        fn called(&self) {
            self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl StateStore for Remote {
        async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
            self.called();
            self.store.load(key).await
        }

        async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
            self.called();
            self.store.list(prefix).await
        }

        async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
            self.store.commit(ops).await
        }

        async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
            self.called();
            let loaded = self.store.load_all(after, before).await?;
            // Small answers, so that a snapshot takes several.
            let more = loaded.more || loaded.entries.len() > 3;
            Ok(Loaded { entries: loaded.entries.into_iter().take(3).collect(), more })
        }

        fn read_ahead_bytes(&self) -> usize {
            self.read_ahead
        }
    }

    const KEYS: [&str; 14] = [
        "Audit.Exchange/blobs/d/01",
        "Audit.Exchange/position",
        "Audit.General/position",
        "DLP.All/aside/01",
        "dlp/held/01",
        "events/d/01",
        "events/d/02",
        "events/p/03",
        "heal",
        "owner",
        "receipts/head",
        "receipts/open/1/1",
        "receipts/sealed/1/1",
        "tenant",
    ];

    #[tokio::test]
    async fn whatever_was_read_ahead_a_snapshot_answers_as_its_store_does() {
        let keys = Keys::of(&"7f3c0000-0000-0000-0000-000000000001".parse().unwrap());
        let all = keys.all();
        for read_ahead in 0..KEYS.len() * 10 {
            let store = MemoryStore::new();
            let put = |key: &str| Op::Put {
                key: format!("{all}{key}"),
                value: Bytes::from(vec![b'x'; 10]),
                expected: Expected::Any,
            };
            // That of another tenant comes first and another last.
            let others = ["m365_audit/v1/00000000-0000-0000-0000-000000000000/x", "m365_audit/v1/zz/x"];
            let mut ops: Vec<Op> = KEYS.map(put).into();
            ops.extend(others.map(|key| Op::Put { key: key.into(), value: Bytes::new(), expected: Expected::Any }));
            store.commit(ops).await.unwrap();
            let remote = Arc::new(Remote { store, read_ahead, calls: Default::default() });
            let snapshot = Snapshot::read(remote.clone(), &keys).await.unwrap();
            let none = ["events/d/00", "zzz", "Audit.Exchange/blobs/d/02", "receipts/sealed/0/0"];
            for key in KEYS.iter().chain(&none) {
                let key = format!("{all}{key}");
                assert_eq!(snapshot.load(&key).await, remote.store.load(&key).await, "{read_ahead} {key}");
            }
            for prefix in
                ["", "events/", "events/d/", "events/p/", "receipts/", "receipts/open/", "Audit.Exchange/", "z/"]
            {
                let prefix = format!("{all}{prefix}");
                let context = format!("{read_ahead} {prefix}");
                assert_eq!(snapshot.list(&prefix).await, remote.store.list(&prefix).await, "{context}");
                let (mut here, mut there) = (Vec::new(), Vec::new());
                let mut entries = crate::host::Entries::below(&snapshot, &prefix);
                while let Some(entry) = entries.next().await.unwrap() {
                    here.push(entry);
                }
                let mut entries = crate::host::Entries::below(&remote.store, &prefix);
                while let Some(entry) = entries.next().await.unwrap() {
                    there.push(entry);
                }
                assert_eq!(here, there, "{context}");
            }
        }
    }

    #[tokio::test]
    async fn what_was_read_ahead_costs_no_further_question() {
        let keys = Keys::of(&"7f3c0000-0000-0000-0000-000000000001".parse().unwrap());
        let remote = Arc::new(Remote { store: MemoryStore::new(), read_ahead: 1 << 20, calls: Default::default() });
        let snapshot = Snapshot::read(remote.clone(), &keys).await.unwrap();
        let asked = remote.calls.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(asked, 2);
        snapshot.list(&format!("{}events/", keys.all())).await.unwrap();
        snapshot.load(&keys.heal()).await.unwrap();
        snapshot.load(&keys.tenant()).await.unwrap();
        assert_eq!(remote.calls.load(std::sync::atomic::Ordering::Relaxed), asked);
    }
}
