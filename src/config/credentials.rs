//! Which keys of a source belong to which sign-in method, and the keys that each method needs. One method is chosen, by
//! `auth` or, without it, the client secret. A key of another method beside it is a problem and never a fallback.

use std::path::Path;

use toml::{Table, Value};

use super::check::{Findings, check_file, unreadable};
use super::pasted::odd_secret;
use super::problem::{Fault, Problem, join};
use super::source::{AuthMethod, read_secret_file};

/// A sign-in method and its own keys.
struct SignInMethod {
    method: AuthMethod,
    keys: &'static [&'static str],
}

const SIGN_IN_METHODS: [SignInMethod; 4] = [
    SignInMethod {
        method: AuthMethod::ClientSecret,
        keys: &["client_secret", "client_secret_file", "client_secret_expires"],
    },
    SignInMethod {
        method: AuthMethod::Certificate,
        keys: &[
            "certificate_file",
            "key_file",
            "key_passphrase",
            "key_passphrase_file",
            "assertion_algorithm",
            "assertion_audience",
        ],
    },
    SignInMethod { method: AuthMethod::FederatedToken, keys: &["federated_token_file"] },
    SignInMethod {
        method: AuthMethod::ManagedIdentity,
        keys: &["managed_identity_host", "managed_identity_url", "managed_identity_header"],
    },
];

/// Whether a key belongs to sign-in.
pub(super) fn is_credential(key: &str) -> bool {
    key == "auth" || SIGN_IN_METHODS.iter().any(|method| method.keys.contains(&key))
}

/// Checks that one method is configured, with all its keys and none of another.
pub(super) fn check_credentials(findings: &mut Findings, table: &Table, path: &str) {
    check_credentials_in(cfg!(feature = "certificates"), findings, table, path);
}

/// `has_certificates`: whether this build can sign in with one.
fn check_credentials_in(has_certificates: bool, findings: &mut Findings, table: &Table, path: &str) {
    let auth = join(path, "auth");
    let written = table.get("auth").and_then(Value::as_str);
    let Some(chosen) =
        SIGN_IN_METHODS.iter().find(|method| method.method.as_str() == written.unwrap_or("client_secret"))
    else {
        return; // An unknown sign-in method was already reported.
    };
    if !has_certificates && refuse_certificate(findings, table, path) {
        return;
    }
    let named = |method: &SignInMethod| method.keys.iter().copied().find(|key| table.contains_key(*key));
    let others: Vec<(&SignInMethod, &str)> = SIGN_IN_METHODS
        .iter()
        .filter(|method| method.method != chosen.method)
        .filter_map(|method| Some((method, named(method)?)))
        .collect();
    if written.is_none() && named(chosen).is_none() && !others.is_empty() {
        check_client_id(findings, table, path, others.first().map(|(method, _)| method.method));
        let expected =
            others.iter().map(|(method, key)| format!("`auth = \"{}\"` (for `{key}`)", method.method.as_str()));
        let expected = expected.collect::<Vec<_>>().join(" or ");
        findings.note(Problem::new(auth, Fault::Missing, expected).hint("how to sign in is never guessed"));
        return;
    }
    check_client_id(findings, table, path, Some(chosen.method));
    for (method, key) in others {
        let expected = format!(
            "no key of `auth = \"{}\"` beside {}",
            method.method.as_str(),
            match named(chosen).filter(|_| written.is_none()) {
                Some(own) => format!("`{own}`"),
                None => format!("`auth = \"{}\"`", chosen.method.as_str()),
            }
        );
        let hint =
            format!("to sign in that way set `auth = \"{}\"` and leave the other keys out", method.method.as_str());
        findings.note(Problem::new(join(path, key), Fault::Invalid, expected).hint(hint));
    }
    match chosen.method {
        AuthMethod::ClientSecret => check_secret(findings, table, path),
        AuthMethod::Certificate => check_certificate(findings, table, path),
        AuthMethod::FederatedToken => {
            let hint = "Kubernetes with Azure Workload Identity: \
                        `federated_token_file = \"${AZURE_FEDERATED_TOKEN_FILE}\"`";
            need(findings, table, path, "federated_token_file", "the file that the token's issuer writes", hint);
            check_file(findings, table, path, "federated_token_file");
        }
        AuthMethod::ManagedIdentity => check_identity(findings, table, path),
    }
}

/// Whether a client certificate is asked for, which this build cannot use.
fn refuse_certificate(findings: &mut Findings, table: &Table, path: &str) -> bool {
    const METHOD: AuthMethod = AuthMethod::Certificate;
    let keys = SIGN_IN_METHODS.iter().filter(|known| known.method == METHOD).flat_map(|known| known.keys);
    let is_chosen = table.get("auth").and_then(Value::as_str) == Some(METHOD.as_str());
    let Some(key) = is_chosen.then_some("auth").or_else(|| keys.copied().find(|key| table.contains_key(*key))) else {
        return false;
    };
    let expected = "a build with the feature `certificates`, which this one is without";
    let hint = "whoever builds it: `features = [\"certificates\"]` for `m365-audit` in Cargo.toml; without it, sign in with \
                `client_secret`, `federated_token_file` or a managed identity";
    findings.note(Problem::new(join(path, key), Fault::Invalid, expected).hint(hint));
    true
}

fn need(findings: &mut Findings, table: &Table, path: &str, key: &str, expected: &str, hint: &str) {
    if !table.contains_key(key) {
        findings.note(Problem::new(join(path, key), Fault::Missing, expected).hint(hint));
    }
}

fn check_client_id(findings: &mut Findings, table: &Table, path: &str, method: Option<AuthMethod>) {
    if method != Some(AuthMethod::ManagedIdentity) {
        let hint = "Entra admin centre > App registrations > Application (client) ID";
        need(findings, table, path, "client_id", "the application's client id, a GUID", hint);
    }
}

/// Exactly one of `client_secret` and `client_secret_file`, and the file readable.
fn check_secret(findings: &mut Findings, table: &Table, path: &str) {
    match (table.contains_key("client_secret"), table.get("client_secret_file")) {
        (false, None) => {
            let expected = "`client_secret` or `client_secret_file`";
            let hint = "Entra admin centre > App registrations > Certificates & secrets; write \
                        `client_secret = \"${M365_CLIENT_SECRET}\"` and keep the value in the environment";
            findings.note(Problem::new(join(path, "client_secret"), Fault::Missing, expected).hint(hint));
        }
        (true, Some(_)) => only_one(findings, path, "client_secret", "client_secret_file"),
        (false, Some(file)) => {
            let path = join(path, "client_secret_file");
            if let Some(file) = file.as_str().filter(|file| !file.is_empty() && findings.clean(&path)) {
                let read = read_secret_file(Path::new(file)).and_then(|secret| match odd_secret(secret.expose()) {
                    Some(odd) => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, odd)),
                    None => Ok(()),
                });
                if let Err(error) = read {
                    unreadable(findings, path, file, &error);
                }
            }
        }
        (true, None) => {}
    }
}

fn only_one(findings: &mut Findings, path: &str, first: &str, second: &str) {
    let expected = format!("only one of `{first}` and `{second}`");
    findings.note(Problem::new(join(path, second), Fault::Invalid, expected));
}

fn check_certificate(findings: &mut Findings, table: &Table, path: &str) {
    let hint = "PEM or PFX; its certificate is uploaded at Entra admin centre > App registrations > Certificates & secrets \
                > Certificates";
    need(findings, table, path, "certificate_file", "the client certificate's file", hint);
    if table.contains_key("key_passphrase") && table.contains_key("key_passphrase_file") {
        only_one(findings, path, "key_passphrase", "key_passphrase_file");
    }
    for key in ["certificate_file", "key_file", "key_passphrase_file"] {
        check_file(findings, table, path, key);
    }
}

fn check_identity(findings: &mut Findings, table: &Table, path: &str) {
    let host = table.get("managed_identity_host").and_then(Value::as_str).unwrap_or("imds");
    if matches!(host, "app_service" | "azure_arc") {
        let hint = "`managed_identity_url = \"${IDENTITY_ENDPOINT}\"`";
        need(findings, table, path, "managed_identity_url", "the end point's address", hint);
    }
    if host == "app_service" {
        let hint = "`managed_identity_header = \"${IDENTITY_HEADER}\"`";
        need(findings, table, path, "managed_identity_header", "what the end point wants to see", hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_certificates_refuses_each_key_of_them_and_names_the_feature() {
        let problems = |has_certificates: bool, text: &str| {
            let mut findings = Findings::default();
            check_credentials_in(has_certificates, &mut findings, &text.parse().unwrap(), "sources.contoso");
            findings.into_problems()
        };
        let secret = "client_id = \"x\"\nclient_secret = \"y\"\n";
        for (text, key) in [
            ("auth = \"certificate\"\nclient_id = \"x\"\n".to_owned(), "auth"),
            ("certificate_file = \"client.pem\"\n".to_owned(), "certificate_file"),
            (format!("{secret}key_file = \"client.key\"\n"), "key_file"),
            (format!("{secret}assertion_algorithm = \"rs256\"\n"), "assertion_algorithm"),
            (format!("{secret}auth = \"certificate\"\n"), "auth"),
        ] {
            let found = problems(false, &text);
            let [problem] = &found[..] else { panic!("{text}: {found:?}") };
            assert_eq!(problem.key, format!("sources.contoso.{key}"), "{text}");
            assert!(problem.expected.contains("feature `certificates`"), "{problem}");
            assert!(
                problem.hint.as_ref().is_some_and(|hint| hint.contains("features = [\"certificates\"]")),
                "{problem:?}"
            );
            let with = problems(true, &text);
            assert!(with.iter().all(|problem| !problem.expected.contains("feature")), "{with:?}");
        }
        for (text, other) in [(secret, "a secret"), ("auth = \"managed_identity\"\n", "a managed identity")] {
            assert_eq!(problems(false, text), [], "{other} needs no certificate");
        }
    }
}
