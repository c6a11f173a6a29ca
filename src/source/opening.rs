//! Opens the state that an earlier run left: the ledger and the held reads.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::SourceError;
use super::health::{Component, HealthReporter, Level};
use super::hold::Hold;
use super::parts::TenantParts;
use super::slow_store::SlowStore;
use crate::backoff::Backoff;
use crate::checkpoint::ledger::{Ledger, LedgerSettings, OpenedLedger, ServerTimeSource};
use crate::host::StateError;

/// Between two attempts to read the state.
const RETRY: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));

/// Opens the state; while the store cannot be reached, tries again (`None`: stopped).
pub(super) async fn open_ledger(
    parts: &TenantParts,
    reporter: &HealthReporter,
    stop: &CancellationToken,
) -> Result<Option<Box<(OpenedLedger, Hold)>>, SourceError> {
    let settings = LedgerSettings {
        tenant: parts.tenant.clone(),
        content_types: parts.content_types.clone(),
        event_keys_max: parts.event_keys_max,
        receipts: parts.receipts.clone(),
        fills_gaps: parts.heal.gaps,
        server_time: {
            let server = parts.server.clone();
            ServerTimeSource::new(move || server.trusted())
        },
    };
    let mut failures = 0;
    loop {
        let trouble_board = reporter.clone();
        let on_trouble = Box::new(move |error: Option<&StateError>| {
            match error {
            Some(error @ StateError::Unavailable(_)) => trouble_board.report(
                Component::State,
                Level::Degraded,
                format!("state-not-written: {error}"),
                "free disk space or repair the store; no checkpoint advances until writes succeed, nothing is lost",
            ),
            Some(error) => trouble_board.report(
                Component::State,
                Level::Failed,
                format!("state-conflict: {error}"),
                "run one collector per tenant and state store, then restart; a member of a cluster opens the tenant again by itself, if it is still its own",
            ),
            None => trouble_board.clear(Component::State),
        }
        });
        let store = SlowStore::watching(parts.host.state(), parts.clock.clone(), reporter);
        let opened = match Ledger::open(store.clone(), parts.clock.clone(), &settings, on_trouble).await {
            Ok(opened) => Hold::load(&opened.there, store, parts.hold.clone()).await.map(|hold| (opened, hold)),
            Err(error) => Err(error),
        };
        match opened {
            Ok(opened) => {
                reporter.clear(Component::State);
                return Ok(Some(Box::new(opened)));
            }
            Err(StateError::Unavailable(why)) if !parts.once => {
                failures += 1;
                reporter.report(
                    Component::State,
                    Level::Failed,
                    format!("state-not-read: {why}"),
                    "it will be retried",
                );
                tokio::select! {
                    () = parts.clock.sleep(RETRY.after(failures)) => {}
                    () = stop.cancelled() => return Ok(None),
                }
            }
            Err(error) => {
                reporter.report(Component::State, Level::Failed, error.to_string(), "nothing was changed");
                return Err(SourceError::State { tenant: parts.tenant.clone(), source: error });
            }
        }
    }
}
