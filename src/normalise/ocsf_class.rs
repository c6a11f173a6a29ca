//! Assigns class and activity to an event by its operation and the record type that it resembles.

use std::borrow::Cow;

use super::category::Category;
use super::effects::{FactorChange, factor_change};
use super::event::KnownMember;
use super::involved::{Target, revokes};
use super::json;
use super::parts::Parts;
use super::reach::is_address;
use crate::config::OcsfVersion;

/// A class of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OcsfClass {
    DetectionFinding = 2004,
    DataSecurityFinding = 2006,
    AccountChange = 3001,
    Authentication = 3002,
    EntityManagement = 3004,
    UserAccess = 3005,
    GroupManagement = 3006,
    EmailActivity = 4009,
    WebResources = 6001,
    ApplicationLifecycle = 6002,
    ApiActivity = 6003,
    FileHosting = 6006,
}

/// `99`: an activity for which the class has no number.
pub(crate) const OTHER: i64 = 99;

impl OcsfClass {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DetectionFinding => "Detection Finding",
            Self::DataSecurityFinding => "Data Security Finding",
            Self::AccountChange => "Account Change",
            Self::Authentication => "Authentication",
            Self::EntityManagement => "Entity Management",
            Self::UserAccess => "User Access Management",
            Self::GroupManagement => "Group Management",
            Self::EmailActivity => "Email Activity",
            Self::WebResources => "Web Resources Activity",
            Self::ApplicationLifecycle => "Application Lifecycle",
            Self::ApiActivity => "API Activity",
            Self::FileHosting => "File Hosting Activity",
        }
    }

    pub(crate) const fn category(self) -> (i64, &'static str) {
        match self as i64 / 1000 {
            2 => (2, "Findings"),
            3 => (3, "Identity & Access Management"),
            4 => (4, "Network Activity"),
            _ => (6, "Application Activity"),
        }
    }

    pub(crate) const fn is_finding(self) -> bool {
        matches!(self, Self::DetectionFinding | Self::DataSecurityFinding)
    }

    /// The caption of an activity; `None` for those that have no number.
    pub(crate) fn activity(self, id: i64) -> Option<&'static str> {
        let captions: &[&str] = match self {
            Self::DetectionFinding | Self::DataSecurityFinding => &["Create", "Update", "Close", "Suppressed"],
            Self::AccountChange => &[
                "Create",
                "Enable",
                "Password Change",
                "Password Reset",
                "Disable",
                "Delete",
                "Attach Policy",
                "Detach Policy",
                "Lock",
                "MFA Factor Enable",
                "MFA Factor Disable",
            ],
            Self::Authentication => &["Logon", "Logoff"],
            Self::EntityManagement => {
                &["Create", "Read", "Update", "Delete", "Move", "Enroll", "Unenroll", "Enable", "Disable"]
            }
            Self::UserAccess => &["Assign Privileges", "Revoke Privileges"],
            Self::GroupManagement => {
                &["Assign Privileges", "Revoke Privileges", "Add User", "Remove User", "Delete", "Create"]
            }
            Self::EmailActivity => &["Send", "Receive", "Scan"],
            Self::WebResources => &["Create", "Read", "Update", "Delete", "Search", "Import", "Export", "Share"],
            Self::ApplicationLifecycle => {
                &["Install", "Remove", "Start", "Stop", "Restart", "Enable", "Disable", "Update"]
            }
            Self::ApiActivity => &["Create", "Read", "Update", "Delete"],
            Self::FileHosting => &[
                "Upload", "Download", "Update", "Delete", "Rename", "Copy", "Move", "Restore", "Preview", "Lock",
                "Unlock", "Share", "Unshare", "Open", "Sync",
            ],
        };
        usize::try_from(id - 1).ok().and_then(|index| captions.get(index)).copied()
    }
}

/// Sender and recipients of a message that was sent.
pub(crate) fn sent(parts: &Parts<'_, '_>) -> (Option<String>, Vec<String>) {
    let from = parts
        .named("SendAsUserSmtp")
        .or_else(|| parts.text(KnownMember::SendOnBehalfOfUserSmtp))
        .or_else(|| parts.text(KnownMember::MailboxOwnerUPN))
        .or_else(|| parts.actor.email.clone());
    let mut to = Vec::new();
    json::elements(parts.event.get(KnownMember::RecipientList).unwrap_or_default(), |recipient| {
        to.extend(json::scalar(recipient).filter(|text| is_address(text)).map(Cow::into_owned));
    });
    (from.filter(|from| is_address(from)).map(Cow::into_owned), to)
}

/// The class and the activity of an event.
pub(crate) fn classify(parts: &Parts<'_, '_>, version: OcsfVersion, target: &Target<'_>) -> (OcsfClass, i64) {
    let newest = version == OcsfVersion::V1_8_0;
    let operation = parts.operation;
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    let on_device = parts.is_type(&[63]) && !parts.facts.dlp_rules().is_empty();
    if parts.is_dlp() && (begins(&["dlprulematch", "dlpruleundo", "dlpinfo"]) || on_device) {
        let activity = match operation {
            "dlpruleundo" => 3,
            "dlpinfo" if newest => 4,
            "dlpinfo" => OTHER,
            _ => 1,
        };
        return (if newest { OcsfClass::DataSecurityFinding } else { OcsfClass::DetectionFinding }, activity);
    }
    match parts.record_type {
        Some(9 | 15) => (OcsfClass::Authentication, if has(&["logout", "loggedout", "logoff"]) { 2 } else { 1 }),
        Some(8) => match classify_directory(operation, newest, target) {
            (OcsfClass::AccountChange, OTHER) => (OcsfClass::AccountChange, factor_activity(parts)),
            other => other,
        },
        Some(4 | 6 | 14) if operation == "filemalwaredetected" => (OcsfClass::DetectionFinding, 1),
        Some(4 | 14) if begins(&["addedtogroup", "groupadded", "removedfromgroup", "groupremoved", "groupupdated"]) => {
            (OcsfClass::GroupManagement, group_activity(operation, newest))
        }
        Some(22) if begins(&["groupcreation", "groupdeletion"]) && newest => {
            (OcsfClass::GroupManagement, group_activity(operation, newest))
        }
        Some(22) if begins(&["filevisited"]) => (OcsfClass::FileHosting, 14),
        Some(6 | 14) => (OcsfClass::FileHosting, file_activity(operation)),
        Some(4 | 36 | 37 | 54 | 55 | 56 | 102) => (OcsfClass::WebResources, web_activity(operation)),
        Some(28 | 40 | 41 | 47 | 64 | 78 | 98 | 113) => {
            let closed = parts.text(KnownMember::Status).is_some_and(|status| {
                ["resolved", "dismissed", "closed"].iter().any(|word| status.eq_ignore_ascii_case(word))
            });
            (
                OcsfClass::DetectionFinding,
                if closed {
                    3
                } else if operation == "alertupdated" {
                    2
                } else {
                    1
                },
            )
        }
        Some(2 | 3) if matches!(operation, "send" | "sendas" | "sendonbehalf") => {
            let (from, to) = sent(parts);
            // Version 1.1 requires both sender and recipient, later versions one of them.
            match (from, to.is_empty()) {
                (Some(_), false) => (OcsfClass::EmailActivity, 1),
                (None, true) => (OcsfClass::ApiActivity, 1),
                _ if newest => (OcsfClass::EmailActivity, 1),
                _ => (OcsfClass::ApiActivity, 1),
            }
        }
        Some(2) if operation.ends_with("folderpermissions") => {
            (OcsfClass::UserAccess, if begins(&["remove"]) { 2 } else { 1 })
        }
        Some(2 | 3 | 50) => {
            let activity = if has(&["delete"]) {
                4
            } else if begins(&["create", "send"]) {
                1
            } else if has(&["accessed", "access", "bind", "login"]) {
                2
            } else {
                3
            };
            (OcsfClass::ApiActivity, activity)
        }
        Some(1 | 18)
            if has(&[
                "mailboxpermission",
                "recipientpermission",
                "folderpermission",
                "-rolegroup",
                "-managementroleass",
            ]) && begins(&["add-", "new-", "remove-", "update-", "set-mailboxfolder"]) =>
        {
            (OcsfClass::UserAccess, if begins(&["remove"]) { 2 } else { 1 })
        }
        Some(25) if begins(&["appinstalled", "botadded", "connectoradded", "tabadded"]) => {
            (OcsfClass::ApplicationLifecycle, 1)
        }
        Some(25) if begins(&["appuninstalled", "botremoved", "connectorremoved", "tabremoved"]) => {
            (OcsfClass::ApplicationLifecycle, 2)
        }
        Some(25) if begins(&["memberadded"]) => (OcsfClass::GroupManagement, 3),
        Some(25) if begins(&["memberremoved"]) => (OcsfClass::GroupManagement, 4),
        Some(25) if begins(&["teamcreated", "teamdeleted"]) && newest => {
            (OcsfClass::GroupManagement, if has(&["deleted"]) { 5 } else { 6 })
        }
        Some(25 | 57 | 58 | 59 | 60) => (OcsfClass::WebResources, web_activity(operation)),
        Some(20) if begins(&["export"]) => (OcsfClass::WebResources, 7),
        Some(24 | 31 | 38) if has(&["export"]) => (OcsfClass::WebResources, 7),
        _ if parts.category == Category::Identity && begins(&["userlog"]) => (OcsfClass::Authentication, 1),
        _ => (OcsfClass::ApiActivity, api_activity(operation)),
    }
}

/// The activity of an update of a user that adds or removes a second factor.
fn factor_activity(parts: &Parts<'_, '_>) -> i64 {
    match factor_change(parts.facts, parts.operation) {
        Some(FactorChange::Taken) => 11,
        Some(FactorChange::Given) => 10,
        None => OTHER,
    }
}

/// The activity on a group: a member was added or removed, or the group changed.
fn group_activity(operation: &str, newest: bool) -> i64 {
    match operation {
        "addedtogroup" => 3,
        "removedfromgroup" => 4,
        "groupremoved" | "groupdeletion" if newest => 5,
        "groupadded" | "groupcreation" if newest => 6,
        _ => OTHER,
    }
}

fn api_activity(operation: &str) -> i64 {
    // Paging of address lists is a setting; no list is created.
    if operation == "enable-addresslistpaging" {
        return 3;
    }
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    if begins(&["new", "add", "enable", "create", "install", "start"]) {
        1
    } else if begins(&["get", "search", "test", "view", "read", "list"]) {
        2
    } else if begins(&["set", "update", "disable", "edit", "change", "modify", "put"]) {
        3
    } else if begins(&["remove", "delete", "uninstall", "purge"]) {
        4
    } else {
        OTHER
    }
}

fn file_activity(operation: &str) -> i64 {
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    const NAMED: &[(&[&str], i64)] = &[
        (&["syncdownloaded", "downloaded"], 2),
        (&["syncuploaded", "uploaded"], 1),
        (&["foldercreated", "inheritance", "permissionlevel"], OTHER),
        (&["deleted", "recycled"], 4),
        (&["renamed"], 5),
        (&["copied"], 6),
        (&["moved"], 7),
        (&["restored"], 8),
        (&["previewed"], 9),
        (&["checkedout"], 10),
        (&["checkedin", "checkoutdiscarded"], 11),
        (&["revoked", "linkremoved", "removedfrom", "unshared"], 13),
        (&["linkused", "accessed", "accepted"], 14),
        (&["sharing", "linkcreated", "linkupdated", "addedto", "shared", "adminadded"], 12),
        (&["modified", "updated", "changed"], 3),
    ];
    NAMED.iter().find(|(words, _)| has(words)).map_or(OTHER, |(_, id)| *id)
}

fn web_activity(operation: &str) -> i64 {
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    const NAMED: &[(&[&str], i64)] = &[
        (&["search", "query"], 5),
        (&["deleted", "removed", "recycled"], 4),
        (&["created", "added", "uploaded", "sent"], 1),
        (&["viewed", "read", "accessed", "listed"], 2),
        (&["sharing", "shared"], 8),
        (&["modified", "updated", "changed", "edited", "renamed", "set"], 3),
    ];
    NAMED.iter().find(|(words, _)| has(words)).map_or(OTHER, |(_, id)| *id)
}

fn classify_directory(operation: &str, newest: bool, target: &Target<'_>) -> (OcsfClass, i64) {
    let begins = |words: &[&str]| words.iter().any(|word| operation.starts_with(word));
    let has = |words: &[&str]| words.iter().any(|word| operation.contains(word));
    let removes = begins(&["remove", "delete", "hard delete"]);
    if has(&["member to role", "member from role"]) {
        return (OcsfClass::UserAccess, if removes { 2 } else { 1 });
    }
    if has(&["app role", "permission grant", "oauth2permissiongrant", "consent to application"]) {
        return (OcsfClass::UserAccess, if revokes(operation) { 2 } else { 1 });
    }
    match operation {
        "add user" | "invite external user" => return (OcsfClass::AccountChange, 1),
        "delete user" | "hard delete user" => return (OcsfClass::AccountChange, 6),
        "disable account" => return (OcsfClass::AccountChange, 5),
        "enable account" => return (OcsfClass::AccountChange, 2),
        "change user password" | "update passwordprofile" => return (OcsfClass::AccountChange, 3),
        "reset user password" => return (OcsfClass::AccountChange, 4),
        "disable strong authentication" => return (OcsfClass::AccountChange, 11),
        "enable strong authentication" => return (OcsfClass::AccountChange, 10),
        "add member to group" => return (OcsfClass::GroupManagement, 3),
        "add owner to group" | "remove owner from group" => return (OcsfClass::GroupManagement, OTHER),
        "add owner to application" | "add owner to service principal" => return (OcsfClass::EntityManagement, 3),
        "remove member from group" => return (OcsfClass::GroupManagement, 4),
        "add group" if newest => return (OcsfClass::GroupManagement, 6),
        "delete group" if newest => return (OcsfClass::GroupManagement, 5),
        "update group" if newest => return (OcsfClass::GroupManagement, OTHER),
        _ => {}
    }
    if has(&["user", "strong authentication", "stsrefreshtoken"])
        && matches!(target.kind.as_deref(), None | Some("User"))
    {
        return (OcsfClass::AccountChange, OTHER);
    }
    let activity = if removes {
        4
    } else if begins(&["add ", "create", "register"]) {
        1
    } else if begins(&["enable"]) && newest {
        8
    } else if begins(&["disable"]) && newest {
        9
    } else {
        3
    };
    (OcsfClass::EntityManagement, activity)
}
