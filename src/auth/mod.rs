//! Tokens for the feed: requests one from the authority, keeps it, renews it before it expires, and remembers a refusal
//! so that wrong credentials cause few requests.
//!
//! Follows Microsoft's "OAuth 2.0 client credentials flow" (v2) and "Get started with Office 365 Management APIs" (v1),
//! and "Microsoft Entra authentication and authorization error codes" for AADSTS codes. It does not make the feed's
//! calls; callers report when a token was refused.
//!
//! `causes` is the table of AADSTS codes, [`certificate`] signs the assertion of a client certificate, `forms` sorts
//! its files and `key_pair` opens them, [`identity`] requests tokens from a managed identity's end point, and `network`
//! explains why there was no answer. There is no chain of credentials: the configuration names one, and that one works
//! or fails.

mod causes;
pub mod certificate;
pub(crate) mod forms;
pub mod identity;
#[cfg(feature = "certificates")]
mod key_pair;
pub(crate) mod network;
#[cfg(feature = "certificates")]
pub(crate) mod x509;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::SignedDuration;
use parking_lot::{Mutex, MutexGuard};
use reqwest::header::{ACCEPT, CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use url::Url;
use zeroize::Zeroizing;

use causes::{
    CAUSES, CERTIFICATE, Cause, FEDERATED_FILE, IDENTITY_REFUSED, IDENTITY_UNREACHABLE, INTERCEPTED, OTHERS, REFUSED,
    SECRET_FILE, SECRET_ID, UNREACHABLE, judge,
};
use certificate::{AssertionClaims, CertificateFiles, RawFiles};
use identity::ManagedIdentity;
use network::NetworkRoute;

use crate::backoff::{Backoff, Failures};
use crate::clock::Clock;
pub use crate::config::Secret as SecretText;
use crate::config::{IdentityHost, Places, read_secret_file, secret_header, wiped_bytes};
use crate::model::{Actionable, TenantId, Timestamp, is_guid};
use crate::net::{error_chain, excerpt, redact, retry_after};

/// Most bytes read of an answer of the authority, and of a secret file; both are a few kilobytes in practice.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// A token is renewed this long before it expires, if that is earlier than [`RENEW_AT_PERCENT`] of its life.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(300);
/// Or when this much of its lifetime has passed.
const RENEW_AT_PERCENT: u32 = 80;
/// Used when the answer does not state the lifetime of the token: the documented minimum is 60 minutes.
const LIFE_DEFAULT: Duration = Duration::from_secs(3600);
/// The longest lifetime accepted; tokens of 24 hours exist under continuous access evaluation.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Pauses after a refusal that only an operator can fix.
const SLOW_RETRY: Backoff = Backoff::between(Duration::from_secs(60), Duration::from_secs(15 * 60)).exactly();
/// Pauses after a temporary fault.
const PASSING_RETRY: Backoff = Backoff::between(Duration::from_secs(1), Duration::from_secs(60));
/// How the app proves who it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credential {
    /// The client secret's value.
    Secret(SecretText),
    /// A file that holds it. Read again for every exchange, so that it can be rotated; line breaks at its end are
    /// removed.
    SecretFile(PathBuf),
    /// A certificate, whose key signs an assertion for every exchange. The files are read again for each.
    Certificate(Box<CertificateFiles>),
    /// A file that holds a token of an outside issuer (workload identity federation). Its owner replaces it, so it is
    /// read again for every exchange.
    FederatedToken(PathBuf),
    /// The identity that Azure gave the machine: tokens come from a local end point instead of an authority.
    ManagedIdentity(Box<ManagedIdentity>),
}

/// Which of the two token endpoints is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointVersion {
    /// `/oauth2/token`, which names the API with `resource`.
    V1,
    /// `/oauth2/v2.0/token`, which names the API with `scope`.
    #[default]
    V2,
}

/// The settings of a [`TokenSource`].
#[derive(Debug, Clone)]
pub struct TokenSettings {
    /// The tenant to ask in.
    pub tenant: TenantId,
    /// Root of the authority, such as `https://login.microsoftonline.com`.
    pub authority_url: Url,
    /// The API the token is for, such as `https://manage.office.com`.
    pub audience: String,
    /// Which endpoint.
    pub endpoint: EndpointVersion,
    /// The app's client id.
    pub client_id: String,
    /// The app's proof.
    pub credential: Credential,
    /// `aud` of an assertion, when it is not the address of the token end point in use.
    pub assertion_audience: Option<String>,
    /// When the client secret expires, as the operator configured it: Entra has no call that returns it.
    pub secret_expires: Option<Timestamp>,
    /// Longest wait for a whole answer.
    pub timeout: Duration,
    /// Where remedies lead.
    pub places: Places,
}

/// A token, ready to send.
#[derive(Clone)]
pub struct Token {
    header: HeaderValue,
    text: Arc<SecretText>,
    generation: u64,
    renew_at: Duration,
    expires_at: Duration,
}

impl Token {
    /// The value of the `Authorization` header, marked sensitive.
    pub(crate) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// The bare token, so that it can be removed from displayed text.
    pub(crate) fn secret(&self) -> &SecretText {
        &self.text
    }

    /// The claims of the token, for display. The token is opaque to a client: no decision may depend on them.
    pub fn facts(&self) -> TokenFacts {
        let Some(claims) = claims_of(self.text.expose()) else {
            return TokenFacts { readable: false, roles: Vec::new(), tenant: None, audience: None, expires: None };
        };
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        let roles = match claims.get("roles") {
            Some(Value::Array(roles)) => roles.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => text("scp").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        };
        TokenFacts {
            readable: true,
            roles,
            tenant: text("tid"),
            audience: text("aud"),
            expires: claims.get("exp").and_then(Value::as_i64).and_then(|exp| Timestamp::from_second(exp).ok()),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("generation", &self.generation).field("expires_at", &self.expires_at).finish()
    }
}

/// The claims of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFacts {
    /// Whether the token could be decoded at all; the rest is empty when not.
    pub readable: bool,
    /// Application roles (`roles`), or the scopes (`scp`) of a delegated token.
    pub roles: Vec<String>,
    /// `tid`
    pub tenant: Option<String>,
    /// `aud`
    pub audience: Option<String>,
    /// `exp`
    pub expires: Option<Timestamp>,
}

/// Slug of the warning that a certificate or secret expires soon.
pub const EXPIRES_SLUG: &str = "auth-credential-expires";
/// The remedy.
pub const EXPIRES_HINT: &str = "Entra admin centre > App registrations > your app > Certificates & secrets: add a new one \
                                beside the old, then replace the file or the value; files are read again by themselves";

/// For a refusal without a code.
const NO_CODE_HINT: &str = "check the app registration, and look for a proxy that answers in the authority's place";

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot get a token for tenant `{tenant}` from `{authority}`: {}", self.cause_text())]
pub struct AuthError {
    tenant: TenantId,
    authority: String,
    slug: &'static str,
    says: String,
    hint: String,
    code: Option<u32>,
    status: Option<u16>,
    /// Further text: this program's, or another's in backticks.
    detail: Option<String>,
    passing: bool,
    not_before: Option<Duration>,
}

impl AuthError {
    /// The AADSTS number, when the authority gave one.
    pub fn code(&self) -> Option<u32> {
        self.code
    }

    /// The authority's HTTP status, when it answered.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether it is likely to end without an operator.
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// How long from now every request for a token gets this error without being sent. `None` when the next request is
    /// sent at once (the secret's file could not be read).
    pub fn not_before(&self) -> Option<Duration> {
        self.not_before
    }

    /// The cause in a few words: without the tenant, and with only the code of the answer, unless that code is unknown.
    pub fn summary(&self) -> String {
        match (self.code, self.status, &self.detail) {
            (Some(code), _, Some(detail)) if self.slug == REFUSED.slug => {
                format!("{} (AADSTS{code}): {detail}", self.says)
            }
            (Some(code), ..) => format!("{} (AADSTS{code})", self.says),
            (None, Some(status), _) => format!("{} (status {status} from `{}`)", self.says, self.authority),
            (None, None, Some(detail)) => format!("{} (`{}`): {detail}", self.says, self.authority),
            (None, None, None) => self.says.clone(),
        }
    }

    /// The cause alone, without tenant and authority.
    fn cause_text(&self) -> String {
        let mut text = self.says.clone();
        match (self.code, self.status) {
            (Some(code), _) => text.push_str(&format!(" (AADSTS{code})")),
            (None, Some(status)) => text.push_str(&format!(" (status {status})")),
            (None, None) => {}
        }
        if let Some(detail) = &self.detail {
            text.push_str(&format!(": {detail}"));
        }
        text
    }
}

impl Actionable for AuthError {
    fn slug(&self) -> &'static str {
        self.slug
    }

    fn hint(&self) -> String {
        self.hint.clone()
    }
}

/// How long before its end a certificate or secret is reported.
pub const EXPIRY_WARNING: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often that report is repeated.
const EXPIRY_WARNING_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Keeps one token and renews it. All calls of a tenant share one source.
#[derive(Debug)]
pub struct TokenSource {
    settings: TokenSettings,
    token_url: Url,
    http: reqwest::Client,
    route: NetworkRoute,
    /// Bounds the connections of all tenants together.
    connections: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    /// One exchange at a time; a second caller finds the token of the first.
    turn: Semaphore,
    state: Mutex<TokenState>,
}

#[derive(Debug)]
struct TokenState {
    token: Option<Token>,
    generation: u64,
    /// The authority's clock minus this machine's, by its last answer.
    skew: Option<SignedDuration>,
    failure: Option<TokenFailure>,
    slow: Failures,
    passing: Failures,
    /// When the credential's coming end was last reported.
    expiry_warned: Option<Duration>,
}

/// The proof for the authority, before it is put into a request.
enum ClientProof {
    Secret(SecretText),
    Certificate(Arc<RawFiles>),
    Federated(SecretText),
    Identity,
}

impl ClientProof {
    /// Detects that it was replaced.
    fn fingerprint(&self) -> blake3::Hash {
        match self {
            Self::Secret(text) | Self::Federated(text) => blake3::hash(text.expose().as_bytes()),
            Self::Certificate(raw) => raw.fingerprint(),
            Self::Identity => blake3::hash(b""),
        }
    }
}

/// A request for a token, and the parts of it that must not be shown.
struct Prepared {
    request: reqwest::RequestBuilder,
    secret: Option<SecretText>,
    /// The identifiers that an operator compares with the app registration when the proof is refused.
    presented: Option<String>,
}

/// A refusal, until whose end no request is sent.
#[derive(Debug, Clone)]
struct TokenFailure {
    error: AuthError,
    retry_at: Duration,
    /// The fingerprint of the refused secret, which shows whether it was replaced.
    secret: blake3::Hash,
}

impl TokenSource {
    /// `http` must follow no redirect and decode no body; `route` is the path to the authority, and each request takes
    /// a permit of `connections`.
    pub(crate) fn new(
        settings: TokenSettings,
        http: reqwest::Client,
        route: NetworkRoute,
        connections: Arc<Semaphore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let path = match settings.endpoint {
            EndpointVersion::V1 => "oauth2/token",
            EndpointVersion::V2 => "oauth2/v2.0/token",
        };
        let mut token_url = settings.authority_url.clone();
        let root = token_url.path().trim_end_matches('/').to_owned();
        token_url.set_path(&format!("{root}/{}/{path}", settings.tenant));
        token_url.set_query(None);
        token_url.set_fragment(None);
        if let Credential::ManagedIdentity(identity) = &settings.credential {
            token_url = identity.url.clone();
        }
        Self {
            settings,
            token_url,
            http,
            route,
            connections,
            clock,
            turn: Semaphore::new(1),
            state: Mutex::new(TokenState {
                token: None,
                generation: 0,
                skew: None,
                failure: None,
                slow: SLOW_RETRY.failures(),
                passing: PASSING_RETRY.failures(),
                expiry_warned: None,
            }),
        }
    }

    /// Its settings.
    pub(crate) fn settings(&self) -> &TokenSettings {
        &self.settings
    }

    /// A token that has not expired, requested if there is none. If the authority cannot be reached at renewal time,
    /// the old token is used until it expires.
    pub async fn token(&self) -> Result<Token, AuthError> {
        self.obtain(None).await
    }

    /// A token other than `refused`, which the API has answered with 401. A burst of such answers causes one exchange.
    pub async fn renew(&self, refused: &Token) -> Result<Token, AuthError> {
        self.obtain(Some(refused.generation)).await
    }

    /// The authority's clock minus this machine's, by its last answer. For display only.
    pub fn skew(&self) -> Option<SignedDuration> {
        self.lock().skew
    }

    fn note_date(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
        if let Some(date) = date.and_then(|date| Timestamp::try_from(date).ok()) {
            let skew = date.duration_since(self.clock.now());
            self.lock().skew = Some(skew);
        }
    }

    async fn obtain(&self, refused: Option<u64>) -> Result<Token, AuthError> {
        let held = self.held(refused);
        let turn = match &held {
            Some((token, false)) => return Ok(token.clone()),
            Some((token, true)) => match self.turn.try_acquire() {
                Ok(turn) => Ok(turn),
                // Another task is renewing it; it is valid until then.
                Err(_) => return Ok(token.clone()),
            },
            None => self.turn.acquire().await,
        };
        let outcome = self.obtain_in_turn(refused).await;
        drop(turn);
        outcome
    }

    async fn obtain_in_turn(&self, refused: Option<u64>) -> Result<Token, AuthError> {
        let held = match self.held(refused) {
            Some((token, false)) => return Ok(token),
            Some((token, true)) => Some(token),
            None => None,
        };
        let proof = match self.proof().await {
            Ok(proof) => proof,
            Err(error) => return held.ok_or(error),
        };
        let fingerprint = proof.fingerprint();
        if let Some(error) = self.remembered(fingerprint) {
            return held.ok_or(error);
        }
        match self.exchange(&proof).await {
            Ok((text, header, life)) => Ok(self.keep(text, header, life)),
            Err((error, asked)) => {
                let error = self.remember(error, asked, fingerprint);
                if held.is_some() {
                    tracing::warn!(tenant = %self.settings.tenant, %error, "token not renewed, the old one still serves");
                }
                held.ok_or(error)
            }
        }
    }

    /// The present token if it is usable, and whether it is time to renew it.
    fn held(&self, refused: Option<u64>) -> Option<(Token, bool)> {
        let now = self.clock.monotonic();
        let mut state = self.lock();
        if state.token.as_ref().is_some_and(|token| refused == Some(token.generation) || now >= token.expires_at) {
            state.token = None;
        }
        state.token.as_ref().map(|token| (token.clone(), now >= token.renew_at))
    }

    fn keep(&self, text: SecretText, header: HeaderValue, life: Duration) -> Token {
        let now = self.clock.monotonic();
        let mut state = self.lock();
        state.generation += 1;
        state.failure = None;
        state.slow = SLOW_RETRY.failures();
        state.passing = PASSING_RETRY.failures();
        let token = Token {
            header,
            text: Arc::new(text),
            generation: state.generation,
            renew_at: now + renew_after(life),
            expires_at: now + life,
        };
        state.token = Some(token.clone());
        token
    }

    /// The failure that still applies, if it concerned this secret.
    fn remembered(&self, secret: blake3::Hash) -> Option<AuthError> {
        let now = self.clock.monotonic();
        let state = self.lock();
        let failure = state.failure.as_ref()?;
        (failure.secret == secret && now < failure.retry_at)
            .then(|| AuthError { not_before: Some(failure.retry_at.saturating_sub(now)), ..failure.error.clone() })
    }

    fn remember(&self, error: AuthError, asked: Option<Duration>, secret: blake3::Hash) -> AuthError {
        metrics::counter!(crate::metrics::ERRORS_TOTAL, "tenant" => self.settings.tenant.to_string(), "kind" => error.slug)
            .increment(1);
        let now = self.clock.monotonic();
        let mut state = self.lock();
        // A new secret that is also wrong restarts the pauses, since an operator is working on it.
        if state.failure.as_ref().is_some_and(|failure| failure.secret != secret) {
            state.slow = SLOW_RETRY.failures();
        }
        let delay = if error.passing { state.passing.pause() } else { state.slow.pause() };
        let delay = asked.map_or(delay, |asked| asked.max(delay));
        let error = AuthError { not_before: Some(delay), ..error };
        state.failure = Some(TokenFailure { error: error.clone(), retry_at: now + delay, secret });
        error
    }

    async fn proof(&self) -> Result<ClientProof, AuthError> {
        match &self.settings.credential {
            Credential::Secret(secret) => Ok(ClientProof::Secret(secret.clone())),
            Credential::SecretFile(path) => self.read_text(path, &SECRET_FILE).await.map(ClientProof::Secret),
            Credential::FederatedToken(path) => self.read_text(path, &FEDERATED_FILE).await.map(ClientProof::Federated),
            Credential::Certificate(files) => {
                let files = files.clone();
                let read = tokio::task::spawn_blocking(move || files.read()).await;
                let read = read.unwrap_or_else(|error| Err(error.to_string()));
                read.map(|raw| ClientProof::Certificate(Arc::new(raw))).map_err(|why| self.unusable(&CERTIFICATE, &why))
            }
            Credential::ManagedIdentity(_) => Ok(ClientProof::Identity),
        }
    }

    /// The error of a fault on this machine, before any request.
    fn unusable(&self, cause: &Cause, why: &str) -> AuthError {
        self.error(cause, None, None, Some(why.to_owned()))
    }

    /// The one line of a file, in any encoding.
    async fn read_text(&self, path: &Path, cause: &'static Cause) -> Result<SecretText, AuthError> {
        let file = path.to_owned();
        let read = tokio::task::spawn_blocking(move || read_secret_file(&file)).await;
        let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let unusable = |why: String| self.error(cause, None, None, Some(format!("`{}`: {why}", path.display())));
        let text = read.map_err(|error| unusable(error.to_string()))?;
        match crate::config::odd_secret(text.expose()) {
            Some(odd) => Err(unusable(odd)),
            None => Ok(text),
        }
    }

    /// The authority's time, by its last answer; this machine's before the first.
    fn authority_now(&self) -> Timestamp {
        let now = self.clock.now();
        self.lock().skew.and_then(|skew| now.checked_add(skew).ok()).unwrap_or(now)
    }

    /// Requests a token. An error carries the wait that the authority named.
    async fn exchange(
        &self,
        proof: &ClientProof,
    ) -> Result<(SecretText, HeaderValue, Duration), (AuthError, Option<Duration>)> {
        match self.exchange_once(proof).await {
            // Outside its validity period: the refusal carried the authority's time, which the next assertion uses.
            Err((error, None)) if error.code == Some(700024) && matches!(proof, ClientProof::Certificate(_)) => {
                self.exchange_once(proof).await
            }
            outcome => outcome,
        }
    }

    async fn exchange_once(
        &self,
        proof: &ClientProof,
    ) -> Result<(SecretText, HeaderValue, Duration), (AuthError, Option<Duration>)> {
        let Prepared { request, secret, presented } = self.prepare(proof).await.map_err(|error| (error, None))?;
        let secrets: Vec<&SecretText> = secret.iter().collect();
        let mut response = self.send(request.try_clone(), &secrets).await.map_err(|error| (error, None))?;
        if let Credential::ManagedIdentity(identity) = &self.settings.credential
            && identity.host == IdentityHost::AzureArc
            && response.status().as_u16() == 401
        {
            let met = identity.meet_challenge(response.headers(), request);
            let request = met.map_err(|why| (self.unusable(&IDENTITY_REFUSED, &why), None))?;
            response = self.send(Some(request), &secrets).await.map_err(|error| (error, None))?;
        }
        let status = response.status().as_u16();
        let asked = retry_after(response.headers(), self.clock.now());
        let body = match read_bounded(response).await {
            Ok(body) => body,
            Err(error) => {
                let why = quoted(&error_chain(&error.without_url()));
                return Err((self.error(self.unreachable(), None, Some(status), Some(why)), asked));
            }
        };
        if status == 200
            && let Ok(answer) = serde_json::from_slice::<TokenAnswer>(&body)
            && let Ok(header) = secret_header(&["Bearer ", answer.access_token.expose()])
            && !answer.access_token.expose().is_empty()
        {
            let life = life(answer.expires_in.as_ref(), answer.expires_on.as_ref(), self.clock.now());
            if let (Some(end), ClientProof::Secret(_)) = (self.settings.secret_expires, proof) {
                self.note_expiry("the client secret", end);
            }
            return Ok((answer.access_token, header, life));
        }
        let (mut cause, code, words) = judge(status, &body);
        if let (Some(7_000_215), ClientProof::Secret(secret)) = (code, proof)
            && is_guid(secret.expose().trim())
        {
            cause = &SECRET_ID;
        }
        if status == 407 {
            let fault = self.route.proxy_wants_credentials();
            let words = words.map(|words| quoted(&redact(&words, &secrets)));
            let mut failed = self.error(&INTERCEPTED, None, Some(status), words);
            (failed.slug, failed.says, failed.hint) = (fault.slug, fault.says, fault.hint);
            return Err((failed, asked));
        }
        if matches!(proof, ClientProof::Identity) && (cause.slug == REFUSED.slug || cause.slug == INTERCEPTED.slug) {
            cause = &IDENTITY_REFUSED;
        }
        let mut detail = words.map(|words| quoted(&redact(&words, &secrets)));
        if let (Some(presented), Some(detail)) = (presented, &mut detail)
            && ["auth-certificate-refused", "auth-federation-mismatch"].contains(&cause.slug)
        {
            detail.push_str(&format!("; presented: {presented}"));
        }
        Err((self.error(cause, code, Some(status), detail), asked))
    }

    /// The request that presents `proof`.
    async fn prepare(&self, proof: &ClientProof) -> Result<Prepared, AuthError> {
        const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let audience = self.settings.audience.trim_end_matches('/');
        let scope = format!("{audience}/.default");
        let api = match self.settings.endpoint {
            EndpointVersion::V1 => ("resource", audience),
            EndpointVersion::V2 => ("scope", scope.as_str()),
        };
        let mut form = vec![("grant_type", "client_credentials"), ("client_id", &*self.settings.client_id)];
        let (secret, presented) = match proof {
            ClientProof::Secret(secret) => (secret.clone(), None),
            ClientProof::Certificate(raw) => {
                let (assertion, presented) = self.assertion(raw.clone()).await?;
                (assertion, Some(presented))
            }
            ClientProof::Federated(token) => (token.clone(), Some(presented_by(token))),
            ClientProof::Identity => {
                let Credential::ManagedIdentity(identity) = &self.settings.credential else {
                    return Err(self.unusable(&IDENTITY_REFUSED, "not configured"));
                };
                let request = identity.request(&self.http, audience).timeout(self.settings.timeout);
                return Ok(Prepared { request, secret: identity.header.clone(), presented: None });
            }
        };
        match proof {
            ClientProof::Secret(_) => form.push(("client_secret", secret.expose())),
            _ => form.extend([("client_assertion_type", ASSERTION_TYPE), ("client_assertion", secret.expose())]),
        }
        form.push(api);
        let request = self
            .http
            .post(self.token_url.clone())
            .timeout(self.settings.timeout)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(wiped_bytes(form_text(&form)));
        Ok(Prepared { request, secret: Some(secret), presented })
    }

    /// A signed assertion, and the description of its certificate.
    async fn assertion(&self, raw: Arc<RawFiles>) -> Result<(SecretText, String), AuthError> {
        let Credential::Certificate(files) = &self.settings.credential else {
            return Err(self.unusable(&CERTIFICATE, "not configured"));
        };
        let (files, now) = (files.clone(), self.authority_now());
        let client_id = self.settings.client_id.clone();
        let audience = self.settings.assertion_audience.clone().unwrap_or_else(|| self.token_url.to_string());
        // Decrypting a key is slow by design, and a signature takes a millisecond or two.
        let signed = tokio::task::spawn_blocking(move || {
            let certificate = files.parse(&raw)?;
            let claims = AssertionClaims { client_id: &client_id, audience: &audience, now };
            Ok::<_, String>((certificate.assertion(files.algorithm, &claims)?, certificate.facts))
        });
        let (assertion, facts) = signed
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| self.unusable(&CERTIFICATE, &why))?;
        self.note_expiry("the client certificate", facts.not_after);
        Ok((assertion, format!("{}, thumbprint {}, valid until {}", facts.subject, facts.thumbprint, facts.not_after)))
    }

    /// Records when the credential expires, and logs it in time, once a day.
    fn note_expiry(&self, what: &str, end: Timestamp) {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a date")]
        let seconds = end.as_second() as f64;
        metrics::gauge!(crate::metrics::CREDENTIAL_EXPIRY_TIMESTAMP_SECONDS, "tenant" => self.settings.tenant.to_string())
            .set(seconds);
        let left = end.duration_since(self.authority_now());
        if left > EXPIRY_WARNING {
            return;
        }
        let now = self.clock.monotonic();
        {
            let mut state = self.lock();
            if state.expiry_warned.is_some_and(|last| now < last + EXPIRY_WARNING_EVERY) {
                return;
            }
            state.expiry_warned = Some(now);
        }
        let tenant = &self.settings.tenant;
        let hint = self.settings.places.fill(EXPIRES_HINT);
        if left.is_negative() {
            tracing::warn!(%tenant, "{EXPIRES_SLUG}: {what} has ended on {end} (hint: {hint})");
        } else {
            let days = left.as_hours() / 24;
            tracing::warn!(%tenant, "{EXPIRES_SLUG}: {what} ends on {end}, in {days} days (hint: {hint})");
        }
    }

    const fn unreachable(&self) -> &'static Cause {
        if matches!(self.settings.credential, Credential::ManagedIdentity(_)) {
            &IDENTITY_UNREACHABLE
        } else {
            &UNREACHABLE
        }
    }

    async fn send(
        &self,
        request: Option<reqwest::RequestBuilder>,
        secrets: &[&SecretText],
    ) -> Result<reqwest::Response, AuthError> {
        let Some(request) = request else {
            return Err(self.unusable(self.unreachable(), "the request cannot be sent"));
        };
        // A permit for its connection; never closed, and without it the request is still sent.
        let _room = self.connections.acquire().await;
        match request.send().await {
            Ok(response) => {
                self.count(response.status().as_str());
                self.note_date(response.headers());
                Ok(response)
            }
            Err(error) => {
                self.count("error");
                let known = self.route.fault(&error).await;
                let why = quoted(&redact(&error_chain(&error.without_url()), secrets));
                let mut failed = self.error(self.unreachable(), None, None, Some(why));
                if let Some(known) = known {
                    failed.detail = known.detail.map(|text| quoted(&redact(&text, secrets))).or(failed.detail);
                    (failed.slug, failed.says, failed.hint) = (known.slug, known.says, known.hint);
                }
                Err(failed)
            }
        }
    }

    fn error(&self, cause: &Cause, code: Option<u32>, status: Option<u16>, detail: Option<String>) -> AuthError {
        let places = &self.settings.places;
        AuthError {
            tenant: self.settings.tenant.clone(),
            authority: self.token_url.host_str().unwrap_or_default().to_owned(),
            slug: cause.slug,
            says: cause.says.to_owned(),
            hint: match (cause.slug == REFUSED.slug, code) {
                (true, None) => NO_CODE_HINT.to_owned(),
                _ => places.fill(cause.hint).replace("{lookup}", &places.lookup(code)),
            },
            code,
            status,
            detail,
            passing: cause.passing,
            not_before: None,
        }
    }

    fn count(&self, status: &str) {
        metrics::counter!(
            crate::metrics::REQUESTS_TOTAL,
            "tenant" => self.settings.tenant.to_string(),
            "endpoint" => "token",
            "status" => status.to_owned()
        )
        .increment(1);
    }

    fn lock(&self) -> MutexGuard<'_, TokenState> {
        self.state.lock()
    }
}

/// The members that are read of a token answer; v1 sends numbers as strings.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: SecretText,
    #[serde(default)]
    expires_in: Option<Value>,
    /// App Service sends only this one.
    #[serde(default)]
    expires_on: Option<Value>,
}

/// Slug, cause and remedy of every error of this module.
pub(crate) fn known() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let network = network::CAUSES.iter().map(|cause| (cause.slug, cause.says, cause.hint));
    CAUSES.iter().chain(OTHERS).map(|cause| (cause.slug, cause.says, cause.hint)).chain(network)
}

/// AADSTS numbers behind a slug.
pub(crate) fn codes_of(slug: &str) -> impl Iterator<Item = u32> {
    CAUSES.iter().filter(move |cause| cause.slug == slug).flat_map(|cause| cause.codes.iter().copied())
}

/// The claims of an external token, for comparison with the federated credential.
fn presented_by(token: &SecretText) -> String {
    let Some(claims) = claims_of(token.expose()) else { return "a token that is no JWT".to_owned() };
    let claim = |name: &str| match claims.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "none".to_owned(),
    };
    excerpt(&format!("issuer {}, audience {}, subject {}", claim("iss"), claim("aud"), claim("sub")))
}

/// The claims of a JWT, unverified.
fn claims_of(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok().filter(Value::is_object)
}

fn life(expires_in: Option<&Value>, expires_on: Option<&Value>, now: Timestamp) -> Duration {
    let number = |value: Option<&Value>| match value {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    #[expect(clippy::cast_precision_loss, reason = "seconds of a date")]
    let left = |end: f64| end - now.as_second() as f64;
    match number(expires_in).or_else(|| number(expires_on).map(left)) {
        Some(seconds) if seconds >= 1.0 => Duration::try_from_secs_f64(seconds).unwrap_or(LIFE_MAX).min(LIFE_MAX),
        // A token with no lifetime would be requested on every call; a 401 will show if it has expired.
        Some(_) => Duration::from_secs(1),
        None => LIFE_DEFAULT,
    }
}

/// The earlier of 5 minutes before expiry and 80 % of life; never before half of a shorter lifetime.
fn renew_after(life: Duration) -> Duration {
    let by_share = life * RENEW_AT_PERCENT / 100;
    life.saturating_sub(RENEW_BEFORE_EXPIRY).max(life / 2).min(by_share)
}

/// A form as the body of a request. The capacity is reserved at once: a text that grows leaves copies in memory.
fn form_text(form: &[(&str, &str)]) -> String {
    // A byte takes at most three in a form; a pair adds two characters.
    let room = form.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    url::form_urlencoded::Serializer::new(String::with_capacity(room)).extend_pairs(form).finish()
}

/// At most [`ANSWER_BYTES_MAX`] of a body; the rest is left unread.
async fn read_bounded(mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, reqwest::Error> {
    let mut body = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX));
    while let Some(chunk) = response.chunk().await? {
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if chunk.len() >= room {
            break;
        }
    }
    Ok(body)
}

/// A text of another program, marked as such.
fn quoted(text: &str) -> String {
    format!("`{}`", excerpt(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_a_token_is_read_as_number_and_as_string() {
        let now = Timestamp::from_second(1_000).unwrap();
        let seconds = |json: &str| life(Some(&serde_json::from_str(json).unwrap()), None, now).as_secs();
        let got = ["4102", "\"3599\"", "0", "-5", "1e300", "null", "\"soon\""].map(seconds);
        assert_eq!(got, [4102, 3599, 1, 1, 24 * 3600, 3600, 3600]);
        assert_eq!(life(None, None, now), LIFE_DEFAULT);
        assert_eq!(life(None, Some(&Value::from("4600")), now).as_secs(), 3600, "App Service names the end alone");
    }

    #[test]
    fn a_token_is_renewed_early_whatever_its_life() {
        for (life, renew) in [(3600, 2880), (24 * 3600, 69120), (1000, 700), (400, 200), (10, 5)] {
            assert_eq!(renew_after(Duration::from_secs(life)).as_secs(), renew, "{life}");
        }
    }

    #[test]
    fn nothing_shown_holds_a_secret() {
        let secret = SecretText::from("p&ss w+rd");
        assert_eq!(format!("{secret:?} {:?}", Credential::Secret(secret.clone())), "*** Secret(***)");
    }
}
