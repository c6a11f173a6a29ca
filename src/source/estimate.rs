//! Estimates a tenant's volume: events and bytes a day, by content type, severity and format, from the listing of the
//! last 24 hours and a sample of its blobs.
//!
//! It reads only: no subscription is started, no state opened, nothing delivered. The number of requests is bounded,
//! half of them for listings at most. The blobs read are a sample, and sizes of blobs differ by orders of magnitude, so
//! each total comes with its error.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::M365Audit;
use super::error::SourceError;
use super::server_time::ServerTime;
use crate::api::{ApiClient, ApiError};
use crate::config::Format;
use crate::model::{Actionable, BlobRef, ContentType, Timestamp, Window};
use crate::normalise::split::{Piece, Splitter};
use crate::normalise::{BlobContext, Event, Normaliser, NormaliserSettings, Rendered};
use crate::plan::floor_to_second;
use crate::severity::Severity;

/// Requests to the feed for one source, by default.
pub const REQUESTS_DEFAULT: u32 = 60;
/// The minimum for an estimate: the subscriptions, and a page and a blob of each content type.
pub const REQUESTS_MIN: u32 = 11;
/// The time span that is listed.
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// The reported error in standard errors: in 19 of 20 samples the true value lies within it.
const STANDARD_ERRORS: f64 = 1.96;

/// Every format, in the order in which it is shown.
pub const FORMATS: [Format; 4] = [Format::Native, Format::Ecs, Format::Ocsf, Format::Raw];

/// Events, and their bytes as records.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Volume {
    /// How many.
    pub events: f64,
    /// Bytes in each of [`FORMATS`], line breaks among them.
    pub bytes: [f64; 4],
}

impl Volume {
    fn add(&mut self, other: &Volume, factor: f64) {
        self.events += other.events * factor;
        for (own, more) in self.bytes.iter_mut().zip(other.bytes) {
            *own += more * factor;
        }
    }
}

/// The estimate for one content type and day.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TypeEstimate {
    /// Blobs.
    pub blobs: f64,
    /// Bytes to be downloaded, unpacked.
    pub downloaded: f64,
    /// What is delivered, by severity.
    pub delivered: BTreeMap<Severity, Volume>,
    /// Events that `drop_routine` drops; events that data loss prevention flagged are still delivered.
    pub dropped: f64,
    /// How far the number of events may be off, in events.
    pub error: f64,
    /// Blobs that were listed.
    pub listed: u64,
    /// Whether `listed` covers the whole time span; otherwise it covers a part, from which the totals are extrapolated.
    pub is_whole: bool,
    /// Blobs that were read.
    pub read: u64,
    /// Elements in them that are not events, or are damaged.
    pub bad: u64,
}

impl TypeEstimate {
    /// What is delivered, of all severities.
    pub fn all(&self) -> Volume {
        let mut all = Volume::default();
        self.delivered.values().for_each(|volume| all.add(volume, 1.0));
        all
    }
}

/// The estimate for a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The time that was listed.
    pub window: (Timestamp, Timestamp),
    /// Requests that were made to the feed.
    pub requests: u32,
    /// By content type: the estimate, or why there is none, and the remedy.
    pub types: BTreeMap<ContentType, Result<TypeEstimate, (String, String)>>,
}

/// Requests that are left.
struct RequestBudget {
    left: u32,
    made: u32,
}

impl RequestBudget {
    fn take(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.made += 1;
        true
    }
}

/// Estimates with at most so many requests to the feed; signing in is not one.
///
/// # Errors
/// No request to Microsoft succeeds.
pub async fn estimate(source: &M365Audit, requests_max: u32) -> Result<Estimate, SourceError> {
    let server = ServerTime::new(source.clock().clone());
    let api = source.client(&server)?;
    let meter = Meter::new(source)?;
    let mut budget = RequestBudget { left: requests_max.max(REQUESTS_MIN), made: 0 };
    budget.take();
    let listed = api.list_subscriptions().await.map_err(|error| SourceError::Api { source: Box::new(error) })?;
    // Rounded to whole seconds, as in the request: Microsoft refuses a window that is a second too long.
    let end = floor_to_second(server.for_requests());
    let window = Window { start: end.checked_sub(DAY).unwrap_or(end), end };
    let mut types = BTreeMap::new();
    let mut listings = Vec::new();
    let asked = &source.config().content_types;
    let pages_max = (budget.left / 2 / u32::try_from(asked.len()).unwrap_or(1).max(1)).max(1);
    for &content_type in asked {
        if !listed.iter().any(|s| s.content_type == Some(content_type) && s.is_enabled() != Some(false)) {
            let why = "it is not subscribed, so nothing of it is listed".to_owned();
            types.insert(content_type, Err((why, "`m365-audit run` subscribes; ask again a day later".to_owned())));
            continue;
        }
        match SampledListing::read(&api, content_type, window, pages_max, &mut budget).await {
            Ok(listing) => listings.push((content_type, listing)),
            Err(error) => drop(types.insert(content_type, Err((error.to_string(), error.hint())))),
        }
    }
    let shares = shares(budget.left, &listings.iter().map(|(_, listing)| listing.blobs.len()).collect::<Vec<_>>());
    for ((content_type, listing), share) in listings.into_iter().zip(shares) {
        let mut sample = TypeSample::default();
        for blob in spread(&listing.blobs, share) {
            if !budget.take() {
                break;
            }
            match sample.read(&api, blob, &meter, source).await {
                Ok(()) => {}
                // A blob that cannot be read now is left out of the sample.
                Err(error) => sample.failed = Some((error.to_string(), error.hint())),
            }
        }
        types.insert(content_type, sample.estimate(&listing));
    }
    Ok(Estimate { window: (window.start, window.end), requests: budget.made, types })
}

/// The blobs that were listed.
struct SampledListing {
    blobs: Vec<BlobRef>,
    is_whole: bool,
    /// The part of a day it covers, from 0 to 1.
    part: f64,
}

impl SampledListing {
    async fn read(
        api: &ApiClient,
        content_type: ContentType,
        window: Window,
        pages_max: u32,
        budget: &mut RequestBudget,
    ) -> Result<Self, ApiError> {
        let (mut blobs, mut next, mut pages) = (Vec::new(), None, 0);
        let is_whole = loop {
            if pages == pages_max || !budget.take() {
                break false;
            }
            let page = api.list_content(content_type, window, next.as_ref()).await?;
            pages += 1;
            blobs.extend(page.blobs);
            next = page.next;
            if next.is_none() {
                break true;
            }
        };
        blobs.sort_by(|a: &BlobRef, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        blobs.dedup_by(|a, b| a.id == b.id);
        // Pages come roughly in order of time, so the pages read cover a part of the day.
        let of = |first: &BlobRef, last: &BlobRef| last.created.duration_since(first.created).as_secs_f64();
        let span = blobs.first().zip(blobs.last()).map_or(0.0, |(first, last)| of(first, last));
        // From the first to the last there is one interval fewer than blobs.
        let span = span * blobs.len() as f64 / blobs.len().saturating_sub(1).max(1) as f64;
        let part = if is_whole { 1.0 } else { (span / DAY.as_secs_f64()).clamp(1.0 / 86_400.0, 1.0) };
        Ok(Self { blobs, is_whole, part })
    }
}

/// How many blobs of each content type are read: equal shares, and a share that one type does not need goes to the
/// others.
fn shares(requests: u32, listed: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; listed.len()];
    let mut left = requests as usize;
    loop {
        let before = left;
        for (share, listed) in shares.iter_mut().zip(listed) {
            if left > 0 && *share < *listed {
                *share += 1;
                left -= 1;
            }
        }
        if left == before || left == 0 {
            return shares;
        }
    }
}

/// Picks `count` of the blobs, spread evenly over the day, since a tenant's activity differs at night.
fn spread(blobs: &[BlobRef], count: usize) -> impl Iterator<Item = &BlobRef> {
    let count = count.min(blobs.len());
    // The middle of each of `count` equal parts.
    (0..count).filter_map(move |n| blobs.get((2 * n + 1) * blobs.len() / (2 * count)))
}

/// Makes records in every format, for their length.
struct Meter {
    normalisers: Vec<Normaliser>,
}

impl Meter {
    fn new(source: &M365Audit) -> Result<Self, SourceError> {
        let settings = source.settings()?;
        // A format that carries the severity comes first, since the raw format does not.
        let of = |format: &Format| Normaliser::new(NormaliserSettings { format: *format, ..settings.clone() });
        Ok(Self { normalisers: FORMATS.iter().map(of).collect() })
    }

    /// The severity and the length in each format; `None` when the event is left out.
    fn measure(&self, event: &Event<'_>, blob: &BlobContext<'_>) -> Option<(Severity, [f64; 4])> {
        let (mut severity, mut bytes, mut out) = (Severity::Info, [0.0; 4], Vec::new());
        for (normaliser, bytes) in self.normalisers.iter().zip(&mut bytes) {
            out.clear();
            match normaliser.render(event, blob, &mut out) {
                Rendered::Dropped { .. } => return None,
                Rendered::Record { severity: found, .. } => severity = found.unwrap_or(severity),
            }
            *bytes = out.len() as f64 + 1.0;
        }
        Some((severity, bytes))
    }
}

/// The sample read of a content type.
#[derive(Default)]
struct TypeSample {
    blobs: u64,
    downloaded: f64,
    delivered: BTreeMap<Severity, Volume>,
    dropped: f64,
    bad: u64,
    /// Events of each blob.
    events: Vec<f64>,
    failed: Option<(String, String)>,
}

impl TypeSample {
    async fn read(
        &mut self,
        api: &ApiClient,
        blob: &BlobRef,
        meter: &Meter,
        source: &M365Audit,
    ) -> Result<(), ApiError> {
        let context = BlobContext {
            tenant: &source.config().tenant_id,
            content_type: blob.content_type,
            content_id: &blob.id,
            content_created: blob.created,
        };
        let mut body = api.fetch_blob(blob).await?;
        let mut splitter = Splitter::new();
        // A body that ends half-way is not counted.
        let mut of_blob = TypeSample::default();
        while let Some(chunk) = body.chunk().await? {
            of_blob.downloaded += chunk.len() as f64;
            splitter.push(chunk);
            while let Some(piece) = splitter.next() {
                of_blob.take(&piece, meter, &context);
            }
        }
        splitter.finish();
        while let Some(piece) = splitter.next() {
            of_blob.take(&piece, meter, &context);
        }
        self.blobs += 1;
        self.downloaded += of_blob.downloaded;
        self.dropped += of_blob.dropped;
        self.bad += of_blob.bad;
        self.events.push(of_blob.delivered.values().map(|volume| volume.events).sum::<f64>() + of_blob.dropped);
        for (severity, volume) in of_blob.delivered {
            self.delivered.entry(severity).or_default().add(&volume, 1.0);
        }
        Ok(())
    }

    fn take(&mut self, piece: &Piece, meter: &Meter, context: &BlobContext<'_>) {
        let event = match piece {
            Piece::Element { bytes, .. } => Event::parse(bytes).ok(),
            _ => None,
        };
        let Some(event) = event else {
            self.bad += 1;
            return;
        };
        match meter.measure(&event, context) {
            Some((severity, bytes)) => {
                self.delivered.entry(severity).or_default().add(&Volume { events: 1.0, bytes }, 1.0);
            }
            None => self.dropped += 1.0,
        }
    }

    /// The volume of a day, assuming that unread blobs are like those read.
    fn estimate(self, listing: &SampledListing) -> Result<TypeEstimate, (String, String)> {
        let listed = listing.blobs.len() as u64;
        if let (0, Some(failed)) = (self.blobs, self.failed) {
            return Err(failed);
        }
        if self.blobs == 0 && listed > 0 {
            let why = format!("{listed} blobs are listed, and no request was left to read one");
            return Err((why, "allow more with --requests".to_owned()));
        }
        let blobs = listed as f64 / listing.part;
        let factor = if self.blobs == 0 { 0.0 } else { blobs / self.blobs as f64 };
        let mut delivered: BTreeMap<Severity, Volume> = BTreeMap::new();
        for (severity, volume) in &self.delivered {
            delivered.entry(*severity).or_default().add(volume, factor);
        }
        Ok(TypeEstimate {
            blobs,
            downloaded: self.downloaded * factor,
            delivered,
            dropped: self.dropped * factor,
            error: error_of(&self.events, blobs),
            listed,
            is_whole: listing.is_whole,
            read: self.blobs,
            bad: self.bad,
        })
    }
}

/// How far `blobs` times the mean of the sample may be off; 0 when all blobs were read.
fn error_of(sample: &[f64], blobs: f64) -> f64 {
    let count = sample.len() as f64;
    if count >= blobs {
        return 0.0;
    }
    let mean = sample.iter().sum::<f64>() / count;
    if count < 2.0 {
        // The spread cannot be estimated from one blob.
        return mean * blobs;
    }
    let variance = sample.iter().map(|events| (events - mean).powi(2)).sum::<f64>() / (count - 1.0);
    STANDARD_ERRORS * blobs * (variance / count).sqrt() * (1.0 - count / blobs).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_type_does_not_need_is_for_the_others_and_no_request_is_spent_twice() {
        for (requests, listed, expected) in [
            (10, &[100, 100][..], &[5, 5][..]),
            (10, &[2, 100, 0], &[2, 8, 0]),
            (3, &[100, 100, 100, 100], &[1, 1, 1, 0]),
            (100, &[2, 3], &[2, 3]),
            (0, &[2], &[0]),
            (7, &[], &[]),
        ] {
            assert_eq!(shares(requests, listed), expected, "{requests} for {listed:?}");
        }
    }

    #[test]
    fn the_error_is_none_when_all_was_read_and_grows_with_how_blobs_differ() {
        assert_eq!(error_of(&[1.0, 9.0], 2.0), 0.0);
        assert_eq!(error_of(&[5.0, 5.0, 5.0], 100.0), 0.0, "all alike");
        assert_eq!(error_of(&[5.0], 10.0), 50.0, "one says nothing of the others");
        // Mean 5, deviation 4: 1.96 × 100 × 4 / √4 × √(1 − 4/100).
        let error = error_of(&[1.0, 9.0, 1.0, 9.0], 100.0);
        let expected = 1.96 * 100.0 * (64.0_f64 / 3.0 / 4.0).sqrt() * 0.96_f64.sqrt();
        assert!((error - expected).abs() < 1e-9, "{error} and {expected}");
    }
}
