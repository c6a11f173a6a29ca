//! Where a tenant's sealed parts begin and end, in the state.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::merkle::Hash;
use super::seal::Sealed;
use super::statement::Hour;

/// The format this build reads and writes.
const FORMAT: u32 = 1;

/// Stored beside the sealed parts, in the commit that seals one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHead {
    /// Format version.
    pub format: u32,
    /// The number of the next part.
    pub seq: u64,
    /// The least number of a part that is kept: those before it were older than `[receipts] days`.
    pub first: u64,
    /// The last part that was sealed; `None` before there is one.
    #[serde(default)]
    pub sealed: Option<LastSealed>,
    /// The last writer with receipts that took the state over, as in its `owner` entry. A different one there means
    /// that a process without receipts has run since.
    #[serde(default)]
    pub writer: String,
    /// The least number of a part whose checkpoint may not have reached the sinks that get them; meaningful only while
    /// there are such sinks.
    #[serde(default)]
    pub unsent: u64,
    /// The last hour that must be marked as a beginning of receipts: the one in which a process with receipts started,
    /// for the first time or after one without. All hours from the last commit with receipts to that one may lack some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_until: Option<Hour>,
}

/// The last part that was sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSealed {
    /// Its hour.
    pub hour: Hour,
    /// Its number in the hour.
    pub part: u32,
    /// Whether it was the hour's last.
    pub last: bool,
    /// The hash of its statement.
    #[serde(serialize_with = "write_hash", deserialize_with = "read_hash")]
    pub hash: Hash,
}

impl Default for StoredHead {
    fn default() -> Self {
        Self { format: FORMAT, seq: 0, first: 0, sealed: None, writer: String::new(), unsent: 0, begins_until: None }
    }
}

impl StoredHead {
    /// The hash that the next part has as `previous`.
    pub fn previous(&self) -> Hash {
        self.sealed.as_ref().map_or([0; 32], |sealed| sealed.hash)
    }

    /// The head to store together with this part.
    #[must_use]
    pub fn after(&self, sealed: &Sealed) -> Self {
        let statement = &sealed.statement;
        let last = LastSealed {
            hour: statement.hour,
            part: statement.part,
            last: statement.last,
            hash: sealed.statement_hash,
        };
        let begun = |until: &Hour| statement.hour < *until || statement.hour == *until && !statement.last;
        let begins_until = self.begins_until.filter(begun);
        Self { seq: statement.seq.saturating_add(1), sealed: Some(last), begins_until, ..self.clone() }
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Serializing this plain struct to memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From stored bytes.
    ///
    /// # Errors
    /// The fault of the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct HeadVersion {
            format: u32,
        }
        let version: HeadVersion = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if version.format > FORMAT {
            return Err(format!(
                "it has format {}, this build writes {FORMAT}; start the newer build that wrote it",
                version.format
            ));
        }
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }
}

fn write_hash<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(hash))
}

fn read_hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
    let text = String::deserialize(deserializer)?;
    let hash = STANDARD.decode(&text).ok().and_then(|bytes| bytes.try_into().ok());
    hash.ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not the base64 of 32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_a_newer_one_is_refused() {
        let hour = "2026-11-30T10:00:00Z".parse().unwrap();
        let sealed = LastSealed { hour, part: 2, last: false, hash: [5; 32] };
        let head = StoredHead { seq: 7, first: 3, sealed: Some(sealed), ..StoredHead::default() };
        assert_eq!(StoredHead::decode(&head.encode()), Ok(head));
        assert!(StoredHead::decode(br#"{"format":2}"#).unwrap_err().contains("format 2"));
        assert!(StoredHead::decode(b"{").is_err());
    }
}
