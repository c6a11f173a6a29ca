//! The content of one request, and its refusals.

use std::time::Duration;

use super::account::{Account, BatchSettled};
use super::kind::AnswerKind;
use crate::backoff::Backoff;
use crate::host::{Batch, Unfit};

/// Pauses of a request that was refused, and of a worker that holds back.
pub(super) const RETRY: Backoff = Backoff::between(Duration::from_millis(200), Duration::from_secs(30));

/// Records of one batch in flight, with the account of the whole batch.
pub(super) struct BatchPiece {
    pub(super) batch: Batch,
    /// The place of its first record in the whole.
    first: usize,
    account: Account,
}

impl BatchPiece {
    pub(super) fn whole(batch: Batch, account: Account) -> Self {
        Self { batch, first: 0, account }
    }

    pub(super) fn bytes(&self) -> usize {
        self.batch.ndjson().len()
    }

    /// These of its records as a piece of their own.
    pub(super) fn part(&self, records: std::ops::Range<usize>) -> Self {
        let first = self.first + records.start;
        Self { batch: self.batch.part(records), first, account: self.account.clone() }
    }

    pub(super) fn delivered(self) {
        self.account.delivered(self.batch.len(), self.bytes());
    }

    /// A single record that is set aside.
    pub(super) fn unfit(self, why: String) {
        self.account.unfit(Unfit { record: self.first, why }, self.bytes());
    }

    pub(super) fn end(self, settled: BatchSettled) {
        self.account.end(settled);
    }
}

/// One request.
pub(super) struct SendUnit {
    pub(super) pieces: Vec<BatchPiece>,
    /// The kind of its last answer; `None` before it was sent.
    pub(super) kind: Option<AnswerKind>,
    pub(super) why: String,
    /// Refusals of this request as it is, since the worker last held back.
    pub(super) refusals: u32,
    /// Refusals of it as it is, ever.
    pub(super) refusals_ever: u32,
    /// How much the receiver had accepted when this request, or the one it is a part of, was first refused.
    pub(super) since: Option<u64>,
    /// How often this single record was refused for a reason that it may have caused, since the worker last held back.
    pub(super) alone: u32,
    /// How much the receiver had accepted when that happened first.
    pub(super) alone_since: Option<u64>,
    /// Whether it, or the request it is a part of, was refused while others were accepted.
    pub(super) is_suspected: bool,
    /// It is a part of another request.
    pub(super) is_part: bool,
    /// Whether it must be sent with no other request in flight.
    pub(super) wants_quiet: bool,
    /// When it may be sent, by the monotonic clock.
    pub(super) due: Duration,
    /// When it was last sent, counted in requests of this worker.
    pub(super) sent: u64,
}

impl SendUnit {
    pub(super) fn new(pieces: Vec<BatchPiece>) -> Self {
        Self {
            pieces,
            kind: None,
            why: String::new(),
            refusals: 0,
            refusals_ever: 0,
            since: None,
            alone: 0,
            alone_since: None,
            is_suspected: false,
            is_part: false,
            wants_quiet: false,
            due: Duration::ZERO,
            sent: 0,
        }
    }

    pub(super) fn records(&self) -> usize {
        self.pieces.iter().map(|piece| piece.batch.len()).sum()
    }

    pub(super) fn batches(&self) -> Vec<Batch> {
        self.pieces.iter().map(|piece| piece.batch.clone()).collect()
    }

    /// Whether it is a single record that was refused by itself before.
    pub(super) fn is_alone(&self) -> bool {
        self.alone > 0
    }

    /// Whether it is a trial, which always gets an answer.
    pub(super) fn is_trial(&self) -> bool {
        self.pieces.iter().any(|piece| piece.batch.is_trial())
    }

    /// Whether the receiver accepted other records since it was first refused.
    pub(super) fn has_contrast(&self, taken: u64) -> bool {
        self.since.is_some_and(|since| since < taken)
    }

    /// Called when the worker stops holding back, since records were accepted after `taken_before`: resets the counts
    /// against this request, which may now be sent. A single record that was refused by itself before can now be
    /// compared with others. `by_part`: a part of a waiting request was accepted, so the receiver may be refusing only
    /// a part of this one.
    pub(super) fn acquit(&mut self, now: Duration, taken_before: u64, by_part: bool) {
        self.since = self.is_alone().then_some(taken_before);
        self.alone_since = self.since;
        (self.refusals, self.alone, self.wants_quiet) = (0, 0, false);
        self.is_suspected = by_part && self.records() > 1;
        self.due = now;
    }

    /// The pause before it is retried.
    pub(super) fn delay(&self) -> Duration {
        RETRY.after(self.refusals)
    }

    /// Splits it: one unit for each piece, or two halves of a piece. A single record stays as it is.
    pub(super) fn split(self) -> Vec<SendUnit> {
        let pieces: Vec<BatchPiece> = match self.pieces.as_slice() {
            [only] if only.batch.len() > 1 => {
                let middle = only.batch.len() / 2;
                vec![only.part(0..middle), only.part(middle..only.batch.len())]
            }
            [_] => return vec![self],
            _ => return self.inherit(|unit| unit.pieces.drain(..).map(|piece| vec![piece]).collect()),
        };
        self.inherit(|_| pieces.into_iter().map(|piece| vec![piece]).collect())
    }

    /// Splits off one record; returns it and the rest.
    pub(super) fn split_off_one(mut self) -> (SendUnit, Option<SendUnit>) {
        let Some(piece) = self.pieces.pop() else { return (self, None) };
        let all = piece.batch.len();
        let (one, rest) = if all > 1 { (piece.part(0..1), Some(piece.part(1..all))) } else { (piece, None) };
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.extend(rest);
        let mut parts = self.inherit(|_| vec![vec![one], pieces]).into_iter();
        let one = parts.next().unwrap_or_else(|| SendUnit::new(Vec::new()));
        (one, parts.next().filter(|rest| !rest.pieces.is_empty()))
    }

    fn inherit(mut self, pieces: impl FnOnce(&mut Self) -> Vec<Vec<BatchPiece>>) -> Vec<SendUnit> {
        let parts = pieces(&mut self);
        let part = |pieces| SendUnit {
            kind: self.kind,
            why: self.why.clone(),
            since: self.since,
            is_suspected: self.is_suspected,
            is_part: true,
            sent: self.sent,
            ..SendUnit::new(pieces)
        };
        parts.into_iter().map(part).collect()
    }
}
