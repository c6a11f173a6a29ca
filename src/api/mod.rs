//! The feed's calls: list, start and stop subscriptions, list content page by page, fetch a blob as a stream.
//!
//! [`ApiClient`] sends each request at the tenant's pace, with a token, to the configured origin only; judges the
//! answer; and returns in [`ApiError::action`] what the caller must do. It repeats a call only once, after a 401: the
//! caller decides which calls to make, when and how often. It follows Microsoft's "Office 365 Management Activity API
//! reference".

mod codes;
mod connections;
mod error;
mod graph;
mod http;
mod link;
mod pace;
pub(crate) mod tls;
mod wire;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, DATE, HeaderMap};
use tokio::sync::Semaphore;
use url::Url;

use crate::auth::{self, Token, TokenSettings, TokenSource};
use crate::clock::Clock;
use crate::config::{Cloud, Places};
use crate::model::{Actionable, BlobRef, ContentType, TenantId, Timestamp, Window};
use crate::net::{self, RETRY_AFTER_MAX, error_chain, excerpt, redact};

pub use crate::auth::certificate::CertificateFiles;
pub use crate::auth::identity::{ARC_KEY_DIR, ManagedIdentity};
pub use crate::auth::{AuthError, Credential, EndpointVersion, SecretText, TokenFacts};
pub use codes::{Action, FeedCallKind};
pub use connections::Connections;
pub(crate) use connections::MayAsk;
pub use error::{ApiError, ErrorKind};
pub use graph::{
    GraphClient, GraphError, GraphFault, GraphLink, GraphPage, GraphQuery, GraphVersion,
    PERMISSION_HINT as GRAPH_PERMISSION_HINT, QueryStatus, ROLE as GRAPH_ROLE,
};
pub use link::PageLink;
pub use wire::{SkippedItem, Subscription, Webhook};

use crate::auth::network::NetworkRoute;
use connections::{Bound, ConnectionPermit};
use error::Details;
use http::{Body, BodyFault, HostClients, HttpSettings};
use link::{Links, Resolved};
use pace::{CallSubject, Held, LANES, Leave, Pace};
use wire::ErrorBody;

/// Most bytes read of an error's body.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Most bytes read of a listing. A page of this size would name some hundred thousand blobs.
const LISTING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A listing with a thousand bad links causes one log line.
const LINK_WARNING_EVERY: Duration = Duration::from_secs(60);
/// The two documented spellings of the header that names the next page. Header names are case-insensitive.
const NEXT_PAGE_HEADERS: [&str; 2] = ["NextPageUri", "NextPageUrl"];

/// Slug, cause and remedy of every error the token source and the calls can give, each slug once; the pages under
/// `docs/errors` are checked against it.
pub fn known_errors() -> Vec<(&'static str, &'static str, String)> {
    let mut all: Vec<_> = templates();
    all.sort_by_key(|(slug, _, _)| *slug);
    all.dedup_by_key(|(slug, _, _)| *slug);
    let places = Places::example();
    let fill = |remedy: &str| places.fill(&remedy.replace("{host}", "HOST").replace("{proxy}", "PROXY"));
    let fill = |remedy: &str| fill(remedy).replace("{lookup}", &format!("{}?code=CODE", places.lookup(None)));
    all.into_iter().map(|(slug, says, remedy)| (slug, says, fill(remedy))).collect()
}

/// The same with the remedies as they are written, with their marks.
fn templates() -> Vec<(&'static str, &'static str, &'static str)> {
    const HERE: [(&str, &str, &str); 6] = [
        ("api-client-settings", "the HTTP client cannot be made", SETTINGS_HINT),
        ("api-unreachable", "no answer", UNREACHABLE_HINT),
        ("api-listing-too-large", "the listing is too large", TOO_LARGE_HINT),
        ("api-body-cut", "the answer broke off", BODY_HINT),
        ("api-body-damaged", "the answer is damaged", BODY_HINT),
        ("api-link-off-origin", "a link leads elsewhere than to the configured API", OFF_ORIGIN_HINT),
    ];
    auth::known().chain(codes::known()).chain(HERE).chain(graph::KNOWN).collect()
}

/// Microsoft's own codes behind a slug of [`known_errors`], `AF…` and `AADSTS…`; empty where the status or form
/// decides.
pub fn vendor_codes(slug: &str) -> Vec<String> {
    let feed = codes::codes_of(slug).map(str::to_owned);
    feed.chain(auth::codes_of(slug).map(|code| format!("AADSTS{code}"))).collect()
}

const SETTINGS_HINT: &str = "check `ca_file` (certificates of authorities, PEM or DER), `proxy_url` (or `HTTPS_PROXY`) and the \
                             certificates this machine trusts";
const UNREACHABLE_HINT: &str = "`curl -I {api}` must answer from this machine: check firewall, proxy \
                                (`proxy_url`) and certificates (`ca_file`)";
const TOO_LARGE_HINT: &str = "report it with this message";
const BODY_HINT: &str =
    "none needed unless it lasts: it is asked for again; look for a proxy that cuts or alters answers";
const OFF_ORIGIN_HINT: &str =
    "check `cloud` and `api_url`; if they are right, something between here and Microsoft alters answers";

/// The settings of an [`ApiClient`].
#[derive(Clone)]
pub struct ApiSettings {
    /// The tenant.
    pub tenant: TenantId,
    /// Root of the API; the only origin that is ever sent the token.
    pub api_url: Url,
    /// Root of Microsoft Graph; the only origin that is ever sent Graph's token.
    pub graph_url: Url,
    /// The chosen cloud. Links to its own API's host are rewritten to `api_url` when the two differ, and remedies name its
    /// consoles.
    pub cloud: Cloud,
    /// Root of the authority.
    pub authority_url: Url,
    /// The audience of the token; the cloud's API root.
    pub audience: String,
    /// Which token endpoint.
    pub token_endpoint: EndpointVersion,
    /// The app's client id.
    pub client_id: String,
    /// The app's proof.
    pub credential: Credential,
    /// `aud` of an assertion, when it is not the address of the token end point.
    pub assertion_audience: Option<String>,
    /// When the client secret expires, as the operator configured it.
    pub secret_expires: Option<Timestamp>,
    /// Sent with every call, so that the quota is the tenant's own. A GUID.
    pub publisher_identifier: String,
    /// The tenant's allowance, of which at most 98 % is used in any 60 seconds; 0 is no limit.
    pub max_requests_per_minute: u32,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next bytes. There is no limit on a whole answer: blobs may be huge.
    pub read_timeout: Duration,
    /// Own CA certificates, PEM, trusted beside those of the machine.
    pub ca_pem: Option<Vec<u8>>,
    /// Used instead of the proxy the environment names. May hold credentials.
    pub proxy_url: Option<Url>,
    /// Hosts reached without the proxy, in the form of `NO_PROXY`; `None`: that variable decides.
    pub no_proxy: Option<String>,
    /// A client certificate with its key, PEM, for a proxy that asks for one.
    pub proxy_client_pem: Option<Vec<u8>>,
}

#[cfg(any(test, feature = "internals"))]
impl ApiSettings {
    /// What tests begin with: every host at one address, no limit, and nothing in between. A new field has its value for all
    /// tests here.
    #[doc(hidden)]
    pub fn at(url: &Url, tenant: TenantId, credential: Credential) -> Self {
        Self {
            publisher_identifier: tenant.to_string(),
            tenant,
            api_url: url.clone(),
            graph_url: url.clone(),
            cloud: Cloud::Enterprise,
            authority_url: url.clone(),
            audience: Cloud::Enterprise.audience().to_owned(),
            token_endpoint: EndpointVersion::V2,
            client_id: "22222222-2222-3333-4444-555555555555".into(),
            credential,
            assertion_audience: None,
            secret_expires: None,
            max_requests_per_minute: 0,
            connect_timeout: Duration::from_secs(120),
            read_timeout: Duration::from_secs(120),
            ca_pem: None,
            proxy_url: None,
            no_proxy: None,
            proxy_client_pem: None,
        }
    }
}

impl fmt::Debug for ApiSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiSettings")
            .field("tenant", &self.tenant)
            .field("api_url", &self.api_url.as_str())
            .field("authority_url", &self.authority_url.as_str())
            .field("audience", &self.audience)
            .field("token_endpoint", &self.token_endpoint)
            .field("client_id", &self.client_id)
            .field("credential", &self.credential)
            .field("publisher_identifier", &self.publisher_identifier)
            .field("max_requests_per_minute", &self.max_requests_per_minute)
            .field("proxy", &self.proxy_url.as_ref().and_then(Url::host_str))
            .finish_non_exhaustive()
    }
}

/// Microsoft's clock in one answer of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerDate {
    /// The `Date` header. Whole seconds.
    pub date: Timestamp,
    /// This machine's [`Clock::monotonic`] when the answer came.
    pub at: Duration,
}

/// Called with the `Date` of every answer of the API, in the task that made the call; must return quickly.
pub type DateObserver = Arc<dyn Fn(ServerDate) + Send + Sync>;

/// The result of starting a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It was started now.
    Now,
    /// It was enabled before (AF20024).
    AlreadyEnabled,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentPage {
    /// The blobs, as listed, which is in no particular order.
    pub blobs: Vec<BlobRef>,
    /// The next page. `None` ends the listing; a page without blobs does not.
    pub next: Option<PageLink>,
    /// Items that do not name a fetchable blob.
    pub skipped: Vec<SkippedItem>,
    /// The body was `null` in place of an array: it names no blob, but that does not prove that there is none.
    pub null: bool,
}

/// One tenant's feed. Clones share pace, token and connections.
#[derive(Clone)]
pub struct ApiClient {
    inner: Arc<ClientInner>,
    share: Option<Arc<QuotaShare>>,
}

/// A part of the allowance, for work that leaves room for the rest.
struct QuotaShare {
    max_requests_per_minute: u32,
    /// Made at the first call: every tenant has a share, and hardly any uses it.
    pace: OnceLock<Box<Pace>>,
    sent: AtomicU64,
}

struct ClientInner {
    tenant: TenantId,
    links: Links,
    clients: Arc<HostClients>,
    graph_url: Url,
    graph_clients: Arc<HostClients>,
    /// Explains why the API was not reached.
    route: NetworkRoute,
    /// Where remedies lead.
    places: Places,
    /// Permits for connections, shared by all tenants.
    bound: Bound,
    /// Permits for this tenant's downloads.
    own_downloads: Arc<Semaphore>,
    authority_clients: Arc<HostClients>,
    connect_timeout: Duration,
    read_timeout: Duration,
    tokens: TokenSource,
    pace: Pace,
    clock: Arc<dyn Clock>,
    server_date: Mutex<Option<ServerDate>>,
    observer: Option<DateObserver>,
    link_warned: Mutex<Option<Duration>>,
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").field("tenant", &self.inner.tenant).finish_non_exhaustive()
    }
}

/// A call: which, of which type.
#[derive(Debug, Clone, Copy)]
struct FeedCall {
    endpoint: FeedCallKind,
    content_type: Option<ContentType>,
    /// Identifies the blob; 0 for calls without a blob.
    blob: u64,
}

impl FeedCall {
    fn new(endpoint: FeedCallKind, content_type: Option<ContentType>) -> Self {
        Self { endpoint, content_type, blob: 0 }
    }

    fn about(self) -> CallSubject {
        let known = |content_type| ContentType::ALL.iter().position(|known| *known == content_type);
        let lane = self.content_type.and_then(known).map_or(0, |at| at + 1);
        CallSubject { lane: lane.min(LANES - 1), blob: self.blob }
    }
}

/// A number for a blob's id. Two blobs with the same number would count as one when refusals are told apart by blob.
fn number_of(blob_id: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(blob_id, &mut hasher);
    std::hash::Hasher::finish(&hasher).max(1)
}

/// An answer that was judged a success.
struct FeedAnswer<'a> {
    headers: HeaderMap,
    body: Body,
    token: Token,
    leave: Leave<'a>,
    /// The permit for its connection, held while the body is read.
    room: Option<ConnectionPermit>,
}

fn token_settings(settings: ApiSettings, places: Places) -> TokenSettings {
    TokenSettings {
        tenant: settings.tenant,
        authority_url: settings.authority_url,
        audience: settings.audience,
        endpoint: settings.token_endpoint,
        client_id: settings.client_id,
        credential: settings.credential,
        assertion_audience: settings.assertion_audience,
        secret_expires: settings.secret_expires,
        timeout: settings.connect_timeout.saturating_add(settings.read_timeout),
        places,
    }
}

/// The error for settings with which no client can be made.
fn unusable(tenant: TenantId, endpoint: FeedCallKind, why: String, places: &Places) -> ApiError {
    ApiError::new(Details {
        tenant,
        endpoint,
        content_type: None,
        kind: ErrorKind::Settings,
        action: Action::SlowRetryTenant,
        slug: "api-client-settings",
        says: why,
        hint: places.fill(SETTINGS_HINT),
        status: None,
        code: None,
        excerpt: None,
        auth: None,
    })
}

impl ApiClient {
    /// A client. No request is made.
    ///
    /// Errors are of [`ErrorKind::Settings`]: an unusable CA file or proxy, no trusted roots.
    pub fn new(settings: ApiSettings, clock: Arc<dyn Clock>) -> Result<ApiClient, ApiError> {
        Self::build(settings, clock, None, &Connections::new())
    }

    /// A client that calls `observer` with the `Date` of every answer of the API, and shares `connections`.
    ///
    /// # Errors
    /// As [`ApiClient::new`].
    pub fn with_date_observer(
        settings: ApiSettings,
        clock: Arc<dyn Clock>,
        observer: DateObserver,
        connections: &Connections,
    ) -> Result<ApiClient, ApiError> {
        Self::build(settings, clock, Some(observer), connections)
    }

    fn build(
        settings: ApiSettings,
        clock: Arc<dyn Clock>,
        observer: Option<DateObserver>,
        connections: &Connections,
    ) -> Result<ApiClient, ApiError> {
        let http_settings = HttpSettings {
            connect_timeout: settings.connect_timeout,
            ca_pem: settings.ca_pem.as_deref(),
            proxy_url: settings.proxy_url.as_ref(),
            no_proxy: settings.no_proxy.as_deref(),
            proxy_client_pem: settings.proxy_client_pem.as_deref(),
        };
        let places = Places::new(
            settings.cloud,
            &settings.api_url,
            &settings.authority_url,
            settings.tenant.as_str(),
            &settings.client_id,
        );
        let clients = |endpoint, target: &Url| {
            let clients = connections.clients(&http_settings, target);
            clients.map_err(|why| unusable(settings.tenant.clone(), endpoint, why, &places))
        };
        // Separate clients, because the proxy may apply to only one of the hosts.
        let api_clients = clients(FeedCallKind::ListSubscriptions, &settings.api_url)?;
        let graph_clients = clients(FeedCallKind::ListSubscriptions, &settings.graph_url)?;
        let authority_clients = match &settings.credential {
            Credential::ManagedIdentity(identity) => clients(FeedCallKind::Token, &identity.url)?,
            _ => clients(FeedCallKind::Token, &settings.authority_url)?,
        };
        let links = Links::new(&settings.api_url, settings.cloud, &settings.tenant, &settings.publisher_identifier);
        let (connect_timeout, read_timeout) = (settings.connect_timeout, settings.read_timeout);
        let graph_url = settings.graph_url.clone();
        let (tenant, max_requests_per_minute) = (settings.tenant.clone(), settings.max_requests_per_minute);
        let tokens = TokenSource::new(
            token_settings(settings, places.clone()),
            authority_clients.calls().clone(),
            authority_clients.route(places.clone()),
            connections.bound().calls.clone(),
            clock.clone(),
        );
        let pace = match connections.bound().is_shared_out() {
            true => Pace::of_heir(max_requests_per_minute, clock.clone()),
            false => Pace::new(max_requests_per_minute, clock.clone()),
        };
        Ok(ApiClient {
            share: None,
            inner: Arc::new(ClientInner {
                links,
                tenant,
                bound: connections.bound().clone(),
                own_downloads: connections.bound().own_downloads(),
                connect_timeout,
                read_timeout,
                tokens,
                route: api_clients.route(places.clone()),
                clients: api_clients,
                graph_url,
                graph_clients,
                places,
                authority_clients,
                pace,
                clock,
                server_date: Mutex::new(None),
                observer,
                link_warned: Mutex::new(None),
            }),
        })
    }

    /// The same feed, with its listings and blobs limited to `max_requests_per_minute` of its own (0: no limit), and to
    /// half of the estimated grant of Microsoft, in addition to the limit they share with all calls.
    pub fn with_share(&self, max_requests_per_minute: u32) -> ApiClient {
        let share = QuotaShare { max_requests_per_minute, pace: OnceLock::new(), sent: AtomicU64::new(0) };
        ApiClient { inner: self.inner.clone(), share: Some(Arc::new(share)) }
    }

    /// The audit search of Microsoft Graph for the same tenant. No request is made.
    pub fn graph(&self) -> GraphClient {
        GraphClient::of(&self.inner)
    }

    /// Listings and blobs requested within a share; 0 without one.
    pub fn sent_within_share(&self) -> u64 {
        self.share.as_ref().map_or(0, |share| share.sent.load(Ordering::Relaxed))
    }

    /// The estimate of requests a minute that Microsoft grants: learned from refusals, at most 98 % of the configured
    /// number; `None` without a limit.
    pub fn granted_per_minute(&self) -> Option<f64> {
        self.inner.pace.granted_per_minute()
    }

    /// Waits for a turn within the share. Its limiter gets no refusals, so it only counts.
    async fn turn(&self) {
        if let Some(share) = &self.share {
            let new = || Box::new(Pace::new(share.max_requests_per_minute, self.inner.clock.clone()));
            let pace = share.pace.get_or_init(new);
            pace.follow_half_of(&self.inner.pace);
            if let Ok(leave) = pace.ready(CallSubject::default()).await {
                leave.granted();
            }
            share.sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The subscriptions of this app in the tenant; empty when none was ever started.
    pub async fn list_subscriptions(&self) -> Result<Vec<Subscription>, ApiError> {
        let call = FeedCall::new(FeedCallKind::ListSubscriptions, None);
        let url = self.inner.links.feed("/subscriptions/list", "");
        let mut answer = self.inner.send(call, Method::GET, url).await?;
        let body = self.inner.read_whole(call, &mut answer).await?;
        wire::parse_subscriptions(&body).map_err(|error| self.inner.unreadable(call, error, &body, &answer))
    }

    /// Starts the subscription to a content type. Microsoft requires 15 minutes between two starts of one.
    pub async fn start_subscription(&self, content_type: ContentType) -> Result<Started, ApiError> {
        let call = FeedCall::new(FeedCallKind::StartSubscription, Some(content_type));
        let url = self.inner.links.feed("/subscriptions/start", &format!("contentType={content_type}"));
        match self.inner.send(call, Method::POST, url).await {
            Ok(_) => Ok(Started::Now),
            Err(error) if error.action() == Action::AlreadyEnabled => Ok(Started::AlreadyEnabled),
            Err(error) => Err(error),
        }
    }

    /// Stops the subscription to a content type. Content that becomes available before it is started again can never
    /// be fetched.
    pub async fn stop_subscription(&self, content_type: ContentType) -> Result<(), ApiError> {
        let call = FeedCall::new(FeedCallKind::StopSubscription, Some(content_type));
        let url = self.inner.links.feed("/subscriptions/stop", &format!("contentType={content_type}"));
        self.inner.send(call, Method::POST, url).await.map(drop)
    }

    /// One page of the blobs whose `contentCreated` lies in `window`. `page` is `None` for the first page, else the
    /// link from the previous page.
    ///
    /// A link to another origin is an error of [`ErrorKind::OffOrigin`] with [`Action::RestartWindow`]; the page that
    /// contained it was still listed.
    pub async fn list_content(
        &self,
        content_type: ContentType,
        window: Window,
        page: Option<&PageLink>,
    ) -> Result<ContentPage, ApiError> {
        let call = FeedCall::new(FeedCallKind::ListContent, Some(content_type));
        let inner = &self.inner;
        let url = match page {
            None => {
                let (start, end) = wire::window_bounds(window);
                let query = format!("contentType={content_type}&startTime={start}&endTime={end}");
                inner.links.feed("/subscriptions/content", &query)
            }
            Some(link) => match inner.links.resolve(link.as_str()) {
                Resolved::Own(url) => url,
                Resolved::Foreign { .. } => return Err(inner.off_origin(call, link.as_str(), Action::RestartWindow)),
            },
        };
        self.turn().await;
        let mut answer = inner.send(call, Method::GET, url.clone()).await?;
        let next = next_page(&answer.headers, &url);
        let body = inner.read_whole(call, &mut answer).await?;
        let uri_of_id = |id: &str| {
            let mut url = inner.links.feed(&format!("/audit/{id}"), "");
            url.set_query(None);
            url.into()
        };
        let listing = wire::parse_listing(&body, content_type, window, uri_of_id)
            .map_err(|error| inner.unreadable(call, error, &body, &answer))?;
        Ok(ContentPage { blobs: listing.blobs, next, skipped: listing.skipped, null: listing.null })
    }

    /// A blob's body, after status and headers were judged.
    ///
    /// A `contentUri` of another origin is counted and reported, and the blob is requested under the configured origin
    /// instead ([`BlobBody::link_was_refused`]); if its path is not one of the feed, the error is of
    /// [`ErrorKind::OffOrigin`].
    pub async fn fetch_blob(&self, blob: &BlobRef) -> Result<BlobBody, ApiError> {
        let call =
            FeedCall { blob: number_of(&blob.id), ..FeedCall::new(FeedCallKind::FetchBlob, Some(blob.content_type)) };
        let (url, link_refused) = match self.inner.links.resolve(&blob.uri) {
            Resolved::Own(url) => (url, false),
            Resolved::Foreign { instead } => {
                let refusal = self.inner.off_origin(call, &blob.uri, Action::RetryBlobSlowly);
                (instead.ok_or(refusal)?, true)
            }
        };
        self.turn().await;
        let answer = self.inner.send(call, Method::GET, url).await?;
        Ok(BlobBody { inner: self.inner.clone(), call, body: answer.body, link_refused, _room: answer.room })
    }

    /// Microsoft's clock by the latest answer of the API; `None` before the first.
    pub fn last_server_date(&self) -> Option<ServerDate> {
        *self.inner.server_date.lock()
    }

    /// The authority's clock minus this machine's, by its last answer; for display only.
    pub fn authority_skew(&self) -> Option<SignedDuration> {
        self.inner.tokens.skew()
    }

    /// The claims of the token, for display only.
    pub async fn token_roles(&self) -> Result<TokenFacts, ApiError> {
        let call = FeedCall::new(FeedCallKind::Token, None);
        let token = self.inner.tokens.token().await.map_err(|error| self.inner.auth_error(call, error))?;
        Ok(token.facts())
    }
}

/// A blob's bytes as they arrive, decompressed. Dropping it aborts the transfer.
pub struct BlobBody {
    inner: Arc<ClientInner>,
    call: FeedCall,
    body: Body,
    link_refused: bool,
    _room: Option<ConnectionPermit>,
}

impl BlobBody {
    /// The next bytes; `None` at the end. The end is reported only when the transfer was complete, had the announced
    /// length, and was valid gzip if compressed: until then the bytes may belong to a broken body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        self.body.chunk().await.map_err(|fault| self.inner.body_error(self.call, fault))
    }

    /// Whether the listing named another origin, so that the blob was requested under the configured one instead.
    pub fn link_was_refused(&self) -> bool {
        self.link_refused
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody").field("call", &self.call).finish_non_exhaustive()
    }
}

impl ClientInner {
    /// Sends one call, once more with a new token if the first was refused, and judges the answer.
    ///
    /// Boxed, so that the tasks that wait for their next call (five streams of each tenant) do not hold the memory of
    /// one.
    fn send(&self, call: FeedCall, method: Method, url: Url) -> BoxFuture<'_, Result<FeedAnswer<'_>, ApiError>> {
        Box::pin(self.send_unboxed(call, method, url))
    }

    async fn send_unboxed(&self, call: FeedCall, method: Method, url: Url) -> Result<FeedAnswer<'_>, ApiError> {
        let mut refused: Option<Token> = None;
        loop {
            self.bound.leave(&self.tenant, &self.clock).await;
            let leave = self.pace.ready(call.about()).await.map_err(|held| self.held(call, held))?;
            let token = match &refused {
                None => self.tokens.token().await,
                Some(token) => self.tokens.renew(token).await,
            }
            .map_err(|error| self.auth_error(call, error))?;
            match self.send_once(call, method.clone(), url.clone(), &token, leave).await {
                Err(error) if refused.is_none() && is_token_refused(&error) => refused = Some(token),
                Err(error) => return Err(self.counted(error)),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    fn http(&self, call: FeedCall) -> &reqwest::Client {
        match call.endpoint {
            FeedCallKind::FetchBlob => self.clients.transfers(),
            _ => self.clients.calls(),
        }
    }

    /// Waits for a permit for a connection.
    async fn room(&self, call: FeedCall) -> Option<ConnectionPermit> {
        match call.endpoint {
            FeedCallKind::FetchBlob => self.bound.download(&self.own_downloads).await,
            _ => self.bound.call().await,
        }
    }

    async fn send_once<'a>(
        &'a self,
        call: FeedCall,
        method: Method,
        url: Url,
        token: &Token,
        leave: Leave<'a>,
    ) -> Result<FeedAnswer<'a>, ApiError> {
        let mut request = self
            .http(call)
            .request(method.clone(), url)
            .header(AUTHORIZATION, token.header())
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "gzip");
        if method == Method::POST {
            // Without it some proxies answer 411 to a POST that has no body.
            request = request.header(CONTENT_LENGTH, "0");
        }
        let room = self.room(call).await;
        let patience = self.connect_timeout.saturating_add(self.read_timeout);
        let (known, why) = match tokio::time::timeout(patience, request.send()).await {
            Ok(Ok(response)) => return self.judge_response(call, response, token, leave, room).await,
            Ok(Err(error)) => (self.route.fault(&error).await, error_chain(&error.without_url())),
            Err(_) => (None, format!("nothing came for {} s", patience.as_secs())),
        };
        self.count_request(call, "error");
        let why = redact(&why, &[token.secret()]);
        let fault = match known {
            Some(known) => ErrorParts {
                action: Action::Retry { not_before: None },
                slug: known.slug,
                says: format!("{}: `{}`", known.says, excerpt(known.detail.as_deref().unwrap_or(&why))),
                hint: known.hint,
            },
            None => ErrorParts {
                action: Action::Retry { not_before: None },
                slug: "api-unreachable",
                says: format!("no answer from `{}`: {}", self.links.host(), excerpt(&why)),
                hint: UNREACHABLE_HINT.into(),
            },
        };
        Err(self.error(call, ErrorKind::Unreachable, fault))
    }

    async fn judge_response<'a>(
        &'a self,
        call: FeedCall,
        response: reqwest::Response,
        token: &Token,
        leave: Leave<'a>,
        room: Option<ConnectionPermit>,
    ) -> Result<FeedAnswer<'a>, ApiError> {
        let status = response.status();
        self.count_request(call, status.as_str());
        let server_date = self.note_date(response.headers());
        let success = match call.endpoint {
            FeedCallKind::StartSubscription | FeedCallKind::StopSubscription => status.is_success(),
            _ => status.as_u16() == 200,
        };
        if success {
            leave.granted();
            let headers = response.headers().clone();
            let body = Body::of(response, self.read_timeout);
            return Ok(FeedAnswer { headers, body, token: token.clone(), leave, room });
        }
        let now = server_date.unwrap_or_else(|| self.clock.now());
        let retry_after = net::retry_after(response.headers(), now);
        // A failure to read an error's body is not an error of its own: the status suffices.
        let mut body = Body::of(response, self.read_timeout);
        let body = match tokio::time::timeout(self.read_timeout, body.read(ERROR_BYTES_MAX)).await {
            Ok(Ok((bytes, _))) => bytes,
            _ => Vec::new(),
        };
        Err(self.judged(call, status.as_u16(), ErrorBody::parse(&body), &body, retry_after, token, &leave))
    }

    /// The error of an answer that was not a success.
    #[expect(clippy::too_many_arguments, reason = "the parts of one answer, read at one place")]
    fn judged(
        &self,
        call: FeedCall,
        status: u16,
        error: ErrorBody,
        body: &[u8],
        retry_after: Option<Duration>,
        token: &Token,
        leave: &Leave<'_>,
    ) -> ApiError {
        let mut verdict = codes::judge(call.endpoint, call.content_type, status, &error, retry_after);
        if let Action::Throttled { .. } = verdict.action {
            let retry_after = retry_after.or_else(|| error.wait_named()).map(|wait| wait.min(RETRY_AFTER_MAX));
            verdict.action = Action::Throttled { retry_after };
            metrics::counter!(crate::metrics::THROTTLED_TOTAL, "tenant" => self.tenant.to_string()).increment(1);
            let pause = leave.refused(retry_after);
            tracing::debug!(tenant = %self.tenant, endpoint = call.endpoint.label(), ?pause, "throttled");
        } else if status < 500 {
            // It was not refused by the quota, whatever its fault.
            leave.granted();
        }
        let text = redact(&String::from_utf8_lossy(body), &[token.secret()]);
        let (slug, says, hint) = match status {
            // Only a proxy gives this answer, in place of Microsoft.
            407 => {
                let fault = self.route.proxy_wants_credentials();
                (fault.slug, fault.says, fault.hint)
            }
            _ => (verdict.slug, verdict.says.to_owned(), self.places.fill(verdict.hint)),
        };
        ApiError::new(Details {
            tenant: self.tenant.clone(),
            endpoint: call.endpoint,
            content_type: call.content_type,
            kind: if (300..400).contains(&status) { ErrorKind::Redirect } else { ErrorKind::Answer },
            action: verdict.action,
            slug,
            says,
            hint,
            status: Some(status),
            code: error.code().map(str::to_owned),
            excerpt: Some(excerpt(&text)).filter(|text| !text.is_empty()),
            auth: None,
        })
    }

    /// The error of a 200 with an unexpected body. A code in it is treated as if the status had been an error.
    fn unreadable(&self, call: FeedCall, error: ErrorBody, body: &[u8], answer: &FeedAnswer<'_>) -> ApiError {
        if let ErrorBody::Af { .. } | ErrorBody::ServerException { .. } = error {
            return self.counted(self.judged(call, 200, error, body, None, &answer.token, &answer.leave));
        }
        let text = redact(&String::from_utf8_lossy(body), &[answer.token.secret()]);
        self.counted(self.error(
            call,
            ErrorKind::BodyUnreadable,
            ErrorParts {
                action: Action::Retry { not_before: None },
                slug: "api-unexpected-answer",
                says: format!("the answer is not a JSON array: `{}`", excerpt(&text)),
                hint: "look for a proxy that answers in Microsoft's place or cuts answers off".into(),
            },
        ))
    }

    async fn read_whole(&self, call: FeedCall, answer: &mut FeedAnswer<'_>) -> Result<Vec<u8>, ApiError> {
        match answer.body.read(LISTING_BYTES_MAX).await {
            Ok((bytes, true)) => Ok(bytes),
            Ok((_, false)) => Err(self.counted(self.error(
                call,
                ErrorKind::BodyUnreadable,
                ErrorParts {
                    action: Action::Retry { not_before: None },
                    slug: "api-listing-too-large",
                    says: format!("the listing is over {LISTING_BYTES_MAX} bytes"),
                    hint: TOO_LARGE_HINT.into(),
                },
            ))),
            Err(fault) => Err(self.body_error(call, fault)),
        }
    }

    fn body_error(&self, call: FeedCall, fault: BodyFault) -> ApiError {
        let (kind, slug, says) = match fault {
            BodyFault::Cut(why) => {
                (ErrorKind::BodyCut, "api-body-cut", format!("the answer broke off: {}", excerpt(&why)))
            }
            BodyFault::Gzip(why) => {
                (ErrorKind::BodyDamaged, "api-body-damaged", format!("the answer is damaged gzip: {}", excerpt(&why)))
            }
            BodyFault::Encoding(name) => (
                ErrorKind::BodyDamaged,
                "api-body-damaged",
                format!("the answer has the unknown encoding `{}`", excerpt(&name)),
            ),
        };
        let hint = BODY_HINT.into();
        let parts = ErrorParts { action: Action::Retry { not_before: None }, slug, says, hint };
        self.counted(self.error(call, kind, parts))
    }

    /// Counts and reports a link to another origin. It shows the link's host, but not its query.
    fn off_origin(&self, call: FeedCall, link: &str, action: Action) -> ApiError {
        let place = Url::parse(link)
            .ok()
            .and_then(|url| url.host_str().map(|host| format!("{}://{host}", url.scheme())))
            .unwrap_or_else(|| "no address".into());
        let place = excerpt(&place);
        if self.may_warn_of_links() {
            tracing::warn!(
                tenant = %self.tenant, endpoint = call.endpoint.label(), %place,
                "a link to another origin was refused; the token goes to the configured API only"
            );
        }
        self.counted(self.error(
            call,
            ErrorKind::OffOrigin,
            ErrorParts {
                action,
                slug: "api-link-off-origin",
                says: format!("the link leads to `{place}`, which is not the configured API"),
                hint: OFF_ORIGIN_HINT.into(),
            },
        ))
    }

    /// One line in [`LINK_WARNING_EVERY`]; the metric counts each.
    fn may_warn_of_links(&self) -> bool {
        let now = self.clock.monotonic();
        let mut warned = self.link_warned.lock();
        let due = warned.is_none_or(|at| now.saturating_sub(at) >= LINK_WARNING_EVERY);
        if due {
            *warned = Some(now);
        }
        due
    }

    fn auth_error(&self, call: FeedCall, error: AuthError) -> ApiError {
        ApiError::new(Details {
            tenant: self.tenant.clone(),
            endpoint: call.endpoint,
            content_type: call.content_type,
            kind: ErrorKind::Auth,
            action: if error.is_passing() {
                Action::Retry { not_before: error.not_before() }
            } else {
                Action::SlowRetryTenant
            },
            slug: error.slug(),
            says: String::new(),
            hint: error.hint(),
            status: error.status(),
            code: None,
            excerpt: None,
            auth: Some(error),
        })
    }

    /// The error of a call that was not sent, since calls for its content type are refused while others are granted.
    fn held(&self, call: FeedCall, held: Held) -> ApiError {
        let action = Action::Throttled { retry_after: Some(held.0) };
        let says = "not asked: Microsoft refuses such calls at the moment, and grants others".into();
        let fault = ErrorParts { action, slug: "api-throttled", says, hint: codes::THROTTLED_HINT.into() };
        self.error(call, ErrorKind::Answer, fault)
    }

    fn error(&self, call: FeedCall, kind: ErrorKind, fault: ErrorParts) -> ApiError {
        ApiError::new(Details {
            tenant: self.tenant.clone(),
            endpoint: call.endpoint,
            content_type: call.content_type,
            kind,
            action: fault.action,
            slug: fault.slug,
            says: fault.says,
            hint: self.places.fill(&fault.hint),
            status: None,
            code: None,
            excerpt: None,
            auth: None,
        })
    }

    fn counted(&self, error: ApiError) -> ApiError {
        if error.action() != Action::AlreadyEnabled {
            metrics::counter!(crate::metrics::ERRORS_TOTAL, "tenant" => self.tenant.to_string(), "kind" => error.slug())
                .increment(1);
        }
        error
    }

    fn count_request(&self, call: FeedCall, status: &str) {
        metrics::counter!(
            crate::metrics::REQUESTS_TOTAL,
            "tenant" => crate::metrics::tenant_label(&self.tenant),
            "endpoint" => call.endpoint.label(),
            "status" => status.to_owned()
        )
        .increment(1);
    }

    fn note_date(&self, headers: &HeaderMap) -> Option<Timestamp> {
        let text = headers.get(DATE)?.to_str().ok()?;
        let date = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
        let seen = ServerDate { date, at: self.clock.monotonic() };
        *self.server_date.lock() = Some(seen);
        if let Some(observer) = &self.observer {
            observer(seen);
        }
        Some(date)
    }
}

/// The parts of an error that differ from call to call.
struct ErrorParts {
    action: Action,
    slug: &'static str,
    says: String,
    hint: String,
}

/// Whether a new token may help: a 401, or a permission that may have been granted since.
fn is_token_refused(error: &ApiError) -> bool {
    error.status() == Some(401) || error.code() == Some("AF10001")
}

/// The link of a header. One that is relative to its page, `?nextPage=…`, is told by that page's address; one with a path
/// or a host stays as it is.
fn next_page(headers: &HeaderMap, page: &Url) -> Option<PageLink> {
    let absolute = |link: String| {
        let stands_alone = link.starts_with('/') || Url::parse(&link).is_ok();
        if stands_alone { link } else { page.join(&link).map_or(link, String::from) }
    };
    NEXT_PAGE_HEADERS
        .iter()
        .flat_map(|name| headers.get_all(*name))
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        .find(|link| !link.is_empty())
        .map(|link| PageLink(absolute(link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_page_that_is_relative_to_its_page_is_told_by_that_pages_address() {
        let page = Url::parse("https://gw.example/o365/api/v1.0/T/activity/feed/subscriptions/content?a=b").unwrap();
        let content = "https://gw.example/o365/api/v1.0/T/activity/feed/subscriptions/content";
        for (link, expected) in [
            ("?nextPage=x%2B$", format!("{content}?nextPage=x%2B$")),
            ("content?nextPage=x", format!("{content}?nextPage=x")),
            (" /api/v1/T/activity/feed/x?y=z ", "/api/v1/T/activity/feed/x?y=z".to_owned()),
            ("//evil.example/x", "//evil.example/x".to_owned()),
            ("https://manage.office.com/x", "https://manage.office.com/x".to_owned()),
            ("https://[", "https://[".to_owned()),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(NEXT_PAGE_HEADERS[0], link.parse().unwrap());
            assert_eq!(next_page(&headers, &page), Some(PageLink(expected)), "{link}");
        }
    }

    /// Microsoft's hosts that belong to only some clouds, with those clouds.
    #[rustfmt::skip]
    const HOSTS: &[(&str, &[Cloud])] = &[
        ("manage.office.com", &[Cloud::Enterprise]),
        ("manage-gcc.office.com", &[Cloud::Gcc]),
        ("manage.office365.us", &[Cloud::GccHigh]),
        ("manage.protection.apps.mil", &[Cloud::Dod]),
        ("manage.office365.cn", &[Cloud::China]),
        ("login.microsoftonline.com", &[Cloud::Enterprise, Cloud::Gcc]),
        ("login.microsoftonline.us", &[Cloud::GccHigh, Cloud::Dod]),
        ("microsoftonline.cn", &[Cloud::China]),
        ("entra.microsoft.com", &[Cloud::Enterprise, Cloud::Gcc]),
        ("entra.microsoft.us", &[Cloud::GccHigh, Cloud::Dod]),
        ("portal.azure.com", &[Cloud::Enterprise, Cloud::Gcc]),
        ("portal.azure.us", &[Cloud::GccHigh, Cloud::Dod]),
        ("portal.azure.cn", &[Cloud::China]),
    ];

    #[test]
    fn no_remedy_names_a_host_of_another_cloud_and_each_names_its_tenant_and_app() {
        const TENANT: &str = "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55";
        const APP: &str = "c0ffee00-1111-4222-8333-444455556666";
        let templates: Vec<&str> = templates().into_iter().map(|(_, _, hint)| hint).collect();
        assert!(templates.len() > 60, "the remedies were not found");
        for cloud in Cloud::ALL {
            let url = |text| Url::parse(text).unwrap();
            let places = Places::new(cloud, &url(cloud.api_url()), &url(cloud.authority_url()), TENANT, APP);
            for template in &templates {
                let text = places.fill(template).replace("{lookup}", &places.lookup(Some(1)));
                for (host, clouds) in HOSTS {
                    assert!(!text.contains(host) || clouds.contains(&cloud), "{cloud:?}: {text}");
                }
                assert!(!text.contains("TENANT/") && !text.contains("=APP"), "{text}");
                let marks = ["{authority}", "{api}", "{tenant}", "{app}", "{lookup}"];
                assert!(marks.iter().all(|mark| !text.contains(mark)), "{text}");
                if text.contains("adminconsent") {
                    let link = format!("{}/{TENANT}/adminconsent?client_id={APP}", cloud.authority_url());
                    assert!(text.contains(&link), "{text}");
                }
            }
        }
    }
}
