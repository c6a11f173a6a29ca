//! The rows of an export by the keys of their events.

use super::class::Row;
use super::table::{Key, LookupTable};

/// Rows, each under its key.
#[derive(Debug, Default)]
pub struct RowSet {
    rows: LookupTable<Row>,
    /// Keys that the feed may use for an event whose row contains more than the event.
    aliases: LookupTable<Key>,
}

impl RowSet {
    /// Inserts a row; returns false if its event is already present.
    pub fn insert(&mut self, key: Key, alias: Option<Key>, row: Row) -> bool {
        let is_new = self.rows.insert(key, row);
        if let Some(alias) = alias.filter(|_| is_new) {
            self.aliases.insert(alias, key);
        }
        is_new
    }

    /// The row of an event.
    pub fn get(&self, key: Key) -> Option<&Row> {
        self.rows.get(key).or_else(|| self.rows.get(*self.aliases.get(key)?))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.rows.len()
    }

    /// Every row.
    pub fn values(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }
}
