//! The comparison, in order: the rows, the evidence on them, and a look-up of the rows without evidence.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use jiff::SignedDuration;
use tokio::runtime::Handle;

use super::class::{ClassCounts, ClassTerms, ComparedStream, Row, RowClass, found};
use super::evidence::{self, DuplicateKeys, EvidenceReach, Known, NoMarks, SetAsideKeys};
use super::identities::KeptRows;
use super::marks::{DropRules, Marks};
use super::ours::OnlyOurs;
use super::passes::{
    ExportRows, LookUp, OurRecords, Ours, RowFacts, SavedGraphQuery, id_hash, id_of_record, identity_beside,
};
use super::rows::RowSet;
use super::spool::Spool;
use super::table::LookupTable;
use super::verdict::{Unreadable, Verdict};
use super::witness::ExportWitness;
use crate::checkpoint::format::Keys;
use crate::checkpoint::heal::StoredHeal;
use crate::checkpoint::lateness;
use crate::exports::input::{Input, InputError, StopReading};
use crate::exports::pipeline::{self, BadItem, Item};
use crate::exports::place::InputPlace;
use crate::host::{StateError, StateStore};
use crate::model::{ContentType, TenantId, Timestamp, counted};
use crate::normalise::{Event, Normaliser};

/// The number of rows that are looked up together, so that a page of keys is read once for many.
const ASKED_MAX: usize = 4096;
/// The most unreadable rows, problems and notes that are reported one by one.
const TOLD_MAX: usize = 100;
/// The size of the set-aside records that are read at once.
const ASIDE_BYTES: usize = 4 * 1024 * 1024;

/// Opens inputs. Each is read once.
pub type OpenInputs<'a> = dyn Fn() -> io::Result<Vec<Input<'static>>> + Sync + 'a;

/// The inputs of a comparison.
pub struct CompareRequest<'a> {
    /// The source's name.
    pub source: String,
    /// Its tenant.
    pub tenant: TenantId,
    /// The content types it reads.
    pub content_types: Vec<ContentType>,
    /// Bound on its event keys.
    pub event_keys_max: u64,
    /// Its rules, if it drops routine events.
    pub dropping: Option<Normaliser>,
    /// The export.
    pub export: &'a OpenInputs<'a>,
    /// Records that were delivered.
    pub delivered: Option<&'a OpenInputs<'a>>,
    /// The state, for reading only.
    pub store: Option<Arc<dyn StateStore>>,
    /// Receipts.
    pub receipts: Option<Arc<dyn Known>>,
    /// Younger events may be on their way.
    pub settle: SignedDuration,
    /// The range of the search, if the operator gave it.
    pub asked: (Option<Timestamp>, Option<Timestamp>),
    /// The time.
    pub now: Timestamp,
}

/// Why the comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A temporary file cannot be used, or standard input not be read again.
    #[error("a temporary file cannot be used: {0}")]
    Temporary(#[from] io::Error),
}

/// Compares. Blocks: call it where that is allowed; `runtime` reads the state meanwhile.
///
/// # Errors
/// The state cannot be read, or no temporary file be written.
pub fn compare(request: &CompareRequest<'_>, runtime: &Handle) -> Result<Verdict, CompareError> {
    let keys = Keys::of(&request.tenant);
    // Positions are read first, so that events delivered while the rest is read are not reported as missing.
    let streams = match &request.store {
        Some(store) => runtime.block_on(evidence::streams(&**store, &keys, &request.content_types))?,
        None => request
            .content_types
            .iter()
            .map(|t| ComparedStream { content_type: *t, position: None, late: lateness::AT_LEAST })
            .collect(),
    };
    let healed = match &request.store {
        Some(store) => runtime.block_on(StoredHeal::load(&**store, &keys))?,
        None => StoredHeal::default(),
    };
    let unnamed_before = unnamed_before(request, runtime)?;
    let mut export = ExportPass::read(request, unnamed_before)?;
    export.notes.extend(of_healed(&healed, &request.content_types));
    export.witness.asked(request.asked.0, request.asked.1);
    let mut known = Knowledge::new(request, streams, unnamed_before)?;
    known.gather(request, &export, &keys, runtime)?;
    known.look_up(&mut export, runtime)?;
    verdict(request, export, known)
}

/// Before this time no receipt names the rule that dropped an event; `None` if receipts always do, or no rule can be asked.
fn unnamed_before(request: &CompareRequest<'_>, runtime: &Handle) -> Result<Option<Timestamp>, CompareError> {
    if request.dropping.is_none() || request.store.is_none() {
        return Ok(None);
    }
    let Some(receipts) = &request.receipts else { return Ok(Some(Timestamp::MAX)) };
    Ok(runtime.block_on(receipts.visit(&mut NoMarks))?.map_or(Some(Timestamp::MAX), EvidenceReach::since))
}

/// Notes on intervals that were filled through Microsoft Graph.
fn of_healed(healed: &StoredHeal, content_types: &[ContentType]) -> Vec<String> {
    let note = |content_type: &ContentType| {
        let all = healed.healed_of(*content_type);
        let (first, last) = (all.first()?, all.iter().map(|healed| healed.to).max()?);
        Some(format!(
            "{content_type} was filled through Microsoft Graph {}, from {} to {last}: there the export and what was delivered are of the same source, so that neither shows what Microsoft's search lacks",
            if all.len() == 1 { "once".to_owned() } else { format!("in {} intervals", all.len()) },
            first.from
        ))
    };
    let not_known = |content_type: &ContentType| {
        let all = healed.not_known_of(*content_type);
        let (from, to) = (all.iter().map(|part| part.from).min()?, all.iter().map(|part| part.to).max()?);
        let events = counted(all.iter().map(|part| part.events).sum(), "event");
        Some(format!(
            "{content_type} has a gap from {from} to {to} that stays open, since nobody knows whether {events} of before it were delivered (heal-not-known)"
        ))
    };
    content_types.iter().filter_map(note).chain(content_types.iter().filter_map(not_known)).collect()
}

/// The result of a pass over the export.
struct ExportPass {
    rows: RowSet,
    /// What each of them can be looked up by.
    kept: KeptRows,
    /// Rows whose event has no `Id`.
    nameless: Vec<Row>,
    count: u64,
    repeated: u64,
    bad: u64,
    unreadable: Vec<Unreadable>,
    /// The end of the last bad bytes.
    bad_end: Option<(Arc<str>, u64)>,
    witness: ExportWitness,
    unopened: Vec<String>,
    broken: Vec<String>,
    notes: Vec<String>,
}

impl ExportPass {
    fn read(request: &CompareRequest<'_>, unnamed_before: Option<Timestamp>) -> Result<ExportPass, CompareError> {
        let plausible = request.now.saturating_add(SignedDuration::from_hours(24)).unwrap_or(request.now);
        let mut export = ExportPass {
            rows: RowSet::default(),
            kept: KeptRows::new()?,
            nameless: Vec::new(),
            count: 0,
            repeated: 0,
            bad: 0,
            unreadable: Vec::new(),
            bad_end: None,
            witness: ExportWitness::default(),
            unopened: Vec::new(),
            broken: Vec::new(),
            notes: Vec::new(),
        };
        let rows = ExportRows { dropping: request.dropping.as_ref().zip(unnamed_before) };
        let inputs = (request.export)()?;
        let mut failed = None;
        let _ = pipeline::read(inputs, &rows, &mut |item| {
            export.take(item, &rows, plausible).map_err(|error| {
                failed = Some(error);
                StopReading
            })
        });
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(export),
        }
    }

    fn take(&mut self, item: Item<'_, RowFacts>, rows: &ExportRows<'_>, plausible: Timestamp) -> io::Result<()> {
        match item {
            Item::Event(read, RowFacts { query: Some(query), .. }, _) => self.query(&query, &read.place),
            Item::Event(read, facts, kept) => self.row(&read.place.file, facts, kept, plausible)?,
            Item::Bad(bad) => return self.bad(bad, rows, plausible),
            Item::Problem(InputError::Open { name, source }) => {
                push_few(&mut self.unopened, format!("`{name}`: {source}"));
            }
            Item::Problem(error) => {
                if matches!(error, InputError::Cut { .. }) {
                    self.witness.says(error.to_string());
                }
                push_few(&mut self.broken, error.to_string());
            }
            Item::Truncated(place) => self.witness.says(truncated(place)),
            Item::Note(note) => push_few(&mut self.notes, note),
            Item::Notice(_) | Item::Pause => return Ok(()),
        }
        self.bad_end = None;
        Ok(())
    }

    fn row(&mut self, file: &Arc<str>, facts: RowFacts, kept: &[u8], plausible: Timestamp) -> io::Result<()> {
        self.count += 1;
        self.witness.row(file, facts.time, plausible);
        match facts.key {
            None => self.nameless.push(facts.row),
            Some(key) if self.rows.insert(key, facts.alias, facts.row) => self.kept.add(kept)?,
            Some(_) => self.repeated += 1,
        }
        Ok(())
    }

    /// Takes Graph's data on the query from which the export comes.
    fn query(&mut self, query: &SavedGraphQuery, place: &InputPlace) {
        if query.is_truncated {
            self.witness.says(truncated(place));
        }
        self.witness.asked(query.from, query.to);
    }

    /// Takes bytes without an event: Graph's data on a query, a row with its event's identity in other columns, or a
    /// row that cannot be read.
    fn bad(&mut self, bad: &BadItem, rows: &ExportRows<'_>, plausible: Timestamp) -> io::Result<()> {
        if let Some(query) = SavedGraphQuery::of(&bad.bytes).filter(|_| bad.is_unknown) {
            self.query(&query, &bad.place);
            return Ok(());
        }
        let end = bad.place.offset + bad.bytes.len() as u64;
        let goes_on = |(file, at): &(Arc<str>, u64)| *file == bad.place.file && *at == bad.place.offset;
        let is_piece = bad.table.is_none() && !bad.is_unknown;
        let is_more = is_piece && self.bad_end.as_ref().is_some_and(goes_on);
        self.bad_end = is_piece.then(|| (bad.place.file.clone(), end));
        if is_more {
            return Ok(());
        }
        if let Some(identity) = identity_beside(bad)
            && let Ok(event) = Event::parse(&identity)
        {
            let mut kept = Vec::new();
            let facts = rows.keep(RowFacts::of(&event), &event, None, &mut kept);
            return self.row(&bad.place.file, facts, &kept, plausible);
        }
        self.count += 1;
        self.bad += 1;
        self.witness.row(&bad.place.file, None, plausible);
        if self.unreadable.len() < TOLD_MAX {
            self.unreadable.push(Unreadable { place: bad.place.to_string(), why: bad.why.clone() });
        }
        Ok(())
    }
}

fn truncated(place: &InputPlace) -> String {
    format!("{place}: the query found more rows than Microsoft Graph returned (`isRecordCountLimitExceeded`)")
}

fn push_few(list: &mut Vec<String>, text: String) {
    if list.len() < TOLD_MAX {
        list.push(text);
    }
}

/// The evidence on the rows, and the results derived from it.
struct Knowledge {
    terms: ClassTerms,
    rules: DropRules,
    /// Of rows before this time the rules were asked ([`unnamed_before`]).
    unnamed_before: Option<Timestamp>,
    /// Ids of records without an event, with their evidence.
    ids: LookupTable<u8>,
    only_ours: Option<u64>,
    ours: Spool,
    missing: Spool,
    keys: Option<DuplicateKeys>,
    evidence: Vec<String>,
    notes: Vec<String>,
    unopened: Vec<String>,
    broken: Vec<String>,
}

impl Knowledge {
    fn new(
        request: &CompareRequest<'_>,
        streams: Vec<ComparedStream>,
        unnamed_before: Option<Timestamp>,
    ) -> Result<Knowledge, CompareError> {
        let terms = ClassTerms {
            now: request.now,
            settle: request.settle,
            streams,
            has_state: request.store.is_some(),
            reach: None,
        };
        Ok(Knowledge {
            terms,
            rules: DropRules::default(),
            unnamed_before,
            ids: LookupTable::default(),
            only_ours: None,
            ours: Spool::new()?,
            missing: Spool::new()?,
            keys: None,
            evidence: Vec::new(),
            notes: Vec::new(),
            unopened: Vec::new(),
            broken: Vec::new(),
        })
    }

    /// Marks rows by all evidence with a canonical key: the hold, set-aside records, receipts, delivered records.
    fn gather(
        &mut self,
        request: &CompareRequest<'_>,
        export: &ExportPass,
        keys: &Keys,
        runtime: &Handle,
    ) -> Result<(), CompareError> {
        let (mut reaches, mut unnamed_before) = (Vec::new(), self.unnamed_before);
        if let Some(store) = &request.store {
            self.read_waiting(store, request, export, keys, runtime)?;
        }
        if let Some(receipts) = &request.receipts {
            let mut marks = Marks::new(&export.rows, &mut self.rules);
            if let Some(reach) = runtime.block_on(receipts.visit(&mut marks))? {
                self.only_ours = Some(marks.only_ours()?);
                unnamed_before = reach.since();
                self.evidence.push("receipts".into());
                reaches.push(reach);
            }
            // Events that were put on hold or set aside before their receipt was read.
            if let Some(store) = &request.store {
                self.read_waiting(store, request, export, keys, runtime)?;
            }
        }
        if let Some(open) = request.delivered {
            self.read_delivered(open, export)?;
            self.evidence.push("records given as delivered".into());
        }
        if let Some(store) = &request.store {
            let duplicates = runtime.block_on(DuplicateKeys::load(store.clone(), keys))?;
            let born = evidence::born(&self.terms.streams);
            reaches.push(duplicates.reach(born, request.now, request.event_keys_max));
            self.keys = Some(duplicates);
            self.evidence.push("duplicate keys and positions of the state".into());
        } else {
            self.notes
                .push("there is no state: what was given as delivered is taken for all that was delivered".into());
        }
        self.terms.reach = reaches.into_iter().min().and_then(EvidenceReach::since);
        if request.dropping.is_some() && request.store.is_some() && unnamed_before > self.unnamed_before {
            // Receipts were removed, or switched off, while the export was read: a rule may have dropped events of before.
            self.terms.reach = self.terms.reach.max(unnamed_before);
        }
        Ok(())
    }

    /// Marks the rows whose events the state holds or has set aside.
    fn read_waiting(
        &mut self,
        store: &Arc<dyn StateStore>,
        request: &CompareRequest<'_>,
        export: &ExportPass,
        keys: &Keys,
        runtime: &Handle,
    ) -> Result<(), CompareError> {
        runtime.block_on(evidence::mark_held(&**store, keys, &export.rows))?;
        let mut aside = runtime.block_on(SetAsideKeys::of(&**store, keys, &request.content_types))?;
        loop {
            let text = runtime.block_on(aside.next(&**store, &export.rows, ASIDE_BYTES))?;
            if text.is_empty() {
                return Ok(());
            }
            let input = Input::Stream("records set aside".into(), Box::new(io::Cursor::new(text)));
            let ids = &mut self.ids;
            let _ = pipeline::read(vec![input], &OurRecords { rows: &export.rows }, &mut |item| {
                match item {
                    Item::Event(_, Ours { key: Some(key), .. }, _) => {
                        export.rows.get(key).inspect(|row| row.note(found::ASIDE));
                    }
                    Item::Bad(bad) => {
                        id_of_record(&bad.bytes).inspect(|id| note_id(ids, id, found::ASIDE));
                    }
                    _ => {}
                }
                Ok(())
            });
        }
    }

    /// Marks the rows of delivered records, and counts the records without a row in the export.
    fn read_delivered(&mut self, open: &OpenInputs<'_>, export: &ExportPass) -> Result<(), CompareError> {
        let witness = &export.witness;
        let mut ours = OnlyOurs::new(witness.range(), witness.is_asked(), export.count)?;
        let (mut by_id, mut failed) = (0u64, None);
        let inputs = open()?;
        let _ = pipeline::read(inputs, &OurRecords { rows: &export.rows }, &mut |item| {
            match item {
                Item::Event(_, Ours { key: Some(key), alone: None }, _) => {
                    export.rows.get(key).inspect(|row| row.note(found::GIVEN));
                }
                Item::Event(_, Ours { key: Some(key), alone: Some((time, listed)) }, _) => {
                    ours.take(key, time, listed).map_err(|error| {
                        failed = Some(error);
                        StopReading
                    })?;
                }
                Item::Bad(bad) => match id_of_record(&bad.bytes) {
                    Some(id) => {
                        by_id += 1;
                        note_id(&mut self.ids, &id, found::GIVEN);
                    }
                    None => push_few(&mut self.notes, format!("{}: {}", bad.place, bad.why)),
                },
                Item::Problem(InputError::Open { name, source }) => {
                    push_few(&mut self.unopened, format!("`{name}`: {source}"));
                }
                Item::Problem(error) => push_few(&mut self.broken, error.to_string()),
                _ => {}
            }
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let (count, listed) = ours.finish()?;
        (self.only_ours, self.ours) = (Some(count), listed);
        if by_id > 0 {
            self.notes.push(format!(
                "{by_id} of the records given as delivered hold no event: they were compared by `Id` alone, and do not count as only ours"
            ));
        }
        Ok(())
    }

    /// Looks up the rows without evidence.
    fn look_up(&mut self, export: &mut ExportPass, runtime: &Handle) -> Result<(), CompareError> {
        if export.rows.values().all(|row| row.found() != 0) {
            return Ok(());
        }
        let ids = std::mem::take(&mut self.ids);
        let mut kept = export.kept.read()?;
        let mut batch = Vec::new();
        while let Some(row) = kept.next()? {
            if export.rows.get(row.key).is_some_and(|known| known.found() == 0) {
                batch.push(LookUp::of(&row, &ids));
            }
            if batch.len() == ASKED_MAX {
                self.answer(std::mem::take(&mut batch), export, runtime)?;
            }
        }
        self.answer(batch, export, runtime)
    }

    /// Looks rows up by their duplicate keys, and lists those that are missing.
    fn answer(&mut self, batch: Vec<LookUp>, export: &ExportPass, runtime: &Handle) -> Result<(), CompareError> {
        let keys: Vec<_> = batch.iter().flat_map(|asked| asked.keys.iter().copied()).collect();
        let mut answers = match &self.keys {
            Some(duplicates) => runtime.block_on(duplicates.contain(&keys))?.into_iter(),
            None => Vec::new().into_iter(),
        };
        for asked in batch {
            let in_state = answers.by_ref().take(asked.keys.len()).fold(false, |any, one| any | one);
            let Some(row) = export.rows.get(asked.key) else { continue };
            row.note(asked.by_id | if in_state { found::KEY } else { 0 });
            if let Some(rule) = &asked.rule
                && asked.by_id == 0
            {
                row.note_rule(self.rules.number(rule), found::ROUTINE);
            }
            if self.terms.class_of(row, true) == RowClass::Missing {
                self.missing.push(&asked.listed)?;
            }
        }
        Ok(())
    }
}

fn note_id(ids: &mut LookupTable<u8>, id: &str, what: u8) {
    ids.insert(id_hash(id), what);
}

fn verdict(request: &CompareRequest<'_>, export: ExportPass, known: Knowledge) -> Result<Verdict, CompareError> {
    let Knowledge { terms, rules, only_ours, ours, missing, evidence, .. } = known;
    let (mut notes, mut unopened, mut broken) = (known.notes, known.unopened, known.broken);
    let mut classes = ClassCounts::default();
    let (mut by_rule, mut by_configuration): (BTreeMap<String, u64>, u64) = Default::default();
    for row in export.rows.values() {
        let class = terms.class_of(row, true);
        classes.add(class, 1);
        if class == RowClass::Dropped {
            *by_rule.entry(rules.name(row.rule()).to_owned()).or_default() += 1;
            by_configuration += u64::from(row.found() & found::DROPPED == 0);
        }
    }
    for row in &export.nameless {
        classes.add(terms.class_of(row, false), 1);
    }
    classes.add(RowClass::Repeated, export.repeated);
    classes.add(RowClass::Unreadable, export.bad);
    debug_assert_eq!(classes.sum(), export.count, "each row is of one class");
    notes.extend(export.notes);
    unopened.extend(export.unopened);
    broken.extend(export.broken);
    Ok(Verdict {
        source: request.source.clone(),
        tenant: request.tenant.to_string(),
        made: request.now,
        rows: export.count,
        classes,
        rules: by_rule,
        dropped_by_configuration: by_configuration,
        only_ours,
        only_ours_listed: ours,
        between: export.witness.rows_between(),
        witness: export.witness.judge(),
        missing,
        settle_secs: request.settle.as_secs(),
        known_from: terms.reach,
        evidence,
        unreadable: export.unreadable,
        unopened,
        broken,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::heal::{HealedInterval, NotKnown};

    #[test]
    fn a_note_says_what_was_filled_and_what_of_a_gap_stays_for_events_of_before() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (from, middle, to) = (at("2026-05-01T00:00:00Z"), at("2026-05-04T00:00:00Z"), at("2026-05-09T00:00:00Z"));
        let mut heal = StoredHeal::default();
        let both = [ContentType::Exchange, ContentType::General];
        assert_eq!(of_healed(&heal, &both), Vec::<String>::new());
        heal.note_healed(ContentType::Exchange, HealedInterval { from: middle, to, at: to, events: 4 });
        heal.note_not_known(ContentType::Exchange, NotKnown { from, to: middle, at: to, events: 2 });
        let notes = of_healed(&heal, &both);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].starts_with("Audit.Exchange was filled through Microsoft Graph once"), "{notes:?}");
        assert!(
            notes[1].contains("a gap from 2026-05-01T00:00:00Z to 2026-05-04T00:00:00Z that stays open")
                && notes[1].contains("whether 2 events of before"),
            "{notes:?}"
        );
    }
}
