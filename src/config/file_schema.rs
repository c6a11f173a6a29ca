//! The schema of the whole file, assembled from those of its parts.

use serde_json::{Value, json};

use super::Config;
use super::schema::{keys_of, schema_of};
use super::sinks::{SINK_KINDS, SelectionConfig, SinkKind};
use super::source::SOURCE_TYPE;
use super::tenants::file_source_schema;

/// The JSON Schema of the whole file: what `m365-audit schema config` prints.
pub fn config_schema() -> Value {
    let mut root = schema_of::<Config>().to_value();
    let mut source = file_source_schema();
    with_type(&mut source, SOURCE_TYPE);
    // Draft 2020-12 resolves relative to the root; everything is inlined, so no `$defs` are needed.
    root["properties"]["sources"]["additionalProperties"] = source;
    let sinks: Vec<Value> = SINK_KINDS
        .iter()
        .map(|kind| {
            let mut sink = sink_schema(kind);
            with_type(&mut sink, kind.name);
            sink
        })
        .collect();
    root["properties"]["sinks"]["additionalProperties"] = json!({ "oneOf": sinks });
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("m365-audit configuration");
    root
}

/// The schema of a sink's keys, `inputs` and those of [`SelectionConfig`] among them, without `type`.
pub(crate) fn sink_schema(kind: &SinkKind) -> Value {
    let mut schema = (kind.schema)().to_value();
    schema["properties"]["inputs"] = json!({
        "description": "The sources whose records this sink receives: `\"*\"` for all, the name of a template for all its tenants, or \
                        one source.",
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
        "uniqueItems": true,
        "x-expected": "a list of the sources to receive",
        "examples": [["contoso"]],
    });
    require(&mut schema, "inputs");
    let mut selection = schema_of::<SelectionConfig>().to_value();
    if let (Some(own), Value::Object(more)) = (schema["properties"].as_object_mut(), selection["properties"].take()) {
        own.extend(more);
    }
    schema
}

/// A sink's keys, `inputs` first, in the order for documentation.
pub(crate) fn sink_keys(kind: &SinkKind) -> Vec<&'static str> {
    let selection = keys_of::<SelectionConfig>();
    ["inputs"].iter().chain(&(kind.keys)()).chain(selection).copied().collect()
}

fn with_type(schema: &mut Value, name: &str) {
    schema["properties"]["type"] = json!({ "description": "The component's type.", "const": name });
    require(schema, "type");
}

fn require(schema: &mut Value, key: &str) {
    match schema["required"].as_array_mut() {
        Some(keys) => keys.insert(0, json!(key)),
        None => schema["required"] = json!([key]),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SINK_KINDS;

    #[test]
    fn the_keys_that_are_shown_of_a_sink_are_those_of_its_schema() {
        for kind in SINK_KINDS {
            let mut shown = (kind.keys)();
            shown.sort_unstable();
            let schema = (kind.schema)().to_value();
            let known: Vec<&String> =
                schema["properties"].as_object().map(|keys| keys.keys().collect()).unwrap_or_default();
            assert_eq!(shown, known, "{}", kind.name);
        }
    }
}
