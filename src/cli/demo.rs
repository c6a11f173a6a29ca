//! `m365-audit demo`: runs the real source against a simulated tenant in this process, and prints the records in
//! readable form.
//!
//! No account and no network: the tenant listens on loopback. The summary's last line compares the delivered events
//! with the tenant's own list of published ones.

use std::collections::BTreeMap;
use std::io::{Cursor, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use async_trait::async_trait;
use jiff::SignedDuration;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::reconcile::of_comparison;
use super::{Failure, event_line, logging};
use crate::checkpoint::journal::Keeping;
use crate::clock::{Clock, SystemClock};
use crate::config::{LogConfig, SourceConfig};
use crate::exports::input::Input;
use crate::host::{Batch, Delivery, DeliveryTicket, Health, Host, StateStore};
use crate::hosts::embedded::memory::MemoryStore;
use crate::model::{TenantId, counted};
use crate::receipts::note::Signer;
use crate::reconcile::class::RowClass;
use crate::reconcile::compare::{CompareRequest, compare};
use crate::severity::Severity;
use crate::sim::{Delivered, ExportFile, ExportForm, ExportSpec, GenerateSpec, Sim, SimConfig};
use crate::source::{M365Audit, Source};

const TENANT: &str = "5a5e0000-0000-4000-8000-0000000de300";
/// Events in one blob of the demonstration.
const EVENTS_PER_BLOB: usize = 20;
/// Without `--fast`, a record is shown this often.
const RECORD_PAUSE: Duration = Duration::from_millis(12);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Do not pause between records
    #[arg(long)]
    pub fast: bool,
    /// About how many events the simulated tenant has
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub events: u32,
    /// Write what `report` says of the demonstration, as one HTML page
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Runs the demonstration.
///
/// # Errors
/// When loopback cannot be used or the source fails. Events lost would be exit code 70.
pub async fn demo(args: DemoArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    logging::install(&LogConfig { level: "warn".into(), ..LogConfig::default() });
    let clock = SystemClock::new();
    let tenant = TENANT.parse().map_err(Failure::internal)?;
    let sim_config = SimConfig { tenants: vec![TENANT.parse().map_err(Failure::internal)?], ..SimConfig::default() };
    let (client_id, client_secret) = (sim_config.client_id.clone(), sim_config.client_secret.clone());
    let sim = Sim::start(sim_config, clock.clone()).await.map_err(Failure::io)?;
    let now = sim.now();
    let blobs = (args.events as usize).div_ceil(EVENTS_PER_BLOB);
    let per_blob = (args.events as usize).min(EVENTS_PER_BLOB);
    let spec = GenerateSpec {
        copy_rate: 0.02,
        irregular_rate: 0.05,
        same_instant_rate: 0.05,
        late_rate: 0.0,
        ..GenerateSpec::new(blobs, per_blob, now - SignedDuration::from_hours(20), now - SignedDuration::from_mins(1))
    };
    sim.generate(&tenant, spec);

    let show = Arc::new(DemoOutput::new(!args.fast));
    show.line(&format!(
        "simulated tenant {tenant} at {} ({}, no account, no network)",
        sim.url(),
        counted(blobs as u64, "blob")
    ));
    let config = config_for(&sim, &client_id, &client_secret)?;
    let host = Arc::new(DemoHost { state: Arc::new(MemoryStore::new()), show: show.clone(), clock: clock.clone() });
    let watcher = tokio::spawn(watch(sim.clone(), show.clone()));
    let key = Signer::generate_pkcs8().and_then(|der| Signer::from_pkcs8(&der)).map_err(Failure::internal)?;
    let receipts = Keeping { signer: Arc::new(key), days: 30, sends: false };
    let (state, reported, key) = (host.state(), config.clone(), receipts.signer.key().clone());
    let source = Box::new(M365Audit::new("demo", config, clock.clone()).once().with_receipts(receipts));
    let report = source.run(host, stop.clone()).await.map_err(|e| Failure::of(&e, Exit::from(&e)))?;
    watcher.abort();
    show.progress_end();
    let truth = sim.truth();
    let delivered = std::mem::take(&mut *show.delivered.lock());
    let shown = delivered.len() as u64;
    let comparison = truth.compare(delivered);
    let dropped = routine_dropped(&comparison.lost, &truth);
    let lost = comparison.lost.len() as u64 - dropped;
    let proof = match stop.is_cancelled() {
        true => None,
        false => Some(prove(&sim, &tenant, reported.clone(), state.clone()).await?),
    };
    let duplicates = truth.copies.saturating_sub(comparison.duplicated.len() as u64);
    show.summary((shown, dropped, duplicates, lost), &sim, proof.as_ref());
    sim.stop().await;
    for left in &report.left {
        show.line(&left.why);
    }
    if let Some(path) = &args.report {
        super::report::of_one(
            &*state,
            ("demo", &reported),
            (key, proof.as_ref().map(|proof| &*proof.json)),
            clock.now(),
            path,
        )
        .await?;
    }
    if stop.is_cancelled() {
        return Ok(Exit::Done);
    }
    let missing = proof.map_or(0, |proof| proof.missing);
    Ok(if lost + missing > 0 || !comparison.altered.is_empty() { Exit::Internal } else { Exit::Done })
}

/// The source's configuration for this tenant, as an operator would write it.
fn config_for(sim: &Sim, client_id: &str, client_secret: &str) -> Result<SourceConfig, Failure> {
    let table = format!(
        "tenant_id = {TENANT:?}\nclient_id = {client_id:?}\nclient_secret = {client_secret:?}\napi_url = {url:?}\nauthority_url = {url:?}\nmax_requests_per_minute = 0\nmask_detected_values = false\n",
        url = sim.url()
    );
    let table: toml::Table = table.parse().map_err(Failure::internal)?;
    SourceConfig::parse_table("demo", table, &|_| None)
        .map_err(|problems| Failure::internal(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
}

/// The result of a comparison with the tenant's own audit search.
struct SearchComparison {
    rows: u64,
    missing: u64,
    /// The verdict, as `reconcile --json` prints it.
    json: Vec<u8>,
}

/// Compares the state with the export of the tenant's audit search, as `reconcile` does.
async fn prove(
    sim: &Sim,
    tenant: &TenantId,
    config: SourceConfig,
    state: Arc<dyn StateStore>,
) -> Result<SearchComparison, Failure> {
    let files = sim.export(tenant, &ExportSpec::new(ExportForm::PurviewCsv));
    let dropping = super::reconcile::dropping(&config)?;
    let receipts = super::reconcile::receipts_of(Some(&state), &config);
    let (now, runtime) = (sim.now(), Handle::current());
    let work = move || {
        let stream = |file: &ExportFile| Input::Stream(file.name.clone(), Box::new(Cursor::new(file.bytes.clone())));
        let export = || Ok(files.iter().map(stream).collect());
        let request = CompareRequest {
            source: "demo".into(),
            tenant: config.tenant_id.clone(),
            content_types: config.content_types.clone(),
            event_keys_max: config.event_keys_max,
            dropping,
            export: &export,
            delivered: None,
            store: Some(state),
            receipts,
            settle: SignedDuration::ZERO,
            asked: (None, None),
            now,
        };
        compare(&request, &runtime)
    };
    let compared = tokio::task::spawn_blocking(work).await.map_err(Failure::internal)?;
    let mut verdict = compared.map_err(of_comparison)?;
    let mut json = Vec::new();
    verdict.write_json(&mut json).map_err(Failure::io)?;
    Ok(SearchComparison { rows: verdict.rows, missing: verdict.classes.of(RowClass::Missing), json })
}

/// How many of the events that were not delivered are routine reads, which the source drops by rule.
fn routine_dropped(missing: &[String], truth: &crate::sim::Truth) -> u64 {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "Operation")]
        operation: Option<String>,
    }
    let routine: std::collections::HashSet<&str> = truth
        .events
        .iter()
        .filter(|event| {
            serde_json::from_slice::<Named>(&event.raw).ok().and_then(|e| e.operation).is_some_and(|operation| {
                matches!(operation.trim().to_ascii_lowercase().as_str(), "fileaccessed" | "mailitemsaccessed")
            })
        })
        .filter_map(|event| event.id.as_deref())
        .collect();
    missing.iter().filter(|label| routine.contains(label.as_str())).count() as u64
}

/// Prints the requests to the tenant as they are made.
async fn watch(sim: Sim, show: Arc<DemoOutput>) {
    let mut seen = 0;
    loop {
        let requests = sim.requests();
        for request in requests.iter().skip(seen) {
            show.request(request);
        }
        seen = requests.len();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct DemoHost {
    state: Arc<MemoryStore>,
    show: Arc<DemoOutput>,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Host for DemoHost {
    async fn deliver(&self, batch: Batch) -> DeliveryTicket {
        for record in batch.records() {
            self.show.record(record.json, record.severity());
            if self.show.slow {
                self.clock.sleep(RECORD_PAUSE).await;
            }
        }
        DeliveryTicket::resolved(Delivery::Delivered)
    }

    fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    fn health(&self, _source: &str, health: Health) {
        if health != Health::Healthy {
            self.show.line(&health.to_string());
        }
    }
}

/// The output of the demonstration.
struct DemoOutput {
    slow: bool,
    terminal: bool,
    tally: Mutex<DemoCounts>,
    delivered: Mutex<Vec<Delivered>>,
}

#[derive(Default)]
struct DemoCounts {
    severities: BTreeMap<Severity, u64>,
    categories: BTreeMap<String, u64>,
    requests: u64,
    blobs: u64,
}

#[derive(Deserialize)]
struct NativeRecord<'a> {
    #[serde(default)]
    timestamp: String,
    #[serde(default)]
    category: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    src_ip: Option<String>,
    #[serde(default)]
    object: Option<String>,
    #[serde(borrow, default)]
    raw: Option<&'a serde_json::value::RawValue>,
}

impl DemoOutput {
    fn new(slow: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { slow, terminal, tally: Mutex::default(), delivered: Mutex::default() }
    }

    fn line(&self, text: &str) {
        self.clear_progress();
        // If the reader has gone, the process ends; that is not an error here.
        let _ = writeln!(anstream::stdout(), "{text}");
    }

    fn request(&self, request: &crate::sim::RequestLog) {
        use crate::sim::CallKind;
        let what = request.content_type.as_deref().unwrap_or_default();
        self.tally().requests += 1;
        match request.kind {
            CallKind::Start => {
                self.line(&format!("{DIM}subscription {what} started ({}){DIM:#}", request.status));
            }
            CallKind::Content => {
                self.line(&format!("{DIM}listed {what} from {}{DIM:#}", request.start.as_deref().unwrap_or_default()));
            }
            CallKind::Blob => self.tally().blobs += 1,
            _ => {}
        }
    }

    fn record(&self, json: &[u8], severity: Severity) {
        let Ok(line) = serde_json::from_slice::<NativeRecord<'_>>(json) else { return };
        {
            let mut tally = self.tally();
            *tally.severities.entry(severity).or_default() += 1;
            *tally.categories.entry(line.category.clone()).or_default() += 1;
        }
        if let Some(raw) = line.raw {
            let delivered = Delivered { raw: raw.get().as_bytes().to_vec(), id: None, tenant: None, timestamp: None };
            self.delivered.lock().push(delivered);
        }
        let event = event_line::EventParts {
            time: &line.timestamp,
            severity: severity.as_str(),
            category: &line.category,
            title: &line.title,
            object: line.object.as_deref(),
            address: line.src_ip.as_deref(),
        };
        self.line(&event.styled(style_of(severity), self.columns()));
        self.progress();
    }

    fn progress(&self) {
        if !self.terminal {
            return;
        }
        let (events, blobs, requests) = {
            let tally = self.tally();
            (tally.severities.values().sum::<u64>(), tally.blobs, tally.requests)
        };
        let text =
            [(events, "record"), (blobs, "blob"), (requests, "request")].map(|(n, what)| counted(n, what)).join(" · ");
        // One column is for the cursor: a line that wraps could not be cleared.
        let text = event_line::cut(&text, self.columns().map_or(usize::MAX, |columns| columns.saturating_sub(1)));
        let mut out = anstream::stdout();
        let _ = write!(out, "{DIM}{text}{DIM:#}");
        let _ = out.flush();
    }

    /// How wide the terminal is now; `None` if the output is not a terminal.
    fn columns(&self) -> Option<usize> {
        let size = if self.terminal { ratatui::crossterm::terminal::size().ok() } else { None };
        size.map(|(columns, _)| usize::from(columns)).filter(|columns| *columns > 0)
    }

    fn clear_progress(&self) {
        if self.terminal {
            let _ = write!(anstream::stdout(), "\r\x1b[2K");
        }
    }

    fn progress_end(&self) {
        self.clear_progress();
    }

    fn summary(
        &self,
        (events, dropped, duplicates, lost): (u64, u64, u64, u64),
        sim: &Sim,
        proof: Option<&SearchComparison>,
    ) {
        let requests: u64 = sim.counters().requests.values().sum();
        let list = |entries: Vec<(String, u64)>| {
            entries.into_iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
        };
        let (severities, categories) = {
            let tally = self.tally();
            let severities = tally.severities.iter().rev().map(|(s, n)| (s.as_str().to_owned(), *n)).collect();
            (list(severities), list(tally.categories.iter().map(|(c, n)| (c.clone(), *n)).collect()))
        };
        self.line("");
        self.line(&format!("events      {events} delivered"));
        self.line(&format!("severity    {severities}"));
        self.line(&format!("category    {categories}"));
        self.line(&format!("dropped     {dropped} routine reads (FileAccessed, MailItemsAccessed) not flagged by DLP"));
        self.line(&format!("duplicates  {duplicates} removed"));
        self.line(&format!("requests    {requests}"));
        let style = |count| style_of(if count == 0 { Severity::Info } else { Severity::Critical });
        if let Some(SearchComparison { rows, missing, .. }) = proof {
            let style = style(*missing);
            self.line(&format!(
                "missing     {style}{missing}{style:#} of {rows} rows of the tenant's own audit search"
            ));
        }
        let style = style(lost);
        self.line(&format!("lost        {style}{lost}{style:#} against the simulated tenant's own record"));
    }

    fn tally(&self) -> parking_lot::MutexGuard<'_, DemoCounts> {
        self.tally.lock()
    }
}

const DIM: Style = Style::new().dimmed();

fn style_of(severity: Severity) -> Style {
    let color = match severity {
        Severity::Info => AnsiColor::Green,
        Severity::Low => AnsiColor::Cyan,
        Severity::Medium => AnsiColor::Yellow,
        Severity::High => AnsiColor::Red,
        Severity::Critical => return AnsiColor::BrightRed.on_default().bold(),
    };
    color.on_default()
}
