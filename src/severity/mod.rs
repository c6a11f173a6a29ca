//! Severity: how much an event matters, and which rules say so.
//!
//! The rules are data under `rules/`; [`engine`] reads them. What an event *is* stays with whoever implements
//! [`Facts`]: this module sees a folded operation name, parameters and a flag, never a record's shape.

pub mod engine;
pub mod operation;
pub mod recipient;

use std::fmt;
use std::sync::LazyLock;

use engine::{Rule, RuleSet, Verdict};
use recipient::Domains;

/// How much an event matters, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth keeping.
    Info,
    /// Worth having when something else is found.
    Low,
    /// Worth a look.
    Medium,
    /// Worth waking for.
    High,
    /// Drop everything.
    Critical,
}

impl Severity {
    /// The word in a record: `info`, `low`, `medium`, `high`, `critical`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What rules ask of an event. Asked only when a rule about its operation has the question.
pub trait Facts {
    /// Hands cmdlet parameters to `test`, name and value, until it answers true; whether it did. A parameter with
    /// several values is handed over once for each.
    fn any_parameter(&self, test: &mut dyn FnMut(&str, &str) -> bool) -> bool;
    /// The domains known to be the organisation's.
    fn own_domains(&self) -> Domains;
    /// Whether the record itself says that data loss prevention flagged it.
    fn flagged_by_dlp(&self) -> bool;
}

/// What the rules make of an event.
#[derive(Debug, Clone, Default)]
pub struct Assessment {
    /// The rules that matched, in the order of the tables.
    pub rules: Vec<&'static Rule>,
    /// The rule to drop by: only `drop` rules matched and data loss prevention did not flag the record.
    pub drop: Option<&'static Rule>,
}

impl Assessment {
    /// The highest severity of the rules that matched; info when none did.
    pub fn severity(&self) -> Severity {
        self.rules.iter().filter_map(|rule| rule.verdict.severity()).max().unwrap_or(Severity::Info)
    }
}

static RULES: LazyLock<RuleSet> = LazyLock::new(|| match RuleSet::compile(TABLES) {
    Ok(rules) => rules,
    // The tables are part of the program and a test compiles them.
    Err(error) => panic!("built-in {error}"),
});

/// The tables, in the order their rules are reported.
const TABLES: &[&str] =
    &[include_str!("rules/exchange.toml"), include_str!("rules/sharepoint.toml"), include_str!("rules/entra.toml")];

/// All rules, for the reference page.
pub fn rules() -> &'static [Rule] {
    RULES.rules()
}

/// Whether a text says true in one of the forms the feed uses: `True`, `true`, `1`, `$true`.
pub fn is_true(text: &str) -> bool {
    let text = text.trim();
    ["true", "$true", "1"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Assesses an event by its folded operation name and its facts.
///
/// Matching rules are independent and the highest wins. A failed operation is not lowered: these rules are about the
/// attempt as much as the effect.
pub fn assess(folded_operation: &str, facts: &impl Facts) -> Assessment {
    let mut assessment = Assessment::default();
    let rules: &'static RuleSet = &RULES;
    rules.matching(folded_operation, facts, |rule| assessment.rules.push(rule));
    let drops = |rule: &&&'static Rule| rule.verdict == Verdict::Drop;
    if let Some(rule) = assessment.rules.iter().find(drops)
        && assessment.rules.iter().all(|rule| drops(&rule))
        && !facts.flagged_by_dlp()
    {
        assessment.drop = Some(rule);
    }
    assessment
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Told {
        parameters: &'static [(&'static str, &'static str)],
        flagged: bool,
    }

    impl Facts for Told {
        fn any_parameter(&self, test: &mut dyn FnMut(&str, &str) -> bool) -> bool {
            self.parameters.iter().any(|(name, value)| test(name, value))
        }
        fn own_domains(&self) -> Domains {
            let mut own = Domains::default();
            own.add("contoso.com");
            own
        }
        fn flagged_by_dlp(&self) -> bool {
            self.flagged
        }
    }

    #[test]
    fn the_tables_compile_and_say_why() {
        let rules = RuleSet::compile(TABLES).unwrap();
        for rule in rules.rules() {
            assert!(!rule.operations.is_empty(), "{}", rule.id);
            assert!(!rule.reason.is_empty() && rule.reference.starts_with("https://"), "{}", rule.id);
            assert!(rule.technique.starts_with('T'), "{}", rule.id);
            assert!(rule.when.iter().all(|condition| !condition.parameter.is_empty()), "{}", rule.id);
        }
    }

    #[test]
    fn a_table_with_a_slip_is_refused() {
        let rule = "[[rule]]\nid = \"A\"\noperations = [\"x\"]\nseverity = \"high\"\nreason = \"r\"\nreference = \"h\"\ntechnique = \"T\"\n";
        assert!(RuleSet::compile(&[rule]).is_ok());
        assert!(matches!(RuleSet::compile(&[rule, rule]), Err(engine::RuleError::Twice(_))));
        let slip = rule.replace("severity = \"high\"", "severity = \"hihg\"");
        assert!(matches!(RuleSet::compile(&[&slip]), Err(engine::RuleError::Form(_))));
    }

    #[test]
    fn the_highest_rule_wins_and_a_drop_needs_to_stand_alone_and_unflagged() {
        type Case =
            (&'static str, &'static [(&'static str, &'static str)], bool, &'static [&'static str], &'static str);
        const CASES: &[Case] = &[
            ("new-inboxrule", &[("FORWARDTO", "a@example.net")], false, &["EX-01"], "high"),
            ("new-inboxrule", &[("forwardto", "a@contoso.com"), ("DeleteMessage", "True")], false, &["EX-03"], "high"),
            ("set-inboxrule", &[("DeleteMessage", "$false")], false, &[], "info"),
            ("updateinboxrules", &[("ForwardTo", "a@example.net")], false, &[], "info"),
            ("set-mailbox", &[("ForwardingSmtpAddress", " ")], false, &[], "info"),
            ("set-mailbox", &[("ForwardingSmtpAddress", "smtp:a@contoso.com")], false, &["EX-12"], "high"),
            ("add member to role", &[], false, &["ID-01"], "high"),
            ("add member to role outside of pim (permanent)", &[], false, &["ID-01"], "high"),
            ("add eligible member to role", &[], false, &[], "info"),
            ("anonymouslinkcreated", &[], false, &["SP-01"], "medium"),
            ("fileaccessed", &[], false, &["SP-12"], "drop"),
            ("fileaccessed", &[], true, &["SP-12"], "info"),
            ("mailitemsaccessed", &[], false, &["EX-45"], "drop"),
            ("", &[], false, &[], "info"),
        ];
        for (operation, parameters, flagged, rules, expected) in CASES {
            let assessment = assess(operation, &Told { parameters, flagged: *flagged });
            let ids: Vec<&str> = assessment.rules.iter().map(|rule| rule.id.as_str()).collect();
            assert_eq!(ids, *rules, "{operation} {parameters:?}");
            let verdict = assessment.drop.map_or(assessment.severity().as_str(), |_| "drop");
            assert_eq!(verdict, *expected, "{operation} {parameters:?}");
        }
    }
}
