//! The outcome of an operation. `ResultStatus` has several vocabularies, and for sign-ins it is not reliable.

use super::event::{Event, KnownMember};
use super::known;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventOutcome {
    /// It took effect; for data loss prevention: access was allowed.
    Success,
    /// It did not take effect.
    Failure,
    /// The record says something that is neither.
    Unknown,
}

impl EventOutcome {
    /// The word in a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
}

/// Record types of SharePoint and OneDrive, which never carry `ResultStatus`: the feed logs only operations that
/// succeeded.
const FILES: &[i64] = &[4, 6, 7, 14, 36, 37, 54, 55, 56];

/// How the event ended; `None` where the record says nothing. `record_type` is the type that the event resembles; for
/// DLP records use [`super::dlp::outcome`].
pub(crate) fn of(event: &Event<'_>, folded_operation: &str, record_type: Option<i64>) -> Option<EventOutcome> {
    match folded_operation {
        // Two thirds of failed sign-ins say `Success`: it means that the call was handled.
        "userloginfailed" => return Some(EventOutcome::Failure),
        // An interrupted sign-in (50140, keep me signed in) carries an error number but succeeded.
        "userloggedin" => {
            let number = event.integer(KnownMember::ErrorNumber).unwrap_or(0);
            let went_on = number == 0 || known::INTERRUPTS.contains(&number);
            return Some(if went_on { EventOutcome::Success } else { EventOutcome::Failure });
        }
        _ => {}
    }
    if event.integer(KnownMember::ErrorNumber).is_some_and(|number| number != 0) {
        return Some(EventOutcome::Failure);
    }
    let Some(status) = event.text_of(KnownMember::ResultStatus) else {
        let files = record_type.is_some_and(|record_type| FILES.contains(&record_type));
        return files.then_some(EventOutcome::Success);
    };
    let is = |words: &[&str]| words.iter().any(|word| status.trim().eq_ignore_ascii_case(word));
    Some(if is(&["success", "succeeded", "true", "partiallysucceeded", "1", "successful", "completed", "ok"]) {
        EventOutcome::Success
    } else if is(&["failure", "failed", "false", "fail", "error", "denied"]) {
        EventOutcome::Failure
    } else {
        EventOutcome::Unknown
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::severity::operation::fold;

    #[test]
    fn outcomes_follow_the_operation_before_the_status() {
        use EventOutcome::{Failure, Success, Unknown};
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
                r#"{"Operation":"UserLoggedIn","ErrorNumber":"50126","LogonError":"InvalidUserNameOrPassword"}"#,
                Some(Failure),
            ),
            (r#"{"Operation":"UserLoggedIn","ErrorNumber":"0"}"#, Some(Success)),
        ] {
            let event = Event::parse(json.as_bytes()).unwrap();
            assert_eq!(
                of(&event, &fold(event.operation()), event.integer(KnownMember::RecordType)),
                expected,
                "{json}"
            );
        }
    }
}
