//! Delivery to one receiver: several requests under way, trying again, and finding out whether a refusal is about the
//! records or about everything else.
//!
//! A [`Sink`] sends batches once and names what the receiver's answer says ([`Written`]); a [`Worker`] does everything
//! else. It knows no protocol. The sinks of the embedded host are fed by one worker each; the source uses one to find
//! the records that another host rejects (`source::deliver`).
//!
//! # Whose fault a refusal is
//! A receiver seldom says whether it refuses *this record* or *everything*: a wrong index and an unreadable record are
//! both 400. So no answer is believed by itself. What counts is what the receiver does with other records meanwhile.
//!
//! | the answer ([`Written`]) | the request waits, and | it is sent in smaller parts | a single record is set aside |
//! | --- | --- | --- | --- |
//! | `Refused`: of the moment (429, 503, UNAVAILABLE) | comes again as it was, after its own back-off or when the receiver said | never | never |
//! | `Unclear`: perhaps of the moment (500, a broken connection) | the same | when it was refused 3 times and others were taken meanwhile | refused alone 8 times, others taken meanwhile |
//! | `Misconfigured`: speaks of address or credentials (401, 404) | the same | the same | refused alone 6 times, others taken meanwhile |
//! | `Rejected`, `RejectedSome`: speaks of the records (400, INVALID_ARGUMENT) | comes once more as it was | when that was rejected, too | refused alone 4 times, others taken meanwhile |
//! | `TooLarge` (413) | | at once | the same |
//!
//! *Others taken meanwhile* means that the receiver took something after the record was first refused alone and before
//! the last time, and that the last time no other request was under way (a receiver may join requests, and reject all
//! of them for one record). Where nothing is left to send but records that were refused alone, so that no other can be
//! taken after them, it suffices that others of the request were taken after that was refused, and one more refusal. A
//! receiver that was seen to take what it rejected before is asked more often.
//!
//! | the worker | begins when | sends | ends when |
//! | --- | --- | --- | --- |
//! | open | something was taken | as many requests as the sink can, parts of what was rejected and what comes again on at most half of them, so that the others go on beside it | |
//! | careful | 4 rejections, or one other refusal, with nothing taken between | one request at a time | something is taken |
//! | holding back | 12 rejections, or two other refusals, with nothing taken between; or 48 parts of requests of which others were taken | one request, then a pause that doubles up to 30 s (or for which the receiver asked); of what was rejected one record each time, in turn from each request that waits | something is taken |
//!
//! While it holds back nothing is set aside, and when it ends all that was counted against a record is forgotten. It is
//! reported once, with the receiver's words. What is refused alone waits by itself: it keeps no request from being sent.
//!
//! A worker never drops a batch: it is confirmed, or refused to whoever handed it in, who keeps it.

mod account;
mod evidence;
mod kind;
#[cfg(test)]
mod tests;
mod unit;
mod worker;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::account::{Confirm, Settled};
pub use self::worker::Worker;
use crate::host::Batch;

/// Batches waiting for or in one sink; beyond it `deliver` waits.
pub const QUEUE_BATCHES_MAX: usize = 256;
/// Bytes waiting for or in one sink; beyond it `deliver` waits. A single larger batch passes alone.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Batches written as one group.
pub const GROUP_BATCHES_MAX: usize = 64;
/// Bytes written as one group; a single larger record is a group of its own.
pub const GROUP_BYTES_MAX: usize = 8 << 20;

/// What a sink says became of a batch. Which of the receiver's answers means what is one table for all sinks
/// (`hosts::answers`); what follows from it is the table at the head of this module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The destination has the records for good, as far as this sink can know.
    Delivered,
    /// Not now. It has nothing to do with what the records are.
    Refused {
        /// What went wrong.
        why: String,
        /// When to try again, if the destination said so; else the worker's own back-off.
        retry_after: Option<Duration>,
    },
    /// A failure that says nothing: most often of the moment, but some receivers answer so to a record they cannot read.
    Unclear(String),
    /// The destination takes nothing from us as we are configured, or so it says.
    Misconfigured(String),
    /// The destination will not take it as it is.
    Rejected(String),
    /// It took some of the records and not the others, and does not say which.
    RejectedSome(String),
    /// The request is larger than the destination takes.
    TooLarge(String),
    /// The destination is gone and cannot come back in this process (a closed pipe): the host should stop.
    Closed(String),
}

impl Written {
    /// Passing trouble, to be tried again after the worker's own back-off.
    pub fn refused(why: impl ToString) -> Self {
        Self::Refused { why: why.to_string(), retry_after: None }
    }

    /// What went wrong; `None` if nothing did.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Delivered => None,
            Self::Refused { why, .. }
            | Self::Unclear(why)
            | Self::Misconfigured(why)
            | Self::Rejected(why)
            | Self::RejectedSome(why)
            | Self::TooLarge(why)
            | Self::Closed(why) => Some(why),
        }
    }
}

/// How often a quiet sink that can look at its destination does so.
pub const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A request to a receiver that waits longer for its answer is trouble.
pub const ANSWER_EXPECTED: Duration = Duration::from_secs(30);
/// A write to a file or a pipe that takes longer is trouble: the disk or the reader does not answer.
pub const SLOW_AFTER: Duration = Duration::from_secs(10);
/// What to do about a sink that does not answer.
pub const SLOW_HINT: &str = "look at what the sink writes to: a frozen or unreachable file system (`fsfreeze`, NFS), a \
                             reader that does not read, a server that does not answer; nothing is lost, what is not \
                             confirmed stays owed";

/// How much is handed to a sink at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBounds {
    /// Bytes, at most [`GROUP_BYTES_MAX`]; a single larger record is a group of its own.
    pub bytes: usize,
    /// Records.
    pub records: usize,
    /// Batches, at most [`GROUP_BATCHES_MAX`].
    pub batches: usize,
    /// How long the first batch of a group waits for the group to fill, while others keep coming: a tenth of it without
    /// another means that the source has none for now, and the group is written.
    pub age: Duration,
}

impl Default for GroupBounds {
    /// What has queued up by now, up to the worker's own bounds.
    fn default() -> Self {
        Self { bytes: GROUP_BYTES_MAX, records: usize::MAX, batches: GROUP_BATCHES_MAX, age: Duration::ZERO }
    }
}

/// A destination of records.
#[async_trait]
pub trait Sink: Send + 'static {
    /// How much [`Sink::write`] wants at once; the same for as long as the sink lives.
    fn bounds(&self) -> GroupBounds {
        GroupBounds::default()
    }

    /// More of this sink, asked for once: each is given groups of its own while this one writes. The worker keeps no
    /// order among them.
    fn beside(&self) -> Vec<Box<dyn Sink>> {
        Vec::new()
    }

    /// Whether what was refused has to come again before anything else: half of it may be written.
    fn is_sequential(&self) -> bool {
        false
    }

    /// How long a write may take before it is trouble.
    fn answer_expected(&self) -> Duration {
        ANSWER_EXPECTED
    }

    /// What the sink finds beside its writes, in words with the remedy, for its health; asked for once. A sink that has
    /// it is also asked to [`Sink::look`].
    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// Looks whether the destination is as it was left; called every [`LOOK_EVERY`] while nothing is written.
    async fn look(&mut self) {}

    /// Writes a group within [`Sink::bounds`] and says of each batch, in the order given, what became of it. The same
    /// batches may come again in a group of the same order, to this one or to one beside it. May be cancelled when the
    /// host's grace has run out; what was being written then counts as refused.
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written>;

    /// These batches do not come again as they were.
    fn forget(&mut self, _batches: &[Batch]) {}

    /// Called once after the last write of an orderly stop.
    async fn close(&mut self) {}
}

/// How a worker reports what happens to it.
pub trait Observer: Send + Sync + 'static {
    /// Records are not taken for this reason since now, or (`None`) are again. Called on change.
    fn trouble(&self, sink: &str, why: Option<&str>);
    /// The destination is gone for good; the worker has ended.
    fn closed(&self, _sink: &str, _why: &str) {}
    /// So many records were confirmed.
    fn confirmed(&self, _sink: &str, _records: u64) {}
    /// A request was refused.
    fn refused(&self, _sink: &str) {}
    /// The destination takes nothing at all for now, by its own words for a reason that will not pass by itself.
    fn held_back(&self, _sink: &str, _is_held: bool) {}
    /// How long the oldest request has been waiting for an answer; zero when none is under way. Called now and then.
    fn oldest_request(&self, _sink: &str, _age: Duration) {}
}
