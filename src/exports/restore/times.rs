//! Converts times of other programs into the feed's text.
//!
//! PowerShell writes a time in the format of the machine's region, Windows PowerShell's JSON as `/Date(…)/`, Azure's
//! portal in the American format. None of them names the zone if it is UTC. The month is identified only if one reading
//! is possible or only one region uses the format; otherwise the time stays unread, because a wrong day is worse than
//! none. Formats: .NET's "Standard date and time format strings", pattern `G`.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use crate::model::Timestamp;
use crate::normalise::time;

/// The program that wrote a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeWriter {
    /// A program that uses its machine's region.
    Region,
    /// PowerShell inside of `@{…}`, which is the same everywhere: `MM/dd/yyyy HH:mm:ss`.
    Invariant,
}

/// The time in the feed's format, `2026-03-02T10:15:00`, with a fraction if there is one. `None` when it is unreadable
/// or ambiguous.
pub(crate) fn as_the_feed_writes(text: &str, writer: TimeWriter) -> Option<String> {
    instant(text, writer).map(in_feed_text)
}

/// The instant of such a text.
pub(crate) fn instant(text: &str, writer: TimeWriter) -> Option<Timestamp> {
    let text = text.trim();
    if let Some(read) = time::parse(text) {
        return Some(read.at);
    }
    let at = dotnet_json(text).or_else(|| regional(text, writer))?;
    (at >= Timestamp::UNIX_EPOCH).then_some(at)
}

fn in_feed_text(at: Timestamp) -> String {
    let civil = TimeZone::UTC.to_datetime(at);
    if at.subsec_nanosecond() == 0 { format!("{civil:.0}") } else { civil.to_string() }
}

/// `/Date(1700000000000)/`, also with an offset, which changes nothing: the number is UTC.
fn dotnet_json(text: &str) -> Option<Timestamp> {
    let inside = text.strip_prefix("/Date(")?.strip_suffix(")/")?;
    let sign = inside.get(1..).and_then(|rest| rest.find(['+', '-'])).map(|at| at + 1);
    let millis = inside.get(..sign.unwrap_or(inside.len()))?;
    Timestamp::from_millisecond(millis.parse().ok()?).ok()
}

/// Three numbers of a date, as written.
struct Date<'a> {
    separator: char,
    fields: [&'a str; 3],
}

/// Whether the clock has 12 hours, and the notation of that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HourClock {
    TwentyFour,
    Capital,
    Small,
}

fn regional(text: &str, writer: TimeWriter) -> Option<Timestamp> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '/' | '.' | '-')))?;
    let (date, rest) = text.split_at_checked(end)?;
    let comma = rest.starts_with(',');
    let rest = rest.trim_start_matches(',').trim_start();
    let end = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, ':' | '.'))).unwrap_or(rest.len());
    let (time, rest) = rest.split_at_checked(end)?;
    let (clock, offset) = clock_and_offset(rest.trim())?;
    let (year, month, day) = date_of(date)?.read(clock, writer, comma)?;
    let (hour, minute, second, nanos) = time_of(time, clock)?;
    let civil = DateTime::new(year, month, day, hour, minute, second, nanos).ok()?;
    offset.to_timestamp(civil).ok()
}

/// The text after the time of day: `AM`, `p.m.`, `Z`, `+02:00`, or nothing.
fn clock_and_offset(text: &str) -> Option<(Option<(HourClock, bool)>, Offset)> {
    let letters: String = text.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '.').collect();
    let rest = text.get(letters.len()..)?.trim();
    let clock = match letters.replace('.', "").as_str() {
        "AM" => Some((HourClock::Capital, false)),
        "PM" => Some((HourClock::Capital, true)),
        "am" => Some((HourClock::Small, false)),
        "pm" => Some((HourClock::Small, true)),
        "Z" | "UTC" | "" => None,
        _ => return None,
    };
    let Some(sign) = rest.chars().next() else { return Some((clock, Offset::UTC)) };
    let (hours, minutes) = rest.get(1..)?.split_once(':')?;
    let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
    let seconds = match sign {
        '+' => seconds,
        '-' => -seconds,
        _ => return None,
    };
    Some((clock, Offset::from_seconds(seconds).ok()?))
}

fn date_of(text: &str) -> Option<Date<'_>> {
    let separator = text.chars().find(|c| !c.is_ascii_digit())?;
    let mut parts = text.split(separator);
    let fields = [parts.next()?, parts.next()?, parts.next()?];
    let digits =
        |field: &&str| !field.is_empty() && field.len() <= 4 && field.bytes().all(|byte| byte.is_ascii_digit());
    (parts.next().is_none() && fields.iter().all(digits)).then_some(Date { separator, fields })
}

impl Date<'_> {
    /// Year, month and day, if they can be identified.
    fn read(&self, clock: Option<(HourClock, bool)>, writer: TimeWriter, comma: bool) -> Option<(i16, i8, i8)> {
        let [first, second, third] = self.fields;
        let number = |field: &str| field.parse::<i16>().ok();
        let small = |field: &str| field.parse::<i8>().ok();
        if first.len() == 4 {
            return Some((number(first)?, small(second)?, small(third)?));
        }
        if third.len() != 4 {
            return None;
        }
        let (year, one, two) = (number(third)?, small(first)?, small(second)?);
        let month_first = Some((year, one, two));
        let day_first = Some((year, two, one));
        // Only one reading is possible, or both are the same.
        if one > 12 || one == two {
            return day_first;
        }
        if two > 12 {
            return month_first;
        }
        let padded = |field: &str| field.starts_with('0');
        let clock = clock.map_or(HourClock::TwentyFour, |(clock, _)| clock);
        match (self.separator, writer, clock) {
            // With dots or dashes, either the year or the day comes first.
            ('.' | '-', ..) => day_first,
            (_, TimeWriter::Invariant, _) => month_first,
            // The portal's: `3/2/2026, 10:15:00.000 AM`.
            (_, _, HourClock::Capital) if comma => month_first,
            // `d/MM/yyyy`, Australia's and New Zealand's.
            (_, _, HourClock::Capital | HourClock::Small) if padded(second) && !padded(first) => day_first,
            // `M/d/yyyy h:mm:ss tt`, the United States'.
            (_, _, HourClock::Capital) if !padded(first) => month_first,
            _ => None,
        }
    }
}

/// Hour, minute, second and nanoseconds of `h:mm`, `hh:mm:ss` or `hh:mm:ss.fff`.
fn time_of(text: &str, clock: Option<(HourClock, bool)>) -> Option<(i8, i8, i8, i32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':').map(|part| part.parse::<i8>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    if parts.next().is_some() || fraction.len() > 9 {
        return None;
    }
    let nanos = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    let hour = match clock {
        None => hour,
        Some((_, _)) if !(1..=12).contains(&hour) => return None,
        Some((_, after_noon)) => hour % 12 + if after_noon { 12 } else { 0 },
    };
    Some((hour, minute, second, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read_where_only_one_reading_is_possible() {
        for (text, expected) in [
            ("2026-03-02T10:15:00", Some("2026-03-02T10:15:00")),
            ("2026-03-02T10:15:00Z", Some("2026-03-02T10:15:00")),
            ("2026-03-02T10:15:00.0000000Z", Some("2026-03-02T10:15:00")),
            ("2026-03-02T10:15:00.1230000Z", Some("2026-03-02T10:15:00.123")),
            ("2026-03-02T12:15:00+02:00", Some("2026-03-02T10:15:00")),
            ("2026-03-02 10:15:00", Some("2026-03-02T10:15:00")),
            ("/Date(1772446500000)/", Some("2026-03-02T10:15:00")),
            ("/Date(1772446500000+0200)/", Some("2026-03-02T10:15:00")),
            ("/Date(1772446500123)/", Some("2026-03-02T10:15:00.123")),
            ("/Date(x)/", None),
            // United States.
            ("3/2/2026 10:15:00 AM", Some("2026-03-02T10:15:00")),
            ("3/2/2026 10:15:00\u{202f}PM", Some("2026-03-02T22:15:00")),
            ("3/2/2026 12:05:00 AM", Some("2026-03-02T00:05:00")),
            ("3/2/2026 12:05:00 PM", Some("2026-03-02T12:05:00")),
            ("12/11/2026 10:15:00 AM", Some("2026-12-11T10:15:00")),
            // Azure's portal.
            ("3/2/2026, 10:15:00.120 AM", Some("2026-03-02T10:15:00.12")),
            // Australia.
            ("2/03/2026 10:15:00 AM", Some("2026-03-02T10:15:00")),
            ("2/03/2026 10:15:00 am", Some("2026-03-02T10:15:00")),
            ("2/11/2026 10:15:00 am", None),
            // Germany, the Netherlands, China, the United Kingdom.
            ("02.03.2026 10:15:00", Some("2026-03-02T10:15:00")),
            ("2-3-2026 10:15:00", Some("2026-03-02T10:15:00")),
            ("2026/3/2 10:15:00", Some("2026-03-02T10:15:00")),
            ("02/03/2026 10:15:00", None),
            ("13/03/2026 10:15:00", Some("2026-03-13T10:15:00")),
            ("03/13/2026 10:15:00", Some("2026-03-13T10:15:00")),
            ("03/03/2026 10:15:00", Some("2026-03-03T10:15:00")),
            ("03/13/2026 10:15:00 +00:00", Some("2026-03-13T10:15:00")),
            ("03/13/2026 12:15:00 +02:00", Some("2026-03-13T10:15:00")),
            ("3/32/2026 10:15:00 AM", None),
            ("13/13/2026 10:15:00", None),
            ("3/2/26 10:15:00 AM", None),
            ("3/2/2026 13:15:00 AM", None),
            ("3/2/2026", None),
            ("1/1/0001 12:00:00 AM", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(as_the_feed_writes(text, TimeWriter::Region).as_deref(), expected, "{text}");
        }
        assert_eq!(
            as_the_feed_writes("02/03/2026 10:15:00", TimeWriter::Invariant).as_deref(),
            Some("2026-02-03T10:15:00")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r"[0-9/.,: APMapm+-]{0,40}|/Date\([0-9+-]{0,24}\)/|.*") {
            let _ = as_the_feed_writes(&text, TimeWriter::Region);
            let _ = as_the_feed_writes(&text, TimeWriter::Invariant);
        }
    }
}
