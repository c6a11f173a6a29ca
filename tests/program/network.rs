//! The ways through an enterprise's network: the real binary behind a CONNECT proxy that opens TLS with an authority of
//! its own and hands everything to the simulated tenant. Which host was asked for is seen at the proxy; no name is
//! resolved and nothing leaves this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use m365_audit::clock::SystemClock;
use m365_audit::config::Cloud;
use m365_audit::model::ContentType;
use m365_audit::sim::{NewBlob, Sim, SimConfig, SubscriptionState};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// `Basic` of `squid user:p@ss word`.
const CREDENTIALS: &str = "Basic c3F1aWQgdXNlcjpwQHNzIHdvcmQ=";

/// A certificate authority of the enterprise.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), pem, der }
    }

    /// A certificate for `name` and its key, PEM.
    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn acceptor(&self, name: &str, clients: Option<&Authority>) -> TlsAcceptor {
        let (certificate, key) = self.issue(name);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority.der.clone()).unwrap();
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What the proxy wants.
#[derive(Default, Clone, Copy)]
struct Wants {
    credentials: bool,
    /// TLS to the proxy itself, with a client certificate.
    mutual_tls: bool,
    /// Listens on `::1`.
    ipv6: bool,
    /// Answers every CONNECT with this and ends.
    answers: Option<&'static str>,
    /// Opens TLS with a certificate that signed itself and says that it is an authority's.
    own: Option<Own>,
}

/// What is wrong with such a certificate, if anything.
#[derive(Clone, Copy, PartialEq)]
enum Own {
    Good,
    WrongName,
    Ended,
    NotYet,
}

/// A certificate for both hosts of the worldwide cloud that signed itself, as `openssl req -x509` makes one.
fn self_signed(own: Own) -> (TlsAcceptor, Vec<u8>) {
    let names = match own {
        Own::WrongName => vec!["other.example".to_owned()],
        _ => vec!["login.microsoftonline.com".to_owned(), "manage.office.com".to_owned()],
    };
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    match own {
        Own::Ended => params.not_after = rcgen::date_time_ymd(2020, 1, 1),
        Own::NotYet => params.not_before = rcgen::date_time_ymd(2090, 1, 1),
        Own::Good | Own::WrongName => {}
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate.der().to_vec())
}

/// A proxy in front of the simulated tenant.
struct Bench {
    /// The certificate that signed itself, DER.
    own: Vec<u8>,
    sim: Sim,
    authority: Arc<Authority>,
    proxy: String,
    asked: Arc<Mutex<Vec<String>>>,
    dir: TempDir,
}

impl Bench {
    async fn new(wants: Wants) -> Self {
        let sim = Sim::start(SimConfig::default(), SystemClock::new()).await.unwrap();
        let tenant = SimConfig::default().tenants[0].clone();
        for content_type in ContentType::ALL {
            sim.set_subscription(&tenant, content_type, SubscriptionState::Enabled);
        }
        let hour_ago = sim.now().checked_sub(jiff::SignedDuration::from_hours(1)).unwrap();
        sim.add_blob(&tenant, ContentType::Exchange, NewBlob::at(hour_ago).with_events(["{\"Id\":\"1\"}"]));
        let authority = Arc::new(Authority::new());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let listener = TcpListener::bind(if wants.ipv6 { "[::1]:0" } else { "127.0.0.1:0" }).await.unwrap();
        let scheme = if wants.mutual_tls { "https" } else { "http" };
        let proxy = format!("{scheme}://{}", listener.local_addr().unwrap());
        let shared = (authority.clone(), asked.clone(), sim.address());
        let (inner, own) = wants.own.map(self_signed).unzip();
        tokio::spawn(async move {
            let outer = wants.mutual_tls.then(|| shared.0.acceptor("127.0.0.1", Some(&shared.0)));
            while let Ok((stream, _)) = listener.accept().await {
                let (authority, asked, sim) = shared.clone();
                let (outer, inner) = (outer.clone(), inner.clone());
                tokio::spawn(async move {
                    match outer {
                        None => connect(stream, (wants, inner), &authority, &asked, sim).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => connect(stream, (wants, inner), &authority, &asked, sim).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { own: own.unwrap_or_default(), sim, authority, proxy, asked, dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// `check` with these lines in the source, and the hosts that were asked for.
    fn check(&self, lines: &str, environment: &[(&str, &str)]) -> (i32, String, Vec<String>) {
        let config = SimConfig::default();
        let text = format!(
            "data_dir = '{}'\n[sources.contoso]\ntype = \"m365_audit\"\ntenant_id = \"{}\"\nclient_id = \"{}\"\n\
             client_secret = \"{}\"\n{lines}\n[sinks.out]\ntype = \"stdout\"\ninputs = [\"contoso\"]\n",
            self.dir.path().join("data").display(),
            config.tenants[0],
            config.client_id,
            config.client_secret,
        );
        self.asked.lock().unwrap().clear();
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        let output = command
            .args(["check", "-c"])
            .arg(self.file("agent.toml", &text))
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let mut asked = self.asked.lock().unwrap().clone();
        asked.dedup();
        (output.status.code().unwrap_or(-1), text, asked)
    }

    fn ca_file(&self) -> String {
        format!("ca_file = '{}'", self.file("ca.pem", &self.authority.pem).display())
    }
}

/// Reads a CONNECT, opens TLS in the host's name, hands the rest to the simulator.
async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    (wants, own): (Wants, Option<TlsAcceptor>),
    authority: &Authority,
    asked: &Mutex<Vec<String>>,
    sim: std::net::SocketAddr,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.split(' ').nth(1)?.to_owned();
    let authorized = head.lines().any(|line| {
        line.split_once(": ")
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case("proxy-authorization") && value == CREDENTIALS)
    });
    if wants.credentials && !authorized {
        stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.ok()?;
        return None;
    }
    asked.lock().unwrap().push(target.clone());
    if let Some(answer) = wants.answers {
        stream.write_all(answer.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()?;
        return None;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    let acceptor = match own {
        Some(own) => own,
        None => authority.acceptor(target.split(':').next()?, None),
    };
    let mut inner = acceptor.accept(stream).await.ok()?;
    let mut upstream = TcpStream::connect(sim).await.ok()?;
    tokio::io::copy_bidirectional(&mut inner, &mut upstream).await.ok()?;
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cloud_is_asked_at_its_own_hosts_and_no_other() {
    let bench = Bench::new(Wants::default()).await;
    for cloud in Cloud::ALL {
        let (authority, api) = match cloud {
            Cloud::Enterprise => ("login.microsoftonline.com", "manage.office.com"),
            Cloud::Gcc => ("login.microsoftonline.com", "manage-gcc.office.com"),
            Cloud::GccHigh => ("login.microsoftonline.us", "manage.office365.us"),
            Cloud::Dod => ("login.microsoftonline.us", "manage.protection.apps.mil"),
            Cloud::China => ("login.partner.microsoftonline.cn", "manage.office365.cn"),
        };
        let name = serde_json::to_value(cloud).unwrap();
        let lines = format!("cloud = {name}\nproxy_url = \"{}\"\n{}", bench.proxy, bench.ca_file());
        let (exit, text, asked) = bench.check(&lines, &[]);
        assert_eq!(exit, 0, "{cloud:?}: {text}");
        assert_eq!(asked, [format!("{authority}:443"), format!("{api}:443")], "{cloud:?}");
        // The simulated API takes a token only for the host that it was asked for.
        assert!(text.contains(&format!("list subscriptions: https://{api} answers")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_with_credentials_is_used_from_the_configuration_and_from_the_environment() {
    let bench = Bench::new(Wants { credentials: true, ..Wants::default() }).await;
    let with_credentials = bench.proxy.replace("http://", "http://squid%20user:p%40ss%20word@");
    let (exit, text, asked) = bench.check(&format!("proxy_url = \"{with_credentials}\"\n{}", bench.ca_file()), &[]);
    assert_eq!((exit, asked.len()), (0, 2), "{text}");
    assert!(!text.contains("p@ss") && !text.contains("p%40ss"), "{text}");

    let environment = [("HTTPS_PROXY", with_credentials.as_str())];
    let (exit, text, asked) = bench.check(&bench.ca_file(), &environment);
    assert_eq!((exit, asked.len()), (0, 2), "{text}");

    let (exit, text, asked) = bench.check(&format!("proxy_url = \"{}\"\n{}", bench.proxy, bench.ca_file()), &[]);
    assert_eq!((exit, asked), (69, Vec::new()), "{text}");
    assert!(text.starts_with("FAIL  contoso: proxy-credentials-missing: "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_proxy_names_is_reached_directly() {
    let bench = Bench::new(Wants::default()).await;
    // The loopback addresses of the tenant are reached directly whatever the proxy is.
    let own = format!("api_url = \"{0}\"\nauthority_url = \"{0}\"", bench.sim.url());
    let (exit, text, asked) = bench.check(&format!("{own}\nproxy_url = \"{}\"", bench.proxy), &[]);
    assert_eq!((exit, asked), (0, Vec::new()), "{text}");
    // An address that is not called loopback and leads to this machine, where nobody listens.
    let authority = "authority_url = \"https://0.0.0.0:1\"";
    for (lines, environment) in [
        ("no_proxy = [\"other.example\", \"0.0.0.0\"]", vec![]),
        ("no_proxy = [\"0.0.0.0/8\"]", vec![]),
        ("no_proxy = [\"*\"]", vec![]),
        ("", vec![("NO_PROXY", "0.0.0.0")]),
    ] {
        for proxy in [format!("proxy_url = \"{}\"", bench.proxy), String::new()] {
            let mut environment = environment.clone();
            environment.push(("HTTPS_PROXY", bench.proxy.as_str()));
            let lines = format!("{authority}\n{proxy}\n{lines}\n{}", bench.ca_file());
            let (exit, text, asked) = bench.check(&lines, &environment);
            assert_eq!((exit, asked), (69, Vec::new()), "{lines}: {text}");
        }
    }
    let lines =
        format!("{authority}\nproxy_url = \"{}\"\nno_proxy = [\"other.example\"]\n{}", bench.proxy, bench.ca_file());
    let (_, text, asked) = bench.check(&lines, &[("NO_PROXY", "0.0.0.0")]);
    assert_eq!(asked.first().map(String::as_str), Some("0.0.0.0:1"), "the key stands in place of the variable: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_opens_tls_needs_its_authority_and_the_message_says_so() {
    let bench = Bench::new(Wants::default()).await;
    let (exit, text, _) = bench.check(&format!("proxy_url = \"{}\"", bench.proxy), &[]);
    assert_eq!(exit, 69, "{text}");
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("FAIL  contoso: tls-untrusted: "), "{text}");
    assert!(lines.next().unwrap().contains("`ca_file`"), "{text}");

    let broken = bench.file("broken.pem", "no certificate");
    let (exit, text, _) = bench.check(&format!("ca_file = '{}'", broken.display()), &[]);
    assert!(exit != 0 && text.contains("api-client-settings"), "{text}");
    let (exit, text, _) = bench.check("ca_file = '/nowhere/ca.pem'", &[]);
    assert_eq!(exit, 78, "{text}");
    assert!(text.starts_with("config-invalid: `sources.contoso.ca_file` is `/nowhere/ca.pem`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_shown_to_a_proxy_that_asks_for_one() {
    let bench = Bench::new(Wants { mutual_tls: true, ..Wants::default() }).await;
    let (certificate, key) = bench.authority.issue("agent.example");
    let proxy = format!("proxy_url = \"{}\"\n{}", bench.proxy, bench.ca_file());
    let (exit, text, _) = bench.check(&proxy, &[]);
    assert_eq!(exit, 69, "without one the proxy refuses: {text}");
    let shown = |path: &Path| path.display().to_string();
    let two = (bench.file("c.pem", certificate.pem()), bench.file("k.pem", key.serialize_pem()));
    let one = bench.file("both.pem", &(certificate.pem() + &key.serialize_pem()));
    for keys in [
        format!("proxy_certificate_file = '{}'\nproxy_key_file = '{}'", shown(&two.0), shown(&two.1)),
        format!("proxy_certificate_file = '{}'", shown(&one)),
    ] {
        let (exit, text, asked) = bench.check(&format!("{proxy}\n{keys}"), &[]);
        assert_eq!((exit, asked.len()), (0, 2), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_may_have_an_address_of_version_6() {
    if let Err(error) = std::net::TcpListener::bind("[::1]:0") {
        return test_support::skip("ipv6", error);
    }
    let bench = Bench::new(Wants { ipv6: true, ..Wants::default() }).await;
    let (exit, text, asked) = bench.check(&format!("proxy_url = \"{}\"\n{}", bench.proxy, bench.ca_file()), &[]);
    assert_eq!((exit, asked.len()), (0, 2), "{text}");
}

/// What a proxy says instead of a connection: forbidden, in trouble, or no proxy at all, each with its address and words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxys_refusal_is_told_from_its_trouble_with_its_address_and_its_words() {
    #[rustfmt::skip]
    let table = [
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\noverloaded", "proxy-unavailable", "503 Service Unavailable: overloaded"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n<html><h1>no such host</h1></html>", "proxy-unavailable", "502 Bad Gateway: no such host"),
        ("HTTP/1.0 504 Gateway Timeout\r\n\r\n", "proxy-unavailable", "504 Gateway Timeout"),
        ("HTTP/1.1 429 Too Many Requests\r\n\r\n", "proxy-unavailable", "429 Too Many Requests"),
        ("HTTP/1.1 500 Oops\r\n\r\n", "proxy-unavailable", "500 Oops"),
        ("", "proxy-unavailable", "it closed the connection without an answer"),
        ("HTTP/1.1 403 Forbidden\r\n\r\nby policy 7", "proxy-refused", "403 Forbidden: by policy 7"),
        ("HTTP/1.1 302 Found\r\nLocation: http://portal.example/login?s=1\r\n\r\n", "proxy-refused", "to http://portal.example/login"),
        ("HTTP/1.1 405 Method Not Allowed\r\n\r\n", "proxy-refused", "405 Method Not Allowed"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n\r\n", "proxy-credentials-missing", "407"),
        ("SSH-2.0-OpenSSH_9.9\r\n", "proxy-not-http", "SSH-2.0-OpenSSH_9.9"),
    ];
    for (answers, slug, words) in table {
        let bench = Bench::new(Wants { answers: Some(answers), ..Wants::default() }).await;
        let (exit, text, asked) = bench.check(&format!("proxy_url = \"{}\"\n{}", bench.proxy, bench.ca_file()), &[]);
        assert_eq!(exit, 69, "{answers:?}: {text}");
        assert!(text.starts_with(&format!("FAIL  contoso: {slug}: ")), "{answers:?}: {text}");
        assert!(text.contains(words), "{answers:?}: {text}");
        if slug != "proxy-credentials-missing" {
            assert!(text.contains(&bench.proxy), "its address: {text}");
        }
        assert_eq!(asked, ["login.microsoftonline.com:443"], "{text}");
    }
}

/// Credentials that are configured and refused are not missing, and are not shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_the_configured_credentials_is_told_from_one_that_wants_some() {
    let bench = Bench::new(Wants { credentials: true, ..Wants::default() }).await;
    let wrong = bench.proxy.replace("http://", "http://squid%20user:hunter2@");
    for (lines, environment) in [
        (format!("proxy_url = \"{wrong}\"\n{}", bench.ca_file()), vec![]),
        (bench.ca_file(), vec![("HTTPS_PROXY", wrong.as_str())]),
        (format!("no_proxy = [\"other.example\"]\n{}", bench.ca_file()), vec![("HTTPS_PROXY", wrong.as_str())]),
    ] {
        let (exit, text, asked) = bench.check(&lines, &environment);
        assert_eq!((exit, asked), (69, Vec::new()), "{text}");
        assert!(text.starts_with("FAIL  contoso: proxy-credentials-refused: "), "{text}");
        assert!(!text.contains("hunter2") && text.contains(&bench.proxy), "{text}");
    }
}

/// A server's own certificate in `ca_file`: trusted for its names while it is valid, and for nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_signed_itself_is_trusted_for_what_it_says_and_no_more() {
    for (own, slug) in [
        (Own::Good, None),
        (Own::WrongName, Some("tls-wrong-name")),
        (Own::Ended, Some("tls-time")),
        (Own::NotYet, Some("tls-time")),
    ] {
        let bench = Bench::new(Wants { own: Some(own), ..Wants::default() }).await;
        let ca = format!("ca_file = '{}'", bench.file("own.der", &bench.own).display());
        let (exit, text, _) = bench.check(&format!("proxy_url = \"{}\"\n{ca}", bench.proxy), &[]);
        match slug {
            None => assert_eq!(exit, 0, "{text}"),
            Some(slug) => assert!(exit == 69 && text.starts_with(&format!("FAIL  contoso: {slug}: ")), "{text}"),
        }
        assert!(!text.contains("OtherError") && !text.contains("CaUsedAsEndEntity"), "{text}");
    }
    // Another certificate in the file does not help.
    let bench = Bench::new(Wants { own: Some(Own::Good), ..Wants::default() }).await;
    let (exit, text, _) = bench.check(&format!("proxy_url = \"{}\"\n{}", bench.proxy, bench.ca_file()), &[]);
    assert!(exit == 69 && text.starts_with("FAIL  contoso: tls-untrusted: "), "{text}");
}

/// `ca_file` in the forms authorities are handed out in, and what is none in words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_authorities_is_read_in_every_form_and_what_is_none_is_named() {
    let bench = Bench::new(Wants::default()).await;
    let pem = bench.authority.pem.clone();
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(pem.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    for (what, content) in [
        ("DER", bench.authority.der.to_vec()),
        ("a byte order mark", format!("\u{feff}{pem}").into_bytes()),
        ("UTF-16", utf16),
        ("line breaks of Windows", pem.replace('\n', "\r\n").into_bytes()),
    ] {
        let ca = format!("ca_file = '{}'", bench.file("ca", content).display());
        let (exit, text, _) = bench.check(&format!("proxy_url = \"{}\"\n{ca}", bench.proxy), &[]);
        assert_eq!(exit, 0, "{what}: {text}");
    }
    let key = KeyPair::generate().unwrap().serialize_pem();
    for (content, words) in [
        (String::new(), "is empty"),
        (key, "holds a private key and no certificate"),
        ("no certificate".to_owned(), "is neither PEM nor a PFX"),
    ] {
        let ca = format!("ca_file = '{}'", bench.file("ca", content).display());
        let (exit, text, _) = bench.check(&format!("proxy_url = \"{}\"\n{ca}", bench.proxy), &[]);
        assert!(exit != 0 && text.contains("api-client-settings") && text.contains(words), "{words}: {text}");
    }
}
