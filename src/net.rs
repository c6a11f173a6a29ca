//! Shared code for HTTP, independent of the peer: the wait that an answer requests, and foreign texts for display.
//! Knows no protocol above HTTP and no service.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::config::Secret;
use crate::model::Timestamp;

/// The longest wait accepted from an answer: a header of a year is a fault, and content expires after a week.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Longest piece of an answer shown to an operator, in characters.
pub(crate) const EXCERPT_CHARS_MAX: usize = 300;
/// The shortest text treated as a secret in displayed text; real ones have 40 characters and more.
const REDACTED_BYTES_MIN: usize = 4;

/// `Retry-After` in either of its forms, as a wait from `now` of at most [`RETRY_AFTER_MAX`]. A date in the past means
/// no wait.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default().min(RETRY_AFTER_MAX))
}

/// `text` without the secrets, plain or encoded as in a form or URL.
pub(crate) fn redact(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        let raw = secret.expose();
        // Shorter ones are not secrets, and removing them would make messages unreadable.
        if raw.len() < REDACTED_BYTES_MIN {
            continue;
        }
        let encoded: String = url::form_urlencoded::byte_serialize(raw.as_bytes()).collect();
        for form in [raw, encoded.as_str()] {
            if text.contains(form) {
                text = text.replace(form, "***");
            }
        }
    }
    text
}

/// One line of at most [`EXCERPT_CHARS_MAX`] characters, without characters that would end the quotes around it.
pub(crate) fn excerpt(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.trim().chars().enumerate() {
        if i == EXCERPT_CHARS_MAX {
            out.push('…');
            break;
        }
        out.push(if c.is_control() || c == '`' { ' ' } else { c });
    }
    out
}

/// An error with its causes, for errors with a meaningless text of their own ("error sending request").
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = "2026-05-01T00:00:00Z".parse().unwrap();
        let read = |text| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
        assert_eq!(read("30"), Some(30));
        assert_eq!(read("Fri, 01 May 2026 00:02:00 GMT"), Some(120));
        assert_eq!(read("Thu, 30 Apr 2026 00:02:00 GMT"), Some(0));
        assert_eq!(read("soon"), None);
        assert_eq!(read("18446744073709551615"), Some(3600));
        assert_eq!(read("Sat, 01 Jan 2089 00:00:00 GMT"), Some(3600));
    }

    #[test]
    fn what_is_shown_is_one_bounded_line_without_a_secret() {
        let secret = Secret::from("p&ss w+rd");
        assert_eq!(redact("a p&ss w+rd b p%26ss+w%2Brd", &[&secret]), "a *** b ***");
        assert_eq!(excerpt(&"x".repeat(1000)).chars().count(), EXCERPT_CHARS_MAX + 1);
        assert_eq!(excerpt("a\r\nb`c"), "a  b c");
    }
}
