//! Sentinel's table `OfficeActivity`: its columns and the members they came from.
//!
//! After "OfficeActivity" of Microsoft's "Azure Monitor Logs reference": every row has every column, empty where the
//! event has no such member; lists and objects are JSON in a text; types of records and users are names. Columns that
//! are not listed here have the name of their member.

use std::borrow::Cow;

use super::restore::loss::Loss;
use super::restore::members::RestoredMembers;
use crate::normalise::json;

/// A column and the member it came from.
const RENAMED: &[(&str, &str)] = &[
    ("OfficeId", "Id"),
    ("OfficeWorkload", "Workload"),
    ("OfficeObjectId", "ObjectId"),
    ("TimeGenerated", "CreationTime"),
    ("Client_IPAddress", "ClientIPAddress"),
    ("Event_Data", "EventData"),
    ("Logon_Type", "LogonType"),
    ("Site_", "Site"),
    ("Site_Url", "SiteUrl"),
    ("AddonName", "AddOnName"),
    ("AADTarget", "Target"),
    ("AzureActiveDirectory_EventType", "AzureActiveDirectoryEventType"),
    ("SendonBehalfOfUserMailboxGuid", "SendOnBehalfOfUserMailboxGuid"),
    ("Source_Name", "SourceName"),
];

/// Columns that are Azure's own. `Start_Time` and `ElevationTime` repeat the event's time.
const AZURES: &[&str] = &[
    "TenantId",
    "Type",
    "SourceSystem",
    "MG",
    "ManagementGroupName",
    "TableName",
    "Start_Time",
    "ElevationTime",
    "_ResourceId",
    "_SubscriptionId",
    "_BilledSize",
    "_IsBillable",
    "_ItemId",
    "_TimeReceived",
];

/// Columns whose member is a list or an object.
const STRUCTURED: &[&str] = &[
    "Parameters",
    "ExtendedProperties",
    "ModifiedProperties",
    "ExtraProperties",
    "OperationProperties",
    "Members",
    "AffectedItems",
    "Item",
    "Folder",
    "Folders",
    "DestFolder",
    "Actor",
    "AADTarget",
    "SRRuleMatchDetails",
];

/// Columns whose member is a boolean.
const BOOLEANS: &[&str] = &["ExternalAccess", "CrossMailboxOperations", "IsManagedDevice"];

/// The column that replaces a member's own empty column.
const INSTEAD: &[(&str, &str)] = &[
    ("CreationTime", "Start_Time"),
    ("CreationTime", "ElevationTime"),
    ("Id", "SourceRecordId"),
    ("OrganizationId", "OfficeTenantId"),
];

/// Whether only this table has a column.
pub(crate) fn is_its_own(column: &str) -> bool {
    ["OfficeId", "OfficeWorkload", "OfficeObjectId"].iter().any(|known| known.eq_ignore_ascii_case(column))
}

fn among(columns: &[&str], column: &str) -> bool {
    columns.iter().any(|known| known.eq_ignore_ascii_case(column))
}

/// Gives the members of a row the names and kinds they have in the feed.
pub(crate) fn rename(members: &mut RestoredMembers<'_>, losses: &mut Vec<Loss>) {
    members.changed = true;
    for &(member, instead) in INSTEAD {
        let column = RENAMED.iter().find(|(_, renamed)| *renamed == member).map_or(member, |(column, _)| column);
        let value = members.get(instead).map(str::to_owned).filter(|_| members.get(column).is_none());
        if let Some(value) = value {
            members.set(column, value);
        }
    }
    members.entries.retain(|(column, value)| !among(AZURES, column) && !matches!(&**value, "null" | "\"\""));
    for (column, value) in &mut members.entries {
        if let Some(read) = read(column, value, losses) {
            *value = Cow::Owned(read);
        }
        if let Some((_, member)) = RENAMED.iter().find(|(known, _)| known.eq_ignore_ascii_case(column)) {
            *column = Cow::Borrowed(member);
        }
    }
}

/// A value in the feed's form; `None` when it already is.
fn read(column: &str, value: &str, losses: &mut Vec<Loss>) -> Option<String> {
    let text = json::scalar(value).filter(|_| json::is_string(value))?;
    let text = text.trim();
    if among(BOOLEANS, column) {
        return ["true", "false"]
            .iter()
            .find(|known| known.eq_ignore_ascii_case(text))
            .map(|known| (*known).to_owned());
    }
    if !among(STRUCTURED, column) || !text.starts_with(['[', '{']) {
        return None;
    }
    if json::is_valid(text) {
        return Some(text.to_owned());
    }
    // Log Analytics cuts a text at 64 KiB of UTF-16.
    losses.push(Loss::at(column, text));
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::outer::Outer;
    use super::super::restore::{Dialect, restore};

    fn read(row: &str) -> (String, Vec<String>) {
        let restored = restore(&Bytes::copy_from_slice(row.as_bytes()), &Outer::default(), Dialect::OfficeActivity);
        let restored = restored.unwrap();
        let losses = restored.losses.into_iter().map(|loss| loss.member).collect();
        (String::from_utf8(restored.event.to_vec()).unwrap(), losses)
    }

    #[test]
    fn a_row_becomes_the_event_it_was_made_of() {
        assert_eq!(
            read(
                r#"{"TenantId":"w","TimeGenerated":"2026-03-02T10:15:00Z","Start_Time":"2026-03-02T10:15:00Z","ElevationTime":"2026-03-02T10:15:00Z","OfficeId":"a","RecordType":"ExchangeAdmin","OfficeWorkload":"Exchange","UserType":"Admin","UserId":"alex@contoso.example","ExternalAccess":"False","OfficeObjectId":"o","Operation":"New-InboxRule","Parameters":"[{\"Name\":\"ForwardTo\",\"Value\":\"e@outside.example\"}]","Site_Url":"","Members":null,"Type":"OfficeActivity","SourceSystem":"OfficeActivityManager","_BilledSize":812}"#
            ),
            (
                r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","RecordType":1,"Workload":"Exchange","UserType":2,"UserId":"alex@contoso.example","ExternalAccess":false,"ObjectId":"o","Operation":"New-InboxRule","Parameters":[{"Name":"ForwardTo","Value":"e@outside.example"}]}"#.into(),
                vec![]
            )
        );
    }

    #[test]
    fn a_member_without_its_own_column_is_taken_from_the_one_that_repeats_it() {
        assert_eq!(
            read(r#"{"ElevationTime":"2026-03-02T10:15:00.0000000Z","TimeGenerated":"","SourceRecordId":"a","Operation":"o","OfficeTenantId":"t"}"#).0,
            r#"{"CreationTime":"2026-03-02T10:15:00","SourceRecordId":"a","Operation":"o","OfficeTenantId":"t","Id":"a","OrganizationId":"t"}"#
        );
    }

    #[test]
    fn a_text_that_azure_cut_is_told_of() {
        let (event, losses) = read(r#"{"OfficeId":"a","Operation":"o","Parameters":"[{\"Name\":\"Forw"}"#);
        assert_eq!(
            (event.as_str(), losses),
            (r#"{"Id":"a","Operation":"o","Parameters":"[{\"Name\":\"Forw"}"#, vec!["Parameters".into()])
        );
    }
}
