//! Who holds what and who waits, for backends that keep locks in memory: plain state, no waiting, time as an argument.
//!
//! The rules are those of the scripts that keep locks in Redis, and a test plays the same programs to both. A queue is
//! first come, first served: a lock that becomes free is handed to the first waiter, together with all directly behind it
//! that share with it; so a waiting writer stops new readers. Ended leases are noticed when somebody looks.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    Answer, Ask, Claim, FencingToken, HolderStatus, LockKey, LockMode, LockStatus, Owner, Ticket, WaiterStatus,
};
use crate::Moment;

/// Longest queue of one lock.
const MAX_QUEUE: usize = 100_000;
/// After which a waiter asks again, should its wake-up have been lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Table<K> {
    locks: BTreeMap<K, Lock>,
    epoch: u64,
    /// The last counter issued, to tokens and arrivals alike.
    last: u64,
}

#[derive(Debug, Default)]
struct Lock {
    holders: Vec<Holder>,
    queue: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Holder {
    owner: Owner,
    mode: LockMode,
    token: FencingToken,
    ticket: Ticket,
    until: Moment,
}

#[derive(Debug)]
struct Waiter {
    owner: Owner,
    mode: LockMode,
    ticket: Ticket,
    arrival: u64,
    lease: Duration,
}

/// A waiter that was handed its lock.
pub(crate) type HandedOver = (Ticket, FencingToken);

impl Lock {
    fn end_leases(&mut self, now: Moment) {
        self.holders.retain(|holder| now < holder.until);
    }

    fn admits(&self, mode: LockMode) -> bool {
        !self.holders.iter().any(|holder| holder.mode.excludes(mode))
    }

    /// Makes holders of the waiters whose turn it is: the first, and those behind it that share with it.
    fn hand_over(&mut self, epoch: u64, last: &mut u64, now: Moment) -> Vec<HandedOver> {
        let mut handed = Vec::new();
        while self.queue.front().is_some_and(|first| self.admits(first.mode)) {
            let Some(Waiter { owner, mode, ticket, lease, .. }) = self.queue.pop_front() else { break };
            *last += 1;
            let token = FencingToken::new(epoch, *last);
            handed.push((ticket.clone(), token));
            self.holders.push(Holder { owner, mode, token, ticket, until: now + lease });
        }
        handed
    }

    fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.queue.is_empty()
    }
}

impl<K: LockKey> Table<K> {
    pub(crate) fn new(epoch: u64) -> Self {
        Self { locks: BTreeMap::new(), epoch, last: 0 }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    fn tick(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The answer, and to whom the lock was handed meanwhile.
    pub(crate) fn acquire(&mut self, ask: &Ask<K>, now: Moment) -> (Answer, Vec<HandedOver>) {
        let count = self.tick();
        let (epoch, last) = (self.epoch, &mut self.last);
        let lock = self.locks.entry(ask.name.clone()).or_default();
        lock.end_leases(now);
        if let Some(held) = lock.holders.iter_mut().find(|holder| holder.owner == ask.owner) {
            if held.mode == LockMode::Shared && ask.mode == LockMode::Exclusive {
                return (Answer::Upgrade(held.token), Vec::new());
            }
            held.until = held.until.max(now + ask.lease);
            held.ticket = ask.ticket.clone();
            let answer = Answer::Granted(held.token);
            lock.queue.retain(|waiter| waiter.ticket != ask.ticket);
            return (answer, Vec::new());
        }
        let place = lock.queue.iter().position(|waiter| waiter.ticket == ask.ticket);
        let mut before = lock.queue.iter().take(place.unwrap_or(lock.queue.len()));
        let is_its_turn = !before.any(|waiter| waiter.mode.excludes(ask.mode));
        if is_its_turn && lock.admits(ask.mode) {
            place.map(|place| lock.queue.remove(place));
            let token = FencingToken::new(epoch, count);
            let (owner, ticket) = (ask.owner.clone(), ask.ticket.clone());
            lock.holders.push(Holder { owner, mode: ask.mode, token, ticket, until: now + ask.lease });
            return (Answer::Granted(token), lock.hand_over(epoch, last, now));
        }
        if !ask.waits {
            return (Answer::NotFree, Vec::new());
        }
        if place.is_none() {
            if lock.queue.len() >= MAX_QUEUE {
                return (Answer::Limit { what: "the lock's queue", limit: MAX_QUEUE }, Vec::new());
            }
            let (owner, ticket) = (ask.owner.clone(), ask.ticket.clone());
            lock.queue.push_back(Waiter { owner, mode: ask.mode, ticket, arrival: count, lease: ask.lease });
        }
        let handed = lock.hand_over(epoch, last, now);
        let ends = lock.holders.iter().map(|holder| holder.until.since(now)).min();
        (Answer::Queued(ends.map_or(LOOK_AGAIN, |ends| ends.min(LOOK_AGAIN))), handed)
    }

    pub(crate) fn renew(&mut self, claim: &Claim<K>, now: Moment) -> bool {
        let Some(lock) = self.locks.get_mut(&claim.name) else { return false };
        lock.end_leases(now);
        let held = lock.holders.iter_mut().find(|holder| holder.owner == claim.owner && holder.token == claim.token);
        let Some(held) = held else { return false };
        held.until = now + claim.lease;
        true
    }

    pub(crate) fn release(&mut self, claim: &Claim<K>, now: Moment) -> (bool, Vec<HandedOver>) {
        self.change(&claim.name, now, |lock| {
            let before = lock.holders.len();
            lock.holders.retain(|holder| holder.owner != claim.owner || holder.token != claim.token);
            lock.holders.len() < before
        })
    }

    pub(crate) fn cancel(&mut self, ask: &Ask<K>, now: Moment) -> Vec<HandedOver> {
        let cancelled = self.change(&ask.name, now, |lock| {
            lock.holders.retain(|holder| holder.ticket != ask.ticket);
            lock.queue.retain(|waiter| waiter.ticket != ask.ticket);
            true
        });
        cancelled.1
    }

    /// Takes a waiter out of its queue; whether it was there, and to whom the lock was handed by that.
    pub(crate) fn expel(&mut self, name: &K, ticket: &Ticket, now: Moment) -> (bool, Vec<HandedOver>) {
        self.change(name, now, |lock| {
            let before = lock.queue.len();
            lock.queue.retain(|waiter| waiter.ticket != *ticket);
            lock.queue.len() < before
        })
    }

    fn change(&mut self, name: &K, now: Moment, change: impl FnOnce(&mut Lock) -> bool) -> (bool, Vec<HandedOver>) {
        let Some(lock) = self.locks.get_mut(name) else { return (false, Vec::new()) };
        lock.end_leases(now);
        let changed = change(lock);
        let handed = lock.hand_over(self.epoch, &mut self.last, now);
        if lock.is_idle() {
            self.locks.remove(name);
        }
        (changed, handed)
    }

    pub(crate) fn status(&mut self, name: &K, now: Moment) -> LockStatus<K> {
        let Some(lock) = self.locks.get_mut(name) else {
            return LockStatus { name: name.clone(), holders: Vec::new(), waiters: Vec::new() };
        };
        lock.end_leases(now);
        let holder = |holder: &Holder| HolderStatus {
            owner: holder.owner.clone(),
            mode: holder.mode,
            token: holder.token,
            remaining: holder.until.since(now),
        };
        let waiter = |waiter: &Waiter| WaiterStatus {
            owner: waiter.owner.clone(),
            mode: waiter.mode,
            ticket: waiter.ticket.clone(),
            arrival: waiter.arrival,
        };
        let status = LockStatus {
            name: name.clone(),
            holders: lock.holders.iter().map(holder).collect(),
            waiters: lock.queue.iter().map(waiter).collect(),
        };
        if lock.is_idle() {
            self.locks.remove(name);
        }
        status
    }

    pub(crate) fn names(&self) -> Vec<K> {
        self.locks.keys().cloned().collect()
    }

    pub(crate) fn contended(&mut self, now: Moment) -> Vec<LockStatus<K>> {
        let contended = self.locks.iter().filter(|(_, lock)| !lock.queue.is_empty());
        let names: Vec<K> = contended.map(|(name, _)| name.clone()).collect();
        names.iter().map(|name| self.status(name, now)).collect()
    }
}
