//! Logs to stderr, as text or JSON lines. Standard output belongs to data.
//!
//! The log contains foreign texts, such as a server's answers and ids. A line break or an escape sequence in one would
//! forge a line or control the terminal, so every value is written without control characters.

use std::fmt::{self, Debug, Write as _};
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::prelude::*;

use super::alike::Alike;
use crate::clock::SystemClock;
use crate::config::{LogConfig, LogFormat};
use crate::hosts::embedded::status::{Line, Recent};
use crate::model::{Timestamp, plain, shortened};

/// Libraries that log every broken connection, which the caller already logs with the remedy.
const QUIET: &str = "deadpool_postgres=error,tokio_postgres=error";

/// The log of a process.
pub(super) struct ProcessLog {
    /// Its last warnings and errors.
    pub recent: Recent,
    /// Merges similar lines of many tenants.
    pub alike: Alike,
}

/// Installs the process's log. A second call changes nothing, and its result stays empty.
pub(super) fn install(config: &LogConfig) -> ProcessLog {
    let recent = Recent::default();
    let alike = Alike::new(SystemClock::new());
    let counting = || alike.clone().with_filter(Targets::new().with_target("m365_audit", Level::INFO));
    let keeper = RecentLayer(recent.clone()).with_filter(LevelFilter::WARN);
    // The configured level applies to this program's own lines; libraries log only warnings and errors.
    let (filter, unreadable) = filter(&config.level, std::env::var("M365_AUDIT_LOG").ok());
    let stderr = std::io::stderr;
    let _ = match config.format {
        // JSON has escapes of its own for what could break a line.
        LogFormat::Json => tracing_subscriber::registry()
            .with(keeper)
            .with(counting())
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(stderr)
                    .with_target(false)
                    .with_filter(filter),
            )
            .try_init(),
        LogFormat::Text => tracing_subscriber::registry()
            .with(keeper)
            .with(counting())
            .with(
                tracing_subscriber::fmt::layer()
                    .fmt_fields(PlainFields)
                    .with_writer(stderr)
                    .with_target(false)
                    .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
                    .with_filter(filter),
            )
            .try_init(),
    };
    if let Some(text) = unreadable {
        tracing::warn!(
            value = %text,
            "M365_AUDIT_LOG cannot be read, so `[log] level` applies: write a level or directives such as \
             `info,m365_audit=debug`"
        );
    }
    ProcessLog { recent, alike }
}

/// What the log shows: `asked`, the value of `M365_AUDIT_LOG`, else the configured level. The second part is an `asked`
/// that cannot be read.
fn filter(level: &str, asked: Option<String>) -> (Targets, Option<String>) {
    let unreadable = match asked {
        None => None,
        Some(text) => match directives(&text).parse() {
            Ok(targets) => return (targets, None),
            Err(_) => Some(text),
        },
    };
    // `check_level` has refused every other text.
    let targets = format!("warn,{QUIET},m365_audit={}", directives(level))
        .parse()
        .unwrap_or_else(|_| Targets::new().with_target("m365_audit", Level::INFO));
    (targets, unreadable)
}

/// Keeps the lines that `status` shows, independent of the log's level.
struct RecentLayer(Recent);

impl<S: Subscriber> Layer<S> for RecentLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if !metadata.target().starts_with("m365_audit") {
            return;
        }
        let mut words = FieldWriter::default();
        event.record(&mut words);
        let level = if *metadata.level() == Level::ERROR { "error" } else { "warn" };
        let text = format!("{}{}", words.message, words.fields);
        self.0.push(Line { time: Timestamp::now(), level: level.into(), text });
    }
}

#[derive(Default)]
struct FieldWriter {
    message: String,
    fields: String,
}

impl Visit for FieldWriter {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={}", field.name(), shortened(&format!("{value:?}")))
        };
    }
}

/// The message, then `name=value` for each field, all of it plain.
struct PlainFields;

impl<'w> FormatFields<'w> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visit = PlainVisit { writer, begun: false, result: Ok(()) };
        fields.record(&mut visit);
        visit.result
    }
}

struct PlainVisit<'w> {
    writer: Writer<'w>,
    begun: bool,
    result: fmt::Result,
}

impl PlainVisit<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        if self.result.is_err() {
            return;
        }
        // Fields that a library's log macro adds about its source file.
        if field.name().starts_with("log.") {
            return;
        }
        let between = if std::mem::replace(&mut self.begun, true) { " " } else { "" };
        self.result = match field.name() {
            "message" => write!(self.writer, "{between}{}", plain(value)),
            name => write!(self.writer, "{between}{name}={}", plain(&shortened(value))),
        };
    }
}

impl Visit for PlainVisit<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.write(field, value);
        } else {
            self.record_debug(field, &value);
        }
    }
}

/// Without blanks and without what is empty between commas: `Targets` takes a blank for a part of a name.
fn directives(text: &str) -> String {
    text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(targets: &Targets) -> [bool; 4] {
        [
            ("m365_audit::source", Level::INFO),
            ("m365_audit::source", Level::DEBUG),
            ("hyper", Level::INFO),
            ("tokio_postgres", Level::WARN),
        ]
        .map(|(target, level)| targets.would_enable(target, &level))
    }

    #[test]
    fn the_level_is_for_our_own_lines_and_the_variable_replaces_it() {
        let cases: [(&str, Option<&str>, [bool; 4]); 9] = [
            ("info", None, [true, false, false, false]),
            ("debug", None, [true, true, false, false]),
            ("error", None, [false, false, false, false]),
            ("info,m365_audit=debug", None, [true, true, false, false]),
            (" info , m365_audit=debug,", None, [true, true, false, false]),
            ("info", Some("warn, m365_audit::source=debug ,"), [true, true, false, true]),
            ("info", Some("trace"), [true, true, true, true]),
            ("info", Some("warn,m365_audit::source=debug"), [true, true, false, true]),
            ("error", Some("off"), [false, false, false, false]),
        ];
        for (level, asked, expected) in cases {
            let (targets, unreadable) = filter(level, asked.map(str::to_owned));
            assert_eq!((shows(&targets), unreadable), (expected, None), "{level} {asked:?}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_named_and_the_level_applies() {
        for asked in ["m365_audit=loud", "a=b=c"] {
            let (targets, unreadable) = filter("debug", Some(asked.to_owned()));
            assert_eq!(unreadable.as_deref(), Some(asked));
            assert!(shows(&targets)[1], "{asked}");
        }
    }
}
