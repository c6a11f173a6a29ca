//! Reports the outcome of a batch once all of its parts are settled.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedSemaphorePermit;

use crate::host::Unfit;

/// A worker's one answer for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchSettled {
    /// The receiver accepted all of it.
    Delivered,
    /// The receiver accepted all of it except these records, which it refused by themselves while it accepted others.
    Except(Vec<Unfit>),
    /// The worker has ended, or the batch was a trial and was not accepted now.
    Refused(String),
    /// The batch was a trial, and the receiver rejected it.
    Rejected(String),
}

/// Called with the outcome of a batch, or with a refusal if the worker is dropped.
pub struct Confirm(Option<Box<dyn FnOnce(BatchSettled) + Send>>);

impl Confirm {
    /// Wraps `settle`.
    pub fn new(settle: impl FnOnce(BatchSettled) + Send + 'static) -> Self {
        Self(Some(Box::new(settle)))
    }

    fn settle(mut self, settled: BatchSettled) {
        if let Some(settle) = self.0.take() {
            settle(settled);
        }
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle(BatchSettled::Refused("the sink has stopped".into()));
        }
    }
}

/// A batch whose parts are in flight. Dropping the last handle before it is settled refuses it.
#[derive(Clone)]
pub(super) struct Account(Arc<Mutex<UnsettledBatch>>);

struct UnsettledBatch {
    confirm: Option<Confirm>,
    /// Records that are not settled.
    left: usize,
    unfit: Vec<Unfit>,
    /// A permit of the queue, released as records are settled.
    room: OwnedSemaphorePermit,
}

impl Account {
    pub(super) fn new(records: usize, confirm: Confirm, room: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(UnsettledBatch { confirm: Some(confirm), left: records, unfit: Vec::new(), room })))
    }

    /// Records that this many records and bytes are delivered.
    pub(super) fn delivered(&self, records: usize, bytes: usize) {
        self.settle(records, bytes, None);
    }

    /// Records that one record will never be delivered.
    pub(super) fn unfit(&self, unfit: Unfit, bytes: usize) {
        self.settle(1, bytes, Some(unfit));
    }

    fn settle(&self, records: usize, bytes: usize, unfit: Option<Unfit>) {
        let mut open = self.lock();
        drop(open.room.split(bytes));
        open.left = open.left.saturating_sub(records);
        open.unfit.extend(unfit);
        if open.left > 0 {
            return;
        }
        let mut unfit = std::mem::take(&mut open.unfit);
        unfit.sort_by_key(|unfit| unfit.record);
        let settled = if unfit.is_empty() { BatchSettled::Delivered } else { BatchSettled::Except(unfit) };
        if let Some(confirm) = open.confirm.take() {
            confirm.settle(settled);
        }
    }

    /// Ends the whole batch, whatever the outcome of its parts.
    pub(super) fn end(&self, settled: BatchSettled) {
        if let Some(confirm) = self.lock().confirm.take() {
            confirm.settle(settled);
        }
    }

    fn lock(&self) -> MutexGuard<'_, UnsettledBatch> {
        self.0.lock()
    }
}
