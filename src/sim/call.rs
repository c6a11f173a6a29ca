//! A call of the simulated API and its answer, before faults and without sockets.

use bytes::Bytes;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::faults::CallKind;
use super::tenant::SimBlobBody;
use crate::model::ContentType;

/// The reply header that names the next page; [`write_name`] inserts its spelling on the wire.
pub(super) const NEXT_PAGE_HEADER: &str = "nextpageuri";

/// A parsed request.
pub(super) struct SimCall {
    pub kind: CallKind,
    pub method_ok: bool,
    /// The tenant in the path.
    pub tenant_text: String,
    /// The blob a content path names, decoded once.
    pub blob_id: Option<String>,
    /// The token endpoint's version 2.
    pub v2: bool,
    /// Query parameters: names in lower case, first value wins.
    pub query: Vec<(String, String)>,
    pub raw_query: String,
    pub bearer: Option<String>,
    /// The host and port that the client called, if it sent them.
    pub host: Option<String>,
    pub languages: Vec<String>,
    /// Of a call of Graph: its version, a slash, and the query's id.
    pub graph: String,
    /// The body of a call of Graph.
    pub body: Bytes,
    /// The decoded form of a token request.
    pub form: Vec<(String, String)>,
    /// App Service's end point of managed identity, not the machine's.
    pub app_service: bool,
    pub identity: IdentityHeaders,
}

impl SimCall {
    /// Reads a path and a query; headers and body are filled in by the server.
    pub fn parse(method: &str, path: &str, query: &str) -> Self {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let mut call = Self {
            kind: CallKind::Unknown,
            method_ok: true,
            tenant_text: String::new(),
            blob_id: None,
            v2: false,
            query: form_urlencoded::parse(query.as_bytes())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.into_owned()))
                .collect(),
            raw_query: query.to_owned(),
            bearer: None,
            host: None,
            languages: Vec::new(),
            graph: String::new(),
            body: Bytes::new(),
            form: Vec::new(),
            app_service: false,
            identity: IdentityHeaders::default(),
        };
        if let ["metadata", "identity", "oauth2", "token"] | ["msi", "token"] = segments.as_slice() {
            call.kind = CallKind::Identity;
            call.app_service = segments.len() == 2;
            call.method_ok = method == "GET";
            return call;
        }
        if let Some((kind, graph)) = graph_call(&segments) {
            call.kind = kind;
            call.graph = graph;
            call.method_ok = (method == "POST") == (kind == CallKind::GraphSubmit);
            return call;
        }
        let (kind, tenant, expected) = match segments.as_slice() {
            [tenant, "oauth2", "token"] => (CallKind::Token, tenant, "POST"),
            [tenant, "oauth2", "v2.0", "token"] => {
                call.v2 = true;
                (CallKind::Token, tenant, "POST")
            }
            ["api", "v1.0" | "v1", tenant, "activity", "feed", rest @ ..] => match rest {
                ["subscriptions", "list"] => (CallKind::List, tenant, "GET"),
                ["subscriptions", "start"] => (CallKind::Start, tenant, "POST"),
                ["subscriptions", "stop"] => (CallKind::Stop, tenant, "POST"),
                ["subscriptions", "content"] if call.param("nextpage").is_some() => (CallKind::NextPage, tenant, "GET"),
                ["subscriptions", "content"] => (CallKind::Content, tenant, "GET"),
                ["subscriptions", "notifications"] => (CallKind::Notifications, tenant, "GET"),
                ["resources", "dlpSensitiveTypes"] => (CallKind::SensitiveTypes, tenant, "GET"),
                ["audit", id] => {
                    call.blob_id = Some(percent_decode(id));
                    (CallKind::Blob, tenant, "GET")
                }
                _ => return call,
            },
            _ => return call,
        };
        call.kind = kind;
        call.tenant_text = percent_decode(tenant);
        call.method_ok = method == expected;
        call
    }

    /// A query parameter by its lower-case name.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn content_type(&self) -> Option<ContentType> {
        self.param("contenttype").and_then(|text| text.parse().ok())
    }
}

/// Whether the path is one of Graph's, and which: its version and the rest.
fn graph_call(segments: &[&str]) -> Option<(CallKind, String)> {
    let (version, rest) = match segments {
        [version @ ("v1.0" | "beta"), "security", "auditLog", "queries", rest @ ..] => (*version, rest),
        _ => return None,
    };
    let (kind, id) = match rest {
        [] => (CallKind::GraphSubmit, ""),
        [id] => (CallKind::GraphQuery, *id),
        [id, "records"] => (CallKind::GraphRecords, *id),
        _ => return None,
    };
    Some((kind, format!("{version}/{id}")))
}

/// An answer before faults.
pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: ReplyBody,
    /// The blob whose events this carries, so that a complete read can be recorded.
    pub reads_blob: Option<String>,
}

pub(super) enum ReplyBody {
    Bytes(Bytes),
    Blob(SimBlobBody),
}

impl Reply {
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self { status, headers, body: ReplyBody::Bytes(body.into()), reads_blob: None }
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json; charset=utf-8", value.to_string())
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &json!({"error": {"code": code, "message": message}}))
    }

    pub(super) fn html(status: u16, title: &str) -> Self {
        let page =
            format!("<!DOCTYPE html>\r\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>");
        Self::new(status, "text/html", page)
    }

    /// A server exception in the API's form: the text is split at its first colon, and the message has lost the
    /// character after it.
    pub(super) fn server_exception(text: &str) -> Self {
        let (code, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut message = rest.chars();
        message.next();
        Self::error(400, code, message.as_str())
    }
}

/// The headers of a request that these end points use.
#[derive(Default)]
pub(super) struct IdentityHeaders {
    pub metadata: bool,
    pub forwarded: bool,
    pub app_service: String,
    pub authorization: String,
}

/// Decodes `%XX` once; other text stays.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match pair.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                out.push(decoded);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
