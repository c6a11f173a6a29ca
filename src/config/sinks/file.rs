//! `type = "file"`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Issue;
use crate::config::schema::keys_of;

/// Appends each record as one line of JSON to a file that an agent tails.
///
/// By default most agents stop at, truncate or drop a line longer than 8 KiB to 1 MiB: `docs/hosts/tail.md` has the
/// setting of each. A record counts as delivered once it is written and fsynced, so a crash of this program loses no
/// record. With `rotate_bytes` or `rotate_secs` the file is renamed to `<path>.<time>` when it is full or old, and a
/// new one is begun; it is never truncated. Renamed files stay unless `keep` is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileConfig {
    /// The file to append to. It is created with mode 0600, and its directory with it, when it does not exist.
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/var/log/m365/audit.ndjson")]
    pub path: PathBuf,

    /// Bytes after which the file is renamed and a new one begun. A group of records stays together, so a file may
    /// be some megabytes larger.
    #[serde(default)]
    #[schemars(range(min = 4096, max = 1_099_511_627_776_u64), example = 104857600)]
    pub rotate_bytes: Option<u64>,

    /// Seconds after its first record when the file is renamed and a new one begun. Checked when records arrive: a file
    /// without new records stays as it is.
    #[serde(default)]
    #[schemars(range(min = 1, max = 31_536_000), example = 86400)]
    pub rotate_secs: Option<u64>,

    /// How many renamed files stay; older ones are deleted, whether or not an agent has read them. This is the one
    /// setting of this program that can lose records. Default: all stay.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100_000), example = 30)]
    pub keep: Option<u64>,
}

impl FileConfig {
    pub(super) fn keys() -> Vec<&'static str> {
        keys_of::<Self>().to_vec()
    }

    pub(super) fn issues(&self) -> Vec<Issue> {
        match (self.keep, self.rotate_bytes, self.rotate_secs) {
            (Some(_), None, None) => {
                vec![Issue::new("keep", "`rotate_bytes` or `rotate_secs` beside it: nothing is renamed without them")]
            }
            _ => Vec::new(),
        }
    }
}
