//! Microsoft Graph's audit search: submit a query, poll it, read the pages of its records.
//!
//! [`GraphClient`] signs in for Graph, sends each call to the configured host only and judges the answer. It repeats
//! only a call whose token was refused or whose version does not exist; the caller decides which calls to make, when
//! and how often. It follows Microsoft's pages "auditLogQuery" and "List records". The version 1.0 of these calls was
//! withdrawn to `/beta` in April 2025, answered 404 in July 2026 and is documented again since: the client uses the
//! version that answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, DATE};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use url::Url;

use super::connections::Bound;
use super::http::{Body, HostClients};
use super::{ERROR_BYTES_MAX, LISTING_BYTES_MAX};
use crate::auth::network::NetworkRoute;
use crate::auth::{AuthError, Token, TokenFacts, TokenSettings, TokenSource};
use crate::clock::Clock;
use crate::config::{GRAPH_URL, Places};
use crate::model::{Actionable, TenantId, Timestamp, Window};
use crate::net::{error_chain, excerpt, redact, retry_after};

/// The version of Graph's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GraphVersion {
    /// `/v1.0`
    #[default]
    #[serde(rename = "v1.0")]
    V1,
    /// `/beta`
    #[serde(rename = "beta")]
    Beta,
}

impl GraphVersion {
    const fn path(self) -> &'static str {
        match self {
            Self::V1 => "v1.0",
            Self::Beta => "beta",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::V1 => Self::Beta,
            Self::Beta => Self::V1,
        }
    }
}

/// The status of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryStatus {
    /// `notStarted`, `running`, or an unknown status.
    Running,
    /// `succeeded`: to be verified against the records.
    Succeeded,
    /// `failed`, `cancelled`.
    Failed,
}

/// A query, as read from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphQuery {
    /// Its id.
    pub id: String,
    /// Its status.
    pub status: QueryStatus,
    /// `isRecordCountLimitExceeded`
    pub is_cut: bool,
    /// `recordCountLimit`
    pub limit: Option<u64>,
    /// `approximateReturnedRecordCount`
    pub approximate: Option<u64>,
}

/// A page of records.
#[derive(Debug, Clone, Default)]
pub struct GraphPage {
    /// Each record, as in `value`.
    pub records: Vec<Bytes>,
    /// Where the next page is; `None` ends the reading.
    pub next: Option<GraphLink>,
    /// The page says that records are missing.
    pub is_cut: bool,
}

/// A next page, on the configured host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GraphLink(Url);

/// The kind of fault of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphFault {
    /// Probably temporary: no answer, an error of the server, or an unexpected answer.
    Passing,
    /// Too many requests.
    Throttled,
    /// There is no token, or the token lacks the permission.
    Denied,
    /// The requested object does not exist.
    Absent,
    /// Graph rejects the request.
    Refused,
}

/// Why a call of Graph failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {doing} for tenant `{tenant}`: {says}")]
pub struct GraphError {
    tenant: TenantId,
    doing: &'static str,
    fault: GraphFault,
    slug: &'static str,
    says: Box<str>,
    summary: Box<str>,
    hint: Box<str>,
    not_before: Option<Duration>,
}

impl GraphError {
    /// The kind of fault.
    pub fn fault(&self) -> GraphFault {
        self.fault
    }

    /// The least wait before the same call makes sense.
    pub fn not_before(&self) -> Option<Duration> {
        self.not_before
    }

    /// Whether there is no token, which an operator must fix.
    pub fn is_sign_in(&self) -> bool {
        self.fault == GraphFault::Denied && self.slug.starts_with("auth-")
    }

    /// The cause in a few words.
    pub fn summary(&self) -> &str {
        &self.summary
    }
}

impl Actionable for GraphError {
    fn slug(&self) -> &'static str {
        self.slug
    }

    fn hint(&self) -> String {
        self.hint.to_string()
    }
}

/// Slug, cause and remedy of the errors that only these calls return.
pub(super) const KNOWN: [(&str, &str, &str); 5] = [
    ("graph-permission-missing", "Microsoft Graph does not let the application search the audit log", PERMISSION_HINT),
    ("graph-unreachable", "no answer from Microsoft Graph", UNREACHABLE_HINT),
    ("graph-throttled", "Microsoft Graph has had too many requests", THROTTLED_HINT),
    ("graph-refused", "Microsoft Graph does not take the search", REFUSED_HINT),
    ("graph-unexpected-answer", "the answer is none of Microsoft Graph's audit search", UNEXPECTED_HINT),
];

/// The permission that every call needs.
pub const ROLE: &str = "AuditLogsQuery.Read.All";

/// The remedy if it is missing.
pub const PERMISSION_HINT: &str = "Entra admin centre > App registrations > the app > API permissions: add the application permission \
                               AuditLogsQuery.Read.All of Microsoft Graph, grant admin consent, and wait some minutes; or take \
                               `graph = true` out of `heal`";
const UNREACHABLE_HINT: &str = "none needed if it passes: it is asked again; else `curl -I` the host of `graph_url` from this machine \
                                (https://graph.microsoft.com by default), and check firewall, `proxy_url` and `ca_file`";
const THROTTLED_HINT: &str = "none needed: it is asked again when Microsoft Graph says so; other programs that search the audit log of \
                              the tenant share its limits";
const REFUSED_HINT: &str =
    "check `graph_url`; a range that lies before what the tenant's audit retention keeps cannot be searched";
const UNEXPECTED_HINT: &str =
    "none needed if it passes: it is asked again; else look for a proxy that answers in Microsoft's place";

const SUBMIT: &str = "submit a search of the audit log to Microsoft Graph";
const LOOK: &str = "look at a search of the audit log of Microsoft Graph";
const READ: &str = "read the records of a search of Microsoft Graph";

/// Graph's audit search of one tenant. Clones share token, connections and version.
#[derive(Clone)]
pub struct GraphClient(Arc<GraphInner>);

struct GraphInner {
    tenant: TenantId,
    graph_url: Url,
    clients: Arc<HostClients>,
    route: NetworkRoute,
    places: Places,
    bound: Bound,
    patience: Duration,
    read_timeout: Duration,
    tokens: TokenSource,
    beta: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for GraphClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphClient").field("tenant", &self.0.tenant).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireQuery {
    id: String,
    status: String,
    is_record_count_limit_exceeded: Option<bool>,
    record_count_limit: Option<serde_json::Value>,
    approximate_returned_record_count: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct WirePage<'a> {
    #[serde(borrow)]
    value: Vec<&'a RawValue>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
    #[serde(rename = "isRecordCountLimitExceeded")]
    is_cut: Option<bool>,
}

/// An answer and its status.
struct GraphAnswer {
    status: u16,
    body: Vec<u8>,
    retry_after: Option<Duration>,
    token: Token,
}

impl GraphClient {
    /// The Graph client for the tenant of this feed: it signs in the same way, for Graph, and calls only `graph_url`.
    pub(super) fn of(feed: &super::ClientInner) -> GraphClient {
        let settings = TokenSettings { audience: GRAPH_URL.to_owned(), ..feed.tokens.settings().clone() };
        let tokens = TokenSource::new(
            settings,
            feed.authority_clients.calls().clone(),
            feed.authority_clients.route(feed.places.clone()),
            feed.bound.calls.clone(),
            feed.clock.clone(),
        );
        GraphClient(Arc::new(GraphInner {
            tenant: feed.tenant.clone(),
            graph_url: feed.graph_url.clone(),
            route: feed.graph_clients.route(feed.places.clone()),
            clients: feed.graph_clients.clone(),
            places: feed.places.clone(),
            bound: feed.bound.clone(),
            patience: feed.connect_timeout.saturating_add(feed.read_timeout),
            read_timeout: feed.read_timeout,
            tokens,
            beta: AtomicBool::new(false),
            clock: feed.clock.clone(),
        }))
    }

    /// The version that answered last.
    pub fn version(&self) -> GraphVersion {
        if self.0.beta.load(Ordering::Relaxed) { GraphVersion::Beta } else { GraphVersion::V1 }
    }

    /// Begins with this version.
    pub fn set_version(&self, version: GraphVersion) {
        self.0.beta.store(version == GraphVersion::Beta, Ordering::Relaxed);
    }

    /// The claims of the token, for display only.
    ///
    /// # Errors
    /// There is no token.
    pub async fn token_facts(&self) -> Result<TokenFacts, GraphError> {
        let token = self.0.tokens.token().await.map_err(|error| self.0.denied(SUBMIT, &error))?;
        Ok(token.facts())
    }

    /// Submits a search for the events of `window`.
    ///
    /// # Errors
    /// See [`GraphFault`].
    pub async fn submit(&self, window: Window, name: &str) -> Result<GraphQuery, GraphError> {
        let body = json!({
            "displayName": name,
            "filterStartDateTime": window.start.to_string(),
            "filterEndDateTime": window.end.to_string(),
        });
        let answer = self.call(SUBMIT, Method::POST, "", Some(body.to_string())).await?;
        self.0.query(SUBMIT, &answer)
    }

    /// Polls a query.
    ///
    /// # Errors
    /// See [`GraphFault`]; [`GraphFault::Absent`]: Graph no longer has it.
    pub async fn look(&self, id: &str) -> Result<GraphQuery, GraphError> {
        let answer = self.call(LOOK, Method::GET, &format!("/{}", escaped(id)), None).await?;
        self.0.query(LOOK, &answer)
    }

    /// A page of a query's records; `link` is `None` for the first.
    ///
    /// # Errors
    /// See [`GraphFault`].
    pub async fn records(&self, id: &str, link: Option<&GraphLink>) -> Result<GraphPage, GraphError> {
        let answer = match link {
            None => self.call(READ, Method::GET, &format!("/{}/records", escaped(id)), None).await?,
            Some(link) => self.0.send(READ, &Method::GET, link.0.clone(), None).await?,
        };
        let answer = self.0.judged(READ, answer)?;
        let page: WirePage<'_> = serde_json::from_slice(&answer.body).map_err(|_| self.0.unexpected(READ, &answer))?;
        let whole = Bytes::copy_from_slice(&answer.body);
        let begin = answer.body.as_ptr() as usize;
        let records = page.value.iter().map(|record| {
            let at = record.get().as_ptr() as usize - begin;
            whole.slice(at..at + record.get().len())
        });
        Ok(GraphPage {
            records: records.collect(),
            next: page.next.as_deref().map(|link| self.0.follow(link)).transpose()?,
            is_cut: page.is_cut.unwrap_or(false),
        })
    }

    /// A call in the version that answered last, or in the other if that one does not exist.
    async fn call(
        &self,
        doing: &'static str,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<GraphAnswer, GraphError> {
        let version = self.version();
        let answer = self.0.send(doing, &method, self.0.url(version, path), body.clone()).await?;
        if answer.status != 404 {
            return self.0.judged(doing, answer);
        }
        let other = self.0.send(doing, &method, self.0.url(version.other(), path), body).await?;
        // If both return 404, the object does not exist; only another answer shows that the other version is in use.
        if other.status == 404 {
            return self.0.judged(doing, answer);
        }
        if other.status < 400 {
            tracing::info!(
                tenant = %self.0.tenant, "Microsoft Graph answers the audit search by `/{}`, and 404 by `/{}`",
                version.other().path(), version.path()
            );
            self.set_version(version.other());
        }
        self.0.judged(doing, other)
    }
}

impl GraphInner {
    fn url(&self, version: GraphVersion, path: &str) -> Url {
        let mut url = self.graph_url.clone();
        let root = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{root}/{}/security/auditLog/queries{path}", version.path()));
        url.set_query(None);
        url.set_fragment(None);
        url
    }

    /// Where a link to a next page is read: on the configured host, whatever host it names.
    fn follow(&self, link: &str) -> Result<GraphLink, GraphError> {
        let unusable = || {
            self.error(
                READ,
                GraphFault::Passing,
                "api-link-off-origin",
                "the link to the next page leads elsewhere".to_owned(),
                super::OFF_ORIGIN_HINT,
            )
        };
        let url = self.graph_url.join(link.trim()).map_err(|_| unusable())?;
        let is_bare = url.username().is_empty() && url.password().is_none();
        if is_bare && url.origin() == self.graph_url.origin() {
            return Ok(GraphLink(url));
        }
        let named = url.host_str().unwrap_or_default().to_owned();
        let root = self.graph_url.path().trim_end_matches('/');
        let path = url.path().strip_prefix(root).unwrap_or(url.path());
        let is_ours = path
            .strip_prefix("/v1.0")
            .or_else(|| path.strip_prefix("/beta"))
            .is_some_and(|rest| rest.starts_with("/security/auditLog/queries/") && rest.ends_with("/records"));
        if named != "graph.microsoft.com" {
            ::metrics::counter!(
                crate::metrics::ERRORS_TOTAL, "tenant" => self.tenant.to_string(), "kind" => "api-link-off-origin"
            )
            .increment(1);
            tracing::warn!(
                tenant = %self.tenant,
                "api-link-off-origin: a link of Microsoft Graph leads to `{}`, and the token goes there in no case; {} (hint: {})",
                excerpt(&named),
                if is_ours { "the page is asked for on the configured host" } else { "it is not followed" },
                super::OFF_ORIGIN_HINT
            );
        }
        if !is_ours {
            return Err(unusable());
        }
        let mut own = self.graph_url.clone();
        own.set_path(&format!("{root}{path}"));
        own.set_query(url.query());
        Ok(GraphLink(own))
    }

    /// One call, once more with a new token if the first was refused.
    async fn send(
        &self,
        doing: &'static str,
        method: &Method,
        url: Url,
        body: Option<String>,
    ) -> Result<GraphAnswer, GraphError> {
        let mut refused: Option<Token> = None;
        loop {
            self.bound.leave(&self.tenant, &self.clock).await;
            let token = match &refused {
                None => self.tokens.token().await,
                Some(token) => self.tokens.renew(token).await,
            }
            .map_err(|error| self.denied(doing, &error))?;
            let answer = self.send_once(doing, method, url.clone(), body.clone(), token.clone()).await?;
            if answer.status == 401 && refused.is_none() {
                refused = Some(token);
                continue;
            }
            return Ok(answer);
        }
    }

    async fn send_once(
        &self,
        doing: &'static str,
        method: &Method,
        url: Url,
        body: Option<String>,
        token: Token,
    ) -> Result<GraphAnswer, GraphError> {
        let mut request = self
            .clients
            .calls()
            .request(method.clone(), url)
            .header(AUTHORIZATION, token.header())
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "gzip");
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let _room = self.bound.call().await;
        let (known, why) = match tokio::time::timeout(self.patience, request.send()).await {
            Ok(Ok(response)) => return self.read(doing, response, token).await,
            Ok(Err(error)) => (self.route.fault(&error).await, error_chain(&error.without_url())),
            Err(_) => (None, format!("nothing came for {} s", self.patience.as_secs())),
        };
        self.count(doing, "error");
        let why = redact(&why, &[token.secret()]);
        Err(match known {
            Some(known) => {
                let says = format!("{}: `{}`", known.says, excerpt(known.detail.as_deref().unwrap_or(&why)));
                GraphError { hint: known.hint.into(), ..self.error(doing, GraphFault::Passing, known.slug, says, "") }
            }
            None => {
                let host = self.graph_url.host_str().unwrap_or_default();
                let says = format!("no answer from `{host}`: {}", excerpt(&why));
                self.error(doing, GraphFault::Passing, "graph-unreachable", says, UNREACHABLE_HINT)
            }
        })
    }

    async fn read(
        &self,
        doing: &'static str,
        response: reqwest::Response,
        token: Token,
    ) -> Result<GraphAnswer, GraphError> {
        let status = response.status().as_u16();
        self.count(doing, response.status().as_str());
        let date = response.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let now = date.and_then(|date| Timestamp::try_from(date).ok()).unwrap_or_else(|| self.clock.now());
        let retry_after = retry_after(response.headers(), now);
        let limit = if status < 400 { LISTING_BYTES_MAX } else { ERROR_BYTES_MAX };
        let body = match Body::of(response, self.read_timeout).read(limit).await {
            Ok((body, true)) => body,
            // The beginning of an error's body is enough.
            Ok((body, false)) if status >= 400 => body,
            _ if status >= 400 => Vec::new(),
            Ok((_, false)) => {
                let says = format!("the answer is over {limit} bytes");
                return Err(self.error(doing, GraphFault::Passing, "graph-unexpected-answer", says, UNEXPECTED_HINT));
            }
            Err(fault) => {
                let says = format!("the answer broke off or is damaged: {fault:?}");
                return Err(self.error(
                    doing,
                    GraphFault::Passing,
                    "graph-unexpected-answer",
                    excerpt(&says),
                    UNEXPECTED_HINT,
                ));
            }
        };
        Ok(GraphAnswer { status, body, retry_after, token })
    }

    /// The answer, if it is a success.
    fn judged(&self, doing: &'static str, answer: GraphAnswer) -> Result<GraphAnswer, GraphError> {
        let (fault, slug, hint) = match answer.status {
            200..=299 => return Ok(answer),
            429 => (GraphFault::Throttled, "graph-throttled", THROTTLED_HINT),
            401 | 403 => (GraphFault::Denied, "graph-permission-missing", PERMISSION_HINT),
            404 | 410 => (GraphFault::Absent, "graph-refused", REFUSED_HINT),
            400..=407 | 409..=499 => (GraphFault::Refused, "graph-refused", REFUSED_HINT),
            300..=399 => (GraphFault::Passing, "graph-unexpected-answer", UNEXPECTED_HINT),
            _ => (GraphFault::Passing, "graph-unreachable", UNREACHABLE_HINT),
        };
        let text = redact(&String::from_utf8_lossy(&answer.body), &[answer.token.secret()]);
        let says = format!("status {}: `{}`", answer.status, excerpt(&text));
        let mut error = self.error(doing, fault, slug, says, hint);
        error.summary = format!("status {}", answer.status).into();
        error.not_before = answer.retry_after;
        Err(error)
    }

    fn query(&self, doing: &'static str, answer: &GraphAnswer) -> Result<GraphQuery, GraphError> {
        let wire: WireQuery = serde_json::from_slice(&answer.body).map_err(|_| self.unexpected(doing, answer))?;
        if wire.id.is_empty() {
            return Err(self.unexpected(doing, answer));
        }
        let number = |value: Option<serde_json::Value>| match value? {
            serde_json::Value::Number(number) => number.as_u64(),
            serde_json::Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        Ok(GraphQuery {
            id: wire.id,
            status: match wire.status.to_ascii_lowercase().as_str() {
                "succeeded" => QueryStatus::Succeeded,
                "failed" | "cancelled" | "canceled" => QueryStatus::Failed,
                _ => QueryStatus::Running,
            },
            is_cut: wire.is_record_count_limit_exceeded.unwrap_or(false),
            limit: number(wire.record_count_limit).filter(|limit| *limit > 0),
            approximate: number(wire.approximate_returned_record_count),
        })
    }

    fn unexpected(&self, doing: &'static str, answer: &GraphAnswer) -> GraphError {
        let text = redact(&String::from_utf8_lossy(&answer.body), &[answer.token.secret()]);
        let says = format!("the answer is not what was asked for: `{}`", excerpt(&text));
        self.error(doing, GraphFault::Passing, "graph-unexpected-answer", says, UNEXPECTED_HINT)
    }

    fn denied(&self, doing: &'static str, error: &AuthError) -> GraphError {
        GraphError {
            tenant: self.tenant.clone(),
            doing,
            fault: if error.is_passing() { GraphFault::Passing } else { GraphFault::Denied },
            slug: error.slug(),
            says: error.to_string().into(),
            summary: error.summary().into(),
            hint: error.hint().into(),
            not_before: error.not_before(),
        }
    }

    fn error(
        &self,
        doing: &'static str,
        fault: GraphFault,
        slug: &'static str,
        says: String,
        hint: &str,
    ) -> GraphError {
        let hint = self.places.fill(hint);
        GraphError {
            tenant: self.tenant.clone(),
            doing,
            fault,
            slug,
            summary: says.as_str().into(),
            says: says.into(),
            hint: hint.into(),
            not_before: None,
        }
    }

    fn count(&self, doing: &'static str, status: &str) {
        let endpoint = match doing {
            SUBMIT => "graph_submit",
            LOOK => "graph_query",
            _ => "graph_records",
        };
        ::metrics::counter!(
            crate::metrics::REQUESTS_TOTAL, "tenant" => self.tenant.to_string(), "endpoint" => endpoint,
            "status" => status.to_owned()
        )
        .increment(1);
    }
}

/// An id as a segment of a path.
fn escaped(id: &str) -> String {
    url::form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiClient, ApiSettings};
    use crate::auth::Credential;
    use crate::clock::SystemClock;

    fn client(graph_url: &str) -> GraphClient {
        let url = |text: &str| Url::parse(text).unwrap();
        let tenant = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        let nowhere = url("http://127.0.0.1:1");
        let settings = ApiSettings {
            graph_url: url(graph_url),
            ..ApiSettings::at(&nowhere, tenant, Credential::Secret("s3cret~s3cret".into()))
        };
        ApiClient::new(settings, SystemClock::new()).unwrap().graph()
    }

    #[test]
    fn a_next_page_is_read_on_the_configured_host_only() {
        let own = client("http://127.0.0.1:8080");
        let below = client("https://gw.example/graph/");
        let page = "/v1.0/security/auditLog/queries/q/records?$skiptoken=a%2Fb";
        for (client, link, expected) in [
            (&own, format!("http://127.0.0.1:8080{page}"), Some(format!("http://127.0.0.1:8080{page}"))),
            (&own, format!("https://graph.microsoft.com{page}"), Some(format!("http://127.0.0.1:8080{page}"))),
            (&own, format!("http://127.0.0.1:8081{page}"), Some(format!("http://127.0.0.1:8080{page}"))),
            (&own, format!("https://evil.example{page}"), Some(format!("http://127.0.0.1:8080{page}"))),
            (&own, format!("http://user:pw@127.0.0.1:8080{page}"), Some(format!("http://127.0.0.1:8080{page}"))),
            (&own, "//evil.example/other".into(), None),
            (&own, "https://graph.microsoft.com/v1.0/me".into(), None),
            (&own, page.into(), Some(format!("http://127.0.0.1:8080{page}"))),
            (&below, format!("https://graph.microsoft.com{page}"), Some(format!("https://gw.example/graph{page}"))),
        ] {
            let followed = client.0.follow(&link).map(|link| link.0.to_string()).ok();
            assert_eq!(followed, expected, "{link}");
        }
    }
}
