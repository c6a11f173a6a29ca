//! The simulated tenant's half of Microsoft Graph keeps its promises, seen by a plain client.

use std::sync::Arc;
use std::time::Duration;

use m365_audit::clock::TestClock;
use m365_audit::model::ContentType;
use m365_audit::sim::{GraphVersions, NewBlob, QueryFate, Sim, SimConfig};
use serde_json::{Value, json};

struct Rig {
    sim: Sim,
    clock: TestClock,
    http: reqwest::Client,
    config: SimConfig,
}

impl Rig {
    /// A tenant with an event an hour, from a month ago on.
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = TestClock::at("2026-05-08T12:00:00Z".parse().unwrap());
        let config = SimConfig::default();
        let sim = Sim::start(config.clone(), Arc::new(clock.clone())).await.unwrap();
        for hour in 1..720_u64 {
            let time = sim.now() - Duration::from_secs(3600 * hour);
            let event = json!({
                "Id": format!("00000000-0000-4000-8000-{hour:012}"), "RecordType": 1, "Operation": "Set-Mailbox",
                "CreationTime": time.strftime("%Y-%m-%dT%H:%M:%S").to_string(), "Workload": "Exchange",
            });
            let blob = NewBlob::at(time).with_events([event.to_string()]);
            sim.add_blob(&config.tenants[0], ContentType::Exchange, blob);
        }
        Self { sim, clock, http: reqwest::Client::builder().no_proxy().build().unwrap(), config }
    }

    async fn token(&self, resource: &str) -> String {
        let url = format!("{}/{}/oauth2/v2.0/token", self.sim.url(), self.config.tenants[0]);
        let secret: String = url::form_urlencoded::byte_serialize(self.config.client_secret.as_bytes()).collect();
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={secret}&scope={resource}/.default",
            self.config.client_id
        );
        let answer = self.http.post(url).body(form).send().await.unwrap().bytes().await.unwrap();
        serde_json::from_slice::<Value>(&answer).unwrap()["access_token"].as_str().unwrap().to_owned()
    }

    async fn call(&self, token: &str, url: &str, body: Option<Value>) -> (u16, Value) {
        let request = match body {
            Some(body) => self.http.post(url).body(body.to_string()),
            None => self.http.get(url),
        };
        let answer = request.header("authorization", format!("Bearer {token}")).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    fn queries(&self, version: &str) -> String {
        format!("{}/{version}/security/auditLog/queries", self.sim.url())
    }

    /// All records of a search for the last so many hours.
    async fn search(&self, token: &str, hours: u64) -> (Value, Vec<String>) {
        let (status, query) = self.call(token, &self.queries("v1.0"), Some(self.range(hours))).await;
        assert_eq!(status, 201, "{query}");
        let url = format!("{}/{}", self.queries("v1.0"), query["id"].as_str().unwrap());
        assert_eq!(self.call(token, &format!("{url}/records"), None).await.0, 400, "it has not ended");
        self.clock.advance(Duration::from_secs(30));
        let query = self.call(token, &url, None).await.1;
        assert_eq!(query["status"], "succeeded");
        (query, self.read(token, &url).await)
    }

    async fn read(&self, token: &str, url: &str) -> Vec<String> {
        let (mut next, mut ids) = (Some(format!("{url}/records")), Vec::new());
        while let Some(link) = next {
            let page = self.call(token, &link, None).await.1;
            ids.extend(page["value"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()));
            next = page["@odata.nextLink"].as_str().map(str::to_owned);
        }
        ids
    }

    fn range(&self, hours: u64) -> Value {
        let from = self.sim.now() - Duration::from_secs(3600 * hours);
        json!({"displayName": "d", "filterStartDateTime": from.to_string(), "filterEndDateTime": self.sim.now().to_string()})
    }
}

#[tokio::test]
async fn a_search_is_submitted_looked_at_and_read_in_pages_beyond_the_feeds_week() {
    let rig = Rig::new().await;
    let graph = rig.token("https://graph.microsoft.com").await;
    rig.sim.configure(|config| config.graph.page_rows = 100);
    let (query, ids) = rig.search(&graph, 480).await;
    assert_eq!((ids.len(), &query["isRecordCountLimitExceeded"]), (480, &Value::Bool(false)));
    let feed = rig.token("https://manage.office.com").await;
    assert_eq!(rig.call(&feed, &rig.queries("v1.0"), Some(rig.range(1))).await.0, 401, "a token of the feed");
    rig.sim.configure(|config| config.graph.roles.clear());
    let without = rig.token("https://graph.microsoft.com").await;
    assert_eq!(rig.call(&without, &rig.queries("v1.0"), Some(rig.range(1))).await.0, 403);
}

#[tokio::test]
async fn each_fault_of_the_search_can_be_had() {
    let rig = Rig::new().await;
    let token = rig.token("https://graph.microsoft.com").await;
    rig.sim.configure(|config| config.graph.records_max = Some(10));
    let (query, ids) = rig.search(&token, 24).await;
    assert_eq!(
        (ids.len(), &query["isRecordCountLimitExceeded"], &query["recordCountLimit"]),
        (10, &json!(true), &json!(10))
    );
    rig.sim.configure(|config| config.graph.says_cut = false);
    let (query, ids) = rig.search(&token, 24).await;
    assert_eq!(
        (ids.len(), &query["isRecordCountLimitExceeded"], &query["recordCountLimit"]),
        (10, &json!(false), &Value::Null)
    );
    rig.sim.configure(|config| (config.graph.records_max, config.graph.unstable) = (None, (1, 0.5)));
    let (query, first) = rig.search(&token, 48).await;
    let url = format!("{}/{}", rig.queries("v1.0"), query["id"].as_str().unwrap());
    let second = rig.read(&token, &url).await;
    assert!(first.len() < second.len() && second == rig.read(&token, &url).await, "{} {}", first.len(), second.len());

    for (fate, expected) in [(QueryFate::Stuck, "running"), (QueryFate::Failed, "failed")] {
        rig.sim.configure(|config| config.graph.fates = [fate].into());
        let query = rig.call(&token, &rig.queries("v1.0"), Some(rig.range(1))).await.1;
        rig.clock.advance(Duration::from_secs(1800));
        let url = format!("{}/{}", rig.queries("v1.0"), query["id"].as_str().unwrap());
        assert_eq!(rig.call(&token, &url, None).await.1["status"], expected);
    }
    rig.sim.configure(|config| config.graph.versions = GraphVersions::BetaOnly);
    assert_eq!(rig.call(&token, &rig.queries("v1.0"), Some(rig.range(1))).await.0, 404);
    assert_eq!(rig.call(&token, &rig.queries("beta"), Some(rig.range(1))).await.0, 201);
    rig.sim.configure(|config| config.graph.submissions_per_day = 6);
    assert_eq!(rig.call(&token, &rig.queries("beta"), Some(rig.range(1))).await.0, 429);
}
