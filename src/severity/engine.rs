//! Rules as data: compiles the tables under `rules/` and the operator's own, finds the rules of an event, tests them.
//!
//! A rule names the operations or record types it is about, conditions, and a severity:
//!
//! ```toml
//! [[rule]]
//! id = "EX-01"                                   # catalogue row, shipped in `severity_rule`
//! operations = ["New-InboxRule", "Get-*"]        # compared folded; a trailing `*` takes every name that begins so
//! record_types = [1]                             # numbers of `RecordType`; beside operations both must fit
//! when = [{ parameter = ["ForwardTo"], is = "external" }]   # all must hold
//! unless = [{ actor = "service" }]               # none may hold; of a `drop` rule: what to keep
//! severity = "high"                              # drop | info | low | medium | high | critical
//! severity_from = ["Severity"]                   # members whose word (Low, Informational, …) counts instead, where there is one
//! steps_below = 1                                # as many steps below that word, never under low
//! cases = [{ when = […], severity = "medium" }]  # the first whose conditions hold decides instead
//! replaces = ["EX-18"]                           # a row narrowed takes the place of the wider one
//! fallback = true                                # only where no other rule matched: those of an operation first, then those of a record type
//! spec = true                                    # a row of the specification: a failed operation does not lower it
//! refine = true                                  # contradicts such a row: on only with `severity.refine = true`
//! failure_counts = true                          # describes a failure, so a failed operation does not lower it
//! reason = "…"                                   # why, for the operator
//! show = [{ field = ["ObjectId"] }]              # values put behind the reason
//! reference = "https://…"                        # where to read on
//! technique = "T1114.003"                        # MITRE ATT&CK
//! ```
//!
//! A condition has one subject. Names in lists are alternatives and patterns (no case, `*` for any run):
//!
//! | subject | what is looked at |
//! | --- | --- |
//! | `parameter = ["ForwardTo"]` | cmdlet parameters, in every shape they come in |
//! | `inbox_rule = ["ForwardTo"]` | an inbox rule under the names of `New-InboxRule`'s parameters, also where Outlook or EWS made it |
//! | `property = ["RequestType"]` | pairs of `ExtendedProperties`, `OperationProperties`, `ExtraProperties`, `PropertyCollection` |
//! | `modified = ["Role.TemplateId"]` | entries of `ModifiedProperties`; its new value, with `change` both |
//! | `field = ["Item.Subject"]` | members of the event by path, lists looked through |
//! | `user = ["urn:spo:anon#*"]` | patterns of `UserId` |
//! | `user_type = [3, 4]`, `record_type = [11]` | numbers |
//! | `user_agent = ["*PowerShell*"]` | patterns of the client's name for itself |
//! | `address = ["203.0.113.0/24"]` | networks the actor's address is in |
//! | `actor = "service"` | who acted: `service` (Microsoft's own), `application`, `person`, `guest`, `anonymous` |
//! | `fact = ["target"]` | what records say under these names: `target`, `application`, `error`, `resources`, `privileges` |
//! | `ai = ["jailbreak"]` | what fired in an AI application: `jailbreak`, `xpia`, `blocked`, `labelled` (read labelled content) |
//! | `any = [{ … }, { … }]`, `all = […]` | one of these, all of these |
//!
//! and one test, where the subject has a value: `is` (see [`Test`]), `like = ["*@x.example"]` (patterns),
//! `at_least`, `at_most` (a leading number is read, with a unit such as KB in bytes), for `modified` also `change` (see [`RuleChange`]) and `old = ["…"]`
//! (patterns of the value before). Without a test the subject only has to be there. `not = true` turns the answer round.
//!
//! An operation that no rule names costs one hash look-up.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::network::Network;
use super::operation::fold;
use super::pattern::{Names, Pattern};
use super::recipient::{Domains, Recipient};
use super::{Facts, Modification, RuleMatch, Severity, is_false, is_true, mail, recipient};

/// What a rule makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleVerdict {
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

impl RuleVerdict {
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

    /// The word in a table.
    pub fn as_str(self) -> &'static str {
        self.severity().map_or("drop", Severity::as_str)
    }

    /// One step down; `low` and below stay. Of a failed operation the attempt matters, the effect did not happen.
    pub(super) fn one_below(self) -> RuleVerdict {
        match self {
            Self::Critical => Self::High,
            Self::High => Self::Medium,
            Self::Medium => Self::Low,
            other => other,
        }
    }

    /// Microsoft's words in alerts, in rules of data loss prevention, and in risk records.
    fn from_word(word: &str) -> Option<RuleVerdict> {
        const WORDS: &[(&str, RuleVerdict)] = &[
            ("informational", RuleVerdict::Info),
            ("info", RuleVerdict::Info),
            ("information", RuleVerdict::Info),
            ("none", RuleVerdict::Info),
            ("hidden", RuleVerdict::Info),
            ("low", RuleVerdict::Low),
            ("medium", RuleVerdict::Medium),
            ("high", RuleVerdict::High),
            ("critical", RuleVerdict::Critical),
        ];
        let word = word.trim();
        WORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|(_, verdict)| *verdict)
    }
}

/// One row of the catalogue, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The row's id, such as `EX-01`.
    pub id: String,
    /// Operation names, folded when compared; a trailing `*` makes a name a beginning.
    #[serde(default)]
    pub operations: Vec<String>,
    /// Numbers of `RecordType`.
    #[serde(default)]
    pub record_types: Vec<i64>,
    /// What must hold: all of these.
    #[serde(default)]
    pub when: Vec<Condition>,
    /// What must not hold: none of these.
    #[serde(default)]
    pub unless: Vec<Condition>,
    /// What the event is worth.
    #[serde(rename = "severity")]
    pub verdict: RuleVerdict,
    /// Members whose word counts instead, the highest of them.
    #[serde(default)]
    pub severity_from: Vec<String>,
    /// Steps below that word.
    #[serde(default)]
    pub steps_below: u8,
    /// The first case whose conditions hold decides the severity.
    #[serde(default)]
    pub cases: Vec<Case>,
    /// Ids of wider rows whose place this one takes.
    #[serde(default)]
    pub replaces: Vec<String>,
    /// Counts only where no other rule matched.
    #[serde(default)]
    pub fallback: bool,
    /// A row of the specification.
    #[serde(default)]
    pub spec: bool,
    /// Contradicts a row of the specification and is on only with `severity.refine`.
    #[serde(default)]
    pub refine: bool,
    /// Describes a failure.
    #[serde(default)]
    pub failure_counts: bool,
    /// Why, for the operator.
    pub reason: String,
    /// Values put behind the reason.
    #[serde(default)]
    pub show: Vec<Condition>,
    /// Where to read on.
    #[serde(default)]
    pub reference: Option<String>,
    /// MITRE ATT&CK technique, such as `T1114.003`.
    #[serde(default)]
    pub technique: Option<String>,
}

impl Rule {
    /// Whether events it matches may be dropped: by its own verdict or that of a case.
    pub(super) fn can_drop(&self) -> bool {
        self.verdict == RuleVerdict::Drop || self.cases.iter().any(|case| case.verdict == RuleVerdict::Drop)
    }
}

/// A narrower case of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What must hold: all of these.
    pub when: Vec<Condition>,
    /// What the event is worth then.
    #[serde(rename = "severity")]
    pub verdict: RuleVerdict,
    /// Why, instead of the rule's reason.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A condition, as written: one subject, and a test where the subject has a value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Condition {
    /// Names of cmdlet parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parameter: Vec<String>,
    /// Names of an inbox rule's parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbox_rule: Vec<String>,
    /// Names of pairs in the lists of properties.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub property: Vec<String>,
    /// Names of modified properties.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modified: Vec<String>,
    /// Paths of members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub field: Vec<String>,
    /// Patterns of `UserId`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<String>,
    /// Numbers of `UserType`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_type: Vec<i64>,
    /// Numbers of `RecordType`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub record_type: Vec<i64>,
    /// Patterns of the user agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_agent: Vec<String>,
    /// Networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub address: Vec<String>,
    /// Who acted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<ActorKind>,
    /// What records say whom and what the event involves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fact: Vec<Fact>,
    /// What fired in an AI application.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ai: Vec<AiSignal>,
    /// One of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub any: Vec<Condition>,
    /// All of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<Condition>,
    /// What the value is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is: Option<Test>,
    /// Patterns of the value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub like: Vec<String>,
    /// The least number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// The greatest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// How a modified property changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<RuleChange>,
    /// Patterns of a modified property's value before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub old: Vec<String>,
    /// Turns the answer round.
    #[serde(skip_serializing_if = "is_default")]
    pub not: bool,
}

fn is_default(flag: &bool) -> bool {
    !*flag
}

/// A test on a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Something other than blank and `$null`.
    Set,
    /// There, and blank or `$null`.
    Blank,
    /// True in one of the forms a boolean takes.
    True,
    /// False in one of them.
    False,
    /// Names a recipient outside the organisation.
    External,
    /// Names recipients, all of them inside.
    Internal,
    /// Names recipients of whom one can be shown neither inside nor outside, and nobody outside.
    Undecided,
    /// A folder nobody reads.
    HiddenFolder,
    /// A name that is empty, only punctuation, or at most three characters.
    OddName,
    /// Who acted: the same as `UserId`.
    Actor,
}

/// How a modified property changed; values are JSON in text, a list in most cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleChange {
    /// Something was there, and nothing (`[]`, `""`, absent) is.
    Emptied,
    /// There are more entries than before.
    Grown,
    /// Old and new differ.
    Any,
}

/// Who acted, in classes that rules tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A service of Microsoft's: `UserType` 3 or 4, `NT AUTHORITY\SYSTEM (…)`, or `ExternalAccess`.
    Service,
    /// An application or service principal.
    Application,
    /// A guest of the tenant.
    Guest,
    /// Nobody known.
    Anonymous,
    /// A member of the organisation, as far as the record shows.
    Person,
}

/// Whom and what an event involves, by the names that records have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// Whom it was done to, or who got something.
    Target,
    /// The application it was done with or for.
    Application,
    /// Why it failed.
    Error,
    /// What was touched.
    Resources,
    /// Roles, scopes and rights.
    Privileges,
}

/// What fired in an AI application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AiSignal {
    /// A prompt was meant to break its bounds.
    Jailbreak,
    /// What it read held instructions for it.
    Xpia,
    /// It was kept from something.
    Blocked,
    /// What it read has a sensitivity label.
    Labelled,
}

/// A rule made ready.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// As written.
    pub rule: Rule,
    when: Vec<ConditionCheck>,
    unless: Vec<ConditionCheck>,
    /// The conditions of each case.
    cases: Vec<Vec<ConditionCheck>>,
    show: Vec<ConditionCheck>,
    /// Indexes of the rules whose place this one takes.
    replaces: Vec<usize>,
}

#[derive(Debug, Clone)]
struct ConditionCheck {
    subject: ConditionSubject,
    test: ValueTest,
    not: bool,
}

#[derive(Debug, Clone)]
enum ConditionSubject {
    Parameter(Names),
    InboxRule(Names),
    Property(Names),
    Modified(Names),
    Field(Vec<String>),
    UserType(Vec<i64>),
    RecordType(Vec<i64>),
    UserAgent,
    Address(Vec<Network>),
    Actor(ActorKind),
    Fact(Vec<Fact>),
    Ai(Vec<AiSignal>),
    Any(Vec<ConditionCheck>),
    All(Vec<ConditionCheck>),
}

#[derive(Debug, Clone)]
enum ValueTest {
    Present,
    Is(Test),
    Like(Vec<Pattern>),
    Between(f64, f64),
    Changed { change: Option<RuleChange>, old: Vec<Pattern>, new: Vec<Pattern> },
}

/// Why a rule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not in the form [`engine`](self) describes.
    #[error("{0}")]
    Form(String),
    /// Two rules of one table have this id.
    #[error("rule `{0}` is there twice")]
    Twice(String),
    /// A rule is to be changed that is not there.
    #[error("rule `{0}` is not known; a new rule needs `reason`, `severity`, and `operations` or `record_types`")]
    Unknown(String),
    /// A condition says nothing, or two things.
    #[error("rule `{id}`: {what}")]
    Condition {
        /// The rule.
        id: String,
        /// What is wrong with it.
        what: String,
    },
}

/// The rules, compiled.
#[derive(Debug, Default, Clone)]
pub struct RuleSet {
    rules: Vec<Compiled>,
    by_operation: HashMap<String, Vec<usize>, FixedState>,
    /// By the first byte of the beginning.
    by_beginning: Vec<Vec<(String, usize)>>,
    /// In the order of the types.
    by_record_type: Vec<(i64, Vec<usize>)>,
}

impl RuleSet {
    /// Compiles rules; those marked `refine` only with `refine`.
    ///
    /// # Errors
    /// A rule that is not in the form this file describes, or an id given twice.
    pub fn compile(tables: &[toml::Table], refine: bool) -> Result<RuleSet, RuleError> {
        let mut set = RuleSet { by_beginning: vec![Vec::new(); 256], ..RuleSet::default() };
        for table in tables {
            let compiled = compile(table)?;
            if set.rules.iter().any(|other| other.rule.id == compiled.rule.id) {
                return Err(RuleError::Twice(compiled.rule.id));
            }
            if refine || !compiled.rule.refine {
                set.rules.push(compiled);
            }
        }
        for index in 0..set.rules.len() {
            set.index(index);
        }
        Ok(set)
    }

    fn index(&mut self, index: usize) {
        let Some(compiled) = self.rules.get(index) else { return };
        let rule = &compiled.rule;
        let replaced = |id: &String| self.rules.iter().position(|other| other.rule.id == *id);
        let replaces = rule.replaces.iter().filter_map(replaced).collect();
        for operation in &rule.operations {
            match operation.strip_suffix('*') {
                Some(beginning) => {
                    // The blank before a star is part of the beginning; folding would take it away.
                    let folded = fold(&format!("{beginning}*"));
                    let beginning = folded.strip_suffix('*').unwrap_or(&folded).to_owned();
                    let first = beginning.as_bytes().first().copied().unwrap_or(0);
                    if let Some(bucket) = self.by_beginning.get_mut(usize::from(first)) {
                        bucket.push((beginning, index));
                    }
                }
                None => self.by_operation.entry(fold(operation)).or_default().push(index),
            }
        }
        if rule.operations.is_empty() {
            for record_type in &rule.record_types {
                match self.by_record_type.binary_search_by_key(record_type, |(record_type, _)| *record_type) {
                    Ok(at) => self.by_record_type.get_mut(at).into_iter().for_each(|(_, rules)| rules.push(index)),
                    Err(at) => self.by_record_type.insert(at, (*record_type, vec![index])),
                }
            }
        }
        if let Some(compiled) = self.rules.get_mut(index) {
            compiled.replaces = replaces;
        }
    }

    /// All rules, in the order of the tables.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|compiled| &compiled.rule)
    }

    /// Where rules about this operation or record type are: those of names that may begin so, of this name, of the type.
    fn places(&self, operation: &str, record_type: Option<i64>) -> (&[(String, usize)], &[usize], &[usize]) {
        let first = operation.as_bytes().first().copied().unwrap_or(0);
        let begun = self.by_beginning.get(usize::from(first)).map_or(&[][..], Vec::as_slice);
        let named = self.by_operation.get(operation).map_or(&[][..], Vec::as_slice);
        let typed = record_type
            .and_then(|wanted| self.by_record_type.binary_search_by_key(&wanted, |(record_type, _)| *record_type).ok())
            .and_then(|at| self.by_record_type.get(at))
            .map_or(&[][..], |(_, rules)| rules.as_slice());
        (begun, named, typed)
    }

    /// The rules about this operation or record type, whatever their conditions, and maybe some of other operations.
    pub(super) fn about(&self, operation: &str, record_type: Option<i64>) -> impl Iterator<Item = &Rule> {
        let (begun, named, typed) = self.places(operation, record_type);
        let indexes = begun.iter().map(|(_, index)| index).chain(named).chain(typed);
        indexes.filter_map(|index| self.rules.get(*index)).map(|compiled| &compiled.rule)
    }

    /// The rules that match, in the order of the tables, and those whose place was taken.
    pub(super) fn matching<'s>(
        &'s self,
        operation: &str,
        facts: &impl Facts,
        more_folders: &[String],
    ) -> (Vec<RuleMatch<'s>>, Vec<&'s Rule>) {
        let types = Types { own: facts.record_type(), kin: facts.kin() };
        let (begun, named, typed) = self.places(operation, types.own);
        let like = if types.kin == types.own { &[][..] } else { self.places("", types.kin).2 };
        if begun.is_empty() && named.is_empty() && typed.is_empty() && like.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut context = MatchContext { facts, own: None, more_folders };
        let by_operation = || {
            let begun = begun.iter().filter(|(beginning, _)| operation.starts_with(beginning.as_str()));
            named.iter().copied().chain(begun.map(|(_, index)| *index))
        };
        let mut found = MatchedRules::new();
        let mut collect = |found: &mut MatchedRules, index: usize, fallback: bool| {
            if let Some(compiled) = self.rules.get(index)
                && compiled.rule.fallback == fallback
                && !found.contains(&index)
                && compiled.matches(types, &mut context)
            {
                found.push(index);
            }
        };
        let typed = || typed.iter().chain(like).copied();
        by_operation().chain(typed()).for_each(|index| collect(&mut found, index, false));
        if found.is_empty() {
            by_operation().for_each(|index| collect(&mut found, index, true));
        }
        if found.is_empty() {
            typed().for_each(|index| collect(&mut found, index, true));
        }
        found.sort_unstable();
        let mut replaced = Vec::new();
        if found.len() > 1 {
            let rules = found.iter().filter_map(|index| self.rules.get(*index));
            let taken: MatchedRules = rules.flat_map(|rule| &rule.replaces).copied().collect();
            found.retain(|index| {
                let stays = !taken.contains(index);
                if !stays && let Some(compiled) = self.rules.get(*index) {
                    replaced.push(&compiled.rule);
                }
                stays
            });
        }
        let mut matches = Vec::with_capacity(found.len());
        for compiled in found.iter().filter_map(|index| self.rules.get(*index)) {
            let (verdict, case) = compiled.verdict(&mut context);
            let reason = case.and_then(|case| case.reason.as_deref()).unwrap_or(&compiled.rule.reason);
            matches.push(RuleMatch { compiled, verdict, lowered: false, reason, case });
        }
        (matches, replaced)
    }
}

/// The record type of an event, and the one whose records it is made like.
#[derive(Clone, Copy)]
struct Types {
    own: Option<i64>,
    kin: Option<i64>,
}

impl Types {
    /// Whether one of them is among those that a rule is about; a rule that names none is about all.
    fn are_among(self, types: &[i64]) -> bool {
        types.is_empty() || [self.own, self.kin].into_iter().flatten().any(|number| types.contains(&number))
    }
}

/// Indexes of rules; more than a few of one event's match hardly ever.
type MatchedRules = SmallVec<[usize; 8]>;

/// Values shown of one rule, and characters of one of them.
const SHOWN_VALUES_MAX: usize = 5;
const SHOWN_CHARS_MAX: usize = 120;

impl Compiled {
    fn matches(&self, types: Types, context: &mut MatchContext<'_, impl Facts>) -> bool {
        types.are_among(&self.rule.record_types)
            && self.when.iter().all(|check| check.holds(context))
            && !self.unless.iter().any(|check| check.holds(context))
    }

    /// What the rule makes of an event that it matches, and the case that decided.
    fn verdict(&self, context: &mut MatchContext<'_, impl Facts>) -> (RuleVerdict, Option<&Case>) {
        for (when, case) in self.cases.iter().zip(&self.rule.cases) {
            if when.iter().all(|check| check.holds(context)) {
                return (case.verdict, Some(case));
            }
        }
        let mut word = None;
        for path in &self.rule.severity_from {
            context.facts.any_field(path, &mut |text| {
                word = word.max(RuleVerdict::from_word(text));
                false
            });
        }
        let mut verdict = word.unwrap_or(self.rule.verdict);
        for _ in 0..self.rule.steps_below {
            verdict = verdict.one_below();
        }
        if self.rule.steps_below > 0 {
            verdict = verdict.max(RuleVerdict::Low);
        }
        (verdict, None)
    }

    /// Whether the rule's reason shows values at all.
    pub(super) fn shows(&self) -> bool {
        !self.show.is_empty() || self.when.iter().any(|check| matches!(check.test, ValueTest::Is(Test::External)))
    }

    /// The values that the rule's reason shows, a bounded number of bounded texts.
    pub(super) fn shown(&self, facts: &impl Facts, more_folders: &[String]) -> Vec<String> {
        let mut text = String::new();
        let ends = self.push_shown(facts, more_folders, &mut text);
        let starts = std::iter::once(0).chain(ends.iter().map(|end| end + SHOWN_BETWEEN.len()));
        starts.zip(&ends).filter_map(|(start, end)| text.get(start..*end)).map(str::to_owned).collect()
    }

    /// Appends them, joined by [`SHOWN_BETWEEN`]; where each ends, counted from where the first begins.
    pub(super) fn push_shown(&self, facts: &impl Facts, more_folders: &[String], text: &mut String) -> Ends {
        let begin = text.len();
        let mut ends = Ends::new();
        let mut own = None;
        let outside = |check: &&ConditionCheck| matches!(check.test, ValueTest::Is(Test::External)) && !check.not;
        let checks = self.when.iter().filter(outside).chain(&self.show);
        for check in checks {
            let mut keep = |value: &str| {
                let before = text.len();
                if !ends.is_empty() {
                    text.push_str(SHOWN_BETWEEN);
                }
                let start = text.len() - begin;
                push_on_one_line(value, text);
                let shown = text.get(begin..).unwrap_or_default();
                let value = shown.get(start..).unwrap_or_default();
                let mut known_from = 0;
                let known = ends.iter().any(|end| {
                    let known = shown.get(known_from..*end) == Some(value);
                    known_from = end + SHOWN_BETWEEN.len();
                    known
                });
                if known || value.is_empty() {
                    text.truncate(before);
                } else {
                    ends.push(shown.len());
                }
                ends.len() >= SHOWN_VALUES_MAX
            };
            let external = matches!(check.test, ValueTest::Is(Test::External));
            let mut context = MatchContext { facts, own: None, more_folders };
            check.subject.values(&mut context, &mut |value| match external {
                true => {
                    let own = own.get_or_insert_with(|| facts.own_domains());
                    recipient::external(value, own).any(&mut keep)
                }
                false => keep(value),
            });
        }
        ends
    }
}

/// Where values end in a text.
type Ends = SmallVec<[usize; SHOWN_VALUES_MAX]>;
/// What stands between values shown.
const SHOWN_BETWEEN: &str = ", ";

/// Appends the beginning of a value with every run of white space made one blank; of `["a"]`, which is how one value of a
/// modified property is written, what is inside.
fn push_on_one_line(value: &str, line: &mut String) {
    let value = trimmed(value);
    let value = trimmed(value.strip_prefix('[').and_then(|value| value.strip_suffix(']')).unwrap_or(value));
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    // Most are one word, or some with a blank between them.
    let bytes = value.as_bytes();
    let is_plain = || bytes.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
    let has_run = || bytes.first() == Some(&b' ') || bytes.windows(2).any(|pair| pair == b"  ");
    if value.len() <= SHOWN_CHARS_MAX && is_plain() && (memchr::memchr(b' ', bytes).is_none() || !has_run()) {
        line.push_str(value.trim_end());
        return;
    }
    let mut chars = 0;
    let begin = line.len();
    for c in value.trim_start().chars() {
        if chars >= SHOWN_CHARS_MAX {
            break;
        }
        if !c.is_whitespace() {
            line.push(c);
        } else if !line.ends_with(' ') {
            line.push(' ');
        } else {
            continue;
        }
        chars += 1;
    }
    let end = line.get(begin..).unwrap_or_default().trim_end().len();
    line.truncate(begin + end);
}

struct MatchContext<'f, F> {
    facts: &'f F,
    own: Option<Domains>,
    more_folders: &'f [String],
}

impl ConditionCheck {
    fn holds(&self, context: &mut MatchContext<'_, impl Facts>) -> bool {
        self.holds_plainly(context) != self.not
    }

    fn holds_plainly(&self, context: &mut MatchContext<'_, impl Facts>) -> bool {
        let facts = context.facts;
        match &self.subject {
            ConditionSubject::UserType(numbers) => facts.user_type().is_some_and(|number| numbers.contains(&number)),
            ConditionSubject::RecordType(numbers) => {
                !numbers.is_empty() && Types { own: facts.record_type(), kin: facts.kin() }.are_among(numbers)
            }
            ConditionSubject::Actor(kind) => facts.actor_is(*kind),
            ConditionSubject::Ai(signals) => signals.iter().any(|signal| facts.ai_signal(*signal)),
            ConditionSubject::Address(networks) => {
                facts.address().is_some_and(|address| networks.iter().any(|network| network.contains(address)))
            }
            ConditionSubject::Any(checks) => checks.iter().any(|check| check.holds(context)),
            ConditionSubject::All(checks) => checks.iter().all(|check| check.holds(context)),
            _ => match &self.test {
                ValueTest::Changed { change, old, new } => match &self.subject {
                    ConditionSubject::Modified(names) => facts.any_modified(names, &mut |entry| {
                        changed(entry, *change)
                            && (old.is_empty() || Pattern::any(old, entry.before()))
                            && (new.is_empty() || Pattern::any(new, entry.now()))
                    }),
                    _ => false,
                },
                ValueTest::Is(test @ (Test::External | Test::Internal | Test::Undecided)) => {
                    let mut own = context.own.take();
                    let found = self.recipients(context, &mut own);
                    context.own = own;
                    found
                        == Some(match test {
                            Test::External => Recipient::External,
                            Test::Internal => Recipient::Internal,
                            _ => Recipient::Unknown,
                        })
                }
                ValueTest::Is(Test::Actor) => self.subject.values(context, &mut |value| facts.is_actor(value)),
                _ => {
                    let more_folders = context.more_folders;
                    self.subject.values(context, &mut |value| self.test.holds(value, more_folders))
                }
            },
        }
    }

    /// Where the recipients of all values are, taken together: one outside decides, then one undecided.
    fn recipients(&self, context: &mut MatchContext<'_, impl Facts>, own: &mut Option<Domains>) -> Option<Recipient> {
        let facts = context.facts;
        let mut found = None;
        self.subject.values(context, &mut |value| {
            let own = own.get_or_insert_with(|| facts.own_domains());
            found = match (found, recipient::judge(value, own)) {
                (_, Some(Recipient::External)) => Some(Recipient::External),
                (Some(Recipient::Unknown), _) | (_, Some(Recipient::Unknown)) => Some(Recipient::Unknown),
                (before, now) => now.or(before),
            };
            found == Some(Recipient::External)
        });
        found
    }
}

/// What a value is handed to; it answers true to stop.
type ValueVisitor<'t> = &'t mut dyn FnMut(&str) -> bool;

impl ConditionSubject {
    fn values(&self, context: &mut MatchContext<'_, impl Facts>, take: ValueVisitor<'_>) -> bool {
        let facts = context.facts;
        match self {
            Self::Parameter(names) => facts.any_parameter(names, take),
            Self::InboxRule(names) => facts.any_inbox_rule_part(names, take),
            Self::Property(names) => facts.any_property(names, take),
            Self::Modified(names) => facts.any_modified(names, &mut |entry| take(entry.now())),
            Self::Field(paths) => paths.iter().any(|path| facts.any_field(path, take)),
            Self::UserAgent => facts.user_agent().is_some_and(|agent| take(&agent)),
            Self::Fact(names) => names.iter().any(|name| facts.any_fact(*name, take)),
            _ => false,
        }
    }
}

impl ValueTest {
    fn holds(&self, value: &str, more_folders: &[String]) -> bool {
        match self {
            Self::Present => true,
            Self::Is(Test::Set) => is_set(value),
            Self::Is(Test::Blank) => !is_set(value),
            Self::Is(Test::True) => is_true(value),
            Self::Is(Test::False) => is_false(value),
            Self::Is(Test::HiddenFolder) => mail::is_hidden_folder(value, more_folders),
            Self::Is(Test::OddName) => mail::is_odd_name(value),
            // Decided over all values together, or by the event.
            Self::Is(Test::External | Test::Internal | Test::Undecided | Test::Actor) => false,
            Self::Like(patterns) => Pattern::any(patterns, value),
            Self::Between(low, high) => leading_number(value).is_some_and(|number| (*low..=*high).contains(&number)),
            // Asked of the entry, not of a value.
            Self::Changed { .. } => false,
        }
    }
}

fn changed(entry: &dyn Modification, change: Option<RuleChange>) -> bool {
    match change {
        None => true,
        Some(RuleChange::Any) => !entry.is_same(),
        Some(RuleChange::Emptied) => matches!(entry.entries(), (1.., 0)),
        Some(RuleChange::Grown) => {
            let (before, now) = entry.entries();
            now > before
        }
    }
}

/// Without the white space at both ends. Nearly every value has none.
fn trimmed(value: &str) -> &str {
    match value.as_bytes() {
        [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~'] => value,
        _ => value.trim(),
    }
}

fn is_set(value: &str) -> bool {
    let value = trimmed(trimmed(value).trim_matches(['"', '\'']));
    !value.is_empty() && !["$null", "null", "<null>"].iter().any(|nothing| value.eq_ignore_ascii_case(nothing))
}

/// Units that a size is written in, and their bytes.
const UNITS: [(&str, f64); 4] = [("KB", 1024.0), ("MB", 1_048_576.0), ("GB", 1_073_741_824.0), ("TB", 1.1e12)];

/// The number a text begins with: `1000`, `1.0`, `1 B (1 bytes)`; of `10 KB` and its like the bytes.
fn leading_number(text: &str) -> Option<f64> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim_start().split([' ', '(']).next().unwrap_or_default();
    let bytes = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map_or(1.0, |(_, bytes)| *bytes);
    Some(number * bytes)
}

pub(super) fn compile(table: &toml::Table) -> Result<Compiled, RuleError> {
    let id = table.get("id").and_then(toml::Value::as_str).unwrap_or("without id").to_owned();
    let wrong = |what: String| RuleError::Condition { id: id.clone(), what };
    let rule: Rule = table.clone().try_into().map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?;
    if rule.operations.is_empty() && rule.record_types.is_empty() {
        return Err(wrong("`operations` or `record_types` must name something".to_owned()));
    }
    if let Some(name) = rule.operations.iter().find(|name| name.trim_end_matches('*').contains('*')) {
        return Err(wrong(format!(
            "`{name}`: in `operations` a `*` stands at the end only; test `field = [\"Operation\"]` instead"
        )));
    }
    let all = |conditions: &[Condition]| -> Result<Vec<ConditionCheck>, RuleError> {
        conditions.iter().map(|condition| check(condition, 0).map_err(wrong)).collect()
    };
    let mut cases = Vec::new();
    for case in &rule.cases {
        cases.push(all(&case.when)?);
    }
    let (when, unless, show) = (all(&rule.when)?, all(&rule.unless)?, all(&rule.show)?);
    Ok(Compiled { when, unless, cases, show, replaces: Vec::new(), rule })
}

/// How deep `any` and `all` may be nested.
const NESTING_MAX: usize = 8;

fn check(condition: &Condition, depth: usize) -> Result<ConditionCheck, String> {
    if depth > NESTING_MAX {
        return Err("`any` and `all` are nested too deeply".to_owned());
    }
    let nested = |conditions: &[Condition]| -> Result<Vec<ConditionCheck>, String> {
        conditions.iter().map(|condition| check(condition, depth + 1)).collect()
    };
    let mut subjects = Vec::new();
    let mut add = |given: bool, subject: ConditionSubject| {
        if given {
            subjects.push(subject);
        }
    };
    let c = condition;
    add(!c.parameter.is_empty(), ConditionSubject::Parameter(Names::new(&c.parameter)));
    add(!c.inbox_rule.is_empty(), ConditionSubject::InboxRule(Names::new(&c.inbox_rule)));
    add(!c.property.is_empty(), ConditionSubject::Property(Names::new(&c.property)));
    add(!c.modified.is_empty(), ConditionSubject::Modified(Names::new(&c.modified)));
    add(!c.field.is_empty(), ConditionSubject::Field(c.field.clone()));
    add(!c.user.is_empty(), ConditionSubject::Field(vec!["UserId".to_owned()]));
    add(!c.user_type.is_empty(), ConditionSubject::UserType(c.user_type.clone()));
    add(!c.record_type.is_empty(), ConditionSubject::RecordType(c.record_type.clone()));
    add(!c.user_agent.is_empty(), ConditionSubject::UserAgent);
    if let Some(kind) = c.actor {
        add(true, ConditionSubject::Actor(kind));
    }
    add(!c.fact.is_empty(), ConditionSubject::Fact(c.fact.clone()));
    add(!c.ai.is_empty(), ConditionSubject::Ai(c.ai.clone()));
    add(!c.any.is_empty(), ConditionSubject::Any(nested(&c.any)?));
    add(!c.all.is_empty(), ConditionSubject::All(nested(&c.all)?));
    if !c.address.is_empty() {
        let network = |text: &String| Network::parse(text).ok_or_else(|| format!("`{text}` is no address or network"));
        add(true, ConditionSubject::Address(c.address.iter().map(network).collect::<Result<_, _>>()?));
    }
    let mut subjects = subjects.into_iter();
    let (Some(subject), None) = (subjects.next(), subjects.next()) else {
        return Err(
            "a condition has exactly one of `parameter`, `inbox_rule`, `property`, `modified`, `field`, `user`, \
                    `user_type`, `record_type`, `user_agent`, `address`, `actor`, `fact`, `ai`, `any`, `all`"
                .to_owned(),
        );
    };
    Ok(ConditionCheck { test: value_test(c, &subject)?, subject, not: c.not })
}

fn value_test(c: &Condition, subject: &ConditionSubject) -> Result<ValueTest, String> {
    let own_patterns = if c.user.is_empty() { &c.user_agent } else { &c.user };
    let numbers = c.at_least.is_some() || c.at_most.is_some();
    let changed = c.change.is_some() || !c.old.is_empty();
    let given = [c.is.is_some(), !c.like.is_empty() && !changed, numbers, changed, !own_patterns.is_empty()];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(
            "a condition has one test: `is`, `like`, `at_least` and `at_most`, or `change` and `old`".to_owned()
        );
    }
    let has_value = matches!(
        subject,
        ConditionSubject::Parameter(_)
            | ConditionSubject::InboxRule(_)
            | ConditionSubject::Property(_)
            | ConditionSubject::Modified(_)
            | ConditionSubject::Field(_)
            | ConditionSubject::UserAgent
            | ConditionSubject::Fact(_)
    );
    if !has_value && given.contains(&true) {
        return Err("this subject has no value to test".to_owned());
    }
    if changed && !matches!(subject, ConditionSubject::Modified(_)) {
        return Err("`change` and `old` are for `modified` only".to_owned());
    }
    Ok(if !own_patterns.is_empty() {
        ValueTest::Like(patterns(own_patterns))
    } else if changed {
        ValueTest::Changed { change: c.change, old: patterns(&c.old), new: patterns(&c.like) }
    } else if let Some(test) = c.is {
        ValueTest::Is(test)
    } else if numbers {
        ValueTest::Between(c.at_least.unwrap_or(f64::NEG_INFINITY), c.at_most.unwrap_or(f64::INFINITY))
    } else if !c.like.is_empty() {
        ValueTest::Like(patterns(&c.like))
    } else {
        ValueTest::Present
    })
}

fn patterns(texts: &[String]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_with_its_unit() {
        for (text, expected) in [
            ("1000", Some(1000.0)),
            (" 1.5 ", Some(1.5)),
            ("1 B (1 bytes)", Some(1.0)),
            ("10 KB (10,240 bytes)", Some(10_240.0)),
            ("1mb", Some(1_048_576.0)),
            ("7 items", Some(7.0)),
            ("KB", None),
            ("", None),
        ] {
            assert_eq!(leading_number(text), expected, "{text}");
        }
    }

    #[test]
    fn nothing_is_written_in_several_ways() {
        assert!(["", " ", "\"\"", "$null", "$NULL", "null", "<null>"].iter().all(|value| !is_set(value)));
        assert!(["a", "0", "[]", "false"].iter().all(|value| is_set(value)));
    }
}
