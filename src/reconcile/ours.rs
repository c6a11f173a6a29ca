//! Events that were delivered but are not in the export.

use std::io;

use super::spool::{Spool, SpooledEvent};
use super::table::{Key, LookupTable};
use crate::model::Timestamp;

/// The most events that are listed.
const LISTED_MAX: u64 = 100_000;
/// Events outside the time of the export count only if they are at most one in this many of its rows: then export and
/// records are from the same time, and the export lacks the very first or last.
const OUTSIDE_SHARE: u64 = 2_000;
/// So many such events are always allowed.
const OUTSIDE_MIN: u64 = 2;

/// Collects them.
pub(super) struct OnlyOurs {
    range: Option<(Timestamp, Timestamp)>,
    outside_max: usize,
    seen: LookupTable<()>,
    /// Those before the time of the export, and those after it; `None` if there are too many to be from the same
    /// search.
    outside: [Option<Vec<(Key, SpooledEvent)>>; 2],
    spool: Spool,
}

impl OnlyOurs {
    /// For an export with so many rows that has every event of `range`. If the operator gave the range (`is_asked`),
    /// events outside it never count.
    pub fn new(range: Option<(Timestamp, Timestamp)>, is_asked: bool, rows: u64) -> io::Result<OnlyOurs> {
        let outside_max = usize::try_from((rows / OUTSIDE_SHARE).max(OUTSIDE_MIN)).unwrap_or(usize::MAX);
        let side = || (!is_asked).then(Vec::new);
        Ok(OnlyOurs {
            range,
            outside_max,
            seen: LookupTable::default(),
            outside: [side(), side()],
            spool: Spool::new()?,
        })
    }

    /// Adds an event that is not in the export.
    pub fn take(&mut self, key: Key, time: Option<Timestamp>, listed: SpooledEvent) -> io::Result<()> {
        let side = match (time, self.range) {
            (Some(time), Some((from, _))) if time < from => self.outside.first_mut(),
            (Some(time), Some((_, to))) if time >= to => self.outside.last_mut(),
            _ => return self.count(key, &listed),
        };
        let Some(side) = side else { return Ok(()) };
        let Some(few) = side else { return Ok(()) };
        if !few.iter().any(|(known, _)| *known == key) {
            few.push((key, listed));
            if few.len() > self.outside_max {
                *side = None;
            }
        }
        Ok(())
    }

    fn count(&mut self, key: Key, listed: &SpooledEvent) -> io::Result<()> {
        if self.seen.insert(key, ()) && self.spool.count() < LISTED_MAX {
            self.spool.push(listed)?;
        }
        Ok(())
    }

    /// Returns their number and those that are listed.
    pub fn finish(mut self) -> io::Result<(u64, Spool)> {
        let outside = std::mem::take(&mut self.outside);
        for (key, listed) in outside.into_iter().flatten().flatten() {
            self.count(key, &listed)?;
        }
        Ok((self.seen.len(), self.spool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + hour * 3600).unwrap()
    }

    fn counted(hours: &[i64], is_asked: bool) -> u64 {
        let mut ours = OnlyOurs::new(Some((at(0), at(24))), is_asked, 100).unwrap();
        for (number, hour) in hours.iter().enumerate() {
            let listed = SpooledEvent { id: number.to_string(), time: String::new(), operation: String::new() };
            for _ in 0..2 {
                ours.take([number as u8 + 1; 16], Some(at(*hour)), listed.clone()).unwrap();
            }
        }
        ours.take([99; 16], None, SpooledEvent { id: "x".into(), time: String::new(), operation: String::new() })
            .unwrap();
        ours.finish().unwrap().0
    }

    #[test]
    fn events_of_another_time_than_the_export_are_not_only_ours_unless_they_are_a_few() {
        assert_eq!(counted(&[0, 5, 23], false), 4);
        assert_eq!(counted(&[0, -1, -2, 24], false), 5);
        assert_eq!(counted(&[0, -1, -2, -3, 24], false), 3);
        assert_eq!(counted(&[0, -1, 24], true), 2);
    }
}
