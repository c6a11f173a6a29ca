//! Decides under which host names the pages for browsers answer.
//!
//! A foreign web page can let its own name resolve to this machine (DNS rebinding), and a browser then treats the
//! content served here as that page's own. Such a request carries that page's host name. A request by IP address, as
//! `localhost` or by a name that the operator configured does not.

use std::net::IpAddr;

use axum::http::{Request, header};

/// Whether a request names an IP address, `localhost`, or one of these hosts.
pub(super) fn answers_to<B>(hosts: &[String], request: &Request<B>) -> bool {
    let mut named = request.headers().get_all(header::HOST).iter();
    // Exactly one: with two, it is ambiguous which counts.
    let (Some(host), None) = (named.next(), named.next()) else { return false };
    let of_the_target = request.uri().authority().map(|authority| authority.as_str());
    host.to_str().is_ok_and(|host| is_ours(hosts, host)) && of_the_target.is_none_or(|host| is_ours(hosts, host))
}

/// The same of `host` or `host:port`.
fn is_ours(hosts: &[String], text: &str) -> bool {
    let name = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => return is_port(port) && address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => match text.split_once(':') {
            Some((name, port)) if is_port_number(port) => name,
            Some(_) => return false,
            None => text,
        },
    };
    let same = |known: &str| known.trim_end_matches('.').eq_ignore_ascii_case(name.trim_end_matches('.'));
    matches!(name.parse(), Ok(IpAddr::V4(_))) || same("localhost") || hosts.iter().any(|host| same(host))
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(is_port_number)
}

fn is_port_number(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_names_of_the_operator_are_answered() {
        let hosts = ["m365.example.net".to_owned()];
        let asked = |host: &[&str]| {
            let mut request = Request::builder().uri("/status");
            for host in host {
                request = request.header(header::HOST, *host);
            }
            answers_to(&hosts, &request.body(()).unwrap())
        };
        for ours in [
            "127.0.0.1",
            "127.0.0.1:9598",
            "192.0.2.7:80",
            "[::1]",
            "[::1]:9598",
            "localhost",
            "LOCALHOST:9598",
            "localhost.",
            "m365.example.net",
            "M365.Example.Net.:9598",
        ] {
            assert!(asked(&[ours]), "{ours}");
        }
        for foreign in [
            "",
            "evil.example",
            "evil.example:9598",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "xlocalhost",
            "m365.example.net.evil.example",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "127.0.0.1:9598:x",
            "127.1",
            "2130706433",
            "[::1",
            "[::1]x",
            "[evil.example]",
            "::1",
            "127.0.0.1 evil.example",
        ] {
            assert!(!asked(&[foreign]), "{foreign}");
        }
        assert!(!asked(&[]) && !asked(&["localhost", "evil.example"]) && !asked(&["localhost", "localhost"]));
        let absolute = Request::builder().uri("http://evil.example/status").header(header::HOST, "localhost");
        assert!(!answers_to(&hosts, &absolute.body(()).unwrap()));
    }
}
