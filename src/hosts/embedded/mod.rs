//! The embedded default host.

pub mod memory;
pub mod store;
