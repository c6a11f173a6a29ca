//! `type = "kafka"`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::fluent_forward::host_and_port;
use super::parts::TlsFiles;
use super::{Issue, exclusive, keys_beside, readable};
use crate::config::schema::keys_of;
use crate::config::secret::Secret;
use crate::config::transport::is_loopback;

/// Writes each record as one message to a Kafka topic: Apache Kafka, Azure Event Hubs, and other brokers with its
/// protocol.
///
/// A record counts as delivered when the broker has acknowledged it for all in-sync replicas (`acks=all`); the producer
/// is idempotent, so that the client's own retries cause no duplicates. Only builds with the feature `kafka` have this
/// sink: the packages and the image do. Needs Kafka 1.0 or newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KafkaConfig {
    /// Brokers to begin with, `host:port`; the others of the cluster are learned from them.
    #[schemars(schema_with = "brokers_schema")]
    pub brokers: Vec<String>,

    /// The topic. It must exist, unless the brokers create topics automatically.
    #[schemars(length(min = 1, max = 249), example = &"m365-audit")]
    pub topic: String,

    /// The key of a message, which also chooses its partition.
    #[serde(default)]
    #[schemars(example = &"tenant")]
    pub key: KafkaKey,

    /// How batches of messages are compressed.
    #[serde(default)]
    #[schemars(example = &"zstd")]
    pub compression: KafkaCompression,

    /// Bytes of messages in one batch, before compression; a single larger message is a batch of its own. A broker refuses
    /// a batch that is larger than the topic's `max.message.bytes` (1,048,588 unless it was changed), after which its
    /// messages are sent in smaller ones.
    #[serde(default = "default_batch_bytes_max")]
    #[schemars(range(min = 1024, max = 8_388_608), example = 262144)]
    pub batch_bytes_max: usize,

    /// Seconds after which the sink reports that it has no acknowledgement. It does not send the messages again: they
    /// stay in flight for as long as it takes.
    #[serde(default = "default_timeout_secs")]
    #[schemars(range(min = 1, max = 3600), example = 60)]
    pub timeout_secs: u64,

    /// How to sign in at the brokers. Needs `username` and a password.
    #[serde(default)]
    #[schemars(example = &"scram_sha_512")]
    pub sasl_mechanism: Option<SaslMechanism>,

    /// User name to sign in with. Azure Event Hubs: `$$ConnectionString` (`$$` is one dollar).
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), example = &"m365")]
    pub username: Option<String>,

    /// That user's password. Azure Event Hubs: the connection string.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1), extend("format" = "password", "writeOnly" = true), example = &"${KAFKA_PASSWORD}")]
    pub password: Option<Secret>,

    /// A file that holds the password alone. It is read again when the brokers refuse the former password.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/run/credentials/m365-audit/kafka_password")]
    pub password_file: Option<PathBuf>,

    /// Connect with TLS.
    #[serde(default)]
    #[schemars(example = true)]
    pub tls: bool,

    /// The files of its TLS.
    #[serde(flatten)]
    pub tls_files: TlsFiles,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KafkaKey {
    /// The event's id, by which a consumer or a compacted topic recognises a repeated record. A record without one,
    /// such as that of a gap, gets a digest of itself.
    #[default]
    EventId,
    /// The tenant's id: all records of a tenant are in one partition.
    Tenant,
}

/// How batches of messages are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KafkaCompression {
    /// Not at all.
    #[default]
    None,
    /// With gzip, the only one that Azure Event Hubs accepts.
    Gzip,
    /// With Snappy.
    Snappy,
    /// With LZ4.
    Lz4,
    /// With Zstandard. Needs Kafka 2.1 or newer.
    Zstd,
}

/// How to sign in at the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaslMechanism {
    /// `PLAIN`: the password itself is sent, so only with TLS, or to this machine.
    Plain,
    /// `SCRAM-SHA-256`
    #[serde(rename = "scram_sha_256")]
    ScramSha256,
    /// `SCRAM-SHA-512`
    #[serde(rename = "scram_sha_512")]
    ScramSha512,
}

impl KafkaConfig {
    pub(super) fn keys() -> Vec<&'static str> {
        keys_beside(
            &[
                "brokers",
                "topic",
                "key",
                "compression",
                "batch_bytes_max",
                "timeout_secs",
                "sasl_mechanism",
                "username",
                "password",
                "password_file",
                "tls",
            ],
            &[keys_of::<TlsFiles>()],
        )
    }

    pub(super) fn issues(&self) -> Vec<Issue> {
        self.issues_in(cfg!(feature = "kafka"))
    }

    /// `has_sink`: whether this build has the sink.
    fn issues_in(&self, has_sink: bool) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !has_sink {
            issues.push(Issue::new("type", NOT_IN_THIS_BUILD));
        }
        for broker in &self.brokers {
            if host_and_port(broker).is_none() {
                issues.push(Issue::new("brokers", format!("each as `host:port`; `{broker}` is not")));
            }
        }
        if !self.topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            issues.push(Issue::new("topic", "a topic's name: letters, digits, `.`, `_` and `-`"));
        }
        issues
            .extend(exclusive(("password", self.password.is_some()), ("password_file", self.password_file.is_some())));
        let has_password = self.password.is_some() || self.password_file.is_some();
        if self.username.is_some() != has_password {
            issues.push(Issue::new("username", "`username` and a password together, or neither"));
        }
        if self.sasl_mechanism.is_none() && (self.username.is_some() || has_password) {
            issues.push(Issue::new("sasl_mechanism", "`plain`, `scram_sha_256` or `scram_sha_512` beside a user name"));
        }
        if self.sasl_mechanism.is_some() && self.username.is_none() && !has_password {
            issues.push(Issue::new("username", "`username` and a password beside `sasl_mechanism`"));
        }
        if self.sasl_mechanism == Some(SaslMechanism::Plain) && !self.tls && !self.is_local() {
            issues.push(Issue::new(
                "tls",
                "`true` with `sasl_mechanism = \"plain\"`: the password would cross the network in the clear",
            ));
        }
        if self.tls_files.ca_file.is_some() && !self.tls {
            issues.push(Issue::new("ca_file", "`tls = true` beside it"));
        }
        issues.extend(self.tls_files.issues((!self.tls).then_some("`tls = true`")));
        issues.extend(self.password_file.as_deref().and_then(|path| readable("password_file", path)));
        issues
    }

    /// Whether all configured brokers are on this machine.
    fn is_local(&self) -> bool {
        self.brokers
            .iter()
            .filter_map(|broker| Url::parse(&format!("https://{broker}")).ok())
            .all(|url| is_loopback(&url))
    }
}

const NOT_IN_THIS_BUILD: &str = "a build with the feature `kafka`, which this one is without: take the Debian package or \
                                 the image, which have it, or build with `cargo build --release --features kafka`";

fn brokers_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
        "uniqueItems": true,
        "x-expected": "a list of `host:port`",
        "examples": [["kafka1.example.com:9093", "kafka2.example.com:9093"]],
    })
}

/// A little under the default limit of a topic.
const fn default_batch_bytes_max() -> usize {
    1_000_000
}

const fn default_timeout_secs() -> u64 {
    30
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "brokers = [\"kafka.example:9092\"]\ntopic = \"m365-audit\"\n";

    fn issues(more: &str) -> Vec<Issue> {
        toml::from_str::<KafkaConfig>(&format!("{GOOD}{more}")).unwrap().issues_in(true)
    }

    #[test]
    fn without_the_feature_the_type_is_an_error_that_says_what_to_do() {
        let config: KafkaConfig = toml::from_str(GOOD).unwrap();
        let [issue] = &config.issues_in(false)[..] else { panic!("one issue") };
        assert_eq!(issue.key, "type");
        assert!(
            issue.expected.contains("without") && issue.expected.contains("cargo build --release --features kafka")
        );
        assert_eq!(config.issues_in(true), []);
    }

    #[test]
    fn keys_that_do_not_go_together_are_named() {
        let login = "username = \"u\"\npassword = \"p\"\n";
        for (more, expected) in [
            (String::new(), None),
            (format!("tls = true\nsasl_mechanism = \"plain\"\n{login}"), None),
            (format!("sasl_mechanism = \"scram_sha_256\"\n{login}"), None),
            (format!("sasl_mechanism = \"plain\"\n{login}"), Some("tls")),
            (login.to_owned(), Some("sasl_mechanism")),
            ("sasl_mechanism = \"scram_sha_512\"".to_owned(), Some("username")),
            ("username = \"u\"\nsasl_mechanism = \"scram_sha_512\"".to_owned(), Some("username")),
            (
                format!("{login}password_file = \"/dev/null\"\nsasl_mechanism = \"scram_sha_512\""),
                Some("password_file"),
            ),
            ("ca_file = \"/dev/null\"".to_owned(), Some("ca_file")),
            ("client_certificate_file = \"/dev/null\"".to_owned(), Some("client_certificate_file")),
        ] {
            let found = issues(&more);
            assert_eq!(found.first().map(|issue| issue.key), expected, "{more}: {found:?}");
        }
        let local = "brokers = [\"127.0.0.1:9092\", \"localhost:9093\"]\ntopic = \"t\"\nsasl_mechanism = \"plain\"\n";
        let local: KafkaConfig = toml::from_str(&format!("{local}{login}")).unwrap();
        assert_eq!(local.issues_in(true), [], "on this machine nobody listens in");
        for (wrong, key) in [("kafka.example", "brokers"), ("a topic", "topic")] {
            let text = GOOD.replace(if key == "topic" { "m365-audit" } else { "kafka.example:9092" }, wrong);
            let config: KafkaConfig = toml::from_str(&text).unwrap();
            assert_eq!(config.issues_in(true).first().map(|issue| issue.key), Some(key));
        }
    }
}
