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
use crate::severity::words::about;

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
    let explain = Explainer { normaliser: Normaliser::new(settings), out, line: Vec::new(), number: 0 };
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
            Ok(event) => describe(self.number, &self.normaliser.explain(&event)),
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

fn describe(number: u64, explanation: &Explanation<'_>) -> String {
    let mut text = format!("{number}. {}\n", plain(&explanation.title));
    let Explanation { assessment, values, dlp, .. } = explanation;
    // Writing into a string does not fail.
    let _ = match assessment.drop {
        Some(rule) => writeln!(text, "   dropped by {} where `drop_routine` is on; else info", rule.id),
        None => writeln!(text, "   {}", assessment.severity()),
    };
    if assessment.matches.is_empty() {
        text.push_str("   no rule is about this event\n");
    }
    for (found, values) in assessment.matches.iter().zip(values) {
        let rule = found.rule();
        let _ = write!(text, "   - {} {}: {}", rule.id, found.verdict.as_str(), found.reason);
        if !values.is_empty() {
            let _ = write!(text, " ({})", plain(&values.join(", ")));
        }
        text.push('\n');
        let about = about(rule);
        if !about.is_empty() {
            let _ = writeln!(text, "     because {about}");
        }
        if found.lowered {
            text.push_str("     one step lower, for the operation failed\n");
        }
        let sources = [rule.technique.as_deref(), rule.reference.as_deref()];
        let sources: Vec<&str> = sources.into_iter().flatten().collect();
        if !sources.is_empty() {
            let _ = writeln!(text, "     see {}", sources.join(" · "));
        }
    }
    for rule in &assessment.replaced {
        let _ = writeln!(text, "   - {} matched, too; a narrower rule took its place", rule.id);
    }
    if *dlp {
        text.push_str("   the record itself is flagged by data loss prevention, so it is not dropped\n");
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
        let normaliser = Normaliser::new(Settings::default());
        let mut out = Vec::new();
        let mut explain = Explainer { normaliser, out: &mut out, line: Vec::new(), number: 0 };
        let events = [
            r#"{"Id":"a","Operation":"New-InboxRule","RecordType":1,"Workload":"Exchange","UserId":"bob@contoso.com","Parameters":[{"Name":"Name","Value":"."},{"Name":"ForwardTo","Value":"mallory@example.net"}]}"#,
            r#"{"Id":"b","Operation":"FileAccessed","RecordType":6,"UserId":"bob@contoso.com","ObjectId":"https://x/y\n"}"#,
            r#"{"Id":"c","Operation":"Reset user password.","RecordType":8,"ResultStatus":"Failure","UserId":"bob@contoso.com"}"#,
            r#"{"Id":"d","Operation":"SomethingNew","RecordType":9999}"#,
            "no event",
        ];
        explain.write_all(format!("{}\n", events.join("\n")).as_bytes()).unwrap();
        expect![[r#"
            1. New-InboxRule by bob@contoso.com
               high
               - EX-01 high: an inbox rule forwards or redirects mail outside the organisation's known domains (mallory@example.net)
                 because the operation is New-InboxRule or Set-InboxRule, and parameter ForwardTo or RedirectTo or ForwardAsAttachmentTo names somebody outside
                 see T1114.003 · https://learn.microsoft.com/defender-xdr/alert-grading-playbook-inbox-forwarding-rules
               - EX-05 medium: an inbox rule's name says nothing, as intrusion tools leave it
                 because the operation is New-InboxRule or Set-InboxRule, and the inbox rule's Name says nothing
                 see T1564.008 · https://learn.microsoft.com/defender-xdr/alert-grading-playbook-inbox-manipulation-rules

            2. FileAccessed by bob@contoso.com on https://x/y
               dropped by SP-12 where `drop_routine` is on; else info
               - SP-12 drop: routine volume; kept when the record itself is flagged by data loss prevention
                 because the operation is FileAccessed
                 see T1213.002 · https://learn.microsoft.com/purview/audit-log-activities

            3. Reset user password by bob@contoso.com (failed)
               low
               - ID-35 low: somebody else set a user's password
                 because the operation is Reset user password
                 one step lower, for the operation failed
                 see T1098 · https://learn.microsoft.com/entra/identity/monitoring-health/reference-audit-activities

            4. SomethingNew
               info
               no rule is about this event

            5. not an event

        "#]].assert_eq(std::str::from_utf8(&out).unwrap());
    }
}
