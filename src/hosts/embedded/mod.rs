//! The embedded default host.
