//! What a row or a wrapper says of its event beside it.

/// The outer cells of a row or wrapper, as found: raw texts, each absent where the form has none.
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

/// What the id is called in rows and wrappers, the closest first. Names are compared without case.
pub(crate) const IDS: &[&str] = &["RecordId", "Identity", "id", "OfficeId", "ReportId", "event_id", "_id", "_cd"];
/// What the time is called.
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
/// What the operation is called.
pub(crate) const OPERATIONS: &[&str] = &["Operation", "Operations", "ActionType"];
/// What the user is called.
pub(crate) const USERS: &[&str] = &["UserId", "UserIds", "userPrincipalName", "AccountUpn", "AccountDisplayName"];
/// What the record type is called.
pub(crate) const RECORD_TYPES: &[&str] = &["RecordType", "auditLogRecordType", "OfficeRecordType", "record_type"];
/// What the workload is called.
pub(crate) const WORKLOADS: &[&str] = &["Workload", "service", "OfficeWorkload", "Application"];
