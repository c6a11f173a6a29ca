//! Splits CSV into rows, even if it is damaged.
//!
//! The crate `csv` is not used because it follows only the quotes. In a table of JSON, a lost or added quote inverts
//! the rest, and the rows up to the next fault become one. Here a damaged row ends where the next line is a complete
//! row again: with as many cells as the header, each closed properly, and an object in the expected cell. A line inside
//! a valid cell does not match, since its quotes are doubled.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter};
use wide::u8x16;

/// Longest row in bytes; a longer one has lost a quote and is output line by line.
pub const ROW_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The shape of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowShape {
    /// The separator of cells.
    pub delimiter: u8,
    /// The number of cells in a row.
    pub columns: usize,
    /// The cell with JSON, if the table has one.
    pub json: Option<usize>,
}

/// One raw row, without its line break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSpan {
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Where the next begins.
    pub next: usize,
}

/// The row that begins at `start`; `None` if more of the text is needed, which is never the case at its end.
pub fn next_row(shape: &RowShape, text: &[u8], start: usize, ended: bool) -> Option<RowSpan> {
    let mut line = start;
    let mut quotes = 0;
    loop {
        let Some(end) = memchr(b'\n', text.get(line..)?).map(|at| line + at) else {
            return match (ended, line > start) {
                (false, _) if text.len() - start < ROW_BYTES_MAX => None,
                (false, false) => Some(RowSpan { start, end: text.len(), next: text.len() }),
                (true, false) => {
                    Some(RowSpan { start, end: text.len(), next: text.len() }).filter(|row| row.end > start)
                }
                // No quote closes it: the row is one line, and later lines are separate.
                (_, true) => first_line(text, start),
            };
        };
        quotes += memchr_iter(b'"', text.get(line..end)?).count();
        let next = end + 1;
        if quotes % 2 == 0 {
            return Some(RowSpan { start, end, next });
        }
        let rest = text.get(next..)?;
        match memchr(b'\n', rest) {
            Some(length) if is_whole_row(shape, rest.get(..length)?) => return Some(RowSpan { start, end, next }),
            None if !ended && text.len() - start < ROW_BYTES_MAX => return None,
            None if is_whole_row(shape, rest) => return Some(RowSpan { start, end, next }),
            _ => line = next,
        }
        if end - start > ROW_BYTES_MAX {
            return first_line(text, start);
        }
    }
}

fn first_line(text: &[u8], start: usize) -> Option<RowSpan> {
    let end = start + memchr(b'\n', text.get(start..)?)?;
    Some(RowSpan { start, end, next: end + 1 })
}

/// Fewer columns than this do not identify a row without a JSON cell.
const COLUMNS_MIN: usize = 4;

/// Whether the line is a complete row.
pub fn is_whole_row(shape: &RowShape, line: &[u8]) -> bool {
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

/// A raw cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell<'a> {
    /// The cell with its quotes.
    pub raw: &'a [u8],
}

impl<'a> Cell<'a> {
    /// The value of the cell: without the quotes around it, and with doubled quotes as one.
    pub fn text(self) -> Cow<'a, [u8]> {
        let inside = self.raw.strip_prefix(b"\"").and_then(|inside| inside.strip_suffix(b"\""));
        inside.map_or(Cow::Borrowed(self.raw), undoubled)
    }
}

/// Replaces doubled quotes by one; a single one stays.
pub fn undoubled(inside: &[u8]) -> Cow<'_, [u8]> {
    let mut quotes = Quotes::of(inside);
    let Some(mut at) = quotes.next() else { return Cow::Borrowed(inside) };
    let mut text = Vec::with_capacity(inside.len());
    let mut from = 0;
    loop {
        text.extend_from_slice(inside.get(from..=at).unwrap_or_default());
        from = at + 1;
        let mut next = quotes.next();
        if next == Some(from) {
            from += 1;
            next = quotes.next();
        }
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    text.extend_from_slice(inside.get(from..).unwrap_or_default());
    Cow::Owned(text)
}

/// The positions of a text's quotes. In JSON the next one is near, and starting a search for each would take longer
/// than checking sixteen bytes at once and keeping the result.
struct Quotes<'a> {
    text: &'a [u8],
    /// The start of the sixteen bytes that `found` covers.
    at: usize,
    /// A bit for each quote in them that was not returned yet.
    found: u32,
}

/// Bytes that are checked at once.
const LANES: usize = 16;

impl<'a> Quotes<'a> {
    fn of(text: &'a [u8]) -> Quotes<'a> {
        Quotes { text, at: 0, found: Self::in_lanes(text, 0) }
    }

    #[inline]
    fn in_lanes(text: &[u8], at: usize) -> u32 {
        let rest = text.get(at..).unwrap_or_default();
        match rest.first_chunk::<LANES>() {
            Some(lanes) => u8x16::new(*lanes).simd_eq(u8x16::splat(b'"')).to_bitmask() & 0xffff,
            None => rest.iter().rev().fold(0, |found, byte| found << 1 | u32::from(*byte == b'"')),
        }
    }
}

impl Iterator for Quotes<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.found == 0 {
            if self.at + LANES >= self.text.len() {
                return None;
            }
            self.at += LANES;
            self.found = Self::in_lanes(self.text, self.at);
        }
        let place = self.at + self.found.trailing_zeros() as usize;
        self.found &= self.found - 1;
        Some(place)
    }
}

/// Passes every cell of a row to `take`; returns whether each quoted one is closed properly.
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

/// The value of one cell of a row; `None` if the row has no such cell or more than `columns`, or a quoted one is not
/// closed properly. The same result as [`each_cell`] with [`Cell::text`], in one pass.
pub fn cell_text<'a>(row: &'a [u8], shape: &RowShape, column: usize) -> Option<Cow<'a, [u8]>> {
    let row = row.strip_suffix(b"\r").unwrap_or(row);
    let (mut at, mut index, mut said) = (0, 0, None);
    loop {
        let rest = row.get(at..)?;
        let length = match rest.first() {
            Some(b'"') if index == column => {
                let (text, length) = quoted_text(rest)?;
                said = Some(text);
                length
            }
            Some(b'"') => Some(quoted_length(rest)).filter(|(_, closed)| *closed)?.0,
            _ => {
                let length = memchr(shape.delimiter, rest).unwrap_or(rest.len());
                if index == column {
                    said = rest.get(..length).map(Cow::Borrowed);
                }
                length
            }
        };
        at += length;
        index += 1;
        match row.get(at) {
            None => return said.filter(|_| index <= shape.columns),
            Some(sign) if *sign == shape.delimiter => at += 1,
            Some(_) => return None,
        }
    }
}

/// The value of a quoted cell at the beginning of `text`, and its length; `None` if it is not closed.
///
/// Only a few bytes separate two quotes of JSON. Sixteen bytes are copied at once, and those after the first quote
/// among them are copied again from their right place.
fn quoted_text(text: &[u8]) -> Option<(Cow<'_, [u8]>, usize)> {
    let inside = text.get(1..)?;
    let first = memchr(b'"', inside)?;
    if inside.get(first + 1) != Some(&b'"') {
        return Some((Cow::Borrowed(inside.get(..first)?), first + 2));
    }
    let mut said = vec![0; inside.len() + LANES];
    // Two stand for one.
    let (mut from, mut to) = (first + 2, first + 1);
    said.get_mut(..to)?.copy_from_slice(inside.get(..to)?);
    loop {
        let rest = inside.get(from..)?;
        let length = match (rest.first_chunk::<LANES>(), said.get_mut(to..).and_then(|room| room.first_chunk_mut())) {
            (Some(lanes), Some(room)) => {
                *room = *lanes;
                let quotes = u8x16::new(*lanes).simd_eq(u8x16::splat(b'"')).to_bitmask() & 0xffff;
                if quotes == 0 {
                    (from, to) = (from + LANES, to + LANES);
                    continue;
                }
                quotes.trailing_zeros() as usize
            }
            _ => {
                let length = memchr(b'"', rest)?;
                said.get_mut(to..=to + length)?.copy_from_slice(rest.get(..=length)?);
                length
            }
        };
        if rest.get(length + 1) != Some(&b'"') {
            said.truncate(to + length);
            return Some((Cow::Owned(said), from + length + 2));
        }
        (from, to) = (from + length + 2, to + length + 1);
    }
}

/// The length of a quoted cell at the beginning of `text`, and whether it is closed.
fn quoted_length(text: &[u8]) -> (usize, bool) {
    let inside = text.get(1..).unwrap_or_default();
    let mut quotes = Quotes::of(inside);
    let mut next = quotes.next();
    while let Some(quote) = next {
        // Two stand for one.
        match quotes.next() {
            Some(second) if second == quote + 1 => next = quotes.next(),
            _ => return (quote + 2, true),
        }
    }
    (text.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(columns: usize, json: Option<usize>) -> RowShape {
        RowShape { delimiter: b',', columns, json }
    }

    fn rows(shape: &RowShape, text: &[u8]) -> Vec<String> {
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
        fn a_cell_read_in_one_pass_says_what_it_says_among_the_others(
            row in "[a-f{}]{0,20}|([a-f,]|\"[a-h]{0,40}(\"\"[a-h,{}]{0,40}){0,9}\"|[\"\r,]){0,9}",
            columns in 0_usize..6,
            column in 0_usize..6,
        ) {
            let mut cells = Vec::new();
            let sound = each_cell(row.as_bytes(), b',', |cell| cells.push(cell));
            let expected = cells.get(column).filter(|_| sound && cells.len() <= columns).map(|cell| cell.text());
            prop_assert_eq!(cell_text(row.as_bytes(), &shape(columns, None), column), expected);
        }

        #[test]
        fn no_byte_is_lost_however_it_is_cut(text in "[a,\"\n\r]{0,60}", cut in 0_usize..60) {
            let table = shape(2, None);
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole = rows(&table, bytes);
            prop_assert_eq!(whole.join("\n").replace('\n', ""), text.replace('\n', ""));
            // A row found in a prefix is the same as in the whole text.
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
