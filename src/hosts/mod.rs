//! One agent, one file; and what several of them share.

#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "embedded")]
pub mod file;
pub(crate) mod json_walk;
pub(crate) mod msgpack;
#[cfg(feature = "embedded")]
pub mod stdout;
