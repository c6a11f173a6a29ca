//! `type = "http"`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::{DisplayFromStr, serde_as};
use url::Url;

use super::{Credentials, Issue, MIB, TlsFiles, headers_schema, uri_issues};
use crate::config::secret::Secret;

/// Posts records over HTTP: to Vector's `http_server`, Logstash, Elastic's `http_endpoint`, Splunk's collector and any
/// other receiver that answers with a status.
///
/// Any 2xx confirms the request's records; how durable that is depends on the receiver. Refused requests are sent again
/// for ever, at once in smaller parts if the answer concerns the records. A record is set aside only when it is refused
/// by itself repeatedly while others are accepted; if a receiver rejects everything, its records wait instead.
#[serde_as]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpConfig {
    /// Where to post.
    #[serde_as(as = "DisplayFromStr")]
    #[schemars(with = "String", extend("format" = "uri"), example = &"http://127.0.0.1:8080/")]
    pub uri: Url,

    /// The form of a request's body.
    #[serde(default)]
    #[schemars(example = &"json")]
    pub encoding: HttpEncoding,

    /// How bodies are compressed. The receiver must understand it.
    #[serde(default)]
    #[schemars(example = &"gzip")]
    pub compression: HttpCompression,

    /// Further headers of every request, each a name and a text. Their values are not shown anywhere.
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

    /// Bytes of records in one request, before compression. A larger single record goes alone.
    #[serde(default = "default_batch_bytes_max")]
    #[schemars(range(min = 1024, max = 67_108_864), example = 4194304)]
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

    /// Seconds to wait for the answer. A receiver that answers only when its own outputs have confirmed needs longer
    /// than they try; a request that ran out of time is sent again, and its records may then come twice.
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

/// The form of a request's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HttpEncoding {
    /// One JSON object a line, `application/x-ndjson`.
    #[default]
    Ndjson,
    /// One JSON array, `application/json`.
    Json,
}

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HttpCompression {
    /// Not at all.
    #[default]
    None,
    /// `Content-Encoding: gzip`
    Gzip,
    /// `Content-Encoding: zstd`
    Zstd,
}

impl HttpConfig {
    pub(super) fn issues(&self) -> Vec<Issue> {
        let mut issues = uri_issues("uri", &self.uri);
        issues.extend(self.credentials().issues(&self.headers));
        let plain = (self.uri.scheme() != "https").then_some("an address that begins with `https://`");
        issues.extend(self.tls_files().issues(plain));
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

/// Large requests serve receivers that answer only after their own outputs' batch time-out.
const fn default_batch_bytes_max() -> usize {
    2 * MIB
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
