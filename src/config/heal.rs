//! `[sources.<name>.heal]`: whether gaps are filled through Microsoft Graph.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[sources.<name>.heal]`: gaps beyond the seven days of the feed, filled through the audit search of Microsoft Graph.
/// `docs/heal.md` describes its permission and its cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HealConfig {
    /// Fill declared gaps automatically. Needs the application permission `AuditLogsQuery.Read.All` of Microsoft Graph.
    /// It governs nothing else: `m365-audit heal` fills a range on demand with either value.
    #[serde(default)]
    #[schemars(example = true)]
    pub graph: bool,

    /// A search of Microsoft Graph that has not ended after this many seconds is given up and submitted again. They
    /// take minutes, some over ten, and some never end.
    #[serde(default = "default_query_wait_secs")]
    #[schemars(range(min = 10, max = 86400), example = 7200)]
    pub query_wait_secs: u64,
}

impl Default for HealConfig {
    fn default() -> Self {
        Self { graph: false, query_wait_secs: default_query_wait_secs() }
    }
}

const fn default_query_wait_secs() -> u64 {
    1800
}
