//! Pictures of a period: which parts were read, and how much came on each of its days. Each part has a pattern and a
//! word or a letter beside its colour. Positions are shares of the width, so that a picture is as wide as its page.

use jiff::tz::TimeZone;

use super::markup::HtmlPage;
use super::model::{Day, Segment, SegmentState};
use super::words::{self, number, time};
use crate::model::Timestamp;

/// How far the lines of a pattern reach: the widest page, and the highest picture.
const FAR: i32 = 1600;
const HIGH: i32 = 72;
/// Marks on an axis, at most.
const TICKS_MAX: i64 = 7;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Distances between marks.
const STEPS: [i64; 15] = [
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    5 * DAY,
    7 * DAY,
    14 * DAY,
    30 * DAY,
    60 * DAY,
    90 * DAY,
    180 * DAY,
    365 * DAY,
];
/// The minimum width of a part, in percent.
const SEEN: f64 = 0.5;
/// A part this wide shows its word.
const WIDE_FOR_A_WORD: f64 = 22.0;
/// A part this wide shows its letter.
const WIDE_FOR_A_LETTER: f64 = 4.0;
/// The minimum distance between marks of gaps.
const MARKS_APART: f64 = 6.0;

/// Writes the patterns that the pictures refer to: lines, of which each part of a picture shows its piece. They
/// distinguish parts without colour. A `<pattern>` is not used, since a browser turns it into a bitmap whenever it
/// prints.
pub(crate) fn patterns(page: &mut HtmlPage) {
    let lines = |step: usize, line: &dyn Fn(i32) -> String| (-HIGH..FAR).step_by(step).map(line).collect::<String>();
    let rows = |step: usize, row: &dyn Fn(i32) -> String| (4..HIGH).step_by(step).map(row).collect::<String>();
    page.ours("<svg class=\"patterns\" aria-hidden=\"true\" focusable=\"false\" width=\"0\" height=\"0\"><defs>\n");
    for (id, class, path) in [
        ("p-gap", "l-gap", lines(8, &|x| format!("M{x} 0l{HIGH} {HIGH}M{x} {HIGH}l{HIGH}-{HIGH}"))),
        ("p-not-yet", "l-not-yet", rows(7, &|y| format!("M{} {y}H{FAR}", 4 + y % 2 * 4))),
        ("p-not-read", "l-not-read", lines(9, &|x| format!("M{x} {HIGH}l{HIGH}-{HIGH}"))),
        ("p-in-part", "l-in-part", lines(5, &|x| format!("M{x} 0V{HIGH}"))),
    ] {
        page.begin("path", &[("id", id), ("class", class), ("d", &path)]);
        page.end("path");
    }
    page.ours("<g id=\"p-not-known\">");
    let marks = "? ".repeat(FAR as usize / 16);
    for y in (16..HIGH).step_by(18) {
        page.element("text", &[("class", "l-not-known"), ("x", "5"), ("y", &y.to_string())], marks.trim_end());
    }
    page.ours("</g>\n</defs></svg>\n");
}

/// One part of a picture.
fn part(page: &mut HtmlPage, state: SegmentState, [x, y, width, height]: [&str; 4]) {
    let (class, pattern) = match state {
        SegmentState::Complete => ("s-complete", None),
        SegmentState::Gap => ("s-gap", Some("#p-gap")),
        SegmentState::NotYet => ("s-not-yet", Some("#p-not-yet")),
        SegmentState::NotRead => ("s-not-read", Some("#p-not-read")),
        SegmentState::InPart => ("s-in-part", Some("#p-in-part")),
        SegmentState::NotKnown => ("s-not-known", Some("#p-not-known")),
    };
    page.begin("svg", &[("class", "part"), ("x", x), ("y", y), ("width", width), ("height", height)]);
    page.begin("rect", &[("class", class), ("width", "100%"), ("height", "100%")]);
    page.end("rect");
    if let Some(pattern) = pattern {
        page.begin("use", &[("href", pattern)]);
        page.end("use");
        page.begin("rect", &[("class", "edge"), ("width", "100%"), ("height", "100%")]);
        page.end("rect");
    }
    page.end("svg");
}

/// A period, and the places in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    from: Timestamp,
    to: Timestamp,
}

impl Scale {
    pub(crate) fn new(from: Timestamp, to: Timestamp) -> Self {
        Self { from, to }
    }

    /// The place of a moment, in percent.
    fn place(&self, at: Timestamp) -> f64 {
        let all = self.to.duration_since(self.from).as_secs_f64().max(1.0);
        (at.duration_since(self.from).as_secs_f64() / all * 100.0).clamp(0.0, 100.0)
    }
}

fn percent(share: f64) -> String {
    format!("{share:.3}%")
}

const fn letter(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Complete => "C",
        SegmentState::Gap => "G",
        SegmentState::NotYet => "Y",
        SegmentState::NotRead => "R",
        SegmentState::InPart => "P",
        SegmentState::NotKnown => "?",
    }
}

/// A bar in words, for screen readers.
fn spoken(name: &str, bar: &[Segment]) -> String {
    let part = |segment: &Segment| {
        format!("{} from {} to {}", words::state(segment.state), time(segment.from), time(segment.to))
    };
    let parts: Vec<String> = bar.iter().take(40).map(part).collect();
    let more = bar.len().saturating_sub(40);
    let more = if more > 0 { format!("; and {more} more parts") } else { String::new() };
    format!("{name}: {}{more}", parts.join("; "))
}

/// A bar. `gaps` has the marks of its gaps, in their order.
pub(crate) fn bar(page: &mut HtmlPage, scale: Scale, name: &str, bar: &[Segment], gaps: &[String]) {
    let height = if gaps.is_empty() { "24" } else { "40" };
    page.begin(
        "svg",
        &[("class", "bar"), ("role", "img"), ("width", "100%"), ("height", height), ("aria-label", &spoken(name, bar))],
    );
    let mut parts: Vec<&Segment> = bar.iter().collect();
    // Gaps are drawn last, so that nothing covers them.
    parts.sort_by_key(|segment| (segment.state == SegmentState::Gap, segment.state != SegmentState::Complete));
    for segment in &parts {
        let (x, end) = (scale.place(segment.from), scale.place(segment.to));
        let width = (end - x).max(SEEN);
        let x = x.min(100.0 - width);
        part(page, segment.state, [&percent(x), "1", &percent(width), "22"]);
    }
    for segment in bar {
        let (x, end) = (scale.place(segment.from), scale.place(segment.to));
        let word = match end - x {
            wide if wide >= WIDE_FOR_A_WORD => words::state(segment.state),
            // The pattern of an unknown part replaces its letter.
            wide if wide >= WIDE_FOR_A_LETTER && segment.state != SegmentState::NotKnown => letter(segment.state),
            _ => continue,
        };
        page.element("text", &[("class", "word"), ("x", &percent((x + end) / 2.0)), ("y", "16")], word);
    }
    let of_gaps = bar.iter().filter(|segment| segment.state == SegmentState::Gap);
    let mut before = f64::NEG_INFINITY;
    for (segment, mark) in of_gaps.zip(gaps) {
        let middle = (scale.place(segment.from) + scale.place(segment.to)) / 2.0;
        if middle - before >= MARKS_APART {
            page.element("text", &[("class", anchor(middle)), ("x", &percent(middle)), ("y", "37")], mark);
            before = middle;
        }
    }
    page.end("svg");
}

/// A text at an edge stays inside.
fn anchor(place: f64) -> &'static str {
    match place {
        place if place < 5.0 => "mark begin",
        place if place > 95.0 => "mark end",
        _ => "mark",
    }
}

/// The axis of the bars above it.
pub(crate) fn axis(page: &mut HtmlPage, scale: Scale) {
    page.ours("<svg class=\"axis\" aria-hidden=\"true\" width=\"100%\" height=\"20\">");
    let (from, to) = (scale.from.as_second(), scale.to.as_second());
    let step = STEPS.into_iter().find(|step| (to - from) / step <= TICKS_MAX).unwrap_or((to - from) / TICKS_MAX);
    let mut at = from.div_euclid(step) * step;
    while at <= to {
        if at >= from
            && let Ok(moment) = Timestamp::from_second(at)
        {
            let place = scale.place(moment);
            page.begin(
                "rect",
                &[("class", "tick"), ("x", &percent(place)), ("y", "0"), ("width", "1"), ("height", "5")],
            );
            page.end("rect");
            let form = match to - from {
                long if long > 330 * DAY => "%Y-%m",
                _ if step >= DAY => "%m-%d",
                _ => "%H:%M",
            };
            let text = TimeZone::UTC.to_datetime(moment).strftime(form).to_string();
            page.element("text", &[("class", anchor(place)), ("x", &percent(place)), ("y", "17")], &text);
        }
        at += step.max(1);
    }
    page.end("svg");
}

/// How many events were delivered on each day.
pub(crate) fn days(page: &mut HtmlPage, days: &[Day]) {
    let delivered = |day: &Day| day.counts.as_ref().map(|counts| counts.delivered);
    let most = days.iter().filter_map(delivered).max().unwrap_or_default();
    let label = format!("Events delivered on each day; the most on one day are {}.", number(most));
    page.begin(
        "svg",
        &[("class", "days"), ("role", "img"), ("width", "100%"), ("height", "72"), ("aria-label", &label)],
    );
    let all: u64 = days.iter().map(|day| day.hours.all).sum();
    let mut begins = 0;
    for day in days {
        let share = |hours: u64| hours as f64 / all.max(1) as f64 * 100.0;
        let (x, width) = (share(begins), share(day.hours.all));
        begins += day.hours.all;
        let (state, height) = match delivered(day) {
            None => (SegmentState::NotKnown, 70.0),
            Some(count) => {
                let is_whole = day.hours.is_whole();
                let state = if is_whole { SegmentState::Complete } else { SegmentState::InPart };
                (state, (count as f64 / most.max(1) as f64 * 70.0).max(if count > 0 { 1.5 } else { 0.0 }))
            }
        };
        if height > 0.0 {
            let narrow = if width > 1.0 { width * 0.9 } else { width };
            let (y, tall) = (format!("{:.1}", 71.0 - height), format!("{height:.1}"));
            part(page, state, [&percent(x), &y, &percent(narrow), &tall]);
        }
    }
    page.ours("<rect class=\"tick\" x=\"0\" y=\"71\" width=\"100%\" height=\"1\"></rect>");
    page.end("svg");
}

/// The meaning of the patterns.
pub(crate) fn legend(page: &mut HtmlPage, meanings: &[(SegmentState, &'static str)]) {
    page.ours("<ul class=\"legend\">\n");
    for (state, meaning) in meanings {
        page.ours("<li><svg class=\"swatch\" aria-hidden=\"true\" width=\"34\" height=\"18\">");
        part(page, *state, ["1", "1", "32", "16"]);
        page.element("text", &[("class", "word"), ("x", "17"), ("y", "13")], letter(*state));
        page.end("svg");
        page.ours("<span>");
        page.element("b", &[], words::state(*state));
        page.text(meaning);
        page.ours("</span></li>\n");
    }
    page.end("ul");
}
