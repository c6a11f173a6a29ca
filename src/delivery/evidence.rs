//! What a receiver's refusals prove about it and about the records: implements the tables in the documentation of
//! `delivery`. It has no effects and no clock.

use super::kind::AnswerKind;
use super::unit::SendUnit;

/// The weight of refusals, without an acceptance between them, after which one request is sent at a time.
const CAREFUL: u32 = 4;
/// The weight after which the worker holds back.
const HOLD: u32 = 12;
/// The number of first refusals of parts, of requests of which other parts were accepted, after which the worker holds
/// back: either the bad records have all been found, or the receiver accepts nothing any more.
const HOLD_PARTS: u32 = 48;
/// The weight of a rejection: a neighbouring record may be its cause.
const WEIGHT_OF_REJECTION: u32 = 1;
/// The weight of any other refusal.
const WEIGHT_OF_OTHERS: u32 = 6;
/// Probes with whole requests, while nothing points at the records, before single records are tried.
const WHOLE_PROBES: u32 = 6;
/// How often a request whose refusal seems temporary, or due to settings, is refused before it is split.
const REFUSALS_BEFORE_SPLIT: u32 = 3;
/// The maximum of extra refusals required from a receiver that accepted a record it had rejected.
const FICKLE_MAX: u32 = 3;

/// The decision on a request that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Retry after a pause.
    Wait,
    /// Retry at once.
    Again,
    /// Retry at once, with no other request in flight.
    Quiet,
    /// Retry in smaller parts.
    Split,
    /// Set the record aside.
    Unfit,
}

/// The observations of one receiver.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Grows with every acceptance.
    pub(super) taken: u64,
    /// The weight of refusals since the last acceptance.
    weight: u32,
    /// First refusals since then of parts of requests of which other parts were accepted.
    parts: u32,
    /// How often it accepted records that it had rejected.
    fickle: u32,
    /// Requests since the worker began to hold back.
    pub(super) probes: u32,
}

impl Evidence {
    pub(super) fn is_careful(&self) -> bool {
        self.weight >= CAREFUL
    }

    pub(super) fn is_holding(&self) -> bool {
        self.weight >= HOLD || self.parts >= HOLD_PARTS
    }

    /// Records of `unit` were accepted, which may have been refused before.
    pub(super) fn took(&mut self, unit: &SendUnit) {
        let was_rejected = unit.kind.is_some_and(AnswerKind::is_rejection);
        let is_fickle = match unit.alone {
            0 => unit.refusals > 0 && was_rejected,
            alone => alone > 1 && was_rejected,
        };
        if is_fickle && !self.is_holding() {
            self.fickle = (self.fickle + 1).min(FICKLE_MAX);
        }
        self.took_some();
    }

    /// Records were accepted.
    pub(super) fn took_some(&mut self) {
        self.taken += 1;
        (self.weight, self.parts, self.probes) = (0, 0, 0);
    }

    /// Records a refusal of `unit`, which has already counted it. A refusal while others are accepted proves little
    /// about the receiver.
    pub(super) fn refused(&mut self, unit: &SendUnit, kind: AnswerKind) {
        if unit.has_contrast(self.taken) {
            self.parts += u32::from(unit.refusals_ever == 1);
            return;
        }
        let weight = if kind.is_rejection() || unit.is_suspected { WEIGHT_OF_REJECTION } else { WEIGHT_OF_OTHERS };
        self.weight = self.weight.saturating_add(weight);
    }

    /// Decides on a request after a recorded refusal. `was_quiet`: no other was in flight; `nothing_else`: only records
    /// that were refused by themselves are left.
    pub(super) fn judge(
        &self,
        unit: &SendUnit,
        kind: AnswerKind,
        was_quiet: bool,
        nothing_else: bool,
    ) -> RetryDecision {
        if self.is_holding() {
            return RetryDecision::Wait;
        }
        if unit.records() > 1 {
            return self.judge_many(unit, kind);
        }
        let Some(wanted) = kind.refusals_alone().map(|wanted| wanted + 2 * self.fickle) else {
            return RetryDecision::Wait;
        };
        let taken_after = unit.alone_since.is_some_and(|since| since < self.taken) && unit.alone >= wanted;
        let taken_before = unit.has_contrast(self.taken) && unit.alone > wanted && nothing_else;
        match taken_after || taken_before {
            false => RetryDecision::Wait,
            true if was_quiet => RetryDecision::Unfit,
            true => RetryDecision::Quiet,
        }
    }

    fn judge_many(&self, unit: &SendUnit, kind: AnswerKind) -> RetryDecision {
        let again = u32::from(!unit.is_part) + self.fickle.min(2);
        match kind {
            AnswerKind::Moment => RetryDecision::Wait,
            AnswerKind::Size => RetryDecision::Split,
            AnswerKind::Records if unit.refusals > again => RetryDecision::Split,
            AnswerKind::Records => RetryDecision::Again,
            AnswerKind::Unclear | AnswerKind::Setting => {
                let has_contrast = unit.has_contrast(self.taken) && unit.refusals >= REFUSALS_BEFORE_SPLIT;
                if unit.is_suspected || has_contrast { RetryDecision::Split } else { RetryDecision::Wait }
            }
        }
    }

    /// Whether, while nothing is accepted, one record of this request is tried instead of all.
    pub(super) fn probes_with_one(&self, unit: &SendUnit) -> bool {
        match unit.kind {
            None | Some(AnswerKind::Moment) => false,
            Some(AnswerKind::Records | AnswerKind::Size) => true,
            Some(AnswerKind::Unclear | AnswerKind::Setting) => unit.is_suspected || self.probes >= WHOLE_PROBES,
        }
    }

    /// A record was set aside, so the receiver is consistent again.
    pub(super) fn set_aside(&mut self) {
        self.fickle = self.fickle.saturating_sub(1);
    }
}
