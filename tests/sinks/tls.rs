//! Mutual TLS on the loopback interface, for each sink that uses the network: which client certificate is shown, when its
//! files are read, and what is said when it is refused or cannot be used.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use m365_audit::clock::{Clock, SystemClock};
use m365_audit::hosts::embedded::sink::Written;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::truth::{Received, batch, sink};
use crate::{forward, http, otlp};

/// The sinks that use the network, one for each transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http,
    OtlpHttp,
    OtlpGrpc,
    FluentForward,
}

pub const KINDS: [Kind; 4] = [Kind::Http, Kind::OtlpHttp, Kind::OtlpGrpc, Kind::FluentForward];

impl Kind {
    /// A table of this kind into `address`, `host:port`.
    pub fn table(self, scheme: &str, address: &str, more: &str) -> String {
        match self {
            Self::Http => format!("type = \"http\"\nuri = \"{scheme}://{address}/in\"\n{more}\n"),
            Self::OtlpHttp => {
                format!("type = \"otlp\"\nendpoint = \"{scheme}://{address}\"\nprotocol = \"http\"\n{more}\n")
            }
            Self::OtlpGrpc => format!("type = \"otlp\"\nendpoint = \"{scheme}://{address}\"\n{more}\n"),
            Self::FluentForward => {
                let tls = scheme == "https";
                format!("type = \"fluent_forward\"\nservers = [\"{address}\"]\ntls = {tls}\n{more}\n")
            }
        }
    }

    /// A receiver that takes everything, and what it got.
    pub async fn receiver(self) -> (u16, Received) {
        match self {
            Self::Http => http::taking().await,
            Self::OtlpHttp => otlp::taking(false).await,
            Self::OtlpGrpc => otlp::taking(true).await,
            Self::FluentForward => forward::taking().await,
        }
    }

    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::OtlpGrpc => vec![b"h2".to_vec()],
            _ => Vec::new(),
        }
    }
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    der: CertificateDer<'static>,
}

/// PEM of a certificate and of its key.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Each has a name of its own, so that none is taken for another.
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), pem, der }
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    pub fn pair(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let (certificate, key) = self.issue(change);
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// TLS in front of a receiver that has none. `clients`: who may connect; nobody is asked without.
    pub async fn front(&self, backend: u16, alpn: Vec<Vec<u8>>, clients: Option<&Authority>) -> u16 {
        let (certificate, key) = self.issue(|_| {});
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
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = alpn;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(pass_on(acceptor.clone(), tcp, backend));
            }
        });
        port
    }
}

async fn pass_on(acceptor: TlsAcceptor, tcp: TcpStream, backend: u16) {
    match acceptor.accept(tcp).into_fallible().await {
        Ok(mut stream) => {
            let Ok(mut behind) = TcpStream::connect(("127.0.0.1", backend)).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
        }
        // What the client sent already is read: a socket closed over unread bytes takes the alert back.
        Err((_, mut tcp)) => {
            let _ = tcp.shutdown().await;
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        }
    }
}

/// Files in a folder of their own.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn key(name: &str, path: &Path) -> String {
    format!("{name} = \"{}\"\n", path.display())
}

/// What a sink of this table says of one record.
async fn sent(table: &str) -> Written {
    let clock: Arc<dyn Clock> = SystemClock::new();
    let mut sink = sink(table, &clock);
    sink.write(&[batch(&["{\"event_id\":\"1\"}"])]).await.remove(0)
}

/// The receiver's alert or, where the library sees the end of the connection before it reads that, the end.
const UNKNOWN: &str = "UnknownCA|closed the connection before it answered";

/// Whether one of the alternatives stands in `why`.
fn says(why: &str, alternatives: &str) -> bool {
    alternatives.split('|').any(|words| why.contains(words))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_network_sink_shows_its_client_certificate_and_says_why_one_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = Files::new();
    let ca = key("ca_file", &files.write("ca.pem", &authority.pem));
    let pair = |name: &str, pair: Pair| {
        key("client_certificate_file", &files.write(&format!("{name}.pem"), pair.certificate))
            + &key("client_key_file", &files.write(&format!("{name}.key"), pair.key))
    };
    let good = authority.pair(|_| {});
    let one = good.key.clone() + &authority.pem + &good.certificate;
    let ended = authority.pair(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let cases = [
        ("", &["CertificateRequired|closed the connection before it answered", "`client_certificate_file`"][..]),
        (&pair("good", good), &[]),
        // In one file, and its own certificate behind its authority's.
        (&key("client_certificate_file", &files.write("one.pem", one)), &[]),
        (&pair("foreign", other.pair(|_| {})), &[UNKNOWN, "not accept the client certificate"]),
        (
            &pair("ended", ended),
            &[
                "CertificateExpired|closed the connection before it answered",
                "ended.pem` ended at 2020-01-01T00:00:00Z",
            ],
        ),
    ];
    for kind in KINDS {
        let (backend, received) = kind.receiver().await;
        let port = authority.front(backend, kind.alpn(), Some(&authority)).await;
        for (keys, said) in &cases {
            let before = received.count();
            let written = sent(&kind.table("https", &format!("127.0.0.1:{port}"), &format!("{ca}{keys}"))).await;
            match said {
                [] => {
                    assert_eq!(written, Written::Delivered, "{kind:?} {keys}");
                    assert_eq!(received.count(), before + 1);
                }
                said => {
                    let why = written.why().unwrap_or_default();
                    assert!(said.iter().all(|words| says(why, words)), "{kind:?} {keys}: {why}");
                    assert!(matches!(written, Written::Refused { .. } | Written::Unclear(_)), "{written:?}");
                    assert_eq!(received.count(), before);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_is_replaced_is_shown_by_the_next_connection() {
    let (authority, other) = (Authority::new(), Authority::new());
    let clock: Arc<dyn Clock> = SystemClock::new();
    for kind in KINDS {
        let files = Files::new();
        let old = other.pair(|_| {});
        let keys = key("ca_file", &files.write("ca.pem", &authority.pem))
            + &key("client_certificate_file", &files.write("c.pem", old.certificate))
            + &key("client_key_file", &files.write("c.key", old.key));
        let (backend, received) = kind.receiver().await;
        let port = authority.front(backend, kind.alpn(), Some(&authority)).await;
        let mut sink = sink(&kind.table("https", &format!("127.0.0.1:{port}"), &keys), &clock);
        let group = [batch(&["{\"event_id\":\"1\"}"])];
        let written = sink.write(&group).await.remove(0);
        assert!(written.why().is_some_and(|why| says(why, UNKNOWN)), "{kind:?}: {written:?}");

        // Half of the pair is there: the old one is shown, and the words say what waits.
        let new = authority.pair(|_| {});
        files.write("c.pem", new.certificate);
        let written = sink.write(&group).await.remove(0);
        let why = written.why().unwrap_or_default();
        assert!(says(why, UNKNOWN) && why.contains("does not belong to the certificate"), "{kind:?}: {why}");

        files.write("c.key", new.key);
        assert_eq!(sink.write(&group).await, [Written::Delivered], "{kind:?}");
        assert_eq!(received.count(), 1, "{kind:?}");
    }
}

fn program(command: &str, config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_m365-audit")).args([command, "-c"]).arg(config).output().unwrap()
}

#[test]
fn files_that_cannot_be_used_are_named_at_validate_and_at_the_start_with_the_remedy() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = Files::new();
    let (good, foreign) = (authority.pair(|_| {}), other.pair(|_| {}));
    let ended = authority.pair(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = authority.pair(|params| params.not_before = rcgen::date_time_ymd(2090, 1, 1));
    let certificate = key("client_certificate_file", &files.write("good.pem", &good.certificate));
    let with = |name: &str, content: &[u8]| key("client_certificate_file", &files.write(name, content));
    let both = |pair: &Pair| (pair.certificate.clone() + &pair.key).into_bytes();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let secret = |name: &str, content: &str| certificate.clone() + &key("client_key_file", &files.write(name, content));
    // What is written, what is said, the remedy, and whether the program does not start with it.
    let cases = [
        (secret("foreign.key", &foreign.key), "does not belong to the certificate", "issued together", true),
        (secret("encrypted.key", encrypted), "encrypted.key` is encrypted", "openssl pkey -in", true),
        (secret("empty.key", ""), "empty.key` is empty", "is PEM", true),
        (certificate.clone(), "good.pem` holds no private key", "`client_key_file`", true),
        (with("only.key", good.key.as_bytes()), "only.key` holds no certificate", "is PEM", true),
        (with("client.pfx", &[0x30, 3, 2, 1, 3]), "client.pfx` is a PFX", "openssl pkcs12 -in", true),
        (with("cut.pem", b"-----BEGIN CERTIFICATE-----\nMII"), "the file is cut", "is PEM", true),
        (with("ended.pem", &both(&ended)), "ended.pem` ended at 2020-01-01T00:00:00Z", "put its successor", false),
        (with("early.pem", &both(&early)), "is valid from 2090-01-01T00:00:00Z on", "clock", false),
        (
            key("ca_file", &files.write("ca.pem", &good.key)),
            "holds a private key and no certificate",
            "`ca_file`",
            true,
        ),
    ];
    for kind in KINDS {
        for (keys, said, remedy, is_fatal) in &cases {
            let sink = kind.table("https", "127.0.0.1:1", keys);
            let text = format!(
                "data_dir = \"{}\"\n[sources.s]\ntype = \"m365_audit\"\nclient_secret = \"x\"\nclient_id = \"x\"\n\
                 tenant_id = \"11111111-2222-3333-4444-555555555555\"\n[sinks.out]\ninputs = [\"s\"]\n{sink}",
                files.0.path().join("state").display()
            );
            let config = files.write("agent.toml", text);
            let commands: &[&str] = if *is_fatal { &["validate", "run"] } else { &["validate"] };
            for command in commands {
                let output = program(command, &config);
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(78), "{command} {kind:?} {keys}: {told}");
                assert!(told.contains(said) && told.contains(remedy), "{command} {kind:?} {keys}: {told}");
                if *command == "validate" {
                    assert!(told.contains("config-invalid: `sinks.out."), "{told}");
                }
            }
        }
    }
}

#[test]
fn a_client_certificate_without_tls_or_a_key_without_a_certificate_is_a_problem() {
    let files = Files::new();
    let pem = files.write("x.pem", "x");
    for kind in KINDS {
        for (scheme, keys, said) in [
            ("http", key("client_certificate_file", &pem), "without TLS nobody asks for a certificate"),
            ("https", key("client_key_file", &pem), "`client_certificate_file` beside it"),
            ("https", key("client_certificate_file", Path::new("/nowhere.pem")), "a file that can be read"),
        ] {
            let text = format!(
                "[sources.s]\ntype = \"m365_audit\"\nclient_secret = \"x\"\nclient_id = \"x\"\n\
                 tenant_id = \"11111111-2222-3333-4444-555555555555\"\n[sinks.out]\ninputs = [\"s\"]\n{}",
                kind.table(scheme, "127.0.0.1:1", &keys)
            );
            let error = m365_audit::config::Config::parse(&text, &|_| None).unwrap_err().to_string();
            assert!(error.contains(said), "{kind:?}: {error}");
        }
    }
}
