//! Every way to sign in, the real client against the simulated tenant: what it sends is verified there, signatures
//! included.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use m365_audit::api::{
    ApiClient, ApiError, ApiSettings, CertificateFiles, Credential, EndpointVersion, ManagedIdentity, SecretText,
};
use m365_audit::clock::TestClock;
use m365_audit::config::{AssertionAlgorithm, IdentityHost};
use m365_audit::model::{Actionable as _, Timestamp, Window};
use m365_audit::sim::{CallKind, FederatedCredential, MachineIdentity, Sim, SimConfig};
use rcgen::{CertificateParams, KeyPair};
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::json;
use tempfile::TempDir;
use url::Url;

const NOON: &str = "2026-05-08T12:00:00Z";
const PASSPHRASE: &str = "fixture-passphrase";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/auth").join(name)
}

fn der(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

/// A simulated tenant that knows the test certificate, and a place for files.
struct Bench {
    sim: Sim,
    clock: TestClock,
    dir: TempDir,
}

impl Bench {
    async fn new(change: impl FnOnce(&mut SimConfig)) -> Self {
        let clock = TestClock::at(NOON.parse().unwrap());
        let mut config = SimConfig {
            certificates: vec![der(&fs::read_to_string(fixture("client.pem")).unwrap())],
            token_lifetime_secs: 3600,
            ..SimConfig::default()
        };
        change(&mut config);
        let sim = Sim::start(config, Arc::new(clock.clone())).await.unwrap();
        Self { sim, clock, dir: tempfile::tempdir().unwrap() }
    }

    fn settings(&self, credential: Credential) -> ApiSettings {
        let config = SimConfig::default();
        let url = Url::parse(&self.sim.url()).unwrap();
        let client_id = config.client_id;
        ApiSettings { client_id, ..ApiSettings::at(&url, config.tenants[0].clone(), credential) }
    }

    fn client(&self, credential: Credential) -> ApiClient {
        ApiClient::new(self.settings(credential), Arc::new(self.clock.clone())).unwrap()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn exchanges(&self, kind: CallKind) -> usize {
        self.sim.requests().iter().filter(|request| request.kind == kind).count()
    }

    /// The token is asked for with `credential`, and the feed takes it.
    async fn signs_in(&self, credential: Credential) -> Result<(), ApiError> {
        self.client(credential).list_subscriptions().await.map(drop)
    }
}

fn files(certificate_file: PathBuf) -> CertificateFiles {
    CertificateFiles {
        certificate_file,
        key_file: None,
        key_passphrase: None,
        key_passphrase_file: None,
        algorithm: AssertionAlgorithm::Ps256,
    }
}

fn certificate(files: CertificateFiles) -> Credential {
    Credential::Certificate(Box::new(files))
}

/// Another certificate for the test key.
fn other_certificate() -> (String, Vec<u8>) {
    let key = KeyPair::from_pem(&fs::read_to_string(fixture("client.key")).unwrap()).unwrap();
    let certificate = CertificateParams::new(vec!["other.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), certificate.der().to_vec())
}

#[tokio::test]
async fn a_client_certificate_signs_in_from_every_form_of_file_and_with_both_algorithms() {
    let bench = Bench::new(|_| {}).await;
    let (pem, key) = (fs::read(fixture("client.pem")).unwrap(), fs::read(fixture("client.key")).unwrap());
    let both = bench.file("both.pem", [key.clone(), pem.clone()].concat());
    let passphrase_file = bench.file("passphrase", format!("{PASSPHRASE}\n"));
    let passphrase = Some(SecretText::from(PASSPHRASE));
    for (what, files) in [
        ("one PEM", files(both.clone())),
        ("two PEMs", CertificateFiles { key_file: Some(fixture("client.key")), ..files(fixture("client.pem")) }),
        (
            "an encrypted key",
            CertificateFiles {
                key_file: Some(fixture("client.encrypted.key")),
                key_passphrase: passphrase.clone(),
                ..files(fixture("client.pem"))
            },
        ),
        ("PFX", CertificateFiles { key_passphrase: passphrase.clone(), ..files(fixture("client.pfx")) }),
        ("an old PFX", CertificateFiles { key_passphrase: passphrase, ..files(fixture("client.legacy.pfx")) }),
        (
            "the passphrase in a file",
            CertificateFiles { key_passphrase_file: Some(passphrase_file), ..files(fixture("client.pfx")) },
        ),
        ("RS256", CertificateFiles { algorithm: AssertionAlgorithm::Rs256, ..files(both) }),
    ] {
        bench.signs_in(certificate(files)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert_eq!(bench.exchanges(CallKind::Token), 7, "each with one exchange");
}

/// `text` as Windows PowerShell writes it.
fn utf16(text: &str) -> Vec<u8> {
    [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
}

/// The forms of a PFX, PEM and DER in which they leave Key Vault, Kubernetes, Windows and pipelines.
#[tokio::test]
async fn a_certificate_signs_in_however_it_was_handed_out() {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let bench = Bench::new(|_| {}).await;
    let vault = fs::read_to_string(fixture("keyvault.txt")).unwrap();
    let pfx = STANDARD.decode(&vault).unwrap();
    let lines: String =
        vault.as_bytes().chunks(64).map(|line| format!("{}\r\n", String::from_utf8_lossy(line))).collect();
    let (pem, key) =
        (fs::read_to_string(fixture("client.pem")).unwrap(), fs::read_to_string(fixture("client.key")).unwrap());
    let both = format!("{key}{pem}");
    let json = |value: &str, kind: &str| {
        json!({"id": "https://v.example/secrets/c/1", "value": value, "contentType": kind}).to_string()
    };
    let rsa = pkcs8_to_pkcs1(&der(&key));
    let pkcs1 = format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n", STANDARD.encode(&rsa));
    let (chain, _) = other_authority();
    #[rustfmt::skip]
    type Form = (&'static str, Vec<u8>, Option<Vec<u8>>);
    let table: Vec<Form> = vec![
        ("a PFX without a password", pfx.clone(), None),
        ("Key Vault's secret", vault.clone().into_bytes(), None),
        ("with line breaks of Windows", lines.into_bytes(), None),
        ("with a byte order mark", format!("\u{feff}{vault}\n").into_bytes(), None),
        ("in UTF-16", utf16(&vault), None),
        ("in base64 for URLs", URL_SAFE.encode(&pfx).into_bytes(), None),
        ("without its signs at the end", vault.trim_end_matches('=').into(), None),
        ("in base64 twice, as a Secret of Kubernetes was filled", STANDARD.encode(&vault).into_bytes(), None),
        ("a text of JSON", format!("\"{vault}\"\n").into_bytes(), None),
        ("Key Vault's JSON", json(&vault, "application/x-pkcs12").into_bytes(), None),
        ("Key Vault's JSON with PEM", json(&both, "application/x-pem-file").into_bytes(), None),
        ("Key Vault's JSON in UTF-16", utf16(&json(&vault, "application/x-pkcs12")), None),
        ("PEM, the certificate first", format!("{pem}{key}").into_bytes(), None),
        ("PEM, with a chain on both sides", format!("{chain}{both}{chain}").into_bytes(), None),
        (
            "PEM with line breaks of Windows and a mark",
            format!("\u{feff}{}", both.replace('\n', "\r\n")).into_bytes(),
            None,
        ),
        ("PEM in UTF-16", utf16(&both), None),
        (
            "PEM with words between",
            format!("Bag Attributes\n    friendlyName: x\n{pem}subject=CN = x\n{key}").into_bytes(),
            None,
        ),
        ("PEM whose line breaks are two signs", both.replace('\n', "\\n").into_bytes(), None),
        ("PEM on one line", both.replace('\n', " ").into_bytes(), None),
        ("PEM in base64", STANDARD.encode(&both).into_bytes(), None),
        ("PEM with the old form of key", format!("{pem}{pkcs1}").into_bytes(), None),
        ("DER and DER", der(&pem), Some(der(&key))),
        ("DER and the old form of key", der(&pem), Some(rsa.clone())),
        ("DER and PEM", der(&pem), Some(key.clone().into_bytes())),
        ("PEM and DER", pem.clone().into_bytes(), Some(der(&key))),
        ("the two files the other way round", key.clone().into_bytes(), Some(pem.clone().into_bytes())),
        ("both files with everything", both.clone().into_bytes(), Some(der(&pem))),
    ];
    for (what, content, key) in table {
        let key_file = key.map(|bytes| bench.file("key", bytes));
        let files = CertificateFiles { key_file, ..files(bench.file("certificate", content)) };
        bench.signs_in(certificate(files)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// The RSA key inside PKCS#8: its last element.
fn pkcs8_to_pkcs1(der: &[u8]) -> Vec<u8> {
    let inner = (1..der.len()).map(|at| &der[at..]).find(|rest| RsaKeyPair::from_der(rest).is_ok());
    inner.unwrap().to_vec()
}

/// A certificate of another key, to stand in a chain.
fn other_authority() -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    (CertificateParams::new(vec!["authority.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem(), key)
}

#[tokio::test]
async fn what_is_no_certificate_with_its_key_is_named_with_what_helps() {
    let bench = Bench::new(|_| {}).await;
    let (pem, key) =
        (fs::read_to_string(fixture("client.pem")).unwrap(), fs::read_to_string(fixture("client.key")).unwrap());
    let section = |label: &str, der: &[u8]| {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").into_bytes()
    };
    let ec = KeyPair::generate().unwrap();
    let request = CertificateParams::new(vec!["x.example".to_owned()]).unwrap().serialize_request(&ec).unwrap();
    let ec_certificate = CertificateParams::new(vec!["x.example".to_owned()]).unwrap().self_signed(&ec).unwrap().pem();
    #[rustfmt::skip]
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("holds no private key but a certificate alone", pem.clone().into_bytes()),
        ("holds no private key but a certificate alone", der(&pem)),
        ("holds a private key and no certificate", key.clone().into_bytes()),
        ("not RSA", format!("{ec_certificate}{}", ec.serialize_pem()).into_bytes()),
        ("EC key", section("EC PRIVATE KEY", &[0x30, 0x03, 0x02, 0x01, 0x01])),
        ("a request for a certificate", request.pem().unwrap().into_bytes()),
        ("a request for a certificate", request.der().to_vec()),
        ("a public key alone", section("PUBLIC KEY", &[0x30, 0x00])),
        ("a key for SSH", section("OPENSSH PRIVATE KEY", b"openssh-key-v1\0")),
        ("a public key for SSH", b"ssh-rsa AAAAB3NzaC1yc2E= me@host\n".to_vec()),
        ("PuTTY", b"PuTTY-User-Key-File-3: ssh-rsa\n".to_vec()),
        ("PKCS#7", section("PKCS7", &[0x30, 0x00])),
        ("PKCS#7", [&[0x30, 0x0d, 0x06, 0x09][..], b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x00"].concat()),
        ("keytool -importkeystore", b"\xfe\xed\xfe\xed\0\0\0\x02".to_vec()),
        ("is empty", b"\xef\xbb\xbf\r\n".to_vec()),
        ("without its end: the file is cut", pem.as_bytes()[..pem.len() - 40].to_vec()),
        ("encrypted the old way", b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n".to_vec()),
        ("set `key_passphrase`", fs::read(fixture("client.encrypted.key")).unwrap()),
        ("does not open without a password", fs::read(fixture("client.pfx")).unwrap()),
        ("az keyvault secret download", br#"{"cer":"MIIC","kid":"x"}"#.to_vec()),
        ("JSON Web Key", br#"{"kty":"RSA","n":"x"}"#.to_vec()),
        ("Kubernetes Secret", br#"{"kind":"Secret","data":{"tls.crt":"x"}}"#.to_vec()),
        ("neither PEM nor a PFX", b"hello world, no certificate".to_vec()),
    ];
    for (expected, content) in table {
        let error = bench.signs_in(certificate(files(bench.file("certificate", &content)))).await.unwrap_err();
        let text = error.to_string();
        assert!(error.slug() == "auth-certificate-unusable" && text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test]
async fn the_first_version_of_the_end_point_takes_a_certificate_too() {
    let bench = Bench::new(|_| {}).await;
    let key_file = Some(fixture("client.key"));
    let credential = certificate(CertificateFiles { key_file, ..files(fixture("client.pem")) });
    let settings = ApiSettings { token_endpoint: EndpointVersion::V1, ..bench.settings(credential) };
    let client = ApiClient::new(settings, Arc::new(bench.clock.clone())).unwrap();
    client.list_subscriptions().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_an_hour_off_signs_in_by_the_authoritys_time() {
    for offset in [3600, -3600] {
        let bench = Bench::new(|config| config.clock_offset_secs = offset).await;
        let key_file = Some(fixture("client.key"));
        let client = bench.client(certificate(CertificateFiles { key_file, ..files(fixture("client.pem")) }));
        client.list_subscriptions().await.unwrap();
        assert_eq!(bench.exchanges(CallKind::Token), 2, "refused once (AADSTS700024), then by the right time");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_registered_is_refused_and_its_successor_in_the_file_is_used_at_once() {
    let bench = Bench::new(|_| {}).await;
    let (other, other_der) = other_certificate();
    let file = bench.file("client.pem", &other);
    let client = bench.client(certificate(CertificateFiles { key_file: Some(fixture("client.key")), ..files(file) }));
    let error = client.list_subscriptions().await.unwrap_err();
    assert_eq!(error.slug(), "auth-certificate-refused");
    let sha1 = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &other_der);
    let thumbprint: String = sha1.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    assert!(error.to_string().contains(&thumbprint), "{error}");
    assert_eq!(client.list_subscriptions().await.unwrap_err().slug(), "auth-certificate-refused");
    assert_eq!(bench.exchanges(CallKind::Token), 1, "the same certificate is not tried again at once");

    bench.file("client.pem", fs::read(fixture("client.pem")).unwrap());
    client.list_subscriptions().await.unwrap();
    assert_eq!(bench.exchanges(CallKind::Token), 2);

    // And back, while the old token serves: the new one is asked for with what the file holds then.
    bench.sim.configure(|config| config.certificates = vec![other_der]);
    bench.file("client.pem", &other);
    bench.clock.advance(Duration::from_secs(3601));
    client.list_subscriptions().await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_told_before_anybody_is_asked() {
    let bench = Bench::new(|_| {}).await;
    let elliptic = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["elliptic.example".to_owned()]).unwrap();
    let elliptic_pem = params.self_signed(&elliptic).unwrap().pem();
    let elliptic_key = bench.file("elliptic.key", elliptic.serialize_pem());
    let elliptic_certificate = bench.file("elliptic.pem", elliptic_pem);
    let with_key = |certificate: PathBuf, key: PathBuf| CertificateFiles { key_file: Some(key), ..files(certificate) };
    let wrong = Some(SecretText::from("wrong-passphrase"));
    for (files, words) in [
        (files("/nowhere/client.pem".into()), "cannot be read"),
        (files(bench.file("empty", "")), "is empty"),
        (files(bench.file("noise", "noise")), "neither PEM nor a PFX"),
        (files(fixture("client.pem")), "holds no private key"),
        (files(fixture("client.key")), "no certificate"),
        (with_key(elliptic_certificate, fixture("client.key")), "does not belong to the certificate"),
        (with_key(fixture("client.pem"), elliptic_key), "not RSA"),
        (with_key(fixture("client.pem"), fixture("client.encrypted.key")), "set `key_passphrase`"),
        (
            CertificateFiles {
                key_passphrase: wrong.clone(),
                ..with_key(fixture("client.pem"), fixture("client.encrypted.key"))
            },
            "is `key_passphrase` right?",
        ),
        (CertificateFiles { key_passphrase: wrong, ..files(fixture("client.pfx")) }, "`key_passphrase` right?"),
        (with_key(fixture("client.pfx"), fixture("client.key")), "leave out `key_file`"),
    ] {
        let error = bench.signs_in(certificate(files)).await.unwrap_err();
        assert_eq!(error.slug(), "auth-certificate-unusable", "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(!format!("{error} {error:?}").contains("wrong-passphrase"), "{error:?}");
    }
    assert_eq!(bench.exchanges(CallKind::Token), 0);
}

/// A token of an outside issuer that ends at `end`.
fn outside_token(subject: &str, end: Timestamp) -> String {
    let key = RsaKeyPair::from_pkcs8(&der(&fs::read_to_string(fixture("client.key")).unwrap())).unwrap();
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "iss": "https://issuer.example", "aud": "api://AzureADTokenExchange", "sub": subject, "exp": end.as_second(),
    });
    let signed = format!("{}.{}", part(json!({"alg": "RS256"})), part(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &ring::rand::SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_federated_token_is_read_again_for_each_exchange_and_its_claims_are_shown_when_they_do_not_match() {
    let bench = Bench::new(|config| {
        config.federated = Some(FederatedCredential {
            issuer: "https://issuer.example".to_owned(),
            audience: "api://AzureADTokenExchange".to_owned(),
            subject: "system:serviceaccount:logs:agent".to_owned(),
            certificate: config.certificates.first().cloned(),
        });
    })
    .await;
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let path = bench.dir.path().join("token");
    let client = bench.client(Credential::FederatedToken(path.clone()));
    assert_eq!(client.list_subscriptions().await.unwrap_err().slug(), "auth-federated-token-unreadable");

    let wrong = outside_token("system:serviceaccount:default:agent", at("2026-05-08T13:00:00Z"));
    fs::write(&path, &wrong).unwrap();
    let error = client.list_subscriptions().await.unwrap_err();
    assert_eq!(error.slug(), "auth-federation-mismatch");
    let presented = "issuer https://issuer.example, audience api://AzureADTokenExchange, \
                     subject system:serviceaccount:default:agent";
    assert!(error.to_string().contains(presented), "{error}");
    assert!(!format!("{error} {error:?}").contains(&wrong[wrong.len() - 40..]), "{error:?}");

    // A new token is tried at once, and each exchange takes what the file holds then.
    let right = |end: &str| format!("{}\n", outside_token("system:serviceaccount:logs:agent", at(end)));
    fs::write(&path, right("2026-05-08T12:10:00Z")).unwrap();
    client.list_subscriptions().await.unwrap();
    bench.clock.advance(Duration::from_secs(3601));
    fs::write(&path, right("2026-05-08T14:00:00Z")).unwrap();
    client.list_subscriptions().await.unwrap();
    bench.clock.advance(Duration::from_secs(3 * 3600));
    assert!(client.list_subscriptions().await.is_err(), "the outside token has ended");
}

#[tokio::test]
async fn a_managed_identity_signs_in_in_its_three_forms() {
    let bench = Bench::new(|_| {}).await;
    let dir = bench.dir.path().join("tokens");
    fs::create_dir(&dir).unwrap();
    let machine = MachineIdentity {
        tenant: SimConfig::default().tenants[0].clone(),
        system_assigned: true,
        user_assigned: vec!["aaaaaaaa-0000-4000-8000-0000000000e1".to_owned()],
        app_service_header: "app~service&header".to_owned(),
        arc_challenge: None,
    };
    bench.sim.configure(|config| config.machine_identity = Some(machine.clone()));
    let metadata = Url::parse(&format!("{}/metadata/identity/oauth2/token", bench.sim.url())).unwrap();
    let identity = ManagedIdentity {
        host: IdentityHost::Imds,
        url: metadata,
        header: None,
        client_id: None,
        arc_key_dir: dir.clone(),
    };
    let credential = |identity: ManagedIdentity| Credential::ManagedIdentity(Box::new(identity));

    bench.signs_in(credential(identity.clone())).await.unwrap();
    let user = |id: &str| ManagedIdentity { client_id: Some(id.to_owned()), ..identity.clone() };
    bench.signs_in(credential(user("aaaaaaaa-0000-4000-8000-0000000000e1"))).await.unwrap();
    let error = bench.signs_in(credential(user("aaaaaaaa-0000-4000-8000-0000000000e9"))).await.unwrap_err();
    assert_eq!(error.slug(), "auth-identity-refused", "{error}");
    assert!(error.to_string().contains("Identity not found"), "{error}");

    let app_service = |header: &str| ManagedIdentity {
        host: IdentityHost::AppService,
        url: Url::parse(&format!("{}/msi/token", bench.sim.url())).unwrap(),
        header: Some(SecretText::from(header)),
        ..identity.clone()
    };
    let client = bench.client(credential(app_service("app~service&header")));
    client.list_subscriptions().await.unwrap();
    let before = bench.exchanges(CallKind::Identity);
    bench.clock.advance(Duration::from_secs(1800));
    client.list_subscriptions().await.unwrap();
    assert_eq!(bench.exchanges(CallKind::Identity), before, "`expires_on` alone says how long the token lives");
    let error = bench.signs_in(credential(app_service("another-header"))).await.unwrap_err();
    assert_eq!(error.slug(), "auth-identity-refused", "{error}");
    assert!(!format!("{error} {error:?}").contains("another-header"), "{error:?}");

    let challenge = |path: &Path| {
        bench.sim.configure(|config| {
            let arc_challenge = Some((path.to_owned(), "arc-secret".to_owned()));
            config.machine_identity = Some(MachineIdentity { arc_challenge, ..machine.clone() });
        });
    };
    let arc = ManagedIdentity { host: IdentityHost::AzureArc, ..identity.clone() };
    let key = dir.join("a.key");
    fs::write(&key, "arc-secret").unwrap();
    challenge(&key);
    bench.signs_in(credential(arc.clone())).await.unwrap();
    // A challenge that names another file of this machine is not met, whatever that file holds.
    let outside = bench.file("outside.key", "arc-secret");
    for path in [outside, dir.join("../outside.key"), dir.join("a.txt"), dir.join("missing.key")] {
        challenge(&path);
        let error = bench.signs_in(credential(arc.clone())).await.unwrap_err();
        assert_eq!(error.slug(), "auth-identity-refused", "{error}");
        assert!(!error.to_string().contains("arc-secret"), "{error}");
    }

    let nobody = Url::parse("http://127.0.0.1:9/metadata/identity/oauth2/token").unwrap();
    let error = bench.signs_in(credential(ManagedIdentity { url: nobody, ..identity })).await.unwrap_err();
    assert_eq!(error.slug(), "auth-identity-unreachable", "{error}");
    assert_eq!(bench.exchanges(CallKind::Token), 0, "no authority is asked");
}

const FEED: &str = "https://manage.office.com";
const GRAPH: &str = "https://graph.microsoft.com";

/// The feed at one host, Graph at another, which is a tenant of its own and so refuses every token: what was sent to
/// either is seen there. `exchange` is the kind of call by which this way asks for tokens.
async fn assert_signs_in_for_both(bench: &Bench, what: &str, credential: Credential, exchange: CallKind) {
    let window = Window { start: NOON.parse().unwrap(), end: "2026-05-08T13:00:00Z".parse().unwrap() };
    let before = bench.sim.requests().len();
    let client = bench.client(credential.clone());
    client.list_subscriptions().await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let graph = client.graph();
    let query = graph.submit(window, "n").await.unwrap_or_else(|error| panic!("{what}: {error}"));
    graph.look(&query.id).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    client.list_subscriptions().await.unwrap();
    let seen = bench.sim.requests().split_off(before);
    let resources = |is: &dyn Fn(CallKind) -> bool| -> Vec<String> {
        seen.iter().filter(|request| is(request.kind)).map(|request| request.resource.clone().unwrap()).collect()
    };
    assert_eq!(resources(&|kind| kind == exchange), [FEED, GRAPH], "{what}: a token of its own for each");
    assert_eq!(resources(&|kind| !kind.is_beside_the_feed()), [FEED, FEED], "{what}");
    let of_graph = |kind| matches!(kind, CallKind::GraphSubmit | CallKind::GraphQuery);
    assert_eq!(resources(&of_graph), [GRAPH, GRAPH], "{what}");

    let elsewhere = Bench::new(|_| {}).await;
    let settings = ApiSettings { graph_url: Url::parse(&elsewhere.sim.url()).unwrap(), ..bench.settings(credential) };
    let before = bench.sim.requests().len();
    let client = ApiClient::new(settings, Arc::new(bench.clock.clone())).unwrap();
    client.list_subscriptions().await.unwrap();
    assert_eq!(client.graph().submit(window, "n").await.unwrap_err().slug(), "graph-permission-missing", "{what}");
    client.list_subscriptions().await.unwrap();
    let of = |sim: &Sim, since| -> Vec<_> {
        let bearers = sim.requests().split_off(since).into_iter().filter(|request| request.had_token);
        bearers.map(|request| request.resource.unwrap()).collect()
    };
    assert_eq!(of(&elsewhere.sim, 0), [GRAPH, GRAPH], "{what}: asked for anew once");
    assert_eq!(of(&bench.sim, before), [FEED, FEED], "{what}");
}

#[tokio::test]
async fn every_way_to_sign_in_has_a_token_of_its_own_for_graph_and_none_goes_to_the_others_host() {
    let bench = Bench::new(|config| {
        config.federated = Some(FederatedCredential {
            issuer: "https://issuer.example".to_owned(),
            audience: "api://AzureADTokenExchange".to_owned(),
            subject: "system:serviceaccount:logs:agent".to_owned(),
            certificate: config.certificates.first().cloned(),
        });
        config.machine_identity = Some(MachineIdentity {
            tenant: config.tenants[0].clone(),
            system_assigned: true,
            user_assigned: Vec::new(),
            app_service_header: "app~service&header".to_owned(),
            arc_challenge: None,
        });
    })
    .await;
    let secret = Credential::Secret(SimConfig::default().client_secret.as_str().into());
    assert_signs_in_for_both(&bench, "a secret", secret, CallKind::Token).await;
    let with_key = CertificateFiles { key_file: Some(fixture("client.key")), ..files(fixture("client.pem")) };
    assert_signs_in_for_both(&bench, "a certificate", certificate(with_key), CallKind::Token).await;
    let token = outside_token("system:serviceaccount:logs:agent", "2026-05-08T13:00:00Z".parse().unwrap());
    let federated = Credential::FederatedToken(bench.file("token", token));
    assert_signs_in_for_both(&bench, "a federated token", federated, CallKind::Token).await;

    let at = |path: &str| Url::parse(&format!("{}{path}", bench.sim.url())).unwrap();
    let imds = ManagedIdentity {
        host: IdentityHost::Imds,
        url: at("/metadata/identity/oauth2/token"),
        header: None,
        client_id: None,
        arc_key_dir: bench.dir.path().to_owned(),
    };
    let app_service = ManagedIdentity {
        host: IdentityHost::AppService,
        url: at("/msi/token"),
        header: Some(SecretText::from("app~service&header")),
        ..imds.clone()
    };
    for (what, identity) in [("a machine's identity", imds), ("App Service", app_service)] {
        let credential = Credential::ManagedIdentity(Box::new(identity));
        assert_signs_in_for_both(&bench, what, credential, CallKind::Identity).await;
    }
}
