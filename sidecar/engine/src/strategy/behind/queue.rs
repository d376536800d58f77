//! What is still to be stored, and in which order: write-behind as a state machine without I/O, threads or a clock.
//!
//! It owns at most two writes of a key: the newest one that waits, and one that is under way to the store. A newer write
//! replaces the one that waits, which keeps its turn; a key that is under way is in no second batch. So what the store
//! gets of a key is in the order of its writes, whatever fails in between. A batch that the store refuses is tried again
//! in halves until what it refuses stands alone; that rests, is tried again, and in the end stays as a *dead letter*, until
//! it is replayed, given up, or replaced by a newer write of its key.
//!
//! It never drops a write that was not stored or replaced, and never holds more than its bounds: room is reserved first.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::slots::{At, Slots};
use super::{Backlog, Batch, BehindConfig, DeadLetter, Landed, Outcome, Record, Write};
use crate::clock::Moment;
use crate::store::BATCH_BYTES;
use crate::weigh::Weigh;

/// See the module.
#[derive(Debug)]
pub struct Queue<K, V> {
    config: BehindConfig,
    slots: Slots<K, Held<V>>,
    /// Where writes wait that may go, by their turns.
    ready: BTreeMap<Turn, At>,
    /// Those that the store refused when they stood alone, by when they are tried again.
    resting: BTreeMap<(Moment, u64), At>,
    dead: BTreeMap<u64, At>,
    flights: HashMap<u64, Flight>,
    next_seq: u64,
    next_batch: u64,
    reserved: (usize, usize),
    /// Held, dead letters included.
    records: usize,
    bytes: usize,
    failures: u32,
    /// Nothing goes out before, after failures.
    paused_until: Moment,
}

/// A write's place among those that may go: when it was made, or the first of those that it replaced, and that one's number.
type Turn = (Moment, u64);

/// Of one key.
#[derive(Debug)]
struct Held<V> {
    waiting: Option<Waiting<V>>,
    flying: Option<Waiting<V>>,
}

#[derive(Debug)]
struct Waiting<V> {
    write: Write<V>,
    seq: u64,
    turn: Turn,
    weight: usize,
    /// Largest batch it may be part of.
    limit: usize,
    attempts: u32,
    place: Place,
}

/// Where a waiting write is listed.
#[derive(Debug, Clone)]
enum Place {
    /// Nowhere: its key is under way.
    Behind,
    Ready,
    Resting(Moment),
    Dead(Arc<str>),
}

#[derive(Debug)]
struct Flight {
    slots: Vec<At>,
    since: Moment,
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> Queue<K, V> {
    /// An empty one.
    pub fn new(config: BehindConfig) -> Self {
        Self {
            config,
            slots: Slots::new(),
            ready: BTreeMap::new(),
            resting: BTreeMap::new(),
            dead: BTreeMap::new(),
            flights: HashMap::new(),
            next_seq: 1,
            next_batch: 1,
            reserved: (0, 0),
            records: 0,
            bytes: 0,
            failures: 0,
            paused_until: Moment::ZERO,
        }
    }

    /// From now on by another configuration; what is held is kept, also beyond its bounds.
    pub fn reconfigure(&mut self, config: BehindConfig) {
        self.config = config;
    }

    // === room ===

    /// Room for so many records of so many bytes ([`Record::weight`]) together; `false`: there is none now. Something larger
    /// than all the room there is fits into an empty queue.
    pub fn reserve(&mut self, records: usize, bytes: usize) -> bool {
        let held = (self.records.saturating_add(self.reserved.0), self.bytes.saturating_add(self.reserved.1));
        let (records_then, bytes_then) = (held.0.saturating_add(records), held.1.saturating_add(bytes));
        let fits = records_then <= self.config.max_records && bytes_then <= self.config.max_bytes;
        if !fits && held.0 > 0 {
            return false;
        }
        self.reserved = (self.reserved.0.saturating_add(records), self.reserved.1.saturating_add(bytes));
        true
    }

    /// Gives back what was reserved, used or not.
    pub fn release(&mut self, records: usize, bytes: usize) {
        self.reserved = (self.reserved.0.saturating_sub(records), self.reserved.1.saturating_sub(bytes));
    }

    // === writes ===

    /// Takes a write; its number, and the one of a write that it replaces.
    pub fn offer(&mut self, key: K, write: Write<V>, now: Moment) -> (u64, Option<u64>) {
        let seq = self.next_seq;
        (seq, self.restore(Record { seq, key, write }, now))
    }

    /// The next write's number is at least this.
    pub fn number_from(&mut self, seq: u64) {
        self.next_seq = self.next_seq.max(seq);
    }

    /// Takes a write that was numbered before, in an earlier life; tells the number of one that it replaces.
    pub fn restore(&mut self, record: Record<K, V>, now: Moment) -> Option<u64> {
        let Record { seq, key, write } = record;
        self.next_seq = self.next_seq.max(seq + 1);
        let weight = Record::weight(&key, &write);
        let mut waiting =
            Waiting { write, seq, turn: (now, seq), weight, limit: usize::MAX, attempts: 0, place: Place::Ready };
        self.records += 1;
        self.bytes += weight;
        let at = self.slots.find_or_insert(key, || Held { waiting: None, flying: None });
        let slot = self.slots.get_mut(at)?;
        let mut is_listed = slot.flying.is_some();
        if is_listed {
            waiting.place = Place::Behind;
        }
        let replaced = slot.waiting.take();
        if let Some(old) = &replaced {
            self.records -= 1;
            self.bytes -= old.weight;
            match &old.place {
                // Of a letter that lay dead nobody counts the age.
                Place::Dead(_) => drop(self.dead.remove(&old.seq)),
                place => {
                    waiting.turn = old.turn;
                    is_listed |= matches!(place, Place::Ready);
                    if let Place::Resting(at) = place {
                        self.resting.remove(&(*at, old.seq));
                    }
                }
            }
        }
        if !is_listed {
            self.ready.insert(waiting.turn, at);
        }
        slot.waiting = Some(waiting);
        replaced.map(|old| old.seq)
    }

    fn held(&self, key: &K) -> Option<&Held<V>> {
        self.slots.get(self.slots.find(key)?).map(|slot| &slot.held)
    }

    /// The newest write of a key that the store may not have.
    pub fn pending(&self, key: &K) -> Option<&Write<V>> {
        let slot = self.held(key)?;
        slot.waiting.as_ref().or(slot.flying.as_ref()).map(|waiting| &waiting.write)
    }

    /// The number of the write by which the store gets to know of the write `seq` of a key: its own or a newer one's; `None`:
    /// it knows.
    pub fn carrier(&self, key: &K, seq: u64) -> Option<u64> {
        let slot = self.held(key)?;
        let numbers = [&slot.flying, &slot.waiting].into_iter().flatten().map(|waiting| waiting.seq);
        numbers.filter(|number| *number >= seq).min()
    }

    // === batches ===

    /// The next batch, if one is due: it is full, its oldest record has waited for `flush_interval`, or `all` must go.
    pub fn take(&mut self, now: Moment, all: bool) -> Option<Batch<K, V>> {
        let woken = self.wake(now, all);
        let is_busy = self.flights.len() >= self.most_in_flight();
        if is_busy || self.ready.is_empty() || now < self.paused_until || !(woken || self.is_due(now, all)) {
            return None;
        }
        let id = self.next_batch;
        self.next_batch += 1;
        let (mut bytes, mut most, mut since) = (0, self.config.batch_size.max(1), now);
        let likely = most.min(self.ready.len());
        let mut batch = Batch {
            id,
            puts: Vec::with_capacity(likely),
            deletes: Vec::new(),
            put_seqs: Vec::with_capacity(likely),
            delete_seqs: Vec::new(),
        };
        let mut slots = Vec::with_capacity(likely);
        while let Some(entry) = self.ready.first_entry() {
            let at = *entry.get();
            let Some((slot, waiting)) = self.slots.get(at).and_then(|slot| Some((slot, slot.held.waiting.as_ref()?)))
            else {
                entry.remove();
                continue;
            };
            most = most.min(waiting.limit);
            if slots.len() >= most || (bytes > 0 && bytes + waiting.weight > BATCH_BYTES) {
                break;
            }
            entry.remove();
            bytes += waiting.weight;
            since = since.min(waiting.turn.0);
            let key = slot.key.clone();
            match &waiting.write {
                Write::Put(value) => {
                    batch.puts.push((key, value.clone()));
                    batch.put_seqs.push(waiting.seq);
                }
                Write::Delete => {
                    batch.deletes.push(key);
                    batch.delete_seqs.push(waiting.seq);
                }
            }
            if let Some(held) = self.slots.get_mut(at) {
                held.flying = held.waiting.take();
            }
            slots.push(at);
        }
        self.flights.insert(id, Flight { slots, since });
        Some(batch)
    }

    /// When [`take`](Self::take) is to be asked next, if nothing else happens; `None`: not before something does.
    pub fn due_at(&self, all: bool) -> Option<Moment> {
        if self.flights.len() >= self.most_in_flight() {
            return None;
        }
        let first = |list: &BTreeMap<(Moment, u64), At>| list.first_key_value().map(|((at, _), _)| *at);
        let soon = all || self.is_pressing();
        let fresh = first(&self.ready).map(|since| if soon { since } else { since + self.config.flush_interval });
        let rested = first(&self.resting).map(|at| if all { Moment::ZERO } else { at });
        Some(fresh.into_iter().chain(rested).min()?.max(self.paused_until))
    }

    /// While the store fails one batch is enough to see that it is back.
    fn most_in_flight(&self) -> usize {
        if self.failures > 0 { 1 } else { self.config.max_in_flight.max(1) }
    }

    fn is_due(&self, now: Moment, all: bool) -> bool {
        let oldest = self.ready.first_key_value().map(|((since, _), _)| *since);
        all || self.is_pressing() || oldest.is_some_and(|since| since + self.config.flush_interval <= now)
    }

    /// Whether what may go does not wait for more.
    fn is_pressing(&self) -> bool {
        self.failures > 0
            || self.ready.len() >= self.config.batch_size
            || self.bytes * 2 >= self.config.max_bytes
            || self.records * 2 >= self.config.max_records
    }

    /// Those that have rested go with the next batch; whether there are any.
    fn wake(&mut self, now: Moment, all: bool) -> bool {
        let before = self.resting.len();
        while let Some(entry) = self.resting.first_entry() {
            if !all && entry.key().0 > now {
                break;
            }
            let at = entry.remove();
            if let Some(waiting) = self.slots.get_mut(at).and_then(|slot| slot.waiting.as_mut()) {
                waiting.place = Place::Ready;
                self.ready.insert(waiting.turn, at);
            }
        }
        self.resting.len() < before
    }

    /// What the store did with a batch.
    pub fn landed(&mut self, batch: &Batch<K, V>, puts: &Outcome, deletes: &Outcome, now: Moment) -> Landed {
        let mut landed = Landed::default();
        let Some(flight) = self.flights.remove(&batch.id) else { return landed };
        let failed = |outcome: &Outcome, any: bool| any && *outcome == Outcome::Later;
        if failed(puts, !batch.puts.is_empty()) || failed(deletes, !batch.deletes.is_empty()) {
            self.failures = self.failures.saturating_add(1);
            self.paused_until = now + self.config.pause(self.failures);
        } else {
            self.failures = 0;
        }
        for at in flight.slots {
            let Some(slot) = self.slots.get_mut(at) else { continue };
            let Some(flown) = slot.flying.take() else { continue };
            let is_put = matches!(flown.write, Write::Put(_));
            let (outcome, together) = if is_put { (puts, batch.puts.len()) } else { (deletes, batch.deletes.len()) };
            if *outcome == Outcome::Stored || slot.waiting.is_some() {
                match &slot.waiting {
                    Some(newer) if *outcome != Outcome::Stored => landed.replaced.push((flown.seq, newer.seq)),
                    _ => landed.stored.push(flown.seq),
                }
                self.records -= 1;
                self.bytes -= flown.weight;
                match &mut slot.waiting {
                    Some(newer) => {
                        newer.place = Place::Ready;
                        self.ready.insert(newer.turn, at);
                    }
                    None => drop(self.slots.remove(at)),
                }
                continue;
            }
            let mut back = flown;
            match outcome {
                Outcome::Refused(reason) if together == 1 => {
                    back.attempts += 1;
                    if back.attempts >= self.config.max_attempts.max(1) {
                        landed.died.push(back.seq);
                        self.dead.insert(back.seq, at);
                        back.place = Place::Dead(reason.clone());
                    } else {
                        let until = now + self.config.pause(back.attempts);
                        self.resting.insert((until, back.seq), at);
                        back.place = Place::Resting(until);
                    }
                }
                _ => {
                    if matches!(outcome, Outcome::Refused(_)) {
                        back.limit = together.div_ceil(2);
                    }
                    self.ready.insert(back.turn, at);
                    back.place = Place::Ready;
                }
            }
            slot.waiting = Some(back);
        }
        landed
    }

    // === what is there ===

    /// Sizes.
    pub fn backlog(&self) -> Backlog {
        let fresh = self.ready.first_key_value().map(|((since, _), _)| *since);
        let flying = self.flights.values().map(|flight| flight.since);
        let slots = self.resting.values().filter_map(|at| self.slots.get(*at)?.held.waiting.as_ref());
        let oldest = flying.chain(slots.map(|waiting| waiting.turn.0)).chain(fresh).min();
        Backlog {
            records: self.records,
            bytes: self.bytes,
            dead_letters: self.dead.len(),
            oldest,
            failures: self.failures,
        }
    }

    /// Whether everything is stored that the store does not refuse, and nothing else has room.
    pub fn is_drained(&self) -> bool {
        self.records == self.dead.len() && self.reserved.0 == 0
    }

    /// Whether nothing is held, and nothing has room.
    pub fn is_empty(&self) -> bool {
        self.records == 0 && self.reserved.0 == 0
    }

    /// Whether nothing of the key is to come to the store, unless somebody replays it.
    pub fn is_settled(&self, key: &K) -> bool {
        let is_settled = |slot: &Held<V>| {
            slot.flying.is_none() && slot.waiting.as_ref().is_none_or(|write| matches!(write.place, Place::Dead(_)))
        };
        self.reserved.0 == 0 && self.held(key).is_none_or(is_settled)
    }

    // === dead letters ===

    /// The oldest dead letters.
    pub fn dead_letters(&self, most: usize) -> Vec<DeadLetter<K, V>> {
        let letters = self.dead.values().filter_map(|at| {
            let slot = self.slots.get(*at)?;
            let waiting = slot.held.waiting.as_ref()?;
            let Place::Dead(reason) = &waiting.place else { return None };
            let record = Record { seq: waiting.seq, key: slot.key.clone(), write: waiting.write.clone() };
            Some(DeadLetter { record, since: waiting.turn.0, reason: reason.clone() })
        });
        letters.take(most).collect()
    }

    /// Offers dead letters to the store again, of these keys or all; how many.
    pub fn replay(&mut self, keys: Option<&[K]>) -> usize {
        let chosen = self.chosen(keys);
        for (seq, at) in &chosen {
            self.dead.remove(seq);
            if let Some(waiting) = self.slots.get_mut(*at).and_then(|slot| slot.waiting.as_mut()) {
                waiting.place = Place::Ready;
                waiting.attempts = 0;
                self.ready.insert(waiting.turn, *at);
            }
        }
        chosen.len()
    }

    /// Gives dead letters up, of these keys or all: they are lost. Their numbers.
    pub fn discard(&mut self, keys: Option<&[K]>) -> Vec<u64> {
        let chosen = self.chosen(keys);
        for (seq, at) in &chosen {
            self.dead.remove(seq);
            if let Some(waiting) = self.slots.remove(*at).and_then(|slot| slot.held.waiting) {
                self.records -= 1;
                self.bytes -= waiting.weight;
            }
        }
        chosen.into_iter().map(|(seq, _)| seq).collect()
    }

    fn chosen(&self, keys: Option<&[K]>) -> Vec<(u64, At)> {
        let is_chosen =
            |at: At| keys.is_none_or(|keys| self.slots.get(at).is_some_and(|slot| keys.contains(&slot.key)));
        self.dead.iter().filter(|(_, at)| is_chosen(**at)).map(|(seq, at)| (*seq, *at)).collect()
    }
}
