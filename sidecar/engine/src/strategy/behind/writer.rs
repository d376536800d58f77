//! Write-behind at work: takes writes, keeps them in a journal if there is one, and brings them to the store in batches
//! (`sending`), until it is to end (`ending`).
//!
//! It owns the [`Queue`] and drives it with a store and a timer; it spawns nothing: [`WriteBehind::run`] is to be polled as
//! long as it is used. A write is acknowledged when the journal has it; one that the journal could not keep, when the
//! store has it. The store gets nothing that a journal was not asked to keep before: after a crash an older write of its key
//! would come back and be stored over it. Who finds no room waits for it, up to a deadline, and is then refused *before* anything was written.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;

use super::room::Room;
use super::stats::{BehindStats, Counts};
use super::unkept::Unkept;
use super::{Backlog, BehindConfig, DeadLetter, Done, Journal, JournalError, Ledger, Queue, Record, Write};
use crate::clock::Moment;
use crate::store::BackingStore;
use crate::sync::{Mutex, Ordering};
use crate::timer::Timer;
use crate::weigh::Weigh;

/// Why a write was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BehindError {
    /// There was no room for too long; nothing was written.
    #[error(
        "{records} writes ({bytes} bytes) wait for the store already{trouble}; see whether the store is up and quick enough, or raise maxRecords and maxBytes"
    )]
    Full {
        /// Writes that wait.
        records: usize,
        /// Their bytes.
        bytes: usize,
        /// What the store said last, if it fails; or the dead letters.
        trouble: String,
    },
    /// Older writes of the key did not reach the store for too long; nothing was written.
    #[error("older writes of the key are not stored yet{trouble}; see whether the store is up, and repeat it")]
    Unsettled {
        /// What the store said last, if it fails.
        trouble: String,
    },
    /// Nothing more is taken; nothing was written.
    #[error("its keyspace does not write behind any more; repeat it")]
    Sealed,
    /// It is on its way to the store, and nobody can promise that it gets there.
    #[error(transparent)]
    Unkept(#[from] JournalError),
}

/// Takes writes, keeps them in a [`Journal`] if there is one, and brings them to a store in batches while
/// [`run`](Self::run) is polled. A handle: clones are the same.
///
/// A write is acknowledged when the journal has it; one that the journal could not keep, when the store has it; without a
/// journal, at once. Who finds no room waits for it, up to a deadline, and is then refused *before* anything was written. As a
/// [`BackingStore`] it shows loaders what is on its way.
pub struct WriteBehind<K, V> {
    pub(super) inner: Arc<Inner<K, V>>,
}

impl<K, V> Clone for WriteBehind<K, V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K, V> std::fmt::Debug for WriteBehind<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteBehind").finish_non_exhaustive()
    }
}

pub(super) struct Inner<K, V> {
    pub(super) state: Mutex<State<K, V>>,
    pub(super) store: Arc<dyn BackingStore<K, V>>,
    journal: Option<Arc<dyn Journal<K, V>>>,
    /// What is told what became of writes: the journal, if there is one.
    pub(super) ledger: Option<Arc<dyn Ledger>>,
    pub(super) timer: Arc<dyn Timer>,
    /// There may be something to send.
    pub(super) work: Notify,
    /// There may be room, or nothing left.
    pub(super) relief: Notify,
    /// The journal has spoken.
    pub(super) logged: Notify,
    pub(super) counts: Counts,
}

pub(super) struct State<K, V> {
    pub(super) queue: Queue<K, V>,
    /// Everything is to go at once.
    pub(super) is_draining: bool,
    /// Nothing more is taken.
    pub(super) is_sealed: bool,
    /// Writes that the journal could not keep: they are acknowledged when the store has them.
    pub(super) unkept: Unkept,
    /// What was given to the journal and it has not spoken of yet: of each time the first number.
    pub(super) unlogged: BTreeSet<u64>,
    /// When [`WriteBehind::run`] looks for something to send; `None`: not before it is told to.
    pub(super) looks_at: Option<Moment>,
    pub(super) last_error: Option<Arc<str>>,
    pub(super) max_wait: Duration,
}

impl<K, V> State<K, V> {
    /// What the store said last, if it fails, to be told behind something else.
    pub(super) fn trouble(&self) -> String {
        self.last_error.as_ref().map_or_else(String::new, |error| format!(", and it says: {error}"))
    }
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> State<K, V> {
    /// Whether something is to be sent before somebody looks for it; said once.
    fn is_looked_at_too_late(&mut self) -> bool {
        let due = self.queue.due_at(self.is_draining || !self.unkept.is_empty());
        let is_late = due.is_some_and(|due| self.looks_at.is_none_or(|at| due < at));
        if is_late {
            self.looks_at = due;
        }
        is_late
    }
}

impl<K, V> WriteBehind<K, V>
where
    K: Eq + Hash + Clone + Weigh + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    /// Writes to `store`; what is acknowledged survives what `journal` survives, without one nothing.
    pub fn new(
        config: BehindConfig,
        store: Arc<dyn BackingStore<K, V>>,
        journal: Option<Arc<dyn Journal<K, V>>>,
        timer: Arc<dyn Timer>,
    ) -> Self {
        let ledger = journal.clone().map(|journal| journal as Arc<dyn Ledger>);
        Self::with(config, store, journal, ledger, timer)
    }

    /// The same where writes are kept elsewhere before they are taken: by [`write_kept`](Self::write_kept).
    pub fn kept_elsewhere(
        config: BehindConfig,
        store: Arc<dyn BackingStore<K, V>>,
        ledger: Arc<dyn Ledger>,
        timer: Arc<dyn Timer>,
    ) -> Self {
        Self::with(config, store, None, Some(ledger), timer)
    }

    fn with(
        config: BehindConfig,
        store: Arc<dyn BackingStore<K, V>>,
        journal: Option<Arc<dyn Journal<K, V>>>,
        ledger: Option<Arc<dyn Ledger>>,
        timer: Arc<dyn Timer>,
    ) -> Self {
        let queue = Queue::new(config);
        let state = State {
            queue,
            is_draining: false,
            is_sealed: false,
            unkept: Unkept::default(),
            unlogged: BTreeSet::new(),
            looks_at: None,
            last_error: None,
            max_wait: config.max_wait,
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                store,
                journal,
                ledger,
                timer,
                work: Notify::new(),
                relief: Notify::new(),
                logged: Notify::new(),
                counts: Counts::default(),
            }),
        }
    }

    /// Takes back what a journal kept from an earlier life, before anything new is written.
    pub fn restore(&self, records: impl IntoIterator<Item = Record<K, V>>) {
        let now = self.inner.timer.now();
        let mut state = self.inner.state.lock();
        for record in records {
            let _ = state.queue.restore(record, now);
        }
        drop(state);
        self.inner.work.notify_one();
    }

    /// The next write's number is at least this: in a journal, numbers of earlier lives are not used again.
    pub fn number_from(&self, seq: u64) {
        self.inner.state.lock().queue.number_from(seq);
    }

    /// From now on by another configuration; what is held is kept.
    pub fn reconfigure(&self, config: BehindConfig) {
        let mut state = self.inner.state.lock();
        state.queue.reconfigure(config);
        state.max_wait = config.max_wait;
        drop(state);
        self.inner.work.notify_one();
        self.inner.relief.notify_waiters();
    }

    // === writing ===

    /// Takes writes of different keys, in the room that was reserved for them; `done` runs when all are kept.
    pub fn write(&self, room: Room<K, V>, writes: Vec<(K, Write<V>)>, done: Done) {
        let Some(journal) = self.inner.journal.clone() else {
            self.offer(Some(room), writes, |_| {});
            return done(Ok(()));
        };
        let keep = |records, done| {
            journal.append(records, done);
            None
        };
        self.write_kept(room, writes, keep, done);
    }

    /// The same for writes that somebody else keeps: `keep` is given their numbers, and gives back what it will not run
    /// because they are kept already.
    pub fn write_kept(
        &self,
        room: Room<K, V>,
        writes: Vec<(K, Write<V>)>,
        keep: impl FnOnce(Vec<Record<K, V>>, Done) -> Option<Done>,
        done: Done,
    ) {
        let this = self.clone();
        let kept = self.offer(Some(room), writes, |records| {
            let names: Vec<(u64, K)> = records.iter().map(|record| (record.seq, record.key.clone())).collect();
            keep(records, Box::new(move |kept| this.kept(&names, kept, done)))
        });
        if let Some(done) = kept {
            done(Ok(()));
        }
    }

    /// Takes over what somebody else has acknowledged, also without room; `keep` is given the numbers.
    pub fn take_over(&self, writes: Vec<(K, Write<V>)>, keep: impl FnOnce(Vec<Record<K, V>>)) {
        self.offer(None, writes, keep);
    }

    fn offer<T>(
        &self,
        room: Option<Room<K, V>>,
        writes: Vec<(K, Write<V>)>,
        keep: impl FnOnce(Vec<Record<K, V>>) -> T,
    ) -> T {
        let inner = &*self.inner;
        let now = inner.timer.now();
        inner.counts.taken.fetch_add(writes.len() as u64, Ordering::Relaxed);
        let mut state = inner.state.lock();
        let State { queue, unkept, unlogged, .. } = &mut *state;
        let mut is_spare = false;
        if let Some(mut room) = room {
            is_spare = room.records > writes.len();
            queue.release(std::mem::take(&mut room.records), room.bytes);
        }
        let mut records = Vec::with_capacity(if inner.ledger.is_some() { writes.len() } else { 0 });
        let mut replaced = Vec::new();
        for (key, write) in writes {
            let (seq, old) = if inner.ledger.is_some() {
                let (seq, old) = queue.offer(key.clone(), write.clone(), now);
                records.push(Record { seq, key, write });
                (seq, old)
            } else {
                queue.offer(key, write, now)
            };
            if let Some(old) = old {
                unkept.pass_on(old, seq);
                replaced.push((old, seq));
            }
        }
        inner.counts.coalesced.fetch_add(replaced.len() as u64, Ordering::Relaxed);
        if inner.journal.is_some() {
            unlogged.extend(records.first().map(|record| record.seq));
        }
        // Under the lock: who keeps a record hears of it before it hears that it is settled, or replaced.
        let kept = keep(records);
        if let Some(ledger) = inner.ledger.as_ref().filter(|_| !replaced.is_empty()) {
            ledger.replaced(&replaced);
        }
        let is_late = state.is_looked_at_too_late();
        drop(state);
        if is_late {
            inner.work.notify_one();
        }
        if is_spare {
            inner.relief.notify_waiters();
        }
        kept
    }

    /// The journal has records, or could not keep them: then who wrote is told when the store has them.
    fn kept(&self, records: &[(u64, K)], kept: Result<(), JournalError>, done: Done) {
        let mut state = self.inner.state.lock();
        if let Some((first, _)) = records.first() {
            state.unlogged.remove(first);
        }
        self.inner.logged.notify_waiters();
        let Err(error) = kept else {
            drop(state);
            return done(Ok(()));
        };
        self.inner.counts.unkept.fetch_add(records.len() as u64, Ordering::Relaxed);
        let deadline = self.inner.timer.now() + state.max_wait;
        let carriers: Vec<u64> = records.iter().filter_map(|(seq, key)| state.queue.carrier(key, *seq)).collect();
        if carriers.is_empty() {
            drop(state);
            // The store was quicker than the journal.
            return done(Ok(()));
        }
        state.unkept.add(&carriers, deadline, error.clone(), done);
        state.last_error = Some(error.reason);
        drop(state);
        self.inner.work.notify_one();
    }

    /// Where writes go.
    pub fn store(&self) -> &Arc<dyn BackingStore<K, V>> {
        &self.inner.store
    }

    /// The newest write of a key that the store may not have: what a read of the store must not overlook.
    pub fn pending(&self, key: &K) -> Option<Write<V>> {
        self.inner.state.lock().queue.pending(key).cloned()
    }

    /// What waits.
    pub fn backlog(&self) -> Backlog {
        self.inner.state.lock().queue.backlog()
    }

    // === for people ===

    /// Counters and sizes.
    pub fn stats(&self) -> BehindStats {
        let state = self.inner.state.lock();
        let (backlog, last_error) = (state.queue.backlog(), state.last_error.clone());
        drop(state);
        self.inner.counts.told(backlog, last_error)
    }

    /// The oldest writes that the store refuses.
    pub fn dead_letters(&self, most: usize) -> Vec<DeadLetter<K, V>> {
        self.inner.state.lock().queue.dead_letters(most)
    }

    /// Offers dead letters to the store again, of these keys or all; how many.
    pub fn replay(&self, keys: Option<&[K]>) -> usize {
        let replayed = self.inner.state.lock().queue.replay(keys);
        self.inner.work.notify_one();
        replayed
    }

    /// Gives dead letters up, of these keys or all: the store will never have them. How many.
    pub fn discard(&self, keys: Option<&[K]>) -> usize {
        let mut state = self.inner.state.lock();
        let discarded = state.queue.discard(keys);
        if let Some(ledger) = &self.inner.ledger {
            ledger.settled(&discarded);
        }
        drop(state);
        self.inner.relief.notify_waiters();
        discarded.len()
    }
}
