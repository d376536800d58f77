//! Locks that live in Leases, one each: for a few locks that are held long, by name visible to `kubectl get leases`.
//!
//! Exclusive only. Who holds one is decided by `caddy-lease`'s machine, as for the duties: by compare-and-swap, and a
//! Lease is taken over only when it was seen unchanged for its duration. Waiters ask again by themselves, less and less
//! often, so there is no queue between sidecars. A token is the second in which the Lease was made and the version of the
//! Lease that the acquisition replaced, which Kubernetes only lets grow, also over deletions.
//!
//! Without an answer from the API server nobody acquires, and what is held is lost when its time is over.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use caddy_contract::coordination::{LOCK_LABEL, LOCK_NAME_ANNOTATION, LOCK_TOKEN_ANNOTATION, LOCKS_MAX, lock_lease};
use caddy_engine::locks::{
    Answer, Ask, BackendError, Claim, FencingToken, HolderStatus, LockBackend, LockListener, LockMode, LockStatus,
    Owner, Reply as Answered, Ticket,
};
use caddy_lease::{Machine, Moment, Record, Reply, Request, Snapshot, Step, Terms, boottime, patch};
use hyper::Method;
use parking_lot::Mutex;
use serde_json::json;

use super::{Place, client::ApiClient};
use crate::guards::{self, Guard};

/// Deadline of one request.
const DEADLINE: Duration = Duration::from_secs(3);
/// The first pause of a waiter; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Locks of others that are remembered.
const SIGHTINGS_MAX: usize = 1000;
/// Requests that one step may need: read or make the Lease, write it, and once more after a conflict.
const REQUESTS: usize = 5;

/// See the module.
pub(crate) struct LeaseLocks {
    client: Arc<ApiClient>,
    place: Place,
    bids: Mutex<HashMap<(Bytes, Owner), SharedBid>>,
    /// The version of another's Lease, and since when it has been the same: it counts for all owners of this sidecar.
    sightings: Mutex<HashMap<Bytes, (String, Moment)>>,
    /// By lock: who of this sidecar waits for it, in their order.
    waiting: Mutex<HashMap<Bytes, BTreeMap<u64, Ticket>>>,
    listener: Mutex<Option<Weak<dyn LockListener>>>,
}

type SharedBid = Arc<tokio::sync::Mutex<Bid>>;

/// What an owner of this sidecar has to do with a lock.
struct Bid {
    machine: Machine,
    /// The Lease as last seen.
    seen: Option<Snapshot>,
    /// The acquisition that it was granted to.
    granted: Option<Ticket>,
    pause: Duration,
}

/// What became of a step.
enum Outcome {
    /// The Lease is the owner's since a request of this step.
    Held(FencingToken),
    /// Not now; ask again after so long.
    Waits(Duration),
    /// A renewal found it another's.
    NotHeld,
    TooMany,
    Trouble(String),
}

impl LeaseLocks {
    pub(super) fn new(client: Arc<ApiClient>, place: Place) -> Arc<Self> {
        let (bids, sightings) = (Mutex::default(), Mutex::default());
        Arc::new(Self { client, place, bids, sightings, waiting: Mutex::default(), listener: Mutex::default() })
    }

    fn path(&self, name: &[u8]) -> String {
        format!("{}/{}", self.place.leases(), lock_lease(&self.place.cluster, name))
    }

    /// With this lease from its next write on.
    async fn bid_for(&self, name: &Bytes, owner: &Owner, lease: Duration) -> tokio::sync::OwnedMutexGuard<Bid> {
        let bid = self.bid(name, owner, lease);
        let mut bid = bid.lock_owned().await;
        bid.machine.set_duration(duration(lease));
        bid
    }

    fn bid(&self, name: &Bytes, owner: &Owner, lease: Duration) -> SharedBid {
        let mut bids = self.bids.lock();
        let bid = bids.entry((name.clone(), owner.clone())).or_insert_with(|| {
            let seed = u64::from(owner.as_str().bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte)));
            let machine = Machine::new(terms(owner, lease), seed);
            Arc::new(tokio::sync::Mutex::new(Bid { machine, seen: None, granted: None, pause: FIRST_PAUSE }))
        });
        bid.clone()
    }

    /// Also of who got no answer: to let go again, which is tried for a lease, needs nothing of it.
    fn forget(&self, name: &Bytes, owner: &Owner) {
        self.bids.lock().remove(&(name.clone(), owner.clone()));
    }

    // === steps ===

    /// Asks until the Lease is the owner's, or another's.
    async fn step(&self, bid: &mut Bid, name: &Bytes, owner: &Owner, renews: Option<FencingToken>) -> Outcome {
        let mut trouble = None;
        // Of a step that was given up midway.
        bid.machine.answer(boottime(), Reply::Unknown("given up".to_owned()));
        for _ in 0..REQUESTS {
            if let (Some(token), Some(seen)) = (renews, &bid.seen)
                && !is_held(seen, owner, token)
            {
                return Outcome::NotHeld;
            }
            let request = match bid.machine.poll(boottime(), SystemTime::now()) {
                Step::Send(request) => request,
                Step::Wait(until) => {
                    let pause = until.since(boottime());
                    return trouble.map_or(Outcome::Waits(pause), Outcome::Trouble);
                }
                Step::Done => return Outcome::NotHeld,
            };
            let reply = match tokio::time::timeout(DEADLINE, self.send(bid, name, &request)).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(TooMany)) => {
                    bid.machine.answer(boottime(), Reply::Denied(String::new()));
                    return Outcome::TooMany;
                }
                Err(_) => Reply::Unknown(format!("no answer within {DEADLINE:?}")),
            };
            match &reply {
                Reply::Lease(lease) if foreign_name(lease, name) => {
                    trouble = Some("its Lease belongs to a lock of another name; choose another name".to_owned());
                }
                Reply::Lease(lease) => bid.seen = Some(lease.clone()),
                Reply::Missing | Reply::Conflict => bid.seen = None,
                Reply::Busy(_) => trouble = Some("the API server is busy".to_owned()),
                Reply::Denied(reason) | Reply::Unknown(reason) => trouble = Some(reason.clone()),
            }
            let stored = matches!((&request, &reply), (Request::Swap(..), Reply::Lease(_)));
            let heard = self.heard(name, owner, bid, &reply);
            bid.machine.answer(heard, reply);
            if let Some(trouble) = trouble {
                return Outcome::Trouble(trouble);
            }
            if stored && let Some(token) = bid.seen.as_ref().and_then(token_of) {
                return Outcome::Held(token);
            }
        }
        Outcome::Waits(FIRST_PAUSE)
    }

    /// From when what the server said counts: an owner that is new here builds on what others saw.
    fn heard(&self, name: &Bytes, owner: &Owner, bid: &Bid, reply: &Reply) -> Moment {
        let now = boottime();
        let Reply::Lease(lease) = reply else { return now };
        let mut sightings = self.sightings.lock();
        if lease.record.holder.as_deref().is_none_or(|holder| holder == owner.as_str()) {
            sightings.remove(name);
            return now;
        }
        if sightings.len() > SIGHTINGS_MAX {
            sightings.clear();
        }
        let (version, since) = sightings.entry(name.clone()).or_insert_with(|| (lease.version.clone(), now));
        if *version != lease.version && guards::hold(Guard::LeaseUnchanged) {
            (*version, *since) = (lease.version.clone(), now);
        }
        if bid.machine.seen().is_none() { *since } else { now }
    }

    async fn send(&self, bid: &Bid, name: &Bytes, request: &Request) -> Result<Reply, TooMany> {
        match request {
            Request::Get => match self.client.get(&self.path(name)).await {
                Reply::Missing => self.make(name).await,
                reply => Ok(reply),
            },
            Request::Swap(version, record) => {
                let mut body = patch(version, record);
                if let Some(token) = bid.seen.as_ref().and_then(|seen| next_token(seen, record)) {
                    body["metadata"]["annotations"] = json!({LOCK_TOKEN_ANNOTATION: token.to_string()});
                }
                Ok(self.client.patch(&self.path(name), &body).await)
            }
        }
    }

    /// There are few of them in a namespace: each is an object that many may watch.
    async fn make(&self, name: &Bytes) -> Result<Reply, TooMany> {
        let all = self.place.leases();
        let label = LOCK_LABEL.replace('/', "%2F");
        let list = format!("{all}?labelSelector={label}&limit={LOCKS_MAX}");
        match self.client.json(Method::GET, &list, None).await {
            Ok(list) if list["items"].as_array().is_some_and(|locks| locks.len() >= LOCKS_MAX) => return Err(TooMany),
            Ok(_) => {}
            Err(refused) => return Ok(Reply::Unknown(refused.reason)),
        }
        let labels = json!({LOCK_LABEL: self.place.cluster, "app.kubernetes.io/name": "caddy-cache"});
        let annotations = json!({LOCK_NAME_ANNOTATION: shown(name)});
        let lease = self.place.declaration(&lock_lease(&self.place.cluster, name), &labels, &annotations);
        Ok(self.client.create(&all, &lease).await)
    }

    /// Lets go of a Lease that the owner holds, by this token if one is named; whether it did.
    async fn let_go(&self, name: &Bytes, owner: &Owner, token: Option<FencingToken>) -> Result<bool, BackendError> {
        let path = self.path(name);
        for _ in 0..REQUESTS {
            let reply = tokio::time::timeout(DEADLINE, async {
                let lease = match self.client.get(&path).await {
                    Reply::Lease(lease) => lease,
                    reply => return reply,
                };
                let is_theirs = lease.record.holder.as_deref() == Some(owner.as_str());
                if !is_theirs || token.is_some_and(|token| !is_held(&lease, owner, token)) {
                    return Reply::Missing;
                }
                self.client.patch(&path, &patch(&lease.version, &Record { holder: None, ..lease.record })).await
            });
            match reply.await {
                Ok(Reply::Lease(_)) => return Ok(true),
                Ok(Reply::Missing) => return Ok(false),
                Ok(Reply::Conflict) => {}
                Ok(Reply::Busy(_)) => return Err(unavailable("the API server is busy")),
                Ok(Reply::Denied(reason) | Reply::Unknown(reason)) => return Err(unavailable(&reason)),
                Err(_) => return Err(unavailable(&format!("no answer within {DEADLINE:?}"))),
            }
        }
        Err(unavailable("its Lease changes all the time"))
    }

    // === who waits here ===

    fn waits(&self, ask: &Ask<Bytes>) {
        let mut waiting = self.waiting.lock();
        waiting.entry(ask.name.clone()).or_default().insert(ask.ticket.number, ask.ticket.clone());
    }

    fn waits_no_more(&self, ask: &Ask<Bytes>) {
        let mut waiting = self.waiting.lock();
        if let Some(tickets) = waiting.get_mut(&ask.name) {
            tickets.remove(&ask.ticket.number);
            if tickets.is_empty() {
                waiting.remove(&ask.name);
            }
        }
    }

    /// The next of this sidecar need not wait for its own turn to ask.
    fn wake(&self, name: &Bytes) {
        let next = self.waiting.lock().get(name).and_then(|tickets| tickets.values().next().cloned());
        let listener = self.listener.lock().as_ref().and_then(Weak::upgrade);
        if let (Some(ticket), Some(listener)) = (next, listener) {
            listener.wake(&ticket);
        }
    }
}

struct TooMany;

/// Renewals are asked for by the lock's client; the machine only decides.
fn terms(owner: &Owner, lease: Duration) -> Terms {
    let terms = Terms::new(owner.as_str().to_owned(), duration(lease), FIRST_PAUSE);
    Terms { renewal: Duration::ZERO, ..terms }
}

/// How long others wait: a quarter more than the owner counts on, in whole seconds, so that clocks may differ by as much.
fn duration(lease: Duration) -> Duration {
    let seconds = (lease * 5 / 4).as_millis().div_ceil(1000);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX).max(1))
}

/// What is left of a lease as far as wall clocks agree, for people: it decides nothing, and is never more than the whole.
fn remaining(record: &Record, now: SystemTime) -> Duration {
    let renewed = record.renewed.as_deref().and_then(caddy_lease::seconds).unwrap_or(0);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ends = Duration::from_secs(renewed).saturating_add(record.duration);
    ends.saturating_sub(now).min(record.duration)
}

fn unavailable(reason: &str) -> BackendError {
    BackendError::Unavailable(format!("a lock with BACKEND lease needs the API server: {reason}").into())
}

fn annotation<'a>(lease: &'a Snapshot, name: &str) -> Option<&'a str> {
    lease.annotations.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn token_of(lease: &Snapshot) -> Option<FencingToken> {
    annotation(lease, LOCK_TOKEN_ANNOTATION)?.parse().ok()
}

fn is_held(lease: &Snapshot, owner: &Owner, token: FencingToken) -> bool {
    lease.record.holder.as_deref() == Some(owner.as_str()) && token_of(lease) == Some(token)
}

/// The token of a write that replaces `seen`: a new one, unless the owner goes on.
fn next_token(seen: &Snapshot, record: &Record) -> Option<FencingToken> {
    let before = token_of(seen);
    if seen.record.holder.is_some() && seen.record.holder == record.holder && before.is_some() {
        return None;
    }
    let version = seen.version.parse().unwrap_or(0);
    let counter = before.map_or(0, FencingToken::counter).saturating_add(1).max(version);
    Some(FencingToken::new(seen.created.max(before.map_or(0, FencingToken::epoch)), counter))
}

fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

fn foreign_name(lease: &Snapshot, name: &[u8]) -> bool {
    annotation(lease, LOCK_NAME_ANNOTATION).is_some_and(|known| known != shown(name))
}

impl LockBackend<Bytes> for LeaseLocks {
    fn attach(&self, listener: Weak<dyn LockListener>) {
        *self.listener.lock() = Some(listener);
    }

    fn acquire<'a>(&'a self, ask: &'a Ask<Bytes>) -> Answered<'a, Answer> {
        Box::pin(async move {
            if ask.mode == LockMode::Shared {
                return Err(BackendError::Unavailable("BACKEND lease has no SHARED locks; use BACKEND redis".into()));
            }
            let mut bid = self.bid_for(&ask.name, &ask.owner, ask.lease).await;
            let answer = match self.step(&mut bid, &ask.name, &ask.owner, None).await {
                Outcome::Held(token) => {
                    bid.granted = Some(ask.ticket.clone());
                    Answer::Granted(token)
                }
                Outcome::Waits(pause) if ask.waits => {
                    bid.pause = (bid.pause * 2).min(LONGEST_PAUSE);
                    let next = bid.pause;
                    bid.machine.set_pace(next);
                    self.waits(ask);
                    return Ok(Answer::Queued(pause.max(Duration::from_millis(10))));
                }
                Outcome::Waits(_) | Outcome::NotHeld => Answer::NotFree,
                Outcome::TooMany => Answer::Limit { what: "Leases that are locks of this namespace", limit: LOCKS_MAX },
                Outcome::Trouble(reason) => return Err(unavailable(&reason)),
            };
            if bid.granted.is_none() {
                self.forget(&ask.name, &ask.owner);
            }
            self.waits_no_more(ask);
            Ok(answer)
        })
    }

    fn cancel<'a>(&'a self, ask: &'a Ask<Bytes>) -> Answered<'a, ()> {
        Box::pin(async move {
            self.waits_no_more(ask);
            let bid = self.bid(&ask.name, &ask.owner, ask.lease);
            let bid = bid.lock().await;
            // Held by an earlier acquisition of the same owner.
            if bid.granted.as_ref().is_some_and(|ticket| *ticket != ask.ticket) {
                return Ok(());
            }
            let outcome = self.let_go(&ask.name, &ask.owner, None).await;
            self.forget(&ask.name, &ask.owner);
            outcome?;
            self.wake(&ask.name);
            Ok(())
        })
    }

    fn renew<'a>(&'a self, claims: &'a [Claim<Bytes>]) -> Answered<'a, Vec<bool>> {
        Box::pin(async move {
            let renewals = claims.iter().map(|claim| async move {
                let mut bid = self.bid_for(&claim.name, &claim.owner, claim.lease).await;
                // Taken by another sidecar for the same owner: seen for the first time here.
                if bid.seen.is_none() {
                    let Ok(Reply::Lease(lease)) =
                        tokio::time::timeout(DEADLINE, self.client.get(&self.path(&claim.name))).await
                    else {
                        return Err(unavailable("no answer to a renewal"));
                    };
                    bid.seen = Some(lease);
                }
                match self.step(&mut bid, &claim.name, &claim.owner, Some(claim.token)).await {
                    Outcome::Held(token) => Ok(token == claim.token),
                    Outcome::Waits(_) => Err(unavailable("the last renewal got no answer")),
                    Outcome::Trouble(reason) => Err(unavailable(&reason)),
                    Outcome::NotHeld | Outcome::TooMany => {
                        self.forget(&claim.name, &claim.owner);
                        Ok(false)
                    }
                }
            });
            futures::future::join_all(renewals).await.into_iter().collect()
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim<Bytes>) -> Answered<'a, bool> {
        Box::pin(async move {
            let outcome = self.let_go(&claim.name, &claim.owner, Some(claim.token)).await;
            self.forget(&claim.name, &claim.owner);
            let released = outcome?;
            self.wake(&claim.name);
            Ok(released)
        })
    }

    /// Waiters are known to this sidecar alone.
    fn keep_waiting(&self) -> Answered<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn status<'a>(&'a self, name: &'a Bytes) -> Answered<'a, LockStatus<Bytes>> {
        Box::pin(async move {
            let lease = match tokio::time::timeout(DEADLINE, self.client.get(&self.path(name))).await {
                Ok(Reply::Lease(lease)) => Some(lease),
                Ok(Reply::Missing) => None,
                Ok(Reply::Denied(reason) | Reply::Unknown(reason)) => return Err(unavailable(&reason)),
                _ => return Err(unavailable("it did not answer")),
            };
            let holder = |lease: Snapshot| {
                let (owner, token) = (Owner::new(lease.record.holder.clone()?), token_of(&lease)?);
                let remaining = remaining(&lease.record, SystemTime::now());
                Some(HolderStatus { owner, mode: LockMode::Exclusive, token, remaining })
            };
            let holders = lease.and_then(holder).into_iter().collect();
            Ok(LockStatus { name: name.clone(), holders, waiters: Vec::new() })
        })
    }

    /// Nobody knows all who wait for Leases: deadlocks among them end with the waiters' timeouts.
    fn contended(&self) -> Answered<'_, Vec<LockStatus<Bytes>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn take_duty(&self, _: Duration) -> Answered<'_, bool> {
        Box::pin(std::future::ready(Ok(false)))
    }

    fn leave_duty(&self) -> Answered<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn break_deadlock<'a>(&'a self, _: &'a Bytes, _: &'a Ticket, _: &'a str) -> Answered<'a, bool> {
        Box::pin(std::future::ready(Ok(false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asked_for_nothing_while_nobody_answered_is_forgotten() {
        let (directory, lease) = (tempfile::tempdir().unwrap(), Duration::from_secs(30));
        let place = Place { namespace: "shop".into(), cluster: "shop".into(), cluster_uid: None };
        let locks = LeaseLocks::new(Arc::new(ApiClient::local(directory.path(), 1)), place);
        let (name, owner) = (Bytes::from_static(b"l"), Owner::new("ann"));
        let ask = Ask {
            name: name.clone(),
            owner: owner.clone(),
            mode: LockMode::Exclusive,
            ticket: Ticket { client: "a".into(), number: 1 },
            lease,
            waits: true,
        };
        let claim = Claim { name, owner, token: FencingToken::new(1, 1), lease };
        for _ in 0..2 {
            assert!(locks.acquire(&ask).await.is_err());
            assert!(locks.cancel(&ask).await.is_err());
            assert!(locks.bids.lock().is_empty(), "given up");
            assert!(locks.renew(std::slice::from_ref(&claim)).await.is_err());
            assert!(locks.release(&claim).await.is_err());
            assert!(locks.bids.lock().is_empty(), "let go");
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_shows_neither_more_than_a_lease_nor_an_error() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let record = |renewed: &str| Record {
            renewed: Some(renewed.to_owned()),
            duration: Duration::from_secs(15),
            ..Record::default()
        };
        let renewed = caddy_lease::timestamp(at(1_000_000));
        for (now, left) in [(1_000_005, 10), (1_000_020, 0), (0, 15), (u64::from(u32::MAX), 0)] {
            assert_eq!(remaining(&record(&renewed), at(now)), Duration::from_secs(left), "{now}");
        }
        assert_eq!(remaining(&record("yesterday"), at(1_000_000)), Duration::ZERO);
    }
}
