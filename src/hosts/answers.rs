//! What a receiver's answer means, one table for all sinks: HTTP statuses, gRPC codes, and the words of receivers that
//! give the same code for opposite reasons.
//!
//! What follows from a meaning is `delivery`'s: no meaning alone sets a record aside. Texts are looked at only where a
//! code says nothing by itself; each is of a receiver that was seen, or read, to give it.

use crate::delivery::Written;

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The receiver has the records.
    Taken,
    /// Not now.
    Later,
    /// A failure of one side or the other.
    Unclear,
    /// It takes nothing from us as we, or it, are configured.
    Setting,
    /// Not these records.
    Rejected,
    /// Not so much at once.
    TooLarge,
}

impl Meaning {
    /// As a sink says it.
    pub(crate) fn written(self, why: String, retry_after: Option<std::time::Duration>) -> Written {
        match self {
            Self::Taken => Written::Delivered,
            // Whoever says when to come again does not say never.
            Self::Later => Written::Refused { why, retry_after },
            _ if retry_after.is_some() => Written::Refused { why, retry_after },
            Self::Unclear => Written::Unclear(why),
            Self::Setting => Written::Misconfigured(format!("{why} (check the sink's address and credentials)")),
            Self::Rejected => Written::Rejected(why),
            Self::TooLarge => Written::TooLarge(why),
        }
    }
}

/// What Vector says, with 500, 400 or DATA_LOSS, when its sinks rejected events for good.
const VECTOR_REJECTED: &str = "Contents failed to deliver to sink";
/// What the OpenTelemetry Collector says, with UNKNOWN, INTERNAL or 500, of what its exporter must not send again.
const COLLECTOR_PERMANENT: &str = "Permanent error: ";
/// Words for a message over a receiver's bound, in lower case.
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
    // A proxy between gRPC and us, as tonic puts it.
    "http status code 413",
];

/// What an HTTP status and the words with it mean.
pub(crate) fn of_status(status: u16, words: &str) -> Meaning {
    match status {
        200..=299 => Meaning::Taken,
        413 => Meaning::TooLarge,
        // 423 to 425: locked, waits for another, too early. 507: out of room. 52x, 53x and 598 are proxies whose
        // backend is away.
        408 | 423..=425 | 429 | 502..=504 | 507 | 509 | 520..=530 | 598 | 599 => Meaning::Later,
        500.. if says_rejected(words) => Meaning::Rejected,
        400 | 500.. if says_too_large(words) => Meaning::TooLarge,
        // Versions and networks that want to be paid for.
        505 | 511 => Meaning::Setting,
        499.. => Meaning::Unclear,
        // Informational answers and redirects, which are not followed: the records are not there. 415: our content type.
        ..=399 | 401..=405 | 407 | 410 | 411 | 414 | 415 | 417 | 421 | 426 | 431 | 451 => Meaning::Setting,
        _ => Meaning::Rejected,
    }
}

/// What a gRPC code and its message mean.
pub(crate) fn of_code(code: tonic::Code, words: &str) -> Meaning {
    use tonic::Code;
    match code {
        Code::Ok => Meaning::Taken,
        // RESOURCE_EXHAUSTED is a limit on rate or room unless it says that it is one on size: the Collector makes it of
        // a backend's 429.
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
        // INTERNAL is Vector's word for a sink that failed, and both are tonic's for a connection that broke.
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
