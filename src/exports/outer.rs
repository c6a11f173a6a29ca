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
