//! The sink types of the embedded host: one file each, and one line in the table below.
//!
//! This is the configuration of sinks; their behaviour is in the modules of the embedded host.

mod file;
mod fluent_forward;
mod http;
mod kafka;
mod otlp;
mod selection;
mod stdout;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use reqwest::header::{HeaderName, HeaderValue};
use schemars::Schema;
use serde::Serialize;
use url::Url;

pub use file::FileConfig;
#[cfg(feature = "embedded")]
pub(crate) use fluent_forward::host_and_port;
pub use fluent_forward::{FluentForwardConfig, ForwardCompression};
pub use http::{HttpCompression, HttpConfig, HttpEncoding};
pub use kafka::{KafkaCompression, KafkaConfig, KafkaKey, SaslMechanism};
pub use otlp::{OtlpCompression, OtlpConfig, OtlpProtocol};
pub use selection::SelectionConfig;
pub use stdout::StdoutConfig;

use super::problem::hint_for_unreadable;
use super::schema;
use super::secret::Secret;

/// A sink and the sources it reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SinkEntry {
    /// Names of the sources this sink receives, without repetition; never empty.
    pub inputs: Vec<String>,
    /// Which of their records it gets.
    #[serde(flatten)]
    pub selection: SelectionConfig,
    /// The sink itself.
    pub sink: SinkConfig,
}

/// One sink type, as the checker, the schema and the reference page need it.
pub(crate) struct SinkKind {
    /// The word in `type`.
    pub name: &'static str,
    /// The schema of its own keys (without `type` and `inputs`).
    pub schema: fn() -> Schema,
    /// Its keys in the order they are declared.
    pub keys: fn() -> &'static [&'static str],
    /// Reads its own keys.
    pub read: fn(toml::Table) -> Result<SinkConfig, toml::de::Error>,
}

macro_rules! sinks {
    ($($variant:ident($config:ty) = $name:literal, $doc:literal;)*) => {
        /// The configuration of a sink, by its `type`.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum SinkConfig {
            $(
                #[doc = $doc]
                #[serde(rename = $name)]
                $variant($config),
            )*
        }

        impl SinkConfig {
            /// Problems across several of its keys, which the schema cannot express.
            pub(super) fn issues(&self) -> Vec<Issue> {
                match self {
                    $(Self::$variant(config) => config.issues(),)*
                }
            }

            /// The word in `type`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }
        }

        /// Every sink type this build knows.
        pub(crate) const SINK_KINDS: &[SinkKind] = &[
            $(SinkKind {
                name: $name,
                schema: schema::schema_of::<$config>,
                keys: schema::keys_of::<$config>,
                read: |table| toml::Value::Table(table).try_into().map(SinkConfig::$variant),
            },)*
        ];
    };
}

sinks! {
    Stdout(StdoutConfig) = "stdout", "Newline-delimited JSON on standard output.";
    File(FileConfig) = "file", "Newline-delimited JSON appended to a file.";
    Http(HttpConfig) = "http", "Batches posted over HTTP.";
    FluentForward(FluentForwardConfig) = "fluent_forward", "The Fluent Forward protocol.";
    Otlp(OtlpConfig) = "otlp", "OpenTelemetry logs.";
    Kafka(KafkaConfig) = "kafka", "Messages of a Kafka topic.";
}

impl SinkConfig {
    /// The files of its TLS and the receiver, for a sink that connects with TLS.
    #[cfg(feature = "cli")]
    pub(crate) fn tls(&self) -> Option<(TlsFiles<'_>, Url)> {
        let (files, to) = match self {
            Self::Stdout(_) | Self::File(_) => return None,
            Self::Http(config) => (config.tls_files(), config.uri.clone()),
            Self::Otlp(config) => (config.tls_files(), config.endpoint.clone()),
            Self::FluentForward(config) if config.tls => {
                (config.tls_files(), Url::parse(&format!("https://{}", config.servers.first()?)).ok()?)
            }
            Self::Kafka(config) if config.tls => {
                (config.tls_files(), Url::parse(&format!("https://{}", config.brokers.first()?)).ok()?)
            }
            Self::FluentForward(_) | Self::Kafka(_) => return None,
        };
        (to.scheme() == "https").then_some((files, to))
    }
}

const MIB: usize = 1024 * 1024;

/// One problem of a sink that its schema cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issue {
    /// The key, without the sink's own.
    pub key: &'static str,
    /// What was expected.
    pub expected: String,
    /// The remedy.
    pub hint: Option<&'static str>,
}

impl Issue {
    fn new(key: &'static str, expected: impl Into<String>) -> Self {
        Self { key, expected: expected.into(), hint: None }
    }
}

/// How a sink authenticates to its receiver: not at all, with a user name and password, or with a bearer token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credentials<'a> {
    pub username: Option<&'a str>,
    pub password: Option<&'a Secret>,
    pub password_file: Option<&'a Path>,
    pub bearer_token: Option<&'a Secret>,
    pub bearer_token_file: Option<&'a Path>,
}

impl Credentials<'_> {
    fn issues(&self, headers: &BTreeMap<String, Secret>) -> Vec<Issue> {
        let mut issues = Vec::new();
        issues
            .extend(exclusive(("password", self.password.is_some()), ("password_file", self.password_file.is_some())));
        issues.extend(exclusive(
            ("bearer_token", self.bearer_token.is_some()),
            ("bearer_token_file", self.bearer_token_file.is_some()),
        ));
        let has_password = self.password.is_some() || self.password_file.is_some();
        let has_token = self.bearer_token.is_some() || self.bearer_token_file.is_some();
        if self.username.is_some() != has_password {
            issues.push(Issue::new("username", "`username` and a password together, or neither"));
        }
        if self.username.is_some() && has_token {
            issues.push(Issue::new("bearer_token", "a token or a user name, not both"));
        }
        for (key, path) in [("password_file", self.password_file), ("bearer_token_file", self.bearer_token_file)] {
            issues.extend(path.and_then(|path| readable(key, path)));
        }
        for (name, value) in headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                issues.push(Issue::new("headers", format!("names of HTTP headers; `{}` is none", name.escape_debug())));
            } else if HeaderValue::from_str(value.expose()).is_err() {
                issues
                    .push(Issue::new("headers", format!("values without control characters, unlike that of `{name}`")));
            }
            let is_auth = name.eq_ignore_ascii_case("authorization");
            if is_auth && (self.username.is_some() || has_token) {
                issues.push(Issue::new("headers", "no `Authorization` beside a user name or token"));
            }
        }
        issues
    }
}

/// The files of a network sink's TLS. Their content is checked when connections are made.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "embedded"), allow(dead_code, reason = "for sinks, which are left out"))]
pub(crate) struct TlsFiles<'a> {
    pub ca_file: Option<&'a Path>,
    pub client_certificate_file: Option<&'a Path>,
    pub client_key_file: Option<&'a Path>,
}

impl TlsFiles<'_> {
    /// `wanted`: the setting that enables TLS, if this sink connects without it.
    fn issues(&self, wanted: Option<&str>) -> Vec<Issue> {
        let mut issues = Vec::new();
        if let (None, Some(_)) = (self.client_certificate_file, self.client_key_file) {
            issues.push(Issue::new("client_key_file", "`client_certificate_file` beside it"));
        }
        if let (Some(_), Some(wanted)) = (self.client_certificate_file, wanted) {
            let expected = format!("{wanted} beside it: without TLS nobody asks for a certificate");
            issues.push(Issue::new("client_certificate_file", expected));
        }
        for (key, path) in [
            ("ca_file", self.ca_file),
            ("client_certificate_file", self.client_certificate_file),
            ("client_key_file", self.client_key_file),
        ] {
            issues.extend(path.and_then(|path| readable(key, path)));
        }
        issues
    }
}

/// At most one of two keys.
fn exclusive(a: (&'static str, bool), b: (&'static str, bool)) -> Option<Issue> {
    (a.1 && b.1).then(|| Issue::new(b.0, format!("only one of `{}` and `{}`", a.0, b.0)))
}

fn readable(key: &'static str, path: &Path) -> Option<Issue> {
    let error = fs::File::open(path).err()?;
    let hint = Some(hint_for_unreadable(path, &error));
    Some(Issue { hint, ..Issue::new(key, format!("a file that can be read: {error}")) })
}

fn uri_issues(key: &'static str, uri: &Url) -> Vec<Issue> {
    let mut issues = Vec::new();
    if !uri.username().is_empty() || uri.password().is_some() {
        issues
            .push(Issue::new(key, "no user name and password inside; `username` and `password` are keys of their own"));
    }
    if uri.fragment().is_some() {
        issues.push(Issue::new(key, "no `#` part"));
    }
    issues
}

fn headers_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "additionalProperties": { "type": "string", "writeOnly": true },
        "x-expected": "a table of header names and texts",
        "default": {},
        "examples": [{ "X-Source": "m365-audit" }],
    })
}
