//! What a sink of the embedded host is, and the worker that feeds one.
//!
//! A [`Sink`] writes groups of batches and says of each what became of it. Everything else is the worker's: the
//! bounded queue, writing what queued up as one group, trying again for ever with growing pauses, counting, stopping.
//! A worker never drops a batch: it is confirmed, rejected by the sink, or refused to the source, which keeps it.
//! Knows nothing of routes (the host's) and nothing of any destination (the sink's).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::host::Batch;
use crate::metrics::{SINK_RECORDS_TOTAL, SINK_RETRIES_TOTAL};

/// Batches waiting for or in one sink; beyond it `deliver` waits.
pub const QUEUE_BATCHES_MAX: usize = 256;
/// Bytes waiting for or in one sink; beyond it `deliver` waits. A single larger batch passes alone.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Batches written as one group.
pub const GROUP_BATCHES_MAX: usize = 64;
/// Bytes written as one group; a single larger batch is a group of its own.
pub const GROUP_BYTES_MAX: usize = 8 << 20;
/// First pause after a failed write.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(200);
/// Longest pause between failed writes, before jitter.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// What a sink says became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The destination has the records for good, as far as this sink can know.
    Delivered,
    /// Passing trouble: the worker tries again, in order, for ever.
    Refused {
        /// What went wrong.
        why: String,
        /// When to try again, if the destination said so; else the worker's own back-off.
        retry_after: Option<Duration>,
    },
    /// The destination will never take it as it is.
    Rejected(String),
    /// The destination is gone and cannot come back in this process (a closed pipe): the host should stop.
    Closed(String),
}

impl Written {
    /// Passing trouble, to be tried again after the worker's own back-off.
    pub fn refused(why: impl ToString) -> Self {
        Self::Refused { why: why.to_string(), retry_after: None }
    }
}

/// How much is handed to a sink at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBounds {
    /// Bytes, at most [`GROUP_BYTES_MAX`]; a single larger batch is a group of its own.
    pub bytes: usize,
    /// Records; a single larger batch is a group of its own.
    pub records: usize,
    /// How long the first batch of a group waits for the group to fill.
    pub age: Duration,
}

impl Default for GroupBounds {
    /// What has queued up by now, up to the worker's own bounds.
    fn default() -> Self {
        Self { bytes: GROUP_BYTES_MAX, records: usize::MAX, age: Duration::ZERO }
    }
}

/// A destination of records.
#[async_trait]
pub trait Sink: Send + 'static {
    /// How much [`Sink::write`] wants at once; the same for as long as the sink lives.
    fn bounds(&self) -> GroupBounds {
        GroupBounds::default()
    }

    /// Writes a group and says of each batch, in the order given, what became of it. The same batches come again
    /// after [`Written::Refused`], first and in the same order. May be cancelled when the host's grace has run out;
    /// what was being written then counts as refused.
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written>;

    /// Called once after the last write of an orderly stop.
    async fn close(&mut self) {}
}

/// A sink whose writes block the thread they are called on; [`OwnThread`] makes it a [`Sink`].
pub trait BlockingSink: Send + 'static {
    /// As [`Sink::write`].
    fn write(&mut self, batches: &[Batch]) -> Vec<Written>;
}

/// Runs a [`BlockingSink`] on a thread of its own.
///
/// Not on the runtime's blocking pool: a write into a pipe nobody reads never returns, and a runtime waits for its
/// pool when it is dropped. A thread of its own ends with its write or with the process.
pub struct OwnThread<S> {
    state: State<S>,
}

enum State<S> {
    Idle(Option<S>),
    Running { jobs: SyncSender<Job>, ended: oneshot::Receiver<()>, thread: JoinHandle<()> },
}

struct Job {
    batches: Vec<Batch>,
    answer: oneshot::Sender<Vec<Written>>,
}

impl<S: BlockingSink> OwnThread<S> {
    /// The thread is started by the first write.
    pub fn new(sink: S) -> Self {
        Self { state: State::Idle(Some(sink)) }
    }

    fn start(sink: S) -> std::io::Result<State<S>> {
        // One job at a time; a second only when the caller of the first gave up on it.
        let (jobs, todo) = sync_channel::<Job>(1);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("m365-sink".into()).spawn(move || {
            let mut sink = sink;
            for job in todo {
                let _ = job.answer.send(sink.write(&job.batches));
            }
            drop(sink);
            drop(end);
        })?;
        Ok(State::Running { jobs, ended, thread })
    }
}

#[async_trait]
impl<S: BlockingSink + Sync> Sink for OwnThread<S> {
    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        if let State::Idle(sink) = &mut self.state
            && let Some(sink) = sink.take()
        {
            match Self::start(sink) {
                Ok(running) => self.state = running,
                Err(e) => return vec![Written::Closed(format!("cannot start a thread: {e}")); batches.len()],
            }
        }
        let State::Running { jobs, .. } = &self.state else {
            return vec![Written::Closed("the sink's thread could not be started".into()); batches.len()];
        };
        let (answer, answered) = oneshot::channel();
        match jobs.try_send(Job { batches: batches.to_vec(), answer }) {
            Ok(()) => match answered.await {
                Ok(written) => written,
                Err(_) => vec![Written::Closed("the sink's thread has ended".into()); batches.len()],
            },
            Err(_) => vec![Written::refused("the write before this one has not ended"); batches.len()],
        }
    }

    async fn close(&mut self) {
        if let State::Running { jobs, ended, thread } = std::mem::replace(&mut self.state, State::Idle(None)) {
            drop(jobs);
            let _ = ended.await;
            let _ = thread.join();
        }
    }
}

// ---------------------------------------------------------------------------------------------- the worker

/// How a worker tells its host what happens to it.
pub(super) trait Observer: Send + Sync + 'static {
    /// Writes fail for this reason since now, or (`None`) succeed again. Called on change.
    fn trouble(&self, sink: &str, why: Option<&str>);
    /// The destination is gone for good; the worker has ended.
    fn closed(&self, sink: &str, why: &str);
}

/// What a worker answers for one batch, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    Delivered,
    Refused(String),
    Rejected(String),
}

/// Called with what became of a batch; called with a refusal when the worker is lost.
pub(super) struct Confirm(Option<Box<dyn FnOnce(Settled) + Send>>);

impl Confirm {
    pub(super) fn new(settle: impl FnOnce(Settled) + Send + 'static) -> Self {
        Self(Some(Box::new(settle)))
    }

    fn settle(mut self, settled: Settled) {
        if let Some(settle) = self.0.take() {
            settle(settled);
        }
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle(Settled::Refused("the sink has stopped".into()));
        }
    }
}

struct Queued {
    batch: Batch,
    confirm: Confirm,
    /// Room in the queue, given back when the batch is settled.
    _room: OwnedSemaphorePermit,
}

/// A running sink: its queue and its task.
pub(super) struct Worker {
    /// Unique in this process, so that a receipt of a sink that was replaced never counts for its successor.
    pub(super) id: u32,
    pub(super) name: Arc<str>,
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    drain: CancellationToken,
    abort: CancellationToken,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Worker {
    /// Starts the worker on the current runtime.
    pub(super) fn start(name: &str, sink: Box<dyn Sink>, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (queue, queued) = mpsc::channel(QUEUE_BATCHES_MAX);
        let name: Arc<str> = name.into();
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        let feeder = Feeder {
            name: name.clone(),
            sink,
            queued,
            pending: VecDeque::new(),
            room: room.clone(),
            drain: drain.clone(),
            abort: abort.clone(),
            clock,
            observer,
        };
        let task = Mutex::new(Some(tokio::spawn(feeder.run())));
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), name, queue, room, drain, abort, task }
    }

    /// Queues a batch; waits while the queue is full. A worker that stops refuses through `confirm`.
    pub(super) async fn enqueue(&self, batch: Batch, confirm: Confirm) {
        let bytes = batch.ndjson().len().min(QUEUE_BYTES_MAX);
        // `QUEUE_BYTES_MAX` fits: a semaphore counts permits in 32 bits.
        let Ok(room) = self.room.clone().acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await else {
            return;
        };
        // An error hands the batch back, and dropping its confirmation refuses it.
        let _ = self.queue.send(Queued { batch, confirm, _room: room }).await;
    }

    /// Takes no more batches and writes those it has; what is not written after `grace` is refused. Returns when the
    /// worker has ended.
    pub(super) async fn stop(&self, grace: Duration, clock: &dyn Clock) {
        self.drain.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut task) = task else { return };
        tokio::select! {
            _ = &mut task => return,
            () = clock.sleep(grace) => self.abort.cancel(),
        }
        let _ = task.await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

/// The worker's task.
struct Feeder {
    name: Arc<str>,
    sink: Box<dyn Sink>,
    queued: mpsc::Receiver<Queued>,
    /// Taken from the queue and not settled, oldest first.
    pending: VecDeque<Queued>,
    room: Arc<Semaphore>,
    drain: CancellationToken,
    abort: CancellationToken,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

/// How a round of writing ended.
enum Round {
    /// Everything was settled.
    Settled,
    /// Some batches have to be written again.
    Again { why: String, retry_after: Option<Duration>, progress: bool },
    /// The destination is gone.
    Closed(String),
}

impl Feeder {
    async fn run(mut self) {
        let abort = self.abort.clone();
        let (observer, name) = (self.observer.clone(), self.name.clone());
        let closed = tokio::select! {
            biased;
            () = abort.cancelled() => None,
            closed = self.feed() => closed,
        };
        if let Some(why) = closed {
            tracing::error!(sink = %name, why, "sink is closed");
            observer.closed(&name, &why);
        }
        // Dropping what is left refuses it.
    }

    /// Feeds the sink until told to stop, or until it is closed (`Some(why)`).
    async fn feed(&mut self) -> Option<String> {
        let mut backoff = retry_delays();
        let mut failures = 0_u64;
        loop {
            if self.pending.is_empty() {
                match self.next().await {
                    Some(first) => self.pending.push_back(first),
                    None => {
                        self.sink.close().await;
                        return None;
                    }
                }
            }
            self.fill(failures > 0).await;
            match self.round().await {
                Round::Settled => {
                    if failures > 0 {
                        tracing::info!(sink = %self.name, failures, "sink takes records again");
                        self.observer.trouble(&self.name, None);
                        failures = 0;
                    }
                    backoff = retry_delays();
                }
                Round::Again { why, retry_after, progress } => {
                    if failures == 0 {
                        tracing::warn!(sink = %self.name, why, "sink does not take records, trying again");
                    }
                    failures += 1;
                    self.observer.trouble(&self.name, Some(&why));
                    if progress {
                        backoff = retry_delays();
                    }
                    let delay = retry_after.unwrap_or_else(|| backoff.next().unwrap_or(RETRY_DELAY_MAX));
                    self.clock.sleep(delay).await;
                }
                Round::Closed(why) => {
                    self.close_queue();
                    return Some(why);
                }
            }
        }
    }

    /// The next batch, or `None` when the worker is to stop and the queue is empty.
    async fn next(&mut self) -> Option<Queued> {
        if !self.queued.is_closed() {
            tokio::select! {
                biased;
                () = self.drain.cancelled() => self.close_queue(),
                next = self.queued.recv() => return next,
            }
        }
        self.queued.recv().await
    }

    /// No more batches: whoever waits for room is refused.
    fn close_queue(&mut self) {
        self.queued.close();
        self.room.close();
    }

    /// Takes what else has queued up into the group; waits for more while the group's first batch is young. A group
    /// that is written again does not wait.
    async fn fill(&mut self, again: bool) {
        let bounds = self.sink.bounds();
        let mut bytes: usize = self.pending.iter().map(|q| q.batch.ndjson().len()).sum();
        let mut records: usize = self.pending.iter().map(|q| q.batch.len()).sum();
        let mut aged = (!again && !bounds.age.is_zero()).then(|| self.clock.sleep(bounds.age));
        while self.pending.len() < GROUP_BATCHES_MAX
            && bytes < bounds.bytes.min(GROUP_BYTES_MAX)
            && records < bounds.records
        {
            let next = match (self.queued.try_recv(), &mut aged) {
                (Ok(next), _) => next,
                (Err(_), Some(aged)) if !self.queued.is_closed() => tokio::select! {
                    biased;
                    next = self.queued.recv() => match next {
                        Some(next) => next,
                        None => break,
                    },
                    () = self.drain.cancelled() => break,
                    () = aged => break,
                },
                (Err(_), _) => break,
            };
            bytes += next.batch.ndjson().len();
            records += next.batch.len();
            self.pending.push_back(next);
        }
    }

    /// Writes one group.
    async fn round(&mut self) -> Round {
        let batches: Vec<Batch> = self.pending.iter().map(|q| q.batch.clone()).collect();
        let mut written = self.sink.write(&batches).await.into_iter();
        let mut round = Round::Settled;
        let mut progress = false;
        for queued in std::mem::take(&mut self.pending) {
            // A sink that answers for fewer batches than it was given has not confirmed the rest.
            match written.next().unwrap_or_else(|| Written::refused("the sink gave no answer")) {
                Written::Delivered => {
                    metrics::counter!(SINK_RECORDS_TOTAL, "sink" => self.name.to_string())
                        .increment(queued.batch.len() as u64);
                    progress = true;
                    queued.confirm.settle(Settled::Delivered);
                }
                Written::Rejected(why) => {
                    progress = true;
                    queued.confirm.settle(Settled::Rejected(why));
                }
                Written::Refused { why, retry_after } => {
                    if matches!(round, Round::Settled) {
                        round = Round::Again { why, retry_after, progress: false };
                    }
                    self.pending.push_back(queued);
                }
                Written::Closed(why) => {
                    queued.confirm.settle(Settled::Refused(why.clone()));
                    round = Round::Closed(why);
                }
            }
        }
        if let Round::Again { progress: made, .. } = &mut round {
            metrics::counter!(SINK_RETRIES_TOTAL, "sink" => self.name.to_string()).increment(1);
            *made = progress;
        }
        round
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // Also when the sink panicked: nobody may wait for room in a queue without a reader.
        self.close_queue();
        if std::thread::panicking() {
            self.observer.closed(&self.name, "the sink's task has failed");
        }
    }
}

fn retry_delays() -> backon::ExponentialBackoff {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(RETRY_DELAY_MIN)
        .with_max_delay(RETRY_DELAY_MAX)
        .without_max_times()
        .build()
}
