//! A feed that costs next to nothing to serve: bodies are a template in memory with the ids and times of the events
//! written over it, one thread a connection, HTTP/1.1 without compression. It is not [`m365_audit::sim`]: that one is
//! faithful, this one is fast, so that the measurement covers the client.
//!
//! Every tenant's feed is the same. `GET /stats` returns the counts of requests.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::model::Timestamp;
use serde_json::value::RawValue;

/// The events of the fixtures: real ones that may be passed on.
const FAMILIES: [&str; 4] = [
    include_str!("../../tests/fixtures/records/entra.ndjson"),
    include_str!("../../tests/fixtures/records/exchange.ndjson"),
    include_str!("../../tests/fixtures/records/general.ndjson"),
    include_str!("../../tests/fixtures/records/sharepoint.ndjson"),
];
/// Events in one template; longer blobs are several of it.
const SEGMENT_EVENTS: u64 = 200;
const TYPES: [&str; 5] =
    ["Audit.AzureActiveDirectory", "Audit.Exchange", "Audit.SharePoint", "Audit.General", "DLP.All"];

/// The content of the feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Feed {
    /// Blobs of history, dealt to the first four content types in turn.
    pub blobs: u64,
    /// Events in each.
    pub events: u64,
    /// The span of the history before the start, in seconds.
    pub span_secs: i64,
    /// Blobs on a page of a listing.
    pub page: usize,
    /// Requests in any 60 seconds before AF429, 0 for no limit.
    pub quota: u64,
    /// Milliseconds before a blob's first byte.
    pub latency_ms: u64,
    /// The interval at which a new blob becomes listable in `Audit.General`, milliseconds; 0 for none.
    pub fresh_ms: u64,
}

impl Default for Feed {
    fn default() -> Self {
        Self { blobs: 1500, events: 200, span_secs: 6 * 86_400, page: 200, quota: 0, latency_ms: 0, fresh_ms: 0 }
    }
}

impl Feed {
    /// As the server's one argument.
    pub fn to_arg(&self) -> String {
        let Self { blobs, events, span_secs, page, quota, latency_ms, fresh_ms } = self;
        format!("{blobs},{events},{span_secs},{page},{quota},{latency_ms},{fresh_ms}")
    }

    fn from_arg(arg: &str) -> Self {
        let numbers: Vec<u64> = arg.split(',').map(|n| n.parse().expect("a number")).collect();
        let [blobs, events, span, page, quota, latency_ms, fresh_ms] = numbers[..] else { panic!("7 numbers: {arg}") };
        Self { blobs, events, span_secs: span as i64, page: page as usize, quota, latency_ms, fresh_ms }
    }
}

/// A stretch of a body, and the offsets of its ids and times.
struct Template {
    text: Vec<u8>,
    /// Offsets of the first eight hex digits of each id.
    ids: Vec<usize>,
    /// Offsets of each `CreationTime`.
    times: Vec<usize>,
}

impl Template {
    /// `events` events without the brackets of the array.
    fn new(events: u64) -> Self {
        let lines: Vec<&str> = FAMILIES.iter().flat_map(|family| family.lines()).collect();
        let mut template = Self { text: Vec::new(), ids: Vec::new(), times: Vec::new() };
        for n in 0..events {
            let line = lines[n as usize % lines.len()];
            if n > 0 {
                template.text.push(b',');
            }
            template.push(line, n);
        }
        template
    }

    fn push(&mut self, line: &str, n: u64) {
        let members: HashMap<&str, &RawValue> = serde_json::from_str(line).expect("an object");
        let place = |name: &str| {
            let token = members.get(name).expect(name).get();
            let at = token.as_ptr() as usize - line.as_ptr() as usize;
            (at, at + token.len())
        };
        let (id, time) = (place("Id"), place("CreationTime"));
        let mut places = [(id, true), (time, false)];
        places.sort();
        let mut done = 0;
        for ((start, end), is_id) in places {
            self.text.extend_from_slice(&line.as_bytes()[done..start]);
            self.text.push(b'"');
            let at = self.text.len();
            if is_id {
                self.ids.push(at);
                self.text.extend_from_slice(format!("00000000-0000-4000-8000-{n:012x}").as_bytes());
            } else {
                self.times.push(at);
                self.text.extend_from_slice(b"2026-01-01T00:00:00");
            }
            self.text.push(b'"');
            done = end;
        }
        self.text.extend_from_slice(&line.as_bytes()[done..]);
    }

    /// The template with the ids of stretch `serial` and times up to half an hour before `created`.
    fn fill(&self, serial: u64, created: Timestamp, out: &mut Vec<u8>) {
        let base = out.len();
        out.extend_from_slice(&self.text);
        let id = format!("{serial:08x}");
        for at in &self.ids {
            out[base + at..base + at + 8].copy_from_slice(id.as_bytes());
        }
        let mut text = String::new();
        for (n, at) in self.times.iter().enumerate() {
            if n % 20 == 0 {
                text.clear();
                let time = Timestamp::from_second(created.as_second() - (n as i64 / 20 * 90)).expect("a time");
                write!(text, "{}", time.strftime("%Y-%m-%dT%H:%M:%S")).expect("a string");
            }
            out[base + at..base + at + 19].copy_from_slice(text.as_bytes());
        }
    }
}

/// The state of a feed; it makes the answers for the server.
pub struct Shared {
    feed: Feed,
    origin: String,
    clock: Arc<dyn Clock>,
    started: Timestamp,
    segment: Template,
    rest: Template,
    requests: AtomicU64,
    throttled: AtomicU64,
    blob_bytes: AtomicU64,
    /// Requests by the second since the start.
    by_second: Mutex<Vec<u32>>,
    /// Requests by tenant.
    by_tenant: Mutex<HashMap<String, u32>>,
    /// By tenant: when the requests of the last 60 s came.
    recent: Mutex<HashMap<String, VecDeque<Instant>>>,
    /// Unix milliseconds at which each fresh blob was first on a listing.
    fresh_listed: Mutex<Vec<i64>>,
    born: Instant,
}

/// Serves until its process is ended. Prints its origin.
pub fn serve(arg: &str) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("an address"));
    let shared = Arc::new(Shared::new(arg, origin));
    println!("{}", shared.origin);
    for stream in listener.incoming().flatten() {
        let shared = shared.clone();
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        thread.spawn(move || shared.talk(stream)).expect("a thread");
    }
    unreachable!("a listener does not end");
}

impl Shared {
    /// A feed whose links lead to `origin`.
    pub fn new(arg: &str, origin: String) -> Self {
        let feed = Feed::from_arg(arg);
        let clock = SystemClock::new();
        let rest = feed.events % SEGMENT_EVENTS;
        Self {
            origin,
            started: clock.now(),
            clock,
            segment: Template::new(SEGMENT_EVENTS),
            rest: Template::new(rest),
            feed,
            requests: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            blob_bytes: AtomicU64::new(0),
            by_second: Mutex::default(),
            by_tenant: Mutex::default(),
            recent: Mutex::default(),
            fresh_listed: Mutex::default(),
            born: Instant::now(),
        }
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    fn talk(&self, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut writer = stream;
        let mut out = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).ok()?;
                if header.trim().is_empty() {
                    break;
                }
                if let Some(n) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().ok()?;
                }
            }
            std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink()).ok()?;
            let target = line.split(' ').nth(1)?.to_owned();
            self.answer(&target, &mut writer, &mut out)?;
        }
    }

    /// Writes the answer to a request for `target` as HTTP/1.1; `out` is a scratch buffer.
    pub fn answer(&self, target: &str, writer: &mut impl Write, out: &mut Vec<u8>) -> Option<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/stats" {
            return self.json(writer, 200, "", &self.stats());
        }
        if path.ends_with("/token") {
            let token = r#"{"token_type":"Bearer","expires_in":4500,"access_token":"bench"}"#;
            return self.json(writer, 200, "", token);
        }
        let tenant = path.split('/').nth(3).unwrap_or_default();
        if !self.admit(tenant) {
            let body = r#"{"error":{"code":"AF429","message":"Too many requests."}}"#;
            return self.json(writer, 429, "", body);
        }
        let param = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        if path.ends_with("/subscriptions/list") {
            let list: Vec<String> =
                TYPES.iter().map(|t| format!(r#"{{"contentType":"{t}","status":"enabled","webhook":null}}"#)).collect();
            return self.json(writer, 200, "", &format!("[{}]", list.join(",")));
        }
        if path.ends_with("/subscriptions/content") {
            let content_type = TYPES.iter().position(|t| param("contentType") == Some(t))?;
            let time = |name| format!("{}Z", param(name).unwrap_or_default().replace("%3A", ":")).parse().ok();
            let (start, end): (Timestamp, Timestamp) = (time("startTime")?, time("endTime")?);
            let skip: usize = param("nextPage").and_then(|n| n.parse().ok()).unwrap_or(0);
            let all = self.list(tenant, content_type as u64, start, end);
            let page: Vec<&String> = all.iter().skip(skip).take(self.feed.page).collect();
            let more = skip + page.len() < all.len();
            let link = more.then(|| {
                let (s, e) = (param("startTime").unwrap_or_default(), param("endTime").unwrap_or_default());
                let name = TYPES[content_type];
                let skip = skip + page.len();
                format!(
                    "NextPageUri: {}{path}?contentType={name}&startTime={s}&endTime={e}&nextPage={skip}\r\n",
                    self.origin
                )
            });
            let body = page.into_iter().map(String::as_str).collect::<Vec<_>>().join(",");
            return self.json(writer, 200, &link.unwrap_or_default(), &format!("[{body}]"));
        }
        let blob: u64 = path.rsplit('/').next()?.split('$').nth(1)?.parse().ok()?;
        std::thread::sleep(Duration::from_millis(self.feed.latency_ms));
        self.blob(blob, writer, out)
    }

    fn admit(&self, tenant: &str) -> bool {
        let now = Instant::now();
        let mut seconds = self.by_second.lock().expect("a lock");
        let second = (now - self.born).as_secs() as usize;
        if seconds.len() <= second {
            seconds.resize(second + 1, 0);
        }
        seconds[second] += 1;
        drop(seconds);
        *self.by_tenant.lock().expect("a lock").entry(tenant.to_owned()).or_default() += 1;
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.feed.quota == 0 {
            return true;
        }
        let mut recent = self.recent.lock().expect("a lock");
        let recent = recent.entry(tenant.to_owned()).or_default();
        while recent.front().is_some_and(|at| now - *at >= Duration::from_secs(60)) {
            recent.pop_front();
        }
        let free = (recent.len() as u64) < self.feed.quota;
        if free {
            recent.push_back(now);
        } else {
            self.throttled.fetch_add(1, Ordering::Relaxed);
        }
        free
    }

    fn fresh_now(&self) -> u64 {
        let age = self.clock.now().duration_since(self.started).as_millis().max(0) as u64;
        age.checked_div(self.feed.fresh_ms).unwrap_or(0)
    }

    /// Blobs of history come first, those published since the start after them.
    fn created(&self, blob: u64) -> Timestamp {
        let ms = match blob.checked_sub(self.feed.blobs) {
            None => {
                let step = self.feed.span_secs * 1000 / (self.feed.blobs as i64 + 1);
                self.started.as_millisecond() - self.feed.span_secs * 1000 + step * (blob as i64 + 1)
            }
            Some(fresh) => self.started.as_millisecond() + (self.feed.fresh_ms * (fresh + 1)) as i64,
        };
        Timestamp::from_millisecond(ms).expect("a time")
    }

    fn list(&self, tenant: &str, content_type: u64, start: Timestamp, end: Timestamp) -> Vec<String> {
        let fresh = if content_type == 3 { self.fresh_now() } else { 0 };
        let history = (0..self.feed.blobs).filter(|blob| blob % 4 == content_type);
        let mut found = Vec::new();
        for blob in history.chain(self.feed.blobs..self.feed.blobs + fresh) {
            let created = self.created(blob);
            if created < start || created >= end {
                continue;
            }
            if let Some(fresh) = blob.checked_sub(self.feed.blobs) {
                let mut listed = self.fresh_listed.lock().expect("a lock");
                let now = self.clock.now().as_millisecond();
                if listed.len() <= fresh as usize {
                    listed.resize(fresh as usize + 1, 0);
                }
                if listed[fresh as usize] == 0 {
                    listed[fresh as usize] = now;
                }
            }
            let name = TYPES[content_type as usize];
            let id = format!("bench${blob}$audit${content_type}");
            let expires = Timestamp::from_second(created.as_second() + 7 * 86_400).expect("a time");
            found.push(format!(
                r#"{{"contentUri":"{}/api/v1.0/{tenant}/activity/feed/audit/{id}","contentId":"{id}","contentType":"{name}","contentCreated":"{created:.3}","contentExpiration":"{expires:.3}"}}"#,
                self.origin
            ));
        }
        found
    }

    /// Whole templates in a blob, parts with the rest, and bytes.
    fn measures(&self) -> (u64, u64, u64) {
        let segments = self.feed.events / SEGMENT_EVENTS;
        let parts = segments + u64::from(!self.rest.text.is_empty());
        let length = segments * self.segment.text.len() as u64 + self.rest.text.len() as u64 + 1 + parts.max(1);
        (segments, parts, length)
    }

    /// Bytes of all blobs of history.
    pub fn history_bytes(&self) -> u64 {
        self.measures().2 * self.feed.blobs
    }

    fn blob(&self, blob: u64, writer: &mut impl Write, out: &mut Vec<u8>) -> Option<()> {
        let created = self.created(blob);
        let (segments, parts, length) = self.measures();
        self.blob_bytes.fetch_add(length, Ordering::Relaxed);
        out.clear();
        self.head(out, 200, "", length);
        out.push(b'[');
        for part in 0..parts {
            let template = if part < segments { &self.segment } else { &self.rest };
            template.fill(blob * parts + part, created, out);
            out.push(if part + 1 < parts { b',' } else { b']' });
            writer.write_all(out).ok()?;
            out.clear();
        }
        if parts == 0 {
            out.push(b']');
        }
        writer.write_all(out).ok()
    }

    fn head(&self, out: &mut Vec<u8>, status: u16, headers: &str, length: u64) {
        let date = self.clock.now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        write!(
            out,
            "HTTP/1.1 {status} x\r\nDate: {date}\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n"
        )
        .expect("a vector");
    }

    fn json(&self, writer: &mut impl Write, status: u16, headers: &str, body: &str) -> Option<()> {
        let mut out = Vec::new();
        self.head(&mut out, status, headers, body.len() as u64);
        out.extend_from_slice(body.as_bytes());
        writer.write_all(&out).ok()
    }

    fn stats(&self) -> String {
        serde_json::json!({
            "requests": self.requests.load(Ordering::Relaxed),
            "throttled": self.throttled.load(Ordering::Relaxed),
            "blob_bytes": self.blob_bytes.load(Ordering::Relaxed),
            "by_second": *self.by_second.lock().expect("a lock"),
            "by_tenant": *self.by_tenant.lock().expect("a lock"),
            "fresh_listed": *self.fresh_listed.lock().expect("a lock"),
        })
        .to_string()
    }
}
