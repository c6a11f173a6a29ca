//! A simulated Microsoft 365 tenant over real HTTP: the identity platform's token endpoints and the Office 365
//! Management Activity API, on one loopback port, without TLS.
//!
//! For tests, for `m365-audit demo` and for `m365-audit simulate`. It uses only [`crate::model`] and [`crate::clock`],
//! so that it cannot share a mistake with the client under test. It owns a ledger of truth: every event it ever
//! published, which [`Truth::compare`] compares with the client's deliveries.
//!
//! In reading order: [`Sim`] here, `tenant` (blobs, subscriptions), `truth` (the ledger), `events` (records), `links`
//! (reads and matches that belong together), `token` (with `assertion` and `identity`) and `feed` (the answers),
//! `faults`, `export` (the results of the audit search), `queries` and `graph` (Microsoft Graph), `server` (sockets and
//! bytes).
//!
//! Not simulated: webhooks and TLS. Blobs and the ledger are kept for as long as the simulator runs, even after they
//! have expired. All randomness comes from [`SimConfig::seed`]; all time from the clock given to [`Sim::start`].

mod assertion;
mod call;
mod events;
mod export;
mod faults;
mod feed;
mod graph;
mod identity;
mod links;
mod queries;
mod server;
mod tenant;
mod token;
mod truth;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use assertion::FederatedCredential;
pub use events::Irregularity;
pub use export::{ExportFile, ExportForm, ExportSpec};
pub use faults::{CallKind, FaultPlan, FaultScript, Faults, Rate, SimFault};
pub use identity::MachineIdentity;
pub use queries::{GraphConfig, GraphVersions, QueryFate};
pub use token::aadsts_codes;
pub use truth::{Comparison, Delivered, Side, Truth, TruthEvent, TruthHuge};

use crate::clock::Clock;
use crate::model::{ContentType, TenantId, Timestamp};
use server::{RequestRecords, ServerState};
use tenant::SimState;
use token::Tokens;

/// The configuration of the simulated service. [`Sim::configure`] can change every field while it runs.
#[derive(Clone)]
pub struct SimConfig {
    /// The tenants it knows. Default: `11111111-2222-3333-4444-555555555555`.
    pub tenants: Vec<TenantId>,
    /// Verified domains, which the token endpoint accepts in place of a tenant's GUID.
    pub domains: Vec<(String, TenantId)>,
    /// The one application registered in every tenant.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Its certificates, DER. An assertion must name one of them and be signed by its key.
    pub certificates: Vec<Vec<u8>>,
    /// Its federated credential, if it has one.
    pub federated: Option<FederatedCredential>,
    /// The identity of the machine, if it has one: IMDS, App Service and Azure Arc issue its tokens.
    pub machine_identity: Option<MachineIdentity>,
    /// The AADSTS code with which every token request is refused.
    pub token_error: Option<u32>,
    /// Lifetime of a token, seconds. Default 4,500: Microsoft's mean.
    pub token_lifetime_secs: u64,
    /// The `roles` claim of new tokens for the feed. Default: `ActivityFeed.Read`, `ActivityFeed.ReadDlp`.
    pub roles: Vec<String>,
    /// Whether a tenant in the URL other than the token's is refused with AF20010; else the token decides.
    pub tenant_mismatch_refused: bool,
    /// Blobs on a page of a listing. Default 10.
    pub page_size: usize,
    /// A first page that covers this instant has an item more, which is an empty object.
    pub unreadable_item_at: Option<Timestamp>,
    /// The seed of all randomness. Must not be changed on a running simulator.
    pub seed: u64,
    /// How far the service's clock is ahead of the machine's, seconds; [`Sim::set_clock_offset`] changes it.
    pub clock_offset_secs: i64,
    /// Requests a minute for each (tenant, publisher), and for all callers without a publisher together.
    pub quota_per_minute: Option<u32>,
    /// How they are counted.
    pub quota_counts: QuotaCounts,
    /// HTTP status of AF429 when the quota is used up: 403 (as documented) or 429.
    pub throttle_status: u16,
    /// `Retry-After` of such an answer, seconds.
    pub throttle_retry_after_secs: Option<u64>,
    /// What becomes of windows of 24 hours and more.
    pub listing_span: ListingSpan,
    /// How old a window's start may be, seconds. Default 7 days.
    pub listing_age_max_secs: i64,
    /// The order of a listing.
    pub listing_order: ListingOrder,
    /// How the next page is named.
    pub next_page: NextPage,
    /// Scheme and host of `contentUri`, when not the simulator's own.
    pub content_uri_origin: Option<String>,
    /// Whether entries of `subscriptions/list` lack `status`, as in Microsoft's own sample.
    pub list_without_status: bool,
    /// The least time between two starts of one content type, seconds; 0 turns the rule off. Default 900.
    pub start_cooldown_secs: u64,
    /// For how long after a stop and a start content is refused with AF20023 although start said `enabled`, and
    /// the list stays empty; seconds.
    pub restart_sticks_secs: Option<u64>,
    /// Whether unified audit logging is on in the tenant; off makes start fail with "Tenant … does not exist".
    pub tenant_audit_on: bool,
    /// Another way start fails.
    pub start_failure: Option<StartFailure>,
    /// Days from `contentCreated` to `contentExpiration`, unless the blob defines it: 7 (documented) or 20 (observed).
    pub expiry_days: u32,
    /// Whether blobs are compressed for callers that accept it. Default true.
    pub gzip: bool,
    /// Microsoft Graph's audit search.
    pub graph: GraphConfig,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            tenants: "11111111-2222-3333-4444-555555555555".parse().into_iter().collect(),
            domains: Vec::new(),
            client_id: "aaaaaaaa-0000-4000-8000-00000000c11e".to_owned(),
            client_secret: "simulated~secret&with+odd%characters".to_owned(),
            certificates: Vec::new(),
            federated: None,
            machine_identity: None,
            token_error: None,
            token_lifetime_secs: 4_500,
            roles: vec!["ActivityFeed.Read".to_owned(), "ActivityFeed.ReadDlp".to_owned()],
            tenant_mismatch_refused: true,
            page_size: 10,
            unreadable_item_at: None,
            seed: 1,
            clock_offset_secs: 0,
            quota_per_minute: None,
            quota_counts: QuotaCounts::Sliding,
            throttle_status: 403,
            throttle_retry_after_secs: None,
            listing_span: ListingSpan::Inclusive,
            listing_age_max_secs: 7 * 86_400,
            listing_order: ListingOrder::Shuffled,
            next_page: NextPage::default(),
            content_uri_origin: None,
            list_without_status: false,
            start_cooldown_secs: 900,
            restart_sticks_secs: None,
            tenant_audit_on: true,
            start_failure: None,
            expiry_days: 7,
            gzip: true,
            graph: GraphConfig::default(),
        }
    }
}

/// Without the secret.
impl fmt::Debug for SimConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimConfig")
            .field("tenants", &self.tenants)
            .field("client_id", &self.client_id)
            .field("page_size", &self.page_size)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// How the requests of a minute are counted, which Microsoft does not document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QuotaCounts {
    /// This many in any 60 seconds.
    #[default]
    Sliding,
    /// This many in each minute of the machine's monotonic clock.
    FixedMinute,
    /// A bucket that holds a minute's worth and refills evenly.
    Bucket,
}

/// What becomes of windows of 24 hours and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingSpan {
    /// Exactly 24 hours is accepted, more is refused (as documented).
    Inclusive,
    /// Exactly 24 hours is also refused (as observed in 2026).
    Exclusive,
    /// More than 24 hours is answered 200 with the first 24 hours.
    Partial,
}

/// The order of a listing, over all its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingOrder {
    /// By `contentCreated`.
    Created,
    /// In a shuffled order (the same for every call).
    Shuffled,
}

/// How a listing names its next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextPage {
    /// The header's name on HTTP/1.1, eleven characters in any case: `NextPageUri`, `nextpageuri`, `NextPageUrl`.
    /// HTTP/2 has lower case only.
    pub header: String,
    /// `v1` (as in documented samples) or `v1.0`.
    pub api_version: String,
    /// `starttime` and `endtime` in place of `startTime` and `endTime`.
    pub lower_case_parameters: bool,
    /// Whether `PublisherIdentifier` is repeated. Default false.
    pub with_publisher: bool,
    /// Scheme and host of the link, when not the simulator's own.
    pub origin: Option<String>,
    /// Every link leads to an empty page first, which links on.
    pub empty_pages: bool,
    /// The second page names itself as the next.
    pub loops: bool,
    /// How long a link is valid, seconds; then AF20031.
    pub lifetime_secs: Option<u64>,
}

impl Default for NextPage {
    fn default() -> Self {
        Self {
            header: "NextPageUri".to_owned(),
            api_version: "v1".to_owned(),
            lower_case_parameters: false,
            with_publisher: false,
            origin: None,
            empty_pages: false,
            loops: false,
            lifetime_secs: None,
        }
    }
}

/// Why start fails, in the server-exception shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFailure {
    /// `DataServiceException: Tenant … does not exist.`: unified audit logging is off.
    AuditOff,
    /// `InvalidPropertyValueException: Tenant … has not been onboarded.`
    NotOnboarded,
    /// `… does not have a service principal for resource manage.office.com.`
    NoServicePrincipal,
}

/// The state of one content type's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubscriptionState {
    /// Never started: not in the list, content answers AF20022.
    #[default]
    Absent,
    /// Started.
    Enabled,
    /// Stopped, or disabled by an administrator: content answers AF20023. Content that becomes listable meanwhile can
    /// never be listed.
    Disabled,
}

/// A blob to be published.
#[derive(Debug, Clone, Default)]
pub struct NewBlob {
    /// `contentCreated`; cut to milliseconds.
    pub created: Timestamp,
    /// From when a listing shows it, by the simulator's clock; `None`: from `created`.
    pub listable_from: Option<Timestamp>,
    /// `contentExpiration`; `None`: [`SimConfig::expiry_days`] after `created`.
    pub expires: Option<Timestamp>,
    /// What a listing writes as `contentCreated`, whatever it is listed by; `None`: when it was created.
    pub listed_created: Option<String>,
    /// What a listing writes as `contentExpiration`, whatever the blob is served by; `None`: when it expires.
    pub listed_expiration: Option<String>,
    /// The events it holds, each the text of a JSON object. They enter the ledger of truth.
    pub events: Vec<Vec<u8>>,
    /// The body to serve in place of an array of `events`. The events still enter the ledger.
    pub body: Option<Vec<u8>>,
    /// A body of about this many bytes, generated while it is sent; `events` is not served then.
    pub huge_bytes: Option<u64>,
    /// `contentId`; `None`: a fresh one of the usual form.
    pub content_id: Option<String>,
}

impl NewBlob {
    /// An empty blob created at `created`.
    pub fn at(created: Timestamp) -> Self {
        Self { created, ..Self::default() }
    }

    /// A blob of about `bytes` bytes, never held in memory; its events are known to the truth by number.
    pub fn huge(created: Timestamp, bytes: u64) -> Self {
        Self { huge_bytes: Some(bytes), ..Self::at(created) }
    }

    /// With these events.
    pub fn with_events<E: Into<Vec<u8>>>(self, events: impl IntoIterator<Item = E>) -> Self {
        Self { events: events.into_iter().map(Into::into).collect(), ..self }
    }
}

/// The specification for [`Sim::generate`]. Rates are shares from 0 to 1.
#[derive(Debug, Clone)]
pub struct GenerateSpec {
    /// How many blobs, distributed over the content types in turn.
    pub blobs: usize,
    /// Events in each.
    pub events_per_blob: usize,
    /// The first instant of `contentCreated`.
    pub from: Timestamp,
    /// The end (excluded) of `contentCreated`.
    pub to: Timestamp,
    /// The content types; empty means all five.
    pub content_types: Vec<ContentType>,
    /// Blobs that become listable after their `contentCreated`.
    pub late_rate: f64,
    /// The maximum delay, seconds.
    pub late_by_max_secs: u64,
    /// Blobs with the same `contentCreated` as the one before.
    pub same_instant_rate: f64,
    /// Blobs without events (`[]`).
    pub empty_blob_rate: f64,
    /// Events that are copies of an earlier event of the same stream.
    pub copy_rate: f64,
    /// Copies with their fields in another order.
    pub reordered_share: f64,
    /// Events up to five days older than their blob (others: up to 90 minutes).
    pub old_event_rate: f64,
    /// Events in an irregular shape.
    pub irregular_rate: f64,
    /// Events that are reads of items, and matches of data loss prevention on the same items: reads in
    /// `Audit.SharePoint` and `Audit.Exchange`, matches in `DLP.All` and `Audit.General`. [`Truth::dropping`] knows
    /// which reads were matched.
    pub linked_rate: f64,
}

impl GenerateSpec {
    /// `blobs` blobs of `events_per_blob` events over `[from, to)`, in all five types, with some of every pattern of
    /// real tenants.
    pub fn new(blobs: usize, events_per_blob: usize, from: Timestamp, to: Timestamp) -> Self {
        Self {
            blobs,
            events_per_blob,
            from,
            to,
            content_types: Vec::new(),
            late_rate: 0.05,
            late_by_max_secs: 2 * 3_600,
            same_instant_rate: 0.05,
            // No public report mentions one.
            empty_blob_rate: 0.0,
            copy_rate: 0.02,
            reordered_share: 0.5,
            old_event_rate: 0.02,
            irregular_rate: 0.2,
            linked_rate: 0.0,
        }
    }
}

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLog {
    /// The kind of call.
    pub kind: CallKind,
    /// The tenant in the path.
    pub tenant: String,
    /// `contentType`, as sent.
    pub content_type: Option<String>,
    /// The blob requested.
    pub blob_id: Option<String>,
    /// `startTime`, as sent.
    pub start: Option<String>,
    /// `endTime`, as sent.
    pub end: Option<String>,
    /// `nextPage`, as sent.
    pub page: Option<String>,
    /// Whether `PublisherIdentifier` was sent.
    pub had_publisher: bool,
    /// Whether a bearer token was sent.
    pub had_token: bool,
    /// The resource of the token that was sent, or requested here.
    pub resource: Option<String>,
    /// When it was answered, by the simulator's clock.
    pub at: Timestamp,
    /// The same by the monotonic clock.
    pub monotonic: Duration,
    /// HTTP status; 0 for a reset.
    pub status: u16,
    /// The fault that struck, by [`SimFault::name`].
    pub fault: Option<&'static str>,
    /// Whether it came over HTTP/2.
    pub http2: bool,
    /// The connection it came on, counted from 1 in the order they were accepted.
    pub connection: u64,
}

/// Counts over the simulator's whole life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests by kind.
    pub requests: BTreeMap<CallKind, u64>,
    /// Requests of the feed that lacked `PublisherIdentifier`, by kind.
    pub without_publisher: BTreeMap<CallKind, u64>,
    /// Answers by HTTP status; 0 for a reset.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections accepted.
    pub connections: u64,
}

/// An address that a client on this machine can connect to: a client cannot connect to the unspecified address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The running simulator. Clones share it; dropping the last one stops it.
#[derive(Clone)]
pub struct Sim {
    running: Arc<RunningSim>,
}

struct RunningSim {
    shared: Arc<ServerState>,
    address: SocketAddr,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for RunningSim {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sim({})", self.url())
    }
}

impl Sim {
    /// Starts on a free loopback port, on the calling runtime.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(config: SimConfig, clock: Arc<dyn Clock>) -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), config, clock).await
    }

    /// Starts on an address, on the calling runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_on(address: SocketAddr, config: SimConfig, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ServerState {
            clock,
            offset_secs: AtomicI64::new(config.clock_offset_secs),
            faults: Faults::new(config.seed),
            state: Mutex::new((SimState::new(config), Tokens::default())),
            log: Mutex::new(RequestRecords::default()),
            in_flight: AtomicUsize::new(0),
            activity: AtomicU64::new(0),
            cancel: CancellationToken::new(),
            streams: TaskTracker::new(),
            url: format!("http://{}", reachable(address)),
            everywhere: address.ip().is_unspecified(),
        });
        let server = tokio::spawn(server::serve(listener, shared.clone()));
        Ok(Self { running: Arc::new(RunningSim { shared, address, server: Mutex::new(Some(server)) }) })
    }

    /// `http://127.0.0.1:PORT`, or the address it was started on: both the authority and the API.
    pub fn url(&self) -> String {
        self.shared().url.clone()
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// Stops listening, aborts the answers in progress, and waits for every task to end. The truth, the log and the
    /// counters stay readable.
    pub async fn stop(&self) {
        self.shared().cancel.cancel();
        let server = self.running.server.lock().take();
        if let Some(server) = server {
            let _ = server.await;
        }
    }

    /// The simulator's own time: its clock's, plus the offset.
    pub fn now(&self) -> Timestamp {
        self.shared().now()
    }

    /// Changes the configuration of the running service.
    pub fn configure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.shared().lock().0.config);
    }

    /// Publishes a blob; returns its `contentId`.
    pub fn add_blob(&self, tenant: &TenantId, content_type: ContentType, blob: NewBlob) -> String {
        self.shared().lock().0.add_blob(tenant, content_type, blob).to_string()
    }

    /// Makes and publishes blobs; returns their ids, in the order made.
    pub fn generate(&self, tenant: &TenantId, spec: GenerateSpec) -> Vec<String> {
        self.shared().lock().0.generate(tenant, &spec).iter().map(ToString::to_string).collect()
    }

    /// The present export of the tenant's audit search.
    pub fn export(&self, tenant: &TenantId, spec: &ExportSpec) -> Vec<ExportFile> {
        let now = self.now();
        let rows = self.shared().lock().0.search(tenant, spec, now);
        export::write(rows, tenant, spec)
    }

    /// A fault: withholds `count` events from the feed or from the audit search, chosen by `seed`; returns their ids.
    /// From the feed, only events that no client has read yet are certainly withheld.
    pub fn withhold(&self, tenant: &TenantId, side: Side, count: usize, seed: u64) -> Vec<String> {
        self.withhold_of(tenant, (side, count, seed), &|_| true)
    }

    /// The same, for the events for which `may` is true.
    pub fn withhold_of(
        &self,
        tenant: &TenantId,
        (side, count, seed): (Side, usize, u64),
        may: &dyn Fn(&[u8]) -> bool,
    ) -> Vec<String> {
        let ids = self.shared().lock().0.withhold(tenant, (side, count, seed), may);
        ids.iter().map(ToString::to_string).collect()
    }

    /// The faults to come.
    pub fn faults(&self) -> &Faults {
        &self.shared().faults
    }

    /// Replaces the faults to come.
    pub fn set_faults(&self, plan: FaultPlan) {
        self.shared().faults.set(plan);
    }

    /// Sets how far the simulator's clock is ahead of the one it was given, seconds.
    pub fn set_clock_offset(&self, secs: i64) {
        self.shared().offset_secs.store(secs, Ordering::Relaxed);
    }

    /// Makes every token issued so far worthless.
    pub fn revoke_tokens(&self) {
        self.shared().lock().1.revoke_all();
    }

    /// Sets the roles of tokens issued from now on.
    pub fn set_roles<R: Into<String>>(&self, roles: impl IntoIterator<Item = R>) {
        let roles = roles.into_iter().map(Into::into).collect();
        self.configure(|config| config.roles = roles);
    }

    /// Sets a subscription as an administrator would; this does not count for the 15-minute rule.
    pub fn set_subscription(&self, tenant: &TenantId, content_type: ContentType, state: SubscriptionState) {
        let now = self.now();
        self.shared().lock().0.stream(tenant, content_type).subscription.set(state, now);
    }

    /// The state of a subscription.
    pub fn subscription(&self, tenant: &TenantId, content_type: ContentType) -> SubscriptionState {
        self.shared().lock().0.stream(tenant, content_type).subscription.state
    }

    /// How many requests are being answered now, including bodies in transfer.
    pub fn in_flight(&self) -> usize {
        self.shared().in_flight.load(Ordering::Acquire)
    }

    /// Grows with every request that begins, every piece of a body sent and every answer that ends.
    pub fn activity(&self) -> u64 {
        self.shared().activity.load(Ordering::Relaxed)
    }

    /// A copy of the ledger of truth, judged at the simulator's present time.
    pub fn truth(&self) -> Truth {
        let now = self.now();
        self.shared().lock().0.truth(now)
    }

    /// The last requests (at most 100,000), oldest first.
    pub fn requests(&self) -> Vec<RequestLog> {
        VecDeque::clone(&self.shared().log().requests).into()
    }

    /// Counts over all requests.
    pub fn counters(&self) -> Counters {
        self.shared().log().counters.clone()
    }

    fn shared(&self) -> &ServerState {
        &self.running.shared
    }
}
