//! Where work of a running source is asked for: the question, how it is handed in, where it is answered. What may be asked,
//! the numbers meanwhile and the answer are of the work: of a back-fill at [`super::desk`], of a range that is filled
//! through Microsoft Graph at [`super::heal::desk`].

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Questions waiting at a desk.
const QUEUED_MAX: usize = 4;

/// What is asked for.
pub trait Question: Send + 'static {
    /// How far it has come, shared with whoever shows it.
    type Progress: Send + Sync + 'static;
    /// How it ended.
    type Ended: Send + 'static;
    /// Why it does not begin, or cannot go on.
    type Error: Send + 'static;

    /// Others wait already.
    fn busy() -> Self::Error;
    /// Nobody is there to answer.
    fn source_ended() -> Self::Error;
}

/// One question at a desk.
pub struct Asked<Q: Question> {
    /// What is asked for.
    pub ask: Q,
    /// Told the numbers once it begins.
    pub begun: oneshot::Sender<Arc<Q::Progress>>,
    /// Stops it.
    pub stop: CancellationToken,
    /// Told how it ended.
    pub answer: oneshot::Sender<Result<Q::Ended, Q::Error>>,
}

/// Where a running source takes questions.
pub struct Desk<Q: Question>(mpsc::Receiver<Box<Asked<Q>>>);

impl<Q: Question> Desk<Q> {
    /// The questions, in the order in which they come.
    pub(super) fn into_asked(self) -> mpsc::Receiver<Box<Asked<Q>>> {
        self.0
    }
}

/// Where questions are handed in. Cheap to clone.
pub struct Counter<Q: Question>(mpsc::Sender<Box<Asked<Q>>>);

impl<Q: Question> Clone for Counter<Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q: Question> fmt::Debug for Counter<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").finish_non_exhaustive()
    }
}

impl<Q: Question> Counter<Q> {
    /// Hands a question in.
    ///
    /// # Errors
    /// The source has ended, or questions queue up.
    pub fn hand_in(&self, asked: Asked<Q>) -> Result<(), Q::Error> {
        self.0.try_send(Box::new(asked)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Q::busy(),
            mpsc::error::TrySendError::Closed(_) => Q::source_ended(),
        })
    }
}

/// A desk and its counter.
pub fn desk<Q: Question>() -> (Counter<Q>, Desk<Q>) {
    let (sender, receiver) = mpsc::channel(QUEUED_MAX);
    (Counter(sender), Desk(receiver))
}
