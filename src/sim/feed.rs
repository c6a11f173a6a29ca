//! The answers of the simulated API: paths, parameters, permissions, windows, pages, blobs, and every refusal.
//!
//! Pure of sockets: a [`SimCall`] in, a [`Reply`] out. Follows Microsoft's "Office 365 Management Activity API reference"
//! and "troubleshooting" pages, and observed answers where those differ.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::call::{NEXT_PAGE_HEADER, Reply, ReplyBody, SimCall};
use super::faults::{CallKind, SimFault};
use super::graph;
use super::identity;
use super::tenant::{ListedBlob, ListingPosition, SimState};
use super::token::{self, Tokens};
use super::{ListingSpan, NextPage, SimConfig, StartFailure, SubscriptionState};
use crate::model::{ContentType, StreamId, TenantId, Timestamp, is_guid};

/// Answers a call. `own_url` is the simulator's address; `now` is its own time and `monotonic` that of its clock.
pub(super) fn answer(
    state: &mut SimState,
    tokens: &mut Tokens,
    call: &SimCall,
    own_url: &str,
    now: Timestamp,
    monotonic: std::time::Duration,
) -> Reply {
    if call.kind == CallKind::Unknown {
        return Reply::html(404, "404 - File or directory not found.");
    }
    if !call.method_ok {
        return Reply::json(405, &json!({"Message": "The requested resource does not support this http method."}));
    }
    if call.kind == CallKind::Token {
        return token::answer(tokens, &state.config, own_url, call, now);
    }
    if call.kind == CallKind::Identity {
        return identity::answer(tokens, &state.config, call, now);
    }
    if call.kind.is_beside_the_feed() {
        return graph::answer(state, tokens, call, own_url, now);
    }
    match authorize(state, tokens, call, own_url, now, monotonic) {
        Err(refusal) => *refusal,
        Ok(tenant) => match call.kind {
            CallKind::List => list_subscriptions(state, &tenant),
            CallKind::SensitiveTypes => sensitive_types(call),
            CallKind::Blob => blob(state, &tenant, call, now),
            _ => with_content_type(state, &tenant, call, own_url, now),
        },
    }
}

/// Boxed so that the happy path stays small.
type RefusedReply = Box<Reply>;

fn refuse(status: u16, code: &str, message: &str) -> RefusedReply {
    Box::new(Reply::error(status, code, message))
}

/// The checks before any call of the feed: token, tenant, permission, publisher, quota.
fn authorize(
    state: &mut SimState,
    tokens: &Tokens,
    call: &SimCall,
    own_url: &str,
    now: Timestamp,
    monotonic: std::time::Duration,
) -> Result<TenantId, RefusedReply> {
    let Some(token) = call.bearer.as_deref().and_then(|bearer| tokens.check(bearer, now, own_url)) else {
        return Err(Box::new(fault_reply(&SimFault::Unauthorized, &state.config, call, now)));
    };
    let tenant: TenantId = call.tenant_text.parse().map_err(|_| {
        refuse(400, "AF20013", &format!("The tenant ID passed in the URL ({}) is not a valid GUID.", call.tenant_text))
    })?;
    if tenant != token.tenant && state.config.tenant_mismatch_refused {
        let text = format!(
            "The tenant ID passed in the URL ({tenant}) does not match the tenant ID passed in the access token ({}).",
            token.tenant
        );
        return Err(refuse(401, "AF20010", &text));
    }
    let tenant = token.tenant.clone();
    let named = match call.blob_id.as_deref() {
        Some(id) => state.blob(id).map(|(stream, _)| stream.content_type),
        None => call.content_type(),
    };
    let has = |role: &str| token.roles.iter().any(|held| held == role);
    if !has("ActivityFeed.Read") || (named == Some(ContentType::Dlp) && !has("ActivityFeed.ReadDlp")) {
        return Err(Box::new(fault_reply(&SimFault::PermissionMissing, &state.config, call, now)));
    }
    let publisher = call.param("publisheridentifier").filter(|text| !text.is_empty());
    if publisher.is_some_and(|text| !is_guid(text)) {
        return Err(refuse(400, "AF20002", "Invalid parameter type: PublisherIdentifier. Expected type: guid"));
    }
    if !state.take_quota(&tenant, publisher, monotonic) {
        let fault = SimFault::Throttled {
            status: state.config.throttle_status,
            retry_after_secs: state.config.throttle_retry_after_secs,
            single_quoted: false,
        };
        return Err(Box::new(fault_reply(&fault, &state.config, call, now)));
    }
    Ok(tenant)
}

fn list_subscriptions(state: &mut SimState, tenant: &TenantId) -> Reply {
    let bare = state.config.list_without_status;
    let mut entries = Vec::new();
    for content_type in ContentType::ALL {
        let subscription = &state.stream(tenant, content_type).subscription;
        let status = match subscription.state {
            SubscriptionState::Absent => continue,
            // The state after a restart too soon after a stop: start returned enabled, but the list is empty.
            SubscriptionState::Enabled if subscription.stuck_until.is_some() => continue,
            SubscriptionState::Enabled => "enabled",
            SubscriptionState::Disabled => "disabled",
        };
        entries.push(if bare {
            json!({"contentType": content_type.as_str(), "webhook": null})
        } else {
            json!({"contentType": content_type.as_str(), "status": status, "webhook": null})
        });
    }
    Reply::json(200, &Value::Array(entries))
}

fn with_content_type(state: &mut SimState, tenant: &TenantId, call: &SimCall, own_url: &str, now: Timestamp) -> Reply {
    let Some(text) = call.param("contenttype") else {
        return Reply::error(400, "AF20001", "Missing parameter: contentType.");
    };
    let Ok(content_type) = text.parse::<ContentType>() else {
        return Reply::error(400, "AF20020", &format!("The specified content type ({text}) is not valid."));
    };
    let stream = StreamId { tenant: tenant.clone(), content_type };
    match call.kind {
        CallKind::Start => start(state, &stream, call, now),
        CallKind::Stop => stop(state, &stream, now),
        CallKind::Notifications => match window(&state.config, call, now) {
            Ok(_) => Reply::json(200, &json!([])),
            Err(refusal) => *refusal,
        },
        _ => list_content(state, &stream, call, own_url, now).unwrap_or_else(|refusal| *refusal),
    }
}

fn start(state: &mut SimState, stream: &StreamId, call: &SimCall, now: Timestamp) -> Reply {
    let StreamId { tenant, content_type } = stream;
    let exception = |rest: &str| {
        let publisher = call.param("publisheridentifier").unwrap_or("00000000-0000-0000-0000-000000000000");
        Reply::server_exception(&format!(
            "StartSubscription [CorrId=5e1f0000-0000-4000-8000-0000000000c0][TenantId={tenant},ContentType=\
             {content_type},ApplicationId={},PublisherId={publisher}][AppId:{}] failed. Exception: {rest}\r\n   \
             at Microsoft.Office.Compliance.Audit.API.AzureManager.<GetSubscriptionTableClient>",
            state.config.client_id, state.config.client_id,
        ))
    };
    let failure = state.config.start_failure.or((!state.config.tenant_audit_on).then_some(StartFailure::AuditOff));
    let refusal = failure.map(|failure| match failure {
        StartFailure::AuditOff => exception(&format!(
            "Microsoft.Office.Compliance.Audit.DataServiceException: Tenant {tenant} does not exist."
        )),
        StartFailure::NotOnboarded => exception(&format!(
            "Microsoft.Office.Compliance.Audit.InvalidPropertyValueException: Tenant {tenant} has not been onboarded."
        )),
        StartFailure::NoServicePrincipal => exception(&format!(
            "Microsoft.Office.Compliance.Audit.DataServiceException: Tenant {tenant} does not have a service principal \
             for resource manage.office.com."
        )),
    });
    let cooldown = i64::try_from(state.config.start_cooldown_secs).unwrap_or(i64::MAX);
    let sticks = state.config.restart_sticks_secs;
    let subscription = &mut state.stream(tenant, *content_type).subscription;
    if subscription.state == SubscriptionState::Enabled && subscription.stuck_until.is_none() {
        return Reply::error(400, "AF20024", "The subscription is already enabled. No property change.");
    }
    if subscription.last_start.is_some_and(|last| now.duration_since(last).as_secs() < cooldown) {
        let text = "Too many requests. Method=StartSubscription: wait 15 minutes between start requests.";
        return Reply::error(403, "AF429", text);
    }
    subscription.last_start = Some(now);
    if let Some(refusal) = refusal {
        return refusal;
    }
    let restarted = subscription.state == SubscriptionState::Disabled;
    subscription.stuck_until = match sticks {
        Some(secs) if restarted => {
            let secs = i64::try_from(secs).unwrap_or(i64::MAX);
            Some(now.saturating_add(jiff::SignedDuration::from_secs(secs)).unwrap_or(Timestamp::MAX))
        }
        _ => None,
    };
    subscription.set(SubscriptionState::Enabled, now);
    Reply::json(200, &json!({"contentType": content_type.as_str(), "status": "enabled", "webhook": null}))
}

fn stop(state: &mut SimState, stream: &StreamId, now: Timestamp) -> Reply {
    let subscription = &mut state.stream(&stream.tenant, stream.content_type).subscription;
    if subscription.state == SubscriptionState::Absent {
        return not_subscribed();
    }
    subscription.set(SubscriptionState::Disabled, now);
    Reply::new(200, "application/json; charset=utf-8", "")
}

fn not_subscribed() -> Reply {
    Reply::error(400, "AF20022", "No subscription found for the specified content type")
}

fn disabled() -> Reply {
    Reply::error(400, "AF20023", "The subscription was disabled.")
}

fn list_content(
    state: &mut SimState,
    stream: &StreamId,
    call: &SimCall,
    own_url: &str,
    now: Timestamp,
) -> Result<Reply, RefusedReply> {
    let subscription = &mut state.stream(&stream.tenant, stream.content_type).subscription;
    if subscription.stuck_until.is_some_and(|until| until <= now) {
        subscription.stuck_until = None;
    }
    match subscription.state {
        SubscriptionState::Absent => return Err(Box::new(not_subscribed())),
        SubscriptionState::Disabled => return Err(Box::new(disabled())),
        SubscriptionState::Enabled if subscription.stuck_until.is_some() => return Err(Box::new(disabled())),
        SubscriptionState::Enabled => {}
    }
    let (start, end) = window(&state.config, call, now)?;
    let mut page = PageToken { stream: stream.to_string(), issued: now.as_second(), after: None, empty: false };
    if let Some(text) = call.param("nextpage") {
        page = PageToken::decode(text).filter(|page| page.stream == stream.to_string()).ok_or_else(bad_page)?;
        let age = now.as_second().saturating_sub(page.issued);
        let lifetime = state.config.next_page.lifetime_secs.map(|secs| i64::try_from(secs).unwrap_or(i64::MAX));
        if lifetime.is_some_and(|lifetime| age > lifetime) {
            return Err(bad_page());
        }
    }
    let page_size = state.config.page_size.max(1);
    let after = page.after.as_ref().map(|(rank, id)| ListingPosition { rank: *rank, id: id.clone() });
    let (listed, next) = if page.empty {
        // The page after an empty one starts where this one would have started.
        (Vec::new(), after.clone())
    } else {
        state.list(stream, (start, end), after.as_ref(), page_size, now)
    };
    let style = state.config.next_page.clone();
    let origin = state.config.content_uri_origin.clone().unwrap_or_else(|| own_url.to_owned());
    let mut entries: Vec<Value> = listed.iter().map(|blob| item(blob, stream, &origin)).collect();
    let unreadable = state.config.unreadable_item_at.filter(|at| start <= *at && *at < end && after.is_none());
    entries.extend(unreadable.map(|_| json!({})));
    let mut reply = Reply::json(200, &Value::Array(entries));
    if let Some(next) = next {
        let link = if style.loops && call.kind == CallKind::NextPage {
            next_page_url(&style, own_url, call, (start, end), call.param("nextpage").unwrap_or_default())
        } else {
            let token = PageToken {
                stream: stream.to_string(),
                issued: now.as_second(),
                after: Some((next.rank, next.id)),
                empty: style.empty_pages && !page.empty,
            };
            next_page_url(&style, own_url, call, (start, end), &token.encode())
        };
        reply.headers.push((NEXT_PAGE_HEADER, link));
    }
    Ok(reply)
}

/// A blob as a listing shows it.
fn item(blob: &ListedBlob, stream: &StreamId, origin: &str) -> Value {
    let as_said =
        |said: &Option<std::sync::Arc<str>>, time| said.as_deref().map_or_else(|| milliseconds(time), str::to_owned);
    json!({
        "contentType": stream.content_type.as_str(),
        "contentId": &*blob.id,
        "contentUri": format!("{origin}/api/v1.0/{}/activity/feed/audit/{}", stream.tenant, blob.id),
        "contentCreated": as_said(&blob.listed_created, blob.created),
        "contentExpiration": as_said(&blob.listed_expiration, blob.expires),
    })
}

fn bad_page() -> RefusedReply {
    refuse(400, "AF20031", "Invalid nextPage Input.")
}

fn next_page_url(
    style: &NextPage,
    own_url: &str,
    call: &SimCall,
    (start, end): (Timestamp, Timestamp),
    token: &str,
) -> String {
    let origin = style.origin.as_deref().unwrap_or(own_url);
    let (start_name, end_name) =
        if style.lower_case_parameters { ("starttime", "endtime") } else { ("startTime", "endTime") };
    let content_type = call.param("contenttype").unwrap_or_default();
    // The window is repeated as requested: another spelling could shift it by a fraction of a second.
    let repeat = |name: &str, time: Timestamp| {
        call.param(name).map_or_else(|| super::events::zoneless(time), |text| text.replace('+', "%2B"))
    };
    let mut url = format!(
        "{origin}/api/{}/{}/activity/feed/subscriptions/content?contentType={content_type}&{start_name}={}&{end_name}={}\
         &nextPage={token}",
        style.api_version,
        call.tenant_text,
        repeat("starttime", start),
        repeat("endtime", end),
    );
    if style.with_publisher
        && let Some(publisher) = call.param("publisheridentifier")
    {
        url.push_str("&PublisherIdentifier=");
        url.push_str(publisher);
    }
    url
}

/// The content of `nextPage`. Opaque to a client: base64 of a checksum and the members.
#[derive(Serialize, Deserialize)]
struct PageToken {
    stream: String,
    issued: i64,
    after: Option<(u64, String)>,
    empty: bool,
}

impl PageToken {
    fn encode(&self) -> String {
        let text = json!(self).to_string();
        URL_SAFE_NO_PAD.encode(format!("{}{text}", checksum(&text)))
    }

    fn decode(text: &str) -> Option<Self> {
        let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (sum, text) = decoded.split_at_checked(8)?;
        if sum == checksum(text) { serde_json::from_str(text).ok() } else { None }
    }
}

fn checksum(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().chars().take(8).collect()
}

/// Reads and judges the window of a listing by the simulator's own clock.
fn window(config: &SimConfig, call: &SimCall, now: Timestamp) -> Result<(Timestamp, Timestamp), RefusedReply> {
    const DAY: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
    let refused = || Box::new(fault_reply(&SimFault::WindowRefused, config, call, now));
    let read = |name: &str, shown: &str| match call.param(name) {
        None => Ok(None),
        Some(text) => parse_parameter_time(text).map(Some).ok_or_else(|| {
            refuse(400, "AF20002", &format!("Invalid parameter type: {shown}. Expected type: datetime"))
        }),
    };
    let (start, end) = match (read("starttime", "startTime")?, read("endtime", "endTime")?) {
        (Some(start), Some(end)) => (start, end),
        (None, None) => {
            // The default window is as precise as the parameters are: the link that repeats it must not shift it.
            let end = Timestamp::from_second(now.as_second() + 1).unwrap_or(now);
            (end.saturating_sub(DAY).unwrap_or(Timestamp::MIN), end)
        }
        _ => return Err(refused()),
    };
    let oldest = now.saturating_sub(jiff::SignedDuration::from_secs(config.listing_age_max_secs));
    if start >= end || oldest.is_ok_and(|oldest| start < oldest) {
        return Err(refused());
    }
    let span = end.duration_since(start);
    // A link repeats a window that was accepted at the first request.
    if call.kind == CallKind::NextPage && config.listing_span != ListingSpan::Partial {
        return Ok((start, end));
    }
    match config.listing_span {
        ListingSpan::Inclusive if span > DAY => Err(refused()),
        ListingSpan::Exclusive if span >= DAY => Err(refused()),
        ListingSpan::Partial if span > DAY => Ok((start, start.saturating_add(DAY).unwrap_or(end))),
        _ => Ok((start, end)),
    }
}

/// The forms of a time parameter: date; date and time to the minute or second; with `Z`, an offset or a fraction. An
/// unescaped `+` arrives as a blank and makes the time invalid.
fn parse_parameter_time(text: &str) -> Option<Timestamp> {
    let zoneless = text.strip_suffix('Z').unwrap_or(text);
    let full = match zoneless.len() {
        10 => format!("{zoneless}T00:00:00"),
        16 => format!("{zoneless}:00"),
        _ => text.to_owned(),
    };
    super::events::parse_event_time(&full)
}

fn blob(state: &mut SimState, tenant: &TenantId, call: &SimCall, now: Timestamp) -> Reply {
    let id = call.blob_id.as_deref().unwrap_or_default();
    if !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'$' | b'_' | b'-' | b'.')) || !id.contains('$') {
        return fault_reply(&SimFault::ContentIdInvalid, &state.config, call, now);
    }
    let found = state.blob(id).filter(|(stream, blob)| stream.tenant == *tenant && blob.listable_from <= now);
    match found.map(|(_, blob)| (blob.expires <= now, blob.body.clone())) {
        None => fault_reply(&SimFault::ContentMissing, &state.config, call, now),
        Some((true, _)) => fault_reply(&SimFault::ContentExpired, &state.config, call, now),
        Some((false, body)) => {
            let mut reply = Reply::new(200, "application/json; charset=utf-8", "");
            reply.body = ReplyBody::Blob(body);
            reply.reads_blob = Some(id.to_owned());
            reply
        }
    }
}

fn sensitive_types(call: &SimCall) -> Reply {
    match call.languages.as_slice() {
        [] => {}
        [one] if one.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') => {}
        [_] => return Reply::error(400, "AF20054", "Accept-Language is not in a correct syntax."),
        _ => return Reply::error(400, "AF20053", "Only one Accept-Language is allowed."),
    }
    let card = json!({"id": "50842eb7-edc8-4019-85dd-5a5c1f2bb085", "name": "Credit card number"});
    Reply::json(200, &json!([card, {}]))
}

/// The answer of a fault; transport faults have none and leave an empty 200, which the server replaces.
pub(super) fn fault_reply(fault: &SimFault, config: &SimConfig, call: &SimCall, now: Timestamp) -> Reply {
    match fault {
        SimFault::Throttled { status, retry_after_secs, single_quoted } => {
            throttled(call, *status, *retry_after_secs, *single_quoted)
        }
        SimFault::InternalError => Reply::error(500, "AF50000", "An internal error occurred. Retry the request."),
        SimFault::InternalErrorUndocumented => {
            Reply::error(500, "AF50005", "An internal error occurred. Retry the request.")
        }
        SimFault::Gateway(status) => Reply::html(*status, &format!("{status} Server Error")),
        SimFault::RequestTimeout => Reply::new(408, "text/html", ""),
        SimFault::ContentMissing => Reply::error(404, "AF20050", "The specified content does not exist."),
        SimFault::ContentExpired => Reply::error(
            400,
            "AF20051",
            "Content requested has already expired. Content older than 7 days cannot be retrieved.",
        ),
        SimFault::ContentIdInvalid => Reply::error(400, "AF20052", "Content ID in the URL is invalid."),
        SimFault::NotFound => Reply::html(404, "404 - File or directory not found."),
        SimFault::Unauthorized => {
            Reply::json(401, &json!({"Message": "Authorization has been denied for this request."}))
        }
        SimFault::PermissionMissing => Reply::error(
            401,
            "AF10001",
            "The permission set () sent in the request does not include the expected permission.",
        ),
        SimFault::NextPageInvalid => *bad_page(),
        SimFault::NotSubscribed => not_subscribed(),
        SimFault::SubscriptionDisabled => disabled(),
        SimFault::WindowRefused => Reply::error(
            400,
            "AF20055",
            "Start time and end time must both be specified (or both omitted) and must be less than or equal to 24 hours \
             apart, with the start time prior to end time and start time no more than 7 days in the past.",
        ),
        SimFault::Aadsts(code) => token::refuse(*code, config, &call.tenant_text, now),
        SimFault::Redirect(to) => {
            let mut reply = Reply::html(302, "Object moved");
            reply.headers.push(("location", to.clone()));
            reply
        }
        SimFault::Answer { status, content_type, body } => Reply::new(*status, content_type, body.clone()),
        SimFault::HtmlPage => Reply::html(200, "Sign in to the proxy"),
        SimFault::Reset
        | SimFault::EmptyBody
        | SimFault::CutBody(_)
        | SimFault::WrongLength(_)
        | SimFault::DamagedGzip
        | SimFault::Slow(_)
        | SimFault::SlowBody(_)
        | SimFault::WrongDate(_) => Reply::new(200, "application/json; charset=utf-8", ""),
    }
}

/// AF429, in the words of the service.
fn throttled(call: &SimCall, status: u16, retry_after_secs: Option<u64>, single_quoted: bool) -> Reply {
    let method = match call.kind {
        CallKind::Blob => "GetBlob",
        CallKind::Content | CallKind::NextPage => "GetContent",
        CallKind::Start => "StartSubscription",
        _ => "ListSubscriptions",
    };
    let publisher = call.param("publisheridentifier").unwrap_or("00000000-0000-0000-0000-000000000000");
    let text = format!("Too many requests. Method={method}, PublisherId={publisher}");
    let mut reply = if single_quoted {
        let body = format!("{{'error':{{'code':'AF429','message':'{text}'}}}}");
        Reply::new(status, "application/json; charset=utf-8", body)
    } else {
        Reply::error(status, "AF429", &text)
    };
    if let Some(secs) = retry_after_secs {
        reply.headers.push(("retry-after", secs.to_string()));
    }
    reply
}

/// `2026-07-16T20:45:00.123Z`
pub(super) fn milliseconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
