//! Connections that the tenants of one process share: one [`HostClients`] for each host and way of connecting to it, and a
//! bound on all of them, since each is an open file.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::http::{HostClients, HttpSettings, IDLE_MAX};
use crate::clock::Clock;
use crate::model::TenantId;

/// The default limit on connections: half of the files that a process may usually open.
const CONNECTIONS_MAX: usize = 512;
/// Clients that keep connections open: calls and blobs of the API, and sign-in.
const IDLE_CLIENTS: usize = 3;
/// Downloads of one tenant at once, if the limit for all permits it.
const OWN_MAX: usize = 32;

/// Ways to hosts, for every client made with it. Cheap to clone. Its connections are driven by the runtime on which the
/// first call was made, so one belongs to one runtime.
#[derive(Clone)]
pub struct Connections {
    ways: Arc<Mutex<HashMap<blake3::Hash, Weak<HostClients>>>>,
    bound: Bound,
}

/// Permits for connections. Small calls have a quarter of their own, so that downloads never delay them.
#[derive(Clone)]
pub(super) struct Bound {
    pub calls: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    /// Downloads of one tenant.
    own: usize,
    /// Connections that one client keeps open for the next call, and as many again for blobs.
    idle: usize,
    may_ask: Option<MayAsk>,
}

/// Returns whether requests for a tenant may be sent to Microsoft now.
pub(crate) type MayAsk = Arc<dyn Fn(&TenantId) -> bool + Send + Sync>;

/// The pause between two checks of that.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Bound {
    fn new(connections: usize) -> Self {
        // Idle connections kept for the next call count as well.
        let idle = (connections / 16).clamp(1, IDLE_MAX);
        let in_use = connections.saturating_sub(IDLE_CLIENTS * idle).max(8);
        let calls = in_use / 4;
        let downloads = in_use - calls;
        Self {
            calls: Arc::new(Semaphore::new(calls)),
            downloads: Arc::new(Semaphore::new(downloads)),
            own: (downloads / 8).clamp(1, OWN_MAX),
            idle,
            may_ask: None,
        }
    }

    /// Waits until requests for the tenant may be sent to Microsoft.
    pub async fn leave(&self, tenant: &TenantId, clock: &Arc<dyn Clock>) {
        if let Some(may_ask) = &self.may_ask {
            while !may_ask(tenant) {
                clock.sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Whether tenants come from other processes, and go to them.
    pub fn is_shared_out(&self) -> bool {
        self.may_ask.is_some()
    }

    /// A tenant's own share: slow answers of some tenants must not take all permits.
    pub fn own_downloads(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(self.own))
    }

    /// Waits for a permit for a small call. The semaphore is never closed; if it were, the call would be sent without a
    /// permit.
    pub async fn call(&self) -> Option<ConnectionPermit> {
        let all = self.calls.clone().acquire_owned().await.ok()?;
        Some(ConnectionPermit { _all: all, _own: None })
    }

    /// Waits for a permit for a download.
    pub async fn download(&self, own: &Arc<Semaphore>) -> Option<ConnectionPermit> {
        let own = own.clone().acquire_owned().await.ok()?;
        let all = self.downloads.clone().acquire_owned().await.ok()?;
        Some(ConnectionPermit { _all: all, _own: Some(own) })
    }
}

/// A permit for one connection, released when dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    _all: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

impl Default for Connections {
    fn default() -> Self {
        Self::at_most(CONNECTIONS_MAX)
    }
}

impl Connections {
    /// No connections yet; the limit is half of the files that a process may usually open.
    pub fn new() -> Self {
        Self::default()
    }

    /// No connections yet; at most this many at once, including idle ones.
    pub fn at_most(connections: usize) -> Self {
        Self { ways: Arc::default(), bound: Bound::new(connections) }
    }

    /// The same, but calls for a tenant wait while `may_ask` returns false.
    #[must_use]
    pub(crate) fn while_allowed(mut self, may_ask: MayAsk) -> Self {
        self.bound.may_ask = Some(may_ask);
        self
    }

    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// The clients for the origin of `target`; shared with other tenants that have the same settings.
    pub(super) fn clients(&self, settings: &HttpSettings<'_>, target: &Url) -> Result<Arc<HostClients>, String> {
        let key = key(settings, target);
        let mut ways = self.ways.lock();
        if let Some(way) = ways.get(&key).and_then(Weak::upgrade) {
            return Ok(way);
        }
        let way = Arc::new(HostClients::new(settings, target, self.bound.idle)?);
        // Drops unused entries: a CA file was replaced, or a tenant was removed.
        ways.retain(|_, way| way.strong_count() > 0);
        ways.insert(key, Arc::downgrade(&way));
        Ok(way)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

/// The identity of an entry. A hash, since a proxy's address may contain a password and a PEM a key.
fn key(settings: &HttpSettings<'_>, target: &Url) -> blake3::Hash {
    let HttpSettings { connect_timeout, ca_pem, proxy_url, no_proxy, proxy_client_pem } = settings;
    let mut hasher = blake3::Hasher::new();
    // The length of each part separates it from the next.
    let mut part = |bytes: Option<&[u8]>| {
        hasher.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_be_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    part(Some(target.origin().ascii_serialization().as_bytes()));
    part(Some(&connect_timeout.as_nanos().to_be_bytes()));
    part(*ca_pem);
    part(proxy_url.map(|url| url.as_str().as_bytes()));
    part(no_proxy.map(str::as_bytes));
    part(*proxy_client_pem);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn settings() -> HttpSettings<'static> {
        HttpSettings {
            connect_timeout: Duration::from_secs(10),
            ca_pem: None,
            proxy_url: None,
            no_proxy: None,
            proxy_client_pem: None,
        }
    }

    #[test]
    fn tenants_that_reach_a_host_alike_share_a_way_and_others_do_not() {
        let connections = Connections::new();
        let url = |text: &str| Url::parse(text).unwrap();
        let one = connections.clients(&settings(), &url("http://127.0.0.1:8080/a")).unwrap();
        let same = connections.clients(&settings(), &url("http://127.0.0.1:8080/b?c")).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        let proxy = url("http://10.0.0.1:3128");
        let longer = HttpSettings { connect_timeout: Duration::from_secs(11), ..settings() };
        let proxied = HttpSettings { proxy_url: Some(&proxy), ..settings() };
        let excepting = HttpSettings { no_proxy: Some(""), ..settings() };
        let others = [
            connections.clients(&settings(), &url("http://127.0.0.1:8081/a")).unwrap(),
            connections.clients(&longer, &url("http://127.0.0.1:8080/a")).unwrap(),
            connections.clients(&proxied, &url("http://127.0.0.1:8080/a")).unwrap(),
            connections.clients(&excepting, &url("http://127.0.0.1:8080/a")).unwrap(),
        ];
        assert!(others.iter().all(|other| !Arc::ptr_eq(&one, other)));
        drop((one, same, others));
        assert!(connections.ways.lock().values().all(|way| way.strong_count() == 0), "nothing outlives its users");
    }

    #[test]
    fn all_connections_stay_under_the_bound_and_no_tenant_takes_all() {
        use futures_util::FutureExt;
        for (most, calls, downloads, own) in [(1, 2, 6, 1), (192, 39, 117, 14), (768, 168, 504, 32)] {
            let bound = Connections::at_most(most).bound().clone();
            let small: Vec<_> = std::iter::from_fn(|| bound.call().now_or_never().flatten()).collect();
            let tenants: Vec<_> = (0..1000).map(|_| bound.own_downloads()).collect();
            let first: Vec<_> = std::iter::from_fn(|| bound.download(&tenants[0]).now_or_never().flatten()).collect();
            assert_eq!((small.len(), first.len()), (calls, own), "{most}");
            let rest: Vec<_> = tenants.iter().filter_map(|own| bound.download(own).now_or_never().flatten()).collect();
            assert_eq!(first.len() + rest.len(), downloads, "{most}");
            assert!(most < 100 || small.len() + first.len() + rest.len() + IDLE_CLIENTS * bound.idle <= most);
            drop(first);
            assert!(bound.download(&tenants[0]).now_or_never().is_some());
        }
    }

    #[test]
    fn what_moves_from_one_setting_to_another_makes_another_way() {
        let url = Url::parse("http://127.0.0.1/").unwrap();
        let as_ca = HttpSettings { ca_pem: Some(b"x"), ..settings() };
        let as_client = HttpSettings { proxy_client_pem: Some(b"x"), ..settings() };
        let as_exception = HttpSettings { no_proxy: Some("x"), ..settings() };
        let keys = [key(&settings(), &url), key(&as_ca, &url), key(&as_client, &url), key(&as_exception, &url)];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
