//! The index template that is shipped for Elasticsearch and OpenSearch takes every ECS record: each field it types has
//! that type in all of them.

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
fn the_index_template_has_the_types_of_every_ecs_record() {
    let template: Value = serde_json::from_str(&example("elastic/index-template.json")).unwrap();
    let mappings = &template["template"]["mappings"];
    assert_eq!(mappings["date_detection"], false);
    let mut fields = Vec::new();
    typed(&mappings["properties"], &mut Vec::new(), &mut fields);
    assert!(fields.len() >= 8, "{fields:?}");
    let records = records("ecs");
    for (path, kind) in fields {
        let found: Vec<&Value> = records.iter().flat_map(|record| values(record, &path)).collect();
        // Without a blob there is no time of one; few records have a message.
        let may_be_absent = path == ["event", "created"] || path == ["message"];
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
