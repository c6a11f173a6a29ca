//! The page for the administrator of a firewall: hosts, ports and service tags, from the addresses that the program
//! itself uses.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Document, NOTICE};
use crate::config::Cloud;

/// The text before the table of hosts.
const INTRODUCTION: &str = "\
# Network

Everything this program needs of a network is outgoing TCP to port 443 of two hosts, or to one proxy, and the answers
of DNS. Nothing has to reach it from outside; `[metrics]` listens only where it is told to.

## Hosts

Sign-in goes to the authority, everything else to the API. Both are those of `cloud`, unless `authority_url` or `api_url`
names others. Links in Microsoft's answers are followed to the configured API only, and redirects never, so no further
host has to be allowed.

| `cloud` | authority | API | applications are registered at |
| --- | --- | --- | --- |
";

/// The text after it.
const REST: &str = "
The hosts answer over IPv4 and IPv6. With `auth = \"managed_identity\"` the authority is not asked: a virtual machine asks
`http://169.254.169.254` (port 80, the machine's own platform), App Service and Azure Arc an address on the machine.
Sinks go where their own keys say.

Whether a certificate was revoked is not looked up: neither OCSP nor certificate revocation lists are asked for, so their
hosts need not be allowed. Certificates are checked against the machine's authorities and those of `ca_file`.

## Service tags and addresses

Addresses of the API change. Where a firewall cannot go by name (TLS's SNI, a proxy), use service tags:

- the API: `AzureFrontDoor.MicrosoftSecurity`. Its name was `M365ManagementActivityApi` before; a rule with the old tag alone
  lets connections fail after Microsoft has moved them.
- the authority: `AzureActiveDirectory`.

Microsoft publishes the addresses behind a tag as \"Azure IP Ranges and Service Tags\", and those of Microsoft 365 as
\"Office 365 URLs and IP address ranges\".

## Proxies

`proxy_url`, or `HTTPS_PROXY` of the environment, is an HTTP proxy that allows CONNECT to the two hosts on port 443, with
user and password in its URL where it asks for them (Basic). SOCKS, NTLM, Kerberos and PAC files are not spoken or read.
What a proxy answers instead of a connection is told with its address and its words:

| error | the proxy |
| --- | --- |
| [`proxy-credentials-missing`](errors/proxy-credentials-missing.md) | asks for user and password, and none are configured (407) |
| [`proxy-credentials-refused`](errors/proxy-credentials-refused.md) | refuses those that are configured (407) |
| [`proxy-refused`](errors/proxy-refused.md) | forbids the connection, or is a web server (403, 404, 405, a redirect, …) |
| [`proxy-unavailable`](errors/proxy-unavailable.md) | is in trouble itself or does not reach the host (500, 502, 503, 504, 429, a closed connection); it is tried again |
| [`proxy-not-http`](errors/proxy-not-http.md) | is something else than an HTTP proxy |
| [`proxy-unreachable`](errors/proxy-unreachable.md) | does not answer at its address |

A proxy that opens TLS needs its authority in `ca_file`: PEM or DER, in any encoding a Windows editor writes. A server's own
certificate, signed by itself, is accepted there too, for the names in it and while it is valid. Tenant restrictions
(`Restrict-Access-To-Tenants`) that a proxy adds must allow the tenant: [`auth-tenant-restricted`](errors/auth-tenant-restricted.md).

## To test it

```console
curl -sS -o /dev/null -w '%{http_code}\\n' https://login.microsoftonline.com
curl -sS -o /dev/null -w '%{http_code}\\n' https://manage.office.com
m365-audit check -c agent.toml
```

Any status of the first two means that the way is open. `check` names what is in the way.
";

pub(super) fn page() -> Document {
    let mut text = format!("{NOTICE}\n\n{INTRODUCTION}");
    for cloud in Cloud::ALL {
        let name = serde_json::to_value(cloud).ok();
        let name = name.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
        let host = |url: &'static str| url.trim_start_matches("https://");
        let place = match cloud {
            Cloud::Enterprise | Cloud::Gcc => "Entra admin centre (https://entra.microsoft.com)",
            national => national.entra(),
        };
        let _ =
            writeln!(text, "| `{name}` | `{}` | `{}` | {place} |", host(cloud.authority_url()), host(cloud.api_url()));
    }
    text.push_str(REST);
    Document { path: "docs/network.md".to_owned(), text }
}
