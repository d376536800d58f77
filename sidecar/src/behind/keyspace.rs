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
    strategy::behind::{Backlog, BehindConfig, BehindStats, Journal, Ledger, Record, Room, Write, WriteBehind},
};
use caddy_remote::{
    journal::{LogConfig, LogError, LogStats, SegmentLog},
    leases,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Releases, log_directory,
    releasing::Releasing,
    streams::{Place, Streams},
};
use crate::{loading::Store, shared::Shared};

/// In a log's directory: the name of the store that its records are for.
const STORE_FILE: &str = "store";
/// Before streams that could not be read are read again.
const RECOVER_PAUSE: Duration = Duration::from_secs(1);
/// How long a sidecar that ends waits until Redis has removed what the store has.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);
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
    /// Where Redis keeps what waits.
    pub(crate) streams: Option<Arc<Streams>>,
    adopt_after: Mutex<Duration>,
    /// Nothing new comes.
    leaving: watch::Sender<bool>,
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
        place: &Place,
    ) -> Result<Self, LogError> {
        let backing = Arc::new(Releasing::new(store.backing.clone(), releases.clone()));
        let (config, timer) = (config(settings), Arc::new(TokioTimer));
        let owner = format!("{}-{name}", place.member);
        let (mut log, mut streams, mut recovered) = (None, None, Vec::new());
        let writer = match settings.durability {
            Durability::Memory => {
                let named = Arc::new(Named(format!("{owner}-{}", leases::hex(leases::unique()))));
                if store.backing.takes_names() {
                    WriteBehind::kept_elsewhere(config, backing, named, timer)
                } else {
                    WriteBehind::new(config, backing, None, timer)
                }
            }
            Durability::Pod => {
                let directory = log_directory(&settings.directory, name);
                let (opened, found) = SegmentLog::open(&LogConfig::new(&directory).owned_by(owner))?;
                note_store(&directory, &store.name);
                if !found.records.is_empty() || found.damaged > 0 {
                    let (records, damaged) = (found.records.len(), found.damaged);
                    tracing::info!(keyspace = name, records, damaged, "writes of an earlier process are stored now");
                }
                if found.lost > 0 {
                    let (places, directory) = (found.lost, directory.display());
                    tracing::error!(
                        keyspace = name,
                        places,
                        "what stood in the log in {directory} cannot be read any more: writes that were acknowledged may be lost"
                    );
                }
                recovered = found.records;
                let opened = Arc::new(opened);
                log = Some(opened.clone());
                WriteBehind::new(config, backing, Some(opened as Arc<dyn Journal<Bytes, Bytes>>), timer)
            }
            Durability::Replicated => {
                let kept = Arc::new(Streams::new(place, name, settings));
                streams = Some(kept.clone());
                WriteBehind::kept_elsewhere(config, backing, kept, timer)
            }
        };
        writer.number_from(first_number());
        writer.restore(recovered);
        Ok(Self {
            name: name.to_owned(),
            store: store.name.clone(),
            writer,
            durability: settings.durability,
            log,
            streams,
            adopt_after: Mutex::new(settings.adopt_after),
            leaving: watch::Sender::new(false),
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
        *self.adopt_after.lock() = settings.adopt_after;
    }

    /// Whether what is acknowledged survives this process.
    pub(crate) fn is_kept(&self) -> bool {
        self.durability != Durability::Memory
    }

    /// Where it is then, for people.
    pub(super) fn keeper(&self) -> &'static str {
        match self.durability {
            Durability::Memory => "nowhere",
            Durability::Pod => "the log of this pod, for its next process",
            Durability::Replicated => "Redis, for the next process of this pod or another sidecar",
        }
    }

    pub(super) fn adopt_after(&self) -> Duration {
        *self.adopt_after.lock()
    }

    /// Why nothing can be written now as durably as it is to be.
    pub(crate) fn refusal(&self, shared: &Shared) -> Option<String> {
        (self.streams.is_some() && shared.status.facts.evicts_any()).then(|| {
            format!(
                "STOREERR keyspace '{}' has durability Replicated, and Redis evicts any key when its memory is full \
                 (maxmemory-policy {}): set noeviction or a volatile- policy there, or choose durability Pod; nothing was \
                 written",
                self.name,
                shared.status.facts.eviction()
            )
        })
    }

    /// Whether a write of a slot may go now; else [`prepare`](Self::prepare) it.
    pub(crate) fn takes(&self, slot: u16) -> bool {
        self.streams.as_ref().is_none_or(|streams| streams.takes(slot))
    }

    pub(crate) async fn prepare(&self, shared: &Arc<Shared>, slot: u16) -> Result<(), String> {
        match &self.streams {
            Some(streams) => streams.prepare(shared, slot).await,
            None => Ok(()),
        }
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

    /// Whether it is for writes of this keyspace, as it is configured now.
    pub(super) fn is_for(&self, name: &str, settings: &Settings, store: &str) -> bool {
        self.name == name && *self.store == *store && self.durability == settings.durability
    }

    // === its end ===

    /// Nothing new comes.
    pub(super) fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// New writes come after all; `false`: it has ended already.
    pub(super) fn stay(&self) -> bool {
        let stays = self.writer.resume();
        if stays {
            self.leaving.send_replace(false);
        }
        stays
    }

    /// Brings writes to the store, those of an earlier process first.
    pub(super) async fn work(self: &Arc<Self>, shared: &Arc<Shared>) {
        let Some(streams) = &self.streams else { return self.writer.run().await };
        let recover = async {
            loop {
                match streams.recover(shared, self).await {
                    Ok(0) => return,
                    Ok(records) => {
                        let keyspace = &self.name;
                        tracing::info!(keyspace, records, "writes of an earlier process are stored now");
                        return;
                    }
                    Err(reason) => tracing::debug!(keyspace = self.name, reason, "its streams cannot be read yet"),
                }
                tokio::time::sleep(RECOVER_PAUSE).await;
            }
        };
        futures::future::join3(recover, self.writer.run(), streams.remove(shared)).await;
    }

    /// Done when nothing new comes and the store has everything. While it refuses some of it, somebody may replay that.
    pub(super) async fn has_left(&self) {
        let mut leaving = self.leaving.subscribe();
        // Its other end is this very queue's.
        while leaving.wait_for(|is_leaving| *is_leaving).await.is_ok() {
            tokio::select! {
                () = self.end() => return,
                _ = leaving.wait_for(|is_leaving| !*is_leaving) => {}
            }
        }
    }

    async fn end(&self) {
        let left = self.writer.drain(FOR_EVER).await;
        if left.dead_letters > 0 {
            tracing::error!(
                keyspace = self.name,
                records = left.dead_letters,
                "dead letters of a keyspace that left WriteBehind: see CACHE.DEADLETTERS"
            );
        }
        self.writer.seal().await;
        if let Some(streams) = &self.streams {
            streams.removed().await;
        }
    }

    pub(super) async fn drain(&self, patience: Duration) -> Backlog {
        let left = self.writer.drain(patience).await;
        if let Some(streams) = &self.streams {
            // What stays there although the store has it, is stored once more.
            let _ = tokio::time::timeout(REMOVE_PATIENCE, streams.removed()).await;
        }
        left
    }
}

/// Names for the writes of a process that keeps none.
struct Named(String);

impl Ledger for Named {
    fn settled(&self, _: &[u64]) {}

    fn replaced(&self, _: &[(u64, u64)]) {}

    fn name(&self, seq: u64) -> String {
        format!("{}-{seq:x}", self.0)
    }
}

/// Higher than any number of an earlier process: names are not used again.
fn first_number() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0) << 20
}

/// What writes take of the room.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Size {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Size {
    pub(crate) fn of(writes: &[(Bytes, Write<Bytes>)]) -> Self {
        Self { records: writes.len(), bytes: writes.iter().map(|(key, write)| Record::weight(key, write)).sum() }
    }

    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }

    /// What is left of it without `other`, if that is part of it.
    pub(crate) fn less(self, other: Self) -> Option<Self> {
        let (records, bytes) = (self.records.checked_sub(other.records)?, self.bytes.checked_sub(other.bytes)?);
        Some(Self { records, bytes })
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
