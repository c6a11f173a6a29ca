//! `type = "m365_audit"`: the configuration of one tenant's feed.
//!
//! Every key's type, default, range, example and text is declared here and nowhere else: the checker, the JSON
//! Schema, `plugin.toml` and `docs/configuration.md` are all derived from [`SourceConfig`].

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_with::{DeserializeAs, DisplayFromStr, SerializeAs, serde_as};
use url::Url;
use zeroize::Zeroizing;

use super::heal::HealConfig;
use super::record::{EcsProfile, Format, OcsfVersion, RawForm};
use super::secret::Secret;
use super::severity::SeverityConfig;
use crate::model::{ContentType, NotAGuid, TenantId, Timestamp, is_guid};

/// The value of `type` of a source, and this source's name to every host.
pub const SOURCE_TYPE: &str = "m365_audit";

/// Microsoft keeps content for seven days; older content cannot be listed.
const RETENTION_SECS: u64 = 7 * 24 * 60 * 60;

/// One tenant's audit log: which tenant, how to sign in, what to read and how fast.
#[serde_as]
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct SourceConfig {
    /// The tenant's directory id. A domain name is not accepted: the API takes only the GUID.
    #[serde_as(as = "DisplayFromStr")]
    #[schemars(
        with = "String",
        extend("format" = "uuid", "x-hint" = "Entra admin centre > Overview > Tenant ID"),
        example = &"7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55"
    )]
    pub tenant_id: TenantId,

    /// The application (client) id of the app registration that was granted `ActivityFeed.Read`.
    /// With `auth = "managed_identity"`: the client id of a user-assigned identity, or nothing for the system-assigned one.
    #[serde(default)]
    #[schemars(
        with = "String",
        length(min = 1),
        extend("x-pasted-id" = true, "x-expected" = "the application's client id, a GUID", "x-hint" = "Entra admin centre > App registrations > Application (client) ID"),
        example = &"c0ffee00-1111-4222-8333-444455556666"
    )]
    pub client_id: Option<String>,

    /// How to sign in. Only this method is tried, without guesses and fallbacks.
    #[serde(default)]
    #[schemars(example = &"certificate")]
    pub auth: AuthMethod,

    /// The application's client secret: its value, not its id. Write `${NAME}` and keep the value in the
    /// environment, or use `client_secret_file`; `auth = "client_secret"` needs exactly one of the two.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1),
        extend("format" = "password", "writeOnly" = true, "x-entra-secret" = true), example = &"${M365_CLIENT_SECRET}")]
    pub client_secret: Option<Secret>,

    /// A file that holds the client secret, alone; blanks around it are ignored. It is read again when it changes.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/client_secret")]
    pub client_secret_file: Option<PathBuf>,

    /// When the client secret expires, as Entra showed it when the secret was created. There is no other way to know
    /// it. With this key, a log line a day, `check` and `m365_audit_credential_expiry_timestamp_seconds` warn from 30
    /// days before.
    #[serde_as(as = "Option<DisplayFromStr>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "date", "x-expected" = "a date such as `2027-01-31`"), example = &"2027-01-31")]
    pub client_secret_expires: Option<jiff::civil::Date>,

    /// The client certificate of `auth = "certificate"`: PEM (alone, or with its key), or PFX (PKCS#12). An RSA key of
    /// 2048 to 4096 bits. It is read again for each sign-in, so a replaced file takes effect without a restart, and its
    /// expiry is reported from 30 days before.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/client.pem")]
    pub certificate_file: Option<PathBuf>,

    /// The PEM file of the certificate's key, when it is not in `certificate_file`.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/client.key")]
    pub key_file: Option<PathBuf>,

    /// The passphrase of an encrypted key or a PFX.
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "password", "writeOnly" = true), example = &"${M365_KEY_PASSPHRASE}")]
    pub key_passphrase: Option<Secret>,

    /// A file that holds only the passphrase.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/key_passphrase")]
    pub key_passphrase_file: Option<PathBuf>,

    /// How the certificate's key signs.
    #[serde(default)]
    #[schemars(example = &"rs256")]
    pub assertion_algorithm: AssertionAlgorithm,

    /// The audience of the certificate's assertion. Default: the address of the token end point in use. Needed if
    /// `authority_url` is a proxy in front of Microsoft's.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"https://login.microsoftonline.com/7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55/oauth2/v2.0/token")]
    pub assertion_audience: Option<String>,

    /// The token of an outside issuer for `auth = "federated_token"` (workload identity federation). Its issuer
    /// replaces the file; it is read again for each sign-in. Kubernetes with Azure Workload Identity puts its path into
    /// the environment: write `${AZURE_FEDERATED_TOKEN_FILE}`, and `${AZURE_CLIENT_ID}`, `${AZURE_TENANT_ID}` likewise.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"${AZURE_FEDERATED_TOKEN_FILE}")]
    pub federated_token_file: Option<PathBuf>,

    /// Where the tokens of `auth = "managed_identity"` come from. The protocol is tested against the simulated tenant,
    /// not on Azure.
    #[serde(default)]
    #[schemars(example = &"app_service")]
    pub managed_identity_host: IdentityHost,

    /// The end point's address. `imds` has a default; for the others it is in the environment: write
    /// `${IDENTITY_ENDPOINT}`.
    #[serde_as(as = "Option<DisplayFromStr>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "uri"), example = &"${IDENTITY_ENDPOINT}")]
    pub managed_identity_url: Option<Url>,

    /// The value that `app_service` expects in `X-IDENTITY-HEADER`: write `${IDENTITY_HEADER}`.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1),
        extend("format" = "password", "writeOnly" = true), example = &"${IDENTITY_HEADER}")]
    pub managed_identity_header: Option<Secret>,

    /// The content types to read. `DLP.All` needs the permission `ActivityFeed.ReadDlp` beside `ActivityFeed.Read`;
    /// without it that one type is parked and the others continue.
    #[serde_as(as = "Vec<DisplayFromStr>")]
    #[serde(default = "default_content_types")]
    #[schemars(schema_with = "content_types_schema")]
    pub content_types: Vec<ContentType>,

    /// Which of Microsoft's clouds the tenant lives in. Sets the API host, the authority and the token's audience.
    #[serde(default)]
    #[schemars(example = &"gcc_high")]
    pub cloud: Cloud,

    /// Which token endpoint of the authority to use.
    #[serde(default)]
    #[schemars(example = &"v1")]
    pub token_endpoint: TokenEndpoint,

    /// Seconds between two listings of a content type.
    #[serde(default = "default_poll_interval_secs")]
    #[schemars(range(min = 1, max = 86400), example = 60)]
    pub poll_interval_secs: u64,

    /// How far before the first start to read, in seconds. Microsoft keeps content for 7 days.
    #[serde(default = "default_backfill_secs")]
    #[schemars(range(min = 0, max = RETENTION_SECS), example = 604800)]
    pub backfill_secs: u64,

    /// How far before the position each poll lists again, in seconds, to find content that became available late.
    #[serde(default = "default_overlap_secs")]
    #[schemars(range(min = 0, max = 86400), example = 21600)]
    pub overlap_secs: u64,

    /// The shape of a record.
    #[serde(default)]
    #[schemars(example = &"raw")]
    pub format: Format,

    /// The version of `format = "ocsf"`.
    #[serde(default)]
    #[schemars(example = &"1.1.0")]
    pub ocsf_version: OcsfVersion,

    /// The field names of records of `format = "ecs"`.
    #[serde(default)]
    #[schemars(example = &"elastic-o365")]
    pub ecs_profile: EcsProfile,

    /// The form of the original event inside a record of `format = "native"`. The other formats have their own text
    /// member for it; `none` leaves that out, too.
    #[serde(default)]
    #[schemars(example = &"string")]
    pub raw: RawForm,

    /// Leave out routine events (file reads and mailbox item reads) unless data loss prevention has flagged the item,
    /// before or after it was read: see `hold_secs`. Dropped events are counted in `m365_audit_dropped_events_total`.
    #[serde(default = "default_drop_routine")]
    #[schemars(example = false)]
    pub drop_routine: bool,

    /// Keep a routine read on disk until `DLP.All` and `Audit.General` are complete this many seconds past the time it
    /// was made available, and deliver it if data loss prevention flags the item until then. There is no upper limit on
    /// the wait. A type that is not in `content_types`, or whose permission is missing, is not waited for.
    #[serde(default = "default_hold_secs")]
    #[schemars(range(min = 0, max = RETENTION_SECS), example = 7200)]
    pub hold_secs: u64,

    /// Bytes of routine reads held this way, compressed. Above it the oldest are delivered, marked `dlp.undetermined`.
    #[serde(default = "default_hold_bytes_max")]
    #[schemars(range(min = 65_536, max = 1_099_511_627_776_u64), example = 1073741824)]
    pub hold_bytes_max: u64,

    /// How long a file or a message counts as flagged after data loss prevention matched it last, in seconds.
    #[serde(default = "default_dlp_flag_secs")]
    #[schemars(range(min = 3600, max = 31_536_000), example = 7776000)]
    pub dlp_flag_secs: u64,

    /// Flagged files, addresses and messages remembered (a file takes two). Above this number the oldest flags are
    /// removed, and a warning reports it.
    #[serde(default = "default_dlp_flags_max")]
    #[schemars(range(min = 1000, max = 10_000_000), example = 1000000)]
    pub dlp_flags_max: u64,

    /// The organisation's own mail domains, for rules that distinguish internal from external.
    #[serde(default)]
    #[schemars(schema_with = "internal_domains_schema")]
    pub internal_domains: Vec<String>,

    /// Which rules assess events: refinements, rules of your own, changes to built-in ones.
    #[serde(default)]
    pub severity: SeverityConfig,

    /// Gaps beyond the feed's seven days, filled through Microsoft Graph.
    #[serde(default)]
    pub heal: HealConfig,

    /// Mask the values that data loss prevention found (`DetectedValues`: the matched secret and the text around it) in
    /// every record, in `raw` too. Their type and count stay, and `raw_masked` is set. This also masks the prompts to
    /// an AI application and its answers (`Text`, `Content`, `Prompt`, `Response`, `Body`, `Answer` of
    /// `CopilotEventData` and its `Messages`), if a record has them.
    #[serde(default = "default_mask_detected_values")]
    #[schemars(example = false)]
    pub mask_detected_values: bool,

    /// Further members to mask, as JSON pointers into the event; names are case-insensitive and `*` matches every
    /// element of a list. Texts become `[masked]`, numbers 0.
    #[serde(default)]
    #[schemars(schema_with = "mask_schema")]
    pub mask: Vec<String>,

    /// `PublisherIdentifier` on every call: the GUID whose quota Microsoft counts the calls against. Default: the
    /// tenant id.
    #[serde_as(as = "Option<DisplayFromStr>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "uuid"), example = &"7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55")]
    pub publisher_identifier: Option<Guid>,

    /// Another origin for the API than the cloud's: a proxy, a test. Scheme, host and port only.
    #[serde_as(as = "Option<DisplayFromStr>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "uri", "x-origin" = true), example = &"http://127.0.0.1:8080")]
    pub api_url: Option<Url>,

    /// Another origin for sign-in than the cloud's. Scheme, host and port only.
    #[serde_as(as = "Option<DisplayFromStr>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "uri", "x-origin" = true), example = &"http://127.0.0.1:8080")]
    pub authority_url: Option<Url>,

    /// Another origin for Microsoft Graph than <https://graph.microsoft.com>, for `heal`. Scheme, host and port only.
    #[serde_as(as = "Option<DisplayFromStr>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "uri", "x-origin" = true), example = &"http://127.0.0.1:8080")]
    pub graph_url: Option<Url>,

    /// Another audience for the token than the cloud's, without `/.default`.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"https://manage.office.com")]
    pub audience: Option<String>,

    /// Allow `api_url`, `authority_url` and `graph_url` over plain `http` to another machine. The client secret, the
    /// bearer token and every event then cross the network unencrypted: for closed test networks only.
    #[serde(default)]
    #[schemars(example = true)]
    pub allow_plain_http: bool,

    /// Requests per minute to stay under; 0 means no limit. Microsoft grants each tenant at least 2,000.
    #[serde(default = "default_max_requests_per_minute")]
    #[schemars(range(min = 0, max = 1_000_000), example = 500)]
    pub max_requests_per_minute: u32,

    /// Bytes of events held before the host has confirmed them, a quarter of it for bodies being read; when the limit
    /// is reached, fetching waits. All sources of a process together hold at most 128 MiB, or the greatest of these
    /// values, and 1 MiB each.
    #[serde(default = "default_in_flight_bytes_max")]
    #[schemars(range(min = 1_048_576, max = 68_719_476_736_u64), example = 67108864)]
    pub in_flight_bytes_max: u64,

    /// Event keys kept to recognise duplicates, for 7 days each. Above this number duplicates may be delivered; events
    /// are never dropped because of it.
    #[serde(default = "default_event_keys_max")]
    #[schemars(range(min = 0, max = 1_000_000_000), example = 50000000)]
    pub event_keys_max: u64,

    /// Seconds to wait for a connection.
    #[serde(default = "default_connect_timeout_secs")]
    #[schemars(range(min = 1, max = 300), example = 30)]
    pub connect_timeout_secs: u64,

    /// Seconds to wait for the next byte of an answer.
    #[serde(default = "default_request_timeout_secs")]
    #[schemars(range(min = 1, max = 3600), example = 120)]
    pub request_timeout_secs: u64,

    /// A PEM file of certificate authorities to trust beside the system's: for proxies that open TLS.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/ssl/certs/corporate-ca.pem")]
    pub ca_file: Option<PathBuf>,

    /// The proxy for every request. Default: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the environment.
    #[serde_as(as = "Option<WithoutPassword>")]
    #[serde(default)]
    #[schemars(with = "String", extend("format" = "uri", "x-proxy" = true), example = &"http://proxy.example.com:3128")]
    pub proxy_url: Option<Url>,

    /// Hosts reached without the proxy: names, domains (with their subdomains), addresses, networks, or `*`. Default:
    /// `NO_PROXY` of the environment. This machine and Azure's metadata service are always reached directly.
    #[serde(default)]
    #[schemars(schema_with = "no_proxy_schema")]
    pub no_proxy: Option<Vec<String>>,

    /// A client certificate (PEM) for an `https` proxy that requests one. Any other server that requests one would get
    /// it, too; Microsoft's do not.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/proxy-client.pem")]
    pub proxy_certificate_file: Option<PathBuf>,

    /// The PEM file of its key, not encrypted, when it is not in `proxy_certificate_file`.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/proxy-client.key")]
    pub proxy_key_file: Option<PathBuf>,
}

fn default_content_types() -> Vec<ContentType> {
    ContentType::ALL.to_vec()
}

const fn default_poll_interval_secs() -> u64 {
    300
}

const fn default_backfill_secs() -> u64 {
    86_400
}

const fn default_overlap_secs() -> u64 {
    10_800
}

const fn default_mask_detected_values() -> bool {
    true
}

fn mask_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "minLength": 1, "x-expected": "a JSON pointer such as `/Subject`" },
        "examples": [["/Item/Subject", "/ModifiedProperties/*/NewValue"]],
    })
}

const fn default_drop_routine() -> bool {
    true
}

const fn default_hold_secs() -> u64 {
    3600
}

const fn default_hold_bytes_max() -> u64 {
    256 * 1024 * 1024
}

const fn default_dlp_flag_secs() -> u64 {
    30 * 86_400
}

const fn default_dlp_flags_max() -> u64 {
    500_000
}

/// Microsoft's baseline quota per tenant.
const fn default_max_requests_per_minute() -> u32 {
    2000
}

const fn default_in_flight_bytes_max() -> u64 {
    32 * 1024 * 1024
}

const fn default_event_keys_max() -> u64 {
    10_000_000
}

const fn default_connect_timeout_secs() -> u64 {
    10
}

const fn default_request_timeout_secs() -> u64 {
    60
}

fn content_types_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "enum": ContentType::ALL.map(ContentType::as_str) },
        "minItems": 1,
        "uniqueItems": true,
        "examples": [["Audit.AzureActiveDirectory", "Audit.Exchange"]],
    })
}

fn no_proxy_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "minLength": 1 },
        "examples": [["internal.example.com", "10.0.0.0/8"]],
    })
}

fn internal_domains_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "format": "hostname" },
        "examples": [["contoso.com", "contoso.onmicrosoft.com"]],
    })
}

/// Reads a URL unchanged and writes it with its user name and password masked.
struct WithoutPassword;

impl SerializeAs<Url> for WithoutPassword {
    fn serialize_as<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::problem::masked_url(url.as_str()))
    }
}

impl<'de> DeserializeAs<'de, Url> for WithoutPassword {
    fn deserialize_as<D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
        DisplayFromStr::deserialize_as(deserializer)
    }
}

impl fmt::Debug for SourceConfig {
    /// As serialized: secrets and a proxy's password are masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_string(self) {
            Ok(text) => write!(f, "SourceConfig {text}"),
            Err(_) => f.write_str("SourceConfig"),
        }
    }
}

impl SourceConfig {
    /// The API's origin, without a slash at the end: `api_url`, else the cloud's.
    #[doc(hidden)]
    pub fn api_origin(&self) -> String {
        origin(self.api_url.as_ref(), self.cloud.api_url())
    }

    /// The authority's origin, without a slash at the end: `authority_url`, else the cloud's.
    #[doc(hidden)]
    pub fn authority_origin(&self) -> String {
        origin(self.authority_url.as_ref(), self.cloud.authority_url())
    }

    /// Microsoft Graph's origin, without a slash at the end: `graph_url`, else the worldwide one.
    #[doc(hidden)]
    pub fn graph_origin(&self) -> String {
        origin(self.graph_url.as_ref(), GRAPH_URL)
    }

    /// The audience of the token, without `/.default`: `audience`, else the cloud's.
    #[doc(hidden)]
    pub fn token_audience(&self) -> &str {
        self.audience.as_deref().unwrap_or_else(|| self.cloud.audience())
    }

    /// The end of the client secret's last day.
    #[doc(hidden)]
    pub fn secret_expires(&self) -> Option<Timestamp> {
        let end = self.client_secret_expires?.tomorrow().ok()?;
        format!("{end}T00:00:00Z").parse().ok()
    }

    /// `PublisherIdentifier` of every call.
    #[doc(hidden)]
    pub fn publisher(&self) -> &str {
        self.publisher_identifier.as_ref().map_or(self.tenant_id.as_str(), Guid::as_str)
    }

    /// `poll_interval_secs` as a duration.
    #[doc(hidden)]
    pub fn poll_interval(&self) -> Duration {
        Duration::from_secs(self.poll_interval_secs)
    }

    /// The current client secret: the configured one, or the present content of the file.
    ///
    /// # Errors
    /// The file cannot be read, is not text, or holds only blanks.
    #[doc(hidden)]
    pub fn read_secret(&self) -> io::Result<Secret> {
        match (&self.client_secret, &self.client_secret_file) {
            (Some(secret), _) => Ok(secret.clone()),
            (None, Some(path)) => read_secret_file(path),
            (None, None) => Err(io::Error::new(io::ErrorKind::NotFound, "no client secret is configured")),
        }
    }

    /// The address of the managed identity's end point: the configured one, else that of IMDS.
    #[doc(hidden)]
    pub fn managed_identity_url(&self) -> &str {
        self.managed_identity_url.as_ref().map_or(IMDS_URL, Url::as_str)
    }
}

/// Microsoft Graph of the worldwide service, and the audience of its tokens. From "National cloud deployments".
pub const GRAPH_URL: &str = "https://graph.microsoft.com";

/// From "How to use managed identities for Azure resources on an Azure VM to acquire an access token".
const IMDS_URL: &str = "http://169.254.169.254/metadata/identity/oauth2/token";

/// The largest secret file read; Entra's secrets have some forty characters.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reads a file that holds only a secret, in any encoding that Windows programs write; blanks around it are ignored.
pub(crate) fn read_secret_file(path: &Path) -> io::Result<Secret> {
    use io::Read;
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    // Enough capacity that the buffer never moves: a move would leave a copy of the secret in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_FILE_BYTES_MAX as usize + 1));
    let read = fs::File::open(path)?.take(SECRET_FILE_BYTES_MAX).read_to_end(&mut bytes)? as u64;
    if read == SECRET_FILE_BYTES_MAX {
        return Err(invalid("the file is too large to hold a secret alone".to_owned()));
    }
    let text = super::text::decode(&bytes).map_err(|error| invalid(error.to_string()))?;
    match text.trim() {
        "" => Err(invalid("the file is empty".to_owned())),
        secret => Ok(Secret::new(secret)),
    }
}

fn origin(given: Option<&Url>, preset: &str) -> String {
    given.map_or(preset, Url::as_str).trim_end_matches('/').to_owned()
}

/// Microsoft's clouds that have a Management Activity API of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cloud {
    /// Microsoft 365 and Office 365 Enterprise plans.
    #[default]
    Enterprise,
    /// US government, GCC.
    Gcc,
    /// US government, GCC High.
    GccHigh,
    /// US government, DoD.
    Dod,
    /// China, operated by 21Vianet. Its hosts are not in Microsoft's reference.
    China,
}

impl Cloud {
    /// All of them.
    pub const ALL: [Cloud; 5] = [Self::Enterprise, Self::Gcc, Self::GccHigh, Self::Dod, Self::China];

    /// The API's origin. From "Office 365 Management Activity API reference"; China's from public scripts.
    pub const fn api_url(&self) -> &'static str {
        match self {
            Self::Enterprise => "https://manage.office.com",
            Self::Gcc => "https://manage-gcc.office.com",
            Self::GccHigh => "https://manage.office365.us",
            Self::Dod => "https://manage.protection.apps.mil",
            Self::China => "https://manage.office365.cn",
        }
    }

    /// The authority's origin. From "National clouds" of the Microsoft identity platform.
    pub const fn authority_url(&self) -> &'static str {
        match self {
            Self::Enterprise | Self::Gcc => "https://login.microsoftonline.com",
            Self::GccHigh | Self::Dod => "https://login.microsoftonline.us",
            Self::China => "https://login.partner.microsoftonline.cn",
        }
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enterprise => "enterprise",
            Self::Gcc => "gcc",
            Self::GccHigh => "gcc_high",
            Self::Dod => "dod",
            Self::China => "china",
        }
    }

    /// Whether this cloud has the audit search of Microsoft Graph: Microsoft's page "auditLogQuery" names the worldwide
    /// service alone, which GCC uses as well.
    #[doc(hidden)]
    pub const fn has_audit_search(self) -> bool {
        matches!(self, Self::Enterprise | Self::Gcc)
    }

    /// The token's audience: the API's origin.
    #[doc(hidden)]
    pub const fn audience(&self) -> &'static str {
        self.api_url()
    }
}

/// A way to sign in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// `client_secret` or `client_secret_file`.
    #[default]
    ClientSecret,
    /// `certificate_file`: a client certificate registered with the application; the secret key is never sent.
    Certificate,
    /// `federated_token_file`: a token of an outside issuer that a federated credential of the application accepts.
    FederatedToken,
    /// The identity Azure gave this machine. Its service principal needs the application role `ActivityFeed.Read`, which
    /// only a script can grant.
    ManagedIdentity,
}

impl AuthMethod {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientSecret => "client_secret",
            Self::Certificate => "certificate",
            Self::FederatedToken => "federated_token",
            Self::ManagedIdentity => "managed_identity",
        }
    }
}

/// How a client certificate's key signs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AssertionAlgorithm {
    /// RSA-PSS, the certificate named by its SHA-256 (`x5t#S256`): the form that Microsoft recommends today.
    #[default]
    Ps256,
    /// RSA PKCS#1, the certificate named by its SHA-1 (`x5t`), for older authorities.
    Rs256,
}

/// A form of the managed identity's end point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentityHost {
    /// The instance metadata service of virtual machines, scale sets and AKS nodes, at 169.254.169.254.
    #[default]
    Imds,
    /// App Service, Functions and Container Apps.
    AppService,
    /// Machines joined with Azure Arc. The user must be in the group `himds`.
    AzureArc,
}

/// A version of the authority's token endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpoint {
    /// `/oauth2/v2.0/token`, with a scope.
    #[default]
    V2,
    /// `/oauth2/token`, with a resource.
    V1,
}

/// A GUID, lower case.
#[derive(Clone, PartialEq, Eq)]
pub struct Guid(Arc<str>);

impl Guid {
    /// 36 characters, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Guid {
    type Err = NotAGuid;

    fn from_str(text: &str) -> Result<Self, NotAGuid> {
        if is_guid(text) { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(NotAGuid(text.to_owned())) }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
