//! A text that must never be shown, and that is overwritten when it is no longer needed.
//!
//! This covers the copies that this process keeps itself: the secret, the token, the body of the token's request and
//! answer, the `Authorization` header. It cannot overwrite copies in the buffers of the HTTP and TLS libraries and in
//! the environment.

use std::fmt;

use bytes::Bytes;
use reqwest::header::{HeaderValue, InvalidHeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The text shown in place of a secret.
pub const MASK: &str = "***";

/// A secret text. `Debug`, `Display` and `Serialize` show [`MASK`]; only [`Secret::expose`] shows the text. Its memory is
/// overwritten on drop.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Secret {}

/// A header's value that no log shows, from the concatenated `parts`; overwritten when its last copy is dropped.
///
/// # Errors
/// A part has a character that is not valid in a header.
pub(crate) fn secret_header(parts: &[&str]) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(wiped_bytes(parts.concat()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `text` as bytes that are overwritten when their last copy is dropped.
pub(crate) fn wiped_bytes(text: String) -> Bytes {
    Bytes::from_owner(Zeroizing::new(text.into_bytes()))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_itself_to_nobody_who_does_not_ask() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {secret}"), "*** ***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        assert_eq!(secret.expose(), "hunter2");
    }

    /// The content of this process's memory at an address, read through the kernel, so that no reference to freed
    /// memory is made.
    #[cfg(target_os = "linux")]
    fn memory_at(address: usize, length: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; length];
        std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address as u64).unwrap();
        bytes
    }

    /// The allocator writes its own data over the first bytes of freed memory; the rest is unchanged.
    #[cfg(target_os = "linux")]
    const ALLOCATORS_NOTES: usize = 32;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_secret_is_gone_from_memory_when_it_is_dropped() {
        let text = || "s3cret-".repeat(20);
        let places: [(usize, Box<dyn FnOnce()>); 3] = [
            {
                let secret = Secret::new(text());
                (secret.expose().as_ptr() as usize, Box::new(move || drop(secret)))
            },
            {
                let header = secret_header(&["Bearer ", &text()]).unwrap();
                let copy = header.clone();
                (header.as_bytes().as_ptr() as usize, Box::new(move || drop((header, copy))))
            },
            {
                let body = wiped_bytes(text());
                (body.as_ptr() as usize, Box::new(move || drop(body)))
            },
        ];
        for (address, end) in places {
            let at = address + ALLOCATORS_NOTES;
            let holds = |bytes: &[u8]| bytes.windows(7).any(|seen| seen == b"s3cret-");
            assert!(holds(&memory_at(at, 60)), "the secret is not where it was looked for");
            end();
            assert!(!holds(&memory_at(at, 60)), "the secret was left in memory");
        }
    }

    #[test]
    fn a_header_with_a_secret_says_that_it_is_one() {
        let header = secret_header(&["Bearer ", "t0ken"]).unwrap();
        assert_eq!(header, "Bearer t0ken");
        assert_eq!(format!("{header:?}"), "Sensitive");
        assert!(secret_header(&["Bearer ", "a\nb"]).is_err());
    }
}
