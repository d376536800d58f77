//! Who looks for deadlocks may be killed: a circle is broken within two looks all the same.

use std::time::Duration;

use caddy_engine::{BootClock, Clock};
use caddy_tests::{e2e::eventually, redis::RedisServer, sidecar::SidecarOptions, world::SOON};

use crate::{LOCKS, Locker, show};

const LOOK: Duration = Duration::from_secs(2);
/// Beside the looks: for the second reading, and a machine that has other things to do.
const READING: Duration = Duration::from_millis(500);
const FOR_LONG: &str = "LEASE 3600000 WAIT 3600000";

#[test]
fn a_circle_is_broken_within_two_looks_though_who_looks_is_killed() {
    let redis = RedisServer::start().unwrap();
    let start = || SidecarOptions::redis(redis.socket()).section("locks: {deadlockCheck: 2s}").start().unwrap();
    let (mut looker, others) = (start(), [start(), start()]);
    let mut holder = Locker::new(&others[0]);
    holder.acquire(&format!("busy {FOR_LONG}"));
    let wait_at = |sidecar| {
        let mut waiter = Locker::new(sidecar);
        waiter.send(&format!("LOCK.ACQUIRE busy {FOR_LONG}"));
        waiter
    };
    let first = wait_at(&looker);
    // The others would ask for the duty just before it ends, and then a look later.
    std::thread::sleep(LOOK * 3 / 4);
    let _waiters = others.each_ref().map(wait_at);
    let (mut a, mut b) = (Locker::new(&others[0]), Locker::new(&others[1]));
    a.acquire(&format!("a {FOR_LONG}"));
    b.acquire(&format!("b {FOR_LONG}"));
    let duty =
        || show(&caddy_resp::Value::decode(&redis.command(&["GET", &format!("{LOCKS}:duty")]).unwrap()).unwrap().0);
    eventually("the first that waited has looked", SOON, || {
        anyhow::ensure!(looker.metric("caddy_lock_deadlock_checks_total")? > 0, "{}", duty());
        Ok(())
    })
    .unwrap();
    a.send(&format!("LOCK.ACQUIRE b {FOR_LONG}"));
    b.send(&format!("LOCK.ACQUIRE a {FOR_LONG}"));
    let closed = BootClock.now();
    looker.kill().unwrap();
    let mut told = |within| [&mut a, &mut b].into_iter().find_map(|locker| locker.0.reply_within(within).unwrap());
    let reply = loop {
        if let Some(reply) = told(Duration::from_millis(10)) {
            break String::from_utf8_lossy(&reply).into_owned();
        }
        assert!(BootClock.now().since(closed) <= LOOK * 2 + READING, "nobody took over: {}", duty());
    };
    assert!(reply.starts_with("-DEADLOCK"), "{reply}");
    drop(first);
}
