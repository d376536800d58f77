//! Reading through to the app's database: what no tier has is loaded, once in the cluster, and stored for all.
//!
//! A read that found nothing in L3 is handed over here with those who wait for it ([`Loading::miss`]), and a hit on a
//! copy that is near its end asks for a new one ([`Loading::refresh`]). One thread works on them ([`loader`]): it joins
//! who asks for the same key, asks L3 for the right to load ([`leases`]), asks the store in its turn ([`stores`]), stores
//! under that right, and answers. Never reads a socket of an app's and never fills a tier with a value: the next read
//! does that, on the tracked connection. Fails towards the app with `-STOREERR` and what to do, or with the value that
//! was there before, marked stale.

mod answer;
mod breaker;
mod leases;
mod loader;
mod pace;
mod stores;
mod versions;

use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use caddy_engine::{FillToken, KeyHash, Moment, TierHash};
use tokio::sync::mpsc;

pub(crate) use answer::{Answer, Asker, Several};
pub(crate) use loader::run;
pub(crate) use stores::{Store, Stores};
pub use stores::{StoreConfigError, check as check_stores};

use crate::{
    cache::Cached,
    shared::{L3, Shared},
};

/// Reads and refreshes that may wait for the loader's thread; beyond that it does not keep up.
const QUEUE: usize = 65_536;
/// Places for keys whose refresh was asked for a moment ago.
const RECENT: usize = 1024;
/// For so long the same key is not asked for again.
const ASKED_FOR: std::time::Duration = std::time::Duration::from_millis(500);

/// A key that no tier has.
#[derive(Debug)]
pub(crate) struct Miss {
    pub(crate) database: u32,
    pub(crate) key: Bytes,
    /// What was there to be invalidated when it was asked for.
    pub(crate) token: Option<FillToken>,
    /// The token is that of a read on the tracked connection, which found nothing.
    pub(crate) is_tracked: bool,
    /// What L3 has that is no longer fresh.
    pub(crate) stale: Option<Cached>,
    pub(crate) asker: Asker,
}

impl Miss {
    /// Of a key that was not looked for on the tracked connection; what L3 has is seen as it is loaded.
    pub(crate) fn unfilled(shared: &Shared, database: u32, key: Bytes, now: Moment, asker: Asker) -> Self {
        let node = match &shared.l3 {
            L3::Redis(redis) => redis.owner(&key),
            L3::Embedded(_) => None,
        };
        let tracked = node.and_then(|node| node.tracked(database));
        let token = tracked.map(|at| shared.kernel().begin_fill(at.source, KeyHash::of(&key), now));
        Self { database, key, token, is_tracked: false, stale: None, asker }
    }
}

/// A key whose value is near its end.
#[derive(Debug)]
pub(crate) struct Refresh {
    database: u32,
    key: Bytes,
    /// It is due if it is fresh for no longer than this.
    within_millis: u32,
}

#[derive(Debug)]
pub(crate) enum Job {
    Miss(Miss),
    Refresh(Refresh),
}

/// What the loader works on.
pub(crate) type Jobs = mpsc::Receiver<Job>;

/// The way to the loader, and the stores.
pub(crate) struct Loading {
    jobs: mpsc::Sender<Job>,
    stores: ArcSwap<Stores>,
    /// When a refresh was asked for, by hash.
    asked: Box<[AtomicU64]>,
}

impl Loading {
    pub(crate) fn new(stores: Stores) -> (Self, Jobs) {
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let asked = (0..RECENT).map(|_| AtomicU64::new(0)).collect();
        (Self { jobs, stores: ArcSwap::from_pointee(stores), asked }, inbox)
    }

    pub(crate) fn stores(&self) -> arc_swap::Guard<std::sync::Arc<Stores>> {
        self.stores.load()
    }

    pub(crate) fn set_stores(&self, stores: Stores) {
        self.stores.store(std::sync::Arc::new(stores));
    }

    /// Somebody waits for a key that no tier has.
    pub(crate) fn miss(&self, miss: Miss) {
        if let Err(error) = self.jobs.try_send(Job::Miss(miss))
            && let Job::Miss(miss) = error.into_inner()
        {
            miss.asker.answer(Answer::Failed("too many reads wait to be loaded; shed load, or repeat it later".into()));
        }
    }

    /// A copy was read that is fresh for no longer than `within_millis`.
    pub(crate) fn refresh(&self, database: u32, key: &[u8], hash: TierHash, within_millis: u32, now: Moment) {
        let place = &self.asked[hash.raw() as usize % RECENT];
        let last = place.load(Ordering::Relaxed);
        if last != 0 && now.since(Moment::from_nanos(last)) < ASKED_FOR {
            return;
        }
        place.store(now.as_nanos(), Ordering::Relaxed);
        // The next hit asks again.
        let _ = self.jobs.try_send(Job::Refresh(Refresh { database, key: Bytes::copy_from_slice(key), within_millis }));
    }
}
