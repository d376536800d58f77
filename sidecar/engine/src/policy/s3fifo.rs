//! S3-FIFO: a small queue that most one-hit entries leave quickly, a main queue with second chances, and a ghost of
//! hashes that lets a returning entry straight into the main queue.
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023. The small queue has a
//! tenth of the bytes.

use super::ghost::Ghost;
use super::{Policy, Queue};
use crate::hold::Hold;
use crate::l2::Slots;

const SMALL_SHARE: usize = 10;
const SMALL: u8 = 0;
const MAIN: u8 = 1;

#[derive(Debug)]
pub(super) struct S3Fifo {
    small: Queue,
    main: Queue,
    small_bytes: usize,
    small_target: usize,
    ghost: Ghost,
}

impl S3Fifo {
    pub(super) fn new(shard_bytes: usize) -> Self {
        Self {
            small: Queue::new(),
            main: Queue::new(),
            small_bytes: 0,
            small_target: shard_bytes / SMALL_SHARE,
            ghost: Ghost::new(),
        }
    }
}

impl<K: Hold, V: Hold> Policy<K, V> for S3Fifo {
    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.ghost.grow_to(slots.span());
        let Some(placed) = slots.item(slot) else { return };
        if self.ghost.take(placed.hash).is_some() {
            placed.entry.set_note(MAIN);
            self.main.push_front(slots, slot);
        } else {
            placed.entry.set_note(SMALL);
            self.small_bytes += placed.entry.bytes();
            self.small.push_front(slots, slot);
        }
    }

    fn hit(&mut self, _slots: &mut Slots<K, V>, _slot: u32) {}

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(placed) = slots.item(slot) else { return };
        if placed.entry.note() == MAIN {
            self.main.unlink(slots, slot);
        } else {
            self.small_bytes -= placed.entry.bytes();
            self.small.unlink(slots, slot);
        }
    }

    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32> {
        while self.small_bytes > self.small_target || self.main.len() == 0 {
            let Some(slot) = self.small.tail() else { break };
            let placed = slots.item(slot)?;
            let (entry, hash) = (&placed.entry, placed.hash);
            self.small_bytes -= entry.bytes();
            if entry.chances() < 2 {
                self.small.unlink(slots, slot);
                self.ghost.remember(hash, 0);
                return Some(slot);
            }
            entry.set_chances(0);
            entry.set_note(MAIN);
            self.small.unlink(slots, slot);
            self.main.push_front(slots, slot);
        }
        // At most three rounds: the frequency is capped and every round takes one off.
        loop {
            let slot = self.main.tail()?;
            self.main.unlink(slots, slot);
            match slots.item(slot) {
                Some(placed) if placed.entry.chances() > 0 => {
                    placed.entry.set_chances(placed.entry.chances() - 1);
                    self.main.push_front(slots, slot);
                }
                _ => return Some(slot),
            }
        }
    }

    fn bytes(&self) -> usize {
        self.ghost.bytes()
    }

    fn growth(&self, slots: &Slots<K, V>) -> usize {
        self.ghost.growth(slots.span() + 1)
    }
}
