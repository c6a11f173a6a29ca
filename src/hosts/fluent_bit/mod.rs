//! Fluent Bit's configuration, as far as it concerns the input `m365_audit`.
//!
//! The input itself is `plugins/fluent-bit`. It reads its properties with [`settings`]; `m365-audit validate
//! --fluent-bit` reads whole files with `file` and checks their inputs against the same settings in `check`. [`names`]
//! suggests which property an unknown name was probably meant to be.

#[cfg(feature = "cli")]
pub mod check;
#[cfg(feature = "cli")]
pub mod file;
pub mod names;
pub mod settings;
