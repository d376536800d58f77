//! `BACKEND lease`: locks that are Kubernetes Leases, over an API server of the test's own.

use std::time::Duration;

use caddy_tests::{
    lease_server::LeaseServer,
    sidecar::{Sidecar, SidecarOptions},
};

use crate::{Locker, granted};

fn sidecar(api: &LeaseServer, name: &str) -> Sidecar {
    api.start_pod(SidecarOptions::embedded(), name).unwrap()
}

/// The Lease of the only lock there is.
fn the_lease(api: &LeaseServer) -> String {
    let names = api.names();
    let mut locks = names.iter().filter(|name| name.starts_with("caddy-lock-"));
    let name = locks.next().unwrap().clone();
    assert_eq!(locks.next(), None, "{names:?}");
    name
}

#[test]
fn a_lock_is_a_lease_that_others_see_and_wait_for() {
    let api = LeaseServer::start().unwrap();
    let (here, there) = (sidecar(&api, "web-1"), sidecar(&api, "web-2"));
    let (mut a, mut b) = (Locker::new(&here), Locker::new(&there));
    let first = a.acquire("migrate:Orders BACKEND lease OWNER ann");
    let lease = the_lease(&api);
    assert!(lease.starts_with("caddy-lock-local-migrate-orders-"), "{lease}");
    let object = api.lease(&lease).unwrap();
    assert_eq!(object["spec"]["holderIdentity"], "ann");
    assert_eq!(object["metadata"]["labels"]["cache.caddy.dev/lock"], "local");
    assert_eq!(object["metadata"]["annotations"]["cache.caddy.dev/lock-name"], "migrate:Orders");
    assert_eq!(object["metadata"]["annotations"]["cache.caddy.dev/lock-token"], first);
    // Again by the same owner, and by another sidecar for the same name.
    assert_eq!(a.acquire("migrate:Orders BACKEND lease OWNER ann"), first);
    assert_eq!(b.acquire("migrate:Orders BACKEND lease OWNER ann"), first);
    assert!(b.ask("LOCK.ACQUIRE migrate:Orders BACKEND lease WAIT 0").starts_with("-LOCKTIMEOUT"));
    assert!(b.ask("LOCK.INFO migrate:Orders BACKEND lease").contains(&first));
    assert!(!b.ask("LOCK.INFO migrate:Orders").contains(&first), "another lock, of the same name");
    assert!(granted(&a.ask(&format!("LOCK.RENEW migrate:Orders {first}"))).is_some());
    b.send("LOCK.ACQUIRE migrate:Orders BACKEND lease WAIT 30000");
    assert!(b.0.reply_within(Duration::from_millis(300)).unwrap().is_none());
    assert_eq!(a.ask(&format!("LOCK.RELEASE migrate:Orders {first}")), "1");
    assert_eq!(a.ask(&format!("LOCK.RELEASE migrate:Orders {first}")), "0");
    let second = granted(&b.reply()).unwrap();
    assert!(second > first, "{first} then {second}");
    assert!(a.ask(&format!("LOCK.RELEASE migrate:Orders {first} OWNER ann BACKEND lease")).starts_with("-FENCED"));
    assert!(a.ask(&format!("LOCK.RENEW migrate:Orders {first} OWNER ann BACKEND lease")).starts_with("-FENCED"));
    drop(b);
    // The end of the connection lets go; a waiter of the same sidecar need not wait for its own pause.
    let mut c = Locker::new(&there);
    let third = c.acquire("migrate:Orders BACKEND lease WAIT 20000");
    assert!(third > second, "{second} then {third}");
}

#[test]
fn a_dead_holders_lease_is_taken_over_after_its_time_and_not_before() {
    let api = LeaseServer::start().unwrap();
    let (mut dying, there) = (sidecar(&api, "web-1"), sidecar(&api, "web-2"));
    let mut a = Locker::new(&dying);
    let first = a.acquire("l BACKEND lease LEASE 2000");
    dying.kill().unwrap();
    let mut b = Locker::new(&there);
    // Attempts that each give up before its time is over see it come nearer, though each is another owner's.
    let mut refused = 0;
    let second = loop {
        let reply = Locker::new(&there).ask("LOCK.ACQUIRE l BACKEND lease WAIT 400 LEASE 2000");
        match granted(&reply) {
            Some(token) => break token,
            None => assert!(reply.starts_with("-LOCKTIMEOUT"), "{reply}"),
        }
        refused += 1;
        assert!(refused < 100, "never taken over");
    };
    assert!(refused > 2, "taken over before its time");
    assert!(second > first, "{first} then {second}");
    // Somebody deletes a held Lease: the later token is greater, and the holder is told at its next renewal.
    let held = b.acquire("l BACKEND lease WAIT 20000");
    assert!(api.delete(&the_lease(&api)));
    let told = b.ask(&format!("LOCK.RENEW l {held}"));
    assert!(told.starts_with("-NOTREADY") || told.starts_with("-FENCED"), "{told}");
    let mut c = Locker::new(&there);
    let later = c.acquire("l BACKEND lease WAIT 20000");
    assert!(later > held, "{held} then {later}");
}

#[test]
fn without_an_answer_nobody_acquires_and_what_is_held_is_lost_in_time() {
    let api = LeaseServer::start().unwrap();
    let sidecar = sidecar(&api, "web-1");
    let (mut holder, mut other) = (Locker::new(&sidecar), Locker::new(&sidecar));
    holder.0.request(&["HELLO", "3"]).unwrap();
    let token = holder.acquire("l BACKEND lease LEASE 2000");
    api.set_away(true);
    let refused = other.ask("LOCK.ACQUIRE m BACKEND lease WAIT 0");
    assert!(refused.starts_with("-NOTREADY a lock with BACKEND lease needs the API server"), "{refused}");
    let (_, push) = holder.0.receive().unwrap();
    let push = String::from_utf8(push).unwrap();
    assert!(push.contains("lock-lost") && push.contains(&token), "{push}");
    api.set_away(false);
    let later = other.acquire("l BACKEND lease WAIT 20000");
    assert!(later > token, "{token} then {later}");
}

#[test]
fn what_leases_cannot_do_is_refused() {
    let api = LeaseServer::start().unwrap();
    let pod = sidecar(&api, "web-1");
    let mut locker = Locker::new(&pod);
    let refused = locker.ask("LOCK.ACQUIRE l SHARED BACKEND lease");
    assert!(refused.starts_with("-ERR BACKEND lease has no SHARED locks"), "{refused}");
    // The longest name there may be, of bytes that no Lease's name may have.
    let longest = "_".repeat(512);
    let token = locker.acquire(&format!("{longest} BACKEND lease WAIT 0"));
    assert_eq!(locker.ask(&format!("LOCK.RELEASE {longest} {token}")), "0");
    let too_long = locker.ask(&format!("LOCK.ACQUIRE {longest}_ BACKEND lease"));
    assert!(too_long.starts_with("-LIMIT the name of a lock has 513 bytes"), "{too_long}");
    let mut refused = String::new();
    for number in 0..50 {
        refused = locker.ask(&format!("LOCK.ACQUIRE l{number} BACKEND lease WAIT 0"));
        if let Some(token) = granted(&refused) {
            assert_eq!(locker.ask(&format!("LOCK.RELEASE l{number} {token}")), "0");
        }
    }
    assert!(refused.starts_with("-LIMIT 'l49': Leases that are locks of this namespace"), "{refused}");
    let names = api.names();
    assert_eq!(names.iter().filter(|name| name.starts_with("caddy-lock-")).count(), 50);
    assert!(names.iter().all(|name| name.len() <= 253), "{names:?}");
    let outside = SidecarOptions::embedded().start().unwrap();
    let refused = Locker::new(&outside).ask("LOCK.ACQUIRE l BACKEND lease");
    assert!(refused.starts_with("-ERR BACKEND lease is not available"), "{refused}");
}
