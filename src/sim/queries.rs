//! The configuration of the simulated Microsoft Graph, and the searches submitted to it.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{TenantId, Timestamp};

/// The audience of Graph's tokens in the worldwide cloud.
pub(super) const AUDIENCE: &str = "https://graph.microsoft.com";
/// The application permission that every call needs.
pub(super) const ROLE: &str = "AuditLogsQuery.Read.All";

/// The configuration of Graph. All of it can be changed while it runs.
#[derive(Debug, Clone)]
pub struct GraphConfig {
    /// The `roles` claim of tokens for Graph. Default: `AuditLogsQuery.Read.All`.
    pub roles: Vec<String>,
    /// Which versions answer; the others return 404 `UnknownError`.
    pub versions: GraphVersions,
    /// How far back the search goes, days. Default 180: the standard retention.
    pub history_days: i64,
    /// How long a query takes, seconds.
    pub query_secs: u64,
    /// The outcomes of the next queries, in order; the shares below apply afterwards.
    pub fates: VecDeque<QueryFate>,
    /// Share of the queries that fail, and of those that never end.
    pub failed_share: f64,
    /// See `failed_share`.
    pub stuck_share: f64,
    /// The maximum of records that one query returns.
    pub records_max: Option<usize>,
    /// Whether a query declares a truncation (`isRecordCountLimitExceeded`).
    pub says_cut: bool,
    /// Whether a query has `recordCountLimit` and `approximateReturnedRecordCount` at all.
    pub has_counts: bool,
    /// Records on a page.
    pub page_rows: usize,
    /// This many readings of each query leave out this share of its records.
    pub unstable: (u32, f64),
    /// Rows that a page repeats from the one before.
    pub overlap_rows: usize,
    /// Scheme and host of `@odata.nextLink`, when not the simulator's own.
    pub next_link_origin: Option<String>,
    /// Submissions a tenant may make in 24 hours.
    pub submissions_per_day: usize,
}

impl Default for GraphConfig {
    fn default() -> Self {
        Self {
            roles: vec![ROLE.to_owned()],
            versions: GraphVersions::Both,
            history_days: 180,
            query_secs: 20,
            fates: VecDeque::new(),
            failed_share: 0.0,
            stuck_share: 0.0,
            records_max: None,
            says_cut: true,
            has_counts: true,
            page_rows: 150,
            unstable: (0, 0.0),
            overlap_rows: 0,
            next_link_origin: None,
            submissions_per_day: 200,
        }
    }
}

/// Which versions answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphVersions {
    /// Both.
    Both,
    /// `/beta` alone, as from April 2025 on.
    BetaOnly,
    /// `/v1.0` alone.
    V1Only,
}

/// The outcome of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryFate {
    /// It succeeds after this many seconds.
    After(u64),
    /// It fails.
    Failed,
    /// It runs and never ends.
    Stuck,
}

/// Queries of all tenants, and when each tenant submitted.
#[derive(Default)]
pub(super) struct Graph {
    pub queries: BTreeMap<String, Query>,
    pub submitted: BTreeMap<TenantId, Vec<Timestamp>>,
    pub serial: u64,
}

/// A search that was submitted.
pub(super) struct Query {
    pub tenant: TenantId,
    pub name: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub submitted: Timestamp,
    pub fate: QueryFate,
    pub readings: u32,
    /// Rendered when it is first read, so that all readings have the same rows.
    pub rows: Option<Vec<String>>,
    pub cut: bool,
}

impl Query {
    /// Its status in Graph's words.
    pub fn status(&self, now: Timestamp) -> &'static str {
        let age = now.duration_since(self.submitted).as_secs();
        match self.fate {
            QueryFate::Stuck if age < 2 => "notStarted",
            QueryFate::Stuck => "running",
            QueryFate::Failed if age < 2 => "running",
            QueryFate::Failed => "failed",
            QueryFate::After(secs) if age < i64::try_from(secs).unwrap_or(i64::MAX) => "running",
            QueryFate::After(_) => "succeeded",
        }
    }
}
