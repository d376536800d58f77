//! Keyspaces whose rules give tags to values, and whose keys others depend on.

use anyhow::{Context as _, Result, ensure};
use caddy_tests::{
    guard_scenarios::{acquire, token},
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::{Client, show},
};

use crate::{run, session};

const RULES: &str = "keyspaces: [{name: users, match: \"user:*:*\", tags: [\"user:{1}\", \"{2}\"]}, \
                     {name: items, match: \"item:*\", parents: true}]";

fn start(redis: &RedisServer) -> Result<Sidecar> {
    SidecarOptions::redis(redis.socket()).workers(2).section(RULES).start()
}

#[test]
fn every_write_of_a_whole_value_carries_the_tags_of_its_rule() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis)?;
    let mut client = session(&sidecar)?;
    let writes: &[&[&str]] = &[
        &["SET user:1:name v"],
        &["SET user:1:name v EX 100"],
        &["SET user:1:name v PXAT 4102444800000"],
        &["DEL user:1:name", "SET user:1:name v NX"],
        &["SET user:1:name x", "SET user:1:name v XX KEEPTTL"],
        &["SET user:1:name x", "SET user:1:name v GET"],
        &["SETEX user:1:name 100 v"],
        &["PSETEX user:1:name 100000 v"],
        &["DEL user:1:name", "SETNX user:1:name v"],
        &["GETSET user:1:name v"],
        &["MSET other x user:1:name v user:2:name x"],
        &["DEL user:1:name user:2:name", "MSETNX user:2:name x user:1:name v"],
        &["CACHE.SET user:1:name v TAGS 1 more"],
        &["MULTI", "SET user:1:name v", "GET user:1:name", "EXEC"],
        &["WATCH user:1:name", "SET user:1:name v", "UNWATCH"],
        &["INCR other:n", "SET user:1:name v", "GET user:1:name"],
    ];
    for write in writes {
        for tag in ["user:1", "name"] {
            let answers = client.pipeline(write)?;
            ensure!(answers.iter().all(|answer| !answer.contains("(error)")), "{write:?}: {answers:?}");
            let answers = client.pipeline(&["GET user:1:name", "GET user:1:name"])?;
            ensure!(answers == ["v", "v"], "{write:?}: {answers:?}");
            ensure!(client.ask(&format!("CACHE.INVALIDATE TAG {tag}"))? == "1", "{write:?} made no tag {tag}");
            let answer = client.ask("GET user:1:name")?;
            ensure!(answer == "(nil)", "{write:?}: {answer} behind an invalidation of {tag}");
            client.ask("DEL other:n")?;
        }
    }
    let answers = client.pipeline(&["MULTI", "SET user:1:name v", "GET user:1:name", "EXEC"])?;
    ensure!(answers == ["OK", "QUEUED", "QUEUED", "[OK, v]"], "{answers:?}");
    // Also of everything, and of the keyspace.
    for group in ["ALL", "KEYSPACE users"] {
        ensure!(client.ask("SET user:1:name v")? == "OK" && client.ask("SET plain v")? == "OK", "set");
        ensure!(client.ask(&format!("CACHE.INVALIDATE {group}"))? == "1", "{group}");
        ensure!(client.pipeline(&["GET user:1:name", "GET plain"])? == ["(nil)", "v"], "{group}");
    }
    Ok(())
}

#[test]
fn a_write_behind_an_invalidation_in_one_pipeline_is_read_back() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis)?;
    let mut client = session(&sidecar)?;
    ensure!(client.ask("SET user:1:name v0")? == "OK", "set");
    let answers = client.pipeline(&["CACHE.INVALIDATE TAG user:1", "SET user:1:name v1", "GET user:1:name"])?;
    ensure!(answers == ["1", "OK", "v1"], "{answers:?}");
    Ok(())
}

#[test]
fn what_is_written_past_the_sidecars_carries_nothing_and_is_a_plain_value() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis)?;
    let (mut client, mut foreign) = (session(&sidecar)?, Client(redis.connect()?));
    ensure!(foreign.ask("SET user:1:name v")? == "OK", "set");
    ensure!(client.ask("GET user:1:name")? == "v", "read");
    ensure!(client.ask("CACHE.INVALIDATE TAG user:1")? == "0", "there is no such tag");
    ensure!(client.ask("GET user:1:name")? == "v", "it has no tag");
    ensure!(client.pipeline(&["APPEND user:1:name w", "GET user:1:name"])? == ["2", "vw"], "and is plain");
    Ok(())
}

#[test]
fn writing_a_parent_kills_its_children_in_the_same_step() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis)?;
    let (mut client, mut other) = (session(&sidecar)?, session(&sidecar)?);
    let writes: &[&[&str]] = &[
        &["SET item:1 v"],
        &["APPEND item:1 v"],
        &["DEL item:1"],
        &["MSET x 1 item:1 v"],
        &["CACHE.SET item:1 v TAGS 1 t"],
        &["CACHE.INVALIDATE KEY item:1"],
        &["HSET item:2 f v", "RENAME item:2 item:1", "DEL item:1"],
        &["MULTI", "SET item:1 v", "EXEC"],
        &["EXPIRE item:1 100", "SET item:1 v"],
    ];
    for write in writes {
        for command in ["CACHE.SET list v DEPENDS 2 item:1 item:9", "CACHE.SET page v DEPENDS 1 list"] {
            ensure!(client.ask(command)? == "OK", "{command}");
        }
        ensure!(client.ask("MGET list page")? == "[v, v]" && other.ask("MGET list page")? == "[v, v]", "set");
        let answers = client.pipeline(write)?;
        ensure!(answers.iter().all(|answer| !answer.contains("(error)")), "{write:?}: {answers:?}");
        for client in [&mut client, &mut other] {
            let read = client.ask("MGET list page")?;
            ensure!(read == "[(nil), (nil)]", "{write:?}: {read}");
        }
    }
    // A parent that has parents itself is there, and its children are not.
    let answers = client.pipeline(&[
        "CACHE.SET list v DEPENDS 1 item:1",
        "CACHE.SET item:1 v DEPENDS 2 item:1 item:2",
        "MGET item:1 list",
        "CACHE.SET list v DEPENDS 1 item:1",
        "MGET item:1 list",
    ])?;
    ensure!(answers[2] == "[v, (nil)]" && answers[4] == "[v, v]", "{answers:?}");
    let answers = client.pipeline(&["SET item:2 v", "MGET item:1 list"])?;
    ensure!(answers == ["OK", "[(nil), (nil)]"], "{answers:?}");
    // In one pipeline the child is bound to the new parent.
    let answers = client.pipeline(&["SET item:1 v2", "CACHE.SET list v2 DEPENDS 1 item:1", "GET list"])?;
    ensure!(answers == ["OK", "OK", "v2"], "{answers:?}");
    // Past the sidecars nobody hears of the children.
    ensure!(Client(redis.connect()?).ask("SET item:1 v3")? == "OK", "a foreign write");
    ensure!(client.pipeline(&["EVAL 'return 1' 0", "GET list"])? == ["1", "v2"], "documented");
    Ok(())
}

#[test]
fn bad_rules_are_told_where_and_what_to_write() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("config.yaml");
    let text = "keyspaces: [{name: a, match: \"user:*\", tags: [\"{2}\", \"\"]}, {name: b, match: plain, tags: [\"x:{1}\"]}, \
                {name: c, match: c, tags: [x], parents: true, strategy: WriteThrough, store: none}]";
    std::fs::write(&file, text)?;
    let output = run(&["check-config"], &file)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it was taken");
    for part in [
        "keyspaces[0].tags[0]: \"{2}\": {2} is none of the stars of match: write {1} for what a * takes",
        "keyspaces[0].tags[1]: \"\": a tag has 1 to 512 bytes",
        "keyspaces[1].tags[0]: \"x:{1}\": match has no *",
        "keyspaces[2].tags: is not available with strategy WriteThrough",
        "keyspaces[2].parents: is not available with strategy WriteThrough",
    ] {
        ensure!(said.contains(part), "{part} is missing in {said}");
    }
    Ok(())
}

#[test]
fn a_tag_that_a_key_makes_too_long_is_refused() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis)?;
    let mut client = session(&sidecar)?;
    let key = format!("user:{}:name", "x".repeat(600));
    let answer = client.ask(&format!("SET {key} v"))?;
    ensure!(answer.starts_with("(error) LIMIT a tag of the keyspace's rule has 605 bytes"), "{answer}");
    let answers = client.pipeline(&["MULTI", &format!("SET {key} v"), "EXEC"])?;
    ensure!(answers[1].contains("LIMIT") && answers[2].contains("EXECABORT"), "{answers:?}");
    let reply = client.0.request(&["GET", &key]).context("GET")?;
    ensure!(show(&reply) == "(nil)", "nothing was written");
    Ok(())
}

/// What a request ends is not known to what is sealed behind it in one pipeline: it waits.
#[test]
fn a_write_behind_whatever_ends_generations_is_read_back() -> Result<()> {
    let redis = RedisServer::start()?;
    let sidecar = start(&redis)?;
    let mut client = session(&sidecar)?;
    for ends in [
        &["FLUSHDB"][..],
        &["FLUSHALL"],
        &["DEL caddy:default.local:g:t:user:1"],
        &["EVAL 'return redis.call(\"DEL\", \"caddy:default.local:g:a\")' 0"],
        &["MULTI", "FLUSHDB", "EXEC"],
        &["MULTI", "DEL caddy:default.local:g:t:name", "EXEC"],
        &["WATCH other", "FLUSHDB"],
        &["WATCH other", "DEL caddy:default.local:g:t:name"],
        &["CACHE.INVALIDATE ALL"],
    ] {
        for write in ["SET user:1:name v1", "MSET other x user:1:name v1", "CACHE.SET user:1:name v1 TAGS 1 more"] {
            ensure!(client.ask("SET user:1:name v0")? == "OK", "set");
            let answers = client.pipeline(&[ends, &[write, "GET user:1:name"]].concat())?;
            ensure!(answers.last().is_some_and(|last| last == "v1"), "{ends:?}, {write}: {answers:?}");
            client.ask("UNWATCH")?;
        }
        // And what is read in front of it is read in front of it.
        for read in ["GET user:1:name", "GETEX user:1:name", "STRLEN user:1:name", "SET user:1:name x NX GET"] {
            let writes = ["INCR other:n", "CACHE.SET user:1:name v TAGS 1 more", read];
            let answers = client.pipeline(&[&writes, ends].concat())?;
            ensure!(answers[2] == "v" || answers[2] == "1", "{read} in front of {ends:?}: {answers:?}");
            client.ask("UNWATCH")?;
        }
    }
    Ok(())
}

/// What depends on a parent dies as well when that is filled under a token, or written under a lock.
#[test]
fn a_conditional_write_of_a_parent_kills_its_children() -> Result<()> {
    let redis = RedisServer::start()?;
    let (sidecar, pod) = (start(&redis)?, start(&redis)?);
    let (mut client, mut other) = (session(&sidecar)?, session(&pod)?);
    let fence = acquire(&mut client, "lock")?;
    // Behind it the pod has heard of what was done before.
    let heard = |pod: &mut Client| pod.ask("EVAL 'return 1' 0");
    for turn in 0..3 {
        for way in ["TOKEN", "FENCE"] {
            ensure!(client.ask("DEL item:1")?.parse::<u64>().is_ok(), "delete");
            for command in ["CACHE.SET list v DEPENDS 2 item:1 item:9", "CACHE.SET page v DEPENDS 1 list"] {
                ensure!(client.ask(command)? == "OK", "{command}");
            }
            heard(&mut other)?;
            ensure!(client.ask("MGET list page")? == "[v, v]" && other.ask("MGET list page")? == "[v, v]", "set");
            let condition = match way {
                "TOKEN" => format!("TOKEN {}", token(&mut client, &["item:1"])?),
                _ => format!("FENCE lock {fence}"),
            };
            ensure!(client.ask(&format!("CACHE.SET item:1 v{turn} {condition}"))? == "OK", "{way}");
            heard(&mut other)?;
            for client in [&mut client, &mut other] {
                let read = client.ask("MGET item:1 list page")?;
                ensure!(read == format!("[v{turn}, (nil), (nil)]"), "{way}: {read}");
            }
        }
    }
    // A parent that has parents itself, by its token or by the command: what they are, its children know.
    for way in ["TOKEN", "FENCE"] {
        ensure!(client.ask("DEL item:1")?.parse::<u64>().is_ok(), "delete");
        let write = match way {
            "TOKEN" => {
                let permit = token(&mut client, &["item:1", "DEPENDS", "1", "item:2"])?;
                format!("CACHE.SET item:1 v TOKEN {permit}")
            }
            _ => format!("CACHE.SET item:1 v DEPENDS 1 item:2 FENCE lock {fence}"),
        };
        ensure!(client.ask(&write)? == "OK", "{write}");
        ensure!(client.ask("CACHE.SET list v DEPENDS 1 item:1")? == "OK", "a child");
        heard(&mut other)?;
        ensure!(other.ask("MGET item:1 list")? == "[v, v]", "{way}: both are there");
        ensure!(client.ask("SET item:2 v")? == "OK", "the grandparent");
        heard(&mut other)?;
        for client in [&mut client, &mut other] {
            let read = client.ask("MGET item:1 list")?;
            ensure!(read == "[(nil), (nil)]", "{way}: {read}");
        }
    }
    // What is refused renews nothing.
    ensure!(client.ask("CACHE.SET list v DEPENDS 1 item:1")? == "OK", "a child");
    let late = token(&mut client, &["item:1"])?;
    heard(&mut other)?;
    ensure!(other.ask("DEL item:1")? == "1", "item:1 is there, of a parent that was written");
    heard(&mut client)?;
    ensure!(client.ask("CACHE.SET list v DEPENDS 1 item:1")? == "OK", "a child");
    let refused = client.ask(&format!("CACHE.SET item:1 late TOKEN {late}"))?;
    ensure!(refused.starts_with("(error) STALE") && client.ask("GET list")? == "v", "{refused}");
    Ok(())
}
