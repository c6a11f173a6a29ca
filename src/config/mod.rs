//! What the operator writes: the TOML file, its defaults, its problems.

mod record;

pub use record::{Format, RawForm};
