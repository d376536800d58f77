//! One shard of L2: a table of entries, their order of eviction, their deadlines and their bytes.
//!
//! Never above its budget: room is made before an entry goes in. Whatever leaves is marked dead first, so that no L1
//! slot serves it on.

use hashbrown::{Equivalent, HashTable};

use super::GroupSize;
use super::wheel::{Step, Wheel};
use crate::clock::Moment;
use crate::entry::Shared;
use crate::guards::Guard;
use crate::hash::TierHash;
use crate::kernel::Kernel;
use crate::policy::{Policy, PolicyKind, Slots};
use crate::slab::Slab;
use crate::stats::{Counter, SharedStats};
use crate::weigh::Weigh;

pub(super) struct Shard<K, V> {
    table: HashTable<Shared<K, V>>,
    slots: Slots<K, V>,
    policy: Box<dyn Policy<K, V>>,
    wheel: Wheel,
    bytes: usize,
    /// The same bytes by group.
    groups: Vec<GroupSize>,
    max_bytes: usize,
    max_entries: usize,
}

/// More than the containers of a single entry need.
const LEAST: usize = 3 << 10;

/// Why an entry leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Evicted,
    Replaced,
    Removed,
    Expired,
}

impl<K, V> Shard<K, V>
where
    K: Weigh + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(super) fn new(policy: PolicyKind, max_bytes: usize, max_entries: usize) -> Self {
        Self {
            table: HashTable::new(),
            slots: Slab::new(),
            policy: policy.build(max_bytes),
            wheel: Wheel::new(),
            bytes: 0,
            groups: Vec::new(),
            max_bytes,
            max_entries,
        }
    }

    #[inline]
    pub(super) fn find<Q>(&self, hash: TierHash, key: &Q) -> Option<&Shared<K, V>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.table.find(hash.raw(), |entry| key.equivalent(entry.key()))
    }

    pub(super) fn hit(&mut self, slot: u32) {
        self.policy.hit(&mut self.slots, slot);
    }

    pub(super) fn entries(&self) -> usize {
        self.table.len()
    }

    /// Bytes of entries and of all that they are kept in, as allocated.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.containers()
    }

    pub(super) fn groups(&self) -> &[GroupSize] {
        &self.groups
    }

    /// The size of the group that `entry` is counted in.
    fn group(&mut self, entry: &Shared<K, V>) -> &mut GroupSize {
        let group = entry.key().group();
        if self.groups.len() <= group {
            self.groups.resize(group + 1, GroupSize::default());
        }
        &mut self.groups[group]
    }

    fn containers(&self) -> usize {
        let groups = self.groups.capacity() * size_of::<GroupSize>();
        groups + self.table.allocation_size() + self.slots.bytes() + self.wheel.bytes() + self.policy.bytes()
    }

    /// Bytes that the next insertion would allocate for the containers. A table that grows is for a moment there twice;
    /// that moment counts.
    fn growth(&self) -> usize {
        let table = if self.table.len() < self.table.capacity() {
            0
        } else {
            // The next power of two of buckets, and a control byte for each.
            (2 * self.table.allocation_size()).max(16 * (size_of::<Shared<K, V>>() + 1))
        };
        table + self.slots.growth()
    }

    /// Installs `entry` in place of the one under its key, evicting until it fits. `false`: it never could, or a newer
    /// copy is already there; then nothing has changed.
    pub(super) fn insert(&mut self, entry: &Shared<K, V>, kernel: &Kernel, stats: &SharedStats) -> Result<(), Refusal>
    where
        K: Eq,
    {
        if entry.bytes() + self.wheel.bytes() + self.policy.bytes() + LEAST > self.max_bytes || self.max_entries == 0 {
            return Err(Refusal::TooLarge);
        }
        let hash = entry.hash();
        let present = self.table.find(hash.raw(), |other| other.hash() == hash && other.key() == entry.key()).cloned();
        if let Some(present) = present {
            let (new, old) = (entry.basis(), present.basis());
            if new.source == old.source && (new.stamp, new.flushes) < (old.stamp, old.flushes) {
                return Err(Refusal::Outdated);
            }
            self.take_out(present.slot(), Leave::Replaced, kernel, stats);
        }
        // Before the room is counted, which its row takes from.
        self.group(entry);
        // An eviction makes room for the entry and leaves a slot, so that the containers need not grow where they cannot.
        while self.bytes() + self.growth() + entry.bytes() > self.max_bytes || self.table.len() >= self.max_entries {
            let Some(slot) = self.policy.victim(&mut self.slots) else { break };
            self.discard(slot, Leave::Evicted, kernel, stats);
        }
        let slot = self.slots.insert(entry.clone());
        entry.set_slot(slot);
        self.policy.insert(&mut self.slots, slot);
        self.wheel.insert(&mut self.slots, slot, entry.deadline());
        self.table.insert_unique(hash.raw(), entry.clone(), |entry| entry.hash().raw());
        self.bytes += entry.bytes();
        let group = self.group(entry);
        group.entries += 1;
        group.bytes += entry.bytes();
        Ok(())
    }

    /// Removes the entry under `key`, if any.
    pub(super) fn remove<Q>(&mut self, hash: TierHash, key: &Q, kernel: &Kernel, stats: &SharedStats) -> bool
    where
        Q: Equivalent<K> + ?Sized,
    {
        let Some(slot) = self.find(hash, key).map(|entry| entry.slot()) else { return false };
        self.take_out(slot, Leave::Removed, kernel, stats);
        true
    }

    pub(super) fn clear(&mut self, kernel: &Kernel, stats: &SharedStats) {
        while let Some(slot) = self.policy.victim(&mut self.slots) {
            self.discard(slot, Leave::Removed, kernel, stats);
        }
    }

    /// Frees what has expired, in at most `steps` steps; tells how many it used.
    pub(super) fn expire(&mut self, now: Moment, steps: usize, kernel: &Kernel, stats: &SharedStats) -> usize {
        for used in 0..steps {
            match self.wheel.step(&mut self.slots, now) {
                Step::Expired(slot) => self.take_out(slot, Leave::Expired, kernel, stats),
                Step::Worked => {}
                Step::Idle => return used,
            }
        }
        steps
    }

    fn take_out(&mut self, slot: u32, cause: Leave, kernel: &Kernel, stats: &SharedStats) {
        self.policy.remove(&mut self.slots, slot);
        self.discard(slot, cause, kernel, stats);
    }

    /// Frees a slot that the policy has let go of.
    fn discard(&mut self, slot: u32, cause: Leave, kernel: &Kernel, stats: &SharedStats) {
        self.wheel.remove(&mut self.slots, slot);
        let Some(entry) = self.slots.remove(slot) else { return };
        if kernel.guards().hold(Guard::DeadFlag) {
            entry.kill();
        }
        self.bytes -= entry.bytes();
        let group = self.group(&entry);
        group.entries -= 1;
        group.bytes -= entry.bytes();
        let hash = entry.hash().raw();
        if let Ok(found) = self.table.find_entry(hash, |other| std::sync::Arc::ptr_eq(other, &entry)) {
            found.remove();
        }
        let counter = match cause {
            Leave::Evicted if kernel.is_void(entry.basis()) => Counter::EvictedVoid,
            Leave::Evicted => Counter::EvictedForRoom,
            Leave::Replaced => Counter::Replaced,
            Leave::Removed => Counter::Removed,
            Leave::Expired => Counter::Expired,
        };
        stats.add(counter);
    }
}

/// Why an entry was not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooLarge,
    Outdated,
}
