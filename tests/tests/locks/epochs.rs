//! Lost and replaced data: all locks are void, holders are told, and later tokens are greater.

use std::time::Duration;

use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{LOCKS, Locker};

/// Takes a lock, lets `disaster` happen, takes it again elsewhere: the second token has to be of a greater epoch.
fn voids_all_locks(mut redis: RedisServer, disaster: impl FnOnce(&mut RedisServer)) {
    let (here, there) = (Sidecar::start(&redis).unwrap(), Sidecar::start(&redis).unwrap());
    let (mut a, mut b) = (Locker::new(&here), Locker::new(&there));
    let first = a.acquire("l LEASE 60000");
    assert!(b.ask("LOCK.ACQUIRE l WAIT 0").starts_with("-LOCKTIMEOUT"));
    disaster(&mut redis);
    // While Redis is away nobody gets it.
    let mut reply = String::new();
    for _ in 0..200 {
        reply = b.ask("LOCK.ACQUIRE l WAIT 3000");
        if crate::granted(&reply).is_some() {
            break;
        }
        assert!(reply.starts_with("-NOTREADY"), "{reply}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let second = crate::granted(&reply).unwrap_or_else(|| panic!("{reply}"));
    assert!(epoch(&second) > epoch(&first), "{first} then {second}");
    // Who held it hears of it, at the latest by the next thing it asks.
    let mut told = String::new();
    for _ in 0..200 {
        told = a.ask(&format!("LOCK.RELEASE l {first}"));
        if !told.starts_with("-NOTREADY") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(told.starts_with("-FENCED"), "{told}");
    let info = a.ask("INFO");
    assert!(info.contains(&format!("caddy_lock_epoch:{}", epoch(&second))), "{info}");
}

fn epoch(token: &str) -> u64 {
    token.split('-').next().unwrap().parse().unwrap()
}

#[test]
fn an_empty_restart() {
    voids_all_locks(RedisServer::start().unwrap(), |redis| redis.restart().unwrap());
}

#[test]
fn a_flush() {
    voids_all_locks(RedisServer::start().unwrap(), |redis| {
        redis.command(&["FLUSHALL"]).unwrap();
    });
}

#[test]
fn another_server_behind_the_same_name() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock");
    voids_all_locks(RedisServer::start_on(&socket).unwrap(), |redis| {
        redis.stop().unwrap();
        *redis = RedisServer::start_on(&socket).unwrap();
    });
}

/// The locks' data of an earlier moment, in the very same server.
#[test]
fn an_old_dump() {
    let redis = RedisServer::start().unwrap();
    {
        let sidecar = Sidecar::start(&redis).unwrap();
        let mut locker = Locker::new(&sidecar);
        let token = locker.acquire("l");
        assert_eq!(locker.ask(&format!("LOCK.RELEASE l {token}")), "0");
    }
    let old = redis.command(&["HGETALL", LOCKS]).unwrap();
    redis.command(&["FLUSHALL"]).unwrap();
    voids_all_locks(redis, |redis| {
        // The clock's seconds are in the epoch: the old one is older.
        let (value, _) = caddy_resp::Value::decode(&old).unwrap();
        let mut command: Vec<&[u8]> = vec![b"HSET", LOCKS.as_bytes()];
        command.extend(value.as_elements().unwrap().iter().map(|field| field.as_bytes().unwrap()));
        redis.command(&["FLUSHALL"]).unwrap();
        redis.command(&command).unwrap();
        redis.command(&["HINCRBY", LOCKS, "e", "-10"]).unwrap();
    });
}

/// Demoted, resynchronised and promoted again: the process and its connections stay, its data is another's.
#[test]
fn a_failover_under_a_live_connection() {
    voids_all_locks(RedisServer::start().unwrap(), |redis| {
        // No server is there; the ids change all the same, as they do behind a failover that lost nothing.
        redis.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
        redis.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
        // The look at a live connection comes once a second.
        std::thread::sleep(Duration::from_millis(1100));
    });
}

/// A server that refuses INFO: the mirror is the only evidence, and it is said.
#[test]
fn without_server_ids_the_mirror_alone_tells() {
    let redis = RedisServer::start().unwrap();
    redis.command(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info"]).unwrap();
    let start = || SidecarOptions::redis(redis.socket()).login("app", "pw").start().unwrap();
    let (here, there) = (start(), start());
    let (mut a, mut b) = (Locker::new(&here), Locker::new(&there));
    let first = a.acquire("l");
    let inside = String::from_utf8(here.connect().unwrap().request(&["LOCK.INFO", "l"]).unwrap()).unwrap();
    assert!(inside.contains(&first));
    assert!(b.ask("LOCK.ACQUIRE l WAIT 0").starts_with("-LOCKTIMEOUT"));
    redis.command(&["FLUSHALL"]).unwrap();
    let second = b.acquire("l");
    assert!(epoch(&second) > epoch(&first), "{first} then {second}");
    assert!(here.log().contains("has_server_ids=false"), "{}", here.log());
    assert!(a.ask("INFO").starts_with("-NOPERM"), "all of it is Redis's to give");
    let info = a.ask("INFO Caddy");
    assert!(info.contains("loss of L3's data is noticed by the epoch's mirror only (INFO is refused)"), "{info}");
}

/// What somebody else put where locks are, and a Redis that is full.
#[test]
fn what_redis_refuses_is_told_with_what_to_do_and_heals() {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let mut app = Locker::new(&sidecar);
    redis.command(&["SET", LOCKS, "something else"]).unwrap();
    for line in ["LOCK.ACQUIRE l", "LOCK.LIST", "LOCK.INFO l"] {
        let refused = app.ask(line);
        assert!(refused.starts_with("-NOTREADY Redis refused a lock script: WRONGTYPE"), "{line}: {refused}");
        assert!(
            refused.contains("somebody else writes to the keys of the locks, caddy:{<domain>}:locks*"),
            "{refused}"
        );
    }
    redis.command(&["DEL", LOCKS]).unwrap();
    let token = app.acquire("l");
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let refused = app.ask("LOCK.ACQUIRE other");
    assert!(refused.starts_with("-NOTREADY Redis refused a lock script: OOM"), "{refused}");
    assert!(refused.contains("make room in Redis"), "{refused}");
    assert_eq!(app.ask(&format!("LOCK.RELEASE l {token}")), "0", "to let go takes no room");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    let other = app.acquire("other");
    assert_eq!(app.ask(&format!("LOCK.RELEASE other {other}")), "0");
}

/// Who waited in an epoch that is over waits for nothing that is looked at for deadlocks again and again.
#[test]
fn the_index_of_contended_locks_forgets_what_a_new_epoch_voids() {
    let redis = RedisServer::start().unwrap();
    let sidecar = SidecarOptions::redis(redis.socket()).section("locks: {deadlockCheck: 100ms}").start().unwrap();
    let mut holder = Locker::new(&sidecar);
    let mut waiters: Vec<Locker> = (0..5).map(|_| Locker::new(&sidecar)).collect();
    for (n, waiter) in waiters.iter_mut().enumerate() {
        holder.acquire(&format!("l{n} LEASE 60000"));
        waiter.send(&format!("LOCK.ACQUIRE l{n} WAIT 60000 LEASE 60000"));
    }
    let contended = |wanted: &str| {
        eventually(format!("{wanted} are waited for"), SOON, || {
            let count = redis.command(&["SCARD", &format!("{LOCKS}:contended")])?;
            anyhow::ensure!(count == format!(":{wanted}\r\n").as_bytes(), "{}", String::from_utf8_lossy(&count));
            Ok(())
        })
        .unwrap();
    };
    contended("5");
    redis.command(&["DEL", LOCKS]).unwrap();
    for waiter in &mut waiters {
        assert!(crate::granted(&waiter.reply()).is_some());
    }
    // One that waits has them looked at.
    let mut last = Locker::new(&sidecar);
    last.send("LOCK.ACQUIRE l0 WAIT 60000");
    contended("1");
}
