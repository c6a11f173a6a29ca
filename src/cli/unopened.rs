//! What stands in the place of a sink that a reload could not open: nothing is confirmed without it, and its health says why.

use async_trait::async_trait;
use tokio::sync::watch;

use crate::delivery::{Sink, Written};
use crate::host::Batch;

/// Refuses all records for a reason that may end.
pub(super) struct UnopenedSink {
    why: String,
    notices: watch::Sender<Option<String>>,
}

impl UnopenedSink {
    /// `why`: in words with the remedy.
    pub(super) fn new(why: String) -> Self {
        Self { notices: watch::Sender::new(Some(why.clone())), why }
    }
}

#[async_trait]
impl Sink for UnopenedSink {
    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.notices.subscribe())
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        batches.iter().map(|_| Written::refused(&self.why)).collect()
    }
}
