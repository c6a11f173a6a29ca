//! stub
#![allow(missing_docs)]
use super::claims::EventIndex;
use crate::host::{Op, StateError, StateStore};
use crate::model::{EventIdentity, Timestamp};
use bytes::Bytes;
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key(u128);
impl Key {
    pub fn of_event(i: &EventIdentity<'_>) -> Key {
        Key::of_anonymous(i.id, i.operation.as_bytes(), 0)
    }
    pub fn of_blob(id: &str, _c: Timestamp) -> Key {
        Key::of_anonymous(id, b"", 0)
    }
    pub fn of_anonymous(id: &str, b: &[u8], n: u32) -> Key {
        let mut h = blake3::Hasher::new();
        h.update(id.as_bytes()).update(b).update(&n.to_be_bytes());
        let mut f = [0; 16];
        f.copy_from_slice(&h.finalize().as_bytes()[..16]);
        Key(u128::from_be_bytes(f))
    }
    pub fn as_u128(self) -> u128 {
        self.0
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageId(u64);
pub enum Probe {
    Absent,
    Present,
    Maybe(PageId),
}
pub enum Kind {
    Blobs,
    Events { max: u64 },
}
pub struct Staged {
    pub ops: Vec<Op>,
    keys: Vec<Key>,
}
pub struct KeySet {
    keys: std::collections::HashSet<Key>,
}
impl KeySet {
    pub async fn load(_s: &dyn StateStore, _p: &str, _k: Kind) -> Result<KeySet, StateError> {
        Ok(KeySet { keys: Default::default() })
    }
    pub fn probe(&self, k: Key) -> Probe {
        if self.keys.contains(&k) { Probe::Present } else { Probe::Absent }
    }
    pub fn page_key(&self, _p: PageId) -> Option<String> {
        None
    }
    pub fn page_loaded(&mut self, _p: PageId, _b: Bytes) -> Result<(), StateError> {
        Ok(())
    }
    pub fn stage(&mut self, k: &[Key], _n: Timestamp) -> Staged {
        Staged { ops: vec![], keys: k.to_vec() }
    }
    pub fn committed(&mut self, s: Staged) {
        self.keys.extend(s.keys)
    }
    pub fn aborted(&mut self, _s: Staged) {}
    pub fn expire(&mut self, _n: Timestamp) -> Option<Staged> {
        None
    }
}
pub async fn maintain(_i: &EventIndex, _s: &dyn StateStore, _n: Timestamp) -> Result<Option<Staged>, StateError> {
    Ok(None)
}
