//! The generated documents, rendered from the types and tables that the program itself uses.
//!
//! This module writes no file; `tests/generated.rs` compares and writes.

#[cfg(feature = "cli")]
mod book;
#[cfg(feature = "cli")]
pub mod errors;
#[cfg(feature = "cli")]
mod network;

use std::fmt::Write as _;

use serde_json::Value;

use crate::config::{
    Config, LogConfig, MetricsConfig, ReceiptsConfig, SINK_KINDS, SOURCE_TYPE, allowed, config_schema, expectation,
    keys_of, one_of, pretty, record_keys, record_schema, schema_of, sink_keys, sink_schema, source_keys, source_schema,
};
use crate::metrics;
use crate::model::DOCS_URL;
use crate::plugin::manifest_toml;
use crate::severity::words::{about, condition};

/// One generated file.
pub struct Document {
    /// Its path from the root of the repository.
    pub path: String,
    /// Its required content.
    pub text: String,
}

/// Every generated file. Without the feature `cli` the pages of the errors are missing: some of the errors belong to
/// that feature.
pub fn all() -> Vec<Document> {
    let document = |path: &str, text| Document { path: path.to_owned(), text };
    let documents = vec![
        document("docs/configuration.md", configuration()),
        document("docs/metrics.md", metrics_page()),
        document("docs/record.md", record_page()),
        document("docs/rules.md", rules_page()),
        document("docs/schema/config.json", pretty(&config_schema())),
        document("docs/schema/record.json", pretty(&record_schema())),
        document("packaging/prometheus/m365-audit.rules.yml", alerts(include_str!("docs/alerts/rules.yml"))),
        document("packaging/prometheus/m365-audit.test.yml", alerts(include_str!("docs/alerts/test.yml"))),
        document("plugin.toml", plugin()),
    ];
    #[cfg(feature = "cli")]
    let documents =
        documents.into_iter().chain(errors::documents()).chain([book::summary(), network::page(), status()]).collect();
    documents
}

const NOTICE: &str = "<!-- Generated from the source by `cargo test --test generated`. Do not edit. -->";

fn plugin() -> String {
    let notice = "# Generated from the source by `cargo test --test generated`. Do not edit.\n";
    manifest_toml().map_or_else(|error| format!("# {error}\n"), |manifest| format!("{notice}{manifest}"))
}

/// The schema of `/status`.
#[cfg(feature = "cli")]
fn status() -> Document {
    let text = pretty(&crate::hosts::embedded::status::status_schema());
    Document { path: "docs/schema/status.json".to_owned(), text }
}

/// Alert rules and their tests, with the address of the book in each.
fn alerts(template: &str) -> String {
    let notice = "# Generated from src/docs/alerts by `cargo test --test generated`. Do not edit.\n";
    format!("{notice}{}", template.replace("$BOOK", DOCS_URL))
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
         - Every source must be read by a sink. Two sources may not read the same tenant.\n\
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
    let tenants = &config_schema()["properties"]["sources"]["additionalProperties"]["properties"]["tenants"];
    let entry = &tenants["items"];
    let _ = write!(
        page,
        "\n## `[[sources.<name>.tenants]]`\n\n{}\n\n{}\n\n\
         ```toml\n[sources.customers]\ntype = \"m365_audit\"\nclient_id = \"00000000-0000-0000-0000-000000000000\"\n\
         client_secret = \"${{M365_CLIENT_SECRET}}\"\n\n[[sources.customers.tenants]]\nname = \"fabrikam\"\n\
         tenant_id = \"11111111-1111-1111-1111-111111111111\"\n\n[[sources.customers.tenants]]\nname = \"adatum\"\n\
         tenant_id = \"22222222-2222-2222-2222-222222222222\"\ncloud = \"gcc_high\"\npoll_interval_secs = 60\n```\n",
        tenants["description"].as_str().unwrap_or_default(),
        entry["description"].as_str().unwrap_or_default(),
    );
    self::entry(&mut page, "name", &entry["properties"]["name"], None);
    let schema = source_schema()["properties"]["severity"].clone();
    let keys = keys_of::<crate::config::SeverityConfig>();
    section(&mut page, "`[sources.<name>.severity]`", schema["description"].as_str(), &schema, keys);
    let schema = source_schema()["properties"]["heal"].clone();
    let keys = keys_of::<crate::config::HealConfig>();
    section(&mut page, "`[sources.<name>.heal]`", schema["description"].as_str(), &schema, keys);
    for kind in SINK_KINDS {
        let schema = sink_schema(kind);
        let keys = sink_keys(kind);
        let title = format!("`[sinks.<name>]`, `type = \"{}\"`", kind.name);
        section(&mut page, &title, schema["description"].as_str(), &schema, &keys);
    }
    let schema = schema_of::<ReceiptsConfig>().to_value();
    section(&mut page, "`[receipts]`", schema["description"].as_str(), &schema, keys_of::<ReceiptsConfig>());
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
         The page has at most {SERIES_OF_TENANT_MAX} series for each tenant, as the column \"by default\" says. With \
         `[metrics] detail = \"content_type\"` it has all of them with all labels, several times as many.\n\n\
         | name | kind | labels | by default | meaning |\n| --- | --- | --- | --- | --- |\n",
        SERIES_OF_TENANT_MAX = metrics::SERIES_OF_TENANT_MAX
    );
    for metric in metrics::ALL {
        let labels = metric.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let (kind, by_tenant) = (metric.kind.as_str(), metric.by_tenant.as_str());
        let _ = writeln!(page, "| `{}` | {kind} | {labels} | {by_tenant} | {} |", metric.name, metric.help);
    }
    page
}

/// The reference of every rule.
fn rules_page() -> String {
    let mut page = format!(
        "{NOTICE}\n\n# Rules\n\n\
         An event's severity is the highest of the rules that match it; without one it is info. Every record names the \
         rules (`severity_rule`) and their reasons (`severity_reason`). `m365-audit explain FILE` shows it event by event.\n\n\
         - Rows marked *specification* are not lowered when the operation failed; others lose one step from medium up, \
         unless they describe a failure.\n\
         - Rows marked *refinement* contradict such a row and are off unless `severity.refine = true`, which also lowers \
         failed operations of the specification's rows.\n\
         - `drop` leaves the event out where `drop_routine` is on, unless another rule says more or the record is \
         flagged by data loss prevention. What is left out is counted by rule in \
         `m365_audit_dropped_events_total`.\n\
         - Built-in rules are changed under `[sources.<name>.severity]`; see `docs/configuration.md`.\n\n{RULE_FORM}"
    );
    for (area, rules) in crate::severity::areas() {
        let _ =
            write!(page, "\n## {area}\n\n| id | severity | when | why | ATT&CK |\n| --- | --- | --- | --- | --- |\n");
        for rule in rules {
            let mut severity = rule.verdict.as_str().to_owned();
            if !rule.severity_from.is_empty() {
                severity = format!("as `{}` says, else {severity}", rule.severity_from.join("`, `"));
            }
            for case in &rule.cases {
                let when: Vec<String> = case.when.iter().map(condition).collect();
                let _ = write!(severity, "; {} if {}", case.verdict.as_str(), when.join(", and "));
            }
            let mark = match (rule.spec, rule.refine) {
                (true, _) => " *specification*",
                (_, true) => " *refinement*",
                _ => "",
            };
            let replaces = match rule.replaces.as_slice() {
                [] => String::new(),
                ids => format!("; takes the place of {}", ids.join(", ")),
            };
            let reference = rule.reference.as_deref().map(|url| format!(" [more]({url})")).unwrap_or_default();
            let _ = writeln!(
                page,
                "| {}{mark} | {} | {}{replaces} | {}{reference} | {} |",
                rule.id,
                cell(&severity),
                cell(&about(&rule)),
                cell(&rule.reason),
                rule.technique.as_deref().unwrap_or_default()
            );
        }
    }
    page
}

/// A text escaped for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*").replace('\0', "NUL")
}

/// The form of rules, for operators.
const RULE_FORM: &str = r#"## Rules of your own

```toml
[sources.contoso.severity]
refine = false
rules_file = "/etc/m365-audit/rules.toml"   # the same as below, with `[[rule]]`

[[sources.contoso.severity.rules]]          # change a built-in rule: only the keys given
id = "EX-01"
severity = "critical"

[[sources.contoso.severity.rules]]          # take one away
id = "SP-12"
disable = true

[[sources.contoso.severity.rules]]          # add one; `drop` leaves events out, `unless` is what to keep
id = "OURS-1"
operations = ["Set-User", "Get-*"]
record_types = [1]
when = [{ actor = "service" }]
unless = [{ parameter = ["Identity"], like = ["*ceo*"] }]
replaces = ["ED-09"]                        # events that another rule also matches are delivered
severity = "drop"
reason = "upkeep by Microsoft's services"

[[sources.contoso.severity.rules]]          # more than one severity
id = "OURS-2"
operations = ["Add member to group"]
when = [{ modified = ["Group.DisplayName"], like = ["*payroll*"] }]
severity = "high"
cases = [{ when = [{ actor = "service" }], severity = "low", reason = "synchronisation put somebody into the payroll group" }]
reason = "somebody was put into the payroll group"
show = [{ field = ["ObjectId"] }]           # values that stand behind the reason
technique = "T1098"
```

An invalid rule is rejected when the configuration is read; the message names the rule, what is wrong with it, the
file and the line. `m365-audit validate -c agent.toml` reports all invalid rules at once, and `m365-audit explain --rules rules.toml
events.ndjson` shows what your rules make of events you have.

| key | meaning |
| --- | --- |
| `operations` | names, compared without case and trailing full stop; a `*` at the end takes every name that begins so |
| `record_types` | numbers of `RecordType`; beside `operations` both must fit |
| `when` | conditions that must all hold |
| `unless` | conditions of which none may hold |
| `severity` | `drop`, `info`, `low`, `medium`, `high`, `critical` |
| `severity_from` | paths of members whose word (`Low`, `Informational`, …) counts instead, the highest of them; `steps_below` lowers it |
| `cases` | `[{ when = […], severity = "…", reason = "…" }]`: the first that holds decides instead |
| `replaces` | ids of wider rules whose place this one takes |
| `fallback` | counts only where no other rule matched |
| `failure_counts` | the rule describes a failure, so a failed operation does not lower it |
| `reason`, `reference`, `technique` | why, where to read on, ATT&CK |
| `show` | subjects whose values stand behind the reason |

A condition is a table with one subject and at most one test. Names and texts in lists are alternatives; `*` stands for
any run of characters and case does not count.

| subject | what is looked at |
| --- | --- |
| `parameter = ["ForwardTo"]` | cmdlet parameters, as a list, an object or cmdlet text |
| `inbox_rule = ["ForwardTo"]` | an inbox rule's parts under the names of `New-InboxRule`, whatever made it |
| `property = ["RequestType"]` | `ExtendedProperties`, `OperationProperties`, `ExtraProperties`, `PropertyCollection` |
| `modified = ["Role.TemplateId"]` | the new value of a modified property |
| `field = ["Item.Subject"]` | members by path, lists looked through |
| `user = ["urn:spo:anon#*"]`, `user_agent = ["*PowerShell*"]` | patterns of `UserId`, of the user agent |
| `user_type = [3]`, `record_type = [11]` | numbers |
| `address = ["203.0.113.0/24"]` | the actor's address |
| `actor = "service"` | `service`, `application`, `person`, `guest`, `anonymous` |
| `any = [{ … }]`, `all = [{ … }]` | one of these, all of these |

| test | holds when the value |
| --- | --- |
| none | is there |
| `is = "set"`, `"blank"` | holds something other than blank and `$null`; holds nothing |
| `is = "true"`, `"false"` | is true, is false |
| `is = "external"`, `"internal"`, `"undecided"` | names somebody outside; only people inside; somebody who can be shown neither |
| `is = "hidden_folder"`, `"odd_name"` | is a folder nobody reads, in any of some twenty languages; is empty, punctuation, or three characters at most |
| `is = "actor"` | is who acted (`UserId`) |
| `like = ["*@x.example"]` | has one of these forms |
| `at_least = 1`, `at_most = 9` | begins with such a number; `10 KB` is 10,240 |
| `change = "emptied"`, `"grown"`, `"any"`; `old = ["…"]` | of `modified`: how it changed, what it was |
| `not = true` | turns the answer round |
"#;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise::{Event, Normaliser, NormaliserSettings};
    use crate::severity::Rules;

    #[test]
    fn the_rules_on_the_page_do_what_the_page_says() {
        let example = RULE_FORM.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let example: toml::Table = example.parse().unwrap();
        let rules = example["sources"]["contoso"]["severity"]["rules"].as_array().unwrap();
        let rules: Vec<toml::Table> = rules.iter().map(|rule| rule.as_table().unwrap().clone()).collect();
        let rules = std::sync::Arc::new(Rules::with(false, &[], &rules).unwrap());
        let normaliser = Normaliser::new(NormaliserSettings { rules, ..NormaliserSettings::default() });
        let cmdlet = |operation: &str, identity: &str| {
            format!(
                r#"{{"Id":"a","RecordType":1,"Operation":"{operation}","UserType":3,"Parameters":[{{"Name":"Identity","Value":"{identity}"}},{{"Name":"ForwardTo","Value":"x@example.net"}},{{"Name":"Name","Value":"mail"}}]}}"#
            )
        };
        let joined = |user_type: u8| {
            format!(
                r#"{{"Id":"a","RecordType":8,"Operation":"Add member to group.","UserId":"b@contoso.com","UserType":{user_type},"ObjectId":"joe@contoso.com","ModifiedProperties":[{{"Name":"Group.DisplayName","OldValue":"","NewValue":"EU Payroll"}}]}}"#
            )
        };
        for (event, expected) in [
            (cmdlet("New-InboxRule", "x"), "critical EX-01"),
            (r#"{"Id":"a","RecordType":6,"Operation":"FileAccessed"}"#.to_owned(), "info "),
            (cmdlet("Set-User", "joe"), "drop OURS-1"),
            (cmdlet("Get-Mailbox", "joe"), "drop OURS-1"),
            (cmdlet("Get-Mailbox", "the CEO"), "info ED-09"),
            (joined(0), "high OURS-2"),
            (joined(4), "low OURS-2"),
        ] {
            let event = Event::parse(event.as_bytes()).unwrap();
            let explained = normaliser.explain(&event);
            let ids: Vec<&str> = explained.assessment.matches.iter().map(|found| found.rule().id.as_str()).collect();
            let verdict = explained.assessment.drop.map_or(explained.assessment.severity().as_str(), |_| "drop");
            assert_eq!(format!("{verdict} {}", ids.join("+")), expected, "{}", event.text());
        }
    }
}
