//! Invalidations by pattern over sockets: in front of a Redis, of a cluster, and without one.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use caddy_engine::invalidation::{KeyPattern, PatternKind};
use caddy_resp::Value;
use caddy_tests::{
    e2e::eventually,
    proxy::Class,
    random::Random,
    redis::RedisServer,
    redis_cluster::RedisCluster,
    scenarios,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, SOON, Subject, World, show},
};

use crate::session;

fn start(redis: &RedisServer) -> Result<(Sidecar, Client)> {
    let sidecar = SidecarOptions::redis(redis.socket()).workers(2).start()?;
    let client = session(&sidecar)?;
    Ok((sidecar, client))
}

fn invalidate(client: &mut Client, kind: PatternKind, text: &str) -> Result<()> {
    let kind = if kind == PatternKind::Glob { "PATTERN" } else { "REGEX" };
    let reply = show(&client.0.request(&["CACHE.INVALIDATE", kind, text])?);
    ensure!(reply.len() == 32, "CACHE.INVALIDATE {kind} {text} answers {reply}");
    Ok(())
}

/// Waits until nothing is in force any more.
fn swept(sidecar: &Sidecar) -> Result<()> {
    eventually("it is swept", SOON, || {
        ensure!(sidecar.metric("caddy_active_patterns")? == 0, "a pattern is in force");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn what_a_pattern_has_is_gone_at_once_and_swept_from_redis() -> Result<()> {
    scenarios::a_pattern_takes_effect_at_once(&Subject::good())?;
    scenarios::what_is_written_behind_a_pattern_stays(&Subject::good())?;
    scenarios::a_pattern_is_known_to_the_other_pod(&Subject::good())?;
    scenarios::a_lost_index_is_made_whole(&Subject::good())
}

#[test]
fn bad_patterns_are_told_what_to_do() -> Result<()> {
    let redis = RedisServer::start()?;
    let (_sidecar, mut client) = start(&redis)?;
    for (command, said) in [
        ("CACHE.INVALIDATE PATTERN ''", "(error) ERR the pattern is empty"),
        ("CACHE.INVALIDATE REGEX a(b", "(error) ERR the regular expression cannot be used: unclosed group"),
        ("CACHE.INVALIDATE REGEX ((\\w{100}){100}){10}", "256 KiB"),
        ("CACHE.INVALIDATE PATTERN a b", "(error) ERR"),
        ("CACHE.INVALIDATE PATTERN", "(error) ERR"),
        ("CACHE.INVALIDATE PATTERN a* MODE EXPIRE", "(error) ERR"),
    ] {
        let reply = client.ask(command)?;
        ensure!(reply.contains(said), "{command} answers {reply}");
    }
    let long = "a".repeat(1025);
    let reply = show(&client.0.request(&["CACHE.INVALIDATE", "PATTERN", &long])?);
    ensure!(reply.contains("1025 bytes; at most 1024"), "{reply}");
    Ok(())
}

#[test]
fn everything_is_everything_but_what_the_product_keeps_there() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecar, mut client) = start(&redis)?;
    for n in 0..2000 {
        redis.command(&["SET", &format!("k:{n}"), "v"])?;
    }
    redis.command(&["SET", "caddy:mine", "v"])?;
    ensure!(client.ask("GET k:1")? == "v", "GET");
    let token = client.ask("LOCK.ACQUIRE a")?;
    ensure!(!token.contains("error"), "LOCK.ACQUIRE answers {token}");
    invalidate(&mut client, PatternKind::Glob, "*")?;
    ensure!(client.ask("MGET k:1 k:2")? == "[(nil), (nil)]", "nothing from before");
    swept(&sidecar)?;
    ensure!(client.ask("EXISTS k:77")? == "0" && redis.command(&["EXISTS", "k:1999"])? == b":0\r\n", "all is swept");
    ensure!(redis.command(&["EXISTS", "caddy:mine"])? == b":1\r\n", "what the product keeps is left alone");
    ensure!(client.ask("LOCK.INFO a")?.contains("EXCLUSIVE"), "the lock is held: {}", client.ask("LOCK.INFO a")?);
    Ok(())
}

#[test]
fn without_redis_nothing_is_half_done_and_the_error_says_so() -> Result<()> {
    let mut redis = RedisServer::start()?;
    let (_sidecar, mut client) = start(&redis)?;
    ensure!(client.ask("SET a v")? == "OK", "SET");
    redis.kill()?;
    let reply = client.ask("CACHE.INVALIDATE PATTERN a*")?;
    ensure!(reply.starts_with("(error) NOTREADY"), "it answers {reply}");
    redis.restart()?;
    eventually("it takes patterns again", SOON, || {
        let reply = client.ask("CACHE.INVALIDATE PATTERN a*")?;
        ensure!(reply.len() == 32, "it answers {reply}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn an_embedded_l3_has_patterns_too() -> Result<()> {
    let sidecar = SidecarOptions::embedded().start()?;
    let mut client = session(&sidecar)?;
    for key in ["u:1", "u:2", "o:1"] {
        client.ask(&format!("SET {key} v"))?;
        client.ask(&format!("GET {key}"))?;
    }
    invalidate(&mut client, PatternKind::Regex, "^u:[12]$")?;
    ensure!(client.ask("MGET u:1 u:2 o:1")? == "[(nil), (nil), v]", "what matches is gone");
    Ok(())
}

#[test]
fn events_are_told_on_a_stream_and_a_channel() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecar, mut client) = start(&redis)?;
    let mut listener = Client(redis.connect()?);
    listener.ask("HELLO 3")?;
    listener.send("SUBSCRIBE caddy:default.local:events")?;
    client.ask("SET user:1 v")?;
    ensure!(client.ask("CACHE.INVALIDATE PATTERN user:* REASON 'prices changed'")?.len() == 32, "it takes effect");
    swept(&sidecar)?;
    let events = eventually("both events are on the stream", SOON, || {
        let reply = redis.command(&["XRANGE", "caddy:default.local:events", "-", "+"])?;
        let text = String::from_utf8_lossy(&reply).into_owned();
        ensure!(text.contains("\"event\":\"swept\""), "{text}");
        Ok(text)
    })?
    .0;
    for part in [
        "\"kind\":\"pattern\"",
        "\"subjects\":[\"user:*\"]",
        "\"note\":\"prices changed\"",
        "\"reason\":\"command\"",
        "\"removed\":1",
    ] {
        ensure!(events.contains(part), "{part} is missing in {events}");
    }
    Ok(())
}

#[test]
fn a_pattern_that_was_lost_while_nobody_looked_is_entered_again() -> Result<()> {
    let world = World::with(&Subject::good(), 1, |options| options)?;
    world.redis.command(&["SET", SWEEPER, "nobody"])?;
    let mut client = world.pod().connect()?;
    invalidate(&mut client, PatternKind::Glob, "k:*")?;
    world.pod().proxy.cut(Class::Tracked);
    // As a failover to a replica that never heard of it leaves things.
    let forget = "for _, f in ipairs(redis.call('HKEYS', KEYS[1])) do \
                  if f ~= 'version' then redis.call('HDEL', KEYS[1], f) end end return 1";
    world.redis.command(&["EVAL", forget, "1", "caddy:default.local:ranges"])?;
    world.redis.command(&["SET", "k:2", "v0"])?;
    world.pod().proxy.accept_again(Class::Tracked);
    eventually("it is in force again", SOON, || {
        let index = show(&world.redis.command(&["HVALS", "caddy:default.local:ranges"])?);
        ensure!(index.contains("k:*"), "the index has {index}");
        ensure!(client.ask("GET k:2")? == "(nil)", "and was all the while");
        Ok(())
    })?;
    Ok(())
}

/// As long as this stands there, nobody sweeps.
const SWEEPER: &str = "caddy:default.local:sweeper";

/// A random run with two pods of two workers each against a map: a read shows the last write of its key, or nothing if a
/// pattern that has the key came later. In rounds: patterns stay in force for a while, then all are swept.
#[test]
fn random_patterns_against_a_model() -> Result<()> {
    let seed = std::env::var("CADDY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let mut random = Random::new(seed);
    let redis = RedisServer::start()?;
    let (first, second) = (start(&redis)?.0, start(&redis)?.0);
    let mut clients = [session(&first)?, session(&first)?, session(&second)?, session(&second)?];
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let (mut history, mut patterns) = (Vec::new(), 0);
    for step in 0..600 {
        if step % 100 == 0 {
            redis.command(&["SET", SWEEPER, "nobody"])?;
        }
        let key = format!("{}{}", ["a", "b", "ab"][random.below(3)], random.below(6));
        let who = random.below(clients.len());
        match random.below(10) {
            0 => {
                let choices = [
                    (PatternKind::Glob, "a*"),
                    (PatternKind::Glob, "?[0-3]"),
                    (PatternKind::Regex, "^a.?[135]$"),
                    (PatternKind::Regex, "b"),
                ];
                let (kind, text) = choices[random.below(choices.len())];
                invalidate(&mut clients[who], kind, text)?;
                history.push(format!("{step}: {who} invalidates {text}"));
                let pattern = KeyPattern::new(kind, text.as_bytes())?;
                model.retain(|key, _| !pattern.matches(key.as_bytes()));
                patterns += 1;
                let other = if who < 2 { &second } else { &first };
                eventually("the other pod hears of it", SOON, || {
                    let heard = other.log().matches("is in force").count();
                    ensure!(heard == patterns, "of {heard} patterns");
                    Ok(())
                })?;
            }
            1..=3 => {
                ensure!(clients[who].ask(&format!("SET {key} {step}"))? == "OK", "SET");
                history.push(format!("{step}: {who} sets {key}"));
                model.insert(key, step.to_string());
            }
            _ => {
                let wanted = model.get(&key).map_or("(nil)", String::as_str);
                // What the other pod wrote is seen when its push has come.
                eventually(format!("seed {seed}: GET {key} answers {wanted}; {history:#?}"), SOON, || {
                    let read = clients[who].ask(&format!("GET {key}"))?;
                    ensure!(read == wanted, "{read}");
                    Ok(())
                })?;
            }
        }
        if step % 100 == 99 {
            redis.command(&["DEL", SWEEPER])?;
            swept(&first)?;
            swept(&second)?;
            for n in 0..6 {
                for key in ["a", "b", "ab"].map(|prefix| format!("{prefix}{n}")) {
                    let found = show(&redis.command(&["GET", &key])?);
                    let wanted = model.get(&key).map_or("(nil)", String::as_str);
                    ensure!(found == wanted, "seed {seed}: Redis has {key}={found}, not {wanted}; {history:#?}");
                }
            }
        }
    }
    Ok(())
}

/// Many sessions on two pods of two workers, each with keys and patterns of its own, while tracked connections are lost and
/// all is swept: to itself, each looks alone. Its reads show its last write, or nothing behind its last pattern.
#[test]
fn sessions_with_patterns_of_their_own_beside_each_other_and_lost_connections() -> Result<()> {
    let world = World::with(&Subject::good(), 2, |options| options.workers(2))?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sessions: Vec<_> = (0..8)
            .map(|n| {
                let pod = &world.pods[n % 2];
                scope.spawn(move || alone(&mut pod.connect()?, n))
            })
            .collect();
        scope.spawn(|| {
            let mut random = Random::new(11);
            while !is_over.load(Ordering::Relaxed) {
                let proxy = &world.pods[random.below(2)].proxy;
                proxy.cut(Class::Tracked);
                proxy.accept_again(Class::Tracked);
                thread::sleep(Duration::from_millis(20 + random.below(60) as u64));
            }
        });
        let outcomes: Vec<Result<()>> =
            sessions.into_iter().map(|session| session.join().map_err(|_| anyhow!("a session panicked"))?).collect();
        is_over.store(true, Ordering::Relaxed);
        outcomes.into_iter().collect()
    })
}

/// One session's own program.
fn alone(client: &mut Client, session: usize) -> Result<()> {
    let mut random = Random::new(100 + session as u64);
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let mut history = Vec::new();
    for step in 0..250 {
        let key = format!("s{session}:{}", random.below(8));
        let command = match random.below(12) {
            0 => format!("CACHE.INVALIDATE PATTERN s{session}:[0-{}]", random.below(8)),
            1..=3 => format!("SET {key} {step}"),
            4 => format!("APPEND {key} +"),
            5 => format!("MGET {key} s{session}:0"),
            _ => format!("GET {key}"),
        };
        let mut reply = client.ask(&command)?;
        history.push(format!("{command} -> {reply}"));
        while command.starts_with("CACHE.INVALIDATE") && reply.starts_with("(error) NOTREADY") {
            // The connection was lost once too often: it says that repeating is harmless.
            reply = client.ask(&command)?;
            history.push(format!("again -> {reply}"));
        }
        if reply.starts_with("(error) LIMIT") {
            // Too many are in force, on a machine that sweeps slowly: this one is not.
            continue;
        }
        let shown = |key: &str| model.get(key).cloned().unwrap_or_else(|| "(nil)".to_owned());
        let wanted = match command.split(' ').next().unwrap_or_default() {
            "GET" => shown(&key),
            "MGET" => format!("[{}, {}]", shown(&key), shown(&format!("s{session}:0"))),
            "SET" => "OK".to_owned(),
            "APPEND" => (model.get(&key).map_or(0, String::len) + 1).to_string(),
            _ => reply.clone(),
        };
        ensure!(reply == wanted, "session {session}: {command} answers {reply}, not {wanted}; {history:#?}");
        match command.split(' ').next().unwrap_or_default() {
            "SET" => drop(model.insert(key, step.to_string())),
            "APPEND" => model.entry(key).or_default().push('+'),
            "CACHE.INVALIDATE" => {
                ensure!(reply.len() == 32, "{command} answers {reply}");
                let pattern = command.rsplit(' ').next().unwrap_or_default();
                let pattern = KeyPattern::glob(pattern.as_bytes())?;
                model.retain(|key, _| !pattern.matches(key.as_bytes()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn in_a_cluster_every_script_touches_one_slot_and_every_primary_is_swept() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let sidecar = SidecarOptions::l3_redis(&cluster.l3()).workers(2).start()?;
    let mut client = session(&sidecar)?;
    for n in 0..300 {
        cluster.ask(&format!("SET k:{n} v"))?;
    }
    eventually("it reads", SOON, || {
        ensure!(client.ask("GET k:7")? == "v", "GET k:7");
        Ok(())
    })?;
    invalidate(&mut client, PatternKind::Glob, "k:*")?;
    ensure!(client.ask("MGET k:1 k:2 k:3")? == "[(nil), (nil), (nil)]", "nothing from before");
    ensure!(client.ask("SET k:4 new")? == "OK" && client.ask("GET k:4")? == "new", "what is written behind it stays");
    swept(&sidecar)?;
    ensure!(client.ask("GET k:4")? == "new", "also behind the sweep");
    for n in 0..300 {
        let found = cluster.ask(&format!("EXISTS k:{n}"))?;
        ensure!(found == if n == 4 { "1" } else { "0" }, "k:{n}: {found}");
    }
    Ok(())
}

#[test]
fn sessions_of_all_kinds_see_nothing_from_before() -> Result<()> {
    let redis = RedisServer::start()?;
    let (_sidecar, mut client) = start(&redis)?;
    for (fill, read, wanted) in [
        ("HSET h f v", "HGETALL h", "[]"),
        ("RPUSH l a b", "LRANGE l 0 -1", "[]"),
        ("SET s v", "LCS s s", ""),
        ("SET n 41", "INCR n", "1"),
        ("SET g v", "GETDEL g", "(nil)"),
    ] {
        client.ask(fill)?;
        invalidate(&mut client, PatternKind::Regex, "^[hlsng]$")?;
        let read_back = client.ask(read)?;
        ensure!(read_back == wanted, "{read} answers {read_back}");
    }
    client.ask("SET t v")?;
    invalidate(&mut client, PatternKind::Glob, "t")?;
    let replies = client.pipeline(&["MULTI", "GET t", "SET t w", "EXEC", "GET t"])?;
    ensure!(replies[3] == "[(nil), OK]" && replies[4] == "w", "a transaction answers {replies:?}");
    Ok(())
}

#[test]
fn a_thousand_patterns_at_once_are_refused_and_say_why() -> Result<()> {
    let redis = RedisServer::start()?;
    // Nobody sweeps: the claim is somebody else's.
    redis.command(&["SET", SWEEPER, "nobody"])?;
    let (_sidecar, mut client) = start(&redis)?;
    let replies: Vec<String> =
        (0..66).map(|n| client.ask(&format!("CACHE.INVALIDATE PATTERN p{n}:*"))).collect::<Result<_>>()?;
    ensure!(replies[63].len() == 32, "{}", replies[63]);
    let last = replies.last().context("a reply")?;
    ensure!(last.contains("LIMIT 64 patterns are being swept already"), "{last}");
    let reply = client.0.request(&["CACHE.INVALIDATIONS"])?;
    let (value, _) = Value::decode(&reply)?;
    ensure!(value.as_elements().map_or(0, <[Value<'_>]>::len) == 64, "{}", show(&reply));
    Ok(())
}
