//! A blob to be fetched: the results of earlier attempts, how an attempt can end, and when the next one is due.

use std::time::Duration;

use super::pauses::ONCE_ATTEMPTS_MAX;
use crate::api::ApiError;
use crate::backoff::Backoff;
use crate::checkpoint::key::Key;
use crate::host::StateError;
use crate::model::BlobRef;

/// The pause before a blob whose fetch was throttled is requested again.
const THROTTLED: Backoff = Backoff::between(Duration::from_secs(2), Duration::from_secs(60));
/// A damaged body is salvaged only after it arrived byte-identical this often.
pub const IDENTICAL_BODIES: u32 = 3;
/// A blob past its expiry is lost after this many failed fetches, unless Microsoft says sooner that it is gone: the
/// service or the network may just be away. Not more than a single pass makes of one blob, which could never end
/// otherwise.
const EXPIRED_ATTEMPTS_MAX: u32 = ONCE_ATTEMPTS_MAX;

/// How long after an answer without events the same blob is requested again: soon, in case of a passing error, then
/// over most of an hour, in case the storage of events lags behind the listing. The answer after the last pause is
/// believed. No public report describes a blob that stays empty for longer and then has events, and a blob that stays
/// empty would otherwise hold back the position until it expires.
const EMPTY_PAUSES: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(30 * 60),
];
/// The same for a single pass and a back-fill, whose end somebody waits for.
const EMPTY_PAUSES_SHORT: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// How long an answer without events is doubted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Over most of an hour.
    Long,
    /// Some seconds.
    Short,
}

impl Patience {
    const fn pauses(self) -> &'static [Duration] {
        match self {
            Self::Long => &EMPTY_PAUSES,
            Self::Short => &EMPTY_PAUSES_SHORT,
        }
    }
}

/// A blob to be fetched, with the results of earlier attempts.
#[derive(Debug, Clone)]
pub struct Job {
    /// The blob.
    pub blob: BlobRef,
    /// Its key.
    pub key: Key,
    /// Must be written to the state before it is fetched.
    pub track_first: bool,
    /// Is in the state on its own.
    pub tracked: bool,
    /// Fetches that failed so far, throttled ones left out.
    pub failures: u32,
    /// Fetches that were throttled so far.
    pub throttled: u32,
    /// Of the failures, those past the blob's expiry.
    pub failures_expired: u32,
    /// The damaged body seen last and how often in a row.
    pub damaged: Option<(blake3::Hash, u32)>,
    /// Whether the blob is about to expire: its body is then delivered even if it is damaged.
    pub last_chance: bool,
    /// Answers in a row that held no event.
    pub empties: u32,
    patience: Patience,
}

impl Job {
    /// A blob seen for the first time.
    pub fn new(blob: BlobRef, key: Key, track_first: bool, patience: Patience) -> Self {
        Self {
            blob,
            key,
            track_first,
            tracked: track_first,
            failures: 0,
            throttled: 0,
            failures_expired: 0,
            damaged: None,
            last_chance: false,
            empties: 0,
            patience,
        }
    }

    /// Counts an answer without events; the pause before the next attempt.
    pub fn note_empty(&mut self) -> Duration {
        let pause = self.patience.pauses().get(self.empties as usize).copied();
        self.empties += 1;
        pause.unwrap_or_default()
    }

    /// Whether one more answer without events is believed.
    pub(super) fn believes_empty(&self) -> bool {
        self.last_chance || self.empties as usize >= self.patience.pauses().len()
    }

    /// Counts a fetch that failed and, for a damaged body, whether it is the same as before.
    pub fn note_failure(&mut self, damaged: Option<blake3::Hash>) {
        self.failures += 1;
        self.damaged = match (damaged, self.damaged) {
            (Some(hash), Some((known, count))) if hash == known => Some((hash, count + 1)),
            (Some(hash), _) => Some((hash, 1)),
            (None, known) => known,
        };
    }

    /// Counts a failed fetch past the blob's expiry; whether the blob is lost.
    pub(super) fn is_lost_expired(&mut self, error: Option<&ApiError>) -> bool {
        self.failures_expired += 1;
        error.is_some_and(ApiError::says_gone) || self.failures_expired >= EXPIRED_ATTEMPTS_MAX
    }

    /// Counts a fetch that was throttled; how long until the next. Each blob has its own pause, since Microsoft may
    /// grant other fetches meanwhile.
    pub fn note_throttled(&mut self, error: &ApiError) -> Duration {
        self.throttled += 1;
        let pause = THROTTLED.after(self.throttled);
        pause.max(error.not_before().unwrap_or_default())
    }

    pub(super) fn salvage(&self) -> Salvage {
        match self.damaged {
            _ if self.last_chance => Salvage::Anything,
            Some((hash, count)) if count >= IDENTICAL_BODIES => Salvage::Body(hash),
            _ => Salvage::Nothing,
        }
    }
}

/// What to do with bytes that are not an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Salvage {
    /// The fetch counts as failed.
    Nothing,
    /// Deliver them, if the body has this hash again.
    Body(blake3::Hash),
    /// Deliver them.
    Anything,
}

/// How a fetch ended.
#[derive(Debug)]
pub enum FetchOutcome {
    /// The blob is marked as settled.
    Settled,
    /// To be tried again. `damaged` is the hash of a complete body that is not an array of events.
    Failed {
        /// What happened, for the log.
        why: String,
        /// The API's error, when it was one.
        error: Option<ApiError>,
        /// The hash of the body, if it arrived complete and is damaged; it may be delivered once it came often enough.
        damaged: Option<blake3::Hash>,
    },
    /// The body arrived complete and has no event although the blob was listed: it is requested again before that is
    /// believed.
    Empty {
        /// What it holds instead.
        why: String,
    },
    /// A batch of another blob, which carried an event of this one, was given up: try again at once.
    Superseded,
    /// The source is stopping.
    Stopped,
    /// State cannot be written any more.
    State(StateError),
}
