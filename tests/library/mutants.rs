//! Every rule has events that it is about and events that it is not, and a rule of which one condition was taken away
//! judges one of them otherwise: no condition is there for nothing, and none can be lost unseen.
//!
//! The events are in `tests/fixtures/severity/rules.ndjson`, a table that is written by hand. A line is a rule's id, whether
//! the rule is about the event, the severity it gives where that is to be held, for people (`why`) the condition that the
//! event is for, and the event: what the rule asks for and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use m365_audit::config::RawForm;
use m365_audit::normalise::{Event, Normaliser, NormaliserSettings};
use m365_audit::severity::engine::{Condition, Rule};
use m365_audit::severity::operation::fold;
use m365_audit::severity::{Rules, areas};
use serde_json::Value;

/// Where events for rules are added.
const TABLE: &str = "tests/fixtures/severity/rules.ndjson";

/// An event for a rule, and what the rule is to make of it.
struct Fixture {
    rule: String,
    matches: bool,
    /// The severity of the rule's own verdict, where the fixture says one.
    severity: Option<String>,
    event: String,
}

fn lines(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/severity").join(name);
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Events written for single rules, and the cases of all: each is about the rules that it names, and not about the others
/// that have its operation.
fn fixtures() -> Vec<Fixture> {
    let fixture = |line: &Value| Fixture {
        rule: line["rule"].as_str().unwrap().to_owned(),
        matches: line["matches"].as_bool().unwrap(),
        severity: line["severity"].as_str().map(str::to_owned),
        event: line["event"].to_string(),
    };
    let rules = all_rules();
    let mut fixtures: Vec<Fixture> = lines("rules.ndjson").iter().map(fixture).collect();
    for case in lines("cases.ndjson") {
        let named: Vec<&str> = case["rules"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let operation = fold(case["event"]["Operation"].as_str().unwrap_or_default());
        for rule in rules.iter().filter(|rule| !rule.refine) {
            let matches = named.contains(&rule.id.as_str());
            let is_other = !matches && rule.operations.iter().any(|name| fold(name) == operation);
            // A narrower rule that takes its place says nothing of whether it would match.
            let narrowed = is_other
                && rules.iter().any(|other| other.replaces.contains(&rule.id) && named.contains(&other.id.as_str()));
            if matches || (is_other && !narrowed) {
                fixtures.push(Fixture {
                    rule: rule.id.clone(),
                    matches,
                    severity: None,
                    event: case["event"].to_string(),
                });
            }
        }
    }
    fixtures
}

fn all_rules() -> Vec<Rule> {
    areas().into_iter().flat_map(|(_, rules)| rules).collect()
}

fn normaliser(changes: &[toml::Table]) -> Normaliser {
    let rules = Rules::with(true, &[], changes).unwrap_or_else(|(_, error)| panic!("{error}"));
    Normaliser::new(NormaliserSettings { rules: Arc::new(rules), raw: RawForm::None, ..NormaliserSettings::default() })
}

/// What each rule that matches makes of an event, those too whose place another took: id, verdict, reason.
fn judged(normaliser: &Normaliser, event: &str) -> BTreeMap<String, (String, String)> {
    let event = Event::parse(event.as_bytes()).unwrap();
    let assessment = normaliser.assess(&event);
    let matches = assessment.matches.iter().map(|found| {
        let verdict = found.verdict.severity().map_or("drop", |severity| severity.as_str());
        (found.rule().id.clone(), (verdict.to_owned(), found.reason.to_owned()))
    });
    let replaced = assessment.replaced.iter().map(|rule| (rule.id.clone(), (String::new(), String::new())));
    replaced.chain(matches).collect()
}

#[test]
fn each_fixture_is_judged_as_its_rule_says() {
    let normaliser = normaliser(&[]);
    let mut wrong = Vec::new();
    for Fixture { rule, matches, severity, event } in fixtures() {
        let judged = judged(&normaliser, &event);
        let verdict = judged.get(&rule).map(|(verdict, _)| verdict.as_str());
        let as_said = severity.as_deref().is_none_or(|severity| verdict == Some(severity));
        if verdict.is_some() != matches || !as_said {
            wrong.push(format!("{rule}: {verdict:?}, expected {matches} {severity:?}: {event}"));
        }
    }
    assert!(wrong.is_empty(), "{} fixtures:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_rule_has_a_reference_and_events_that_it_is_about_and_is_not() {
    let (mut positive, mut negative) = (BTreeSet::new(), BTreeSet::new());
    for fixture in fixtures() {
        if fixture.matches {
            positive.insert(fixture.rule)
        } else {
            negative.insert(fixture.rule)
        };
    }
    for rule in all_rules() {
        assert!(rule.reference.is_some_and(|reference| reference.starts_with("https://")), "{}", rule.id);
        assert!(positive.contains(&rule.id), "{} has no event that it is about: add a line to {TABLE}", rule.id);
        assert!(negative.contains(&rule.id), "{} has no event that it is not about: add a line to {TABLE}", rule.id);
    }
}

/// A rule with one condition of it gone, and which.
fn mutants(rule: &Rule) -> Vec<(String, Rule)> {
    let mut mutants = Vec::new();
    let mut add = |what: String, change: &dyn Fn(&mut Rule)| {
        let mut mutant = rule.clone();
        change(&mut mutant);
        mutants.push((what, mutant));
    };
    for i in 0..rule.when.len() {
        add(format!("when[{i}]"), &|mutant| drop(mutant.when.remove(i)));
        for j in 0..alternatives(&rule.when[i]) {
            add(format!("when[{i}].any[{j}]"), &|mutant| drop(mutant.when[i].any.remove(j)));
        }
    }
    for i in 0..rule.unless.len() {
        add(format!("unless[{i}]"), &|mutant| drop(mutant.unless.remove(i)));
    }
    for k in 0..rule.cases.len() {
        add(format!("cases[{k}]"), &|mutant| drop(mutant.cases.remove(k)));
        for i in 0..rule.cases[k].when.len() {
            add(format!("cases[{k}].when[{i}]"), &|mutant| drop(mutant.cases[k].when.remove(i)));
            for j in 0..alternatives(&rule.cases[k].when[i]) {
                add(format!("cases[{k}].when[{i}].any[{j}]"), &|mutant| drop(mutant.cases[k].when[i].any.remove(j)));
            }
        }
    }
    mutants
}

/// How many alternatives may go so that one is left.
fn alternatives(condition: &Condition) -> usize {
    if condition.any.len() > 1 { condition.any.len() } else { 0 }
}

/// Conditions that only say what another record's rule says better; why nothing can tell the rule from its mutant.
const EQUAL: &[(&str, &str, &str)] = &[(
    "EX-08",
    "when[0].any[1]",
    "a mail client's rule names no folder in the shapes that were seen; the condition is for one that will",
)];

#[test]
fn a_rule_that_lost_a_condition_judges_some_event_otherwise() {
    let plain = normaliser(&[]);
    let cases: Vec<String> = lines("cases.ndjson").iter().map(|case| case["event"].to_string()).collect();
    let by_rule = fixtures().into_iter().fold(BTreeMap::<String, Vec<String>>::new(), |mut by_rule, fixture| {
        by_rule.entry(fixture.rule).or_default().push(fixture.event);
        by_rule
    });
    let (mut alive, mut tried) = (Vec::new(), 0);
    for rule in all_rules() {
        let own = by_rule.get(&rule.id).map(Vec::as_slice).unwrap_or_default();
        for (what, mutant) in mutants(&rule) {
            tried += 1;
            let mutated = normaliser(&[toml::Table::try_from(&mutant).unwrap()]);
            let told = own.iter().chain(&cases).any(|event| judged(&plain, event) != judged(&mutated, event));
            let excused = EQUAL.iter().any(|(id, condition, _)| *id == rule.id && *condition == what);
            if told == excused {
                alive.push(format!("{} without {what}", rule.id));
            }
        }
    }
    assert!(tried > 300, "{tried}");
    assert!(alive.is_empty(), "{} of {tried} mutants live:\n{}", alive.len(), alive.join("\n"));
}
