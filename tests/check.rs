//! `m365-audit check` against broken tenants: the real binary, a simulated tenant on loopback. One table: what is
//! broken, the exit code, and the two lines an operator gets, cause and remedy.
#![cfg(feature = "cli")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use expect_test::{Expect, expect};
use m365_audit::clock::SystemClock;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::sim::{CallKind, Fault, FaultPlan, Script, Sim, SimConfig, StartFailure, SubscriptionState};
use tempfile::TempDir;

const OTHER_TENANT: &str = "99999999-2222-3333-4444-555555555555";

/// A tenant in good order, and a configuration that fits it.
struct Bench {
    sim: Sim,
    tenant: TenantId,
    dir: TempDir,
    keys: toml::Table,
    args: &'static [&'static str],
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
        Self { sim, tenant, dir: tempfile::tempdir().unwrap(), keys, args: &[] }
    }

    fn set(&mut self, key: &str, value: &str) {
        self.keys.insert(key.into(), value.into());
    }

    fn turn_off(&self, content_type: ContentType) {
        self.sim.set_subscription(&self.tenant, content_type, SubscriptionState::Disabled);
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
        let output = Command::new(env!("CARGO_BIN_EXE_m365-audit"))
            .arg(command)
            .arg("-c")
            .arg(self.config_file())
            .args(args)
            .env("NO_PROXY", "*")
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
        .filter(|line| {
            !line.starts_with("  ok ") && !line.starts_with("source contoso") && !line.starts_with("--probe ")
        })
        .map(|line| line.strip_prefix("  ").unwrap_or(line))
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
    "#]],
    )
    .await;

    // Sign-in.
    check(|b| b.set("client_secret", "not~the-secret-at-all-but-as-long-as-one"), expect![[r#"
        exit 77
        FAIL  sign in: auth-secret-wrong: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the client secret is wrong (AADSTS7000215): `AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app 'aaaaaaaa-0000-4000-8000-00000000c11e'.`
              remedy: check `client_secret`: often the secret's id (a GUID) was pasted instead of its value, which is shown once
    "#]]).await;
    check(|b| b.set("client_secret", "0a1b2c3d-0000-1111-2222-33334444abcd"), expect![[r#"
        exit 77
        FAIL  sign in: auth-secret-wrong: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the client secret is wrong (AADSTS7000215): `AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app 'aaaaaaaa-0000-4000-8000-00000000c11e'.`
              remedy: check `client_secret`: often the secret's id (a GUID) was pasted instead of its value, which is shown once
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(7000222)), expect![[r#"
        exit 77
        FAIL  sign in: auth-secret-expired: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the client secret has expired (AADSTS7000222): `AADSTS7000222: The provided client secret keys for app 'aaaaaaaa-0000-4000-8000-00000000c11e' are expired.`
              remedy: make a new secret for the app in Entra and set it; a `client_secret_file` is read again by itself
    "#]]).await;
    check(|b| b.set("client_id", "bbbbbbbb-0000-4000-8000-00000000c11e"), expect![[r#"
        exit 77
        FAIL  sign in: auth-app-not-in-tenant: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the app is not in this tenant (AADSTS700016): `AADSTS700016: Application with identifier 'aaaaaaaa-0000-4000-8000-00000000c11e' was not found in the directory '11111111-2222-3333-4444-555555555555'.`
              remedy: check `client_id`, `tenant_id` and `cloud`; an app of another tenant needs admin consent in this one
    "#]]).await;
    check(|b| b.set("tenant_id", OTHER_TENANT), expect![[r#"
        exit 77
        FAIL  sign in: auth-tenant-not-found: cannot get a token for tenant `99999999-2222-3333-4444-555555555555` from `127.0.0.1`: the authority does not know the tenant (AADSTS90002): `AADSTS90002: Tenant '99999999-2222-3333-4444-555555555555' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.`
              remedy: check `tenant_id` and `cloud`; a tenant of a government or China cloud is unknown elsewhere
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(90038)), expect![[r#"
        exit 77
        FAIL  sign in: auth-wrong-cloud: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the tenant lives in another national cloud (AADSTS90038): `AADSTS90038: The tenant '11111111-2222-3333-4444-555555555555' resides in another national cloud.`
              remedy: set `cloud` to the tenant's cloud (`enterprise`, `gcc`, `gcc_high`, `dod`, `china`)
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(500011)), expect![[r#"
        exit 77
        FAIL  sign in: auth-api-not-in-tenant: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the tenant has no service principal for the API (AADSTS500011): `AADSTS500011: The resource principal named https://manage.office.com was not found in the tenant named 11111111-2222-3333-4444-555555555555.`
              remedy: add the application permission `ActivityFeed.Read` of Office 365 Management APIs (not Microsoft Graph) to the app and grant admin consent; also check `cloud`
    "#]]).await;
    check(|b| b.sim.configure(|c| c.token_error = Some(53003)), expect![[r#"
        exit 77
        FAIL  sign in: auth-conditional-access: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: a Conditional Access policy refused this machine (AADSTS53003): `AADSTS53003: Access has been blocked by Conditional Access policies.`
              remedy: allow this machine's outgoing address for the app in the workload identity policies
    "#]]).await;

    // Permissions.
    check(|b| b.sim.set_roles(["User.Read.All"]), expect![[r#"
        exit 76
        FAIL  permissions in the token: api-permission-missing: `ActivityFeed.Read` is not in the token; it has User.Read.All
              remedy: Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application permissions > ActivityFeed.Read, then Grant admin consent; not Microsoft Graph, not a delegated permission
    "#]]).await;
    // A delegated permission leaves no trace in a token of the app itself.
    check(|b| b.sim.set_roles::<&str>([]), expect![[r#"
        exit 76
        FAIL  permissions in the token: api-permission-missing: `ActivityFeed.Read` is not in the token; it has no application permission at all: none was granted, admin consent is missing, or only delegated ones were added
              remedy: Entra admin centre > App registrations > your app > API permissions > Add > Office 365 Management APIs > Application permissions > ActivityFeed.Read, then Grant admin consent; not Microsoft Graph, not a delegated permission
    "#]]).await;
    check(|b| b.sim.set_roles(["ActivityFeed.Read"]), expect![[r#"
        exit 0
        note  permissions in the token: dlp-permission-missing: `ActivityFeed.Read` is granted, `ActivityFeed.ReadDlp` is not: `DLP.All` cannot be read, the other types can
              remedy: add the application permission ActivityFeed.ReadDlp on Office 365 Management APIs and grant consent, or take `DLP.All` out of `content_types`
    "#]]).await;

    // Subscriptions and auditing.
    check(|b| b.turn_off(ContentType::SharePoint), expect![[r#"
        exit 0
        note  subscription Audit.SharePoint: subscription-disabled: the subscription was started once and is disabled now
              remedy: `m365-audit run` starts it again; what became available while it was off is gone
    "#]]).await;
    check(
        |b| b.sim.set_subscription(&b.tenant, ContentType::Exchange, SubscriptionState::Absent),
        expect![[r#"
        exit 0
        note  subscription Audit.Exchange: subscription-absent: not started yet
              remedy: `m365-audit run` starts it; first events take up to 60 minutes, 12 hours after a very first start
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
            note  subscription Audit.General: subscription-disabled: the subscription was started once and is disabled now
                  remedy: `m365-audit run` starts it again; what became available while it was off is gone
            FAIL  probe Audit.General: api-audit-off: cannot start the subscription to `Audit.General` for tenant `11111111-2222-3333-4444-555555555555`: unified audit logging is off in the tenant (or the tenant id is wrong) (status 400): `{"error":{"code":"StartSubscription [CorrId=5e1f0000-0000-4000-8000-0000000000c0][TenantId=11111111-2222-3333-4444-555555555555,ContentType=Audit.General,ApplicationId=aaaaaaaa-0000-4000-8000-00000000c11e,PublisherId=11111111-2222-3333-4444-555555555555][AppId","message":"aaaaaaa-0000-4000-8000-0000…`
                  remedy: turn it on: `Set-AdminAuditLogConfig -UnifiedAuditLogIngestionEnabled $true` in Exchange Online PowerShell; it can take an hour or more
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
            note  subscription Audit.General: subscription-disabled: the subscription was started once and is disabled now
                  remedy: `m365-audit run` starts it again; what became available while it was off is gone
            FAIL  probe Audit.General: api-not-in-tenant: cannot start the subscription to `Audit.General` for tenant `11111111-2222-3333-4444-555555555555`: the tenant has no service principal for the API (status 400): `{"error":{"code":"StartSubscription [CorrId=5e1f0000-0000-4000-8000-0000000000c0][TenantId=11111111-2222-3333-4444-555555555555,ContentType=Audit.General,ApplicationId=aaaaaaaa-0000-4000-8000-00000000c11e,PublisherId=11111111-2222-3333-4444-555555555555][AppId","message":"aaaaaaa-0000-4000-8000-0000…`
                  remedy: add the application permission `ActivityFeed.Read` of Office 365 Management APIs (not Microsoft Graph) to the app and grant admin consent
        "#]],
    )
    .await;

    // The way there.
    check(|b| b.sim.set_clock_offset(600), expect![[r#"
        exit 0
        note  clock of the authority: clock-skewed: this machine's clock is about 10 min behind Microsoft's
              remedy: set the clock (NTP); listings follow Microsoft's clock and are right all the same, log times are not
        note  clock of the API: clock-skewed: this machine's clock is about 10 min behind Microsoft's
              remedy: set the clock (NTP); listings follow Microsoft's clock and are right all the same, log times are not
    "#]]).await;
    check(|b| b.set("api_url", &closed_port()), expect![[r#"
        exit 69
        FAIL  list subscriptions: api-unreachable: cannot list subscriptions for tenant `11111111-2222-3333-4444-555555555555`: no answer: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
              remedy: check DNS, firewall, proxy and the TLS certificates this machine trusts
    "#]]).await;
    check(|b| b.set("authority_url", &closed_port()), expect![[r#"
        exit 69
        FAIL  sign in: auth-unreachable: cannot get a token for tenant `11111111-2222-3333-4444-555555555555` from `127.0.0.1`: the authority cannot be reached: `error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)`
              remedy: check DNS, firewall, proxy and the TLS certificates this machine trusts
    "#]]).await;
    check(
        |b| {
            let front = Fault::Answer { status: 403, content_type: "text/html".into(), body: b"<html>no".to_vec() };
            b.sim.set_faults(FaultPlan {
                scripts: vec![Script::next(CallKind::List, 9, front)],
                ..FaultPlan::default()
            });
        },
        expect![[r#"
            exit 76
            FAIL  list subscriptions: api-forbidden: cannot list subscriptions for tenant `11111111-2222-3333-4444-555555555555`: access was refused without an error code (status 403): `<html>no`
                  remedy: look for a proxy, a Conditional Access policy or a firewall between this machine and the API
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
    assert!(text.starts_with("--probe starts and stops Audit.General where it is off"), "{text}");
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
