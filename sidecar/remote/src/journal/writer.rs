//! One commit: everything that has come is written, synced once, and answered.
//!
//! Where the volume is full, what is written down must not forget more than it knows: a record that a write has replaced
//! which is not in the log is needed until the store has that write, and what could not be said is said with the next commit.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use bytes::Bytes;
use caddy_engine::{
    crash,
    strategy::behind::{Done, JournalError, Record},
};
use foldhash::fast::RandomState as QuickState;

use super::format::{self, Item};
use super::segments::Segments;
use super::{LogStats, unkept};

/// Bytes of records that are put together for one write to the file: what comes together may have as much as may wait.
const PIECE: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };

/// What the thread is told.
pub(super) enum Command {
    Append { records: Vec<Record<Bytes, Bytes>>, done: Done },
    Settled(Vec<u64>),
    Replaced(Vec<(u64, u64)>),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Append { records, .. } => f.debug_tuple("Append").field(&records.len()).finish(),
            Self::Settled(seqs) => f.debug_tuple("Settled").field(&seqs.len()).finish(),
            Self::Replaced(pairs) => f.debug_tuple("Replaced").field(&pairs.len()).finish(),
        }
    }
}

impl Command {
    /// Whether the thread is woken for it: what merely frees space waits for company.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self, Self::Replaced(_))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    segments: Segments,
    buffer: Vec<u8>,
    /// By writes that are not in the log: the records in it that they have replaced.
    stood_in_for: HashMap<u64, Vec<u64>, QuickState>,
    /// Settled, and not written down.
    unsaid: Vec<u64>,
    _lock: File,
}

type Told = Vec<(Done, Result<(), JournalError>)>;

impl Writer {
    pub(super) fn new(segments: Segments, lock: File) -> Self {
        let stood_in_for = HashMap::default();
        Self { segments, buffer: Vec::new(), stood_in_for, unsaid: Vec::new(), _lock: lock }
    }

    pub(super) fn stats(&self) -> LogStats {
        self.segments.stats()
    }

    /// Nothing more comes. A log of which nothing is needed leaves no file.
    pub(super) fn close(&mut self) {
        self.segments.close();
    }

    /// Whom to tell what.
    pub(super) fn commit(&mut self, commands: Vec<Command>) -> Told {
        let (mut records, mut dones, mut replaced, mut settled) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for command in commands {
            match command {
                Command::Append { records: more, done } => {
                    records.extend(more);
                    dones.push(done);
                }
                Command::Settled(seqs) => settled.extend(seqs),
                Command::Replaced(pairs) => replaced.extend(pairs),
            }
        }
        let written = if dones.is_empty() { Ok(()) } else { self.keep(&records) };
        drop(records);
        for (old, newer) in replaced {
            self.replace(old, newer);
        }
        if !settled.is_empty() || !self.unsaid.is_empty() {
            crash::point("before-settled");
            self.settle(settled);
            crash::point("settled");
        }
        self.segments.delete_useless();
        self.tidy();
        let result = written.map_err(|error| unkept(&error));
        dones.into_iter().map(|done| (done, result.clone())).collect()
    }

    /// Makes records survive the process, and the machine.
    fn keep(&mut self, records: &[Record<Bytes, Bytes>]) -> io::Result<()> {
        let sizes = self.segments.open().and_then(|salt| self.write(salt, records));
        let sizes = self.noted(sizes)?;
        self.segments.stats.appended += records.len() as u64;
        for (record, bytes) in records.iter().zip(sizes) {
            self.segments.appended(record.seq, bytes);
        }
        Ok(())
    }

    /// Writes records, in pieces, and syncs once; their sizes. After an error nothing of them is there, as far as anybody can
    /// tell.
    fn write(&mut self, salt: u64, records: &[Record<Bytes, Bytes>]) -> io::Result<Vec<u64>> {
        let end = self.segments.end();
        crash::point("before-log");
        let mut sizes = Vec::with_capacity(records.len());
        self.buffer.clear();
        let mut append = || {
            for (at, record) in records.iter().enumerate() {
                let before = self.buffer.len();
                format::write_record(&mut self.buffer, salt, record);
                sizes.push((self.buffer.len() - before) as u64);
                if self.buffer.len() >= PIECE || at + 1 == records.len() {
                    self.segments.append(&self.buffer)?;
                    self.buffer.clear();
                }
            }
            crash::point("in-log");
            self.segments.sync()
        };
        let done = append();
        self.buffer.shrink_to(PIECE);
        if let Err(error) = done {
            self.segments.cut(end);
            return Err(error);
        }
        crash::point("synced");
        Ok(sizes)
    }

    /// A write has taken the place of another.
    fn replace(&mut self, old: u64, newer: u64) {
        let mut olds = self.stood_in_for.remove(&old).unwrap_or_default();
        if self.segments.needs(old) {
            olds.push(old);
        }
        if self.segments.needs(newer) {
            for old in olds {
                self.segments.release(old);
            }
        } else if !olds.is_empty() {
            self.stood_in_for.entry(newer).or_default().extend(olds);
        }
    }

    /// The store has these writes: so the log says, that they do not come again. That may be lost with the machine.
    fn settle(&mut self, seqs: Vec<u64>) {
        for seq in seqs {
            self.unsaid.extend(self.stood_in_for.remove(&seq).into_iter().flatten());
            self.unsaid.push(seq);
        }
        self.buffer.clear();
        let said = self.segments.open().and_then(|salt| {
            format::write_settled(&mut self.buffer, salt, &self.unsaid);
            self.segments.append(&self.buffer)
        });
        for seq in &self.unsaid {
            self.segments.release(*seq);
        }
        if self.noted(said).is_ok() {
            self.unsaid.clear();
        }
    }

    fn noted<T>(&mut self, written: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &written {
            self.segments.stats.failures += 1;
            tracing::warn!(%error, "the write-behind log could not be written");
        }
        written
    }

    /// Copies what is needed of a mostly useless segment to the end, so that it can be deleted. Failing changes nothing.
    fn tidy(&mut self) {
        let Some(items) = self.segments.worth_moving() else { return };
        let Ok(salt) = self.segments.open() else { return };
        let records = items.into_iter().filter_map(|item| match item {
            Item::Record(record) => Some(record),
            Item::Settled(_) => None,
        });
        let records: Vec<_> = records.collect();
        if self.write(salt, &records).is_ok() {
            for record in &records {
                self.segments.moved(record.seq);
            }
            self.segments.delete_useless();
        }
    }
}
