//! `[sources.<name>.severity]`: which rules assess events, and the operator's changes to them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Actionable;
use crate::severity::Rules;
use crate::severity::engine::RuleError;
use crate::severity::tables::parse_table;

/// `[sources.<name>.severity]`: which rules assess events. The built-in ones are listed in `docs/rules.md`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeverityConfig {
    /// Let refinements contradict the plain reading of the catalogue's first rows: mailbox access given by Microsoft's
    /// own services is info, throttled or very large mail reads are kept, failed operations are one step lower.
    #[serde(default)]
    #[schemars(example = true)]
    pub refine: bool,

    /// A TOML file of `[[rule]]` tables that add to the built-in rules or change them, in the form of `rules` here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/etc/m365-audit/rules.toml")]
    pub rules_file: Option<PathBuf>,

    /// Mail folders that users do not look into, beside the built-in ones; compared without case and accents.
    #[serde(default)]
    #[schemars(schema_with = "folders_schema")]
    pub hidden_folders: Vec<String>,

    /// Rules of your own, and changes to built-in ones: `[[sources.<name>.severity.rules]]`, laid over those of
    /// `rules_file`. A known `id` changes the keys given, `disable = true` removes the rule, a new `id` adds one and
    /// needs `reason`, `severity` (`drop` leaves the event out) and `operations` or `record_types`. Conditions are
    /// described in `docs/rules.md`.
    #[serde(default)]
    #[schemars(schema_with = "rules_schema")]
    pub rules: Vec<toml::Table>,
}

fn folders_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "minLength": 1 },
        "examples": [["Nieuwsbrieven"]],
    })
}

fn rules_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "x-expected": "a list of tables, each a rule",
        "items": { "type": "object", "x-expected": "a table, a rule" },
        "examples": [[{ "id": "SP-12", "disable": true }]],
    })
}

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// `rules_file` cannot be read.
    #[error("`rules_file` `{path}` cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `rules_file` has an invalid rule.
    #[error("`rules_file` `{path}`{}: {source}", .line.map(|line| format!(", line {line}")).unwrap_or_default())]
    File {
        /// The file.
        path: PathBuf,
        /// The line its rule begins on; a syntax error has it in its message.
        line: Option<usize>,
        /// What is wrong.
        source: RuleError,
    },
    /// One of `rules`.
    #[error("{source}")]
    Inline {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        source: RuleError,
    },
}

impl Actionable for RulesError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "rules-unreadable",
            Self::File { .. } | Self::Inline { .. } => "rules-invalid",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "check the path and its permissions".into(),
            Self::File { .. } | Self::Inline { .. } => {
                "docs/rules.md lists the built-in rules and describes conditions".into()
            }
        }
    }
}

impl SeverityConfig {
    /// The rules as they are now; reads `rules_file`. Sources with the same rules share them: compiled, they take more
    /// memory than the rest of an idle tenant.
    ///
    /// # Errors
    /// The file cannot be read, or a rule in it or in `rules` is invalid.
    pub fn load(&self) -> Result<Arc<Rules>, RulesError> {
        let mut changes = Vec::new();
        if let Some(path) = &self.rules_file {
            changes = read_rules(path, self.refine)?;
        }
        let of_file = changes.len();
        changes.extend(self.rules.iter().cloned());
        let inputs = Inputs { refine: self.refine, hidden_folders: self.hidden_folders.clone(), changes };
        let mut in_use = IN_USE.lock();
        in_use.retain(|(_, rules)| rules.strong_count() > 0);
        if let Some(rules) = in_use.iter().find(|(known, _)| *known == inputs).and_then(|(_, rules)| rules.upgrade()) {
            return Ok(rules);
        }
        let rules = Rules::with(inputs.refine, &inputs.hidden_folders, &inputs.changes)
            .map_err(|(index, source)| RulesError::Inline { index: index.saturating_sub(of_file), source })?;
        let rules = Arc::new(rules);
        in_use.push((inputs, Arc::downgrade(&rules)));
        Ok(rules)
    }
}

/// The inputs from which rules are compiled.
#[derive(PartialEq)]
struct Inputs {
    refine: bool,
    hidden_folders: Vec<String>,
    changes: Vec<toml::Table>,
}

/// The rules that some source uses. Removed with their last source.
static IN_USE: Mutex<Vec<(Inputs, Weak<Rules>)>> = Mutex::new(Vec::new());

/// The changes of a file, each checked against the built-in rules and those before it.
fn read_rules(path: &Path, refine: bool) -> Result<Vec<toml::Table>, RulesError> {
    let unreadable = |source| RulesError::Unreadable { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let text = super::text::decode(&bytes).map_err(|error| unreadable(std::io::Error::other(error)))?;
    let file = |line, source| RulesError::File { path: path.to_owned(), line, source };
    let changes = parse_table(&text).map_err(|source| file(None, source))?;
    if let Err((index, source)) = Rules::with(refine, &[], &changes) {
        return Err(file(line_of_rule(&text, index), source));
    }
    Ok(changes)
}

/// The line of the `index`th `[[rule]]`, from 1.
fn line_of_rule(text: &str, index: usize) -> Option<usize> {
    let mut rules = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[rule]]"));
    rules.nth(index).map(|(line, _)| line + 1)
}
