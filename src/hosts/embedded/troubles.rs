//! What is wrong with one sink right now, put together into the one reason its health shows.
//!
//! Three kinds stand beside each other: the destination does not take records, a write has been under way for long, and
//! what the sink itself found ([`Sink::notices`](super::sink::Sink::notices)). Each is set and cleared by whoever knows; the host hears of a change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::sink::Observer;
use crate::clock::Clock;
use crate::metrics::SINK_WAITING_SECONDS;

/// A write that takes longer than this is trouble: the disk, the server or the reader behind it does not answer.
pub const SLOW_AFTER: Duration = Duration::from_secs(10);

/// The troubles of one sink.
pub(super) struct Troubles {
    sink: Arc<str>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    failing: Option<String>,
    noticed: Option<String>,
    /// Slow writes: when each began by the monotonic clock, and its batches.
    slow: BTreeMap<u64, (Duration, usize)>,
    writes: u64,
    told: Option<String>,
}

impl Troubles {
    pub(super) fn new(sink: Arc<str>, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Self {
        Self { sink, clock, observer, all: Mutex::default() }
    }

    /// The destination does not take records for this reason, or (`None`) takes them again.
    pub(super) fn failing(&self, why: Option<&str>) {
        self.change(|all| all.failing = why.map(str::to_owned));
    }

    /// What the sink itself found.
    pub(super) fn noticed(&self, what: Option<String>) {
        self.change(|all| all.noticed = what);
    }

    /// Waits for `work` with `batches` in its hands and tells of it while it takes long.
    pub(super) async fn watched<T>(&self, batches: usize, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let began = self.clock.monotonic();
        let mut slow: Option<Slow<'_>> = None;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.clock.sleep(SLOW_AFTER) => slow.get_or_insert_with(|| Slow::new(self, began, batches)).tell(),
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut All)) {
        let mut all = self.lock();
        change(&mut all);
        let slow = all.slow_words(self.clock.monotonic());
        let words: Vec<&str> = [&all.failing, &slow, &all.noticed].into_iter().flatten().map(String::as_str).collect();
        let now = (!words.is_empty()).then(|| words.join("; "));
        if now != all.told {
            self.observer.trouble(&self.sink, now.as_deref());
            all.told = now;
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn slow_words(&self, now: Duration) -> Option<String> {
        let (began, _) = self.slow.values().min()?;
        let batches: usize = self.slow.values().map(|(_, batches)| batches).sum();
        Some(slow_words(batches, now.saturating_sub(*began)))
    }
}

fn slow_words(batches: usize, age: Duration) -> String {
    let what = match batches {
        0 => "a look at the file".to_owned(),
        1 => "a write of 1 batch".to_owned(),
        n => format!("a write of {n} batches"),
    };
    format!("sink-slow: {what} has been under way for {} s (hint: {SLOW_HINT})", age.as_secs())
}

/// What to do about a sink that does not answer.
pub const SLOW_HINT: &str = "look at what the sink writes to: a frozen or unreachable file system (`fsfreeze`, NFS), a \
                             reader that does not read, a server that does not answer; nothing is lost, what is not \
                             confirmed stays owed";

/// A write that takes long, told until it is dropped.
struct Slow<'a> {
    troubles: &'a Troubles,
    number: u64,
    began: Duration,
}

impl<'a> Slow<'a> {
    fn new(troubles: &'a Troubles, began: Duration, batches: usize) -> Self {
        let number = {
            let mut all = troubles.lock();
            all.writes += 1;
            let number = all.writes;
            all.slow.insert(number, (began, batches));
            number
        };
        let age = troubles.clock.monotonic().saturating_sub(began);
        tracing::warn!(sink = %troubles.sink, "{}", slow_words(batches, age));
        Self { troubles, number, began }
    }

    fn tell(&self) {
        let age = self.troubles.clock.monotonic().saturating_sub(self.began);
        metrics::gauge!(SINK_WAITING_SECONDS, "sink" => self.troubles.sink.to_string()).set(age.as_secs_f64());
        self.troubles.change(|_| {});
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        self.troubles.change(|all| {
            all.slow.remove(&self.number);
        });
        let age = self.troubles.clock.monotonic().saturating_sub(self.began);
        metrics::gauge!(SINK_WAITING_SECONDS, "sink" => self.troubles.sink.to_string()).set(0.0);
        tracing::info!(sink = %self.troubles.sink, "the write that took long has ended after {} s", age.as_secs());
    }
}
