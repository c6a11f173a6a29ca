//! Audit events as people have them: exports, archives, and the wrappers of other tools.
//!
//! Owns the type of a file, the boundaries of each event in it, the wrapper around it, and its conversion back to the
//! form of the feed. Does not know the meaning of an event, nor the calling command. One reader serves every command
//! that takes files.
//!
//! From the outside in: `input` opens files and archives and makes their text UTF-8, `units` cuts that into rows and
//! values (`rows` knows CSV), `unwrap` finds the event in a value, `columns` makes one from a flat row, `restore`
//! converts it back to the feed's form, `pipeline` does all of that on every core and in order.

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
