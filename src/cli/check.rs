//! `m365-audit check`: tests the connection of each source, one line per step.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::Failure;
use super::exit::Exit;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::host::StateStore;
use crate::hosts::embedded::store::SqliteStore;
use crate::source::{FaultKind, M365Audit, check};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Also start and stop Audit.General, if it is off: what becomes available for the next 15 minutes is then lost
    #[arg(long)]
    pub probe: bool,
}

/// Tests every source and prints what it finds.
///
/// # Errors
/// What kept the test from being made at all. Faults found are printed and decide the exit code.
pub async fn check_all(args: CheckArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let config = Config::load(&args.config)?;
    let mut worst = Exit::Done;
    let store: Option<Arc<dyn StateStore>> = match args.probe {
        true => Some(Arc::new(SqliteStore::open(&config.data_dir)?)),
        false => None,
    };
    if args.probe {
        writeln!(
            out,
            "--probe starts and stops Audit.General where it is off; Microsoft then refuses another start for 15 minutes, and \
             what becomes available until then can never be read. Without --probe nothing is changed."
        )
        .map_err(Failure::io)?;
    }
    for (name, source) in &config.sources {
        writeln!(out, "source {name}, tenant {}", source.tenant_id).map_err(Failure::io)?;
        let audit = M365Audit::new(name.as_str(), source.clone(), SystemClock::new());
        for step in check::check(&audit, store.clone()).await {
            match step.result {
                Ok(found) => writeln!(out, "  ok    {}: {found}", step.what),
                Err(fault) => {
                    worst = worst.max(Exit::from(fault.kind));
                    let mark = if fault.kind == FaultKind::Notice { "note" } else { "FAIL" };
                    writeln!(
                        out,
                        "  {mark}  {}: {}: {}\n        remedy: {}",
                        step.what, fault.slug, fault.cause, fault.remedy
                    )
                }
            }
            .map_err(Failure::io)?;
        }
    }
    Ok(worst)
}
