//! The reuse distances of a bounded set of keys, in bytes.
//!
//! Each key holds the time of its last read; a Fenwick tree over times has its bytes there, so that the bytes read since
//! then are one prefix sum (Olken's method, with the tree of Fenwick, 1994). Times are handed out until the tree is full, and
//! then numbered anew.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::Copied;

#[derive(Debug)]
pub(super) struct Distances {
    keys: HashMap<u64, Sampled, RandomState>,
    /// The same keys in order, to find the highest.
    order: BTreeSet<u64>,
    /// Bytes by time of last read, as a Fenwick tree; index 0 is unused.
    tree: Vec<u64>,
    /// The bytes of all keys.
    total: u64,
    next: usize,
    capacity: usize,
    /// For numbering anew: a hit allocates nothing.
    by_time: Vec<(usize, u64)>,
}

#[derive(Debug)]
struct Sampled {
    time: usize,
    bytes: i64,
    copy: Option<Copied>,
}

impl Distances {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            keys: HashMap::default(),
            order: BTreeSet::new(),
            tree: vec![0; 4 * capacity + 1],
            total: 0,
            next: 1,
            capacity,
            by_time: Vec::with_capacity(capacity + 1),
        }
    }

    /// Reads `key`, of so many bytes now: the bytes of all that was read since its last read, its own included. `None`: it
    /// was not read before, or its copy of then is of no use.
    pub(super) fn touch(
        &mut self,
        key: u64,
        bytes: usize,
        copy: Option<Copied>,
        lives: impl FnOnce(&Copied) -> bool,
    ) -> Option<u64> {
        if self.next >= self.tree.len() {
            self.renumber();
        }
        let time = self.next;
        self.next += 1;
        let counted = i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut distance = None;
        if let Some(sampled) = self.keys.get_mut(&key) {
            let present = Sampled { time, bytes: counted, copy: copy.or(sampled.copy) };
            let last = std::mem::replace(sampled, present);
            self.add(last.time, -last.bytes);
            if last.copy.as_ref().is_none_or(lives) {
                distance = Some(self.total - self.up_to(last.time) + bytes as u64);
            }
        } else {
            self.order.insert(key);
            self.keys.insert(key, Sampled { time, bytes: counted, copy });
        }
        self.add(time, counted);
        distance
    }

    /// Lets the highest key go if there are too many; returns it.
    pub(super) fn make_room(&mut self) -> Option<u64> {
        if self.keys.len() <= self.capacity {
            return None;
        }
        let highest = self.order.pop_last()?;
        if let Some(gone) = self.keys.remove(&highest) {
            self.add(gone.time, -gone.bytes);
        }
        Some(highest)
    }

    pub(super) fn bytes(&self) -> usize {
        let key = size_of::<(u64, Sampled)>() + 1 + 2 * size_of::<u64>();
        let times = self.tree.capacity() * size_of::<u64>() + self.by_time.capacity() * size_of::<(usize, u64)>();
        times + self.keys.capacity() * key
    }

    fn renumber(&mut self) {
        let mut by_time = std::mem::take(&mut self.by_time);
        by_time.extend(self.keys.iter().map(|(key, sampled)| (sampled.time, *key)));
        by_time.sort_unstable();
        self.tree.fill(0);
        self.total = 0;
        self.next = 1;
        for (_, key) in by_time.drain(..) {
            let (time, Some(sampled)) = (self.next, self.keys.get_mut(&key)) else { continue };
            sampled.time = time;
            let bytes = sampled.bytes;
            self.next += 1;
            self.add(time, bytes);
        }
        self.by_time = by_time;
    }

    fn add(&mut self, time: usize, bytes: i64) {
        self.total = self.total.wrapping_add_signed(bytes);
        let mut at = time;
        while let Some(cell) = self.tree.get_mut(at) {
            *cell = cell.wrapping_add_signed(bytes);
            at += at & at.wrapping_neg();
        }
    }

    /// The bytes of what was last read at `time` or before.
    fn up_to(&self, time: usize) -> u64 {
        let (mut at, mut sum) = (time, 0_u64);
        while at > 0 {
            sum = sum.wrapping_add(self.tree[at]);
            at &= at - 1;
        }
        sum
    }
}
