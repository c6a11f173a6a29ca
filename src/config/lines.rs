//! A text of TOML as a table, and the line of every key in it.

use std::collections::HashMap;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table};

use super::problem::{Problem, join};
use super::syntax::explained;

/// The text as a table, with the line of every key; or all syntax errors.
pub(super) fn parse_toml(text: &str) -> Result<(Table, HashMap<String, usize>), Vec<Problem>> {
    let (spanned, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(explained(text, &errors));
    }
    let table = text.parse::<Table>().map_err(|error| explained(text, &[error]))?;
    let mut lines = HashMap::new();
    note_lines(&line_ends(text), spanned.get_ref(), "", &mut lines);
    Ok((table, lines))
}

fn note_lines(ends: &[usize], table: &DeTable<'_>, path: &str, lines: &mut HashMap<String, usize>) {
    for (key, value) in table.iter() {
        let path = join(path, key.get_ref());
        lines.insert(path.clone(), line_in(ends, key.span().start));
        note_value_lines(ends, value, &path, lines);
    }
}

fn note_value_lines(ends: &[usize], value: &Spanned<DeValue<'_>>, path: &str, lines: &mut HashMap<String, usize>) {
    match value.get_ref() {
        DeValue::Table(table) => note_lines(ends, table, path, lines),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                lines.insert(path.clone(), line_in(ends, item.span().start));
                note_value_lines(ends, item, &path, lines);
            }
        }
        _ => {}
    }
}

/// The ends of all lines, computed once: counting from the top for every key is quadratic.
fn line_ends(text: &str) -> Vec<usize> {
    memchr::memchr_iter(b'\n', text.as_bytes()).collect()
}

fn line_in(ends: &[usize], offset: usize) -> usize {
    1 + ends.partition_point(|end| *end < offset)
}
