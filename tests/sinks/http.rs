//! The `http` sink against a receiver that refuses whatever RFC 9110 and its own content type do not allow.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::post;
use m365_audit::hosts::embedded::sink::Written;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::kill::{Verdicts, kill_after_refusals};
use crate::truth::{FastClock, Received, assert_nothing_lost, batch, listener, pass, pass_at, sink};

/// What the receiver does with a request, by its number and its records.
type Mood = Arc<dyn Fn(usize, &[Value]) -> Option<Response> + Send + Sync>;

#[derive(Clone)]
struct Receiver {
    mood: Mood,
    received: Received,
    bodies: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Receiver {
    fn new(mood: impl Fn(usize, &[Value]) -> Option<Response> + Send + Sync + 'static) -> Self {
        Self { mood: Arc::new(mood), received: Received::default(), bodies: Arc::default() }
    }

    async fn listen(&self) -> (u16, JoinHandle<()>) {
        self.listen_on(0).await
    }

    async fn listen_on(&self, port: u16) -> (u16, JoinHandle<()>) {
        let listener = listener(port);
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/in", post(take)).layer(axum::extract::DefaultBodyLimit::disable());
        let router = router.with_state(self.clone());
        (port, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    let number = {
        let mut bodies = receiver.bodies.lock().unwrap();
        bodies.push((headers.clone(), body.clone()));
        bodies.len() - 1
    };
    let mut plain = Vec::new();
    match headers.get("content-encoding").map(|v| v.to_str().unwrap()) {
        None => plain.extend_from_slice(&body),
        Some("gzip") => drop(flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap()),
        Some("zstd") => plain = zstd::stream::decode_all(&body[..]).unwrap(),
        Some(other) => panic!("{other}"),
    }
    let records: Vec<Value> = match headers["content-type"].to_str().unwrap() {
        "application/json" => serde_json::from_slice(&plain).unwrap(),
        "application/x-ndjson" => {
            assert_eq!(plain.last(), Some(&b'\n'));
            let lines = plain.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
        }
        other => panic!("{other}"),
    };
    assert!(!records.is_empty() && records.iter().all(Value::is_object));
    if let Some(response) = (receiver.mood)(number, &records) {
        return response;
    }
    receiver.received.extend(records);
    StatusCode::OK.into_response()
}

fn table(port: u16, more: &str) -> String {
    format!("type = \"http\"\nuri = \"http://127.0.0.1:{port}/in\"\nbatch_bytes_max = 65536\n{more}\n")
}

/// A receiver that takes everything, and what it got.
pub async fn taking() -> (u16, Received) {
    let receiver = Receiver::new(|_, _| None);
    (receiver.listen().await.0, receiver.received)
}

#[tokio::test]
async fn every_encoding_and_compression_carries_the_truth() {
    for encoding in ["ndjson", "json"] {
        for compression in ["none", "gzip", "zstd"] {
            let receiver = Receiver::new(|_, _| None);
            let (port, serving) = receiver.listen().await;
            let more = format!("encoding = \"{encoding}\"\ncompression = \"{compression}\"");
            let comparison = pass(&table(port, &more), 12, 40, &receiver.received).await;
            assert!(comparison.is_clean(), "{encoding} {compression}: {comparison}");
            serving.abort();
        }
    }
}

#[tokio::test]
async fn a_receiver_that_fails_at_random_and_is_restarted_loses_nothing() {
    let receiver = Receiver::new(|number, _| {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let status = [503, 429, 500, 408, 502][rng.usize(..5)];
        (rng.f32() < 0.4).then(|| StatusCode::from_u16(status).unwrap().into_response())
    });
    let (port, mut serving) = receiver.listen().await;
    let again = receiver.clone();
    let killer = tokio::spawn(async move {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            serving.abort();
            let _ = (&mut serving).await;
            tokio::time::sleep(Duration::from_millis(40)).await;
            serving = again.listen_on(port).await.1;
        }
        serving.abort_handle()
    });
    let comparison = pass(&table(port, ""), 40, 60, &receiver.received).await;
    assert_nothing_lost(&comparison);
    killer.await.unwrap().abort();
}

#[tokio::test]
async fn a_receiver_that_refuses_for_minutes_gets_everything_afterwards() {
    let clock = FastClock::start();
    let (time, until) = (clock.clone(), clock.monotonic() + Duration::from_secs(180));
    let receiver =
        Receiver::new(move |_, _| (time.monotonic() < until).then(|| StatusCode::SERVICE_UNAVAILABLE.into_response()));
    let (port, serving) = receiver.listen().await;
    let comparison = pass_at(&table(port, ""), 12, 40, &receiver.received, clock).await;
    assert!(comparison.is_clean(), "{comparison}");
    serving.abort();
}

#[tokio::test]
async fn the_checkpoint_is_never_ahead_of_the_answer() {
    let verdicts = Verdicts::default();
    let judge = verdicts.clone();
    let receiver = Receiver::new(move |_, _| judge.refuse().then(|| StatusCode::SERVICE_UNAVAILABLE.into_response()));
    let (port, serving) = receiver.listen().await;
    kill_after_refusals(&table(port, ""), &verdicts, &receiver.received).await;
    serving.abort();
}

#[tokio::test]
async fn what_is_sent_again_is_the_same_bytes() {
    let receiver = Receiver::new(|number, _| (number < 3).then(|| StatusCode::BAD_GATEWAY.into_response()));
    let (port, serving) = receiver.listen().await;
    let clock = FastClock::start();
    let mut sink = sink(&table(port, "compression = \"gzip\"\nrequests_in_flight_max = 1"), &clock);
    let group = [batch(&["{\"a\":1}"]), batch(&["{\"b\":1}"])];
    for _ in 0..3 {
        assert!(matches!(&sink.write(&group).await[..], [Written::Refused { .. }, Written::Refused { .. }]));
    }
    assert_eq!(sink.write(&group).await, vec![Written::Delivered; 2]);
    assert_eq!(sink.write(&[batch(&["{\"c\":1}"])]).await, vec![Written::Delivered]);
    let bodies = receiver.bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 5);
    assert!(bodies[..4].iter().all(|(_, body)| *body == bodies[0].1));
    serving.abort();
}

/// Status, header and text of an answer.
type Scripted = (u16, Option<(&'static str, &'static str)>, &'static str);

#[tokio::test]
async fn an_answer_is_told_with_its_words_and_its_wait() {
    let answers: [Scripted; 5] = [
        (429, Some(("retry-after", "7")), "slow down"),
        (400, None, "Contents failed to deliver to sink"),
        (413, None, "too large"),
        (401, None, "who are you, s3cret-token?"),
        (301, Some(("location", "http://elsewhere/")), ""),
    ];
    let receiver = Receiver::new(move |number, _| {
        let (status, header, text) = answers[number];
        let status = StatusCode::from_u16(status).unwrap();
        Some(match header {
            Some((name, value)) => (status, [(name, value)], text).into_response(),
            None => (status, text).into_response(),
        })
    });
    let (port, serving) = receiver.listen().await;
    let clock = FastClock::start();
    let mut sink = sink(&table(port, "bearer_token = \"s3cret-token\""), &clock);
    let mut seen = Vec::new();
    for _ in answers {
        seen.extend(sink.write(&[batch(&["{}"])]).await);
    }
    let refused = |why: &str, after| Written::Refused { why: why.into(), retry_after: after };
    let check = "(check the sink's address and credentials)";
    assert_eq!(
        seen,
        [
            refused("answer 429 Too Many Requests: slow down", Some(Duration::from_secs(7))),
            Written::Rejected("answer 400 Bad Request: Contents failed to deliver to sink".into()),
            Written::TooLarge("answer 413 Payload Too Large: too large".into()),
            Written::Misconfigured(format!("answer 401 Unauthorized: who are you, ***? {check}")),
            Written::Misconfigured(format!("answer 301 Moved Permanently {check}")),
        ]
    );
    let bodies = receiver.bodies.lock().unwrap();
    assert_eq!(bodies[0].0["authorization"], "Bearer s3cret-token");
    serving.abort();
}

#[tokio::test]
async fn a_web_page_confirms_nothing_whatever_its_status() {
    const PAGE: &str = "\u{feff}\r\n<!DOCTYPE html><title>Sign in, s3cret-token</title>";
    let html = "Text/HTML; charset=utf-8";
    let answers: [(u16, Option<&'static str>, &'static str); 7] = [
        (200, Some(html), PAGE),
        (202, Some("text/html"), "<html></html>"),
        // What frameworks say of a short answer that nobody gave a type.
        (200, Some(html), "ok"),
        (204, Some(html), ""),
        (200, Some("text/plain"), "ok"),
        (200, Some("application/json"), "{}"),
        (200, None, ""),
    ];
    let receiver = Receiver::new(move |number, _| {
        let (status, content_type, text) = answers[number];
        let mut response = Response::new(text.into());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        let headers = response.headers_mut();
        content_type.map(|kind| headers.insert("content-type", HeaderValue::from_static(kind)));
        Some(response)
    });
    let (port, serving) = receiver.listen().await;
    let mut sink = sink(&table(port, "bearer_token = \"s3cret-token\""), &FastClock::start());
    let mut seen = Vec::new();
    for _ in answers {
        seen.extend(sink.write(&[batch(&["{}"])]).await);
    }
    let page = |status: &str, words: &str| {
        Written::Misconfigured(format!(
            "answer {status}: {words} (a web page, not a receiver's answer: a sign-in gateway, a proxy or a web server \
             answers at `uri`) (check the sink's address and credentials)"
        ))
    };
    let (pages, taken) = seen.split_at(2);
    assert!(
        matches!(&pages[0], Written::Misconfigured(why) if why.contains("Sign in, ***</title> (a web page")),
        "{pages:?}"
    );
    assert_eq!(pages[1], page("202 Accepted", "<html></html>"));
    assert_eq!(taken, vec![Written::Delivered; 5]);
    serving.abort();
}

#[tokio::test]
async fn what_a_sign_in_gateway_answers_for_minutes_arrives_afterwards() {
    let clock = FastClock::start();
    let (time, until) = (clock.clone(), clock.monotonic() + Duration::from_secs(180));
    let receiver =
        Receiver::new(move |_, _| (time.monotonic() < until).then(|| Html("<html>Sign in</html>").into_response()));
    let (port, serving) = receiver.listen().await;
    let comparison = pass_at(&table(port, ""), 12, 40, &receiver.received, clock).await;
    assert!(comparison.is_clean(), "{comparison}");
    serving.abort();
}

/// The source splits; only the poisoned records are set aside, everything else arrives.
#[tokio::test]
async fn records_a_receiver_will_never_take_stand_alone_in_the_end() {
    let receiver = Receiver::new(|_, records| {
        let poisoned = records.iter().any(|r| r["event_id"].as_str().is_some_and(|id| id.starts_with('a')));
        poisoned.then(|| (StatusCode::UNPROCESSABLE_ENTITY, "no a, please").into_response())
    });
    let (port, serving) = receiver.listen().await;
    let comparison = pass(&table(port, ""), 10, 20, &receiver.received).await;
    let expected = comparison.lost.iter().all(|id| id.starts_with('a'));
    assert!(expected && !comparison.lost.is_empty(), "{comparison}");
    assert!(comparison.altered.is_empty() && comparison.unexpected.is_empty(), "{comparison}");
    let a =
        receiver.received.all().iter().filter(|r| r["event_id"].as_str().is_some_and(|i| i.starts_with('a'))).count();
    assert_eq!(a, 0);
    serving.abort();
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_a_refusal_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let clock = FastClock::start();
    let mut sink = sink(&table(port, "timeout_secs = 20"), &clock);
    let written = sink.write(&[batch(&["{}"])]).await;
    assert_eq!(written, [Written::Unclear("no answer within 20 s".into())]);
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_anew_for_every_request() {
    let receiver = Receiver::new(|_, _| None);
    let (port, serving) = receiver.listen().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "one\n").unwrap();
    let clock = FastClock::start();
    let more = format!("bearer_token_file = \"{}\"\nheaders = {{ X-Source = \"m365\" }}", file.display());
    let mut sink = sink(&table(port, &more), &clock);
    sink.write(&[batch(&["{}"])]).await;
    std::fs::write(&file, "two\n").unwrap();
    sink.write(&[batch(&["{}"])]).await;
    std::fs::remove_file(&file).unwrap();
    let written = sink.write(&[batch(&["{}"])]).await;
    assert!(matches!(&written[..], [Written::Refused { why, .. }] if why.contains("cannot read the secret")));
    let bodies = receiver.bodies.lock().unwrap();
    assert_eq!(bodies[0].0["authorization"], "Bearer one");
    assert_eq!(bodies[0].0["x-source"], "m365");
    assert_eq!(bodies[1].0["authorization"], "Bearer two");
    serving.abort();
}
