//! The app's databases as the sidecar asks them: each behind a bulkhead and a circuit breaker.
//!
//! Owns how many calls there are at a time, who waits for a turn, and what is put together into one call. Knows nothing
//! of keyspaces, leases or tiers. Fails with [`LoadFailure`], at once where there is no room or the store is being left
//! alone; what waits here is bounded, and every call ends by the store's own deadlines.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_contract::{Config, HttpStore as HttpSettings, PostgresStore as PostgresSettings, StoreKind};
use caddy_engine::{
    BootClock, Clock,
    store::{BackingStore, Loaded, Revalidated, StoreError, StoreFuture, Stored},
};
use caddy_remote::{
    TlsOptions,
    stores::{HttpConfig, HttpConfigError, HttpStore, PostgresConfig, PostgresConfigError, PostgresStore},
};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::{breaker::Breaker, pace::Pace, versions::Versions};
use crate::supervisor::Supervisor;

/// Keys of one call to a store that takes many at once.
const MAX_BATCH: usize = 256;
/// Further calls to find those keys of one that the store refuses.
const MOST_CALLS_APART: usize = 32;

/// What a store has under a key.
pub(crate) type Found = Option<Stored<Bytes>>;

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadFailure {
    /// The store's own words.
    #[error("store '{store}': {error}")]
    Store {
        /// Its name.
        store: Arc<str>,
        /// What it said.
        error: StoreError,
    },
    /// It failed too often of late.
    #[error(
        "store '{store}' has failed too often and is left alone for {pause:?} (stores[].breaker); see whether it is up"
    )]
    LeftAlone {
        /// Its name.
        store: Arc<str>,
        /// Until it is tried again, at most.
        pause: Duration,
    },
    /// It was down until lately, and gets its load back by and by.
    #[error("store '{store}' was down until lately: what can be answered old is loaded by and by")]
    Recovering {
        /// Its name.
        store: Arc<str>,
    },
    /// There is no room to wait in.
    #[error("too many loads wait for store '{store}' (stores[].maxQueued); raise maxConcurrent, or shed load")]
    Busy {
        /// Its name.
        store: Arc<str>,
    },
    /// It took longer than the keyspace allows.
    #[error("store '{store}' gave no value within {limit:?} (keyspaces[].hardTimeout); see whether it hangs")]
    TimedOut {
        /// Its name.
        store: Arc<str>,
        /// The bound.
        limit: Duration,
    },
}

/// Why a store of the configuration cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreConfigError {
    /// Behind HTTP.
    #[error("failed to set up store '{name}'")]
    Http {
        /// Its name.
        name: String,
        /// Why.
        source: HttpConfigError,
    },
    /// In PostgreSQL.
    #[error("failed to set up store '{name}'")]
    Postgres {
        /// Its name.
        name: String,
        /// Why.
        source: PostgresConfigError,
    },
}

/// All stores of the configuration, by name.
#[derive(Default, Clone)]
pub(crate) struct Stores(HashMap<String, Arc<Store>>);

impl Stores {
    /// Those of `config`; of `previous` are kept those that are as before, with their connections and counts.
    pub(crate) fn new(config: &Config, previous: &Self) -> Result<Self, StoreConfigError> {
        let mut stores = HashMap::new();
        for settings in &config.stores {
            let kept = previous.0.get(&settings.name).filter(|store| store.settings == *settings);
            let store = match kept {
                Some(store) => store.clone(),
                None => Arc::new(Store::new(settings.clone())?),
            };
            stores.insert(settings.name.clone(), store);
        }
        Ok(Self(stores))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Store>> {
        self.0.get(name)
    }

    /// In the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Store>> {
        let mut all: Vec<_> = self.0.values().cloned().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

/// What is counted about a store.
#[derive(Debug, Default)]
pub(crate) struct StoreCounts {
    /// Calls made, each for one or more keys.
    pub(crate) calls: Counter,
    /// Keys asked for in them.
    pub(crate) keys: Counter,
    /// Calls that failed.
    pub(crate) failures: Counter,
    /// Loads refused because too many waited.
    pub(crate) busy: Counter,
    /// Loads refused while it was left alone.
    pub(crate) left_alone: Counter,
    /// Loads put off behind an outage, since an old value could be answered.
    pub(crate) put_off: Counter,
    /// Loads to which it said that the value is still what it was.
    pub(crate) unchanged: Counter,
}

/// One store.
pub(crate) struct Store {
    pub(crate) name: Arc<str>,
    /// What is asked; for reads through [`load`](Self::load).
    pub(crate) backing: Arc<dyn BackingStore<Bytes, Bytes>>,
    pub(crate) counts: StoreCounts,
    settings: caddy_contract::Store,
    versions: Versions,
    state: Mutex<State>,
}

/// What becomes of those who wait if a load is put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// They get an old value, or one that is good still.
    CanWait,
    /// They get an error.
    Urgent,
}

struct State {
    breaker: Breaker,
    pace: Pace,
    calls: usize,
    /// Keys that one call asks for: as many as it has brought of late, and twice as many behind one that brought all.
    at_once: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    key: Bytes,
    /// What L3 has, and what the store calls that.
    known: Option<(Bytes, Bytes)>,
    answer: oneshot::Sender<Result<Found, LoadFailure>>,
}

impl Store {
    fn new(settings: caddy_contract::Store) -> Result<Self, StoreConfigError> {
        let name = || settings.name.clone();
        let backing: Arc<dyn BackingStore<Bytes, Bytes>> = match &settings.kind {
            StoreKind::Http(http) => Arc::new(
                HttpStore::new(http_config(http, settings.max_concurrent))
                    .map_err(|source| StoreConfigError::Http { name: name(), source })?,
            ),
            StoreKind::Postgres(postgres) => Arc::new(
                PostgresStore::new(postgres_config(postgres))
                    .map_err(|source| StoreConfigError::Postgres { name: name(), source })?,
            ),
        };
        let breaker = Breaker::new(settings.breaker_failures, settings.breaker_pause);
        Ok(Self {
            name: name().into(),
            backing,
            counts: StoreCounts::default(),
            settings,
            versions: Versions::default(),
            state: Mutex::new(State {
                breaker,
                pace: Pace::default(),
                calls: 0,
                at_once: MAX_BATCH,
                waiting: VecDeque::new(),
            }),
        })
    }

    /// Keys in one call: those of an HTTP store are requests of their own, and one that hangs must not hold up others.
    fn batch(&self) -> usize {
        match self.settings.kind {
            StoreKind::Http(_) => 1,
            StoreKind::Postgres(_) => MAX_BATCH,
        }
    }

    /// The largest value that it gives, and is given: what could not be loaded again is not written either.
    pub(crate) fn max_value_bytes(&self) -> usize {
        self.settings.max_value_bytes().as_usize()
    }

    /// Whether it is being left alone.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.state.lock().breaker.is_open()
    }

    /// Calls under way, and loads that wait for their turn.
    pub(crate) fn load_of(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.calls, state.waiting.len())
    }

    /// What the store has under `key`, asked in its turn, together with others where that is possible. What L3 has is not sent
    /// again, if the store can say that it is that still.
    pub(crate) async fn load(
        self: &Arc<Self>,
        key: Bytes,
        present: Option<Bytes>,
        need: Need,
        supervisor: &Supervisor,
    ) -> Result<Found, LoadFailure> {
        let (answer, answered) = oneshot::channel();
        let known = present.and_then(|present| Some((present.clone(), self.versions.of(&key, &present)?)));
        {
            let mut state = self.state.lock();
            let now = BootClock.now();
            if need == Need::CanWait && !state.breaker.is_open() && !state.pace.admits(now) {
                self.counts.put_off.inc();
                return Err(LoadFailure::Recovering { store: self.name.clone() });
            }
            if !state.breaker.admits(now) {
                self.counts.left_alone.inc();
                return Err(LoadFailure::LeftAlone { store: self.name.clone(), pause: self.settings.breaker_pause });
            }
            let room = self.settings.max_queued
                + self.batch() * (self.settings.max_concurrent - state.calls.min(self.settings.max_concurrent));
            if state.waiting.len() >= room {
                self.counts.busy.inc();
                return Err(LoadFailure::Busy { store: self.name.clone() });
            }
            if need == Need::Urgent {
                state.pace.made(now);
            }
            state.waiting.push_back(Waiting { key, known, answer });
        }
        // A task of its own: whoever else is about to ask in this turn comes into the same call.
        let store = self.clone();
        supervisor.spawn_local("store call", store.call());
        let gone = || {
            let error = StoreError::Unavailable { reason: "the sidecar is ending".into() };
            Err(LoadFailure::Store { store: self.name.clone(), error })
        };
        answered.await.unwrap_or_else(|_| gone())
    }

    /// Makes calls while anybody waits, if there may be one more.
    async fn call(self: Arc<Self>) {
        loop {
            let mut batch: Vec<Waiting> = {
                let mut state = self.state.lock();
                // Who has given up is not asked for.
                state.waiting.retain(|waiting| !waiting.answer.is_closed());
                if state.calls >= self.settings.max_concurrent || state.waiting.is_empty() {
                    return;
                }
                state.calls += 1;
                let count = state.waiting.len().min(self.batch()).min(state.at_once);
                state.waiting.drain(..count).collect()
            };
            // Given back also if the sidecar ends in between, or the store panics.
            let slot = Slot(&self);
            let keys: Vec<Bytes> = batch.iter().map(|waiting| waiting.key.clone()).collect();
            self.counts.calls.inc();
            self.counts.keys.inc_by(keys.len() as u64);
            let loaded = self.load_for(&keys, &mut batch).await;
            self.judge(loaded.as_ref().map(Vec::len));
            let results = match loaded {
                Ok(loaded) => loaded.into_iter().map(told).collect(),
                Err(error) => self.load_apart(&keys, &batch, error).await,
            };
            drop(slot);
            let mut left = Vec::new();
            for (waiting, result) in batch.into_iter().zip(results) {
                let Some(result) = result else {
                    left.push(waiting);
                    continue;
                };
                if let Ok(Some(Stored { value, version: Some(version), .. })) = &result {
                    self.versions.note(&waiting.key, value, version);
                }
                // Who does not wait any more is not told.
                let _ = waiting.answer.send(result);
            }
            let mut state = self.state.lock();
            let brought = keys.len() - left.len();
            state.at_once = if left.is_empty() { (state.at_once * 2).min(MAX_BATCH) } else { brought.max(1) };
            // They have waited for longest.
            left.into_iter().rev().for_each(|waiting| state.waiting.push_front(waiting));
        }
    }

    /// What becomes of keys of which the store has refused one: the others do not go without for it. Halves are asked for until
    /// that is found, or the store says the same of both.
    async fn load_apart(
        &self,
        keys: &[Bytes],
        batch: &[Waiting],
        error: StoreError,
    ) -> Vec<Option<Result<Found, LoadFailure>>> {
        let failed = |error: &StoreError| LoadFailure::Store { store: self.name.clone(), error: error.clone() };
        let mut results = vec![Some(Err(failed(&error))); keys.len()];
        let (mut calls, mut refused) = (0, VecDeque::from([(0..keys.len(), error)]));
        while let Some((range, error)) = refused.pop_front() {
            let is_awaited = batch.iter().any(|waiting| !waiting.answer.is_closed());
            if error.is_transient() || range.len() < 2 || calls >= MOST_CALLS_APART || !is_awaited {
                continue;
            }
            let middle = range.start + range.len() / 2;
            let halves = [range.start..middle, middle..range.end];
            let mut errors = Vec::new();
            for half in halves {
                calls += 1;
                self.counts.calls.inc();
                match self.backing.load_some(&keys[half.clone()]).await {
                    Ok(loaded) => half.zip(loaded).for_each(|(at, loaded)| results[at] = told(loaded)),
                    Err(error) => {
                        results[half.clone()].fill(Some(Err(failed(&error))));
                        errors.push((half, error));
                    }
                }
            }
            if errors.len() < 2 || errors[0].1 != errors[1].1 {
                refused.extend(errors);
            }
        }
        results
    }

    /// Asks the store for as long as anybody waits: who has given up gives the place back, also if the store hangs.
    async fn load_for(&self, keys: &[Bytes], batch: &mut [Waiting]) -> Result<Vec<Loaded<Bytes>>, StoreError> {
        // Of several there is no such question.
        let known = batch.first_mut().filter(|_| keys.len() == 1).and_then(|waiting| waiting.known.take());
        let loaded: StoreFuture<'_, Vec<Loaded<Bytes>>> = match known {
            Some((value, version)) => Box::pin(self.load_changed(&keys[0], value, version)),
            None => self.backing.load_some(keys),
        };
        let given_up = async {
            for waiting in batch {
                waiting.answer.closed().await;
            }
        };
        match futures::future::select(loaded, std::pin::pin!(given_up)).await {
            futures::future::Either::Left((loaded, _)) => loaded,
            futures::future::Either::Right(_) => {
                let reason = "no answer for as long as anybody waited (keyspaces[].hardTimeout)".into();
                Err(StoreError::Unavailable { reason })
            }
        }
    }

    /// Asks for a value unless it is still this one.
    async fn load_changed(&self, key: &Bytes, value: Bytes, version: Bytes) -> Result<Vec<Loaded<Bytes>>, StoreError> {
        Ok(vec![match self.backing.revalidate(key, &version).await? {
            Revalidated::Changed(found) => found.into(),
            Revalidated::Unchanged { fresh_for } => {
                self.counts.unchanged.inc();
                Loaded::Found(Stored { value, fresh_for, version: Some(version) })
            }
        }])
    }

    fn judge(&self, loaded: Result<usize, &StoreError>) {
        let mut state = self.state.lock();
        let now = BootClock.now();
        if let Err(error) = loaded {
            self.counts.failures.inc();
            if error.is_transient() {
                if state.breaker.failed(now) {
                    let pause = self.settings.breaker_pause;
                    tracing::warn!(store = %self.name, %error, ?pause, "a store is left alone: it failed too often in a row");
                }
                return;
            }
        }
        if state.breaker.is_open() {
            tracing::info!(store = %self.name, "a store answers again");
            state.pace.recovered(now);
        }
        state.breaker.succeeded();
        state.pace.loaded(loaded.unwrap_or(0), now);
    }
}

/// What is told to who waits; nothing yet of a key that is to be asked for again.
fn told(loaded: Loaded<Bytes>) -> Option<Result<Found, LoadFailure>> {
    match loaded {
        Loaded::Found(found) => Some(Ok(Some(found))),
        Loaded::Absent => Some(Ok(None)),
        Loaded::Left => None,
    }
}

/// One of a store's places for calls, while it is taken.
struct Slot<'a>(&'a Store);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.state.lock().calls -= 1;
    }
}

/// Whether there can be such stores, as far as that is seen elsewhere: certificates lie where the sidecar runs.
pub fn check(config: &Config) -> Result<(), StoreConfigError> {
    let tables = config.stores.iter().filter(|store| matches!(store.kind, StoreKind::Postgres(_)));
    tables.cloned().try_for_each(|settings| Store::new(settings).map(drop))
}

fn http_config(http: &HttpSettings, concurrency: usize) -> HttpConfig {
    HttpConfig {
        headers: http.headers.clone(),
        header_files: http.header_files.clone(),
        timeout: http.timeout,
        retries: http.retries,
        backoff: http.backoff,
        concurrency,
        max_value_bytes: http.max_value_bytes.as_usize(),
        tls: tls_options(http.tls.as_ref()).unwrap_or_default(),
        ..HttpConfig::new(http.url.clone())
    }
}

fn postgres_config(postgres: &PostgresSettings) -> PostgresConfig {
    PostgresConfig {
        password_file: postgres.password_file.clone(),
        tls: tls_options(postgres.tls.as_ref()),
        store: postgres.store.clone(),
        delete: postgres.delete.clone(),
        max_connections: postgres.max_connections,
        timeout: postgres.timeout,
        max_value_bytes: postgres.max_value_bytes.as_usize(),
        ..PostgresConfig::new(postgres.url.clone(), postgres.load.clone())
    }
}

fn tls_options(tls: Option<&caddy_contract::Tls>) -> Option<TlsOptions> {
    tls.map(|tls| TlsOptions {
        ca_file: tls.ca_file.clone(),
        client_certificate: tls.client_certificate.clone(),
        server_name: tls.server_name.clone(),
    })
}
