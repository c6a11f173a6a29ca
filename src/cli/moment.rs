//! Parses times of the command line, and formats spans of time for it.

use jiff::SignedDuration;

use crate::clock::{Clock as _, SystemClock};
use crate::model::Timestamp;

/// A time, or how long ago it was.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let expected =
        || format!("`{text}` is not a time: expected 2026-05-01T00:00:00Z, 2026-05-01 or an age such as 3d, 12h, 90m");
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && text.contains('-')
    {
        return jiff::tz::TimeZone::UTC
            .to_timestamp(date.to_datetime(jiff::civil::Time::midnight()))
            .map_err(|_| expected());
    }
    let age = age(text).ok_or_else(expected)?;
    if age.is_zero() {
        return Err(expected());
    }
    SystemClock::new().now().checked_sub(age).map_err(|_| expected())
}

/// An age such as `3d`, `1d12h`, `90m`, `0s`.
pub(super) fn age(text: &str) -> Option<SignedDuration> {
    let mut age = SignedDuration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let (number, unit) = rest.split_at(digits);
        let number: i64 = number.parse().ok()?;
        let secs = match unit.chars().next()? {
            'd' => 86_400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        age = number.checked_mul(secs).and_then(|n| age.checked_add(SignedDuration::from_secs(n)))?;
        rest = unit.get(1..)?;
    }
    Some(age)
}

/// A number of seconds in words.
pub(super) fn span(seconds: f64) -> String {
    let secs = seconds.max(0.0).round() as u64;
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} d {} h", secs / 86_400, secs % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        let t = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(time("2026-05-01T10:00:00Z"), Ok(t("2026-05-01T10:00:00Z")));
        assert_eq!(time("2026-05-01T10:00:00+02:00"), Ok(t("2026-05-01T08:00:00Z")));
        assert_eq!(time("2026-05-01"), Ok(t("2026-05-01T00:00:00Z")));
        let ago = |text: &str| Timestamp::now().duration_since(time(text).unwrap()).as_secs();
        assert!((ago("3d") - 3 * 86_400).abs() < 60);
        assert!((ago("1d12h") - 36 * 3600).abs() < 60);
        for wrong in ["", "3", "d", "3w", "yesterday", "0d", "99999999999999999999d", "2026-13-01"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
