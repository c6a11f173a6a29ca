//! `[cluster]`: many processes on one PostgreSQL.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;

/// `[cluster]`: this process is one of many that share the tenants, with their state in one PostgreSQL in place of
/// `data_dir`. [A second machine](cluster.md) describes the setup and the guarantees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterConfig {
    /// The database, `postgres://USER@HOST/DATABASE`. TLS with the server's name verified (`sslmode=verify-full`) is
    /// the default; `sslmode=disable` is accepted only for this machine and Unix sockets. A password comes as
    /// `${NAME}`, or the whole URL as `url_file`.
    #[serde(default)]
    #[schemars(length(min = 1), example = &"postgres://m365@db.internal/m365?sslmode=verify-full")]
    pub url: Option<Secret>,

    /// A file with the URL in place of `url`.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/cluster_url")]
    pub url_file: Option<PathBuf>,

    /// Certificates (PEM) of the authorities that are trusted for the database beside those of this machine.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/db-ca.pem")]
    pub ca_file: Option<PathBuf>,

    /// The name of this process in the cluster, which no other has. Default: the name of the host.
    #[serde(default)]
    #[schemars(length(min = 1, max = 200), example = &"${HOSTNAME}")]
    pub member: Option<String>,

    /// When a process is silent for this long, others take its tenants.
    #[serde(default = "default_lease_secs")]
    #[schemars(range(min = 5, max = 600), example = &30)]
    pub lease_secs: u64,

    /// How many tenants this process should have, compared with the weights of the others.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 1000), example = &2)]
    pub weight: u32,

    /// Accept `file` and `stdout` as sinks. By default they are refused: records on the disk of one machine are not
    /// available to the others.
    #[serde(default)]
    #[schemars(example = &true)]
    pub allow_local_sinks: bool,
}

const fn default_lease_secs() -> u64 {
    20
}

const fn default_weight() -> u32 {
    1
}
