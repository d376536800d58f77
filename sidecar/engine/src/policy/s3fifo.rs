//! S3-FIFO: a small queue that most one-hit entries leave quickly, a main queue with second chances, and a ghost of
//! hashes that lets a returning entry straight into the main queue. See [`Rule::S3Fifo`].

use super::Policy;
use super::segments::{Rule, Segments};
use crate::hold::Hold;
use crate::l2::Slots;

/// With the small queue's share that the paper recommends.
const RULE: Rule = Rule::S3Fifo(10);

#[derive(Debug)]
pub(super) struct S3Fifo(Segments);

impl S3Fifo {
    pub(super) fn new() -> Self {
        Self(Segments::new())
    }
}

impl<K: Hold, V: Hold> Policy<K, V> for S3Fifo {
    fn expect(&self, hash: u32) {
        self.0.expect(hash);
    }

    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.0.insert(slots, slot, RULE);
    }

    fn hit(&mut self, _slots: &mut Slots<K, V>, _slot: u32) {}

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.0.remove(slots, slot);
    }

    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32> {
        self.0.victim(slots, RULE)
    }

    fn foresee(&self, slots: &Slots<K, V>) -> Option<u32> {
        self.0.foresee(slots)
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn growth(&self, slots: &Slots<K, V>) -> usize {
        self.0.growth(slots.span() + 1)
    }
}
