//! The `otlp` sink against receivers generated from the OpenTelemetry protocol's own definitions.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::post;
use http_body_util::{BodyExt, Full};
use m365_audit::host::{Delivery, Host};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::selection::Selection;
use m365_audit::hosts::embedded::sink::Written;
use m365_audit::hosts::embedded::{EmbeddedHost, SinkSpec};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use crate::kill::{Verdicts, kill_after_refusals};
use crate::truth::{FastClock, Received, assert_nothing_lost, batch, listener, pass, pass_at, sink};

/// How a receiver answers its n-th request.
enum Mood {
    Take,
    Fail(Code),
    /// Take the records but those whose id begins so, and say how many those are.
    TakeBut(char),
    /// Take none, and answer with success and a partial success that says so.
    TakeNone,
    /// Answer so to what holds a record whose id ends so.
    RefuseIf(char, Code, &'static str),
}

#[derive(Clone)]
struct Receiver {
    mood: Arc<dyn Fn(usize) -> Mood + Send + Sync>,
    received: Received,
    requests: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
}

impl Receiver {
    fn new(mood: impl Fn(usize) -> Mood + Send + Sync + 'static) -> Self {
        Self { mood: Arc::new(mood), received: Received::default(), requests: Arc::default() }
    }

    async fn grpc(&self, port: u16) -> (u16, JoinHandle<()>) {
        let listener = listener(port);
        let port = listener.local_addr().unwrap().port();
        // The Collector's own bound.
        let service = LogsServiceServer::new(self.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(4 << 20);
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        (port, tokio::spawn(async move { drop(serving.await) }))
    }

    async fn http(&self) -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let receiver = self.clone();
        let take = move |headers: HeaderMap, body: Bytes| async move { receiver.take_http(&headers, &body) };
        let router = Router::new().route("/v1/logs", post(take)).layer(axum::extract::DefaultBodyLimit::disable());
        (port, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
    }

    fn take(&self, request: ExportLogsServiceRequest) -> Result<ExportLogsServiceResponse, Status> {
        let number = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        let mut bodies = bodies_of(&request);
        match (self.mood)(number) {
            Mood::Take => {}
            Mood::Fail(code) => return Err(Status::new(code, "not today")),
            Mood::RefuseIf(end, code, words) => {
                if bodies.iter().any(|b| b["event_id"].as_str().is_some_and(|id| id.ends_with(end))) {
                    return Err(Status::new(code, words));
                }
            }
            Mood::TakeNone => {
                let error_message = "wrong index".to_owned();
                let partial = ExportLogsPartialSuccess { rejected_log_records: bodies.len() as i64, error_message };
                return Ok(ExportLogsServiceResponse { partial_success: Some(partial) });
            }
            Mood::TakeBut(start) => {
                let all = bodies.len();
                bodies.retain(|b| b["event_id"].as_str().is_none_or(|id| !id.starts_with(start)));
                let rejected = (all - bodies.len()) as i64;
                self.received.extend(bodies);
                let error_message = if rejected > 0 { "bad records".to_owned() } else { String::new() };
                let partial = ExportLogsPartialSuccess { rejected_log_records: rejected, error_message };
                return Ok(ExportLogsServiceResponse { partial_success: Some(partial) });
            }
        }
        self.received.extend(bodies);
        Ok(ExportLogsServiceResponse { partial_success: None })
    }

    fn take_http(&self, headers: &HeaderMap, body: &[u8]) -> HttpResponse {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let mut plain = Vec::new();
        match headers.get("content-encoding") {
            Some(encoding) => {
                assert_eq!(encoding, "gzip");
                flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap();
            }
            None => plain.extend_from_slice(body),
        }
        match self.take(ExportLogsServiceRequest::decode(plain.as_slice()).unwrap()) {
            Ok(response) => ([("content-type", "application/x-protobuf")], response.encode_to_vec()).into_response(),
            Err(status) => {
                let code = match status.code() {
                    Code::InvalidArgument => 400,
                    Code::Internal => 500,
                    _ => 503,
                };
                (StatusCode::from_u16(code).unwrap(), [("retry-after", "3")], "\u{12}\u{9}not today").into_response()
            }
        }
    }
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.take(request.into_inner()).map(Response::new)
    }
}

/// The records of a request, which must say whose they are.
pub fn bodies_of(request: &ExportLogsServiceRequest) -> Vec<serde_json::Value> {
    let mut bodies = Vec::new();
    for resource in &request.resource_logs {
        let attributes = &resource.resource.as_ref().expect("a resource").attributes;
        assert!(attributes.iter().any(|a| a.key == "service.name" && is(&a.value, "m365-audit")));
        for scope in &resource.scope_logs {
            assert_eq!(scope.scope.as_ref().expect("a scope").name, "m365-audit");
            bodies.extend(scope.log_records.iter().map(json_body));
        }
    }
    assert!(!bodies.is_empty());
    bodies
}

fn is(value: &Option<AnyValue>, text: &str) -> bool {
    matches!(value.as_ref().and_then(|v| v.value.as_ref()), Some(Value::StringValue(s)) if s == text)
}

fn json_body(record: &LogRecord) -> serde_json::Value {
    to_json(record.body.as_ref().expect("a body"))
}

fn to_json(value: &AnyValue) -> serde_json::Value {
    match value.value.as_ref() {
        None => serde_json::Value::Null,
        Some(Value::StringValue(s)) => s.as_str().into(),
        Some(Value::BoolValue(b)) => (*b).into(),
        Some(Value::IntValue(n)) => (*n).into(),
        Some(Value::DoubleValue(n)) => (*n).into(),
        Some(Value::ArrayValue(array)) => array.values.iter().map(to_json).collect(),
        Some(Value::KvlistValue(list)) => {
            list.values.iter().map(|kv| (kv.key.clone(), to_json(kv.value.as_ref().unwrap()))).collect()
        }
        Some(other) => panic!("{other:?}"),
    }
}

fn table(protocol: &str, port: u16, more: &str) -> String {
    format!(
        "type = \"otlp\"\nendpoint = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\n\
         batch_bytes_max = 65536\n{more}\n"
    )
}

/// A receiver over gRPC, or HTTP, that takes everything, and what it got.
pub async fn taking(is_grpc: bool) -> (u16, Received) {
    let receiver = Receiver::new(|_| Mood::Take);
    let (port, _) = if is_grpc { receiver.grpc(0).await } else { receiver.http().await };
    (port, receiver.received)
}

#[tokio::test]
async fn both_transports_carry_the_truth() {
    for protocol in ["grpc", "http"] {
        for compression in ["none", "gzip"] {
            let receiver = Receiver::new(|_| Mood::Take);
            let (port, serving) = if protocol == "grpc" { receiver.grpc(0).await } else { receiver.http().await };
            let table = table(protocol, port, &format!("compression = \"{compression}\""));
            let comparison = pass(&table, 12, 40, &receiver.received).await;
            assert!(comparison.is_clean(), "{protocol} {compression}: {comparison}");
            serving.abort();
        }
    }
}

#[tokio::test]
async fn the_checkpoint_is_never_ahead_of_the_answer() {
    for protocol in ["grpc", "http"] {
        let verdicts = Verdicts::default();
        let judge = verdicts.clone();
        let receiver = Receiver::new(move |_| if judge.refuse() { Mood::Fail(Code::Unavailable) } else { Mood::Take });
        let (port, serving) = if protocol == "grpc" { receiver.grpc(0).await } else { receiver.http().await };
        kill_after_refusals(&table(protocol, port, ""), &verdicts, &receiver.received).await;
        serving.abort();
    }
}

#[tokio::test]
async fn a_grpc_receiver_that_fails_at_random_and_is_restarted_loses_nothing() {
    let receiver = Receiver::new(|number| {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let code = [Code::Unavailable, Code::Internal, Code::Aborted, Code::DataLoss][rng.usize(..4)];
        if rng.f32() < 0.4 { Mood::Fail(code) } else { Mood::Take }
    });
    let (port, mut serving) = receiver.grpc(0).await;
    let again = receiver.clone();
    let killer = tokio::spawn(async move {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            serving.abort();
            let _ = (&mut serving).await;
            tokio::time::sleep(Duration::from_millis(40)).await;
            serving = again.grpc(port).await.1;
        }
        serving.abort_handle()
    });
    let comparison = pass(&table("grpc", port, ""), 40, 60, &receiver.received).await;
    assert_nothing_lost(&comparison);
    killer.await.unwrap().abort();
}

#[tokio::test]
async fn of_a_partial_success_only_the_rejected_records_are_missing_in_the_end() {
    for protocol in ["grpc", "http"] {
        let receiver = Receiver::new(|_| Mood::TakeBut('b'));
        let (port, serving) = if protocol == "grpc" { receiver.grpc(0).await } else { receiver.http().await };
        let comparison = pass(&table(protocol, port, ""), 10, 20, &receiver.received).await;
        assert!(!comparison.lost.is_empty(), "{comparison}");
        assert!(comparison.lost.iter().all(|id| id.starts_with('b')), "{comparison}");
        assert!(comparison.altered.is_empty() && comparison.unexpected.is_empty(), "{comparison}");
        serving.abort();
    }
}

#[tokio::test]
async fn a_partial_success_that_takes_no_record_is_a_rejection_and_sets_none_aside() {
    for protocol in ["grpc", "http"] {
        let clock = FastClock::start();
        let (time, until) = (clock.clone(), clock.monotonic() + Duration::from_secs(300));
        let receiver = Receiver::new(move |_| if time.monotonic() < until { Mood::TakeNone } else { Mood::Take });
        let (port, serving) = if protocol == "grpc" { receiver.grpc(0).await } else { receiver.http().await };
        let table = table(protocol, port, "");
        let written = sink(&table, &clock).write(&[batch(&["{}"]), batch(&["{}", "{}"])]).await;
        assert_eq!(written, vec![Written::Rejected("the receiver rejected all 3 records: wrong index".into()); 2]);
        let comparison = pass_at(&table, 12, 20, &receiver.received, clock).await;
        assert!(comparison.is_clean(), "{protocol}: {comparison}");
        serving.abort();
    }
}

#[tokio::test]
async fn a_partial_success_in_json_counts_as_in_protobuf() {
    const ANSWERS: [&str; 6] = [
        r#"{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"bad time"}}"#,
        r#"{"partialSuccess":{"rejectedLogRecords":2}}"#,
        r#"{"partial_success":{"rejected_log_records":1,"error_message":"bad time"}}"#,
        r#"{"partialSuccess":{"rejectedLogRecords":"0","errorMessage":"slow down"}}"#,
        r#"{"partialSuccess":null}"#,
        r#"{"status":"ok"}"#,
    ];
    let (port, serving) =
        plain_http(|number| ([("content-type", "application/json; charset=utf-8")], ANSWERS[number]).into_response())
            .await;
    let mut sink = sink(&table("http", port, ""), &FastClock::start());
    let mut seen = Vec::new();
    for _ in ANSWERS {
        seen.extend(sink.write(&[batch(&["{}", "{}"])]).await);
    }
    let some = Written::RejectedSome("the receiver rejected 1 of 2 records: bad time".into());
    let all = Written::Rejected("the receiver rejected all 2 records".into());
    let taken = Written::Delivered;
    assert_eq!(seen, [some.clone(), all, some, taken.clone(), taken.clone(), taken]);
    serving.abort();
}

#[tokio::test]
async fn a_wait_asked_for_over_http_is_kept_whatever_the_status() {
    let receiver =
        Receiver::new(|number| Mood::Fail([Code::Unavailable, Code::Internal, Code::InvalidArgument][number]));
    let (port, serving) = receiver.http().await;
    let clock = FastClock::start();
    let mut sink = sink(&table("http", port, ""), &clock);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(sink.write(&[batch(&["{}"])]).await);
    }
    let refused = |why: &str| Written::Refused { why: why.into(), retry_after: Some(Duration::from_secs(3)) };
    assert_eq!(
        seen,
        [
            refused("answer 503 Service Unavailable: not today"),
            refused("answer 500 Internal Server Error: not today"),
            // Whoever says when to come again does not say never.
            refused("answer 400 Bad Request: not today"),
        ]
    );
    serving.abort();
}

/// A server of HTTP/1.1 and HTTP/2 that knows no gRPC and answers the n-th request so.
async fn plain_http(answer: impl Fn(usize) -> HttpResponse + Clone + Send + Sync + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let router = Router::new().fallback(move || {
        let answer = answer(count.fetch_add(1, Ordering::SeqCst));
        async { answer }
    });
    (port, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

#[tokio::test]
async fn a_proxy_that_knows_no_grpc_is_understood_by_its_status_its_wait_and_its_words() {
    const STATUSES: [u16; 10] = [429, 502, 503, 504, 401, 403, 404, 413, 200, 202];
    let (port, serving) = plain_http(|number| {
        let status = StatusCode::from_u16(STATUSES[number]).unwrap();
        let headers = [("content-type", "text/html; charset=utf-8"), ("retry-after", "7")];
        match status.as_u16() {
            429 => (status, headers, "<html>busy, s3cret-token</html>").into_response(),
            202 => (status, "queued somewhere").into_response(),
            _ => (status, [headers[0]], "<html>not today</html>").into_response(),
        }
    })
    .await;
    let clock = FastClock::start();
    let mut sink = sink(&table("grpc", port, "bearer_token = \"s3cret-token\""), &clock);
    let mut seen = Vec::new();
    for _ in STATUSES {
        seen.extend(sink.write(&[batch(&["{}"])]).await);
    }
    let why = |answer: &str| {
        format!("answer {answer} (not in gRPC: of a proxy before the receiver, or of a server of another protocol)")
    };
    let page = |status: &str| why(&format!("{status}: <html>not today</html>"));
    let setting =
        |status| Written::Misconfigured(format!("{} (check the sink's address and credentials)", page(status)));
    assert_eq!(
        seen,
        [
            Written::Refused {
                why: why("429 Too Many Requests: <html>busy, ***</html>"),
                retry_after: Some(Duration::from_secs(7))
            },
            Written::refused(page("502 Bad Gateway")),
            Written::refused(page("503 Service Unavailable")),
            Written::refused(page("504 Gateway Timeout")),
            setting("401 Unauthorized"),
            setting("403 Forbidden"),
            setting("404 Not Found"),
            Written::TooLarge(page("413 Payload Too Large")),
            setting("200 OK"),
            // Whoever took it would have said so in gRPC.
            Written::Unclear(why("202 Accepted: queued somewhere")),
        ]
    );
    serving.abort();
}

#[tokio::test]
async fn a_status_of_grpc_in_trailers_counts_more_than_the_status_of_http() {
    let (port, serving) = plain_http(|_| {
        let trailers = HeaderMap::from_iter([
            (HeaderName::from_static("grpc-status"), HeaderValue::from_static("16")),
            (HeaderName::from_static("grpc-message"), HeaderValue::from_static("who?")),
        ]);
        let body = Full::<Bytes>::default().with_trailers(async { Some(Ok(trailers)) });
        (StatusCode::BAD_GATEWAY, axum::body::Body::new(body)).into_response()
    })
    .await;
    let written = sink(&table("grpc", port, ""), &FastClock::start()).write(&[batch(&["{}"])]).await;
    let why = "answer Unauthenticated: who? (check the sink's address and credentials)";
    assert_eq!(written, [Written::Misconfigured(why.into())]);
    serving.abort();
}

#[tokio::test]
async fn a_record_has_its_time_severity_and_attributes() {
    let receiver = Receiver::new(|_| Mood::Take);
    let (port, serving) = receiver.grpc(0).await;
    let clock = FastClock::start();
    let mut sink = sink(&table("grpc", port, "headers = { X-Scope-OrgID = \"soc\" }"), &clock);
    let line = r#"{"event_id":"e1","event_type":"m365.exchange.send","operation":"Send","record_type":2,"src_ip":"192.0.2.1","actor":{"name":"a@b.c"},"raw":{"deep":[1.5,null,true]}}"#;
    assert_eq!(sink.write(&[batch(&[line])]).await, [Written::Delivered]);
    let requests = receiver.requests.lock().unwrap();
    let record = &requests[0].resource_logs[0].scope_logs[0].log_records[0];
    assert_eq!(json_body(record), serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert_eq!((record.severity_number, record.severity_text.as_str()), (17, "high"));
    assert_eq!(record.time_unix_nano, 1_777_629_600_000_000_001);
    assert!(record.observed_time_unix_nano > record.time_unix_nano);
    assert_eq!(record.event_name, "m365.exchange.send");
    let attributes: Vec<(String, String)> = record
        .attributes
        .iter()
        .map(|a| (a.key.clone(), to_json(a.value.as_ref().unwrap()).as_str().unwrap().to_owned()))
        .collect();
    let expected = [
        ("m365.tenant_id", "11111111-2222-3333-4444-555555555555"),
        ("m365.content_type", "Audit.General"),
        ("m365.id", "e1"),
        ("m365.operation", "Send"),
        ("user.name", "a@b.c"),
        ("client.address", "192.0.2.1"),
    ];
    assert_eq!(attributes, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    serving.abort();
}

/// A message over the receiver's bound is refused by gRPC for good; its records arrive in smaller ones.
#[tokio::test]
async fn a_request_that_is_too_large_is_sent_in_smaller_parts() {
    let receiver = Receiver::new(|_| Mood::Take);
    let (port, serving) = receiver.grpc(0).await;
    let clock = FastClock::start();
    let more = "compression = \"none\"\nbatch_records_max = 100000".to_owned();
    let table = table("grpc", port, &more).replace("65536", "67108864");
    let line = format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20));
    let written = sink(&table, &clock).write(&[batch(&[line.as_str(); 5])]).await;
    assert!(matches!(&written[..], [Written::TooLarge(_)]), "{written:?}");
    let spec = SinkSpec {
        name: "out".into(),
        inputs: vec!["s".into()],
        selection: Selection::default(),
        sink: sink(&table, &clock),
    };
    let host = EmbeddedHost::new(vec![spec], Arc::new(MemoryStore::new()), clock);
    let whole = host.deliver(batch(&[line.as_str(); 5])).await;
    assert_eq!(whole.await, Delivery::Delivered);
    assert_eq!(receiver.received.count(), 5);
    serving.abort();
}

/// What a receiver answers to a request that holds a record whose id ends so, and what a test expects of it.
type Fault = (Code, &'static str);

/// Codes for a record that is not taken, as receivers have them; each is found and set aside, and its neighbours arrive.
#[tokio::test]
async fn a_record_that_is_refused_alone_is_set_aside_whatever_the_code() {
    let permanent = "Permanent error: rpc error: code = Unknown desc = error exporting items, HTTP Status Code 422";
    let faults: [Fault; 5] = [
        (Code::InvalidArgument, "bad record"),
        (Code::Unknown, permanent),
        (Code::Internal, "Permanent error: cannot marshal"),
        (Code::OutOfRange, "bad time"),
        (Code::Internal, "no words"),
    ];
    for (code, words) in faults {
        let receiver = Receiver::new(move |_| Mood::RefuseIf('7', code, words));
        let (port, serving) = receiver.grpc(0).await;
        let comparison = pass(&table("grpc", port, ""), 6, 20, &receiver.received).await;
        assert!(!comparison.lost.is_empty(), "{code:?}: {comparison}");
        assert!(comparison.lost.iter().all(|id| id.ends_with('7')), "{code:?}: {comparison}");
        assert!(comparison.duplicated.is_empty() && comparison.unexpected.is_empty(), "{code:?}: {comparison}");
        serving.abort();
    }
}
