//! Receipts: what became of every event, so that it can be shown to somebody who does not trust us.
//!
//! Owns: the format of receipts (`docs/receipts.md`), how an hour of them is sealed, signed and chained, and how a copy
//! is verified. Refuses to know: when a receipt is committed (`checkpoint`), and any clock.
//!
//! `entry` is one receipt, `open` the page of those of one commit, `seal` makes the entries of a part of them, `statement`
//! is what is signed of it, as a signed note (`note`) over the root of a tree (`leaves`, `merkle`), and `head` where the parts in
//! the state begin and end. `verify` verifies parts, wherever they come from: `store` reads them from a state, `directory`
//! from exported files.

pub mod directory;
pub mod entry;
pub mod head;
pub mod leaves;
pub mod merkle;
pub mod note;
pub mod open;
pub mod seal;
pub mod statement;
pub mod store;
pub mod verify;

pub use entry::{Class, Receipt};
pub use open::Receipts;
