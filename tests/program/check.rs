//! `m365-audit check` against broken tenants: the real binary, a simulated tenant on loopback. One table: what is
//! broken, the exit code, and the two lines an operator gets, cause and remedy.

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use expect_test::{Expect, expect};
use m365_audit::clock::SystemClock;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{
    CallKind, FaultPlan, FaultScript, NewBlob, Sim, SimConfig, SimFault, StartFailure, SubscriptionState,
};
use tempfile::TempDir;

const OTHER_TENANT: &str = "99999999-2222-3333-4444-555555555555";

/// A tenant in good order, and a configuration that fits it.
struct Bench {
    sim: Sim,
    tenant: TenantId,
    dir: TempDir,
    keys: toml::Table,
    args: &'static [&'static str],
    /// Whether the tenant still has to get the content that one in use has.
    content: Cell<bool>,
}

impl Bench {
    async fn new() -> Self {
        let config = SimConfig::default();
        let tenant = config.tenants[0].clone();
        let mut keys = toml::Table::new();
        for (key, value) in [
            ("type", "m365_audit"),
            ("tenant_id", tenant.as_str()),
            ("client_id", &config.client_id),
            ("client_secret", &config.client_secret),
        ] {
            keys.insert(key.into(), value.into());
        }
        let sim = Sim::start(config, SystemClock::new()).await.unwrap();
        keys.insert("api_url".into(), sim.url().into());
        keys.insert("authority_url".into(), sim.url().into());
        for content_type in ContentType::ALL {
            sim.set_subscription(&tenant, content_type, SubscriptionState::Enabled);
        }
        Self { sim, tenant, dir: tempfile::tempdir().unwrap(), keys, args: &[], content: Cell::new(true) }
    }

    fn set(&mut self, key: &str, value: &str) {
        self.keys.insert(key.into(), value.into());
    }

    fn turn_off(&self, content_type: ContentType) {
        self.sim.set_subscription(&self.tenant, content_type, SubscriptionState::Disabled);
    }

    /// As where auditing was never on.
    fn remove_content(&self) {
        self.content.set(false);
    }

    /// Microsoft's own hosts, behind this proxy.
    fn behind(&mut self, proxy: &str) {
        self.keys.remove("api_url");
        self.keys.remove("authority_url");
        self.set("proxy_url", proxy);
    }

    fn config_file(&self) -> PathBuf {
        let path = self.dir.path().join("agent.toml");
        let mut sources = toml::Table::new();
        sources.insert("contoso".into(), self.keys.clone().into());
        let sinks = toml::toml! {
            [out]
            type = "stdout"
            inputs = ["contoso"]
        };
        let mut file = toml::Table::new();
        file.insert("data_dir".into(), self.dir.path().join("data").to_str().unwrap().into());
        file.insert("sources".into(), sources.into());
        file.insert("sinks".into(), sinks.into());
        fs::write(&path, file.to_string()).unwrap();
        path
    }

    /// The exit code and what was printed, with ports and directories replaced.
    fn run(&self, command: &str, args: &[&str]) -> (i32, String) {
        if self.content.replace(false) {
            let two_days_ago = self.sim.now().checked_sub(jiff::SignedDuration::from_hours(50)).unwrap();
            let blob = NewBlob::at(two_days_ago).with_events(["{}"]);
            self.sim.add_blob(&self.tenant, ContentType::Exchange, blob);
        }
        let output = Command::new(env!("CARGO_BIN_EXE_m365-audit"))
            .arg(command)
            .arg("-c")
            .arg(self.config_file())
            .args(args)
            // No proxy of this machine is used, and none of a test's is passed by.
            .env("NO_PROXY", if self.keys.contains_key("proxy_url") { "" } else { "*" })
            .env_remove("M365_AUDIT_LOG")
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let text = text.replace(self.dir.path().to_str().unwrap(), "DIR");
        let mut shown = String::new();
        for (i, part) in text.split("127.0.0.1:").enumerate() {
            let part = if i == 0 { part } else { part.trim_start_matches(|c: char| c.is_ascii_digit()) };
            shown.push_str(if i == 0 { "" } else { "127.0.0.1:PORT" });
            shown.push_str(part);
        }
        (output.status.code().unwrap_or(-1), shown)
    }

    fn starts_and_stops(&self) -> Vec<(CallKind, Option<String>)> {
        let requests = self.sim.requests().into_iter();
        requests
            .filter(|r| matches!(r.kind, CallKind::Start | CallKind::Stop))
            .map(|r| (r.kind, r.content_type))
            .collect()
    }
}

/// Breaks a tenant and compares the exit code and every line that is not `ok`.
async fn check(breaking: impl FnOnce(&mut Bench), expected: Expect) {
    let mut bench = Bench::new().await;
    breaking(&mut bench);
    let (exit, text) = bench.run("check", bench.args);
    let told: Vec<&str> = text
        .lines()
        // The verdicts stand first; every step follows, for whoever wants more.
        .take_while(|line| !line.is_empty() && !line.starts_with("--probe "))
        .collect();
    expected.assert_eq(&format!("exit {exit}\n{}", told.iter().map(|line| format!("{line}\n")).collect::<String>()));
    if bench.args.is_empty() {
        assert_eq!(bench.starts_and_stops(), [], "the harmless form changes nothing");
    }
    let secret = bench.keys["client_secret"].as_str().unwrap();
    assert!(!text.contains(secret), "the secret was shown: {text}");
}

fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_tenant_gets_its_cause_and_its_remedy() {
    // In good order.
    check(
        |_| {},
        expect![[r#"
            exit 0
            ok    everything is in order
        "#]],
    )
    .await;

    // Sign-in.
    check(|b| b.set("client_secret", "not~the-secret-at-all-but-as-long-as-one"), expect![[r#"
        exit 77
        FAIL  contoso: auth-secret-wrong: the client secret is wrong (AADSTS7000215)
              fix: Entra admin centre > App registrations > your app > Certificates & secrets > New client secret: put its Value, shown only once, into `client_secret`; the secret's id (a GUID) is something else
              page: docs/errors/auth-secret-wrong.md (found at: sign in)
    "#]]).await;
    check(|b| b.set("client_secret", "0a1b2c3d-0000-1111-2222-33334444abcd"), expect![[r#"
        exit 77
        FAIL  contoso: auth-secret-id-pasted: the client secret's id was given in place of its value (AADSTS7000215)
              fix: Entra admin centre > App registrations > your app > Certificates & secrets > New client secret: copy the column Value, shown only once, not Secret ID
              page: docs/errors/auth-secret-id-pasted.md (found at: sign in)
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(7000222)), expect![[r#"
        exit 77
        FAIL  contoso: auth-secret-expired: the client secret has expired (AADSTS7000222)
              fix: Entra admin centre > App registrations > your app > Certificates & secrets > New client secret: put its Value into `client_secret`; a `client_secret_file` is read again by itself
              page: docs/errors/auth-secret-expired.md (found at: sign in)
    "#]]).await;
    check(|b| b.set("client_id", "bbbbbbbb-0000-4000-8000-00000000c11e"), expect![[r#"
        exit 77
        FAIL  contoso: auth-app-not-in-tenant: the app is not in this tenant (AADSTS700016)
              fix: compare `client_id` with Entra admin centre > App registrations > your app > Application (client) ID, and `tenant_id` with Overview > Tenant ID; an app of another tenant must be multi-tenant and needs an admin of this one to open http://127.0.0.1:PORT/11111111-2222-3333-4444-555555555555/adminconsent?client_id=bbbbbbbb-0000-4000-8000-00000000c11e (an app of this one: `az ad sp create --id bbbbbbbb-0000-4000-8000-00000000c11e`)
              page: docs/errors/auth-app-not-in-tenant.md (found at: sign in)
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(7000229)), expect![[r#"
        exit 77
        FAIL  contoso: auth-app-not-in-tenant: the app is not in this tenant (AADSTS7000229)
              fix: compare `client_id` with Entra admin centre > App registrations > your app > Application (client) ID, and `tenant_id` with Overview > Tenant ID; an app of another tenant must be multi-tenant and needs an admin of this one to open http://127.0.0.1:PORT/11111111-2222-3333-4444-555555555555/adminconsent?client_id=aaaaaaaa-0000-4000-8000-00000000c11e (an app of this one: `az ad sp create --id aaaaaaaa-0000-4000-8000-00000000c11e`)
              page: docs/errors/auth-app-not-in-tenant.md (found at: sign in)
    "#]]).await;
    check(
        |b| {
            b.sim.configure(|c| c.token_error = Some(700016));
            b.set("cloud", "gcc_high");
        },
        expect![[r#"
            exit 77
            FAIL  contoso: auth-app-not-in-tenant: the app is not in this tenant (AADSTS700016)
                  fix: compare `client_id` with Entra admin centre (https://entra.microsoft.us) > App registrations > your app > Application (client) ID, and `tenant_id` with Overview > Tenant ID; an app of another tenant must be multi-tenant and needs an admin of this one to open http://127.0.0.1:PORT/11111111-2222-3333-4444-555555555555/adminconsent?client_id=aaaaaaaa-0000-4000-8000-00000000c11e (an app of this one: `az ad sp create --id aaaaaaaa-0000-4000-8000-00000000c11e`)
                  page: docs/errors/auth-app-not-in-tenant.md (found at: sign in)
        "#]],
    )
    .await;
    check(|b| b.set("tenant_id", OTHER_TENANT), expect![[r#"
        exit 77
        FAIL  contoso: auth-tenant-not-found: the authority does not know the tenant (AADSTS90002)
              fix: compare `tenant_id` with Entra admin centre > Overview > Tenant ID; a tenant of a government or China cloud is unknown elsewhere: set `cloud`
              page: docs/errors/auth-tenant-not-found.md (found at: sign in)
    "#]]).await;
    check(
        |b| b.sim.configure(|c| c.token_error = Some(90038)),
        expect![[r#"
        exit 77
        FAIL  contoso: auth-wrong-cloud: the tenant lives in another national cloud (AADSTS90038)
              fix: set `cloud` to the tenant's cloud (`enterprise`, `gcc`, `gcc_high`, `dod`, `china`)
              page: docs/errors/auth-wrong-cloud.md (found at: sign in)
    "#]],
    )
    .await;
    check(|b| b.sim.configure(|c| c.token_error = Some(500011)), expect![[r#"
        exit 77
        FAIL  contoso: auth-api-not-in-tenant: the tenant has no service principal for the API (AADSTS500011)
              fix: Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application permissions > ActivityFeed.Read, then Grant admin consent; or `az ad sp create --id c5393580-f805-4401-95e8-94b7a6ef2fc2`; also check `cloud`
              page: docs/errors/auth-api-not-in-tenant.md (found at: sign in)
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(53003)), expect![[r#"
        exit 77
        FAIL  contoso: auth-conditional-access: a Conditional Access policy refused this machine (AADSTS53003)
              fix: Entra admin centre > Protection > Conditional Access > Policies: allow this machine's outgoing address for the app (workload identities); its Sign-in logs > Service principal sign-ins name the policy
              page: docs/errors/auth-conditional-access.md (found at: sign in)
    "#]]).await;

    // Permissions.
    check(|b| b.sim.set_roles(["User.Read.All"]), expect![[r#"
        exit 76
        FAIL  contoso: api-permission-missing: the application permission `ActivityFeed.Read` is missing
              fix: Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application permissions > ActivityFeed.Read, then Grant admin consent; not Microsoft Graph, not a delegated permission
              page: docs/errors/api-permission-missing.md (found at: permissions in the token)
    "#]]).await;
    // A delegated permission leaves no trace in a token of the app itself.
    check(|b| b.sim.set_roles::<&str>([]), expect![[r#"
        exit 76
        FAIL  contoso: api-permission-missing: the token holds no application permission: only delegated ones were added, or admin consent is missing
              fix: Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application permissions > ActivityFeed.Read, then Grant admin consent; not Microsoft Graph, not a delegated permission
              page: docs/errors/api-permission-missing.md (found at: permissions in the token)
    "#]]).await;
    check(|b| b.sim.set_roles(["ActivityFeed.Read"]), expect![[r#"
        exit 0
        note  contoso: dlp-permission-missing: `ActivityFeed.Read` is granted, `ActivityFeed.ReadDlp` is not: `DLP.All` cannot be read, the other types can
              fix: add the application permission ActivityFeed.ReadDlp on Office 365 Management APIs and grant consent, or take `DLP.All` out of `content_types`
              page: docs/errors/dlp-permission-missing.md (found at: permissions in the token)
    "#]]).await;

    // Subscriptions and auditing.
    check(
        |b| b.turn_off(ContentType::SharePoint),
        expect![[r#"
        exit 0
        note  contoso: subscription-disabled: the subscription was started once and is disabled now
              fix: `m365-audit run` starts it again; what became available while it was off is gone
              page: docs/errors/subscription-disabled.md (found at: subscription Audit.SharePoint)
    "#]],
    )
    .await;
    check(
        |b| b.sim.set_subscription(&b.tenant, ContentType::Exchange, SubscriptionState::Absent),
        expect![[r#"
            exit 0
            note  contoso: subscription-absent: not started yet
                  fix: `m365-audit run` starts it, and first events take up to 60 minutes, 12 hours after a very first start; where auditing is off a start fails, which `check --probe` tells
                  page: docs/errors/subscription-absent.md (found at: subscription Audit.Exchange)
            note  contoso: audit-maybe-off: subscribed, and not one event in 7 days: unified auditing is most likely off in the tenant (or was turned on today)
                  fix: `Get-AdminAuditLogConfig | Format-List UnifiedAuditLogIngestionEnabled` in Exchange Online PowerShell shows it; `Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true` turns it on, which can take a day. Nothing from before it is switched on will ever come
                  page: docs/errors/audit-maybe-off.md (found at: content of the last 7 days)
        "#]],
    )
    .await;
    check(
        |b| {
            b.turn_off(ContentType::General);
            b.sim.configure(|c| c.tenant_audit_on = false);
            b.args = &["--probe"];
        },
        expect![[r#"
            exit 76
            FAIL  contoso: api-audit-off: unified audit logging is off in the tenant (or the tenant id is wrong), `Audit.General` (status 400)
                  fix: turn it on: `Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true` in Exchange Online PowerShell; it can take an hour or more. Nothing from before it is switched on will ever come: Microsoft did not record it
                  page: docs/errors/api-audit-off.md (found at: probe Audit.General)
            note  contoso: subscription-disabled: the subscription was started once and is disabled now
                  fix: `m365-audit run` starts it again; what became available while it was off is gone
                  page: docs/errors/subscription-disabled.md (found at: subscription Audit.General)
        "#]],
    )
    .await;
    check(
        |b| {
            b.turn_off(ContentType::General);
            b.sim.configure(|c| c.start_failure = Some(StartFailure::NoServicePrincipal));
            b.args = &["--probe"];
        },
        expect![[r#"
            exit 76
            FAIL  contoso: api-not-in-tenant: the tenant has no service principal for the API, `Audit.General` (status 400)
                  fix: add the application permission `ActivityFeed.Read` of Office 365 Management APIs (not Microsoft Graph) to the app and grant admin consent
                  page: docs/errors/api-not-in-tenant.md (found at: probe Audit.General)
            note  contoso: subscription-disabled: the subscription was started once and is disabled now
                  fix: `m365-audit run` starts it again; what became available while it was off is gone
                  page: docs/errors/subscription-disabled.md (found at: subscription Audit.General)
        "#]],
    )
    .await;

    // The way there.
    check(|b| b.sim.set_clock_offset(600), expect![[r#"
        exit 0
        note  contoso: clock-skewed: this machine's clock is about 10 min behind Microsoft's
              fix: set the clock: `timedatectl set-ntp true`; listings follow Microsoft's clock and are right all the same, log times are not
              page: docs/errors/clock-skewed.md (found at: clock of the authority, clock of the API)
    "#]]).await;
    check(|b| b.set("api_url", &closed_port()), expect![[r#"
        exit 69
        FAIL  contoso: api-unreachable: no answer from `127.0.0.1`: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
              fix: `curl -I http://127.0.0.1:PORT` must answer from this machine: check firewall, proxy (`proxy_url`) and certificates (`ca_file`)
              page: docs/errors/api-unreachable.md (found at: list subscriptions)
    "#]]).await;
    check(|b| b.set("authority_url", &closed_port()), expect![[r#"
        exit 69
        FAIL  contoso: auth-unreachable: the authority cannot be reached (`127.0.0.1`): `error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)`
              fix: `curl -I http://127.0.0.1:PORT` must answer from this machine: check firewall, proxy (`proxy_url`) and certificates (`ca_file`)
              page: docs/errors/auth-unreachable.md (found at: sign in)
    "#]]).await;
    check(
        |b| {
            let front = SimFault::Answer { status: 403, content_type: "text/html".into(), body: b"<html>no".to_vec() };
            b.sim.set_faults(FaultPlan {
                scripts: vec![FaultScript::next(CallKind::List, 9, front)],
                ..FaultPlan::default()
            });
        },
        expect![[r#"
            exit 76
            FAIL  contoso: api-forbidden: access was refused without an error code (status 403)
                  fix: look for a proxy, a Conditional Access policy or a firewall between this machine and the API
                  page: docs/errors/api-forbidden.md (found at: list subscriptions)
        "#]],
    )
    .await;

    // This machine.
    check(
        |b| {
            fs::write(b.dir.path().join("data"), "a file where the directory should be").unwrap();
            b.args = &["--probe"];
        },
        expect![[r#"
            exit 73
            state-not-writable: cannot write state under `DIR/data`: File exists (os error 17)
              hint: the directory and the files in it must belong to the user this runs as, on a writable file system
              page: docs/errors/state-not-writable.md
        "#]],
    )
    .await;
    check(
        |b| {
            b.set("tenant_id", "contoso.onmicrosoft.com");
            b.set("pol_interval_secs", "5");
        },
        expect![[r#"
            exit 78
            config-invalid: `sources.contoso.pol_interval_secs` is not a known key, expected a key that docs/configuration.md lists (DIR/agent.toml, line 12)
              hint: nearest known key: `poll_interval_secs`; 1 more problem below
            `sources.contoso.tenant_id` is `contoso.onmicrosoft.com`, expected a GUID (DIR/agent.toml, line 13)
              hint: Entra admin centre > Overview > Tenant ID
        "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_leaves_a_running_subscription_alone() {
    let bench = Bench::new().await;
    let (exit, text) = bench.run("check", &["--probe"]);
    assert_eq!(exit, 0, "{text}");
    assert_eq!(bench.starts_and_stops(), []);
    assert!(text.contains("probe Audit.General: it is enabled, so it was left alone"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_starts_and_stops_once_and_its_start_is_remembered() {
    let bench = Bench::new().await;
    bench.turn_off(ContentType::General);
    let general = |kind| (kind, Some("Audit.General".to_owned()));

    let (exit, text) = bench.run("check", &["--probe"]);
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("--probe starts and stops Audit.General where it is off"), "{text}");
    assert!(text.contains("ok    probe Audit.General: started and stopped"), "{text}");
    assert_eq!(bench.starts_and_stops(), [general(CallKind::Start), general(CallKind::Stop)]);
    assert_eq!(bench.sim.subscription(&bench.tenant, ContentType::General), SubscriptionState::Disabled);

    let (exit, text) = bench.run("check", &["--probe"]);
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("start-too-recent: it was asked to start"), "{text}");
    assert_eq!(bench.starts_and_stops().len(), 2, "no start within 15 minutes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_after_the_probe_asks_for_no_start_within_15_minutes() {
    let bench = Bench::new().await;
    bench.turn_off(ContentType::General);
    let (exit, text) = bench.run("check", &["--probe"]);
    assert_eq!(exit, 0, "{text}");

    let (exit, text) = bench.run("run", &["--once"]);
    assert_eq!(exit, 75, "the stream is left, and said to be: {text}");
    assert!(text.contains("left: the subscription to `Audit.General`"), "{text}");
    assert_eq!(bench.starts_and_stops().len(), 2, "no third request: {text}");
}

/// A proxy that answers every CONNECT with `status` and lets nothing through.
fn refusing_proxy(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
    });
    url
}

/// What a newcomer sees of each broken set-up: the first line names the cause, the second one thing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_line_names_the_cause_and_the_second_the_remedy_for_each_of_twenty_broken_set_ups() {
    type Break = fn(&mut Bench);
    #[rustfmt::skip]
    let table: &[(&str, Break, i32, &str, &str, &str)] = &[
        ("wrong secret", |b| b.set("client_secret", "not~the-secret-at-all"), 77, "auth-secret-wrong", "the client secret is wrong (AADSTS7000215)", "Certificates & secrets > New client secret"),
        ("secret id pasted", |b| b.set("client_secret", "0a1b2c3d-0000-1111-2222-33334444abcd"), 77, "auth-secret-id-pasted", "the client secret's id was given in place of its value", "copy the column Value"),
        ("expired secret", |b| b.sim.configure(|c| c.token_error = Some(7000222)), 77, "auth-secret-expired", "the client secret has expired", "New client secret"),
        ("wrong tenant", |b| b.set("tenant_id", OTHER_TENANT), 77, "auth-tenant-not-found", "the authority does not know the tenant", "Overview > Tenant ID"),
        ("wrong cloud", |b| b.sim.configure(|c| c.token_error = Some(90038)), 77, "auth-wrong-cloud", "the tenant lives in another national cloud", "set `cloud`"),
        ("app not in tenant", |b| b.set("client_id", "bbbbbbbb-0000-4000-8000-00000000c11e"), 77, "auth-app-not-in-tenant", "the app is not in this tenant", "adminconsent"),
        ("no service principal for the API", |b| b.sim.configure(|c| c.token_error = Some(500011)), 77, "auth-api-not-in-tenant", "no service principal for the API", "az ad sp create"),
        ("permission missing", |b| b.sim.set_roles(["User.Read.All"]), 76, "api-permission-missing", "the application permission `ActivityFeed.Read` is missing", "API permissions > Add"),
        ("delegated permission", |b| b.sim.set_roles::<&str>([]), 76, "api-permission-missing", "only delegated ones were added, or admin consent is missing", "Grant admin consent"),
        ("no DLP permission", |b| b.sim.set_roles(["ActivityFeed.Read"]), 0, "dlp-permission-missing", "`DLP.All` cannot be read", "ActivityFeed.ReadDlp"),
        ("audit off, subscribed", |b| b.remove_content(), 0, "audit-maybe-off", "unified auditing is most likely off", "Set-AdminAuditLogConfig"),
        ("audit off, probed", |b| { b.turn_off(ContentType::General); b.sim.configure(|c| c.tenant_audit_on = false); b.args = &["--probe"]; }, 76, "api-audit-off", "unified audit logging is off in the tenant", "Set-AdminAuditLogConfig"),
        ("subscription disabled", |b| b.turn_off(ContentType::SharePoint), 0, "subscription-disabled", "disabled now", "`m365-audit run` starts it again"),
        ("clock off by 10 minutes", |b| b.sim.set_clock_offset(600), 0, "clock-skewed", "about 10 min behind Microsoft's", "timedatectl"),
        ("proxy wants credentials", |b| b.behind(&refusing_proxy("407 Proxy Authentication Required")), 69, "proxy-credentials-missing", "the proxy asks for credentials (407)", "proxy_url = "),
        ("proxy refuses", |b| b.behind(&refusing_proxy("403 Forbidden")), 69, "proxy-refused", "the proxy refuses to connect there", "allow CONNECT"),
        ("proxy is down", |b| b.behind(&closed_port()), 69, "proxy-unreachable", "the proxy cannot be reached", "check `proxy_url`"),
        ("API host unreachable", |b| b.set("api_url", &closed_port()), 69, "api-unreachable", "no answer from `127.0.0.1`", "curl -I http://127.0.0.1:PORT"),
        ("authority unreachable", |b| b.set("authority_url", &closed_port()), 69, "auth-unreachable", "the authority cannot be reached", "curl -I http://127.0.0.1:PORT"),
        ("state directory not writable", |b| fs::write(b.dir.path().join("data"), "a file").unwrap(), 73, "state-not-writable", "cannot write state under", "chown"),
    ];
    for (name, breaking, exit, slug, cause, remedy) in table {
        let mut bench = Bench::new().await;
        breaking(&mut bench);
        let (code, text) = bench.run("check", bench.args);
        let mut lines = text.lines();
        let (first, second, third) = (lines.next().unwrap(), lines.next().unwrap(), lines.next().unwrap());
        assert!(first.contains(&format!(": {slug}: ")) && first.contains(cause), "{name}: {text}");
        assert!(second.starts_with("      fix: ") && second.contains(remedy), "{name}: {text}");
        assert!(third.contains(&format!("page: docs/errors/{slug}.md")), "{name}: {text}");
        assert!(fs::exists(format!("docs/errors/{slug}.md")).unwrap(), "{slug}");
        assert_eq!(code, *exit, "{name}: {text}");

        let arguments = [bench.args, &["--json"]].concat();
        if bench.args.is_empty() {
            let (code, text) = bench.run("check", &arguments);
            let found: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}: {text}"));
            let steps = |list: &serde_json::Value| list.as_array().unwrap().clone();
            let sources = steps(&found["sources"]);
            let all =
                steps(&found["machine"]).into_iter().chain(sources.iter().flat_map(|source| steps(&source["steps"])));
            let faults: Vec<_> = all.filter(|step| step["slug"] == *slug).collect();
            assert!(!faults.is_empty(), "{name}: {text}");
            assert!(faults[0]["remedy"].as_str().unwrap().contains(remedy), "{name}: {text}");
            assert_eq!((found["exit"].as_i64(), code), (Some(i64::from(*exit)), *exit), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_within_30_days_is_told_by_check_and_by_a_run() {
    let bench_with = async |days: i64| {
        let mut bench = Bench::new().await;
        let key = fs::read_to_string("tests/fixtures/auth/client.key").unwrap();
        let pair = rcgen::KeyPair::from_pem(&key).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["soon.example".to_owned()]).unwrap();
        let end = bench.sim.now().checked_add(jiff::SignedDuration::from_hours(24 * days + 1)).unwrap();
        let date = end.to_string();
        let part = |from: usize, to: usize| date[from..to].parse::<u16>().unwrap();
        let (month, day) = (u8::try_from(part(5, 7)).unwrap(), u8::try_from(part(8, 10)).unwrap());
        params.not_after = rcgen::date_time_ymd(i32::from(part(0, 4)), month, day);
        let certificate = params.self_signed(&pair).unwrap();
        let path = bench.dir.path().join("client.pem");
        fs::write(&path, certificate.pem() + &key).unwrap();
        bench.sim.configure(|c| c.certificates = vec![certificate.der().to_vec()]);
        bench.keys.remove("client_secret");
        bench.set("auth", "certificate");
        bench.set("certificate_file", path.to_str().unwrap());
        bench
    };
    let bench = bench_with(20).await;
    let (exit, text) = bench.run("check", &[]);
    assert!(
        exit == 0 && text.starts_with("note  contoso: auth-credential-expires: the client certificate ends on "),
        "{text}"
    );
    let (_, log) = bench.run("run", &["--once"]);
    assert!(log.contains("auth-credential-expires: the client certificate ends on "), "{log}");
    let (exit, text) = bench_with(60).await.run("check", &[]);
    assert!(exit == 0 && text.starts_with("ok    everything is in order"), "{text}");
    assert!(text.contains("client certificate: CN=rcgen self signed cert, thumbprint "), "{text}");

    let mut bench = Bench::new().await;
    bench.set("client_secret_expires", "2020-01-31");
    let (exit, text) = bench.run("check", &[]);
    assert!(
        exit == 0
            && text.starts_with("note  contoso: auth-credential-expires: the client secret has ended on 2020-02-01"),
        "{text}"
    );
}
