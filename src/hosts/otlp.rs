//! The `otlp` sink: records as OpenTelemetry logs over gRPC or HTTP with protobuf.
//!
//! Follows the OTLP specification (<https://opentelemetry.io/docs/specs/otlp/>) with these exceptions, each for a
//! receiver that would lose records otherwise. HTTP 500 and gRPC INTERNAL are tried again: Vector answers so when its
//! sinks failed. Answers that speak of our address or credentials are tried again, since an operator mends those.
//! A partial success names no records: its request is rejected and comes again in parts until the rejected ones stand
//! alone, which repeats the others.
//!
//! Message types are those of `opentelemetry-proto`. The gRPC call hands over bytes encoded once, so that what is
//! sent again is the same; that is why tonic is used without its generated client.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use url::Url;

use super::http::{StatusKind, group_bounds, gzip, kind_of, said};
use super::json_walk::{NotAnObject, Number, Visit, walk};
use super::net::{CONNECT_TIMEOUT, Identity, NetSinkError, Presented, http_client, read_answer, read_ca, shown};
use super::requests::{Answer, Exchange, Part, Requests};
use crate::auth::{error_chain, parse_retry_after};
use crate::clock::Clock;
use crate::config::{OtlpCompression, OtlpConfig, OtlpProtocol};
use crate::host::{Batch, Record};
use crate::hosts::embedded::sink::{GroupBounds, Sink, Written};
use crate::model::Timestamp;
use crate::severity::Severity;

/// The one call of the logs service.
const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// Where it is over HTTP, below an endpoint without a path.
const HTTP_PATH: &str = "/v1/logs";
/// `service.name` and the name of the scope.
const NAME: &str = "m365-audit";
/// What Vector says when its sinks rejected events for good. It answers DATA_LOSS or 500 then, which mean passing
/// trouble elsewhere.
const VECTOR_REJECTED: &str = "Contents failed to deliver to sink";
/// What tonic, with which Vector reads, says of a message over its bound. It answers OUT_OF_RANGE then, which means
/// passing trouble elsewhere.
const TONIC_TOO_LARGE: &str = "message length too large";
/// How often an idle gRPC connection is probed, so that one whose peer vanished is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The sink.
pub struct OtlpSink {
    requests: Requests<Export>,
    bounds: GroupBounds,
}

impl OtlpSink {
    /// A sink as configured. Nothing is connected yet. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(config: &OtlpConfig, clock: Arc<dyn Clock>) -> Result<Self, NetSinkError> {
        let transport = match config.protocol {
            OtlpProtocol::Grpc => Transport::Grpc(Box::new(channel(config)?)),
            OtlpProtocol::Http => {
                let mut url = config.endpoint.clone();
                if url.path() == "/" {
                    url.set_path(HTTP_PATH);
                }
                Transport::Http(http_client(config.ca_file.as_deref(), &url)?, url)
            }
        };
        let export = Export {
            transport,
            gzip: config.compression == OtlpCompression::Gzip,
            identity: Identity::new(&config.headers, config.credentials()),
            timeout: Duration::from_secs(config.timeout_secs),
            clock,
        };
        let (bytes, records) = (config.batch_bytes_max, config.batch_records_max);
        let bounds = group_bounds(bytes, records, config.requests_in_flight_max, config.batch_age_secs);
        Ok(Self { requests: Requests::new(export, bytes, records, config.requests_in_flight_max), bounds })
    }
}

#[async_trait]
impl Sink for OtlpSink {
    fn bounds(&self) -> GroupBounds {
        self.bounds
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        self.requests.write(batches).await
    }
}

fn channel(config: &OtlpConfig) -> Result<Channel, NetSinkError> {
    let failed =
        |error: tonic::transport::Error| NetSinkError::Tls { to: shown(&config.endpoint), why: error_chain(&error) };
    let mut endpoint = Endpoint::from_shared(config.endpoint.as_str().to_owned())
        .map_err(failed)?
        .user_agent(concat!("m365-audit/", env!("CARGO_PKG_VERSION")))
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE);
    if config.endpoint.scheme() == "https" {
        let mut tls = ClientTlsConfig::new().with_native_roots();
        if let Some(ca) = read_ca(config.ca_file.as_deref())? {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        endpoint = endpoint.tls_config(tls).map_err(failed)?;
    }
    Ok(endpoint.connect_lazy())
}

enum Transport {
    Grpc(Box<Channel>),
    Http(reqwest::Client, Url),
}

struct Export {
    transport: Transport,
    gzip: bool,
    identity: Identity,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Exchange for Export {
    fn pack(&self, parts: &[Part]) -> Result<Bytes, String> {
        let message = request(parts, self.clock.now())?.encode_to_vec();
        match (&self.transport, self.gzip) {
            (Transport::Http(..), true) => gzip(&message),
            // tonic compresses by itself.
            _ => Ok(message.into()),
        }
    }

    async fn send(&self, body: Bytes) -> Answer {
        let presented = match self.identity.present() {
            Ok(presented) => presented,
            Err(why) => return Answer::later(why),
        };
        let exchange = async {
            match &self.transport {
                Transport::Grpc(channel) => self.call((**channel).clone(), body, &presented).await,
                Transport::Http(client, url) => self.post(client, url.clone(), body, &presented).await,
            }
        };
        tokio::select! {
            answer = exchange => answer,
            () = self.clock.sleep(self.timeout) => {
                Answer::later(format!("no answer within {} s", self.timeout.as_secs()))
            }
        }
    }
}

impl Export {
    async fn post(&self, client: &reqwest::Client, url: Url, body: Bytes, presented: &Presented) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if self.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let request = client.post(url).headers(headers).headers(presented.headers.clone()).body(body);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Answer::later(format!("no answer: {}", error_chain(&error.without_url()))),
        };
        let text = read_answer(&mut response).await;
        let status = response.status();
        // A failure's body is a `google.rpc.Status`; a proxy in between may answer anything.
        let words = RpcStatus::decode(text.as_slice()).map_or_else(|_| text.clone(), |s| s.message.into_bytes());
        let why = || said(status, &words, presented);
        match http_kind(status, &words) {
            StatusKind::Success => match ExportLogsServiceResponse::decode(text.as_slice()) {
                Ok(response) => taken(&response, presented),
                // 2xx by itself is success; some receivers answer JSON or nothing.
                Err(_) => Answer::Taken,
            },
            StatusKind::Passing => {
                let retry_after = response.headers().get(RETRY_AFTER);
                let retry_after = retry_after.and_then(|value| parse_retry_after(value, self.clock.now()));
                Answer::Later { why: why(), retry_after }
            }
            StatusKind::Ours => Answer::later(format!("{} (check the sink's address and credentials)", why())),
            StatusKind::Rejection => Answer::Never(why()),
        }
    }

    async fn call(&self, channel: Channel, body: Bytes, presented: &Presented) -> Answer {
        let mut grpc = tonic::client::Grpc::new(channel).accept_compressed(CompressionEncoding::Gzip);
        if self.gzip {
            grpc = grpc.send_compressed(CompressionEncoding::Gzip);
        }
        if let Err(error) = grpc.ready().await {
            return Answer::later(format!("no connection: {}", error_chain(&error)));
        }
        let mut request = tonic::Request::new(body);
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(presented.headers.clone());
        let path = http::uri::PathAndQuery::from_static(EXPORT);
        match grpc.unary(request, path, Raw).await {
            Ok(response) => match ExportLogsServiceResponse::decode(response.into_inner()) {
                Ok(response) => taken(&response, presented),
                Err(_) => Answer::Taken,
            },
            Err(status) => refused(&status, presented),
        }
    }
}

/// What success says: all of it, or that some records were not taken.
fn taken(response: &ExportLogsServiceResponse, presented: &Presented) -> Answer {
    let Some(partial) = &response.partial_success else { return Answer::Taken };
    let words = presented.shown(&partial.error_message);
    if partial.rejected_log_records > 0 {
        return Answer::Never(format!(
            "the receiver rejected {} of the records: {words}",
            partial.rejected_log_records
        ));
    }
    if !words.is_empty() {
        tracing::warn!(answer = words, "the OTLP receiver took the records and has something to say");
    }
    Answer::Taken
}

/// The specification's retryable statuses and the exceptions this file's head names.
fn http_kind(status: StatusCode, words: &[u8]) -> StatusKind {
    match (status.as_u16(), kind_of(status)) {
        (500.., _) if memchr::memmem::find(words, VECTOR_REJECTED.as_bytes()).is_some() => StatusKind::Rejection,
        (408 | 429 | 500 | 502 | 503 | 504, _) => StatusKind::Passing,
        (_, StatusKind::Passing) => StatusKind::Rejection,
        (_, kind) => kind,
    }
}

/// What a gRPC failure says of the records.
fn refused(status: &Status, presented: &Presented) -> Answer {
    let retry_after = retry_delay(status);
    let words = presented.shown(status.message());
    let why = format!("answer {:?}: {words}", status.code());
    let later = |why| Answer::Later { why, retry_after };
    match status.code() {
        Code::DataLoss if status.message().contains(VECTOR_REJECTED) => Answer::Never(why),
        Code::OutOfRange if status.message().contains(TONIC_TOO_LARGE) => Answer::Never(why),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => later(why),
        // Retryable if the receiver says when; else the message is too large, or a quota is used up for good.
        Code::ResourceExhausted if retry_after.is_some() => later(why),
        // INTERNAL is Vector's word for a sink that failed, and both are tonic's for a connection that broke.
        Code::Internal | Code::Unknown | Code::Ok => later(why),
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => {
            later(format!("{why} (check the sink's address and credentials)"))
        }
        Code::InvalidArgument | Code::ResourceExhausted | Code::FailedPrecondition | Code::AlreadyExists => {
            Answer::Never(why)
        }
    }
}

/// `google.rpc.Status`, of which the details hold what gRPC has no place for.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<RpcAny>,
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, Message)]
struct RpcAny {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RpcDuration>,
}

/// `google.protobuf.Duration`
#[derive(Clone, PartialEq, Message)]
struct RpcDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// `RetryInfo` of the status' details.
fn retry_delay(status: &Status) -> Option<Duration> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
    let (seconds, nanos) = (u64::try_from(delay.seconds).unwrap_or(0), u32::try_from(delay.nanos).unwrap_or(0));
    Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
}

/// Messages that are bytes already.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

// ------------------------------------------------------------------------------------------ the message

/// The records of a batch as one `ExportLogsServiceRequest` in protobuf: what the sink sends of it, before compression.
///
/// # Errors
/// A record is no JSON object.
pub fn encode(batch: &Batch, observed: Timestamp) -> Result<Vec<u8>, String> {
    Ok(request(&[Part::whole(batch)], observed)?.encode_to_vec())
}

/// All records as one request.
fn request(parts: &[Part], observed: Timestamp) -> Result<ExportLogsServiceRequest, String> {
    let observed = unix_nanos(observed);
    let mut log_records = Vec::with_capacity(parts.iter().map(Part::len).sum());
    for part in parts {
        for record in part.records() {
            log_records.push(log_record(&part.batch, &record, observed).map_err(|error| error.to_string())?);
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let scope = InstrumentationScope { name: NAME.into(), version: version.into(), ..Default::default() };
    let attributes = vec![text("service.name", NAME), text("service.version", version)];
    Ok(ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource { attributes, ..Default::default() }),
            scope_logs: vec![ScopeLogs { scope: Some(scope), log_records, ..Default::default() }],
            ..Default::default()
        }],
    })
}

fn log_record(batch: &Batch, record: &Record<'_>, observed: u64) -> Result<LogRecord, NotAnObject> {
    let body = body_of(record.json)?;
    let mut attributes =
        vec![text("m365.tenant_id", batch.tenant.as_str()), text("m365.content_type", batch.content_type.as_str())];
    // The id as each format has it: native, raw, ECS, OCSF.
    let id = [&["event_id"][..], &["Id"], &["event", "id"], &["metadata", "uid"]];
    attributes.extend(id.iter().find_map(|path| at(&body, path)).map(|id| attribute("m365.id", id)));
    for (path, name) in [
        (&["operation"][..], "m365.operation"),
        (&["workload"], "m365.workload"),
        (&["actor", "id"], "user.id"),
        (&["actor", "name"], "user.name"),
        (&["src_ip"], "client.address"),
        (&["src_port"], "client.port"),
        (&["user_agent"], "user_agent.original"),
    ] {
        attributes.extend(at(&body, path).map(|value| attribute(name, value)));
    }
    let event_name = match at(&body, &["event_type"]) {
        Some(Value::StringValue(name)) => name.clone(),
        _ => String::new(),
    };
    let severity = record.severity();
    Ok(LogRecord {
        time_unix_nano: unix_nanos(record.time),
        observed_time_unix_nano: observed,
        severity_number: severity_number(severity).into(),
        severity_text: severity.as_str().into(),
        body: Some(AnyValue { value: Some(Value::KvlistValue(body)) }),
        attributes,
        event_name,
        ..Default::default()
    })
}

/// The logs data model's numbers: its words for our five.
const fn severity_number(severity: Severity) -> SeverityNumber {
    match severity {
        Severity::Info => SeverityNumber::Info,
        Severity::Low => SeverityNumber::Info2,
        Severity::Medium => SeverityNumber::Warn,
        Severity::High => SeverityNumber::Error,
        Severity::Critical => SeverityNumber::Fatal,
    }
}

/// Nanoseconds since 1970; 0, which means unknown, before it.
fn unix_nanos(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

fn text(key: &str, text: &str) -> KeyValue {
    attribute(key, &Value::StringValue(text.into()))
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value.clone()) }), ..Default::default() }
}

/// The scalar under a path of keys.
fn at<'a>(body: &'a KeyValueList, path: &[&str]) -> Option<&'a Value> {
    let (key, rest) = path.split_first()?;
    let value = body.values.iter().find(|member| member.key == *key)?.value.as_ref()?.value.as_ref()?;
    match (value, rest) {
        (Value::KvlistValue(inner), [_, ..]) => at(inner, rest),
        (Value::StringValue(_) | Value::IntValue(_), []) => Some(value),
        _ => None,
    }
}

fn body_of(json: &[u8]) -> Result<KeyValueList, NotAnObject> {
    let mut builder = Builder::default();
    walk(json, &mut builder)?;
    builder.body.ok_or(NotAnObject)
}

/// Builds the body while a record is read.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    body: Option<KeyValueList>,
}

enum Open {
    /// A map, and the key whose value is awaited.
    Map(Vec<KeyValue>, String),
    Array(Vec<AnyValue>),
}

impl Builder {
    fn value(&mut self, value: Option<Value>) {
        let value = AnyValue { value };
        match self.open.last_mut() {
            Some(Open::Map(members, key)) => {
                members.push(KeyValue { key: std::mem::take(key), value: Some(value), ..Default::default() });
            }
            Some(Open::Array(items)) => items.push(value),
            None => {}
        }
    }
}

impl Visit for Builder {
    fn begin_object(&mut self) {
        self.open.push(Open::Map(Vec::new(), String::new()));
    }

    fn key(&mut self, name: &str) {
        if let Some(Open::Map(_, key)) = self.open.last_mut() {
            name.clone_into(key);
        }
    }

    fn end_object(&mut self) {
        if let Some(Open::Map(mut values, _)) = self.open.pop() {
            keep_last(&mut values);
            match self.open.is_empty() {
                true => self.body = Some(KeyValueList { values }),
                false => self.value(Some(Value::KvlistValue(KeyValueList { values }))),
            }
        }
    }

    fn begin_array(&mut self) {
        self.open.push(Open::Array(Vec::new()));
    }

    fn end_array(&mut self) {
        if let Some(Open::Array(values)) = self.open.pop() {
            self.value(Some(Value::ArrayValue(ArrayValue { values })));
        }
    }

    fn string(&mut self, text: &str) {
        self.value(Some(Value::StringValue(text.into())));
    }

    fn number(&mut self, number: Number<'_>) {
        self.value(Some(match number {
            Number::Int(n) => Value::IntValue(n),
            // OTLP has no larger integers.
            Number::UInt(n) => Value::StringValue(n.to_string()),
            Number::Float(n) => Value::DoubleValue(n),
            Number::Text(digits) => Value::StringValue(digits.into()),
        }));
    }

    fn bool(&mut self, value: bool) {
        self.value(Some(Value::BoolValue(value)));
    }

    fn null(&mut self) {
        self.value(None);
    }
}

/// The specification forbids a key twice; the last counts, as JSON parsers have it.
fn keep_last(members: &mut Vec<KeyValue>) {
    let mut seen = HashSet::with_capacity(members.len());
    let keep: Vec<bool> = members.iter().rev().map(|member| seen.insert(member.key.as_str())).collect();
    if keep.contains(&false) {
        let mut keep = keep.into_iter().rev();
        members.retain(|_| keep.next().unwrap_or(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(value: Option<&AnyValue>) -> String {
        match value.and_then(|value| value.value.as_ref()) {
            None => "null".into(),
            Some(Value::KvlistValue(map)) => {
                let members: Vec<String> =
                    map.values.iter().map(|m| format!("{}: {}", m.key, shape(m.value.as_ref()))).collect();
                format!("{{{}}}", members.join(", "))
            }
            Some(Value::ArrayValue(array)) => {
                format!("[{}]", array.values.iter().map(|v| shape(Some(v))).collect::<Vec<_>>().join(", "))
            }
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn a_body_keeps_types_and_the_last_of_several_members_of_one_name() {
        let json = br#"{"a":1,"s":"x","f":1.5,"b":true,"n":null,"big":18446744073709551615,"l":[1,{"k":[]}],"a":{"z":1,"z":2}}"#;
        let body = AnyValue { value: Some(Value::KvlistValue(body_of(json).unwrap())) };
        expect_test::expect![[r#"{s: StringValue("x"), f: DoubleValue(1.5), b: BoolValue(true), n: null, big: StringValue("18446744073709551615"), l: [IntValue(1), {k: []}], a: {z: IntValue(2)}}"#]]
            .assert_eq(&shape(Some(&body)));
    }

    #[test]
    fn no_record_is_too_deep_for_a_prost_receiver() {
        let json = format!("{{\"a\":{}1{}}}", "{\"a\":[".repeat(5_000), "]}".repeat(5_000));
        let batch = crate::hosts::requests::tests::batch(&[&json]);
        let item = crate::hosts::requests::Outbox::default().open(&[batch], 1, 1).remove(0);
        let bytes = request(&item.parts, Timestamp::UNIX_EPOCH).unwrap().encode_to_vec();
        assert!(ExportLogsServiceRequest::decode(bytes.as_slice()).is_ok());
    }

    #[test]
    fn a_grpc_code_speaks_of_the_records_of_us_or_of_the_moment() {
        let none = crate::hosts::net::Identity::new(
            &Default::default(),
            crate::config::Credentials {
                username: None,
                password: None,
                password_file: None,
                bearer_token: None,
                bearer_token_file: None,
            },
        );
        let presented = none.present().unwrap();
        let is_later = |status: &Status| matches!(refused(status, &presented), Answer::Later { .. });
        for code in [1, 4, 10, 11, 14, 15, 13, 2, 16, 7, 12, 5] {
            assert!(is_later(&Status::new(Code::from(code), "x")), "{code}");
        }
        for code in [3, 8, 9, 6] {
            assert!(!is_later(&Status::new(Code::from(code), "x")), "{code}");
        }
        assert!(!is_later(&Status::new(Code::DataLoss, VECTOR_REJECTED)));
        let info = RetryInfo { retry_delay: Some(RpcDuration { seconds: 3, nanos: 500_000_000 }) };
        let any = RpcAny { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info.encode_to_vec() };
        let details = RpcStatus { code: 8, message: String::new(), details: vec![any] }.encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "busy", details.into());
        assert_eq!(
            refused(&status, &presented),
            Answer::Later {
                why: "answer ResourceExhausted: busy".into(),
                retry_after: Some(Duration::from_millis(3_500))
            }
        );
    }

    #[test]
    fn over_http_only_the_specified_statuses_and_500_are_passing() {
        for (status, words, kind) in [
            (500, "", StatusKind::Passing),
            (503, "", StatusKind::Passing),
            (429, "", StatusKind::Passing),
            (501, "", StatusKind::Rejection),
            (400, "", StatusKind::Rejection),
            (401, "", StatusKind::Ours),
            (500, VECTOR_REJECTED, StatusKind::Rejection),
        ] {
            assert_eq!(http_kind(StatusCode::from_u16(status).unwrap(), words.as_bytes()), kind, "{status} {words}");
        }
    }
}
