//! Managed identity: the three local end points that issue tokens to workloads in Azure, and on machines joined to it.
//!
//! Follows Microsoft's "How to use managed identities on an Azure VM" (IMDS), "Use managed identities for App Service"
//! and "Authenticate against Azure resources with Azure Arc-enabled servers". All three are tested against the
//! simulated tenant's half of the protocol only, not on Azure.

use std::path::{Path, PathBuf};

use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use url::Url;
use zeroize::Zeroizing;

use super::SecretText;
use crate::config::{IdentityHost, secret_header};

/// Azure Arc keeps the files of its challenge here, and a challenge that names another place is refused: otherwise a
/// program that listens on this port could make this process send it any file.
pub const ARC_KEY_DIR: &str = "/var/opt/azcmagent/tokens";
/// Azure Arc's files are never larger than this.
const ARC_KEY_BYTES_MAX: u64 = 4096;

/// The end point of a managed identity's tokens.
#[derive(Debug, Clone)]
pub struct ManagedIdentity {
    /// Which form of end point.
    pub host: IdentityHost,
    /// Its address.
    pub url: Url,
    /// `X-IDENTITY-HEADER` of App Service.
    pub header: Option<SecretText>,
    /// A user-assigned identity's client id; without it the system-assigned one.
    pub client_id: Option<String>,
    /// [`ARC_KEY_DIR`], except in tests.
    pub arc_key_dir: PathBuf,
}

impl ManagedIdentity {
    /// The request, before any challenge.
    pub(super) fn request(&self, http: &reqwest::Client, audience: &str) -> RequestBuilder {
        let version = match self.host {
            IdentityHost::Imds => "2018-02-01",
            IdentityHost::AppService => "2019-08-01",
            IdentityHost::AzureArc => "2020-06-01",
        };
        let mut request = http.get(self.url.clone()).query(&[("api-version", version), ("resource", audience)]);
        if let Some(id) = &self.client_id {
            request = request.query(&[("client_id", id)]);
        }
        match (self.host, &self.header) {
            (IdentityHost::AppService, Some(header)) => match secret_header(&[header.expose()]) {
                Ok(header) => request.header("X-IDENTITY-HEADER", header),
                Err(_) => request,
            },
            (IdentityHost::AppService, None) => request,
            (IdentityHost::Imds | IdentityHost::AzureArc, _) => request.header("Metadata", "true"),
        }
    }

    /// Answers Azure Arc's challenge: the secret is in a file that only members of a group can read.
    pub(super) fn meet_challenge(
        &self,
        headers: &HeaderMap,
        request: RequestBuilder,
    ) -> Result<RequestBuilder, String> {
        let challenge = headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let path = challenge.split_once("realm=").map(|(_, path)| Path::new(path.trim().trim_matches('"')));
        let path = path.ok_or("Azure Arc sent no challenge")?;
        let fits = path.parent() == Some(&self.arc_key_dir) && path.extension().is_some_and(|end| end == "key");
        if !fits {
            return Err(format!("Azure Arc's challenge names a file outside {}", self.arc_key_dir.display()));
        }
        let about = |why: String| format!("{}: {why}; this user must be in the group `himds`", path.display());
        let length = std::fs::symlink_metadata(path).map_err(|error| about(error.to_string()))?;
        if !length.is_file() || length.len() > ARC_KEY_BYTES_MAX {
            return Err(about("no file of the size expected".into()));
        }
        let key = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| about(error.to_string()))?);
        let header = secret_header(&["Basic ", key.trim()]).map_err(|_| about("not a header's text".into()))?;
        Ok(request.header(AUTHORIZATION, header))
    }
}
