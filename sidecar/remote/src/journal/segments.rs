//! The files: one that is written, and those before it that are needed still.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use foldhash::fast::RandomState as QuickState;

use super::format::Item;
use super::recovery::{Remains, scan};
use super::{LogConfig, LogError, LogStats, Recovered};

/// Files are called `<index>-<salt>.wb1`, both in hexadecimal.
const SUFFIX: &str = ".wb1";
/// What the names of segments in whichever format end with, in front of its number.
const ANY_FORMAT: &str = ".wb";

/// See the module. Its caller decides when to sync.
#[derive(Debug)]
pub(super) struct Segments {
    config: LogConfig,
    /// The oldest first; the last is the one that is written, if `file` is there.
    all: VecDeque<Segment>,
    file: Option<File>,
    /// Where the newest copy of each record is that is still needed.
    needed: HashMap<u64, Needed, QuickState>,
    /// The bytes of those that this process wrote.
    needed_bytes: u64,
    next_index: u64,
    pub(super) stats: LogStats,
}

#[derive(Debug, Clone, Copy)]
struct Needed {
    /// The segment's index.
    index: u64,
    /// What it counts for.
    bytes: u64,
}

#[derive(Debug)]
struct Segment {
    index: u64,
    salt: u64,
    bytes: u64,
    /// How many of the records that are needed have their newest copy here.
    needed: usize,
}

impl Segments {
    /// Reads what is there. Nothing is appended to what another process wrote: it may end in the middle of a record.
    pub(super) fn recover(config: &LogConfig) -> Result<(Self, Recovered), LogError> {
        let mut segments = Self {
            config: config.clone(),
            all: VecDeque::new(),
            file: None,
            needed: HashMap::default(),
            needed_bytes: 0,
            next_index: 1,
            stats: LogStats::default(),
        };
        let mut remains = Remains::default();
        let mut seqs = Vec::new();
        for (index, salt) in segments.list()? {
            let path = segments.path(index, salt);
            let bytes = fs::read(&path).map_err(|source| LogError::Read { path, source })?;
            let bytes = Bytes::from(bytes);
            seqs.extend(remains.add(scan(&bytes, salt)).into_iter().map(|seq| (seq, index)));
            segments.all.push_back(Segment { index, salt, bytes: bytes.len() as u64, needed: 0 });
            segments.next_index = index + 1;
        }
        let (damaged, lost) = (remains.damaged, remains.lost);
        let records = remains.records();
        let wanted: HashSet<u64> = records.iter().map(|record| record.seq).collect();
        for (seq, index) in seqs.into_iter().filter(|(seq, _)| wanted.contains(seq)) {
            segments.need(seq, Needed { index, bytes: 0 });
        }
        segments.delete_useless();
        Ok((segments, Recovered { records, damaged, lost }))
    }

    fn list(&self) -> Result<Vec<(u64, u64)>, LogError> {
        let failed = |source| LogError::List { path: self.config.directory.clone(), source };
        let mut indices = Vec::new();
        for entry in fs::read_dir(&self.config.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().unwrap_or_default();
            // Newer writes must not reach the store before those.
            if !name.ends_with(SUFFIX) && name.rsplit_once(ANY_FORMAT).is_some_and(|(_, format)| is_number(format)) {
                return Err(LogError::OtherFormat { path: self.config.directory.join(name) });
            }
            let parts = name.strip_suffix(SUFFIX).and_then(|name| name.split_once('-'));
            let number = |hex| u64::from_str_radix(hex, 16).ok();
            indices.extend(parts.and_then(|(index, salt)| Some((number(index)?, number(salt)?))));
        }
        indices.sort_unstable();
        Ok(indices)
    }

    fn path(&self, index: u64, salt: u64) -> PathBuf {
        self.config.directory.join(format!("{index:016x}-{salt:016x}{SUFFIX}"))
    }

    pub(super) fn stats(&self) -> LogStats {
        let bytes = self.all.iter().map(|segment| segment.bytes).sum();
        LogStats { segments: self.all.len(), bytes, ..self.stats }
    }

    // === writing ===

    /// The salt of the segment that is written; a new one is begun if the last is long enough, or had a fault.
    pub(super) fn open(&mut self) -> io::Result<u64> {
        let current = self.all.back().filter(|segment| segment.bytes < self.config.segment_bytes);
        if let (Some(_), Some(segment)) = (&self.file, current) {
            return Ok(segment.salt);
        }
        if let Some(file) = self.file.take() {
            file.sync_data()?;
        }
        let (index, salt) = (self.next_index, RandomState::new().hash_one(self.next_index));
        let path = self.path(index, salt);
        let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
        // Taken also if the rest fails: a file of that name is there.
        self.next_index += 1;
        // The file's name must survive, too.
        let begun = File::open(&self.config.directory).and_then(|directory| directory.sync_all());
        if let Err(error) = begun {
            // One that cannot be removed is empty.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        self.file = Some(file);
        self.all.push_back(Segment { index, salt, bytes: 0, needed: 0 });
        Ok(salt)
    }

    /// Appends bytes; after an error nothing of them is there.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(file), Some(segment)) = (&mut self.file, self.all.back_mut()) else {
            return Err(io::Error::other("no segment is open"));
        };
        if let Err(error) = file.write_all(bytes) {
            let (end, is_needed) = (segment.bytes, segment.needed > 0);
            self.cut(end);
            if !is_needed {
                // The next goes into another file, so that this one can be deleted: the room may be in there.
                self.file = None;
            }
            return Err(error);
        }
        segment.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Takes back what was written beyond `end`.
    pub(super) fn cut(&mut self, end: u64) {
        let Some(file) = &mut self.file else { return };
        let cut = file.set_len(end).and_then(|()| io::Seek::seek(file, io::SeekFrom::Start(end)));
        if cut.is_err() {
            // What was written in part is skipped when the log is read; the next goes into another file.
            self.file = None;
        }
    }

    /// Where the next bytes go.
    pub(super) fn end(&self) -> u64 {
        self.all.back().map_or(0, |segment| segment.bytes)
    }

    /// Makes what was appended survive the machine.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        self.stats.syncs += 1;
        let synced = file.sync_data();
        if synced.is_err() {
            // After a failed fsync nobody knows what is on the disk (Rebello et al., ATC 2020): nothing more goes there.
            self.file = None;
        }
        synced
    }

    // === what is needed ===

    /// A record of so many bytes was appended to the segment that is written.
    pub(super) fn appended(&mut self, seq: u64, bytes: u64) {
        if let Some(index) = self.all.back().map(|segment| segment.index) {
            self.need(seq, Needed { index, bytes });
        }
    }

    /// A copy of a record was.
    pub(super) fn moved(&mut self, seq: u64) {
        let bytes = self.needed.get(&seq).map_or(0, |needed| needed.bytes);
        self.appended(seq, bytes);
    }

    fn need(&mut self, seq: u64, needed: Needed) {
        self.release(seq);
        self.needed.insert(seq, needed);
        self.needed_bytes += needed.bytes;
        if let Some(segment) = self.segment(needed.index) {
            segment.needed += 1;
        }
    }

    /// Whether a record is in the log, and needed.
    pub(super) fn needs(&self, seq: u64) -> bool {
        self.needed.contains_key(&seq)
    }

    /// A record is not needed any more.
    pub(super) fn release(&mut self, seq: u64) {
        let Some(Needed { index, bytes }) = self.needed.remove(&seq) else { return };
        self.needed_bytes -= bytes;
        if let Some(segment) = self.segment(index) {
            segment.needed -= 1;
        }
    }

    fn segment(&mut self, index: u64) -> Option<&mut Segment> {
        let at = self.all.binary_search_by_key(&index, |segment| segment.index).ok()?;
        self.all.get_mut(at)
    }

    /// Nothing more is written.
    pub(super) fn close(&mut self) {
        self.file = None;
        self.delete_useless();
    }

    /// Deletes segments from the oldest on, up to the first that is needed or written.
    pub(super) fn delete_useless(&mut self) {
        while let Some(oldest) = self.all.front() {
            let is_written = self.file.is_some() && self.all.len() == 1;
            if oldest.needed > 0 || is_written || fs::remove_file(self.path(oldest.index, oldest.salt)).is_err() {
                return;
            }
            let _ = self.all.pop_front();
        }
    }

    /// What is needed of the oldest segment, if most of all bytes are useless and that one is not written any more.
    pub(super) fn worth_moving(&self) -> Option<Vec<Item>> {
        let stats = self.stats();
        let oldest = self.all.front()?;
        if self.all.len() < 4 || stats.bytes < 2 * self.needed_bytes + 2 * self.config.segment_bytes {
            return None;
        }
        let bytes = Bytes::from(fs::read(self.path(oldest.index, oldest.salt)).ok()?);
        let items = scan(&bytes, oldest.salt).items.into_iter();
        let is_here = |seq: u64| self.needed.get(&seq).is_some_and(|needed| needed.index == oldest.index);
        let is_needed = |item: &Item| matches!(item, Item::Record(record) if is_here(record.seq));
        Some(items.filter(is_needed).collect())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}
