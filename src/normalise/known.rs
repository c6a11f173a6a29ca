//! Names for ids and numbers that Microsoft writes without names: its own applications, and the errors of sign-ins.

/// Microsoft's applications and services, in the order of their ids. The ids are the same in every tenant: "Verify
/// first-party Microsoft applications in sign-in reports" and "Application IDs of commonly used Microsoft applications"
/// list them.
const APPLICATIONS: &[(&str, &str)] = &[
    ("00000001-0000-0000-c000-000000000000", "Azure ESTS Service"),
    ("00000002-0000-0000-c000-000000000000", "Windows Azure Active Directory"),
    ("00000002-0000-0ff1-ce00-000000000000", "Office 365 Exchange Online"),
    ("00000003-0000-0000-c000-000000000000", "Microsoft Graph"),
    ("00000003-0000-0ff1-ce00-000000000000", "Office 365 SharePoint Online"),
    ("00000004-0000-0ff1-ce00-000000000000", "Skype for Business Online"),
    ("00000005-0000-0ff1-ce00-000000000000", "Viva Engage"),
    ("00000006-0000-0ff1-ce00-000000000000", "Microsoft Office 365 Portal"),
    ("00000007-0000-0000-c000-000000000000", "Dataverse"),
    ("00000007-0000-0ff1-ce00-000000000000", "Microsoft Exchange Online Protection"),
    ("00000009-0000-0000-c000-000000000000", "Power BI Service"),
    ("0000000a-0000-0000-c000-000000000000", "Microsoft Intune"),
    ("0000000c-0000-0000-c000-000000000000", "Microsoft App Access Panel"),
    ("00b41c95-dab0-4487-9791-b9d2c32c80f2", "Office 365 Management"),
    ("04b07795-8ddb-461a-bbee-02f9e1bf7b46", "Microsoft Azure CLI"),
    ("0ec893e0-5785-4de6-99da-4ed124e5296c", "Office UWP PWA"),
    ("14d82eec-204b-4c2f-b7e8-296a70dab67e", "Microsoft Graph Command Line Tools"),
    ("1950a258-227b-4e31-a9cf-717495945fc2", "Microsoft Azure PowerShell"),
    ("1b730954-1685-4b74-9bfd-dac224a7b894", "Azure Active Directory PowerShell"),
    ("1fec8e78-bce4-4aaf-ab1b-5451cc387264", "Microsoft Teams"),
    ("22098786-6e16-43cc-a27d-191a01a1e3b5", "Microsoft To-Do client"),
    ("26a7ee05-5602-4d76-a7ba-eae8b7b67941", "Windows Search"),
    ("27922004-5251-4030-b22d-91ecd9a37ea4", "Outlook Mobile"),
    ("29d9ed98-a469-4536-ade2-f981bc1d605e", "Microsoft Authentication Broker"),
    ("2d7f3606-b07d-41d1-b9d2-0d0c9296a6e8", "Microsoft Bing Search for Microsoft Edge"),
    ("4345a7b9-9a63-4910-a426-35363201d503", "O365 Suite UX"),
    ("4765445b-32c6-49b0-83e6-1d93765276ca", "OfficeHome"),
    ("497effe9-df71-4043-a8bb-14cf78c4b63b", "Exchange Admin Center"),
    ("4e291c71-d680-4d0e-9640-0a3358e31177", "PowerApps"),
    ("57336123-6e14-4acc-8dcf-287b6088aa28", "Microsoft Whiteboard"),
    ("57fb890c-0dab-4253-a5e0-7188c88b2bb4", "SharePoint Online Client"),
    ("5e3ce6c0-2b1f-4285-8d4b-75ee78787346", "Microsoft Teams Web Client"),
    ("60c8bde5-3167-4f92-8fdb-059f6176dc0f", "Enterprise Roaming and Backup"),
    ("65d91a3d-ab74-42e6-8a2f-0add61688c74", "Microsoft Approval Management"),
    ("66375f6b-983f-4c2c-9701-d680650f588f", "Microsoft Planner"),
    ("797f4846-ba00-4fd7-ba43-dac1f8f63013", "Windows Azure Service Management API"),
    ("80ccca67-54bd-44ab-8625-4b79c4dc7775", "Microsoft 365 Security and Compliance Center"),
    ("872cd9fa-d31f-45e0-9eab-6e460a02d1f1", "Visual Studio - Legacy"),
    ("89bee1f7-5e6e-4d8a-9f3d-ecd601259da7", "Office365 Shell WCSS-Client"),
    ("90f610bf-206d-4950-b61d-37fa6fd1b224", "Aadrm Admin PowerShell"),
    ("93625bc8-bfe2-437a-97e0-3d0060024faa", "Microsoft password reset service"),
    ("9ba1a5c7-f17a-4de9-a1f1-6178c8d51223", "Microsoft Intune Company Portal"),
    ("9bc3ab49-b65d-410a-85ad-de819febfddc", "Microsoft SharePoint Online Management Shell"),
    ("a0c73c16-a7e3-4564-9a95-2bdf47383716", "Microsoft Exchange Online Remote PowerShell"),
    ("a3475900-ccec-4a69-98f5-a65cd5dc5306", "Partner Customer Delegated Admin Offline Processor"),
    ("a40d7d7d-59aa-447e-a655-679a4107e548", "Accounts Control UI"),
    ("a672d62c-fc7b-4e81-a576-e60dc46e951d", "Microsoft Power Query for Excel"),
    ("ab9b8c07-8f02-4f72-87fa-80105867a763", "OneDrive SyncEngine"),
    ("aebc6443-996d-45c2-90f0-388ff96faa56", "Visual Studio Code"),
    ("b26aadf8-566f-4478-926f-589f601d9c74", "OneDrive"),
    ("c0d2a505-13b8-4ae0-aa9e-cddd5eab0b12", "Microsoft Power BI"),
    ("c44b4083-3bb0-49c1-b47d-974e53cbdf3c", "Azure Portal"),
    ("c5393580-f805-4401-95e8-94b7a6ef2fc2", "Office 365 Management APIs"),
    ("c9a559d2-7aab-4f13-a6ed-e7e9c52aec87", "Microsoft Forms"),
    ("cc15fd57-2c6c-4117-a88c-83b1d56b4bbe", "Microsoft Teams Services"),
    ("cf36b471-5b44-428c-9ce7-313bf84528de", "Microsoft Bing Search"),
    ("cfa8b339-82a2-471a-a3c9-0fc0be7a4093", "Azure Key Vault"),
    ("d3590ed6-52b3-4102-aeff-aad2292ab01c", "Microsoft Office"),
    ("dd762716-544d-4aeb-a526-687b73838a22", "Microsoft Device Registration Client"),
    ("de8bc8b5-d9f9-48b1-a8ad-b748da725064", "Graph Explorer"),
    ("e9c51622-460d-4d3d-952d-966a5b1da34c", "Microsoft Edge"),
    ("ecd6b820-32c2-49b6-98a6-444530e5a77a", "Microsoft Edge"),
    ("f44b1140-bc5e-48c6-8dc0-5cf5a53c0e34", "Microsoft Edge"),
    ("fb78d390-0c51-40cd-8e17-fdbfab77341b", "Microsoft Exchange REST API Based PowerShell"),
    ("fc0f3af4-6835-4174-b806-f7db311fd2f3", "Microsoft Intune Windows Agent"),
    ("fdd7719f-d61e-4592-b501-793734eb8a0e", "SharePoint Migration Tool"),
];

/// The name of a Microsoft application or service.
pub(crate) fn application(id: &str) -> Option<&'static str> {
    // The feed writes every id in lower case; an id in another case is not found.
    let at = APPLICATIONS.binary_search_by(|(known, _)| (*known).cmp(id)).ok()?;
    APPLICATIONS.get(at).map(|(_, name)| *name)
}

/// Why a sign-in failed or was interrupted, by `ErrorNumber`: after "Microsoft Entra authentication and authorization
/// error codes".
const SIGN_IN: &[(i64, &str)] = &[
    (16_000, "several accounts are signed in, and one had to be chosen"),
    (50_011, "the reply address is not registered for the application"),
    (50_034, "the user does not exist in the tenant"),
    (50_053, "the account is locked, or the address is one that attacks came from"),
    (50_055, "the password has expired"),
    (50_056, "the password is missing or wrong"),
    (50_057, "the account is disabled"),
    (50_058, "nobody was signed in, so the user was asked"),
    (50_072, "the user has to register for multi-factor authentication"),
    (50_074, "multi-factor authentication was demanded and not passed"),
    (50_076, "multi-factor authentication was demanded"),
    (50_078, "the earlier multi-factor authentication has expired"),
    (50_079, "the user has to register for multi-factor authentication"),
    (50_089, "the session has expired"),
    (50_097, "the device has to be authenticated"),
    (50_105, "the user is not assigned to the application"),
    (50_125, "the user was sent on to reset or register a password"),
    (50_126, "the user name or the password is wrong"),
    (50_127, "the broker application is not installed"),
    (50_129, "the device is not joined to the workplace"),
    (50_131, "conditional access refused the device or the place"),
    (50_132, "the session is no longer valid, since the password was changed"),
    (50_133, "the session is no longer valid, since the password was changed"),
    (50_140, "the user was asked whether to stay signed in"),
    (50_144, "the password of the local directory has expired"),
    (50_158, "a further check outside was demanded"),
    (50_173, "a new token is needed, since the old one was revoked"),
    (50_196, "the client asks in a loop"),
    (50_199, "the user was asked to confirm the sign-in"),
    (51_004, "the user does not exist in the tenant"),
    (53_000, "the device does not comply with the policy"),
    (53_001, "the device is not joined to the domain"),
    (53_002, "the application is not an approved one"),
    (53_003, "conditional access refused it"),
    (53_004, "the user has to register for multi-factor authentication, and is at risk"),
    (53_011, "the user is blocked as at risk in their own tenant"),
    (65_001, "nobody consented to the application"),
    (65_004, "the user declined to consent"),
    (65_005, "the application asks for what its registration does not have"),
    (70_008, "the token has expired or was revoked"),
    (70_016, "the device code is not confirmed yet"),
    (70_043, "the session has expired by a sign-in frequency policy"),
    (70_044, "the session has expired by a sign-in frequency policy"),
    (70_046, "the session has expired, or reauthentication failed"),
    (80_012, "the user tried to sign in outside the hours allowed"),
    (81_010, "single sign-on failed, since the Kerberos ticket is not valid"),
    (90_014, "a field that the request needs is missing"),
    (90_072, "the account is of another tenant and no guest of this one"),
    (90_094, "an administrator has to consent"),
    (90_095, "an administrator has to consent, and was asked"),
    (500_011, "the resource does not exist in the tenant"),
    (500_121, "multi-factor authentication failed or was declined"),
    (500_133, "the assertion is out of its time"),
    (530_032, "the tenant's security policy refused it"),
    (700_016, "the application does not exist in the tenant"),
    (700_027, "the client's assertion failed"),
    (700_082, "the refresh token has expired from disuse"),
    (7_000_112, "the application is disabled"),
    (7_000_215, "the client's secret is wrong"),
    (7_000_218, "the request has neither secret nor assertion of the client"),
    (7_000_222, "the client's secret has expired"),
];

/// The meaning of a sign-in's `ErrorNumber`, in words.
pub(crate) fn sign_in_error(number: i64) -> Option<&'static str> {
    let at = SIGN_IN.binary_search_by_key(&number, |(known, _)| *known).ok()?;
    SIGN_IN.get(at).map(|(_, words)| *words)
}

/// Numbers of interrupted sign-ins that say nothing about the password: a prompt to stay signed in, an expired session,
/// an intermediate step.
pub(crate) const INTERRUPTS: &[i64] =
    &[50_058, 50_078, 50_089, 50_097, 50_125, 50_127, 50_140, 50_199, 70_043, 70_044, 70_046];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_order_so_that_each_row_is_found() {
        for (id, name) in APPLICATIONS {
            assert_eq!(application(id), Some(*name), "{id}");
        }
        for (number, words) in SIGN_IN {
            assert_eq!(sign_in_error(*number), Some(*words), "{number}");
        }
        assert!(INTERRUPTS.iter().all(|number| sign_in_error(*number).is_some()));
        assert_eq!((application("x"), sign_in_error(1)), (None, None));
    }
}
