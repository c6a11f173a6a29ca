//! Events made into records.
