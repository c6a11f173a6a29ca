//! The content type of the feed that would have contained an event, if that is certain.
//!
//! Microsoft documents only the rule: three named workloads have a content type each, `DLP.All` has data loss
//! prevention of all of them, `Audit.General` has every other workload. The record types in a workload's own content
//! type were observed on the wire; any other record type is uncertain.

use crate::model::ContentType;
use crate::normalise::record_types;

/// The workloads that have a content type of their own.
const OWN: [(&str, ContentType); 4] = [
    ("azureactivedirectory", ContentType::AzureActiveDirectory),
    ("exchange", ContentType::Exchange),
    ("sharepoint", ContentType::SharePoint),
    ("onedrive", ContentType::SharePoint),
];

/// The content type that brings a record type of a workload; `None` if that is uncertain.
pub fn of(record_type: Option<i64>, workload: &str) -> Option<ContentType> {
    let record_type = record_type?;
    let own = match record_type {
        8 | 9 | 15 => ContentType::AzureActiveDirectory,
        1 | 2 | 3 | 50 => ContentType::Exchange,
        4 | 6 | 7 | 14 | 36 | 37 | 54 | 55 | 56 => ContentType::SharePoint,
        11 | 13 | 33 => return Some(ContentType::Dlp),
        // Scanners and endpoints: observed in several content types, or in none.
        63 | 99 | 100 | 107 => return None,
        _ => ContentType::General,
    };
    let of_workload = OWN.iter().find(|(name, _)| workload.trim().eq_ignore_ascii_case(name)).map(|(_, own)| *own);
    match (own, of_workload) {
        (ContentType::General, None) => {
            let is_known = !workload.trim().is_empty() && record_types::info(record_type).is_some();
            is_known.then_some(own)
        }
        (own, Some(of_workload)) => (own == of_workload).then_some(own),
        (_, None) => None,
    }
}

/// The most likely content type of an event, if it is uncertain: its workload's own, else `Audit.General`.
pub fn likely(record_type: Option<i64>, workload: &str) -> ContentType {
    let of_workload = OWN.iter().find(|(name, _)| workload.trim().eq_ignore_ascii_case(name)).map(|(_, own)| *own);
    of(record_type, workload).or(of_workload).unwrap_or(ContentType::General)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_is_named_only_where_it_is_sure() {
        use ContentType::*;
        for (record_type, workload, expected) in [
            (Some(1), "Exchange", Some(Exchange)),
            (Some(50), "exchange", Some(Exchange)),
            (Some(8), "AzureActiveDirectory", Some(AzureActiveDirectory)),
            (Some(6), "OneDrive", Some(SharePoint)),
            (Some(11), "SharePoint", Some(Dlp)),
            (Some(13), "Exchange", Some(Dlp)),
            (Some(25), "MicrosoftTeams", Some(General)),
            (Some(40), "SecurityComplianceCenter", Some(General)),
            // A workload with its own content type, and a record type that was not observed there.
            (Some(154), "Exchange", None),
            (Some(1), "", None),
            (Some(1), "MicrosoftTeams", None),
            (Some(25), "", None),
            (Some(9_999), "Novelty", None),
            (Some(63), "Endpoint", None),
            (None, "Exchange", None),
        ] {
            assert_eq!(of(record_type, workload), expected, "{record_type:?} {workload}");
        }
    }
}
