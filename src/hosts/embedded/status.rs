//! The status of a process in one value, which `status` displays. It is read from the metrics that the process records,
//! the health that its sources report and the last warnings and errors of its log; nothing is measured twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::recorder::{CounterValues, Rated, Recorded};
use super::registry::{Registry, RunningSource};
use super::series::{SeriesTable, label};
use super::{HealthReport, ReportedHealth};
use crate::clock::Clock;
use crate::host::Health;
use crate::metrics;
use crate::model::{ContentType, Timestamp, counted};
use crate::source::backfill::BackfillNumbers;
use crate::source::hold::waited_for;

/// Counters are sampled this often.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Rates are over this many samples: a minute.
const SAMPLES: usize = 13;
/// Log lines kept.
const LINES_MAX: usize = 50;
/// Characters of a log line kept.
const LINE_CHARS_MAX: usize = 2000;

/// The status of a process and all its sources and sinks, as `m365-audit status --json` prints it and `/status` returns
/// it. A missing member has no value. New versions add members and do not rename them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The process.
    pub process: Process,
    /// The worst of the sources and sinks.
    pub state: String,
    /// The sources.
    pub sources: Vec<Source>,
    /// The sinks.
    pub sinks: Vec<Sink>,
    /// The fault of the state's files, with the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Recent warnings and errors, newest last.
    pub recent: Vec<Line>,
}

/// The JSON Schema of [`Status`].
pub fn status_schema() -> serde_json::Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Status>().to_value();
    schema["title"] = "m365-audit status".into();
    schema
}

/// The process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it was started.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub started: Timestamp,
    /// Its time.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub now: Timestamp,
    /// Tenants that read blobs now.
    #[serde(default)]
    pub reading: u64,
    /// Tenants that have blobs to read and wait for their turn (`catch_up_tenants_max`).
    #[serde(default)]
    pub waiting: u64,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// `healthy`, `degraded`, `failed`, or `starting` before its first report.
    pub state: String,
    /// Why, with the remedy.
    pub reason: Option<String>,
    /// Since when.
    #[schemars(with = "Option<String>")]
    pub since: Option<Timestamp>,
    /// Its requests, and how many of them Microsoft grants.
    pub quota: Quota,
    /// Microsoft's clock minus this machine's.
    pub clock_skew_secs: Option<f64>,
    /// Bytes fetched and not confirmed.
    pub in_flight_bytes: u64,
    /// Records the host rejected.
    pub set_aside: u64,
    /// For how long it has waited for its turn to read blobs, if it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_waiting_secs: Option<f64>,
    /// Answers without content although some was expected, since the start; each was requested again.
    #[serde(default)]
    pub empty_answers: u64,
    /// Its streams.
    pub streams: Vec<Stream>,
    /// The back-fill that runs.
    pub backfill: Option<BackfillNumbers>,
    /// Routine reads on hold, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

impl Source {
    /// How bad it is: 0 failed, 1 degraded, 2 starting, 3 healthy.
    pub fn rank(&self) -> u8 {
        match self.state.as_str() {
            "failed" => 0,
            "degraded" => 1,
            "starting" => 2,
            _ => 3,
        }
    }

    /// How far the least complete content type is behind, in seconds.
    pub fn delay_secs(&self, now: Timestamp) -> Option<f64> {
        let complete = self.streams.iter().filter_map(|stream| stream.complete_until).min()?;
        Some(now.duration_since(complete).as_secs_f64())
    }

    /// How long ago the newest event delivered since the start became available, in seconds.
    pub fn last_event_secs(&self) -> Option<f64> {
        self.streams.iter().filter_map(|stream| stream.lag_secs).min_by(f64::total_cmp)
    }

    /// The faults that need attention, each beginning with the slug of its page.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.reason.iter().cloned().collect();
        let (gaps, lost) = self.streams.iter().fold((0, 0), |(gaps, lost), s| (gaps + s.gaps, lost + s.lost));
        if gaps + lost > 0 {
            let (gaps, lost) = (counted(gaps, "gap"), counted(lost, "blob"));
            troubles.push(format!("stream-gap: {gaps} declared, {lost} lost since the start"));
        }
        if self.set_aside > 0 {
            troubles.push(format!("record-rejected: {} set aside", counted(self.set_aside, "record")));
        }
        troubles
    }
}

impl Quota {
    /// Requests a minute that may be made; `None` without a limit.
    pub fn granted(&self) -> Option<f64> {
        self.granted_per_minute.or((self.max_per_minute > 0).then_some(f64::from(self.max_per_minute)))
    }
}

/// Routine reads on hold until it is known whether data loss prevention flags them, and what they wait for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// How many.
    pub reads: u64,
    /// The least complete of the content types that bring matches.
    pub waits_for: Option<String>,
    /// Until when that one is complete.
    #[schemars(with = "Option<String>")]
    pub complete_until: Option<Timestamp>,
    /// How far that is behind now, in seconds.
    pub behind_secs: Option<f64>,
}

/// Requests of a tenant to the feed, a minute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// `max_requests_per_minute`; 0 is no limit.
    pub max_per_minute: u32,
    /// The estimate of how many Microsoft grants: 98 % of the former, until refusals show that it is less. `None`
    /// without a limit, and before the first look.
    pub granted_per_minute: Option<f64>,
    /// How many were sent in the last minute, refused ones included.
    pub used_per_minute: f64,
    /// How many were refused in the last minute, as too many.
    pub refused_per_minute: f64,
    /// How many were refused since the start.
    pub refused: u64,
}

/// One stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stream {
    /// Its content type.
    pub content_type: String,
    /// Everything made available before is settled.
    #[schemars(with = "Option<String>")]
    pub complete_until: Option<Timestamp>,
    /// Now minus the newest delivered blob's time.
    pub lag_secs: Option<f64>,
    /// Seconds since a listing named a new blob.
    pub quiet_secs: Option<f64>,
    /// Blobs not settled.
    pub pending: u64,
    /// Age of the oldest of them.
    pub oldest_age_secs: Option<f64>,
    /// Seconds until the first of them expires.
    pub expiry_secs: Option<f64>,
    /// Events delivered since the start.
    pub events: u64,
    /// And over the last minute.
    pub events_per_sec: f64,
    /// Bytes received over the last minute.
    pub bytes_per_sec: f64,
    /// Gaps declared since the start.
    pub gaps: u64,
    /// Seconds of gaps filled through Microsoft Graph since the start.
    #[serde(default)]
    pub healed_gap_secs: u64,
    /// Events delivered by that.
    #[serde(default)]
    pub healed_events: u64,
    /// Blobs lost since the start.
    pub lost: u64,
}

/// One sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sink {
    /// Its name.
    pub name: String,
    /// `healthy`, `degraded` or `failed`.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,
    /// Records confirmed over the last minute.
    pub records_per_sec: f64,
    /// Records confirmed since the start.
    pub records: u64,
    /// Failed writes since the start.
    pub retries: u64,
    /// Age of the oldest request that has no answer yet.
    #[serde(default)]
    pub oldest_request_secs: f64,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    /// When.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub time: Timestamp,
    /// `warn` or `error`.
    pub level: String,
    /// What it said.
    pub text: String,
}

/// The last warnings and errors of the log. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Line>>>);

impl Recent {
    /// Takes a line.
    pub fn push(&self, mut line: Line) {
        if let Some((end, _)) = line.text.char_indices().nth(LINE_CHARS_MAX) {
            line.text.truncate(end);
        }
        let mut lines = self.0.lock();
        // Of equal lines, only the newest is kept.
        lines.retain(|known| known.text != line.text);
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The lines, newest last.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().iter().cloned().collect()
    }
}

/// One sample of the metrics: by tenant or sink, then by name and content type (where there is none, state), summed
/// over the other labels.
#[derive(Debug, Clone, Default, PartialEq)]
struct MetricSample(HashMap<String, HashMap<(String, String), f64>>);

impl MetricSample {
    /// The current value of every series.
    fn of_series(series: &SeriesTable) -> Self {
        let mut sample = MetricSample::default();
        series.visit(|key, value| {
            let owner = label(key, "tenant").or_else(|| label(key, "sink")).unwrap_or_default();
            let part = label(key, "content_type").or_else(|| label(key, "state")).unwrap_or_default();
            if !sample.0.contains_key(owner) {
                sample.0.insert(owner.to_owned(), HashMap::new());
            }
            let Some(of_owner) = sample.0.get_mut(owner) else { return };
            *of_owner.entry((key.name().to_owned(), part.to_owned())).or_default() += value;
            if key.name() == metrics::BLOBS_TOTAL && label(key, "state") == Some(LOST) {
                *of_owner.entry((LOST.to_owned(), part.to_owned())).or_default() += value;
            }
        });
        sample
    }

    /// The values of the counters that rates use.
    fn of_counts(rated: &Rated, counts: &CounterValues) -> Self {
        let mut sample = MetricSample::default();
        for (name, owner, part, count) in rated.named(counts) {
            *sample.0.entry(owner).or_default().entry((name, part)).or_default() += count as f64;
        }
        sample
    }

    fn get(&self, name: &str, owner: &str, part: &str) -> Option<f64> {
        self.0.get(owner)?.get(&(name.to_owned(), part.to_owned())).copied()
    }

    /// Summed over the parts.
    fn sum(&self, name: &str, owner: &str) -> f64 {
        self.0.get(owner).into_iter().flatten().filter(|((n, _), _)| n == name).map(|(_, value)| value).sum()
    }
}

/// Blobs in state `lost`, by content type.
const LOST: &str = "lost";

/// Keeps the counters' values over the last minute, and reads all metrics on request.
pub struct Monitor {
    recorded: Recorded,
    report: watch::Receiver<HealthReport>,
    recent: Recent,
    clock: Arc<dyn Clock>,
    started: Timestamp,
    samples: Mutex<VecDeque<(Duration, CounterValues)>>,
}

impl Monitor {
    /// A monitor without samples.
    pub fn new(
        recorded: Recorded,
        report: watch::Receiver<HealthReport>,
        recent: Recent,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let started = clock.now();
        let monitor = Self { recorded, report, recent, clock, started, samples: Mutex::default() };
        monitor.sample();
        monitor
    }

    /// What is recorded.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// The current health of everything.
    pub fn report(&self) -> HealthReport {
        self.report.borrow().clone()
    }

    /// Takes one sample; called every [`SAMPLE_EVERY`].
    pub fn sample(&self) {
        self.recorded.prometheus.run_upkeep();
        let counts = self.recorded.rated.counts();
        let mut samples = self.lock();
        if samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back((self.clock.monotonic(), counts));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Duration, CounterValues)>> {
        self.samples.lock()
    }

    /// The current status.
    pub fn status(&self, registry: &Registry) -> Status {
        let now = MetricSample::of_series(&self.recorded.series);
        let (since, before) = self.lock().front().cloned().unwrap_or_default();
        let before = MetricSample::of_counts(&self.recorded.rated, &before);
        let seconds = self.clock.monotonic().saturating_sub(since).as_secs_f64();
        let view = SampleView { now: &now, before: &before, seconds };
        let report = self.report.borrow().clone();
        let source = |(name, entry): (String, RunningSource)| {
            let standing = report.sources.get(&name);
            view.source(name, entry, standing, self.clock.now())
        };
        let sources: Vec<Source> = registry.entries().into_iter().map(source).collect();
        let sinks: Vec<Sink> = report.sinks.iter().map(|(name, standing)| view.sink(name, standing)).collect();
        let store = report.store.as_ref().and_then(|standing| words(standing).1);
        let states = || sources.iter().map(|s| &s.state).chain(sinks.iter().map(|s| &s.state));
        let state = if sources.iter().any(|s| s.state == "failed") {
            "failed"
        } else if store.is_some() || states().any(|s| s == "degraded" || s == "failed") {
            "degraded"
        } else {
            "healthy"
        };
        Status {
            process: Process {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                started: self.started,
                now: self.clock.now(),
                reading: now.sum(metrics::READING_TENANTS, "") as u64,
                waiting: now.sum(metrics::WAITING_TENANTS, "") as u64,
            },
            state: state.into(),
            sources,
            sinks,
            store,
            recent: self.recent.lines(),
        }
    }
}

/// What the held `reads` wait for; `None` when there are none.
fn held(
    reads: u64,
    complete_until: impl Iterator<Item = (ContentType, Option<Timestamp>)>,
    now: Timestamp,
) -> Option<Held> {
    if reads == 0 {
        return None;
    }
    let Some((content_type, complete_until)) = waited_for(complete_until) else {
        return Some(Held { reads, ..Held::default() });
    };
    let behind_secs = complete_until.map(|complete| now.duration_since(complete).as_secs_f64());
    Some(Held { reads, waits_for: Some(content_type.to_string()), complete_until, behind_secs })
}

fn words(standing: &ReportedHealth) -> (&'static str, Option<String>) {
    match &standing.health {
        Health::Healthy => ("healthy", None),
        Health::Degraded { why, .. } => ("degraded", Some(why.clone())),
        Health::Failed { why } => ("failed", Some(why.clone())),
    }
}

/// Two samples of the metrics.
struct SampleView<'a> {
    now: &'a MetricSample,
    before: &'a MetricSample,
    seconds: f64,
}

impl SampleView<'_> {
    fn per_second(&self, now: f64, before: f64) -> f64 {
        // A counter that decreased belongs to a restarted source.
        if self.seconds < 0.5 { 0.0 } else { (now - before).max(0.0) / self.seconds }
    }

    fn rate_of_sum(&self, name: &str, owner: &str) -> f64 {
        self.per_second(self.now.sum(name, owner), self.before.sum(name, owner))
    }

    fn rate(&self, name: &str, owner: &str, part: &str) -> f64 {
        let of = |sample: &MetricSample| sample.get(name, owner, part).unwrap_or_default();
        self.per_second(of(self.now), of(self.before))
    }

    fn source(&self, name: String, entry: RunningSource, standing: Option<&ReportedHealth>, time: Timestamp) -> Source {
        let (tenant, now) = (entry.tenant.to_string(), self.now);
        let streams: Vec<Stream> = entry.content_types.iter().map(|t| self.stream(&tenant, t.as_str())).collect();
        let complete = entry.content_types.iter().zip(&streams).map(|(t, s)| (*t, s.complete_until));
        let held = held(now.sum(metrics::HELD_EVENTS, &tenant) as u64, complete, time);
        let (state, reason) = standing.map_or(("starting", None), words);
        Source {
            state: state.into(),
            reason,
            since: standing.map(|s| s.since),
            quota: Quota {
                max_per_minute: entry.max_requests_per_minute,
                granted_per_minute: now.get(metrics::GRANTED_REQUESTS_PER_MINUTE, &tenant, ""),
                used_per_minute: self.rate_of_sum(metrics::REQUESTS_TOTAL, &tenant) * 60.0,
                refused_per_minute: self.rate_of_sum(metrics::THROTTLED_TOTAL, &tenant) * 60.0,
                refused: now.sum(metrics::THROTTLED_TOTAL, &tenant) as u64,
            },
            clock_skew_secs: now.get(metrics::CLOCK_SKEW_SECONDS, &tenant, ""),
            in_flight_bytes: now.sum(metrics::IN_FLIGHT_BYTES, &tenant) as u64,
            set_aside: now.sum(metrics::SET_ASIDE_RECORDS, &tenant) as u64,
            turn_waiting_secs: now.get(metrics::TURN_WAITING_SECONDS, &tenant, "").filter(|secs| *secs > 0.0),
            empty_answers: now.sum(metrics::EMPTY_ANSWERS_TOTAL, &tenant) as u64,
            streams,
            backfill: entry.backfill.map(|progress| progress.snapshot()),
            held,
            name,
            tenant,
        }
    }

    fn sink(&self, name: &str, standing: &ReportedHealth) -> Sink {
        let (state, reason) = words(standing);
        Sink {
            name: name.to_owned(),
            state: state.into(),
            reason,
            since: standing.since,
            records_per_sec: self.rate_of_sum(metrics::SINK_RECORDS_TOTAL, name),
            records: self.now.sum(metrics::SINK_RECORDS_TOTAL, name) as u64,
            retries: self.now.sum(metrics::SINK_RETRIES_TOTAL, name) as u64,
            oldest_request_secs: self.now.sum(metrics::SINK_OLDEST_REQUEST_SECONDS, name),
        }
    }

    fn stream(&self, tenant: &str, content_type: &str) -> Stream {
        let get = |name| self.now.get(name, tenant, content_type);
        let count = |name| get(name).unwrap_or_default() as u64;
        let pending = count(metrics::BLOBS_PENDING);
        // Its age is 0 when none is left.
        let of_pending = |name| get(name).filter(|_| pending > 0);
        let complete =
            get(metrics::CHECKPOINT_TIMESTAMP_SECONDS).and_then(|secs| Timestamp::from_second(secs as i64).ok());
        Stream {
            content_type: content_type.into(),
            complete_until: complete,
            lag_secs: get(metrics::LAG_SECONDS),
            quiet_secs: get(metrics::SECONDS_SINCE_CONTENT),
            pending,
            oldest_age_secs: of_pending(metrics::OLDEST_BLOB_AGE_SECONDS),
            expiry_secs: of_pending(metrics::OLDEST_BLOB_EXPIRY_SECONDS),
            events: count(metrics::EVENTS_TOTAL),
            events_per_sec: self.rate(metrics::EVENTS_TOTAL, tenant, content_type),
            bytes_per_sec: self.rate(metrics::RECEIVED_BYTES_TOTAL, tenant, content_type),
            gaps: count(metrics::GAPS_TOTAL),
            healed_gap_secs: count(metrics::HEALED_GAP_SECONDS_TOTAL),
            healed_events: count(metrics::HEALED_EVENTS_TOTAL),
            lost: count(LOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::{Key, Label};
    use std::sync::atomic::Ordering;

    fn table(lines: &[(&'static str, &str, f64)]) -> MetricSample {
        let table = SeriesTable::default();
        for (name, labels, value) in lines {
            let labels = labels.split(' ').filter_map(|label| label.split_once('='));
            let labels: Vec<Label> =
                labels.map(|(name, value)| Label::new(name.to_owned(), value.to_owned())).collect();
            let key = Key::from_parts(*name, labels);
            match metrics::ALL.iter().find(|metric| metric.name == *name).unwrap().kind {
                metrics::MetricKind::Counter => table.counter(&key).unwrap().store(*value as u64, Ordering::Relaxed),
                _ => table.gauge(&key).unwrap().set(*value),
            }
        }
        MetricSample::of_series(&table)
    }

    #[test]
    fn reads_on_hold_name_the_type_that_is_complete_least_far_and_how_far_that_is() {
        let t = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = t("2026-05-03T12:00:00Z");
        let (dlp, general) = ((ContentType::Dlp, Some(t("2026-05-03T09:00:00Z"))), ContentType::General);
        let exchange = (ContentType::Exchange, Some(t("2026-05-01T00:00:00Z")));
        let on_hold = |reads, streams: Vec<_>| held(reads, streams.into_iter(), now);
        assert_eq!(on_hold(0, vec![dlp]), None, "nothing is on hold");
        let waits = on_hold(7, vec![exchange, dlp, (general, Some(t("2026-05-03T11:55:00Z")))]).unwrap();
        assert_eq!(waits.waits_for.as_deref(), Some("DLP.All"), "what brings no matches is not waited for");
        assert_eq!((waits.reads, waits.complete_until, waits.behind_secs), (7, dlp.1, Some(10_800.0)));
        let waits = on_hold(7, vec![dlp, (general, None)]).unwrap();
        assert_eq!((waits.waits_for.as_deref(), waits.behind_secs), (Some("Audit.General"), None), "never complete");
        assert_eq!(on_hold(7, vec![exchange]).unwrap().waits_for, None);
    }

    #[test]
    fn a_stream_is_read_from_the_metrics() {
        const STREAM: &str = "tenant=t1 content_type=Audit.Exchange";
        let now = table(&[
            (metrics::EVENTS_TOTAL, STREAM, 120.0),
            (metrics::BLOBS_TOTAL, "tenant=t1 content_type=Audit.Exchange state=listed", 9.0),
            (metrics::BLOBS_TOTAL, "tenant=t1 content_type=Audit.Exchange state=lost", 2.0),
            (metrics::BLOBS_PENDING, STREAM, 0.0),
            (metrics::OLDEST_BLOB_EXPIRY_SECONDS, STREAM, 300.0),
            (metrics::REQUESTS_TOTAL, "tenant=t1 endpoint=list_content status=200", 3.0),
            (metrics::REQUESTS_TOTAL, "tenant=t1 endpoint=fetch_blob status=200", 7.0),
            (metrics::CHECKPOINT_TIMESTAMP_SECONDS, STREAM, 1.777e9),
            (metrics::SINK_RECORDS_TOTAL, "sink=out", 60.0),
        ]);
        let before = table(&[(metrics::EVENTS_TOTAL, STREAM, 60.0)]);
        let view = SampleView { now: &now, before: &before, seconds: 30.0 };
        let stream = view.stream("t1", "Audit.Exchange");
        assert_eq!((stream.events, stream.events_per_sec, stream.lost), (120, 2.0, 2));
        assert_eq!(stream.expiry_secs, None, "nothing is pending");
        assert_eq!(stream.complete_until, Timestamp::from_second(1_777_000_000).ok());
        assert_eq!(view.rate_of_sum(metrics::REQUESTS_TOTAL, "t1"), 10.0 / 30.0);
        assert_eq!(now.sum(metrics::SINK_RECORDS_TOTAL, "out"), 60.0);
        assert_eq!(view.stream("t2", "Audit.Exchange").events, 0);
    }

    #[test]
    fn a_line_said_again_is_kept_once_and_the_oldest_go() {
        let recent = Recent::default();
        let line = |n: usize| Line { time: Timestamp::UNIX_EPOCH, level: "warn".into(), text: format!("line {n}") };
        for n in 0..60 {
            recent.push(line(n % 55));
        }
        let lines = recent.lines();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!(lines.last().unwrap().text, "line 4");
    }
}
