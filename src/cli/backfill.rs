//! `m365-audit backfill`: reads a range again, inside the running process or alone when none runs.
//!
//! Owns the arguments and the progress display. [`crate::source::backfill`] does the reading.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;

use super::exit::Exit;
use super::moment::{span, time};
use super::work::{self, Alone, WorkNews, bar, meant, tenant, whole_second};
use super::{Failure, loaded, requests};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::hosts::embedded::control::{Say, What};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::source::backfill::{BackfillAsk, BackfillNumbers, BackfillResult};

/// The displayed speed is averaged over this time.
const SPEED_OVER: Duration = Duration::from_secs(60);
const STOPPED: &str = "stopped; the same command, or --resume, goes on";

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

/// Runs the back-fill of every selected source, one after another.
///
/// # Errors
/// When it could not be done. Parts that could not be read are printed and decide the exit code.
pub async fn backfill(args: BackfillArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let config = loaded::load(&args.config).await?;
    let sources = meant(&config, args.source.as_deref(), args.tenant.as_ref())?;
    let ask = match (args.from, args.resume, args.discard) {
        (_, true, _) => BackfillAsk::Resume,
        (_, _, true) => BackfillAsk::Discard,
        (Some(from), ..) => BackfillAsk::Range {
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
        let ended = one(&config, &source, ask.clone()).await?;
        worst = worst.max(print_end(&source, &ask, &ended, out).map_err(Failure::io)?);
        if ended.interrupted {
            break;
        }
    }
    Ok(worst)
}

/// Inside the running process, or alone.
async fn one(config: &Config, source: &str, ask: BackfillAsk) -> Result<BackfillResult, Failure> {
    let mut show = BackfillBar::new(source, SystemClock::new());
    let ended = match requests::client(config, source).await? {
        Some(client) => {
            let question = What::Backfill { source: source.to_owned(), ask };
            work::inside(client, question, STOPPED, |said| match said {
                Say::Progress(now) => {
                    show.draw(&now);
                    WorkNews::Meanwhile
                }
                Say::Ended(ended) => WorkNews::Ended(ended),
                other => WorkNews::Other(other),
            })
            .await?
        }
        None => {
            let delivers = ask != BackfillAsk::Discard;
            let alone = Alone { config, name: source, ask, delivers, stopped: STOPPED };
            work::alone(alone, |audit, host, asked| audit.backfill(host, asked), |now| show.draw(&now.snapshot()))
                .await?
        }
    };
    show.end(&ended.progress);
    Ok(ended)
}

/// Prints how it ended.
fn print_end(source: &str, ask: &BackfillAsk, ended: &BackfillResult, out: &mut dyn Write) -> std::io::Result<Exit> {
    if *ask == BackfillAsk::Discard {
        writeln!(out, "{source}: the back-fill was given up")?;
        return Ok(Exit::Done);
    }
    let BackfillNumbers { blobs, events, duplicates, bytes, requests, .. } = ended.progress;
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

/// A progress bar on a terminal only, with the quota and a rate over the last minute.
struct BackfillBar {
    bar: Option<ProgressBar>,
    clock: Arc<dyn Clock>,
    begun: Duration,
    first: Option<u64>,
    seen: VecDeque<(Duration, BackfillNumbers)>,
}

impl BackfillBar {
    fn new(source: &str, clock: Arc<dyn Clock>) -> Self {
        let bar = bar(source, "{msg}");
        let begun = clock.monotonic();
        Self { bar, clock, begun, first: None, seen: VecDeque::new() }
    }

    fn draw(&mut self, now: &BackfillNumbers) {
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

    fn end(&mut self, last: &BackfillNumbers) {
        self.draw(last);
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// The numbers of a back-fill in words.
fn words(
    now: &BackfillNumbers,
    earlier: Option<&(Duration, BackfillNumbers)>,
    at: Duration,
    begun: Duration,
    read_secs_at_begin: u64,
) -> String {
    let (since, then) = earlier.map_or((begun, BackfillNumbers::default()), |(since, then)| (*since, then.clone()));
    // The first sample has no earlier one, so it counts from the beginning.
    let (since, then) = if since == at { (begun, BackfillNumbers::default()) } else { (since, then) };
    let seconds = at.saturating_sub(since).as_secs_f64().max(0.001);
    let megabytes = now.bytes.saturating_sub(then.bytes) as f64 / 1e6 / seconds;
    // The first requests are sent in a burst, which is not a rate.
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
        let begin = BackfillNumbers {
            span_secs: 1000,
            read_secs: 0,
            requests_per_minute_max: 1000,
            ..BackfillNumbers::default()
        };
        let now = BackfillNumbers {
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
