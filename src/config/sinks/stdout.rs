//! `type = "stdout"`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Writes each record as one line of JSON to standard output.
///
/// A record counts as delivered once its bytes are flushed into the pipe: for tests, and for agents that start this
/// program as a child. Records that the reader loses after that are lost.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct StdoutConfig {}

impl StdoutConfig {
    pub(super) fn keys() -> Vec<&'static str> {
        Vec::new()
    }

    pub(super) fn issues(&self) -> Vec<super::Issue> {
        Vec::new()
    }
}
