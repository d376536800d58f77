//! Keyspace rules over a socket: what is kept, for how long, what is only counted, and what `CACHE.STATS` tells of it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use caddy_resp::Value;
use caddy_tests::{
    e2e::eventually,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON},
};

use crate::session;

pub(crate) fn start(redis: &RedisServer, rules: &str) -> Result<(Sidecar, Client)> {
    let options = SidecarOptions::redis(redis.socket()).max_staleness(LONG);
    let sidecar = options.section(&format!("keyspaces: [{rules}]")).start()?;
    eventually("copies are tracked", SOON, || {
        ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent");
        Ok(())
    })?;
    let client = session(&sidecar)?;
    Ok((sidecar, client))
}

/// One number of `CACHE.STATS keyspace`.
pub(crate) fn stat(client: &mut Client, keyspace: &str, field: &str) -> Result<i64> {
    let reply = client.0.request(&["CACHE.STATS", keyspace])?;
    let (value, _) = Value::decode(&reply)?;
    let number = value.field(field.as_bytes()).and_then(Value::as_integer);
    number.with_context(|| format!("no {field} in {}", String::from_utf8_lossy(&reply)))
}

/// How often Redis was asked for values.
fn asked(redis: &RedisServer) -> Result<u64> {
    let info = String::from_utf8(redis.command(&["INFO", "commandstats"])?)?;
    let calls = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")))?;
        line.split(',').next()?.parse::<u64>().ok()
    };
    Ok(["get", "mget", "exists", "strlen", "hget"].iter().filter_map(|name| calls(name)).sum())
}

/// Reads of all kinds, with writes of one's own and of others between them; all replies.
fn mixed_reads(redis: &RedisServer, client: &mut Client) -> Result<Vec<String>> {
    let mut replies = Vec::new();
    for round in 0..4 {
        redis.command(&["SET", "u:foreign", &round.to_string()])?;
        redis.command(&["HSET", "u:hash", "f", &round.to_string()])?;
        client.barrier()?;
        for command in ["GET u:1", "GET u:2", "GET u:none", "GET u:foreign", "HGET u:hash f", "STRLEN u:1"] {
            replies.push(client.ask(command)?);
            replies.push(client.ask(command)?);
        }
        replies.extend(client.pipeline(&["GET u:1", "GET u:2", "GET u:1", "EXISTS u:1 u:2"])?);
        replies.push(client.ask("MGET u:1 u:2")?);
        replies.push(client.ask("MGET u:1 u:3")?);
        replies.push(client.ask(&format!("SET u:2 {round}"))?);
        // Redis tells the tracked connection of this write, too: that must not end the fill that comes now.
        client.barrier()?;
        replies.push(client.ask("GET u:2")?);
    }
    Ok(replies)
}

/// What became of the same reads.
#[derive(Debug)]
struct Played {
    replies: Vec<String>,
    /// How often Redis was asked.
    asked: u64,
    hits: i64,
    misses: i64,
    would_hit: i64,
    would_miss: i64,
    fills: i64,
}

fn play(redis: &RedisServer, mode: &str) -> Result<Played> {
    redis.command(&["FLUSHALL"])?;
    redis.command(&["SET", "u:1", "one"])?;
    let (sidecar, mut client) = start(redis, &format!("{{name: users, match: \"u:*\", mode: {mode}}}"))?;
    let before = asked(redis)?;
    let replies = mixed_reads(redis, &mut client)?;
    let asked = asked(redis)? - before;
    let mut stat = |field| stat(&mut client, "users", field);
    let played = Played {
        replies,
        asked,
        hits: stat("hits_l1")? + stat("hits_l2")?,
        misses: stat("misses")?,
        would_hit: stat("would_hit")?,
        would_miss: stat("would_miss")?,
        fills: stat("fills")?,
    };
    ensure!(sidecar.metric("caddy_hits_total")? == played.hits.unsigned_abs(), "hits of the whole: {played:?}");
    let observed = played.would_hit + played.would_miss;
    ensure!(sidecar.metric("caddy_observed_total")? >= observed.unsigned_abs(), "observed of the whole: {played:?}");
    Ok(played)
}

#[test]
fn what_is_observed_is_answered_by_redis_and_counted_as_it_would_be_served() -> Result<()> {
    let redis = RedisServer::start()?;
    let (served, observed) = (play(&redis, "Serve")?, play(&redis, "Observe")?);
    ensure!(served.replies == observed.replies, "the same replies: {served:?} {observed:?}");
    ensure!((served.would_hit, served.would_miss) == (0, 0), "nothing is observed: {served:?}");
    ensure!((observed.hits, observed.misses) == (0, 0), "nothing is served: {observed:?}");
    ensure!(served.hits > 20 && served.misses > 8, "the reads are of both kinds: {served:?}");
    ensure!(observed.would_hit == served.hits, "{observed:?} counts the hits of {served:?}");
    ensure!(observed.would_miss == served.misses, "{observed:?} counts the misses of {served:?}");
    ensure!(observed.fills == served.fills, "copies live as long: {observed:?} {served:?}");
    // Two keys of an MGET are one question; reads of one key at one time may be, too.
    let reads = observed.replies.iter().filter(|reply| *reply != "OK").count() as u64;
    ensure!(observed.asked + 4 >= reads && served.asked < reads / 2, "Redis is asked: {observed:?}, {served:?}");
    Ok(())
}

#[test]
fn a_rule_bounds_the_life_of_copies_and_not_what_ttl_says() -> Result<()> {
    let redis = RedisServer::start()?;
    let (_sidecar, mut client) =
        start(&redis, "{name: short, match: \"s:*\", ttl: 1h, negativeTtl: 30m}, {name: rest, match: \"*\"}")?;
    redis.command(&["SET", "s:1", "v"])?;
    redis.command(&["SET", "s:2", "v", "EX", "100"])?;
    redis.command(&["SET", "other", "v"])?;
    for key in ["s:1", "s:2", "other"] {
        client.hold(key, "v")?;
    }
    ensure!(client.ask("GET s:none")? == "(nil)", "an absent key");
    let mut left = |key| anyhow::Ok(client.why(key, "ttl_ms")?.parse::<i64>()?);
    let (minute, hour) = (60_000, 3_600_000);
    ensure!((hour - 5 * minute..=hour).contains(&left("s:1")?), "the rule's bound");
    ensure!((80_000..=100_000).contains(&left("s:2")?), "the key's own expiry is earlier");
    ensure!((25 * minute..=30 * minute).contains(&left("s:none")?), "the rule's bound for absent keys");
    ensure!(left("other")? == -1, "another rule");
    ensure!(client.ask("TTL s:1")? == "-1" && client.ask("PTTL s:none")? == "-2", "TTL is Redis's");
    client.hold("s:2", "v")?;
    ensure!(["99", "100"].contains(&client.ask("TTL s:2")?.as_str()), "TTL is Redis's");
    Ok(())
}

#[test]
fn a_changed_rule_leaves_no_copy_that_it_would_not_have_kept() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecar, mut client) = start(&redis, "{name: before, match: \"k*\"}")?;
    redis.command(&["SET", "k", "v"])?;
    client.hold("k", "v")?;
    let old = fs::read_to_string(sidecar.config())?;
    for (rule, reason) in [
        ("{name: bounded, match: \"k*\", ttl: 1h}", "there is no copy"),
        ("{name: observed, match: \"k*\", mode: Observe}", "mode: Observe"),
    ] {
        sidecar.write_config(&old.replace("{name: before, match: \"k*\"}", rule))?;
        eventually("the rule is in force", SOON, || {
            let keyspace = client.why("k", "keyspace")?;
            ensure!(rule.contains(&format!("name: {keyspace},")), "CACHE.WHY says {keyspace}");
            let said = client.why("k", "reason")?;
            ensure!(said.contains(reason), "{rule}: CACHE.WHY says {said}");
            ensure!(client.why("k", "tier")?.is_empty(), "{rule}: a copy is left");
            Ok(())
        })?;
        ensure!(client.ask("GET k")? == "v", "GET");
    }
    ensure!(stat(&mut client, "before", "fills")? == 1 && stat(&mut client, "before", "l2_bytes")? == 0, "counts stay");
    Ok(())
}

#[test]
fn each_keyspace_has_its_own_figures() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecar, mut client) = start(&redis, "{name: users, match: \"user:*\"}")?;
    redis.command(&["SET", "user:1", &"v".repeat(1000)])?;
    for _ in 0..20 {
        client.ask("GET user:1")?;
    }
    client.ask("GET other")?;
    ensure!(stat(&mut client, "users", "hits_l1")? > 5 && stat(&mut client, "users", "misses")? == 1, "users");
    ensure!((1000..1400).contains(&stat(&mut client, "users", "l2_bytes")?), "bytes of users");
    ensure!(stat(&mut client, "*", "misses")? == 1 && stat(&mut client, "*", "l2_entries")? == 1, "the rest");
    let unknown = client.ask("CACHE.STATS nobody")?;
    ensure!(unknown.contains("no keyspace is named 'nobody'; there are *, users"), "{unknown}");
    for (request, name) in [
        ("CACHE.WHY", "cache.why"),
        ("CACHE.WHY a b", "cache.why"),
        ("CACHE.INVALIDATE KEY", "cache.invalidate|key"),
        ("CACHE.DEADLETTERS", "cache.deadletters"),
        ("LOCK.ACQUIRE", "lock.acquire"),
    ] {
        let told = client.ask(request)?;
        ensure!(told == format!("(error) ERR wrong number of arguments for '{name}' command"), "{request}: {told}");
    }
    let told = client.pipeline(&["MULTI", "SET k v", "LOCK.RELEASE x", "EXEC", "GET k"])?;
    ensure!(told[2].contains("'lock.release'") && told[3].contains("EXECABORT") && told[4] == "(nil)", "{told:?}");
    ensure!(client.ask("CACHE.STATS a b")?.contains("wrong number of arguments"), "too many arguments");
    ensure!(client.0.request(&["CACHE.STATS", "users"])?.starts_with(b"*"), "an array in RESP2");
    client.ask("HELLO 3")?;
    ensure!(client.0.request(&["CACHE.STATS", "users"])?.starts_with(b"%"), "a map in RESP3");
    let metrics = sidecar.metrics()?;
    ensure!(metrics.contains("caddy_keyspace_reads_total{keyspace=\"users\",outcome=\"misses\"} 1"), "{metrics}");
    Ok(())
}
