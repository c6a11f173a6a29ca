//! `m365-audit explain`: the severity of each event of some files and its reasons, for people.
//!
//! Reads what `normalize` reads, and prints instead of records: the event in one line, where it was found, its
//! severity, then each rule that matched with its reason, its conditions and a link.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};

use super::normalize::{MeaningArgs, ReadingArgs};
use super::progress::{ProgressDisplay, ProgressUnit};
use super::reading::{BadStretch, Messages, NormalizeError, ReadCounts};
use crate::exports::input::{Input, StopReading};
use crate::exports::pipeline::{self, Item, Make, ReadEvent};
use crate::exports::seen::SeenKeys;
use crate::model::plain;
use crate::normalise::{Event, Explanation, Mask, Normaliser, NormaliserSettings, canonical_key};
use crate::severity::Assessment;
use crate::severity::words::{about, condition};

#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
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

/// Runs the command on the files it names, or on standard input, to standard output and standard error.
///
/// # Errors
/// The rules or the mask cannot be used, or standard output cannot be written.
pub fn run(args: &ExplainArgs) -> Result<ReadCounts, NormalizeError> {
    let progress = ProgressDisplay::beside_output(ProgressUnit::Bytes);
    let out = BufWriter::new(io::stdout().lock());
    let inputs = args.reading.watched_inputs(&progress, "explain");
    let tally = explain(args, inputs, out, progress.beside(io::stderr()));
    progress.end();
    let tally = tally?;
    // A failure is ignored: standard error may have no reader.
    let _ = writeln!(io::stderr(), "{tally}");
    Ok(tally)
}

/// Explains the events of `inputs`.
///
/// # Errors
/// Those of [`run`]. A closed pipe at `out` is not an error.
pub fn explain(
    args: &ExplainArgs,
    inputs: Vec<Input<'_>>,
    out: impl Write,
    err: impl Write,
) -> Result<ReadCounts, NormalizeError> {
    let settings = NormaliserSettings {
        internal_domains: args.internal_domains.clone(),
        rules: args.meaning.rules().map_err(NormalizeError::Rules)?,
        mask: Mask::new(!args.meaning.keep_detected_values, &args.meaning.mask).map_err(NormalizeError::Mask)?,
        ..NormaliserSettings::default()
    };
    // If refinements are off, the effect that they would have is also printed.
    let refined = (!args.meaning.refine).then(|| MeaningArgs { refine: true, ..args.meaning.clone() }.rules());
    let refined = refined.transpose().map_err(NormalizeError::Rules)?;
    let refined = refined.map(|rules| Normaliser::new(NormaliserSettings { rules, ..settings.clone() }));
    let teller = Explainer { normaliser: Normaliser::new(settings), refined, reading: &args.reading };
    let mut explanations = Explanations {
        out,
        messages: Messages::new(err, args.reading.unique),
        seen: SeenKeys::default(),
        number: 0,
        bad: None,
    };
    let mut failed = None;
    let done = pipeline::read(inputs, &teller, &mut |item| {
        explanations.take(item).map_err(|error| {
            failed = Some(error);
            StopReading
        })
    });
    match done
        .map_err(|StopReading| failed)
        .and_then(|()| explanations.end().and_then(|()| explanations.out.flush()).map_err(Some))
    {
        Err(Some(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(NormalizeError::Write(error)),
        _ => Ok(explanations.messages.tally),
    }
}

/// Explains one event.
struct Explainer<'a> {
    normaliser: Normaliser,
    /// The same with refinements, if they are off.
    refined: Option<Normaliser>,
    reading: &'a ReadingArgs,
}

impl Make for Explainer<'_> {
    /// Whether it was selected, and its key.
    type Made = (bool, Option<[u8; 16]>);

    fn make(&self, read: &ReadEvent, event: &Event<'_>, out: &mut Vec<u8>) -> Self::Made {
        if !self.reading.admits(event.time()) {
            return (false, None);
        }
        let refined = self.refined.as_ref().map(|refined| refined.explain(event));
        let text = describe(read, event, &self.normaliser.explain(event), refined.as_ref());
        out.extend_from_slice(text.as_bytes());
        (true, self.reading.unique.then(|| canonical_key(event)).flatten().map(|key| *key.as_bytes()))
    }
}

/// Numbers the explanations and writes them in order.
struct Explanations<O, E> {
    out: O,
    messages: Messages<E>,
    seen: SeenKeys,
    number: u64,
    /// Bytes that are not an event, and where they end.
    bad: Option<(BadStretch, Option<u64>)>,
}

impl<O: Write, E: Write> Explanations<O, E> {
    fn take(&mut self, item: Item<'_, (bool, Option<[u8; 16]>)>) -> io::Result<()> {
        match item {
            Item::Event(read, (is_admitted, key), text) => {
                self.end()?;
                self.messages.event(read);
                if !is_admitted {
                    self.messages.tally.outside += 1;
                } else if key.is_some_and(|key| !self.seen.insert(key)) {
                    self.messages.repeated();
                } else {
                    self.number += 1;
                    write!(self.out, "{}. ", self.number)?;
                    self.out.write_all(text)?;
                }
                Ok(())
            }
            Item::Bad(bad) => {
                let length = bad.bytes.len() as u64;
                let end = bad.place.row.is_none().then_some(bad.place.offset + length);
                match &mut self.bad {
                    Some((ended, at)) if *at == Some(bad.place.offset) && !bad.is_unknown && !ended.is_unknown => {
                        ended.bytes += length;
                        *at = end;
                    }
                    _ => {
                        self.end()?;
                        let (place, why) = (bad.place.to_string(), bad.why.clone());
                        self.bad = Some((BadStretch { place, bytes: length, why, is_unknown: bad.is_unknown }, end));
                    }
                }
                Ok(())
            }
            Item::Notice(kind) => {
                self.end()?;
                self.messages.notice(kind);
                Ok(())
            }
            Item::Problem(error) => {
                self.end()?;
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
            Item::Pause => self.out.flush(),
        }
    }

    /// Ends the stretch of bad bytes.
    fn end(&mut self) -> io::Result<()> {
        if let Some((ended, _)) = self.bad.take() {
            self.number += 1;
            writeln!(self.out, "{}. not an event\n   {}\n", self.number, plain(&ended.to_string()))?;
            self.messages.bad(&ended);
        }
        Ok(())
    }
}

/// The outcome for an event, in a few words.
fn verdict(assessment: &Assessment<'_>) -> String {
    match (assessment.drop, assessment.matches.len()) {
        (Some(rule), _) => {
            format!("routine: left out by {} where `drop_routine` is on, else severity info", rule.id)
        }
        (None, 0) => "severity info: no rule is about this event".to_owned(),
        (None, 1) => format!("severity {}", assessment.severity()),
        (None, rules) => format!("severity {}, the highest of the {rules} rules that match", assessment.severity()),
    }
}

fn describe(
    read: &ReadEvent,
    event: &Event<'_>,
    explanation: &Explanation<'_>,
    refined: Option<&Explanation<'_>>,
) -> String {
    let mut text = format!("{}\n", plain(&explanation.title));
    let Explanation { assessment, values, dlp, .. } = explanation;
    // Writing into a string does not fail.
    if let Some(identity) = event.identity() {
        let place = [("at ", identity.creation_time), ("id ", identity.id), ("record type ", identity.record_type)];
        let place: Vec<String> = place
            .into_iter()
            .filter(|(_, value)| !value.trim().is_empty())
            .map(|(name, value)| format!("{name}{}", plain(value.trim())))
            .collect();
        let _ = writeln!(text, "   {}", place.join(", "));
    }
    let _ = writeln!(text, "   in {}, form: {}", plain(&read.place.to_string()), read.form);
    for (name, fact) in &explanation.facts {
        let _ = writeln!(text, "   {name}: {}", plain(fact));
    }
    let _ = writeln!(text, "   {}", verdict(assessment));
    for (found, values) in assessment.matches.iter().zip(values) {
        let rule = found.rule();
        let _ = write!(text, "   - rule {} says {}: {}", rule.id, found.verdict.as_str(), found.reason);
        if !values.is_empty() {
            let _ = write!(text, " ({})", plain(&values.join(", ")));
        }
        text.push('\n');
        let about = about(rule);
        if !about.is_empty() {
            let _ = writeln!(text, "     it matches because {about}");
        }
        if let Some(case) = found.case {
            let when: Vec<String> = case.when.iter().map(condition).collect();
            let _ = writeln!(text, "     it says {} because {}", case.verdict.as_str(), when.join(", and "));
        } else if !rule.severity_from.is_empty() {
            let from = rule.severity_from.join(" or ");
            let _ = writeln!(
                text,
                "     it takes the severity that the event has in {from}, {} without one",
                rule.verdict.as_str()
            );
        }
        if found.lowered {
            text.push_str("     one step lower, for the operation failed\n");
        }
        let technique = rule.technique.as_deref().map(|technique| format!("MITRE ATT&CK {technique}"));
        let sources: Vec<String> = technique.into_iter().chain(rule.reference.clone()).collect();
        if !sources.is_empty() {
            let _ = writeln!(text, "     see {}", sources.join(" · "));
        }
    }
    for rule in &assessment.replaced {
        let _ = writeln!(text, "   - rule {} matches, too; a narrower rule takes its place", rule.id);
    }
    if *dlp {
        text.push_str("   the record itself is flagged by data loss prevention, so it is not dropped\n");
    }
    if let Some(refined) = refined.map(|refined| &refined.assessment)
        && (refined.severity() != assessment.severity() || refined.drop.is_some() != assessment.drop.is_some())
    {
        let ids: Vec<&str> = refined.matches.iter().map(|found| found.rule().id.as_str()).collect();
        let _ = writeln!(text, "   with `severity.refine = true`: {} (by {})", verdict(refined), ids.join(", "));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn an_explanation_is_understood_without_the_code() {
        let events = [
            r#"{"Id":"a","Operation":"New-InboxRule","RecordType":1,"Workload":"Exchange","UserId":"bob@contoso.com","Parameters":[{"Name":"Name","Value":"."},{"Name":"ForwardTo","Value":"mallory@example.net"}]}"#,
            r#"{"Id":"b","Operation":"FileAccessed","RecordType":6,"UserId":"bob@contoso.com","ObjectId":"https://x/y\n"}"#,
            r#"{"Id":"c","Operation":"Reset user password.","RecordType":8,"ResultStatus":"Failure","UserId":"bob@contoso.com"}"#,
            r#"{"Id":"d","Operation":"SomethingNew","RecordType":9999,"CreationTime":"2026-05-01T10:00:00"}"#,
            r#"{"Id":"e","Operation":"Add-MailboxPermission","RecordType":1,"UserId":"NT AUTHORITY\\SYSTEM (x)","UserType":3}"#,
            r#"{"Id":"f","Operation":"DlpRuleMatch","RecordType":13,"PolicyDetails":[{"Rules":[{"Severity":"High"}]}]}"#,
            r#"{"Id":"g","Operation":"FileDownloaded","RecordType":6,"UserId":"anonymous"}"#,
            "no event",
        ];
        let input = events.join("\n");
        let args = ExplainArgs {
            internal_domains: Vec::new(),
            meaning: MeaningArgs::default(),
            reading: ReadingArgs::default(),
        };
        let mut out = Vec::new();
        let inputs = vec![Input::Stream("events.ndjson".into(), Box::new(input.as_bytes()))];
        explain(&args, inputs, &mut out, io::sink()).unwrap();
        expect![[r#"
            1. New-InboxRule by bob@contoso.com
               id a, record type 1
               in events.ndjson: line 1, form: event as the feed sends it
               severity high, the highest of the 2 rules that match
               - rule EX-01 says high: an inbox rule forwards or redirects mail outside the organisation's known domains (mallory@example.net)
                 it matches because the operation is New-InboxRule or Set-InboxRule, and parameter ForwardTo or RedirectTo or ForwardAsAttachmentTo or SendTextMessageNotificationTo names somebody outside
                 see MITRE ATT&CK T1114.003 · https://learn.microsoft.com/defender-xdr/alert-grading-playbook-inbox-forwarding-rules
               - rule EX-05 says medium: an inbox rule's name says nothing, as intrusion tools leave it
                 it matches because the operation is New-InboxRule or Set-InboxRule, and the inbox rule's Name says nothing
                 see MITRE ATT&CK T1564.008 · https://learn.microsoft.com/defender-xdr/alert-grading-playbook-inbox-manipulation-rules

            2. FileAccessed by bob@contoso.com on https://x/y
               id b, record type 6
               in events.ndjson: line 2, form: event as the feed sends it
               outcome: success
               routine: left out by SP-12 where `drop_routine` is on, else severity info
               - rule SP-12 says drop: routine volume; kept when data loss prevention flags what was read
                 it matches because the operation is FileAccessed
                 see MITRE ATT&CK T1213.002 · https://learn.microsoft.com/purview/audit-log-activities

            3. Reset user password by bob@contoso.com (failed)
               id c, record type 8
               in events.ndjson: line 3, form: event as the feed sends it
               outcome: failure
               severity low
               - rule ID-35 says low: somebody else set a user's password
                 it matches because the operation is Reset user password
                 one step lower, for the operation failed
                 see MITRE ATT&CK T1098 · https://learn.microsoft.com/entra/identity/monitoring-health/reference-audit-activities

            4. SomethingNew
               at 2026-05-01T10:00:00, id d, record type 9999
               in events.ndjson: line 4, form: event as the feed sends it
               severity info: no rule is about this event

            5. Add-MailboxPermission by NT AUTHORITY\SYSTEM (x)
               id e, record type 1
               in events.ndjson: line 5, form: event as the feed sends it
               severity high
               - rule EX-18 says high: somebody was given access to another's mailbox
                 it matches because the operation is Add-MailboxPermission
                 see MITRE ATT&CK T1098.002 · https://learn.microsoft.com/powershell/module/exchange/add-mailboxpermission
               with `severity.refine = true`: severity info (by EX-19)

            6. Data loss prevention matched
               id f, record type 13
               in events.ndjson: line 6, form: event as the feed sends it
               outcome: success
               severity high
               - rule DL-01 says high: data loss prevention matched; the severity is its rule's
                 it matches because the operation is DlpRuleMatch
                 it takes the severity that the event has in PolicyDetails.Rules.Severity, medium without one
                 see MITRE ATT&CK T1567 · https://learn.microsoft.com/purview/dlp-learn-about-dlp

            7. FileDownloaded by anonymous
               id g, record type 6
               in events.ndjson: line 7, form: event as the feed sends it
               outcome: success
               severity medium
               - rule SP-14 says medium: somebody unknown took a file
                 it matches because the operation is FileDownloaded
                 it says medium because the actor is anonymous
                 see MITRE ATT&CK T1530 · https://learn.microsoft.com/purview/audit-log-activities

            8. not an event
               events.ndjson: line 8: 8 bytes are no audit event: not one JSON object in UTF-8

        "#]].assert_eq(std::str::from_utf8(&out).unwrap());
    }
}
