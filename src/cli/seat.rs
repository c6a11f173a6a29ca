//! This process's seat in a cluster: its member, its leases, and what they have it do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::requests::Relay;
use super::{Failure, opened};
use crate::api::MayAsk;
use crate::checkpoint::journal::Keeping;
use crate::clock::Clock;
use crate::config::{ClusterConfig, Config};
use crate::host::Host;
use crate::hosts::embedded::EmbeddedHost;
use crate::hosts::postgres::PostgresStore;
use crate::hosts::postgres::fence::{Fence, FencedHost};
use crate::hosts::postgres::leases::{Ending, LeaseChannels, LeaseKeeper, LeaseOrder};
use crate::hosts::postgres::members::{Introduction, Member};
use crate::model::TenantId;

/// For the leases to be given back at the end.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// The seat.
pub(super) struct ClusterSeat {
    /// The host, behind the fence.
    pub(super) host: Arc<dyn Host>,
    fence: Arc<Fence>,
    desk: LeaseChannels,
    stopping: Vec<(BTreeSet<TenantId>, oneshot::Sender<()>)>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
    relay: JoinHandle<()>,
}

/// Refuses what a cluster cannot do.
///
/// # Errors
/// In words, with the remedy.
pub(super) fn refuse_in_cluster(once: bool, config: &Config, receipts: Option<&Keeping>) -> Result<(), Failure> {
    if once {
        let message = "usage: `--once` reads all tenants of a configuration, and those of a cluster are shared out (hint: run without \
                       `--once`, or without `[cluster]`)";
        return Err(Failure { message: message.into(), exit: Exit::Usage });
    }
    if config.receipts.days > 0 && receipts.is_none() {
        let message = format!(
            "receipts-key-missing: the members of a cluster sign receipts with one key, and `{}` cannot be used (hint: `m365-audit cluster \
             init` makes it once; copy it to all members, or keep no receipts with `[receipts] days = 0`)",
            config.receipts_key().display()
        );
        return Err(Failure { message, exit: Exit::Config });
    }
    Ok(())
}

/// Says it where the database reports as committed what is not on disk.
///
/// # Errors
/// The database does not answer.
pub(super) async fn warn_of_durability(store: &PostgresStore) {
    // A database that went away again is told by the leases.
    if let Ok(Some(setting)) = store.not_durable().await {
        tracing::warn!(
            "cluster-not-durable: {} has `{setting}`, so it reports commits that a crash of it may lose; what they marked comes again then \
             (hint: set `synchronous_commit = on` and `fsync = on`)",
            store.shown()
        );
    }
}

impl ClusterSeat {
    /// Joins, beside everything else.
    pub(super) fn take(
        cluster: &ClusterConfig,
        store: PostgresStore,
        config: &Config,
        host: &Arc<EmbeddedHost>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let lease = Duration::from_secs(cluster.lease_secs);
        let said = Introduction {
            id: opened::member(cluster),
            weight: cluster.weight,
            address: config.metrics.as_ref().map(|metrics| metrics.listen.to_string()).unwrap_or_default(),
            lease,
        };
        let fence = Fence::new(clock.clone(), lease);
        let leases = store.for_leases();
        let member = Member::new(leases.clone(), said);
        let told = host.clone();
        let on_trouble = Box::new(move |trouble| told.store_trouble(trouble));
        let (keeper, desk) = LeaseKeeper::new(leases, member, lease, fence.clone(), clock.clone(), on_trouble);
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keeper.run(stop.clone()));
        let relay = Relay { store, fence: fence.clone(), socket: config.control_socket(), clock: clock.clone() };
        let relay = tokio::spawn(relay.run());
        let host: Arc<dyn Host> = Arc::new(FencedHost::new(host.clone(), fence.clone()));
        let seat = Self { host, fence, desk, stopping: Vec::new(), stop, keeper, relay };
        seat.publish_tenants(config);
        seat
    }

    /// Whether Microsoft may be asked about a tenant.
    pub(super) fn may_ask(&self) -> MayAsk {
        let fence = self.fence.clone();
        Arc::new(move |tenant| fence.holds(tenant))
    }

    /// Whether this process is a member whose heartbeats are answered.
    pub(super) fn is_member(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let fence = self.fence.clone();
        Arc::new(move || fence.is_open())
    }

    /// The configuration has these tenants now. Returns what says which of them this process has.
    pub(super) fn publish_tenants(&self, config: &Config) -> Arc<Fence> {
        let tenants: BTreeSet<TenantId> = config.sources.values().map(|source| source.tenant_id.clone()).collect();
        self.desk.tenants.send_replace(tenants);
        self.fence.clone()
    }

    /// The next order; never without a cluster.
    pub(super) async fn next(seat: &mut Option<Self>) -> LeaseOrder {
        match seat {
            Some(seat) => match seat.desk.orders.recv().await {
                Some(order) => order,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// These are being stopped; `answer` waits for all of them.
    pub(super) fn stopping(&mut self, tenants: BTreeSet<TenantId>, answer: oneshot::Sender<()>) {
        if tenants.is_empty() {
            let _ = answer.send(());
        } else {
            self.stopping.push((tenants, answer));
        }
    }

    /// A source of the tenant has ended; `reads`: others of the tenant go on; `ending`: why, if nobody stopped it. Whether
    /// the tenant leaves this process.
    pub(super) fn ended(&mut self, tenant: &TenantId, reads: bool, ending: Option<Ending>) -> bool {
        let leaves = self.stopping.iter().any(|(waiting, _)| waiting.contains(tenant));
        if !reads {
            for (waiting, _) in &mut self.stopping {
                waiting.remove(tenant);
            }
            for (_, answer) in self.stopping.extract_if(.., |(waiting, _)| waiting.is_empty()) {
                let _ = answer.send(());
            }
        }
        if let Some(ending) = ending.filter(|_| !leaves) {
            let _ = self.desk.ended.send((tenant.clone(), ending));
        }
        leaves
    }

    /// Gives all leases back.
    pub(super) async fn leave(self) {
        self.relay.abort();
        self.stop.cancel();
        if tokio::time::timeout(LEAVE_WAIT, self.keeper).await.is_err() {
            tracing::warn!("the leases were not given back in time: they expire by themselves");
        }
    }
}
