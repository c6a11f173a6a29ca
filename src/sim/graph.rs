//! Microsoft Graph's half of the simulation: the audit search as queries that are submitted, polled and read in pages.
//!
//! Follows Microsoft's pages "auditLogQuery" and "List records", and reports of other users: queries that take long,
//! fail or never end, truncated answers with or without a notice, different readings of one finished query, a withdrawn
//! version, a next page on another host. [`super::export`] writes its results.

use serde::Deserialize;
use serde_json::json;

use super::call::{Reply, SimCall};
use super::export::{self, ExportForm, ExportSpec};
use super::faults::CallKind;
use super::queries::{AUDIENCE, GraphVersions, Query, QueryFate, ROLE};
use super::tenant::SimState;
use super::token::Tokens;
use crate::model::{TenantId, Timestamp};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Submission {
    #[serde(default)]
    display_name: String,
    filter_start_date_time: Timestamp,
    filter_end_date_time: Timestamp,
}

/// Answers a call of Graph.
pub(super) fn answer(state: &mut SimState, tokens: &Tokens, call: &SimCall, own_url: &str, now: Timestamp) -> Reply {
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

fn submit(state: &mut SimState, tenant: &TenantId, call: &SimCall, now: Timestamp) -> Reply {
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

fn fate_of(state: &mut SimState, serial: u64) -> QueryFate {
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
fn find(state: &mut SimState, id: &str, now: Timestamp) {
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

fn look(state: &mut SimState, id: &str, now: Timestamp) -> Reply {
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

fn records(state: &mut SimState, (version, id): (&str, &str), call: &SimCall, own_url: &str, now: Timestamp) -> Reply {
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
