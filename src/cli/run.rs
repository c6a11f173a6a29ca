//! `m365-audit run`: runs all sources of a configuration into their sinks.
//!
//! Owns the process: signals, reload, the order in which things start and stop. Sources run on tasks of their own, so
//! that one that fails does not stop another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::alike::Alike;
use super::exit::Exit;
use super::keeping::keeping;
use super::purge;
use super::seat::{ClusterSeat, refuse_in_cluster, warn_of_durability};
use super::service::Service;
use super::unopened::UnopenedSink;
use super::{Failure, loaded, logging, opened};
use crate::checkpoint::journal::Keeping;
use crate::checkpoint::moving::{self, Move};
use crate::clock::{Clock, SystemClock};
use crate::config::{ClusterConfig, Config, Problem, SinkConfig, SinkEntry};
use crate::delivery;
use crate::host::{Host, StateError, StateStore};
use crate::hosts::embedded::completeness::CompletenessReader;
use crate::hosts::embedded::control::{Backend, ControlRefusal, ControlServer, MoveAsked, PurgeAsked};
use crate::hosts::embedded::descriptors;
use crate::hosts::embedded::metrics_server::{MetricsServer, Readiness, Served};
use crate::hosts::embedded::notebook::Notebook;
use crate::hosts::embedded::recorder;
use crate::hosts::embedded::registry::{Registry, RunningSource};
use crate::hosts::embedded::selection::Selection;
use crate::hosts::embedded::sink::LOOK_EVERY;
use crate::hosts::embedded::status::{Monitor, SAMPLE_EVERY};
use crate::hosts::embedded::store::{DataDir, SqliteStore};
use crate::hosts::embedded::{EmbeddedHost, SinkSpec};
use crate::hosts::postgres::PostgresStore;
use crate::hosts::postgres::leases::{Ending, LeaseOrder};
use crate::hosts::{file, open_sink, stdout};
use crate::model::{Actionable, TenantId};
use crate::source::checkpoints::RECEIPTS;
use crate::source::fleet::Fleet;
use crate::source::{M365Audit, Report, Source, SourceError, aside, backfill, heal};

/// A sink that is replaced or stopped gets this long to write its queue.
const SINK_GRACE: Duration = Duration::from_secs(8);
/// From the first signal to the end, at most.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// One full pass from the origin of each stream, then end
    #[arg(long)]
    pub once: bool,
    /// End when standard input ends, for parents that cannot send a signal
    #[arg(long)]
    pub stop_on_stdin_eof: bool,
}

/// A sink that could not be opened is tried again this often.
const OPEN_AGAIN_EVERY: Duration = Duration::from_secs(5);

/// With fewer connections to Microsoft than these tenants wait for each other.
const FEW_CONNECTIONS: usize = 256;

type SourceEnd = (String, Result<Report, SourceError>);

/// A source that was started, configured in [`Process::config`].
struct StartedSource {
    tenant: TenantId,
    stop: CancellationToken,
    /// Whether it has ended by itself; a reload starts it again.
    ended: bool,
}

struct Process {
    path: PathBuf,
    config: Config,
    clock: Arc<dyn Clock>,
    host: Arc<EmbeddedHost>,
    sources: BTreeMap<String, StartedSource>,
    tasks: JoinSet<SourceEnd>,
    fleet: Fleet,
    once: bool,
    worst: Exit,
    registry: Registry,
    moves: mpsc::Receiver<MoveAsked>,
    purges: mpsc::Receiver<PurgeAsked>,
    /// The state under `data_dir`; `None` in a cluster.
    store: Option<Arc<SqliteStore>>,
    memory: SinkMemory,
    /// Sinks that the last reload could not open, and why. They are tried again.
    unopened: BTreeMap<String, String>,
    receipts: Option<Keeping>,
    service: Service,
    alike: Alike,
    /// This process's place in the cluster.
    cluster: Option<ClusterSeat>,
}

/// The data that sinks keep across restarts.
pub(super) struct SinkMemory {
    pub(super) book: Notebook,
    state_is_new: bool,
}

impl SinkMemory {
    /// None: in a cluster a tenant, and with it the sinks' data, may move to another process.
    fn none() -> Self {
        Self { book: Notebook::default(), state_is_new: false }
    }

    /// Loads the data that an earlier run left in `store`.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) async fn load(store: &SqliteStore) -> Result<Self, Failure> {
        let book = Notebook::load(store).await.map_err(Failure::of_state)?;
        Ok(Self { book, state_is_new: store.is_new() })
    }
}

/// Runs until a signal, a closed pipe, or (`--once`) the end of the pass.
///
/// # Errors
/// When it could not start; later faults decide the exit code.
pub async fn run(args: RunArgs) -> Result<Exit, Failure> {
    let (config, files) = loaded::load_to_run_once_there(&args.config).await?;
    let log = logging::install(&config.log);
    log.alike.set_tenants(config.sources.len());
    let counting = tokio::spawn(log.alike.clone().keep_writing());
    files.into_iter().chain(config.warnings()).for_each(|warning| warn_of(&warning));
    let clock: Arc<dyn Clock> = SystemClock::new();
    // The control socket does not exist yet: only the log can report a file system that does not answer.
    let waited_for = if config.cluster.is_some() { Some(open_state(&config).await?) } else { None };
    let slow = warn_when_slow(clock.clone());
    let stop = CancellationToken::new();
    let location = if let Some(location) = waited_for { location } else { open_state(&config).await? };
    let StateLocation { state, own: store, shared, memory, data_dir: _data_dir } = location;
    // The owner of the folder's lock may create the key in it.
    let receipts = keeping(&config);
    if config.cluster.is_some() {
        refuse_in_cluster(args.once, &config, receipts.as_ref())?;
    }
    let specs = config.sinks.keys().map(|name| sink_spec(&config, name, &memory)).collect::<Result<Vec<_>, _>>()?;
    slow.abort();
    let host = Arc::new(EmbeddedHost::new(specs, state, clock.clone()));
    let watched = store.clone().map(|store| {
        let (host, clock, stop) = (host.clone(), clock.clone(), stop.clone());
        tokio::spawn(async move { store.watch_files(&*clock, stop, |why| host.store_trouble(why)).await })
    });
    let recorded = recorder::install().map_err(|e| Failure::internal(e.to_string()))?;
    let registry = Registry::default();
    let (move_asked, moves) = mpsc::channel(1);
    let (purge_asked, purges) = mpsc::channel(1);
    let monitor = Arc::new(Monitor::new(recorded, host.report(), log.recent, clock.clone()));
    let readiness = Readiness::new(config.cluster.is_some());
    let metrics = serve_metrics(&config, &monitor, &registry, &host, &readiness, &stop).await?;
    let backend = Backend {
        registry: registry.clone(),
        monitor: monitor.clone(),
        moves: move_asked,
        purges: purge_asked,
        exit_of: |error| Exit::from(error) as u8,
        heal_exit_of: |error| Exit::from(error) as u8,
        clock: clock.clone(),
    };
    let control = serve_control(&config, backend, monitor, &stop);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), sources = config.sources.len(), sinks = config.sinks.len(),
        data_dir = %config.data_dir.display(), once = args.once, "started"
    );

    let mut fleet = Fleet::bounded(connections_bound()).reading_at_most(config.catch_up_tenants_max);
    let cluster = shared.map(|(cluster, store)| ClusterSeat::take(&cluster, store, &config, &host, &clock));
    if let Some(seat) = &cluster {
        fleet = fleet.while_allowed(seat.may_ask());
        readiness.joins(seat.is_member());
    }
    let mut process = Process {
        path: args.config,
        config,
        clock,
        host,
        sources: BTreeMap::new(),
        tasks: JoinSet::new(),
        fleet,
        once: args.once,
        worst: Exit::Done,
        registry,
        moves,
        purges,
        store,
        memory,
        unopened: BTreeMap::new(),
        receipts,
        service: Service::find(),
        alike: log.alike.clone(),
        cluster,
    };
    if process.cluster.is_none() {
        for name in process.config.sources.keys().cloned().collect::<Vec<_>>() {
            process.start(name);
        }
    }
    let exit = process.until_end(args.stop_on_stdin_eof).await?;
    stop.cancel();
    for listener in metrics.into_iter().chain([control]).chain(watched) {
        let _ = tokio::time::timeout(Duration::from_secs(1), listener).await;
    }
    counting.abort();
    log.alike.write(true);
    Ok(exit)
}

/// Where the state is.
struct StateLocation {
    state: Arc<dyn StateStore>,
    /// Under `data_dir`.
    own: Option<Arc<SqliteStore>>,
    /// In the database of a cluster.
    shared: Option<(ClusterConfig, PostgresStore)>,
    memory: SinkMemory,
    /// A member stores nothing there, but no other process may take its socket.
    data_dir: Option<DataDir>,
}

async fn open_state(config: &Config) -> Result<StateLocation, Failure> {
    let Some(cluster) = &config.cluster else {
        let store = Arc::new(SqliteStore::open(&config.data_dir)?);
        let memory = SinkMemory::load(&store).await?;
        let state = memory.book.kept_in(store.clone());
        return Ok(StateLocation { state, own: Some(store), shared: None, memory, data_dir: None });
    };
    let data_dir = Some(DataDir::take(&config.data_dir)?);
    let store = opened::shared_once_there(cluster).await?;
    warn_of_durability(&store).await;
    let (state, shared) = (Arc::new(store.clone()), Some((cluster.clone(), store)));
    Ok(StateLocation { state, own: None, shared, memory: SinkMemory::none(), data_dir })
}

impl Process {
    async fn until_end(mut self, stop_on_stdin_eof: bool) -> Result<Exit, Failure> {
        let mut signals = ProcessSignals::new()?;
        let mut stdin_end = std::pin::pin!(async move {
            if stop_on_stdin_eof { wait_for_stdin_end().await } else { std::future::pending().await }
        });
        let mut reader_gone = std::pin::pin!(stdout::reader_gone());
        self.service.ready(&self.standing());
        let mut beats = self.service.beat().map(tokio::time::interval);
        let mut tries = tokio::time::interval(OPEN_AGAIN_EVERY);
        tries.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = beat(&mut beats) => self.service.alive(),
                _ = tries.tick(), if !self.unopened.is_empty() => self.open_again().await,
                // In a cluster a process may have no tenant for a while.
                ended = self.tasks.join_next(), if self.cluster.is_none() || !self.tasks.is_empty() => match ended {
                    Some(Ok((name, result))) => self.ended(&name, result),
                    Some(Err(error)) => {
                        tracing::error!("internal: a source ended by a panic: {error}");
                        self.worst = self.worst.max(Exit::Internal);
                    }
                    None if self.cluster.is_some() => {}
                    None => break,
                },
                order = ClusterSeat::next(&mut self.cluster) => if self.obey(order).await { break },
                what = signals.next() => match what {
                    SignalRequest::Reload => {
                        self.service.reloading();
                        self.reload().await;
                        self.service.ready(&self.standing());
                    }
                    SignalRequest::Stop => break,
                    SignalRequest::Quit => return Ok(Exit::Done),
                },
                Some(asked) = self.moves.recv() => self.moved(asked).await,
                Some(asked) = self.purges.recv() => self.purge(asked).await,
                closed = self.host.closed() => {
                    tracing::info!(sink = %closed.name, "the reader has gone ({}), stopping", closed.why);
                    break;
                }
                () = &mut reader_gone, if self.writes_stdout() => {
                    tracing::info!("nobody reads standard output any more, stopping");
                    break;
                }
                () = &mut stdin_end => {
                    tracing::info!("standard input has ended, stopping");
                    break;
                }
            }
        }
        self.service.stopping();
        let finished = tokio::time::timeout(STOP_LIMIT, async {
            for running in self.sources.values() {
                running.stop.cancel();
            }
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok((name, result)) = ended {
                    self.ended(&name, result);
                }
            }
            if let Some(seat) = self.cluster.take() {
                seat.leave().await;
            }
            self.host.shutdown(SINK_GRACE).await;
        });
        tokio::select! {
            finished = finished => if finished.is_err() {
                tracing::warn!("not everything ended in time: what the sinks did not confirm is fetched again at the next start");
            },
            _ = signals.next_stop() => tracing::warn!("stopped at once: what the sinks did not confirm is fetched again at the next start"),
        }
        Ok(self.worst)
    }

    fn writes_stdout(&self) -> bool {
        self.config.sinks.values().any(|entry| matches!(entry.sink, SinkConfig::Stdout(_)))
    }

    /// One line for `systemctl status`.
    fn standing(&self) -> String {
        format!("{} sources into {} sinks", self.config.sources.len(), self.config.sinks.len())
    }

    /// Starts a source of the configuration.
    fn start(&mut self, name: String) {
        let Some(config) = self.config.sources.get(&name).cloned() else { return };
        let stop = CancellationToken::new();
        let (counter, request_queue) = backfill::request_queue();
        let (heal, heal_queue) = heal::requests::request_queue();
        let (retries, asked) = aside::asking();
        let tenant = config.tenant_id.clone();
        let entry = RunningSource {
            tenant: config.tenant_id.clone(),
            content_types: config.content_types.clone(),
            max_requests_per_minute: config.max_requests_per_minute,
            counter,
            heal,
            backfill: None,
            retries,
        };
        self.registry.put(&name, entry);
        tracing::info!(
            source = %name, tenant = %config.tenant_id, content_types = ?config.content_types, poll_interval_secs = config.poll_interval_secs,
            backfill_secs = config.backfill_secs, "source started"
        );
        let source = M365Audit::new(name.as_str(), config, self.clock.clone())
            .with_backfill_queue(request_queue)
            .with_heal_queue(heal_queue)
            .with_retries(asked)
            .in_fleet(&self.fleet);
        let source = match &self.receipts {
            Some(keeping) => source.with_receipts(keeping.clone()),
            None => source,
        };
        let source: Box<dyn Source> = Box::new(if self.once { source.once() } else { source });
        let host: Arc<dyn Host> = match &self.cluster {
            Some(seat) => seat.host.clone(),
            None => self.host.clone(),
        };
        let running = source.run(host, stop.clone());
        self.sources.insert(name.clone(), StartedSource { tenant, stop, ended: false });
        self.tasks.spawn(async move { (name, running.await) });
    }

    fn ended(&mut self, name: &str, result: Result<Report, SourceError>) {
        let ending = match &result {
            Ok(_) => None,
            Err(SourceError::State { source: StateError::Conflict { .. }, .. }) => Some(Ending::Conflict),
            Err(_) => Some(Ending::Failed),
        };
        let exit = match result {
            Ok(report) => {
                for left in &report.left {
                    tracing::warn!(source = %name, "left: {}", left.why);
                }
                report.worst().map_or(Exit::Done, Exit::from)
            }
            // In a cluster this is not a fault: another member took the tenant while this one was silent. This member
            // reads it again if it gets the lease.
            Err(SourceError::State { tenant, source: StateError::Conflict { .. } }) if self.cluster.is_some() => {
                tracing::warn!(source = %name, %tenant, "lease-conflict: another member wrote the tenant's state; what is here is given up, nothing is lost");
                Exit::Done
            }
            Err(error) => {
                tracing::error!(source = %name, "{}: {error} (hint: {})", error.slug(), error.hint());
                // In a cluster it begins again, here or elsewhere, so that it is not how this process ends.
                if self.cluster.is_some() { Exit::Done } else { Exit::from(&error) }
            }
        };
        self.worst = self.worst.max(exit);
        let tenant = self.sources.get_mut(name).map(|running| {
            running.ended = true;
            running.tenant.clone()
        });
        tracing::info!(source = %name, "source ended");
        if let (Some(tenant), Some(seat)) = (tenant, &mut self.cluster) {
            let reads = self.sources.values().any(|running| running.tenant == tenant && !running.ended);
            if seat.ended(&tenant, reads, ending) {
                self.forget(name);
            }
        }
    }

    /// Removes a source that has ended from the status.
    fn forget(&mut self, name: &str) {
        if let Some(running) = self.sources.remove(name) {
            // If the tenant is still read, its source reports that when it starts again.
            crate::metrics::source_removed(name, &running.tenant);
        }
        self.registry.remove(name);
        self.host.forget_source(name);
    }

    /// Carries out an order of the leases; `true`: the process ends.
    async fn obey(&mut self, order: LeaseOrder) -> bool {
        match order {
            LeaseOrder::Start(tenant) => {
                let names: Vec<String> =
                    self.config.sources.iter().filter(|(_, s)| s.tenant_id == tenant).map(|(n, _)| n.clone()).collect();
                for name in names {
                    if self.sources.get(&name).is_none_or(|running| running.ended) {
                        self.start(name);
                    }
                }
            }
            LeaseOrder::Stop(tenants, answer) => {
                let over =
                    self.sources.iter().filter(|(_, running)| running.ended && tenants.contains(&running.tenant));
                for name in over.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    self.forget(&name);
                }
                let mut waiting = BTreeSet::new();
                for running in self.sources.values().filter(|running| !running.ended) {
                    if tenants.contains(&running.tenant) {
                        running.stop.cancel();
                        waiting.insert(running.tenant.clone());
                    }
                }
                if let Some(seat) = &mut self.cluster {
                    seat.stopping(waiting, answer);
                }
            }
            LeaseOrder::Reload => self.reload().await,
            LeaseOrder::End => {
                self.worst = self.worst.max(Exit::State);
                return true;
            }
        }
        false
    }

    /// Stops these sources and waits until they have ended.
    async fn stop_sources(&mut self, names: &[String]) {
        // A source that ended by itself need not be awaited.
        let mut waiting: Vec<&String> =
            names.iter().filter(|name| self.sources.get(*name).is_some_and(|running| !running.ended)).collect();
        for name in &waiting {
            if let Some(running) = self.sources.get(*name) {
                running.stop.cancel();
            }
        }
        while !waiting.is_empty() {
            let Some(ended) = self.tasks.join_next().await else { break };
            if let Ok((name, result)) = ended {
                self.service.alive();
                waiting.retain(|w| **w != name);
                self.ended(&name, result);
            }
        }
    }

    /// Moves positions of a source. No task may write the tenant's state meanwhile, so its sources pause.
    async fn moved(&mut self, asked: MoveAsked) {
        let MoveAsked { source, content_types, from, yes, answer } = asked;
        let Some(tenant) = self.sources.get(&source).map(|running| running.tenant.clone()) else { return };
        let paused: Vec<String> =
            self.sources.iter().filter(|(_, running)| running.tenant == tenant).map(|(name, _)| name.clone()).collect();
        self.stop_sources(&paused).await;
        let wanted = Move { tenant, content_types, to: from, may_pass_over: yes };
        let result = moving::apply(&self.host.state(), &wanted, self.clock.now()).await;
        match &result {
            Ok(moved) => {
                tracing::info!(%source, "positions moved by hand: {}", moved.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
            Err(error) => tracing::warn!(%source, "positions not moved: {error}"),
        }
        for name in paused {
            self.start(name);
        }
        let _ = answer.send(match result {
            Ok(moved) => Ok(moved.iter().map(ToString::to_string).collect()),
            Err(error) => Err(ControlRefusal::of(&error, Exit::from(&error) as u8)),
        });
    }

    /// Removes the data of a tenant that the present configuration no longer names.
    async fn purge(&mut self, PurgeAsked { tenant, answer }: PurgeAsked) {
        self.reload().await;
        let read = self.config.sources.iter().find(|(_, source)| source.tenant_id == tenant);
        let result = match read {
            Some((name, _)) => {
                Err(ControlRefusal::of(&purge::StillRead { name: name.clone(), tenant }, Exit::Config as u8))
            }
            None => {
                let Some(store) = self.store.clone() else {
                    let _ = answer.send(Err(ControlRefusal::of(&purge::InCluster, Exit::State as u8)));
                    return;
                };
                let mut work = std::pin::pin!(purge::purge(&store, &self.config.data_dir, &tenant));
                let done = loop {
                    tokio::select! {
                        done = &mut work => break done,
                        () = self.clock.sleep(LOOK_EVERY) => self.service.alive(),
                    }
                };
                done.map_err(|error| ControlRefusal::of(&error, Exit::State as u8))
            }
        };
        let _ = answer.send(result);
    }

    /// The configuration, read again from its files; `None` when it is invalid, which is logged.
    async fn read_again(&self) -> Option<Config> {
        let new = match loaded::load_to_run(&self.path).await {
            Ok((new, files)) => {
                files.iter().for_each(warn_of);
                new
            }
            Err(error) => {
                tracing::error!("not reloaded, the running configuration stays: {error}");
                return None;
            }
        };
        let now = &self.config;
        if (&new.data_dir, &new.control_socket, &new.cluster, &new.metrics, &new.log)
            != (&now.data_dir, &now.control_socket, &now.cluster, &now.metrics, &now.log)
        {
            tracing::warn!(
                "`data_dir`, `control_socket`, `cluster`, `metrics` and `log` change at a restart only; everything else is reloaded"
            );
        }
        Some(new)
    }

    /// Opens a sink of this configuration. If that fails, its sources wait, and it is tried again until it succeeds.
    async fn put_sink(&mut self, config: &Config, name: &str) {
        let error = match sink_spec(config, name, &self.memory) {
            Ok(spec) => {
                self.host.put_sink(spec, SINK_GRACE).await;
                if self.unopened.remove(name).is_some() {
                    tracing::info!(sink = %name, "the sink is open, its sources go on");
                }
                return;
            }
            Err(error) => error.message.replace("\n  ", "; "),
        };
        if self.unopened.get(name) == Some(&error) {
            return;
        }
        tracing::error!(sink = %name, "the sink cannot be opened, its sources wait, and it is tried again: {error}");
        if let Some(entry) = config.sinks.get(name) {
            let (inputs, selection) = (inputs_of(config, name, entry), Selection::of(&entry.selection));
            let sink = Box::new(UnopenedSink::new(error.clone()));
            self.host.put_sink(SinkSpec { name: name.to_owned(), inputs, selection, sink }, Duration::ZERO).await;
        }
        self.unopened.insert(name.to_owned(), error);
    }

    /// Tries the sinks again that could not be opened.
    async fn open_again(&mut self) {
        let config = self.config.clone();
        for name in self.unopened.keys().cloned().collect::<Vec<_>>() {
            self.service.alive();
            self.put_sink(&config, &name).await;
        }
    }

    /// Applies the present configuration file; one with problems changes nothing.
    async fn reload(&mut self) {
        let Some(new) = self.read_again().await else { return };
        // Sources keep receipts, so a change of `[receipts]` changes all sources.
        let others = new.receipts != self.config.receipts;
        if others {
            self.receipts = keeping(&Config { data_dir: self.config.data_dir.clone(), ..new.clone() });
        }
        // Sources that change are stopped first, so that nothing is routed by two configurations at once.
        let changed: Vec<String> = self
            .sources
            .iter()
            .filter(|(name, running)| {
                others || running.ended || new.sources.get(*name) != self.config.sources.get(*name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        self.stop_sources(&changed).await;
        for name in &changed {
            if let Some(running) = self.sources.remove(name) {
                // If the tenant is still read, its source reports that when it starts again below.
                crate::metrics::source_removed(name, &running.tenant);
            }
            self.registry.remove(name);
            if !new.sources.contains_key(name) {
                self.host.forget_source(name);
            }
        }
        for (name, entry) in &new.sinks {
            // A sink may take its whole grace period to end, so the watchdog is fed after each.
            self.service.alive();
            let known = self.config.sinks.get(name);
            match known {
                Some(known) if known.sink == entry.sink && !self.unopened.contains_key(name) => {
                    self.host.set_inputs(name, inputs_of(&new, name, entry));
                    self.host.set_selection(name, Selection::of(&entry.selection));
                }
                _ => {
                    self.host.stop_sink(name, SINK_GRACE).await;
                    // What stands in for it gets the inputs of this configuration.
                    self.unopened.remove(name);
                    self.put_sink(&new, name).await;
                }
            }
        }
        for name in self.config.sinks.keys().filter(|name| !new.sinks.contains_key(*name)) {
            self.service.alive();
            self.host.remove_sink(name, SINK_GRACE).await;
            self.unopened.remove(name);
        }
        self.fleet.set_reading_max(new.catch_up_tenants_max);
        self.alike.set_tenants(new.sources.len());
        self.config = Config { data_dir: self.config.data_dir.clone(), cluster: self.config.cluster.clone(), ..new };
        let held = self.cluster.as_ref().map(|seat| seat.publish_tenants(&self.config));
        for (name, source) in self.config.sources.clone() {
            // In a cluster only sources whose tenant this process has are started; the leases start the others.
            let is_ours = held.as_ref().is_none_or(|fence| fence.keeps(&source.tenant_id));
            if !self.sources.contains_key(&name) && is_ours {
                self.start(name);
            }
        }
        tracing::info!(sources = self.config.sources.len(), sinks = self.config.sinks.len(), "reloaded");
    }
}

fn warn_of(problem: &Problem) {
    let hint = problem.hint.as_ref().map(|h| format!(" (hint: {h})")).unwrap_or_default();
    tracing::warn!("{problem}{}{hint}", problem.place(None));
}

pub(super) fn sink_spec(config: &Config, name: &str, memory: &SinkMemory) -> Result<SinkSpec, Failure> {
    let entry = config.sinks.get(name).ok_or_else(|| Failure::internal(format!("no sink `{name}`")))?;
    let memory = file::Memory {
        sink: name.to_owned(),
        page: memory.book.page(name),
        clock: SystemClock::new(),
        state_is_new: memory.state_is_new,
    };
    let sink = open_sink(&entry.sink, memory)?;
    let selection = Selection::of(&entry.selection);
    Ok(SinkSpec { name: name.to_owned(), inputs: inputs_of(config, name, entry), selection, sink })
}

/// The inputs of a sink: the sources it names, and signed checkpoints if `[receipts] to` names it.
fn inputs_of(config: &Config, name: &str, entry: &SinkEntry) -> Vec<String> {
    let receipts = config.receipts.to.iter().any(|to| to == name).then(|| RECEIPTS.to_owned());
    entry.inputs.iter().cloned().chain(receipts).collect()
}

/// Listens on the control socket and samples the metrics at intervals, until `stop`. If the socket cannot be created,
/// the process still runs.
fn serve_control(
    config: &Config,
    backend: Backend,
    monitor: Arc<Monitor>,
    stop: &CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let socket = config.control_socket();
    let server = ControlServer::bind(&socket).map(|server| match socket.starts_with(&config.data_dir) {
        true => server,
        false => server.making_its_directory(),
    });
    if let Err(error) = &server {
        tracing::warn!("{}: {error} (hint: {})", error.slug(), error.hint());
    }
    let stop = stop.clone();
    tokio::spawn(async move {
        let clock = backend.clock.clone();
        let look = async {
            loop {
                clock.sleep(SAMPLE_EVERY).await;
                monitor.sample();
            }
        };
        let serve = async {
            match server {
                Ok(server) => server.serve(backend, stop.clone()).await,
                Err(_) => stop.cancelled().await,
            }
        };
        tokio::select! {
            () = serve => {}
            () = look => {}
        }
    })
}

/// Logs that the start takes long, until it is aborted.
fn warn_when_slow(clock: Arc<dyn Clock>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let began = clock.monotonic();
        loop {
            clock.sleep(delivery::SLOW_AFTER).await;
            let age = clock.monotonic().saturating_sub(began).as_secs();
            let hint = delivery::SLOW_HINT;
            tracing::warn!("state-slow: opening the state and the sinks has been under way for {age} s (hint: {hint})");
        }
    })
}

async fn serve_metrics(
    config: &Config,
    monitor: &Arc<Monitor>,
    registry: &Registry,
    host: &Arc<EmbeddedHost>,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<Option<tokio::task::JoinHandle<()>>, Failure> {
    let Some(metrics) = &config.metrics else { return Ok(None) };
    let server = MetricsServer::bind(&metrics.listen.to_string()).await?;
    tracing::info!(listen = %metrics.listen, "metrics at /metrics, health at /health, a page to look at at /status.html");
    let clock: Arc<dyn Clock> = SystemClock::new();
    let state = Arc::new(OnceLock::from(host.state()));
    let served = Served {
        monitor: monitor.clone(),
        registry: registry.clone(),
        completeness: CompletenessReader::new(state, clock.clone()),
        detail: metrics.detail,
        hosts: metrics.hosts.clone(),
        docs_url: metrics.docs_url.clone(),
        readiness: readiness.clone(),
    };
    Ok(Some(tokio::spawn(server.serve(served, clock, stop.clone().cancelled_owned()))))
}

/// The next beat for the watchdog; never resolves without one.
async fn beat(beats: &mut Option<tokio::time::Interval>) {
    match beats {
        Some(beats) => {
            beats.tick().await;
        }
        None => std::future::pending().await,
    }
}

enum SignalRequest {
    Stop,
    Reload,
    Quit,
}

/// How many connections to Microsoft all tenants together may have.
fn connections_bound() -> usize {
    let files = descriptors::limit();
    let connections = descriptors::for_connections(files);
    if connections < FEW_CONNECTIONS {
        tracing::warn!(
            files,
            connections,
            "few files may be open, so tenants wait for each other's connections (hint: raise the hard limit: \
             `LimitNOFILE` of the unit, `ulimit -Hn`)"
        );
    } else {
        tracing::debug!(files, connections, "connections to Microsoft are bounded");
    }
    connections
}

/// The signals this process listens to.
pub(super) struct ProcessSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
}

impl ProcessSignals {
    pub(super) fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(Failure::io);
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            quit: on(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Stop,
            _ = self.interrupt.recv() => SignalRequest::Stop,
            _ = self.hangup.recv() => SignalRequest::Reload,
            _ = self.quit.recv() => SignalRequest::Quit,
        }
    }

    /// Resolves at the first signal of any kind: for commands that have nothing to reload.
    pub(super) async fn any(&mut self) {
        self.next().await;
    }

    /// Resolves at the first signal that ends the process.
    pub(super) async fn next_stop(&mut self) {
        while let SignalRequest::Reload = self.next().await {}
    }
}

/// Resolves when standard input ends; data written to it meanwhile is discarded.
async fn wait_for_stdin_end() {
    use tokio::io::AsyncReadExt;
    let mut stdin = tokio::io::stdin();
    let mut sink = [0; 1024];
    while stdin.read(&mut sink).await.is_ok_and(|n| n > 0) {}
}

/// The configuration of `path`, or a failure with all its problems.
///
/// # Errors
/// All problems of the file.
pub fn load(path: &Path) -> Result<Config, Failure> {
    Ok(Config::load(path)?)
}
