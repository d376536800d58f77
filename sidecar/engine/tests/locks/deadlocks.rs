//! Random lock programs: where the graph of waits has a cycle the detector finds one, where it has none it finds none,
//! and what it takes out leaves no cycle.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use caddy_engine::{
    ManualClock,
    locks::{
        Answer, Ask, Claim, DeadlockDetector, FencingToken, HolderStatus, InProcess, LockBackend, LockMode, LockStatus,
        Owner, Ticket, WaiterStatus,
    },
};
use proptest::prelude::*;

use crate::{Still, now};

/// Who waits for whom, by the definition: every holder and every earlier waiter that excludes the waiter.
fn graph(locks: &[LockStatus<u8>]) -> BTreeMap<Owner, BTreeSet<Owner>> {
    let mut graph: BTreeMap<Owner, BTreeSet<Owner>> = BTreeMap::new();
    for lock in locks {
        for (place, waiter) in lock.waiters.iter().enumerate() {
            let holders = lock.holders.iter().filter(|holder| holder.mode.excludes(waiter.mode)).map(|h| &h.owner);
            let before =
                lock.waiters[..place].iter().filter(|other| other.mode.excludes(waiter.mode)).map(|w| &w.owner);
            let behind = holders.chain(before).filter(|owner| **owner != waiter.owner).cloned();
            graph.entry(waiter.owner.clone()).or_default().extend(behind);
        }
    }
    graph
}

/// By the definition again: an owner that reaches itself.
fn has_cycle(graph: &BTreeMap<Owner, BTreeSet<Owner>>) -> bool {
    graph.keys().any(|start| {
        let mut open: Vec<&Owner> = graph[start].iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(owner) = open.pop() {
            if owner == start {
                return true;
            }
            if seen.insert(owner) {
                open.extend(graph.get(owner).into_iter().flatten());
            }
        }
        false
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_cycle_is_found_and_nothing_else(
        steps in prop::collection::vec((0..6u8, 0..5u8, any::<bool>(), prop::bool::weighted(0.15)), 1..60),
    ) {
        let backend = InProcess::<u8>::new(Arc::new(Still(Arc::new(ManualClock::default()))));
        let mut waiting: BTreeMap<Owner, Ask<u8>> = BTreeMap::new();
        let mut held: BTreeMap<Owner, Vec<Claim<u8>>> = BTreeMap::new();
        let lease = Duration::from_hours(1);
        let (mut number, mut cycles) = (0, 0);
        for (owner, lock, shared, releases) in steps {
            let owner = Owner::new(format!("o{owner}"));
            // One thread of control: who waits does nothing else.
            if let Some(ask) = waiting.get(&owner) {
                if let Answer::Granted(token) = now(backend.acquire(ask)).unwrap() {
                    held.entry(owner.clone()).or_default().push(Claim { name: ask.name, owner: owner.clone(), token, lease });
                    waiting.remove(&owner);
                }
            } else if releases && let Some(claim) = held.get_mut(&owner).and_then(Vec::pop) {
                now(backend.release(&claim)).unwrap();
                held.entry(owner).or_default().retain(|other| other.token != claim.token);
            } else {
                number += 1;
                let ticket = Ticket { client: "c".into(), number };
                let mode = if shared { LockMode::Shared } else { LockMode::Exclusive };
                let ask = Ask { name: lock, owner: owner.clone(), mode, ticket, lease, waits: true };
                match now(backend.acquire(&ask)).unwrap() {
                    Answer::Granted(token) => held.entry(owner.clone()).or_default().push(Claim { name: lock, owner, token, lease }),
                    Answer::Queued(_) => { waiting.insert(owner, ask); }
                    Answer::Upgrade(_) => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let locks = now(backend.contended()).unwrap();
            let real = has_cycle(&graph(&locks));
            let found = DeadlockDetector::find(&locks);
            prop_assert_eq!(!found.is_empty(), real, "{:?}", locks);
            if !real {
                continue;
            }
            cycles += 1;
            for deadlock in &found {
                let waits = &deadlock.waits;
                for (wait, next) in waits.iter().zip(waits.iter().cycle().skip(1)) {
                    prop_assert_eq!(&wait.behind, &next.owner);
                    prop_assert!(graph(&locks)[&wait.owner].contains(&wait.behind));
                }
            }
            let broken = now(DeadlockDetector::check(&*backend)).unwrap();
            prop_assert!(broken > 0);
            let locks = now(backend.contended()).unwrap();
            prop_assert!(!has_cycle(&graph(&locks)), "one check leaves no cycle");
            waiting.retain(|owner, _| locks.iter().any(|lock| lock.waiters.iter().any(|waiter| waiter.owner == *owner)));
        }
        prop_assume!(cycles < 1000);
    }
}

/// A cycle that is gone at the second reading is none: one of its holders let go between.
#[test]
fn a_cycle_must_be_there_twice() {
    let backend = InProcess::<u8>::new(Arc::new(Still(Arc::new(ManualClock::default()))));
    let ask = |number: u64, owner: &str, name: u8| Ask {
        name,
        owner: Owner::new(owner),
        mode: LockMode::Exclusive,
        ticket: Ticket { client: "c".into(), number },
        lease: Duration::from_hours(1),
        waits: true,
    };
    let granted = |number, owner, name| match now(backend.acquire(&ask(number, owner, name))).unwrap() {
        Answer::Granted(token) => token,
        other => panic!("{other:?}"),
    };
    let (a, _b) = (granted(1, "a", 1), granted(2, "b", 2));
    now(backend.acquire(&ask(3, "a", 2))).unwrap();
    now(backend.acquire(&ask(4, "b", 1))).unwrap();
    let first = now(backend.contended()).unwrap();
    let found = DeadlockDetector::find(&first);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].to_string(), "a→b→a");
    assert_eq!(found[0].youngest().unwrap().ticket.number, 4);
    assert_eq!(DeadlockDetector::confirm(&first, &first), found);
    // The very lock is let go and taken again by the same owner: not the same wait any more.
    now(backend.release(&Claim { name: 1, owner: Owner::new("a"), token: a, lease: Duration::ZERO })).unwrap();
    now(backend.cancel(&ask(4, "b", 1))).unwrap();
    granted(5, "a", 1);
    now(backend.acquire(&ask(6, "b", 1))).unwrap();
    let second = now(backend.contended()).unwrap();
    assert_eq!(DeadlockDetector::find(&second).len(), 1);
    assert_eq!(DeadlockDetector::confirm(&first, &second), []);
}

/// What only one reading shows hides no cycle that both show, also where both would be broken by the same failure.
#[test]
fn a_cycle_that_is_gone_hides_no_other() {
    let holder = |owner: &str, mode, counter| HolderStatus {
        owner: Owner::new(owner),
        mode,
        token: FencingToken::new(1, counter),
        remaining: Duration::from_hours(1),
    };
    let waiter = |owner: &str, number| WaiterStatus {
        owner: Owner::new(owner),
        mode: LockMode::Exclusive,
        ticket: Ticket { client: "c".into(), number },
        arrival: number,
    };
    let lock = |name, holders, waiters| LockStatus { name, holders, waiters };
    // b waits for the readers c and a, and each of them for b; c gives up.
    let read = vec![holder("c", LockMode::Shared, 1), holder("a", LockMode::Shared, 2)];
    let first = [
        lock(1, read, vec![waiter("b", 9)]),
        lock(2, vec![holder("b", LockMode::Exclusive, 3)], vec![waiter("c", 4), waiter("a", 5)]),
    ];
    let mut second = first.clone();
    second[1].waiters.remove(0);
    let confirmed = DeadlockDetector::confirm(&first, &second);
    assert_eq!(confirmed.len(), 1, "{confirmed:?}");
    assert_eq!(confirmed[0].to_string(), "a→b→a");
}

/// A chain of ten thousand waiters, no cycle: found quickly and without recursion.
#[test]
fn a_long_queue_is_no_deadlock() {
    let backend = InProcess::<u8>::new(Arc::new(Still(Arc::new(ManualClock::default()))));
    for number in 0..10_000u64 {
        let ask = Ask {
            name: 1,
            owner: Owner::new(format!("o{number}")),
            mode: if number % 3 == 0 { LockMode::Exclusive } else { LockMode::Shared },
            ticket: Ticket { client: "c".into(), number },
            lease: Duration::from_hours(1),
            waits: true,
        };
        now(backend.acquire(&ask)).unwrap();
    }
    assert_eq!(DeadlockDetector::find(&now(backend.contended()).unwrap()), []);
}
