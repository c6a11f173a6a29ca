//! A match of data loss prevention: which policies and rules, what they found, and whether access was stopped.
//!
//! Taken apart once for an event. Names of what was found and how often, never what it was.

use std::borrow::Cow;

use super::event::{Event, KnownMember};
use super::json;
use super::outcome::EventOutcome;
use super::reach::inner;

/// A rule of data loss prevention that matched.
#[derive(Debug, Default)]
pub(crate) struct DlpRule<'a> {
    /// The policy.
    pub policy: Option<Cow<'a, str>>,
    /// Its id.
    pub policy_id: Option<Cow<'a, str>>,
    /// The rule.
    pub name: Option<Cow<'a, str>>,
    /// Its id.
    pub id: Option<Cow<'a, str>>,
    /// `Low`, `Medium`, `High`.
    pub severity: Option<Cow<'a, str>>,
    /// Its actions: `BlockAccess`, `NotifyUser`, …
    pub actions: Vec<Cow<'a, str>>,
    /// `Enforce`, `TestWithNotifyUser`, …
    pub mode: Option<Cow<'a, str>>,
    /// What it found.
    pub found: Vec<SensitiveType<'a>>,
}

/// A sensitive type that was found.
#[derive(Debug)]
pub(crate) struct SensitiveType<'a> {
    /// Its name, else its id.
    pub name: Cow<'a, str>,
    /// How often.
    pub count: Option<i64>,
    /// The confidence, in percent.
    pub confidence: Option<i64>,
}

impl DlpRule<'_> {
    /// Whether the rule is in force: a rule in test mode records what it would do.
    fn is_enforced(&self) -> bool {
        let is =
            |mode: &str| ["Enforce", "Enable", "Enabled"].iter().any(|word| mode.trim().eq_ignore_ascii_case(word));
        self.mode.as_deref().is_none_or(is)
    }

    fn blocks(&self) -> bool {
        self.is_enforced() && self.actions.iter().any(|action| action.eq_ignore_ascii_case("BlockAccess"))
    }

    fn rank(&self) -> u8 {
        let words = ["low", "medium", "high"];
        let severity = self.severity.as_deref().unwrap_or_default().trim().to_ascii_lowercase();
        words.iter().position(|word| *word == severity).map_or(0, |at| at as u8 + 1)
    }
}

/// The most important rule: the first with the highest severity.
pub(crate) fn foremost<'r, 'a>(rules: &'r [DlpRule<'a>]) -> Option<&'r DlpRule<'a>> {
    rules.iter().rev().max_by_key(|rule| rule.rank())
}

/// The policies and rules that matched.
pub(crate) fn rules<'a>(event: &Event<'a>) -> Vec<DlpRule<'a>> {
    let mut rules = Vec::new();
    json::elements(event.get(KnownMember::PolicyDetails).unwrap_or_default(), |policy| {
        let (name, id) = (inner(policy, "PolicyName"), inner(policy, "PolicyId"));
        let before = rules.len();
        json::elements(json::get(policy, "Rules").unwrap_or_default(), |token| {
            rules.push(DlpRule { policy: name.clone(), policy_id: id.clone(), ..rule(token) });
        });
        if rules.len() == before && (name.is_some() || id.is_some()) {
            rules.push(DlpRule { policy: name, policy_id: id, ..DlpRule::default() });
        }
    });
    // On a device.
    if rules.is_empty()
        && let Some(info) = event.get(KnownMember::PolicyMatchInfo)
    {
        let mut each = |info: &'a str| {
            rules.push(DlpRule {
                policy: inner(info, "PolicyName"),
                policy_id: inner(info, "PolicyId"),
                name: inner(info, "RuleName"),
                id: inner(info, "RuleId"),
                ..DlpRule::default()
            });
        };
        match info.starts_with('[') {
            true => json::elements(info, each),
            false => each(info),
        }
        rules.retain(|rule| rule.policy.is_some() || rule.policy_id.is_some() || rule.name.is_some());
    }
    rules
}

fn rule(token: &str) -> DlpRule<'_> {
    let mut rule = DlpRule::default();
    json::members(token, |key, value| {
        let text = || json::scalar(value).filter(|text| !text.trim().is_empty());
        let is = |name: &str| key.eq_ignore_ascii_case(name);
        if is("RuleName") {
            rule.name = text();
        } else if is("RuleId") {
            rule.id = text();
        } else if is("Severity") {
            rule.severity = text();
        } else if is("RuleMode") {
            rule.mode = text();
        } else if is("Actions") {
            match value.starts_with('[') {
                true => json::elements(value, |action| rule.actions.extend(json::scalar(action))),
                false => rule.actions.extend(text()),
            }
        } else if is("ConditionsMatched") {
            json::elements(json::get(value, "SensitiveInformation").unwrap_or_default(), |found| {
                let name = inner(found, "SensitiveInformationTypeName").or_else(|| inner(found, "SensitiveType"));
                let number = |name: &str| json::get(found, name).and_then(json::integer);
                let (count, confidence) = (number("Count"), number("Confidence"));
                rule.found.extend(name.map(|name| SensitiveType { name, count, confidence }));
            });
        }
    });
    rule
}

/// What a device did about it, in `EnforcementMode`: audited, warned, warned and was overridden, blocked, allowed.
pub(crate) fn enforcement(event: &Event<'_>) -> Option<i64> {
    let within = event.get(KnownMember::EndpointMetaData).and_then(|data| json::get(data, "EnforcementMode"));
    let token = event.get(KnownMember::EnforcementMode).or(within)?;
    json::integer(token).or_else(|| {
        let word = json::scalar(token)?;
        let is = |name: &str| word.trim().eq_ignore_ascii_case(name);
        let words = [(1, ["Audit", "Audited"]), (2, ["Warn", "Warned"]), (3, ["WarnAndBypass", "WarnBypassed"])];
        let more = [(4, ["Block", "Blocked"]), (5, ["Allow", "Allowed"])];
        words.iter().chain(&more).find(|(_, names)| names.iter().any(|name| is(name))).map(|(number, _)| *number)
    })
}

/// Whether access was allowed: a rule in force that blocks made it fail, unless the match was undone or overridden. A
/// warning whose result the record does not contain is neither allowed nor blocked.
pub(crate) fn outcome(event: &Event<'_>, operation: &str, rules: &[DlpRule<'_>]) -> EventOutcome {
    if operation == "dlpinfo" {
        return EventOutcome::Failure;
    }
    if operation == "dlpruleundo" || event.get(KnownMember::ExceptionInfo).is_some() {
        return EventOutcome::Success;
    }
    match enforcement(event) {
        Some(4) => return EventOutcome::Failure,
        Some(2) => return EventOutcome::Unknown,
        Some(1 | 3 | 5) => return EventOutcome::Success,
        _ => {}
    }
    if rules.iter().any(DlpRule::blocks) { EventOutcome::Failure } else { EventOutcome::Success }
}

/// Whether an operation says that a policy matched.
pub(crate) fn is_match(operation: &str) -> bool {
    operation == "dlprulematch"
}

/// A phrase for a match: the policy and the rule.
pub(crate) fn matched_in_words(rules: &[DlpRule<'_>]) -> String {
    let Some(rule) = foremost(rules) else { return "Data loss prevention matched".to_owned() };
    let mut text = "Data loss prevention matched".to_owned();
    if let Some(policy) = rule.policy.as_deref().or(rule.policy_id.as_deref()) {
        text.push_str(" policy ");
        text.push_str(policy);
    }
    if let Some(name) = rule.name.as_deref().or(rule.id.as_deref()) {
        text.push_str(if text.ends_with("matched") { " rule " } else { ", rule " });
        text.push_str(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_was_stopped_where_a_rule_in_force_or_the_device_blocked() {
        use EventOutcome::{Failure, Success, Unknown};
        let rule = |mode: &str, action: &str| {
            format!(
                r#"{{"PolicyDetails":[{{"Rules":[{{"RuleMode":"{mode}","Actions":["NotifyUser","{action}"]}}]}}]}}"#
            )
        };
        for (operation, json, expected) in [
            ("dlprulematch", rule("Enforce", "BlockAccess"), Failure),
            ("dlprulematch", rule("enable", "blockaccess"), Failure),
            ("dlprulematch", rule("TestWithNotifyUser", "BlockAccess"), Success),
            ("dlprulematch", rule("AuditAndNotify", "BlockAccess"), Success),
            ("dlprulematch", rule("Enforce", "NotifyUser"), Success),
            ("dlprulematch", r#"{"PolicyDetails":[{"Rules":[{"Actions":["BlockAccess"]}]}]}"#.into(), Failure),
            ("dlpruleundo", rule("Enforce", "BlockAccess"), Success),
            ("dlpinfo", "{}".into(), Failure),
            ("dlprulematch", r#"{"EnforcementMode":4}"#.into(), Failure),
            ("filecopied", r#"{"EnforcementMode":"Block"}"#.into(), Failure),
            ("dlprulematch", r#"{"EndpointMetaData":{"EnforcementMode":"4"}}"#.into(), Failure),
            ("dlprulematch", r#"{"EnforcementMode":1}"#.into(), Success),
            ("dlprulematch", r#"{"EnforcementMode":2}"#.into(), Unknown),
            ("dlprulematch", r#"{"EnforcementMode":3}"#.into(), Success),
            ("dlprulematch", r#"{"EnforcementMode":5}"#.into(), Success),
        ] {
            let event = Event::parse(json.as_bytes()).unwrap();
            assert_eq!(outcome(&event, operation, &rules(&event)), expected, "{operation} {json}");
        }
    }

    #[test]
    fn a_match_names_the_rule_of_the_highest_severity() {
        for (json, expected) in [
            (
                r#"{"PolicyDetails":[{"PolicyName":"P","Rules":[{"RuleName":"a","Severity":"Low"},{"RuleName":"b","Severity":"High"},{"RuleName":"c","Severity":"High"}]}]}"#,
                "Data loss prevention matched policy P, rule b",
            ),
            (r#"{"PolicyMatchInfo":{"RuleName":"r"}}"#, "Data loss prevention matched rule r"),
            (r#"{"PolicyDetails":[{"PolicyName":"P","Rules":[]}]}"#, "Data loss prevention matched policy P"),
            ("{}", "Data loss prevention matched"),
        ] {
            assert_eq!(matched_in_words(&rules(&Event::parse(json.as_bytes()).unwrap())), expected, "{json}");
        }
    }
}
