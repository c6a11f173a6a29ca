//! The forms in which certificates and keys are distributed: PEM, DER and PFX, plain, in base64, in the JSON of Key
//! Vault, or in the encodings of Windows editors. For an unusable form, the error names it and the command that
//! converts it.
//!
//! This module opens nothing: it sorts bytes by their outer structure, and who uses them judges what is inside. It splits
//! PEM itself because the libraries accept only well-formed PEM,
//! and the files of operators went through variables, secret stores and chat windows: sections on one line, `\n` as two
//! characters, blanks at ends. The libraries read the content of a section.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::SecretText;
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
            let Some((DerForm::Certificate, length)) = DerForm::of(&der) else {
                return Err("holds a certificate that cannot be read: it is cut or damaged".into());
            };
            // A trusted certificate of OpenSSL is followed by its permitted uses.
            parts.certificates.push(der.get(..length).unwrap_or_default().to_vec());
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
        _ => return sort_form(der, parts),
    }
    Ok(())
}

/// An element of DER that its first number does not identify.
fn sort_form(der: &[u8], parts: &mut SortedParts) -> Result<(), String> {
    let copy = || Zeroizing::new(der.to_vec());
    match DerForm::of(der).map(|(form, _)| form) {
        Some(DerForm::Certificate) => parts.certificates.push(der.to_vec()),
        Some(DerForm::Key) => parts.keys.push((KeyForm::Pkcs8, copy())),
        Some(DerForm::EncryptedKey) => parts.keys.push((KeyForm::EncryptedPkcs8, copy())),
        Some(DerForm::Request) => parts.others.push(REQUEST.into()),
        Some(DerForm::PublicKey) => parts.others.push(PUBLIC.into()),
        // An archive with an unusual encoding is left to its own library to refuse.
        None if der.get(1) == Some(&0x80) => parts.archives.push(copy()),
        None => return Err("is neither PEM nor a PFX nor DER, or is cut or damaged".into()),
    }
    Ok(())
}

/// What an element of DER is, by what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DerForm {
    Certificate,
    /// PKCS#10
    Request,
    PublicKey,
    /// PKCS#8
    Key,
    EncryptedKey,
}

impl DerForm {
    /// The element at the beginning of `der`, and its length; `None` for what is cut or is something else.
    fn of(der: &[u8]) -> Option<(Self, usize)> {
        let (tag, inside, rest) = element(der)?;
        let parts = elements(inside).filter(|_| tag == SEQUENCE)?;
        let form = match parts[..] {
            [(SEQUENCE, body), (SEQUENCE, _), (BIT_STRING, _)] => Self::signed(body)?,
            [(SEQUENCE, _), (BIT_STRING, _)] => Self::PublicKey,
            [(SEQUENCE, _), (OCTET_STRING, _)] => Self::EncryptedKey,
            [(INTEGER, _), (SEQUENCE, _), (OCTET_STRING, _), ..] => Self::Key,
            _ => return None,
        };
        Some((form, der.len() - rest.len()))
    }

    /// What has a signature: a certificate, or the request for one.
    fn signed(body: &[u8]) -> Option<Self> {
        let tags: Vec<u8> = elements(body)?.into_iter().map(|(tag, _)| tag).collect();
        match tags.strip_prefix(&[VERSION]).unwrap_or(&tags) {
            // Serial number, algorithm, issuer, validity, subject, key.
            [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, ..] => Some(Self::Certificate),
            // Version, subject, key.
            [INTEGER, SEQUENCE, SEQUENCE, ..] => Some(Self::Request),
            _ => None,
        }
    }
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
/// The version of a certificate, which the first version is without.
const VERSION: u8 = 0xa0;

/// Tag and value of every element of `bytes`; `None` if one is cut.
fn elements(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (tag, value, rest) = element(bytes)?;
        found.push((tag, value));
        bytes = rest;
    }
    Some(found)
}

/// Tag and value of the element at the beginning of `bytes`, and what stands after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, after) = bytes.split_first()?;
    let (length, skip) = header(after)?;
    let (value, rest) = after.get(skip..)?.split_at_checked(length)?;
    Some((tag, value, rest))
}

/// Tag and value of the first element inside a sequence, and the tag of the second.
fn first_of(der: &[u8]) -> Option<(u8, &[u8], Option<u8>)> {
    let inner = header(der.get(1..)?).map(|(_, skip)| 1 + skip)?;
    let (tag, value, rest) = element(der.get(inner..)?)?;
    Some((tag, value, rest.first().copied()))
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SerialNumber, date_time_ymd};

    use super::*;

    fn issued(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn what_stands_after_a_certificate_is_left() {
        let mut der = issued(|_| {});
        let whole = der.len();
        der.extend_from_slice(b"uses of a trusted certificate");
        assert_eq!(DerForm::of(&der), Some((DerForm::Certificate, whole)));
    }

    #[test]
    fn a_certificate_with_any_number_and_time_is_one_and_a_cut_one_is_none() {
        let der = issued(|params| params.not_after = date_time_ymd(9999, 12, 31));
        for length in 0..der.len() {
            assert_eq!(DerForm::of(&der[..length]), None, "{length} of {}", der.len());
        }
        for serial in [&[0x00_u8; 1][..], &[0xff; 20], &[0x7f; 40]] {
            let der = issued(|params| params.serial_number = Some(SerialNumber::from_slice(serial)));
            assert_eq!(DerForm::of(&der), Some((DerForm::Certificate, der.len())), "{serial:02x?}");
        }
    }

    #[test]
    fn keys_and_requests_are_told_from_certificates() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let form = |der: &[u8]| DerForm::of(der).map(|(form, _)| form);
        assert_eq!(form(request.der()), Some(DerForm::Request));
        assert_eq!(form(&key.serialize_der()), Some(DerForm::Key));
        assert_eq!(form(&key.subject_public_key_info()), Some(DerForm::PublicKey));
        for other in [&b""[..], b"\x30\x00", b"\x30\x80\x02\x01\x03", b"\x30\x84\xff\xff\xff\xff\x02", b"hello"] {
            assert_eq!(form(other), None, "{other:02x?}");
        }
    }
}
