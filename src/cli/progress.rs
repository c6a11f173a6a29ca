//! The progress of long work: a bar with rate and remaining time if standard error is a terminal, otherwise nothing.
//!
//! The worker reports the total and the amount done; this module decides what is drawn and how often. A command writes
//! its messages to standard error through [`ProgressDisplay::beside`], so that they do not mix with the bar.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::host::{Op, Revision, StateError, StateStore};

/// The bar is drawn this often even without progress, so that its rate falls.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// The unit of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressUnit {
    /// Bytes.
    Bytes,
    /// Other things, by their name in the plural.
    Things(&'static str),
}

/// The template of a bar, in the syntax of `indicatif`.
fn template(unit: ProgressUnit, is_total_known: bool) -> String {
    match (unit, is_total_known) {
        (ProgressUnit::Bytes, true) => {
            "{prefix} [{bar:24}] {percent:>3} %  {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left".to_owned()
        }
        (ProgressUnit::Bytes, false) => "{prefix}  {bytes}, {bytes_per_sec}, time left unknown".to_owned(),
        (ProgressUnit::Things(things), true) => {
            format!("{{prefix}} [{{bar:24}}] {{percent:>3}} %  {{pos}} of {{len}} {things}, {{per_sec}}, {{eta}} left")
        }
        (ProgressUnit::Things(things), false) => {
            format!("{{prefix}}  {{pos}} {things}, {{per_sec}}, time left unknown")
        }
    }
}

/// The progress of one piece of work. Clones share the bar; dropping the last one removes it.
#[derive(Debug, Clone)]
pub struct ProgressDisplay {
    bar: ProgressBar,
    unit: ProgressUnit,
}

impl ProgressDisplay {
    /// For a command that writes to standard output at its end: shown if standard error is a terminal.
    pub fn at_the_terminal(unit: ProgressUnit) -> Self {
        Self::shown_if(io::stderr().is_terminal(), unit)
    }

    /// For a command that writes to standard output as it works: not shown if that is also the terminal.
    pub fn beside_output(unit: ProgressUnit) -> Self {
        Self::shown_if(io::stderr().is_terminal() && !io::stdout().is_terminal(), unit)
    }

    fn shown_if(is_shown: bool, unit: ProgressUnit) -> Self {
        Self::on(if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }, unit)
    }

    fn on(target: ProgressDrawTarget, unit: ProgressUnit) -> Self {
        Self { bar: ProgressBar::with_draw_target(None, target), unit }
    }

    /// Begins a new piece of work. `total` is its amount, if known.
    pub fn begin(&self, what: impl Into<String>, total: Option<u64>) {
        if self.bar.is_hidden() {
            return;
        }
        let style = ProgressStyle::with_template(&template(self.unit, total.is_some()));
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        self.bar.set_prefix(what.into());
        self.bar.reset();
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.tick();
        self.bar.enable_steady_tick(DRAW_EVERY);
    }

    /// Adds to the amount done.
    pub fn add(&self, done: u64) {
        self.bar.inc(done);
    }

    /// A function that adds to the amount done, for work on another thread.
    pub fn adder(&self) -> Arc<dyn Fn(u64) + Send + Sync> {
        let bar = self.bar.clone();
        Arc::new(move |done| bar.inc(done))
    }

    /// Wraps `out` for writing while the bar is on the same terminal.
    pub fn beside<W: Write>(&self, out: W) -> BesideBar<W> {
        BesideBar { progress: self.clone(), out }
    }

    /// Ends the work and removes the bar, so that the command can print its messages.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Standard error beside a bar.
#[derive(Debug)]
pub struct BesideBar<W> {
    progress: ProgressDisplay,
    out: W,
}

impl<W: Write> Write for BesideBar<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let out = &mut self.out;
        self.progress.bar.suspend(|| out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A state whose reading is measured: each value of some keys is one step.
pub struct CountedStore<S> {
    /// The state.
    pub store: S,
    /// Advanced by each value.
    pub progress: ProgressDisplay,
    /// The prefixes of the keys that count.
    pub prefixes: Vec<String>,
}

#[async_trait]
impl<S: StateStore> StateStore for CountedStore<S> {
    async fn load(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StateError> {
        if self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())) {
            self.progress.add(1);
        }
        self.store.load(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Revision)>, StateError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Revision, StateError> {
        self.store.commit(ops).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use indicatif::TermLike;

    use super::*;

    /// A terminal that remembers what was written to it.
    #[derive(Debug, Clone, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl Terminal {
        fn put(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        /// The text since the last call, without the blanks that fill its lines.
        fn taken(&self) -> String {
            let text = std::mem::take(&mut *self.0.lock().unwrap());
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    }

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.put(text)?;
            self.put("\n")
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.put(text)
        }

        fn clear_line(&self) -> io::Result<()> {
            self.put("<cleared>")
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_says_how_much_of_how_much_is_done_at_which_rate_and_the_time_left() {
        for (unit, parts) in [
            (ProgressUnit::Bytes, ["25 %", "256.00 KiB of 1.00 MiB", "/s", "left"]),
            (ProgressUnit::Things("pages"), ["25 %", "262144 of 1048576 pages", "/s", "left"]),
        ] {
            let terminal = Terminal::default();
            let progress = ProgressDisplay::on(ProgressDrawTarget::term_like(Box::new(terminal.clone())), unit);
            progress.begin("normalize", Some(1 << 20));
            assert!(terminal.taken().starts_with("normalize ["), "it is there at once");
            progress.adder()(1 << 18);
            // Otherwise its thread draws later.
            progress.bar.suspend(|| ());
            let drawn = terminal.taken();
            assert!(parts.iter().all(|part| drawn.contains(part)), "{drawn}");
            progress.begin("again", None);
            progress.bar.suspend(|| ());
            assert!(terminal.taken().contains("time left unknown"));
            progress.end();
            assert!(terminal.taken().ends_with("<cleared>"));
        }
    }

    #[test]
    fn what_is_said_meanwhile_stands_above_the_bar() {
        let terminal = Terminal::default();
        let progress =
            ProgressDisplay::on(ProgressDrawTarget::term_like(Box::new(terminal.clone())), ProgressUnit::Bytes);
        progress.begin("normalize", Some(100));
        terminal.taken();
        let mut said = Vec::new();
        progress.beside(&mut said).write_all(b"a line\n").unwrap();
        let drawn = terminal.taken();
        assert_eq!(said, b"a line\n");
        assert!(drawn.contains("<cleared>") && drawn.contains("normalize ["), "taken away, and drawn again: {drawn}");
        progress.end();
    }

    #[test]
    fn elsewhere_nothing_is_drawn_and_what_is_said_is_said() {
        let progress = ProgressDisplay::shown_if(false, ProgressUnit::Bytes);
        progress.begin("normalize", Some(100));
        progress.add(50);
        let mut said = Vec::new();
        progress.beside(&mut said).write_all(b"a line\n").unwrap();
        progress.end();
        assert!(progress.bar.is_hidden());
        assert_eq!(said, b"a line\n");
    }
}
