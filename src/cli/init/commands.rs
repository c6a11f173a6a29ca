//! The commands that create the application in a tenant.

use super::SECRET_FILE;
use crate::config::Cloud;

/// Office 365 Management APIs, in every tenant.
pub const RESOURCE: &str = "c5393580-f805-4401-95e8-94b7a6ef2fc2";
/// Its application role `ActivityFeed.Read`.
pub const ROLE_READ: &str = "594c1fb6-4f81-4475-ae41-0c394909246c";
/// Its application role `ActivityFeed.ReadDlp`.
pub const ROLE_READ_DLP: &str = "4807a72c-ad38-4250-94c9-4eabfe26cd55";

/// Microsoft Graph, in every tenant.
const GRAPH: &str = "00000003-0000-0000-c000-000000000000";
/// Its application role for filling gaps.
const GRAPH_ROLE: &str = "AuditLogsQuery.Read.All";

/// The tool that creates the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// The Azure CLI
    Az,
    /// PowerShell with the Microsoft Graph module
    Powershell,
}

/// The commands that create the application, give it the permissions and make a secret.
///
/// `tenant`: where it is registered. With `is_for_many`, each tenant also has to consent, and the commands print the
/// address for that. The secret is written to a file that only its owner may read, and not shown on the screen.
pub(super) fn commands(tool: Tool, tenant: &str, cloud: Cloud, dlp: bool, is_for_many: bool) -> String {
    let audience = if is_for_many { "AzureADMultipleOrgs" } else { "AzureADMyOrg" };
    let consent = match is_for_many {
        true => format!(
            "# An administrator of each tenant opens this once, with that tenant's id and the client id, and consents:\n\
             # {}/TENANT_ID/adminconsent?client_id=CLIENT_ID\n",
            cloud.authority_url()
        ),
        false => String::new(),
    };
    match tool {
        Tool::Az => az(tenant, cloud, dlp, (audience, &consent)),
        Tool::Powershell => powershell(tenant, cloud, dlp, (audience, &consent)),
    }
}

fn az(tenant: &str, cloud: Cloud, dlp: bool, (audience, consent): (&str, &str)) -> String {
    let set_cloud = match cloud {
        Cloud::GccHigh | Cloud::Dod => "az cloud set --name AzureUSGovernment\n",
        Cloud::China => "az cloud set --name AzureChinaCloud\n",
        _ => "",
    };
    let dlp = if dlp { format!(" {ROLE_READ_DLP}=Role") } else { String::new() };
    let heal = match cloud.has_audit_search() {
        true => format!(
            "# for `heal = {{ graph = true }}`, the permission {GRAPH_ROLE} of Microsoft Graph:\n\
             # ROLE=$(az ad sp show --id {GRAPH} --query \"appRoles[?value=='{GRAPH_ROLE}'].id | [0]\" --output tsv)\n\
             # az ad app permission add --id \"$APP_ID\" --api {GRAPH} --api-permissions \"$ROLE=Role\"\n\
             # az ad app permission admin-consent --id \"$APP_ID\"\n"
        ),
        false => String::new(),
    };
    format!(
        "# Azure CLI, as an administrator who may grant consent\n\
         {set_cloud}az login --tenant {tenant} --allow-no-subscriptions\n\
         az ad sp show --id {RESOURCE} --output none || az ad sp create --id {RESOURCE} --output none\n\
         APP_ID=$(az ad app create --display-name m365-audit --sign-in-audience {audience} --query appId --output tsv)\n\
         az ad sp create --id \"$APP_ID\" --output none\n\
         az ad app permission add --id \"$APP_ID\" --api {RESOURCE} --api-permissions {ROLE_READ}=Role{dlp}\n\
         sleep 30   # the new application must be known everywhere before consent\n\
         az ad app permission admin-consent --id \"$APP_ID\"\n\
         echo \"client id: $APP_ID\"\n\
         {heal}\
         (umask 077; az ad app credential reset --id \"$APP_ID\" --append --display-name m365-audit --years 1 --query password --output tsv > {SECRET_FILE})\n\
         echo \"the secret is in the file {SECRET_FILE}, which only you can read\"\n{consent}"
    )
}

fn powershell(tenant: &str, cloud: Cloud, dlp: bool, (audience, consent): (&str, &str)) -> String {
    let environment = match cloud {
        Cloud::GccHigh => " -Environment USGov",
        Cloud::Dod => " -Environment USGovDoD",
        Cloud::China => " -Environment China",
        _ => "",
    };
    let heal = match cloud.has_audit_search() {
        true => format!(
            "# for `heal = {{ graph = true }}`, the permission {GRAPH_ROLE} of Microsoft Graph:\n\
             # $graph = Get-MgServicePrincipal -Filter \"appId eq '{GRAPH}'\"\n\
             # $role = $graph.AppRoles | Where-Object Value -eq '{GRAPH_ROLE}'\n\
             # New-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $sp.Id -PrincipalId $sp.Id -ResourceId $graph.Id -AppRoleId $role.Id\n"
        ),
        false => String::new(),
    };
    let roles = if dlp { format!("'{ROLE_READ}', '{ROLE_READ_DLP}'") } else { format!("'{ROLE_READ}'") };
    format!(
        "# PowerShell with the modules Microsoft.Graph.Authentication and Microsoft.Graph.Applications\n\
         Connect-MgGraph -TenantId {tenant} -Scopes Application.ReadWrite.All, AppRoleAssignment.ReadWrite.All{environment}\n\
         $roles = @({roles})\n\
         $access = @{{ ResourceAppId = '{RESOURCE}'; ResourceAccess = @($roles | ForEach-Object {{ @{{ Id = $_; Type = 'Role' }} }}) }}\n\
         $app = New-MgApplication -DisplayName 'm365-audit' -SignInAudience {audience} -RequiredResourceAccess @($access)\n\
         $sp = New-MgServicePrincipal -AppId $app.AppId\n\
         $api = Get-MgServicePrincipal -Filter \"appId eq '{RESOURCE}'\"\n\
         if (-not $api) {{ $api = New-MgServicePrincipal -AppId '{RESOURCE}' }}\n\
         foreach ($role in $roles) {{ New-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $sp.Id -PrincipalId $sp.Id -ResourceId $api.Id -AppRoleId $role }}\n\
         {heal}\
         $secret = Add-MgApplicationPassword -ApplicationId $app.Id -PasswordCredential @{{ DisplayName = 'm365-audit'; EndDateTime = (Get-Date).AddYears(1) }}\n\
         \"client id: $($app.AppId)\"\n\
         $secret.SecretText | Set-Content {SECRET_FILE}\n\
         if ($IsLinux -or $IsMacOS) {{ chmod 600 {SECRET_FILE} }}\n\
         \"the secret is in the file {SECRET_FILE}; take care that only you can read it\"\n{consent}"
    )
}
