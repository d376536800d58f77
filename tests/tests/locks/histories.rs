//! Apps at several sidecars take two locks while sidecars die, hang and are cut off, or while Redis loses its data. What
//! they saw is checked: tokens grow, nobody holds what another believes to hold, everybody is answered in time, and in the
//! end every lock can be had.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::ensure;
use caddy_engine::{BootClock, Clock, locks::FencingToken};
use caddy_resp::Value;
use caddy_tests::{
    e2e::eventually,
    lease_server::LeaseServer,
    lock_history::{Hold, LockHistory, LockViolation, Refusal},
    proxy::{BOTH, Class, Proxy},
    random::Random,
    redis::RedisServer,
    sentinel::Watched,
    sidecar::{Sidecar, SidecarOptions},
    wire::Wire,
};
use parking_lot::Mutex;

use crate::{LOCKS, Locker, granted, remove, show};

/// Leases that end within a run.
const LEASE: Duration = Duration::from_millis(900);
const WAIT: Duration = Duration::from_millis(700);
/// How late an answer may be on a busy machine. (A sidecar that hangs answers nobody; its apps' lateness is its own.)
const SLACK: Duration = Duration::from_secs(10);
const RUN: Duration = Duration::from_secs(6);
/// How long what has to happen may take on a busy machine.
const MUCH: Duration = Duration::from_mins(1);

/// Where the locks of an app are: what their names begin with, and the `BACKEND`.
type Home = (&'static str, &'static str);
const REDIS: Home = ("h", "redis");
const LEASES: Home = ("k", "lease");

/// Takes locks until told to end; connects anew when its connection ends.
fn app(number: usize, socket: &Path, (prefix, backend): Home, ends: &AtomicBool, history: &Mutex<LockHistory>) {
    let mut random = Random::new(number as u64 + 1);
    let mut wire: Option<Wire> = None;
    while !ends.load(Ordering::SeqCst) {
        let lock = format!("{prefix}{}", random.below(2));
        let Some(connection) = &mut wire else {
            thread::sleep(Duration::from_millis(10));
            wire = Wire::connect(socket).ok();
            continue;
        };
        let (lease, wait) = (LEASE.as_millis().to_string(), WAIT.as_millis().to_string());
        let asked = BootClock.now();
        let reply = connection.request(&["LOCK.ACQUIRE", &lock, "LEASE", &lease, "WAIT", &wait, "BACKEND", backend]);
        let answered = BootClock.now();
        let Ok(reply) = reply else {
            wire = None;
            continue;
        };
        let value = Value::decode(&reply).unwrap().0;
        let Some([token, remaining]) = value.as_elements() else {
            let text = show(&value);
            // A release that failed with the server leaves the lock held: two who go on like that wait in a circle.
            assert!(
                ["-LOCKTIMEOUT", "-NOTREADY", "-FENCED", "-DEADLOCK"].iter().any(|code| text.starts_with(code)),
                "{text}"
            );
            history.lock().refusals.push(Refusal { app: number, asked, answered, wait: WAIT });
            continue;
        };
        let token: FencingToken = std::str::from_utf8(token.as_bytes().unwrap()).unwrap().parse().unwrap();
        let told = Duration::from_millis(remaining.as_integer().unwrap().unsigned_abs());
        thread::sleep(Duration::from_millis(random.below(60) as u64));
        // What was told counts from when it was told at the latest: from the answer's arrival it is less.
        let until = BootClock.now().min(asked + told);
        history.lock().holds.push(Hold { app: number, lock: lock.clone(), asked, answered, token, until });
        if connection.request(&["LOCK.RELEASE", &lock, &token.to_string()]).is_err() {
            wire = None;
        }
    }
}

/// Runs apps at the sockets while `story` happens; what they saw.
fn record(sockets: &[PathBuf], story: impl FnOnce(&Mutex<LockHistory>)) -> LockHistory {
    record_of(&sockets.iter().map(|socket| (socket.clone(), REDIS)).collect::<Vec<_>>(), story)
}

fn record_of(sockets: &[(PathBuf, Home)], story: impl FnOnce(&Mutex<LockHistory>)) -> LockHistory {
    let (ends, history) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(LockHistory::default())));
    let apps: Vec<_> = (0..sockets.len() * 3)
        .map(|number| {
            let ((socket, home), ends, history) =
                (sockets[number % sockets.len()].clone(), ends.clone(), history.clone());
            thread::spawn(move || app(number, &socket, home, &ends, &history))
        })
        .collect();
    story(&history);
    ends.store(true, Ordering::SeqCst);
    for app in apps {
        app.join().unwrap();
    }
    Arc::try_unwrap(history).unwrap().into_inner()
}

fn sound(history: &LockHistory) {
    let violations = history.violations(SLACK);
    let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "{} of {} holds:\n{}", told.len(), history.holds.len(), told.join("\n"));
    assert!(history.holds.len() > 20, "too little happened: {}", history.holds.len());
}

/// Every lock can be had, by everybody.
fn all_can_lock(sidecars: &[&Sidecar]) {
    for sidecar in sidecars {
        for lock in ["h0", "h1"] {
            can_lock(sidecar, lock);
        }
    }
}

/// A server that is slow to answer is asked again.
fn can_lock(sidecar: &Sidecar, lock: &str) {
    eventually(format!("{lock} is had"), MUCH, || {
        let reply = Locker::new(sidecar).ask(&format!("LOCK.ACQUIRE {lock} WAIT 5000"));
        ensure!(granted(&reply).is_some(), "{reply}");
        Ok(())
    })
    .unwrap();
}

fn start(socket: &Path) -> Sidecar {
    SidecarOptions::redis(socket).timeout(Duration::from_millis(500)).start().unwrap()
}

#[test]
fn sidecars_that_die_hang_or_are_cut_off_leave_one_holder() {
    let redis = RedisServer::start().unwrap();
    let proxy = Proxy::start(redis.socket()).unwrap();
    let (mut dying, hanging, cut) = (start(redis.socket()), start(redis.socket()), start(proxy.socket()));
    let sockets = [&dying, &hanging, &cut].map(Sidecar::socket);
    let history = record(&sockets, |_| {
        for _ in 0..3 {
            thread::sleep(RUN / 12);
            dying.kill().unwrap();
            thread::sleep(RUN / 12);
            dying.restart().unwrap();
            hanging.suspend().unwrap();
            thread::sleep(LEASE + LEASE / 4);
            hanging.resume().unwrap();
            for direction in BOTH {
                proxy.stall(Class::Relay, direction);
            }
            thread::sleep(LEASE + LEASE / 4);
            proxy.heal();
        }
    });
    sound(&history);
    all_can_lock(&[&dying, &hanging, &cut]);
}

#[test]
fn data_that_is_lost_or_removed_makes_tokens_grow_nevertheless() {
    let mut redis = RedisServer::start().unwrap();
    let (one, two) = (start(redis.socket()), start(redis.socket()));
    let history = record(&[one.socket(), two.socket()], |history| {
        let note = || history.lock().losses.push(BootClock.now());
        for round in 0..6 {
            thread::sleep(RUN / 8);
            note();
            match round % 3 {
                0 => {
                    remove(&redis, &["h0", "h1"]);
                    redis.command(&["DEL", &format!("{LOCKS}:q:h1")]).unwrap();
                }
                1 => drop(redis.command(&["FLUSHALL"]).unwrap()),
                _ => redis.restart().unwrap(),
            }
            note();
        }
    });
    sound(&history);
    all_can_lock(&[&one, &two]);
}

/// The replica that takes over never saw the last locks, and the old primary, which slept, comes back and believes to be one.
#[test]
fn a_failover_that_loses_the_last_writes_makes_tokens_grow_nevertheless() {
    let watched = Watched::start().unwrap();
    let start = || watched.options("").timeout(Duration::from_millis(500)).start().unwrap();
    let (one, two) = (start(), start());
    all_can_lock(&[&one, &two]);
    let old = watched.primary().unwrap();
    let replicas = || watched.servers.iter().filter(|(port, _)| **port != old).map(|(_, server)| server);
    let history = record(&[one.socket(), two.socket()], |history| {
        thread::sleep(RUN / 8);
        replicas().for_each(|replica| replica.sigstop().unwrap());
        watched.servers[&old].command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
        thread::sleep(RUN / 8);
        history.lock().losses.push(BootClock.now());
        watched.servers[&old].sigstop().unwrap();
        replicas().for_each(|replica| replica.sigcont().unwrap());
        watched.wait_for_another(old).unwrap();
        history.lock().losses.push(BootClock.now());
        thread::sleep(RUN / 4);
        watched.servers[&old].sigcont().unwrap();
        thread::sleep(RUN / 4);
    });
    sound(&history);
    let epochs: BTreeSet<u64> = history.holds.iter().map(|hold| hold.token.epoch()).collect();
    assert!(epochs.len() > 1, "no lock was had behind the failover: {epochs:?}");
    all_can_lock(&[&one, &two]);
}

/// The Leases of locks, and that of the epoch, are deleted; the API server is away while leases end and Redis loses its data.
#[test]
fn leases_that_are_deleted_and_an_api_server_that_is_away_make_tokens_grow_nevertheless() {
    let (api, redis) = (LeaseServer::start().unwrap(), RedisServer::start().unwrap());
    let options = || SidecarOptions::redis(redis.socket()).timeout(Duration::from_millis(500));
    let (one, two) = (api.pod(options(), "web-1").start().unwrap(), api.pod(options(), "web-2").start().unwrap());
    let homes = [&one, &two].into_iter().flat_map(|sidecar| [REDIS, LEASES].map(|home| (sidecar.socket(), home)));
    let history = record_of(&homes.collect::<Vec<_>>(), |history| {
        let note = || history.lock().losses.push(BootClock.now());
        for _ in 0..3 {
            // Both kinds of locks are taken, and so again behind each disaster.
            for (prefix, _) in [REDIS, LEASES] {
                let taken = || history.lock().holds.iter().filter(|hold| hold.lock.starts_with(prefix)).count();
                let before = taken();
                eventually("locks are taken", MUCH, || {
                    ensure!(taken() > before + 3, "{} so far", taken());
                    Ok(())
                })
                .unwrap();
            }
            note();
            let since = BootClock.now();
            let deleted = api
                .names()
                .iter()
                .filter(|name| {
                    ["caddy-lock-", "caddy-epoch-"].iter().any(|kind| name.starts_with(kind)) && api.delete(name)
                })
                .count();
            note();
            assert!(deleted > 1, "Leases of locks and of the epoch");
            thread::sleep(RUN / 24);
            // The Lease of the epoch is missed by the one who connects anew.
            let list = redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).unwrap();
            let list = String::from_utf8(list).unwrap();
            if let Some(id) = list.split(' ').find_map(|field| field.split_once("id=")) {
                redis.command(&["CLIENT", "KILL", "ID", id.1]).unwrap();
            }
            thread::sleep(RUN / 8);
            api.set_away(true);
            thread::sleep(LEASE + LEASE / 4);
            note();
            redis.command(&["FLUSHALL"]).unwrap();
            note();
            history.lock().voids.push((since, BootClock.now()));
            thread::sleep(RUN / 12);
            api.set_away(false);
        }
    });
    sound(&history);
    all_can_lock(&[&one, &two]);
    for sidecar in [&one, &two] {
        can_lock(sidecar, "k0 BACKEND lease");
    }
}

/// The checker is no decoration: a lock that somebody removes behind its back is seen as two holders.
#[test]
fn a_removed_lock_that_nobody_wrote_down_is_caught() {
    let redis = RedisServer::start().unwrap();
    let (one, two) = (start(redis.socket()), start(redis.socket()));
    let history = record(&[one.socket(), two.socket()], |_| {
        for _ in 0..60 {
            thread::sleep(RUN / 120);
            remove(&redis, &["h0", "h1"]);
        }
    });
    let violations = history.violations(SLACK);
    assert!(violations.iter().any(|found| matches!(found, LockViolation::TwoHolders(_))), "{violations:?}");
    assert!(!violations.iter().any(|found| matches!(found, LockViolation::Token(_))), "{violations:?}");
}
