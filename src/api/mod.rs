//! The feed's calls.
