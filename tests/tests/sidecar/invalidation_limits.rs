//! Bad input to invalidations: what is too long, too many, too wide, or comes while Redis is away, gets an error that says
//! so, and changes nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    guard_scenarios::token,
    proxy,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, SOON, Subject, World, show},
};

use crate::session;

/// By name, since no two invalidations of one thing repeat one another's effect.
const TAG: &str = "caddy:default.local:g:t:t";

fn ask(client: &mut Client, words: &[&str]) -> Result<String> {
    Ok(show(&client.0.request(words)?))
}

#[test]
fn a_tag_of_64_kib_is_refused_wherever_it_is_named() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("CACHE.SET k v TAGS 1 t")? == "OK" && client.ask("GET k")? == "v", "a value with a tag");
    let long = "t".repeat(64 << 10);
    for words in [
        &["CACHE.SET", "k", "other", "TAGS", "2", "t", &long][..],
        &["CACHE.GET", "none", "WITHMETA", "TAGS", "1", &long],
        &["CACHE.INVALIDATE", "TAG", "t", &long],
    ] {
        let reply = ask(&mut client, words)?;
        ensure!(reply.starts_with("(error) LIMIT a tag has 65536 bytes; at most 512"), "{}: {reply}", words[0]);
    }
    ensure!(client.ask("GET k")? == "v", "nothing was written, and the good tag beside it not invalidated");
    let longest = "t".repeat(512);
    ensure!(ask(&mut client, &["CACHE.SET", "k", "w", "TAGS", "1", &longest])? == "OK", "the longest tag is taken");
    ensure!(
        ask(&mut client, &["CACHE.INVALIDATE", "TAG", &longest])? == "1" && client.ask("GET k")? == "(nil)",
        "used"
    );
    Ok(())
}

#[test]
fn more_tags_and_parents_than_a_hit_could_look_at_are_refused() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    let named = |option: &'static str, count: usize| {
        let mut words = vec!["CACHE.SET".to_owned(), "k".into(), "v".into(), option.into(), count.to_string()];
        words.extend((0..count).map(|n| format!("name:{n}")));
        words
    };
    let mut set = |words: &[String]| ask(&mut client, &words.iter().map(String::as_str).collect::<Vec<_>>());
    for option in ["TAGS", "DEPENDS"] {
        let reply = set(&named(option, 10_000))?;
        ensure!(
            reply.starts_with("(error) LIMIT the value would depend on 10000 tags and parents"),
            "{option}: {reply}"
        );
    }
    // Everything and the keyspace count, too.
    let reply = set(&named("TAGS", 255))?;
    ensure!(reply.starts_with("(error) LIMIT the value would depend on 257"), "{reply}");
    ensure!(redis.command(&["DBSIZE"])? == b":0\r\n", "nothing was written, and no generation made");
    ensure!(set(&named("TAGS", 254))? == "OK", "so many are taken");
    // Parents' parents count: each of these has a hundred.
    for parent in ["a", "b", "c"] {
        let mut words = vec!["CACHE.SET".to_owned(), parent.into(), "v".into(), "DEPENDS".into(), "100".into()];
        words.extend((0..100).map(|n| format!("{parent}:{n}")));
        ensure!(set(&words)? == "OK", "a parent");
    }
    let words = ["CACHE.SET", "child", "v", "DEPENDS", "3", "a", "b", "c"].map(str::to_owned);
    let reply = set(&words)?;
    ensure!(reply.starts_with("(error) LIMIT the value would depend on"), "{reply}");
    ensure!(client.ask("EXISTS child")? == "0", "it was not written");
    Ok(())
}

#[test]
fn an_expression_and_a_glob_that_explode_elsewhere_only_match() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    let (all, almost) = ("a".repeat(20_000), format!("{}!", "a".repeat(20_000)));
    for (kind, pattern) in [("REGEX", "^(a+)+(a|a?)+$"), ("PATTERN", "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*[a]")] {
        for key in [&all, &almost] {
            ensure!(ask(&mut client, &["SET", key, "v"])? == "OK", "a long key");
        }
        ensure!(ask(&mut client, &["CACHE.INVALIDATE", kind, pattern])?.len() == 32, "{kind}");
        ensure!(
            ask(&mut client, &["MGET", &all, &almost])? == "[(nil), v]",
            "{kind} {pattern} has the one, and not the other"
        );
    }
    eventually("both are swept", SOON, || {
        ensure!(client.ask("CACHE.INVALIDATIONS")? == "[]", "not yet");
        Ok(())
    })?;
    ensure!(ask(&mut client, &["MGET", &all, &almost])? == "[(nil), v]", "behind the sweep, too");
    Ok(())
}

/// Nothing of it is done then, and nothing of it comes later: neither when the connection is back, nor as an event.
#[test]
fn with_redis_away_an_invalidation_is_refused_whole() -> Result<()> {
    let world = World::calm(&Subject::good())?;
    let mut client = world.pod().connect()?;
    let set = ["CACHE.SET k v TAGS 1 t DEPENDS 1 p", "SET p v", "GET k", "GET p"];
    ensure!(client.pipeline(&set)? == ["OK", "OK", "v", "v"], "values");
    let generation = world.foreign(&format!("GET {TAG}"))?;
    let proxy = &world.pod().proxy;
    for class in proxy::ALL {
        proxy.refuse(class);
        proxy.cut(class);
    }
    eventually("the sidecar has noticed", SOON, || {
        let read = client.ask("GET unknown")?;
        ensure!(read.starts_with("(error) NOTREADY"), "{read}");
        Ok(())
    })?;
    for what in ["KEY k p", "TAG t", "CASCADE p", "KEYSPACE *", "ALL", "TAG t MODE EXPIRE", "PATTERN k*", "REGEX ^p"] {
        let reply = client.ask(&format!("CACHE.INVALIDATE {what}"))?;
        ensure!(reply.starts_with("(error) NOTREADY"), "{what}: {reply}");
    }
    for class in proxy::ALL {
        proxy.accept_again(class);
    }
    eventually("the values are served as they were", SOON, || {
        let read = client.pipeline(&["GET k", "GET p"])?;
        ensure!(read == ["v", "v"], "{read:?}");
        Ok(())
    })?;
    ensure!(world.foreign(&format!("GET {TAG}"))? == generation, "the tag is what it was");
    ensure!(world.foreign("XLEN caddy:default.local:events")? == "0", "nothing was told");
    ensure!(client.ask("CACHE.INVALIDATE TAG t")? == "1" && client.ask("GET k")? == "(nil)", "it works again");
    Ok(())
}

/// Redis takes no transaction then, not even of deletions: a group's end is none.
#[test]
fn a_group_ends_also_in_a_redis_that_is_full() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = SidecarOptions::redis(redis.socket()).max_staleness(Duration::from_millis(200)).start()?;
    let mut client = session(&sidecar)?;
    let told = client.pipeline(&["CACHE.SET k v TAGS 1 t", "CACHE.SET other v", "GET k"])?;
    ensure!(told == ["OK", "OK", "v"], "{told:?}");
    // From now on writes end leases in one step with what they do.
    token(&mut client, &["missing"])?;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    let told = client.ask("CACHE.SET k w TAGS 1 t")?;
    ensure!(told.contains("OOM"), "it is full: {told}");
    for (what, key) in [("TAG t", "k"), ("ALL", "other")] {
        let told = client.ask(&format!("CACHE.INVALIDATE {what}"))?;
        ensure!(told == "1", "{what}: {told}");
        let read = client.ask(&format!("GET {key}"))?;
        ensure!(read == "(nil)", "{what}, then {key} is {read}");
    }
    Ok(())
}

#[test]
fn repeating_an_invalidation_changes_nothing() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = Sidecar::start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("CACHE.SET k v TAGS 1 t DEPENDS 1 p")? == "OK", "a value");
    for (what, first) in [("TAG t", "1"), ("CASCADE p", "1"), ("KEY k", "1"), ("KEYSPACE *", "1"), ("ALL", "1")] {
        let answers =
            [client.ask(&format!("CACHE.INVALIDATE {what}"))?, client.ask(&format!("CACHE.INVALIDATE {what}"))?];
        ensure!(answers == [first, "0"], "{what}: {answers:?}");
    }
    ensure!(client.ask("GET k")? == "(nil)", "it is gone");
    Ok(())
}

#[test]
fn what_is_no_generation_under_a_tags_name_is_named_and_not_overwritten() -> Result<()> {
    let redis = RedisServer::start()?;
    let rules = "keyspaces: [{name: users, match: \"user:*\", tags: [\"t\"]}]";
    let sidecar = SidecarOptions::redis(redis.socket()).section(rules).start()?;
    let mut client = session(&sidecar)?;
    for (foreign, what) in [(["SET", TAG, "mine"], "4 bytes"), (["LPUSH", TAG, "mine"], "no string")] {
        ensure!(client.ask("CACHE.SET k v TAGS 1 t")? == "OK" && client.ask("GET k")? == "v", "a value");
        redis.command(&["DEL", TAG])?;
        redis.command(&foreign)?;
        eventually("what carries it is invalid", SOON, || {
            let read = client.ask("GET k")?;
            ensure!(read == "(nil)", "{read}");
            Ok(())
        })?;
        for command in ["CACHE.SET k w TAGS 1 t", "SET user:1 w", "CACHE.GET none WITHMETA TAGS 1 t"] {
            let reply = client.ask(command)?;
            let said = format!("(error) ERR the key '{TAG}' in Redis is {what} that no sidecar wrote");
            ensure!(reply.starts_with(&said) && reply.contains("DEL it"), "{command}: {reply}");
        }
        ensure!(client.ask("EXISTS user:1")? == "0", "nothing was written");
        ensure!(redis.command(&["TYPE", TAG])? != b"+none\r\n", "it was not overwritten");
        ensure!(client.ask("CACHE.INVALIDATE TAG t")? == "1", "as the error says");
        ensure!(client.ask("CACHE.SET k w TAGS 1 t")? == "OK" && client.ask("GET k")? == "w", "it is a tag again");
    }
    Ok(())
}
