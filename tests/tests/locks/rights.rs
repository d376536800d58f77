//! What the Redis user of a sidecar has to be allowed for locks, as documented, and what becomes of them without the channels.

use std::time::Duration;

use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{Locker, granted};

const DOCUMENT: &str = include_str!("../../../docs/locks.md");
/// Beside what apps use.
const SIDECAR: &str = "+hello +client|setname +client|tracking +get +pttl +mget +ping &__redis__:invalidate";

/// The rights that the settings in the document name.
fn documented() -> Vec<&'static str> {
    let (_, settings) = DOCUMENT.split_once("A Redis user needs").unwrap();
    let (paragraph, _) = settings.split_once("memory pressure").unwrap();
    paragraph.split(['`', ' ', '\n']).filter(|word| word.starts_with('+')).collect()
}

fn sidecar(redis: &RedisServer, channels: &[&str]) -> Sidecar {
    let mut rule = vec!["ACL", "SETUSER", "side", "reset", "on", ">pw", "~caddy:*", "resetchannels"];
    rule.extend(SIDECAR.split(' ').chain(documented()).chain(channels.iter().copied()));
    assert_eq!(redis.command(&rule).unwrap(), b"+OK\r\n");
    let options = SidecarOptions::redis(redis.socket()).login("side", "pw").section("locks: {deadlockCheck: 100ms}");
    options.start().unwrap()
}

/// The lock `l` is held, and one waits for it.
fn is_waited_for(observer: &mut Locker) {
    eventually("it waits", SOON, || {
        let list = observer.ask("LOCK.LIST l");
        anyhow::ensure!(list == "[[l EXCLUSIVE 1 1]]", "{list}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_documented_rights_are_enough() {
    let redis = RedisServer::start().unwrap();
    let channels = ["&caddy:{default.local}:lock*"];
    let (here, there) = (sidecar(&redis, &channels), sidecar(&redis, &channels));
    let (mut a, mut b) = (Locker::new(&here), Locker::new(&there));
    let first = a.acquire("l");
    b.send("LOCK.ACQUIRE l WAIT 20000");
    is_waited_for(&mut a);
    assert_eq!(a.ask(&format!("LOCK.RELEASE l {first}")), "0");
    let second = granted(&b.reply()).unwrap();
    assert!(granted(&b.ask(&format!("LOCK.RENEW l {second}"))).is_some());
    a.acquire("s SHARED");
    a.acquire("x");
    b.acquire("s SHARED");
    a.send("LOCK.ACQUIRE l WAIT 20000");
    // The one that comes later is failed.
    is_waited_for(&mut Locker::new(&there));
    let failed = b.ask("LOCK.ACQUIRE x WAIT 20000");
    assert!(failed.starts_with("-DEADLOCK"), "{failed}");
    let refused = redis.command(&["ACL", "LOG"]).unwrap();
    assert!(!String::from_utf8_lossy(&refused).contains("lock"), "{}", String::from_utf8_lossy(&refused));
}

/// Who cannot be told is not handed a lock, and looks; a circle of theirs ends with their time.
#[test]
fn without_the_channels_waiters_look() {
    let redis = RedisServer::start().unwrap();
    let (here, there) = (sidecar(&redis, &[]), sidecar(&redis, &[]));
    let (mut a, mut b) = (Locker::new(&here), Locker::new(&there));
    for mode in ["EXCLUSIVE", "SHARED"] {
        let held = a.acquire("l");
        b.send(&format!("LOCK.ACQUIRE l {mode} WAIT 20000"));
        is_waited_for(&mut a);
        assert_eq!(a.ask(&format!("LOCK.RELEASE l {held}")), "0");
        let token = granted(&b.reply()).unwrap();
        assert_eq!(b.ask(&format!("LOCK.RELEASE l {token}")), "0");
    }
    a.acquire("x");
    b.acquire("y");
    a.send("LOCK.ACQUIRE y WAIT 2500");
    // Long enough to ask again, several times.
    assert!(a.0.reply_within(Duration::from_millis(200)).unwrap().is_none());
    assert!(b.ask("LOCK.ACQUIRE x WAIT 1500").starts_with("-LOCKTIMEOUT"));
    assert!(a.reply().starts_with("-LOCKTIMEOUT"));
    let log = there.log();
    assert_eq!(log.matches("Redis refuses the channel").count(), 1, "{log}");
}
