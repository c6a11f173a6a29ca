//! Vector with the source `m365_audit`. Linking the module is enough: sources register themselves.

#[path = "../m365_audit.rs"]
mod m365_audit_source;

use std::process::ExitCode;

use vector::app::Application;
use vector::extra_context::ExtraContext;

fn main() -> ExitCode {
    let status = Application::run(ExtraContext::default());
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}
