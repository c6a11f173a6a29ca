//! `type = "fluent_forward"`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::parts::TlsFiles;
use super::{Issue, MIB, exclusive, keys_beside, readable};
use crate::config::schema::keys_of;
use crate::config::secret::Secret;

/// Sends records by the Fluent Forward protocol: to Fluentd, Fluent Bit, Vector's `fluent` source and the
/// Collector's `fluentforward` receiver.
///
/// A frame's records are confirmed when the receiver acknowledges its `chunk`, for as much as the receiver means by
/// it. Anything else (another id, an empty map, a closed connection, no answer in time) is tried again without end with
/// the same bytes, on the next server of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FluentForwardConfig {
    /// The receivers, `host:port`, in the order they are tried. The sink connects to one until that fails, then to the
    /// next.
    #[schemars(schema_with = "servers_schema")]
    pub servers: Vec<String>,

    /// The tag of every record.
    #[serde(default = "default_tag")]
    #[schemars(length(min = 1), example = &"m365.contoso")]
    pub tag: String,

    /// Keep a record's own `timestamp`, a text, although the time of its entry has the same value. Vector's `fluent`
    /// source has one field for both and uses the text: with `false` it gets the time as a time. No other member is
    /// left out.
    #[serde(default = "default_keep_timestamp")]
    #[schemars(example = false)]
    pub keep_timestamp: bool,

    /// How entries are compressed.
    #[serde(default)]
    #[schemars(example = &"gzip")]
    pub compression: ForwardCompression,

    /// Ask for an acknowledgement of every frame. Without it records count as delivered once they are written to the
    /// connection, and records that the network or the receiver loses are lost.
    #[serde(default = "default_require_ack")]
    #[schemars(example = false)]
    pub require_ack: bool,

    /// Seconds to wait for an acknowledgement. A receiver that answers only when its own outputs have confirmed needs
    /// longer than they try; a frame that ran out of time is sent again, and its records may then come twice.
    #[serde(default = "default_ack_timeout_secs")]
    #[schemars(range(min = 1, max = 3600), example = 60)]
    pub ack_timeout_secs: u64,

    /// Bytes of a frame, before compression. Fluent Bit resets the connection at frames over 6 MB (`buffer_max_size`),
    /// Fluentd silently drops those over its `chunk_size_limit`. A single record that is larger is set aside.
    #[serde(default = "default_frame_bytes_max")]
    #[schemars(range(min = 65_536, max = 67_108_864), example = 1048576)]
    pub frame_bytes_max: usize,

    /// Records in one frame.
    #[serde(default = "default_batch_records_max")]
    #[schemars(range(min = 1, max = 1_000_000), example = 1000)]
    pub batch_records_max: usize,

    /// How long records wait for others to fill a frame, in seconds; a tenth of it when none comes.
    #[serde(default = "default_batch_age_secs")]
    #[schemars(range(min = 0, max = 60), example = 5)]
    pub batch_age_secs: u64,

    /// Frames sent and not yet acknowledged, each on a connection of its own.
    #[serde(default = "default_frames_in_flight_max")]
    #[schemars(range(min = 1, max = 64), example = 8)]
    pub frames_in_flight_max: usize,

    /// The secret shared with the receiver (`<security>` of Fluentd, `shared_key` of Fluent Bit). With it each side
    /// proves its knowledge of the secret before any record is sent.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), extend("format" = "password", "writeOnly" = true), example = &"${FORWARD_SHARED_KEY}")]
    pub shared_key: Option<Secret>,

    /// A file that holds the shared key alone. It is read again for every connection.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/shared_key")]
    pub shared_key_file: Option<PathBuf>,

    /// The name given to the receiver. Fluentd refuses a client that has the receiver's own name. Default: this
    /// machine's host name.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"collector-1")]
    pub self_hostname: Option<String>,

    /// User name, if the receiver requires one beside the shared key.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"m365")]
    pub username: Option<String>,

    /// That user's password.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), extend("format" = "password", "writeOnly" = true), example = &"${FORWARD_PASSWORD}")]
    pub password: Option<Secret>,

    /// A file that holds the password alone. It is read again for every connection.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/forward_password")]
    pub password_file: Option<PathBuf>,

    /// Connect with TLS.
    #[serde(default)]
    #[schemars(example = true)]
    pub tls: bool,

    /// The files of its TLS.
    #[serde(flatten)]
    pub tls_files: TlsFiles,
}

/// How entries are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForwardCompression {
    /// Not at all (PackedForward).
    #[default]
    None,
    /// With gzip (CompressedPackedForward).
    Gzip,
}

impl FluentForwardConfig {
    pub(super) fn keys() -> Vec<&'static str> {
        keys_beside(
            &[
                "servers",
                "tag",
                "keep_timestamp",
                "compression",
                "require_ack",
                "ack_timeout_secs",
                "frame_bytes_max",
                "batch_records_max",
                "batch_age_secs",
                "frames_in_flight_max",
                "shared_key",
                "shared_key_file",
                "self_hostname",
                "username",
                "password",
                "password_file",
                "tls",
            ],
            &[keys_of::<TlsFiles>()],
        )
    }

    pub(super) fn issues(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        for server in &self.servers {
            if host_and_port(server).is_none() {
                issues.push(Issue::new(
                    "servers",
                    format!("each as `host:port`, such as `127.0.0.1:24224`; `{server}` is not"),
                ));
            }
        }
        issues.extend(exclusive(
            ("shared_key", self.shared_key.is_some()),
            ("shared_key_file", self.shared_key_file.is_some()),
        ));
        issues
            .extend(exclusive(("password", self.password.is_some()), ("password_file", self.password_file.is_some())));
        let keyed = self.shared_key.is_some() || self.shared_key_file.is_some();
        let has_password = self.password.is_some() || self.password_file.is_some();
        if self.username.is_some() != has_password {
            issues.push(Issue::new("username", "`username` and a password together, or neither"));
        }
        if self.username.is_some() && !keyed {
            issues.push(Issue::new("username", "a `shared_key` beside it: without one the protocol asks for no user"));
        }
        if self.tls_files.ca_file.is_some() && !self.tls {
            issues.push(Issue::new("ca_file", "`tls = true` beside it"));
        }
        issues.extend(self.tls_files.issues((!self.tls).then_some("`tls = true`")));
        for (key, path) in [("shared_key_file", &self.shared_key_file), ("password_file", &self.password_file)] {
            issues.extend(path.as_deref().and_then(|path| readable(key, path)));
        }
        issues
    }
}

/// The host, without the brackets of an IPv6 address, and the port of `host:port`.
pub(crate) fn host_and_port(server: &str) -> Option<(&str, u16)> {
    let (host, port) = server.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty() && !host.contains(char::is_whitespace)).then_some((host, port))
}

fn servers_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
        "uniqueItems": true,
        "x-expected": "a list of `host:port`",
        "examples": [["127.0.0.1:24224"]],
    })
}

fn default_tag() -> String {
    "m365.audit".to_owned()
}

const fn default_keep_timestamp() -> bool {
    true
}

const fn default_require_ack() -> bool {
    true
}

/// The wait of Fluentd's own client (`ack_response_timeout`).
const fn default_ack_timeout_secs() -> u64 {
    190
}

/// Under the 6 MB of Fluent Bit's `buffer_max_size`.
const fn default_frame_bytes_max() -> usize {
    4 * MIB
}

const fn default_batch_records_max() -> usize {
    10_000
}

const fn default_batch_age_secs() -> u64 {
    1
}

const fn default_frames_in_flight_max() -> usize {
    4
}

#[cfg(test)]
mod tests {
    use super::host_and_port;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for (text, expected) in [
            ("127.0.0.1:24224", Some(("127.0.0.1", 24224))),
            ("[::1]:24224", Some(("::1", 24224))),
            ("collector.example.com:1", Some(("collector.example.com", 1))),
            ("::1:24224", None),
            ("collector", None),
            (":24224", None),
            ("a:0", None),
            ("a:70000", None),
            ("a b:1", None),
        ] {
            assert_eq!(host_and_port(text), expected, "{text}");
        }
    }
}
