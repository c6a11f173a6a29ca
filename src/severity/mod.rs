//! Severity: how much an event matters, and which rules say so.
//!
//! The rules are data under `rules/`; [`engine`] reads them. The content of an event belongs to the implementation of
//! [`Facts`]: this module sees a folded operation name, parameters and a flag, never the form of a record.

pub mod engine;
pub mod mail;
mod network;
pub mod operation;
pub mod pattern;
pub mod recipient;
pub mod tables;
pub mod words;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use engine::{ActorKind, AiSignal, Compiled, Fact, Rule, RuleError, RuleSet, RuleVerdict};
use pattern::Names;
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

    /// The severity of a record's word.
    pub fn of_word(word: &str) -> Option<Severity> {
        let all = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];
        all.into_iter().find(|severity| severity.as_str() == word)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A modified property's values. They may have kilobytes, so each method answers one question.
pub trait Modification {
    /// The value before; empty where absent.
    fn before(&self) -> &str;
    /// The value now; empty where absent.
    fn now(&self) -> &str;
    /// Whether both are the same.
    fn is_same(&self) -> bool;
    /// The number of entries in the old and the new value: the objects or elements of a list, 1 for other text, 0 for
    /// nothing.
    fn entries(&self) -> (usize, usize);
}

/// The facts about an event that rules use. A fact is derived only if a rule about the operation uses it.
pub trait Facts {
    /// Passes the values of the cmdlet parameters that match `named` to `test` until it returns true; returns whether
    /// it did. A parameter with several values is passed once for each.
    fn any_parameter(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool;
    /// The same for the parts of an inbox rule, under the names of `New-InboxRule`'s parameters, whichever client
    /// created it.
    fn any_inbox_rule_part(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool;
    /// The same for pairs in the lists of properties other than parameters and modified ones.
    fn any_property(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool;
    /// The same for modified properties.
    fn any_modified(&self, named: &Names, test: &mut dyn FnMut(&dyn Modification) -> bool) -> bool;
    /// The same for the values at a path of members (`Item.ParentFolder.Name`), lists looked through.
    fn any_field(&self, path: &str, test: &mut dyn FnMut(&str) -> bool) -> bool;
    /// `RecordType` as received.
    fn record_type(&self) -> Option<i64>;
    /// The record type that the event resembles, if its own is missing or unknown.
    fn kin(&self) -> Option<i64> {
        self.record_type()
    }
    /// `UserType`.
    fn user_type(&self) -> Option<i64>;
    /// The client's own name for itself.
    fn user_agent(&self) -> Option<Cow<'_, str>>;
    /// The actor's address.
    fn address(&self) -> Option<IpAddr>;
    /// Whether a text names the actor.
    fn is_actor(&self, text: &str) -> bool;
    /// Whether the actor is of a kind.
    fn actor_is(&self, kind: ActorKind) -> bool;
    /// Passes the values of a fact, which has the name that records use, to `test` until it returns true.
    fn any_fact(&self, _: Fact, _: &mut dyn FnMut(&str) -> bool) -> bool {
        false
    }
    /// Whether a signal fired in an AI application.
    fn ai_signal(&self, _: AiSignal) -> bool {
        false
    }
    /// Whether the record says that the operation failed.
    fn failed(&self) -> bool;
    /// The domains known to be the organisation's.
    fn own_domains(&self) -> Domains;
    /// Whether the record itself says that data loss prevention flagged it.
    fn flagged_by_dlp(&self) -> bool;
}

/// One rule that matched.
#[derive(Debug, Clone, Copy)]
pub struct RuleMatch<'r> {
    compiled: &'r Compiled,
    /// Its verdict on the event, lowered if the operation failed and the rule allows it.
    pub verdict: RuleVerdict,
    /// Whether the operation's failure lowered it.
    pub lowered: bool,
    /// The reason of the rule, or of the case that holds.
    pub reason: &'r str,
    /// The case that decided, if one did.
    pub case: Option<&'r engine::Case>,
}

impl<'r> RuleMatch<'r> {
    /// The rule.
    pub fn rule(&self) -> &'r Rule {
        &self.compiled.rule
    }

    /// The values that its reason shows.
    pub fn shown(&self, facts: &impl Facts) -> Vec<String> {
        self.compiled.shown(facts, &[])
    }
}

/// The result of the rules for an event.
#[derive(Debug, Clone, Default)]
pub struct Assessment<'r> {
    /// The rules that matched, in the order of the tables.
    pub matches: Vec<RuleMatch<'r>>,
    /// Rules that matched but were replaced by a narrower one.
    pub replaced: Vec<&'r Rule>,
    /// The rule that drops the event: only `drop` rules matched, and DLP did not flag the record.
    pub drop: Option<&'r Rule>,
    /// The minimum severity, regardless of the rules: for a read of a flagged item.
    pub at_least: Option<Severity>,
}

impl Assessment<'_> {
    /// The highest severity of the rules that matched, at least `at_least`; info if none matched.
    pub fn severity(&self) -> Severity {
        let highest = self.matches.iter().filter_map(|found| found.verdict.severity()).max();
        highest.max(self.at_least).unwrap_or(Severity::Info)
    }
}

/// The rules a source applies.
#[derive(Debug, Clone)]
pub struct Rules {
    set: RuleSet,
    refine: bool,
    /// Folded.
    hidden_folders: Vec<String>,
}

impl Rules {
    /// The built-in rules without the refinements that contradict the specification.
    pub fn built_in() -> Arc<Rules> {
        BUILT_IN.clone()
    }

    /// No rules at all: every event is info.
    pub fn none() -> Rules {
        Rules { set: RuleSet::default(), refine: false, hidden_folders: Vec::new() }
    }

    /// The built-in rules with an operator's changes applied.
    ///
    /// # Errors
    /// A change that leaves no complete rule, with its index among the changes.
    pub fn with(refine: bool, hidden_folders: &[String], changes: &[toml::Table]) -> Result<Rules, (usize, RuleError)> {
        let mut tables = TABLES_PARSED.clone();
        tables::overlay(&mut tables, changes)?;
        let set = RuleSet::compile(&tables, refine).map_err(|error| (0, error))?;
        Ok(Rules { set, refine, hidden_folders: hidden_folders.iter().map(|name| mail::fold_name(name)).collect() })
    }

    /// All rules in force, in the order of the tables.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.set.rules()
    }

    /// Whether an event of this operation and record type may be dropped; false is certain and cheap.
    pub fn may_drop(&self, folded_operation: &str, record_type: Option<i64>) -> bool {
        self.set.about(folded_operation, record_type).any(Rule::can_drop)
    }

    /// Assesses an event by its folded operation name and its facts.
    ///
    /// Matching rules are independent and the highest wins. A failed operation lowers `medium` and above by one step,
    /// except for rules that describe a failure, and for rows of the specification unless refinements are on.
    pub fn assess(&self, folded_operation: &str, facts: &impl Facts) -> Assessment<'_> {
        let (mut matches, replaced) = self.set.matching(folded_operation, facts, &self.hidden_folders);
        if matches.is_empty() {
            return Assessment::default();
        }
        let lowers = |found: &RuleMatch<'_>| {
            !found.rule().failure_counts && (self.refine || !found.rule().spec) && found.verdict >= RuleVerdict::Medium
        };
        if matches.iter().any(lowers) && facts.failed() {
            for found in matches.iter_mut().filter(|found| lowers(found)) {
                found.verdict = found.verdict.one_below();
                found.lowered = true;
            }
        }
        let drops = |found: &&RuleMatch<'_>| found.verdict == RuleVerdict::Drop;
        let mut drop = None;
        if matches.iter().all(|found| drops(&found))
            && let Some(first) = matches.first()
            && !facts.flagged_by_dlp()
        {
            drop = Some(first.rule());
        }
        Assessment { matches, replaced, drop, at_least: None }
    }

    /// Why the event has its severity, for people: the reasons of the rules that matched, those of the highest first,
    /// each with the values that it shows. `None` when no rule matched.
    pub fn reason<'r>(&self, assessment: &Assessment<'r>, facts: &impl Facts) -> Option<Cow<'r, str>> {
        if let [only] = assessment.matches.as_slice()
            && !only.lowered
            && !only.compiled.shows()
        {
            return Some(Cow::Borrowed(only.reason));
        }
        if assessment.matches.is_empty() {
            return None;
        }
        // Most reasons with their values are shorter.
        const USUAL: usize = 192;
        let mut text = String::with_capacity(USUAL);
        let mut push = |found: &RuleMatch<'_>| {
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(found.reason);
            if found.compiled.shows() {
                let before = text.len();
                text.push_str(" (");
                let values = found.compiled.push_shown(facts, &self.hidden_folders, &mut text);
                match values.is_empty() {
                    true => text.truncate(before),
                    false => text.push(')'),
                }
            }
            if found.lowered {
                text.push_str(", but the operation failed");
            }
        };
        match assessment.matches.as_slice() {
            [only] => push(only),
            several => {
                let mut matches: Vec<&RuleMatch<'_>> = several.iter().collect();
                matches.sort_by_key(|found| std::cmp::Reverse(found.verdict));
                matches.into_iter().for_each(push);
            }
        }
        Some(Cow::Owned(text))
    }
}

/// The tables, in the order their rules are reported.
const TABLES: &[(&str, &str)] = &[
    ("Exchange: mail rules and forwarding", include_str!("rules/exchange_mail_rules.toml")),
    ("Exchange: access, delegation, mailbox actions", include_str!("rules/exchange_access.toml")),
    ("Exchange and Defender policies", include_str!("rules/exchange_policies.toml")),
    ("Audit-log tampering", include_str!("rules/audit_log.toml")),
    ("SharePoint and OneDrive", include_str!("rules/sharepoint.toml")),
    ("Entra ID: roles, apps, consent", include_str!("rules/entra_roles.toml")),
    ("Entra ID: authentication, users, policy, sign-in", include_str!("rules/entra_users.toml")),
    ("Teams", include_str!("rules/teams.toml")),
    ("Power Platform, Power BI, Forms", include_str!("rules/power_platform.toml")),
    ("Data loss prevention and labels", include_str!("rules/dlp.toml")),
    ("eDiscovery, retention, privileged looks", include_str!("rules/ediscovery.toml")),
    ("Defender, alerts, quarantine", include_str!("rules/defender.toml")),
    ("Copilot and other AI applications", include_str!("rules/ai.toml")),
];

// The tables are part of the program and a test compiles them, so an error here fails the test run.
static TABLES_PARSED: LazyLock<Vec<toml::Table>> = LazyLock::new(|| {
    let parse = |(area, text): &(&str, &str)| {
        tables::parse_table(text).unwrap_or_else(|error| panic!("built-in rules, {area}: {error}"))
    };
    TABLES.iter().flat_map(parse).collect()
});

static BUILT_IN: LazyLock<Arc<Rules>> = LazyLock::new(|| match Rules::with(false, &[], &[]) {
    Ok(rules) => Arc::new(rules),
    Err((_, error)) => panic!("built-in rules: {error}"),
});

/// All rules by area, including those that need `severity.refine`: for the reference page.
pub fn areas() -> Vec<(&'static str, Vec<Rule>)> {
    let rules = |text: &str| {
        let tables = tables::parse_table(text).unwrap_or_default();
        let set = RuleSet::compile(&tables, true).unwrap_or_default();
        set.rules().cloned().collect()
    };
    TABLES.iter().map(|(area, text)| (*area, rules(text))).collect()
}

/// Whether a text says true in one of the forms the feed uses: `True`, `true`, `1`, `$true`.
pub fn is_true(text: &str) -> bool {
    let text = text.trim();
    ["true", "$true", "1"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Whether a text says false in one of them.
pub fn is_false(text: &str) -> bool {
    let text = text.trim();
    ["false", "$false", "0"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct TestFacts {
        parameters: &'static [(&'static str, &'static str)],
        record_type: Option<i64>,
        failed: bool,
        flagged: bool,
        service: bool,
    }

    impl Facts for TestFacts {
        fn any_parameter(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool {
            self.parameters.iter().any(|(name, value)| named.matches(name) && test(value))
        }
        fn any_inbox_rule_part(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool {
            self.any_parameter(named, test)
        }
        fn any_property(&self, _: &Names, _: &mut dyn FnMut(&str) -> bool) -> bool {
            false
        }
        fn any_modified(&self, _: &Names, _: &mut dyn FnMut(&dyn Modification) -> bool) -> bool {
            false
        }
        fn any_field(&self, path: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
            self.parameters.iter().any(|(name, value)| *name == path && test(value))
        }
        fn record_type(&self) -> Option<i64> {
            self.record_type
        }
        fn user_type(&self) -> Option<i64> {
            None
        }
        fn user_agent(&self) -> Option<Cow<'_, str>> {
            None
        }
        fn address(&self) -> Option<IpAddr> {
            "203.0.113.7".parse().ok()
        }
        fn is_actor(&self, _: &str) -> bool {
            false
        }
        fn actor_is(&self, kind: ActorKind) -> bool {
            kind == if self.service { ActorKind::Service } else { ActorKind::Person }
        }
        fn failed(&self) -> bool {
            self.failed
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

    fn told(rules: &Rules, operation: &str, facts: &TestFacts) -> String {
        let assessment = rules.assess(operation, facts);
        let ids: Vec<&str> = assessment.matches.iter().map(|found| found.rule().id.as_str()).collect();
        let verdict = assessment.drop.map_or(assessment.severity().as_str(), |_| "drop");
        format!("{verdict} {}", ids.join("+"))
    }

    fn change(text: &str) -> Vec<toml::Table> {
        tables::parse_table(text).unwrap()
    }

    #[test]
    fn the_tables_compile_and_say_why() {
        let mut ids = Vec::new();
        for (area, rules) in areas() {
            assert!(!rules.is_empty(), "{area}");
            for rule in rules {
                assert!(!rule.reason.is_empty(), "{}", rule.id);
                assert!(rule.reference.is_some_and(|reference| reference.starts_with("https://")), "{}", rule.id);
                assert!(rule.technique.is_none_or(|technique| technique.starts_with('T')), "{}", rule.id);
                assert!(!ids.contains(&rule.id), "{}", rule.id);
                ids.push(rule.id);
            }
        }
        for (_, rules) in areas() {
            for rule in rules {
                assert!(rule.replaces.iter().all(|id| ids.contains(id)), "{}", rule.id);
            }
        }
    }

    #[test]
    fn the_highest_rule_wins_and_a_drop_needs_to_stand_alone_and_unflagged() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], bool, &'static str);
        const CASES: &[Case] = &[
            ("new-inboxrule", &[("Name", "work"), ("FORWARDTO", "a@example.net")], false, "high EX-01"),
            (
                "new-inboxrule",
                &[("forwardto", "a@contoso.com"), ("DeleteMessage", "True"), ("Name", "..")],
                false,
                "high EX-02+EX-03+EX-05",
            ),
            ("new-inboxrule", &[("Name", "work"), ("forwardto", "a@contoso.com")], false, "low EX-02"),
            (
                "new-inboxrule",
                &[("Name", "work"), ("forwardto", "a@contoso.com"), ("RedirectTo", "Jane")],
                false,
                "medium EX-02u",
            ),
            ("set-inboxrule", &[("Name", "work"), ("DeleteMessage", "$false")], false, "low EX-10"),
            ("set-inboxrule", &[("Name", "work"), ("MoveToFolder", "RSS Feeds")], false, "medium EX-04"),
            (
                "set-inboxrule",
                &[("Name", "work"), ("MoveToFolder", "RSS Feeds"), ("MarkAsRead", "True")],
                false,
                "high EX-04",
            ),
            (
                "set-inboxrule",
                &[("Name", "work"), ("WithinSizeRangeMinimum", "1 B (1 bytes)"), ("DeleteMessage", "True")],
                false,
                "high EX-03+EX-06",
            ),
            ("updateinboxrules", &[], false, "info EX-09"),
            ("set-mailbox", &[("ForwardingSmtpAddress", " ")], false, "low EX-15"),
            ("set-mailbox", &[("ForwardingSmtpAddress", "$null")], false, "low EX-15"),
            ("set-mailbox", &[("ForwardingSmtpAddress", "smtp:a@contoso.com")], false, "high EX-12"),
            (
                "set-mailbox",
                &[("ForwardingSmtpAddress", "a@b.example"), ("DeliverToMailboxAndForward", "False")],
                false,
                "high EX-13",
            ),
            ("set-mailbox", &[], false, "low EX-52"),
            ("add member to role", &[], false, "high ID-01"),
            ("add member to role outside of pim (permanent)", &[], false, "high ID-01"),
            ("add member to role completed (pim activation)", &[], false, "high ID-01"),
            ("add eligible member to role", &[], false, "high ID-02"),
            ("add-mailboxpermission", &[], false, "high EX-18"),
            ("anonymouslinkcreated", &[], false, "medium SP-01"),
            ("fileaccessed", &[], false, "drop SP-12"),
            ("fileaccessed", &[], true, "info SP-12"),
            ("mailitemsaccessed", &[], false, "drop EX-45"),
            ("get-anything", &[], false, "info ED-09"),
            ("", &[], false, "info "),
        ];
        for (operation, parameters, flagged, expected) in CASES {
            let facts = TestFacts { parameters, flagged: *flagged, ..TestFacts::default() };
            assert_eq!(told(&Rules::built_in(), operation, &facts), *expected, "{operation} {parameters:?}");
        }
    }

    #[test]
    fn refinements_are_off_until_asked_for() {
        let refined = Rules::with(true, &[], &[]).unwrap();
        let service = TestFacts { service: true, ..TestFacts::default() };
        assert_eq!(told(&refined, "add-mailboxpermission", &service), "info EX-19");
        assert_eq!(
            told(&refined, "add member to role completed (pim activation)", &TestFacts::default()),
            "high ID-01"
        );
        assert_eq!(told(&Rules::built_in(), "add-mailboxpermission", &service), "high EX-18");
        let large = TestFacts { parameters: &[("OperationCount", "1.0e2")], ..TestFacts::default() };
        assert_eq!(told(&refined, "mailitemsaccessed", &large), "medium EX-45+EX-46");
    }

    #[test]
    fn a_failure_lowers_what_is_not_the_specifications() {
        let failed = TestFacts { failed: true, ..TestFacts::default() };
        let refined = Rules::with(true, &[], &[]).unwrap();
        for (operation, plain, with_refinements) in [
            ("add member to role", "high ID-01", "medium ID-01"),
            ("add eligible member to role", "medium ID-02", "medium ID-02"),
            ("reset user password", "low ID-35", "low ID-35"),
            ("add group", "low ID-34", "low ID-34"),
            ("userloginfailed", "low ID-43", "low ID-43"),
        ] {
            assert_eq!(told(&Rules::built_in(), operation, &failed), plain);
            assert_eq!(told(&refined, operation, &failed), with_refinements);
        }
    }

    #[test]
    fn operators_add_override_and_disable_rules() {
        let rules = Rules::with(
            false,
            &["Nieuwsbrieven".to_owned()],
            &change(
                "[[rule]]\nid = \"EX-01\"\nseverity = \"critical\"\n[[rule]]\nid = \"SP-12\"\ndisable = true\n\
                 [[rule]]\nid = \"X-1\"\noperations = [\"New-Thing\"]\nrecord_types = [1]\nwhen = [{ address = [\"203.0.113.0/24\"] }]\n\
                 severity = \"drop\"\nreason = \"ours\"\nunless = [{ field = [\"Name\"], like = [\"keep*\"] }]\n",
            ),
        )
        .unwrap();
        let facts =
            TestFacts { parameters: &[("Name", "work"), ("ForwardTo", "a@example.net")], ..TestFacts::default() };
        assert_eq!(told(&rules, "new-inboxrule", &facts), "critical EX-01");
        assert_eq!(told(&rules, "fileaccessed", &TestFacts::default()), "info ");
        let thing = |parameters, record_type| TestFacts { parameters, record_type, ..TestFacts::default() };
        assert_eq!(told(&rules, "new-thing", &thing(&[], Some(1))), "drop X-1");
        assert_eq!(told(&rules, "new-thing", &thing(&[], Some(2))), "info ");
        assert_eq!(told(&rules, "new-thing", &thing(&[("Name", "keep this")], Some(1))), "info ");
        let folder =
            TestFacts { parameters: &[("Name", "work"), ("MoveToFolder", "nieuwsbrieven")], ..TestFacts::default() };
        assert_eq!(told(&rules, "new-inboxrule", &folder), "medium EX-04");
    }

    #[test]
    fn a_change_with_a_slip_is_refused_and_named() {
        for (text, expected) in [
            ("id = \"A\"", "rule `A` is not known"),
            ("id = \"A\"\nreason = \"r\"\nseverity = \"high\"", "`operations` or `record_types`"),
            ("id = \"EX-01\"\nseverity = \"hihg\"", "hihg"),
            ("id = \"EX-01\"\nwhen = [{ parameter = [\"A\"], is = \"there\" }]", "there"),
            ("id = \"EX-01\"\nwhen = [{ is = \"set\" }]", "exactly one of"),
            ("id = \"EX-01\"\nwhen = [{ parameter = [\"A\"], user = [\"B\"] }]", "exactly one of"),
            ("id = \"EX-01\"\nwhen = [{ parameter = [\"A\"], is = \"set\", like = [\"B\"] }]", "one test"),
            ("id = \"EX-01\"\nwhen = [{ address = [\"203.0.113.0/99\"] }]", "203.0.113.0/99"),
            ("id = \"EX-01\"\noperations = [\"*x\"]", "stands at the end only"),
            ("id = \"EX-01\"\ndisable = 1", "`disable`"),
            ("severity = \"high\"", "needs an `id`"),
        ] {
            let (index, error) = Rules::with(false, &[], &change(&format!("[[rule]]\n{text}"))).unwrap_err();
            assert!(index == 0 && error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_reason_names_addresses_outside_and_says_what_lowered_it() {
        let rules = Rules::built_in();
        let facts = TestFacts {
            parameters: &[("Name", "work"), ("ForwardTo", "a@contoso.com;b@example.net")],
            ..TestFacts::default()
        };
        let reason = rules.reason(&rules.assess("new-inboxrule", &facts), &facts).unwrap();
        assert_eq!(
            reason,
            "an inbox rule forwards or redirects mail outside the organisation's known domains (b@example.net)"
        );
        let facts = TestFacts { failed: true, ..TestFacts::default() };
        let reason = rules.reason(&rules.assess("reset user password", &facts), &facts).unwrap();
        assert_eq!(reason, "somebody else set a user's password, but the operation failed");
        assert_eq!(rules.reason(&Assessment::default(), &facts), None);
    }
}
