//! Receipts: what became of every event, so that it can be shown to somebody who does not trust us.
//!
//! Owns: the format of receipts (`docs/receipts.md`), how an hour of them is sealed, signed and chained, and how a copy
//! is verified. Refuses to know: when a receipt is committed (`checkpoint`), and any clock.
//!
//! `entry` is one receipt, `open` the receipts of one commit whose hour is not sealed yet, `seal` what an hour is sealed
//! into.

pub mod entry;
pub mod open;

pub use entry::{Class, Receipt};
pub use open::Receipts;
