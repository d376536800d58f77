//! Writes that reach the app's database behind the answer: what waits for it, keyspace by keyspace.
//!
//! Owns one queue per keyspace of the strategy `WriteBehind` ([`Behind`]) and, for durability `Pod`, its log. Sessions
//! reserve room, write to L3, and hand in what L3 has taken; one task of the control thread brings it to the stores. A
//! keyspace that leaves the strategy is drained first, also one whose log an earlier process left. Never reads a socket
//! and never touches a tier.

mod keyspace;
mod releasing;
mod storing;
mod turns;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use caddy_contract::{Config, Durability, Strategy};
use caddy_remote::{Request, journal::LogError, leases};
use caddy_resp::encode;
use parking_lot::Mutex;
use tokio::sync::mpsc;

pub(crate) use keyspace::{Behind, Size};
pub(crate) use releasing::Releases;
pub(crate) use storing::{Storing, error_text, translated};
pub(crate) use turns::Turns;

use crate::{
    loading::Stores,
    shared::{L3, Shared},
    supervisor::Supervisor,
    upstream::Tag,
};

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
}

/// Those that were begun.
pub(crate) type Begun = mpsc::UnboundedReceiver<Arc<Behind>>;

impl Behinds {
    /// Those of `config`, with what earlier processes left in their logs.
    pub(crate) fn new(config: &Config, stores: &Stores) -> Result<(Self, Begun), BehindSetupError> {
        let (begun, inbox) = mpsc::unbounded_channel();
        let (all, leaving) = (Mutex::default(), Mutex::default());
        let behinds = Self { all, leaving, begun, releases: Releases::default(), turns: Turns::default() };
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

    /// Takes over what of a new configuration can change while running: not where what was written goes, and how durably.
    pub(crate) fn reconfigure(&self, config: &Config, stores: &Stores) -> Result<(), BehindSetupError> {
        let mut all = self.all.lock();
        let mut wanted = BTreeMap::new();
        for keyspace in &config.keyspaces {
            let Some(loading) = &keyspace.loading else { continue };
            let (Strategy::WriteBehind, Some(settings)) = (loading.strategy, &loading.behind) else { continue };
            let Some(store) = stores.get(&loading.store) else { continue };
            let behind = match all.get(&keyspace.name) {
                Some(behind) => {
                    behind.reconfigure(settings, &loading.store);
                    behind.clone()
                }
                None => self.begin(&keyspace.name, settings, store)?,
            };
            let _ = wanted.insert(keyspace.name.clone(), behind);
        }
        let before = std::mem::replace(&mut *all, wanted);
        for (name, behind) in before {
            if !all.contains_key(&name) {
                tracing::info!(
                    keyspace = name,
                    "a keyspace leaves WriteBehind: what waits for its store is stored first"
                );
                behind.leave();
                self.leaving.lock().push(behind);
            }
        }
        Ok(())
    }

    fn begin(
        &self,
        name: &str,
        settings: &caddy_contract::Behind,
        store: &Arc<crate::loading::Store>,
    ) -> Result<Arc<Behind>, BehindSetupError> {
        let behind = Behind::open(name, settings, store, &self.releases)
            .map_err(|source| BehindSetupError::Log { keyspace: name.to_owned(), source })?;
        let behind = Arc::new(behind);
        // Without a task the sidecar is ending.
        let _ = self.begun.send(behind.clone());
        Ok(behind)
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
                Ok(behind) => {
                    behind.leave();
                    self.leaving.lock().push(behind);
                }
                Err(error) => tracing::error!(keyspace = name, cause = ?error, "{error}"),
            }
        }
    }

    /// Brings what waits to the stores, for so long at most; says what is lost or stays.
    pub(crate) async fn drain(&self, patience: Duration) {
        let every = self.every();
        let drains = every.iter().map(|behind| behind.drain(patience));
        let left = futures::future::join_all(drains).await;
        for (behind, left) in every.iter().zip(left).filter(|(_, left)| left.records > 0) {
            let (keyspace, records, dead_letters) = (&behind.name, left.records, left.dead_letters);
            if behind.is_logged() {
                tracing::warn!(
                    keyspace,
                    records,
                    dead_letters,
                    "writes stay in the log of this pod for its next process"
                );
            } else {
                tracing::error!(
                    keyspace,
                    records,
                    dead_letters,
                    "writes are lost: the store has not taken them in time"
                );
            }
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
                () = behind.work() => {}
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
        let domain = &shared.config().cluster.domain;
        let names: Vec<Vec<u8>> = keys.iter().map(|key| leases::name(domain, key, false)).collect();
        let mut bytes = Vec::new();
        encode::command(
            &mut bytes,
            std::iter::once(b"DEL".as_slice()).chain(names.iter().map(Vec::as_slice)).collect::<Vec<_>>(),
        );
        // A lease that cannot be ended runs out.
        if let Some(node) = redis.only() {
            let request = Request { bytes: bytes.into(), replies: 1, tag: Tag::Forward };
            let _ = redis.errand_lane(&shared, node, 0).submit(request);
        }
    });
}

/// Where a keyspace's log is.
fn log_directory(base: &std::path::Path, keyspace: &str) -> PathBuf {
    // Never a name that leads elsewhere.
    base.join(format!("{PREFIX}{keyspace}"))
}
