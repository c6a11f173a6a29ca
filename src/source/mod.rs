//! The source.
