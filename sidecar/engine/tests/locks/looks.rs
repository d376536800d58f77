//! Who looks for deadlocks, and when: several clients of one backend, in virtual time.

use std::{sync::Arc, time::Duration};

use caddy_engine::locks::{Acquire, Grant, InProcess, LockClient, LockConfig, LockError};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::client::{Duty, Faulty, Paused, owner, play, within};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// A thousandth of it.
const MOMENT: Duration = Duration::from_millis(1);

type Acquisition = JoinHandle<Result<Grant, LockError>>;

/// A client whose end is that of what keeps it.
struct Party {
    client: Arc<LockClient<String>>,
    keeper: JoinHandle<()>,
}

impl Party {
    fn waits(&self, name: &str, who: &str) -> Acquisition {
        let (client, name, who) = (self.client.clone(), name.to_owned(), owner(who));
        tokio::task::spawn_local(async move { client.acquire(&name, &who, within(600_000)).await })
    }

    async fn takes(&self, name: &str, who: &str) -> Grant {
        self.client.acquire(&name.to_owned(), &owner(who), Acquire::default()).await.unwrap()
    }

    fn checks(&self) -> u64 {
        self.client.stats().deadlock_checks
    }
}

fn parties<const N: usize>(names: [&'static str; N]) -> [Party; N] {
    let timer = Arc::new(Paused(Instant::now()));
    let (backend, duty) = (InProcess::new(timer.clone()), Duty::default());
    let config = LockConfig { deadlock_check: PAUSE, ..LockConfig::default() };
    names.map(|name| {
        let way = Faulty::new(backend.clone(), timer.clone(), name, duty.clone());
        let client = LockClient::new(way, timer.clone(), config, name);
        let keeping = client.clone();
        Party { client, keeper: tokio::task::spawn_local(async move { keeping.run().await }) }
    })
}

/// Closes a circle of `party`'s, and says how long it stood.
async fn circle(party: &Party) -> Duration {
    party.takes("x", "ann").await;
    party.takes("y", "bea").await;
    let older = party.waits("y", "ann");
    sleep(MOMENT).await;
    let closed = Instant::now();
    let younger = party.waits("x", "bea").await.unwrap();
    assert!(matches!(younger, Err(LockError::Deadlock(_))), "{younger:?}");
    older.abort();
    closed.elapsed()
}

#[test]
fn a_deadlock_is_broken_within_two_checks_by_failing_the_youngest() {
    play(|| async {
        let [Party { client, .. }] = parties(["only"]);
        let (x, y) = ("x".to_owned(), "y".to_owned());
        client.acquire(&x, &owner("a"), Acquire::default()).await.unwrap();
        let b = client.acquire(&y, &owner("b"), Acquire::default()).await.unwrap();
        let older = client.clone();
        let waiting =
            tokio::task::spawn_local(async move { older.acquire(&"y".into(), &owner("a"), within(60_000)).await });
        sleep(MOMENT).await;
        let begun = Instant::now();
        let younger = client.acquire(&x, &owner("b"), within(60_000)).await;
        let Err(LockError::Deadlock(cycle)) = younger else { panic!("{younger:?}") };
        assert!(cycle == "a→b→a" || cycle == "b→a→b", "{cycle}");
        assert!(begun.elapsed() <= PAUSE * 2);
        client.release(&y, &owner("b"), b.token).await.unwrap();
        waiting.await.unwrap().unwrap();
    });
}

/// One client looks for all, and counts it.
#[test]
fn one_of_those_who_wait_looks_and_an_idle_one_does_not() {
    play(|| async {
        let [one, two, idle] = parties(["one", "two", "idle"]);
        one.takes("l", "holder").await;
        let _waiting = (one.waits("l", "first"), two.waits("l", "second"));
        sleep(PAUSE * 10 + PAUSE / 2).await;
        assert_eq!((one.checks() + two.checks(), idle.checks()), (10, 0));
        assert!(one.checks() == 0 || two.checks() == 0, "{} and {}", one.checks(), two.checks());
    });
}

/// The client that looked has no waiters any more, while others begin to wait in a circle.
#[test]
fn who_stops_waiting_leaves_the_duty_to_others() {
    play(|| async {
        let [looks, other] = parties(["looks", "other"]);
        looks.takes("l", "holder").await;
        let ends = looks.waits("l", "first");
        sleep(MOMENT * 990).await;
        let _waits = other.waits("l", "second");
        sleep(MOMENT * 15).await;
        assert_eq!((looks.checks(), other.checks()), (1, 0));
        ends.abort();
        let stood = circle(&other).await;
        assert!(stood <= PAUSE * 2, "{stood:?}");
        assert_eq!(looks.checks(), 1);
    });
}

/// So does one whose process ends in order; of one that died the duty ends by itself.
#[test]
fn behind_the_end_of_the_client_that_looked_another_one_looks() {
    for (in_order, bound) in [(true, PAUSE * 2), (false, PAUSE * 3)] {
        play(|| async {
            let [looks, other] = parties(["looks", "other"]);
            looks.takes("l", "holder").await;
            let ends = looks.waits("l", "first");
            sleep(MOMENT * 990).await;
            let _waits = other.waits("l", "second");
            sleep(MOMENT * 15).await;
            assert_eq!((looks.checks(), other.checks()), (1, 0));
            looks.keeper.abort();
            ends.abort();
            if in_order {
                looks.client.drain().await;
            }
            let stood = circle(&other).await;
            assert!(stood <= bound, "{stood:?}, in order: {in_order}");
        });
    }
}
