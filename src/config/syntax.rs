//! Explains the errors of a text that is not TOML to its writer: the key, and the correct notation.
//!
//! The parser reports what it found and where. The line shows what the writer meant: a text without quotation marks, a
//! colon as in YAML, `yes`. Values are never shown, since the line may contain a secret.

use serde_json::Value as Schema;
use toml::Value;

use super::check::{expectation, typed_from_text};
use super::problem::{Fault, Problem, join};
use super::schema::known_source_schema;

/// The errors as problems, each with its key; at most one for each line.
pub(super) fn explained(text: &str, errors: &[toml::de::Error]) -> Vec<Problem> {
    if let Some(problem) = other_language(text) {
        return vec![problem];
    }
    let lines: Vec<&str> = text.lines().collect();
    let mut problems: Vec<Problem> = Vec::new();
    // A repeated section also repeats each of its keys.
    let mut repeated: Option<usize> = None;
    for error in errors {
        let at = error
            .span()
            .map_or(1, |span| {
                1 + memchr::memchr_iter(b'\n', text.as_bytes().get(..span.start).unwrap_or_default()).count()
            })
            .min(lines.len().max(1));
        let said = problems.last().is_some_and(|last| last.line == Some(at));
        let follows = repeated.is_some_and(|header| begin_of_section(&lines, at) == Some(header));
        if said || (follows && error.message().starts_with("duplicate key")) {
            continue;
        }
        let problem = of_line(&lines, at, error.message());
        if header(lines.get(at - 1).unwrap_or(&"")).is_some() && error.message().starts_with("duplicate key") {
            repeated = Some(at);
        }
        problems.push(problem);
    }
    problems
}

/// The problem of a file in another language.
fn other_language(text: &str) -> Option<Problem> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    let first = *lines.peek()?;
    let how = "TOML begins a section with `[sources.contoso]` and sets a key with `key = \"value\"`; `m365-audit init` writes a \
               configuration that works";
    let not_ours = |key: &str, what: &str| {
        Some(Problem::new(key, Fault::Syntax, format!("this is {what}, and a configuration is TOML")).hint(how))
    };
    if first.starts_with('{') {
        return not_ours("", "JSON");
    }
    let is_yaml = lines
        .all(|line| !line.contains('=') && !line.starts_with('[') && (line.contains(':') || line.starts_with('-')));
    let key = first.split(':').next().unwrap_or_default().trim();
    (is_yaml && is_bare(key)).then(|| not_ours(key, "YAML")).flatten()
}

/// The name in `[name]` or `[[name]]`, closed or not.
fn header(line: &str) -> Option<&str> {
    let name = line.trim_start().strip_prefix('[')?.trim_start_matches('[');
    Some(name.split([']', '#']).next().unwrap_or_default().trim())
}

/// The line, from 1, of the header above a line; for a header its own.
fn begin_of_section(lines: &[&str], at: usize) -> Option<usize> {
    lines.iter().take(at).rposition(|line| header(line).is_some()).map(|place| place + 1)
}

fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// The key that a line sets, and the rest of the line.
fn key_and_rest(line: &str) -> (&str, &str) {
    let line = line.trim().trim_start_matches(['/', ';', '-', ' ']);
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '.')).unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    (key, rest.trim())
}

fn of_line(lines: &[&str], at: usize, message: &str) -> Problem {
    let line = lines.get(at - 1).copied().unwrap_or_default();
    let section_at = begin_of_section(lines, at);
    let section = section_at.and_then(|place| header(lines.get(place - 1)?)).unwrap_or_default();
    let said = message.replace('\n', ", ");
    let (key, said, hint) = match header(line) {
        Some(name) => (name.to_owned(), said, hint_for_header(lines, at, name, message)),
        None => {
            let (key, rest) = key_and_rest(line);
            let field = match section.strip_prefix("sources.") {
                Some(name) if !name.contains('.') => &known_source_schema()["properties"][key],
                _ => &Schema::Null,
            };
            let path = if is_bare(key) { join(section, key) } else { section.to_owned() };
            let hint = match message.starts_with("duplicate key") {
                true => repeated_key(lines, at, section_at, key),
                false => hint_for(line.trim(), key, rest, field, message),
            };
            (path, said_of_value(said, rest, field), hint)
        }
    };
    let mut problem = Problem::new(key, Fault::Syntax, said);
    problem.line = Some(at);
    problem.hint = hint;
    problem
}

/// The parser's message, if it names the fault; else the values that the key accepts.
fn said_of_value(said: String, rest: &str, field: &Schema) -> String {
    let value = rest.strip_prefix('=').map(str::trim).unwrap_or_default();
    let expected = || if field.is_object() { format!(", expected {}", expectation(field)) } else { String::new() };
    if said.contains("invalid type: integer") {
        return format!("a number too large for any key{}", expected());
    }
    match said.starts_with("string values must be quoted") {
        true if value.is_empty() => format!("the value is missing{}", expected()),
        true => format!("a value without quotation marks that is neither a number nor `true` or `false`{}", expected()),
        false => said,
    }
}

fn hint_for_header(lines: &[&str], at: usize, name: &str, message: &str) -> Option<String> {
    if !message.starts_with("duplicate key") {
        return Some(format!("close the header with `]`: `[{name}]`"));
    }
    let earlier = lines.iter().take(at - 1).position(|line| header(line) == Some(name))? + 1;
    Some(format!("the section is there already on line {earlier}: put its keys together"))
}

fn repeated_key(lines: &[&str], at: usize, section_at: Option<usize>, key: &str) -> Option<String> {
    let begin = section_at.unwrap_or(0);
    let earlier = (begin..at - 1).find(|place| lines.get(*place).is_some_and(|line| key_and_rest(line).0 == key))? + 1;
    Some(format!("it is set already on line {earlier}: keep one of the two"))
}

/// The correct notation.
fn hint_for(line: &str, key: &str, rest: &str, field: &Schema, message: &str) -> Option<String> {
    if line.contains(['\u{201c}', '\u{201d}', '\u{201e}', '\u{2018}', '\u{2019}', '«', '»']) {
        return Some(
            "quotation marks are straight in TOML, `\"`; those of a word processor or a web page are none".into(),
        );
    }
    if line.starts_with("//") || line.starts_with(';') || line.starts_with("--") {
        return Some("a comment begins with `#`".into());
    }
    if !is_bare(key) {
        return Some("a line is `key = value`, `[section]`, or a comment that begins with `#`".into());
    }
    let is_text = !["integer", "boolean", "array", "object"].iter().any(|kind| field["type"] == *kind);
    let example = if is_text { format!("{key} = \"…\"") } else { format!("{key} = …") };
    let Some(value) = rest.strip_prefix('=').map(str::trim) else {
        return Some(match rest.starts_with(':') {
            true => format!("TOML has `=` where YAML has a colon: `{example}`"),
            false => format!("`=` is missing behind the key: `{example}`"),
        });
    };
    if value.is_empty() {
        return Some(format!("write it behind `=`: `{example}`, or take the line out"));
    }
    if value.starts_with('$') {
        return Some(format!("a variable stands in quotation marks and braces: `{key} = \"${{NAME}}\"`"));
    }
    let word = value.split('#').next().unwrap_or_default().trim();
    if ["yes", "no", "on", "off", "true", "false"].contains(&word.to_ascii_lowercase().as_str()) {
        return Some("write `true` or `false`, in small letters and without quotation marks".into());
    }
    if message.contains("escape") {
        return Some(format!(
            "between double quotation marks `\\` is special: write a path of Windows in single ones, `{key} = '…'`"
        ));
    }
    if value.starts_with(['"', '\'']) {
        return Some("the text has no quotation mark at its end: close it on the same line".into());
    }
    if value.starts_with('[') {
        return Some("close the list with `]`; `,` stands between its items".into());
    }
    if message.contains("invalid type: integer") {
        return Some("write a number within that".into());
    }
    if word.starts_with(|c: char| c.is_ascii_digit()) {
        // `32MiB` is `32M`, and secrets do not begin like that.
        let short = word.trim_end_matches(['b', 'B']).trim_end_matches('i');
        let number = serde_json::json!({ "type": "integer" });
        return match typed_from_text(&number, key, short) {
            Some(Value::Integer(number)) => Some(format!("write a number without unit: `{key} = {number}`")),
            _ => Some(format!("write a number without unit, or a text in quotation marks: `{example}`")),
        };
    }
    is_text.then(|| format!("write it in quotation marks: `{example}`"))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn reported(text: &str) -> Vec<String> {
        let problems = Config::parse(text, &|_| None).unwrap_err().problems;
        problems.iter().map(|problem| format!("{problem} | {}", problem.hint.as_deref().unwrap_or_default())).collect()
    }

    #[test]
    fn no_value_of_a_line_that_cannot_be_read_is_shown() {
        for value in ["s3cr3t", "$s3cr3t", "\"s3cr3t", "“s3cr3t”", "s3cr3t: x", "['s3cr3t'", "\"\\s3cr3t\"", "9s3cr3t"]
        {
            let all = reported(&format!("[sources.a]\nclient_secret = {value}\n")).join("\n");
            assert!(all.contains("sources.a.client_secret") && !all.contains("s3cr3t"), "{value}: {all}");
        }
        for line in ["client_secret s3cr3t", "client_secret: s3cr3t", "// client_secret = s3cr3t"] {
            let all = reported(&format!("[sources.a]\n{line}\nx = 1\n")).join("\n");
            assert!(!all.contains("s3cr3t"), "{line}: {all}");
        }
    }

    #[test]
    fn each_line_has_one_problem_and_the_keys_of_a_repeated_section_have_none() {
        let text = "[sources.a]\ntype = \"x\"\n[sources.b]\n[sources.a]\ntype = \"y\"\nformat = ecs\n";
        let reported = reported(text);
        assert_eq!(reported.len(), 2, "{reported:?}");
        assert!(
            reported[0].contains("`sources.a`") && reported[0].ends_with("on line 1: put its keys together"),
            "{reported:?}"
        );
        assert!(reported[1].contains("`sources.a.format`") && reported[1].contains("`format = \"…\"`"), "{reported:?}");
    }
}
