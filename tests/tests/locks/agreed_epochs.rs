//! Epochs that are agreed on in a Lease: they grow also when nobody is left who knew the last one.

use std::time::Duration;

use caddy_tests::{
    e2e::eventually,
    lease_server::LeaseServer,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use serde_json::json;

use crate::{LOCKS, Locker, granted};

const EPOCH: &str = "caddy-epoch-local";
const ANNOTATION: &str = "cache.caddy.dev/epoch";

fn sidecar(api: &LeaseServer, redis: &RedisServer) -> Sidecar {
    api.start_pod(SidecarOptions::redis(redis.socket()), "web-1").unwrap()
}

fn epoch(token: &str) -> u64 {
    token.split('-').next().unwrap().parse().unwrap()
}

/// What the Lease says.
fn agreed(api: &LeaseServer) -> u64 {
    let lease = api.lease(EPOCH).unwrap();
    lease["metadata"]["annotations"][ANNOTATION].as_str().map_or(0, |text| text.parse().unwrap())
}

/// Takes a lock and lets go of it.
fn token_of(sidecar: &Sidecar) -> String {
    let mut locker = Locker::new(sidecar);
    let mut reply = String::new();
    for _ in 0..200 {
        reply = locker.ask("LOCK.ACQUIRE l");
        if let Some(token) = granted(&reply) {
            assert_eq!(locker.ask(&format!("LOCK.RELEASE l {token}")), "0");
            return token;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{reply}")
}

#[test]
fn an_epoch_is_agreed_on_before_its_first_token_and_known_to_those_who_come_later() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let first = {
        let sidecar = sidecar(&api, &redis);
        let first = token_of(&sidecar);
        assert_eq!(agreed(&api), epoch(&first));
        let info = Locker::new(&sidecar).ask("INFO");
        assert!(info.contains("caddy_lock_tokens:their epoch is kept in the Lease caddy-epoch-local"), "{info}");
        first
    };
    // An older incarnation of the very same server, and nobody is left who knew a later one.
    redis.command(&["HINCRBY", LOCKS, "e", "-100"]).unwrap();
    let later = sidecar(&api, &redis);
    let second = token_of(&later);
    assert!(epoch(&second) > epoch(&first), "{first} then {second}");
    assert_eq!(agreed(&api), epoch(&second));
    // Redis lost its data; the clock of its server, which Redis's own floor comes from, is of no use here: the number in
    // the Lease lies above it.
    redis.command(&["FLUSHALL"]).unwrap();
    assert!(epoch(&token_of(&later)) > epoch(&second));
}

#[test]
fn who_deletes_the_lease_moves_the_epoch_forward() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let first = token_of(&sidecar(&api, &redis));
    // Redis's epoch is greater, from before there was a Lease: it goes on, and the Lease catches up.
    redis.command(&["HINCRBY", LOCKS, "e", "1000"]).unwrap();
    let same = token_of(&sidecar(&api, &redis));
    assert_eq!(epoch(&same), epoch(&first) + 1000);
    assert_eq!(agreed(&api), epoch(&same));
    // Made an hour later and never written: the second in which it was made counts.
    assert!(api.delete(EPOCH));
    api.advance_clock(3600);
    let later = token_of(&sidecar(&api, &redis));
    assert!(epoch(&later) >= epoch(&first) + 3500, "{first} then {later}");
    assert_eq!(agreed(&api), epoch(&later));
}

#[test]
fn without_an_answer_the_epoch_goes_on_and_a_new_one_waits() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let first = token_of(&sidecar(&api, &redis));
    api.set_away(true);
    let here = api.pod(SidecarOptions::redis(redis.socket()), "web-1").start().unwrap();
    let second = token_of(&here);
    assert_eq!(epoch(&second), epoch(&first), "the epoch in Redis goes on");
    let info = Locker::new(&here).ask("INFO");
    assert!(info.contains("caddy_lock_tokens:as durable as L3 until the Lease"), "{info}");
    redis.command(&["FLUSHALL"]).unwrap();
    let mut locker = Locker::new(&here);
    let refused = locker.ask("LOCK.ACQUIRE l");
    assert!(refused.starts_with("-NOTREADY a new epoch of the locks has to be agreed on"), "{refused}");
    api.set_away(false);
    let third = token_of(&here);
    assert!(epoch(&third) > epoch(&second), "{second} then {third}");
    assert_eq!(agreed(&api), epoch(&third));
}

/// Somebody else wrote it; as much as Redis can count with is a number.
#[test]
fn an_epoch_in_the_lease_that_is_none_counts_as_not_written() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let sidecar = sidecar(&api, &redis);
    let mut before = token_of(&sidecar);
    for garbage in ["garbage", "-1", "9007199254740993", "18446744073709551615", "1e300"] {
        assert!(api.change(EPOCH, &json!({"metadata": {"annotations": {ANNOTATION: garbage}}})));
        redis.command(&["FLUSHALL"]).unwrap();
        let later = token_of(&sidecar);
        assert!(
            epoch(&later) > epoch(&before) && epoch(&later) < epoch(&before) + 1000,
            "{garbage}: {before}, {later}"
        );
        assert_eq!(agreed(&api), epoch(&later), "{garbage}");
        before = later;
    }
}

/// The API server went away behind the agreement and the writing in Redis, before it could be told of that.
#[test]
fn an_epoch_that_could_not_be_noted_waits_and_goes_on_by_itself() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let here = sidecar(&api, &redis);
    let first = token_of(&here);
    api.set_away(true);
    redis.command(&["HSET", LOCKS, "w", "1"]).unwrap();
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
    let mut app = Locker::new(&here);
    let refused = eventually("it is refused", SOON, || {
        let reply = app.ask("LOCK.ACQUIRE l");
        anyhow::ensure!(reply.starts_with("-NOTREADY a new epoch"), "{reply}");
        Ok(reply)
    });
    let (refused, _) = refused.unwrap();
    for told in [EPOCH, "has to be agreed on and noted", "see whether the API server answers, then try again"] {
        assert!(refused.contains(told), "{refused}");
    }
    assert_eq!((app.ask("SET k v"), app.ask("GET k")), ("OK".into(), "v".into()), "everything else goes on");
    let info = app.ask("INFO");
    assert!(info.contains("a new epoch waits for that"), "{info}");
    api.set_away(false);
    assert_eq!(epoch(&token_of(&here)), epoch(&first), "the one that was agreed on");
    assert_eq!(redis.command(&["HEXISTS", LOCKS, "w"]).unwrap(), b":0\r\n");
    let begun = api.lease(EPOCH).unwrap()["metadata"]["annotations"]["cache.caddy.dev/epoch-begun"].clone();
    assert_eq!(begun, epoch(&first).to_string());
}

/// Many sidecars meet the same loss: they end up in one epoch, and the API server hears of few of them.
#[test]
fn all_who_need_a_new_epoch_agree_on_one() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let sidecars: Vec<Sidecar> = (0..5).map(|_| sidecar(&api, &redis)).collect();
    for sidecar in &sidecars {
        token_of(sidecar);
    }
    redis.command(&["FLUSHALL"]).unwrap();
    let tokens: Vec<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = sidecars.iter().map(|sidecar| scope.spawn(|| token_of(sidecar))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let last = agreed(&api);
    assert_eq!(token_of(&sidecars[0]).split('-').next(), token_of(&sidecars[4]).split('-').next());
    assert!(tokens.iter().all(|token| epoch(token) <= last), "{tokens:?}, agreed on {last}");
}
