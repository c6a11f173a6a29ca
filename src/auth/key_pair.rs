//! A certificate and its key, opened from PEM, DER or PFX, with a passphrase where they are encrypted.
//!
//! `p12-keystore` and `pkcs8` do the difficult part, PFX and encrypted PEM. A build without the feature `certificates` has
//! neither them nor this module.

use std::path::Path;

use p12_keystore::Pkcs12Archive;
use pkcs8::der::Decode as _;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use ring::signature::RsaKeyPair;

use super::SecretText;
use super::forms::{self, KeyForm, SortedParts};
use super::x509::ReadCertificate;

/// The files of a certificate, each with its bytes.
pub(super) struct PairFiles<'a> {
    pub certificate: (&'a Path, &'a [u8]),
    /// The key, when it has a file of its own.
    pub key: Option<(&'a Path, &'a [u8])>,
    pub passphrase: Option<&'a SecretText>,
}

/// A key and the certificate that it belongs to.
pub(super) struct OpenedPair {
    pub key: RsaKeyPair,
    pub der: Vec<u8>,
    pub read: ReadCertificate,
}

impl PairFiles<'_> {
    /// The one certificate with its key.
    ///
    /// # Errors
    /// Why the files cannot be used, for an operator.
    pub fn open(&self) -> Result<OpenedPair, String> {
        let (path, bytes) = self.certificate;
        let file = path.display();
        let mut parts = forms::parts(bytes, None).map_err(|why| format!("`{file}` {why}"))?;
        if let Some((path, key)) = self.key {
            if !parts.archives.is_empty() {
                return Err(format!("`{file}` is a PFX, which holds its key, so leave out `key_file`"));
            }
            parts = forms::parts(key, Some(parts)).map_err(|why| format!("`{}` {why}", path.display()))?;
        }
        let (certificates, keys) = self.opened(parts)?;
        let mut found = None;
        for key in keys {
            if let Some((der, read)) = certificate_of(&certificates, &key, path)? {
                if found.is_some() {
                    return Err(format!(
                        "`{file}` holds several certificates with their keys: leave the one to be used"
                    ));
                }
                found = Some(OpenedPair { key, der, read });
            }
        }
        found.ok_or_else(|| format!("the key does not belong to the certificate in `{file}`"))
    }

    /// The certificates, and the keys opened; at least one of each.
    fn opened(&self, parts: SortedParts) -> Result<(Vec<Vec<u8>>, Vec<RsaKeyPair>), String> {
        let (file, passphrase) = (self.certificate.0.display(), self.passphrase);
        let key_file = self.key.map_or(self.certificate.0, |(path, _)| path).display();
        let SortedParts { mut certificates, keys, archives, others, .. } = parts;
        let mut opened = Vec::new();
        for archive in archives {
            let (inside, keys) = pfx(&archive, passphrase).map_err(|why| format!("`{file}`: {why}"))?;
            certificates.extend(inside);
            opened.extend(keys);
        }
        for (form, der) in keys {
            let key = match form {
                KeyForm::Pkcs8 => rsa_key(&der),
                KeyForm::Pkcs1 => RsaKeyPair::from_der(&der).map_err(rejected),
                KeyForm::EncryptedPkcs8 => encrypted(&der, passphrase),
            };
            opened.push(key.map_err(|why| format!("the key in `{key_file}` {why}"))?);
        }
        let beside = others.first().map(|other| format!("; it holds {other}")).unwrap_or_default();
        match (certificates.is_empty(), opened.is_empty()) {
            (false, false) => Ok((certificates, opened)),
            (true, false) => Err(format!("`{file}` holds a private key and no certificate{beside}")),
            (false, true) if self.key.is_none() => Err(format!(
                "`{file}` holds no private key but a certificate alone (a .cer or .crt is the half that is uploaded to Entra): \
                 name the key in `key_file`, or use the PFX that holds both{beside}"
            )),
            (false, true) => Err(format!("`{key_file}` holds no private key{beside}")),
            (true, true) => Err(match others.first() {
                Some(other) => format!("`{file}` holds {other}"),
                None => format!("`{file}` holds no certificate"),
            }),
        }
    }
}

/// The certificate of `key` among those of the file.
fn certificate_of(
    certificates: &[Vec<u8>],
    key: &RsaKeyPair,
    file: &Path,
) -> Result<Option<(Vec<u8>, ReadCertificate)>, String> {
    let own = key.public().as_ref();
    for der in certificates {
        let Ok(read) = ReadCertificate::of(der) else {
            return Err(format!("a certificate in `{}` cannot be read", file.display()));
        };
        if read.public_key == own {
            return Ok(Some((der.clone(), read)));
        }
    }
    Ok(None)
}

/// A key in encrypted PKCS#8.
fn encrypted(der: &[u8], passphrase: Option<&SecretText>) -> Result<RsaKeyPair, String> {
    let passphrase = passphrase.ok_or("is encrypted: set `key_passphrase`")?;
    let opened = EncryptedPrivateKeyInfoRef::from_der(der)
        .map_err(|error| format!("cannot be read: {error}"))?
        .decrypt(passphrase.expose())
        .map_err(|error| format!("cannot be opened, is `key_passphrase` right? ({error})"))?;
    rsa_key(opened.as_bytes())
}

const NOT_RSA: &str = "is not RSA, and Entra takes only RSA keys for this";

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

/// The certificates and the keys of a PFX.
fn pfx(der: &[u8], passphrase: Option<&SecretText>) -> Result<(Vec<Vec<u8>>, Vec<RsaKeyPair>), String> {
    let archive = Pkcs12Archive::from_pkcs12(der, passphrase.map_or("", |text| text.expose())).map_err(|error| {
        let about = match passphrase {
            Some(_) => "a PFX that does not open, is `key_passphrase` right?",
            None => "a PFX that does not open without a password: set `key_passphrase`",
        };
        format!("{about} ({error})")
    })?;
    let certificates = archive.certs.iter().map(|bag| bag.cert.as_der().to_vec()).collect();
    let keys = archive.keys.iter().map(|bag| rsa_key(bag.key.as_der()).map_err(|why| format!("its key {why}")));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err("the PFX holds no private key: export it again with its key".to_owned());
    }
    Ok((certificates, keys))
}
