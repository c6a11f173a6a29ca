//! Subscriptions: which are on, and starting those that are off, never more often than Microsoft allows.
//!
//! The 15-minute rule is kept per content type and remembered across restarts: a start that Microsoft answered is
//! stored with its time. A start without an answer is not, because the next listing of subscriptions shows its outcome.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::Mutex;

use super::server_time::ServerTime;
use crate::api::{Action, ApiClient, ApiError, Started};
use crate::checkpoint::format::TenantState;
use crate::checkpoint::ledger::{Change, LedgerHandle};
use crate::clock::Clock;
use crate::model::ContentType;

/// Microsoft asks for this long between two start requests (reference, added 2025-08).
pub const START_INTERVAL: SignedDuration = SignedDuration::from_mins(15);

/// The outcome of a start.
#[derive(Debug)]
pub enum Restart {
    /// It is on now.
    Started {
        /// Whether it had been off, as opposed to AF20024, "already enabled".
        was_off: bool,
    },
    /// The last start was too recent.
    NotYet {
        /// How long to wait.
        wait: Duration,
    },
    /// Microsoft refused, or could not be reached.
    Failed(ApiError),
}

/// Starts subscriptions of one tenant. Cheap to clone.
#[derive(Clone)]
pub struct Subscriptions {
    api: ApiClient,
    server: ServerTime,
    clock: Arc<dyn Clock>,
    ledger: LedgerHandle,
    state: Arc<Mutex<TenantState>>,
}

impl Subscriptions {
    /// Continues from the state that an earlier run stored.
    pub fn new(
        api: ApiClient,
        server: ServerTime,
        clock: Arc<dyn Clock>,
        ledger: LedgerHandle,
        state: TenantState,
    ) -> Self {
        Self { api, server, clock, ledger, state: Arc::new(Mutex::new(state)) }
    }

    /// The state to be stored, with the current estimate of Microsoft's time.
    pub async fn tenant_state(&self) -> TenantState {
        let mut state = self.state.lock().await;
        if let Some(now) = self.server.trusted() {
            state.server_time = Some(now);
            state.wall_time = Some(self.clock.now());
        }
        state.clone()
    }

    /// Starts the subscription to `content_type`, unless the last start was under 15 minutes ago.
    pub async fn start(&self, content_type: ContentType) -> Restart {
        let now = self.server.for_requests();
        if let Some(last) = self.state.lock().await.starts.get(content_type.as_str()) {
            let since = now.duration_since(*last);
            // Microsoft's `Date` has whole seconds: a start in this second may appear to be in the future after a
            // restart.
            if since.abs() < START_INTERVAL {
                return Restart::NotYet { wait: (START_INTERVAL - since.max(SignedDuration::ZERO)).unsigned_abs() };
            }
        }
        let answer = self.api.start_subscription(content_type).await;
        let answered = match &answer {
            Ok(_) => true,
            Err(error) => match error.action() {
                Action::Throttled { .. } => false,
                // A refusal by the API itself counts against the 15 minutes, whatever it means; a gateway's does not.
                Action::Retry { .. } => {
                    error.status().is_some_and(|status| (400..500).contains(&status) && status != 408)
                }
                _ => true,
            },
        };
        if answered {
            let state = {
                let mut state = self.state.lock().await;
                state.starts.insert(content_type.as_str().to_owned(), now);
                state.clone()
            };
            // If this is not stored, a restarted process may send one more start within 15 minutes; no event depends on
            // it.
            let _ = self.ledger.commit(Change { tenant: Some(state), ..Change::default() }).await;
        }
        match answer {
            Ok(started) => Restart::Started { was_off: started == Started::Now },
            Err(error) => Restart::Failed(error),
        }
    }
}
