//! What a pull request to Vector would hold beside the source itself (`examples/vector-native/upstream/`): the page of its
//! options is made from the library's own schema, as Vector makes those of its components from theirs.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use m365_audit::config::SourceConfig;
use serde_json::Value;

fn upstream(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vector-native/upstream").join(name)
}

/// A text as CUE has it: in one line, or in many between three quotation marks.
fn text(text: &str, tabs: usize) -> String {
    let escaped = text.replace('\\', "\\\\");
    if !escaped.contains('\n') {
        return format!("\"{}\"", escaped.replace('"', "\\\""));
    }
    let indent = "\t".repeat(tabs + 1);
    let lines: Vec<String> =
        escaped.lines().map(|line| if line.is_empty() { String::new() } else { format!("{indent}{line}") }).collect();
    format!("\"\"\"\n{}\n{indent}\"\"\"", lines.join("\n"))
}

fn value(value: &Value) -> String {
    match value {
        Value::String(string) => text(string, 0),
        Value::Array(items) => format!("[{}]", items.iter().map(self::value).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// What an option takes, below `type`.
fn kind(schema: &Value, tabs: usize) -> String {
    let indent = "\t".repeat(tabs);
    let mut members = String::new();
    let mut add = |member: String| writeln!(members, "{indent}\t{member}").unwrap();
    let default = schema.get("default").filter(|default| !default.is_object());
    let name = match schema["type"].as_str() {
        Some("integer") => "uint",
        Some("boolean") => "bool",
        Some("number") => "float",
        Some("array") => "array",
        Some("object") => "object",
        _ => "string",
    };
    if let Some(default) = default {
        add(format!("default: {}", value(default)));
    }
    match name {
        "array" => add(format!("items: type: {}", kind(&schema["items"], tabs + 1))),
        "object" => {
            if let Some(properties) = schema["properties"].as_object() {
                let mut inner = String::new();
                for (name, schema) in properties {
                    option(name, schema, false, tabs + 2, &mut inner);
                }
                add(format!("options: {{\n{inner}{indent}\t}}"));
            }
        }
        // Vector's docs name a list's example by the list.
        "bool" => {}
        _ => {
            if let Some(examples) = schema["examples"].as_array() {
                add(format!("examples: {}", value(&Value::Array(examples.clone()))));
            }
        }
    }
    let values = schema["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["const"].as_str()?, one["description"].as_str().unwrap_or_default())));
    let values: Vec<(&str, &str)> = values.collect();
    if !values.is_empty() {
        let texts: Vec<String> = values.iter().map(|(_, what)| text(what, tabs + 2)).collect();
        // `cue fmt` lines up neighbours that stand in one line each.
        let mut each = String::new();
        for of_a_kind in values.iter().zip(&texts).collect::<Vec<_>>().chunk_by(|a, b| is_line(a.1) && is_line(b.1)) {
            let wide = of_a_kind.iter().map(|((name, _), _)| name.len()).max().unwrap_or_default();
            for ((name, _), what) in of_a_kind {
                let blanks = wide - name.len();
                writeln!(each, "{indent}\t\t\"{name}\": {:blanks$}{what}", "").unwrap();
            }
        }
        add(format!("enum: {{\n{each}{indent}\t}}"));
    }
    if members.is_empty() {
        return format!("{name}: {{}}");
    }
    format!("{name}: {{\n{members}{indent}}}")
}

fn is_line(text: &str) -> bool {
    !text.contains('\n')
}

fn option(name: &str, schema: &Value, required: bool, tabs: usize, out: &mut String) {
    let indent = "\t".repeat(tabs);
    let mut what = schema["description"].as_str().unwrap_or_default().to_owned();
    for (bound, word) in [("minimum", "At least"), ("maximum", "At most")] {
        if let Some(bound) = schema[bound].as_u64().filter(|bound| *bound > 0) {
            write!(what, "\n{word} {bound}.").unwrap();
        }
    }
    let mut kind = kind(schema, tabs + 1);
    if name.ends_with("_secs") {
        kind.insert_str(kind.rfind('}').unwrap(), &format!("\tunit: \"seconds\"\n{indent}\t"));
    }
    let what = text(&what, tabs + 1);
    // `cue fmt` lines up what stands in one line each.
    let blanks = if what.contains('\n') { "" } else { "   " };
    write!(
        out,
        "{indent}{name}: {{\n{indent}\tdescription: {what}\n{indent}\trequired: {blanks}{required}\n{indent}\ttype: {kind}\n{indent}}}\n"
    )
    .unwrap();
}

/// `website/cue/reference/components/sources/generated/m365_audit.cue`.
fn generated() -> String {
    let schema = SourceConfig::json_schema();
    let mut options = String::new();
    for (name, schema) in schema["properties"].as_object().unwrap() {
        // What Vector has of its own, and what its source does not take: one component is one tenant.
        if !["type", "tenants"].contains(&name.as_str()) {
            option(name, schema, name == "tenant_id", 1, &mut options);
        }
    }
    format!("package metadata\n\ngenerated: components: sources: m365_audit: configuration: {{\n{options}}}\n")
}

/// What only Vector's side of the source has.
const OF_VECTOR: &str = "	data_dir: {
		description: \"The directory under which this source's state is kept. By default, the global `data_dir` option is used.\"
		required:    false
		type: string: {
			examples: [\"/var/lib/vector\"]
		}
	}
";

#[test]
fn the_options_in_vectors_documents_are_those_of_the_library() {
    let path = upstream("website/cue/reference/components/sources/generated/m365_audit.cue");
    let mut made = generated();
    let place = made.find("\tdlp_flag_secs: {").expect("options are in order");
    made.insert_str(place, OF_VECTOR);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "stale: UPDATE_EXPECT=1 cargo test --test library vector_native:: writes {}",
        path.display()
    );
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
