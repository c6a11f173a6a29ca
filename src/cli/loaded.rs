//! The configuration of a file, with the tenants that the table of its cluster has.

use std::path::{Path, PathBuf};

use super::{Failure, opened};
use crate::config::{Config, ConfigFiles, Problem, SOURCE_TYPE};
use crate::host::StateError;
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

/// The files of a configuration, and the rows of its cluster's table.
///
/// # Errors
/// The table cannot be read.
pub(super) async fn files(path: &Path) -> Result<ConfigFiles, Failure> {
    let files = ConfigFiles::beside(path);
    let Some(cluster) = Config::cluster_of(path) else { return Ok(files) };
    // What is wrong with the cluster itself is told with all else that is wrong.
    let Ok(store) = opened::connected(&cluster) else { return Ok(files) };
    match store.stored_tenants().await {
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
