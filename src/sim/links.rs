//! Reads and matches of data loss prevention that belong together: made from one pool of items, and matched again by
//! the ledger of truth.
//!
//! Knows the members that name an item on either side, but not how a client joins them.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::events::{fresh_guid, zoneless};
use super::truth::Truth;
use crate::model::{ContentType, TenantId, Timestamp};

/// Items that reads and matches are drawn from; every second one is never matched.
const ITEMS: u32 = 300;
/// Record types of data loss prevention.
const DLP_TYPES: [i64; 7] = [11, 13, 33, 63, 99, 100, 107];

/// A read (in the streams that have reads) or a match (in those that have matches) of some item; its name and its text.
pub(super) fn event(
    rng: &mut fastrand::Rng,
    tenant: &TenantId,
    content_type: ContentType,
    time: Timestamp,
) -> Option<(&'static str, Vec<u8>)> {
    let item = |n: u32| format!("d1500000-0000-4000-8000-{n:012x}");
    let message = |n: u32| format!("<linked.{n}@mail.contoso.example>");
    let n = rng.u32(0..ITEMS);
    let mut event = json!({
        "CreationTime": zoneless(time),
        "Id": fresh_guid(rng),
        "OrganizationId": tenant.as_str(),
        "Version": 1,
        "UserId": "megan@contoso.example",
        "UserKey": "i:0h.f|membership|1003200000000000@live.com",
    });
    let add = |event: &mut Value, more: Value| {
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
    };
    let name = match content_type {
        ContentType::SharePoint => {
            let url = format!("https://contoso.sharepoint.com/sites/finance/Shared Documents/linked {n}.xlsx");
            add(
                &mut event,
                json!({
                    "Operation": "FileAccessed", "RecordType": 6, "Workload": "SharePoint", "UserType": 0,
                    "ItemType": "File", "ListItemUniqueId": item(n), "Site": "5c0a7f00-0000-4000-8000-000000000001",
                    "ObjectId": url, "ClientIP": "198.51.100.23",
                }),
            );
            "linked-read"
        }
        ContentType::Exchange => {
            let items: Vec<Value> = (0..rng.usize(1..4))
                .map(|_| rng.u32(0..ITEMS))
                .chain([n])
                .map(|n| json!({"InternetMessageId": message(n), "SizeInBytes": 8192}))
                .collect();
            add(
                &mut event,
                json!({
                    "Operation": "MailItemsAccessed", "RecordType": 50, "Workload": "Exchange", "UserType": 0,
                    "OperationProperties": [{"Name": "MailAccessType", "Value": "Bind"}],
                    "OperationCount": items.len(), "Folders": [{"Path": "\\Inbox", "FolderItems": items}],
                }),
            );
            "linked-read"
        }
        ContentType::Dlp | ContentType::General => {
            let n = n / 2 * 2;
            add(
                &mut event,
                json!({
                    "Operation": "DlpRuleMatch", "UserType": 4, "IncidentId": fresh_guid(rng),
                    "SensitiveInfoDetectionIsIncluded": false,
                    "PolicyDetails": [{"PolicyId": "1b2c3d4e-0000-4000-8000-000000000001", "PolicyName": "Payment cards",
                        "Rules": [{"RuleName": "Any", "Severity": "Medium", "Actions": ["NotifyUser"]}]}],
                }),
            );
            if rng.bool() {
                let file = json!({"UniqueID": item(n), "FileName": format!("linked {n}.xlsx")});
                add(&mut event, json!({"RecordType": 11, "Workload": "SharePoint", "SharePointMetaData": file}));
            } else {
                let mail = json!({"MessageID": message(n), "From": "megan@contoso.example", "Subject": "linked"});
                add(
                    &mut event,
                    json!({"RecordType": 13, "Workload": "Exchange", "ObjectId": message(n), "ExchangeMetaData": mail}),
                );
            }
            "linked-match"
        }
        ContentType::AzureActiveDirectory => return None,
    };
    Some((name, event.to_string().into_bytes()))
}

fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

fn is_of_dlp(event: &Value) -> bool {
    let number = &event["RecordType"];
    let number = number.as_i64().or_else(|| number.as_str()?.parse().ok());
    number.is_some_and(|number| DLP_TYPES.contains(&number))
}

fn is_match(event: &Value) -> bool {
    is_of_dlp(event) && text(event, "/Operation").is_some_and(|name| name.eq_ignore_ascii_case("DlpRuleMatch"))
}

/// Whether an event is a read that matters only if its item is matched.
fn is_routine(event: &Value) -> bool {
    let named = text(event, "/Operation")
        .is_some_and(|name| ["FileAccessed", "MailItemsAccessed"].iter().any(|known| known.eq_ignore_ascii_case(name)));
    let says_so = is_of_dlp(event)
        || event["PolicyDetails"].as_array().is_some_and(|list| !list.is_empty())
        || event["SensitiveInfoDetectionIsIncluded"] == true
        || text(event, "/IncidentId").is_some();
    named && !says_so
}

/// The items and messages that an event names, in one spelling.
fn names(event: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for pointer in ["/ListItemUniqueId", "/SharePointMetaData/UniqueID"] {
        names.extend(text(event, pointer).map(str::to_ascii_lowercase));
    }
    let mut messages: Vec<&str> = text(event, "/ExchangeMetaData/MessageID").into_iter().collect();
    for folder in event["Folders"].as_array().into_iter().flatten() {
        for item in folder["FolderItems"].as_array().into_iter().flatten() {
            messages.extend(text(item, "/InternetMessageId"));
        }
    }
    names.extend(messages.into_iter().map(|id| id.trim_matches(['<', '>']).to_owned()));
    names
}

impl Truth {
    /// The same truth for a client that leaves routine reads out: they are due only if a match of the same item or
    /// message became available before the read, or at most `hold_secs` after it.
    pub fn dropping(mut self, hold_secs: u32) -> Truth {
        let hold = jiff::SignedDuration::from_secs(hold_secs.into());
        let parsed: Vec<Option<Value>> =
            self.events.iter().map(|event| serde_json::from_slice(&event.raw).ok()).collect();
        let made_available = |index: usize| self.created.get(index).and_then(|times| times.iter().min().copied());
        let mut matched: HashMap<String, Timestamp> = HashMap::new();
        for (index, event) in parsed.iter().enumerate() {
            let Some(event) = event.as_ref().filter(|event| is_match(event)) else { continue };
            let Some(at) = made_available(index).filter(|_| !self.events[index].withheld) else { continue };
            for name in names(event) {
                matched.entry(name).and_modify(|first| *first = at.min(*first)).or_insert(at);
            }
        }
        let mut optional = Vec::with_capacity(parsed.len());
        for (index, event) in parsed.iter().enumerate() {
            let routine = event.as_ref().filter(|event| is_routine(event));
            let due = |event: &Value| {
                let until = made_available(index).and_then(|at| at.checked_add(hold).ok());
                names(event)
                    .iter()
                    .any(|name| matched.get(name).is_some_and(|at| until.is_none_or(|until| *at < until)))
            };
            optional.push(routine.is_some_and(|event| !due(event)));
        }
        for (event, optional) in self.events.iter_mut().zip(optional) {
            event.optional = optional;
        }
        self
    }
}
