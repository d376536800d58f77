//! Two queues and a ghost, and the rules by which entries go through them: what S3-FIFO and the adaptive policy share.
//!
//! What is new enters the *small* queue, what has proved itself lives in the *main* one. Both are FIFOs with second
//! chances, so that a hit moves nothing. The rules differ in who may enter the main queue, and in how long the small one
//! is. All of them leave the same structure behind, so that one can follow another at any moment.

use super::Queue;
use super::ghost::{ERAS, Ghost};
use crate::entry::Entry;
use crate::hold::Hold;
use crate::l2::Slots;

const SMALL: u8 = 0;
const MAIN: u8 = 1;
const QUEUE_MASK: u8 = 1;
/// Eras of which an entry's note knows which one it is.
const NOTED_ERAS: u32 = 1 << 7;
/// How many second chances are given in a row before a newcomer has to leave: a bound on the work of an eviction.
const ROUNDS: usize = 24;

/// Who may enter the main queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// S3-FIFO: what was hit twice in the small queue, of so many hundredths of the bytes, or comes back soon. Yang, Zhang,
    /// Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.
    S3Fifo(u8),
    /// LIRS: what comes back sooner than the entry of the main queue that has been idle for longest, by a quarter at least. The
    /// small queue has one hundredth of the bytes. So a part of a loop that is too long stays, and a scan changes nothing.
    /// In the main queue so many hits count: many tell better what is popular, few let go sooner of what was. Jiang, Zhang:
    /// "LIRS: an efficient low inter-reference recency set replacement policy", SIGMETRICS 2002; with second chances as in
    /// Jiang, Chen, Zhang: "CLOCK-Pro: an effective improvement of the CLOCK replacement", USENIX ATC 2005.
    Lirs(u8),
    /// Everything, at once: an approximation of LRU.
    Recency,
}

impl Rule {
    /// The small queue's share of the bytes, in hundredths.
    const fn small_share(self) -> usize {
        match self {
            Self::S3Fifo(share) => share as usize,
            Self::Lirs(_) => 1,
            Self::Recency => 0,
        }
    }

    /// Hits in the small queue that let an entry into the main one.
    const fn least_hits(self) -> u8 {
        match self {
            Self::S3Fifo(_) => 2,
            Self::Lirs(_) | Self::Recency => 1,
        }
    }

    /// Hits that count for an entry of the main queue: so many times it is passed over.
    const fn most_chances(self) -> u8 {
        match self {
            Self::S3Fifo(_) => 3,
            Self::Lirs(chances) => chances,
            Self::Recency => 1,
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
    /// The era in which the oldest entry of the main queue came to its front.
    oldest_era: u32,
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
            oldest_era: 0,
            was_full: false,
        }
    }

    pub(super) fn insert<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32, rule: Rule) {
        self.ghost.grow_to(slots.span());
        let Some(placed) = slots.item(slot) else { return };
        placed.entry.set_chances(0);
        let left = self.ghost.take(placed.hash);
        let straight = match rule {
            Rule::S3Fifo(_) => left.is_some_and(|ago| ago <= ERAS),
            Rule::Lirs(_) => left.is_some_and(|ago| self.pass_over(slots, rule).is_some_and(|idle| ago * 4 < idle * 3)),
            Rule::Recency => true,
        };
        if straight {
            self.enter_main(slots, slot);
            return;
        }
        self.enter_small(slots, slot);
        if matches!(rule, Rule::Lirs(_)) && !self.was_full && self.is_small_over(rule.small_share()) {
            // The main queue is still being filled: nobody has to leave for it.
            self.promote_oldest(slots);
        }
    }

    pub(super) fn remove<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(placed) = slots.item(slot) else { return };
        let (bytes, queue) = (placed.entry.bytes(), placed.entry.note() & QUEUE_MASK);
        if queue == MAIN {
            self.main_bytes = self.main_bytes.saturating_sub(bytes);
            self.main.unlink(slots, slot);
        } else {
            self.small_bytes = self.small_bytes.saturating_sub(bytes);
            self.small.unlink(slots, slot);
        }
    }

    /// Takes the next entry to leave out of its queue.
    pub(super) fn victim<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, rule: Rule) -> Option<u32> {
        self.was_full = true;
        let victim = self.choose(slots, rule)?;
        let placed = slots.item(victim)?;
        let is_main = placed.entry.note() & QUEUE_MASK == MAIN;
        self.ghost.remember(placed.hash, if is_main { self.idle() } else { 0 });
        self.remove(slots, victim);
        Some(victim)
    }

    /// An entry with this hash is coming: asks for the memory in which it may be remembered.
    pub(super) fn expect(&self, hash: u32) {
        self.ghost.prefetch(hash);
    }

    /// Which entry will probably leave next; asks for the memory in which that will be noted, and for the entry by whose age
    /// it is judged who may enter the main queue.
    pub(super) fn foresee<K: Hold, V: Hold>(&self, slots: &Slots<K, V>) -> Option<u32> {
        if let Some(oldest) = self.main.tail().and_then(|oldest| slots.item(oldest)) {
            oldest.entry.prefetch();
        }
        let next = self.small.tail().or_else(|| self.main.tail())?;
        self.ghost.prefetch(slots.item(next)?.hash);
        Some(next)
    }

    fn choose<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, rule: Rule) -> Option<u32> {
        for _ in 0..ROUNDS {
            if self.main.len() > 0 && !self.is_small_over(rule.small_share()) {
                break;
            }
            let Some(oldest) = self.small.tail() else { break };
            if slots.item(oldest).is_none_or(|placed| placed.entry.chances() < rule.least_hits()) {
                return Some(oldest);
            }
            self.promote_oldest(slots);
        }
        if self.pass_over(slots, rule).is_some() {
            return self.main.tail();
        }
        // All that was looked at is in use: rather than one of these leaves what has proved nothing yet.
        self.small.tail().or_else(|| self.main.tail())
    }

    /// Gives those at the end of the main queue that were hit their second chances. For how many eras the one at its end
    /// has been idle, then; `None`: that was hit too, or there is none.
    fn pass_over<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, rule: Rule) -> Option<u32> {
        for _ in 0..ROUNDS {
            let oldest = self.main.tail()?;
            let entry = &slots.item(oldest)?.entry;
            // The main queue is in the order of eras, so the note's few bits are enough.
            let era = u32::from(entry.note() >> 1);
            self.oldest_era = self.oldest_era.wrapping_add(era.wrapping_sub(self.oldest_era) % NOTED_ERAS);
            if entry.chances() == 0 {
                return Some(self.idle());
            }
            entry.set_chances(entry.chances().min(rule.most_chances()) - 1);
            set_note(entry, MAIN, self.ghost.era());
            self.main.move_to_front(slots, oldest);
        }
        None
    }

    /// For how many eras the oldest entry of the main queue has been there, when it was last looked at.
    fn idle(&self) -> u32 {
        self.ghost.era().wrapping_sub(self.oldest_era)
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
        let Some(placed) = slots.item(slot) else { return };
        set_note(&placed.entry, MAIN, self.ghost.era());
        self.main_bytes = self.main_bytes.saturating_add(placed.entry.bytes());
        self.main.push_front(slots, slot);
    }

    fn enter_small<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some(placed) = slots.item(slot) else { return };
        set_note(&placed.entry, SMALL, 0);
        self.small_bytes = self.small_bytes.saturating_add(placed.entry.bytes());
        self.small.push_front(slots, slot);
    }

    fn is_small_over(&self, hundredths: usize) -> bool {
        let all = self.small_bytes.saturating_add(self.main_bytes);
        self.small_bytes.saturating_mul(100) > all.saturating_mul(hundredths)
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

fn set_note<K: Hold, V: Hold>(entry: &Entry<K, V>, queue: u8, era: u32) {
    entry.set_note((era % NOTED_ERAS) as u8 * 2 + queue);
}
