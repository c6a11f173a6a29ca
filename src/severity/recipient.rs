//! Whether a mail recipient named in a rule or a forwarding address is outside the organisation.
//!
//! Only whole labels of a domain count: `0nmicrosoft.com` is not `onmicrosoft.com`, and another tenant's
//! `evil.onmicrosoft.com` is outside. The caller passes the organisation's domains.

/// Where a recipient is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient {
    /// In one of the organisation's domains.
    Internal,
    /// In another domain.
    External,
    /// Unknown: a name, a directory object or a legacy address.
    Unknown,
}

/// The domains known to be the organisation's.
#[derive(Debug, Clone, Default)]
pub struct Domains(Vec<String>);

impl Domains {
    /// Adds a domain in any case, with or without a trailing dot; an empty one is not added.
    pub fn add(&mut self, domain: &str) {
        let domain = normal_domain(domain);
        if !domain.is_empty() && !self.0.contains(&domain) {
            self.0.push(domain);
        }
    }

    /// Adds the domain of an address (`user@contoso.com`); the domain of a guest (`#EXT#`) is not the organisation's
    /// and is not added, nor is a text without exactly one `@`.
    pub fn add_of_address(&mut self, address: &str) {
        if is_guest(address) {
            return;
        }
        if let Some((local, domain)) = address.trim().split_once('@')
            && !local.is_empty()
            && !domain.contains('@')
            && domain.contains('.')
        {
            self.add(domain);
        }
    }

    /// Whether `domain` is one of these or below one of these.
    pub fn contains(&self, domain: &str) -> bool {
        let domain = normal_domain(domain);
        self.0.iter().any(|own| match domain.strip_suffix(own.as_str()) {
            Some(before) => before.is_empty() || before.ends_with('.'),
            None => false,
        })
    }
}

fn normal_domain(domain: &str) -> String {
    let domain = domain.trim().trim_end_matches('.');
    // Nearly every domain is plain and needs no conversion.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if domain.bytes().all(plain) && domain.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return domain.to_ascii_lowercase();
    }
    // IDN to ASCII, so that `bücher.example` and `xn--bcher-kva.example` agree; a name that cannot be converted is
    // compared unchanged.
    match url::Host::parse(domain) {
        Ok(url::Host::Domain(ascii)) => ascii,
        _ => domain.to_lowercase(),
    }
}

fn is_guest(address: &str) -> bool {
    address.to_ascii_uppercase().contains("#EXT#")
}

/// Whether one of the recipients in `text` (joined with `;`, or `,` outside quotes) is external. One external recipient
/// decides; `None` when `text` names nobody.
pub fn judge(text: &str, own: &Domains) -> Option<Recipient> {
    let mut found = None;
    for recipient in split(text) {
        match (judge_one(recipient, own), found) {
            (Some(Recipient::External), _) => return Some(Recipient::External),
            (Some(Recipient::Unknown), _) => found = Some(Recipient::Unknown),
            (Some(Recipient::Internal), None) => found = Some(Recipient::Internal),
            _ => {}
        }
    }
    found
}

/// The external addresses in `text`, as written.
pub fn external<'t>(text: &'t str, own: &Domains) -> impl Iterator<Item = &'t str> {
    split(text)
        .filter(|recipient| judge_one(recipient, own) == Some(Recipient::External))
        .map(|recipient| address_of(recipient.trim()))
}

/// The recipients in `text`, each reduced to its address.
pub fn addresses(text: &str) -> impl Iterator<Item = &str> {
    split(text).map(|recipient| address_of(recipient.trim()))
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        matches!(c, ';' | ',') && !quoted
    })
}

fn judge_one(recipient: &str, own: &Domains) -> Option<Recipient> {
    let text = recipient.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("$null") {
        return None;
    }
    let address = address_of(text);
    if is_guest(address) {
        // A guest is external, whatever the domain of the directory entry.
        return Some(Recipient::External);
    }
    match address.rsplit_once('@') {
        Some((local, domain)) if !local.is_empty() && !domain.trim().is_empty() && !is_legacy(address) => {
            Some(if own.contains(domain) { Recipient::Internal } else { Recipient::External })
        }
        _ => Some(Recipient::Unknown),
    }
}

/// The address inside `"Name" [SMTP:a@b.c]`, `Name <a@b.c>`, `smtp:a@b.c`, `mailto:a@b.c`.
fn address_of(text: &str) -> &str {
    let mut text = text;
    for (open, close) in [('[', ']'), ('<', '>')] {
        if let Some((_, after)) = text.rsplit_once(open)
            && let Some((inside, _)) = after.split_once(close)
        {
            text = inside;
        }
    }
    let mut text = text.trim().trim_matches(['"', '\'']).trim();
    for prefix in ["smtp:", "mailto:"] {
        if let Some((head, rest)) = text.split_at_checked(prefix.len())
            && head.eq_ignore_ascii_case(prefix)
        {
            text = rest;
        }
    }
    text.trim()
}

/// Legacy directory addresses: `EX:/o=…`, `/o=ExchangeLabs/…`.
fn is_legacy(address: &str) -> bool {
    let lower = address.to_ascii_lowercase();
    lower.starts_with("ex:") || lower.starts_with("/o=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> Domains {
        let mut own = Domains::default();
        own.add("Contoso.com.");
        own.add("contoso.onmicrosoft.com");
        own.add("bücher.example");
        own
    }

    #[test]
    fn recipients_are_told_apart_by_whole_domains() {
        use Recipient::{External, Internal, Unknown};
        for (text, expected) in [
            ("a@contoso.com", Some(Internal)),
            ("A@CONTOSO.COM.", Some(Internal)),
            ("a@mail.contoso.com", Some(Internal)),
            ("a@xn--bcher-kva.example", Some(Internal)),
            ("a@evilcontoso.com", Some(External)),
            ("a@contoso.0nmicrosoft.com", Some(External)),
            ("a@evil.onmicrosoft.com", Some(External)),
            ("smtp:ex@example.net", Some(External)),
            ("SMTP:a@contoso.com", Some(Internal)),
            ("mailto:a@example.net", Some(External)),
            ("\"Doe, Jane\" [SMTP:jane@example.net]", Some(External)),
            ("Jane Doe [SMTP:jane@contoso.com]", Some(Internal)),
            ("Jane <jane@contoso.com>", Some(Internal)),
            ("\"Jane\" [EX:/o=ExchangeLabs/ou=x/cn=y]", Some(Unknown)),
            ("EX:/o=ExchangeLabs/cn=a@b", Some(Unknown)),
            ("Jane Doe", Some(Unknown)),
            ("a@contoso.com;b@example.net", Some(External)),
            ("a@contoso.com, b@contoso.com", Some(Internal)),
            ("a@contoso.com;Jane", Some(Unknown)),
            ("bob_gmail.com#EXT#@contoso.onmicrosoft.com", Some(External)),
            ("", None),
            (" ; ", None),
            ("$null", None),
        ] {
            assert_eq!(judge(text, &own()), expected, "{text}");
        }
    }

    #[test]
    fn a_guest_does_not_make_a_domain_the_organisations() {
        let mut own = Domains::default();
        own.add_of_address("bob_gmail.com#EXT#@contoso.com");
        own.add_of_address("NT AUTHORITY\\SYSTEM (Microsoft.Exchange.ServiceHost)");
        own.add_of_address("app@sharepoint");
        assert!(own.0.is_empty());
        own.add_of_address("a@contoso.com");
        assert!(own.contains("contoso.com") && !own.contains(""));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = judge(&text, &own());
        }
    }
}
