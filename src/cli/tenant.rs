//! `m365-audit tenant`: adds tenants to the configuration and removes them, keeping comments, and removes a tenant's
//! data from the state.
//!
//! Owns the options and the edits of the texts. `config` validates the texts: an edit that would add a problem is not
//! written. The command never shows a secret, and does not take one from the command line, where others see it.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::exit::Exit;
use super::{Failure, loaded, opened, purge, written};
use crate::config::ClusterConfig;
use crate::config::{
    Config, ConfigError, ConfigFiles, Declared, Fault, Problem, SOURCE_TYPE, Survey, source_schema, typed_from_text,
};
use crate::hosts::embedded::control::{Client, Say, What};
use crate::hosts::embedded::store::{SqliteStore, running};
use crate::hosts::postgres::PostgresStore;
use crate::hosts::postgres::tenants::StoredTenant;
use crate::model::TenantId;

/// Arguments of `tenant`.
#[derive(Debug, clap::Args)]
pub struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TenantCommand {
    /// Add a tenant: as a file of `tenants_dir` where the configuration has one, else to the configuration
    Add(AddArgs),
    /// Take a tenant out; --purge takes out what is remembered of it, too
    Remove(RemoveArgs),
    /// List the tenants, each with the file it stands in
    List {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The tenant's name, of letters, digits, `_` and `-`
    #[arg(value_name = "NAME")]
    name: String,
    /// The tenant's id
    #[arg(long, value_name = "GUID")]
    tenant_id: TenantId,
    /// The source that is the template; needed where there are several. Where there is none, the tenant is a source of its
    /// own
    #[arg(long, value_name = "TEMPLATE")]
    source: Option<String>,
    /// Further keys of the tenant, such as `poll_interval_secs=60`; a secret as `client_secret_file=FILE` or
    /// `'client_secret=${NAME}'`
    #[arg(value_name = "KEY=VALUE")]
    keys: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The tenant, as `tenant list` names it, or its id
    #[arg(value_name = "NAME")]
    name: String,
    /// Take out what is remembered of it, too, for good: positions, reads on hold, records set aside, receipts, verdicts.
    /// Inside the running process, which reads its configuration again first, or alone when none runs
    #[arg(long)]
    purge: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When it could not be done; the configuration is unchanged unless the message says otherwise.
pub async fn tenant(args: TenantArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    match args.command {
        TenantCommand::Add(args) => add(&args, out).await,
        TenantCommand::Remove(args) => remove(&args, out).await,
        TenantCommand::List { config, json } => list(&config, json, out).await,
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure { message: format!("usage: {}", message.into()), exit: Exit::Usage }
}

/// The path of the configuration, and its declarations.
struct CurrentConfig {
    config: PathBuf,
    survey: Survey,
    /// The cluster, and its table of tenants.
    cluster: Option<(PostgresStore, Vec<StoredTenant>)>,
}

impl CurrentConfig {
    async fn of(config: &Path) -> Result<Self, Failure> {
        let cluster = match Config::cluster_of(config) {
            Some(cluster) => {
                let store = opened::shared(&cluster).await?;
                let stored = store.stored_tenants().await.map_err(Failure::of_cluster)?;
                Some((store, stored))
            }
            None => None,
        };
        let mut before = Self { config: config.to_owned(), survey: Survey::default(), cluster };
        before.survey = Config::survey(config, &before.files(None))?;
        Ok(before)
    }

    /// The files, and the rows of the table with `new` among them.
    fn files(&self, new: Option<&StoredTenant>) -> ConfigFiles {
        self.with_rows(self.rows().chain(new))
    }

    /// The files, and the rows of the table without this tenant's.
    fn files_without(&self, tenant: &TenantId) -> ConfigFiles {
        self.with_rows(self.rows().filter(|row| row.id != tenant.as_str()))
    }

    fn rows(&self) -> impl Iterator<Item = &StoredTenant> {
        self.cluster.iter().flat_map(|(_, stored)| stored)
    }

    fn with_rows<'a>(&self, rows: impl Iterator<Item = &'a StoredTenant>) -> ConfigFiles {
        ConfigFiles::beside(&self.config).with_stored(rows.map(|row| (loaded::place(row), loaded::text(row))).collect())
    }

    /// Writes these texts in their order, `None` removes the file; writes nothing if they would add a problem.
    fn write(&self, edits: &[(PathBuf, Option<String>)]) -> Result<(), Failure> {
        self.check(edits.iter().fold(self.files(None), |files, (path, text)| files.with(path, text.clone())))?;
        for (path, text) in edits {
            written::replace(path, text.as_deref(), &self.config).map_err(|error| Failure::of(&error, Exit::Config))?;
        }
        Ok(())
    }

    /// Checks that these files add no problem.
    fn check(&self, files: ConfigFiles) -> Result<(), Failure> {
        let after = Config::survey(&self.config, &files)?;
        let mut known: HashMap<_, u64> = HashMap::new();
        for problem in &self.survey.problems {
            *known.entry(what(problem)).or_default() += 1;
        }
        // A file that cannot be read may be one that only the service's user can read.
        let is_new = |problem: &Problem| match known.get_mut(&what(problem)) {
            Some(count @ 1..) => {
                *count -= 1;
                false
            }
            _ => problem.fault != Fault::File,
        };
        let problems: Vec<Problem> = after.problems.into_iter().filter(is_new).collect();
        if !problems.is_empty() {
            let error = ConfigError { path: Some(self.config.clone()), problems };
            return Err(Failure { message: format!("{error}\nnothing was changed"), exit: Exit::Config });
        }
        Ok(())
    }

    fn text(&self, path: &Path) -> Result<DocumentMut, Failure> {
        let text = ConfigFiles::beside(&self.config).read(path).map_err(|why| unreadable(path, &why))?;
        // Its own message quotes the line, which may hold a secret; `survey` has read it already.
        text.parse().map_err(|_| unreadable(path, "it is not TOML"))
    }
}

fn unreadable(path: &Path, why: &str) -> Failure {
    Failure { message: format!("config-invalid: `{}`: {why}", path.display()), exit: Exit::Config }
}

/// The identity of a problem, independent of its tenant's index. The expectation may list names, which change.
fn what(problem: &Problem) -> (String, Fault, Option<String>) {
    let key = problem.key.replace(|c: char| c.is_ascii_digit(), "");
    (key, problem.fault, problem.value.clone())
}

fn to_do(path: &Path) -> String {
    format!("`m365-audit validate -c {}`, then reload the service (SIGHUP)", path.display())
}

// ---------------------------------------------------------------------------------------------- adding

async fn add(args: &AddArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let before = CurrentConfig::of(&args.config).await?;
    let (template, name) = template_of(args, &before.survey)?;
    let full = template.as_ref().map_or_else(|| name.clone(), |template| format!("{template}.{name}"));
    if let Some(there) = before.survey.declared.iter().find(|declared| declared.name == full) {
        let what = format!("`{full}` is there already, in `{}`", there.file.display());
        return Err(usage(format!("{what}; choose another name, or take that one out first")));
    }
    let mut own = Table::new();
    for pair in &args.keys {
        set_key(&mut own, pair)?;
    }
    if let Some((store, _)) = &before.cluster {
        return add_to_table(&before, store, args, (template, name), &own, out).await;
    }
    let mut table = Table::new();
    match &template {
        Some(_) => drop(table.insert("name", value(&name))),
        None => drop(table.insert("type", value(SOURCE_TYPE))),
    }
    table.insert("tenant_id", value(args.tenant_id.as_str()));
    own.into_iter().for_each(|(key, item)| drop(table.insert(&key, item)));
    let (path, text) = match &before.survey.tenants_dir {
        Some(dir) => {
            let failed = |why| Failure::of(&written::NotWritten { path: dir.clone(), why }, Exit::Config);
            std::fs::create_dir_all(dir).map_err(failed)?;
            let path = new_file(dir, &name, template.as_deref())?;
            let mut doc = DocumentMut::new();
            put(&mut doc, template.as_deref(), &name, table)?;
            (path, doc.to_string())
        }
        None => {
            let mut doc = before.text(&args.config)?;
            put(&mut doc, template.as_deref(), &name, table)?;
            (args.config.clone(), doc.to_string())
        }
    };
    before.write(&[(path.clone(), Some(text))])?;
    writeln!(out, "{full} ({}) added in {}", args.tenant_id, path.display()).map_err(Failure::io)?;
    writeln!(out, "next: {}", to_do(&args.config)).map_err(Failure::io)?;
    Ok(Exit::Done)
}

/// Adds the tenant to the table of the cluster.
async fn add_to_table(
    before: &CurrentConfig,
    store: &PostgresStore,
    args: &AddArgs,
    (template, name): (Option<String>, String),
    own: &Table,
    out: &mut (dyn Write + Send),
) -> Result<Exit, Failure> {
    let own: toml::Table = own.to_string().parse().map_err(Failure::internal)?;
    let settings = serde_json::to_string(&own).map_err(Failure::internal)?;
    let full = template.as_ref().map_or_else(|| name.clone(), |template| format!("{template}.{name}"));
    let row = StoredTenant { id: args.tenant_id.to_string(), name, template, settings };
    before.check(before.files(Some(&row)))?;
    if !store.add_tenant(&row).await.map_err(Failure::of_cluster)? {
        return Err(usage(format!(
            "a tenant named `{}`, or with this id, is in the cluster's table already",
            row.name
        )));
    }
    writeln!(out, "{full} ({}) added to the table of {}", row.id, store.shown()).map_err(Failure::io)?;
    writeln!(out, "next: nothing; the members read the table again within seconds").map_err(Failure::io)?;
    Ok(Exit::Done)
}

/// The template and the tenant's own name.
fn template_of(args: &AddArgs, survey: &Survey) -> Result<(Option<String>, String), Failure> {
    let templates = &survey.templates;
    let (given, name) = match args.name.split_once('.') {
        Some((template, name)) => (Some(template.to_owned()), name.to_owned()),
        None => (args.source.clone(), args.name.clone()),
    };
    if let (Some(given), Some(source)) = (&given, &args.source)
        && given != source
    {
        return Err(usage(format!("`{}` is a tenant of `{given}`, and --source says `{source}`", args.name)));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(usage(format!("`{name}` is not a name of letters, digits, `_` and `-`")));
    }
    match (given, templates.as_slice()) {
        (Some(given), _) if templates.contains(&given) => Ok((Some(given), name)),
        (Some(given), []) => Err(usage(format!("`{given}` is not a template; there is none"))),
        (Some(given), _) => Err(usage(format!("`{given}` is not a template; there are: {}", templates.join(", ")))),
        (None, []) => Ok((None, name)),
        (None, [only]) => Ok((Some(only.clone()), name)),
        (None, _) => Err(usage(format!("name the template with --source; there are: {}", templates.join(", ")))),
    }
}

/// Puts `KEY=VALUE` into a tenant's table, with the type that the key has.
fn set_key(table: &mut Table, pair: &str) -> Result<(), Failure> {
    let Some((key, text)) = pair.split_once('=') else {
        // It may be a secret that lost its key.
        return Err(usage("each further argument is KEY=VALUE, such as `poll_interval_secs=60`"));
    };
    let schema = source_schema();
    let (outer, inner) = key.split_once('.').map_or((key, None), |(outer, inner)| (outer, Some(inner)));
    let mut field = &schema["properties"][outer];
    if let Some(inner) = inner {
        field = &field["properties"][inner];
    }
    let is_variable = text.strip_prefix("${").is_some_and(|rest| rest.ends_with('}'));
    if field["writeOnly"] == true && !is_variable {
        return Err(usage(format!(
            "`{key}` is not taken from the command line, where others see it: give `{key}_file=FILE`, or \
             `'{key}=${{NAME}}'` with the name of an environment variable"
        )));
    }
    let typed = typed_from_text(field, key, text).map_or_else(|| Value::from(text), |typed| edited(&typed));
    match inner {
        None => drop(table.insert(outer, value(typed))),
        Some(inner) => {
            let outer = table.entry(outer).or_insert_with(|| value(toml_edit::InlineTable::new()));
            if let Some(outer) = outer.as_table_like_mut() {
                outer.insert(inner, value(typed));
            }
        }
    }
    Ok(())
}

/// The same value in the type of the editor.
fn edited(typed: &toml::Value) -> Value {
    typed.to_string().parse().unwrap_or_else(|_| Value::from(typed.to_string()))
}

/// A file of the folder that does not exist yet.
fn new_file(dir: &Path, name: &str, template: Option<&str>) -> Result<PathBuf, Failure> {
    let names = [Some(name.to_owned()), template.map(|template| format!("{template}.{name}"))];
    let mut paths = names.into_iter().flatten().map(|name| dir.join(format!("{name}.toml")));
    let found = paths.find(|path| path.symlink_metadata().is_err());
    found.ok_or_else(|| {
        usage(format!("`{}` is there already and declares something else", dir.join(format!("{name}.toml")).display()))
    })
}

/// Adds the tenant to a text: to the template's, or as a source of its own.
fn put(doc: &mut DocumentMut, template: Option<&str>, name: &str, table: Table) -> Result<(), Failure> {
    let odd = |what: &str| usage(format!("{what} is not a table that can be edited: add the tenant by hand"));
    let sources = doc.entry("sources").or_insert_with(implicit).as_table_mut().ok_or_else(|| odd("`sources`"))?;
    let Some(template) = template else {
        sources.insert(name, Item::Table(table));
        return Ok(());
    };
    let source = sources.entry(template).or_insert_with(implicit).as_table_like_mut();
    let source = source.ok_or_else(|| odd(&format!("`sources.{template}`")))?;
    match source.entry("tenants").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(tenants) => tenants.push(table),
        Item::Value(Value::Array(tenants)) => push_inline(tenants, table),
        _ => return Err(odd(&format!("`sources.{template}.tenants`"))),
    }
    Ok(())
}

fn push_inline(tenants: &mut Array, table: Table) {
    tenants.push(Value::InlineTable(table.into_inline_table()));
}

/// A table without its own header; only its members are written.
fn implicit() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

// ---------------------------------------------------------------------------------------------- removing

async fn remove(args: &RemoveArgs, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let before = CurrentConfig::of(&args.config).await?;
    let id = args.name.parse::<TenantId>().ok();
    let found = find(&before.survey, &args.name, id.as_ref())?;
    let tenant = match (&found, id) {
        (Some(found), _) => found.tenant_id.parse::<TenantId>().ok(),
        (None, id) => id,
    };
    match &found {
        Some(found) => {
            let Declared { name, tenant_id, file, .. } = found;
            let place = match (&before.cluster, &tenant) {
                (Some((store, _)), Some(tenant)) if file.to_string_lossy().starts_with(loaded::TABLE) => {
                    before.check(before.files_without(tenant))?;
                    store.remove_tenant(tenant).await.map_err(Failure::of_cluster)?;
                    format!("the table of {}", store.shown())
                }
                _ => {
                    before.write(&removal(&before, found)?)?;
                    file.display().to_string()
                }
            };
            writeln!(out, "{name} ({tenant_id}) taken out of {place}").map_err(Failure::io)?;
        }
        None if args.purge => writeln!(out, "{} is not in the configuration", args.name).map_err(Failure::io)?,
        None => {}
    }
    let Survey { data_dir, control_socket, .. } = &before.survey;
    if !args.purge {
        writeln!(out, "next: {}", to_do(&args.config)).map_err(Failure::io)?;
        if let Some(tenant) = tenant {
            writeln!(
                out,
                "what is remembered of it stays in {}; `m365-audit tenant remove -c {} {tenant} --purge` takes it out",
                data_dir.display(),
                args.config.display()
            )
            .map_err(Failure::io)?;
        }
        return Ok(Exit::Done);
    }
    let Some(tenant) = tenant else {
        return Err(usage(
            "its `tenant_id` comes from a variable that is not set here: run this again with the tenant's id",
        ));
    };
    let socket = control_socket.clone().unwrap_or_else(|| data_dir.join("control.sock"));
    let shared = Config::cluster_of(&args.config);
    let lines = match shared {
        Some(cluster) => purged_in_cluster(&cluster, &tenant).await?,
        None => purged(data_dir, &socket, &tenant).await?,
    };
    for line in lines {
        writeln!(out, "{line}").map_err(Failure::io)?;
    }
    Ok(Exit::Done)
}

/// Purges in the database of a cluster, once no member has the tenant.
async fn purged_in_cluster(cluster: &ClusterConfig, tenant: &TenantId) -> Result<Vec<String>, Failure> {
    let store = opened::shared(cluster).await?;
    if let Some((name, _)) = store.holder(tenant).await.map_err(Failure::of_cluster)? {
        return Err(Failure::of(&purge::HeldByMember { name, tenant: tenant.clone() }, Exit::State));
    }
    let purged = crate::checkpoint::purge::purge(&store, tenant).await.map_err(Failure::of_state)?;
    store.forget_tenant(tenant).await.map_err(Failure::of_state)?;
    Ok(vec![format!("{tenant}: {} entries taken out of {}", purged.entries, store.shown())])
}

/// Purges inside the running process, or alone.
async fn purged(data_dir: &Path, socket: &Path, tenant: &TenantId) -> Result<Vec<String>, Failure> {
    if let Some(mut client) = Client::connect(socket).await? {
        client.ask(What::Purge { tenant: tenant.to_string() }).await?;
        return match client.next().await? {
            Say::Purged(lines) => Ok(lines),
            Say::Refused(refusal) => Err(refusal.into()),
            other => Err(Failure::internal(format!("an answer to another question: {other:?}"))),
        };
    }
    if !data_dir.join(crate::hosts::embedded::store::STATE_FILE).exists() && running(data_dir).is_none() {
        return Ok(vec![format!("{tenant}: nothing is remembered under {}", data_dir.display())]);
    }
    // Fails while an unresponsive process has the lock.
    let store = SqliteStore::open(data_dir)?;
    purge::purge(&store, data_dir, tenant).await.map_err(|error| Failure::of(&error, Exit::State))
}

/// The selected tenant; `None` when the id is of one that is not in the configuration.
fn find(survey: &Survey, name: &str, id: Option<&TenantId>) -> Result<Option<Declared>, Failure> {
    let is_meant = |declared: &&Declared| match id {
        Some(id) => declared.tenant_id == id.as_str(),
        None => {
            let own =
                declared.template.as_ref().and_then(|t| declared.name.strip_prefix(t.as_str())?.strip_prefix('.'));
            declared.name == name || own == Some(name)
        }
    };
    let found: Vec<&Declared> = survey.declared.iter().filter(is_meant).collect();
    match (found.as_slice(), id) {
        ([only], _) => Ok(Some((*only).clone())),
        ([], Some(_)) => Ok(None),
        ([], None) => Err(Failure {
            message: format!(
                "source-unknown: no source is named `{name}`\n  hint: `m365-audit tenant list` shows them; of a tenant that is \
                 out of the configuration already give the id, with --purge"
            ),
            exit: Exit::Usage,
        }),
        (several, _) => {
            let names = several.iter().map(|declared| declared.name.as_str()).collect::<Vec<_>>().join(", ");
            Err(usage(format!("`{name}` may be any of: {names}")))
        }
    }
}

/// The texts without a tenant: first the sinks that name it, then its own file.
fn removal(before: &CurrentConfig, found: &Declared) -> Result<Vec<(PathBuf, Option<String>)>, Failure> {
    let mut main = before.text(&before.config)?;
    let is_named = forget_input(&mut main, &found.name);
    if found.file == before.config {
        take_out(&mut main, found)?;
        return Ok(vec![(before.config.clone(), Some(main.to_string()))]);
    }
    let mut edits = Vec::new();
    if is_named {
        edits.push((before.config.clone(), Some(main.to_string())));
    }
    let mut doc = before.text(&found.file)?;
    take_out(&mut doc, found)?;
    let is_empty = doc.get("sources").and_then(Item::as_table_like).is_none_or(|sources| sources.is_empty());
    edits.push((found.file.clone(), (!is_empty).then(|| doc.to_string())));
    Ok(edits)
}

fn take_out(doc: &mut DocumentMut, found: &Declared) -> Result<(), Failure> {
    let odd = || usage(format!("`{}` cannot be edited: take the tenant out by hand", found.file.display()));
    let sources = doc.get_mut("sources").and_then(Item::as_table_like_mut).ok_or_else(odd)?;
    let (Some(template), Some(index)) = (&found.template, found.index) else {
        return sources.remove(&found.name).map(drop).ok_or_else(odd);
    };
    let source = sources.get_mut(template).and_then(Item::as_table_like_mut).ok_or_else(odd)?;
    let is_last = match source.get_mut("tenants").ok_or_else(odd)? {
        Item::ArrayOfTables(tenants) if index < tenants.len() => {
            tenants.remove(index);
            tenants.is_empty()
        }
        Item::Value(Value::Array(tenants)) if index < tenants.len() => {
            tenants.remove(index);
            tenants.is_empty()
        }
        _ => return Err(odd()),
    };
    if is_last {
        source.remove("tenants");
        if source.is_empty() {
            sources.remove(template);
        }
    }
    Ok(())
}

/// Removes a source from the `inputs` that name it beside others; returns whether there were any.
fn forget_input(doc: &mut DocumentMut, name: &str) -> bool {
    let mut is_named = false;
    let sinks = doc.get_mut("sinks").and_then(Item::as_table_like_mut);
    for (_, sink) in sinks.into_iter().flat_map(|sinks| sinks.iter_mut()) {
        let inputs = sink.as_table_like_mut().and_then(|sink| sink.get_mut("inputs")).and_then(Item::as_array_mut);
        let Some(inputs) = inputs.filter(|inputs| inputs.len() > 1) else { continue };
        let before = inputs.len();
        inputs.retain(|input| input.as_str() != Some(name));
        is_named |= inputs.len() < before;
    }
    is_named
}

// ---------------------------------------------------------------------------------------------- listing

async fn list(config: &Path, as_json: bool, out: &mut (dyn Write + Send)) -> Result<Exit, Failure> {
    let CurrentConfig { survey: Survey { declared, problems, .. }, .. } = CurrentConfig::of(config).await?;
    let is_sound = problems.iter().all(|problem| problem.fault == Fault::File);
    if as_json {
        let tenants = declared.iter().map(|declared| {
            let Declared { name, template, tenant_id, file, .. } = declared;
            json!({"source": name, "template": template, "tenant_id": tenant_id, "file": file})
        });
        writeln!(out, "{:#}", json!({"tenants": tenants.collect::<Vec<_>>(), "valid": is_sound}))
            .map_err(Failure::io)?;
    } else {
        let width = declared.iter().map(|declared| declared.name.len()).max().unwrap_or(0);
        for Declared { name, tenant_id, file, .. } in &declared {
            writeln!(out, "{name:width$}  {tenant_id:36}  {}", file.display()).map_err(Failure::io)?;
        }
    }
    if !is_sound {
        let path = config.display();
        let found = problems.len();
        let what = if found == 1 { "a problem" } else { "problems" };
        return Err(Failure {
            message: format!(
                "config-invalid: the configuration has {what}\n  hint: `m365-audit validate -c {path}` names all of them"
            ),
            exit: Exit::Config,
        });
    }
    Ok(Exit::Done)
}
