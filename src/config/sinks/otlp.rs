//! `type = "otlp"`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::{DisplayFromStr, serde_as};
use url::Url;

use super::parts::{RequestBounds, RequestCredentials, TlsFiles};
use super::{Issue, MIB, keys_beside, uri_issues};
use crate::config::schema::keys_of;

/// Sends records as OpenTelemetry logs, over gRPC or HTTP with protobuf.
///
/// Success confirms a request's records, for as much as the receiver means by it: a Collector answers when its next
/// component has them, which by default is a queue in memory (`docs/hosts/otel-collector.md` names the settings that
/// make it disk). What is refused is sent again until it is taken, in smaller parts where the answer speaks of the records. A
/// record is set aside only when it is refused alone, again and again, while others are taken; a receiver that rejects
/// everything is held back instead.
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

    /// How requests sign in.
    #[serde(flatten)]
    pub credentials: RequestCredentials,

    /// Bytes of records in one request, counted as JSON; as protobuf they take up to 2.75 times as much, usually a
    /// tenth more. The Collector's gRPC receiver refuses messages over 4 MiB. A larger single record goes alone.
    #[serde(default = "default_batch_bytes_max")]
    #[schemars(range(min = 1024, max = 67_108_864), example = 524288)]
    pub batch_bytes_max: usize,

    /// How many records a request waits for, and how many requests there are.
    #[serde(flatten)]
    pub requests: RequestBounds,

    /// The files of its TLS.
    #[serde(flatten)]
    pub tls_files: TlsFiles,
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
    pub(super) fn keys() -> Vec<&'static str> {
        keys_beside(
            &["endpoint", "protocol", "compression", "batch_bytes_max"],
            &[keys_of::<RequestCredentials>(), keys_of::<RequestBounds>(), keys_of::<TlsFiles>()],
        )
    }

    pub(super) fn issues(&self) -> Vec<Issue> {
        let mut issues = uri_issues("endpoint", &self.endpoint);
        issues.extend(self.credentials.issues());
        let plain = (self.endpoint.scheme() != "https").then_some("an address that begins with `https://`");
        issues.extend(self.tls_files.issues(plain));
        if self.protocol == OtlpProtocol::Grpc && self.endpoint.path() != "/" {
            issues.push(Issue::new("endpoint", "no path: with `protocol = \"grpc\"` the service names itself"));
        }
        issues
    }
}

/// 2.75 times this is under the 4 MiB of a Collector's gRPC receiver.
const fn default_batch_bytes_max() -> usize {
    MIB
}
