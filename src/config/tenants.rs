//! `[[sources.<name>.tenants]]`: one template, many tenants. Each entry becomes a source of its own, named
//! `<name>.<tenant>`, with the template's keys, overridden by its own; the rest of the program sees only sources.

use std::collections::HashSet;

use serde_json::{Value as Schema, json};
use toml::{Table, Value};

use super::check::Findings;
use super::credentials::is_credential;
use super::origins::TENANTS;
use super::problem::{Fault, Problem, join};
use super::schema::source_schema;

/// The key of an entry's name.
const NAME: &str = "name";

/// A source's table, ready to be checked.
pub(super) struct SourceTable {
    /// The source's name.
    pub name: String,
    /// The name sinks may use for it and its siblings.
    pub group: String,
    /// Its path in the file.
    pub path: String,
    pub table: Table,
    /// The keys that come from the template, at this other path.
    template: Option<(String, Vec<String>)>,
}

impl SourceTable {
    /// Moves a problem of the template to the template's place.
    pub fn place(&self, problem: &mut Problem) {
        let Some((template, inherited)) = &self.template else { return };
        let Some(below) = problem.key.strip_prefix(&format!("{}.", self.path)) else { return };
        let top = below.split(['.', '[']).next().unwrap_or_default();
        let own = problem.fault == Fault::Missing && top == "tenant_id";
        let missing = problem.fault == Fault::Missing && !self.table.contains_key(top);
        if !own && (missing || inherited.iter().any(|key| key == top)) {
            problem.key = join(template, below);
        }
    }
}

/// The sources that a table `[sources.<name>]` declares.
pub(super) fn expand(findings: &mut Findings, name: String, mut table: Table) -> Vec<SourceTable> {
    let path = join("sources", &name);
    let Some(entries) = table.remove(TENANTS) else {
        return vec![SourceTable { group: name.clone(), name, path, table, template: None }];
    };
    let list = join(&path, TENANTS);
    let Value::Array(entries) = entries else {
        findings.note(Problem::new(list, Fault::Invalid, format!("tables `[[{path}.tenants]]`")));
        return Vec::new();
    };
    if entries.is_empty() {
        findings.note(Problem::new(&list, Fault::Missing, format!("at least one table `[[{path}.tenants]]`")));
    }
    if table.contains_key("tenant_id") {
        let expected = "no `tenant_id` beside `tenants`: each of them has its own";
        findings.note(Problem::new(join(&path, "tenant_id"), Fault::Invalid, expected));
        table.remove("tenant_id");
    }
    let mut sources: Vec<SourceTable> = Vec::new();
    let mut names: HashSet<String> = HashSet::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("{list}[{index}]");
        let Value::Table(mut own) = entry else {
            findings.note(Problem::new(at, Fault::Invalid, format!("a table `[[{path}.tenants]]`")));
            continue;
        };
        let Some(tenant) = tenant_name(findings, &mut own, &at) else { continue };
        let full = format!("{name}.{tenant}");
        if !names.insert(full.clone()) {
            let there = sources.iter().find(|source| source.name == full).map(|source| source.path.clone());
            let expected = findings.other("a name that no other tenant of this source has", &there.unwrap_or_default());
            findings.note(Problem::new(join(&at, NAME), Fault::Invalid, expected).value(&tenant));
            continue;
        }
        let mut merged = table.clone();
        if own.keys().any(|key| is_credential(key)) {
            merged.retain(|key, _| !is_credential(key));
        }
        merged.retain(|key, _| !own.contains_key(key));
        let inherited: Vec<String> = merged.keys().cloned().collect();
        findings.inherit(&path, &at, &inherited);
        merged.extend(own);
        let template = Some((path.clone(), inherited));
        sources.push(SourceTable { name: full, group: name.clone(), path: at, table: merged, template });
    }
    sources
}

/// The entry's `name`, else its `tenant_id`.
fn tenant_name(findings: &mut Findings, entry: &mut Table, at: &str) -> Option<String> {
    if entry.contains_key(TENANTS) {
        findings.note(Problem::new(join(at, TENANTS), Fault::Unknown, "no tenants within a tenant"));
        return None;
    }
    let path = join(at, NAME);
    match entry.remove(NAME) {
        Some(Value::String(name)) if is_name(&name) => Some(name),
        Some(other) => {
            let shown = findings.shown(&Schema::Null, &other, &path);
            findings.note(Problem::new(path, Fault::Invalid, "a name of letters, digits, `_` and `-`").value(shown));
            None
        }
        // A missing or invalid GUID is reported when the source is read; here only a name is needed.
        None => match entry.get("tenant_id").and_then(Value::as_str).map(str::trim).filter(|id| is_name(id)) {
            Some(id) => Some(id.to_ascii_lowercase()),
            None => {
                Some(format!("tenant-{}", at.rsplit_once('[').map_or("", |(_, index)| index.trim_end_matches(']'))))
            }
        },
    }
}

/// Whether a name is valid for metrics, state and the command line.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// The schema of a source in a file: its own keys, and `tenants`.
pub(super) fn file_source_schema() -> Schema {
    let mut schema = source_schema();
    let mut entry = schema.clone();
    entry["description"] = json!(
        "One tenant of the template: any key of the source, which then stands in place of the template's. A key of a way \
         to sign in takes the place of all of the template's."
    );
    entry["properties"][NAME] = json!({
        "description": "The tenant's name in the source's: `<source>.<name>`. Default: its `tenant_id`.",
        "type": "string",
        "pattern": "^[A-Za-z0-9_-]+$",
        "examples": ["fabrikam"],
    });
    schema["properties"][TENANTS] = json!({
        "description": "Many tenants with one template: each entry is a source of its own, `<source>.<name>`, with the keys \
                        of `[sources.<source>]` and its own over them. `inputs` of a sink may name all of them, \
                        `<source>`, or one, `<source>.<name>`. More may stand in files of `tenants_dir`.",
        "type": "array",
        "items": entry,
        "minItems": 1,
        "x-expected": "tables `[[sources.<name>.tenants]]`",
        "examples": [[{ "name": "fabrikam", "tenant_id": "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55" }]],
    });
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|key| key != "tenant_id");
    }
    schema["oneOf"] = json!([{ "required": ["tenant_id"] }, { "required": [TENANTS] }]);
    schema
}
