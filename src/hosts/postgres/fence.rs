//! Whether this process may still act for a tenant: asked before records are handed to a sink and before Microsoft is
//! asked for anything.
//!
//! A process that was paused, or that the store does not reach, cannot know that others took its tenants. It knows when
//! it sent the last heartbeat that was answered: for two thirds of the time to live from then on nobody took anything.
//! The count goes on while the machine sleeps. Safety of the state does not rest on this (a commit of a former owner is
//! refused); what comes twice is bounded by it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateStore};
use crate::model::TenantId;

/// What this process may act for, and until when.
#[derive(Debug)]
pub struct Fence {
    clock: Arc<dyn Clock>,
    lasts: Duration,
    inner: Mutex<FenceState>,
}

#[derive(Debug, Default)]
struct FenceState {
    /// When the last heartbeat that was answered was sent, counted from the start of the machine.
    sent: Option<Duration>,
    held: HashSet<TenantId>,
    /// Those of them that are being given back.
    leaving: HashSet<TenantId>,
    incarnation: i64,
}

impl Fence {
    /// One that is shut: `lease` is for how long a heartbeat makes the leases last.
    pub fn new(clock: Arc<dyn Clock>, lease: Duration) -> Arc<Self> {
        Arc::new(Self { clock, lasts: lease * 2 / 3, inner: Mutex::default() })
    }

    /// A heartbeat that was sent then was answered.
    pub fn answered(&self, sent: Duration) {
        self.inner.lock().sent = Some(sent);
    }

    /// This process has joined, as this incarnation.
    pub fn joined(&self, incarnation: i64) {
        self.inner.lock().incarnation = incarnation;
    }

    /// The tenants that are held, and the incarnation that holds them; none while the leases are not sure to last.
    pub fn held(&self) -> (Vec<TenantId>, i64) {
        if !self.is_open() {
            return (Vec::new(), 0);
        }
        let inner = self.inner.lock();
        (inner.held.iter().cloned().collect(), inner.incarnation)
    }

    /// A lease is held.
    pub fn hold(&self, tenant: TenantId) {
        let mut inner = self.inner.lock();
        inner.leaving.remove(&tenant);
        inner.held.insert(tenant);
    }

    /// A lease is about to be given back: what is under way may end, and nothing is to begin.
    pub fn leaves(&self, tenant: TenantId) {
        self.inner.lock().leaving.insert(tenant);
    }

    /// A lease was given back.
    pub fn release(&self, tenant: &TenantId) {
        let mut inner = self.inner.lock();
        inner.held.remove(tenant);
        inner.leaving.remove(tenant);
    }

    /// All leases are lost.
    pub fn shut(&self) {
        let mut inner = self.inner.lock();
        inner.sent = None;
        inner.held.clear();
        inner.leaving.clear();
    }

    /// Whether the leases are sure to last.
    pub fn is_open(&self) -> bool {
        let sent = self.inner.lock().sent;
        sent.is_some_and(|sent| self.clock.since_boot().saturating_sub(sent) < self.lasts)
    }

    /// Whether this process may act for the tenant.
    pub fn holds(&self, tenant: &TenantId) -> bool {
        self.is_open() && self.inner.lock().held.contains(tenant)
    }

    /// Whether this process may begin to read the tenant.
    pub fn keeps(&self, tenant: &TenantId) -> bool {
        self.holds(tenant) && !self.inner.lock().leaving.contains(tenant)
    }
}

/// A host that hands nothing over for tenants that others may have taken.
pub struct FencedHost {
    host: Arc<dyn Host>,
    fence: Arc<Fence>,
}

impl FencedHost {
    /// `host` behind `fence`.
    pub fn new(host: Arc<dyn Host>, fence: Arc<Fence>) -> Self {
        Self { host, fence }
    }
}

#[async_trait]
impl Host for FencedHost {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        if self.fence.holds(&batch.tenant) {
            return self.host.deliver(batch).await;
        }
        DeliveryTicket::resolved(Delivery::Refused(
            "lease-unsure: the cluster's store does not answer, so another member may have taken the tenant; nothing is handed over until it does"
                .into(),
        ))
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.host.state()
    }

    fn health(&self, source: &str, health: Health) {
        self.host.health(source, health);
    }

    fn received(&self, source: &str, bytes: usize) {
        self.host.received(source, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;

    #[test]
    fn a_lease_is_sure_for_two_thirds_of_its_time_from_when_the_heartbeat_was_sent() {
        let clock = Arc::new(TestClock::at("2026-11-30T00:00:00Z".parse().unwrap()));
        let fence = Fence::new(clock.clone(), Duration::from_secs(30));
        let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().unwrap();
        fence.hold(tenant.clone());
        assert!(!fence.holds(&tenant), "no heartbeat was answered yet");
        let sent = clock.since_boot();
        clock.advance(Duration::from_secs(5));
        fence.answered(sent);
        clock.advance(Duration::from_secs(14));
        assert!(fence.holds(&tenant), "19 s");
        clock.advance(Duration::from_secs(1));
        assert!(!fence.holds(&tenant), "20 s");
        fence.answered(clock.since_boot());
        assert!(fence.holds(&tenant));
        fence.shut();
        fence.answered(clock.since_boot());
        assert!(!fence.holds(&tenant), "what was lost is not held again by a heartbeat");
    }

    #[test]
    fn a_tenant_that_is_being_given_back_ends_what_is_under_way_and_begins_nothing() {
        let clock = Arc::new(TestClock::at("2026-11-30T00:00:00Z".parse().unwrap()));
        let fence = Fence::new(clock.clone(), Duration::from_secs(30));
        let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().unwrap();
        fence.answered(clock.since_boot());
        fence.hold(tenant.clone());
        assert!(fence.keeps(&tenant));
        fence.leaves(tenant.clone());
        assert!(fence.holds(&tenant) && !fence.keeps(&tenant));
        fence.release(&tenant);
        fence.hold(tenant.clone());
        assert!(fence.keeps(&tenant), "taken anew");
    }
}
