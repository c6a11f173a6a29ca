//! The `stdout` sink: newline-delimited JSON for the reader of this process's output.
//!
//! A batch is delivered when its bytes are in the pipe and flushed: records that the reader loses after that are lost,
//! so this sink is for tests and for agents without a better input. A slow reader is back-pressure; a closed pipe ends
//! the host in an orderly way, with the batch refused.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::host::Batch;
use crate::hosts::embedded::sink::{BlockingSink, OwnThread, Written};

/// The pause before a full pipe is tried again that another process made non-blocking.
const FULL_PIPE_RETRY: Duration = Duration::from_millis(10);

/// The sink over any writer. Its writes block: [`StdoutSink::into_sink`] gives it a thread.
pub struct StdoutSink<W> {
    out: W,
    /// The batch in which a write stopped, and how much of it was written: it is resumed there, never restarted.
    partial: Option<PartialWrite>,
}

struct PartialWrite {
    batch: u64,
    bytes: usize,
}

impl StdoutSink<File> {
    /// This process's standard output, by a descriptor of its own. Not through [`io::stdout`], whose buffer hides how
    /// much of a failed write was written.
    pub fn open() -> io::Result<Self> {
        Ok(Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

/// Resolves when standard output is a pipe without a reader, even while there is nothing to write: when an agent was
/// killed and starts this program again, the old process must not still hold the state. Never for a file.
pub async fn reader_gone() {
    // Unchecked, because the check makes the pipe non-blocking, and the sink's writes must block.
    let watched = io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
    match watched {
        Ok(watched) if watched.ready(Interest::ERROR).await.is_ok_and(|seen| seen.is_error()) => {}
        _ => std::future::pending().await,
    }
}

impl<W: Write + Send + Sync + 'static> StdoutSink<W> {
    /// A sink into `out`.
    pub fn new(out: W) -> Self {
        Self { out, partial: None }
    }

    /// The sink on a thread of its own, for the embedded host.
    pub fn into_sink(self) -> OwnThread<Self> {
        OwnThread::new(self)
    }

    fn write_batch(&mut self, batch: &Batch) -> io::Result<()> {
        let bytes = batch.ndjson();
        let mut done = match self.partial.take() {
            Some(partial) if partial.batch == batch.id => partial.bytes,
            _ => 0,
        };
        let result = loop {
            let rest = bytes.get(done..).unwrap_or_default();
            if rest.is_empty() {
                break self.out.flush();
            }
            match self.out.write(rest) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        if result.is_err() {
            self.partial = Some(PartialWrite { batch: batch.id, bytes: done });
        }
        result
    }
}

impl<W: Write + Send + Sync + 'static> BlockingSink for StdoutSink<W> {
    fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let mut written = Vec::with_capacity(batches.len());
        for batch in batches {
            match self.write_batch(batch) {
                Ok(()) => written.push(Written::Delivered),
                Err(e) => {
                    written.resize(batches.len(), outcome(&e));
                    break;
                }
            }
        }
        written
    }
}

fn outcome(error: &io::Error) -> Written {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Written::Closed("nobody reads standard output".into()),
        ErrorKind::WouldBlock => {
            Written::Refused { why: "standard output is full".into(), retry_after: Some(FULL_PIPE_RETRY) }
        }
        _ => Written::refused(format_args!("cannot write standard output: {error}")),
    }
}
