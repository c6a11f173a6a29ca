//! The one live instance: its threads, from Init to Exit.
//!
//! Owns the plugin's runtime and the order in which things start and stop. Faults that may end by themselves (state
//! that cannot be opened, a network that is down, a refused token) are retried for ever and never fail a start: a
//! failing Init ends the whole agent, even at a reload.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::api::{self, Bell, Config, HostApi, HostCounters, HostMetrics, OnReadable, OnTimer};
use super::host::FluentBitHost;
use super::log::Lines;
use super::memory::{self, Misaligned};
use super::metrics::{record_this_thread, recorder};
use super::ring::Counted;
use super::settle::{Appends, Buffer, Call, Handover, Mode, QUEUE_BYTES_MAX};
use m365_audit::backoff::{Backoff, Failures};
use m365_audit::clock::{Clock, SystemClock};
use m365_audit::config::SourceConfig;
use m365_audit::host::{Health, Host, StateError};
use m365_audit::hosts::embedded::HealthReport;
use m365_audit::hosts::embedded::completeness::CompletenessReader;
use m365_audit::hosts::embedded::metrics_server::{MetricsServer, Readiness, Served};
use m365_audit::hosts::embedded::registry::{Registry, RunningSource};
use m365_audit::hosts::embedded::status::{Monitor, Recent, SAMPLE_EVERY};
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::hosts::fluent_bit::settings::{Complaint, PluginSettings, Properties};
use m365_audit::model::Actionable;
use m365_audit::source::fleet::Fleet;
use m365_audit::source::{M365Audit, Source, SourceError, aside, backfill, heal};

/// Threads of the plugin's runtime.
const WORKER_THREADS: usize = 2;
/// The engine's own thread; an input that is not threaded is called on it.
const PIPELINE_THREAD: &str = "flb-pipeline";
/// Exit waits this long for the sources to write their position, then [`THREADS_GRACE`] for the threads.
const SOURCES_GRACE: Duration = Duration::from_millis(1_500);
const THREADS_GRACE: Duration = Duration::from_millis(400);
const _: () =
    assert!(SOURCES_GRACE.as_millis() + THREADS_GRACE.as_millis() < 2_000, "an exit takes two seconds at most");
/// The pause between attempts.
const RETRY: Backoff = Backoff::between(Duration::from_secs(2), Duration::from_secs(300));

static LIVE: Mutex<Option<Arc<Instance>>> = Mutex::new(None);

/// Why Init fails.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error(
        "there is an input `m365_audit` already (`{0}`), and Fluent Bit pauses the wrong one of two and loses its records"
    )]
    SecondInstance(String),
    /// The configuration can never work.
    #[error("the configuration cannot work, {} problem(s)", .0.len())]
    Configuration(Vec<Complaint>),
    /// The process's `malloc` guarantees less than all code relies on.
    #[error("the memory of this process is not aligned as programs need it: {0}")]
    Memory(Misaligned),
    /// The system gave no threads.
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
}

impl Actionable for InitError {
    fn slug(&self) -> &'static str {
        match self {
            Self::SecondInstance(_) => "fluent-bit-second-instance",
            Self::Configuration(_) => "config-invalid",
            Self::Memory(_) => "fluent-bit-memory-misaligned",
            Self::Threads(_) => "fluent-bit-no-threads",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::SecondInstance(_) => {
                "put all tenants into one input: `config_file` names a TOML file with a `[sources.<name>]` for each"
                    .into()
            }
            Self::Configuration(_) => "docs/configuration.md describes every key".into(),
            Self::Memory(_) => {
                "use one of Fluent Bit's own packages, or a build of it with another allocator; or run `m365-audit run` beside it, with the sink `fluent_forward`".into()
            }
            Self::Threads(_) => "check the limit of processes of this user".into(),
        }
    }
}

/// The state between Init and Exit.
pub struct Instance {
    api: HostApi,
    lines: Lines,
    handover: Arc<Handover>,
    stop: CancellationToken,
    running: Mutex<Option<Running>>,
    metrics: Mutex<Option<HostMetrics>>,
    /// Threaded only.
    counters: Option<HostCounters>,
    panicked: AtomicBool,
    /// Rung when records wait; none when the system gave no descriptor, and then ticks set the pace.
    bell: Option<Arc<Bell>>,
    /// Whether the engine was asked to call this plugin when the bell rings.
    asked: AtomicBool,
}

struct Running {
    runtime: Runtime,
    ended: mpsc::Receiver<()>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance({})", self.api.name())
    }
}

/// The live instance.
pub fn live() -> Option<Arc<Instance>> {
    LIVE.lock().clone()
}

/// Init: reads the settings, starts the threads, and does not wait for them. The report of a failure has been printed
/// when it returns.
pub fn start(api: HostApi) -> Result<(), InitError> {
    // Before anything else: later code might end the agent.
    if let Some(misaligned) = memory_found() {
        let error = InitError::Memory(misaligned);
        report_failure(&api, &error);
        return Err(error);
    }
    let most = (1..=5).rev().find(|level| api.shows(*level)).unwrap_or(0);
    let lines = Lines::new(most);
    let result = {
        let mut live = LIVE.lock();
        match &*live {
            Some(first) => Err((InitError::SecondInstance(first.api.name().to_owned()), api)),
            None => lines.while_in(|| Instance::start(api, lines.clone())).map(|instance| {
                *live = Some(instance);
            }),
        }
    };
    match result {
        Ok(()) => {
            if let Some(live) = live() {
                live.publish();
            }
            Ok(())
        }
        Err((error, api)) => {
            report_failure(&api, &error);
            Err(error)
        }
    }
}

/// The fault that the check of the process's memory found, once, at load.
pub fn memory_found() -> Option<Misaligned> {
    static FOUND: OnceLock<Option<Misaligned>> = OnceLock::new();
    *FOUND.get_or_init(|| memory::misaligned(&crate::MEMORY))
}

fn report_failure(api: &HostApi, error: &InitError) {
    let say = |text: &str| {
        if api.shows(1) {
            api.print(1, text);
        }
    };
    say(&format!("{}: {error} (hint: {})", error.slug(), error.hint()));
    if let InitError::Configuration(problems) = error {
        problems.iter().for_each(|problem| say(&problem.to_string()));
    }
}

/// Exit: ends the live instance, within two seconds. `false`: there was none.
pub fn stop() -> bool {
    let Some(instance) = LIVE.lock().take() else { return false };
    instance.end();
    true
}

impl Instance {
    fn start(api: HostApi, lines: Lines) -> Result<Arc<Self>, (InitError, HostApi)> {
        let mode = if api::thread_name() == PIPELINE_THREAD { Mode::OnPipeline } else { Mode::OnOwnThread };
        let properties = Properties {
            value: &|name| api.property(name),
            written: &|_| None,
            // Full queues, one after another, must not wait for each other to be settled.
            in_flight_bytes_min: &|bytes_per_tick_max| {
                (QUEUE_BYTES_MAX.min(bytes_per_tick_max) * mode.queues_in_flight()) as u64
            },
        };
        let settings = match PluginSettings::read(properties) {
            Ok(settings) => settings,
            Err(problems) => return Err((InitError::Configuration(problems), api)),
        };
        let metrics = api.metrics();
        greet(&settings, mode, metrics.is_some());
        api::keep_loaded();

        let runtime = match runtime(&lines) {
            Ok(runtime) => runtime,
            Err(error) => return Err((InitError::Threads(error), api)),
        };
        let clock: Arc<dyn Clock> = SystemClock::new();
        let bell = Bell::of_process().ok();
        let waker = bell.clone().map_or_else(|| Waker::noop().clone(), Waker::from);
        let handover = Arc::new(Handover::new(mode, settings.bytes_per_tick_max, waker, clock.clone()));
        let stop = CancellationToken::new();
        let (end, ended) = mpsc::channel();
        let (recent, stopping) = (lines.recent(), stop.clone());
        let crew = Crew { settings, handover: handover.clone(), clock, stop: stopping, recent };
        let asking = handover.clone();
        runtime.spawn(async move {
            tokio::select! {
                () = crew.work() => {}
                () = asking.keep_asking() => {}
            }
            // The receiver may be gone.
            let _ = end.send(());
        });
        let counters = if mode == Mode::OnOwnThread { api.counters() } else { None };
        Ok(Arc::new(Self {
            api,
            lines,
            handover,
            stop,
            running: Mutex::new(Some(Running { runtime, ended })),
            metrics: Mutex::new(metrics),
            counters,
            panicked: AtomicBool::new(false),
            bell,
            asked: AtomicBool::new(false),
        }))
    }

    /// PreRun, and each tick until it is done: gets from the engine the configuration needed for calls when records
    /// wait. Otherwise the engine's own call once a second would limit the rate.
    pub fn ask_to_be_called(&self, then: OnTimer) {
        if self.bell.is_some() && self.api.can_append() && !self.asked.load(Ordering::Relaxed) {
            self.asked.store(self.api.ask_for_config(then), Ordering::Relaxed);
        }
    }

    /// The callback that [`Instance::ask_to_be_called`] requested.
    pub fn listen(&self, config: Config, then: OnReadable) {
        let listens = self.bell.as_ref().is_some_and(|bell| self.api.call_when_rung(config, bell, then));
        self.lines.while_in(|| tracing::debug!(listens, "asked Fluent Bit to take records as soon as they wait"));
    }

    /// Collect: prints log lines, and delivers records: appended, or as a lent buffer if the host does not export its
    /// append function.
    pub fn collect(&self) -> Option<Buffer> {
        self.publish();
        if !self.api.can_append() {
            return self.lines.while_in(|| self.handover.collect());
        }
        self.hand_over(Call::Tick);
        None
    }

    /// Called when the bell signals waiting records.
    pub fn records_wait(&self) {
        self.hand_over(Call::Between);
    }

    fn hand_over(&self, call: Call) {
        self.lines.while_in(|| self.handover.append(call, self));
    }

    /// Cleanup. `false`: the address is not that of a lent buffer.
    pub fn cleanup(&self, data: *const u8) -> bool {
        self.lines.while_in(|| self.handover.cleanup(data))
    }

    /// Pause: back-pressure, or the beginning of the end.
    pub fn pause(&self) {
        self.handover.pause();
        self.publish();
    }

    /// Resume.
    pub fn resume(&self) {
        self.handover.resume();
        self.publish();
    }

    /// PreExit: no batch is settled from here on, and the sources stop.
    pub fn pre_exit(&self) {
        self.handover.close();
        self.stop.cancel();
        self.publish();
    }

    /// Reports that a call of the host panicked inside the plugin.
    pub fn panicked(&self, call: &str) {
        // Once: the same call comes every second.
        if !self.panicked.swap(true, Ordering::Relaxed) {
            self.api.print(1, &format!("internal: a panic in {call}; this is a bug, please report it with the log"));
        }
    }

    /// Prints the lines and shows the metrics: on a host thread, inside a call of the host.
    fn publish(&self) {
        for line in self.lines.take() {
            self.api.print(line.level, &line.text);
        }
        if let Some(metrics) = &mut *self.metrics.lock() {
            let now = u64::try_from(m365_audit::model::Timestamp::now().as_nanosecond()).unwrap_or(0);
            for sample in recorder().samples() {
                metrics.set(&sample, now);
            }
        }
    }

    fn end(&self) {
        self.pre_exit();
        let Some(Running { runtime, ended }) = self.running.lock().take() else { return };
        let start = Instant::now();
        let in_time = ended.recv_timeout(SOURCES_GRACE).is_ok();
        runtime.shutdown_timeout(THREADS_GRACE);
        if !in_time {
            self.lines.while_in(|| {
                let after_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(after_ms, "not everything ended in time; what was not settled is fetched again");
            });
        }
        // The metrics belong to the host, which frees them after this call.
        self.publish();
        *self.metrics.lock() = None;
        if in_time {
            recorder().clear();
        }
    }
}

impl Appends for Instance {
    fn append(&self, entries: &[u8]) -> bool {
        self.api.append(entries)
    }

    fn counted(&self) -> Option<Counted> {
        self.counters.as_ref().and_then(HostCounters::counted)
    }
}

/// Logs what runs, the place of its state and its settings.
fn greet(settings: &PluginSettings, mode: Mode, has_host_metrics: bool) {
    let version = env!("CARGO_PKG_VERSION");
    match mode {
        Mode::OnPipeline => tracing::info!(version, "started, `threaded: off`: settled when Fluent Bit has appended"),
        Mode::OnOwnThread => tracing::warn!(
            version,
            "started, threaded: Fluent Bit does not say when a full disk costs records, nor what it has only in memory (hint: `threaded: off` with `storage.type: filesystem`)"
        ),
    }
    for line in settings.shown() {
        tracing::info!("{line}");
    }
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if !has_host_metrics && settings.metrics.is_none() {
        tracing::info!("this Fluent Bit does not take our metrics; `metrics_listen` shows them at an address of ours");
    }
}

fn runtime(lines: &Lines) -> std::io::Result<Runtime> {
    let lines = lines.clone();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("m365-audit")
        .enable_all()
        .on_thread_start(move || {
            lines.write_from_this_thread();
            record_this_thread();
        })
        .build()
}

/// Everything that runs on the plugin's own threads.
struct Crew {
    settings: PluginSettings,
    handover: Arc<Handover>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    recent: Recent,
}

impl Crew {
    async fn work(self) {
        let report = watch::Sender::new(HealthReport::default());
        let (registry, state) = (self.registry(), Arc::new(OnceLock::new()));
        let listener = self.settings.metrics.clone().map(|metrics| {
            // Before anything is counted, since earlier counts are not shown.
            let recorded = recorder().recorded();
            let (health, clock) = (report.subscribe(), self.clock.clone());
            let monitor = Arc::new(Monitor::new(recorded, health, self.recent.clone(), clock.clone()));
            let served = Served {
                monitor,
                registry: registry.clone(),
                completeness: CompletenessReader::new(state.clone(), clock.clone()),
                detail: metrics.detail,
                hosts: metrics.hosts,
                docs_url: metrics.docs_url,
                readiness: Readiness::default(),
            };
            tokio::spawn(serve_metrics(metrics.listen.to_string(), served, clock, self.stop.clone()))
        });
        let Some(store) = self.open_store().await else { return };
        let store = Arc::new(store);
        // Nothing else fills it.
        let _ = state.set(store.clone());
        let host = Arc::new(FluentBitHost::new(self.handover.clone(), store.clone(), self.clock.clone(), report));
        let (watcher, clock, stop) = (host.clone(), self.clock.clone(), self.stop.clone());
        let watching = tokio::spawn(async move {
            store.watch_files(&*clock, stop, |why| watcher.store_trouble(why)).await;
        });
        let host: Arc<dyn Host> = host;
        let mut sources = JoinSet::new();
        let fleet = Fleet::new();
        for (name, config) in &self.settings.sources {
            let (name, config, clock) = (Arc::from(name.as_str()), config.clone(), self.clock.clone());
            sources.spawn(keep_running(name, config, host.clone(), fleet.clone(), clock, self.stop.clone()));
        }
        while sources.join_next().await.is_some() {}
        watching.abort();
        let _ = watching.await;
        if let Some(listener) = listener {
            let _ = listener.await;
        }
        // The last reference, since the sources are gone: dropping the store waits for its last commit.
        let _ = tokio::task::spawn_blocking(move || drop(host)).await;
    }

    /// The sources, for the plugin's own pages. Here no client requests a back-fill or a retry of records set aside.
    fn registry(&self) -> Registry {
        let registry = Registry::default();
        for (name, config) in &self.settings.sources {
            let entry = RunningSource {
                tenant: config.tenant_id.clone(),
                content_types: config.content_types.clone(),
                max_requests_per_minute: config.max_requests_per_minute,
                counter: backfill::request_queue().0,
                heal: heal::requests::request_queue().0,
                backfill: None,
                retries: aside::asking().0,
            };
            registry.put(name, entry);
        }
        registry
    }

    /// Opens the state as soon as it can be opened; `None` when stopped before. At a reload the old instance of a
    /// host that was slow to stop may still hold it, and a disk that is full may be emptied.
    async fn open_store(&self) -> Option<SqliteStore> {
        let mut failures = RETRY.failures();
        let mut logged = String::new();
        loop {
            let data_dir: PathBuf = self.settings.data_dir.clone();
            let opened = tokio::task::spawn_blocking(move || SqliteStore::open(data_dir)).await;
            let why = match opened {
                Ok(Ok(store)) => return Some(store),
                Ok(Err(error)) => format!("{}: {error} (hint: {})", error.slug(), error.hint()),
                Err(error) => format!("internal: opening the state ended by a panic: {error}"),
            };
            if why != logged {
                tracing::error!("{why}; nothing is read before it can be opened, which is tried again until it can");
                logged = why;
            }
            if !pause(&*self.clock, &mut failures, &self.stop).await {
                return None;
            }
        }
    }
}

/// Runs a source until the end; starts it again when it ends with a temporary error.
async fn keep_running(
    name: Arc<str>,
    config: SourceConfig,
    host: Arc<dyn Host>,
    fleet: Fleet,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let mut failures = RETRY.failures();
    loop {
        let source = M365Audit::new(name.clone(), config.clone(), clock.clone()).in_fleet(&fleet);
        let source: Box<dyn Source> = Box::new(source);
        // On a task of its own, so that a panic ends this source and no other.
        let run = tokio::spawn(source.run(host.clone(), stop.child_token())).await;
        let (why, for_good) = match run {
            Ok(Ok(_)) if stop.is_cancelled() => return,
            Ok(Ok(_)) => ("the source ended".to_owned(), false),
            Ok(Err(error)) => {
                let conflict = matches!(error, SourceError::State { source: StateError::Conflict { .. }, .. });
                (format!("{}: {error} (hint: {})", error.slug(), error.hint()), conflict)
            }
            Err(error) => (format!("internal: the source ended by a panic: {error}"), false),
        };
        tracing::error!(source = %name, "{why}");
        host.health(&name, Health::Failed { why });
        if for_good || !pause(&*clock, &mut failures, &stop).await {
            return;
        }
        tracing::info!(source = %name, "starting again");
    }
}

async fn serve_metrics(listen: String, served: Served, clock: Arc<dyn Clock>, stop: CancellationToken) {
    match MetricsServer::bind(&listen).await {
        Ok(server) => {
            tracing::info!(%listen, "metrics at /metrics, health at /health, a page to look at at /status.html");
            let (monitor, pace) = (served.monitor.clone(), clock.clone());
            let look = async move {
                loop {
                    pace.sleep(SAMPLE_EVERY).await;
                    monitor.sample();
                }
            };
            tokio::select! {
                () = server.serve(served, clock, stop.cancelled_owned()) => {}
                () = look => {}
            }
        }
        // Metrics are not worth an agent's start.
        Err(error) => tracing::error!("{}: {error} (hint: {})", error.slug(), error.hint()),
    }
}

/// `false`: stopped meanwhile.
async fn pause(clock: &dyn Clock, failures: &mut Failures, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = clock.sleep(failures.pause()) => true,
        () = stop.cancelled() => false,
    }
}
