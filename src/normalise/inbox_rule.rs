//! An inbox rule under one set of names, whichever of three ways it was made: by cmdlet (`New-InboxRule`), by Outlook
//! (`UpdateInboxRules` with `RuleActions`), or by EWS, OWA and REST (`UpdateInboxRules` with `Actions`).
//!
//! The names are those of `New-InboxRule`'s parameters, and `RuleOperation` with the client's value. A client writes
//! JSON in a string; if it does not parse, its text is searched for the names of actions and for addresses.

use super::event::{Event, KnownMember};
use super::{json, parameters};

/// The function that gets each part; it returns true to stop.
type PartVisitor<'t> = &'t mut dyn FnMut(&str, &str) -> bool;

/// Words naming an action, in either form, and the parameter that means the same. Longer words come before those that
/// they contain.
const ACTIONS: &[(&str, &str)] = &[
    ("ForwardAsAttachment", "ForwardAsAttachmentTo"),
    ("Redirect", "RedirectTo"),
    ("Forward", "ForwardTo"),
    ("PermanentDelete", "DeleteMessage"),
    ("Delete", "DeleteMessage"),
    ("Move", "MoveToFolder"),
    ("Copy", "CopyToFolder"),
    ("MarkAsRead", "MarkAsRead"),
    ("StopProcessing", "StopProcessingRules"),
];

/// Passes the name and value of each part to `test` until it returns true; returns whether it did.
pub(crate) fn any(event: &Event<'_>, test: PartVisitor<'_>) -> bool {
    if event.operation().trim().eq_ignore_ascii_case("UpdateInboxRules") {
        return event.get(KnownMember::OperationProperties).is_some_and(|token| any_of_client(token, test));
    }
    let (mut named, mut identity) = (false, None);
    let found = event.get(KnownMember::Parameters).is_some_and(|token| {
        parameters::any(token, &mut |name, value| {
            named |= name.eq_ignore_ascii_case("Name");
            if name.eq_ignore_ascii_case("Identity") {
                identity = Some(value.to_owned());
            }
            test(name, value)
        })
    });
    if found || named {
        return found;
    }
    // `joey\Financial Reporting`: without the parameter the name is what follows the last backslash. `Set-InboxRule`
    // has the same in `Identity`, where it can be the rule's number.
    let after_backslash = |text: &str| text.rsplit_once('\\').map(|(_, name)| name.to_owned());
    let object = event.text_of(KnownMember::ObjectId);
    let name = object.as_deref().and_then(after_backslash).or_else(|| identity.as_deref().and_then(after_backslash));
    name.is_some_and(|name| test("Name", &name))
}

/// The text in place of recipients, if a rule forwards mail and the record does not name them.
const NOT_NAMED: &str = "a recipient that the record does not name";

fn any_of_client(token: &str, test: PartVisitor<'_>) -> bool {
    // Shape B says in one member that mail is forwarded and names the recipients in another.
    let (mut passed_on, mut recipients) = (None, false);
    let found = any_part_of_client(token, &mut passed_on, &mut |name, value| {
        recipients |= PASSES_ON.contains(&name);
        test(name, value)
    });
    found || passed_on.filter(|_| !recipients).is_some_and(|name| test(name, NOT_NAMED))
}

/// Parameters that forward mail.
const PASSES_ON: [&str; 3] = ["ForwardTo", "RedirectTo", "ForwardAsAttachmentTo"];

fn any_part_of_client(token: &str, passed_on: &mut Option<&'static str>, test: PartVisitor<'_>) -> bool {
    parameters::any(token, &mut |name, value| {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("RuleName") || is("Name") {
            test("Name", value)
        } else if is("RuleOperation") {
            test("RuleOperation", value)
        } else if is("RuleState") {
            value.to_ascii_lowercase().contains("exitafterexecution") && test("StopProcessingRules", "True")
        } else if is("RuleActions") {
            any_of_outlook(value, passed_on, test)
        } else if is("Actions") {
            any_of_words(value, passed_on, test)
        } else if is("ServerRule") {
            any_of_server_rule(value, passed_on, test)
        } else if is("RuleCondition") || is("Conditions") {
            test("SubjectOrBodyContainsWords", value)
        } else {
            false
        }
    })
}

/// `[{"ActionType":"Forward","Recipients":["a@b.c"],"ForwardFlags":"None"}]`
fn any_of_outlook(text: &str, passed_on: &mut Option<&'static str>, test: PartVisitor<'_>) -> bool {
    let (mut found, mut parsed) = (false, false);
    let mut take = |action: &str| {
        let Some(kind) = json::get(action, "ActionType").and_then(json::scalar) else { return };
        parsed = true;
        if found {
            return;
        }
        let flags = json::get(action, "ForwardFlags").and_then(json::scalar).unwrap_or_default().to_ascii_lowercase();
        let Some(mut name) = action_name(&kind) else { return };
        if name == "ForwardTo" && flags.contains("attach") {
            name = "ForwardAsAttachmentTo";
        } else if name == "ForwardTo" && flags.contains("redirect") {
            name = "RedirectTo";
        }
        found = match name {
            name if PASSES_ON.contains(&name) => {
                *passed_on = Some(name);
                any_recipient(action, name, test)
            }
            "MoveToFolder" | "CopyToFolder" => test(name, &folder(action)),
            _ => test(name, "True"),
        };
    };
    // A list that is not text is passed on element by element.
    match text.trim() {
        one if one.starts_with('{') => take(one),
        list => json::elements(list, take),
    }
    found || (!parsed && any_of_words(text, passed_on, test))
}

fn action_name(kind: &str) -> Option<&'static str> {
    let kind = kind.trim().to_ascii_lowercase();
    ACTIONS.iter().find(|(word, _)| kind.contains(&word.to_ascii_lowercase())).map(|(_, name)| *name)
}

fn folder(action: &str) -> String {
    let named = ["DestinationFolderName", "FolderName", "DestinationFolderId"];
    named.iter().find_map(|name| json::get(action, name).and_then(json::scalar)).unwrap_or_default().into_owned()
}

/// `Recipients`: a list of texts, or of objects with `Values` of `Value`.
fn any_recipient(action: &str, name: &str, test: PartVisitor<'_>) -> bool {
    let mut found = false;
    let recipients = json::get(action, "Recipients").unwrap_or_default();
    // A single recipient may occur without a list.
    if !recipients.starts_with('[') {
        return json::scalar(recipients).is_some_and(|text| !text.trim().is_empty() && test(name, &text));
    }
    json::elements(recipients, |recipient| {
        if found {
            return;
        }
        if let Some(text) = json::scalar(recipient) {
            found = test(name, &text);
            return;
        }
        json::elements(json::get(recipient, "Values").unwrap_or_default(), |value| {
            let text = json::scalar(value).or_else(|| json::get(value, "Value").and_then(json::scalar));
            found = found || text.is_some_and(|text| text.contains('@') && test(name, &text));
        });
    });
    found
}

/// The rule as the server keeps it: actions named by class, recipients below each.
fn any_of_server_rule(text: &str, passed_on: &mut Option<&'static str>, test: PartVisitor<'_>) -> bool {
    let (mut found, mut parsed) = (false, false);
    json::elements(json::get(text.trim(), "Actions").unwrap_or_default(), |action| {
        parsed = true;
        // The class is in a member whose name varies (`$type`, `Type`, `ActionType`).
        let mut name = None;
        json::members(action, |_, value| {
            if name.is_none() && value.len() < CLASS_BYTES_MAX {
                name = json::scalar(value).filter(|text| text.contains("Action")).and_then(|text| action_name(&text));
            }
        });
        found = found
            || match name {
                None => any_recipient(action, "ForwardTo", test),
                Some(name) if PASSES_ON.contains(&name) => {
                    *passed_on = Some(name);
                    any_recipient(action, name, test)
                }
                Some(name @ ("MoveToFolder" | "CopyToFolder")) => test(name, &folder(action)),
                Some(name) => test(name, "True"),
            };
    });
    found || (!parsed && any_address(text, "ForwardTo", test))
}

/// Longest text looked at for the name of a class.
const CLASS_BYTES_MAX: usize = 256;

/// Text naming classes: `ForwardToRecipientsAction, MarkAsReadAction`.
fn any_of_words(text: &str, passed_on: &mut Option<&'static str>, test: PartVisitor<'_>) -> bool {
    let lower = text.to_ascii_lowercase();
    // A word that was found is removed, so that `PermanentDelete` does not also match `Delete`.
    let mut rest = lower;
    for (word, name) in ACTIONS {
        let word = word.to_ascii_lowercase();
        if !rest.contains(&word) {
            continue;
        }
        rest = rest.replace(&word, " ");
        let found = match *name {
            name if PASSES_ON.contains(&name) => {
                *passed_on = Some(name);
                any_address(text, name, test)
            }
            "MoveToFolder" | "CopyToFolder" => test(name, ""),
            _ => test(name, "True"),
        };
        if found {
            return true;
        }
    }
    false
}

/// Every run of characters around an `@` that could be an address.
fn any_address(text: &str, name: &str, test: PartVisitor<'_>) -> bool {
    let outside = |c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '[' | ']' | '{' | '}' | ',' | ';' | '\\' | '(' | ')')
    };
    text.split(outside).filter(|word| word.contains('@')).any(|word| test(name, word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(event: &str) -> Vec<String> {
        let event = Event::parse(event.as_bytes()).unwrap();
        let mut seen = Vec::new();
        super::any(&event, &mut |name, value| {
            seen.push(format!("{name}={value}"));
            false
        });
        seen
    }

    fn client(properties: &[(&str, &str)]) -> String {
        let pairs: Vec<_> =
            properties.iter().map(|(name, value)| serde_json::json!({"Name": name, "Value": value})).collect();
        serde_json::json!({"Operation": "UpdateInboxRules", "OperationProperties": pairs}).to_string()
    }

    #[test]
    fn a_rule_has_the_same_parts_whatever_made_it() {
        for (event, expected) in [
            (
                r#"{"Operation":"New-InboxRule","ObjectId":"joe\\.","Parameters":[{"Name":"ForwardTo","Value":"a@b.c"}]}"#.to_owned(),
                vec!["ForwardTo=a@b.c", "Name=."],
            ),
            (
                r#"{"Operation":"New-InboxRule","ObjectId":"joe\\x","Parameters":[{"Name":"Name","Value":""}]}"#.to_owned(),
                vec!["Name="],
            ),
            (
                client(&[
                    ("RuleOperation", "AddMailboxRule"),
                    ("RuleName", "r"),
                    ("RuleState", "Enabled, ExitAfterExecution"),
                    (
                        "RuleActions",
                        r#"[{"ActionType":"Forward","Recipients":["x@y.z","[EX:/o=a]"],"ForwardFlags":"None"},{"ActionType":"Move","DestinationFolderId":"00AF"},{"ActionType":"Delete"},{"ActionType":"DeferAction"}]"#,
                    ),
                ]),
                vec!["RuleOperation=AddMailboxRule", "Name=r", "StopProcessingRules=True", "ForwardTo=x@y.z", "ForwardTo=[EX:/o=a]", "MoveToFolder=00AF", "DeleteMessage=True"],
            ),
            (
                client(&[("RuleActions", r#"[{"ActionType":"Forward","Recipients":["x@y.z"],"ForwardFlags":"DoNotChangeMsg, Redirect"}]"#)]),
                vec!["RedirectTo=x@y.z"],
            ),
            (
                client(&[("RuleActions", r#"[{"ActionType":"Forward","Recipients":["x@y.z","#)]),
                vec!["ForwardTo=x@y.z"],
            ),
            (
                client(&[
                    ("RuleOperation", "Create"),
                    ("Actions", "[\"PermanentDeleteAction\",\"StopProcessingAction\"]"),
                    ("ServerRule", r#"{"Actions":[{"Type":"RedirectToRecipientsAction","Recipients":[{"Values":[{"Value":"x@y.z"},{"Value":"X"}]}]}]}"#),
                ]),
                vec!["RuleOperation=Create", "DeleteMessage=True", "StopProcessingRules=True", "RedirectTo=x@y.z"],
            ),
        ] {
            assert_eq!(parts(&event), expected, "{event}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"["\[\]{}:,a@ForwardDelete -]{0,40}|.*"#) {
            for name in ["RuleActions", "Actions", "ServerRule", "RuleState"] {
                parts(&client(&[(name, &text)]));
            }
        }
    }
}
