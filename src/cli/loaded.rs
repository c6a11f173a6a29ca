//! The configuration of a file, with the tenants that the table of its cluster has.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::opened::StoreWaits;
use super::{Failure, opened};
use crate::config::{Config, ConfigFiles, Problem, SOURCE_TYPE};
use crate::host::StateError;
use crate::hosts::postgres::OnWait;
use crate::hosts::postgres::tenants::StoredTenant;

/// As [`Config::load`].
///
/// # Errors
/// All problems, or that the cluster's table cannot be read.
pub(super) async fn load(path: &Path) -> Result<Config, Failure> {
    Ok(Config::load_of(path, &files(path).await?)?)
}

/// As [`Config::load_to_run`].
///
/// # Errors
/// All problems, or that the cluster's table cannot be read.
pub(super) async fn load_to_run(path: &Path) -> Result<(Config, Vec<Problem>), Failure> {
    Ok(Config::load_to_run_of(path, &files(path).await?)?)
}

/// As [`load_to_run`], but waits for a cluster's database that is away. The log is set up by what is read here, so
/// standard error has the wait.
///
/// # Errors
/// All problems, or that the database refuses.
pub(super) async fn load_to_run_once_there(path: &Path) -> Result<(Config, Vec<Problem>), Failure> {
    let mut waits = StoreWaits::default();
    let mut on_wait = |error: &StateError| {
        if let Some(line) = waits.line(error) {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    };
    Ok(Config::load_to_run_of(path, &files_of(path, Some(&mut on_wait)).await?)?)
}

/// The files of a configuration, and the rows of its cluster's table.
///
/// # Errors
/// The table cannot be read.
pub(super) async fn files(path: &Path) -> Result<ConfigFiles, Failure> {
    files_of(path, None).await
}

async fn files_of(path: &Path, on_wait: Option<&mut OnWait<'_>>) -> Result<ConfigFiles, Failure> {
    let files = ConfigFiles::beside(path);
    let Some(cluster) = Config::cluster_of(path) else { return Ok(files) };
    // What is wrong with the cluster itself is told with all else that is wrong.
    let Ok(store) = opened::connected(&cluster) else { return Ok(files) };
    let stored = match on_wait {
        Some(on_wait) => store.stored_tenants_once_there(on_wait).await,
        None => store.stored_tenants().await,
    };
    match stored {
        Ok(tenants) => Ok(files.with_stored(tenants.iter().map(|tenant| (place(tenant), text(tenant))).collect())),
        // Before `cluster init` there is no table.
        Err(StateError::Unavailable(why)) if why.contains("cluster init") => Ok(files),
        Err(error) => Err(Failure::of_cluster(error)),
    }
}

/// Where a tenant of the table stands, as a problem names it.
pub(super) fn place(tenant: &StoredTenant) -> PathBuf {
    PathBuf::from(format!("{TABLE}{}", tenant.name))
}

/// What such a place begins with.
pub(super) const TABLE: &str = "table tenant: ";

/// A tenant of the table as a file of `tenants_dir` would have it.
pub(super) fn text(tenant: &StoredTenant) -> String {
    let StoredTenant { id, name, template, settings } = tenant;
    // What is no table of keys was not written by `tenant add`: its tenant is told to lack them.
    let mut own: toml::Table = serde_json::from_str(settings).unwrap_or_default();
    own.insert("tenant_id".into(), id.as_str().into());
    let mut sources = toml::Table::new();
    match template {
        Some(template) => {
            own.insert("name".into(), name.as_str().into());
            let list = toml::Table::from_iter([("tenants".to_owned(), toml::Value::Array(vec![own.into()]))]);
            sources.insert(template.clone(), list.into());
        }
        None => {
            own.insert("type".into(), SOURCE_TYPE.into());
            sources.insert(name.clone(), own.into());
        }
    }
    toml::Table::from_iter([("sources".to_owned(), toml::Value::Table(sources))]).to_string()
}
