//! Rules as TOML tables, and changes applied to them.

use serde::Deserialize;

use super::engine::{RuleError, compile};

/// The rules of a table of `[[rule]]`s.
///
/// # Errors
/// A text that is not such a table; the message of a syntax error names the line.
pub fn parse_table(text: &str) -> Result<Vec<toml::Table>, RuleError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct RuleFile {
        #[serde(default)]
        defaults: toml::Table,
        #[serde(default)]
        rule: Vec<toml::Table>,
    }
    let file: RuleFile = toml::from_str(text).map_err(|error| RuleError::Form(error.to_string()))?;
    let with_defaults = |mut rule: toml::Table| {
        for (key, value) in &file.defaults {
            rule.entry(key.clone()).or_insert_with(|| value.clone());
        }
        rule
    };
    Ok(file.rule.into_iter().map(with_defaults).collect())
}

/// Applies `changes` to `rules`: for a known id the given keys are replaced, `disable = true` removes the rule, and a
/// rule with a new id is added. An error comes with the index of its change.
///
/// # Errors
/// A change without an id, or one that leaves no complete rule.
pub fn overlay(rules: &mut Vec<toml::Table>, changes: &[toml::Table]) -> Result<(), (usize, RuleError)> {
    for (index, change) in changes.iter().enumerate() {
        overlay_one(rules, change).map_err(|error| (index, error))?;
    }
    Ok(())
}

fn overlay_one(rules: &mut Vec<toml::Table>, change: &toml::Table) -> Result<(), RuleError> {
    let Some(id) = change.get("id").and_then(toml::Value::as_str).filter(|id| !id.trim().is_empty()) else {
        return Err(RuleError::Form("a rule needs an `id`, a text".to_owned()));
    };
    let mut change = change.clone();
    let disable = match change.remove("disable") {
        None => false,
        Some(toml::Value::Boolean(disable)) => disable,
        Some(_) => {
            let what = "`disable` is `true` or `false`".to_owned();
            return Err(RuleError::Condition { id: id.to_owned(), what });
        }
    };
    let known = rules.iter().position(|rule| rule.get("id").and_then(toml::Value::as_str) == Some(id));
    let mut rule = match known {
        Some(index) => rules.get(index).cloned().unwrap_or_default(),
        None if disable || !change.contains_key("reason") => return Err(RuleError::Unknown(id.to_owned())),
        None => toml::Table::new(),
    };
    rule.extend(change);
    compile(&rule)?;
    match (known, disable) {
        (Some(index), true) => drop(rules.remove(index)),
        (Some(index), false) => rules.splice(index..=index, [rule]).for_each(drop),
        (None, _) => rules.push(rule),
    }
    Ok(())
}
