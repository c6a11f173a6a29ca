//! Maps an answer of the feed to what the caller must do: one table from (AF code, status, shape of the body, call) to
//! an action, a slug, a cause and a remedy.
//!
//! Codes are Microsoft's, from the error table of the "Office 365 Management Activity API reference" and, where that
//! is silent (AF20024, AF50005, AF50006), from answers seen on the wire. Branching is on the code first, on the status
//! second, and on words only for the server exceptions that carry no code. Nothing here does I/O.

use std::time::Duration;

use crate::model::ContentType;

use super::wire::ErrorBody;

/// Which call was made; also the `endpoint` label of the request metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeedCallKind {
    /// The authority's token endpoint.
    Token,
    /// `GET /subscriptions/list`
    ListSubscriptions,
    /// `POST /subscriptions/start`
    StartSubscription,
    /// `POST /subscriptions/stop`
    StopSubscription,
    /// `GET /subscriptions/content`, any page.
    ListContent,
    /// `GET {contentUri}`
    FetchBlob,
}

impl FeedCallKind {
    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::ListSubscriptions => "list_subscriptions",
            Self::StartSubscription => "start_subscription",
            Self::StopSubscription => "stop_subscription",
            Self::ListContent => "list_content",
            Self::FetchBlob => "fetch_blob",
        }
    }

    /// What was attempted, to follow "cannot".
    pub(super) const fn verb(self) -> &'static str {
        match self {
            Self::Token => "get a token",
            Self::ListSubscriptions => "list subscriptions",
            Self::StartSubscription => "start the subscription to",
            Self::StopSubscription => "stop the subscription to",
            Self::ListContent => "list",
            Self::FetchBlob => "fetch a blob of",
        }
    }
}

/// What the caller must do about an [`ApiError`](super::ApiError).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A temporary fault: the same call again, with back-off; not before `not_before` from now when given. A blob is
    /// retried so until it expires.
    Retry {
        /// The least wait.
        not_before: Option<Duration>,
    },
    /// Too many requests: the same call again, after a pause of its own that grows while this call is refused, and not
    /// before `retry_after`. The client itself delays the tenant's other calls if needed.
    Throttled {
        /// The wait that Microsoft named, if any, or how long calls for this content type wait.
        retry_after: Option<Duration>,
    },
    /// There is no enabled subscription to this type (AF20022, AF20023, not onboarded): start it, at most once in 15
    /// minutes, then list again.
    StartSubscription,
    /// AF20024: nothing to do, it is enabled. [`ApiClient::start_subscription`](super::ApiClient::start_subscription)
    /// reports it as success.
    AlreadyEnabled,
    /// The page link is unusable: list the window again from its first page.
    RestartWindow,
    /// The window breaks a rule by Microsoft's clock (AF20055, AF20030): compute it again from
    /// [`ApiClient::last_server_date`](super::ApiClient::last_server_date), report the part that was cut off. It never
    /// means that there is no content.
    RecomputeWindow,
    /// This content type cannot be read until an operator acts; the others can. Report once, retry slowly.
    ParkType,
    /// No content of this tenant can be read until an operator (or Microsoft) acts. Report once, retry slowly.
    SlowRetryTenant,
    /// This blob cannot be fetched now. It is not lost before it expires: retry slowly.
    RetryBlobSlowly,
}

/// The judgement of an answer that was not a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Judged {
    pub action: Action,
    pub slug: &'static str,
    pub says: &'static str,
    pub hint: &'static str,
}

/// How much a fault affects, before the failed call is taken into account.
#[derive(Debug, Clone, Copy)]
enum FaultReach {
    /// The same call will work later.
    Passing,
    Throttled,
    Subscription,
    AlreadyEnabled,
    Page,
    Window,
    /// The permission for one type.
    Type,
    /// The blob alone.
    Blob,
    /// The whole tenant.
    Tenant,
    /// This one call: the call itself is wrong.
    Call,
}

struct CodeRow {
    code: &'static str,
    reach: FaultReach,
    slug: &'static str,
    says: &'static str,
    hint: &'static str,
}

const fn row(
    code: &'static str,
    reach: FaultReach,
    slug: &'static str,
    says: &'static str,
    hint: &'static str,
) -> CodeRow {
    CodeRow { code, reach, slug, says, hint }
}

const REPORT_BUG: &str = "this build sent a call Microsoft does not accept; report it with this message";
const WINDOW_SAYS: &str = "the window is over 24 hours, reversed, or begins more than 7 days ago by Microsoft's clock";
const WINDOW_HINT: &str = "check this machine's clock; the window is computed again from Microsoft's";
pub(super) const THROTTLED_HINT: &str = "none needed; if it lasts, lower `max_requests_per_minute`, check \
    `publisher_identifier`, or ask Microsoft for more quota";
const PASSING_HINT: &str = "none needed unless it lasts; see the Microsoft 365 service health page";

/// The codes of the reference and those seen beside them.
const CODES: &[CodeRow] = &[
    row(
        "AF10001",
        FaultReach::Type,
        "api-permission-missing",
        "the permission is not in the token",
        "grant `ActivityFeed.Read` (for `DLP.All` also `ActivityFeed.ReadDlp`) of Office 365 Management APIs as an \
         application permission and give admin consent; consent can take some minutes",
    ),
    row("AF20001", FaultReach::Call, "api-call-refused", "a parameter is missing", REPORT_BUG),
    row(
        "AF20002",
        FaultReach::Call,
        "api-call-refused",
        "a parameter has the wrong type",
        "check that `publisher_identifier` is a GUID; otherwise report it with this message",
    ),
    row("AF20003", FaultReach::Call, "api-call-refused", "the webhook's expiration lies in the past", REPORT_BUG),
    row(
        "AF20010",
        FaultReach::Tenant,
        "api-tenant-mismatch",
        "the tenant id is not the tenant of the token",
        "check `tenant_id`; it must be the tenant in which the token was asked for",
    ),
    row(
        "AF20011",
        FaultReach::Tenant,
        "api-tenant-unknown",
        "the tenant is unknown or was deleted",
        "check `tenant_id` and `cloud`; a tenant of a government or China cloud is unknown elsewhere",
    ),
    row(
        "AF20012",
        FaultReach::Tenant,
        "api-tenant-misconfigured",
        "the tenant is wrongly configured in Microsoft's system",
        "open a support case with Microsoft; it is tried again meanwhile",
    ),
    row(
        "AF20013",
        FaultReach::Tenant,
        "api-tenant-not-a-guid",
        "the tenant in the URL is not a GUID",
        "set `tenant_id` to the tenant's GUID, not to its domain",
    ),
    row(
        "AF20020",
        FaultReach::Type,
        "api-content-type-refused",
        "the content type is not valid",
        "check `content_types`; not every national cloud offers all five",
    ),
    row("AF20021", FaultReach::Call, "api-call-refused", "the webhook could not be validated", REPORT_BUG),
    row(
        "AF20022",
        FaultReach::Subscription,
        "api-subscription-missing",
        "there is no subscription to this content type",
        "none needed: it is started; content can take up to 12 hours to appear",
    ),
    row(
        "AF20023",
        FaultReach::Subscription,
        "api-subscription-disabled",
        "the subscription was disabled",
        "it is started again; if it comes back, ask the tenant's administrators who disables it",
    ),
    row("AF20024", FaultReach::AlreadyEnabled, "api-subscription-enabled", "the subscription is already enabled", ""),
    row("AF20030", FaultReach::Window, "api-window-refused", WINDOW_SAYS, WINDOW_HINT),
    row("AF20055", FaultReach::Window, "api-window-refused", WINDOW_SAYS, WINDOW_HINT),
    row(
        "AF20031",
        FaultReach::Page,
        "api-page-link-refused",
        "Microsoft does not know its own page link any more",
        "none needed: the window is listed again from its first page",
    ),
    row(
        "AF20050",
        FaultReach::Blob,
        "api-blob-missing",
        "the blob does not exist",
        "none needed: it is asked for again until it expires",
    ),
    row(
        "AF20051",
        FaultReach::Blob,
        "api-blob-expired",
        "Microsoft says that the blob has expired",
        "none needed: it is asked for again until its own expiry; shorten outages to stay within 7 days",
    ),
    row(
        "AF20052",
        FaultReach::Blob,
        "api-blob-id-refused",
        "Microsoft does not accept the blob's id",
        "check for a proxy that rewrites `$` or `%` in URLs",
    ),
    row("AF20053", FaultReach::Call, "api-call-refused", "Accept-Language names several languages", REPORT_BUG),
    row("AF20054", FaultReach::Call, "api-call-refused", "Accept-Language has bad syntax", REPORT_BUG),
    row("AF429", FaultReach::Throttled, "api-throttled", "too many requests", THROTTLED_HINT),
    row("AF50000", FaultReach::Passing, "api-server-error", "internal error at Microsoft", PASSING_HINT),
    row("AF50005", FaultReach::Passing, "api-server-error", "internal error at Microsoft", PASSING_HINT),
    row("AF50006", FaultReach::Passing, "api-server-error", "internal error at Microsoft", PASSING_HINT),
];

const TOKEN_REFUSED: CodeRow = row(
    "",
    FaultReach::Tenant,
    "api-token-refused",
    "the token was refused",
    "check `cloud` and the audience: the token must be for the API's own host, not for Microsoft Graph",
);
const AUDIT_OFF: CodeRow = row(
    "",
    FaultReach::Tenant,
    "api-audit-off",
    "unified audit logging is off in the tenant (or the tenant id is wrong)",
    "turn it on: `Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true` in Exchange Online PowerShell; it \
     can take an hour or more. Nothing from before it is switched on will ever come: Microsoft did not record it",
);
const NO_SERVICE_PRINCIPAL: CodeRow = row(
    "",
    FaultReach::Tenant,
    "api-not-in-tenant",
    "the tenant has no service principal for the API",
    "add the application permission `ActivityFeed.Read` of Office 365 Management APIs (not Microsoft Graph) to the \
     app and grant admin consent",
);
const NOT_ONBOARDED: CodeRow = row(
    "",
    FaultReach::Subscription,
    "api-not-onboarded",
    "the tenant has not been onboarded to the feed",
    "none needed: the subscription is started; content can take up to 12 hours to appear",
);
const SERVER_EXCEPTION: CodeRow = row(
    "",
    FaultReach::Passing,
    "api-server-exception",
    "an exception at Microsoft",
    "report it to Microsoft if it lasts",
);
const FORBIDDEN: CodeRow = row(
    "",
    FaultReach::Tenant,
    "api-forbidden",
    "access was refused without an error code",
    "look for a proxy, a Conditional Access policy or a firewall between this machine and the API",
);
const WRONG_PATH: CodeRow =
    row("", FaultReach::Tenant, "api-not-found", "there is no feed at this address", "check `cloud` and `api_url`");
const BLOB_NOT_FOUND: CodeRow = row(
    "",
    FaultReach::Blob,
    "api-blob-missing",
    "the blob does not exist",
    "none needed: it is asked for again until it expires",
);
const REDIRECTED: CodeRow = row(
    "",
    FaultReach::Passing,
    "api-redirect-refused",
    "the answer was a redirect, which is never followed",
    "look for a proxy or a captive portal, and check `api_url`",
);
const SERVER_ERROR: CodeRow =
    row("", FaultReach::Passing, "api-server-error", "internal error at Microsoft", PASSING_HINT);
const THROTTLED: CodeRow = row("", FaultReach::Throttled, "api-throttled", "too many requests", THROTTLED_HINT);
const UNAVAILABLE: CodeRow =
    row("", FaultReach::Passing, "api-unavailable", "the service is not available for the moment", PASSING_HINT);
const PROXY_AUTH: CodeRow = row(
    "",
    FaultReach::Tenant,
    "api-proxy-refused",
    "the proxy asks for credentials",
    "put the proxy's user and password into `proxy_url`",
);
const UNKNOWN_CLIENT_FAULT: CodeRow =
    row("", FaultReach::Call, "api-call-refused", "the call was refused with an unknown error code", REPORT_BUG);
const UNEXPECTED: CodeRow = row(
    "",
    FaultReach::Passing,
    "api-unexpected-answer",
    "the answer is not one of this API",
    "look for a proxy that answers in Microsoft's place",
);

/// Rows chosen by status and shape.
const BY_STATUS: &[&CodeRow] = &[
    &TOKEN_REFUSED,
    &AUDIT_OFF,
    &NO_SERVICE_PRINCIPAL,
    &NOT_ONBOARDED,
    &SERVER_EXCEPTION,
    &FORBIDDEN,
    &WRONG_PATH,
    &BLOB_NOT_FOUND,
    &REDIRECTED,
    &SERVER_ERROR,
    &THROTTLED,
    &UNAVAILABLE,
    &PROXY_AUTH,
    &UNKNOWN_CLIENT_FAULT,
    &UNEXPECTED,
];

/// Slug, cause and remedy of every row.
pub(super) fn known() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    CODES.iter().chain(BY_STATUS.iter().copied()).map(|row| (row.slug, row.says, row.hint))
}

/// Microsoft's codes behind a slug.
pub(super) fn codes_of(slug: &str) -> impl Iterator<Item = &'static str> {
    CODES.iter().filter(move |row| row.slug == slug).map(|row| row.code)
}

/// Judges an answer that was not a success.
pub(super) fn judge(
    endpoint: FeedCallKind,
    content_type: Option<ContentType>,
    status: u16,
    body: &ErrorBody,
    retry_after: Option<Duration>,
) -> Judged {
    let row = find_row(endpoint, status, body);
    let action = match (row.reach, endpoint) {
        (FaultReach::Passing, _) => Action::Retry { not_before: retry_after },
        (FaultReach::Throttled, _) => Action::Throttled { retry_after },
        (FaultReach::Subscription, _) => Action::StartSubscription,
        (FaultReach::AlreadyEnabled, _) => Action::AlreadyEnabled,
        (FaultReach::Page, FeedCallKind::ListContent) => Action::RestartWindow,
        (FaultReach::Window, FeedCallKind::ListContent) => Action::RecomputeWindow,
        (FaultReach::Tenant, _) if is_blob_alone(row, endpoint) => Action::RetryBlobSlowly,
        (FaultReach::Tenant, _) => Action::SlowRetryTenant,
        (FaultReach::Type, _) if content_type.is_some() => Action::ParkType,
        (_, FeedCallKind::FetchBlob) => Action::RetryBlobSlowly,
        (FaultReach::Blob, _) => Action::Retry { not_before: retry_after },
        _ if content_type.is_some() => Action::ParkType,
        _ => Action::SlowRetryTenant,
    };
    Judged { action, slug: row.slug, says: row.says, hint: row.hint }
}

/// Whether a slug stands for a refusal that names no reason.
pub(super) fn is_without_code(slug: &str) -> bool {
    [&TOKEN_REFUSED, &FORBIDDEN, &WRONG_PATH].iter().any(|row| row.slug == slug)
}

/// A bare 403 on one blob does not yet concern the tenant: the next listing shows whether it does.
fn is_blob_alone(row: &CodeRow, endpoint: FeedCallKind) -> bool {
    endpoint == FeedCallKind::FetchBlob && row.slug == FORBIDDEN.slug
}

fn find_row(endpoint: FeedCallKind, status: u16, body: &ErrorBody) -> &'static CodeRow {
    match body {
        ErrorBody::Af { code, .. } => {
            return CODES.iter().find(|row| row.code == code).unwrap_or(match (code.as_bytes().get(2), status) {
                (Some(b'5'), _) | (_, 500..) => &SERVER_ERROR,
                (_, 429) => &THROTTLED,
                (_, 401) => &TOKEN_REFUSED,
                _ => &UNKNOWN_CLIENT_FAULT,
            });
        }
        // By text, because these answers have no code: Microsoft wraps the exception of its own back end.
        ErrorBody::ServerException { text } if text.contains("does not have a service principal for resource") => {
            return &NO_SERVICE_PRINCIPAL;
        }
        ErrorBody::ServerException { text }
            if text.contains("DataServiceException") && text.contains("does not exist") =>
        {
            return &AUDIT_OFF;
        }
        ErrorBody::ServerException { text }
            if text.contains("InvalidPropertyValueException") && text.contains("has not been onboarded") =>
        {
            return &NOT_ONBOARDED;
        }
        _ => {}
    }
    match status {
        429 => &THROTTLED,
        401 => &TOKEN_REFUSED,
        403 => &FORBIDDEN,
        404 | 410 if endpoint == FeedCallKind::FetchBlob => &BLOB_NOT_FOUND,
        404 => &WRONG_PATH,
        407 => &PROXY_AUTH,
        300..=399 => &REDIRECTED,
        408 | 502..=504 => &UNAVAILABLE,
        _ if matches!(body, ErrorBody::ServerException { .. }) => &SERVER_EXCEPTION,
        500.. => &SERVER_ERROR,
        _ => &UNEXPECTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn af(code: &str) -> ErrorBody {
        ErrorBody::Af { code: code.into(), message: String::new() }
    }

    fn exception(text: &str) -> ErrorBody {
        ErrorBody::ServerException { text: text.into() }
    }

    #[test]
    fn every_answer_has_its_action() {
        use Action::{
            AlreadyEnabled, ParkType, RecomputeWindow, RestartWindow, Retry, RetryBlobSlowly, SlowRetryTenant,
            Throttled,
        };
        use FeedCallKind::{FetchBlob, ListContent, ListSubscriptions, StartSubscription};
        let general = Some(ContentType::General);
        let retry = Retry { not_before: None };
        let throttled = Throttled { retry_after: None };
        let gone = "StartSubscription [AppId:x] failed. Exception: DataServiceException: Tenant t does not exist.";
        let no_principal =
            "DataServiceException: Tenant t does not have a service principal for resource manage.office.com.";
        let not_onboarded = "InvalidPropertyValueException: Tenant t has not been onboarded";
        #[rustfmt::skip]
        let table: &[(FeedCallKind, u16, ErrorBody, Action, &str)] = &[
            (ListContent, 401, af("AF10001"), ParkType, "api-permission-missing"),
            (FetchBlob, 401, af("AF10001"), ParkType, "api-permission-missing"),
            (ListContent, 400, af("AF20001"), ParkType, "api-call-refused"),
            (FetchBlob, 400, af("AF20002"), RetryBlobSlowly, "api-call-refused"),
            (ListContent, 401, af("AF20010"), SlowRetryTenant, "api-tenant-mismatch"),
            (FetchBlob, 400, af("AF20010"), SlowRetryTenant, "api-tenant-mismatch"),
            (ListContent, 400, af("AF20011"), SlowRetryTenant, "api-tenant-unknown"),
            (ListContent, 400, af("AF20012"), SlowRetryTenant, "api-tenant-misconfigured"),
            (ListContent, 400, af("AF20013"), SlowRetryTenant, "api-tenant-not-a-guid"),
            (ListContent, 400, af("AF20020"), ParkType, "api-content-type-refused"),
            (ListContent, 400, af("AF20022"), Action::StartSubscription, "api-subscription-missing"),
            (ListContent, 400, af("AF20023"), Action::StartSubscription, "api-subscription-disabled"),
            (StartSubscription, 400, af("AF20024"), AlreadyEnabled, "api-subscription-enabled"),
            (ListContent, 400, af("AF20030"), RecomputeWindow, "api-window-refused"),
            (ListContent, 400, af("AF20055"), RecomputeWindow, "api-window-refused"),
            (FetchBlob, 400, af("AF20055"), RetryBlobSlowly, "api-window-refused"),
            (ListContent, 400, af("AF20031"), RestartWindow, "api-page-link-refused"),
            (FetchBlob, 404, af("AF20050"), RetryBlobSlowly, "api-blob-missing"),
            (FetchBlob, 410, af("AF20051"), RetryBlobSlowly, "api-blob-expired"),
            (FetchBlob, 400, af("AF20052"), RetryBlobSlowly, "api-blob-id-refused"),
            (FetchBlob, 403, af("AF429"), throttled, "api-throttled"),
            (ListContent, 429, af("AF429"), throttled, "api-throttled"),
            (ListContent, 429, ErrorBody::Empty, throttled, "api-throttled"),
            (ListContent, 500, af("AF50000"), retry, "api-server-error"),
            (FetchBlob, 500, af("AF50005"), retry, "api-server-error"),
            (FetchBlob, 400, af("AF50999"), retry, "api-server-error"),
            (ListContent, 400, af("AF29999"), ParkType, "api-call-refused"),
            (FetchBlob, 400, af("AF29999"), RetryBlobSlowly, "api-call-refused"),
            (StartSubscription, 400, exception(gone), SlowRetryTenant, "api-audit-off"),
            (StartSubscription, 400, exception(no_principal), SlowRetryTenant, "api-not-in-tenant"),
            (ListContent, 400, exception(not_onboarded), Action::StartSubscription, "api-not-onboarded"),
            (ListContent, 400, exception("s"), retry, "api-server-exception"),
            (ListContent, 401, ErrorBody::FrontEnd { message: "denied".into() }, SlowRetryTenant, "api-token-refused"),
            (ListContent, 403, ErrorBody::NotJson, SlowRetryTenant, "api-forbidden"),
            (FetchBlob, 403, ErrorBody::Empty, RetryBlobSlowly, "api-forbidden"),
            (ListContent, 404, ErrorBody::NotJson, SlowRetryTenant, "api-not-found"),
            (FetchBlob, 404, ErrorBody::Empty, RetryBlobSlowly, "api-blob-missing"),
            (ListContent, 302, ErrorBody::Empty, retry, "api-redirect-refused"),
            (ListContent, 408, ErrorBody::Empty, retry, "api-unavailable"),
            (ListContent, 503, ErrorBody::Empty, retry, "api-unavailable"),
            (FetchBlob, 500, ErrorBody::NotJson, retry, "api-server-error"),
            (ListContent, 204, ErrorBody::Empty, retry, "api-unexpected-answer"),
            (ListContent, 407, ErrorBody::NotJson, SlowRetryTenant, "api-proxy-refused"),
        ];
        for (endpoint, status, body, action, slug) in table {
            let verdict = judge(*endpoint, general, *status, body, None);
            assert_eq!((verdict.action, verdict.slug), (*action, *slug), "{endpoint:?} {status} {body:?}");
        }
        let bare = judge(ListSubscriptions, None, 401, &af("AF10001"), None);
        assert_eq!(bare.action, SlowRetryTenant, "without a type there is no type to park");
    }

    #[test]
    fn a_code_has_one_row() {
        for (i, row) in CODES.iter().enumerate() {
            assert!(CODES[i + 1..].iter().all(|other| other.code != row.code), "{}", row.code);
        }
    }
}
