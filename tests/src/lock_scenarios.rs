//! What locks promise, each as a short story that ends in a [`Violation`](crate::world::Violation) when the promise is broken.
//!
//! `tests/locks` runs the stories on the sidecar, `tests/mutations.rs` on sidecars that lack a guard. What is compared is
//! what a reply says, never how long something took: where a moment came too late for the story, it is told again.

use std::{thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use caddy_engine::{BootClock, Clock};

use crate::{
    e2e::eventually,
    lease_server::LeaseServer,
    proxy::{Class, Direction, Proxy},
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, SOON, Subject, must},
};

/// What is asked for, and how much of it a sidecar calls its own.
const LEASE: Duration = Duration::from_secs(20);
const VALIDITY: Duration = Duration::from_millis(19_800);
/// How long an answer, or a turn, takes to come.
const LATE: Duration = Duration::from_millis(600);
/// Behind this a waiter may have asked again.
const ASKS_AGAIN: Duration = Duration::from_millis(950);
/// A lock in a Lease, whose duration is two seconds.
const LEASED: &str = "LOCK.ACQUIRE l BACKEND lease LEASE 1600 WAIT 0";
const RENEWED_FOR: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(200);
/// How often a story is told anew whose moment was missed.
const TRIES: usize = 20;

/// `[token, ms]`.
struct Granted {
    token: String,
    remaining: Duration,
}

fn granted(reply: &str) -> Result<Granted> {
    let fields = reply.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|rest| rest.split_once(", "));
    let (token, millis) = fields.with_context(|| format!("no lock: {reply}"))?;
    Ok(Granted { token: token.to_owned(), remaining: Duration::from_millis(millis.parse()?) })
}

fn client(sidecar: &Sidecar) -> Result<Client> {
    Ok(Client(sidecar.connect()?))
}

fn let_go(client: &mut Client, name: &str, token: &str) -> Result<()> {
    let reply = client.ask(&format!("LOCK.RELEASE {name} {token}"))?;
    ensure!(reply == "0", "LOCK.RELEASE is answered with {reply}");
    Ok(())
}

/// The answer is on its way for long: the lock may be had since it was asked for.
pub fn a_lock_counts_from_the_sending_of_its_request(subject: &Subject) -> Result<()> {
    let redis = RedisServer::start()?;
    let proxy = Proxy::start(redis.socket())?;
    let sidecar = subject.options(proxy.socket()).start()?;
    let mut app = client(&sidecar)?;
    let ask = format!("LOCK.ACQUIRE l LEASE {}", LEASE.as_millis());
    // Over connections that are there.
    let first = granted(&app.ask(&ask)?)?;
    let_go(&mut app, "l", &first.token)?;
    proxy.delay(Class::Relay, Direction::ToClient, LATE);
    let late = granted(&app.ask(&ask)?)?;
    must(
        late.remaining + LATE <= VALIDITY,
        format!("a lock whose answer took {LATE:?} is said to be held for {:?} of {VALIDITY:?}", late.remaining),
    )
}

/// The message that it was handed over does not say when: it may be had since its owner queued.
pub fn a_lock_that_was_handed_over_counts_from_its_queueing(subject: &Subject) -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = subject.options(redis.socket()).start()?;
    let (mut holder, mut waiter, mut watcher) = (client(&sidecar)?, client(&sidecar)?, client(&sidecar)?);
    for number in 0..TRIES {
        let name = format!("l{number}");
        let held = granted(&holder.ask(&format!("LOCK.ACQUIRE {name}"))?)?;
        let asked = BootClock.now();
        waiter.send(&format!("LOCK.ACQUIRE {name} WAIT 60000 LEASE {}", LEASE.as_millis()))?;
        while !watcher.ask(&format!("LOCK.LIST {name}"))?.ends_with(", 1]]") {}
        thread::sleep(LATE);
        let_go(&mut holder, &name, &held.token)?;
        let is_in_time = BootClock.now().since(asked) < ASKS_AGAIN;
        let handed = granted(&waiter.reply()?)?;
        let_go(&mut waiter, &name, &handed.token)?;
        if is_in_time {
            return must(
                handed.remaining + LATE <= VALIDITY,
                format!(
                    "a lock is said to be held for {:?} of {VALIDITY:?}, {LATE:?} behind its queueing",
                    handed.remaining
                ),
            );
        }
    }
    bail!("the machine was too slow for the story in {TRIES} tries")
}

/// Whoever gave up is not in the way of the others.
pub fn an_acquisition_that_timed_out_is_handed_nothing(subject: &Subject) -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = subject.options(redis.socket()).start()?;
    let (mut holder, mut waiter, mut next) = (client(&sidecar)?, client(&sidecar)?, client(&sidecar)?);
    let held = granted(&holder.ask("LOCK.ACQUIRE l")?)?;
    let gave_up = waiter.ask("LOCK.ACQUIRE l WAIT 50 LEASE 60000")?;
    ensure!(gave_up.contains("LOCKTIMEOUT"), "{gave_up}");
    let_go(&mut holder, "l", &held.token)?;
    let reply = next.ask("LOCK.ACQUIRE l WAIT 10000")?;
    must(granted(&reply).is_ok(), format!("a lock that its holder let go and nobody waits for is not had: {reply}"))
}

/// Nobody issues a token of an epoch that the Lease does not have.
pub fn an_epoch_is_agreed_on_before_its_first_token(subject: &Subject) -> Result<()> {
    let (api, redis) = (LeaseServer::start()?, RedisServer::start()?);
    let sidecar = api.pod(subject.options(redis.socket()), "web-1").start()?;
    let mut app = client(&sidecar)?;
    // The sidecar's identity is read in the background.
    let (token, _) = eventually("a lock is had", SOON, || Ok(granted(&app.ask("LOCK.ACQUIRE l")?)?.token))?;
    let epoch: u64 = token.split('-').next().unwrap_or_default().parse().context("the epoch of a token")?;
    let lease = api.lease("caddy-epoch-local").unwrap_or_default();
    let agreed = lease["metadata"]["annotations"]["cache.caddy.dev/epoch"].as_str().unwrap_or("none").to_owned();
    must(agreed == epoch.to_string(), format!("a token of epoch {epoch} was issued; agreed on is {agreed}"))
}

/// Whoever renews its Lease keeps it, however long somebody else has wanted it.
pub fn a_lease_that_is_renewed_is_not_taken_over(subject: &Subject) -> Result<()> {
    let api = LeaseServer::start()?;
    let start = |name| api.pod(subject.set(SidecarOptions::embedded()), name).start();
    let (here, there) = (start("web-1")?, start("web-2")?);
    let (mut holder, mut other) = (client(&here)?, client(&there)?);
    let (first, _) = eventually("a lock is had", SOON, || granted(&holder.ask(LEASED)?))?;
    // Behind this it would be over twice, had it not been renewed.
    let enough = BootClock.now() + RENEWED_FOR;
    let mut token = first.token;
    while BootClock.now() < enough {
        thread::sleep(PACE);
        let asked = BootClock.now();
        let renewed = granted(&holder.ask(&format!("LOCK.RENEW l {token}"))?);
        let taken = granted(&other.ask(LEASED)?);
        match (renewed, taken) {
            (Ok(renewed), Ok(taken)) => {
                must(
                    BootClock.now() >= asked + renewed.remaining,
                    format!("{} was granted while {} was held for {:?}", taken.token, renewed.token, renewed.remaining),
                )?;
                // The machine slept: the lease was over.
                let_go(&mut other, "l", &taken.token)?;
            }
            (Err(_), Ok(taken)) => let_go(&mut other, "l", &taken.token)?,
            (Ok(_), Err(_)) => continue,
            (Err(_), Err(_)) => {}
        }
        // It was lost, which is told once.
        token = eventually("a lock is had again", SOON, || granted(&holder.ask(LEASED)?))?.0.token;
    }
    Ok(())
}
