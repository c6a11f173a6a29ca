//! The headers that other programs write before an event on its line: syslog's header, a container runtime's,
//! Fluentd's.

use memchr::{memchr, memmem};

use crate::normalise::Members;

/// A shorter prefix may be a byte or two of damage.
const PREFIX_BYTES_MIN: usize = 8;
/// A longer prefix is not a header.
const PREFIX_BYTES_MAX: usize = 1024;

/// The length of the prefix of a line whose rest is one whole JSON object. `None` if there is no such prefix: then no
/// byte before a brace may be skipped.
pub fn length(line: &[u8]) -> Option<usize> {
    let head = line.get(..PREFIX_BYTES_MAX).unwrap_or(line);
    let at = memchr(b'{', head)?;
    let before = line.get(..at)?;
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    let looks_right = at >= PREFIX_BYTES_MIN
        && before.iter().all(is_text)
        && before.iter().filter(|byte| byte.is_ascii_alphanumeric()).count() >= PREFIX_BYTES_MIN / 2
        // An object that lost its first brace is not a prefix, nor is a piece of JSON in a string.
        && memmem::find(before, b"\":").is_none()
        && !before.contains(&b'\\')
        && std::str::from_utf8(before).is_ok();
    if !looks_right {
        return None;
    }
    let rest = line.get(at..)?.trim_ascii_end();
    (Members::default().read(rest) == Some(rest.len())).then_some(at)
}

/// A line in the format of container runtimes: `2026-03-02T10:15:00.1Z stdout F …`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeLine<'a> {
    /// `stdout` or `stderr`.
    pub stream: &'a [u8],
    /// Whether the line continues in the next one of its stream.
    pub is_partial: bool,
    /// The text of the line.
    pub text: &'a [u8],
}

/// Reads such a line; `None` for any other.
pub fn runtime_line(line: &[u8]) -> Option<RuntimeLine<'_>> {
    let (time, rest) = word(line)?;
    let (stream, rest) = word(rest)?;
    let (tag, text) = rest.split_at_checked(1)?;
    let is_time = time.len() >= 20 && time.get(10) == Some(&b'T') && time.iter().take(4).all(u8::is_ascii_digit);
    let is_partial = match tag {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let text = text.strip_prefix(b" ").or(text.is_empty().then_some(text))?;
    (is_time && matches!(stream, b"stdout" | b"stderr")).then_some(RuntimeLine { stream, is_partial, text })
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b' ', text.get(..64).unwrap_or(text))?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_told_from_damage() {
        for (prefix, is_one) in [
            ("<13>Mar  2 10:15:00 host m365[1]: ", true),
            ("<13>1 2026-03-02T10:15:00Z host m365 - - [x@1 a=\"b\"] ", true),
            ("2026-03-02T10:15:00+00:00\tm365.audit\t", true),
            ("2026-03-02 10:15:00,123 INFO audit ", true),
            ("", false),
            ("x", false),
            ("1, ", false),
            ("\"Id\":\"a\",\"X\":", false),
            ("\\\"Id\\\":\\\"abcdefg", false),
            ("........ , ", false),
            ("abcdefgh\u{0}", false),
        ] {
            let line = format!("{prefix}{{\"Id\":\"a\"}}\r");
            assert_eq!(length(line.as_bytes()), is_one.then_some(prefix.len()), "{prefix}");
            for broken in ["{\"Id\":\"a\"", "{\"Id\":\"a\"} x", "{\"Id\":a}"] {
                assert_eq!(length(format!("{prefix}{broken}").as_bytes()), None, "{prefix}{broken}");
            }
        }
    }

    #[test]
    fn a_runtimes_line_says_its_stream_and_whether_it_goes_on() {
        let line = |text| runtime_line(text).map(|line| (line.stream, line.is_partial, line.text));
        assert_eq!(
            line(b"2026-03-02T10:15:00.123456789Z stdout P {\"Id\""),
            Some((&b"stdout"[..], true, &b"{\"Id\""[..]))
        );
        assert_eq!(line(b"2026-03-02T10:15:00+01:00 stderr F "), Some((&b"stderr"[..], false, &b""[..])));
        for other in [&b"2026-03-02T10:15:00Z stdout X {}"[..], b"now stdout F {}", b"2026-03-02T10:15:00Z", b"{}"] {
            assert_eq!(line(other), None);
        }
    }
}
