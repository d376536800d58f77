//! One keyspace's queue, its log, and what people are told of it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_contract::{Behind as Settings, Durability};
use caddy_engine::{
    TokioTimer,
    strategy::behind::{Backlog, BehindConfig, BehindStats, Journal, Record, Room, Write, WriteBehind},
};
use caddy_remote::journal::{LogConfig, LogError, LogStats, SegmentLog};
use tokio_util::sync::CancellationToken;

use super::{Releases, log_directory, releasing::Releasing};
use crate::loading::Store;

/// In a log's directory: the name of the store that its records are for.
const STORE_FILE: &str = "store";
/// What a queue that is left waits for its store.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// See the module.
pub(crate) struct Behind {
    /// The keyspace.
    pub(crate) name: String,
    /// Its store.
    pub(crate) store: Arc<str>,
    pub(crate) writer: WriteBehind<Bytes, Bytes>,
    durability: Durability,
    log: Option<Arc<SegmentLog>>,
    leaving: CancellationToken,
}

impl std::fmt::Debug for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Behind").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Behind {
    pub(super) fn open(
        name: &str,
        settings: &Settings,
        store: &Arc<Store>,
        releases: &Releases,
    ) -> Result<Self, LogError> {
        let mut recovered = Vec::new();
        let log = match settings.durability {
            Durability::Memory => None,
            Durability::Pod => {
                let directory = log_directory(&settings.directory, name);
                let (log, found) = SegmentLog::open(&LogConfig::new(&directory))?;
                note_store(&directory, &store.name);
                if !found.records.is_empty() || found.damaged > 0 {
                    let (records, damaged) = (found.records.len(), found.damaged);
                    tracing::info!(keyspace = name, records, damaged, "writes of an earlier process are stored now");
                }
                recovered = found.records;
                Some(Arc::new(log))
            }
        };
        let journal = log.clone().map(|log| log as Arc<dyn Journal<Bytes, Bytes>>);
        let backing = Arc::new(Releasing::new(store.backing.clone(), releases.clone()));
        let writer = WriteBehind::new(config(settings), backing, journal, Arc::new(TokioTimer));
        writer.restore(recovered);
        Ok(Self {
            name: name.to_owned(),
            store: store.name.clone(),
            writer,
            durability: settings.durability,
            log,
            leaving: CancellationToken::new(),
        })
    }

    pub(super) fn reconfigure(&self, settings: &Settings, store: &str) {
        if *self.store != *store || self.durability != settings.durability {
            tracing::warn!(
                keyspace = self.name,
                "another store or durability of a keyspace that writes behind takes effect in new pods only"
            );
        }
        self.writer.reconfigure(config(settings));
    }

    /// Whether what is acknowledged survives this process.
    pub(crate) fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    pub(crate) fn stats(&self) -> BehindStats {
        self.writer.stats()
    }

    pub(crate) fn log_stats(&self) -> Option<LogStats> {
        self.log.as_ref().map(|log| log.stats())
    }

    /// Room for writes, if there is some now.
    pub(crate) fn reserve(&self, size: Size) -> Option<Room<Bytes, Bytes>> {
        self.writer.reserve(size.records, size.bytes)
    }

    // === its end ===

    /// Nothing new comes.
    pub(super) fn leave(&self) {
        self.leaving.cancel();
    }

    /// Brings writes to the store.
    pub(super) async fn work(&self) {
        self.writer.run().await;
    }

    /// Done when nothing new comes and the store has everything. What it refuses stays, in the log if there is one.
    pub(super) async fn has_left(&self) {
        self.leaving.cancelled().await;
        let left = self.writer.drain(FOR_EVER).await;
        if left.records > 0 {
            tracing::error!(
                keyspace = self.name,
                records = left.records,
                "dead letters of a keyspace that left WriteBehind"
            );
            // Somebody may still replay them.
            std::future::pending::<()>().await;
        }
    }

    pub(super) async fn drain(&self, patience: Duration) -> Backlog {
        self.writer.drain(patience).await
    }
}

/// What writes take of the room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Size {
    pub(crate) fn of(writes: &[(Bytes, Write<Bytes>)]) -> Self {
        Self { records: writes.len(), bytes: writes.iter().map(|(key, write)| Record::weight(key, write)).sum() }
    }
}

fn config(settings: &Settings) -> BehindConfig {
    BehindConfig {
        batch_size: settings.batch_size,
        flush_interval: settings.flush_interval,
        max_records: settings.max_records,
        max_bytes: settings.max_bytes.as_usize(),
        max_wait: settings.max_wait,
        max_attempts: settings.max_attempts,
        ..BehindConfig::default()
    }
}

/// Remembers whom a log is for. Without it nothing is wrong while the keyspace is as it is.
fn note_store(directory: &Path, store: &str) {
    if let Err(error) = fs::write(directory.join(STORE_FILE), store) {
        tracing::warn!(%error, "failed to note the store of a write-behind log");
    }
}

/// The logs there are, and whom they are for.
pub(super) fn logs(base: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let log = |path: PathBuf| {
        let store = fs::read_to_string(path.join(STORE_FILE)).ok()?;
        Some((path.file_name()?.to_str()?.strip_prefix(super::PREFIX)?.to_owned(), store))
    };
    entries.filter_map(|entry| log(entry.path())).collect()
}
