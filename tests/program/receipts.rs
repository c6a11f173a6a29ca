//! `m365-audit receipts` as an operator runs it: over a state that a process is writing, and over what was exported.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use m365_audit::checkpoint::format::{self, Keys, Owner};
use m365_audit::clock::{Clock as _, SystemClock, TestClock};
use m365_audit::host::{Expected, Op, StateStore};
use m365_audit::hosts::embedded::receipts_key;
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::model::ContentType;
use m365_audit::normalise::CanonicalKey;
use m365_audit::receipts::head::StoredHead;
use m365_audit::receipts::seal::{PAGE_ENTRIES, Part, Sealed, Uncounted, seal};
use m365_audit::receipts::statement::Hour;
use m365_audit::receipts::store::ReceiptKeys;
use m365_audit::receipts::{Class, Receipt, store};
use m365_audit::sim::{GenerateSpec, Sim, SimConfig, SubscriptionState};
use serde_json::Value;

const TENANTS: [&str; 2] = ["6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11", "00000000-1111-2222-3333-444444444444"];

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let source = |name: &str, tenant: &str| {
            format!(
                "[sources.{name}]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{tenant}\"\nclient_secret = \"s\"\n"
            )
        };
        let text = format!(
            "data_dir = {:?}\n{}{}[sinks.out]\ntype = \"stdout\"\ninputs = [\"contoso\", \"fabrikam\"]\n",
            place.at("data"),
            source("contoso", TENANTS[0]),
            source("fabrikam", TENANTS[1]),
        );
        fs::write(place.at("agent.toml"), text).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs in the place, `FILE` standing for the configuration.
    fn run(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.arg("receipts").args(args.split_whitespace()).current_dir(self.dir.path()).output().unwrap()
    }

    fn well(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn badly(&self, args: &str, exit: i32, slug: &str) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(exit), "{args}: {}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(slug), "{args}: {}", said(&output));
        said(&output)
    }

    /// Opens the state as a running process does, and seals parts into it until it has so many: one of more than a page, and
    /// one without events.
    async fn seal(&self, hours: u64) -> SqliteStore {
        let state = SqliteStore::open(self.at("data")).unwrap();
        let signer = receipts_key::open_or_make(&self.at("data/receipts.key")).unwrap();
        for tenant in &TENANTS[..1] {
            let tenant = tenant.parse().unwrap();
            let keys = ReceiptKeys::below(Keys::of(&tenant).receipts());
            let mut head = store::read_head(&state, &keys).await.unwrap().unwrap_or_default();
            let mut hour: Hour = "2026-11-30T10:00:00Z".parse().unwrap();
            (0..head.seq).for_each(|_| hour = hour.next());
            for seq in head.seq..hours {
                let previous = head.previous();
                let part = Part { tenant: tenant.clone(), seq, hour, part: 0, last: true, begins: seq == 0, previous };
                let events = if seq % 2 == 0 { PAGE_ENTRIES as u64 + 10 } else { 0 };
                let receipts = (0..events).map(|n| Receipt {
                    content_type: ContentType::Exchange,
                    key: Some(CanonicalKey::from_bytes((u128::from(seq) << 100 | u128::from(n)).to_be_bytes())),
                    class: if n % 10 == 0 { Class::Dropped("noise".into()) } else { Class::Delivered },
                });
                let uncounted = BTreeMap::from([(ContentType::General, Uncounted { repeated: 3, without_id: 1 })]);
                let sealed: Sealed = seal(&part, receipts, &uncounted, &signer);
                head = head.after(&sealed);
                let mut values = store::values_of(&keys, &sealed);
                values.push((keys.head(), head.encode().into()));
                let put = |(key, value)| Op::Put { key, value, expected: Expected::Any };
                state.commit(values.into_iter().map(put).collect()).await.unwrap();
                hour = hour.next();
            }
        }
        state
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn before_anything_is_there_each_command_says_what_is_missing() {
    let place = Place::new();
    place.badly("key -c agent.toml", 66, "receipts-key-missing: ");
    place.badly("verify -c agent.toml", 66, "state-missing: ");
    let running = place.seal(0).await;
    place.badly("verify -c agent.toml", 75, "receipts-none: ");
    place.badly("export -c agent.toml out", 75, "receipts-none: ");
    assert!(!place.at("out").exists());
    place.badly("verify nowhere", 66, "receipts-unreadable: ");
    place.badly("verify -c agent.toml --key nowhere", 66, "receipts-unreadable: ");
    place.badly(
        "verify -c agent.toml --source adatum",
        64,
        "usage: no source is named `adatum`; there are: contoso, fabrikam",
    );
    place.badly("verify", 64, "error: ");
    drop(running);
}

#[tokio::test]
async fn the_state_is_verified_and_exported_beside_a_running_process_and_not_touched() {
    let place = Place::new();
    let running = place.seal(3).await;
    let before = running.list("").await.unwrap();
    let shown = place.well("verify -c agent.toml");
    let key = place.well("key -c agent.toml");
    // The base64 at its end may have a `+`, too.
    let short = key.splitn(3, '+').take(2).collect::<Vec<_>>().join("+");
    assert!(
        shown.contains("verified      parts 0 to 2, hours 2026-11-30T10:00:00Z to 2026-11-30T12:00:00Z, 8212 entries"),
        "{shown}"
    );
    assert!(shown.contains(&format!("key             {short}")), "{shown}");
    assert!(shown.contains("dropped 822; without an entry: repeated 9, without id 3"), "{shown}");
    assert!(shown.contains("fabrikam\n  nothing was sealed yet"), "{shown}");
    let shown: Value = serde_json::from_str(&place.well("verify -c agent.toml --json --source contoso")).unwrap();
    assert_eq!((&shown["verified"], &shown["tenants"][0]["counts"]["delivered"]), (&true.into(), &7390.into()));
    assert_eq!(shown["key"], key.trim_end());
    place.badly("verify -c agent.toml --source fabrikam", 75, "receipts-none: ");
    fs::write(place.at("key"), &key).unwrap();
    let exported = place.well("export -c agent.toml out");
    assert!(exported.contains("verified      parts 0 to 2"), "{exported}");
    let mode = |name: &str| fs::metadata(place.at(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("out"), mode("data/receipts.key")), (0o700, 0o600));
    place.well("verify out --key key");
    let shown = place.well("verify out");
    assert!(shown.contains("it came with them"), "{shown}");
    place.well(&format!("verify out --key key --source {}", TENANTS[0]));
    place.badly(&format!("verify out --key key --source {}", TENANTS[1]), 65, "receipts-not-verified: ");
    place.badly("export -c agent.toml out", 73, "receipts-unwritable: ");
    assert_eq!(running.list("").await.unwrap(), before);
}

#[tokio::test]
async fn after_a_key_was_lost_what_it_signed_is_verified_and_exported_by_its_public_half() {
    let place = Place::new();
    drop(place.seal(2).await);
    fs::write(place.at("lost.pub"), place.well("key -c agent.toml")).unwrap();
    fs::remove_file(place.at("data/receipts.key")).unwrap();
    drop(place.seal(4).await);
    fs::write(place.at("new.pub"), place.well("key -c agent.toml")).unwrap();
    place.badly("export -c agent.toml without", 65, "receipts-not-verified: ");
    let exported = place.well("export -c agent.toml --key lost.pub out");
    assert!(
        exported.contains("verified      parts 0 to 3") && exported.contains("key changes   with part 2"),
        "{exported}"
    );
    place.badly("verify out", 65, "receipts-not-verified: ");
    place.well("verify out --key new.pub --key lost.pub");
    place.well("verify -c agent.toml --key new.pub --key lost.pub");
    place.badly("export -c agent.toml --key nowhere other", 66, "receipts-unreadable: ");
    assert!(!place.at("other").exists());
}

#[tokio::test]
async fn what_was_changed_is_told_with_its_place_and_the_exit_code() {
    let place = Place::new();
    let running = place.seal(3).await;
    place.well("export -c agent.toml out");
    fs::write(place.at("key"), place.well("key -c agent.toml")).unwrap();
    // The checkpoints as a sink got them.
    let folder = place.at("out").join(TENANTS[0]);
    let note = |seq: u64| fs::read_to_string(folder.join(format!("{seq:016x}.checkpoint"))).unwrap();
    fs::write(place.at("sent"), note(0) + &note(2)).unwrap();
    let shown = place.well("verify out --key key --checkpoints sent");
    assert!(shown.contains("compared      with 2 checkpoints kept elsewhere"), "{shown}");
    place.well("verify -c agent.toml --checkpoints sent");
    fs::write(place.at("forged"), note(0).replace("seq 0", "seq 1")).unwrap();
    place.badly(
        "verify out --checkpoints forged",
        65,
        "receipts-checkpoint: line 1 of `forged` has a checkpoint that cannot be compared: its signature",
    );
    // What cannot be compared is no agreement.
    let record =
        |note: String| format!("{}\n", serde_json::json!({ "event_type": "m365_audit.receipt", "checkpoint": note }));
    for (text, said) in [
        (String::new(), "there is no checkpoint in `kept`"),
        ("{\"event_type\":\"other\"}\n".into(), "there is no checkpoint in `kept`"),
        (
            "{}\n{\"event_type\":\"m365_audit.receipt\n".into(),
            "line 2 of `kept` has a checkpoint that cannot be compared",
        ),
        (
            format!("{}{}", record(note(0)), record("x".into())),
            "line 2 of `kept` has a checkpoint that cannot be compared",
        ),
        (format!("{}{}x", note(0), note(1)), &format!("line {} of `kept`", (note(0) + &note(1)).lines().count() + 1)),
    ] {
        fs::write(place.at("kept"), text).unwrap();
        let told = place.badly("verify out --key key --checkpoints kept", 65, "receipts-checkpoint: ");
        assert!(told.contains(said), "{told}");
    }
    fs::write(place.at("kept"), record(note(0)) + "{\"event_type\":\"other\"}\n" + &record(note(1))).unwrap();
    let shown = place.well("verify out --key key --checkpoints kept --checkpoints sent");
    assert!(shown.contains("compared      with 3 checkpoints kept elsewhere"), "{shown}");
    let entries = folder.join("0000000000000002.entries");
    let mut bytes = fs::read(&entries).unwrap();
    // The last entry's key.
    let at = bytes.len() - 2;
    bytes[at] ^= 0x10;
    fs::write(&entries, bytes).unwrap();
    let told = place.badly(
        "verify out --key key",
        65,
        "receipts-not-verified: the receipts were not verified: 1 fault was found\n  hint: ",
    );
    let fault =
        format!("`{}/0000000000000002.entries`, part 2 of 2026-11-30T12:00:00Z: the root over its entries", TENANTS[0]);
    assert!(told.contains(&fault), "{told}");
    let shown: Value = serde_json::from_slice(&place.run("verify out --key key --json").stdout).unwrap();
    assert_eq!((&shown["verified"], &shown["tenants"][0]["faults"][0]["seq"]), (&false.into(), &2.into()));
    // In the state: a part that is gone, and a checkpoint.
    let keys = ReceiptKeys::below(Keys::of(&TENANTS[0].parse().unwrap()).receipts());
    running.commit(vec![Op::Delete { key: keys.checkpoint(1), expected: Expected::Any }]).await.unwrap();
    let told = place.badly("verify -c agent.toml", 65, "receipts-not-verified: ");
    assert!(told.contains("  fault         part 1 is missing: receipts were removed"), "{told}");
    running.commit(vec![Op::Delete { key: keys.checkpoint(0), expected: Expected::Any }]).await.unwrap();
    let told = place.badly("verify -c agent.toml", 65, "receipts-not-verified: ");
    assert!(told.contains(&format!("`{}`, part 0: its checkpoint is missing", keys.checkpoint(0))), "{told}");
    place.badly("export -c agent.toml again", 65, "receipts-not-verified: ");
    drop(running);
}

/// The checkpoint of a first part of the other tenant, signed by the key of the place.
fn of_the_other(place: &Place) -> String {
    let part = Part {
        tenant: TENANTS[1].parse().unwrap(),
        seq: 0,
        hour: "2026-11-30T10:00:00Z".parse().unwrap(),
        part: 0,
        last: true,
        begins: true,
        previous: [0; 32],
    };
    seal(&part, [], &BTreeMap::new(), &receipts_key::open(&place.at("data/receipts.key")).unwrap()).note
}

#[tokio::test]
async fn receipts_of_a_tenant_that_are_gone_are_not_verified_because_those_of_another_are() {
    let place = Place::new();
    let running = place.seal(3).await;
    fs::write(place.at("key"), place.well("key -c agent.toml")).unwrap();
    place.well("export -c agent.toml out");
    fs::write(place.at("sent"), of_the_other(&place)).unwrap();
    for told in [
        place.badly("verify -c agent.toml --checkpoints sent", 65, "receipts-not-verified: "),
        place.badly("verify -c agent.toml --source fabrikam --checkpoints sent", 65, "receipts-not-verified: "),
        place.badly("verify out --key key --checkpoints sent", 65, "receipts-not-verified: "),
    ] {
        assert!(told.contains(&format!("a checkpoint kept elsewhere is of tenant `{}`", TENANTS[1])), "{told}");
    }
    for args in ["-c agent.toml --source contoso", &format!("out --key key --source {}", TENANTS[0])] {
        let shown = place.well(&format!("verify {args} --checkpoints sent"));
        assert!(shown.contains("  compared      with 0 checkpoints kept elsewhere"), "{shown}");
        assert!(shown.contains("not compared    1 checkpoints kept elsewhere, of tenants that --source"), "{shown}");
    }
    // The other tenant was written by a process, and there is nothing of its receipts.
    let other = Keys::of(&TENANTS[1].parse().unwrap());
    let head = ReceiptKeys::below(other.receipts()).head();
    let put = |key: String, value: Vec<u8>| Op::Put { key, value: value.into(), expected: Expected::Any };
    let owner = format::encode(&Owner { format: 1, writer: "a".into(), commit: None });
    running.commit(vec![put(other.owner(), owner.to_vec())]).await.unwrap();
    let told = place.badly("verify -c agent.toml", 65, "receipts-not-verified: ");
    assert!(told.contains(&format!("not verified    `{head}`: the tenant has a state")), "{told}");
    place.badly("verify -c agent.toml --source fabrikam", 65, "receipts-not-verified: ");
    place.well("verify -c agent.toml --source contoso");
    // It keeps receipts and has not sealed yet.
    running.commit(vec![put(head, StoredHead::default().encode())]).await.unwrap();
    place.well("verify -c agent.toml");
    place.badly("verify -c agent.toml --source fabrikam", 75, "receipts-none: ");
    // Parts without a head.
    let head = ReceiptKeys::below(Keys::of(&TENANTS[0].parse().unwrap()).receipts()).head();
    running.commit(vec![Op::Delete { key: head.clone(), expected: Expected::Any }]).await.unwrap();
    let told = place.badly("verify -c agent.toml", 65, "receipts-not-verified: ");
    assert!(told.contains(&format!("`{head}`: the head is missing")), "{told}");
}

#[tokio::test]
async fn a_beginning_that_is_gone_although_the_configuration_keeps_it_is_said() {
    let place = Place::new();
    let running = place.seal(3).await;
    let keys = ReceiptKeys::below(Keys::of(&TENANTS[0].parse().unwrap()).receipts());
    let (head, _) = running.load(&keys.head()).await.unwrap().unwrap();
    let head = StoredHead { first: 2, ..StoredHead::decode(&head).unwrap() };
    let gone = [keys.checkpoint(0), keys.page(0, 0), keys.page(0, 1), keys.checkpoint(1)];
    let mut ops: Vec<Op> = gone.into_iter().map(|key| Op::Delete { key, expected: Expected::Any }).collect();
    ops.push(Op::Put { key: keys.head(), value: head.encode().into(), expected: Expected::Any });
    running.commit(ops).await.unwrap();
    let text = fs::read_to_string(place.at("agent.toml")).unwrap();
    for (days, is_said) in [(3650, true), (0, false)] {
        fs::write(place.at("agent.toml"), format!("{text}[receipts]\ndays = {days}\n")).unwrap();
        let shown = place.well("verify -c agent.toml");
        assert!(shown.contains("  begins        with part 2"), "{shown}");
        assert_eq!(shown.contains("  removed       earlier parts are gone"), is_said, "{shown}");
    }
}

/// An hour as it passes: what is delivered in it is sealed by the run that comes after it, of Microsoft's time, and verified
/// in the state, as files, and by the program that was written from the page. No clock of this machine has a say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_that_has_passed_is_sealed_and_verified_in_the_state_as_files_and_by_python() {
    let place = Place::new();
    let clock = TestClock::at(SystemClock::new().now().checked_sub(SignedDuration::from_hours(2)).unwrap());
    let service = SimConfig { tenants: vec![TENANTS[0].parse().unwrap()], ..SimConfig::default() };
    let sim = Sim::start(service.clone(), Arc::new(clock.clone())).await.unwrap();
    let tenant = &service.tenants[0];
    sim.set_subscription(tenant, ContentType::Exchange, SubscriptionState::Enabled);
    let publish = |count: usize| {
        let ago = |minutes| sim.now().checked_sub(SignedDuration::from_mins(minutes)).unwrap();
        let content_types = vec![ContentType::Exchange];
        let spec = GenerateSpec { content_types, late_rate: 0.0, ..GenerateSpec::new(count, 5, ago(60), ago(10)) };
        sim.generate(tenant, spec);
    };
    let url = sim.url();
    let text = format!(
        "data_dir = {:?}\n[sources.contoso]\ntype = \"m365_audit\"\ntenant_id = \"{tenant}\"\nclient_id = \"{}\"\n\
         client_secret = \"{}\"\ncontent_types = [\"Audit.Exchange\"]\nbackfill_secs = 7200\ndrop_routine = false\n\
         api_url = {url:?}\nauthority_url = {url:?}\n[sinks.out]\ntype = \"file\"\npath = {:?}\ninputs = [\"contoso\"]\n",
        place.at("data"),
        service.client_id,
        service.client_secret,
        place.at("out.ndjson"),
    );
    fs::write(place.at("agent.toml"), text).unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        command.args(["run", "--once", "-c", "agent.toml"]).current_dir(place.dir.path());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let delivered = || fs::read_to_string(place.at("out.ndjson")).unwrap().lines().count();
    publish(20);
    let output = run().await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let of_the_hour = delivered();
    assert!(of_the_hour >= 20);
    place.badly("verify -c agent.toml", 75, "receipts-none: ");

    clock.advance(Duration::from_secs(3600));
    publish(3);
    let output = run().await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(delivered() > of_the_hour);
    let hour = Hour::of(sim.now().checked_sub(SignedDuration::from_hours(1)).unwrap());
    let shown = place.well("verify -c agent.toml");
    assert!(shown.contains(&format!("verified      parts 0 to 0, hours {hour} to {hour}, ")), "{shown}");
    // A receipt for each event that has an identity; the others are counted.
    let number = |before: &str, behind: &str| -> usize {
        let text = shown.split_once(behind).map(|(head, _)| head).unwrap_or_default();
        text.rsplit_once(before).and_then(|(_, number)| number.parse().ok()).unwrap_or_else(|| panic!("{shown}"))
    };
    let entries = number(", ", " entries\n");
    assert_eq!(entries + number("without id ", "\n  last hash"), of_the_hour, "{shown}");
    place.well("export -c agent.toml out");
    fs::write(place.at("key"), place.well("key -c agent.toml")).unwrap();
    let shown = place.well("verify out --key key");
    assert!(shown.contains(&format!(" {entries} entries")), "{shown}");

    let Some(python) = test_support::program("python3") else { return };
    let has = Command::new(&python).args(["-c", "import cryptography"]).output().unwrap();
    if !has.status.success() {
        let why = String::from_utf8_lossy(&has.stderr).lines().last().unwrap_or_default().to_owned();
        return test_support::skip("python3-cryptography", why.as_str());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/verify_receipts.py");
    let python = |dir: &str| {
        let mut command = Command::new(&python);
        command.arg(&script).arg(dir).args(["--key", "key"]).current_dir(place.dir.path()).output().unwrap()
    };
    let output = python("out");
    assert!(output.status.success() && said(&output).contains(&format!("{tenant}: verified, ")), "{}", said(&output));
    // One event's key is another: found by both.
    let is_page = |path: &PathBuf| path.extension().is_some_and(|end| end != "pub" && end != "note");
    let of_tenant = fs::read_dir(place.at("out").join(tenant.as_str())).unwrap().map(|file| file.unwrap().path());
    let page = of_tenant.filter(is_page).max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&page).unwrap();
    bytes[3] ^= 1;
    fs::write(&page, bytes).unwrap();
    place.badly("verify out --key key", 65, "receipts-not-verified: ");
    assert!(!python("out").status.success());
}
