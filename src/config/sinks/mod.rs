//! The sink types of the embedded host: one file each, and one line in the table below.
//!
//! This is what an operator writes about a sink; what a sink does lives with the embedded host.

mod file;
mod stdout;

use schemars::Schema;
use serde::Serialize;

pub use file::FileConfig;
pub use stdout::StdoutConfig;

use super::schema;

/// A sink and the sources it reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SinkEntry {
    /// Names of the sources this sink receives, without repetition; never empty.
    pub inputs: Vec<String>,
    /// The sink itself.
    pub sink: SinkConfig,
}

/// One sink type: what the checker, the schema and the reference page need of it.
pub(crate) struct SinkKind {
    /// The word in `type`.
    pub name: &'static str,
    /// The schema of its own keys (without `type` and `inputs`).
    pub schema: fn() -> Schema,
    /// Its keys in the order they are declared.
    pub keys: fn() -> &'static [&'static str],
    /// Reads its own keys.
    pub read: fn(toml::Table) -> Result<SinkConfig, toml::de::Error>,
}

macro_rules! sinks {
    ($($variant:ident($config:ty) = $name:literal, $doc:literal;)*) => {
        /// What a sink is, by its `type`.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum SinkConfig {
            $(
                #[doc = $doc]
                #[serde(rename = $name)]
                $variant($config),
            )*
        }

        impl SinkConfig {
            /// The word in `type`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }
        }

        /// Every sink type this build knows.
        pub(crate) const SINK_KINDS: &[SinkKind] = &[
            $(SinkKind {
                name: $name,
                schema: schema::schema_of::<$config>,
                keys: schema::keys_of::<$config>,
                read: |table| toml::Value::Table(table).try_into().map(SinkConfig::$variant),
            },)*
        ];
    };
}

sinks! {
    Stdout(StdoutConfig) = "stdout", "Newline-delimited JSON on standard output.";
    File(FileConfig) = "file", "Newline-delimited JSON appended to a file.";
}
