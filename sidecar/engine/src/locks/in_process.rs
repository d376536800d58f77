//! Locks that live in this process: for one process alone, for development and for tests.
//!
//! Its data dies with it; a later process's tokens are greater, because the epoch is the wall clock's second at the start
//! (as far as that clock is right: nothing outlives the process that could be asked).

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use super::{
    Answer, Ask, Claim, LockBackend, LockKey, LockListener, LockStatus, Reply, Ticket, Timer,
    table::{HandedOver, Table},
};

/// A [`LockBackend`] in memory. Clients share it by an [`Arc`].
pub struct InProcess<K> {
    table: Mutex<Table<K>>,
    timer: Arc<dyn Timer>,
    listeners: Mutex<Vec<Weak<dyn LockListener>>>,
}

impl<K: LockKey> InProcess<K> {
    /// An empty one, by this clock.
    pub fn new(timer: Arc<dyn Timer>) -> Arc<Self> {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
        Arc::new(Self { table: Mutex::new(Table::new(epoch)), timer, listeners: Mutex::default() })
    }

    /// All locks that are held or waited for.
    pub fn names(&self) -> Vec<K> {
        self.table.lock().names()
    }

    /// The number that all its tokens begin with.
    pub fn epoch(&self) -> u64 {
        self.table.lock().epoch()
    }

    fn tell(&self, tell: impl Fn(&dyn LockListener)) {
        let listeners: Vec<_> = self.listeners.lock().iter().filter_map(Weak::upgrade).collect();
        for listener in &listeners {
            tell(&**listener);
        }
    }

    /// Each client knows its own tickets and ignores others'.
    fn tell_of(&self, handed: &[HandedOver]) {
        for (ticket, token) in handed {
            self.tell(|listener| listener.handed_over(ticket, *token));
        }
    }
}

fn done<'a, T: Send + 'a>(value: T) -> Reply<'a, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl<K: LockKey> LockBackend<K> for InProcess<K> {
    fn attach(&self, listener: Weak<dyn LockListener>) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    fn acquire<'a>(&'a self, ask: &'a Ask<K>) -> Reply<'a, Answer> {
        let (answer, handed) = self.table.lock().acquire(ask, self.timer.now());
        self.tell_of(&handed);
        done(answer)
    }

    fn cancel<'a>(&'a self, ask: &'a Ask<K>) -> Reply<'a, ()> {
        let handed = self.table.lock().cancel(ask, self.timer.now());
        self.tell_of(&handed);
        done(())
    }

    fn renew<'a>(&'a self, claims: &'a [Claim<K>]) -> Reply<'a, Vec<bool>> {
        let now = self.timer.now();
        let mut table = self.table.lock();
        done(claims.iter().map(|claim| table.renew(claim, now)).collect())
    }

    fn release<'a>(&'a self, claim: &'a Claim<K>) -> Reply<'a, bool> {
        let (released, handed) = self.table.lock().release(claim, self.timer.now());
        self.tell_of(&handed);
        done(released)
    }

    /// Whoever waits lives: it is this process.
    fn keep_waiting(&self) -> Reply<'_, ()> {
        done(())
    }

    fn status<'a>(&'a self, name: &'a K) -> Reply<'a, LockStatus<K>> {
        done(self.table.lock().status(name, self.timer.now()))
    }

    fn contended(&self) -> Reply<'_, Vec<LockStatus<K>>> {
        done(self.table.lock().contended(self.timer.now()))
    }

    /// Several clients of one process may look at once: breaking is idempotent.
    fn take_duty(&self, _: Duration) -> Reply<'_, bool> {
        done(true)
    }

    fn leave_duty(&self) -> Reply<'_, ()> {
        done(())
    }

    fn break_deadlock<'a>(&'a self, name: &'a K, ticket: &'a Ticket, cycle: &'a str) -> Reply<'a, bool> {
        let (expelled, handed) = self.table.lock().expel(name, ticket, self.timer.now());
        if expelled {
            self.tell(|listener| listener.deadlocked(ticket, cycle));
            self.tell_of(&handed);
        }
        done(expelled)
    }
}
