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
    /// The event as received, alone.
    Raw,
}

/// The form of `raw` in the native format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawForm {
    /// The event as an object: bytes copied, line breaks between tokens removed.
    #[default]
    Object,
    /// The event as a JSON string that keeps every byte.
    String,
    /// No `raw` member.
    None,
}
