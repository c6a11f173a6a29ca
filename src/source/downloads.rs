//! How many blobs are downloaded at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::budget::Budget;
use super::fetch::DownloadTimes;

/// Bodies downloaded at once: at least.
const MIN: usize = 4;
/// Bodies downloaded at once: at most.
const MAX: usize = 32;
/// Bytes a download may hold beside its batch: those it works on, and those that arrived meanwhile.
const DOWNLOAD_BYTES: u64 = 384 * 1024;

/// Downloads under way. Cheap to clone.
#[derive(Clone)]
pub(super) struct Downloads {
    shared: Arc<DownloadState>,
    processors: usize,
}

#[derive(Default)]
struct DownloadState {
    active: AtomicUsize,
    times: Mutex<Times>,
    ended: Notify,
}

/// Where the time of downloads goes, in seconds.
#[derive(Debug, Default)]
struct Times {
    /// A moving average.
    worked: f64,
    /// The shortest wait among the last downloads, and among as many before them.
    shortest: f64,
    shortest_before: f64,
    /// How many downloads `shortest` covers so far.
    count: u32,
}

impl Times {
    /// How many downloads the shortest wait is taken over.
    const WINDOW: u32 = 16;

    fn note(&mut self, reading: DownloadTimes) {
        let (waited, worked) = (reading.waited.as_secs_f64(), reading.worked.as_secs_f64());
        self.worked = if self.count == 0 { worked } else { self.worked * 0.875 + worked * 0.125 };
        if self.count.is_multiple_of(Self::WINDOW) {
            self.shortest_before = if self.count == 0 { waited } else { self.shortest };
            self.shortest = waited;
        }
        self.shortest = self.shortest.min(waited);
        self.count = self.count.saturating_add(1);
    }

    /// How many downloads may run: no more than keep the processors busy while others wait for bytes. It uses the
    /// shortest wait: with few processors, most of the average is time spent waiting for a processor. The request quota
    /// has a limiter of its own, and lets many go at once after a quiet minute.
    fn allowed(&self, processors: usize) -> usize {
        let shortest = self.shortest.min(self.shortest_before);
        let busy = processors as f64 * (1.0 + shortest / self.worked.max(1e-6)) + 2.0;
        // The first downloads also open the connections: their waits do not predict the waits of later ones.
        let known = MIN + self.count as usize / 4;
        (busy.ceil() as usize).min(known).clamp(MIN, MAX)
    }
}

impl Downloads {
    /// None under way.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { shared: Arc::default(), processors }
    }

    /// Begins one, which ends when the returned value is ended or dropped.
    pub(super) fn begin(&self) -> Download {
        let before = self.shared.active.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before < MAX, "CK-5: too many downloads");
        Download(self.shared.clone())
    }

    /// How many are under way.
    pub(super) fn active(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// Resolves when one has ended.
    pub(super) async fn ended(&self) {
        self.shared.ended.notified().await;
    }

    /// How many may run beside the batches of `budget` in flight.
    pub(super) fn allowed(&self, budget: &Budget) -> usize {
        let by_time = self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).allowed(self.processors);
        by_time.min(room(budget))
    }
}

/// How many downloads fit beside the batches in flight. When the host is slower than the network, more downloads would
/// only hold more memory. Half the budget keeps a host busy until the next batches come; the closer the bytes in flight
/// come to that half, the fewer downloads may run.
fn room(budget: &Budget) -> usize {
    let (used, total, free) = (budget.used(), budget.total(), budget.free());
    let taken_by_others = free < total - used && free < MIN as u64 * DOWNLOAD_BYTES;
    if used > total / 2 || taken_by_others {
        // Batches in flight end by themselves. One download continues in case all of them belong to another task.
        return 1;
    }
    let room = free.min(total / 2 - used) / DOWNLOAD_BYTES;
    usize::try_from(room).unwrap_or(MAX).max(MIN)
}

/// A download under way. It ends once, also when its task is dropped.
pub(super) struct Download(Arc<DownloadState>);

impl Download {
    /// The body was read, or could not be.
    pub(super) fn end(self, reading: DownloadTimes) {
        self.0.times.lock().unwrap_or_else(PoisonError::into_inner).note(reading);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn downloads_are_as_many_as_keep_the_processors_busy() {
        let millis = Duration::from_millis;
        for (what, readings, expected) in [
            ("nothing is known", vec![], 4),
            ("little is known", vec![(400, 3); 8], 6),
            ("Microsoft is far", vec![(400, 3); 120], 32),
            ("the feed is next door", vec![(1, 2); 40], 5),
            (
                "processors are short: most waits are long, some are not",
                [vec![(40, 2); 15], vec![(1, 2)]].concat().repeat(3),
                5,
            ),
            ("the host is slow", vec![(20, 900); 40], 5),
        ] {
            let mut times = Times::default();
            for (waited, worked) in readings {
                times.note(DownloadTimes { waited: millis(waited), worked: millis(worked) });
            }
            assert_eq!(times.allowed(2), expected, "{what}");
        }
    }
}
