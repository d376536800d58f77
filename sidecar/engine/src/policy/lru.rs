//! Least recently used. L1's hits reach it late: an entry that L1 served since it was last seen here gets another round.

use super::{Policy, QUEUE, Slots};
use crate::slab::List;

#[derive(Debug)]
pub(super) struct Lru {
    order: List<QUEUE>,
}

impl Lru {
    pub(super) const fn new() -> Self {
        Self { order: List::new() }
    }
}

impl<K, V> Policy<K, V> for Lru
where
    K: Send + Sync,
    V: Send + Sync,
{
    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.order.push_front(slots, slot);
    }

    fn hit(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.order.move_to_front(slots, slot);
        if let Some(entry) = slots.item(slot) {
            entry.set_frequency(0);
        }
    }

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.order.unlink(slots, slot);
    }

    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32> {
        // Each round clears one mark, so this ends after one pass at the latest.
        for _ in 0..self.order.len() {
            let slot = self.order.tail()?;
            match slots.item(slot) {
                Some(entry) if entry.frequency() > 0 && !entry.is_dead() => {
                    entry.set_frequency(0);
                    self.order.move_to_front(slots, slot);
                }
                _ => break,
            }
        }
        let slot = self.order.tail()?;
        self.order.unlink(slots, slot);
        Some(slot)
    }

    fn bytes(&self) -> usize {
        0
    }
}
