//! One writer of a key at a time, by stripes: what is written through reaches the store and L3 in the same order.

use caddy_engine::KeyHash;
use tokio::sync::{Mutex, MutexGuard};

const STRIPES: usize = 256;

/// See the module.
pub(crate) struct Turns(Box<[Mutex<()>]>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    /// The turn of all these keys. Taken in one order, so that nobody waits in a circle.
    pub(crate) async fn of(&self, keys: &[KeyHash]) -> Vec<MutexGuard<'_, ()>> {
        let mut stripes: Vec<usize> = keys.iter().map(|key| key.tier(0).raw() as usize % STRIPES).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let mut turns = Vec::with_capacity(stripes.len());
        for stripe in stripes {
            turns.push(self.0[stripe].lock().await);
        }
        turns
    }
}
