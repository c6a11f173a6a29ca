//! The data of the simulated service: subscriptions, blobs with their three times, quotas, and the ledger of truth.
//!
//! It has no HTTP and no faults. Callers pass the time to every method.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::events::{self, HugeBody, Irregularity, parse_event_time};
use super::export::{ExportSpec, SearchRow};
use super::queries::Graph;
use super::truth::{EventFields, LedgerEvent, Side, Truth, TruthEvent, TruthHuge, TruthLedger, fingerprint};
use super::{GenerateSpec, ListingOrder, NewBlob, QuotaCounts, SimConfig, SubscriptionState, links};
use crate::model::{ContentType, StreamId, TenantId, Timestamp};

/// How many earlier events of a stream the generator keeps for publishing again.
const COPY_SOURCES_MAX: usize = 2_000;

pub(super) struct SimBlob {
    pub id: Arc<str>,
    pub created: Timestamp,
    pub listable_from: Timestamp,
    pub expires: Timestamp,
    /// What a listing writes in place of `created` and `expires`.
    pub listed_created: Option<Arc<str>>,
    pub listed_expiration: Option<Arc<str>>,
    pub body: SimBlobBody,
    pub reads: u64,
}

#[derive(Clone)]
pub(super) enum SimBlobBody {
    Events(Arc<[Bytes]>),
    Raw(Bytes),
    Huge { body: HugeBody, count: u64 },
}

#[derive(Default)]
pub(super) struct SimSubscription {
    pub state: SubscriptionState,
    /// The last start that was counted for the 15-minute rule.
    pub last_start: Option<Timestamp>,
    /// Until when the service refuses content after a stop and a start, independent of the list.
    pub stuck_until: Option<Timestamp>,
    /// The intervals in which it was disabled again; an open one has no end. Content that became listable in one can
    /// never be listed.
    dark: Vec<(Timestamp, Option<Timestamp>)>,
}

impl SimSubscription {
    pub fn set(&mut self, state: SubscriptionState, now: Timestamp) {
        let enabled = |state| state == SubscriptionState::Enabled;
        if enabled(self.state) && !enabled(state) {
            self.dark.push((now, None));
        } else if !enabled(self.state)
            && enabled(state)
            && let Some((_, until @ None)) = self.dark.last_mut()
        {
            *until = Some(now);
        }
        self.state = state;
    }

    fn hides(&self, blob: &SimBlob) -> bool {
        let at = blob.listable_from;
        self.dark.iter().any(|(from, until)| *from <= at && until.is_none_or(|until| at < until))
    }
}

#[derive(Default)]
pub(super) struct SimStream {
    pub subscription: SimSubscription,
    blobs: BTreeMap<(Timestamp, Arc<str>), SimBlob>,
    /// Recent events of this stream, as (bytes, blob's `contentCreated`, irregularity).
    sources: VecDeque<(Bytes, Option<Irregularity>)>,
}

/// Everything behind the simulator's lock.
pub(super) struct SimState {
    pub config: SimConfig,
    streams: HashMap<StreamId, SimStream>,
    names: HashMap<Arc<str>, (StreamId, Timestamp)>,
    pub graph: Graph,
    ledger: TruthLedger,
    rng: fastrand::Rng,
    serial: u32,
    placeholder_times: HashSet<Timestamp>,
    quota: HashMap<Option<(TenantId, String)>, QuotaPool>,
}

/// Where a listing continues: after this blob, in the listing's own order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListingPosition {
    pub rank: u64,
    pub id: String,
}

/// One entry of a listing.
pub(super) struct ListedBlob {
    pub id: Arc<str>,
    pub created: Timestamp,
    pub expires: Timestamp,
    pub listed_created: Option<Arc<str>>,
    pub listed_expiration: Option<Arc<str>>,
}

impl SimState {
    pub fn new(config: SimConfig) -> Self {
        let rng = fastrand::Rng::with_seed(config.seed);
        Self {
            config,
            streams: HashMap::new(),
            names: HashMap::new(),
            graph: Graph::default(),
            ledger: TruthLedger::default(),
            rng,
            serial: 0,
            placeholder_times: HashSet::new(),
            quota: HashMap::new(),
        }
    }

    pub fn stream(&mut self, tenant: &TenantId, content_type: ContentType) -> &mut SimStream {
        self.streams.entry(StreamId { tenant: tenant.clone(), content_type }).or_default()
    }

    /// Publishes a blob and enters its events into the ledger.
    pub fn add_blob(&mut self, tenant: &TenantId, content_type: ContentType, blob: NewBlob) -> Arc<str> {
        let shapes = vec![None; blob.events.len()];
        self.publish(tenant, content_type, blob, &shapes)
    }

    fn publish(
        &mut self,
        tenant: &TenantId,
        content_type: ContentType,
        blob: NewBlob,
        shapes: &[Option<Irregularity>],
    ) -> Arc<str> {
        self.serial = self.serial.wrapping_add(1);
        // `contentCreated` has milliseconds on the wire; the store must not be more precise than the client can be.
        let created = Timestamp::from_millisecond(blob.created.as_millisecond()).unwrap_or(blob.created);
        let blob = NewBlob { created, ..blob };
        let id: Arc<str> =
            blob.content_id.unwrap_or_else(|| content_id(content_type, blob.created, self.serial)).into();
        let events: Vec<Bytes> = blob.events.into_iter().map(Bytes::from).collect();
        for (raw, shape) in events.iter().zip(shapes) {
            self.ledger.publish(tenant, content_type, &id, raw, *shape);
        }
        let body = match (blob.body, blob.huge_bytes) {
            (Some(raw), _) => SimBlobBody::Raw(raw.into()),
            (None, Some(bytes)) => {
                let body = HugeBody::new(self.serial, tenant.clone(), blob.created);
                SimBlobBody::Huge { count: body.count(bytes), body }
            }
            (None, None) => SimBlobBody::Events(events.into()),
        };
        let expiry = jiff::SignedDuration::from_hours(24 * i64::from(self.config.expiry_days));
        let stored = SimBlob {
            id: id.clone(),
            created: blob.created,
            listable_from: blob.listable_from.unwrap_or(blob.created),
            expires: blob.expires.unwrap_or_else(|| blob.created.saturating_add(expiry).unwrap_or(Timestamp::MAX)),
            listed_created: blob.listed_created.map(Arc::from),
            listed_expiration: blob.listed_expiration.map(Arc::from),
            body,
            reads: 0,
        };
        self.names.insert(id.clone(), (StreamId { tenant: tenant.clone(), content_type }, blob.created));
        self.stream(tenant, content_type).blobs.insert((blob.created, id.clone()), stored);
        id
    }

    /// Makes blobs according to `spec`; returns their ids.
    pub fn generate(&mut self, tenant: &TenantId, spec: &GenerateSpec) -> Vec<Arc<str>> {
        let span_ms = spec.to.as_millisecond().saturating_sub(spec.from.as_millisecond()).max(1);
        let types: Vec<ContentType> =
            if spec.content_types.is_empty() { ContentType::ALL.to_vec() } else { spec.content_types.clone() };
        let mut last_created: HashMap<ContentType, Timestamp> = HashMap::new();
        let mut ids = Vec::with_capacity(spec.blobs);
        for content_type in types.iter().copied().cycle().take(spec.blobs) {
            let offset = self.rng.i64(0..span_ms);
            let mut created = plus_ms(spec.from, offset);
            if self.rng.f64() < spec.same_instant_rate
                && let Some(last) = last_created.get(&content_type)
            {
                created = *last;
            }
            last_created.insert(content_type, created);
            let late_ms = i64::try_from(spec.late_by_max_secs.saturating_mul(1_000)).unwrap_or(i64::MAX).max(1);
            let listable_from = (self.rng.f64() < spec.late_rate).then(|| plus_ms(created, self.rng.i64(0..late_ms)));
            let empty = self.rng.f64() < spec.empty_blob_rate;
            let count = if empty { 0 } else { spec.events_per_blob };
            let (mut events, mut shapes) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for _ in 0..count {
                let (raw, shape) = self.next_event(tenant, content_type, created, spec);
                events.push(raw);
                shapes.push(shape);
            }
            let blob = NewBlob { listable_from, events, ..NewBlob::at(created) };
            ids.push(self.publish(tenant, content_type, blob, &shapes));
        }
        ids
    }

    fn next_event(
        &mut self,
        tenant: &TenantId,
        content_type: ContentType,
        created: Timestamp,
        spec: &GenerateSpec,
    ) -> (Vec<u8>, Option<Irregularity>) {
        if self.rng.f64() < spec.copy_rate {
            let pick = self.rng.clone().usize(..);
            let reorder = self.rng.f64() < spec.reordered_share;
            let stream = self.stream(tenant, content_type);
            let source = pick.checked_rem(stream.sources.len()).and_then(|at| stream.sources.get(at)).cloned();
            if let Some((raw, shape)) = source {
                let reordered = if reorder { events::reorder_fields(&raw, &mut self.rng) } else { None };
                return (reordered.unwrap_or_else(|| raw.to_vec()), shape);
            }
        }
        let age_max_secs = if self.rng.f64() < spec.old_event_rate { 5 * 86_400 } else { 90 * 60 };
        let age = jiff::SignedDuration::from_secs(self.rng.i64(0..age_max_secs));
        let time = created.saturating_sub(age).unwrap_or(created);
        let mut time = Timestamp::from_second(time.as_second()).unwrap_or(time);
        let linked = spec.linked_rate > 0.0 && self.rng.f64() < spec.linked_rate;
        if linked && let Some((name, raw)) = links::event(&mut self.rng, tenant, content_type, time) {
            *self.ledger.made.entry(name).or_default() += 1;
            return (raw, None);
        }
        let pool = events::templates(content_type);
        let irregular = self.rng.f64() < spec.irregular_rate && !pool.irregular.is_empty();
        let pool = if irregular { &pool.irregular } else { &pool.regular };
        let Some(template) = self.rng.usize(..).checked_rem(pool.len()).and_then(|at| pool.get(at)) else {
            return (b"{}".to_vec(), None);
        };
        while template.wants_unique_time() && !self.placeholder_times.insert(time) {
            time = time.saturating_add(jiff::SignedDuration::from_secs(1)).unwrap_or(time);
        }
        let raw = template.fill(&mut self.rng, tenant, time);
        *self.ledger.made.entry(template.name).or_default() += 1;
        let sources = &mut self.stream(tenant, content_type).sources;
        sources.push_back((Bytes::from(raw.clone()), template.irregularity));
        if sources.len() > COPY_SOURCES_MAX {
            sources.pop_front();
        }
        (raw, template.irregularity)
    }

    /// The blobs of a window that can be listed now, after `after`, at most `limit`, and whether there are more.
    pub fn list(
        &mut self,
        stream: &StreamId,
        (start, end): (Timestamp, Timestamp),
        after: Option<&ListingPosition>,
        limit: usize,
        now: Timestamp,
    ) -> (Vec<ListedBlob>, Option<ListingPosition>) {
        let (order, seed) = (self.config.listing_order, self.config.seed);
        let Some(stream) = self.streams.get(stream) else { return (Vec::new(), None) };
        let from = match after {
            Some(position) if order == ListingOrder::Created => {
                let created =
                    Timestamp::from_millisecond(i64::try_from(position.rank).unwrap_or(i64::MAX)).unwrap_or(end);
                Bound::Excluded((created.max(start), Arc::from(position.id.as_str())))
            }
            _ => Bound::Included((start, Arc::from(""))),
        };
        let until = (end, Arc::from(""));
        if start >= end || matches!(&from, Bound::Excluded(key) if *key >= until) {
            return (Vec::new(), None);
        }
        let visible = stream
            .blobs
            .range((from, Bound::Excluded(until)))
            .map(|(_, blob)| blob)
            .filter(|blob| blob.listable_from <= now && !stream.subscription.hides(blob));
        let position = |blob: &SimBlob| ListingPosition { rank: order.rank(blob, seed), id: blob.id.to_string() };
        let mut page: Vec<&SimBlob> = match order {
            ListingOrder::Created => visible.take(limit + 1).collect(),
            ListingOrder::Shuffled => {
                let mut all: Vec<(ListingPosition, &SimBlob)> = visible.map(|blob| (position(blob), blob)).collect();
                all.retain(|(at, _)| after.is_none_or(|after| at > after));
                all.sort_by(|a, b| a.0.cmp(&b.0));
                all.into_iter().take(limit + 1).map(|(_, blob)| blob).collect()
            }
        };
        let more = page.len() > limit;
        page.truncate(limit);
        let next = if more { page.last().map(|blob| position(blob)) } else { None };
        let listed = |blob: &SimBlob| ListedBlob {
            id: blob.id.clone(),
            created: blob.created,
            expires: blob.expires,
            listed_created: blob.listed_created.clone(),
            listed_expiration: blob.listed_expiration.clone(),
        };
        (page.into_iter().map(listed).collect(), next)
    }

    /// The stream a blob belongs to, and the blob.
    pub fn blob(&mut self, content_id: &str) -> Option<(&StreamId, &mut SimBlob)> {
        let (key, (stream, created)) = self.names.get_key_value(content_id)?;
        let blob = self.streams.get_mut(stream)?.blobs.get_mut(&(*created, key.clone()))?;
        Some((stream, blob))
    }

    /// Counts a request against its pool; `false` when the pool is empty. `publisher` is `None` for callers without
    /// one, which share a pool.
    pub fn take_quota(&mut self, tenant: &TenantId, publisher: Option<&str>, now: Duration) -> bool {
        let Some(limit) = self.config.quota_per_minute else { return true };
        let counts = self.config.quota_counts;
        let key = publisher.map(|p| (tenant.clone(), p.to_ascii_lowercase()));
        self.quota.entry(key).or_default().take(limit, counts, now)
    }

    /// Withholds `count` events from one side, chosen by `seed` among those with a unique `Id` for which `may` is true;
    /// returns their ids, in the order made. Fewer if there are not enough.
    pub fn withhold(
        &mut self,
        tenant: &TenantId,
        (side, count, seed): (Side, usize, u64),
        may: &dyn Fn(&[u8]) -> bool,
    ) -> Vec<Arc<str>> {
        let mut uses: HashMap<Arc<str>, u32> = HashMap::new();
        for entry in &self.ledger.entries {
            entry.id.iter().for_each(|id| *uses.entry(id.clone()).or_default() += 1);
        }
        let is_free = |entry: &LedgerEvent| {
            entry.tenant == *tenant
                && entry.kept_from.is_none()
                && entry.id.as_ref().is_some_and(|id| uses.get(id) == Some(&1))
                && may(&entry.raw)
        };
        let entries = &self.ledger.entries;
        let mut free: Vec<usize> = (0..entries.len()).filter(|at| entries.get(*at).is_some_and(is_free)).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut free);
        free.truncate(count);
        free.sort_unstable();
        let mut ids = Vec::with_capacity(free.len());
        for &at in &free {
            if let Some(entry) = self.ledger.entries.get_mut(at) {
                entry.kept_from = Some(side);
                ids.extend(entry.id.clone());
            }
        }
        if side == Side::Feed {
            self.take_from_blobs(&free.into_iter().collect());
        }
        ids
    }

    /// Removes events, given by their places in the ledger, from the blobs that hold them.
    fn take_from_blobs(&mut self, gone: &HashSet<usize>) {
        let ledger = &self.ledger;
        let is_gone = |raw: &Bytes| {
            let known = ledger.fingerprints.get(&fingerprint(raw));
            known.is_some_and(|places| places.iter().any(|place| gone.contains(place)))
        };
        let names = gone.iter().filter_map(|at| ledger.entries.get(*at)).flat_map(|entry| entry.content_ids.clone());
        for name in names.collect::<HashSet<_>>() {
            let Some((stream, created)) = self.names.get(&name) else { continue };
            let blob = self.streams.get_mut(stream).and_then(|stream| stream.blobs.get_mut(&(*created, name)));
            if let Some(SimBlob { body: SimBlobBody::Events(events), .. }) = blob {
                *events = events.iter().filter(|raw| !is_gone(raw)).cloned().collect();
            }
        }
    }

    /// The results of a tenant's audit search at `now`: every event that happened, independent of the feed.
    pub fn search(&self, tenant: &TenantId, spec: &ExportSpec, now: Timestamp) -> Vec<SearchRow> {
        let created = |name: &Arc<str>| self.names.get(name).map(|(_, created)| *created);
        let row = |entry: &LedgerEvent| {
            let created = entry.content_ids.iter().filter_map(created).min()?;
            let told = EventFields::parse(&entry.raw).and_then(|fields| parse_event_time(&fields.creation_time));
            let time = told.unwrap_or(created);
            let is_within = spec.from.is_none_or(|from| from <= time) && spec.to.is_none_or(|to| time < to);
            (created <= now && is_within).then(|| SearchRow { raw: entry.raw.clone(), time })
        };
        let entries = self.ledger.entries.iter();
        entries
            .filter(|entry| entry.tenant == *tenant && entry.kept_from != Some(Side::Search))
            .filter_map(row)
            .collect()
    }

    pub fn truth(&self, now: Timestamp) -> Truth {
        let listable_age = jiff::SignedDuration::from_secs(self.config.listing_age_max_secs);
        let view = |id: &str| {
            let (stream, created) = self.names.get(id)?;
            let stream = self.streams.get(stream)?;
            let blob = stream.blobs.get(&(*created, Arc::from(id)))?;
            let listed_in_time = blob.created.saturating_add(listable_age).is_ok_and(|end| blob.listable_from < end);
            let hidden = stream.subscription.hides(blob) || !listed_in_time || blob.listable_from > now;
            Some((blob, hidden))
        };
        let mut created = Vec::with_capacity(self.ledger.entries.len());
        let events = self.ledger.entries.iter().map(|entry| {
            let blobs: Vec<(&SimBlob, bool)> = entry.content_ids.iter().filter_map(|id| view(id)).collect();
            created.push(blobs.iter().map(|(blob, _)| blob.created).collect());
            let expired = blobs.iter().all(|(blob, _)| blob.expires <= now && blob.reads == 0);
            TruthEvent {
                id: entry.id.clone(),
                tenant: entry.tenant.clone(),
                content_type: entry.content_type,
                content_ids: entry.content_ids.clone(),
                raw: entry.raw.clone(),
                listable_from: blobs.iter().map(|(blob, _)| blob.listable_from).min().unwrap_or(now),
                expires: blobs.iter().map(|(blob, _)| blob.expires).max().unwrap_or(now),
                expired_unread: expired,
                withheld: blobs.iter().all(|(_, hidden)| *hidden) || entry.kept_from == Some(Side::Feed),
                irregularity: entry.irregularity,
                optional: false,
            }
        });
        let events = events.collect();
        let mut huge: Vec<TruthHuge> = Vec::new();
        for (stream, held) in &self.streams {
            for blob in held.blobs.values() {
                if let SimBlobBody::Huge { body, count } = &blob.body {
                    huge.push(TruthHuge {
                        tenant: stream.tenant.clone(),
                        content_type: stream.content_type,
                        content_id: blob.id.clone(),
                        count: *count,
                        expired_unread: blob.expires <= now && blob.reads == 0,
                        withheld: view(&blob.id).is_none_or(|(_, hidden)| hidden),
                        body: body.clone(),
                    });
                }
            }
        }
        huge.sort_by(|a, b| a.content_id.cmp(&b.content_id));
        let blobs = || self.streams.values().flat_map(|stream| stream.blobs.values());
        Truth {
            events,
            huge,
            irregularities: self.ledger.irregularities.clone(),
            made: self.ledger.made.clone(),
            copies: self.ledger.copies,
            blobs: blobs().count() as u64,
            blobs_read: blobs().filter(|blob| blob.reads > 0).count() as u64,
            fingerprints: self.ledger.fingerprints.clone(),
            created,
        }
    }
}

/// The grants of one pool of callers.
#[derive(Default)]
struct QuotaPool {
    recent: VecDeque<Duration>,
    /// For a bucket: how much was used, and when.
    gone: f64,
    at: Duration,
}

impl QuotaPool {
    fn take(&mut self, limit: u32, counts: QuotaCounts, now: Duration) -> bool {
        if counts == QuotaCounts::Bucket {
            let refilled = now.saturating_sub(self.at).as_secs_f64() * f64::from(limit) / 60.0;
            self.gone = (self.gone - refilled).max(0.0);
            self.at = now;
            let free = self.gone + 1.0 <= f64::from(limit);
            self.gone += if free { 1.0 } else { 0.0 };
            return free;
        }
        let is_over = |at: Duration| match counts {
            QuotaCounts::FixedMinute => at.as_secs() / 60 < now.as_secs() / 60,
            QuotaCounts::Sliding | QuotaCounts::Bucket => now.saturating_sub(at) >= Duration::from_secs(60),
        };
        while self.recent.front().is_some_and(|at| is_over(*at)) {
            self.recent.pop_front();
        }
        let free = self.recent.len() < limit as usize;
        if free {
            self.recent.push_back(now);
        }
        free
    }
}

impl ListingOrder {
    fn rank(self, blob: &SimBlob, seed: u64) -> u64 {
        match self {
            Self::Created => u64::try_from(blob.created.as_millisecond()).unwrap_or(0),
            Self::Shuffled => {
                let hash = blake3::hash(blob.id.as_bytes());
                let mut first = [0; 8];
                first.copy_from_slice(&hash.as_bytes()[..8]);
                u64::from_le_bytes(first) ^ seed
            }
        }
    }
}

/// A content id of the observed form: two stamps, the type in two spellings, the scale unit.
fn content_id(content_type: ContentType, created: Timestamp, serial: u32) -> String {
    let stamp = created.strftime("%Y%m%d%H%M%S%3f").to_string();
    let name = content_type.as_str().replace('.', "_");
    format!("{stamp}{:06}${stamp}{serial:06}${}${name}$emea0036", serial % 1_000_000, name.to_ascii_lowercase())
}

fn plus_ms(time: Timestamp, ms: i64) -> Timestamp {
    time.saturating_add(jiff::SignedDuration::from_millis(ms)).unwrap_or(time)
}
