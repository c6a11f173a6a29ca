//! Work that a source of the process does for a client of the control socket: a back-fill, or a range filled through
//! Microsoft Graph. The client gets progress reports meanwhile.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Asker, ControlRefusal, PATIENCE, PROGRESS_EVERY, Say, refusal};
use crate::model::Actionable;
use crate::source::requests::{QueuedRequest, RequestSender, WorkRequest};

/// The differences between the kinds of work.
pub(super) struct WorkParts<'a, Q: WorkRequest> {
    /// The source that does it.
    pub source: &'a str,
    /// Where it is asked for.
    pub counter: &'a RequestSender<Q>,
    /// What is asked for.
    pub ask: Q,
    /// The name of the work, used after "does not begin".
    pub what: &'static str,
    pub progress: fn(&Q::Progress) -> Say,
    pub ended: fn(Q::Ended) -> Say,
    pub exit_of: fn(&Q::Error) -> u8,
    /// Receives the progress numbers when the work begins.
    pub begun: &'a (dyn Fn(Arc<Q::Progress>) + Sync),
}

impl Asker<'_> {
    /// Has a source do the work, and reports its progress meanwhile.
    pub(super) async fn have_done<Q: WorkRequest>(
        &mut self,
        reader: BufReader<tokio::io::Take<OwnedReadHalf>>,
        work: WorkParts<'_, Q>,
        stop: &CancellationToken,
    ) -> Say
    where
        Q::Error: Actionable,
    {
        let backend = self.backend;
        let refused = |error: &Q::Error| Say::Refused(ControlRefusal::of(error, (work.exit_of)(error)));
        let (begun, mut has_begun) = oneshot::channel();
        let (answer, mut answered) = oneshot::channel();
        if let Err(error) = work.counter.hand_in(QueuedRequest { ask: work.ask, begun, stop: stop.clone(), answer }) {
            return refused(&error);
        }
        // The client may disconnect or die: then the work stops, and resumes on the next request.
        let mut rest = reader.into_inner();
        let _stop_with_this = stop.clone().drop_guard();
        let mut gone = false;
        let mut one = [0];
        let mut progress: Option<Arc<Q::Progress>> = None;
        let mut has_reported = false;
        let waiting_since = backend.clock.monotonic();
        loop {
            tokio::select! {
                ended = &mut answered => return match ended {
                    Ok(Ok(ended)) => (work.ended)(ended),
                    Ok(Err(error)) => refused(&error),
                    Err(_) => refused(&Q::source_ended()),
                },
                begun = &mut has_begun, if !has_reported => {
                    has_reported = true;
                    progress = begun.ok();
                    if let Some(progress) = &progress {
                        (work.begun)(progress.clone());
                    }
                }
                read = rest.read(&mut one), if !gone => if !read.is_ok_and(|n| n > 0) {
                    gone = true;
                    stop.cancel();
                },
                () = backend.clock.sleep(PROGRESS_EVERY) => {
                    let late = backend.clock.monotonic() > waiting_since + 3 * PATIENCE;
                    if let Some(progress) = &progress {
                        if self.say((work.progress)(progress)).await.is_err() {
                            gone = true;
                            stop.cancel();
                        }
                    } else if late {
                        let (source, what) = (work.source, work.what);
                        return Say::Refused(refusal(
                            "backfill-not-begun",
                            format!("the source `{source}` does not begin {what}: it has not signed in, or its state cannot be read"),
                            "`m365-audit status` shows what is wrong with it; `m365-audit check` tests the connection",
                            75,
                        ));
                    }
                }
            }
        }
    }
}
