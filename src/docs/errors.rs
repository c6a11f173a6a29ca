//! The pages of the errors, one for each slug: what happened, the remedy, and the origin.
//!
//! The text comes from the errors themselves if they can be made here. Messages that are only logged, or that a
//! connection test words itself, are written below. A test checks both against the code.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use jiff::SignedDuration;

use super::{Document, NOTICE};
use crate::api::{known_errors, vendor_codes};
use crate::auth::{EXPIRES_HINT, EXPIRES_SLUG};
use crate::checkpoint::moving::MoveError;
use crate::cli::purge::{HeldByMember, InCluster, PurgeError, StillRead};
use crate::cli::reading::NormalizeError;
use crate::cli::receipts::ReceiptsError;
use crate::cli::reconcile::ReconcileError;
use crate::cli::report::ReportError;
use crate::cli::transfer::TransferError;
use crate::cli::written::NotWritten;
use crate::config::{ConfigError, Fault, Problem};
use crate::delivery::SLOW_HINT;
use crate::exports::input::InputError;
use crate::host::StateError;
use crate::hosts::embedded::control::ControlError;
use crate::hosts::embedded::metrics_server::MetricsError;
use crate::hosts::embedded::receipts_key::KeyError;
use crate::hosts::embedded::store::{
    LOG_HINT, LOST_HINT, MOUNT_HINT, OVER_HINT, REMOVED_HINT, REPLACED_HINT, StoreError,
};
use crate::hosts::file::{FileSinkError, NEW_STATE_HINT, SHORTER_HINT};
use crate::hosts::net::NetSinkError;
use crate::model::{Actionable, ContentType, TenantId, Timestamp};
use crate::source::SourceError;
use crate::source::backfill::BackfillError;
use crate::source::heal::requests::HealError;
use crate::source::slow_store::SLOW_HINT as STORE_SLOW_HINT;

/// One occasion on which a slug is shown.
struct Occasion {
    slug: &'static str,
    what: String,
    remedy: String,
    origin: &'static str,
}

/// Every slug that has a page.
pub fn slugs() -> Vec<&'static str> {
    pages().into_keys().collect()
}

pub(super) fn documents() -> Vec<Document> {
    let pages = pages();
    let mut index = format!(
        "{NOTICE}\n\n# Errors\n\n\
         An error begins with its slug, here the name of its page, and ends with a hint. The metric \
         `m365_audit_errors_total` counts by slug. [Operating](../operating.md) lists the exit codes. Remedies name the hosts \
         and consoles of the worldwide cloud here; the program itself names those of the configured `cloud`, \
         `authority_url` and `api_url`, which [Network](../network.md) lists.\n\n\
         | slug | what it says |\n| --- | --- |\n"
    );
    for (slug, entries) in &pages {
        let what = entries.first().map_or("", |entry| entry.what.as_str());
        let _ = writeln!(index, "| [`{slug}`]({slug}.md) | {} |", what.replace('|', "\\|"));
    }
    let index = Document { path: "docs/errors/README.md".to_owned(), text: index };
    let pages = pages
        .iter()
        .map(|(slug, entries)| Document { path: format!("docs/errors/{slug}.md"), text: page(slug, entries) });
    std::iter::once(index).chain(pages).collect()
}

fn page(slug: &str, entries: &[Occasion]) -> String {
    let mut page = format!("{NOTICE}\n\n# {slug}\n");
    for entry in entries {
        let _ = write!(page, "\n{}.\n\n- comes from: {}\n", capital(&entry.what), entry.origin);
        let remedy = if entry.remedy.is_empty() { "nothing" } else { &entry.remedy };
        let _ = writeln!(page, "- what to do: {remedy}");
    }
    let codes = vendor_codes(slug);
    if !codes.is_empty() {
        let codes = codes.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(page, "- Microsoft's codes: {codes}");
    }
    if let Some(more) = more(slug) {
        let _ = write!(page, "\n{more}\n");
    }
    page
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn pages() -> BTreeMap<&'static str, Vec<Occasion>> {
    let feed = known_errors().into_iter().map(|(slug, what, remedy)| Occasion {
        slug,
        what: what.to_owned(),
        remedy,
        origin: match slug {
            _ if slug.starts_with("auth-") => "signing in (`src/auth/`)",
            _ if slug.starts_with("api-") => "a call of the feed (`src/api/`)",
            _ if slug.starts_with("graph-") => "a search of Microsoft Graph (`src/api/graph.rs`)",
            _ => "signing in, or a call of the feed: the network between (`src/auth/network.rs`)",
        },
    });
    let mut pages: BTreeMap<&'static str, Vec<Occasion>> = BTreeMap::new();
    for entry in feed.chain(made()).chain(WRITTEN.iter().map(written)) {
        let entries = pages.entry(entry.slug).or_default();
        // An error that is reported at two places is listed once here.
        if !entries.iter().any(|known| known.what == entry.what) {
            entries.push(entry);
        }
    }
    pages
}

/// Errors that can be made here, with example values.
fn made() -> Vec<Occasion> {
    let groups = [
        of_the_state(),
        of_sinks(),
        of_listeners(),
        of_positions(),
        of_normalize(),
        of_receipts(),
        of_the_configuration(),
        of_sources(),
    ];
    groups.into_iter().flatten().collect()
}

/// Those of opening the state.
fn of_the_state() -> Vec<Occasion> {
    let mut entries = Vec::new();
    let state = || PathBuf::from("/var/lib/m365-audit/state.sqlite3");
    let data_dir = || PathBuf::from("/var/lib/m365-audit");
    let why = |text: &str| text.to_owned();
    let store = "opening the state (`src/hosts/embedded/store.rs`)";
    let errors = [
        StoreError::Locked { data_dir: data_dir(), pid: Some(4242) },
        StoreError::TooNew { path: state(), what: "format", found: 2, known: 1 },
        StoreError::Corrupt { path: state(), why: why("a row does not match its checksum") },
        StoreError::NotWritable { path: data_dir(), why: why("permission denied") },
        StoreError::FileSystem {
            path: state(),
            file_system: Some(why("cifs")),
            lacks: "grants no locks",
            why: why("database is locked"),
        },
        StoreError::Busy { path: state() },
        StoreError::Full { path: data_dir(), why: why("no space left on device") },
        StoreError::Missing { data_dir: data_dir() },
        StoreError::NotReadable { path: state(), why: why("permission denied") },
    ];
    entries.extend(errors.iter().map(|error| entry(error, store)));
    entries
}

/// Those of sinks.
fn of_sinks() -> Vec<Occasion> {
    let mut entries = Vec::new();
    let sink = || PathBuf::from("/var/log/m365/audit.ndjson");
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let errors = [
        FileSinkError::NotWritable { path: sink(), source: denied() },
        FileSinkError::Locked { path: sink() },
        FileSinkError::NotRegular { path: sink() },
        FileSinkError::Foreign { path: sink(), bytes: 4096 },
        FileSinkError::MountGone { path: sink(), mount: PathBuf::from("/var/log/m365") },
        FileSinkError::CutMeanwhile { path: sink() },
    ];
    entries.extend(errors.iter().map(|error| entry(error, "a sink of type `file` (`src/hosts/file.rs`)")));

    let errors = [
        NetSinkError::CaFile { path: PathBuf::from("/etc/ssl/own-ca.pem"), source: denied() },
        NetSinkError::Tls { to: "https://receiver.example".to_owned(), why: "no certificate found".to_owned() },
        NetSinkError::ClientCertificate {
            why: "the key in `client.key` does not belong to the certificate in `client.pem`".to_owned(),
            hint:
                "name the pair that was issued together; a PFX is taken apart with `openssl pkcs12`, a key without its \
                   passphrase is written by `openssl pkey`"
                    .to_owned(),
        },
    ];
    entries.extend(errors.iter().map(|error| entry(error, "a sink that sends over the network (`src/hosts/net.rs`)")));
    entries
}

/// Those of the process's listeners.
fn of_listeners() -> Vec<Occasion> {
    let mut entries = Vec::new();
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let listen = "127.0.0.1:9598".to_owned();
    let error = MetricsError::Listen { listen, source: io::ErrorKind::AddrInUse.into() };
    entries.push(entry(&error, "the listener of `[metrics]` (`src/hosts/embedded/metrics_server.rs`)"));

    let socket = || PathBuf::from("/var/lib/m365-audit/control.sock");
    let errors = [
        ControlError::Listen { path: socket(), source: denied() },
        ControlError::MountGone { path: socket(), mount: PathBuf::from("/var/lib/m365-audit") },
        ControlError::Denied { path: socket(), source: denied() },
        ControlError::Broken { why: "it closed the connection".to_owned() },
        ControlError::Version { theirs: 2 },
    ];
    let origin = "the control socket (`src/hosts/embedded/control.rs`)";
    entries.extend(errors.iter().map(|error| entry(error, origin)));
    entries
}

/// Those of back-fills and of positions moved by hand.
fn of_positions() -> Vec<Occasion> {
    let mut entries = Vec::new();
    let time = |hours: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(493_656 + hours);
    let errors = [
        BackfillError::Range { from: time(24), to: time(0) },
        BackfillError::TooOld { from: time(0), oldest: time(24) },
        BackfillError::TypeNotRead("DLP.All".to_owned()),
        BackfillError::Unfinished { from: time(0), to: time(24) },
        BackfillError::Nothing,
        BackfillError::Busy,
        BackfillError::SourceEnded,
    ];
    entries.extend(errors.iter().map(|error| entry(error, "`m365-audit backfill` (`src/source/desk.rs`)")));

    let errors = [
        HealError::Range { from: time(24), to: time(0) },
        HealError::TypeNotRead("DLP.All".to_owned()),
        HealError::NotKnown {
            content_type: ContentType::Exchange.to_string(),
            from: time(0),
            to: time(24),
            why: format!("receipts reach back to `{}` only", time(24)),
        },
        HealError::Cloud("gcc_high".to_owned()),
        HealError::Busy,
        HealError::SourceEnded,
    ];
    entries.extend(errors.iter().map(|error| entry(error, "`m365-audit heal` (`src/source/heal/desk.rs`)")));

    let errors = [
        MoveError::PassesOver { content_type: ContentType::Exchange, before: time(0), to: time(24) },
        MoveError::TooOld { to: time(0), oldest: time(24) },
        MoveError::Future { to: time(24), now: time(0) },
    ];
    entries.extend(errors.iter().map(|error| entry(error, "`m365-audit state set` (`src/checkpoint/moving.rs`)")));
    entries
}

/// Those of `m365-audit normalize` and of masks.
fn of_normalize() -> Vec<Occasion> {
    let mut entries = Vec::new();
    let pointer = crate::normalise::Mask::new(true, &["no-pointer".to_owned()]).err();
    entries.extend(
        pointer.map(NormalizeError::Mask).iter().map(|error| {
            entry(error, "`mask` of a source, or `m365-audit normalize --mask` (`src/normalise/mask.rs`)")
        }),
    );
    let errors = [
        NormalizeError::Input(InputError::Open { name: "export.csv".into(), source: io::ErrorKind::NotFound.into() }),
        NormalizeError::Input(InputError::Cut { name: "export.csv.gz".into(), why: "unexpected end of file".into() }),
        NormalizeError::Input(InputError::Foreign { name: "audit.7z".into(), what: "a 7z archive: unpack it first" }),
        NormalizeError::Write(io::ErrorKind::StorageFull.into()),
    ];
    entries.extend(errors.iter().map(|error| entry(error, "`m365-audit normalize` (`src/cli/normalize.rs`)")));
    let error = ReconcileError::Write {
        path: PathBuf::from("/var/lib/m365-audit/reconcile/contoso.json"),
        why: io::ErrorKind::StorageFull.into(),
    };
    entries.push(entry(&error, "`m365-audit reconcile` (`src/cli/reconcile.rs`)"));
    entries
}

/// Those of receipts and of their key.
fn of_receipts() -> Vec<Occasion> {
    let key = || PathBuf::from("/var/lib/m365-audit/receipts.key");
    let errors = [
        KeyError::Missing { path: key() },
        KeyError::File { path: key(), done: "read", why: "Permission denied (os error 13)".to_owned() },
        KeyError::Damaged { path: key(), why: "it is no private key in PEM".to_owned() },
    ];
    let origin = "the key that receipts are signed with (`src/hosts/embedded/receipts_key.rs`)";
    let mut entries: Vec<Occasion> = errors.iter().map(|error| entry(error, origin)).collect();
    let errors = [
        ReceiptsError::NotVerified(2),
        ReceiptsError::Nothing { data_dir: PathBuf::from("/var/lib/m365-audit") },
        ReceiptsError::Unreadable {
            path: PathBuf::from("receipts"),
            why: "No such file or directory (os error 2)".to_owned(),
        },
        ReceiptsError::Checkpoint {
            path: PathBuf::from("sent.ndjson"),
            line: 7,
            why: "its signature does not fit its text: it was changed after it was signed, or another key signed it"
                .to_owned(),
        },
        ReceiptsError::Unwritable { path: PathBuf::from("receipts"), why: "it is not empty".to_owned() },
    ];
    entries.extend(errors.iter().map(|error| entry(error, "`m365-audit receipts` (`src/cli/receipts.rs`)")));
    let error = ReportError::Unwritable { path: PathBuf::from("report.html"), why: io::ErrorKind::StorageFull.into() };
    entries.push(entry(&error, "`m365-audit report` (`src/cli/report.rs`)"));
    entries
}

/// Those of `m365-audit tenant`.
fn of_tenants() -> Vec<Occasion> {
    let Ok(tenant) = "11111111-1111-1111-1111-111111111111".parse::<TenantId>() else { return Vec::new() };
    let origin = "`m365-audit tenant remove --purge` (`src/cli/purge.rs`)";
    let why = || StateError::Unavailable("database or disk is full".to_owned());
    let path = PathBuf::from("/var/lib/m365-audit/reconcile/customers.fabrikam.json");
    let errors = [
        PurgeError::State { tenant: tenant.clone(), why: why() },
        PurgeError::Traces { tenant: tenant.clone(), why: why() },
        PurgeError::Verdict { tenant: tenant.clone(), path, why: io::ErrorKind::PermissionDenied.into() },
    ];
    let mut entries: Vec<Occasion> = errors.iter().map(|error| entry(error, origin)).collect();
    entries.push(entry(&StillRead { name: "customers.fabrikam".to_owned(), tenant }, origin));
    let path = PathBuf::from("/etc/m365-audit/tenants.d/fabrikam.toml");
    let error = NotWritten { path, why: io::ErrorKind::PermissionDenied.into() };
    entries.push(entry(&error, "`m365-audit tenant` (`src/cli/written.rs`)"));
    entries
}

/// Those of moving a state from one store to another.
fn of_transfers() -> Vec<Occasion> {
    let Ok(tenant) = "11111111-1111-1111-1111-111111111111".parse::<TenantId>() else { return Vec::new() };
    let path = || PathBuf::from("fabrikam.state");
    let errors = [
        TransferError::Read { tenant: tenant.clone(), by: "member `worker-1` of the cluster".to_owned() },
        TransferError::Nothing(tenant.clone()),
        TransferError::Occupied { tenant: tenant.clone(), entries: 300 },
        TransferError::File { path: path(), why: "Permission denied (os error 13)".to_owned() },
        TransferError::Damaged { path: path(), why: "its end is missing".to_owned() },
    ];
    let origin = "`m365-audit state export --tenant` and `state import` (`src/cli/transfer.rs`)";
    let mut entries: Vec<Occasion> = errors.iter().map(|error| entry(error, origin)).collect();
    entries.push(entry(&InCluster, "`m365-audit tenant remove --purge` (`src/cli/purge.rs`)"));
    entries.push(entry(
        &HeldByMember { name: "worker-1".to_owned(), tenant },
        "`m365-audit tenant remove --purge` (`src/cli/purge.rs`)",
    ));
    entries
}

/// Those of the configuration, and of adding and removing tenants.
fn of_the_configuration() -> Vec<Occasion> {
    let mut entries = of_tenants();
    entries.extend(of_transfers());
    let problem = Problem {
        key: "sources.contoso.tenant_id".to_owned(),
        line: None,
        file: None,
        fault: Fault::Invalid,
        value: Some("contoso.onmicrosoft.com".to_owned()),
        expected: "a GUID".to_owned(),
        hint: None,
    };
    let error = ConfigError { path: None, problems: vec![problem.clone()] };
    entries.push(Occasion {
        slug: error.slug(),
        what: format!("the configuration has problems, all of which are told at once: {problem}"),
        remedy: error.hint(),
        origin: "reading the configuration (`src/config/`)",
    });
    entries
}

/// Those that stop a source; its health has the same text.
fn of_sources() -> Vec<Occasion> {
    let mut entries = Vec::new();
    let why = |text: &str| text.to_owned();
    let key = || "m365_audit/v1/00000000-0000-0000-0000-000000000000/tenant".to_owned();
    let Ok(tenant) = "00000000-0000-0000-0000-000000000000".parse::<TenantId>() else { return entries };
    let state_errors = [
        StateError::Conflict { key: key() },
        StateError::Corrupt { key: key(), why: why("not the JSON of a tenant") },
        StateError::Unavailable(why("disk full")),
    ];
    let origin = "a source that cannot go on (`src/source/error.rs`)";
    for source in state_errors {
        entries.push(entry(&SourceError::State { tenant: tenant.clone(), source }, origin));
    }
    let error = SourceError::File {
        key: "ca_file",
        path: PathBuf::from("/etc/ssl/certs/corporate-ca.pem"),
        why: "Permission denied (os error 13)".to_owned(),
    };
    entries.push(entry(&error, origin));
    entries.push(entry(&SourceError::Internal("what was found".to_owned()), origin));
    entries
}

fn entry(error: &dyn Actionable, origin: &'static str) -> Occasion {
    Occasion { slug: error.slug(), what: error.to_string(), remedy: error.hint(), origin }
}

/// Slug, message, remedy, origin.
type WrittenError = (&'static str, &'static str, &'static str, &'static str);

fn written(&(slug, what, remedy, origin): &WrittenError) -> Occasion {
    Occasion { slug, what: what.to_owned(), remedy: remedy.to_owned(), origin }
}

const HEALTH: &str = "`m365-audit health` (`src/cli/health.rs`)";
const CHECK: &str = "`m365-audit check` (`src/source/check.rs`)";
const LOOP: &str = "a running source: log and health (`src/source/tenant.rs`)";

/// Messages that are logged or printed by `check` and are not values of an error type.
#[rustfmt::skip]
const WRITTEN: &[WrittenError] = &[
    (
        "fluent-bit-second-instance",
        "there is an input `m365_audit` already, and Fluent Bit pauses the wrong one of two and loses its records",
        "put all tenants into one input: `config_file` names a TOML file with a `[sources.<name>]` for each",
        "the Fluent Bit input (`plugins/fluent-bit/src/instance.rs`)",
    ),
    (
        "fluent-bit-append-refused",
        "Fluent Bit did not take a buffer of the input; nothing is lost, it is sent again until it is taken",
        "Fluent Bit's own lines beside this one say why: mostly the disk of `storage.path` is full",
        "the Fluent Bit input (`plugins/fluent-bit/src/settle.rs`)",
    ),
    (
        "fluent-bit-memory-misaligned",
        "the `malloc` of the Fluent Bit process gives memory that is aligned to less than 8 bytes; the input does not start, since it would crash",
        "use one of Fluent Bit's own packages, or a build of it with another allocator; or run `m365-audit run` beside it, with the sink `fluent_forward`",
        "the Fluent Bit input (`plugins/fluent-bit/src/memory.rs`)",
    ),
    (
        "fluent-bit-no-threads",
        "the Fluent Bit input cannot start its threads",
        "check the limit of processes of the user Fluent Bit runs as",
        "the Fluent Bit input (`plugins/fluent-bit/src/instance.rs`)",
    ),
    (EXPIRES_SLUG, "the client certificate, or the client secret by `client_secret_expires`, ends within 30 days or has ended", EXPIRES_HINT, "signing in: log (`src/auth/mod.rs`), and `m365-audit check`"),
    ("health-unreachable", "nothing answers at the metrics listener's address", "check that `m365-audit run` is running and that `[metrics] listen` is the address that was asked", HEALTH),
    ("source-unknown", "no source of that name, or for that tenant, is in the configuration or in the running process", "give one of those it names, or reload the process (SIGHUP) when the configuration has it", "`m365-audit backfill` and `state set`"),
    ("backfill-not-begun", "the running source does not begin the back-fill: it has not signed in, or its state cannot be read", "`m365-audit status` shows what is wrong with it; `m365-audit check` tests the connection", "the control socket (`src/hosts/embedded/control.rs`)"),
    ("not-running", "no process answers on the control socket of `data_dir`", "start it (`systemctl start m365-audit`, or `m365-audit run`) and look at its log; `m365-audit state show` tells how far it had come", "`m365-audit status` (`src/cli/status.rs`)"),
    ("init-exists", "the file to be written is there already; nothing was changed", "choose another name with --output, or move it away", "`m365-audit init` (`src/cli/init.rs`)"),
    ("init-not-written", "a file cannot be written", "choose a directory you may write to with --output", "`m365-audit init` (`src/cli/init.rs`)"),
    ("api-permission-missing", "`ActivityFeed.Read` is not in the token", "Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application permissions > ActivityFeed.Read, then Grant admin consent; not Microsoft Graph, not a delegated permission", CHECK),
    ("dlp-permission-missing", "`ActivityFeed.ReadDlp` is not granted: `DLP.All` cannot be read, the other types can", "add the application permission ActivityFeed.ReadDlp on Office 365 Management APIs and grant consent, or take `DLP.All` out of `content_types`", CHECK),
    ("clock-skewed", "this machine's clock and Microsoft's differ by more than 5 minutes", "set the clock: `timedatectl set-ntp true`; listings follow Microsoft's clock and are right all the same, log times are not", CHECK),
    ("audit-maybe-off", "content types are subscribed, and not one event was listed in 7 days: unified auditing is most likely off in the tenant", "`Get-AdminAuditLogConfig | Format-List UnifiedAuditLogIngestionEnabled` in Exchange Online PowerShell shows it; `Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true` turns it on, which can take a day. Nothing from before it is switched on will ever come", CHECK),
    ("subscription-absent", "the subscription to a content type was not started yet", "`m365-audit run` starts it, and first events take up to 60 minutes, 12 hours after a very first start; where auditing is off a start fails, which `check --probe` tells", CHECK),
    ("subscription-disabled", "the subscription to a content type was started once and is disabled now", "`m365-audit run` starts it again; what became available while it was off is gone", CHECK),
    ("start-too-recent", "`check --probe` did not start the subscription: Microsoft allows a start every 15 minutes", "try again when the time named is over", CHECK),
    ("state-not-read", "the state could not be read", "check the permissions of `data_dir`; a running source tries again by itself", "a source, `check --probe` and `m365-audit state`"),
    ("state-not-written", "the state cannot be written at present", "free disk space or repair the store; no checkpoint advances until writes succeed, nothing is lost", LOOP),
    ("state-not-written", "`check --probe` started and stopped the subscription, but the start could not be remembered", "wait 15 minutes before `m365-audit run`", CHECK),
    ("state-conflict", "another writer changed this tenant's state", "run one collector per tenant and state store, then restart; a member of a cluster opens the tenant again by itself, if it is still its own", LOOP),
    ("stream-gap", "an interval of a stream can never be read: Microsoft no longer keeps it, or the subscription was off", "the feed never brings it back; `heal` does, through Microsoft Graph (docs/heal.md). The record `m365_audit.gap` and the metric `m365_audit_gaps_total` name the interval. Keep outages under 7 days, and find out who disables the subscription", LOOP),
    ("heal-incomplete", "a gap could not be filled through Microsoft Graph, or not all of it: searches did not end, failed, or gave different records each time they were read. That part stays a gap", "none needed: it is tried again in six hours; `m365-audit heal` tries it now, `m365-audit state show` names what is open", "a source that fills gaps: log (`src/source/heal/mod.rs`)"),
    ("heal-not-known", "Microsoft Graph has events of before a gap that may have become available within it, and nobody knows whether the feed had brought them before: they are left out, and the part of the gap in which they may have come stays declared", "the hint has the command that fills it: `m365-audit heal --again` from three days before the gap, which delivers once more what was delivered of that time. With receipts that reach back (`[receipts] days`) it does not happen", "a source that fills gaps (`src/source/heal/mod.rs`), `run --once`"),
    ("heal-search-failed", "a search of Microsoft Graph came to nothing", "none needed: it is made again, five times at most; `query_wait_secs` says how long one may take", "a source that fills gaps: log (`src/source/heal/work.rs`)"),
    ("blob-expired", "a blob could not be read before Microsoft removed it; its events are lost", "the record `m365_audit.gap` names it; the log says why each attempt failed", LOOP),
    ("dlp-blind", "`DLP.All` is not read: routine reads are dropped without knowing whether data loss prevention flagged them", "grant the application permission ActivityFeed.ReadDlp and list `DLP.All` in `content_types`, or set `drop_routine = false`", LOOP),
    ("hold-full", "more routine reads wait for data loss prevention than `hold_bytes_max` has room for: the oldest are shipped, marked `dlp.undetermined`", "nothing is lost. See why `DLP.All` or `Audit.General` lags (`m365-audit state show`), or raise `hold_bytes_max`", "a running source: log (`src/source/hold.rs`)"),
    ("dlp-flags-full", "more files and messages are flagged by data loss prevention than `dlp_flags_max`: those flagged longest ago are forgotten, reads of them count as routine", "raise `dlp_flags_max`, or lower `dlp_flag_secs`", "a running source: log (`src/source/hold.rs`)"),
    ("sink-file-shorter", "the file of a `file` sink is shorter than it was after the last write: records that were confirmed are gone from it", SHORTER_HINT, "a sink of type `file`: log, health for a day, and `m365_audit_sink_file_cut_total` (`src/hosts/file/known.rs`)"),
    ("sink-file-replaced", "the file of a `file` sink is not the one that was written last: records that were confirmed are not in it", SHORTER_HINT, "a sink of type `file`: log, health for a day, and `m365_audit_sink_file_cut_total` (`src/hosts/file/known.rs`)"),
    ("sink-slow", "a write of a sink has been under way for more than 10 seconds", SLOW_HINT, "a sink: log, health, and `m365_audit_sink_oldest_request_seconds` (`src/delivery/worker.rs`)"),
    ("state-slow", "a commit to the state, or a read of it, has been under way for more than 10 seconds", STORE_SLOW_HINT, "a running source: log, health, and `m365_audit_state_waiting_seconds` (`src/source/slow_store.rs`)"),
    ("cluster-store-away", "the PostgreSQL of the cluster does not answer, or refuses", "look at the database and the way to it; the process waits and goes on by itself. Nothing is lost: nothing is handed over while it is unsure who has the tenants, and other members may take them", "a member of a cluster: log (`src/hosts/postgres/leases.rs`), and every command that asks the database"),
    ("cluster-member-has-it", "the tenants of a cluster are its members', so a command that needs a state for itself alone does not run", "run it without `[cluster]`, or ask the member that has the tenant: `backfill`, `heal`, `state set` and `state retry` find it by themselves", "commands that write the state (`src/cli/opened.rs`)"),
    ("cluster-not-durable", "the database of the cluster reports commits as done that a crash of it may lose (`synchronous_commit`, `fsync` or `full_page_writes` is off); what they marked comes again then", "set all three to `on`; a managed server says in its own pages how", "the start of a member of a cluster: log (`src/cli/seat.rs`)"),
    ("cluster-nobody", "no live member of the cluster reads the tenant, so nobody took what was asked", "`m365-audit cluster status` shows who is there; start a member whose configuration has the tenant, then run the same command again", "`backfill`, `heal`, `state set`, `state retry` in a cluster (`src/cli/requests.rs`)"),
    ("cluster-left-unsaid", "a member that ended could not give its leases back", "nothing: they expire by themselves after `cluster.lease_secs`, and other members take the tenants then", "the end of a member of a cluster: log (`src/hosts/postgres/leases.rs`)"),
    ("lease-lost", "a member of a cluster was silent for longer than `cluster.lease_secs`, so others may have its tenants; it gives all up and begins anew", "find out what paused the process, or kept it from the database: a machine that sleeps, a CPU limit, the network. Nothing is lost; what was at the sink at that moment may come twice", "a member of a cluster: log (`src/hosts/postgres/leases.rs`)"),
    ("lease-conflict", "another member wrote the state of a tenant, so this one gives it up", "nothing, after a pause or a failover. Again and again: two processes that do not see each other read the tenant; `m365-audit cluster status` shows the members", "a member of a cluster: log (`src/cli/run.rs`)"),
    ("lease-unsure", "the cluster's database has not answered a heartbeat for two thirds of `cluster.lease_secs`, so nothing is handed to the sinks until it does", "look at the database and the way to it; the process goes on by itself", "a member of a cluster: what a batch is refused with (`src/hosts/postgres/fence.rs`)"),
    ("tenant-passed-on", "the source of a tenant failed three times on one member of a cluster, so another member tries; where no member can read it, it comes back and begins again every five minutes", "look at why it failed, in the log lines before: a file that is missing on that machine, a state that is damaged. The tenant is passed on at most once an hour by each member", "a member of a cluster: log (`src/hosts/postgres/leases.rs`)"),
    ("member-replaced", "another process goes by this member's name. One that starts takes the name over, as after a crash; the one that lost it ends", "give each process its own `cluster.member`; by default it is the name of the host", "a member of a cluster: log (`src/hosts/postgres/leases.rs`)"),
    ("state-new-beside-records", "the state is new, and the file of a sink has records already: the state was lost, or `data_dir` is not where it was", NEW_STATE_HINT, "the start of a sink of type `file`: log and health for a day (`src/hosts/file/known.rs`)"),
    ("state-lost", "`data_dir` was used before and has no state: a first run begins", LOST_HINT, "the start: log, and health for an hour (`src/hosts/embedded/store.rs`)"),
    ("state-removed", "a file of the state was removed or moved away while the process ran; it is written anew from what the process holds", REMOVED_HINT, "the state while running: log and health (`src/hosts/embedded/store/writer.rs`)"),
    ("state-replaced", "another file was put in the place of the state while the process ran, or it was cut; it is left alone, and nothing is written until that is settled", REPLACED_HINT, "the state while running: log and health (`src/hosts/embedded/store/writer.rs`)"),
    ("state-mount-gone", "what `data_dir` lies on is not mounted any more; nothing is written beneath it, and no position moves", MOUNT_HINT, "the state while running: log and health (`src/hosts/embedded/store/writer.rs`)"),
    ("state-log-grows", "the log of the state has over 64 MiB, since another program reads the state without end, or its file cannot be written; commits go on until the disk is full", LOG_HINT, "the state while running: log and health (`src/hosts/embedded/store/writer.rs`)"),
    ("state-mounted-over", "a file system was mounted over `data_dir` while the process ran, and the state lies beneath it; nothing is written, and no position moves", OVER_HINT, "the state while running: log and health (`src/hosts/embedded/store/writer.rs`)"),
    ("blob-expiry-near", "blobs that could not be read so far expire within a day", "act on the reason the log gives for them: a proxy or filter that cuts large answers is the usual one", LOOP),
    ("turn-awaited", "a tenant waits for its turn to be read: for long, or while the oldest of it is gone within a day", "nothing is lost while it waits, and what expires goes first; see in `status` whether a sink takes nothing, or raise `catch_up_tenants_max` where there is memory for it (some 3 MB a tenant)", LOOP),
    ("blobs-failing", "blobs cannot be read, and are tried until they expire", "look for a proxy or filter that cuts large answers", LOOP),
    ("blob-unreadable", "a blob arrived whole and is not what the API documents", "none needed unless it lasts: it is asked for again; when three answers are the same, what is readable is shipped and the rest becomes `m365_audit.bad_blob` records", LOOP),
    ("blob-empty", "a blob that Microsoft lists holds no event; it was asked for again, over most of an hour (some seconds with `--once` and in a back-fill), and stayed so", "none needed: it counts as read, and `m365_audit_empty_answers_total` counts such answers. If there are many, report them to Microsoft, and look for a proxy that empties answers; `m365-audit backfill --again` reads a range again", "a running source: log (`src/source/fetch.rs`)"),
    ("listing-null", "a listing is `null` in place of an array; it was asked for again five times and stayed so", "none needed: the same time is listed again by the polls of the next hours, of the day and of the week. If it lasts, look for a proxy that alters answers", "a running source: log (`src/source/listing.rs`)"),
    ("bad-blob", "a damaged blob was shipped: events where they could be cut out, the rest as `m365_audit.bad_blob` records", "report the blob to Microsoft, or look for a proxy that alters answers", "a running source: log (`src/source/fetch.rs`)"),
    ("clock-jumped", "Microsoft's answers carry a date more than 10 minutes off what is expected", "events are still read; no position moves and nothing is declared until three answers over 5 minutes agree", LOOP),
    ("record-rejected", "a receiver refused a record alone, several times, while it took others, or the record is larger than the sink's `record_bytes_max`; it is set aside in the state", "`m365-audit state show` lists such records with the receiver's words, `m365-audit state export` writes them out; correct what the receiver did not like, or raise the limit, then run `m365-audit state retry`", "a running source: log (`src/source/deliver.rs`)"),
    ("receipts-damaged", "receipts in the state cannot be read; events are collected as before, and if what is damaged is not old, no receipts are kept until the next start", "compare with a backup: a copy of `data_dir` from before has sound ones; when the damage is gone, the next start keeps receipts again, and the hours in between say that they may lack some (`begins`)", "a running source: log (`src/checkpoint/ledger.rs`)"),
    ("receipt-not-sent", "a sink of `[receipts] to` rejects a signed checkpoint", "correct what the receiver did not like; the receipts in the state hold the checkpoint, `m365-audit receipts export` writes it out", "a running source: log (`src/source/checkpoints.rs`)"),
    ("sink-rejects-everything", "the receiver of a sink rejects every record; none is set aside, they wait until it takes them", "look for a wrong setting of the sink or of its receiver: address, credentials, index, channel, format; the receiver's own words are in the message", "a running sink: log, `/health` and `status` (`src/delivery/worker.rs`)"),
    ("listing-item-unreadable", "an entry of a listing has no content id, address or time that can be read", "report it with the log line; the window is listed again and does not count as read meanwhile", "a running source: log (`src/source/listing.rs`)"),
];

/// Further information for an operator, beyond the remedy.
fn more(slug: &str) -> Option<&'static str> {
    Some(match slug {
        "api-audit-off" | "audit-maybe-off" => {
            "What happened before auditing is switched on was not recorded: none of it will ever come, by this feed or any \
             other way.\n\n`Get-AdminAuditLogConfig | Format-List UnifiedAuditLogIngestionEnabled` shows the setting; ask it of Exchange \
             Online PowerShell, since Security & Compliance PowerShell always answers `False`."
        }
        "record-rejected" => {
            "The record's neighbours were delivered. `state retry` offers what is set aside again, beside a running process, \
             prints what was delivered and what is still rejected, and exits with 75 while something is left; a restart is \
             not needed. `m365_audit_set_aside_records` counts what is set aside now."
        }
        "sink-rejects-everything" => {
            "The sink asks one request at a time, with pauses up to 30 s or for as long as the receiver asks, and goes on by \
             itself as soon as the receiver takes something: no restart is needed, and nothing has to be retried by hand. A \
             sink whose own configuration was wrong goes on after a reload (SIGHUP). Until then no position moves; \
             Microsoft keeps content for seven days. `m365_audit_sink_held_back` is 1 meanwhile."
        }
        "state-corrupt" => {
            "The file is kept byte for byte. A new start without it begins `backfill_secs` before now: events that were \
             delivered already within that time come again."
        }
        "subscription-disabled" | "api-subscription-disabled" => {
            "What Microsoft made available while a subscription was off is never listed. The source reports that interval \
             as a gap."
        }
        _ => return None,
    })
}
