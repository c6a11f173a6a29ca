//! What stands below the options in `--help` and in the manual pages: examples, files, the environment, exit codes.
//!
//! Broken by hand below 80 columns, and not by clap, which would break what is a table.

use std::io::{self, Write};

use clap::Command;

/// Examples of each command, by its name below `m365-audit`. A test parses each as the command line would.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("run", &["m365-audit run -c agent.toml", "m365-audit run -c agent.toml --once     # one pass, then end"]),
    ("check", &["m365-audit check -c agent.toml", "m365-audit check -c agent.toml --estimate --source contoso"]),
    ("health", &["m365-audit health -c agent.toml", "m365-audit health --listen 127.0.0.1:9598 --live"]),
    (
        "validate",
        &["m365-audit validate -c agent.toml", "m365-audit validate --fluent-bit /etc/fluent-bit/fluent-bit.yaml"],
    ),
    ("demo", &["m365-audit demo", "m365-audit demo --fast --report demo.html"]),
    (
        "simulate",
        &["m365-audit simulate --listen 127.0.0.1:8080", "m365-audit simulate --fault-rate 0.1 --export exports"],
    ),
    (
        "normalize",
        &[
            "m365-audit normalize export.csv > records.ndjson",
            "m365-audit normalize --table --unique exports/",
            "m365-audit normalize -f ecs blob.json | head -n 1",
        ],
    ),
    (
        "reconcile",
        &[
            "m365-audit reconcile -c agent.toml export.csv",
            "m365-audit reconcile -c agent.toml --settle 3d --json export.csv",
        ],
    ),
    ("state show", &["m365-audit state show -c agent.toml", "m365-audit state show -c agent.toml --source contoso"]),
    (
        "state set",
        &[
            "m365-audit state set -c agent.toml --source contoso --from 3d",
            "m365-audit state set -c agent.toml --source contoso \\\n    --content-type Audit.General --from 2026-05-01T00:00:00Z",
        ],
    ),
    ("state retry", &["m365-audit state retry -c agent.toml"]),
    (
        "state export",
        &[
            "m365-audit state export -c agent.toml > set-aside.ndjson",
            "m365-audit state export -c agent.toml -o fabrikam.state \\\n    --tenant 11111111-1111-1111-1111-111111111111",
        ],
    ),
    ("state import", &["m365-audit state import -c agent.toml fabrikam.state"]),
    (
        "cluster init",
        &["m365-audit cluster init -c agent.toml", "m365-audit cluster init -c agent.toml --partitions 16"],
    ),
    ("cluster status", &["m365-audit cluster status -c agent.toml", "m365-audit cluster status -c agent.toml --json"]),
    (
        "receipts verify",
        &["m365-audit receipts verify -c agent.toml", "m365-audit receipts verify --key key.pub exported/"],
    ),
    ("receipts export", &["m365-audit receipts export -c agent.toml exported"]),
    ("receipts key", &["m365-audit receipts key -c agent.toml > key.pub"]),
    (
        "report",
        &["m365-audit report -c agent.toml --from 7d", "m365-audit report -c agent.toml --format html -o report.html"],
    ),
    ("status", &["m365-audit status -c agent.toml", "m365-audit status -c agent.toml --once --failed"]),
    (
        "init",
        &[
            "m365-audit init",
            "m365-audit init -o agent.toml --client-secret-file secret \\\n    --tenant-id 7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55 \\\n    \
             --client-id c0ffee00-1111-4222-8333-444455556666",
        ],
    ),
    (
        "tenant add",
        &["m365-audit tenant add -c agent.toml fabrikam \\\n    --tenant-id 7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55"],
    ),
    ("tenant remove", &["m365-audit tenant remove -c agent.toml fabrikam --purge"]),
    ("tenant list", &["m365-audit tenant list -c agent.toml"]),
    ("backfill", &["m365-audit backfill -c agent.toml --from 3d", "m365-audit backfill -c agent.toml --resume"]),
    (
        "heal",
        &["m365-audit heal -c agent.toml --from 25d --dry-run", "m365-audit heal -c agent.toml --from 25d --to 20d"],
    ),
    ("explain", &["m365-audit explain events.ndjson", "m365-audit explain --rules mine.toml exports/"]),
    ("schema", &["m365-audit schema config > config.schema.json"]),
    ("plugin", &["m365-audit plugin"]),
    ("completions", &["m365-audit completions bash > ~/.local/share/bash-completion/completions/m365-audit"]),
    ("man", &["m365-audit man | man -l -", "m365-audit man --dir ~/.local/share/man/man1"]),
];

/// Of the program itself.
const FIRST_STEPS: &[&str] = &[
    "m365-audit demo                        # no account, no network",
    "m365-audit init                        # writes agent.toml",
    "m365-audit check -c agent.toml         # what is missing in the tenant",
    "m365-audit run -c agent.toml",
    "m365-audit status -c agent.toml        # beside the running process",
];

const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "done"),
    ("64", "usage: the command line"),
    ("65", "part of the input cannot be read, or receipts do not verify"),
    ("66", "an input file cannot be opened"),
    ("69", "network"),
    ("70", "internal: a bug"),
    ("73", "state, or a file that is written"),
    ("75", "something is left: a `--once` or `heal` that is not through,\nevents missing, no receipts yet"),
    ("76", "permission in the tenant"),
    ("77", "signing in"),
    ("78", "configuration"),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/m365-audit/agent.toml", "the configuration of the packaged service; elsewhere any file, named with `-c`"),
    ("/var/lib/m365-audit", "the default of `data_dir`: state, receipts and their key, the control socket"),
    ("/usr/share/doc/m365-audit/docs", "the documents of the package; each error has a page in errors/"),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "NAME of ${NAME}",
        "replaces `${NAME}` in any text of the configuration, such as `${M365_CLIENT_SECRET}`; one that is not set is an error",
    ),
    ("M365_AUDIT_LOG", "what the log shows in place of `[log] level`: directives such as `info,m365_audit=debug`"),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "the proxy, where a source has no `proxy_url`"),
    (
        "CREDENTIALS_DIRECTORY",
        "set by systemd for `LoadCredential=`: `client_secret_file = \"${CREDENTIALS_DIRECTORY}/client_secret\"`",
    ),
    ("NO_COLOR", "no colours"),
];

fn examples_of(name: &str) -> &'static [&'static str] {
    if name.is_empty() {
        return FIRST_STEPS;
    }
    EXAMPLES.iter().find(|(known, _)| *known == name).map_or(&[], |(_, examples)| examples)
}

/// The command and those below it, each with its examples at the end of `--help`. `name` is its name below the program's.
pub fn with_examples(command: Command, name: &str) -> Command {
    let below: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let mut text = String::new();
    let examples = examples_of(name);
    if !examples.is_empty() {
        text.push_str("Examples:\n");
        for example in examples {
            text.push_str(&format!("  {}\n", example.replace('\n', "\n  ")));
        }
    }
    if name.is_empty() {
        text.push_str("\nExit codes:\n");
        for (code, meaning) in EXIT_CODES {
            text.push_str(&format!("  {code:>2}  {}\n", meaning.replace('\n', "\n      ")));
        }
        text.push_str(
            "\nData goes to standard output, everything else to standard error. Errors\nbegin with a slug; docs/errors/<slug>.md is its page.\n",
        );
    }
    let mut command = command;
    for sub in below {
        let path = if name.is_empty() { sub.clone() } else { format!("{name} {sub}") };
        command = command.mut_subcommand(sub, |sub| with_examples(sub, &path));
    }
    if text.is_empty() { command } else { command.after_help(text.trim_end().to_owned()) }
}

/// The sections of a manual page that clap knows nothing of. `name` is the command's below the program's.
///
/// # Errors
/// Of writing.
pub fn sections(name: &str, out: &mut dyn Write) -> io::Result<()> {
    let examples = examples_of(name);
    if !examples.is_empty() {
        writeln!(out, ".SH EXAMPLES\n.nf")?;
        examples.iter().try_for_each(|example| writeln!(out, "{}", escaped(example)))?;
        writeln!(out, ".fi")?;
    }
    for (title, rows) in [("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT), ("EXIT STATUS", EXIT_CODES)] {
        writeln!(out, ".SH \"{title}\"")?;
        for (what, meaning) in rows {
            writeln!(out, ".TP\n{}\n{}", escaped(what), escaped(&meaning.replace('\n', " ")))?;
        }
    }
    Ok(())
}

/// As `roff` shows it as it stands.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    text.lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command_line;

    /// The commands that do something, by their names below the program's.
    fn leaves(command: &Command, name: &str, found: &mut Vec<String>) {
        let below: Vec<&Command> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
        for sub in &below {
            let path = if name.is_empty() { sub.get_name().to_owned() } else { format!("{name} {}", sub.get_name()) };
            leaves(sub, &path, found);
        }
        if below.is_empty() {
            found.push(name.to_owned());
        }
    }

    #[test]
    fn each_command_has_an_example_and_each_example_is_a_command() {
        let mut names = Vec::new();
        leaves(&command_line(), "", &mut names);
        let without: Vec<&String> = names.iter().filter(|name| examples_of(name).is_empty()).collect();
        assert!(without.is_empty(), "EXAMPLES has none of {without:?}");
        assert!(EXAMPLES.iter().all(|(name, _)| names.iter().any(|known| known == name)), "{names:?}");
        for example in EXAMPLES.iter().flat_map(|(_, examples)| *examples).chain(FIRST_STEPS) {
            let words = example.replace("\\\n", " ");
            let words = words.split_whitespace().take_while(|word| !matches!(*word, "|" | ">" | "#"));
            let parsed = command_line().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn no_line_of_any_help_is_longer_than_eighty_columns() {
        fn look(command: &mut Command) {
            let help = command.clone().term_width(80).render_help().to_string();
            // A usage is one line.
            for line in help.lines().filter(|line| !line.starts_with("Usage: ")) {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            command.get_subcommands_mut().for_each(look);
        }
        let mut command = command_line();
        command.build();
        look(&mut command);
        let help = command.term_width(80).render_help().to_string();
        assert!(
            help.contains("\n  78  configuration\n") && help.contains("\n  m365-audit run -c agent.toml\n"),
            "{help}"
        );
    }
}
