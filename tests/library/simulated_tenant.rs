//! The simulated tenant keeps its promises: every fault and every rule it offers, seen from the socket.
//!
//! The client is a few lines over TCP, so that what is asserted is what was on the wire.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use m365_audit::clock::{Clock, TestClock};
use m365_audit::model::{ContentType, TenantId, Timestamp};
use m365_audit::sim::{
    CallKind, Delivered, FaultPlan, FaultScript, FederatedCredential, GenerateSpec, Irregularity, ListingOrder,
    ListingSpan, MachineIdentity, NewBlob, Sim, SimConfig, SimFault, StartFailure, SubscriptionState, Truth,
    aadsts_codes,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const NOON: &str = "2026-05-08T12:00:00Z";
const PUBLISHER: &str = "PublisherIdentifier=99999999-0000-4000-8000-000000000009";
const SECRET: &str = "client_secret=simulated~secret%26with%2Bodd%25characters";
const SCOPE: &str = "scope=https://manage.office.com/.default";
const GRANT: &str = "grant_type=client_credentials";

// The tiny client.

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The body is as long as its framing says.
    whole: bool,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn ids(&self) -> Vec<String> {
        let entries = self.json();
        entries.as_array().unwrap().iter().map(|e| e["contentId"].as_str().unwrap().to_owned()).collect()
    }
}

async fn exchange(sim: &Sim, method: &str, target: &str, headers: &str, body: &str) -> std::io::Result<Answer> {
    let mut socket = TcpStream::connect(sim.address()).await?;
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut raw = Vec::new();
    socket.read_to_end(&mut raw).await?;
    let split = raw.windows(4).position(|w| w == b"\r\n\r\n");
    let Some(split) = split else { return Err(std::io::ErrorKind::UnexpectedEof.into()) };
    let head = String::from_utf8(raw[..split].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> =
        lines.map(|l| l.split_once(": ").unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let mut answer = Answer { status, headers, body: raw.split_off(split + 4), whole: true };
    if answer.header("transfer-encoding") == Some("chunked") {
        (answer.body, answer.whole) = unchunk(&answer.body);
    } else if let Some(length) = answer.header("content-length") {
        answer.whole = length.parse() == Ok(answer.body.len());
    }
    Ok(answer)
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|w| w == b"\r\n") else { return (out, false) };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        rest = &rest[line + 2..];
        if size == 0 {
            return (out, true);
        }
        if rest.len() < size + 2 {
            out.extend_from_slice(rest);
            return (out, false);
        }
        out.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// A simulator, the clock it runs by, and a client with a token.
struct Rig {
    sim: Sim,
    clock: TestClock,
    tenant: TenantId,
    token: String,
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn event(id: &str) -> String {
    format!(r#"{{"Id":"{id}","CreationTime":"2026-05-08T10:00:00","RecordType":8,"Operation":"Update user."}}"#)
}

fn client_id() -> String {
    SimConfig::default().client_id
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// All five types enabled.
    async fn with(change: impl FnOnce(&mut SimConfig)) -> Self {
        let clock = TestClock::at(time(NOON));
        let mut config = SimConfig::default();
        change(&mut config);
        let tenant = config.tenants[0].clone();
        let sim = Sim::start(config, Arc::new(clock.clone())).await.unwrap();
        for content_type in ContentType::ALL {
            sim.set_subscription(&tenant, content_type, SubscriptionState::Enabled);
        }
        let mut rig = Self { sim, clock, tenant, token: String::new() };
        rig.log_in().await;
        rig
    }

    async fn log_in(&mut self) {
        self.token = self.ask_token(SCOPE).await.json()["access_token"].as_str().unwrap_or_default().to_owned();
    }

    async fn ask_token(&self, scope: &str) -> Answer {
        let form = format!("{GRANT}&client_id={}&{SECRET}&{scope}", client_id());
        self.post_form(&format!("/{}/oauth2/v2.0/token", self.tenant), &form).await
    }

    async fn post_form(&self, target: &str, form: &str) -> Answer {
        let headers = "Content-Type: application/x-www-form-urlencoded\r\n";
        exchange(&self.sim, "POST", target, headers, form).await.unwrap()
    }

    async fn try_call(&self, method: &str, rest: &str, headers: &str) -> std::io::Result<Answer> {
        let target = if rest.starts_with("/api") {
            rest.to_owned()
        } else {
            format!("/api/v1.0/{}/activity/feed{rest}", self.tenant)
        };
        let target =
            if target.contains('?') { format!("{target}&{PUBLISHER}") } else { format!("{target}?{PUBLISHER}") };
        let headers = format!("Authorization: Bearer {}\r\n{headers}", self.token);
        exchange(&self.sim, method, &target, &headers, "").await
    }

    async fn get(&self, rest: &str) -> Answer {
        self.try_call("GET", rest, "").await.unwrap()
    }

    async fn post(&self, rest: &str) -> Answer {
        self.try_call("POST", rest, "").await.unwrap()
    }

    async fn list(&self, start: &str, end: &str) -> Answer {
        self.get(&format!("/subscriptions/content?contentType=Audit.General&startTime={start}&endTime={end}")).await
    }

    async fn today(&self) -> Answer {
        self.list("2026-05-08T00:00:00", "2026-05-08T12:00:00").await
    }

    /// Every page of a listing, by the links.
    async fn all_pages(&self) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut answer = self.today().await;
        loop {
            assert_eq!(answer.status, 200, "{}", answer.text());
            pages.push(answer.ids());
            let Some(link) = answer.header("nextpageuri") else { return pages };
            assert!(pages.len() < 100, "the listing does not end");
            let path = link.strip_prefix(&self.sim.url()).expect(link).to_owned();
            answer = self.get(&path).await;
        }
    }

    fn add(&self, created: &str, events: &[&str]) -> String {
        let blob = NewBlob::at(time(created)).with_events(events.iter().map(|e| e.as_bytes()));
        self.sim.add_blob(&self.tenant, ContentType::General, blob)
    }

    async fn fetch(&self, id: &str) -> Answer {
        self.get(&format!("/audit/{id}")).await
    }
}

// Tokens.

#[tokio::test]
async fn the_first_token_endpoint_answers_with_strings_and_the_second_with_numbers() {
    let rig = Rig::with(|c| c.token_lifetime_secs = 600).await;
    let form = format!("{GRANT}&client_id={}&{SECRET}&resource=https://manage.office.com", client_id());
    let v1 = rig.post_form(&format!("/{}/oauth2/token", rig.tenant), &form).await.json();
    assert_eq!(v1["expires_in"], json!("600"));
    assert_eq!(v1["expires_on"], json!((time(NOON).as_second() + 600).to_string()));
    assert_eq!(v1["resource"], json!("https://manage.office.com"));
    let v2 = rig.ask_token(SCOPE).await.json();
    assert_eq!(v2["expires_in"], json!(600));
    assert!(v2.get("resource").is_none());
}

#[tokio::test]
async fn a_token_is_shaped_like_a_jwt_and_names_audience_tenant_and_roles() {
    let rig = Rig::new().await;
    let payload = rig.token.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    assert_eq!(claims["aud"], json!("https://manage.office.com"));
    assert_eq!(claims["tid"], json!(rig.tenant.as_str()));
    assert_eq!(claims["roles"], json!(["ActivityFeed.Read", "ActivityFeed.ReadDlp"]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 4_500);
}

#[tokio::test]
async fn token_requests_are_refused_with_microsofts_codes() {
    let rig = Rig::new().await;
    let client = format!("client_id={}", client_id());
    let good = format!("/{}/oauth2/v2.0/token", rig.tenant);
    for (target, form, code) in [
        (good.as_str(), format!("{GRANT}&{client}&client_secret=no&{SCOPE}"), 7000215),
        (&good, format!("{GRANT}&client_id=00000000-0000-0000-0000-000000000000&{SECRET}&{SCOPE}"), 700016),
        (&good, format!("{GRANT}&{client}&{SCOPE}"), 7000216),
        (&good, format!("{client}&{SECRET}&{SCOPE}"), 900144),
        (&good, format!("{GRANT}&{client}&{SECRET}"), 900144),
        (&good, format!("grant_type=password&{client}&{SECRET}&{SCOPE}"), 70003),
        (&good, format!("{GRANT}&{client}&{SECRET}&scope=https://manage.office.com"), 1002012),
        (&good, format!("{GRANT}&{client}&{SECRET}&scope=everything"), 70011),
        ("/00000000-0000-0000-0000-000000000000/oauth2/v2.0/token", format!("{GRANT}&{SCOPE}"), 90002),
        ("/nowhere.example/oauth2/token", GRANT.to_owned(), 90002),
        ("/nowhere/oauth2/token", GRANT.to_owned(), 900023),
    ] {
        let answer = rig.post_form(target, &form).await;
        assert!(matches!(answer.status, 400 | 401), "{form}");
        assert_eq!(answer.json()["error_codes"], json!([code]), "{form}");
    }
}

#[tokio::test]
async fn a_verified_domain_names_its_tenant_at_the_token_endpoint_only() {
    let rig = Rig::with(|c| c.domains = vec![("contoso.example".to_owned(), c.tenants[0].clone())]).await;
    let form = format!("{GRANT}&client_id={}&{SECRET}&resource=https://manage.office.com", client_id());
    assert_eq!(rig.post_form("/contoso.example/oauth2/token", &form).await.status, 200);
    let feed = rig.get("/api/v1.0/contoso.example/activity/feed/subscriptions/list").await;
    assert_eq!((feed.status, feed.code().as_str()), (400, "AF20013"));
}

#[tokio::test]
async fn every_aadsts_code_can_be_switched_on() {
    let rig = Rig::new().await;
    for code in aadsts_codes() {
        rig.sim.configure(|c| c.token_error = Some(code));
        let body = rig.ask_token(SCOPE).await.json();
        assert_eq!(body["error_codes"][0], json!(code));
        assert!(body["error_description"].as_str().unwrap().starts_with(&format!("AADSTS{code}: ")));
        for field in ["error", "timestamp", "trace_id", "correlation_id", "error_uri"] {
            assert!(body[field].is_string(), "{code} {field}");
        }
    }
}

/// The test key's certificate, DER, and what the key signs, written anew here: nothing is shared with the client.
struct Signer {
    key: ring::signature::RsaKeyPair,
    certificate: Vec<u8>,
}

impl Signer {
    fn new() -> Self {
        let pem = |text: &str| {
            let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
            base64::engine::general_purpose::STANDARD.decode(body).unwrap()
        };
        let key = pem(include_str!("../fixtures/auth/client.key"));
        let key = ring::signature::RsaKeyPair::from_pkcs8(&key).unwrap();
        Self { key, certificate: pem(include_str!("../fixtures/auth/client.pem")) }
    }

    fn thumbprint(&self, algorithm: &'static ring::digest::Algorithm) -> String {
        URL_SAFE_NO_PAD.encode(ring::digest::digest(algorithm, &self.certificate))
    }

    fn sign(&self, header: &Value, claims: &Value, pss: bool) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        let scheme: &dyn ring::signature::RsaEncoding =
            if pss { &ring::signature::RSA_PSS_SHA256 } else { &ring::signature::RSA_PKCS1_SHA256 };
        self.key.sign(scheme, &ring::rand::SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Rig {
    /// The AADSTS code an assertion is refused with, 0 when it is taken.
    async fn present(&self, assertion: &str) -> u64 {
        let form = format!(
            "{GRANT}&client_id={}&{SCOPE}&client_assertion={assertion}\
             &client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            client_id()
        );
        let answer = self.post_form(&format!("/{}/oauth2/v2.0/token", self.tenant), &form).await;
        answer.json()["error_codes"][0].as_u64().unwrap_or(0)
    }
}

#[tokio::test]
async fn a_client_assertion_is_checked_for_signature_certificate_times_audience_subject_and_reuse() {
    let signer = Signer::new();
    let rig = Rig::with(|c| c.certificates = vec![signer.certificate.clone()]).await;
    let (sha1, sha256) =
        (signer.thumbprint(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY), signer.thumbprint(&ring::digest::SHA256));
    let ps = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": sha256});
    let rs = json!({"alg": "RS256", "typ": "JWT", "x5t": sha1});
    let client = client_id();
    let now = time(NOON).as_second();
    let aud = format!("https://login.microsoftonline.com/{}/oauth2/v2.0/token", rig.tenant);
    let good = json!({"iss": client, "sub": client, "aud": aud, "nbf": now, "exp": now + 600, "jti": "0"});
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let header = |key: &str, value: Value| {
        let mut changed = ps.clone();
        changed[key] = value;
        changed
    };
    let own = format!("{}/{}/oauth2/token", rig.sim.url(), rig.tenant);
    let mut serial = 0;
    for (what, header, claims, pss, expected) in [
        ("as documented", ps.clone(), good.clone(), true, 0),
        ("the older form", rs.clone(), good.clone(), false, 0),
        ("its own address, version 1", ps.clone(), with("aud", json!(own)), true, 0),
        ("another algorithm than signed with", ps.clone(), good.clone(), false, 700027),
        ("no algorithm", header("alg", json!("none")), good.clone(), true, 700027),
        ("a certificate that is not registered", header("x5t#S256", json!(sha1)), good.clone(), true, 700027),
        ("no certificate named", json!({"alg": "PS256", "typ": "JWT"}), good.clone(), true, 700027),
        ("not called a JWT", header("typ", json!("JOSE")), good.clone(), true, 700027),
        ("another tenant's address", ps.clone(), with("aud", json!(aud.replace("1111", "2222"))), true, 700027),
        (
            "an address that only ends alike",
            ps.clone(),
            with("aud", json!(format!("https://evil.example/{}/oauth2/v2.0/token", rig.tenant))),
            true,
            700027,
        ),
        ("another subject", ps.clone(), with("sub", json!("someone")), true, 700027),
        ("ended", ps.clone(), with("exp", json!(now)), true, 700024),
        ("too long", ps.clone(), with("exp", json!(now + 601)), true, 700024),
        ("of the future", ps.clone(), with("nbf", json!(now + 301)), true, 700024),
        ("without an id", ps.clone(), with("jti", json!("")), true, 700027),
    ] {
        let mut claims = claims;
        if claims["jti"] != "" {
            serial += 1;
            claims["jti"] = json!(serial.to_string());
        }
        assert_eq!(rig.present(&signer.sign(&header, &claims, pss)).await, expected, "{what}");
    }
    let once = signer.sign(&ps, &with("jti", json!("once")), true);
    assert_eq!((rig.present(&once).await, rig.present(&once).await), (0, 700027), "never twice");
    let (signed, signature) = once.rsplit_once('.').unwrap();
    let altered = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    assert_eq!(rig.present(&altered).await, 700027);
}

#[tokio::test]
async fn an_outside_token_is_held_against_the_federated_credential() {
    let signer = Signer::new();
    let (issuer, audience, subject) =
        ("https://issuer.example", "api://AzureADTokenExchange", "system:serviceaccount:logs:agent");
    let rig = Rig::with(|c| {
        c.federated = Some(FederatedCredential {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            subject: subject.to_owned(),
            certificate: Some(signer.certificate.clone()),
        });
    })
    .await;
    let now = time(NOON).as_second();
    let header = json!({"alg": "RS256", "kid": "1"});
    let token = |iss: &str, aud: Value, sub: &str, exp: i64| json!({"iss": iss, "sub": sub, "aud": aud, "exp": exp});
    for (claims, expected) in [
        (token(issuer, json!(audience), subject, now + 60), 0),
        (token(issuer, json!([audience]), subject, now + 60), 0),
        (token("https://other.example", json!(audience), subject, now + 60), 700211),
        (token(issuer, json!("api://other"), subject, now + 60), 700212),
        (token(issuer, json!(audience), "other", now + 60), 700213),
        (token(issuer, json!(audience), subject, now), 700024),
    ] {
        assert_eq!(rig.present(&signer.sign(&header, &claims, false)).await, expected, "{claims}");
    }
    let forged = signer.sign(&header, &token(issuer, json!(audience), subject, now + 60), true);
    assert_eq!(rig.present(&forged).await, 700027, "not signed by the issuer's key");
}

#[tokio::test]
async fn the_end_points_of_managed_identity_refuse_what_the_real_ones_refuse() {
    let rig = Rig::with(|c| {
        c.machine_identity = Some(MachineIdentity {
            tenant: c.tenants[0].clone(),
            system_assigned: false,
            user_assigned: vec!["user-1".to_owned()],
            app_service_header: "h".to_owned(),
            arc_challenge: None,
        });
    })
    .await;
    let imds =
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://manage.office.com&client_id=user-1";
    let app = "/msi/token?api-version=2019-08-01&resource=https://manage.office.com&client_id=user-1";
    for (target, headers, expected) in [
        (imds, "Metadata: true\r\n", 200),
        (imds, "", 400),
        (imds, "Metadata: true\r\nX-Forwarded-For: 10.0.0.1\r\n", 400),
        (&imds.replace("user-1", "user-2"), "Metadata: true\r\n", 400),
        (&imds.replace("&client_id=user-1", ""), "Metadata: true\r\n", 400),
        (&imds.replace("2018-02-01", "2017-01-01"), "Metadata: true\r\n", 400),
        (app, "X-IDENTITY-HEADER: h\r\n", 200),
        (app, "X-IDENTITY-HEADER: other\r\n", 401),
        (app, "", 401),
    ] {
        let answer = exchange(&rig.sim, "GET", target, headers, "").await.unwrap();
        assert_eq!(answer.status, expected, "{target} {headers} {}", answer.text());
        assert_eq!(answer.json()["expires_on"].is_string(), expected == 200);
    }
    rig.sim.configure(|c| {
        c.machine_identity.as_mut().unwrap().arc_challenge = Some(("/tokens/a.key".into(), "key".to_owned()));
    });
    let arc = imds.replace("2018-02-01", "2020-06-01");
    let asked = exchange(&rig.sim, "GET", &arc, "Metadata: true\r\n", "").await.unwrap();
    assert_eq!((asked.status, asked.header("www-authenticate")), (401, Some("Basic realm=/tokens/a.key")));
    let met = exchange(&rig.sim, "GET", &arc, "Metadata: true\r\nAuthorization: Basic key\r\n", "").await.unwrap();
    assert_eq!(met.status, 200);
}

#[tokio::test]
async fn a_token_ends_with_its_lifetime_when_revoked_and_for_another_audience() {
    let mut rig = Rig::with(|c| c.token_lifetime_secs = 60).await;
    assert_eq!(rig.get("/subscriptions/list").await.status, 200);
    rig.clock.advance(Duration::from_secs(60));
    let expired = rig.get("/subscriptions/list").await;
    assert_eq!(expired.status, 401);
    assert_eq!(expired.json(), json!({"Message": "Authorization has been denied for this request."}));
    rig.log_in().await;
    assert_eq!(rig.get("/subscriptions/list").await.status, 200);
    rig.sim.revoke_tokens();
    assert_eq!(rig.get("/subscriptions/list").await.status, 401);
    let graph = rig.ask_token("scope=https://graph.microsoft.com/.default").await.json();
    rig.token = graph["access_token"].as_str().unwrap().to_owned();
    assert_eq!(rig.get("/subscriptions/list").await.status, 401);
}

// Permissions and parameters.

#[tokio::test]
async fn without_the_dlp_role_only_dlp_is_refused_and_without_the_read_role_everything_is() {
    let mut rig = Rig::new().await;
    let blob = NewBlob::at(time("2026-05-08T10:00:00Z"));
    let dlp_blob = rig.sim.add_blob(&rig.tenant, ContentType::Dlp, blob);
    rig.sim.set_roles(["ActivityFeed.Read"]);
    rig.log_in().await;
    assert_eq!(rig.get("/subscriptions/content?contentType=Audit.General").await.status, 200);
    for path in ["/subscriptions/content?contentType=DLP.All".to_owned(), format!("/audit/{dlp_blob}")] {
        let refused = rig.get(&path).await;
        assert_eq!((refused.status, refused.code().as_str()), (401, "AF10001"));
    }
    rig.sim.set_roles(["ServiceHealth.Read"]);
    rig.log_in().await;
    let refused = rig.get("/subscriptions/list").await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "AF10001"));
}

#[tokio::test]
async fn a_tenant_other_than_the_tokens_is_refused_unless_the_token_decides() {
    let rig = Rig::new().await;
    let other = "/api/v1.0/00000000-0000-0000-0000-00000000c11e/activity/feed/subscriptions/list";
    assert_eq!(rig.get(other).await.code(), "AF20010");
    rig.sim.configure(|c| c.tenant_mismatch_refused = false);
    assert_eq!(rig.get(other).await.json().as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn bad_parameters_have_their_codes_and_unknown_ones_are_ignored() {
    let rig = Rig::new().await;
    for (rest, code) in [
        ("/subscriptions/content", "AF20001"),
        ("/subscriptions/content?contentType=DLP.ALL", "AF20020"),
        ("/subscriptions/content?contentType=DLP.All&startTime=noon&endTime=later", "AF20002"),
        // The first `PublisherIdentifier` wins.
        ("/subscriptions/list?publisherIdentifier=contoso", "AF20002"),
    ] {
        let answer = rig.get(rest).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{rest}");
    }
    let ignored = "/subscriptions/content?contentType=Audit.General&amp;startTime=1999-01-01";
    assert_eq!(rig.get(ignored).await.status, 200);
    assert_eq!(rig.get("/subscriptions/nothing").await.status, 404);
    assert_eq!(rig.post("/subscriptions/list").await.status, 405);
}

#[tokio::test]
async fn friendly_names_come_in_one_language_and_end_with_an_empty_object() {
    let rig = Rig::new().await;
    let answer = rig.get("/resources/dlpSensitiveTypes").await.json();
    assert_eq!(answer[0]["name"], json!("Credit card number"));
    assert_eq!(answer[1], json!({}));
    for (languages, code) in [("de-DE, en-US", "AF20053"), ("de_DE;q=x", "AF20054")] {
        let headers = format!("Accept-Language: {languages}\r\n");
        let answer = rig.try_call("GET", "/resources/dlpSensitiveTypes", &headers).await.unwrap();
        assert_eq!(answer.code(), code);
    }
}

// Subscriptions.

#[tokio::test]
async fn a_subscription_is_absent_then_enabled_then_already_enabled() {
    let rig = Rig::new().await;
    for content_type in ContentType::ALL {
        rig.sim.set_subscription(&rig.tenant, content_type, SubscriptionState::Absent);
    }
    assert_eq!(rig.get("/subscriptions/list").await.json(), json!([]));
    let content = "/subscriptions/content?contentType=Audit.General";
    assert_eq!(rig.get(content).await.code(), "AF20022");
    let start = "/subscriptions/start?contentType=Audit.General";
    let started = rig.post(start).await;
    assert_eq!(started.json(), json!({"contentType": "Audit.General", "status": "enabled", "webhook": null}));
    let again = rig.post(start).await;
    assert_eq!((again.status, again.code().as_str()), (400, "AF20024"));
    assert_eq!(rig.get(content).await.status, 200);
    let listed = json!([{"contentType": "Audit.General", "status": "enabled", "webhook": null}]);
    assert_eq!(rig.get("/subscriptions/list").await.json(), listed);
    rig.sim.configure(|c| c.list_without_status = true);
    assert!(rig.get("/subscriptions/list").await.json()[0].get("status").is_none());
}

#[tokio::test]
async fn a_stopped_subscription_refuses_content_and_what_came_meanwhile_is_gone() {
    let rig = Rig::with(|c| c.start_cooldown_secs = 0).await;
    rig.add("2026-05-08T11:00:00Z", &[&event("before")]);
    let stopped = rig.post("/subscriptions/stop?contentType=Audit.General").await;
    assert_eq!((stopped.status, stopped.text().as_str()), (200, ""));
    let refused = rig.today().await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "AF20023"));
    rig.clock.advance(Duration::from_secs(600));
    rig.add("2026-05-08T12:05:00Z", &[&event("meanwhile")]);
    assert_eq!(rig.post("/subscriptions/start?contentType=Audit.General").await.status, 200);
    assert_eq!(rig.list("2026-05-08T00:00:00", "2026-05-08T13:00:00").await.ids().len(), 1);
    let truth = rig.sim.truth();
    assert_eq!(truth.events.iter().map(|e| e.withheld).collect::<Vec<_>>(), [false, true]);
    assert!(truth.compare([event("before")]).is_clean());
}

#[tokio::test]
async fn a_second_start_within_a_quarter_of_an_hour_is_refused() {
    let rig = Rig::new().await;
    rig.sim.set_subscription(&rig.tenant, ContentType::Dlp, SubscriptionState::Absent);
    let start = "/subscriptions/start?contentType=DLP.All";
    assert_eq!(rig.post(start).await.status, 200);
    rig.sim.set_subscription(&rig.tenant, ContentType::Dlp, SubscriptionState::Disabled);
    let early = rig.post(start).await;
    assert_eq!((early.status, early.code().as_str()), (403, "AF429"));
    rig.clock.advance(Duration::from_secs(900));
    assert_eq!(rig.post(start).await.status, 200);
}

#[tokio::test]
async fn start_fails_in_the_server_exception_shape() {
    let rig = Rig::with(|c| c.start_cooldown_secs = 0).await;
    rig.sim.set_subscription(&rig.tenant, ContentType::Dlp, SubscriptionState::Absent);
    let tenant = rig.tenant.as_str();
    for (failure, text) in [
        (StartFailure::AuditOff, format!("DataServiceException: Tenant {tenant} does not exist.")),
        (StartFailure::NotOnboarded, format!("InvalidPropertyValueException: Tenant {tenant} has not been onboarded")),
        (
            StartFailure::NoServicePrincipal,
            "does not have a service principal for resource manage.office.com".to_owned(),
        ),
    ] {
        match failure {
            StartFailure::AuditOff => rig.sim.configure(|c| c.tenant_audit_on = false),
            other => rig.sim.configure(|c| c.start_failure = Some(other)),
        }
        let answer = rig.post("/subscriptions/start?contentType=DLP.All").await;
        assert_eq!(answer.status, 400);
        assert!(answer.code().starts_with("StartSubscription [CorrId="), "{}", answer.code());
        assert!(answer.code().ends_with("[AppId"), "{}", answer.code());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("aaaaaaa-0000"), "the message has lost its first character: {message}");
        assert!(message.contains(&text), "{message}");
    }
}

#[tokio::test]
async fn a_restart_can_stick_in_a_state_where_start_says_enabled_and_content_disabled() {
    let rig = Rig::with(|c| {
        c.start_cooldown_secs = 0;
        c.restart_sticks_secs = Some(3_600);
    })
    .await;
    rig.post("/subscriptions/stop?contentType=Audit.General").await;
    let started = rig.post("/subscriptions/start?contentType=Audit.General").await;
    assert_eq!(started.json()["status"], json!("enabled"));
    assert_eq!(rig.get("/subscriptions/list").await.json().as_array().unwrap().len(), 4);
    assert_eq!(rig.today().await.code(), "AF20023");
    rig.clock.advance(Duration::from_secs(3_600));
    assert_eq!(rig.today().await.status, 200);
}

// Listings.

#[tokio::test]
async fn a_window_is_half_open_on_content_created() {
    let rig = Rig::new().await;
    let at = rig.add("2026-05-08T10:00:00.000Z", &[]);
    let later = rig.add("2026-05-08T10:00:00.999Z", &[]);
    rig.add("2026-05-08T10:00:01.000Z", &[]);
    let found: BTreeSet<_> = rig.list("2026-05-08T10:00:00", "2026-05-08T10:00:01").await.ids().into_iter().collect();
    assert_eq!(found, BTreeSet::from([at, later]));
}

#[tokio::test]
async fn a_listing_names_blobs_as_the_reference_does() {
    let rig = Rig::new().await;
    let id = rig.add("2026-05-08T10:00:00.123Z", &[]);
    let entry = rig.today().await.json()[0].clone();
    assert_eq!(
        entry,
        json!({
            "contentType": "Audit.General", "contentId": id,
            "contentUri": format!("{}/api/v1.0/{}/activity/feed/audit/{id}", rig.sim.url(), rig.tenant),
            "contentCreated": "2026-05-08T10:00:00.123Z", "contentExpiration": "2026-05-15T10:00:00.123Z",
        })
    );
    assert!(id.contains("$audit_general$Audit_General$"), "{id}");
    rig.sim.configure(|c| {
        c.expiry_days = 20;
        c.content_uri_origin = Some("https://elsewhere.example".to_owned());
    });
    rig.add("2026-05-08T11:00:00Z", &[]);
    let entries = rig.list("2026-05-08T10:30:00", "2026-05-08T12:00:00").await.json();
    assert_eq!(entries[0]["contentExpiration"], json!("2026-05-28T11:00:00.000Z"));
    assert!(entries[0]["contentUri"].as_str().unwrap().starts_with("https://elsewhere.example/api/v1.0/"));
}

#[tokio::test]
async fn windows_that_break_a_rule_are_refused_and_the_others_are_not() {
    use ListingSpan::{Exclusive, Inclusive, Partial};
    let rig = Rig::new().await;
    for (span, query, status) in [
        (Inclusive, "startTime=2026-05-08T00:00:00", 400),
        (Inclusive, "endTime=2026-05-08T00:00:00", 400),
        (Inclusive, "startTime=2026-05-07T12:00:00&endTime=2026-05-08T12:00:00", 200),
        (Exclusive, "startTime=2026-05-07T12:00:00&endTime=2026-05-08T12:00:00", 400),
        (Exclusive, "startTime=2026-05-07T12:00:01&endTime=2026-05-08T12:00:00", 200),
        (Inclusive, "startTime=2026-05-07T12:00:00&endTime=2026-05-08T12:00:01", 400),
        (Partial, "startTime=2026-05-06T12:00:00&endTime=2026-05-08T12:00:01", 200),
        (Inclusive, "startTime=2026-05-08T10:00:00&endTime=2026-05-08T10:00:00", 400),
        (Inclusive, "startTime=2026-05-08T11:00:00&endTime=2026-05-08T10:00:00", 400),
        (Inclusive, "startTime=2026-05-01T12:00:00&endTime=2026-05-01T13:00:00", 200),
        (Inclusive, "startTime=2026-05-01T11:59:59&endTime=2026-05-01T13:00:00", 400),
        (Inclusive, "startTime=2026-05-09T00:00:00&endTime=2026-05-09T01:00:00", 200),
    ] {
        rig.sim.configure(|c| c.listing_span = span);
        let answer = rig.get(&format!("/subscriptions/content?contentType=Audit.General&{query}")).await;
        assert_eq!(answer.status, status, "{query}");
        if status == 400 {
            assert_eq!(answer.code(), "AF20055", "{query}");
        }
    }
    rig.sim.configure(|c| c.listing_age_max_secs += 3_600);
    assert_eq!(rig.list("2026-05-01T11:00:00", "2026-05-01T12:00:00").await.status, 200);
}

#[tokio::test]
async fn a_window_over_a_day_can_be_answered_in_part() {
    let rig = Rig::with(|c| c.listing_span = ListingSpan::Partial).await;
    let first = rig.add("2026-05-06T13:00:00Z", &[]);
    rig.add("2026-05-08T10:00:00Z", &[]);
    assert_eq!(rig.list("2026-05-06T12:00:00", "2026-05-08T12:00:00").await.ids(), [first]);
}

#[tokio::test]
async fn without_a_window_the_last_day_is_listed() {
    let rig = Rig::new().await;
    let inside = rig.add("2026-05-07T13:00:00Z", &[]);
    rig.add("2026-05-07T11:00:00Z", &[]);
    assert_eq!(rig.get("/subscriptions/content?contentType=Audit.General").await.ids(), [inside]);
}

#[tokio::test]
async fn every_time_format_of_the_field_is_read() {
    let rig = Rig::new().await;
    let id = rig.add("2026-05-08T00:00:00Z", &[]);
    for (start, end) in [
        ("2026-05-08", "2026-05-09"),
        ("2026-05-08T00:00", "2026-05-08T00:01"),
        ("2026-05-08T00:00Z", "2026-05-08T00:01Z"),
        ("2026-05-08T00:00:00", "2026-05-08T00:00:01"),
        ("2026-05-08T00:00:00Z", "2026-05-08T00:00:01Z"),
        ("2026-05-08T00:00:00.000Z", "2026-05-08T00:00:00.001Z"),
        ("2026-05-08T02:00:00%2B02:00", "2026-05-08T02:00:01%2B02:00"),
    ] {
        assert_eq!(rig.list(start, end).await.ids(), std::slice::from_ref(&id), "{start}");
    }
    // A plus that is not escaped arrives as a blank.
    assert_eq!(rig.list("2026-05-08T00:00:00+00:00", "2026-05-08T00:00:01+00:00").await.code(), "AF20002");
}

#[tokio::test]
async fn windows_are_judged_and_dates_told_by_the_simulators_own_clock() {
    let rig = Rig::new().await;
    rig.sim.set_clock_offset(3_600);
    assert_eq!(rig.list("2026-05-01T12:30:00", "2026-05-01T13:30:00").await.code(), "AF20055");
    let answer = rig.get("/subscriptions/list").await;
    assert_eq!(answer.header("date"), Some("Fri, 08 May 2026 13:00:00 GMT"));
    assert_eq!(answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("date")).count(), 1);
}

#[tokio::test]
async fn a_late_blob_is_listed_from_its_own_time_on_and_cannot_be_fetched_before() {
    let rig = Rig::new().await;
    let late = Some(time("2026-05-08T12:30:00Z"));
    let blob = NewBlob { listable_from: late, ..NewBlob::at(time("2026-05-08T10:00:00Z")) };
    let id = rig.sim.add_blob(&rig.tenant, ContentType::General, blob.with_events([event("late")]));
    assert_eq!(rig.today().await.ids(), [] as [String; 0]);
    assert_eq!(rig.fetch(&id).await.code(), "AF20050");
    assert!(rig.sim.truth().events[0].withheld);
    rig.clock.advance(Duration::from_secs(1_800));
    assert_eq!(rig.today().await.ids(), [id]);
    assert!(!rig.sim.truth().events[0].withheld);
}

#[tokio::test]
async fn the_content_types_have_listings_of_their_own() {
    let rig = Rig::new().await;
    rig.sim.add_blob(&rig.tenant, ContentType::Exchange, NewBlob::at(time("2026-05-08T10:00:00Z")));
    assert_eq!(rig.today().await.ids(), [] as [String; 0]);
    assert_eq!(rig.get("/subscriptions/content?contentType=Audit.Exchange").await.ids().len(), 1);
    assert_eq!(rig.get("/subscriptions/notifications?contentType=Audit.Exchange").await.json(), json!([]));
}

// Pages.

async fn paged(count: usize, change: impl FnOnce(&mut SimConfig)) -> (Rig, BTreeSet<String>) {
    let rig = Rig::with(|c| {
        c.page_size = 2;
        change(c);
    })
    .await;
    // Three blobs to an instant, so that a page boundary falls between blobs of one instant.
    let made = (0..count).map(|n| rig.add(&format!("2026-05-08T{:02}:00:00.500Z", n / 3), &[])).collect();
    (rig, made)
}

impl Rig {
    /// The path and query of the link on the first page.
    async fn first_link(&self) -> String {
        let answer = self.today().await;
        answer.header("nextpageuri").unwrap().strip_prefix(&self.sim.url()).unwrap().to_owned()
    }
}

#[tokio::test]
async fn every_blob_is_on_exactly_one_page_in_either_order() {
    for order in [ListingOrder::Created, ListingOrder::Shuffled] {
        let (rig, made) = paged(7, |c| c.listing_order = order).await;
        let pages = rig.all_pages().await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 1]);
        assert_eq!(pages.concat().into_iter().collect::<BTreeSet<_>>(), made);
        let sorted = pages.concat().is_sorted();
        assert_eq!(sorted, order == ListingOrder::Created, "{order:?}");
    }
}

#[tokio::test]
async fn the_link_header_is_spelled_on_the_wire_as_configured() {
    for name in ["NextPageUri", "NextPageUrl", "nextpageuri", "Nextpageuri", "NEXTPAGEURI"] {
        let (rig, _) = paged(3, |c| c.next_page.header = name.to_owned()).await;
        let answer = rig.today().await;
        assert!(answer.headers.iter().any(|(key, _)| key == name), "{name}: {:?}", answer.headers);
    }
}

#[tokio::test]
async fn a_link_is_a_whole_url_that_repeats_the_window_without_the_publisher() {
    let (rig, _) = paged(3, |_| {}).await;
    let answer = rig.today().await;
    let link = answer.header("nextpageuri").unwrap();
    let expected = format!(
        "{}/api/v1/{}/activity/feed/subscriptions/content?contentType=Audit.General&startTime=2026-05-08T00:00:00\
         &endTime=2026-05-08T12:00:00&nextPage=",
        rig.sim.url(),
        rig.tenant
    );
    assert!(link.starts_with(&expected), "{link}");
    assert!(!link.contains("PublisherIdentifier"), "{link}");
    rig.sim.configure(|c| {
        c.next_page.lower_case_parameters = true;
        c.next_page.with_publisher = true;
        c.next_page.api_version = "v1.0".to_owned();
        c.next_page.origin = Some("https://elsewhere.example".to_owned());
    });
    let answer = rig.today().await;
    let link = answer.header("nextpageuri").unwrap();
    assert!(link.starts_with("https://elsewhere.example/api/v1.0/"), "{link}");
    assert!(link.contains("&starttime=2026-05-08T00:00:00&endtime=") && link.ends_with(PUBLISHER), "{link}");
}

#[tokio::test]
async fn an_empty_page_can_stand_before_every_next_one() {
    let (rig, made) = paged(5, |c| c.next_page.empty_pages = true).await;
    let pages = rig.all_pages().await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 0, 2, 0, 1]);
    assert_eq!(pages.concat().into_iter().collect::<BTreeSet<_>>(), made);
}

#[tokio::test]
async fn a_page_can_name_itself_as_the_next() {
    let (rig, _) = paged(7, |c| c.next_page.loops = true).await;
    let first = rig.first_link().await;
    let second = rig.get(&first).await;
    assert!(second.header("nextpageuri").unwrap().ends_with(&first));
}

#[tokio::test]
async fn a_link_that_was_tampered_with_or_has_aged_is_refused() {
    let (rig, _) = paged(3, |c| c.next_page.lifetime_secs = Some(600)).await;
    let link = rig.first_link().await;
    let other_type = link.replace("Audit.General", "Audit.Exchange");
    let bad = rig.get("/subscriptions/content?contentType=Audit.General&nextPage=bad").await;
    assert_eq!((bad.status, bad.code().as_str()), (400, "AF20031"));
    assert_eq!(rig.get(&other_type).await.code(), "AF20031");
    assert_eq!(rig.get(&link).await.status, 200);
    rig.clock.advance(Duration::from_secs(601));
    assert_eq!(rig.get(&link).await.code(), "AF20031");
}

#[tokio::test]
async fn a_link_whose_window_has_grown_too_old_is_refused_for_ever() {
    let (mut rig, _) = paged(3, |_| {}).await;
    let link = rig.first_link().await;
    rig.sim.set_clock_offset(7 * 86_400);
    rig.log_in().await;
    assert_eq!(rig.get(&link).await.code(), "AF20055");
}

// Blobs.

#[tokio::test]
async fn a_blob_is_an_array_of_its_events_and_may_be_empty() {
    let rig = Rig::new().await;
    let two = rig.add("2026-05-08T10:00:00Z", &[&event("a"), &event("b")]);
    let none = rig.add("2026-05-08T10:00:00Z", &[]);
    assert_ne!(two, none, "two blobs of one instant");
    let answer = rig.fetch(&two).await;
    assert_eq!(answer.text(), format!("[{},{}]", event("a"), event("b")));
    assert!(answer.whole && answer.header("content-length").is_some());
    assert_eq!(rig.fetch(&none).await.text(), "[]");
    assert_eq!(rig.sim.truth().blobs_read, 2);
}

#[tokio::test]
async fn the_dollar_of_a_content_id_may_be_encoded_once_and_not_twice() {
    let rig = Rig::new().await;
    let id = rig.add("2026-05-08T10:00:00Z", &[]);
    assert_eq!(rig.fetch(&id.replace('$', "%24")).await.status, 200);
    assert_eq!(rig.fetch(&id.replace('$', "%2524")).await.code(), "AF20052");
    assert_eq!(rig.fetch("20260508$none").await.code(), "AF20050");
}

#[tokio::test]
async fn an_expired_blob_is_refused_and_told_as_expired_unread() {
    let rig = Rig::new().await;
    let expires = Some(time("2026-05-08T12:10:00Z"));
    let blob = NewBlob { expires, ..NewBlob::at(time("2026-05-08T10:00:00Z")) };
    let id = rig.sim.add_blob(&rig.tenant, ContentType::General, blob.with_events([event("gone")]));
    rig.clock.advance(Duration::from_secs(600));
    assert_eq!(rig.fetch(&id).await.code(), "AF20051");
    let comparison = rig.sim.truth().compare([] as [String; 0]);
    assert_eq!((comparison.lost.len(), comparison.expired_unread.len()), (0, 1));
}

#[tokio::test]
async fn a_body_of_its_own_replaces_the_array() {
    let rig = Rig::new().await;
    let blob = NewBlob { body: Some(b"[{\"Id\":1},".to_vec()), ..NewBlob::at(time("2026-05-08T10:00:00Z")) };
    let id = rig.sim.add_blob(&rig.tenant, ContentType::General, blob);
    assert_eq!(rig.fetch(&id).await.text(), "[{\"Id\":1},");
}

#[tokio::test]
async fn blobs_are_compressed_for_callers_who_accept_it_while_it_is_on() {
    let rig = Rig::new().await;
    let id = rig.add("2026-05-08T10:00:00Z", &[&event("a")]);
    let accepts = "Accept-Encoding: gzip, deflate\r\n";
    let path = format!("/audit/{id}");
    let answer = rig.try_call("GET", &path, accepts).await.unwrap();
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    flate2::read::GzDecoder::new(answer.body.as_slice()).read_to_string(&mut plain).unwrap();
    assert_eq!(plain, format!("[{}]", event("a")));
    assert_eq!(rig.fetch(&id).await.header("content-encoding"), None);
    rig.sim.configure(|c| c.gzip = false);
    assert_eq!(rig.try_call("GET", &path, accepts).await.unwrap().header("content-encoding"), None);
}

#[tokio::test]
async fn a_huge_blob_is_made_while_it_is_read_and_known_by_its_numbers() {
    let rig = Rig::new().await;
    let blob = NewBlob::huge(time("2026-05-08T10:00:00Z"), 200 * 1024 * 1024);
    let id = rig.sim.add_blob(&rig.tenant, ContentType::General, blob);
    let mut socket = TcpStream::connect(rig.sim.address()).await.unwrap();
    let path = format!("/api/v1.0/{}/activity/feed/audit/{id}", rig.tenant);
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: sim\r\nConnection: close\r\nAuthorization: bearer {}\r\n\r\n", rig.token);
    socket.write_all(request.as_bytes()).await.unwrap();
    let (mut total, mut buffer) = (0usize, vec![0; 256 * 1024]);
    loop {
        match socket.read(&mut buffer).await.unwrap() {
            0 => break,
            read => total += read,
        }
    }
    assert!(total > 199 * 1024 * 1024, "{total}");
    let truth = rig.sim.truth();
    let huge = &truth.huge[0];
    assert!(huge.count > 200_000);
    assert_eq!(truth.blobs_read, 1);
    assert!(Truth::huge_event_id(huge, huge.count - 1).is_some() && Truth::huge_event_id(huge, huge.count).is_none());
}

#[tokio::test]
async fn events_of_a_huge_blob_are_compared_one_by_one() {
    let rig = Rig::new().await;
    let id = rig.sim.add_blob(&rig.tenant, ContentType::General, NewBlob::huge(time("2026-05-08T10:00:00Z"), 5_000));
    let body = rig.fetch(&id).await.body;
    let events: Vec<Box<serde_json::value::RawValue>> = serde_json::from_slice(&body).unwrap();
    let all: Vec<String> = events.iter().map(|event| event.get().to_owned()).collect();
    assert!(all.len() > 3);
    assert!(rig.sim.truth().compare(all.clone()).is_clean());
    let mut broken = all.clone();
    broken[1] = broken[1].replace("report", "rapport");
    broken.push(all[2].clone());
    broken.remove(0);
    let comparison = rig.sim.truth().compare(broken);
    assert_eq!((comparison.lost.len(), comparison.altered.len(), comparison.duplicated.len()), (1, 1, 1));
}

// Faults: bytes and connections.

async fn blob_with_fault(fault: SimFault) -> (Rig, String) {
    let rig = Rig::new().await;
    let events: Vec<String> = (0..50).map(|n| event(&format!("event-{n}"))).collect();
    let id = rig.add("2026-05-08T10:00:00Z", &events.iter().map(String::as_str).collect::<Vec<_>>());
    rig.sim.faults().next_for_blob(&id, 1, fault);
    (rig, id)
}

#[tokio::test]
async fn a_body_is_cut_after_so_many_bytes_and_whole_the_next_time() {
    let (rig, id) = blob_with_fault(SimFault::CutBody(100)).await;
    let cut = rig.fetch(&id).await;
    assert_eq!((cut.status, cut.body.len(), cut.whole), (200, 100, false));
    assert_eq!(rig.sim.truth().blobs_read, 0);
    assert!(rig.fetch(&id).await.whole);
    assert_eq!(rig.sim.truth().blobs_read, 1);
}

#[tokio::test]
async fn a_cut_beyond_the_end_still_cuts() {
    let (rig, id) = blob_with_fault(SimFault::CutBody(u64::MAX)).await;
    assert!(!rig.fetch(&id).await.whole);
    rig.sim.faults().next_for_blob(&id, 1, SimFault::CutBody(u64::MAX));
    let compressed = rig.try_call("GET", &format!("/audit/{id}"), "Accept-Encoding: gzip\r\n").await.unwrap();
    assert!(!compressed.whole);
}

#[tokio::test]
async fn a_content_length_too_long_leaves_the_body_short() {
    let (rig, id) = blob_with_fault(SimFault::WrongLength(10)).await;
    let answer = rig.fetch(&id).await;
    assert!(!answer.whole && answer.text().ends_with(']'));
}

#[tokio::test]
async fn a_content_length_too_short_cuts_the_body_to_fit() {
    let (rig, id) = blob_with_fault(SimFault::WrongLength(-10)).await;
    let answer = rig.fetch(&id).await;
    assert!(answer.whole && serde_json::from_slice::<Value>(&answer.body).is_err());
}

#[tokio::test]
async fn a_damaged_gzip_stream_does_not_decode() {
    let (rig, id) = blob_with_fault(SimFault::DamagedGzip).await;
    let answer = rig.try_call("GET", &format!("/audit/{id}"), "Accept-Encoding: gzip\r\n").await.unwrap();
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut plain = Vec::new();
    assert!(flate2::read::GzDecoder::new(answer.body.as_slice()).read_to_end(&mut plain).is_err());
}

#[tokio::test]
async fn a_reset_ends_the_connection_without_an_answer() {
    let rig = Rig::new().await;
    rig.sim.faults().next(CallKind::List, 1, SimFault::Reset);
    let error = rig.try_call("GET", "/subscriptions/list", "").await.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(rig.sim.requests().last().unwrap().status, 0);
    assert_eq!(rig.get("/subscriptions/list").await.status, 200);
}

#[tokio::test]
async fn a_slow_answer_waits_for_the_clock() {
    let rig = Arc::new(Rig::new().await);
    rig.sim.faults().next(CallKind::List, 1, SimFault::Slow(Duration::from_secs(3_600)));
    let call = tokio::spawn({
        let rig = rig.clone();
        async move { rig.get("/subscriptions/list").await }
    });
    while rig.clock.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.sim.in_flight(), 1);
    rig.clock.advance(Duration::from_secs(3_600));
    assert_eq!(call.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_slow_body_waits_for_the_clock_piece_by_piece() {
    let rig = Arc::new(Rig::new().await);
    let blob = NewBlob::huge(time("2026-05-08T10:00:00Z"), 150_000);
    let id = rig.sim.add_blob(&rig.tenant, ContentType::General, blob);
    rig.sim.faults().next_for_blob(&id, 1, SimFault::SlowBody(Duration::from_secs(60)));
    let call = tokio::spawn({
        let rig = rig.clone();
        async move { rig.fetch(&id).await.whole }
    });
    let mut pauses = 0;
    while !call.is_finished() {
        pauses += u32::from(rig.clock.advance_to_next_sleeper().is_some());
        tokio::task::yield_now().await;
    }
    assert!(call.await.unwrap());
    assert!(pauses >= 3, "{pauses}");
}

#[tokio::test]
async fn one_date_header_can_be_wrong() {
    let rig = Rig::new().await;
    rig.sim.faults().next(CallKind::List, 1, SimFault::WrongDate(86_400));
    assert_eq!(rig.get("/subscriptions/list").await.header("date"), Some("Sat, 09 May 2026 12:00:00 GMT"));
    assert_eq!(rig.get("/subscriptions/list").await.header("date"), Some("Fri, 08 May 2026 12:00:00 GMT"));
}

// Faults: answers.

macro_rules! answers {
    ($($name:ident: $fault:expr => $status:literal, $text:literal;)*) => {
        $(#[tokio::test]
        async fn $name() {
            let (rig, id) = blob_with_fault($fault).await;
            let answer = rig.fetch(&id).await;
            assert_eq!(answer.status, $status);
            assert!(answer.text().contains($text), "{}", answer.text());
            assert_eq!(rig.fetch(&id).await.status, 200, "the fault struck once");
            let name = $fault.name();
            assert_eq!(rig.sim.faults().served().get(name), Some(&1));
        })*
    };
}

answers! {
    fault_throttled_as_403: SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: false }
        => 403, r#""code":"AF429""#;
    fault_throttled_as_429: SimFault::Throttled { status: 429, retry_after_secs: Some(7), single_quoted: false }
        => 429, "Method=GetBlob, PublisherId=99999999-0000-4000-8000-000000000009";
    fault_throttled_in_single_quotes: SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: true }
        => 403, "{'error':{'code':'AF429'";
    fault_internal_error: SimFault::InternalError => 500, r#""code":"AF50000""#;
    fault_internal_error_undocumented: SimFault::InternalErrorUndocumented => 500, r#""code":"AF50005""#;
    fault_gateway_502: SimFault::Gateway(502) => 502, "<html>";
    fault_gateway_503: SimFault::Gateway(503) => 503, "<html>";
    fault_gateway_504: SimFault::Gateway(504) => 504, "<html>";
    fault_request_timeout: SimFault::RequestTimeout => 408, "";
    fault_content_missing: SimFault::ContentMissing => 404, "AF20050";
    fault_content_expired: SimFault::ContentExpired => 400, "AF20051";
    fault_content_id_invalid: SimFault::ContentIdInvalid => 400, "AF20052";
    fault_not_found: SimFault::NotFound => 404, "<html>";
    fault_unauthorized: SimFault::Unauthorized => 401, "Authorization has been denied";
    fault_permission_missing: SimFault::PermissionMissing => 401, "AF10001";
    fault_html_page: SimFault::HtmlPage => 200, "<!DOCTYPE html>";
    fault_empty_body: SimFault::EmptyBody => 200, "";
    fault_redirect: SimFault::Redirect("https://elsewhere.example/".to_owned()) => 302, "Object moved";
    fault_next_page_invalid: SimFault::NextPageInvalid => 400, "AF20031";
    fault_not_subscribed: SimFault::NotSubscribed => 400, "AF20022";
    fault_subscription_disabled: SimFault::SubscriptionDisabled => 400, "AF20023";
    fault_window_refused: SimFault::WindowRefused => 400, "AF20055";
    fault_answer: SimFault::Answer { status: 418, content_type: "text/plain".to_owned(), body: b"short".to_vec() }
        => 418, "short";
}

#[tokio::test]
async fn retry_after_is_sent_when_asked_for_and_a_redirect_names_its_target() {
    let throttled = SimFault::Throttled { status: 429, retry_after_secs: Some(7), single_quoted: false };
    let (rig, id) = blob_with_fault(throttled).await;
    assert_eq!(rig.fetch(&id).await.header("retry-after"), Some("7"));
    rig.sim.faults().next_for_blob(&id, 1, SimFault::Redirect("https://elsewhere.example/".to_owned()));
    assert_eq!(rig.fetch(&id).await.header("location"), Some("https://elsewhere.example/"));
}

#[tokio::test]
async fn a_token_request_can_be_refused_by_script() {
    let rig = Rig::new().await;
    rig.sim.faults().next(CallKind::Token, 1, SimFault::Aadsts(90033));
    let refused = rig.ask_token(SCOPE).await;
    assert_eq!((refused.status, refused.json()["error_codes"][0].as_u64()), (503, Some(90033)));
    assert_eq!(rig.ask_token(SCOPE).await.status, 200);
}

#[tokio::test]
async fn a_script_strikes_only_what_it_selects_and_after_what_it_skips() {
    let rig = Rig::new().await;
    let script = FaultScript { skip: 1, ..FaultScript::next(CallKind::Content, 2, SimFault::InternalError) };
    rig.sim.faults().script(FaultScript { content_type: Some(ContentType::General), ..script });
    assert_eq!(rig.get("/subscriptions/content?contentType=Audit.Exchange").await.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(rig.today().await.status);
    }
    assert_eq!(statuses, [200, 500, 500, 200]);
    assert_eq!(rig.sim.faults().pending(), 0);
    rig.sim.faults().next_for_type(CallKind::Content, ContentType::General, 9, SimFault::InternalError);
    rig.sim.faults().clear();
    assert_eq!(rig.today().await.status, 200);
}

#[tokio::test]
async fn faults_by_rate_come_at_about_their_rate_and_repeat_with_the_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let rig = Rig::new().await;
        rig.sim.faults().rate(CallKind::List, 0.3, SimFault::InternalError);
        let mut failed = Vec::new();
        for n in 0..200 {
            failed.push(rig.get(&format!("/subscriptions/list?n={n}")).await.status == 500);
        }
        runs.push(failed);
    }
    let share = runs[0].iter().filter(|failed| **failed).count();
    assert!((40..=80).contains(&share), "{share}");
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn bad_weather_strikes_in_many_ways() {
    let rig = Rig::new().await;
    rig.sim.set_faults(FaultPlan::bad_weather(0.5));
    for n in 0..100 {
        let _ = rig.try_call("GET", &format!("/subscriptions/list?n={n}"), "").await;
    }
    assert!(rig.sim.faults().served().len() >= 6, "{:?}", rig.sim.faults().served());
}

// Quotas, the log, the server.

#[tokio::test]
async fn a_quota_is_per_tenant_and_publisher_and_shared_by_those_without_one() {
    let rig = Rig::with(|c| c.quota_per_minute = Some(2)).await;
    let feed = format!("/api/v1.0/{}/activity/feed/subscriptions/list", rig.tenant);
    let bearer = format!("Authorization: Bearer {}\r\n", rig.token);
    for query in [
        "?PublisherIdentifier=00000000-0000-0000-0000-00000000000a",
        "?publisherIdentifier=00000000-0000-0000-0000-00000000000b",
        "",
    ] {
        for status in [200, 200, 403] {
            let answer = exchange(&rig.sim, "GET", &format!("{feed}{query}"), &bearer, "").await.unwrap();
            assert_eq!(answer.status, status, "{query}");
            assert_eq!(answer.status == 403, answer.text().contains("AF429"));
        }
    }
    assert_eq!(rig.sim.counters().without_publisher.get(&CallKind::List), Some(&3));
    rig.clock.advance(Duration::from_secs(60));
    rig.sim.configure(|c| {
        c.throttle_status = 429;
        c.throttle_retry_after_secs = Some(60);
    });
    for status in [200, 200, 429] {
        let answer = exchange(&rig.sim, "GET", &feed, &bearer, "").await.unwrap();
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
}

#[tokio::test]
async fn every_request_is_logged_with_what_it_asked_for() {
    let rig = Rig::new().await;
    rig.today().await;
    let requests = rig.sim.requests();
    let last = requests.last().unwrap();
    assert_eq!((last.kind, last.status, last.had_publisher, last.had_token), (CallKind::Content, 200, true, true));
    assert_eq!(last.content_type.as_deref(), Some("Audit.General"));
    assert_eq!(last.start.as_deref(), Some("2026-05-08T00:00:00"));
    assert_eq!(last.at, time(NOON));
    assert_eq!(requests[0].kind, CallKind::Token);
    assert_eq!(rig.sim.counters().statuses.get(&200), Some(&2));
}

#[tokio::test]
async fn answers_carry_the_headers_of_the_real_service() {
    let rig = Rig::new().await;
    let answer = rig.get("/subscriptions/list").await;
    for (name, value) in [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Cache-Control", "no-cache"),
        ("Pragma", "no-cache"),
        ("Expires", "-1"),
        ("Server", "Microsoft-IIS/10.0"),
        ("X-AspNet-Version", "4.0.30319"),
        ("X-Powered-By", "ASP.NET"),
    ] {
        assert_eq!(answer.header(name), Some(value));
    }
    assert_eq!(answer.header("retry-after"), None);
}

#[tokio::test]
async fn http2_without_tls_is_spoken_on_the_same_port() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let rig = Rig::new().await;
    let id = rig.add("2026-05-08T10:00:00Z", &[&event("a")]);
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let url = format!("{}/api/v1.0/{}/activity/feed/audit/{id}", rig.sim.url(), rig.tenant);
    let fetch = || client.get(&url).bearer_auth(&rig.token).send();
    let answer = fetch().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(answer.headers()["date"], "Fri, 08 May 2026 12:00:00 GMT");
    assert_eq!(answer.text().await.unwrap(), format!("[{}]", event("a")));
    assert!(rig.sim.requests().last().unwrap().http2);
    rig.sim.faults().next_for_blob(&id, 1, SimFault::Reset);
    assert!(fetch().await.is_err());
    rig.sim.faults().next_for_blob(&id, 1, SimFault::CutBody(20));
    let cut = fetch().await.unwrap();
    assert!(cut.bytes().await.is_err());
    assert!(fetch().await.is_ok());
}

#[tokio::test]
async fn an_idle_simulator_has_nothing_in_flight_and_does_not_stir() {
    let rig = Rig::new().await;
    let before = rig.sim.activity();
    rig.get("/subscriptions/list").await;
    assert!(rig.sim.activity() > before);
    assert_eq!(rig.sim.in_flight(), 0);
    let after = rig.sim.activity();
    tokio::task::yield_now().await;
    assert_eq!(rig.sim.activity(), after);
}

#[tokio::test]
async fn a_stopped_simulator_has_joined_its_tasks_and_can_be_started_again_on_its_port() {
    let rig = Rig::new().await;
    rig.sim.faults().next(CallKind::List, 1, SimFault::Slow(Duration::from_secs(9)));
    let address = rig.sim.address();
    let mut hanging = TcpStream::connect(address).await.unwrap();
    let target = format!("/api/v1.0/{}/activity/feed/subscriptions/list", rig.tenant);
    hanging.write_all(format!("GET {target} HTTP/1.1\r\nHost: sim\r\n\r\n").as_bytes()).await.unwrap();
    while rig.clock.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    rig.sim.stop().await;
    assert_eq!(rig.sim.in_flight(), 0);
    assert!(TcpStream::connect(address).await.is_err());
    let again = Sim::start_on(address, SimConfig::default(), Arc::new(rig.clock.clone())).await.unwrap();
    assert_eq!(again.url(), rig.sim.url());
    again.stop().await;
}

// The generator and the truth.

fn week(rig: &Rig, blobs: usize, events: usize) -> GenerateSpec {
    let now = rig.clock.now();
    GenerateSpec::new(blobs, events, now - jiff::SignedDuration::from_hours(24 * 6), now)
}

#[tokio::test]
async fn the_same_seed_makes_the_same_events_and_another_seed_others() {
    let mut bodies = Vec::new();
    for seed in [5, 5, 6] {
        let rig = Rig::with(|c| c.seed = seed).await;
        rig.sim.generate(&rig.tenant, week(&rig, 20, 10));
        bodies.push(rig.sim.truth().events.iter().map(|e| e.raw.clone()).collect::<Vec<_>>());
    }
    assert_eq!(bodies[0], bodies[1]);
    assert_ne!(bodies[0], bodies[2]);
}

#[tokio::test]
async fn every_irregular_shape_is_made_and_counted() {
    let rig = Rig::new().await;
    rig.sim.generate(&rig.tenant, GenerateSpec { irregular_rate: 0.9, ..week(&rig, 200, 20) });
    let truth = rig.sim.truth();
    for shape in Irregularity::ALL {
        let counted = truth.irregularities.get(shape).copied().unwrap_or(0);
        assert!(counted > 0, "{}", shape.as_str());
        let marked = truth.events.iter().filter(|e| e.irregularity == Some(*shape)).count() as u64;
        assert_eq!(counted, marked, "{}", shape.as_str());
    }
    assert!(truth.made.contains_key("corpus") && truth.made.contains_key("role-member-added"), "{:?}", truth.made);
}

#[tokio::test]
async fn generated_blobs_are_late_twinned_empty_copied_and_old_as_the_rates_say() {
    let rig = Rig::new().await;
    let spec = GenerateSpec {
        late_rate: 0.5,
        same_instant_rate: 0.5,
        empty_blob_rate: 0.2,
        copy_rate: 0.3,
        old_event_rate: 0.5,
        ..week(&rig, 100, 10)
    };
    let ids = rig.sim.generate(&rig.tenant, spec);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 100);
    let twins: BTreeSet<_> = ids.iter().map(|id| id.get(..17).unwrap()).collect();
    assert!(twins.len() < 80, "{} instants for 100 blobs", twins.len());
    let truth = rig.sim.truth();
    assert!(truth.copies > 100, "{}", truth.copies);
    assert!(truth.events.iter().any(|e| e.content_ids.iter().collect::<BTreeSet<_>>().len() > 1));
    let types: BTreeSet<_> = truth.events.iter().map(|e| e.content_type).collect();
    assert_eq!(types.len(), 5);
    let old = truth.events.iter().filter(|e| String::from_utf8_lossy(&e.raw).contains("2026-04-")).count();
    assert!(old > 0, "events of days before their blobs");
}

#[tokio::test]
async fn everything_served_compares_clean_with_the_truth_copies_aside() {
    let rig = Rig::new().await;
    let spec = GenerateSpec { late_rate: 0.0, copy_rate: 0.2, irregular_rate: 0.6, ..week(&rig, 50, 40) };
    let ids = rig.sim.generate(&rig.tenant, spec);
    let mut raws = Vec::new();
    for id in &ids {
        let body = rig.fetch(id).await.body;
        let events: Vec<Box<serde_json::value::RawValue>> = serde_json::from_slice(&body).unwrap();
        raws.extend(events.iter().map(|event| event.get().to_owned()));
    }
    let truth = rig.sim.truth();
    assert_eq!(raws.len() as u64, truth.event_count() + truth.copies);
    let all = truth.compare(raws.clone());
    assert!(all.lost.is_empty() && all.altered.is_empty() && all.unexpected.is_empty(), "{all}");
    assert!(!all.duplicated.is_empty(), "copies in other blobs are the client's to remove");
    // Without the copies (by the ids, as a client does it) nothing is left to complain of.
    let mut seen = BTreeSet::new();
    raws.retain(|raw| {
        let event: Value = serde_json::from_str(raw).unwrap();
        let key = [&event["Id"], &event["RecordType"], &event["CreationTime"], &event["Operation"]];
        let key = key.map(ToString::to_string).join("|");
        matches!(event["Id"].as_str(), None | Some("")) || seen.insert(key)
    });
    let clean = truth.compare(raws);
    assert!(clean.is_clean(), "{clean}");
}

#[tokio::test]
async fn the_comparison_tells_lost_duplicated_altered_misdated_and_unexpected_apart() {
    let rig = Rig::new().await;
    let names = ["kept", "lost", "twice", "altered", "misdated"];
    let events: Vec<String> = names.iter().map(|name| event(name)).collect();
    rig.add("2026-05-08T11:00:00Z", &events.iter().map(String::as_str).collect::<Vec<_>>());
    let anonymous = r#"{"Operation":"no id"}"#;
    rig.add("2026-05-08T11:00:00Z", &[anonymous]);
    rig.add("2026-05-08T11:30:00Z", &[anonymous]);
    let right = Some(time("2026-05-08T10:00:00Z"));
    let delivered = |raw: String, timestamp| Delivered { raw: raw.into_bytes(), timestamp, ..Delivered::default() };
    let comparison = rig.sim.truth().compare([
        delivered(event("kept").replace("\":\"", "\" :\r\n\""), right),
        delivered(event("twice"), right),
        delivered(event("twice"), None),
        delivered(event("altered").replace("user", "usher"), None),
        delivered(event("misdated"), Some(time("2026-05-08T11:00:00Z"))),
        delivered(event("never made"), None),
        // Without an id and a time: both appearances are due, dated by one of their blobs.
        delivered(anonymous.to_owned(), Some(time("2026-05-08T11:30:00Z"))),
        // Without its bytes: the id alone is compared.
        Delivered { id: Some("kept".to_owned()), ..Delivered::default() },
    ]);
    assert_eq!((comparison.expected, comparison.delivered), (7, 8));
    assert_eq!(comparison.lost.len(), 2, "{:?}", comparison.lost);
    assert_eq!(comparison.lost[0], "lost");
    assert_eq!(comparison.duplicated, ["twice", "kept"]);
    assert_eq!(comparison.altered, ["altered"]);
    assert_eq!(comparison.misdated, ["misdated"]);
    assert_eq!(comparison.unexpected, ["never made"]);
    assert!(!comparison.is_clean());
}

#[tokio::test]
async fn a_copy_with_its_fields_in_another_order_is_the_same_event() {
    let rig = Rig::new().await;
    let reordered = r#"{"Operation":"Update user.","RecordType":8,"Id":"x","CreationTime":"2026-05-08T10:00:00"}"#;
    rig.add("2026-05-08T10:30:00Z", &[&event("x")]);
    rig.add("2026-05-08T11:00:00Z", &[reordered]);
    let truth = rig.sim.truth();
    assert_eq!((truth.events.len(), truth.copies), (1, 1));
    assert!(truth.compare([reordered]).is_clean());
    assert!(truth.compare([event("x")]).is_clean());
}

#[tokio::test]
async fn events_of_two_tenants_are_kept_apart() {
    let other: TenantId = "22222222-2222-3333-4444-555555555555".parse().unwrap();
    let rig = Rig::with(|c| c.tenants.push(other.clone())).await;
    rig.add("2026-05-08T10:30:00Z", &[&event("x")]);
    let blob = NewBlob::at(time("2026-05-08T10:30:00Z")).with_events([event("x")]);
    let id = rig.sim.add_blob(&other, ContentType::General, blob);
    assert_eq!(rig.sim.truth().events.len(), 2);
    let one = rig.sim.truth().compare([Delivered { tenant: Some(other), ..event("x").into() }]);
    assert_eq!(one.lost.len(), 1);
    assert_eq!(rig.fetch(&id).await.code(), "AF20050", "another tenant's blob does not exist for this token");
}
