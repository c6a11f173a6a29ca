//! The component template of fields that is shipped for Elasticsearch and OpenSearch fits every ECS record: each field it
//! types has that type in all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use m365_audit::config::Format;
use m365_audit::normalise::{Event, Normaliser, NormaliserSettings, Origin};
use serde_json::Value;

use crate::agents::example;
use crate::logstash::records;

/// Every value at this path, lists taken apart.
fn values<'a>(record: &'a Value, path: &[&str]) -> Vec<&'a Value> {
    match (record, path) {
        (Value::Array(items), _) => items.iter().flat_map(|item| values(item, path)).collect(),
        (value, []) => vec![value],
        (Value::Object(map), [first, rest @ ..]) => {
            map.get(*first).map(|inner| values(inner, rest)).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn typed<'a>(properties: &'a Value, way: &mut Vec<&'a str>, found: &mut Vec<(Vec<&'a str>, &'a str)>) {
    for (name, field) in properties.as_object().unwrap() {
        way.push(name);
        match field["type"].as_str() {
            Some(kind) => found.push((way.clone(), kind)),
            None => typed(&field["properties"], way, found),
        }
        way.pop();
    }
}

#[test]
fn the_component_template_has_the_types_of_every_ecs_record() {
    let template: Value = serde_json::from_str(&example("elastic/component-fields.json")).unwrap();
    let mappings = &template["template"]["mappings"];
    assert_eq!(mappings["date_detection"], false);
    let mut fields = Vec::new();
    typed(&mappings["properties"], &mut Vec::new(), &mut fields);
    assert!(fields.len() >= 8, "{fields:?}");
    let records = records("ecs");
    for (path, kind) in fields {
        let found: Vec<&Value> = records.iter().flat_map(|record| values(record, &path)).collect();
        // Without a blob there is no time of one; few records have a message.
        let may_be_absent =
            [&["event", "created"][..], &["message"], &["file", "mtime"], &["file", "size"]].contains(&&*path);
        assert!(!found.is_empty() || may_be_absent, "no record has {path:?}");
        for value in found {
            let text = value.as_str().unwrap_or_default();
            let fits = match kind {
                "ip" => text.parse::<std::net::IpAddr>().is_ok(),
                "date" => text.parse::<m365_audit::model::Timestamp>().is_ok(),
                "long" => value.is_i64() || value.is_u64(),
                _ => value.is_string(),
            };
            assert!(fits, "{path:?} is not of type {kind}: {value}");
        }
    }
    // An event whose own time cannot be read has none: the page says what a data stream needs then.
    let timed = records.iter().filter(|record| record["@timestamp"].is_string()).count();
    assert!(timed > records.len() * 9 / 10, "{timed} of {}", records.len());
}

/// The paths of everything in a record that is no object or list.
fn leaves(value: &Value, path: &str, out: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Object(members) => {
            return members.iter().for_each(|(name, v)| leaves(v, &format!("{path}.{name}"), out));
        }
        Value::Array(items) => return items.iter().for_each(|item| leaves(item, path, out)),
        Value::Null => return,
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
    };
    out.entry(path.to_owned()).or_default().insert(kind);
}

/// An index takes 1,000 fields, and of each field one type.
#[test]
fn the_records_of_every_rule_have_under_400_fields_and_one_type_each() {
    let settings = NormaliserSettings { format: Format::Ecs, ..NormaliserSettings::default() };
    let normaliser = Normaliser::new(settings);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let lines = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let of_rules = ["severity/cases.ndjson", "severity/rules.ndjson"].map(lines).concat();
    let of_rules = of_rules.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].to_string());
    let others = ["catalogue", "entra", "exchange", "general", "rules", "sharepoint"];
    let others = others.map(|name| lines(&format!("records/{name}.ndjson"))).concat();
    let mut fields = BTreeMap::new();
    let mut count = 0;
    for event in of_rules.chain(others.lines().map(str::to_owned)) {
        let event = Event::parse(event.as_bytes()).unwrap();
        let mut record = Vec::new();
        normaliser.render_from(&event, &Origin::default(), &mut record);
        leaves(&serde_json::from_slice(&record).unwrap_or_default(), "", &mut fields);
        count += 1;
    }
    assert!(count > 800, "{count}");
    let two: Vec<_> = fields.iter().filter(|(_, kinds)| kinds.len() > 1).collect();
    assert!(two.is_empty(), "{two:?}");
    assert!((90..400).contains(&fields.len()), "{} fields", fields.len());
}
