//! The record of `format = "native"`, as documentation: a struct nobody fills, from which the JSON Schema is made.
//!
//! Records are written by `normalise` without an intermediate struct, for speed; a test there holds what it writes
//! against this schema.

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

/// One Microsoft 365 audit event, flat and typed. What the event does not tell is absent, never an empty string.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Record")]
struct Record {
    /// Always `m365`.
    #[schemars(extend("const" = "m365"))]
    source: String,
    /// What the event is about, from its workload or record type.
    #[schemars(extend("enum" = CATEGORIES))]
    category: String,
    /// When it happened (`CreationTime`), RFC 3339 in UTC. Absent where the event has no readable `CreationTime` and did
    /// not come from the feed (`normalize`).
    #[schemars(extend("format" = "date-time"))]
    timestamp: Option<String>,
    /// `true` when the event has no readable `CreationTime` and `timestamp` is `content_created`.
    timestamp_inferred: Option<bool>,
    /// `Id` of the event. Absent on records of ours that are not audit events.
    event_id: Option<String>,
    /// `m365.<workload>.<operation>` in lower case; `m365_audit.gap`, `m365_audit.gap_healed`,
    /// `m365_audit.bad_blob` and `m365_audit.receipt` for
    /// records of ours.
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
    /// How much the event matters.
    #[schemars(extend("enum" = SEVERITIES))]
    severity: String,
    /// The rules that matched, by id (`docs/rules.md`); the highest of them gave the severity.
    severity_rule: Option<Vec<String>>,
    /// Why, in words: the reasons of these rules, the highest first.
    severity_reason: Option<String>,
    /// Why an event that a rule would have dropped was shipped. In `ecs` it is `m365.audit.dlp`, in `ocsf` `unmapped.dlp`.
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
    /// The client's own name for itself.
    user_agent: Option<String>,
    /// What was acted upon (`ObjectId`); where that is missing or `Not Available`, what the event names instead.
    object: Option<String>,
    /// Whom it was done to, or who got something: the user, group or service principal that was granted a permission (not
    /// the API), the mailbox's owner, the person shared with. In `ecs` `user.target`, in `ocsf` `user`.
    target: Option<Target>,
    /// The application it was done with or for: of a sign-in the one signed in with, of a grant or consent the one that may
    /// act now, of Copilot and its like the agent. Names of Microsoft's own are filled in.
    application: Option<Application>,
    /// Why it failed.
    error: Option<Fault>,
    /// What was touched: the API of a grant, messages and folders of a mailbox, what an AI application read; 20 at most.
    resources: Option<Vec<Resource>>,
    /// Roles, scopes and rights that were given or taken, one a text.
    privileges: Option<Vec<String>>,
    /// The configured tenant; of an event that did not come from the feed its `OrganizationId`, where it has one.
    #[schemars(extend("format" = "uuid"))]
    tenant_id: Option<String>,
    /// The content type the event was listed under. Absent on one that did not come from the feed.
    #[schemars(extend("enum" = content_types()))]
    content_type: Option<String>,
    /// `contentId` of the blob the event came in.
    content_id: Option<String>,
    /// `contentCreated` of that blob, RFC 3339 in UTC.
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
    /// Of a record of ours: why. Of `m365_audit.gap` one of `outage`, `subscription_disabled`, `blob_expired`,
    /// `position_moved`; of `m365_audit.bad_blob` in words.
    reason: Option<String>,
    /// Of `m365_audit.gap`: why, in words.
    detail: Option<String>,
    /// Of `m365_audit.gap_healed`: the ids of the searches of Microsoft Graph.
    queries: Option<Vec<String>>,
    /// Of `m365_audit.gap_healed`: different records that these searches gave, of all content types.
    records: Option<u64>,
    /// Of `m365_audit.gap_healed`: events delivered of them, of all content types.
    events: Option<u64>,
    /// Of `m365_audit.gap_healed`: how often the searches were read, all readings together.
    readings: Option<u64>,
    /// Of `m365_audit.gap_healed`: `true`: of each search two readings agreed. What did not agree stays a gap.
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
    /// Of `m365_audit.bad_blob`: how many bytes there are in all, where that is known.
    total: Option<u64>,
    /// Of `m365_audit.bad_blob` that `normalize` made: the file.
    file: Option<String>,
    /// Of `m365_audit.bad_blob` that `normalize` made: the line, from 1 on.
    line: Option<u64>,
    /// Of a row of a table that could not be read: its number, from 1 on.
    row: Option<u64>,
    /// Of such a row, or of a wrapper: when the event happened, as it is written there.
    row_time: Option<String>,
    /// Of such a row, or of a wrapper: the event's id.
    row_id: Option<String>,
    /// Of such a row, or of a wrapper: the operation.
    row_operation: Option<String>,
    /// Of such a row, or of a wrapper: who acted.
    row_user: Option<String>,
    /// Of `m365_audit.bad_blob`: the bytes, in base64.
    body_base64: Option<String>,
    /// Of `m365_audit.bad_blob`: why the bytes are not shown, and where they are: they may hold what is masked, or their
    /// blob has over 1 MiB, or over 100 records, of such bytes.
    body_withheld: Option<String>,
    /// Of bytes that are not shown: how many.
    body_bytes: Option<u64>,
    /// Of bytes that are not shown: their SHA-256.
    body_sha256: Option<String>,
    /// Of the rest of a blob that is not shown: how many stretches it is; `body_sha256` is of all, one after the other.
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
    /// Microsoft's number (`ErrorNumber`) or word (`LogonError`).
    code: Option<String>,
    /// What it says, in words where they are known.
    message: Option<String>,
}

/// What was touched.
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
    /// `true`: there was no room to hold it until all matches that could concern it had been read (`hold_bytes_max`).
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
