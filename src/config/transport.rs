//! Restricts where secrets, tokens and events may be sent: over `https`, or plain `http` on this machine; never to an
//! address of a machine's own platform.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value as Schema;
use toml::{Table, Value};
use url::{Host, Url};

use super::check::Findings;
use super::problem::join;
use super::problem::{Fault, Problem};

/// The addresses of clouds' metadata services, beside the link-local ones: Azure's wire server, Alibaba's metadata, and
/// AWS's over IPv6. An attacker who can configure one as an end point would get its answers.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const METADATA_NAMES: [&str; 3] = ["metadata.google.internal", "metadata.azure.internal", "instance-data"];

/// Whether a URL names this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match (url.host(), address(url)) {
        (Some(Host::Domain(name)), _) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        (_, Some(address)) => address.is_loopback(),
        _ => false,
    }
}

/// Whether a URL names a link-local address: Azure's metadata service has 169.254.169.254.
pub(crate) fn is_link_local(url: &Url) -> bool {
    match address(url) {
        Some(IpAddr::V4(ip)) => ip.is_link_local(),
        Some(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        None => false,
    }
}

/// Whether the address cannot be one of Microsoft's public API, but may be that of an internal service.
fn is_platforms_own(url: &Url) -> bool {
    let named = match url.host() {
        Some(Host::Domain(name)) => METADATA_NAMES.contains(&name.trim_end_matches('.')),
        _ => false,
    };
    let addressed = match address(url) {
        Some(IpAddr::V4(ip)) => METADATA_V4.contains(&ip),
        Some(IpAddr::V6(ip)) => ip == METADATA_V6,
        None => false,
    };
    named || addressed || is_link_local(url)
}

/// The address in a URL, in any notation: the parser has already read decimal, octal and hexadecimal numbers; an IPv4
/// address may still be embedded in an IPv6 address.
fn address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
        Host::Ipv6(ip) => Some(embedded(ip).map_or(IpAddr::V6(ip), IpAddr::V4)),
    }
}

/// The IPv4 address embedded in an IPv6 address: mapped (`::ffff:a.b.c.d`), compatible (`::a.b.c.d`), translated
/// (`64:ff9b::a.b.c.d`) or of 6to4 (`2002:aabb:ccdd::`).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = ip.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b) {
        (0, 0) if (c, d, e) == (0, 0, 0) && (f == 0xffff || f == 0) && high != 0 => Some(v4(high, low)),
        (0x64, 0xff9b) if (c, d, e, f) == (0, 0, 0, 0) => Some(v4(high, low)),
        (0x2002, _) => Some(v4(b, c)),
        _ => None,
    }
}

/// Whether others on the network can read what is sent there.
pub(super) fn is_exposed(url: &Url) -> bool {
    url.scheme() == "http" && !is_loopback(url)
}

/// The client secret goes to `authority_url`, the bearer tokens to `api_url` and `graph_url`: over plain `http` anyone
/// on the network path could read them. On this machine (tests, a local proxy) there is no network path. For a closed
/// test network, a key with an explicit name allows it, so that a review notices it. A managed identity's end point
/// belongs to this machine's own platform and is reached by plain `http` at a link-local address.
pub(super) fn check_transport(findings: &mut Findings, table: &Table, path: &str) {
    let allowed = table.get("allow_plain_http").and_then(Value::as_bool) == Some(true);
    let keys = [
        ("api_url", "the bearer token"),
        ("authority_url", "the client secret"),
        ("graph_url", "the bearer token"),
        ("managed_identity_url", "the bearer token"),
    ];
    for (key, what) in keys {
        let path = join(path, key);
        let Some(value) = table.get(key).filter(|_| findings.clean(&path)) else { continue };
        let Some(url) = value.as_str().and_then(|text| Url::parse(text).ok()) else { continue };
        let shown = findings.shown(&Schema::Null, value, &path);
        let identity = key == "managed_identity_url";
        if !identity && is_platforms_own(&url) {
            let place =
                address(&url).map_or_else(|| url.host_str().unwrap_or_default().to_owned(), |ip| ip.to_string());
            let expected = format!(
                "a host of Microsoft's, or a proxy of your own: `{place}` is where a cloud tells a machine about itself"
            );
            let hint = "leave it out to use the hosts of `cloud`; a managed identity's end point belongs into \
                        `managed_identity_url`";
            findings.note(Problem::new(path, Fault::Invalid, expected).value(shown).hint(hint));
        } else if !allowed && is_exposed(&url) && !(identity && is_link_local(&url)) {
            let expected = format!("`https`, or a host of this machine: {what} would cross the network in the clear");
            let hint = "in a closed test network set `allow_plain_http = true`";
            findings.note(Problem::new(path, Fault::Invalid, expected).value(shown).hint(hint));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn an_address_is_known_however_it_is_spelled() {
        for text in [
            "http://169.254.169.254",
            "https://169.254.169.254",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://0xa9.0xfe.0xa9.0xfe",
            "http://0251.0376.0251.0376",
            "http://169.254.43518",
            "http://[::ffff:169.254.169.254]",
            "http://[::ffff:a9fe:a9fe]",
            "http://[::169.254.169.254]",
            "http://[64:ff9b::169.254.169.254]",
            "http://[2002:a9fe:a9fe::1]",
            "http://[fe80::1]",
            "http://[fd00:ec2::254]",
            "http://168.63.129.16",
            "http://metadata.google.internal",
            "http://METADATA.google.internal.",
        ] {
            assert!(is_platforms_own(&url(text)), "{text}");
            assert!(!is_loopback(&url(text)), "{text}");
        }
        for text in ["https://manage.office.com", "http://10.0.0.1", "http://127.0.0.1", "https://gw.example"] {
            assert!(!is_platforms_own(&url(text)), "{text}");
        }
    }

    #[test]
    fn this_machine_is_known_however_it_is_spelled() {
        for text in [
            "http://127.0.0.1:1",
            "http://127.1",
            "http://2130706433",
            "http://[::1]",
            "http://[::ffff:127.0.0.1]",
            "http://localhost",
            "http://LOCALHOST.",
            "http://tenant.localhost",
        ] {
            assert!(is_loopback(&url(text)) && !is_exposed(&url(text)), "{text}");
        }
        for text in ["http://0.0.0.0", "http://[::]", "http://localhost.example", "http://128.0.0.1"] {
            assert!(!is_loopback(&url(text)) && is_exposed(&url(text)), "{text}");
        }
    }

    #[test]
    fn addresses_next_door_are_reached_directly() {
        for (text, direct) in [
            ("http://169.254.169.254/metadata", true),
            ("http://[fe80::1]/", true),
            ("https://manage.office.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_link_local(&url(text)), direct, "{text}");
        }
    }
}
