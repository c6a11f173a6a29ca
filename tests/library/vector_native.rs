//! What a pull request to Vector would hold (`examples/vector-native/upstream/`): the options of its source are the keys of
//! the library, in the library's words, and the page of options that Vector's own tool made of them has the same.
//! `.ci/vector-tree` compiles it in Vector's tree, tests it there, and compares that page with what the tool makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use m365_audit::config::SourceConfig;
use quote::ToTokens;
use serde_json::{Value, json};
use syn::{Attribute, Expr, Fields, File, Item, ItemEnum, ItemStruct, Lit, Meta, Stmt};

/// Keys of the library that this source does not take: one component is one tenant, and Vector has names of its own for
/// these (`tls`, `proxy`).
const NOT_TAKEN: &[&str] =
    &["type", "tenants", "ca_file", "proxy_certificate_file", "proxy_key_file", "proxy_url", "no_proxy"];
/// What only Vector's side of the source has.
const OF_VECTOR: &[&str] = &["tls", "data_dir", "acknowledgements", "log_namespace"];
/// Described in other words: how a secret and a value of the environment reach Vector, what its memory holds, and what the
/// program does for its own users.
const OTHER_WORDS: &[&str] = &[
    "client_secret",
    "client_secret_expires",
    "federated_token_file",
    "managed_identity_url",
    "managed_identity_header",
    "in_flight_bytes_max",
    "heal.graph",
    "severity.rules",
];

fn upstream(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vector-native/upstream").join(name)
}

/// Words, so that it does not matter where a line is broken.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(line) => Some(line.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    words(&lines.collect::<Vec<_>>().join("\n"))
}

/// What is between the brackets of `#[name(…)]`, of all that have it, without blanks and underscores.
fn arguments(attributes: &[Attribute], name: &str) -> String {
    let lists = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident(name) => Some(list.tokens.to_string()),
        _ => None,
    });
    lists.collect::<Vec<_>>().join(",").replace(' ', "")
}

/// The value of `key = "…"`.
fn named<'a>(arguments: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = arguments.split_once(&format!("{key}=\""))?;
    rest.split('"').next()
}

/// Vector's side of the configuration, as it is written.
struct Written {
    structs: BTreeMap<String, ItemStruct>,
    enums: BTreeMap<String, ItemEnum>,
    /// What functions like `default_poll_interval_secs` return.
    defaults: BTreeMap<String, Value>,
}

impl Written {
    fn read() -> Self {
        let mut written = Self { structs: BTreeMap::new(), enums: BTreeMap::new(), defaults: BTreeMap::new() };
        written.defaults.insert("default_true".into(), true.into());
        for name in ["config.rs", "options.rs"] {
            let text = fs::read_to_string(upstream("src/sources/m365_audit").join(name)).unwrap();
            let File { items, .. } = syn::parse_file(&text).unwrap();
            for item in items {
                match item {
                    Item::Struct(item) => drop(written.structs.insert(item.ident.to_string(), item)),
                    Item::Enum(item) => drop(written.enums.insert(item.ident.to_string(), item)),
                    Item::Fn(function) => {
                        if let Some(Stmt::Expr(Expr::Lit(literal), None)) = function.block.stmts.first()
                            && let Lit::Int(number) = &literal.lit
                        {
                            let number: u64 = number.base10_parse().unwrap();
                            written.defaults.insert(function.sig.ident.to_string(), number.into());
                        }
                    }
                    _ => {}
                }
            }
        }
        written
    }

    /// Compares a structure with the part of the library's schema that it stands for, and its members' descriptions with
    /// those `told` in the page of options.
    fn compare(&self, name: &str, schema: &Value, path: &str) -> BTreeMap<String, String> {
        let mut descriptions = BTreeMap::new();
        let Fields::Named(fields) = &self.structs[name].fields else { panic!("{name}") };
        let mut members = BTreeSet::new();
        for field in &fields.named {
            let key = field.ident.as_ref().unwrap().to_string();
            let at = format!("{path}{key}");
            descriptions.insert(key.clone(), documentation(&field.attrs));
            if path.is_empty() && OF_VECTOR.contains(&key.as_str()) {
                continue;
            }
            members.insert(key.clone());
            let key_schema = &schema["properties"][&key];
            let theirs = words(key_schema["description"].as_str().unwrap_or_default());
            let same = documentation(&field.attrs) == theirs;
            assert_eq!(same, !OTHER_WORDS.contains(&at.as_str()), "the description of `{at}`; the library's: {theirs}");
            self.compare_type(&field.ty.to_token_stream().to_string().replace(' ', ""), &field.attrs, key_schema, &at);
        }
        let known = schema["properties"].as_object().unwrap().keys();
        let known: BTreeSet<String> =
            known.filter(|key| !path.is_empty() || !NOT_TAKEN.contains(&key.as_str())).cloned().collect();
        assert_eq!(members, known, "the members of {name}");
        descriptions
    }

    fn compare_type(&self, of: &str, attributes: &[Attribute], schema: &Value, at: &str) {
        let serde = arguments(attributes, "serde");
        let inner = of.strip_prefix("Option<").and_then(|of| of.strip_suffix('>'));
        let of = inner.unwrap_or(of);
        let expected = if schema["oneOf"].is_array() { "enum" } else { schema["type"].as_str().unwrap_or_default() };
        let is_secret = schema["writeOnly"] == json!(true);
        assert_eq!(of == "SensitiveString", is_secret, "`{at}` is {of}");
        let mut otherwise = Value::Null;
        let kind = match of {
            "String" | "PathBuf" | "SensitiveString" | "Url" => "string",
            "bool" => {
                otherwise = false.into();
                "boolean"
            }
            "u32" | "u64" => {
                let range = arguments(attributes, "configurable").replace('_', "");
                for (bound, word) in [("maximum", "max"), ("minimum", "min")] {
                    if let Some(bound) = schema[bound].as_u64().filter(|bound| *bound > 0) {
                        assert!(
                            range.contains(&format!("{word}={bound}")),
                            "`{at}` is not held to {word} = {bound}: {range}"
                        );
                    }
                }
                "integer"
            }
            _ if of.starts_with("Vec<") => {
                otherwise = json!([]);
                "array"
            }
            _ if self.enums.contains_key(of) => {
                otherwise = self.compare_values(of, schema);
                "enum"
            }
            // Its members have the defaults.
            _ => {
                self.compare(of, schema, &format!("{at}."));
                otherwise = schema["default"].clone();
                "object"
            }
        };
        assert_eq!(kind, expected, "the type of `{at}`");
        let default = match named(&serde, "default") {
            Some("default_content_types") => schema["default"].clone(),
            Some(function) => self.defaults[function].clone(),
            None if serde.split(',').any(|word| word == "default") => otherwise,
            None => Value::Null,
        };
        assert_eq!(default, schema["default"], "the default of `{at}`");
    }

    /// Compares the values of an enumeration; returns its default.
    fn compare_values(&self, name: &str, schema: &Value) -> Value {
        let item = &self.enums[name];
        let in_snake_case = named(&arguments(&item.attrs, "serde"), "rename_all") == Some("snake_case");
        let mut default = Value::Null;
        let values = item.variants.iter().map(|variant| {
            let mut value = variant.ident.to_string();
            if let Some(renamed) = named(&arguments(&variant.attrs, "serde"), "rename") {
                value = renamed.to_owned();
            } else if in_snake_case {
                let capitals = value.char_indices().filter(|(at, c)| *at > 0 && c.is_uppercase());
                for (at, _) in capitals.collect::<Vec<_>>().into_iter().rev() {
                    value.insert(at, '_');
                }
                value = value.to_lowercase();
            }
            if variant.attrs.iter().any(|attribute| attribute.path().is_ident("default")) {
                default = value.as_str().into();
            }
            (value, documentation(&variant.attrs))
        });
        let values: Vec<(String, String)> = values.collect();
        let known = schema["oneOf"].as_array().unwrap().iter().map(|one| {
            (one["const"].as_str().unwrap().to_owned(), words(one["description"].as_str().unwrap_or_default()))
        });
        assert_eq!(values, known.collect::<Vec<_>>(), "the values of {name}");
        default
    }
}

/// The options of a page in CUE, each with its description.
fn page_of_options(text: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let mut lines = text.lines();
    let mut option = String::new();
    while let Some(line) = lines.next() {
        if let Some(name) =
            line.strip_prefix('\t').and_then(|line| line.strip_suffix(": {")).filter(|n| !n.starts_with('\t'))
        {
            option = name.to_owned();
            options.insert(option.clone(), String::new());
        } else if let Some(description) = line.strip_prefix("\t\tdescription: ") {
            let description = match description {
                "\"\"\"" => lines.by_ref().take_while(|line| line.trim() != "\"\"\"").collect::<Vec<_>>().join("\n"),
                line => line[1..line.len() - 1].replace("\\\"", "\""),
            };
            options.insert(option.clone(), words(&description.replace("\\\\", "\\")));
        }
    }
    options
}

#[test]
fn the_options_of_vectors_source_are_the_keys_of_the_library() {
    let written = Written::read();
    let mut descriptions = written.compare("M365AuditConfig", &SourceConfig::json_schema(), "");
    // Hidden on every page.
    descriptions.remove("log_namespace");
    let page = upstream("website/cue/reference/components/sources/generated/m365_audit.cue");
    let mut told = page_of_options(&fs::read_to_string(&page).unwrap());
    // Described by a type of Vector's own.
    assert!(told.remove("acknowledgements").is_some() && descriptions.remove("acknowledgements").is_some());
    assert_eq!(told, descriptions, "stale: `.ci/vector-tree --docs VECTOR_DIR` makes {} anew", page.display());
}

/// All that Vector's build needs to know of the files here, and no more.
#[test]
fn the_patch_names_the_files_that_are_here() {
    let patch = fs::read_to_string(upstream("vector.patch")).unwrap();
    let added = |line: &str| patch.lines().any(|patched| patched.strip_prefix('+') == Some(line));
    for line in [
        "pub mod m365_audit;",
        "mod m365_audit;",
        "sources-m365_audit = [\"dep:m365-audit\"]",
        "  \"sources-m365_audit\",",
    ] {
        assert!(added(line), "{line}");
    }
    for file in
        ["src/internal_events/m365_audit.rs", "src/sources/m365_audit/mod.rs", "src/sources/m365_audit/tests.rs"]
    {
        assert!(upstream(file).is_file(), "{file}");
    }
    assert!(patch.lines().all(|line| !line.starts_with("+m365-audit") || !line.contains("path =")), "{patch}");
}

/// `changelog.d/README.md` of Vector: two periods in the name, a type it knows, no headings, the authors last.
#[test]
fn the_changelog_fragment_has_the_form_vector_asks_for() {
    let fragments: Vec<PathBuf> =
        fs::read_dir(upstream("changelog.d")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [fragment] = &fragments[..] else { panic!("{fragments:?}") };
    let name = fragment.file_name().unwrap().to_str().unwrap();
    assert_eq!(name.split('.').skip(1).collect::<Vec<_>>(), ["feature", "md"], "{name}");
    let text = fs::read_to_string(fragment).unwrap();
    assert!(text.lines().all(|line| !line.starts_with('#')), "{text}");
    let authors = text.trim_end().lines().next_back().unwrap().strip_prefix("authors: ");
    assert!(authors.is_some_and(|names| !names.is_empty() && !names.contains('@')), "{text}");
}
