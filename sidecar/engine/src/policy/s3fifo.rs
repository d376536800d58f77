//! S3-FIFO: a small queue that most one-hit entries leave quickly, a main queue with second chances, and a ghost of
//! hashes that lets a returning entry straight into the main queue.
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023. The small queue has a
//! tenth of the bytes.

use super::{Policy, QUEUE, Slots};
use crate::slab::List;

const SMALL_SHARE: usize = 10;

#[derive(Debug)]
pub(super) struct S3Fifo {
    small: List<QUEUE>,
    main: List<QUEUE>,
    small_bytes: usize,
    small_target: usize,
    /// By slot: whether it is in the main queue.
    in_main: Vec<bool>,
    ghost: Ghost,
}

impl S3Fifo {
    pub(super) fn new(shard_bytes: usize) -> Self {
        Self {
            small: List::new(),
            main: List::new(),
            small_bytes: 0,
            small_target: shard_bytes / SMALL_SHARE,
            in_main: Vec::new(),
            ghost: Ghost::default(),
        }
    }

    fn place(&mut self, slot: u32, main: bool) {
        let index = slot as usize;
        if self.in_main.len() <= index {
            self.in_main.resize(index + 1, false);
        }
        self.in_main[index] = main;
    }
}

impl<K, V> Policy<K, V> for S3Fifo
where
    K: Send + Sync,
    V: Send + Sync,
{
    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some((hash, bytes)) = slots.item(slot).map(|entry| (entry.hash().raw(), entry.bytes())) else { return };
        let main = self.ghost.take(hash);
        self.place(slot, main);
        if main {
            self.main.push_front(slots, slot);
        } else {
            self.small.push_front(slots, slot);
            self.small_bytes += bytes;
        }
    }

    fn hit(&mut self, _slots: &mut Slots<K, V>, _slot: u32) {}

    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        if self.in_main.get(slot as usize).copied().unwrap_or(false) {
            self.main.unlink(slots, slot);
        } else {
            self.small_bytes -= slots.item(slot).map_or(0, |entry| entry.bytes());
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
                self.ghost.remember(hash, self.small.len() + self.main.len());
                return Some(slot);
            }
            if let Some(entry) = slots.item(slot) {
                entry.set_frequency(0);
            }
            self.place(slot, true);
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
        self.in_main.capacity() + self.ghost.cells.capacity() * size_of::<Cell>()
    }
}

/// Hashes of entries lately evicted from the small queue: a direct-mapped table of fingerprints with their age.
#[derive(Debug, Default)]
struct Ghost {
    cells: Vec<Cell>,
    turn: u32,
    /// A memory older than this many evictions has faded.
    span: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    fingerprint: u32,
    turn: u32,
}

impl Ghost {
    fn remember(&mut self, hash: u64, entries: usize) {
        let wanted = entries.max(64).next_power_of_two();
        if self.cells.len() < wanted {
            // Old memories are lost as the table grows; growth ends when the shard is full.
            self.cells = vec![Cell::default(); wanted];
        }
        self.span = u32::try_from(entries.max(64)).unwrap_or(u32::MAX);
        self.turn = self.turn.wrapping_add(1);
        let index = self.index(hash);
        self.cells[index] = Cell { fingerprint: fingerprint(hash), turn: self.turn };
    }

    fn take(&mut self, hash: u64) -> bool {
        if self.cells.is_empty() {
            return false;
        }
        let index = self.index(hash);
        let (cell, turn, span) = (&mut self.cells[index], self.turn, self.span);
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
