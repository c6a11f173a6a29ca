//! Sends signed checkpoints of the receipts to the sinks that take them. Only a checkpoint that has left the machine is
//! evidence against the owner of the machine.

use std::time::Duration;

use super::context::FetchContext;
use crate::checkpoint::journal::{SealedPart, ToSend};
use crate::checkpoint::ledger::Change;
use crate::host::{BatchBuilder, Noted};
use crate::model::ContentType;
use crate::normalise::ReceiptNotice;

/// Takes the place of a source's name in a batch of checkpoints; the host chooses the sinks that receive it.
pub const RECEIPTS: &str = "m365_audit.receipts";

/// Pause after the state could not be read.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// Sends the sealed parts, one after another, until the source stops. Parts not sent by then are sent after the next
/// start.
pub(super) async fn send(context: FetchContext, to_send: Option<ToSend>) {
    let Some(mut to_send) = to_send else { return std::future::pending().await };
    loop {
        let SealedPart { seq, hour, receipts, note } = match to_send.next(&*context.store).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(tenant = %context.tenant, "state-not-read: a signed checkpoint is not sent for now: {error}");
                context.clock.sleep(READ_AGAIN).await;
                continue;
            }
        };
        let notice = ReceiptNotice {
            tenant: &context.tenant,
            seq,
            hour,
            receipts,
            checkpoint: &String::from_utf8_lossy(&note),
            now: context.clock.now(),
        };
        let mut builder = BatchBuilder::default();
        builder.push_with(|out| Some(Noted::of_ours(context.normaliser.render_receipt(&notice, out))));
        let batch = builder.finish(RECEIPTS.into(), context.tenant.clone(), ContentType::General);
        let Ok(aside) = context.deliverer.deliver(batch, &context.stop).await else { break };
        if let Some(refused) = aside.into_iter().next() {
            // A checkpoint holds no customer data and the receipts contain it, so a rejected one is logged and not
            // stored a second time.
            tracing::error!(
                tenant = %context.tenant, part = seq, why = refused.record.why,
                "receipt-not-sent: a sink of `[receipts] to` rejects a signed checkpoint; the receipts hold it, `receipts export` writes it"
            );
        }
        if context.ledger.commit(Change { sent: Some(seq), ..Change::default() }).await.is_err() {
            break;
        }
        to_send.is_sent();
    }
    std::future::pending().await
}
