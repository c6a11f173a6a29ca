//! Restricts the links that Microsoft returns to the configured API origin, because every call carries the bearer
//! token.

use url::Url;

use crate::config::Cloud;
use crate::model::TenantId;

/// The link to a next page, exactly as the header gave it. It is not checked until it is followed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PageLink(pub(super) String);

impl PageLink {
    /// As received; to notice a page that links to itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The configured places of one tenant's feed.
#[derive(Debug, Clone)]
pub(super) struct Links {
    api_url: Url,
    /// Path of `api_url` without a slash at its end; empty unless the API is reached through a path of a proxy.
    base_path: String,
    cloud_host: Option<String>,
    tenant: TenantId,
    /// `PublisherIdentifier=…`, encoded.
    publisher: String,
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resolved {
    /// To the configured origin, which may have replaced the cloud's own host.
    Own(Url),
    /// Elsewhere. `instead` is the same path and query under the configured origin, if it has the feed's form.
    Foreign { instead: Option<Url> },
}

impl Links {
    pub fn new(api_url: &Url, cloud: Cloud, tenant: &TenantId, publisher_identifier: &str) -> Self {
        let mut api_url = api_url.clone();
        api_url.set_query(None);
        api_url.set_fragment(None);
        let base_path = api_url.path().trim_end_matches('/').to_owned();
        let publisher: String = url::form_urlencoded::byte_serialize(publisher_identifier.as_bytes()).collect();
        // A constant of this crate that a test parses.
        let cloud_url = Url::parse(cloud.api_url()).ok().filter(|url| url.origin() != api_url.origin());
        Self {
            cloud_host: cloud_url.and_then(|url| url.host_str().map(str::to_owned)),
            api_url,
            base_path,
            tenant: tenant.clone(),
            publisher: format!("PublisherIdentifier={publisher}"),
        }
    }

    /// The API's host, for messages.
    pub fn host(&self) -> &str {
        self.api_url.host_str().unwrap_or_default()
    }

    /// A URL of the feed: `path` below its root, `query` already encoded, the publisher added.
    pub fn feed(&self, path: &str, query: &str) -> Url {
        let mut url = self.api_url.clone();
        url.set_path(&format!("{}/api/v1.0/{}/activity/feed{path}", self.base_path, self.tenant));
        let query = if query.is_empty() { self.publisher.clone() } else { format!("{query}&{}", self.publisher) };
        url.set_query(Some(&query));
        url
    }

    /// Where `link` leads, with the publisher added.
    pub fn resolve(&self, link: &str) -> Resolved {
        // A link without a host is joined to the configured origin; `//host/…` has a host and is checked below.
        let Ok(url) = self.api_url.join(link.trim()) else {
            return Resolved::Foreign { instead: None };
        };
        let bare = url.username().is_empty() && url.password().is_none();
        if bare && url.origin() == self.api_url.origin() {
            // A path without that of `api_url` is one that the proxy before it does not know.
            return Resolved::Own(self.under_our_origin(&url).unwrap_or_else(|| self.with_publisher(url)));
        }
        let instead = self.under_our_origin(&url);
        match (&self.cloud_host, url.host_str()) {
            (Some(cloud), Some(host)) if bare && cloud.eq_ignore_ascii_case(host) => match instead {
                Some(own) => Resolved::Own(own),
                None => Resolved::Foreign { instead: None },
            },
            _ => Resolved::Foreign { instead },
        }
    }

    /// The same path and query under the configured origin, if the path belongs to this tenant's feed.
    fn under_our_origin(&self, url: &Url) -> Option<Url> {
        let path = url.path();
        let own_path = path.strip_prefix(self.base_path.as_str()).filter(|rest| self.is_feed_path(rest));
        let path = match own_path {
            Some(_) => path.to_owned(),
            None if self.is_feed_path(path) => format!("{}{path}", self.base_path),
            None => return None,
        };
        let mut own = self.api_url.clone();
        own.set_path(&path);
        own.set_query(url.query());
        Some(self.with_publisher(own))
    }

    /// `/api/v1*/{tenant}/activity/feed/…`
    fn is_feed_path(&self, path: &str) -> bool {
        let mut parts = path.splitn(7, '/');
        parts.next() == Some("")
            && parts.next() == Some("api")
            && parts.next().is_some_and(|version| version.starts_with("v1"))
            && parts.next().is_some_and(|tenant| tenant.eq_ignore_ascii_case(self.tenant.as_str()))
            && parts.next() == Some("activity")
            && parts.next() == Some("feed")
            && parts.next().is_some_and(|rest| !rest.is_empty())
    }

    fn with_publisher(&self, mut url: Url) -> Url {
        url.set_fragment(None);
        if url.query_pairs().any(|(name, _)| name.eq_ignore_ascii_case("PublisherIdentifier")) {
            return url;
        }
        // The text is extended, not parsed and rewritten: `$` and the rest stay as Microsoft sent them.
        let query = match url.query() {
            None | Some("") => self.publisher.clone(),
            Some(query) => format!("{}&{}", query.trim_end_matches('&'), self.publisher),
        };
        url.set_query(Some(&query));
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-2222-3333-4444-555555555555";

    fn links(api_url: &str) -> Links {
        Links::new(&Url::parse(api_url).unwrap(), Cloud::Enterprise, &TENANT.parse().unwrap(), "pub")
    }

    fn show(resolved: Resolved) -> String {
        match resolved {
            Resolved::Own(url) => format!("own {url}"),
            Resolved::Foreign { instead: Some(url) } => format!("foreign, instead {url}"),
            Resolved::Foreign { instead: None } => "foreign".into(),
        }
        .replace(TENANT, "T")
    }

    #[test]
    fn links_are_followed_to_the_configured_origin_only() {
        let cloud = "https://manage.office.com";
        let own = "http://127.0.0.1:8080";
        let prefixed = "https://gw.example/o365/";
        #[rustfmt::skip]
        let table = [
            (cloud, "https://manage.office.com/api/v1.0/T/activity/feed/audit/1$2$audit_x$na", "own https://manage.office.com/api/v1.0/T/activity/feed/audit/1$2$audit_x$na?PublisherIdentifier=pub"),
            (cloud, "https://manage.office.com/api/v1/T/activity/feed/subscriptions/content?contentType=Audit.Exchange&starttime=2026-05-01T00:00:00&nextPage=a%2Bb$", "own https://manage.office.com/api/v1/T/activity/feed/subscriptions/content?contentType=Audit.Exchange&starttime=2026-05-01T00:00:00&nextPage=a%2Bb$&PublisherIdentifier=pub"),
            (cloud, "https://manage.office.com/api/v1.0/T/activity/feed/audit/1?publisheridentifier=x", "own https://manage.office.com/api/v1.0/T/activity/feed/audit/1?publisheridentifier=x"),
            (cloud, "https://MANAGE.office.com:443/api/v1.0/T/activity/feed/audit/1", "own https://manage.office.com/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (cloud, "/api/v1.0/T/activity/feed/audit/1", "own https://manage.office.com/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (cloud, "http://manage.office.com/api/v1.0/T/activity/feed/audit/1", "foreign, instead https://manage.office.com/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (cloud, "https://manage.office.com:8443/api/v1.0/T/activity/feed/audit/1", "foreign, instead https://manage.office.com/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (cloud, "https://manage.office.com@evil.example/api/v1.0/T/activity/feed/audit/1?a=b", "foreign, instead https://manage.office.com/api/v1.0/T/activity/feed/audit/1?a=b&PublisherIdentifier=pub"),
            (cloud, "https://u:p@manage.office.com/api/v1.0/T/activity/feed/audit/1", "foreign, instead https://manage.office.com/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (cloud, "//evil.example/api/v1.0/T/activity/feed/audit/1", "foreign, instead https://manage.office.com/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (cloud, "https://manage.office.com.evil.example/x", "foreign"),
            (cloud, "https://evil.example/api/v1.0/99999999-2222-3333-4444-555555555555/activity/feed/audit/1", "foreign"),
            (cloud, "https://evil.example/api/v1.0/T/activity/feed/../../../../x", "foreign"),
            (cloud, "https://evil.example/api/v2.0/T/activity/feed/audit/1", "foreign"),
            (cloud, "https://evil.example/api/v1.0/T/activity/feed/", "foreign"),
            (cloud, "file:///etc/passwd", "foreign"),
            (cloud, "https://[", "foreign"),
            (own, "https://manage.office.com/api/v1.0/T/activity/feed/audit/1$2", "own http://127.0.0.1:8080/api/v1.0/T/activity/feed/audit/1$2?PublisherIdentifier=pub"),
            (own, "https://manage.office.com/other", "foreign"),
            (own, "http://127.0.0.1:9999/api/v1.0/T/activity/feed/audit/1", "foreign, instead http://127.0.0.1:8080/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (own, "https://manage.office365.us/api/v1.0/T/activity/feed/audit/1", "foreign, instead http://127.0.0.1:8080/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (prefixed, "https://manage.office.com/api/v1.0/T/activity/feed/audit/1", "own https://gw.example/o365/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (prefixed, "/api/v1.0/T/activity/feed/audit/1", "own https://gw.example/o365/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (prefixed, "https://gw.example/api/v1/T/activity/feed/audit/1", "own https://gw.example/o365/api/v1/T/activity/feed/audit/1?PublisherIdentifier=pub"),
            (prefixed, "https://gw.example/o365/api/v1.0/T/activity/feed/audit/1", "own https://gw.example/o365/api/v1.0/T/activity/feed/audit/1?PublisherIdentifier=pub"),
        ];
        for (api_url, link, expected) in table {
            let resolved = links(api_url).resolve(&link.replace("/T/", &format!("/{TENANT}/")));
            assert_eq!(show(resolved), expected, "{link} under {api_url}");
        }
    }

    #[test]
    fn a_feed_url_names_the_publisher_with_and_without_other_parameters() {
        let links = links("https://gw.example/o365/");
        assert_eq!(
            show(Resolved::Own(links.feed("/subscriptions/list", ""))),
            "own https://gw.example/o365/api/v1.0/T/activity/feed/subscriptions/list?PublisherIdentifier=pub"
        );
        assert!(links.feed("/x", "a=b").as_str().ends_with("/x?a=b&PublisherIdentifier=pub"));
    }
}
