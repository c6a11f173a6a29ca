//! A state store in memory, for benches.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use m365_audit::host::{Op, Revision, StateError, StateStore};

#[derive(Default)]
pub struct Memory {
    map: Mutex<BTreeMap<String, Bytes>>,
    written: std::sync::atomic::AtomicU64,
}

impl Memory {
    /// Bytes stored now, and bytes ever written.
    #[allow(dead_code, reason = "not every bench asks")]
    pub fn bytes(&self) -> (u64, u64) {
        let stored = self.map.lock().unwrap().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        (stored, self.written.load(std::sync::atomic::Ordering::Relaxed))
    }
}

#[async_trait]
impl StateStore for Memory {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        Ok(self.map.lock().unwrap().get(key).map(|v| (v.clone(), Revision(1))))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        let map = self.map.lock().unwrap();
        Ok(map.keys().filter(|k| k.starts_with(prefix)).map(|k| (k.clone(), Revision(1))).collect())
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        let mut map = self.map.lock().unwrap();
        for op in ops {
            match op {
                Op::Put { key, value, .. } => {
                    let bytes = (key.len() + value.len()) as u64;
                    self.written.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                    drop(map.insert(key, value));
                }
                Op::Delete { key, .. } => drop(map.remove(&key)),
            }
        }
        Ok(Revision(1))
    }
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
