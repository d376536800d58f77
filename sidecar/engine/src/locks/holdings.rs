//! What a client believes to hold, and until when: plain state, time as an argument.
//!
//! A holding is believed only for its validity; what the backend keeps ends later. Every change moves the holding's two
//! dates, renewal and end, in one ordered queue each.

use std::{
    collections::{BTreeMap, HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use super::{Claim, FencingToken, LockConfig, LockKey, LockMode, Owner, Ticket, signal::Signal};
use crate::Moment;

/// Why a lock is not held any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostReason {
    /// It could not be renewed before its validity ended.
    NotRenewed,
    /// The backend does not know of it: its lease had ended there, or its data was lost or removed.
    Gone,
    /// The backend's data has a new incarnation: all locks of the old one are void.
    NewEpoch,
}

impl LostReason {
    /// In words, for a message that begins with "lost: ".
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotRenewed => "it could not be renewed in time",
            Self::Gone => "its lease had ended, or its data was removed",
            Self::NewEpoch => "the data that locks live in was lost or replaced",
        }
    }
}

/// What a client counts; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts; see docs/metrics.md for the words")]
pub struct LockStats {
    pub acquired: u64,
    /// Of them, those that had to queue.
    pub contended: u64,
    pub timed_out: u64,
    pub deadlocks: u64,
    /// Cycles that this client found and broke, whosever waiters they were.
    pub deadlocks_broken: u64,
    /// How often this client has looked for cycles, among everybody's waiters.
    pub deadlock_checks: u64,
    pub refused: u64,
    pub renewed: u64,
    pub released: u64,
    pub lost: u64,
    /// Milliseconds that all acquisitions waited together.
    pub waited_millis: u64,
    pub held: usize,
    pub waiting: usize,
}

/// Of several clients together.
impl std::iter::Sum for LockStats {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            acquired: sum.acquired + one.acquired,
            contended: sum.contended + one.contended,
            timed_out: sum.timed_out + one.timed_out,
            deadlocks: sum.deadlocks + one.deadlocks,
            deadlocks_broken: sum.deadlocks_broken + one.deadlocks_broken,
            deadlock_checks: sum.deadlock_checks + one.deadlock_checks,
            refused: sum.refused + one.refused,
            renewed: sum.renewed + one.renewed,
            released: sum.released + one.released,
            lost: sum.lost + one.lost,
            waited_millis: sum.waited_millis + one.waited_millis,
            held: sum.held + one.held,
            waiting: sum.waiting + one.waiting,
        })
    }
}

/// Set once, when the lock was lost.
pub(crate) type Lost = Arc<Signal<LostReason>>;

#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) token: FencingToken,
    pub(crate) mode: LockMode,
    pub(crate) ticket: Ticket,
    pub(crate) lease: Duration,
    /// How often it was taken and not yet let go.
    pub(crate) count: u32,
    pub(crate) valid_until: Moment,
    /// `NEVER`: not renewed by itself.
    renew_at: Moment,
    pub(crate) lost: Lost,
    id: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Holdings<K> {
    held: HashMap<Owner, HashMap<K, Holding>>,
    count: usize,
    next: u64,
    renewals: BTreeMap<(Moment, u64), (Owner, K)>,
    ends: BTreeMap<(Moment, u64), (Owner, K)>,
}

/// What letting go once means.
pub(crate) enum Released {
    /// It is still held, so often.
    Still(u32),
    /// The backend has to be told.
    Last(Holding),
    /// Nothing is known of it here.
    Unknown,
    /// It is held under another token.
    OtherToken,
}

impl<K: LockKey> Holdings<K> {
    pub(crate) fn new() -> Self {
        let (held, renewals, ends) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { held, count: 0, next: 0, renewals, ends }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn get(&self, owner: &Owner, name: &K) -> Option<&Holding> {
        self.held.get(owner)?.get(name)
    }

    /// Takes note of a grant whose request was sent at `sent`; gives back a holding under another token, which is lost.
    pub(crate) fn granted(
        &mut self,
        config: &LockConfig,
        claim: &Claim<K>,
        mode: LockMode,
        ticket: &Ticket,
        sent: Moment,
    ) -> (Option<Holding>, Lost) {
        let valid_until = sent + config.validity(claim.lease);
        let renew_at = sent + config.renew_after(claim.lease);
        if let Some(holding) = self.held.get_mut(&claim.owner).and_then(|locks| locks.get_mut(&claim.name))
            && holding.token == claim.token
        {
            holding.count += 1;
            holding.lease = claim.lease;
            holding.ticket = ticket.clone();
            let lost = holding.lost.clone();
            let valid_until = valid_until.max(holding.valid_until);
            self.move_to(&claim.owner, &claim.name, Some(valid_until), renew_at);
            return (None, lost);
        }
        let before = self.remove(&claim.owner, &claim.name);
        let id = self.next;
        self.next += 1;
        self.count += 1;
        let lost = Lost::default();
        let (token, lease, ticket) = (claim.token, claim.lease, ticket.clone());
        let holding = Holding { token, mode, ticket, lease, count: 1, valid_until, renew_at, lost: lost.clone(), id };
        self.renewals.insert((renew_at, id), (claim.owner.clone(), claim.name.clone()));
        self.ends.insert((valid_until, id), (claim.owner.clone(), claim.name.clone()));
        self.held.entry(claim.owner.clone()).or_default().insert(claim.name.clone(), holding);
        (before, lost)
    }

    fn move_to(&mut self, owner: &Owner, name: &K, valid_until: Option<Moment>, renew_at: Moment) {
        let Some(holding) = self.held.get_mut(owner).and_then(|locks| locks.get_mut(name)) else { return };
        if let Some(valid_until) = valid_until
            && let Some(place) = self.ends.remove(&(holding.valid_until, holding.id))
        {
            holding.valid_until = valid_until;
            self.ends.insert((valid_until, holding.id), place);
        }
        if holding.renew_at == Moment::NEVER {
            return;
        }
        if let Some(place) = self.renewals.remove(&(holding.renew_at, holding.id)) {
            holding.renew_at = renew_at;
            self.renewals.insert((renew_at, holding.id), place);
        }
    }

    /// The claim was renewed by a request sent at `sent`; ignored if it is not what is held now. What is left of it.
    pub(crate) fn renewed(&mut self, config: &LockConfig, claim: &Claim<K>, sent: Moment) -> Option<Moment> {
        let held = self.get(&claim.owner, &claim.name).filter(|holding| holding.token == claim.token)?;
        // A renewal for a shorter time than what was promised before ends the promise earlier.
        let valid_until = sent + config.validity(claim.lease);
        let renews = sent + config.renew_after(held.lease.min(claim.lease));
        if let Some(holding) = self.held.get_mut(&claim.owner).and_then(|locks| locks.get_mut(&claim.name)) {
            holding.lease = claim.lease;
        }
        self.move_to(&claim.owner, &claim.name, Some(valid_until), renews);
        Some(valid_until)
    }

    /// The claims to renew by now, at most `most`, each put off until `again` should this attempt fail.
    pub(crate) fn take_due(&mut self, config: &LockConfig, now: Moment, most: usize) -> Vec<Claim<K>> {
        let due = self.renewals.range(..=(now, u64::MAX)).take(most);
        let due: Vec<(Owner, K)> = due.map(|(_, place)| place.clone()).collect();
        let mut claims = Vec::with_capacity(due.len());
        for (owner, name) in due {
            let Some(holding) = self.get(&owner, &name) else { continue };
            let (token, lease) = (holding.token, holding.lease);
            self.move_to(&owner, &name, None, now + config.retry_after(lease));
            claims.push(Claim { name, owner, token, lease });
        }
        claims
    }

    pub(crate) fn next_renewal(&self) -> Moment {
        self.renewals.keys().next().map_or(Moment::NEVER, |(at, _)| *at)
    }

    pub(crate) fn next_end(&self) -> Moment {
        self.ends.keys().next().map_or(Moment::NEVER, |(at, _)| *at)
    }

    /// Takes out one whose validity is over.
    pub(crate) fn take_ended(&mut self, now: Moment) -> Option<(Owner, K, Holding)> {
        let (at, place) = self.ends.iter().next()?;
        if at.0 > now {
            return None;
        }
        let (owner, name) = place.clone();
        let holding = self.remove(&owner, &name)?;
        Some((owner, name, holding))
    }

    pub(crate) fn remove(&mut self, owner: &Owner, name: &K) -> Option<Holding> {
        let hash_map::Entry::Occupied(mut locks) = self.held.entry(owner.clone()) else { return None };
        let holding = locks.get_mut().remove(name)?;
        if locks.get().is_empty() {
            locks.remove();
        }
        self.renewals.remove(&(holding.renew_at, holding.id));
        self.ends.remove(&(holding.valid_until, holding.id));
        self.count -= 1;
        Some(holding)
    }

    /// Lets go once.
    pub(crate) fn release(&mut self, owner: &Owner, name: &K, token: FencingToken) -> Released {
        let Some(holding) = self.held.get_mut(owner).and_then(|locks| locks.get_mut(name)) else {
            return Released::Unknown;
        };
        if holding.token != token {
            return Released::OtherToken;
        }
        if holding.count > 1 {
            holding.count -= 1;
            return Released::Still(holding.count);
        }
        self.remove(owner, name).map_or(Released::Unknown, Released::Last)
    }

    /// From now on it ends with its lease unless somebody renews it.
    pub(crate) fn stop_renewing(&mut self, owner: &Owner) {
        for holding in self.held.get_mut(owner).into_iter().flat_map(|locks| locks.values_mut()) {
            self.renewals.remove(&(holding.renew_at, holding.id));
            holding.renew_at = Moment::NEVER;
        }
    }

    /// All locks of an owner.
    pub(crate) fn names_of(&self, owner: &Owner) -> Vec<K> {
        self.held.get(owner).map(|locks| locks.keys().cloned().collect()).unwrap_or_default()
    }

    /// All that satisfy a condition.
    pub(crate) fn matching(&self, matches: impl Fn(&Holding) -> bool) -> Vec<(Owner, K)> {
        let all = self.held.iter().flat_map(|(owner, locks)| locks.iter().map(move |lock| (owner, lock)));
        let matching = all.filter(|(_, (_, holding))| matches(holding));
        matching.map(|(owner, (name, _))| (owner.clone(), name.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(token: u64) -> Claim<&'static str> {
        let token = FencingToken::new(1, token);
        Claim { name: "l", owner: Owner::new("o"), token, lease: Duration::from_secs(10) }
    }

    fn ticket() -> Ticket {
        Ticket { client: "c".into(), number: 1 }
    }

    #[test]
    fn a_holding_is_believed_for_less_than_its_lease_from_the_sending() {
        let (config, mut held) = (LockConfig::default(), Holdings::new());
        let sent = Moment::from_millis(1000);
        held.granted(&config, &claim(1), LockMode::Exclusive, &ticket(), sent);
        assert!(held.next_end() < sent + Duration::from_secs(10));
        assert_eq!(held.next_renewal(), sent + Duration::from_millis(3300));
        assert!(held.take_ended(held.next_end() - Duration::from_millis(1)).is_none());
        assert!(held.take_ended(held.next_end()).is_some());
        assert_eq!((held.len(), held.next_end(), held.next_renewal()), (0, Moment::NEVER, Moment::NEVER));
    }

    #[test]
    fn it_is_let_go_as_often_as_it_was_taken() {
        let (config, mut held) = (LockConfig::default(), Holdings::new());
        for _ in 0..2 {
            assert!(held.granted(&config, &claim(1), LockMode::Exclusive, &ticket(), Moment::ZERO).0.is_none());
        }
        let (owner, token) = (Owner::new("o"), FencingToken::new(1, 1));
        assert!(matches!(held.release(&owner, &"l", FencingToken::new(1, 2)), Released::OtherToken));
        assert!(matches!(held.release(&owner, &"l", token), Released::Still(1)));
        assert!(matches!(held.release(&owner, &"l", token), Released::Last(_)));
        assert!(matches!(held.release(&owner, &"l", token), Released::Unknown));
    }

    #[test]
    fn a_second_token_replaces_what_was_lost_unseen() {
        let (config, mut held) = (LockConfig::default(), Holdings::new());
        held.granted(&config, &claim(1), LockMode::Exclusive, &ticket(), Moment::ZERO);
        let (before, _) = held.granted(&config, &claim(2), LockMode::Exclusive, &ticket(), Moment::ZERO);
        assert_eq!(before.map(|holding| holding.token), Some(FencingToken::new(1, 1)));
        assert_eq!((held.len(), held.take_due(&config, Moment::NEVER, 9).len()), (1, 1));
        assert_eq!(held.renewed(&config, &claim(1), Moment::ZERO), None, "a late answer about the old one");
    }
}
