//! The forms in which people have audit events.

use std::fmt;

/// The container of an event: the outermost known wrapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// The event alone, as the feed sends it, in an array, on a line of its own or on several.
    Feed,
    /// A row of an export with the column `AuditData`: Purview's audit search, `Export-Csv`.
    AuditCsv,
    /// An object of `Search-UnifiedAuditLog`.
    UnifiedAuditLog,
    /// A record of Microsoft Graph's audit log query.
    Graph,
    /// A record of Microsoft Graph's audit log query as a row of CSV.
    GraphCsv,
    /// A row of Defender's advanced hunting with `RawEventData`, as an object.
    Defender,
    /// The same as a row of CSV.
    DefenderCsv,
    /// A row of Sentinel's `OfficeActivity`, as an object.
    OfficeActivity,
    /// The same as a row of CSV.
    OfficeActivityCsv,
    /// A document of Elasticsearch, with or without `_source` around it.
    Elastic,
    /// A result of Splunk.
    Splunk,
    /// A row of Splunk's export as CSV.
    SplunkCsv,
    /// A row whose columns are the event's members, as Hawk writes them.
    FlatCsv,
    /// In a line of another log: after a header, or in a container runtime's log.
    LogLine,
    /// In an object of an unknown kind.
    Wrapped,
    /// A native record of this program.
    Native,
    /// An ECS record of this program.
    Ecs,
    /// An OCSF record of this program.
    Ocsf,
}

impl Form {
    /// Every form, in the order of the summary.
    pub const ALL: [Form; 18] = [
        Form::Feed,
        Form::AuditCsv,
        Form::UnifiedAuditLog,
        Form::Graph,
        Form::GraphCsv,
        Form::Defender,
        Form::DefenderCsv,
        Form::OfficeActivity,
        Form::OfficeActivityCsv,
        Form::Elastic,
        Form::Splunk,
        Form::SplunkCsv,
        Form::FlatCsv,
        Form::LogLine,
        Form::Wrapped,
        Form::Native,
        Form::Ecs,
        Form::Ocsf,
    ];

    /// The name of the form that the summary and `explain` print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Feed => "event as the feed sends it",
            Self::AuditCsv => "CSV with AuditData",
            Self::UnifiedAuditLog => "Search-UnifiedAuditLog",
            Self::Graph => "Graph record",
            Self::GraphCsv => "Graph record as CSV",
            Self::Defender => "Defender RawEventData",
            Self::DefenderCsv => "Defender RawEventData as CSV",
            Self::OfficeActivity => "Sentinel OfficeActivity",
            Self::OfficeActivityCsv => "Sentinel OfficeActivity as CSV",
            Self::Elastic => "Elastic document",
            Self::Splunk => "Splunk result",
            Self::SplunkCsv => "Splunk CSV",
            Self::FlatCsv => "CSV with a column for each member",
            Self::LogLine => "event in a log line",
            Self::Wrapped => "event in another object",
            Self::Native => "native record",
            Self::Ecs => "ECS record",
            Self::Ocsf => "OCSF record",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
