//! What a receiver's refusals say of it, and of the records: the tables at the head of `delivery` as code. Does nothing
//! and knows no time.

use super::kind::Kind;
use super::unit::Unit;

/// Refusals with nothing taken between, weighed, after which one request is sent at a time.
const CAREFUL: u32 = 4;
/// And after which the worker holds back.
const HOLD: u32 = 12;
/// And after which it does, when parts of requests of which others were taken are refused for the first time: the end of
/// the records to blame, or of a receiver that takes anything.
const HOLD_PARTS: u32 = 48;
/// What a rejection weighs: the record of a neighbour may be to blame.
const WEIGHT_OF_REJECTION: u32 = 1;
/// What any other refusal weighs.
const WEIGHT_OF_OTHERS: u32 = 6;
/// Probes with whole requests, while nothing says that it is the records, before single records are tried.
const WHOLE_PROBES: u32 = 6;
/// How often a request that seems to be refused for the moment, or for our settings, is refused before it is split.
const REFUSALS_BEFORE_SPLIT: u32 = 3;
/// Most that is asked more of a receiver that took what it had rejected.
const FICKLE_MAX: u32 = 3;

/// What is to be done with a request that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It comes again after a pause.
    Wait,
    /// It comes again at once.
    Again,
    /// It comes again at once, with no other request under way.
    Quiet,
    /// It comes again in smaller parts.
    Split,
    /// The record is set aside.
    Unfit,
}

/// What was seen of one receiver.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Grows with all that is taken.
    pub(super) taken: u64,
    /// Refusals since then, weighed.
    weight: u32,
    /// First refusals since then of parts of requests of which others were taken.
    parts: u32,
    /// How often it took what it had rejected.
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

    /// Something was taken of a request that was refused so often as it is, or for a single record alone.
    pub(super) fn took(&mut self, unit: &Unit) {
        let was_rejected = unit.kind.is_some_and(Kind::is_rejection);
        let is_fickle = match unit.alone {
            0 => unit.refusals > 0 && was_rejected,
            alone => alone > 1 && was_rejected,
        };
        if is_fickle && !self.is_holding() {
            self.fickle = (self.fickle + 1).min(FICKLE_MAX);
        }
        self.took_some();
    }

    /// Something was taken.
    pub(super) fn took_some(&mut self) {
        self.taken += 1;
        (self.weight, self.parts, self.probes) = (0, 0, 0);
    }

    /// Notes a refusal of `unit`, which knows of it already. What is refused while others are taken says little of
    /// these.
    pub(super) fn refused(&mut self, unit: &Unit, kind: Kind) {
        if unit.has_contrast(self.taken) {
            self.parts += u32::from(unit.refusals_ever == 1);
            return;
        }
        let weight = if kind.is_rejection() || unit.is_suspected { WEIGHT_OF_REJECTION } else { WEIGHT_OF_OTHERS };
        self.weight = self.weight.saturating_add(weight);
    }

    /// What becomes of a request after a refusal that was noted. `was_quiet`: no other was under way; `nothing_else`:
    /// all that is left are records that were refused alone.
    pub(super) fn judge(&self, unit: &Unit, kind: Kind, was_quiet: bool, nothing_else: bool) -> Verdict {
        if self.is_holding() {
            return Verdict::Wait;
        }
        if unit.records() > 1 {
            return self.judge_many(unit, kind);
        }
        let Some(wanted) = kind.refusals_alone().map(|wanted| wanted + 2 * self.fickle) else { return Verdict::Wait };
        let taken_after = unit.alone_since.is_some_and(|since| since < self.taken) && unit.alone >= wanted;
        let taken_before = unit.has_contrast(self.taken) && unit.alone > wanted && nothing_else;
        match taken_after || taken_before {
            false => Verdict::Wait,
            true if was_quiet => Verdict::Unfit,
            true => Verdict::Quiet,
        }
    }

    fn judge_many(&self, unit: &Unit, kind: Kind) -> Verdict {
        let again = u32::from(!unit.is_part) + self.fickle.min(2);
        match kind {
            Kind::Moment => Verdict::Wait,
            Kind::Size => Verdict::Split,
            Kind::Records if unit.refusals > again => Verdict::Split,
            Kind::Records => Verdict::Again,
            Kind::Unclear | Kind::Setting => {
                let has_contrast = unit.has_contrast(self.taken) && unit.refusals >= REFUSALS_BEFORE_SPLIT;
                if unit.is_suspected || has_contrast { Verdict::Split } else { Verdict::Wait }
            }
        }
    }

    /// Whether, while nothing is taken, one record of this request is tried instead of all.
    pub(super) fn probes_with_one(&self, unit: &Unit) -> bool {
        match unit.kind {
            None | Some(Kind::Moment) => false,
            Some(Kind::Records | Kind::Size) => true,
            Some(Kind::Unclear | Kind::Setting) => unit.is_suspected || self.probes >= WHOLE_PROBES,
        }
    }

    /// A record was set aside: the receiver is what it seemed to be.
    pub(super) fn set_aside(&mut self) {
        self.fickle = self.fickle.saturating_sub(1);
    }
}
