//! Selects the records of a batch that go to a sink, by subject and by size. A record that is left out counts as
//! delivered there; one that is too large is set aside without being sent.
//!
//! The selection uses the facts that were stored when the record was made, never its text, so that it is the same in
//! every format.

use crate::config::SelectionConfig;
use crate::host::{Batch, EventKind, Kind, Record, Unfit};
use crate::normalise::category::Category;
use crate::severity::Severity;
use crate::severity::pattern::Pattern;

/// The selection of a sink; by default all records.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    min_severity: Option<Severity>,
    /// None: all.
    categories: Vec<Category>,
    /// None: all.
    event_types: Vec<Pattern>,
    record_bytes_max: Option<usize>,
}

/// The records of a batch for one sink.
#[derive(Debug, Default)]
pub(super) struct BatchShare {
    /// The places of its records in the batch; `None`: all of them.
    places: Option<Vec<usize>>,
    /// How many are left out.
    pub(super) filtered: u64,
    /// Those that are set aside.
    pub(super) too_large: Vec<Unfit>,
}

impl Selection {
    /// As configured.
    pub fn of(config: &SelectionConfig) -> Self {
        Self {
            min_severity: config.min_severity.as_deref().and_then(Severity::of_word),
            categories: config.categories.iter().filter_map(|name| Category::from_name(name)).collect(),
            event_types: config.event_types.iter().map(|text| Pattern::new(text)).collect(),
            record_bytes_max: config.record_bytes_max.and_then(|bytes| usize::try_from(bytes).ok()),
        }
    }

    /// The records of `batch` for this sink.
    pub(super) fn share(&self, batch: &Batch) -> BatchShare {
        let mut share = BatchShare::default();
        let mut places = Vec::new();
        for (place, record) in batch.records().enumerate() {
            let bytes = record.json.len();
            match self.record_bytes_max.filter(|max| bytes > *max) {
                _ if !self.takes(&record) => share.filtered += 1,
                Some(max) => {
                    let why = format!("the record has {bytes} bytes, `record_bytes_max` of the sink is {max}");
                    share.too_large.push(Unfit { record: place, why });
                }
                None => places.push(place),
            }
        }
        share.places = (places.len() < batch.len()).then_some(places);
        share
    }

    /// Whether a record goes to this sink, whatever its size. A missing fact never excludes a record.
    fn takes(&self, record: &Record<'_>) -> bool {
        if self.min_severity.is_none() && self.categories.is_empty() && self.event_types.is_empty() {
            return true;
        }
        let (category, event_type) = match record.kind() {
            Some(Kind::Notice) => return true,
            Some(Kind::Event(EventKind { category, event_type })) => (Some(category), Some(event_type)),
            None => (None, None),
        };
        self.min_severity.is_none_or(|least| record.severity() >= least)
            && category.is_none_or(|category| self.categories.is_empty() || self.categories.contains(&category))
            && event_type.is_none_or(|event_type| {
                self.event_types.is_empty() || Pattern::any(&self.event_types, event_type.as_str())
            })
    }
}

impl BatchShare {
    /// Whether the sink gets no record.
    pub(super) fn is_empty(&self) -> bool {
        self.places.as_ref().is_some_and(Vec::is_empty)
    }

    /// The records for the sink.
    pub(super) fn of(&self, batch: &Batch) -> Batch {
        match &self.places {
            None => batch.clone(),
            Some(places) => batch.copy_of(places),
        }
    }

    /// The records of the whole batch that the sink will never have, given those it rejected of its share.
    pub(super) fn unfit(&self, refused: Vec<Unfit>) -> Vec<Unfit> {
        let placed = |unfit: Unfit| match &self.places {
            None => Some(unfit),
            Some(places) => Some(Unfit { record: *places.get(unfit.record)?, ..unfit }),
        };
        let mut unfit: Vec<Unfit> = refused.into_iter().filter_map(placed).chain(self.too_large.clone()).collect();
        unfit.sort_by_key(|unfit| unfit.record);
        unfit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{BatchBuilder, Noted};
    use crate::model::{ContentType, Timestamp};

    fn event(category: Category, event_type: &str) -> Option<Kind> {
        Some(Kind::Event(EventKind { category, event_type: event_type.as_bytes().into() }))
    }

    /// One record of each: what it is about, its severity and its bytes.
    fn batch(records: &[(Option<Kind>, Severity, usize)]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (kind, severity, bytes) in records {
            builder.push_with(|out| {
                out.resize(out.len() + bytes, b'x');
                Some(Noted { time: Timestamp::UNIX_EPOCH, severity: Some(*severity), kind: kind.clone() })
            });
        }
        builder.finish("s".into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
    }

    fn selection(keys: &str) -> Selection {
        Selection::of(&toml::from_str(keys).unwrap())
    }

    #[test]
    fn a_record_goes_where_all_keys_fit_and_records_of_ours_and_unknown_ones_go_everywhere() {
        let batch = batch(&[
            (event(Category::Email, "m365.exchange.send"), Severity::High, 3),
            (event(Category::Email, "m365.exchange.mailitemsaccessed"), Severity::Info, 3),
            (event(Category::File, "m365.sharepoint.filedeleted"), Severity::Critical, 3),
            (Some(Kind::Notice), Severity::Info, 3),
            (None, Severity::Medium, 3),
        ]);
        for (keys, expected) in [
            ("", &[0, 1, 2, 3, 4][..]),
            ("min_severity = \"info\"", &[0, 1, 2, 3, 4]),
            ("min_severity = \"high\"", &[0, 2, 3]),
            ("categories = [\"file\"]", &[2, 3, 4]),
            ("categories = [\"email\", \"file\"]", &[0, 1, 2, 3, 4]),
            ("event_types = [\"M365.*.Send\"]", &[0, 3, 4]),
            ("event_types = [\"m365.exchange\"]", &[3, 4]),
            ("min_severity = \"low\"\ncategories = [\"email\"]\nevent_types = [\"*\"]", &[0, 3, 4]),
            ("min_severity = \"critical\"\ncategories = [\"email\"]", &[3]),
        ] {
            let share = selection(keys).share(&batch);
            let places: Vec<usize> = share.places.clone().unwrap_or_else(|| (0..batch.len()).collect());
            assert_eq!((&places[..], share.filtered as usize), (expected, batch.len() - expected.len()), "{keys}");
        }
    }

    #[test]
    fn what_is_refused_of_a_share_is_named_by_its_place_in_the_whole() {
        let high = |bytes| (event(Category::Email, "m365.exchange.send"), Severity::High, bytes);
        let low = (event(Category::Email, "m365.exchange.send"), Severity::Low, 5000);
        let batch = batch(&[low, high(2000), high(3), high(1024), high(1025)]);
        let share = selection("min_severity = \"high\"\nrecord_bytes_max = 1024").share(&batch);
        assert_eq!((share.filtered, share.is_empty()), (1, false));
        let given = share.of(&batch);
        assert_eq!(given.records().map(|record| record.json.len()).collect::<Vec<_>>(), [3, 1024]);
        assert_eq!(given.ndjson().len(), 3 + 1 + 1024 + 1);
        assert_eq!(given.records().next().unwrap().kind(), high(0).0);
        let unfit = share.unfit(vec![Unfit { record: 1, why: "no".into() }]);
        let told: Vec<(usize, &str)> = unfit.iter().map(|unfit| (unfit.record, unfit.why.as_str())).collect();
        let too_large = |bytes| format!("the record has {bytes} bytes, `record_bytes_max` of the sink is 1024");
        assert_eq!(told, [(1, &*too_large(2000)), (3, "no"), (4, &*too_large(1025))]);
    }

    #[test]
    fn a_share_of_everything_is_the_batch_itself() {
        let batch = batch(&[(None, Severity::Low, 3)]);
        let share = selection("record_bytes_max = 1024").share(&batch);
        assert_eq!(share.of(&batch).id, batch.id);
    }
}
