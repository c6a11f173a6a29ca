//! A tenant full of events, and the comparison of records with its truth, for both tests of the plugin.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use m365_audit::clock::SystemClock;
use m365_audit::model::{TenantId, Timestamp};
use m365_audit::sim::{Comparison, Delivered, GenerateSpec, Sim, SimConfig};
use serde_json::Value;
use tokio::runtime::Runtime;

/// Far longer than any operation here takes, even on a busy machine, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What is left of a test's patience. A machine that stood still between two looks, as a virtual one may for minutes, costs
/// it no more than a slow look does: nothing could happen meanwhile.
pub struct Patience {
    left: Duration,
    looked: Instant,
}

impl Patience {
    const LOOK_MAX: Duration = Duration::from_secs(10);

    pub fn new() -> Self {
        Self { left: PATIENCE, looked: Instant::now() }
    }

    /// Waits for a moment before the next look. `false`: it is used up.
    pub fn lasts(&mut self, pause: Duration) -> bool {
        std::thread::sleep(pause);
        self.left = self.left.saturating_sub(self.looked.elapsed().min(Self::LOOK_MAX));
        self.looked = Instant::now();
        !self.left.is_zero()
    }
}

/// The simulated service, on threads of its own.
pub struct Service {
    pub sim: Sim,
    pub config: SimConfig,
    /// How many records were compared with how many events, and whether none was missing.
    compared: Cell<((usize, u64), bool)>,
    /// Held for its threads.
    _runtime: Runtime,
}

impl Service {
    /// One with this many empty tenants.
    pub fn new(tenants: usize) -> Self {
        let tenants: Vec<TenantId> =
            (0..tenants).map(|n| format!("11111111-2222-3333-4444-{n:012}").parse().unwrap()).collect();
        Self::of(SimConfig { tenants, ..SimConfig::default() })
    }

    /// One with this configuration and no events.
    pub fn of(config: SimConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let sim = runtime.block_on(Sim::start(config.clone(), SystemClock::new())).unwrap();
        Self { sim, config, compared: Cell::default(), _runtime: runtime }
    }

    /// Publishes events of all sorts to each tenant, over the last hours; all can be listed at once.
    pub fn publish(&self, blobs: usize, events_per_blob: usize) {
        self.publish_over(20 * 3600, 3600, blobs, events_per_blob);
    }

    /// The same, made available just now: a running source finds them at its next poll.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn publish_now(&self, blobs: usize, events_per_blob: usize) {
        self.publish_over(120, 1, blobs, events_per_blob);
    }

    fn publish_over(&self, from_secs: i64, to_secs: i64, blobs: usize, events_per_blob: usize) {
        let now = Timestamp::now();
        for tenant in &self.config.tenants {
            let ago = |secs| now - jiff::SignedDuration::from_secs(secs);
            let mut spec = GenerateSpec::new(blobs, events_per_blob, ago(from_secs), ago(to_secs));
            spec.late_rate = 0.0;
            self.sim.generate(tenant, spec);
        }
    }

    /// The input's properties for its first tenant: everything, exactly as it was published.
    pub fn properties(&self) -> Vec<(String, String)> {
        let SimConfig { client_id, client_secret, tenants, .. } = &self.config;
        let own = [
            ("tenant_id", tenants[0].to_string()),
            ("client_id", client_id.clone()),
            ("client_secret", client_secret.clone()),
            ("api_url", self.sim.url()),
            ("authority_url", self.sim.url()),
            ("mask_detected_values", "false".into()),
        ];
        own.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(behaviour()).collect()
    }

    /// A file with all its tenants, for `config_file`.
    pub fn config_file(&self, data_dir: &std::path::Path) -> String {
        let SimConfig { client_id, client_secret, tenants, .. } = &self.config;
        let mut text = format!("data_dir = {data_dir:?}\n");
        for (n, tenant) in tenants.iter().enumerate() {
            let url = self.sim.url();
            text += &format!(
                "[sources.t{n}]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{client_id}\"\n\
                 client_secret = \"{client_secret}\"\napi_url = \"{url}\"\nauthority_url = \"{url}\"\nmask_detected_values = false\n\
                 raw = \"string\"\ndrop_routine = false\npoll_interval_secs = 1\nmax_requests_per_minute = 0\n"
            );
        }
        text
    }

    /// How the records compare with the truth. Records of this program that are not audit events are left out.
    pub fn compare(&self, records: &[Value]) -> Comparison {
        self.sim.truth().compare(records.iter().filter(|r| !is_own(r)).map(delivered))
    }

    /// Nothing is lost and nothing altered; a record may have come more than once.
    pub fn assert_nothing_lost(&self, records: &[Value]) {
        let mut comparison = self.compare(records);
        comparison.duplicated.clear();
        assert!(comparison.is_clean(), "{comparison}");
    }

    /// Every event once, as it was.
    pub fn assert_exact(&self, records: &[Value]) {
        let comparison = self.compare(records);
        assert!(comparison.is_clean() && comparison.expected > 0, "{comparison}");
    }

    /// Whether every event has come at least once. Asked often, it compares only when there is something new.
    pub fn has_all(&self, records: &[Value]) -> bool {
        let published = self.sim.truth().event_count();
        let (counts, known) = self.compared.get();
        if counts == (records.len(), published) {
            return known;
        }
        let all = records.len() as u64 >= published * 9 / 10 && self.compare(records).lost.is_empty();
        self.compared.set(((records.len(), published), all));
        all
    }
}

fn behaviour() -> impl Iterator<Item = (String, String)> {
    let pairs =
        [("raw", "string"), ("drop_routine", "off"), ("poll_interval_secs", "1s"), ("max_requests_per_minute", "0")];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()))
}

pub fn is_own(record: &Value) -> bool {
    record["event_type"].as_str().is_some_and(|kind| kind.starts_with("m365_audit."))
}

fn delivered(record: &Value) -> Delivered {
    Delivered {
        raw: record["raw"].as_str().unwrap_or_default().as_bytes().to_vec(),
        id: record["event_id"].as_str().map(str::to_owned),
        tenant: record["tenant_id"].as_str().and_then(|tenant| tenant.parse().ok()),
        timestamp: record["timestamp"].as_str().and_then(|time| time.parse().ok()),
    }
}

/// Waits for a condition, and names it when it does not occur.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let mut patience = Patience::new();
    while !done() {
        assert!(patience.lasts(Duration::from_millis(20)), "still no {what}");
    }
}

/// The library under test: cargo makes it beside this test, which has its package among its dependencies.
pub fn library() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name("libm365_audit.so");
    let path = std::env::var_os("M365_AUDIT_PLUGIN").map_or(beside, PathBuf::from);
    if !path.exists() {
        test_support::skip("plugin", format_args!("nothing at {}", path.display()));
        return None;
    }
    Some(path)
}
