//! One table of CSV: its header, and the content of its rows.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::{memchr, memchr_iter, memmem};
use smallvec::SmallVec;

use super::columns::Header;
use super::form::Form;
use super::outer::{self, Outer};
use super::restore::Dialect;
use super::rows::{Cell, RowShape, cell_text, each_cell, is_whole_row, undoubled};
use super::unwrap::{Inside, UnreadValue, UnwrappedEvent, dialect_of, unwrap};
use crate::normalise::Members;

/// The longest header accepted.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;

/// The description of a table from its header.
#[derive(Debug, Clone)]
pub struct Table {
    /// The shape of its rows.
    pub shape: RowShape,
    /// The header as it stands; empty where there is none.
    header: Vec<u8>,
    kind: TableKind,
    outer: OuterColumns,
}

#[derive(Debug, Clone)]
enum TableKind {
    /// A column has the event.
    Carrier {
        column: usize,
        form: Form,
        dialect: Option<Dialect>,
        /// Used when that column has only the name of a type, as some tools write an object of Microsoft Graph: then
        /// only the other columns describe the event.
        others: Option<Box<Header>>,
    },
    /// The columns are the event.
    Flat(Box<Header>),
    /// The columns are unknown: an event is recognised by its content.
    Unknown,
}

#[derive(Debug, Clone, Default)]
struct OuterColumns {
    id: Option<usize>,
    time: Option<usize>,
    operation: Option<usize>,
    user: Option<usize>,
    record_type: Option<usize>,
    workload: Option<usize>,
}

/// Columns with an event, and the form of each.
const CARRIERS: [(&str, Form); 5] = [
    ("AuditData", Form::AuditCsv),
    ("RawEventData", Form::DefenderCsv),
    ("_raw", Form::SplunkCsv),
    ("event.original", Form::Elastic),
    ("_source.event.original", Form::Elastic),
];

/// The possible separators of cells.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The beginning of a text, read as a table.
#[derive(Debug)]
pub struct Beginning {
    /// The table.
    pub table: Table,
    /// Where its first row begins.
    pub rows: usize,
    /// An unknown line before the header.
    pub stray: std::ops::Range<usize>,
}

/// Reads the beginning of a text as a table; `None` if it is not one. All of the header must be in `text`, or all of
/// the text.
pub fn begins(text: &[u8]) -> Option<Beginning> {
    let blank = text.iter().take_while(|byte| byte.is_ascii_whitespace() && **byte != b'\t').count();
    let mut at = blank;
    let mut delimiter = None;
    // Excel names the delimiter, Windows PowerShell the type, each on a line before the header.
    for _ in 0..2 {
        let line = line_at(text, at);
        let said = line.trim_ascii();
        match said {
            [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', sign] => delimiter = Some(*sign),
            _ if said.strip_prefix(b"\"sep=").is_some_and(|rest| rest.len() == 2) => delimiter = said.get(5).copied(),
            _ if said.starts_with(b"#TYPE ") => {}
            _ => break,
        }
        at += line.len();
    }
    // A header could have line breaks in its cells; no known table has.
    let line = line_at(text, at);
    let header = line.trim_ascii_end();
    if header.is_empty() || is_no_table(header) == Some(true) {
        return None;
    }
    let next = line_at(text, at + line.len());
    let known = DELIMITERS.into_iter().filter(|sign| delimiter.is_none_or(|said| said == *sign));
    let named = known.clone().find_map(|sign| Table::of(header, sign));
    let rows = at + line.len();
    let named = named.map(|table| Beginning { table, rows, stray: at..at });
    // The line that names the delimiter or the type may be damaged.
    let behind = || {
        let table = known.clone().find_map(|sign| Table::of(next.trim_ascii_end(), sign))?;
        Some(Beginning { table, rows: rows + next.len(), stray: at..rows })
    };
    named.or_else(behind).or_else(|| unnamed(header, next, known.clone(), (at, rows)))
}

/// Whether the first bytes of a text rule out a table: it begins like JSON, or like a line of syslog. `None` if more of
/// it is needed. A header whose first byte is damaged begins like neither.
pub fn is_no_table(text: &[u8]) -> Option<bool> {
    let second = |is: fn(&u8) -> bool| text.get(1).map(is);
    match text.first()? {
        b'{' => second(|byte| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'}' | b'{')),
        b'[' => second(|byte| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'{' | b'[' | b']' | b'0'..=b'9')),
        b'<' => second(u8::is_ascii_digit),
        _ => Some(false),
    }
}

/// A table with an unknown header or none, whose rows have events in cells.
fn unnamed(
    header: &[u8],
    next: &[u8],
    known: impl Iterator<Item = u8> + Clone,
    (first, second): (usize, usize),
) -> Option<Beginning> {
    for sign in known {
        let plain = (sign == b'\t').then(|| plain_below(header, next)).flatten();
        let below = || plain.or_else(|| quoted_shape(next, sign));
        let (shape, is_headed) = match quoted_shape(header, sign) {
            Some(shape) => (shape, false),
            None => match below() {
                Some(shape) => (shape, true),
                None => continue,
            },
        };
        let rows = if is_headed { second } else { first };
        // A header with too few cells is reported: it is damaged, or belongs to something else.
        let is_stray = is_headed && shape.json > Some(memchr_iter(sign, header).count());
        let kept = if is_headed { header.to_vec() } else { Vec::new() };
        let table = Table { shape, header: kept, kind: TableKind::Unknown, outer: OuterColumns::default() };
        return Some(Beginning { table, rows, stray: first..if is_stray { rows } else { first } });
    }
    None
}

/// The shape of a row with a quoted event in one of its cells, alone or after a line's header.
fn quoted_shape(row: &[u8], delimiter: u8) -> Option<RowShape> {
    let (mut columns, mut json, mut is_certain) = (0, None, false);
    let is_sound = each_cell(row.trim_ascii_end(), delimiter, |cell| {
        let is_object = cell.raw.starts_with(b"\"{\"\"");
        if is_object || cell.raw.starts_with(b"\"") && memmem::find(cell.raw, b"{\"\"").is_some() {
            json.get_or_insert(columns);
            is_certain |= is_object && columns > 0;
        }
        columns += 1;
    });
    (is_sound || is_certain).then_some(())?;
    Some(RowShape { delimiter, columns, json: Some(json?) })
}

/// The shape of a row with an unquoted event, as some tools write it between tabs, below a header. A log with a tab
/// before its events is not a table: each of its lines has many characters of JSON, even a damaged one, but a header
/// with a damaged byte has at most one.
fn plain_below(header: &[u8], next: &[u8]) -> Option<RowShape> {
    let (mut columns, mut json) = (0, None);
    each_cell(next.trim_ascii_end(), b'\t', |cell| {
        if cell.raw.starts_with(b"{\"") {
            json.get_or_insert(columns);
        }
        columns += 1;
    });
    let tabs = memchr_iter(b'\t', header).count();
    let signs = header.iter().filter(|byte| matches!(byte, b'"' | b'{' | b'}')).count();
    let json = json.filter(|json| signs <= 1 && (1..=tabs + 1).contains(json))?;
    Some(RowShape { delimiter: b'\t', columns, json: Some(json) })
}

fn line_at(text: &[u8], at: usize) -> &[u8] {
    let rest = text.get(at..).unwrap_or_default();
    rest.get(..=memchr(b'\n', rest).unwrap_or(rest.len())).unwrap_or(rest)
}

impl Table {
    fn of(header: &[u8], delimiter: u8) -> Option<Table> {
        let mut names: Vec<String> = Vec::new();
        let mut is_data = false;
        // No known name contains a quote: if one is missing or extra, quotes do not mark the ends of cells.
        let is_damaged = memchr_iter(b'"', header).count() % 2 == 1;
        let unquoted = || header.iter().copied().filter(|byte| *byte != b'"').collect();
        let named: Cow<'_, [u8]> = if is_damaged { Cow::Owned(unquoted()) } else { Cow::Borrowed(header) };
        each_cell(&named, delimiter, |cell| {
            let text = cell.text();
            let name = String::from_utf8_lossy(&text).trim().trim_start_matches('\u{feff}').to_owned();
            is_data |= name.starts_with("{\"");
            names.push(name);
        });
        let place = |wanted: &str| names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
        let first = |wanted: &[&str]| wanted.iter().find_map(|name| place(name));
        if is_data {
            return None;
        }
        let of_graph = place("auditLogRecordType").is_some() || place("createdDateTime").is_some();
        let carrier = CARRIERS.iter().find_map(|(name, form)| Some((place(name)?, *form)));
        let flat = || Header::of(&names.iter().map(String::as_str).collect::<Vec<_>>()).map(Box::new);
        let kind = match carrier {
            Some((column, Form::AuditCsv)) if of_graph => {
                let others = flat().filter(|header| header.form() == Form::GraphCsv);
                TableKind::Carrier { column, form: Form::GraphCsv, dialect: Some(Dialect::Graph), others }
            }
            Some((column, form)) => TableKind::Carrier { column, form, dialect: None, others: None },
            None => TableKind::Flat(flat()?),
        };
        let json = carrier.map(|(column, _)| column);
        let outer = OuterColumns {
            id: first(outer::IDS),
            time: first(outer::TIMES),
            operation: first(outer::OPERATIONS),
            user: first(outer::USERS),
            record_type: first(outer::RECORD_TYPES),
            workload: first(outer::WORKLOADS),
        };
        let shape = RowShape { delimiter, columns: names.len(), json };
        Some(Table { shape, header: header.to_vec(), kind, outer })
    }

    /// The form of the table.
    pub fn form(&self) -> Form {
        match &self.kind {
            TableKind::Carrier { form, .. } => *form,
            TableKind::Flat(header) => header.form(),
            TableKind::Unknown => Form::AuditCsv,
        }
    }

    /// The header as it stands; empty where there is none.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Whether a row is a header again, as in concatenated exports; returns the table it begins.
    pub fn begins_again(&self, row: &[u8]) -> Option<Option<Table>> {
        let row = row.strip_prefix(b"\xef\xbb\xbf").unwrap_or(row).trim_ascii_end();
        if row == self.header && !row.is_empty()
            || row.starts_with(b"#TYPE ")
            || row.len() == 5 && row.starts_with(b"sep=")
        {
            return Some(None);
        }
        if row.len() > HEADER_BYTES_MAX || memchr(b'{', row).is_some() || matches!(self.kind, TableKind::Flat(_)) {
            return None;
        }
        DELIMITERS.into_iter().find_map(|sign| Table::of(row, sign)).map(Some)
    }

    /// The event of a regular row, and its form: its cells fit the header, and the cell with the event begins like an
    /// unflattened object. Whether it is a complete event is not checked here. The same result as [`Table::read`], in a
    /// fraction of the time.
    pub fn carried(&self, row: &Bytes) -> Option<(Bytes, Form)> {
        let TableKind::Carrier { column, form, dialect: None, .. } = self.kind else { return None };
        let event = cell_text(row, &self.shape, column)?;
        let is_plain = event.first() == Some(&b'{') && dialect_of(&event) == Dialect::Feed;
        is_plain.then(|| (as_bytes(row, event), form))
    }

    /// The data that a row has beside its event.
    pub fn beside(&self, row: &[u8]) -> Outer {
        let mut cells: SmallVec<[Cell<'_>; 24]> = SmallVec::new();
        each_cell(row, self.shape.delimiter, |cell| cells.push(cell));
        self.outer(&cells)
    }

    /// Appends the content of a row: at least one item.
    pub fn read(&self, row: &Bytes, out: &mut Vec<Inside>) {
        let mut cells: SmallVec<[Cell<'_>; 24]> = SmallVec::new();
        let is_sound = each_cell(row, self.shape.delimiter, |cell| cells.push(cell));
        let outer = self.outer(&cells);
        // If cells have shifted, one may hold a piece of the event, which may need masking: the event must begin at its
        // expected place.
        let begins = cells.iter().position(|cell| cell.raw.contains(&b'{'));
        let is_in_place = begins.is_none() || self.shape.json.is_none() || begins == self.shape.json;
        let before_json = || match is_in_place {
            true => self.outer(cells.get(..begins.unwrap_or(cells.len())).unwrap_or_default()),
            false => Outer::default(),
        };
        let fits = is_sound && cells.len() <= self.shape.columns;
        let why = match &self.kind {
            TableKind::Carrier { column, form, dialect, others } => match cells.get(*column) {
                Some(cell) if fits => {
                    let text = as_bytes(row, cell.text());
                    let around = (*form, *dialect, &outer);
                    if read_cell(&text, around, out) {
                        return;
                    }
                    let is_type_name = text.trim_ascii().starts_with(b"Microsoft.");
                    if let Some(Ok((event, outer))) = others.as_ref().filter(|_| is_type_name).map(|h| flat(h, &cells))
                    {
                        return out.push(Inside::Event(UnwrappedEvent {
                            event,
                            form: *form,
                            dialect: Dialect::Graph,
                            outer,
                        }));
                    }
                    "the cell that should hold the event holds none that can be read"
                }
                Some(_) => "its cells do not fit the header",
                None => "a row without the cell that holds the event",
            },
            TableKind::Flat(header) if is_sound && cells.len() == self.shape.columns => match flat(header, &cells) {
                Ok((event, outer)) => {
                    let dialect = header.dialect();
                    out.push(Inside::Event(UnwrappedEvent { event, form: header.form(), dialect, outer }));
                    return;
                }
                Err(why) => {
                    out.push(Inside::Unread(UnreadValue { bytes: row.clone(), why, outer, is_unknown: false }));
                    return;
                }
            },
            TableKind::Flat(_) => "its cells do not fit the header",
            TableKind::Unknown => "a row without an event",
        };
        self.salvage(row, why, before_json(), out);
    }

    /// Recovers the events of an irregular row. The whole row is output as well, unless it has no fault.
    fn salvage(&self, row: &Bytes, why: &str, outer: Outer, out: &mut Vec<Inside>) {
        let before = out.len();
        if let TableKind::Flat(header) = &self.kind {
            for line in row.split(|byte| *byte == b'\n').filter(|line| line.len() < row.len()) {
                let mut cells: SmallVec<[Cell<'_>; 24]> = SmallVec::new();
                if is_whole_row(&self.shape, line) {
                    each_cell(line, self.shape.delimiter, |cell| cells.push(cell));
                    if let Ok((event, outer)) = flat(header, &cells) {
                        out.push(Inside::Event(UnwrappedEvent {
                            event,
                            form: header.form(),
                            dialect: header.dialect(),
                            outer,
                        }));
                    }
                }
            }
        } else {
            let (form, dialect) = match &self.kind {
                TableKind::Carrier { form, dialect, .. } => (*form, *dialect),
                _ => (self.form(), None),
            };
            for object in objects(row) {
                read_cell(&object, (form, dialect, &Outer::default()), out);
            }
        }
        let is_expected = matches!(self.kind, TableKind::Unknown) && out.len() == before + 1;
        if !is_expected {
            out.push(Inside::Unread(UnreadValue { bytes: row.clone(), why: why.to_owned(), outer, is_unknown: false }));
        }
    }

    fn outer(&self, cells: &[Cell<'_>]) -> Outer {
        let cell = |column: Option<usize>| {
            let text = cells.get(column?)?.text();
            let text = std::str::from_utf8(&text).ok()?.trim();
            (!text.is_empty() && text.len() <= OUTER_BYTES_MAX).then(|| text.to_owned())
        };
        let OuterColumns { id, time, operation, user, record_type, workload } = self.outer;
        Outer {
            id: cell(id),
            time: cell(time),
            operation: cell(operation),
            user: cell(user),
            record_type: cell(record_type),
            workload: cell(workload),
        }
    }
}

/// A longer text is damage, and not an id, time or name.
const OUTER_BYTES_MAX: usize = 1024;

fn flat(header: &Header, cells: &[Cell<'_>]) -> Result<(Bytes, Outer), String> {
    let texts: SmallVec<[Cow<'_, [u8]>; 24]> = cells.iter().map(|cell| cell.text()).collect();
    let texts: Result<SmallVec<[&str; 24]>, _> = texts.iter().map(|text| std::str::from_utf8(text)).collect();
    let texts = texts.map_err(|_| "its text is not UTF-8".to_owned())?;
    header.event(&texts).map_err(|error| error.to_string())
}

fn as_bytes(row: &Bytes, text: Cow<'_, [u8]>) -> Bytes {
    match text {
        Cow::Borrowed(text) => row.slice_ref(text),
        Cow::Owned(text) => text.into(),
    }
}

/// Reads a cell that should have an event; returns whether it did. The form is the table's, even if the event in the
/// cell is wrapped once more.
fn read_cell(text: &Bytes, (form, dialect, outer): (Form, Option<Dialect>, &Outer), out: &mut Vec<Inside>) -> bool {
    let text = text.slice_ref(text.trim_ascii());
    if text.starts_with(b"@{") {
        let outer = outer.clone();
        out.push(Inside::Event(UnwrappedEvent { event: text, form, dialect: Dialect::PowerShell, outer }));
        return true;
    }
    let before = out.len();
    let prefixed = super::prefix::length(&text);
    unwrap(&text.slice(prefixed.unwrap_or(0)..), false, out);
    let mut is_read = out.len() > before;
    for inside in out.iter_mut().skip(before) {
        match inside {
            Inside::Event(found) => {
                found.form = form;
                if found.dialect == Dialect::Feed || found.dialect == Dialect::PowerShell {
                    found.dialect = dialect.unwrap_or_else(|| dialect_of(&found.event));
                }
                if found.outer == Outer::default() {
                    found.outer = outer.clone();
                }
            }
            Inside::Notice(_) => {}
            Inside::Unread(_) => is_read = false,
        }
    }
    if !is_read {
        out.truncate(before);
    }
    is_read
}

/// The objects in a row, even if the quotes around and inside them are damaged.
fn objects(row: &Bytes) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = memmem::find(row.get(at..).unwrap_or_default(), b"{\"").map(|begin| at + begin) {
        let rest = row.slice(begin..);
        let is_doubled = rest.starts_with(b"{\"\"");
        let text = if is_doubled { as_bytes(row, undoubled(&rest)) } else { rest };
        match Members::default().read(&text) {
            Some(length) => {
                let object = text.slice(..length);
                // As long as it was in the row, or shorter: its end is searched for after its minimum length.
                at = begin + length;
                let is_nested = found.last().is_some_and(|last: &Bytes| contains(last, &object));
                if !is_nested {
                    found.push(object);
                }
            }
            None => at = begin + 2,
        }
    }
    found.retain(|object| crate::normalise::is_like_an_event(object) || memmem::find(object, b"\"_raw\"").is_some());
    found
}

fn contains(outer: &[u8], inner: &[u8]) -> bool {
    memmem::find(outer, inner).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_byte_of_a_header_hides_no_row() {
        let event =
            r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"o","RecordType":1,"X":[{"y":"z, 1"}]}"#;
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        for (header, row) in [
            ("RecordId,CreationDate,AuditData,Units", format!("r,2026-03-02T10:15:00Z,{},", quoted(event))),
            ("\"CreationDate\";\"AuditData\"", format!("x;{}", quoted(event))),
            ("\"AuditData\",\"Identity\"", format!("{},\"1\"", quoted(event))),
            ("CreationDate\tAuditData", format!("x\t{event}")),
            ("id,createdDateTime,auditData", format!("1,2,{}", quoted(event))),
            ("Timestamp,ActionType,RawEventData", format!("1,2,{}", quoted(event))),
            ("\"_raw\",\"_time\"", format!("{},1", quoted(event))),
            ("_time,_raw", format!("1,{}", quoted(&format!("Mar  2 10:15:00 host m365: {event}")))),
        ] {
            for at in 0..header.len() {
                let (before, after) = header.split_at(at);
                for damaged in [
                    format!("{before}{}", &after[1..]),
                    format!("{before}x{}", &after[1..]),
                    format!("{before}\"{after}"),
                    format!("{before}{{{}", &after[1..]),
                ] {
                    let text = format!("{damaged}\n{row}\n{row}\n");
                    let Some(Beginning { table, rows, .. }) = begins(text.as_bytes()) else {
                        panic!("no table: {text}");
                    };
                    assert!(text[rows..].starts_with(&row), "{text}");
                    let mut found = Vec::new();
                    table.read(&Bytes::from(row.clone()), &mut found);
                    let events = found.iter().filter(|inside| matches!(inside, Inside::Event(_))).count();
                    assert_eq!(events, 1, "{text}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn where_graphs_column_of_the_event_holds_the_name_of_a_type_the_others_are_the_event() {
        let header = "Id,CreatedDateTime,AuditLogRecordType,Operation,UserPrincipalName,Service,AuditData";
        let Beginning { table, .. } = begins(format!("{header}\nx\n").as_bytes()).unwrap();
        for (cell, is_whole) in [
            ("Microsoft.Graph.PowerShell.Models.MicrosoftGraphSecurityAuditData", false),
            ("\"{\"\"Id\"\":\"\"7\"\",\"\"Operation\"\":\"\"New-InboxRule\"\"}\"", true),
        ] {
            let row =
                format!("7,2026-03-02T10:15:00Z,exchangeAdmin,New-InboxRule,alex@contoso.example,Exchange,{cell}");
            let mut found = Vec::new();
            table.read(&Bytes::from(row), &mut found);
            let [Inside::Event(found)] = &found[..] else { panic!("{found:?}") };
            assert_eq!((found.form, found.dialect), (Form::GraphCsv, Dialect::Graph));
            let restored = super::super::restore::restore(&found.event, &found.outer, found.dialect).unwrap();
            assert!(
                String::from_utf8_lossy(&restored.event).contains(r#""Operation":"New-InboxRule""#),
                "{restored:?}"
            );
            let cut: Vec<String> = restored.losses.iter().map(ToString::to_string).collect();
            assert_eq!(cut.is_empty(), is_whole, "{cut:?}");
        }
    }

    #[test]
    fn lines_of_a_log_and_values_are_no_table() {
        let event = r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"o","X":""}"#;
        for line in [
            format!("2026-03-02T10:15:00+00:00\tm365.audit\t{event}"),
            format!("2026-03-02T10:15:00+00:00\tm365.audit\t{}", &event[1..]),
            format!("Mar  2 10:15:00 host m365[7]: {event}"),
            event.to_owned(),
            format!("x{event}"),
            serde_json::to_string(event).unwrap(),
            format!("[{event},"),
        ] {
            let text = format!("{line}\n2026-03-02T10:15:00+00:00\tm365.audit\t{event}\n");
            assert!(begins(text.as_bytes()).is_none(), "{text}");
        }
    }
}
