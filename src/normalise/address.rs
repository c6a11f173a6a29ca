//! Network addresses as the feed writes them: `ClientIP` and similar members have at least eighteen forms.
//!
//! The parser returns an address only if it parses strictly: a store with an address type refuses a whole event because
//! of one bad field. It does not decide who owns the address (Microsoft, a proxy).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and the port written with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address; a mapped one (`::ffff:203.0.113.7`) as IPv4.
    pub ip: IpAddr,
    /// The port, never 0.
    pub port: Option<u16>,
}

/// The address in a text, in any of the known forms; of several joined with `,` or `;` the first that parses.
///
/// A port out of range invalidates only the port. Numbers that are not dotted decimal (leading zeros, hexadecimal, one
/// integer) are not an address. A build number of four small parts differs from an address only by its place in `HOST
/// (15.20.4065.22)`, where a leading zero or a part above 255 identifies it.
pub fn parse(text: &str) -> Option<Address> {
    if let Some(address) = parse_one(text) {
        return Some(address);
    }
    text.contains([',', ';']).then(|| text.split([',', ';']).find_map(parse_one)).flatten()
}

/// Appends an address as text.
pub(crate) fn push(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            for (place, octet) in v4.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push(b'.');
                }
                super::json::push_integer(out, i64::from(octet));
            }
        }
        IpAddr::V6(v6) => out.extend_from_slice(v6.to_string().as_bytes()),
    }
}

/// All addresses in a text, as [`parse`] reads them.
pub fn parse_all(text: &str) -> Vec<Address> {
    match parse_one(text) {
        Some(address) => vec![address],
        None => text.split([',', ';']).filter_map(parse_one).collect(),
    }
}

/// The name of a machine, if the text has one and no address that parses (`localhost`, `host.example.com:443`, `HOST
/// (15.20.4065.022)`), and the port written with it.
pub fn host(text: &str) -> Option<(&str, Option<u16>)> {
    let text = unquoted(text.trim()).trim();
    let (inside, after) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => (text, ""),
    };
    let inside = inside.trim();
    if let Some(open) = inside.strip_suffix(')') {
        let (name, _) = open.rsplit_once('(')?;
        let name = name.trim();
        return is_host(name).then_some((name, after.strip_prefix(':').and_then(port)));
    }
    let (name, digits) = match inside.split_once(':') {
        Some((name, digits)) => (name, Some(digits)),
        None => (inside, after.strip_prefix(':')),
    };
    // A single word is often not a host name (`Unknown`): a host name has a dot, or is `localhost`.
    let qualified = name.contains('.') || name.eq_ignore_ascii_case("localhost");
    (qualified && is_host(name)).then_some((name, digits.and_then(port)))
}

/// Whether a text has the form of a host's name: labels of letters, digits, `-` and `_`, the last not a number.
fn is_host(name: &str) -> bool {
    const BYTES_MAX: usize = 253;
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= BYTES_MAX && name.split('.').all(label) && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn parse_one(text: &str) -> Option<Address> {
    let text = unquoted(text.trim()).trim();
    if let Some(ip) = ip(text) {
        return Some(Address { ip, port: None });
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        let port = after.strip_prefix(':').and_then(port);
        return match ip(inside.trim()) {
            Some(ip) => Some(Address { ip, port }),
            // `[HOST (203.0.113.7)]`, and the rare `[203.0.113.7:80]`.
            None => parse_unbracketed(inside.trim()).map(|found| Address { port: port.or(found.port), ..found }),
        };
    }
    parse_unbracketed(text)
}

fn parse_unbracketed(text: &str) -> Option<Address> {
    if let Some(open) = text.strip_suffix(')') {
        let (_, inside) = open.rsplit_once('(')?;
        return ip(inside.trim()).map(|ip| Address { ip, port: None });
    }
    // Only one colon: a text with more is IPv6 and is never split. Some records have a dash before the port.
    let mut colons = text.split(':');
    let (left, right) = match (colons.next(), colons.next(), colons.next()) {
        (Some(left), Some(right), None) => (left, right),
        (Some(only), None, None) => only.split_once('-')?,
        _ => return None,
    };
    // `ffff:10.11.0.229`: a mapped address that lost its colons, as Microsoft's own Copilot sample has it.
    if left.eq_ignore_ascii_case("ffff") {
        return right.parse::<Ipv4Addr>().ok().map(|ip| Address { ip: ip.into(), port: None });
    }
    let ip = left.trim().parse::<Ipv4Addr>().ok()?;
    Some(Address { ip: ip.into(), port: port(right) })
}

/// An address alone: strict, the zone (`%eth0`) cut off, mapped IPv4 unmapped. 6to4 and NAT64 addresses stay unchanged.
fn ip(text: &str) -> Option<IpAddr> {
    match text.as_bytes().first()? {
        b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' | b':' => {}
        _ => return None,
    }
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(ip.into());
    }
    let address = text.split_once('%').map_or(text, |(address, _)| address);
    address.parse::<Ipv6Addr>().ok().map(|ip| ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4))
}

fn port(text: &str) -> Option<u16> {
    let text = text.trim();
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_seen_gives_its_address_and_port_or_none() {
        for (text, expected) in [
            ("203.0.113.7", Some(("203.0.113.7", None))),
            ("203.0.113.7:33758", Some(("203.0.113.7", Some(33758)))),
            ("203.0.113.7-33758", Some(("203.0.113.7", Some(33758)))),
            ("[203.0.113.7]", Some(("203.0.113.7", None))),
            ("[203.0.113.7]:80", Some(("203.0.113.7", Some(80)))),
            ("2001:db8::5", Some(("2001:db8::5", None))),
            ("2001:db8::5:80", Some(("2001:db8::5:80", None))),
            ("[2001:db8::5]", Some(("2001:db8::5", None))),
            ("[2001:db8::5]:37009", Some(("2001:db8::5", Some(37009)))),
            ("2001:db8::5%12", Some(("2001:db8::5", None))),
            ("fe80::1%eth0", Some(("fe80::1", None))),
            ("[fe80::1%eth0]:443", Some(("fe80::1", Some(443)))),
            ("::ffff:203.0.113.7", Some(("203.0.113.7", None))),
            ("[::ffff:203.0.113.7]:12345", Some(("203.0.113.7", Some(12345)))),
            ("ffff:10.11.0.229", Some(("10.11.0.229", None))),
            ("::1", Some(("::1", None))),
            ("127.0.0.1", Some(("127.0.0.1", None))),
            (" 52.159.112.221", Some(("52.159.112.221", None))),
            ("52.159.112.221\r\n", Some(("52.159.112.221", None))),
            ("\"203.0.113.7\"", Some(("203.0.113.7", None))),
            ("HOST (203.0.113.7)", Some(("203.0.113.7", None))),
            ("[HOST (203.0.113.7)]", Some(("203.0.113.7", None))),
            ("203.0.113.7, 10.0.0.1", Some(("203.0.113.7", None))),
            ("unknown; 10.0.0.1:99", Some(("10.0.0.1", Some(99)))),
            ("203.0.113.7:0", Some(("203.0.113.7", None))),
            ("203.0.113.7:70000", Some(("203.0.113.7", None))),
            ("203.0.113.7:http", Some(("203.0.113.7", None))),
            ("[203.0.113.7]:+80", Some(("203.0.113.7", None))),
            ("2002:cb00:7107::1", Some(("2002:cb00:7107::1", None))),
            ("64:ff9b::203.0.113.7", Some(("64:ff9b::cb00:7107", None))),
            ("", None),
            ("  ", None),
            ("null", None),
            ("<null>", None),
            ("Unknown", None),
            ("Not Available", None),
            ("KAUHWH3JFFK (10.20.4930.010)", None),
            ("HOST (15.20.4065.022)", None),
            ("[HOST (10.900.0.1)]", None),
            ("localhost", None),
            ("localhost:8080", None),
            ("host.example.com", None),
            ("host.example.com:443", None),
            ("[localhost]:80", None),
            ("203.000.113.007", None),
            ("0xCB.0.113.7", None),
            ("3405803783", None),
            ("203.0.113", None),
            ("203.0.113.256", None),
            ("[203.0.113.7", None),
            ("()", None),
            (")", None),
            ("[]", None),
            (":", None),
        ] {
            let found = parse(text).map(|address| (address.ip.to_string(), address.port));
            let expected = expected.map(|(ip, port): (&str, Option<u16>)| (ip.to_owned(), port));
            assert_eq!(found, expected, "{text:?}");
        }
    }

    fn shaped() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            any::<Ipv4Addr>().prop_map(|ip| ip.to_string()),
            any::<Ipv6Addr>().prop_map(|ip| ip.to_string()),
            any::<u16>().prop_map(|port| format!(":{port}")),
            r"[\[\](),;:%. a-f0-9-]{0,4}",
            any::<String>(),
        ];
        prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
    }

    #[test]
    fn a_machines_name_is_told_from_addresses_and_from_words() {
        for (text, expected) in [
            ("localhost", Some(("localhost", None))),
            ("localhost:12345", Some(("localhost", Some(12345)))),
            ("[localhost]:12345", Some(("localhost", Some(12345)))),
            ("cool.client.local", Some(("cool.client.local", None))),
            ("[cool.client.local]:12345", Some(("cool.client.local", Some(12345)))),
            ("cool.client.local:99999", Some(("cool.client.local", None))),
            ("HOST (15.20.4065.022)", Some(("HOST", None))),
            ("[HOST (203.0.113.7)]", Some(("HOST", None))),
            ("Unknown", None),
            ("Not Available", None),
            ("null", None),
            ("203.000.113.007", None),
            ("0xCB.0.113.7", None),
            ("2001:db8::5", None),
            ("a b.example", None),
            ("", None),
            ("[", None),
        ] {
            assert_eq!(host(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_as_a_host(text in r"[\[\]():. a-z0-9]{0,20}|.*") {
            host(&text);
        }

        #[test]
        fn what_comes_out_is_an_address_that_reads_back_the_same(text in shaped()) {
            if let Some(address) = parse(&text) {
                let again = parse(&address.ip.to_string()).unwrap();
                prop_assert_eq!(again, Address { ip: address.ip, port: None });
                prop_assert_ne!(address.port, Some(0));
            }
        }

        #[test]
        fn a_plain_address_is_itself(ip in any::<IpAddr>()) {
            let expected = match ip { IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4), v4 => v4 };
            prop_assert_eq!(parse(&ip.to_string()), Some(Address { ip: expected, port: None }));
        }
    }
}
