//! Work of a source that a command asks for, `backfill` or `heal`: inside the running process, or alone when none runs.
//!
//! Owns the conversation and the signals; what is asked for, drawn and printed is the command's.

use std::future::Future;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::keeping::keeping;
use super::{Failure, logging, opened, run};
use crate::checkpoint::journal::Keeping;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, LogConfig};
use crate::hosts::embedded::EmbeddedHost;
use crate::hosts::embedded::control::{Client, Say, What};
use crate::model::{Actionable, TenantId, Timestamp};
use crate::source::M365Audit;
use crate::source::requests::{QueuedRequest, WorkRequest};

/// Shown this often on a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// A sink gets this long at the end to write what it has.
const SINK_GRACE: Duration = Duration::from_secs(8);

/// What the process said.
pub(super) enum WorkNews<Ended> {
    /// How far it has come; it was drawn.
    Meanwhile,
    /// How it ended.
    Ended(Ended),
    /// An answer to another question.
    Other(Say),
}

pub(super) fn tenant(text: &str) -> Result<TenantId, String> {
    text.parse().map_err(|error: crate::model::NotAGuid| error.to_string())
}

pub(super) fn whole_second(time: Timestamp) -> Timestamp {
    crate::plan::floor_to_second(time)
}

/// The names of the sources that a command is about.
pub(super) fn meant(config: &Config, source: Option<&str>, tenant: Option<&TenantId>) -> Result<Vec<String>, Failure> {
    let usage = |message: String, exit| Failure { message, exit };
    if let Some(name) = source
        && !config.sources.contains_key(name)
    {
        let known = config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!("source-unknown: no source is named `{name}`\n  hint: there are: {known}");
        return Err(usage(message, Exit::Usage));
    }
    let names: Vec<String> = config
        .sources
        .iter()
        .filter(|(name, _)| source.is_none_or(|wanted| wanted == *name))
        .filter(|(_, source)| tenant.is_none_or(|wanted| *wanted == source.tenant_id))
        .map(|(name, _)| name.clone())
        .collect();
    if names.is_empty() {
        let known = config.sources.values().map(|s| s.tenant_id.to_string()).collect::<Vec<_>>().join(", ");
        let tenant = tenant.map(ToString::to_string).unwrap_or_default();
        let message = format!("source-unknown: no source reads tenant `{tenant}`\n  hint: there are: {known}");
        return Err(usage(message, Exit::Usage));
    }
    Ok(names)
}

/// Inside the running process. `hear` draws what comes meanwhile; `stopped` is said where it is not waited for.
pub(super) async fn inside<Ended>(
    mut client: Client,
    question: What,
    stopped: &str,
    mut hear: impl FnMut(Say) -> WorkNews<Ended>,
) -> Result<Ended, Failure> {
    let mut signals = run::ProcessSignals::new()?;
    client.ask(question).await?;
    let mut stopping = false;
    loop {
        let said = tokio::select! {
            said = client.next() => said,
            () = signals.next_stop() => {
                if stopping {
                    return Err(Failure { message: stopped.to_owned(), exit: Exit::Left });
                }
                // The process saves how far it came and says so.
                stopping = true;
                client.hang_up().await?;
                continue;
            }
        };
        match said? {
            Say::Refused(refusal) => return Err(refusal.into()),
            said => match hear(said) {
                WorkNews::Meanwhile => {}
                WorkNews::Ended(ended) => return Ok(ended),
                WorkNews::Other(other) => {
                    return Err(Failure::internal(format!("an answer to another question: {other:?}")));
                }
            },
        }
    }
}

/// What is to be done alone.
pub(super) struct Alone<'a, Q> {
    pub config: &'a Config,
    /// The source.
    pub name: &'a str,
    pub ask: Q,
    /// Whether anything is delivered.
    pub delivers: bool,
    /// Said where the end is not waited for.
    pub stopped: &'a str,
}

/// In this process, when none runs: with the sinks of the source, and the state to itself.
pub(super) async fn alone<Q: WorkRequest, Work>(
    of: Alone<'_, Q>,
    work: impl FnOnce(M365Audit, Arc<EmbeddedHost>, QueuedRequest<Q>) -> Work,
    mut draw: impl FnMut(&Q::Progress),
) -> Result<Q::Ended, Failure>
where
    Work: Future<Output = Result<Q::Ended, Q::Error>>,
    Q::Error: Actionable,
    for<'e> Exit: From<&'e Q::Error>,
{
    let Alone { config, name, ask, delivers, stopped } = of;
    let Some(source) = config.sources.get(name).cloned() else {
        return Err(Failure::internal(format!("no source `{name}`")));
    };
    logging::install(&LogConfig { level: "warn".into(), ..config.log.clone() });
    let clock: Arc<dyn Clock> = SystemClock::new();
    let store = opened::alone(config)?;
    let memory = run::SinkMemory::load(&store).await?;
    let mut specs = Vec::new();
    if delivers {
        for (sink, entry) in &config.sinks {
            if entry.inputs.iter().any(|input| input == name) {
                specs.push(run::sink_spec(config, sink, &memory)?);
            }
        }
    }
    let host = Arc::new(EmbeddedHost::new(specs, memory.book.kept_in(store), clock.clone()));
    let stop = CancellationToken::new();
    let (begun, mut has_begun) = oneshot::channel();
    let (answer, _) = oneshot::channel();
    let asked = QueuedRequest { ask, begun, stop: stop.clone(), answer };
    let audit = M365Audit::new(name, source, clock.clone());
    let audit = match keeping(config) {
        // What is sealed meanwhile is sent by the next `run`.
        Some(keeping) => audit.with_receipts(Keeping { sends: false, ..keeping }),
        None => audit,
    };
    let mut work = std::pin::pin!(work(audit, host.clone(), asked));
    let mut signals = run::ProcessSignals::new()?;
    let mut progress = None;
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            () = clock.sleep(DRAW_EVERY) => {
                if progress.is_none() {
                    progress = has_begun.try_recv().ok();
                }
                if let Some(progress) = &progress {
                    draw(progress);
                }
            }
            closed = host.closed() => {
                tracing::warn!(sink = %closed.name, "the reader has gone ({}), stopping", closed.why);
                stop.cancel();
                break work.await;
            }
            () = signals.next_stop() => {
                if stop.is_cancelled() {
                    return Err(Failure { message: stopped.to_owned(), exit: Exit::Left });
                }
                stop.cancel();
            }
        }
    };
    host.shutdown(SINK_GRACE).await;
    ended.map_err(|error| Failure::of(&error, Exit::from(&error)))
}

/// A bar on standard error where that is a terminal, `template` behind the share that is done; `None` elsewhere. It has
/// more to say than [`Progress`](super::progress::Progress): numbers of the command's own.
pub(super) fn bar(source: &str, template: &str) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(&format!("{{prefix}} [{{bar:24}}] {{percent:>3}} %  {template}"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.set_prefix(source.to_owned());
        bar
    })
}
