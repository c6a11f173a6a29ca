//! The source `m365_audit`: the unified audit log of a Microsoft 365 tenant.
//!
//! The crate `m365-audit` reads the feed: subscriptions, windows, pages, blobs, quota, duplicates, state. What is Vector's
//! is here: `config` and `options` have what an operator writes, `host` gives Vector to the library (events, acknowledgements,
//! telemetry), and this file starts and ends the source.

mod config;
mod host;
mod options;
mod problems;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::stream::{FuturesUnordered, StreamExt as _};
use m365_audit::{
    Health, Host, M365Audit, Source as _, SourceConfig as Settings, SourceError, SqliteStore,
    StateError, SystemClock, values::Actionable as _,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vector_lib::{
    config::{LegacyKey, LogNamespace},
    lookup::owned_value_path,
    schema::{Definition, meaning},
    shutdown::ShutdownSignal,
};
use vrl::value::{Kind, kind::Collection};

pub use self::config::M365AuditConfig;
use self::{
    host::{Outstanding, VectorHost},
    options::Format,
};
use crate::{
    SourceSender,
    config::{DataType, SourceConfig, SourceContext, SourceOutput, log_schema},
    internal_events::M365AuditStateError,
    sources::Source,
};

/// Pauses between two tries to open the state or to start the source again.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

#[async_trait::async_trait]
#[typetag::serde(name = "m365_audit")]
impl SourceConfig for M365AuditConfig {
    async fn build(&self, cx: SourceContext) -> crate::Result<Source> {
        let name: Arc<str> = cx.key.id().into();
        let settings = self.settings(&name, &cx.proxy)?;
        for problem in settings.warnings(&name) {
            warn!(
                message = "The configuration looks like a mistake.",
                %problem,
                internal_log_rate_limit = false,
            );
        }
        let runner = Runner {
            endpoint: self.endpoint(&settings),
            acknowledged: cx.do_acknowledgements(self.acknowledgements),
            state_dir: cx
                .globals
                .resolve_and_make_data_subdir(self.data_dir.as_ref(), cx.key.id())?,
            namespace: cx.log_namespace(self.log_namespace),
            name,
            settings,
        };
        Ok(Box::pin(runner.run(cx.out, cx.shutdown)))
    }

    fn outputs(&self, global_log_namespace: LogNamespace) -> Vec<SourceOutput> {
        let namespace = global_log_namespace.merge(self.log_namespace);
        let event = Kind::object(Collection::any());
        let mut definition = Definition::new_with_default_metadata(event, [namespace]);
        // The fields of the other formats are not known as well, or by these names.
        if self.format == Format::Native {
            let is_legacy = namespace == LogNamespace::Legacy;
            definition = definition
                .with_event_field(
                    &owned_value_path!("timestamp"),
                    Kind::timestamp(),
                    is_legacy.then_some(meaning::TIMESTAMP),
                )
                .with_event_field(
                    &owned_value_path!("content_created"),
                    Kind::timestamp().or_undefined(),
                    None,
                )
                .with_event_field(
                    &owned_value_path!("severity"),
                    Kind::bytes(),
                    Some(meaning::SEVERITY),
                );
        }
        let definition = definition
            .with_source_metadata(
                Self::NAME,
                log_schema()
                    .timestamp_key()
                    .cloned()
                    .map(LegacyKey::InsertIfEmpty),
                &owned_value_path!("timestamp"),
                Kind::timestamp(),
                Some(meaning::TIMESTAMP),
            )
            .with_standard_vector_source_metadata();
        vec![SourceOutput::new_maybe_logs(DataType::Log, definition)]
    }

    fn can_acknowledge(&self) -> bool {
        true
    }
}

/// A source from its start to its end.
struct Runner {
    name: Arc<str>,
    settings: Settings,
    endpoint: String,
    acknowledged: bool,
    state_dir: PathBuf,
    namespace: LogNamespace,
}

impl Runner {
    async fn run(self, out: SourceSender, shutdown: ShutdownSignal) -> Result<(), ()> {
        if !self.acknowledged {
            warn!(
                message = "No sink behind this source acknowledges: its position moves when Vector has events in memory, and what a crash takes from there is lost. Set `acknowledgements.enabled` on the sinks or globally.",
                internal_log_rate_limit = false,
            );
        }
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (settle, mut waiting) = mpsc::unbounded_channel::<Outstanding>();
        let work = self.work(out, settle, stop);
        let mut outstanding = FuturesUnordered::new();
        // Held until the end: Vector takes its drop for the end of this source.
        let mut _token = None;
        tokio::pin!(shutdown, work);
        // One task: the library's work, Vector's answers and its wish to end.
        loop {
            tokio::select! {
                // Dropping the rest refuses it: the library waited for the answers as long as a stop may take.
                ended = &mut work => return ended,
                Some(batch) = waiting.recv() => outstanding.push(batch.settled()),
                Some(()) = outstanding.next() => {}
                token = &mut shutdown, if _token.is_none() => {
                    _token = Some(token);
                    stopped.cancel();
                }
            }
        }
    }

    /// Reads until `stop`, or until nothing takes the events any more, which is an error.
    async fn work(
        self,
        out: SourceSender,
        settle: mpsc::UnboundedSender<Outstanding>,
        stop: CancellationToken,
    ) -> Result<(), ()> {
        let Some(state) = self.open_state(&stop).await else {
            return Ok(());
        };
        info!(
            message = "Reading the audit log.",
            tenant = %self.settings.tenant_id,
            state = %self.state_dir.display(),
        );
        let vector = VectorHost::new(&self, out, Arc::new(state), settle, stop.clone());
        let closed = vector.closed();
        let host: Arc<dyn Host> = Arc::new(vector);
        let mut delay = RETRY_DELAY_MIN;
        while !stop.is_cancelled() {
            let source = M365Audit::new(
                Arc::clone(&self.name),
                self.settings.clone(),
                SystemClock::new(),
            );
            let Err(error) = Box::new(source).run(Arc::clone(&host), stop.clone()).await else {
                continue;
            };
            let why = format!("{}: {error} (hint: {})", error.slug(), error.hint());
            host.health(&self.name, Health::Failed { why });
            if matches!(
                error,
                SourceError::State {
                    source: StateError::Conflict { .. },
                    ..
                }
            ) {
                // Another writer owns the tenant. Ending would end all of Vector, so the others go on without us.
                stop.cancelled().await;
            }
            pause(&mut delay, &stop).await;
        }
        // Closing the state waits for its last commit.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(host)).await {
            emit!(M365AuditStateError {
                code: "internal",
                error: &format!("closing it ended by a panic: {error}"),
            });
        }
        if closed.is_cancelled() {
            Err(())
        } else {
            Ok(())
        }
    }

    /// Opens the state as soon as it can be: not in `build`, since `vector validate` runs that beside a running Vector,
    /// and a disk that is full may be emptied.
    async fn open_state(&self, stop: &CancellationToken) -> Option<SqliteStore> {
        let (mut delay, mut told) = (RETRY_DELAY_MIN, String::new());
        while !stop.is_cancelled() {
            let dir = self.state_dir.clone();
            let (code, why) =
                match tokio::task::spawn_blocking(move || SqliteStore::open(dir)).await {
                    Ok(Ok(store)) => return Some(store),
                    Ok(Err(error)) => (error.slug(), format!("{error} (hint: {})", error.hint())),
                    Err(error) => ("internal", format!("opening it ended by a panic: {error}")),
                };
            // Once for as long as it is the same.
            if why != told {
                emit!(M365AuditStateError {
                    code: &code.replace('-', "_"),
                    error: &why,
                });
                told = why;
            }
            pause(&mut delay, stop).await;
        }
        None
    }
}

async fn pause(delay: &mut Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(*delay) => {}
        () = stop.cancelled() => {}
    }
    *delay = (*delay * 2).min(RETRY_DELAY_MAX);
}
