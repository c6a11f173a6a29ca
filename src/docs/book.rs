//! The table of contents of the book. A page of `docs/` that is not listed here is not in the book; a test checks this.

use std::fmt::Write as _;

use super::{Document, errors};

/// Title, page below `docs/`, depth; an empty page begins a part.
#[rustfmt::skip]
const CHAPTERS: &[(&str, &str, usize)] = &[
    ("How it works", "how.md", 0),
    ("Start in five minutes", "start.md", 0),
    ("Packages", "packages.md", 0),
    ("Coming from another collector", "migrate.md", 0),
    ("Where records go", "hosts/README.md", 0),
    ("I have X: recipes", "hosts/recipes.md", 1),
    ("Kafka and Event Hubs", "hosts/kafka.md", 1),
    ("Vector", "hosts/vector.md", 1),
    ("Agents that tail the file", "hosts/tail.md", 1),
    ("Fluent Bit, as an input of its own", "hosts/fluent-bit.md", 1),
    ("Fluent Bit, by the forward protocol", "hosts/fluent-bit-forward.md", 1),
    ("Fluentd", "hosts/fluentd.md", 1),
    ("OpenTelemetry Collector", "hosts/otel-collector.md", 1),
    ("Logstash", "hosts/logstash.md", 1),
    ("Elastic", "hosts/elastic.md", 1),
    ("Splunk", "hosts/splunk.md", 1),
    ("rsyslog", "hosts/rsyslog.md", 1),
    ("syslog-ng", "hosts/syslog-ng.md", 1),
    ("In a Rust agent of your own", "library.md", 0),
    ("Operate", "", 0),
    ("No records come", "symptoms.md", 0),
    ("Guarantees", "guarantees.md", 0),
    ("Operating", "operating.md", 0),
    ("Many tenants", "tenants.md", 0),
    ("A second machine", "cluster.md", 0),
    ("Ten thousand tenants", "fleet.md", 0),
    ("I have an export", "exports.md", 0),
    ("Is anything missing?", "reconcile.md", 0),
    ("Beyond seven days", "heal.md", 0),
    ("Prove it to your auditor", "prove.md", 0),
    ("Report", "report.md", 0),
    ("Network", "network.md", 0),
    ("Files beneath it", "files.md", 0),
    ("Monitoring", "monitoring.md", 0),
    ("Watching many tenants", "watching.md", 0),
    ("Upgrading", "upgrading.md", 0),
    ("Security", "security.md", 0),
    ("Reference", "", 0),
    ("Configuration", "configuration.md", 0),
    ("Record", "record.md", 0),
    ("Receipts", "receipts.md", 0),
    ("ECS and OCSF", "formats.md", 0),
    ("Severity rules", "rules.md", 0),
    ("Detections that need counting", "counting.md", 0),
    ("Metrics", "metrics.md", 0),
    ("Errors", ERRORS, 0),
    ("Background", "", 0),
    ("Glossary", "glossary.md", 0),
    ("What it was run with", "support.md", 0),
    ("Architecture", "architecture.md", 0),
    ("Comparison with other collectors", "comparison.md", 0),
    ("Changes", "changes.md", 0),
];

/// The pages of the errors follow this one.
const ERRORS: &str = "errors/README.md";

pub(super) fn summary() -> Document {
    let mut text = String::from("# Summary\n\n[What it is](introduction.md)\n\n# Start\n\n");
    for &(title, page, depth) in CHAPTERS {
        let indent = "  ".repeat(depth);
        let _ = if page.is_empty() {
            write!(text, "\n# {title}\n\n")
        } else {
            writeln!(text, "{indent}- [{title}]({page})")
        };
        if page == ERRORS {
            for slug in errors::slugs() {
                let _ = writeln!(text, "  - [{slug}](errors/{slug}.md)");
            }
        }
    }
    Document { path: "docs/SUMMARY.md".to_owned(), text }
}
