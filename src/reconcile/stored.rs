//! Reads the receipts of a tenant's state for a comparison.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::SignedDuration;

use super::evidence::{EvidenceReach, Known, ReceiptVisitor};
use crate::checkpoint::format::{self, Keys, Owner};
use crate::host::{StateError, StateStore};
use crate::model::Timestamp;
use crate::receipts::head::StoredHead;
use crate::receipts::statement::{Hour, Outcome};
use crate::receipts::store::{FoundReceipt, ReceiptKeys, for_each_entry, read_head};
use crate::receipts::{Class, OpenReceipts, Receipt};

/// The name for a rule that a part could not name because it has too many rules.
const NOT_NAMED: &str = "not named";

/// The receipts of one tenant.
pub struct StateReceipts {
    store: Arc<dyn StateStore>,
    keys: ReceiptKeys,
    owner: String,
    since: Option<Hour>,
}

/// No event is reported this long before it happens.
const EARLY_MAX: SignedDuration = SignedDuration::from_hours(24);

impl StateReceipts {
    /// The receipts of the tenant with these keys.
    pub fn new(store: Arc<dyn StateStore>, keys: &Keys) -> Self {
        Self { store, keys: ReceiptKeys::below(keys.receipts()), owner: keys.owner(), since: None }
    }

    /// Only the receipts of events that may have happened at `time` or later.
    #[must_use]
    pub fn of_events_since(self, time: Timestamp) -> Self {
        Self { since: time.saturating_sub(EARLY_MAX).ok().map(Hour::of), ..self }
    }

    /// The head, and whether the process that wrote last keeps receipts.
    async fn head(&self) -> Result<(Option<StoredHead>, bool), StateError> {
        let mut head = read_head(&*self.store, &self.keys).await?;
        let Some((bytes, _)) = self.store.load(&self.owner).await? else { return Ok((head, true)) };
        let owner: Owner = format::decode(&self.owner, &bytes)?;
        let is_kept = |head: &Option<StoredHead>| head.as_ref().is_none_or(|head| head.writer == owner.writer);
        if !is_kept(&head) {
            // A process that started meanwhile wrote both at once.
            head = read_head(&*self.store, &self.keys).await?;
        }
        let is_kept = is_kept(&head);
        Ok((head, is_kept))
    }

    /// The receipts that are not sealed, and their earliest hour. They are read before the sealed ones: a receipt that
    /// is sealed meanwhile is then read twice, never missed.
    async fn open(&self) -> Result<(Vec<Receipt>, Option<Timestamp>), StateError> {
        let (mut all, mut from) = (Vec::new(), None::<Timestamp>);
        for (key, _) in self.store.list(&self.keys.open()).await? {
            let Some((bytes, _)) = self.store.load(&key).await? else { continue };
            let (hour, page) = OpenReceipts::decode(&key, &bytes)?;
            let start = hour.start();
            from = Some(from.map_or(start, |known| known.min(start)));
            for ((content_type, class), keys) in page.keys {
                all.extend(keys.into_iter().map(|key| Receipt { content_type, key: Some(key), class: class.clone() }));
            }
        }
        Ok((all, from))
    }
}

#[async_trait]
impl Known for StateReceipts {
    async fn visit(&self, take: &mut (dyn ReceiptVisitor + Send)) -> Result<Option<EvidenceReach>, StateError> {
        let (open, open_from) = self.open().await?;
        let mut hour: Option<Option<Hour>> = None;
        let mut rule: Arc<str> = NOT_NAMED.into();
        let mut visit = |found: FoundReceipt<'_>| {
            if hour.is_some_and(|hour| hour != found.hour) {
                take.part_ended();
            }
            hour = Some(found.hour);
            let class = match found.outcome {
                Outcome::Held => Class::Held,
                Outcome::SetAside => Class::SetAside,
                Outcome::Delivered => Class::Delivered,
                Outcome::Dropped => {
                    let name = found.rule.unwrap_or(NOT_NAMED);
                    if *rule != *name {
                        rule = name.into();
                    }
                    Class::Dropped(rule.clone())
                }
            };
            take.entry(found.key, &class);
        };
        // Events delivered before receipts began have none; after that, an event without a receipt was not delivered.
        let (head, is_kept) = self.head().await?;
        let begins = head.and_then(|head| head.begins_until);
        let reach = for_each_entry(&*self.store, &self.keys, self.since, open, &mut visit).await?;
        take.part_ended();
        let from = reach.from.map(Hour::start).into_iter().chain(open_from).min();
        let begins = begins.into_iter().chain(reach.begins).max().map(|hour| hour.next().start());
        // A process without receipts wrote last: an event without one may be its own.
        Ok(match begins {
            _ if !is_kept => Some(EvidenceReach::From(Timestamp::MAX)),
            Some(begins) => Some(EvidenceReach::From(begins)),
            None => from.map(|from| if reach.pruned { EvidenceReach::From(from) } else { EvidenceReach::Whole }),
        })
    }
}
