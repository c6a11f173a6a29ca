//! Whether it worked: `ResultStatus` is not one vocabulary, and for sign-ins it does not even tell.

use super::category::DLP_RECORD_TYPES;
use super::event::{Event, Member};
use super::json;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It had its effect; for data loss prevention: access was allowed.
    Success,
    /// It had not.
    Failure,
    /// The record says something that is neither.
    Unknown,
}

impl Outcome {
    /// The word in a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
}

/// Record types of SharePoint and OneDrive, which never carry `ResultStatus`: the feed logs what happened.
const FILES: &[i64] = &[4, 6, 7, 14, 36, 37, 54, 55, 56];

/// How the event ended; `None` where the record says nothing.
pub(crate) fn of(event: &Event<'_>, folded_operation: &str, record_type: Option<i64>) -> Option<Outcome> {
    match folded_operation {
        // Two thirds of failed sign-ins say `Success`: it means that the call was handled.
        "userloginfailed" => return Some(Outcome::Failure),
        // Interrupted ones (50140, keep me signed in) carry an error number and are sign-ins none the less.
        "userloggedin" => return Some(Outcome::Success),
        _ => {}
    }
    if record_type.is_some_and(|record_type| DLP_RECORD_TYPES.contains(&record_type)) {
        return Some(of_dlp(event, folded_operation));
    }
    if event.integer(Member::ErrorNumber).is_some_and(|number| number != 0) {
        return Some(Outcome::Failure);
    }
    let Some(status) = event.text_of(Member::ResultStatus) else {
        let files = record_type.is_some_and(|record_type| FILES.contains(&record_type));
        return files.then_some(Outcome::Success);
    };
    let is = |words: &[&str]| words.iter().any(|word| status.trim().eq_ignore_ascii_case(word));
    Some(if is(&["success", "succeeded", "true", "partiallysucceeded", "1", "successful", "completed", "ok"]) {
        Outcome::Success
    } else if is(&["failure", "failed", "false", "fail", "error", "denied"]) {
        Outcome::Failure
    } else {
        Outcome::Unknown
    })
}

/// For data loss prevention the outcome is whether access was allowed: a rule that blocked it made it fail, unless
/// the match was undone or overridden.
fn of_dlp(event: &Event<'_>, folded_operation: &str) -> Outcome {
    if folded_operation == "dlpinfo" {
        return Outcome::Failure;
    }
    if folded_operation == "dlpruleundo" || event.get(Member::ExceptionInfo).is_some() {
        return Outcome::Success;
    }
    let mut blocked = false;
    json::elements(event.get(Member::PolicyDetails).unwrap_or_default(), |policy| {
        json::elements(json::get(policy, "Rules").unwrap_or_default(), |rule| {
            json::elements(json::get(rule, "Actions").unwrap_or_default(), |action| {
                blocked |= json::scalar(action).is_some_and(|action| action.eq_ignore_ascii_case("BlockAccess"));
            });
        });
    });
    if blocked { Outcome::Failure } else { Outcome::Success }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::severity::operation::fold;

    #[test]
    fn outcomes_follow_the_operation_before_the_status() {
        use Outcome::{Failure, Success, Unknown};
        for (json, expected) in [
            (r#"{"RecordType":15,"Operation":"UserLoginFailed","ResultStatus":"Success"}"#, Some(Failure)),
            (
                r#"{"RecordType":15,"Operation":"UserLoggedIn","ResultStatus":"Success","ErrorNumber":"50140"}"#,
                Some(Success),
            ),
            (r#"{"RecordType":8,"ResultStatus":"Failure"}"#, Some(Failure)),
            (r#"{"RecordType":8,"ResultStatus":"Success","ErrorNumber":"0"}"#, Some(Success)),
            (r#"{"RecordType":1,"ResultStatus":"True"}"#, Some(Success)),
            (r#"{"RecordType":1,"ResultStatus":"False"}"#, Some(Failure)),
            (r#"{"RecordType":2,"ResultStatus":"PartiallySucceeded"}"#, Some(Success)),
            (r#"{"RecordType":155,"ResultStatus":"Successful"}"#, Some(Success)),
            (r#"{"RecordType":1,"ResultStatus":false}"#, Some(Failure)),
            (r#"{"RecordType":20,"ResultStatus":"InProgress"}"#, Some(Unknown)),
            (r#"{"RecordType":188,"ResultStatus":1}"#, Some(Success)),
            (r#"{"RecordType":188,"ResultStatus":3}"#, Some(Unknown)),
            (r#"{"RecordType":6}"#, Some(Success)),
            (r#"{"RecordType":25}"#, None),
            (r#"{"RecordType":25,"ResultStatus":""}"#, None),
            (
                r#"{"RecordType":11,"Operation":"DLPRuleMatch","PolicyDetails":[{"Rules":[{"Actions":["NotifyUser","BlockAccess"]}]}]}"#,
                Some(Failure),
            ),
            (
                r#"{"RecordType":11,"Operation":"DLPRuleMatch","PolicyDetails":[{"Rules":[{"Actions":["NotifyUser"]}]}]}"#,
                Some(Success),
            ),
            (
                r#"{"RecordType":11,"Operation":"DlpRuleUndo","PolicyDetails":[{"Rules":[{"Actions":["BlockAccess"]}]}]}"#,
                Some(Success),
            ),
            (r#"{"RecordType":13,"Operation":"DlpInfo"}"#, Some(Failure)),
        ] {
            let event = Event::parse(json.as_bytes()).unwrap();
            assert_eq!(of(&event, &fold(event.operation()), event.integer(Member::RecordType)), expected, "{json}");
        }
    }
}
