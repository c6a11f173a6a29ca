//! The record of `format = "native"`, as documentation: a struct that is never filled, from which the JSON Schema is
//! made.
//!
//! Records are written by `normalise` without an intermediate struct, for speed; a test there checks its output against
//! this schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::schema::schema_of;

/// The JSON Schema of a native record: what `m365-audit schema record` prints.
pub fn record_schema() -> Value {
    let mut schema = schema_of::<Record>().to_value();
    // Gap and bad-blob records carry members of their own, and later versions may add some.
    schema["additionalProperties"] = json!(true);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("m365_audit record, format native");
    schema
}

/// The members of a native record in the order they are declared.
pub(crate) fn record_keys() -> &'static [&'static str] {
    super::schema::keys_of::<Record>()
}

/// One Microsoft 365 audit event, flat and typed. A value that the event does not have is absent, never an empty
/// string.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Record")]
struct Record {
    /// Always `m365`.
    #[schemars(extend("const" = "m365"))]
    source: String,
    /// The subject of the event, from its workload or record type.
    #[schemars(extend("enum" = CATEGORIES))]
    category: String,
    /// When it happened (`CreationTime`), RFC 3339 in UTC. Absent if the event has no readable `CreationTime` and did
    /// not come from the feed (`normalize`).
    #[schemars(extend("format" = "date-time"))]
    timestamp: Option<String>,
    /// `true` when the event has no readable `CreationTime` and `timestamp` is `content_created`.
    timestamp_inferred: Option<bool>,
    /// `Id` of the event. Absent on records of this program that are not audit events.
    event_id: Option<String>,
    /// `m365.<workload>.<operation>` in lower case; `m365_audit.gap`, `m365_audit.gap_healed`, `m365_audit.bad_blob`
    /// and `m365_audit.receipt` for records of this program.
    #[schemars(example = &"m365.exchange.new_inboxrule")]
    event_type: String,
    /// The event in one line for people.
    title: Option<String>,
    /// `Operation` as received.
    operation: Option<String>,
    /// `Workload` as received.
    workload: Option<String>,
    /// `RecordType`.
    record_type: Option<i64>,
    /// The name Microsoft's schema gives `record_type`.
    record_type_name: Option<String>,
    /// The severity of the event.
    #[schemars(extend("enum" = SEVERITIES))]
    severity: String,
    /// The rules that matched, by id (`docs/rules.md`); the highest of them gave the severity.
    severity_rule: Option<Vec<String>>,
    /// Why, in words: the reasons of these rules, the highest first.
    severity_reason: Option<String>,
    /// Why an event that a rule would have dropped was delivered. In `ecs` it is `m365.audit.dlp`, in `ocsf`
    /// `unmapped.dlp`.
    dlp: Option<Dlp>,
    /// How the operation ended.
    #[schemars(extend("enum" = ["success", "failure", "unknown"]))]
    outcome: Option<String>,
    /// Who acted.
    actor: Option<Actor>,
    /// The address it came from, without a port.
    src_ip: Option<String>,
    /// The port it came from.
    #[schemars(range(min = 0, max = 65535))]
    src_port: Option<u16>,
    /// The name that the client gives itself.
    user_agent: Option<String>,
    /// What was acted upon (`ObjectId`); if that is missing or `Not Available`, another object that the event names.
    object: Option<String>,
    /// The target of the operation: the user, group or service principal that was granted a permission (not the API),
    /// the mailbox's owner, the person shared with. In `ecs` `user.target`, in `ocsf` `user`.
    target: Option<Target>,
    /// The application used or affected: for a sign-in the one signed in with, for a grant or consent the one that may
    /// act now, for Copilot and similar services the agent. The names of Microsoft's own applications are filled in.
    application: Option<Application>,
    /// Why it failed.
    error: Option<Fault>,
    /// The resources affected: the API of a grant, messages and folders of a mailbox, the files an AI application read;
    /// 20 at most.
    resources: Option<Vec<Resource>>,
    /// Roles, scopes and rights that were granted or revoked, one string each.
    privileges: Option<Vec<String>>,
    /// The configured tenant; for an event that did not come from the feed its `OrganizationId`, if it has one.
    #[schemars(extend("format" = "uuid"))]
    tenant_id: Option<String>,
    /// The content type the event was listed under. Absent on one that did not come from the feed.
    #[schemars(extend("enum" = content_types()))]
    content_type: Option<String>,
    /// `contentId` of the blob the event came in.
    content_id: Option<String>,
    /// `contentCreated` of that blob, RFC 3339 in UTC. Where the listing has none: the time at the head of `content_id`,
    /// or else seven days before `contentExpiration`, or else the beginning of the day from which it was listed.
    #[schemars(extend("format" = "date-time"))]
    content_created: Option<String>,
    /// `graph`: the event was healed through Microsoft Graph (`docs/heal.md`). Absent on the feed's events.
    #[schemars(extend("enum" = ["graph"]))]
    origin: Option<String>,
    /// The event as received: an object, or with `raw = "string"` a text that keeps every byte.
    #[serde(default)]
    #[schemars(schema_with = "raw_schema")]
    raw: Option<Value>,
    /// `true` when values in `raw` were masked, those that data loss prevention found or those of `mask`; each reads
    /// `[masked]` (a number 0), so types and counts are kept.
    raw_masked: Option<bool>,
    /// Of `m365_audit.gap` and `m365_audit.gap_healed`: the first instant of `contentCreated` that is gone, or filled.
    #[schemars(extend("format" = "date-time"))]
    gap_from: Option<String>,
    /// Of these: the first instant after it.
    #[schemars(extend("format" = "date-time"))]
    gap_to: Option<String>,
    /// Of a record of this program: the reason. Of `m365_audit.gap` one of `outage`, `subscription_disabled`,
    /// `blob_expired`, `position_moved`; of `m365_audit.bad_blob` in words.
    reason: Option<String>,
    /// Of `m365_audit.gap`: the reason, in words.
    detail: Option<String>,
    /// Of `m365_audit.gap_healed`: the ids of the searches of Microsoft Graph.
    queries: Option<Vec<String>>,
    /// Of `m365_audit.gap_healed`: different records that these searches gave, of all content types.
    records: Option<u64>,
    /// Of `m365_audit.gap_healed`: events delivered of them, of all content types.
    events: Option<u64>,
    /// Of `m365_audit.gap_healed`: how often the searches were read, all readings together.
    readings: Option<u64>,
    /// Of `m365_audit.gap_healed`: `true`: for each search, two readings agreed. A part whose readings did not agree
    /// stays a gap.
    readings_agree: Option<bool>,
    /// Of `m365_audit.receipt`: the number of the part of the receipts that was sealed.
    receipt_part: Option<u64>,
    /// Of `m365_audit.receipt`: when its hour begins.
    #[schemars(extend("format" = "date-time"))]
    receipt_hour: Option<String>,
    /// Of `m365_audit.receipt`: how many receipts it has.
    receipts: Option<u64>,
    /// Of `m365_audit.receipt`: the signed checkpoint, as `receipts verify --checkpoints` reads it.
    checkpoint: Option<String>,
    /// Of `m365_audit.bad_blob`: where the bytes begin in the blob, decompressed, or in the text of a file.
    offset: Option<u64>,
    /// Of `m365_audit.bad_blob`: how many bytes there are in all, if known.
    total: Option<u64>,
    /// Of `m365_audit.bad_blob` that `normalize` made: the file.
    file: Option<String>,
    /// Of `m365_audit.bad_blob` that `normalize` made: the line, from 1 on.
    line: Option<u64>,
    /// Of a row of a table that could not be read: its number, from 1 on.
    row: Option<u64>,
    /// Of such a row, or of a wrapper: when the event happened, as written there.
    row_time: Option<String>,
    /// Of such a row, or of a wrapper: the event's id.
    row_id: Option<String>,
    /// Of such a row, or of a wrapper: the operation.
    row_operation: Option<String>,
    /// Of such a row, or of a wrapper: who acted.
    row_user: Option<String>,
    /// Of `m365_audit.bad_blob`: the bytes, in base64.
    body_base64: Option<String>,
    /// Of `m365_audit.bad_blob`: why the bytes are not shown, and where they are: they may contain masked values, or
    /// their blob has over 1 MiB, or over 100 records, of such bytes.
    body_withheld: Option<String>,
    /// Of bytes that are not shown: how many.
    body_bytes: Option<u64>,
    /// Of bytes that are not shown: their SHA-256.
    body_sha256: Option<String>,
    /// Of the rest of a blob that is not shown: its number of stretches; `body_sha256` covers all of them in order.
    body_stretches: Option<u64>,
}

/// Who acted.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Actor {
    /// `UserId` as received, else `UserKey`.
    id: Option<String>,
    /// The part of the address before its `@`.
    name: Option<String>,
    /// The address, where the id is one.
    email: Option<String>,
    /// `UserType` as a word (`regular`, `admin`, `system`, …); a number Microsoft has not named as its digits.
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Whom it was done to, or who got something.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Target {
    /// A GUID, the claim or the principal name as received.
    id: Option<String>,
    /// A display name, else the part of the address before its `@`.
    name: Option<String>,
    /// The address, where it has one; of a guest the one outside.
    email: Option<String>,
    /// `user`, `group`, `service_principal`, `mailbox`, `guest`, `everyone`, …
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// The application it was done with or for.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Application {
    /// Its id.
    id: Option<String>,
    /// Its name.
    name: Option<String>,
}

/// Why it failed.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Fault {
    /// Microsoft's number (`ErrorNumber`) or name (`LogonError`).
    code: Option<String>,
    /// Its message, in words if they are known.
    message: Option<String>,
}

/// A resource that was affected.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Resource {
    /// Its name: a subject, a path, an API, a file.
    name: Option<String>,
    /// What it is: `message`, `folder`, `mailbox`, `api`, `group`, `team`, or the kind of file.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The id of its sensitivity label.
    label: Option<String>,
}

/// Why an event that a rule would have dropped was shipped.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Dlp {
    /// `true`: data loss prevention matched the same item or message, before or after it was read.
    flagged: Option<bool>,
    /// The policies that matched, by name, else by id.
    policy: Option<Vec<String>>,
    /// The incidents (`IncidentId`) of the matches.
    incident: Option<Vec<String>>,
    /// `true`: the limit `hold_bytes_max` did not allow holding it until all matches that could concern it had been
    /// read.
    undetermined: Option<bool>,
}

pub(super) const CATEGORIES: [&str; 13] = [
    "identity",
    "email",
    "file",
    "collaboration",
    "compliance",
    "dlp",
    "threat",
    "automation",
    "analytics",
    "endpoint",
    "ai",
    "productivity",
    "other",
];

pub(super) const SEVERITIES: [&str; 5] = {
    use crate::severity::Severity;
    [
        Severity::Info.as_str(),
        Severity::Low.as_str(),
        Severity::Medium.as_str(),
        Severity::High.as_str(),
        Severity::Critical.as_str(),
    ]
};

fn content_types() -> [&'static str; 5] {
    crate::model::ContentType::ALL.map(crate::model::ContentType::as_str)
}

fn raw_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["object", "string"] })
}
