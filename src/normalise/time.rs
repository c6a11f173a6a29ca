//! Converts `CreationTime` into an instant and into RFC 3339 text.

use std::borrow::Cow;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::model::Timestamp;

/// The time of an event: the instant and its text in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventTime<'a> {
    /// The instant.
    pub at: Timestamp,
    /// RFC 3339 in UTC without the `Z` at its end, the fraction as given.
    pub civil: Cow<'a, str>,
}

/// Microsoft writes "never" as a time before this year (`0001-01-01T00:00:00`); no event has one.
const EARLIEST_YEAR: i16 = 1970;

/// Reads a time: ISO 8601 with `T` or a blank, a fraction of 1 to 9 digits or none, `Z`, an offset or no zone, which
/// is UTC. `None` for anything else and for years before 1970.
pub(crate) fn parse(text: &str) -> Option<EventTime<'_>> {
    let text = text.trim();
    plain(text).or_else(|| general(text)).filter(|time| time.at >= Timestamp::UNIX_EPOCH)
}

/// The form of nearly every record, `2026-07-16T20:45:19`, with a fraction and `Z` or without: its text is copied.
fn plain(text: &str) -> Option<EventTime<'_>> {
    // By bytes: for one character the methods of `str` cost a call of `memcmp` each.
    let civil = match text.as_bytes() {
        [.., b'Z'] => text.get(..text.len() - 1)?,
        _ => text,
    };
    let bytes: &[u8; 19] = civil.as_bytes().first_chunk()?;
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', i1, i2, b':', s1, s2] = bytes else {
        return None;
    };
    let two = |tens: &u8, ones: &u8| -> Option<i8> {
        (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| ((tens - b'0') * 10 + (ones - b'0')) as i8)
    };
    let year = i16::from(two(y1, y2)?) * 100 + i16::from(two(y3, y4)?);
    let nanos = match civil.as_bytes().get(19..)? {
        [] => 0,
        [b'.', digits @ ..] if (1..=9).contains(&digits.len()) => {
            let number = digits
                .iter()
                .try_fold(0, |n, digit| digit.is_ascii_digit().then(|| n * 10 + i32::from(digit - b'0')))?;
            number * 10_i32.pow(9 - digits.len() as u32)
        }
        _ => return None,
    };
    let at = DateTime::new(year, two(m1, m2)?, two(d1, d2)?, two(h1, h2)?, two(i1, i2)?, two(s1, s2)?, nanos).ok()?;
    if year < EARLIEST_YEAR {
        return None;
    }
    Some(EventTime { at: TimeZone::UTC.to_timestamp(at).ok()?, civil: Cow::Borrowed(civil) })
}

fn general(text: &str) -> Option<EventTime<'static>> {
    let at = match text.parse::<Timestamp>() {
        Ok(at) => at,
        Err(_) => TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok()?,
    };
    // The fraction's digits are kept as given: `.1200000` shows the precision of its writer.
    let digits = fraction_digits(text).min(9);
    let mut civil = format!("{at:.digits$}");
    civil.pop();
    Some(EventTime { at, civil: Cow::Owned(civil) })
}

fn fraction_digits(text: &str) -> usize {
    let Some((_, fraction)) = text.split_once(['.', ',']) else { return 0 };
    fraction.bytes().take_while(u8::is_ascii_digit).count()
}

/// Appends `2026-07-16T20:45:19Z`, with a fraction where the instant has one, as a JSON string.
pub(crate) fn push(out: &mut Vec<u8>, at: Timestamp) {
    super::json::push_string(out, &at.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_become_rfc_3339_in_utc_with_the_fraction_given() {
        for (text, expected) in [
            ("2026-07-16T20:45:19", Some("2026-07-16T20:45:19")),
            ("2026-07-16T20:45:19Z", Some("2026-07-16T20:45:19")),
            ("2026-07-16T20:45:19.1200000Z", Some("2026-07-16T20:45:19.1200000")),
            ("2026-07-16T20:45:19.5", Some("2026-07-16T20:45:19.5")),
            ("2026-07-16T20:45:19.123456789", Some("2026-07-16T20:45:19.123456789")),
            ("2026-07-16T22:45:19+02:00", Some("2026-07-16T20:45:19")),
            ("2026-07-16T22:45:19.50+02:00", Some("2026-07-16T20:45:19.50")),
            ("2026-07-16 20:45:19", Some("2026-07-16T20:45:19")),
            ("  2026-07-16T20:45:19 ", Some("2026-07-16T20:45:19")),
            ("0001-01-01T00:00:00", None),
            ("9/30/2024 6:16:41 AM", None),
            ("2026-02-30T00:00:00", None),
            ("2026-07-16T20:45:19.", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(parse(text).map(|time| time.civil).as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_and_the_long_way_agree(text in r"(19[6-9]|20[0-9])[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z?") {
            if let Some(short) = plain(&text) {
                prop_assert_eq!(general(&text), Some(short));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
