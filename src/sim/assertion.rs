//! Checks client assertions as the identity platform does: form, signature, times, audience, subject, and that none is
//! used twice.
//!
//! Follows Microsoft's "certificate credentials" and "workload identity federation" pages. The order of the checks is
//! not documented; here the signature comes before the times.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaParameters, UnparsedPublicKey};
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::SimConfig;
use crate::model::Timestamp;

/// How far an assertion may lie in the future, seconds: the platform tolerates clock differences.
const LEEWAY_SECS: i64 = 300;
/// The longest lifetime of an assertion, seconds. Microsoft recommends 5 to 10 minutes; this is the simulator's own
/// limit.
const LIFE_SECS_MAX: i64 = 600;
/// The platform's own authorities, one for each national cloud.
const AUTHORITIES: [&str; 3] = [
    "https://login.microsoftonline.com",
    "https://login.microsoftonline.us",
    "https://login.partner.microsoftonline.cn",
];

/// A federated credential (workload identity): the only outside token the application accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedCredential {
    /// `iss` the outside token must carry (otherwise AADSTS700211).
    pub issuer: String,
    /// `aud` it must carry (otherwise AADSTS700212); `api://AzureADTokenExchange` in the public cloud.
    pub audience: String,
    /// `sub` it must carry (otherwise AADSTS700213).
    pub subject: String,
    /// The certificate (DER) whose key signs the outside issuer's tokens, RS256. `None`: signatures are not checked.
    pub certificate: Option<Vec<u8>>,
}

/// The `jti` of the accepted assertions, until they expire.
#[derive(Default)]
pub(super) struct SeenAssertions(HashMap<String, i64>);

/// Which kind of proof it was: the `appidacr` claim of the token.
pub(super) const BY_ASSERTION: &str = "2";

/// Checks an assertion sent for a token of `tenant` at `token_path`.
pub(super) fn check(
    seen: &mut SeenAssertions,
    config: &SimConfig,
    (own_url, tenant): (&str, &str),
    assertion: &str,
    now: Timestamp,
) -> Result<(), u32> {
    let Some(jwt) = Jwt::read(assertion) else { return Err(700027) };
    let now = now.as_second();
    if jwt.claim("iss") == config.client_id {
        check_own(seen, config, (own_url, tenant), &jwt, now)
    } else {
        check_outside(config, &jwt, now)
    }
}

/// Checks one signed by a certificate of the application.
fn check_own(
    seen: &mut SeenAssertions,
    config: &SimConfig,
    (own_url, tenant): (&str, &str),
    jwt: &Jwt<'_>,
    now: i64,
) -> Result<(), u32> {
    let (scheme, by_name): (&RsaParameters, _) = match jwt.header("alg") {
        "PS256" => (&RSA_PSS_2048_8192_SHA256, "x5t#S256"),
        "RS256" => (&RSA_PKCS1_2048_8192_SHA256, "x5t"),
        _ => return Err(700027),
    };
    // PS256 may be named by SHA-1, too; an assertion that names its certificate by neither is refused.
    let name = if jwt.header(by_name).is_empty() && by_name == "x5t#S256" { "x5t" } else { by_name };
    let given = jwt.header(name);
    let algorithm = if name == "x5t" { &digest::SHA1_FOR_LEGACY_USE_ONLY } else { &digest::SHA256 };
    let thumbprint = |der: &[u8]| URL_SAFE_NO_PAD.encode(digest::digest(algorithm, der));
    let certificate = config.certificates.iter().find(|der| thumbprint(der) == given).ok_or(700027u32)?;
    if jwt.header("typ") != "JWT" || !jwt.is_signed_by(certificate, scheme) {
        return Err(700027);
    }
    let (from, to) = (jwt.time("nbf").ok_or(700024u32)?, jwt.time("exp").ok_or(700024u32)?);
    if to <= now || from > now + LEEWAY_SECS || to - from > LIFE_SECS_MAX {
        return Err(700024);
    }
    let own = [own_url];
    let mut origins = own.iter().chain(&AUTHORITIES);
    let is_ours = origins.any(|origin| {
        let rest = jwt.claim("aud").strip_prefix(origin).and_then(|rest| rest.strip_prefix('/'));
        let rest = rest.and_then(|rest| rest.strip_prefix(tenant));
        matches!(rest, Some("/oauth2/v2.0/token" | "/oauth2/token"))
    });
    if !is_ours || jwt.claim("sub") != config.client_id {
        return Err(700027);
    }
    // There is no documented code for this.
    seen.0.retain(|_, end| *end > now);
    let id = jwt.claim("jti");
    if id.is_empty() || seen.0.insert(id.to_owned(), to).is_some() {
        return Err(700027);
    }
    Ok(())
}

/// Checks an external issuer's token against the application's federated credential.
fn check_outside(config: &SimConfig, jwt: &Jwt<'_>, now: i64) -> Result<(), u32> {
    let Some(federated) = &config.federated else { return Err(700211) };
    match () {
        () if jwt.claim("iss") != federated.issuer => return Err(700211),
        () if jwt.claim("aud") != federated.audience => return Err(700212),
        () if jwt.claim("sub") != federated.subject => return Err(700213),
        () => {}
    }
    if let Some(certificate) = &federated.certificate
        && (jwt.header("alg") != "RS256" || !jwt.is_signed_by(certificate, &RSA_PKCS1_2048_8192_SHA256))
    {
        return Err(700027);
    }
    let end = jwt.time("exp").ok_or(700024u32)?;
    if end <= now || jwt.time("nbf").is_some_and(|from| from > now + LEEWAY_SECS) { Err(700024) } else { Ok(()) }
}

/// The three parts of a token, the first two decoded.
struct Jwt<'a> {
    header: Value,
    claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { header: decode(header)?, claims: decode(claims)?, signed, signature })
    }

    fn header(&self, name: &str) -> &str {
        self.header.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A text claim; `aud` of an external token may be a list of one.
    fn claim(&self, name: &str) -> &str {
        let value = self.claims.get(name);
        let value = value.and_then(|value| value.as_array().and_then(|list| list.first()).or(Some(value)));
        value.and_then(Value::as_str).unwrap_or_default()
    }

    fn time(&self, name: &str) -> Option<i64> {
        self.claims.get(name).and_then(Value::as_i64)
    }

    fn is_signed_by(&self, certificate: &[u8], scheme: &'static RsaParameters) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let key = &certificate.public_key().subject_public_key.data;
        UnparsedPublicKey::new(scheme, key).verify(self.signed.as_bytes(), &self.signature).is_ok()
    }
}
