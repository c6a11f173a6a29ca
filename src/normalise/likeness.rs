//! The known record type that an event resembles, if its own number is missing or too new to be known.
//!
//! Microsoft adds record types without notice and assigns them to events that existed before (DLP matches had ten
//! numbers). The operation, the workload and the members still identify the event. The record keeps the number as
//! received.

use super::category::DLP_RECORD_TYPES;
use super::event::{Event, KnownMember};
use super::record_types;

/// The record type that this event resembles: its own if it is known, else the one derived from its operation, workload
/// or members, else its own number. `operation` is the folded one.
pub(crate) fn of(event: &Event<'_>, operation: &str, number: Option<i64>) -> Option<i64> {
    match number {
        Some(known) if record_types::info(known).is_some() && !denies(known, operation) => number,
        _ => record_type_of(event, operation).or(number),
    }
}

/// Whether an operation shows that the event does not have this type, whatever its number.
fn denies(known: i64, operation: &str) -> bool {
    operation.starts_with("dlprule") && !DLP_RECORD_TYPES.contains(&known)
}

fn record_type_of(event: &Event<'_>, operation: &str) -> Option<i64> {
    let workload = event.text_of(KnownMember::Workload).unwrap_or_default();
    let workload: String = workload.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect();
    by_operation(event, operation, &workload)
        .or_else(|| by_workload(event, operation, &workload))
        .or_else(|| by_members(event, operation))
}

/// Operations that only one service has, and the record type of each.
const OPERATIONS: &[(i64, &[&str])] = &[
    (9, &["passwordlogoninitialauthusingpassword", "passwordlogoncookiecopyusingdatoken"]),
    (15, &["userloggedin", "userloginfailed", "userloggedoff"]),
    (28, &["timaildata"]),
    (40, &["alerttriggered", "alertentitygenerated", "alertupdated"]),
    (41, &["tiurlclickdata"]),
    (47, &["atpdetection"]),
    (50, &["mailitemsaccessed", "attachmentaccess"]),
    (63, &["filecopiedtoremovablemedia", "fileuploadedtocloud", "fileprinted", "filecopiedtonetworkshare"]),
    (63, &["filecopiedtoclipboard", "filecopiedtoremotedesktopsession", "filetransferredbybluetooth"]),
    (63, &["filecreatedonremovablemedia", "filecreatedonnetworkshare", "removablemediamount", "removablemediaunmount"]),
    (64, &["airinvestigationdata"]),
    (101, &["searchqueryinitiatedexchange"]),
    (102, &["searchqueryinitiatedsharepoint"]),
    (261, &["copilotinteraction"]),
    (328, &["connectedaiappinteraction"]),
    (334, &["teamcopilotinteraction"]),
];

/// Prefixes of such operations.
const BEGINNINGS: &[(i64, &[&str])] = &[
    (65, &["quarantine"]),
    (98, &["mcas_alert"]),
    (155, &["compliancemanager-"]),
    (14, &["anonymouslink", "companylink", "securelink", "addedtosecurelink", "removedfromsecurelink", "sharingset"]),
    (14, &["sharinginvitation", "sharingrevoked", "sharinginheritance", "accessinvitation", "accessrequest"]),
    (14, &["sitecollectionadmin", "addedtogroup", "removedfromgroup"]),
];

/// Operations of mailboxes whose names other services use, too.
const MAIL_ITEM: &[&str] = &[
    "create",
    "update",
    "send",
    "sendas",
    "sendonbehalf",
    "updateinboxrules",
    "modifyfolderpermissions",
    "addfolderpermissions",
    "removefolderpermissions",
    "mailboxlogin",
    "folderbind",
    "messagebind",
    "updatecalendardelegation",
    "updatefolderpermissions",
];
/// The same, for several items at once.
const MAIL_ITEMS: &[&str] = &["harddelete", "softdelete", "movetodeleteditems", "move", "copy", "recorddelete"];

fn by_operation(event: &Event<'_>, operation: &str, workload: &str) -> Option<i64> {
    if operation.starts_with("dlp") || operation == "miplabel" || !is_blank_list(event.get(KnownMember::PolicyDetails))
    {
        return of_dlp(event, operation, workload);
    }
    if event.get(KnownMember::PolicyMatchInfo).is_some() || event.get(KnownMember::EndpointMetaData).is_some() {
        return Some(63);
    }
    if let Some(number) = listed(operation) {
        return Some(number);
    }
    BEGINNINGS
        .iter()
        .find(|(_, beginnings)| beginnings.iter().any(|beginning| operation.starts_with(beginning)))
        .map(|(number, _)| *number)
}

fn is_blank_list(token: Option<&str>) -> bool {
    token.is_none_or(|token| token.len() <= 2)
}

/// Derives the type from the service in which DLP found the match.
fn of_dlp(event: &Event<'_>, operation: &str, workload: &str) -> Option<i64> {
    let has = |member: KnownMember| event.get(member).is_some();
    let matched = operation.starts_with("dlp") || operation == "miplabel";
    if has(KnownMember::EndpointMetaData) || workload == "endpoint" || has(KnownMember::PolicyMatchInfo) {
        return Some(63);
    }
    if has(KnownMember::ExchangeMetaData) || (matched && matches!(workload, "exchange" | "microsoftteams")) {
        return Some(13);
    }
    if has(KnownMember::SharePointMetaData) || (matched && matches!(workload, "sharepoint" | "onedrive")) {
        return Some(11);
    }
    // The record does not name the service: assume mail, like most matches.
    matched.then_some(13).or_else(|| listed(operation))
}

/// Derives the type from an operation that only one service has.
fn listed(operation: &str) -> Option<i64> {
    OPERATIONS.iter().find(|(_, names)| names.contains(&operation)).map(|(number, _)| *number)
}

/// Whether a folded operation is named as cmdlets are: `verb-noun`.
fn is_cmdlet(operation: &str) -> bool {
    const VERBS: [&str; 22] = [
        "add", "clear", "complete", "disable", "enable", "export", "get", "grant", "import", "install", "new",
        "remove", "resume", "revoke", "search", "set", "start", "stop", "suspend", "test", "undo", "update",
    ];
    operation.split_once('-').is_some_and(|(verb, noun)| VERBS.contains(&verb) && !noun.contains(' '))
}

fn by_workload(event: &Event<'_>, operation: &str, workload: &str) -> Option<i64> {
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |member: KnownMember| event.get(member).is_some();
    match workload {
        "azureactivedirectory" if begins(&["userlog"]) => Some(15),
        "azureactivedirectory" => Some(8),
        "exchange" if is_cmdlet(operation) => Some(1),
        "exchange" => of_mailbox(event, operation),
        "sharepoint" | "onedrive" if begins(&["file", "folder"]) => Some(6),
        "sharepoint" | "onedrive" if begins(&["listcolumn"]) => Some(56),
        "sharepoint" | "onedrive" if begins(&["listitem"]) => Some(55),
        "sharepoint" | "onedrive" if begins(&["list"]) => Some(36),
        "sharepoint" | "onedrive" => Some(4),
        "securitycompliancecenter" if is_cmdlet(operation) => Some(18),
        "securitycompliancecenter" if has(KnownMember::AlertId) => Some(40),
        "securitycompliancecenter" if begins(&["aggregate", "search", "validate"]) => Some(52),
        "microsoftteams" => Some(25),
        "skypeforbusiness" => Some(23),
        "yammer" | "vivaengage" => Some(22),
        "powerbi" => Some(20),
        "microsoftforms" => Some(66),
        "endpoint" => Some(63),
        "quarantine" => Some(65),
        "airinvestigation" => Some(64),
        "mcas" => Some(98),
        "compliancemanager" => Some(155),
        "copilot" => Some(261),
        "aip" if begins(&["heartbeat"]) => Some(97),
        "aip" if begins(&["sensitivitylabel"]) => Some(94),
        "aip" => Some(93),
        "publicendpoint" if begins(&["sensitivitylabel"]) => Some(84),
        _ => None,
    }
}

fn of_mailbox(event: &Event<'_>, operation: &str) -> Option<i64> {
    let has = |member: KnownMember| event.get(member).is_some();
    if has(KnownMember::AffectedItems) || MAIL_ITEMS.contains(&operation) {
        return Some(3);
    }
    if has(KnownMember::Folders) || has(KnownMember::Messages) {
        return Some(50);
    }
    (has(KnownMember::Item) || has(KnownMember::MailboxOwnerUPN) || MAIL_ITEM.contains(&operation)).then_some(2)
}

/// Derives the type from members that only records of one service have.
fn by_members(event: &Event<'_>, operation: &str) -> Option<i64> {
    let has = |member: KnownMember| event.get(member).is_some();
    if has(KnownMember::CopilotEventData) {
        return Some(261);
    }
    if has(KnownMember::AlertId) && has(KnownMember::Severity) {
        return Some(40);
    }
    if has(KnownMember::MailboxOwnerUPN) || has(KnownMember::AffectedItems) {
        return of_mailbox(event, operation);
    }
    if has(KnownMember::InvestigationId) {
        return Some(64);
    }
    if has(KnownMember::TargetUserOrGroupName) && has(KnownMember::Site) {
        return Some(14);
    }
    if has(KnownMember::SourceFileName) && (has(KnownMember::Site) || has(KnownMember::SiteUrl)) {
        return Some(6);
    }
    if has(KnownMember::TeamGuid) {
        return Some(25);
    }
    if has(KnownMember::Target) && has(KnownMember::ModifiedProperties) {
        return Some(if has(KnownMember::LogonError) { 15 } else { 8 });
    }
    (has(KnownMember::Parameters) && is_cmdlet(operation)).then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::severity::operation::fold;

    fn like(json: &str) -> Option<i64> {
        let event = Event::parse(json.as_bytes()).unwrap();
        of(&event, &fold(event.operation()), event.record_type())
    }

    #[test]
    fn a_known_number_counts_and_an_unknown_or_missing_one_takes_nothing_away() {
        for (json, expected) in [
            (r#"{"RecordType":6,"Operation":"FileAccessed","Workload":"OneDrive"}"#, Some(6)),
            (r#"{"RecordType":52,"Operation":"AlertTriggered"}"#, Some(52)),
            (r#"{"RecordType":263,"Operation":"DLPRuleMatch","Workload":"ExtendedApplications"}"#, Some(13)),
            (r#"{"RecordType":6,"Operation":"DLPRuleMatch","Workload":"SharePoint"}"#, Some(11)),
            (r#"{"RecordType":99999,"Operation":"X","PolicyDetails":[{}],"EndpointMetaData":{}}"#, Some(63)),
            (r#"{"Operation":"X","PolicyDetails":[],"Workload":"MicrosoftTeams"}"#, Some(25)),
            (r#"{"Operation":"Set-Mailbox","Parameters":[]}"#, Some(1)),
            (r#"{"Operation":"Set-Mailbox","Workload":"Exchange"}"#, Some(1)),
            (r#"{"Operation":"Update","Workload":"Exchange"}"#, Some(2)),
            (r#"{"Operation":"Update user.","Workload":"Azure Active Directory"}"#, Some(8)),
            (r#"{"Operation":"MessageAccess","Workload":"Exchange"}"#, None),
            (r#"{"RecordType":99999,"Operation":"Anything"}"#, Some(99_999)),
        ] {
            assert_eq!(like(json), expected, "{json}");
        }
    }
}
