//! Redis dies, hangs or changes its role, or the sidecar sleeps: the bound is kept, errors help, and it mends by itself.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, MOMENT, SOON},
};

/// A sidecar without a proxy, and a session that holds a copy of `k`.
fn holding(redis: &RedisServer, options: impl FnOnce(SidecarOptions) -> SidecarOptions) -> Result<(Sidecar, Client)> {
    redis.command(&["SET", "k", "v0"])?;
    let sidecar = options(SidecarOptions::redis(redis.socket())).start()?;
    let mut client = Client(sidecar.connect()?);
    client.hold("k", "v0")?;
    Ok((sidecar, client))
}

/// Asks for the key all the time; no copy is served to a request that is sent after the bound, then NOTREADY says why.
fn served_until_the_bound(client: &mut Client, since: Moment, bound: Duration) -> Result<String> {
    loop {
        let asked = BootClock.now();
        let read = client.ask("GET k")?;
        if read != "v0" {
            return Ok(read);
        }
        let late = asked.since(since);
        ensure!(late <= bound, "a copy was served {late:?} after Redis had gone, the bound being {bound:?}");
    }
}

fn is_ready_again(client: &mut Client, value: &str) -> Result<()> {
    eventually("reads are answered again", SOON, || {
        let read = client.ask("GET k")?;
        ensure!(read == value, "GET k answers {read}");
        Ok(())
    })?;
    client.hold("k", value)
}

#[test]
fn a_killed_redis_leaves_no_copy_and_comes_back_as_it_is() -> Result<()> {
    let mut redis = RedisServer::start()?;
    let (sidecar, mut client) = holding(&redis, |options| options.max_staleness(Duration::from_millis(500)))?;
    redis.kill()?;
    let gone = BootClock.now();
    let refusal = served_until_the_bound(&mut client, gone, Duration::from_millis(500))?;
    ensure!(refusal.starts_with("(error) NOTREADY"), "GET k answers {refusal}");
    for command in ["GET k", "SET k v", "MGET k other", "MULTI"] {
        let refusal = Client(sidecar.connect()?).ask(command)?;
        ensure!(refusal.starts_with("(error) NOTREADY"), "{command} answers {refusal}");
        ensure!(refusal.contains("is it running, and is the address right?"), "{command} does not help: {refusal}");
    }
    ensure!(client.ask("PING")? == "PONG", "PING works without Redis");
    ensure!(client.why("k", "coherence")?.contains("nothing is cached"), "CACHE.WHY says what is wrong");
    redis.restart()?;
    is_ready_again(&mut client, "(nil)")
}

#[test]
fn a_hanging_redis_is_noticed_within_the_bound() -> Result<()> {
    let redis = RedisServer::start()?;
    let bound = Duration::from_millis(400);
    let (_sidecar, mut client) =
        holding(&redis, |options| options.max_staleness(bound).timeout(Duration::from_millis(700)))?;
    redis.sigstop()?;
    let gone = BootClock.now();
    let refusal = served_until_the_bound(&mut client, gone, bound)?;
    ensure!(refusal.starts_with("(error) NOTREADY"), "GET k answers {refusal}");
    redis.sigcont()?;
    is_ready_again(&mut client, "v0")
}

#[test]
fn a_suspended_sidecar_serves_nothing_old_when_it_wakes() -> Result<()> {
    let redis = RedisServer::start()?;
    let bound = Duration::from_millis(300);
    let (sidecar, mut client) = holding(&redis, |options| options.max_staleness(bound))?;
    sidecar.suspend()?;
    redis.command(&["SET", "k", "v1"])?;
    thread::sleep(bound + MOMENT);
    client.send("GET k")?;
    sidecar.resume()?;
    let read = client.reply()?;
    ensure!(read == "v1", "k had been v1 for longer than {bound:?}, and {read} was read");
    Ok(())
}

#[test]
fn a_demoted_redis_that_is_promoted_again_is_trusted_again() -> Result<()> {
    let redis = RedisServer::start()?;
    let bound = Duration::from_millis(300);
    let (sidecar, mut client) = holding(&redis, |options| options.max_staleness(bound))?;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"])?;
    eventually("the sidecar says that Redis is a replica", SOON, || {
        client.ask("GET k")?;
        let coherence = client.why("k", "coherence")?;
        ensure!(coherence.contains("replica") && coherence.contains("primary"), "CACHE.WHY says {coherence}");
        Ok(())
    })?;
    ensure!(sidecar.metric("caddy_coherent")? == 0, "caddy_coherent tells it too");
    redis.command(&["REPLICAOF", "NO", "ONE"])?;
    client.hold("k", "v0")?;
    ensure!(client.why("k", "coherence")? == "tracked", "CACHE.WHY says {}", client.why("k", "coherence")?);
    ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent tells it too");
    Ok(())
}

#[test]
fn a_redis_that_may_be_trusted_again_is_so_where_nobody_reads() -> Result<()> {
    let redis = RedisServer::start()?;
    let bound = Duration::from_millis(300);
    let (sidecar, mut client) = holding(&redis, |options| options.max_staleness(bound))?;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"])?;
    eventually("the sidecar says that Redis is a replica", SOON, || {
        client.ask("GET k")?;
        ensure!(sidecar.metric("caddy_coherent")? == 0, "caddy_coherent is 1");
        Ok(())
    })?;
    redis.command(&["REPLICAOF", "NO", "ONE"])?;
    eventually("the sidecar has asked by itself", SOON, || {
        ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent is 0: {}", sidecar.log());
        Ok(())
    })?;
    Ok(())
}

// === copies that cannot be proved ===

/// A pod whose Redis has stopped answering for longer than the bound, and sessions of both protocols.
fn uncertain(consistency: &str) -> Result<(RedisServer, Sidecar, Client, Client)> {
    let redis = RedisServer::start()?;
    let bound = Duration::from_millis(300);
    let (sidecar, old) = holding(&redis, |options| {
        options.max_staleness(bound).timeout(Duration::from_millis(500)).consistency(consistency)
    })?;
    let mut new = Client(sidecar.connect()?);
    new.ask("HELLO 3")?;
    redis.sigstop()?;
    thread::sleep(bound + Duration::from_millis(50));
    Ok((redis, sidecar, old, new))
}

#[test]
fn a_stale_copy_is_served_marked_or_not_at_all() -> Result<()> {
    let (redis, sidecar, mut old, mut new) = uncertain("onUncertain: ServeStale")?;
    let marked = new.ask("GET k")?;
    ensure!(marked == "{stale: true} v0", "RESP3 gets {marked}");
    ensure!(sidecar.metric("caddy_served_unproven_total")? > 0, "it is counted");
    let refused = old.ask("GET k")?;
    ensure!(refused.starts_with("(error) NOTREADY"), "RESP2 cannot be told that a reply is stale; it gets {refused}");
    // Nor does its question, which nobody answered, take the copy from those who can.
    let marked = new.ask("GET k")?;
    ensure!(marked == "{stale: true} v0", "then RESP3 gets {marked}");
    redis.sigcont()?;
    is_ready_again(&mut old, "v0")?;
    let proven = new.ask("GET k")?;
    ensure!(proven == "v0", "a current copy is not marked: {proven}");
    Ok(())
}

#[test]
fn an_unmarked_stale_copy_is_served_where_that_is_allowed() -> Result<()> {
    let (_redis, _sidecar, mut old, _new) = uncertain("onUncertain: ServeStale, allowUnmarked: true")?;
    let read = old.ask("GET k")?;
    ensure!(read == "v0", "RESP2 gets {read}");
    Ok(())
}

#[test]
fn an_uncertain_copy_is_an_error_where_that_is_wanted() -> Result<()> {
    let (redis, _sidecar, mut old, mut new) = uncertain("onUncertain: Fail")?;
    for client in [&mut old, &mut new] {
        let refused = client.ask("GET k")?;
        ensure!(refused.starts_with("(error) STALE") && refused.contains("retry"), "GET k answers {refused}");
    }
    redis.sigcont()?;
    is_ready_again(&mut old, "v0")
}
