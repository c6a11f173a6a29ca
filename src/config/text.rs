//! Decodes the text files of editors and shells: UTF-8 with or without a byte order mark, and the UTF-16 that Windows
//! PowerShell and Notepad write.
//!
//! It uses `encoding_rs`, which decodes as browsers do and reports errors.

use std::fmt;

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE};
use zeroize::Zeroizing;

/// Why bytes are not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotText {
    /// Neither UTF-8 nor marked as anything else.
    Utf8,
    /// Marked as UTF-16, or looking like it, and broken.
    Utf16,
    /// UTF-32.
    Utf32,
    /// NUL bytes that fit no encoding.
    Binary,
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Utf8 => "it is not UTF-8: save it as UTF-8 (PowerShell: `Set-Content -Encoding utf8`)",
            Self::Utf16 => "it begins as UTF-16 and is damaged: save it as UTF-8",
            Self::Utf32 => "it is UTF-32: save it as UTF-8",
            Self::Binary => "it holds NUL bytes, so it is no text: save it as UTF-8",
        })
    }
}

impl std::error::Error for NotText {}

/// The text that `bytes` hold, without a byte order mark. Its memory is overwritten when it is dropped: it may be a
/// secret.
pub(crate) fn decode(bytes: &[u8]) -> Result<Zeroizing<String>, NotText> {
    if bytes.starts_with(&[0xff, 0xfe, 0, 0]) || bytes.starts_with(&[0, 0, 0xfe, 0xff]) {
        return Err(NotText::Utf32);
    }
    let (encoding, mark) = match Encoding::for_bom(bytes) {
        Some(found) => found,
        None => (guess(bytes)?, 0),
    };
    let rest = bytes.get(mark..).unwrap_or_default();
    let broken = if encoding == encoding_rs::UTF_8 { NotText::Utf8 } else { NotText::Utf16 };
    let text = encoding.decode_without_bom_handling_and_without_replacement(rest).ok_or(broken)?;
    let text = Zeroizing::new(text.into_owned());
    if text.contains('\0') { Err(NotText::Binary) } else { Ok(text) }
}

/// The encoding of a text without a mark. Configuration text is mostly ASCII, so in UTF-16 every second byte is NUL.
fn guess(bytes: &[u8]) -> Result<&'static Encoding, NotText> {
    if !bytes.contains(&0) {
        return Ok(encoding_rs::UTF_8);
    }
    let nul = |odd: usize| bytes.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count() * 2;
    let most = |count: usize| count >= bytes.len() - bytes.len() / 8;
    match () {
        () if bytes.len() >= 4 && bytes.len().is_multiple_of(2) && most(nul(1)) && nul(0) == 0 => Ok(UTF_16LE),
        () if bytes.len() >= 4 && bytes.len().is_multiple_of(2) && most(nul(0)) && nul(1) == 0 => Ok(UTF_16BE),
        () => Err(NotText::Binary),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `text` in the encodings that Windows programs write, with their names.
    pub(crate) fn encoded(text: &str) -> Vec<(&'static str, Vec<u8>)> {
        let units = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let (little, big) = (units(u16::to_le_bytes), units(u16::to_be_bytes));
        vec![
            ("UTF-8", text.as_bytes().to_vec()),
            ("UTF-8 with a mark", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
            ("UTF-16 LE with a mark", [b"\xff\xfe".to_vec(), little.clone()].concat()),
            ("UTF-16 BE with a mark", [b"\xfe\xff".to_vec(), big.clone()].concat()),
            ("UTF-16 LE", little),
            ("UTF-16 BE", big),
        ]
    }

    #[test]
    fn a_text_is_the_same_in_every_encoding_of_a_windows_machine() {
        for (encoding, bytes) in encoded("client_secret = \"abc~é\"\r\n") {
            assert_eq!(
                decode(&bytes).as_deref().map(String::as_str),
                Ok("client_secret = \"abc~é\"\r\n"),
                "{encoding}"
            );
        }
        assert_eq!(decode(b"").as_deref().map(String::as_str), Ok(""));
    }

    #[test]
    fn what_is_no_text_is_named() {
        for (bytes, expected) in [
            (&b"caf\xe9"[..], NotText::Utf8),
            (b"\xff\xfea", NotText::Utf16),
            (b"\xff\xfe\0\0a\0\0\0", NotText::Utf32),
            (b"\0\0\xfe\xff\0\0\0a", NotText::Utf32),
            (b"a\0b", NotText::Binary),
            (b"abcdef\0", NotText::Binary),
            (b"\x30\x82\0\x01\x02\x03\0\x05", NotText::Binary),
        ] {
            assert_eq!(decode(bytes).map(|text| text.to_string()), Err(expected), "{bytes:?}");
        }
    }
}
