//! One event on one line of any width, with any text, as `demo` prints it.
//!
//! Knows no event format and no terminal: the caller passes the parts and the number of columns.

use anstyle::Style;
use ratatui::text::Span;

const DIM: Style = Style::new().dimmed();
/// Below this many columns the date is left out; the time of day stays.
const COLUMNS_FOR_THE_DATE: usize = 72;
/// The address is left out if title and object would get fewer columns than this.
const COLUMNS_FOR_THE_TITLE: usize = 24;

/// The parts of a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventParts<'a> {
    pub time: &'a str,
    pub severity: &'a str,
    pub category: &'a str,
    pub title: &'a str,
    pub object: Option<&'a str>,
    pub address: Option<&'a str>,
}

impl EventParts<'_> {
    /// The line, its severity in `style`; at most `columns` wide, or uncut if that is `None`.
    pub fn styled(&self, style: Style, columns: Option<usize>) -> String {
        let mut left = columns.unwrap_or(usize::MAX);
        let mut line = String::new();
        let mut put = |text: &str, style: Style, left: &mut usize| {
            let text = cut(text, *left);
            *left = left.saturating_sub(width(&text));
            line.push_str(&format!("{style}{text}{style:#}"));
        };
        let plain = Style::new();
        put(&format!("{}  ", self.time_shown(columns)), plain, &mut left);
        put(&format!("{:<8}", self.severity), style, &mut left);
        put(&format!("  {:<13} ", self.category), plain, &mut left);
        let address = self.address.map(|address| format!("  from {address}")).unwrap_or_default();
        let beside = left.saturating_sub(width(&address));
        let has_address = beside >= COLUMNS_FOR_THE_TITLE;
        let mut for_the_text = if has_address { beside } else { left };
        put(self.title, plain, &mut for_the_text);
        if let Some(object) = self.object.filter(|object| !names(self.title, object)) {
            put(&format!("  {object}"), DIM, &mut for_the_text);
        }
        if has_address {
            let mut room = usize::MAX;
            put(&address, DIM, &mut room);
        }
        line
    }

    fn time_shown(&self, columns: Option<usize>) -> &str {
        let second = self.time.get(..19).unwrap_or(self.time);
        match second.split_once('T') {
            Some((_, time)) if columns.is_some_and(|columns| columns < COLUMNS_FOR_THE_DATE) => time,
            _ => second,
        }
    }
}

/// Whether a title names an object: whole, by the start it repeats of one that is long, or by the file's name.
fn names(title: &str, object: &str) -> bool {
    let (title, object) = (one_line(title).to_lowercase(), one_line(object).to_lowercase());
    let last = object.rsplit(['/', '\\']).find(|part| !part.is_empty());
    let start: String = object.chars().take(40).collect();
    title.contains(&start) || last.filter(|name| name.chars().count() >= 4).is_some_and(|name| title.contains(name))
}

/// The text on one line, at most `columns` wide; `…` marks a cut.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let line = one_line(text);
    if width(&line) <= columns {
        return line;
    }
    let mut kept = String::new();
    for character in line.chars() {
        kept.push(character);
        if width(&kept) + 1 > columns {
            kept.pop();
            break;
        }
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// The text without characters that move a cursor, end a line or change the direction of writing.
fn one_line(text: &str) -> String {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if acts(c) { ' ' } else { c }).collect()
}

/// Columns the text takes on a terminal.
fn width(text: &str) -> usize {
    Span::raw(text).width()
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    const EVENT: EventParts<'static> = EventParts {
        time: "2026-05-03T09:59:58.123Z",
        severity: "critical",
        category: "configuration",
        title: "Set-Mailbox by alex@contoso.example",
        object: None,
        address: Some("2001:db8:85a3:8d3:1319:8a2e:370:7348"),
    };

    /// The line without its colours.
    fn line(event: &EventParts<'_>, columns: Option<usize>) -> String {
        anstream::adapter::strip_str(&event.styled(AnsiColor::Red.on_default(), columns)).to_string()
    }

    fn events() -> Vec<(String, Option<String>)> {
        let url = "https://contoso.example/sites/Finance/Shared Documents/Board/Quarter 3/";
        let long = format!("{url}{}.docx", "x".repeat(5_000));
        let objects = [
            None,
            Some("short".to_owned()),
            Some(long.clone()),
            Some(format!("{url}報告書の最終版・社外秘.xlsx")),
            Some("👩‍👩‍👧‍👦 ☁️ e\u{301}\u{301} \u{202e}txt.exe".to_owned()),
            Some("a\nb\rc\td\u{1b}[2Jd\u{2028}e\u{85}f".to_owned()),
        ];
        let mut events = Vec::new();
        for object in objects {
            let shown = object.clone().unwrap_or_default();
            for title in ["opened".to_owned(), format!("alex opened {shown}"), "権限の変更".repeat(60), String::new()]
            {
                events.push((title, object.clone()));
            }
        }
        events
    }

    #[test]
    fn a_line_fits_every_width_from_20_to_300_columns_and_is_one_line() {
        for (title, object) in events() {
            for address in [None, EVENT.address] {
                let event = EventParts { title: &title, object: object.as_deref(), address, ..EVENT };
                for columns in 20..=300 {
                    let line = line(&event, Some(columns));
                    assert!(width(&line) <= columns, "{columns}: {} columns: {line:?}", width(&line));
                    assert!(!line.chars().any(char::is_control) && !line.contains('\u{2028}'), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn a_pipe_gets_the_whole_line_and_the_object_once() {
        let long = "y".repeat(4_000);
        for (title, object) in [
            ("alex opened plan.docx".to_owned(), "https://contoso.example/sites/a/plan.docx".to_owned()),
            (format!("alex opened {long}"), long.clone()),
            ("alex opened something".to_owned(), long.clone()),
            ("alex changed Finance Team".to_owned(), "finance team".to_owned()),
            ("alex opened C:\\x\\cards.docx".to_owned(), "C:\\x\\cards.docx".to_owned()),
        ] {
            let line = line(&EventParts { title: &title, object: Some(&object), ..EVENT }, None);
            let last = object.rsplit(['/', '\\']).next().unwrap().to_lowercase();
            assert_eq!(line.to_lowercase().matches(&last).count(), 1, "{line}");
            assert!(line.contains(&title) && line.ends_with("  from 2001:db8:85a3:8d3:1319:8a2e:370:7348"), "{line}");
        }
    }

    #[test]
    fn a_narrow_line_leaves_out_the_date_and_then_the_address() {
        let line = |columns| line(&EVENT, Some(columns));
        assert_eq!(line(70), "09:59:58  critical  configuration Set-Mailbox by alex@contoso.example");
        assert_eq!(line(40), "09:59:58  critical  configuration Set-M…");
        assert_eq!(
            line(150),
            "2026-05-03T09:59:58  critical  configuration Set-Mailbox by alex@contoso.example  from \
             2001:db8:85a3:8d3:1319:8a2e:370:7348"
        );
    }
}
