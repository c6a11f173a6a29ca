//! The sources of the process, for code that reads their status or sends them requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use crate::model::{ContentType, TenantId};
use crate::source::aside;
use crate::source::backfill_requests::{BackfillProgress, BackfillSender};
use crate::source::heal;

/// One source of the process.
#[derive(Debug, Clone)]
pub struct RunningSource {
    /// The tenant.
    pub tenant: TenantId,
    /// The content types it reads.
    pub content_types: Vec<ContentType>,
    /// Its quota; 0 is no limit.
    pub max_requests_per_minute: u32,
    /// Takes requests for back-fills.
    pub counter: BackfillSender,
    /// Takes requests for ranges that are filled through Microsoft Graph.
    pub heal: heal::requests::HealSender,
    /// The back-fill that runs.
    pub backfill: Option<Arc<BackfillProgress>>,
    /// Takes requests to offer the records it has set aside.
    pub retries: mpsc::Sender<aside::RetryRequest>,
}

/// The sources of the process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<String, RunningSource>>>);

impl Registry {
    /// Adds a source that is started.
    pub fn put(&self, name: &str, entry: RunningSource) {
        self.lock().insert(name.to_owned(), entry);
    }

    /// Removes a source.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// The sources now.
    pub fn entries(&self) -> BTreeMap<String, RunningSource> {
        self.lock().clone()
    }

    pub(super) fn note_backfill(&self, name: &str, progress: Option<Arc<BackfillProgress>>) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.backfill = progress;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, RunningSource>> {
        self.0.lock()
    }
}
