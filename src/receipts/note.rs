//! A signed note as C2SP `signed-note` defines it (<https://c2sp.org/signed-note>): a text, an empty line, and a line
//! with an Ed25519 signature over the text.
//!
//! The definition permits several signatures; these notes have exactly one, so that no byte of them can be changed.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::merkle::sha256;

/// The name of the signing key.
pub const KEY_NAME: &str = "m365-audit";
/// The longest note that is read: 200 rules and five content types are a quarter of it.
pub const NOTE_BYTES_MAX: usize = 128 << 10;

/// The signature algorithm's number in a key.
const ED25519_NUMBER: u8 = 1;
/// The prefix of a signature's line.
const SIGNED_BY: &str = "\u{2014} ";

/// Why a note cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note.
    #[error("it is no signed note: {0}")]
    Form(&'static str),
    /// Signed by another key.
    #[error("it is signed by the key `{found}`, not by `{expected}`")]
    OtherKey {
        /// Name and id of the key that the note names.
        found: String,
        /// Name and id of the key given.
        expected: String,
    },
    /// The signature is not that key's over this text.
    #[error("its signature does not fit its text: it was changed after it was signed, or another key signed it")]
    Signature,
}

/// A text that should have been a verifier key and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no verifier key, which is one line `{KEY_NAME}+<8 hexadecimal digits>+<base64>`, as `m365-audit receipts key` prints it: {0}"
)]
pub struct NotAKey(&'static str);

/// Bytes that should have been a private key and are not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is no Ed25519 private key in PKCS#8: {0}")]
pub struct NotASigner(String);

/// The public half of a key, which verifies notes.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    public: [u8; 32],
}

impl VerifierKey {
    fn new(name: &str, public: [u8; 32]) -> Self {
        Self { name: name.to_owned(), public }
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of SHA-256 over the name, a line feed, the algorithm's number and the key.
    pub fn id(&self) -> [u8; 4] {
        let mut hashed = Vec::with_capacity(self.name.len() + 34);
        hashed.extend_from_slice(self.name.as_bytes());
        hashed.push(b'\n');
        hashed.extend_from_slice(&self.numbered());
        let [a, b, c, d, ..] = sha256(&hashed);
        [a, b, c, d]
    }

    fn numbered(&self) -> Vec<u8> {
        std::iter::once(ED25519_NUMBER).chain(self.public).collect()
    }

    /// Name and id, for display.
    pub fn short(&self) -> String {
        format!("{}+{:08x}", self.name, u32::from_be_bytes(self.id()))
    }

    /// The text of a note that this key signed.
    ///
    /// # Errors
    /// When it is not a note, another key signed it, or it was changed.
    pub fn open<'n>(&self, note: &'n str) -> Result<&'n str, NoteError> {
        let note = Note::parse(note)?;
        if note.name != self.name || note.id != self.id() {
            let found = format!("{}+{:08x}", note.name, u32::from_be_bytes(note.id));
            return Err(NoteError::OtherKey { found, expected: self.short() });
        }
        UnparsedPublicKey::new(&ED25519, self.public)
            .verify(note.text.as_bytes(), &note.signature)
            .map_err(|_| NoteError::Signature)?;
        Ok(note.text)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.short(), STANDARD.encode(self.numbered()))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifierKey {
    type Err = NotAKey;

    /// From one line, with or without a line break at its end.
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        // The base64 at the end may have a `+` of its own.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NotAKey("it has not three parts"));
        };
        if !is_key_name(name) {
            return Err(NotAKey("its name is empty, or has a blank in it"));
        }
        let numbered = STANDARD.decode(key).map_err(|_| NotAKey("its last part is not base64"))?;
        let Some((&ED25519_NUMBER, public)) = numbered.split_first() else {
            return Err(NotAKey("it is not an Ed25519 key"));
        };
        let public = public.try_into().map_err(|_| NotAKey("its key has not 32 bytes"))?;
        let key = Self::new(name, public);
        if format!("{:08x}", u32::from_be_bytes(key.id())) != id {
            return Err(NotAKey("its id is not that of its key"));
        }
        Ok(key)
    }
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c == '+' || c.is_whitespace() || c.is_control())
}

/// A note in its parts, not verified.
struct Note<'n> {
    text: &'n str,
    name: &'n str,
    id: [u8; 4],
    signature: [u8; 64],
}

impl<'n> Note<'n> {
    fn parse(note: &'n str) -> Result<Self, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Form("it is too long for one"));
        }
        if note.contains(|c: char| c.is_ascii_control() && c != '\n') {
            return Err(NoteError::Form("it has control characters"));
        }
        let end = note.find("\n\n").ok_or(NoteError::Form("it has no empty line before its signature"))?;
        let (text, signed) = (&note[..=end], &note[end + 2..]);
        let line = signed.strip_suffix('\n').ok_or(NoteError::Form("its last line is cut"))?;
        if line.contains('\n') {
            return Err(NoteError::Form("something follows its first signature"));
        }
        let line = line.strip_prefix(SIGNED_BY).ok_or(NoteError::Form("its last line is no signature"))?;
        let (name, signature) = line.split_once(' ').ok_or(NoteError::Form("its signature has no name"))?;
        if !is_key_name(name) {
            return Err(NoteError::Form("the name of its key is none"));
        }
        let bytes = STANDARD.decode(signature).map_err(|_| NoteError::Form("its signature is not base64"))?;
        let (id, signature) = bytes.split_first_chunk().ok_or(NoteError::Form("its signature is cut"))?;
        let signature = signature.try_into().map_err(|_| NoteError::Form("its signature has not 64 bytes"))?;
        Ok(Self { text, name, id: *id, signature })
    }
}

/// The text of a note with any signer: for notes that are read where they were written.
///
/// # Errors
/// When it is not a note.
pub fn text_of(note: &str) -> Result<&str, NoteError> {
    Ok(Note::parse(note)?.text)
}

/// Cuts a text into its consecutive notes.
pub fn split(text: &str) -> Vec<&str> {
    let mut notes = Vec::new();
    let mut rest = text.trim_start_matches('\n');
    while !rest.is_empty() {
        let signature = rest.find("\n\n").map(|end| end + 2);
        let end = signature.and_then(|begin| rest[begin..].find('\n').map(|length| begin + length + 1));
        let (note, after) = rest.split_at(end.unwrap_or(rest.len()));
        notes.push(note);
        rest = after.trim_start_matches('\n');
    }
    notes
}

/// The private key.
pub struct Signer {
    pair: Ed25519KeyPair,
    key: VerifierKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.key.short())
    }
}

impl Signer {
    /// A new private key, as PKCS#8 (DER).
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate_pkcs8() -> Result<Zeroizing<Vec<u8>>, NotASigner> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let made = made.map_err(|_| NotASigner("the system gives no random numbers".to_owned()))?;
        Ok(Zeroizing::new(made.as_ref().to_vec()))
    }

    /// The signer of this key.
    ///
    /// # Errors
    /// When these bytes are not such a key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, NotASigner> {
        // Also accepts a key without its public half, as `openssl genpkey` writes it.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|e| NotASigner(e.to_string()))?;
        let public = pair.public_key().as_ref().try_into();
        let public = public.map_err(|_| NotASigner("its public half has not 32 bytes".to_owned()))?;
        Ok(Self { pair, key: VerifierKey::new(KEY_NAME, public) })
    }

    /// Its public half.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// Signs a text, whose lines all end in a line feed, into a note.
    pub fn sign(&self, text: &str) -> String {
        let mut signature = self.key.id().to_vec();
        signature.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n{SIGNED_BY}{KEY_NAME} {}\n", STANDARD.encode(signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::from_pkcs8(&Signer::generate_pkcs8().unwrap()).unwrap()
    }

    /// The example of Go's `golang.org/x/mod/sumdb/note`, the origin of the definition.
    #[test]
    fn a_note_that_another_program_signed_opens() {
        let key: VerifierKey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
        let note = format!("{text}\n\u{2014} PeterNeumann {signature}\n");
        assert_eq!(key.open(&note), Ok(text));
    }

    #[test]
    fn a_key_comes_back_from_its_text() {
        let key = signer().key().clone();
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        assert_eq!(format!("{key}\n").parse(), Ok(key.clone()));
        let text = key.to_string();
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<VerifierKey>().is_err(), "{cut}");
        }
        let other = signer().key().to_string();
        let mixed = format!("{}{}", &text[..20], &other[20..]);
        assert_eq!(mixed.parse::<VerifierKey>(), Err(NotAKey("its id is not that of its key")));
    }

    #[test]
    fn a_note_opens_with_its_key_and_no_other() {
        let signer = signer();
        let note = signer.sign("a\nb\n");
        assert_eq!(signer.key().open(&note), Ok("a\nb\n"));
        let other = self::signer();
        assert!(matches!(other.key().open(&note), Err(NoteError::OtherKey { .. })));
    }

    #[test]
    fn notes_one_after_the_other_are_cut_apart() {
        let signer = signer();
        let (one, two) = (signer.sign("a\n"), signer.sign("b\nc\n"));
        assert_eq!(split(&format!("{one}{two}")), [one.as_str(), two.as_str()]);
        assert_eq!(split(&format!("\n{one}\n\n{two}\n")), [one.as_str(), two.as_str()]);
        assert_eq!(split("no note"), ["no note"]);
        assert_eq!(split("\n"), Vec::<&str>::new());
    }

    #[test]
    fn no_byte_of_a_note_can_be_changed() {
        let signer = signer();
        let note = signer.sign("a\nb\n");
        for at in 0..note.len() {
            for bit in 0..8 {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                assert!(signer.key().open(&changed).is_err(), "byte {at}, bit {bit}");
            }
            if note.is_char_boundary(at) {
                assert!(signer.key().open(&note[..at]).is_err(), "cut at {at}");
            }
        }
        assert!(signer.key().open(&format!("{note}\n")).is_err());
        let line = note.lines().last().unwrap();
        assert!(signer.key().open(&format!("{note}{line}\n")).is_err());
    }
}
