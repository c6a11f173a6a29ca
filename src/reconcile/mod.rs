//! Compares the audit search, Microsoft's second witness, with what the feed brought and what became of it.
//!
//! Owns: the class of each row of an export, both directions of the comparison, and how far the export itself can be
//! believed. Refuses to know: the command line, files of the configuration, and any clock (callers hand in the time). It
//! writes nothing but what it is given to write to, and reads the state without taking it over.
//!
//! From the inside out: `table` is a set of keys with a few bytes beside each, `class` says what a row is, `rows` are
//! those of an export, `content_type` which content type would have brought it, `witness` judges the export, `evidence` is
//! what is known of events and where that is read, `stored` has the receipts of a state, `marks` notes them on the rows,
//! `passes` reads exports and records of ours, `identities` keeps what rows are looked up by, `ours` collects what the
//! export lacks, `compare` does all of it in order, `verdict` is what comes out.

pub mod class;
#[cfg(feature = "exports")]
pub mod compare;
pub mod content_type;
pub mod evidence;
#[cfg(feature = "exports")]
mod identities;
#[cfg(feature = "exports")]
mod marks;
#[cfg(feature = "exports")]
mod ours;
#[cfg(feature = "exports")]
mod passes;
pub mod rows;
#[cfg(feature = "exports")]
pub mod spool;
pub mod stored;
pub mod table;
#[cfg(feature = "exports")]
pub mod verdict;
pub mod witness;
