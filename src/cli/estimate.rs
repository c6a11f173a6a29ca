//! `m365-audit check --estimate`: estimates a tenant's volume before it is read.

use std::collections::BTreeMap;
use std::io::{self, Write};

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::Failure;
use super::exit::Exit;
use crate::clock::SystemClock;
use crate::config::{Config, Format};
use crate::model::{Actionable, ContentType, error_page};
use crate::severity::Severity;
use crate::source::estimate::{Estimate, FORMATS, TypeEstimate, Volume, estimate};
use crate::source::{M365Audit, SourceError};

/// Sources that are estimated at the same time.
const AT_ONCE: usize = 8;

/// The result for one source.
struct SourceEstimate {
    name: String,
    tenant: String,
    format: Format,
    result: Result<Estimate, SourceError>,
}

/// Estimates every source with at most this many requests each, and prints the results.
///
/// # Errors
/// The output cannot be written. A source or a content type without an estimate is printed and decides the exit code.
pub async fn estimates(
    config: &Config,
    requests_max: u32,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let sources = config.sources.iter().map(|(name, source)| {
        let (name, source) = (name.clone(), source.clone());
        async move {
            let (tenant, format) = (source.tenant_id.to_string(), source.format);
            let audit = M365Audit::new(name.as_str(), source, SystemClock::new());
            SourceEstimate { name, tenant, format, result: estimate(&audit, requests_max).await }
        }
    });
    let all: Vec<SourceEstimate> = futures_util::stream::iter(sources).buffered(AT_ONCE).collect().await;
    let faults = all.iter().filter_map(|found| found.result.as_ref().err());
    let worst = faults.map(Exit::from).max();
    let is_part =
        all.iter().flat_map(|found| found.result.iter()).any(|found| found.types.values().any(Result::is_err));
    let worst = worst.unwrap_or(if is_part { Exit::Left } else { Exit::Done });
    if as_json { write_json(&all, worst, out) } else { write_text(&all, out) }.map_err(Failure::io)?;
    Ok(worst)
}

fn name_of(format: Format) -> String {
    serde_json::to_value(format).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The severities, the most severe first.
const SEVERITIES: [Severity; 5] = [Severity::Critical, Severity::High, Severity::Medium, Severity::Low, Severity::Info];

fn write_text(all: &[SourceEstimate], out: &mut dyn Write) -> io::Result<()> {
    for (number, SourceEstimate { name, tenant, format, result }) in all.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        match result {
            Ok(estimate) => write_estimate(name, tenant, *format, estimate, out)?,
            Err(error) => {
                writeln!(out, "FAIL  {name}: {}: {error}", error.slug())?;
                writeln!(out, "      fix: {}\n      page: {}", error.hint(), error_page(error.slug()))?;
            }
        }
    }
    Ok(())
}

fn write_estimate(
    name: &str,
    tenant: &str,
    format: Format,
    estimate: &Estimate,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (from, to) = estimate.window;
    writeln!(out, "source {name}, tenant {tenant}: a day as the last 24 hours were ({from} to {to})")?;
    writeln!(out, "{:26} {:>9} {:>24} {:>11} {:>12}", "content type", "blobs", "events", "left out", "downloaded")?;
    let mut by_severity: BTreeMap<Severity, Volume> = BTreeMap::new();
    let mut is_part = false;
    for (content_type, found) in &estimate.types {
        let content_type = content_type.as_str();
        match found {
            Ok(found) => {
                let events = found.all().events + found.dropped;
                let mark = if found.is_whole { "" } else { " *" };
                is_part |= !found.is_whole;
                let (blobs, events, dropped, downloaded) = (
                    rounded(found.blobs),
                    format!("{} ± {}", rounded(events), rounded(found.error)),
                    rounded(found.dropped),
                    bytes(found.downloaded),
                );
                writeln!(out, "{content_type:26} {blobs:>9} {events:>24} {dropped:>11} {downloaded:>12}{mark}")?;
                for (severity, volume) in &found.delivered {
                    add(by_severity.entry(*severity).or_default(), volume);
                }
            }
            Err((why, remedy)) => writeln!(out, "{content_type:26} {why} (hint: {remedy})")?,
        }
    }
    writeln!(out, "\n{:26} {:>9} {}", "delivered", "events", heads(format))?;
    let mut all = Volume::default();
    for severity in SEVERITIES {
        let Some(volume) = by_severity.get(&severity) else { continue };
        write_volume(severity.as_str(), volume, out)?;
        add(&mut all, volume);
    }
    write_volume("all", &all, out)?;
    let (read, listed, bad) = estimate
        .types
        .values()
        .flatten()
        .fold((0, 0, 0), |(read, listed, bad), found| (read + found.read, listed + found.listed, bad + found.bad));
    writeln!(
        out,
        "\nfrom {read} of {listed} listed blobs, by {} requests; nothing was started, delivered or remembered",
        estimate.requests
    )?;
    writeln!(out, "±: what is meant lies within it for 19 of 20 samples; a weekend or a holiday is another day")?;
    if is_part {
        writeln!(out, "*: listed in part; more with --requests")?;
    }
    if bad > 0 {
        writeln!(out, "{bad} items of these blobs are damaged or no events, and are not counted")?;
    }
    Ok(())
}

fn add(sum: &mut Volume, volume: &Volume) {
    sum.events += volume.events;
    sum.bytes.iter_mut().zip(volume.bytes).for_each(|(sum, more)| *sum += more);
}

/// The formats, that of the source marked.
fn heads(own: Format) -> String {
    let head =
        |format: &Format| format!("{:>12}", format!("{}{}", if *format == own { ">" } else { "" }, name_of(*format)));
    FORMATS.iter().map(head).collect::<Vec<_>>().join(" ")
}

fn write_volume(what: &str, volume: &Volume, out: &mut dyn Write) -> io::Result<()> {
    let cells: Vec<String> = volume.bytes.iter().map(|each| format!("{:>12}", bytes(*each))).collect();
    writeln!(out, "{what:26} {:>9} {}", rounded(volume.events), cells.join(" "))
}

/// A number rounded to its accuracy.
fn rounded(number: f64) -> String {
    grouped(number.round() as u64)
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in a suitable decimal unit, as destinations bill them.
fn bytes(number: f64) -> String {
    let (unit, divisor) = match number {
        n if n >= 1e9 => ("GB", 1e9),
        n if n >= 1e6 => ("MB", 1e6),
        n if n >= 1e3 => ("KB", 1e3),
        _ => ("B", 1.0),
    };
    if divisor == 1.0 { format!("{number:.0} {unit}") } else { format!("{:.1} {unit}", number / divisor) }
}

fn write_json(all: &[SourceEstimate], worst: Exit, out: &mut dyn Write) -> io::Result<()> {
    let sources: Vec<Value> = all.iter().map(source_json).collect();
    writeln!(out, "{:#}", json!({"exit": worst as u8, "estimates": sources}))
}

fn source_json(SourceEstimate { name, tenant, format, result }: &SourceEstimate) -> Value {
    match result {
        Ok(estimate) => {
            let types: serde_json::Map<String, Value> =
                estimate.types.iter().map(|(content_type, found)| type_json(*content_type, found)).collect();
            json!({
                "source": name, "tenant": tenant, "format": name_of(*format),
                "from": estimate.window.0, "to": estimate.window.1, "requests": estimate.requests,
                "a_day": types,
            })
        }
        Err(error) => json!({
            "source": name, "tenant": tenant, "slug": error.slug(), "cause": error.to_string(), "remedy": error.hint(),
            "page": error_page(error.slug()),
        }),
    }
}

fn type_json(content_type: ContentType, found: &Result<TypeEstimate, (String, String)>) -> (String, Value) {
    let number = |number: f64| number.round() as u64;
    let value = match found {
        Ok(found) => {
            let volume = |volume: &Volume| {
                let formats = FORMATS.iter().zip(volume.bytes);
                let bytes: serde_json::Map<String, Value> =
                    formats.map(|(format, bytes)| (name_of(*format), json!(number(bytes)))).collect();
                json!({"events": number(volume.events), "bytes": bytes})
            };
            let severities: serde_json::Map<String, Value> =
                found.delivered.iter().map(|(severity, of_it)| (severity.as_str().to_owned(), volume(of_it))).collect();
            json!({
                "blobs": number(found.blobs), "downloaded_bytes": number(found.downloaded),
                "delivered": volume(&found.all()), "by_severity": severities, "dropped_events": number(found.dropped),
                "events_error": number(found.error), "blobs_listed": found.listed, "blobs_read": found.read,
                "listed_whole": found.is_whole, "bad": found.bad,
            })
        }
        Err((why, remedy)) => json!({"cause": why, "remedy": remedy}),
    };
    (content_type.to_string(), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_bytes_have_the_unit_that_suits_them() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (number, text) in [(12.4, "12 B"), (1_500.0, "1.5 KB"), (2.5e6, "2.5 MB"), (3.25e9, "3.2 GB")] {
            assert_eq!(bytes(number), text);
        }
    }
}
