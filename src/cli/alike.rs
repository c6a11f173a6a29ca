//! Merges log lines that many tenants have in common into one with a count: a thousand lines that differ only in a name
//! hide the important one.
//!
//! The first of such lines is written at once. Those that follow within a window are counted, and one line reports
//! their number and names some tenants; while they continue, the window doubles.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::glance::LINES_FROM;
use crate::clock::Clock;
use crate::model::slug_of;

/// The first window.
const WINDOW: Duration = Duration::from_secs(15);
/// The longest.
const WINDOW_MAX: Duration = Duration::from_secs(600);
/// Tenants named in a line that counts.
const NAMED_MAX: usize = 8;
/// The maximum number of kinds of lines remembered, which bounds memory.
const KINDS_MAX: usize = 512;
/// The target of the lines that count, which are never counted themselves.
const TARGET: &str = "m365_audit::alike";

/// Counts similar lines. Cheap to clone.
#[derive(Clone)]
pub(super) struct Alike(Arc<AlikeState>);

struct AlikeState {
    /// Whether there are enough tenants for this.
    on: AtomicBool,
    clock: Arc<dyn Clock>,
    kinds: Mutex<HashMap<LineKind, Said>>,
}

/// The criterion for similar lines: their call site, and their slug, or without one their text.
type LineKind = (Identifier, String);

/// The lines of one kind.
struct Said {
    level: Level,
    /// The text of the first.
    text: String,
    until: Duration,
    window: Duration,
    /// Lines since the last one was written.
    lines: u64,
    tenants: BTreeSet<String>,
}

/// A line that counts.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    level: Level,
    text: String,
    lines: u64,
    tenants: BTreeSet<String>,
}

impl Alike {
    /// Off until there are many tenants.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(AlikeState { on: AtomicBool::new(false), clock, kinds: Mutex::default() }))
    }

    /// Sets the number of tenants.
    pub(super) fn set_tenants(&self, tenants: usize) {
        self.0.on.store(tenants >= LINES_FROM, Ordering::Relaxed);
    }

    /// Whether a line is to be written; else it is counted.
    fn note(&self, kind: LineKind, level: Level, words: LineText, now: Duration) -> bool {
        let mut kinds = self.0.kinds.lock();
        let Some(said) = kinds.get_mut(&kind) else {
            if kinds.len() < KINDS_MAX {
                let until = now + WINDOW;
                let (lines, tenants) = (0, BTreeSet::new());
                kinds.insert(kind, Said { level, text: words.message, until, window: WINDOW, lines, tenants });
            }
            return true;
        };
        said.lines += 1;
        said.tenants.insert(words.tenant);
        false
    }

    /// The summaries of windows that have ended; of all with `at_end`.
    fn ended(&self, now: Duration, at_end: bool) -> Vec<Summary> {
        let mut summaries = Vec::new();
        self.0.kinds.lock().retain(|_, said| {
            if now < said.until && !at_end {
                return true;
            }
            if said.lines == 0 {
                return false;
            }
            let tenants = std::mem::take(&mut said.tenants);
            let lines = std::mem::take(&mut said.lines);
            summaries.push(Summary { level: said.level, text: said.text.clone(), lines, tenants });
            said.window = (said.window * 2).min(WINDOW_MAX);
            said.until = now + said.window;
            true
        });
        summaries
    }

    /// Writes the summaries of ended windows at intervals.
    pub(super) async fn keep_writing(self) {
        loop {
            self.0.clock.sleep(Duration::from_secs(1)).await;
            self.write(false);
        }
    }

    /// Writes the summaries; of all windows at the end.
    pub(super) fn write(&self, at_end: bool) {
        for Summary { level, text, lines, tenants } in self.ended(self.0.clock.monotonic(), at_end) {
            let count = tenants.len();
            let named = tenants.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = count.saturating_sub(NAMED_MAX);
            let named = if more > 0 { format!("{named} and {more} more") } else { named };
            match level {
                Level::ERROR => {
                    tracing::error!(target: TARGET, tenants = count, lines, "alike: {text} (also: {named})")
                }
                Level::WARN => tracing::warn!(target: TARGET, tenants = count, lines, "alike: {text} (also: {named})"),
                _ => tracing::info!(target: TARGET, tenants = count, lines, "alike: {text} (also: {named})"),
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Alike {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !self.0.on.load(Ordering::Relaxed) || metadata.target() == TARGET || *metadata.level() > Level::INFO {
            return true;
        }
        let mut words = LineText::default();
        event.record(&mut words);
        // A line without a tenant is not repeated by others.
        if words.tenant.is_empty() {
            return true;
        }
        let kind = slug_of(&words.message).unwrap_or(&words.message).to_owned();
        self.note((metadata.callsite(), kind), *metadata.level(), words, self.0.clock.monotonic())
    }
}

/// A line's message, and its tenant: the source's name if there is one.
#[derive(Default)]
struct LineText {
    message: String,
    tenant: String,
    is_named: bool,
}

impl Visit for LineText {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => {
                let _ = write!(self.message, "{value:?}");
            }
            "source" => {
                self.tenant = format!("{value:?}");
                self.is_named = true;
            }
            "tenant" if !self.is_named => self.tenant = format!("{value:?}"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;
    use crate::model::Timestamp;
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::prelude::*;

    /// The lines that pass.
    #[derive(Clone, Default)]
    struct Passed(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Passed {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut words = LineText::default();
            event.record(&mut words);
            self.0.lock().push(words.message);
        }
    }

    fn with_lines(work: impl FnOnce(&Alike, &TestClock)) -> Vec<String> {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let (alike, passed) = (Alike::new(Arc::new(clock.clone())), Passed::default());
        let log =
            tracing_subscriber::registry().with(passed.clone()).with(alike.clone().with_filter(LevelFilter::INFO));
        tracing::subscriber::with_default(log, || work(&alike, &clock));
        passed.0.lock().clone()
    }

    fn fail(tenants: impl Iterator<Item = usize>, slug: &str) {
        for tenant in tenants {
            tracing::error!(source = %format!("t{tenant:03}"), "{slug}: answer {tenant}");
        }
    }

    #[test]
    fn what_two_hundred_tenants_say_alike_is_said_once_and_then_with_a_count() {
        let lines = with_lines(|alike, clock| {
            alike.set_tenants(200);
            fail(0..200, "auth-unreachable");
            fail(7..8, "auth-secret-wrong");
            tracing::warn!("of no tenant");
            tracing::warn!("of no tenant");
            alike.write(false);
            clock.advance(WINDOW);
            alike.write(false);
            // They continue: the window is longer, and no line is written before its end.
            fail(0..3, "auth-unreachable");
            clock.advance(WINDOW);
            alike.write(false);
            clock.advance(WINDOW);
            alike.write(false);
            // The kind is forgotten: the next line is written at once.
            clock.advance(WINDOW * 4);
            alike.write(false);
            fail(5..6, "auth-unreachable");
        });
        assert_eq!(
            lines,
            [
                "auth-unreachable: answer 0",
                "auth-secret-wrong: answer 7",
                "of no tenant",
                "of no tenant",
                "alike: auth-unreachable: answer 0 (also: t001, t002, t003, t004, t005, t006, t007, t008 and 191 more)",
                "alike: auth-unreachable: answer 0 (also: t000, t001, t002)",
                "auth-unreachable: answer 5",
            ]
        );
    }

    #[test]
    fn with_few_tenants_every_line_is_written_and_at_the_end_nothing_is_kept_back() {
        let lines = with_lines(|alike, _| {
            alike.set_tenants(9);
            fail(0..9, "auth-unreachable");
        });
        assert_eq!(lines.len(), 9);
        let lines = with_lines(|alike, _| {
            alike.set_tenants(10);
            fail(0..10, "auth-unreachable");
            alike.write(true);
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
}
