//! Masks values that must not leave the machine: those found by DLP (`DetectedValues`) and the members that the
//! operator names.
//!
//! The mask works on the event's text before anything is derived from it, so that no record in any format shows a
//! masked value. A string becomes `"[masked]"`, a number 0; keys, lists and their lengths stay. An event with nothing
//! to mask costs one search through its bytes and is not copied.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::censor::{Censor, may_be_detected_values};
use super::event::{Event, KnownMember};
use super::json;

/// The replacement for a masked text.
pub const MASKED: &str = "[masked]";
/// The member that holds the values found and the text around them, wherever it occurs.
const DETECTED_VALUES: &str = "DetectedValues";
/// The part of that name which is the same in every spelling seen.
const CORE: &[u8] = b"etected";
/// How many levels of JSON inside JSON strings are searched.
const NESTING_MAX: usize = 3;

/// What to mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    detected_values: bool,
    pointers: Vec<Vec<String>>,
}

/// A text that is not a JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a JSON pointer such as `/Subject` or `/Item/Subject`")]
pub struct NotAPointer(pub String);

impl Default for Mask {
    /// Masks the values found by DLP, and nothing else.
    fn default() -> Self {
        Self { detected_values: true, pointers: Vec::new() }
    }
}

impl Mask {
    /// Masks the values found by DLP, if `detected_values` is set, and the members that `pointers` name: JSON pointers
    /// (RFC 6901) whose names are compared without case, `*` standing for every element of a list.
    ///
    /// # Errors
    /// The first text that is not a pointer.
    pub fn new(detected_values: bool, pointers: &[String]) -> Result<Mask, NotAPointer> {
        let pointers = pointers.iter().map(|text| parse_pointer(text).ok_or_else(|| NotAPointer(text.clone())));
        Ok(Mask { detected_values, pointers: pointers.collect::<Result<_, _>>()? })
    }

    /// The check that decides whether bytes that cannot be parsed may be shown.
    pub(crate) fn censor(&self) -> Censor {
        let detected = self.detected_values.then_some(DETECTED_VALUES);
        let pointed = self.pointers.iter().map(|pointer| {
            // The innermost name; a pointer that names nothing may point at anything.
            let names = pointer.iter().rev().filter(|name| *name != "*" && name.parse::<usize>().is_err());
            names.map(String::as_str).next().unwrap_or_default()
        });
        Censor::new(detected.into_iter().chain(pointed))
    }

    /// The event's text without the values found by DLP; `None` if it had none, or if they are not masked.
    pub(crate) fn without_detected(&self, event: &Event<'_>) -> Option<String> {
        Mask { detected_values: self.detected_values, pointers: Vec::new() }.apply(event)
    }

    /// Whether something may have to be masked; false is certain and cheap.
    pub(crate) fn may_apply(&self, event: &Event<'_>) -> bool {
        !self.pointers.is_empty() || self.detected_values && (may_have_detected(event) || may_have_prompts(event))
    }

    /// The event's text with everything masked; `None` when there was nothing to mask.
    pub(crate) fn apply(&self, event: &Event<'_>) -> Option<String> {
        if !self.may_apply(event) {
            return None;
        }
        let text = event.text();
        let detected = self.detected_values && may_have_detected(event);
        let mut edits = Edits { text, edits: Vec::new() };
        if detected {
            edits.find(MaskTarget::DetectedValues, 0);
        }
        if self.detected_values && may_have_prompts(event) {
            PROMPTS.iter().for_each(|pointer| edits.point(text, pointer));
        }
        for pointer in &self.pointers {
            edits.point(text, pointer);
        }
        edits.done()
    }
}

/// Names of members that hold what somebody asked an AI application, or what it answered.
const PROMPT_NAMES: [&str; 6] = ["Text", "Content", "Prompt", "Response", "Body", "Answer"];

/// Where they occur. Microsoft's feed has the ids of messages and no text; exports and other applications' records may.
static PROMPTS: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| {
    let places: [&[&str]; 3] = [&["CopilotEventData", "Messages", "*"], &["CopilotEventData"], &["Messages", "*"]];
    let below =
        |place: &[&str]| PROMPT_NAMES.map(|name| place.iter().chain([&name]).map(|part| (*part).to_owned()).collect());
    places.into_iter().flat_map(below).collect()
});

/// Whether a record of an AI application may hold prompts; false is certain and cheap.
fn may_have_prompts(event: &Event<'_>) -> bool {
    let Some(token) = event.get(KnownMember::CopilotEventData) else { return false };
    let bytes = token.as_bytes();
    PROMPT_ENDS.iter().zip(PROMPT_NAMES).any(|(end, name)| {
        // After the first letter, which may be upper or lower case, the spelling does not vary.
        end.find_iter(bytes).any(|at| {
            let before = at.checked_sub(2).and_then(|start| bytes.get(start..at)).unwrap_or_default();
            matches!(before, [b'"', first] if name.as_bytes().first().is_some_and(|known| known.eq_ignore_ascii_case(first)))
        })
    })
}

/// The ends of these names, with the quote after them.
static PROMPT_ENDS: LazyLock<Vec<Finder<'static>>> = LazyLock::new(|| {
    let end = |name: &str| Finder::new(&[name.get(1..).unwrap_or_default(), "\""].concat()).into_owned();
    PROMPT_NAMES.into_iter().map(end).collect()
});

/// Whether the name can occur: cheap, and right for every spelling, damaged in one byte or not, in records of data loss
/// prevention, in those that do not say their type, and of a member of the event itself. Deep in a record of another type
/// it is right for the spellings that Microsoft uses.
fn may_have_detected(event: &Event<'_>) -> bool {
    event.is_suspect() || names_it(event.text())
}

/// Whether a key, as written, is the masked name, possibly with one damaged byte.
fn is_detected_values(key: &str) -> bool {
    let name = json::unescape(key);
    if name.eq_ignore_ascii_case(DETECTED_VALUES) {
        return true;
    }
    if !may_be_detected_values(key.as_bytes()) {
        return false;
    }
    match key.len() {
        ..=16 => {
            // A byte that was damaged into a backslash affects the next one, too.
            let edits_max = if key.contains('\\') { 2 } else { 1 };
            strsim::levenshtein(&name.to_ascii_lowercase(), &DETECTED_VALUES.to_ascii_lowercase()) <= edits_max
        }
        _ => !DETECTED.clone().admits(key.as_bytes()),
    }
}

/// Searches for the name in bytes that cannot be parsed.
static DETECTED: LazyLock<Censor> = LazyLock::new(|| Censor::new([DETECTED_VALUES]));

/// The searcher is built once: building it costs as much as searching an event.
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(CORE));

fn names_it(text: &str) -> bool {
    let bytes = text.as_bytes();
    FINDER.find_iter(bytes).any(|at| {
        let rest = bytes.get(at + CORE.len()..).unwrap_or_default();
        rest.get(..6).is_some_and(|rest| rest.eq_ignore_ascii_case(b"Values"))
    })
}

fn parse_pointer(text: &str) -> Option<Vec<String>> {
    let rest = text.strip_prefix('/').filter(|rest| !rest.is_empty())?;
    Some(rest.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MaskTarget {
    /// Every scalar.
    All,
    /// Scalars below the member.
    DetectedValues,
}

/// Pieces of a text and their replacements.
struct Edits<'t> {
    text: &'t str,
    edits: Vec<(usize, usize, Cow<'static, str>)>,
}

impl<'t> Edits<'t> {
    /// Finds scalars in the whole text.
    fn find(&mut self, wanted: MaskTarget, nesting: usize) {
        self.find_in(self.text, 0, wanted, nesting);
    }

    /// Goes once through a valid JSON text that begins at `offset`, without recursion: depth comes from the network.
    fn find_in(&mut self, text: &'t str, offset: usize, wanted: MaskTarget, nesting: usize) {
        let bytes = text.as_bytes();
        // Depth of the container that is masked as a whole; `pending` between its key and it.
        let mut inside = (wanted == MaskTarget::All).then_some(0);
        let mut pending = false;
        let (mut depth, mut at) = (0_usize, 0_usize);
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    let end = string_end(bytes, at);
                    let after = bytes.get(end..).unwrap_or_default();
                    let colon = after.iter().position(|byte| !byte.is_ascii_whitespace());
                    let is_key = colon.and_then(|colon| after.get(colon)) == Some(&b':');
                    let token = text.get(at..end).unwrap_or_default();
                    if is_key {
                        pending = inside.is_none() && json::inner(token).is_some_and(is_detected_values);
                    } else if inside.is_some() || pending {
                        self.edits.push((offset + at, offset + end, Cow::Borrowed("\"[masked]\"")));
                        pending = false;
                    } else {
                        self.look_inside(token, offset + at, nesting);
                    }
                    at = end;
                }
                b'{' | b'[' => {
                    depth += 1;
                    if pending {
                        inside = Some(depth);
                        pending = false;
                    }
                    at += 1;
                }
                b'}' | b']' => {
                    if inside == Some(depth) {
                        inside = None;
                    }
                    depth = depth.saturating_sub(1);
                    at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
                    let end = at + rest.iter().position(ends).unwrap_or(rest.len());
                    if inside.is_some() || pending {
                        self.edits.push((offset + at, offset + end, Cow::Borrowed("0")));
                        pending = false;
                    }
                    at = end;
                }
                b't' | b'f' | b'n' => {
                    pending = false;
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// JSON in a string can hold the member, too. If such a string names it and cannot be parsed, the whole string is
    /// masked.
    fn look_inside(&mut self, token: &'t str, offset: usize, nesting: usize) {
        if token.len() < DETECTED_VALUES.len() || DETECTED.clone().admits(token.as_bytes()) {
            return;
        }
        let inner = json::inner(token).map(json::unescape).unwrap_or_default();
        // A sentence may mention the name. A text with values beside the name contains quotes or brackets, or is
        // base64.
        if !inner.contains(['{', '[', '"', ':']) && !DETECTED.is_in_base64(token.as_bytes()) {
            return;
        }
        let is_container = inner.trim_start().starts_with(['{', '[']);
        let readable = nesting < NESTING_MAX && is_container && json::is_valid(inner.trim());
        let masked = if readable {
            let mut inside = Edits { text: inner.trim(), edits: Vec::new() };
            inside.find(MaskTarget::DetectedValues, nesting + 1);
            match inside.done() {
                Some(text) => text,
                None => return,
            }
        } else {
            MASKED.to_owned()
        };
        let mut string = Vec::with_capacity(masked.len() + 16);
        json::push_string(&mut string, &masked);
        if let Ok(string) = String::from_utf8(string) {
            self.edits.push((offset, offset + token.len(), Cow::Owned(string)));
        }
    }

    /// Masks what a pointer points at below a token of the text.
    fn point(&mut self, token: &'t str, pointer: &[String]) {
        let Some((name, rest)) = pointer.split_first() else {
            if let Some(offset) = self.offset_of(token) {
                self.find_in(token, offset, MaskTarget::All, NESTING_MAX);
            }
            return;
        };
        if token.starts_with('{') {
            json::members(token, |key, value| {
                if key.eq_ignore_ascii_case(name) || (name == "*") {
                    self.point(value, rest);
                }
            });
        } else if token.starts_with('[') {
            let mut index = 0_usize;
            json::elements(token, |element| {
                if name == "*" || name.parse() == Ok(index) {
                    self.point(element, rest);
                }
                index += 1;
            });
        }
    }

    /// Where a token cut out of the text begins.
    fn offset_of(&self, token: &str) -> Option<usize> {
        (token.as_ptr() as usize)
            .checked_sub(self.text.as_ptr() as usize)
            .filter(|at| at + token.len() <= self.text.len())
    }

    fn done(mut self) -> Option<String> {
        if self.edits.is_empty() {
            return None;
        }
        self.edits.sort_by_key(|(start, end, _)| (*start, std::cmp::Reverse(*end)));
        let mut masked = String::with_capacity(self.text.len());
        let mut at = 0;
        for (start, end, instead) in &self.edits {
            // If one is inside another, or the same occurs twice, the first and longest is kept.
            if *start < at {
                continue;
            }
            masked.push_str(self.text.get(at..*start).unwrap_or_default());
            masked.push_str(instead);
            at = *end;
        }
        masked.push_str(self.text.get(at..).unwrap_or_default());
        Some(masked)
    }
}

/// The index after a string's closing quote.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(step) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += step;
        if bytes.get(at) == Some(&b'"') {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(mask: &Mask, event: &str) -> String {
        mask.apply(&Event::parse(event.as_bytes()).unwrap()).unwrap_or_else(|| "as it is".to_owned())
    }

    #[test]
    fn what_was_found_is_masked_wherever_it_stands_and_nothing_else_is() {
        for (event, expected) in [
            (r#"{"A":1}"#, "as it is"),
            (
                r#"{"CopilotEventData":{"Messages":[{"Id":"1","isPrompt":true,"text":"what is my salary"}],"AppHost":"Word"}}"#,
                r#"{"CopilotEventData":{"Messages":[{"Id":"1","isPrompt":true,"text":"[masked]"}],"AppHost":"Word"}}"#,
            ),
            (r#"{"CopilotEventData":{"Messages":[{"Id":"1","isPrompt":true}]},"Text":"kept"}"#, "as it is"),
            (r#"{"A":"DetectedValues"}"#, "as it is"),
            (r#"{"A":["x","DetectedValues are kept"]}"#, "as it is"),
            (
                r#"{"B" : "x", "D":{"detectedvalues" :[ {"Name":"4111 1111","Value":"card 4111 \" 1111","N":-12.5,"T":true,"Z":null} , {"Name":"2"}], "ResultsTruncated":false,"Count":2}}"#,
                r#"{"B" : "x", "D":{"detectedvalues" :[ {"Name":"[masked]","Value":"[masked]","N":0,"T":true,"Z":null} , {"Name":"[masked]"}], "ResultsTruncated":false,"Count":2}}"#,
            ),
            (r#"{"DetectedValues":"4111","B":"x"}"#, r#"{"DetectedValues":"[masked]","B":"x"}"#),
            (r#"{"DetectedValues":[],"B":"x"}"#, "as it is"),
            (r#"{"DetectedValues":null,"B":"x"}"#, "as it is"),
            (
                r#"{"PolicyDetails":[{"\u0044ETECTEDVALUES":["4111"]}]}"#,
                r#"{"PolicyDetails":[{"\u0044ETECTEDVALUES":["[masked]"]}]}"#,
            ),
            (
                r#"{"Data":"{\"DetectedValues\":[{\"Name\":\"4111\"}],\"x\":\"y\"}"}"#,
                r#"{"Data":"{\"DetectedValues\":[{\"Name\":\"[masked]\"}],\"x\":\"y\"}"}"#,
            ),
            (r#"{"Data":"{\"DetectedValues\":[{\"Name\":\"4111"}"#, r#"{"Data":"[masked]"}"#),
        ] {
            assert_eq!(masked(&Mask::default(), event), expected, "{event}");
            assert_eq!(masked(&Mask::new(false, &[]).unwrap(), event), "as it is", "{event}");
        }
    }

    #[test]
    fn pointers_reach_members_and_elements() {
        let event = r#"{"Subject":"s","Item":{"Subject":"t","Size":5,"To":["a","b"]},"L":[{"x":"1"},{"x":"2"}]}"#;
        for (pointer, expected) in [
            (
                "/subject",
                r#"{"Subject":"[masked]","Item":{"Subject":"t","Size":5,"To":["a","b"]},"L":[{"x":"1"},{"x":"2"}]}"#,
            ),
            (
                "/Item",
                r#"{"Subject":"s","Item":{"Subject":"[masked]","Size":0,"To":["[masked]","[masked]"]},"L":[{"x":"1"},{"x":"2"}]}"#,
            ),
            (
                "/L/*/x",
                r#"{"Subject":"s","Item":{"Subject":"t","Size":5,"To":["a","b"]},"L":[{"x":"[masked]"},{"x":"[masked]"}]}"#,
            ),
            (
                "/L/1/x",
                r#"{"Subject":"s","Item":{"Subject":"t","Size":5,"To":["a","b"]},"L":[{"x":"1"},{"x":"[masked]"}]}"#,
            ),
            ("/Nothing/here", "as it is"),
        ] {
            assert_eq!(masked(&Mask::new(true, &[pointer.to_owned()]).unwrap(), event), expected);
        }
        for bad in ["Subject", "", "/"] {
            assert!(Mask::new(true, &[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_masked_event_is_json_of_the_same_shape_without_the_secret(
            before in any::<String>(), secret in "[a-z]{12}", number in any::<i64>(), quoted in any::<bool>()
        ) {
            let inner = serde_json::json!({"DetectedValues": [{"Name": secret, "Value": [number, {"n": secret}]}]});
            let inner = if quoted { serde_json::Value::String(inner.to_string()) } else { inner };
            let event = serde_json::json!({"Operation": before, "X": inner, "Z": before}).to_string();
            let text = masked(&Mask::default(), &event);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert!(!text.contains(&secret) || before.contains(&secret));
            prop_assert_eq!(value["Z"].as_str(), Some(before.as_str()));
        }
    }
}
