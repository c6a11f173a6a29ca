//! The requests to fill a range through Microsoft Graph, with their progress numbers and results.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::error::SourceError;
use super::super::requests::{self, WorkRequest};
use crate::api::GraphError;
use crate::model::{Actionable, Timestamp};

/// How a source heals.
#[derive(Debug, Clone)]
pub struct HealSettings {
    /// Whether gaps are filled without a request.
    pub gaps: bool,
    /// A search that has not ended after this is given up.
    pub query_wait: Duration,
    /// An answer of more pages than this is rejected.
    pub pages_max: u32,
    /// The cloud's name in the configuration, if the cloud has no audit search.
    pub without_search: Option<String>,
}

/// What to fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealAsk {
    /// Events that happened from here on.
    pub from: Timestamp,
    /// Until here (exclusive); Microsoft's now when absent.
    pub to: Option<Timestamp>,
    /// Only these content types; all of the source's when empty.
    pub content_types: Vec<String>,
    /// Deliver again what was delivered already.
    pub again: bool,
    /// Report the cost, and submit nothing.
    pub dry_run: bool,
}

/// The progress; shared with the code that displays it.
#[derive(Debug, Default)]
pub struct HealProgress {
    pub(super) span_secs: AtomicU64,
    pub(super) done_secs: AtomicU64,
    pub(super) searches: AtomicU64,
    pub(super) under_way: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) known: AtomicU64,
}

/// [`HealProgress`] at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealNumbers {
    /// Length of what is to be searched, in seconds.
    pub span_secs: u64,
    /// How much of that was searched and read.
    pub done_secs: u64,
    /// Searches submitted.
    pub searches: u64,
    /// Searches under way now.
    pub under_way: u64,
    /// Different records that Graph gave.
    pub records: u64,
    /// Events delivered.
    pub events: u64,
    /// Events that were known: delivered before, dropped by a rule, on hold, set aside.
    pub known: u64,
}

impl HealProgress {
    /// The numbers now.
    pub fn snapshot(&self) -> HealNumbers {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        HealNumbers {
            span_secs: of(&self.span_secs),
            done_secs: of(&self.done_secs),
            searches: of(&self.searches),
            under_way: of(&self.under_way),
            records: of(&self.records),
            events: of(&self.events),
            known: of(&self.known),
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealResult {
    /// The numbers at the end.
    pub progress: HealNumbers,
    /// It was stopped before its end; the same command goes on.
    pub interrupted: bool,
    /// What could not be filled, with reasons; the same command tries it again.
    pub left: Vec<String>,
    /// Of a dry run: searches it would take at least, and those that the tenant may still submit today.
    pub would_take: Option<(u64, u64)>,
    /// Further notes for the operator.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Why it does not begin, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// Nothing lies in the range.
    #[error("nothing lies between `{from}` and `{to}`: the range must begin before it ends, and before now")]
    Range {
        /// Its beginning.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// The source does not read this content type.
    #[error("the source does not read `{0}`")]
    TypeNotRead(String),
    /// The state no longer shows which events of a part of it were delivered.
    #[error(
        "cannot fill `{content_type}` from `{from}` to `{to}`: the feed was read there, and {why}, so events would come twice"
    )]
    NotKnown {
        /// The content type.
        content_type: String,
        /// Where that part begins.
        from: Timestamp,
        /// Where it ends.
        to: Timestamp,
        /// Why it is not known.
        why: String,
    },
    /// The cloud has no audit search.
    #[error(
        "Microsoft Graph has no audit search in this cloud (`cloud = \"{0}\"`): it is in the worldwide service alone"
    )]
    Cloud(String),
    /// One is running.
    #[error("a range of this source is being filled")]
    Busy,
    /// The source ended meanwhile.
    #[error("the source has ended")]
    SourceEnded,
    /// Graph, or signing in for it.
    #[error("{0}")]
    Graph(#[from] GraphError),
    /// The state, or signing in.
    #[error("{0}")]
    Source(#[from] SourceError),
}

impl Actionable for HealError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Range { .. } => "heal-range",
            Self::TypeNotRead(_) => "heal-type-not-read",
            Self::NotKnown { .. } => "heal-not-known",
            Self::Cloud(_) => "heal-cloud",
            Self::Busy => "heal-busy",
            Self::SourceEnded => "heal-source-ended",
            Self::Graph(error) => error.slug(),
            Self::Source(error) => error.slug(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Range { .. } => {
                "give --from and --to in UTC, as in 2026-05-01T00:00:00Z, or as ages: --from 30d --to 8d".into()
            }
            Self::TypeNotRead(_) => "add it to `content_types` of the source, or leave --content-type out".into(),
            Self::NotKnown { .. } => {
                "choose a range that lies in a declared gap (`m365-audit state show`), before the first start, or within \
                 `[receipts] days`; or have all of it delivered again with --again"
                    .into()
            }
            Self::Cloud(_) => {
                "export the audit log in Purview and make records of it with `m365-audit normalize`".into()
            }
            Self::Busy => "wait until it is done, or stop it where it was started".into(),
            Self::SourceEnded => "run the same command again: it goes on where it was".into(),
            Self::Graph(error) => error.hint(),
            Self::Source(error) => error.hint(),
        }
    }
}

impl WorkRequest for HealAsk {
    type Progress = HealProgress;
    type Ended = HealResult;
    type Error = HealError;

    fn busy() -> HealError {
        HealError::Busy
    }

    fn source_ended() -> HealError {
        HealError::SourceEnded
    }
}

/// One question at a desk.
pub type HealRequest = requests::QueuedRequest<HealAsk>;
/// Where a running source takes questions.
pub type HealQueue = requests::RequestQueue<HealAsk>;
/// Where questions are handed in. Cheap to clone.
pub type HealSender = requests::RequestSender<HealAsk>;

/// A desk and its counter.
pub fn request_queue() -> (HealSender, HealQueue) {
    requests::request_queue()
}
