//! The data that the `file` sink keeps about its file across restarts, and how it judges the file it finds.
//!
//! Stored with each group: which file it was, how long it was after the sync, a checksum of its last bytes, and the
//! place of its directory. A renamed file (rotation) is not a loss; a file that is shorter, or has other content where
//! the last record ended, is one. A device number is not compared over a restart: it may change with a reboot.

use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::hosts::embedded::notebook::NotebookPage;
use crate::hosts::embedded::place::MountPlace;
use crate::metrics::SINK_FILE_CUT_TOTAL;
use crate::model::Timestamp;

/// Bytes at the end of the file whose checksum is remembered.
const TAIL_BYTES: usize = 256;
/// How long health reports a truncated file: long enough for the next working day to begin.
const REPORTED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// Links followed in a chain; the system follows 40.
const LINKS_MAX: usize = 40;
/// Format of the page; one of a newer build is not read.
const FORMAT: u32 = 1;

/// The memory of a `file` sink.
#[derive(Debug)]
pub struct Memory {
    /// The sink's name in the configuration.
    pub sink: String,
    /// Its page.
    pub page: NotebookPage,
    /// For the time at which a loss was found.
    pub clock: Arc<dyn Clock>,
    /// Whether this run created the state, which then knows nothing about records already in the file.
    pub state_is_new: bool,
}

/// The stored data.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FileMemory {
    format: u32,
    /// The configured path; a sink with another path starts again.
    path: PathBuf,
    /// The file; `None` when this sink renamed it and has not written another yet.
    file: Option<FileIdentity>,
    /// Its length after the last sync.
    length: u64,
    /// How many of its last bytes `sum` covers.
    tail: usize,
    /// BLAKE3, hexadecimal.
    sum: String,
    /// Where its directory lay; `None` before the first write.
    place: Option<MountPlace>,
    /// The last loss found.
    found: Option<RecordedLoss>,
}

/// Which file it is. The system reuses a free inode for another file, whose creation time then differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    inode: u64,
    /// Nanoseconds; `None` if the file system has no creation time.
    born: Option<u64>,
}

impl FileIdentity {
    /// No file has it.
    const GONE: Self = Self { inode: u64::MAX, born: None };

    fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self { inode: metadata.ino(), born: born.and_then(|born| u64::try_from(born.as_nanos()).ok()) }
    }

    /// Whether a file of this identity is in `dir`.
    fn is_in(&self, dir: &Path) -> bool {
        let found = |entry: &DirEntry| {
            entry.ino() == self.inode && entry.metadata().is_ok_and(|metadata| Self::of(&metadata) == *self)
        };
        fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| found(&entry))
    }
}

/// A loss that was found, and is reported for a limited time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedLoss {
    at: Timestamp,
    what: String,
}

/// How a file differs from the stored data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Differs {
    /// It is as it was left, or it is another file and the old one is elsewhere.
    No,
    /// It ends before the last record of this sink.
    Shorter {
        /// How long it was.
        was: u64,
    },
    /// It is long enough but has other content there.
    Content {
        /// How long it was.
        was: u64,
    },
}

/// The memory of one sink, and its reports.
pub(super) struct SinkFileMemory {
    path: PathBuf,
    memory: Option<Memory>,
    known: Option<FileMemory>,
    /// The fault that the last check found, which may end with the next.
    passing: Option<String>,
    notices: watch::Sender<Option<String>>,
}

impl SinkFileMemory {
    pub(super) fn new(path: &Path, memory: Option<Memory>) -> Self {
        let page = memory.as_ref().and_then(|memory| memory.page.read());
        let known: Option<FileMemory> = page.and_then(|page| serde_json::from_slice(&page).ok());
        let known = known.filter(|known| known.format <= FORMAT && known.path == path);
        let remembered =
            Self { path: path.to_owned(), memory, known, passing: None, notices: watch::Sender::new(None) };
        remembered.publish_notice();
        remembered
    }

    pub(super) fn notices(&self) -> watch::Receiver<Option<String>> {
        self.notices.subscribe()
    }

    /// The place of the file when it was last written.
    pub(super) fn place(&self) -> Option<&MountPlace> {
        self.known.as_ref()?.place.as_ref()
    }

    /// Stores a group that was synced: `last` are its last bytes, which end at `length`.
    pub(super) fn written(&mut self, file: &Metadata, length: u64, last: &[u8]) {
        let tail = last.len().saturating_sub(TAIL_BYTES);
        let last = last.get(tail..).unwrap_or_default();
        self.remember(Some(FileIdentity::of(file)), length, last);
        if self.known.as_ref().is_some_and(|known| known.place.is_none()) {
            self.lies_at(place_of(&self.path).ok());
        }
        self.store();
    }

    /// Stores a file as it was found, before this sink writes to it.
    pub(super) fn accepted(&mut self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let length = metadata.len();
        let tail = length.min(TAIL_BYTES as u64);
        let mut last = vec![0; tail as usize];
        file.read_exact_at(&mut last, length - tail)?;
        self.remember(Some(FileIdentity::of(&metadata)), length, &last);
        Ok(())
    }

    fn remember(&mut self, file: Option<FileIdentity>, length: u64, last: &[u8]) {
        let path = &self.path;
        let known = self.known.get_or_insert_with(|| FileMemory {
            format: FORMAT,
            path: path.clone(),
            file,
            length,
            tail: 0,
            sum: String::new(),
            place: None,
            found: None,
        });
        (known.file, known.length, known.tail) = (file, length, last.len());
        known.sum = blake3::hash(last).to_hex().to_string();
    }

    /// Records that the file was renamed, by this sink or another program: the next one begins empty.
    pub(super) fn begins_anew(&mut self) {
        if let Some(known) = &mut self.known {
            (known.file, known.length, known.tail) = (None, 0, 0);
            known.sum = blake3::hash(&[]).to_hex().to_string();
        }
        self.store();
    }

    /// Records that the file was removed or replaced: the file there now is another one, whatever its inode.
    pub(super) fn is_gone(&mut self) {
        if let Some(known) = &mut self.known {
            known.file = Some(FileIdentity::GONE);
        }
    }

    /// Sets the place of the file's directory.
    pub(super) fn lies_at(&mut self, place: Option<MountPlace>) {
        if let (Some(known), Some(place)) = (&mut self.known, place) {
            known.place = Some(place);
        }
    }

    /// How `file` differs from the stored data.
    pub(super) fn compare(&self, file: &File) -> io::Result<Differs> {
        let Some(known) = &self.known else { return Ok(Differs::No) };
        let metadata = file.metadata()?;
        // Another file need not contain this sink's records: the old one was renamed, or moved away by its reader.
        let Some(left) = known.file else { return Ok(Differs::No) };
        if left != FileIdentity::of(&metadata) && (metadata.len() == 0 || left.is_in(&real_directory_of(&self.path))) {
            return Ok(Differs::No);
        }
        let was = known.length;
        if metadata.len() < was {
            return Ok(Differs::Shorter { was });
        }
        Ok(if self.holds_ours(file)? { Differs::No } else { Differs::Content { was } })
    }

    /// Whether this sink's last bytes are where they were written.
    fn holds_ours(&self, file: &File) -> io::Result<bool> {
        let Some(known) = &self.known else { return Ok(true) };
        if file.metadata()?.len() < known.length || known.tail as u64 > known.length || known.tail > TAIL_BYTES {
            return Ok(false);
        }
        let mut last = vec![0; known.tail];
        file.read_exact_at(&mut last, known.length - known.tail as u64)?;
        Ok(blake3::hash(&last).to_hex().as_str() == known.sum)
    }

    /// Whether `file` is the one this sink wrote to, wherever it is: the last record is in it.
    pub(super) fn is_ours(&self, file: &File) -> bool {
        self.known.as_ref().is_some_and(|known| known.tail > 0) && self.holds_ours(file).unwrap_or(false)
    }

    /// Reports that records were lost from the file: in the log, in health for a day, and in the metric.
    pub(super) fn report_cut(&mut self, differs: Differs, now: u64) {
        let path = self.path.display();
        let what = match differs {
            Differs::No => return,
            Differs::Shorter { was } => format!(
                "sink-file-shorter: `{path}` is shorter than it was after the last write ({was} bytes then, {now} now): \
                 records that were confirmed are gone from it (hint: {SHORTER_HINT})"
            ),
            Differs::Content { was } => format!(
                "sink-file-replaced: `{path}` is not the file that was written last ({was} bytes then, {now} now): \
                 records that were confirmed are not in it (hint: {SHORTER_HINT})"
            ),
        };
        if let Some(memory) = &self.memory {
            metrics::counter!(SINK_FILE_CUT_TOTAL, "sink" => memory.sink.clone()).increment(1);
        }
        self.report(what);
    }

    /// Reports that the state has no data about the records in the file.
    pub(super) fn report_unknown_records(&mut self, file: &File) {
        let is_new = self.memory.as_ref().is_some_and(|memory| memory.state_is_new);
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if !is_new || self.known.is_some() || length == 0 {
            return;
        }
        let path = self.path.display();
        self.report(format!(
            "state-new-beside-records: the state is new, and `{path}` has {length} bytes of records already: the state \
             was lost, or `data_dir` is not where it was (hint: {NEW_STATE_HINT})"
        ));
        let _ = self.accepted(file);
        self.store();
    }

    fn report(&mut self, what: String) {
        tracing::warn!("{what}");
        let at = self.memory.as_ref().map_or(Timestamp::UNIX_EPOCH, |memory| memory.clock.now());
        if self.known.is_none() {
            self.remember(None, 0, &[]);
        }
        if let Some(known) = &mut self.known {
            known.found = Some(RecordedLoss { at, what });
        }
        self.publish_notice();
    }

    /// Sets the current fault, which lasts as long as the next check finds it.
    pub(super) fn set_passing(&mut self, what: Option<String>) {
        if let Some(what) = what.as_ref().filter(|what| self.passing.as_ref() != Some(what)) {
            tracing::warn!("{what}");
        }
        self.passing = what;
        self.publish_notice();
    }

    fn publish_notice(&self) {
        let found = self.known.as_ref().and_then(|known| known.found.as_ref());
        let is_fresh = |found: &&RecordedLoss| {
            let now = self.memory.as_ref().map_or(found.at, |memory| memory.clock.now());
            now.duration_since(found.at) < REPORTED_FOR
        };
        let found = found.filter(is_fresh).map(|found| format!("{}; found {}, told for a day", found.what, found.at));
        let reported: Vec<&str> = self.passing.iter().chain(&found).map(String::as_str).collect();
        let reported = (!reported.is_empty()).then(|| reported.join("; "));
        self.notices.send_if_modified(|known| {
            let is_other = *known != reported;
            *known = reported;
            is_other
        });
    }

    pub(super) fn store(&self) {
        if let (Some(memory), Some(known)) = (&self.memory, &self.known)
            && let Ok(json) = serde_json::to_vec(known)
        {
            memory.page.write(Bytes::from(json));
        }
    }
}

/// The remedy for a file that lost records.
pub const SHORTER_HINT: &str = "rotate by renaming (logrotate: `create`, not `copytruncate`) or with `rotate_bytes`; \
                                after a restore from a backup fetch again what is missing: `m365-audit backfill -c FILE \
                                --from TIME --again`, TIME being that of the backup";

/// The remedy for a new state beside existing records.
pub const NEW_STATE_HINT: &str = "if that is not meant, stop, bring the state back (mount its file system, correct \
                                  `data_dir`, restore a backup) and start again; what the lost state still owed from \
                                  before `backfill_secs` comes by `m365-audit backfill -c FILE --from 7d`";

/// The place of the directory that a file is in, with links of the file resolved: the sink writes through a link onto a
/// mount, and would create a file beneath it when the mount vanished.
pub(super) fn place_of(path: &Path) -> io::Result<MountPlace> {
    MountPlace::of(&real_directory_of(path))
}

fn real_directory_of(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(target) => path = directory_of(&path).join(target),
            Err(_) => break,
        }
    }
    directory_of(&path)
}

/// The directory a file is in.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;
    use crate::host::{Batch, BatchBuilder};
    use crate::hosts::embedded::memory::MemoryStore;
    use crate::hosts::embedded::notebook::Notebook;
    use crate::hosts::embedded::sink::{BlockingSink, Written};
    use crate::hosts::file::{FILE_MODE, FileSink};
    use crate::model::ContentType;
    use crate::severity::Severity;

    fn batch(lines: &[&str]) -> Batch {
        let mut builder = BatchBuilder::default();
        for line in lines {
            builder.push_with(|out| {
                out.extend_from_slice(line.as_bytes());
                Some((Timestamp::UNIX_EPOCH, Severity::Info))
            });
        }
        builder.finish("s".into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
    }

    /// A sink's file and the data that outlives the sink.
    struct TestSink {
        dir: tempfile::TempDir,
        book: Notebook,
        clock: Arc<TestClock>,
        is_new: bool,
    }

    impl TestSink {
        fn new() -> Self {
            let clock = Arc::new(TestClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
            Self { dir: tempfile::tempdir().unwrap(), book: Notebook::default(), clock, is_new: false }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("out.ndjson")
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn open(&self) -> FileSink {
            let memory = Memory {
                sink: "out".into(),
                page: self.book.page("out"),
                clock: self.clock.clone(),
                state_is_new: self.is_new,
            };
            FileSink::open_remembering(self.path(), FILE_MODE, memory).unwrap()
        }

        /// A file of ten records, written and closed.
        fn written(&self) {
            let mut sink = self.open();
            for n in 0..10 {
                write(&mut sink, &format!("{{\"n\":{n}}}"));
            }
            assert_eq!(notice(&sink), None);
        }

        fn page(&self) -> FileMemory {
            serde_json::from_slice(&self.book.page("out").read().unwrap()).unwrap()
        }
    }

    fn write(sink: &mut FileSink, line: &str) {
        assert_eq!(sink.write(&[batch(&[line])]), [Written::Delivered], "{line}");
    }

    fn notice(sink: &FileSink) -> Option<String> {
        sink.notices().unwrap().borrow_and_update().clone()
    }

    fn slug(notice: Option<String>) -> Option<String> {
        notice.map(|text| text.split(':').next().unwrap().to_owned())
    }

    fn cut(path: &Path, length: u64) {
        File::options().write(true).open(path).unwrap().set_len(length).unwrap();
    }

    /// A change of the file, and whether it loses records.
    type Case = (&'static str, fn(&TestSink), Option<&'static str>);

    const CASES: &[Case] = &[
        ("nothing", |_| {}, None),
        ("cut to a part", |p| cut(&p.path(), 30), Some("sink-file-shorter")),
        ("cut to a part of the first record", |p| cut(&p.path(), 3), Some("sink-file-shorter")),
        ("cut to nothing", |p| cut(&p.path(), 0), Some("sink-file-shorter")),
        (
            "copytruncate",
            |p| {
                fs::copy(p.path(), p.at("out.ndjson.1")).unwrap();
                cut(&p.path(), 0);
            },
            Some("sink-file-shorter"),
        ),
        (
            "appended to by another program, in the middle of its line",
            |p| {
                let mut file = File::options().append(true).open(p.path()).unwrap();
                std::io::Write::write_all(&mut file, b"{\"theirs\":").unwrap();
            },
            None,
        ),
        ("renamed", |p| fs::rename(p.path(), p.at("out.ndjson.1")).unwrap(), None),
        (
            "renamed, and an empty one made",
            |p| {
                fs::rename(p.path(), p.at("out.ndjson.1")).unwrap();
                fs::write(p.path(), "").unwrap();
            },
            None,
        ),
        ("hard-linked", |p| fs::hard_link(p.path(), p.at("again")).unwrap(), None),
        (
            "linked away",
            |p| {
                fs::hard_link(p.path(), p.at("out.ndjson.1")).unwrap();
                fs::remove_file(p.path()).unwrap();
            },
            None,
        ),
        ("removed by whoever has read it", |p| fs::remove_file(p.path()).unwrap(), None),
        (
            "replaced by an older backup",
            |p| {
                let text = fs::read(p.path()).unwrap();
                fs::write(p.at("backup"), &text[..40]).unwrap();
                fs::rename(p.at("backup"), p.path()).unwrap();
            },
            Some("sink-file-shorter"),
        ),
        (
            "replaced by a copy of itself",
            |p| {
                fs::copy(p.path(), p.at("copy")).unwrap();
                fs::rename(p.at("copy"), p.path()).unwrap();
            },
            None,
        ),
        (
            "replaced by another of the same length",
            |p| {
                let text = fs::read_to_string(p.path()).unwrap().replace('n', "m");
                fs::write(p.at("other"), text).unwrap();
                fs::rename(p.at("other"), p.path()).unwrap();
            },
            Some("sink-file-replaced"),
        ),
        (
            "replaced by a longer one",
            |p| {
                fs::write(p.at("other"), "{\"other\":1}\n".repeat(50)).unwrap();
                fs::rename(p.at("other"), p.path()).unwrap();
            },
            Some("sink-file-replaced"),
        ),
    ];

    #[test]
    fn a_file_that_lost_records_is_told_at_the_next_start_and_one_that_was_rotated_is_not() {
        for (what, done, expected) in CASES {
            let place = TestSink::new();
            place.written();
            done(&place);
            let mut sink = place.open();
            assert_eq!(slug(notice(&sink)).as_deref(), *expected, "{what}");
            let before = fs::metadata(place.path()).unwrap().len();
            write(&mut sink, "{\"after\":1}");
            assert_eq!(fs::metadata(place.path()).unwrap().len(), before + 12, "{what}: nothing is overwritten");
            // Reported once, and for a day, whatever is started meanwhile.
            drop(sink);
            assert_eq!(slug(notice(&place.open())).as_deref(), *expected, "{what}, at the second start");
            place.clock.advance(std::time::Duration::from_secs(24 * 3600));
            assert_eq!(notice(&place.open()), None, "{what}, a day later");
        }
    }

    #[test]
    fn a_file_that_lost_records_is_told_while_running_by_the_next_write() {
        for (what, done, expected) in CASES {
            let place = TestSink::new();
            let mut sink = place.open();
            for n in 0..10 {
                write(&mut sink, &format!("{{\"n\":{n}}}"));
            }
            done(&place);
            write(&mut sink, "{\"after\":1}");
            assert_eq!(slug(notice(&sink)).as_deref(), *expected, "{what}");
            write(&mut sink, "{\"after\":2}");
            let text = fs::read_to_string(place.path()).unwrap();
            let last: Vec<&str> = text.lines().rev().take(2).collect();
            assert_eq!(last, ["{\"after\":2}", "{\"after\":1}"], "{what}: each on a line of its own: {text}");
            assert!(text.ends_with('\n'), "{what}: {text}");
        }
    }

    #[test]
    fn a_cut_is_counted_once() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let place = TestSink::new();
            place.written();
            cut(&place.path(), 20);
            let mut sink = place.open();
            sink.look();
            write(&mut sink, "{}");
            drop(sink);
            drop(place.open());
        });
        let text = recorder.handle().render();
        assert!(text.contains("m365_audit_sink_file_cut_total{sink=\"out\"} 1\n"), "{text}");
    }

    #[test]
    fn a_quiet_sink_looks_at_its_file_and_says_what_it_finds() {
        let place = TestSink::new();
        let mut sink = place.open();
        write(&mut sink, "{\"n\":1}");
        sink.look();
        assert_eq!(notice(&sink), None);
        cut(&place.path(), 0);
        sink.look();
        let reported = notice(&sink).unwrap();
        assert!(reported.contains("sink-file-shorter") && reported.contains("8 bytes then, 0 now"), "{reported}");
        assert!(reported.contains("copytruncate") && reported.contains("backfill"), "{reported}");
        // A check creates nothing and keeps reporting until the file is as expected.
        fs::remove_file(place.path()).unwrap();
        sink.look();
        assert!(!place.path().exists());
        fs::create_dir(place.path()).unwrap();
        sink.look();
        assert!(notice(&sink).unwrap().starts_with("sink-file-not-regular"));
        assert!(matches!(&sink.write(&[batch(&["1"])])[..], [Written::Refused { why, .. }] if why.contains("hint: ")));
        fs::remove_dir(place.path()).unwrap();
        write(&mut sink, "{\"n\":2}");
        assert_eq!(slug(notice(&sink)).as_deref(), Some("sink-file-shorter"));
    }

    #[test]
    fn a_file_that_was_cut_and_grew_past_its_old_length_is_told() {
        let place = TestSink::new();
        place.written();
        cut(&place.path(), 0);
        fs::write(place.path(), "{\"by\":\"another\"}\n".repeat(40)).unwrap();
        assert_eq!(slug(notice(&place.open())).as_deref(), Some("sink-file-replaced"));
    }

    #[test]
    fn our_own_rotation_is_no_loss_also_when_it_was_the_last_thing_done() {
        let place = TestSink::new();
        let rotation =
            || super::super::Rotation { bytes: Some(8), age: None, keep: Some(1), clock: place.clock.clone() };
        for _ in 0..3 {
            let mut sink = place.open().rotating(rotation());
            for n in 0..3 {
                write(&mut sink, &format!("{{\"n\":{n}}}"));
            }
            assert_eq!(notice(&sink), None);
        }
    }

    #[test]
    fn a_new_state_beside_records_is_told_and_beside_none_is_not() {
        let mut place = TestSink::new();
        place.is_new = true;
        assert_eq!(notice(&place.open()), None, "a first run");
        place.book = Notebook::default();
        fs::write(place.path(), "{\"Id\":\"1\"}\n").unwrap();
        let reported = notice(&place.open()).unwrap();
        assert!(reported.starts_with("state-new-beside-records:") && reported.contains("11 bytes"), "{reported}");
        place.is_new = false;
        assert_eq!(slug(notice(&place.open())).as_deref(), Some("state-new-beside-records"), "for a day");
        place.book = Notebook::default();
        assert_eq!(notice(&place.open()), None, "a state of an older build knows nothing of files");
    }

    #[test]
    fn nothing_is_written_beneath_a_mount_that_went_away_without_a_word() {
        let place = TestSink::new();
        place.written();
        let length = fs::metadata(place.path()).unwrap().len();
        // As if the file had been on a mount that is now gone: only the directory beneath is there.
        let mount = |place: &TestSink, file: Option<&str>| {
            let mut known = place.page();
            let directory = Some((1, 1));
            let mount = Some(place.dir.path().to_owned());
            known.place = Some(crate::hosts::embedded::place::MountPlace { directory, mount });
            place.book.page("out").write(serde_json::to_vec(&known).unwrap().into());
            fs::remove_file(place.path()).unwrap();
            if let Some(text) = file {
                fs::write(place.path(), text).unwrap();
            }
        };
        for file in [None, Some("{\"left\":\"beneath by an older build\"}\n")] {
            mount(&place, file);
            let mut sink = place.open();
            let reported = notice(&sink).unwrap();
            assert!(
                reported.starts_with("sink-file-mount-gone:") && reported.contains("install -D -m 600"),
                "{reported}"
            );
            let refused = sink.write(&[batch(&["1"])]);
            assert!(matches!(&refused[..], [Written::Refused { why, .. }] if why.contains("mount `")), "{refused:?}");
            sink.look();
            assert!(notice(&sink).unwrap().starts_with("sink-file-mount-gone:"));
            assert_eq!(fs::read_to_string(place.path()).ok().as_deref(), file, "nothing was written");
            // The operator's consent is an empty file.
            fs::write(place.path(), "").unwrap();
            write(&mut sink, "{\"n\":1}");
            assert_eq!(notice(&sink), None);
            drop(sink);
            assert_eq!(notice(&place.open()), None, "the new place is known");
        }
        assert!(length > 0);
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_followed_to_where_it_lies() {
        let place = TestSink::new();
        let real = place.at("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("real/there.ndjson", place.at("second")).unwrap();
        std::os::unix::fs::symlink(place.at("second"), place.path()).unwrap();
        let mut sink = place.open();
        write(&mut sink, "{}");
        let metadata = fs::metadata(&real).unwrap();
        assert_eq!(place.page().place.unwrap().directory, Some((metadata.dev(), metadata.ino())));
        fs::rename(real.join("there.ndjson"), real.join("there.ndjson.1")).unwrap();
        write(&mut sink, "{}");
        drop(sink);
        fs::rename(real.join("there.ndjson"), real.join("there.ndjson.2")).unwrap();
        assert_eq!(notice(&place.open()), None, "rotated where it lies");
    }

    #[test]
    fn our_own_rotation_leaves_a_link_and_renames_what_it_leads_to() {
        let place = TestSink::new();
        let real = place.at("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(real.join("there.ndjson"), place.path()).unwrap();
        let rotation = super::super::Rotation { bytes: Some(8), age: None, keep: Some(2), clock: place.clock.clone() };
        let mut sink = place.open().rotating(rotation);
        for n in 0..5 {
            write(&mut sink, &format!("{{\"n\":{n}}}"));
        }
        assert_eq!(notice(&sink), None);
        assert!(place.path().is_symlink());
        let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!((names(place.dir.path()), names(&real)), (2, 3), "one, and the two that are kept");
        assert_eq!(fs::read_to_string(real.join("there.ndjson")).unwrap(), "{\"n\":4}\n");
    }

    #[tokio::test]
    async fn what_is_known_of_a_file_is_stored_with_the_commit_after_its_write() {
        let place = TestSink::new();
        let memory = Arc::new(MemoryStore::new());
        let store = place.book.kept_in(memory.clone());
        let mut sink = place.open();
        write(&mut sink, "{\"n\":1}");
        assert!(memory.entries().is_empty(), "no commit of its own");
        store.commit(Vec::new()).await.unwrap();
        let known: FileMemory = serde_json::from_slice(&memory.entries()["m365_audit_sinks/v1/out"]).unwrap();
        assert_eq!((known.length, known.file), (8, Some(FileIdentity::of(&fs::metadata(place.path()).unwrap()))));
    }
}
