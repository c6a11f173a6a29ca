//! Against the simulated tenant of the library, over HTTP on this machine.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use indoc::indoc;
use m365_audit::{SimulatedTenant, SourceConfig as Settings};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use vector_lib::{
    config::{LogNamespace, proxy::ProxyConfig},
    configurable::schema::generate_root_schema,
    event::{Event, EventStatus, Value},
    lookup::{OwnedTargetPath, event_path, metadata_path, owned_value_path},
    schema::meaning,
    shutdown::ShutdownSignal,
};

use super::M365AuditConfig;
use crate::{
    SourceSender,
    config::{SourceConfig as _, SourceContext, log_schema},
    event::MetricValue,
    metrics::Controller,
    test_util::{
        components::{
            COMPONENT_ERROR_TAGS, HTTP_PULL_SOURCE_TAGS, assert_source_error, init_test,
            run_and_assert_source_compliance, run_and_assert_source_error,
        },
        test_generate_config,
    },
};

/// What the simulated tenant has.
const EVENTS: usize = 50;
/// Nothing here takes nearly so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// What has not come by then does not come.
const QUIET: Duration = Duration::from_secs(6);

struct Setting {
    tenant: SimulatedTenant,
    dir: TempDir,
}

impl Setting {
    async fn new() -> Self {
        Self {
            tenant: SimulatedTenant::start().await.unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, more: Json) -> M365AuditConfig {
        let of_tenant = self.tenant.config().build().unwrap();
        let mut keys = json!({
            "tenant_id": of_tenant.tenant_id.as_str(),
            "client_id": of_tenant.client_id,
            "client_secret": of_tenant.client_secret.as_ref().map(|secret| secret.expose()),
            "api_url": of_tenant.api_url.as_ref().map(|url| url.as_str()),
            "authority_url": of_tenant.authority_url.as_ref().map(|url| url.as_str()),
            "data_dir": self.dir.path(),
            "drop_routine": false,
            "poll_interval_secs": 1,
        });
        keys.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(keys).unwrap()
    }

    /// Runs the source with acknowledgements until nothing comes any more; `verdict` is what the sinks say of an event,
    /// by its id. Returns the ids in the order they came.
    async fn run(&self, mut verdict: impl FnMut(&str) -> EventStatus) -> Vec<String> {
        let (out, mut events) = SourceSender::new_test();
        let (trigger, shutdown, _done) = ShutdownSignal::new_wired();
        let mut cx = SourceContext::new_test(out, None);
        cx.acknowledgements = true;
        cx.shutdown = shutdown;
        let source = tokio::spawn(self.config(json!({})).build(cx).await.unwrap());
        let mut ids = Vec::new();
        while let Ok(Some(event)) = timeout(QUIET, events.next()).await {
            let id = id_of(&event);
            event.metadata().update_status(verdict(&id));
            ids.push(id);
        }
        trigger.cancel();
        assert_eq!(timeout(PATIENCE, source).await.unwrap().unwrap(), Ok(()));
        ids
    }
}

fn id_of(event: &Event) -> String {
    let id = event.as_log().get(event_path!("event_id")).unwrap();
    id.to_string_lossy().into_owned()
}

fn set_of(ids: &[String]) -> HashSet<&str> {
    ids.iter().map(String::as_str).collect()
}

/// The events that come until nothing comes any more, without acknowledgements.
async fn collect(config: M365AuditConfig) -> Vec<Event> {
    let (out, events) = SourceSender::new_test();
    let (trigger, shutdown, _done) = ShutdownSignal::new_wired();
    let mut cx = SourceContext::new_test(out, None);
    cx.shutdown = shutdown;
    let source = tokio::spawn(config.build(cx).await.unwrap());
    let collected = until_quiet(events).await;
    trigger.cancel();
    assert_eq!(timeout(PATIENCE, source).await.unwrap().unwrap(), Ok(()));
    collected
}

async fn until_quiet(mut events: impl Stream<Item = Event> + Unpin) -> Vec<Event> {
    let mut collected = Vec::new();
    while let Ok(Some(event)) = timeout(QUIET, events.next()).await {
        collected.push(event);
    }
    collected
}

#[test]
fn generate_config() {
    test_generate_config::<M365AuditConfig>();
}

/// It panics when something has no description.
#[test]
fn the_schema_can_be_made() {
    let schema = generate_root_schema::<M365AuditConfig>().unwrap();
    let schema = serde_json::to_value(schema).unwrap().to_string();
    assert!(schema.contains("managed_identity_header"));
}

#[tokio::test]
async fn compliance() {
    let setting = Setting::new().await;
    let config = setting.config(json!({}));
    let events = run_and_assert_source_compliance(config, QUIET, &HTTP_PULL_SOURCE_TAGS).await;
    assert_eq!(events.len(), EVENTS);
}

#[tokio::test]
async fn an_error_is_told_with_its_type_stage_and_code() {
    let setting = Setting::new().await;
    let config = setting.config(json!({ "client_secret": "not the one of the tenant" }));
    let tags = ["error_code", "error_type", "stage"];
    let events = run_and_assert_source_error(config, QUIET, &tags).await;
    assert!(events.is_empty());
}

/// The sum of a counter of this test's thread.
fn counted(name: &str) -> f64 {
    let metrics = Controller::get().unwrap().capture_metrics();
    let of_name = metrics.iter().filter(|metric| metric.name() == name);
    let values = of_name.map(|metric| match metric.value() {
        MetricValue::Counter { value } => *value,
        other => panic!("{name} is {other:?}"),
    });
    values.sum()
}

#[tokio::test]
async fn what_errored_comes_again_and_what_was_delivered_does_not() {
    init_test();
    let setting = Setting::new().await;
    let mut seen = HashSet::new();
    let ids = setting
        .run(|id| {
            if seen.insert(id.to_owned()) {
                EventStatus::Errored
            } else {
                EventStatus::Delivered
            }
        })
        .await;
    assert_eq!(seen.len(), EVENTS);
    for id in &seen {
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 2, "{id}");
    }
    // What is sent again was not received again.
    assert_eq!(counted("component_received_events_total"), EVENTS as f64);
    let bytes = counted("component_received_bytes_total");
    assert_eq!(bytes, counted("m365_audit_received_bytes_total"));
    let again = setting.run(|_| EventStatus::Delivered).await;
    assert!(again.is_empty(), "{again:?}");
}

#[tokio::test]
async fn what_never_was_delivered_comes_again_after_a_restart() {
    let setting = Setting::new().await;
    let first = setting.run(|_| EventStatus::Errored).await;
    let second = setting.run(|_| EventStatus::Delivered).await;
    assert_eq!(second.len(), EVENTS);
    assert_eq!(set_of(&first), set_of(&second));
    assert_eq!(set_of(&second).len(), second.len());
}

#[tokio::test]
async fn a_rejected_event_is_set_aside_alone() {
    let setting = Setting::new().await;
    let mut poison: Option<String> = None;
    let mut delivered = HashSet::new();
    let ids = setting
        .run(|id| {
            if poison.get_or_insert_with(|| id.to_owned()) == id {
                return EventStatus::Rejected;
            }
            delivered.insert(id.to_owned());
            EventStatus::Delivered
        })
        .await;
    let poison = poison.unwrap();
    assert_eq!(delivered.len(), EVENTS - 1);
    assert_eq!(set_of(&ids).len(), EVENTS);
    // It is offered again at each start, and by itself; its neighbours have been taken.
    let again = setting.run(|_| EventStatus::Rejected).await;
    assert_eq!(set_of(&again), HashSet::from([poison.as_str()]));
    let taken = setting.run(|_| EventStatus::Delivered).await;
    assert_eq!(taken, [poison]);
    let nothing = setting.run(|_| EventStatus::Delivered).await;
    assert!(nothing.is_empty(), "{nothing:?}");
}

#[tokio::test]
async fn a_closed_channel_ends_the_source_and_loses_nothing() {
    let setting = Setting::new().await;
    let (out, events) = SourceSender::new_test();
    drop(events);
    let source = setting
        .config(json!({}))
        .build(SourceContext::new_test(out, None))
        .await
        .unwrap();
    let ended = assert_source_error(&COMPONENT_ERROR_TAGS, timeout(PATIENCE, source)).await;
    assert_eq!(ended.unwrap(), Err(()));
    let events = collect(setting.config(json!({}))).await;
    assert_eq!(events.len(), EVENTS);
}

#[tokio::test]
async fn events_of_the_legacy_namespace() {
    let setting = Setting::new().await;
    let config = setting.config(json!({}));
    let outputs = config.outputs(LogNamespace::Legacy);
    let definition = outputs[0].schema_definition(true).unwrap();
    assert_eq!(
        definition.meaning_path(meaning::TIMESTAMP),
        Some(&OwnedTargetPath::event(owned_value_path!("timestamp")))
    );
    let events = collect(config).await;
    assert_eq!(events.len(), EVENTS);
    for event in &events {
        definition.assert_valid_for_event(event);
        let log = event.as_log();
        assert_eq!(
            log.get(log_schema().source_type_key_target_path().unwrap()),
            Some(&Value::from("m365_audit"))
        );
        assert!(log.get_timestamp().is_some_and(Value::is_timestamp));
        let created = log.get(event_path!("content_created"));
        assert!(created.is_some_and(Value::is_timestamp), "{created:?}");
        let happened = log.get(event_path!("raw", "CreationTime")).unwrap();
        let at = log.get_timestamp().and_then(Value::as_timestamp).unwrap();
        assert_eq!(
            at.format("%Y-%m-%dT%H:%M:%S").to_string(),
            happened.to_string_lossy().trim_end_matches('Z')
        );
    }
}

#[tokio::test]
async fn events_of_the_vector_namespace() {
    let setting = Setting::new().await;
    let config = setting.config(json!({ "log_namespace": true }));
    let outputs = config.outputs(LogNamespace::Legacy);
    let definition = outputs[0].schema_definition(true).unwrap();
    let timestamp = owned_value_path!("m365_audit", "timestamp");
    assert_eq!(
        definition.meaning_path(meaning::TIMESTAMP),
        Some(&OwnedTargetPath::metadata(timestamp))
    );
    let severity = OwnedTargetPath::event(owned_value_path!("severity"));
    assert_eq!(definition.meaning_path(meaning::SEVERITY), Some(&severity));
    let events = collect(config).await;
    assert_eq!(events.len(), EVENTS);
    for event in &events {
        definition.assert_valid_for_event(event);
        let log = event.as_log();
        assert_eq!(
            log.get(metadata_path!("vector", "source_type")),
            Some(&Value::from("m365_audit"))
        );
        let received = log.get(metadata_path!("vector", "ingest_timestamp"));
        assert!(received.is_some_and(Value::is_timestamp));
        assert_eq!(
            log.get(metadata_path!("m365_audit", "timestamp")),
            log.get(event_path!("timestamp"))
        );
        assert!(log.get(event_path!("source_type")).is_none());
    }
}

#[tokio::test]
async fn severity_has_its_meaning_in_the_native_format_alone() {
    let setting = Setting::new().await;
    for (format, has) in [
        ("native", true),
        ("ecs", false),
        ("ocsf", false),
        ("raw", false),
    ] {
        let config = setting.config(json!({ "format": format }));
        let outputs = config.outputs(LogNamespace::Vector);
        let definition = outputs[0].schema_definition(true).unwrap();
        assert_eq!(
            definition.meaning_path(meaning::SEVERITY).is_some(),
            has,
            "{format}"
        );
    }
}

/// No proxy of the environment is used, so that both sides of a comparison are alike.
fn direct() -> ProxyConfig {
    ProxyConfig::default()
}

fn from_yaml(more: &str) -> M365AuditConfig {
    let least = indoc! {"
        tenant_id: 7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55
        client_id: c0ffee00-1111-4222-8333-444455556666
        client_secret: a secret of some length
    "};
    serde_yaml::from_str(&format!("{least}{more}")).unwrap()
}

#[test]
fn the_defaults_are_those_of_the_library() {
    let here = from_yaml("").settings("s", &direct()).unwrap();
    let keys = json!({
        "tenant_id": "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55",
        "client_id": "c0ffee00-1111-4222-8333-444455556666",
        "client_secret": "a secret of some length",
        "no_proxy": ["*"],
    });
    let there = Settings::parse_json("s", keys.as_object().unwrap().clone()).unwrap();
    assert_eq!(here, there);
}

#[test]
fn tables_reach_the_library() {
    let config = from_yaml(indoc! {"
        content_types: [DLP.All, Audit.Exchange]
        format: ecs
        ecs_profile: elastic-o365
        raw: none
        severity:
          refine: true
          rules:
            - id: SP-12
              disable: true
        heal:
          graph: true
    "});
    let settings = config.settings("s", &direct()).unwrap();
    let types: Vec<&str> = settings
        .content_types
        .iter()
        .map(|of| of.as_str())
        .collect();
    assert_eq!(types, ["DLP.All", "Audit.Exchange"]);
    assert!(settings.severity.refine && settings.heal.graph);
    assert_eq!(settings.severity.rules[0]["id"].as_str(), Some("SP-12"));
    assert_eq!(settings.heal.query_wait_secs, 1800);
}

#[test]
fn a_wrong_value_is_refused_in_the_librarys_words() {
    let config = from_yaml("poll_interval_secs: 0\ncontent_types: []\n");
    let problems = config.settings("s", &direct()).unwrap_err().to_string();
    assert!(problems.contains("poll_interval_secs"), "{problems}");
    assert!(problems.contains("content_types"), "{problems}");
    let unknown = "tenant_id: x\nca_file: /etc/ssl/ca.pem\n";
    assert!(serde_yaml::from_str::<M365AuditConfig>(unknown).is_err());
}

#[test]
fn secrets_are_not_shown() {
    let config =
        from_yaml("key_passphrase: hunter2-phrase\nmanaged_identity_header: hunter2-header\n");
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("a secret"),
        "{shown}"
    );
}

#[test]
fn tls_options_map_or_are_refused() {
    let config = from_yaml(indoc! {"
        tls:
          ca_file: /etc/ssl/ca.pem
          crt_file: /etc/ssl/client.pem
          key_file: /etc/ssl/client.key
    "});
    let keys: BTreeMap<_, _> = config.tls_keys().unwrap().into_iter().collect();
    assert_eq!(keys["ca_file"], "/etc/ssl/ca.pem");
    assert_eq!(keys["proxy_certificate_file"], "/etc/ssl/client.pem");
    assert_eq!(keys["proxy_key_file"], "/etc/ssl/client.key");
    for refused in [
        "verify_certificate: false",
        "verify_hostname: false",
        "alpn_protocols: [h2]",
        "server_name: example.com",
        "key_pass: x",
        "ca_file: \"-----BEGIN CERTIFICATE-----\"",
    ] {
        let config = from_yaml(&format!("tls:\n  {refused}\n"));
        let problem = config.settings("s", &direct()).unwrap_err().to_string();
        let (option, _) = refused.split_once(':').unwrap();
        assert!(problem.contains(&format!("tls.{option}")), "{problem}");
    }
}

#[test]
fn the_proxy_is_vectors() {
    let proxy = ProxyConfig {
        enabled: true,
        http: Some("http://plain.example.com:3128".into()),
        https: Some("http://proxy.example.com:3128".into()),
        no_proxy: "internal.example.com".into(),
    };
    let settings = from_yaml("").settings("s", &proxy).unwrap();
    let of = |settings: &Settings| settings.proxy_url.as_ref().map(|url| url.to_string());
    assert_eq!(
        of(&settings).as_deref(),
        Some("http://proxy.example.com:3128/")
    );
    assert_eq!(
        settings.no_proxy,
        Some(vec!["internal.example.com".to_owned()])
    );
    let plain = from_yaml("api_url: http://127.0.0.1:8080\nauthority_url: http://127.0.0.1:8080\n");
    let settings = plain.settings("s", &proxy).unwrap();
    assert_eq!(
        of(&settings).as_deref(),
        Some("http://plain.example.com:3128/")
    );
    let off = ProxyConfig {
        enabled: false,
        ..proxy
    };
    let settings = from_yaml("").settings("s", &off).unwrap();
    assert_eq!(
        (of(&settings), settings.no_proxy),
        (None, Some(vec!["*".to_owned()]))
    );
}

/// The state is one writer's: a second source on it reads nothing, and does not end Vector.
#[tokio::test]
async fn a_state_in_use_is_waited_for() {
    let setting = Setting::new().await;
    let (out, events) = SourceSender::new_test();
    let first = tokio::spawn(
        setting
            .config(json!({}))
            .build(SourceContext::new_test(out, None))
            .await
            .unwrap(),
    );
    assert!(!until_quiet(events).await.is_empty());
    let (out, mut events) = SourceSender::new_test();
    let second = tokio::spawn(
        setting
            .config(json!({}))
            .build(SourceContext::new_test(out, None))
            .await
            .unwrap(),
    );
    sleep(Duration::from_secs(2)).await;
    assert!(!second.is_finished());
    assert!(
        timeout(Duration::from_millis(10), events.next())
            .await
            .is_err()
    );
    second.abort();
    first.abort();
}
