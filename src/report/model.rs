//! The content of a report. As JSON it is the `json` format, which `docs/report.md` describes.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::Timestamp;
use crate::receipts::statement::Counts;

/// The format of the JSON object.
pub const FORMAT: u32 = 1;

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditReport {
    /// Format version.
    pub format: u32,
    /// Name and version of the program that made it.
    pub program: String,
    /// When it was made.
    pub generated: Timestamp,
    /// Where the period begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// Whether the beginning of the period is the default.
    pub default_from: bool,
    /// Whether everything was read.
    pub completeness: Completeness,
    /// What is missing, open or not known.
    pub findings: Vec<ReportFinding>,
    /// Upper bounds of the counts of delays, in seconds; one more count covers longer delays.
    pub lateness_bounds_secs: Vec<u64>,
    /// Tenant by tenant.
    pub tenants: Vec<Tenant>,
}

/// Whether everything of the period was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// Everything, up to the positions.
    Complete,
    /// Some content is left that can still be read or delivered.
    Open,
    /// Part of the period was never to be read, or nothing is known of it.
    NotCovered,
    /// Content is lost.
    Incomplete,
}

/// A fact that the reader must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportFinding {
    /// Its kind.
    pub kind: FindingKind,
    /// The source it concerns.
    pub source: String,
    /// The content types; none if it concerns the tenant.
    pub content_types: Vec<String>,
    /// The finding, in a sentence.
    pub text: String,
}

/// The kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Events can no longer be read, or are missing by comparison.
    Lost,
    /// Receipts do not verify.
    NotVerified,
    /// Part of the period was never to be read, or nothing is known of it.
    NotCovered,
    /// Some content is left that can still be read or delivered.
    Open,
    /// An unknown fact.
    NotKnown,
    /// Further information; nothing is missing because of it.
    Note,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tenant {
    /// Its source in the configuration.
    pub source: String,
    /// Its GUID.
    pub tenant: String,
    /// Whether everything was read.
    pub completeness: Completeness,
    /// By content type.
    pub streams: Vec<ReportedStream>,
    /// The receipts.
    pub receipts: ReceiptSummary,
    /// Events by the day on which they were settled.
    pub days: Vec<Day>,
    /// Dropped events by rule; `None` if no receipts cover the period.
    pub dropped_by_rule: Option<Vec<DroppingRule>>,
    /// The last comparison with an export of Microsoft's audit search.
    pub reconcile: Reconcile,
}

/// One content type of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportedStream {
    /// Its name.
    pub content_type: String,
    /// How far it was read; `None` if the state has no position.
    pub position: Option<PositionSummary>,
    /// The period, cut into segments by state.
    pub bar: Vec<Segment>,
    /// Gaps of the period that were filled through Microsoft Graph; the bar has them as read.
    pub healed: Vec<HealedSummary>,
    /// The outcomes of its events in the period; `None` if no receipts cover it.
    pub counts: Option<Counts>,
    /// Whether receipts cover the whole period, so that the counts are complete.
    pub counts_are_whole: bool,
    /// Content that is listed and not read.
    pub owed: Owed,
    /// Records that every receiver refused.
    pub set_aside: SetAsideSummary,
    /// Routine reads that wait.
    pub on_hold: OnHold,
    /// How late content came.
    pub lateness: LatenessSummary,
}

/// An interval that was filled through Microsoft Graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealedSummary {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// When it was filled.
    pub at: Timestamp,
    /// Events delivered for it, of all content types.
    pub events: u64,
}

/// How far a content type was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PositionSummary {
    /// Content made available before this is never read.
    pub origin: Timestamp,
    /// Everything made available from there to here is settled, except for gaps and unsettled blobs.
    pub complete_until: Option<Timestamp>,
    /// When Microsoft last answered a listing.
    pub last_listing: Option<Timestamp>,
    /// Since when the subscription is known to be off.
    pub disabled_since: Option<Timestamp>,
}

/// Part of a period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// Its state.
    pub state: SegmentState,
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends (exclusive).
    pub to: Timestamp,
    /// Why, for a gap: the reasons in its records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of part of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentState {
    /// Everything made available was read. For receipts: every event has one.
    Complete,
    /// It can no longer be read.
    Gap,
    /// It is not read yet.
    NotYet,
    /// It lies before the origin.
    NotRead,
    /// Some receipts may be lacking.
    InPart,
    /// Its state is unknown.
    NotKnown,
}

/// Content that is listed and not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Owed {
    /// How many blobs.
    pub blobs: u64,
    /// When the oldest was made available.
    pub oldest: Option<Timestamp>,
    /// When the first of them expires at Microsoft.
    pub first_expires: Option<Timestamp>,
}

/// Records that every receiver refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SetAsideSummary {
    /// How many.
    pub records: u64,
    /// When the oldest was set aside.
    pub oldest: Option<Timestamp>,
    /// Why, and how many; the most frequent first.
    pub reasons: Vec<Reason>,
}

/// Why records were set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The receiver's reason.
    pub why: String,
    /// How many.
    pub records: u64,
}

/// Routine reads that wait until it is known whether data loss prevention flagged them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OnHold {
    /// How many.
    pub reads: u64,
    /// When the oldest was made available.
    pub oldest: Option<Timestamp>,
    /// What the oldest waits for; `None` when it can be decided.
    pub waits_for: Option<ReportedWait>,
}

/// A content type that may flag reads on hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportedWait {
    /// Its name.
    pub content_type: String,
    /// The time until which it must be complete.
    pub needed_until: Timestamp,
    /// The time until which it is complete.
    pub complete_until: Option<Timestamp>,
}

/// How late content came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LatenessSummary {
    /// From an event to its content, which is Microsoft's part; `None` if nothing was counted.
    pub events: Option<Spread>,
    /// From there to when it was read, which is this program's part.
    pub content: Option<Spread>,
    /// By the day on which content was read.
    pub days: Vec<LatenessDay>,
}

/// That of one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LatenessDay {
    /// The day.
    pub day: String,
    /// From an event to the content it is in.
    pub events: Option<Spread>,
    /// From there to when it was read.
    pub content: Option<Spread>,
}

/// Delays by how long they were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// How many were counted.
    pub counted: u64,
    /// By the report's bounds.
    pub counts: Vec<u64>,
    /// Half of them took no longer.
    pub median_secs: u64,
    /// 99 of 100 took no longer.
    pub p99_secs: u64,
    /// The longest.
    pub longest_secs: u64,
}

/// The receipts of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReceiptSummary {
    /// Whether they verify.
    pub chain: Chain,
    /// The key they were verified with, by its name and id.
    pub key: Option<String>,
    /// The first hour that is sealed and kept.
    pub first_hour: Option<Timestamp>,
    /// The last.
    pub last_hour: Option<Timestamp>,
    /// Sealed parts that were verified.
    pub parts: u64,
    /// Receipts in them.
    pub entries: u64,
    /// Parts before the first, which were removed as too old.
    pub removed_as_too_old: u64,
    /// The hash of the last statement, in base64: for comparison with a copy kept elsewhere.
    pub last_hash: Option<String>,
    /// The faults, at most 100.
    pub faults: Vec<String>,
    /// The total number of faults.
    pub faults_in_all: u64,
    /// Hours of the period, and how many of them receipts cover.
    pub hours: Hours,
    /// The period, cut into segments by the coverage of receipts.
    pub bar: Vec<Segment>,
}

/// Whether receipts verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "why")]
pub enum Chain {
    /// All sealed receipts.
    Verified,
    /// There is a fault.
    NotVerified,
    /// Nothing was sealed yet.
    NothingSealed,
    /// None are kept.
    Off,
    /// Unknown, for this reason.
    NotKnown(String),
}

/// Hours, and how many of them receipts cover.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Hours {
    /// All.
    pub all: u64,
    /// Every event has a receipt, or is counted.
    pub known: u64,
    /// Some events may lack their receipt.
    pub in_part: u64,
}

impl Hours {
    /// Hours of unknown state.
    pub fn not_known(&self) -> u64 {
        self.all.saturating_sub(self.known + self.in_part)
    }

    /// Whether receipts cover all of them.
    pub fn is_whole(&self) -> bool {
        self.known == self.all
    }
}

/// Events of one day, or of several unknown days.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Day {
    /// The day, UTC.
    pub day: String,
    /// The last day, if it covers several unknown days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The day's hours within the period.
    pub hours: Hours,
    /// The outcomes of the events; `None` if unknown.
    pub counts: Option<Counts>,
    /// The same by content type.
    pub by_type: BTreeMap<String, Counts>,
}

/// The events that a rule dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DroppingRule {
    /// Its id; `None` for those that receipts do not name.
    pub rule: Option<String>,
    /// How many events.
    pub events: u64,
}

/// The last comparison with an export of Microsoft's audit search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Reconcile {
    /// None was made.
    None,
    /// There is one, but it is unreadable.
    Unreadable {
        /// Why.
        why: String,
    },
    /// The last one.
    Made(Box<Compared>),
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// When it was made.
    pub made: Timestamp,
    /// The times of the export's first row and of its last.
    pub between: Option<(Timestamp, Timestamp)>,
    /// Rows of the export.
    pub rows: u64,
    /// Rows by class.
    pub classes: BTreeMap<String, u64>,
    /// Events that were delivered and that the export lacks.
    pub only_ours: Option<u64>,
    /// Whether the export seems truncated.
    pub looks_cut: bool,
    /// Why.
    pub why: Vec<String>,
    /// The evidence of the comparison.
    pub evidence: Vec<String>,
    /// The first of the missing events.
    pub missing: Vec<MissingEvent>,
}

impl Compared {
    /// Rows of one class.
    pub fn class(&self, name: &str) -> u64 {
        self.classes.get(name).copied().unwrap_or_default()
    }
}

/// An event of the export that was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingEvent {
    /// Its `Id`.
    pub id: String,
    /// Its time, as it was read.
    pub time: String,
    /// Its operation.
    pub operation: String,
}
