//! Audit events as people have them: exports, archives, and what other tools have wrapped around an event.
//!
//! Owns: what a file holds, where one event in it begins and ends, what stands around it, and how it is brought back to
//! the form in which the feed sends it. Refuses to know: what an event means, and who asked. One reader serves every
//! command that takes files.
//!
//! From the outside in: `input` opens files and archives and makes their text UTF-8, `units` cuts that into rows and
//! values (`rows` knows CSV), `unwrap` finds the event in a value, `columns` makes one of a flat row, `restore` brings
//! it back to the feed's form, `pipeline` does all of that on every core and in order.

pub mod columns;
#[cfg(feature = "exports")]
pub mod encoding;
pub mod form;
#[cfg(feature = "exports")]
pub mod input;
pub mod office_activity;
pub mod outer;
pub mod page;
#[cfg(feature = "exports")]
pub mod pipeline;
pub mod place;
pub mod powershell;
pub mod prefix;
pub mod restore;
pub mod rows;
pub mod seen;
pub mod table;
pub mod unit;
pub mod units;
pub mod unwrap;
mod values;
