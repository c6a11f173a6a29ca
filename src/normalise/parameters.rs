//! Cmdlet parameters in each of their forms: a list of `{Name, Value}`, an object, one string in cmdlet syntax, and
//! JSON of the first two inside a string.
//!
//! The order has no meaning, and values are passed on as text. This module does not know which parameters matter.

use std::borrow::Cow;
use std::cell::OnceCell;

use super::json;
use crate::severity::Modification;
use crate::severity::pattern::Names;

/// The function that gets each parameter; it returns true to stop.
type ParameterVisitor<'t> = &'t mut dyn FnMut(&str, &str) -> bool;

/// Passes the name and value of each parameter of the token to `test` until it returns true; returns whether it did. A
/// parameter with several values is passed once for each, an object as its JSON text, a switch in cmdlet syntax as
/// `True`.
pub(crate) fn any(token: &str, test: ParameterVisitor<'_>) -> bool {
    match token.as_bytes().first() {
        Some(b'"') => {
            let Some(text) = json::scalar(token) else { return false };
            let text = text.trim();
            if text.starts_with(['[', '{']) { any_in_json(text, test) } else { any_in_cmdlet(text, test) }
        }
        _ => any_in_json(token, test),
    }
}

/// The pairs of a token, parsed once for several lookups. Values stay tokens until their name is looked up.
#[derive(Debug, Default)]
pub(crate) struct Pairs<'a> {
    entries: Vec<(Cow<'a, str>, PairValue<'a>)>,
    /// The marks of all names.
    marks: u64,
}

impl Modification for Modified<'_> {
    fn before(&self) -> &str {
        self.old_text.get_or_init(|| text_of(&self.old))
    }

    fn now(&self) -> &str {
        match self.new_is_text {
            true => &self.new,
            false => self.new_text.get_or_init(|| text_of(&self.new)),
        }
    }

    fn is_same(&self) -> bool {
        let inner = |token| json::inner(token).map(str::trim);
        self.old == self.new || inner(&self.old).is_some_and(|old| Some(old) == inner(&self.new))
    }

    fn entries(&self) -> (usize, usize) {
        (entries(&self.old), entries(&self.new))
    }
}

/// The number of entries in a value's token: the objects or elements of a list, 1 for other text, 0 for nothing. They
/// are counted in the escaped text without parsing, because values are long and old records are truncated.
fn entries(token: &str) -> usize {
    const WHITE: [&str; 3] = ["\\r", "\\n", "\\t"];
    let trim = |mut text: &'_ str| -> usize {
        // The number of bytes of white space, escaped or not, at the start of a text.
        let whole = text.len();
        loop {
            let before = text.len();
            text = text.trim_start();
            for white in WHITE {
                text = text.strip_prefix(white).unwrap_or(text);
            }
            if text.len() == before {
                return whole - before;
            }
        }
    };
    let text = json::inner(token).unwrap_or(if token == "null" { "" } else { token });
    let text = text.get(trim(text)..).unwrap_or_default();
    let Some(inside) = text.strip_prefix('[') else {
        let bare = text.trim().trim_matches(['"', '\'', '\\', ' ']);
        return usize::from(!(bare.is_empty() || bare == "null" || bare == "{}"));
    };
    let count = |wanted: u8| memchr::memchr_iter(wanted, inside.as_bytes()).count();
    match count(b'{') {
        0 if inside.get(trim(inside)..).is_none_or(|rest| rest.is_empty() || rest.starts_with(']')) => 0,
        0 => count(b',') + 1,
        objects => objects,
    }
}

/// A value as a token or as text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TokenOrText<'t> {
    /// A JSON token.
    Token(&'t str),
    /// Text.
    Text(&'t str),
}

#[derive(Debug)]
enum PairValue<'a> {
    /// A JSON value.
    Token(&'a str),
    /// Text, if it does not come from a JSON list.
    Text(String),
}

impl<'a> Pairs<'a> {
    /// Parses a token in any of the forms.
    pub fn of(token: &'a str) -> Pairs<'a> {
        // Most lists have fewer; growing by doubling would copy three times.
        const USUAL: usize = 12;
        let mut entries = Vec::with_capacity(USUAL);
        if token.starts_with('[') {
            let mut pair = OpenPair::default();
            json::objects(token, |index, key, value| pair.take(index, key, value, &mut entries), |_, _| {});
            pair.close(&mut entries);
        } else {
            any(token, &mut |name, value| {
                entries.push((Cow::Owned(name.to_owned()), PairValue::Text(value.to_owned())));
                false
            });
        }
        let marks = entries.iter().fold(0, |marks, (name, _)| marks | Names::mark(name));
        Pairs { entries, marks }
    }

    /// Passes every name and value to `take`, the value as a JSON token if it is one.
    pub fn each(&self, take: &mut dyn FnMut(&str, TokenOrText<'_>)) {
        for (name, value) in &self.entries {
            match value {
                PairValue::Token(token) if token.starts_with('[') => {
                    json::elements(token, |element| take(name, TokenOrText::Token(element)));
                }
                PairValue::Token(token) => take(name, TokenOrText::Token(token)),
                PairValue::Text(text) => take(name, TokenOrText::Text(text)),
            }
        }
    }

    /// Passes the values whose names match `named` to `test` until it returns true; returns whether it did.
    pub fn any_named(&self, named: &Names, test: &mut dyn FnMut(&str) -> bool) -> bool {
        named.may_match(self.marks) && self.any(&|name| named.matches(name), test)
    }

    /// Passes the values whose names `named` accepts to `test` until it returns true; returns whether it did.
    pub fn any(&self, named: &dyn Fn(&str) -> bool, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.entries.iter().filter(|(name, _)| named(name)).any(|(name, value)| match value {
            PairValue::Token(token) => any_value(name, token, &mut |_, value| test(value)),
            PairValue::Text(text) => test(text),
        })
    }
}

/// A pair while it is read. In an object without `Name` and `Value` the keys are the names.
#[derive(Default)]
struct OpenPair<'a> {
    index: usize,
    name: Option<&'a str>,
    value: Option<&'a str>,
    others: Vec<(&'a str, &'a str)>,
}

impl<'a> OpenPair<'a> {
    fn take(&mut self, index: usize, key: &'a str, value: &'a str, entries: &mut Vec<(Cow<'a, str>, PairValue<'a>)>) {
        if index != self.index {
            self.close(entries);
            self.index = index;
        }
        if key.eq_ignore_ascii_case("Name") || key.eq_ignore_ascii_case("Key") {
            self.name = Some(value);
        } else if key.eq_ignore_ascii_case("Value") {
            self.value = Some(value);
        } else {
            self.others.push((key, value));
        }
    }

    fn close(&mut self, entries: &mut Vec<(Cow<'a, str>, PairValue<'a>)>) {
        let (name, value) = (self.name.take(), self.value.take());
        match (name.and_then(json::scalar), value) {
            (Some(name), Some(value)) => entries.push((name, PairValue::Token(value))),
            // `Value` may be missing.
            (Some(name), None) if self.others.is_empty() => entries.push((name, PairValue::Token("\"\""))),
            _ => {
                let others = self.others.drain(..).map(|(key, value)| (json::unescape(key), PairValue::Token(value)));
                entries.extend(others);
                entries.extend(name.map(|name| (Cow::Borrowed("Name"), PairValue::Token(name))));
                entries.extend(value.map(|value| (Cow::Borrowed("Value"), PairValue::Token(value))));
            }
        }
        self.others.clear();
    }
}

/// An entry of `ModifiedProperties`; values as tokens, empty where absent.
#[derive(Debug)]
pub(crate) struct Modified<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// The token of the old value.
    old: Cow<'a, str>,
    /// The token of the new value, or its text.
    new: Cow<'a, str>,
    /// Whether `new` is text: a part of a split change is no JSON.
    new_is_text: bool,
    /// The old value as text, once a rule has asked for it: values have kilobytes of escapes.
    old_text: OnceCell<Cow<'a, str>>,
    new_text: OnceCell<Cow<'a, str>>,
}

impl<'a> Modified<'a> {
    fn named(name: Cow<'a, str>) -> Modified<'a> {
        let nothing = Cow::Borrowed("");
        Modified {
            name,
            old: nothing.clone(),
            new: nothing,
            new_is_text: false,
            old_text: OnceCell::new(),
            new_text: OnceCell::new(),
        }
    }

    /// The old value as it is at hand.
    pub fn old_value(&self) -> TokenOrText<'_> {
        TokenOrText::Token(&self.old)
    }

    /// The new value as it is at hand.
    pub fn new_value(&self) -> TokenOrText<'_> {
        match self.new_is_text {
            true => TokenOrText::Text(&self.new),
            false => TokenOrText::Token(&self.new),
        }
    }

    fn bare_new(&self) -> Option<Cow<'a, str>> {
        bare(if self.new_is_text { self.new.clone() } else { text_of(&self.new) })
    }

    fn bare_old(&self) -> Option<Cow<'a, str>> {
        bare(text_of(&self.old))
    }

    /// The same entry with owned texts.
    fn into_owned<'o>(self) -> Modified<'o> {
        let mut entry = Modified::named(Cow::Owned(self.name.into_owned()));
        entry.old = Cow::Owned(self.old.into_owned());
        entry.new = Cow::Owned(self.new.into_owned());
        entry.new_is_text = self.new_is_text;
        entry
    }

    /// The new value, else the old one, without the list and quotes around it.
    pub fn value(&self) -> Option<Cow<'a, str>> {
        self.bare_new().or_else(|| self.bare_old())
    }

    /// The old value, else the new one.
    pub fn value_before(&self) -> Option<Cow<'a, str>> {
        self.bare_old().or_else(|| self.bare_new())
    }
}

/// The entries of `ModifiedProperties`. An entry that is a plain string has only a name.
pub(crate) fn modified(token: &str) -> Vec<Modified<'_>> {
    // Most lists have fewer; growing by doubling would copy three times.
    const USUAL: usize = 8;
    let mut entries: Vec<Modified<'_>> = Vec::with_capacity(USUAL);
    let mut names = Vec::new();
    let mut open = None;
    json::objects(
        token,
        |index, key, value| {
            if open != Some(index) {
                open = Some(index);
                entries.push(Modified::named(Cow::Borrowed("")));
            }
            let Some(entry) = entries.last_mut() else { return };
            if key.eq_ignore_ascii_case("Name") {
                entry.name = json::scalar(value).unwrap_or_default();
            } else if key.eq_ignore_ascii_case("OldValue") {
                entry.old = Cow::Borrowed(value);
            } else if key.eq_ignore_ascii_case("NewValue") {
                entry.new = Cow::Borrowed(value);
            }
        },
        |_, element| names.extend(json::scalar(element)),
    );
    entries.extend(names.into_iter().map(Modified::named));
    entries
}

/// Changes in `additionalDetails` of the extended properties: Microsoft Entra splits a long change into texts `b`,
/// numbered `seq` of `c`, each in a record of its own; together they are JSON with `targetUpdatedProperties`, itself
/// JSON in a text. A part that cannot be parsed alone is one entry of that name, so that its content is still searched.
pub(crate) fn changes_in_details<'a>(extended: &Pairs<'a>) -> Vec<Modified<'a>> {
    let mut parts: Vec<(i64, String)> = Vec::new();
    extended.any(&|name| name.eq_ignore_ascii_case("additionalDetails"), &mut |details| {
        let details = details.trim();
        let mut part = |details: &str| {
            let (mut text, mut seq) = (None, None);
            json::members(details, |key, value| match &*key {
                _ if value == "null" => {}
                "b" | "B" => text = json::scalar(value),
                _ if key.eq_ignore_ascii_case("seq") => seq = json::integer(value),
                _ => {}
            });
            if let Some(text) = text {
                parts.push((seq.unwrap_or(0), text.into_owned()));
            } else if details.contains(CHANGES) {
                parts.push((0, details.to_owned()));
            }
        };
        match details.starts_with('[') {
            true => json::elements(details, &mut part),
            false => part(details),
        }
        false
    });
    parts.sort_by_key(|(seq, _)| *seq);
    let text: String = parts.into_iter().map(|(_, text)| text).collect();
    if text.trim().is_empty() {
        return Vec::new();
    }
    let inner = match json::get(text.trim(), CHANGES) {
        Some(token) => text_or_json(token),
        None => Cow::Borrowed(text.as_str()),
    };
    let entries = modified(inner.trim());
    if entries.is_empty() {
        let mut entry = Modified::named(Cow::Borrowed(CHANGES));
        entry.new = Cow::Owned(inner.into_owned());
        entry.new_is_text = true;
        return vec![entry];
    }
    entries.into_iter().map(Modified::into_owned).collect()
}

/// The member that holds them.
const CHANGES: &str = "targetUpdatedProperties";

/// The text of a value's token, with the lifetime of the event.
fn text_of<'a>(token: &Cow<'a, str>) -> Cow<'a, str> {
    match token {
        Cow::Borrowed(token) => text_or_json(token),
        Cow::Owned(token) => Cow::Owned(text_or_json(token).into_owned()),
    }
}

/// The text inside a value such as `["a"]`, the usual form of a single value; `None` if it is empty.
fn bare(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    let strip = |text: &str| {
        let end = |c: char| matches!(c, '[' | ']' | '"') || c.is_whitespace();
        let from = text.len() - text.trim_start_matches(end).len();
        (from, from + text.trim_matches(end).len())
    };
    Some(match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.get(strip(text).0..strip(text).1)?),
        Cow::Owned(text) => Cow::Owned(text.get(strip(&text).0..strip(&text).1)?.to_owned()),
    })
    .filter(|text| !text.is_empty())
}

/// A scalar's text, a container's JSON, nothing for `null`.
fn text_or_json(token: &str) -> Cow<'_, str> {
    match token {
        "" | "null" => Cow::Borrowed(""),
        _ => json::scalar(token).unwrap_or_else(|| json::compact(token)),
    }
}

fn any_in_json(token: &str, test: ParameterVisitor<'_>) -> bool {
    let mut stopped = false;
    if token.starts_with('[') {
        json::elements(token, |element| {
            stopped = stopped || any_in_object(element, true, test);
        });
    } else {
        stopped = any_in_object(token, false, test);
    }
    stopped
}

/// A pair `{Name, Value}`, in Teams `{Key, Value}`. In a list, a name without a value counts as a pair, too.
fn pair(token: &str, in_list: bool) -> Option<(Cow<'_, str>, &str)> {
    let (mut name, mut value, mut others) = (None, None, false);
    json::members(token, |key, token| {
        if key.eq_ignore_ascii_case("Name") || key.eq_ignore_ascii_case("Key") {
            name = Some(token);
        } else if key.eq_ignore_ascii_case("Value") {
            value = Some(token);
        } else {
            others = true;
        }
    });
    let value = value.or(if in_list && !others { Some("null") } else { None });
    Some((name.and_then(json::scalar)?, value?))
}

/// A pair, or an object whose keys are the names.
fn any_in_object(token: &str, in_list: bool, test: ParameterVisitor<'_>) -> bool {
    match pair(token, in_list) {
        Some((name, value)) => any_value(&name, value, test),
        None => {
            let mut stopped = false;
            // As keys, all parameters may be present, with `null` for those that were not given.
            json::members(token, |key, value| {
                stopped = stopped || (value != "null" && any_value(&key, value, test));
            });
            stopped
        }
    }
}

fn any_value(name: &str, token: &str, test: ParameterVisitor<'_>) -> bool {
    if token.starts_with('[') {
        let (mut stopped, mut empty) = (false, true);
        json::elements(token, |element| {
            empty = false;
            stopped = stopped
                || match json::scalar(element) {
                    Some(value) => test(name, &value),
                    None => element.starts_with('{') && test(name, &json::compact(element)),
                };
        });
        return if empty { test(name, "") } else { stopped };
    }
    if token.starts_with('{') {
        return test(name, &json::compact(token));
    }
    // Given, but empty.
    if token == "null" {
        return test(name, "");
    }
    json::scalar(token).is_some_and(|value| test(name, &value))
}

/// `-Identity "joe" -ForwardTo 'a@b.c','d@e.f' -DeleteMessage:$true -Force`
fn any_in_cmdlet(text: &str, test: ParameterVisitor<'_>) -> bool {
    let mut open: Option<(&str, usize)> = None;
    for (start, word) in WordIter::of(text) {
        let Some(name) = word.strip_prefix('-').filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()))
        else {
            continue;
        };
        if let Some((name, from)) = open.take()
            && test(name, cmdlet_value(text.get(from..start).unwrap_or_default()))
        {
            return true;
        }
        // The value is what follows, up to the next name; `-Name:value` is one word.
        let name = name.split_once(':').map_or(name, |(name, _)| name);
        open = Some((name, start + 1 + name.len()));
    }
    open.is_some_and(|(name, from)| test(name, cmdlet_value(text.get(from..).unwrap_or_default())))
}

fn cmdlet_value(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_prefix(':').unwrap_or(text).trim_start();
    if text.is_empty() {
        return "True";
    }
    for quote in ['"', '\''] {
        if let Some(inside) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote))
            && !inside.contains(quote)
        {
            return inside;
        }
    }
    text
}

/// Words between blanks, with their positions; quoted text is part of its word.
struct WordIter<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> WordIter<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }
}

impl<'a> Iterator for WordIter<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        let start = self.at + rest.find(|c: char| !c.is_whitespace())?;
        let mut quote = None;
        let mut before = ' ';
        let mut end = self.text.len();
        for (at, c) in self.text.get(start..)?.char_indices() {
            match quote {
                Some(open) if c == open => quote = None,
                Some(_) => {}
                // An apostrophe inside a word (O'Brien) does not open a quotation.
                None if matches!(c, '"' | '\'') && matches!(before, ' ' | ',' | ';' | ':' | '=') => quote = Some(c),
                None if c.is_whitespace() => {
                    end = start + at;
                    break;
                }
                None => {}
            }
            before = c;
        }
        self.at = end;
        Some((start, self.text.get(start..end)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(token: &str) -> Vec<(String, String)> {
        let mut seen = Vec::new();
        super::any(token, &mut |name, value| {
            seen.push((name.to_owned(), value.to_owned()));
            false
        });
        seen
    }

    #[test]
    fn parameters_are_found_in_every_shape() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        for (token, expected) in [
            (
                r#"[{"Name":"A","Value":"1"},{"value":true,"name":"B"},{"Name":"C"}]"#,
                pairs(&[("A", "1"), ("B", "true"), ("C", "")]),
            ),
            (r#"[{"Name":"A","Value":["x","y",null]}, null, "s", 1]"#, pairs(&[("A", "x"), ("A", "y")])),
            (r#"[{"Name":"A","Value":null},{"Name":"B","Value":[]}]"#, pairs(&[("A", ""), ("B", "")])),
            (r#"{"Name":"C"}"#, pairs(&[("Name", "C")])),
            (
                r#"{"ForwardTo":"a@b.c","DeleteMessage":true,"N":null}"#,
                pairs(&[("ForwardTo", "a@b.c"), ("DeleteMessage", "true")]),
            ),
            (r#""[{\"Name\":\"A\",\"Value\":\"1\"}]""#, pairs(&[("A", "1")])),
            (
                r#""-Identity \"joe x\" -ForwardTo 'a@b.c','d@e.f' -DeleteMessage:$true -X -1 -Who O'Brien -Force""#,
                pairs(&[
                    ("Identity", "joe x"),
                    ("ForwardTo", "'a@b.c','d@e.f'"),
                    ("DeleteMessage", "$true"),
                    ("X", "-1"),
                    ("Who", "O'Brien"),
                    ("Force", "True"),
                ]),
            ),
            (r#""-Subject \"a -ForwardTo b\"""#, pairs(&[("Subject", "a -ForwardTo b")])),
            (r#""""#, Vec::new()),
            ("null", Vec::new()),
            ("12", Vec::new()),
        ] {
            assert_eq!(all(token), expected, "{token}");
        }
    }

    #[test]
    fn entries_of_a_modified_property_are_counted_as_received() {
        for (token, expected) in [
            ("", 0),
            ("null", 0),
            (r#""""#, 0),
            (r#""[]""#, 0),
            (r#""[\r\n]""#, 0),
            (r#""{}""#, 0),
            (r#""x""#, 1),
            ("[]", 0),
            (r#"[{"a":1}]"#, 1),
            (r#""[\r\n  {\r\n \"MethodType\": 6\r\n },\r\n {\"MethodType\": 7}\r\n]""#, 2),
            (r#""[\r\n  true\r\n]""#, 1),
            (r#""[1,2]""#, 2),
            (r#""[{\"State\": 1}, {\"Sta"#, 1),
        ] {
            assert_eq!(entries(token), expected, "{token}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"["'\[\]{}:,a -]{0,30}|.*"#) {
            all(&text);
            let mut token = Vec::new();
            json::push_string(&mut token, &text);
            all(std::str::from_utf8(&token).unwrap());
        }
    }
}
