//! The generated documents: what each file holds, rendered from the types and tables that the program itself uses.
//!
//! Nothing is written here; `tests/generated.rs` compares and writes.

#[cfg(feature = "cli")]
pub mod errors;

use std::fmt::Write as _;

use serde_json::Value;

use crate::config::{
    Config, LogConfig, MetricsConfig, SINK_KINDS, SOURCE_TYPE, allowed, config_schema, expectation, keys_of, one_of,
    pretty, record_keys, record_schema, schema_of, sink_schema, source_keys, source_schema,
};
use crate::metrics;
use crate::plugin::manifest_toml;

/// One generated file.
pub struct Document {
    /// Where it stands, from the root of the repository.
    pub path: String,
    /// What it must hold.
    pub text: String,
}

/// Every generated file. Without the feature `cli` the pages of the errors are missing: some of them are its own.
pub fn all() -> Vec<Document> {
    let document = |path: &str, text| Document { path: path.to_owned(), text };
    let documents = vec![
        document("docs/configuration.md", configuration()),
        document("docs/metrics.md", metrics_page()),
        document("docs/record.md", record_page()),
        document("docs/schema/config.json", pretty(&config_schema())),
        document("docs/schema/record.json", pretty(&record_schema())),
        document("plugin.toml", plugin()),
    ];
    #[cfg(feature = "cli")]
    let documents = documents.into_iter().chain(errors::documents()).collect();
    documents
}

const NOTICE: &str = "<!-- Generated from the source by `cargo test --test generated`. Do not edit. -->";

fn plugin() -> String {
    let notice = "# Generated from the source by `cargo test --test generated`. Do not edit.\n";
    manifest_toml().map_or_else(|error| format!("# {error}\n"), |manifest| format!("{notice}{manifest}"))
}

/// The reference of every key.
fn configuration() -> String {
    let mut page = format!(
        "{NOTICE}\n\n# Configuration\n\n\
         One TOML file. `m365-audit validate -c agent.toml` tells all its problems at once; \
         `m365-audit schema config` prints its JSON Schema; `examples/` holds complete files.\n\n\
         - Unknown keys are errors.\n\
         - `${{NAME}}` in any string is replaced by that environment variable, which must be set; `$$` is one dollar. \
         A number, a switch or a comma-separated list may come from a variable too: `poll_interval_secs = \"${{POLL}}\"`.\n\
         - Names of sources and sinks consist of letters, digits, `_` and `-`.\n\
         - Every source must be read by a sink. Two sources may read the same tenant if they share no content type.\n\
         - Fluent Bit properties have the same names as the keys of the source; there, lists are separated by commas and \
         numbers may have a unit (`5m`, `32M`).\n"
    );
    let root = schema_of::<Config>().to_value();
    // The tables have sections of their own.
    let keys = root["properties"].as_object().into_iter().flatten().filter(|(_, field)| field["type"] != "object");
    let keys: Vec<&str> = keys.map(|(key, _)| key.as_str()).collect();
    section(&mut page, "Top level", None, &root, &keys);
    section(
        &mut page,
        &format!("`[sources.<name>]`, `type = \"{SOURCE_TYPE}\"`"),
        source_schema()["description"].as_str(),
        &source_schema(),
        source_keys(),
    );
    page.push_str("\n| `cloud` | API and token audience | authority |\n| --- | --- | --- |\n");
    for cloud in crate::config::Cloud::ALL {
        let name = serde_json::to_value(cloud).ok();
        let name = name.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
        let _ = writeln!(page, "| `{name}` | {} | {} |", cloud.api_url(), cloud.authority_url());
    }
    for kind in SINK_KINDS {
        let schema = sink_schema(kind);
        let keys: Vec<&str> = std::iter::once("inputs").chain((kind.keys)().iter().copied()).collect();
        let title = format!("`[sinks.<name>]`, `type = \"{}\"`", kind.name);
        section(&mut page, &title, schema["description"].as_str(), &schema, &keys);
    }
    let schema = schema_of::<MetricsConfig>().to_value();
    section(&mut page, "`[metrics]`", schema["description"].as_str(), &schema, keys_of::<MetricsConfig>());
    let schema = schema_of::<LogConfig>().to_value();
    section(&mut page, "`[log]`", schema["description"].as_str(), &schema, keys_of::<LogConfig>());
    page
}

fn section(page: &mut String, title: &str, description: Option<&str>, schema: &Value, keys: &[&str]) {
    let _ = write!(page, "\n## {title}\n");
    if let Some(text) = description {
        let _ = write!(page, "\n{text}\n");
    }
    for key in keys {
        entry(page, key, &schema["properties"][*key], schema["required"].as_array());
    }
}

fn entry(page: &mut String, key: &str, field: &Value, required: Option<&Vec<Value>>) {
    let _ = write!(page, "\n### `{key}`\n\n{}\n\n", field["description"].as_str().unwrap_or_default());
    let _ = writeln!(page, "- type: {}", expectation(field));
    let is_required = required.is_some_and(|keys| keys.iter().any(|k| k == key));
    match field.get("default") {
        Some(default) => {
            let _ = writeln!(page, "- default: `{}`", as_toml(default));
        }
        None if is_required => page.push_str("- required\n"),
        None => page.push_str("- default: none\n"),
    }
    if let Some(example) = field["examples"].get(0) {
        let _ = writeln!(page, "- example: `{key} = {}`", as_toml(example));
    }
    if let Some(hint) = field["x-hint"].as_str() {
        let _ = writeln!(page, "- where to find it: {hint}");
    }
    variants(page, field);
}

/// The meaning of each word of an enumeration.
fn variants(page: &mut String, field: &Value) {
    for choice in field["oneOf"].as_array().into_iter().flatten() {
        if let (Some(word), Some(text)) = (choice["const"].as_str(), choice["description"].as_str()) {
            let _ = writeln!(page, "- `{word}`: {text}");
        }
    }
}

fn as_toml(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}

/// The reference of every metric.
fn metrics_page() -> String {
    let mut page = format!(
        "{NOTICE}\n\n# Metrics\n\n\
         With `[metrics]` in the configuration they are served as Prometheus text at `/metrics`. In another host they go \
         to that host's recorder of the `metrics` facade.\n\n\
         | name | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
    );
    for metric in metrics::ALL {
        let labels = metric.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(page, "| `{}` | {} | {labels} | {} |", metric.name, metric.kind.as_str(), metric.help);
    }
    page
}

/// The reference of the native record.
fn record_page() -> String {
    let schema = record_schema();
    let mut page = format!(
        "{NOTICE}\n\n# The record\n\n{}\n\n\
         The JSON Schema is `docs/schema/record.json`; `m365-audit schema record` prints it.\n\n\
         | member | type | always there | meaning |\n| --- | --- | --- | --- |\n",
        schema["description"].as_str().unwrap_or_default()
    );
    record_rows(&mut page, "", &schema, record_keys());
    page
}

fn record_rows(page: &mut String, prefix: &str, schema: &Value, keys: &[&str]) {
    for key in keys {
        let field = &schema["properties"][*key];
        let always = schema["required"].as_array().is_some_and(|keys| keys.iter().any(|k| k == key));
        let kind = match &field["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
            kind => kind.as_str().unwrap_or("string").to_owned(),
        };
        let text = field["description"].as_str().unwrap_or_default().replace('\n', " ");
        let words = allowed(field);
        let words = if words.len() < 2 { String::new() } else { format!(" It is {}.", one_of(&words)) };
        let always = if always { "yes" } else { "" };
        let _ = writeln!(page, "| `{prefix}{key}` | {kind} | {always} | {text}{words} |");
        if let Some(inner) = field["properties"].as_object() {
            let inner: Vec<&str> = inner.keys().map(String::as_str).collect();
            record_rows(page, &format!("{prefix}{key}."), field, &inner);
        }
    }
}
