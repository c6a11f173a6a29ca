//! The areas events belong to: one small vocabulary over the names Microsoft gives its services.

use std::fmt;

macro_rules! categories {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The area an event belongs to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Category { $($(#[$doc])* $variant),* }

        impl Category {
            /// All of them.
            pub const ALL: &'static [Category] = &[$(Category::$variant),*];

            /// The word in a record.
            pub const fn as_str(self) -> &'static str {
                match self { $(Category::$variant => $name),* }
            }
        }
    };
}

categories! {
    /// Directory, sign-ins, risk.
    Identity = "identity",
    /// Mailboxes and mail flow.
    Email = "email",
    /// SharePoint, OneDrive, labelled files.
    File = "file",
    /// Teams, Viva Engage, Skype.
    Collaboration = "collaboration",
    /// Purview: retention, eDiscovery, portals.
    Compliance = "compliance",
    /// Data loss prevention in every service.
    Dlp = "dlp",
    /// Defender and its kin.
    Threat = "threat",
    /// Power Platform.
    Automation = "automation",
    /// Power BI, Viva Insights.
    Analytics = "analytics",
    /// Devices.
    Endpoint = "endpoint",
    /// Copilot.
    Ai = "ai",
    /// Forms, Planner, Dynamics, Office.
    Productivity = "productivity",
    /// None of these, and records of our own.
    Other = "other",
}

impl Category {
    /// The category of this name.
    pub fn from_name(name: &str) -> Option<Category> {
        Self::ALL.iter().copied().find(|category| category.as_str() == name)
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Record types that carry the workload in which data loss prevention found the match.
pub(crate) const DLP_RECORD_TYPES: &[i64] = &[11, 13, 33, 63, 99, 100, 107];
