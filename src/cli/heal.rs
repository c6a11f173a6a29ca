//! `m365-audit heal`: fills a range through Microsoft Graph, inside the running process or alone when none runs.
//!
//! Owns the arguments and what is shown of the progress. The work is [`crate::source::heal`]'s.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::backfill::{meant, tenant, whole_second};
use super::exit::Exit;
use super::keeping::keeping;
use super::moment::time;
use super::{Failure, loaded, logging, opened, requests, run};
use crate::checkpoint::journal::Keeping;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, LogConfig};
use crate::hosts::embedded::EmbeddedHost;
use crate::hosts::embedded::control::{Client, Say, What};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::source::M365Audit;
use crate::source::heal::desk::{Ask, Asked, Ended, Snapshot};

/// Shown this often on a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// A sink gets this long at the end to write what it has.
const SINK_GRACE: Duration = Duration::from_secs(8);
const STOPPED: &str = "stopped; the same command goes on";

/// Arguments of `heal`.
#[derive(Debug, clap::Args)]
pub struct HealArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Fill what happened from here on: RFC 3339 (2026-05-01T00:00:00Z), a date, or an age (25d, 12h)
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Timestamp,
    /// Until here, now when absent
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// Only this source, by its name in the configuration; all of them otherwise
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only the sources of this tenant
    #[arg(long, value_name = "GUID", value_parser = tenant)]
    tenant: Option<TenantId>,
    /// Only this content type (may be given more than once); all that the source reads otherwise
    #[arg(long, value_name = "TYPE")]
    content_type: Vec<ContentType>,
    /// Say how many searches it would take, and submit none
    #[arg(long)]
    dry_run: bool,
    /// Deliver again what was delivered already, instead of leaving it out
    #[arg(long)]
    again: bool,
}

/// Fills the range for every source meant, one after another.
///
/// # Errors
/// What kept it from being done. What could not be filled is printed and decides the exit code.
pub async fn heal(args: HealArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let config = loaded::load(&args.config).await?;
    let sources = meant(&config, args.source.as_deref(), args.tenant.as_ref())?;
    let ask = Ask {
        from: whole_second(args.from),
        to: args.to.map(whole_second),
        content_types: args.content_type.iter().map(|t| t.as_str().to_owned()).collect(),
        again: args.again,
        dry_run: args.dry_run,
    };
    let mut worst = Exit::Done;
    for source in sources {
        let ended = match requests::client(&config, &source).await? {
            Some(client) => inside(client, &source, ask.clone()).await?,
            None => alone(&config, &source, ask.clone()).await?,
        };
        worst = worst.max(tell(&source, &ended, out).map_err(Failure::io)?);
        if ended.interrupted {
            break;
        }
    }
    Ok(worst)
}

fn stopped() -> Failure {
    Failure { message: STOPPED.into(), exit: Exit::Left }
}

/// Inside the running process.
async fn inside(mut client: Client, source: &str, ask: Ask) -> Result<Ended, Failure> {
    let mut signals = run::Signals::new()?;
    let show = Show::new(source);
    client.ask(What::Heal { source: source.to_owned(), ask }).await?;
    let mut stopping = false;
    loop {
        let said = tokio::select! {
            said = client.next() => said,
            () = signals.next_stop() => {
                if stopping {
                    return Err(stopped());
                }
                // The process saves how far it came and says so.
                stopping = true;
                client.hang_up().await?;
                continue;
            }
        };
        match said? {
            Say::Healing(now) => show.draw(&now),
            Say::Healed(ended) => {
                show.end(&ended.progress);
                return Ok(ended);
            }
            Say::Refused(refusal) => return Err(refusal.into()),
            other => return Err(Failure::internal(format!("an answer to another question: {other:?}"))),
        }
    }
}

/// In this process, when none runs: with the sinks of the source, and the state to itself.
async fn alone(config: &Config, name: &str, ask: Ask) -> Result<Ended, Failure> {
    let Some(source) = config.sources.get(name).cloned() else {
        return Err(Failure::internal(format!("no source `{name}`")));
    };
    logging::install(&LogConfig { level: "warn".into(), ..config.log.clone() });
    let clock: Arc<dyn Clock> = SystemClock::new();
    let store = opened::alone(config)?;
    let memory = run::SinkMemory::load(&store).await?;
    let mut specs = Vec::new();
    if !ask.dry_run {
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
    let asked = Asked { ask, begun, stop: stop.clone(), answer };
    let audit = M365Audit::new(name, source, clock.clone());
    let audit = match keeping(config) {
        // What is sealed meanwhile is sent by the next `run`.
        Some(keeping) => audit.with_receipts(Keeping { sends: false, ..keeping }),
        None => audit,
    };
    let mut work = std::pin::pin!(audit.heal(host.clone(), asked));
    let mut signals = run::Signals::new()?;
    let show = Show::new(name);
    let mut progress = None;
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            () = clock.sleep(DRAW_EVERY) => {
                if progress.is_none() {
                    progress = has_begun.try_recv().ok();
                }
                if let Some(progress) = &progress {
                    show.draw(&progress.snapshot());
                }
            }
            closed = host.closed() => {
                tracing::warn!(sink = %closed.name, "the reader has gone ({}), stopping", closed.why);
                stop.cancel();
                break work.await;
            }
            () = signals.next_stop() => {
                if stop.is_cancelled() {
                    return Err(stopped());
                }
                stop.cancel();
            }
        }
    };
    host.shutdown(SINK_GRACE).await;
    let ended = ended.map_err(|error| Failure::of(&error, Exit::from(&error)))?;
    show.end(&ended.progress);
    Ok(ended)
}

/// Prints how it ended.
fn tell(source: &str, ended: &Ended, out: &mut dyn Write) -> std::io::Result<Exit> {
    if let Some((searches, left)) = ended.would_take {
        writeln!(
            out,
            "{source}: it would take {searches} searches, and two more for each that was cut; {left} may still be submitted today"
        )?;
        for note in &ended.notes {
            writeln!(out, "{source}: {note}")?;
        }
        return Ok(Exit::Done);
    }
    let Snapshot { searches, records, events, known, .. } = ended.progress;
    writeln!(
        out,
        "{source}: {searches} searches, {records} records, {events} events delivered, {known} left out as known before"
    )?;
    for note in &ended.notes {
        writeln!(out, "{source}: {note}")?;
    }
    for left in &ended.left {
        writeln!(out, "{source}: left: {left}")?;
    }
    if ended.interrupted {
        writeln!(out, "{source}: stopped before its end; the same command goes on")?;
    } else if !ended.left.is_empty() {
        writeln!(out, "{source}: not done; the same command tries again what was left")?;
    }
    Ok(if ended.interrupted || !ended.left.is_empty() { Exit::Left } else { Exit::Done })
}

/// A progress bar on standard error where that is a terminal, nothing elsewhere.
struct Show(Option<ProgressBar>);

impl Show {
    fn new(source: &str) -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3} %  {msg}, {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(source.to_owned());
            bar
        }))
    }

    fn draw(&self, now: &Snapshot) {
        let Some(bar) = &self.0 else { return };
        bar.set_length(now.span_secs.max(1));
        bar.set_position(now.done_secs);
        // Most of the time Graph searches, so that a rate of less than all of it says little.
        let each_second = now.records as f64 / bar.elapsed().as_secs_f64().max(1.0);
        bar.set_message(format!(
            "{} searches, {} under way, {} records, {each_second:.1}/s, {} events",
            now.searches, now.under_way, now.records, now.events
        ));
    }

    fn end(&self, last: &Snapshot) {
        if last.span_secs > 0 {
            self.draw(last);
        }
        if let Some(bar) = &self.0 {
            bar.abandon();
        }
    }
}
