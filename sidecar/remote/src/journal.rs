//! Write-behind's journal on a disk: [`SegmentLog`] keeps what was acknowledged until the store has it.
//!
//! A directory of segment files that are only appended to. One thread owns them: it writes what has come together and calls
//! fsync once for all of it (*group commit*), then tells everybody. A write that fails (a full disk) is cut off again and
//! reported; nothing that was reported as kept is ever lost by a crash of the process or, as far as fsync is honoured, of
//! the machine.
//!
//! Records carry a checksum over a secret of their segment, so that neither a torn write, nor a flipped bit, nor bytes that an
//! app chose are taken for a record. What cannot be read is skipped and counted. Segments are deleted from the oldest on:
//! of a key older records never survive newer ones. What is still needed of mostly useless segments is copied to the end.

mod format;
mod recovery;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use caddy_engine::strategy::behind::{Done, Journal, JournalError, Ledger, Record};
use parking_lot::{Condvar, Mutex};
use thiserror::Error;

use self::segments::Segments;
use self::writer::{Command, Writer};

/// Where a log is and how it is divided.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A directory of its own; made if it is missing.
    pub directory: PathBuf,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
    /// Begins the names of its writes; no other log's.
    pub owner: String,
}

impl LogConfig {
    /// A log in `directory`, in segments of 8 MiB.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), segment_bytes: 8 << 20, owner: String::new() }
    }

    /// Whose writes they are, for their names.
    #[must_use]
    pub fn owned_by(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }
}

/// Why a log could not be opened.
#[derive(Debug, Error)]
pub enum LogError {
    /// The directory could not be made.
    #[error("failed to make the log's directory {path}")]
    MakeDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The segments could not be listed.
    #[error("failed to list the log's segments in {path}")]
    List {
        /// Which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A segment could not be read.
    #[error("failed to read the log's segment {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was written by another version.
    #[error(
        "the log's segment {path} is of a format that this version does not know; start the version that wrote it until its writes \
         are stored (behind_records in CACHE.STATS is 0)"
    )]
    OtherFormat {
        /// Which segment.
        path: PathBuf,
    },
    /// Another process uses it.
    #[error("the log in {path} is in use by another process")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Its thread could not be started.
    #[error("failed to start the log's thread")]
    Thread(#[source] std::io::Error),
}

/// What was found in a log.
#[derive(Debug, Default)]
pub struct Recovered {
    /// What was acknowledged and is not known to be stored: of each key the newest record, in their order.
    pub records: Vec<Record<Bytes, Bytes>>,
    /// Places that could not be read; one at the very end is what a crash leaves of a write that nobody was told of.
    pub damaged: usize,
    /// Those of them that a crash does not leave: what stood there may have been acknowledged.
    pub lost: usize,
}

/// What a log has done, and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Files.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How often fsync was called.
    pub syncs: u64,
    /// Records that were written.
    pub appended: u64,
    /// Writes or syncs that failed.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    commands: Vec<Command>,
    /// Somebody waits for one of them.
    urgent: bool,
    ending: bool,
}

#[derive(Debug, Default)]
struct Mail {
    inbox: Mutex<Inbox>,
    arrival: Condvar,
    stats: Mutex<LogStats>,
}

/// See the [module](self). Dropped, it writes what it was given and ends.
#[derive(Debug)]
pub struct SegmentLog {
    mail: Arc<Mail>,
    thread: Option<JoinHandle<()>>,
    owner: String,
}

impl SegmentLog {
    /// Opens a log, and reads what an earlier process has left in it.
    pub fn open(config: &LogConfig) -> Result<(Self, Recovered), LogError> {
        let path = &config.directory;
        std::fs::create_dir_all(path).map_err(|source| LogError::MakeDirectory { path: path.clone(), source })?;
        let lock = lock(path)?;
        let (segments, recovered) = Segments::recover(config)?;
        let mail = Arc::new(Mail::default());
        *mail.stats.lock() = segments.stats();
        let writer = Writer::new(segments, lock);
        let theirs = mail.clone();
        let thread = std::thread::Builder::new()
            .name("write-behind log".to_owned())
            .spawn(move || run(&theirs, writer))
            .map_err(LogError::Thread)?;
        Ok((Self { mail, thread: Some(thread), owner: config.owner.clone() }, recovered))
    }

    /// What it has done, and holds.
    pub fn stats(&self) -> LogStats {
        *self.mail.stats.lock()
    }

    fn send(&self, command: Command) {
        let mut inbox = self.mail.inbox.lock();
        let wakes = command.is_urgent() && !std::mem::replace(&mut inbox.urgent, true);
        inbox.commands.push(command);
        drop(inbox);
        if wakes {
            self.mail.arrival.notify_one();
        }
    }
}

impl Journal<Bytes, Bytes> for SegmentLog {
    fn append(&self, records: Vec<Record<Bytes, Bytes>>, done: Done) {
        self.send(Command::Append { records, done });
    }
}

impl Ledger for SegmentLog {
    fn settled(&self, seqs: &[u64]) {
        if !seqs.is_empty() {
            self.send(Command::Settled(seqs.to_vec()));
        }
    }

    fn replaced(&self, pairs: &[(u64, u64)]) {
        self.send(Command::Replaced(pairs.to_vec()));
    }

    fn name(&self, seq: u64) -> String {
        format!("{}-{seq:x}", self.owner)
    }
}

impl Drop for SegmentLog {
    fn drop(&mut self) {
        self.mail.inbox.lock().ending = true;
        self.mail.arrival.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// The thread: takes all that has come, writes it, syncs once, tells everybody.
fn run(mail: &Mail, mut writer: Writer) {
    loop {
        let mut inbox = mail.inbox.lock();
        while !inbox.urgent && !inbox.ending {
            mail.arrival.wait(&mut inbox);
        }
        let (commands, ending) = (std::mem::take(&mut inbox.commands), inbox.ending);
        inbox.urgent = false;
        drop(inbox);
        let told = writer.commit(commands);
        *mail.stats.lock() = writer.stats();
        for (done, result) in told {
            done(result);
        }
        if ending && mail.inbox.lock().commands.is_empty() {
            writer.close();
            return;
        }
    }
}

/// One process at a time.
fn lock(directory: &Path) -> Result<std::fs::File, LogError> {
    let path = directory.join("lock");
    let file = std::fs::File::create(&path).map_err(|source| LogError::MakeDirectory { path: path.clone(), source })?;
    let free = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    free.map(|()| file).map_err(|_| LogError::InUse { path: directory.to_owned() })
}

fn unkept(error: &std::io::Error) -> JournalError {
    let hint = if error.kind() == std::io::ErrorKind::StorageFull { " (its volume is full)" } else { "" };
    JournalError { reason: format!("the write-behind log failed: {error}{hint}").into() }
}
