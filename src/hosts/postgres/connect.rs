//! How a PostgreSQL is reached: its URL, TLS, the pool of connections.
//!
//! Microsoft's rules of what is trusted hold here, too: the machine's authorities and `ca_file`, the server's name
//! verified. libpq's `require` and `prefer` verify nothing, so they are refused.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

use crate::model::Actionable;

/// For a connection to be made, with its sign-in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that acknowledges nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Where the database is and how it is reached.
#[derive(Clone)]
pub struct Endpoint {
    config: Config,
    tls: Option<rustls::ClientConfig>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({})", self.shown())
    }
}

/// Why a `[cluster] url` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`cluster.url` {why}")]
pub struct UrlError {
    why: String,
    hint: &'static str,
}

impl UrlError {
    /// What is wrong with it, after the name of the key.
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl Actionable for UrlError {
    fn slug(&self) -> &'static str {
        "config-invalid"
    }

    fn hint(&self) -> String {
        self.hint.to_owned()
    }
}

const FORM: &str = "write `postgres://USER@HOST/DATABASE?sslmode=verify-full`, the password as `${NAME}` in it or all of it in `url_file`";
const TLS: &str = "write `sslmode=verify-full`, with the server's authority in `cluster.ca_file` where this machine does not know it; \
                   `sslmode=disable` is for `localhost`, an address of this machine or a Unix socket alone";

impl Endpoint {
    /// Of a URL, with the PEM of `ca_file`.
    ///
    /// # Errors
    /// The URL is none, or would send what is secret without TLS that verifies.
    pub fn of(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, UrlError> {
        let wrong = |why: String| UrlError { why, hint: FORM };
        let url = url.trim();
        let (scheme, _) = url.split_once("://").ok_or_else(|| wrong("is not a URL".to_owned()))?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(wrong(format!("begins with `{scheme}:`, not with `postgres:`")));
        }
        // By hand: it may name several hosts, each with a port, which no other URL does.
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let pairs = || url::form_urlencoded::parse(query.as_bytes());
        let mode = pairs().find(|(name, _)| name == "sslmode").map(|(_, value)| value.into_owned());
        // The library does not know all modes by name.
        let mut others = url::form_urlencoded::Serializer::new(String::new());
        others.extend_pairs(pairs().filter(|(name, _)| name != "sslmode"));
        let others = others.finish().replace('+', "%20");
        let plain = if others.is_empty() { base.to_owned() } else { format!("{base}?{others}") };
        // What the library says of a URL could hold its password.
        let mut config: Config =
            plain.parse().map_err(|_| wrong("cannot be read as that of a PostgreSQL".to_owned()))?;
        if config.get_dbname().is_none() {
            return Err(wrong("names no database".to_owned()));
        }
        let verified = match mode.as_deref() {
            None | Some("verify-full") => !is_unix(&config),
            Some("disable") if is_near(&config) => false,
            Some("disable") => {
                let why = "has `sslmode=disable` for a host that is not this machine".to_owned();
                return Err(UrlError { why, hint: TLS });
            }
            Some(other) => {
                let why = format!("has `sslmode={other}`, which does not verify who answers");
                return Err(UrlError { why, hint: TLS });
            }
        };
        config
            .ssl_mode(if verified { SslMode::Require } else { SslMode::Disable })
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .application_name("m365-audit")
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(SILENCE_MAX)
            .keepalives_idle(SILENCE_MAX);
        let tls = match verified {
            true => Some(client_config(ca_pem).map_err(|why| UrlError { why, hint: TLS })?),
            false => None,
        };
        Ok(Self { config, tls })
    }

    /// Hosts and database, without what is secret.
    pub fn shown(&self) -> String {
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        let hosts: Vec<String> = self.config.get_hosts().iter().map(host).collect();
        format!("{} at {}", self.config.get_dbname().unwrap_or_default(), hosts.join(", "))
    }

    /// A pool of at most so many connections, made when they are first asked for.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn pool(&self, connections_max: usize) -> Result<Pool, String> {
        let rules = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match self.tls.clone() {
            Some(tls) => Manager::from_config(self.config.clone(), MakeRustlsConnect::new(tls), rules),
            None => Manager::from_config(self.config.clone(), NoTls, rules),
        };
        let timeouts = Timeouts { create: Some(CONNECT_TIMEOUT * 2), wait: None, recycle: Some(CONNECT_TIMEOUT) };
        let pool = Pool::builder(manager).max_size(connections_max).timeouts(timeouts).runtime(Runtime::Tokio1).build();
        pool.map_err(|error| error.to_string())
    }
}

fn client_config(ca_pem: Option<&[u8]>) -> Result<rustls::ClientConfig, String> {
    let nobody = Url::parse("https://localhost").map_err(|error| error.to_string())?;
    let mut config =
        crate::api::tls::tls(ca_pem, &nobody).map_err(|why| why.replace("`ca_file`", "`cluster.ca_file`"))?;
    // Those of HTTP.
    config.alpn_protocols.clear();
    Ok(config)
}

fn is_unix(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) && !config.get_hosts().is_empty()
}

/// Whether all of its hosts are this machine.
fn is_near(config: &Config) -> bool {
    let named = config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            let name = name.trim_start_matches('[').trim_end_matches(']');
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    });
    named && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_is_verified_or_this_machine_is_talked_to() {
        let rows = [
            ("postgres://m365@db.internal/m365", Ok("verified")),
            ("postgres://m365@db.internal/m365?sslmode=verify-full", Ok("verified")),
            ("postgresql://m365@a:5432,b:5433/m365?sslmode=verify-full", Ok("verified")),
            ("postgres://m365@localhost/m365?sslmode=disable", Ok("plain")),
            ("postgres://m365@127.0.0.1:5433/m365?sslmode=disable", Ok("plain")),
            ("postgres://m365@[::1]/m365?sslmode=disable", Ok("plain")),
            ("postgres:///m365?host=/run/postgresql&user=m365", Ok("plain")),
            ("postgres://m365@db.internal/m365?sslmode=disable", Err("sslmode=disable")),
            ("postgres://m365@localhost,db.internal/m365?sslmode=disable", Err("sslmode=disable")),
            ("postgres://m365@localhost/m365?sslmode=disable&hostaddr=10.0.0.1", Err("sslmode=disable")),
            ("postgres://m365@db.internal/m365?sslmode=require", Err("sslmode=require")),
            ("postgres://m365@db.internal/m365?sslmode=prefer", Err("sslmode=prefer")),
            ("postgres://m365@db.internal?sslmode=verify-full", Err("no database")),
            ("mysql://m365@db.internal/m365", Err("`mysql:`")),
            ("db.internal", Err("not a URL")),
        ];
        for (url, expected) in rows {
            match (Endpoint::of(url, None), expected) {
                (Ok(endpoint), Ok(kind)) => {
                    assert_eq!(endpoint.tls.is_some(), kind == "verified", "{url}");
                    let mode = if kind == "verified" { SslMode::Require } else { SslMode::Disable };
                    assert_eq!(endpoint.config.get_ssl_mode(), mode, "{url}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{url}: {error}"),
                (result, _) => panic!("{url}: {result:?}"),
            }
        }
    }

    #[test]
    fn no_password_is_shown() {
        let secret = "postgres://m365:hunter2@db.internal/m365";
        let shown = format!("{:?}", Endpoint::of(secret, None).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        for wrong in
            ["postgres://m365:hunter2@db.internal:99999/m365", "postgres://m365:hunter2@db/m365?nonsense=hunter2"]
        {
            let error = Endpoint::of(wrong, None).unwrap_err();
            assert!(!format!("{error:?} {error} {}", error.hint()).contains("hunter2"), "{error:?}");
        }
    }
}
