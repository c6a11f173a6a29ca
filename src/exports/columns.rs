//! Turns one flat row into an event, for tables whose columns are the members.
//!
//! People flatten events in few ways. Hawk has a column for each member and `Param_…` for each cmdlet parameter; others
//! write paths (`AppAccessContext.ClientAppId`, `Parameters[0].Name`, `Item_ParentFolder_Path`), some with `AuditData.`
//! before them; Splunk writes a list as `Parameters{}.Name` with one line for each entry; Sentinel's and Microsoft
//! Graph's tables have names of their own. This module assembles the members of such a row; `restore` converts other
//! notations. An empty cell is not a member: a table does not distinguish empty from absent.

use bytes::Bytes;

use super::form::Form;
use super::office_activity;
use super::outer::Outer;
use super::restore::Dialect;
use super::restore::loss::Unrestorable;
use super::restore::members::token_of;
use crate::normalise::{json, parameters};

/// The header of such a table.
#[derive(Debug, Clone)]
pub struct Header {
    form: Form,
    columns: Vec<ColumnTarget>,
}

/// The destination of a cell.
#[derive(Debug, Clone)]
enum ColumnTarget {
    /// None: it belongs to the tool, or repeats another.
    Skip,
    /// A member, by the names of its path.
    Member(Vec<String>),
    /// A key of every entry of a list, one line for each entry: `Parameters{}.Name`.
    Entries { list: String, key: String, column: String },
    /// A cmdlet parameter, by name.
    Parameter(String),
    /// The command with all its parameters.
    Command,
    /// Microsoft Graph's `userId` and `userPrincipalName`, of which either may hold the address.
    GraphUser,
    /// An outer cell.
    Outer(fn(&mut Outer) -> &mut Option<String>),
}

/// Columns that tools add and that do not describe the event: PowerShell's remoting, Hawk, Splunk, Graph.
const TOOLS: &[&str] = &[
    "ResultIndex",
    "ResultCount",
    "IsValid",
    "ObjectState",
    "PSComputerName",
    "RunspaceId",
    "PSShowComputerName",
    "PSSourceJobInstanceId",
    "AssociatedAdminUnits",
    "AssociatedAdminUnitsNames",
    "administrativeUnits",
];

/// Columns with other names, and the member of each, unless a specific form decides.
const RENAMED: &[(&str, &[&str])] = &[
    ("AuditId", &["Id"]),
    ("AuditCreationTime", &["CreationTime"]),
    ("AuditRecordType", &["RecordType"]),
    ("AADSessionId", &["AppAccessContext", "AADSessionId"]),
    ("AppAccessContextIssuedAtTime", &["AppAccessContext", "IssuedAtTime"]),
    ("AppAccessContextUniqueTokenId", &["AppAccessContext", "UniqueTokenId"]),
    ("Caller", &["UserId"]),
    ("Cmdlet", &["Operation"]),
    ("RunDate(UTC)", &["CreationTime"]),
    ("ObjectModified", &["ObjectId"]),
];

/// Graph's names outside of `auditData`.
const GRAPHS: &[(&str, &str)] = &[
    ("id", "Id"),
    ("createdDateTime", "CreationTime"),
    ("auditLogRecordType", "RecordType"),
    ("operation", "Operation"),
    ("organizationId", "OrganizationId"),
    ("userType", "UserType"),
    ("service", "Workload"),
    ("objectId", "ObjectId"),
    ("clientIp", "ClientIP"),
];

/// The field of [`Outer`] for a cell.
type OuterField = fn(&mut Outer) -> &mut Option<String>;

/// Outer cells by their columns.
const OUTER: &[(&str, OuterField)] = &[
    ("RecordId", |outer| &mut outer.id),
    ("Identity", |outer| &mut outer.id),
    ("CreationDate", |outer| &mut outer.time),
    ("_time", |outer| &mut outer.time),
    ("Operations", |outer| &mut outer.operation),
    ("UserIds", |outer| &mut outer.user),
];

/// Prefixes that tools add to the names of members.
const PREFIXES: &[&str] = &["AuditData.", "AuditData_", "AuditData/", "o365.audit."];

/// Members that are objects or lists, whose paths some tools join with `_`. Longest first.
const NESTED: &[&str] = &[
    "AppAccessContext",
    "CopilotEventData",
    "EndpointMetaData",
    "ExchangeMetaData",
    "ExtendedProperties",
    "ModifiedProperties",
    "PolicyMatchInfo",
    "SharePointMetaData",
    "DeviceProperties",
    "DestFolder",
    "Parameters",
    "Folder",
    "Target",
    "Actor",
    "Item",
];

/// Members that are numbers in the feed, after its schema.
const NUMBERS: &[&str] = &[
    "RecordType",
    "UserType",
    "Version",
    "Scope",
    "LogonType",
    "InternalLogonType",
    "AzureActiveDirectoryEventType",
    "RecordNumber",
    "OperationCount",
    "EnforcementMode",
    "TargetUserType",
    "CommunicationSubType",
];

/// Members that are booleans in the feed.
const BOOLEANS: &[&str] = &[
    "ExternalAccess",
    "CrossMailboxOperation",
    "CrossMailboxOperations",
    "IsManagedDevice",
    "DoNotDistributeEvent",
    "FromApp",
    "IsDocLib",
];

fn is(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn among(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| is(known, name))
}

/// A column's name without surrounding characters: a byte order mark, blanks, the zone that Azure's portal adds.
fn bare(cell: &str) -> &str {
    let name = cell.trim_start_matches('\u{feff}').trim();
    name.strip_suffix(" [UTC]").unwrap_or(name)
}

/// A column's name without a tool's prefix, and whether it had one.
fn unprefixed(name: &str) -> (&str, bool) {
    let begins = |prefix: &&&str| name.get(..prefix.len()).is_some_and(|start| is(start, prefix));
    match PREFIXES.iter().find(begins).and_then(|prefix| name.get(prefix.len()..)).filter(|rest| !rest.is_empty()) {
        Some(rest) => (rest, true),
        None => (name, false),
    }
}

impl Header {
    /// The header of these cells, if they are one.
    pub fn of(cells: &[&str]) -> Option<Header> {
        let names: Vec<&str> = cells.iter().map(|cell| bare(cell)).collect();
        let form = form_of(&names)?;
        let prefixed = names.iter().any(|name| unprefixed(name).1);
        let twice = names.iter().any(|name| is(name, "AuditRecordType"));
        let columns = names.iter().map(|name| match form {
            Form::OfficeActivityCsv => ColumnTarget::Member(vec![(*name).to_owned()]),
            Form::GraphCsv => graph_column(name),
            _ => flat_column(name, form, prefixed, twice),
        });
        Some(Header { form, columns: columns.collect() })
    }

    /// The form of the table.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The dialect of a row's event, for `restore`.
    pub fn dialect(&self) -> Dialect {
        match self.form {
            Form::OfficeActivityCsv => Dialect::OfficeActivity,
            Form::GraphCsv => Dialect::Graph,
            _ => Dialect::PowerShell,
        }
    }

    /// The event of a row, and the outer cells beside it.
    ///
    /// # Errors
    /// The row has no cell that makes an event, or more cells than the header has.
    pub fn event(&self, cells: &[&str]) -> Result<(Bytes, Outer), Unrestorable> {
        if cells.iter().skip(self.columns.len()).any(|cell| !cell.trim().is_empty()) {
            return Err(Unrestorable { why: "the row has more cells than its header".into() });
        }
        let mut row = FlatRow::default();
        for (column, cell) in self.columns.iter().zip(cells) {
            row.take(column, cell);
        }
        let (event, outer) = row.finish();
        if event.is_empty() && outer == Outer::default() {
            return Err(Unrestorable { why: "the row is empty".into() });
        }
        let mut out = Vec::with_capacity(1024);
        ValueNode::Object(event).push(&mut out);
        Ok((Bytes::from(out), outer))
    }
}

/// The form of a table with these columns; `None` if it is not a table of audit events.
fn form_of(names: &[&str]) -> Option<Form> {
    let has = |wanted: &[&str]| names.iter().any(|name| among(wanted, unprefixed(name).0));
    if names.iter().any(|name| office_activity::is_its_own(name)) {
        return Some(Form::OfficeActivityCsv);
    }
    if has(&["auditLogRecordType"]) && has(&["createdDateTime"]) {
        return Some(Form::GraphCsv);
    }
    let operation = has(&["Operation", "Operations", "Cmdlet"]);
    let time = has(&["CreationTime", "AuditCreationTime", "CreationDate", "RunDate(UTC)", "_time"]);
    let id = has(&["Id", "AuditId", "RecordId", "Identity"]);
    let other = has(&["UserId", "UserIds", "Caller", "RecordType", "Workload"]);
    if !operation || !(time || id) || !other {
        return None;
    }
    let splunk = names.iter().any(|name| among(&["_time", "sourcetype", "_indextime"], name) || name.contains("{}."));
    Some(if splunk { Form::SplunkCsv } else { Form::FlatCsv })
}

fn graph_column(name: &str) -> ColumnTarget {
    if among(&["userId", "userPrincipalName"], name) {
        return ColumnTarget::GraphUser;
    }
    if among(TOOLS, name) || is(name, "AdditionalProperties") {
        return ColumnTarget::Skip;
    }
    let renamed = GRAPHS.iter().find(|(known, _)| is(known, name)).map_or(name, |(_, member)| member);
    ColumnTarget::Member(vec![renamed.to_owned()])
}

fn flat_column(name: &str, form: Form, prefixed: bool, twice: bool) -> ColumnTarget {
    let (bare, is_inner) = unprefixed(name);
    if among(TOOLS, name) || name.is_empty() {
        return ColumnTarget::Skip;
    }
    if let Some((_, field)) = OUTER.iter().find(|(known, _)| is(known, name)) {
        return ColumnTarget::Outer(*field);
    }
    // If the inner record type has a column of its own, the other is the outer one.
    if is(name, "RecordType") && (twice || prefixed) {
        return ColumnTarget::Outer(|outer| &mut outer.record_type);
    }
    if let Some((list, key)) = bare.split_once("{}.") {
        return ColumnTarget::Entries { list: list.to_owned(), key: key.to_owned(), column: name.to_owned() };
    }
    // Splunk's own fields and the aliases of its data models begin with a lower-case letter, as do those of Elastic and
    // the flattener.
    let starts_small = bare.starts_with(|c: char| !c.is_ascii_uppercase());
    if starts_small && (form == Form::SplunkCsv || (prefixed && !is_inner)) {
        return ColumnTarget::Skip;
    }
    if let Some((_, path)) = RENAMED.iter().find(|(known, _)| is(known, bare)) {
        return ColumnTarget::Member(path.iter().map(|part| (*part).to_owned()).collect());
    }
    if let Some(parameter) = bare.strip_prefix("Param_") {
        return ColumnTarget::Parameter(parameter.to_owned());
    }
    if is(bare, "FullCommand") {
        return ColumnTarget::Command;
    }
    ColumnTarget::Member(path_of(bare))
}

/// The names of a member's path: `A.b`, `A/b`, `A[0].b`, and `A_b` if `A` is known to have members.
fn path_of(name: &str) -> Vec<String> {
    let nested = NESTED.iter().find(|nested| {
        name.get(..nested.len()).is_some_and(|start| is(start, nested))
            && name.get(nested.len()..).is_some_and(|rest| rest.starts_with('_'))
    });
    let separator = |c: char| matches!(c, '.' | '/' | '[' | ']') || (nested.is_some() && c == '_');
    let parts: Vec<String> = name.split(separator).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    // A path consists of names; otherwise it is one unusual name.
    if parts.first().is_none_or(|first| first.starts_with(|c: char| c.is_ascii_digit())) {
        return vec![name.to_owned()];
    }
    parts
}

/// A value being assembled.
#[derive(Debug)]
enum ValueNode {
    /// A JSON token.
    Token(String),
    /// Members, or elements if every name is a number.
    Object(Vec<(String, ValueNode)>),
}

impl ValueNode {
    fn push(&self, out: &mut Vec<u8>) {
        let members = match self {
            ValueNode::Token(token) => return out.extend_from_slice(token.as_bytes()),
            ValueNode::Object(members) => members,
        };
        let place = |(name, _): &(String, ValueNode)| name.parse::<u32>().ok();
        let mut places: Vec<(u32, &ValueNode)> =
            members.iter().map_while(|member| Some((place(member)?, &member.1))).collect();
        let is_list = !members.is_empty() && places.len() == members.len();
        out.push(if is_list { b'[' } else { b'{' });
        if is_list {
            places.sort_by_key(|(place, _)| *place);
            for (index, (_, node)) in places.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                node.push(out);
            }
        } else {
            for (index, (name, node)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json::push_string(out, name);
                out.push(b':');
                node.push(out);
            }
        }
        out.push(if is_list { b']' } else { b'}' });
    }
}

/// One row being read.
#[derive(Default)]
struct FlatRow {
    members: Vec<(String, ValueNode)>,
    outer: Outer,
    /// Lists of which each key has a cell: list, key, column, lines.
    entries: Vec<(String, String, String, Vec<String>)>,
    /// Parameters by their columns, empty ones too.
    parameters: Vec<(String, String)>,
    command: Option<String>,
    users: Vec<String>,
}

impl FlatRow {
    fn take(&mut self, column: &ColumnTarget, cell: &str) {
        if cell.trim().is_empty() {
            if let ColumnTarget::Parameter(name) = column {
                self.parameters.push((name.clone(), String::new()));
            }
            return;
        }
        match column {
            ColumnTarget::Skip => {}
            ColumnTarget::Member(path) => {
                insert(&mut self.members, path, token(path.last().map_or("", |name| name), cell))
            }
            ColumnTarget::Entries { list, key, column } => {
                let lines = cell.lines().map(str::to_owned).collect();
                self.entries.push((list.clone(), key.clone(), column.clone(), lines));
            }
            ColumnTarget::Parameter(name) => self.parameters.push((name.clone(), cell.to_owned())),
            ColumnTarget::Command => self.command = Some(cell.to_owned()),
            ColumnTarget::GraphUser => self.users.push(cell.trim().to_owned()),
            ColumnTarget::Outer(field) => {
                field(&mut self.outer).get_or_insert_with(|| cell.trim().to_owned());
            }
        }
    }

    fn finish(mut self) -> (Vec<(String, ValueNode)>, Outer) {
        self.join_entries();
        self.join_parameters();
        // Graph swaps the two: in the feed the address is the user's id.
        let address = self.users.iter().position(|user| user.contains('@')).unwrap_or(0);
        if address < self.users.len() {
            let user = self.users.remove(address);
            insert(&mut self.members, &["UserId".to_owned()], token_of(&user));
            self.users.into_iter().for_each(|key| insert(&mut self.members, &["UserKey".to_owned()], token_of(&key)));
        }
        (self.members, self.outer)
    }

    /// Joins lists whose keys have equally many lines. Otherwise an empty value is missing, of which the owner is
    /// unknown: the cells stay under the names of their columns, and `restore` reports them.
    fn join_entries(&mut self) {
        while let Some((list, ..)) = self.entries.first().cloned() {
            let (of_list, others) = std::mem::take(&mut self.entries).into_iter().partition(|entry| entry.0 == list);
            self.entries = others;
            let of_list: Vec<(String, String, String, Vec<String>)> = of_list;
            let count = of_list.first().map_or(0, |entry| entry.3.len());
            let plain = of_list.iter().all(|(_, key, _, lines)| lines.len() == count && !key.contains("{}"));
            if !plain {
                for (_, _, column, lines) in of_list {
                    self.members.push((column, ValueNode::Token(token_of(&lines.join("\n")))));
                }
                continue;
            }
            for (_, key, _, lines) in of_list {
                for (index, line) in lines.iter().enumerate() {
                    let path: Vec<String> =
                        [list.clone(), index.to_string()].into_iter().chain(path_of(&key)).collect();
                    insert(&mut self.members, &path, token(&key, line));
                }
            }
        }
    }

    /// Parameters from their columns, and from the command those without a column: `Export-Csv` gives all rows the
    /// columns of the first.
    fn join_parameters(&mut self) {
        if self.command.is_none() && self.parameters.is_empty() {
            return;
        }
        let mut found: Vec<(String, String)> = Vec::new();
        if let Some((_, command)) = self.command.take().as_deref().and_then(|text| text.split_once(" -")) {
            parameters::any(&token_of(&format!("-{command}")), &mut |name, value| {
                if !found.iter().any(|(known, _)| is(known, name)) {
                    // A column has the value without quotes, and an empty one if the command seems to have a switch.
                    let column = self.parameters.iter().find(|(known, _)| is(known, name));
                    let plain = value.strip_prefix('$').filter(|word| among(&["true", "false"], word)).unwrap_or(value);
                    found.push((name.to_owned(), column.map_or(plain, |(_, value)| value).to_owned()));
                }
                false
            });
        }
        for (name, value) in self.parameters.iter().filter(|(_, value)| !value.is_empty()) {
            if !found.iter().any(|(known, _)| is(known, name)) {
                found.push((name.clone(), value.clone()));
            }
        }
        if found.is_empty() {
            return;
        }
        self.members.retain(|(name, _)| !is(name, "Parameters"));
        for (index, (name, value)) in found.iter().enumerate() {
            let at = |key: &str| ["Parameters".to_owned(), index.to_string(), key.to_owned()];
            insert(&mut self.members, &at("Name"), token_of(name));
            insert(&mut self.members, &at("Value"), token_of(value));
        }
    }
}

/// Inserts a token at its path. An existing value stays: the first column of a name counts.
fn insert(members: &mut Vec<(String, ValueNode)>, path: &[String], token: String) {
    let Some((name, rest)) = path.split_first() else { return };
    let at = members.iter().position(|(known, _)| is(known, name));
    if rest.is_empty() {
        if at.is_none() {
            members.push((name.clone(), ValueNode::Token(token)));
        }
        return;
    }
    let at = at.unwrap_or_else(|| {
        members.push((name.clone(), ValueNode::Object(Vec::new())));
        members.len() - 1
    });
    if let Some((_, ValueNode::Object(inner))) = members.get_mut(at) {
        insert(inner, rest, token);
    }
}

/// A cell as a JSON token: JSON of a list or an object unchanged, numbers and booleans if the feed has them.
fn token(name: &str, cell: &str) -> String {
    let text = cell.trim();
    if text.starts_with(['[', '{']) && json::is_valid(text) {
        return text.to_owned();
    }
    let is_number = text.len() < 16 && json::is_valid(text) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && among(NUMBERS, name) {
        return text.to_owned();
    }
    if among(BOOLEANS, name) && among(&["true", "false"], text) {
        return text.to_ascii_lowercase();
    }
    token_of(cell)
}

#[cfg(test)]
mod tests {
    use super::super::restore::{Restored, restore};
    use super::*;
    use proptest::prelude::*;

    /// The form of a table, and for each row the event in the feed's form and its losses.
    fn read(table: &[&[&str]]) -> (Form, Vec<(String, Vec<String>)>) {
        let (header, rows) = table.split_first().unwrap();
        let header = Header::of(header).unwrap();
        let rows = rows.iter().map(|row| {
            let (event, outer) = header.event(row).unwrap();
            let Restored { event, losses, .. } = restore(&event, &outer, header.dialect()).unwrap();
            let event = String::from_utf8(event.to_vec()).unwrap();
            assert!(json::is_valid(&event), "{event}");
            (event, losses.into_iter().map(|loss| loss.member).collect())
        });
        (header.form(), rows.collect())
    }

    #[test]
    fn hawks_columns_become_an_event() {
        let (form, rows) = read(&[
            &[
                "AuditId",
                "AuditCreationTime",
                "AuditRecordType",
                "RecordType",
                "Operations",
                "Operation",
                "UserId",
                "UserType",
                "AADSessionId",
                "AppAccessContextIssuedAtTime",
                "Parameters",
                "FullCommand",
                "Param_Name",
                "Param_ForwardTo",
                "ResultIndex",
                "ModifiedProperties",
            ],
            &[
                "a",
                "2026-03-02T10:15:00",
                "1",
                "ExchangeAdmin",
                "New-InboxRule",
                "New-InboxRule",
                "alex@contoso.example",
                "2",
                "s1",
                "",
                "Name=x y | ForwardTo=e@outside.example",
                "New-InboxRule -Name 'x y' -ForwardTo e@outside.example -DeleteMessage $true",
                "x y",
                "e@outside.example",
                "1",
                "System.Object[]",
            ],
        ]);
        assert_eq!(form, Form::FlatCsv);
        let (event, losses) = &rows[0];
        assert_eq!(
            event,
            r#"{"Id":"a","CreationTime":"2026-03-02T10:15:00","RecordType":1,"Operation":"New-InboxRule","UserId":"alex@contoso.example","UserType":2,"AppAccessContext":{"AADSessionId":"s1"},"ModifiedProperties":"System.Object[]","Parameters":[{"Name":"Name","Value":"x y"},{"Name":"ForwardTo","Value":"e@outside.example"},{"Name":"DeleteMessage","Value":"true"}]}"#
        );
        assert_eq!(losses, &["ModifiedProperties"]);
    }

    #[test]
    fn the_short_table_of_hawk_has_the_command_alone() {
        let (form, rows) = read(&[
            &["Caller", "Cmdlet", "FullCommand", "RunDate(UTC)", "ObjectModified"],
            &[
                "alex@contoso.example",
                "Set-Mailbox",
                "Set-Mailbox -Identity j -ForwardingSmtpAddress smtp:e@outside.example",
                "3/2/2026 10:15:00 AM",
                "j",
            ],
            &["alex@contoso.example", "Get-Mailbox", "Get-Mailbox", "2026-03-02T10:15:00", ""],
        ]);
        assert_eq!(form, Form::FlatCsv);
        assert_eq!(
            rows[0].0,
            r#"{"UserId":"alex@contoso.example","Operation":"Set-Mailbox","CreationTime":"2026-03-02T10:15:00","ObjectId":"j","Parameters":[{"Name":"Identity","Value":"j"},{"Name":"ForwardingSmtpAddress","Value":"smtp:e@outside.example"}]}"#
        );
        assert_eq!(
            rows[1].0,
            r#"{"UserId":"alex@contoso.example","Operation":"Get-Mailbox","CreationTime":"2026-03-02T10:15:00"}"#
        );
    }

    #[test]
    fn paths_lead_to_members_in_every_spelling() {
        for names in [
            ["AppAccessContext.ClientAppId", "Parameters.0.Name", "Parameters.0.Value", "Item.ParentFolder.Path"],
            ["AppAccessContext_ClientAppId", "Parameters[0].Name", "Parameters[0].Value", "Item_ParentFolder_Path"],
            ["AppAccessContext/ClientAppId", "Parameters_1_Name", "Parameters_1_Value", "Item/ParentFolder/Path"],
            [
                "AuditData.AppAccessContext.ClientAppId",
                "AuditData.Parameters[0].Name",
                "AuditData.Parameters[0].Value",
                "AuditData.Item.ParentFolder.Path",
            ],
        ] {
            let header = [&["Id", "Operation", "UserId"][..], &names].concat();
            let (_, rows) =
                read(&[&header, &["a", "o", "u@contoso.example", "app", "ForwardTo", "e@outside.example", "\\Inbox"]]);
            assert_eq!(
                rows[0].0,
                r#"{"Id":"a","Operation":"o","UserId":"u@contoso.example","AppAccessContext":{"ClientAppId":"app"},"Parameters":[{"Name":"ForwardTo","Value":"e@outside.example"}],"Item":{"ParentFolder":{"Path":"\\Inbox"}}}"#,
                "{names:?}"
            );
        }
    }

    #[test]
    fn splunks_lists_are_put_together_line_by_line() {
        let header = [
            "_time",
            "host",
            "Id",
            "Operation",
            "RecordType",
            "UserId",
            "user",
            "Parameters{}.Name",
            "Parameters{}.Value",
        ];
        let row = |values| ["2026-03-02T10:15:00.000+0000", "h", "a", "o", "1", "u", "u2", "Name\nForwardTo", values];
        let (form, rows) = read(&[&header, &row("x\ne@outside.example"), &row("e@outside.example")]);
        assert_eq!(form, Form::SplunkCsv);
        assert_eq!(
            rows[0],
            (r#"{"Id":"a","Operation":"o","RecordType":1,"UserId":"u","Parameters":[{"Name":"Name","Value":"x"},{"Name":"ForwardTo","Value":"e@outside.example"}],"CreationTime":"2026-03-02T10:15:00"}"#.into(), vec![])
        );
        // An empty value leaves no line, so its owner is unknown.
        assert_eq!(rows[1].1, ["Parameters{}.Name", "Parameters{}.Value"]);
    }

    #[test]
    fn graphs_table_gives_the_members_outside_of_the_audit_data() {
        let (form, rows) = read(&[
            &[
                "id",
                "createdDateTime",
                "auditLogRecordType",
                "operation",
                "userType",
                "userId",
                "userPrincipalName",
                "service",
                "auditData",
            ],
            &[
                "a",
                "3/2/2026 10:15:00 AM",
                "exchangeAdmin",
                "New-InboxRule",
                "admin",
                "1003",
                "alex@contoso.example",
                "Exchange",
                "Microsoft.Graph.Beta.PowerShell.Models.MicrosoftGraphSecurityAuditData",
            ],
        ]);
        assert_eq!(form, Form::GraphCsv);
        assert_eq!(
            rows[0],
            (r#"{"Id":"a","CreationTime":"2026-03-02T10:15:00","RecordType":1,"Operation":"New-InboxRule","UserType":2,"Workload":"Exchange","UserId":"alex@contoso.example","UserKey":"1003"}"#.into(), vec!["AuditData".to_owned()])
        );
    }

    #[test]
    fn other_tables_are_no_tables_of_audit_events() {
        for header in
            [&["a", "b"][..], &["Operation", "Amount"], &["Id", "CreationTime"], &["Date", "UserId", "Operation"], &[]]
        {
            assert!(Header::of(header).is_none(), "{header:?}");
        }
    }

    #[test]
    fn a_row_without_cells_or_with_too_many_is_refused() {
        let header = Header::of(&["Id", "Operation", "UserId"]).unwrap();
        assert!(header.event(&["", " "]).is_err());
        assert!(header.event(&["a", "o", "u", "", "x"]).is_err());
        assert!(header.event(&["a", "o", "u", ""]).is_ok());
    }

    proptest! {
        #[test]
        fn no_table_panics_and_every_event_is_json(
            names in prop::collection::vec(r"Param_[a-z]|Parameters(\{\}\.[NV]|[._\[][0-9N]\]?[._]?[A-Z]?)?|Item[._][A-Z]([._][a-z0-9])?|[A-Za-z._{}\[\]/]{0,12}|FullCommand|_time|AuditData\.[A-Z]", 0..8),
            cells in prop::collection::vec(r"[a-z \n{}'-]{0,12}|-?[0-9]{1,20}|True|\{.\}|o -[A-Z] '?[a-z$]*", 0..14),
        ) {
            let header: Vec<&str> = ["Id", "Operation", "UserId"].into_iter().chain(names.iter().map(String::as_str)).collect();
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            if let Ok((event, _)) = Header::of(&header).unwrap().event(&cells) {
                let text = std::str::from_utf8(&event).unwrap();
                prop_assert!(json::is_valid(text), "{text}");
            }
        }
    }
}
