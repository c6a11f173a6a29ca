//! Every metric: its name, kind, unit, labels and help. No other module spells a metric name.
//!
//! Recording goes through the `metrics` facade with the constants below; the program chooses the recorder. Labels are
//! bounded: no blob ids, no user names. Names follow the agents' conventions: counters end in `_total`, units are base
//! units.
//!
//! The facade cannot remove a series. A gauge without a value is set to [`ABSENT`], and this program's own pages leave
//! such a series out.

use crate::model::{ContentType, TenantId};

/// Counter, gauge or histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

impl MetricKind {
    /// The name in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// How a metric's series are reduced on a page with few for each tenant (`[metrics] detail = "tenant"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByTenant {
    /// They are shown unchanged.
    Kept,
    /// They become one series for each tenant: the sum.
    Sum,
    /// They become one series for each tenant: the largest.
    Max,
    /// They become one series for each tenant: the smallest.
    Min,
    /// They are left out.
    Finer,
}

impl ByTenant {
    /// The text in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "the same",
            Self::Sum => "`tenant`: the sum",
            Self::Max => "`tenant`: the largest",
            Self::Min => "`tenant`: the smallest",
            Self::Finer => "left out",
        }
    }
}

/// One metric's description.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The full name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels, in the order they are written.
    pub labels: &'static [&'static str],
    /// How a page with few series for each tenant shows it.
    pub by_tenant: ByTenant,
    /// One sentence for the operator.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($(#[$doc:meta])* $ident:ident = $kind:ident $name:literal [$($label:literal),*] $by_tenant:ident $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: &str = $name;
        )*
        /// All metrics, in the order the reference page lists them.
        pub const ALL: &[Metric] = &[
            $(Metric {
                name: $name,
                kind: MetricKind::$kind,
                labels: &[$($label),*],
                by_tenant: ByTenant::$by_tenant,
                help: $help,
            },)*
        ];
    };
}

metrics_table! {
    SOURCE_INFO = Gauge "m365_audit_source_info" ["tenant", "source"] Kept "1: the name of a tenant's source in the configuration, to join to the other series by `tenant`; absent when it is no longer configured.";
    EVENTS_TOTAL = Counter "m365_audit_events_total" ["tenant", "content_type"] Sum "Events the host has confirmed.";
    RECEIVED_BYTES_TOTAL = Counter "m365_audit_received_bytes_total" ["tenant", "content_type"] Sum "Bytes of blob content received, after decompression.";
    BLOBS_TOTAL = Counter "m365_audit_blobs_total" ["tenant", "content_type", "state"] Finer "Content blobs by what happened to them: `listed` (first seen), `settled`, `failed` (one failed fetch), `lost` (expired before it could be read).";
    BLOBS_PENDING = Gauge "m365_audit_blobs_pending" ["tenant", "content_type"] Sum "Content blobs listed and not yet settled.";
    OLDEST_BLOB_AGE_SECONDS = Gauge "m365_audit_oldest_unsettled_blob_age_seconds" ["tenant", "content_type"] Finer "Age of the oldest unsettled blob by its contentCreated; 0 when there is none.";
    OLDEST_BLOB_EXPIRY_SECONDS = Gauge "m365_audit_oldest_unsettled_blob_expiry_seconds" ["tenant", "content_type"] Min "Seconds until the unsettled blob nearest to its contentExpiration is gone; absent when there is none.";
    DUPLICATES_TOTAL = Counter "m365_audit_duplicates_total" ["tenant", "content_type", "level"] Finer "What was not delivered again: `blob` (listed again after it was settled) or `event` (the same event in another blob).";
    EVENT_LATENESS_SECONDS = Histogram "m365_audit_event_lateness_seconds" ["content_type"] Kept "How long after events (CreationTime) Microsoft made their blobs (contentCreated), of all tenants; exact up to the bounds of its buckets.";
    BLOB_LATENESS_SECONDS = Histogram "m365_audit_blob_lateness_seconds" ["content_type"] Kept "How long after blobs were made (contentCreated) this process had read them, of all tenants; time in which it did not run counts.";
    DROPPED_EVENTS_TOTAL = Counter "m365_audit_dropped_events_total" ["tenant", "content_type", "reason"] Sum "Events not shipped by rule, by the rule's name.";
    HELD_EVENTS = Gauge "m365_audit_held_events" ["tenant"] Kept "Routine reads kept on disk until it is known whether data loss prevention flags the item.";
    HELD_BYTES = Gauge "m365_audit_held_bytes" ["tenant"] Finer "Bytes they take; beyond `hold_bytes_max` the oldest are shipped.";
    RELEASED_EVENTS_TOTAL = Counter "m365_audit_released_events_total" ["tenant", "content_type", "reason"] Finer "Routine reads that were kept and then shipped: `flagged` (data loss prevention matched the item) or `undetermined` (there was no room to wait).";
    DLP_FLAGS = Gauge "m365_audit_dlp_flags" ["tenant"] Finer "Files, addresses and messages known to be flagged by data loss prevention.";
    BAD_RECORDS_TOTAL = Counter "m365_audit_bad_records_total" ["tenant", "content_type"] Sum "Records of type m365_audit.bad_blob: bytes that could not be read as events and were shipped as they are.";
    EMPTY_ANSWERS_TOTAL = Counter "m365_audit_empty_answers_total" ["tenant", "content_type", "endpoint"] Finer "Answers without content where there should be some, each asked for again before it is believed: a listed blob without events (`fetch_blob`), a listing that is `null` (`list_content`).";
    REQUESTS_TOTAL = Counter "m365_audit_requests_total" ["tenant", "endpoint", "status"] Sum "HTTP requests by endpoint (`token`, `list_subscriptions`, `start_subscription`, `stop_subscription`, `list_content`, `fetch_blob`; of Microsoft Graph `graph_submit`, `graph_query`, `graph_records`) and answer (the status code, or `error` when there was none).";
    THROTTLED_TOTAL = Counter "m365_audit_throttled_total" ["tenant"] Kept "Answers that said AF429: too many requests.";
    GRANTED_REQUESTS_PER_MINUTE = Gauge "m365_audit_granted_requests_per_minute" ["tenant"] Kept "Requests a minute that Microsoft is taken to grant: 98 % of `max_requests_per_minute` until refusals show that it is less; absent without a limit.";
    ERRORS_TOTAL = Counter "m365_audit_errors_total" ["tenant", "kind"] Sum "Failures by the slug of their page in docs/errors.";
    LAG_SECONDS = Gauge "m365_audit_lag_seconds" ["tenant", "content_type"] Max "Now minus contentCreated of the newest blob delivered since the process started, by Microsoft's clock; absent before the first. Set within a second of a delivery, and every 15 seconds.";
    SECONDS_SINCE_CONTENT = Gauge "m365_audit_seconds_since_content" ["tenant", "content_type"] Min "Seconds since a listing last named a blob not seen before (since the start of the process when none did).";
    CHECKPOINT_TIMESTAMP_SECONDS = Gauge "m365_audit_checkpoint_timestamp_seconds" ["tenant", "content_type"] Min "complete_until: everything Microsoft made available before it is settled (Unix time).";
    GAPS_TOTAL = Counter "m365_audit_gaps_total" ["tenant", "content_type", "reason"] Sum "Gaps declared: intervals that can never be read, by reason (`outage`, `subscription_disabled`, `blob_expired`, `position_moved`).";
    GAP_SECONDS_TOTAL = Counter "m365_audit_gap_seconds_total" ["tenant", "content_type"] Sum "Summed length of the gaps declared.";
    HEAL_SEARCHES_TOTAL = Counter "m365_audit_heal_searches_total" ["tenant"] Finer "Searches of the audit log submitted to Microsoft Graph, to fill gaps.";
    HEALED_EVENTS_TOTAL = Counter "m365_audit_healed_events_total" ["tenant", "content_type"] Finer "Events delivered that came from Microsoft Graph.";
    HEALED_GAP_SECONDS_TOTAL = Counter "m365_audit_healed_gap_seconds_total" ["tenant", "content_type"] Finer "Summed length of the gaps filled through Microsoft Graph.";
    IN_FLIGHT_BYTES = Gauge "m365_audit_in_flight_bytes" ["tenant"] Kept "Bytes fetched or rendered and not yet confirmed by the host.";
    REFUSED_BATCHES_TOTAL = Counter "m365_audit_refused_batches_total" ["tenant"] Kept "Deliveries the host refused; they are sent again.";
    SET_ASIDE_RECORDS = Gauge "m365_audit_set_aside_records" ["tenant"] Kept "Records the host rejected for good, kept in the state store.";
    CLOCK_SKEW_SECONDS = Gauge "m365_audit_clock_skew_seconds" ["tenant"] Kept "Microsoft's clock minus this machine's.";
    CREDENTIAL_EXPIRY_TIMESTAMP_SECONDS = Gauge "m365_audit_credential_expiry_timestamp_seconds" ["tenant"] Kept "When the client certificate ends, or the client secret by `client_secret_expires` (Unix time); absent where nothing tells.";
    HEALTH = Gauge "m365_audit_health" ["tenant"] Kept "0 healthy, 1 degraded, 2 failed; absent when the tenant is no longer configured.";
    HEALTH_CAUSE = Gauge "m365_audit_health_cause" ["tenant", "source", "cause"] Kept "1 while a source is degraded or failed: the slug its reason begins with, which is the name of its page in docs/errors. On our own pages alone.";
    LEASES_HELD = Gauge "m365_audit_lease_held" [] Kept "Tenants of a cluster that this process reads.";
    LEASE_LOST_TOTAL = Counter "m365_audit_lease_lost_total" ["reason"] Kept "How often leases were lost, or given up out of turn: `expired` (this process was silent), `replaced` (another has its name), `conflict` (another wrote a tenant's state), `failed` (a source failed again and again, another member tries), `gone`.";
    TAKEOVERS_TOTAL = Counter "m365_audit_takeovers_total" [] Kept "Leases taken.";
    TAKEOVER_SECONDS = Histogram "m365_audit_takeover_seconds" [] Kept "How long taking a lease took in the cluster's store.";
    STORE_COMMIT_SECONDS = Histogram "m365_audit_store_commit_seconds" [] Kept "How long commits to the cluster's store took.";
    CLUSTER_MEMBERS = Gauge "m365_audit_members" [] Kept "Live members of the cluster, as this process sees them.";
    TENANTS_WITHOUT_MEMBER = Gauge "m365_audit_tenants_without_member" [] Kept "Tenants of the configuration that no live member of the cluster reads, as this process sees them.";
    SINK_RECORDS_TOTAL = Counter "m365_audit_sink_records_total" ["sink"] Kept "Records a sink of the embedded host has confirmed.";
    SINK_RETRIES_TOTAL = Counter "m365_audit_sink_retries_total" ["sink"] Kept "Failed writes of a sink of the embedded host; they are tried again.";
    SINK_FILTERED_TOTAL = Counter "m365_audit_sink_filtered_total" ["sink"] Kept "Records that are not for a sink of the embedded host (`min_severity`, `categories`, `event_types`); they count as delivered there.";
    SINK_OVERSIZED_TOTAL = Counter "m365_audit_sink_oversized_total" ["sink"] Kept "Records over `record_bytes_max` of a sink of the embedded host, set aside without being sent.";
    SINK_FILE_CUT_TOTAL = Counter "m365_audit_sink_file_cut_total" ["sink"] Kept "How often the file of a `file` sink was found shorter than it was left, or with other content.";
    STATE_WAITING_SECONDS = Gauge "m365_audit_state_waiting_seconds" ["tenant"] Finer "How long a commit to the state store has been under way, once it takes longer than 10 seconds; 0 when it has ended.";
    READING_TENANTS = Gauge "m365_audit_reading_tenants" [] Kept "Tenants that read blobs now, at most `catch_up_tenants_max`.";
    WAITING_TENANTS = Gauge "m365_audit_waiting_tenants" [] Kept "Tenants that have blobs to read and wait for their turn.";
    TURN_WAITING_SECONDS = Gauge "m365_audit_turn_waiting_seconds" ["tenant"] Kept "How long a tenant has waited for its turn to read blobs; 0 when it has come, absent when it never had to wait.";
    SINK_HELD_BACK = Gauge "m365_audit_sink_held_back" ["sink"] Kept "1 while the receiver of a sink takes nothing (it rejects everything, or fails or does not answer each time), so that nothing is set aside and all records wait; else 0. Busy or out of reach is not meant.";
    SINK_OLDEST_REQUEST_SECONDS = Gauge "m365_audit_sink_oldest_request_seconds" ["sink"] Kept "Age of the oldest request of a sink that has no answer yet; 0 when none is under way.";
}

/// Series of one tenant, at most, on a page by tenant.
pub const SERIES_OF_TENANT_MAX: usize = 25;

/// Recorded in place of a gauge's value when there is none: NaN, which no comparison in an alert matches. This
/// program's own pages leave such a series out; another recorder's page shows `NaN`. Its sign is positive: C prints the
/// negative one as `-nan`, for which Prometheus rejects the whole page.
pub const ABSENT: f64 = f64::from_bits(0x7ff8_0000_0000_0000);

/// Clears the gauges of a tenant, except its health: its source has ended, and their last values would look current.
pub fn source_ended(tenant: &TenantId) {
    for metric in
        ALL.iter().filter(|metric| metric.kind == MetricKind::Gauge && ![HEALTH, SOURCE_INFO].contains(&metric.name))
    {
        match metric.labels {
            ["tenant"] => metrics::gauge!(metric.name, "tenant" => tenant_label(tenant)).set(ABSENT),
            ["tenant", "content_type"] => {
                for content_type in ContentType::ALL {
                    let content_type = content_type.as_str();
                    metrics::gauge!(metric.name, "tenant" => tenant_label(tenant), "content_type" => content_type)
                        .set(ABSENT);
                }
            }
            _ => {}
        }
    }
}

/// Sets the name of a tenant whose source begins.
pub fn source_begun(source: &str, tenant: &TenantId) {
    metrics::gauge!(SOURCE_INFO, "tenant" => tenant_label(tenant), "source" => source.to_owned()).set(1.0);
}

/// Clears all gauges of a tenant whose source is no longer configured, including its health and its name.
pub fn source_removed(source: &str, tenant: &TenantId) {
    source_ended(tenant);
    metrics::gauge!(HEALTH, "tenant" => tenant_label(tenant)).set(ABSENT);
    metrics::gauge!(SOURCE_INFO, "tenant" => tenant_label(tenant), "source" => source.to_owned()).set(ABSENT);
}

/// Counts leases that a member of a cluster lost.
pub fn lease_lost(reason: &'static str) {
    metrics::counter!(LEASE_LOST_TOTAL, "reason" => reason).increment(1);
}

/// Records that a member of a cluster took a lease.
pub fn taken_over(took: std::time::Duration) {
    metrics::counter!(TAKEOVERS_TOTAL).increment(1);
    metrics::histogram!(TAKEOVER_SECONDS).record(took.as_secs_f64());
}

/// Records an accepted commit to the store of a cluster.
pub fn store_committed(took: std::time::Duration) {
    metrics::histogram!(STORE_COMMIT_SECONDS).record(took.as_secs_f64());
}

/// The label `tenant`: one text for all of a tenant's series.
pub fn tenant_label(tenant: &TenantId) -> metrics::SharedString {
    metrics::SharedString::from_shared(tenant.shared())
}

/// Gives every metric its help text, for recorders that show one.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_a_bounded_number_of_series_by_default() {
        let of_a_tenant = |metric: &&Metric| metric.labels.contains(&"tenant") && metric.by_tenant != ByTenant::Finer;
        let names: Vec<&str> = ALL.iter().filter(of_a_tenant).map(|metric| metric.name).collect();
        assert!(names.len() <= SERIES_OF_TENANT_MAX, "{} series: {names:#?}", names.len());
        for metric in ALL.iter().filter(|metric| metric.by_tenant == ByTenant::Kept) {
            // A kept metric has one series a tenant: with a second label it would have one for each of its values.
            let is_one = match metric.labels {
                ["tenant"] | ["sink"] | [] => true,
                _ => {
                    [SOURCE_INFO, HEALTH_CAUSE, LEASE_LOST_TOTAL].contains(&metric.name)
                        || metric.kind == MetricKind::Histogram
                }
            };
            assert!(is_one, "{}", metric.name);
        }
    }

    #[test]
    fn what_is_absent_is_below_and_above_nothing_and_c_prints_it_without_a_sign() {
        assert!(ABSENT.is_nan() && ABSENT.is_sign_positive());
    }
}
