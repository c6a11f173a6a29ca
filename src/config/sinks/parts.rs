//! Keys that several sinks have in common. They stand beside a sink's own keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reqwest::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Issue, exclusive, headers_schema, readable};
use crate::config::secret::Secret;

/// How requests authenticate to their receiver: not at all, with a user name and password, or with a bearer token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RequestCredentials {
    /// Further headers of every request (gRPC: metadata), each a name and a text. Their values are not shown anywhere.
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
}

/// How many records a request waits for, and how many requests there are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RequestBounds {
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
}

/// The files of a network sink's TLS. Their content is checked when connections are made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(not(feature = "embedded"), allow(dead_code, reason = "for sinks, which are left out"))]
pub struct TlsFiles {
    /// A PEM file of certificate authorities to trust beside the system's.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/ssl/certs/corporate-ca.pem")]
    pub ca_file: Option<PathBuf>,

    /// A PEM file with the certificate to present to a receiver that requests one (mutual TLS), followed by its
    /// intermediate certificates. It is read again for every new connection, so a replaced file takes effect without a
    /// restart.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/sink-client.pem")]
    pub client_certificate_file: Option<PathBuf>,

    /// The PEM file of its key, not encrypted, when it is not in `client_certificate_file`.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/sink-client.key")]
    pub client_key_file: Option<PathBuf>,
}

impl Default for RequestBounds {
    fn default() -> Self {
        Self {
            batch_records_max: default_batch_records_max(),
            batch_age_secs: default_batch_age_secs(),
            requests_in_flight_max: default_requests_in_flight_max(),
            timeout_secs: default_timeout_secs(),
        }
    }
}

impl RequestCredentials {
    pub(super) fn issues(&self) -> Vec<Issue> {
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
        for (key, path) in [("password_file", &self.password_file), ("bearer_token_file", &self.bearer_token_file)] {
            issues.extend(path.as_deref().and_then(|path| readable(key, path)));
        }
        for (name, value) in &self.headers {
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

impl TlsFiles {
    /// `wanted`: the setting that enables TLS, if this sink connects without it.
    pub(super) fn issues(&self, wanted: Option<&str>) -> Vec<Issue> {
        let mut issues = Vec::new();
        if let (None, Some(_)) = (&self.client_certificate_file, &self.client_key_file) {
            issues.push(Issue::new("client_key_file", "`client_certificate_file` beside it"));
        }
        if let (Some(_), Some(wanted)) = (&self.client_certificate_file, wanted) {
            let expected = format!("{wanted} beside it: without TLS nobody asks for a certificate");
            issues.push(Issue::new("client_certificate_file", expected));
        }
        for (key, path) in [
            ("ca_file", &self.ca_file),
            ("client_certificate_file", &self.client_certificate_file),
            ("client_key_file", &self.client_key_file),
        ] {
            issues.extend(path.as_deref().and_then(|path| readable(key, path)));
        }
        issues
    }
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
