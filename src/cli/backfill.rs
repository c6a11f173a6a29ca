//! `m365-audit backfill`: reads a range again, inside the running process or alone when none runs.
//!
//! Owns the arguments and what is shown of the progress. The reading is [`crate::source::backfill`]'s.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::keeping::keeping;
use super::moment::{span, time};
use super::{Failure, loaded, logging, opened, requests, run};
use crate::checkpoint::journal::Keeping;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, LogConfig};
use crate::hosts::embedded::control::{Client, Say, What};
use crate::hosts::embedded::{EmbeddedHost, SinkSpec};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::source::M365Audit;
use crate::source::backfill::{Ask, Asked, Ended, Snapshot};

/// Shown this often on a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// Speed is shown over this time.
const SPEED_OVER: Duration = Duration::from_secs(60);
/// A sink gets this long at the end to write what it has.
const SINK_GRACE: Duration = Duration::from_secs(8);

/// Arguments of `backfill`.
#[derive(Debug, clap::Args)]
pub struct BackfillArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Read what became available from here on: RFC 3339 (2026-05-01T00:00:00Z), a date, or an age (3d, 12h, 90m)
    #[arg(long, value_name = "TIME", value_parser = time, required_unless_present_any = ["resume", "discard"])]
    from: Option<Timestamp>,
    /// Until here, now when absent
    #[arg(long, value_name = "TIME", value_parser = time, requires = "from")]
    to: Option<Timestamp>,
    /// Only this source, by its name in the configuration; all of them otherwise
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only the sources of this tenant
    #[arg(long, value_name = "GUID", value_parser = tenant)]
    tenant: Option<TenantId>,
    /// Only this content type (may be given more than once); all that the source reads otherwise
    #[arg(long, value_name = "TYPE", requires = "from")]
    content_type: Vec<ContentType>,
    /// Deliver again what was delivered already, instead of leaving it out
    #[arg(long, requires = "from")]
    again: bool,
    /// Go on with a back-fill that is not done
    #[arg(long, conflicts_with_all = ["from", "discard"])]
    resume: bool,
    /// Give up a back-fill that is not done
    #[arg(long, conflicts_with = "from")]
    discard: bool,
}

pub(super) fn tenant(text: &str) -> Result<TenantId, String> {
    text.parse().map_err(|error: crate::model::NotAGuid| error.to_string())
}

/// Runs the back-fill of every source meant, one after another.
///
/// # Errors
/// What kept it from being done. What could not be read is printed and decides the exit code.
pub async fn backfill(args: BackfillArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let config = loaded::load(&args.config).await?;
    let sources = meant(&config, args.source.as_deref(), args.tenant.as_ref())?;
    let ask = match (args.from, args.resume, args.discard) {
        (_, true, _) => Ask::Resume,
        (_, _, true) => Ask::Discard,
        (Some(from), ..) => Ask::Range {
            from: whole_second(from),
            to: args.to.map(whole_second),
            content_types: args.content_type.iter().map(|t| t.as_str().to_owned()).collect(),
            again: args.again,
        },
        // clap requires one of them.
        (None, ..) => return Err(Failure { message: "usage: give --from".into(), exit: Exit::Usage }),
    };
    let mut worst = Exit::Done;
    for source in sources {
        let ended = match requests::client(&config, &source).await? {
            Some(client) => inside(client, &source, ask.clone()).await?,
            None => alone(&config, &source, ask.clone()).await?,
        };
        worst = worst.max(tell(&source, &ask, &ended, out).map_err(Failure::io)?);
        if ended.interrupted {
            break;
        }
    }
    Ok(worst)
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

/// Inside the running process.
async fn inside(mut client: Client, source: &str, ask: Ask) -> Result<Ended, Failure> {
    let mut signals = run::Signals::new()?;
    let mut show = Show::new(source, SystemClock::new());
    client.ask(What::Backfill { source: source.to_owned(), ask }).await?;
    let mut stopping = false;
    loop {
        let said = tokio::select! {
            said = client.next() => said,
            () = signals.next_stop() => {
                if stopping {
                    return Err(Failure { message: "stopped; the same command, or --resume, goes on".into(), exit: Exit::Left });
                }
                // The process saves how far it came and says so.
                stopping = true;
                client.hang_up().await?;
                continue;
            }
        };
        match said? {
            Say::Progress(now) => show.draw(&now),
            Say::Ended(ended) => {
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
    let mut specs: Vec<SinkSpec> = Vec::new();
    if ask != Ask::Discard {
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
    let mut work = std::pin::pin!(audit.backfill(host.clone(), asked));
    let mut signals = run::Signals::new()?;
    let mut show = Show::new(name, clock.clone());
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
                    return Err(Failure { message: "stopped; the same command, or --resume, goes on".into(), exit: Exit::Left });
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
fn tell(source: &str, ask: &Ask, ended: &Ended, out: &mut dyn Write) -> std::io::Result<Exit> {
    if *ask == Ask::Discard {
        writeln!(out, "{source}: the back-fill was given up")?;
        return Ok(Exit::Done);
    }
    let Snapshot { blobs, events, duplicates, bytes, requests, .. } = ended.progress;
    writeln!(
        out,
        "{source}: {blobs} blobs, {events} events delivered, {duplicates} left out as delivered before, {:.1} MB, {requests} requests",
        bytes as f64 / 1e6
    )?;
    for started in &ended.started {
        writeln!(
            out,
            "{source}: the subscription to `{started}` was off and has been started; `m365-audit run` keeps it on"
        )?;
    }
    for gone in &ended.gone {
        writeln!(out, "{source}: not listed by Microsoft: {gone}")?;
    }
    for left in &ended.left {
        writeln!(out, "{source}: left: {left}")?;
    }
    if ended.interrupted {
        writeln!(out, "{source}: stopped before its end; the same command, or --resume, goes on")?;
    } else if !ended.left.is_empty() {
        writeln!(out, "{source}: not done; the same command, or --resume, tries again what was left")?;
    }
    Ok(if ended.interrupted || !ended.left.is_empty() || !ended.gone.is_empty() { Exit::Left } else { Exit::Done })
}

/// A progress bar on a terminal, nothing elsewhere. It has more to say than [`Progress`](super::progress::Progress): the
/// quota, and a rate over the last minute.
struct Show {
    bar: Option<ProgressBar>,
    clock: Arc<dyn Clock>,
    begun: Duration,
    first: Option<u64>,
    seen: VecDeque<(Duration, Snapshot)>,
}

impl Show {
    fn new(source: &str, clock: Arc<dyn Clock>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3} %  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(source.to_owned());
            bar
        });
        let begun = clock.monotonic();
        Self { bar, clock, begun, first: None, seen: VecDeque::new() }
    }

    fn draw(&mut self, now: &Snapshot) {
        let Some(bar) = &self.bar else { return };
        let at = self.clock.monotonic();
        while self.seen.front().is_some_and(|(seen, _)| *seen + SPEED_OVER < at) {
            self.seen.pop_front();
        }
        self.seen.push_back((at, now.clone()));
        let first = *self.first.get_or_insert(now.read_secs);
        let text = words(now, self.seen.front(), at, self.begun, first);
        bar.set_length(now.span_secs.max(1));
        bar.set_position(now.read_secs);
        bar.set_message(text);
    }

    fn end(&mut self, last: &Snapshot) {
        self.draw(last);
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// The numbers of a back-fill in words.
fn words(
    now: &Snapshot,
    earlier: Option<&(Duration, Snapshot)>,
    at: Duration,
    begun: Duration,
    read_secs_at_begin: u64,
) -> String {
    let (since, then) = earlier.map_or((begun, Snapshot::default()), |(since, then)| (*since, then.clone()));
    // The first look has no earlier one: from the beginning then.
    let (since, then) = if since == at { (begun, Snapshot::default()) } else { (since, then) };
    let seconds = at.saturating_sub(since).as_secs_f64().max(0.001);
    let megabytes = now.bytes.saturating_sub(then.bytes) as f64 / 1e6 / seconds;
    // The first requests go in a burst: not to be taken for a rate.
    let a_minute = now.requests.saturating_sub(then.requests) as f64 / seconds.max(10.0) * 60.0;
    let read = now.read_secs.saturating_sub(read_secs_at_begin);
    let left = now.span_secs.saturating_sub(now.read_secs);
    let left = match read {
        0 => "time left unknown".to_owned(),
        read => format!("{} left", span(at.saturating_sub(begun).as_secs_f64() * left as f64 / read as f64)),
    };
    let quota = match now.requests_per_minute_max {
        0 => format!("{a_minute:.0} requests a minute, no limit"),
        max => format!("{a_minute:.0} of {max} requests a minute"),
    };
    format!("{} of {} blobs, {} events, {megabytes:.1} MB/s, {left}, {quota}", now.blobs, now.found, now.events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_says_blobs_events_speed_time_left_and_quota() {
        let begin = Snapshot { span_secs: 1000, read_secs: 0, requests_per_minute_max: 1000, ..Snapshot::default() };
        let now = Snapshot {
            found: 60,
            blobs: 50,
            events: 5000,
            bytes: 20_000_000,
            requests: 100,
            read_secs: 250,
            ..begin.clone()
        };
        let at = Duration::from_secs(10);
        let text = words(&now, Some(&(Duration::ZERO, begin)), at, Duration::ZERO, 0);
        assert_eq!(text, "50 of 60 blobs, 5000 events, 2.0 MB/s, 30 s left, 600 of 1000 requests a minute");
    }
}
