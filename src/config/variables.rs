//! `${NAME}` in any string: replaced in parsed strings, not in the text, so that a value can never become TOML.

use std::collections::BTreeMap;

use toml::Value;

use super::problem::{Fault, Problem, join};

/// Looks up an environment variable.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces `${NAME}` in every string of `table`, and `$$` by one dollar. Records in `written` the original of each
/// changed string, by its path; a string that cannot be replaced stays and becomes a problem.
pub(super) fn expand(
    table: &mut toml::Table,
    path: &str,
    env: Env<'_>,
    written: &mut BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) {
    for (key, value) in table.iter_mut() {
        expand_value(value, &join(path, key), env, written, problems);
    }
}

fn expand_value(
    value: &mut Value,
    path: &str,
    env: Env<'_>,
    written: &mut BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) {
    match value {
        Value::String(text) if text.contains('$') => match replace(text, env) {
            Ok(replaced) => {
                if replaced != *text {
                    written.insert(path.to_owned(), std::mem::replace(text, replaced));
                }
            }
            // The value is not shown, since it may be part of a secret.
            Err(faults) => {
                problems.extend(faults.into_iter().map(|expected| Problem::new(path, Fault::Invalid, expected)));
            }
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand_value(item, &format!("{path}[{index}]"), env, written, problems);
            }
        }
        Value::Table(table) => expand(table, path, env, written, problems),
        _ => {}
    }
}

/// The text with its variables replaced, or the expectation for each that could not be replaced.
fn replace(text: &str, env: Env<'_>) -> Result<String, Vec<String>> {
    let mut out = String::with_capacity(text.len());
    let mut faults = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            match after.split_once('}') {
                Some((name, after)) if is_name(name) => {
                    match env(name) {
                        Some(value) => out.push_str(&value),
                        None => faults.push(format!("the environment variable `{name}` to be set")),
                    }
                    after
                }
                _ => {
                    faults.push("`${NAME}` with a name of letters, digits and `_`, or `$$` for a dollar".to_owned());
                    return Err(faults);
                }
            }
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    if faults.is_empty() { Ok(out) } else { Err(faults) }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("alpha".to_owned()),
            "TRICK" => Some("\"\n[sinks.evil]\ntype = \"${A}\"".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_once_and_dollars_can_be_written() {
        for (text, expected) in [
            ("${A}", "alpha"),
            ("x${A}y${A}", "xalphayalpha"),
            ("$${A}", "${A}"),
            ("a$b$", "a$b$"),
            ("p$$w", "p$w"),
            ("${TRICK}", "\"\n[sinks.evil]\ntype = \"${A}\""),
        ] {
            assert_eq!(replace(text, &env).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        assert_eq!(replace("${B}${A}${C}", &env).unwrap_err().len(), 2);
        for text in ["${", "${}", "${A", "${1A}", "${A:-x}"] {
            assert!(replace(text, &env).is_err(), "{text}");
        }
    }
}
