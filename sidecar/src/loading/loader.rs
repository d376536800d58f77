//! The loader's thread: which loads are under way, who waits for them, and what becomes of what they bring.
//!
//! Owns the table of loads. A read joins the load of its key only while nothing invalidated the key since that load's
//! read of L3 (so that nobody is answered with what was there before a write that he may know of); else it begins
//! another. A load ends at the keyspace's `hardTimeout`, whatever hangs. What was loaded is stored only under the lease
//! that L3 gave before the store was asked, and only if the key is as it was then; the key's stamp is bumped before
//! anybody is answered. What lies in an envelope belongs to its groups, as they were before the store was asked.

mod settling;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{FillToken, KeyHash, Moment};
use caddy_resp::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Answer, Asker, Job, Jobs, Miss, Refresh,
    leases::{Lease, Leases},
    stores::{LoadFailure, Need},
};
use crate::{
    cache::Cached,
    envelope::Decoded,
    guards::{Guard, hold},
    keyspaces::{Id, Source},
    ranges::ActiveRange,
    shared::Shared,
    supervisor::Supervisor,
    tally::Count,
};

/// How often a key that another sidecar loads is looked at, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// See the module.
struct Loader {
    shared: Arc<Shared>,
    supervisor: Supervisor,
    leases: Leases,
    loads: RefCell<HashMap<(u32, Bytes), Rc<Load>>>,
}

/// A load under way.
struct Load {
    database: u32,
    key: Bytes,
    keyspace: Id,
    source: Arc<Source>,
    /// What was there to be invalidated when it was asked for; without one nobody joins.
    token: Option<FillToken>,
    /// Redis tells of every write since.
    is_tracked: bool,
    /// Nobody waits: the value is to be replaced if it is fresh for no longer than this.
    refresh_within: Option<u32>,
    begun: Moment,
    /// The patterns that were in force then.
    patterns: Arc<Vec<Arc<ActiveRange>>>,
    deadline: Instant,
    askers: RefCell<Vec<Asker>>,
    stale: RefCell<Option<Cached>>,
    /// What L3 has that is fresh, and to be replaced.
    fresh: RefCell<Option<Cached>>,
    /// `softTimeout` is over.
    is_slow: Cell<bool>,
}

/// What the right to load came to.
enum Right {
    Given(Lease),
    /// There is nothing to load.
    Needless(Cached),
    /// L3 did not say: what is loaded is not stored.
    Unknown,
}

/// Works until the sidecar ends.
pub(crate) async fn run(shared: Arc<Shared>, mut jobs: Jobs, supervisor: Supervisor) {
    let leases = Leases::new(shared.clone(), supervisor.clone());
    let loader = Rc::new(Loader { shared, supervisor: supervisor.clone(), leases, loads: RefCell::default() });
    loop {
        tokio::select! {
            () = supervisor.shutdown().cancelled() => return,
            Some(job) = jobs.recv() => match job {
                Job::Miss(miss) => loader.miss(miss),
                Job::Refresh(refresh) => loader.refresh(refresh),
            },
        }
    }
}

// === the table ===

impl Loader {
    fn miss(self: &Rc<Self>, miss: Miss) {
        let Miss { database, key, token, is_tracked, stale, asker } = miss;
        let name = (database, key);
        let joined = self.loads.borrow().get(&name).filter(|load| token.is_some() && self.may_join(load)).cloned();
        if let Some(load) = joined {
            self.count(&load, Count::LoadJoined);
            if let Some(stale) = load.stale.borrow().clone().filter(|_| load.is_slow.get()) {
                self.count(&load, Count::ServedStale);
                return asker.answer(Answer::Stale(stale));
            }
            load.askers.borrow_mut().push(asker);
            return;
        }
        match self.load(&name, token.map(|token| (token, is_tracked)), None) {
            Some(load) => {
                load.askers.borrow_mut().push(asker);
                *load.stale.borrow_mut() = stale;
                if token.is_some() {
                    self.loads.borrow_mut().insert(name, load.clone());
                }
                self.start(load);
            }
            // The rules changed meanwhile: it is what L3 said.
            None => asker.answer(Answer::Fresh(Cached::Nil)),
        }
    }

    fn refresh(self: &Rc<Self>, refresh: Refresh) {
        let Refresh { database, key, within_millis } = refresh;
        let name = (database, key);
        if self.loads.borrow().contains_key(&name) {
            return;
        }
        if let Some(load) = self.load(&name, None, Some(within_millis)) {
            self.loads.borrow_mut().insert(name, load.clone());
            self.start(load);
        }
    }

    fn load(
        &self,
        name: &(u32, Bytes),
        token: Option<(FillToken, bool)>,
        refresh_within: Option<u32>,
    ) -> Option<Rc<Load>> {
        let (database, key) = name.clone();
        let keyspaces = self.shared.keyspaces();
        let rule = keyspaces.rule(&key);
        let source = rule.source.clone()?;
        Some(Rc::new(Load {
            database,
            key,
            keyspace: rule.id,
            token: token.map(|(token, _)| token),
            is_tracked: token.is_some_and(|(_, is_tracked)| is_tracked),
            refresh_within,
            begun: self.shared.now(),
            patterns: self.shared.ranges.active(),
            deadline: Instant::now() + source.settings.hard_timeout,
            source,
            askers: RefCell::default(),
            stale: RefCell::default(),
            fresh: RefCell::default(),
            is_slow: Cell::new(false),
        }))
    }

    fn may_join(&self, load: &Load) -> bool {
        let is_current = load.token.is_some_and(|token| self.shared.kernel().is_current(&token));
        // Without announcements a load may be joined for as long as nobody need have heard of a write.
        let longest =
            if load.is_tracked { load.source.settings.hard_timeout } else { self.shared.kernel().max_staleness() };
        (is_current || !hold(Guard::JoinOnlyLiveLoads))
            && load.token.is_some()
            && self.shared.now().since(load.begun) < longest
    }

    fn start(self: &Rc<Self>, load: Rc<Load>) {
        let loader = self.clone();
        self.supervisor.spawn_local("load", async move { loader.run(&load).await });
    }

    fn count(&self, load: &Load, count: Count) {
        self.shared.tally.add(load.keyspace, count);
    }

    // === one load ===

    async fn run(&self, load: &Rc<Load>) {
        let settings = &load.source.settings;
        let mut attempt = Box::pin(self.attempt(load));
        let soft = settings.soft_timeout.map(|soft| load.deadline - settings.hard_timeout + soft);
        let answer = loop {
            let slow_at = soft.filter(|_| !load.is_slow.get()).unwrap_or(load.deadline);
            tokio::select! {
                biased;
                answer = &mut attempt => break answer,
                () = sleep_until(slow_at), if slow_at < load.deadline => {
                    load.is_slow.set(true);
                    let stale = load.stale.borrow().clone();
                    if let Some(stale) = stale {
                        self.tell(load, &Answer::Stale(stale));
                    }
                }
                () = sleep_until(load.deadline) => {
                    self.count(load, Count::LoadTimedOut);
                    let store = load.source.store.name.clone();
                    break failed(load, &LoadFailure::TimedOut { store, limit: settings.hard_timeout });
                }
            }
        };
        drop(attempt);
        let mut loads = self.loads.borrow_mut();
        let name = (load.database, load.key.clone());
        if loads.get(&name).is_some_and(|newest| Rc::ptr_eq(newest, load)) {
            loads.remove(&name);
        }
        drop(loads);
        self.tell(load, &answer);
    }

    /// Answers all who wait, behind what invalidates older copies.
    fn tell(&self, load: &Load, answer: &Answer) {
        let askers = load.askers.take();
        if matches!(answer, Answer::Stale(_)) {
            self.shared.tally.add_many(load.keyspace, Count::ServedStale, askers.len() as u64);
        }
        let answer = answer.held(&self.shared);
        for asker in askers {
            asker.answer(answer.clone());
        }
    }

    async fn attempt(&self, load: &Load) -> Answer {
        // What is on its way to the store is newer than what the store has.
        let pending = || self.shared.behinds.pending(&load.source, &load.key);
        if let Some(write) = hold(Guard::PendingIsAnswered).then(pending).flatten() {
            return Answer::Fresh(write.value().map_or(Cached::Nil, |value| Cached::from_value(&Value::Bulk(value))));
        }
        let mut held = Held { leases: &self.leases, load, lease: None };
        match self.claim(load).await {
            Right::Given(lease) => held.lease = Some(lease),
            Right::Needless(value) => return Answer::Fresh(value),
            Right::Unknown if load.refresh_within.is_some() => return Answer::Fresh(Cached::Nil),
            Right::Unknown => {}
        }
        self.count(load, if load.refresh_within.is_some() { Count::Refresh } else { Count::Load });
        let groups = self.groups(load).await;
        let can_wait = load.refresh_within.is_some() || load.stale.borrow().is_some();
        let need = if can_wait { Need::CanWait } else { Need::Urgent };
        let present = load.fresh.borrow().clone().or_else(|| load.stale.borrow().clone());
        let present = present.as_ref().and_then(Cached::to_bytes);
        match load.source.store.load(load.key.clone(), present, need, &self.supervisor).await {
            Ok(found) => {
                let _in_flight = found.as_ref().map(|found| self.shared.cache.hold(found.value.len()));
                self.settle(load, held, found, groups).await
            }
            Err(failure) => {
                self.count(load, Count::LoadFailed);
                failed(load, &failure)
            }
        }
    }

    /// Waits until L3 gives this sidecar the right to load, or somebody else has loaded.
    async fn claim(&self, load: &Load) -> Right {
        let mut pause = FIRST_LOOK;
        loop {
            let left = load.deadline.saturating_duration_since(Instant::now());
            let Some(claimed) = self.leases.claim(load.database, &load.key, left).await else { return Right::Unknown };
            let held = Held { leases: &self.leases, load, lease: claimed.lease };
            let decoded = self.decode(load, claimed.present.as_ref(), claimed.pttl);
            let is_fresh = decoded.value.exists();
            let is_due = match load.refresh_within {
                None => !is_fresh,
                Some(within) => is_fresh && decoded.pttl.is_some_and(|left| (0..=i64::from(within)).contains(&left)),
            };
            if !is_due {
                if load.refresh_within.is_none() {
                    self.count(load, Count::LoadShared);
                    self.bump(load);
                }
                return Right::Needless(decoded.value);
            }
            if decoded.stale.is_some() {
                *load.stale.borrow_mut() = decoded.stale;
            }
            if is_fresh {
                *load.fresh.borrow_mut() = Some(decoded.value.clone());
            }
            match held.take() {
                Some(lease) => return Right::Given(lease),
                // Somebody else is at it.
                None if load.refresh_within.is_some() => return Right::Needless(decoded.value),
                None => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_LOOK);
                }
            }
        }
    }

    fn decode(&self, load: &Load, present: Option<&Bytes>, pttl: i64) -> Decoded {
        let value = present.map_or(Cached::Nil, |bytes| Cached::from_value(&Value::Bulk(bytes)));
        // A value of which it is not known whether it is in force is loaded anew.
        let decoded = self.shared.decode(load.database, &load.key, value, Some(pttl), &[]);
        decoded.unwrap_or_else(|_| Decoded::plain(Cached::Nil, Some(pttl)))
    }

    fn bump(&self, load: &Load) {
        self.shared.kernel().bump(KeyHash::of(&load.key));
    }
}

/// What comes of a load that failed.
fn failed(load: &Load, failure: &LoadFailure) -> Answer {
    tracing::debug!(%failure, "a load failed");
    match load.stale.borrow().clone() {
        Some(stale) => Answer::Stale(stale),
        None => Answer::Failed(failure.to_string().into()),
    }
}

/// A lease that is given back when it was not used.
struct Held<'a> {
    leases: &'a Leases,
    load: &'a Load,
    lease: Option<Lease>,
}

impl Held<'_> {
    fn take(mut self) -> Option<Lease> {
        self.lease.take()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(lease) = &self.lease {
            self.leases.release(self.load.database, &self.load.key, lease);
        }
    }
}
