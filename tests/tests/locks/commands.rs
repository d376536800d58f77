//! What LOCK commands answer, over Redis and embedded.

use std::time::Duration;

use caddy_resp::FrameKind;
use caddy_tests::{
    e2e::eventually,
    postgres::PostgresServer,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{LOCKS, Locker, granted, left_over, remove};

const MOMENT: Duration = Duration::from_millis(100);

fn over_both(story: impl Fn(&Sidecar)) {
    let redis = RedisServer::start().unwrap();
    story(&Sidecar::start(&redis).unwrap());
    assert_eq!(left_over(&redis, LOCKS), Vec::<String>::new(), "all that was taken was let go");
    story(&SidecarOptions::embedded().start().unwrap());
}

/// Waits until nobody holds or waits.
fn wait_until_free(sidecar: &Sidecar) {
    let mut watcher = Locker::new(sidecar);
    for _ in 0..400 {
        if watcher.ask("LOCK.LIST") == "[]" {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not let go: {}", watcher.ask("LOCK.LIST"));
}

#[test]
fn a_lock_is_taken_shown_and_let_go() {
    over_both(|sidecar| {
        let (mut a, mut b) = (Locker::new(sidecar), Locker::new(sidecar));
        let token = a.acquire("l");
        assert_eq!(a.acquire("l"), token, "again by the same owner");
        assert!(b.ask("LOCK.ACQUIRE l WAIT 0").starts_with("-LOCKTIMEOUT 'l'"));
        assert!(b.ask("LOCK.ACQUIRE l WAIT 50").starts_with("-LOCKTIMEOUT 'l'"));
        assert!(b.ask("LOCK.INFO l").contains(&token));
        // Whoever gave up leaves the queue in the background.
        let alone = "[[l EXCLUSIVE 1 0]]";
        eventually("only the holder is left", SOON, || {
            let list = b.ask("LOCK.LIST");
            anyhow::ensure!(list == alone, "{list}");
            Ok(())
        })
        .unwrap();
        assert_eq!((b.ask("LOCK.LIST x*"), b.ask("LOCK.LIST ?")), ("[]".into(), alone.into()));
        assert_eq!(a.ask(&format!("LOCK.RELEASE l {token}")), "1");
        assert!(granted(&a.ask(&format!("LOCK.RENEW l {token} LEASE 60000"))).is_some());
        assert_eq!(a.ask(&format!("LOCK.RELEASE l {token}")), "0");
        let next = b.acquire("l");
        assert!(next > token, "{next} after {token}");
        assert_eq!(b.ask(&format!("LOCK.RELEASE l {next}")), "0");
    });
}

#[test]
fn wrong_tokens_and_bad_requests_are_told_apart() {
    over_both(|sidecar| {
        let (mut a, mut b) = (Locker::new(sidecar), Locker::new(sidecar));
        let token = a.acquire("l");
        let (rest, last) = token.split_at(token.len() - 1);
        let other = format!("{rest}{}", if last == "9" { 8 } else { 9 });
        for (who, request) in [
            (true, format!("LOCK.RELEASE l {other}")),
            (true, format!("LOCK.RENEW l {other}")),
            (false, format!("LOCK.RELEASE l {token}")),
            (false, format!("LOCK.RENEW l {token}")),
            (false, "LOCK.RELEASE l 7".into()),
            (false, format!("LOCK.RELEASE l {token} OWNER stranger")),
        ] {
            let reply = if who { &mut a } else { &mut b }.ask(&request);
            assert!(reply.starts_with("-FENCED"), "{request}: {reply}");
        }
        for (request, told) in [
            ("LOCK.ACQUIRE l OWNER conn:x", "-ERR an OWNER must not begin"),
            ("LOCK.ACQUIRE l LEASE 5", "-ERR LEASE takes milliseconds"),
            ("LOCK.ACQUIRE l WAIT -1", "-ERR WAIT takes milliseconds"),
            ("LOCK.ACQUIRE l LEASE", "-ERR syntax error at 'LEASE'"),
            ("LOCK.ACQUIRE l BACKEND lease", "-ERR BACKEND lease is not available"),
            ("LOCK.RELEASE l x WAIT 5", "-ERR syntax error"),
        ] {
            let reply = b.ask(request);
            assert!(reply.starts_with(told), "{request}: {reply}");
        }
        let longest = "n".repeat(512);
        assert!(b.ask(&format!("LOCK.ACQUIRE {longest}n")).starts_with("-LIMIT the name of a lock has 513 bytes"));
        let token_of_longest = b.acquire(&longest);
        assert_eq!(b.ask(&format!("LOCK.RELEASE {longest} {token_of_longest}")), "0");
        assert_eq!(a.ask(&format!("LOCK.RELEASE l {token}")), "0", "none of it changed anything");
        assert!(a.ask(&format!("LOCK.RENEW l {token}")).starts_with("-FENCED"), "after it was let go");
        let newer = a.acquire("l");
        assert!(a.ask(&format!("LOCK.RELEASE l {token}")).starts_with("-FENCED"), "an old token");
        assert_eq!(a.ask(&format!("LOCK.RELEASE l {newer}")), "0", "which did not let go of the new one");
    });
}

#[test]
fn readers_share_a_writer_stops_them_and_no_reader_becomes_one() {
    over_both(|sidecar| {
        let mut lockers: Vec<Locker> = (0..4).map(|_| Locker::new(sidecar)).collect();
        let first = lockers[0].acquire("l SHARED");
        let second = lockers[1].acquire("l SHARED");
        assert!(first < second);
        let refused = lockers[0].ask("LOCK.ACQUIRE l");
        assert!(refused.starts_with("-ERR 'l' is held SHARED"), "{refused}");
        lockers[2].send("LOCK.ACQUIRE l WAIT 9000");
        assert!(lockers[2].0.reply_within(MOMENT).unwrap().is_none());
        assert!(lockers[3].ask("LOCK.ACQUIRE l SHARED WAIT 50").starts_with("-LOCKTIMEOUT"), "behind the writer");
        assert_eq!(lockers[0].ask(&format!("LOCK.RELEASE l {first}")), "0");
        assert_eq!(lockers[1].ask(&format!("LOCK.RELEASE l {second}")), "0");
        let writer = granted(&lockers[2].reply()).unwrap();
        assert_eq!(lockers[2].ask(&format!("LOCK.RELEASE l {writer}")), "0");
    });
}

#[test]
fn the_end_of_a_connection_lets_go_and_leaves_the_queue() {
    over_both(|sidecar| {
        let (mut holder, mut waiter, mut next) = (Locker::new(sidecar), Locker::new(sidecar), Locker::new(sidecar));
        holder.acquire("l LEASE 60000");
        // One that waits, with more sent behind it: its end is noticed nevertheless.
        waiter.send("LOCK.ACQUIRE l WAIT 60000");
        waiter.send("PING");
        assert!(waiter.0.reply_within(MOMENT).unwrap().is_none());
        next.send("LOCK.ACQUIRE l WAIT 20000");
        drop(waiter);
        drop(holder);
        let token = granted(&next.reply()).unwrap();
        assert_eq!(next.ask(&format!("LOCK.RELEASE l {token}")), "0");
        next.acquire("other LEASE 60000");
        assert_eq!(next.ask("RESET"), "RESET");
        wait_until_free(sidecar);
    });
}

#[test]
fn a_named_owner_outlives_its_connections() {
    over_both(|sidecar| {
        let mut first = Locker::new(sidecar);
        let token = first.acquire("l OWNER bob LEASE 700");
        let mut second = Locker::new(sidecar);
        assert_eq!(second.acquire("l OWNER bob LEASE 700"), token);
        drop(first);
        // Renewed for as long as a connection lives that named the owner: several leases.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(granted(&second.ask(&format!("LOCK.RENEW l {token} OWNER bob"))).is_some());
        assert!(Locker::new(sidecar).ask("LOCK.ACQUIRE l WAIT 0").starts_with("-LOCKTIMEOUT"));
        drop(second);
        let mut third = Locker::new(sidecar);
        let later = third.acquire("l WAIT 5000");
        assert!(later > token, "behind the last connection it ended with its lease");
        for late in ["RENEW", "RELEASE"] {
            let told = third.ask(&format!("LOCK.{late} l {token} OWNER bob"));
            assert!(told.starts_with("-FENCED"), "{late} behind the end of the lease: {told}");
        }
        assert_eq!(third.ask(&format!("LOCK.RELEASE l {later}")), "0");
    });
}

#[test]
fn a_transaction_takes_no_lock_commands_and_says_so() {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let mut app = Locker::new(&sidecar);
    assert_eq!(app.ask("MULTI"), "OK");
    let refused = app.ask("LOCK.ACQUIRE l");
    assert!(refused.starts_with('-') && refused.contains("send it outside of MULTI"), "{refused}");
    assert!(app.ask("EXEC").starts_with("-EXECABORT"));
    let token = app.acquire("l");
    assert_eq!(app.ask(&format!("LOCK.RELEASE l {token}")), "0");
}

#[test]
fn requests_behind_a_lock_command_wait_for_it() {
    over_both(|sidecar| {
        let (mut holder, mut waiter) = (Locker::new(sidecar), Locker::new(sidecar));
        holder.ask("SET k old");
        let token = holder.acquire("l");
        waiter.send("LOCK.ACQUIRE l WAIT 20000");
        waiter.send("GET k");
        assert!(waiter.0.reply_within(MOMENT).unwrap().is_none());
        // In one go: the write is answered, thus done, before the lock is let go.
        holder.send("SET k new");
        holder.send(&format!("LOCK.RELEASE l {token}"));
        assert_eq!((holder.reply(), holder.reply()), ("OK".into(), "0".into()));
        let token = granted(&waiter.reply()).unwrap();
        assert_eq!(waiter.reply(), "new");
        assert_eq!(waiter.ask(&format!("LOCK.RELEASE l {token}")), "0");
    });
}

#[test]
fn a_deadlock_is_shown_and_broken() {
    over_both(|sidecar| {
        let (mut a, mut b) = (Locker::new(sidecar), Locker::new(sidecar));
        let x = a.acquire("x OWNER ann");
        b.acquire("y OWNER bea");
        a.send("LOCK.ACQUIRE y OWNER ann WAIT 20000");
        assert!(a.0.reply_within(MOMENT).unwrap().is_none());
        assert_eq!(Locker::new(sidecar).ask("LOCK.GRAPH"), "[[ann y HOLDER bea]]");
        let failed = b.ask("LOCK.ACQUIRE x OWNER bea WAIT 20000");
        assert!(
            failed.starts_with("-DEADLOCK ann→bea→ann;") || failed.starts_with("-DEADLOCK bea→ann→bea;"),
            "{failed}"
        );
        drop(b);
        // Bea's connection is gone, her name is not: her lock ends when she lets go.
        let mut bea = Locker::new(sidecar);
        let held = bea.acquire("y OWNER bea");
        while bea.ask(&format!("LOCK.RELEASE y {held} OWNER bea")) != "0" {}
        let y = granted(&a.reply()).unwrap();
        assert_eq!(a.ask(&format!("LOCK.RELEASE y {y}")), "0");
        assert_eq!(a.ask(&format!("LOCK.RELEASE x {x}")), "0");
    });
}

#[test]
fn limits_are_errors() {
    let redis = RedisServer::start().unwrap();
    let limits = "locks: {limits: {maxHeld: 3, maxWaiters: 2}}";
    let sidecar = SidecarOptions::redis(redis.socket()).section(limits).start().unwrap();
    let mut holder = Locker::new(&sidecar);
    holder.acquire("a");
    let mut waiters: Vec<Locker> = (0..2).map(|_| Locker::new(&sidecar)).collect();
    for waiter in &mut waiters {
        waiter.send("LOCK.ACQUIRE a WAIT 60000");
        assert!(waiter.0.reply_within(MOMENT).unwrap().is_none());
    }
    let refused = holder.ask("LOCK.ACQUIRE b");
    assert!(refused.starts_with("-LIMIT 'b': locks.limits.maxWaiters reached its limit of 2"), "{refused}");
    drop(waiters);
    let mut refused = String::new();
    for name in ["b", "c", "d", "e"].iter().cycle().take(400) {
        refused = holder.ask(&format!("LOCK.ACQUIRE {name}"));
        if refused.contains("maxHeld") {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(refused.contains("locks.limits.maxHeld reached its limit of 3"), "{refused}");
}

#[test]
fn a_lock_that_is_lost_is_told_by_push_or_by_the_next_command() {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let (mut old, mut new) = (Locker::new(&sidecar), Locker::new(&sidecar));
    new.0.request(&["HELLO", "3"]).unwrap();
    let (first, second) = (old.acquire("a LEASE 300"), new.acquire("b LEASE 300"));
    remove(&redis, &["a", "b"]);
    let (frame, push) = new.0.receive().unwrap();
    assert_eq!(frame.kind, FrameKind::Push);
    let text = String::from_utf8(push).unwrap();
    assert!(text.contains("lock-lost") && text.contains(&second), "{text}");
    assert!(new.ask(&format!("LOCK.RELEASE b {second}")).starts_with("-FENCED"));
    while !redis_says_lost(&sidecar) {}
    let told = old.ask("LOCK.ACQUIRE z");
    assert!(told.starts_with("-FENCED the lock 'a' held under") && told.contains(&first), "{told}");
    old.acquire("z");
}

/// Whether both losses were noticed.
fn redis_says_lost(sidecar: &Sidecar) -> bool {
    sidecar.metrics().unwrap().lines().any(|line| line == "caddy_lock_lost_total 2")
}

#[test]
fn the_documented_fences_refuse_the_late() {
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let document = include_str!("../../../docs/locks.md");
    let script = document.split("```lua\n").nth(1).unwrap().split("```").next().unwrap();
    let (mut slow, mut quick) = (Locker::new(&sidecar), Locker::new(&sidecar));
    let mut write = |token: &str, value: &str| {
        let keys = ["{account:7}:fence", "{account:7}"];
        let reply = quick.0.request(&["EVAL", script, "2", keys[0], keys[1], token, value]).unwrap();
        String::from_utf8(reply).unwrap()
    };
    let early = slow.acquire("account:7 LEASE 60000");
    assert_eq!(write(&early, "100"), "+OK\r\n");
    assert_eq!(write(&early, "90"), "+OK\r\n", "the same holder may write twice");
    // The slow one stops; its lock is taken away, somebody else gets it and writes.
    remove(&redis, &["account:7"]);
    let late = Locker::new(&sidecar).acquire("account:7");
    assert_eq!(write(&late, "80"), "+OK\r\n");
    assert!(write(&early, "90").starts_with("-FENCED"));
    assert_eq!(redis.command(&["GET", "{account:7}"]).unwrap(), b"$2\r\n80\r\n");
}

/// The recipe for a table, on a real one: a late step of a holder whose data was lost, too, is refused.
#[test]
fn the_documented_fence_of_a_table_refuses_the_late() {
    let (redis, postgres) = (RedisServer::start().unwrap(), PostgresServer::start().unwrap());
    let sidecar = Sidecar::start(&redis).unwrap();
    let recipe = include_str!("../../../docs/locks.md").split("```sql\n").nth(1).unwrap();
    let line = |begin: &str| recipe.lines().find(|line| line.starts_with(begin)).unwrap();
    postgres.execute(line("CREATE TABLE")).unwrap();
    postgres.execute("INSERT INTO account VALUES (7, 100)").unwrap();
    let write = |token: &str, balance: &str| {
        let update = line("UPDATE").replace("$1", &format!("'{token}'")).replace("balance = 90", balance);
        postgres.execute(&update).unwrap();
        postgres.execute("SELECT balance FROM account").unwrap().trim().to_owned()
    };
    let (mut slow, mut quick) = (Locker::new(&sidecar), Locker::new(&sidecar));
    let early = slow.acquire("account:7 LEASE 60000");
    assert_eq!(write(&early, "balance = 99"), "99");
    assert_eq!(write(&early, "balance = 98"), "98", "the same holder may write twice");
    remove(&redis, &["account:7"]);
    let late = quick.acquire("account:7");
    assert_eq!(write(&late, "balance = 80"), "80");
    assert_eq!(write(&early, "balance = 90"), "80", "the late one is refused");
    redis.command(&["FLUSHALL"]).unwrap();
    let latest = Locker::new(&sidecar).acquire("account:7");
    assert_eq!(write(&latest, "balance = 70"), "70", "the next epoch's");
    assert_eq!(write(&late, "balance = 90"), "70");
}

#[test]
fn a_sidecar_that_ends_lets_go_of_its_connections_locks() {
    let redis = RedisServer::start().unwrap();
    let options = SidecarOptions::redis(redis.socket()).argument("--grace").argument("1s");
    let (ending, other) = (options.start().unwrap(), Sidecar::start(&redis).unwrap());
    let mut holder = Locker::new(&ending);
    holder.acquire("l LEASE 60000");
    ending.terminate().unwrap();
    Locker::new(&other).acquire("l WAIT 15000");
}

#[test]
fn thousands_wait_for_one_lock_and_nothing_is_left_of_them() {
    use std::{
        io::{Read as _, Write as _},
        net::Shutdown,
        os::unix::net::UnixStream,
    };
    const WAITERS: usize = 2000;
    let redis = RedisServer::start().unwrap();
    let sidecar = Sidecar::start(&redis).unwrap();
    let mut holder = Locker::new(&sidecar);
    let token = holder.acquire("l LEASE 60000");
    let mut waiters: Vec<UnixStream> = Vec::new();
    for _ in 0..WAITERS {
        let mut stream = UnixStream::connect(sidecar.socket()).unwrap();
        stream.write_all(b"LOCK.ACQUIRE l WAIT 100000\r\n").unwrap();
        waiters.push(stream);
    }
    let mut watcher = Locker::new(&sidecar);
    let waiting = format!("[[l EXCLUSIVE 1 {WAITERS}]]");
    for _ in 0..1000 {
        if watcher.ask("LOCK.LIST") == waiting {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(watcher.ask("LOCK.LIST"), waiting);
    // All but the last die; the lock goes to that one.
    let mut last = waiters.pop().unwrap();
    for waiter in &waiters {
        waiter.shutdown(Shutdown::Both).unwrap();
    }
    drop(waiters);
    assert_eq!(holder.ask(&format!("LOCK.RELEASE l {token}")), "0");
    last.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reply = [0; 4];
    last.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"*2\r\n");
    drop(last);
    wait_until_free(&sidecar);
}
