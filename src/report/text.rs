//! A report as text, for a terminal or a ticket. The table of each day by content type is in the other forms.

use std::io::{self, Write};

use super::model::{
    AuditReport, Chain, Compared, Day, LatenessSummary, Reconcile, ReportedStream, Segment, SegmentState, Spread,
    Tenant,
};
use super::words::{
    CLASSES, NOT_KNOWN, answer, at_least, chain, delay, kind, number, reasons, state, time, time_or, verdict,
};
use crate::model::{Timestamp, plain};
use crate::receipts::statement::Counts;

/// Columns of a bar.
const BAR_COLUMNS: usize = 60;
/// The legend of a bar.
const LEGEND: &str = "= complete   X gap   . not yet   - not read   ~ in part   ? not known";

/// Writes it.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(report: &AuditReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Completeness of the Microsoft 365 audit log")?;
    writeln!(out)?;
    writeln!(out, "period      {} to {} (all times are UTC)", time(report.from), time(report.to))?;
    writeln!(out, "answer      {}", verdict(report.completeness))?;
    writeln!(out, "made        {} by {}", time(report.generated), report.program)?;
    writeln!(out)?;
    for sentence in answer(report) {
        writeln!(out, "{}", plain(&sentence))?;
    }
    writeln!(out, "\nMissing, open or not known")?;
    if report.findings.is_empty() {
        writeln!(out, "  nothing")?;
    }
    for finding in &report.findings {
        let about = [&*finding.source, &*finding.content_types.join(", ")].join(" ");
        writeln!(out, "  {:<12}  {}: {}", kind(finding.kind), plain(about.trim_end()), plain(&finding.text))?;
    }
    for tenant in &report.tenants {
        of_tenant(tenant, report, out)?;
    }
    Ok(())
}

fn of_tenant(tenant: &Tenant, report: &AuditReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n{} (tenant {}): {}", plain(&tenant.source), tenant.tenant, verdict(tenant.completeness))?;
    writeln!(out, "\n  What was read, by when Microsoft made it available ({LEGEND})")?;
    let bars = tenant.streams.iter().map(|stream| (&*stream.content_type, &stream.bar));
    for (name, bar) in bars.chain([("receipts", &tenant.receipts.bar)]) {
        writeln!(out, "    {name:<27}|{}|", drawn(bar, report.from, report.to))?;
    }
    for stream in &tenant.streams {
        of_position(stream, out)?;
    }
    writeln!(out, "\n  What became of the events, by content type")?;
    let named = |name: &str, counts: Option<&Counts>, whole| [vec![name.to_owned()], cells(counts, whole)].concat();
    let rows = tenant.streams.iter().map(|s| named(&s.content_type, s.counts.as_ref(), s.counts_are_whole));
    table(&[&["content type"], &COLUMNS[..]].concat(), rows.collect(), out)?;
    writeln!(out, "\n  The same by the day on which they were settled, by hours of UTC; not by when they happened")?;
    table(&[&["day"], &COLUMNS[..], &["hours known"]].concat(), tenant.days.iter().map(of_day).collect(), out)?;
    of_rules(tenant, out)?;
    of_what_is_left(tenant, out)?;
    of_lateness(tenant, out)?;
    of_receipts(tenant, out)?;
    of_comparison(&tenant.reconcile, out)
}

const COLUMNS: [&str; 6] = ["delivered", "dropped", "set aside", "on hold", "repeated", "without id"];

fn cells(counts: Option<&Counts>, is_whole: bool) -> Vec<String> {
    let Some(counts) = counts else { return vec![NOT_KNOWN.to_owned(); COLUMNS.len()] };
    let Counts { delivered, set_aside, held, dropped, repeated, without_id } = *counts;
    [delivered, dropped, set_aside, held, repeated, without_id].map(|count| at_least(count, is_whole)).to_vec()
}

fn of_day(day: &Day) -> Vec<String> {
    let name = day.until.as_ref().map_or_else(|| day.day.clone(), |until| format!("{} to {until}", day.day));
    let known = format!("{} of {}", day.hours.known, day.hours.all);
    [vec![name], cells(day.counts.as_ref(), day.hours.is_whole()), vec![known]].concat()
}

/// Columns as wide as they must be; all but the first are numbers.
fn table(head: &[&str], rows: Vec<Vec<String>>, out: &mut dyn Write) -> io::Result<()> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    for row in &all {
        let mut line = String::from("   ");
        for (column, cell) in row.iter().enumerate() {
            let fill = " ".repeat(width(column).unwrap_or_default().saturating_sub(cell.chars().count()));
            line += &if column == 0 { format!(" {cell}{fill}") } else { format!("  {fill}{cell}") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A period as a line of letters: each column shows its worst state.
fn drawn(bar: &[Segment], from: Timestamp, to: Timestamp) -> String {
    let (begin, all) = (from.as_second(), to.duration_since(from).as_secs().max(1));
    let column = |n: usize| begin + all * n as i64 / BAR_COLUMNS as i64;
    let letter = |n: usize| {
        let (left, right) = (column(n), column(n + 1).max(column(n) + 1));
        let over = bar.iter().filter(|s| s.from.as_second() < right && left < s.to.as_second());
        over.map(|segment| segment.state).max_by_key(|state| severity(*state)).map_or('?', sign)
    };
    (0..BAR_COLUMNS).map(letter).collect()
}

const fn severity(state: SegmentState) -> u8 {
    match state {
        SegmentState::Complete => 0,
        SegmentState::NotYet => 1,
        SegmentState::InPart => 2,
        SegmentState::NotRead => 3,
        SegmentState::NotKnown => 4,
        SegmentState::Gap => 5,
    }
}

const fn sign(state: SegmentState) -> char {
    match state {
        SegmentState::Complete => '=',
        SegmentState::Gap => 'X',
        SegmentState::NotYet => '.',
        SegmentState::NotRead => '-',
        SegmentState::InPart => '~',
        SegmentState::NotKnown => '?',
    }
}

fn of_position(stream: &ReportedStream, out: &mut dyn Write) -> io::Result<()> {
    let stands = match &stream.position {
        Some(position) => format!(
            "read from {}, complete until {}",
            time(position.origin),
            time_or(position.complete_until, "no time yet")
        ),
        None => NOT_KNOWN.to_owned(),
    };
    writeln!(out, "    {:<27} {stands}", stream.content_type)?;
    let is_told = |segment: &&Segment| !matches!(segment.state, SegmentState::Complete | SegmentState::NotYet);
    for segment in stream.bar.iter().filter(is_told) {
        let why = segment.reason.as_deref().map(|reason| format!(": {}", reasons(reason))).unwrap_or_default();
        let name = state(segment.state);
        writeln!(out, "      {name:<9}  {} to {}{}", time(segment.from), time(segment.to), plain(&why))?;
    }
    Ok(())
}

fn of_rules(tenant: &Tenant, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n  Dropped by rule, as receipts have it")?;
    match &tenant.dropped_by_rule {
        None => writeln!(out, "    {NOT_KNOWN}"),
        Some(rules) if rules.is_empty() => writeln!(out, "    none"),
        Some(rules) => {
            let name =
                |rule: &Option<String>| rule.as_deref().map_or("rules that are not named".into(), plain).into_owned();
            let rows = rules.iter().map(|rule| vec![name(&rule.rule), number(rule.events)]).collect();
            table(&["rule", "events"], rows, out)
        }
    }
}

fn of_what_is_left(tenant: &Tenant, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n  What is left now")?;
    let row = |stream: &ReportedStream| {
        let counts = [stream.owed.blobs, stream.set_aside.records, stream.on_hold.reads].map(number);
        [vec![stream.content_type.clone()], counts.to_vec()].concat()
    };
    let rows = tenant.streams.iter().map(row).collect();
    table(&["content type", "blobs owed", "records set aside", "reads on hold"], rows, out)?;
    for stream in &tenant.streams {
        for reason in &stream.set_aside.reasons {
            writeln!(
                out,
                "    set aside   {} {}: {}",
                number(reason.records),
                stream.content_type,
                plain(&reason.why)
            )?;
        }
    }
    Ok(())
}

fn of_lateness(tenant: &Tenant, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = Vec::new();
    for ReportedStream { content_type, lateness: LatenessSummary { events, content, .. }, .. } in &tenant.streams {
        for (what, spread) in [("event to content", events), ("content to read", content)] {
            rows.push([vec![format!("{content_type}, {what}")], late(spread.as_ref())].concat());
        }
    }
    writeln!(
        out,
        "\n  How late content came: from an event to the content it is in, and from there to when it was read"
    )?;
    table(&["content type", "counted", "half within", "99 % within", "longest"], rows, out)
}

fn late(spread: Option<&Spread>) -> Vec<String> {
    spread.map_or_else(
        || vec![NOT_KNOWN.to_owned(); 4],
        |spread| {
            let times = [spread.median_secs, spread.p99_secs, spread.longest_secs].map(delay);
            [vec![number(spread.counted)], times.to_vec()].concat()
        },
    )
}

fn of_receipts(tenant: &Tenant, out: &mut dyn Write) -> io::Result<()> {
    let receipts = &tenant.receipts;
    writeln!(out, "\n  Receipts")?;
    writeln!(out, "    state       {}", plain(&chain(&receipts.chain)))?;
    if matches!(receipts.chain, Chain::Verified | Chain::NotVerified) {
        writeln!(out, "    key         {}", receipts.key.as_deref().unwrap_or(NOT_KNOWN))?;
        writeln!(
            out,
            "    sealed      {} parts with {} receipts, hours {} to {}",
            number(receipts.parts),
            number(receipts.entries),
            time_or(receipts.first_hour, NOT_KNOWN),
            time_or(receipts.last_hour, NOT_KNOWN)
        )?;
        writeln!(out, "    last hash   {}", receipts.last_hash.as_deref().unwrap_or(NOT_KNOWN))?;
    }
    let hours = &receipts.hours;
    writeln!(
        out,
        "    hours       {} of {} of the period known, {} in part, {} not known",
        number(hours.known),
        number(hours.all),
        number(hours.in_part),
        number(hours.not_known())
    )?;
    for segment in receipts.bar.iter().filter(|segment| segment.state != SegmentState::Complete) {
        writeln!(out, "      {:<9}  {} to {}", state(segment.state), time(segment.from), time(segment.to))?;
    }
    for fault in &receipts.faults {
        writeln!(out, "    fault       {}", plain(fault))?;
    }
    Ok(())
}

fn of_comparison(reconcile: &Reconcile, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n  Comparison with Microsoft's audit search")?;
    let compared: &Compared = match reconcile {
        Reconcile::None => return writeln!(out, "    none was made: `m365-audit reconcile` makes one"),
        Reconcile::Unreadable { why } => return writeln!(out, "    {NOT_KNOWN}: it cannot be read: {}", plain(why)),
        Reconcile::Made(compared) => compared,
    };
    let between = compared.between.map(|(first, last)| format!(", events of {} to {}", time(first), time(last)));
    writeln!(
        out,
        "    made        {}, {} rows{}",
        time(compared.made),
        number(compared.rows),
        between.unwrap_or_default()
    )?;
    for (class, meaning) in CLASSES.iter().filter(|(class, _)| compared.class(class) > 0 || *class == "missing") {
        writeln!(out, "    {:<11} {:>9}  {meaning}", class.replace('_', " "), number(compared.class(class)))?;
    }
    let ours = compared.only_ours.map_or_else(|| NOT_KNOWN.to_owned(), number);
    writeln!(out, "    {:<11} {ours:>9}  delivered here, and not in the export", "only ours")?;
    let judged = match compared.looks_cut {
        true => format!("the export looks cut: {}", compared.why.join("; ")),
        false => "the export does not look cut".to_owned(),
    };
    writeln!(out, "    witness     {}", plain(&judged))?;
    for event in &compared.missing {
        let [id, time, operation] = [&event.id, &event.time, &event.operation].map(|text| plain(text));
        writeln!(out, "    missing     {time}  {id}  {operation}")?;
    }
    Ok(())
}
