//! How a running source is asked for work: the request, how callers submit it, and where the source answers it. Each
//! kind of work defines its own requests, progress numbers and results: a back-fill in [`super::backfill_requests`], a range filled
//! through Microsoft Graph in [`super::heal::requests`].

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Requests that may wait in a queue.
const QUEUED_MAX: usize = 4;

/// A kind of work that a source can be asked for.
pub trait WorkRequest: Send + 'static {
    /// Its progress, shared with the code that displays it.
    type Progress: Send + Sync + 'static;
    /// How it ended.
    type Ended: Send + 'static;
    /// Why it does not begin, or cannot go on.
    type Error: Send + 'static;

    /// The error when the queue is full.
    fn busy() -> Self::Error;
    /// The error when the source has ended.
    fn source_ended() -> Self::Error;
}

/// One queued request.
pub struct QueuedRequest<Q: WorkRequest> {
    /// The work requested.
    pub ask: Q,
    /// Receives the progress numbers once the work begins.
    pub begun: oneshot::Sender<Arc<Q::Progress>>,
    /// Stops it.
    pub stop: CancellationToken,
    /// Receives the result.
    pub answer: oneshot::Sender<Result<Q::Ended, Q::Error>>,
}

/// The end of the queue from which a running source takes requests.
pub struct RequestQueue<Q: WorkRequest>(mpsc::Receiver<Box<QueuedRequest<Q>>>);

impl<Q: WorkRequest> RequestQueue<Q> {
    /// The requests, in the order of arrival.
    pub(super) fn into_asked(self) -> mpsc::Receiver<Box<QueuedRequest<Q>>> {
        self.0
    }
}

/// The end of the queue to which callers submit requests. Cheap to clone.
pub struct RequestSender<Q: WorkRequest>(mpsc::Sender<Box<QueuedRequest<Q>>>);

impl<Q: WorkRequest> Clone for RequestSender<Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q: WorkRequest> fmt::Debug for RequestSender<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSender").finish_non_exhaustive()
    }
}

impl<Q: WorkRequest> RequestSender<Q> {
    /// Submits a request.
    ///
    /// # Errors
    /// The source has ended, or the queue is full.
    pub fn hand_in(&self, asked: QueuedRequest<Q>) -> Result<(), Q::Error> {
        self.0.try_send(Box::new(asked)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Q::busy(),
            mpsc::error::TrySendError::Closed(_) => Q::source_ended(),
        })
    }
}

/// Both ends of a new queue.
pub fn request_queue<Q: WorkRequest>() -> (RequestSender<Q>, RequestQueue<Q>) {
    let (sender, receiver) = mpsc::channel(QUEUED_MAX);
    (RequestSender(sender), RequestQueue(receiver))
}
