//! A hierarchical timer wheel over groups of places: entries that expire are found without scanning the rest.
//!
//! Varghese and Lauck, "Hashed and hierarchical timing wheels", SOSP 1987. Four levels of 64 buckets; one tick is 2^30 ns
//! (about a second), deadlines beyond 194 days are looked at again then. What is in a bucket is a group of 64 neighbouring
//! places, under the earliest deadline in it, so that an entry costs nothing here; when a group is due, its places are
//! looked through for what has expired. Every [`step`](Wheel::step) is O(1), so the caller decides how long a slice of
//! maintenance lasts. It only frees memory: reads check deadlines themselves.

use super::slots::Slots;
use crate::clock::Moment;
use crate::hold::Hold;
use crate::slab::{List, Slab};

const GROUP_BITS: u32 = 6;
const LEVELS: usize = 4;
const BITS: u32 = 6;
const BUCKETS: u32 = 1 << BITS;

#[derive(Debug)]
struct Timer {
    /// The earliest deadline that the group had since it was last looked through; `None`: it had none.
    due: Option<u32>,
    bucket: u16,
}

#[derive(Debug)]
pub(super) struct Wheel {
    buckets: Box<[List<0>]>,
    /// One for each group of places, under the group's number.
    timers: Slab<Timer, 1>,
    tick: u32,
    cascading: [bool; LEVELS],
    /// Groups in each level.
    waiting: [u32; LEVELS],
}

/// What one step did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This place is past its deadline. Take it out: the next step would find it again.
    Expired(u32),
    /// Some bookkeeping; there may be more.
    Worked,
    /// Nothing is due.
    Idle,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self {
            buckets: (0..LEVELS as u32 * BUCKETS).map(|_| List::new()).collect(),
            timers: Slab::new(),
            tick: 0,
            cascading: [false; LEVELS],
            waiting: [0; LEVELS],
        }
    }

    /// A place has been filled with an entry that expires at tick `due`.
    #[inline]
    pub(super) fn insert(&mut self, slot: u32, due: Option<u32>) {
        let group = slot >> GROUP_BITS;
        while self.timers.span() <= group {
            self.timers.insert(Timer { due: None, bucket: 0 });
        }
        if let Some(due) = due {
            self.wait(group, due);
        }
    }

    fn wait(&mut self, group: u32, due: u32) {
        let known = self.timers.item(group).and_then(|timer| timer.due);
        if known.is_none_or(|known| due < known) {
            self.unlink(group);
            self.link(group, due);
        }
    }

    fn link(&mut self, group: u32, due: u32) {
        let bucket = self.bucket(due);
        if let Some(timer) = self.timers.item_mut(group) {
            *timer = Timer { due: Some(due), bucket: bucket as u16 };
        }
        self.buckets[bucket].push_front(&mut self.timers, group);
        self.waiting[bucket / BUCKETS as usize] += 1;
    }

    fn unlink(&mut self, group: u32) {
        let Some(timer) = self.timers.item_mut(group) else { return };
        if timer.due.take().is_some() {
            let bucket = timer.bucket as usize;
            self.buckets[bucket].unlink(&mut self.timers, group);
            self.waiting[bucket / BUCKETS as usize] -= 1;
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<List<0>>() + self.timers.bytes()
    }

    /// Bytes that an insertion into the next place would allocate.
    pub(super) fn growth<K: Hold, V: Hold>(&self, slots: &Slots<K, V>) -> usize {
        if self.timers.span() << GROUP_BITS > slots.span() { 0 } else { self.timers.growth() }
    }

    pub(super) fn step<K: Hold, V: Hold>(&mut self, slots: &Slots<K, V>, now: Moment) -> Step {
        let present = (now.as_nanos() >> 30) as u32;
        if self.waiting == [0; LEVELS] {
            self.tick = self.tick.max(present);
            self.cascading = [false; LEVELS];
            return Step::Idle;
        }
        for level in (1..LEVELS).rev() {
            if self.cascading[level] {
                let Some(group) = self.buckets[index_at(level, self.tick)].tail() else {
                    self.cascading[level] = false;
                    continue;
                };
                let due = self.timers.item(group).and_then(|timer| timer.due);
                self.unlink(group);
                self.link(group, due.unwrap_or(self.tick));
                return Step::Worked;
            }
        }
        if let Some(group) = self.buckets[index_at(0, self.tick)].tail() {
            return self.look_through(slots, group);
        }
        if self.tick >= present {
            return Step::Idle;
        }
        // Where nobody waits for the next second, the next minute is next.
        self.tick = if self.waiting[0] == 0 { (self.tick | (BUCKETS - 1)).min(present - 1) + 1 } else { self.tick + 1 };
        for level in 1..LEVELS {
            self.cascading[level] = self.tick.trailing_zeros() >= level as u32 * BITS;
        }
        Step::Worked
    }

    /// A group is due: finds an entry in it that has expired, or when the next one will.
    fn look_through<K: Hold, V: Hold>(&mut self, slots: &Slots<K, V>, group: u32) -> Step {
        let mut next: Option<u32> = None;
        for slot in group << GROUP_BITS..(group + 1) << GROUP_BITS {
            match slots.item(slot).and_then(|placed| placed.times().due()) {
                Some(due) if due <= self.tick => return Step::Expired(slot),
                Some(due) => next = Some(next.map_or(due, |next| next.min(due))),
                None => {}
            }
        }
        self.unlink(group);
        if let Some(due) = next {
            self.link(group, due);
        }
        Step::Worked
    }

    /// The bucket for what is due at tick `due`.
    fn bucket(&self, due: u32) -> usize {
        let ahead = u64::from(due.saturating_sub(self.tick));
        if ahead == 0 {
            return index_at(0, self.tick);
        }
        for level in 0..LEVELS {
            if ahead < u64::from(BUCKETS) << (level as u32 * BITS) {
                return index_at(level, due);
            }
        }
        index_at(LEVELS - 1, self.tick.wrapping_add((BUCKETS << ((LEVELS as u32 - 1) * BITS)) - 1))
    }
}

const fn index_at(level: usize, tick: u32) -> usize {
    level * BUCKETS as usize + ((tick >> (level as u32 * BITS)) & (BUCKETS - 1)) as usize
}
