//! A client certificate: its files, its facts, and the assertion its key signs. `key_pair` opens the files.
//!
//! Follows Microsoft's "Microsoft identity platform application authentication certificate credentials". The files are
//! read again for every exchange, so that they can be rotated; they are fingerprinted before they are parsed, because
//! decrypting a key is slow by design.
//!
//! Reasons for own code: `azure_identity` signs with RS256 and SHA-1 thumbprints only and needs OpenSSL for it;
//! `jsonwebtoken` 12 wants aws-lc or the `rsa` crate (RUSTSEC-2023-0071). An assertion is two JSON objects and one
//! signature of `ring`, which TLS already needs.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
#[cfg(feature = "certificates")]
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair};
use serde_json::json;
use zeroize::Zeroizing;

use super::SecretText;
use super::forms;
#[cfg(feature = "certificates")]
use super::key_pair::{OpenedPair, PairFiles};
use crate::config::AssertionAlgorithm;
use crate::model::Timestamp;
#[cfg(feature = "certificates")]
use crate::net::excerpt;

/// Most bytes read of a file; a PFX with a chain has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// An assertion is valid from this long before it is made, for clocks that differ a little and headers of whole
/// seconds.
const BACKDATED_SECS: i64 = 60;
/// And up to this long after its beginning: Microsoft requires 5 to 10 minutes.
const LIFE_SECS: i64 = 600;

/// Where a client certificate and its key are.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// PEM (certificate, optionally with its key) or PFX (PKCS#12).
    pub certificate_file: PathBuf,
    /// The PEM of the key, when it has a file of its own.
    pub key_file: Option<PathBuf>,
    /// The passphrase of the key.
    pub key_passphrase: Option<SecretText>,
    /// A file that holds it.
    pub key_passphrase_file: Option<PathBuf>,
    /// How assertions are signed.
    pub algorithm: AssertionAlgorithm,
}

/// Facts of a certificate.
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

/// The files' bytes, not parsed yet.
pub(super) struct RawFiles {
    certificate: Zeroizing<Vec<u8>>,
    key: Option<Zeroizing<Vec<u8>>>,
    passphrase: Option<SecretText>,
}

impl RawFiles {
    /// Detects that one of the files was replaced.
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
pub(super) struct SigningCertificate {
    key: RsaKeyPair,
    sha1: Vec<u8>,
    sha256: Vec<u8>,
    pub facts: CertificateFacts,
}

/// The claims of an assertion.
pub(super) struct AssertionClaims<'a> {
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
                let text = forms::passphrase(&read_file(path)?);
                Some(text.map_err(|why| format!("`{}`: {why}", path.display()))?)
            }
            (None, None) => None,
        };
        Ok(RawFiles {
            certificate: read_file(&self.certificate_file)?,
            key: self.key_file.as_deref().map(read_file).transpose()?,
            passphrase,
        })
    }

    #[cfg(feature = "certificates")]
    pub(super) fn parse(&self, raw: &RawFiles) -> Result<SigningCertificate, String> {
        let OpenedPair { key, der, read } = PairFiles {
            certificate: (&self.certificate_file, &raw.certificate),
            key: self.key_file.as_deref().zip(raw.key.as_ref().map(|key| &key[..])),
            passphrase: raw.passphrase.as_ref(),
        }
        .open()?;
        let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &der).as_ref().to_vec();
        let facts = CertificateFacts {
            subject: excerpt(&read.subject),
            not_before: read.not_before,
            not_after: read.not_after,
            thumbprint: sha1.iter().map(|byte| format!("{byte:02X}")).collect(),
        };
        let sha256 = digest::digest(&digest::SHA256, &der).as_ref().to_vec();
        Ok(SigningCertificate { key, sha1, sha256, facts })
    }

    /// A configuration that asks for this is refused before.
    #[cfg(not(feature = "certificates"))]
    pub(super) fn parse(&self, _: &RawFiles) -> Result<SigningCertificate, String> {
        Err("this build is without the feature `certificates`".to_owned())
    }
}

impl SigningCertificate {
    /// A fresh assertion: `iss` and `sub` are the app, `jti` is never the same.
    pub fn assertion(&self, algorithm: AssertionAlgorithm, claims: &AssertionClaims<'_>) -> Result<SecretText, String> {
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
        // Enough capacity that the buffer never moves: a move would leave a copy of the key in memory.
        let length = file.metadata()?.len().min(FILE_BYTES_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 64));
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("`{}` cannot be read: {error}", path.display()))?;
    if bytes.is_empty() { Err(format!("`{}` is empty", path.display())) } else { Ok(bytes) }
}

/// Random bytes as a GUID of version 4.
fn guid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}
