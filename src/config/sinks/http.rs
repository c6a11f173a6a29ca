//! `type = "http"`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::{DisplayFromStr, serde_as};
use url::Url;

use super::parts::{RequestBounds, RequestCredentials, TlsFiles};
use super::{Issue, MIB, keys_beside, uri_issues};
use crate::config::schema::keys_of;

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

    /// How requests sign in.
    #[serde(flatten)]
    pub credentials: RequestCredentials,

    /// Bytes of records in one request, before compression. A larger single record goes alone.
    #[serde(default = "default_batch_bytes_max")]
    #[schemars(range(min = 1024, max = 67_108_864), example = 4194304)]
    pub batch_bytes_max: usize,

    /// How many records a request waits for, and how many requests there are.
    #[serde(flatten)]
    pub requests: RequestBounds,

    /// The files of its TLS.
    #[serde(flatten)]
    pub tls_files: TlsFiles,
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
    pub(super) fn keys() -> Vec<&'static str> {
        keys_beside(
            &["uri", "encoding", "compression", "batch_bytes_max"],
            &[keys_of::<RequestCredentials>(), keys_of::<RequestBounds>(), keys_of::<TlsFiles>()],
        )
    }

    pub(super) fn issues(&self) -> Vec<Issue> {
        let mut issues = uri_issues("uri", &self.uri);
        issues.extend(self.credentials.issues());
        let plain = (self.uri.scheme() != "https").then_some("an address that begins with `https://`");
        issues.extend(self.tls_files.issues(plain));
        issues
    }
}

/// Large requests serve receivers that answer only after their own outputs' batch time-out.
const fn default_batch_bytes_max() -> usize {
    2 * MIB
}
