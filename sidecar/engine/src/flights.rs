//! Single flight: at most one read below the tiers per key, and everybody else waits for it.
//!
//! Owns the waiters of reads in flight. A reader joins a flight only while its token is current and its read is young
//! enough; otherwise it leads a new one, and the old one lives on under its id for those who joined before. Never
//! waits itself and sends nothing: the leader's caller does, and must [`land`](Flights::land) or
//! [`abandon`](Flights::abandon) what it led. Bounded: beyond the bounds the waiter is handed back.

use std::collections::HashMap;
use std::time::Duration;

use hashbrown::{Equivalent, HashTable};

use crate::clock::Moment;
use crate::guards::Guard;
use crate::hash::{KeyHash, TierHash};
use crate::kernel::{FillToken, Kernel, SourceId};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Bounds of a [`Flights`].
#[derive(Clone, Debug)]
pub struct FlightsConfig {
    /// Reads in flight at a time, over all keys.
    pub max_flights: usize,
    /// Waiters of one flight.
    pub max_waiters: usize,
    /// How long a flight can be joined; then the next reader leads a new one. `None`: for the kernel's `max_staleness`, as
    /// reads need it. For loaders: the lease of their slot.
    pub max_age: Option<Duration>,
}

impl Default for FlightsConfig {
    fn default() -> Self {
        Self { max_flights: 65_536, max_waiters: 65_536, max_age: None }
    }
}

/// Names one flight; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlightId(u64);

/// What a reader asks for.
#[derive(Debug)]
pub struct Wanted<'a, Q: ?Sized> {
    /// Where it is read from.
    pub source: SourceId,
    /// Hash of the bare key.
    pub key_hash: KeyHash,
    /// Hash of the tier key.
    pub hash: TierHash,
    /// The tier key, in any borrowed form.
    pub key: &'a Q,
}

/// What became of a reader.
#[derive(Debug)]
#[must_use = "whoever leads has to send the read"]
pub enum Joined<W> {
    /// Send the read on the tracked connection, then land or abandon the flight. The waiter is in it already.
    Lead(FlightId, FillToken),
    /// The waiter is told when the flight lands.
    Waiting(FlightId),
    /// Too many flights or waiters: read L3 without filling.
    Refused(W),
}

/// A flight that is over.
#[derive(Debug)]
pub struct Landed<K, W> {
    /// What was read.
    pub key: K,
    /// Its hash.
    pub hash: TierHash,
    /// What the reply may be filled under.
    pub token: FillToken,
    /// Everybody who waits, the leader first.
    pub waiters: Vec<W>,
}

#[derive(Debug)]
struct Flight<K, W> {
    key: K,
    hash: TierHash,
    token: FillToken,
    deadline: Moment,
    waiters: Vec<W>,
}

#[derive(Debug)]
struct Shard<K, W> {
    /// The newest flight of each key: the only one that can be joined.
    newest: HashTable<(u64, u64)>,
    flights: HashMap<u64, Flight<K, W>>,
}

const SHARDS: u64 = 16;

/// The flights of a sidecar, shared by its workers.
#[derive(Debug)]
pub struct Flights<K, W> {
    shards: Vec<Mutex<Shard<K, W>>>,
    next: AtomicU64,
    flying: AtomicU64,
    config: FlightsConfig,
}

impl<K: Eq, W> Flights<K, W> {
    /// No flights yet.
    pub fn new(config: FlightsConfig) -> Self {
        let shard = || Mutex::new(Shard { newest: HashTable::new(), flights: HashMap::new() });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            next: AtomicU64::new(1),
            flying: AtomicU64::new(0),
            config,
        }
    }

    /// Joins the flight of `key` if there is one that may be joined, else leads a new one from `source`.
    ///
    /// `owned` makes the key of a flight led; `deadline` is that flight's: at [`expire`](Self::expire) after it, all its
    /// waiters are handed back.
    pub fn join<Q>(
        &self,
        kernel: &Kernel,
        wanted: &Wanted<'_, Q>,
        owned: impl FnOnce(&Q) -> K,
        waiter: W,
        now: Moment,
        deadline: Moment,
    ) -> Joined<W>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let &Wanted { source, key_hash, hash, key } = wanted;
        let home = hash.raw() % SHARDS;
        let mut guard = self.shards[home as usize].lock();
        let shard = &mut *guard;
        let newest = shard.newest.find(hash.raw(), |&(other, id)| {
            other == hash.raw() && shard.flights.get(&id).is_some_and(|flight| key.equivalent(&flight.key))
        });
        let newest = newest.map(|&(_, id)| id);
        if let Some(id) = newest
            && let Some(flight) = shard.flights.get_mut(&id)
            && self.may_join(kernel, &flight.token, source, now)
        {
            if flight.waiters.len() >= self.config.max_waiters {
                return Joined::Refused(waiter);
            }
            flight.waiters.push(waiter);
            return Joined::Waiting(FlightId(id));
        }
        if self.flying.load(Ordering::Relaxed) >= self.config.max_flights as u64 {
            return Joined::Refused(waiter);
        }
        // The token is taken here, under the lock, so that it is older than the sending of the read.
        let token = kernel.begin_fill(source, key_hash, now);
        let id = self.next.fetch_add(1, Ordering::Relaxed) * SHARDS + home;
        if let Some(older) = newest {
            unlist(&mut shard.newest, hash, older);
        }
        shard.newest.insert_unique(hash.raw(), (hash.raw(), id), |&(hash, _)| hash);
        shard.flights.insert(id, Flight { key: owned(key), hash, token, deadline, waiters: vec![waiter] });
        self.flying.fetch_add(1, Ordering::Relaxed);
        Joined::Lead(FlightId(id), token)
    }

    /// The read's reply is in (fill it first, then tell the waiters). `None`: the flight was abandoned before; drop the
    /// reply.
    pub fn land(&self, id: FlightId) -> Option<Landed<K, W>> {
        let mut shard = self.shards[(id.0 % SHARDS) as usize].lock();
        let flight = shard.flights.remove(&id.0)?;
        unlist(&mut shard.newest, flight.hash, id.0);
        self.flying.fetch_sub(1, Ordering::Relaxed);
        let Flight { key, hash, token, waiters, .. } = flight;
        Some(Landed { key, hash, token, waiters })
    }

    /// Whether nobody leads a newer flight of the same key: what an overtaken one brings may be too old to be stored.
    pub fn is_newest(&self, id: FlightId) -> bool {
        let shard = self.shards[(id.0 % SHARDS) as usize].lock();
        let Some(flight) = shard.flights.get(&id.0) else { return false };
        shard.newest.find(flight.hash.raw(), |&(_, other)| other == id.0).is_some()
    }

    /// Calls `visit` for the key of every flight in the air.
    pub fn for_each_key(&self, mut visit: impl FnMut(&K)) {
        for shard in &self.shards {
            shard.lock().flights.values().for_each(|flight| visit(&flight.key));
        }
    }

    /// The token of a flight still in the air, for a fill that goes in before its waiters are told.
    pub fn token(&self, id: FlightId) -> Option<FillToken> {
        self.shards[(id.0 % SHARDS) as usize].lock().flights.get(&id.0).map(|flight| flight.token)
    }

    /// The read will get no reply: whoever waits is handed back, to be told why.
    pub fn abandon(&self, id: FlightId) -> Vec<W> {
        self.land(id).map_or_else(Vec::new, |landed| landed.waiters)
    }

    /// Abandons every flight from `source`; call after the flush of its lost connection.
    pub fn abandon_source(&self, source: SourceId) -> Vec<W> {
        self.abandon_where(|flight| flight.token.sent.source() == source)
    }

    /// Abandons every flight whose deadline is at or before `now`.
    pub fn expire(&self, now: Moment) -> Vec<W> {
        self.abandon_where(|flight| flight.deadline <= now)
    }

    fn abandon_where(&self, over: impl Fn(&Flight<K, W>) -> bool) -> Vec<W> {
        let mut waiters = Vec::new();
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            for (id, flight) in shard.flights.extract_if(|_, flight| over(flight)) {
                unlist(&mut shard.newest, flight.hash, id);
                self.flying.fetch_sub(1, Ordering::Relaxed);
                waiters.extend(flight.waiters);
            }
        }
        waiters
    }

    /// Whether a reader at `now` may be answered by the read that `token` was taken for.
    fn may_join(&self, kernel: &Kernel, token: &FillToken, source: SourceId, now: Moment) -> bool {
        let max_age = self.config.max_age.unwrap_or_else(|| kernel.max_staleness());
        let live = kernel.is_current(token) || !kernel.guards().hold(Guard::JoinOnlyLiveFlights);
        let young = now.since(token.sent.at()) < max_age || !kernel.guards().hold(Guard::JoinerAgeLimit);
        token.sent.source() == source && live && young
    }

    /// Flights in the air.
    pub fn len(&self) -> usize {
        self.flying.load(Ordering::Relaxed) as usize
    }

    /// Whether nothing is in the air.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn unlist(newest: &mut HashTable<(u64, u64)>, hash: TierHash, id: u64) {
    if let Ok(found) = newest.find_entry(hash.raw(), |&(_, other)| other == id) {
        found.remove();
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::kernel::{FlushCause, KernelConfig, SourceKind};

    struct Fixture {
        kernel: Kernel,
        source: SourceId,
        flights: Flights<u32, &'static str>,
        now: Moment,
    }

    fn fixture(config: FlightsConfig) -> Fixture {
        let kernel = Kernel::new(&KernelConfig { stripes: 16, ..KernelConfig::default() });
        let source = kernel.register(SourceKind::Tracked).unwrap();
        Fixture { kernel, source, flights: Flights::new(config), now: Moment::from_millis(5_000) }
    }

    impl Fixture {
        fn join(&self, key: u32, waiter: &'static str) -> Joined<&'static str> {
            let key_hash = KeyHash::from_raw(u64::from(key));
            let wanted = Wanted { source: self.source, key_hash, hash: key_hash.tier(0), key: &key };
            self.flights.join(&self.kernel, &wanted, |key| *key, waiter, self.now, self.now + Duration::from_secs(5))
        }

        fn lead(&self, key: u32, waiter: &'static str) -> FlightId {
            match self.join(key, waiter) {
                Joined::Lead(id, _) => id,
                other => panic!("expected to lead, got {other:?}"),
            }
        }
    }

    #[test]
    fn the_second_reader_waits_for_the_first() {
        let f = fixture(FlightsConfig::default());
        let id = f.lead(1, "a");
        assert!(matches!(f.join(1, "b"), Joined::Waiting(same) if same == id));
        let landed = f.flights.land(id).unwrap();
        assert_eq!((landed.key, landed.waiters), (1, vec!["a", "b"]));
        assert!(f.flights.is_empty());
        assert!(f.flights.land(id).is_none(), "a flight lands once");
    }

    #[test]
    fn nobody_joins_a_flight_whose_key_was_written_since() {
        let f = fixture(FlightsConfig::default());
        let old = f.lead(1, "a");
        f.kernel.bump(KeyHash::from_raw(1));
        let new = f.lead(1, "b");
        assert!(matches!(f.join(1, "c"), Joined::Waiting(same) if same == new));
        assert_eq!(f.flights.land(old).unwrap().waiters, ["a"], "the old flight still answers who asked before");
        assert_eq!(f.flights.land(new).unwrap().waiters, ["b", "c"]);
    }

    #[test]
    fn nobody_joins_a_flight_from_before_a_flush() {
        let f = fixture(FlightsConfig::default());
        f.lead(1, "a");
        f.kernel.flush(f.source, FlushCause::Uncertain);
        f.lead(1, "b");
    }

    #[test]
    fn nobody_joins_a_flight_older_than_the_bound() {
        let mut f = fixture(FlightsConfig::default());
        f.lead(1, "a");
        f.now = f.now + Duration::from_millis(999);
        assert!(matches!(f.join(1, "b"), Joined::Waiting(_)));
        f.now = f.now + Duration::from_millis(1);
        f.lead(1, "c");
    }

    #[test]
    fn a_lost_source_hands_back_every_waiter() {
        let f = fixture(FlightsConfig::default());
        f.lead(1, "a");
        f.lead(2, "b");
        let mut waiters = f.flights.abandon_source(f.source);
        waiters.sort_unstable();
        assert_eq!(waiters, ["a", "b"]);
        f.lead(1, "c");
    }

    #[test]
    fn waiters_are_handed_back_at_the_deadline_and_the_late_reply_is_dropped() {
        let f = fixture(FlightsConfig::default());
        let id = f.lead(1, "a");
        assert!(f.flights.expire(f.now + Duration::from_millis(4_999)).is_empty());
        assert_eq!(f.flights.expire(f.now + Duration::from_secs(5)), ["a"]);
        assert!(f.flights.land(id).is_none());
    }

    #[test]
    fn beyond_the_bounds_the_waiter_is_handed_back() {
        let f = fixture(FlightsConfig { max_flights: 1, max_waiters: 1, max_age: None });
        f.lead(1, "a");
        assert!(matches!(f.join(1, "b"), Joined::Refused("b")), "one waiter per flight");
        assert!(matches!(f.join(2, "c"), Joined::Refused("c")), "one flight");
    }
}
