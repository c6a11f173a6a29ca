//! What the sinks that use the network have in common: TLS, credentials, and the texts of answers. Knows no protocol.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName};
use url::Url;
use zeroize::Zeroizing;

use crate::api::tls::tls;
use crate::auth::{SecretText, error_chain, excerpt, redact};
use crate::config::{Credentials, Secret, is_loopback, read_secret_file, secret_header};
use crate::model::Actionable;

/// How long to wait for a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes read of an answer that is shown to the operator or parsed.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// `User-Agent` of every request.
const USER_AGENT: &str = concat!("m365-audit/", env!("CARGO_PKG_VERSION"));

/// Why a sink that uses the network cannot be started. What goes wrong later is tried again and never such an error.
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
}

impl Actionable for NetSinkError {
    fn slug(&self) -> &'static str {
        match self {
            Self::CaFile { .. } => "sink-ca-file",
            Self::Tls { .. } => "sink-tls",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::CaFile { .. } => "`ca_file` of the sink must be readable for the user this runs as".into(),
            Self::Tls { .. } => {
                "`ca_file` of the sink must hold certificates in PEM, or this machine trust some".into()
            }
        }
    }
}

/// The bytes of `ca_file`, if there is one.
pub(crate) fn read_ca(ca_file: Option<&Path>) -> Result<Option<Vec<u8>>, NetSinkError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| NetSinkError::CaFile { path: path.to_owned(), source });
    ca_file.map(read).transpose()
}

/// TLS for connections to `to`, without a protocol of the application.
pub(crate) fn tls_config(ca_file: Option<&Path>, to: &Url) -> Result<rustls::ClientConfig, NetSinkError> {
    let ca = read_ca(ca_file)?;
    tls(ca.as_deref(), to).map_err(|why| NetSinkError::Tls { to: shown(to), why })
}

/// A client that follows no redirect and repeats nothing by itself.
pub(crate) fn http_client(ca_file: Option<&Path>, to: &Url) -> Result<reqwest::Client, NetSinkError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_backend_preconfigured(tls_config(ca_file, to)?);
    if is_loopback(to) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| NetSinkError::Tls { to: shown(to), why: error_chain(&error.without_url()) })
}

/// A URL as it may be shown: what follows the path may hold a token.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// The headers an operator configured and the ones that say who sends.
#[derive(Debug)]
pub(crate) struct Identity {
    headers: BTreeMap<String, Secret>,
    username: Option<String>,
    password: Kept,
    token: Kept,
}

/// A secret, or the file that holds it.
#[derive(Debug)]
pub(crate) enum Kept {
    None,
    Here(Secret),
    File(PathBuf),
}

impl Kept {
    pub(crate) fn of(secret: Option<&Secret>, file: Option<&Path>) -> Self {
        match (secret, file) {
            (Some(secret), _) => Self::Here(secret.clone()),
            (None, Some(file)) => Self::File(file.to_owned()),
            (None, None) => Self::None,
        }
    }

    /// The secret, read anew when it lies in a file.
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
    /// A receiver's text as it may be shown: one bounded line without our secrets, should it repeat them.
    pub(crate) fn shown(&self, text: &str) -> String {
        let secrets: Vec<&SecretText> = self.secrets.iter().collect();
        excerpt(&redact(text, &secrets))
    }
}

impl Identity {
    pub(crate) fn new(headers: &BTreeMap<String, Secret>, credentials: Credentials<'_>) -> Self {
        Self {
            headers: headers.clone(),
            username: credentials.username.map(str::to_owned),
            password: Kept::of(credentials.password, credentials.password_file),
            token: Kept::of(credentials.bearer_token, credentials.bearer_token_file),
        }
    }

    /// The headers, with secrets as their files hold them now.
    ///
    /// # Errors
    /// A secret cannot be read or cannot stand in a header, as a text for the operator.
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
    /// It came to its end, or to that bound.
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
        let headers = BTreeMap::from([("X-Key".to_owned(), Secret::new("k3y-value"))]);
        let credentials = Credentials {
            username: Some("me"),
            password: Some(&Secret::new("hunter2")),
            password_file: None,
            bearer_token: None,
            bearer_token_file: None,
        };
        let identity = Identity::new(&headers, credentials);
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
