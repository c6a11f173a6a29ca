//! Data that sinks keep across restarts, stored in the state beside the positions.
//!
//! A sink may write its page at any time; the page is stored as part of the next commit of any source. So it costs no
//! write of its own. A page is never behind the positions: the ticket that lets a key into a commit resolves after the
//! sink wrote its page. This module does not interpret pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::host::{Expected, Loaded, Op, Revision, StateError, StateStore};

/// The prefix of each page's key; the sink's name follows.
pub const KEY_ROOT: &str = "m365_audit_sinks/v1/";

/// The pages of all sinks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Notebook(Arc<Mutex<BTreeMap<String, PageState>>>);

#[derive(Debug, Default)]
struct PageState {
    value: Option<Bytes>,
    /// Counts the writes to it.
    version: u64,
    /// The newest version that a commit has stored.
    stored: u64,
    /// The newest version in a running commit.
    taken: u64,
}

/// The page of one sink.
#[derive(Debug, Clone)]
pub struct NotebookPage {
    book: Notebook,
    key: String,
}

impl Notebook {
    /// The pages that an earlier run left.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn load(store: &dyn StateStore) -> Result<Self, StateError> {
        let mut pages = BTreeMap::new();
        for (key, _) in store.list(KEY_ROOT).await? {
            if let Some((value, _)) = store.load(&key).await? {
                pages.insert(key, PageState { value: Some(value), ..PageState::default() });
            }
        }
        Ok(Self(Arc::new(Mutex::new(pages))))
    }

    /// The page of the sink with this name.
    pub fn page(&self, sink: &str) -> NotebookPage {
        NotebookPage { book: self.clone(), key: format!("{KEY_ROOT}{sink}") }
    }

    /// Wraps `store`, so that each of its commits also stores the pages written meanwhile.
    pub fn kept_in(&self, store: Arc<dyn StateStore>) -> Arc<dyn StateStore> {
        Arc::new(NotebookStore { store, book: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PageState>> {
        self.0.lock()
    }
}

impl NotebookPage {
    /// The last value written, in this run or an earlier one.
    pub fn read(&self) -> Option<Bytes> {
        self.book.lock().get(&self.key)?.value.clone()
    }

    /// Writes the page.
    pub fn write(&self, value: Bytes) {
        let mut pages = self.book.lock();
        let entry = pages.entry(self.key.clone()).or_default();
        entry.value = Some(value);
        entry.version += 1;
    }
}

/// A store that also keeps the notebook.
struct NotebookStore {
    store: Arc<dyn StateStore>,
    book: Notebook,
}

#[async_trait]
impl StateStore for NotebookStore {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        self.store.load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.store.list(prefix).await
    }

    async fn load_all(&self, after: &str, before: &str) -> Result<Loaded, StateError> {
        self.store.load_all(after, before).await
    }

    fn read_ahead_bytes(&self) -> usize {
        self.store.read_ahead_bytes()
    }

    async fn commit(&self, mut ops: Vec<Op>) -> Result<Revision, StateError> {
        let mut taken = Vec::new();
        for (key, entry) in self.book.lock().iter_mut() {
            if entry.version > entry.taken
                && let Some(value) = entry.value.clone()
            {
                entry.taken = entry.version;
                taken.push((key.clone(), entry.version));
                // `Any`: no other code writes a page, and a commit must not fail because of one.
                ops.push(Op::Put { key: key.clone(), value, expected: Expected::Any });
            }
        }
        let unstored = Unstored { book: &self.book, taken };
        let result = self.store.commit(ops).await;
        if result.is_ok() {
            unstored.are_stored();
        }
        result
    }
}

/// Pages in a running commit. If it is dropped before the commit is durable, they are written again with the next one.
struct Unstored<'a> {
    book: &'a Notebook,
    taken: Vec<(String, u64)>,
}

impl Unstored<'_> {
    fn are_stored(mut self) {
        let mut pages = self.book.lock();
        for (key, version) in std::mem::take(&mut self.taken) {
            if let Some(entry) = pages.get_mut(&key) {
                if version < entry.stored {
                    // Commits overtook each other, so the older page was written last. The next commit repairs that.
                    entry.taken = 0;
                }
                entry.stored = entry.stored.max(version);
            }
        }
    }
}

impl Drop for Unstored<'_> {
    fn drop(&mut self) {
        let mut pages = self.book.lock();
        for (key, _) in &self.taken {
            if let Some(entry) = pages.get_mut(key) {
                entry.taken = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::embedded::memory::MemoryStore;

    fn put(key: &str) -> Op {
        Op::Put { key: key.into(), value: Bytes::from_static(b"v"), expected: Expected::Any }
    }

    #[tokio::test]
    async fn a_page_is_stored_with_the_next_commit_once_and_again_after_a_failure() {
        let memory = Arc::new(MemoryStore::new());
        let book = Notebook::load(&*memory).await.unwrap();
        let store = book.kept_in(memory.clone());
        let page = book.page("out");
        assert_eq!(page.read(), None);
        store.commit(vec![put("a")]).await.unwrap();
        assert_eq!(memory.entries().len(), 1);
        page.write(Bytes::from_static(b"1"));
        memory.fail_next(1, StateError::Unavailable("full".into()));
        store.commit(vec![put("a")]).await.unwrap_err();
        assert_eq!(memory.entries().len(), 1);
        store.commit(vec![put("a")]).await.unwrap();
        let key = "m365_audit_sinks/v1/out";
        assert_eq!(memory.entries()[key], "1");
        let (_, at) = memory.load(key).await.unwrap().unwrap();
        store.commit(vec![put("a")]).await.unwrap();
        assert_eq!(memory.load(key).await.unwrap().unwrap().1, at, "it did not change");
        let later = Notebook::load(&*memory).await.unwrap();
        assert_eq!(later.page("out").read().unwrap(), "1");
        assert_eq!(later.page("other").read(), None);
    }
}
