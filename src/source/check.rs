//! The connection test: credential, token, roles, reachability, clock, subscriptions, content.
//!
//! Each fault is reported with its cause and one remedy. By default it only reads, so it may be run at any time beside
//! a running collector. With `probe` it also starts and stops `Audit.General`. While a subscription is stopped, content
//! that becomes available is unreadable for good. The probe therefore stops the subscription only if it was off before,
//! and stores the start for the 15-minute rule.

use std::sync::Arc;

use jiff::SignedDuration;

use super::error::{FaultKind, SourceError, fault_kind};
use super::server_time::ServerTime;
use super::subscription::START_INTERVAL;
use super::{CheckFault, CheckStep, M365Audit, certificate_files};
use crate::api::{
    Action, ApiClient, ApiError, GRAPH_PERMISSION_HINT, GRAPH_ROLE, GraphError, GraphFault, Started, TokenFacts,
};
use crate::auth::{EXPIRES_HINT, EXPIRES_SLUG, EXPIRY_WARNING};
use crate::checkpoint::format::{self, Keys, TenantState};
use crate::config::AuthMethod;
use crate::host::{Expected, Op, StateError, StateStore};
use crate::model::{Actionable, ContentType, Timestamp, Window};

/// A difference between the clocks above this is reported.
const SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);

/// The role every stream needs.
pub const ROLE_READ: &str = "ActivityFeed.Read";
/// The role that `DLP.All` needs in addition.
pub const ROLE_READ_DLP: &str = "ActivityFeed.ReadDlp";

/// Tests `source`'s connection. `probe` is the store that holds its state; with it, `Audit.General` is started and
/// stopped if it is off.
pub async fn check(source: &M365Audit, probe: Option<Arc<dyn StateStore>>) -> Vec<CheckStep> {
    let mut steps = test(source, probe).await;
    let places = source.config().places();
    for fault in steps.iter_mut().filter_map(|step| step.result.as_mut().err()) {
        fault.remedy = places.fill(&fault.remedy);
    }
    steps
}

async fn test(source: &M365Audit, probe: Option<Arc<dyn StateStore>>) -> Vec<CheckStep> {
    let mut steps = Vec::new();
    let server = ServerTime::new(source.clock().clone());
    let api = match source.client(&server) {
        Ok(api) => api,
        Err(error) => {
            steps.push(fault("settings", &error, FaultKind::Network));
            return steps;
        }
    };
    let config = source.config();
    let wants_dlp = config.content_types.contains(&ContentType::Dlp);
    credential(source, &mut steps);

    let facts = match api.token_roles().await {
        Ok(facts) => facts,
        Err(error) => {
            steps.push(api_fault("sign in", &error));
            clock("clock of the authority", api.authority_skew(), &mut steps);
            return steps;
        }
    };
    steps.push(passed(
        "sign in",
        match config.auth {
            AuthMethod::ManagedIdentity => {
                format!("token of this machine's identity from {}", config.managed_identity_url())
            }
            _ => format!(
                "token for app `{}` from {}",
                config.client_id.as_deref().unwrap_or_default(),
                config.authority_origin()
            ),
        },
    ));
    clock("clock of the authority", api.authority_skew(), &mut steps);
    let read_missing = roles(&facts, wants_dlp, &mut steps);

    graph(source, &api, &mut steps).await;
    let listed = match api.list_subscriptions().await {
        Ok(listed) => listed,
        Err(error) => {
            // Without the permission the call fails for that reason, which was already reported.
            if !read_missing {
                steps.push(api_fault("list subscriptions", &error));
            }
            return steps;
        }
    };
    steps.push(passed("list subscriptions", format!("{} answers", config.api_origin())));
    clock("clock of the API", server.skew(), &mut steps);

    let is_on =
        |wanted: ContentType| listed.iter().any(|s| s.content_type == Some(wanted) && s.is_enabled() != Some(false));
    for &content_type in &config.content_types {
        let is_known = listed.iter().any(|s| s.content_type == Some(content_type));
        steps.push(subscription(content_type, is_known, is_on(content_type)));
    }
    let on: Vec<ContentType> = config.content_types.iter().copied().filter(|wanted| is_on(*wanted)).collect();
    content(&api, &server, on, &mut steps).await;
    if let Some(store) = probe {
        steps.push(start_and_stop(source, &api, &server, store, is_on(ContentType::General)).await);
    }
    steps
}

/// Tests the audit search of Microsoft Graph, if gaps are to be filled through it: the permission in the token, and the
/// answer of Graph. It submits no search: it requests one that does not exist.
async fn graph(source: &M365Audit, api: &ApiClient, steps: &mut Vec<CheckStep>) {
    const WHAT: &str = "Microsoft Graph";
    let config = source.config();
    if !config.heal.graph {
        return;
    }
    if !config.cloud.has_audit_search() {
        steps.push(notice(
            WHAT,
            "heal-cloud",
            format!("the cloud `{}` has no audit search in Microsoft Graph: gaps stay declared", config.cloud.as_str()),
            "take `graph = true` out of `heal`; what a gap lacks can be exported in Purview and read by `m365-audit normalize`".into(),
        ));
        return;
    }
    let graph = api.graph();
    let facts = match graph.token_facts().await {
        Ok(facts) => facts,
        Err(error) => return steps.push(graph_fault(WHAT, &error)),
    };
    let no_such = "00000000-0000-0000-0000-000000000000";
    let role_missing = facts.readable && !facts.roles.iter().any(|role| role == GRAPH_ROLE);
    steps.push(match graph.look(no_such).await {
        _ if role_missing => CheckStep { what: WHAT.into(), result: Err(permission_missing(&facts)) },
        Err(error) if error.fault() != GraphFault::Absent && error.fault() != GraphFault::Refused => {
            graph_fault(WHAT, &error)
        }
        _ => passed(WHAT, format!("{} lets the application search the audit log", config.graph_origin())),
    });
}

fn permission_missing(facts: &TokenFacts) -> CheckFault {
    let roles = if facts.roles.is_empty() { "none".to_owned() } else { facts.roles.join(", ") };
    let cause = format!("`{GRAPH_ROLE}` is not in the token for Microsoft Graph (roles: {roles})");
    CheckFault {
        slug: "graph-permission-missing".into(),
        summary: cause.clone(),
        cause,
        remedy: GRAPH_PERMISSION_HINT.into(),
        kind: FaultKind::Permission,
    }
}

fn graph_fault(what: &str, error: &GraphError) -> CheckStep {
    let kind = match error.fault() {
        GraphFault::Denied if error.is_sign_in() => FaultKind::Authentication,
        GraphFault::Denied => FaultKind::Permission,
        _ => FaultKind::Network,
    };
    let (slug, summary) = (error.slug().into(), error.summary().to_owned());
    let fault = CheckFault { slug, summary, cause: error.to_string(), remedy: error.hint(), kind };
    CheckStep { what: what.into(), result: Err(fault) }
}

fn subscription(content_type: ContentType, is_known: bool, is_on: bool) -> CheckStep {
    let what = format!("subscription {content_type}");
    if is_on {
        passed(what, "enabled".into())
    } else if is_known {
        notice(
            what,
            "subscription-disabled",
            "the subscription was started once and is disabled now".into(),
            "`m365-audit run` starts it again; what became available while it was off is gone".into(),
        )
    } else {
        notice(
            what,
            "subscription-absent",
            "not started yet".into(),
            "`m365-audit run` starts it, and first events take up to 60 minutes, 12 hours after a very first start; where \
             auditing is off a start fails, which `check --probe` tells"
                .into(),
        )
    }
}

/// Inspects the credential without a request: whether it is usable, and when it expires.
fn credential(source: &M365Audit, steps: &mut Vec<CheckStep>) {
    let config = source.config();
    let (what, end, found) = match certificate_files(config) {
        Some(files) => match files.facts() {
            // The token exchange reports this with the same text.
            Err(_) => return,
            Ok(facts) => (
                "client certificate",
                facts.not_after,
                format!("{}, thumbprint {}, valid until {}", facts.subject, facts.thumbprint, facts.not_after),
            ),
        },
        None => match config.secret_expires().filter(|_| config.auth == AuthMethod::ClientSecret) {
            Some(end) => ("client secret", end, format!("valid until {end}, by `client_secret_expires`")),
            None => return,
        },
    };
    let left = end.duration_since(source.clock().now());
    let text = match left.is_negative() {
        true => format!("the {what} has ended on {end}"),
        false => format!("the {what} ends on {end}, in {} days", left.as_hours() / 24),
    };
    steps.push(if left > EXPIRY_WARNING {
        passed(what, found)
    } else {
        notice(what, EXPIRES_SLUG, text, EXPIRES_HINT.into())
    });
}

/// The windows of a listing that together reach back as far as Microsoft lists, newest first.
fn week(now: Timestamp) -> impl Iterator<Item = Window> {
    let back = move |hours: i64| now.checked_sub(SignedDuration::from_hours(hours)).unwrap_or(now);
    // Eight of 21 hours are seven days; the last begins a little later, because the clock goes on meanwhile.
    (0..8).map(move |n| {
        let start = back((n + 1) * 21);
        let start = if n == 7 { start.checked_add(SignedDuration::from_mins(10)).unwrap_or(start) } else { start };
        Window { start, end: back(n * 21) }
    })
}

/// Whether any subscribed content type ever listed content. If none did, auditing is most likely off, which only the
/// answer to a start shows. Ends at the first content found; fetches none.
async fn content(api: &ApiClient, server: &ServerTime, mut on: Vec<ContentType>, steps: &mut Vec<CheckStep>) {
    let what = "content of the last 7 days";
    for window in week(server.for_requests()) {
        let mut unread = Vec::new();
        for &content_type in &on {
            match api.list_content(content_type, window, None).await {
                Ok(page) if page.blobs.is_empty() && page.next.is_none() && page.skipped.is_empty() => {}
                Ok(_) => {
                    let found = format!("`{content_type}` has some between {:.0} and {:.0}", window.start, window.end);
                    steps.push(passed(what, found));
                    return;
                }
                // Without its permission this one type is parked, which was already reported.
                Err(_) if content_type == ContentType::Dlp => unread.push(content_type),
                Err(error) => {
                    steps.push(api_fault(what, &error));
                    return;
                }
            }
        }
        on.retain(|content_type| !unread.contains(content_type));
        if on.is_empty() {
            return;
        }
    }
    if on.is_empty() {
        return;
    }
    steps.push(notice(
        what,
        "audit-maybe-off",
        "subscribed, and not one event in 7 days: unified auditing is most likely off in the tenant (or was turned on today)"
            .into(),
        "`Get-AdminAuditLogConfig | Format-List UnifiedAuditLogIngestionEnabled` in Exchange Online PowerShell shows it; \
         `Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true` turns it on, which can take a day. Nothing from \
         before it is switched on will ever come"
            .into(),
    ));
}

/// Whether `ActivityFeed.Read` is missing for certain.
fn roles(facts: &TokenFacts, wants_dlp: bool, steps: &mut Vec<CheckStep>) -> bool {
    let what = "permissions in the token";
    if !facts.readable {
        steps.push(passed(what, "the token cannot be read here; the calls below tell".into()));
        return false;
    }
    let has = |role: &str| facts.roles.iter().any(|r| r == role);
    if !has(ROLE_READ) {
        let found = if facts.roles.is_empty() {
            "no application permission at all: none was granted, admin consent is missing, or only delegated ones were added".to_owned()
        } else {
            facts.roles.join(", ")
        };
        steps.push(CheckStep {
            what: what.into(),
            result: Err(CheckFault {
                slug: "api-permission-missing".into(),
                summary: match facts.roles.is_empty() {
                    true => "the token holds no application permission: only delegated ones were added, or admin consent \
                             is missing"
                        .into(),
                    false => format!("the application permission `{ROLE_READ}` is missing"),
                },
                cause: format!("`{ROLE_READ}` is not in the token; it has {found}"),
                remedy: "Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > \
                         Application permissions > ActivityFeed.Read, then Grant admin consent; not Microsoft Graph, not a delegated permission"
                    .into(),
                kind: FaultKind::Permission,
            }),
        });
        return true;
    }
    steps.push(if wants_dlp && !has(ROLE_READ_DLP) {
        notice(
            what,
            "dlp-permission-missing",
            format!("`{ROLE_READ}` is granted, `{ROLE_READ_DLP}` is not: `DLP.All` cannot be read, the other types can"),
            "add the application permission ActivityFeed.ReadDlp on Office 365 Management APIs and grant consent, or take `DLP.All` out of `content_types`".into(),
        )
    } else {
        passed(what, facts.roles.join(", "))
    });
    false
}

fn clock(what: &str, skew: Option<SignedDuration>, steps: &mut Vec<CheckStep>) {
    let Some(seconds) = skew.map(|skew| skew.as_secs()) else { return };
    steps.push(if seconds.unsigned_abs() > SKEW_MAX.unsigned_abs().as_secs() {
        notice(
            what,
            "clock-skewed",
            format!(
                "this machine's clock is about {} min {} Microsoft's",
                (seconds.unsigned_abs() + 30) / 60,
                if seconds > 0 { "behind" } else { "ahead of" }
            ),
            "set the clock: `timedatectl set-ntp true`; listings follow Microsoft's clock and are right all the same, log \
             times are not"
                .into(),
        )
    } else {
        passed(what, format!("{seconds:+} s to this machine's"))
    });
}

const PROBE: &str = "probe Audit.General";

async fn start_and_stop(
    source: &M365Audit,
    api: &ApiClient,
    server: &ServerTime,
    store: Arc<dyn StateStore>,
    was_on: bool,
) -> CheckStep {
    if was_on {
        return passed(PROBE, "it is enabled, so it was left alone: stopping it would lose events for good".into());
    }
    let now = server.for_requests();
    let keys = Keys::of(&source.config().tenant_id);
    let key = keys.tenant();
    let (mut state, expected) = match load_state(&*store, &key).await {
        Ok(loaded) => loaded,
        Err(step) => return step,
    };
    if let Some(last) = state.starts.get(ContentType::General.as_str()) {
        let since = now.duration_since(*last);
        // Microsoft's `Date` has whole seconds: a start of this second may seem to lie ahead.
        if since.abs() < START_INTERVAL {
            let since = since.max(SignedDuration::ZERO);
            let wait = (START_INTERVAL - since).as_secs();
            return notice(
                PROBE,
                "start-too-recent",
                format!("it was asked to start {} s ago; Microsoft allows a start every 15 minutes", since.as_secs()),
                format!("try again in {wait} s"),
            );
        }
    }
    let started = api.start_subscription(ContentType::General).await;
    // A start that was answered counts for the 15 minutes, whatever the answer.
    let answered = match &started {
        Ok(started) => *started == Started::Now,
        Err(error) => !matches!(error.action(), Action::Retry { .. } | Action::Throttled { .. }),
    };
    let stopped = match started {
        Ok(Started::Now) => Some(api.stop_subscription(ContentType::General).await),
        _ => None,
    };
    let remembered = if answered {
        state.starts.insert(ContentType::General.as_str().to_owned(), now);
        store.commit(vec![Op::Put { key, value: format::encode(&state), expected }]).await.map(drop)
    } else {
        Ok(())
    };
    probed(started, stopped, remembered)
}

/// Combines the results of the probe's start, its stop and the stored note into one step.
fn probed(
    started: Result<Started, ApiError>,
    stopped: Option<Result<(), ApiError>>,
    remembered: Result<(), StateError>,
) -> CheckStep {
    match (started, stopped, remembered) {
        (Err(error), ..) if matches!(error.action(), Action::Throttled { .. }) => notice(
            PROBE,
            "start-too-recent",
            error.to_string(),
            "try again in 15 minutes: somebody asked for a start since".into(),
        ),
        (Err(error), ..) => api_fault(PROBE, &error),
        (Ok(Started::AlreadyEnabled), ..) => passed(PROBE, "it is enabled after all (AF20024) and was left alone".into()),
        (_, Some(Err(error)), _) => {
            let mut step = api_fault("probe Audit.General: stop", &error);
            if let Err(fault) = &mut step.result {
                fault.remedy = format!("{}; the subscription was started and stays on, which costs nothing", fault.remedy);
            }
            step
        }
        (.., Err(why)) => notice(
            PROBE,
            "state-not-written",
            format!("started and stopped, but the start could not be remembered: {why}"),
            "wait 15 minutes before `m365-audit run`".into(),
        ),
        _ => passed(
            PROBE,
            "started and stopped; it can be started again in 15 minutes, and what becomes available until then cannot be read".into(),
        ),
    }
}

async fn load_state(store: &dyn StateStore, key: &str) -> Result<(TenantState, Expected), CheckStep> {
    let failed = |why: String| CheckStep {
        what: "state".into(),
        result: Err(CheckFault {
            slug: "state-not-read".into(),
            summary: why.clone(),
            cause: why,
            remedy: "check permissions of `data_dir`".into(),
            kind: FaultKind::State,
        }),
    };
    match store.load(key).await {
        Ok(Some((bytes, revision))) => match format::decode(key, &bytes) {
            Ok(state) => Ok((state, Expected::At(revision))),
            Err(error) => Err(failed(error.to_string())),
        },
        Ok(None) => Ok((TenantState::default(), Expected::Absent)),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn passed(what: impl Into<String>, found: String) -> CheckStep {
    CheckStep { what: what.into(), result: Ok(found) }
}

fn notice(what: impl Into<String>, slug: &str, cause: String, remedy: String) -> CheckStep {
    let fault = CheckFault { slug: slug.into(), summary: cause.clone(), cause, remedy, kind: FaultKind::Notice };
    CheckStep { what: what.into(), result: Err(fault) }
}

fn api_fault(what: impl Into<String>, error: &ApiError) -> CheckStep {
    let fault = CheckFault {
        slug: error.slug().into(),
        summary: error.summary(),
        cause: error.to_string(),
        remedy: error.hint(),
        kind: fault_kind(error),
    };
    CheckStep { what: what.into(), result: Err(fault) }
}

fn fault(what: &str, error: &SourceError, kind: FaultKind) -> CheckStep {
    let (slug, cause) = (error.slug().into(), error.to_string());
    let fault = CheckFault { slug, summary: cause.clone(), cause, remedy: error.hint(), kind };
    CheckStep { what: what.into(), result: Err(fault) }
}
