//! A list of records inside an answer: Graph's `value`, Elasticsearch's `hits`, `records` of Azure's exports. It can be
//! of any length, so it is read element by element and never held in memory.

use memchr::memchr;

/// The kind of an object that begins here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageHead {
    /// A page: the number of bytes before the `[` of its list, and of open objects.
    Page(ListStart),
    /// Anything else.
    Other,
    /// More has to be known.
    More,
}

/// The position at which the list of a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListStart {
    /// Bytes before the `[`.
    pub length: usize,
    /// Objects that are open.
    pub objects: usize,
}

/// Whether the text around the list of a page declares that rows are missing: Microsoft Graph's
/// `isRecordCountLimitExceeded`.
pub fn is_truncated(around: &[u8]) -> bool {
    const NAME: &[u8] = b"\"isRecordCountLimitExceeded\"";
    memchr::memmem::find_iter(around, NAME).any(|at| {
        let rest = around.get(at + NAME.len()..).unwrap_or_default().trim_ascii_start();
        rest.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}

/// The head of a page is no longer than this.
const HEAD_BYTES_MAX: usize = 4096;

/// Members that are the list of a page, or contain it.
const LISTS: [&[u8]; 8] = [b"value", b"records", b"results", b"hits", b"data", b"items", b"body", b"response"];
/// Members that no page has.
const OF_EVENTS: [&[u8]; 8] =
    [b"Id", b"Operation", b"CreationTime", b"RecordType", b"AuditData", b"auditData", b"log", b"source"];

/// The kind of the object with which `text` begins.
pub fn head(text: &[u8], ended: bool) -> PageHead {
    let seen = text.get(..HEAD_BYTES_MAX).unwrap_or(text);
    match read_head(seen) {
        Ok(head) => head,
        Err(Cut) if seen.len() < HEAD_BYTES_MAX && !ended => PageHead::More,
        Err(Cut) => PageHead::Other,
    }
}

/// The text ended.
struct Cut;

fn read_head(text: &[u8]) -> Result<PageHead, Cut> {
    let mut at = 1;
    let mut objects = 1;
    loop {
        at = blank(text, at)?;
        if text.get(at) != Some(&b'"') {
            return Ok(PageHead::Other);
        }
        let key_end = string(text, at)?;
        let key = text.get(at + 1..key_end - 1).unwrap_or_default();
        at = blank(text, key_end)?;
        if text.get(at) != Some(&b':') || OF_EVENTS.contains(&key) {
            return Ok(PageHead::Other);
        }
        at = blank(text, at + 1)?;
        let is_list = LISTS.iter().any(|list| list.eq_ignore_ascii_case(key));
        match text.get(at).copied().ok_or(Cut)? {
            b'[' if is_list => return Ok(PageHead::Page(ListStart { length: at, objects })),
            b'{' if is_list => {
                objects += 1;
                at += 1;
                continue;
            }
            b'{' | b'[' => at = container(text, at)?,
            b'"' => at = string(text, at)?,
            _ => at += text.get(at..).unwrap_or_default().iter().position(|b| matches!(b, b',' | b'}')).ok_or(Cut)?,
        }
        at = blank(text, at)?;
        if text.get(at) != Some(&b',') {
            return Ok(PageHead::Other);
        }
        at += 1;
    }
}

fn blank(text: &[u8], at: usize) -> Result<usize, Cut> {
    let rest = text.get(at..).ok_or(Cut)?;
    rest.iter().position(|byte| !byte.is_ascii_whitespace()).map(|skip| at + skip).ok_or(Cut)
}

/// The index after the string that begins at `at`.
fn string(text: &[u8], at: usize) -> Result<usize, Cut> {
    let mut at = at + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..).ok_or(Cut)?).ok_or(Cut)?;
        if text.get(at) == Some(&b'"') {
            return Ok(at + 1);
        }
        at += 2;
    }
}

/// The index after the object or array that begins at `at`.
fn container(text: &[u8], mut at: usize) -> Result<usize, Cut> {
    let mut depth = 0usize;
    loop {
        match *text.get(at).ok_or(Cut)? {
            b'"' => {
                at = string(text, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Ok(at);
        }
    }
}

/// The text that follows the list of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// This many bytes end the page.
    Whole(usize),
    /// This many bytes are not a valid end of a page.
    Broken(usize),
    /// More has to be known.
    More,
}

/// The rest of a page is no longer than this.
const TAIL_BYTES_MAX: usize = 64 * 1024;

/// The end of the page whose list ended just before `text`.
pub fn tail(text: &[u8], objects: usize, ended: bool) -> Tail {
    let line = memchr(b'\n', text).map_or(text.len(), |end| end + 1);
    let mut at = 0;
    let mut depth = objects;
    while depth > 0 {
        let Ok(next) = blank(text, at) else { break };
        match text.get(next) {
            Some(b'}') => (at, depth) = (next + 1, depth - 1),
            // Another object may begin only where a member continues: a page that lost its end ends with its line.
            Some(b',') => match member(text, next + 1) {
                Ok(Some(end)) => at = end,
                Ok(None) => return Tail::Broken(line),
                Err(Cut) => break,
            },
            _ => return Tail::Broken(if next == 0 { line } else { next }),
        }
    }
    match depth {
        0 => Tail::Whole(at),
        _ if ended || text.len() > TAIL_BYTES_MAX => Tail::Broken(line),
        _ => Tail::More,
    }
}

/// The index after a member; `None` where there is none.
fn member(text: &[u8], at: usize) -> Result<Option<usize>, Cut> {
    let at = blank(text, at)?;
    if text.get(at) != Some(&b'"') {
        return Ok(None);
    }
    let at = blank(text, string(text, at)?)?;
    if text.get(at) != Some(&b':') {
        return Ok(None);
    }
    let at = blank(text, at + 1)?;
    match text.get(at) {
        Some(b'"') => string(text, at).map(Some),
        Some(b'{' | b'[') => container(text, at).map(Some),
        _ => {
            let length = text.get(at..).unwrap_or_default().iter().position(|b| matches!(b, b',' | b'}' | b'\n'));
            length.map(|length| Some(at + length)).ok_or(Cut)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_list_and_an_event_is_none() {
        for (text, objects) in [
            (r#"{"value":["#, 1),
            (r#"{"@odata.context":"https://x/$metadata#a,b","value": [{"#, 1),
            (r#"{"took":5,"hits":{"total":{"value":7,"relation":"eq"},"hits":["#, 2),
            (r#"{"Count":2,"value":["#, 1),
        ] {
            let length = text.rfind('[').unwrap();
            assert_eq!(head(text.as_bytes(), false), PageHead::Page(ListStart { length, objects }), "{text}");
        }
        for (text, expected) in [
            (r#"{"Id":"a","value":["#, PageHead::Other),
            (r#"{"x":1}"#, PageHead::Other),
            (r#"{"value":1,"x":["#, PageHead::More),
            (r#"{"@odata.con"#, PageHead::More),
            ("{", PageHead::More),
            ("{x", PageHead::Other),
        ] {
            assert_eq!(head(text.as_bytes(), false), expected, "{text}");
        }
        assert_eq!(head(b"{\"@odata.con", true), PageHead::Other);
    }

    #[test]
    fn a_page_says_that_it_is_truncated() {
        for (around, expected) in [
            (r#"{"isRecordCountLimitExceeded":true,"value":"#, true),
            (r#","isRecordCountLimitExceeded" : true}"#, true),
            (r#","isRecordCountLimitExceeded":false}"#, false),
            (r#","isRecordCountLimitExceeded"}"#, false),
            ("", false),
        ] {
            assert_eq!(is_truncated(around.as_bytes()), expected, "{around}");
        }
    }

    #[test]
    fn a_page_ends_after_its_last_member() {
        for (tail_text, objects) in [
            ("}|", 1),
            (" ,\"@odata.nextLink\":\"https://x?a=}\"\n}|\n{", 1),
            ("}}|x", 2),
            (",\"max\":1.0},\"timed_out\":false}|", 2),
        ] {
            let expected = Tail::Whole(tail_text.find('|').unwrap());
            assert_eq!(tail(tail_text.replace('|', "").as_bytes(), objects, false), expected, "{tail_text}");
        }
        for (text, objects, expected) in [
            (",\"@odata", 1, Tail::More),
            ("", 1, Tail::More),
            ("x\n{\"value\":[", 1, Tail::Broken(2)),
            (",{\"Id\":1}\n", 1, Tail::Broken(10)),
        ] {
            assert_eq!(tail(text.as_bytes(), objects, false), expected, "{text}");
        }
        assert_eq!(tail(b",\"x", 1, true), Tail::Broken(3));
    }
}
