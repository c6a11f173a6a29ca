//! `event.kind`, `event.category` and `event.type` of an event: derived from the operation, or, if that is not enough,
//! from the record type that the event resembles.

use super::category::Category;
use super::event::KnownMember;
use super::parts::Parts;

/// Words of the schema.
pub(crate) type EcsTerms = &'static [&'static str];

/// Record types that report a detection.
const ALERTS: &[i64] = &[11, 13, 28, 33, 40, 41, 47, 64, 98, 99, 100, 107, 113];

/// Whether an event reports a detection: an alert, a match or a finding.
pub(crate) fn is_alert(parts: &Parts<'_, '_>) -> bool {
    let operation = parts.operation;
    if parts.is_dlp() && operation == "miplabel" {
        return false;
    }
    parts.is_type(ALERTS)
        || (parts.is_type(&[63]) && (operation == "dlprulematch" || !parts.facts.dlp_rules().is_empty()))
        || operation == "filemalwaredetected"
}

fn begins(operation: &str, words: &[&str]) -> bool {
    words.iter().any(|word| operation.starts_with(word))
}

fn has(operation: &str, words: &[&str]) -> bool {
    words.iter().any(|word| operation.contains(word))
}

/// `event.category` and `event.type`.
pub(crate) fn classify(parts: &Parts<'_, '_>) -> (EcsTerms, EcsTerms) {
    let operation = parts.operation;
    match parts.record_type {
        Some(9 | 15) => (&["authentication"], &["start"]),
        Some(8) => classify_directory(operation),
        Some(11 | 33 | 63 | 99 | 100) => (&["file"], &["info"]),
        Some(13 | 107) => (&["email"], &["info"]),
        Some(28) => (&["email", "malware"], &["info"]),
        Some(29) => (&["email"], &["info"]),
        Some(41) => (&["email", "intrusion_detection"], &["info"]),
        Some(47) => (&["file", "malware"], &["info"]),
        Some(65) => (&["email"], of_quarantine(operation)),
        Some(40 | 64 | 78 | 98 | 113) => of_alert(parts),
        Some(2 | 3 | 50 | 19) => (&["email"], of_mailbox(operation)),
        Some(1) if has(operation, &["mailboxpermission", "recipientpermission", "rolegroup", "managementrole"]) => {
            (&["iam"], &["change"])
        }
        Some(1 | 18 | 23 | 52) if begins(operation, &["usersubmission", "adminsubmission"]) => (&["email"], &["info"]),
        Some(1 | 18 | 23 | 52) => (&["configuration"], of_cmdlet(operation)),
        Some(14) if has(operation, &["used", "accepted"]) => (&["file", "iam"], &["access"]),
        Some(14) => (&["file", "iam"], &["access", "change"]),
        Some(4 | 6 | 36 | 54 | 55 | 56) => classify_file(operation),
        Some(22) => of_viva(operation),
        Some(25) => of_teams(operation),
        _ if begins(operation, &["usersubmission", "adminsubmission"]) => (&["email"], &["info"]),
        _ => by_category(parts.category, operation),
    }
}

fn of_alert(parts: &Parts<'_, '_>) -> (EcsTerms, EcsTerms) {
    let category = parts.text(KnownMember::Category).unwrap_or_default().to_ascii_lowercase();
    match category.as_str() {
        "datagovernance" | "datalossprevention" => (&["file"], &["info"]),
        "threatmanagement" => (&["threat", "intrusion_detection"], &["indicator"]),
        _ => (&["intrusion_detection"], &["info"]),
    }
}

fn of_quarantine(operation: &str) -> EcsTerms {
    if has(operation, &["delete"]) {
        &["deletion"]
    } else if has(operation, &["preview", "header", "export", "view", "download"]) {
        &["access"]
    } else {
        &["change"]
    }
}

fn of_mailbox(operation: &str) -> EcsTerms {
    if has(operation, &["delete"]) {
        &["deletion"]
    } else if begins(operation, &["mailitemsaccessed", "messagebind", "folderbind", "attachmentaccess", "mailboxlogin"])
    {
        &["access"]
    } else if begins(operation, &["create", "send"]) {
        &["creation"]
    } else if begins(operation, &["update", "move", "copy", "modify", "add", "remove"]) {
        &["change"]
    } else {
        &["info"]
    }
}

/// Operations that only read, whatever their name suggests.
const LOOKS: &[&str] = &[
    "get-",
    "search",
    "test-",
    "aggregate",
    "validate",
    "view",
    "list",
    "read",
    "export-",
    "preview",
    "load",
    "query",
];

fn of_cmdlet(operation: &str) -> EcsTerms {
    if begins(operation, LOOKS) {
        &["access"]
    } else if begins(operation, &["new-"]) {
        &["creation"]
    } else if begins(operation, &["remove-"]) {
        &["deletion"]
    } else {
        &["change"]
    }
}

fn of_viva(operation: &str) -> (EcsTerms, EcsTerms) {
    if begins(operation, &["file"]) {
        let kind: EcsTerms = if has(operation, &["delete"]) {
            &["deletion"]
        } else if has(operation, &["create", "upload"]) {
            &["creation"]
        } else if has(operation, &["update", "rename"]) {
            &["change"]
        } else {
            &["access"]
        };
        return (&["file"], kind);
    }
    if begins(operation, &["group"]) {
        let kind: EcsTerms = if has(operation, &["creation", "created"]) {
            &["group", "creation"]
        } else if has(operation, &["delet"]) {
            &["group", "deletion"]
        } else {
            &["group", "change"]
        };
        return (&["iam"], kind);
    }
    if has(operation, &["user", "admin"]) {
        return (&["iam"], &["user", "change"]);
    }
    if has(operation, &["configuration", "setting", "policy", "usagepolicy", "network"]) {
        return (&["configuration"], &["change"]);
    }
    (&["web"], by_verb(operation))
}

fn of_teams(operation: &str) -> (EcsTerms, EcsTerms) {
    if begins(operation, &["teamssessionstarted"]) {
        return (&["session"], &["start"]);
    }
    if begins(operation, &["chat", "message", "meeting", "reaction", "call"]) {
        return (&["web"], by_verb(operation));
    }
    if begins(operation, &["member", "bot", "connector", "tab", "app"]) && has(operation, &["member"]) {
        return (&["iam"], &["group", "change"]);
    }
    if begins(operation, &["team", "channel"]) {
        if has(operation, &["setting"]) {
            return (&["configuration"], &["change"]);
        }
        let kind: EcsTerms = if has(operation, &["deleted", "removed"]) {
            &["group", "deletion"]
        } else if has(operation, &["created", "added"]) {
            &["group", "creation"]
        } else {
            &["group", "change"]
        };
        return (&["iam"], kind);
    }
    if begins(operation, &["app", "bot", "connector", "tab"]) {
        return (&["configuration"], by_verb(operation));
    }
    (&["web"], by_verb(operation))
}

/// `event.type` by the verb in a name: `ViewReport`, `ReportViewed`.
fn by_verb(operation: &str) -> EcsTerms {
    if has(operation, &["delete", "remove"]) {
        &["deletion"]
    } else if has(operation, &["create", "creation", "added", "sent", "send"]) || begins(operation, &["add", "new"]) {
        &["creation"]
    } else if has(
        operation,
        &["read", "view", "list", "access", "export", "download", "visited", "get", "search", "retrieve"],
    ) {
        &["access"]
    } else if has(operation, &["update", "edit", "change", "set", "share", "rename", "move"]) {
        &["change"]
    } else {
        &["info"]
    }
}

fn by_category(category: Category, operation: &str) -> (EcsTerms, EcsTerms) {
    match category {
        Category::Identity => (&["iam"], &["info"]),
        Category::Email => (&["email"], &["info"]),
        Category::File => (&["file"], &["info"]),
        Category::Dlp => (&["file"], &["info"]),
        Category::Threat => (&["threat"], &["indicator"]),
        Category::Compliance | Category::Automation => (&["configuration"], by_verb(operation)),
        // Work done in a browser: the schema has no closer category.
        Category::Analytics | Category::Collaboration | Category::Productivity | Category::Ai => {
            (&["web"], by_verb(operation))
        }
        Category::Endpoint => (&["host"], &["info"]),
        Category::Other => (&[], &["info"]),
    }
}

fn classify_directory(operation: &str) -> (EcsTerms, EcsTerms) {
    let begins = |words: &[&str]| begins(operation, words);
    let has = |words: &[&str]| has(operation, words);
    if has(&[" role"]) && has(&["member", "pim"]) {
        return (&["iam"], &["admin", "change"]);
    }
    if has(&["policy", "domain", "company", "security defaults", "cross-tenant", "directory feature"]) {
        return (&["configuration"], &["change"]);
    }
    let created = begins(&["add ", "create", "invite", "restore"]);
    let deleted = begins(&["delete", "hard delete", "remove"]);
    if matches!(operation, "add application" | "add service principal" | "restore application") {
        return (&["iam", "configuration"], &["creation"]);
    }
    if matches!(
        operation,
        "delete application" | "hard delete application" | "remove service principal" | "hard delete service principal"
    ) {
        return (&["iam", "configuration"], &["deletion"]);
    }
    if has(&["application", "service principal", "consent", "app role", "permission grant", "oauth2", "credential"]) {
        return (&["iam", "configuration"], &["change"]);
    }
    let group = has(&["group"]);
    let kind: EcsTerms = match (group, created, deleted) {
        (true, true, _) if has(&["member", "owner"]) => &["group", "change"],
        (true, true, _) => &["group", "creation"],
        (true, _, true) if has(&["member", "owner"]) => &["group", "change"],
        (true, _, true) => &["group", "deletion"],
        (true, ..) => &["group", "change"],
        (false, true, _) => &["user", "creation"],
        (false, _, true) => &["user", "deletion"],
        _ => &["user", "change"],
    };
    (&["iam"], kind)
}

fn classify_file(operation: &str) -> (EcsTerms, EcsTerms) {
    let has = |words: &[&str]| has(operation, words);
    if has(&["compliancesetting", "policychanged", "sharingpolicy"]) {
        return (&["configuration"], &["change"]);
    }
    if has(&["group"]) && !has(&["file", "folder"]) {
        return (&["iam"], &["group", "change"]);
    }
    let kind: EcsTerms = if has(&["deleted", "recycled"]) {
        &["deletion"]
    } else if has(&["uploaded", "created", "copied"]) {
        &["creation"]
    } else if has(&["accessed", "downloaded", "previewed", "viewed", "query", "visited"]) {
        &["access"]
    } else if has(&["modified", "moved", "renamed", "restored", "updated", "checked", "changed", "malware"]) {
        &["change"]
    } else {
        &["info"]
    };
    (if operation == "filemalwaredetected" { &["file", "malware"] } else { &["file"] }, kind)
}
