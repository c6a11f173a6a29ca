//! `type = "otlp"`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::{DisplayFromStr, serde_as};
use url::Url;

use super::{Credentials, Issue, MIB, TlsFiles, headers_schema, uri_issues};
use crate::config::secret::Secret;

/// Sends records as OpenTelemetry logs, over gRPC or HTTP with protobuf.
///
/// Success confirms a request's records; how durable that is depends on the receiver. A Collector answers when its next
/// component has them, which by default is a queue in memory (`docs/hosts/otel-collector.md` names the settings for a
/// queue on disk). Refused requests are sent again for ever, in smaller parts if the answer concerns the records. A
/// record is set aside only when it is refused by itself repeatedly while others are accepted; if a receiver rejects
/// everything, its records wait instead.
#[serde_as]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OtlpConfig {
    /// The receiver: scheme, host and port. For `protocol = "http"` a path may follow; without one it is `/v1/logs`.
    #[serde_as(as = "DisplayFromStr")]
    #[schemars(with = "String", extend("format" = "uri"), example = &"http://127.0.0.1:4317")]
    pub endpoint: Url,

    /// Which of the two transports.
    #[serde(default)]
    #[schemars(example = &"http")]
    pub protocol: OtlpProtocol,

    /// Whether requests are compressed.
    #[serde(default)]
    #[schemars(example = &"none")]
    pub compression: OtlpCompression,

    /// Further headers (gRPC: metadata) of every request, each a name and a text. Their values are not shown anywhere.
    #[serde(default)]
    #[schemars(schema_with = "headers_schema")]
    pub headers: BTreeMap<String, Secret>,

    /// User name for basic authentication.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"m365")]
    pub username: Option<String>,

    /// Password for basic authentication.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), extend("format" = "password", "writeOnly" = true), example = &"${SINK_PASSWORD}")]
    pub password: Option<Secret>,

    /// A file that holds the password alone. It is read again for every request.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/sink_password")]
    pub password_file: Option<PathBuf>,

    /// Token sent as `Authorization: Bearer …`.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), extend("format" = "password", "writeOnly" = true), example = &"${SINK_TOKEN}")]
    pub bearer_token: Option<Secret>,

    /// A file that holds the bearer token alone. It is read again for every request.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/sink_token")]
    pub bearer_token_file: Option<PathBuf>,

    /// Bytes of records in one request, counted as JSON; as protobuf they take up to 2.75 times as much, usually a
    /// tenth more. The Collector's gRPC receiver refuses messages over 4 MiB. A larger single record goes alone.
    #[serde(default = "default_batch_bytes_max")]
    #[schemars(range(min = 1024, max = 67_108_864), example = 524288)]
    pub batch_bytes_max: usize,

    /// Records in one request.
    #[serde(default = "default_batch_records_max")]
    #[schemars(range(min = 1, max = 1_000_000), example = 1000)]
    pub batch_records_max: usize,

    /// How long records wait for others to fill a request, in seconds; a tenth of it when none comes.
    #[serde(default = "default_batch_age_secs")]
    #[schemars(range(min = 0, max = 60), example = 5)]
    pub batch_age_secs: u64,

    /// Requests in flight at the same time.
    #[serde(default = "default_requests_in_flight_max")]
    #[schemars(range(min = 1, max = 64), example = 8)]
    pub requests_in_flight_max: usize,

    /// Seconds to wait for the answer; a request that ran out of time is sent again, and its records may then come
    /// twice.
    #[serde(default = "default_timeout_secs")]
    #[schemars(range(min = 1, max = 3600), example = 60)]
    pub timeout_secs: u64,

    /// A PEM file of certificate authorities to trust beside the system's.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/ssl/certs/corporate-ca.pem")]
    pub ca_file: Option<PathBuf>,

    /// A PEM file with the certificate to present to a receiver that requests one (mutual TLS), followed by its
    /// intermediate certificates. It is read again for every connection, so a replaced file takes effect without a
    /// restart.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/sink-client.pem")]
    pub client_certificate_file: Option<PathBuf>,

    /// The PEM file of its key, not encrypted, when it is not in `client_certificate_file`.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/sink-client.key")]
    pub client_key_file: Option<PathBuf>,
}

/// The two transports of OTLP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OtlpProtocol {
    /// gRPC, usually port 4317.
    #[default]
    Grpc,
    /// HTTP with protobuf bodies, usually port 4318.
    Http,
}

/// Whether requests are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OtlpCompression {
    /// Not at all.
    None,
    /// With gzip.
    #[default]
    Gzip,
}

impl OtlpConfig {
    pub(super) fn issues(&self) -> Vec<Issue> {
        let mut issues = uri_issues("endpoint", &self.endpoint);
        issues.extend(self.credentials().issues(&self.headers));
        let plain = (self.endpoint.scheme() != "https").then_some("an address that begins with `https://`");
        issues.extend(self.tls_files().issues(plain));
        if self.protocol == OtlpProtocol::Grpc && self.endpoint.path() != "/" {
            issues.push(Issue::new("endpoint", "no path: with `protocol = \"grpc\"` the service names itself"));
        }
        issues
    }

    /// The files of its TLS.
    pub(crate) fn tls_files(&self) -> TlsFiles<'_> {
        TlsFiles {
            ca_file: self.ca_file.as_deref(),
            client_certificate_file: self.client_certificate_file.as_deref(),
            client_key_file: self.client_key_file.as_deref(),
        }
    }

    /// How requests authenticate.
    pub(crate) fn credentials(&self) -> Credentials<'_> {
        Credentials {
            username: self.username.as_deref(),
            password: self.password.as_ref(),
            password_file: self.password_file.as_deref(),
            bearer_token: self.bearer_token.as_ref(),
            bearer_token_file: self.bearer_token_file.as_deref(),
        }
    }
}

/// 2.75 times this is under the 4 MiB of a Collector's gRPC receiver.
const fn default_batch_bytes_max() -> usize {
    MIB
}

const fn default_batch_records_max() -> usize {
    10_000
}

const fn default_batch_age_secs() -> u64 {
    1
}

const fn default_requests_in_flight_max() -> usize {
    4
}

const fn default_timeout_secs() -> u64 {
    300
}
