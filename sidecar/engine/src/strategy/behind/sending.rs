//! Bringing what waits to the store: batches go out when they are due, and what became of them is told.

use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::select;
use futures::stream::FuturesUnordered;

use super::{Batch, Outcome, stats::count, unkept::Answer, writer::WriteBehind};
use crate::clock::Moment;
use crate::store::StoreError;
use crate::sync::Ordering;
use crate::timer::Sleep;
use crate::weigh::Weigh;

impl<K, V> WriteBehind<K, V>
where
    K: Eq + Hash + Clone + Weigh + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
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
        let all = state.is_draining || !state.unkept.is_empty();
        let batches = std::iter::from_fn(|| state.queue.take(now, all)).collect();
        let due = state.queue.due_at(all).into_iter().chain(state.unkept.deadline()).min();
        state.looks_at = due;
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
            ledger.replaced(&landed.replaced);
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
}

fn outcome(done: Result<(), StoreError>) -> Outcome {
    match done {
        Ok(()) => Outcome::Stored,
        Err(error) if error.is_transient() => Outcome::Later,
        Err(error) => Outcome::Refused(error.to_string().into()),
    }
}
