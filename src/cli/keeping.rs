//! How a command that writes a state keeps receipts: as `[receipts]` configures, with the key in `data_dir`.

use std::sync::Arc;

use crate::checkpoint::journal::Keeping;
use crate::config::Config;
use crate::hosts::embedded::receipts_key;
use crate::model::Actionable;

/// `None` if receipts are off, or cannot be signed, which is logged; no event waits for it. Only for a process that has
/// the lock of the state, since it creates a missing key.
pub(super) fn keeping(config: &Config) -> Option<Keeping> {
    if config.receipts.days == 0 {
        return None;
    }
    // In a cluster, a new key would be one that the other members lack.
    let opened = match config.cluster {
        Some(_) => receipts_key::open(&config.receipts_key()),
        None => receipts_key::open_or_make(&config.receipts_key()),
    };
    match opened {
        Ok(signer) => {
            let sends = !config.receipts.to.is_empty();
            Some(Keeping { signer: Arc::new(signer), days: config.receipts.days, sends })
        }
        Err(error) => {
            tracing::error!(
                "{}: {error}; events are collected without receipts until the next start (hint: {})",
                error.slug(),
                error.hint()
            );
            None
        }
    }
}
