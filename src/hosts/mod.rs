//! One agent, one file.

#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "embedded")]
pub mod file;
#[cfg(feature = "fluent-bit")]
pub mod fluent_bit;
#[cfg(feature = "embedded")]
pub mod stdout;
