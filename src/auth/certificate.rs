//! A client certificate: its files, its facts, and the assertion its key signs.
//!
//! Follows Microsoft's "Microsoft identity platform application authentication certificate credentials". The files are
//! read again for every exchange, so that they can be rotated; they are fingerprinted before they are parsed, because
//! opening an encrypted key is slow on purpose.
//!
//! Why own code: `azure_identity` signs with RS256 and SHA-1 thumbprints only and needs OpenSSL for it; `jsonwebtoken`
//! 10 wants aws-lc or the `rsa` crate (RUSTSEC-2023-0071). An assertion is two JSON objects and one signature of `ring`,
//! which TLS brings along. What is hard, PFX and encrypted PEM, is `p12-keystore` and `pkcs8`.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p12_keystore::Pkcs12Archive;
use pkcs8::der::{Decode as _, SecretDocument};
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::SecretText;
use crate::config::AssertionAlgorithm;
use crate::model::Timestamp;

/// Most bytes read of a file; a PFX with a chain has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// An assertion is good from this long before it is made, for clocks that differ a little and headers of whole seconds.
const BACKDATED_SECS: i64 = 60;
/// And to this long after its beginning: Microsoft asks for 5 to 10 minutes.
const LIFE_SECS: i64 = 600;

/// Where a client certificate and its key are.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// PEM (certificate, perhaps with its key) or PFX (PKCS#12).
    pub certificate_file: PathBuf,
    /// The PEM of the key, when it has a file of its own.
    pub key_file: Option<PathBuf>,
    /// What opens the key.
    pub key_passphrase: Option<SecretText>,
    /// A file that holds it.
    pub key_passphrase_file: Option<PathBuf>,
    /// How assertions are signed.
    pub algorithm: AssertionAlgorithm,
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its subject, in words.
    pub subject: String,
    /// Its first second.
    pub not_before: Timestamp,
    /// Its last.
    pub not_after: Timestamp,
    /// SHA-1 of it, upper-case hex: what Entra's page of certificates shows as the thumbprint.
    pub thumbprint: String,
}

/// The files' bytes, not looked at yet.
pub(super) struct RawFiles {
    certificate: Zeroizing<Vec<u8>>,
    key: Option<Zeroizing<Vec<u8>>>,
    passphrase: Option<SecretText>,
}

impl RawFiles {
    /// To see that one of the files has been replaced.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let passphrase = self.passphrase.as_ref().map_or(&b""[..], |text| text.expose().as_bytes());
        for part in [&self.certificate[..], self.key.as_ref().map_or(&b""[..], |key| &key[..]), passphrase] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }
}

/// A certificate with its key, ready to sign.
pub(super) struct ClientCertificate {
    key: RsaKeyPair,
    sha1: Vec<u8>,
    sha256: Vec<u8>,
    pub facts: CertificateFacts,
}

/// What an assertion says.
pub(super) struct Claims<'a> {
    pub client_id: &'a str,
    pub audience: &'a str,
    /// The authority's time.
    pub now: Timestamp,
}

impl CertificateFiles {
    /// Opens the certificate and its key as they are now.
    ///
    /// # Errors
    /// Why they cannot be used, for an operator.
    pub fn facts(&self) -> Result<CertificateFacts, String> {
        self.parse(&self.read()?).map(|certificate| certificate.facts)
    }

    pub(super) fn read(&self) -> Result<RawFiles, String> {
        let passphrase = match (&self.key_passphrase, &self.key_passphrase_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => {
                let bytes = read_file(path)?;
                let text = std::str::from_utf8(&bytes).map_err(|_| format!("`{}` is not UTF-8", path.display()))?;
                Some(SecretText::from(text.trim_end_matches(['\r', '\n'])))
            }
            (None, None) => None,
        };
        Ok(RawFiles {
            certificate: read_file(&self.certificate_file)?,
            key: self.key_file.as_deref().map(read_file).transpose()?,
            passphrase,
        })
    }

    pub(super) fn parse(&self, raw: &RawFiles) -> Result<ClientCertificate, String> {
        let file = self.certificate_file.display();
        let (certificates, key) = if is_pem(&raw.certificate) {
            let certificates = CertificateDer::pem_slice_iter(&raw.certificate)
                .map(|found| found.map(|der| der.to_vec()).map_err(|error| format!("`{file}`: not PEM: {error}")))
                .collect::<Result<Vec<_>, _>>()?;
            let (bytes, at) = match (&raw.key, &self.key_file) {
                (Some(key), Some(path)) => (key, path.as_path()),
                _ => (&raw.certificate, self.certificate_file.as_path()),
            };
            (certificates, pem_key(bytes, raw.passphrase.as_ref(), at)?)
        } else {
            if self.key_file.is_some() {
                return Err(format!("`{file}` is no PEM; a PFX holds its key, so leave out `key_file`"));
            }
            pfx(&raw.certificate, raw.passphrase.as_ref()).map_err(|why| format!("`{file}`: {why}"))?
        };
        if certificates.is_empty() {
            return Err(format!("`{file}` holds no certificate"));
        }
        let own = key.public().as_ref();
        for der in &certificates {
            let Ok((_, parsed)) = X509Certificate::from_der(der) else {
                return Err(format!("a certificate in `{file}` cannot be read"));
            };
            if *parsed.public_key().subject_public_key.data != *own {
                continue;
            }
            let time = |time: &x509_parser::time::ASN1Time| {
                Timestamp::from_second(time.timestamp()).map_err(|error| format!("`{file}`: {error}"))
            };
            let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref().to_vec();
            let facts = CertificateFacts {
                subject: super::excerpt(&parsed.subject().to_string()),
                not_before: time(&parsed.validity().not_before)?,
                not_after: time(&parsed.validity().not_after)?,
                thumbprint: sha1.iter().map(|byte| format!("{byte:02X}")).collect(),
            };
            let sha256 = digest::digest(&digest::SHA256, der).as_ref().to_vec();
            return Ok(ClientCertificate { key, sha1, sha256, facts });
        }
        Err(format!("the key does not belong to the certificate in `{file}`"))
    }
}

impl ClientCertificate {
    /// A fresh assertion: `iss` and `sub` are the app, `jti` is never the same.
    pub fn assertion(&self, algorithm: AssertionAlgorithm, claims: &Claims<'_>) -> Result<SecretText, String> {
        let header = match algorithm {
            AssertionAlgorithm::Ps256 => {
                json!({"alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(&self.sha256)})
            }
            AssertionAlgorithm::Rs256 => {
                json!({"alg": "RS256", "typ": "JWT", "x5t": URL_SAFE_NO_PAD.encode(&self.sha1)})
            }
        };
        let random = SystemRandom::new();
        let no_random = |_| "the system gives no random numbers".to_owned();
        let mut id = [0; 16];
        random.fill(&mut id).map_err(no_random)?;
        let from = claims.now.as_second() - BACKDATED_SECS;
        let payload = json!({
            "aud": claims.audience, "iss": claims.client_id, "sub": claims.client_id, "jti": guid(id),
            "iat": from, "nbf": from, "exp": from + LIFE_SECS,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&payload));
        let encoding: &dyn ring::signature::RsaEncoding = match algorithm {
            AssertionAlgorithm::Ps256 => &RSA_PSS_SHA256,
            AssertionAlgorithm::Rs256 => &RSA_PKCS1_SHA256,
        };
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(encoding, &random, signed.as_bytes(), &mut signature)
            .map_err(|_| "the key cannot sign".to_owned())?;
        Ok(SecretText::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = || -> io::Result<Zeroizing<Vec<u8>>> {
        let file = fs::File::open(path)?;
        // Room enough that it never moves: what moves leaves a copy behind.
        let length = file.metadata()?.len().min(FILE_BYTES_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 64));
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("`{}` cannot be read: {error}", path.display()))?;
    if bytes.is_empty() { Err(format!("`{}` is empty", path.display())) } else { Ok(bytes) }
}

fn is_pem(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, b"-----BEGIN ").is_some()
}

/// The key of a PEM file, opened if it is encrypted.
fn pem_key(pem: &[u8], passphrase: Option<&SecretText>, path: &Path) -> Result<RsaKeyPair, String> {
    let at = path.display();
    if let Some(section) = pem_section(pem, "ENCRYPTED PRIVATE KEY") {
        let passphrase = passphrase.ok_or_else(|| format!("the key in `{at}` is encrypted: set `key_passphrase`"))?;
        let (_, document) =
            SecretDocument::from_pem(section).map_err(|error| format!("the key in `{at}` cannot be read: {error}"))?;
        let opened = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes())
            .map_err(|error| format!("the key in `{at}` cannot be read: {error}"))?
            .decrypt(passphrase.expose())
            .map_err(|error| format!("the key in `{at}` cannot be opened, is `key_passphrase` right? ({error})"))?;
        return rsa_key(opened.as_bytes()).map_err(|why| format!("the key in `{at}`: {why}"));
    }
    if memchr::memmem::find(pem, b"Proc-Type: 4,ENCRYPTED").is_some() {
        return Err(format!("the key in `{at}` is encrypted the old way: convert it with `openssl pkcs8 -topk8`"));
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| format!("`{at}` holds no private key"))?;
    match key {
        PrivateKeyDer::Pkcs8(der) => rsa_key(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).map_err(rejected),
        _ => Err(NOT_RSA.into()),
    }
    .map_err(|why| format!("the key in `{at}`: {why}"))
}

const NOT_RSA: &str = "not RSA, and Entra takes only RSA keys for this";

/// A key in PKCS#8.
fn rsa_key(der: &[u8]) -> Result<RsaKeyPair, String> {
    let info = PrivateKeyInfoRef::from_der(der).map_err(|error| format!("cannot be read: {error}"))?;
    if info.algorithm.oid.to_string() != "1.2.840.113549.1.1.1" {
        return Err(NOT_RSA.into());
    }
    // The inner form, because files made on Windows carry attributes that ring's own PKCS#8 reader refuses.
    RsaKeyPair::from_der(info.private_key.as_bytes()).map_err(rejected)
}

fn rejected(error: ring::error::KeyRejected) -> String {
    format!("cannot be used, RSA of 2048 to 4096 bits is needed ({error})")
}

/// The certificates and the one key of a PFX.
fn pfx(der: &[u8], passphrase: Option<&SecretText>) -> Result<(Vec<Vec<u8>>, RsaKeyPair), String> {
    let archive = Pkcs12Archive::from_pkcs12(der, passphrase.map_or("", |text| text.expose())).map_err(|error| {
        format!("neither PEM nor a PFX that opens, are the file and `key_passphrase` right? ({error})")
    })?;
    let certificates = archive.certs.iter().map(|bag| bag.cert.as_der().to_vec()).collect();
    let [bag] = archive.keys.as_slice() else {
        return Err(format!("the PFX holds {} private keys, expected one", archive.keys.len()));
    };
    Ok((certificates, rsa_key(bag.key.as_der()).map_err(|why| format!("the key: {why}"))?))
}

/// The text of the first PEM section with this label.
fn pem_section<'a>(pem: &'a [u8], label: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(pem).ok()?;
    let from = text.find(&format!("-----BEGIN {label}-----"))?;
    let end = format!("-----END {label}-----");
    let rest = text.get(from..)?;
    rest.get(..rest.find(&end)? + end.len())
}

/// Random bytes as a GUID of version 4.
fn guid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}
