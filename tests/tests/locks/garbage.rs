//! What somebody else wrote where a lock's data belongs: a call on that lock is told which key and what to do, and every
//! other lock goes on, with its waiters, its renewals and the look for deadlocks.

use std::time::Duration;

use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{LOCKS, Locker, granted, show};

/// Of locks that have to be renewed while the garbage lies there.
const SHORT: &str = "LEASE 500";
const SEVERAL_LEASES: Duration = Duration::from_secs(1);
const FOR_LONG: &str = "LEASE 3600000 WAIT 3600000";

/// Two sidecars, with somebody who has the lock `bad` and somebody who waits for it.
struct Scene {
    redis: RedisServer,
    sidecars: [Sidecar; 2],
    holder: Locker,
    token: String,
    waiter: Locker,
}

impl Scene {
    fn new(mode: &str) -> Self {
        let redis = RedisServer::start().unwrap();
        let start = || SidecarOptions::redis(redis.socket()).section("locks: {deadlockCheck: 100ms}").start().unwrap();
        let sidecars = [start(), start()];
        let (mut holder, mut waiter) = (Locker::new(&sidecars[0]), Locker::new(&sidecars[1]));
        let token = holder.acquire(&format!("bad {mode} {FOR_LONG}"));
        waiter.send(&format!("LOCK.ACQUIRE bad {FOR_LONG}"));
        let scene = Self { redis, sidecars, holder, token, waiter };
        scene.eventually("LOCK.LIST", &format!("[[bad {mode} 1 1]]"));
        scene
    }

    fn redis(&self, command: &[&str]) -> String {
        let reply = self.redis.command(command).unwrap();
        assert!(!reply.starts_with(b"-"), "{command:?}: {}", String::from_utf8_lossy(&reply));
        show(&caddy_resp::Value::decode(&reply).unwrap().0)
    }

    fn eventually(&self, request: &str, wanted: &str) {
        let mut observer = Locker::new(&self.sidecars[0]);
        eventually(format!("{request} answers {wanted}"), SOON, || {
            let reply = observer.ask(request);
            anyhow::ensure!(reply == wanted, "{reply}");
            Ok(())
        })
        .unwrap();
    }

    /// All locks but `bad` are taken, handed over, renewed, let go by those whose connection ends, shown, and freed of
    /// deadlocks; `shown` is what LOCK.LIST says of `bad`.
    fn others_go_on(&self, shown: &str) {
        let [here, there] = &self.sidecars;
        let (mut a, mut b, mut observer) = (Locker::new(here), Locker::new(there), Locker::new(here));
        // Of the sidecar that also has `bad` to renew.
        let kept = a.acquire(&format!("kept {SHORT}"));
        let shared = a.acquire(&format!("shared SHARED {SHORT}"));
        let x = a.acquire(&format!("x {FOR_LONG}"));
        b.acquire(&format!("y {FOR_LONG}"));
        a.send(&format!("LOCK.ACQUIRE y {FOR_LONG}"));
        eventually("the wait for y is shown", SOON, || {
            let graph = observer.ask("LOCK.GRAPH");
            anyhow::ensure!(graph.contains(" y HOLDER "), "{graph}");
            Ok(())
        })
        .unwrap();
        let list = observer.ask("LOCK.LIST");
        let others = "[kept EXCLUSIVE 1 0] [shared SHARED 1 0] [x EXCLUSIVE 1 0] [y EXCLUSIVE 1 1]]";
        assert_eq!(list, format!("[{shown}{others}"));
        assert!(observer.ask("LOCK.INFO y").contains("holder_count 1 waiter_count 1"));
        let failed = b.ask(&format!("LOCK.ACQUIRE x {FOR_LONG}"));
        assert!(failed.starts_with("-DEADLOCK"), "{failed}");
        drop(b);
        assert!(granted(&a.reply()).is_some(), "who waited for one whose connection ended");
        std::thread::sleep(SEVERAL_LEASES);
        for (name, token) in [("kept", kept), ("shared", shared), ("x", x)] {
            assert_eq!(a.ask(&format!("LOCK.RELEASE {name} {token}")), "0");
        }
        drop(a);
        for name in ["kept", "shared", "x", "y"] {
            let token = observer.acquire(&format!("{name} WAIT 10000"));
            assert_eq!(observer.ask(&format!("LOCK.RELEASE {name} {token}")), "0");
        }
    }

    /// As [`others_go_on`](Self::others_go_on), while calls on `bad` are told of its `key` and of the `remedy`, by which it
    /// goes on.
    fn tells_and_is_mended(mut self, key: &str, remedy: &[&str]) {
        self.others_go_on("[bad UNREADABLE 0 0] ");
        let mut app = Locker::new(&self.sidecars[1]);
        for request in ["LOCK.INFO bad", "LOCK.ACQUIRE bad WAIT 100", "LOCK.ACQUIRE bad SHARED WAIT 100"] {
            let told = app.ask(request);
            assert!(told.starts_with("-ERR the lock 'bad' cannot be read:"), "{request}: {told}");
            assert!(told.contains(key) && told.contains(&remedy[..2].join(" ")), "{request}: {told}");
        }
        let log = self.sidecars[1].log();
        assert_eq!(log.matches("cannot be read").count(), 1, "told once: {log}");
        let told = self.waiter.reply();
        assert!(told.starts_with("-ERR the lock 'bad' cannot be read:"), "who waited: {told}");
        let told = self.holder.ask(&format!("LOCK.RELEASE bad {}", self.token));
        assert!(told.contains("cannot be read") || told.starts_with("-FENCED") || told == "0", "{told}");
        drop((self.holder, self.waiter));
        self.redis.command(remedy).unwrap();
        let again = app.acquire("bad WAIT 10000");
        assert!(again > self.token, "{again} after {}", self.token);
        assert_eq!(app.ask(&format!("LOCK.RELEASE bad {again}")), "0");
    }
}

fn key(kind: &str) -> String {
    format!("{LOCKS}:{kind}:bad")
}

#[test]
fn a_queue_that_is_none() {
    let scene = Scene::new("EXCLUSIVE");
    scene.redis(&["SET", &key("q"), "garbage"]);
    scene.tells_and_is_mended(&key("q"), &["DEL", &key("q")]);
}

#[test]
fn shared_holders_that_are_none() {
    for kind in ["h", "z"] {
        let scene = Scene::new("SHARED");
        scene.redis(&["SET", &key(kind), "garbage"]);
        scene.tells_and_is_mended(&key(kind), &["DEL", &key(kind)]);
    }
}

#[test]
fn an_exclusive_holder_that_is_none() {
    for garbage in ["garbage", "no-number:1:2:a-1:owner", "", "1:2:99999999999999999999:a-1:owner"] {
        let scene = Scene::new("EXCLUSIVE");
        scene.redis(&["HSET", LOCKS, "x:bad", garbage]);
        scene.tells_and_is_mended(LOCKS, &["HDEL", LOCKS, "x:bad"]);
    }
}

/// They belong to nobody who lives, as the dead who are skipped.
#[test]
fn entries_of_a_queue_that_are_none_are_passed_by() {
    let mut scene = Scene::new("EXCLUSIVE");
    for (place, garbage) in [("0", "garbage"), ("1", ""), ("2", "x:1000000:nobody:o"), ("+inf", "behind")] {
        scene.redis(&["ZADD", &key("q"), place, garbage]);
    }
    scene.others_go_on("[bad EXCLUSIVE 1 1] ");
    assert_eq!(scene.sidecars[1].log().matches("cannot be read").count(), 1, "{}", scene.sidecars[1].log());
    assert_eq!(scene.holder.ask(&format!("LOCK.RELEASE bad {}", scene.token)), "0");
    let token = granted(&scene.waiter.reply()).unwrap();
    assert_eq!(scene.waiter.ask(&format!("LOCK.RELEASE bad {token}")), "0");
    assert_eq!(scene.redis(&["EXISTS", &key("q")]), "0", "they went with their turn");
}

/// What is incomplete is void, as what was evicted in part.
#[test]
fn records_of_shared_holders_that_are_none_void_the_lock_and_no_other() {
    for (field, garbage) in [("m", "garbage"), ("e", ""), ("o:", "a field too many")] {
        let mut scene = Scene::new("SHARED");
        scene.redis(&["HSET", &key("h"), field, garbage]);
        let token = granted(&scene.waiter.reply()).unwrap_or_default();
        assert!(token > scene.token, "{field}");
        scene.others_go_on("[bad EXCLUSIVE 1 0] ");
        let told = scene.holder.ask(&format!("LOCK.RELEASE bad {}", scene.token));
        assert!(told.starts_with("-FENCED"), "{field}: {told}");
        assert_eq!(scene.waiter.ask(&format!("LOCK.RELEASE bad {token}")), "0");
    }
}

#[test]
fn the_record_of_one_shared_holder_that_is_none_is_not_shown() {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let (mut one, mut other) = (Locker::new(&sidecar), Locker::new(&sidecar));
    one.acquire("bad SHARED OWNER one");
    other.acquire("bad SHARED OWNER other");
    redis.command(&["HSET", &key("h"), "o:one", "garbage"]).unwrap();
    let info = other.ask("LOCK.INFO bad");
    assert!(info.contains("holder_count 1 ") && info.contains("[[other SHARED "), "{info}");
}

#[test]
fn an_epoch_or_a_counter_that_is_none_is_data_that_was_lost() {
    for (field, garbage) in
        [("e", "garbage"), ("e", "99999999999999999999"), ("c", "garbage"), ("c", "99999999999999999999"), ("c", "")]
    {
        let mut scene = Scene::new("EXCLUSIVE");
        scene.redis(&["HSET", LOCKS, field, garbage]);
        scene.is_a_new_epoch();
    }
}

#[test]
fn what_is_swept_may_be_garbage() {
    let mut scene = Scene::new("EXCLUSIVE");
    scene.redis(&["HSET", LOCKS, "q:other", "garbage", "x:other", "garbage", "q:", "", "x:", ""]);
    let mut app = Locker::new(&scene.sidecars[0]);
    // One acquisition in a hundred sweeps.
    for _ in 0..1000 {
        let token = app.acquire("l");
        assert_eq!(app.ask(&format!("LOCK.RELEASE l {token}")), "0");
    }
    assert_eq!(scene.holder.ask(&format!("LOCK.RELEASE bad {}", scene.token)), "0");
}

/// Whoever is said to look for deadlocks and does not exist keeps nobody from it.
#[test]
fn a_duty_that_is_none() {
    for garbage in [["SET", "nobody"], ["LPUSH", "garbage"]] {
        let scene = Scene::new("EXCLUSIVE");
        let duty = format!("{LOCKS}:duty");
        scene.redis(&["DEL", &duty]);
        scene.redis(&[garbage[0], &duty, garbage[1]]);
        scene.others_go_on("[bad EXCLUSIVE 1 1] ");
    }
}

/// What all locks need and one call finds broken is named, too.
#[test]
fn an_index_that_is_none_is_named() {
    for kind in ["live", "contended"] {
        let scene = Scene::new("EXCLUSIVE");
        let index = format!("{LOCKS}:{kind}");
        scene.redis(&["SET", &index, "garbage"]);
        let told = Locker::new(&scene.sidecars[0]).ask("LOCK.ACQUIRE bad WAIT 1000");
        assert!(told.starts_with("-NOTREADY") && told.contains(&format!("DEL {index}")), "{told}");
        scene.redis(&["DEL", &index]);
        let mut holder = scene.holder;
        assert_eq!(holder.ask(&format!("LOCK.RELEASE bad {}", scene.token)), "0");
        let mut waiter = scene.waiter;
        assert!(granted(&waiter.reply()).is_some());
    }
}

impl Scene {
    /// The waiter gets the lock under a later epoch, and who held it is told that it does not.
    fn is_a_new_epoch(&mut self) {
        let epoch = |token: &str| token.split('-').next().unwrap().parse::<u64>().unwrap();
        let token = granted(&self.waiter.reply()).unwrap();
        assert!(epoch(&token) > epoch(&self.token), "{} then {token}", self.token);
        let told = self.holder.ask(&format!("LOCK.RELEASE bad {}", self.token));
        assert!(told.starts_with("-FENCED"), "{told}");
        self.others_go_on("[bad EXCLUSIVE 1 0] ");
    }
}
