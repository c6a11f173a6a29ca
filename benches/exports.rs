//! A million rows of Purview's export to native records: seconds, rows a second and peak memory. A generator makes the
//! rows, so that the disk is not measured. `-- ROWS` measures another number, a second word adds `--unique`.

mod events;

use std::io::{self, Read};
use std::time::Instant;

use clap::Parser as _;
use m365_audit::cli::normalize::{NormalizeArgs, normalize};
use m365_audit::clock::SystemClock;
use m365_audit::exports::input::Input;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: NormalizeArgs,
}

/// Rows of the fixture events, each with an id of its own.
struct Rows {
    /// Each row before and after its id.
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    left: u64,
    pending: Vec<u8>,
    given: usize,
}

impl Rows {
    fn new(count: u64) -> Rows {
        let events = events::events();
        let rows = events.iter().filter_map(|event| {
            let text = std::str::from_utf8(event).ok()?;
            let id: serde_json::Value = serde_json::from_str(text).ok()?;
            let (before, after) = text.split_once(id["Id"].as_str().filter(|id| id.len() > 8)?)?;
            let cell = |text: &str| text.replace('"', "\"\"");
            let row = format!("x,2026-03-02T10:15:00.0000000Z,1,Operation,alex@contoso.example,\"{}", cell(before));
            Some((row.into_bytes(), format!("{}\",,\r\n", cell(after)).into_bytes()))
        });
        let header = b"RecordId,CreationDate,RecordType,Operation,UserId,AuditData,AssociatedAdminUnits,AssociatedAdminUnitsNames\r\n";
        Rows { rows: rows.collect(), left: count, pending: header.to_vec(), given: 0 }
    }
}

impl Read for Rows {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.pending.len() {
            self.pending.clear();
            self.given = 0;
            while self.pending.len() < 512 * 1024 && self.left > 0 {
                let (before, after) = &self.rows[self.left as usize % self.rows.len()];
                self.pending.extend_from_slice(before);
                self.pending.extend_from_slice(format!("{:036}", self.left).as_bytes());
                self.pending.extend_from_slice(after);
                self.left -= 1;
            }
        }
        let rest = &self.pending[self.given..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.given += count;
        Ok(count)
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let count = words.first().and_then(|word| word.parse().ok()).unwrap_or(1_000_000);
    let unique = words.len() > 1;
    let args = Cli::parse_from(["normalize"].into_iter().chain(unique.then_some("--unique"))).args;
    let inputs = vec![Input::Stream("-".into(), Box::new(Rows::new(count)))];
    let begin = Instant::now();
    let tally = normalize(&args, inputs, io::sink(), io::stderr(), SystemClock::new().as_ref()).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("{tally}");
    println!("{seconds:.2} s, {:.0} rows a second, {peak}", count as f64 / seconds);
}
