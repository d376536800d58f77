//! Generations in L3: what they are called, and which of them this sidecar answers for.
//!
//! A generation is a key `caddy:<domain>:g:<name>` of 128 random bits, what is beside them (a parent's own parents), and a
//! time to live. It is renewed by deleting it, which any client can do. What stands under the key is `value.rs`'s, how it is
//! read and made is `learning.rs`'s.
//!
//! Never decides what an entry depends on, and reads nothing.

mod learning;
mod value;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use caddy_engine::{Moment, generations::Generations};
use caddy_remote::cluster;
use parking_lot::Mutex;

use crate::ranges::FAILOVER_WINDOW;

pub(crate) use learning::{FOREIGN, How, Learn, Learned, Then, Want};
pub(crate) use value::{expiring, fresh_value, parents_of_bytes, parents_to_bytes, parents_within, value_of, was};

/// A generation lives for so long behind the last entry without an end of its own that carries it.
pub(crate) const LIFE: Duration = Duration::from_hours(24 * 7);
/// For so long at least.
const LEAST_LIFE: Duration = Duration::from_hours(1);
/// Generations of which something is known, at most: some 200 bytes each.
const MAX_CELLS: usize = 100_000;
/// So many invalidations are remembered each by itself.
const MAX_RECENT: usize = 10_000;

/// The generations of a domain.
pub(crate) struct Domain {
    /// `caddy:<domain>:`
    prefix: String,
    in_cluster: bool,
    cells: Generations,
    /// The oldest first.
    recent: Mutex<VecDeque<Recent>>,
}

// === impl Domain ===

impl Domain {
    pub(crate) fn new(domain: &str, in_cluster: bool) -> Self {
        Self {
            prefix: format!("caddy:{domain}:"),
            in_cluster,
            cells: Generations::new(MAX_CELLS),
            recent: Mutex::default(),
        }
    }

    /// The key of what is called so within the domain. In a cluster the generation of a parent is in the slot of the
    /// parent, so that one step can be about both.
    pub(crate) fn key(&self, name: &[u8]) -> Bytes {
        match name.strip_prefix(PARENT).filter(|_| self.in_cluster) {
            Some(parent) => {
                let slot = cluster::tag_of(cluster::slot_of(parent)).to_string();
                [self.prefix.as_bytes(), b"{", slot.as_bytes(), b"}:g:", name].concat().into()
            }
            None => [self.prefix.as_bytes(), b"g:", name].concat().into(),
        }
    }

    /// What a key is called within the domain.
    pub(crate) fn name<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let rest = match rest.first() {
            Some(b'{') => rest.get(rest.iter().position(|byte| *byte == b'}')? + 2..)?,
            _ => rest,
        };
        rest.strip_prefix(b"g:")
    }

    /// How many are known of.
    pub(crate) fn count(&self) -> usize {
        self.cells.len()
    }

    /// These were invalidated by this sidecar, which answers for it should L3 lose that.
    pub(crate) fn remember(&self, now: Moment, database: u32, keys: impl Iterator<Item = Bytes>, mode: Mode) {
        let mut recent = self.recent.lock();
        while recent.front().is_some_and(|one| one.at + FAILOVER_WINDOW <= now) {
            recent.pop_front();
        }
        recent.extend(keys.map(|key| Recent { at: now, database, key, mode }));
        if recent.len() > MAX_RECENT {
            // Everything then, which is more than was asked for, and little to remember.
            let databases: std::collections::BTreeSet<u32> = recent.iter().map(|one| one.database).collect();
            let all = |database| Recent { at: now, database, key: self.key(ALL), mode: Mode::Remove };
            *recent = databases.into_iter().map(all).collect();
        }
    }

    /// These were not invalidated after all: who wanted it was told so.
    pub(crate) fn forget(&self, at: Moment, database: u32, keys: &[Bytes]) {
        self.recent.lock().retain(|one| one.at != at || one.database != database || !keys.contains(&one.key));
    }

    /// What was invalidated lately in a database.
    fn recent(&self, now: Moment, database: u32) -> Vec<(Bytes, Mode)> {
        let recent = self.recent.lock();
        let is_recent = |one: &&Recent| one.database == database && one.at + FAILOVER_WINDOW > now;
        recent.iter().filter(is_recent).map(|one| (one.key.clone(), one.mode)).collect()
    }
}

/// What becomes of what is invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// It is gone.
    #[default]
    Remove,
    /// It is stale: answered only where nothing better can be had.
    Expire,
}

/// An invalidation of a generation by this sidecar.
struct Recent {
    at: Moment,
    database: u32,
    key: Bytes,
    mode: Mode,
}

/// The generation of everything.
pub(crate) const ALL: &[u8] = b"a";

/// The generation of a keyspace.
pub(crate) fn of_keyspace(name: &str) -> Vec<u8> {
    [b"s:", name.as_bytes()].concat()
}

/// The generation of a tag.
pub(crate) fn of_tag(tag: &[u8]) -> Vec<u8> {
    [b"t:", tag].concat()
}

const PARENT: &[u8] = b"k:";

/// The generation that what depends on a key carries.
pub(crate) fn of_parent(key: &[u8]) -> Vec<u8> {
    [PARENT, key].concat()
}

/// The key whose dependents carry a generation of this name.
pub(crate) fn parent_of(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(PARENT)
}

/// How long a generation is to live that an entry carries which lives for `life`.
///
/// Values that live for long and for a moment may carry one tag: whoever makes that makes it for an hour at least, so that it
/// is there still when the next value has it live longer.
pub(crate) fn generation_life(life: Option<Duration>) -> Duration {
    life.map_or(LIFE, |life| (life * 2).max(LEAST_LIFE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parents_generation_is_in_the_slot_of_the_parent() {
        for key in ["plain", "{tag}rest", "a}b", "k:{x}"] {
            for in_cluster in [false, true] {
                let domain = Domain::new("shop.web", in_cluster);
                let generation = domain.key(&of_parent(key.as_bytes()));
                assert_eq!(domain.name(&generation), Some(&of_parent(key.as_bytes())[..]), "{key}");
                if in_cluster {
                    assert_eq!(cluster::slot_of(&generation), cluster::slot_of(key.as_bytes()), "{key}");
                }
            }
        }
        let domain = Domain::new("shop.web", true);
        assert_eq!(&domain.key(&of_tag(b"{x}"))[..], b"caddy:shop.web:g:t:{x}");
        assert_eq!(domain.name(b"caddy:shop.web:events"), None);
        assert_eq!(domain.name(b"caddy:shop.web:{a"), None);
    }

    #[test]
    fn more_invalidations_than_are_remembered_become_one_of_everything() {
        let domain = Domain::new("d", false);
        let keys = |count: usize| (0..count).map(|n| Bytes::from(n.to_string()));
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        domain.remember(at(1), 3, keys(2), Mode::Expire);
        domain.remember(at(2), 0, keys(MAX_RECENT - 2), Mode::Remove);
        assert_eq!((domain.recent(at(3), 3).len(), domain.recent(at(3), 0).len()), (2, MAX_RECENT - 2));
        domain.remember(at(4), 0, keys(1), Mode::Remove);
        for database in [0, 3] {
            assert_eq!(domain.recent(at(5), database), [(domain.key(ALL), Mode::Remove)]);
        }
        domain.remember(at(6), 3, keys(1), Mode::Remove);
        domain.remember(at(7), 3, keys(1), Mode::Expire);
        domain.forget(at(6), 3, &[Bytes::from_static(b"0")]);
        assert_eq!(
            domain.recent(at(8), 3)[1..],
            [(Bytes::from_static(b"0"), Mode::Expire)],
            "what was refused is nothing"
        );
        assert!(domain.recent(at(60), 0).is_empty(), "a failover that long ago has lost nothing of it");
    }
}
