//! The scripts in Redis and the table in memory are one set of rules: random programs get the same answers from both.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::{
    BootClock, Clock, Moment,
    locks::{Answer, Ask, Claim, FencingToken, InProcess, LockBackend, LockMode, Owner, Ticket, Timer},
};
use caddy_remote::{Endpoint, Target, locks::RedisLocks};
use caddy_resp::Value;
use caddy_tests::{random::Random, redis::RedisServer};

use crate::{left_over, show};

struct Boot;

impl Clock for Boot {
    fn now(&self) -> Moment {
        BootClock.now()
    }
}

impl Timer for Boot {
    fn sleep_until(&self, _: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

const LOCKS: &str = "caddy:{test}:locks";

/// Leases that do not end within the test, so that both clocks agree about them.
const LEASE: Duration = Duration::from_hours(1);

fn redis_locks(redis: &RedisServer, client: &str) -> Arc<RedisLocks> {
    let target = Target::new(Endpoint::Unix(redis.socket().to_owned()));
    let locks = RedisLocks::new("test", client, None);
    tokio::task::spawn_local(locks.connect(Arc::new(target)));
    locks
}

fn play(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, story);
}

/// What an answer says, tokens by the order of their first appearance.
fn shape(answer: &Answer, seen: &mut Vec<FencingToken>) -> String {
    let mut number = |token: &FencingToken| {
        seen.iter().position(|other| other == token).unwrap_or_else(|| {
            seen.push(*token);
            seen.len() - 1
        })
    };
    match answer {
        Answer::Granted(token) => format!("granted {}", number(token)),
        Answer::Upgrade(token) => format!("upgrade {}", number(token)),
        Answer::Queued(_) => "queued".to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn redis_and_memory_answer_alike() {
    let redis = RedisServer::start().unwrap();
    play(async {
        for seed in 0..12 {
            redis.command(&["FLUSHALL"]).unwrap();
            let client = format!("c{seed}");
            let (there, here) = (redis_locks(&redis, &client), InProcess::<Bytes>::new(Arc::new(Boot)));
            there.keep_waiting().await.unwrap();
            let channel = format!("{LOCKS}:wake:{client}");
            // Who cannot be told is not handed a lock.
            while !redis.command(&["PUBSUB", "NUMSUB", &channel]).unwrap().ends_with(b":1\r\n") {
                tokio::task::yield_now().await;
            }
            let mut random = Random::new(seed);
            let (mut seen_there, mut seen_here) = (Vec::new(), Vec::new());
            let mut asks: Vec<Ask<Bytes>> = Vec::new();
            let mut grants: Vec<(Claim<Bytes>, Claim<Bytes>)> = Vec::new();
            let mut waiting: HashMap<(Bytes, Owner, bool), Ticket> = HashMap::new();
            for step in 0..300 {
                let what = format!("seed {seed}, step {step}");
                // The dead, who are silent for three seconds, leave queues; memory has none of them.
                there.keep_waiting().await.unwrap();
                match random.below(10) {
                    0..=5 => {
                        let name = Bytes::from(format!("l{}", random.below(2)));
                        let (owner, shared) = (Owner::new(format!("o{}", random.below(5))), random.below(2) == 0);
                        let mode = if shared { LockMode::Shared } else { LockMode::Exclusive };
                        let waits = random.below(4) > 0;
                        let next = Ticket { client: client.as_str().into(), number: step };
                        let ticket = waiting.get(&(name.clone(), owner.clone(), shared)).cloned().unwrap_or(next);
                        let ask = Ask { name: name.clone(), owner: owner.clone(), mode, ticket, lease: LEASE, waits };
                        let answers = (there.acquire(&ask).await.unwrap(), here.acquire(&ask).await.unwrap());
                        let shapes = (shape(&answers.0, &mut seen_there), shape(&answers.1, &mut seen_here));
                        assert_eq!(shapes.0, shapes.1, "{what}: {ask:?}");
                        match answers {
                            (Answer::Granted(there), Answer::Granted(here)) => {
                                waiting.remove(&(name.clone(), owner.clone(), shared));
                                let claim =
                                    |token| Claim { name: name.clone(), owner: owner.clone(), token, lease: LEASE };
                                grants.push((claim(there), claim(here)));
                            }
                            (Answer::Queued(_), _) => {
                                waiting.insert((name, owner, shared), ask.ticket.clone());
                            }
                            _ => {}
                        }
                        asks.push(ask);
                    }
                    6 if !asks.is_empty() => {
                        let ask = &asks[random.below(asks.len())];
                        there.cancel(ask).await.unwrap();
                        here.cancel(ask).await.unwrap();
                        waiting.retain(|_, ticket| *ticket != ask.ticket);
                    }
                    7 if !grants.is_empty() => {
                        let (theirs, ours) = &grants[random.below(grants.len())];
                        let renewed = there.renew(std::slice::from_ref(theirs)).await.unwrap();
                        assert_eq!(renewed, here.renew(std::slice::from_ref(ours)).await.unwrap(), "{what}");
                    }
                    8 | 9 if !grants.is_empty() => {
                        let at = grants.len() - 1 - random.below(grants.len().min(4));
                        let (theirs, ours) = &grants[at];
                        let released = there.release(theirs).await.unwrap();
                        assert_eq!(released, here.release(ours).await.unwrap(), "{what}");
                    }
                    _ => {}
                }
                for name in [b"l0", b"l1"].map(|name| Bytes::from_static(name)) {
                    let there = there.status(&name).await.unwrap();
                    let here = here.status(&name).await.unwrap();
                    let owners = |holders: &[caddy_engine::locks::HolderStatus]| {
                        let mut owners: Vec<_> = holders.iter().map(|h| (h.owner.clone(), h.mode.name())).collect();
                        owners.sort();
                        owners
                    };
                    assert_eq!(owners(&there.holders), owners(&here.holders), "{what}");
                    let queue = |waiters: &[caddy_engine::locks::WaiterStatus]| {
                        waiters.iter().map(|waiter| waiter.ticket.clone()).collect::<Vec<_>>()
                    };
                    assert_eq!(queue(&there.waiters), queue(&here.waiters), "{what}");
                }
            }
            for ask in &asks {
                there.cancel(ask).await.unwrap();
            }
            for (claim, _) in &grants {
                there.release(claim).await.unwrap();
            }
            assert_eq!(left_over(&redis, LOCKS), Vec::<String>::new());
            assert_eq!(there.names(b"*", 10).await.unwrap(), Vec::<Bytes>::new());
        }
    });
}

/// Leases, dead clients and clocks, which memory has none of.
#[test]
fn what_only_redis_has() {
    let redis = RedisServer::start().unwrap();
    play(async {
        let (a, b) = (redis_locks(&redis, "a"), redis_locks(&redis, "b"));
        let name = Bytes::from_static(b"l");
        let ask = |client: &str, number, millis| Ask {
            name: name.clone(),
            owner: Owner::new(format!("{client}{number}")),
            mode: LockMode::Exclusive,
            ticket: Ticket { client: client.into(), number },
            lease: Duration::from_millis(millis),
            waits: true,
        };
        // A lease ends by itself, and its claim with it.
        let Answer::Granted(token) = a.acquire(&ask("a", 1, 100)).await.unwrap() else { panic!("not free") };
        let Answer::Queued(again) = b.acquire(&ask("b", 1, 60_000)).await.unwrap() else { panic!("free") };
        assert!(again <= Duration::from_millis(105), "behind the end of the lease: {again:?}");
        tokio::time::sleep(again).await;
        assert!(matches!(b.acquire(&ask("b", 1, 60_000)).await.unwrap(), Answer::Granted(later) if later > token));
        let claim = Claim { name: name.clone(), owner: Owner::new("a1"), token, lease: LEASE };
        assert_eq!(a.renew(std::slice::from_ref(&claim)).await.unwrap(), [false]);
        assert!(!a.release(&claim).await.unwrap());
        // A dead client's waiters are skipped: its promise to live is taken away here.
        a.acquire(&ask("a", 2, 60_000)).await.unwrap();
        b.acquire(&ask("b", 2, 60_000)).await.unwrap();
        redis.command(&["ZREM", "caddy:{test}:locks:live", "a"]).unwrap();
        b.cancel(&ask("b", 1, 0)).await.unwrap();
        assert!(matches!(b.acquire(&ask("b", 2, 60_000)).await.unwrap(), Answer::Granted(_)));
        // A clock that was set back: the end of the lease lies further away than any lease that was asked for.
        let text = |reply: Vec<u8>| show(&Value::decode(&reply).unwrap().0);
        let record = text(redis.command(&["HGET", LOCKS, "x:l"]).unwrap());
        let (counter, rest) = record.split_once(':').unwrap();
        let (end, rest) = rest.split_once(':').unwrap();
        let far = end.parse::<u64>().unwrap() + 3_600_000_000;
        redis.command(&["HSET", LOCKS, "x:l", &format!("{counter}:{far}:{rest}")]).unwrap();
        b.acquire(&ask("b", 3, 60_000)).await.unwrap();
        let left = b.status(&name).await.unwrap().holders[0].remaining;
        assert!(left <= Duration::from_mins(1), "{left:?}");
        // Half of a shared lock evicted: it is void as a whole.
        let shared = Bytes::from_static(b"s");
        let share = |number| Ask { name: shared.clone(), mode: LockMode::Shared, ..ask("a", number, 60_000) };
        for number in [10, 11] {
            assert!(matches!(a.acquire(&share(number)).await.unwrap(), Answer::Granted(_)));
        }
        redis.command(&["DEL", &format!("{LOCKS}:z:s")]).unwrap();
        assert!(matches!(a.acquire(&share(12)).await.unwrap(), Answer::Granted(_)));
        assert_eq!(b.status(&shared).await.unwrap().holders.len(), 1);
        // Scripts that the server forgot are loaded again.
        redis.command(&["SCRIPT", "FLUSH"]).unwrap();
        b.cancel(&ask("b", 2, 60_000)).await.unwrap();
        assert!(matches!(b.acquire(&ask("b", 3, 60_000)).await.unwrap(), Answer::Granted(_)));
    });
}
