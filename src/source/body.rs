//! The body of a blob as it arrives, or its substitute: events of Microsoft Graph in the feed's form.

use bytes::Bytes;

use crate::api::{ApiError, BlobBody};

/// A body that is being read.
pub(super) enum Coming {
    /// From the feed.
    Blob(BlobBody),
    /// In memory; `None` once it was taken.
    Whole(Option<Bytes>),
}

impl Coming {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// As [`BlobBody::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        match self {
            Self::Blob(body) => body.chunk().await,
            Self::Whole(body) => Ok(body.take()),
        }
    }
}
