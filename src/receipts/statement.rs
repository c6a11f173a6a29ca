//! The signed statement of a part: writes and reads its text, which `docs/receipts.md` defines.
//!
//! Each statement has exactly one text: the reader writes it again and compares, so that an equivalent but different
//! text is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::leaves::leaves_of;
use super::merkle::{Hash, sha256};
use super::note::{NoteError, Signer, VerifierKey};
use crate::model::{ContentType, TenantId, Timestamp};

/// The prefix of a statement's first line.
const ORIGIN: &str = "m365-audit/receipts/";
/// The prefix of a head's first line.
const HEAD_ORIGIN: &str = "m365-audit/receipts-head/";
/// The maximum of rules that one statement names.
pub const RULES_NAMED_MAX: usize = 200;
/// The class of an entry: delivered.
pub const DELIVERED: u8 = 0;
/// Set aside.
pub const SET_ASIDE: u8 = 1;
/// On hold.
pub const HELD: u8 = 2;
/// Dropped by a rule that the statement does not name.
pub const DROPPED: u8 = 3;
/// Dropped by the first rule that the statement names; the others follow.
pub const DROPPED_BY_FIRST: u8 = 16;
/// The longest name of a rule that a statement has.
const RULE_BYTES_MAX: usize = 128;
const HOUR_SECS: i64 = 3600;

/// The outcome of an event in an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was put on hold, until it is known whether data loss prevention flagged it.
    Held,
    /// Every receiver refused it alone.
    SetAside,
    /// A rule dropped it.
    Dropped,
    /// It was delivered.
    Delivered,
}

impl Outcome {
    /// The outcome for the class of an entry.
    pub fn of_class(class: u8) -> Option<Self> {
        match class {
            DELIVERED => Some(Self::Delivered),
            SET_ASIDE => Some(Self::SetAside),
            HELD => Some(Self::Held),
            DROPPED | DROPPED_BY_FIRST.. => Some(Self::Dropped),
            _ => None,
        }
    }
}

/// One hour of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(Timestamp);

impl Hour {
    /// The hour that contains this moment.
    pub fn of(moment: Timestamp) -> Self {
        let seconds = moment.as_second() - i64::from(moment.subsec_nanosecond() < 0);
        let start = seconds.div_euclid(HOUR_SECS) * HOUR_SECS;
        Self(Timestamp::from_second(start).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// Its first moment.
    pub fn start(self) -> Timestamp {
        self.0
    }

    /// The hour after it, where its first moment is the end of this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(SignedDuration::from_secs(HOUR_SECS)).unwrap_or(self.0))
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Hour {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let moment: Timestamp = text.parse().map_err(drop)?;
        let hour = Self::of(moment);
        if hour.0 == moment && hour.to_string() == text { Ok(hour) } else { Err(()) }
    }
}

impl Serialize for Hour {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hour {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom(format!("`{text}` is no whole hour of UTC")))
    }
}

/// The counts of one content type in a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Entries of events that were delivered.
    pub delivered: u64,
    /// Entries of events whose record was set aside.
    pub set_aside: u64,
    /// Entries of reads that were put on hold.
    pub held: u64,
    /// Entries of events that a rule dropped.
    pub dropped: u64,
    /// Events that were delivered before; they have no entry.
    pub repeated: u64,
    /// Events without `Id`, with any outcome; they have no entry.
    pub without_id: u64,
}

impl Counts {
    const NAMES: [&str; 6] = ["delivered", "set_aside", "held", "dropped", "repeated", "without_id"];

    fn values(&self) -> [u64; 6] {
        [self.delivered, self.set_aside, self.held, self.dropped, self.repeated, self.without_id]
    }

    /// Counts one more entry of this class; returns whether the class exists.
    pub fn add_entry(&mut self, class: u8) -> bool {
        let count = match class {
            DELIVERED => &mut self.delivered,
            SET_ASIDE => &mut self.set_aside,
            HELD => &mut self.held,
            DROPPED | DROPPED_BY_FIRST.. => &mut self.dropped,
            _ => return false,
        };
        *count = count.saturating_add(1);
        true
    }

    /// The sum of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let [delivered, set_aside, held, dropped, repeated, without_id] = self.values();
        Self {
            delivered: delivered.saturating_add(other.delivered),
            set_aside: set_aside.saturating_add(other.set_aside),
            held: held.saturating_add(other.held),
            dropped: dropped.saturating_add(other.dropped),
            repeated: repeated.saturating_add(other.repeated),
            without_id: without_id.saturating_add(other.without_id),
        }
    }

    /// Whether all are zero.
    pub fn is_empty(&self) -> bool {
        self.values().iter().all(|count| *count == 0)
    }
}

/// The signed statement of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Whose events.
    pub tenant: TenantId,
    /// How many entries.
    pub entries: u64,
    /// The root of the tree over them.
    pub root: Hash,
    /// The number of the part: one more than that of the part before it.
    pub seq: u64,
    /// The hour it belongs to: that in which its events were settled, not that in which they happened.
    pub hour: Hour,
    /// Its number in the hour.
    pub part: u32,
    /// Whether it is the hour's last.
    pub last: bool,
    /// Whether receipts begin in it, for the first time or again: events delivered before that, since the previous
    /// part, have none.
    pub begins: bool,
    /// [`Statement::hash`] of the part before it; zeros for the first.
    pub previous: Hash,
    /// The rules that its entries name, in ascending order.
    pub rules: Vec<Arc<str>>,
    /// Its counts, of each content type that has any.
    pub counts: BTreeMap<ContentType, Counts>,
}

/// Why a text is not a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// The note around it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text itself.
    #[error("it is signed and is no statement this build can read: {0}")]
    Form(&'static str),
}

/// Opens a note that one of these keys signed; returns the index of that key as well.
///
/// # Errors
/// The fault of the note, or that none of the keys signed it.
pub fn open_by<T>(
    keys: &[VerifierKey],
    open: impl Fn(&VerifierKey) -> Result<T, StatementError>,
) -> Result<(T, usize), StatementError> {
    let mut other = StatementError::Form("there is no key to verify it with");
    for (at, key) in keys.iter().enumerate().rev() {
        match open(key) {
            Err(error @ StatementError::Note(NoteError::OtherKey { .. })) => other = error,
            opened => return opened.map(|opened| (opened, at)),
        }
    }
    Err(other)
}

impl Statement {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let last = if self.last { " last" } else { "" };
        let begins = if self.begins { " begins" } else { "" };
        let mut text = format!(
            "{ORIGIN}{}\n{}\n{}\nentries {}\nseq {}\nhour {}\npart {}{last}{begins}\nprevious {}\n",
            self.tenant,
            leaves_of(self.entries),
            STANDARD.encode(self.root),
            self.entries,
            self.seq,
            self.hour,
            self.part,
            STANDARD.encode(self.previous)
        );
        for (index, rule) in self.rules.iter().enumerate() {
            text.push_str(&format!("rule {index} {rule}\n"));
        }
        let mut counts: Vec<_> = self.counts.iter().filter(|(_, counts)| !counts.is_empty()).collect();
        counts.sort_unstable_by_key(|(content_type, _)| content_type.as_str());
        for (content_type, counts) in counts {
            text.push_str(&format!("count {content_type}"));
            for (name, value) in Counts::NAMES.iter().zip(counts.values()) {
                text.push_str(&format!(" {name} {value}"));
            }
            text.push('\n');
        }
        text
    }

    /// SHA-256 of that text.
    pub fn hash(&self) -> Hash {
        sha256(self.text().as_bytes())
    }

    /// The signed note.
    pub fn sign(&self, signer: &Signer) -> String {
        signer.sign(&self.text())
    }

    /// The statement of a note that this key signed.
    ///
    /// # Errors
    /// When the note was not signed by that key or was changed, and when it is not a statement.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, StatementError> {
        Self::parse(key.open(note)?)
    }

    /// The statement of a text that was signed.
    ///
    /// # Errors
    /// When it is not a statement, or not in its canonical form.
    pub fn parse(text: &str) -> Result<Self, StatementError> {
        let statement = Self::read(text).map_err(StatementError::Form)?;
        if statement.text() != text {
            return Err(StatementError::Form("it is not written as a statement is"));
        }
        Ok(statement)
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        let mut lines = LineReader(text.lines());
        let tenant = lines.after(ORIGIN)?.parse().map_err(|_| "its first line does not end in a GUID")?;
        // The number of leaves, which must match the entries.
        number(lines.after("")?)?;
        let root = hash(lines.after("")?)?;
        let entries = number(lines.after("entries ")?)?;
        let seq = number(lines.after("seq ")?)?;
        let hour = lines.after("hour ")?.parse().map_err(|()| "its hour is none")?;
        let part = lines.after("part ")?;
        let (part, begins) = match part.strip_suffix(" begins") {
            Some(part) => (part, true),
            None => (part, false),
        };
        let (part, last) = match part.strip_suffix(" last") {
            Some(part) => (part, true),
            None => (part, false),
        };
        let part = part.parse().map_err(|_| "its part is no number")?;
        let previous = hash(lines.after("previous ")?)?;
        let (mut rules, mut counts) = (Vec::<Arc<str>>::new(), BTreeMap::new());
        for line in lines.0 {
            if let Some(rule) = line.strip_prefix("rule ").filter(|_| counts.is_empty()) {
                let (index, rule) = rule.split_once(' ').ok_or("a line of a rule has no number")?;
                if number(index)? != rules.len() as u64 {
                    return Err("its rules are not numbered one after the other");
                }
                if !is_rule_name(rule) || rules.last().is_some_and(|before| **before >= *rule) {
                    return Err("its rules are not in order");
                }
                rules.push(rule.into());
            } else if let Some(line) = line.strip_prefix("count ") {
                let (content_type, read) = read_counts(line)?;
                if read.is_empty() || counts.insert(content_type, read).is_some() {
                    return Err("it counts a content type twice, or nothing");
                }
            } else {
                return Err("it has a line of no known kind");
            }
        }
        if rules.len() > RULES_NAMED_MAX {
            return Err("it names too many rules");
        }
        Ok(Self { tenant, entries, root, seq, hour, part, last, begins, previous, rules, counts })
    }

    /// Whether an entry of this part may have this class.
    pub fn has_class(&self, class: u8) -> bool {
        match class.checked_sub(DROPPED_BY_FIRST) {
            Some(index) => usize::from(index) < self.rules.len(),
            None => class <= DROPPED,
        }
    }

    /// The rule that dropped entries of this class, if it is named.
    pub fn rule(&self, class: u8) -> Option<&Arc<str>> {
        self.rules.get(usize::from(class.checked_sub(DROPPED_BY_FIRST)?))
    }

    /// Its counts of all content types together.
    pub fn counts_in_all(&self) -> Counts {
        self.counts.values().fold(Counts::default(), |all, counts| all.and(*counts))
    }
}

/// Whether a statement can name this rule; others are counted as unnamed rules.
pub fn is_rule_name(rule: &str) -> bool {
    (1..=RULE_BYTES_MAX).contains(&rule.len()) && rule.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The last statement of an exported directory: where its parts begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptHead {
    /// Whose events.
    pub tenant: TenantId,
    /// How many leaves the tree of the last part has.
    pub leaves: u64,
    /// The root of the last part.
    pub root: Hash,
    /// The least number of a part.
    pub first: u64,
    /// The greatest.
    pub last: u64,
    /// [`Statement::hash`] of the last part.
    pub previous: Hash,
    /// When the directory was written.
    pub exported: Timestamp,
}

impl ReceiptHead {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!(
            "{HEAD_ORIGIN}{}\n{}\n{}\nfirst {}\nlast {}\nprevious {}\nexported {}\n",
            self.tenant,
            self.leaves,
            STANDARD.encode(self.root),
            self.first,
            self.last,
            STANDARD.encode(self.previous),
            self.exported
        )
    }

    /// The signed note.
    pub fn sign(&self, signer: &Signer) -> String {
        signer.sign(&self.text())
    }

    /// The head of a note that this key signed.
    ///
    /// # Errors
    /// When the note was not signed by that key or was changed, and when it is not a head.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, StatementError> {
        let text = key.open(note)?;
        let head = Self::read(text).map_err(StatementError::Form)?;
        if head.text() != text {
            return Err(StatementError::Form("it is not written as a head is"));
        }
        Ok(head)
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        let mut lines = LineReader(text.lines());
        Ok(Self {
            tenant: lines.after(HEAD_ORIGIN)?.parse().map_err(|_| "its first line does not end in a GUID")?,
            leaves: number(lines.after("")?)?,
            root: hash(lines.after("")?)?,
            first: number(lines.after("first ")?)?,
            last: number(lines.after("last ")?)?,
            previous: hash(lines.after("previous ")?)?,
            exported: lines.after("exported ")?.parse().map_err(|_| "its time is none")?,
        })
    }
}

struct LineReader<'t>(std::str::Lines<'t>);

impl<'t> LineReader<'t> {
    /// The rest of the next line, which must begin with `begin`.
    fn after(&mut self, begin: &str) -> Result<&'t str, &'static str> {
        let line = self.0.next().ok_or("it ends early")?;
        line.strip_prefix(begin).ok_or("a line is not what stands in its place")
    }
}

fn number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "a number is none")
}

fn hash(text: &str) -> Result<Hash, &'static str> {
    let bytes = STANDARD.decode(text).map_err(|_| "a hash is not base64")?;
    bytes.try_into().map_err(|_| "a hash has not 32 bytes")
}

fn read_counts(line: &str) -> Result<(ContentType, Counts), &'static str> {
    let mut words = line.split(' ');
    let content_type = words.next().and_then(|word| word.parse().ok()).ok_or("it names an unknown content type")?;
    let mut values = [0; 6];
    for (name, value) in Counts::NAMES.iter().zip(&mut values) {
        if words.next() != Some(name) {
            return Err("a line of counts does not name them in their order");
        }
        *value = number(words.next().ok_or("a line of counts ends early")?)?;
    }
    let [delivered, set_aside, held, dropped, repeated, without_id] = values;
    Ok((content_type, Counts { delivered, set_aside, held, dropped, repeated, without_id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            tenant: "6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11".parse().unwrap(),
            entries: 3,
            root: [7; 32],
            seq: 12,
            hour: "2026-11-30T10:00:00Z".parse().unwrap(),
            part: 1,
            last: true,
            begins: true,
            previous: [9; 32],
            rules: vec!["a-rule".into(), "b-rule".into()],
            counts: BTreeMap::from([
                (ContentType::SharePoint, Counts { repeated: 2, ..Counts::default() }),
                (ContentType::General, Counts { delivered: 1, dropped: 2, ..Counts::default() }),
            ]),
        }
    }

    #[test]
    fn a_statement_comes_back_from_its_text_and_from_no_other() {
        let text = statement().text();
        assert_eq!(Statement::parse(&text), Ok(statement()));
        for cut in 0..text.len() {
            assert!(Statement::parse(&text[..cut]).is_err() || text[..cut].ends_with('\n'), "cut at {cut}");
        }
        for (from, to) in [
            ("seq 12", "seq 012"),
            ("seq 12", "seq +12"),
            ("10:00:00Z", "10:00:01Z"),
            ("10:00:00Z", "10:00:00+00:00"),
            ("part 1 last begins", "part 1 begins last"),
            ("6f1d", "6F1D"),
            ("rule 1 b-rule", "rule 1 a-rule"),
            ("rule 1 b-rule", "rule 1 b rule"),
            ("rule 1 b-rule", "rule 2 b-rule"),
            ("count Audit.General", "count Audit.Other"),
            ("held 0", "held  0"),
            ("repeated 2 without_id 0\n", "repeated 0 without_id 0\n"),
            ("repeated 2 without_id 0\n", "repeated 2 without_id 0\nmore\n"),
            ("seq 12\n", "seq 12\r\n"),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(Statement::parse(&text.replace(from, to)).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn a_head_comes_back_from_its_note() {
        let signer = Signer::from_pkcs8(&Signer::generate_pkcs8().unwrap()).unwrap();
        let Statement { tenant, entries, root, previous, .. } = statement();
        let exported = "2026-11-30T10:00:00.123Z".parse().unwrap();
        let head = ReceiptHead { tenant, leaves: leaves_of(entries), root, first: 3, last: 12, previous, exported };
        assert_eq!(ReceiptHead::open(&head.sign(&signer), signer.key()), Ok(head.clone()));
        assert!(Statement::open(&head.sign(&signer), signer.key()).is_err(), "a head is no statement");
        assert!(ReceiptHead::open(&statement().sign(&signer), signer.key()).is_err(), "a statement is no head");
    }

    #[test]
    fn an_hour_is_that_of_the_moment() {
        let hour = |text: &str| Hour::of(text.parse().unwrap()).to_string();
        assert_eq!(hour("2026-11-30T10:59:59.999999999Z"), "2026-11-30T10:00:00Z");
        assert_eq!(hour("2026-11-30T11:00:00Z"), "2026-11-30T11:00:00Z");
        assert_eq!(hour("1969-12-31T23:59:59.5Z"), "1969-12-31T23:00:00Z");
        assert_eq!(Hour::of("2026-12-31T23:10:00Z".parse().unwrap()).next().to_string(), "2027-01-01T00:00:00Z");
        assert_eq!(Hour::of(Timestamp::MAX).next(), Hour::of(Timestamp::MAX).next().next());
    }

    #[test]
    fn a_class_is_one_of_four_or_a_rule_that_is_named() {
        let classes: Vec<u8> = (0..=255).filter(|class| statement().has_class(*class)).collect();
        assert_eq!(classes, [0, 1, 2, 3, 16, 17]);
        assert_eq!(statement().rule(17).map(|rule| &**rule), Some("b-rule"));
        assert_eq!(statement().rule(3), None);
    }
}
