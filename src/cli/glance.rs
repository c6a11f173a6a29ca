//! Many tenants at a glance: one line each, faulty ones first, a summary above. `status`, `check` and `state show`
//! provide the content of the lines; this module selects, sorts and lays them out.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::Failure;
use super::asking::ask;
use super::exit::Exit;
use crate::config::Config;
use crate::hosts::embedded::status::Source;
use crate::model::{Timestamp, plain};

/// From this many tenants on, each has one line.
pub(super) const LINES_FROM: usize = 10;
/// The assumed size of a terminal of unknown size.
const SCREEN: (usize, usize) = (80, 24);
/// Lines of a small screen that are left for tenants below the summary and the headings.
const ROWS_OF_SCREEN: usize = 18;
/// Lines for the names of failed tenants if their own lines do not fit on the screen.
const NAMES_LINES_MAX: usize = 9;
/// Characters of a name shown in a line.
const NAME_CHARS_MAX: usize = 32;
/// Characters of a fault's text, if the output is not cut at the width of a terminal.
const WRONG_CHARS_MAX: usize = 200;

/// Which tenants are shown, and how.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct TenantFilter {
    /// Only this source, in full: its name in the configuration, or the name of a source with many tenants
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only what is wrong
    #[arg(long)]
    failed: bool,
    /// All details; otherwise each tenant has one line from ten tenants on. `--json` always has everything
    #[arg(long)]
    full: bool,
}

impl TenantFilter {
    /// Whether a source is selected.
    pub(super) fn names(&self, name: &str) -> bool {
        self.source.as_deref().is_none_or(|asked| is_of(name, asked))
    }

    /// Whether a source is shown, given whether it is healthy.
    pub(super) fn shows(&self, name: &str, is_well: bool) -> bool {
        self.names(name) && !(self.failed && is_well)
    }

    /// Whether one source, or the tenants of one, was selected.
    pub(super) fn is_of_one(&self) -> bool {
        self.source.is_some()
    }

    /// Whether each of these sources has one line.
    pub(super) fn one_line<'a>(&self, all: impl Iterator<Item = &'a str>) -> bool {
        !self.full && all.filter(|name| self.names(name)).count() >= LINES_FROM
    }

    /// Checks that the selected source is among these.
    ///
    /// # Errors
    /// None has this name.
    pub(super) fn known<'a>(&self, all: impl Iterator<Item = &'a str> + Clone) -> Result<(), Failure> {
        let Some(asked) = &self.source else { return Ok(()) };
        if all.clone().any(|name| is_of(name, asked)) {
            return Ok(());
        }
        let near = all.clone().max_by(|a, b| {
            let likeness = |name| strsim::jaro_winkler(name, asked);
            likeness(a).total_cmp(&likeness(b))
        });
        let near = near.map_or_else(String::new, |near| format!("; the nearest is `{near}`"));
        let message = format!("usage: no source is named `{asked}` among {}{near}", counted(all.count()));
        Err(Failure { message, exit: Exit::Usage })
    }
}

/// Whether a source has this name, or is one of the tenants of the source that has it.
fn is_of(name: &str, asked: &str) -> bool {
    name.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn counted(tenants: usize) -> String {
    crate::model::counted(tenants as u64, "tenant")
}

/// The state of a tenant: its name, and its rank (0 is the worst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowState {
    pub word: &'static str,
    pub rank: u8,
}

/// The line of one tenant. An unknown value is shown as `-`.
#[derive(Debug, Clone)]
pub(super) struct TenantRow {
    pub name: String,
    pub state: RowState,
    /// How far its complete part is behind now, in seconds.
    pub delay_secs: Option<f64>,
    /// How long ago the newest event that was delivered became available, in seconds.
    pub last_event_secs: Option<f64>,
    /// Requests in the last minute.
    pub used: Option<f64>,
    /// Requests a minute that Microsoft grants.
    pub granted: Option<f64>,
    /// The faults in words, beginning with the slug; empty if there are none.
    pub wrong: String,
    /// Whether it needs no action.
    pub is_well: bool,
}

impl TenantRow {
    /// The line of a tenant of which only the state is known.
    pub(super) fn of(name: &str, state: RowState) -> Self {
        Self {
            name: name.to_owned(),
            state,
            delay_secs: None,
            last_event_secs: None,
            used: None,
            granted: None,
            wrong: String::new(),
            is_well: true,
        }
    }

    /// The worst first; equal ones by name.
    fn order(&self) -> (u8, bool, &str) {
        (self.state.rank, self.is_well, &self.name)
    }

    /// The slug of the fault.
    fn cause(&self) -> &str {
        let cause = self.wrong.split(':').next().unwrap_or_default();
        if cause.is_empty() { "no reason given" } else { cause }
    }

    /// Fills in missing values from the running process's status of the tenant.
    pub(super) fn with_live(self, live: Option<&Source>, now: Timestamp) -> Self {
        let Some(source) = live else { return self };
        let delay_secs = self.delay_secs.or_else(|| source.delay_secs(now));
        let (used, granted) = (Some(source.quota.used_per_minute), source.quota.granted());
        Self { delay_secs, last_event_secs: source.last_event_secs(), used, granted, ..self }
    }
}

/// The running process's status of its tenants, by source; empty if none runs or it does not answer.
pub(super) async fn live(config: &Config) -> BTreeMap<String, Source> {
    let status = ask(&config.control_socket()).await.ok().flatten();
    let sources = status.into_iter().flat_map(|status| status.sources);
    sources.map(|source| (source.name.clone(), source)).collect()
}

/// Where lines are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    /// Columns to cut lines at; `None`: they are not cut.
    pub width: Option<usize>,
    /// Rows.
    pub height: usize,
    /// Whether the first lines scroll out of view.
    pub scrolls: bool,
}

impl Screen {
    /// Standard output.
    pub(super) fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self { width: None, height: SCREEN.1, scrolls: false };
        }
        let (width, height) = ratatui::crossterm::terminal::size().map_or(SCREEN, |(w, h)| (w.into(), h.into()));
        Self { width: Some(width), height, scrolls: true }
    }
}

/// The summary above the lines: how many tenants, how many in each state, and the longest delay.
fn sum(rows: &[TenantRow]) -> Line<'static> {
    let mut states: BTreeMap<(u8, &str), usize> = BTreeMap::new();
    for row in rows {
        *states.entry((row.state.rank, row.state.word)).or_default() += 1;
    }
    let mut spans = vec![bold(format!("{}: ", counted(rows.len())))];
    for (at, ((_, word), count)) in states.into_iter().enumerate() {
        let between = if at > 0 { ", " } else { "" };
        spans.push(Span::raw(between));
        spans.push(Span::styled(format!("{count} {word}"), colour_of(word).add_modifier(Modifier::BOLD)));
    }
    let longest = rows.iter().filter_map(|row| Some((row.delay_secs?, &row.name)));
    if let Some((delay, name)) = longest.max_by(|a, b| a.0.total_cmp(&b.0)) {
        spans.push(Span::raw(format!("; longest delay {} ({})", short(delay), shortened(name, NAME_CHARS_MAX))));
    }
    Line::from(spans)
}

/// The summary and the lines of those of `all` that `which` shows.
pub(super) fn lines(mut all: Vec<TenantRow>, which: &TenantFilter, screen: Screen) -> Vec<Line<'static>> {
    all.retain(|row| which.names(&row.name));
    all.sort_by(|a, b| a.order().cmp(&b.order()));
    let sum = cut(sum(&all), screen.width);
    let worst: Vec<&TenantRow> = all.iter().filter(|row| row.state.rank == 0).collect();
    let names = names(&worst, screen.width.unwrap_or(SCREEN.0));
    let rows: Vec<&TenantRow> = all.iter().filter(|row| which.shows(&row.name, row.is_well)).collect();
    let mut lines = vec![sum.clone()];
    let crowded = worst.len() > ROWS_OF_SCREEN.min(screen.height.saturating_sub(6));
    if crowded && !screen.scrolls {
        lines.extend(names.clone());
    }
    if rows.is_empty() {
        lines.push(Line::from("nothing is wrong"));
        return lines;
    }
    lines.extend(table(&rows, screen.width));
    if screen.scrolls && lines.len() >= screen.height {
        // The first lines are out of sight, so the summary is repeated.
        lines.push(sum);
        lines.extend(names);
    }
    lines
}

/// The failed tenants by name, those with one cause together.
fn names(failed: &[&TenantRow], width: usize) -> Vec<Line<'static>> {
    let mut causes: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in failed {
        match causes.iter_mut().find(|(cause, _)| *cause == row.cause()) {
            Some((_, names)) => names.push(&row.name),
            None => causes.push((row.cause(), vec![&row.name])),
        }
    }
    causes.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let all = failed.len();
    let mut words: Vec<(usize, String)> = Vec::new();
    for (cause, names) in &causes {
        words.push((0, format!("{} ({}):", plain(cause), names.len())));
        words.extend(names.iter().map(|name| (1, shortened(name, NAME_CHARS_MAX))));
        if let Some((_, last)) = words.last_mut() {
            last.push(';');
        }
    }
    let mut lines: Vec<String> = Vec::new();
    let mut shown = 0;
    for (count, word) in words {
        let is_full = lines.len() >= NAMES_LINES_MAX;
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= width) {
            Some(line) => {
                line.push(' ');
                line.push_str(&word);
            }
            None if is_full => break,
            None => lines.push(format!("  {word}")),
        }
        shown += count;
    }
    if shown < all {
        lines.push(format!("  and {} more: `--failed`", all - shown));
    }
    lines.into_iter().map(|line| Line::styled(line, colour_of("failed"))).collect()
}

const HEADS: [&str; 6] = ["state", "tenant", "delay", "last event", "requests", "what is wrong"];

fn table(rows: &[&TenantRow], width: Option<usize>) -> Vec<Line<'static>> {
    let known = |of: fn(&TenantRow) -> bool| rows.iter().any(|row| of(row));
    // A column without any value is left out.
    let shown = [
        true,
        true,
        known(|row| row.delay_secs.is_some()),
        known(|row| row.last_event_secs.is_some()),
        known(|row| row.used.is_some()),
        true,
    ];
    let cells: Vec<[String; HEADS.len()]> = rows.iter().map(|row| cells(row)).collect();
    let widths: Vec<usize> = HEADS
        .iter()
        .enumerate()
        .map(|(n, head)| cells.iter().map(|row| row[n].chars().count()).max().unwrap_or_default().max(head.len()))
        .collect();
    let line = |row: &[String; HEADS.len()], style: &dyn Fn(usize) -> Style| {
        let mut spans = Vec::new();
        for n in (0..HEADS.len()).filter(|n| shown[*n]) {
            let (cell, wide) = (&row[n], widths[n]);
            let padded = match n {
                0 | 1 => format!("{cell:<wide$}  "),
                2..=4 => format!("{cell:>wide$}  "),
                _ => cell.clone(),
            };
            spans.push(Span::styled(padded, style(n)));
        }
        cut(Line::from(spans), width)
    };
    let mut lines = vec![line(&HEADS.map(str::to_owned), &|_| Style::new().add_modifier(Modifier::DIM))];
    for (row, cells) in rows.iter().zip(&cells) {
        let colour = colour_of(row.state.word);
        lines.push(line(cells, &|n| if n == 0 || n == HEADS.len() - 1 { colour } else { Style::new() }));
    }
    lines
}

fn cells(row: &TenantRow) -> [String; HEADS.len()] {
    let secs = |secs: Option<f64>| secs.map_or_else(|| "-".to_owned(), short);
    let requests = match (row.used, row.granted) {
        (None, _) => "-".to_owned(),
        (Some(used), None) => format!("{used:.0}"),
        (Some(used), Some(granted)) => format!("{used:.0}/{granted:.0}"),
    };
    // The remedy is on its page; in full it is shown with `--source`.
    let wrong = row.wrong.split(" (hint: ").next().unwrap_or_default();
    [
        row.state.word.to_owned(),
        shortened(&row.name, NAME_CHARS_MAX),
        secs(row.delay_secs),
        secs(row.last_event_secs),
        requests,
        shortened(wrong, WRONG_CHARS_MAX),
    ]
}

/// Seconds in one suitable unit.
fn short(secs: f64) -> String {
    let secs = secs.max(0.0).round() as u64;
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// A foreign text on one line, without control characters, and not longer than this.
fn shortened(text: &str, most: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(most) {
        None => text.into_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// The line cut at the width of the screen.
fn cut(line: Line<'static>, width: Option<usize>) -> Line<'static> {
    let Some(width) = width.filter(|width| line.width() > *width) else { return line };
    let mut left = width.saturating_sub(1);
    let mut spans = Vec::new();
    for span in line.spans {
        let text: String = span.content.chars().take(left).collect();
        left -= text.chars().count();
        spans.push(Span::styled(text, span.style));
    }
    spans.push(Span::raw("…"));
    Line::from(spans)
}

fn bold(text: String) -> Span<'static> {
    Span::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

/// The colour of a state's name, which carries the same information.
pub(super) fn colour_of(word: &str) -> Style {
    Style::new().fg(match word {
        "healthy" | "ok" | "well" => Color::Green,
        "degraded" | "starting" | "note" | "behind" | "aside" | "new" => Color::Yellow,
        "failed" | "FAIL" | "expiring" => Color::Red,
        _ => Color::Reset,
    })
}

/// A line without its colours.
pub(super) fn text_of(line: &Line<'_>) -> String {
    let text: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: RowState = RowState { word: "failed", rank: 0 };
    const WELL: RowState = RowState { word: "healthy", rank: 3 };

    fn row(name: &str, state: RowState, wrong: &str) -> TenantRow {
        TenantRow {
            delay_secs: Some(420.0),
            used: Some(12.0),
            granted: Some(1960.0),
            wrong: wrong.into(),
            is_well: wrong.is_empty(),
            ..TenantRow::of(name, state)
        }
    }

    fn fleet(failed: usize) -> Vec<TenantRow> {
        let causes = [
            "auth-secret-wrong: the secret is wrong",
            "api-permission-missing: x",
            "api-tenant-unknown: y",
            "state-not-written: z",
        ];
        let one = |n: usize| match n < failed {
            true => row(&format!("customers.t{:03}", 199 - n), FAILED, causes[n % 4]),
            false => row(&format!("customers.t{:03}", 199 - n), WELL, ""),
        };
        (0..200).map(one).collect()
    }

    fn printed(rows: Vec<TenantRow>, which: &TenantFilter, screen: Screen) -> Vec<String> {
        lines(rows, which, screen).iter().map(text_of).collect()
    }

    const SMALL: Screen = Screen { width: Some(80), height: 24, scrolls: false };

    #[test]
    fn a_small_screen_shows_the_sum_and_every_failed_tenant_by_name_however_many_fail() {
        for failed in [0, 1, 12, 18, 19, 32] {
            let shown = printed(fleet(failed), &TenantFilter::default(), SMALL);
            assert!(shown.iter().all(|line| line.chars().count() <= 80), "{shown:#?}");
            let first = shown.iter().take(22).cloned().collect::<Vec<_>>().join("\n");
            assert!(first.starts_with("200 tenants: "), "{first}");
            for n in 0..failed {
                let name = format!("t{:03}", 199 - n);
                assert!(first.contains(&name), "{failed} failed, {name} is not on the screen:\n{first}");
            }
            assert!(shown.len() <= 211, "{}", shown.len());
        }
        let shown = printed(fleet(200), &TenantFilter::default(), SMALL).join("\n");
        assert!(shown.contains(" more: `--failed`"), "{shown}");
    }

    #[test]
    fn what_scrolls_away_is_said_again_at_the_end() {
        let terminal = Screen { scrolls: true, ..SMALL };
        let shown = printed(fleet(12), &TenantFilter::default(), terminal);
        assert!(shown.len() <= 210, "{}", shown.len());
        let last = shown[shown.len() - 22..].join("\n");
        assert!(last.contains("200 tenants: 12 failed, 188 healthy"), "{last}");
        assert!((0..12).all(|n| last.contains(&format!("customers.t{:03}", 199 - n))), "{last}");
    }

    #[test]
    fn a_line_has_state_name_delay_requests_and_what_is_wrong_in_words() {
        let rows = vec![
            row("b", WELL, ""),
            row("a", FAILED, "auth-secret-wrong: the secret\u{1b}[2J is wrong (hint: make another)"),
        ];
        expect_test::expect![[r#"
            2 tenants: 1 failed, 1 healthy; longest delay 7 min (b)
            state    tenant  delay  requests  what is wrong
            failed   a       7 min   12/1960  auth-secret-wrong: the secret�[2J is wrong
            healthy  b       7 min   12/1960"#]]
        .assert_eq(&printed(rows, &TenantFilter::default(), Screen { width: None, ..SMALL }).join("\n"));
    }

    #[test]
    fn only_what_is_asked_for_is_shown() {
        let which = TenantFilter { failed: true, ..TenantFilter::default() };
        let shown = printed(fleet(3), &which, SMALL);
        assert_eq!(shown.len(), 2 + 3, "{shown:#?}");
        assert!(printed(fleet(0), &which, SMALL).contains(&"nothing is wrong".to_owned()));
        let names = ["customers.a", "customers.b", "customersx", "other"];
        let asked = |name: &str| TenantFilter { source: Some(name.into()), ..TenantFilter::default() };
        let of = |which: &TenantFilter| names.iter().filter(|name| which.names(name)).count();
        assert_eq!((of(&asked("customers")), of(&asked("customers.a")), of(&asked("cust"))), (2, 1, 0));
        let error = asked("othr").known(names.into_iter()).unwrap_err();
        assert!(error.message.contains("nearest is `other`") && error.exit == Exit::Usage, "{error}");
        assert!(asked("customers").known(names.into_iter()).is_ok());
    }

    #[test]
    fn one_line_a_tenant_begins_at_ten() {
        let all: Vec<String> = (0..12).map(|n| format!("t.{n}")).collect();
        let names = |n: usize| all.iter().take(n).map(String::as_str);
        assert!(!TenantFilter::default().one_line(names(9)) && TenantFilter::default().one_line(names(10)));
        assert!(!TenantFilter { full: true, ..TenantFilter::default() }.one_line(names(12)));
        assert!(!TenantFilter { source: Some("t.3".into()), ..TenantFilter::default() }.one_line(names(12)));
        assert!(TenantFilter { failed: true, ..TenantFilter::default() }.one_line(names(12)));
    }
}
