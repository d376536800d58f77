//! Keeps what a client holds: renews, notices ends, takes back what was given up, looks for deadlocks.
//!
//! Four loops that share one task. The loop that notices ends asks nobody, so that an owner hears of a lost lock on time
//! while a renewal hangs. A backend that does not answer delays the others, and ends nothing.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use super::{BackendError, DeadlockDetector, LockClient, LockKey, LostReason, client::State};
use crate::Moment;

/// Leases renewed by one request.
const BATCH: usize = 128;
/// Looks for deadlocks are at least so far apart: without a pause nothing else would run.
const SHORTEST_CHECK: Duration = Duration::from_millis(1);
/// Pause after an attempt that the backend did not answer.
const OUTAGE: Duration = Duration::from_millis(250);

impl<K: LockKey> LockClient<K> {
    /// Keeps what is held; a runtime runs it for as long as the client is used. Never done.
    pub async fn run(&self) {
        let mut loops: [Pin<Box<dyn Future<Output = ()> + Send + '_>>; 4] = [
            Box::pin(self.notice_ends()),
            Box::pin(self.renew_leases()),
            Box::pin(self.do_chores()),
            Box::pin(self.break_deadlocks()),
        ];
        std::future::poll_fn(|cx: &mut Context<'_>| {
            for each in &mut loops {
                let _ = each.as_mut().poll(cx);
            }
            Poll::<()>::Pending
        })
        .await;
    }

    async fn notice_ends(&self) {
        loop {
            let next = self.end_what_is_over();
            let _ = self.ends.until(&*self.timer, next).await;
        }
    }

    /// When the next one is.
    fn end_what_is_over(&self) -> Moment {
        let now = self.timer.now();
        let mut state = self.state.lock();
        while let Some((owner, name, holding)) = state.holdings.take_ended(now) {
            state.lose(&owner, &name, &holding, LostReason::NotRenewed);
            let claim = super::Claim { name, owner, token: holding.token, lease: holding.lease };
            state.let_go.push((claim, now + holding.lease));
            self.chores.set(());
        }
        state.ends_at = state.holdings.next_end();
        state.ends_at
    }

    async fn renew_leases(&self) {
        loop {
            let (config, sent) = (self.config(), self.timer.now());
            let (claims, next) = {
                let mut state = self.state.lock();
                let claims = state.holdings.take_due(&config, sent, BATCH);
                state.renews_at = state.holdings.next_renewal();
                (claims, state.renews_at)
            };
            if claims.is_empty() {
                let _ = self.renewals.until(&*self.timer, next).await;
                continue;
            }
            // An attempt that failed is due again soon, each lock at its own pace.
            let Ok(renewed) = self.backend.renew(&claims).await else { continue };
            for (claim, kept) in claims.iter().zip(renewed) {
                if kept {
                    self.note_renewed(claim, sent);
                } else {
                    self.gone(claim);
                }
            }
        }
    }

    /// Takes back what was given up, lets go of what was left, and says that the waiters live.
    async fn do_chores(&self) {
        let mut next_beat = Moment::ZERO;
        loop {
            let clean = self.take_back().await;
            let now = self.timer.now();
            let waits = self.state.lock().waits();
            if waits && now >= next_beat {
                // Its loss shows in what the waiters themselves ask.
                let _ = self.backend.keep_waiting().await;
                next_beat = now + Self::BEAT;
            }
            let again = if clean { Moment::NEVER } else { self.timer.now() + OUTAGE };
            let beat = if waits { next_beat } else { Moment::NEVER };
            let _ = self.chores.until(&*self.timer, again.min(beat)).await;
        }
    }

    /// Whether nothing is left to do. Of a lock that cannot be read it is left for later, and in nobody's way.
    async fn take_back(&self) -> bool {
        let (mut kept, mut stuck) = (Vec::new(), Vec::new());
        let mut is_answered = true;
        while is_answered {
            let Some((ask, until)) = self.state.lock().given_up.pop() else { break };
            let outcome = self.backend.cancel(&ask).await;
            if outcome.is_err() && self.timer.now() < until {
                is_answered = matches!(outcome, Err(BackendError::Unreadable(_)));
                kept.push((ask, until));
            }
        }
        let is_clean = kept.is_empty();
        self.state.lock().given_up.append(&mut kept);
        while is_answered {
            // It stays until it is answered: nobody goes by a token that is being let go.
            let next = self.state.lock().let_go.iter().rfind(|(claim, _)| !stuck.contains(claim)).cloned();
            let Some((claim, until)) = next else { break };
            let outcome = self.backend.release(&claim).await;
            if outcome.is_err() && self.timer.now() < until {
                is_answered = matches!(outcome, Err(BackendError::Unreadable(_)));
                stuck.push(claim);
            } else {
                self.state.lock().let_go.retain(|(other, _)| *other != claim);
            }
        }
        is_clean && stuck.is_empty()
    }

    /// Done when all that was to be let go is; for the end of a process. Does not wait for what the backend does not answer.
    pub async fn drain(&self) {
        while self.take_back().await && !self.state.lock().is_clean() {}
        self.leave_duty().await;
    }

    async fn break_deadlocks(&self) {
        loop {
            // Where nobody waits nothing can be deadlocked, and an idle process sleeps.
            if !self.state.lock().waits() && !self.has_duty() {
                let _ = self.queues.until(&*self.timer, Moment::NEVER).await;
            }
            let pause = self.config().deadlock_check.max(SHORTEST_CHECK);
            self.timer.sleep_until(self.timer.now() + pause).await;
            if !self.state.lock().waits() {
                // Other clients' waiters need not sit out what is left of the duty.
                self.leave_duty().await;
                continue;
            }
            // Whoever has the duty keeps it over one missed turn.
            let has_duty = matches!(self.backend.take_duty(pause * 2).await, Ok(true));
            self.has_duty.store(has_duty, Ordering::Relaxed);
            if has_duty && let Ok(broken) = DeadlockDetector::check(&*self.backend).await {
                let mut state = self.state.lock();
                state.stats.deadlocks_broken += broken as u64;
                state.stats.deadlock_checks += 1;
            }
        }
    }

    /// Whether this client was the last that looked for deadlocks, as far as it knows.
    fn has_duty(&self) -> bool {
        self.has_duty.load(Ordering::Relaxed)
    }

    /// If that is not heard of, the duty ends by itself.
    async fn leave_duty(&self) {
        if self.has_duty.swap(false, Ordering::Relaxed) {
            let _ = self.backend.leave_duty().await;
        }
    }
}

impl<K: LockKey> State<K> {
    fn is_clean(&self) -> bool {
        self.given_up.is_empty() && self.let_go.is_empty()
    }
}
