//! The operator's configuration: the TOML file, its defaults, its problems.
//!
//! A key is declared once, as a field with its doc comment, default, range and example. Reading has four steps; each
//! reports all its problems before the next processes the rest. `toml` parses the text, `variables` replaces `${NAME}`
//! in the parsed strings, `check` checks every table against the schema of its type, and `read` checks conditions
//! across several keys. This module opens no connection and writes no file.

mod builder;
mod check;
mod cluster;
mod credentials;
mod file_schema;
mod folder;
mod heal;
mod lines;
mod origins;
mod pasted;
mod places;
mod problem;
mod read;
mod record;
mod record_schema;
mod schema;
mod secret;
mod severity;
pub mod sinks;
mod source;
mod survey;
mod syntax;
mod tenants;
pub(crate) mod text;
mod transport;
mod variables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use builder::SourceConfigBuilder;
pub use check::typed_from_text;
pub(crate) use check::{allowed, expectation, one_of};
pub use cluster::ClusterConfig;
pub use file_schema::config_schema;
pub(crate) use file_schema::{sink_keys, sink_schema};
pub use folder::ConfigFiles;
pub use heal::HealConfig;
pub(crate) use pasted::odd_secret;
pub use places::Places;
pub use problem::{ConfigError, Fault, Problem};
pub use record::{EcsProfile, Format, OcsfVersion, RawForm};
pub(crate) use record_schema::record_keys;
pub use record_schema::record_schema;
pub(crate) use schema::{keys_of, schema_of};
pub use schema::{pretty, source_keys, source_schema};
pub use secret::{MASK, Secret};
pub(crate) use secret::{secret_header, wiped_bytes};
pub use severity::{RulesError, SeverityConfig};
pub(crate) use sinks::SINK_KINDS;
#[cfg(feature = "embedded")]
pub(crate) use sinks::host_and_port;
pub use sinks::{SelectionConfig, SinkConfig, SinkEntry};
pub(crate) use source::read_secret_file;
pub use source::{
    AssertionAlgorithm, AuthMethod, Cloud, GRAPH_URL, Guid, IdentityHost, SOURCE_TYPE, SourceConfig, TokenEndpoint,
};
pub use survey::{Declared, Survey};
pub(crate) use transport::{is_link_local, is_loopback};

/// The default of `catch_up_tenants_max`.
pub const CATCH_UP_TENANTS_MAX: u32 = 200;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Config {
    /// Where state is kept: one store for all sources of this file. Created with mode 0700 when it does not exist. A
    /// relative path, here and at every key except `tenants_dir`, starts at the working directory of the program: write
    /// absolute paths.
    #[serde(default = "default_data_dir")]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/var/lib/m365-audit")]
    pub data_dir: PathBuf,

    /// The path of the control socket, through which `status`, `backfill` and `state set` reach the running process.
    /// Default: `control.sock` under `data_dir`. For a `data_dir` on a file system that refuses Unix sockets (SMB, some
    /// NFS).
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/m365-audit/control.sock")]
    pub control_socket: Option<PathBuf>,

    /// A folder of files with tenants, beside those of this file: each `*.toml` in it holds `[sources.<name>]` or
    /// `[[sources.<name>.tenants]]` of a template, and nothing else. Relative to the folder of this file. It is read
    /// again on SIGHUP; a wrong file then leaves the running configuration unchanged. `m365-audit tenant` writes such
    /// files.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"tenants.d")]
    pub tenants_dir: Option<PathBuf>,

    /// The tenants to read, each under a name of its own.
    #[schemars(
        schema_with = "components_schema",
        extend("x-expected" = "at least one table `[sources.<name>]`")
    )]
    pub sources: BTreeMap<String, SourceConfig>,

    /// Where records go, each under a name of its own.
    #[schemars(
        schema_with = "components_schema",
        extend("x-expected" = "at least one table `[sinks.<name>]`")
    )]
    pub sinks: BTreeMap<String, SinkEntry>,

    /// How many tenants read blobs at once. Each of them holds a few MB, so after an outage this bounds the memory of a
    /// process with many tenants. The others list a little and wait for their turn: first those with content that
    /// expires within a day, then those with few blobs, then the others in order of arrival. A turn ends when all is
    /// read, or after a minute while others wait. `status` and `m365_audit_waiting_tenants` show how many wait.
    #[serde(default = "default_catch_up_tenants_max")]
    #[schemars(range(min = 1, max = 100_000), example = &50)]
    pub catch_up_tenants_max: u32,

    /// The outcome of every event, sealed and signed.
    #[serde(default)]
    pub receipts: ReceiptsConfig,

    /// Many processes on one PostgreSQL. Without this table the state of all tenants is under `data_dir`.
    #[serde(default)]
    pub cluster: Option<ClusterConfig>,

    /// The metrics listener, which only this table enables.
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,

    /// The program's own log, on standard error.
    #[serde(default)]
    pub log: LogConfig,
}

impl Config {
    /// The control socket: `control_socket`, or `control.sock` under `data_dir`.
    pub fn control_socket(&self) -> PathBuf {
        self.control_socket.clone().unwrap_or_else(|| self.data_dir.join("control.sock"))
    }

    /// The key that receipts are signed with: `[receipts] key_file`, or `receipts.key` under `data_dir`.
    pub fn receipts_key(&self) -> PathBuf {
        self.receipts.key_file.clone().unwrap_or_else(|| self.data_dir.join("receipts.key"))
    }
}

/// The default of `[receipts] days`.
pub const RECEIPTS_DAYS: u32 = 30;

/// `[receipts]`: the outcome of every event, sealed each hour and signed; [Receipts](receipts.md) describes what that
/// proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReceiptsConfig {
    /// How long receipts are kept, in days; about 17 bytes an event. 0 turns them off: no new ones are made, and
    /// existing ones are kept unchanged.
    #[serde(default = "default_receipts_days")]
    #[schemars(range(min = 0, max = 3650), example = &90)]
    pub days: u32,

    /// The sinks that get each signed checkpoint as a record (`event_type` is `m365_audit.receipt`). Receipts are
    /// evidence against the owner of this machine only if their checkpoints have left it.
    #[serde(default)]
    #[schemars(inner(length(min = 1)), extend("uniqueItems" = true, "x-expected" = "a list of names of sinks"), example = &["siem"])]
    pub to: Vec<String>,

    /// The key that receipts are signed with, as `m365-audit receipts key --make` writes it. Default: `receipts.key` in
    /// `data_dir`, made at the first start. In a cluster all members need the same key, so it must be configured there.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/receipts.key")]
    pub key_file: Option<PathBuf>,
}

impl Default for ReceiptsConfig {
    fn default() -> Self {
        Self { days: RECEIPTS_DAYS, to: Vec::new(), key_file: None }
    }
}

/// `[metrics]`: metrics as Prometheus text at `/metrics`, health at `/health`, a status page for browsers at
/// `/status.html`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsConfig {
    /// The address and port to listen on.
    #[schemars(with = "String", extend("format" = "socket-address"), example = &"127.0.0.1:9598")]
    pub listen: SocketAddr,

    /// The detail of the series of `/metrics`. [Metrics](metrics.md) describes each level.
    #[serde(default)]
    #[schemars(example = &"content_type")]
    pub detail: MetricsDetail,

    /// Names by which browsers reach `/`, `/status` and `/status.html`, beside IP addresses and `localhost`. By another
    /// name they answer 421: a web page elsewhere that has its name point here (DNS rebinding) reads nothing.
    /// `/metrics`, `/health`, `/live` and `/ready` answer to any name.
    #[serde(default)]
    #[schemars(inner(length(min = 1)), extend("uniqueItems" = true, "x-expected" = "a list of host names"), example = &["m365.example.net"])]
    pub hosts: Vec<String>,

    /// The URL of the book of these documents (`mdbook build`, `.ci/docs`). `/status.html` links to its page of each
    /// error.
    #[serde(default = "default_docs_url")]
    #[schemars(length(min = 1), example = &"https://wiki.example.net/m365-audit")]
    pub docs_url: String,
}

impl MetricsConfig {
    /// The listener at this address, with default values otherwise.
    pub fn at(listen: SocketAddr) -> Self {
        Self { listen, detail: MetricsDetail::default(), hosts: Vec::new(), docs_url: default_docs_url() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricsDetail {
    /// At most 25 series for each tenant: sums, and of lag and expiry those of the worst content type.
    #[default]
    Tenant,
    /// Every series with every label: by content type, state, endpoint, status, reason.
    ContentType,
}

/// `[log]`: the program's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogConfig {
    /// The shape of a line.
    #[serde(default)]
    #[schemars(example = &"json")]
    pub format: LogFormat,

    /// The least severe level to show (`error`, `warn`, `info`, `debug`, `trace`), or directives such as
    /// `info,m365_audit=debug`.
    #[serde(default = "default_log_level")]
    #[schemars(length(min = 1), extend("format" = "log-level"), example = &"info,m365_audit=debug")]
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: default_log_level() }
    }
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/m365-audit")
}

fn default_catch_up_tenants_max() -> u32 {
    CATCH_UP_TENANTS_MAX
}

fn default_receipts_days() -> u32 {
    RECEIPTS_DAYS
}

fn default_docs_url() -> String {
    crate::model::DOCS_URL.to_owned()
}

fn default_log_level() -> String {
    "info".to_owned()
}

fn components_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "minProperties": 1,
        "propertyNames": { "pattern": "^[A-Za-z0-9_-]+$" },
    })
}
