//! Rules as data: reads the tables under `rules/`, finds the rules of an operation, tests their conditions.
//!
//! A rule names the operations it is about, conditions that must all hold, and a severity or `drop`:
//!
//! ```toml
//! [[rule]]
//! id = "EX-01"                                   # catalogue row, shipped as `severity_rule`
//! operations = ["New-InboxRule", "Add member*"]  # compared folded; a trailing `*` takes every name that begins so
//! when = [{ parameter = ["ForwardTo"], is = "external" }]
//! severity = "high"                              # info | low | medium | high | critical | drop
//! reason = "…"                                   # why, for the operator
//! reference = "https://…"                        # where to read on
//! technique = "T1114.003"                        # MITRE ATT&CK
//! ```
//!
//! Conditions, on cmdlet parameters looked up by name in every shape they come in (one of the names is enough):
//! `is = "set"` (something other than blank and `$null`), `"true"`, `"external"` (a recipient outside the organisation).
//!
//! An operation that no rule names costs one hash look-up and a comparison per `*` rule.

use std::collections::HashMap;

use serde::Deserialize;

use super::operation::fold;
use super::{Facts, Severity, recipient};

/// What a rule makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Not shipped, unless another rule says more or data loss prevention flagged it.
    Drop,
    /// Severity info.
    Info,
    /// Severity low.
    Low,
    /// Severity medium.
    Medium,
    /// Severity high.
    High,
    /// Severity critical.
    Critical,
}

impl Verdict {
    /// The severity of a verdict; `drop` ranks below info and has none.
    pub fn severity(self) -> Option<Severity> {
        match self {
            Self::Drop => None,
            Self::Info => Some(Severity::Info),
            Self::Low => Some(Severity::Low),
            Self::Medium => Some(Severity::Medium),
            Self::High => Some(Severity::High),
            Self::Critical => Some(Severity::Critical),
        }
    }
}

/// One row of the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The row's id, such as `EX-01`.
    pub id: String,
    /// Operation names, folded when compared; a trailing `*` makes a name a beginning.
    pub operations: Vec<String>,
    /// What must hold beside the operation: all of these.
    #[serde(default)]
    pub when: Vec<Condition>,
    /// What the event is worth.
    #[serde(rename = "severity")]
    pub verdict: Verdict,
    /// Why, for the operator.
    pub reason: String,
    /// Where to read on.
    pub reference: String,
    /// MITRE ATT&CK technique, such as `T1114.003`.
    pub technique: String,
}

/// A condition on cmdlet parameters: one of the named ones passes the test.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Parameter names, compared without case.
    pub parameter: Vec<String>,
    /// The test.
    pub is: Test,
}

/// A test on a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Test {
    /// Something other than blank and `$null`.
    Set,
    /// True in one of the forms a boolean takes.
    True,
    /// Names a recipient outside the organisation.
    External,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rule: Vec<Rule>,
}

/// The rules, compiled.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
    by_operation: HashMap<String, Vec<usize>>,
    by_beginning: Vec<(String, usize)>,
}

impl RuleSet {
    /// Compiles tables in the form this file describes.
    ///
    /// # Errors
    /// A table that is not in that form, or an id given twice.
    pub fn compile(tables: &[&str]) -> Result<RuleSet, RuleError> {
        let mut set = RuleSet::default();
        for table in tables {
            let table: Table = toml::from_str(table).map_err(|error| RuleError::Form(error.to_string()))?;
            for rule in table.rule {
                let index = set.rules.len();
                if set.rules.iter().any(|other| other.id == rule.id) {
                    return Err(RuleError::Twice(rule.id));
                }
                for operation in &rule.operations {
                    match operation.strip_suffix('*') {
                        Some(beginning) => set.by_beginning.push((fold(beginning), index)),
                        None => set.by_operation.entry(fold(operation)).or_default().push(index),
                    }
                }
                set.rules.push(rule);
            }
        }
        Ok(set)
    }

    /// All rules, in the order of the tables.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Calls `matched` for each rule about `operation` (folded) whose conditions `facts` meet, in no promised order.
    pub fn matching<'s>(&'s self, operation: &str, facts: &impl Facts, mut matched: impl FnMut(&'s Rule)) {
        let named = self.by_operation.get(operation).into_iter().flatten();
        let begun = self.by_beginning.iter().filter(|(beginning, _)| operation.starts_with(beginning.as_str()));
        for index in named.chain(begun.map(|(_, index)| index)) {
            if let Some(rule) = self.rules.get(*index)
                && rule.when.iter().all(|condition| holds(condition, facts))
            {
                matched(rule);
            }
        }
    }
}

fn holds(condition: &Condition, facts: &impl Facts) -> bool {
    let named = |name: &str| condition.parameter.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    let mut own = None;
    facts.any_parameter(&mut |name, value| {
        named(name)
            && match condition.is {
                Test::Set => {
                    let value = value.trim().trim_matches(['"', '\'']).trim();
                    !value.is_empty() && !value.eq_ignore_ascii_case("$null")
                }
                Test::True => super::is_true(value),
                Test::External => {
                    let own = own.get_or_insert_with(|| facts.own_domains());
                    recipient::judge(value, own) == Some(recipient::Recipient::External)
                }
            }
    })
}

/// Why a table of rules was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not in the form [`engine`](self) describes.
    #[error("rules: {0}")]
    Form(String),
    /// Two rules have this id.
    #[error("rule `{0}` is there twice")]
    Twice(String),
}
