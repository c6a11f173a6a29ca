//! Marks the rows that have receipts, and counts the receipts whose events the export lacks.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::sync::Arc;

use super::class::found;
use super::evidence::ReceiptVisitor;
use super::rows::RowSet;
use super::table::{Key, LookupTable};
use crate::normalise::CanonicalKey;
use crate::receipts;

/// Numbers for the rules that receipts name.
#[derive(Debug, Default)]
pub struct DropRules(Vec<Arc<str>>);

impl DropRules {
    /// The number of a rule, from 1 on.
    pub fn number(&mut self, rule: &Arc<str>) -> u16 {
        let at = self.0.iter().position(|known| known == rule).unwrap_or_else(|| {
            self.0.push(rule.clone());
            self.0.len() - 1
        });
        u16::try_from(at + 1).unwrap_or(u16::MAX)
    }

    /// The rule with a number.
    pub fn name(&self, number: u16) -> &str {
        usize::from(number).checked_sub(1).and_then(|at| self.0.get(at)).map_or("not named", |rule| rule)
    }
}

/// Marks the rows that have receipts, and counts the receipts whose events are not in the export.
pub struct Marks<'a> {
    rows: &'a RowSet,
    rules: &'a mut DropRules,
    /// For the current part: the number of final receipts, and how many of their events the export has.
    part: (u64, u64),
    /// The events that the export lacks, while they are fewer than the rows: if there are more, the export has less
    /// than half.
    alone: SpooledKeys,
    only_ours: LookupTable<()>,
    failed: Option<io::Error>,
}

/// Keys in an unnamed file: an export of another time lacks as many events as there are receipts.
#[derive(Default)]
struct SpooledKeys {
    file: Option<BufWriter<File>>,
    count: u64,
}

impl SpooledKeys {
    fn push(&mut self, key: CanonicalKey) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(tempfile::tempfile()?)),
        };
        self.count += 1;
        file.write_all(key.as_bytes())
    }

    /// Passes all keys to `take` if they are `wanted`, and has none then.
    fn drain(&mut self, wanted: bool, mut take: impl FnMut(Key)) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        let Some(file) = &mut self.file else { return Ok(()) };
        file.rewind()?;
        if wanted {
            let mut keys = BufReader::new(file.get_ref());
            for _ in 0..count {
                let mut key = Key::default();
                keys.read_exact(&mut key)?;
                take(key);
            }
            file.rewind()?;
        }
        Ok(())
    }
}

impl<'a> Marks<'a> {
    /// Marks these rows.
    pub fn new(rows: &'a RowSet, rules: &'a mut DropRules) -> Self {
        Marks {
            rows,
            rules,
            part: (0, 0),
            alone: SpooledKeys::default(),
            only_ours: LookupTable::default(),
            failed: None,
        }
    }

    /// How many events have a receipt and are not in the export.
    ///
    /// A receipt does not say when its event happened. So only parts count of which the export has at least half of the
    /// events: the others are from another time than the export.
    ///
    /// # Errors
    /// A temporary file could not be used.
    pub fn only_ours(self) -> io::Result<u64> {
        self.failed.map_or(Ok(self.only_ours.len()), Err)
    }
}

impl ReceiptVisitor for Marks<'_> {
    fn entry(&mut self, key: CanonicalKey, class: &receipts::Class) {
        let row = self.rows.get(*key.as_bytes());
        // A waiting event gets another receipt when it is decided, or is in the state.
        if matches!(class, receipts::Class::Delivered | receipts::Class::Dropped(_)) {
            self.part.0 += 1;
            self.part.1 += u64::from(row.is_some());
            if row.is_none()
                && self.alone.count <= self.rows.count()
                && let Err(error) = self.alone.push(key)
            {
                self.failed = Some(error);
            }
        }
        let Some(row) = row else { return };
        match class {
            receipts::Class::Delivered => row.note(found::DELIVERED),
            receipts::Class::Dropped(rule) => row.note_rule(self.rules.number(rule), found::DROPPED),
            // The receipt is about the past; the state says whether it still holds.
            receipts::Class::Held | receipts::Class::SetAside => {}
        }
    }

    fn part_ended(&mut self) {
        let (all, in_export) = std::mem::take(&mut self.part);
        let only_ours = &mut self.only_ours;
        let drained = self.alone.drain(in_export * 2 >= all, |key| {
            only_ours.insert(key, ());
        });
        if let Err(error) = drained {
            self.failed = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::Row;
    use super::*;

    fn key(number: u8) -> CanonicalKey {
        CanonicalKey::from_bytes([number; 16])
    }

    #[test]
    fn receipts_that_say_how_it_ended_mark_their_rows() {
        let mut rows = RowSet::default();
        for number in 1..=6 {
            rows.insert(*key(number).as_bytes(), None, Row::new(None, None));
        }
        let mut rules = DropRules::default();
        let mut marks = Marks::new(&rows, &mut rules);
        let dropped = |rule: &str| receipts::Class::Dropped(rule.into());
        for (number, class) in [
            (1, receipts::Class::Delivered),
            (2, receipts::Class::Held),
            (2, dropped("EX-45")),
            (3, receipts::Class::SetAside),
            (4, dropped("SP-12")),
            (5, receipts::Class::Held),
            (9, receipts::Class::Delivered),
        ] {
            marks.entry(key(number), &class);
        }
        marks.part_ended();
        assert_eq!(marks.only_ours().unwrap(), 1);
        let of = |number: u8| rows.get(*key(number).as_bytes()).unwrap();
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|number| of(number).found()),
            [found::DELIVERED, found::DROPPED, 0, found::DROPPED, 0, 0],
            "that an event was on hold or set aside does not say that it is"
        );
        assert_eq!((rules.name(of(2).rule()), rules.name(of(4).rule())), ("EX-45", "SP-12"), "the rule's class");
    }

    #[test]
    fn receipts_of_a_time_that_the_export_does_not_cover_are_not_ours_alone() {
        let mut rows = RowSet::default();
        rows.insert(*key(1).as_bytes(), None, Row::new(None, None));
        let mut rules = DropRules::default();
        let mut marks = Marks::new(&rows, &mut rules);
        // An event that is in two parts, or twice in one, counts once.
        for numbers in [&[1, 2][..], &[3, 4, 5], &[2, 1, 1, 2]] {
            numbers.iter().for_each(|number| marks.entry(key(*number), &receipts::Class::Delivered));
            marks.part_ended();
        }
        assert_eq!(marks.only_ours().unwrap(), 1);
    }
}
