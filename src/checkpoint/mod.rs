//! The ledger: which events are delivered, which blobs are settled, how far each stream has come, and the one writer of
//! this state.
//!
//! Reading order: [`mod@format`] (the stored format), [`server_clock`] (Microsoft's time), [`key_set`] (sets of keys on
//! disk), [`claims`] (events delivered and in flight), [`healed`] (events of Microsoft Graph among them), [`mod@heal`]
//! (gaps being filled), [`held`] (routine reads on hold), [`journal`] (receipts), [`lateness`] (how late content
//! comes), [`ledger`] (the writer), [`moving`] (positions moved by hand), [`purge`] (all data of a tenant removed).
//!
//! Invariants, used by name in documents, assertions and tests:
//! - **CK-1** `complete_until` never passes a window with an unread page or an unanswered blob.
//! - **CK-2** a settled blob id is not delivered again while Microsoft may still list it.
//! - **CK-3** the state is never ahead of what the host confirmed.
//! - **CK-4** no window is over 24 h, in the future, or past 7 days.
//! - **CK-5** blobs and bytes in flight stay under their limits.

pub mod claims;
pub mod format;
pub mod heal;
pub mod healed;
pub mod held;
pub mod journal;
pub mod key;
pub mod key_set;
pub mod lateness;
pub mod ledger;
pub mod moving;
pub mod purge;
pub mod server_clock;
pub mod snapshot;
