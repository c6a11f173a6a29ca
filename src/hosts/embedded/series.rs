//! Every counter and gauge of this program, and the page that shows them.
//!
//! The library's own page has every series with every label and copies all of them to sort them; for a thousand tenants
//! that is megabytes and a tenth of a second at each scrape. Here a page by tenant adds up as it goes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use metrics::{Gauge, Key, Label};
use metrics_util::registry::{AtomicStorage, Registry};

use crate::config::MetricsDetail;
use crate::metrics::{ALL, ByTenant, Metric};

/// The prefix of this program's metrics.
const OURS: &str = "m365_audit_";

/// Counters and gauges. Cheap to clone.
#[derive(Clone)]
pub struct SeriesTable(Arc<Registry<Key, AtomicStorage>>);

impl Default for SeriesTable {
    fn default() -> Self {
        Self(Arc::new(Registry::new(AtomicStorage)))
    }
}

impl SeriesTable {
    /// The cell of a counter; `None` when it is not one of ours.
    pub(super) fn counter(&self, key: &Key) -> Option<Arc<AtomicU64>> {
        key.name().starts_with(OURS).then(|| self.0.get_or_create_counter(key, Arc::clone))
    }

    /// A gauge; `None` when it is not one of ours.
    pub(super) fn gauge(&self, key: &Key) -> Option<Gauge> {
        key.name().starts_with(OURS).then(|| self.0.get_or_create_gauge(key, |gauge| Gauge::from_arc(gauge.clone())))
    }

    /// Every series that has a value.
    pub(super) fn visit(&self, mut look: impl FnMut(&Key, f64)) {
        self.0.visit_counters(|key, counter| look(key, counter.load(Ordering::Relaxed) as f64));
        self.0.visit_gauges(|key, gauge| {
            let value = f64::from_bits(gauge.load(Ordering::Relaxed));
            if !value.is_nan() {
                look(key, value);
            }
        });
    }

    /// The series in Prometheus text.
    pub fn page(&self, detail: MetricsDetail) -> String {
        let places: HashMap<&str, usize, RandomState> =
            ALL.iter().enumerate().map(|(at, metric)| (metric.name, at)).collect();
        let mut families: Vec<String> = vec![String::new(); ALL.len()];
        let mut others = String::new();
        // By tenant, a place for each metric.
        let mut sums: HashMap<String, Vec<Option<f64>>, RandomState> = HashMap::default();
        self.visit(|key, value| {
            let Some(at) = places.get(key.name()).copied() else {
                write_series(&mut others, key.name(), key.labels().map(pair), value);
                return;
            };
            let (Some(metric), Some(family)) = (ALL.get(at), families.get_mut(at)) else { return };
            let by_tenant = match detail {
                MetricsDetail::Tenant => metric.by_tenant,
                MetricsDetail::ContentType => ByTenant::Kept,
            };
            if by_tenant == ByTenant::Kept {
                write_series(family, metric.name, key.labels().map(pair), value);
            } else if by_tenant != ByTenant::Finer {
                let tenant = label(key, "tenant").unwrap_or_default();
                if let Some(sums) = sums.get_mut(tenant) {
                    add(sums, at, by_tenant, value);
                } else {
                    let mut first = vec![None; ALL.len()];
                    add(&mut first, at, by_tenant, value);
                    sums.insert(tenant.to_owned(), first);
                }
            }
        });
        for (tenant, sums) in &sums {
            for ((metric, family), sum) in ALL.iter().zip(&mut families).zip(sums) {
                if let Some(sum) = sum {
                    write_series(family, metric.name, [("tenant", tenant.as_str())].into_iter(), *sum);
                }
            }
        }
        let mut page = String::with_capacity(families.iter().map(String::len).sum::<usize>() + ALL.len() * 256);
        for (metric, family) in ALL.iter().zip(&families).filter(|(_, family)| !family.is_empty()) {
            write_head(&mut page, metric);
            page.push_str(family);
        }
        page.push_str(&others);
        page
    }
}

/// The value of a label.
pub(super) fn label<'a>(key: &'a Key, name: &str) -> Option<&'a str> {
    key.labels().find(|label| label.key() == name).map(Label::value)
}

fn pair(label: &Label) -> (&str, &str) {
    (label.key(), label.value())
}

/// Adds a series of the metric at this place to the tenant's value.
fn add(sums: &mut [Option<f64>], at: usize, by_tenant: ByTenant, value: f64) {
    let Some(sum) = sums.get_mut(at) else { return };
    *sum = Some(match (by_tenant, *sum) {
        (_, None) => value,
        (ByTenant::Max, Some(sum)) => sum.max(value),
        (ByTenant::Min, Some(sum)) => sum.min(value),
        (ByTenant::Sum | ByTenant::Kept | ByTenant::Finer, Some(sum)) => sum + value,
    });
}

/// The lines before a metric's series.
pub(super) fn write_head(page: &mut String, metric: &Metric) {
    let kind = metric.kind.as_str();
    let help = metric.help.replace('\\', "\\\\");
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}", name = metric.name);
}

/// One series as a line of a page.
pub(super) fn write_series<'a>(
    page: &mut String,
    name: &str,
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    value: f64,
) {
    page.push_str(name);
    let mut between = '{';
    for (name, value) in labels {
        page.push(between);
        page.push_str(name);
        page.push_str("=\"");
        if value.contains(['\\', '"', '\n']) {
            page.push_str(&value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        } else {
            page.push_str(value);
        }
        page.push('"');
        between = ',';
    }
    if between == ',' {
        page.push('}');
    }
    let _ = writeln!(page, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{self, MetricKind};

    fn set(table: &SeriesTable, name: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        let key = Key::from_parts(name, labels);
        match ALL.iter().find(|metric| metric.name == name).unwrap().kind {
            MetricKind::Counter => table.counter(&key).unwrap().store(value as u64, Ordering::Relaxed),
            _ => table.gauge(&key).unwrap().set(value),
        }
    }

    fn table() -> SeriesTable {
        let table = SeriesTable::default();
        for (content_type, events, lag, age) in [("Audit.Exchange", 3.0, 60.0, 30.0), ("DLP.All", 4.0, 9000.0, 0.0)] {
            let labels = [("tenant", "t1"), ("content_type", content_type)];
            set(&table, metrics::EVENTS_TOTAL, &labels, events);
            set(&table, metrics::LAG_SECONDS, &labels, lag);
            set(&table, metrics::OLDEST_BLOB_EXPIRY_SECONDS, &labels, lag * 10.0);
            set(&table, metrics::OLDEST_BLOB_AGE_SECONDS, &labels, age);
        }
        set(&table, metrics::LAG_SECONDS, &[("tenant", "t2"), ("content_type", "DLP.All")], metrics::ABSENT);
        set(&table, metrics::SOURCE_INFO, &[("tenant", "t1"), ("source", "a\"b\\c\nd")], 1.0);
        table
    }

    fn lines(page: &str) -> Vec<&str> {
        let mut lines: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn a_page_by_tenant_has_sums_the_worst_content_type_and_no_finer_series() {
        let page = table().page(MetricsDetail::Tenant);
        assert_eq!(
            lines(&page),
            [
                "m365_audit_events_total{tenant=\"t1\"} 7",
                "m365_audit_lag_seconds{tenant=\"t1\"} 9000",
                "m365_audit_oldest_unsettled_blob_expiry_seconds{tenant=\"t1\"} 600",
                "m365_audit_source_info{tenant=\"t1\",source=\"a\\\"b\\\\c\\nd\"} 1",
            ]
        );
        assert!(page.contains("# TYPE m365_audit_events_total counter\nm365_audit_events_total{"), "{page}");
    }

    #[test]
    fn the_finer_page_has_every_series_that_has_a_value() {
        let page = table().page(MetricsDetail::ContentType);
        assert_eq!(lines(&page).len(), 9, "{page}");
        assert!(page.contains("m365_audit_lag_seconds{tenant=\"t1\",content_type=\"Audit.Exchange\"} 60\n"), "{page}");
        assert!(!page.contains("t2") && !page.contains("NaN"), "{page}");
    }

    /// More series than this many tenants have after some days (some 65 each), and long names.
    fn fleet(tenants: usize) -> SeriesTable {
        const TYPES: [&str; 5] =
            ["Audit.AzureActiveDirectory", "Audit.Exchange", "Audit.SharePoint", "Audit.General", "DLP.All"];
        let table = SeriesTable::default();
        for number in 0..tenants {
            let tenant = format!("00000000-0000-4000-8000-{number:012}");
            let source = format!("customers.a-customer-with-a-long-name-{number}");
            for metric in ALL.iter().filter(|metric| metric.labels.contains(&"tenant")) {
                let finer: &[&str] = match metric.labels.last().copied().unwrap_or_default() {
                    "state" | "status" | "kind" => &["listed", "settled"],
                    _ => &["200"],
                };
                let types: &[&str] = if metric.labels.contains(&"content_type") { &TYPES } else { &[""] };
                for (content_type, finer) in types.iter().flat_map(|t| finer.iter().map(move |f| (*t, *f))) {
                    let value_of = |name: &str| match name {
                        "tenant" => tenant.as_str(),
                        "source" => source.as_str(),
                        "content_type" => content_type,
                        _ => finer,
                    };
                    let labels: Vec<_> = metric.labels.iter().map(|name| (*name, value_of(name))).collect();
                    set(&table, metric.name, &labels, 1_777_000_000.0 + number as f64);
                }
            }
        }
        table
    }

    #[test]
    fn a_page_of_a_thousand_tenants_is_under_four_megabytes() {
        let page = fleet(1000).page(MetricsDetail::Tenant);
        assert!(page.len() < 4_000_000, "{} bytes", page.len());
        let series = page.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series <= 1000 * metrics::SERIES_OF_TENANT_MAX, "{series} series");
    }

    /// CPU time of this thread, without other work of the machine.
    fn cpu_time() -> std::time::Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    /// `cargo test --release --lib how_long_a_page -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn how_long_a_page_of_a_thousand_tenants_takes() {
        let table = fleet(1000);
        for detail in [MetricsDetail::Tenant, MetricsDetail::ContentType] {
            let pages: Vec<_> = (0..20)
                .map(|_| {
                    let begun = cpu_time();
                    (table.page(detail).len(), cpu_time() - begun)
                })
                .collect();
            let mut times: Vec<_> = pages.iter().map(|(_, time)| *time).collect();
            times.sort_unstable();
            println!(
                "{detail:?}: {} bytes, {:?} (median of 20; {:?} to {:?})",
                pages[0].0, times[10], times[0], times[19]
            );
        }
    }
}
