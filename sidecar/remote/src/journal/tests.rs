//! A log through truncation and flipped bits at every position, crashes at every byte, a full disk, and many records.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc;

use bytes::Bytes;
use caddy_engine::strategy::behind::{Journal, JournalError, Ledger, Record, Write};
use parking_lot::RwLock;
use proptest::prelude::*;

use super::format::{self, Item};
use super::recovery::scan;
use super::{LogConfig, LogError, Recovered, SegmentLog};

const SALT: u64 = 0x5a17;

/// Written while another process runs: at its start it has all open files of this one, and so the locks of logs that are
/// closed meanwhile.
static ALONE: RwLock<()> = RwLock::new(());

fn record(seq: u64, key: &str, value: Option<&str>) -> Record<Bytes, Bytes> {
    let write = value.map_or(Write::Delete, |value| Write::Put(Bytes::copy_from_slice(value.as_bytes())));
    Record { seq, key: Bytes::copy_from_slice(key.as_bytes()), write }
}

/// A segment, its items, and where each of them ends.
fn segment() -> (Vec<u8>, Vec<Item>, Vec<usize>) {
    let mut items = vec![
        Item::Record(record(1, "a", Some("one"))),
        Item::Record(record(2, "", Some(""))),
        Item::Record(record(3, "b", None)),
        Item::Settled(vec![1, 2]),
        Item::Record(record(4, "a", Some(&"x".repeat(100)))),
    ];
    // A value that is itself a record, of another salt: nobody may take it for one.
    let mut forged = Vec::new();
    format::write_record(&mut forged, SALT + 1, &record(99, "forged", Some("value")));
    let value = Write::Put(Bytes::from(forged));
    items.push(Item::Record(Record { seq: 5, key: Bytes::from_static(b"c"), write: value }));
    items.push(Item::Settled(vec![4]));
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for item in &items {
        match item {
            Item::Record(record) => format::write_record(&mut bytes, SALT, record),
            Item::Settled(seqs) => format::write_settled(&mut bytes, SALT, seqs),
        }
        ends.push(bytes.len());
    }
    (bytes, items, ends)
}

#[test]
fn a_segment_cut_anywhere_gives_the_records_before_the_cut() {
    let (bytes, items, ends) = segment();
    for length in 0..=bytes.len() {
        let scanned = scan(&Bytes::copy_from_slice(&bytes[..length]), SALT);
        let whole = ends.iter().take_while(|end| **end <= length).count();
        assert_eq!(scanned.items, items[..whole], "cut at {length}");
        let torn = whole.checked_sub(1).map_or(0, |last| ends[last]) < length;
        assert_eq!((scanned.damaged, scanned.lost), (usize::from(torn), 0), "cut at {length}");
    }
}

#[test]
fn a_flipped_bit_costs_the_record_it_is_in_and_invents_none() {
    let (bytes, items, ends) = segment();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let hit = ends.iter().take_while(|end| **end <= bit / 8).count();
        let mut left = items.clone();
        let _ = left.remove(hit);
        let scanned = scan(&Bytes::from(damaged), SALT);
        let is_within = hit + 1 < items.len();
        assert_eq!((scanned.items, scanned.damaged, scanned.lost), (left, 1, usize::from(is_within)), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn whatever_stands_in_a_file_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(scan(&Bytes::from(bytes), SALT).items.is_empty());
    }
}

// === the log ===

struct Log {
    inner: SegmentLog,
    told: mpsc::Receiver<(u64, Result<(), JournalError>)>,
    tell: mpsc::Sender<(u64, Result<(), JournalError>)>,
}

impl Log {
    fn open(config: &LogConfig) -> (Self, Recovered) {
        let _alone = ALONE.read();
        let (log, recovered) = SegmentLog::open(config).unwrap();
        let (tell, told) = mpsc::channel();
        (Self { inner: log, told, tell }, recovered)
    }

    fn append(&self, record: Record<Bytes, Bytes>) {
        let (tell, seq) = (self.tell.clone(), record.seq);
        self.inner.append(vec![record], Box::new(move |result| tell.send((seq, result)).unwrap()));
    }

    fn kept(&self) -> (u64, Result<(), JournalError>) {
        self.told.recv().unwrap()
    }
}

fn small(directory: &tempfile::TempDir) -> LogConfig {
    LogConfig { segment_bytes: 200, ..LogConfig::new(directory.path().join("log")) }
}

fn files(config: &LogConfig) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(&config.directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|suffix| suffix == "wb1")).collect();
    files.sort();
    files
}

#[test]
fn what_was_kept_and_not_stored_is_found_again_the_newest_of_each_key() {
    let directory = tempfile::tempdir().unwrap();
    let config = small(&directory);
    let (log, recovered) = Log::open(&config);
    assert!(recovered.records.is_empty());
    log.append(record(1, "a", Some("1")));
    log.append(record(2, "b", Some("2")));
    log.append(record(3, "a", Some("3")));
    log.inner.replaced(&[(1, 3)]);
    log.append(record(4, "c", None));
    (1..=4).for_each(|seq| assert_eq!(log.kept(), (seq, Ok(()))));
    log.inner.settled(&[2]);
    assert!(matches!(SegmentLog::open(&config), Err(LogError::InUse { .. })));
    drop(log);
    let (log, recovered) = Log::open(&config);
    assert_eq!(recovered.records, [record(3, "a", Some("3")), record(4, "c", None)]);
    assert_eq!(recovered.damaged, 0);
    log.inner.settled(&[3, 4]);
    drop(log);
    assert_eq!(files(&config), [] as [std::path::PathBuf; 0], "nothing is needed, nothing is left");
}

#[test]
fn nobody_is_told_that_a_write_is_kept_before_it_was_synced() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&small(&directory));
    for seq in 1..=5 {
        let before = log.inner.stats().syncs;
        log.append(record(seq, "a", Some("1")));
        assert_eq!(log.kept(), (seq, Ok(())));
        assert!(log.inner.stats().syncs > before, "{seq}");
    }
}

#[test]
fn one_that_is_settled_does_not_let_an_older_one_of_its_key_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let config = small(&directory);
    let (log, _) = Log::open(&config);
    log.append(record(1, "kept", Some("1")));
    let mut seq = 1;
    for round in 0..200 {
        for key in ["x", "y"] {
            seq += 1;
            log.append(record(seq, key, Some(&format!("{round}"))));
            log.inner.settled(&[seq]);
        }
    }
    (1..=seq).for_each(|_| assert_eq!(log.kept().1, Ok(())));
    drop(log);
    let (log, recovered) = Log::open(&config);
    assert_eq!(recovered.records, [record(1, "kept", Some("1"))]);
    assert!(log.inner.stats().segments < 12, "useless segments go: {:?}", log.inner.stats());
}

#[test]
fn a_crash_at_any_byte_loses_nothing_that_was_kept() {
    let directory = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 1 << 20, ..small(&directory) };
    let (log, _) = Log::open(&config);
    for seq in 1..=6 {
        log.append(record(seq, &format!("key {}", seq % 4), Some(&"v".repeat(seq as usize))));
        assert_eq!(log.kept(), (seq, Ok(())));
    }
    let written = files(&config);
    let bytes = fs::read(&written[0]).unwrap();
    drop(log);
    // What a crash leaves: some part of the file. What was kept by then is what was written whole by then.
    for length in 0..=bytes.len() {
        fs::write(&written[0], &bytes[..length]).unwrap();
        let (log, recovered) = Log::open(&config);
        let mut expected = BTreeMap::new();
        let mut at = 0;
        for seq in 1..=6u64 {
            let one = record(seq, &format!("key {}", seq % 4), Some(&"v".repeat(seq as usize)));
            let mut out = Vec::new();
            format::write_record(&mut out, 0, &one);
            at += out.len();
            if at <= length {
                let _ = expected.insert(one.key.clone(), one);
            }
        }
        let mut expected: Vec<_> = expected.into_values().collect();
        expected.sort_by_key(|one| one.seq);
        assert_eq!(recovered.records, expected, "crash at {length}");
        // And it can be written to again.
        log.append(record(100, "new", None));
        assert_eq!(log.kept(), (100, Ok(())));
        log.inner.settled(&(1..=100).collect::<Vec<_>>());
        drop(log);
        assert!(files(&config).is_empty());
    }
}

/// What the disk of [`is_on_a_small_disk`] holds.
const SMALL: usize = 64 << 10;

/// Runs a test of this file once more where the disk has so many bytes: the limit of a process's files, in one of its own.
/// Whether this is that one.
fn is_on_a_small_disk(test: &str) -> bool {
    if std::env::var_os("CADDY_LOG_TEST_FULL").is_some() {
        return true;
    }
    let script = "ulimit -S -f 64; trap '' XFSZ; exec \"$0\" \"$@\"";
    let _other = ALONE.write();
    let done = std::process::Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("journal::tests::{test}"), "--nocapture"])
        .env("CADDY_LOG_TEST_FULL", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Takes what is left of the disk, to the last byte, with a record of `key`.
fn fill(log: &Log, seq: u64, key: &str) {
    let taken = log.inner.stats().bytes as usize;
    let beside = 8 + 13 + key.len();
    log.append(record(seq, key, Some(&"v".repeat(SMALL - taken - beside))));
    assert_eq!(log.kept(), (seq, Ok(())));
    assert_eq!(log.inner.stats().bytes as usize, SMALL);
}

#[test]
fn a_write_that_could_not_be_kept_does_not_take_an_older_one_away_before_it_is_stored() {
    if !is_on_a_small_disk("a_write_that_could_not_be_kept_does_not_take_an_older_one_away_before_it_is_stored") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = small(&directory);
    let (log, _) = Log::open(&config);
    log.append(record(1, "a", Some("old")));
    assert_eq!(log.kept(), (1, Ok(())));
    let replace = |log: &Log, old, seq| {
        log.append(record(seq, "a", Some(&"v".repeat(SMALL))));
        log.inner.replaced(&[(old, seq)]);
        assert!(log.kept().1.is_err());
    };
    replace(&log, 1, 2);
    replace(&log, 2, 3);
    log.append(record(4, "b", None));
    assert_eq!(log.kept(), (4, Ok(())));
    drop(log);
    let (log, recovered) = Log::open(&config);
    assert_eq!(recovered.records, [record(1, "a", Some("old")), record(4, "b", None)]);
    // The same again, and the store gets what was not kept.
    replace(&log, 1, 5);
    replace(&log, 5, 6);
    log.inner.settled(&[6]);
    drop(log);
    assert_eq!(Log::open(&config).1.records, [record(4, "b", None)]);
}

#[test]
fn what_a_full_disk_did_not_let_the_log_say_is_said_when_there_is_room() {
    if !is_on_a_small_disk("what_a_full_disk_did_not_let_the_log_say_is_said_when_there_is_room") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = LogConfig::new(directory.path().join("log"));
    let (log, _) = Log::open(&config);
    log.append(record(1, "a", Some("old")));
    assert_eq!(log.kept(), (1, Ok(())));
    fill(&log, 2, "b");
    log.inner.settled(&[1]);
    while log.inner.stats().failures == 0 {
        std::thread::yield_now();
    }
    let id = std::process::id().to_string();
    let raised = std::process::Command::new("prlimit").args(["--pid", &id, "--fsize=unlimited:"]).status().unwrap();
    assert!(raised.success());
    log.append(record(3, "c", None));
    assert_eq!(log.kept(), (3, Ok(())));
    drop(log);
    let recovered = Log::open(&config).1.records;
    assert_eq!(recovered.iter().map(|record| record.seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn what_cannot_be_written_is_reported_and_what_was_kept_stays() {
    let directory = tempfile::tempdir().unwrap();
    let config = LogConfig::new(directory.path().join("log"));
    if !is_on_a_small_disk("what_cannot_be_written_is_reported_and_what_was_kept_stays") {
        return;
    }
    let (log, _) = Log::open(&config);
    let value = "v".repeat(10_000);
    let mut kept = Vec::new();
    let mut refused = 0;
    for seq in 1..=20 {
        log.append(record(seq, &format!("{seq}"), Some(&value)));
        match log.kept() {
            (_, Ok(())) => kept.push(seq),
            (_, Err(error)) => {
                refused += 1;
                assert!(error.reason.contains("log failed"), "{error}");
            }
        }
    }
    assert!(kept.len() >= 6 && refused > 0, "{kept:?} {refused}");
    // A smaller one fits still: the torn part of the large one was cut off.
    log.append(record(21, "small", None));
    assert_eq!(log.kept(), (21, Ok(())));
    kept.push(21);
    // Of what came together either all is there or nothing.
    let together = (22..=30).map(|seq| record(seq, &format!("{seq}"), Some(&value[..2_000]))).collect();
    let tell = log.tell.clone();
    log.inner.append(together, Box::new(move |result| tell.send((22, result)).unwrap()));
    assert!(log.kept().1.is_err());
    drop(log);
    let (_log, recovered) = Log::open(&config);
    assert_eq!(recovered.records.iter().map(|record| record.seq).collect::<Vec<_>>(), kept);
    assert_eq!(recovered.damaged, 0);
}

#[test]
fn a_log_of_another_format_is_not_written_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = small(&directory);
    let log = Log::open(&config).0;
    log.append(record(1, "a", Some("1")));
    drop(log);
    let ours = files(&config).remove(0);
    fs::write(config.directory.join("notes.wbx"), "an unknown file").unwrap();
    assert_eq!(Log::open(&config).1.records.len(), 1);
    let theirs = ours.with_extension("wb2");
    fs::rename(&ours, &theirs).unwrap();
    let alone = ALONE.read();
    let error = SegmentLog::open(&config).err().unwrap().to_string();
    assert!(error.contains("wb2") && error.contains("the version that wrote it"), "{error}");
    drop(alone);
    fs::rename(&theirs, &ours).unwrap();
    assert_eq!(Log::open(&config).1.records.len(), 1);
}
