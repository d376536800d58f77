//! One acquisition under way: it asks, waits until it is handed the lock, asks again where it has to. Dropped before it is
//! settled, it is taken back.

use std::{sync::Arc, time::Duration};

use super::{
    Answer, Ask, BackendError, Claim, FencingToken, Grant, LockClient, LockConfig, LockError, LockKey, LostReason,
    client::{News, Waiter},
    holdings::Lost,
    signal::Signal,
};
use crate::{Guard, Moment};

/// A waiter that is not its client's oldest for the lock asks by itself only so often: the oldest does, and passes it on.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long one waits whose answer was of no use.
const USELESS: Duration = Duration::from_millis(10);
/// How long a waiter waits that could not ask.
const OUTAGE: Duration = Duration::from_millis(200);

/// Counts an acquisition under way while it exists.
pub(super) struct Place<'a, K: LockKey>(&'a LockClient<K>);

impl<'a, K: LockKey> Place<'a, K> {
    pub(super) fn new(client: &'a LockClient<K>) -> Self {
        Self(client)
    }
}

impl<K: LockKey> Drop for Place<'_, K> {
    fn drop(&mut self) {
        self.0.state.lock().under_way -= 1;
    }
}

/// See the module.
pub(super) struct Attempt<'a, K: LockKey> {
    client: &'a LockClient<K>,
    ask: Ask<K>,
    /// There from the start if it may wait: a wake-up may overtake the answer that it is queued.
    news: Option<Arc<Signal<News>>>,
    queued: bool,
    settled: bool,
}

impl<'a, K: LockKey> Attempt<'a, K> {
    pub(super) fn new(client: &'a LockClient<K>, ask: Ask<K>) -> Self {
        let news = ask.waits.then(|| {
            let news = Arc::new(Signal::default());
            let waiter = Waiter { owner: ask.owner.clone(), news: news.clone() };
            client.state.lock().waiters.insert(ask.ticket.number, waiter);
            news
        });
        Self { client, ask, news, queued: false, settled: false }
    }

    /// Whether it had to wait.
    pub(super) fn has_queued(&self) -> bool {
        self.queued
    }

    pub(super) async fn run(
        &mut self,
        config: &LockConfig,
        begun: Moment,
        timeout: Duration,
    ) -> Result<(Grant, Lost), LockError> {
        let (client, deadline) = (self.client, begun + timeout);
        // Before the last request was sent that was answered "queued": a lock that is handed over is had since later.
        let mut queued_at = None;
        loop {
            let sent = client.timer.now();
            let again = match client.backend.acquire(&self.ask).await {
                Ok(Answer::Granted(token)) => {
                    let sent = self.since(config, Guard::LockFromSending, sent);
                    if let Some(granted) = self.granted(config, token, sent) {
                        return Ok(granted);
                    }
                    USELESS
                }
                Ok(Answer::NotFree) => {
                    self.settled = true;
                    return Err(LockError::TimedOut(timeout));
                }
                Ok(Answer::Upgrade(token)) => {
                    self.settled = true;
                    return Err(LockError::Upgrade(token));
                }
                Ok(Answer::Limit { what, limit }) => {
                    self.settled = true;
                    return Err(LockError::Limit { what, limit });
                }
                Ok(Answer::Queued(again)) => {
                    queued_at = Some(sent);
                    again
                }
                Err(error @ BackendError::Unreadable(_)) => return Err(error.into()),
                // Whoever has not queued yet is told at once; whoever waits goes on until its time is over.
                Err(error) if !self.queued => return Err(error.into()),
                Err(_) => OUTAGE,
            };
            // One that was queued long ago asks again: what is left of its lease is to be more than what is renewed.
            if let Some(token) = self.wait(deadline, again, timeout).await?
                && let Some(queued_at) = queued_at
                && client.timer.now() < queued_at + config.renew_after(self.ask.lease)
            {
                let queued_at = self.since(config, Guard::LockFromQueueing, queued_at);
                if let Some(granted) = self.granted(config, token, queued_at) {
                    return Ok(granted);
                }
            }
        }
    }

    /// From when on it is held, by a guard that a test may drop.
    fn since(&self, config: &LockConfig, guard: Guard, moment: Moment) -> Moment {
        if config.guards.hold(guard) { moment } else { self.client.timer.now() }
    }

    /// Takes note of the grant, unless the answer came too late to be of use, or it is one that its owner is letting go:
    /// that may happen behind the answer.
    fn granted(&mut self, config: &LockConfig, token: FencingToken, sent: Moment) -> Option<(Grant, Lost)> {
        let Self { client, ask, .. } = self;
        let now = client.timer.now();
        let valid_until = sent + config.validity(ask.lease);
        let claim = Claim { name: ask.name.clone(), owner: ask.owner.clone(), token, lease: ask.lease };
        let mut state = client.state.lock();
        if now >= valid_until || token.epoch() < state.epoch {
            return None;
        }
        if state.let_go.iter().any(|(other, _)| other.token == token && other.is_of(&claim)) {
            client.chores.set(());
            return None;
        }
        let (before, lost) = state.holdings.granted(config, &claim, ask.mode, &ask.ticket, sent);
        if let Some(before) = before {
            state.lose(&ask.owner, &ask.name, &before, LostReason::Gone);
        }
        client.rearm(&state);
        drop(state);
        self.settled = true;
        Some((Grant { token, remaining: valid_until.since(now) }, lost))
    }

    /// Until there is a reason to ask again; the token, if it was handed the lock.
    async fn wait(
        &mut self,
        deadline: Moment,
        again: Duration,
        timeout: Duration,
    ) -> Result<Option<FencingToken>, LockError> {
        self.queue_up();
        let (client, number) = (self.client, self.ask.ticket.number);
        // Who does not wait is answered without.
        let Some(news) = self.news.clone() else { return Err(LockError::TimedOut(timeout)) };
        let now = client.timer.now();
        let is_oldest = client.state.lock().is_oldest(&self.ask.name, number);
        let again = now + if is_oldest { again } else { PATIENCE };
        match news.until(&*client.timer, again.min(deadline)).await {
            Some(News::Deadlock(cycle)) => {
                self.settled = true;
                Err(LockError::Deadlock(cycle))
            }
            Some(News::Abandoned) => Err(LockError::Abandoned),
            Some(News::HandedOver(token)) => Ok(Some(token)),
            None if client.timer.now() >= deadline => Err(LockError::TimedOut(timeout)),
            Some(News::AskAgain) | None => Ok(None),
        }
    }

    fn queue_up(&mut self) {
        if self.queued || self.news.is_none() {
            return;
        }
        self.queued = true;
        let mut state = self.client.state.lock();
        state.queued += 1;
        state.queues.entry(self.ask.name.clone()).or_default().insert(self.ask.ticket.number);
        drop(state);
        self.client.chores.set(());
        self.client.queues.set(());
    }
}

impl<K: LockKey> Drop for Attempt<'_, K> {
    fn drop(&mut self) {
        let Self { client, ask, news, queued, settled } = self;
        let is_taken_back = client.config().guards.hold(Guard::LockTakenBack);
        let mut state = client.state.lock();
        if news.is_some() {
            state.waiters.remove(&ask.ticket.number);
        }
        state.queued -= usize::from(*queued);
        if *queued && let Some(queue) = state.queues.get_mut(&ask.name) {
            queue.remove(&ask.ticket.number);
            let next = queue.first().copied();
            if next.is_none() {
                state.queues.remove(&ask.name);
            }
            // The next one looks after the queue from now on, and begins at once.
            if let Some(waiter) = next.and_then(|next| state.waiters.get(&next)) {
                waiter.news.set_if_none(News::AskAgain);
            }
        }
        if !*settled && is_taken_back {
            let until = client.timer.now() + ask.lease;
            state.given_up.push((ask.clone(), until));
            drop(state);
            client.chores.set(());
        }
    }
}
