//! Collects the current faults of a source into one [`Health`] for the host.
//!
//! Each fault has a place (a stream, sign-in, the state store). The code that found it replaces or clears it. The host
//! gets one report for each change, not one for each request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::host::{Health, Host};
use crate::metrics;
use crate::model::{ContentType, TenantId, Timestamp};

/// The part of a source that a fault concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Signing in, or the tenant as a whole.
    Tenant,
    /// The state store.
    State,
    /// The state store does not answer.
    Store,
    /// The host does not take records.
    Delivery,
    /// Microsoft's clock.
    Clock,
    /// The source waits for its turn to read.
    Turn,
    /// One stream's listing or subscription.
    Stream(ContentType),
    /// One stream's blobs.
    Blobs(ContentType),
    /// Gaps that are to be filled through Microsoft Graph and are not.
    Gaps,
}

/// The severity of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Working, with a fault to fix.
    Degraded,
    /// Not working until an operator acts.
    Failed,
}

struct ReportedTrouble {
    level: Level,
    why: String,
    since: Timestamp,
}

/// The troubles of one source. Cheap to clone.
#[derive(Clone)]
pub struct HealthReporter {
    inner: Arc<ReporterState>,
}

struct ReporterState {
    source: Arc<str>,
    tenant: TenantId,
    host: Arc<dyn Host>,
    clock: Arc<dyn Clock>,
    troubles: Mutex<(BTreeMap<Component, ReportedTrouble>, Option<Health>)>,
    /// How many requests the state store has left unanswered for long.
    slow: AtomicI64,
}

impl HealthReporter {
    /// A board without faults; nothing is reported until the first change.
    pub fn new(source: Arc<str>, tenant: TenantId, host: Arc<dyn Host>, clock: Arc<dyn Clock>) -> Self {
        let inner = ReporterState {
            source,
            tenant,
            host,
            clock,
            troubles: Mutex::new((BTreeMap::new(), None)),
            slow: AtomicI64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The source's name.
    pub(super) fn source(&self) -> &str {
        &self.inner.source
    }

    /// Records a fault; logs it when it is new or has changed. `hint` is the remedy.
    pub fn report(&self, place: Component, level: Level, why: impl Into<String>, hint: &str) {
        let why = why.into();
        let text = if hint.is_empty() { why } else { format!("{why} (hint: {hint})") };
        {
            let mut guard = self.inner.troubles.lock();
            let now = self.inner.clock.now();
            let since = match guard.0.get(&place) {
                Some(known) if known.why == text && known.level == level => return,
                Some(known) => known.since,
                None => now,
            };
            guard.0.insert(place, ReportedTrouble { level, why: text.clone(), since });
        }
        let tenant = &self.inner.tenant;
        match level {
            Level::Degraded => tracing::warn!(source = %self.inner.source, %tenant, "{text}"),
            Level::Failed => tracing::error!(source = %self.inner.source, %tenant, "{text}"),
        }
        self.publish();
    }

    /// Clears the fault at `place`.
    pub fn clear(&self, place: Component) {
        let removed = self.inner.troubles.lock().0.remove(&place);
        if let Some(trouble) = removed {
            tracing::info!(source = %self.inner.source, tenant = %self.inner.tenant, "recovered: {}", trouble.why);
            self.publish();
        }
    }

    /// Adds `change` to the number of requests that the state store has left unanswered for long; returns the new
    /// number.
    pub(super) fn note_slow(&self, change: i64) -> i64 {
        self.inner.slow.fetch_add(change, Ordering::Relaxed) + change
    }

    /// Sets the metric of how long the state store has not answered.
    pub(super) fn set_store_waiting(&self, age: Duration) {
        let tenant = self.inner.tenant.to_string();
        ::metrics::gauge!(metrics::STATE_WAITING_SECONDS, "tenant" => tenant).set(age.as_secs_f64());
    }

    /// The state as a whole.
    pub fn health(&self) -> Health {
        let guard = self.inner.troubles.lock();
        let troubles = &guard.0;
        let Some(worst) = troubles.values().map(|t| t.level).max() else { return Health::Healthy };
        let why = troubles.values().filter(|t| t.level == worst).map(|t| t.why.as_str()).collect::<Vec<_>>().join("; ");
        match worst {
            Level::Failed => Health::Failed { why },
            Level::Degraded => {
                let since = troubles.values().map(|t| t.since).min().unwrap_or_default();
                Health::Degraded { why, since }
            }
        }
    }

    /// Reports the health to the host and sets the metric, if it has changed.
    pub fn publish(&self) {
        let health = self.health();
        set_gauge(&self.inner.tenant, &health);
        let was_reported = {
            let mut guard = self.inner.troubles.lock();
            let known = guard.1.as_ref() == Some(&health);
            guard.1 = Some(health.clone());
            known
        };
        if !was_reported {
            self.inner.host.health(&self.inner.source, health);
        }
    }
}

/// Reports to the host, and sets in the metric, the health of a source that has no [`HealthReporter`]: before its loop begins,
/// and after its end.
pub fn show(host: &dyn Host, source: &str, tenant: &TenantId, health: Health) {
    set_gauge(tenant, &health);
    host.health(source, health);
}

fn set_gauge(tenant: &TenantId, health: &Health) {
    let gauge = match health {
        Health::Healthy => 0.0,
        Health::Degraded { .. } => 1.0,
        Health::Failed { .. } => 2.0,
    };
    ::metrics::gauge!(metrics::HEALTH, "tenant" => metrics::tenant_label(tenant)).set(gauge);
}
