//! The slug, cause and remedy of a refused sign-in: one table of AADSTS codes, and the causes without a code.
//!
//! The codes are those of Microsoft's "Microsoft Entra authentication and authorization error codes" that an
//! application can meet with a secret, a certificate, a federated token or a managed identity, and similar ones from
//! public reports. Microsoft's page states that it is not complete: a code that is not here is shown with the
//! authority's own text and the address where Microsoft explains it. Remedies have the marks of
//! [`crate::config::Places`].

use serde::Deserialize;
use serde_json::Value;

/// A cause, with its slug and remedy.
pub(super) struct Cause {
    pub codes: &'static [u32],
    pub slug: &'static str,
    pub says: &'static str,
    /// With marks.
    pub hint: &'static str,
    /// Whether it is likely to end without an operator.
    pub passing: bool,
}

const fn cause(codes: &'static [u32], slug: &'static str, says: &'static str, hint: &'static str) -> Cause {
    Cause { codes, slug, says, hint, passing: false }
}

const fn passing(codes: &'static [u32], slug: &'static str, says: &'static str, hint: &'static str) -> Cause {
    Cause { codes, slug, says, hint, passing: true }
}

const ASK_AGAIN: &str = "none needed unless it lasts; it is tried again";
const REPORT_BUG: &str = "look for a proxy that alters requests; if there is none, this build sent a request the \
                          authority does not accept: report it with this message";

pub(super) const NO_SERVICE_PRINCIPAL: Cause = cause(
    &[500011, 50001],
    "auth-api-not-in-tenant",
    "the tenant has no service principal for the API",
    "Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application \
     permissions > ActivityFeed.Read, then Grant admin consent; or `az ad sp create --id \
     c5393580-f805-4401-95e8-94b7a6ef2fc2`; also check `cloud`",
);

pub(super) const SECRET_ID: Cause = cause(
    &[],
    "auth-secret-id-pasted",
    "the client secret's id was given in place of its value",
    "Entra admin centre > App registrations > your app > Certificates & secrets > New client secret: copy the column Value, \
     shown only once, not Secret ID",
);

/// AADSTS codes with a cause of their own; for others the status decides between a refusal and a temporary fault.
pub(super) const CAUSES: &[Cause] = &[
    cause(
        &[7000215, 70002],
        "auth-secret-wrong",
        "the client secret is wrong",
        "Entra admin centre > App registrations > your app > Certificates & secrets > New client secret: put its Value, shown \
         only once, into `client_secret`; the secret's id (a GUID) is something else",
    ),
    cause(
        &[7000222],
        "auth-secret-expired",
        "the client secret has expired",
        "Entra admin centre > App registrations > your app > Certificates & secrets > New client secret: put its Value into \
         `client_secret`; a `client_secret_file` is read again by itself",
    ),
    cause(
        // The app is unknown; known and without a service principal here (nobody consented); not open to other tenants;
        // not authorised by the customer of a partner; the identity that signs in lives elsewhere.
        &[700016, 7000229, 700011, 70001, 50194, 90099, 50034, 50020, 51004],
        "auth-app-not-in-tenant",
        "the app is not in this tenant",
        "compare `client_id` with Entra admin centre > App registrations > your app > Application (client) ID, and `tenant_id` \
         with Overview > Tenant ID; an app of another tenant must be multi-tenant and needs an admin of this one to open \
         {authority}/{tenant}/adminconsent?client_id={app} (an app of this one: `az ad sp create --id {app}`)",
    ),
    cause(
        &[65002],
        "auth-app-is-microsofts",
        "`client_id` is that of an application of Microsoft's own",
        "register an application: Entra admin centre > App registrations > New registration, and put its Application (client) \
         ID into `client_id`",
    ),
    cause(
        &[700027, 50012, 700030, 135010],
        "auth-certificate-refused",
        "the signature of the assertion was refused",
        "Entra admin centre > App registrations > your app > Certificates & secrets > Certificates > Upload certificate: its \
         thumbprint must be the one presented",
    ),
    passing(
        &[700024, 500133],
        "auth-assertion-time",
        "the assertion is outside its time range",
        "set this machine's clock: `timedatectl set-ntp true`; a federated token must be replaced by its issuer before it \
         ends",
    ),
    cause(
        &[50013, 50027, 50048, 50120, 700021, 900384, 5002723, 5002727],
        "auth-assertion-invalid",
        "the assertion cannot be read or is for another app or authority",
        "for a certificate: check `client_id`, and `assertion_audience` where `authority_url` is a proxy; for a federated \
         token: `federated_token_file` must hold an unexpired token of the issuer, signed with a key it publishes",
    ),
    cause(
        &[700211, 700212, 700213, 700214, 700223, 700229, 700236, 90123],
        "auth-federation-mismatch",
        "no federated credential of the app matches the assertion",
        "compare issuer (700211), audience (700212) and subject (700213, 700214) of the federated credential with the token \
         presented: Entra admin centre > App registrations > your app > Certificates & secrets > Federated credentials; an \
         Entra token must be an application's own (700229)",
    ),
    passing(
        &[90061, 50166],
        "auth-federation-issuer-unreachable",
        "the authority cannot read the federated token's issuer (its OpenID configuration or keys)",
        "open ISSUER/.well-known/openid-configuration and its `jwks_uri` from the internet: both must answer without a \
         sign-in; it is tried again",
    ),
    cause(
        &[7000216, 7000218, 50192],
        "auth-credential-missing",
        "no secret or assertion was sent",
        "set `client_secret` or `client_secret_file`",
    ),
    cause(
        &[700025],
        "auth-app-public",
        "the app is registered as a public client, which has no secret and no certificate",
        "Entra admin centre > App registrations > your app > Authentication > Allow public client flows: No; or register \
         another app",
    ),
    cause(
        &[7000112, 1000031],
        "auth-app-disabled",
        "the app is disabled in the tenant",
        "Entra admin centre > Enterprise applications > the app > Properties > Enabled for users to sign-in: Yes",
    ),
    cause(
        &[500014],
        "auth-api-disabled",
        "the API's own service principal is disabled in the tenant",
        "Entra admin centre > Enterprise applications > Office 365 Management APIs > Properties > Enabled for users to \
         sign-in: Yes; if it is, the tenant's subscription may have ended",
    ),
    cause(
        &[50003, 50146, 501461],
        "auth-app-signing-key",
        "the app is set to sign tokens with a key of its own, and has none that is valid",
        "Entra admin centre > Enterprise applications > the app > Single sign-on > Certificates: renew it; an app for this \
         program needs neither claims mapping nor a signing key",
    ),
    cause(
        &[90002],
        "auth-tenant-not-found",
        "the authority does not know the tenant",
        "compare `tenant_id` with Entra admin centre > Overview > Tenant ID; a tenant of a government or China cloud is \
         unknown elsewhere: set `cloud`",
    ),
    cause(
        &[900023, 50128, 50059, 90019, 9001023],
        "auth-tenant-invalid",
        "the tenant is neither a GUID nor a domain",
        "check `tenant_id`; blanks get in when it is pasted",
    ),
    cause(
        &[5000224, 5000225],
        "auth-tenant-blocked",
        "Microsoft has blocked the tenant",
        "an admin of the tenant opens a support case with Microsoft: it was blocked for inactivity, for its subscription, or \
         for abuse",
    ),
    cause(
        &[50002, 500021, 500022],
        "auth-tenant-restricted",
        "a proxy on the way allows sign-in to other tenants only (tenant restrictions)",
        "add {tenant} to the tenants that the proxy's header `Restrict-Access-To-Tenants` (or \
         `sec-Restrict-Tenant-Access-Policy`) allows, or reach the authority without that proxy (`no_proxy`)",
    ),
    cause(
        &[500212, 500213],
        "auth-cross-tenant-policy",
        "a cross-tenant access policy forbids the sign-in",
        "Entra admin centre > External Identities > Cross-tenant access settings: allow the app, in the tenant that is named \
         in the message",
    ),
    cause(
        &[90038, 900382, 900432, 900439, 90043, 90051, 1000104],
        "auth-wrong-cloud",
        "the tenant lives in another national cloud",
        "set `cloud` to the tenant's cloud (`enterprise`, `gcc`, `gcc_high`, `dod`, `china`)",
    ),
    NO_SERVICE_PRINCIPAL,
    cause(
        &[650051, 650054],
        "auth-permission-withdrawn",
        "the app asks for a permission that was withdrawn",
        "remove `ActivityReports.Read` from the app's permissions, and every other that its page API permissions marks",
    ),
    cause(
        &[650052],
        "auth-service-not-subscribed",
        "the tenant has no subscription to the service",
        "the tenant needs a Microsoft 365 subscription with Office 365 Management APIs; grant admin consent again",
    ),
    cause(
        &[65001, 65004, 65005, 650056, 650057, 90008, 90094, 90095],
        "auth-consent-missing",
        "nobody has consented to the app in this tenant",
        "Entra admin centre > App registrations > your app > API permissions: Office 365 Management APIs > ActivityFeed.Read \
         (Application) must be listed; then Grant admin consent, or an admin opens \
         {authority}/{tenant}/adminconsent?client_id={app}",
    ),
    cause(
        &[70011, 1002012, 700022, 700023, 901002],
        "auth-scope-refused",
        "the scope was refused",
        "check the audience: the scope is the API's address followed by `/.default`; `token_endpoint = \"v1\"` names a \
         resource in place of a scope",
    ),
    cause(
        &[
            900144, 70003, 90004, 90010, 90013, 90014, 90016, 90023, 90056, 90100, 90102, 90117, 90121, 900561,
            7000114, 9002313, 100007,
        ],
        "auth-request-incomplete",
        "a field of the request is missing or cannot be read",
        REPORT_BUG,
    ),
    cause(
        &[
            53003, 530003, 530032, 530034, 530035, 53000, 53001, 53002, 53004, 53011, 50005, 50053, 50074, 50076,
            50079, 50097, 50131, 50158,
        ],
        "auth-conditional-access",
        "a Conditional Access policy refused this machine",
        "Entra admin centre > Protection > Conditional Access > Policies: allow this machine's outgoing address for the app \
         (workload identities); its Sign-in logs > Service principal sign-ins name the policy",
    ),
    passing(
        &[
            90006, 90012, 90024, 90033, 90036, 90055, 90085, 90090, 90091, 90092, 50000, 50033, 50087, 40010, 501621,
            70012, 220501,
        ],
        "auth-authority-busy",
        "the authority is busy or throttles",
        ASK_AGAIN,
    ),
    passing(
        &[50196],
        "auth-loop-detected",
        "the authority saw too many requests for the same token in a short time and refuses some",
        "none needed here: this program asks for a token once an hour. Look for other programs that sign in as the same app, \
         and give each its own",
    ),
];

pub(super) const REFUSED: Cause = cause(
    &[],
    "auth-refused",
    "the authority refused",
    "Microsoft explains the code at {lookup}; check the app registration",
);
pub(super) const UNAVAILABLE: Cause = passing(&[], "auth-authority-busy", "the authority is not available", ASK_AGAIN);
pub(super) const UNREACHABLE: Cause = passing(
    &[],
    "auth-unreachable",
    "the authority cannot be reached",
    "`curl -I {authority}` must answer from this machine: check firewall, proxy (`proxy_url`) and certificates (`ca_file`)",
);
pub(super) const UNREADABLE: Cause = passing(
    &[],
    "auth-answer-unreadable",
    "the answer is not one of a token endpoint",
    "check `authority_url`, and look for a proxy that answers in the authority's place",
);
pub(super) const REDIRECTED: Cause = cause(
    &[],
    "auth-redirect-refused",
    "the answer was a redirect, which is never followed",
    "check `authority_url`, and look for a proxy or a captive portal",
);
pub(super) const INTERCEPTED: Cause = cause(
    &[],
    "auth-intercepted",
    "something in between refused the request",
    "check `authority_url`, and look for a proxy or a firewall that answers in the authority's place",
);
pub(super) const SECRET_FILE: Cause = cause(
    &[],
    "auth-secret-file-unreadable",
    "the client secret file cannot be used",
    "check that `client_secret_file` exists, is readable for this process and holds the secret's value alone",
);
pub(super) const CERTIFICATE: Cause = cause(
    &[],
    "auth-certificate-unusable",
    "the client certificate cannot be used",
    "check `certificate_file`, `key_file` and `key_passphrase`: PEM, DER or PFX (as it is, in base64, or as Key Vault gives \
     it), the certificate and its own RSA key; `openssl x509 -noout -subject -enddate -in FILE` shows a PEM",
);
pub(super) const FEDERATED_FILE: Cause = cause(
    &[],
    "auth-federated-token-unreadable",
    "the federated token file cannot be used",
    "check that `federated_token_file` is the file its issuer writes (Kubernetes with Azure Workload Identity: \
     `${AZURE_FEDERATED_TOKEN_FILE}`) and that this user may read it",
);
pub(super) const IDENTITY_UNREACHABLE: Cause = passing(
    &[],
    "auth-identity-unreachable",
    "the managed identity's end point cannot be reached",
    "managed identities exist on Azure's machines and App Service, and on machines joined with Azure Arc; elsewhere \
     choose another `auth`. Check `managed_identity_host` and `managed_identity_url`",
);
pub(super) const IDENTITY_REFUSED: Cause = cause(
    &[],
    "auth-identity-refused",
    "the managed identity's end point gives no token",
    "check that an identity is assigned to this machine (Azure portal > the machine > Security > Identity) and that \
     `client_id` is that of a user-assigned one, or absent",
);

/// The causes without a code.
pub(super) const OTHERS: [&Cause; 12] = [
    &SECRET_ID,
    &REFUSED,
    &UNAVAILABLE,
    &UNREACHABLE,
    &UNREADABLE,
    &REDIRECTED,
    &INTERCEPTED,
    &SECRET_FILE,
    &CERTIFICATE,
    &FEDERATED_FILE,
    &IDENTITY_UNREACHABLE,
    &IDENTITY_REFUSED,
];

/// The members that are read of a refusal.
#[derive(Deserialize)]
struct OAuthRefusal {
    error: String,
    #[serde(default)]
    error_description: Option<String>,
    #[serde(default)]
    error_codes: Vec<Value>,
}

/// Judges an answer without a token: its cause, the AADSTS number, the text to show.
pub(super) fn judge(status: u16, body: &[u8]) -> (&'static Cause, Option<u32>, Option<String>) {
    let Ok(refusal) = serde_json::from_slice::<OAuthRefusal>(body) else {
        let cause = match status {
            300..=399 => &REDIRECTED,
            408 | 429 | 500.. => &UNAVAILABLE,
            400..=499 => &INTERCEPTED,
            _ => &UNREADABLE,
        };
        // A 200 is never shown: it may contain a token in an unknown form.
        let words = (status >= 300 && !body.is_empty()).then(|| String::from_utf8_lossy(body).into_owned());
        return (cause, None, words);
    };
    let description = refusal.error_description.unwrap_or_default();
    let code = refusal.error_codes.iter().find_map(code_number).or_else(|| code_in(&description));
    let cause = match code.and_then(|code| CAUSES.iter().find(|cause| cause.codes.contains(&code))) {
        Some(cause) => cause,
        // By text, because the code beside it differs between the authority's versions.
        None if description.contains("does not have a service principal for resource") => &NO_SERVICE_PRINCIPAL,
        None if status == 429 || status >= 500 => &UNAVAILABLE,
        None if matches!(refusal.error.as_str(), "temporarily_unavailable" | "server_error") => &UNAVAILABLE,
        None => &REFUSED,
    };
    // The ids after this mark are for Microsoft's support; they change with every answer.
    let words = description.split(" Trace ID").next().unwrap_or_default();
    (cause, code, Some(if words.is_empty() { refusal.error } else { words.to_owned() }))
}

fn code_number(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|n| u32::try_from(n).ok()),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// The number of the first `AADSTS…` in a text.
fn code_in(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("AADSTS")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| rest.get(..end).unwrap_or_default());
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aadsts_code_has_its_cause_and_only_passing_ones_are_retried_soon() {
        #[rustfmt::skip]
        let table: &[(&[u32], &str, bool)] = &[
            (&[7000215, 70002], "auth-secret-wrong", false),
            (&[7000222], "auth-secret-expired", false),
            (&[700016, 7000229, 700011, 70001, 50194, 90099, 50034, 50020, 51004], "auth-app-not-in-tenant", false),
            (&[65002], "auth-app-is-microsofts", false),
            (&[700027, 50012, 700030, 135010], "auth-certificate-refused", false),
            (&[700024, 500133], "auth-assertion-time", true),
            (&[50013, 50027, 50048, 50120, 700021, 900384, 5002723, 5002727], "auth-assertion-invalid", false),
            (&[700211, 700212, 700213, 700214, 700223, 700229, 700236, 90123], "auth-federation-mismatch", false),
            (&[90061, 50166], "auth-federation-issuer-unreachable", true),
            (&[7000216, 7000218, 50192], "auth-credential-missing", false),
            (&[700025], "auth-app-public", false),
            (&[7000112, 1000031], "auth-app-disabled", false),
            (&[500014], "auth-api-disabled", false),
            (&[50003, 50146, 501461], "auth-app-signing-key", false),
            (&[90002], "auth-tenant-not-found", false),
            (&[900023, 50128, 50059, 90019, 9001023], "auth-tenant-invalid", false),
            (&[5000224, 5000225], "auth-tenant-blocked", false),
            (&[50002, 500021, 500022], "auth-tenant-restricted", false),
            (&[500212, 500213], "auth-cross-tenant-policy", false),
            (&[90038, 900382, 900432, 900439, 90043, 90051, 1000104], "auth-wrong-cloud", false),
            (&[500011, 50001], "auth-api-not-in-tenant", false),
            (&[650051, 650054], "auth-permission-withdrawn", false),
            (&[650052], "auth-service-not-subscribed", false),
            (&[65001, 65004, 65005, 650056, 650057, 90008, 90094, 90095], "auth-consent-missing", false),
            (&[70011, 1002012, 700022, 700023, 901002], "auth-scope-refused", false),
            (&[900144, 70003, 90004, 90010, 90013, 90014, 90016, 90023, 90056, 90100, 90102, 90117, 90121, 900561,
               7000114, 9002313, 100007], "auth-request-incomplete", false),
            (&[53003, 530003, 530032, 530034, 530035, 53000, 53001, 53002, 53004, 53011, 50005, 50053, 50074, 50076,
               50079, 50097, 50131, 50158], "auth-conditional-access", false),
            (&[90006, 90012, 90024, 90033, 90036, 90055, 90085, 90090, 90091, 90092, 50000, 50033, 50087, 40010, 501621,
               70012, 220501], "auth-authority-busy", true),
            (&[50196], "auth-loop-detected", true),
            (&[9999999], "auth-refused", false),
        ];
        for (code, slug, passing) in table.iter().flat_map(|(codes, s, p)| codes.iter().map(move |code| (code, s, p))) {
            let description = format!("AADSTS{code}: Words. Trace ID: 1 Correlation ID: 2");
            for codes in [format!("[{code}]"), format!("[\"{code}\"]"), "[]".into()] {
                let body = format!(
                    r#"{{"error":"invalid_client","error_description":"{description}","error_codes":{codes}}}"#
                );
                let (cause, number, words) = judge(401, body.as_bytes());
                assert_eq!((cause.slug, cause.passing, number), (*slug, *passing, Some(*code)), "{body}");
                assert_eq!(words, Some(format!("AADSTS{code}: Words.")));
            }
        }
        let written: usize = table.iter().map(|(codes, ..)| codes.len()).sum::<usize>() - 1;
        let known: usize = CAUSES.iter().map(|cause| cause.codes.len()).sum();
        assert_eq!(written, known, "a code of the table is not in this test");
    }

    #[test]
    fn a_code_stands_in_one_row() {
        let mut codes: Vec<u32> = CAUSES.iter().flat_map(|cause| cause.codes).copied().collect();
        codes.sort_unstable();
        for pair in codes.windows(2) {
            assert!(pair[0] != pair[1], "AADSTS{} stands in two rows", pair[0]);
        }
    }

    #[test]
    fn an_answer_without_a_known_code_is_judged_by_its_status_and_form() {
        let no_principal = r#"{"error":"invalid_resource","error_description":"The tenant does not have a service principal for resource x"}"#;
        let table = [
            (400, no_principal, "auth-api-not-in-tenant"),
            (400, r#"{"error":"temporarily_unavailable"}"#, "auth-authority-busy"),
            (503, r#"{"error":"x"}"#, "auth-authority-busy"),
            (429, "", "auth-authority-busy"),
            (502, "<html>", "auth-authority-busy"),
            (403, "<html>", "auth-intercepted"),
            (302, "", "auth-redirect-refused"),
            (200, "<html>", "auth-answer-unreadable"),
            (200, r#"{"access_token":""}"#, "auth-answer-unreadable"),
        ];
        for (status, body, slug) in table {
            assert_eq!(judge(status, body.as_bytes()).0.slug, slug, "{status} {body}");
        }
        assert_eq!(judge(200, br#"{"token":"half-understood"}"#).2, None, "a 200 may hold a token");
    }
}
