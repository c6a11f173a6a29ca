//! The sink types of the embedded host: one file each, and one line in the table below.
//!
//! This is the configuration of sinks; their behaviour is in the modules of the embedded host.

mod file;
mod fluent_forward;
mod http;
mod kafka;
mod otlp;
mod parts;
mod selection;
mod stdout;

use std::fs;
use std::path::Path;

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
pub use parts::{RequestBounds, RequestCredentials, TlsFiles};
pub use selection::SelectionConfig;
pub use stdout::StdoutConfig;

use super::problem::hint_for_unreadable;
use super::schema;

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
    /// Its keys in the order they are shown: its own as they are declared, then those it has in common with others.
    pub keys: fn() -> Vec<&'static str>,
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
                keys: <$config>::keys,
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
    pub(crate) fn tls(&self) -> Option<(&TlsFiles, Url)> {
        let (files, to) = match self {
            Self::Stdout(_) | Self::File(_) => return None,
            Self::Http(config) => (&config.tls_files, config.uri.clone()),
            Self::Otlp(config) => (&config.tls_files, config.endpoint.clone()),
            Self::FluentForward(config) if config.tls => {
                (&config.tls_files, Url::parse(&format!("https://{}", config.servers.first()?)).ok()?)
            }
            Self::Kafka(config) if config.tls => {
                (&config.tls_files, Url::parse(&format!("https://{}", config.brokers.first()?)).ok()?)
            }
            Self::FluentForward(_) | Self::Kafka(_) => return None,
        };
        (to.scheme() == "https").then_some((files, to))
    }
}

/// A sink's own keys, and those of each of the parts it has in common with others.
fn keys_beside(own: &[&'static str], parts: &[&'static [&'static str]]) -> Vec<&'static str> {
    own.iter().chain(parts.iter().copied().flatten()).copied().collect()
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
