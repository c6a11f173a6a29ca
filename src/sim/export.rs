//! The second witness: the exports of the simulated tenant's audit search, in the forms of Microsoft's tools.
//!
//! Follows the known properties of those forms: Purview's export, `Search-UnifiedAuditLog` through `ConvertTo-Json` and
//! `Export-Csv`, and Microsoft Graph's `/security/auditLog/queries/{id}/records`. Bytes in, bytes out: `tenant` decides
//! which events are exported.

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::events::RawMembers;
use crate::model::{TenantId, Timestamp};

/// A form in which an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExportForm {
    /// Purview's audit search: CSV with a byte order mark, some rows twice.
    PurviewCsv,
    /// `Search-UnifiedAuditLog | ConvertTo-Json`: an array, or one object if there is one event.
    SearchJson,
    /// The same with `-Formatted`: names in place of the numbers of record types.
    SearchJsonFormatted,
    /// `Search-UnifiedAuditLog | Export-Csv`, of Windows PowerShell.
    SearchCsv,
    /// Pages of Microsoft Graph, a file each.
    GraphPages,
}

impl ExportForm {
    /// All of them.
    pub const ALL: [ExportForm; 5] =
        [Self::PurviewCsv, Self::SearchJson, Self::SearchJsonFormatted, Self::SearchCsv, Self::GraphPages];

    /// Its name in `simulate` and in file names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PurviewCsv => "purview-csv",
            Self::SearchJson => "search-json",
            Self::SearchJsonFormatted => "search-json-formatted",
            Self::SearchCsv => "search-csv",
            Self::GraphPages => "graph-pages",
        }
    }
}

/// The specification of an export.
#[derive(Debug, Clone)]
pub struct ExportSpec {
    /// The form.
    pub form: ExportForm,
    /// The first instant of the search; `None`: no lower limit.
    pub from: Option<Timestamp>,
    /// Its end (excluded).
    pub to: Option<Timestamp>,
    /// Records on a page of Graph.
    pub page_rows: usize,
    /// Share of the rows that Purview's export repeats.
    pub repeated_rate: f64,
    /// The seed of the randomness.
    pub seed: u64,
}

impl ExportSpec {
    /// Everything, in this form.
    pub fn new(form: ExportForm) -> Self {
        Self { form, from: None, to: None, page_rows: 500, repeated_rate: 0.002, seed: 1 }
    }
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A row of the search: an event and when it happened.
pub(super) struct SearchRow {
    pub raw: Bytes,
    pub time: Timestamp,
}

/// Writes rows as the tools do, the newest first. Rows of one second are in no particular order.
pub(super) fn write(mut rows: Vec<SearchRow>, tenant: &TenantId, spec: &ExportSpec) -> Vec<ExportFile> {
    rows.sort_by(|one, other| other.time.cmp(&one.time).then_with(|| one.raw.cmp(&other.raw)));
    let rows: Vec<ExportedRow> = rows.into_iter().filter_map(ExportedRow::of).collect();
    let file = |extension: &str, bytes: Vec<u8>| {
        vec![ExportFile { name: format!("{}.{extension}", spec.form.as_str()), bytes }]
    };
    match spec.form {
        ExportForm::PurviewCsv => file("csv", purview_csv(&rows, spec)),
        ExportForm::SearchCsv => file("csv", search_csv(&rows)),
        ExportForm::SearchJson => file("json", search_json(&rows, false)),
        ExportForm::SearchJsonFormatted => file("json", search_json(&rows, true)),
        ExportForm::GraphPages => graph_pages(&rows, tenant, spec),
    }
}

/// A row and the values of its columns.
struct ExportedRow {
    members: RawMembers,
    text: String,
    time: Timestamp,
}

impl ExportedRow {
    fn of(row: SearchRow) -> Option<ExportedRow> {
        let text = String::from_utf8(row.raw.to_vec()).ok()?;
        Some(ExportedRow { members: RawMembers::parse(text.as_bytes())?, text, time: row.time })
    }

    fn get(&self, name: &str) -> String {
        match self.members.last(name).and_then(|value| serde_json::from_str(value.get()).ok()) {
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        }
    }

    /// The name of the record type, or its number if it has none.
    fn record_type_name(&self) -> String {
        let number = self.get("RecordType");
        let known = RECORD_TYPES.iter().find(|(known, _)| known.to_string() == number);
        known.map_or(number, |(_, name)| (*name).to_owned())
    }

    /// The event with the name of its record type.
    fn formatted(&self) -> String {
        let name = self.record_type_name();
        self.members.print_with(|key, value| {
            (key == "RecordType" && name != self.get("RecordType")).then(|| json!(name).to_string()).or(value)
        })
    }
}

/// Record types of the simulated tenant and their names, after Microsoft's table "AuditLogRecordType".
const RECORD_TYPES: [(i64, &str); 20] = [
    (1, "ExchangeAdmin"),
    (2, "ExchangeItem"),
    (3, "ExchangeItemGroup"),
    (4, "SharePoint"),
    (6, "SharePointFileOperation"),
    (8, "AzureActiveDirectory"),
    (9, "AzureActiveDirectoryAccountLogon"),
    (11, "ComplianceDLPSharePoint"),
    (13, "ComplianceDLPExchange"),
    (14, "SharePointSharingOperation"),
    (15, "AzureActiveDirectoryStsLogon"),
    (18, "SecurityComplianceCenterEOPCmdlet"),
    (20, "PowerBIAudit"),
    (24, "Discovery"),
    (25, "MicrosoftTeams"),
    (28, "ThreatIntelligence"),
    (36, "SharePointListOperation"),
    (40, "SecurityComplianceAlerts"),
    (50, "ExchangeItemAggregated"),
    (65, "Quarantine"),
];

fn cell(out: &mut Vec<u8>, text: &str, always: bool) {
    if !always && !text.contains([',', '"', '\r', '\n']) {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

fn line(out: &mut Vec<u8>, cells: &[&str], always: bool) {
    for (number, text) in cells.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        cell(out, text, always);
    }
    out.extend_from_slice(b"\r\n");
}

fn purview_csv(rows: &[ExportedRow], spec: &ExportSpec) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(spec.seed);
    let mut out = b"\xef\xbb\xbfRecordId,CreationDate,RecordType,Operation,UserId,AuditData,AssociatedAdminUnits,AssociatedAdminUnitsNames\r\n".to_vec();
    for row in rows {
        let time = row.time.strftime("%Y-%m-%dT%H:%M:%S.0000000Z").to_string();
        let [id, record_type, operation, user] = ["Id", "RecordType", "Operation", "UserId"].map(|name| row.get(name));
        let times = if rng.f64() < spec.repeated_rate { 2 } else { 1 };
        for _ in 0..times {
            line(&mut out, &[&id, &time, &record_type, &operation, &user, &row.text, "", ""], false);
        }
    }
    out
}

/// The wrapper of `Search-UnifiedAuditLog` around an event.
fn around(
    row: &ExportedRow,
    (number, count): (usize, usize),
    data: &str,
    record_type: &str,
) -> [(&'static str, String); 13] {
    [
        ("PSComputerName", "outlook.office365.example".to_owned()),
        ("RunspaceId", "1b6f2f5e-0000-4000-8000-000000000001".to_owned()),
        ("PSShowComputerName", "False".to_owned()),
        ("RecordType", record_type.to_owned()),
        ("CreationDate", row.time.strftime("%-m/%-d/%Y %-I:%M:%S %p").to_string()),
        ("UserIds", row.get("UserId")),
        ("Operations", row.get("Operation")),
        ("AuditData", data.to_owned()),
        ("ResultIndex", (number + 1).to_string()),
        ("ResultCount", count.to_string()),
        ("Identity", row.get("Id")),
        ("IsValid", "True".to_owned()),
        ("ObjectState", "Unchanged".to_owned()),
    ]
}

fn search_csv(rows: &[ExportedRow]) -> Vec<u8> {
    let mut out = b"#TYPE Deserialized.Microsoft.Exchange.Data.ApplicationLogic.UnifiedAuditLogEvent\r\n".to_vec();
    for (number, row) in rows.iter().enumerate() {
        let cells = around(row, (number, rows.len()), &row.text, &row.record_type_name());
        if number == 0 {
            line(&mut out, &cells.each_ref().map(|(name, _)| *name), true);
        }
        line(&mut out, &cells.each_ref().map(|(_, text)| text.as_str()), true);
    }
    out
}

fn search_json(rows: &[ExportedRow], is_formatted: bool) -> Vec<u8> {
    let objects: Vec<String> = rows
        .iter()
        .enumerate()
        .map(|(number, row)| {
            let (data, record_type) = match is_formatted {
                true => (row.formatted(), row.record_type_name()),
                false => (row.text.clone(), row.get("RecordType")),
            };
            let members = around(row, (number, rows.len()), &data, &record_type).map(|(name, text)| {
                let value = match name {
                    "CreationDate" => json!(row.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
                    "ResultIndex" => json!(number + 1),
                    "ResultCount" => json!(rows.len()),
                    "IsValid" => json!(true),
                    "PSShowComputerName" => json!(false),
                    "RecordType" if !is_formatted => text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n)),
                    _ => json!(text),
                };
                format!("    \"{name}\":  {value}")
            });
            format!("{{\r\n{}\r\n}}", members.join(",\r\n"))
        })
        .collect();
    // `ConvertTo-Json` does not make an array of a single object.
    match objects.as_slice() {
        [one] => one.clone().into_bytes(),
        _ => format!("[\r\n{}\r\n]\r\n", objects.join(",\r\n")).into_bytes(),
    }
}

/// The records of Graph for rows, the newest first.
pub(super) fn graph_records(mut rows: Vec<SearchRow>, tenant: &TenantId) -> Vec<String> {
    rows.sort_by(|one, other| other.time.cmp(&one.time).then_with(|| one.raw.cmp(&other.raw)));
    rows.into_iter().filter_map(ExportedRow::of).map(|row| graph_record(&row, tenant)).collect()
}

fn graph_pages(rows: &[ExportedRow], tenant: &TenantId, spec: &ExportSpec) -> Vec<ExportFile> {
    const RECORDS: &str =
        "https://graph.microsoft.com/v1.0/security/auditLog/queries/5e1f0000-0000-4000-8000-00000000000a/records";
    let pages = rows.len().div_ceil(spec.page_rows.max(1)).max(1);
    let page = |number: usize| {
        let here = rows.iter().skip(number * spec.page_rows.max(1)).take(spec.page_rows.max(1));
        let records: Vec<String> = here.map(|row| graph_record(row, tenant)).collect();
        let next = if number + 1 < pages {
            format!(",\"@odata.nextLink\":\"{RECORDS}?$skiptoken={}\"", number + 1)
        } else {
            String::new()
        };
        let bytes = format!(
            "{{\"@odata.context\":\"https://graph.microsoft.com/v1.0/$metadata#security/auditLog/queries('5e1f0000-0000-4000-8000-00000000000a')/records\",\"value\":[{}]{next}}}",
            records.join(",")
        );
        ExportFile { name: format!("graph-page-{:04}.json", number + 1), bytes: bytes.into_bytes() }
    };
    (0..pages).map(page).collect()
}

/// A record of Graph: its own names outside, and inside the event with Graph's added types and a zone after its time.
fn graph_record(row: &ExportedRow, tenant: &TenantId) -> String {
    let name = row.record_type_name();
    let mut letters = name.chars();
    let small = letters.next().map(|first| format!("{}{}", first.to_ascii_lowercase(), letters.as_str()));
    let record_type = match name.parse::<i64>() {
        Ok(_) => "unknownFutureValue".to_owned(),
        Err(_) => small.unwrap_or_default(),
    };
    let mut data = vec!["\"@odata.type\":\"#microsoft.graph.security.defaultAuditData\"".to_owned()];
    for (key, value) in row.members.iter() {
        let value = value.get();
        if value.starts_with('[') {
            data.push(format!("{}:\"#Collection(Microsoft.Graph.Json)\"", json!(format!("{key}@odata.type"))));
        }
        data.push(format!("{}:{}", json!(key), with_zone(key, value)));
    }
    let time = row.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    format!(
        "{{\"@odata.type\":\"#microsoft.graph.security.auditLogRecord\",\"id\":{},\"createdDateTime\":\"{time}\",\"auditLogRecordType\":{},\"operation\":{},\"organizationId\":\"{tenant}\",\"userType\":\"regular\",\"userId\":{},\"service\":{},\"objectId\":{},\"userPrincipalName\":{},\"clientIp\":{},\"administrativeUnits\":[\"\"],\"auditData\":{{{}}}}}",
        json!(row.get("Id")),
        json!(record_type),
        json!(row.get("Operation")),
        // Graph swaps the two.
        json!(row.get("UserId")),
        json!(row.get("Workload")),
        json!(row.get("ObjectId")),
        json!(row.get("UserKey")),
        json!(row.get("ClientIP")),
        data.join(",")
    )
}

/// A time of the feed with the `Z` that Graph appends.
fn with_zone(key: &str, value: &str) -> String {
    let inner = value.trim_matches('"');
    let is_plain = key == "CreationTime" && inner.len() == 19 && matches!(inner.as_bytes().get(10), Some(b'T' | b' '));
    if is_plain { format!("\"{}Z\"", inner.replacen(' ', "T", 1)) } else { value.to_owned() }
}

impl RawMembers {
    /// The last value of a name.
    fn last(&self, name: &str) -> Option<&RawValue> {
        self.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The object with the values that `value_of` gives.
    fn print_with(&self, value_of: impl Fn(&str, Option<String>) -> Option<String>) -> String {
        let members = self.iter().map(|(key, value)| {
            format!("{}:{}", json!(key), value_of(key, Some(value.get().to_owned())).unwrap_or_default())
        });
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"Id":"5e1d2a10-0000-4000-8000-00000000000a","RecordType":1,"CreationTime":"2026-07-17T08:28:17","Operation":"New-InboxRule","UserId":"alex@contoso.example","Workload":"Exchange","Parameters":[{"Name":"a, \"b\"","Value":"c"}]}"#;

    fn export(form: ExportForm, events: usize) -> Vec<ExportFile> {
        let rows = (0..events).map(|n| SearchRow {
            raw: EVENT.replacen("00000000000a", &format!("{n:012}"), 1).into(),
            time: "2026-07-17T08:28:17Z".parse().unwrap(),
        });
        let tenant = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        write(rows.collect(), &tenant, &ExportSpec { page_rows: 2, repeated_rate: 0.0, ..ExportSpec::new(form) })
    }

    fn text(form: ExportForm, events: usize) -> String {
        String::from_utf8(export(form, events).remove(0).bytes).unwrap()
    }

    #[test]
    fn each_form_is_written_as_its_tool_writes_it() {
        let csv = text(ExportForm::PurviewCsv, 2);
        assert!(csv.starts_with("\u{feff}RecordId,CreationDate,RecordType,Operation,UserId,AuditData,"), "{csv}");
        assert_eq!((csv.lines().count(), csv.contains("17.0000000Z,1,New-InboxRule,")), (3, true), "{csv}");
        let one: Value = serde_json::from_str(&text(ExportForm::SearchJson, 1)).unwrap();
        assert_eq!((&one["RecordType"], one["AuditData"].as_str().unwrap().len()), (&json!(1), EVENT.len()));
        let two: Value = serde_json::from_str(&text(ExportForm::SearchJsonFormatted, 2)).unwrap();
        let inner: Value = serde_json::from_str(two[0]["AuditData"].as_str().unwrap()).unwrap();
        assert_eq!((&two[0]["RecordType"], &inner["RecordType"]), (&json!("ExchangeAdmin"), &json!("ExchangeAdmin")));
        let csv = text(ExportForm::SearchCsv, 1);
        assert!(csv.starts_with("#TYPE ") && csv.contains("\"7/17/2026 8:28:17 AM\""), "{csv}");
        let pages = export(ExportForm::GraphPages, 3);
        let page: Value = serde_json::from_slice(&pages[0].bytes).unwrap();
        assert_eq!((pages.len(), page["value"].as_array().unwrap().len()), (2, 2));
        let record = &page["value"][0];
        assert_eq!(record["auditLogRecordType"], "exchangeAdmin");
        assert_eq!(record["auditData"]["CreationTime"], "2026-07-17T08:28:17Z");
        assert!(page["@odata.nextLink"].is_string() && record["auditData"]["Parameters@odata.type"].is_string());
    }
}
