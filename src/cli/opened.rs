//! The state of a configuration, wherever it is kept: under `data_dir`, or in the PostgreSQL of a cluster.

use std::path::Path;
use std::sync::Arc;

use super::Failure;
use super::exit::Exit;
use crate::clock::SystemClock;
use crate::config::{ClusterConfig, Config};
use crate::host::{StateError, StateStore};
use crate::hosts::embedded::store::SqliteStore;
use crate::hosts::postgres::{Endpoint, PostgresStore, UrlError};
use crate::model::Actionable;

/// A member that waits for its database says so once for so many attempts, one a second.
const WAITS_PER_LINE: u32 = 60;

/// The attempts of a member to reach its database.
#[derive(Default)]
pub(super) struct StoreWaits(u32);

impl StoreWaits {
    /// What to say of an attempt that failed, if it is to be said.
    pub fn line(&mut self, error: &StateError) -> Option<String> {
        let is_due = self.0.is_multiple_of(WAITS_PER_LINE);
        self.0 = self.0.saturating_add(1);
        is_due.then(|| {
            format!("cluster-store-away: {error} (hint: this process waits for it, then joins; nothing is lost)")
        })
    }
}

/// For reading, beside whoever writes.
///
/// # Errors
/// It is not there, or cannot be read.
pub(super) async fn for_reading(config: &Config) -> Result<Arc<dyn StateStore>, Failure> {
    match &config.cluster {
        Some(cluster) => Ok(Arc::new(shared(cluster).await?)),
        None => Ok(Arc::new(SqliteStore::open_read_only(&config.data_dir)?)),
    }
}

/// For this process alone, as long as it has it. That of a cluster is not to be had: its members hold the tenants.
///
/// # Errors
/// Another process has it, or it cannot be written.
pub(super) fn alone(config: &Config) -> Result<Arc<SqliteStore>, Failure> {
    if config.cluster.is_some() {
        return Err(Failure {
            message: "cluster-member-has-it: the tenants of a cluster are its members' (hint: run this where the member runs that reads \
                      the tenant; `m365-audit cluster status` names it)"
                .into(),
            exit: Exit::State,
        });
    }
    Ok(Arc::new(SqliteStore::open(&config.data_dir)?))
}

/// The store of a cluster, once its tables are there.
///
/// # Errors
/// It cannot be reached, or has no tables of this build.
pub(super) async fn shared(cluster: &ClusterConfig) -> Result<PostgresStore, Failure> {
    let store = connected(cluster)?;
    store.verify_tables().await.map_err(Failure::of_cluster)?;
    Ok(store)
}

/// As [`shared`], for a member: waits for a database that is away, as a running member does.
///
/// # Errors
/// The database refuses, or has no tables of this build.
pub(super) async fn shared_once_there(cluster: &ClusterConfig) -> Result<PostgresStore, Failure> {
    let store = connected(cluster)?;
    let mut waits = StoreWaits::default();
    let mut on_wait = |error: &StateError| {
        if let Some(line) = waits.line(error) {
            tracing::warn!("{line}");
        }
    };
    store.verify_tables_once_there(&mut on_wait).await.map_err(Failure::of_cluster)?;
    Ok(store)
}

/// As [`shared`], with or without tables.
///
/// # Errors
/// What is configured cannot be used.
pub(super) fn connected(cluster: &ClusterConfig) -> Result<PostgresStore, Failure> {
    let endpoint = endpoint(cluster).map_err(|problem| Failure { message: problem.in_words(), exit: Exit::Config })?;
    PostgresStore::new(&endpoint, &member(cluster), SystemClock::new()).map_err(Failure::internal)
}

/// What is wrong with `[cluster]`.
#[derive(Debug)]
pub(super) struct ClusterProblem {
    /// The key.
    pub key: &'static str,
    /// What is expected, and what is there.
    pub what: String,
    /// What to do.
    pub hint: String,
}

impl ClusterProblem {
    fn in_words(&self) -> String {
        format!("config-invalid: `cluster.{}` {}\n  hint: {}", self.key, self.what, self.hint)
    }
}

/// Where the cluster's database is.
///
/// # Errors
/// A file cannot be read, or the URL cannot be used.
pub(super) fn endpoint(cluster: &ClusterConfig) -> Result<Endpoint, ClusterProblem> {
    let read = |key: &'static str, path: &Path| {
        std::fs::read(path).map_err(|error| ClusterProblem {
            key,
            what: format!("names `{}`, which cannot be read: {error}", path.display()),
            hint: "it must be there and readable for the user this runs as".into(),
        })
    };
    let ca = cluster.ca_file.as_deref().map(|path| read("ca_file", path)).transpose()?;
    let from_file = cluster.url_file.as_deref().map(|path| read("url_file", path)).transpose()?;
    let text = match (&cluster.url, &from_file) {
        (Some(url), _) => url.expose().to_owned(),
        (None, Some(bytes)) => String::from_utf8_lossy(bytes).trim().to_owned(),
        (None, None) => String::new(),
    };
    let wrong = |error: UrlError| ClusterProblem {
        key: if cluster.url.is_some() { "url" } else { "url_file" },
        what: error.why().to_owned(),
        hint: error.hint(),
    };
    Endpoint::of(&text, ca.as_deref()).map_err(wrong)
}

/// The name of this process in the cluster.
pub(super) fn member(cluster: &ClusterConfig) -> String {
    cluster.member.clone().unwrap_or_else(|| {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if name.is_empty() { "m365-audit".to_owned() } else { name }
    })
}
