//! The feed's own forms, objects around an event, lines of other logs, our own records, encodings and archives.

use std::io::Write as _;

use m365_audit::config::Format;
use m365_audit::exports::form::Form;
use serde_json::{Map, Value, json};

use super::super::record;
use super::tables::purview;
use super::{Written, all, any, lines, text, whole, with_names, with_usual_time, with_zone};

pub fn forms() -> Vec<Written> {
    let mut forms = vec![
        whole("one event a line", Form::Feed, |events| lines(events.iter().cloned())),
        whole("an array", Form::Feed, |events| json!(events).to_string().into()),
        whole("arrays one after the other", Form::Feed, |events| {
            events.chunks(7).flat_map(|events| json!(events).to_string().into_bytes()).collect()
        }),
        whole("pretty-printed", Form::Feed, |events| serde_json::to_vec_pretty(events).unwrap()),
        whole("pretty-printed one by one", Form::Feed, |events| {
            events
                .iter()
                .flat_map(|event| [serde_json::to_vec_pretty(event).unwrap(), b"\r\n".to_vec()].concat())
                .collect()
        }),
        of_graph("a page of Graph", |events| {
            let page = json!({
                "@odata.context": "https://graph.microsoft.com/beta/$metadata#security/auditLog/queries('1')/records",
                "@odata.nextLink": "https://graph.microsoft.com/beta/security/auditLog/queries/1/records?$skiptoken=x",
                "value": events.iter().map(graph).collect::<Vec<_>>(),
            });
            serde_json::to_vec_pretty(&page).unwrap()
        }),
        of_graph("records of Graph, one a line", |events| lines(events.iter().map(graph))),
        whole("Defender's rows", Form::Defender, |events| {
            let row = |event: &Value| json!({"Timestamp": with_zone(event), "ActionType": text(event, "Operation"), "RawEventData": event});
            json!({"Schema": [], "Results": events.iter().map(row).collect::<Vec<_>>()}).to_string().into()
        }),
        whole("Defender's rows with the event as text", Form::Defender, |events| {
            lines(events.iter().map(|event| json!({"Timestamp": with_zone(event), "RawEventData": event.to_string()})))
        }),
        whole("hits of Elastic", Form::Elastic, |events| {
            let hit = |event: &Value| json!({"_index": "logs-o365", "_id": "1", "_source": {"@timestamp": with_zone(event), "event": {"original": event.to_string()}}});
            json!({"took": 3, "hits": {"total": {"value": 1}, "hits": events.iter().map(hit).collect::<Vec<_>>()}})
                .to_string()
                .into()
        }),
        whole("documents of Elastic, one a line", Form::Elastic, |events| {
            lines(
                events.iter().map(|event| json!({"@timestamp": with_zone(event), "event.original": event.to_string()})),
            )
        }),
        whole("results of Splunk", Form::Splunk, |events| {
            lines(events.iter().map(
                |event| json!({"preview": false, "result": {"_time": with_zone(event), "_raw": event.to_string()}}),
            ))
        }),
        whole("behind a syslog header", Form::LogLine, |events| {
            behind(events, |event| format!("<134>1 {} collector m365 - - - ", with_zone(event)))
        }),
        whole("behind an old syslog header", Form::LogLine, |events| {
            behind(events, |_| "Mar  2 10:15:00 collector m365-audit[12]: ".into())
        }),
        whole("a container runtime's lines", Form::LogLine, |events| {
            behind(events, |_| "2026-03-02T10:15:00.123456789Z stdout F ".into())
        }),
        whole("Docker's lines", Form::LogLine, |events| {
            lines(events.iter().map(|event| json!({"log": format!("{event}\n"), "stream": "stdout", "time": "2026-03-02T10:15:00.123456789Z"})))
        }),
        whole("Fluentd's lines", Form::LogLine, |events| {
            behind(events, |_| "2026-03-02T10:15:00+00:00\tm365.audit\t".into())
        }),
        own("our native records", Form::Native, |events| ours(events, Format::Native)),
        own("our ECS records", Form::Ecs, |events| ours(events, Format::Ecs)),
        own("our OCSF records", Form::Ocsf, |events| ours(events, Format::Ocsf)),
        own("our raw records", Form::Feed, |events| ours(events, Format::Raw)),
        whole("names in place of numbers", Form::Feed, |events| lines(events.iter().map(with_names))),
    ];
    forms.extend(packed());
    forms
}

/// Graph writes every time with a `Z`.
fn of_graph(name: &'static str, write: fn(&[Value]) -> Vec<u8>) -> Written {
    Written { name, form: Form::Graph, write, holds: any, kept: with_usual_time }
}

/// Records of ours have what data loss prevention found masked.
fn own(name: &'static str, form: Form, write: fn(&[Value]) -> Vec<u8>) -> Written {
    Written { name, form, write, holds: any, kept: all }
}

fn ours(events: &[Value], format: Format) -> Vec<u8> {
    events.iter().flat_map(|event| [record(format, &event.to_string()).as_bytes(), b"\n"].concat()).collect()
}

fn packed() -> Vec<Written> {
    vec![
        whole("gzip", Form::Feed, |events| gzip(&lines(events.iter().cloned()))),
        whole("gzip, twice", Form::Feed, |events| gzip(&gzip(&lines(events.iter().cloned())))),
        whole("zstd", Form::Feed, |events| zstd::encode_all(&lines(events.iter().cloned())[..], 3).unwrap()),
        whole("zip of Purview's export", Form::AuditCsv, |events| zip(&purview(events, ","))),
        whole("UTF-8 with a mark", Form::Feed, |events| [b"\xef\xbb\xbf", &*lines(events.iter().cloned())].concat()),
        whole("UTF-16, the low byte first", Form::Feed, |events| utf16(events, true, u16::to_le_bytes)),
        whole("UTF-16, the high byte first", Form::Feed, |events| utf16(events, true, u16::to_be_bytes)),
        whole("UTF-16 without a mark", Form::Feed, |events| utf16(events, false, u16::to_le_bytes)),
        whole("UTF-16 without a mark, the high byte first", Form::Feed, |events| {
            utf16(events, false, u16::to_be_bytes)
        }),
        Written {
            name: "Purview's export in windows-1252",
            form: Form::AuditCsv,
            write: |events| {
                encoding_rs::WINDOWS_1252.encode(std::str::from_utf8(&purview(events, ",")).unwrap()).0.into_owned()
            },
            holds: |event| !encoding_rs::WINDOWS_1252.encode(&event.to_string()).2,
            kept: all,
        },
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file("AuditLog_2026-03-02.csv", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(bytes).unwrap();
    archive.finish().unwrap().into_inner()
}

fn utf16(events: &[Value], mark: bool, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let text = String::from_utf8(lines(events.iter().cloned())).unwrap();
    let mark = mark.then_some(0xFEFF);
    mark.into_iter().chain(text.encode_utf16()).flat_map(bytes).collect()
}

fn behind(events: &[Value], header: fn(&Value) -> String) -> Vec<u8> {
    events.iter().flat_map(|event| format!("{}{event}\n", header(event)).into_bytes()).collect()
}

/// `auditData` of Graph: types are added, the time has a `Z`.
pub fn graph_data(event: &Value) -> Value {
    let mut data = typed(event);
    data["CreationTime"] = json!(with_zone(event));
    if event.get("CreationTime").is_none() {
        data.as_object_mut().unwrap().remove("CreationTime");
    }
    data
}

/// A record of Graph: types are added, the time has a `Z`, the names outside begin small, user and address are crossed.
fn graph(event: &Value) -> Value {
    let named = with_names(event);
    let data = graph_data(event);
    json!({
        "@odata.type": "#microsoft.graph.security.auditLogRecord", "id": text(event, "Id"), "createdDateTime": with_zone(event),
        "auditLogRecordType": small(&text(&named, "RecordType")), "operation": text(event, "Operation"), "organizationId": text(event, "OrganizationId"),
        "userType": small(&text(&named, "UserType")), "userId": text(event, "UserId"), "service": text(event, "Workload"), "objectId": text(event, "ObjectId"),
        "userPrincipalName": text(event, "UserKey"), "clientIp": text(event, "ClientIP"), "administrativeUnits": [""], "auditData": data,
    })
}

fn small(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}

/// An object with `@odata.type` in it and in every object below.
fn typed(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), typed(value)));
            let first = ("@odata.type".to_owned(), json!("#microsoft.graph.security.x"));
            members.chain([first]).collect::<Map<_, _>>().into()
        }
        Value::Array(elements) => elements.iter().map(typed).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}
