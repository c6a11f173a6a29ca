//! The requests for back-fills of a running source, with their progress numbers and results.
//!
//! It knows nothing of how a range is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::SourceError;
use super::requests::{self, WorkRequest};
use crate::model::{Actionable, Timestamp};

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackfillAsk {
    /// A range. One that is the same as an unfinished one goes on.
    Range {
        /// Made available from here on.
        from: Timestamp,
        /// Until here (exclusive); Microsoft's now when absent.
        to: Option<Timestamp>,
        /// Only these content types; all of the source's when empty.
        content_types: Vec<String>,
        /// Deliver again what was delivered already.
        again: bool,
    },
    /// Resume the unfinished one.
    Resume,
    /// Discard the unfinished one.
    Discard,
}

/// The progress of a back-fill; shared with the fetches.
#[derive(Debug, Default)]
pub struct BackfillProgress {
    /// Blobs listed.
    pub found: AtomicU64,
    /// Blobs settled.
    pub blobs: AtomicU64,
    /// Events delivered.
    pub events: AtomicU64,
    /// Events that were delivered before.
    pub duplicates: AtomicU64,
    /// Bytes received.
    pub bytes: AtomicU64,
    /// Listings and blobs asked for.
    pub requests: AtomicU64,
    pub(super) span_secs: AtomicU64,
    pub(super) read_secs: AtomicU64,
    pub(super) quota: AtomicU64,
}

/// [`BackfillProgress`] at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackfillNumbers {
    /// Blobs listed.
    pub found: u64,
    /// Blobs settled.
    pub blobs: u64,
    /// Events delivered.
    pub events: u64,
    /// Events that were delivered before and not sent again.
    pub duplicates: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Listings and blobs asked for.
    pub requests: u64,
    /// Summed length of the intervals to read, over the content types.
    pub span_secs: u64,
    /// Of that, read.
    pub read_secs: u64,
    /// Requests a minute it may make; 0 is no limit.
    pub requests_per_minute_max: u64,
}

impl BackfillProgress {
    /// The numbers now.
    pub fn snapshot(&self) -> BackfillNumbers {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        BackfillNumbers {
            found: of(&self.found),
            blobs: of(&self.blobs),
            events: of(&self.events),
            duplicates: of(&self.duplicates),
            bytes: of(&self.bytes),
            requests: of(&self.requests),
            span_secs: of(&self.span_secs),
            read_secs: of(&self.read_secs),
            requests_per_minute_max: of(&self.quota),
        }
    }
}

/// How a back-fill ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillResult {
    /// The numbers at the end.
    pub progress: BackfillNumbers,
    /// It was stopped before its end; the same command goes on.
    pub interrupted: bool,
    /// What could not be read now, with reasons; the same command tries it again.
    pub left: Vec<String>,
    /// Content types and intervals that Microsoft does not list, because of their age or because the subscription was
    /// off.
    pub gone: Vec<String>,
    /// Content types whose subscription was started.
    #[serde(default)]
    pub started: Vec<String>,
}

/// Why a back-fill does not begin, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// Nothing lies in the range.
    #[error("nothing lies between `{from}` and `{to}`: the range must begin before it ends, and before now")]
    Range {
        /// Its beginning.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// Microsoft lists nothing that old.
    #[error(
        "cannot read from `{from}` on: Microsoft keeps seven days, the oldest content still listed is of `{oldest}`"
    )]
    TooOld {
        /// Asked for.
        from: Timestamp,
        /// What is still there.
        oldest: Timestamp,
    },
    /// The source does not read this content type.
    #[error("the source does not read `{0}`")]
    TypeNotRead(String),
    /// Another range is not done.
    #[error("the back-fill from `{from}` to `{to}` is not done")]
    Unfinished {
        /// Its beginning.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// There is none to go on with.
    #[error("there is no unfinished back-fill")]
    Nothing,
    /// One is running.
    #[error("a back-fill of this source is running")]
    Busy,
    /// The source ended meanwhile.
    #[error("the source has ended")]
    SourceEnded,
    /// The state, or signing in.
    #[error("{0}")]
    Source(#[from] SourceError),
}

impl Actionable for BackfillError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Range { .. } => "backfill-range",
            Self::TooOld { .. } => "backfill-too-old",
            Self::TypeNotRead(_) => "backfill-type-not-read",
            Self::Unfinished { .. } => "backfill-unfinished",
            Self::Nothing => "backfill-none",
            Self::Busy => "backfill-busy",
            Self::SourceEnded => "backfill-source-ended",
            Self::Source(error) => error.slug(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Range { .. } => {
                "give --from and --to in UTC, as in 2026-05-01T00:00:00Z, or as ages: --from 3d --to 12h".into()
            }
            Self::TooOld { oldest, .. } => format!(
                "use --from {oldest} or later; what is older `m365-audit heal` brings through Microsoft Graph (docs/heal.md), and an export of Purview's audit search can be turned into records with `m365-audit normalize`"
            ),
            Self::TypeNotRead(_) => "add it to `content_types` of the source, or leave --content-type out".into(),
            Self::Unfinished { .. } => {
                "go on with it by --resume, or give it up by --discard, then ask for the other range".into()
            }
            Self::Nothing => "give a range with --from".into(),
            Self::Busy => "wait until it is done, or stop it where it was started; `m365-audit status` shows it".into(),
            Self::SourceEnded => "run the same command again: it goes on where it was".into(),
            Self::Source(error) => error.hint(),
        }
    }
}

impl WorkRequest for BackfillAsk {
    type Progress = BackfillProgress;
    type Ended = BackfillResult;
    type Error = BackfillError;

    fn busy() -> BackfillError {
        BackfillError::Busy
    }

    fn source_ended() -> BackfillError {
        BackfillError::SourceEnded
    }
}

/// One question at a desk.
pub type BackfillRequest = requests::QueuedRequest<BackfillAsk>;
/// Where a running source takes questions.
pub type BackfillQueue = requests::RequestQueue<BackfillAsk>;
/// Where questions are handed in. Cheap to clone.
pub type BackfillSender = requests::RequestSender<BackfillAsk>;

/// A desk and its counter.
pub fn request_queue() -> (BackfillSender, BackfillQueue) {
    requests::request_queue()
}

/// How a back-fill reads.
#[derive(Clone)]
pub struct Backfilling {
    /// Counts what is read and delivered.
    pub progress: Arc<BackfillProgress>,
    /// Deliver again what was delivered, once for this salt.
    pub again: Option<Arc<str>>,
    /// What is read in place of a blob: events of Microsoft Graph in the feed's form, an array of them.
    pub healed: Option<Bytes>,
}
