//! `RecordType`: numbers, their names, and the category each belongs to when a record names no workload.
//!
//! Names after Microsoft's "AuditLogRecordType" table. New numbers appear without notice; an unknown one has no name.
//! The feed writes numbers; PowerShell (`-Formatted`), Microsoft Graph and Sentinel write names.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::category::Category;
use super::json;

/// A known record type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordTypeInfo {
    /// Its name, such as `ExchangeAdmin`.
    pub name: &'static str,
    /// Its category, for records without a workload.
    pub category: Category,
}

/// `id,name,category`, in the order of ids.
const TABLE: &str = include_str!("record_types.csv");

/// `id,name`: other names of numbers, and numbers that the table omits. They come from Microsoft Graph's
/// `auditLogRecordType`, whose values are in the order of the numbers. Only those are used that lie between two names
/// of the table with as many numbers between them as names.
const OTHER_NAMES: &str = include_str!("record_type_names.csv");

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

/// Numbers by name, folded. If two sources use one name for two numbers, the table wins.
static BY_NAME: LazyLock<HashMap<String, i64>> = LazyLock::new(|| {
    let others = OTHER_NAMES.lines().skip(1).filter_map(|line| line.split_once(','));
    let others = others.filter_map(|(id, name)| Some((fold(name), id.parse().ok()?)));
    let table = TABLE.lines().skip(1).filter_map(row).map(|(id, info)| (fold(info.name), id as i64));
    others.chain(table).collect()
});

fn row(line: &'static str) -> Option<(usize, RecordTypeInfo)> {
    let mut columns = line.split(',');
    let (id, name, category) = (columns.next()?, columns.next()?, columns.next()?);
    // An id is an index here; the bound prevents a huge allocation if the table has a typing error.
    let id = id.parse().ok().filter(|id| *id < 10_000)?;
    Some((id, RecordTypeInfo { name, category: Category::from_name(category)? }))
}

/// Keeps letters and digits in lower case: Graph's names begin in lower case, and some in the table have blanks.
fn fold(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Name and category of record type `id`.
pub(crate) fn info(id: i64) -> Option<RecordTypeInfo> {
    *BY_ID.get(usize::try_from(id).ok()?)?
}

/// The number of a record type by its name, in any case.
pub(crate) fn number(name: &str) -> Option<i64> {
    // Longer than any name.
    const NAME_BYTES_MAX: usize = 128;
    let name = name.trim();
    // A text that begins with a digit is a number that could not be parsed.
    if name.len() > NAME_BYTES_MAX || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    BY_NAME.get(&fold(name)).copied()
}

/// The number of a record type from its token: a number, its digits as text, or a name.
pub(crate) fn of_token(token: &str) -> Option<i64> {
    json::integer(token).or_else(|| number(&json::scalar(token)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_tables_is_read() {
        for line in TABLE.lines().skip(1) {
            let (id, found) = row(line).unwrap_or_else(|| panic!("{line}"));
            assert!(info(id as i64).is_some(), "{line}");
            assert_eq!(number(found.name), Some(id as i64), "{line}");
        }
        for line in OTHER_NAMES.lines().skip(1) {
            let (id, name) = line.split_once(',').unwrap();
            assert_eq!(number(name), Some(id.parse().unwrap()), "{line}: the table gives this name to another number");
        }
        assert_eq!(info(1).unwrap().name, "ExchangeAdmin");
        assert!(info(-1).is_none() && info(i64::MAX).is_none());
    }

    #[test]
    fn a_record_type_is_read_as_a_number_its_digits_or_a_name() {
        for (token, expected) in [
            ("1", Some(1)),
            ("\"65\"", Some(65)),
            ("\"Quarantine\"", Some(65)),
            ("\" quarantine \"", Some(65)),
            ("\"complianceDLPSharePoint\"", Some(11)),
            ("\"yammer\"", Some(22)),
            ("\"vivaGoals\"", Some(216)),
            ("\"ms365DIncident\"", Some(232)),
            ("\"unknownFutureValue\"", None),
            ("\"9x\"", None),
            ("\"\"", None),
            ("null", None),
            ("{}", None),
        ] {
            assert_eq!(of_token(token), expected, "{token}");
        }
    }
}
