//! The ledger.

pub mod key_set;
