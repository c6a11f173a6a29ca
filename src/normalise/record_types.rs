//! `RecordType` numbers: their names and the category each belongs to when a record names no workload.
//!
//! Names after Microsoft's "AuditLogRecordType" table. New numbers appear without notice; an unknown one has no name.

use std::sync::LazyLock;

use super::category::Category;

/// What is known of one record type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordTypeInfo {
    /// Its name, such as `ExchangeAdmin`.
    pub name: &'static str,
    /// Its category, for records without a workload.
    pub category: Category,
}

/// `id,name,category`, in the order of ids.
const TABLE: &str = include_str!("record_types.csv");

static BY_ID: LazyLock<Vec<Option<RecordTypeInfo>>> = LazyLock::new(|| {
    let mut by_id = Vec::new();
    for (id, info) in TABLE.lines().skip(1).filter_map(row) {
        if by_id.len() <= id {
            by_id.resize(id + 1, None);
        }
        if let Some(slot) = by_id.get_mut(id) {
            *slot = Some(info);
        }
    }
    by_id
});

fn row(line: &'static str) -> Option<(usize, RecordTypeInfo)> {
    let mut columns = line.split(',');
    let (id, name, category) = (columns.next()?, columns.next()?, columns.next()?);
    // An id is an index here; the bound keeps a slip in the table from becoming a huge allocation.
    let id = id.parse().ok().filter(|id| *id < 10_000)?;
    Some((id, RecordTypeInfo { name, category: Category::from_name(category)? }))
}

/// What is known of record type `id`.
pub(crate) fn info(id: i64) -> Option<RecordTypeInfo> {
    *BY_ID.get(usize::try_from(id).ok()?)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_read() {
        for line in TABLE.lines().skip(1) {
            let (id, _) = row(line).unwrap_or_else(|| panic!("{line}"));
            assert!(info(id as i64).is_some(), "{line}");
        }
        assert_eq!(info(1).unwrap().name, "ExchangeAdmin");
        assert!(info(-1).is_none() && info(i64::MAX).is_none());
    }
}
