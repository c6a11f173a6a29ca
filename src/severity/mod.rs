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
