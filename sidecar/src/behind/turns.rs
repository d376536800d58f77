//! One writer of a key at a time, by stripes: what is written through reaches the store and L3 in the same order, and what is
//! written behind does not overtake it on its way to the store.

use std::sync::atomic::{AtomicUsize, Ordering};

use caddy_engine::KeyHash;
use tokio::sync::{Mutex, MutexGuard};

const STRIPES: usize = 256;

/// See the module.
pub(crate) struct Turns {
    stripes: Box<[Mutex<()>]>,
    /// How many have turns, or wait for them: of none nobody has to look at stripes.
    under_way: AtomicUsize,
}

/// Keys' turn, until it is dropped.
pub(crate) struct Turn<'a> {
    all: &'a Turns,
    stripes: Vec<MutexGuard<'a, ()>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect(), under_way: AtomicUsize::new(0) }
    }
}

impl Turns {
    /// The turn of all these keys. Taken in one order, so that nobody waits in a circle.
    pub(crate) async fn of(&self, keys: &[KeyHash]) -> Turn<'_> {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let mut turn = Turn { all: self, stripes: Vec::new() };
        let mut stripes: Vec<usize> = keys.iter().copied().map(stripe).collect();
        stripes.sort_unstable();
        stripes.dedup();
        for stripe in stripes {
            turn.stripes.push(self.stripes[stripe].lock().await);
        }
        turn
    }

    /// Whether nobody has the turn of any of these keys.
    pub(crate) fn are_free(&self, mut keys: impl Iterator<Item = KeyHash>) -> bool {
        self.under_way.load(Ordering::Acquire) == 0 || keys.all(|key| self.stripes[stripe(key)].try_lock().is_ok())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.stripes.clear();
        self.all.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

fn stripe(key: KeyHash) -> usize {
    key.tier(0).raw() as usize % STRIPES
}
