//! The plugin's metrics: counted on its own threads, shown by Fluent Bit or by the plugin's listener.
//!
//! A library must not take the process's recorder, so each thread of the plugin's runtime gets this one as its own. It
//! lives as long as the process, and its counts as long as the instance: after a reload the counters start again, as
//! the host's own do. A host thread reads them as [`Sample`]s once a second. If the listener is enabled, everything
//! also goes to the recorder of its pages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::{Mutex, RwLock};

use m365_audit::hosts::embedded::recorder::{Recorded, Recorder as PageRecorder};
use m365_audit::metrics::{ALL, Metric, MetricKind};

/// The plugin's recorder.
#[derive(Default)]
pub struct PluginRecorder {
    series: Mutex<HashMap<Key, Series>>,
    listener: RwLock<Option<Arc<PageRecorder>>>,
}

struct Series {
    metric: &'static Metric,
    cell: Arc<AtomicU64>,
    /// Whether the host got a value of it. The host cannot remove a series: without a value it is shown as NaN.
    shown: bool,
}

/// The present value of one series.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Which metric.
    pub metric: &'static Metric,
    /// One value for each of the metric's labels, in their order.
    pub label_values: Vec<String>,
    /// The value.
    pub value: f64,
}

/// The one of this process.
pub fn recorder() -> &'static PluginRecorder {
    static RECORDER: LazyLock<PluginRecorder> = LazyLock::new(PluginRecorder::default);
    &RECORDER
}

/// Makes [`recorder`] the calling thread's own for as long as the thread lives.
pub fn record_this_thread() {
    // The guard would end it; the recorder is never dropped, so there is nothing to end.
    std::mem::forget(metrics::set_default_local_recorder(recorder()));
}

impl PluginRecorder {
    /// The metrics for the listener of a new instance: those counted from now on, since an earlier instance may have
    /// had other tenants.
    pub fn recorded(&self) -> Recorded {
        let (recorder, recorded) = PageRecorder::new();
        *self.listener.write() = Some(Arc::new(recorder));
        recorded
    }

    fn listener(&self) -> Option<Arc<PageRecorder>> {
        self.listener.read().clone()
    }

    /// All series that have a value, or had one at the last call: those are NaN now.
    pub fn samples(&self) -> Vec<Sample> {
        let mut series = self.series.lock();
        series
            .iter_mut()
            .filter_map(|(key, series)| {
                let bits = series.cell.load(Ordering::Relaxed);
                let value = if series.metric.kind == MetricKind::Counter { bits as f64 } else { f64::from_bits(bits) };
                series.shown |= !value.is_nan();
                let label = |name: &&str| key.labels().find(|l| l.key() == *name).map_or("", Label::value).to_owned();
                series.shown.then(|| Sample {
                    metric: series.metric,
                    label_values: series.metric.labels.iter().map(label).collect(),
                    value,
                })
            })
            .collect()
    }

    /// Removes all series.
    pub fn clear(&self) {
        *self.series.lock() = HashMap::new();
    }

    /// `None`: not a metric of this program.
    fn cell(&self, key: &Key, kind: MetricKind) -> Option<Arc<AtomicU64>> {
        let mut series = self.series.lock();
        if let Some(known) = series.get(key) {
            return (known.metric.kind == kind).then(|| known.cell.clone());
        }
        let metric = ALL.iter().find(|metric| metric.name == key.name() && metric.kind == kind)?;
        let cell = Arc::new(AtomicU64::new(0));
        series.insert(key.clone(), Series { metric, cell: cell.clone(), shown: false });
        Some(cell)
    }
}

impl Recorder for PluginRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let listener = self.listener().map(|recorder| recorder.register_counter(key, metadata));
        match (self.cell(key, MetricKind::Counter), listener) {
            (Some(cell), None) => Counter::from_arc(cell),
            (Some(cell), Some(listener)) => Counter::from_arc(Arc::new(Both(cell, listener))),
            (None, _) => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let listener = self.listener().map(|recorder| recorder.register_gauge(key, metadata));
        match (self.cell(key, MetricKind::Gauge), listener) {
            (Some(cell), None) => Gauge::from_arc(cell),
            (Some(cell), Some(listener)) => Gauge::from_arc(Arc::new(Both(cell, listener))),
            (None, _) => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.listener().map_or_else(Histogram::noop, |recorder| recorder.register_histogram(key, metadata))
    }
}

/// The plugin's and the listener's.
struct Both<T>(Arc<AtomicU64>, T);

impl CounterFn for Both<Counter> {
    fn increment(&self, value: u64) {
        CounterFn::increment(&*self.0, value);
        self.1.increment(value);
    }

    fn absolute(&self, value: u64) {
        CounterFn::absolute(&*self.0, value);
        self.1.absolute(value);
    }
}

impl GaugeFn for Both<Gauge> {
    fn increment(&self, value: f64) {
        GaugeFn::increment(&*self.0, value);
        self.1.increment(value);
    }

    fn decrement(&self, value: f64) {
        GaugeFn::decrement(&*self.0, value);
        self.1.decrement(value);
    }

    fn set(&self, value: f64) {
        GaugeFn::set(&*self.0, value);
        self.1.set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m365_audit::config::MetricsDetail;
    use m365_audit::metrics::{ABSENT, EVENTS_TOTAL, LAG_SECONDS};

    #[test]
    fn counters_and_gauges_are_read_with_their_labels_in_the_order_of_the_table() {
        let recorder = PluginRecorder::default();
        let count = || {
            metrics::counter!(EVENTS_TOTAL, "content_type" => "DLP.All", "tenant" => "t").increment(3);
            metrics::gauge!(LAG_SECONDS, "tenant" => "t", "content_type" => "DLP.All").set(1.5);
            metrics::counter!("somebody_elses_total").increment(1);
        };
        metrics::with_local_recorder(&recorder, count);
        let page = recorder.recorded();
        metrics::with_local_recorder(&recorder, count);
        let mut samples = recorder.samples();
        samples.sort_by_key(|sample| sample.metric.name);
        let seen: Vec<(&str, String, f64)> =
            samples.iter().map(|s| (s.metric.name, s.label_values.join(" "), s.value)).collect();
        assert_eq!(seen, [(EVENTS_TOTAL, "t DLP.All".to_owned(), 6.0), (LAG_SECONDS, "t DLP.All".to_owned(), 1.5)]);
        let absent = || {
            metrics::gauge!(LAG_SECONDS, "tenant" => "t", "content_type" => "DLP.All").set(ABSENT);
            metrics::gauge!(LAG_SECONDS, "tenant" => "never", "content_type" => "DLP.All").set(ABSENT);
        };
        metrics::with_local_recorder(&recorder, absent);
        let gauges: Vec<Sample> =
            recorder.samples().into_iter().filter(|s| s.metric.kind == MetricKind::Gauge).collect();
        assert!(matches!(&*gauges, [gauge] if gauge.value.is_nan() && gauge.label_values[0] == "t"), "{gauges:?}");
        recorder.clear();
        assert!(recorder.samples().is_empty());
        let next = recorder.recorded();
        metrics::with_local_recorder(&recorder, count);
        let (page, next) = (page.page(MetricsDetail::Tenant), next.page(MetricsDetail::Tenant));
        assert!(next.contains("} 3") && !next.contains("never"), "the page of a new instance begins anew: {next}");
        assert!(page.contains("m365_audit_events_total") && page.contains("} 3"), "{page}");
    }
}
