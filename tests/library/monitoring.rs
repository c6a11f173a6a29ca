//! The alert rules and the dashboard ask for metrics that exist, by labels they have, and the rules fire when they
//! should (`promtool`, where it is installed): here on series written by hand, in `tests/scenarios/alerts.rs` on what
//! `/metrics` served.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use m365_audit::metrics;

const RULES: &str = include_str!("../../packaging/prometheus/m365-audit.rules.yml");
const RULE_TESTS: &str = include_str!("../../packaging/prometheus/m365-audit.test.yml");
const DASHBOARD: &str = include_str!("../../packaging/grafana/m365-audit.json");

/// Labels that Prometheus adds.
const ADDED: &[&str] = &["instance", "job"];

/// Every metric a query names, with the labels it selects by.
fn metrics_of(query: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find("m365_audit_") {
        let tail = &rest[at..];
        let end = tail.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(tail.len());
        let labels =
            tail[end..].strip_prefix('{').and_then(|tail| tail.split_once('}')).map_or("", |(labels, _)| labels);
        let labels = labels.split(',').filter_map(|label| label.split(['=', '!', '~']).next());
        let labels = labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect();
        found.push((tail[..end].to_owned(), labels));
        rest = &tail[end..];
    }
    found
}

/// The labels of every `by (…)`.
fn grouped_by(query: &str) -> Vec<String> {
    let groups = query.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    groups.flat_map(|(labels, _)| labels.split(',').map(|label| label.trim().to_owned()).collect::<Vec<_>>()).collect()
}

#[track_caller]
fn check(query: &str) {
    let named = metrics_of(query);
    assert!(!named.is_empty(), "no metric in `{query}`");
    let mut labels_in_reach: BTreeSet<&str> = ADDED.iter().copied().collect();
    for (name, labels) in &named {
        let of = |name: &str| metrics::ALL.iter().find(|metric| metric.name == name);
        // A histogram has a counter for each of its bounds.
        let bucket =
            name.strip_suffix("_bucket").and_then(of).filter(|metric| metric.kind == metrics::MetricKind::Histogram);
        labels_in_reach.extend(bucket.map(|_| "le"));
        let metric = bucket.or_else(|| of(name));
        let metric = metric.unwrap_or_else(|| panic!("`{name}` is no metric of ours: `{query}`"));
        labels_in_reach.extend(metric.labels);
        for label in labels {
            let known = metric.labels.contains(&label.as_str()) || ADDED.contains(&label.as_str());
            assert!(known, "`{name}` has no label `{label}`: `{query}`");
        }
        let is_counter = metric.kind == metrics::MetricKind::Counter || bucket.is_some();
        let as_rate = ["rate(", "increase("].iter().any(|function| query.contains(&format!("{function}{name}")));
        let since_start = [metrics::GAPS_TOTAL, metrics::SINK_FILE_CUT_TOTAL].contains(&name.as_str());
        assert!(!is_counter || as_rate || since_start, "`{name}` only grows and is shown as it is: `{query}`");
        assert!(is_counter || !as_rate, "`{name}` is no counter: `{query}`");
    }
    for label in grouped_by(query) {
        assert!(labels_in_reach.contains(label.as_str()), "nothing in `{query}` has the label `{label}`");
    }
}

/// The query of each rule: what follows `expr:`, on the line or indented below it.
fn rule_queries() -> Vec<String> {
    let mut queries = Vec::new();
    for part in RULES.split(" expr: ").skip(1) {
        let query = match part.strip_prefix("|\n") {
            Some(block) => {
                block.lines().take_while(|line| line.starts_with("          ")).collect::<Vec<_>>().join("\n")
            }
            None => part.lines().next().unwrap_or_default().to_owned(),
        };
        queries.push(query);
    }
    queries
}

#[test]
fn every_rule_asks_for_metrics_and_labels_that_exist() {
    let queries = rule_queries();
    assert_eq!(queries.len(), RULES.matches("- alert: ").count());
    for query in queries {
        check(&query);
    }
}

#[test]
fn every_panel_asks_for_metrics_and_labels_that_exist() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            check(target["expr"].as_str().unwrap());
            queries += 1;
        }
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{} says not what it shows", panel["title"]);
    }
    assert!(queries >= 15, "{queries}");
}

#[test]
fn every_alert_is_tested_firing_and_keeping_quiet() {
    for alert in RULES.split("- alert: ").skip(1).map(|part| part.lines().next().unwrap()) {
        let of_it: Vec<&str> =
            RULE_TESTS.split("eval_time: ").filter(|part| part.contains(&format!("alertname: {alert}"))).collect();
        assert!(of_it.iter().any(|part| part.contains("exp_alerts: []")), "{alert} is never shown to keep quiet");
        let fires = |part: &&str| !part.contains("exp_alerts: []");
        assert!(of_it.iter().any(fires), "{alert} is never shown to fire");
    }
}

#[test]
fn every_alert_is_tested_on_what_the_metrics_page_served_and_is_on_the_page_about_monitoring() {
    const SCRAPED: &str = include_str!("../scenarios/alerts.rs");
    const PAGE: &str = include_str!("../../docs/monitoring.md");
    for alert in RULES.split("- alert: ").skip(1).map(|part| part.lines().next().unwrap()) {
        assert!(SCRAPED.contains(&format!("\"{alert}")), "{alert} is not tested in tests/scenarios/alerts.rs");
        assert!(PAGE.contains(&format!("`{alert}`")), "{alert} is not in docs/monitoring.md");
    }
    for named in PAGE.split('`').filter(|word| word.starts_with("M365Audit")) {
        assert!(
            RULES.contains(&format!("- alert: {named}\n")),
            "docs/monitoring.md names `{named}`, which is not shipped"
        );
    }
}

/// Every alert with the lines of its rule.
fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    RULES.split("- alert: ").skip(1).map(|rule| (rule.lines().next().unwrap(), rule))
}

#[test]
fn every_alert_says_whom_it_is_about_by_name() {
    for (alert, rule) in rules() {
        let summary = rule.lines().find_map(|line| line.trim().strip_prefix("summary: ")).unwrap();
        let named = ["$labels.source", "$labels.sink", "$labels.instance"].iter().any(|label| summary.contains(label));
        assert!(named, "{alert}: {summary}");
        let about_a_tenant = summary.contains("$labels.source");
        assert_eq!(about_a_tenant, rule.contains("group_left (source) m365_audit_source_info"), "{alert}");
    }
}

#[test]
fn every_alert_leads_to_a_page_of_the_book() {
    const SUMMARY: &str = include_str!("../../docs/SUMMARY.md");
    for (alert, rule) in rules() {
        let url = rule.lines().find_map(|line| line.trim().strip_prefix("runbook_url: ")).unwrap().trim_matches('"');
        let path = url.strip_prefix(m365_audit::model::DOCS_URL).and_then(|path| path.strip_prefix('/'));
        let path = path.unwrap_or_else(|| panic!("{alert}: `{url}` does not begin with the one address of the book"));
        // What is not known when the rule is written is the slug of a page, or the list of them.
        let path = match path.split_once("{{") {
            None => path.to_owned(),
            Some((before, query)) => {
                assert!(query.contains("m365_audit_health_cause") && query.contains(".Labels.cause"), "{alert}: {url}");
                let list = query.rsplit_once("{{ else }}").and_then(|(_, rest)| rest.split_once("{{ end }}")).unwrap();
                format!("{before}{}{}", list.0, list.1)
            }
        };
        let page = path.strip_suffix(".html").unwrap();
        assert!(SUMMARY.contains(&format!("({page}.md)")), "{alert}: {page} is not a page of the book");
    }
    assert_eq!(
        RULES.matches(m365_audit::model::DOCS_URL).count(),
        rules().count() + 1,
        "and once to say what to replace"
    );
}

#[test]
fn the_rules_are_understood_and_fire_when_they_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    let Some(promtool) = test_support::program("promtool") else { return };
    for args in [["check", "rules", "m365-audit.rules.yml"], ["test", "rules", "m365-audit.test.yml"]] {
        let output = Command::new(&promtool).args(args).current_dir(&folder).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}");
    }
}
