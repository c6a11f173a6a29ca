//! Which of its sources' records a sink gets: the keys that every sink type has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Issue;
use crate::config::record_schema::{CATEGORIES, SEVERITIES};

/// The selection of records for a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SelectionConfig {
    /// The minimum severity of the events for this sink. An event that is left out counts as delivered here, and still
    /// goes to the other sinks of its source. Records of this program (`m365_audit.gap`, `m365_audit.bad_blob`) are
    /// always sent.
    #[serde(default)]
    #[schemars(schema_with = "min_severity_schema")]
    pub min_severity: Option<String>,

    /// Only events of these categories go to this sink. Default: all.
    #[serde(default)]
    #[schemars(schema_with = "categories_schema")]
    pub categories: Vec<String>,

    /// Only events of these types go to this sink: `event_type` of the native format, for every format,
    /// case-insensitive; `*` matches any characters. Default: all.
    #[serde(default)]
    #[schemars(schema_with = "event_types_schema")]
    pub event_types: Vec<String>,

    /// The limit in bytes on a record's JSON. A larger record is set aside alone, without being sent, since the
    /// receiver might drop it together with its neighbours. `state show` lists it; `state retry` offers it again, once
    /// the limit is raised. Default: none.
    #[serde(default)]
    #[schemars(range(min = 1024, max = 1_073_741_824_u64), example = 262144)]
    pub record_bytes_max: Option<u64>,
}

impl SelectionConfig {
    /// Patterns that can match no event type, each with its place.
    pub(in crate::config) fn issues(&self) -> Vec<(usize, Issue, String)> {
        let odd = |(place, text): (usize, &String)| {
            let meant = meant(text)?;
            let expected = "an event type such as `m365.exchange.new_inboxrule` or `m365.sharepoint.*`";
            Some((place, Issue::new("event_types", expected), format!("write `{meant}`")))
        };
        self.event_types.iter().enumerate().filter_map(odd).collect()
    }
}

/// The probable meaning of a text that is not a pattern of event types; `None` if it is one.
fn meant(text: &str) -> Option<String> {
    let folded = |part: &str| {
        let mut slug = String::new();
        for c in part.trim().trim_end_matches('.').to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '*' | '_' => slug.push(c),
                _ if slug.ends_with('_') => {}
                _ => slug.push('_'),
            }
        }
        slug
    };
    let lower = text.to_ascii_lowercase();
    let begins = ["m365.", "m365_audit."].iter().any(|begin| lower.starts_with(begin)) || lower.starts_with('*');
    let is_folded = lower.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'*'));
    match (begins, is_folded) {
        (true, true) => None,
        (true, false) => Some(text.split('.').map(folded).collect::<Vec<_>>().join(".")),
        // A workload and an operation, or an operation alone.
        (false, _) => Some(match text.split_once('.') {
            Some((workload, operation)) if !operation.is_empty() => {
                format!("m365.{}.{}", folded(workload), folded(operation))
            }
            _ => format!("m365.*.{}", folded(text)),
        }),
    }
}

fn min_severity_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": SEVERITIES, "examples": ["high"] })
}

fn categories_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "enum": CATEGORIES },
        "minItems": 1,
        "uniqueItems": true,
        "examples": [["identity", "email"]],
    })
}

fn event_types_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "minLength": 1 },
        "minItems": 1,
        "uniqueItems": true,
        "x-expected": "a list of event types, `*` for any run of characters",
        "examples": [["m365.exchange.*", "m365.*.add_member_to_role"]],
    })
}

#[cfg(test)]
mod tests {
    use super::meant;

    #[test]
    fn what_matches_no_event_type_is_told_with_what_was_meant() {
        for (text, expected) in [
            ("m365.exchange.new_inboxrule", None),
            ("M365.Exchange.*", None),
            ("*.new_inboxrule", None),
            ("*", None),
            ("m365_audit.gap", None),
            ("New-InboxRule", Some("m365.*.new_inboxrule")),
            ("Exchange.New-InboxRule", Some("m365.exchange.new_inboxrule")),
            ("m365.exchange.New-InboxRule", Some("m365.exchange.new_inboxrule")),
            ("Add member to role.", Some("m365.*.add_member_to_role")),
        ] {
            assert_eq!(meant(text).as_deref(), expected, "{text}");
        }
    }
}
