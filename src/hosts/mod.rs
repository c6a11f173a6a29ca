//! One agent, one file.

#[cfg(feature = "embedded")]
pub mod embedded;
