//! The identity platform's half of the simulation: the two token endpoints, the tokens they issue, and the
//! AADSTS errors they refuse with.
//!
//! Follows Microsoft's "Microsoft identity platform and OAuth 2.0 client credentials flow", "certificate credentials"
//! and "error codes" pages. [`super::assertion`] has the checks of an assertion.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::SimConfig;
use super::assertion::{self, SeenAssertions};
use super::call::{Reply, SimCall};
use crate::model::{TenantId, Timestamp, is_guid};

/// Audiences the feed's hosts accept: Microsoft's five clouds.
const CLOUD_AUDIENCES: [&str; 5] = [
    "https://manage.office.com",
    "https://manage-gcc.office.com",
    "https://manage.office365.us",
    "https://manage.protection.apps.mil",
    "https://manage.office365.cn",
];

/// Every AADSTS code the simulator knows: number, `error`, HTTP status, text.
const CODES: [(u32, &str, u16, &str); 32] = [
    (
        7000215,
        "invalid_client",
        401,
        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{app}'.",
    ),
    (7000222, "invalid_client", 401, "The provided client secret keys for app '{app}' are expired."),
    (
        700016,
        "unauthorized_client",
        400,
        "Application with identifier '{app}' was not found in the directory '{tenant}'.",
    ),
    (
        7000229,
        "invalid_client",
        401,
        "The client application {app} is missing service principal in the tenant {tenant}. See instructions here: https://go.microsoft.com/fwlink/?linkid=2225119",
    ),
    (
        700027,
        "invalid_client",
        401,
        "The certificate with identifier used to sign the client assertion is not registered on application.",
    ),
    (700024, "invalid_client", 401, "Client assertion is not within its valid time range."),
    (700211, "invalid_client", 401, "No matching federated identity record found for presented assertion issuer."),
    (700212, "invalid_client", 401, "No matching federated identity record found for presented assertion audience."),
    (700213, "invalid_client", 401, "No matching federated identity record found for presented assertion subject."),
    (
        7000216,
        "invalid_client",
        401,
        "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.",
    ),
    (7000112, "unauthorized_client", 400, "Application '{app}' is disabled."),
    (70003, "unsupported_grant_type", 400, "The app requested an unsupported grant type."),
    (
        90002,
        "invalid_request",
        400,
        "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.",
    ),
    (
        900023,
        "invalid_request",
        400,
        "Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external domain.",
    ),
    (90038, "invalid_request", 400, "The tenant '{tenant}' resides in another national cloud."),
    (900382, "invalid_client", 401, "Confidential Client is not supported in Cross Cloud request."),
    (900432, "invalid_client", 401, "Confidential Client is not supported in Cross Cloud request."),
    (
        500011,
        "invalid_resource",
        400,
        "The resource principal named https://manage.office.com was not found in the tenant named {tenant}.",
    ),
    (650051, "invalid_client", 400, "The application requested a permission that is no longer offered."),
    (
        650052,
        "invalid_client",
        400,
        "The app needs access to a service that your organization has not subscribed to or enabled.",
    ),
    (65001, "invalid_grant", 400, "The user or administrator has not consented to use the application."),
    (
        70011,
        "invalid_scope",
        400,
        "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid.",
    ),
    (
        1002012,
        "invalid_scope",
        400,
        "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier.",
    ),
    (900144, "invalid_request", 400, "The request body must contain the following parameter: 'grant_type'."),
    (53003, "invalid_grant", 400, "Access has been blocked by Conditional Access policies."),
    (530003, "invalid_grant", 400, "Your device is required to be managed to access this resource."),
    (90006, "temporarily_unavailable", 503, "The service is temporarily unavailable."),
    (90012, "temporarily_unavailable", 503, "The request has timed out."),
    (90024, "temporarily_unavailable", 503, "RequestBudgetExceededError: a transient error has occurred."),
    (90033, "temporarily_unavailable", 503, "A transient error has occurred. Please try again."),
    (90055, "temporarily_unavailable", 429, "TenantThrottlingError: there are too many incoming requests."),
    (90090, "temporarily_unavailable", 503, "GraphRetryableError: the service is temporarily unavailable."),
];

/// The AADSTS codes that can be switched on, as [`SimConfig::token_error`] and [`super::SimFault::Aadsts`] take them.
pub fn aadsts_codes() -> impl Iterator<Item = u32> {
    CODES.into_iter().map(|(code, ..)| code)
}

/// The `appidacr` claim of a token for a secret.
const BY_SECRET: &str = "1";

/// The meaning of an issued token.
#[derive(Clone)]
pub(super) struct IssuedToken {
    pub tenant: TenantId,
    pub roles: Vec<String>,
    pub audience: String,
    pub expires: Timestamp,
}

/// The valid tokens, by their text. Expired ones are dropped when a new one is issued.
#[derive(Default)]
pub(super) struct Tokens {
    issued: HashMap<String, IssuedToken>,
    assertions: SeenAssertions,
    serial: u64,
}

impl Tokens {
    pub fn revoke_all(&mut self) {
        self.issued.clear();
    }

    /// The meaning of a bearer token, if this simulator issued it, it has not expired and is for this API.
    pub fn check(&self, token: &str, now: Timestamp, own_url: &str) -> Option<&IssuedToken> {
        let issued = self.issued.get(token)?;
        let audience = issued.audience.trim_end_matches('/');
        let for_us = audience == own_url || CLOUD_AUDIENCES.contains(&audience);
        (for_us && issued.expires > now).then_some(issued)
    }

    /// The meaning of a bearer token, if this simulator issued it and it has not expired, for any resource.
    pub fn issued_to(&self, token: &str, now: Timestamp) -> Option<&IssuedToken> {
        self.issued.get(token).filter(|issued| issued.expires > now)
    }

    /// A new token; `proof` is its `appidacr`.
    pub fn issue(
        &mut self,
        config: &SimConfig,
        tenant: &TenantId,
        audience: &str,
        proof: &str,
        now: Timestamp,
    ) -> String {
        self.serial += 1;
        self.issued.retain(|_, token| token.expires > now);
        let lifetime = i64::try_from(config.token_lifetime_secs).unwrap_or(i64::MAX);
        let expires = now.saturating_add(jiff::SignedDuration::from_secs(lifetime)).unwrap_or(Timestamp::MAX);
        // A token has the application's roles for its API.
        let of_graph = audience.trim_end_matches('/') == super::queries::AUDIENCE;
        let roles = if of_graph { &config.graph.roles } else { &config.roles };
        let claims = json!({
            "aud": audience, "iss": format!("https://sts.windows.net/{tenant}/"),
            "iat": now.as_second(), "nbf": now.as_second(), "exp": expires.as_second(), "ver": "1.0",
            "tid": tenant.as_str(), "roles": roles, "oid": "5d3c8a0e-0000-4000-8000-000000000001",
            "sub": "5d3c8a0e-0000-4000-8000-000000000001", "appid": config.client_id, "appidacr": proof,
            "uti": format!("sim-{}", self.serial),
        });
        let header = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"RS256","kid":"simulated"}"#);
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        let token =
            format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(format!("not a signature {}", self.serial)));
        self.issued.insert(
            token.clone(),
            IssuedToken { tenant: tenant.clone(), roles: roles.clone(), audience: audience.to_owned(), expires },
        );
        token
    }
}

/// The resource of the token that a call sends or requests: any token of this simulator contains it, valid or not.
pub(super) fn resource_of(call: &SimCall) -> Option<String> {
    if let Some(bearer) = &call.bearer {
        let payload = URL_SAFE_NO_PAD.decode(bearer.split('.').nth(1)?).ok()?;
        return Some(serde_json::from_slice::<serde_json::Value>(&payload).ok()?["aud"].as_str()?.to_owned());
    }
    let field = |name: &str| call.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let asked = call.param("resource").or_else(|| field("resource")).or_else(|| field("scope"))?;
    Some(asked.strip_suffix("/.default").unwrap_or(asked).to_owned())
}

/// Answers a token request that came to `own_url`.
pub(super) fn answer(tokens: &mut Tokens, config: &SimConfig, own_url: &str, call: &SimCall, now: Timestamp) -> Reply {
    match grant(&mut tokens.assertions, config, own_url, call, now) {
        Err(code) => refuse(code, config, &call.tenant_text, now),
        Ok((tenant, audience, proof)) => {
            let token = tokens.issue(config, &tenant, &audience, proof, now);
            let lifetime = config.token_lifetime_secs;
            let body = if call.v2 {
                json!({"token_type": "Bearer", "expires_in": lifetime, "ext_expires_in": lifetime, "access_token": token})
            } else {
                let seconds = now.as_second();
                json!({
                    "token_type": "Bearer", "expires_in": lifetime.to_string(), "ext_expires_in": "0",
                    "expires_on": seconds.saturating_add_unsigned(lifetime).to_string(),
                    "not_before": (seconds - 300).to_string(), "resource": audience, "access_token": token,
                })
            };
            Reply::json(200, &body)
        }
    }
}

/// The refusal Microsoft sends for an AADSTS code; unknown codes get `invalid_request`.
pub(super) fn refuse(code: u32, config: &SimConfig, tenant: &str, now: Timestamp) -> Reply {
    let (_, error, status, text) =
        CODES.into_iter().find(|known| known.0 == code).unwrap_or((code, "invalid_request", 400, "Request refused."));
    let stamp = now.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let text = text.replace("{app}", &config.client_id).replace("{tenant}", tenant);
    let (trace, correlation) = ("5e1f0000-0000-4000-8000-00000000aad0", "5e1f0000-0000-4000-8000-00000000aad1");
    Reply::json(
        status,
        &json!({
            "error": error,
            "error_description": format!(
                "AADSTS{code}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {stamp}"
            ),
            "error_codes": [code], "timestamp": stamp, "trace_id": trace, "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={code}"),
        }),
    )
}

/// Checks a request in the order the platform does: tenant, application, grant, credential, resource.
fn grant(
    seen: &mut SeenAssertions,
    config: &SimConfig,
    own_url: &str,
    call: &SimCall,
    now: Timestamp,
) -> Result<(TenantId, String, &'static str), u32> {
    let tenant_text = call.tenant_text.as_str();
    let field = |name: &str| call.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let tenant = find_tenant(config, tenant_text)?;
    if let Some(code) = config.token_error {
        return Err(code);
    }
    match field("grant_type") {
        None => return Err(900144),
        Some("client_credentials") => {}
        Some(_) => return Err(70003),
    }
    let client_id = field("client_id");
    if client_id.is_some_and(|id| !id.eq_ignore_ascii_case(&config.client_id)) {
        return Err(700016);
    }
    let proof = match (field("client_secret"), field("client_assertion")) {
        (Some(secret), None) => {
            client_id.ok_or(900144u32)?;
            if secret != config.client_secret {
                return Err(7000215);
            }
            BY_SECRET
        }
        (None, Some(assertion)) => {
            if field("client_assertion_type") != Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") {
                return Err(7000216);
            }
            assertion::check(seen, config, (own_url, tenant_text), assertion, now)?;
            assertion::BY_ASSERTION
        }
        _ => return Err(7000216),
    };
    let audience = if call.v2 {
        let scope = field("scope").ok_or(900144u32)?;
        if !scope.contains("://") {
            return Err(if scope.contains("%3A") || scope.contains("%2F") { 1002012 } else { 70011 });
        }
        scope.strip_suffix("/.default").ok_or(1002012u32)?
    } else {
        field("resource").ok_or(900144u32)?
    };
    Ok((tenant, audience.to_owned(), proof))
}

fn find_tenant(config: &SimConfig, text: &str) -> Result<TenantId, u32> {
    if is_guid(text) {
        return config.tenants.iter().find(|t| t.as_str().eq_ignore_ascii_case(text)).cloned().ok_or(90002);
    }
    if !text.contains('.') {
        return Err(900023);
    }
    let domain = config.domains.iter().find(|(domain, _)| domain.eq_ignore_ascii_case(text));
    domain.map(|(_, tenant)| tenant.clone()).ok_or(90002)
}
