//! The fixed texts of every report: the meaning of the patterns, the line for each standard, the limits of a report,
//! and a glossary.

use super::model::SegmentState;

/// The meaning of the segments in a bar of content.
pub(crate) const OF_CONTENT: [(SegmentState, &str); 5] = [
    (SegmentState::Complete, "all content made available then was read, but for what is listed as left"),
    (SegmentState::Gap, "content made available then can no longer be read; the table says why"),
    (SegmentState::NotYet, "content made available then is still to be read"),
    (SegmentState::NotRead, "before the source began: content made available then is never read"),
    (SegmentState::NotKnown, "the collector's state says nothing of it"),
];

/// The meaning of those in a bar of receipts.
pub(super) const OF_RECEIPTS: [(SegmentState, &str); 3] = [
    (SegmentState::Complete, "for receipts: every event settled then has one, or is counted"),
    (SegmentState::InPart, "for receipts: some events settled then may have none"),
    (SegmentState::NotKnown, "for receipts: there are none of that time"),
];

/// Standards, their requirements, and the place in this report that answers them.
pub(super) const STANDARDS: [(&str, &str, &str); 7] = [
    (
        "SOC 2, information produced by the entity (AT-C 205)",
        "evidence that what the entity produces is complete",
        "the bars and gaps of each content type; comparison with Microsoft's audit search",
    ),
    (
        "SOC 2, information produced by the entity (AT-C 205)",
        "evidence that it is accurate",
        "receipts: key, verdict and last hash; events by day; dropped by rule",
    ),
    (
        "DORA, Regulation (EU) 2024/1774, Article 12(2)(d)",
        "log information protected against tampering and deletion",
        "receipts: verified or not, and the hours that have none",
    ),
    (
        "DORA, Regulation (EU) 2024/1774, Article 12(2)(e)",
        "failures of logging systems detected",
        "gaps with their reasons; content not yet read; how late content came",
    ),
    (
        "NIST SP 800-53 Rev. 5, AU-5",
        "a response to failures of audit logging",
        "missing, open or not known: what failed, since when, and what is left to do",
    ),
    ("NIST SP 800-53 Rev. 5, AU-9(3)", "audit information protected by cryptography", "receipts: key and verdict"),
    (
        "NIST SP 800-53 Rev. 5, AU-12",
        "audit records of the defined events",
        "events by day and content type; dropped by rule names every exception",
    ),
];

/// What a report does not prove.
pub(super) const NOT_PROVEN: [&str; 5] = [
    "That Microsoft listed everything. Only a comparison with an export of Microsoft's audit search looks for that, and it is as \
     good as the export: the same company makes both.",
    "That the owner of the collector did not sign another history. Whoever owns the collector owns the key. Against the owner, \
     receipts are evidence only together with checkpoints that were sent away when they were made (`[receipts] to`), and this \
     report is evidence only when somebody else runs it.",
    "What a receiver did with a record after it had confirmed it.",
    "When events happened. Days are those on which the collector settled the events, by hours of UTC and by its own clock; an \
     event may have happened days before.",
    "How many different events there were. An event that was on hold counts there and again as delivered or dropped; one that \
     two hours say was delivered counts in both.",
];

/// Words of a report.
pub(super) const GLOSSARY: [(&str, &str); 19] = [
    ("audit log", "Microsoft's record of what users and administrators of a tenant did."),
    ("blob", "a file of events that Microsoft makes available; the unit in which content is listed and read."),
    ("checkpoint", "the signed statement over one hour of receipts, or over part of an hour."),
    ("complete until", "everything made available before this time was read, but for gaps and blobs owed."),
    ("content", "what Microsoft makes available in the feed: blobs of events."),
    (
        "content type",
        "one of the five parts of the feed: Audit.AzureActiveDirectory, Audit.Exchange, Audit.SharePoint, Audit.General, DLP.All.",
    ),
    ("delivered", "every receiver that asks for the event has confirmed it."),
    ("dropped", "a rule of the configuration left the event out; the rule is named."),
    ("feed", "the Office 365 Management Activity API, which makes content available for seven days."),
    (
        "gap",
        "an interval of which content can no longer be read. It was reported when it was found, as a record of its own.",
    ),
    ("not known", "neither the collector's state nor its receipts say anything of it. It does not mean none."),
    (
        "on hold",
        "a routine read that waits until it is known whether data loss prevention flagged it; then it is delivered or dropped.",
    ),
    ("origin", "where the source was told to begin. What was made available before is never read."),
    ("owed", "content that is listed and not read yet; it is tried until Microsoft removes it."),
    ("receipt", "what became of one event, stored in the same step as the event's key, sealed each hour and signed."),
    ("repeated", "an event that Microsoft listed again after it was delivered, and that was not delivered twice."),
    ("set aside", "every receiver refused the record alone; the collector keeps it."),
    ("tenant", "one organisation's Microsoft 365, named by a GUID."),
    ("without id", "an event in which Microsoft wrote no `Id`. It is counted; nothing outside can name it."),
];
