//! What an operator writes, and how it becomes the library's configuration.
//!
//! The library checks the values, so its words are what an operator reads about a wrong one. `tests.rs` compares the
//! defaults with the library's.

use std::path::PathBuf;

use m365_audit::{SourceConfig as Settings, values::Problem};
use serde_json::{Map, Value};
use url::Url;
use vector_lib::{
    config::proxy::ProxyConfig,
    configurable::{component::GenerateConfig, configurable_component},
    sensitive_string::SensitiveString,
    tls::{PEM_START_MARKER, TlsConfig},
};

use super::options::{
    AssertionAlgorithm, AuthMethod, Cloud, ContentType, EcsProfile, Format, HealConfig,
    IdentityHost, OcsfVersion, RawForm, SeverityConfig, TokenEndpoint,
};
use crate::{
    config::SourceAcknowledgementsConfig,
    serde::{bool_or_struct, default_true},
};

/// Configuration for the `m365_audit` source.
#[configurable_component(source(
    "m365_audit",
    "Collect the unified audit log of a Microsoft 365 tenant."
))]
#[derive(Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct M365AuditConfig {
    /// The tenant's directory id. A domain name is not accepted: the API takes only the GUID.
    #[configurable(metadata(docs::examples = "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55"))]
    pub(super) tenant_id: String,

    /// The application (client) id of the app registration that was granted `ActivityFeed.Read`.
    /// With `auth = "managed_identity"`: the client id of a user-assigned identity, or nothing for
    /// the system-assigned one.
    #[configurable(metadata(docs::examples = "c0ffee00-1111-4222-8333-444455556666"))]
    pub(super) client_id: Option<String>,

    /// How to sign in. Only this method is tried, without guesses and fallbacks.
    #[serde(default)]
    pub(super) auth: AuthMethod,

    /// The application's client secret: its value, not its id. Keep it in one of Vector's secret
    /// backends, or use `client_secret_file`; `auth = "client_secret"` needs exactly one of the
    /// two.
    #[configurable(metadata(docs::examples = "SECRET[backend.m365_client_secret]"))]
    pub(super) client_secret: Option<SensitiveString>,

    /// A file that holds the client secret, alone; blanks around it are ignored. It is read again
    /// when it changes.
    #[configurable(metadata(docs::examples = "/run/credentials/m365-audit/client_secret"))]
    pub(super) client_secret_file: Option<PathBuf>,

    /// When the client secret expires, as Entra showed it when the secret was created. There is no
    /// other way to know it. With this option, a log line a day and the metric
    /// `m365_audit_credential_expiry_timestamp_seconds` warn from 30 days before.
    #[configurable(metadata(docs::examples = "2027-01-31"))]
    pub(super) client_secret_expires: Option<String>,

    /// The client certificate of `auth = "certificate"`: PEM (alone, or with its key), or PFX
    /// (PKCS#12). An RSA key of 2048 to 4096 bits. It is read again for each sign-in, so a replaced
    /// file takes effect without a restart, and its expiry is reported from 30 days before.
    #[configurable(metadata(docs::examples = "/etc/m365-audit/client.pem"))]
    pub(super) certificate_file: Option<PathBuf>,

    /// The PEM file of the certificate's key, when it is not in `certificate_file`.
    #[configurable(metadata(docs::examples = "/run/credentials/m365-audit/client.key"))]
    pub(super) key_file: Option<PathBuf>,

    /// The passphrase of an encrypted key or a PFX.
    #[configurable(metadata(docs::examples = "SECRET[backend.m365_key_passphrase]"))]
    pub(super) key_passphrase: Option<SensitiveString>,

    /// A file that holds only the passphrase.
    #[configurable(metadata(docs::examples = "/run/credentials/m365-audit/key_passphrase"))]
    pub(super) key_passphrase_file: Option<PathBuf>,

    /// How the certificate's key signs.
    #[serde(default)]
    pub(super) assertion_algorithm: AssertionAlgorithm,

    /// The audience of the certificate's assertion. Default: the address of the token end point in
    /// use. Needed if `authority_url` is a proxy in front of Microsoft's.
    #[configurable(metadata(
        docs::examples = "https://login.microsoftonline.com/7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55/oauth2/v2.0/token"
    ))]
    pub(super) assertion_audience: Option<String>,

    /// The token of an outside issuer for `auth = "federated_token"` (workload identity
    /// federation). Its issuer replaces the file; it is read again for each sign-in. Kubernetes
    /// with Azure Workload Identity puts its path into the environment, as
    /// `AZURE_FEDERATED_TOKEN_FILE`.
    #[configurable(metadata(
        docs::examples = "/var/run/secrets/azure/tokens/azure-identity-token"
    ))]
    pub(super) federated_token_file: Option<PathBuf>,

    /// Where the tokens of `auth = "managed_identity"` come from. The protocol is tested against
    /// the simulated tenant, not on Azure.
    #[serde(default)]
    pub(super) managed_identity_host: IdentityHost,

    /// The end point's address. `imds` has a default; for the others it is in the environment, as
    /// `IDENTITY_ENDPOINT`.
    #[configurable(metadata(docs::examples = "http://localhost:42356/msi/token"))]
    pub(super) managed_identity_url: Option<Url>,

    /// The value that `app_service` expects in `X-IDENTITY-HEADER`. It is in the environment, as
    /// `IDENTITY_HEADER`.
    #[configurable(metadata(docs::examples = "SECRET[backend.identity_header]"))]
    pub(super) managed_identity_header: Option<SensitiveString>,

    /// The content types to read. `DLP.All` needs the permission `ActivityFeed.ReadDlp` beside
    /// `ActivityFeed.Read`; without it that one type is parked and the others continue.
    #[serde(default = "default_content_types")]
    pub(super) content_types: Vec<ContentType>,

    /// Which of Microsoft's clouds the tenant lives in. Sets the API host, the authority and the
    /// token's audience.
    #[serde(default)]
    pub(super) cloud: Cloud,

    /// Which token endpoint of the authority to use.
    #[serde(default)]
    pub(super) token_endpoint: TokenEndpoint,

    /// Seconds between two listings of a content type.
    #[serde(default = "default_poll_interval_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(min = 1, max = 86_400)))]
    #[configurable(metadata(docs::examples = 60))]
    pub(super) poll_interval_secs: u64,

    /// How far before the first start to read, in seconds. Microsoft keeps content for 7 days.
    #[serde(default = "default_backfill_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(max = 604_800)))]
    #[configurable(metadata(docs::examples = 604_800))]
    pub(super) backfill_secs: u64,

    /// How far before the position each poll lists again, in seconds, to find content that became
    /// available late.
    #[serde(default = "default_overlap_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(max = 86_400)))]
    #[configurable(metadata(docs::examples = 21_600))]
    pub(super) overlap_secs: u64,

    /// The shape of a record.
    #[serde(default)]
    pub(super) format: Format,

    /// The version of `format = "ocsf"`.
    #[serde(default)]
    pub(super) ocsf_version: OcsfVersion,

    /// The field names of records of `format = "ecs"`.
    #[serde(default)]
    pub(super) ecs_profile: EcsProfile,

    /// The form of the original event inside a record of `format = "native"`. The other formats
    /// have their own text member for it; `none` leaves that out, too.
    #[serde(default)]
    pub(super) raw: RawForm,

    /// Leave out routine events (file reads and mailbox item reads) unless data loss prevention has
    /// flagged the item, before or after it was read: see `hold_secs`. Dropped events are counted
    /// in `m365_audit_dropped_events_total`.
    #[serde(default = "default_true")]
    pub(super) drop_routine: bool,

    /// Keep a routine read on disk until `DLP.All` and `Audit.General` are complete this many
    /// seconds past the time it was made available, and deliver it if data loss prevention flags
    /// the item until then. There is no upper limit on the wait. A type that is not in
    /// `content_types`, or whose permission is missing, is not waited for.
    #[serde(default = "default_hold_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(max = 604_800)))]
    #[configurable(metadata(docs::examples = 7200))]
    pub(super) hold_secs: u64,

    /// Bytes of routine reads held this way, compressed. Above it the oldest are delivered, marked
    /// `dlp.undetermined`.
    #[serde(default = "default_hold_bytes_max")]
    #[configurable(metadata(docs::type_unit = "bytes"))]
    #[configurable(validation(range(min = 65_536, max = 1_099_511_627_776)))]
    #[configurable(metadata(docs::examples = 1_073_741_824))]
    pub(super) hold_bytes_max: u64,

    /// How long a file or a message counts as flagged after data loss prevention matched it last,
    /// in seconds.
    #[serde(default = "default_dlp_flag_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(min = 3600, max = 31_536_000)))]
    #[configurable(metadata(docs::examples = 7_776_000))]
    pub(super) dlp_flag_secs: u64,

    /// Flagged files, addresses and messages remembered (a file takes two). Above this number the
    /// oldest flags are removed, and a warning reports it.
    #[serde(default = "default_dlp_flags_max")]
    #[configurable(validation(range(min = 1000, max = 10_000_000)))]
    #[configurable(metadata(docs::examples = 1_000_000))]
    pub(super) dlp_flags_max: u64,

    /// The organisation's own mail domains, for rules that distinguish internal from external.
    #[serde(default)]
    #[configurable(metadata(docs::examples = "contoso.com"))]
    #[configurable(metadata(docs::examples = "contoso.onmicrosoft.com"))]
    pub(super) internal_domains: Vec<String>,

    /// Which rules assess events: refinements, rules of your own, changes to built-in ones.
    #[configurable(derived)]
    #[serde(default)]
    pub(super) severity: SeverityConfig,

    /// Gaps beyond the feed's seven days, filled through Microsoft Graph.
    #[configurable(derived)]
    #[serde(default)]
    pub(super) heal: HealConfig,

    /// Mask the values that data loss prevention found (`DetectedValues`: the matched secret and
    /// the text around it) in every record, in `raw` too. Their type and count stay, and
    /// `raw_masked` is set. This also masks the prompts to an AI application and its answers
    /// (`Text`, `Content`, `Prompt`, `Response`, `Body`, `Answer` of `CopilotEventData` and its
    /// `Messages`), if a record has them.
    #[serde(default = "default_true")]
    pub(super) mask_detected_values: bool,

    /// Further members to mask, as JSON pointers into the event; names are case-insensitive and `*`
    /// matches every element of a list. Texts become `[masked]`, numbers 0.
    #[serde(default)]
    #[configurable(metadata(docs::examples = "/Item/Subject"))]
    #[configurable(metadata(docs::examples = "/ModifiedProperties/*/NewValue"))]
    pub(super) mask: Vec<String>,

    /// `PublisherIdentifier` on every call: the GUID whose quota Microsoft counts the calls
    /// against. Default: the tenant id.
    #[configurable(metadata(docs::examples = "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55"))]
    pub(super) publisher_identifier: Option<String>,

    /// Another origin for the API than the cloud's: a proxy, a test. Scheme, host and port only.
    #[configurable(metadata(docs::examples = "http://127.0.0.1:8080"))]
    pub(super) api_url: Option<Url>,

    /// Another origin for sign-in than the cloud's. Scheme, host and port only.
    #[configurable(metadata(docs::examples = "http://127.0.0.1:8080"))]
    pub(super) authority_url: Option<Url>,

    /// Another origin for Microsoft Graph than <https://graph.microsoft.com>, for `heal`. Scheme,
    /// host and port only.
    #[configurable(metadata(docs::examples = "http://127.0.0.1:8080"))]
    pub(super) graph_url: Option<Url>,

    /// Another audience for the token than the cloud's, without `/.default`.
    #[configurable(metadata(docs::examples = "https://manage.office.com"))]
    pub(super) audience: Option<String>,

    /// Allow `api_url`, `authority_url` and `graph_url` over plain `http` to another machine. The
    /// client secret, the bearer token and every event then cross the network unencrypted: for
    /// closed test networks only.
    #[serde(default)]
    pub(super) allow_plain_http: bool,

    /// Requests per minute to stay under; 0 means no limit. Microsoft grants each tenant at least
    /// 2,000.
    #[serde(default = "default_max_requests_per_minute")]
    #[configurable(validation(range(max = 1_000_000)))]
    #[configurable(metadata(docs::examples = 500))]
    pub(super) max_requests_per_minute: u32,

    /// Bytes of events held before every sink has confirmed them, a quarter of it for bodies being
    /// read; when the limit is reached, fetching waits. The bytes are those of JSON, and an event
    /// takes several times as many while Vector has it. All sources of a process together hold at
    /// most 128 MiB, or the greatest of these values, and 1 MiB each.
    #[serde(default = "default_in_flight_bytes_max")]
    #[configurable(metadata(docs::type_unit = "bytes"))]
    #[configurable(validation(range(min = 1_048_576, max = 68_719_476_736)))]
    #[configurable(metadata(docs::examples = 67_108_864))]
    pub(super) in_flight_bytes_max: u64,

    /// Event keys kept to recognise duplicates, for 7 days each. Above this number duplicates may
    /// be delivered; events are never dropped because of it.
    #[serde(default = "default_event_keys_max")]
    #[configurable(validation(range(max = 1_000_000_000)))]
    #[configurable(metadata(docs::examples = 50_000_000))]
    pub(super) event_keys_max: u64,

    /// Seconds to wait for a connection.
    #[serde(default = "default_connect_timeout_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(min = 1, max = 300)))]
    #[configurable(metadata(docs::examples = 30))]
    pub(super) connect_timeout_secs: u64,

    /// Seconds to wait for the next byte of an answer.
    #[serde(default = "default_request_timeout_secs")]
    #[configurable(metadata(docs::type_unit = "seconds"))]
    #[configurable(validation(range(min = 1, max = 3600)))]
    #[configurable(metadata(docs::examples = 120))]
    pub(super) request_timeout_secs: u64,

    /// TLS configuration.
    ///
    /// `ca_file` is a PEM file of certificate authorities to trust beside the system's. `crt_file` and
    /// `key_file` are a client certificate for an `https` proxy that asks for one: PEM files, not
    /// encrypted. The other options are refused: certificates and host names are always verified.
    #[configurable(derived)]
    pub(super) tls: Option<TlsConfig>,

    /// The directory under which the state of this source is kept.
    ///
    /// By default, the [global `data_dir` option][global_data_dir] is used. The running user must be
    /// able to write to it.
    ///
    /// [global_data_dir]: https://vector.dev/docs/reference/configuration/global-options/#data_dir
    #[serde(default)]
    #[configurable(metadata(docs::examples = "/var/lib/vector"))]
    #[configurable(metadata(docs::human_name = "Data Directory"))]
    pub(super) data_dir: Option<PathBuf>,

    #[configurable(derived)]
    #[serde(default, deserialize_with = "bool_or_struct")]
    pub(super) acknowledgements: SourceAcknowledgementsConfig,

    /// The namespace to use for logs. This overrides the global setting.
    #[configurable(metadata(docs::hidden))]
    #[serde(default)]
    pub(super) log_namespace: Option<bool>,
}

impl GenerateConfig for M365AuditConfig {
    fn generate_config() -> Value {
        serde_json::json!({
            "tenant_id": "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55",
            "client_id": "c0ffee00-1111-4222-8333-444455556666",
            "client_secret_file": "/run/credentials/m365-audit/client_secret",
        })
    }
}

/// Members that the library knows nothing of, or knows by other names.
const OF_VECTOR: &[&str] = &["tls", "data_dir", "acknowledgements", "log_namespace"];

impl M365AuditConfig {
    /// The library's configuration.
    ///
    /// # Errors
    /// All that is wrong with this one.
    pub(super) fn settings(&self, name: &str, proxy: &ProxyConfig) -> crate::Result<Settings> {
        let mut keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        // The library asks whether a key of another way to sign in is there: a default is left out.
        let known = &Settings::json_schema()["properties"];
        keys.retain(|key, value| {
            !OF_VECTOR.contains(&key.as_str()) && known[key].get("default") != Some(&*value)
        });
        keys.extend(self.tls_keys()?);
        keys.extend(self.proxy_keys(proxy));
        Settings::parse_json(name, keys).map_err(|problems| {
            let hint = |problem: &Problem| match &problem.hint {
                Some(hint) => format!(" (hint: {hint})"),
                None => String::new(),
            };
            let all: Vec<String> = problems.iter().map(|p| format!("{p}{}", hint(p))).collect();
            all.join("\n").into()
        })
    }

    /// The API's origin, as `endpoint` of metrics has it.
    pub(super) fn endpoint(&self, settings: &Settings) -> String {
        let origin = match &self.api_url {
            Some(url) => url.as_str(),
            None => settings.cloud.api_url(),
        };
        origin.trim_end_matches('/').to_owned()
    }

    pub(super) fn tls_keys(&self) -> crate::Result<Vec<(String, Value)>> {
        let Some(tls) = &self.tls else {
            return Ok(Vec::new());
        };
        let refused = [
            (
                "verify_certificate",
                tls.verify_certificate == Some(false),
                "certificates are always verified",
            ),
            (
                "verify_hostname",
                tls.verify_hostname == Some(false),
                "host names are always verified",
            ),
            (
                "alpn_protocols",
                tls.alpn_protocols.is_some(),
                "the protocol is negotiated",
            ),
            (
                "server_name",
                tls.server_name.is_some(),
                "the name is that of the address",
            ),
            (
                "key_pass",
                tls.key_pass.is_some(),
                "`key_file` must not be encrypted",
            ),
        ];
        let mut problems: Vec<String> = refused
            .iter()
            .filter(|(_, is_set, _)| *is_set)
            .map(|(key, _, why)| format!("`tls.{key}` is not supported here: {why}"))
            .collect();
        let mut keys = Vec::new();
        for (file, name, key) in [
            (&tls.ca_file, "ca_file", "ca_file"),
            (&tls.crt_file, "crt_file", "proxy_certificate_file"),
            (&tls.key_file, "key_file", "proxy_key_file"),
        ] {
            let Some(path) = file.as_ref().map(|path| path.to_string_lossy()) else {
                continue;
            };
            if path.starts_with(PEM_START_MARKER) {
                problems.push(format!("`tls.{name}` must be the path of a PEM file"));
            }
            keys.push((key.to_owned(), path.into()));
        }
        if problems.is_empty() {
            Ok(keys)
        } else {
            Err(problems.join("\n").into())
        }
    }

    /// Vector has merged the environment already, which the library would read again: it is told all there is.
    fn proxy_keys(&self, proxy: &ProxyConfig) -> Vec<(String, Value)> {
        // Sign-in and feed go through one proxy, and over `https` unless a test says otherwise.
        let is_plain = self
            .api_url
            .as_ref()
            .is_some_and(|url| url.scheme() == "http");
        let url = if is_plain { &proxy.http } else { &proxy.https };
        let Some(url) = url.as_ref().filter(|_| proxy.enabled) else {
            return vec![("no_proxy".to_owned(), vec!["*"].into())];
        };
        let mut keys = vec![("proxy_url".to_owned(), url.as_str().into())];
        let direct: Vec<String> = proxy
            .no_proxy
            .clone()
            .into_iter()
            .map(|item| item.to_string())
            .collect();
        keys.push(("no_proxy".to_owned(), direct.into()));
        keys
    }
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

const fn default_hold_secs() -> u64 {
    3600
}

const fn default_hold_bytes_max() -> u64 {
    268_435_456
}

const fn default_dlp_flag_secs() -> u64 {
    2_592_000
}

const fn default_dlp_flags_max() -> u64 {
    500_000
}

const fn default_max_requests_per_minute() -> u32 {
    2000
}

const fn default_in_flight_bytes_max() -> u64 {
    33_554_432
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

fn default_content_types() -> Vec<ContentType> {
    vec![
        ContentType::AzureActiveDirectory,
        ContentType::Exchange,
        ContentType::SharePoint,
        ContentType::General,
        ContentType::Dlp,
    ]
}
