//! `m365-audit explain`: what each event of a file is worth and why, for people.
//!
//! Reads what `normalize` reads, by running it, and prints instead of records: the event in one line, its severity,
//! then each rule that matched with its reason, its conditions and where to read on.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::normalize::{self, MeaningArgs, NormalizeArgs, NormalizeError};
use crate::clock::Clock;
use crate::config::{Format, OcsfVersion, RawForm};
use crate::model::plain;
use crate::normalise::{BAD_BLOB, Event, Explanation, Mask, Normaliser, Settings};
use crate::severity::Assessment;
use crate::severity::words::{about, condition};

/// Tells for each event which rules matched and why.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
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

/// Runs the command on the file it names, or on standard input, to standard output.
///
/// # Errors
/// Those of [`normalize::run`].
pub fn run(args: &ExplainArgs, clock: &Arc<dyn Clock>) -> Result<(), NormalizeError> {
    let out = BufWriter::new(io::stdout().lock());
    let normalize_args = NormalizeArgs {
        format: Format::Raw,
        ocsf_version: OcsfVersion::default(),
        raw: RawForm::default(),
        drop_routine: false,
        tenant_id: None,
        internal_domains: args.internal_domains.clone(),
        meaning: MeaningArgs { keep_detected_values: true, mask: Vec::new(), ..args.meaning.clone() },
        file: args.file.clone(),
    };
    let settings = Settings {
        internal_domains: args.internal_domains.clone(),
        rules: args.meaning.rules().map_err(NormalizeError::Rules)?,
        mask: Mask::new(!args.meaning.keep_detected_values, &args.meaning.mask).map_err(NormalizeError::Mask)?,
        ..Settings::default()
    };
    // What refinements would make of an event is told, too, where they are off.
    let refined = (!args.meaning.refine).then(|| MeaningArgs { refine: true, ..args.meaning.clone() }.rules());
    let refined = refined.transpose().map_err(NormalizeError::Rules)?;
    let refined = refined.map(|rules| Normaliser::new(Settings { rules, ..settings.clone() }));
    let explain = Explainer { normaliser: Normaliser::new(settings), refined, out, line: Vec::new(), number: 0 };
    if args.file.as_os_str() == "-" {
        normalize::normalize(&normalize_args, io::stdin().lock(), explain, io::stderr(), clock.as_ref())?;
    } else {
        let open = |source| NormalizeError::Open { path: args.file.clone(), source };
        let file = std::fs::File::open(&args.file).map_err(open)?;
        normalize::normalize(&normalize_args, file, explain, io::stderr(), clock.as_ref())?;
    }
    Ok(())
}

/// How records of ours begin; no event of Microsoft's does.
const BAD_RECORD_BEGINS: &str = r#"{"source":"m365","category":"other""#;

/// Takes the lines that `normalize` writes, one event or `bad_blob` record each, and writes what it has to say.
struct Explainer<O> {
    normaliser: Normaliser,
    /// The same with refinements, where they are off.
    refined: Option<Normaliser>,
    out: O,
    line: Vec<u8>,
    number: u64,
}

impl<O: Write> Explainer<O> {
    /// Whether the line is a record that `normalize` made of bytes which are no event.
    fn is_bad(&self) -> bool {
        let begins = self.line.get(..BAD_RECORD_BEGINS.len()) == Some(BAD_RECORD_BEGINS.as_bytes());
        begins && memchr::memmem::find(&self.line, BAD_BLOB.as_bytes()).is_some()
    }

    fn told(&mut self) -> io::Result<()> {
        self.number += 1;
        let text = match Event::parse(&self.line) {
            Ok(_) if self.is_bad() => format!("{}. bytes that are not an event\n\n", self.number),
            Ok(event) => {
                let refined = self.refined.as_ref().map(|refined| refined.explain(&event));
                describe(self.number, &event, &self.normaliser.explain(&event), refined.as_ref())
            }
            Err(_) => format!("{}. not an event\n\n", self.number),
        };
        self.line.clear();
        self.out.write_all(text.as_bytes())
    }
}

impl<O: Write> Write for Explainer<O> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(at);
            self.line.extend_from_slice(line);
            self.told()?;
            rest = after.get(1..).unwrap_or_default();
        }
        self.line.extend_from_slice(rest);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What becomes of an event, in a few words.
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
    number: u64,
    event: &Event<'_>,
    explanation: &Explanation<'_>,
    refined: Option<&Explanation<'_>>,
) -> String {
    let mut text = format!("{number}. {}\n", plain(&explanation.title));
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
    use crate::severity::Rules;
    use expect_test::expect;

    #[test]
    fn an_explanation_is_understood_without_the_code() {
        let normaliser = Normaliser::new(Settings::default());
        let mut out = Vec::new();
        let refined = Settings { rules: Arc::new(Rules::with(true, &[], &[]).unwrap()), ..Settings::default() };
        let refined = Some(Normaliser::new(refined));
        let mut explain = Explainer { normaliser, refined, out: &mut out, line: Vec::new(), number: 0 };
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
        explain.write_all(format!("{}\n", events.join("\n")).as_bytes()).unwrap();
        expect![[r#"
            1. New-InboxRule by bob@contoso.com
               id a, record type 1
               severity high, the highest of the 2 rules that match
               - rule EX-01 says high: an inbox rule forwards or redirects mail outside the organisation's known domains (mallory@example.net)
                 it matches because the operation is New-InboxRule or Set-InboxRule, and parameter ForwardTo or RedirectTo or ForwardAsAttachmentTo or SendTextMessageNotificationTo names somebody outside
                 see MITRE ATT&CK T1114.003 · https://learn.microsoft.com/defender-xdr/alert-grading-playbook-inbox-forwarding-rules
               - rule EX-05 says medium: an inbox rule's name says nothing, as intrusion tools leave it
                 it matches because the operation is New-InboxRule or Set-InboxRule, and the inbox rule's Name says nothing
                 see MITRE ATT&CK T1564.008 · https://learn.microsoft.com/defender-xdr/alert-grading-playbook-inbox-manipulation-rules

            2. FileAccessed by bob@contoso.com on https://x/y
               id b, record type 6
               routine: left out by SP-12 where `drop_routine` is on, else severity info
               - rule SP-12 says drop: routine volume; kept when the record itself is flagged by data loss prevention
                 it matches because the operation is FileAccessed
                 see MITRE ATT&CK T1213.002 · https://learn.microsoft.com/purview/audit-log-activities

            3. Reset user password by bob@contoso.com (failed)
               id c, record type 8
               severity low
               - rule ID-35 says low: somebody else set a user's password
                 it matches because the operation is Reset user password
                 one step lower, for the operation failed
                 see MITRE ATT&CK T1098 · https://learn.microsoft.com/entra/identity/monitoring-health/reference-audit-activities

            4. SomethingNew
               at 2026-05-01T10:00:00, id d, record type 9999
               severity info: no rule is about this event

            5. Add-MailboxPermission by NT AUTHORITY\SYSTEM (x)
               id e, record type 1
               severity high
               - rule EX-18 says high: somebody was given access to another's mailbox
                 it matches because the operation is Add-MailboxPermission
                 see MITRE ATT&CK T1098.002 · https://learn.microsoft.com/powershell/module/exchange/add-mailboxpermission
               with `severity.refine = true`: severity info (by EX-19)

            6. DlpRuleMatch
               id f, record type 13
               severity high
               - rule DL-01 says high: data loss prevention matched; the severity is its rule's
                 it matches because the operation is DlpRuleMatch
                 it takes the severity that the event has in PolicyDetails.Rules.Severity, medium without one
                 see MITRE ATT&CK T1567 · https://learn.microsoft.com/purview/dlp-learn-about-dlp

            7. FileDownloaded by anonymous
               id g, record type 6
               severity medium
               - rule SP-14 says medium: somebody unknown took a file
                 it matches because the operation is FileDownloaded
                 it says medium because the actor is anonymous
                 see MITRE ATT&CK T1530 · https://learn.microsoft.com/purview/audit-log-activities

            8. not an event

        "#]].assert_eq(std::str::from_utf8(&out).unwrap());
    }
}
