//! Tasks that stay in the span of their creator, so that a host's own labels reach their logs and metrics.

use std::future::Future;
use std::ops::{Deref, DerefMut};

use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument as _;

/// A [`JoinSet`] whose tasks run in the span that was current when they were spawned.
pub(super) struct Tasks<T>(JoinSet<T>);

impl<T> Tasks<T> {
    /// An empty set.
    pub(super) fn new() -> Self {
        Self(JoinSet::new())
    }
}

impl<T: Send + 'static> Tasks<T> {
    /// As [`JoinSet::spawn`].
    pub(super) fn spawn(&mut self, task: impl Future<Output = T> + Send + 'static) -> AbortHandle {
        self.0.spawn(task.in_current_span())
    }
}

impl<T> Deref for Tasks<T> {
    type Target = JoinSet<T>;

    fn deref(&self) -> &JoinSet<T> {
        &self.0
    }
}

impl<T> DerefMut for Tasks<T> {
    fn deref_mut(&mut self) -> &mut JoinSet<T> {
        &mut self.0
    }
}
