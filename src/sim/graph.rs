//! Microsoft Graph's half of the simulation: the audit search as queries that are submitted, looked at and read in pages.
//!
//! Follows Microsoft's pages "auditLogQuery" and "List records", and what others met of it: queries that take long, fail
//! or never end, answers that are cut whether they say so or not, readings of one finished query that differ, a version
//! that is withdrawn, a next page elsewhere. What it finds is what [`super::export`] writes.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use serde_json::json;

use super::call::{Call, Reply};
use super::export::{self, ExportForm, ExportSpec};
use super::faults::CallKind;
use super::tenant::State;
use super::token::Tokens;
use crate::model::{TenantId, Timestamp};

/// The audience of Graph's tokens in the worldwide cloud.
pub(super) const AUDIENCE: &str = "https://graph.microsoft.com";
/// The application permission that every call needs.
const ROLE: &str = "AuditLogsQuery.Read.All";

/// What Graph is like. All of it can be changed while it runs.
#[derive(Debug, Clone)]
pub struct GraphConfig {
    /// The `roles` claim of tokens for Graph. Default: `AuditLogsQuery.Read.All`.
    pub roles: Vec<String>,
    /// Which versions answer; the others say 404 `UnknownError`.
    pub versions: GraphVersions,
    /// How far back the search goes, days. Default 180: the standard retention.
    pub history_days: i64,
    /// How long a query takes, seconds.
    pub query_secs: u64,
    /// What becomes of the next queries, the first first; afterwards of a share of them.
    pub fates: VecDeque<QueryFate>,
    /// Share of the queries that fail, and of those that never end.
    pub failed_share: f64,
    /// See `failed_share`.
    pub stuck_share: f64,
    /// Records that one query gives at most.
    pub records_max: Option<usize>,
    /// Whether a query says that it was cut (`isRecordCountLimitExceeded`).
    pub says_cut: bool,
    /// Whether a query has `recordCountLimit` and `approximateReturnedRecordCount` at all.
    pub has_counts: bool,
    /// Records on a page.
    pub page_rows: usize,
    /// So many readings of each query leave out this share of its records.
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

/// What becomes of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryFate {
    /// It succeeds after so many seconds.
    After(u64),
    /// It fails.
    Failed,
    /// It runs and never ends.
    Stuck,
}

/// Queries of all tenants, and when each tenant submitted.
#[derive(Default)]
pub(super) struct Graph {
    queries: BTreeMap<String, Query>,
    submitted: BTreeMap<TenantId, Vec<Timestamp>>,
    serial: u64,
}

struct Query {
    tenant: TenantId,
    name: String,
    from: Timestamp,
    to: Timestamp,
    submitted: Timestamp,
    fate: QueryFate,
    readings: u32,
    /// Rendered when it is first read, so that all readings are of the same rows.
    rows: Option<Vec<String>>,
    cut: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Submission {
    #[serde(default)]
    display_name: String,
    filter_start_date_time: Timestamp,
    filter_end_date_time: Timestamp,
}

/// Whether the path is one of Graph's, and which: its version and the rest.
pub(super) fn path_kind(segments: &[&str]) -> Option<(CallKind, String)> {
    let (version, rest) = match segments {
        [version @ ("v1.0" | "beta"), "security", "auditLog", "queries", rest @ ..] => (*version, rest),
        _ => return None,
    };
    let (kind, id) = match rest {
        [] => (CallKind::GraphSubmit, ""),
        [id] => (CallKind::GraphQuery, *id),
        [id, "records"] => (CallKind::GraphRecords, *id),
        _ => return None,
    };
    Some((kind, format!("{version}/{id}")))
}

/// Answers a call of Graph.
pub(super) fn answer(state: &mut State, tokens: &Tokens, call: &Call, own_url: &str, now: Timestamp) -> Reply {
    let refuse = |status, code: &str, text: &str| Reply::error(status, code, text);
    let (version, id) = call.graph.split_once('/').unwrap_or_default();
    let token = call.bearer.as_deref().and_then(|bearer| tokens.issued_to(bearer, now));
    let Some(token) = token.filter(|token| token.audience.trim_end_matches('/') == AUDIENCE) else {
        return refuse(401, "InvalidAuthenticationToken", "Access token validation failure. Invalid audience.");
    };
    let is_served = match state.config.graph.versions {
        GraphVersions::Both => true,
        GraphVersions::BetaOnly => version == "beta",
        GraphVersions::V1Only => version == "v1.0",
    };
    if !is_served {
        return refuse(404, "UnknownError", "");
    }
    if !token.roles.iter().any(|role| role == ROLE) {
        return refuse(403, "Forbidden", "The application does not have any of the required permissions.");
    }
    let tenant = token.tenant.clone();
    match call.kind {
        CallKind::GraphSubmit => submit(state, &tenant, call, now),
        CallKind::GraphQuery => match state.graph.queries.get(id).filter(|query| query.tenant == tenant) {
            Some(_) => look(state, id, now),
            None => refuse(404, "NotFound", "The query does not exist."),
        },
        _ => match state.graph.queries.get(id).filter(|query| query.tenant == tenant) {
            Some(query) if query.status(now) != "succeeded" => {
                refuse(400, "BadRequest", "The query has not succeeded yet.")
            }
            Some(_) => records(state, (version, id), call, own_url, now),
            None => refuse(404, "NotFound", "The query does not exist."),
        },
    }
}

impl Query {
    fn status(&self, now: Timestamp) -> &'static str {
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

fn submit(state: &mut State, tenant: &TenantId, call: &Call, now: Timestamp) -> Reply {
    let Ok(submission) = serde_json::from_slice::<Submission>(&call.body) else {
        return Reply::error(400, "BadRequest", "The body of the request is not valid.");
    };
    if submission.filter_start_date_time >= submission.filter_end_date_time {
        return Reply::error(400, "BadRequest", "The start of the search must be before its end.");
    }
    let day_ago = now.saturating_sub(jiff::SignedDuration::from_hours(24)).unwrap_or(now);
    let submitted = state.graph.submitted.entry(tenant.clone()).or_default();
    submitted.retain(|at| *at > day_ago);
    if submitted.len() >= state.config.graph.submissions_per_day {
        let mut reply = Reply::error(429, "TooManyRequests", "Too many searches were submitted.");
        reply.headers.push(("retry-after", "600".to_owned()));
        return reply;
    }
    submitted.push(now);
    state.graph.serial += 1;
    let serial = state.graph.serial;
    let id = format!("5e1f0000-0000-4000-8000-{serial:012x}");
    let fate = fate_of(state, serial);
    let query = Query {
        tenant: tenant.clone(),
        name: submission.display_name,
        from: submission.filter_start_date_time,
        to: submission.filter_end_date_time,
        submitted: now,
        fate,
        readings: 0,
        rows: None,
        cut: false,
    };
    state.graph.queries.insert(id.clone(), query);
    let mut reply = look(state, &id, now);
    reply.status = 201;
    reply
}

fn fate_of(state: &mut State, serial: u64) -> QueryFate {
    let seed = state.config.seed;
    let graph = &mut state.config.graph;
    if let Some(fate) = graph.fates.pop_front() {
        return fate;
    }
    let draw = fastrand::Rng::with_seed(seed ^ serial.wrapping_mul(0x9e37_79b9_7f4a_7c15)).f64();
    if draw < graph.failed_share {
        QueryFate::Failed
    } else if draw < graph.failed_share + graph.stuck_share {
        QueryFate::Stuck
    } else {
        QueryFate::After(graph.query_secs)
    }
}

/// Finds the rows of a query that has succeeded, once.
fn find(state: &mut State, id: &str, now: Timestamp) {
    let Some(query) = state.graph.queries.get(id).filter(|query| query.rows.is_none()) else { return };
    let oldest = now.saturating_sub(jiff::SignedDuration::from_hours(24 * state.config.graph.history_days));
    let from = query.from.max(oldest.unwrap_or(Timestamp::MIN));
    let spec = ExportSpec { from: Some(from), to: Some(query.to), ..ExportSpec::new(ExportForm::GraphPages) };
    let tenant = query.tenant.clone();
    let mut rows = export::graph_records(state.search(&tenant, &spec, now), &tenant);
    let max = state.config.graph.records_max.unwrap_or(usize::MAX);
    if let Some(query) = state.graph.queries.get_mut(id) {
        query.cut = rows.len() > max;
        rows.truncate(max);
        query.rows = Some(rows);
    }
}

fn look(state: &mut State, id: &str, now: Timestamp) -> Reply {
    let succeeded = state.graph.queries.get(id).is_some_and(|query| query.status(now) == "succeeded");
    if succeeded {
        find(state, id, now);
    }
    let Some(query) = state.graph.queries.get(id) else { return Reply::error(404, "NotFound", "") };
    let graph = &state.config.graph;
    let mut body = json!({
        "@odata.type": "#microsoft.graph.security.auditLogQuery",
        "id": id,
        "displayName": query.name,
        "filterStartDateTime": query.from.to_string(),
        "filterEndDateTime": query.to.to_string(),
        "recordTypeFilters": [],
        "status": query.status(now),
    });
    if graph.has_counts && succeeded {
        body["isRecordCountLimitExceeded"] = json!(query.cut && graph.says_cut);
        body["approximateReturnedRecordCount"] = json!(query.rows.as_ref().map_or(0, Vec::len));
        if graph.says_cut {
            body["recordCountLimit"] = json!(graph.records_max.unwrap_or(1_000_000));
        }
    }
    Reply::json(200, &body)
}

fn records(state: &mut State, (version, id): (&str, &str), call: &Call, own_url: &str, now: Timestamp) -> Reply {
    find(state, id, now);
    let (config, seed) = (state.config.graph.clone(), state.config.seed);
    let Some(query) = state.graph.queries.get_mut(id) else { return Reply::error(404, "NotFound", "") };
    let place = call.param("$skiptoken").and_then(|token| {
        let (reading, at) = token.split_once('.')?;
        Some((reading.parse::<u32>().ok()?, at.parse::<usize>().ok()?))
    });
    let (reading, at) = place.unwrap_or_else(|| {
        query.readings += 1;
        (query.readings, 0)
    });
    let rows = query.rows.as_deref().unwrap_or_default();
    let is_unstable = reading <= config.unstable.0;
    let is_there = |index: usize| {
        let mut rng = fastrand::Rng::with_seed(seed ^ (u64::from(reading) << 40) ^ index as u64);
        !is_unstable || rng.f64() >= config.unstable.1
    };
    let size = config.page_rows.max(1);
    let begin = if at == 0 { 0 } else { at.saturating_sub(config.overlap_rows) };
    let page: Vec<&str> = rows
        .iter()
        .enumerate()
        .skip(begin)
        .take(at + size - begin)
        .filter(|(index, _)| is_there(*index))
        .map(|(_, row)| row.as_str())
        .collect();
    let next = if at + size < rows.len() {
        let origin = config.next_link_origin.as_deref().unwrap_or(own_url);
        let next = at + size;
        format!(
            ",\"@odata.nextLink\":\"{origin}/{version}/security/auditLog/queries/{id}/records?$skiptoken={reading}.{next}\""
        )
    } else {
        String::new()
    };
    let body = format!(
        "{{\"@odata.context\":\"{own_url}/{version}/$metadata#security/auditLog/queries('{id}')/records\",\"value\":[{}]{next}}}",
        page.join(",")
    );
    Reply::new(200, "application/json; charset=utf-8", body)
}
