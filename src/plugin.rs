//! The manifest: the facts about this source that a host needs before it starts it.
//!
//! Only the hosts and the permissions are defined here: the configuration comes from `config`, the metrics from
//! `metrics`. `plugin.toml` is this module's output.

use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::format;
use crate::config::{SOURCE_TYPE, source_keys, source_schema};
use crate::metrics;

/// The manifest of a source plugin.
#[derive(Debug, Serialize)]
pub struct Manifest {
    name: &'static str,
    version: &'static str,
    kind: &'static str,
    description: &'static str,
    licence: &'static str,
    hosts: Vec<HostEntry>,
    state: StateEntry,
    permissions: Vec<Permission>,
    metrics: Vec<MetricEntry>,
    config: toml::Table,
}

#[derive(Debug, Serialize)]
struct HostEntry {
    name: &'static str,
    artifact: &'static str,
    entry_point: &'static str,
}

#[derive(Debug, Serialize)]
struct StateEntry {
    key_prefix: String,
    format_version: u32,
    kinds: &'static [&'static str],
}

#[derive(Debug, Serialize)]
struct Permission {
    resource: &'static str,
    name: &'static str,
    required: bool,
    why: &'static str,
}

#[derive(Debug, Serialize)]
struct MetricEntry {
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
}

/// The manifest of this build.
pub fn manifest() -> Manifest {
    Manifest {
        name: SOURCE_TYPE,
        version: env!("CARGO_PKG_VERSION"),
        kind: "source",
        description: env!("CARGO_PKG_DESCRIPTION"),
        licence: env!("CARGO_PKG_LICENSE"),
        hosts: vec![
            HostEntry { name: "embedded", artifact: "m365-audit", entry_point: "m365-audit run -c agent.toml" },
            HostEntry {
                name: "fluent-bit",
                artifact: "libm365_audit.so",
                entry_point: "an input `name: m365_audit`, the file under `plugins:`",
            },
            HostEntry { name: "rust", artifact: "crate m365-audit", entry_point: "m365_audit::source" },
        ],
        state: StateEntry {
            key_prefix: format!("{}/<tenant>/", format::KEY_ROOT),
            format_version: format::FORMAT,
            kinds: format::KINDS,
        },
        permissions: vec![
            Permission {
                resource: "Office 365 Management APIs",
                name: "ActivityFeed.Read",
                required: true,
                why: "to read the audit log",
            },
            Permission {
                resource: "Office 365 Management APIs",
                name: "ActivityFeed.ReadDlp",
                required: false,
                why: "for the content type DLP.All; without it that type is parked and the others are read",
            },
            Permission {
                resource: "Microsoft Graph",
                name: crate::api::GRAPH_ROLE,
                required: false,
                why: "to fill gaps beyond seven days (`heal`); without it they stay declared",
            },
        ],
        metrics: metrics::ALL
            .iter()
            .map(|metric| MetricEntry { name: metric.name, kind: metric.kind.as_str(), labels: metric.labels })
            .collect(),
        config: config_table(),
    }
}

/// The manifest as TOML, which `plugin.toml` contains after its first line.
///
/// # Errors
/// None are known: TOML supports every kind of value in it.
pub fn manifest_toml() -> Result<String, toml::ser::Error> {
    toml::to_string(&manifest())
}

/// Each key of the source with its type, default, whether it is required, and its text.
fn config_table() -> toml::Table {
    let schema = source_schema();
    let required = |key: &str| schema["required"].as_array().is_some_and(|keys| keys.iter().any(|k| k == key));
    let mut table = toml::Table::new();
    for key in source_keys() {
        let field = &schema["properties"][*key];
        let mut entry = toml::Table::new();
        entry.insert("type".to_owned(), field["type"].as_str().unwrap_or("string").into());
        entry.insert("required".to_owned(), required(key).into());
        if let Some(default) = field.get("default").and_then(to_toml) {
            entry.insert("default".to_owned(), default);
        }
        let allowed = crate::config::allowed(field);
        if !allowed.is_empty() {
            let allowed: Vec<toml::Value> = allowed.into_iter().map(toml::Value::from).collect();
            entry.insert("allowed".to_owned(), allowed.into());
        }
        if field["writeOnly"] == true {
            entry.insert("secret".to_owned(), true.into());
        }
        let text = field["description"].as_str().unwrap_or_default();
        entry.insert("description".to_owned(), text.split_whitespace().collect::<Vec<_>>().join(" ").into());
        table.insert((*key).to_owned(), entry.into());
    }
    table
}

fn to_toml(value: &Value) -> Option<toml::Value> {
    toml::Value::try_from(value).ok()
}
