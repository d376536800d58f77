//! Finds owners that wait for each other in a circle.
//!
//! A waiter waits for every holder that excludes it and, since queues are fair, for every waiter before it that excludes
//! it. An owner is one thread of control and goes on only when all it waits for is gone, so a cycle of such waits is a
//! deadlock, and there is none without a cycle (Coffman et al. 1971; the AND model of Knapp 1987).
//!
//! No false alarm: of two readings in a row only the waits that both show count, each by the same ticket and the same
//! token or ticket before it. All of them existed together between the two readings, so what is a cycle among them was
//! one, and what only one reading shows hides none. Cycles through holders alone are looked for first: a waiter that
//! merely stands between is not the one to fail.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    marker::PhantomData,
};

use super::{BackendError, FencingToken, LockBackend, LockKey, LockMode, LockStatus, Owner, Ticket};

/// What stands in a waiter's way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Blocker {
    /// A holder, by its token.
    Holder(FencingToken),
    /// An earlier waiter, by its ticket.
    Waiter(Ticket),
}

/// One wait: an edge of the wait-for graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wait<K> {
    /// Who waits.
    pub owner: Owner,
    /// By which acquisition.
    pub ticket: Ticket,
    /// When that came, among all.
    pub arrival: u64,
    /// At which lock.
    pub name: K,
    /// Behind what.
    pub blocker: Blocker,
    /// Whose that is.
    pub behind: Owner,
}

/// A cycle of waits; the last one's blocker is the first one's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock<K> {
    /// The waits, each behind the next one's owner.
    pub waits: Vec<Wait<K>>,
}

impl<K: LockKey> Deadlock<K> {
    /// Whom to fail: the one that came last.
    pub fn youngest(&self) -> Option<&Wait<K>> {
        self.waits.iter().max_by_key(|wait| wait.arrival)
    }
}

/// `a→b→a`, by owners.
impl<K> fmt::Display for Deadlock<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for wait in &self.waits {
            write!(f, "{}→", wait.owner)?;
        }
        self.waits.first().map_or(Ok(()), |wait| write!(f, "{}", wait.owner))
    }
}

/// Finds owners that wait for each other in a circle, and fails the one that came last.
///
/// [`LockClient::run`](super::LockClient::run) does it every
/// [`deadlock_check`](super::LockConfig::deadlock_check), on one client of a backend at a time; by hand it is
/// [`check`](Self::check). No false alarm: a cycle counts when two readings in a row show every one of its waits.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use caddy_engine::TokioTimer;
/// use caddy_engine::locks::{DistributedMutex, InProcess, LockClient, LockConfig, LockError, Owner};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let timer = Arc::new(TokioTimer);
/// let config = LockConfig {
///     deadlock_check: Duration::from_millis(10),
///     timeout: Duration::from_secs(60),
///     ..LockConfig::default()
/// };
/// let client = LockClient::new(InProcess::new(timer.clone()), timer, config, "doc");
/// let lock = |name: &str| DistributedMutex::new(client.clone(), name.to_owned());
/// let (orders, stock) = (lock("orders"), lock("stock"));
/// let (ada, alan) = (Owner::new("ada"), Owner::new("alan"));
///
/// let work = async {
///     let (first, second) = (orders.lock(&ada).await?, stock.lock(&alan).await?);
///     // Each wants what the other has. Alan came last: he is told, and lets go.
///     let both = tokio::join!(stock.lock(&ada), async {
///         let refused = orders.lock(&alan).await;
///         second.unlock().await?;
///         refused
///     });
///     assert!(both.0.is_ok() && matches!(both.1, Err(LockError::Deadlock(_))));
///     first.unlock().await
/// };
/// tokio::select! {
///     done = work => done,
///     () = client.run() => unreachable!("it is never done"), // a task of its own in real life
/// }
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct DeadlockDetector<K>(PhantomData<K>);

impl<K: LockKey> DeadlockDetector<K> {
    /// Reads the backend's queues twice and breaks each cycle that both readings show; how many it broke.
    pub async fn check(backend: &dyn LockBackend<K>) -> Result<usize, BackendError> {
        let first = backend.contended().await?;
        if Self::find(&first).is_empty() {
            return Ok(0);
        }
        let second = backend.contended().await?;
        let mut broken = 0;
        for deadlock in Self::confirm(&first, &second) {
            let Some(victim) = deadlock.youngest() else { continue };
            match backend.break_deadlock(&victim.name, &victim.ticket, &deadlock.to_string()).await {
                Ok(expelled) => broken += usize::from(expelled),
                Err(BackendError::Unreadable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(broken)
    }

    /// The cycles in one reading, such that without their youngest waits there is none left.
    pub fn find(locks: &[LockStatus<K>]) -> Vec<Deadlock<K>> {
        Self::find_among(locks, |_| true)
    }

    fn find_among(locks: &[LockStatus<K>], counts: impl Fn(&Wait<K>) -> bool) -> Vec<Deadlock<K>> {
        let held: Vec<Wait<K>> = locks.iter().flat_map(behind_holders).filter(&counts).collect();
        let queued: Vec<Wait<K>> = locks.iter().flat_map(behind_waiters).filter(&counts).collect();
        let mut failed = Vec::new();
        let mut found = break_all(&held.iter().collect::<Vec<_>>(), &mut failed);
        found.extend(break_all(&held.iter().chain(&queued).collect::<Vec<_>>(), &mut failed));
        found
    }

    /// Every wait in one reading: behind holders first, then behind earlier waiters.
    pub fn waits(locks: &[LockStatus<K>]) -> Vec<Wait<K>> {
        locks.iter().flat_map(behind_holders).chain(locks.iter().flat_map(behind_waiters)).collect()
    }

    /// The cycles among the waits that two readings show, the second one later; as [`find`](Self::find) does.
    pub fn confirm(first: &[LockStatus<K>], second: &[LockStatus<K>]) -> Vec<Deadlock<K>> {
        let still: HashSet<Wait<K>> = Self::waits(second).into_iter().collect();
        Self::find_among(first, |wait| still.contains(wait))
    }
}

/// The waits behind holders: an exclusive waiter's behind each of them, a shared one's behind an exclusive one.
fn behind_holders<K: LockKey>(lock: &LockStatus<K>) -> impl Iterator<Item = Wait<K>> {
    lock.waiters.iter().flat_map(move |waiter| {
        let in_the_way =
            lock.holders.iter().filter(|holder| holder.mode.excludes(waiter.mode) && holder.owner != waiter.owner);
        in_the_way.map(move |holder| Wait {
            owner: waiter.owner.clone(),
            ticket: waiter.ticket.clone(),
            arrival: waiter.arrival,
            name: lock.name.clone(),
            blocker: Blocker::Holder(holder.token),
            behind: holder.owner.clone(),
        })
    })
}

/// The waits behind earlier waiters, as few as reach them all: behind the last exclusive one before it, and for an
/// exclusive waiter behind each shared one since then.
fn behind_waiters<K: LockKey>(lock: &LockStatus<K>) -> impl Iterator<Item = Wait<K>> {
    let mut waits = Vec::new();
    let mut last_exclusive = None;
    let mut shared_since = Vec::new();
    for waiter in &lock.waiters {
        let shared: &[_] = if waiter.mode == LockMode::Exclusive { &shared_since } else { &[] };
        for before in shared.iter().chain(&last_exclusive).copied() {
            let before: &super::WaiterStatus = before;
            if before.owner != waiter.owner {
                waits.push(Wait {
                    owner: waiter.owner.clone(),
                    ticket: waiter.ticket.clone(),
                    arrival: waiter.arrival,
                    name: lock.name.clone(),
                    blocker: Blocker::Waiter(before.ticket.clone()),
                    behind: before.owner.clone(),
                });
            }
        }
        match waiter.mode {
            LockMode::Exclusive => {
                last_exclusive = Some(waiter);
                shared_since.clear();
            }
            LockMode::Shared => shared_since.push(waiter),
        }
    }
    waits.into_iter()
}

fn by_owner<'a, K: LockKey>(waits: impl Iterator<Item = &'a Wait<K>>) -> HashMap<&'a Owner, Vec<&'a Wait<K>>> {
    let mut by_owner: HashMap<&Owner, Vec<&Wait<K>>> = HashMap::new();
    waits.for_each(|wait| by_owner.entry(&wait.owner).or_default().push(wait));
    by_owner
}

/// Finds a cycle, takes the youngest wait's acquisition out, and so on until there is none.
fn break_all<K: LockKey>(waits: &[&Wait<K>], failed: &mut Vec<Ticket>) -> Vec<Deadlock<K>> {
    let mut graph = by_owner(waits.iter().copied().filter(|wait| !failed.contains(&wait.ticket)));
    let mut found = Vec::new();
    while let Some(deadlock) = cycle(&graph) {
        if let Some(victim) = deadlock.youngest() {
            failed.push(victim.ticket.clone());
            if let Some(waits) = graph.get_mut(&victim.owner) {
                waits.retain(|wait| wait.ticket != victim.ticket);
            }
        }
        found.push(deadlock);
    }
    found
}

/// A cycle, by depth-first search without recursion: a queue may be long.
fn cycle<K: LockKey>(graph: &HashMap<&Owner, Vec<&Wait<K>>>) -> Option<Deadlock<K>> {
    let mut seen: HashMap<&Owner, bool> = HashMap::new();
    let mut starts: Vec<&Owner> = graph.keys().copied().collect();
    starts.sort_unstable();
    for start in starts {
        if seen.contains_key(start) {
            continue;
        }
        // Each step: an owner, and which of its waits comes next.
        let mut path: Vec<(&Owner, usize)> = vec![(start, 0)];
        seen.insert(start, true);
        while let Some((owner, next)) = path.last_mut() {
            let Some(wait) = graph.get(*owner).and_then(|waits| waits.get(*next)) else {
                seen.insert(*owner, false);
                path.pop();
                continue;
            };
            *next += 1;
            match seen.get(&wait.behind) {
                Some(true) => {
                    let from = path.iter().position(|(owner, _)| **owner == wait.behind)?;
                    let taken = path[from..].iter().filter_map(|(owner, next)| graph.get(*owner)?.get(next - 1));
                    return Some(Deadlock { waits: taken.map(|wait| Wait::clone(wait)).collect() });
                }
                Some(false) => {}
                None => {
                    seen.insert(&wait.behind, true);
                    path.push((&wait.behind, 0));
                }
            }
        }
    }
    None
}
