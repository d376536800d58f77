//! The engine as a library over a real Redis: several "processes" (caches with connections of their own) and foreigners.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use caddy_engine::{
    CacheError, CacheTier, Lifetime, LoadedFrom, MultiTierCache, RemoteError, TierConfig,
    codec::{BinaryCodec, CodecConfig},
    invalidation::{KeyPattern, PatternInvalidator},
};
use caddy_remote::{Credential, Endpoint, Login, RedisNames, RedisRemote, Target};
use caddy_tests::{random::Random, redis::RedisServer};
use futures::future::join_all;
use tokio::task::{LocalSet, spawn_local};

type Cache = MultiTierCache<String, u64>;

/// How long something may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn target(server: &RedisServer) -> Target {
    Target::new(Endpoint::Unix(server.socket().to_owned()))
}

fn over(target: Target, config: TierConfig) -> Cache {
    let codec = BinaryCodec::<u64>::new(CodecConfig::default());
    let names = RedisNames { database: 0, prefix: "n:".into() };
    let (remote, driver) = RedisRemote::new(target, names, codec);
    spawn_local(driver);
    MultiTierCache::new(config, Arc::new(remote))
}

/// A process of its own, as far as Redis can see.
fn process(server: &RedisServer) -> Cache {
    over(target(server), TierConfig::default())
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// Looks until it is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let patience = tokio::time::timeout(PATIENCE, async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    patience.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Reads `key` until it is answered locally.
async fn warm(cache: &Cache, key: &str) {
    until("a local hit", async || {
        cache.get(key).await.unwrap();
        cache.get_local(key).is_some()
    })
    .await;
}

#[test]
fn a_value_is_answered_locally_until_anybody_writes_it() {
    let server = RedisServer::start().unwrap();
    run(async {
        let (one, two) = (process(&server), process(&server));
        one.insert("k".into(), 1).await.unwrap();
        warm(&two, "k").await;
        assert_eq!(two.get("k").await.unwrap(), Some(1));
        assert!(two.hit_rate() > 0.0);

        one.insert("k".into(), 2).await.unwrap();
        assert_eq!(one.get("k").await.unwrap(), Some(2), "its own write at once");
        until("the other's write arrives", async || two.get("k").await.unwrap() == Some(2)).await;

        warm(&one, "k").await;
        server.command(&["DEL", "n:k"]).unwrap();
        until("a foreigner's delete arrives", async || one.get("k").await.unwrap().is_none()).await;
        until("at both", async || two.get("k").await.unwrap().is_none()).await;

        warm(&one, "k").await;
        two.insert("k".into(), 3).await.unwrap();
        until("also a copy of nothing dies", async || one.get("k").await.unwrap() == Some(3)).await;

        warm(&one, "k").await;
        server.command(&["FLUSHALL"]).unwrap();
        until("and everything with FLUSHALL", async || one.get("k").await.unwrap().is_none()).await;
    });
}

#[test]
fn a_lost_redis_ends_local_answers_and_a_new_one_begins_anew() {
    let mut server = RedisServer::start().unwrap();
    run(async {
        let cache = process(&server);
        cache.insert("k".into(), 1).await.unwrap();
        warm(&cache, "k").await;
        server.kill().unwrap();
        until("the copy is not served", async || cache.get_local("k").is_none()).await;
        assert!(matches!(cache.get("k").await, Err(CacheError::Read(RemoteError::Unreachable { .. }))));
        server.restart().unwrap();
        until("it is back, empty", async || cache.get("k").await == Ok(None)).await;
    });
}

#[test]
fn a_stopped_redis_ends_local_answers_within_the_bound() {
    let server = RedisServer::start().unwrap();
    run(async {
        let cache = process(&server);
        cache.insert("k".into(), 1).await.unwrap();
        warm(&cache, "k").await;
        server.sigstop().unwrap();
        until("nothing is proven any more", async || cache.get_local("k").is_none()).await;
        server.sigcont().unwrap();
        until("until Redis answers again", async || {
            let _ = cache.get("k").await;
            cache.get_local("k") == Some(Some(1))
        })
        .await;
    });
}

#[test]
fn a_server_that_refuses_tracking_is_not_read_from_unseen() {
    let server = RedisServer::start().unwrap();
    server.command(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-client"]).unwrap();
    run(async {
        let (username, password) = ["app", "secret"].map(|text| Some(Credential::Inline(text.into()))).into();
        let target = Target { login: Login { username, password }, ..target(&server) };
        let cache = over(target, TierConfig::default());
        cache.insert("k".into(), 1).await.unwrap();
        until("it says why", async || match cache.get("k").await {
            Err(CacheError::Read(RemoteError::Unreachable { reason })) => reason.to_lowercase().contains("client"),
            other => panic!("{other:?}"),
        })
        .await;
    });
}

#[test]
fn of_two_processes_one_loads() {
    let server = RedisServer::start().unwrap();
    run(async {
        let caches = [process(&server), process(&server)];
        let loads = AtomicU64::new(0);
        let load = async || {
            loads.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, std::convert::Infallible>(7)
        };
        let callers = (0..40).map(|n| caches[n % 2].get_or_load("k", load));
        for loaded in join_all(callers).await {
            assert_eq!(loaded.unwrap().value, 7);
        }
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(caches[1].get("k").await.unwrap(), Some(7), "stored");
        assert_eq!(server.command(&["EXISTS", "n:caddy:lease:k"]).unwrap(), b":0\r\n");
    });
}

#[test]
fn what_was_loaded_before_a_write_is_not_stored_whoever_wrote() {
    let server = RedisServer::start().unwrap();
    run(async {
        let (cache, other) = (process(&server), process(&server));
        for (round, key) in ["own", "other", "foreign", "foreign and back"].into_iter().enumerate() {
            let redis_key = format!("n:{key}");
            let loaded = cache
                .get_or_load(key, async || {
                    match round {
                        0 => assert!(!cache.remove(key).await.unwrap()),
                        1 => other.insert(key.into(), 2).await.unwrap(),
                        2 => drop(server.command(&["SET", &redis_key, "not ours"]).unwrap()),
                        _ => other.insert_for(key.into(), 2, Lifetime::of(Duration::ZERO)).await.unwrap(),
                    }
                    Ok::<_, std::convert::Infallible>(1)
                })
                .await
                .unwrap();
            assert_eq!(loaded.value, 1, "it still answers who asked before");
            let after = cache.get(key).await.unwrap();
            assert_eq!(after, (round == 1).then_some(2), "{key}");
        }
        assert_eq!(cache.stats().loads_not_stored, 4);
    });
}

#[test]
fn what_was_loaded_in_place_of_a_stale_value_is_not_stored_over_a_newer_one() {
    let server = RedisServer::start().unwrap();
    run(async {
        let config = TierConfig { stale_if_error: Duration::from_mins(10), ..TierConfig::default() };
        let cache = over(target(&server), config);
        for foreign in [true, false] {
            cache.insert("k".into(), 1).await.unwrap();
            cache.expire("k").await.unwrap();
            let load = async || {
                if foreign {
                    drop(server.command(&["SET", "n:k", "not ours"]).unwrap());
                }
                Ok::<_, std::convert::Infallible>(2)
            };
            assert_eq!(cache.get_or_load("k", load).await.unwrap().value, 2);
            let stored = server.command(&["GET", "n:k"]).unwrap();
            assert_eq!(stored == b"$8\r\nnot ours\r\n", foreign);
        }
        assert_eq!(cache.get("k").await.unwrap(), Some(2));
    });
}

#[test]
fn a_stale_value_outlives_its_ttl_in_redis_and_an_expire() {
    let server = RedisServer::start().unwrap();
    run(async {
        let config = TierConfig {
            ttl: Some(Duration::from_millis(300)),
            stale_if_error: Duration::from_mins(10),
            ..TierConfig::default()
        };
        let (cache, other) = (over(target(&server), config.clone()), over(target(&server), config));
        let failure = async || Err::<u64, _>(std::io::Error::other("the database is away"));
        cache.insert("k".into(), 1).await.unwrap();
        until("its time is over", async || cache.get("k").await.unwrap().is_none()).await;
        for cache in [&cache, &other] {
            let loaded = cache.get_or_load("k", failure).await.unwrap();
            assert!(loaded.is_stale() && loaded.value == 1);
        }
        cache.insert_for("k".into(), 2, Lifetime::FOREVER.stale_for(Duration::from_mins(10))).await.unwrap();
        assert_eq!(cache.get("k").await.unwrap(), Some(2));
        assert!(cache.expire("k").await.unwrap());
        assert_eq!(cache.get("k").await.unwrap(), None);
        until("the other hears of it", async || other.get("k").await.unwrap().is_none()).await;
        assert_eq!(other.get_or_load("k", failure).await.unwrap().value, 2);
        assert!(cache.remove("k").await.unwrap());
        assert!(cache.get_or_load("k", failure).await.is_err(), "remove leaves nothing to stand in");
        let loaded = cache.get_or_load("k", async || Ok::<_, std::io::Error>(3)).await.unwrap();
        assert_eq!(loaded.from, LoadedFrom::Loader);
    });
}

#[test]
fn clear_removes_what_is_ours_and_nothing_else() {
    let server = RedisServer::start().unwrap();
    run(async {
        let cache = process(&server);
        server.command(&["SET", "not ours", "1"]).unwrap();
        for n in 0..2_500 {
            cache.insert(format!("{n}"), n).await.unwrap();
        }
        warm(&cache, "7").await;
        cache.clear().await.unwrap();
        assert_eq!(cache.get("7").await.unwrap(), None);
        assert_eq!(server.command(&["DBSIZE"]).unwrap(), b":1\r\n");
    });
}

#[test]
fn what_cannot_be_decoded_is_absent_and_can_be_loaded_over() {
    let server = RedisServer::start().unwrap();
    run(async {
        let cache = process(&server);
        server.command(&["SET", "n:k", "no envelope"]).unwrap();
        assert_eq!(cache.get("k").await.unwrap(), None);
        let loaded = cache.get_or_load("k", async || Ok::<_, std::io::Error>(1)).await.unwrap();
        assert_eq!(loaded.from, LoadedFrom::Loader);
        assert_eq!(cache.get("k").await.unwrap(), Some(1));
        server.command(&["DEL", "n:list"]).unwrap();
        server.command(&["RPUSH", "n:list", "a"]).unwrap();
        assert!(matches!(cache.get("list").await, Err(CacheError::Read(RemoteError::Refused { .. }))));
    });
}

/// Versions of a key that one process has seen: no later read there may be answered with an older one.
#[derive(Default)]
struct Floor(AtomicU64);

#[test]
fn no_process_ever_reads_backwards() {
    const KEYS: usize = 4;
    let server = RedisServer::start().unwrap();
    run(async {
        let seed = u64::from(std::process::id());
        println!("seed {seed}");
        let caches = [process(&server), process(&server)];
        let next = AtomicU64::new(1);
        let floors: [[Floor; KEYS]; 2] = Default::default();
        // One writer at a time per key: else Redis's order is not the versions' order.
        let writers: [tokio::sync::Mutex<()>; KEYS] = Default::default();
        let worker = async |worker: u64| {
            let mut random = Random::new(seed + worker);
            let process = (worker % 2) as usize;
            for _ in 0..400 {
                let key = random.below(KEYS);
                let (name, floor) = (format!("k{key}"), &floors[process][key].0);
                if random.below(10) == 0 {
                    let _writing = writers[key].lock().await;
                    let version = next.fetch_add(1, Ordering::SeqCst);
                    if random.below(2) == 0 {
                        caches[process].insert(name, version).await.unwrap();
                    } else {
                        caches[process].insert_hot(name, version).await.unwrap();
                    }
                    floor.fetch_max(version, Ordering::SeqCst);
                } else {
                    let least = floor.load(Ordering::SeqCst);
                    let read = caches[process].get(&name).await.unwrap().unwrap_or(0);
                    assert!(read >= least, "{name} was read as {read} by process {process}, which had seen {least}");
                    floor.fetch_max(read, Ordering::SeqCst);
                }
            }
        };
        join_all((0..8).map(worker)).await;
        let stats = caches[0].stats();
        assert!(stats.tier(CacheTier::L2).hits + stats.tier(CacheTier::L1).hits > 100, "not much was local: {stats:?}");
    });
}

#[test]
fn what_matches_a_pattern_is_gone_from_every_tier_and_every_process() {
    let server = RedisServer::start().unwrap();
    run(async {
        let (one, two) = (process(&server), process(&server));
        for n in 0..40 {
            one.insert(format!("user:{n}"), n).await.unwrap();
        }
        one.insert("order:1".into(), 1).await.unwrap();
        server.command(&["SET", "user:1", "beyond the prefix"]).unwrap();
        for key in ["user:1", "user:11", "order:1"] {
            warm(&one, key).await;
            warm(&two, key).await;
        }
        let removed = PatternInvalidator::new(one.clone()).invalidate(&KeyPattern::glob(b"user:1*").unwrap()).await;
        assert_eq!(removed, Ok(11));
        assert_eq!((one.get("user:1").await, one.get("user:11").await), (Ok(None), Ok(None)), "here at once");
        assert_eq!((one.get("user:2").await, one.get_local("order:1")), (Ok(Some(2)), Some(Some(1))));
        until("the other hears of it", async || two.get_local("user:11") != Some(Some(11))).await;
        assert_eq!(server.command(&["EXISTS", "user:1"]).unwrap(), b":1\r\n", "what is not the cache's stays");
    });
}
