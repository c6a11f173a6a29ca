//! The data that a row or a wrapper has beside its event.

/// The outer cells of a row or wrapper, as found: raw texts, each absent if the form has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outer {
    /// `RecordId`, `Identity`, Graph's `id`.
    pub id: Option<String>,
    /// `CreationDate`, `createdDateTime`, `TimeGenerated`.
    pub time: Option<String>,
    /// `Operation`, `Operations`.
    pub operation: Option<String>,
    /// `UserId`, `UserIds`, `userPrincipalName`.
    pub user: Option<String>,
    /// `RecordType`, as a number or a name.
    pub record_type: Option<String>,
    /// `Workload`, `service`.
    pub workload: Option<String>,
}

/// The names of the id in rows and wrappers, the closest first. Names are case-insensitive.
pub(crate) const IDS: &[&str] = &["RecordId", "Identity", "id", "OfficeId", "ReportId", "event_id", "_id", "_cd"];
/// The names of the time.
pub(crate) const TIMES: &[&str] = &[
    "CreationDate",
    "CreationTime",
    "createdDateTime",
    "TimeGenerated",
    "TimeGenerated [UTC]",
    "Timestamp",
    "@timestamp",
    "_time",
    "time",
];
/// The names of the operation.
pub(crate) const OPERATIONS: &[&str] = &["Operation", "Operations", "ActionType"];
/// The names of the user.
pub(crate) const USERS: &[&str] = &["UserId", "UserIds", "userPrincipalName", "AccountUpn", "AccountDisplayName"];
/// The names of the record type.
pub(crate) const RECORD_TYPES: &[&str] = &["RecordType", "auditLogRecordType", "OfficeRecordType", "record_type"];
/// The names of the workload.
pub(crate) const WORKLOADS: &[&str] = &["Workload", "service", "OfficeWorkload", "Application"];
