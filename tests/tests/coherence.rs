//! C1, C3, C4 and C6 on the real sidecar, in front of a real Redis, through a proxy that holds things back.
//!
//! `CADDY_SEED` repeats a random run, `CADDY_SOAK_SECONDS` makes one after the other.

use std::{env, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_tests::{
    chaos::{self, Run},
    e2e::eventually,
    proxy::{Class, Direction},
    redis::RedisServer,
    scenarios,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, MOMENT, SOON, Subject, World},
};

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> anyhow::Result<()> {
            scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    own_write_is_read_back
    writes_are_seen_by_the_other_worker
    pipelined_read_follows_the_write
    pipelined_read_follows_the_relayed_read
    pipelined_read_follows_the_read_of_many
    pipelined_read_follows_another_read_of_the_key
    pipelined_write_waits_for_the_read
    no_step_back_after_a_relayed_read
    no_step_back_after_a_read_in_a_transaction
    a_write_in_a_transaction_is_read_back
    a_write_while_watching_is_read_back
    a_script_write_is_read_back
    a_script_write_in_a_transaction_is_read_back
    a_swapped_database_is_read_as_it_is
    a_barrier_brings_every_foreign_write
    a_dead_fill_is_not_kept
    a_dead_flight_is_not_joined
    an_old_flight_is_not_joined
    a_loss_kills_every_copy
    tracking_goes_on_after_a_reconnect
    a_half_open_link_keeps_the_bound
    a_late_proof_counts_from_its_sending
    a_copy_expires_with_its_key
    a_replica_proves_nothing
    a_late_write_of_a_lost_relay_is_seen
}

/// How long a random run takes, and how long a soak goes on with one after the other.
const RUN: Duration = Duration::from_secs(12);

fn number(variable: &str) -> Result<Option<u64>> {
    let text = env::var(variable).ok();
    text.map(|text| text.parse().with_context(|| format!("{variable}={text} is not a number"))).transpose()
}

#[test]
fn nothing_is_violated_in_random_runs() -> Result<()> {
    let clock = BootClock;
    let soak = Duration::from_secs(number("CADDY_SOAK_SECONDS")?.unwrap_or(0));
    let mut seed = number("CADDY_SEED")?.unwrap_or_else(|| clock.now().as_nanos() % 1_000_000);
    let started = clock.now();
    loop {
        let summary = chaos::play(&Subject::good(), Run { seed, duration: RUN })?;
        println!("seed {seed}: {summary:?}");
        ensure!(summary.operations > 500, "too little happened to mean anything: {summary:?}");
        ensure!(summary.hits > 100, "too little was answered from copies to mean anything: {summary:?}");
        seed += 1;
        if clock.now().since(started) >= soak {
            return Ok(());
        }
    }
}

// === several sidecars ===

const BOUND: Duration = Duration::from_millis(200);

/// Two pods with two workers each, and sessions on every worker: `[pod][worker]`.
fn two_pods(bound: Duration) -> Result<(World, Vec<Vec<Client>>)> {
    let world = World::with(&Subject::good(), 2, |options| options.workers(2).max_staleness(bound))?;
    // Connections are given to the workers in turn.
    let sessions = world.pods.iter().map(|pod| (0..2).map(|_| pod.connect()).collect()).collect::<Result<_>>()?;
    Ok((world, sessions))
}

#[test]
fn a_write_in_one_pod_is_seen_in_the_other_at_once_behind_a_barrier() -> Result<()> {
    let (_world, mut sessions) = two_pods(LONG)?;
    for round in 0..60 {
        let value = round.to_string();
        let (writer, reader) = (round % 2, (round + 1) % 2);
        ensure!(sessions[writer][0].ask(&format!("SET k {value}"))? == "OK", "SET");
        sessions[reader][round % 2].barrier()?;
        for session in sessions.iter_mut().flatten() {
            let read = session.ask("GET k")?;
            ensure!(
                read == value,
                "round {round}: {read} was read after {value} had been written and a barrier passed"
            );
        }
    }
    Ok(())
}

/// Reads until the value is there; a read that was asked for after the bound had passed must show it.
fn seen_within(client: &mut Client, key: &str, value: &str, written: Moment, bound: Duration) -> Result<()> {
    loop {
        let asked = BootClock.now();
        let read = client.ask(&format!("GET {key}"))?;
        if read == value {
            return Ok(());
        }
        let late = asked.since(written);
        ensure!(late <= bound, "{read} was read {late:?} after {value} had been written, the bound being {bound:?}");
    }
}

#[test]
fn a_write_is_seen_everywhere_within_the_bound() -> Result<()> {
    let (world, mut sessions) = two_pods(BOUND)?;
    for round in 0..60 {
        let value = round.to_string();
        let answered = match round % 3 {
            0 => sessions[0][1].ask(&format!("SET k {value}"))?,
            1 => sessions[1][0].ask(&format!("SET k {value}"))?,
            _ => world.foreign(&format!("SET k {value}"))?,
        };
        let written = BootClock.now();
        ensure!(answered == "OK", "SET answers {answered}");
        for session in sessions.iter_mut().flatten() {
            seen_within(session, "k", &value, written, BOUND)?;
        }
    }
    Ok(())
}

#[test]
fn everything_is_seen_gone_after_a_flush() -> Result<()> {
    let (world, mut sessions) = two_pods(LONG)?;
    for flush_in_pod in [true, false] {
        ensure!(world.foreign("MSET a 1 b 2")? == "OK", "MSET");
        for session in sessions.iter_mut().flatten() {
            session.barrier()?;
            ensure!(session.pipeline(&["GET a", "GET b"])? == ["1", "2"], "GET");
        }
        let answer = if flush_in_pod { sessions[0][0].ask("FLUSHALL")? } else { world.foreign("FLUSHALL")? };
        ensure!(answer == "OK", "FLUSHALL answers {answer}");
        if flush_in_pod {
            let read = sessions[0][1].ask("GET a")?;
            ensure!(read == "(nil)", "the pod that flushed reads {read}");
        }
        for session in sessions.iter_mut().flatten() {
            session.barrier()?;
            let read = session.pipeline(&["GET a", "GET b"])?;
            ensure!(read == ["(nil)", "(nil)"], "after FLUSHALL (in a pod: {flush_in_pod}) {read:?} is read");
        }
    }
    Ok(())
}

#[test]
fn a_write_to_a_key_known_to_be_absent_is_seen() -> Result<()> {
    let (world, mut sessions) = two_pods(LONG)?;
    for session in sessions.iter_mut().flatten() {
        ensure!(session.pipeline(&["GET k", "GET k"])? == ["(nil)", "(nil)"], "GET of an absent key");
    }
    ensure!(sessions[0][0].why("k", "served")? == "yes", "an absent key is cached as such");
    ensure!(world.foreign("SET k v")? == "OK", "SET");
    for session in sessions.iter_mut().flatten() {
        session.barrier()?;
        let read = session.ask("GET k")?;
        ensure!(read == "v", "a key that was absent is read as {read} after it was written");
    }
    Ok(())
}

// === expiry ===

#[test]
fn the_time_to_live_is_never_longer_than_in_redis() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut client = world.pod().connect()?;
    for life in [400, 1500] {
        ensure!(world.foreign(&format!("SET k v PX {life}"))? == "OK", "SET");
        let end = BootClock.now() + Duration::from_millis(life);
        client.barrier()?;
        loop {
            let before: i64 = world.foreign("PTTL k")?.parse()?;
            let asked = BootClock.now();
            let (value, ttl) = (client.ask("GET k")?, client.ask("PTTL k")?);
            let ttl: i64 = ttl.parse()?;
            // A millisecond of rounding; what Redis said before is more than what it would say now.
            ensure!(ttl <= before.max(-2) + 1, "PTTL is {ttl} in the pod after it was {before} in Redis");
            if value == "(nil)" {
                break;
            }
            ensure!(asked <= end, "{value} was read {:?} after its end", asked.since(end));
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

// === Redis away ===

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

// === sessions with a connection of their own ===

#[test]
fn transactions_watch_and_abort_as_in_redis() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut client, mut other) = (world.cached("k", "0")?, world.pod().connect()?);
    ensure!(client.pipeline(&["WATCH k", "GET k", "MULTI", "INCR k"])? == ["OK", "0", "OK", "QUEUED"], "WATCH");
    ensure!(other.ask("SET k 5")? == "OK", "SET");
    let aborted = client.ask("EXEC")?;
    ensure!(aborted == "(nil)", "EXEC after a foreign write answers {aborted}");
    ensure!(client.ask("GET k")? == "5", "GET after the abort");
    let done = client.pipeline(&["MULTI", "INCR k", "GET k", "EXEC", "GET k"])?;
    ensure!(done == ["OK", "QUEUED", "QUEUED", "[6, 6]", "6"], "the transaction answers {done:?}");
    let dropped = client.pipeline(&["MULTI", "INCR k", "DISCARD", "GET k"])?;
    ensure!(dropped == ["OK", "QUEUED", "OK", "6"], "the discarded transaction answers {dropped:?}");
    ensure!(other.ask("GET k")? == "6", "GET in another session");
    Ok(())
}

#[test]
fn a_blocked_session_holds_up_nobody_else() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut blocked, mut other) = (world.pod().connect()?, world.cached("k", "v")?);
    blocked.send("BLPOP list 0")?;
    ensure!(blocked.reply_within(MOMENT)?.is_none(), "BLPOP of an empty list waits");
    ensure!(other.ask("GET k")? == "v" && other.ask("RPUSH list x")? == "1", "others go on");
    ensure!(blocked.reply()? == "[list, x]", "BLPOP gets what was pushed");
    ensure!(blocked.ask("GET k")? == "v", "and goes on");
    Ok(())
}

#[test]
fn subscribers_get_their_messages_in_both_protocols() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut old, mut new, mut other) = (world.pod().connect()?, world.pod().connect()?, world.cached("k", "v")?);
    ensure!(old.ask("SUBSCRIBE news")? == "[subscribe, news, 1]", "SUBSCRIBE in RESP2");
    new.ask("HELLO 3")?;
    new.send("SUBSCRIBE news")?;
    new.0.receive()?;
    ensure!(other.ask("PUBLISH news hello")? == "2", "PUBLISH reaches both");
    ensure!(old.reply()? == "[message, news, hello]", "a message in RESP2");
    let (_, push) = new.0.receive()?;
    ensure!(push.starts_with(b">3"), "a message in RESP3 is a push: {}", String::from_utf8_lossy(&push));
    // A subscriber in RESP3 may also ask; in RESP2 it may once it has unsubscribed.
    ensure!(new.ask("GET k")? == "v", "GET of a RESP3 subscriber");
    ensure!(old.ask("UNSUBSCRIBE")? == "[unsubscribe, news, 0]", "UNSUBSCRIBE in RESP2");
    ensure!(old.ask("GET k")? == "v", "GET after UNSUBSCRIBE");
    Ok(())
}

#[test]
fn the_apps_own_tracking_is_served_by_redis() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut client = world.cached("k", "v0")?;
    client.ask("HELLO 3")?;
    ensure!(client.ask("CLIENT TRACKING ON")? == "OK", "CLIENT TRACKING");
    ensure!(client.ask("GET k")? == "v0", "GET");
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    let (_, push) = client.0.receive()?;
    ensure!(push.starts_with(b">2\r\n$10\r\ninvalidate"), "the push is {}", String::from_utf8_lossy(&push));
    ensure!(client.ask("GET k")? == "v1", "GET after the push");
    Ok(())
}

#[test]
fn databases_are_kept_apart() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let (mut zero, mut two) = (world.cached("k", "in 0".replace(' ', "-").as_str())?, world.pod().connect()?);
    ensure!(two.pipeline(&["SELECT 2", "SET k in-2", "GET k"])? == ["OK", "OK", "in-2"], "database 2");
    eventually("database 2 is cached too", SOON, || {
        two.ask("GET k")?;
        ensure!(two.why("k", "served")? == "yes", "{}", two.why("k", "reason")?);
        Ok(())
    })?;
    ensure!(zero.ask("GET k")? == "in-0" && two.ask("GET k")? == "in-2", "each has its own");
    ensure!(two.ask("DEL k")? == "1", "DEL");
    ensure!(zero.ask("GET k")? == "in-0" && two.ask("GET k")? == "(nil)", "each has its own");
    let refused = two.ask("SELECT 99")?;
    ensure!(refused.starts_with("(error) ERR"), "SELECT 99 answers {refused}");
    ensure!(two.ask("SET where here")? == "OK" && zero.ask("GET where")? == "(nil)", "the session stays in database 2");
    Ok(())
}

#[test]
fn one_miss_of_many_asks_redis_once() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut sessions = (0..8).map(|_| world.pod().connect()).collect::<Result<Vec<_>>>()?;
    ensure!(world.foreign("SET k v")? == "OK" && world.foreign("CONFIG RESETSTAT")? == "OK", "SET");
    world.pod().proxy.stall(Class::Tracked, Direction::ToServer);
    for session in &mut sessions {
        session.send("GET k")?;
    }
    eventually("all have asked", SOON, || {
        let joined = world.pod().sidecar.metric("caddy_reads_below_total")?;
        ensure!(joined >= 8, "{joined} reads have led or joined a flight");
        Ok(())
    })?;
    world.pod().proxy.heal();
    for session in &mut sessions {
        ensure!(session.reply()? == "v", "GET");
    }
    let stats = world.foreign("INFO commandstats")?;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls=")?.split(',').next());
    ensure!(calls == Some("1"), "Redis was asked {calls:?} times");
    Ok(())
}
