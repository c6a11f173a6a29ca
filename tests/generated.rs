//! The generated documents are what the source says, and the examples are valid.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use m365_audit::config::{Config, config_schema, source_schema};
use m365_audit::docs;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rewrites what is stale and fails once; with `CI` set it only fails.
#[test]
fn generated_files_are_fresh() {
    let mut stale = Vec::new();
    for document in docs::all() {
        let path = root().join(document.path);
        // A checkout may have changed the line breaks.
        let found = fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
        if found == document.text {
            continue;
        }
        stale.push(document.path);
        if std::env::var_os("CI").is_none() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, document.text).unwrap();
        }
    }
    let remedy = if std::env::var_os("CI").is_none() {
        "they were rewritten: look at the difference and commit it"
    } else {
        "run `cargo test --test generated` without `CI` set and commit what it writes"
    };
    assert!(stale.is_empty(), "stale: {}; {remedy}", stale.join(", "));
}

fn example(name: &str) -> (String, Config) {
    let text = fs::read_to_string(root().join("examples").join(name)).unwrap();
    let config = Config::parse(&text, &|name| name.ends_with("_CLIENT_SECRET").then(|| "a secret's value".to_owned()));
    (text, config.unwrap_or_else(|error| panic!("examples/{name}: {error}")))
}

#[test]
fn the_examples_are_valid_and_raise_no_warning() {
    for name in ["minimal.toml", "agent.toml"] {
        let (_, config) = example(name);
        assert_eq!(config.warnings(), [], "examples/{name}");
    }
}

#[test]
fn the_complete_example_shows_every_key_with_a_value_of_its_type() {
    let (text, _) = example("agent.toml");
    let shown: BTreeSet<&str> =
        text.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")).map(|(key, _)| key).collect();
    let schema = source_schema();
    for key in schema["properties"].as_object().unwrap().keys() {
        assert!(shown.contains(key.as_str()), "examples/agent.toml does not show `{key}`");
    }
    // What is commented out must be valid too, but for the alternatives that exclude each other or name files.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.contains("_file = ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    Config::parse(&uncommented, &|_| Some("x".to_owned())).unwrap_or_else(|error| panic!("{error}"));
}

/// A key without a text or an example is a hole in the reference page.
#[test]
fn every_key_has_a_text_and_an_example() {
    fn walk(path: &str, schema: &serde_json::Value) {
        for choice in schema["oneOf"].as_array().into_iter().flatten() {
            walk(path, choice);
        }
        if schema["additionalProperties"].is_object() {
            walk(&format!("{path}.<name>"), &schema["additionalProperties"]);
        }
        for (key, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            assert!(field["description"].as_str().is_some_and(|text| !text.is_empty()), "{path} has no doc comment");
            let is_table = field["type"] == "object";
            assert!(is_table || key == "type" || field["examples"].is_array(), "{path} has no example");
            walk(&path, field);
        }
    }
    walk("", &config_schema());
}

/// The example of each key is accepted, and so is its default: the schema's ranges and the types agree.
#[test]
fn the_documented_examples_and_defaults_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let schema = source_schema();
    for (key, field) in schema["properties"].as_object().unwrap() {
        for value in field["examples"].as_array().into_iter().flatten().chain(field.get("default")) {
            let mut table = toml::Table::new();
            table.insert("tenant_id".into(), "00000000-0000-0000-0000-000000000000".into());
            table.insert("client_id".into(), "00000000-0000-0000-0000-000000000000".into());
            if key != "client_secret_file" {
                table.insert("client_secret".into(), "x".into());
            }
            let value = match key.ends_with("_file") {
                true => file.to_str().unwrap().into(),
                false => toml::Value::try_from(value).unwrap(),
            };
            table.insert(key.clone(), value);
            let source = m365_audit::config::SourceConfig::parse_table("x", table, &|_| Some("x".to_owned()));
            assert!(source.is_ok(), "`{key}` = {field}: {source:?}");
        }
    }
}
