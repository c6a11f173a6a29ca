//! The rows of CSV, also of one that is damaged.
//!
//! Why not the crate `csv`: it follows the quotes alone. In a table of JSON one that is lost or added turns all that
//! follows inside out, and the rows up to the next fault are one. Here a row that is cut ends where the next line is a
//! whole row again: as many cells as the header has, each closed where it must be, and an object where one is due. A line
//! inside a sound cell cannot pass for that, since its quotes are doubled.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter};

/// Longest row in bytes; what is longer has lost a quote and comes out line by line.
pub const ROW_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What rows of a table look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Between cells.
    pub delimiter: u8,
    /// How many cells a row has.
    pub columns: usize,
    /// The cell that holds JSON, where the table has one.
    pub json: Option<usize>,
}

/// One row as it stands, without the line break that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Where the next begins.
    pub next: usize,
}

/// The row that begins at `start`; `None` where more of the text has to be known, which is never so at its end.
pub fn next_row(shape: &Shape, text: &[u8], start: usize, ended: bool) -> Option<Row> {
    let mut line = start;
    let mut quotes = 0;
    loop {
        let Some(end) = memchr(b'\n', text.get(line..)?).map(|at| line + at) else {
            return match (ended, line > start) {
                (false, _) if text.len() - start < ROW_BYTES_MAX => None,
                (false, false) => Some(Row { start, end: text.len(), next: text.len() }),
                (true, false) => Some(Row { start, end: text.len(), next: text.len() }).filter(|row| row.end > start),
                // No quote closes it: one line is the row, and those that follow stand for themselves.
                (_, true) => first_line(text, start),
            };
        };
        quotes += memchr_iter(b'"', text.get(line..end)?).count();
        let next = end + 1;
        if quotes % 2 == 0 {
            return Some(Row { start, end, next });
        }
        let rest = text.get(next..)?;
        match memchr(b'\n', rest) {
            Some(length) if is_whole_row(shape, rest.get(..length)?) => return Some(Row { start, end, next }),
            None if !ended && text.len() - start < ROW_BYTES_MAX => return None,
            None if is_whole_row(shape, rest) => return Some(Row { start, end, next }),
            _ => line = next,
        }
        if end - start > ROW_BYTES_MAX {
            return first_line(text, start);
        }
    }
}

fn first_line(text: &[u8], start: usize) -> Option<Row> {
    let end = start + memchr(b'\n', text.get(start..)?)?;
    Some(Row { start, end, next: end + 1 })
}

/// Fewer columns than this say nothing of a row that has no cell of JSON.
const COLUMNS_MIN: usize = 4;

/// Whether the line is a row for itself.
pub fn is_whole_row(shape: &Shape, line: &[u8]) -> bool {
    let mut count = 0;
    let mut json_fits = shape.json.is_none() && shape.columns >= COLUMNS_MIN;
    let sound = each_cell(line, shape.delimiter, |cell| {
        if Some(count) == shape.json {
            let inside = cell.raw.trim_ascii();
            let quoted = inside.strip_prefix(b"\"").and_then(|inside| inside.strip_suffix(b"\""));
            let inside = quoted.unwrap_or(inside).trim_ascii();
            json_fits = matches!(inside, [b'{', .., b'}'] | [b'[', .., b']']);
        }
        count += 1;
    });
    sound && count == shape.columns && json_fits
}

/// A cell as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell<'a> {
    /// The cell with its quotes.
    pub raw: &'a [u8],
}

impl<'a> Cell<'a> {
    /// What the cell says: without the quotes around it, and one for two inside.
    pub fn text(self) -> Cow<'a, [u8]> {
        let inside = self.raw.strip_prefix(b"\"").and_then(|inside| inside.strip_suffix(b"\""));
        inside.map_or(Cow::Borrowed(self.raw), undoubled)
    }
}

/// One quote for two; one that stands alone stays.
pub fn undoubled(inside: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr(b'"', inside) else { return Cow::Borrowed(inside) };
    let mut text = Vec::with_capacity(inside.len());
    let (mut from, mut quote) = (0, Some(first));
    while let Some(at) = quote {
        text.extend_from_slice(inside.get(from..=at).unwrap_or_default());
        from = at + 1;
        if inside.get(from) == Some(&b'"') {
            from += 1;
        }
        // In JSON the next is near, and to set up a search for it would take longer than to look.
        let rest = inside.get(from..).unwrap_or_default();
        let near = rest.get(..NEAR).unwrap_or(rest).iter().position(|byte| *byte == b'"');
        quote = near.or_else(|| memchr(b'"', rest.get(NEAR..)?).map(|at| NEAR + at)).map(|at| from + at);
    }
    text.extend_from_slice(inside.get(from..).unwrap_or_default());
    Cow::Owned(text)
}

const NEAR: usize = 16;

/// Hands every cell of a row to `take`; whether each quoted one ends where it must.
pub fn each_cell<'a>(row: &'a [u8], delimiter: u8, mut take: impl FnMut(Cell<'a>)) -> bool {
    let row = row.strip_suffix(b"\r").unwrap_or(row);
    let mut at = 0;
    let mut sound = true;
    loop {
        let rest = row.get(at..).unwrap_or_default();
        let length = match rest.first() {
            Some(b'"') => {
                let (length, closed) = quoted_length(rest);
                let over = memchr(delimiter, rest.get(length..).unwrap_or_default());
                let over = over.unwrap_or(rest.len() - length);
                sound &= closed && over == 0;
                length + over
            }
            _ => memchr(delimiter, rest).unwrap_or(rest.len()),
        };
        take(Cell { raw: rest.get(..length).unwrap_or_default() });
        at += length;
        if at >= row.len() {
            return sound;
        }
        at += 1;
    }
}

/// The length of a quoted cell at the beginning of `text`, and whether it is closed.
fn quoted_length(text: &[u8]) -> (usize, bool) {
    let mut at = 1;
    while let Some(quote) = memchr(b'"', text.get(at..).unwrap_or_default()) {
        at += quote + 1;
        if text.get(at) != Some(&b'"') {
            return (at, true);
        }
        at += 1;
    }
    (text.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(columns: usize, json: Option<usize>) -> Shape {
        Shape { delimiter: b',', columns, json }
    }

    fn rows(shape: &Shape, text: &[u8]) -> Vec<String> {
        let mut start = 0;
        let mut rows = Vec::new();
        while let Some(row) = next_row(shape, text, start, true) {
            rows.push(String::from_utf8_lossy(&text[row.start..row.end]).into_owned());
            start = row.next;
        }
        rows
    }

    fn cells(row: &str) -> (Vec<String>, bool) {
        let mut cells = Vec::new();
        let sound = each_cell(row.as_bytes(), b',', |cell| {
            cells.push(String::from_utf8_lossy(&cell.text()).into_owned());
        });
        (cells, sound)
    }

    #[test]
    fn cells_are_read_as_a_spreadsheet_reads_them() {
        for (row, expected) in [
            ("a,b", &["a", "b"][..]),
            ("", &[""]),
            ("a,,", &["a", "", ""]),
            ("\"a,b\",\"c \"\"d\"\"\"\r", &["a,b", "c \"d\""]),
            ("\"a\nb\",\"\"", &["a\nb", ""]),
            ("a\"b,c", &["a\"b", "c"]),
            ("\"\"\"\"", &["\""]),
        ] {
            assert_eq!(cells(row), (expected.iter().map(|cell| (*cell).to_owned()).collect(), true), "{row}");
        }
        for row in ["\"a\"b,c", "\"a", "a,\"b\"\"", "\"a\" ,b"] {
            assert!(!cells(row).1, "{row}");
        }
    }

    #[test]
    fn a_row_ends_at_a_line_break_outside_its_quotes() {
        let table = shape(3, Some(2));
        let text = "1,x,\"{\n}\"\n2,\"a\nb\",\"{}\"\r\n3,y,\"{}\"";
        assert_eq!(rows(&table, text.as_bytes()), ["1,x,\"{\n}\"", "2,\"a\nb\",\"{}\"\r", "3,y,\"{}\""]);
    }

    #[test]
    fn a_cut_row_ends_where_the_next_line_is_a_whole_row() {
        let table = shape(3, Some(2));
        let whole = "2,\"y\",\"{\"\"Id\"\":\"\"b\"\"}\"";
        for cut in ["1,x,\"{\"\"Id\"\":\"\"", "1,x,\"{\"\"Id\"\":", "1,\"x", "1,x,{\"\"Id\"\":\"\"b\"\"}\""] {
            for (text, expected) in [
                (format!("{cut}\n{whole}\n{whole}"), vec![cut, whole, whole]),
                (format!("{cut}\n{cut}\n{whole}"), vec![cut, cut, whole]),
            ] {
                let found = rows(&table, text.as_bytes());
                assert_eq!(found.last().unwrap(), expected.last().unwrap(), "{text}");
                assert!(found.len() >= expected.len() - 1, "{text}: {found:?}");
            }
        }
    }

    #[test]
    fn a_line_of_a_sound_cell_is_no_row() {
        let table = shape(3, Some(2));
        let inner = "1,x,\"{\"\"Id\"\":1}\"";
        let text = format!("1,\"\n{}\n\",\"{{}}\"\n2,x,\"{{}}\"", inner.replace('"', "\"\""));
        assert_eq!(rows(&table, text.as_bytes()).len(), 2);
    }

    #[test]
    fn a_quote_that_nothing_closes_costs_its_line() {
        assert_eq!(rows(&shape(2, None), b"\"a\nb\nc,d\n"), ["\"a", "b", "c,d"]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(table in prop::collection::vec(prop::collection::vec("[a,\"\n\r;{}]{0,6}", 3), 0..5)) {
            let written: String = table
                .iter()
                .map(|row| row.iter().map(|cell| format!("\"{}\"", cell.replace('"', "\"\""))).collect::<Vec<_>>().join(",") + "\n")
                .collect();
            let found: Vec<Vec<String>> =
                rows(&shape(3, None), written.as_bytes()).iter().map(|row| cells(row).0).collect();
            prop_assert_eq!(found, table);
        }

        #[test]
        fn no_byte_is_lost_however_it_is_cut(text in "[a,\"\n\r]{0,60}", cut in 0_usize..60) {
            let table = shape(2, None);
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole = rows(&table, bytes);
            prop_assert_eq!(whole.join("\n").replace('\n', ""), text.replace('\n', ""));
            // What is found in a beginning is what is found in all of it.
            let mut start = 0;
            let mut count = 0;
            while let Some(row) = next_row(&table, &bytes[..cut], start, false) {
                prop_assert_eq!(&String::from_utf8_lossy(&bytes[row.start..row.end]), &whole[count]);
                count += 1;
                start = row.next;
            }
        }
    }
}
