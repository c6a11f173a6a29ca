use vector_lib::{
    NamedInternalEvent, counter,
    internal_event::{CounterName, InternalEvent, error_stage, error_type},
};

/// Signing in, or a permission.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditAuthenticationError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditAuthenticationError<'_> {
    fn emit(self) {
        error!(
            message = "Microsoft does not let the source in.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::AUTHENTICATION_FAILED,
            stage = error_stage::RECEIVING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::AUTHENTICATION_FAILED,
            "stage" => error_stage::RECEIVING,
        )
        .increment(1);
    }
}

/// What was configured does not fit the tenant.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditConfigurationError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditConfigurationError<'_> {
    fn emit(self) {
        error!(
            message = "The configuration does not fit the tenant.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::CONFIGURATION_FAILED,
            stage = error_stage::RECEIVING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::CONFIGURATION_FAILED,
            "stage" => error_stage::RECEIVING,
        )
        .increment(1);
    }
}

/// The way to Microsoft: name, proxy, TLS.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditConnectionError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditConnectionError<'_> {
    fn emit(self) {
        error!(
            message = "Microsoft cannot be reached.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::CONNECTION_FAILED,
            stage = error_stage::RECEIVING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::CONNECTION_FAILED,
            "stage" => error_stage::RECEIVING,
        )
        .increment(1);
    }
}

/// All else that the feed answers.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditRequestError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditRequestError<'_> {
    fn emit(self) {
        error!(
            message = "A request failed.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::REQUEST_FAILED,
            stage = error_stage::RECEIVING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::REQUEST_FAILED,
            "stage" => error_stage::RECEIVING,
        )
        .increment(1);
    }
}

/// A body or a record. It is tried again, or kept as it is.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditParseError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditParseError<'_> {
    fn emit(self) {
        error!(
            message = "What was received cannot be read.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::PARSER_FAILED,
            stage = error_stage::PROCESSING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::PARSER_FAILED,
            "stage" => error_stage::PROCESSING,
        )
        .increment(1);
    }
}

/// The state on disk, without which nothing is read.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditStateError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditStateError<'_> {
    fn emit(self) {
        error!(
            message = "The state cannot be used.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::IO_FAILED,
            stage = error_stage::PROCESSING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::IO_FAILED,
            "stage" => error_stage::PROCESSING,
        )
        .increment(1);
    }
}

/// Sinks do not take events, which come again.
#[derive(Debug, NamedInternalEvent)]
pub struct M365AuditAcknowledgementError<'a> {
    pub code: &'a str,
    pub error: &'a str,
}

impl InternalEvent for M365AuditAcknowledgementError<'_> {
    fn emit(self) {
        error!(
            message = "Events are not acknowledged.",
            error = %self.error,
            error_code = %self.code,
            error_type = error_type::ACKNOWLEDGMENT_FAILED,
            stage = error_stage::SENDING,
        );
        counter!(
            CounterName::ComponentErrorsTotal,
            "error_code" => self.code.to_owned(),
            "error_type" => error_type::ACKNOWLEDGMENT_FAILED,
            "stage" => error_stage::SENDING,
        )
        .increment(1);
    }
}
