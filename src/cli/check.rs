//! `m365-audit check`: tests each source. It prints the faults first, each with its cause, its remedy and its page;
//! then every step.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::exit::Exit;
use super::glance::{self, RowState, Screen, TenantFilter, TenantRow, text_of};
use super::{Failure, estimate, loaded, opened};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::host::StateStore;
use crate::hosts::embedded::store::StoreError;
use crate::hosts::embedded::writable::check_writable;
use crate::model::{Actionable, error_page};
use crate::source::estimate::{REQUESTS_DEFAULT, REQUESTS_MIN};
use crate::source::{CheckFault, CheckStep, FaultKind, M365Audit, check};

/// Sources tested at the same time: one that does not answer must not delay a hundred others.
const AT_ONCE: usize = 8;

/// The things that no test can show.
const NOT_TESTED: &str = "not tested: record types 284 and 328 (AI applications other than Microsoft 365 Copilot) are billed by Microsoft, \
                          and none of them comes unless auditing of them is paid for: docs/operating.md";

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Also start and stop Audit.General, if it is off: what becomes available for the next 15 minutes is then lost
    #[arg(long, conflicts_with = "estimate")]
    pub probe: bool,
    /// Estimate instead what each source will bring in a day, in events and bytes by content type, severity and format: from
    /// the listing of the last 24 hours and a sample of its blobs. Delivers and remembers nothing
    #[arg(long)]
    pub estimate: bool,
    /// Requests to the feed that the estimate of one source may take
    #[arg(long, value_name = "N", default_value_t = REQUESTS_DEFAULT, requires = "estimate",
          value_parser = clap::value_parser!(u32).range(i64::from(REQUESTS_MIN)..=2000))]
    pub requests: u32,
    /// One JSON object on standard output, for machines
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    which: TenantFilter,
}

/// The result for one source, or for this machine.
struct CheckReport {
    /// The source's name; `None` for a result that concerns all.
    source: Option<String>,
    tenant: Option<String>,
    steps: Vec<CheckStep>,
}

impl CheckReport {
    fn faults(&self) -> impl Iterator<Item = (&CheckStep, &CheckFault)> {
        self.steps.iter().filter_map(|step| Some((step, step.result.as_ref().err()?)))
    }

    fn name(&self) -> &str {
        self.source.as_deref().unwrap_or("this machine")
    }
}

/// Tests every source of this file, changing nothing.
///
/// # Errors
/// As [`check_all`].
pub async fn check_file(config: &Path, out: &mut dyn Write) -> Result<Exit, Failure> {
    let which = TenantFilter::default();
    let config = config.to_owned();
    let args = CheckArgs { config, probe: false, estimate: false, requests: REQUESTS_DEFAULT, json: false, which };
    check_all(args, out).await
}

/// Tests every source and prints the results.
///
/// # Errors
/// When the test could not be made at all. Faults found are printed and decide the exit code.
pub async fn check_all(args: CheckArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    // A file that is missing for one of many tenants is a fault of that tenant alone, which its test finds.
    let files = loaded::files(&args.config).await?;
    let config = match Config::load_to_run_of(&args.config, &files) {
        Ok((config, _)) => config,
        Err(error) if args.json => {
            let problems = error.problems.iter().map(|problem| {
                json!({"key": problem.key, "file": problem.file, "line": problem.line, "cause": problem.to_string(), "remedy": problem.hint})
            });
            let found = json!({
                "exit": Exit::Config as u8, "slug": error.slug(), "page": error_page(error.slug()),
                "problems": problems.collect::<Vec<_>>(), "sources": [],
            });
            writeln!(out, "{found:#}").map_err(Failure::io)?;
            return Ok(Exit::Config);
        }
        Err(error) => return Err(error.into()),
    };
    if args.estimate {
        return estimate::estimates(&config, args.requests, args.json, out).await;
    }
    // The JSON has everything, so every source is tested.
    let which = if args.json { TenantFilter::default() } else { args.which };
    which.known(config.sources.keys().map(String::as_str))?;
    let store: Option<Arc<dyn StateStore>> = match args.probe {
        true => Some(opened::alone(&config)?),
        false => None,
    };
    if args.probe {
        eprintln!(
            "--probe starts and stops Audit.General where it is off; Microsoft then refuses another start for 15 minutes, and \
             what becomes available until then can never be read. Without --probe nothing is changed."
        );
    }
    let sources = config.sources.iter().filter(|(name, _)| which.names(name)).map(|(name, source)| {
        let (name, source, store) = (name.clone(), source.clone(), store.clone());
        async move {
            let tenant = Some(source.tenant_id.to_string());
            let audit = M365Audit::new(name.as_str(), source, SystemClock::new());
            CheckReport { source: Some(name), tenant, steps: check::check(&audit, store).await }
        }
    });
    let mut reports: Vec<CheckReport> = futures_util::stream::iter(sources).buffered(AT_ONCE).collect().await;
    reports.insert(0, CheckReport { source: None, tenant: None, steps: vec![state_directory(&config)] });

    let faults = reports.iter().flat_map(CheckReport::faults);
    let worst = faults.map(|(_, fault)| Exit::from(fault.kind)).max().unwrap_or(Exit::Done);
    let names = reports.iter().filter_map(|report| report.source.as_deref());
    if args.json {
        write_json(&reports, worst, out).map_err(Failure::io)?;
    } else if which.one_line(names) {
        let live = glance::live(&config).await;
        let row = |report: &CheckReport| row(report).with_live(live.get(report.name()), SystemClock::new().now());
        let rows = reports.iter().filter(|report| report.source.is_some()).map(row).collect();
        let lines = glance::lines(rows, &which, Screen::of_stdout());
        write_lines(&reports, &lines.iter().map(text_of).collect::<Vec<_>>(), out).map_err(Failure::io)?;
    } else {
        reports.retain(|report| report.source.is_none() || which.shows(report.name(), row(report).is_well));
        write_text(&reports, out).map_err(Failure::io)?;
    }
    Ok(worst)
}

/// The line of a source.
fn row(report: &CheckReport) -> TenantRow {
    let is_failure = |fault: &CheckFault| fault.kind != FaultKind::Notice;
    let mut faults: Vec<&CheckFault> = report.faults().map(|(_, fault)| fault).collect();
    faults.sort_by_key(|fault| !is_failure(fault));
    let mut slugs = BTreeSet::new();
    faults.retain(|fault| slugs.insert(&*fault.slug));
    let is_well = !faults.iter().any(|fault| is_failure(fault));
    let state = match (is_well, faults.is_empty()) {
        (false, _) => RowState { word: "FAIL", rank: 0 },
        (true, false) => RowState { word: "note", rank: 1 },
        (true, true) => RowState { word: "ok", rank: 2 },
    };
    let wrong = faults.iter().map(|fault| format!("{}: {}", fault.slug, fault.summary)).collect::<Vec<_>>().join("; ");
    TenantRow { is_well, wrong, ..TenantRow::of(report.name(), state) }
}

/// One line for each tenant, then the remedy of each cause once.
fn write_lines(reports: &[CheckReport], lines: &[String], out: &mut dyn Write) -> io::Result<()> {
    for line in lines {
        writeln!(out, "{line}")?;
    }
    let mut causes: BTreeMap<(bool, &str), (&CheckFault, BTreeSet<&str>)> = BTreeMap::new();
    for report in reports {
        for (_, fault) in report.faults() {
            let key = (fault.kind == FaultKind::Notice, &*fault.slug);
            causes.entry(key).or_insert((fault, BTreeSet::new())).1.insert(report.name());
        }
    }
    for ((is_note, slug), (fault, names)) in causes {
        let mark = if is_note { "note" } else { "FAIL" };
        let of = match names.len() {
            1 => names.first().copied().unwrap_or_default().to_owned(),
            several => format!("{several} tenants"),
        };
        writeln!(out, "\n{mark}  {of}: {slug}\n      remedy: {}\n      page: {}", fault.remedy, error_page(slug))?;
    }
    writeln!(out, "\n{NOT_TESTED}")
}

fn state_directory(config: &Config) -> CheckStep {
    let result = check_writable(&config.data_dir).map_err(|error| CheckFault {
        slug: error.slug().into(),
        summary: error.to_string(),
        cause: error.to_string(),
        remedy: match &error {
            StoreError::NotWritable { .. } => format!(
                "`chown -R m365-audit: {}` (or whichever user it runs as), on a file system that can be written; run `check` as that user",
                config.data_dir.display()
            ),
            error => error.hint(),
        },
        kind: FaultKind::State,
    });
    CheckStep { what: "state directory".into(), result }
}

/// First every fault, failures before notices, three lines each; then the steps.
fn write_text(reports: &[CheckReport], out: &mut dyn Write) -> io::Result<()> {
    let mut healthy = true;
    for failures in [true, false] {
        for report in reports {
            let mut listed_slugs: Vec<&str> = Vec::new();
            for (step, fault) in report.faults().filter(|(_, fault)| (fault.kind != FaultKind::Notice) == failures) {
                // A cause at several steps counts once; the steps are named below.
                let same: Vec<&str> =
                    report.faults().filter(|(_, f)| f.slug == fault.slug).map(|(step, _)| &*step.what).collect();
                if listed_slugs.contains(&&*fault.slug) {
                    continue;
                }
                listed_slugs.push(&fault.slug);
                healthy = false;
                let mark = if failures { "FAIL" } else { "note" };
                let at = if same.len() > 1 { same.join(", ") } else { step.what.clone() };
                writeln!(out, "{mark}  {}: {}: {}", report.name(), fault.slug, fault.summary)?;
                writeln!(out, "      fix: {}", fault.remedy)?;
                writeln!(out, "      page: {} (found at: {at})", error_page(&fault.slug))?;
            }
        }
    }
    if healthy {
        writeln!(out, "ok    everything is in order")?;
    }
    for report in reports {
        match (&report.source, &report.tenant) {
            (Some(name), Some(tenant)) => writeln!(out, "\nsource {name}, tenant {tenant}")?,
            _ => writeln!(out, "\nthis machine")?,
        }
        for step in &report.steps {
            match &step.result {
                Ok(found) => writeln!(out, "  ok    {}: {found}", step.what)?,
                Err(fault) => {
                    let mark = if fault.kind == FaultKind::Notice { "note" } else { "FAIL" };
                    writeln!(out, "  {mark}  {}: {}: {}", step.what, fault.slug, fault.cause)?;
                }
            }
        }
    }
    if reports.iter().any(|report| report.source.is_some()) {
        writeln!(out, "\n{NOT_TESTED}")?;
    }
    Ok(())
}

fn write_json(reports: &[CheckReport], worst: Exit, out: &mut dyn Write) -> io::Result<()> {
    let step = |step: &CheckStep| match &step.result {
        Ok(found) => json!({"step": step.what, "status": "ok", "found": found}),
        Err(fault) => json!({
            "step": step.what, "status": if fault.kind == FaultKind::Notice { "note" } else { "fail" },
            "slug": fault.slug, "summary": fault.summary, "cause": fault.cause, "remedy": fault.remedy,
            "page": error_page(&fault.slug),
        }),
    };
    let steps = |report: &CheckReport| report.steps.iter().map(step).collect::<Vec<Value>>();
    let machine: Vec<Value> = reports.iter().filter(|report| report.source.is_none()).flat_map(steps).collect();
    let sources = reports.iter().filter_map(|report| {
        let source = report.source.as_ref()?;
        Some(json!({"source": source, "tenant": report.tenant, "steps": steps(report)}))
    });
    let found = json!({"exit": worst as u8, "machine": machine, "sources": sources.collect::<Vec<_>>()});
    writeln!(out, "{found:#}")
}
