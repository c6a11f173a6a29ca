//! Requests the status of the running process through its control socket.

use std::path::Path;
use std::time::Duration;

use super::Failure;
use super::exit::Exit;
use crate::hosts::embedded::control::{Client, Say, What};
use crate::hosts::embedded::status::Status;

/// A process that does not answer within this time is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// The status of the running process; `None` when none runs.
pub(super) async fn ask(socket: &Path) -> Result<Option<Status>, Failure> {
    let asked = async {
        let Some(mut client) = Client::connect(socket).await? else { return Ok(None) };
        client.ask(What::Status {}).await?;
        match client.next().await? {
            Say::Status(status) => Ok(Some(*status)),
            Say::Refused(refusal) => Err(refusal.into()),
            other => Err(Failure::internal(format!("an answer to another question: {other:?}"))),
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let what = format!("control-broken: the running process did not answer within {} s", PATIENCE.as_secs());
        Err(Failure { message: format!("{what}\n  hint: look at its log"), exit: Exit::State })
    })
}
