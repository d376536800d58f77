//! What the tiers say about one key: a copy that may be served, one that nothing proves current, or nothing.
//!
//! Owns the accounts of it: by keyspace, by tier, of what is read most and of what more memory would give. Sends nothing
//! but a probe that is due.

use std::{borrow::Cow, time::Duration};

use caddy_engine::{Counter, KeyHash, Lookup, Moment};
use caddy_remote::LaneState;
use caddy_resp::Protocol;

use super::conversation::Conversation;
use crate::{
    cache::{Cached, KeyRef, Read},
    probe::probe_if_due,
    shared::L3,
    tally::Count,
};

/// Thirty years after boot: the tiers keep deadlines exactly to a little beyond that, and later ones as that.
const EXACT_UNTIL: Moment = Moment::from_nanos(30 * 365 * 24 * 3600 * 1_000_000_000);

/// What is to be told from a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Value,
    /// When the key expires.
    Expiry,
}

/// What the tiers say about one key.
pub(super) enum Found<R> {
    /// A current copy, already rendered.
    Answered(R),
    /// A copy that nothing proves current.
    Unproven(Cached),
    /// A current copy that its keyspace's rule keeps from being served.
    Observed,
    Absent,
}

impl Conversation {
    /// As [`look_up`](Self::look_up), for what GET left.
    pub(super) fn look_up_value<R>(&self, key: &[u8], render: impl FnOnce(&Cached, Protocol) -> R) -> Found<R> {
        let render = |value: &Cached, _: Moment, protocol| render(value, protocol);
        self.look_up(self.name_of_get(key), KeyHash::of(key), Wanted::Value, render)
    }

    pub(super) fn name_of_get<'a>(&self, key: &'a [u8]) -> KeyRef<'a> {
        KeyRef { database: self.client.database, read: Read::Get, name: key }
    }

    /// Looks a copy up in the tiers and renders it if it is current; sends a probe if one is due. `key` is the hash of the
    /// bare key.
    pub(super) fn look_up<R>(
        &self,
        name: KeyRef<'_>,
        key: KeyHash,
        wanted: Wanted,
        render: impl FnOnce(&Cached, Moment, Protocol) -> R,
    ) -> Found<R> {
        let hash = match name.read {
            Read::Get => name.tier_hash_of(key),
            Read::Request => name.tier_hash(),
        };
        let worker = &self.worker;
        if worker.sampler.is_due() {
            worker.sample(hash, name, self.now);
        }
        let mut tiers = worker.tiers.borrow_mut();
        let (found, probe_due) = match tiers.lookup(hash, &name, self.now) {
            Lookup::Hit(hit) => {
                let (key, probe_due, tier) = (hit.entry.key(), hit.probe_due, hit.tier);
                let keyspace = key.keyspace;
                let stored = hit.entry.value();
                let reuse = &worker.shared.reuse;
                if reuse.takes(hash) && !reuse.repeated(hash, hit.entry.bytes(), hit.idle) {
                    reuse.hit(hash, keyspace.index(), hit.entry.bytes());
                }
                if key.refresh_within > 0
                    && hit.deadline.since(self.now) <= Duration::from_millis(u64::from(key.refresh_within))
                {
                    worker.shared.loading.refresh(name.database, name.name, hash, key.refresh_within, self.now);
                }
                let is_exact = !key.is_bounded && (hit.deadline == Moment::NEVER || hit.deadline < EXACT_UNTIL);
                if wanted == Wanted::Expiry && !is_exact && stored.exists() {
                    worker.tally.add(keyspace, Count::Miss);
                    tiers.recount(tier.counter(), Counter::MissUnusable);
                    (Found::Absent, probe_due)
                } else if key.is_observed {
                    worker.tally.add(keyspace, Count::WouldHit);
                    tiers.recount(tier.counter(), Counter::Observed);
                    (Found::Observed, probe_due)
                } else if self.patterns.is_blind {
                    // A pattern that nobody here could look up may have it.
                    let copy = stored.open().map(Cow::into_owned);
                    worker.tally.add(keyspace, Count::Miss);
                    tiers.recount(tier.counter(), Counter::UncertainLapsed);
                    (copy.map_or(Found::Absent, Found::Unproven), probe_due)
                } else if let Some(value) = stored.ready() {
                    worker.tally.add(keyspace, Count::hit(tier));
                    (Found::Answered(render(value, hit.deadline, self.client.protocol)), probe_due)
                } else if let Some(value) = self.unpack(hash, hit.entry, tier) {
                    worker.tally.add(keyspace, Count::hit(tier));
                    (Found::Answered(render(&value, hit.deadline, self.client.protocol)), probe_due)
                } else {
                    worker.tally.add(keyspace, Count::Miss);
                    tiers.recount(tier.counter(), Counter::MissUnusable);
                    (Found::Absent, probe_due)
                }
            }
            Lookup::Uncertain(copy) => {
                let value = copy.entry.value().open().map(Cow::into_owned);
                let counter = copy.doubt.counter();
                match self.count_miss(name) {
                    Count::WouldMiss => {
                        tiers.recount(counter, Counter::Observed);
                        (Found::Absent, true)
                    }
                    _ => (value.map_or(Found::Absent, Found::Unproven), true),
                }
            }
            Lookup::Miss(miss) if name.read == Read::Get && self.is_known_absent(name.name, key) => {
                tiers.recount(miss.counter(), Counter::Filtered);
                (Found::Answered(render(&Cached::Nil, Moment::NEVER, self.client.protocol)), false)
            }
            Lookup::Miss(miss) => {
                if self.count_miss(name) == Count::WouldMiss {
                    tiers.recount(miss.counter(), Counter::Observed);
                }
                (Found::Absent, false)
            }
        };
        drop(tiers);
        if probe_due {
            self.send_probe(name.key());
        }
        found
    }

    /// Whether the negative filter of the key's keyspace knows that there is no such key; counted.
    fn is_known_absent(&self, key: &[u8], hash: KeyHash) -> bool {
        let shared = &self.worker.shared;
        let keyspaces = shared.keyspaces();
        let rule = keyspaces.rule(key);
        let knows = |filter| !self.patterns.is_blind && shared.absences.is_absent(shared, filter, key, hash, self.now);
        let is_absent = rule.filter.as_deref().is_some_and(knows);
        if is_absent {
            self.worker.tally.add(rule.id, Count::Filtered);
        }
        is_absent
    }

    /// Counts a read that no copy answers, as what its keyspace's rule makes of it.
    pub(super) fn count_miss(&self, name: KeyRef<'_>) -> Count {
        let keyspaces = self.worker.shared.keyspaces();
        let rule = keyspaces.rule(name.key());
        let count = match (rule.caches(), rule.observes()) {
            (false, _) => Count::Off,
            (true, true) => Count::WouldMiss,
            (true, false) => Count::Miss,
        };
        self.worker.tally.add(rule.id, count);
        count
    }

    fn send_probe(&self, key: &[u8]) {
        let L3::Redis(redis) = &self.worker.shared.l3 else { return };
        if let Some(node) = redis.owner(key)
            && let Some(tracked) = node.tracked(self.client.database)
            && tracked.lane.state() == LaneState::Ready
        {
            probe_if_due(&self.worker.shared, &node, &tracked, self.now);
        }
    }
}
