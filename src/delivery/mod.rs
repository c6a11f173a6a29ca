//! Delivery to one receiver: sends several requests at once, retries, and finds out whether a refusal concerns the
//! records or something else.
//!
//! A [`Sink`] sends batches once and classifies the receiver's answer ([`Written`]); a [`Worker`] does everything else.
//! It knows no protocol. The sinks of the embedded host are fed by one worker each; the source uses one to find the
//! records that another host rejects (`source::deliver`).
//!
//! # The cause of a refusal
//! A receiver seldom states whether it refuses *this record* or *everything*: a wrong index and an unreadable record
//! both get 400. So no answer is believed by itself. The evidence is how the receiver treats other records meanwhile.
//!
//! | the answer ([`Written`]) | the request waits, and | it is sent in smaller parts | a single record is set aside |
//! | --- | --- | --- | --- |
//! | `Refused`: of the moment (429, 503, UNAVAILABLE) | comes again as it was, after its own back-off or when the receiver said | never | never |
//! | `Unclear`: perhaps of the moment (500, a broken connection) | the same | when it was refused 3 times and others were taken meanwhile | refused alone 8 times, others taken meanwhile |
//! | `Misconfigured`: speaks of address or credentials (401, 404) | the same | the same | refused alone 6 times, others taken meanwhile |
//! | `Rejected`, `RejectedSome`: speaks of the records (400, INVALID_ARGUMENT) | comes once more as it was | when that was rejected, too | refused alone 4 times, others taken meanwhile |
//! | `TooLarge` (413) | | at once | the same |
//!
//! *Others taken meanwhile* means that the receiver accepted other records after the record was first refused by itself
//! and before its last refusal, and that no other request was in flight at the last refusal (a receiver may join
//! requests, and reject all of them because of one record). If only records that were refused by themselves are left,
//! so that no other can be accepted after them, it suffices that others of the request were accepted after its refusal,
//! plus one more refusal. A receiver that once accepted a record it had rejected must refuse more often.
//!
//! | the worker | begins when | sends | ends when |
//! | --- | --- | --- | --- |
//! | open | something was taken | as many requests as the sink can, parts of what was rejected and what comes again on at most half of them, so that the others go on beside it | |
//! | careful | 4 rejections, or one other refusal, with nothing taken between | one request at a time | something is taken |
//! | holding back | 12 rejections, or two other refusals, with nothing taken between; or 48 parts of requests of which others were taken | one request, then a pause that doubles up to 30 s (or for which the receiver asked); of what was rejected one record each time, in turn from each request that waits | something is taken |
//!
//! While it holds back, no record is set aside, and when it ends, all counts against a record are reset. It is reported
//! once, with the receiver's text. A record that is refused by itself waits alone and does not delay other requests.
//!
//! A worker never drops a batch: it is confirmed, or refused to the caller, which keeps it.

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

pub use self::account::{BatchSettled, Confirm};
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

/// The outcome of a batch that a sink reports. `hosts::answers` maps the receiver's answers to outcomes for all sinks;
/// the tables in the documentation of this module define the consequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The destination has the records for good, as far as this sink can know.
    Delivered,
    /// Not now, for a reason that does not concern the records.
    Refused {
        /// What went wrong.
        why: String,
        /// When to retry, if the destination stated it; else the worker's own back-off.
        retry_after: Option<Duration>,
    },
    /// An ambiguous failure: usually temporary, but some receivers answer this way to a record they cannot read.
    Unclear(String),
    /// The destination reports that it accepts nothing with the present configuration.
    Misconfigured(String),
    /// The destination rejects the records.
    Rejected(String),
    /// It accepted some of the records, and does not state which.
    RejectedSome(String),
    /// The request is larger than the destination accepts.
    TooLarge(String),
    /// The destination is gone and cannot come back in this process (a closed pipe): the host should stop.
    Closed(String),
}

impl Written {
    /// A temporary fault, retried after the worker's own back-off.
    pub fn refused(why: impl ToString) -> Self {
        Self::Refused { why: why.to_string(), retry_after: None }
    }

    /// The reason of a failure; `None` if there was none.
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

/// How often an idle sink checks its destination, if it can.
pub const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A request that waits longer for its answer is reported as a fault.
pub const ANSWER_EXPECTED: Duration = Duration::from_secs(30);
/// A write to a file or a pipe that takes longer is reported as a fault: the disk or the reader does not answer.
pub const SLOW_AFTER: Duration = Duration::from_secs(10);
/// The remedy for a sink that does not answer.
pub const SLOW_HINT: &str = "look at what the sink writes to: a frozen or unreachable file system (`fsfreeze`, NFS), a \
                             reader that does not read, a server that does not answer; nothing is lost, what is not \
                             confirmed stays owed";

/// Limits on the batches passed to a sink at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBounds {
    /// Bytes, at most [`GROUP_BYTES_MAX`]; a single larger record is a group of its own.
    pub bytes: usize,
    /// Records.
    pub records: usize,
    /// Batches, at most [`GROUP_BATCHES_MAX`].
    pub batches: usize,
    /// How long the first batch of a group waits for the group to fill, while others keep coming: when a tenth of it
    /// passes without another batch, the source has none for now, and the group is written.
    pub age: Duration,
}

impl Default for GroupBounds {
    /// The batches queued so far, up to the worker's own limits.
    fn default() -> Self {
        Self { bytes: GROUP_BYTES_MAX, records: usize::MAX, batches: GROUP_BATCHES_MAX, age: Duration::ZERO }
    }
}

/// A destination of records.
#[async_trait]
pub trait Sink: Send + 'static {
    /// The limits for one [`Sink::write`]; constant over the sink's lifetime.
    fn bounds(&self) -> GroupBounds {
        GroupBounds::default()
    }

    /// Further instances of this sink, requested once: each gets groups of its own while this one writes, in no order.
    fn beside(&self) -> Vec<Box<dyn Sink>> {
        Vec::new()
    }

    /// Whether a refused group must be retried before any other, since it may be half written.
    fn is_sequential(&self) -> bool {
        false
    }

    /// How long a write may take before it is reported as a fault.
    fn answer_expected(&self) -> Duration {
        ANSWER_EXPECTED
    }

    /// Faults that the sink finds beside its writes, in words with the remedy, for its health; requested once. For a
    /// sink that has this, the worker also calls [`Sink::look`].
    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// Checks that the destination is as it was left; called every [`LOOK_EVERY`] while nothing is written.
    async fn look(&mut self) {}

    /// Writes a group within [`Sink::bounds`] and returns the outcome of each batch, in the order given. The same
    /// batches may come again in a group of the same order, to this instance or another. May be cancelled when the
    /// host's grace period is over; the batches being written then count as refused.
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written>;

    /// These batches will not come again in this form.
    fn forget(&mut self, _batches: &[Batch]) {}

    /// Called once after the last write of an orderly stop.
    async fn close(&mut self) {}
}

/// How a worker reports what happens to it.
pub trait Observer: Send + Sync + 'static {
    /// From now on records are not accepted for this reason, or (`None`) are accepted again. Called on change.
    fn trouble(&self, sink: &str, why: Option<&str>);
    /// The destination is gone for good; the worker has ended.
    fn closed(&self, _sink: &str, _why: &str) {}
    /// This many records were confirmed.
    fn confirmed(&self, _sink: &str, _records: u64) {}
    /// A request was refused.
    fn refused(&self, _sink: &str) {}
    /// The destination accepts nothing for now, for a reason that, by its own answer, will not end by itself.
    fn held_back(&self, _sink: &str, _is_held: bool) {}
    /// How long the oldest request has been waiting for an answer; zero when none is in flight. Called at intervals.
    fn oldest_request(&self, _sink: &str, _age: Duration) {}
}
