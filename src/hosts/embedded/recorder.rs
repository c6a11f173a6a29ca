//! The process's metrics recorder: Prometheus text for scrapes, and the counters from which rates are computed.
//!
//! A rate needs the value of a counter a minute ago. Keeping that as text, or as a map of every series, would cost a
//! process with a thousand tenants more memory and time than all its polls. So the few counters that rates use are
//! counted here a second time, where they can be read without rendering.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::{Mutex, MutexGuard};

use super::series::{SeriesTable, label};
use crate::checkpoint::lateness;
use crate::config::MetricsDetail;
use crate::metrics as names;

/// The counters for which rates are shown.
const RATED: [&str; 5] = [
    names::REQUESTS_TOTAL,
    names::THROTTLED_TOTAL,
    names::EVENTS_TOTAL,
    names::RECEIVED_BYTES_TOTAL,
    names::SINK_RECORDS_TOTAL,
];

/// The recorded metrics. Cheap to clone.
#[derive(Clone)]
pub struct Recorded {
    /// The counters and gauges of this program.
    pub series: SeriesTable,
    /// Histograms, and the metrics of other libraries.
    pub prometheus: PrometheusHandle,
    /// The counters that rates use.
    pub rated: Rated,
}

impl Recorded {
    /// All metrics in Prometheus text.
    pub fn page(&self, detail: MetricsDetail) -> String {
        self.series.page(detail) + &self.prometheus.render()
    }
}

/// The process has a metrics recorder.
#[derive(Debug, thiserror::Error)]
#[error("this process has a metrics recorder already")]
pub struct InstalledAlready;

/// Bucket bounds for the latency of a cluster's database, in seconds.
const STORE_BOUNDS: [f64; 9] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];

/// The builder for histograms, with the bucket bounds of this program.
fn prometheus_builder() -> PrometheusBuilder {
    let bounds = lateness::BOUNDS_SECS.map(|secs| secs as f64);
    let mut prometheus = PrometheusBuilder::new();
    for name in [names::EVENT_LATENESS_SECONDS, names::BLOB_LATENESS_SECONDS] {
        // It refuses only a list without bounds.
        prometheus = prometheus.set_buckets_for_metric(Matcher::Full(name.to_owned()), &bounds).unwrap_or_default();
    }
    for name in [names::STORE_COMMIT_SECONDS, names::TAKEOVER_SECONDS] {
        prometheus =
            prometheus.set_buckets_for_metric(Matcher::Full(name.to_owned()), &STORE_BOUNDS).unwrap_or_default();
    }
    prometheus
}

/// Installs the process's metrics recorder and describes every metric to it. For the binary alone: a library must not.
///
/// # Errors
/// When the process has one already.
pub fn install() -> Result<Recorded, InstalledAlready> {
    let (recorder, recorded) = Recorder::new();
    metrics::set_global_recorder(recorder).map_err(|_| InstalledAlready)?;
    Ok(recorded)
}

/// The counters that rates use, summed by tenant or sink and by content type over all other labels. Cheap to clone.
#[derive(Clone, Default)]
pub struct Rated(Arc<Mutex<CounterTable>>);

#[derive(Default)]
struct CounterTable {
    by_owner: HashMap<Box<str>, Vec<RatedCounter>>,
    slots: usize,
}

struct RatedCounter {
    number: usize,
    name: &'static str,
    part: Box<str>,
    count: Arc<AtomicU64>,
}

/// The value of every counter, by the number of its slot.
pub type CounterValues = Vec<u64>;

impl Rated {
    /// The values of the counters.
    pub fn counts(&self) -> CounterValues {
        let table = self.lock();
        let mut counts = vec![0; table.slots];
        for slot in table.by_owner.values().flatten() {
            if let Some(count) = counts.get_mut(slot.number) {
                *count = slot.count.load(Ordering::Relaxed);
            }
        }
        counts
    }

    /// Name, tenant or sink, and content type of every counter, with its value in `counts`; 0 if it is younger.
    pub fn named(&self, counts: &CounterValues) -> Vec<(String, String, String, u64)> {
        let table = self.lock();
        let named = |(owner, slot): (&str, &RatedCounter)| {
            let count = counts.get(slot.number).copied().unwrap_or(0);
            (slot.name.to_owned(), owner.to_owned(), slot.part.to_string(), count)
        };
        table
            .by_owner
            .iter()
            .flat_map(|(owner, slots)| slots.iter().map(move |slot| (&**owner, slot)))
            .map(named)
            .collect()
    }

    /// The counter that a series adds to, if rates use it.
    fn of(&self, key: &Key) -> Option<Arc<AtomicU64>> {
        let name = RATED.into_iter().find(|name| *name == key.name())?;
        let owner = label(key, "tenant").or_else(|| label(key, "sink")).unwrap_or_default();
        let part = label(key, "content_type").unwrap_or_default();
        let mut guard = self.lock();
        let table = &mut *guard;
        let known = table.by_owner.get(owner).into_iter().flatten();
        if let Some(slot) = { known }.find(|slot| slot.name == name && &*slot.part == part) {
            return Some(slot.count.clone());
        }
        let count = Arc::new(AtomicU64::new(0));
        let slot = RatedCounter { number: table.slots, name, part: part.into(), count: count.clone() };
        table.slots += 1;
        table.by_owner.entry(owner.into()).or_default().push(slot);
        Some(count)
    }

    fn lock(&self) -> MutexGuard<'_, CounterTable> {
        self.0.lock()
    }
}

/// Records into a [`Recorded`].
pub struct Recorder {
    series: SeriesTable,
    prometheus: PrometheusRecorder,
    rated: Rated,
}

impl Recorder {
    /// A new recorder, and the metrics it records.
    pub fn new() -> (Self, Recorded) {
        let (series, prometheus, rated) =
            (SeriesTable::default(), prometheus_builder().build_recorder(), Rated::default());
        metrics::with_local_recorder(&prometheus, names::describe);
        let recorded = Recorded { series: series.clone(), prometheus: prometheus.handle(), rated: rated.clone() };
        (Self { series, prometheus, rated }, recorded)
    }
}

/// One counter that is counted twice.
struct Both {
    shown: Arc<AtomicU64>,
    rated: Arc<AtomicU64>,
}

impl CounterFn for Both {
    fn increment(&self, value: u64) {
        self.shown.fetch_add(value, Ordering::Relaxed);
        self.rated.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.shown.fetch_max(value, Ordering::Relaxed);
        self.rated.fetch_max(value, Ordering::Relaxed);
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let Some(cell) = self.series.counter(key) else { return self.prometheus.register_counter(key, metadata) };
        match self.rated.of(key) {
            Some(rated) => Counter::from_arc(Arc::new(Both { shown: cell, rated })),
            None => Counter::from_arc(cell),
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.series.gauge(key).unwrap_or_else(|| self.prometheus.register_gauge(key, metadata))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.prometheus.register_histogram(key, metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rated_counter_is_summed_over_its_other_labels_and_shown_as_it_was_recorded() {
        let (recorder, recorded) = Recorder::new();
        let rated = recorded.rated.clone();
        let requests = |status: &'static str, n| {
            metrics::counter!(names::REQUESTS_TOTAL, "tenant" => "t1", "endpoint" => "token", "status" => status)
                .increment(n);
        };
        let (before, after) = metrics::with_local_recorder(&recorder, || {
            requests("200", 2);
            requests("503", 3);
            let before = rated.counts();
            requests("200", 4);
            metrics::counter!(names::EVENTS_TOTAL, "tenant" => "t1", "content_type" => "DLP.All").increment(7);
            metrics::counter!(names::GAPS_TOTAL, "tenant" => "t1", "content_type" => "DLP.All").increment(1);
            (before, rated.counts())
        });
        let of = |counts: &CounterValues| {
            let mut named = rated.named(counts);
            named.sort();
            named
                .into_iter()
                .map(|(name, owner, part, count)| (name, format!("{owner} {part}"), count))
                .collect::<Vec<_>>()
        };
        let row = |name: &str, of: &str, count| (name.to_owned(), of.to_owned(), count);
        assert_eq!(of(&before), [row(names::EVENTS_TOTAL, "t1 DLP.All", 0), row(names::REQUESTS_TOTAL, "t1 ", 5)]);
        assert_eq!(of(&after), [row(names::EVENTS_TOTAL, "t1 DLP.All", 7), row(names::REQUESTS_TOTAL, "t1 ", 9)]);
        let text = recorded.page(MetricsDetail::ContentType);
        assert!(text.contains("status=\"200\"} 6") && text.contains("status=\"503\"} 3"), "{text}");
        assert!(text.contains(names::GAPS_TOTAL), "{text}");
    }
}
