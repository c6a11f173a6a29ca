//! `m365-audit schema config|record|status`: the JSON Schemas.

use std::io::{self, Write};

use crate::config::{config_schema, pretty, record_schema};
use crate::hosts::embedded::status::status_schema;

/// Which schema to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SchemaSubject {
    /// The configuration file.
    Config,
    /// A record of `format = "native"`.
    Record,
    /// What `status --json` prints and `/status` answers.
    Status,
}

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to describe.
    #[arg(value_enum)]
    pub subject: SchemaSubject,
}

/// Prints the schema.
///
/// # Errors
/// `out` cannot be written.
pub fn schema(args: &Args, out: &mut dyn Write) -> io::Result<()> {
    let schema = match args.subject {
        SchemaSubject::Config => config_schema(),
        SchemaSubject::Record => record_schema(),
        SchemaSubject::Status => status_schema(),
    };
    out.write_all(pretty(&schema).as_bytes())
}
