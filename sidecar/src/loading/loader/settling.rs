//! What becomes of what a load brings: whether it is stored, under what, and for how long.
//!
//! Owns the rules of that, and asks L3 for what a value depends on. Never asks the store. What cannot be stored is
//! answered all the same; what somebody has written meanwhile is the answer instead.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{
    codec::envelope::{Body, Generation, GenerationList, GenerationName, Header, SoftExpiry, needs_envelope, seal},
    store::Stored,
};
use caddy_resp::Value;

use super::{Held, Load, Loader};
use crate::{
    cache::{Cached, TierKey},
    envelope::Decoded,
    fills::keep,
    generations::{ALL, How, Learned, Want, generation_life, of_keyspace, of_tag},
    guards::{Guard, hold},
    loading::{Answer, leases::Fate, stores::Found},
    ranges::ActiveRange,
    shared::L3,
    tally::Count,
};

/// What a store says beyond that is no time that Redis takes.
const LONGEST_LIFE: Duration = Duration::from_hours(24 * 365 * 100);

/// What a value will depend on.
pub(super) type Groups = Vec<Learned>;

/// How long a loaded value may be kept.
enum Life {
    NotKept,
    /// `None`: until it is written.
    For(Option<Duration>),
}

impl Loader {
    /// Stores what was found, if nothing came between; else what is there now is the answer.
    pub(super) async fn settle(
        &self,
        load: &Load,
        held: Held<'_>,
        found: Found,
        groups: Result<Groups, String>,
    ) -> Answer {
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
    pub(super) async fn groups(&self, load: &Load) -> Result<Groups, String> {
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
