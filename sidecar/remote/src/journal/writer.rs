//! One commit: everything that has come is written, synced once, and answered.

use std::fs::File;
use std::io;

use bytes::Bytes;
use caddy_engine::{
    crash,
    strategy::behind::{Done, JournalError, Record},
};

use super::format::{self, Item};
use super::segments::Segments;
use super::{LogStats, unkept};

/// What the thread is told.
pub(super) enum Command {
    Append { records: Vec<Record<Bytes, Bytes>>, done: Done },
    Settled(Vec<u64>),
    Replaced(Vec<u64>),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Append { records, .. } => f.debug_tuple("Append").field(&records.len()).finish(),
            Self::Settled(seqs) => f.debug_tuple("Settled").field(&seqs.len()).finish(),
            Self::Replaced(seqs) => f.debug_tuple("Replaced").field(&seqs.len()).finish(),
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
    _lock: File,
}

type Told = Vec<(Done, Result<(), JournalError>)>;

impl Writer {
    pub(super) fn new(segments: Segments, lock: File) -> Self {
        Self { segments, buffer: Vec::new(), _lock: lock }
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
        let mut told: Told = Vec::new();
        let mut appended = Vec::new();
        let mut dones = Vec::new();
        let mut free = Vec::new();
        self.buffer.clear();
        let opened = self.segments.open();
        let salt = opened.as_ref().copied().unwrap_or_default();
        for command in commands {
            match command {
                Command::Append { records, done } => {
                    for record in records {
                        let before = self.buffer.len();
                        format::write_record(&mut self.buffer, salt, &record);
                        appended.push((record.seq, (self.buffer.len() - before) as u64));
                    }
                    dones.push(done);
                }
                Command::Settled(seqs) => {
                    format::write_settled(&mut self.buffer, salt, &seqs);
                    free.extend(seqs);
                }
                Command::Replaced(seqs) => free.extend(seqs),
            }
        }
        let is_settling = !free.is_empty();
        if is_settling {
            crash::point("before-settled");
        }
        let written = opened.map(drop).and_then(|()| self.write(!dones.is_empty()));
        if is_settling {
            crash::point("settled");
        }
        match &written {
            Ok(()) => {
                self.segments.stats.appended += appended.len() as u64;
                for (seq, bytes) in appended {
                    self.segments.appended(seq, bytes);
                }
            }
            Err(error) => {
                self.segments.stats.failures += 1;
                tracing::warn!(%error, "the write-behind log could not be written");
            }
        }
        for seq in free {
            self.segments.release(seq);
        }
        self.segments.delete_useless();
        self.tidy();
        let result = written.map_err(|error| unkept(&error));
        told.extend(dones.into_iter().map(|done| (done, result.clone())));
        told
    }

    /// Writes the buffer; after an error nothing of it is there, as far as anybody can tell.
    fn write(&mut self, durably: bool) -> io::Result<()> {
        let end = self.segments.end();
        crash::point("before-log");
        self.segments.append(&self.buffer)?;
        crash::point("in-log");
        if durably && let Err(error) = self.segments.sync() {
            self.segments.cut(end);
            return Err(error);
        }
        crash::point("synced");
        Ok(())
    }

    /// Copies what is needed of a mostly useless segment to the end, so that it can be deleted. Failing changes nothing.
    fn tidy(&mut self) {
        let Some(items) = self.segments.worth_moving() else { return };
        let Ok(salt) = self.segments.open() else { return };
        self.buffer.clear();
        let mut moved = Vec::new();
        for item in &items {
            if let Item::Record(record) = item {
                format::write_record(&mut self.buffer, salt, record);
                moved.push(record.seq);
            }
        }
        if self.write(true).is_ok() {
            for seq in moved {
                self.segments.moved(seq);
            }
            self.segments.delete_useless();
        }
    }
}
