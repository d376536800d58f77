//! Write-behind at work: takes writes, keeps them in a journal if there is one, and brings them to the store in batches.
//!
//! It owns the [`Queue`] and drives it with a store and a timer; it spawns nothing: [`WriteBehind::run`] is to be polled as
//! long as it is used. A write is acknowledged when the journal has it; one that the journal could not keep, when the
//! store has it. The store gets nothing that a journal was not asked to keep before: after a crash an older write of its key
//! would come back and be stored over it. Who finds no room waits for it, up to a deadline, and is then refused *before* anything was written.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use thiserror::Error;
use tokio::sync::Notify;

use super::unkept::{Answer, Unkept};
use super::{
    Backlog, Batch, BehindConfig, DeadLetter, Done, Journal, JournalError, Ledger, Outcome, Queue, Record, Write,
};
use crate::clock::Moment;
use crate::store::{BackingStore, StoreError};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::timer::{Sleep, Timer};
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
    /// It is on its way to the store, and nobody can promise that it gets there.
    #[error(transparent)]
    Unkept(#[from] JournalError),
}

/// What became of writes so far, and what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BehindStats {
    /// What waits.
    pub backlog: Backlog,
    /// Writes taken.
    pub taken: u64,
    /// Records that the store has got.
    pub stored: u64,
    /// Writes that a newer one of their key replaced before they were sent.
    pub coalesced: u64,
    /// Calls of the store that succeeded.
    pub flushes: u64,
    /// Calls of the store that failed.
    pub failures: u64,
    /// Writes that had to wait for room.
    pub waited: u64,
    /// Writes that found none.
    pub refused: u64,
    /// Writes that the journal could not keep, so that they were acknowledged by the store only.
    pub unkept: u64,
    /// The store's last complaint, while it fails or has dead letters.
    pub last_error: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Counts {
    taken: AtomicU64,
    stored: AtomicU64,
    coalesced: AtomicU64,
    flushes: AtomicU64,
    failures: AtomicU64,
    waited: AtomicU64,
    refused: AtomicU64,
    unkept: AtomicU64,
}

/// See the [module](self). A handle: clones are the same.
pub struct WriteBehind<K, V> {
    inner: Arc<Inner<K, V>>,
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

struct Inner<K, V> {
    state: Mutex<State<K, V>>,
    store: Arc<dyn BackingStore<K, V>>,
    journal: Option<Arc<dyn Journal<K, V>>>,
    /// What is told what became of writes: the journal, if there is one.
    ledger: Option<Arc<dyn Ledger>>,
    timer: Arc<dyn Timer>,
    /// There may be something to send.
    work: Notify,
    /// There may be room, or nothing left.
    relief: Notify,
    /// The journal has spoken.
    logged: Notify,
    counts: Counts,
}

struct State<K, V> {
    queue: Queue<K, V>,
    /// Everything is to go at once.
    draining: bool,
    /// Writes that the journal could not keep: they are acknowledged when the store has them.
    unkept: Unkept,
    /// Writes that the journal has not spoken of yet.
    unlogged: BTreeSet<u64>,
    last_error: Option<Arc<str>>,
    max_wait: Duration,
}

/// Room that was reserved; given back when dropped.
pub struct Room<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> {
    of: WriteBehind<K, V>,
    records: usize,
    bytes: usize,
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> std::fmt::Debug for Room<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("records", &self.records).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> Room<K, V> {
    /// So much of it, for writes that go by themselves.
    #[must_use]
    pub fn split(&mut self, records: usize, bytes: usize) -> Self {
        let (records, bytes) = (records.min(self.records), bytes.min(self.bytes));
        (self.records, self.bytes) = (self.records - records, self.bytes - bytes);
        Self { of: self.of.clone(), records, bytes }
    }
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> Drop for Room<K, V> {
    fn drop(&mut self) {
        if self.records > 0 {
            self.of.inner.state.lock().queue.release(self.records, self.bytes);
            self.of.inner.relief.notify_waiters();
        }
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
            draining: false,
            unkept: Unkept::default(),
            unlogged: BTreeSet::new(),
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

    /// Room for writes of these weights ([`Record::weight`]) together, if there is some now.
    pub fn reserve(&self, records: usize, bytes: usize) -> Option<Room<K, V>> {
        self.inner.state.lock().queue.reserve(records, bytes).then(|| Room { of: self.clone(), records, bytes })
    }

    /// Waits for room, for [`BehindConfig::max_wait`] at most.
    pub async fn room(&self, records: usize, bytes: usize) -> Result<Room<K, V>, BehindError> {
        if let Some(room) = self.reserve(records, bytes) {
            return Ok(room);
        }
        count(&self.inner.counts.waited);
        let max_wait = self.inner.state.lock().max_wait;
        let mut late = self.inner.timer.sleep(max_wait);
        loop {
            // Enrolled before the look: what happens in between wakes.
            let relief = self.inner.relief.notified();
            let mut relief = std::pin::pin!(relief);
            relief.as_mut().enable();
            if let Some(room) = self.reserve(records, bytes) {
                return Ok(room);
            }
            self.inner.work.notify_one();
            if let Either::Right(_) = select(relief, &mut late).await {
                count(&self.inner.counts.refused);
                return Err(self.full());
            }
        }
    }

    fn full(&self) -> BehindError {
        let state = self.inner.state.lock();
        let backlog = state.queue.backlog();
        let mut trouble = String::new();
        if let Some(error) = &state.last_error {
            trouble = format!(", and it says: {error}");
        }
        if backlog.dead_letters > 0 {
            trouble = format!("{trouble}; {} of them are dead letters", backlog.dead_letters);
        }
        BehindError::Full { records: backlog.records, bytes: backlog.bytes, trouble }
    }

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
        let State { queue, unkept, .. } = &mut *state;
        if let Some(mut room) = room {
            queue.release(std::mem::take(&mut room.records), room.bytes);
        }
        let mut records = Vec::new();
        for (key, write) in writes {
            let (seq, replaced) = match &inner.ledger {
                Some(_) => {
                    let (seq, replaced) = queue.offer(key.clone(), write.clone(), now);
                    records.push(Record { seq, key, write });
                    (seq, replaced)
                }
                None => queue.offer(key, write, now),
            };
            if let Some(replaced) = replaced {
                count(&inner.counts.coalesced);
                unkept.pass_on(replaced, seq);
                if let Some(ledger) = &inner.ledger {
                    ledger.replaced(replaced);
                }
            }
        }
        if inner.journal.is_some() {
            state.unlogged.extend(records.iter().map(|record| record.seq));
        }
        // Under the lock: who keeps a record hears of it before it hears that it is settled.
        let kept = keep(records);
        drop(state);
        inner.work.notify_one();
        kept
    }

    /// The journal has records, or could not keep them: then who wrote is told when the store has them.
    fn kept(&self, records: &[(u64, K)], kept: Result<(), JournalError>, done: Done) {
        let mut state = self.inner.state.lock();
        for (seq, _) in records {
            state.unlogged.remove(seq);
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

    // === bringing it to the store ===

    /// Brings writes to the store; never done. To be polled as long as this is used.
    pub async fn run(&self) {
        let inner = &*self.inner;
        let mut flights = FuturesUnordered::new();
        loop {
            let work = inner.work.notified();
            let (batches, due) = self.next();
            flights.extend(batches.into_iter().map(|batch| self.fly(batch)));
            // With nothing to wait for no timer runs: an idle process sleeps.
            let never = || -> Sleep { Box::pin(futures::future::pending()) };
            let sleep = due.map_or_else(never, |due| inner.timer.sleep_until(due));
            let landed = async {
                if flights.next().await.is_none() {
                    futures::future::pending::<()>().await;
                }
            };
            select(std::pin::pin!(landed), select(std::pin::pin!(work), sleep)).await;
        }
    }

    /// What goes out now, and when to look again; tells those who have waited for too long.
    fn next(&self) -> (Vec<Batch<K, V>>, Option<Moment>) {
        let now = self.inner.timer.now();
        let mut state = self.inner.state.lock();
        let late = state.unkept.late(now);
        let all = state.draining || !state.unkept.is_empty();
        let batches = std::iter::from_fn(|| state.queue.take(now, all)).collect();
        let due = state.queue.due_at(all).into_iter().chain(state.unkept.deadline()).min();
        drop(state);
        late.into_iter().for_each(Answer::give);
        (batches, due)
    }

    /// Waits until the journal has spoken of these writes.
    async fn logged(&self, batch: &Batch<K, V>) {
        let newest = batch.put_seqs.iter().chain(&batch.delete_seqs).max().copied().unwrap_or(0);
        loop {
            let told = self.inner.logged.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            if self.inner.state.lock().unlogged.first().is_none_or(|first| *first > newest) {
                return;
            }
            told.await;
        }
    }

    async fn fly(&self, batch: Batch<K, V>) {
        let inner = &*self.inner;
        self.logged(&batch).await;
        let puts = async {
            if batch.puts.is_empty() {
                return Ok(());
            }
            match self.names(&batch.put_seqs) {
                Some(names) => inner.store.store_named(&batch.puts, &names).await,
                None => inner.store.store_many(&batch.puts).await,
            }
        };
        let deletes = async {
            if batch.deletes.is_empty() {
                return Ok(());
            }
            match self.names(&batch.delete_seqs) {
                Some(names) => inner.store.delete_named(&batch.deletes, &names).await,
                None => inner.store.delete_many(&batch.deletes).await,
            }
        };
        let (puts, deletes) = futures::future::join(puts, deletes).await;
        for (any, done) in [(!batch.puts.is_empty(), &puts), (!batch.deletes.is_empty(), &deletes)] {
            if any {
                count(if done.is_ok() { &inner.counts.flushes } else { &inner.counts.failures });
            }
        }
        let error: Option<Arc<str>> =
            puts.as_ref().err().or_else(|| deletes.as_ref().err()).map(|error| error.to_string().into());
        let now = inner.timer.now();
        let mut state = inner.state.lock();
        let landed = state.queue.landed(&batch, &outcome(puts), &outcome(deletes), now);
        inner.counts.stored.fetch_add(landed.stored.len() as u64, Ordering::Relaxed);
        inner.counts.coalesced.fetch_add(landed.replaced.len() as u64, Ordering::Relaxed);
        if let Some(ledger) = &inner.ledger {
            ledger.settled(&landed.stored);
            landed.replaced.iter().for_each(|(old, _)| ledger.replaced(*old));
        }
        landed.replaced.iter().for_each(|(old, newer)| state.unkept.pass_on(*old, *newer));
        let mut told = state.unkept.stored(&landed.stored);
        told.extend(state.unkept.lost(&landed.died, &error.clone().unwrap_or_default()));
        match error {
            Some(error) => state.last_error = Some(error),
            None if state.queue.backlog().dead_letters == 0 => state.last_error = None,
            None => {}
        }
        drop(state);
        told.into_iter().for_each(Answer::give);
        inner.relief.notify_waiters();
    }

    /// What writes are called, if the store wants to know and they have names.
    fn names(&self, seqs: &[u64]) -> Option<Vec<String>> {
        let ledger = self.inner.ledger.as_ref().filter(|_| self.inner.store.takes_names())?;
        Some(seqs.iter().map(|seq| ledger.name(*seq)).collect())
    }

    /// Waits until the store has everything that it does not refuse, for so long at most; what is left.
    pub async fn drain(&self, patience: Duration) -> Backlog {
        let inner = &*self.inner;
        inner.state.lock().draining = true;
        inner.work.notify_one();
        let mut late = inner.timer.sleep(patience);
        loop {
            let relief = inner.relief.notified();
            let mut relief = std::pin::pin!(relief);
            relief.as_mut().enable();
            let backlog = self.backlog();
            if backlog.records == backlog.dead_letters {
                return backlog;
            }
            if let Either::Right(_) = select(relief, &mut late).await {
                return backlog;
            }
        }
    }

    /// What waits.
    pub fn backlog(&self) -> Backlog {
        self.inner.state.lock().queue.backlog()
    }

    // === for people ===

    /// Counters and sizes.
    pub fn stats(&self) -> BehindStats {
        let counts = &self.inner.counts;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let state = self.inner.state.lock();
        BehindStats {
            backlog: state.queue.backlog(),
            last_error: state.last_error.clone(),
            taken: load(&counts.taken),
            stored: load(&counts.stored),
            coalesced: load(&counts.coalesced),
            flushes: load(&counts.flushes),
            failures: load(&counts.failures),
            waited: load(&counts.waited),
            refused: load(&counts.refused),
            unkept: load(&counts.unkept),
        }
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

fn outcome(done: Result<(), StoreError>) -> Outcome {
    match done {
        Ok(()) => Outcome::Stored,
        Err(error) if error.is_transient() => Outcome::Later,
        Err(error) => Outcome::Refused(error.to_string().into()),
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
