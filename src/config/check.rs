//! Checks parsed tables against the schema of their type and records every problem, not only the first.
//!
//! It supports only the keywords that this crate's schemas use. Deserialization follows if there is no problem, so a
//! fault that this module misses is still refused there, with a poorer message.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::path::Path;

use serde_json::Value as Schema;
use toml::{Table, Value};
use url::Url;

use super::origins::{Origins, is_at};
use super::pasted::{self, may_be_shown, odd, odd_guid, odd_secret, trimmed};
use super::problem::{Fault, Problem, hint_for_unreadable, join, masked_url};
use super::secret::MASK;
use super::variables::{Env, expand};
use crate::model::is_guid;

/// Longest value shown in a message, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// Longest list of known keys put into a message.
const LISTED_KEYS_MAX: usize = 10;

/// The problems found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    /// The keys of the problems, and whether one of them is more than an unreadable file. A map, since a file may have
    /// thousands of sources with a problem each, and comparing each with all others would be quadratic.
    keys: BTreeMap<String, bool>,
    /// Strings as they were written before `${NAME}` was replaced, by path: values from the environment are not shown.
    written: BTreeMap<String, String>,
    /// The places of all keys.
    pub origins: Origins,
    /// How many keys and problems were compared, for a test that counts.
    pub steps: Cell<u64>,
}

impl Findings {
    /// No problems yet, for keys at these places.
    pub fn of(origins: Origins) -> Self {
        Self { origins, ..Self::default() }
    }

    pub fn expand(&mut self, table: &mut Table, path: &str, env: Env<'_>) {
        let mut found = Vec::new();
        expand(table, path, env, &mut self.written, &mut found);
        found.into_iter().for_each(|problem| self.note(problem));
    }

    /// The text `expected`, with the place of the conflicting key if its path does not show the place.
    pub fn other(&self, expected: &str, path: &str) -> String {
        match self.origins.is_folder() {
            true => format!("{expected}; the other one is in {}", self.origins.words(path)),
            false => expected.to_owned(),
        }
    }

    /// How many problems there are.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// All problems.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Removes and returns the problems recorded after the first `count`.
    pub fn take_since(&mut self, count: usize) -> Vec<Problem> {
        let taken: Vec<Problem> = self.problems.drain(count.min(self.problems.len())..).collect();
        for problem in &taken {
            self.keys.remove(&problem.key);
        }
        taken
    }

    /// Copies the written texts of `from`'s keys to the same keys at `to`.
    pub fn inherit(&mut self, from: &str, to: &str, keys: &[String]) {
        let mut copies = Vec::new();
        for key in keys {
            let at = join(from, key);
            // What is below a path stands behind it in the order of paths.
            let from_there = self.written.range(at.clone()..).take_while(|(path, _)| path.starts_with(&at));
            for (path, text) in from_there {
                if let Some(below) = path.strip_prefix(&at)
                    && (below.is_empty() || below.starts_with(['.', '[']))
                {
                    copies.push((format!("{}{below}", join(to, key)), text.clone()));
                }
            }
        }
        self.written.extend(copies);
    }

    pub fn note(&mut self, problem: Problem) {
        *self.keys.entry(problem.key.clone()).or_default() |= problem.fault != Fault::File;
        self.problems.push(problem);
    }

    /// Whether there is no problem at `path` or below it.
    pub fn clean(&self, path: &str) -> bool {
        self.below(path).next().is_none()
    }

    /// Whether the only problems there are unreadable files.
    pub fn clean_but_for_files(&self, path: &str) -> bool {
        !self.below(path).any(|is_more| is_more)
    }

    /// The problems at `path` and below it: for each, whether it is more than an unreadable file.
    fn below<'f>(&'f self, path: &'f str) -> impl Iterator<Item = bool> + 'f {
        // What is below a path stands behind it in the order of paths.
        let from_there = self.keys.range::<str, _>((Bound::Included(path), Bound::Unbounded));
        from_there
            .inspect(|_| self.step())
            .take_while(move |(key, _)| key.starts_with(path))
            .filter(move |(key, _)| is_at(key, path))
            .map(|(_, is_more)| *is_more)
    }

    fn step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    /// Checks every key of `table` against the object schema `schema`.
    pub fn check_table(&mut self, schema: &Schema, table: &mut Table, path: &str) {
        let nothing = serde_json::Map::new();
        let known = schema["properties"].as_object().unwrap_or(&nothing);
        for (key, value) in table.iter_mut() {
            let path = join(path, key);
            match known.get(key) {
                Some(schema) => self.check_value(schema, value, &path),
                None => self.note(unknown_key(&path, key, known.keys().map(String::as_str))),
            }
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str) {
            if !table.contains_key(key) {
                let schema = known.get(key).unwrap_or(&Schema::Null);
                let mut problem = Problem::new(join(path, key), Fault::Missing, expectation(schema));
                problem.hint = schema["x-hint"].as_str().map(str::to_owned);
                self.note(problem);
            }
        }
    }

    fn check_value(&mut self, schema: &Schema, value: &mut Value, path: &str) {
        // An unset variable is already reported; its placeholder is not a second problem.
        self.step();
        if self.keys.contains_key(path) {
            return;
        }
        // A number or a switch may come from the environment, where every value is text.
        if let (Value::String(text), true) = (&*value, self.written.contains_key(path))
            && let Some(typed) = typed_from_text(schema, path, text)
        {
            *value = typed;
        }
        let kind = schema["type"].as_str();
        match (kind, &mut *value) {
            (Some("object"), Value::Table(table)) => {
                if schema["properties"].is_object() {
                    self.check_table(schema, table, path);
                }
                if table.is_empty() && schema["minProperties"].as_u64().is_some_and(|n| n > 0) {
                    self.note(Problem::new(path, Fault::Missing, expectation(schema)));
                }
            }
            (Some("array"), Value::Array(items)) => self.check_items(schema, items, path),
            (Some("boolean"), Value::Boolean(_)) => {}
            (Some("integer"), Value::Integer(n)) => {
                let n = *n;
                let low = schema["minimum"].as_i64().is_some_and(|min| n < min);
                let high = schema["maximum"].as_i64().is_some_and(|max| n > max);
                if low || high {
                    self.invalid(schema, value, path);
                }
            }
            (Some("string") | None, Value::String(text)) => match check_text(schema, text) {
                Ok(()) if schema["x-entra-secret"] == true => {
                    // An unset variable was already reported.
                    let is_reported = text.starts_with("${") && !self.written.contains_key(path);
                    if let Some(odd) = odd_secret(text).filter(|_| !is_reported && !text.is_empty()) {
                        let expected = format!("the secret's value alone; {odd}");
                        self.note(Problem::new(path, Fault::Invalid, expected).value(MASK));
                    }
                }
                Ok(()) => {}
                Err(TextFault::Plain) => self.invalid(schema, value, path),
                Err(TextFault::Explained { expected, hint }) => {
                    let shown = self.shown(schema, value, path);
                    let mut problem = Problem::new(path, Fault::Invalid, expected).value(shown);
                    problem.hint = hint.or_else(|| schema["x-hint"].as_str().map(str::to_owned));
                    // A hint must not show text that the value must not show.
                    if let (Some(written), Some(text)) = (self.written.get(path), value.as_str())
                        && !may_be_shown(written, text)
                        && let Some(hint) = &mut problem.hint
                    {
                        *hint = hint.replace(text, written);
                    }
                    self.note(self.with_oddity(problem, schema, value));
                }
            },
            _ => self.invalid(schema, value, path),
        }
    }

    fn check_items(&mut self, schema: &Schema, items: &mut [Value], path: &str) {
        if items.len() < schema["minItems"].as_u64().unwrap_or(0) as usize {
            self.note(Problem::new(path, Fault::Invalid, expectation(schema)).value("[]"));
        }
        for (index, item) in items.iter_mut().enumerate() {
            self.check_value(&schema["items"], item, &format!("{path}[{index}]"));
        }
        if schema["uniqueItems"] == true {
            // A list may name thousands of sources.
            let mut texts: HashSet<&str> = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                let is_repeated = match item {
                    Value::String(text) => !texts.insert(text),
                    other => items.iter().take(index).any(|earlier| earlier == other),
                };
                if is_repeated {
                    let path = format!("{path}[{index}]");
                    let shown = self.shown(&schema["items"], item, &path);
                    self.note(Problem::new(path, Fault::Invalid, "each value once").value(shown));
                }
            }
        }
    }

    fn invalid(&mut self, schema: &Schema, value: &Value, path: &str) {
        let shown = self.shown(schema, value, path);
        let mut problem = Problem::new(path, Fault::Invalid, expectation(schema)).value(shown);
        problem.hint = schema["x-hint"].as_str().map(str::to_owned);
        if let Some(written) = self.written_right(schema, value, path) {
            problem.hint = Some(problem.hint.map_or_else(|| written.clone(), |hint| format!("{written}; {hint}")));
        }
        self.note(self.with_oddity(problem, schema, value));
    }

    /// The correct notation for a value of the wrong type.
    fn written_right(&self, schema: &Schema, value: &Value, path: &str) -> Option<String> {
        let key = path.rsplit('.').next().unwrap_or(path);
        match (schema["type"].as_str()?, value) {
            ("integer", Value::String(text)) => match typed_from_text(schema, path, text)? {
                Value::Integer(number) => Some(format!("write a number without quotes or unit: `{number}`")),
                _ => None,
            },
            ("boolean", Value::String(text)) => match typed_from_text(schema, path, text)? {
                Value::Boolean(is_on) => Some(format!("write it without quotes: `{is_on}`")),
                _ => None,
            },
            ("array", Value::String(_)) if schema["items"]["type"] == "string" => {
                Some(format!("a list stands in brackets: `{key} = [\"{}\"]`", self.shown(schema, value, path)))
            }
            ("array", Value::Table(_)) if schema["items"]["type"] == "object" => {
                Some(format!("each item begins with `[[{path}]]`, in two brackets"))
            }
            ("array", Value::Table(_)) => {
                let example = schema["examples"].get(0).map_or_else(|| "[…]".to_owned(), Schema::to_string);
                Some(format!("a list is no table: `{key} = {example}`"))
            }
            ("object", Value::Array(_)) => Some(format!("a table has one bracket: `[{path}]`")),
            ("object", Value::String(_)) => Some(format!("its keys stand below `[{path}]`, or `{key} = {{ name = \"value\" }}`")),
            ("string", Value::Integer(_) | Value::Float(_)) if schema["format"] == "socket-address" => {
                Some("write address and port in quotation marks: `127.0.0.1:9598` is this machine, `0.0.0.0:9598` all of its addresses".into())
            }
            ("string", Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_)) => {
                Some("write it in quotation marks".into())
            }
            _ => None,
        }
    }

    /// Adds to the expectation a note about extra characters around the value, if any.
    fn with_oddity(&self, mut problem: Problem, schema: &Schema, value: &Value) -> Problem {
        let Some(text) = value.as_str().filter(|_| schema["writeOnly"] != true) else { return problem };
        let found = if schema["format"] == "uuid" { odd_guid(text) } else { odd(text) };
        // An empty text is obvious, unless it came from a variable.
        let Some(found) = found.filter(|_| !text.is_empty() || self.written.contains_key(&problem.key)) else {
            return problem;
        };
        if !problem.expected.contains(found.what) {
            problem.expected.push_str(&format!("; {}", found.what));
        }
        problem.hint = Some(match problem.hint.take() {
            Some(hint) => format!("{}; {hint}", found.hint),
            None => found.hint.to_owned(),
        });
        problem
    }

    /// The value in the form that a message may show.
    pub fn shown(&self, schema: &Schema, value: &Value, path: &str) -> String {
        if schema["writeOnly"] == true {
            return MASK.to_owned();
        }
        // A list that came from one variable was written as one string.
        let written = self.written.get(path).or_else(|| self.written.get(path.split('[').next()?));
        let text = match (written, value) {
            // A variable's value is shown beside its name, unless it could be a misplaced secret.
            (Some(written), Value::String(text)) if may_be_shown(written, text) && *written != *text => {
                return format!("{}` from `{}", cut(&masked_url(text)), cut(written));
            }
            (Some(written), _) => written.clone(),
            // Tables and lists may contain a secret under a key that was never checked.
            (None, Value::Table(_)) => "{…}".to_owned(),
            (None, Value::Array(_)) => "[…]".to_owned(),
            (None, Value::String(text)) if schema["format"] == "uri" || text.contains("://") => masked_url(text),
            (None, Value::String(text)) => text.clone(),
            (None, other) => other.to_string(),
        };
        cut(&text)
    }
}

/// At most [`SHOWN_CHARS_MAX`] characters of a text, on one line.
fn cut(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN_CHARS_MAX) {
        // A line break or an escape sequence would forge lines of a log or a terminal.
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The problem of an unknown key, with the nearest known one.
pub(super) fn unknown_key<'a>(path: &str, key: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    let known: Vec<&str> = known.collect();
    let expected = match known.len() {
        0 => "no key here".to_owned(),
        1..=LISTED_KEYS_MAX => one_of(&known),
        _ => "a key that docs/configuration.md lists".to_owned(),
    };
    let mut problem = Problem::new(path, Fault::Unknown, expected);
    problem.hint = nearest(key, &known).map(|near| format!("nearest known key: `{near}`"));
    problem
}

/// The word of `known` most similar to `word`, if any is similar.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Below this the two words have hardly a letter in common; found by trying misspellings of this crate's keys.
    const LIKENESS_MIN: f64 = 0.7;
    let word = word.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(&word, &k.to_ascii_lowercase()), *k))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// "one of `a`, `b`", or "`a`" alone.
pub(crate) fn one_of(words: &[&str]) -> String {
    let list = words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    if words.len() == 1 { list } else { format!("one of {list}") }
}

/// The texts that an enumeration allows: `const`, `enum`, or `oneOf` of `const`s (an enum whose variants have a doc
/// comment).
pub(crate) fn allowed(schema: &Schema) -> Vec<&str> {
    let consts = schema["oneOf"].as_array().into_iter().flatten().filter_map(|choice| choice["const"].as_str());
    let words = schema["enum"].as_array().into_iter().flatten().filter_map(Schema::as_str);
    schema["const"].as_str().into_iter().chain(words).chain(consts).collect()
}

/// The form of a value of this schema, as the end of a sentence that begins "expected".
pub(crate) fn expectation(schema: &Schema) -> String {
    if let Some(expected) = schema["x-expected"].as_str() {
        return expected.to_owned();
    }
    let words = allowed(schema);
    if !words.is_empty() {
        return one_of(&words);
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("integer"), _) => match (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
            (Some(min), Some(max)) => format!("an integer from {min} to {max}"),
            _ => "an integer".to_owned(),
        },
        (Some("boolean"), _) => "`true` or `false`".to_owned(),
        (Some("array"), _) => match expectation(&schema["items"]).as_str() {
            "a text" => "a list of texts".to_owned(),
            item if schema["minItems"].is_u64() => format!("a list with at least one of: {}", strip_one_of(item)),
            item => format!("a list, each item {item}"),
        },
        (Some("object"), _) => "a table".to_owned(),
        (_, Some("uuid")) => "a GUID".to_owned(),
        (_, Some("uri")) if schema["x-origin"] == true => "an origin such as `https://host:443`".to_owned(),
        (_, Some("uri")) => "an http or https URL".to_owned(),
        (_, Some("socket-address")) => "an address and port such as `127.0.0.1:9598`".to_owned(),
        (_, Some("log-level")) => {
            "one of `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,m365_audit=debug`".to_owned()
        }
        (_, Some("hostname")) => "a domain name such as `contoso.com`".to_owned(),
        _ if schema["minLength"].as_u64().is_some_and(|n| n > 0) => "a text that is not empty".to_owned(),
        _ => "a text".to_owned(),
    }
}

fn strip_one_of(text: &str) -> &str {
    text.strip_prefix("one of ").unwrap_or(text)
}

enum TextFault {
    /// The schema's own expectation describes it.
    Plain,
    Explained {
        expected: String,
        hint: Option<String>,
    },
}

impl TextFault {
    fn because(expected: impl Into<String>) -> Self {
        Self::Explained { expected: expected.into(), hint: None }
    }
}

/// Checks one text; blanks around a pasted text are removed.
fn check_text(schema: &Schema, text: &mut String) -> Result<(), TextFault> {
    let format = schema["format"].as_str();
    let pasted_id = format == Some("uuid") || schema["x-pasted-id"] == true;
    if (pasted_id || matches!(format, Some("uri" | "password" | "hostname" | "date")))
        && trimmed(text).len() != text.len()
    {
        *text = trimmed(text).to_owned();
    }
    if schema["x-pasted-id"] == true
        && let Some(found) = pasted::odd_id(text)
    {
        let expected = format!("the application's client id, a GUID; {}", found.what);
        return Err(TextFault::Explained { expected, hint: Some(found.hint.to_owned()) });
    }
    if pasted_id && text.contains(char::is_whitespace) {
        let what = if format == Some("uuid") { "a GUID" } else { "an id" };
        return Err(TextFault::because(format!("{what} without blanks inside; the one pasted has some")));
    }
    let words = allowed(schema);
    if !words.is_empty() {
        return check_word(text, &words);
    }
    if (text.chars().count() as u64) < schema["minLength"].as_u64().unwrap_or(0) {
        return Err(TextFault::Plain);
    }
    let fits = match format {
        Some("uuid") => is_guid(text),
        Some("uri") => return check_url(text, schema),
        Some("socket-address") => return check_address(text, schema),
        Some("log-level") => return check_level(text),
        Some("date") => text.parse::<jiff::civil::Date>().is_ok(),
        Some("hostname") => {
            text.contains('.')
                && text.split('.').all(|label| {
                    !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
                })
        }
        _ => true,
    };
    if fits { Ok(()) } else { Err(TextFault::Plain) }
}

fn check_address(text: &str, schema: &Schema) -> Result<(), TextFault> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let hint = match (port, text.starts_with("localhost")) {
        (Some(port), true) => format!("a name is not resolved here: write `127.0.0.1:{port}`"),
        (Some(port), false) => {
            format!("write `127.0.0.1:{port}` for this machine, `0.0.0.0:{port}` for all of its addresses")
        }
        (None, _) => "the port is missing, or is no number from 1 to 65535".to_owned(),
    };
    Err(TextFault::Explained { expected: expectation(schema), hint: Some(hint) })
}

fn check_word(text: &str, words: &[&str]) -> Result<(), TextFault> {
    if words.contains(&text) {
        return Ok(());
    }
    let same_letters = words.iter().find(|w| w.eq_ignore_ascii_case(text));
    let hint = match same_letters {
        Some(word) => Some(format!("write `{word}`: upper and lower case matter")),
        None => nearest(text, words).map(|near| format!("nearest: `{near}`")),
    };
    Err(TextFault::Explained { expected: one_of(words), hint })
}

/// Levels, and directives `target=level`. Any other text would count as the name of a target, so that the log would be
/// empty without a reason.
fn check_level(text: &str) -> Result<(), TextFault> {
    const EXPECTED: &str =
        "one of `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,m365_audit=debug`";
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let wrong = |word: &str| {
        let by_name =
            [("verbose", "debug"), ("warning", "warn"), ("fatal", "error"), ("critical", "error"), ("all", "trace")];
        let near = by_name.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map(|(_, level)| *level);
        let near = near.or_else(|| nearest(word, &LEVELS)).unwrap_or("info");
        let hint = format!("`{word}` is no level; nearest: `{near}`");
        Err(TextFault::Explained { expected: EXPECTED.to_owned(), hint: Some(hint) })
    };
    if text.contains(['[', '{']) {
        return Err(TextFault::Explained {
            expected: EXPECTED.to_owned(),
            hint: Some(
                "a directive names a module and a level, no span and no field: leave out the brackets".to_owned(),
            ),
        });
    }
    if text.split(',').all(|directive| directive.trim().is_empty()) {
        return wrong(text);
    }
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let level = directive.rsplit('=').next().unwrap_or_default();
        let is_level = LEVELS.iter().any(|known| level.eq_ignore_ascii_case(known));
        let is_target = !directive.contains('=') && directive.contains("::");
        if (!is_level && !is_target) || directive.matches('=').count() > 1 {
            return wrong(if is_level { directive } else { level });
        }
    }
    Ok(())
}

fn check_url(text: &str, schema: &Schema) -> Result<(), TextFault> {
    let (origin_only, proxy) = (schema["x-origin"] == true, schema["x-proxy"] == true);
    // Nearly every server is reached by TLS, except a proxy and programs on this machine.
    let is_here =
        text.trim_start_matches('/').starts_with("localhost") || text.trim_start_matches('/').starts_with("127.");
    let scheme = if proxy || is_here { "http" } else { "https" };
    let faulty = |hint: String| TextFault::Explained { expected: expectation(schema), hint: Some(hint) };
    let lower = text.to_ascii_lowercase();
    if proxy && (lower.contains(".pac") || lower.ends_with("wpad.dat") || lower.starts_with("pac+")) {
        return Err(faulty(
            "a PAC file is a script for browsers and is not read: open it (`curl URL`), find the line that applies to \
             `manage.office.com`, and write its `PROXY host:port` as `http://host:port`"
                .to_owned(),
        ));
    }
    if let Some(rest) = lower.strip_prefix("socks").filter(|rest| rest.contains("://")) {
        let rest = rest.split_once("://").map_or("", |(_, rest)| rest);
        let place = rest.rsplit('@').next().unwrap_or_default();
        return Err(faulty(format!(
            "SOCKS is not spoken: use an HTTP proxy that allows CONNECT, or put one (privoxy, gost, `ssh -D` behind either) \
             before `{place}` and name that"
        )));
    }
    let Some(url) = Url::parse(text).ok().filter(|url| url.host().is_some()) else {
        // `proxy:8080` is a URL of the scheme `proxy`, `10.0.0.1:8080` none at all: both are a host without a scheme.
        let bare = text.trim_start_matches('/');
        let rest = Url::parse(&format!("{scheme}://{bare}"));
        let host = bare.split(['/', '?', '#']).next().unwrap_or_default();
        let plausible = !host.is_empty() && !host.contains("//") && !host.contains('@') && !text.contains(":/");
        return Err(match rest.ok().filter(|url| plausible && url.host().is_some()) {
            Some(_) => faulty(format!("write `{scheme}://{bare}`: the scheme is missing")),
            None => TextFault::Plain,
        });
    };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(faulty(format!("the scheme is `http` or `https`, not `{}`", url.scheme())));
    }
    if proxy && (!matches!(url.path(), "" | "/") || url.query().is_some()) {
        return Err(TextFault::Explained {
            expected: "a proxy: scheme, host and port, without a path".to_owned(),
            hint: Some("if the address is that of a PAC file, write the proxy it names".to_owned()),
        });
    }
    if origin_only {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TextFault::because("an origin without user name and password"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            let origin = url.origin().ascii_serialization();
            return Err(TextFault::Explained {
                expected: "an origin: scheme, host and port, without a path".to_owned(),
                hint: Some(format!("write `{origin}`")),
            });
        }
    }
    Ok(())
}

/// Converts a text to the type of the schema, for hosts and variables that have only text. Lists are separated by
/// commas; `_secs` keys take `s`, `m`, `h`, `d`, byte counts `K`, `M`, `G` (of 1024); switches accept the words that
/// agents accept. `None`: it stays a text, and the check reports the expectation.
pub fn typed_from_text(schema: &Schema, key: &str, text: &str) -> Option<Value> {
    let text = text.trim();
    match schema["type"].as_str()? {
        "integer" => integer_from_text(key, text).map(Value::Integer),
        "boolean" => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Some(Value::Boolean(true)),
            "false" | "off" | "no" | "0" => Some(Value::Boolean(false)),
            _ => None,
        },
        "array" => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => None,
    }
}

fn integer_from_text(key: &str, text: &str) -> Option<i64> {
    let units: &[(char, i64)] = if key.ends_with("_secs") {
        &[('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)]
    } else if key.contains("bytes") {
        &[('k', 1 << 10), ('m', 1 << 20), ('g', 1 << 30)]
    } else {
        &[]
    };
    let unit = units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(*unit).or_else(|| text.strip_suffix(unit.to_ascii_uppercase()))?;
        Some((number, *factor))
    });
    let (number, factor) = unit.unwrap_or((text, 1));
    number.trim().parse::<i64>().ok()?.checked_mul(factor)
}

/// Whether the file a key names can be opened.
pub(super) fn check_file(findings: &mut Findings, table: &Table, path: &str, key: &str) {
    let path = join(path, key);
    let Some(file) = table.get(key).and_then(Value::as_str).filter(|f| !f.is_empty()) else { return };
    if findings.clean(&path)
        && let Err(error) = std::fs::File::open(file)
    {
        unreadable(findings, path, file, &error);
    }
}

/// Records that a file cannot be read now.
pub(super) fn unreadable(findings: &mut Findings, path: String, file: &str, error: &std::io::Error) {
    let shown = findings.shown(&Schema::Null, &Value::String(file.to_owned()), &path);
    let expected = format!("a file that can be read: {error}");
    findings
        .note(Problem::new(path, Fault::File, expected).value(shown).hint(hint_for_unreadable(Path::new(file), error)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_taken_only_if_the_log_can_read_it() {
        for text in ["info", "INFO", "off", " info , m365_audit=debug,", "m365_audit::source", "warn,hyper=error"] {
            assert!(check_level(text).is_ok(), "{text}");
        }
        for text in ["loud", " , ", "a=b=info", "info,m365_audit=", "m365_audit[tenant]=debug", "[{tenant=a}]=info"] {
            assert!(matches!(check_level(text), Err(TextFault::Explained { hint: Some(_), .. })), "{text}");
        }
    }

    #[test]
    fn numbers_with_units_are_read_where_the_key_has_that_unit() {
        for (key, text, expected) in [
            ("poll_interval_secs", "300", Some(300)),
            ("poll_interval_secs", "5m", Some(300)),
            ("backfill_secs", "7d", Some(604_800)),
            ("in_flight_bytes_max", "32M", Some(33_554_432)),
            ("in_flight_bytes_max", "5h", None),
            ("event_keys_max", "5m", None),
            ("poll_interval_secs", "9223372036854775807d", None),
        ] {
            assert_eq!(integer_from_text(key, text), expected, "{key} = {text}");
        }
    }

    #[test]
    fn the_nearest_key_is_near() {
        let known = ["tenant_id", "client_id", "client_secret", "client_secret_file", "poll_interval_secs"];
        for (word, expected) in [
            ("tenantid", Some("tenant_id")),
            ("Tenant-ID", Some("tenant_id")),
            ("client_secrt", Some("client_secret")),
            ("poll_interval", Some("poll_interval_secs")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(word, &known), expected, "{word}");
        }
    }
}
