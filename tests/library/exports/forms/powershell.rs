//! What `Search-UnifiedAuditLog` and PowerShell's `ConvertTo-Json`, `Export-Csv` and `Select-Object` make of events.

use m365_audit::exports::form::Form;
use serde_json::{Map, Value, json};

use super::tables::csv;
use super::{Written, all, any, lines, name_of_type, text, whole, with_names};

pub fn forms() -> Vec<Written> {
    vec![
        whole("Search-UnifiedAuditLog | ConvertTo-Json", Form::UnifiedAuditLog, |events| {
            json!(events.iter().map(|event| outer(event, json!(event.to_string()))).collect::<Vec<_>>())
                .to_string()
                .into()
        }),
        whole("the same, pretty-printed", Form::UnifiedAuditLog, |events| {
            serde_json::to_vec_pretty(
                &events.iter().map(|event| outer(event, json!(event.to_string()))).collect::<Vec<_>>(),
            )
            .unwrap()
        }),
        whole("the same, one object a line", Form::UnifiedAuditLog, |events| {
            lines(events.iter().map(|event| outer(event, json!(event.to_string()))))
        }),
        whole("-Formatted", Form::UnifiedAuditLog, |events| {
            lines(events.iter().map(|event| outer(event, json!(with_names(event).to_string()))))
        }),
        whole("AuditData as an object, deep enough", Form::UnifiedAuditLog, |events| {
            serde_json::to_vec_pretty(&events.iter().map(|event| outer(event, event.clone())).collect::<Vec<_>>())
                .unwrap()
        }),
        Written {
            name: "AuditData as an object, at ConvertTo-Json's own depth of 2",
            form: Form::UnifiedAuditLog,
            write: |events| {
                json!(events.iter().map(|event| convert_to_json(&outer(event, event.clone()), 2)).collect::<Vec<_>>())
                    .to_string()
                    .into()
            },
            holds: any,
            kept: |event| is_flat_enough(event).then(|| event.clone()),
        },
        Written {
            name: "AuditData alone, at a depth of 1",
            form: Form::Feed,
            write: |events| lines(events.iter().map(|event| convert_to_json(event, 1))),
            holds: any,
            kept: |event| is_flat_enough(event).then(|| event.clone()),
        },
        whole("Export-Csv", Form::AuditCsv, |events| export_csv(events, "")),
        whole("Export-Csv of Windows PowerShell", Form::AuditCsv, |events| {
            export_csv(events, "#TYPE Deserialized.Microsoft.Exchange.Data.ApplicationLogic.UnifiedAuditLogEvent\r\n")
        }),
        Written { name: "Hawk", form: Form::FlatCsv, write: hawk, holds: is_for_hawk, kept: all },
    ]
}

/// The object of `Search-UnifiedAuditLog` around an event.
fn outer(event: &Value, audit_data: Value) -> Value {
    let record_type = member_name(event);
    json!({
        "RunspaceId": "1b6f2f5e-0000-4000-8000-000000000001", "RecordType": record_type,
        "CreationDate": text(event, "CreationTime"), "UserIds": text(event, "UserId"),
        "Operations": text(event, "Operation"), "AuditData": audit_data, "ResultIndex": 1, "ResultCount": 2,
        "Identity": text(event, "Id"), "IsValid": true, "ObjectState": "Unchanged",
    })
}

fn member_name(event: &Value) -> String {
    let number = super::member(event, "RecordType").and_then(Value::as_i64);
    number.and_then(name_of_type).map_or_else(|| text(event, "RecordType"), str::to_owned)
}

fn export_csv(events: &[Value], first: &str) -> Vec<u8> {
    let names = [
        "RunspaceId",
        "RecordType",
        "CreationDate",
        "UserIds",
        "Operations",
        "AuditData",
        "ResultIndex",
        "ResultCount",
        "Identity",
        "IsValid",
        "ObjectState",
    ];
    let rows = events.iter().map(|event| {
        let outer = outer(event, json!(event.to_string()));
        names.iter().map(|name| to_string(&outer[*name])).collect::<Vec<_>>()
    });
    let mut out = first.as_bytes().to_vec();
    out.extend_from_slice(&csv(&names, rows, "\r\n"));
    out
}

/// An object as PowerShell makes a text of it.
pub fn to_string(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(elements) => elements.iter().map(to_string).collect::<Vec<_>>().join(" "),
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| match value {
                Value::Array(_) => format!("{key}=System.Object[]"),
                // An object in an object has no text.
                Value::Object(_) => format!("{key}="),
                _ => format!("{key}={}", to_string(value)),
            });
            format!("@{{{}}}", members.collect::<Vec<_>>().join("; "))
        }
    }
}

/// `ConvertTo-Json -Depth`: what lies deeper is a text.
fn convert_to_json(value: &Value, depth: usize) -> Value {
    match value {
        Value::Object(_) | Value::Array(_) if depth == usize::MAX => json!(to_string(value)),
        Value::Object(members) => {
            let deeper = depth.checked_sub(1).unwrap_or(usize::MAX);
            members
                .iter()
                .map(|(key, value)| (key.clone(), convert_to_json(value, deeper)))
                .collect::<Map<_, _>>()
                .into()
        }
        Value::Array(elements) => {
            let deeper = depth.checked_sub(1).unwrap_or(usize::MAX);
            elements.iter().map(|value| convert_to_json(value, deeper)).collect::<Vec<_>>().into()
        }
        _ => value.clone(),
    }
}

/// Whether nothing lies deeper than an entry of a list, and entries have what the feed's schema gives them: then all of
/// it can be read back.
fn is_flat_enough(event: &Value) -> bool {
    const LISTS: [(&str, &[&str]); 5] = [
        ("Parameters", &["Name", "Value"]),
        ("ExtendedProperties", &["Name", "Value"]),
        ("ModifiedProperties", &["Name", "NewValue", "OldValue"]),
        ("Actor", &["ID", "Type"]),
        ("Target", &["ID", "Type"]),
    ];
    let is_kept = |key: &str, value: &Value| match key {
        "Type" => value.is_u64(),
        _ => value.as_str().is_some_and(|text| !text.contains("; ") && !text.contains("} @{")),
    };
    event.as_object().is_some_and(|members| {
        members.iter().all(|(name, value)| match value {
            Value::Array(entries) => {
                let keys = LISTS.iter().find(|(list, _)| list == name).map_or(&[][..], |(_, keys)| keys);
                !entries.is_empty()
                    && entries.iter().all(|entry| {
                        entry.as_object().is_some_and(|entry| {
                            entry.len() == keys.len()
                                && entry.iter().all(|(key, value)| keys.contains(&&**key) && is_kept(key, value))
                        })
                    })
            }
            Value::Object(_) => false,
            Value::String(text) => !text.contains("@{") && !text.starts_with("System."),
            _ => true,
        })
    })
}

/// Hawk's flattened columns.
fn hawk(events: &[Value]) -> Vec<u8> {
    const FIRST: [&str; 15] = [
        "RecordType",
        "CreationDate",
        "UserIds",
        "Operations",
        "ResultIndex",
        "Identity",
        "AuditCreationTime",
        "AuditId",
        "AuditRecordType",
        "Operation",
        "FullCommand",
        "UserType",
        "UserId",
        "Workload",
        "OrganizationId",
    ];
    let parameters = |event: &Value| -> Vec<(String, String)> {
        let entries = event["Parameters"].as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| (text(entry, "Name"), to_string(&entry["Value"]))).collect()
    };
    let mut names: Vec<String> = FIRST.iter().map(|name| (*name).to_owned()).collect();
    for event in events {
        let own = event.as_object().unwrap().keys();
        let own = own.filter(|name| !matches!(name.as_str(), "Id" | "CreationTime" | "Parameters")).cloned();
        let given = parameters(event).into_iter().map(|(name, _)| format!("Param_{name}"));
        for name in own.chain(given).collect::<Vec<_>>() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let rows = events.iter().map(|event| {
        let parameters = parameters(event);
        let cell = |name: &String| match name.as_str() {
            "RecordType" => member_name(event),
            "CreationDate" | "AuditCreationTime" => text(event, "CreationTime"),
            "UserIds" => text(event, "UserId"),
            "Operations" => text(event, "Operation"),
            "Identity" | "AuditId" => text(event, "Id"),
            "AuditRecordType" => text(event, "RecordType"),
            "ResultIndex" => "1".into(),
            "FullCommand" => full_command(event, &parameters),
            name => match name.strip_prefix("Param_") {
                Some(name) => {
                    parameters.iter().find(|(given, _)| given == name).map_or(String::new(), |(_, value)| value.clone())
                }
                None => to_string(&event[name]),
            },
        };
        names.iter().map(cell).collect::<Vec<_>>()
    });
    let header: Vec<&str> = names.iter().map(String::as_str).collect();
    csv(&header, rows.collect::<Vec<_>>().into_iter(), "\r\n")
}

fn full_command(event: &Value, parameters: &[(String, String)]) -> String {
    let parameters = parameters.iter().map(|(name, value)| match value.as_str() {
        value if value.contains(char::is_whitespace) => format!(" -{name} '{value}'"),
        "True" | "False" => format!(" -{name} ${}", value.to_lowercase()),
        value => format!(" -{name} {value}"),
    });
    text(event, "Operation") + &parameters.collect::<String>()
}

/// Hawk's columns keep texts and numbers, and parameters given once; an empty value is none.
fn is_for_hawk(event: &Value) -> bool {
    const NUMBERS: [&str; 6] = ["RecordType", "UserType", "Version", "Scope", "LogonType", "InternalLogonType"];
    let plain = |text: &str| {
        !text.is_empty()
            && text == text.trim()
            && !text.starts_with(['[', '{'])
            && !text.contains("@{")
            && !text.contains(" -")
    };
    let Some(members) = event.as_object() else { return false };
    let identity =
        ["Id", "CreationTime", "Operation", "RecordType", "UserId"].iter().all(|name| !text(event, name).is_empty());
    let parameters = match &event["Parameters"] {
        Value::Null => true,
        Value::Array(entries) => entries.iter().all(|entry| {
            let once = entries.iter().filter(|other| other["Name"] == entry["Name"]).count() == 1;
            entry.as_object().is_some_and(|entry| entry.len() == 2)
                && once
                && entry["Value"].as_str().is_some_and(plain)
        }),
        _ => false,
    };
    identity
        && parameters
        && members.iter().all(|(name, value)| match value {
            Value::String(text) => plain(text) && !name.contains(['.', '_', '/', '[']),
            Value::Number(_) => NUMBERS.contains(&name.as_str()),
            Value::Bool(_) => name == "ExternalAccess",
            Value::Array(_) => name == "Parameters",
            _ => false,
        })
}
