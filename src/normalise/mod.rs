//! Events made into records.

pub mod split;
