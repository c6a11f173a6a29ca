//! The report for an auditor: which content of each tenant was read, its outcome, what is missing and why, and whether
//! it was verified.
//!
//! Owns the content of a report and its formats. Does not know how a state is opened, where a report is written, nor
//! any clock. It reads only the state; a value that the state does not have is `not known` in the report and never a
//! zero.
//!
//! `gather` reads a state into a `model`: `bar` computes how far a content type was read, `tally` counts receipts by
//! the day, `delays` computes how late content came, `reconciled` reads the verdict of the last `reconcile`, and
//! `findings` derives the findings from all of them. `text` and `html` write the report, with the words of `words`;
//! `svg` draws the pictures in the HTML.

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
