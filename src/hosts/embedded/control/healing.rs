//! A range that a source of the process fills through Microsoft Graph, for whoever asks at the control socket.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Asker, PATIENCE, Refusal, Say, TELL_EVERY, refusal, source_of};
use crate::source::heal::desk::{Ask, Asked, HealError, Progress};

impl Asker<'_> {
    /// Has a source fill a range, and reports how far it has come meanwhile.
    pub(super) async fn heal(
        &mut self,
        reader: BufReader<tokio::io::Take<OwnedReadHalf>>,
        source: &str,
        ask: Ask,
        stop: &CancellationToken,
    ) -> Say {
        let backend = self.backend;
        let entry = match source_of(backend, source) {
            Ok(entry) => entry,
            Err(refusal) => return Say::Refused(refusal),
        };
        let refused = |error: &HealError| Say::Refused(Refusal::of(error, (backend.heal_exit_of)(error)));
        let (begun, mut has_begun) = oneshot::channel();
        let (answer, mut answered) = oneshot::channel();
        if let Err(error) = entry.heal.hand_in(Asked { ask, begun, stop: stop.clone(), answer }) {
            return refused(&error);
        }
        // Whoever asked may hang up or die: then it stops, and goes on when asked again.
        let mut rest = reader.into_inner();
        let _stop_with_this = stop.clone().drop_guard();
        let mut gone = false;
        let mut one = [0];
        let mut progress: Option<Arc<Progress>> = None;
        let mut told = false;
        let waiting_since = backend.clock.monotonic();
        loop {
            tokio::select! {
                ended = &mut answered => return match ended {
                    Ok(Ok(ended)) => Say::Healed(ended),
                    Ok(Err(error)) => refused(&error),
                    Err(_) => refused(&HealError::SourceEnded),
                },
                begun = &mut has_begun, if !told => {
                    told = true;
                    progress = begun.ok();
                }
                read = rest.read(&mut one), if !gone => if !read.is_ok_and(|n| n > 0) {
                    gone = true;
                    stop.cancel();
                },
                () = backend.clock.sleep(TELL_EVERY) => {
                    let late = backend.clock.monotonic() > waiting_since + 3 * PATIENCE;
                    if let Some(progress) = &progress {
                        if self.say(Say::Healing(progress.snapshot())).await.is_err() {
                            gone = true;
                            stop.cancel();
                        }
                    } else if late {
                        return Say::Refused(refusal(
                            "backfill-not-begun",
                            format!("the source `{source}` does not begin to fill the range: it has not signed in, or its state cannot be read"),
                            "`m365-audit status` shows what is wrong with it; `m365-audit check` tests the connection",
                            75,
                        ));
                    }
                }
            }
        }
    }
}
