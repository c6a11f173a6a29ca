//! The verdict that `reconcile` left, read back: `docs/reconcile.md` has its form.
//!
//! It may list a million events; only some are kept, and the others are skipped while reading.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::model::{Compared, MissingEvent, Reconcile};
use crate::model::{TenantId, Timestamp, shortened};

/// Missing events that are kept.
pub const LISTED_MAX: usize = 20;

#[derive(Deserialize)]
struct StoredVerdict {
    tenant: String,
    made: Timestamp,
    rows: u64,
    classes: BTreeMap<String, u64>,
    #[serde(default)]
    only_ours: Option<u64>,
    witness: StoredWitness,
    #[serde(deserialize_with = "first_of")]
    missing: Vec<MissingEvent>,
    #[serde(default)]
    between: Option<(Timestamp, Timestamp)>,
    #[serde(default)]
    evidence: Vec<String>,
}

#[derive(Deserialize)]
struct StoredWitness {
    looks_cut: bool,
    #[serde(default)]
    why: Vec<String>,
}

#[derive(Deserialize)]
struct StoredEvent {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    time: Option<String>,
    #[serde(default)]
    operation: Option<String>,
}

/// Reads a verdict on this tenant.
pub fn read(verdict: impl Read, tenant: &TenantId) -> Reconcile {
    let verdict: StoredVerdict = match serde_json::from_reader(verdict) {
        Ok(verdict) => verdict,
        Err(error) => return Reconcile::Unreadable { why: error.to_string() },
    };
    if !verdict.tenant.eq_ignore_ascii_case(tenant.as_str()) {
        return Reconcile::Unreadable { why: format!("it is about tenant `{}`", shortened(&verdict.tenant)) };
    }
    Reconcile::Made(Box::new(Compared {
        made: verdict.made,
        between: verdict.between,
        rows: verdict.rows,
        classes: verdict.classes,
        only_ours: verdict.only_ours,
        looks_cut: verdict.witness.looks_cut,
        why: verdict.witness.why,
        evidence: verdict.evidence,
        missing: verdict.missing,
    }))
}

fn first_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<MissingEvent>, D::Error> {
    struct ExportSpan;

    impl<'de> Visitor<'de> for ExportSpan {
        type Value = Vec<MissingEvent>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of events")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut events = Vec::new();
            while events.len() < LISTED_MAX
                && let Some(StoredEvent { id, time, operation }) = seq.next_element()?
            {
                let text = |text: Option<String>| shortened(&text.unwrap_or_default()).into_owned();
                events.push(MissingEvent { id: text(id), time: text(time), operation: text(operation) });
            }
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(events)
        }
    }

    deserializer.deserialize_seq(ExportSpan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> TenantId {
        "6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11".parse().unwrap()
    }

    fn verdict(missing: usize) -> String {
        let event = r#"{"id":"i","time":"2026-11-29T10:00:00Z","operation":"o"}"#;
        let missing = vec![event; missing].join(",");
        format!(
            r#"{{"rows":9,"classes":{{"delivered":8,"missing":1}},"only_ours":3,"witness":{{"looks_cut":true,"why":["5,000 rows"]}},"missing":[{missing}],"only_ours_events":[{event}],"source":"contoso","tenant":"{}","made":"2026-11-30T10:00:00Z","between":null,"later":{{"a":1}}}}"#,
            tenant()
        )
    }

    #[test]
    fn a_verdict_is_read_and_of_many_missing_events_the_first() {
        for (missing, kept) in [(0, 0), (3, 3), (LISTED_MAX, LISTED_MAX), (5_000, LISTED_MAX)] {
            let Reconcile::Made(made) = read(verdict(missing).as_bytes(), &tenant()) else { panic!("not read") };
            assert_eq!((made.rows, made.class("missing"), made.only_ours, made.looks_cut), (9, 1, Some(3), true));
            assert_eq!((made.missing.len(), made.class("held")), (kept, 0));
        }
    }

    #[test]
    fn one_of_another_tenant_or_cut_or_none_says_so() {
        let why = |read: Reconcile| match read {
            Reconcile::Unreadable { why } => why,
            other => panic!("{other:?}"),
        };
        let other = verdict(1).replace("6f1d3a52", "00000000");
        assert!(why(read(other.as_bytes(), &tenant())).contains("about tenant `00000000-"));
        assert!(!why(read(&verdict(1).as_bytes()[..60], &tenant())).is_empty());
        assert!(!why(read(&b"[]"[..], &tenant())).is_empty());
    }
}
