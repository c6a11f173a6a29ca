//! Tables: Purview's, Sentinel's, Splunk's, Defender's and Graph's.

use m365_audit::exports::form::Form;
use serde_json::{Map, Value, json};

use super::wrappers::graph_data;
use super::{Written, any, identity, member, name_of_type, text, whole, with_names, with_usual_time, with_zone};

pub fn forms() -> Vec<Written> {
    vec![
        whole("Purview's export", Form::AuditCsv, |events| [b"\xef\xbb\xbf", &*purview(events, ",")].concat()),
        whole("Purview's export, saved by Excel with semicolons", Form::AuditCsv, |events| {
            [b"sep=;\r\n", &*purview(events, ";")].concat()
        }),
        Written {
            name: "Sentinel's OfficeActivity as JSON",
            form: Form::OfficeActivity,
            write: |events| serde_json::to_vec_pretty(&events.iter().map(office_activity).collect::<Vec<_>>()).unwrap(),
            holds: any,
            kept: in_office_activity,
        },
        Written {
            name: "Sentinel's OfficeActivity as CSV",
            form: Form::OfficeActivityCsv,
            write: |events| {
                let rows: Vec<Value> = events.iter().map(office_activity).collect();
                let names: Vec<&str> = rows[0].as_object().unwrap().keys().map(String::as_str).collect();
                let header: Vec<String> = names
                    .iter()
                    .map(|name| match *name {
                        "TimeGenerated" => "TimeGenerated [UTC]".to_owned(),
                        name => name.to_owned(),
                    })
                    .collect();
                let header: Vec<&str> = header.iter().map(String::as_str).collect();
                csv(&header, rows.iter().map(|row| names.iter().map(|name| plain(&row[*name])).collect()), "\n")
            },
            holds: any,
            kept: in_office_activity,
        },
        whole("Splunk's CSV", Form::SplunkCsv, |events| {
            csv(
                &["_time", "host", "sourcetype", "_raw"],
                events.iter().map(|event| {
                    vec![with_zone(event), "h".into(), "o365:management:activity".into(), event.to_string()]
                }),
                "\n",
            )
        }),
        whole("Defender's CSV", Form::DefenderCsv, |events| {
            csv(
                &["Timestamp", "ActionType", "Application", "RawEventData"],
                events.iter().map(|event| {
                    vec![
                        with_zone(event),
                        text(event, "Operation"),
                        "Microsoft Exchange Online".into(),
                        event.to_string(),
                    ]
                }),
                "\n",
            )
        }),
        Written {
            name: "Graph's records as CSV, the audit data as JSON",
            form: Form::GraphCsv,
            write: |events| graph_csv(events, |event| Some(graph_data(event).to_string())),
            holds: any,
            kept: with_usual_time,
        },
        Written {
            name: "Graph's records as CSV, without the audit data",
            form: Form::GraphCsv,
            write: |events| graph_csv(events, |_| None),
            holds: has_identity,
            kept: identity,
        },
    ]
}

fn graph_csv(events: &[Value], data: fn(&Value) -> Option<String>) -> Vec<u8> {
    let mut header = vec![
        "id",
        "createdDateTime",
        "auditLogRecordType",
        "operation",
        "organizationId",
        "userType",
        "userId",
        "service",
        "objectId",
        "userPrincipalName",
        "clientIp",
        "administrativeUnits",
    ];
    header.extend(events.iter().find_map(data).map(|_| "auditData"));
    let rows = events.iter().map(|event| {
        let named = with_names(event);
        let mut row = vec![
            text(event, "Id"),
            with_zone(event),
            text(&named, "RecordType"),
            text(event, "Operation"),
            text(event, "OrganizationId"),
            text(&named, "UserType"),
            text(event, "UserId"),
            text(event, "Workload"),
            text(event, "ObjectId"),
            text(event, "UserKey"),
            text(event, "ClientIP"),
            String::new(),
        ];
        row.extend(data(event));
        row
    });
    csv(&header, rows, "\r\n")
}

fn has_identity(event: &Value) -> bool {
    ["Id", "CreationTime", "Operation", "RecordType"].iter().all(|name| !text(event, name).is_empty())
}

/// Rows as CSV, every cell in quotes.
pub fn csv(header: &[&str], rows: impl Iterator<Item = Vec<String>>, end: &str) -> Vec<u8> {
    separated(header, rows, ",", end)
}

fn separated(header: &[&str], rows: impl Iterator<Item = Vec<String>>, by: &str, end: &str) -> Vec<u8> {
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.map(|cell| format!("\"{}\"", cell.replace('"', "\"\""))).collect();
        cells.join(by) + end
    };
    let mut out = line(&mut header.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out.into_bytes()
}

/// Purview's audit search, exported.
pub fn purview(events: &[Value], by: &str) -> Vec<u8> {
    let header = [
        "RecordId",
        "CreationDate",
        "RecordType",
        "Operation",
        "UserId",
        "AuditData",
        "AssociatedAdminUnits",
        "AssociatedAdminUnitsNames",
    ];
    let rows = events.iter().map(|event| {
        vec![
            text(event, "Id"),
            with_zone(event),
            text(event, "RecordType"),
            text(event, "Operation"),
            text(event, "UserId"),
            event.to_string(),
            String::new(),
            String::new(),
        ]
    });
    separated(&header, rows, by, "\r\n")
}

/// The columns of `OfficeActivity` that hold a member, with the member; after "Azure Monitor Logs reference".
pub const COLUMNS: &[(&str, &str)] = &[
    ("AADGroupId", "AADGroupId"),
    ("AADTarget", "Target"),
    ("Activity", "Activity"),
    ("Actor", "Actor"),
    ("ActorContextId", "ActorContextId"),
    ("ActorIpAddress", "ActorIpAddress"),
    ("AddOnGuid", "AddOnGuid"),
    ("AddonName", "AddOnName"),
    ("AddOnType", "AddOnType"),
    ("AffectedItems", "AffectedItems"),
    ("AppId", "AppId"),
    ("Application", "Application"),
    ("ApplicationId", "ApplicationId"),
    ("ChannelGuid", "ChannelGuid"),
    ("ChannelName", "ChannelName"),
    ("ChannelType", "ChannelType"),
    ("ChatName", "ChatName"),
    ("ChatThreadId", "ChatThreadId"),
    ("Client_IPAddress", "ClientIPAddress"),
    ("ClientAppId", "ClientAppId"),
    ("ClientInfoString", "ClientInfoString"),
    ("ClientIP", "ClientIP"),
    ("ClientProcessName", "ClientProcessName"),
    ("ClientVersion", "ClientVersion"),
    ("CommunicationType", "CommunicationType"),
    ("DestFolder", "DestFolder"),
    ("Event_Data", "EventData"),
    ("EventSource", "EventSource"),
    ("ExtendedProperties", "ExtendedProperties"),
    ("ExternalAccess", "ExternalAccess"),
    ("ExtraProperties", "ExtraProperties"),
    ("Folder", "Folder"),
    ("Folders", "Folders"),
    ("InterSystemsId", "InterSystemsId"),
    ("IntraSystemId", "IntraSystemId"),
    ("Item", "Item"),
    ("ItemName", "ItemName"),
    ("ItemType", "ItemType"),
    ("Logon_Type", "LogonType"),
    ("LogonUserDisplayName", "LogonUserDisplayName"),
    ("LogonUserSid", "LogonUserSid"),
    ("MailboxGuid", "MailboxGuid"),
    ("MailboxOwnerSid", "MailboxOwnerSid"),
    ("MailboxOwnerUPN", "MailboxOwnerUPN"),
    ("Members", "Members"),
    ("ModifiedProperties", "ModifiedProperties"),
    ("Name", "Name"),
    ("NewValue", "NewValue"),
    ("OldValue", "OldValue"),
    ("OfficeId", "Id"),
    ("OfficeObjectId", "ObjectId"),
    ("OfficeWorkload", "Workload"),
    ("Operation", "Operation"),
    ("OperationProperties", "OperationProperties"),
    ("OrganizationId", "OrganizationId"),
    ("OrganizationName", "OrganizationName"),
    ("OriginatingServer", "OriginatingServer"),
    ("Parameters", "Parameters"),
    ("RecordType", "RecordType"),
    ("ResultStatus", "ResultStatus"),
    ("SendAsUserSmtp", "SendAsUserSmtp"),
    ("SendOnBehalfOfUserSmtp", "SendOnBehalfOfUserSmtp"),
    ("SharingType", "SharingType"),
    ("Site_", "Site"),
    ("Site_Url", "SiteUrl"),
    ("SourceFileExtension", "SourceFileExtension"),
    ("SourceFileName", "SourceFileName"),
    ("SourceRelativeUrl", "SourceRelativeUrl"),
    ("TargetUserOrGroupName", "TargetUserOrGroupName"),
    ("TargetUserOrGroupType", "TargetUserOrGroupType"),
    ("TeamGuid", "TeamGuid"),
    ("TeamName", "TeamName"),
    ("TimeGenerated", "CreationTime"),
    ("UserAgent", "UserAgent"),
    ("UserDomain", "UserDomain"),
    ("UserId", "UserId"),
    ("UserKey", "UserKey"),
    ("UserSharedWith", "UserSharedWith"),
    ("UserType", "UserType"),
];

/// Columns that Azure holds as text though the member is a list or an object.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A row of `OfficeActivity`.
fn office_activity(event: &Value) -> Value {
    const DYNAMIC: [&str; 3] = ["ExtraProperties", "Members", "OperationProperties"];
    let named = with_names(event);
    let mut row: Map<String, Value> = [
        ("TenantId", json!("5b0f2f5e-0000-4000-8000-000000000009")),
        ("SourceSystem", json!("OfficeActivityManager")),
        ("Type", json!("OfficeActivity")),
        ("_IsBillable", json!("False")),
        ("Start_Time", json!(with_zone(event))),
        ("ElevationTime", json!(with_zone(event))),
        ("SourceRecordId", json!(text(event, "Id"))),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for (column, name) in COLUMNS {
        let value = match *name {
            "CreationTime" => json!(with_zone(event)),
            "LogonType" => match member(event, name).and_then(Value::as_u64) {
                Some(0) => json!("Owner"),
                Some(1) => json!("Admin"),
                Some(2) => json!("Delegated"),
                _ => json!(text(event, name)),
            },
            "RecordType" | "UserType" => json!(text(&named, name)),
            name if DYNAMIC.contains(&name) => member(event, name).cloned().unwrap_or(Value::Null),
            name => json!(member(event, name).map_or(String::new(), plain)),
        };
        row.insert((*column).to_owned(), value);
    }
    row.into()
}

/// Members without a column are gone, and what is empty. Only what Sentinel reads into this table is looked at: Exchange,
/// SharePoint and Teams.
fn in_office_activity(event: &Value) -> Option<Value> {
    let known = member(event, "RecordType")?.as_i64().is_some_and(|number| name_of_type(number).is_some());
    let workloads = ["Exchange", "SharePoint", "OneDrive", "MicrosoftTeams"];
    if !known || !workloads.contains(&&*text(event, "Workload")) || !has_identity(event) {
        return None;
    }
    let event = with_usual_time(event)?;
    let kept = event.as_object()?.iter().filter(|(name, value)| {
        COLUMNS.iter().any(|(_, member)| member.eq_ignore_ascii_case(name)) && !value.is_null() && *value != ""
    });
    Some(Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect()))
}
