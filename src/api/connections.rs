//! Connections that tenants of one process share: one [`Way`] for each host and manner of reaching it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use url::Url;

use super::http::{HttpSettings, Way};

/// Ways to hosts, for every client made with it. Cheap to clone. Its connections are driven by the runtime on which the
/// first call was made, so one belongs to one runtime.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<blake3::Hash, Weak<Way>>>>);

impl Connections {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The way to the origin of `target`: the one that other clients use, if theirs has the same settings.
    pub(super) fn way(&self, settings: &HttpSettings<'_>, target: &Url) -> Result<Arc<Way>, String> {
        let key = key(settings, target);
        let mut ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = ways.get(&key).and_then(Weak::upgrade) {
            return Ok(way);
        }
        let way = Arc::new(Way::new(settings, target)?);
        // Ways nobody uses any more: a CA file was replaced, a tenant left.
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

/// What makes two ways the same. A hash, since a proxy's address may hold a password and a PEM a key.
fn key(settings: &HttpSettings<'_>, target: &Url) -> blake3::Hash {
    let HttpSettings { connect_timeout, ca_pem, proxy_url, no_proxy, proxy_client_pem } = settings;
    let mut hasher = blake3::Hasher::new();
    // Its length keeps apart what stands in one part and what stands in the next.
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
        let one = connections.way(&settings(), &url("http://127.0.0.1:8080/a")).unwrap();
        let same = connections.way(&settings(), &url("http://127.0.0.1:8080/b?c")).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        let proxy = url("http://10.0.0.1:3128");
        let longer = HttpSettings { connect_timeout: Duration::from_secs(11), ..settings() };
        let proxied = HttpSettings { proxy_url: Some(&proxy), ..settings() };
        let excepting = HttpSettings { no_proxy: Some(""), ..settings() };
        let others = [
            connections.way(&settings(), &url("http://127.0.0.1:8081/a")).unwrap(),
            connections.way(&longer, &url("http://127.0.0.1:8080/a")).unwrap(),
            connections.way(&proxied, &url("http://127.0.0.1:8080/a")).unwrap(),
            connections.way(&excepting, &url("http://127.0.0.1:8080/a")).unwrap(),
        ];
        assert!(others.iter().all(|other| !Arc::ptr_eq(&one, other)));
        drop((one, same, others));
        assert!(
            connections.0.lock().unwrap().values().all(|way| way.strong_count() == 0),
            "nothing outlives its users"
        );
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
