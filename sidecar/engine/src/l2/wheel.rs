//! A hierarchical timer wheel over the slots of a shard: entries that expire are found without scanning the rest.
//!
//! Varghese and Lauck, "Hashed and hierarchical timing wheels", SOSP 1987. Four levels of 64 buckets; one tick is 2^30 ns
//! (about a second), deadlines beyond 194 days are looked at again then. Every [`step`](Wheel::step) is O(1), so the
//! caller decides how long a slice of maintenance lasts. It only frees memory: reads check deadlines themselves.

use crate::clock::Moment;
use crate::policy::Slots;
use crate::slab::List;

/// Link pair of L2's slots that the wheel uses.
const TIMER: usize = 1;
const LEVELS: u32 = 4;
const BITS: u32 = 6;
const BUCKETS: u64 = 1 << BITS;
/// As a new entry has it.
const NOWHERE: u16 = u16::MAX;

#[derive(Debug)]
pub(super) struct Wheel {
    buckets: Vec<List<TIMER>>,
    tick: u64,
    cascading: [bool; LEVELS as usize],
    timers: usize,
}

/// What one step did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This slot is past its deadline and no longer in the wheel.
    Expired(u32),
    /// Some bookkeeping; there may be more.
    Worked,
    /// Nothing is due.
    Idle,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self {
            buckets: (0..u64::from(LEVELS) * BUCKETS).map(|_| List::new()).collect(),
            tick: 0,
            cascading: [false; LEVELS as usize],
            timers: 0,
        }
    }

    pub(super) fn insert<K, V>(&mut self, slots: &mut Slots<K, V>, slot: u32, deadline: Moment) {
        if deadline == Moment::NEVER {
            return;
        }
        let bucket = self.bucket(due(deadline));
        if let Some(entry) = slots.item(slot) {
            entry.set_timer(bucket as u16);
        }
        self.buckets[bucket].push_front(slots, slot);
        self.timers += 1;
    }

    pub(super) fn remove<K, V>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(bucket) = slots.item(slot).map(|entry| entry.timer()).filter(|&bucket| bucket != NOWHERE) else {
            return;
        };
        if let Some(entry) = slots.item(slot) {
            entry.set_timer(NOWHERE);
        }
        self.buckets[bucket as usize].unlink(slots, slot);
        self.timers -= 1;
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<List<TIMER>>()
    }

    pub(super) fn step<K, V>(&mut self, slots: &mut Slots<K, V>, now: Moment) -> Step {
        let present = now.as_nanos() >> 30;
        if self.timers == 0 {
            self.tick = self.tick.max(present);
            self.cascading = [false; LEVELS as usize];
            return Step::Idle;
        }
        for level in (1..LEVELS).rev() {
            if self.cascading[level as usize] {
                let bucket = index_at(level, self.tick);
                let Some(slot) = self.buckets[bucket].tail() else {
                    self.cascading[level as usize] = false;
                    continue;
                };
                self.remove(slots, slot);
                let deadline = slots.item(slot).map_or(Moment::NEVER, |entry| entry.deadline());
                self.insert(slots, slot, deadline);
                return Step::Worked;
            }
        }
        if let Some(slot) = self.buckets[index_at(0, self.tick)].tail() {
            self.remove(slots, slot);
            match slots.item(slot).map(|entry| entry.deadline()) {
                Some(deadline) if deadline > now => self.insert(slots, slot, deadline),
                _ => return Step::Expired(slot),
            }
            return Step::Worked;
        }
        if self.tick >= present {
            return Step::Idle;
        }
        self.tick += 1;
        for level in 1..LEVELS {
            self.cascading[level as usize] = self.tick.trailing_zeros() >= level * BITS;
        }
        Step::Worked
    }

    /// The bucket for what is due at tick `due`.
    fn bucket(&self, due: u64) -> usize {
        let ahead = due.saturating_sub(self.tick);
        if ahead == 0 {
            return index_at(0, self.tick);
        }
        for level in 0..LEVELS {
            if ahead < BUCKETS << (level * BITS) {
                return index_at(level, due);
            }
        }
        index_at(LEVELS - 1, self.tick + (BUCKETS << ((LEVELS - 1) * BITS)) - 1)
    }
}

/// The first tick at which the deadline is over for certain.
const fn due(deadline: Moment) -> u64 {
    (deadline.as_nanos() >> 30) + 1
}

const fn index_at(level: u32, tick: u64) -> usize {
    ((level as u64) * BUCKETS + ((tick >> (level * BITS)) & (BUCKETS - 1))) as usize
}
