//! The source: what a host runs, and the `m365_audit` source itself, built from its configuration.
//!
//! [`Source`] is all an agent needs to manage a source; [`M365Audit`] is the one of this crate. Inside, [`tenant`]
//! holds the one loop, and `decisions` its decisions; [`listing`] lists blobs, [`fetch`] fetches them, [`deliver`]
//! delivers their records, [`aside`] offers rejected records again, [`subscription`] keeps the feed on, [`health`]
//! reports faults, [`hold`] indexes routine reads that data loss prevention may still flag, [`release`] delivers or
//! drops them, [`backfill`] reads a range again on request (through the [`backfill_requests`]), [`heal`] fills gaps through
//! Microsoft Graph, [`budget`] bounds memory, [`fleet`] holds the resources that the sources of one process share, and
//! `turns` decides which of them may read. None of them knows a host by name or Microsoft's wire format.

pub mod aside;
pub mod backfill;
pub mod backfill_requests;
mod batch_receipts;
mod body;
pub mod budget;
pub mod check;
pub mod checkpoints;
pub mod context;
mod decisions;
pub mod deliver;
mod downloads;
pub mod error;
pub mod estimate;
pub mod fetch;
pub mod fleet;
mod gap;
pub mod heal;
pub mod health;
pub mod hold;
pub mod job;
pub mod listing;
mod opening;
pub mod parts;
mod pauses;
mod reading;
pub mod release;
pub mod report;
pub mod requests;
pub mod server_time;
pub mod slow_store;
mod stream;
pub mod subscription;
mod tasks;
pub mod tenant;
mod turns;
mod twin;
mod unsettled;
mod welcome;

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use jiff::SignedDuration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::api::{ARC_KEY_DIR, ApiClient, ApiSettings, CertificateFiles, ManagedIdentity};
use crate::auth::{Credential, EndpointVersion};
use crate::checkpoint::journal::Keeping;
use crate::clock::Clock;
use crate::config::{self, AuthMethod, Problem, SourceConfig};
use crate::host::{Health, Host};
use crate::model::Actionable;
use crate::normalise::{Mask, Normaliser, NormaliserSettings};
use backfill_requests::{BackfillError, BackfillQueue};
pub use error::{FaultKind, SourceError, fault_kind};
use fleet::Fleet;
pub use report::Report;
pub use server_time::ServerTime;

/// How often an unreadable file is tried again.
const FILE_RETRY: Duration = Duration::from_secs(30);

/// The name of the source's type in a configuration.
pub const TYPE_NAME: &str = "m365_audit";

/// A source, as any host runs and manages it.
#[async_trait]
pub trait Source: Send + Sync {
    /// The source's name in the configuration (`contoso` of `[sources.contoso]`).
    fn name(&self) -> &str;

    /// JSON Schema of the source's configuration.
    fn config_schema(&self) -> serde_json::Value;

    /// Problems of the configuration that need no network to be found; empty when it can work.
    fn validate(&self) -> Vec<Problem>;

    /// Tests the connection and changes nothing. One entry per step; later steps that need a failed one are left out.
    async fn check(&self) -> Vec<CheckStep>;

    /// Runs until `shutdown`, or until a single pass is done when the source was made for one.
    ///
    /// # Errors
    /// When it cannot go on at all: state that cannot be used, or (single pass) sign-in that fails.
    async fn run(self: Box<Self>, host: Arc<dyn Host>, shutdown: CancellationToken) -> Result<Report, SourceError>;
}

/// One step of a connection test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckStep {
    /// What was tried.
    pub what: String,
    /// Its result, or the fault.
    pub result: Result<String, CheckFault>,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFault {
    /// Names the cause; also the page under `docs/errors/`.
    pub slug: String,
    /// The cause in a few words.
    pub summary: String,
    /// The cause in full detail.
    pub cause: String,
    /// The remedy.
    pub remedy: String,
    /// What kind of fault.
    pub kind: FaultKind,
}

/// The Microsoft 365 audit source of one tenant.
pub struct M365Audit {
    name: Arc<str>,
    config: SourceConfig,
    clock: Arc<dyn Clock>,
    once: bool,
    backfill_queue: Option<BackfillQueue>,
    heal_queue: Option<heal::requests::HealQueue>,
    heal_pages_max: Option<u32>,
    retries: Option<mpsc::Receiver<aside::RetryRequest>>,
    receipts: Option<Keeping>,
    fleet: Fleet,
}

impl fmt::Debug for M365Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "M365Audit({}, tenant {})", self.name, self.config.tenant_id)
    }
}

impl M365Audit {
    /// A source that runs on until it is stopped.
    pub fn new(name: impl Into<Arc<str>>, config: SourceConfig, clock: Arc<dyn Clock>) -> Self {
        let name = name.into();
        Self {
            name,
            config,
            clock,
            once: false,
            backfill_queue: None,
            heal_queue: None,
            heal_pages_max: None,
            retries: None,
            receipts: None,
            fleet: Fleet::new(),
        }
    }

    /// The same source as one of many in a process: it shares their connections and begins when its turn comes. A single
    /// pass does not wait: it ends when the last of them ends.
    pub fn in_fleet(self, fleet: &Fleet) -> Self {
        Self { fleet: fleet.clone(), ..self }
    }

    /// The same source, which takes requests for back-fills from `backfill_requests` while it runs.
    #[doc(hidden)]
    pub fn with_backfill_queue(self, backfill_queue: BackfillQueue) -> Self {
        Self { backfill_queue: Some(backfill_queue), ..self }
    }

    /// The same source, which rejects an answer of Microsoft Graph with more pages than this. For tests: the usual
    /// bound takes minutes to reach.
    #[doc(hidden)]
    pub fn with_heal_pages_max(self, pages: u32) -> Self {
        Self { heal_pages_max: Some(pages), ..self }
    }

    /// The same source, which takes requests to fill ranges through Microsoft Graph from `backfill_requests` while it runs.
    #[doc(hidden)]
    pub fn with_heal_queue(self, backfill_queue: heal::requests::HealQueue) -> Self {
        Self { heal_queue: Some(backfill_queue), ..self }
    }

    /// The same source, which offers the records it has set aside to the host again when `retries` asks for it.
    #[doc(hidden)]
    pub fn with_retries(self, retries: mpsc::Receiver<aside::RetryRequest>) -> Self {
        Self { retries: Some(retries), ..self }
    }

    /// The same source, which keeps a receipt of the outcome of each event.
    #[doc(hidden)]
    pub fn with_receipts(self, receipts: Keeping) -> Self {
        Self { receipts: Some(receipts), ..self }
    }

    /// Runs one back-fill without the loop: for when no process runs the source.
    ///
    /// # Errors
    /// When the range cannot be read, the state cannot be used, or Microsoft cannot be asked.
    #[doc(hidden)]
    pub async fn backfill(
        self,
        host: Arc<dyn Host>,
        asked: backfill::BackfillRequest,
    ) -> Result<backfill::BackfillResult, BackfillError> {
        let server = ServerTime::new(self.clock.clone());
        let api = self.client(&server)?;
        let parts = self.parts(api, server, host)?;
        backfill::alone(parts, asked).await
    }

    /// Fills one range through Microsoft Graph without the loop: for when no process runs the source.
    ///
    /// # Errors
    /// When the range cannot be filled, the state cannot be used, or Microsoft cannot be asked.
    #[doc(hidden)]
    pub async fn heal(
        self,
        host: Arc<dyn Host>,
        asked: heal::requests::HealRequest,
    ) -> Result<heal::requests::HealResult, heal::requests::HealError> {
        let server = ServerTime::new(self.clock.clone());
        let api = self.client(&server)?;
        let parts = self.parts(api, server, host)?;
        heal::alone(parts, asked).await
    }

    /// The same source for a single pass from its origin.
    pub fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// The feed's client, with its answers' dates going to `server`.
    ///
    /// # Errors
    /// When the client cannot be made: a CA file that cannot be read, an invalid proxy.
    #[doc(hidden)]
    pub fn client(&self, server: &ServerTime) -> Result<ApiClient, SourceError> {
        let settings = api_settings(&self.config)?;
        let observer = server.clone();
        let tenant = self.config.tenant_id.clone();
        let observe = move |date| {
            // The observer logs a doubtful date without knowing the tenant, so the span adds it.
            tracing::warn_span!("observe", %tenant).in_scope(|| observer.observe(date));
        };
        ApiClient::with_date_observer(settings, self.clock.clone(), Arc::new(observe), self.fleet.connections())
            .map_err(|source| SourceError::Api { source: Box::new(source) })
    }

    /// The client, waiting for a file it needs (a CA file on a volume that is not there yet) as long as it takes; a single
    /// pass does not wait. `None` at `shutdown`.
    async fn client_when_possible(
        &self,
        server: &ServerTime,
        host: &dyn Host,
        shutdown: &CancellationToken,
    ) -> Result<Option<ApiClient>, SourceError> {
        let mut logged = None;
        loop {
            let error = match self.client(server) {
                Ok(api) => {
                    if logged.is_some() {
                        health::show(host, &self.name, &self.config.tenant_id, Health::Healthy);
                    }
                    return Ok(Some(api));
                }
                Err(error @ SourceError::File { .. }) if !self.once => error,
                Err(error) => return Err(error),
            };
            let why = format!("{}: {error} (hint: {})", error.slug(), error.hint());
            if logged.as_ref() != Some(&why) {
                tracing::error!(source = %self.name, tenant = %self.config.tenant_id, "{why}");
                health::show(host, &self.name, &self.config.tenant_id, Health::Failed { why: why.clone() });
                logged = Some(why);
            }
            tokio::select! {
                () = self.clock.sleep(FILE_RETRY) => {}
                () = shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// The configuration.
    pub fn config(&self) -> &SourceConfig {
        &self.config
    }

    /// The clock.
    #[doc(hidden)]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

#[async_trait]
impl Source for M365Audit {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_schema(&self) -> serde_json::Value {
        config::source_schema()
    }

    fn validate(&self) -> Vec<Problem> {
        // A `SourceConfig` exists only once its text was found to be without problems; what can change afterwards are
        // the files it names.
        let problem = |key: &str, path: &std::path::Path, error: std::io::Error| Problem {
            key: format!("sources.{}.{key}", self.name),
            line: None,
            file: None,
            fault: config::Fault::Invalid,
            value: Some(path.display().to_string()),
            expected: format!("a file that can be read ({error})"),
            hint: Some("check that it exists and that this user may read it".into()),
        };
        let secret = self.config.client_secret_file.as_deref().zip(self.config.read_secret().err());
        let ca = self.config.ca_file.as_deref().and_then(|path| Some((path, std::fs::read(path).err()?)));
        let secret = secret.map(|(path, error)| problem("client_secret_file", path, error));
        let ca = ca.map(|(path, error)| problem("ca_file", path, error));
        secret.into_iter().chain(ca).collect()
    }

    async fn check(&self) -> Vec<CheckStep> {
        check::check(self, None).await
    }

    async fn run(self: Box<Self>, host: Arc<dyn Host>, shutdown: CancellationToken) -> Result<Report, SourceError> {
        let (name, tenant) = (self.name.clone(), self.config.tenant_id.clone());
        crate::metrics::source_begun(&name, &tenant);
        // A panic ends this source alone, and is told as what else may end one.
        let result = AssertUnwindSafe(self.run_to_the_end(host.clone(), shutdown)).catch_unwind().await;
        let result =
            result.unwrap_or_else(|panic| Err(SourceError::Internal(format!("a panic: {}", words_of(&*panic)))));
        crate::metrics::source_ended(&tenant);
        if let Err(error) = &result {
            // Whatever ended it, no process reads the tenant any more, so the metric must not show it as healthy.
            let why = format!("{}: {error} (hint: {})", error.slug(), error.hint());
            health::show(&*host, &name, &tenant, Health::Failed { why });
        }
        result
    }
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

impl M365Audit {
    async fn run_to_the_end(
        self: Box<Self>,
        host: Arc<dyn Host>,
        shutdown: CancellationToken,
    ) -> Result<Report, SourceError> {
        if !self.once {
            let wait = self.fleet.turn(self.clock.monotonic());
            if !wait.is_zero() {
                tokio::select! {
                    () = self.clock.sleep(wait) => {}
                    () = shutdown.cancelled() => return Ok(Report::default()),
                }
            }
        }
        let server = ServerTime::new(self.clock.clone());
        let Some(api) = Box::pin(self.client_when_possible(&server, &*host, &shutdown)).await? else {
            return Ok(Report::default());
        };
        tenant::run(self.into_parts(api, server, host)?, shutdown).await
    }

    /// Frees the memory of the source itself, which the run would otherwise hold to its end.
    fn into_parts(
        self: Box<Self>,
        api: ApiClient,
        server: ServerTime,
        host: Arc<dyn Host>,
    ) -> Result<Box<parts::TenantParts>, SourceError> {
        (*self).parts(api, server, host).map(Box::new)
    }

    /// How its records are made.
    fn settings(&self) -> Result<NormaliserSettings, SourceError> {
        let config = &self.config;
        let rules = config.severity.load().map_err(|source| SourceError::Rules { name: self.name.clone(), source })?;
        let mask = Mask::new(config.mask_detected_values, &config.mask);
        Ok(NormaliserSettings {
            format: config.format,
            raw: config.raw,
            ocsf_version: config.ocsf_version,
            ecs_profile: config.ecs_profile,
            drop_routine: config.drop_routine,
            internal_domains: config.internal_domains.clone(),
            rules,
            mask: mask.map_err(|error| SourceError::Internal(format!("`mask`: {error}")))?,
        })
    }

    fn parts(self, api: ApiClient, server: ServerTime, host: Arc<dyn Host>) -> Result<parts::TenantParts, SourceError> {
        let normaliser = Normaliser::new(self.settings()?);
        let config = &self.config;
        let seconds = |n: u64| SignedDuration::from_secs(i64::try_from(n).unwrap_or(i64::MAX));
        Ok(parts::TenantParts {
            source: self.name.clone(),
            tenant: config.tenant_id.clone(),
            content_types: config.content_types.clone(),
            api,
            server,
            normaliser: Arc::new(normaliser),
            host,
            clock: self.clock.clone(),
            pool: self.fleet.pool().clone(),
            turns: self.fleet.turns().clone(),
            poll_interval: Duration::from_secs(config.poll_interval_secs),
            overlap: seconds(config.overlap_secs),
            backfill: seconds(config.backfill_secs),
            in_flight_bytes_max: config.in_flight_bytes_max,
            event_keys_max: config.event_keys_max,
            receipts: self.receipts,
            max_requests_per_minute: config.max_requests_per_minute,
            hold: hold::HoldSettings {
                tenant: config.tenant_id.clone(),
                dropping: config.drop_routine,
                hold: seconds(config.hold_secs),
                bytes_max: config.hold_bytes_max,
                flags_max: config.dlp_flags_max,
                flag_age: seconds(config.dlp_flag_secs),
            },
            once: self.once,
            heal: heal::requests::HealSettings {
                gaps: config.heal.graph,
                query_wait: Duration::from_secs(config.heal.query_wait_secs),
                pages_max: self.heal_pages_max.unwrap_or(heal::PAGES_MAX),
                without_search: (!config.cloud.has_audit_search()).then(|| config.cloud.as_str().to_owned()),
            },
            heal_queue: self.heal_queue,
            backfill_queue: self.backfill_queue,
            retries: self.retries,
        })
    }
}

fn api_settings(config: &SourceConfig) -> Result<ApiSettings, SourceError> {
    let url = |text: &str| Url::parse(text).map_err(|e| SourceError::Internal(format!("`{text}`: {e}")));
    let read = |key: &'static str, path: &std::path::Path| {
        std::fs::read(path).map_err(|error| SourceError::File { key, path: path.to_owned(), why: error.to_string() })
    };
    let ca_pem = config.ca_file.as_deref().map(|path| read("ca_file", path)).transpose()?;
    let proxy_client_pem = match (&config.proxy_certificate_file, &config.proxy_key_file) {
        (None, _) => None,
        (Some(certificate), None) => Some(read("proxy_certificate_file", certificate)?),
        (Some(certificate), Some(key)) => {
            let certificate = read("proxy_certificate_file", certificate)?;
            Some([certificate, b"\n".to_vec(), read("proxy_key_file", key)?].concat())
        }
    };
    Ok(ApiSettings {
        tenant: config.tenant_id.clone(),
        api_url: url(&config.api_origin())?,
        graph_url: url(&config.graph_origin())?,
        cloud: config.cloud,
        authority_url: url(&config.authority_origin())?,
        audience: config.token_audience().to_owned(),
        token_endpoint: match config.token_endpoint {
            config::TokenEndpoint::V2 => EndpointVersion::V2,
            config::TokenEndpoint::V1 => EndpointVersion::V1,
        },
        client_id: config.client_id.clone().unwrap_or_default(),
        credential: credential(config)?,
        assertion_audience: config.assertion_audience.clone(),
        secret_expires: config.secret_expires().filter(|_| config.auth == AuthMethod::ClientSecret),
        publisher_identifier: config.publisher().to_owned(),
        max_requests_per_minute: config.max_requests_per_minute,
        connect_timeout: Duration::from_secs(config.connect_timeout_secs),
        read_timeout: Duration::from_secs(config.request_timeout_secs),
        ca_pem,
        proxy_url: config.proxy_url.clone(),
        no_proxy: config.no_proxy.as_ref().map(|hosts| hosts.join(",")),
        proxy_client_pem,
    })
}

/// The one credential the configuration chose.
fn credential(config: &SourceConfig) -> Result<Credential, SourceError> {
    let missing = |key: &str| SourceError::Internal(format!("`{key}` is not configured"));
    Ok(match config.auth {
        AuthMethod::ClientSecret => match (&config.client_secret, &config.client_secret_file) {
            (Some(secret), _) => Credential::Secret(secret.clone()),
            (None, Some(path)) => Credential::SecretFile(path.clone()),
            (None, None) => return Err(missing("client_secret")),
        },
        AuthMethod::Certificate => {
            Credential::Certificate(Box::new(certificate_files(config).ok_or_else(|| missing("certificate_file"))?))
        }
        AuthMethod::FederatedToken => {
            let path = config.federated_token_file.clone().ok_or_else(|| missing("federated_token_file"))?;
            Credential::FederatedToken(path)
        }
        AuthMethod::ManagedIdentity => {
            let url = config.managed_identity_url();
            Credential::ManagedIdentity(Box::new(ManagedIdentity {
                host: config.managed_identity_host,
                url: Url::parse(url).map_err(|error| SourceError::Internal(format!("`{url}`: {error}")))?,
                header: config.managed_identity_header.clone(),
                client_id: config.client_id.clone(),
                arc_key_dir: ARC_KEY_DIR.into(),
            }))
        }
    })
}

/// The client certificate's files, when that is how to sign in.
fn certificate_files(config: &SourceConfig) -> Option<CertificateFiles> {
    if config.auth != AuthMethod::Certificate {
        return None;
    }
    Some(CertificateFiles {
        certificate_file: config.certificate_file.clone()?,
        key_file: config.key_file.clone(),
        key_passphrase: config.key_passphrase.clone(),
        key_passphrase_file: config.key_passphrase_file.clone(),
        algorithm: config.assertion_algorithm,
    })
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::clock::TestClock;
    use crate::host::{Batch, DeliveryTicket, StateStore};

    /// A host with a fault of its own.
    struct Broken(Mutex<Vec<Health>>);

    #[async_trait]
    impl Host for Broken {
        async fn deliver(&self, _: Batch) -> DeliveryTicket {
            panic!("nothing is delivered")
        }

        fn state(&self) -> Arc<dyn StateStore> {
            panic!("the disk fell out")
        }

        fn health(&self, _: &str, health: Health) {
            self.0.lock().push(health);
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_source_as_an_error_and_is_shown() {
        let id = "00000000-0000-4000-8000-000000000001";
        let config =
            SourceConfig::builder().tenant_id(id).client_id(id).client_secret("a secret of some length").build();
        let clock = Arc::new(TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let source = Box::new(M365Audit::new("contoso", config.unwrap(), clock));
        let host = Arc::new(Broken(Mutex::default()));
        let error = source.run(host.clone(), CancellationToken::new()).await.unwrap_err();
        assert_eq!(
            (error.slug(), error.to_string().as_str()),
            ("internal", "internal error: a panic: the disk fell out")
        );
        let last = host.0.lock().last().cloned();
        assert!(matches!(&last, Some(Health::Failed { why }) if why.contains("the disk fell out")), "{last:?}");
    }
}
