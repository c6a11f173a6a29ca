//! `m365-audit status`: the state of the running process, live or once.
//!
//! Owns the display; the status comes through the process's control socket. One page of lines serves the live view,
//! which colours and scrolls it, and `--once`, which prints it.

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use ratatui::{DefaultTerminal, Frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use tokio::sync::mpsc;

use super::asking::ask;
use super::exit::Exit;
use super::glance::{self, RowState, Screen, TenantFilter, TenantRow, colour_of, text_of};
use super::moment::span;
use super::{Failure, loaded, run};
use crate::config::Config;
use crate::hosts::embedded::status::{Held, Quota, Sink, Source, Status, Stream};
use crate::hosts::embedded::store;
use crate::model::{Timestamp, counted};

/// The terminal is polled for keys this often.
const KEYS_EVERY: Duration = Duration::from_millis(100);
/// An unsettled blob this close to its expiry is marked.
const EXPIRY_ALARM_SECS: f64 = 86_400.0;
/// Columns that the whole table needs; a narrower page shows only the more important half.
const WIDE: usize = 119;
/// Lines of the log shown.
const RECENT_SHOWN: usize = 8;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Print once and end, as it does when standard output is no terminal
    #[arg(long)]
    once: bool,
    /// As JSON, once
    #[arg(long)]
    json: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    #[command(flatten)]
    which: TenantFilter,
}

/// Shows the status of the process.
///
/// # Errors
/// No process runs, or it does not answer.
pub async fn status(args: StatusArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    // A file that is missing for one of many tenants is a fault of that tenant, which is shown.
    let (config, _) = loaded::load_to_run(&args.config).await?;
    let socket = config.control_socket();
    if args.json || args.once || !std::io::stdout().is_terminal() {
        let status = ask(&socket).await?.ok_or_else(|| none_runs(&config, &args.config))?;
        if args.json {
            let text = serde_json::to_string_pretty(&status).map_err(Failure::internal)?;
            writeln!(out, "{text}").map_err(Failure::io)?;
        } else {
            args.which.known(status.sources.iter().map(|source| source.name.as_str()))?;
            for line in shown(&status, &args.which, Screen::of_stdout()) {
                writeln!(out, "{}", text_of(&line)).map_err(Failure::io)?;
            }
        }
        return Ok(Exit::Done);
    }
    // Before the screen is taken over, so that a first failure is printed like any other.
    let first = ask(&socket).await?.ok_or_else(|| none_runs(&config, &args.config))?;
    args.which.known(first.sources.iter().map(|source| source.name.as_str()))?;
    // The same for signals, so that none ends the process with the screen taken over.
    let mut signals = run::ProcessSignals::new()?;
    let mut terminal = ratatui::try_init().map_err(Failure::io)?;
    let view = LiveView { status: first, which: args.which, trouble: None, scroll: 0 };
    let shown = live(&mut terminal, &mut signals, &socket, view, Duration::from_secs(args.every)).await;
    ratatui::restore();
    shown.map(|()| Exit::Done)
}

pub(super) fn none_runs(config: &Config, path: &Path) -> Failure {
    let (data_dir, path) = (config.data_dir.display(), path.display());
    let message = match store::running(&config.data_dir) {
        Some(process) => format!(
            "not-running: {process} runs on `{data_dir}`, but nobody answers on `{}`\n  hint: its log says why it has no \
             control socket; where the file system of `data_dir` refuses Unix sockets set `control_socket` to a path on \
             another, restart it, and use the same configuration here. A `[metrics]` listener (`m365-audit health -c {path}`) \
             needs no socket",
            config.control_socket().display()
        ),
        None => format!(
            "not-running: no process answers on `{data_dir}`\n  hint: start it (`systemctl start m365-audit`, or `m365-audit run -c {path}`) and look at its log; \
             `m365-audit state show -c {path}` tells how far it had come"
        ),
    };
    Failure { message, exit: Exit::Network }
}

/// The state of the live view.
struct LiveView {
    status: Status,
    which: TenantFilter,
    /// Why the status is outdated.
    trouble: Option<String>,
    scroll: u16,
}

/// Shows the status until a key, a signal, or the end of the terminal ends it.
async fn live(
    terminal: &mut DefaultTerminal,
    signals: &mut run::ProcessSignals,
    socket: &Path,
    mut view: LiveView,
    every: Duration,
) -> Result<(), Failure> {
    // On a thread of its own: when the terminal is gone, the library's reads return at once, for ever.
    let (key, mut keys) = mpsc::channel(16);
    std::thread::spawn(move || read_keys(&key));
    let mut looks = tokio::time::interval(every);
    let mut checks = tokio::time::interval(KEYS_EVERY);
    loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, &mut view)) {
            return if has_gone() { Ok(()) } else { Err(Failure::io(error)) };
        }
        loop {
            tokio::select! {
                biased;
                () = signals.any() => return Ok(()),
                _ = checks.tick() => if has_gone() { return Ok(()) },
                event = keys.recv() => match event {
                    Some(event) if on_event(&mut view, &event) => break,
                    // A key to end it, or no terminal to read keys from.
                    _ => return Ok(()),
                },
                _ = looks.tick() => {
                    match ask(socket).await {
                        Ok(Some(status)) => (view.status, view.trouble) = (status, None),
                        Ok(None) => view.trouble = Some("the process has ended; waiting for another".into()),
                        Err(failure) => {
                            view.trouble = Some(failure.message.lines().next().unwrap_or_default().to_owned());
                        }
                    }
                    break;
                }
            }
        }
    }
}

/// Forwards keys until the receiver or the terminal is gone.
fn read_keys(key: &mpsc::Sender<Event>) {
    while !key.is_closed() && !has_gone() {
        match event::poll(KEYS_EVERY) {
            Ok(false) => {}
            Ok(true) => match event::read() {
                Ok(event) => drop(key.blocking_send(event)),
                Err(_) => return,
            },
            Err(_) => return,
        }
    }
}

/// Whether the terminal of standard input or output has hung up, as when a connection was lost. A pipe at either end
/// proves nothing about the terminal.
fn has_gone() -> bool {
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let gone = |end: BorrowedFd<'_>| {
        let mut asked = [PollFd::from_borrowed_fd(end, PollFlags::empty())];
        let hung_up = poll(&mut asked, Some(&Timespec::default())).is_ok()
            && asked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        // A terminal that has hung up no longer counts as one, so this checks the kind of its file.
        hung_up && rustix::fs::fstat(end).is_ok_and(|kind| FileType::from_raw_mode(kind.st_mode).is_char_device())
    };
    gone(input.as_fd()) || gone(output.as_fd())
}

/// Whether to continue.
fn on_event(view: &mut LiveView, event: &Event) -> bool {
    let Event::Key(key) = event else { return true };
    if key.kind == KeyEventKind::Release {
        return true;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Up | KeyCode::Char('k') => view.scroll = view.scroll.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => view.scroll = view.scroll.saturating_add(1),
        KeyCode::PageUp => view.scroll = view.scroll.saturating_sub(10),
        KeyCode::PageDown => view.scroll = view.scroll.saturating_add(10),
        KeyCode::Home => view.scroll = 0,
        _ => {}
    }
    true
}

fn draw(frame: &mut Frame<'_>, view: &mut LiveView) {
    let [body, foot] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    let screen = Screen { width: Some(body.width.into()), height: body.height.into(), scrolls: false };
    let lines = shown(&view.status, &view.which, screen);
    // A wrapped line may take one row more than its length needs, since it breaks between words.
    let width = usize::from(body.width.max(1));
    let rows_of = |line: &Line<'_>| if line.width() <= width { 1 } else { line.width().div_ceil(width) + 1 };
    let rows: usize = lines.iter().map(rows_of).sum();
    let most = u16::try_from(rows.saturating_sub(usize::from(body.height))).unwrap_or(u16::MAX);
    view.scroll = view.scroll.min(most);
    let text = Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((view.scroll, 0));
    frame.render_widget(text, body);
    let foot_line = match &view.trouble {
        Some(trouble) => Line::styled(trouble.clone(), Style::new().fg(Color::Black).bg(Color::Yellow)),
        None if most > 0 => {
            Line::styled("q quit, arrows and page keys scroll", Style::new().add_modifier(Modifier::DIM))
        }
        None => Line::styled("q quit", Style::new().add_modifier(Modifier::DIM)),
    };
    frame.render_widget(Paragraph::new(foot_line), foot);
}

/// The selected part of a status: a line for each tenant if there are many, else all details.
fn shown(status: &Status, which: &TenantFilter, screen: Screen) -> Vec<Line<'static>> {
    if which.one_line(status.sources.iter().map(|source| source.name.as_str())) {
        return at_a_glance(status, which, screen);
    }
    let mut status = status.clone();
    status.sources.retain(|source| which.shows(&source.name, row(source, status.process.now).is_well));
    if which.is_of_one() {
        let is_of = |line: &str| status.sources.iter().any(|s| line.contains(&s.name) || line.contains(&s.tenant));
        status.recent.retain(|line| is_of(&line.text));
    }
    page(&status, screen.width.unwrap_or(usize::MAX))
}

/// One line for each tenant, and the faults of the sinks and the state.
fn at_a_glance(status: &Status, which: &TenantFilter, screen: Screen) -> Vec<Line<'static>> {
    let mut lines = head(status);
    let troubled: Vec<&Sink> = status.sinks.iter().filter(|sink| sink.state != "healthy").collect();
    let rate: f64 = status.sinks.iter().map(|sink| sink.records_per_sec).sum();
    let well = status.sinks.len() - troubled.len();
    lines.push(Line::from(format!("{} healthy, {rate:.1} records/s", counted(well as u64, "sink"))));
    for sink in troubled {
        lines.extend(sink_lines(sink, status.process.now));
    }
    lines.extend(status.store.iter().map(|trouble| store_line(trouble)));
    let rows = status.sources.iter().map(|source| row(source, status.process.now)).collect();
    lines.extend(glance::lines(rows, which, screen));
    lines
}

/// The line of a source.
fn row(source: &Source, now: Timestamp) -> TenantRow {
    let rank = source.rank();
    let word = ["failed", "degraded", "starting"].get(usize::from(rank)).copied().unwrap_or("healthy");
    let state = RowState { word, rank };
    let mut wrong = source.troubles();
    let is_well = wrong.is_empty();
    if let Some(waited) = source.turn_waiting_secs {
        wrong.push(format!("waits for its turn to read for {}", span(waited)));
    }
    TenantRow { wrong: wrong.join("; "), is_well, ..TenantRow::of(&source.name, state) }.with_live(Some(source), now)
}

/// The lines about the process.
fn head(status: &Status) -> Vec<Line<'static>> {
    let process = &status.process;
    let up = process.now.duration_since(process.started).as_secs_f64();
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("m365-audit {}", process.version), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  pid {}  up {}  ", process.pid, span(up))),
        state(&status.state),
        Span::raw(format!("  {}", second(process.now))),
    ])];
    if process.waiting > 0 {
        let (reading, waiting) = (counted(process.reading, "tenant"), counted(process.waiting, "tenant"));
        lines.push(Line::from(format!(
            "{waiting} with blobs to read {} for a turn; {reading} read now (`catch_up_tenants_max`)",
            if process.waiting == 1 { "waits" } else { "wait" }
        )));
    }
    lines
}

fn store_line(trouble: &str) -> Line<'static> {
    Line::from(vec![
        Span::styled("state  ", Style::new().add_modifier(Modifier::BOLD)),
        state("degraded"),
        Span::raw("  "),
        Span::styled(one_line(trouble), colour_of("degraded")),
    ])
}

/// The whole page for this many columns. Faulty sources come first, so that one among a hundred is noticed.
fn page(status: &Status, width: usize) -> Vec<Line<'static>> {
    let narrow = width < WIDE;
    let process = &status.process;
    let mut lines = head(status);
    let mut sources: Vec<&Source> = status.sources.iter().collect();
    sources.sort_by_key(|source| source.rank());
    for source in sources {
        lines.push(Line::default());
        lines.extend(source_lines(source, process.now, narrow));
    }
    if !status.sinks.is_empty() {
        lines.push(Line::default());
        lines.extend(status.sinks.iter().flat_map(|sink| sink_lines(sink, process.now)));
    }
    if let Some(trouble) = &status.store {
        lines.push(Line::default());
        lines.push(store_line(trouble));
    }
    if !status.recent.is_empty() {
        lines.push(Line::default());
        lines.push(Line::styled("warnings and errors, newest first", Style::new().add_modifier(Modifier::BOLD)));
    }
    for line in status.recent.iter().rev().take(RECENT_SHOWN) {
        let colour = if line.level == "error" { Color::Red } else { Color::Yellow };
        lines.push(Line::from(vec![
            Span::raw(format!("  {} ", second(line.time))),
            Span::styled(format!("{:<5} ", line.level), Style::new().fg(colour)),
            Span::raw(one_line(&line.text)),
        ]));
    }
    lines
}

fn source_lines(source: &Source, now: Timestamp, narrow: bool) -> Vec<Line<'static>> {
    let since = source.since.map(|since| format!(" for {}", span(now.duration_since(since).as_secs_f64())));
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("{}  ", source.name), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("{}  ", source.tenant)),
        state(&source.state),
        Span::raw(since.unwrap_or_default()),
    ])];
    if let Some(reason) = &source.reason {
        lines.push(Line::styled(format!("  {}", one_line(reason)), colour_of(&source.state)));
    }
    lines.extend(stream_lines(&source.streams, now, narrow));
    let mut words = vec![quota_words(&source.quota)];
    if let Some(skew) = source.clock_skew_secs.filter(|skew| skew.abs() >= 60.0) {
        let side = if skew > 0.0 { "ahead of" } else { "behind" };
        words.push(format!("Microsoft's clock is {} {side} this machine's", span(skew.abs())));
    }
    words.push(format!("{:.1} MB in flight", source.in_flight_bytes as f64 / 1e6));
    if source.set_aside > 0 {
        let records = counted(source.set_aside, "record");
        words.push(format!("{records} set aside (`m365-audit state show`, `state retry`)"));
    }
    if source.empty_answers > 0 {
        words.push(format!("{} (asked for again)", counted(source.empty_answers, "empty answer")));
    }
    lines.push(Line::from(format!("  {}", words.join(", "))));
    if let Some(waited) = source.turn_waiting_secs {
        lines.push(Line::from(format!("  waits for its turn to read blobs for {}; nothing is lost", span(waited))));
    }
    if let Some(held) = &source.held {
        lines.push(Line::from(format!("  {}", held_words(held))));
    }
    if let Some(backfill) = &source.backfill {
        let percent = backfill.read_secs * 100 / backfill.span_secs.max(1);
        lines.push(Line::styled(
            format!(
                "  back-fill: {percent} %, {}, {}",
                counted(backfill.blobs, "blob"),
                counted(backfill.events, "event")
            ),
            Style::new().fg(Color::Cyan),
        ));
    }
    lines
}

/// What reads on hold wait for.
fn held_words(held: &Held) -> String {
    let reads = counted(held.reads, "routine read");
    let Some(content_type) = &held.waits_for else {
        return format!("{reads} on hold: no content type is read that could flag them; they are shipped next");
    };
    let wait = if held.reads == 1 { "it waits" } else { "they wait" };
    match (held.complete_until, held.behind_secs) {
        (Some(complete), Some(behind)) => format!(
            "{reads} on hold: {wait} for `{content_type}`, which is complete until {complete}, {} behind",
            span(behind)
        ),
        _ => format!("{reads} on hold: {wait} for `{content_type}`, of which nothing is complete yet"),
    }
}

fn quota_words(quota: &Quota) -> String {
    let of = match (quota.max_per_minute, quota.granted_per_minute) {
        (0, _) => "no limit".to_owned(),
        (max, None) => format!("at most {max}"),
        (max, Some(granted)) => format!("{granted:.0} granted, at most {max}"),
    };
    let refused = match (quota.refused_per_minute.round() as u64, quota.refused) {
        (0, 0) => "none refused".to_owned(),
        (now, all) => format!("{now} refused ({all} since the start)"),
    };
    format!("requests a minute: {:.0} used, {of}, {refused}", quota.used_per_minute)
}

/// Columns of the table of streams, and how wide each is at least; a narrow page has those that are not `wide_only`.
const COLUMNS: [(&str, usize, bool); 9] = [
    ("content type", 28, false),
    ("lag", 11, false),
    ("complete", 13, false),
    ("pending", 9, false),
    ("oldest", 12, true),
    ("expires", 12, false),
    ("events/s", 10, true),
    ("kB/s", 10, true),
    ("events", 12, true),
];
/// Which of them is the expiry, which is coloured.
const EXPIRES: usize = 5;

/// The table of streams: a column is as wide as its longest value and two spaces.
fn stream_lines(streams: &[Stream], now: Timestamp, narrow: bool) -> Vec<Line<'static>> {
    let rows: Vec<[String; COLUMNS.len()]> = streams.iter().map(|stream| cells(stream, now)).collect();
    let widths: Vec<usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(n, (head, least, _))| {
            let longest = rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default();
            (*least).max(longest.max(head.len()) + 2)
        })
        .collect();
    let padded = |n: usize, cell: &str| match n {
        0 => format!("  {cell:<0$}", widths[0]),
        _ => format!("{cell:>0$}", widths[n]),
    };
    let shown = || (0..COLUMNS.len()).filter(|n| !(narrow && COLUMNS[*n].2));
    let head: String = shown().map(|n| padded(n, COLUMNS[n].0)).collect();
    let mut lines = vec![Line::styled(head, Style::new().add_modifier(Modifier::DIM))];
    for (stream, row) in streams.iter().zip(&rows) {
        let near = stream.expiry_secs.is_some_and(|secs| secs < EXPIRY_ALARM_SECS);
        let span = |n: usize| {
            let style = if near && n == EXPIRES { Style::new().fg(Color::Red) } else { Style::new() };
            Span::styled(padded(n, &row[n]), style)
        };
        lines.push(Line::from(shown().map(span).collect::<Vec<_>>()));
        if stream.gaps > 0 || stream.lost > 0 {
            let text = format!(
                "    {} declared, {} lost since the start: see the m365_audit.gap records",
                counted(stream.gaps, "gap"),
                counted(stream.lost, "blob")
            );
            lines.push(Line::styled(text, Style::new().fg(Color::Red)));
        }
        if stream.healed_gap_secs > 0 || stream.healed_events > 0 {
            lines.push(Line::raw(format!(
                "    {} of gaps filled through Microsoft Graph since the start, {}",
                super::moment::span(stream.healed_gap_secs as f64),
                counted(stream.healed_events, "event")
            )));
        }
    }
    lines
}

fn cells(stream: &Stream, now: Timestamp) -> [String; COLUMNS.len()] {
    let secs = |secs: Option<f64>| secs.map_or("-".to_owned(), span);
    let complete = stream.complete_until.map(|t| now.duration_since(t).as_secs_f64());
    [
        stream.content_type.clone(),
        secs(stream.lag_secs),
        complete.map_or("-".to_owned(), |secs| format!("{} ago", span(secs))),
        stream.pending.to_string(),
        secs(stream.oldest_age_secs),
        secs(stream.expiry_secs),
        format!("{:.1}", stream.events_per_sec),
        format!("{:.1}", stream.bytes_per_sec / 1e3),
        stream.events.to_string(),
    ]
}

fn sink_lines(sink: &Sink, now: Timestamp) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("sink {}  ", sink.name), Style::new().add_modifier(Modifier::BOLD)),
        state(&sink.state),
        Span::raw(format!(
            " for {}, {:.1} records/s, {}, {}",
            span(now.duration_since(sink.since).as_secs_f64()),
            sink.records_per_sec,
            counted(sink.records, "record"),
            counted(sink.retries, "failed write")
        )),
        Span::raw(match sink.oldest_request_secs {
            secs if secs >= 1.0 => format!(", waiting {} for an answer", span(secs)),
            _ => String::new(),
        }),
    ])];
    if let Some(reason) = &sink.reason {
        lines.push(Line::styled(format!("  {}", one_line(reason)), colour_of(&sink.state)));
    }
    lines
}

fn state(word: &str) -> Span<'static> {
    Span::styled(word.to_owned(), colour_of(word).add_modifier(Modifier::BOLD))
}

/// An error text on one line, without control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::embedded::status::{Line as LogLine, Process};
    use crate::source::backfill::BackfillNumbers;
    use expect_test::expect;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn source(name: &str, state: &str, reason: Option<&str>) -> Source {
        Source {
            name: name.into(),
            tenant: "11111111-2222-3333-4444-555555555555".into(),
            state: state.into(),
            reason: reason.map(str::to_owned),
            since: Some(t("2026-05-03T09:00:00Z")),
            quota: Quota {
                max_per_minute: 2000,
                granted_per_minute: Some(1200.0),
                used_per_minute: 120.4,
                refused_per_minute: 0.0,
                refused: 3,
            },
            clock_skew_secs: Some(0.4),
            in_flight_bytes: 1_250_000,
            set_aside: 0,
            turn_waiting_secs: None,
            empty_answers: 0,
            streams: vec![Stream {
                content_type: "Audit.Exchange".into(),
                complete_until: Some(t("2026-05-03T09:54:00Z")),
                lag_secs: Some(420.0),
                pending: 2,
                oldest_age_secs: Some(7300.0),
                expiry_secs: Some(5400.0),
                events: 12_345,
                events_per_sec: 3.25,
                bytes_per_sec: 4096.0,
                ..Stream::default()
            }],
            backfill: None,
            held: None,
        }
    }

    fn example() -> Status {
        let mut contoso = source("contoso", "healthy", None);
        contoso.backfill =
            Some(BackfillNumbers { span_secs: 200, read_secs: 50, blobs: 7, events: 90, ..BackfillNumbers::default() });
        Status {
            process: Process {
                pid: 4242,
                version: "0.1.0".into(),
                started: t("2026-05-03T07:00:00Z"),
                now: t("2026-05-03T10:00:00Z"),
                reading: 1,
                waiting: 0,
            },
            state: "failed".into(),
            sources: vec![
                contoso,
                source("fabrikam", "failed", Some("auth-secret-expired: cannot get a token (hint: make a new secret)")),
            ],
            sinks: vec![Sink {
                name: "file".into(),
                state: "healthy".into(),
                reason: None,
                since: t("2026-05-03T07:00:00Z"),
                records_per_sec: 3.2,
                records: 12_345,
                retries: 0,
                oldest_request_secs: 0.0,
            }],
            store: None,
            recent: vec![LogLine {
                time: t("2026-05-03T09:59:00Z"),
                level: "error".into(),
                text: "auth-secret-expired: cannot get a token\u{1b}[2J".into(),
            }],
        }
    }

    fn screen(view: &mut LiveView, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn who_waits_for_a_turn_to_read_and_what_was_empty_is_told() {
        let mut status = example();
        let text = |status: &Status| page(status, 200).iter().map(text_of).collect::<Vec<_>>().join("\n");
        assert!(!text(&status).contains("turn"), "nobody waits");
        (status.process.reading, status.process.waiting) = (50, 1);
        status.sources[0].turn_waiting_secs = Some(90.0);
        status.sources[0].empty_answers = 2;
        let shown = text(&status);
        assert!(shown.contains("2 empty answers (asked for again)"), "{shown}");
        assert!(
            shown
                .contains("1 tenant with blobs to read waits for a turn; 50 tenants read now (`catch_up_tenants_max`)"),
            "{shown}"
        );
        assert!(shown.contains("  waits for its turn to read blobs for 90 s; nothing is lost"), "{shown}");
    }

    #[test]
    fn the_page_shows_every_stream_and_the_source_in_trouble_first() {
        let mut view = LiveView { status: example(), which: TenantFilter::default(), trouble: None, scroll: 0 };
        expect![[r#"
            m365-audit 0.1.0  pid 4242  up 3 h 0 min  failed  2026-05-03 10:00:00Z

            fabrikam  11111111-2222-3333-4444-555555555555  failed for 60 min
              auth-secret-expired: cannot get a token (hint: make a new secret)
              content type                        lag     complete  pending      oldest     expires  events/s      kB/s      events
              Audit.Exchange                    7 min    6 min ago        2   2 h 1 min      90 min       3.2       4.1       12345
              requests a minute: 120 used, 1200 granted, at most 2000, 0 refused (3 since the start), 1.2 MB in flight

            contoso  11111111-2222-3333-4444-555555555555  healthy for 60 min
              content type                        lag     complete  pending      oldest     expires  events/s      kB/s      events
              Audit.Exchange                    7 min    6 min ago        2   2 h 1 min      90 min       3.2       4.1       12345
              requests a minute: 120 used, 1200 granted, at most 2000, 0 refused (3 since the start), 1.2 MB in flight
              back-fill: 25 %, 7 blobs, 90 events

            sink file  healthy for 3 h 0 min, 3.2 records/s, 12345 records, 0 failed writes

            warnings and errors, newest first
              2026-05-03 09:59:00Z error auth-secret-expired: cannot get a token [2J

            q quit"#]].assert_eq(&screen(&mut view, 120, 20));
    }

    #[test]
    fn a_small_terminal_scrolls_to_the_end_and_no_further() {
        let mut view = LiveView { status: example(), which: TenantFilter::default(), trouble: None, scroll: 0 };
        let press = |code| Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
        for _ in 0..20 {
            assert!(on_event(&mut view, &press(KeyCode::PageDown)));
        }
        let shown = screen(&mut view, 120, 6);
        assert!(shown.contains("auth-secret-expired: cannot get a token"), "{shown}");
        assert!(view.scroll < 20, "{}", view.scroll);
        assert!(on_event(&mut view, &press(KeyCode::Home)));
        assert!(screen(&mut view, 120, 6).starts_with("m365-audit 0.1.0  pid 4242"));
        assert!(!on_event(&mut view, &press(KeyCode::Char('q'))));
        assert!(!on_event(&mut view, &Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL))));
    }

    #[test]
    fn a_narrow_terminal_shows_the_lag_and_the_expiry_on_one_line() {
        let mut view = LiveView { status: example(), which: TenantFilter::default(), trouble: None, scroll: 0 };
        let shown = screen(&mut view, 80, 20);
        let row = shown.lines().find(|line| line.contains("Audit.Exchange")).unwrap();
        assert_eq!(row, "  Audit.Exchange                    7 min    6 min ago        2      90 min");
    }

    #[test]
    fn no_two_columns_run_together_however_long_their_values() {
        let long = |secs: f64| Stream {
            content_type: "Audit.AzureActiveDirectory".into(),
            lag_secs: Some(secs),
            complete_until: Some(Timestamp::from_second(t("2026-05-03T10:00:00Z").as_second() - secs as i64).unwrap()),
            pending: 1_234_567_890,
            oldest_age_secs: Some(secs),
            expiry_secs: Some(secs),
            events: 123_456_789_012_345,
            events_per_sec: 123_456_789.5,
            bytes_per_sec: 9.9e12,
            ..Stream::default()
        };
        let now = t("2026-05-03T10:00:00Z");
        for secs in [0.0, 119.0, 7199.0, 82_920.0, 84_960.0, 1_000_000.0, 9.0e8] {
            for narrow in [true, false] {
                let rows = stream_lines(&[long(secs), Stream::default()], now, narrow);
                let [head, row, _] = &*rows else { panic!("{rows:?}") };
                let columns = |line: &Line<'_>| {
                    let line = text_of(line);
                    line.split("  ").filter(|cell| !cell.trim().is_empty()).count()
                };
                assert_eq!(columns(row), columns(head), "{}", text_of(row));
                assert_eq!(row.width(), head.width(), "the columns stand below their heads: {}", text_of(row));
            }
        }
    }

    #[test]
    fn reads_on_hold_say_what_they_wait_for_and_how_far_behind_it_is() {
        let held = Held {
            reads: 12,
            waits_for: Some("DLP.All".into()),
            complete_until: Some(t("2026-05-03T06:48:00Z")),
            behind_secs: Some(11_520.0),
        };
        let words = held_words(&held);
        assert_eq!(
            words,
            "12 routine reads on hold: they wait for `DLP.All`, which is complete until 2026-05-03T06:48:00Z, 3 h 12 min behind"
        );
        let held = Held { reads: 1, complete_until: None, behind_secs: None, ..held };
        assert_eq!(
            held_words(&held),
            "1 routine read on hold: it waits for `DLP.All`, of which nothing is complete yet"
        );
        let mut status = example();
        status.sources[0].held = Some(held);
        let text: Vec<String> = page(&status, 120).iter().map(text_of).collect();
        assert!(text.iter().any(|line| line.contains("1 routine read on hold")), "{text:?}");
    }

    #[test]
    fn one_of_a_thing_is_not_called_several() {
        let mut status = example();
        let source = &mut status.sources[0];
        (source.quota.refused, source.set_aside) = (1, 1);
        (source.streams[0].gaps, source.streams[0].lost) = (1, 1);
        source.backfill =
            Some(BackfillNumbers { span_secs: 10, read_secs: 1, blobs: 1, events: 1, ..BackfillNumbers::default() });
        (status.sinks[0].records, status.sinks[0].retries) = (1, 1);
        let text: Vec<String> = page(&status, 120).iter().map(text_of).collect();
        let text = text.join("\n");
        for wrong in ["1 blobs", "1 events,", "1 events\n", "1 gaps", "1 records", "1 times", "1 failed writes"] {
            assert!(!text.contains(wrong), "{wrong}: {text}");
        }
        assert!(text.contains("1 gap declared, 1 blob lost") && text.contains("1 record set aside"), "{text}");
    }

    #[test]
    fn a_process_that_is_gone_is_said_below_what_was_last_known() {
        let mut view = LiveView {
            status: example(),
            which: TenantFilter::default(),
            trouble: Some("the process has ended".into()),
            scroll: 0,
        };
        let shown = screen(&mut view, 120, 20);
        assert!(shown.lines().last().unwrap().starts_with("the process has ended"), "{shown}");
        assert!(shown.contains("contoso"), "{shown}");
    }

    #[test]
    fn nothing_an_error_says_reaches_the_terminal_as_a_command() {
        assert!(page(&example(), 120).iter().all(|line| !text_of(line).chars().any(char::is_control)));
    }
}
