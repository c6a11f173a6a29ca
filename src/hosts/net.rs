//! Code shared by the sinks that use the network: TLS, credentials, and the texts of answers. Knows no protocol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName};
use url::Url;
use zeroize::Zeroizing;

use super::client_certificate::{ClientCertificate, ClientCertificateFiles, Unusable};
use super::no_answer::Wire;
use crate::api::tls::tls;
use crate::auth::SecretText;
use crate::clock::Clock;
use crate::config::sinks::{RequestCredentials, TlsFiles};
use crate::config::{Secret, is_loopback, read_secret_file, secret_header};
use crate::model::Actionable;
use crate::net::{error_chain, excerpt, redact};

/// How long to wait for a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of bytes read from an answer that is shown to the operator or parsed.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// `User-Agent` of every request.
const USER_AGENT: &str = concat!("m365-audit/", env!("CARGO_PKG_VERSION"));

/// Why a sink that uses the network cannot be started. Later faults are retried and never become such an error.
#[derive(Debug, thiserror::Error)]
pub enum NetSinkError {
    /// The file of authorities cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up connections to `{to}`: {why}")]
    Tls {
        /// The receiver.
        to: String,
        /// What is wrong.
        why: String,
    },
    /// The client certificate or its key cannot be used.
    #[error("the client certificate cannot be used: {why}")]
    ClientCertificate {
        /// The file and what is wrong with it.
        why: String,
        /// What to do.
        hint: String,
    },
}

impl From<Unusable> for NetSinkError {
    fn from(Unusable { why, hint }: Unusable) -> Self {
        Self::ClientCertificate { why, hint }
    }
}

impl Actionable for NetSinkError {
    fn slug(&self) -> &'static str {
        match self {
            Self::CaFile { .. } => "sink-ca-file",
            Self::Tls { .. } => "sink-tls",
            Self::ClientCertificate { .. } => "sink-client-certificate",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::CaFile { .. } => "`ca_file` of the sink must be readable for the user this runs as".into(),
            Self::ClientCertificate { hint, .. } => hint.clone(),
            Self::Tls { .. } => {
                "`ca_file` of the sink must hold certificates in PEM, or this machine trust some".into()
            }
        }
    }
}

/// TLS for connections to `to`, without an application protocol; and the value that explains failed connections.
///
/// # Errors
/// A file cannot be used.
pub(crate) fn tls_config(
    files: &TlsFiles,
    to: &Url,
    clock: &Arc<dyn Clock>,
) -> Result<(rustls::ClientConfig, Wire), NetSinkError> {
    let mut config = server_side(files, to)?;
    let Some(files) = client_files(files) else { return Ok((config, Wire::default())) };
    let certificate = Arc::new(ClientCertificate::open(files, clock.clone())?);
    certificate.announce();
    config.client_auth_cert_resolver = certificate.clone();
    // A resumed session would keep the certificate presented when it began.
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, Wire::showing(certificate)))
}

/// Whether the files of a sink's TLS can be used now: the part that a check of the configuration alone can find. The
/// error names the key at fault.
///
/// # Errors
/// One cannot.
#[cfg(feature = "cli")]
pub(crate) fn check(files: &TlsFiles, to: &Url, clock: &Arc<dyn Clock>) -> Result<(), (&'static str, NetSinkError)> {
    server_side(files, to).map_err(|error| ("ca_file", error))?;
    match client_files(files) {
        None => Ok(()),
        Some(files) => super::client_certificate::check(files, clock.clone())
            .map_err(|unusable| ("client_certificate_file", NetSinkError::from(unusable))),
    }
}

/// The trusted authorities.
fn server_side(files: &TlsFiles, to: &Url) -> Result<rustls::ClientConfig, NetSinkError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| NetSinkError::CaFile { path: path.to_owned(), source });
    let ca = files.ca_file.as_deref().map(read).transpose()?;
    tls(ca.as_deref(), to).map_err(|why| NetSinkError::Tls { to: shown(to), why })
}

fn client_files(files: &TlsFiles) -> Option<ClientCertificateFiles> {
    let certificate = files.client_certificate_file.clone()?;
    Some(ClientCertificateFiles { certificate, key: files.client_key_file.clone() })
}

/// A client that follows no redirect and repeats nothing by itself.
pub(crate) fn http_client(
    files: &TlsFiles,
    to: &Url,
    clock: &Arc<dyn Clock>,
) -> Result<(reqwest::Client, Wire), NetSinkError> {
    let (tls, wire) = tls_config(files, to, clock)?;
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_backend_preconfigured(tls);
    if is_loopback(to) {
        builder = builder.no_proxy();
    }
    let client = builder.build();
    let client = client.map_err(|error| NetSinkError::Tls { to: shown(to), why: error_chain(&error.without_url()) })?;
    Ok((client, wire))
}

/// A URL for display, without query and fragment, which may hold a token.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// The headers that an operator configured, and those that identify the sender.
#[derive(Debug)]
pub(crate) struct SenderIdentity {
    headers: BTreeMap<String, Secret>,
    username: Option<String>,
    password: StoredSecret,
    token: StoredSecret,
}

/// A secret, or the file that holds it.
#[derive(Debug)]
pub(crate) enum StoredSecret {
    None,
    Here(Secret),
    File(PathBuf),
}

impl StoredSecret {
    pub(crate) fn of(secret: Option<&Secret>, file: Option<&Path>) -> Self {
        match (secret, file) {
            (Some(secret), _) => Self::Here(secret.clone()),
            (None, Some(file)) => Self::File(file.to_owned()),
            (None, None) => Self::None,
        }
    }

    /// The secret, read again if it is in a file.
    ///
    /// # Errors
    /// The file cannot be read, as a text for the operator.
    pub(crate) fn read(&self) -> Result<Option<Secret>, String> {
        match self {
            Self::None => Ok(None),
            Self::Here(secret) => Ok(Some(secret.clone())),
            Self::File(path) => read_secret_file(path)
                .map(Some)
                .map_err(|error| format!("cannot read the secret in `{}`: {error}", path.display())),
        }
    }
}

/// The headers of one request and the secrets among them.
pub(crate) struct Presented {
    pub headers: HeaderMap,
    secrets: Vec<SecretText>,
}

impl Presented {
    /// A receiver's text for display: one bounded line, with this program's secrets removed if it repeats them.
    pub(crate) fn shown(&self, text: &str) -> String {
        let secrets: Vec<&SecretText> = self.secrets.iter().collect();
        excerpt(&redact(text, &secrets))
    }
}

impl SenderIdentity {
    pub(crate) fn new(credentials: &RequestCredentials) -> Self {
        Self {
            headers: credentials.headers.clone(),
            username: credentials.username.clone(),
            password: StoredSecret::of(credentials.password.as_ref(), credentials.password_file.as_deref()),
            token: StoredSecret::of(credentials.bearer_token.as_ref(), credentials.bearer_token_file.as_deref()),
        }
    }

    /// The headers, with the current secrets of their files.
    ///
    /// # Errors
    /// A secret cannot be read or is not valid in a header, as a text for the operator.
    pub(crate) fn present(&self) -> Result<Presented, String> {
        let mut presented = Presented { headers: HeaderMap::new(), secrets: Vec::new() };
        for (name, value) in &self.headers {
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is no header's name"))?;
            presented.put(key, &[value.expose()])?;
            presented.secrets.push(value.clone());
        }
        if let Some(username) = &self.username {
            let password = self.password.read()?;
            let password = password.as_ref().map_or("", Secret::expose);
            let encoded = STANDARD.encode(Zeroizing::new(format!("{username}:{password}")));
            presented.put(AUTHORIZATION, &["Basic ", &encoded])?;
            presented.secrets.extend([SecretText::from(encoded), SecretText::from(password)]);
        }
        if let Some(token) = self.token.read()? {
            presented.put(AUTHORIZATION, &["Bearer ", token.expose()])?;
            presented.secrets.push(token);
        }
        Ok(presented)
    }
}

impl Presented {
    fn put(&mut self, name: HeaderName, parts: &[&str]) -> Result<(), String> {
        let value = secret_header(parts)
            .map_err(|_| format!("the value for the header `{name}` has characters that cannot be sent"))?;
        self.headers.insert(name, value);
        Ok(())
    }
}

/// An answer's body.
pub(crate) struct AnswerBody {
    /// At most [`ANSWER_BYTES_MAX`] of it.
    pub body: Vec<u8>,
    /// Whether it was read to its end, or to that bound.
    pub is_whole: bool,
}

/// Reads an answer's body; a broken rest is left out.
pub(crate) async fn read_answer(response: &mut reqwest::Response) -> AnswerBody {
    let mut body = Vec::new();
    let is_whole = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = ANSWER_BYTES_MAX - body.len();
                body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
                if chunk.len() >= room {
                    break true;
                }
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    AnswerBody { body, is_whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_presented_and_never_shown() {
        let credentials = RequestCredentials {
            headers: BTreeMap::from([("X-Key".to_owned(), Secret::new("k3y-value"))]),
            username: Some("me".into()),
            password: Some(Secret::new("hunter2")),
            ..RequestCredentials::default()
        };
        let identity = SenderIdentity::new(&credentials);
        let presented = identity.present().unwrap();
        assert_eq!(presented.headers[AUTHORIZATION], "Basic bWU6aHVudGVyMg==");
        assert_eq!(presented.headers["x-key"], "k3y-value");
        let debug = format!("{identity:?} {:?}", presented.headers);
        let answer = presented.shown("you sent bWU6aHVudGVyMg== and\nk3y-value, hunter2");
        assert_eq!(answer, "you sent *** and ***, ***");
        for secret in ["hunter2", "k3y-value", "bWU6aHVudGVyMg"] {
            assert!(!debug.contains(secret), "{debug}");
        }
    }
}
