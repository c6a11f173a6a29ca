//! Receipts from outside: parts that are sealed are verified, wherever they lie, and what was changed of them never is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use m365_audit::host::{Expected, Op, StateStore};
use m365_audit::hosts::embedded::memory::MemoryStore;
use m365_audit::hosts::embedded::store::SqliteStore;
use m365_audit::model::{ContentType, TenantId};
use m365_audit::normalise::CanonicalKey;
use m365_audit::receipts::directory::{self, CHECKPOINT_SUFFIX, ENTRIES_SUFFIX};
use m365_audit::receipts::head::StoredHead;
use m365_audit::receipts::leaves::leaves_of;
use m365_audit::receipts::note::Signer;
use m365_audit::receipts::seal::{ENTRY_BYTES, Part, Sealed, Uncounted, seal};
use m365_audit::receipts::statement::{Hour, Outcome, ReceiptHead, Statement};
use m365_audit::receipts::store::{self, ReceiptKeys};
use m365_audit::receipts::verify::{Verification, Wrong};
use m365_audit::receipts::{Class, Receipt};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

const TENANT: &str = "6f1d3a52-0d2e-4f7e-8a51-2b7c1d9e0a11";
const OTHER_TENANT: &str = "99999999-0d2e-4f7e-8a51-2b7c1d9e0a11";

/// A key from 32 bytes that are all the same: PKCS#8 of RFC 8410.
fn signer(byte: u8) -> Signer {
    let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
    der.extend([byte; 32]);
    Signer::from_pkcs8(&der).unwrap()
}

fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

/// What a part is made of.
#[derive(Debug, Clone)]
struct Made {
    receipts: Vec<Receipt>,
    repeated: u64,
    last: bool,
}

/// How many repeats a part has in which receipts begin again.
const BEGINS: u64 = 188;

/// Seals parts one after the other, from part `first` on.
fn sealed(tenant_id: &str, made: &[Made], first: u64, signer: &Signer) -> Vec<Sealed> {
    let mut parts: Vec<Sealed> = Vec::new();
    let mut hour: Hour = "2026-11-30T22:00:00Z".parse().unwrap();
    let mut number = 0;
    for (index, made) in made.iter().enumerate() {
        let part = Part {
            tenant: tenant(tenant_id),
            seq: first + index as u64,
            hour,
            part: number,
            last: made.last,
            begins: index == 0 || made.repeated == BEGINS,
            previous: parts.last().map_or([0; 32], |part| part.statement_hash),
        };
        let uncounted = BTreeMap::from([(ContentType::General, Uncounted { repeated: made.repeated, without_id: 0 })]);
        parts.push(seal(&part, made.receipts.clone(), &uncounted, signer));
        (hour, number) = if made.last { (hour.next(), 0) } else { (hour, number + 1) };
    }
    parts
}

/// The files of an exported directory.
type Files = BTreeMap<String, Vec<u8>>;

fn files(parts: &[Sealed], signer: &Signer) -> Files {
    let mut files = Files::from([("key.pub".to_owned(), format!("{}\n", signer.key()).into_bytes())]);
    for part in parts {
        let Statement { tenant, seq, .. } = &part.statement;
        let name = |suffix| format!("{tenant}/{}", directory::file_name(*seq, suffix));
        files.insert(name(CHECKPOINT_SUFFIX), part.note.clone().into_bytes());
        files.insert(name(ENTRIES_SUFFIX), part.pages.concat());
    }
    if let (Some(first), Some(last)) = (parts.first(), parts.last()) {
        let Statement { tenant, entries, root, seq, .. } = last.statement.clone();
        let exported = "2026-12-01T09:00:00Z".parse().unwrap();
        let (first, previous) = (first.statement.seq, last.statement_hash);
        let head = ReceiptHead {
            tenant: tenant.clone(),
            leaves: leaves_of(entries),
            root,
            first,
            last: seq,
            previous,
            exported,
        };
        files.insert(format!("{tenant}/head"), head.sign(signer).into_bytes());
    }
    files
}

fn write(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Makes a directory that holds `from` hold `to`.
fn rewrite(dir: &Path, from: &Files, to: &Files) {
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    write(
        dir,
        &to.iter()
            .filter(|(name, bytes)| from.get(*name) != Some(*bytes))
            .map(|(n, b)| (n.clone(), b.clone()))
            .collect(),
    );
    for name in from.keys().filter_map(|name| name.split_once('/')).map(|(folder, _)| folder) {
        if !to.keys().any(|kept| kept.starts_with(name)) {
            let _ = fs::remove_dir(dir.join(name));
        }
    }
}

fn key(n: u64) -> Option<CanonicalKey> {
    // Spread over all keys, as hashes are.
    let low = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_be_bytes());
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    Some(CanonicalKey::from_bytes(bytes))
}

fn receipt(n: u64, class: Class) -> Receipt {
    let content_type = ContentType::ALL[(n % 5) as usize];
    Receipt { content_type, key: key(n), class }
}

fn class(n: u64) -> Class {
    match n % 7 {
        0 => Class::Held,
        1 => Class::SetAside,
        2 => Class::Dropped("routine-reads".into()),
        3 => Class::Dropped("noise".into()),
        _ => Class::Delivered,
    }
}

/// Eight parts of six hours: hours without an event, with one, and in three parts.
fn some_parts() -> Vec<Made> {
    let events = [5, 0, 9, 4, 170, 1, 0, 12];
    let last = [true, true, false, false, true, true, true, true];
    let mut next = 0;
    let made = events.iter().zip(last).map(|(events, last)| {
        let numbers = next..next + events;
        next += events;
        Made { receipts: numbers.map(|n| receipt(n, class(n))).collect(), repeated: next, last }
    });
    made.collect()
}

fn verify(dir: &Path, signer: &Signer) -> directory::DirectoryVerdict {
    directory::verify(dir, &[signer.key().clone()], None, &[]).unwrap()
}

fn only(found: directory::DirectoryVerdict) -> Verification {
    assert!(found.faults.is_empty(), "{:?}", found.faults);
    assert_eq!(found.tenants.len(), 1);
    found.tenants.into_iter().next().unwrap()
}

/// The directory that stands in the repository, byte for byte: whoever writes a verifier tries it on this one. Written
/// anew when it is not there.
#[test]
fn the_directory_of_the_page_is_what_is_made_today() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/receipts");
    let expected = files(&sealed(TENANT, &some_parts(), 0, &signer(7)), &signer(7));
    if !dir.exists() {
        write(&dir, &expected);
        panic!("tests/fixtures/receipts was not there; it was written");
    }
    let mut found = Files::new();
    for folder in [dir.clone(), dir.join(TENANT)] {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(&dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    assert_eq!(found, expected, "the format of what is stored and exported never changes");
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/receipts.md")).unwrap();
    let hex = |entry: &[u8]| entry.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let entries: String = found[&name(3, ENTRIES_SUFFIX)].chunks(ENTRY_BYTES).map(hex).collect();
    let text = |name: &str| String::from_utf8(found[name].clone()).unwrap();
    for shown in [text("key.pub"), text(&name(1, CHECKPOINT_SUFFIX)), entries] {
        assert!(page.contains(&format!("```\n{shown}```\n")), "docs/receipts.md does not show\n{shown}");
    }
    let verdict = only(verify(&dir, &signer(7)));
    assert!(verdict.is_good(), "{:?}", verdict.faults);
    assert_eq!((verdict.parts, verdict.entries, verdict.seqs), (8, 201, Some((0, 7))));
    let begins: Vec<u64> = verdict.begins.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(begins, [0, 4], "receipts began, were off, and began again");
}

/// Numbers that are the same in each run.
struct Dice(TestRng);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

fn names_with(files: &Files, suffix: &str) -> Vec<String> {
    files.keys().filter(|name| name.ends_with(suffix)).cloned().collect()
}

fn swap(files: &mut Files, one: &str, two: &str) {
    let (a, b) = (files[one].clone(), files[two].clone());
    files.insert(one.to_owned(), b);
    files.insert(two.to_owned(), a);
}

/// The entries of a file, changed.
fn with_entries(files: &mut Files, name: &str, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let mut entries: Vec<Vec<u8>> = files[name].chunks(ENTRY_BYTES).map(<[u8]>::to_vec).collect();
    change(&mut entries);
    files.insert(name.to_owned(), entries.concat());
}

/// What somebody without the key has to change files with.
struct Others {
    /// Another history of the same signer, of the same tenant.
    fork: Files,
    /// Another tenant's, under this one's name.
    tenant: Files,
    /// The same, signed by another key.
    signed: Files,
}

impl Others {
    fn new() -> Self {
        let mut made = some_parts();
        made[3].receipts.pop();
        let fork = files(&sealed(TENANT, &made, 0, &signer(7)), &signer(7));
        let tenant = files(&sealed(OTHER_TENANT, &some_parts(), 0, &signer(7)), &signer(7));
        let tenant = tenant.into_iter().map(|(name, bytes)| (name.replace(OTHER_TENANT, TENANT), bytes)).collect();
        Self { fork, tenant, signed: files(&sealed(TENANT, &some_parts(), 0, &signer(8)), &signer(8)) }
    }
}

/// One change that somebody without the key could make. It may leave all as it is, by chance.
fn mutate(files: &mut Files, others: &Others, dice: &mut Dice) -> &'static str {
    let all: Vec<String> = files.keys().cloned().collect();
    let checkpoints = names_with(files, CHECKPOINT_SUFFIX);
    let entries = names_with(files, ENTRIES_SUFFIX);
    let any = dice.of(&all).clone();
    let part = dice.of(&checkpoints).clone();
    let of_part = dice.of(&entries).clone();
    match dice.below(26) {
        0..=3 => {
            let bytes = files.get_mut(&any).unwrap();
            let at = dice.below(bytes.len());
            bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << dice.below(8));
            "a bit"
        }
        4 => {
            let bytes = files.get_mut(&any).unwrap();
            bytes.truncate(dice.below(bytes.len()));
            "the end cut off"
        }
        5 => {
            let bytes = files.get_mut(&any).unwrap();
            let at = dice.below(bytes.len() + 1);
            let more = *dice.of(b"\n\r\0 +=0A\x10\xff");
            bytes.insert(at, more);
            "a byte more"
        }
        6 => {
            let bytes = files.get_mut(&any).unwrap();
            let from = dice.below(bytes.len());
            let to = from + dice.below(bytes.len() - from + 1);
            bytes.drain(from..to);
            "a range less"
        }
        7 => {
            let other = dice.of(&all).clone();
            swap(files, &any, &other);
            "two files exchanged"
        }
        8 => {
            let other = dice.of(&checkpoints).clone();
            swap(files, &part, &other);
            swap(
                files,
                &part.replace(CHECKPOINT_SUFFIX, ENTRIES_SUFFIX),
                &other.replace(CHECKPOINT_SUFFIX, ENTRIES_SUFFIX),
            );
            "two parts exchanged"
        }
        9 => {
            files.remove(&any);
            "a file removed"
        }
        10 => {
            files.remove(&part);
            files.remove(&part.replace(CHECKPOINT_SUFFIX, ENTRIES_SUFFIX));
            "a part removed"
        }
        11 => {
            for name in checkpoints.iter().filter(|name| **name >= part) {
                files.remove(name);
                files.remove(&name.replace(CHECKPOINT_SUFFIX, ENTRIES_SUFFIX));
            }
            "the last parts removed"
        }
        12 => {
            for name in checkpoints.iter().filter(|name| **name <= part) {
                files.remove(name);
                files.remove(&name.replace(CHECKPOINT_SUFFIX, ENTRIES_SUFFIX));
            }
            "the first parts removed"
        }
        13 => {
            let number = *dice.of(&[3, 8, 9, 255, u64::MAX]);
            for suffix in [CHECKPOINT_SUFFIX, ENTRIES_SUFFIX] {
                let bytes = files[&part.replace(CHECKPOINT_SUFFIX, suffix)].clone();
                files.insert(format!("{TENANT}/{}", directory::file_name(number, suffix)), bytes);
            }
            "a part twice"
        }
        14 => {
            let bytes = files.remove(&any).unwrap();
            files.insert(format!("{any}{}", dice.of(&["~", ".old", "0", " "])), bytes);
            "a file renamed"
        }
        15 => {
            let name = dice
                .of(&["x", "head", "key.pub.sig", &format!("{TENANT}/x"), &format!("{OTHER_TENANT}/head")])
                .to_string();
            files.entry(name).or_default();
            "a file added"
        }
        16 => {
            with_entries(files, &of_part, |entries| {
                let at = dice.below(entries.len() + 1);
                let mut entry = key(1_000 + dice.below(1000) as u64).unwrap().as_bytes().to_vec();
                entry.push(*dice.of(&[0, 1, 2, 3, 16]));
                entries.insert(at, entry);
            });
            "an entry inserted"
        }
        17 => {
            with_entries(files, &of_part, |entries| {
                if !entries.is_empty() {
                    entries.remove(dice.below(entries.len()));
                }
            });
            "an entry removed"
        }
        18 => {
            with_entries(files, &of_part, |entries| {
                let (a, b) = (dice.below(entries.len()), dice.below(entries.len()));
                if !entries.is_empty() {
                    entries.swap(a, b);
                }
            });
            "two entries exchanged"
        }
        19 => {
            with_entries(files, &of_part, |entries| {
                let at = dice.below(entries.len());
                entries
                    .get_mut(at)
                    .into_iter()
                    .for_each(|entry| entry[16] = *dice.of(&[0, 1, 2, 3, 4, 15, 16, 17, 255]));
            });
            "the class of an entry"
        }
        20 => {
            let other = dice.of(&entries).clone();
            let moved = files[&of_part].get(..ENTRY_BYTES).unwrap_or_default().to_vec();
            with_entries(files, &of_part, |entries| drop(entries.drain(..entries.len().min(1))));
            with_entries(files, &other, |entries| {
                entries.push(moved);
                entries.sort();
            });
            "an entry moved to another part"
        }
        21 => {
            let name = dice.of(&[part, format!("{TENANT}/head")]).clone();
            let mut lines: Vec<String> =
                String::from_utf8(files[&name].clone()).unwrap().lines().map(str::to_owned).collect();
            let at = dice.below(lines.len());
            match dice.below(4) {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                2 => lines.swap(at, 0),
                _ => lines[at] = lines[at].chars().map(|c| if c.is_ascii_digit() { '7' } else { c }).collect(),
            }
            files.insert(name, (lines.join("\n") + "\n").into_bytes());
            "a line of a note"
        }
        22 => {
            // Text and signature of two notes.
            let other = dice.of(&checkpoints).clone();
            let cut = |name: &str| {
                let note = String::from_utf8(files[name].clone()).unwrap();
                note.split_once("\n\n").map(|(text, signature)| (text.to_owned(), signature.to_owned())).unwrap()
            };
            let (text, signature) = (cut(&part).0, cut(&other).1);
            files.insert(part, format!("{text}\n\n{signature}").into_bytes());
            "the signature of another note"
        }
        23 => {
            // All of it signed by another key, or one note; the key beside them too, or not.
            let all = dice.below(2) == 0;
            for (name, bytes) in &others.signed {
                let is_key = name == "key.pub";
                if (is_key && dice.below(2) == 0) || (!is_key && (all || *name == part)) {
                    files.insert(name.clone(), bytes.clone());
                }
            }
            "another key"
        }
        24 => {
            let from = dice.below(8) as u64;
            for (name, bytes) in &others.fork {
                let seq = name.split('/').nth(1).and_then(|name| u64::from_str_radix(name.get(..16)?, 16).ok());
                if seq.is_some_and(|seq| seq >= from && seq < from + 3) {
                    files.insert(name.clone(), bytes.clone());
                }
            }
            "parts of another history"
        }
        _ => {
            files.insert(any.clone(), others.tenant[&any].clone());
            "a file of another tenant"
        }
    }
}

/// Mutations that each change something. They are the same in each run, and others for each `seed`.
fn mutations(seed: u8, count: usize) -> impl Iterator<Item = (&'static str, Files)> {
    let good = files(&sealed(TENANT, &some_parts(), 0, &signer(7)), &signer(7));
    let others = Others::new();
    let mut dice = Dice(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
    std::iter::repeat_with(move || {
        let mut mutated = good.clone();
        let mut kind = mutate(&mut mutated, &others, &mut dice);
        if dice.below(8) == 0
            && let Some(bytes) = mutated.values_mut().find(|bytes| !bytes.is_empty())
        {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
            kind = "two changes";
        }
        (mutated != good).then_some((kind, mutated))
    })
    .flatten()
    .take(count)
}

/// How many mutations there were of each kind, and the kinds of those that were accepted.
fn accepted(seed: u8, count: usize) -> (BTreeMap<&'static str, usize>, Vec<&'static str>) {
    let signer = signer(7);
    let good = files(&sealed(TENANT, &some_parts(), 0, &signer), &signer);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &good);
    assert!(verify(dir.path(), &signer).is_good());
    let (mut kinds, mut accepted) = (BTreeMap::new(), Vec::new());
    for (kind, mutated) in mutations(seed, count) {
        *kinds.entry(kind).or_default() += 1;
        rewrite(dir.path(), &good, &mutated);
        if verify(dir.path(), &signer).is_good() {
            accepted.push(kind);
        }
        rewrite(dir.path(), &mutated, &good);
    }
    assert!(verify(dir.path(), &signer).is_good(), "what was changed was changed back");
    (kinds, accepted)
}

#[test]
fn of_ten_thousand_mutations_none_is_accepted() {
    let threads: Vec<_> = (0..4).map(|seed| std::thread::spawn(move || accepted(seed, 2_500))).collect();
    let mut count = 0;
    for thread in threads {
        let (kinds, accepted) = thread.join().unwrap();
        assert_eq!(accepted, Vec::<&str>::new(), "of {kinds:?}");
        assert_eq!(kinds.len(), 24, "{kinds:?}");
        count += kinds.values().sum::<usize>();
    }
    assert_eq!(count, 10_000);
}

/// The verifier that was written from the page.
fn python() -> Option<PathBuf> {
    let python = test_support::program("python3")?;
    let has = Command::new(&python).args(["-c", "import cryptography"]).output().unwrap();
    if !has.status.success() {
        test_support::skip(
            "python3-cryptography",
            String::from_utf8_lossy(&has.stderr).lines().last().unwrap_or_default(),
        );
        return None;
    }
    Some(python)
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/verify_receipts.py")
}

#[test]
fn sixty_lines_of_python_verify_a_directory_and_refuse_a_changed_one() {
    assert!(fs::read_to_string(script()).unwrap().lines().count() <= 60, "the page promises sixty lines");
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let signer = signer(7);
    let good = files(&sealed(TENANT, &some_parts(), 0, &signer), &signer);
    fs::write(dir.path().join("key"), format!("{}\n", signer.key())).unwrap();
    write(&dir.path().join("good"), &good);
    write(&dir.path().join("good2"), &files(&sealed(TENANT, &some_parts(), 0, &signer), &signer));
    let run = |name: &str| {
        let mut command = Command::new(&python);
        command.arg(script()).arg(dir.path().join(name)).arg("--key").arg(dir.path().join("key")).output().unwrap()
    };
    let output = run("good");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("{TENANT}: verified, parts 0 to 7")), "{said}");
    let mutated: Vec<_> = mutations(9, 300).collect();
    for (index, (_, files)) in mutated.iter().enumerate() {
        write(&dir.path().join(index.to_string()), files);
    }
    // In one process: starting Python takes longer than verifying.
    let driver = "import pathlib, runpy, sys\nbase, script, count = sys.argv[1:]\nfor n in ['good2', *range(int(count))]:\n    \
                  sys.argv = [script, f'{base}/{n}', '--key', f'{base}/key']\n    try:\n        \
                  runpy.run_path(script, run_name='__main__')\n        print('accepted', n)\n    \
                  except (Exception, SystemExit) as e:\n        pass\n";
    let output = Command::new(&python)
        .args(["-c", driver])
        .arg(dir.path())
        .arg(script())
        .arg(mutated.len().to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let accepted: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("accepted ")).collect();
    let kinds = accepted[1..].iter().map(|n| mutated[n.parse::<usize>().unwrap()].0);
    assert_eq!(accepted, ["good2"], "{:?}", kinds.collect::<Vec<_>>());
}

// ------------------------------------------------------------------------------------------ each fault by name

/// What is found after `change`.
fn wrongs(change: impl FnOnce(&mut Files)) -> Vec<Wrong> {
    let signer = signer(7);
    let mut files = files(&sealed(TENANT, &some_parts(), 0, &signer), &signer);
    change(&mut files);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files);
    let found = verify(dir.path(), &signer);
    found.faults.into_iter().chain(found.tenants.into_iter().flat_map(|t| t.faults)).map(|fault| fault.wrong).collect()
}

fn name(seq: u64, suffix: &str) -> String {
    format!("{TENANT}/{}", directory::file_name(seq, suffix))
}

#[test]
fn each_fault_is_called_what_it_is() {
    assert_eq!(wrongs(|_| {}), []);
    let without = |name: &str| {
        wrongs(|files| {
            files.remove(name);
        })
    };
    assert_eq!(without(&format!("{TENANT}/head")), [Wrong::NoHead]);
    assert_eq!(without(&name(2, CHECKPOINT_SUFFIX)), [Wrong::NoNote]);
    assert_eq!(without(&name(2, ENTRIES_SUFFIX)), [Wrong::NoEntries]);
    let removed = |seqs: std::ops::Range<u64>| {
        wrongs(|files| {
            for seq in seqs {
                files.remove(&name(seq, CHECKPOINT_SUFFIX));
                files.remove(&name(seq, ENTRIES_SUFFIX));
            }
        })
    };
    assert_eq!(removed(2..4), [Wrong::Hole { from: 2, to: 3 }]);
    assert_eq!(removed(0..2), [Wrong::Head("its first part")]);
    assert_eq!(removed(6..8), [Wrong::Head("its last part")]);
    let exchanged = wrongs(|files| {
        for suffix in [CHECKPOINT_SUFFIX, ENTRIES_SUFFIX] {
            swap(files, &name(3, suffix), &name(5, suffix));
        }
    });
    assert!(exchanged.contains(&Wrong::Number(5)) && exchanged.contains(&Wrong::Number(3)), "{exchanged:?}");
    let entries = |change: fn(&mut Vec<Vec<u8>>)| wrongs(|files| with_entries(files, &name(4, ENTRIES_SUFFIX), change));
    assert_eq!(entries(|all| drop(all.pop())), [Wrong::Entries { found: 169, stated: 170 }]);
    assert_eq!(entries(|all| all.swap(3, 4)), [Wrong::Order(4), Wrong::Root]);
    assert_eq!(entries(|all| all[3][0] ^= 1), [Wrong::Root]);
    assert_eq!(entries(|all| all[3][16] = 9), [Wrong::Class(3, 9), Wrong::Root]);
    assert_eq!(entries(|all| all[169].truncate(16)), [Wrong::Cut, Wrong::Entries { found: 169, stated: 170 }]);
    assert_eq!(wrongs(|files| drop(files.insert("x".into(), vec![]))), [Wrong::Stray]);
    assert_eq!(wrongs(Files::clear), [Wrong::Unreadable("`key.pub` is missing, or no file".into()), Wrong::Nothing]);
}

#[test]
fn a_part_of_another_history_is_a_fork_and_so_is_one_that_a_checkpoint_elsewhere_contradicts() {
    let signer = signer(7);
    let mut made = some_parts();
    made[3].receipts.pop();
    let fork = sealed(TENANT, &made, 0, &signer);
    let found = wrongs(|files| {
        files.insert(name(3, CHECKPOINT_SUFFIX), fork[3].note.clone().into_bytes());
        files.insert(name(3, ENTRIES_SUFFIX), fork[3].pages.concat());
    });
    assert_eq!(found, [Wrong::Fork]);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files(&fork, &signer));
    let sent: Vec<Statement> =
        sealed(TENANT, &some_parts(), 0, &signer).into_iter().map(|sealed| sealed.statement).collect();
    assert!(verify(dir.path(), &signer).is_good(), "alone it cannot be told from the first");
    let verdict = only(directory::verify(dir.path(), &[signer.key().clone()], None, &sent).unwrap());
    assert_eq!(verdict.faults.len(), 5, "parts 3 to 7: {:?}", verdict.faults);
    assert!(verdict.faults.iter().all(|fault| fault.wrong == Wrong::ForkElsewhere));
    // An older copy with its own head.
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files(&sealed(TENANT, &some_parts()[..6], 0, &signer), &signer));
    assert!(verify(dir.path(), &signer).is_good());
    let verdict = only(directory::verify(dir.path(), &[signer.key().clone()], None, &sent).unwrap());
    let places: Vec<_> = verdict.faults.iter().map(|fault| (fault.seq, fault.wrong.clone())).collect();
    assert_eq!(places, [(Some(6), Wrong::Elsewhere), (Some(7), Wrong::Elsewhere)]);
    assert_eq!(verdict.compared, 6);
}

#[test]
fn a_beginning_that_was_pruned_is_said_and_no_fault() {
    let signer = signer(7);
    let parts = sealed(TENANT, &some_parts(), 0, &signer);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files(&parts[3..], &signer));
    let verdict = only(verify(dir.path(), &signer));
    assert!(verdict.is_good(), "{:?}", verdict.faults);
    assert_eq!(verdict.pruned(), 3);
}

#[test]
fn checkpoints_kept_of_parts_before_the_first_are_counted_or_show_that_these_are_not_too_old() {
    let signer = signer(7);
    let parts = sealed(TENANT, &some_parts(), 0, &signer);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files(&parts[3..], &signer));
    let first = &parts[3].statement;
    let kept = |seq: u64, hour, part| Statement { seq, hour, part, ..parts[1].statement.clone() };
    for (kept, expected) in [
        (kept(1, parts[1].statement.hour, 0), None),
        // Of the same hour, which was removed in part.
        (kept(2, first.hour, first.part - 1), None),
        (kept(2, first.hour, first.part), Some(Wrong::ElsewhereBefore)),
        (kept(2, first.hour.next(), 0), Some(Wrong::ElsewhereBefore)),
    ] {
        let all = [kept, parts[4].statement.clone()];
        let verdict = only(directory::verify(dir.path(), &[signer.key().clone()], None, &all).unwrap());
        let wrong = verdict.faults.first().map(|fault| fault.wrong.clone());
        let counts = (verdict.compared, verdict.not_compared);
        assert_eq!((wrong, counts), (expected.clone(), (1, u64::from(expected.is_none()))), "{:?}", all[0]);
    }
}

#[test]
fn where_a_key_was_lost_each_part_may_be_signed_by_any_of_those_given() {
    let (lost, new) = (signer(7), signer(8));
    let mut parts = sealed(TENANT, &some_parts(), 0, &lost);
    parts[4..].iter_mut().for_each(|part| part.note = part.statement.sign(&new));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files(&parts, &new));
    let verify = |signers: &[&Signer]| {
        let keys: Vec<_> = signers.iter().map(|signer| signer.key().clone()).collect();
        directory::verify(dir.path(), &keys, None, &[]).unwrap()
    };
    for keys in [[&lost, &new], [&new, &lost]] {
        let verdict = only(verify(&keys));
        assert!(verdict.is_good(), "{:?}", verdict.faults);
        assert_eq!(verdict.key_changes, [(4, parts[4].statement.hour, new.key().short())]);
    }
    let third = signer(9);
    for keys in [&[][..], &[&lost], &[&new], &[&lost, &third], &[&third, &new]] {
        assert!(!verify(keys).is_good(), "{keys:?}");
    }
}

// ------------------------------------------------------------------------------------------ in a state

fn keys() -> ReceiptKeys {
    ReceiptKeys::below(format!("m365_audit/v1/{TENANT}/receipts/"))
}

fn put(key: String, value: impl Into<Bytes>) -> Op {
    Op::Put { key, value: value.into(), expected: Expected::Any }
}

async fn stored(parts: &[Sealed]) -> MemoryStore {
    let store = MemoryStore::new();
    let first = parts.first().map_or(0, |part| part.statement.seq);
    let mut head = StoredHead { seq: first, first, ..StoredHead::default() };
    for part in parts {
        head = head.after(part);
        let values = store::values_of(&keys(), part).into_iter().map(|(key, value)| put(key, value));
        store.commit(values.chain([put(keys().head(), head.encode())]).collect()).await.unwrap();
    }
    store
}

async fn verdict_of(store: &MemoryStore) -> Verification {
    store::verify(store, &keys(), tenant(TENANT), &[signer(7).key().clone()], &[]).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_is_in_a_state_is_verified_and_so_is_that_nothing_else_is() {
    let parts = sealed(TENANT, &some_parts(), 0, &signer(7));
    let nothing = MemoryStore::new();
    let verdict = store::verify(&nothing, &keys(), tenant(TENANT), &[signer(7).key().clone()], &[]).await.unwrap();
    assert_eq!(verdict, None);
    assert!(verdict_of(&stored(&parts).await).await.is_good());
    assert_eq!(verdict_of(&stored(&parts[2..]).await).await.pruned(), 2);
    let changed = [
        Op::Delete { key: keys().checkpoint(3), expected: Expected::Any },
        Op::Delete { key: keys().page(4, 0), expected: Expected::Any },
        put(keys().page(4, 0), parts[4].pages[0].slice(..34)),
        put(keys().page(4, 1), vec![0; 17]),
        put(keys().checkpoint(5), parts[4].note.clone()),
        put(format!("{}x", keys().part(2)), "x"),
        put(keys().checkpoint(8), parts[7].note.clone()),
        put(format!("{}x", keys().sealed()), "x"),
        Op::Delete { key: keys().head(), expected: Expected::Any },
        put(keys().head(), StoredHead::default().encode()),
        put(keys().head(), "{"),
        put(keys().head(), StoredHead::default().after(&parts[6]).encode()),
        put(keys().head(), StoredHead { seq: u64::MAX, ..StoredHead::default().after(&parts[7]) }.encode()),
        put(keys().head(), StoredHead { first: 3, ..StoredHead::default().after(&parts[7]) }.encode()),
    ];
    for op in changed {
        let store = stored(&parts).await;
        store.commit(vec![op.clone()]).await.unwrap();
        assert!(!verdict_of(&store).await.is_good(), "{op:?}");
    }
}

/// A process that seals and removes parts while they are read: what is there at the beginning is gone later.
#[tokio::test]
async fn parts_that_are_removed_as_too_old_while_they_are_read_are_passed_over() {
    let parts = sealed(TENANT, &some_parts(), 0, &signer(7));
    for read in 0..4 {
        let store = stored(&parts).await;
        let head = store::read_head(&store, &keys()).await.unwrap().unwrap();
        let keys = keys();
        let mut reading = store::SealedParts::open(&store, &keys, &head).await.unwrap();
        for seq in 0..read {
            assert_eq!(reading.next().await.unwrap().unwrap().seq, seq);
        }
        let removed = (0..5).flat_map(|seq| [keys.checkpoint(seq), keys.page(seq, 0)]);
        let mut ops: Vec<Op> = removed.map(|key| Op::Delete { key, expected: Expected::Any }).collect();
        ops.push(put(keys.head(), StoredHead { first: 5, ..head }.encode()));
        store.commit(ops).await.unwrap();
        let part = reading.next().await.unwrap().unwrap();
        assert_eq!((part.seq, part.before), (5, store::PartGap::Removed), "{read} were read");
        assert_eq!(reading.next().await.unwrap().unwrap().before, store::PartGap::Nothing);
    }
}

#[tokio::test]
async fn damaged_parts_are_errors_to_whoever_looks_entries_up() {
    let parts = sealed(TENANT, &some_parts(), 0, &signer(7));
    let store = stored(&parts).await;
    store.commit(vec![put(keys().page(4, 0), parts[4].pages[0].slice(..34))]).await.unwrap();
    let error = store::for_each_entry(&store, &keys(), None, [], &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains(&keys().checkpoint(4)), "{error}");
    for missing in [2, 7] {
        let store = stored(&parts).await;
        let gone = [keys().checkpoint(missing), keys().page(missing, 0)];
        store.commit(gone.map(|key| Op::Delete { key, expected: Expected::Any }).into()).await.unwrap();
        let error = store::for_each_entry(&store, &keys(), None, [], &mut |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(&keys().checkpoint(missing)), "{error}");
    }
}

fn random_class() -> impl Strategy<Value = Class> {
    prop_oneof![
        4 => Just(Class::Delivered),
        1 => Just(Class::SetAside),
        1 => Just(Class::Held),
        3 => (0..260_u32).prop_map(|rule| Class::Dropped(format!("rule-{rule}").into())),
        1 => "\\PC{0,3}".prop_map(|rule| Class::Dropped(rule.into())),
    ]
}

fn random_parts() -> impl Strategy<Value = Vec<Made>> {
    let receipt =
        (0..5_usize, prop::option::weighted(0.9, 0..400_u64), random_class()).prop_map(|(content_type, n, class)| {
            Receipt { content_type: ContentType::ALL[content_type], key: n.and_then(key), class }
        });
    let made = (prop::collection::vec(receipt, 0..300), 0..9_u64, any::<bool>())
        .prop_map(|(receipts, repeated, last)| Made { receipts, repeated, last });
    prop::collection::vec(made, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_sealed_is_verified_in_files_and_state_and_found_again(
        made in random_parts(),
        first in prop_oneof![Just(0_u64), 1..9_u64],
    ) {
        let signer = signer(7);
        let parts = sealed(TENANT, &made, first, &signer);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files(&parts, &signer));
        let verdict = only(verify(dir.path(), &signer));
        prop_assert!(verdict.is_good(), "{:?}", verdict.faults);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (in_state, found, reach) = runtime.block_on(async {
            let store = stored(&parts).await;
            let mut found = BTreeSet::new();
            let mut visit = |entry: store::FoundReceipt<'_>| {
                let rule = entry.rule.map(str::to_owned);
                found.insert((entry.key, entry.outcome, rule, entry.hour));
            };
            let reach = store::for_each_entry(&store, &keys(), None, [], &mut visit).await.unwrap();
            (verdict_of(&store).await, found, reach)
        });
        prop_assert!(in_state.is_good(), "{:?}", in_state.faults);
        prop_assert_eq!((in_state.entries, in_state.counts), (verdict.entries, verdict.counts));
        prop_assert_eq!(reach.entries, verdict.entries);
        prop_assert_eq!(reach.pruned, first > 0);
        for (made, part) in made.iter().zip(&parts) {
            for receipt in &made.receipts {
                let Some(key) = receipt.key else { continue };
                let is_there = |(found, outcome, rule, hour): &(CanonicalKey, Outcome, Option<String>, Option<Hour>)| {
                    let same = match &receipt.class {
                        Class::Delivered => *outcome == Outcome::Delivered,
                        Class::SetAside => *outcome == Outcome::SetAside,
                        Class::Held => *outcome == Outcome::Held,
                        Class::Dropped(by) => {
                            *outcome == Outcome::Dropped && rule.as_deref().is_none_or(|rule| *rule == **by)
                        }
                    };
                    same && *found == key && *hour == Some(part.statement.hour)
                };
                prop_assert!(found.iter().any(is_there), "{:?}", receipt);
            }
        }
    }

    #[test]
    fn nothing_that_is_read_as_a_note_or_as_entries_panics(note in any::<Vec<u8>>(), text in "(m365-audit/receipts/|[0-9a-f-]{36}|\n|seq 1|hour 2026-11-30T10:00:00Z|part 0|— m365-audit |[A-Za-z0-9+/=]{0,44}| ){0,20}", entries in any::<Vec<u8>>()) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::from([
            ("key.pub".to_owned(), format!("{}\n", signer(7).key()).into_bytes()),
            (name(0, CHECKPOINT_SUFFIX), note),
            (name(1, CHECKPOINT_SUFFIX), text.clone().into_bytes()),
            (name(1, ENTRIES_SUFFIX), entries),
            (name(2, CHECKPOINT_SUFFIX), signer(7).sign(&format!("{text}\n")).into_bytes()),
            (format!("{TENANT}/head"), signer(7).sign(&text).into_bytes()),
        ]);
        write(dir.path(), &files);
        prop_assert!(!verify(dir.path(), &signer(7)).is_good());
    }
}

/// A million events a day are sealed some 41,000 an hour.
#[tokio::test]
async fn a_sealed_receipt_takes_no_more_than_18_bytes_of_the_state() {
    const HOURS: u64 = 6;
    const EVENTS: u64 = 41_000;
    let receipts = |hour: u64| {
        let receipt = move |n: u64| Receipt {
            content_type: ContentType::Exchange,
            key: Some(CanonicalKey::from_bytes(
                u128::from(hour << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes(),
            )),
            class: Class::Delivered,
        };
        Made { receipts: (0..EVENTS).map(receipt).collect(), repeated: 0, last: true }
    };
    let made: Vec<Made> = (0..HOURS).map(receipts).collect();
    let dir = tempfile::tempdir().unwrap();
    let bytes =
        || -> u64 { fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum() };
    drop(SqliteStore::open(dir.path()).unwrap());
    let before = bytes();
    let state = SqliteStore::open(dir.path()).unwrap();
    let keys = ReceiptKeys::below("m365_audit/v1/t/receipts/");
    let put = |(key, value)| Op::Put { key, value, expected: Expected::Any };
    for part in sealed(TENANT, &made, 0, &signer(7)) {
        state.commit(store::values_of(&keys, &part).into_iter().map(put).collect()).await.unwrap();
    }
    // The last connection that closes leaves no journal.
    drop(state);
    let each = (bytes() - before) as f64 / (HOURS * EVENTS) as f64;
    assert!((17.0..=18.0).contains(&each), "{each} bytes");
}

/// Whoever asks about events of a time need not read all receipts there are, and is told how far they reach all the same.
#[tokio::test]
async fn entries_of_parts_before_a_time_are_passed_over_and_count_for_how_far_receipts_reach() {
    let one = |n: u64| Made {
        receipts: vec![Receipt {
            content_type: ContentType::Exchange,
            key: Some(CanonicalKey::from_bytes(u128::from(n).to_be_bytes())),
            class: Class::Delivered,
        }],
        repeated: 0,
        last: true,
    };
    let made: Vec<Made> = (0..4).map(one).collect();
    let state = stored(&sealed(TENANT, &made, 0, &signer(7))).await;
    for (since, expected) in [(None, 0..4), (Some("2026-12-01T00:00:00Z"), 2..4), (Some("2026-12-02T00:00:00Z"), 4..4)]
    {
        let since = since.map(|hour| hour.parse().unwrap());
        let mut seen = Vec::new();
        let mut visit = |found: store::FoundReceipt<'_>| seen.push(u128::from_be_bytes(*found.key.as_bytes()) as u64);
        let reach = store::for_each_entry(&state, &keys(), since, [], &mut visit).await.unwrap();
        assert_eq!((seen, reach.from), (expected.collect(), "2026-11-30T22:00:00Z".parse().ok()), "{since:?}");
    }
}
