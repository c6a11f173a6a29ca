//! The nouns that all modules use: tenants, content types, blobs, windows, the identity of an event.
//!
//! No I/O, no clock, and no wire format of Microsoft or a host. Facts about the Management Activity API follow
//! Microsoft's "Office 365 Management Activity API reference".

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use jiff::Timestamp;

/// An error that an operator can act on: a stable slug (also the name of its page under `docs/errors/`), what could not
/// be done (the `Display` text: lower case, no full stop, values in backticks, never a secret), and the remedy.
pub trait Actionable: std::error::Error {
    /// Kebab-case name, never reused for another meaning.
    fn slug(&self) -> &'static str;
    /// The remedy, one line.
    fn hint(&self) -> String;
}

/// A text for display: in one line, without control characters and without characters that change the direction of
/// writing and so disguise a name.
pub fn plain(text: &str) -> Cow<'_, str> {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let odd = |c: char| c.is_control() || turns(c);
    if !text.contains(odd) {
        return Cow::Borrowed(text);
    }
    let parts = text.split('\n').map(|part| part.trim().replace(odd, "\u{fffd}"));
    Cow::Owned(parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; "))
}

/// How much of a foreign text is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 1024;

/// A foreign text for a log, an error or a state: if it is long, its beginning and its length.
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_BYTES_MAX {
        return Cow::Borrowed(text);
    }
    let mut end = SHOWN_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}… ({} bytes in all)", text.get(..end).unwrap_or_default(), text.len()))
}

/// Where the book (`docs/`, by `mdbook build`) is served, for links that lead there: alerts and `/status.html`. To
/// serve it elsewhere, set `[metrics] docs_url` and replace this text in the alert rules.
pub const DOCS_URL: &str = "https://m365-audit.invalid/book";

/// The slug at the beginning of an error's text, as in `auth-secret-wrong: …`.
pub fn slug_of(text: &str) -> Option<&str> {
    let (slug, _) = text.split_once(": ")?;
    let is_slug = slug.contains('-') || slug == "internal";
    (is_slug && slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')).then_some(slug)
}

/// The path of an error's page, from the root of the repository and of the package's documents.
pub fn error_page(slug: &str) -> String {
    format!("docs/errors/{slug}.md")
}

/// A tenant's GUID, lower case. The API's URL accepts only the GUID, never a domain (AF20013).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// The GUID as text, 36 characters, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

/// A text that should have been a GUID and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a GUID (8-4-4-4-12 hexadecimal digits)")]
pub struct NotAGuid(pub String);

impl FromStr for TenantId {
    type Err = NotAGuid;

    fn from_str(text: &str) -> Result<Self, NotAGuid> {
        if is_guid(text) { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(NotAGuid(text.to_owned())) }
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is a GUID of the form 8-4-4-4-12, in either case, without braces.
pub fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// The five content types of the feed, spelled as Microsoft spells them (the API echoes other spellings and
/// then lists nothing).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContentType {
    /// `Audit.AzureActiveDirectory`
    AzureActiveDirectory,
    /// `Audit.Exchange`
    Exchange,
    /// `Audit.SharePoint`
    SharePoint,
    /// `Audit.General`
    General,
    /// `DLP.All`; needs the permission `ActivityFeed.ReadDlp` beside `ActivityFeed.Read`.
    Dlp,
}

impl ContentType {
    /// All five, in the order Microsoft's reference names them.
    pub const ALL: [ContentType; 5] =
        [Self::AzureActiveDirectory, Self::Exchange, Self::SharePoint, Self::General, Self::Dlp];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AzureActiveDirectory => "Audit.AzureActiveDirectory",
            Self::Exchange => "Audit.Exchange",
            Self::SharePoint => "Audit.SharePoint",
            Self::General => "Audit.General",
            Self::Dlp => "DLP.All",
        }
    }
}

/// A text that is not one of the five content types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a content type")]
pub struct NotAContentType(pub String);

impl FromStr for ContentType {
    type Err = NotAContentType;

    fn from_str(text: &str) -> Result<Self, NotAContentType> {
        Self::ALL.into_iter().find(|t| t.as_str() == text).ok_or_else(|| NotAContentType(text.to_owned()))
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One tenant's feed of one content type: positions, listings and gaps belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// The tenant.
    pub tenant: TenantId,
    /// The content type.
    pub content_type: ContentType,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of tenant `{}`", self.content_type, self.tenant)
    }
}

/// A content blob from a listing. The blob's events are fetched from `uri`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// The content type it was listed under.
    pub content_type: ContentType,
    /// `contentId`: opaque; parsed only for the time of a blob that is listed without one.
    pub id: Arc<str>,
    /// `contentUri` as listed; checked against the configured API origin before any call.
    pub uri: Arc<str>,
    /// `contentCreated`: when the blob became available, not when its events happened. Milliseconds. Where the listing
    /// does not tell, what its id or its expiry tells, or else the beginning of the day it was listed for.
    pub created: Timestamp,
    /// `contentExpiration`: until when Microsoft serves it, by Microsoft's clock.
    pub expires: Timestamp,
}

/// A half-open range of `contentCreated`: `start <= contentCreated < end`, whole seconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// First instant inside.
    pub start: Timestamp,
    /// First instant after it.
    pub end: Timestamp,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}..{})", self.start, self.end)
    }
}

/// The identity of an event: the members that duplicate removal compares.
///
/// Values are the JSON tokens as received (numbers and strings alike); an event without an `Id` has no identity and
/// never counts as a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventIdentity<'a> {
    /// `Id`, unquoted, never empty.
    pub id: &'a str,
    /// `RecordType`, unquoted, so that `20` and `"20"` agree; empty when absent.
    pub record_type: &'a str,
    /// `CreationTime`, unquoted; empty when absent.
    pub creation_time: &'a str,
    /// `Operation`, unquoted; empty when absent.
    pub operation: &'a str,
    /// `RecordNumber` (eDiscovery records come in numbered parts), unquoted; empty when absent.
    pub record_number: &'a str,
}

/// A count with its noun, as in `1 blob`, `2 blobs`. For nouns that take an `s`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_one_line_that_commands_nothing() {
        assert!(matches!(plain("häuser `x` 日本"), Cow::Borrowed(_)));
        assert_eq!(plain("a\u{1b}[2J\u{9b}31m\r\n  b\n\n\tc\u{202e}d"), "a\u{fffd}[2J\u{fffd}31m; b; c\u{fffd}d");
    }

    #[test]
    fn a_tenant_id_is_a_guid_in_lower_case() {
        let id: TenantId = "0A1B2C3D-0000-1111-2222-33334444ABCD".parse().unwrap();
        assert_eq!(id.as_str(), "0a1b2c3d-0000-1111-2222-33334444abcd");
        for bad in [
            "",
            "contoso.onmicrosoft.com",
            "{0a1b2c3d-0000-1111-2222-33334444abcd}",
            "0a1b2c3d-0000-1111-2222-33334444abcg",
        ] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn content_types_are_spelled_exactly() {
        for t in ContentType::ALL {
            assert_eq!(t.as_str().parse::<ContentType>(), Ok(t));
        }
        assert!("DLP.ALL".parse::<ContentType>().is_err());
    }
}
