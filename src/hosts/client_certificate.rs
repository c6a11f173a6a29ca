//! The certificate that a sink presents to its receiver. The files are read again for every connection, so the next
//! connection uses a replaced file without a restart.
//!
//! While the files cannot be used (a new certificate whose key is not there yet), the sink presents the pair that was
//! read before, logs the fault when it appears, and adds it to the error of every connection that fails.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{InconsistentKeys, SignatureScheme};
use zeroize::Zeroizing;

use crate::auth::forms::{KeyForm, SortedParts, parts};
use crate::auth::x509::ReadCertificate;
use crate::clock::Clock;
use crate::model::Timestamp;

/// The maximum number of bytes read from a file; a chain has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// A certificate that expires within this is reported when it is read.
const ENDS_SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where a client certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificateFiles {
    /// PEM: the certificate, its intermediate certificates, optionally the key.
    pub certificate: PathBuf,
    /// PEM of the key, when it has a file of its own.
    pub key: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// The file and what is wrong with it.
    pub why: String,
    /// The remedy.
    pub hint: String,
}

/// A client certificate that is reloaded from its files.
pub(crate) struct ClientCertificate {
    files: ClientCertificateFiles,
    clock: Arc<dyn Clock>,
    last: Mutex<LoadedFiles>,
}

/// What was read last.
struct LoadedFiles {
    fingerprint: blake3::Hash,
    pair: CertifiedPair,
    trouble: Option<String>,
}

/// A certificate and its key, with its validity period.
struct CertifiedPair {
    certified: Arc<CertifiedKey>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// The bytes of the files, not parsed yet.
struct FileBytes {
    certificate: Zeroizing<Vec<u8>>,
    key: Option<Zeroizing<Vec<u8>>>,
}

impl ClientCertificate {
    /// The certificate as its files have it now.
    ///
    /// # Errors
    /// The files cannot be used.
    pub(crate) fn open(files: ClientCertificateFiles, clock: Arc<dyn Clock>) -> Result<Self, Unusable> {
        let bytes = files.read()?;
        let last = LoadedFiles { fingerprint: bytes.fingerprint(), pair: files.pair(&bytes)?, trouble: None };
        Ok(Self { files, clock, last: Mutex::new(last) })
    }

    /// The fault of the presented certificate or of its files, in words with the remedy.
    pub(crate) fn remark(&self) -> Option<String> {
        let last = self.lock();
        let trouble = last.trouble.as_ref().map(|why| format!("{why}; the certificate read before is still shown"));
        trouble.or_else(|| self.out_of_time(&last.pair))
    }

    /// A message that it is not valid at this machine's time, with the remedy.
    fn out_of_time(&self, pair: &CertifiedPair) -> Option<String> {
        let (file, now) = (self.files.certificate.display(), self.clock.now());
        if now > pair.not_after {
            let ended = pair.not_after;
            return Some(format!(
                "the client certificate in `{file}` ended at {ended} (hint: put its successor into the file; it is read \
                 again for every connection)"
            ));
        }
        (now < pair.not_before).then(|| {
            let begins = pair.not_before;
            format!("the client certificate in `{file}` is valid from {begins} on (hint: look at this machine's clock)")
        })
    }

    /// Logs what an operator should know of the certificate before it is used.
    pub(crate) fn announce(&self) {
        self.announce_pair(&self.lock().pair);
    }

    fn announce_pair(&self, pair: &CertifiedPair) {
        if let Some(words) = self.out_of_time(pair) {
            tracing::warn!("{words}");
        } else if self.clock.now().saturating_add(ENDS_SOON).is_ok_and(|soon| soon > pair.not_after) {
            tracing::warn!(
                file = %self.files.certificate.display(), ends = %pair.not_after,
                "the client certificate ends soon (hint: put its successor into the file, no restart is needed)"
            );
        }
    }

    /// Reads the files again.
    fn refresh(&self) {
        let mut last = self.lock();
        let read = self.files.read().and_then(|bytes| {
            let fingerprint = bytes.fingerprint();
            let is_new = fingerprint != last.fingerprint;
            Ok(is_new.then_some(self.files.pair(&bytes)).transpose()?.map(|pair| (fingerprint, pair)))
        });
        match read {
            Ok(None) => last.trouble = None,
            Ok(Some((fingerprint, pair))) => {
                tracing::info!(file = %self.files.certificate.display(), ends = %pair.not_after, "client certificate read anew");
                self.announce_pair(&pair);
                *last = LoadedFiles { fingerprint, pair, trouble: None };
            }
            Err(Unusable { why, hint }) => {
                let trouble = format!("{why} (hint: {hint})");
                if last.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("{trouble}; the certificate read before is still shown");
                }
                last.trouble = Some(trouble);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LoadedFiles> {
        self.last.lock()
    }
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResolvesClientCert for ClientCertificate {
    /// Called for each connection whose receiver asks for a certificate. It reads two small files and blocks other
    /// tasks meanwhile, as secrets in files do for every request.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.refresh();
        Some(self.lock().pair.certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Whether the files can be used at this time, for a check of the configuration alone.
///
/// # Errors
/// They cannot, or the certificate is not valid at this time.
#[cfg(feature = "cli")]
pub(crate) fn check(files: ClientCertificateFiles, clock: Arc<dyn Clock>) -> Result<(), Unusable> {
    let certificate = ClientCertificate::open(files, clock)?;
    match certificate.remark() {
        None => Ok(()),
        Some(words) => {
            let (why, hint) = words.split_once(" (hint: ").unwrap_or((&words, ""));
            Err(Unusable { why: why.to_owned(), hint: hint.trim_end_matches(')').to_owned() })
        }
    }
}

impl FileBytes {
    /// Detects a replaced file before it is parsed.
    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.certificate[..], self.key.as_ref().map_or(&b""[..], |key| &key[..])] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }
}

impl ClientCertificateFiles {
    fn read(&self) -> Result<FileBytes, Unusable> {
        Ok(FileBytes {
            certificate: read_file(&self.certificate, "client_certificate_file")?,
            key: self.key.as_deref().map(|path| read_file(path, "client_key_file")).transpose()?,
        })
    }

    /// The file the key is in.
    fn key_file(&self) -> &Path {
        self.key.as_deref().unwrap_or(&self.certificate)
    }

    fn pair(&self, bytes: &FileBytes) -> Result<CertifiedPair, Unusable> {
        let file = self.certificate.display();
        let unread =
            |path: &Path, why: String| Unusable { why: format!("`{}` {why}", path.display()), hint: PEM.into() };
        let mut found = parts(&bytes.certificate, None).map_err(|why| unread(&self.certificate, why))?;
        if let Some(key) = &bytes.key {
            found = parts(key, Some(found)).map_err(|why| unread(self.key_file(), why))?;
        }
        if !found.archives.is_empty() {
            let hint = format!("take it apart: `openssl pkcs12 -in {file} -nodes -out client.pem`, and name that file");
            return Err(Unusable { why: format!("`{file}` is a PFX"), hint });
        }
        let keys = self.keys(&found)?;
        let certificates: Vec<_> = found.certificates.into_iter().map(CertificateDer::from).collect();
        if certificates.is_empty() {
            let other = found.others.first().map(|other| format!("; it holds {other}")).unwrap_or_default();
            return Err(Unusable { why: format!("`{file}` holds no certificate{other}"), hint: PEM.into() });
        }
        let certified = keys.iter().find_map(|key| certified(&certificates, key)).ok_or_else(|| Unusable {
            why: format!("the key in `{}` does not belong to the certificate in `{file}`", self.key_file().display()),
            hint: format!(
                "name the pair that was issued together: `openssl x509 -in {file} -noout -pubkey` and `openssl pkey -in {} \
                 -pubout` must print the same",
                self.key_file().display()
            ),
        })?;
        validity(certified).map_err(|why| Unusable { why: format!("`{file}`: {why}"), hint: PEM.into() })
    }

    /// The keys, ready to sign; at least one.
    fn keys(&self, found: &SortedParts) -> Result<Vec<Arc<dyn SigningKey>>, Unusable> {
        let file = self.key_file().display();
        let mut keys = Vec::new();
        for (form, der) in &found.keys {
            keys.push(match form {
                KeyForm::Pkcs8 => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&der[..])),
                KeyForm::Pkcs1 => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(&der[..])),
                KeyForm::EncryptedPkcs8 => {
                    let hint = format!(
                        "`openssl pkey -in {file} -out client.key` writes it without its passphrase: make that file readable \
                         for the user this runs as alone, and name it in `client_key_file`"
                    );
                    return Err(Unusable { why: format!("the key in `{file}` is encrypted"), hint });
                }
            });
        }
        keys.extend(found.ec_keys.iter().map(|der| PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(&der[..]))));
        if keys.is_empty() {
            let hint = match self.key {
                None => "name the key's file in `client_key_file`, or put the key into the same file".to_owned(),
                Some(_) => PEM.to_owned(),
            };
            return Err(Unusable { why: format!("`{file}` holds no private key"), hint });
        }
        let usable = |key: &PrivateKeyDer<'_>| {
            any_supported_type(key).map_err(|error| Unusable {
                why: format!("the key in `{file}` cannot be used: {error}"),
                hint: "RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, and Ed25519 are known".to_owned(),
            })
        };
        keys.iter().map(usable).collect()
    }
}

/// The required format of the files.
const PEM: &str = "`client_certificate_file` is PEM: the certificate, then those between it and its authority; the key, not \
                   encrypted, stands beside them or in `client_key_file`";

/// The key with its own certificate in front of the others, if that is among them.
fn certified(certificates: &[CertificateDer<'static>], key: &Arc<dyn SigningKey>) -> Option<Arc<CertifiedKey>> {
    (0..certificates.len()).find_map(|own| {
        let mut chain = certificates.to_vec();
        let first = chain.remove(own);
        chain.insert(0, first);
        let certified = CertifiedKey::new(chain, key.clone());
        // A key type that does not expose its public half is assumed to match.
        let fits =
            matches!(certified.keys_match(), Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)));
        fits.then(|| Arc::new(certified))
    })
}

/// The pair with the times of its certificate.
fn validity(certified: Arc<CertifiedKey>) -> Result<CertifiedPair, String> {
    let own = certified.cert.first().ok_or("it holds no certificate")?;
    let read = ReadCertificate::of(own).map_err(|error| error.to_string())?;
    let (not_before, not_after) = (read.not_before, read.not_after);
    Ok(CertifiedPair { certified, not_before, not_after })
}

fn read_file(path: &Path, key: &str) -> Result<Zeroizing<Vec<u8>>, Unusable> {
    let read = || -> std::io::Result<Zeroizing<Vec<u8>>> {
        let file = fs::File::open(path)?;
        // Enough capacity that the buffer never moves: a move would leave a copy of the key in memory.
        let length = file.metadata()?.len().min(FILE_BYTES_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 64));
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| Unusable {
        why: format!("cannot read `{}`: {error}", path.display()),
        hint: format!("`{key}` of the sink must be readable for the user this runs as"),
    })
}
