//! The policy that follows the load: the queues of S3-FIFO under the rule that does best in a [`Duel`].

use std::sync::Arc;

use super::Policy;
use super::duel::Duel;
use super::segments::Segments;
use crate::hold::Hold;
use crate::l2::Slots;

#[derive(Debug)]
pub(super) struct Adaptive {
    segments: Segments,
    duel: Arc<Duel>,
}

impl Adaptive {
    pub(super) fn new(duel: Arc<Duel>) -> Self {
        Self { segments: Segments::new(), duel }
    }
}

impl<K: Hold, V: Hold> Policy<K, V> for Adaptive {
    fn expect(&self, hash: u32) {
        self.segments.expect(hash);
    }

    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.segments.insert(slots, slot, self.duel.winner());
    }

    fn hit(&mut self, _slots: &mut Slots<K, V>, _slot: u32) {}

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.segments.remove(slots, slot);
    }

    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32> {
        self.segments.victim(slots, self.duel.winner())
    }

    fn foresee(&self, slots: &Slots<K, V>) -> Option<u32> {
        self.segments.foresee(slots)
    }

    fn bytes(&self) -> usize {
        self.segments.bytes()
    }

    fn growth(&self, slots: &Slots<K, V>) -> usize {
        self.segments.growth(slots.span() + 1)
    }
}
