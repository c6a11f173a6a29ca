//! The shape of a record: its format and the form of its `raw` member.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The shape of a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One flat, typed object with the original event under `raw`.
    #[default]
    Native,
    /// Elastic Common Schema 8.17, the event as a text under `event.original`.
    Ecs,
    /// Open Cybersecurity Schema Framework, the event as a text under `raw_data`; see `ocsf_version`.
    Ocsf,
    /// The event as received, alone.
    Raw,
}

/// A version of the Open Cybersecurity Schema Framework.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OcsfVersion {
    /// 1.8.0.
    #[default]
    #[serde(rename = "1.8.0")]
    V1_8_0,
    /// 1.1.0, as Amazon Security Lake requires it.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// The field names of records of `format = "ecs"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EcsProfile {
    /// Those of the schema, and those of this program below `m365.audit`.
    #[default]
    #[serde(rename = "ecs")]
    Ecs,
    /// In addition those that Elastic's own rules and dashboards for Microsoft 365 use: `event.dataset` `o365.audit`,
    /// the category `web`, the members of the event below `o365.audit`.
    #[serde(rename = "elastic-o365")]
    ElasticO365,
}

/// The form of the original event inside a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawForm {
    /// The event as an object: bytes copied, line breaks between tokens removed.
    #[default]
    Object,
    /// The event as a JSON string that keeps every byte.
    String,
    /// Without the original event; in `ecs` and `ocsf`, too.
    None,
}
