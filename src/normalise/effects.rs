//! Effects of an event for which a format has a field: the recipients to whom mail is forwarded, and whether a second
//! factor was added or removed.
//!
//! They are derived from the event's own facts. Severities are the rules', which an operator may switch off or replace;
//! a record's other members do not depend on them.

use std::sync::LazyLock;

use super::facts::EventFacts;
use super::reach::is_address;
use crate::severity::pattern::Names;
use crate::severity::{Facts as _, Modification, recipient};

/// The most recipients that are named.
const RECIPIENTS_MAX: usize = 5;

fn names(names: &[&str]) -> Names {
    Names::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
}

/// Parameters of `New-InboxRule` and `Set-InboxRule`, and the equivalents in rules that a mail client creates.
static OF_INBOX_RULES: LazyLock<Names> =
    LazyLock::new(|| names(&["ForwardTo", "RedirectTo", "ForwardAsAttachmentTo", "SendTextMessageNotificationTo"]));
/// The operation of a mail client on an inbox rule.
static RULE_OPERATION: LazyLock<Names> = LazyLock::new(|| names(&["RuleOperation"]));
/// The parameter of `Set-Mailbox`.
static OF_MAILBOXES: LazyLock<Names> = LazyLock::new(|| names(&["ForwardingSmtpAddress"]));
/// Parameters of `New-TransportRule` and `Set-TransportRule`.
static OF_TRANSPORT_RULES: LazyLock<Names> =
    LazyLock::new(|| names(&["BlindCopyTo", "RedirectMessageTo", "CopyTo", "AddToRecipients"]));

/// The addresses that an event has mail forwarded, redirected or copied to. `operation` is the folded one.
pub(super) fn forwarded_to(facts: &EventFacts<'_, '_>, operation: &str) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    let mut take = |text: &str| {
        for address in recipient::addresses(text).filter(|address| is_address(address)) {
            if !addresses.iter().any(|known| known == address) && addresses.len() < RECIPIENTS_MAX {
                addresses.push(address.to_owned());
            }
        }
        false
    };
    match operation {
        "new-inboxrule" | "set-inboxrule" => facts.any_parameter(&OF_INBOX_RULES, &mut take),
        "updateinboxrules" => {
            let goes = |operation: &str| {
                let operation = operation.to_ascii_lowercase();
                operation.starts_with("remove") || operation.starts_with("delete")
            };
            !facts.any_inbox_rule_part(&RULE_OPERATION, &mut |operation| goes(operation))
                && facts.any_inbox_rule_part(&OF_INBOX_RULES, &mut take)
        }
        "set-mailbox" => facts.any_parameter(&OF_MAILBOXES, &mut take),
        "new-transportrule" | "set-transportrule" => facts.any_parameter(&OF_TRANSPORT_RULES, &mut take),
        _ => false,
    };
    addresses
}

/// The change that an update of a user made to the second factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FactorChange {
    /// One was added.
    Given,
    /// It is no longer required, or its methods were removed.
    Taken,
}

/// The property that says that it is required.
static REQUIREMENT: LazyLock<Names> = LazyLock::new(|| names(&["StrongAuthenticationRequirement"]));
/// The property that lists its methods.
static METHOD: LazyLock<Names> = LazyLock::new(|| names(&["StrongAuthenticationMethod"]));
/// The properties that list its methods and their details.
static METHODS: LazyLock<Names> = LazyLock::new(|| {
    names(&["StrongAuthenticationMethod", "StrongAuthenticationPhoneAppDetail", "StrongAuthenticationUserDetails"])
});

/// The change that an event made to a user's second factor. `operation` is the folded one.
pub(super) fn factor_change(facts: &EventFacts<'_, '_>, operation: &str) -> Option<FactorChange> {
    if operation == "remove users strong authentication phone app detail" {
        return Some(FactorChange::Taken);
    }
    if operation != "update user" {
        return None;
    }
    let emptied = &mut |entry: &dyn Modification| matches!(entry.entries(), (1.., 0));
    let grown = &mut |entry: &dyn Modification| {
        let (before, now) = entry.entries();
        now > before
    };
    if facts.any_modified(&REQUIREMENT, emptied) || facts.any_modified(&METHOD, emptied) {
        Some(FactorChange::Taken)
    } else if facts.any_modified(&METHODS, grown) {
        Some(FactorChange::Given)
    } else {
        None
    }
}
