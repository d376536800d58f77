//! Two queues and a ghost, and the rules by which entries go through them: what S3-FIFO and the adaptive policy share.
//!
//! What is new enters the *small* queue, what has proved itself lives in the *main* one. Both are FIFOs with second
//! chances, so that a hit moves nothing. The rules differ in who may enter the main queue, and in how long the small one
//! is. All of them leave the same structure behind, so that one can follow another at any moment.

use super::Queue;
use super::ghost::Ghost;
use crate::entry::Entry;
use crate::hold::Hold;
use crate::l2::Slots;

const SMALL: u8 = 0;
const MAIN: u8 = 1;
const QUEUE_MASK: u8 = 1;
/// How many second chances are given in a row before an entry leaves in any case: a bound on the work of an eviction.
const ROUNDS: usize = 24;
/// So many insertions per entry make an age; with each age, what counted before counts half.
const AGE: usize = 4;

/// Who may enter the main queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// S3-FIFO: what was hit twice in the small queue, of so many hundredths of the bytes, or comes back soon. Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.
    S3Fifo(u8),
    /// TinyLFU: what was used more often than the entry that would have to leave for it. The small queue is the window,
    /// with so many hundredths of the bytes. Einziger, Friedman, Manes: "TinyLFU: a highly efficient cache admission
    /// policy", ACM Transactions on Storage 2017.
    TinyLfu(u8),
    /// Everything, at once: an approximation of LRU.
    Recency,
}

impl Rule {
    /// The small queue's share of the bytes, in hundredths.
    const fn small_share(self) -> usize {
        match self {
            Self::S3Fifo(share) | Self::TinyLfu(share) => share as usize,
            Self::Recency => 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Segments {
    small: Queue,
    main: Queue,
    small_bytes: usize,
    main_bytes: usize,
    ghost: Ghost,
    age: u8,
    insertions: usize,
    /// Something had to leave for room.
    was_full: bool,
}

impl Segments {
    pub(super) fn new() -> Self {
        Self {
            small: Queue::new(),
            main: Queue::new(),
            small_bytes: 0,
            main_bytes: 0,
            ghost: Ghost::new(),
            age: 0,
            insertions: 0,
            was_full: false,
        }
    }

    pub(super) fn insert<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32, rule: Rule) {
        self.ghost.grow_to(slots.span());
        self.insertions += 1;
        if self.insertions > AGE * (self.small.len() + self.main.len()) {
            self.insertions = 0;
            self.age = (self.age + 1) & (u8::MAX >> 1);
        }
        let Some(placed) = slots.item(slot) else { return };
        let known = self.ghost.take(placed.hash);
        placed.entry.set_credit(known.map_or(1, |memory| memory.uses + 1), 0);
        placed.entry.set_note(self.age << 1);
        let straight = match rule {
            Rule::S3Fifo(_) => known.is_some_and(|memory| memory.is_recent),
            Rule::TinyLfu(_) => false,
            Rule::Recency => true,
        };
        if straight {
            self.enter_main(slots, slot);
        } else {
            self.enter_small(slots, slot);
            if matches!(rule, Rule::TinyLfu(_)) && !self.was_full && self.is_small_over(rule.small_share()) {
                // The main queue is still being filled: nobody has to leave for it.
                self.promote_oldest(slots);
            }
        }
    }

    pub(super) fn remove<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(placed) = slots.item(slot) else { return };
        let (bytes, queue) = (placed.entry.bytes(), placed.entry.note() & QUEUE_MASK);
        if queue == MAIN {
            self.main_bytes -= bytes;
            self.main.unlink(slots, slot);
        } else {
            self.small_bytes -= bytes;
            self.small.unlink(slots, slot);
        }
    }

    /// Takes the next entry to leave out of its queue.
    pub(super) fn victim<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, rule: Rule) -> Option<u32> {
        self.was_full = true;
        if let Rule::TinyLfu(share) = rule
            && self.is_small_over(share as usize * 9 / 8 + 1)
        {
            // Another rule left the window too long, and losers alone do not shorten it.
            self.promote_oldest(slots);
        }
        let victim = self.choose(slots, rule)?;
        let uses = self.uses(slots, victim);
        if let Some(placed) = slots.item(victim) {
            self.ghost.remember(placed.hash, uses);
        }
        self.remove(slots, victim);
        Some(victim)
    }

    fn choose<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, rule: Rule) -> Option<u32> {
        for _ in 0..ROUNDS {
            if self.main.len() > 0 && !self.is_small_over(rule.small_share()) {
                break;
            }
            let Some(oldest) = self.small.tail() else { break };
            let chances = slots.item(oldest).map_or(0, |placed| placed.entry.chances());
            match rule {
                Rule::S3Fifo(_) if chances < 2 => return Some(oldest),
                Rule::Recency if chances == 0 => return Some(oldest),
                Rule::S3Fifo(_) | Rule::Recency => self.promote_oldest(slots),
                Rule::TinyLfu(_) if chances > 0 => {
                    if let Some(placed) = slots.item(oldest) {
                        placed.entry.set_chances(0);
                    }
                    self.small.move_to_front(slots, oldest);
                }
                Rule::TinyLfu(_) => {
                    let Some(rival) = self.oldest_of_main(slots, 1) else { return Some(oldest) };
                    if self.uses(slots, oldest) <= self.uses(slots, rival) {
                        return Some(oldest);
                    }
                    self.promote_oldest(slots);
                    return Some(rival);
                }
            }
        }
        let chances = if matches!(rule, Rule::S3Fifo(_)) { 3 } else { 1 };
        self.oldest_of_main(slots, chances).or_else(|| self.small.tail())
    }

    /// The entry at the end of the main queue that has used up its chances, of which so many count.
    fn oldest_of_main<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, chances: u8) -> Option<u32> {
        for _ in 0..ROUNDS {
            let oldest = self.main.tail()?;
            match slots.item(oldest) {
                Some(placed) if placed.entry.chances() > 0 => {
                    self.uses(slots, oldest);
                    placed.entry.set_chances(placed.entry.chances().min(chances) - 1);
                    self.main.move_to_front(slots, oldest);
                }
                _ => break,
            }
        }
        self.main.tail()
    }

    fn promote_oldest<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>) {
        let Some(slot) = self.small.tail() else { return };
        self.remove(slots, slot);
        if let Some(placed) = slots.item(slot) {
            placed.entry.set_chances(0);
        }
        self.enter_main(slots, slot);
    }

    fn enter_main<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.main_bytes += set_queue(slots, slot, MAIN);
        self.main.push_front(slots, slot);
    }

    fn enter_small<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.small_bytes += set_queue(slots, slot, SMALL);
        self.small.push_front(slots, slot);
    }

    fn is_small_over(&self, hundredths: usize) -> bool {
        self.small_bytes * 100 > (self.small_bytes + self.main_bytes) * hundredths
    }

    /// How often an entry has been used, what is long ago counting less; brings its count up to date.
    fn uses<K: Hold, V: Hold>(&self, slots: &Slots<K, V>, slot: u32) -> u8 {
        let Some(entry) = slots.item(slot).map(|placed| &placed.entry) else { return 0 };
        let ages = self.age.wrapping_sub(entry.note() >> 1) & (u8::MAX >> 1);
        if ages == 0 {
            return entry.uses();
        }
        // What was hit since the last look is as young as that hit.
        let uses = if entry.chances() > 0 { entry.uses() } else { entry.uses() >> ages.min(7) };
        entry.set_credit(uses, entry.chances());
        entry.set_note(self.age << 1 | entry.note() & QUEUE_MASK);
        uses
    }

    /// Bytes that it has allocated.
    pub(super) fn bytes(&self) -> usize {
        self.ghost.bytes()
    }

    /// Bytes that it would allocate for so many places.
    pub(super) fn growth(&self, places: u32) -> usize {
        self.ghost.growth(places)
    }
}

/// The entry's bytes.
fn set_queue<K: Hold, V: Hold>(slots: &Slots<K, V>, slot: u32, queue: u8) -> usize {
    let note = |entry: &Entry<K, V>| {
        entry.set_note(entry.note() & !QUEUE_MASK | queue);
        entry.bytes()
    };
    slots.item(slot).map_or(0, |placed| note(&placed.entry))
}
