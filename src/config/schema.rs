//! The schema of the configuration, made from the types that read it: the one source for the checker, the JSON
//! Schema, the reference page and `plugin.toml`.

use std::fmt;
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::{Value, json};

use super::tenants::file_source_schema;
use super::{Config, SINK_KINDS, SOURCE_TYPE, SinkKind, SourceConfig};

/// A schema as text: indented, with a line break at the end.
pub fn pretty(schema: &Value) -> String {
    format!("{schema:#}\n")
}

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

/// The JSON Schema of a source's own keys, without `type`.
pub fn source_schema() -> Value {
    known_source_schema().clone()
}

/// The same, made once: a file may have thousands of sources.
pub(crate) fn known_source_schema() -> &'static Value {
    static KNOWN: OnceLock<Value> = OnceLock::new();
    KNOWN.get_or_init(|| schema_of::<SourceConfig>().to_value())
}

/// A source's own keys in the order they are declared.
pub fn source_keys() -> &'static [&'static str] {
    keys_of::<SourceConfig>()
}

/// The schema of a sink's keys, `inputs` among them, without `type`.
pub(crate) fn sink_schema(kind: &SinkKind) -> Value {
    let mut schema = (kind.schema)().to_value();
    schema["properties"]["inputs"] = json!({
        "description": "The sources whose records this sink receives.",
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
        "uniqueItems": true,
        "x-expected": "a list of the sources to receive",
        "examples": [["contoso"]],
    });
    require(&mut schema, "inputs");
    schema
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

/// The schema of one component: inlined, closed to unknown keys, and without the nulls that TOML does not have.
pub(crate) fn schema_of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schemars::transform::transform_subschemas(&mut without_null, &mut schema);
    without_null(&mut schema);
    schema
}

fn without_null(schema: &mut Schema) {
    schemars::transform::transform_subschemas(&mut without_null, schema);
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|t| t != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|c| c.get("type").is_none_or(|t| t != "null"));
        if let [Value::Object(only)] = choices.as_mut_slice() {
            let only = std::mem::take(only);
            schema.remove("anyOf");
            for (key, value) in only {
                if schema.get(&key).is_none() {
                    schema.insert(key, value);
                }
            }
        }
    }
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// The keys of a struct in the order they are declared: the schema's own map is sorted by name, and a reader wants
/// `tenant_id` before `allow_plain_http`.
pub(crate) fn keys_of<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut keys = FieldNames(&[]);
    // The answer is always an error: nothing is deserialized, only the list of fields is noted on the way.
    let _ = T::deserialize(&mut keys);
    keys.0
}

struct FieldNames(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut FieldNames {
    type Error = NoValue;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoValue> {
        Err(NoValue)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, NoValue> {
        self.0 = fields;
        Err(NoValue)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[derive(Debug)]
struct NoValue;

impl fmt::Display for NoValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only the names of the fields were asked for")
    }
}

impl std::error::Error for NoValue {}

impl serde::de::Error for NoValue {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}
