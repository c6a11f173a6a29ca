//! Receipts: the outcome of every event, provable to a third party that does not trust the operator.
//!
//! Owns the format of receipts (`docs/receipts.md`), the sealing, signing and chaining of an hour of them, and the
//! verification of a copy. Does not know when a receipt is committed (`checkpoint`), nor any clock.
//!
//! `entry` is one receipt, `open` the page of one commit's receipts, `seal` makes the entries of a part, `statement` is
//! the signed statement of a part, as a signed note (`note`) over the root of a tree (`leaves`, `merkle`), and `head`
//! records where the parts in the state begin and end. `verify` verifies parts from any origin: `store` reads them from
//! a state, `directory` from exported files.

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
pub use open::OpenReceipts;
