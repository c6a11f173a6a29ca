//! Reads back the texts that PowerShell makes of objects.
//!
//! `ConvertTo-Json` and `Export-Csv` write an object that lies too deep for them as the text `@{Name=ForwardTo;
//! Value=e@outside.example}`, a list of such objects as one text with a blank between two, and an object without a text
//! form as the name of its type (`System.Object[]`). Such a text has no quoting, so a value may contain `; `, `=` and
//! `}`. A text is read back if the feed's schema defines the keys of its object and they allow only one reading, or if
//! all keys differ; otherwise it stays and is reported. Windows PowerShell also writes a time as
//! `{"value":"\/Date(…)\/","DateTime":"…"}` and, in some cases, a list as `{"value":[…],"Count":2}`.

use std::sync::LazyLock;

use aho_corasick::packed::Searcher;

use super::restore::loss::Loss;
use super::restore::times::{TimeWriter, as_the_feed_writes};
use crate::normalise::json;

/// The maximum depth: the feed's events have four levels, and the input controls the depth.
const DEPTH_MAX: usize = 12;
/// Longest key of an object in text, in bytes.
const KEY_BYTES_MAX: usize = 64;

/// The keys that an object in text may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectShape {
    /// Entries of a list whose first key has a name as its value, which never contains `; `.
    Named(&'static [&'static str]),
    /// An object with these keys.
    Keys(&'static [&'static str]),
    /// Unknown keys.
    Any,
}

/// The members whose objects have known keys, after the "Office 365 Management Activity API schema".
const SHAPES: &[(&str, ObjectShape)] = &[
    ("Parameters", ObjectShape::Named(&["Name", "Value"])),
    ("ExtendedProperties", ObjectShape::Named(&["Name", "Value"])),
    ("OperationProperties", ObjectShape::Named(&["Name", "Value"])),
    ("ExtraProperties", ObjectShape::Named(&["Key", "Value"])),
    ("PropertyCollection", ObjectShape::Named(&["Name", "Value"])),
    ("DeviceProperties", ObjectShape::Named(&["Name", "Value"])),
    ("ModifiedProperties", ObjectShape::Named(&["Name", "NewValue", "OldValue"])),
    ("Actor", ObjectShape::Named(&["ID", "Type"])),
    ("Target", ObjectShape::Named(&["ID", "Type"])),
    (
        "AppAccessContext",
        ObjectShape::Keys(&[
            "AADSessionId",
            "APIId",
            "ClientAppId",
            "ClientAppName",
            "CorrelationId",
            "UniqueTokenId",
            "IssuedAtTime",
            "DeviceId",
            "UserObjectId",
            "AuthTime",
            "TokenIssuedAtTime",
            "IsManagedDevice",
            "TokenTenantId",
        ]),
    ),
];

/// Members with free text: a `@{` in one belongs to the text.
#[rustfmt::skip]
const TEXTS: &[&str] = &[
    "Subject", "Name", "ObjectId", "UserId", "UserAgent", "ClientInfoString", "SourceFileName", "SourceRelativeUrl",
    "DestinationFileName", "ListTitle", "ItemName", "FileName", "SearchQueryText", "QueryText", "Comments", "Title",
    "Message", "TeamName", "ChannelName", "GroupName", "ChatName", "FormName", "ReportName", "DatasetName",
];

fn is_text(member: &str) -> bool {
    TEXTS.iter().any(|known| known.eq_ignore_ascii_case(member))
}

fn shape_of(member: &str) -> ObjectShape {
    SHAPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(member)).map_or(ObjectShape::Any, |(_, shape)| *shape)
}

/// Whether an event's bytes may contain a text of PowerShell: one search in place of a walk.
pub(crate) fn may_be_flattened(event: &[u8]) -> bool {
    static SIGNS: LazyLock<Option<Searcher>> =
        LazyLock::new(|| Searcher::new(["System.", "@{", "/Date(", "\"value\""]));
    let begins = |at: usize| at.checked_sub(1).and_then(|before| event.get(before));
    // On a processor without this search, the walk finds them.
    SIGNS.as_ref().is_none_or(|signs| {
        signs
            .find_iter(event)
            .any(|sign| sign.pattern().as_usize() > 0 || matches!(begins(sign.start()), Some(b'"' | b'=')))
    })
}

/// Whether a text is the name of a type in place of its object.
fn is_type_name(text: &str) -> bool {
    let one = |word: &str| {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '`' | '[' | ']' | ',' | '=');
        let known = ["System.Collections.", "System.Management.Automation.", "System.Object", "Deserialized."];
        let list = word.starts_with("System.") && word.ends_with("[]");
        (list || known.iter().any(|start| word.starts_with(start))) && word.chars().all(is_name)
    };
    let text = text.trim();
    !text.is_empty() && text.split(' ').all(one)
}

/// An event that is itself an object in text: as JSON.
pub(crate) fn object(text: &str, losses: &mut Vec<Loss>) -> Option<String> {
    let mut reader = TextReader { losses, depth: 0 };
    reader.object(text.trim(), ObjectShape::Any, "")
}

/// A member's token with every possible text read back; `None` when nothing changed. The others are added to `losses`.
pub(crate) fn value(token: &str, member: &str, losses: &mut Vec<Loss>) -> Option<String> {
    TextReader { losses, depth: 0 }.value(token, member, member)
}

struct TextReader<'l> {
    losses: &'l mut Vec<Loss>,
    depth: usize,
}

impl TextReader<'_> {
    /// `member` is the name of the member that decides the shape, `path` is the place of the token.
    fn value(&mut self, token: &str, member: &str, path: &str) -> Option<String> {
        if self.depth >= DEPTH_MAX {
            return None;
        }
        self.depth += 1;
        let read = match token.as_bytes().first() {
            Some(b'"') => self.text(&json::scalar(token)?, member, path),
            Some(b'[') => self.list(token, member, path),
            Some(b'{') => self.wrapped(token, member, path).or_else(|| self.members(token, member, path)),
            _ => None,
        };
        self.depth -= 1;
        read
    }

    /// A text, which may be objects.
    fn text(&mut self, text: &str, member: &str, path: &str) -> Option<String> {
        let trimmed = text.trim();
        if is_type_name(trimmed) {
            self.losses.push(Loss::at(path, trimmed));
            return None;
        }
        if !trimmed.starts_with("@{") || is_text(member) {
            return trimmed
                .starts_with("/Date(")
                .then(|| as_the_feed_writes(trimmed, TimeWriter::Region))
                .flatten()
                .map(quoted);
        }
        let shape = shape_of(member);
        let parts = objects(trimmed, shape);
        let mut read = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let path = if parts.len() > 1 || matches!(shape, ObjectShape::Named(_)) {
                format!("{path}[{index}]")
            } else {
                path.to_owned()
            };
            match self.object(part, shape, &path) {
                Some(object) => read.push(object),
                None => self.losses.push(Loss::at(path, part)),
            }
        }
        if read.len() < parts.len() {
            return None;
        }
        match shape {
            ObjectShape::Keys(_) | ObjectShape::Any if read.len() == 1 => read.pop(),
            _ => Some(format!("[{}]", read.join(","))),
        }
    }

    /// Reports a text that is the name of a type; changes nothing.
    fn cut(&mut self, token: &str, path: &str) -> Option<String> {
        let text = json::scalar(token)?;
        if is_type_name(&text) {
            self.losses.push(Loss::at(path, text.trim()));
        }
        None
    }

    fn list(&mut self, token: &str, member: &str, path: &str) -> Option<String> {
        let (mut read, mut changed, mut index) = (Vec::new(), false, 0);
        let shape = shape_of(member);
        let mut elements = Vec::new();
        json::elements(token, |element| elements.push(element));
        for element in elements {
            let path = format!("{path}[{index}]");
            index += 1;
            let text = json::scalar(element).filter(|_| json::is_string(element));
            let object = match text.as_deref().map(str::trim) {
                Some(text) if text.starts_with("@{") => {
                    let object = self.object(text, shape, &path);
                    if object.is_none() {
                        self.losses.push(Loss::at(path, text));
                    }
                    object
                }
                _ => self.value(element, if element.starts_with('{') { member } else { "" }, &path),
            };
            changed |= object.is_some();
            read.push(object.map_or(std::borrow::Cow::Borrowed(element), std::borrow::Cow::Owned));
        }
        changed.then(|| format!("[{}]", read.join(",")))
    }

    /// A time or a list that PowerShell wrapped.
    fn wrapped(&mut self, token: &str, member: &str, path: &str) -> Option<String> {
        let value = json::get(token, "value")?;
        if json::is_string(value) && json::get(token, "DateTime").is_some() {
            let text = json::scalar(value)?;
            return as_the_feed_writes(&text, TimeWriter::Region).map(quoted);
        }
        let mut names = 0;
        json::members(token, |_, _| names += 1);
        let is_list = names == 2 && value.starts_with('[') && json::get(token, "Count").is_some_and(json::is_number);
        is_list.then(|| self.list(value, member, path).unwrap_or_else(|| value.to_owned()))
    }

    fn members(&mut self, token: &str, member: &str, path: &str) -> Option<String> {
        let mut members = Vec::new();
        json::scan_object(token, |key, value| members.push((key, value))).ok()?;
        let (mut read, mut changed) = (Vec::new(), false);
        for (key, value) in members {
            let name = json::unescape(key);
            let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            // An entry of such a list has only texts, which may begin with anything.
            let is_plain = matches!(shape_of(member), ObjectShape::Named(_)) && json::is_string(value);
            let restored = if is_plain { self.cut(value, &path) } else { self.value(value, &name, &path) };
            changed |= restored.is_some();
            read.push(format!("\"{key}\":{}", restored.as_deref().unwrap_or(value)));
        }
        changed.then(|| format!("{{{}}}", read.join(",")))
    }

    /// `@{…}` as a JSON object; `None` when it is truncated or ambiguous.
    fn object(&mut self, text: &str, shape: ObjectShape, path: &str) -> Option<String> {
        if self.depth >= DEPTH_MAX {
            return None;
        }
        let inside = text.strip_prefix("@{")?.strip_suffix('}')?;
        let fields = match shape {
            ObjectShape::Named(keys) => named_fields(inside, keys).or_else(|| any_fields(inside))?,
            ObjectShape::Keys(keys) => known_fields(inside, keys).or_else(|| any_fields(inside))?,
            ObjectShape::Any => any_fields(inside)?,
        };
        let mut out = Vec::with_capacity(text.len() + 16);
        out.push(b'{');
        for (index, (key, value)) in fields.into_iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            json::push_string(&mut out, key);
            out.push(b':');
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            self.field((key, value), matches!(shape, ObjectShape::Named(_)), &path, &mut out);
        }
        out.push(b'}');
        String::from_utf8(out).ok()
    }

    /// A value inside of `@{…}`; `plain` when the feed has only texts there.
    fn field(&mut self, (key, value): (&str, &str), plain: bool, path: &str, out: &mut Vec<u8>) {
        if is_numbered(key) && is_number(value) {
            return out.extend_from_slice(value.as_bytes());
        }
        let time = key.ends_with("Time") || key.ends_with("Date");
        if let Some(time) = time.then(|| as_the_feed_writes(value, TimeWriter::Invariant)).flatten() {
            return json::push_string(out, &time);
        }
        let read = match plain {
            true if is_type_name(value) => {
                self.losses.push(Loss::at(path, value));
                None
            }
            true => None,
            false => {
                self.depth += 1;
                let read = self.text(value, key, path);
                self.depth -= 1;
                read
            }
        };
        match read {
            Some(read) => out.extend_from_slice(read.as_bytes()),
            None => json::push_string(out, value),
        }
    }
}

/// Keys that are numbers in the feed and affect decisions.
fn is_numbered(key: &str) -> bool {
    ["Type", "RecordType", "UserType", "LogonType"].iter().any(|known| known.eq_ignore_ascii_case(key))
}

fn is_number(text: &str) -> bool {
    text == "0" || (!text.starts_with('0') && (1..10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()))
}

fn quoted(text: String) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    json::push_string(&mut out, &text);
    String::from_utf8(out).unwrap_or_default()
}

/// The objects of a text: one, or several with a blank between two.
fn objects(text: &str, shape: ObjectShape) -> Vec<&str> {
    let first = match shape {
        ObjectShape::Named([first, ..]) | ObjectShape::Keys([first, ..]) => first,
        _ => "",
    };
    let seam = format!("}} @{{{first}");
    let mut parts = Vec::new();
    let (mut start, mut from) = (0, 0);
    while let Some(at) = text.get(from..).and_then(|rest| rest.find(&seam)).map(|at| at + from) {
        parts.extend(text.get(start..=at));
        start = at + 2;
        from = start;
    }
    parts.extend(text.get(start..));
    parts
}

/// The occurrences of `; key=` in a text: the places of the separator and of the value.
fn seams<'t>(text: &'t str, key: &str) -> impl Iterator<Item = (usize, usize)> + use<'t> {
    let wanted = format!("; {key}=");
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = text.get(from..)?.find(&wanted)? + from;
        from = at + wanted.len();
        Some((at, from))
    })
}

/// An entry that begins with its name. The name ends at the first of the other keys, since it contains no `; `. Of two
/// that follow, the last must occur once; otherwise the end of a value is ambiguous.
fn named_fields<'t>(text: &'t str, keys: &[&'static str]) -> Option<Vec<(&'static str, &'t str)>> {
    let (first, others) = keys.split_first()?;
    let rest = text.strip_prefix(first)?.strip_prefix('=')?;
    let next = others.iter().filter_map(|key| Some((seams(rest, key).next()?, *key))).min();
    let Some(((end, from), key)) = next else { return Some(vec![(first, rest)]) };
    let name = rest.get(..end)?;
    let behind = rest.get(from..)?;
    let Some(last) = others.iter().copied().find(|other| *other != key) else {
        return Some(vec![(first, name), (key, behind)]);
    };
    let mut all = seams(behind, last);
    match (all.next(), all.next()) {
        (None, _) => Some(vec![(first, name), (key, behind)]),
        (Some((end, from)), None) => Some(vec![(first, name), (key, behind.get(..end)?), (last, behind.get(from..)?)]),
        _ => None,
    }
}

/// An object whose keys are among these, each once.
fn known_fields<'t>(text: &'t str, keys: &[&'static str]) -> Option<Vec<(&'static str, &'t str)>> {
    let mut found = Vec::new();
    for key in keys {
        let begins = text.strip_prefix(key).is_some_and(|rest| rest.starts_with('='));
        let mut all = begins.then_some((0, key.len() + 1)).into_iter().chain(seams(text, key));
        found.extend(all.next().map(|place| (place, *key)));
        if all.next().is_some() {
            return None;
        }
    }
    found.sort_unstable();
    (found.first()?.0.0 == 0).then_some(())?;
    let ends: Vec<usize> = found.iter().skip(1).map(|((at, _), _)| *at).chain([text.len()]).collect();
    found.iter().zip(ends).map(|(((_, from), key), end)| Some((*key, text.get(*from..end)?))).collect()
}

/// An object with unknown keys: each part between `; ` that looks like it begins with a key, and all keys differ.
fn any_fields(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut fields: Vec<(&str, usize, usize)> = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    for part in text.split("; ") {
        let end = start + part.len();
        let key = part.split_once('=').map(|(key, _)| key).filter(|key| depth == 0 && is_key(key));
        match (key, fields.last_mut()) {
            (Some(key), _) => fields.push((key, start + key.len() + 1, end)),
            (None, Some(open)) => open.2 = end,
            (None, None) => return text.is_empty().then(Vec::new),
        }
        for (at, byte) in part.bytes().enumerate() {
            match byte {
                b'{' if at > 0 && part.as_bytes().get(at - 1) == Some(&b'@') => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        start = end + 2;
    }
    if depth > 0 {
        return None;
    }
    let mut names: Vec<&str> = fields.iter().map(|(key, ..)| *key).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() < fields.len() {
        return None;
    }
    fields.into_iter().map(|(key, from, to)| Some((key, text.get(from..to)?))).collect()
}

fn is_key(text: &str) -> bool {
    text.len() <= KEY_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '@')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '@' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member's text in the output, and the paths of the losses.
    fn read(member: &str, token: &str) -> (Option<String>, Vec<String>) {
        let mut losses = Vec::new();
        let read = value(token, member, &mut losses);
        if let Some(read) = &read {
            assert!(json::is_valid(read), "{read}");
        }
        (read, losses.into_iter().map(|loss| loss.member).collect())
    }

    #[test]
    fn objects_in_text_are_read_back_where_one_reading_is_left() {
        for (member, token, expected) in [
            (
                "Parameters",
                r#"["@{Name=Name; Value=x}","@{Name=ForwardTo; Value=e@outside.example}"]"#,
                r#"[{"Name":"Name","Value":"x"},{"Name":"ForwardTo","Value":"e@outside.example"}]"#,
            ),
            ("Parameters", r#""@{Name=Force; Value=}""#, r#"[{"Name":"Force","Value":""}]"#),
            (
                "Parameters",
                r#""@{Name=A; Value=1} @{Name=B; Value=2}""#,
                r#"[{"Name":"A","Value":"1"},{"Name":"B","Value":"2"}]"#,
            ),
            (
                "Parameters",
                r#"["@{Name=From; Value=a; Name=b; Value=c=d} @{x}}"]"#,
                r#"[{"Name":"From","Value":"a; Name=b; Value=c=d} @{x}"}]"#,
            ),
            (
                "ModifiedProperties",
                r#"["@{Name=Role.DisplayName; NewValue=\"Helpdesk; OldValues\"; OldValue=}"]"#,
                r#"[{"Name":"Role.DisplayName","NewValue":"\"Helpdesk; OldValues\"","OldValue":""}]"#,
            ),
            (
                "ModifiedProperties",
                r#"["@{Name=x; OldValue=a; NewValue=b}"]"#,
                r#"[{"Name":"x","OldValue":"a","NewValue":"b"}]"#,
            ),
            ("Actor", r#"["@{ID=a@contoso.example; Type=5}"]"#, r#"[{"ID":"a@contoso.example","Type":5}]"#),
            (
                "AppAccessContext",
                r#""@{AADSessionId=1; CorrelationId=2; UniqueTokenId=}""#,
                r#"{"AADSessionId":"1","CorrelationId":"2","UniqueTokenId":""}"#,
            ),
            (
                "Item",
                r#"{"Id":"i","ParentFolder":"@{Id=f; MemberRights=ReadAny, Visible; Path=\\Inbox}"}"#,
                r#"{"Id":"i","ParentFolder":{"Id":"f","MemberRights":"ReadAny, Visible","Path":"\\Inbox"}}"#,
            ),
            (
                "Folders",
                r#"["@{FolderItems=@{Subject=a; Id=1}; Path=\\Inbox}"]"#,
                r#"[{"FolderItems":{"Subject":"a","Id":"1"},"Path":"\\Inbox"}]"#,
            ),
            ("Start", r#""\/Date(1772446500000)\/""#, r#""2026-03-02T10:15:00""#),
            (
                "Start",
                r#"{"value":"\/Date(1772446500000)\/","DisplayHint":2,"DateTime":"Monday, March 2, 2026"}"#,
                r#""2026-03-02T10:15:00""#,
            ),
            ("Actor", r#"{"value":["@{ID=a; Type=0}"],"Count":1}"#, r#"[{"ID":"a","Type":0}]"#),
        ] {
            assert_eq!(read(member, token), (Some(expected.to_owned()), Vec::new()), "{token}");
        }
    }

    #[test]
    fn what_is_no_text_of_powershells_stays_as_it_is() {
        for token in [
            r#""x""#,
            r#""{@}""#,
            "1",
            "null",
            r#"[{"Name":"A","Value":"@{x"}]"#,
            r#""System administrator""#,
            r#""System.out is no type""#,
            r#"{"value":"a","Count":2}"#,
            r#"[["@"]]"#,
        ] {
            assert_eq!(read("Parameters", token), (None, Vec::new()), "{token}");
        }
    }

    #[test]
    fn what_people_wrote_is_theirs() {
        for text in ["@{x", "@{a=b}", "@{a=b; a=c}"] {
            let mut token = Vec::new();
            json::push_string(&mut token, text);
            let token = String::from_utf8(token).unwrap();
            assert_eq!(read("Subject", &token), (None, Vec::new()), "{text}");
            let item = format!(r#"{{"Subject":{token}}}"#);
            assert_eq!(read("Item", &item), (None, Vec::new()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_back_is_told_of_with_its_place() {
        for (member, token, expected) in [
            ("Parameters", r#""System.Object[]""#, vec!["Parameters"]),
            ("Parameters", r#"["System.Object[]"]"#, vec!["Parameters[0]"]),
            ("Parameters", r#"["@{Name=ForwardTo; Value=System.Object[]}"]"#, vec!["Parameters[0].Value"]),
            ("Parameters", r#"["@{Name=A; Value=b}","@{Name=ForwardTo; Val"]"#, vec!["Parameters[1]"]),
            ("Item", r#"{"Attachments":"System.Collections.Hashtable"}"#, vec!["Item.Attachments"]),
            (
                "ModifiedProperties",
                r#"["@{Name=x; NewValue=a; OldValue=b; OldValue=c}"]"#,
                vec!["ModifiedProperties[0]"],
            ),
            ("Item", r#""@{a=1; a=2}""#, vec!["Item"]),
            ("Item", r#""@{a=@{b=1; c=2}""#, vec!["Item"]),
            ("Folders", r#""System.Object[] System.Object[]""#, vec!["Folders"]),
        ] {
            assert_eq!(read(member, token).1, expected, "{token}");
        }
    }

    #[test]
    fn depth_and_length_are_no_danger() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read("Item", &deep), (None, Vec::new()));
        let text = format!("\"{}{}\"", "@{a=".repeat(10_000), "}".repeat(10_000));
        assert_eq!(read("Item", &text).1.len(), 1);
        let many = format!("\"@{{{}}}\"", "a=1; ".repeat(50_000));
        assert_eq!(read("Item", &many).1, ["Item"]);
    }
}
