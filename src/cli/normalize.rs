//! `m365-audit normalize`: raw audit events from a file or a pipe, records on stdout.
//!
//! Reads what people have of the feed: newline-delimited JSON, JSON arrays (blobs as fetched, one or many), and the
//! CSV export of Purview's audit search, in UTF-8 or UTF-16. One event in, one record out, in order, streaming; bytes that are no event
//! come out as `m365_audit.bad_blob` records, so that nothing is lost on the way. Knows no tenant and no network.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::exit::Exit;
use super::utf16;
use crate::clock::Clock;
use crate::config::{Format, OcsfVersion, RawForm, RulesError, SeverityConfig};
use crate::model::{Actionable, TenantId};
use crate::normalise::scraps::{Fate, Scraps};
use crate::normalise::split::{Piece, Splitter};
use crate::normalise::{
    BadBody, BadBytes, Event, Mask, Normaliser, NotAPointer, NotAnEvent, Origin, Rendered, Settings, Withheld,
};
use crate::severity::Rules;

/// Makes records of raw audit events.
#[derive(Debug, Clone, clap::Args)]
pub struct NormalizeArgs {
    /// Shape of a record: `native`, `ecs`, `ocsf`, or `raw` (each event alone on one line).
    #[arg(long, default_value = "native", value_parser = named::<Format>)]
    pub format: Format,
    /// Version of the `ocsf` format: `1.8.0` or `1.1.0`.
    #[arg(long, default_value = "1.8.0", value_parser = named::<OcsfVersion>)]
    pub ocsf_version: OcsfVersion,
    /// Form of `raw` in the native format: `object`, `string` (keeps every byte) or `none`.
    #[arg(long, default_value = "object", value_parser = named::<RawForm>)]
    pub raw: RawForm,
    /// Leave out routine events, as a source with `drop_routine` does.
    #[arg(long)]
    pub drop_routine: bool,
    /// The tenant's GUID; default: each event's own `OrganizationId`.
    #[arg(long, value_name = "GUID")]
    pub tenant_id: Option<TenantId>,
    /// A mail domain of the organisation, beyond those the events name; can be given several times.
    #[arg(long = "internal-domain", value_name = "DOMAIN")]
    pub internal_domains: Vec<String>,
    /// How events are assessed and what is masked.
    #[command(flatten)]
    pub meaning: MeaningArgs,
    /// Newline-delimited JSON, JSON arrays or a CSV export of Purview's audit search; `-` is standard input.
    #[arg(default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
}

/// How events are assessed and what is masked, as a source's configuration says it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MeaningArgs {
    /// Let refinements contradict the plain reading of the first rules, as `severity.refine` does.
    #[arg(long)]
    pub refine: bool,
    /// A TOML file of `[[rule]]` tables that add to the built-in rules or change them.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// A member to mask, as a JSON pointer into the event; can be given several times.
    #[arg(long = "mask", value_name = "POINTER")]
    pub mask: Vec<String>,
    /// Do not mask what data loss prevention found.
    #[arg(long)]
    pub keep_detected_values: bool,
}

impl MeaningArgs {
    /// The rules.
    ///
    /// # Errors
    /// The file of rules cannot be used.
    pub fn rules(&self) -> Result<Arc<Rules>, RulesError> {
        let config =
            SeverityConfig { refine: self.refine, rules_file: self.rules.clone(), ..SeverityConfig::default() };
        config.load()
    }
}

/// Reads an enum by the name it has in the configuration file.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, ValueError> {
    T::deserialize(StrDeserializer::new(text))
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that became records.
    pub records: u64,
    /// Events left out by rule.
    pub dropped: u64,
    /// Elements that were no events and came out as `m365_audit.bad_blob`.
    pub bad: u64,
}

/// Why the command stopped.
#[derive(Debug, thiserror::Error)]
pub enum NormalizeError {
    /// The file cannot be opened.
    #[error("cannot open `{path}`: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The rules cannot be used.
    #[error(transparent)]
    Rules(RulesError),
    /// What is to be masked is no pointer.
    #[error("{0}")]
    Mask(NotAPointer),
    /// Reading stopped half-way; what was read before is out.
    #[error("cannot read the events: {0}")]
    Read(io::Error),
    /// Records cannot be written.
    #[error("cannot write the records: {0}")]
    Write(io::Error),
}

impl Actionable for NormalizeError {
    fn slug(&self) -> &'static str {
        match self {
            Self::Open { .. } => "normalize-open-failed",
            Self::Rules(error) => error.slug(),
            Self::Mask(_) => "mask-invalid",
            Self::Read(_) => "normalize-read-failed",
            Self::Write(_) => "normalize-write-failed",
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Open { .. } => "check the path and its permissions, or give `-` for standard input".into(),
            Self::Rules(error) => error.hint(),
            Self::Mask(_) => "a pointer begins with `/` and names members from the outside in".into(),
            Self::Read(_) => "the records already written are complete; start again with the whole input".into(),
            Self::Write(_) => "check the space and the permissions of where standard output goes".into(),
        }
    }
}

impl NormalizeError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Rules(_) | Self::Mask(_) => Exit::Config,
            Self::Open { .. } | Self::Read(_) | Self::Write(_) => Exit::Internal,
        }
    }
}

/// Runs the command on the file it names, or on standard input, to standard output and standard error.
///
/// # Errors
/// The file cannot be opened or read, or standard output cannot be written. A reader that closed the pipe is no error.
pub fn run(args: &NormalizeArgs, clock: &Arc<dyn Clock>) -> Result<Summary, NormalizeError> {
    let out = BufWriter::with_capacity(READ_BYTES, io::stdout().lock());
    let summary = if args.file.as_os_str() == "-" {
        normalize(args, io::stdin().lock(), out, io::stderr(), clock.as_ref())?
    } else {
        let open = |source| NormalizeError::Open { path: args.file.clone(), source };
        let file = File::open(&args.file).map_err(open)?;
        normalize(args, file, out, io::stderr(), clock.as_ref())?
    };
    if summary.bad > 0 {
        // Nobody may be reading standard error; the records say the same.
        let _ = writeln!(
            io::stderr(),
            "{} events became records; what was no event came out as {} `m365_audit.bad_blob` records, in its place",
            summary.records,
            summary.bad
        );
    }
    Ok(summary)
}

/// Makes records of what `input` holds; the form is told by how it begins.
///
/// # Errors
/// `input` cannot be read, or `out` cannot be written for another reason than that its reader is gone.
pub fn normalize(
    args: &NormalizeArgs,
    input: impl Read,
    out: impl Write,
    err: impl Write,
    clock: &dyn Clock,
) -> Result<Summary, NormalizeError> {
    let settings = Settings {
        format: args.format,
        raw: args.raw,
        ocsf_version: args.ocsf_version,
        drop_routine: args.drop_routine,
        internal_domains: args.internal_domains.clone(),
        rules: args.meaning.rules().map_err(NormalizeError::Rules)?,
        mask: Mask::new(!args.meaning.keep_detected_values, &args.meaning.mask).map_err(NormalizeError::Mask)?,
    };
    let tenant = args.tenant_id.as_ref().map(TenantId::as_str);
    let mut records = Records::new(Normaliser::new(settings), tenant, clock, out, err);
    let done = records.read_all(input).and_then(|()| records.out.flush().map_err(NormalizeError::Write));
    match done {
        Err(NormalizeError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(records.summary),
        Err(error) => Err(error),
        Ok(()) => Ok(records.summary),
    }
}

/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;
/// Bytes of one element kept in memory. Events are kilobytes, a few are megabytes; what is longer is damage.
const ELEMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a bad element in one record; base64 makes four thirds of it.
const PIECE_BYTES_MAX: usize = 256 * 1024;
/// How much of the beginning is looked at for the header of a CSV export.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// The column of an export that holds the event.
const AUDIT_DATA: &str = "AuditData";

struct Records<'a, O, E> {
    normaliser: Normaliser,
    origin: Origin<'a>,
    clock: &'a dyn Clock,
    /// The record being made, kept for its memory.
    line: Vec<u8>,
    out: O,
    err: E,
    summary: Summary,
    /// Bytes that are no event, until it is known where they end.
    bad: Option<Bad>,
    scraps: Scraps,
    /// The event that came last.
    last: Bytes,
}

impl<'a, O: Write, E: Write> Records<'a, O, E> {
    fn new(normaliser: Normaliser, tenant: Option<&'a str>, clock: &'a dyn Clock, out: O, err: E) -> Self {
        Self {
            // A file is what somebody has at hand: all of it comes out.
            scraps: Scraps::new(normaliser.censor(), usize::MAX, usize::MAX),
            normaliser,
            origin: Origin { tenant, ..Origin::default() },
            clock,
            line: Vec::new(),
            out,
            err,
            summary: Summary::default(),
            bad: None,
            last: Bytes::new(),
        }
    }

    fn read_all(&mut self, input: impl Read) -> Result<(), NormalizeError> {
        let mut input = Input::new(input);
        let mut beginning = Vec::new();
        let mut ended = false;
        while !ended && beginning.len() < HEADER_BYTES_MAX && header_end(&beginning).is_none() {
            ended = !input.read_more(&mut beginning)?;
        }
        if let Some(order) = utf16::order(&beginning) {
            // As PowerShell and Excel write text: made UTF-8, then read from the beginning.
            let mut decoded = utf16::Decoder::new(order, beginning.chain(input.reader));
            return self.read_all(&mut decoded as &mut dyn Read);
        }
        let begin = if beginning.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        beginning.drain(..begin);
        // `Export-Csv` of Windows PowerShell writes the type of what it exports before the header.
        if beginning.trim_ascii_start().starts_with(b"#TYPE ") {
            let header = |beginning: &[u8]| {
                let first = header_end(beginning)?;
                Some((first, first + header_end(beginning.get(first..)?)?))
            };
            while !ended && beginning.len() < HEADER_BYTES_MAX && header(&beginning).is_none() {
                ended = !input.read_more(&mut beginning)?;
            }
            let first = header_end(&beginning).unwrap_or(beginning.len());
            let second = header(&beginning).map_or(beginning.len(), |(_, second)| second);
            if beginning.get(first..second).and_then(csv_delimiter).is_some() {
                beginning.drain(..first);
            }
        }
        let header_end = header_end(&beginning).unwrap_or(beginning.len());
        match beginning.get(..header_end).and_then(csv_delimiter) {
            Some(delimiter) => self.read_csv(delimiter, beginning.chain(input.reader)),
            None => self.read_json(beginning, input),
        }
    }

    fn read_json(&mut self, beginning: Vec<u8>, mut input: Input<impl Read>) -> Result<(), NormalizeError> {
        let mut splitter = Splitter::of_stream(ELEMENT_BYTES_MAX);
        splitter.push(beginning.into());
        loop {
            while let Some(piece) = splitter.next() {
                self.piece(piece, 0)?;
            }
            // Whoever follows a growing input sees each record when its event is complete.
            self.out.flush().map_err(NormalizeError::Write)?;
            let mut chunk = Vec::new();
            if !input.read_more(&mut chunk)? {
                break;
            }
            splitter.push(chunk.into());
        }
        splitter.finish();
        while let Some(piece) = splitter.next() {
            self.piece(piece, 0)?;
        }
        self.bad_ends()
    }

    fn read_csv(&mut self, delimiter: u8, input: impl Read) -> Result<(), NormalizeError> {
        let mut reader =
            csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(true).from_reader(input);
        let headers = reader.byte_headers().map_err(read_error)?;
        let column = headers.iter().position(|header| header.trim_ascii().eq_ignore_ascii_case(AUDIT_DATA.as_bytes()));
        let mut row = csv::ByteRecord::new();
        while reader.read_byte_record(&mut row).map_err(read_error)? {
            let offset = row.position().map_or(0, csv::Position::byte);
            match column.and_then(|column| row.get(column)) {
                Some(event) => self.cell(event, offset)?,
                None => {
                    let fields: Vec<&[u8]> = row.iter().collect();
                    self.bad(&fields.join(&delimiter), offset, "a row without `AuditData`")?;
                    self.bad_ends()?;
                }
            }
        }
        Ok(())
    }

    /// A cell of an export: an event, or what damage has made of some.
    fn cell(&mut self, bytes: &[u8], offset: u64) -> Result<(), NormalizeError> {
        if let Ok(event) = Event::parse(bytes) {
            return self.event(&event);
        }
        let mut splitter = Splitter::of_stream(ELEMENT_BYTES_MAX);
        splitter.push(Bytes::copy_from_slice(bytes));
        let mut pieces: Vec<Piece> = std::iter::from_fn(|| splitter.next()).collect();
        splitter.finish();
        pieces.extend(std::iter::from_fn(|| splitter.next()));
        let is_event = |piece: &Piece| match piece {
            Piece::Element { bytes, .. } => Event::parse(bytes).is_ok_and(|event| event.identity().is_some()),
            Piece::Damaged { .. } => false,
        };
        if pieces.iter().any(is_event) {
            for piece in pieces {
                self.piece(piece, offset)?;
            }
        } else {
            self.bad(bytes, offset, &NotAnEvent.to_string())?;
        }
        self.bad_ends()
    }

    /// A piece of what begins at `base`.
    fn piece(&mut self, piece: Piece, base: u64) -> Result<(), NormalizeError> {
        match piece {
            Piece::Element { bytes, offset, .. } => match Event::parse(&bytes) {
                Ok(event) => {
                    self.bad_ends()?;
                    self.event(&event)?;
                    self.last = bytes;
                    Ok(())
                }
                Err(error) => self.bad(&bytes, base + offset, &error.to_string()),
            },
            Piece::Damaged { bytes, offset, .. } => self.bad(&bytes, base + offset, &NotAnEvent.to_string()),
        }
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), NormalizeError> {
        self.line.clear();
        match self.normaliser.render_from(event, &self.origin, &mut self.line) {
            Rendered::Record { .. } => {
                self.summary.records += 1;
                self.write_line()
            }
            Rendered::Dropped { .. } => {
                self.summary.dropped += 1;
                Ok(())
            }
        }
    }

    /// Bytes that are no event, which may go on where the last ended.
    fn bad(&mut self, bytes: &[u8], offset: u64, why: &str) -> Result<(), NormalizeError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.bad.as_ref().is_none_or(|bad| bad.end() != offset) {
            self.bad_ends()?;
            if !self.last.is_empty() {
                self.scraps.follows(&std::mem::take(&mut self.last));
            }
            self.bad = Some(Bad { offset, written: 0, bytes: Vec::new(), why: why.to_owned() });
        }
        if let Some(bad) = &mut self.bad {
            bad.bytes.extend_from_slice(bytes);
        }
        self.write_bad(PIECE_BYTES_MAX)
    }

    /// Writes what there is of bad bytes, in pieces, as long as there are `at_least` so many.
    fn write_bad(&mut self, at_least: usize) -> Result<(), NormalizeError> {
        let Some(mut bad) = self.bad.take() else { return Ok(()) };
        let mut rest = bad.bytes.as_slice();
        while !rest.is_empty() && rest.len() >= at_least {
            let (piece, after) = rest.split_at(rest.len().min(PIECE_BYTES_MAX));
            let offset = bad.offset + bad.written;
            self.line.clear();
            let now = self.clock.now();
            let fate = self.scraps.judge(piece, offset);
            let body = match &fate {
                Fate::Withheld(sha256) => {
                    let bytes = piece.len() as u64;
                    BadBody::Withheld { bytes, sha256, why: Withheld::MaskedHere, stretches: None }
                }
                Fate::Shown | Fate::Counted => BadBody::Shown(piece),
            };
            let bytes = BadBytes { origin: self.origin, now, offset, total: None, body, reason: &bad.why };
            self.normaliser.render_bad(&bytes, &mut self.line);
            self.write_line()?;
            bad.written += piece.len() as u64;
            rest = after;
        }
        bad.bytes = rest.to_vec();
        self.bad = Some(bad);
        Ok(())
    }

    /// What comes next does not belong to the bad bytes.
    fn bad_ends(&mut self) -> Result<(), NormalizeError> {
        self.write_bad(1)?;
        if let Some(bad) = self.bad.take() {
            self.summary.bad += 1;
            // Nobody may be reading standard error; the records say the same.
            let _ = writeln!(self.err, "at byte {}: {} bytes are no audit event: {}", bad.offset, bad.written, bad.why);
        }
        Ok(())
    }

    fn write_line(&mut self) -> Result<(), NormalizeError> {
        self.line.push(b'\n');
        self.out.write_all(&self.line).map_err(NormalizeError::Write)
    }
}

/// Bytes that are no event, as far as they were read.
struct Bad {
    offset: u64,
    /// How many are in records already.
    written: u64,
    /// Those that are not.
    bytes: Vec<u8>,
    why: String,
}

impl Bad {
    fn end(&self) -> u64 {
        self.offset + self.written + self.bytes.len() as u64
    }
}

/// The input and the room to read it into.
struct Input<R> {
    reader: R,
    chunk: Box<[u8]>,
}

impl<R: Read> Input<R> {
    fn new(reader: R) -> Self {
        Self { reader, chunk: vec![0; READ_BYTES].into() }
    }

    /// Appends what one read gives to `buffer`; false at the end.
    fn read_more(&mut self, buffer: &mut Vec<u8>) -> Result<bool, NormalizeError> {
        loop {
            match self.reader.read(&mut self.chunk) {
                Ok(read) => {
                    buffer.extend_from_slice(self.chunk.get(..read).unwrap_or_default());
                    return Ok(read > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NormalizeError::Read(error)),
            }
        }
    }
}

fn read_error(error: csv::Error) -> NormalizeError {
    NormalizeError::Read(match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    })
}

/// Where the first line that is not blank ends.
fn header_end(bytes: &[u8]) -> Option<usize> {
    let blank = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    Some(blank + memchr::memchr(b'\n', bytes.get(blank..)?)?)
}

/// The delimiter of a CSV header that has the column `AuditData`.
fn csv_delimiter(header: &[u8]) -> Option<u8> {
    let first = header.trim_ascii_start().first()?;
    if matches!(first, b'{' | b'[') {
        return None;
    }
    let delimiters = [b',', b';', b'\t'];
    let delimiter = *delimiters.iter().max_by_key(|delimiter| memchr::memchr_iter(**delimiter, header).count())?;
    let named = |field: &[u8]| {
        let field = field.trim_ascii();
        let field = field.strip_prefix(b"\"").and_then(|field| field.strip_suffix(b"\"")).unwrap_or(field);
        field.trim_ascii().eq_ignore_ascii_case(AUDIT_DATA.as_bytes())
    };
    header.split(|byte| *byte == delimiter).any(named).then_some(delimiter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;
    use clap::Parser as _;
    use proptest::prelude::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: NormalizeArgs,
    }

    /// Hands out `step` bytes at a time, so that elements are cut at every place.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(step);
            buffer[..step].copy_from_slice(now);
            self.0 = later;
            Ok(step)
        }
    }

    fn run_in_steps(flags: &[&str], input: &[u8], step: usize) -> (String, String, Summary) {
        let args = Cli::parse_from(["normalize"].iter().chain(flags)).args;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let clock = TestClock::at("2026-05-10T00:00:00Z".parse().unwrap());
        let summary = normalize(&args, Slow(input, step), &mut out, &mut err, &clock).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), summary)
    }

    /// Ids of the records in order, `bad` for bytes that were no event; the same however the input is cut.
    fn ids(input: &[u8]) -> String {
        let one = run_in_steps(&["--raw=none"], input, usize::MAX);
        for step in [1, 2, 7] {
            assert_eq!(run_in_steps(&["--raw=none"], input, step), one, "{step}");
        }
        let names: Vec<String> = one
            .0
            .lines()
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                record["event_id"].as_str().unwrap_or("bad").to_owned()
            })
            .collect();
        assert_eq!(one.2.bad as usize, one.1.lines().count());
        names.join(" ")
    }

    const A: &str = r#"{"Id":"a","Operation":"Op, [1] {\"","X":[{"y":{}}]}"#;
    const B: &str = r#"{"Id":"b","Operation":"Op"}"#;

    #[test]
    fn every_form_gives_its_events_in_order() {
        let pretty = serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(A).unwrap()).unwrap();
        let flat = pretty.lines().map(str::trim_start).collect::<Vec<_>>().join("\r\n");
        let quoted = |event: &str| format!("\"{}\"", event.replace('"', "\"\""));
        for input in [
            format!("{A}\n{B}\n"),
            format!("{A}\r\n\r\n{B}"),
            format!("\u{feff}[{A},{B}]"),
            format!("[{A}]\n[{B}]\n"),
            format!("[\n{A},\n{B}\n]"),
            format!("[{pretty}, {pretty}]")
                .replacen("\"a\"", "\"a\"", 1)
                .replace(&format!(", {pretty}"), &format!(", {B}")),
            format!("{pretty}\n{B}"),
            format!("{flat}\n{B}"),
            format!("{A}{B}"),
            format!("RecordId,CreationDate,AuditData\n1,x,{}\n2,y,{}\n", quoted(A), quoted(B)),
            format!("\u{feff}\"AuditData\";\"Identity\"\r\n{};1\r\n{};2", quoted(A), quoted(B)),
        ] {
            assert_eq!(ids(input.as_bytes()), "a b", "{input}");
        }
        let export =
            format!("#TYPE Selected.System\r\n\"Identity\",\"AuditData\"\r\n1,{}\r\n2,{}\r\n", quoted(A), quoted(B));
        assert_eq!(ids(export.as_bytes()), "a b");
        let wide = |text: &str| -> Vec<u8> {
            std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
        };
        assert_eq!(ids(&wide(&export)), "a b");
        assert_eq!(ids(&wide(&format!("[{A},\n{B}]"))), "a b");
        // Before anything else it is a line like any other.
        assert_eq!(ids(format!("#TYPE x\n{A}").as_bytes()), "bad a");
        assert_eq!(ids(b"#TYPE "), "bad");
        assert_eq!(ids(b""), "");
        assert_eq!(ids(b" []\n[ ] "), "");
    }

    #[test]
    fn what_is_no_event_comes_out_as_it_is_and_costs_no_neighbour() {
        for (input, expected) in [
            (format!("{A}\nnonsense\n{B}"), "a bad b"),
            (format!("{A}\n{{\"Id\":\"x\n{B}"), "a bad b"),
            (format!("{A}\n{{\"Id\":1\n{B}"), "a bad b"),
            (format!("{A}\n{{\"Id\":1,\n{B}\n{A}"), "a bad b a"),
            (format!("[{A},null,{B},3]"), "a bad b bad"),
            (format!("[{A},[1,2],{B}"), "a bad b"),
            (format!("[{A},{{\"Id\":"), "a bad"),
            // One line, one byte: what the feed's blobs keep is kept here.
            (format!("[{A},{},{B}]", &A[..A.len() - 1]), "a bad b"),
            (format!("[{A},{},{B},{A}]", &A[1..]), "a bad b a"),
            (format!("[{A},{},{B},{A}]", A.replacen("\"a\"", "a\"", 1)), "a bad b a"),
            (format!("[{A},{},{B},{A}]", A.replacen("\"a\"", "\"a", 1)), "a bad b a"),
            (format!("[{A}],{B},{A}]"), "a b a bad"),
            (format!("{A},{},{B}\n{A}", &A[..A.len() - 1]), "a bad b a"),
            (format!("{A} {} {B}\n{A}", A.replacen("\"a\"", "\"a", 1)), "a bad b a"),
            // A line that lost its end in a list.
            (format!("{A}\n{{\"Id\":\"x\",\"L\":[1,\n{B}\n{A}\n"), "a bad b a"),
            // Objects that are no events are found on their lines.
            ("{\"Id\":\"x\n{\"other\":1}\n{\"Id\":\"c\"}\n".to_owned(), "bad bad c"),
            (format!("{A}\n\"text\"\n17 18\n{B}"), "a bad b"),
            (format!("{A}\n\u{1}\u{2}\n"), "a bad"),
            (format!("AuditData,Identity\n{{}}x,1\n\"{}\",2\n", B.replace('"', "\"\"")), "bad b"),
            (format!("Identity,AuditData\n1\n2,\"{}\"\n", B.replace('"', "\"\"")), "bad b"),
            ("Identity,Else\n1,2\n".to_owned(), "bad"),
        ] {
            assert_eq!(ids(input.as_bytes()), expected, "{input}");
        }
    }

    #[test]
    fn nothing_is_dropped_unless_asked_and_the_tenant_is_the_given_one() {
        let routine =
            br#"{"Id":"a","Operation":"FileAccessed","OrganizationId":"7F3C0000-0000-0000-0000-000000000001"}"#;
        let (out, _, summary) = run_in_steps(&["--raw=none"], routine, 99);
        assert_eq!(summary.records, 1);
        assert!(out.contains(r#""tenant_id":"7f3c0000-0000-0000-0000-000000000001""#), "{out}");
        assert!(!out.contains("content_") && !out.contains("timestamp"), "{out}");
        let (out, _, summary) = run_in_steps(&["--drop-routine"], routine, 99);
        assert_eq!((out.as_str(), summary.dropped), ("", 1));
        let tenant = "--tenant-id=00000000-0000-0000-0000-0000000000AB";
        let (out, _, _) = run_in_steps(&[tenant, "--raw=none"], routine, 99);
        assert!(out.contains(r#""tenant_id":"00000000-0000-0000-0000-0000000000ab""#), "{out}");
        let (out, _, _) = run_in_steps(&["--format=raw"], b"{\n \"Id\":1\r\n}", 99);
        assert_eq!(out, "{ \"Id\":1}\n");
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_command_cleanly() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let args = Cli::parse_from(["normalize"]).args;
        let clock = TestClock::at("2026-05-10T00:00:00Z".parse().unwrap());
        let summary = normalize(&args, A.as_bytes(), Gone, io::sink(), &clock).unwrap();
        assert_eq!(summary.records, 1);
    }

    #[test]
    fn a_long_bad_element_comes_in_pieces() {
        let long = vec![b'x'; PIECE_BYTES_MAX * 2 + 1];
        let (out, err, summary) = run_in_steps(&[], &long, usize::MAX);
        let offsets: Vec<u64> = out
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["offset"].as_u64().unwrap())
            .collect();
        assert_eq!(offsets, [0, PIECE_BYTES_MAX as u64, 2 * PIECE_BYTES_MAX as u64]);
        assert_eq!((summary.bad, err.lines().count()), (1, 1));
    }

    /// Whether a record, a line about it, or the body that a record carries holds a text.
    fn holds(output: &[u8], text: &str) -> bool {
        use base64::Engine as _;
        let in_body = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let bodies =
                [&record["body_base64"], &record["m365"]["audit"]["body_base64"], &record["unmapped"]["body_base64"]];
            bodies.iter().filter_map(|body| body.as_str()).any(|body| {
                let body = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
                memchr::memmem::find(&body, text.as_bytes()).is_some()
            })
        };
        memchr::memmem::find(output, text.as_bytes()).is_some()
            || std::str::from_utf8(output).unwrap().lines().any(in_body)
    }

    fn normalised(normaliser: &Normaliser, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let clock = TestClock::at("2026-05-10T00:00:00Z".parse().unwrap());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        Records::new(normaliser.clone(), None, &clock, &mut out, &mut err).read_all(input).unwrap();
        (out, err)
    }

    /// README: what data loss prevention found leaves in no format, whatever byte of the record is damaged, wherever it
    /// is cut.
    #[test]
    fn nothing_that_was_found_leaves_whatever_byte_is_damaged_and_wherever_it_is_cut() {
        const FOUND: &str = "4111222233334444";
        let found = |name: &str, quote: &str| {
            format!(r#"{{"{name}":[{{"Name":"{FOUND}","Value":"a {FOUND}"}},{{"Name":"{FOUND}"}}],"Count":2}}"#)
                .replace('"', quote)
        };
        let inner = [
            found("DetectedValues", "\""),
            found("\\u0044etectedV\\u0061lues", "\""),
            found("DETECTEDVALUES", "\""),
            format!("\"{}\"", found("DetectedValues", "\\\"")),
            format!("[\"{{\\\"a\\\":\\\"{}\\\"}}\"]", found("DetectedValues", r#"\\\""#)),
        ];
        let normalisers = [Format::Native, Format::Ecs, Format::Ocsf, Format::Raw]
            .map(|format| Normaliser::new(Settings { format, ..Settings::default() }));
        for (index, inner) in inner.iter().enumerate() {
            // Those in strings are known by this member, which all records of data loss prevention have.
            let policy = if index < 3 { "" } else { r#""PolicyDetails":[],"# };
            let body = format!(r#"[{B},{{"Id":"d","Operation":"o",{policy}"X":{inner},"Y":{{}}}},{A}]"#);
            let body = body.as_bytes();
            for at in 0..=body.len() {
                let edits: &[Option<u8>] =
                    &[None, Some(b'x'), Some(b'"'), Some(b'\\'), Some(b'}'), Some(b']'), Some(b',')];
                let damaged = edits.iter().flat_map(|byte| {
                    [0, 1].map(|skip| {
                        let rest = body.get(at + skip..).unwrap_or_default();
                        [&body[..at], byte.as_slice(), rest].concat()
                    })
                });
                for (n, input) in damaged.chain([body[..at].to_vec()]).enumerate() {
                    // Each way in one format, and each format in every fourth.
                    let (out, err) = normalised(&normalisers[(n + at) % 4], &input);
                    let shown = || format!("{}\n{}", String::from_utf8_lossy(&input), String::from_utf8_lossy(&out));
                    assert!(!holds(&out, FOUND), "at {at}: {}", shown());
                    assert!(memchr::memmem::find(&err, FOUND.as_bytes()).is_none(), "{}", shown());
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_parsed_and_names_what_is_masked_is_withheld_with_its_length_and_hash() {
        let secret = r#"{"Id":"x","Operation":"y","Subject":"the plan","Z":[1}"#;
        let (out, _, _) = run_in_steps(&["--mask=/Subject"], format!("{secret}\n{B}").as_bytes(), 7);
        let record: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        assert!(record["body_base64"].is_null() && record["body_withheld"].is_string(), "{record}");
        assert_eq!((&record["body_bytes"], &record["offset"]), (&(secret.len() + 1).into(), &0.into()));
        let hash = ring::digest::digest(&ring::digest::SHA256, format!("{secret}\n").as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(record["body_sha256"], hash);
        let (out, _, _) = run_in_steps(&[], format!("{secret}\n{B}").as_bytes(), 7);
        assert!(out.contains("body_base64"), "{out}");
        // UTF-16, and a cell of an export.
        let found = r#"{"Id":"x","Operation":"y","DetectedValues":["4111"],"Z":[1}"#;
        let wide: Vec<u8> = std::iter::once(0xfeff).chain(found.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        let cell = format!("RecordId,AuditData\n1,\"{}\"\n", found.replace('"', "\"\""));
        for input in [wide, cell.into_bytes(), found.encode_utf16().flat_map(u16::to_be_bytes).collect()] {
            let (out, _, _) = run_in_steps(&[], &input, 7);
            assert!(out.contains("body_withheld") && !out.contains("body_base64"), "{out}");
        }
    }

    proptest! {
        #[test]
        fn no_byte_of_any_input_is_lost(parts in prop::collection::vec(
            prop_oneof![Just(A.to_owned()), Just(B.to_owned()), r#"[\[\]{}",:\\ a\n]{0,6}"#.prop_map(String::from)], 0..8)
        ) {
            let input = parts.concat();
            let (out, _, _) = run_in_steps(&[], input.as_bytes(), 3);
            let mut kept = String::new();
            for line in out.lines() {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                match record["body_base64"].as_str() {
                    Some(body) => {
                        use base64::Engine as _;
                        let bytes = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
                        kept.push_str(std::str::from_utf8(&bytes).unwrap());
                    }
                    None => {
                        let raw = &line[line.find("\"raw\":").unwrap() + 6..line.len() - 1];
                        kept.push_str(raw);
                    }
                }
            }
            // Between elements there is nothing but white space, commas and the brackets of arrays.
            let essence = |text: &str| text.replace([' ', '\n', ',', '[', ']'], "");
            prop_assert_eq!(essence(&kept), essence(&input));
        }
    }
}
