//! Each thread's own L1 of each cache, found without a lock.
//!
//! A thread's [`Worker`]s live in a thread-local list and are looked up by the cache's number. They end with their thread;
//! those of caches that are gone, when their thread next meets a cache for the first time. While a worker is in use it is
//! out of the list: code of keys and values that calls a cache meanwhile gets another.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::cache::Cache;
use crate::clock::Moment;
use crate::weigh::Weigh;
use crate::worker::Worker;

crate::sync::thread_local! {
    static WORKERS: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// What names a cache in every thread; workers of a cache whose token is gone are not needed any more.
pub(super) type Token = Arc<()>;

struct Slot {
    of: Weak<()>,
    worker: Option<Box<dyn Any>>,
}

/// One thread's view of one cache.
pub(super) struct Local<K, V>
where
    K: Eq + Weigh + Send + Sync + 'static,
    V: Weigh + Send + Sync + 'static,
{
    pub(super) worker: Worker<K, V>,
    next_sweep: Moment,
}

/// A sweep of L1 is done in so many slices.
const SLICES: u32 = 8;

impl<K, V> Local<K, V>
where
    K: Eq + Weigh + Send + Sync + 'static,
    V: Weigh + Send + Sync + 'static,
{
    fn new(cache: &Arc<Cache<K, V>>) -> Self {
        Self { worker: cache.worker(), next_sweep: Moment::ZERO }
    }

    /// A slice of L1's maintenance, when one is due.
    #[inline]
    pub(super) fn sweep_if_due(&mut self, now: Moment, interval: Duration) {
        if now >= self.next_sweep {
            self.sweep(now, interval);
        }
    }

    #[cold]
    fn sweep(&mut self, now: Moment, interval: Duration) {
        let slots = self.worker.l1_sizes().0 as u32;
        self.worker.maintain(now, slots / SLICES + 16);
        self.next_sweep = now + interval / SLICES;
    }
}

/// Calls `then` with this thread's worker of `cache`, made now if there is none.
pub(super) fn with_local<K, V, T>(
    token: &Token,
    cache: &Arc<Cache<K, V>>,
    then: impl FnOnce(&mut Local<K, V>) -> T,
) -> T
where
    K: Eq + Weigh + Send + Sync + 'static,
    V: Weigh + Send + Sync + 'static,
{
    let mut local = take(token).unwrap_or_else(|| Box::new(Local::new(cache)));
    let answer = match local.downcast_mut() {
        Some(local) => then(local),
        // Never: a token belongs to one cache, and so to one pair of types.
        None => then(&mut Local::new(cache)),
    };
    put_back(token, local);
    answer
}

fn is_of(slot: &Slot, token: &Token) -> bool {
    std::ptr::eq(slot.of.as_ptr(), Arc::as_ptr(token))
}

/// `None`: there is none, it is in use, or this thread is ending.
#[inline]
fn take(token: &Token) -> Option<Box<dyn Any>> {
    let taken = WORKERS.try_with(|workers| {
        workers.borrow_mut().iter_mut().find(|slot| is_of(slot, token)).and_then(|slot| slot.worker.take())
    });
    taken.ok().flatten()
}

#[inline]
fn put_back(token: &Token, local: Box<dyn Any>) {
    let known = WORKERS.try_with(|workers| {
        let mut workers = workers.borrow_mut();
        match workers.iter_mut().find(|slot| is_of(slot, token)) {
            Some(slot) => Ok(slot.worker.replace(local)),
            None => Err(local),
        }
    });
    // What is replaced is dropped here, outside of the borrow: it drops keys and values.
    if let Ok(Err(local)) = known {
        enrol(token, local);
    }
}

#[cold]
fn enrol(token: &Token, local: Box<dyn Any>) {
    let _dropped_outside_of_the_borrow: Result<Vec<Slot>, _> = WORKERS.try_with(|workers| {
        let mut workers = workers.borrow_mut();
        let gone = workers.extract_if(.., |slot| slot.of.strong_count() == 0).collect();
        workers.push(Slot { of: Arc::downgrade(token), worker: Some(local) });
        gone
    });
}

/// How many caches this thread has workers of.
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
pub(super) fn known() -> usize {
    WORKERS.with(|workers| workers.borrow().len())
}
