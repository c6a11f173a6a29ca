//! Sinks that block the thread they write on. `delivery` defines what a sink is, and has the worker that feeds it.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use crate::delivery::SLOW_AFTER;
pub use crate::delivery::{GroupBounds, LOOK_EVERY, QUEUE_BATCHES_MAX, QUEUE_BYTES_MAX, Sink, Written};
use crate::host::Batch;

/// A sink whose writes block the thread they are called on; [`OwnThread`] makes it a [`Sink`].
pub trait BlockingSink: Send + 'static {
    /// As [`Sink::write`].
    fn write(&mut self, batches: &[Batch]) -> Vec<Written>;

    /// As [`Sink::notices`].
    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// As [`Sink::look`].
    fn look(&mut self) {}
}

/// Runs a [`BlockingSink`] on a thread of its own.
///
/// It does not use the runtime's blocking pool: a write into a pipe without a reader never returns, and a runtime waits
/// for its pool when it is dropped. A thread of its own ends with its write or with the process.
pub struct OwnThread<S> {
    state: ThreadState<S>,
    notices: Option<watch::Receiver<Option<String>>>,
}

enum ThreadState<S> {
    Idle(Option<S>),
    Running { jobs: SyncSender<SinkJob>, ended: oneshot::Receiver<()>, thread: JoinHandle<()> },
}

/// Batches to be written; none: only check the destination.
struct SinkJob {
    batches: Vec<Batch>,
    answer: oneshot::Sender<Vec<Written>>,
}

impl<S: BlockingSink> OwnThread<S> {
    /// The thread is started by the first write.
    pub fn new(sink: S) -> Self {
        Self { notices: sink.notices(), state: ThreadState::Idle(Some(sink)) }
    }

    fn start(sink: S) -> std::io::Result<ThreadState<S>> {
        // One job at a time; a second only when the caller of the first gave up on it.
        let (jobs, todo) = sync_channel::<SinkJob>(1);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("m365-sink".into()).spawn(move || {
            let mut sink = sink;
            for job in todo {
                let written = match job.batches.is_empty() {
                    true => {
                        sink.look();
                        Vec::new()
                    }
                    false => sink.write(&job.batches),
                };
                let _ = job.answer.send(written);
            }
            drop(sink);
            drop(end);
        })?;
        Ok(ThreadState::Running { jobs, ended, thread })
    }
}

#[async_trait]
impl<S: BlockingSink + Sync> Sink for OwnThread<S> {
    fn is_sequential(&self) -> bool {
        true
    }

    fn answer_expected(&self) -> Duration {
        SLOW_AFTER
    }

    fn notices(&self) -> Option<watch::Receiver<Option<String>>> {
        self.notices.clone()
    }

    async fn look(&mut self) {
        self.write(&[]).await;
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        if let ThreadState::Idle(sink) = &mut self.state
            && let Some(sink) = sink.take()
        {
            match Self::start(sink) {
                Ok(running) => self.state = running,
                Err(e) => return vec![Written::Closed(format!("cannot start a thread: {e}")); batches.len()],
            }
        }
        let ThreadState::Running { jobs, .. } = &self.state else {
            return vec![Written::Closed("the sink's thread could not be started".into()); batches.len()];
        };
        let (answer, answered) = oneshot::channel();
        match jobs.try_send(SinkJob { batches: batches.to_vec(), answer }) {
            Ok(()) => match answered.await {
                Ok(written) => written,
                Err(_) => vec![Written::Closed("the sink's thread has ended".into()); batches.len()],
            },
            Err(_) => vec![Written::refused("the write before this one has not ended"); batches.len()],
        }
    }

    async fn close(&mut self) {
        if let ThreadState::Running { jobs, ended, thread } =
            std::mem::replace(&mut self.state, ThreadState::Idle(None))
        {
            drop(jobs);
            let _ = ended.await;
            let _ = thread.join();
        }
    }
}
