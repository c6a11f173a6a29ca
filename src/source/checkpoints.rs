//! Signed checkpoints of the receipts on their way to the sinks that get them: only what has left the machine is evidence
//! against whoever owns it.

use tokio::sync::mpsc;

use super::context::FetchContext;
use crate::checkpoint::journal::ToSend;
use crate::checkpoint::ledger::Change;
use crate::host::{BatchBuilder, Noted};
use crate::model::ContentType;
use crate::normalise::ReceiptNotice;

/// What stands in the place of a source's name in a batch of checkpoints: a host gives them to whom it wants.
pub const RECEIPTS: &str = "m365_audit.receipts";

/// Sends what is announced, one after another, until the source stops. What was not sent by then is announced again at
/// the next start.
pub(super) async fn send(context: FetchContext, announced: Option<mpsc::UnboundedReceiver<ToSend>>) {
    let Some(mut announced) = announced else { return std::future::pending().await };
    while let Some(sealed) = announced.recv().await {
        let ToSend { seq, hour, receipts, note } = sealed;
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
        let Ok(aside) = context.courier.deliver(batch, &context.stop).await else { break };
        if let Some(refused) = aside.into_iter().next() {
            // Nothing of a customer's is in it, and the receipts have it: it is told and not kept a second time.
            tracing::error!(
                tenant = %context.tenant, part = seq, why = refused.record.why,
                "receipt-not-sent: a sink of `[receipts] to` rejects a signed checkpoint; the receipts hold it, `receipts export` writes it"
            );
        }
        if context.ledger.commit(Change { sent: Some(seq), ..Change::default() }).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}
