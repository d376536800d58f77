//! Writes that reach the app's database behind the answer: what waits for it, keyspace by keyspace.
//!
//! Owns one queue per keyspace of the strategy `WriteBehind` ([`Behind`]) and, for durability `Pod`, its log. Sessions
//! reserve room, write to L3, and hand in what L3 has taken; one task of the control thread brings it to the stores. A
//! keyspace that leaves the strategy is drained first, also one whose log an earlier process left. Never reads a socket
//! and never touches a tier.

mod keyspace;
mod members;
mod releasing;
mod storing;
mod streams;
mod turns;
mod ways;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_contract::{Config, Durability, RedisMode, Strategy, coordination::POD_UID_ENV};
use caddy_engine::strategy::behind::{BehindError, Write};
use caddy_remote::{Request, journal::LogError};
use caddy_resp::encode;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

pub(crate) use keyspace::{Behind, Size};
pub(crate) use members::watch;
pub(crate) use releasing::Releases;
pub(crate) use storing::{Command, Form, Sending, Storing, Via, error_text, translated};
use streams::Place;
pub(crate) use streams::{Round, Streams, Taking};
pub(crate) use turns::Turns;
pub(crate) use ways::Ways;

use crate::{
    keyspaces::Source,
    loading::Stores,
    shared::{L3, Shared},
    supervisor::Supervisor,
    upstream::Tag,
};

/// How long a sidecar that ends waits until that is noted.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Begins the name of every log's directory.
const PREFIX: &str = "keyspace-";

/// Why a keyspace cannot write behind.
#[derive(Debug, thiserror::Error)]
pub enum BehindSetupError {
    /// Its log cannot be had.
    #[error(
        "failed to open the write-behind log of keyspace '{keyspace}'; durability Pod needs its volume, which a pod gets when it is made"
    )]
    Log {
        /// Its name.
        keyspace: String,
        /// Why.
        #[source]
        source: LogError,
    },
}

/// See the module.
pub(crate) struct Behinds {
    all: Mutex<BTreeMap<String, Arc<Behind>>>,
    /// Those that are drained, and then gone.
    leaving: Mutex<Vec<Arc<Behind>>>,
    begun: mpsc::UnboundedSender<Arc<Behind>>,
    /// What ends the leases of keys whose deletion has reached the store.
    pub(crate) releases: Releases,
    /// Who writes through to a key.
    pub(crate) turns: Turns,
    /// Which nodes of a cluster writes behind are under way to.
    pub(crate) ways: Ways,
    place: Place,
    /// There may be streams now.
    pub(crate) begun_streams: Notify,
}

/// Those that were begun.
pub(crate) type Begun = mpsc::UnboundedReceiver<Arc<Behind>>;

impl Behinds {
    /// Those of `config`, with what earlier processes left in their logs.
    pub(crate) fn new(config: &Config, stores: &Stores) -> Result<(Self, Begun), BehindSetupError> {
        let (begun, inbox) = mpsc::unbounded_channel();
        let behinds = Self {
            all: Mutex::default(),
            leaving: Mutex::default(),
            begun,
            releases: Releases::default(),
            turns: Turns::default(),
            ways: Ways::default(),
            place: place(config),
            begun_streams: Notify::new(),
        };
        behinds.reconfigure(config, stores)?;
        behinds.adopt_orphans(config, stores);
        Ok((behinds, inbox))
    }

    /// The queue of a keyspace.
    pub(crate) fn get(&self, keyspace: &str) -> Option<Arc<Behind>> {
        self.all.lock().get(keyspace).cloned()
    }

    /// All there are, those that are leaving included.
    pub(crate) fn every(&self) -> Vec<Arc<Behind>> {
        self.all.lock().values().chain(self.leaving.lock().iter()).cloned().collect()
    }

    /// For people: of which keyspaces replicas do not have what is written, and why; empty if there are none.
    pub(crate) fn unreplicated(&self) -> String {
        let trouble = |behind: &Arc<Behind>| {
            let trouble = behind.streams.as_ref()?.trouble();
            (!trouble.is_empty()).then(|| format!("keyspace '{}': {trouble}", behind.name))
        };
        self.every().iter().filter_map(trouble).collect::<Vec<_>>().join("; ")
    }

    /// Takes over what of a new configuration can change while running: not where what was written goes, and how durably.
    pub(crate) fn reconfigure(&self, config: &Config, stores: &Stores) -> Result<(), BehindSetupError> {
        let mut all = self.all.lock();
        let mut wanted = BTreeMap::new();
        if let Err(error) = self.want(&all, &mut wanted, config, stores) {
            // All stays as it was: what was begun for nothing ends.
            let begun = wanted.into_iter().filter(|(name, _)| !all.contains_key(name));
            begun.for_each(|(_, behind)| self.dismiss(behind));
            return Err(error);
        }
        let before = std::mem::replace(&mut *all, wanted);
        for (name, behind) in before {
            if !all.contains_key(&name) {
                tracing::info!(
                    keyspace = name,
                    "a keyspace leaves WriteBehind: what waits for its store is stored first"
                );
                self.dismiss(behind);
            }
        }
        Ok(())
    }

    /// The queues of `config`: those there are, those that were about to leave, and new ones.
    fn want(
        &self,
        all: &BTreeMap<String, Arc<Behind>>,
        wanted: &mut BTreeMap<String, Arc<Behind>>,
        config: &Config,
        stores: &Stores,
    ) -> Result<(), BehindSetupError> {
        for keyspace in &config.keyspaces {
            let Some(loading) = &keyspace.loading else { continue };
            let (Strategy::WriteBehind, Some(settings)) = (loading.strategy, &loading.behind) else { continue };
            let Some(store) = stores.get(&loading.store) else { continue };
            let known = all.get(&keyspace.name).cloned();
            let behind = match known.or_else(|| self.take_back(&keyspace.name, settings, &loading.store)) {
                Some(behind) => {
                    behind.reconfigure(settings, &loading.store);
                    behind
                }
                None => self.begin(&keyspace.name, settings, store)?,
            };
            let _ = wanted.insert(keyspace.name.clone(), behind);
        }
        Ok(())
    }

    /// The queue of a keyspace that has left, and writes behind again before that was stored.
    fn take_back(&self, name: &str, settings: &caddy_contract::Behind, store: &str) -> Option<Arc<Behind>> {
        let mut leaving = self.leaving.lock();
        let place = leaving.iter().position(|behind| behind.is_for(name, settings, store) && behind.stay())?;
        Some(leaving.swap_remove(place))
    }

    fn dismiss(&self, behind: Arc<Behind>) {
        behind.leave();
        self.leaving.lock().push(behind);
    }

    /// What a key is to be in a store, if a queue that is leaving has that still; its own queue, if it has one, is asked first.
    pub(crate) fn pending(&self, source: &Source, key: &Bytes) -> Option<Write<Bytes>> {
        let own = source.behind.as_ref().and_then(|behind| behind.writer.pending(key));
        own.or_else(|| self.older(&source.store.name).iter().find_map(|behind| behind.writer.pending(key)))
    }

    /// Before keys are written to a store by another way: waits until that has what earlier queues have of them.
    pub(crate) async fn settled(&self, store: &str, keys: &[Bytes]) -> Result<(), BehindError> {
        for behind in self.older(store) {
            behind.writer.settled(keys).await?;
        }
        Ok(())
    }

    /// And afterwards: what the store has refused of them is not to come over that.
    pub(crate) fn overwritten(&self, store: &str, keys: &[Bytes]) {
        for behind in self.older(store) {
            behind.writer.discard(Some(keys));
        }
    }

    /// The queues for a store that are leaving.
    fn older(&self, store: &str) -> Vec<Arc<Behind>> {
        self.leaving.lock().iter().filter(|behind| *behind.store == *store).cloned().collect()
    }

    fn begin(
        &self,
        name: &str,
        settings: &caddy_contract::Behind,
        store: &Arc<crate::loading::Store>,
    ) -> Result<Arc<Behind>, BehindSetupError> {
        let behind = Behind::open(name, settings, store, &self.releases, &self.place)
            .map_err(|source| BehindSetupError::Log { keyspace: name.to_owned(), source })?;
        let behind = Arc::new(behind);
        // Without a task the sidecar is ending.
        let _ = self.begun.send(behind.clone());
        self.begun_streams.notify_one();
        Ok(behind)
    }

    /// A queue for records in streams of a keyspace that has none of its own (any more); to be left when they are in it.
    fn begin_for_records(&self, name: &str, store: Option<&Arc<crate::loading::Store>>) -> Option<Arc<Behind>> {
        let settings =
            caddy_contract::Behind { durability: Durability::Replicated, ..caddy_contract::Behind::default() };
        let behind = self.begin(name, &settings, store?).ok()?;
        self.leaving.lock().push(behind.clone());
        Some(behind)
    }

    /// Logs whose keyspace does not write behind any more.
    fn adopt_orphans(&self, config: &Config, stores: &Stores) {
        let settings = config.keyspaces.iter().filter_map(|keyspace| keyspace.loading.as_ref()?.behind.clone());
        let default = caddy_contract::Behind { durability: Durability::Pod, ..caddy_contract::Behind::default() };
        let settings = settings.chain([default]).next().unwrap_or_default();
        for (name, store) in keyspace::logs(&settings.directory) {
            if self.all.lock().contains_key(&name) {
                continue;
            }
            let Some(store) = stores.get(&store) else {
                tracing::error!(
                    keyspace = name,
                    store,
                    "an earlier process left writes for a store that is not configured any more; they stay in {}",
                    settings.directory.display()
                );
                continue;
            };
            let settings = caddy_contract::Behind { durability: Durability::Pod, ..settings.clone() };
            match self.begin(&name, &settings, store) {
                Ok(behind) => self.dismiss(behind),
                Err(error) => tracing::error!(keyspace = name, cause = ?error, "{error}"),
            }
        }
    }

    /// Brings what waits to the stores, for so long at most; says what is lost or stays.
    pub(crate) async fn drain(&self, shared: &Arc<Shared>, patience: Duration) {
        let every = self.every();
        let drains = every.iter().map(|behind| behind.drain(patience));
        let left = futures::future::join_all(drains).await;
        for (behind, left) in every.iter().zip(left).filter(|(_, left)| left.records > 0) {
            let (keyspace, records, dead_letters) = (&behind.name, left.records, left.dead_letters);
            if behind.is_kept() {
                tracing::warn!(keyspace, records, dead_letters, "writes stay in {}", behind.keeper());
            } else {
                tracing::error!(
                    keyspace,
                    records,
                    dead_letters,
                    "writes are lost: the store has not taken them in time"
                );
            }
        }
        if tokio::time::timeout(LEAVE_PATIENCE, members::leave(shared)).await.is_err() {
            tracing::info!("Redis did not answer: that this sidecar ends, others see by its silence");
        }
    }
}

/// Runs every queue there is and will be. Ends with the sidecar.
pub(crate) async fn run(shared: Arc<Shared>, mut begun: Begun, supervisor: Supervisor) {
    loop {
        let behind = tokio::select! {
            () = supervisor.shutdown().cancelled() => return,
            behind = begun.recv() => behind,
        };
        let Some(behind) = behind else { return };
        let shared = shared.clone();
        supervisor.spawn_local("write-behind queue", async move {
            tokio::select! {
                () = behind.work(&shared) => {}
                () = behind.has_left() => {
                    shared.behinds.leaving.lock().retain(|other| !Arc::ptr_eq(other, &behind));
                }
            }
        });
    }
}

/// From now on a deletion that has reached its store lets others load the key again.
pub(crate) fn end_leases(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared.behinds.releases.set(move |keys| {
        let Some(shared) = weak.upgrade() else { return };
        let L3::Redis(redis) = &shared.l3 else { return };
        for key in keys {
            let name = shared.lease_of(key);
            let mut bytes = Vec::new();
            encode::command(&mut bytes, [&b"DEL"[..], &name]);
            // A lease that cannot be ended runs out.
            if let Some(node) = redis.owner(key) {
                let request = Request { bytes: bytes.into(), replies: 1, tag: Tag::Forward };
                let _ = redis.errand_lane(&shared, &node, 0).submit(request);
            }
        }
    });
}

/// Where streams are, and who this sidecar is in them: the pod, whose next process goes on with them; without one, whoever
/// listens on the same socket of the same machine.
fn place(config: &Config) -> Place {
    let by_hand = || {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let socket = std::path::absolute(&config.listen.socket).unwrap_or_else(|_| config.listen.socket.clone());
        format!("{}{}", machine.trim(), socket.display())
    };
    let redis = match &config.l3 {
        caddy_contract::L3::Redis(redis) => Some(redis),
        caddy_contract::L3::Embedded => None,
    };
    Place {
        domain: config.cluster.domain.clone(),
        member: std::env::var(POD_UID_ENV).unwrap_or_else(|_| by_hand()).into(),
        in_cluster: redis.is_some_and(|redis| redis.mode == RedisMode::Cluster),
        timeout: redis.map_or(LEAVE_PATIENCE, |redis| redis.timeout),
    }
}

/// Where a keyspace's log is.
fn log_directory(base: &std::path::Path, keyspace: &str) -> PathBuf {
    // Never a name that leads elsewhere.
    base.join(format!("{PREFIX}{keyspace}"))
}
