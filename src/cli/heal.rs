//! `m365-audit heal`: fills a range through Microsoft Graph, inside the running process or alone when none runs.
//!
//! Owns the arguments and the progress display. [`crate::source::heal`] does the work.

use std::io::Write;
use std::path::PathBuf;

use indicatif::ProgressBar;

use super::exit::Exit;
use super::moment::time;
use super::work::{self, Alone, WorkNews, bar, meant, tenant, whole_second};
use super::{Failure, loaded, requests};
use crate::config::Config;
use crate::hosts::embedded::control::{Say, What};
use crate::model::{ContentType, TenantId, Timestamp};
use crate::source::heal::requests::{HealAsk, HealNumbers, HealResult};

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

/// Fills the range for every selected source, one after another.
///
/// # Errors
/// When it could not be done. Parts that could not be filled are printed and decide the exit code.
pub async fn heal(args: HealArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let config = loaded::load(&args.config).await?;
    let sources = meant(&config, args.source.as_deref(), args.tenant.as_ref())?;
    let ask = HealAsk {
        from: whole_second(args.from),
        to: args.to.map(whole_second),
        content_types: args.content_type.iter().map(|t| t.as_str().to_owned()).collect(),
        again: args.again,
        dry_run: args.dry_run,
    };
    let mut worst = Exit::Done;
    for source in sources {
        let ended = one(&config, &source, ask.clone()).await?;
        worst = worst.max(print_end(&source, &ended, out).map_err(Failure::io)?);
        if ended.interrupted {
            break;
        }
    }
    Ok(worst)
}

/// Inside the running process, or alone.
async fn one(config: &Config, source: &str, ask: HealAsk) -> Result<HealResult, Failure> {
    let show = HealBar(bar(source, "{msg}, {eta} left"));
    let ended = match requests::client(config, source).await? {
        Some(client) => {
            let question = What::Heal { source: source.to_owned(), ask };
            work::inside(client, question, STOPPED, |said| match said {
                Say::Healing(now) => {
                    show.draw(&now);
                    WorkNews::Meanwhile
                }
                Say::Healed(ended) => WorkNews::Ended(ended),
                other => WorkNews::Other(other),
            })
            .await?
        }
        None => {
            let delivers = !ask.dry_run;
            let alone = Alone { config, name: source, ask, delivers, stopped: STOPPED };
            work::alone(alone, |audit, host, asked| audit.heal(host, asked), |now| show.draw(&now.snapshot())).await?
        }
    };
    show.end(&ended.progress);
    Ok(ended)
}

/// Prints how it ended.
fn print_end(source: &str, ended: &HealResult, out: &mut dyn Write) -> std::io::Result<Exit> {
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
    let HealNumbers { searches, records, events, known, .. } = ended.progress;
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

/// A progress bar on a terminal only.
struct HealBar(Option<ProgressBar>);

impl HealBar {
    fn draw(&self, now: &HealNumbers) {
        let Some(bar) = &self.0 else { return };
        bar.set_length(now.span_secs.max(1));
        bar.set_position(now.done_secs);
        // Graph spends most of the time searching, so only the rate over the whole time is meaningful.
        let each_second = now.records as f64 / bar.elapsed().as_secs_f64().max(1.0);
        bar.set_message(format!(
            "{} searches, {} under way, {} records, {each_second:.1}/s, {} events",
            now.searches, now.under_way, now.records, now.events
        ));
    }

    fn end(&self, last: &HealNumbers) {
        if last.span_secs > 0 {
            self.draw(last);
        }
        if let Some(bar) = &self.0 {
            bar.abandon();
        }
    }
}
