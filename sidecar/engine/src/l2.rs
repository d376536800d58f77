//! L2: the tier that all workers of a sidecar share. Sharded, byte-exact, bounded.
//!
//! Owns the entries; L1 only points at them. A lookup takes one shard's lock (shared, unless the policy orders hits) and
//! no other; nothing waits here for anything but that lock. It does not judge copies: that is the kernel's.
//!
//! One budget bounds the entries, their tables, entries that were let go of while somebody still points to them, and the
//! bytes [in flight](crate::in_flight), for which entries make way.

mod index;
mod shard;
mod slots;
mod wheel;

pub(crate) use index::{Growing, Index};
pub(crate) use shard::Refusal;
pub(crate) use slots::{Placed, Slots, Times};

use std::sync::Arc;

use hashbrown::Equivalent;

use crate::clock::Moment;
use crate::entry::Shared;
use crate::hash::TierHash;
use crate::hold::Hold;
use crate::in_flight::{Held, InFlight};
use crate::kernel::Kernel;
use crate::policy::{Duel, PolicyKind};
use crate::stats::Counts;
use crate::sync::{AtomicU64, Ordering, RwLock};
use shard::{SLICE, Shard};

/// Bounds of L2.
#[derive(Clone, Debug)]
pub struct L2Config {
    /// Keys, values, metadata and what is in flight together.
    pub max_bytes: usize,
    /// Bound on the number of entries; `usize::MAX` when bytes alone decide.
    pub max_entries: usize,
    /// Locks and tables it is divided into, rounded up to a power of two, and to one for each GiB unless so few entries are
    /// allowed that fewer do. Each has its share of the budget and of the entries, 16 million at most, and no entry can be
    /// larger than a share.
    pub shards: usize,
    /// Which entry leaves when it is full.
    pub policy: PolicyKind,
}

impl Default for L2Config {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, max_entries: usize::MAX, shards: 8, policy: PolicyKind::default() }
    }
}

/// What the entries of one group are in L2; without the containers, which all groups share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSize {
    /// How many.
    pub entries: usize,
    /// Their bytes: keys, values and metadata.
    pub bytes: usize,
}

pub(crate) struct L2<K: Hold, V: Hold> {
    shards: Box<[RwLock<Shard<K, V>>]>,
    orders_hits: bool,
    duel: Option<Arc<Duel>>,
    /// What the duel may allocate beside the shards.
    beside: usize,
    max_bytes: AtomicU64,
    in_flight: InFlight,
}

/// Room for what is in flight is made in steps of this part of the budget, but of no more than 64 KiB: small reads leave
/// the shards alone, and no step takes long.
const STEP: usize = 64;
const STEP_MAX: usize = 64 << 10;

/// The share of a shard, as it is made: as much as the most entries that it can have need.
const SHARE_MAX: usize = 1 << 30;

/// So many of the entries that a shard has let go of are looked at whenever another comes.
const LOOKS: usize = 2;

impl<K: Hold, V: Hold> L2<K, V> {
    pub(crate) fn new(config: &L2Config) -> Self {
        // Few entries need no more shards, however large they may be: the fewer there are in each, the worse the choice of who
        // leaves.
        let needed = (config.max_bytes / SHARE_MAX).min(config.max_entries / index::MAX_PLACES);
        let count = config.shards.max(needed).clamp(1, 1 << 10).next_power_of_two();
        let entries = if config.max_entries == usize::MAX { usize::MAX } else { config.max_entries.div_ceil(count) };
        let duel = Arc::new(Duel::new(config.max_bytes));
        let duels = config.policy == PolicyKind::Adaptive;
        let shard = || RwLock::new(Shard::new(config.policy, &duel, entries));
        Self {
            shards: (0..count).map(|_| shard()).collect(),
            orders_hits: config.policy.orders_hits(),
            beside: if duels { duel.bytes() } else { 0 },
            duel: duels.then_some(duel),
            max_bytes: AtomicU64::new(config.max_bytes as u64),
            in_flight: InFlight::default(),
        }
    }

    /// What each shard may have: read under its lock, so that whoever made it less finds there what others put in before.
    fn share(&self) -> usize {
        let (in_flight, step) = (self.in_flight.bytes(), self.step());
        let reserved = if in_flight == 0 { 0 } else { in_flight.div_ceil(step).saturating_mul(step) };
        // The number of shards is a power of two.
        self.max_bytes().saturating_sub(self.beside).saturating_sub(reserved) >> self.shards.len().trailing_zeros()
    }

    fn step(&self) -> usize {
        (self.max_bytes() / STEP).clamp(1, STEP_MAX)
    }

    /// Counts bytes in flight. Room has been made for them, here or by somebody who is at it, when this returns.
    pub(crate) fn hold(&self, bytes: usize, kernel: &Kernel) -> Held {
        let (held, before) = self.in_flight.add(bytes);
        let steps = |bytes: usize| bytes.div_ceil(self.step());
        if steps(before) < steps(before.saturating_add(bytes)) {
            while self.shrink(kernel) {}
        }
        held
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.bytes()
    }

    /// The index uses the lower half; shards are chosen by the bits above, sampled keys by the highest.
    #[inline]
    fn shard(&self, hash: TierHash) -> &RwLock<Shard<K, V>> {
        &self.shards[(hash.raw() >> 40) as usize & (self.shards.len() - 1)]
    }

    /// The entry under `key`, whatever its state; credits a hit where the policy wants them in order.
    #[inline]
    pub(crate) fn find<Q>(&self, hash: TierHash, key: &Q) -> Option<(Shared<K, V>, Times)>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        if self.orders_hits {
            let mut shard = self.shard(hash).write();
            let (slot, placed) = shard.find(hash, key)?;
            let found = (placed.entry.clone(), placed.times());
            shard.hit(slot);
            return Some(found);
        }
        let found = self.peek(hash, key);
        if found.is_some()
            && let Some(duel) = &self.duel
        {
            duel.read(hash);
        }
        found
    }

    /// Credits a hit to an entry that was just found, unless its policy has ordered it already.
    #[inline]
    pub(crate) fn credit(&self, entry: &Shared<K, V>) {
        if !self.orders_hits {
            entry.credit();
        }
    }

    /// Like [`find`](Self::find), leaving no trace.
    #[inline]
    pub(crate) fn peek<Q>(&self, hash: TierHash, key: &Q) -> Option<(Shared<K, V>, Times)>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        self.shard(hash).read().find(hash, key).map(|(_, placed)| (placed.entry.clone(), placed.times()))
    }

    pub(crate) fn insert(
        &self,
        hash: TierHash,
        entry: Shared<K, V>,
        times: Times,
        kernel: &Kernel,
    ) -> Result<(), Refusal>
    where
        K::Held: Eq,
    {
        loop {
            let mut shard = self.shard(hash).write();
            let left = shard.has_left().then(|| shard.take_left(LOOKS));
            match shard.make_room(hash, &entry, self.share(), kernel) {
                Ok(room) => {
                    shard.place(hash, entry, times, &room);
                    shard.count_fill();
                    let entries = shard.entries() * self.shards.len();
                    drop(shard);
                    drop(left);
                    if let Some(duel) = &self.duel {
                        duel.filled(hash, (room.evicted > 0).then_some(entries));
                    }
                    return Ok(());
                }
                Err(refusal) => {
                    drop(shard);
                    drop(left);
                    if refusal != Refusal::NotYet {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// Puts `entry` in the place of `old`, if that is still there and the new one fits.
    pub(crate) fn renew(&self, hash: TierHash, old: &Shared<K, V>, entry: &Shared<K, V>, kernel: &Kernel) -> bool
    where
        K::Held: Eq,
    {
        loop {
            let mut shard = self.shard(hash).write();
            let Some(times) = shard.times_of(hash, old) else { return false };
            match shard.make_room(hash, entry, self.share(), kernel) {
                Ok(room) => {
                    shard.place(hash, entry.clone(), times, &room);
                    return true;
                }
                Err(Refusal::NotYet) => {}
                Err(_) => return false,
            }
        }
    }

    pub(crate) fn remove<Q>(&self, hash: TierHash, key: &Q, kernel: &Kernel) -> bool
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let shard = self.shard(hash);
        let mut locked = shard.write();
        let before = locked.bytes();
        let was_there = locked.remove(hash, key, kernel);
        drop(locked);
        self.make_up(shard, before, kernel);
        was_there
    }

    /// Removes what is there now, in slices: what is put in meanwhile may stay.
    pub(crate) fn clear(&self, kernel: &Kernel) {
        for shard in &self.shards {
            let mut cursor = Some(0);
            while let Some(from) = cursor {
                cursor = shard.write().clear(from, kernel);
            }
        }
    }

    /// Behind entries that have left for another reason than room: should a shard take more than `before` as long as somebody
    /// points to them, others leave, in slices. What a smaller budget asks for is not done here.
    fn make_up(&self, shard: &RwLock<Shard<K, V>>, before: usize, kernel: &Kernel) {
        let is_above = || shard.read().bytes() > self.share().max(before);
        while is_above() && shard.write().shrink(self.share().max(before), SLICE, kernel) == SLICE {}
    }

    /// Calls `visit` for the keys of all entries, in slices: those that stay are visited.
    pub(crate) fn for_each_key(&self, mut visit: impl FnMut(&K::Held)) {
        for shard in &self.shards {
            let mut cursor = Some(0);
            while let Some(from) = cursor {
                cursor = shard.read().visit_keys(from, &mut visit);
            }
        }
    }

    /// Frees expired entries, and those let go of before that nobody points to any more, in at most `steps` steps and with
    /// the lock let go between shards. `true`: it used all of them, so there may be more.
    pub(crate) fn expire(&self, now: Moment, steps: usize, kernel: &Kernel) -> bool {
        let mut left = steps;
        for shard in &self.shards {
            let mut locked = shard.write();
            let before = locked.bytes();
            let gone = locked.take_left(left);
            left -= locked.expire(now, left, kernel);
            drop(locked);
            drop(gone);
            self.make_up(shard, before, kernel);
            if left == 0 {
                return true;
            }
        }
        false
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes.load(Ordering::Relaxed) as usize
    }

    /// Changes the budget; what is above it goes with [`shrink`](Self::shrink), or when room is made for others.
    pub(crate) fn set_max_bytes(&self, max_bytes: usize) {
        self.max_bytes.store(max_bytes as u64, Ordering::Relaxed);
    }

    /// One slice of getting down to the budget. `true`: there may be more to do.
    pub(crate) fn shrink(&self, kernel: &Kernel) -> bool {
        let mut left = SLICE;
        for shard in &self.shards {
            if shard.read().bytes() <= self.share() {
                continue;
            }
            let mut shard = shard.write();
            let gone = shard.take_left(left);
            left -= shard.shrink(self.share(), left, kernel);
            drop(shard);
            drop(gone);
            if left == 0 {
                return true;
            }
        }
        false
    }

    /// Entries and their bytes by the group of their keys.
    pub(crate) fn groups(&self) -> Vec<GroupSize> {
        let mut all: Vec<GroupSize> = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            all.resize(all.len().max(shard.groups().len()), GroupSize::default());
            for (sum, group) in all.iter_mut().zip(shard.groups()) {
                sum.entries += group.entries;
                sum.bytes += group.bytes;
            }
        }
        all
    }

    /// Adds what the shards counted: fills, and what left by cause.
    pub(crate) fn add_counts(&self, sum: &mut Counts) {
        self.shards.iter().for_each(|shard| sum.sum(shard.read().counts()));
    }

    pub(crate) fn sizes(&self) -> (usize, usize) {
        self.shards.iter().fold((0, 0), |(entries, bytes), shard| {
            let shard = shard.read();
            (entries + shard.entries(), bytes + shard.bytes())
        })
    }
}
