//! Managed identity: the end points that a machine in Azure, App Service and Azure Arc have on the machine itself.
//!
//! Follows Microsoft's pages on IMDS, App Service and Azure Arc; their refusals were not observed on Azure.

use std::path::PathBuf;

use serde_json::json;

use super::SimConfig;
use super::call::{Reply, SimCall};
use super::token::Tokens;
use crate::model::{TenantId, Timestamp};

/// The simulated identity of the machine.
#[derive(Debug, Clone)]
pub struct MachineIdentity {
    /// The tenant of its tokens.
    pub tenant: TenantId,
    /// Whether there is a system-assigned identity.
    pub system_assigned: bool,
    /// Client ids of its user-assigned ones.
    pub user_assigned: Vec<String>,
    /// The value that App Service expects in `X-IDENTITY-HEADER`.
    pub app_service_header: String,
    /// Azure Arc's challenge: the file its `realm` names, and the content of the file. `None`: the metadata path is
    /// that of IMDS.
    pub arc_challenge: Option<(PathBuf, String)>,
}

/// Answers `/metadata/identity/oauth2/token` (IMDS and Azure Arc) and `/msi/token` (App Service).
pub(super) fn answer(tokens: &mut Tokens, config: &SimConfig, call: &SimCall, now: Timestamp) -> Reply {
    let Some(identity) = &config.machine_identity else {
        return refuse(400, "invalid_request", "Identity not found");
    };
    let headers = &call.identity;
    let version = call.param("api-version").unwrap_or_default();
    let expected = match (call.app_service, &identity.arc_challenge) {
        (true, _) => "2019-08-01",
        (false, None) => "2018-02-01",
        (false, Some(_)) => "2020-06-01",
    };
    if version != expected {
        return refuse(400, "invalid_request", &format!("api-version {version} is not supported"));
    }
    if call.app_service {
        if headers.app_service != identity.app_service_header {
            return Reply::json(401, &json!({"statusCode": 401, "message": "The X-IDENTITY-HEADER is wrong."}));
        }
    } else {
        if !headers.metadata {
            return refuse(400, "bad_request_102", "Required metadata header not specified");
        }
        if headers.forwarded {
            return refuse(400, "bad_request", "Requests that went through a proxy are refused");
        }
        if let Some((path, key)) = &identity.arc_challenge
            && headers.authorization != format!("Basic {key}")
        {
            let mut reply = refuse(401, "unauthorized", "Basic authorization is needed");
            reply.headers.push(("www-authenticate", format!("Basic realm={}", path.display())));
            return reply;
        }
    }
    let Some(resource) = call.param("resource") else {
        return refuse(400, "invalid_request", "resource is missing");
    };
    let client_id = match call.param("client_id") {
        None if identity.system_assigned => &config.client_id,
        Some(id) if identity.user_assigned.iter().any(|known| known.eq_ignore_ascii_case(id)) => &id.to_owned(),
        _ => return refuse(400, "invalid_request", "Identity not found"),
    };
    let token = tokens.issue(config, &identity.tenant, resource, super::assertion::BY_ASSERTION, now);
    let end = now.as_second().saturating_add_unsigned(config.token_lifetime_secs);
    let mut body = json!({
        "access_token": token, "client_id": client_id, "expires_on": end.to_string(), "resource": resource,
        "token_type": "Bearer",
    });
    if !call.app_service {
        body["expires_in"] = config.token_lifetime_secs.to_string().into();
        body["ext_expires_in"] = config.token_lifetime_secs.to_string().into();
        body["not_before"] = now.as_second().to_string().into();
    }
    Reply::json(200, &body)
}

fn refuse(status: u16, error: &str, text: &str) -> Reply {
    Reply::json(status, &json!({"error": error, "error_description": text}))
}
