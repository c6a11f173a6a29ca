//! `m365-audit plugin`: prints the manifest of this build.

use std::io::{self, Write};

use crate::plugin::manifest_toml;

/// Arguments of `plugin`: none.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the manifest.
///
/// # Errors
/// `out` cannot be written.
pub fn plugin(_: &Args, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(manifest_toml().map_err(io::Error::other)?.as_bytes())
}
