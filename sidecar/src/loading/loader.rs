//! The loader's thread: which loads are under way, who waits for them, and what becomes of what they bring.
//!
//! Owns the table of loads. A read joins the load of its key only while nothing invalidated the key since that load's
//! read of L3 (so that nobody is answered with what was there before a write that he may know of); else it begins
//! another. A load ends at the keyspace's `hardTimeout`, whatever hangs. What was loaded is stored only under the lease
//! that L3 gave before the store was asked, and only if the key is as it was then; the key's stamp is bumped before
//! anybody is answered. What lies in an envelope belongs to its groups, as they were before the store was asked.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{
    FillToken, KeyHash, Moment,
    codec::envelope::{Body, Generation, GenerationList, GenerationName, Header, SoftExpiry, needs_envelope, seal},
    store::Stored,
};
use caddy_resp::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Answer, Asker, Job, Jobs, Miss, Refresh,
    leases::{Fate, Lease, Leases},
    stores::{Found, LoadFailure, Need},
};
use crate::{
    cache::{Cached, TierKey},
    envelope::Decoded,
    fills::keep,
    generations::{ALL, How, Learned, Want, generation_life, of_keyspace, of_tag},
    guards::{Guard, hold},
    keyspaces::{Id, Source},
    ranges::ActiveRange,
    shared::{L3, Shared},
    supervisor::Supervisor,
    tally::Count,
};

/// How often a key that another sidecar loads is looked at, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What a store says beyond that is no time that Redis takes.
const LONGEST_LIFE: Duration = Duration::from_hours(24 * 365 * 100);

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

/// What a value will depend on.
type Groups = Vec<Learned>;

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

    // === what a load brings ===

    /// Stores what was found, if nothing came between; else what is there now is the answer.
    async fn settle(&self, load: &Load, held: Held<'_>, found: Found, groups: Result<Groups, String>) -> Answer {
        let value = found.as_ref().map_or(Cached::Nil, |stored| Cached::from_value(&Value::Bulk(&stored.value)));
        let groups = match self.unchanged(load, groups).await {
            Ok(groups) => groups,
            Err(reason) => {
                tracing::debug!(reason, "what was loaded is not stored, since its groups cannot be read");
                return Answer::Fresh(value);
            }
        };
        // What a pattern or a group has invalidated meanwhile goes the way of what may not be kept.
        let is_dead = groups.is_none() || self.is_swept(load);
        let life = found.as_ref().map(|stored| if is_dead { Life::NotKept } else { life(load, stored) });
        let Some(lease) = held.take() else { return Answer::Fresh(value) };
        let (database, key) = (load.database, &load.key);
        let fate = match (&found, life) {
            (Some(stored), Some(Life::For(fresh))) => {
                let groups = groups.unwrap_or_default();
                let (bytes, life) = self.sealed(load, &stored.value, fresh, &groups);
                self.shared.extend(load.database, groups.iter().map(|group| &group.cell), life);
                self.leases.store(database, key, &lease, &bytes, life).await
            }
            // Not to be kept, or gone: what was there before goes too.
            _ if lease.has_value() => self.leases.remove(database, key, &lease).await,
            _ => {
                let there = self.leases.end(database, key, &lease).await;
                there.map(|present| if present.is_some() { Fate::Overtaken } else { Fate::Done })
            }
        };
        if let (Some(Fate::Done), None, false, Some(token)) =
            (fate, &found, lease.has_value(), load.token.as_ref().filter(|_| load.is_tracked))
        {
            let key = TierKey::get(database, key);
            keep(&self.shared, key, token, Decoded::plain(Cached::Nil, Some(-2)));
            // Nothing invalidated the key since it was found absent: there is no copy that is older than this answer.
            if self.shared.kernel().is_current(token) {
                return Answer::Fresh(value);
            }
        }
        self.bump(load);
        match fate {
            Some(Fate::Done) => Answer::Fresh(value),
            Some(Fate::Overtaken) => {
                self.count(load, Count::LoadOvertaken);
                match self.leases.read(database, key).await {
                    Some((present, pttl)) => {
                        let there = self.decode(load, present.as_ref(), pttl).value;
                        self.bump(load);
                        Answer::Fresh(if there.exists() { there } else { value })
                    }
                    None => Answer::Fresh(value),
                }
            }
            Some(Fate::Removed) | None => {
                self.count(load, Count::LoadOvertaken);
                Answer::Fresh(value)
            }
        }
    }

    /// What a value of this keyspace depends on, as it is now: nothing, where values are stored as they are.
    async fn groups(&self, load: &Load) -> Result<Groups, String> {
        let shared = &self.shared;
        let settings = &load.source.settings;
        // Where nothing is announced no copy of what has groups is kept.
        let is_told = matches!(&shared.l3, L3::Redis(redis) if redis.tracks());
        let tags = shared.keyspaces().tags_of(&load.key);
        if tags.is_empty() && (settings.stale_if_error.is_zero() || !is_told) {
            return Ok(Groups::new());
        }
        let life = generation_life(settings.ttl.map(|ttl| ttl.saturating_add(settings.stale_if_error)));
        let groups = [ALL.to_vec(), of_keyspace(&shared.names.name(load.keyspace))];
        let names = groups.into_iter().chain(tags.iter().map(|tag| of_tag(tag)));
        let wants: Vec<_> = names.map(|name| Want { name: shared.domain.key(&name), how: How::Create(life) }).collect();
        let is_known =
            |want: &Want| shared.in_force(load.database, &want.name).filter(|known| known.reading.value.is_some());
        match wants.iter().map(is_known).collect() {
            Some(known) => Ok(known),
            None => shared.learned(load.database, wants).await,
        }
    }

    /// The groups, if all of them are in L3 what they were.
    async fn unchanged(&self, load: &Load, groups: Result<Groups, String>) -> Result<Option<Groups>, String> {
        let before = if hold(Guard::LoadsInGroups) { groups? } else { self.groups(load).await? };
        if before.is_empty() {
            return Ok(Some(before));
        }
        let name = |group: &Learned| Bytes::copy_from_slice(group.cell.name());
        let wants = before.iter().map(|group| Want { name: name(group), how: How::Read }).collect();
        let now = self.shared.learned(load.database, wants).await?;
        let is_same = |group: &Learned| {
            let same = |other: &&Learned| other.cell.name() == group.cell.name();
            now.iter()
                .find(same)
                .is_some_and(|other| other.reading.value.is_some() && other.reading.value == group.reading.value)
        };
        Ok(before.iter().all(is_same).then_some(before))
    }

    /// The bytes for L3 and their life there: longer than they are fresh, if they may be answered stale.
    fn sealed(
        &self,
        load: &Load,
        value: &[u8],
        fresh: Option<Duration>,
        groups: &Groups,
    ) -> (Vec<u8>, Option<Duration>) {
        let stale = load.source.settings.stale_if_error;
        let soft_expiry = fresh.filter(|_| !stale.is_zero()).map(|_| SoftExpiry::at_remaining(stale));
        let life = fresh.map(|fresh| if soft_expiry.is_some() { fresh.saturating_add(stale) } else { fresh });
        if soft_expiry.is_none() && groups.is_empty() && !needs_envelope(value) {
            return (value.to_vec(), life);
        }
        let mut list = GenerationList::default();
        for group in groups {
            if let (Some(name), Some(value)) = (self.shared.domain.name(group.cell.name()), group.reading.value) {
                // At most eighteen short names.
                let _ = list.push(Generation { name: GenerationName::Name(name), value });
            }
        }
        let header = Header { soft_expiry, generations: list.generations(), ..Header::default() };
        (seal(&load.key, &header, Body::plain(value)), life)
    }

    /// Whether a pattern that has the key took effect since the load began.
    fn is_swept(&self, load: &Load) -> bool {
        let is_known = |range: &Arc<ActiveRange>| load.patterns.iter().any(|known| Arc::ptr_eq(known, range));
        let active = self.shared.ranges.active();
        active.iter().any(|range| range.has(load.database, &load.key) && !is_known(range))
    }
}

/// How long a loaded value may be kept.
enum Life {
    NotKept,
    /// `None`: until it is written.
    For(Option<Duration>),
}

/// What comes of a load that failed.
fn failed(load: &Load, failure: &LoadFailure) -> Answer {
    tracing::debug!(%failure, "a load failed");
    match load.stale.borrow().clone() {
        Some(stale) => Answer::Stale(stale),
        None => Answer::Failed(failure.to_string().into()),
    }
}

/// How long a value is fresh: the keyspace's `ttl`, or less if the store says so, shortened at random.
fn life(load: &Load, stored: &Stored<Bytes>) -> Life {
    let settings = &load.source.settings;
    let fresh = match (settings.ttl, stored.fresh_for) {
        (Some(ttl), Some(told)) => Some(ttl.min(told)),
        (ttl, told) => ttl.or(told),
    };
    match fresh {
        Some(fresh) if fresh < Duration::from_millis(1) => Life::NotKept,
        fresh => Life::For(fresh.map(|fresh| shortened(fresh.min(LONGEST_LIFE), settings.jitter_percent))),
    }
}

fn shortened(life: Duration, percent: u32) -> Duration {
    // Each `RandomState` has a key of its own, made from random bits.
    let part = RandomState::new().hash_one(0) % (u64::from(percent) * 100 + 1);
    let less = life.as_nanos() * u128::from(part) / 10_000;
    life.saturating_sub(Duration::from_nanos(u64::try_from(less).unwrap_or(0)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_only_shortens_and_by_no_more_than_it_may() {
        let life = Duration::from_secs(100);
        let lives: Vec<_> = (0..1000).map(|_| shortened(life, 10)).collect();
        assert!(lives.iter().all(|life| (90..=100).contains(&life.as_secs())));
        assert!(lives.iter().any(|one| *one != lives[0]));
        assert_eq!(shortened(life, 0), life);
        assert_eq!(shortened(Duration::ZERO, 50), Duration::ZERO);
    }
}
