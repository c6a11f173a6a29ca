//! Reads a state into a report. It only reads, beside a process that continues to write.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;

use super::bar::of_position;
use super::delays::delays;
use super::findings::{completeness, findings};
use super::model::{
    AuditReport, Chain, Completeness, FORMAT, HealedSummary, OnHold, Owed, PositionSummary, Reason, ReceiptSummary,
    Reconcile, ReportedStream, ReportedWait, SetAsideSummary, Tenant,
};
use super::tally::{ReceiptCounts, first_hour, tally};
use crate::checkpoint::format::{self, AsideRecord, Keys, Position, Stored, TrackedBlob};
use crate::checkpoint::heal::StoredHeal;
use crate::checkpoint::held::HeldHead;
use crate::checkpoint::lateness::BOUNDS_SECS;
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, TenantId, Timestamp, shortened};
use crate::receipts::note::VerifierKey;
use crate::receipts::statement::Hour;
use crate::receipts::store::{self, ReceiptKeys};
use crate::receipts::verify::Verification;
use crate::source::hold::waited_for;

/// The default length of the period.
const DEFAULT_PERIOD: SignedDuration = SignedDuration::from_hours(24 * 30);
/// The maximum of distinct reasons for setting records aside.
const REASONS_MAX: usize = 20;

/// What to report.
#[derive(Debug, Clone)]
pub struct ReportRequest {
    /// Name and version of the program.
    pub program: String,
    /// Now.
    pub now: Timestamp,
    /// Where the period begins; without it 30 days ago, or where state and receipts begin.
    pub from: Option<Timestamp>,
    /// Where it ends; now, without it or when it lies in the future.
    pub to: Option<Timestamp>,
    /// `[receipts] days`.
    pub receipts_days: u32,
    /// The key that receipts are verified with, or why there is none.
    pub key: Result<VerifierKey, String>,
}

/// A tenant to report on.
#[derive(Debug, Clone)]
pub struct ReportTenant {
    /// Its source in the configuration.
    pub source: String,
    /// Its GUID.
    pub tenant: TenantId,
    /// Its configured content types.
    pub content_types: Vec<ContentType>,
    /// How long routine reads wait for matches of data loss prevention, in seconds.
    pub hold_secs: u64,
    /// The last comparison.
    pub reconcile: Reconcile,
}

/// Reads a report on these tenants.
///
/// # Errors
/// When the state cannot be read, or a value other than a receipt is damaged.
pub async fn gather(
    store: &dyn StateStore,
    asked: &ReportRequest,
    tenants: Vec<ReportTenant>,
) -> Result<AuditReport, StateError> {
    let to = asked.to.map_or(asked.now, |to| to.min(asked.now));
    let from = match asked.from {
        Some(from) => from,
        None => default_from(store, &tenants, to).await?,
    };
    let (mut gathered, mut found) = (Vec::new(), Vec::new());
    for tenant in tenants {
        let mut tenant = of_tenant(store, asked, tenant, (from, to)).await?;
        let findings = findings(&tenant, to);
        tenant.completeness = completeness(&findings);
        found.extend(findings);
        gathered.push(tenant);
    }
    found.sort_by_key(|finding| finding.kind);
    Ok(AuditReport {
        format: FORMAT,
        program: asked.program.clone(),
        generated: asked.now,
        from,
        to,
        default_from: asked.from.is_none(),
        completeness: completeness(&found),
        findings: found,
        lateness_bounds_secs: BOUNDS_SECS.to_vec(),
        tenants: gathered,
    })
}

/// 30 days before the end, or later, where position and receipts of every tenant begin later.
async fn default_from(
    store: &dyn StateStore,
    tenants: &[ReportTenant],
    to: Timestamp,
) -> Result<Timestamp, StateError> {
    let earliest = to.saturating_sub(DEFAULT_PERIOD).unwrap_or(Timestamp::MIN);
    let mut begins = Vec::new();
    for tenant in tenants {
        let keys = Keys::of(&tenant.tenant);
        for &content_type in &tenant.content_types {
            begins.extend(load::<Position>(store, &keys.position(content_type)).await?.map(|position| position.origin));
        }
        let receipts = first_hour(store, &ReceiptKeys::below(keys.receipts())).await;
        begins.extend(unless_damaged(receipts)?.ok().flatten().map(Hour::start));
    }
    Ok(begins.into_iter().min().filter(|begins| *begins < to).map_or(earliest, |begins| begins.max(earliest)))
}

/// A report lists damage; an unreadable state is an error.
fn unless_damaged<T>(read: Result<T, StateError>) -> Result<Result<T, String>, StateError> {
    match read {
        Err(error @ StateError::Corrupt { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
        Ok(read) => Ok(Ok(read)),
    }
}

async fn of_tenant(
    store: &dyn StateStore,
    asked: &ReportRequest,
    tenant: ReportTenant,
    period: (Timestamp, Timestamp),
) -> Result<Tenant, StateError> {
    let keys = Keys::of(&tenant.tenant);
    let (tally, damage) = match unless_damaged(tally(store, &keys, &tenant.content_types, period).await)? {
        Ok(tally) => (tally, None),
        Err(damage) => (ReceiptCounts::of_nothing(period), Some(damage)),
    };
    let mut receipts = of_receipts(store, asked, &keys, &tenant.tenant, &tally).await?;
    if let Some(damage) = damage.filter(|damage| !receipts.faults.contains(damage)) {
        receipts.chain = Chain::NotVerified;
        receipts.faults_in_all += 1;
        receipts.faults.push(damage);
    }
    let healing = StoredHeal::load(store, &keys).await?;
    let mut positions = BTreeMap::new();
    for &content_type in &tenant.content_types {
        if let Some(position) = load::<Position>(store, &keys.position(content_type)).await? {
            positions.insert(content_type, healing.open(content_type, position));
        }
    }
    let mut held = on_hold(store, &keys, &tenant, &positions).await?;
    let mut streams = Vec::new();
    for &content_type in &tenant.content_types {
        let position = positions.get(&content_type);
        let counts = tally.by_type.as_ref().map(|counts| counts.get(&content_type).copied().unwrap_or_default());
        streams.push(ReportedStream {
            content_type: content_type.to_string(),
            position: position.map(|position| PositionSummary {
                origin: position.origin,
                complete_until: position.complete_until,
                last_listing: position.last_listing,
                disabled_since: position.disabled_since,
            }),
            bar: of_position(position, period.0, period.1),
            healed: healed(&healing, content_type, period),
            counts,
            counts_are_whole: tally.hours.is_whole(),
            owed: owed(store, &keys, content_type).await?,
            set_aside: set_aside(store, &keys, content_type).await?,
            on_hold: held.remove(&content_type).unwrap_or_default(),
            lateness: delays(store, &keys, content_type, period).await?,
        });
    }
    Ok(Tenant {
        source: tenant.source,
        tenant: tenant.tenant.to_string(),
        completeness: Completeness::Complete,
        streams,
        receipts,
        days: tally.days,
        dropped_by_rule: tally.rules,
        reconcile: tenant.reconcile,
    })
}

/// The parts of a period that were filled through Microsoft Graph.
fn healed(healing: &StoredHeal, content_type: ContentType, (from, to): (Timestamp, Timestamp)) -> Vec<HealedSummary> {
    let of = healing.healed_of(content_type).iter().filter(|healed| healed.from < to && from < healed.to);
    of.map(|healed| HealedSummary { from: healed.from, to: healed.to, at: healed.at, events: healed.events }).collect()
}

async fn of_receipts(
    store: &dyn StateStore,
    asked: &ReportRequest,
    keys: &Keys,
    tenant: &TenantId,
    tally: &ReceiptCounts,
) -> Result<ReceiptSummary, StateError> {
    let mut receipts = ReceiptSummary {
        chain: Chain::Off,
        key: asked.key.as_ref().ok().map(VerifierKey::short),
        first_hour: None,
        last_hour: None,
        parts: 0,
        entries: 0,
        removed_as_too_old: 0,
        last_hash: None,
        faults: Vec::new(),
        faults_in_all: 0,
        hours: tally.hours,
        bar: tally.bar.clone(),
    };
    let below = ReceiptKeys::below(keys.receipts());
    let head = match unless_damaged(store::read_head(store, &below).await)? {
        Ok(head) => head,
        Err(why) => {
            receipts.chain = Chain::NotVerified;
            receipts.faults_in_all = 1;
            receipts.faults.push(why);
            return Ok(receipts);
        }
    };
    let by = match &asked.key {
        Ok(key) => std::slice::from_ref(key),
        Err(why) if head.is_some_and(|head| head.seq > 0) => {
            receipts.chain = Chain::NotKnown(why.clone());
            return Ok(receipts);
        }
        // Parts without a head are a fault by any key.
        Err(_) => &[],
    };
    let verdict = store::verify(store, &below, tenant.clone(), by, &[]).await;
    receipts.chain = match unless_damaged(verdict)? {
        Ok(Some(verdict)) => note_verdict(&mut receipts, &verdict),
        Ok(None) if asked.receipts_days == 0 => Chain::Off,
        Ok(None) => Chain::NothingSealed,
        Err(why) => Chain::NotKnown(why),
    };
    Ok(receipts)
}

fn note_verdict(receipts: &mut ReceiptSummary, verdict: &Verification) -> Chain {
    receipts.first_hour = verdict.hours.map(|(first, _)| first.start());
    receipts.last_hour = verdict.hours.map(|(_, last)| last.start());
    receipts.parts = verdict.parts;
    receipts.entries = verdict.entries;
    receipts.removed_as_too_old = verdict.pruned();
    receipts.last_hash = verdict.last_hash.map(|hash| STANDARD.encode(hash));
    receipts.faults = verdict.faults.iter().map(ToString::to_string).collect();
    receipts.faults_in_all = verdict.faults_in_all;
    if verdict.is_good() { Chain::Verified } else { Chain::NotVerified }
}

async fn owed(store: &dyn StateStore, keys: &Keys, content_type: ContentType) -> Result<Owed, StateError> {
    let mut owed = Owed::default();
    for (key, _) in store.list(&keys.tracked(content_type)).await? {
        let Some(blob) = load::<TrackedBlob>(store, &key).await? else { continue };
        owed.blobs += 1;
        owed.oldest = Some(owed.oldest.map_or(blob.created, |oldest| oldest.min(blob.created)));
        owed.first_expires = Some(owed.first_expires.map_or(blob.expires, |first| first.min(blob.expires)));
    }
    Ok(owed)
}

async fn set_aside(
    store: &dyn StateStore,
    keys: &Keys,
    content_type: ContentType,
) -> Result<SetAsideSummary, StateError> {
    let mut aside = SetAsideSummary::default();
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for (key, _) in store.list(&keys.aside(content_type)).await? {
        let Some(record) = load::<AsideRecord>(store, &key).await? else { continue };
        aside.records += 1;
        aside.oldest = Some(aside.oldest.map_or(record.since, |oldest| oldest.min(record.since)));
        let why = shortened(&record.why).into_owned();
        let is_told = reasons.len() < REASONS_MAX || reasons.contains_key(&why);
        *reasons.entry(if is_told { why } else { "other reasons".to_owned() }).or_default() += 1;
    }
    aside.reasons = reasons.into_iter().map(|(why, records)| Reason { why, records }).collect();
    aside.reasons.sort_by_key(|reason| Reverse(reason.records));
    Ok(aside)
}

/// The held reads, by content type, and what they wait for.
async fn on_hold(
    store: &dyn StateStore,
    keys: &Keys,
    tenant: &ReportTenant,
    positions: &BTreeMap<ContentType, Position>,
) -> Result<BTreeMap<ContentType, OnHold>, StateError> {
    let mut all: BTreeMap<ContentType, OnHold> = BTreeMap::new();
    for (key, _) in store.list(&keys.held()).await? {
        let Some((bytes, _)) = store.load(&key).await? else { continue };
        let head = HeldHead::decode(&key, &bytes)?;
        let held = all.entry(head.content_type).or_default();
        held.reads += head.records();
        held.oldest = Some(held.oldest.map_or(head.created, |oldest| oldest.min(head.created)));
    }
    let complete = tenant.content_types.iter().map(|of| (*of, positions.get(of).and_then(|p| p.complete_until)));
    let Some((content_type, complete_until)) = waited_for(complete) else { return Ok(all) };
    let hold = SignedDuration::from_secs(i64::try_from(tenant.hold_secs).unwrap_or(i64::MAX));
    for held in all.values_mut() {
        let needed_until = held.oldest.and_then(|oldest| oldest.saturating_add(hold).ok()).unwrap_or(Timestamp::MAX);
        if complete_until.is_none_or(|complete| complete < needed_until) {
            held.waits_for =
                Some(ReportedWait { content_type: content_type.to_string(), needed_until, complete_until });
        }
    }
    Ok(all)
}

async fn load<T: Stored>(store: &dyn StateStore, key: &str) -> Result<Option<T>, StateError> {
    store.load(key).await?.map(|(bytes, _)| format::decode(key, &bytes)).transpose()
}
