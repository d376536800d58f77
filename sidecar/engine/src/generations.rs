//! Generations as copies point to them: which value of a named, distributed version is the one in force.
//!
//! Owns one [`GenerationCell`] per generation in use and source: what was read of it last, and under which stamp. An entry
//! carries a [`Dependency`] per generation, the cell with the value that was seen *before* the entry was computed, and is
//! valid only while each of them is in force: a load of the cell and those that the kernel makes for any copy. A
//! push or an own renewal of the generation's key is a bump like any other: the cell is *unknown* then, not changed, and
//! entries are valid again when a re-read finds the same value. Absent means invalid.
//!
//! Never reads L3 and never waits: the caller reads a generation as it fills a copy, under a token, on the tracked
//! connection, and reports what was there. It fails only when there are more generations than its bound.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;

use crate::clock::Moment;
use crate::codec::envelope::GenerationValue;
use crate::guards::Guard;
use crate::hash::KeyHash;
use crate::kernel::{Basis, Currency, FillToken, Kernel, SourceId, Verdict};
use crate::sync::{AtomicU64, Mutex, Ordering};

const SHARDS: usize = 16;
/// A shard smaller than this is not looked through for cells that nothing points to.
const SWEEP_FROM: usize = 64;

/// What is read of a generation has a number within its cell; these two are no value's.
const NEVER_READ: u16 = 0;
const ABSENT: u16 = 1;

/// One generation, as L3 behind one source has it.
#[derive(Debug)]
pub struct GenerationCell {
    name: Box<[u8]>,
    source: SourceId,
    hash: KeyHash,
    /// Stripe and source, as in a [`Basis`].
    place: u32,
    /// What was read last and under what: its number (16 bits), the source's flush count (16), the stamp (32).
    known: AtomicU64,
    /// When it expires in L3, by the last reading, in nanoseconds.
    expires: AtomicU64,
    last: Mutex<Last>,
    /// It is in the registry: others get the same cell.
    is_shared: bool,
}

/// What the newest number stands for.
#[derive(Debug, Default)]
struct Last {
    number: u16,
    value: Option<GenerationValue>,
    detail: Bytes,
}

/// What a generation was at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    number: u16,
    /// Its value; `None`: there is no such generation, and what depends on it is invalid.
    pub value: Option<GenerationValue>,
    /// What L3 keeps beside the value.
    pub detail: Bytes,
}

/// What makes an entry depend on a generation: the cell, and the value that has to be in force.
#[derive(Clone, Debug)]
pub struct Dependency {
    cell: Arc<GenerationCell>,
    number: u16,
}

/// All generations that something in this process depends on.
#[derive(Debug)]
pub struct Generations {
    shards: Vec<Mutex<Shard>>,
    max_per_shard: usize,
}

#[derive(Debug)]
struct Shard {
    cells: HashTable<Arc<GenerationCell>>,
    sweep_at: usize,
}

// === impl Generations ===

impl Generations {
    /// At most about `max` at a time.
    pub fn new(max: usize) -> Self {
        let shard = || Mutex::new(Shard { cells: HashTable::new(), sweep_at: SWEEP_FROM });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), max_per_shard: max.div_ceil(SHARDS).max(1) }
    }

    fn shard(&self, hash: KeyHash) -> &Mutex<Shard> {
        &self.shards[(hash.raw() >> 56) as usize % SHARDS]
    }

    /// The cell of the generation whose key in L3 is `name`. If there are too many that something depends on, one of its
    /// own, for a look at what is in L3: nothing that depends on it is to be kept ([`GenerationCell::is_shared`]).
    pub fn cell(&self, kernel: &Kernel, source: SourceId, name: &[u8]) -> Arc<GenerationCell> {
        let hash = KeyHash::of(name);
        let mut shard = self.shard(hash).lock();
        if let Some(cell) = shard.cells.find(hash.raw(), |cell| cell.is(source, name)) {
            if !cell.is_used_up() {
                return cell.clone();
            }
            // Its dependents are invalid for good; the next ones get a cell with numbers to give.
            if let Ok(found) = shard.cells.find_entry(hash.raw(), |cell| cell.is(source, name)) {
                found.remove();
            }
        }
        if shard.cells.len() >= shard.sweep_at.min(self.max_per_shard) {
            shard.cells.retain(|cell| Arc::strong_count(cell) > 1);
            shard.sweep_at = (shard.cells.len() * 2).max(SWEEP_FROM);
        }
        let is_shared = shard.cells.len() < self.max_per_shard;
        let cell = Arc::new(GenerationCell {
            name: name.into(),
            source,
            hash,
            place: kernel.place_of(source, hash),
            known: AtomicU64::new(0),
            expires: AtomicU64::new(u64::MAX),
            last: Mutex::new(Last { number: ABSENT, value: None, detail: Bytes::new() }),
            is_shared,
        });
        if is_shared {
            shard.cells.insert_unique(hash.raw(), cell.clone(), |cell| cell.hash.raw());
        }
        cell
    }

    /// The cell of a generation that something depends on.
    pub fn used(&self, source: SourceId, name: &[u8]) -> Option<Arc<GenerationCell>> {
        let hash = KeyHash::of(name);
        let shard = self.shard(hash).lock();
        let cell = shard.cells.find(hash.raw(), |cell| cell.is(source, name))?;
        (Arc::strong_count(cell) > 1).then(|| cell.clone())
    }

    /// How many there are, also such that nothing depends on any more.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().cells.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl GenerationCell ===

impl GenerationCell {
    /// Its key in L3.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Where it is read from.
    pub fn source(&self) -> SourceId {
        self.source
    }

    fn is(&self, source: SourceId, name: &[u8]) -> bool {
        self.source == source && *self.name == *name
    }

    /// Whether entries that depend on it may be kept.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Every number was given.
    fn is_used_up(&self) -> bool {
        self.last.lock().number == u16::MAX
    }

    /// Permission to report what is about to be read of it. Take it *before* sending the read.
    pub fn begin_read(&self, kernel: &Kernel, now: Moment) -> FillToken {
        kernel.begin_fill(self.source, self.hash, now)
    }

    /// Takes what a read under `token` found, until `expires` in L3. It is in force from now on unless the generation was
    /// renewed since the token was taken; the reading is what it was in any case.
    pub fn report(
        &self,
        kernel: &Kernel,
        token: &FillToken,
        found: Option<(GenerationValue, Bytes)>,
        expires: Moment,
    ) -> Reading {
        let mut last = self.last.lock();
        let number = match found {
            None => ABSENT,
            Some((value, detail)) => {
                if last.value != Some(value) {
                    let number = last.number.saturating_add(1);
                    *last = Last { number, value: Some(value), detail };
                }
                last.number
            }
        };
        // Of the last number nobody can say which value it stands for.
        if number != u16::MAX
            && let Ok((basis, Moment::NEVER)) = kernel.settle(token, Moment::NEVER)
        {
            let (stamp, _, flushes) = basis.into_parts();
            self.known.store(pack(number, flushes, stamp), Ordering::Release);
            self.expires.store(expires.as_nanos(), Ordering::Relaxed);
        }
        reading(number, &last)
    }

    /// What is in force, if that is known and its source proven current.
    pub fn in_force(&self, kernel: &Kernel, now: Moment) -> Option<Reading> {
        let last = self.last.lock();
        let (number, basis) = self.known();
        let valid = matches!(kernel.verdict(&basis, Moment::NEVER, now), Verdict::Valid(_));
        // Read before its successor, whose report waits for the lock.
        (valid && (number == ABSENT || number == last.number)).then(|| reading(number, &last))
    }

    /// How long it is kept in L3, by the last reading. Whoever gets less than `wanted` should extend it; nobody else does
    /// so until it was read again.
    pub fn needs_extension(&self, wanted: std::time::Duration, now: Moment) -> bool {
        let expires = self.expires.load(Ordering::Relaxed);
        let is_short = Moment::from_nanos(expires).since(now) < wanted;
        is_short && self.expires.compare_exchange(expires, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn known(&self) -> (u16, Basis) {
        let known = self.known.load(Ordering::Acquire);
        ((known >> 48) as u16, Basis::from_parts(known as u32, self.place, (known >> 32) as u16))
    }
}

fn pack(number: u16, flushes: u16, stamp: u32) -> u64 {
    u64::from(number) << 48 | u64::from(flushes) << 32 | u64::from(stamp)
}

fn reading(number: u16, last: &Last) -> Reading {
    match number {
        NEVER_READ | ABSENT => Reading { number, value: None, detail: Bytes::new() },
        _ => Reading { number, value: last.value, detail: last.detail.clone() },
    }
}

// === impl Dependency ===

impl Reading {
    /// What an entry carries that was computed after this was read. `None`: of what is absent nothing can depend.
    pub fn dependency(&self, cell: &Arc<GenerationCell>) -> Option<Dependency> {
        self.value?;
        Some(Dependency { cell: cell.clone(), number: self.number })
    }
}

impl Dependency {
    /// The generation.
    pub fn cell(&self) -> &Arc<GenerationCell> {
        &self.cell
    }

    /// Whether [`verdict`](Self::verdict) is [`Currency::Proven`]; the way of most hits.
    #[inline]
    pub(crate) fn is_fresh(&self, kernel: &Kernel, now: Moment) -> bool {
        let (number, basis) = self.cell.known();
        (number == self.number) & kernel.is_fresh(&basis, Moment::NEVER, now)
    }

    /// What it says of the entry that carries it.
    pub fn verdict(&self, kernel: &Kernel, now: Moment) -> Verdict {
        if !kernel.guards().hold(Guard::GenerationCheck) {
            return Verdict::Valid(Currency::Proven);
        }
        let (number, basis) = self.cell.known();
        match kernel.verdict(&basis, Moment::NEVER, now) {
            Verdict::Invalidated | Verdict::Expired => Verdict::Invalidated,
            _ if number != self.number => Verdict::Invalidated,
            verdict => verdict,
        }
    }
}

/// The worst of two verdicts.
pub(crate) fn worst(a: Verdict, b: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Valid(Currency::Proven) => 0,
        Verdict::Valid(_) => 1,
        Verdict::Lapsed => 2,
        Verdict::Flushed => 3,
        Verdict::Expired => 4,
        Verdict::Invalidated => 5,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
