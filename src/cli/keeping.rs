//! How a command that writes a state keeps receipts: as `[receipts]` says, with the key in `data_dir`.

use std::sync::Arc;

use super::Failure;
use crate::checkpoint::journal::Keeping;
use crate::config::Config;
use crate::hosts::embedded::receipts_key;

/// `None` where receipts are off. For a process that has the lock of the state: a key that is not there is made.
///
/// # Errors
/// The key cannot be used or made.
pub(super) fn keeping(config: &Config) -> Result<Option<Keeping>, Failure> {
    if config.receipts.days == 0 {
        return Ok(None);
    }
    let signer = Arc::new(receipts_key::open_or_make(&config.data_dir)?);
    Ok(Some(Keeping { signer, days: config.receipts.days, sends: !config.receipts.to.is_empty() }))
}
