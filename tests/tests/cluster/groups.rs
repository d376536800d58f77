//! Groups of values in front of a Redis Cluster: what is written, what it depends on, and what it is invalidated by are in
//! slots of several nodes, and every step is of one slot.

use std::time::Duration;

use anyhow::{Result, ensure};
use caddy_tests::{
    e2e::eventually,
    redis_cluster::RedisCluster,
    world::{Client, SOON, Subject},
};

const RULES: &str = "keyspaces: [{name: users, match: \"user:*:*\", tags: [\"user:{1}\"]}, \
                     {name: items, match: \"item:*\", parents: true}]";

#[test]
fn groups_reach_over_all_nodes() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let start = || {
        let options = Subject::good().cluster_options(&cluster);
        options.max_staleness(Duration::from_secs(1)).workers(2).section(RULES).start()
    };
    let (mine, theirs) = (start()?, start()?);
    let (mut client, mut other) = (Client(mine.connect()?), Client(theirs.connect()?));
    let keys: Vec<String> = (0..6).map(|n| cluster.key_of(n % 3, n)).collect();
    let all = format!("MGET {}", keys.join(" "));
    let (there, gone) = (format!("[{}]", ["v"; 6].join(", ")), format!("[{}]", ["(nil)"; 6].join(", ")));
    let set = |client: &mut Client, with: &str| -> Result<()> {
        for key in &keys {
            let answer = client.ask(&format!("CACHE.SET {key} v PX 100000 STALE 100000 {with}"))?;
            ensure!(answer == "OK", "{with}: {answer}");
        }
        Ok(())
    };
    for (with, invalidation, removed) in [
        ("TAGS 2 a b", "CACHE.INVALIDATE TAG a b c", "2"),
        ("TAGS 1 a", "CACHE.INVALIDATE TAG a MODE EXPIRE", "1"),
        ("DEPENDS 2 {x}p {y}q", "CACHE.INVALIDATE CASCADE {y}q {z}r", "1"),
        ("DEPENDS 2 {x}p {y}q", "CACHE.INVALIDATE CASCADE {x}p {y}q {z}r MODE EXPIRE", "2"),
        ("", "CACHE.INVALIDATE KEYSPACE *", "1"),
        ("", "CACHE.INVALIDATE ALL", "1"),
    ] {
        set(&mut client, with)?;
        for session in [&mut client, &mut other] {
            eventually("it is there", SOON, || {
                let read = session.ask(&all)?;
                ensure!(read == there, "{with}: {read}");
                Ok(())
            })?;
        }
        let answer = client.ask(invalidation)?;
        ensure!(answer == removed, "{invalidation}: {answer}");
        let read = client.ask(&all)?;
        ensure!(read == gone, "{invalidation}: {read}");
        eventually("it is gone for the other one", SOON, || {
            let read = other.ask(&all)?;
            ensure!(read == gone, "{invalidation}: {read}");
            Ok(())
        })?;
    }
    let expire = format!("CACHE.INVALIDATE KEY {} MODE EXPIRE", keys.join(" "));
    set(&mut client, "")?;
    let answers = client.pipeline(&[&expire, &all, &expire])?;
    ensure!(answers == ["6", &gone, "0"], "{answers:?}");
    Ok(())
}

#[test]
fn plain_writes_carry_tags_and_renew_parents_in_every_slot() -> Result<()> {
    let cluster = RedisCluster::start(3)?;
    let sidecar = Subject::good().cluster_options(&cluster).workers(2).section(RULES).start()?;
    let mut client = Client(sidecar.connect()?);
    for n in 0..12 {
        let (user, item, list) = (format!("user:{n}:name"), format!("item:{n}"), format!("list:{n}"));
        let answers = client.pipeline(&[
            &format!("SET {user} v EX 100"),
            &format!("GETRANGE {user} 0 0"),
            &format!("STRLEN {user}"),
            &format!("APPEND {user} x"),
        ])?;
        ensure!(answers[..3] == ["OK", "v", "1"], "{answers:?}");
        ensure!(answers[3].starts_with("(error) WRONGTYPE"), "{answers:?}");
        let answers = client.pipeline(&[&format!("CACHE.INVALIDATE TAG user:{n}"), &format!("GET {user}")])?;
        ensure!(answers == ["1", "(nil)"], "{answers:?}");
        for write in [vec![format!("SET {item} v")], vec!["MULTI".into(), format!("SET {item} v"), "EXEC".into()]] {
            let answer = client.ask(&format!("CACHE.SET {list} v DEPENDS 2 {item} elsewhere"))?;
            ensure!(answer == "OK" && client.ask(&format!("GET {list}"))? == "v", "{answer}");
            let answers = client.pipeline(&write.iter().map(String::as_str).collect::<Vec<_>>())?;
            ensure!(answers.iter().all(|answer| !answer.starts_with("(error)")), "{write:?}: {answers:?}");
            let read = client.ask(&format!("GET {list}"))?;
            ensure!(read == "(nil)", "{write:?}: {read}");
        }
        let answers = client.pipeline(&[&format!("SET {item} v"), &format!("DEL {item} {user} {list}")])?;
        ensure!(answers == ["OK", "3"], "{answers:?}");
    }
    Ok(())
}
