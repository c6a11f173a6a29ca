//! A configuration for the commands that change it: every source with the place of its declaration, even if the
//! configuration has problems.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Config;
use super::check::Findings;
use super::folder::{self, ConfigFiles};
use super::lines::parse_toml;
use super::origins::{Origins, TENANTS};
use super::problem::{ConfigError, Problem};
use super::read::{Outputs, placed, read_root, tenant_of};
use super::tenants;

/// The placeholder for an unset variable, where that is allowed.
const UNSET: &str = "unset-";

/// The declarations of a configuration, even if it has problems.
#[derive(Debug, Default)]
pub struct Survey {
    /// Every source, tenants of templates each on its own, in the order of their names.
    pub declared: Vec<Declared>,
    /// Names of the sources that are templates, or can only be templates since they have no tenant of their own.
    pub templates: Vec<String>,
    /// The folder of `tenants_dir`.
    pub tenants_dir: Option<PathBuf>,
    /// `data_dir`.
    pub data_dir: PathBuf,
    /// `control_socket`.
    pub control_socket: Option<PathBuf>,
    /// All problems.
    pub problems: Vec<Problem>,
}

/// A source, and the place of its declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name, `<template>.<tenant>` for a tenant of a template.
    pub name: String,
    /// The template.
    pub template: Option<String>,
    /// The tenant's id as written.
    pub tenant_id: String,
    /// The file.
    pub file: PathBuf,
    /// Its index among the template's tenants in that file.
    pub index: Option<usize>,
}

/// The sources without a tenant of their own.
fn templates(root: &Table) -> Vec<String> {
    let sources = root.get("sources").and_then(Value::as_table).into_iter().flatten();
    let is_template = |source: &Value| {
        source.as_table().is_some_and(|source| source.contains_key(TENANTS) || !source.contains_key("tenant_id"))
    };
    sources.filter(|(_, source)| is_template(source)).map(|(name, _)| name.clone()).collect()
}

/// The sources of a table whose variables are replaced.
fn declared(root: &Table, origins: &Origins, config: &Path) -> Vec<Declared> {
    let mut all = Vec::new();
    // Only the names: problems are found when the sources are read.
    let mut aside = Findings::default();
    for (name, table) in root.get("sources").and_then(Value::as_table).into_iter().flatten() {
        let Some(table) = table.as_table() else { continue };
        for source in tenants::expand(&mut aside, name.clone(), table.clone()) {
            let file = origins.file_of(&source.path).unwrap_or(config).to_owned();
            let is_tenant = source.name != source.group;
            if !is_tenant && !source.table.contains_key("tenant_id") {
                continue; // A template whose first tenant is still to come.
            }
            all.push(Declared {
                template: is_tenant.then(|| source.group.clone()),
                index: is_tenant.then(|| origins.index_of(&source.path)).flatten(),
                tenant_id: tenant_of(&source.table).unwrap_or_default(),
                file,
                name: source.name,
            });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl Config {
    /// Every source of the file `path` with the place of its declaration, and all problems: for commands that change a
    /// configuration, which must not add problems. `files` may have texts that are not written yet; an unset variable
    /// is not a problem here.
    ///
    /// # Errors
    /// The file cannot be read, or is not TOML.
    pub fn survey(path: &Path, files: &ConfigFiles) -> Result<Survey, ConfigError> {
        let text = Self::read(path, files)?;
        let env = |name: &str| Some(std::env::var(name).unwrap_or_else(|_| format!("{UNSET}{name}")));
        let (mut root, lines) = parse_toml(text.strip_prefix('\u{feff}').unwrap_or(&text))
            .map_err(|problems| ConfigError { path: Some(path.to_owned()), problems })?;
        let mut findings = Findings::of(Origins::of_text(lines));
        let found = folder::merge(&mut root, &mut findings.origins, &env, files);
        let tenants_dir = root.get("tenants_dir").and_then(Value::as_str).map(|dir| dir.replace("$$", "$").into());
        findings.expand(&mut root, "", &env);
        let templates = templates(&root);
        let declared = declared(&root, &findings.origins, path);
        let data_dir = root.get("data_dir").and_then(Value::as_str).map_or_else(super::default_data_dir, Into::into);
        let control_socket = root.get("control_socket").and_then(Value::as_str).map(Into::into);
        read_root(&mut findings, root, Outputs::Own);
        let mut problems = placed(findings);
        problems.extend(found);
        problems.retain(|problem| !problem.value.as_deref().is_some_and(|value| value.contains(UNSET)));
        Ok(Survey { declared, templates, tenants_dir, data_dir, control_socket, problems })
    }
}
