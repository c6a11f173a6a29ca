//! `type = "file"`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Appends each record as one line of JSON to a file that any agent can tail.
///
/// A record counts as delivered once it is written and fsynced, so a crash costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileConfig {
    /// The file to append to. It is created with mode 0600 when it does not exist; its directory must exist.
    #[schemars(length(min = 1), extend("x-expected" = "a path"), example = &"/var/log/m365/audit.ndjson")]
    pub path: PathBuf,
}
