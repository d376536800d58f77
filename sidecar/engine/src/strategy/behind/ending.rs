//! The end of a queue: everything is stored first, and then nothing more is taken. Until then it may go on after all.
//!
//! Whoever writes to the store by another way meanwhile waits for what is older ([`WriteBehind::settled`]).

use std::hash::Hash;
use std::time::Duration;

use futures::future::{Either, select};

use super::{
    Backlog,
    writer::{BehindError, State, WriteBehind},
};
use crate::weigh::Weigh;

impl<K, V> WriteBehind<K, V>
where
    K: Eq + Hash + Clone + Weigh + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    /// Waits until the store has everything that it does not refuse, also what has room and is not written yet, for so long
    /// at most; what is left. From now on, until [`resume`](Self::resume), everything goes out at once.
    pub async fn drain(&self, patience: Duration) -> Backlog {
        self.inner.state.lock().is_draining = true;
        self.inner.work.notify_one();
        self.until(patience, |state| state.queue.is_drained()).await;
        self.backlog()
    }

    /// Behind a [`drain`](Self::drain): waits until nothing is held, dead letters included. From then on nothing more is
    /// taken.
    pub async fn seal(&self) {
        let seal = |state: &mut State<K, V>| {
            state.is_sealed |= state.is_draining && state.queue.is_empty();
            state.is_sealed
        };
        while !self.until(Duration::MAX, seal).await {}
        self.inner.relief.notify_waiters();
    }

    /// Goes on as before the [`drain`](Self::drain); `false`: too late, it is sealed.
    pub fn resume(&self) -> bool {
        let mut state = self.inner.state.lock();
        state.is_draining &= state.is_sealed;
        !state.is_sealed
    }

    /// Waits until the store has what was written of these keys before, dead letters excepted, for
    /// [`BehindConfig::max_wait`](super::BehindConfig::max_wait) at most. What has room and is not written yet may be of any key.
    pub async fn settled(&self, keys: &[K]) -> Result<(), BehindError> {
        let max_wait = self.inner.state.lock().max_wait;
        let is_settled = |state: &mut State<K, V>| keys.iter().all(|key| state.queue.is_settled(key));
        if self.until(max_wait, is_settled).await {
            return Ok(());
        }
        Err(BehindError::Unsettled { trouble: self.inner.state.lock().trouble() })
    }

    /// Waits until `is_so`, for so long at most; whether it came to that.
    async fn until(&self, patience: Duration, mut is_so: impl FnMut(&mut State<K, V>) -> bool) -> bool {
        let inner = &*self.inner;
        let mut late = None;
        loop {
            // Enrolled before the look: what happens in between wakes.
            let relief = inner.relief.notified();
            let mut relief = std::pin::pin!(relief);
            relief.as_mut().enable();
            if is_so(&mut inner.state.lock()) {
                return true;
            }
            let late = late.get_or_insert_with(|| inner.timer.sleep(patience));
            if let Either::Right(_) = select(relief, late).await {
                return false;
            }
        }
    }
}
