//! One flat row to an event: tables whose columns are the members.

use bytes::Bytes;

use super::form::Form;
use super::outer::Outer;
use super::restore::Unrestorable;

/// The header of such a table.
#[derive(Debug, Clone)]
pub struct Header {
    form: Form,
}

impl Header {
    /// The header of these cells, where they are one.
    pub fn of(_cells: &[&str]) -> Option<Header> {
        None
    }

    /// What the table is.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The event of a row.
    ///
    /// # Errors
    /// The row has no cell that makes an event.
    pub fn event(&self, _cells: &[&str]) -> Result<(Bytes, Outer), Unrestorable> {
        Err(Unrestorable { why: "a row without an event".into() })
    }
}
