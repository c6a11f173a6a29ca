//! The category of an event, by its workload and its record type.

use std::collections::HashMap;
use std::sync::LazyLock;

use foldhash::fast::FixedState;

use super::category::{Category, DLP_RECORD_TYPES};
use super::record_types;

/// Record type of alerts, whose own `Category` is more precise than their workload.
const ALERT: i64 = 40;

/// Workloads in lower case without blanks. Some are documented only; they cost nothing and nothing depends on them.
const BY_WORKLOAD: &[(Category, &[&str])] = &[
    (Category::Identity, &["azureactivedirectory"]),
    (Category::Email, &["exchange", "omeportal", "encryptedmessageportal", "email"]),
    (Category::File, &["sharepoint", "onedrive", "publicendpoint", "aip", "microsoftstream", "stream"]),
    (Category::Collaboration, &["microsoftteams", "skypeforbusiness", "yammer", "vivaengage", "teamsevaldatahub"]),
    (
        Category::Compliance,
        &[
            "securitycompliancecenter",
            "compliancemanager",
            "compliance",
            "datagovernance",
            "informationprotection",
            "informationbarriers",
            "ediscovery",
            "discovery",
            "aed",
            "scubaaudit",
            "attacksimulation",
            "attacksim",
        ],
    ),
    (
        Category::Threat,
        &[
            "threatintelligence",
            "mcas",
            "airinvestigation",
            "quarantine",
            "microsoftdefenderforendpoint",
            "mdatpaudit",
            "wdatp",
            "microsoftdefenderforidentity",
            "microsoft365defender",
            "appgovernance",
        ],
    ),
    (Category::Dlp, &["endpoint"]),
    (
        Category::Analytics,
        &["powerbi", "myanalytics", "workplaceanalytics", "vivainsights", "vivagoals", "vivalearning"],
    ),
    (Category::Ai, &["copilot"]),
    (Category::Automation, &["microsoftflow", "powerautomate", "powerapps", "powerplatform"]),
    (
        Category::Productivity,
        &[
            "microsoftforms",
            "officeapps",
            "office365",
            "dynamics365",
            "crm",
            "project",
            "planner",
            "microsofttodo",
            "whiteboard",
            "sway",
            "kaizala",
            "bookings",
        ],
    ),
];

static WORKLOADS: LazyLock<HashMap<&'static str, Category, FixedState>> = LazyLock::new(|| {
    BY_WORKLOAD.iter().flat_map(|(category, names)| names.iter().map(|name| (*name, *category))).collect()
});

/// The category of an event: by record type for data loss prevention and alerts, else by workload, else by record
/// type, else [`Category::Other`]. `alert_category` is the `Category` member of the event.
pub(crate) fn category(workload: Option<&str>, record_type: Option<i64>, alert_category: Option<&str>) -> Category {
    if let Some(record_type) = record_type {
        if DLP_RECORD_TYPES.contains(&record_type) {
            return Category::Dlp;
        }
        if record_type == ALERT {
            let is = |word: &str| alert_category.is_some_and(|category| category.eq_ignore_ascii_case(word));
            if is("ThreatManagement") {
                return Category::Threat;
            }
            if is("DataLossPrevention") {
                return Category::Dlp;
            }
        }
    }
    workload
        .and_then(by_workload)
        .or_else(|| Some(record_types::info(record_type?)?.category))
        .unwrap_or(Category::Other)
}

fn by_workload(workload: &str) -> Option<Category> {
    let plain = workload.bytes().all(|byte| byte.is_ascii_graphic());
    // Longer than any name of a workload.
    const NAME_BYTES_MAX: usize = 64;
    let mut name = [0; NAME_BYTES_MAX];
    if plain && let Some(name) = name.get_mut(..workload.len()) {
        name.copy_from_slice(workload.as_bytes());
        name.make_ascii_lowercase();
        return WORKLOADS.get(std::str::from_utf8(name).ok()?).copied();
    }
    let name: String = workload.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect();
    WORKLOADS.get(name.as_str()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_decides_but_for_dlp_and_alerts_and_the_record_type_helps_out() {
        for (workload, record_type, alert, expected) in [
            (Some("Exchange"), Some(1), None, Category::Email),
            (Some("Exchange"), Some(13), None, Category::Dlp),
            (Some("OneDrive"), Some(11), None, Category::Dlp),
            (Some(" Azure Active Directory"), None, None, Category::Identity),
            (Some("SecurityComplianceCenter"), Some(40), Some("ThreatManagement"), Category::Threat),
            (Some("SecurityComplianceCenter"), Some(40), Some("dataLossPrevention"), Category::Dlp),
            (Some("SecurityComplianceCenter"), Some(40), Some("AccessGovernance"), Category::Compliance),
            (Some("SomethingNew"), Some(6), None, Category::File),
            (None, Some(40), None, Category::Threat),
            (None, Some(8), None, Category::Identity),
            (None, Some(99_999), None, Category::Other),
            (Some(""), None, None, Category::Other),
        ] {
            assert_eq!(category(workload, record_type, alert), expected, "{workload:?} {record_type:?} {alert:?}");
        }
    }

    #[test]
    fn no_workload_stands_in_two_categories() {
        assert_eq!(WORKLOADS.len(), BY_WORKLOAD.iter().map(|(_, names)| names.len()).sum::<usize>());
    }
}
