//! S3-FIFO: a small queue that most one-hit entries leave quickly, a main queue with second chances, and a ghost of
//! hashes that lets a returning entry straight into the main queue.
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023. The small queue has a
//! tenth of the bytes.

use super::{Policy, QUEUE, Slots};
use crate::slab::List;

const SMALL_SHARE: usize = 10;
const SMALL: u8 = 0;
const MAIN: u8 = 1;
/// One remembered hash per so many bytes of budget.
const BYTES_PER_MEMORY: usize = 512;

#[derive(Debug)]
pub(super) struct S3Fifo {
    small: List<QUEUE>,
    main: List<QUEUE>,
    small_bytes: usize,
    small_target: usize,
    ghost: Ghost,
}

impl S3Fifo {
    pub(super) fn new(shard_bytes: usize) -> Self {
        Self {
            small: List::new(),
            main: List::new(),
            small_bytes: 0,
            small_target: shard_bytes / SMALL_SHARE,
            ghost: Ghost::new(shard_bytes),
        }
    }
}

impl<K, V> Policy<K, V> for S3Fifo
where
    K: Send + Sync,
    V: Send + Sync,
{
    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(entry) = slots.item(slot) else { return };
        if self.ghost.take(entry.hash().raw()) {
            entry.set_queue(MAIN);
            self.main.push_front(slots, slot);
        } else {
            entry.set_queue(SMALL);
            self.small_bytes += entry.bytes();
            self.small.push_front(slots, slot);
        }
    }

    fn hit(&mut self, _slots: &mut Slots<K, V>, _slot: u32) {}

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(entry) = slots.item(slot) else { return };
        if entry.queue() == MAIN {
            self.main.unlink(slots, slot);
        } else {
            self.small_bytes -= entry.bytes();
            self.small.unlink(slots, slot);
        }
    }

    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32> {
        while self.small_bytes > self.small_target || self.main.len() == 0 {
            let Some(slot) = self.small.tail() else { break };
            let (hash, bytes, hits) =
                slots.item(slot).map_or((0, 0, 0), |entry| (entry.hash().raw(), entry.bytes(), entry.frequency()));
            self.small.unlink(slots, slot);
            self.small_bytes -= bytes;
            if hits < 2 {
                self.ghost.remember(hash);
                return Some(slot);
            }
            if let Some(entry) = slots.item(slot) {
                entry.set_frequency(0);
                entry.set_queue(MAIN);
            }
            self.main.push_front(slots, slot);
        }
        // At most three rounds: the frequency is capped and every round takes one off.
        loop {
            let slot = self.main.tail()?;
            self.main.unlink(slots, slot);
            match slots.item(slot) {
                Some(entry) if entry.frequency() > 0 => {
                    entry.set_frequency(entry.frequency() - 1);
                    self.main.push_front(slots, slot);
                }
                _ => return Some(slot),
            }
        }
    }

    fn bytes(&self) -> usize {
        self.ghost.cells.len() * size_of::<Cell>()
    }
}

/// Hashes of entries lately evicted from the small queue: a direct-mapped table of fingerprints with their age. Its size
/// is fixed: it costs one and a half to three hundredths of the budget and never has to be copied.
#[derive(Debug)]
struct Ghost {
    cells: Box<[Cell]>,
    turn: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    fingerprint: u32,
    turn: u32,
}

impl Ghost {
    fn new(shard_bytes: usize) -> Self {
        let count = (shard_bytes / BYTES_PER_MEMORY).clamp(16, 1 << 24).next_power_of_two();
        Self { cells: vec![Cell::default(); count].into(), turn: 0 }
    }

    fn remember(&mut self, hash: u64) {
        self.turn = self.turn.wrapping_add(1);
        let index = self.index(hash);
        self.cells[index] = Cell { fingerprint: fingerprint(hash), turn: self.turn };
    }

    fn take(&mut self, hash: u64) -> bool {
        let index = self.index(hash);
        let (turn, span) = (self.turn, self.cells.len() as u32);
        let cell = &mut self.cells[index];
        // A memory older than the table is long has faded.
        let known = cell.fingerprint == fingerprint(hash) && turn.wrapping_sub(cell.turn) <= span;
        if known {
            cell.fingerprint = 0;
        }
        known
    }

    fn index(&self, hash: u64) -> usize {
        (hash as usize) & (self.cells.len() - 1)
    }
}

/// Never zero, which stands for "nothing remembered".
const fn fingerprint(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}
