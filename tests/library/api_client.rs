//! The feed's client against scripted HTTP on loopback: what goes over the wire, byte by byte, and what it makes of
//! faults no well-behaved server library would let us produce.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use m365_audit::api::{
    Action, ApiClient, ApiError, ApiSettings, Connections, Credential, EndpointVersion, ErrorKind, SecretText, Started,
};
use m365_audit::clock::{Clock, TestClock};
use m365_audit::model::{Actionable, BlobRef, ContentType, Window};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use url::Url;

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const FEED: &str = "/api/v1.0/11111111-2222-3333-4444-555555555555/activity/feed";
const SECRET: &str = "s3cr&t+va%lue";
const DATE: &str = "Thu, 16 Jul 2026 21:00:00 GMT";
/// At the end of an answer: what came before is sent and the connection stays open.
const STALL: &[u8] = b"<stall>";
const DENIED: &str = r#"{"Message":"Authorization has been denied for this request."}"#;

#[derive(Debug, Clone)]
struct Request {
    /// Method and target.
    line: String,
    head: String,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn is_token(&self) -> bool {
        self.line.contains("/oauth2/")
    }
}

/// A server that answers each request with the bytes a function gives, and closes the connection.
struct Server {
    url: Url,
    seen: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, log.clone(), answer.clone()));
            }
        });
        Server { url, seen, task }
    }

    /// A server whose token endpoint gives `token-1`, `token-2` …; the rest is `api`'s.
    async fn api(api: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let tokens = Mutex::new(0);
        Server::start(move |request| {
            if request.is_token() {
                let mut count = tokens.lock().unwrap();
                *count += 1;
                http(200, &[], format!(r#"{{"token_type":"Bearer","expires_in":3600,"access_token":"token-{count}"}}"#))
            } else {
                api(request)
            }
        })
        .await
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    fn tokens(&self) -> usize {
        self.seen().iter().filter(|request| request.is_token()).count()
    }

    fn api_lines(&self) -> Vec<String> {
        self.seen().into_iter().filter(|request| !request.is_token()).map(|request| request.line).collect()
    }

    fn settings(&self) -> ApiSettings {
        ApiSettings::at(&self.url, TENANT.parse().unwrap(), Credential::Secret(SecretText::from(SECRET)))
    }

    fn client(&self) -> (ApiClient, TestClock) {
        self.client_with(self.settings())
    }

    fn client_with(&self, settings: ApiSettings) -> (ApiClient, TestClock) {
        let clock = TestClock::at("2026-07-16T21:00:00Z".parse().unwrap());
        (ApiClient::new(settings, Arc::new(clock.clone())).unwrap(), clock)
    }

    /// The blob `name` as a listing of this server would give it.
    fn blob(&self, name: &str) -> BlobRef {
        blob_at(&format!("{}{FEED}/audit/{name}", self.url.as_str().trim_end_matches('/')))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<F: Fn(&Request) -> Vec<u8>>(mut stream: TcpStream, log: Arc<Mutex<Vec<Request>>>, answer: Arc<F>) {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let mut request = Request { line, head, body: String::new() };
    let length: usize = request.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
    request.body = String::from_utf8_lossy(&bytes[head_end..]).into_owned();
    log.lock().unwrap().push(request.clone());
    let bytes = answer(&request);
    match bytes.strip_suffix(STALL) {
        Some(bytes) => {
            let _ = stream.write_all(bytes).await;
            std::future::pending().await
        }
        None => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
    }
}

fn raw(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} X\r\nDate: {DATE}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

fn http(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = body.as_ref().len().to_string();
    let mut all = vec![("Content-Length", length.as_str())];
    all.extend_from_slice(headers);
    raw(status, &all, body.as_ref())
}

fn af(status: u16, code: &str) -> Vec<u8> {
    http(status, &[], format!(r#"{{"error":{{"code":"{code}","message":"words"}}}}"#))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn window() -> Window {
    Window { start: "2026-07-16T20:00:00Z".parse().unwrap(), end: "2026-07-16T21:00:00Z".parse().unwrap() }
}

fn blob_at(uri: &str) -> BlobRef {
    BlobRef {
        content_type: ContentType::General,
        id: "b".into(),
        uri: uri.into(),
        created: window().start,
        expires: window().end,
    }
}

async fn read(client: &ApiClient, blob: &BlobRef) -> Result<Vec<u8>, ApiError> {
    let mut body = client.fetch_blob(blob).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[tokio::test]
async fn every_call_names_the_publisher_and_carries_the_token_and_says_who_asks() {
    let server = Server::api(|_| http(200, &[], "[]")).await;
    let (client, _) = server.client();
    assert!(client.list_subscriptions().await.unwrap().is_empty());
    assert_eq!(client.start_subscription(ContentType::Exchange).await.unwrap(), Started::Now);
    client.stop_subscription(ContentType::Exchange).await.unwrap();
    let page = client.list_content(ContentType::Dlp, window(), None).await.unwrap();
    assert!(page.blobs.is_empty() && page.next.is_none());
    assert_eq!(read(&client, &server.blob("1$2$audit_x$na")).await.unwrap(), b"[]");
    assert_eq!(
        server.api_lines(),
        [
            format!("GET {FEED}/subscriptions/list?PublisherIdentifier={TENANT}"),
            format!("POST {FEED}/subscriptions/start?contentType=Audit.Exchange&PublisherIdentifier={TENANT}"),
            format!("POST {FEED}/subscriptions/stop?contentType=Audit.Exchange&PublisherIdentifier={TENANT}"),
            format!(
                "GET {FEED}/subscriptions/content?contentType=DLP.All&startTime=2026-07-16T20:00:00\
                 &endTime=2026-07-16T21:00:00&PublisherIdentifier={TENANT}"
            ),
            format!("GET {FEED}/audit/1$2$audit_x$na?PublisherIdentifier={TENANT}"),
        ]
    );
    for request in server.seen().iter().filter(|request| !request.is_token()) {
        assert_eq!(request.header("authorization"), Some("Bearer token-1"));
        assert_eq!(request.header("accept-encoding"), Some("gzip"));
        assert!(request.header("user-agent").unwrap().starts_with("m365-audit/"));
        if request.line.starts_with("POST") {
            assert_eq!(request.header("content-length"), Some("0"), "{}", request.line);
        }
    }
    assert_eq!(server.tokens(), 1, "one token serves all calls");
}

#[tokio::test]
async fn the_secret_is_encoded_once_and_each_endpoint_is_asked_in_its_own_words() {
    for (endpoint, path, api) in [
        (EndpointVersion::V2, "oauth2/v2.0/token", "scope=https%3A%2F%2Fmanage.office.com%2F.default"),
        (EndpointVersion::V1, "oauth2/token", "resource=https%3A%2F%2Fmanage.office.com"),
    ] {
        let server = Server::start(|request| {
            if request.is_token() {
                http(200, &[], r#"{"expires_in":"3599","expires_on":"1790000000","access_token":"t"}"#)
            } else {
                http(200, &[], "[]")
            }
        })
        .await;
        let (client, _) = server.client_with(ApiSettings { token_endpoint: endpoint, ..server.settings() });
        client.list_subscriptions().await.unwrap();
        let token = &server.seen()[0];
        assert_eq!(token.line, format!("POST /{TENANT}/{path}"));
        assert_eq!(
            token.body,
            format!(
                "grant_type=client_credentials&client_id=22222222-2222-3333-4444-555555555555\
                 &client_secret=s3cr%26t%2Bva%25lue&{api}"
            )
        );
    }
}

#[tokio::test]
async fn the_next_page_is_found_under_both_names_in_any_case_even_on_an_empty_page() {
    for name in ["NextPageUri", "nextpageuri", "NEXTPAGEURL", "NextPageUrl"] {
        let server = Server::api(move |request| {
            if request.line.contains("nextPage=") {
                let item = r#"[{"contentId":"a","contentUri":"/x","contentCreated":"2026-07-16T20:30:00Z"}]"#;
                return http(200, &[], item);
            }
            // As Microsoft documents it: another version in the path, lower-case parameters, no publisher.
            let link = format!(
                "https://manage.office.com/api/v1/{TENANT}/activity/feed/subscriptions/content\
                 ?contentType=Audit.General&starttime=2026-07-16T20:00:00&nextPage=a%2Bb$c"
            );
            http(200, &[(name, &link)], "[]")
        })
        .await;
        let (client, _) = server.client();
        let first = client.list_content(ContentType::General, window(), None).await.unwrap();
        assert!(first.blobs.is_empty());
        let second = client.list_content(ContentType::General, window(), first.next.as_ref()).await.unwrap();
        assert_eq!((second.blobs.len(), second.next), (1, None), "{name}");
        assert_eq!(
            server.api_lines()[1],
            format!(
                "GET /api/v1/{TENANT}/activity/feed/subscriptions/content?contentType=Audit.General\
                 &starttime=2026-07-16T20:00:00&nextPage=a%2Bb$c&PublisherIdentifier={TENANT}"
            )
        );
    }
}

#[tokio::test]
async fn links_and_redirects_to_another_host_never_see_the_token() {
    let elsewhere = Server::start(|_| http(200, &[], "[]")).await;
    let foreign = elsewhere.url.to_string();
    let foreign_link = foreign.clone();
    let server = Server::api(move |request| {
        if request.line.contains("subscriptions/list") {
            http(302, &[("Location", &foreign_link)], "")
        } else if request.line.contains("/content?") {
            http(200, &[("NextPageUri", &foreign_link)], r#"[{"contentId":"a","contentUri":"/x"}]"#)
        } else {
            http(200, &[], "[1]")
        }
    })
    .await;
    let (client, _) = server.client();

    let error = client.list_subscriptions().await.unwrap_err();
    assert_eq!((error.kind(), error.slug()), (ErrorKind::Redirect, "api-redirect-refused"));

    let page = client.list_content(ContentType::General, window(), None).await.unwrap();
    assert_eq!(page.blobs.len(), 1, "what was listed beside a bad link is kept");
    let error = client.list_content(ContentType::General, window(), page.next.as_ref()).await.unwrap_err();
    assert_eq!((error.kind(), error.action()), (ErrorKind::OffOrigin, Action::RestartWindow));

    let mut body = client.fetch_blob(&blob_at(&format!("{foreign}{}/audit/9$8", &FEED[1..]))).await.unwrap();
    assert!(body.link_was_refused());
    assert_eq!(body.chunk().await.unwrap().unwrap(), "[1]");
    assert_eq!(
        server.api_lines().last().unwrap(),
        &format!("GET {FEED}/audit/9$8?PublisherIdentifier={TENANT}"),
        "the blob is asked for under the configured origin"
    );

    let error = client.fetch_blob(&blob_at(&format!("{foreign}steal"))).await.unwrap_err();
    assert_eq!((error.kind(), error.action()), (ErrorKind::OffOrigin, Action::RetryBlobSlowly));
    assert!(elsewhere.seen().is_empty(), "{:?}", elsewhere.seen());
}

#[tokio::test]
async fn a_burst_of_401_costs_one_token_and_every_call_is_repeated() {
    let server = Server::api(|request| match request.header("authorization") {
        Some("Bearer token-1") => http(401, &[], DENIED),
        _ => http(200, &[], "[]"),
    })
    .await;
    let (client, _) = server.client();
    let blob = server.blob("b");
    let calls = (0..16).map(|_| read(&client, &blob));
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome.unwrap(), b"[]");
    }
    assert_eq!(server.tokens(), 2);
}

#[tokio::test]
async fn a_second_401_parks_the_type_or_stops_the_tenant() {
    let server = Server::api(move |request| match request.line.contains("DLP.All") {
        true => af(401, "AF10001"),
        false => http(401, &[], DENIED),
    })
    .await;
    let (client, _) = server.client();
    let error = client.list_content(ContentType::Dlp, window(), None).await.unwrap_err();
    assert_eq!((error.action(), error.code(), error.status()), (Action::ParkType, Some("AF10001"), Some(401)));
    assert!(error.hint().contains("ActivityFeed.ReadDlp"), "{}", error.hint());
    assert_eq!(server.tokens(), 2, "refreshed once, in case consent is new");
    let error = client.list_content(ContentType::General, window(), None).await.unwrap_err();
    assert_eq!((error.action(), error.slug()), (Action::SlowRetryTenant, "api-token-refused"));
}

#[tokio::test]
async fn af429_is_throttling_as_403_and_as_429_and_holds_back_every_call() {
    type Headers = &'static [(&'static str, &'static str)];
    let bodies: [(u16, Headers, &str, Option<u64>); 5] = [
        (403, &[], r#"{"error":{"code":"AF429","message":"Too many requests. Method=GetBlob"}}"#, None),
        (403, &[], "{'error':{'code':'AF429','message':'Too many requests. Method=GetBlob'}}", None),
        (429, &[], "", None),
        (429, &[("Retry-After", "7")], "", Some(7)),
        (403, &[], r#"{"error":{"code":"AF429","message":"Too many requests. Retry after 30 seconds"}}"#, Some(30)),
    ];
    for (status, headers, body, asked) in bodies {
        let first = Mutex::new(true);
        let server = Server::api(move |_| {
            if std::mem::take(&mut *first.lock().unwrap()) { http(status, headers, body) } else { http(200, &[], "[]") }
        })
        .await;
        let (client, clock) = server.client();
        let error = read(&client, &server.blob("b")).await.unwrap_err();
        let asked = asked.map(Duration::from_secs);
        assert_eq!(error.action(), Action::Throttled { retry_after: asked }, "{body}");
        assert!(client.list_subscriptions().now_or_never().is_none(), "another call waits");
        assert_eq!(server.api_lines().len(), 1);
        let start = clock.monotonic();
        let blob = server.blob("b");
        let (outcome, _) = tokio::join!(read(&client, &blob), async { clock.advance_to_next_sleeper() });
        assert_eq!(outcome.unwrap(), b"[]");
        let waited = clock.monotonic() - start;
        match asked {
            Some(asked) => assert_eq!(waited, asked),
            None => assert!((1.0..=2.0).contains(&waited.as_secs_f64()), "{waited:?}"),
        }
    }
}

#[tokio::test]
async fn a_body_is_whole_and_sound_or_an_error() {
    let text = format!("[{}1]", "1234567,".repeat(40_000));
    let packed = gzip(text.as_bytes());
    let mut damaged = packed.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    let trailing = [packed.as_slice(), b"more"].concat();
    let two = [gzip(b"[1,"), gzip(b"2]")].concat();
    let zip: &[(&str, &str)] = &[("Content-Encoding", "gzip")];
    let long_zip = [("Content-Encoding", "gzip"), ("Content-Length", "9999999")];
    let long = [("Content-Length", "100")];
    let chunked = [("Transfer-Encoding", "chunked")];
    let table: Vec<(&str, Vec<u8>, Result<&str, ErrorKind>)> = vec![
        ("plain", http(200, &[], &text), Ok(&text)),
        ("gzip", http(200, zip, &packed), Ok(&text)),
        ("two-members", http(200, zip, two), Ok("[1,2]")),
        ("identity", http(200, &[("Content-Encoding", "identity")], "[]"), Ok("[]")),
        ("cut", raw(200, &long, b"[1,2,3"), Err(ErrorKind::BodyCut)),
        ("cut-chunk", raw(200, &chunked, b"5\r\n[1,2,\r\n"), Err(ErrorKind::BodyCut)),
        ("cut-gzip-announced", raw(200, &long_zip, &packed), Err(ErrorKind::BodyCut)),
        ("cut-gzip", http(200, zip, &packed[..packed.len() - 9]), Err(ErrorKind::BodyDamaged)),
        ("damaged-gzip", http(200, zip, damaged), Err(ErrorKind::BodyDamaged)),
        ("trailing-gzip", http(200, zip, trailing), Err(ErrorKind::BodyDamaged)),
        ("no-gzip", http(200, zip, "<html>"), Err(ErrorKind::BodyDamaged)),
        ("unasked", http(200, &[("Content-Encoding", "br")], "[]"), Err(ErrorKind::BodyDamaged)),
        ("status", http(206, &[], "[]"), Err(ErrorKind::Answer)),
        ("reset", Vec::new(), Err(ErrorKind::Unreachable)),
        ("not-http", b"SSH-2.0-x\r\n".to_vec(), Err(ErrorKind::Unreachable)),
    ];
    let answers: Vec<_> = table.iter().map(|(name, answer, _)| (format!("/{name}?"), answer.clone())).collect();
    let server = Server::api(move |request| {
        let (_, answer) = answers.iter().find(|(name, _)| request.line.contains(name)).unwrap();
        answer.clone()
    })
    .await;
    let (client, _) = server.client();
    for (name, _, expected) in table {
        match (read(&client, &server.blob(name)).await, expected) {
            (Ok(body), Ok(expected)) => assert!(body == expected.as_bytes(), "{name}"),
            (Err(error), Err(kind)) => {
                assert_eq!(error.kind(), kind, "{name}: {error}");
                assert_eq!(error.action(), Action::Retry { not_before: None }, "{name}");
            }
            (got, expected) => panic!("{name}: {:?} for {:?}", got.map(|body| body.len()), expected.map(str::len)),
        }
    }
}

/// A proxy that unpacks or packs bodies may leave the label of what it received, or lose it.
#[tokio::test]
async fn a_body_whose_label_does_not_fit_is_read_as_what_it_is() {
    let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let text = format!("[{{\"Id\":\"José 😀\"}}{}]", ",{}".repeat(50_000));
    let marked = format!("\u{feff} {text}");
    let (little, big) = (wide(&marked, u16::to_le_bytes), wide(&marked, u16::to_be_bytes));
    let packed = gzip(text.as_bytes());
    let blank = format!("{} {{}}", "\r\n".repeat(20));
    let blanks = " ".repeat(5_000) + "[]";
    let cut = &packed[..packed.len() - 9];
    #[rustfmt::skip]
    let table: &[(&str, &[u8], Result<&str, ErrorKind>)] = &[
        ("", &packed, Ok(&text)),
        ("identity", &packed, Ok(&text)),
        ("deflate", &packed, Ok(&text)),
        ("br", &packed, Ok(&text)),
        ("", cut, Err(ErrorKind::BodyDamaged)),
        ("gzip", text.as_bytes(), Ok(&text)),
        ("x-gzip", text.as_bytes(), Ok(&text)),
        ("deflate", text.as_bytes(), Ok(&text)),
        ("gzip", marked.as_bytes(), Ok(&marked)),
        ("gzip", b"[]", Ok("[]")),
        ("gzip", b"{}", Ok("{}")),
        ("gzip", blank.as_bytes(), Ok(&blank)),
        ("", blanks.as_bytes(), Ok(&blanks)),
        ("", b"\x1f", Ok("\x1f")),
        ("", b"", Ok("")),
        ("gzip", b"<html>", Err(ErrorKind::BodyDamaged)),
        // These may be the first bytes of such a body.
        ("br", b"[{}]", Err(ErrorKind::BodyDamaged)),
        ("deflate", b"[\x00\x01\x02", Err(ErrorKind::BodyDamaged)),
        ("deflate", b"x\x9c\x8b\x8e\x05\x00", Err(ErrorKind::BodyDamaged)),
        ("", &little, Ok(&marked[3..])),
        ("", &big, Ok(&marked[3..])),
        ("gzip", &gzip(&little), Ok(&marked[3..])),
        ("", &gzip(&big), Ok(&marked[3..])),
        ("gzip", &little, Ok(&marked[3..])),
        ("", b"\xff\xfe", Ok("")),
        ("", b"\xff\xfe[\0]\0x", Ok("[]\u{fffd}")),
    ];
    let answer = |label: &str, body: &[u8], step: usize| {
        let mut headers = vec![("Transfer-Encoding", "chunked")];
        if !label.is_empty() {
            headers.push(("Content-Encoding", label));
        }
        let mut chunks = Vec::new();
        // The first bytes one by one.
        let (first, rest) = body.split_at(body.len().min(step));
        for chunk in first.chunks(1).chain(Some(rest).filter(|rest| !rest.is_empty())) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        raw(200, &headers, &[chunks.as_slice(), b"0\r\n\r\n"].concat())
    };
    for step in [0, 6] {
        let answers: Vec<_> = table.iter().map(|(label, body, _)| answer(label, body, step)).collect();
        let server = Server::api(move |request| {
            let number = request.line.split("/row").nth(1).and_then(|rest| rest.split('?').next()).unwrap();
            answers[number.parse::<usize>().unwrap()].clone()
        })
        .await;
        let (client, _) = server.client();
        for (number, (label, body, expected)) in table.iter().enumerate() {
            let got = read(&client, &server.blob(&format!("row{number}"))).await;
            let got = got.map(|body| String::from_utf8_lossy(&body).into_owned()).map_err(|error| error.kind());
            let expected = expected.map(str::to_owned);
            assert!(got == expected, "`{label}` {:?}: {:.80?}", &body[..body.len().min(20)], got);
        }
    }
}

#[tokio::test]
async fn the_read_timeout_runs_only_while_somebody_waits_for_bytes() {
    let text = format!("[{}1]", "1234567,".repeat(200_000));
    let packed = gzip(text.as_bytes());
    let half = text.len() / 2;
    let long = text.len().to_string();
    let body = text.clone();
    let server = Server::api(move |request| match () {
        () if request.line.contains("/gzip?") => http(200, &[("Content-Encoding", "gzip")], &packed),
        () if request.line.contains("/stalled?") => {
            // The connection is left open: the answer is never finished.
            let mut answer = raw(200, &[("Content-Length", &long)], &body.as_bytes()[..half]);
            answer.extend_from_slice(STALL);
            answer
        }
        () => http(200, &[], &body),
    })
    .await;
    let (client, _) = server.client();
    for name in ["plain", "gzip"] {
        let mut body = client.fetch_blob(&server.blob(name)).await.unwrap();
        let mut bytes = body.chunk().await.unwrap().unwrap().to_vec();
        // A host that holds the caller back for an hour.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(3600)).await;
        tokio::time::resume();
        while let Some(chunk) = body.chunk().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert!(bytes == text.as_bytes(), "{name}");
    }
    let mut body = client.fetch_blob(&server.blob("stalled")).await.unwrap();
    let mut got = 0;
    while got < half {
        got += body.chunk().await.unwrap().unwrap().len();
    }
    tokio::time::pause();
    assert_eq!(body.chunk().await.unwrap_err().kind(), ErrorKind::BodyCut);
}

#[tokio::test]
async fn a_listing_that_is_not_one_is_an_error_and_not_an_empty_page() {
    let table: [(Vec<u8>, Option<&str>); 7] = [
        (http(200, &[], ""), Some("api-unexpected-answer")),
        (http(200, &[], "null"), None),
        (http(204, &[], ""), Some("api-unexpected-answer")),
        (http(200, &[], r#"[{"contentId":"a""#), Some("api-unexpected-answer")),
        (http(200, &[], "<html>sign in</html>"), Some("api-unexpected-answer")),
        (http(200, &[], r#"{"error":{"code":"AF20055","message":"m"}}"#), Some("api-window-refused")),
        (af(400, "AF20055"), Some("api-window-refused")),
    ];
    for (answer, slug) in table {
        let server = Server::api(move |_| answer.clone()).await;
        let (client, _) = server.client();
        let outcome = client.list_content(ContentType::General, window(), None).await;
        assert_eq!(outcome.err().map(|error| error.slug()), slug);
    }
}

#[tokio::test]
async fn starting_what_is_enabled_is_success_and_a_tenant_without_audit_is_not() {
    let off = r#"{"error":{"code":"StartSubscription [CorrId=1][AppId","message":"8] failed. Exception: Microsoft.Office.Compliance.Audit.DataServiceException: Tenant 1 does not exist.\r\n   at x"}}"#;
    let server = Server::api(move |request| match request.line.contains("Audit.Exchange") {
        true => af(400, "AF20024"),
        false => http(400, &[], off),
    })
    .await;
    let (client, _) = server.client();
    assert_eq!(client.start_subscription(ContentType::Exchange).await.unwrap(), Started::AlreadyEnabled);
    let error = client.start_subscription(ContentType::General).await.unwrap_err();
    assert_eq!((error.action(), error.slug()), (Action::SlowRetryTenant, "api-audit-off"));
    assert!(error.hint().contains("Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true"));
}

#[tokio::test]
async fn wrong_credentials_never_hammer() {
    let server = Server::start(|request| {
        let words = format!("AADSTS7000215: Invalid client secret in '{}' and {SECRET}. Trace ID: x", request.body);
        http(401, &[], format!(r#"{{"error":"invalid_client","error_description":"{words}","error_codes":[7000215]}}"#))
    })
    .await;
    let (client, clock) = server.client();
    let mut shown = String::new();
    for minutes in [1, 2, 4, 8, 15, 15] {
        let before = server.tokens();
        let calls = (0..20).map(|_| client.list_subscriptions());
        for outcome in futures_util::future::join_all(calls).await {
            let error = outcome.unwrap_err();
            assert_eq!((error.kind(), error.action()), (ErrorKind::Auth, Action::SlowRetryTenant));
            assert_eq!(error.not_before(), Some(Duration::from_secs(60 * minutes)));
            shown = format!("{error} {error:?} {} {client:?}", error.hint());
        }
        clock.advance(Duration::from_secs(60 * minutes - 1));
        assert!(client.list_subscriptions().await.is_err());
        assert_eq!(server.tokens(), before + 1);
        clock.advance(Duration::from_secs(1));
    }
    assert!(shown.contains("AADSTS7000215") && shown.contains("secret's id"), "{shown}");
    for form in [SECRET, "s3cr%26t%2Bva%25lue"] {
        assert!(!shown.contains(form), "{shown}");
    }
    assert!(server.api_lines().is_empty(), "without a token the API is not asked");
}

#[tokio::test]
async fn a_new_secret_in_the_file_is_tried_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let server = Server::start(|request| match (request.is_token(), request.body.contains("client_secret=right&")) {
        (true, false) => http(401, &[], r#"{"error":"invalid_client","error_codes":[7000222]}"#),
        (true, true) => http(200, &[], r#"{"expires_in":3600,"access_token":"t"}"#),
        _ => http(200, &[], "[]"),
    })
    .await;
    let credential = Credential::SecretFile(path.clone());
    let (client, _) = server.client_with(ApiSettings { credential, ..server.settings() });

    let error = client.list_subscriptions().await.unwrap_err();
    assert_eq!(error.slug(), "auth-secret-file-unreadable");
    std::fs::write(&path, "\n").unwrap();
    assert_eq!(client.list_subscriptions().await.unwrap_err().slug(), "auth-secret-file-unreadable");
    std::fs::write(&path, "old").unwrap();
    assert_eq!(client.list_subscriptions().await.unwrap_err().slug(), "auth-secret-expired");
    assert_eq!(client.list_subscriptions().await.unwrap_err().slug(), "auth-secret-expired");
    assert_eq!(server.tokens(), 1);
    std::fs::write(&path, "right\r\n").unwrap();
    client.list_subscriptions().await.unwrap();
    assert_eq!(server.tokens(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_early_and_serves_on_while_the_authority_is_down() {
    let up = Arc::new(Mutex::new(true));
    let state = up.clone();
    let server = Server::start(move |request| match (request.is_token(), *state.lock().unwrap()) {
        (true, true) => http(200, &[], r#"{"expires_in":1000,"access_token":"t"}"#),
        (true, false) => http(503, &[], ""),
        _ => http(200, &[], "[]"),
    })
    .await;
    let (client, clock) = server.client();
    client.list_subscriptions().await.unwrap();
    clock.advance(Duration::from_secs(699));
    client.list_subscriptions().await.unwrap();
    assert_eq!(server.tokens(), 1);
    *up.lock().unwrap() = false;
    clock.advance(Duration::from_secs(2));
    client.list_subscriptions().await.unwrap();
    client.list_subscriptions().await.unwrap();
    assert_eq!(server.tokens(), 2, "the failed renewal is not repeated on every call");
    clock.advance(Duration::from_secs(300));
    let error = client.list_subscriptions().await.unwrap_err();
    assert!(matches!(error.action(), Action::Retry { not_before: Some(_) }), "{error}");
    *up.lock().unwrap() = true;
    clock.advance(Duration::from_secs(60));
    client.list_subscriptions().await.unwrap();
}

#[tokio::test]
async fn no_error_shows_the_token() {
    let server = Server::api(|request| {
        let echo = request.header("authorization").unwrap();
        let status = if request.line.contains("/list?") { 400 } else { 200 };
        http(status, &[], format!("<html>{echo}</html>"))
    })
    .await;
    let (client, _) = server.client();
    for error in [
        client.list_subscriptions().await.unwrap_err(),
        client.list_content(ContentType::General, window(), None).await.unwrap_err(),
    ] {
        let shown = format!("{error} {error:?} {:?}", error.excerpt());
        assert!(shown.contains("***") && !shown.contains("token-1"), "{shown}");
    }
    let mut settings = server.settings();
    settings.proxy_url = Some(Url::parse("http://user:hidden@proxy.example:3128").unwrap());
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hidden") && !shown.contains(SECRET), "{shown}");
}

#[tokio::test]
async fn every_answer_of_the_api_tells_microsofts_time() {
    let server = Server::api(|_| af(500, "AF50000")).await;
    let dates = Arc::new(Mutex::new(Vec::new()));
    let log = dates.clone();
    let clock = TestClock::at("2020-01-01T00:00:00Z".parse().unwrap());
    let observer = Arc::new(move |date| log.lock().unwrap().push(date));
    let clock_of_client = Arc::new(clock.clone());
    let client =
        ApiClient::with_date_observer(server.settings(), clock_of_client, observer, &Connections::new()).unwrap();
    assert_eq!(client.last_server_date(), None);
    clock.advance(Duration::from_secs(5));
    assert!(client.list_subscriptions().await.is_err());
    let seen = client.last_server_date().unwrap();
    assert_eq!(seen.date, "2026-07-16T21:00:00Z".parse().unwrap());
    assert_eq!(seen.at, Duration::from_secs(5));
    assert_eq!(*dates.lock().unwrap(), [seen], "the authority's date is not among them");
}

#[tokio::test]
async fn what_the_token_says_of_itself_is_shown_and_an_opaque_one_is_no_error() {
    // {"aud":"https://manage.office.com","tid":"t","exp":1790000000,"roles":["ActivityFeed.Read"]}
    let claims = "eyJhdWQiOiJodHRwczovL21hbmFnZS5vZmZpY2UuY29tIiwidGlkIjoidCIsImV4cCI6MTc5MDAwMDAwMCwicm9sZXMiOlsi\
                  QWN0aXZpdHlGZWVkLlJlYWQiXX0";
    for (token, readable) in [(format!("e30.{claims}.sig"), true), ("opaque".into(), false)] {
        let server = Server::start(move |_| http(200, &[], format!(r#"{{"access_token":"{token}"}}"#))).await;
        let (client, _) = server.client();
        let facts = client.token_roles().await.unwrap();
        assert_eq!(facts.readable, readable);
        if readable {
            assert_eq!(facts.roles, ["ActivityFeed.Read"]);
            assert_eq!(facts.audience.as_deref(), Some("https://manage.office.com"));
            assert_eq!(facts.expires.unwrap().as_second(), 1_790_000_000);
        }
    }
}

#[tokio::test]
async fn the_limiter_covers_every_call_and_waits_on_the_clock() {
    let server = Server::api(|_| http(200, &[], "[]")).await;
    let (client, clock) = server.client_with(ApiSettings { max_requests_per_minute: 100, ..server.settings() });
    let blob = server.blob("b");
    let calls = futures_util::future::join_all((0..150).map(|_| read(&client, &blob)));
    let mut calls = std::pin::pin!(calls);
    let mut times = Vec::new();
    // Nothing is slept in real time: the clock jumps to whoever waits for the limiter, once nothing moves any more.
    while futures_util::poll!(&mut calls).is_pending() {
        let asked = server.api_lines().len();
        times.resize(asked, clock.monotonic());
        tokio::time::sleep(Duration::from_millis(1)).await;
        if server.api_lines().len() == asked && (asked == 98 || clock.monotonic() > Duration::ZERO) {
            clock.advance_to_next_sleeper();
        }
    }
    assert_eq!(server.api_lines().len(), 150);
    // 98 at once; the others when the minute has passed.
    assert_eq!(times.get(97), Some(&Duration::ZERO));
    assert!(times[98] >= Duration::from_secs(60), "{:?}", times[98]);
    assert!(clock.monotonic() < Duration::from_secs(100), "{:?}", clock.monotonic());
}

#[tokio::test]
async fn a_proxy_is_not_used_for_loopback_and_a_bad_ca_file_is_a_settings_error() {
    let server = Server::api(|_| http(200, &[], "[]")).await;
    let mut settings = server.settings();
    settings.proxy_url = Some(Url::parse("http://127.0.0.1:1").unwrap());
    server.client_with(settings.clone()).0.list_subscriptions().await.unwrap();
    settings.ca_pem = Some(b"not a certificate".to_vec());
    let error = ApiClient::new(settings, Arc::new(TestClock::at(window().end))).unwrap_err();
    assert_eq!((error.kind(), error.slug()), (ErrorKind::Settings, "api-client-settings"));
}
