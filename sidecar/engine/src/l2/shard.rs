//! One shard of L2: places for entries, an index to find them, their order of eviction, their deadlines and their bytes.
//!
//! Never above its budget: room is made before an entry goes in. Whatever leaves is marked dead first, so that no L1
//! slot serves it on; while such a slot or a reader still points to it, it is memory in use and counts on, and its place in the
//! list of such is more: who lets entries go for another reason than room shrinks behind it. Every function
//! does a bounded amount of work; what needs more says so and is called again, with the lock let go in between.

use std::sync::Arc;

use hashbrown::Equivalent;

use super::GroupSize;
use super::index::{Index, MAX_PLACES};
use super::slots::{Placed, Slots, Times};
use super::wheel::{Step, Wheel};
use crate::clock::Moment;
use crate::entry::Shared;
use crate::guards::Guard;
use crate::hash::TierHash;
use crate::hold::Hold;
use crate::kernel::Kernel;
use crate::policy::{Duel, Policy, PolicyKind};
use crate::slab::Slab;
use crate::stats::{Counter, Counts};

pub(super) struct Shard<K: Hold, V: Hold> {
    index: Index,
    slots: Slots<K, V>,
    policy: Box<dyn Policy<K, V>>,
    wheel: Wheel,
    /// Of the entries.
    bytes: usize,
    /// Of index, places, policy and wheel, which grow only when an entry is put in.
    containers: usize,
    /// The same bytes by group.
    groups: Vec<GroupSize>,
    /// Entries that have left while somebody still pointed to them.
    leaving: Vec<Shared<K, V>>,
    leaving_bytes: usize,
    /// Those before it have not been looked at in this round.
    look: usize,
    counts: Counts,
    max_entries: usize,
}

/// Groups that are counted apart: a row for each is kept, whatever number a key says.
const GROUPS_MAX: usize = 1 << 12;

/// More than the containers of a single entry need.
const LEAST: usize = 5 << 10;

/// So many entries are let go of at a time before others may have the lock.
pub(super) const SLICE: usize = 32;

/// Why an entry leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Evicted,
    Replaced,
    Removed,
    Expired,
}

impl<K: Hold, V: Hold> Shard<K, V> {
    pub(super) fn new(policy: PolicyKind, duel: &Arc<Duel>, max_entries: usize) -> Self {
        let mut this = Self {
            index: Index::new(),
            slots: Slab::new(),
            policy: policy.build(duel),
            wheel: Wheel::new(),
            bytes: 0,
            containers: 0,
            groups: Vec::new(),
            leaving: Vec::new(),
            leaving_bytes: 0,
            look: 0,
            counts: Counts::new(),
            max_entries: max_entries.min(MAX_PLACES),
        };
        this.containers = this.container_bytes();
        this
    }

    /// The place of the entry under `key`.
    #[inline]
    pub(super) fn find<Q>(&self, hash: TierHash, key: &Q) -> Option<(u32, &Placed<K, V>)>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        self.index.find(&self.slots, hash.raw() as u32, |placed| key.equivalent(placed.entry.key()))
    }

    /// Lets at most so many entries go, as long as there is more than the budget; tells how many.
    pub(super) fn shrink(&mut self, max_bytes: usize, most: usize, kernel: &Kernel) -> usize {
        for gone in 0..most {
            if self.bytes() <= max_bytes {
                return gone;
            }
            if !self.evict(kernel) {
                return gone;
            }
        }
        most
    }

    /// The times of this very entry, if it is here.
    pub(super) fn times_of(&self, hash: TierHash, entry: &Shared<K, V>) -> Option<Times>
    where
        K::Held: Eq,
    {
        let (_, placed) = self.find(hash, &Same(entry.key()))?;
        placed.entry.is_same(entry).then(|| placed.times())
    }

    pub(super) fn hit(&mut self, slot: u32) {
        self.policy.hit(&mut self.slots, slot);
    }

    pub(super) const fn entries(&self) -> usize {
        self.index.len()
    }

    /// Bytes of entries and of all that they are kept in, as allocated.
    pub(super) fn bytes(&self) -> usize {
        let groups = self.groups.capacity() * size_of::<GroupSize>();
        let leaving = self.leaving.capacity() * size_of::<Shared<K, V>>();
        (self.bytes + self.containers + groups + leaving).saturating_add(self.leaving_bytes)
    }

    fn container_bytes(&self) -> usize {
        self.index.bytes() + self.slots.bytes() + self.wheel.bytes() + self.policy.bytes()
    }

    /// What was put in is a fill, and not another form of what was there.
    pub(super) fn count_fill(&mut self) {
        self.counts.add(Counter::Filled);
    }

    /// What was filled and what left, by cause.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn groups(&self) -> &[GroupSize] {
        &self.groups
    }

    /// The group that `entry` is counted in, which has a row.
    #[inline]
    fn group(&mut self, entry: &Shared<K, V>) -> usize {
        let group = K::group(entry.key()).min(GROUPS_MAX - 1);
        if self.groups.len() <= group {
            self.groups.resize(group + 1, GroupSize::default());
        }
        group
    }

    /// Bytes that the next insertion would allocate for the containers.
    fn growth(&self) -> usize {
        if self.slots.has_free() {
            // For a place that was in use before there is all but, perhaps, a bucket.
            return self.index.growth();
        }
        let places = self.slots.growth() + self.wheel.growth(&self.slots) + self.policy.growth(&self.slots);
        self.index.growth() + places
    }

    /// Whether an entry of so many bytes would fit if it were alone.
    fn could_hold(&self, bytes: usize, max_bytes: usize) -> bool {
        let rest = max_bytes.saturating_sub(LEAST);
        // Beside those that stay as large without entries: certain, and quicker to tell, if it is so beside all of them.
        bytes.saturating_add(self.containers) <= rest
            || bytes.saturating_add(self.wheel.bytes() + self.policy.bytes()) <= rest
    }

    /// Makes room for `entry`, in whose place the present one under its key goes, if it fits into `max_bytes` after at most
    /// [`SLICE`] evictions.
    pub(super) fn make_room(
        &mut self,
        hash: TierHash,
        entry: &Shared<K, V>,
        max_bytes: usize,
        kernel: &Kernel,
    ) -> Result<Room, Refusal>
    where
        K::Held: Eq,
    {
        let bytes = entry.bytes();
        if self.max_entries == 0 || !self.could_hold(bytes, max_bytes) {
            return Err(Refusal::TooLarge);
        }
        self.policy.expect(hash.raw() as u32);
        if let Some((slot, present)) = self.find(hash, &Same(entry.key())) {
            if entry.basis().is_older_than(&present.entry.basis()) {
                return Err(Refusal::Outdated);
            }
            self.take_out(slot, Leave::Replaced, kernel);
        }
        // Before the room is counted, which its row takes from.
        let group = self.group(entry);
        // An eviction makes room for the entry and leaves a place, so that the containers need not grow where they cannot.
        let mut evicted = 0;
        let mut growth;
        while self.entries() >= self.max_entries || {
            growth = self.growth();
            self.bytes().saturating_add(growth).saturating_add(bytes) > max_bytes
        } {
            if evicted == SLICE {
                return Err(Refusal::NotYet);
            }
            if !self.evict(kernel) {
                return Err(Refusal::TooLarge);
            }
            evicted += 1;
        }
        Ok(Room { bytes, group, evicted, grows: growth > 0 })
    }

    /// Puts `entry` into the room that was just made for it.
    pub(super) fn place(&mut self, hash: TierHash, entry: Shared<K, V>, times: Times, room: &Room) {
        let slot = self.slots.insert(Placed::new(entry, hash.raw() as u32, times));
        self.bytes += room.bytes;
        let group = &mut self.groups[room.group];
        group.entries += 1;
        group.bytes += room.bytes;
        self.index.insert(&mut self.slots, slot);
        self.policy.insert(&mut self.slots, slot);
        self.wheel.insert(slot, times.due());
        if room.grows {
            self.containers = self.container_bytes();
        }
    }

    pub(super) fn remove<Q>(&mut self, hash: TierHash, key: &Q, kernel: &Kernel) -> bool
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let Some((slot, _)) = self.find(hash, key) else { return false };
        self.take_out(slot, Leave::Removed, kernel);
        true
    }

    /// Removes what lies in the [`SLICE`] places from `cursor` on; the next cursor, or `None` at the end.
    pub(super) fn clear(&mut self, cursor: u32, kernel: &Kernel) -> Option<u32> {
        let next = cursor + SLICE as u32;
        for slot in cursor..next.min(self.slots.span()) {
            if self.slots.item(slot).is_some() {
                self.take_out(slot, Leave::Removed, kernel);
            }
        }
        (next < self.slots.span()).then_some(next)
    }

    /// Shows the keys in the [`SLICE`] places from `cursor` on; the next cursor, or `None` at the end. Entries keep their
    /// places, so that those that stay are seen.
    pub(super) fn visit_keys(&self, cursor: u32, visit: &mut impl FnMut(&K::Held)) -> Option<u32> {
        let next = cursor + SLICE as u32;
        for slot in cursor..next.min(self.slots.span()) {
            if let Some(placed) = self.slots.item(slot) {
                visit(placed.entry.key());
            }
        }
        (next < self.slots.span()).then_some(next)
    }

    /// Frees what has expired, in at most `steps` steps; tells how many it used.
    pub(super) fn expire(&mut self, now: Moment, steps: usize, kernel: &Kernel) -> usize {
        for used in 0..steps {
            match self.wheel.step(&self.slots, now) {
                Step::Expired(slot) => self.take_out(slot, Leave::Expired, kernel),
                Step::Worked => {}
                Step::Idle => return used,
            }
        }
        steps
    }

    /// Lets the next entry go. `false`: there is none.
    fn evict(&mut self, kernel: &Kernel) -> bool {
        let Some(slot) = self.policy.victim(&mut self.slots) else { return false };
        self.discard(slot, Leave::Evicted, kernel);
        // Nobody has looked for long at the one after it: what it is noted in will be here when its turn comes, and all of it,
        // since a newcomer will be written to its memory.
        if let Some(next) = self.policy.foresee(&self.slots).and_then(|next| self.slots.item(next)) {
            next.entry.prefetch();
            self.index.prefetch(next.hash);
        }
        true
    }

    fn take_out(&mut self, slot: u32, cause: Leave, kernel: &Kernel) {
        self.policy.remove(&mut self.slots, slot);
        self.discard(slot, cause, kernel);
    }

    /// Frees a place that the policy has let go of.
    fn discard(&mut self, slot: u32, cause: Leave, kernel: &Kernel) {
        self.index.remove(&mut self.slots, slot);
        let Some(Placed { entry, .. }) = self.slots.remove(slot) else { return };
        if kernel.guards().hold(Guard::DeadFlag) {
            entry.kill();
        }
        let bytes = entry.bytes();
        // What weighs more than it did, which nothing may, takes no others out of the counts.
        self.bytes = self.bytes.saturating_sub(bytes);
        let group = self.group(&entry);
        let of_group = &mut self.groups[group];
        of_group.entries = of_group.entries.saturating_sub(1);
        of_group.bytes = of_group.bytes.saturating_sub(bytes);
        let counter = match cause {
            Leave::Evicted if kernel.is_void(&entry.basis()) => Counter::EvictedVoid,
            Leave::Evicted => Counter::EvictedForRoom,
            Leave::Replaced => Counter::Replaced,
            Leave::Removed => Counter::Removed,
            Leave::Expired => Counter::Expired,
        };
        self.counts.add(counter);
        if entry.is_shared() {
            self.leaving_bytes = self.leaving_bytes.saturating_add(bytes);
            self.leaving.push(entry);
        }
    }

    /// Whether there are entries that have left while somebody still pointed to them.
    #[inline]
    pub(super) const fn has_left(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Looks at so many of the entries that have left, one after the other, and gives those out that nobody else points to
    /// any more: to be dropped when the lock has been let go, since a value's drop may come back here.
    pub(super) fn take_left(&mut self, looks: usize) -> Vec<Shared<K, V>> {
        let mut left = Vec::new();
        for _ in 0..looks.min(self.leaving.len()) {
            let before = if self.look == 0 { self.leaving.len() } else { self.look.min(self.leaving.len()) };
            self.look = before.saturating_sub(1);
            if self.leaving.get(self.look).is_some_and(|entry| !entry.is_shared()) {
                let entry = self.leaving.swap_remove(self.look);
                self.leaving_bytes = self.leaving_bytes.saturating_sub(entry.bytes());
                left.push(entry);
            }
        }
        left
    }
}

/// Room for one entry.
#[derive(Debug)]
pub(super) struct Room {
    bytes: usize,
    group: usize,
    /// So many entries have left for it.
    pub(super) evicted: usize,
    /// The containers will allocate.
    grows: bool,
}

/// A key as an entry holds it, looked up by itself.
struct Same<'a, T: ?Sized>(&'a T);

impl<T: Eq + ?Sized> Equivalent<T> for Same<'_, T> {
    fn equivalent(&self, key: &T) -> bool {
        self.0 == key
    }
}

/// Why an entry was not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooLarge,
    /// A newer copy is there already.
    Outdated,
    /// Room is being made: let others have the lock, then try again.
    NotYet,
}
