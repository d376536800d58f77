//! What coherence promises, each as a short story that ends in a [`Violation`](crate::world::Violation) when the promise
//! is broken.
//!
//! The stories are those by which the model of the design breaks when a guard is dropped; here they are forced on the real
//! sidecar and a real Redis, by holding back what would have to be late. `tests/coherence` runs them on the sidecar,
//! `tests/mutations.rs` on sidecars that lack a guard. A scenario decides by what clients see, never by a tight time.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    e2e::eventually,
    proxy::{
        BOTH, Class,
        Direction::{ToClient, ToServer},
    },
    sentinel::{Sentinel, Watched},
    world::{Client, LONG, MOMENT, Pod, SOON, Subject, World, must},
};

/// One story.
pub type Scenario = fn(&Subject) -> Result<()>;

/// A pause that no promise depends on: it lets what could go wrong go wrong.
fn pause(time: Duration) {
    thread::sleep(time);
}

/// What a request is answered, at once if it is so, else when the connections are healed.
fn now_or_healed(pod: &Pod, client: &mut Client, command: &str) -> Result<String> {
    client.send(command)?;
    now_or_healed_reply(pod, client)
}

fn now_or_healed_reply(pod: &Pod, client: &mut Client) -> Result<String> {
    if let Some(reply) = client.reply_within(MOMENT)? {
        return Ok(reply);
    }
    pod.proxy.heal();
    client.reply()
}

// === a session and its own requests ===

/// The reply to a write is followed by a read before any push has come.
pub fn own_write_is_read_back(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    ensure!(client.ask("SET k v1")? == "OK", "SET");
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "v1", format!("read your writes: SET k v1 was answered, then GET k answered {read}"))
}

/// The same between sessions of two workers, each with a copy in its own L1, hot and without faults.
pub fn writes_are_seen_by_the_other_worker(subject: &Subject) -> Result<()> {
    let world = World::with(subject, 1, |options| options.workers(2).max_staleness(LONG).timeout(LONG))?;
    let (mut writer, mut reader) = (world.cached("k", "v")?, world.pod().connect()?);
    for round in 0..40 {
        for _ in 0..15 {
            writer.ask("GET k")?;
            reader.ask("GET k")?;
        }
        writer.ask(&format!("SET k {round}"))?;
        let read = reader.ask("GET k")?;
        must(read == round.to_string(), format!("SET k {round} was answered, the other worker then read {read}"))?;
        std::mem::swap(&mut writer, &mut reader);
    }
    Ok(())
}

/// `SET k; GET k` in one write, with a copy of the old value at hand.
pub fn pipelined_read_follows_the_write(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    let replies = client.pipeline(&["SET k v1", "GET k"])?;
    must(replies == ["OK", "v1"], format!("SET k v1, GET k in one write were answered {replies:?}"))
}

/// `LCS k k; GET k` in one write, the push of the newer state being late: replies may not run backwards.
pub fn pipelined_read_follows_the_relayed_read(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    client.send_all(&["LCS k k", "GET k"])?;
    let first = now_or_healed_reply(world.pod(), &mut client)?;
    let second = now_or_healed_reply(world.pod(), &mut client)?;
    must(first == "v1" && second == "v1", format!("LCS k k, GET k in one write were answered {first}, {second}"))
}

/// `MGET k other; GET k` in one write: the MGET has to be read afresh and shows a newer state than the copy of k.
pub fn pipelined_read_follows_the_read_of_many(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    world.pod().proxy.wait_for_push(Class::Tracked)?;
    client.send_all(&["MGET k other", "GET k"])?;
    pause(MOMENT);
    world.pod().proxy.heal();
    let (many, one) = (client.reply()?, client.reply()?);
    let backwards = many == "[v1, (nil)]" && one != "v1";
    must(!backwards, format!("MGET k other, GET k in one write were answered {many}, {one}"))
}

/// `GETRANGE k; GET k` in one write, while an older flight of `GET k` is in the air: the GET may not join it.
pub fn pipelined_read_follows_another_read_of_the_key(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let (mut first, mut second) = (world.cached("other", "x")?, world.pod().connect()?);
    ensure!(world.foreign("SET k v0")? == "OK", "SET");
    let proxy = &world.pod().proxy;
    proxy.stall(Class::Tracked, ToClient);
    first.send("GET k")?;
    proxy.wait_for(Class::Tracked, ToClient, "v0")?;
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    proxy.wait_for_push(Class::Tracked)?;
    second.send_all(&["GETRANGE k 0 -1", "GET k"])?;
    pause(MOMENT);
    proxy.heal();
    first.reply()?;
    let (range, whole) = (second.reply()?, second.reply()?);
    let backwards = range == "v1" && whole != "v1";
    must(!backwards, format!("GETRANGE k, GET k in one write were answered {range}, {whole}"))
}

/// `GET k; SET k` in one write, the GET being held up on its way: it may not see the future.
pub fn pipelined_write_waits_for_the_read(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("other", "x")?;
    ensure!(world.foreign("SET k v0")? == "OK", "SET");
    world.pod().proxy.stall(Class::Tracked, ToServer);
    client.send_all(&["GET k", "SET k v1"])?;
    pause(MOMENT);
    world.pod().proxy.heal();
    let (read, written) = (client.reply()?, client.reply()?);
    must(read == "v0" && written == "OK", format!("GET k, SET k v1 in one write were answered {read}, {written}"))
}

// === what other connections showed ===

/// A relayed read shows a newer state than the copy; the next read may not be older.
pub fn no_step_back_after_a_relayed_read(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    let seen = client.ask("LCS k k")?;
    ensure!(seen == "v1", "LCS answers {seen}");
    let mut another = world.pod().connect()?;
    let read = now_or_healed(world.pod(), &mut another, "GET k")?;
    must(read == "v1", format!("monotonic reads: LCS k k showed v1, then GET k answered {read}"))
}

/// The same after a read within a transaction.
pub fn no_step_back_after_a_read_in_a_transaction(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    let seen = client.pipeline(&["MULTI", "GET k", "EXEC"])?;
    ensure!(seen[2] == "[v1]", "the transaction answers {seen:?}");
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "v1", format!("monotonic reads: the transaction showed v1, then GET k answered {read}"))
}

/// A write within a transaction is read back.
pub fn a_write_in_a_transaction_is_read_back(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    let done = client.pipeline(&["MULTI", "SET k v1", "EXEC"])?;
    ensure!(done[2] == "[OK]", "the transaction answers {done:?}");
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "v1", format!("read your writes: the transaction wrote v1, then GET k answered {read}"))
}

/// A write on a watching session's own connection is read back, also by others.
pub fn a_write_while_watching_is_read_back(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let (mut client, mut another) = (world.cached("k", "v0")?, world.pod().connect()?);
    world.pod().proxy.stall(Class::Tracked, ToClient);
    let done = client.pipeline(&["WATCH other", "SET k v1"])?;
    ensure!(done == ["OK", "OK"], "WATCH, SET answer {done:?}");
    let read = now_or_healed(world.pod(), &mut another, "GET k")?;
    must(read == "v1", format!("SET k v1 was answered while watching, then another session read {read}"))
}

/// A script writes a key that it does not declare.
pub fn a_script_write_is_read_back(subject: &Subject) -> Result<()> {
    unknown_write(subject, &["EVAL 'return redis.call(\"SET\", \"k\", \"v1\")' 0"], "a script")
}

/// The same within a transaction.
pub fn a_script_write_in_a_transaction_is_read_back(subject: &Subject) -> Result<()> {
    let script = "EVAL 'return redis.call(\"SET\", \"k\", \"v1\")' 0";
    unknown_write(subject, &["MULTI", script, "EXEC"], "a script in a transaction")
}

fn unknown_write(subject: &Subject, commands: &[&str], who: &str) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    client.send_all(commands)?;
    for _ in commands {
        let reply = now_or_healed_reply(world.pod(), &mut client)?;
        ensure!(!reply.starts_with("(error)"), "{commands:?} is answered {reply}");
    }
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "v1", format!("{who} wrote v1 and was answered, then GET k answered {read}"))
}

/// A session that has emptied the database reads nothing older, though the push has not come.
pub fn a_flushed_database_is_read_as_it_is(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    ensure!(client.ask("FLUSHALL")? == "OK", "FLUSHALL");
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "(nil)", format!("FLUSHALL was answered, then GET k answered {read}"))
}

// === fills and flights ===

/// A foreign write, then a barrier, then a read: many times, since a push that is applied late is late by little.
pub fn a_barrier_brings_every_foreign_write(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v")?;
    for round in 0..300 {
        ensure!(world.foreign(&format!("SET k {round}"))? == "OK", "SET");
        client.barrier()?;
        let read = client.ask("GET k")?;
        must(read == round.to_string(), format!("{round} was written, a barrier passed, then GET k answered {read}"))?;
    }
    Ok(())
}

/// A fill whose key was written while it was read is not kept.
pub fn a_dead_fill_is_not_kept(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let (mut reader, mut writer) = (world.cached("other", "x")?, world.pod().connect()?);
    ensure!(world.foreign("SET k v0")? == "OK", "SET");
    let proxy = &world.pod().proxy;
    proxy.stall(Class::Tracked, ToClient);
    reader.send("GET k")?;
    proxy.wait_for_replies(Class::Tracked, 2)?;
    let behind_the_fill = proxy.mark(Class::Tracked, ToClient);
    ensure!(writer.ask("SET k v1")? == "OK", "SET");
    proxy.wait_for_push(Class::Tracked)?;
    proxy.release(&behind_the_fill);
    reader.reply()?;
    let read = now_or_healed(world.pod(), &mut writer, "GET k")?;
    must(read == "v1", format!("SET k v1 was answered while k was being read; then GET k answered {read}"))
}

/// A reader does not join a flight whose key was written since.
pub fn a_dead_flight_is_not_joined(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let (mut reader, mut writer) = (world.cached("other", "x")?, world.pod().connect()?);
    ensure!(world.foreign("SET k v0")? == "OK", "SET");
    let proxy = &world.pod().proxy;
    proxy.stall(Class::Tracked, ToClient);
    reader.send("GET k")?;
    proxy.wait_for_replies(Class::Tracked, 2)?;
    ensure!(writer.ask("SET k v1")? == "OK", "SET");
    writer.send("GET k")?;
    pause(MOMENT);
    proxy.heal();
    reader.reply()?;
    let read = writer.reply()?;
    must(read == "v1", format!("SET k v1 was answered while k was being read; then GET k answered {read}"))
}

/// A reader does not join a flight that has been in the air for longer than the bound.
pub fn an_old_flight_is_not_joined(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(400);
    let world = World::with(subject, 1, |options| options.max_staleness(bound).timeout(LONG))?;
    let (mut first, mut second) = (world.cached("other", "x")?, world.pod().connect()?);
    ensure!(world.foreign("SET k v0")? == "OK", "SET");
    let proxy = &world.pod().proxy;
    proxy.stall(Class::Tracked, ToClient);
    first.send("GET k")?;
    proxy.wait_for(Class::Tracked, ToClient, "v0")?;
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    pause(bound + Duration::from_millis(100));
    second.send("GET k")?;
    pause(MOMENT);
    proxy.heal();
    first.reply()?;
    let read = second.reply()?;
    must(read == "v1", format!("k had been v1 for longer than {bound:?} when GET k was asked and answered {read}"))
}

// === the tracked connection ===

/// While the tracked connection is gone a key is written: its copy is dead when the connection is back.
pub fn a_loss_kills_every_copy(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    let proxy = &world.pod().proxy;
    let before = proxy.accepted(Class::Tracked);
    proxy.refuse(Class::Tracked);
    proxy.cut(Class::Tracked);
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    proxy.accept_again(Class::Tracked);
    proxy.wait_for_connection(Class::Tracked, before)?;
    world.pod().wait_until_coherent()?;
    client.barrier()?;
    let read = client.ask("GET k")?;
    must(read == "v1", format!("k was written while the tracked connection was lost; then GET k answered {read}"))
}

/// What is read on the second tracked connection is tracked as on the first.
pub fn tracking_goes_on_after_a_reconnect(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let mut client = world.cached("k", "v0")?;
    world.pod().reconnect()?;
    client.hold("k", "v0")?;
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    client.barrier()?;
    let read = client.ask("GET k")?;
    must(read == "v1", format!("after a reconnect k was written and a barrier passed; then GET k answered {read}"))
}

/// The tracked connection is half open: nothing is served beyond the bound.
pub fn a_half_open_link_keeps_the_bound(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(500);
    let timeout = Duration::from_secs(1);
    let world = World::with(subject, 1, |options| options.max_staleness(bound).timeout(timeout))?;
    let mut client = world.cached("k", "v0")?;
    for direction in BOTH {
        world.pod().proxy.stall(Class::Tracked, direction);
    }
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    pause(bound + Duration::from_millis(50));
    let read = client.ask("GET k")?;
    must(read == "v1", format!("k had been v1 for longer than {bound:?} when GET k was asked and answered {read}"))
}

/// A proof that was long on its way proves what was so when it was asked for.
pub fn a_late_proof_counts_from_its_sending(subject: &Subject) -> Result<()> {
    let bound = Duration::from_secs(2);
    let world = World::with(subject, 1, |options| options.max_staleness(bound).timeout(LONG))?;
    let mut client = world.cached("k", "v0")?;
    let proxy = &world.pod().proxy;
    pause(bound / 4 + Duration::from_millis(100));
    proxy.stall(Class::Tracked, ToClient);
    let read = client.ask("GET k")?;
    ensure!(read == "v0", "GET k answers {read}");
    proxy.wait_for_replies(Class::Tracked, 1)?;
    let behind_the_proof = proxy.mark(Class::Tracked, ToClient);
    ensure!(world.foreign("SET k v1")? == "OK", "SET");
    pause(bound + Duration::from_millis(100));
    proxy.release(&behind_the_proof);
    pause(MOMENT);
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "v1", format!("k had been v1 for longer than {bound:?} when GET k was asked and answered {read}"))
}

/// A copy does not outlive its key, whether or not the server says that it expired.
pub fn a_copy_expires_with_its_key(subject: &Subject) -> Result<()> {
    let world = World::calm(subject)?;
    let life = Duration::from_secs(3);
    ensure!(world.foreign(&format!("SET k v0 PX {}", life.as_millis()))? == "OK", "SET");
    let mut client = world.pod().connect()?;
    client.hold("k", "v0")?;
    world.pod().proxy.stall(Class::Tracked, ToClient);
    pause(life);
    let read = now_or_healed(world.pod(), &mut client, "GET k")?;
    must(read == "(nil)", format!("k had expired, then GET k answered {read}"))
}

/// A server that has become a replica proves nothing.
pub fn a_replica_proves_nothing(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(400);
    let world = World::with(subject, 1, |options| options.max_staleness(bound).timeout(LONG))?;
    let mut client = world.cached("k", "v0")?;
    ensure!(world.foreign("REPLICAOF 127.0.0.1 1")? == "OK", "REPLICAOF");
    // Reads go on, and with them probes.
    for _ in 0..10 {
        client.ask("GET k")?;
        pause(bound / 5);
    }
    let (served, reason) = (client.why("k", "served")?, client.why("k", "reason")?);
    must(served == "no", format!("the server is a replica, but CACHE.WHY k says served: {served}, {reason}"))
}

/// A write that timed out is executed later: whoever read in between learns of it within the bound.
pub fn a_late_write_of_a_lost_relay_is_seen(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(500);
    let world = World::with(subject, 1, |options| options.max_staleness(bound).timeout(Duration::from_secs(1)))?;
    let (mut writer, mut reader) = (world.cached("k", "v0")?, world.pod().connect()?);
    // The relay exists before it is held up.
    ensure!(writer.ask("SET k v0")? == "OK", "SET");
    world.pod().proxy.stall(Class::Relay, ToServer);
    let answer = writer.ask("SET k v1")?;
    ensure!(answer.starts_with("(error) NOTREADY") && answer.contains("may or may not"), "the write answers {answer}");
    reader.hold("k", "v0")?;
    world.pod().proxy.heal();
    pause(bound + MOMENT);
    let read = reader.ask("GET k")?;
    let direct = world.foreign("GET k")?;
    ensure!(direct == "v1", "the late write did not arrive: k is {direct}");
    must(read == "v1", format!("k had been v1 for longer than {bound:?} when GET k was asked and answered {read}"))
}

/// Under `Ttl` nobody tells what a script wrote.
pub fn an_untold_script_write_is_read_back(subject: &Subject) -> Result<()> {
    a_script_write_is_read_back(&subject.clone().consistency("coherence: Ttl"))
}

/// Where nothing is announced: a read of another kind shows what somebody wrote, then the first one is repeated.
pub fn no_step_back_behind_an_untold_read_of_another_kind(subject: &Subject) -> Result<()> {
    let subject = subject.clone().consistency("coherence: Ttl");
    let world = World::calm(&subject)?;
    let mut client = world.cached("k", "v0")?;
    ensure!(world.foreign("SET k v1")? == "OK", "a foreign SET");
    let shown = client.ask("GETRANGE k 0 -1")?;
    ensure!(shown == "v1", "GETRANGE answers {shown}");
    let then = client.ask("GET k")?;
    must(then == "v1", format!("GETRANGE was answered {shown}, then GET {then}"))
}

/// The primary's own word is not enough behind Sentinels.
pub fn without_a_majority_of_the_sentinels_nothing_is_proved(subject: &Subject) -> Result<()> {
    const BOUND: Duration = Duration::from_millis(500);
    let watched = Watched::start()?;
    let sidecar = subject.set(watched.options("")).max_staleness(BOUND).start()?;
    let mut client = Client(sidecar.connect()?);
    eventually("a write arrives", SOON, || {
        let told = client.ask("SET k v0")?;
        ensure!(told == "OK", "SET answers {told}");
        Ok(())
    })?;
    client.hold("k", "v0")?;
    watched.sentinels[1..].iter().try_for_each(Sentinel::sigstop)?;
    thread::sleep(BOUND);
    for _ in 0..20 {
        ensure!(client.ask("GET k")? == "v0", "reads go on");
        must(client.why("k", "served")? == "no", "a copy is served on the word of one Sentinel of three")?;
        thread::sleep(BOUND / 10);
    }
    ensure!(client.ask("SET k v1")? == "OK", "writes go on");
    watched.sentinels[1..].iter().try_for_each(Sentinel::sigcont)?;
    client.hold("k", "v1")
}

// === patterns ===

/// As long as this stands there, nobody sweeps.
const SWEEPER: &str = "caddy:default.local:sweeper";

/// Lets a pattern take effect.
fn invalidate(client: &mut Client, pattern: &str) -> Result<()> {
    let reply = client.ask(&format!("CACHE.INVALIDATE PATTERN {pattern}"))?;
    ensure!(reply.len() == 32, "CACHE.INVALIDATE PATTERN {pattern} answers {reply}");
    Ok(())
}

/// A pattern is acknowledged, and Redis has its keys still: nobody is answered with what they were.
pub fn a_pattern_takes_effect_at_once(subject: &Subject) -> Result<()> {
    let world = World::with(subject, 1, |options| options.workers(2).max_staleness(LONG).timeout(LONG))?;
    ensure!(world.foreign(&format!("SET {SWEEPER} nobody"))? == "OK", "SET");
    let (mut client, mut other) = (world.cached("k:1", "v0")?, world.pod().connect()?);
    ensure!(world.foreign("SET k:2 v0")? == "OK" && other.ask("GET k:1")? == "v0", "both have it");
    invalidate(&mut client, "k:*")?;
    let replies = [client.ask("GET k:1")?, other.ask("GET k:1")?, other.ask("GET k:2")?, client.ask("STRLEN k:1")?];
    must(
        replies == ["(nil)", "(nil)", "(nil)", "0"],
        format!("k:* was invalidated, then GET k:1 (twice), GET k:2, STRLEN k:1 answered {replies:?}"),
    )
}

/// What is written behind a pattern is read back, also when the sweep has been there.
pub fn what_is_written_behind_a_pattern_stays(subject: &Subject) -> Result<()> {
    let world = World::with(subject, 1, |options| options.workers(2).max_staleness(LONG).timeout(LONG))?;
    ensure!(world.foreign(&format!("SET {SWEEPER} nobody"))? == "OK", "SET");
    let (mut client, mut other) = (world.cached("k:1", "v0")?, world.pod().connect()?);
    ensure!(world.foreign("SET k:3 v0")? == "OK", "SET");
    invalidate(&mut client, "k:*")?;
    ensure!(client.ask("SET k:1 v1")? == "OK" && other.ask("SET k:2 v1")? == "OK", "SET");
    let read = other.ask("MGET k:1 k:2 k:3")?;
    must(read == "[v1, v1, (nil)]", format!("written behind the pattern, MGET k:1 k:2 k:3 answered {read}"))?;
    ensure!(world.foreign(&format!("DEL {SWEEPER}"))? == "1", "DEL");
    eventually("it is swept", SOON, || {
        ensure!(world.pod().sidecar.metric("caddy_active_patterns")? == 0, "a pattern is in force");
        Ok(())
    })?;
    let read = client.ask("MGET k:1 k:2 k:3")?;
    must(read == "[v1, v1, (nil)]", format!("swept, MGET k:1 k:2 k:3 answered {read}"))
}

/// A pattern that took effect at one pod is known at the other when its push has come, though no key was removed yet.
pub fn a_pattern_is_known_to_the_other_pod(subject: &Subject) -> Result<()> {
    let world = World::with(subject, 2, |options| options.max_staleness(LONG).timeout(LONG))?;
    ensure!(world.foreign(&format!("SET {SWEEPER} nobody"))? == "OK", "SET");
    let mut client = world.cached("k", "v0")?;
    let mut other = world.pods[1].connect()?;
    other.hold("k", "v0")?;
    invalidate(&mut client, "k")?;
    // Its push is in front of this reply.
    other.barrier()?;
    let read = other.ask("GET k")?;
    must(read == "(nil)", format!("k was invalidated at the other pod, then GET k answered {read}"))
}

/// The bound holds for patterns, too: without their index, what they have is not served for longer.
pub fn a_half_open_link_keeps_the_bound_of_patterns(subject: &Subject) -> Result<()> {
    let bound = Duration::from_millis(300);
    let world = World::with(subject, 2, |options| options.max_staleness(bound).timeout(Duration::from_secs(2)))?;
    ensure!(world.foreign(&format!("SET {SWEEPER} nobody"))? == "OK", "SET");
    let mut client = world.cached("k", "v0")?;
    let mut other = world.pods[1].connect()?;
    other.hold("k", "v0")?;
    world.pods[1].proxy.stall(Class::Tracked, ToClient);
    invalidate(&mut client, "k")?;
    pause(bound * 2);
    other.send("LCS k k")?;
    let read = now_or_healed_reply(&world.pods[1], &mut other)?;
    must(read != "v0", format!("k was invalidated {:?} ago, then LCS k k answered {read}", bound * 2))
}

/// The index of patterns is lost: whoever knows one enters it again.
pub fn a_lost_index_is_made_whole(subject: &Subject) -> Result<()> {
    let world = World::with(subject, 1, |options| options.max_staleness(LONG).timeout(LONG))?;
    ensure!(world.foreign(&format!("SET {SWEEPER} nobody"))? == "OK", "SET");
    let mut client = world.cached("k:1", "v0")?;
    invalidate(&mut client, "k:*")?;
    ensure!(world.foreign("SET k:2 v0")? == "OK", "SET");
    ensure!(world.foreign("DEL caddy:default.local:ranges")? == "1", "DEL");
    client.barrier()?;
    let read = client.ask("GET k:2")?;
    must(read == "(nil)", format!("a pattern was in force when its index was lost, then GET k:2 answered {read}"))?;
    // With everything else what Redis noted of written keys is gone, too: it is noted again.
    ensure!(client.ask("SET k:3 v1")? == "OK" && world.foreign("FLUSHALL")? == "OK", "SET, FLUSHALL");
    ensure!(world.foreign(&format!("SET {SWEEPER} nobody"))? == "OK", "SET");
    client.barrier()?;
    ensure!(client.ask("SET k:3 v2")? == "OK" && world.foreign(&format!("DEL {SWEEPER}"))? == "1", "SET, DEL");
    eventually("it is swept", SOON, || {
        ensure!(world.pod().sidecar.metric("caddy_active_patterns")? == 0, "a pattern is in force");
        Ok(())
    })?;
    let read = client.ask("GET k:3")?;
    must(read == "v2", format!("k:3 was written behind the FLUSHALL, then GET k:3 answered {read}"))
}
