//! The hold's worker: delivers reads that turned out to be flagged, drops those that no match can concern any more, and
//! tidies the pages of flags.
//!
//! [`Hold`] chooses the work; this worker reports to it what is done once that is durable. The tenant's loop runs one
//! turn at a time, whenever [`Hold::has_work`].

use super::batch_receipts::ReceiptCollector;
use super::context::{BAD_PIECE_BYTES, BATCH_BYTES, FetchContext};
use super::deliver::{RejectedRecord, Stopped};
use super::hold::{HeldPageId, Hold, HoldWork};
use crate::checkpoint::held::HeldPage;
use crate::checkpoint::ledger::Change;
use crate::host::{BatchBuilder, Noted, StateError};
use crate::metrics;
use crate::model::{ContentType, Timestamp};
use crate::normalise::dlp_link::{DlpNote, links_of_read};
use crate::normalise::scraps::{ScrapFate, Scraps};
use crate::normalise::{BadBody, BadBytes, BlobContext, Event, Normaliser, Withheld};
use crate::receipts::{Class, OpenReceipts, Receipt};

/// Releases, drops and tidies until there is nothing more to do.
///
/// # Errors
/// When state cannot be read or written; the next turn finds the remaining work again.
pub async fn turn(context: &FetchContext, now: Option<Timestamp>) -> Result<(), StateError> {
    let turn = ReleaseTurn { context, hold: &context.hold };
    while !context.stop.is_cancelled() {
        match turn.hold.next_work(now) {
            HoldWork::Nothing => return Ok(()),
            HoldWork::Look(pages) => turn.release(pages, false).await?,
            HoldWork::Ship(pages) => turn.release(pages, true).await?,
            HoldWork::Drop(pages) => turn.drop_pages(pages).await?,
            HoldWork::Forget(pages) => turn.forget_flags(&pages).await?,
            HoldWork::Fold(pages) => turn.fold_flags(&pages).await?,
        }
    }
    Ok(())
}

/// Pages whose reads are recorded as dropped in one commit.
const PAGES_SAID_AT_ONCE: usize = 32;

struct ReleaseTurn<'a> {
    context: &'a FetchContext,
    hold: &'a Hold,
}

impl ReleaseTurn<'_> {
    /// Delivers the flagged reads of these pages, or all reads, and then removes the delivered ones from the pages.
    async fn release(&self, pages: Vec<HeldPageId>, all: bool) -> Result<(), StateError> {
        for (content_type, pages) in self.hold.by_type(pages) {
            let mut release = self.new_release();
            for id in pages {
                self.take_from(id, all, &mut release).await?;
                if release.builder.bytes() >= BATCH_BYTES {
                    self.deliver(content_type, std::mem::replace(&mut release, self.new_release())).await?;
                }
                if self.context.stop.is_cancelled() {
                    break;
                }
            }
            self.deliver(content_type, release).await?;
        }
        Ok(())
    }

    /// Renders the reads of one page that are to be delivered.
    fn new_release(&self) -> Release {
        Release { collected: ReceiptCollector::new(self.context.keeps_receipts), ..Release::default() }
    }

    async fn take_from(&self, id: HeldPageId, all: bool, release: &mut Release) -> Result<(), StateError> {
        let normaliser = &self.context.normaliser;
        let page = self.hold.page(id).await?;
        let mut kept = Vec::new();
        let blob = BlobContext {
            tenant: &self.context.tenant,
            content_type: page.content_type,
            content_id: &page.content_id,
            content_created: page.created,
        };
        for record in page.records {
            let Ok(event) = Event::parse(&record.raw) else {
                // It parsed as an event when it was put on hold. It is not kept, since each look at its page would fail
                // here again.
                release.push_bad(&record.raw, &blob, self.context.clock.now(), normaliser);
                continue;
            };
            let flag = self.hold.flag_of(&links_of_read(&event)).await?;
            let note = match &flag {
                Some(flag) => DlpNote::Flagged(flag),
                None if all => DlpNote::Undetermined,
                None => {
                    kept.push(record);
                    continue;
                }
            };
            match note {
                DlpNote::Flagged(_) => release.flagged += 1,
                DlpNote::Undetermined => release.undetermined += 1,
            }
            release.builder.push_with(|out| Some(normaliser.render_noted(&event, &blob, note, out)));
            release.collected.held_event(&event);
        }
        release.pages.push((id, HeldPage { records: kept, ..page }));
        Ok(())
    }

    async fn deliver(&self, content_type: ContentType, mut release: Release) -> Result<(), StateError> {
        let context = self.context;
        let mut change = Change::default();
        let mut kept = Vec::new();
        let _permit = context.budget.take(release.builder.bytes()).await;
        if !release.builder.is_empty() {
            let batch = release.builder.finish(context.source.clone(), context.tenant.clone(), content_type);
            match context.deliverer.deliver(batch, &context.stop).await {
                Ok(mut aside) => {
                    let records = aside.iter_mut().map(|aside| (aside.place, &mut aside.record));
                    change.receipts = release.collected.of_batch(content_type).answered(content_type, records);
                    change.aside = aside.into_iter().map(RejectedRecord::stored).collect();
                }
                // The reads stay on hold, and the next start finds them there.
                Err(Stopped) => return Ok(()),
            }
        }
        for (id, page) in &release.pages {
            if let Some((op, rest)) = self.hold.keep(*id, page) {
                change.unheld.push(op);
                kept.push(rest);
            }
        }
        if !change.unheld.is_empty() {
            context.ledger.commit(change).await?;
        }
        let say_shed = self.hold.kept(kept, release.undetermined > 0);
        self.report(content_type, &release, say_shed);
        Ok(())
    }

    fn report(&self, content_type: ContentType, release: &Release, say_shed: bool) {
        let tenant = &self.context.tenant;
        for (reason, n) in [("flagged", release.flagged), ("undetermined", release.undetermined)] {
            if n > 0 {
                ::metrics::counter!(metrics::RELEASED_EVENTS_TOTAL, "tenant" => tenant.to_string(), "content_type" => content_type.as_str(), "reason" => reason).increment(n);
            }
        }
        if release.bad > 0 {
            ::metrics::counter!(metrics::BAD_RECORDS_TOTAL, "tenant" => tenant.to_string(), "content_type" => content_type.as_str()).increment(release.bad);
            tracing::warn!(
                %tenant, %content_type,
                "bad-blob: a routine read on hold can be read as an event no more; it was shipped as m365_audit.bad_blob records"
            );
        }
        if say_shed {
            tracing::warn!(
                %tenant, hold_bytes_max = self.hold.settings().bytes_max,
                "hold-full: routine reads are shipped as `dlp.undetermined` before it can be known whether they are flagged"
            );
        }
    }

    async fn drop_pages(&self, pages: Vec<HeldPageId>) -> Result<(), StateError> {
        // The receipts of the reads are in memory until they are committed.
        let at_once = if self.context.keeps_receipts { PAGES_SAID_AT_ONCE } else { pages.len().max(1) };
        for pages in pages.chunks(at_once) {
            let unheld = pages.iter().map(|id| self.hold.delete(*id)).collect();
            let receipts = self.receipts_of_dropped(pages).await?;
            self.context.ledger.commit(Change { unheld, receipts, ..Change::default() }).await?;
            for ((content_type, rule), n) in self.hold.dropped(pages) {
                ::metrics::counter!(metrics::DROPPED_EVENTS_TOTAL, "tenant" => self.context.tenant.to_string(), "content_type" => content_type.as_str(), "reason" => rule.to_string()).increment(n);
            }
        }
        Ok(())
    }

    /// The receipts of reads on these pages, which rules drop now.
    async fn receipts_of_dropped(&self, pages: &[HeldPageId]) -> Result<OpenReceipts, StateError> {
        let mut receipts = OpenReceipts::default();
        if self.context.keeps_receipts {
            for (content_type, pages) in self.hold.by_type(pages.to_vec()) {
                for id in pages {
                    for (rule, key) in self.hold.keyed_rules(id).await? {
                        // One without a key was counted when it was put on hold.
                        if key.is_some() {
                            receipts.add(Receipt { content_type, key, class: Class::Dropped(rule) });
                        }
                    }
                }
            }
        }
        Ok(receipts)
    }

    async fn forget_flags(&self, pages: &[u64]) -> Result<(), StateError> {
        let unheld = self.hold.delete_flags(pages).collect();
        self.context.ledger.commit(Change { unheld, ..Change::default() }).await?;
        if self.hold.forgotten(pages) {
            tracing::warn!(
                tenant = %self.context.tenant, flags_max = self.hold.settings().flags_max,
                "dlp-flags-full: more items are flagged by data loss prevention than `dlp_flags_max`; those flagged longest ago are forgotten, reads of them count as routine"
            );
        }
        Ok(())
    }

    /// Makes one page of many small ones.
    async fn fold_flags(&self, pages: &[u64]) -> Result<(), StateError> {
        let (held, folded) = self.hold.fold(pages).await?;
        let unheld = self.hold.delete_flags(pages).collect();
        self.context.ledger.commit(Change { held, unheld, ..Change::default() }).await?;
        self.hold.folded(folded, pages);
        Ok(())
    }
}

#[derive(Default)]
struct Release {
    builder: BatchBuilder,
    /// The rest of each page.
    pages: Vec<(HeldPageId, HeldPage)>,
    collected: ReceiptCollector,
    flagged: u64,
    undetermined: u64,
    /// Records of bytes that are not an event.
    bad: u64,
}

impl Release {
    /// Adds bytes that are not an event.
    fn push_bad(&mut self, bytes: &[u8], blob: &BlobContext<'_>, now: Timestamp, normaliser: &Normaliser) {
        let mut scraps = Scraps::new(normaliser.censor(), usize::MAX, usize::MAX);
        let mut offset = 0;
        for piece in bytes.chunks(BAD_PIECE_BYTES) {
            self.bad += 1;
            let reason = "a routine read that was on hold can be read as an event no more";
            let mut bad =
                BadBytes { total: Some(bytes.len() as u64), ..BadBytes::of(blob, now, offset, piece, reason) };
            let fate = scraps.judge(piece, offset);
            if let ScrapFate::Withheld(sha256) = &fate {
                let bytes = piece.len() as u64;
                bad.body = BadBody::Withheld { bytes, sha256, why: Withheld::Masked, stretches: None };
            }
            self.builder.push_with(|out| Some(Noted::of_ours(normaliser.render_bad(&bad, out))));
            self.collected.notice();
            offset += piece.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests;
