//! What an operator hands to an auditor: what was read of each tenant, what became of it, what is missing and why, and
//! whether it was verified.
//!
//! Owns: what a report says and the forms it is written in. Refuses to know: how a state is opened, where a report goes, and
//! any clock. It reads the state alone; what the state does not know is `not known` in the report and never a zero.
//!
//! `gather` reads a state into a `model`: `bar` is how far a content type was read, `tally` what receipts say by the day,
//! `delays` how late content came, `reconciled` the verdict of the last `reconcile`, and `findings` what follows from all of
//! them. `text` and `html` write it, in the words of `words`; the pictures in the HTML are made by `svg`.

pub mod bar;
mod delays;
mod findings;
pub mod gather;
pub mod html;
pub(crate) mod markup;
pub mod model;
pub(crate) mod notes;
pub mod reconciled;
pub(crate) mod svg;
mod tables;
mod tally;
pub mod text;
mod words;
