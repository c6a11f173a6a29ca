//! Finds values below a token by name or path, and classifies texts.

use std::borrow::Cow;

use super::json;

/// The text of a member of an object token.
pub(crate) fn inner<'t>(token: &'t str, name: &str) -> Option<Cow<'t, str>> {
    json::scalar(json::get(token, name)?).filter(|text| !json::is_blank(text))
}

/// Whether a text can be a mail address: exactly one `@`, no blank, no backslash.
pub(crate) fn is_address(text: &str) -> bool {
    text.matches('@').count() == 1
        && !text.starts_with('@')
        && !text.ends_with('@')
        && !text.contains(|c: char| c.is_whitespace() || matches!(c, '\\' | '/' | ':' | '|'))
}

/// The first member of a path and the path below it. Paths are short, so no search for long distances is set up.
pub(crate) fn first_member(path: &str) -> (&str, &str) {
    match path.bytes().position(|byte| byte == b'.') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (path, ""),
    }
}

/// Passes the values at `path` below a token to `test`, including those in lists and in JSON inside strings.
pub(crate) fn any_at(token: &str, path: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut found = false;
    match token.as_bytes().first() {
        Some(b'[') => json::elements(token, |element| {
            // The feed has no list inside a list, and the depth is controlled by the network.
            found = found || (!element.starts_with('[') && any_at(element, path, test));
        }),
        Some(b'{') if path.is_empty() => found = test(&json::compact(token)),
        Some(b'{') => {
            let (first, rest) = first_member(path);
            found = json::get(token, first).is_some_and(|token| any_at(token, rest, test));
        }
        _ => {
            if let Some(text) = json::scalar(token) {
                found = match path.is_empty() {
                    true => test(&text),
                    // A JSON string inside this one is not parsed: the search ends here.
                    false => text.trim().starts_with(['{', '[']) && any_at(text.trim(), path, test),
                };
            }
        }
    }
    found
}

/// The maximum depth of [`each_scalar`]; the depth of the input is controlled by the network.
const DEPTH_MAX: usize = 8;

/// Passes every scalar below a token to `take`, with its key; JSON inside strings is parsed, too.
pub(crate) fn each_scalar(token: &str, take: &mut dyn FnMut(&str, &str)) {
    each_below("", token, 0, take);
}

fn each_below(key: &str, token: &str, depth: usize, take: &mut dyn FnMut(&str, &str)) {
    if depth > DEPTH_MAX {
        return;
    }
    match token.as_bytes().first() {
        Some(b'[') => json::elements(token, |element| each_below(key, element, depth + 1, take)),
        Some(b'{') => json::members(token, |key, value| each_below(&key, value, depth + 1, take)),
        _ => {
            let Some(text) = json::scalar(token).filter(|text| !text.trim().is_empty()) else { return };
            let inside = text.trim();
            match token.starts_with('"') && inside.starts_with(['{', '[']) && json::is_valid(inside) {
                true => each_below(key, inside, depth + 1, take),
                false => take(key, &text),
            }
        }
    }
}
