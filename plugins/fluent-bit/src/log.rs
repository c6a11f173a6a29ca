//! The plugin's log lines: written on its own threads, printed by the host on the host's threads.
//!
//! Fluent Bit's log function, called from a thread of the plugin, would miss its log file. A library must not take the
//! process's subscriber either. So each thread of the plugin's runtime is given [`Lines`] as its own subscriber, which
//! keeps them, up to a bound, until the next call of the host prints them.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use m365_audit::hosts::embedded::status::{self, Recent};
use m365_audit::model::{Timestamp, plain};

/// Lines kept for the host; above this new ones are counted and dropped.
const LINES_MAX: usize = 1_000;
/// Bytes of one line; the host cuts at about 4 KiB, its prefix included.
const LINE_BYTES_MAX: usize = 3_800;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The host's number of the level: 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: i32,
    /// The text, without a line break.
    pub text: String,
}

/// Lines waiting to be printed. Cheap to clone.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<Shared>,
    /// Made once: making one visits every place in the program that can write a line.
    dispatch: Dispatch,
}

/// Writes into them.
struct Writer(Arc<Shared>);

struct Shared {
    /// The last warnings and errors, for the plugin's own pages.
    recent: Recent,
    most: LevelFilter,
    kept: Mutex<VecDeque<Line>>,
    dropped: AtomicU64,
    spans: AtomicU64,
}

impl Lines {
    /// Keeps lines up to the host's level `most`.
    pub fn new(most: i32) -> Self {
        let most = match most {
            ..1 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            5.. => LevelFilter::TRACE,
        };
        let (dropped, spans) = (AtomicU64::new(0), AtomicU64::new(1));
        let shared = Arc::new(Shared { recent: Recent::default(), most, kept: Mutex::default(), dropped, spans });
        Self { dispatch: Dispatch::new(Writer(shared.clone())), shared }
    }

    /// Makes this the calling thread's subscriber for as long as the thread lives.
    pub fn write_from_this_thread(&self) {
        // The guard would end it; it holds nothing but the subscriber before, of which there is none.
        std::mem::forget(tracing::dispatcher::set_default(&self.dispatch));
    }

    /// Runs `work` with its lines going here.
    pub fn while_in<T>(&self, work: impl FnOnce() -> T) -> T {
        tracing::dispatcher::with_default(&self.dispatch, work)
    }

    /// The last warnings and errors.
    pub fn recent(&self) -> Recent {
        self.shared.recent.clone()
    }

    /// Takes the lines to print.
    pub fn take(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = self.shared.lock().drain(..).collect();
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            lines.push(Line { level: 2, text: format!("{dropped} more lines were not kept") });
        }
        lines
    }
}

impl Shared {
    fn keep(&self, line: Line) {
        let mut kept = self.lock();
        if kept.len() < LINES_MAX {
            kept.push_back(line);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, VecDeque<Line>> {
        self.kept.lock()
    }
}

impl Subscriber for Writer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Of libraries only warnings and errors: their debug lines may contain headers.
        let ours = metadata.target().starts_with("m365_audit");
        *metadata.level() <= self.0.most && (ours || *metadata.level() <= Level::WARN)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.most)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.0.spans.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 3,
            Level::DEBUG => 4,
            Level::TRACE => 5,
        };
        let text = one_line(text.message + &text.fields);
        if level <= 2 {
            let level = if level == 1 { "error" } else { "warn" };
            self.0.recent.push(status::Line { time: Timestamp::now(), level: level.to_owned(), text: text.clone() });
        }
        self.0.keep(Line { level, text });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message first, then ` key=value` for each field.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// Foreign text in a value must not forge a line of its own, nor control a terminal.
fn one_line(text: String) -> String {
    let mut line = plain(&text).into_owned();
    if line.len() > LINE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_its_message_then_its_fields_and_never_two_lines() {
        let lines = Lines::new(3);
        lines.while_in(|| {
            tracing::info!(tenant = %"t", count = 3, why = "a\u{1b}[0m\nb", "read {}", 1);
            tracing::debug!("not asked for");
            tracing::error!(target: "hyper", "of a library");
            tracing::info!(target: "hyper", "of a library, and not wrong");
        });
        let line = |level, text: &str| Line { level, text: text.to_owned() };
        let expected = [line(3, "read 1 tenant=t count=3 why=a\u{fffd}[0m; b"), line(1, "of a library")];
        assert_eq!(lines.take(), expected);
        assert_eq!(lines.take(), []);
    }

    #[test]
    fn lines_nobody_takes_are_counted_and_not_kept() {
        let lines = Lines::new(3);
        lines.while_in(|| (0..LINES_MAX + 5).for_each(|n| tracing::info!("{n} {}", "x".repeat(5_000))));
        let taken = lines.take();
        assert_eq!(taken.len(), LINES_MAX + 1);
        assert!(taken.iter().all(|line| line.text.len() < 4_000));
        assert_eq!(taken.last().map(|line| line.text.as_str()), Some("5 more lines were not kept"));
    }
}
