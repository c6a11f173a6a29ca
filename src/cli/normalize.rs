//! `m365-audit normalize`: audit events from files or a pipe, records on stdout.
//!
//! Reads events of the feed in any form that `crate::exports` supports. One event in, one record out, in order,
//! streaming. Bytes that are not an event become `m365_audit.bad_blob` records, so that no data is lost. Knows no
//! tenant and no network.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::bad_records::BadRecords;
use super::progress::{ProgressDisplay, ProgressUnit};
use super::reading::{Messages, NormalizeError, ReadCounts};
use crate::clock::Clock;
use crate::config::{EcsProfile, Format, OcsfVersion, RawForm, RulesError, SeverityConfig};
use crate::exports::input::{Input, StopReading};
use crate::exports::pipeline::{self, BadItem, Item, Make, ReadEvent};
use crate::exports::seen::SeenKeys;
use crate::model::{TenantId, Timestamp, plain};
use crate::normalise::{Event, Mask, Normaliser, NormaliserSettings, Origin, Rendered, canonical_key};
use crate::severity::Rules;

/// Makes records of audit events.
#[derive(Debug, Clone, clap::Args)]
pub struct NormalizeArgs {
    /// Shape of a record: `native`, `ecs`, `ocsf`, or `raw` (each event alone on one line).
    #[arg(short, long, default_value = "native", value_parser = named::<Format>)]
    pub format: Format,
    /// Version of the `ocsf` format: `1.8.0` or `1.1.0`.
    #[arg(long, default_value = "1.8.0", value_parser = named::<OcsfVersion>)]
    pub ocsf_version: OcsfVersion,
    /// Names of the `ecs` format: `ecs`, or `elastic-o365` for Elastic's own rules and dashboards.
    #[arg(long, default_value = "ecs", value_parser = named::<EcsProfile>)]
    pub ecs_profile: EcsProfile,
    /// Form of `raw` in the native format: `object`, `string` (keeps every byte) or `none`.
    #[arg(long, default_value = "object", value_parser = named::<RawForm>)]
    pub raw: RawForm,
    /// A line for people in place of each record: time, severity, rules and what happened.
    #[arg(long, conflicts_with = "format")]
    pub table: bool,
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
    /// Which of the events, and from where.
    #[command(flatten)]
    pub reading: ReadingArgs,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct ReadingArgs {
    /// Leave out an event that came before, in whatever form; exports overlap. Takes 20 bytes of memory an event.
    #[arg(long)]
    pub unique: bool,
    /// Leave out events before this time, such as `2026-05-01`, `2026-05-01T10:00:00Z` or `30d` ago. An event without a time stays.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub from: Option<Timestamp>,
    /// Leave out events of this time and after.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub to: Option<Timestamp>,
    /// Files and folders in any form that `docs/exports.md` names, packed or not; `-` is standard input.
    #[arg(default_value = "-", value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

impl ReadingArgs {
    /// The inputs to read.
    pub fn inputs(&self) -> Vec<Input<'static>> {
        self.files.iter().map(|file| Input::named(file)).collect()
    }

    /// The same, with a progress bar for the reading.
    pub(super) fn watched_inputs(&self, progress: &ProgressDisplay, what: &str) -> Vec<Input<'static>> {
        let inputs = self.inputs();
        progress.begin(what, inputs.iter().map(Input::bytes).sum());
        let watch = progress.adder();
        inputs.into_iter().map(|input| input.watched(&watch)).collect()
    }

    /// Whether an event of this time is selected; `None` is an unknown time.
    pub fn admits(&self, time: Option<Timestamp>) -> bool {
        time.is_none_or(|time| self.from.is_none_or(|from| from <= time) && self.to.is_none_or(|to| time < to))
    }
}

/// A time (UTC if it has no zone), or an age.
fn moment(text: &str) -> Result<Timestamp, String> {
    match text.parse::<jiff::civil::DateTime>() {
        // Times of events have no zone either.
        Ok(time) if !text.ends_with(['z', 'Z']) => {
            jiff::tz::TimeZone::UTC.to_timestamp(time).map_err(|error| error.to_string())
        }
        _ => super::moment::time(text),
    }
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

/// Runs the command on the files it names, or on standard input, to standard output and standard error.
///
/// # Errors
/// Standard output cannot be written. A closed pipe is not an error. Unreadable input is reported on standard error and
/// counted.
pub fn run(args: &NormalizeArgs, clock: &Arc<dyn Clock>) -> Result<ReadCounts, NormalizeError> {
    let progress = ProgressDisplay::beside_output(ProgressUnit::Bytes);
    let out = BufWriter::with_capacity(WRITE_BYTES, io::stdout().lock());
    let inputs = args.reading.watched_inputs(&progress, "normalize");
    let tally = normalize(args, inputs, out, progress.beside(io::stderr()), clock.as_ref());
    progress.end();
    let tally = tally?;
    // A failure is ignored: standard error may have no reader.
    let _ = writeln!(io::stderr(), "{tally}");
    Ok(tally)
}

const WRITE_BYTES: usize = 256 * 1024;

/// Makes records of the events of `inputs`.
///
/// # Errors
/// `out` cannot be written, except for a closed pipe.
pub fn normalize(
    args: &NormalizeArgs,
    inputs: Vec<Input<'_>>,
    out: impl Write,
    err: impl Write,
    clock: &dyn Clock,
) -> Result<ReadCounts, NormalizeError> {
    write_records(&Maker::new(args)?, inputs, out, err, clock)
}

fn write_records(
    maker: &Maker<'_>,
    inputs: Vec<Input<'_>>,
    out: impl Write,
    err: impl Write,
    clock: &dyn Clock,
) -> Result<ReadCounts, NormalizeError> {
    let mut records = Records::new(maker, clock, out, err);
    let mut failed = None;
    let done = pipeline::read(inputs, maker, &mut |item| {
        records.take(item).map_err(|error| {
            failed = Some(error);
            StopReading
        })
    });
    let done = done.map_err(|StopReading| failed).and_then(|()| records.end().map_err(Some));
    match done {
        Err(Some(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(NormalizeError::Write(error)),
        _ => Ok(records.messages.tally),
    }
}

/// Makes the record of one event.
struct Maker<'a> {
    normaliser: Normaliser,
    args: &'a NormalizeArgs,
    origin: Origin<'a>,
}

impl<'a> Maker<'a> {
    fn new(args: &'a NormalizeArgs) -> Result<Maker<'a>, NormalizeError> {
        let settings = NormaliserSettings {
            format: args.format,
            raw: args.raw,
            ocsf_version: args.ocsf_version,
            ecs_profile: args.ecs_profile,
            drop_routine: args.drop_routine,
            internal_domains: args.internal_domains.clone(),
            rules: args.meaning.rules().map_err(NormalizeError::Rules)?,
            mask: Mask::new(!args.meaning.keep_detected_values, &args.meaning.mask).map_err(NormalizeError::Mask)?,
        };
        let tenant = args.tenant_id.as_ref().map(TenantId::as_str);
        Ok(Maker { normaliser: Normaliser::new(settings), args, origin: Origin { tenant, ..Origin::default() } })
    }
}

/// The result for an event.
enum MadeRecord {
    /// A record, and the key that the event has in every form.
    Record(Option<[u8; 16]>),
    /// None: a rule drops it as routine.
    Dropped,
    /// None: it is outside the selected time.
    Outside,
}

impl Make for Maker<'_> {
    type Made = MadeRecord;

    fn make(&self, _: &ReadEvent, event: &Event<'_>, out: &mut Vec<u8>) -> MadeRecord {
        let reading = &self.args.reading;
        if (reading.from.is_some() || reading.to.is_some()) && !reading.admits(event.time()) {
            return MadeRecord::Outside;
        }
        let start = out.len();
        match self.normaliser.render_from(event, &self.origin, out) {
            Rendered::Dropped { .. } => {
                out.truncate(start);
                return MadeRecord::Dropped;
            }
            Rendered::Record { .. } if self.args.table => {
                out.truncate(start);
                self.push_row(event, out);
            }
            Rendered::Record { .. } => out.push(b'\n'),
        }
        let key = reading.unique.then(|| canonical_key(event)).flatten();
        MadeRecord::Record(key.map(|key| *key.as_bytes()))
    }
}

/// The widths of the columns of `--table`, except the last.
const WIDTHS: [usize; 3] = [20, 8, 12];

impl Maker<'_> {
    /// Appends an event as a row for people.
    fn push_row(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        let explanation = self.normaliser.explain(event);
        let time = event.time().map(|time| time.to_string()).unwrap_or_default();
        let rules: Vec<&str> = explanation.assessment.matches.iter().map(|found| found.rule().id.as_str()).collect();
        let severity = explanation.assessment.severity();
        push_columns([&time, severity.as_str(), &rules.join(" ")], &explanation.title, out);
    }
}

fn push_columns(columns: [&str; 3], last: &str, out: &mut Vec<u8>) {
    for (column, width) in columns.into_iter().zip(WIDTHS) {
        out.extend_from_slice(format!("{column:<width$}  ").as_bytes());
    }
    out.extend_from_slice(plain(last).as_bytes());
    out.push(b'\n');
}

/// Takes the results in the order of the input and writes them.
struct Records<'a, O, E> {
    args: &'a NormalizeArgs,
    bad: BadRecords<'a>,
    seen: SeenKeys,
    out: O,
    messages: Messages<E>,
}

impl<'a, O: Write, E: Write> Records<'a, O, E> {
    fn new(maker: &'a Maker<'a>, clock: &'a dyn Clock, out: O, err: E) -> Self {
        Self {
            args: maker.args,
            bad: BadRecords::new(&maker.normaliser, maker.origin, clock, !maker.args.meaning.mask.is_empty()),
            seen: SeenKeys::default(),
            out,
            messages: Messages::new(err, maker.args.reading.unique),
        }
    }

    fn take(&mut self, item: Item<'_, MadeRecord>) -> io::Result<()> {
        match item {
            Item::Event(read, made, line) => {
                self.bad_ends()?;
                self.bad.follows(read);
                self.messages.event(read);
                match made {
                    MadeRecord::Record(Some(key)) if !self.seen.insert(key) => self.messages.repeated(),
                    MadeRecord::Record(_) => return self.write(line),
                    MadeRecord::Dropped => self.messages.tally.dropped += 1,
                    MadeRecord::Outside => self.messages.tally.outside += 1,
                }
                Ok(())
            }
            Item::Bad(bad) => self.take_bad(bad),
            Item::Notice(kind) => {
                self.bad_ends()?;
                self.messages.notice(kind);
                Ok(())
            }
            Item::Problem(error) => {
                self.bad_ends()?;
                self.messages.problem(&NormalizeError::Input(error));
                Ok(())
            }
            Item::Truncated(place) => {
                self.messages.truncated(place);
                Ok(())
            }
            Item::Note(note) => {
                self.messages.say(&note);
                Ok(())
            }
            // The reader of a growing input gets each record when its event is complete.
            Item::Pause => self.out.flush(),
        }
    }

    fn take_bad(&mut self, bad: &BadItem) -> io::Result<()> {
        if !self.bad.goes_on(bad) {
            self.bad_ends()?;
        }
        let table = self.args.table;
        let out = &mut self.out;
        self.bad.push(bad, &mut |line| if table { Ok(()) } else { out.write_all(line) })
    }

    /// Ends the stretch of bad bytes.
    fn bad_ends(&mut self) -> io::Result<()> {
        let table = self.args.table;
        let out = &mut self.out;
        let ended = self.bad.end(&mut |line| if table { Ok(()) } else { out.write_all(line) })?;
        if let Some(ended) = ended {
            if table {
                let mut row = Vec::new();
                push_columns(["", "", "not read"], &ended.to_string(), &mut row);
                self.out.write_all(&row)?;
            }
            self.messages.bad(&ended);
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.args.table && self.messages.tally.rows == 0 {
            let mut header = Vec::new();
            push_columns(["TIME", "SEVERITY", "RULES"], "EVENT", &mut header);
            self.out.write_all(&header)?;
        }
        self.messages.tally.rows += 1;
        self.out.write_all(line)
    }

    fn end(&mut self) -> io::Result<()> {
        self.bad_ends()?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bad_records::PIECE_BYTES_MAX;
    use super::super::exit::Exit;
    use super::*;
    use crate::clock::TestClock;
    use clap::Parser as _;
    use proptest::prelude::*;
    use std::io::Read;

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

    fn run_in_steps(flags: &[&str], input: &[u8], step: usize) -> (String, String, ReadCounts) {
        let args = Cli::parse_from(["normalize"].iter().chain(flags)).args;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let clock = TestClock::at("2026-05-10T00:00:00Z".parse().unwrap());
        let inputs = vec![Input::Stream("-".into(), Box::new(Slow(input, step)))];
        let tally = normalize(&args, inputs, &mut out, &mut err, &clock).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), tally)
    }

    /// Ids of the records in order, `bad` for bytes that were not an event; the same for every way of cutting the
    /// input.
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
        assert_eq!((one.2.bad + one.2.unknown) as usize, one.1.lines().count());
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
        // At the beginning it is a line like any other.
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
            // One damaged byte in one line costs as little as in the feed's blobs.
            (format!("[{A},{},{B}]", &A[..A.len() - 1]), "a bad b"),
            (format!("[{A},{},{B},{A}]", &A[1..]), "a bad b a"),
            (format!("[{A},{},{B},{A}]", A.replacen("\"a\"", "a\"", 1)), "a bad b a"),
            (format!("[{A},{},{B},{A}]", A.replacen("\"a\"", "\"a", 1)), "a bad b a"),
            (format!("[{A}],{B},{A}]"), "a b a bad"),
            (format!("{A},{},{B}\n{A}", &A[..A.len() - 1]), "a bad b a"),
            (format!("{A} {} {B}\n{A}", A.replacen("\"a\"", "\"a", 1)), "a bad b a"),
            // A line that lost its end in a list.
            (format!("{A}\n{{\"Id\":\"x\",\"L\":[1,\n{B}\n{A}\n"), "a bad b a"),
            // Objects that are not events are found on their lines.
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
        assert_eq!(summary.read(), 1);
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
        let inputs = vec![Input::Stream("-".into(), Box::new(A.as_bytes()))];
        assert!(normalize(&args, inputs, Gone, io::sink(), &clock).is_ok());
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

    fn normalised(maker: &Maker<'_>, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let clock = TestClock::at("2026-05-10T00:00:00Z".parse().unwrap());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let inputs = vec![Input::Stream("-".into(), Box::new(input))];
        write_records(maker, inputs, &mut out, &mut err, &clock).unwrap();
        (out, err)
    }

    /// README: values that data loss prevention found are not output in any format, for every damaged byte and every
    /// cut of the record.
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
        let args =
            ["native", "ecs", "ocsf", "raw"].map(|format| Cli::parse_from(["normalize", "--format", format]).args);
        let makers: Vec<Maker<'_>> = args.iter().map(|args| Maker::new(args).unwrap()).collect();
        for (index, inner) in inner.iter().enumerate() {
            // Those in strings are recognised by this member, which all records of data loss prevention have.
            let policy = if index < 3 { "" } else { r#""PolicyDetails":[],"# };
            let record = format!(r#"{{"Id":"d","Operation":"o",{policy}"X":{inner},"Y":{{}}}}"#);
            // In an array, in an object around it, and as an object that is no event.
            let bodies = [
                format!("[{B},{record},{A}]"),
                format!(r#"{{"value":[{record},{A}]}}"#),
                format!(r#"{{"Of":"o",{policy}"X":{inner},"Y":{{}}}}"#),
            ];
            for (body, at) in bodies.iter().flat_map(|body| (0..=body.len()).map(move |at| (body.as_bytes(), at))) {
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
                    let (out, err) = normalised(&makers[(n + at) % 4], &input);
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

    /// The same of a row of an export, in any cell.
    #[test]
    fn nothing_that_was_found_leaves_a_damaged_row() {
        const FOUND: &str = "4111222233334444";
        let event = format!(
            r#"{{"Id":"d","CreationTime":"t","Operation":"o","PolicyDetails":[],"X":{{"DetectedValues":[{{"Name":"{FOUND}","Value":"a, {FOUND}"}}]}}}}"#
        );
        let row =
            |event: &str| format!("r,2026-03-02T10:15:00Z,o,alex@contoso.example,\"{}\"\n", event.replace('"', "\"\""));
        let text = format!("RecordId,CreationDate,Operation,UserId,AuditData\n{}{}{}", row(B), row(&event), row(A));
        let args = Cli::parse_from(["normalize"]).args;
        let maker = Maker::new(&args).unwrap();
        let text = text.as_bytes();
        for at in 49..=text.len() {
            for byte in [None, Some(b'x'), Some(b'"'), Some(b','), Some(b'\n')] {
                for skip in [0, 1] {
                    let input = [&text[..at], byte.as_slice(), text.get(at + skip..).unwrap_or_default()].concat();
                    let (out, err) = normalised(&maker, &input);
                    let shown = || format!("{}\n{}", String::from_utf8_lossy(&input), String::from_utf8_lossy(&out));
                    assert!(!holds(&out, FOUND), "at {at}: {}", shown());
                    assert!(memchr::memmem::find(&err, FOUND.as_bytes()).is_none(), "{}", shown());
                }
            }
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_comes_out_whole_with_what_its_cells_say() {
        let row =
            r#"r1,2026-03-02T10:15:00Z,Set-Mailbox,alex@contoso.example,"{""Id"":""r1"",""Operation"":""Set-Mai""#;
        let text = format!("RecordId,CreationDate,Operation,UserId,AuditData\n{row}\n");
        let (out, err, tally) = run_in_steps(&[], text.as_bytes(), 7);
        let record: serde_json::Value = serde_json::from_str(&out).unwrap();
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.decode(record["body_base64"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8_lossy(&body), row);
        let said =
            ["row_id", "row_time", "row_operation", "row_user", "file"].map(|name| record[name].as_str().unwrap());
        assert_eq!(said, ["r1", "2026-03-02T10:15:00Z", "Set-Mailbox", "alex@contoso.example", "-"]);
        assert_eq!((&record["line"], &record["row"]), (&2.into(), &1.into()));
        assert_eq!((tally.exit(), err.lines().count()), (Exit::Data, 1));
        assert_eq!(tally.to_string(), "0 events read, 1 bad, 0 unknown");
        // A masked member does not appear in the cell of a row, either.
        let (out, _, _) = run_in_steps(&["--mask=/UserId"], text.as_bytes(), 7);
        assert!(out.contains("body_withheld") && !out.contains("alex"), "{out}");
    }

    #[test]
    fn records_of_ours_about_no_event_are_counted_and_nothing_is_wrong_with_their_file() {
        let tenant: TenantId = "7f3c0000-0000-0000-0000-000000000001".parse().unwrap();
        let now = "2026-05-10T00:00:00Z".parse().unwrap();
        for format in ["native", "ecs", "ocsf", "raw"] {
            let args = Cli::parse_from(["normalize", "--format", format]).args;
            let normaliser = Maker::new(&args).unwrap().normaliser;
            let mut sink = Vec::new();
            normaliser.render_from(&Event::parse(B.as_bytes()).unwrap(), &Origin::default(), &mut sink);
            sink.push(b'\n');
            let gap = crate::normalise::GapNotice {
                tenant: &tenant,
                content_type: crate::model::ContentType::General,
                from: now,
                to: now,
                reason: "outage",
                detail: "nothing was listed for 9 days",
                now,
                content_id: None,
            };
            normaliser.render_gap(&gap, &mut sink);
            sink.push(b'\n');
            let blob = crate::normalise::BlobContext {
                tenant: &tenant,
                content_type: crate::model::ContentType::General,
                content_id: "b",
                content_created: now,
            };
            let bytes = crate::normalise::BadBytes::of(&blob, now, 0, b"x", "not JSON");
            normaliser.render_bad(&bytes, &mut sink);
            sink.extend_from_slice(
                b"\n{\"source\":\"m365\",\"event_type\":\"m365_audit.receipt\",\"severity\":\"info\"}\n",
            );
            let (out, err, tally) = run_in_steps(&[], &sink, 7);
            assert_eq!((out.lines().count(), err.as_str(), tally.exit()), (1, "", Exit::Done), "{format}: {tally}");
            let summary = tally.to_string();
            let notices =
                ", 1 m365_audit.bad_blob left out, 1 m365_audit.gap left out, 1 m365_audit.receipt left out; ";
            assert!(summary.starts_with("1 events read, 0 bad, 0 unknown") && summary.contains(notices), "{summary}");
        }
        // The author of the file chooses their names.
        let many: String = (0..99)
            .map(|n| format!("{{\"source\":\"m365\",\"event_type\":\"m365_audit.{n}\",\"severity\":\"info\"}}\n"))
            .collect();
        let (_, _, tally) = run_in_steps(&[], many.as_bytes(), 7);
        assert_eq!((tally.notices.len(), tally.notices.values().sum::<u64>()), (17, 99));
        // A record of this program that should hold an event is reported if it has none.
        let empty = "{\"source\":\"m365\",\"event_type\":\"m365.x.y\",\"severity\":\"low\"}";
        assert_eq!(run_in_steps(&[], empty.as_bytes(), 7).2.exit(), Exit::Data);
    }

    #[test]
    fn a_text_that_its_form_cut_was_not_read() {
        let cut = r#"{"Id":"a","CreationTime":"2026-03-02T10:15:00","Operation":"New-InboxRule","RecordType":1,"Parameters":"System.Object[]"}"#;
        let (out, err, tally) = run_in_steps(&[], cut.as_bytes(), 7);
        assert_eq!((out.lines().count(), tally.cut, tally.exit()), (1, 1, Exit::Data), "{err}");
        assert!(err.contains("`Parameters` was cut"), "{err}");
    }

    #[test]
    fn every_record_is_valid_against_the_published_schema() {
        let schema = crate::config::record_schema();
        let text = format!(
            "{A}\n{{\"Id\":\"x\",\"CreationTime\":\"2026-03-02T10:15:00\",\"Operation\":\"y\"}}\nbad\n{{\"x\":1}}\n"
        );
        let (out, _, _) = run_in_steps(&[], text.as_bytes(), usize::MAX);
        assert_eq!(out.lines().count(), 4);
        for line in out.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            for name in schema["required"].as_array().unwrap() {
                assert!(!record[name.as_str().unwrap()].is_null(), "{name}: {line}");
            }
            for name in record.as_object().unwrap().keys() {
                assert!(!schema["properties"][name].is_null(), "{name}: {line}");
            }
        }
    }

    #[test]
    fn an_event_that_came_before_in_any_form_is_left_out_when_asked() {
        let event =
            |id: &str, time: &str| format!(r#"{{"Id":"{id}","CreationTime":"{time}","Operation":"o","RecordType":1}}"#);
        let a = event("a", "2026-03-02T10:15:00");
        let text = format!(
            "{a}\n{{\"AuditData\":{a}}}\n{}\n{}\n{{\"Operation\":\"o\"}}\n{{\"Operation\":\"o\"}}\n",
            event("A", "2026-03-02T10:15:00Z"),
            event("b", "2026-03-03T00:00:00")
        );
        let (out, _, tally) = run_in_steps(&["--unique", "--raw=none"], text.as_bytes(), 7);
        // An event without an id is never a repetition.
        assert_eq!((out.lines().count(), tally.repeated, tally.read()), (4, Some(2), 6), "{out}");
        let (out, _, tally) = run_in_steps(&["--from=2026-03-03"], text.as_bytes(), 7);
        assert_eq!((out.lines().count(), tally.outside), (3, 3), "{out}");
        let (out, _, _) =
            run_in_steps(&["--from=2026-03-02T10:15:00", "--to=2026-03-02T10:15:01Z"], text.as_bytes(), 7);
        assert_eq!(out.lines().count(), 5, "{out}");
    }

    #[test]
    fn a_table_says_when_how_bad_by_which_rule_and_what() {
        let text = r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"New-InboxRule","RecordType":1,"UserId":"alex@contoso.example","Workload":"Exchange","Parameters":[{"Name":"Name","Value":"x"},{"Name":"ForwardTo","Value":"e@outside.example"}]}
{"x":1}"#;
        let (out, _, _) = run_in_steps(&["--table"], text.as_bytes(), 7);
        expect_test::expect![[r#"
            TIME                  SEVERITY  RULES         EVENT
            2026-03-02T10:15:00Z  high      EX-01 EX-05   New-InboxRule by alex@contoso.example
                                            not read      -: line 2: 7 bytes are no audit event: an object without `Id`, `Operation` and `CreationTime`, and no wrapper that is known
        "#]]
        .assert_eq(&out);
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
