//! The forms in which certificates and keys are distributed: PEM, DER and PFX, plain, in base64, in the JSON of Key
//! Vault, or in the encodings of Windows editors. For an unusable form, the error names it and the command that
//! converts it.
//!
//! This module opens no key: it sorts bytes. It splits PEM itself because the libraries accept only well-formed PEM,
//! and the files of operators went through variables, secret stores and chat windows: sections on one line, `\n` as two
//! characters, blanks at ends. The libraries read the content of a section.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pkcs8::der::Decode as _;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::SecretText;
use super::x509::{ReadCertificate, is_public_key, is_request};
use crate::config::text;
use crate::net::excerpt;

/// How often one form may be wrapped in another: JSON around base64 around base64 around PEM, and one to spare.
const DEPTH_MAX: u32 = 5;

/// base64 as tools write it, with or without padding.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);

/// The form of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyForm {
    Pkcs8,
    Pkcs1,
    EncryptedPkcs8,
}

/// The sorted content of files.
#[derive(Default)]
pub(crate) struct SortedParts {
    pub certificates: Vec<Vec<u8>>,
    pub keys: Vec<(KeyForm, Zeroizing<Vec<u8>>)>,
    /// Keys in the form of SEC 1, which `others` also lists: TLS can use them, sign-in cannot.
    pub ec_keys: Vec<Zeroizing<Vec<u8>>>,
    pub archives: Vec<Zeroizing<Vec<u8>>>,
    /// Unusable content that was also found, in words that follow "it holds".
    pub others: Vec<String>,
}

/// Everything in `bytes`, added to `parts` if given.
///
/// # Errors
/// A description of any other content, in words that follow the file's name.
pub(crate) fn parts(bytes: &[u8], parts: Option<SortedParts>) -> Result<SortedParts, String> {
    let mut parts = parts.unwrap_or_default();
    sort(bytes, &mut parts, 0)?;
    Ok(parts)
}

/// The certificates of a file of authorities.
///
/// # Errors
/// Why it has none, in words that follow the file's name.
pub(crate) fn authorities(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let parts = parts(bytes, None)?;
    if !parts.certificates.is_empty() {
        return Ok(parts.certificates.into_iter().map(CertificateDer::from).collect());
    }
    let holds = match (parts.keys.is_empty(), parts.archives.is_empty(), parts.others.first()) {
        (false, ..) => "holds a private key and no certificate: name the authority's certificate".to_owned(),
        (_, false, _) => {
            "is a PFX: take its certificates out with `openssl pkcs12 -in FILE -nokeys -out ca.pem`".to_owned()
        }
        (.., Some(other)) => format!("holds no certificate but {other}"),
        (.., None) => "holds no certificate".to_owned(),
    };
    Err(holds)
}

fn sort(bytes: &[u8], parts: &mut SortedParts, depth: u32) -> Result<(), String> {
    if bytes.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0) {
        return Err("is empty".into());
    }
    if depth > DEPTH_MAX {
        return Err("is wrapped in base64 or JSON too many times".into());
    }
    match bytes {
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => {
            return Err(
                "is a Java key store: convert it with `keytool -importkeystore -srckeystore FILE -destkeystore \
                        client.pfx -deststoretype PKCS12`"
                    .into(),
            );
        }
        [0x1f, 0x8b, ..] => return Err("is compressed with gzip: unpack it".into()),
        [b'P', b'K', 3, 4, ..] => return Err("is a ZIP archive: unpack it".into()),
        [0x30, ..] if text::decode(bytes).is_err() || !looks_like_text(bytes) => return sort_der(bytes, parts),
        _ => {}
    }
    match text::decode(bytes) {
        Ok(text) => sort_text(&text, parts, depth),
        Err(_) => Err("is neither PEM nor a PFX nor DER".into()),
    }
}

/// DER of more than a few bytes contains bytes that do not occur in text.
fn looks_like_text(bytes: &[u8]) -> bool {
    !bytes.iter().any(|byte| *byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t'))
}

fn sort_text(text: &str, parts: &mut SortedParts, depth: u32) -> Result<(), String> {
    let text = text.trim();
    // A PEM that went through JSON or a variable has its line breaks as two characters.
    let unescaped = (text.contains("-----BEGIN ") && text.contains("\\n"))
        .then(|| Zeroizing::new(text.replace("\\r", "").replace("\\n", "\n").replace("\\/", "/")));
    let text = unescaped.as_ref().map_or(text, |text| text.as_str());
    if text.contains("-----BEGIN ") && !text.starts_with('{') {
        return sort_pem(text, parts);
    }
    if text.starts_with('{') || text.starts_with('"') {
        return sort_json(text, parts, depth);
    }
    for (begin, words) in [
        ("PuTTY-User-Key-File", "is a key of PuTTY's for SSH"),
        ("ssh-", "is a public key for SSH"),
        ("ecdsa-sha2-", "is a public key for SSH"),
        ("---- BEGIN SSH2", "is a public key for SSH"),
    ] {
        if text.starts_with(begin) {
            return Err(format!("{words}: a certificate of X.509 is needed"));
        }
    }
    let packed: Zeroizing<String> = Zeroizing::new(text.split_whitespace().collect());
    let packed = packed.trim_matches(['"', '\'']);
    match from_base64(packed) {
        Some(inner) => sort(&inner, parts, depth + 1),
        None => Err("is neither PEM nor a PFX nor DER".into()),
    }
}

fn from_base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let standard = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    let for_urls = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    standard.decode(text).or_else(|_| for_urls.decode(text)).ok().map(Zeroizing::new)
}

/// Key Vault's answers, and a text in quotation marks (`--output json`).
fn sort_json(text: &str, parts: &mut SortedParts, depth: u32) -> Result<(), String> {
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) if text.contains("-----BEGIN ") => return sort_pem(text, parts),
        Err(error) => return Err(format!("begins as JSON and is none: {error}")),
    };
    let text_of = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    if let Some(inner) = value.as_str().or_else(|| text_of("value")) {
        let inner = Zeroizing::new(inner.to_owned());
        return sort(inner.as_bytes(), parts, depth + 1);
    }
    if value.get("cer").is_some() {
        return Err(
            "is Key Vault's description of a certificate, without its key: use `az keyvault secret download` (or \
                    `secret show`) in place of `az keyvault certificate show`"
                .into(),
        );
    }
    if value.get("kty").is_some() || value.get("keys").is_some() {
        return Err("is a JSON Web Key: a certificate with its key is needed, PEM or PFX".into());
    }
    if value.get("data").is_some() || value.get("stringData").is_some() {
        return Err(
            "is a Kubernetes Secret as a document: mount the Secret and name the file of one of its keys".into()
        );
    }
    Err("is JSON without a member `value`, so it is not what Key Vault gives for a secret".into())
}

/// Every section of a PEM, with any text between them.
fn sort_pem(text: &str, parts: &mut SortedParts) -> Result<(), String> {
    const BEGIN: &str = "-----BEGIN ";
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        rest = rest.get(at + BEGIN.len()..).unwrap_or_default();
        let (label, after) = rest.split_once("-----").ok_or("holds a PEM section whose first line is damaged")?;
        let end = format!("-----END {label}-----");
        let (body, after) = after
            .split_once(end.as_str())
            .ok_or_else(|| format!("holds a PEM section `{label}` without its end: the file is cut"))?;
        rest = after;
        sort_section(label, body, parts)?;
    }
    Ok(())
}

fn sort_section(label: &str, body: &str, parts: &mut SortedParts) -> Result<(), String> {
    if body.contains("Proc-Type:") || body.contains("DEK-Info:") {
        return Err("holds a key that is encrypted the old way: convert it with `openssl pkcs8 -topk8 -in FILE -out client.key`".into());
    }
    let packed: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    let der = from_base64(&packed).ok_or_else(|| format!("holds a PEM section `{label}` that is not base64"))?;
    match label {
        "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => {
            let read = ReadCertificate::of(&der)
                .map_err(|_| "holds a certificate that cannot be read: it is cut or damaged".to_owned())?;
            // A trusted certificate of OpenSSL is followed by its permitted uses.
            parts.certificates.push(der.get(..der.len() - read.rest.len()).unwrap_or_default().to_vec());
        }
        "PRIVATE KEY" => parts.keys.push((KeyForm::Pkcs8, der)),
        "RSA PRIVATE KEY" => parts.keys.push((KeyForm::Pkcs1, der)),
        "ENCRYPTED PRIVATE KEY" => parts.keys.push((KeyForm::EncryptedPkcs8, der)),
        "PKCS12" | "PFX" => parts.archives.push(der),
        "EC PARAMETERS" | "DH PARAMETERS" => {}
        "EC PRIVATE KEY" => {
            parts.ec_keys.push(der);
            parts.others.push(EC_KEY.into());
        }
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => parts.others.push(REQUEST.into()),
        "PUBLIC KEY" | "RSA PUBLIC KEY" => parts.others.push(PUBLIC.into()),
        "OPENSSH PRIVATE KEY" | "SSH2 ENCRYPTED PRIVATE KEY" => {
            parts.others.push("a key for SSH: a certificate of X.509 with its key is needed".into());
        }
        "PKCS7" | "CMS" => parts.others.push(PKCS7.into()),
        other => parts.others.push(format!("a PEM section `{}`, which is no certificate", excerpt(other))),
    }
    Ok(())
}

const EC_KEY: &str = "an EC key, which is not RSA, and Entra takes only RSA keys for this: make a certificate with an RSA key of \
                      2048 to 4096 bits";
const REQUEST: &str = "a request for a certificate, not the certificate: it is what an authority makes one from (for Entra, \
                       `openssl x509 -req -in REQUEST -signkey KEY -days 365 -out client.pem` does)";
const PUBLIC: &str = "a public key alone: the certificate and its private key are needed";
const PKCS7: &str = "a PKCS#7 bundle (.p7b), which has certificates and never a key: take them out with `openssl pkcs7 \
                     -print_certs -in FILE -out client.pem` (`-inform DER` if it is binary) and name the key in `key_file`";

/// One element of DER.
fn sort_der(der: &[u8], parts: &mut SortedParts) -> Result<(), String> {
    if ReadCertificate::of(der).is_ok() {
        parts.certificates.push(der.to_vec());
        return Ok(());
    }
    let copy = || Zeroizing::new(der.to_vec());
    // The beginning of the outer sequence identifies the rest: its first number is a version.
    match first_of(der) {
        Some((0x02, [3], _)) => parts.archives.push(copy()),
        Some((0x02, [1], Some(0x04))) => {
            parts.ec_keys.push(copy());
            parts.others.push(EC_KEY.into());
        }
        Some((0x02, [0], Some(0x02))) => parts.keys.push((KeyForm::Pkcs1, copy())),
        Some((0x06, ..)) => parts.others.push(PKCS7.into()),
        _ if PrivateKeyInfoRef::from_der(der).is_ok() => parts.keys.push((KeyForm::Pkcs8, copy())),
        _ if EncryptedPrivateKeyInfoRef::from_der(der).is_ok() => parts.keys.push((KeyForm::EncryptedPkcs8, copy())),
        _ if is_request(der) => parts.others.push(REQUEST.into()),
        _ if is_public_key(der) => parts.others.push(PUBLIC.into()),
        // An archive with an unusual encoding is left to its own library to refuse.
        _ if der.get(1) == Some(&0x80) => parts.archives.push(copy()),
        _ => return Err("is neither PEM nor a PFX nor DER, or is cut or damaged".into()),
    }
    Ok(())
}

/// Tag and value of the first element inside a sequence, and the tag of the second.
fn first_of(der: &[u8]) -> Option<(u8, &[u8], Option<u8>)> {
    let inner = header(der.get(1..)?).map(|(_, skip)| 1 + skip)?;
    let tag = *der.get(inner)?;
    let (length, skip) = header(der.get(inner + 1..)?)?;
    let start = inner + 1 + skip;
    let value = der.get(start..start.checked_add(length)?)?;
    Some((tag, value, der.get(start + length).copied()))
}

/// The length in a header, and the bytes of the header; an indefinite length is 0.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    let first = *bytes.first()?;
    if first & 0x80 == 0 {
        return Some((usize::from(first), 1));
    }
    let count = usize::from(first & 0x7f);
    let digits = bytes.get(1..=count).filter(|_| count <= 4)?;
    Some((digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)), 1 + count))
}

/// A passphrase from a file, without its line break.
pub(super) fn passphrase(bytes: &[u8]) -> Result<SecretText, String> {
    let text = text::decode(bytes).map_err(|error| error.to_string())?;
    Ok(SecretText::from(text.trim_end_matches(['\r', '\n'])))
}
