//! Least recently used. L1's hits reach it late: an entry that L1 served since it was last seen here gets another round.

use super::{Policy, Queue};
use crate::hold::Hold;
use crate::l2::Slots;

/// So many that L1 served get their round in one eviction: a bound on its work, and more than L1 usually has.
const ROUNDS: usize = 1_024;

#[derive(Debug)]
pub(super) struct Lru {
    order: Queue,
}

impl Lru {
    pub(super) const fn new() -> Self {
        Self { order: Queue::new() }
    }
}

impl<K: Hold, V: Hold> Policy<K, V> for Lru {
    fn expect(&self, _hash: u32) {}

    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.order.push_front(slots, slot);
    }

    fn hit(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.order.move_to_front(slots, slot);
        if let Some(placed) = slots.item(slot) {
            placed.entry.set_chances(0);
        }
    }

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.order.unlink(slots, slot);
    }

    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32> {
        // Each round clears one mark, so this ends after one pass at the latest.
        for _ in 0..self.order.len().min(ROUNDS) {
            let slot = self.order.tail()?;
            match slots.item(slot) {
                Some(placed) if placed.entry.chances() > 0 => {
                    placed.entry.set_chances(0);
                    self.order.move_to_front(slots, slot);
                }
                _ => break,
            }
        }
        let slot = self.order.tail()?;
        self.order.unlink(slots, slot);
        Some(slot)
    }

    fn foresee(&self, _slots: &Slots<K, V>) -> Option<u32> {
        self.order.tail()
    }

    fn bytes(&self) -> usize {
        0
    }

    fn growth(&self, _slots: &Slots<K, V>) -> usize {
        0
    }
}
