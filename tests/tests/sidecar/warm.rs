//! `CACHE.HOT` and `CACHE.WARM` over a socket.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use caddy_resp::Value;
use caddy_tests::{
    e2e::eventually,
    load_scenarios::{Loaded, path},
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, LONG, SOON, Subject},
};

use crate::session;

fn start(redis: &RedisServer, section: &str) -> Result<Sidecar> {
    let options = SidecarOptions::redis(redis.socket()).max_staleness(LONG);
    let sidecar = options.section(section).start()?;
    coherent(&sidecar)?;
    Ok(sidecar)
}

fn coherent(sidecar: &Sidecar) -> Result<()> {
    eventually("copies are tracked", SOON, || {
        ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent");
        Ok(())
    })?;
    Ok(())
}

/// What `CACHE.HOT` shows: the requests, as text, with their rates and the bytes of their copies.
fn hot(client: &mut Client, arguments: &[&str]) -> Result<Vec<(String, f64, i64)>> {
    let reply = client.0.request(&[&["CACHE.HOT"], arguments].concat())?;
    let (value, _) = Value::decode(&reply)?;
    let shown = value.as_elements().with_context(|| String::from_utf8_lossy(&reply).into_owned())?;
    shown
        .iter()
        .map(|entry| {
            let words = entry.field(b"read").and_then(Value::as_elements).context("read")?;
            let words = words.iter().filter_map(Value::as_bytes).map(String::from_utf8_lossy);
            let rate = entry.field(b"reads_per_second").and_then(Value::as_bytes).context("reads_per_second")?;
            let bytes = entry.field(b"bytes").and_then(Value::as_integer).context("bytes")?;
            Ok((words.collect::<Vec<_>>().join(" "), std::str::from_utf8(rate)?.parse()?, bytes))
        })
        .collect()
}

#[test]
fn what_is_read_most_is_shown_first() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis, "")?;
    let mut client = session(&sidecar)?;
    for line in ["SET a 1", "SET b 22", "HSET h f v"] {
        client.ask(line)?;
    }
    for (line, times) in [("GET a", 30), ("GET absent", 12), ("HGETALL h", 20), ("MGET b a", 7)] {
        for _ in 0..times {
            client.ask(line)?;
        }
    }
    let shown = hot(&mut client, &[])?;
    let names: Vec<&str> = shown.iter().map(|(name, ..)| name.as_str()).collect();
    ensure!(names == ["get a", "hgetall h", "get absent", "get b"], "{shown:?}");
    ensure!(shown.iter().all(|(_, rate, _)| *rate > 0.0), "{shown:?}");
    ensure!((shown[0].1 / shown[3].1 - 37.0 / 7.0).abs() < 0.5, "rates are as the reads were: {shown:?}");
    ensure!(shown[0].2 > 0, "the copy's size: {shown:?}");
    ensure!(hot(&mut client, &["1"])?.len() == 1);
    for bad in ["CACHE.HOT 0", "CACHE.HOT x", "CACHE.HOT 1 2"] {
        ensure!(client.ask(bad)?.contains("ERR"), "{bad}");
    }
    Ok(())
}

#[test]
fn a_key_that_is_warmed_is_answered_from_its_copy() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis, "keyspaces: [{name: queues, match: \"queue:*\", cache: \"Off\"}]")?;
    let mut client = session(&sidecar)?;
    let keys: Vec<String> = (0..200).map(|n| format!("k:{n}")).collect();
    for key in &keys {
        redis.command(&["SET", key, "value"])?;
    }
    redis.command(&["LPUSH", "list", "x"])?;
    redis.command(&["SET", "queue:1", "x"])?;
    let all = keys.iter().map(String::as_str);
    let warm: Vec<&str> = std::iter::once("CACHE.WARM").chain(all).chain(["absent", "list", "queue:1"]).collect();
    let reply = client.0.request(&warm)?;
    ensure!(reply == b":201\r\n", "all values, and that one is absent: {}", String::from_utf8_lossy(&reply));
    let misses = sidecar.metric("caddy_misses_total")?;
    for key in &keys {
        ensure!(client.ask(&format!("GET {key}"))? == "value");
    }
    ensure!(sidecar.metric("caddy_misses_total")? == misses, "all were hits");
    // They are copies like others.
    redis.command(&["SET", "k:7", "newer"])?;
    eventually("a foreign write is seen", SOON, || {
        ensure!(client.ask("GET k:7")? == "newer");
        Ok(())
    })?;
    // Behind the session's own write it reads what that left.
    let replies = client.pipeline(&["SET k:8 mine", "CACHE.WARM k:8", "GET k:8"])?;
    ensure!(replies[0] == "OK" && replies[2] == "mine", "{replies:?}");
    let many: Vec<String> = std::iter::once("CACHE.WARM".to_owned()).chain((0..1001).map(|n| n.to_string())).collect();
    ensure!(client.0.request(&many)?.starts_with(b"-LIMIT"));
    Ok(())
}

#[test]
fn what_redis_lacks_is_loaded_when_it_is_warmed() -> Result<()> {
    let loaded = Loaded::start(&Subject::good(), 1, ", ttl: 1h, negativeTtl: 1h", "")?;
    let mut client = loaded.client()?;
    loaded.origin.set("/user%3A1", "Ada");
    ensure!(client.ask("CACHE.WARM user:1 user:2")? == "2");
    ensure!(loaded.origin.requests_for(&path("user:1")) == 1);
    ensure!(client.ask("GET user:1")? == "Ada" && client.ask("GET user:2")? == "(nil)");
    ensure!(loaded.origin.requests() == 2, "each key is loaded once");
    Ok(())
}

#[test]
fn a_user_is_shown_and_may_warm_what_that_user_may_read() -> Result<()> {
    let (redis, files) = (RedisServer::start()?, tempfile::tempdir()?);
    let file = |user: &str| files.path().join(user);
    for user in ["default", "bob", "eve"] {
        fs::write(file(user), user)?;
    }
    let user = |name: &str, commands: &str| {
        format!("{{name: {name}, passwordFile: {}, keys: [\"a:*\"], commands: [{commands}]}}", file(name).display())
    };
    let users = [user("bob", "\"+@all\""), user("eve", "\"+@all\", \"-get\"")].join(", ");
    let section = format!("auth: {{passwordFile: {}, users: [{users}]}}", file("default").display());
    let sidecar = start(&redis, &section)?;
    let mut admin = session(&sidecar)?;
    admin.ask("AUTH default")?;
    for line in ["SET a:1 x", "SET b:1 x", "HSET a:h f v", "GET a:1", "GET b:1", "HGET a:h f"] {
        admin.ask(line)?;
    }
    ensure!(hot(&mut admin, &[])?.len() == 3);
    let (mut bob, mut eve) = (session(&sidecar)?, session(&sidecar)?);
    ensure!(bob.ask("CACHE.HOT")?.contains("NOAUTH"));
    ensure!(bob.ask("AUTH bob bob")? == "OK" && eve.ask("AUTH eve eve")? == "OK");
    let mut names: Vec<_> = hot(&mut bob, &[])?.into_iter().map(|(name, ..)| name).collect();
    names.sort();
    ensure!(names == ["get a:1", "hget a:h f"], "{names:?}");
    ensure!(hot(&mut eve, &[])?.len() == 1, "who may not GET is not shown what is got");
    ensure!(bob.ask("CACHE.WARM a:1")? == "1");
    for (client, line) in [(&mut bob, "CACHE.WARM a:1 b:1"), (&mut eve, "CACHE.WARM a:1")] {
        ensure!(client.ask(line)?.contains("NOPERM"), "{line}");
    }
    Ok(())
}

// === warming ===

const WARMING: &str = "warming: {enabled: true, ratePerSecond: 1000";

/// A sidecar that has been asked for `k:1` to `k:100` and `h`, and ended.
fn experienced(redis: &RedisServer) -> Result<()> {
    for n in 0..100 {
        redis.command(&["SET", &format!("k:{n}"), "value"])?;
    }
    redis.command(&["HSET", "h", "f", "v"])?;
    redis.command(&["SET", "queue:1", "x"])?;
    let rules = "keyspaces: [{name: queues, match: \"queue:*\", cache: \"Off\"}]";
    let mut sidecar = start(redis, &format!("{WARMING}}}\n{rules}"))?;
    let mut client = session(&sidecar)?;
    for _ in 0..3 {
        for n in 0..100 {
            client.ask(&format!("GET k:{n}"))?;
        }
        client.ask("HGETALL h")?;
        client.ask("GET queue:1")?;
    }
    drop(client);
    sidecar.terminate()?;
    eventually("it ends", SOON, || {
        ensure!(sidecar.exited()?.is_some());
        Ok(())
    })?;
    Ok(())
}

fn warmed(sidecar: &Sidecar) -> Result<()> {
    eventually("warming is over", SOON, || {
        ensure!(sidecar.metric("caddy_warming_percent")? == 100, "{}", sidecar.metrics()?);
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_new_sidecar_has_what_others_are_asked_for() -> Result<()> {
    let redis = RedisServer::start()?;
    experienced(&redis)?;
    let keys = String::from_utf8(redis.command(&["KEYS", "caddy:*:hot:*"])?)?;
    ensure!(keys.starts_with("*1\r\n"), "one record: {keys}");
    let name = keys.lines().nth(2).context("its name")?.to_owned();
    let record = redis.command(&["GET", &name])?;
    ensure!(!record.windows(5).any(|window| window == b"value"), "names, and no values");
    ensure!(!record.windows(7).any(|window| window == b"queue:1"), "nothing that is not cached");
    let life: i64 = Client(redis.connect()?).ask(&format!("PTTL {name}"))?.parse()?;
    ensure!((1..=3_600_000).contains(&life), "{life}");

    let sidecar = start(&redis, &format!("{WARMING}, startupShare: 100, startupDeadline: 10m}}"))?;
    warmed(&sidecar)?;
    ensure!(sidecar.metric("caddy_warming_reads_total{outcome=\"pulled\"}")? == 101, "{}", sidecar.metrics()?);
    let (mut client, misses) = (session(&sidecar)?, sidecar.metric("caddy_misses_total")?);
    for n in 0..100 {
        ensure!(client.ask(&format!("GET k:{n}"))? == "value");
    }
    client.ask("HGETALL h")?;
    ensure!(sidecar.metric("caddy_misses_total")? == misses, "all of them are hits");
    ensure!(sidecar.http("/startupz")?.contains("200 OK"));
    // They follow what is written.
    client.ask("SET k:1 mine")?;
    ensure!(client.ask("GET k:1")? == "mine");
    Ok(())
}

#[test]
fn warming_is_off_unless_it_is_asked_for_and_keeps_within_its_bounds() -> Result<()> {
    let redis = RedisServer::start()?;
    experienced(&redis)?;
    let cold = start(&redis, "")?;
    ensure!(cold.http("/startupz")?.contains("200 OK"), "it waits for nothing");
    ensure!(cold.metric("caddy_l2_entries")? == 0);
    // No more than was asked for, and none that the rules do not let in.
    let few = start(&redis, &format!("{WARMING}, keys: 10}}"))?;
    warmed(&few)?;
    ensure!(few.metric("caddy_l2_entries")? == 10, "{}", few.metrics()?);
    let rules = "keyspaces: [{name: k, match: \"k:*\", cache: \"Off\"}]";
    let barred = start(&redis, &format!("{WARMING}}}\n{rules}"))?;
    warmed(&barred)?;
    ensure!(barred.metric("caddy_l2_entries")? == 1, "{}", barred.metrics()?);
    // What somebody else has put there is no order.
    let keys = String::from_utf8(redis.command(&["KEYS", "caddy:*:hot:*"])?)?;
    let name = keys.lines().nth(2).context("its name")?;
    let mut forged = Vec::new();
    caddy_resp::encode::array_header(&mut forged, 2);
    caddy_resp::encode::bulk(&mut forged, b"caddy-hot-1");
    caddy_resp::encode::array_header(&mut forged, 4);
    (0..3).for_each(|_| caddy_resp::encode::integer(&mut forged, 0));
    caddy_resp::encode::command(&mut forged, ["FLUSHALL"]);
    redis.command(&[b"SET", name.as_bytes(), &forged])?;
    let misled = start(&redis, &format!("{WARMING}}}"))?;
    warmed(&misled)?;
    ensure!(misled.metric("caddy_l2_entries")? == 0 && redis.command(&["EXISTS", "k:1"])? == b":1\r\n");
    Ok(())
}

#[test]
fn the_startup_probe_waits_for_no_longer_than_its_deadline() -> Result<()> {
    let mut redis = RedisServer::start()?;
    experienced(&redis)?;
    // A hundred seconds at this pace, were it not for the deadline.
    let slow = "warming: {enabled: true, ratePerSecond: 1, startupShare: 100, startupDeadline: 1s}";
    let sidecar = start(&redis, slow)?;
    ensure!(session(&sidecar)?.ask("GET k:50")? == "value", "apps are served all the while");
    eventually("the deadline is over", SOON, || {
        ensure!(sidecar.http("/startupz")?.contains("200 OK"));
        Ok(())
    })?;
    ensure!(sidecar.metric("caddy_warming_percent")? < 100);
    // Nor for a Redis that is away.
    redis.kill()?;
    let alone = SidecarOptions::redis(redis.socket()).section(slow).start()?;
    let refused = alone.http("/startupz").err().context("it waits")?;
    ensure!(refused.to_string().contains("503"), "{refused}");
    eventually("the deadline is over", SOON, || {
        ensure!(alone.http("/startupz")?.contains("200 OK"));
        Ok(())
    })?;
    Ok(())
}
