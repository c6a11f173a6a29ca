//! Maps a receiver's answer to its meaning, in one table for all sinks: HTTP statuses, gRPC codes, and the texts of
//! receivers that give the same code for opposite reasons.
//!
//! `delivery` decides what follows from a meaning: no meaning alone sets a record aside. Texts are used only where the
//! code alone is ambiguous; each text was observed from a receiver, or found in its source code.

use crate::delivery::Written;

/// The meaning of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The receiver accepted the records.
    Taken,
    /// The receiver asks to retry later.
    Later,
    /// A failure that either side may have caused.
    Unclear,
    /// The receiver accepts nothing with the present configuration of this program or of the receiver.
    Setting,
    /// The receiver rejects these records.
    Rejected,
    /// The request is too large.
    TooLarge,
}

impl Meaning {
    /// The result that a sink returns for it.
    pub(crate) fn written(self, why: String, retry_after: Option<std::time::Duration>) -> Written {
        match self {
            Self::Taken => Written::Delivered,
            // A receiver that names a time to retry does not reject for good.
            Self::Later => Written::Refused { why, retry_after },
            _ if retry_after.is_some() => Written::Refused { why, retry_after },
            Self::Unclear => Written::Unclear(why),
            Self::Setting => Written::Misconfigured(format!("{why} (check the sink's address and credentials)")),
            Self::Rejected => Written::Rejected(why),
            Self::TooLarge => Written::TooLarge(why),
        }
    }
}

/// The text that Vector returns, with 500, 400 or DATA_LOSS, when its sinks rejected events for good.
const VECTOR_REJECTED: &str = "Contents failed to deliver to sink";
/// The text that the OpenTelemetry Collector returns, with UNKNOWN, INTERNAL or 500, for data that its exporter must
/// not send again.
const COLLECTOR_PERMANENT: &str = "Permanent error: ";
/// Texts for a message above a receiver's limit, in lower case.
const TOO_LARGE: [&str; 12] = [
    // gRPC in Go ("received message larger than max", "message after decompression larger than max"), C++ with Python,
    // Ruby and PHP, and JavaScript.
    "larger than max",
    // tonic: "decoded message length too large"
    "message length too large",
    // gRPC in Java: "gRPC message exceeds maximum size 4194304"
    "message exceeds maximum size",
    // gRPC in .NET: "Received message exceeds the maximum configured message size."
    "exceeds the maximum configured message size",
    // Go's net/http; nginx and Apache; RFC 9110; Envoy.
    "request body too large",
    "request entity too large",
    "payload too large",
    "content too large",
    "payload_too_large",
    "message too large",
    "message is too large",
    // A proxy in front of a gRPC receiver, in the wording of a tonic that hands it on.
    "http status code 413",
];

/// The meaning of an HTTP status and its text.
pub(crate) fn of_status(status: u16, words: &str) -> Meaning {
    match status {
        200..=299 => Meaning::Taken,
        413 => Meaning::TooLarge,
        // 423 to 425: locked, failed dependency, too early. 507: insufficient storage. 52x, 53x and 598: proxies whose
        // backend is unavailable.
        408 | 423..=425 | 429 | 502..=504 | 507 | 509 | 520..=530 | 598 | 599 => Meaning::Later,
        500.. if says_rejected(words) => Meaning::Rejected,
        400 | 500.. if says_too_large(words) => Meaning::TooLarge,
        // An unsupported HTTP version, and a network that requires sign-in.
        505 | 511 => Meaning::Setting,
        499.. => Meaning::Unclear,
        // Informational answers and redirects, which are not followed: the receiver did not accept the records. 415: it
        // does not support the content type.
        ..=399 | 401..=405 | 407 | 410 | 411 | 414 | 415 | 417 | 421 | 426 | 431 | 451 => Meaning::Setting,
        _ => Meaning::Rejected,
    }
}

/// The meaning of a gRPC code and its message.
pub(crate) fn of_code(code: tonic::Code, words: &str) -> Meaning {
    use tonic::Code;
    match code {
        Code::Ok => Meaning::Taken,
        // RESOURCE_EXHAUSTED is a limit on rate or capacity unless the message names a size: the Collector returns it
        // for a backend's 429.
        Code::ResourceExhausted | Code::OutOfRange | Code::Unknown | Code::Internal | Code::InvalidArgument
            if says_too_large(words) =>
        {
            Meaning::TooLarge
        }
        Code::Unknown | Code::Internal | Code::DataLoss if says_rejected(words) => Meaning::Rejected,
        Code::Cancelled | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted | Code::Unavailable => {
            Meaning::Later
        }
        Code::NotFound | Code::PermissionDenied | Code::Unimplemented | Code::Unauthenticated => Meaning::Setting,
        // Vector returns INTERNAL for a sink that failed, and tonic returns either for a broken connection.
        Code::Unknown | Code::Internal | Code::DataLoss | Code::OutOfRange => Meaning::Unclear,
        Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition => Meaning::Rejected,
    }
}

fn says_rejected(words: &str) -> bool {
    words.contains(COLLECTOR_PERMANENT) || words.contains(VECTOR_REJECTED)
}

fn says_too_large(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    TOO_LARGE.iter().any(|known| words.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_status_speaks_of_the_records_of_a_setting_or_of_the_moment() {
        let table: &[(Meaning, &str, &[u16])] = &[
            (Meaning::Taken, "", &[200, 201, 202, 204, 299]),
            (Meaning::Later, "", &[408, 425, 429, 502, 503, 504, 507, 522, 599]),
            (Meaning::Later, "Permanent error: x", &[429, 503]),
            (Meaning::Unclear, "", &[499, 500, 501, 506, 508]),
            (Meaning::Unclear, "<html><body>Internal Server Error</body></html>", &[500]),
            (Meaning::Setting, "", &[101, 301, 302, 307, 401, 403, 404, 405, 407, 410, 415, 421, 426, 505, 511]),
            (Meaning::Setting, "<html><h1>403 Forbidden</h1></html>", &[403]),
            (Meaning::Rejected, "", &[400, 406, 409, 412, 422, 428, 498]),
            (Meaning::Rejected, "rpc error: Permanent error: 422 from the backend", &[500, 501]),
            (Meaning::Rejected, "Contents failed to deliver to sink", &[400, 500]),
            (Meaning::TooLarge, "", &[413]),
            (Meaning::TooLarge, "http: request body too large", &[400, 413, 500]),
        ];
        for (meaning, words, statuses) in table {
            for status in *statuses {
                assert_eq!(of_status(*status, words), *meaning, "{status} {words}");
            }
        }
    }

    #[test]
    fn a_grpc_code_speaks_of_the_records_of_a_setting_or_of_the_moment() {
        let busy = "rpc error: code = ResourceExhausted desc = error exporting items, request to http://b responded with HTTP Status Code 429";
        let go = "grpc: received message larger than max (5242880 vs. 4194304)";
        let inflated = "grpc: message after decompression larger than max (5242880 vs. 4194304)";
        let java = "gRPC message exceeds maximum size 4194304: 5242880";
        let tonic_words = "Error, decoded message length too large: found 5242880 bytes, the limit is: 4194304 bytes";
        let dotnet = "Received message exceeds the maximum configured message size.";
        let proxy = "grpc-status header missing, mapped from HTTP status code 413";
        let permanent = "Permanent error: rpc error: code = Unknown desc = error exporting items, request to http://b responded with HTTP Status Code 422";
        for (meaning, code, words) in [
            (Meaning::Taken, Code::Ok, ""),
            (Meaning::Later, Code::ResourceExhausted, busy),
            (Meaning::Later, Code::ResourceExhausted, "sending queue is full"),
            (Meaning::Later, Code::ResourceExhausted, "too many requests, the backlog is too large"),
            (Meaning::Later, Code::Unavailable, permanent),
            (Meaning::Later, Code::Aborted, ""),
            (Meaning::Later, Code::Cancelled, ""),
            (Meaning::Later, Code::DeadlineExceeded, ""),
            (Meaning::TooLarge, Code::ResourceExhausted, go),
            (Meaning::TooLarge, Code::ResourceExhausted, inflated),
            (Meaning::TooLarge, Code::ResourceExhausted, java),
            (Meaning::TooLarge, Code::ResourceExhausted, dotnet),
            (Meaning::TooLarge, Code::OutOfRange, tonic_words),
            (Meaning::TooLarge, Code::Unknown, proxy),
            (Meaning::TooLarge, Code::Unknown, "Payload Too Large"),
            (Meaning::Rejected, Code::Unknown, permanent),
            (Meaning::Rejected, Code::Internal, "Permanent error: cannot marshal"),
            (Meaning::Rejected, Code::DataLoss, "Contents failed to deliver to sink"),
            (Meaning::Rejected, Code::InvalidArgument, ""),
            (Meaning::Rejected, Code::FailedPrecondition, ""),
            (Meaning::Rejected, Code::AlreadyExists, ""),
            (Meaning::Unclear, Code::Unknown, "h2 protocol error"),
            (Meaning::Unclear, Code::Internal, ""),
            (Meaning::Unclear, Code::OutOfRange, ""),
            (Meaning::Unclear, Code::DataLoss, ""),
            (Meaning::Setting, Code::Unauthenticated, ""),
            (Meaning::Setting, Code::PermissionDenied, ""),
            (Meaning::Setting, Code::Unimplemented, ""),
            (Meaning::Setting, Code::NotFound, ""),
        ] {
            assert_eq!(of_code(code, words), meaning, "{code:?} {words}");
        }
    }
}
